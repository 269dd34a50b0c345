# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""config.json of every family, as transformers 4 and 5 write it."""

from __future__ import annotations

import json

import pytest
import smartspec_core as core
from models_for_tests import TINY
from smartspec import FormatError
from smartspec.config import load_generation_config, parse_config

Rope = core.RopeScaling.Type
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def config_of(architecture="LlamaForCausalLM", **changes):
    values = {**TINY, "architectures": [architecture], **changes}
    return parse_config({key: value for key, value in values.items() if value is not ...})


def test_llama():
    config = config_of()
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (96, 32, 48)
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)
    assert config.rope_theta == 10000.0
    assert config.rope_scaling.type == Rope.none
    flags = ("attention_bias", "attention_output_bias", "mlp_bias", "qk_norm")
    assert not any(getattr(config, name) for name in (*flags, "tie_word_embeddings"))
    assert config.sliding_window == 0
    assert config_of(num_key_value_heads=...).num_key_value_heads == 4
    assert config_of(num_key_value_heads=None).num_key_value_heads == 4
    biased = config_of(attention_bias=True, mlp_bias=True)
    assert biased.attention_bias
    assert biased.attention_output_bias
    assert biased.mlp_bias
    assert config_of(sliding_window=8).sliding_window == 0  # Llama has none
    assert config_of(head_dim=16).head_dim == 16
    assert config_of(tie_word_embeddings=True).tie_word_embeddings
    by_type = {**TINY, "architectures": None, "model_type": "qwen3"}
    assert parse_config(by_type).qk_norm
    assert parse_config({**TINY, "auto_map": {"AutoModel": "evil.Evil"}}).hidden_size == 32


@pytest.mark.parametrize("style", ["rope_scaling", "rope_parameters"])
def test_rope(style):
    theta = {"rope_theta": 5e5}

    def rope(**scaling):
        if style == "rope_scaling":
            return config_of(rope_scaling=scaling or None, **theta)
        return config_of(rope_parameters={**scaling, **theta})

    assert rope().rope_theta == 5e5
    assert rope(rope_type="default").rope_scaling.type == Rope.none
    linear = rope(type="linear", factor=2)
    assert linear.rope_scaling.type == Rope.linear
    assert linear.rope_scaling.factor == 2.0
    assert linear.rope_theta == 5e5
    llama3 = rope(**LLAMA3).rope_scaling
    assert llama3.type == Rope.llama3
    assert (llama3.factor, llama3.low_freq_factor, llama3.high_freq_factor) == (8, 1, 4)
    assert llama3.original_max_position_embeddings == 64
    for kind in ("yarn", "dynamic", "longrope", 3):
        with pytest.raises(FormatError, match="others are not implemented"):
            rope(rope_type=kind, factor=2.0)
    with pytest.raises(FormatError, match="factor is missing"):
        rope(rope_type="linear")
    with pytest.raises(FormatError, match="original_max_position_embeddings"):
        rope(**{**LLAMA3, "original_max_position_embeddings": "big"})
    with pytest.raises(FormatError, match="partial_rotary_factor"):
        rope(rope_type="default", partial_rotary_factor=0.5)


def test_mistral():
    assert config_of("MistralForCausalLM", sliding_window=7).sliding_window == 7
    assert config_of("MistralForCausalLM", sliding_window=None).sliding_window == 0
    assert config_of("MistralForCausalLM").sliding_window == 4096  # transformers' default
    biased = config_of("MistralForCausalLM", attention_bias=True, mlp_bias=True)
    assert not biased.attention_bias  # transformers' Mistral has no biases
    assert not biased.mlp_bias
    with pytest.raises(FormatError, match="num_key_value_heads is missing"):
        config_of("MistralForCausalLM", num_key_value_heads=...)


def test_qwen2():
    config = config_of("Qwen2ForCausalLM", sliding_window=8, max_window_layers=1)
    assert config.attention_bias
    assert not config.attention_output_bias
    assert config.sliding_window == 0  # use_sliding_window is false unless said
    slid = config_of(
        "Qwen2ForCausalLM", use_sliding_window=True, sliding_window=8, max_window_layers=1
    )
    assert (slid.sliding_window, slid.max_window_layers) == (8, 1)
    beyond = config_of("Qwen2ForCausalLM", use_sliding_window=True, max_window_layers=2)
    assert beyond.sliding_window == 0
    typed = config_of(
        "Qwen2ForCausalLM",
        use_sliding_window=True,
        sliding_window=8,
        layer_types=["full_attention", "sliding_attention"],
    )
    assert (typed.sliding_window, typed.max_window_layers) == (8, 1)
    with pytest.raises(FormatError, match="layer_types"):
        config_of(
            "Qwen2ForCausalLM",
            use_sliding_window=True,
            layer_types=["sliding_attention", "full_attention"],
        )


def test_qwen3():
    config = config_of("Qwen3ForCausalLM", head_dim=16)
    assert config.qk_norm
    assert not config.attention_bias
    assert config.head_dim == 16
    assert config_of("Qwen3ForCausalLM").head_dim == 128  # transformers' default
    biased = config_of("Qwen3ForCausalLM", head_dim=16, attention_bias=True)
    assert biased.attention_bias
    assert biased.attention_output_bias


BAD = [
    *[
        ({key: ...}, f"{key} is missing")
        for key in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads",
        )
    ],
    ({"vocab_size": "96"}, "vocab_size must be an integer"),
    ({"vocab_size": True}, "vocab_size must be an integer"),
    ({"vocab_size": -5}, "vocab_size"),
    ({"vocab_size": 10**30}, "vocab_size"),
    ({"hidden_size": 0}, "hidden_size"),
    ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
    ({"num_key_value_heads": 3}, "num_key_value_heads"),
    ({"head_dim": 7}, "head_dim"),
    ({"hidden_size": 30}, "head_dim"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ({"rope_theta": -1.0}, "rope_theta"),
    ({"rope_scaling": [1]}, "rope_scaling"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
    ({"attention_bias": "no"}, "attention_bias"),
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"architectures": ["GPT2LMHeadModel"]}, "architectures must be one of LlamaForCausalLM"),
    ({"architectures": []}, "architectures"),
    ({"architectures": None}, "architectures"),
    ({"architectures": [["x"]]}, "architectures"),
    ({"architectures": None, "model_type": "mamba"}, "mamba"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), BAD, ids=lambda value: repr(value)[:50])
def test_bad_configs(changes, message):
    with pytest.raises(FormatError, match=message):
        config_of(**changes)


def test_generation_config(tmp_path):
    def load(config, generation=None):
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "generation_config.json").unlink(missing_ok=True)
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        return load_generation_config(tmp_path, 96)

    assert load({}).eos_token_ids == []
    assert load({"eos_token_id": 5}).eos_token_ids == [5]
    assert load({"eos_token_id": 5}, {}).eos_token_ids == [5]
    both = load({"eos_token_id": 5}, {"eos_token_id": [1, 2, 1], "temperature": 0.6, "top_k": 20})
    assert both.eos_token_ids == [1, 2]
    assert both.sampling == {"temperature": 0.6, "top_k": 20}
    assert load({}, {"max_new_tokens": 77}).sampling == {"max_tokens": 77}
    for bad in (96, -1, "x", [1, None], True, 1.5):
        with pytest.raises(FormatError, match="eos_token_id"):
            load({}, {"eos_token_id": bad})
    with pytest.raises(FormatError, match="temperature"):
        load({}, {"temperature": "warm"})
