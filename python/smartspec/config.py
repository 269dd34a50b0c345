# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Hugging Face's config.json and generation_config.json, read strictly.

Only the listed architectures are known; nothing in a model directory is ever imported
(`auto_map` is ignored).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import smartspec_core as core
from smartspec_core import FormatError

from .files import read_json


@dataclass(frozen=True)
class _Family:
    """Defaults are those of transformers, for keys that its files may leave out."""

    qkv_bias: bool = False  # whatever the file says
    qk_norm: bool = False
    kv_heads_default: bool = False  # num_key_value_heads may be missing
    max_position_embeddings: int = 2048
    head_dim: int = 0
    sliding_window: int | None = None
    gated_window: bool = False  # use_sliding_window switches the window on
    may_bias: bool = False  # attention_bias of the file counts
    mlp_bias: bool = False


_FAMILIES = {
    "LlamaForCausalLM": _Family(kv_heads_default=True, may_bias=True, mlp_bias=True),
    "MistralForCausalLM": _Family(max_position_embeddings=4096 * 32, sliding_window=4096),
    "Qwen2ForCausalLM": _Family(
        qkv_bias=True, max_position_embeddings=32768, sliding_window=4096, gated_window=True
    ),
    "Qwen3ForCausalLM": _Family(
        qk_norm=True,
        max_position_embeddings=32768,
        head_dim=128,
        sliding_window=4096,
        gated_window=True,
        may_bias=True,
    ),
}
_BY_MODEL_TYPE = {name.removesuffix("ForCausalLM").lower(): name for name in _FAMILIES}
_MISSING: Any = object()


class _Fields:
    """Typed access to one JSON object; errors name the file and the key."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def fail(self, key: str, allowed: str) -> FormatError:
        if key not in self.values:
            return FormatError(f"{self.where}: {key} is missing; it must be {allowed}")
        shown = repr(self.values[key])[:80]
        return FormatError(f"{self.where}: {key} must be {allowed}, got {shown}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def integer(self, key: str, default: Any = _MISSING) -> int:
        value = self._get(key, default)
        if value is _MISSING or isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(key, "an integer")
        if not 0 <= value < 2**31:
            raise self.fail(key, "an integer in [0, 2147483647]")
        return value

    def number(self, key: str, default: Any = _MISSING) -> float:
        value = self._get(key, default)
        if value is _MISSING or isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.fail(key, "a number")
        if (isinstance(value, int) and abs(value) > 2**63) or not math.isfinite(value):
            raise self.fail(key, "a finite number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, "true or false")
        return value

    def part(self, key: str) -> _Fields | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fail(key, "an object or null")
        return _Fields(value, f"{self.where}: {key}")


def _family(fields: _Fields) -> _Family:
    listed = fields.values.get("architectures")
    if listed is None:
        model_type = fields.values.get("model_type")
        listed = [_BY_MODEL_TYPE.get(str(model_type), model_type)]
    if not isinstance(listed, list) or len(listed) != 1 or str(listed[0]) not in _FAMILIES:
        raise FormatError(
            f"{fields.where}: architectures must be one of {', '.join(_FAMILIES)}, "
            f"got {str(listed)[:120]}"
        )
    return _FAMILIES[str(listed[0])]


def _rope(fields: _Fields, config: core.ModelConfig) -> None:
    """transformers 5 writes rope_parameters, earlier versions rope_theta and rope_scaling."""
    scaling = fields.part("rope_parameters") or fields.part("rope_scaling")
    theta_in = scaling if scaling is not None and "rope_theta" in scaling.values else fields
    config.rope_theta = theta_in.number("rope_theta", 10000.0)
    if scaling is None:
        return
    key = "rope_type" if "rope_type" in scaling.values else "type"
    kind = scaling.values.get(key, "default")
    if scaling.number("partial_rotary_factor", 1.0) != 1.0:
        raise scaling.fail("partial_rotary_factor", "1")
    if kind == "default":
        return
    if kind not in ("linear", "llama3"):
        raise scaling.fail(key, "'default', 'linear' or 'llama3' (others are not implemented)")
    rope = core.RopeScaling()
    rope.type = core.RopeScaling.Type.__members__[kind]
    rope.factor = scaling.number("factor")
    if kind == "llama3":
        rope.low_freq_factor = scaling.number("low_freq_factor")
        rope.high_freq_factor = scaling.number("high_freq_factor")
        rope.original_max_position_embeddings = scaling.integer("original_max_position_embeddings")
    config.rope_scaling = rope


def _window(fields: _Fields, family: _Family, config: core.ModelConfig) -> None:
    if family.sliding_window is None:
        return
    on = fields.flag("use_sliding_window", False) if family.gated_window else True
    window = family.sliding_window
    if "sliding_window" in fields.values:
        window = fields.integer("sliding_window", 0)  # null: none
    if not on or window == 0:
        return
    layers = config.num_hidden_layers
    full = fields.integer("max_window_layers", 28) if family.gated_window else 0
    if (types := fields.values.get("layer_types")) is not None:
        full = types.count("full_attention") if isinstance(types, list) else -1
        if types != ["full_attention"] * full + ["sliding_attention"] * (layers - full):
            raise fields.fail(
                "layer_types",
                f"{layers} entries, first all 'full_attention', then all 'sliding_attention'",
            )
    if full < layers:
        config.sliding_window = window
        config.max_window_layers = full


def parse_config(values: dict[str, Any], where: str = "config.json") -> core.ModelConfig:
    """The engine's configuration; FormatError on what is missing, mistyped or not implemented."""
    fields = _Fields(values, where)
    family = _family(fields)
    if values.get("hidden_act", "silu") != "silu":
        raise fields.fail("hidden_act", "'silu'")
    if values.get("quantization_config") is not None:
        raise FormatError(f"{where}: quantization_config: quantised weights are not supported")
    config = core.ModelConfig()
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"):
        setattr(config, key, fields.integer(key))
    heads = config.num_attention_heads = fields.integer("num_attention_heads")
    config.num_key_value_heads = fields.integer(
        "num_key_value_heads", heads if family.kv_heads_default else _MISSING
    )
    config.head_dim = fields.integer("head_dim", family.head_dim)
    config.max_position_embeddings = fields.integer(
        "max_position_embeddings", family.max_position_embeddings
    )
    config.rms_norm_eps = fields.number("rms_norm_eps", 1e-6)
    config.tie_word_embeddings = fields.flag("tie_word_embeddings", False)
    biased = family.may_bias and fields.flag("attention_bias", False)
    config.attention_bias = family.qkv_bias or biased
    config.attention_output_bias = biased
    config.mlp_bias = family.mlp_bias and fields.flag("mlp_bias", False)
    config.qk_norm = family.qk_norm
    _rope(fields, config)
    _window(fields, family, config)
    config.validate()
    return config


def load_config(folder: Path) -> core.ModelConfig:
    path = folder / "config.json"
    return parse_config(read_json(path), str(path))


_SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass
class GenerationConfig:
    """What a model's files say about ending and sampling."""

    eos_token_ids: list[int] = field(default_factory=list)
    sampling: dict[str, float | int] = field(default_factory=dict)


def _eos_ids(value: Any, where: str, vocab_size: int) -> list[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            raise FormatError(
                f"{where}: eos_token_id must be ids in [0, {vocab_size}), got {str(value)[:80]}"
            )
    return list(dict.fromkeys(ids))


def load_generation_config(folder: Path, vocab_size: int) -> GenerationConfig:
    """generation_config.json where there is one; its eos ids outrank those of config.json."""
    result = GenerationConfig()
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        values = read_json(path)
        if values.get("eos_token_id") is not None:
            result.eos_token_ids = _eos_ids(values["eos_token_id"], str(path), vocab_size)
        if name == "config.json":
            continue
        fields = _Fields(values, str(path))
        for key in _SAMPLING_KEYS:
            if values.get(key) is not None:
                number = fields.number(key)
                result.sampling[key] = int(number) if key == "top_k" else number
        if values.get("max_new_tokens") is not None:
            result.sampling["max_tokens"] = fields.integer("max_new_tokens")
    return result
