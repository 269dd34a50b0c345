# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Policies, from their names to the engine; vLLM's configuration; what one request may ask for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import smartspec
from smartspec import RequestSpeculation, SamplingParams, Speculation, SpeculationStats
from smartspec.speculation import POLICIES, PROPOSERS

PROMPTS = [
    "import os\n\ndef main(",
    "class Point:\n    def __init__(self, x",
    "for i in range(10):\n    for j in range(10):\n        ",
    "def read(self, size=-1):\n    ",
]
PARAMS = [
    SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True),
    SamplingParams(temperature=0.8, seed=4, max_tokens=48, ignore_eos=True, logprobs=1),
    SamplingParams(temperature=0.0, max_tokens=33, ignore_eos=True, repetition_penalty=1.1),
    SamplingParams(temperature=1.0, seed=5, max_tokens=40, ignore_eos=True, n=2),
]


def outputs_of(llm, **options):
    outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False, **options)
    assert llm.engine.check_integrity() == ""
    return [[(o.token_ids, o.logprobs, o.text) for o in each.outputs] for each in outputs]


@pytest.fixture(scope="module")
def expected(llm):
    return outputs_of(llm)


# ------------------------------------------------------------------------------ choosing a policy


def test_the_policy_that_is_implied():
    assert Speculation().policy == "auto"
    assert Speculation().proposer == "auto"
    assert Speculation("lookup").policy == "auto"
    assert Speculation("lookup", max_tokens=3).policy == "fixed"
    assert Speculation("lookup", policy="auto", max_tokens=3).policy == "auto"
    table = Speculation(num_speculative_tokens_per_batch_size=[[1, 4, 5], [5, 64, 1]])
    assert table.policy == "table"
    assert table.longest_draft == 5
    assert table.num_speculative_tokens_per_batch_size == ((1, 4, 5), (5, 64, 1))
    assert replace(Speculation("draft"), max_tokens=3).policy == "auto"
    assert Speculation("off").is_off
    assert Speculation(policy="off").is_off
    assert not Speculation().is_off


def test_longest_drafts():
    assert Speculation().longest_draft == 16
    assert Speculation().longest_paid_draft == 8
    assert Speculation("draft", policy="auto", max_tokens=3).longest_paid_draft == 3
    assert Speculation("draft", draft_max_tokens=5).longest_paid_draft == 5
    assert Speculation("lookup+draft", policy="fixed").longest_draft == 4
    assert Speculation("draft", policy="disco").threshold_or_default == 0.4
    assert Speculation("draft", policy="ddd", threshold=1.5).threshold_or_default == 1.5


def test_the_proposer_that_is_implied():
    assert Speculation.resolve(None, False).proposer == "suffix"
    assert Speculation.resolve(None, True).proposer == "suffix+draft"
    assert Speculation.resolve("auto", True).proposer == "suffix+draft"
    assert Speculation.resolve({"policy": "fixed", "max_tokens": 3}, False).proposer == "suffix"
    assert Speculation.resolve("off", False).is_off
    index = smartspec.llm.core.SuffixIndex()
    assert Speculation(suffix_index=index).uses("suffix")
    with pytest.raises(ValueError, match="needs draft_model"):
        Speculation.resolve("lookup+draft", False)
    with pytest.raises(ValueError, match="unknown field 'k'"):
        Speculation.resolve({"k": 3}, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "fast"}, "policy must be one of auto, off"),
        ({"policy": 3}, "policy must be one of"),
        ({"policy": "table"}, "go together"),
        ({"policy": "fixed", "num_speculative_tokens_per_batch_size": [[1, 2, 3]]}, "go together"),
        ({"num_speculative_tokens_per_batch_size": []}, "must be a list of"),
        ({"num_speculative_tokens_per_batch_size": "1-2"}, "must be a list of"),
        ({"num_speculative_tokens_per_batch_size": [[1, 2]]}, r"\[0\] must be"),
        ({"num_speculative_tokens_per_batch_size": [[0, 2, 3]]}, "first"),
        ({"num_speculative_tokens_per_batch_size": [[3, 2, 3]]}, "last"),
        ({"num_speculative_tokens_per_batch_size": [[1, 4, 3], [4, 8, 1]]}, r"\[1\] first"),
        ({"num_speculative_tokens_per_batch_size": [[1, 4, 0]]}, "drafts nothing"),
        ({"num_speculative_tokens_per_batch_size": [[1, 4, 999]]}, "per_batch_size"),
        ({"policy": "tetris", "capacity": 0}, "capacity"),
        ({"policy": "auto", "threshold": 0.5}, "threshold is of the policies"),
        ({"policy": "disco", "threshold": float("nan")}, "threshold"),
        ({"policy": "sequoia", "rank_acceptance": []}, "rank_acceptance"),
        ({"policy": "sequoia", "rank_acceptance": [0.5, 2.0]}, r"rank_acceptance\[1\]"),
        ({"draft_max_tokens": 0}, "draft_max_tokens"),
        ({"proposer": "magic"}, "proposer must be one of auto"),
    ],
)
def test_nonsense_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Speculation(**options)


# -------------------------------------------------------------------------- vLLM's configuration


def test_from_vllm():
    ngram = Speculation.from_vllm({"method": "ngram", "num_speculative_tokens": 5})
    assert ngram == Speculation("lookup", max_tokens=5, prompt_lookup_min=5, prompt_lookup_max=5)
    assert ngram.policy == "fixed"
    both = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 2}
    assert Speculation.from_vllm(both).prompt_lookup_max == 2
    both["prompt_lookup_max"] = 7
    assert Speculation.from_vllm(both).prompt_lookup_max == 7
    assert Speculation.from_vllm(both).prompt_lookup_min == 2
    del both["prompt_lookup_min"]
    assert Speculation.from_vllm(both).prompt_lookup_min == 7
    draft = Speculation.from_vllm({"model": "somewhere", "num_speculative_tokens": 2})
    assert draft == Speculation("draft", max_tokens=2, draft_model="somewhere")
    assert Speculation.from_vllm({"method": "suffix"}).longest_draft == 24
    table = {
        "method": "suffix",
        "num_speculative_tokens_per_batch_size": [[1, 64, 3], [65, 128, 1]],
    }
    assert Speculation.from_vllm(table).policy == "table"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "eagle3", "num_speculative_tokens": 3}, "method must be one of .*'eagle3'"),
        ({"num_speculative_tokens": 3}, "method must be one of"),
        ({"method": "ngram"}, "num_speculative_tokens is missing"),
        (
            {"method": "ngram", "num_speculative_tokens": 3, "quantization": "fp8", "foo": 1},
            "not supported: foo, quantization; supported are method",
        ),
        ({"method": "ngram", "num_speculative_tokens": 0}, "max_tokens"),
        ({"method": "ngram", "num_speculative_tokens": 3, "model": "x"}, "model does not go with"),
        ({"method": "suffix", "prompt_lookup_max": 3}, "prompt_lookup_max does not go with"),
        (
            {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 9,
             "prompt_lookup_max": 3},
            "prompt_lookup_max",
        ),
        ("ngram", "must be a dict"),
    ],
)  # fmt: skip
def test_vllm_configurations_that_cannot_be_served(config, message):
    with pytest.raises(ValueError, match=message):
        Speculation.from_vllm(config)


def test_an_llm_takes_vllms_configuration(draft_path, expected):
    config = {"method": "draft_model", "model": draft_path, "num_speculative_tokens": 3}
    llm = smartspec.LLM(draft_path, speculative_config=config, num_threads=1, max_model_len=512)
    assert outputs_of(llm) == expected
    assert llm.engine.stats().num_accepted > 20
    with pytest.raises(ValueError, match="not both"):
        smartspec.LLM(draft_path, speculation="lookup", speculative_config=config)


# --------------------------------------------------------------------------------- in the engine


@pytest.fixture(scope="module")
def pair(draft_path):
    """The shipped draft model drafts for itself: everything right, at full price."""
    return smartspec.LLM(
        draft_path, draft_model=draft_path, num_threads=1, max_model_len=512, max_num_seqs=8
    )


def spec_of(policy: str, proposer: str) -> Speculation:
    if policy == "table":
        return Speculation(proposer, num_speculative_tokens_per_batch_size=[[1, 3, 4], [4, 64, 2]])
    return Speculation(proposer, policy=policy, tree_width=2 if policy == "sequoia" else 1)


@pytest.mark.parametrize("proposer", [name for name in PROPOSERS if name != "off"])
@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_changes_an_output(pair, expected, policy, proposer):
    llm = pair.with_speculation(spec_of(policy, proposer))
    for _ in range(2):
        assert outputs_of(llm) == expected
        assert llm.engine.stats().last_proposer_error == ""
    stats = llm.engine.stats()
    if policy == "off":
        assert stats.num_drafted == 0
    elif policy not in ("auto", "turbospec"):  # those may find that nothing pays
        assert stats.num_drafted > 0


def test_no_policy_changes_an_output_of_a_python_proposer(pair, expected):
    class Repeats(smartspec.Proposer):
        def propose(self, requests):
            return [request.tokens[-3:].tolist()[: request.max_depth] for request in requests]

    for policy in ("auto", "fixed", "tetris"):
        llm = pair.with_speculation(Speculation(Repeats(), policy=policy))
        assert outputs_of(llm) == expected
        assert llm.engine.stats().last_proposer_error == ""


def test_two_engines_over_one_model(pair, expected):
    a = pair.with_speculation("off")
    b = pair.with_speculation(Speculation("lookup", max_tokens=3))
    requests = [llm.start(llm.prepare(PROMPTS[0], PARAMS[0])) for llm in (a, b)]
    while not all(request.finished for request in requests):
        for llm, request in zip((a, b), requests, strict=True):
            llm.step(request)
    for request in requests:
        assert request.result().outputs[0].token_ids == expected[0][0][0]
    assert a.suffix_index is None
    assert pair.suffix_index is not None


# ------------------------------------------------------------------------------ one request's wish


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"enabled": 1}, "enabled"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"min_tokens": 4, "max_tokens": 3}, "max_tokens"),
        ({"tpot_target_ms": 0}, "tpot_target_ms"),
        ({"tpot_target_ms": float("inf")}, "tpot_target_ms"),
        ({"proposer": 3}, "proposer"),
        ({"proposer": "magic"}, "proposer must be one of this LLM's"),
        ({"speed": 3}, "unknown field 'speed'"),
        ("fast", "must be None, a RequestSpeculation"),
        ([{}], "must have 4 entries"),
    ],
)
def test_wishes_are_checked_before_anything_starts(pair, value, message):
    with pytest.raises(ValueError, match=message):
        pair.generate(PROMPTS, PARAMS, use_tqdm=False, speculation=value)
    assert not pair.engine.has_unfinished()


def test_requests_that_do_not_draft(pair, expected):
    llm = pair.with_speculation(Speculation("draft", max_tokens=3))
    wishes = [{"enabled": False}, None, RequestSpeculation(enabled=False), {}]
    outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False, speculation=wishes)
    assert [o.speculation.num_drafted > 0 for o in outputs] == [False, True, False, True]
    assert outputs[0].speculation.reason == "request"
    assert [o.outputs[0].token_ids for o in outputs] == [each[0][0] for each in expected]
    (part, *_) = llm.stream(PROMPTS[0], PARAMS[0], speculation={"enabled": False})
    assert part.outputs[0].speculation.num_drafted == 0


def test_lengths_of_one_request(pair, expected):
    llm = pair.with_speculation(Speculation("draft", max_tokens=6))
    wishes = [{"max_tokens": 2}, {"max_tokens": 0}, None, {"max_tokens": 1}]
    outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False, speculation=wishes)
    assert [o.outputs[0].token_ids for o in outputs] == [each[0][0] for each in expected]
    longest = [
        max((k for k, steps in enumerate(o.speculation.length_histogram) if steps), default=0)
        for o in outputs
    ]
    assert longest == [2, 0, 6, 1]
    for output in outputs:
        stats = output.speculation
        drafted = sum(k * steps for k, steps in enumerate(stats.length_histogram))
        assert drafted == stats.num_drafted
        assert (stats.proposer == "draft") == (stats.num_drafted > 0)


def test_a_minimum_is_kept_where_so_much_is_drafted(pair, expected):
    """Under the policy auto, which might not draft at all."""
    llm = pair.with_speculation(Speculation("draft", policy="auto"))
    wish = RequestSpeculation(min_tokens=3, max_tokens=3)
    for _ in range(2):
        outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False, speculation=wish)
        assert [o.outputs[0].token_ids for o in outputs] == [each[0][0] for each in expected]
        for output in outputs:
            histogram = output.speculation.length_histogram
            # A draft ends earlier only where the output does.
            assert histogram[3] > 0.7 * sum(histogram)
            assert not any(histogram[4:])


@pytest.mark.parametrize("name", ["suffix", "draft"])
def test_the_proposer_of_one_request(pair, expected, name):
    llm = pair.with_speculation(Speculation("suffix+draft"))
    wish = {"proposer": name, "min_tokens": 2}
    outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False, speculation=wish)
    assert [o.outputs[0].token_ids for o in outputs] == [each[0][0] for each in expected]
    assert {o.speculation.proposer for o in outputs} == {name}
    other = {"suffix": "draft", "draft": "suffix"}[name]
    verified = llm.get_metrics()
    assert verified[f'smartspec:proposer_verified_tokens_total{{proposer="{name}"}}'] > 0
    assert verified[f'smartspec:proposer_verified_tokens_total{{proposer="{other}"}}'] == 0


def test_targets_change_no_output(pair, expected):
    llm = pair.with_speculation(Speculation())
    wishes = [{"tpot_target_ms": target} for target in (1e-3, 1e-3, 1e6, 5)]
    outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False, speculation=wishes)
    assert [o.outputs[0].token_ids for o in outputs] == [each[0][0] for each in expected]


def test_metrics_of_the_policy(pair):
    llm = pair.with_speculation(Speculation("suffix+draft", draft_max_tokens=4))
    llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    found = llm.get_metrics()
    name = "smartspec:draft_length"
    buckets = [found[f'{name}_bucket{{le="{k}"}}'] for k in range(16)]
    assert buckets == sorted(buckets)
    assert found[f'{name}_bucket{{le="+Inf"}}'] == found[f"{name}_count"] >= buckets[-1]
    assert found[f"{name}_sum"] == found["smartspec:spec_decode_num_draft_tokens_total"]
    assert found["smartspec:policy_steps_total"] > 0
    assert found["smartspec:policy_measured_step_seconds_total"] > 0
    assert found["smartspec:policy_predicted_step_seconds_total"] > 0
    assert found["smartspec:policy_wasted_tokens_total"] == (
        found["smartspec:policy_verified_tokens_total"]
        - found["smartspec:policy_accepted_tokens_total"]
    )
    assert found["smartspec:policy_decision_seconds_total"] > 0
    off = pair.with_speculation("off")
    off.generate(PROMPTS, PARAMS, use_tqdm=False)
    assert off.get_metrics()[f"{name}_sum"] == 0


def test_costs_start_from_a_cached_profile(pair, tmp_path, monkeypatch):
    from smartspec import drafting

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    models = drafting.DraftingModels(pair.model, pair.model, pair._options, "")
    estimated = drafting._costs(models)
    assert estimated.target.seconds[0] > 0
    measured = smartspec.llm.core.CostCoefficients()
    measured.tokens, measured.seconds = [1, 8], [0.5, 1.5]
    seen = []

    def load_cached(target, draft):
        seen.append((target, draft))
        return type("Cached", (), {"target": measured, "draft": None})()

    monkeypatch.setattr(drafting, "load_cached", load_cached)
    costs = drafting._costs(models)
    assert costs.target.seconds == costs.draft.seconds == [0.5, 1.5]
    assert seen == [(pair.model, pair.model)]


def test_summed_statistics():
    first = SpeculationStats(5, 3, 2, "none", "draft", [1, 2])
    second = SpeculationStats(1, 0, 1, "policy", None, [0, 1, 4])
    output = smartspec.RequestOutput("1", None, [1], [], True)
    output.outputs = [
        smartspec.CompletionOutput(0, speculation=first),
        smartspec.CompletionOutput(1, speculation=second),
    ]
    total = output.speculation
    assert (total.num_drafted, total.num_accepted, total.num_steps) == (6, 3, 3)
    assert total.length_histogram == [1, 3, 4]
    assert total.proposer == "draft"
