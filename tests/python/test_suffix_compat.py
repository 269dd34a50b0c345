# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""smartspec.compat: ArcticInference's interface over the suffix index, without its faults.

The scenario runs unchanged against both classes; the original is compared where it is installed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import KeysView

import numpy as np
import pytest
from smartspec.compat import SuffixDecodingCache, SuffixDecodingDraft
from smartspec_core import SuffixIndex


def check_draft(draft, limit, factor=1.0, offset=0.0, min_prob=0.1):
    """What holds for the drafts of both classes."""
    n = len(draft.token_ids)
    assert len(draft.parents) == len(draft.probs) == n <= limit
    assert isinstance(draft.score, float)
    assert draft.score == pytest.approx(sum(draft.probs), rel=1e-5)
    assert all(isinstance(each, int) for each in (*draft.token_ids, *draft.parents))
    assert all(-1 <= parent < node for node, parent in enumerate(draft.parents))
    for parent, prob in zip(draft.parents, draft.probs, strict=True):
        assert min_prob - 1e-6 <= prob <= (1.0 if parent < 0 else draft.probs[parent])
    assert n <= max(0, int(draft.match_len * factor + offset + 1e-6))
    if n:
        assert draft.match_len > 0


def refused(call, *args, **kwargs):
    with pytest.raises(ValueError) as info:
        call(*args, **kwargs)
    return str(info.value).split(" ")[0]


def scenario(cls):
    """A server's life; returns what must be equal in both classes."""
    seen = []
    cache = cls(max_tree_depth=24, max_cached_requests=2)
    seen += [cache.max_tree_depth, cache.max_cached_requests]
    code = list(range(100, 140))
    cache.start_request("one", np.array([1, 2, 3, 4, 5], dtype=np.int32))
    seen += [
        list(cache.active_requests),
        list(cache.cached_requests),
        "one" in cache.active_requests,
    ]
    seen.append(refused(cache.start_request, "one", [1]))
    cache.add_active_response("one", code[:20])
    cache.add_active_response("one", np.array(code[20:], dtype=np.int32))
    cache.add_active_response("one", [])
    for unknown in ("two", 2, ("a", 1)):
        seen.append(refused(cache.add_active_response, unknown, [1]))
        seen.append(refused(cache.speculate, unknown, [1], max_spec_tokens=4))
        seen.append(refused(cache.stop_request, unknown))
        seen.append(refused(cache.evict_cached_response, unknown))
    seen.append(refused(cls, max_cached_requests=2**31))

    # Another request drafts from the response of the first, which goes on after its stop.
    cache.start_request(2, [7, 8])
    cache.stop_request("one")
    cache.add_active_response(2, code[:12])
    for context in (code[2:12], np.array(code[2:12], dtype=np.int32)):
        for tree in (False, True):
            draft = cache.speculate(
                2, context, max_spec_tokens=6, min_token_prob=0.0, use_tree_spec=tree
            )
            check_draft(draft, 6, min_prob=0.0)
            seen.append((draft.token_ids, draft.parents))
    short = cache.speculate(2, code[2:12], max_spec_tokens=16, max_spec_factor=0.2)
    check_draft(short, 16, factor=0.2)
    none = cache.speculate(2, [55], max_spec_tokens=4)
    seen.append((none.token_ids, none.parents, none.probs, none.score, none.match_len))
    none = cache.speculate(2, code[2:12], max_spec_tokens=0)
    seen.append((none.token_ids, none.score))

    # Its own prompt, at a place that is not its end.
    cache.start_request(("three", 3), [31, 32, 33, 34, 35, 36])
    seen += [list(cache.cached_requests), list(cache.active_requests)]  # "one" had to go
    draft = cache.speculate(("three", 3), [30, 31, 32, 33], max_spec_tokens=2, min_token_prob=0.0)
    check_draft(draft, 2, min_prob=0.0)
    seen.append(draft.token_ids)

    # An id used again: the older response is evicted.
    cache.stop_request(2)
    cache.start_request(2, [1])
    seen += [list(cache.cached_requests), list(cache.active_requests)]
    draft = cache.speculate(2, code[:5], max_spec_tokens=4)
    seen.append((draft.token_ids, draft.match_len))  # nobody has it any more
    cache.evict_cached_response(2)
    seen.append(list(cache.cached_requests))
    cache.add_active_response(2, code[:10])  # still active, for itself only
    draft = cache.speculate(("three", 3), code[:5], max_spec_tokens=4)
    seen.append(draft.token_ids)
    cache.stop_request(2)
    cache.stop_request(("three", 3))
    seen += [list(cache.active_requests), list(cache.cached_requests)]
    seen += [cache.active_requests & {2}, cache.cached_requests | {9}]
    return seen


def test_scenario():
    code = list(range(100, 140))
    chain = (code[12:18], [-1, 0, 1, 2, 3, 4])
    assert scenario(SuffixDecodingCache) == [
        *[24, 2, ["one"], ["one"], True, "Request"],
        *["Request"] * 12,
        "max_cached_requests",
        *[chain] * 4,
        ([], [], [], 0.0, 0),
        ([], 0.0),
        *[[2, ("three", 3)], [2, ("three", 3)]],
        [34, 35],
        *[[("three", 3), 2], [("three", 3), 2]],
        ([], 0),
        [("three", 3)],
        [],
        *[[], [("three", 3)]],
        *[set(), {("three", 3), 9}],
    ]


def test_scenario_of_the_original():
    original = pytest.importorskip(
        "arctic_inference.suffix_decoding",
        reason="arctic_inference is not installed: nothing to compare with",
        exc_type=ImportError,
    )
    assert scenario(original.SuffixDecodingCache) == scenario(SuffixDecodingCache)
    fields = [field.name for field in dataclasses.fields(original.SuffixDecodingDraft)]
    assert fields == [field.name for field in dataclasses.fields(SuffixDecodingDraft)]


def test_defaults():
    cache = SuffixDecodingCache()
    assert (cache.max_tree_depth, cache.max_cached_requests) == (64, -1)
    assert isinstance(cache.active_requests, KeysView)
    assert isinstance(cache.cached_requests, KeysView)
    assert isinstance(cache.index, SuffixIndex)
    empty = SuffixDecodingDraft()
    assert dataclasses.astuple(empty) == ([], [], [], 0.0, 0)


# ---- the original's faults ----


def test_without_max_spec_tokens():
    cache = SuffixDecodingCache(max_tree_depth=10)
    text = list(range(40))
    cache.start_request(0, text + text[:20])
    draft = cache.speculate(0, text[:20], min_token_prob=0)
    assert draft.token_ids == text[20:30]
    assert draft.match_len == 20  # beyond the depth
    assert len(cache.speculate(0, text[:20], 15, min_token_prob=0).token_ids) == 15
    assert len(cache.speculate(0, text[:20], 10**9, min_token_prob=0).token_ids) == 20
    assert cache.speculate(0, text[:20], -1).token_ids == []


def test_the_full_context_matches():
    cache = SuffixDecodingCache()
    cache.start_request(0, [1, 2, 3, 4, 5])
    draft = cache.speculate(0, [1, 2, 3], max_spec_tokens=2, min_token_prob=0)
    assert (draft.match_len, draft.token_ids) == (3, [4, 5])


@pytest.mark.parametrize("bad", [[-1], [5, -1], np.array([-1], np.int32), [2**31], [2**31 - 1]])
def test_ids_that_are_none(bad):
    cache = SuffixDecodingCache()
    cache.start_request(0, [1, 2])
    with pytest.raises(ValueError, match="must be in"):
        cache.start_request(1, bad)
    with pytest.raises(ValueError, match="must be in"):
        cache.add_active_response(0, bad)
    with pytest.raises(ValueError, match="must be in"):
        cache.speculate(0, bad, 4)
    assert list(cache.active_requests) == list(cache.cached_requests) == [0]
    cache.add_active_response(0, [1])
    assert cache.speculate(0, [1, 2, 1], 1, min_token_prob=0).token_ids == [2]
    assert cache.index.num_tokens(next(iter(cache._active.values()))[0]) == 3


# ---- arguments ----


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (np.array([1], np.int64), ValueError),
        (np.array([[1]], np.int32), ValueError),
        (np.array([1.0]), ValueError),
        ([1.0], TypeError),
        (["a"], TypeError),
        ("abc", TypeError),
        (b"abcd", TypeError),
        (3, TypeError),
        (None, TypeError),
    ],
)
def test_bad_tokens(bad, error):
    cache = SuffixDecodingCache()
    cache.start_request(0, [1])
    for call in (cache.start_request, cache.add_active_response, cache.speculate):
        with pytest.raises(error):
            call(1 if call == cache.start_request else 0, bad)
    assert list(cache.active_requests) == [0]
    assert cache.index.stats().num_tokens == 0


@pytest.mark.parametrize("convert", [list, tuple, lambda v: np.array(v, np.int32)])
def test_good_tokens(convert):
    cache = SuffixDecodingCache()
    cache.start_request(0, convert([4, 5, 6, 7]))
    cache.add_active_response(0, convert([4, 5]))
    for context in ([4, 5], [7, 4, 5], [5, 6]):
        draft = cache.speculate(0, convert(context), 1, min_token_prob=0.0)
        assert draft.token_ids == [context[-1] + 1]


def test_unhashable_ids_are_type_errors():
    with pytest.raises(TypeError, match="unhashable"):
        SuffixDecodingCache().start_request([1], [1])


def test_factor_and_offset():
    cache = SuffixDecodingCache()
    text = list(range(300))
    cache.start_request(0, text + text[:10])
    options = {"context": text[:10], "max_spec_tokens": 64, "min_token_prob": 0.0}

    def length(factor, offset):
        draft = cache.speculate(0, max_spec_factor=factor, max_spec_offset=offset, **options)
        assert draft.match_len == 10
        check_draft(draft, 64, *((factor, offset) if factor < 100 else ()), min_prob=0)
        return len(draft.token_ids)

    assert [length(f, 0.0) for f in (0.0, 0.05, 0.1, 0.7, 1.0)] == [0, 0, 1, 7, 10]
    assert [length(1.0, o) for o in (-20.0, -3.0, 0.9, 1.0)] == [0, 7, 10, 11]
    assert cache.speculate(0, max_spec_factor=math.inf, **options).match_len == 10
    assert len(cache.speculate(0, max_spec_factor=1e300, **options).token_ids) == 64
    # Nothing matches: no offset makes a draft of it.
    assert cache.speculate(0, [999], 8, 1.0, 5.0, 0.0).token_ids == []
    assert cache.speculate(0, [], 8, 1.0, 5.0, 0.0).token_ids == []


def test_min_token_prob():
    cache = SuffixDecodingCache()
    text = [1, 2, 3, 4, 5, 6] * 8
    cache.start_request(0, text)
    lengths = []
    for p in (-1.0, 0.0, 0.05, 0.3, 0.6, 1.0, 1.5):
        draft = cache.speculate(0, text, 32, min_token_prob=p)
        check_draft(draft, 32, min_prob=min(p, 1.0))
        lengths.append(len(draft.token_ids))
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == lengths[1] == 32
    assert lengths[-1] == 0
    with pytest.raises(ValueError, match="nan"):
        cache.speculate(0, text, 32, min_token_prob=math.nan)


# ---- what is cached ----


def knows(cache, context, token):
    """Whether a request without text of its own is told that `token` follows `context`."""
    cache.index.start_request(0, context, share_output=False)
    tokens = cache.index.draft_one(0, 4, 0.0)[0]
    cache.index.finish_request(0)
    return token in tokens[:1]


def respond(cache, req_id, tokens):
    cache.start_request(req_id, [])
    cache.add_active_response(req_id, tokens)
    cache.stop_request(req_id)


def test_first_in_first_out():
    cache = SuffixDecodingCache(max_cached_requests=3)
    for i in range(6):
        respond(cache, i, [10 * i, 10 * i + 1])
        assert list(cache.cached_requests) == list(range(max(0, i - 2), i + 1))
    assert [knows(cache, [10 * i], 10 * i + 1) for i in range(6)] == [False] * 3 + [True] * 3
    respond(cache, 4, [7, 8])  # again: it is the newest now, and what it said before is gone
    assert list(cache.cached_requests) == [3, 5, 4]
    assert not knows(cache, [40], 41)
    assert knows(cache, [7], 8)
    cache.evict_cached_response(5)
    assert not knows(cache, [50], 51)
    assert cache.index.stats().num_tokens == 4


def test_an_active_request_may_lose_its_place():
    cache = SuffixDecodingCache(max_cached_requests=1)
    cache.start_request("old", [1])
    cache.add_active_response("old", [20, 21])
    cache.start_request("new", [1])
    assert list(cache.cached_requests) == ["new"]
    assert list(cache.active_requests) == ["old", "new"]
    cache.add_active_response("old", [22, 20])
    assert not knows(cache, [20], 21)
    assert not knows(cache, [21], 22)
    assert cache.speculate("old", [22, 20], 1, min_token_prob=0).token_ids == [21]
    cache.stop_request("old")
    assert refused(cache.evict_cached_response, "old") == "Request"


def test_nothing_is_shared():
    cache = SuffixDecodingCache(max_cached_requests=0)
    respond(cache, 0, [1, 2, 3])
    assert list(cache.cached_requests) == []
    assert cache.index.stats().num_tokens == 0
    cache.start_request(0, [4, 5, 4])
    assert cache.speculate(0, [4], 1, min_token_prob=0).token_ids == [5]


def test_caches_may_share_an_index():
    index = SuffixIndex(vocab_size=100)
    first, second = SuffixDecodingCache(index=index), SuffixDecodingCache(index=index)
    index.start_request(1, [1])  # and with whoever numbers requests from the front
    respond(first, "r", [5, 6, 7])
    second.start_request("r", [5])
    assert second.speculate("r", [5], 1, min_token_prob=0).token_ids == [6]
    with pytest.raises(ValueError, match="100"):
        second.add_active_response("r", [100])


# ---- contexts ----


def test_other_contexts_are_honoured():
    """A context that is not the end of the request's text gives what a request with it would."""
    rng = random.Random(0)
    cache = SuffixDecodingCache(max_tree_depth=12)
    texts = {i: [rng.randrange(6) for _ in range(60)] for i in range(4)}
    for i, text in texts.items():
        cache.start_request(i, text[:20])
        cache.add_active_response(i, text[20:])
    requests = cache.index.stats().num_requests
    for _ in range(200):
        i = rng.randrange(4)
        source = texts[rng.randrange(4)]
        end = rng.randrange(1, 60)
        context = source[max(0, end - rng.randrange(1, 20)) : end]
        tree = rng.random() < 0.5
        draft = cache.speculate(i, context, 8, 2.0, 0.0, 0.02, tree)
        check_draft(draft, 8, factor=2.0, min_prob=0.02)
        assert draft == cache.speculate(i, np.array(context, np.int32), 8, 2.0, 0.0, 0.02, tree)
        heard = [texts[i], *(text[20:] for text in texts.values())]
        pairs = {pair for t in heard for pair in itertools.pairwise(t)}
        for token, parent in zip(draft.token_ids, draft.parents, strict=True):
            assert (context[-1] if parent < 0 else draft.token_ids[parent], token) in pairs
        if texts[i][-len(context[-12:]) :] != context[-12:]:
            assert draft.match_len <= 12
    assert cache.index.stats().num_requests == requests


def test_context_decides_not_position():
    cache = SuffixDecodingCache()
    cache.start_request(0, [1, 2, 3, 9, 5, 6, 7, 9, 1, 2, 3])
    first = cache.speculate(0, [1, 2, 3], 1, min_token_prob=0)
    other = cache.speculate(0, [5, 6, 7], 1, min_token_prob=0)
    ahead = cache.speculate(0, [1, 2, 3, 9, 5], 1, min_token_prob=0)  # beyond what was added
    assert [d.token_ids for d in (first, other, ahead)] == [[9], [9], [6]]
    assert [d.match_len for d in (first, other, ahead)] == [3, 3, 5]
    assert cache.speculate(0, [1, 2, 3], 1, min_token_prob=0) == first


def test_a_failed_call_leaves_no_request_behind():
    cache = SuffixDecodingCache()
    cache.start_request(0, [1, 2, 3])
    for _ in range(3):
        with pytest.raises(ValueError, match="min_survival"):
            cache.speculate(0, [2], 1, min_token_prob=math.nan)
        with pytest.raises(ValueError):
            cache.speculate(0, [-5], 1)
    assert cache.index.stats().num_requests == 1


def test_random_life():
    """Against a model of who is active and cached; texts against what was fed."""
    rng = random.Random(3)
    for limit in (-1, 0, 1, 5):
        cache = SuffixDecodingCache(max_tree_depth=8, max_cached_requests=limit)
        active, cached = {}, {}
        for _ in range(400):
            name = rng.choice("abcdefghij")
            action = rng.random()
            if action < 0.2 and name not in active:
                active[name] = [rng.randrange(5) for _ in range(rng.randrange(10))]
                cache.start_request(name, active[name])
                if limit:
                    cached.pop(name, None)
                    cached[name] = []
                    while 0 < limit < len(cached):
                        del cached[next(iter(cached))]
            elif action < 0.3 and name in active:
                cache.stop_request(name)
                del active[name]
            elif action < 0.35 and name in cached:
                cache.evict_cached_response(name)
                del cached[name]
            elif action < 0.7 and name in active:
                new = [rng.randrange(5) for _ in range(rng.randrange(6))]
                cache.add_active_response(name, new)
                active[name] = active[name] + new
                if name in cached:
                    cached[name] += new
            elif active.get(name):
                draft = cache.speculate(name, active[name], 16, 4.0, 1.0, 0.01, rng.random() < 0.5)
                check_draft(draft, 16, 4.0, 1.0, 0.01)
            assert list(cache.active_requests) == list(active)
            assert list(cache.cached_requests) == list(cached)
            assert cache.index.stats().num_tokens == sum(map(len, cached.values()))
