# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""smartspec_core.SuffixIndex: against brute force, batches, positions, namespaces and files."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import smartspec_core as core
from hypothesis import given, settings
from hypothesis import strategies as st
from smartspec_core import SuffixIndex
from suffix_for_tests import (
    KIB,
    SMALL,
    Oracle,
    check_lookups,
    drafts_of,
    grown,
    some_text,
)

# ---- against brute force ----


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(st.lists(st.integers(0, 3), max_size=30), max_size=6),
    contexts=st.lists(st.lists(st.integers(0, 3), max_size=8), max_size=8),
    forgotten=st.sets(st.integers(0, 5)),
)
def test_lookup_of_outputs(texts, contexts, forgotten):
    index = SuffixIndex()
    for i, text in enumerate(texts):
        index.start_request(i, [3, 2, 1, 0, 3])  # a prompt is never shared
        for token in text:
            index.extend(i, [token])
        if i % 2 == 0:
            index.finish_request(i)
    for i in forgotten & set(range(len(texts))):
        assert index.forget(i) == (len(texts[i]) > 0)
        assert not index.forget(i)
    oracle = Oracle(text for i, text in enumerate(texts) if i not in forgotten)
    for context in contexts:
        oracle.check(index.lookup(context), context)


@pytest.mark.parametrize(
    "options", [{"background": False}, {"background": True}, {"freeze": False}]
)
@pytest.mark.parametrize("seed", range(4))
def test_lookup_over_generations(options, seed, tmp_path):
    """Requests start, grow, end and are forgotten while generations freeze; then a file."""
    rng = random.Random(seed)
    index = SuffixIndex(**(SMALL | {"max_bytes": 8192 * KIB}), **options)
    pieces = []  # [owner, tokens]: a text is cut where a generation ends
    growing = {}
    next_id = 0
    for step in range(220):
        generations = max(index.stats().num_generations, 1)
        if len(growing) < 4:
            index.start_request(next_id, some_text(rng, 10))
            growing[next_id] = [next_id, []]
            pieces.append(growing[next_id])
            next_id += 1
        for owner in growing:
            new = some_text(rng, rng.randrange(12)) if rng.random() < 0.8 else []
            index.extend(owner, new)
            growing[owner][1] += new
            if index.stats().num_generations > generations:
                generations += 1
                for other in growing:
                    growing[other] = [other, []]
                    pieces.append(growing[other])
        if rng.random() < 0.15:
            owner = rng.choice(list(growing))
            index.finish_request(owner)
            del growing[owner]
        if rng.random() < 0.1:
            owner = rng.choice(list(growing) or [0])
            if owner not in growing or rng.random() < 0.3:
                owner = rng.randrange(next_id)
            index.forget(owner)
            if owner in growing:
                index.finish_request(owner)
                del growing[owner]
            pieces = [piece for piece in pieces if piece[0] != owner]
        if step % 20 == 0:
            check_lookups(index, [tokens for _, tokens in pieces], rng)
    index.wait()
    stats = index.stats()
    assert stats.num_generations > 5
    assert stats.num_requests == len(growing)
    assert (stats.frozen_tokens > 0) == options.get("freeze", True)
    assert stats.num_tokens == sum(len(tokens) for _, tokens in pieces)
    check_lookups(index, [tokens for _, tokens in pieces], rng, 300)

    for owner in growing:
        index.finish_request(owner)
    index.save(tmp_path / "index")
    other = SuffixIndex()
    other.load(str(tmp_path / "index"))
    assert other.stats().num_tokens == stats.num_tokens
    check_lookups(other, [tokens for _, tokens in pieces], rng, 300)


@pytest.mark.parametrize("freeze", [True, False])
def test_eviction_drops_the_oldest(freeze):
    rng = random.Random(5)
    index = SuffixIndex(**SMALL, freeze=freeze, background=False)
    texts = []
    for _ in range(60):
        new = [some_text(rng, rng.randrange(200, 1000), 40) for _ in range(5)]
        index.preload(new)
        texts += new
        stats = index.stats()
        assert stats.num_bytes <= SMALL["max_bytes"]
        assert stats.num_tokens + stats.evicted_tokens == sum(map(len, texts))
    assert index.stats().evicted_tokens > 0
    gone = 0
    while gone < index.stats().evicted_tokens:
        gone += len(texts.pop(0))
    assert gone == index.stats().evicted_tokens
    oracle = Oracle(texts)
    for _ in range(60):
        text = rng.choice(texts)
        end = rng.randrange(1, len(text))
        context = text[max(0, end - rng.randrange(1, 20)) : end]
        oracle.check(index.lookup(context), context)


def test_drafts_follow_the_text():
    index = SuffixIndex()
    rng = random.Random(1)
    text = [rng.randrange(1000) for _ in range(300)]
    index.preload([text])
    index.start_request(1, text[:50])
    tokens, parents, survival, match = index.draft_one(1, 64, 0.0)
    assert tokens == text[50:114]
    assert parents == list(range(-1, 63))
    assert all(a >= b for a, b in zip([1.0, *survival], survival, strict=False))
    assert match == 50
    # Its own text, and what was given as a prediction, that nobody else sees.
    fresh = [1000 + token for token in text]
    index.start_request(2, fresh + fresh[:20])
    assert index.draft_one(2, 32, 0.0)[0] == fresh[20:52]
    index.start_request(3, fresh[:20], prediction=np.array(fresh, np.int32))
    assert index.draft_one(3, 32, 0.0)[0] == fresh[20:52]
    index.start_request(4, fresh[:20])
    assert index.draft_one(4, 32, 0.0)[0] == []


@pytest.mark.parametrize("width", [1, 3])
def test_drafts_are_sound(width):
    """Trees in order, and no token that never followed its parent."""
    rng = random.Random(width)
    index = SuffixIndex(**SMALL, background=False)
    history = [some_text(rng, 100, 12) for _ in range(20)]
    index.preload(history)
    texts = {}
    for step in range(150):
        if step % 30 == 0:
            texts[step] = some_text(rng, 60, 12)
            index.start_request(step, texts[step])
        for i, (tokens, parents, survival, match) in enumerate(
            drafts_of(index, list(texts), max_tokens=24, min_survival=0.05, tree_width=width)
        ):
            text = list(texts.values())[i]
            pairs = {pair for t in [*history, *texts.values()] for pair in itertools.pairwise(t)}
            assert 0 <= match <= len(text)
            children = {}
            for node, (token, parent, share) in enumerate(
                zip(tokens, parents, survival, strict=True)
            ):
                assert -1 <= parent < node
                above, bound = (text[-1], 1.0) if parent < 0 else (tokens[parent], survival[parent])
                assert 0.05 <= share <= bound
                assert (above, token) in pairs
                children.setdefault(parent, []).append(token)
            assert all(len(set(c)) == len(c) <= width for c in children.values())
        for text, request in zip(texts.values(), texts, strict=True):
            new = some_text(rng, rng.randrange(1, 5), 12)
            index.extend(request, new)
            text += new
    stats = index.stats()
    assert stats.drafted_tokens >= stats.accepted_tokens > 0
    assert stats.drafted_tokens >= stats.expected_tokens > 0


# ---- batches, positions, namespaces ----


@pytest.mark.parametrize("width", [1, 4])
def test_a_batch_equals_its_requests(width):
    index = grown(random.Random(2), 40)
    ids = list(range(40))
    random.Random(3).shuffle(ids)
    options = {"min_survival": 0.01, "tree_width": width}
    single = [drafts_of(index, [i], **options)[0] for i in ids]
    assert any(tokens for tokens, *_ in single)
    assert drafts_of(index, ids, **options) == single
    assert [index.draft_one(i, 16, 0.01, width) for i in ids] == single
    limits = [i % 17 for i in range(40)]
    for row, limit, full in zip(
        drafts_of(index, ids, max_tokens_per_request=limits, **options), limits, single, strict=True
    ):
        assert row[0] == full[0][:limit]
    assert drafts_of(index, [], **options) == []


def run(slices, num_requests):
    """Drafts after every slice; what a request's turn is does not depend on the others'."""
    index = SuffixIndex()
    for i in range(num_requests):
        index.start_request(i, num_prompt_tokens=30, share_output=False)
    seen = {}
    for i, position, tokens in slices:
        index.update([i], [position], [0, len(tokens)], tokens)
        seen[i, index.num_tokens(i)] = drafts_of(index, [i], min_survival=0.02)
    return index, seen


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), data=st.data())
def test_updates_may_repeat_and_pause(seed, data):
    rng = random.Random(seed)
    texts = [some_text(rng, 120) for _ in range(2)]
    cuts = [[0, *sorted(rng.sample(range(1, 120), 10)), 120] for _ in texts]
    plain = [
        (i, a, texts[i][a:b]) for k in range(11) for i in (0, 1) for a, b in [cuts[i][k : k + 2]]
    ]
    # The same, but one request after the other, each slice beginning earlier and some sent twice.
    messy = []
    for i, a, tokens in sorted(plain, key=lambda each: each[0]):
        back = data.draw(st.integers(0, a))
        messy.append((i, back, texts[i][back : a + len(tokens)]))
        if data.draw(st.booleans()):
            messy.append(messy[-1])
    first, drafts = run(plain, 2)
    second, others = run(messy, 2)
    assert drafts.keys() == others.keys()
    assert [index.num_tokens(i) for index in (first, second) for i in (0, 1)] == [120] * 4
    # Calibration is shared, so the order of requests may move survivals, not what is known.
    assert {k: v[0][3] for k, v in drafts.items()} == {k: v[0][3] for k, v in others.items()}


def test_sitting_out_loses_nothing():
    rng = random.Random(4)
    text = some_text(rng, 80)
    drafts = []
    for size in (1, 4, 40):
        index = SuffixIndex()
        index.start_request(1, text[:40])
        for a in range(40, 80, size):
            index.update([1], [a], [0, size], text[a : a + size])
        drafts += drafts_of(index, [1], min_survival=0.0)
    assert drafts[0][0]
    assert drafts[0] == drafts[1] == drafts[2]


def test_a_prompt_in_slices_is_never_shared():
    index = SuffixIndex()
    index.start_request(1, num_prompt_tokens=5)
    index.extend(1, [1, 2, 3])
    index.extend(1, [4, 5, 6, 7])
    assert index.num_tokens(1) == 7
    assert index.stats().num_tokens == 2
    assert index.lookup([5]).count == 0
    assert index.lookup([6]).best_token == 7
    index.start_request(2, [1, 2, 3, 8, 9], num_prompt_tokens=3)  # resumed with its output
    assert index.lookup([8]).best_token == 9


def test_not_shared():
    index = SuffixIndex()
    index.start_request(1, [1], share_output=False)
    index.extend(1, [2, 3])
    assert index.stats().num_tokens == 0
    assert not index.forget(1)
    assert index.is_active(1)
    index.finish_request(1)
    assert not index.is_active(1)
    index.start_request(1, [1])  # nothing of it is remembered, so the id is free again


def test_namespaces_are_apart():
    index = SuffixIndex()
    rng = random.Random(6)
    texts = {name: [some_text(rng, 60) for _ in range(3)] for name in ("", "a", "b\u00fc")}
    for name, some in texts.items():
        index.preload(some, name)
    index.start_request(1, [9], name_space="a")
    index.extend(1, [7, 7, 7])
    texts["a"].append([7, 7, 7])
    for name, some in texts.items():
        check_lookups(index, some, rng, 100, name_space=name)
    assert index.lookup([7]).count == 0
    index.start_request(2, [7], name_space="b\u00fc")
    assert index.draft_one(2, 16, 0.0)[0] == []
    assert index.stats().num_namespaces == 3
    index.clear("a")
    assert index.lookup([7], "a").count == 0
    check_lookups(index, texts[""], rng)
    index.extend(1, [7, 8])
    assert index.lookup([7], "a").best_token == 8


# ---- files ----


def test_save_and_load(tmp_path):
    rng = random.Random(9)
    path = tmp_path / "history.suffix"
    texts = [some_text(rng, 200) for _ in range(20)]
    index = SuffixIndex(**SMALL, vocab_size=50, tokenizer_hash="h")
    index.preload(texts)
    index.preload([[9, 8, 7]], "other")
    index.save(path)
    size = path.stat().st_size

    other = SuffixIndex(vocab_size=50, tokenizer_hash="h")
    other.preload([[30, 31]])
    other.start_request(1, [40, 41, 42, 40])
    other.load(path)
    check_lookups(other, texts, rng, 200)
    assert other.lookup([9, 8], "other").best_token == 7
    assert other.lookup([30]).count == 0
    assert other.draft_one(1, 4, 0.0)[0][:1] == [41]  # its own text
    other.extend(1, [33, 34])
    assert other.lookup([33]).best_token == 34

    whole = path.read_bytes()
    bad = tmp_path / "bad"
    broken = [whole[: size // 2], b"", whole[:-1], whole[:20] + b"\xff\xff" + whole[22:]]
    broken += [whole[: size // 2] + bytes([whole[size // 2] ^ 1]) + whole[size // 2 + 1 :]]
    for data in broken:
        bad.write_bytes(data)
        with pytest.raises(core.Error, match="bad"):
            other.load(bad)
    for options in ({"vocab_size": 51}, {"tokenizer_hash": "g"}):
        foreign = SuffixIndex(**({"vocab_size": 50, "tokenizer_hash": "h"} | options))
        foreign.preload([[1, 2]])
        with pytest.raises(core.FormatError, match=r"vocab|token"):
            foreign.load(path)
        assert foreign.lookup([1]).best_token == 2
    with pytest.raises(core.Error, match="nowhere"):
        other.load(tmp_path / "nowhere")
    with pytest.raises(core.Error, match="nowhere"):
        other.save(tmp_path / "nowhere" / "index")
    for wrong, error in ((3, TypeError), (None, TypeError), ("a\0b", ValueError)):
        with pytest.raises(error):
            other.save(wrong)
        with pytest.raises(error):
            other.load(wrong)
    assert other.lookup([33]).best_token == 34
    check_lookups(other, [*texts, [33, 34]], rng, 50)
