"""Batched generation by a Llama checkpoint, with a preallocated key/value cache.

Rows of a batch share one prompt length, so that no padding or mask is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one decoder layer, projections fused where they share an input."""

    attention_norm: Tensor
    query_key_value: Tensor
    attention_output: Tensor
    feed_forward_norm: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True)
class Generation:
    """Prompt and continuation of a batch, with the state that predicted each next token."""

    tokens: Tensor
    """Token ids, (rows, prompt + new)."""
    hidden: Tensor
    """Final normalised hidden states of all positions but the last, (rows, length - 1, hidden)."""


class CachedLlama:
    """A tied-embedding Llama that appends blocks of tokens to a fixed-size cache."""

    def __init__(self, model: LlamaForCausalLM, dtype: torch.dtype) -> None:
        config = model.config
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.epsilon = config.rms_norm_eps
        self.dtype = dtype
        self.embedding = model.model.embed_tokens.weight.detach().to(dtype)
        self.output = model.lm_head.weight.detach().to(dtype)
        self.final_norm = model.model.norm.weight.detach().to(dtype)
        self.layers = [self._fuse(layer) for layer in model.model.layers]
        self.inverse_frequency = model.model.rotary_emb.inv_freq.detach().float()
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.length = 0

    def _fuse(self, layer: torch.nn.Module) -> LayerWeights:
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)

        def cast(*weights: Tensor) -> Tensor:
            return torch.cat([weight.detach() for weight in weights]).to(self.dtype)

        return LayerWeights(
            attention_norm=cast(layer.input_layernorm.weight),
            query_key_value=cast(*(projection.weight for projection in projections)),
            attention_output=cast(attention.o_proj.weight),
            feed_forward_norm=cast(layer.post_attention_layernorm.weight),
            gate_up=cast(mlp.gate_proj.weight, mlp.up_proj.weight),
            down=cast(mlp.down_proj.weight),
        )

    def reset(self, rows: int, capacity: int) -> None:
        """Empty the cache and make room for `capacity` tokens in each of `rows` rows."""
        shape = (rows, self.kv_heads, capacity, self.head_dim)
        self.keys = [torch.empty(shape, dtype=self.dtype) for _ in self.layers]
        self.values = [torch.empty(shape, dtype=self.dtype) for _ in self.layers]
        self.length = 0

    def logits(self, hidden: Tensor) -> Tensor:
        """Project final hidden states to the vocabulary."""
        return functional.linear(hidden, self.output)

    @torch.inference_mode()
    def append(self, tokens: Tensor) -> Tensor:
        """Append (rows, count) tokens; return their final normalised hidden states.

        A block of several tokens is only accepted by an empty cache (the prompt).
        """
        if tokens.shape[1] > 1 and self.length > 0:
            raise ValueError("a block of several tokens needs an empty cache")
        rotation = self._rotation(tokens.shape[1])
        state = functional.embedding(tokens, self.embedding)
        for index, weights in enumerate(self.layers):
            state = state + self._attend(index, self._norm(state, weights.attention_norm), rotation)
            gate, up = functional.linear(
                self._norm(state, weights.feed_forward_norm), weights.gate_up
            ).chunk(2, dim=-1)
            state = state + functional.linear(functional.silu(gate) * up, weights.down)
        self.length += tokens.shape[1]
        return self._norm(state, self.final_norm)

    def _norm(self, state: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(state, (state.shape[-1],), weight, self.epsilon)

    def _rotation(self, count: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(self.length, self.length + count, dtype=torch.float32)
        angles = torch.outer(positions, self.inverse_frequency).repeat(1, 2)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def _attend(self, index: int, state: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        rows, count, _ = state.shape
        weights = self.layers[index]
        fused = functional.linear(state, weights.query_key_value)
        fused = fused.view(rows, count, -1, self.head_dim).transpose(1, 2)
        query, key, value = fused.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        query, key = rotate(query, rotation), rotate(key, rotation)

        end = self.length + count
        keys, values = self.keys[index][:, :, :end], self.values[index][:, :, :end]
        keys[:, :, self.length :] = key
        values[:, :, self.length :] = value
        if count == 1:
            # Query heads that share a key/value head become extra queries: all see the whole past.
            grouped = query.reshape(rows, self.kv_heads, -1, self.head_dim)
            mixed = functional.scaled_dot_product_attention(grouped, keys, values)
            mixed = mixed.reshape(rows, 1, -1)
        else:
            mixed = functional.scaled_dot_product_attention(
                query, keys, values, is_causal=True, enable_gqa=True
            )
            mixed = mixed.transpose(1, 2).reshape(rows, count, -1)
        return functional.linear(mixed, weights.attention_output)


def rotate(heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Apply the rotary position embedding (halves layout) to (rows, heads, count, head_dim)."""
    cosine, sine = rotation
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine + torch.cat((-second, first), dim=-1) * sine


def choose(logits: Tensor, temperatures: Tensor | None, generator: torch.Generator) -> Tensor:
    """Choose a token for each row: greedy where the temperature is 0, else sampled."""
    greedy = logits.argmax(dim=-1)
    if temperatures is None:
        return greedy
    scaled = logits.float() / temperatures.clamp_min(1e-3).unsqueeze(1)
    noise = torch.empty_like(scaled).exponential_(generator=generator)
    sampled = (scaled.softmax(dim=-1) / noise).argmax(dim=-1)
    return torch.where(temperatures > 0, sampled, greedy)


@torch.inference_mode()
def generate(
    model: CachedLlama,
    prompts: Tensor,
    new_tokens: int,
    temperatures: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Generation:
    """Continue (rows, length) prompts by `new_tokens` tokens; `None` temperatures mean greedy."""
    rows, prompt_length = prompts.shape
    generator = generator or torch.Generator()
    model.reset(rows, prompt_length + new_tokens)
    tokens = torch.empty((rows, prompt_length + new_tokens), dtype=torch.long)
    tokens[:, :prompt_length] = prompts
    states = [model.append(prompts)]
    for position in range(prompt_length, prompt_length + new_tokens):
        logits = model.logits(states[-1][:, -1])
        tokens[:, position] = choose(logits, temperatures, generator)
        if position + 1 < prompt_length + new_tokens:
            states.append(model.append(tokens[:, position : position + 1]))
    return Generation(tokens=tokens, hidden=torch.cat(states, dim=1))
