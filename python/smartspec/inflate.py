# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Makes a small model cost what a larger one costs, and say what it said before.

Layers are appended that copy the model's own, except that both projections into the residual
stream (o_proj, down_proj) and their biases are zero. Each adds exactly nothing, whatever it
computes, and yet reads its weights, writes and reads its keys and values, and does its arithmetic.
So acceptance is the real one, and the cost that of the wished number of parameters; what is
reported of such a model has to say so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np
import smartspec_core as core

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}
_MAX_LAYERS = 1024  # as in the engine
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)", re.ASCII)
_ZEROED = ("self_attn.o_proj.", "mlp.down_proj.")


def parse_parameters(value: object, field: str = "inflate_to") -> int:
    """A number of parameters: 300000000, "300M", "1.5B", "800k"."""
    count = 0.0
    if isinstance(value, int) and not isinstance(value, bool):
        count = value
    elif isinstance(value, str):
        match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([kmbg]?)\s*", value.lower(), re.ASCII)
        count = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 1 <= count < 2**62:
        raise ValueError(
            f"{field} must be a number of parameters such as 300000000 or '300M', got "
            f"{str(value)[:80]!r}"
        )
    return round(count)


def format_parameters(count: int) -> str:
    """300000000 as "300M"; four digits at most."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.4g}{unit}"
    return str(count)


def count_parameters(config: core.ModelConfig, num_layers: int | None = None) -> int:
    """Of a model of this shape, with another number of layers where one is given."""
    hidden, inner = config.hidden_size, config.intermediate_size
    head_dim = config.head_dim or hidden // config.num_attention_heads
    q_size = config.num_attention_heads * head_dim
    kv_size = config.num_key_value_heads * head_dim
    layer = hidden * (2 * q_size + 2 * kv_size) + 3 * hidden * inner + 2 * hidden
    layer += config.attention_bias * (q_size + 2 * kv_size) + config.attention_output_bias * hidden
    layer += config.mlp_bias * (2 * inner + hidden) + config.qk_norm * 2 * head_dim
    ends = config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2) + hidden
    return ends + layer * (config.num_hidden_layers if num_layers is None else num_layers)


def inflated_layers(config: core.ModelConfig, wanted: int) -> int:
    """Layers that bring the model to within one layer of `wanted` parameters."""
    have = count_parameters(config)
    if wanted < have:
        raise ValueError(
            f"inflate_to must be at least the model's own {have} parameters, got {wanted}; layers "
            "are only added"
        )
    per_layer = have - count_parameters(config, config.num_hidden_layers - 1)
    layers = config.num_hidden_layers + round((wanted - have) / per_layer)
    if layers > _MAX_LAYERS:
        largest = format_parameters(count_parameters(config, _MAX_LAYERS))
        raise ValueError(
            f"inflate_to = {wanted} would take {layers} layers of {per_layer} parameters; allowed "
            f"are {_MAX_LAYERS} layers, which is {largest}"
        )
    return layers


def inflated_weights(
    weights: Mapping[str, core.Tensor], num_layers: int
) -> Callable[[str], core.Tensor | None]:
    """Serves layer i >= num_layers from layer i mod num_layers, with its output zeroed. Copies
    nothing; all zeros of a kind are one tensor."""
    zeros: dict[str, core.Tensor] = {}

    def find(name: str) -> core.Tensor | None:
        match = _LAYER.fullmatch(name)
        if match is None or int(match[1]) < num_layers:
            return weights.get(name)
        part = match[2]
        source = weights.get(f"model.layers.{int(match[1]) % num_layers}.{part}")
        if source is None or not part.startswith(_ZEROED):
            return source
        if part not in zeros:
            zeros[part] = _zeros_like(source)
        return zeros[part]

    return find


def _zeros_like(tensor: core.Tensor) -> core.Tensor:
    if tensor.dtype == "bfloat16":
        return core.Tensor(np.zeros(tensor.shape, np.uint16), "bfloat16")
    return core.Tensor(np.zeros(tensor.shape, np.float32))
