# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""smartspec_core.SuffixIndex in Python: arrays in and out, errors, threads and the GIL."""

from __future__ import annotations

import random
import sys
import threading

import numpy as np
import pytest
import smartspec_core as core
from smartspec_core import SuffixDrafts, SuffixIndex
from suffix_for_tests import SMALL, drafts_of, grown, some_text

# ---- arrays ----

INTEGERS = [
    list,
    tuple,
    *[
        lambda v, t=t: np.array(v, t)
        for t in ("i1", "u1", "i2", "i4", "u4", "i8", "u8", ">i4", ">i8")
    ],
    lambda v: np.array([v, v], np.int32).T.copy()[:, 0],  # strided
    lambda v: [np.int64(x) for x in v],
]


@pytest.mark.parametrize("convert", INTEGERS)
def test_any_integers_will_do(convert):
    index = SuffixIndex()
    index.start_request(1, convert([1, 2, 3]), prediction=convert([1, 2, 4, 5]))
    index.start_request(2, convert([3, 2, 1]))
    index.update(convert([1, 2]), convert([3, 3]), convert([0, 2, 3]), convert([1, 2, 9]))
    assert [index.num_tokens(i) for i in (1, 2)] == [5, 4]
    drafts = index.draft(convert([2, 1]), max_tokens_per_request=convert([0, 1]), min_survival=0)
    assert drafts.lengths.tolist() == [0, 1]
    index.preload(convert([0, 2, 4]), convert([5, 6, 5, 7]))
    index.preload([convert([5, 7])])
    assert index.lookup(convert([5])).best_token == 7


BAD_INTEGERS = [
    ([1.0], r"tokens\[0\]: must be an integer that fits int32, got 1.0"),
    ([1, None], r"tokens\[1\]"),
    ([2**31], r"tokens\[0\].*2147483648"),
    ([-(2**40)], r"tokens\[0\]"),
    ([10**40], r"tokens\[0\]"),
    ([[1]], r"tokens\[0\]"),
    (np.array([1.0]), "one-dimensional integers, got dtype float64"),
    (np.array([], np.float32), "dtype float32"),
    (np.array([True]), "dtype bool"),
    (np.array([1 + 0j]), "complex"),
    (np.array(["1"]), "<U1"),
    (np.array([1], object), "dtype object"),
    (np.array([1], "M8[s]"), "datetime64"),
    (np.array([[1]]), "one-dimensional"),
    (np.array(1), "one-dimensional"),
    (np.array([5, 2**31]), r"tokens\[1\].*2147483648"),
    (np.array([2**63], np.uint64), r"tokens\[0\].*9223372036854775808"),
    ([-1], r"tokens\[0\] must be in \[0, 100\), got -1"),
    (np.array([3, 100], np.int32), r"tokens\[1\] must be in \[0, 100\), got 100"),
]


@pytest.mark.parametrize(("tokens", "message"), BAD_INTEGERS)
def test_bad_tokens_are_refused(tokens, message):
    index = SuffixIndex(vocab_size=100)
    index.start_request(1, [1])
    with pytest.raises(ValueError, match=message):
        index.extend(1, tokens)
    with pytest.raises(ValueError, match="tokens"):
        index.update([1], [1], [0, 1], tokens)
    with pytest.raises(ValueError, match=r"prompt|tokens"):
        index.start_request(2, tokens)
    with pytest.raises(ValueError, match="prediction"):
        index.start_request(2, [], prediction=tokens)
    with pytest.raises(ValueError, match=r"texts|tokens"):
        index.preload([[1], tokens])
    with pytest.raises(ValueError, match="context"):
        index.lookup(tokens)
    assert index.stats().num_tokens == 0
    assert index.num_tokens(1) == 1
    index.start_request(2, [1])  # nothing of it was left behind


@pytest.mark.parametrize("tokens", ["abc", b"abc", bytearray(b"a"), 3, None, {1}, {}, iter([1])])
def test_what_is_no_sequence_is_a_type_error(tokens):
    index = SuffixIndex()
    index.start_request(1, [1])
    with pytest.raises(TypeError):
        index.extend(1, tokens)


def test_a_list_that_shrinks_while_it_is_read():
    class Hostile:
        def __init__(self, owner):
            self.owner = owner

        def __index__(self):
            self.owner.clear()
            return 1

    index = SuffixIndex()
    index.start_request(1, [])
    tokens = []
    tokens += [Hostile(tokens), 2, 3]
    index.extend(1, tokens)
    assert index.num_tokens(1) == 1


def test_results_are_reused():
    index = grown(random.Random(7))
    fresh = index.draft([3, 1], max_tokens=8, min_survival=0.01)
    assert [a.dtype for a in (fresh.tokens, fresh.parents, fresh.lengths)] == [np.int32] * 3
    assert (fresh.survival.dtype, fresh.match_lengths.dtype) == (np.float32, np.int32)
    assert (fresh.tokens.shape, fresh.lengths.shape, len(fresh)) == ((2, 8), (2,), 2)
    kept = SuffixDrafts(5, 8)
    arrays = [kept.tokens, kept.parents, kept.survival, kept.lengths, kept.match_lengths]
    for array in arrays:
        array.fill(77)
    assert index.draft([3, 1], max_tokens=8, min_survival=0.01, out=kept) is kept
    assert kept.tokens is arrays[0]
    for array in arrays:
        assert (array[2:] == 77).all()  # rows of nobody
    assert kept.lengths[:2].tolist() == fresh.lengths.tolist()
    for row, n in enumerate(fresh.lengths):
        assert kept.tokens[row, :n].tolist() == fresh.tokens[row, :n].tolist()
        assert kept.survival[row, :n].tolist() == fresh.survival[row, :n].tolist()
    wrapped = SuffixDrafts.wrap(*arrays)
    index.draft([2], max_tokens=8, out=wrapped)
    assert wrapped.tokens is arrays[0]
    assert kept.lengths[0] == wrapped.lengths[0]


def bad_arrays():
    good = {
        "tokens": np.zeros((2, 4), np.int32),
        "parents": np.zeros((2, 4), np.int32),
        "survival": np.zeros((2, 4), np.float32),
        "lengths": np.zeros(2, np.int32),
        "match_lengths": np.zeros(2, np.int32),
    }
    for name, array in good.items():
        read_only = array.copy()
        read_only.flags.writeable = False
        wider = np.zeros((*array.shape, 2), array.dtype)[..., 0]
        for fault, bad in {
            "dtype": array.astype(np.int64),
            "float": array.astype(np.float64),
            "rows": np.concatenate([array, array]),
            "dims": array.reshape(1, *array.shape),
            "strides": wider,
            "read-only": read_only,
        }.items():
            yield pytest.param(good | {name: bad}, name, id=f"{name}-{fault}")


@pytest.mark.parametrize(("arrays", "name"), list(bad_arrays()))
def test_wrong_result_arrays_are_refused(arrays, name):
    with pytest.raises(ValueError, match=f"{name}|parents: expected|read-only"):
        SuffixDrafts.wrap(**arrays)


def test_wrong_results_are_refused():
    index = grown(random.Random(8), 3)
    for out in (SuffixDrafts(2, 16), SuffixDrafts(3, 8), SuffixDrafts(3, 17)):
        with pytest.raises(ValueError, match=r"out: arrays are .*at least 3, 16"):
            index.draft([0, 1, 2], out=out)
    for wrong in (np.zeros((3, 16), np.int32), {}, 1):
        with pytest.raises(TypeError):
            index.draft([0, 1, 2], out=wrong)
    shrunk = SuffixDrafts(3, 16)
    shrunk.tokens.resize((1, 16), refcheck=False)
    with pytest.raises(ValueError, match="resized"):
        index.draft([0, 1, 2], out=shrunk)
    frozen = SuffixDrafts(3, 16)
    frozen.lengths.flags.writeable = False
    with pytest.raises(ValueError, match="not writeable"):
        index.draft([0, 1, 2], out=frozen)
    for size in ((-1, 4), (1, 0), (1, core.MAX_TREE_NODES + 1)):
        with pytest.raises(ValueError, match="SuffixDrafts: needs"):
            SuffixDrafts(*size)


# ---- errors ----

BAD_OPTIONS = [
    ({"vocab_size": -1}, "vocab_size must be .*-1"),
    ({"max_bytes": 1000}, "max_bytes must be at least 1048576, got 1000"),
    ({"max_bytes": -1}, "max_bytes must be >= 0, got -1"),
    ({"generation_bytes": -5}, "generation_bytes must be >= 0, got -5"),
    ({"generation_bytes": 1 << 30}, "generation_bytes must be at most .* got 1073741824"),
    ({"tokenizer_hash": "x" * 65}, "tokenizer_hash must be at most 64 bytes, got 65"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        SuffixIndex(**options)


def test_options():
    index = SuffixIndex(vocab_size=7, max_bytes=2**22, freeze=False, tokenizer_hash="h")
    o = index.options
    assert (o.vocab_size, o.max_bytes, o.generation_bytes) == (7, 2**22, 2**20)
    assert (o.freeze, o.background, o.tokenizer_hash) == (False, True, "h")
    with pytest.raises(TypeError):
        SuffixIndex(7)


BAD_CALLS = [
    (lambda i: i.start_request(1, [1]), "request 1 is already active"),
    (lambda i: i.start_request(2, [1]), "request 2 is finished and its output remembered"),
    (lambda i: i.start_request(-3, [1]), "id must be at least 0, got -3"),
    (lambda i: i.start_request(9), "needs prompt or num_prompt_tokens"),
    (lambda i: i.start_request(9, num_prompt_tokens=-1), "num_prompt_tokens .*got -1"),
    (lambda i: i.finish_request(2), "request 2 is not active"),
    (lambda i: i.num_tokens(5), "request 5 is not active"),
    (lambda i: i.extend(5, [1]), "request 5 is not active"),
    (lambda i: i.draft([1, 5]), "request 5 is not active"),
    (lambda i: i.draft([1, 3, 1]), "ids hold 1 twice"),
    (lambda i: i.draft([1], max_tokens=0), "max_tokens .*got"),
    (lambda i: i.draft([1], max_tokens=257), r"max_tokens in \[1, 256\], got 1 and 257"),
    (lambda i: i.draft_one(1, 0), r"max_tokens must be in \[1, 256\], got 0"),
    (lambda i: i.draft_one(1, 2**60), r"max_tokens must be in \[1, 256\]"),
    (lambda i: i.draft_one(1, -(2**60)), r"max_tokens must be in \[1, 256\]"),
    (lambda i: i.draft([1], min_survival=float("nan")), "min_survival .*nan"),
    (lambda i: i.draft([1], min_survival=-0.1), "min_survival .*-0.1"),
    (lambda i: i.draft([1], min_survival=1e300), "min_survival"),
    (lambda i: i.draft([1], tree_width=0), r"tree_width must be in \[1, 4\], got 0"),
    (lambda i: i.draft([1], tree_width=5), "tree_width .*got 5"),
    (lambda i: i.draft([1], max_tokens_per_request=[17]), r"\[0\] must be in \[0, 16\], got 17"),
    (lambda i: i.draft([1], max_tokens_per_request=[-1]), "got -1"),
    (lambda i: i.draft([1], max_tokens_per_request=[]), r"must be \[1\], got \[0\]"),
    (lambda i: i.draft([1], max_tokens_per_request=[1, 1]), r"must be \[1\], got \[2\]"),
    (lambda i: i.update([1], [2, 3], [0, 1], [4]), "positions, got 2"),
    (lambda i: i.update([1], [2], [0], []), "one more offset, got 1"),
    (lambda i: i.update([], [], [], []), "one more offset, got 0"),
    (lambda i: i.update([1], [2], [1, 1], [4]), "offsets.* must ascend from 0 to 1"),
    (lambda i: i.update([1, 3], [2, 2], [0, 2, 1], [4]), "offsets.* must ascend"),
    (lambda i: i.update([1, 1], [4, 5], [0, 1, 2], [4, 5]), "twice"),
    (lambda i: i.update([1], [7], [0, 1], [4]), r"positions\[0\] = 7 must be in \[0, 4\]"),
    (lambda i: i.update([1], [-1], [0, 1], [4]), r"positions\[0\] = -1"),
    (lambda i: i.update([1], [1], [0, 1], [9]), "has token 2 at position 1, not 9"),
    (lambda i: i.update([3, 1], [1, 9], [0, 1, 2], [4, 4]), r"positions\[1\] = 9"),
    (lambda i: i.preload([0, 3], [1, 2]), "offsets.* must ascend from 0 to 2"),
    (lambda i: i.preload([], []), "offsets must hold at least 1 element, got 0"),
    (lambda i: i.preload([[1], 5]), r"texts\[1\]"),
]


@pytest.mark.parametrize(("call", "message"), BAD_CALLS)
def test_a_bad_call_changes_nothing(call, message):
    index = SuffixIndex()
    index.start_request(1, [1, 2])
    index.extend(1, [1, 2])
    index.start_request(2, [1])
    index.extend(2, [5])
    index.finish_request(2)
    index.start_request(3, [1])
    before = drafts_of(index, [1, 3], min_survival=0.0)
    with pytest.raises(ValueError, match=message):
        call(index)
    assert [index.num_tokens(i) for i in (1, 3)] == [4, 1]
    stats = index.stats()
    assert (stats.num_requests, stats.num_tokens) == (2, 3)
    assert drafts_of(index, [1, 3], min_survival=0.0) == before


# ---- threads ----


BIG = np.random.default_rng(0).integers(0, 5000, 400_000).astype(np.int32)
LONG_CALLS = {
    "start_request": lambda index: index.start_request(2, BIG),
    "extend": lambda index: index.extend(1, BIG),
    "update": lambda index: index.update([1], [0], [0, len(BIG)], BIG),
    "preload": lambda index: index.preload([0, len(BIG)], BIG),
}


@pytest.mark.parametrize("name", LONG_CALLS)
def test_others_run_during_a_long_call(name):
    ran = []

    def attempt():
        index = SuffixIndex()
        index.start_request(1, [])
        go = threading.Lock()
        go.acquire()

        def other():
            with go:
                ran.append(True)

        thread = threading.Thread(target=other)
        thread.start()
        go.release()
        assert not ran
        LONG_CALLS[name](index)
        ran.append(bool(ran))
        thread.join()
        return ran[0]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # from here on a thread runs when another lets go, never before
    try:
        for _ in range(10):  # a busy machine may not wake the other in time, once
            ran.clear()
            if attempt():
                return
    finally:
        sys.setswitchinterval(interval)
    pytest.fail(f"{name} holds the GIL")


def test_readers_beside_a_writer():
    index = SuffixIndex(**SMALL)
    rng = random.Random(10)
    texts = {i: some_text(rng, 400) for i in range(4)}
    for i, text in texts.items():
        index.start_request(i, text[:100])
    failures = []
    writing = threading.Event()
    writing.set()

    def read(seed):
        mine = random.Random(seed)
        try:
            while writing.is_set():
                drafts = index.draft(mine.sample(range(4), 2), tree_width=2)
                assert (drafts.lengths <= 16).all()
                index.lookup(texts[0][:5])
                assert index.stats().num_requests == 4
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    try:
        for a in range(100, 400, 3):
            new = [token for text in texts.values() for token in text[a : a + 3]]
            index.update(range(4), [a] * 4, range(0, 13, 3), new)
            index.preload([some_text(rng, 50)])
    finally:
        writing.clear()
        for thread in threads:
            thread.join()
    assert failures == []
    assert all(index.num_tokens(i) == 400 for i in range(4))
