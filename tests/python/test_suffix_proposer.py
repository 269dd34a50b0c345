# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""The suffix index as what an LLM drafts from: options, predictions, sharing, files."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import smartspec
import smartspec_core as core
from smartspec import SamplingParams, Speculation
from smartspec.cli import main

PROMPTS = ["import os\n\ndef main(", "class Point:\n    def __init__(self, x"]
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def expected(llm):
    return [each.outputs[0].token_ids for each in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]


FIXED = Speculation("suffix", policy="fixed")  # counts of steps must not depend on times


def make_llm(path, speculation=FIXED, **options):
    return smartspec.LLM(path, speculation=speculation, num_threads=1, max_model_len=512, **options)


def tokens_of(outputs):
    return [each.outputs[0].token_ids for each in outputs]


def test_past_outputs_are_drafted(draft_path, expected):
    llm = make_llm(draft_path)
    first = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert tokens_of(first) == expected
    assert llm.suffix_index.stats().num_tokens == sum(len(each) for each in expected)
    assert llm.suffix_index.stats().num_requests == 0
    again = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert tokens_of(again) == expected
    assert sum(each.speculation.num_steps for each in again) < 0.7 * sum(
        each.speculation.num_steps for each in first
    )


@pytest.mark.parametrize("proposer", ["suffix+draft", "lookup+draft"])
def test_stacked(draft_path, expected, proposer):
    llm = make_llm(
        draft_path, Speculation(proposer, policy="fixed", tree_width=2), draft_model=draft_path
    )
    outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert tokens_of(outputs) == expected
    # The draft model is the target: whatever it drafts is accepted.
    assert outputs[0].speculation.acceptance_length > 3
    assert (llm.suffix_index is not None) == (proposer == "suffix+draft")
    assert llm.engine.stats().last_proposer_error == ""


def test_prediction(draft_path, llm, expected):
    text = llm.get_tokenizer().decode(expected[0])

    def num_steps(prediction, prompts=PROMPTS[0]):
        fresh = make_llm(draft_path)
        outputs = fresh.generate(prompts, GREEDY, use_tqdm=False, prediction=prediction)
        assert tokens_of(outputs) == expected[: len(outputs)]
        return [each.speculation.num_steps for each in outputs]

    plain = num_steps(None, PROMPTS)
    assert num_steps([]) == num_steps("") == num_steps([None]) == plain[:1]
    assert num_steps(expected[0])[0] < 0.7 * plain[0]
    assert num_steps(text)[0] < 0.8 * plain[0]
    assert num_steps([text])[0] < 0.8 * plain[0]
    both = num_steps([None, expected[1]], PROMPTS)
    assert both[0] == plain[0]
    assert both[1] < 0.7 * plain[1]

    streamed = make_llm(draft_path).stream(PROMPTS[0], GREEDY, prediction=expected[0])
    parts = list(streamed)
    assert [token for part in parts for token in part.outputs[0].token_ids] == expected[0]
    assert len(parts) < 0.7 * plain[0]


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (["a", "b"], "1 entries"),
        (b"bytes", "string or token ids"),
        (5, "string or token ids"),
        ([-1], "token id 0"),
        ([10**6], "token id 0"),
        ([1] * 513, "513 tokens"),
        ("\ud800", "Unicode"),
        ([{"a": 1}], "string or token ids"),
    ],
    ids=repr,
)
def test_bad_predictions(llm, prediction, message):
    with pytest.raises(ValueError, match=message):
        llm.generate(PROMPTS[0], GREEDY, use_tqdm=False, prediction=prediction)
    assert not llm.engine.has_unfinished()


def test_an_index_is_shared_saved_and_loaded(draft_path, tiny_path, expected, tmp_path):
    first = make_llm(draft_path)
    steps = [each.speculation.num_steps for each in first.generate(PROMPTS, GREEDY, use_tqdm=False)]
    path = tmp_path / "past.idx"
    first.suffix_index.save(path)

    loaded = make_llm(draft_path)
    loaded.suffix_index.load(path)
    preloaded = make_llm(draft_path)
    preloaded.suffix_index.preload(expected)
    shared = make_llm(draft_path, replace(FIXED, suffix_index=first.suffix_index))
    assert shared.suffix_index is first.suffix_index
    for llm in (loaded, preloaded, shared):
        outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
        assert tokens_of(outputs) == expected
        assert sum(each.speculation.num_steps for each in outputs) < 0.8 * sum(steps)

    foreign = smartspec.LLM(tiny_path, speculation=FIXED, num_threads=1)
    with pytest.raises(smartspec.FormatError):
        foreign.suffix_index.load(path)


@pytest.mark.parametrize(
    "options",
    [
        {"max_bytes": 1000},
        {"min_survival": 1.5},
        {"min_survival": float("nan")},
        {"tree_width": 5},
        {"draft_max_tokens": 0},
        {"suffix_index": "past.idx"},
    ],
    ids=repr,
)
def test_options_out_of_range(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        Speculation("suffix", **options)
    with pytest.raises(ValueError, match=name):
        Speculation.resolve({"proposer": "suffix", **options}, has_draft_model=False)


def test_options_that_do_not_fit_together(draft_path):
    with pytest.raises(ValueError, match="suffix_index needs"):
        Speculation("lookup", suffix_index=core.SuffixIndex())
    with pytest.raises(ValueError, match="needs draft_model"):
        smartspec.LLM(draft_path, speculation="suffix+draft")
    assert Speculation("suffix").longest_draft == 16
    assert Speculation("lookup").longest_draft == 16
    assert Speculation("lookup", policy="fixed").longest_draft == 4
    assert Speculation("suffix", max_tokens=3).longest_draft == 3


def test_native_proposers_stand_alone():
    index = core.SuffixIndex(vocab_size=20)
    suffix = core.SuffixProposer(index, min_survival=0.01)
    assert suffix.name == "suffix"
    assert suffix.index is index
    request = core.ProposeRequest(1, [5, 6, 7, 8, 5, 6], max_depth=2)
    (tree,) = suffix.propose([request])
    assert tree.tokens == [7, 8]
    guess = core.ProposeRequest(2, [1, 2], max_depth=2, prediction=[9, 1, 2, 3, 4], cache_salt=7)
    assert suffix.propose([guess])[0].tokens == [3, 4]
    assert (guess.cache_salt, guess.prediction.tolist()) == (7, [9, 1, 2, 3, 4])
    lookup = core.PromptLookupProposer()
    assert core.StackedProposer(suffix, lookup).name == "suffix+" + lookup.name
    with pytest.raises(ValueError, match="margin"):
        core.StackedProposer(suffix, lookup, margin=0)
    with pytest.raises((ValueError, TypeError)):
        core.StackedProposer(suffix, None)


def test_a_python_proposer_hears_of_every_token(tiny_path):
    class Listener(smartspec.Proposer):
        def __init__(self):
            super().__init__()
            self.emitted = {}
            self.finished = []

        def propose(self, requests):
            assert all(request.prediction.tolist() == [1, 2] for request in requests)
            return [[1, 2] if request.id % 2 else None for request in requests]

        def observe(self, outcomes):
            for outcome in outcomes:
                assert outcome.id not in self.finished
                self.emitted.setdefault(outcome.id, []).extend(outcome.emitted)

        def finish(self, request_id):
            self.finished.append(request_id)

    listener = Listener()
    llm = smartspec.LLM(tiny_path, speculation=Speculation(listener, policy="fixed"), num_threads=1)
    params = SamplingParams(temperature=0.0, max_tokens=9, n=2, ignore_eos=True)
    outputs = llm.generate([[1, 2], [3]], params, use_tqdm=False, prediction=[[1, 2], [1, 2]])
    heard = sorted(map(tuple, listener.emitted.values()))
    assert heard == sorted(tuple(o.token_ids) for each in outputs for o in each.outputs)


def test_cli(capsys, tmp_path):
    path = tmp_path / "past.idx"
    arguments = ["generate", "--model", "draft", "--prompt", PROMPTS[0], "--max-tokens", "40",
                 "--temperature", "0", "--ignore-eos", "--max-model-len", "512",
                 "--num-threads", "1", "--json"]  # fmt: skip

    def run(*extra):
        assert main([*arguments, *extra]) == 0
        return json.loads(capsys.readouterr().out)

    plain = run("--policy", "off")
    suffix = ["--proposer", "suffix", "--policy", "fixed", "--suffix-index", str(path)]
    first = run(*suffix)
    assert path.stat().st_size > 0
    second = run(*suffix)
    stacked = run("--proposer", "suffix+draft", "--draft-model", "draft")
    text = plain["outputs"][0]["text"]
    predicted = run("--proposer", "suffix", "--policy", "fixed", "--prediction", text)
    for each in (first, second, stacked, predicted):
        assert each["outputs"] == plain["outputs"]
    assert second["speculation"]["num_steps"] < first["speculation"]["num_steps"]
    assert predicted["speculation"]["num_steps"] < first["speculation"]["num_steps"]

    assert main([*arguments, "--proposer", "lookup", "--suffix-index", str(path)]) == 2
    assert "--suffix-index needs" in capsys.readouterr().err
    path.write_bytes(b"junk")
    assert main([*arguments, *suffix]) == 2
    assert "past.idx" in capsys.readouterr().err
    assert path.read_bytes() == b"junk"
