# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""SmartSpec's suffix index behind the interface of ArcticInference's `SuffixDecodingCache`.

from smartspec.compat import SuffixDecodingCache  # was: arctic_inference.suffix_decoding

cache = SuffixDecodingCache(max_tree_depth=24)
cache.start_request("r1", prompt)
cache.add_active_response("r1", new_tokens)
draft = cache.speculate("r1", prompt + new_tokens, max_spec_tokens=16)

Names, arguments and errors are the same. What differs on purpose: `probs` are calibrated by what
was accepted before, a context can match as a whole and beyond `max_tree_depth`, drafts are not cut
by it, `speculate` works without `max_spec_tokens`, and negative token ids are refused.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, KeysView, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from smartspec_core import MAX_TREE_NODES, SuffixIndex

__all__ = ["SuffixDecodingCache", "SuffixDecodingDraft"]

TokenIds: TypeAlias = npt.NDArray[np.int32] | Sequence[int]

_INT32 = np.dtype(np.int32)
# Far from what others may number requests by who use the same index.
_ids = count(1 << 62)
_TREE_WIDTH = 4  # children of one node, the most that the index drafts


@dataclass
class SuffixDecodingDraft:
    """Nodes in an order in which parents come first; parent -1 is the end of the context."""

    token_ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    probs: list[float] = field(default_factory=list)  # that the whole path to here is accepted
    score: float = 0.0  # sum of probs: tokens expected to be accepted
    match_len: int = 0  # tokens of context found in the request's text or the cache


class SuffixDecodingCache:
    """Drafts from each request's own text and from responses of all requests.

    max_tree_depth: context tokens that are looked at, and the default of max_spec_tokens. Matches
        and drafts may be longer.
    max_cached_requests: responses kept, first in, first out; -1: as many as the index has bytes
        for; 0: none, each request drafts from its own text.
    index: the index to use, such as one with another bound in bytes, or one loaded from a file;
        several caches may share it.

    Not thread-safe, as the original is not.
    """

    def __init__(
        self,
        max_tree_depth: int = 64,
        max_cached_requests: int = -1,
        *,
        index: SuffixIndex | None = None,
    ) -> None:
        if max_tree_depth < 1:
            raise ValueError(f"max_tree_depth must be at least 1, got {max_tree_depth}")
        if max_cached_requests > 0x7FFFFFFF:
            raise ValueError(
                f"max_cached_requests must be at most 2147483647, got {max_cached_requests}"
            )
        self._max_tree_depth = max_tree_depth
        self._max_cached_requests = max_cached_requests
        self._index = SuffixIndex() if index is None else index
        # The id in the index, and the text so far as int32 bytes.
        self._active: dict[Hashable, tuple[int, bytearray]] = {}
        self._cached: dict[Hashable, int] = {}  # in the order of their start

    @property
    def index(self) -> SuffixIndex:
        """The index below, for what this interface does not offer: save, load, stats."""
        return self._index

    @property
    def max_tree_depth(self) -> int:
        return self._max_tree_depth

    @property
    def max_cached_requests(self) -> int:
        return self._max_cached_requests

    @property
    def active_requests(self) -> KeysView[Hashable]:
        """Started and not stopped."""
        return self._active.keys()

    @property
    def cached_requests(self) -> KeysView[Hashable]:
        """Whose responses others may draft from, unless the index's bound in bytes took them."""
        return self._cached.keys()

    def start_request(self, req_id: Hashable, prompt_token_ids: TokenIds) -> None:
        """An older response cached under the same id is evicted. ValueError: already active."""
        if req_id in self._active:
            raise ValueError(f"Request '{req_id}' is already active")
        text = bytearray(_int32_bytes(prompt_token_ids))
        native = next(_ids)
        shared = self._max_cached_requests != 0
        self._index.start_request(native, np.frombuffer(bytes(text), _INT32), share_output=shared)
        self._active[req_id] = (native, text)
        if shared:
            if req_id in self._cached:
                self.evict_cached_response(req_id)
            self._cached[req_id] = native
            while 0 < self._max_cached_requests < len(self._cached):
                self.evict_cached_response(next(iter(self._cached)))

    def stop_request(self, req_id: Hashable) -> None:
        """Drops the prompt; the response stays cached. ValueError: not active."""
        if req_id not in self._active:
            raise ValueError(f"Request '{req_id}' is not active")
        self._index.finish_request(self._active.pop(req_id)[0])

    def add_active_response(self, req_id: Hashable, token_ids: TokenIds) -> None:
        """Appends to the response; all requests may draft from it at once. ValueError: not active,
        or a negative token id."""
        try:
            native, text = self._active[req_id]
        except KeyError:
            raise ValueError(f"Request '{req_id}' is not active") from None
        new = _int32_bytes(token_ids)
        self._index.extend(native, token_ids)
        text += new

    def evict_cached_response(self, req_id: Hashable) -> None:
        """ValueError: not cached. An active request goes on, no longer shared."""
        if req_id not in self._cached:
            raise ValueError(f"Request '{req_id}' is not cached")
        self._index.forget(self._cached.pop(req_id))

    def speculate(
        self,
        req_id: Hashable,
        context: TokenIds,
        max_spec_tokens: int | None = None,
        max_spec_factor: float = 1.0,
        max_spec_offset: float = 0.0,
        min_token_prob: float = 0.1,
        use_tree_spec: bool = False,
    ) -> SuffixDecodingDraft:
        """What may follow `context`, of which the last max_tree_depth tokens count.

        As a rule they are the end of the request's own text: its position is known then, and
        nothing is searched. Another context is honoured, at the price of indexing the request's
        text anew: O(tokens of the request).

        max_spec_tokens: None: max_tree_depth; never more than 256.
        max_spec_factor, max_spec_offset: at most match_len * factor + offset tokens.
        min_token_prob: a token is drafted while its path's probability is at least this.
        """
        try:
            native, text = self._active[req_id]
        except KeyError:
            raise ValueError(f"Request '{req_id}' is not active") from None
        limit = self._max_tree_depth if max_spec_tokens is None else max_spec_tokens
        if limit > MAX_TREE_NODES:
            limit = MAX_TREE_NODES
        if limit < 1 or min_token_prob > 1.0 or len(context) == 0:
            return SuffixDecodingDraft()
        if min_token_prob < 0.0:
            min_token_prob = 0.0
        if len(context) > self._max_tree_depth:
            context = context[-self._max_tree_depth :]
        end = _int32_bytes(context)
        width = _TREE_WIDTH if use_tree_spec else 1
        if text.endswith(end):
            tokens, parents, probs, match = self._index.draft_one(
                native, limit, min_token_prob, width
            )
        else:
            tokens, parents, probs, match = self._draft_elsewhere(
                text, end, limit, min_token_prob, width
            )
        allowed = match * max_spec_factor + max_spec_offset + 1e-6
        if len(tokens) > allowed:
            # The most probable nodes come first, and parents before children.
            kept = max(int(allowed), 0)
            del tokens[kept:], parents[kept:], probs[kept:]
        return SuffixDecodingDraft(tokens, parents, probs, sum(probs, 0.0), match)

    def _draft_elsewhere(
        self, text: bytearray, context: bytes, limit: int, min_token_prob: float, width: int
    ) -> tuple[list[int], list[int], list[float], int]:
        """Drafts after `context` for a passing request that has `text` to draft from."""
        native = next(_ids)
        self._index.start_request(
            native,
            np.frombuffer(context, _INT32),
            share_output=False,
            prediction=np.frombuffer(bytes(text), _INT32),
        )
        try:
            return self._index.draft_one(native, limit, min_token_prob, width)
        finally:
            self._index.finish_request(native)


def _int32_bytes(tokens: TokenIds) -> bytes:
    if type(tokens) is list:
        try:
            return array("i", tokens).tobytes()
        except OverflowError:
            raise ValueError("token ids must be in [0, 2147483647)") from None
    if isinstance(tokens, np.ndarray):
        if tokens.ndim != 1:
            raise ValueError(f"ndarray input must have ndim=1, got ndim={tokens.ndim}")
        if tokens.dtype is not _INT32 and tokens.dtype != _INT32:
            raise ValueError(f"ndarray input must have dtype=int32, got dtype={tokens.dtype}")
        return tokens.tobytes()
    if isinstance(tokens, (str, bytes, bytearray)):
        raise TypeError(f"token ids: expected integers, got {type(tokens).__name__}")
    return _int32_bytes(list(tokens))
