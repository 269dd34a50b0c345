# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Tree attention and tree verification on CUDA tensors, for engines that keep everything else of
theirs. Tensors of any framework that speaks DLPack; torch's and CuPy's may also leave memory and
streams to this module, the others pass `out`, `workspace` and `stream`.

attention = TreeAttention(num_heads=32, num_kv_heads=8, head_dim=128,
                          max_sequences=64, max_rows=4096, max_nodes=4096)
attention.plan(row_offsets=..., context_lens=..., node_offsets=..., parents=...,
               block_table=..., num_rows=...)    # once per step
out = attention.run(q, caches[layer])            # once per layer

Nothing waits for the device. Everything that a call reads on the device must keep its memory until
the stream has passed it. smartspec_core.cuda has the plain functions (also KV append and moves).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from smartspec_core import DeviceError
from smartspec_core import cuda as ops
from smartspec_core.cuda import PagedKv, is_usable, unusable_reason

__all__ = ["PagedKv", "TreeAttention", "TreeVerifier", "Verified", "is_usable", "unusable_reason"]

Tensor = Any  # of any framework


def _allocate(
    like: Tensor, shape: tuple[int, ...], dtype: str, argument: str, how: str = "empty"
) -> Tensor:
    """Memory beside `like`, from its own framework; how: its function."""
    framework = type(like).__module__.partition(".")[0]
    if framework == "torch":
        torch = sys.modules["torch"]
        return getattr(torch, how)(shape, dtype=getattr(torch, dtype), device=like.device)
    if framework == "cupy":
        with like.device:
            return getattr(sys.modules["cupy"], how)(shape, dtype)
    raise ValueError(f"{argument}: must be given for tensors of {framework}, {dtype} {shape}")


def _stream(stream: int | None, like: Tensor) -> int:
    """The framework's current stream when none is named."""
    if stream is not None:
        return stream
    framework = type(like).__module__.partition(".")[0]
    if framework == "torch" and like.is_cuda:
        cuda = sys.modules["torch"].cuda
        if like.device.index != cuda.current_device():
            raise ValueError(
                f"tensors are on {like.device}; the current device is cuda:{cuda.current_device()}"
            )
        return int(cuda.current_stream().cuda_stream)
    if framework == "cupy":
        return int(sys.modules["cupy"].cuda.get_current_stream().ptr)
    if framework in ("torch", "numpy"):
        return 0  # host memory: the call will say so
    raise ValueError(f"stream: must be given for tensors of {framework} (0: the default stream)")


def _require_cuda() -> None:
    if not is_usable():
        raise DeviceError(f"CUDA operations cannot run: {unusable_reason()}")


class TreeAttention:
    """Attention of trees and causal tokens over a paged cache. Owns a workspace for forests up to
    the sizes given; one object serves one stream at a time."""

    def __init__(
        self,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        max_sequences: int,
        max_rows: int,
        max_nodes: int,
        kv_dtype: str = "bfloat16",
        batch_invariant: bool = False,
        invariant_chunk: int = 1024,
        max_context_len: int = 1 << 17,
        sliding_window: int = 0,
        workspace: Tensor | None = None,
    ) -> None:
        """`batch_invariant`: a row's result does not depend on what else is in the batch.
        `sliding_window`: of all layers, or 0, with which run() takes any. `workspace`: zeroed
        uint8 of at least `workspace_bytes`, else allocated by plan()."""
        _require_cuda()
        self.options = ops.AttentionOptions(
            num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, kv_dtype=kv_dtype,
            batch_invariant=batch_invariant, invariant_chunk=invariant_chunk,
            max_context_len=max_context_len, sliding_window=sliding_window,
        )  # fmt: skip
        self.workspace_bytes = ops.attention_workspace_bytes(
            options=self.options, max_sequences=max_sequences, max_rows=max_rows,
            max_nodes=max_nodes,
        )  # fmt: skip
        self._workspace = workspace
        self._forest: ops.PreparedForest | None = None

    def plan(
        self,
        *,
        row_offsets: Tensor,
        context_lens: Tensor,
        node_offsets: Tensor,
        parents: Tensor,
        block_table: Tensor,
        num_rows: int,
        num_causal: Tensor | None = None,
        stream: int | None = None,
    ) -> None:
        """What one pass attends to, all int32 on the device. The rows of sequence s are
        row_offsets[s] up to row_offsets[s + 1] [num_sequences + 1]: first num_causal[s] (default 0)
        tokens that continue its context_lens[s] keys, then its tree nodes, node_offsets[s] up to
        node_offsets[s + 1] of `parents` [num_nodes] (within the sequence; -1: no parent). Its keys
        lie in the pages block_table[s] [num_sequences, pages]."""
        stream = _stream(stream, parents)
        if self._workspace is None:
            shape = (self.workspace_bytes,)
            self._workspace = _allocate(parents, shape, "uint8", "workspace", "zeros")
        forest = ops.Forest(
            row_offsets=row_offsets, context_lens=context_lens, node_offsets=node_offsets,
            parents=parents, block_table=block_table, num_rows=num_rows, num_causal=num_causal,
            stream=stream,
        )  # fmt: skip
        self._forest = ops.prepare_forest(
            forest=forest, options=self.options, workspace=self._workspace, stream=stream
        )

    def run(
        self,
        q: Tensor,
        kv: PagedKv,
        *,
        out: Tensor | None = None,
        lse: Tensor | None = None,
        scale: float = 0.0,
        soft_cap: float = 0.0,
        sliding_window: int | None = None,
        stream: int | None = None,
    ) -> Tensor:
        """One layer: q [num_rows, num_heads, head_dim] to `out` of the same shape and dtype, `lse`
        [num_rows, num_heads] float32 the natural logarithm of the softmax sum. scale 0:
        1 / sqrt(head_dim); sliding_window (default: that of the plan) counts positions, a node's
        by its depth."""
        if self._forest is None:
            raise ValueError("plan() comes before run()")
        if sliding_window is None:
            sliding_window = self.options.sliding_window
        if out is None:
            out = _allocate(q, tuple(q.shape), str(q.dtype).removeprefix("torch."), "out")
        ops.tree_attention(
            q=q, out=out, kv=kv, forest=self._forest, lse=lse, scale=scale, soft_cap=soft_cap,
            sliding_window=sliding_window, stream=_stream(stream, q),
        )  # fmt: skip
        return out


@dataclass(frozen=True)
class Verified:
    """Results of a verification, on the device."""

    num_accepted: Tensor  # [num_sequences] int32
    path: Tensor  # [num_sequences, width] int32, accepted nodes from the root side
    tokens: Tensor  # [num_sequences, width] int32, num_accepted + 1 each
    logprobs: Tensor | None  # [num_sequences, width] float32, of the raw logits
    status: Tensor  # [num_sequences] int32; 0: fine, 1: a logit was NaN or +inf, 2: nothing to draw


class TreeVerifier:
    """Accepts a path through each tree and draws the token after it, all sequences in one launch.

    rule "target" draws the target's own tokens, the ones that plain decoding with the same seed
    draws; "token" and "block" (chains) and "traversal" (trees) need draft probabilities and keep
    the distribution. Owns a workspace; one object serves one stream at a time."""

    def __init__(
        self,
        *,
        vocab_size: int,
        max_sequences: int,
        max_nodes: int,
        max_depth: int = 256,
        rule: str = "target",
        workspace: Tensor | None = None,
    ) -> None:
        """`max_depth`: nodes of the longest path. `workspace`: zeroed uint8 of at least
        `workspace_bytes`, else allocated by the first call."""
        _require_cuda()
        self.rule = rule
        self.workspace_bytes = ops.verify_workspace_bytes(
            rule=rule, max_sequences=max_sequences, max_nodes=max_nodes, vocab_size=vocab_size
        )
        self._width = max_depth + 1
        self._workspace = workspace

    def verify(
        self,
        logits: Tensor,
        *,
        logits_offsets: Tensor,
        node_offsets: Tensor,
        node_tokens: Tensor,
        parents: Tensor,
        seeds: Tensor,
        positions: Tensor,
        logprobs: bool = False,
        out: Verified | None = None,
        stream: int | None = None,
        **sampling: Tensor | None,
    ) -> Verified:
        """Logits [num_logits, vocab_size] float32, bfloat16 or float16: row logits_offsets[s] is
        that of sequence s's last token, row logits_offsets[s] + 1 + n that of its node n.
        `node_tokens` and `parents` [num_nodes] int32, `seeds` [num_sequences] int64 or uint64,
        `positions` [num_sequences] int64: prompt and output tokens so far.

        sampling, each optional: temperature (0: greedy), top_p, min_p, repetition_penalty,
        frequency_penalty, presence_penalty [num_sequences] float32, top_k [num_sequences] int32;
        count_offsets, count_tokens, output_counts int32 and count_bias float32, the tokens that
        penalties count and those with a bias; masks
        [num_masks, ceil(vocab_size / 32)] int32 and mask_rows [num_logits] int32 (-1: none);
        draft_probs [*, vocab_size] float32 and draft_rows [num_logits] int32."""
        if out is None:
            size = int(logits_offsets.shape[0])

            def result(shape: tuple[int, ...], dtype: str = "int32") -> Tensor:
                return _allocate(logits, shape, dtype, "out")

            wide = (size, self._width)
            out = Verified(
                num_accepted=result((size,)), path=result(wide), tokens=result(wide),
                logprobs=result(wide, "float32") if logprobs else None, status=result((size,)),
            )  # fmt: skip
        if self._workspace is None:
            shape = (self.workspace_bytes,)
            self._workspace = _allocate(logits, shape, "uint8", "workspace", "zeros")
        ops.verify(
            rule=self.rule, workspace=self._workspace, stream=_stream(stream, logits),
            logits=logits, logits_offsets=logits_offsets, node_offsets=node_offsets,
            node_tokens=node_tokens, parents=parents, seeds=seeds, positions=positions,
            **vars(out), **sampling,
        )  # fmt: skip
        return out
