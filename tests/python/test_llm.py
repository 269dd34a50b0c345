# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""LLM: shapes of results, and equality with slow decoding, streaming and speculation."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import smartspec
from models_for_tests import log_softmax, naive_tokens
from smartspec import SamplingParams, Speculation

PROMPTS = ["import os\nimport ", "def read(self, size=-1):\n    ", "class Node:\n    def __init__("]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24)


def ids(outputs):
    return [[each.token_ids for each in output.outputs] for output in outputs]


def texts(outputs):
    return [[each.text for each in output.outputs] for output in outputs]


def test_result_has_vllms_shape(llm):
    (output,) = llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)
    assert output.prompt == PROMPTS[0]
    assert output.prompt_token_ids == llm.tokenizer.encode(PROMPTS[0])
    assert output.finished
    assert isinstance(output.request_id, str)
    (completion,) = output.outputs
    assert completion.index == 0
    assert 1 <= len(completion.token_ids) <= 24
    assert completion.text == llm.tokenizer.decode(completion.token_ids)
    assert completion.finish_reason in ("length", "stop")
    assert completion.logprobs is None
    assert completion.cumulative_logprob is None
    assert output.metrics.first_token_time >= output.metrics.arrival_time
    assert output.metrics.finished_time >= output.metrics.first_token_time
    assert output.speculation.num_drafted == 0
    assert output.speculation.reason == "off"
    assert output.speculation.acceptance_length == 1.0


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_equals_naive_decoding(llm, temperature):
    params = [SamplingParams(temperature=temperature, seed=s, max_tokens=12) for s in (1, 2, 3)]
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    stops = smartspec.llm.core.StopVocabulary(llm.generation_config.eos_token_ids)
    for output, chosen in zip(outputs, params, strict=True):
        native = chosen.to_native(None, llm.model_config.vocab_size, 512)
        tokens, reason = naive_tokens(llm.model, output.prompt_token_ids, native, stops)
        assert output.outputs[0].token_ids == tokens
        assert output.outputs[0].finish_reason == reason


def test_prompt_forms_are_equal(llm):
    token_ids = llm.tokenizer.encode(PROMPTS[0])
    forms = [
        PROMPTS[0],
        token_ids,
        np.array(token_ids),
        {"prompt_token_ids": token_ids},
        {"prompt": PROMPTS[0]},
        [PROMPTS[0]],
        [token_ids],
    ]
    results = [ids(llm.generate(form, GREEDY, use_tqdm=False)) for form in forms]
    assert results == [results[0]] * len(forms)
    assert llm.generate([], GREEDY) == []


def test_batch_order_and_params_per_prompt(llm):
    params = [SamplingParams(temperature=0.0, max_tokens=n) for n in (30, 2, 9)]
    batch = llm.generate(PROMPTS, params, use_tqdm=False, priority=[2, 1, 0])
    alone = [llm.generate(p, s, use_tqdm=False)[0] for p, s in zip(PROMPTS, params, strict=True)]
    assert ids(batch) == ids(alone)
    assert [output.prompt for output in batch] == PROMPTS


@pytest.mark.parametrize("speculation", ["lookup", "draft"])
def test_speculation_changes_nothing_but_the_steps(llm, draft_path, speculation):
    other = smartspec.LLM(
        draft_path,
        draft_model=draft_path if speculation == "draft" else None,
        speculation=Speculation(speculation, max_tokens=3, tree_width=2),
        num_threads=1,
        max_model_len=512,
    )
    params = [
        SamplingParams(temperature=t, seed=7, max_tokens=40, n=2, logprobs=2)
        for t in (0.0, 0.0, 0.7)
    ]
    plain = llm.generate(PROMPTS, params, use_tqdm=False)
    fast = other.generate(PROMPTS, params, use_tqdm=False)
    assert ids(plain) == ids(fast)
    assert texts(plain) == texts(fast)
    for a, b in zip(plain, fast, strict=True):
        assert [each.logprobs for each in a.outputs] == [each.logprobs for each in b.outputs]
    stats = [output.speculation for output in fast]
    assert sum(each.num_drafted for each in stats) > 0
    if speculation == "draft":  # the same model drafts, with the same noise
        assert sum(each.num_accepted for each in stats) > 20
        assert stats[0].acceptance_length > 1.5
        assert stats[0].num_steps < plain[0].speculation.num_steps


def test_n_completions(llm):
    params = SamplingParams(n=4, seed=11, temperature=1.0, max_tokens=12)
    (output,) = llm.generate(PROMPTS[1], params, use_tqdm=False)
    assert [each.index for each in output.outputs] == [0, 1, 2, 3]
    assert len({tuple(each.token_ids) for each in output.outputs}) > 1
    (first,) = llm.generate(PROMPTS[1], params.clone(n=1), use_tqdm=False)
    assert first.outputs[0].token_ids == output.outputs[0].token_ids


def test_logprobs(llm):
    params = SamplingParams(
        temperature=0.8, seed=5, max_tokens=8, logprobs=3, prompt_logprobs=2, top_k=5
    )
    (output,) = llm.generate(PROMPTS[2], params, use_tqdm=False)
    completion = output.outputs[0]
    rows = llm.model.forward_logits(output.prompt_token_ids + completion.token_ids)
    length = len(output.prompt_token_ids)
    assert len(completion.logprobs) == len(completion.token_ids)
    for i, (token, entry) in enumerate(zip(completion.token_ids, completion.logprobs, strict=True)):
        expected = log_softmax(rows[length - 1 + i])
        assert 3 <= len(entry) <= 4
        assert token in entry
        for id_, value in entry.items():
            assert value.logprob == pytest.approx(expected[id_], abs=1e-5)
            assert value.rank == 1 + int((expected > expected[id_]).sum())
            assert value.decoded_token == llm.tokenizer.token_text(id_)
    total = sum(
        e[t].logprob for t, e in zip(completion.token_ids, completion.logprobs, strict=True)
    )
    assert completion.cumulative_logprob == pytest.approx(total)
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == length
    for i, entry in enumerate(output.prompt_logprobs[1:]):
        expected = log_softmax(rows[i])
        assert output.prompt_token_ids[i + 1] in entry
        for id_, value in entry.items():
            assert value.logprob == pytest.approx(expected[id_], abs=1e-5)


@pytest.mark.parametrize("which", ["llm", "lookup_llm"])
def test_stream_equals_generate(request, which):
    engine = request.getfixturevalue(which)
    params = SamplingParams(
        temperature=0.7, seed=3, max_tokens=48, logprobs=1, stop=["\n\n\n", "zzz"], n=2
    )
    (whole,) = engine.generate(PROMPTS[1], params, use_tqdm=False)
    parts = list(engine.stream(PROMPTS[1], params))
    assert len(parts) > 1
    for index, expected in enumerate(whole.outputs):
        mine = [each for part in parts for each in part.outputs if each.index == index]
        assert "".join(each.text for each in mine) == expected.text
        assert [t for each in mine for t in each.token_ids] == expected.token_ids
        assert [row for each in mine for row in each.logprobs] == expected.logprobs
        assert mine[-1].finish_reason == expected.finish_reason
        assert all(each.finish_reason is None for each in mine[:-1])
    assert parts[-1].finished


def test_closing_a_stream_aborts(llm):
    stream = llm.stream(PROMPTS[0], SamplingParams(max_tokens=400, ignore_eos=True))
    next(stream)
    stream.close()
    llm.step()
    assert not llm.engine.has_unfinished()
    stats = llm.engine.stats()
    assert stats.kv.num_free == stats.kv.num_blocks
    assert llm.engine.check_integrity() == ""


def test_interrupted_generate_aborts_everything(llm, monkeypatch):
    steps = []
    original = llm.step

    def interrupted(until=None):
        steps.append(until)
        if len(steps) == 3:
            raise KeyboardInterrupt
        original(until)

    monkeypatch.setattr(llm, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS, SamplingParams(max_tokens=400, ignore_eos=True), use_tqdm=False)
    original()
    assert not llm.engine.has_unfinished()
    assert llm.engine.stats().num_running == 0
    assert not llm._active


def test_stop_token_ids_eos_and_ignore_eos(llm):
    (plain,) = llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)
    token = plain.outputs[0].token_ids[4]
    first = plain.outputs[0].token_ids.index(token)
    (cut,) = llm.generate(PROMPTS[0], GREEDY.clone(stop_token_ids=[token]), use_tqdm=False)
    assert cut.outputs[0].token_ids == plain.outputs[0].token_ids[: first + 1]
    assert (cut.outputs[0].finish_reason, cut.outputs[0].stop_reason) == ("stop", token)
    eos = llm.generation_config.eos_token_ids[0]
    forced = SamplingParams(temperature=0.0, max_tokens=5, allowed_token_ids=[eos])
    (ended,) = llm.generate(PROMPTS[0], forced, use_tqdm=False)
    assert ended.outputs[0].token_ids == [eos]
    assert (ended.outputs[0].finish_reason, ended.outputs[0].stop_reason) == ("stop", None)
    assert ended.outputs[0].text == ""
    (forever,) = llm.generate(PROMPTS[0], forced.clone(ignore_eos=True), use_tqdm=False)
    assert forever.outputs[0].token_ids == [eos] * 5
    (shown,) = llm.generate(
        PROMPTS[0], forced.clone(ignore_eos=True, skip_special_tokens=False), use_tqdm=False
    )
    assert shown.outputs[0].text == "<|endoftext|>" * 5


@pytest.mark.parametrize("which", ["llm", "lookup_llm"])
def test_stop_strings(request, which):
    engine = request.getfixturevalue(which)
    (plain,) = engine.generate(PROMPTS[1], GREEDY, use_tqdm=False)
    text, token_ids = plain.outputs[0].text, plain.outputs[0].token_ids
    for begin in range(2, len(text) - 6, 5):
        stop = text[begin : begin + 5]  # spans tokens more often than not
        params = GREEDY.clone(stop=["never seen", stop])
        (cut,) = engine.generate(PROMPTS[1], params, use_tqdm=False)
        output = cut.outputs[0]
        found = text.index(stop)
        assert output.text == text[:found]
        assert (output.finish_reason, output.stop_reason) == ("stop", stop)
        assert output.token_ids == token_ids[: len(output.token_ids)]
        decoded = engine.tokenizer.decode(output.token_ids)
        assert stop in decoded
        assert stop not in engine.tokenizer.decode(output.token_ids[:-1])
        (kept,) = engine.generate(
            PROMPTS[1], params.clone(include_stop_str_in_output=True), use_tqdm=False
        )
        assert kept.outputs[0].text == text[: found + len(stop)]
        streamed = "".join(part.outputs[0].text for part in engine.stream(PROMPTS[1], params))
        assert streamed == text[:found]


def test_detokenize_off_and_no_tokenizer(llm, tiny):
    (output,) = llm.generate(PROMPTS[0], GREEDY.clone(detokenize=False), use_tqdm=False)
    assert output.outputs[0].text == ""
    assert output.outputs[0].token_ids
    (output,) = tiny.generate([1, 2, 3], SamplingParams(max_tokens=4, logprobs=1), use_tqdm=False)
    assert output.prompt is None
    assert output.outputs[0].text == ""
    assert len(output.outputs[0].token_ids) == 4


def test_bad_words(llm):
    (plain,) = llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)
    word = llm.tokenizer.token_text(plain.outputs[0].token_ids[0]).strip()
    params = GREEDY.clone(bad_words=[word])
    (output,) = llm.generate(PROMPTS[0], params, use_tqdm=False)
    banned = llm.tokenizer.bad_word_ids([word])
    tokens = output.prompt_token_ids + output.outputs[0].token_ids
    start = len(output.prompt_token_ids)
    for sequence in banned:
        for i in range(start, len(tokens)):
            assert tokens[i - len(sequence) + 1 : i + 1] != sequence


def test_max_tokens_none_fills_the_context(tiny_path):
    engine = smartspec.LLM(tiny_path, num_threads=1, max_model_len=40)
    (output,) = engine.generate(
        [1, 2, 3], SamplingParams(max_tokens=None, ignore_eos=True), use_tqdm=False
    )
    assert len(output.outputs[0].token_ids) == 37
    assert output.outputs[0].finish_reason == "length"


def test_threads_share_batches(llm):
    params = [SamplingParams(temperature=0.9, seed=s, max_tokens=16) for s in range(6)]
    expected = [ids(llm.generate(PROMPTS, chosen, use_tqdm=False)) for chosen in params]
    results = [None] * len(params)

    def work(i):
        results[i] = ids(llm.generate(PROMPTS, params[i], use_tqdm=False))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(params))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == expected


def test_prefix_cache_is_reported_and_invisible(draft_path):
    engine = smartspec.LLM(draft_path, num_threads=1, max_model_len=256)
    prompt = list(range(1, 60))
    (cold,) = engine.generate(prompt, GREEDY, use_tqdm=False)
    (warm,) = engine.generate(prompt, GREEDY, use_tqdm=False)
    assert cold.num_cached_tokens == 0
    assert warm.num_cached_tokens >= 32
    assert ids([cold]) == ids([warm])
    metrics = engine.get_metrics()
    assert metrics["smartspec:prefix_cache_hits_total"] == warm.num_cached_tokens
    assert metrics["smartspec:num_requests_running"] == 0
    assert metrics["smartspec:kv_cache_usage_perc"] == 0


def test_failing_request_says_why_and_leaves_others_alone(llm):
    eos = llm.generation_config.eos_token_ids[0]
    dead_end = SamplingParams(max_tokens=5, min_tokens=2, allowed_token_ids=[eos])
    good, bad = llm.generate(PROMPTS[:2], [GREEDY, dead_end], use_tqdm=False)
    assert bad.outputs[0].finish_reason == "error"
    assert "min_tokens" in bad.outputs[0].error
    assert ids([good]) == ids(llm.generate(PROMPTS[0], GREEDY, use_tqdm=False))


def test_draft_model_that_is_not_used_is_warned_about(draft_path):
    with pytest.warns(UserWarning, match="draft_model is not used"):
        smartspec.LLM(draft_path, draft_model=draft_path, speculation="off", max_model_len=64)


def test_default_speculation(draft_path):
    alone = smartspec.LLM(draft_path, max_model_len=64)
    assert (alone.speculation.proposer, alone.speculation.policy) == ("suffix", "auto")
    both = smartspec.LLM(draft_path, draft_model=draft_path, max_model_len=64)
    assert (both.speculation.proposer, both.speculation.policy) == ("suffix+draft", "auto")
    spelt = smartspec.LLM(
        draft_path, speculation={"proposer": "lookup", "max_tokens": 7}, max_model_len=64
    )
    assert spelt.speculation == Speculation("lookup", max_tokens=7)
    assert spelt.speculation.policy == "fixed"
