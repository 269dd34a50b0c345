# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Bad input: a ValueError that names the field and what is allowed, before anything starts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import smartspec
import smartspec_core as core
from smartspec import SamplingParams, Speculation

NAN, INF = math.nan, math.inf

BAD_FIELDS = [
    *[("n", value) for value in (0, -1, 10**9, 10**30, 1.5, "2", True, None)],
    *[("temperature", value) for value in (-0.1, NAN, INF, 1e5, "hot", None, True)],
    *[("top_p", value) for value in (0.0, -1.0, 1.0001, NAN, INF)],
    *[("top_k", value) for value in (-2, 2**31, 1.5, 10**30)],
    *[("min_p", value) for value in (-0.1, 1.1, NAN)],
    *[("presence_penalty", value) for value in (-2.1, 2.1, NAN)],
    *[("frequency_penalty", value) for value in (-2.1, 2.1, NAN, -INF)],
    *[("repetition_penalty", value) for value in (0.0, -1.0, 1e5, NAN)],
    *[("seed", value) for value in (2**63, -(2**63) - 1, 0.5, "x")],
    *[("max_tokens", value) for value in (0, -1, 2**31, 1.0)],
    *[("min_tokens", value) for value in (-1, 17, 2**40)],
    *[("logprobs", value) for value in (-1, 1025, 10**9, True)],
    *[("prompt_logprobs", value) for value in (-1, 1025)],
    *[("stop", value) for value in ("", [""], [1], ["x"] * 257, ["y" * 5000], 7, ["\ud800"])],
    *[("stop_token_ids", value) for value in ([-1], [2**31], [0.5], "abc", [1] * 5000, 3)],
    *[("bad_words", value) for value in ([""], ["  "], [3], "word", ["x"] * 5000)],
    *[("logit_bias", value) for value in ({-1: 1.0}, {1: NAN}, {1: 101.0}, {"a": 1.0}, [1, 2])],
    *[("allowed_token_ids", value) for value in ([], [-1], [2**40], "abc")],
    *[(name, "yes") for name in ("ignore_eos", "detokenize", "skip_special_tokens")],
]


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS, ids=lambda value: repr(value)[:40])
def test_sampling_params_refuse(name, value):
    with pytest.raises(ValueError, match=name):
        SamplingParams(**{name: value})


def test_sampling_params_accept_the_limits():
    SamplingParams(n=1024, temperature=1e4, top_p=1.0, top_k=-1, min_p=1.0, max_tokens=2**31 - 1)
    SamplingParams(temperature=0, top_k=np.int64(5), top_p=np.float32(0.5), seed=-1, logprobs=0)
    SamplingParams(stop="x", max_tokens=None, min_tokens=10**6, logit_bias={5: -100})
    SamplingParams(stop=("a", "b"), stop_token_ids=(1, 2))


def test_fields_assigned_later_are_checked_too(llm):
    params = SamplingParams()
    params.temperature = NAN
    with pytest.raises(ValueError, match="temperature"):
        llm.generate("x", params, use_tqdm=False)


BAD_PROMPTS = [
    ("", "empty"),
    ([[]], "empty"),
    ([[1, -1]], r"token id 1 must be an integer in \[0, 4095\], got -1"),
    ([[4096]], r"\[0, 4095\], got 4096"),
    ([[2**31]], r"\[0, 4095\]"),
    ([[10**40]], r"\[0, 4095\]"),
    ([[1.5]], "token id 0"),
    ([[True]], "token id 0"),
    ([[None]], "token id 0"),
    ([["a"]], "token id 0"),
    ([[1] * 512], r"512 tokens; allowed are 1 to 511"),
    ([[1] * 10_000], r"10000 tokens; allowed"),
    ([{}], "prompt_token_ids"),
    ([{"prompt": 3}], "prompt"),
    ([{"prompt_token_ids": "abc"}], "token ids"),
    ([{"prompt_token_ids": [7, 5000]}], "token id 1"),
    ([b"bytes"], "token ids"),
    (b"bytes", "bytes"),
    (None, "prompt"),
    (7, "prompt"),
    ("\ud800", "Unicode"),
]


@pytest.mark.parametrize(("prompts", "message"), BAD_PROMPTS, ids=lambda value: repr(value)[:40])
def test_generate_refuses_prompts(llm, prompts, message):
    with pytest.raises(ValueError, match=message):
        llm.generate(prompts, SamplingParams(max_tokens=2), use_tqdm=False)
    assert not llm.engine.has_unfinished()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_token_ids": [4096]}, "stop_token_ids"),
        ({"allowed_token_ids": [1, 99999]}, "allowed_token_ids"),
        ({"logit_bias": {4096: 1.0}}, "logit_bias"),
    ],
)
def test_ids_outside_the_vocabulary(llm, options, message):
    with pytest.raises(ValueError, match=message):
        llm.generate("x", SamplingParams(**options), use_tqdm=False)


def test_one_bad_prompt_starts_nothing(llm):
    before = llm.engine.stats().num_steps
    with pytest.raises(ValueError, match=r"prompts\[2\]"):
        llm.generate(["a", "b", [9999]], SamplingParams(max_tokens=2), use_tqdm=False)
    with pytest.raises(ValueError, match="allowed_token_ids"):
        llm.generate(
            ["a", "b"], [SamplingParams(), SamplingParams(allowed_token_ids=[5000])], use_tqdm=False
        )
    with pytest.raises(ValueError, match="2 entries, got 3"):
        llm.generate(["a", "b"], [SamplingParams()] * 3, use_tqdm=False)
    with pytest.raises(ValueError, match="priority"):
        llm.generate(["a"], SamplingParams(), use_tqdm=False, priority=[2**31])
    assert not llm.engine.has_unfinished()
    assert llm.engine.stats().num_steps == before


def test_text_features_need_a_tokenizer(tiny):
    for options in ({"stop": "x"}, {"bad_words": ["x"]}):
        with pytest.raises(ValueError, match="tokenizer"):
            tiny.generate([1], SamplingParams(**options), use_tqdm=False)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        tiny.generate("text", use_tqdm=False)
    with pytest.raises(ValueError, match="chat template"):
        tiny.chat([{"role": "user", "content": "hi"}], use_tqdm=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"max_num_seqs": 10**9}, "max_num_seqs"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens"),
        ({"block_size": 17}, "block_size"),
        ({"block_size": 0}, "block_size"),
        ({"num_kv_blocks": -1}, "num_kv_blocks"),
        ({"num_kv_blocks": 10**9}, "num_kv_blocks"),
        ({"max_model_len": 10**6}, "max_model_len"),
        ({"max_model_len": -1}, "max_model_len"),
        ({"dtype": "int4"}, "dtype"),
        ({"kv_dtype": 7}, "kv_dtype"),
        ({"num_threads": -1}, "num_threads"),
        ({"num_threads": 10**6}, "num_threads"),
        ({"device": "tpu"}, "device"),
        ({"seed": -1}, "seed"),
        ({"speculation": "magic"}, "proposer"),
        ({"speculation": "draft"}, "draft_model"),
        ({"speculation": {"proposer": "lookup", "depth": 3}}, "depth"),
        ({"speculation": 5}, "speculation"),
        ({"draft_model": "/nonexistent"}, "draft_model"),
    ],
    ids=repr,
)
def test_llm_options(tiny_path, options, message):
    with pytest.raises(ValueError, match=message):
        smartspec.LLM(tiny_path, **options)


@pytest.mark.parametrize("path", ["/nonexistent", "", 7, "Qwen/Qwen3-8B"])
def test_model_path(path):
    with pytest.raises(ValueError, match="model"):
        smartspec.LLM(path)


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"max_tokens": 257},
        {"tree_width": 0},
        {"prompt_lookup_min": 0},
        {"prompt_lookup_min": 5},
        {"prompt_lookup_max": 10**9},
    ],
)
def test_speculation_fields(options):
    (name,) = options
    with pytest.raises(ValueError, match=name.replace("_min", "_")):
        Speculation("lookup", **options)


def test_vocabularies_must_agree(draft_path, tiny_path):
    with pytest.raises(ValueError, match="vocab"):
        smartspec.LLM(draft_path, draft_model=tiny_path)


@pytest.mark.skipif(core.is_available("cuda"), reason="there is a CUDA device")
def test_absent_device(tiny_path):
    with pytest.raises(smartspec.DeviceError):
        smartspec.LLM(tiny_path, device="cuda")


def test_core_engine_refuses(tiny):
    engine = core.Engine(tiny.model)
    for prompt in ([], [-1], [96], [2**31], [10**40], ["a"], [None], [1] * 256):
        with pytest.raises(ValueError, match=r"token|tokens"):
            engine.add_request(prompt)
    for array in (np.array([1.0]), np.array([[1]], np.int32), np.array([1, 2, 3, 4])[::2]):
        with pytest.raises(ValueError, match="token ids"):
            engine.add_request(array)
    with pytest.raises(TypeError):
        engine.add_request("text")
    with pytest.raises(ValueError, match="max_draft_tokens"):
        engine.add_request([1], max_draft_tokens=10**6)
    params = core.SamplingParams()
    params.n = 10**9
    with pytest.raises(ValueError, match="n"):
        engine.add_request([1], params)
    assert not engine.has_unfinished()
    assert not engine.abort(12345)
    assert not engine.preempt(12345)
    assert engine.step() == []
