"""
The CUDA operations on their own, over tensors of any framework that speaks DLPack. Nothing is allocated, converted or copied; every call launches on `stream` (a handle; 0: the default stream) and returns. The current device must be that of the tensors.
"""

from __future__ import annotations

import collections.abc
import typing

__all__: list[str] = [
    "AttentionOptions",
    "Forest",
    "PagedKv",
    "PreparedForest",
    "append_kv",
    "attention_workspace_bytes",
    "build_info",
    "copy_pages",
    "describe",
    "is_usable",
    "move_kv",
    "prepare_forest",
    "swap_pages",
    "tree_attention",
    "unusable_reason",
    "verify",
    "verify_workspace_bytes",
]

class PagedKv:
    """
    A paged cache of one layer: views of k and v, [num_pages, page_size, num_kv_heads, head_dim] (NHD) or [num_pages, num_kv_heads, page_size, head_dim] (HND), with any strides but the last.
    """
    def __init__(
        self,
        *,
        k: typing.Any,
        v: typing.Any,
        layout: str = "NHD",
        kv_dtype: str | None = None,
        k_scale: typing.Any | None = None,
        v_scale: typing.Any | None = None,
        stream: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...
    @property
    def dtype(self) -> str: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def page_size(self) -> int: ...

class AttentionOptions:
    """
    Shape of the attention and split of its work.
    """
    def __init__(
        self,
        *,
        num_heads: typing.SupportsInt | typing.SupportsIndex,
        num_kv_heads: typing.SupportsInt | typing.SupportsIndex,
        head_dim: typing.SupportsInt | typing.SupportsIndex,
        kv_dtype: str = "bfloat16",
        batch_invariant: bool = False,
        invariant_chunk: typing.SupportsInt | typing.SupportsIndex = 1024,
        max_context_len: typing.SupportsInt | typing.SupportsIndex = 131072,
        sliding_window: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> None: ...
    @property
    def batch_invariant(self) -> bool: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def kv_dtype(self) -> str: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def sliding_window(self) -> int: ...

class Forest:
    """
    The rows of one pass, ragged: of each sequence first num_causal tokens that continue its context, then tree nodes given by their parents. All int32: row_offsets and node_offsets [num_sequences + 1], context_lens and num_causal [num_sequences], parents [num_nodes] (-1: no parent), block_table [num_sequences, pages].
    """
    def __init__(
        self,
        *,
        row_offsets: typing.Any,
        context_lens: typing.Any,
        node_offsets: typing.Any,
        parents: typing.Any,
        block_table: typing.Any,
        num_rows: typing.SupportsInt | typing.SupportsIndex,
        num_causal: typing.Any | None = None,
        stream: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...

class PreparedForest:
    """
    A forest and its plan in a workspace.
    """

def append_kv(
    *,
    kv: PagedKv,
    k: typing.Any,
    v: typing.Any,
    slots: typing.Any,
    q: typing.Any | None = None,
    cos: typing.Any | None = None,
    sin: typing.Any | None = None,
    positions: typing.Any | None = None,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Writes rows of k and v [num_rows, num_kv_heads, head_dim] to their slots [num_rows]; with cos and sin [max_position, head_dim / 2] rotates k on the way, and q in place.
    """

def attention_workspace_bytes(
    *,
    options: AttentionOptions,
    max_sequences: typing.SupportsInt | typing.SupportsIndex,
    max_rows: typing.SupportsInt | typing.SupportsIndex,
    max_nodes: typing.SupportsInt | typing.SupportsIndex,
) -> int:
    """
    Bytes of workspace for forests up to these sizes.
    """

def build_info() -> dict[str, typing.Any]:
    """
    What was compiled in, whether or not it can be used here.
    """

def copy_pages(
    *,
    layers: collections.abc.Sequence[PagedKv],
    sources: typing.Any,
    destinations: typing.Any,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Copies whole pages, in all layers.
    """

def describe(
    *, tensor: typing.Any, stream: typing.SupportsInt | typing.SupportsIndex = 0
) -> dict[str, typing.Any]:
    """
    How the operations see a tensor: data, dtype, device, shape, strides in elements, read_only.
    """

def is_usable() -> bool:
    """
    Whether the operations can run here.
    """

def move_kv(
    *,
    layers: collections.abc.Sequence[PagedKv],
    sources: typing.Any,
    destinations: typing.Any,
    group_offsets: typing.Any | None = None,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Copies one token's K and V per move, in all layers. Moves of one group are in order.
    """

def prepare_forest(
    *,
    forest: Forest,
    options: AttentionOptions,
    workspace: typing.Any,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> PreparedForest:
    """
    Ancestor bitsets, depths and the plan of work, once per pass for all layers. The workspace, uint8, is zeroed once when it is allocated.
    """

def swap_pages(
    *,
    layers: collections.abc.Sequence[PagedKv],
    pages: typing.Any,
    host: typing.Any,
    to_host: bool,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Pages to or from page-locked host memory, uint8, layer by layer, K then V of each page.
    """

def tree_attention(
    *,
    q: typing.Any,
    out: typing.Any,
    kv: PagedKv,
    forest: PreparedForest,
    lse: typing.Any | None = None,
    scale: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    soft_cap: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    sliding_window: typing.SupportsInt | typing.SupportsIndex = 0,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Attention of all rows: q and out [num_rows, num_heads, head_dim], lse [num_rows, num_heads] float32. scale 0: 1 / sqrt(head_dim).
    """

def unusable_reason() -> str:
    """
    Why not; empty when they can.
    """

def verify(
    *,
    workspace: typing.Any,
    stream: typing.SupportsInt | typing.SupportsIndex,
    rule: str = "target",
    **kwargs: typing.Any,
) -> None:
    """
    Accepts a path through each tree and draws the token after it.

    Logits [num_logits, vocab_size] may be strided by row; seeds are int64 or uint64, positions int64,
    masks int32 or uint32 [num_masks, ceil(vocab_size / 32)], draft_probs float32 [*, vocab_size]; of
    the rest int32 are all ids, offsets and counts and float32 all parameters. Results: num_accepted
    and status [num_sequences], path and tokens [num_sequences, width], width being at least the
    longest path + 1.
    """

def verify_workspace_bytes(
    *,
    rule: str,
    max_sequences: typing.SupportsInt | typing.SupportsIndex,
    max_nodes: typing.SupportsInt | typing.SupportsIndex,
    vocab_size: typing.SupportsInt | typing.SupportsIndex,
) -> int:
    """
    Bytes of workspace of verify, uint8, zeroed once when it is allocated.
    """
