# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Suffix proposers behind one interface, for suffix_vs_reference.py. Not a program.

reference  ArcticInference's SuffixDecodingCache, called as vLLM's suffix_decoding.py does
smartspec  smartspec_core.SuffixIndex, history live
frozen     the same with a small generation, so that most of the history is frozen
compat     smartspec.compat.SuffixDecodingCache, called like the reference
"""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from suffix_workloads import Tokens, Workload

MODULES = {
    "reference": "arctic_inference.suffix_decoding",
    "smartspec": "smartspec_core",
    "frozen": "smartspec_core",
    "compat": "smartspec.compat",
}
CLASSES = {"smartspec": "SuffixIndex", "frozen": "SuffixIndex"}
FROZEN_GENERATION = 32 << 20
cpu_ns = time.thread_time_ns


@dataclasses.dataclass(frozen=True)
class Drafted:
    tokens: Sequence[int]
    parents: Sequence[int]  # -1: follows the context
    survival: Sequence[float]  # claimed probability of the whole path down to the token
    match_length: int


@dataclasses.dataclass(frozen=True)
class Options:
    """What a proposer is asked for; depth and factor mean something to the reference only."""

    depth: int = 24
    max_tokens: int = 16
    factor: float = 1.0
    threshold: float = 0.1
    tree: bool = False


class Arm(Protocol):
    """One proposer with its history. Requests are numbered by the caller, never twice."""

    context: int  # tokens of context that draft() wants

    def remember(self, request: int, response: Tokens) -> None: ...
    def start(self, request: int, prompt: Tokens) -> None: ...
    def update(self, request: int, tokens: list[int]) -> None: ...
    def draft(self, request: int, context: Tokens) -> Drafted: ...
    def stop(self, request: int) -> None: ...
    def forget(self, request: int) -> None: ...
    def step(
        self,
        requests: list[int],
        new: list[list[int]],
        contexts: list[Tokens],
        disturb: Callable[[], None],
    ) -> tuple[int, int, int]:
        """Update and draft of a whole batch: ns of update, ns of draft, tokens drafted.

        Calls `disturb` before either, untimed.
        """


class CacheArm:
    """A class with the interface of SuffixDecodingCache."""

    def __init__(self, cache: Any, options: Options) -> None:
        self.cache = cache
        self.options = options
        self.context = options.depth

    def remember(self, request: int, response: Tokens) -> None:
        self.cache.start_request(request, [])
        self.cache.add_active_response(request, response)
        self.cache.stop_request(request)

    def start(self, request: int, prompt: Tokens) -> None:
        self.cache.start_request(request, prompt)

    def update(self, request: int, tokens: list[int]) -> None:
        self.cache.add_active_response(request, tokens)

    def draft(self, request: int, context: Tokens) -> Drafted:
        o = self.options
        d = self.cache.speculate(
            request,
            context,
            max_spec_tokens=o.max_tokens,
            max_spec_factor=o.factor,
            min_token_prob=o.threshold,
            use_tree_spec=o.tree,
        )
        return Drafted(d.token_ids, d.parents, d.probs, d.match_len)

    def stop(self, request: int) -> None:
        self.cache.stop_request(request)

    def forget(self, request: int) -> None:
        self.cache.evict_cached_response(request)

    def step(
        self,
        requests: list[int],
        new: list[list[int]],
        contexts: list[Tokens],
        disturb: Callable[[], None],
    ) -> tuple[int, int, int]:
        disturb()
        start = cpu_ns()
        for request, tokens in zip(requests, new, strict=True):
            self.cache.add_active_response(request, tokens)
        updated = cpu_ns() - start
        disturb()
        start = cpu_ns()
        drafts = [self.draft(r, c) for r, c in zip(requests, contexts, strict=True)]
        return updated, cpu_ns() - start, sum(len(d.tokens) for d in drafts)


class IndexArm:
    """smartspec_core.SuffixIndex; it keeps contexts itself."""

    context = 0

    def __init__(self, index: Any, options: Options) -> None:
        self.index = index
        self.options = options
        self.width = 4 if options.tree else 1
        self.out: Any = None

    def remember(self, request: int, response: Tokens) -> None:
        self.index.start_request(request, num_prompt_tokens=0)
        self.index.extend(request, response)
        self.index.finish_request(request)

    def start(self, request: int, prompt: Tokens) -> None:
        self.index.start_request(request, prompt)

    def update(self, request: int, tokens: list[int]) -> None:
        self.index.extend(request, tokens)

    def draft(self, request: int, context: Tokens) -> Drafted:  # noqa: ARG002
        o = self.options
        return Drafted(*self.index.draft_one(request, o.max_tokens, o.threshold, self.width))

    def stop(self, request: int) -> None:
        self.index.finish_request(request)

    def forget(self, request: int) -> None:
        self.index.forget(request)

    def step(
        self,
        requests: list[int],
        new: list[list[int]],
        contexts: list[Tokens],  # noqa: ARG002
        disturb: Callable[[], None],
    ) -> tuple[int, int, int]:
        o = self.options
        ids = np.array(requests, dtype=np.int64)
        positions = np.array([self.index.num_tokens(r) for r in requests], dtype=np.int64)
        offsets = np.cumsum([0, *map(len, new)], dtype=np.int64)
        tokens = np.concatenate([np.array(n, dtype=np.int32) for n in new])
        if self.out is None:
            module = importlib.import_module("smartspec_core")
            self.out = module.SuffixDrafts(len(ids), o.max_tokens)
        disturb()
        start = cpu_ns()
        self.index.update(ids, positions, offsets, tokens)
        updated = cpu_ns() - start
        disturb()
        start = cpu_ns()
        self.index.draft(
            ids,
            max_tokens=o.max_tokens,
            min_survival=o.threshold,
            tree_width=self.width,
            out=self.out,
        )
        return updated, cpu_ns() - start, int(self.out.lengths.sum())


def new_index(kind: str) -> Any:
    module = importlib.import_module(MODULES[kind])
    if kind == "frozen":
        return module.SuffixIndex(
            max_bytes=1 << 30, generation_bytes=FROZEN_GENERATION, background=False
        )
    return module.SuffixIndex(max_bytes=2 << 30)


def reference_options(full: bool) -> dict[str, Options]:
    options = {"reference D24": Options(), "reference D64": Options(depth=64)}
    if full:
        options["reference D24 tree"] = Options(tree=True)
        for factor in (1.0, 2.0, 4.0):
            if factor > 1:
                options[f"reference D64 factor {factor:.0f}"] = Options(depth=64, factor=factor)
            options[f"reference D64 factor {factor:.0f} tree"] = Options(
                depth=64, factor=factor, tree=True
            )
    return options


def make_arm(kind: str, options: Options) -> Arm:
    if kind in CLASSES:
        return IndexArm(new_index(kind), options)
    module = importlib.import_module(MODULES[kind])
    return CacheArm(module.SuffixDecodingCache(max_tree_depth=options.depth), options)


def fill(arm: Arm, history: Workload) -> None:
    for i, request in enumerate(history):
        arm.remember(i, request.response)


def history_builder(kind: str, options: Options) -> Callable[[list[Tokens]], Any]:
    """The cheapest way to index finished responses; returns what must be kept alive."""
    if kind == "compat":
        kind = "smartspec"
    if kind == "reference":  # the shared tree alone, without the request's own that cache.py adds
        native = importlib.import_module("arctic_inference.suffix_decoding._C")
        tree = native.SuffixTree(options.depth)

        def extend(responses: list[Tokens]) -> Any:
            for i, response in enumerate(responses):
                tree.extend_ndarray(i, response)
            return tree

        return extend
    index = new_index(kind)

    def preload(responses: list[Tokens]) -> Any:
        index.preload(responses)
        return index

    return preload


def available(requested: Sequence[str]) -> list[str]:
    """Those whose package is there; says which are skipped and why."""
    found = []
    for kind in requested:
        try:
            module = importlib.import_module(MODULES[kind])
            if not hasattr(module, CLASSES.get(kind, "SuffixDecodingCache")):
                raise ImportError(f"{MODULES[kind]} has no {CLASSES[kind]}")
        except ImportError as error:
            print(f"skipped: arm '{kind}' ({error})")
        else:
            found.append(kind)
    return found
