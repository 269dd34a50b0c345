# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Inflated models: the same tokens, as many parameters as asked, nonsense refused."""

from __future__ import annotations

import numpy as np
import pytest
import smartspec
import smartspec_core as core
from models_for_tests import TINY, random_weights, write_model
from safetensors.numpy import save_file
from smartspec import SamplingParams
from smartspec.config import load_config, parse_config
from smartspec.inflate import (
    count_parameters,
    format_parameters,
    inflated_layers,
    inflated_weights,
    parse_parameters,
)

PROMPTS = ["import os\nimport ", "def read(self, size=-1):\n    ", "class Node:\n    def __init__("]


def outputs_of(llm, prompts, num_tokens=32):
    params = [
        SamplingParams(temperature=t, seed=s, max_tokens=num_tokens, logprobs=1, n=1 + s % 2)
        for s, t in enumerate((0.0, 0.8, 1.0))
    ]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [[(o.token_ids, o.logprobs, o.finish_reason) for o in each.outputs] for each in outputs]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_shipped_draft_says_the_same_at_eight_times_its_size(draft_path, dtype):
    options = {"num_threads": 1, "max_model_len": 512, "speculation": "off", "dtype": dtype}
    plain = smartspec.LLM(draft_path, **options)
    large = smartspec.LLM(draft_path, inflate_to=8 * plain.model.num_parameters, **options)
    per_layer = count_parameters(plain.model_config, 2) - count_parameters(plain.model_config, 1)
    assert abs(large.model.num_parameters - 8 * plain.model.num_parameters) <= per_layer / 2
    assert large.model.num_parameters == count_parameters(large.model_config)
    assert large.model.bytes_per_kv_token() > 4 * plain.model.bytes_per_kv_token()
    assert outputs_of(plain, PROMPTS) == outputs_of(large, PROMPTS)
    assert plain.model_name == "draft"
    assert large.model_name.startswith("draft (inflated to ")
    ids = plain.tokenizer.encode(PROMPTS[1])
    assert np.array_equal(plain.model.forward_logits(ids), large.model.forward_logits(ids))


FAMILIES = {
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
    "qwen2 with a window": {
        "architectures": ["Qwen2ForCausalLM"],
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
    },
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 8},
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": 8},
}


def more_weights(config: dict) -> dict[str, np.ndarray]:
    """With the biases and norms that the plain Llama shape lacks; biases far from zero."""
    weights = random_weights(config)
    parsed = parse_config(config)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    sizes: dict[str, int] = {}
    if parsed.attention_bias:
        sizes |= {"self_attn.q_proj.bias": q, "self_attn.k_proj.bias": kv}
        sizes |= {"self_attn.v_proj.bias": kv}
    if parsed.attention_output_bias:
        sizes |= {"self_attn.o_proj.bias": hidden}
    if parsed.mlp_bias:
        sizes |= {"mlp.gate_proj.bias": inner, "mlp.up_proj.bias": inner}
        sizes |= {"mlp.down_proj.bias": hidden}
    if parsed.qk_norm:
        sizes |= {"self_attn.q_norm.weight": head_dim, "self_attn.k_norm.weight": head_dim}
    rng = np.random.default_rng(1)
    for i in range(config["num_hidden_layers"]):
        for name, size in sizes.items():
            weights[f"model.layers.{i}.{name}"] = rng.standard_normal(size).astype(np.float32)
    return weights


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(tmp_path, family):
    config = {**TINY, **FAMILIES[family]}
    folder = write_model(tmp_path / "model", **FAMILIES[family])
    save_file(more_weights(config), folder / "model.safetensors")
    plain = smartspec.LLM(folder, num_threads=1, speculation="off")
    assert plain.model.num_parameters == count_parameters(plain.model_config)
    large = smartspec.LLM(folder, num_threads=1, speculation="off", inflate_to=100_000)
    assert large.model.num_parameters == count_parameters(large.model_config)
    assert large.model_config.num_hidden_layers > 2 * plain.model_config.num_hidden_layers
    prompts = [[1, 2, 3, 4], [7] * 20, [90, 4, 5]]
    assert outputs_of(plain, prompts, 20) == outputs_of(large, prompts, 20)


def test_a_speculating_engine_over_an_inflated_model(llm, draft_path):
    fast = smartspec.LLM(
        draft_path,
        draft_model=draft_path,
        speculation={"proposer": "draft", "max_tokens": 3},
        inflate_to="40M",
        num_threads=1,
        max_model_len=512,
    )
    assert outputs_of(llm, PROMPTS) == outputs_of(fast, PROMPTS)
    assert fast.engine.stats().num_accepted > 20
    assert fast.model_name == "draft (inflated to 40M)"


def test_layers_are_the_nearest_number(tiny_path):
    config = load_config(tiny_path)
    two = count_parameters(config)
    per_layer = two - count_parameters(config, 1)
    assert inflated_layers(config, two) == 2
    assert inflated_layers(config, two + per_layer // 2 - 1) == 2
    assert inflated_layers(config, two + per_layer // 2 + 1) == 3
    assert inflated_layers(config, two + 10 * per_layer) == 12


def test_only_the_output_projections_are_zero_and_nothing_is_copied():
    weights = {
        f"model.layers.{i}.{part}.weight": core.Tensor(np.full((2, 3), 1 + i, np.float32))
        for i in range(2)
        for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj", "mlp.gate_proj")
    }
    weights["model.norm.weight"] = core.Tensor(np.ones(3, np.float32))
    find = inflated_weights(weights, 2)
    for name, tensor in weights.items():
        assert find(name) is tensor
    assert (
        find("model.layers.5.self_attn.q_proj.weight")
        is weights["model.layers.1.self_attn.q_proj.weight"]
    )
    for part in ("self_attn.o_proj", "mlp.down_proj"):
        zero = find(f"model.layers.4.{part}.weight")
        assert not zero.numpy().any()
        assert find(f"model.layers.7.{part}.weight") is zero
    assert find("model.layers.2.missing.weight") is None
    assert find("lm_head.weight") is None


@pytest.mark.parametrize(
    ("text", "count"),
    [("300M", 300_000_000), ("1.5b", 1_500_000_000), (" 20k ", 20_000), ("7", 7), (123, 123)],
)
def test_numbers_of_parameters(text, count):
    assert parse_parameters(text) == count
    assert parse_parameters(format_parameters(count)) == count


@pytest.mark.parametrize(
    "nonsense",
    ["", "M", "300MM", "-5M", "1e9", "nan", "0", 0, -1, True, 2.5, None, [], "9" * 40, "٣M", 2**70],
)
def test_nonsense_is_refused(nonsense):
    with pytest.raises(ValueError, match="inflate_to must be a number of parameters"):
        parse_parameters(nonsense)


@pytest.mark.parametrize(
    ("inflate_to", "message"),
    [
        (1000, "at least the model's own"),
        ("1000B", "1024 layers"),
        ("soon", "number of parameters"),
    ],
)
def test_impossible_sizes_are_refused(tiny_path, inflate_to, message):
    with pytest.raises(ValueError, match=message):
        smartspec.LLM(tiny_path, inflate_to=inflate_to)
