# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""smartspec_core: each part alone, arrays checked and never copied, threads and the GIL."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
import smartspec_core as core

VOCAB = 50


def params(**fields):
    native = core.SamplingParams()
    for name, value in fields.items():
        setattr(native, name, value)
    return native


def rows(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, VOCAB)).astype(np.float32) * 3


def test_import_is_light():
    code = (
        "import sys, smartspec_core; heavy = {'numpy', 'torch', 'tokenizers', 'jinja2'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_errors_are_related():
    assert issubclass(core.FormatError, core.Error)
    assert issubclass(core.DeviceError, core.Error)
    assert issubclass(core.Error, RuntimeError)


def test_sampler_follows_the_rule():
    logits = rows(1)[0]
    for seed in range(200):
        sampler = core.Sampler(params(temperature=0.7), seed, [1, 2, 3], VOCAB)
        noise = np.array([core.gumbel_noise(seed, 3, v) for v in range(VOCAB)])
        scores = logits / 0.7 + noise
        assert sampler.sample(logits) == int(scores.argmax())
        top = sampler.sample_top(logits, 4)
        assert [token for token, _ in top] == np.argsort(-scores)[:4].tolist()
        shares = np.exp(logits / 0.7) / np.exp(logits / 0.7).sum()
        assert [p for _, p in top] == pytest.approx([shares[t] for t, _ in top], rel=1e-4)


def test_sampler_marks_and_stops():
    stops = core.StopVocabulary([9], [bytes([65 + i % 26]) for i in range(VOCAB)])
    sampler = core.Sampler(params(temperature=0.0, max_tokens=6, stop=["BC"]), 0, [1], VOCAB, stops)
    assert sampler.is_greedy
    mark = sampler.mark()
    assert sampler.accept(1) is None
    assert sampler.accept(2) == "stop"
    assert sampler.matched_stop_string == 0
    sampler.rewind(mark)
    assert sampler.num_output_tokens == 0
    assert sampler.accept(9) == "stop"
    assert sampler.matched_stop_string == -1
    for bad in (-1, VOCAB):
        with pytest.raises(ValueError, match="token"):
            sampler.accept(bad)
    with pytest.raises(ValueError, match="mark"):
        sampler.rewind(99)


def test_verify_tree_equals_sampling_one_by_one():
    logits = rows(8, seed=3)
    for seed in range(100):
        plain = core.Sampler(params(temperature=1.0, max_tokens=100), seed, [4], VOCAB)
        root = plain.sample(logits[0])
        tree = core.TokenTree()
        tree.add((root + 1) % VOCAB, -1, 0.9)
        tree.add(root, -1, 0.5)
        tree.add(7, 1, 0.2)
        sampler = core.Sampler(params(temperature=1.0, max_tokens=100), seed, [4], VOCAB)
        result = core.verify_tree(tree, logits[: len(tree) + 1], sampler)
        plain.accept(root)
        second = plain.sample(logits[2])
        assert result.path[0] == 1
        assert result.tokens[:2] == [root, second]
        assert result.rows[:2] == [0, 2]
        assert (len(result.path) == 2) == (second == 7)
        assert result.finish_reason is None
        assert sampler.num_output_tokens == len(result.tokens)


BAD_ARRAYS = [
    rows(2)[0].astype(np.float64),
    rows(2)[0].astype(np.float16),
    rows(2)[0][:-1],
    np.concatenate([rows(1)[0]] * 2)[::2],
    rows(1),
    np.zeros(0, np.float32),
    np.frombuffer(b"\0" * (4 * VOCAB + 1), np.uint8)[1:].view(np.float32),  # not aligned
]


@pytest.mark.parametrize("array", BAD_ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
def test_arrays_are_not_converted(array):
    sampler = core.Sampler(params(), 0, [1], VOCAB)
    with pytest.raises(ValueError, match=r"logits: expected .*float32 \[50\], got dtype"):
        sampler.sample(array)
    with pytest.raises(ValueError, match="logits"):
        core.verify_tree(core.TokenTree([1]), array, sampler)
    with pytest.raises(TypeError):
        sampler.sample(array.tolist())


def test_verify_tree_checks_the_tree():
    sampler = core.Sampler(params(), 0, [1], VOCAB)
    for tree in (core.TokenTree([VOCAB]), core.TokenTree([1, 2])):
        if tree.tokens == [1, 2]:
            tree.parents = [5]
        with pytest.raises(ValueError, match="tree"):
            core.verify_tree(tree, rows(len(tree) + 1), sampler)


def test_nan_rows_are_errors_not_crashes():
    logits = rows(1)[0]
    logits[7] = np.nan
    with pytest.raises(core.Error, match="token 7 has NaN"):
        core.Sampler(params(), 0, [1], VOCAB).sample(logits)


def test_compute_logprobs():
    row = rows(1, seed=9)[0]
    entries = core.compute_logprobs(row, 3, 5)
    exact = row - np.log(np.exp(row.astype(np.float64)).sum())
    assert entries[0].token == 3
    assert [e.token for e in entries[1:]] == np.argsort(-row)[:5].tolist()
    assert [e.logprob for e in entries] == pytest.approx(
        [exact[e.token] for e in entries], abs=1e-5
    )
    for chosen, top in ((VOCAB, 1), (-1, 1), (0, -1)):
        with pytest.raises(ValueError, match="chosen"):
            core.compute_logprobs(row, chosen, top)


def test_token_tree():
    tree = core.TokenTree([5, 6, 7], parents=[-1, -1, 0], survival=[0.5, 0.4, 0.25])
    assert (tree.depths, len(tree)) == ([0, 0, 1], 3)
    assert tree.validate(10) == ""
    assert "token" in tree.validate(6)
    assert "nodes" in tree.validate(10, max_nodes=2)
    with pytest.raises(ValueError, match="parent"):
        core.TokenTree([5], parents=[0])
    with pytest.raises(ValueError, match="one entry per token"):
        core.TokenTree([5], parents=[-1, -1])
    with pytest.raises(ValueError, match="survival"):
        core.TokenTree([5], survival=[1.0, 1.0])


def test_kv_cache():
    cache = core.KvCache(num_blocks=3, block_size=16)
    sequence = cache.add_sequence()
    assert cache.reserve(sequence, 20) == []
    assert cache.reserved(sequence) == 20
    assert cache.commit(sequence, list(range(20)), list(range(20))) == []
    assert cache.verified_length(sequence) == 20
    assert cache.block_table(sequence).dtype == np.int32
    twin = cache.fork(sequence, 18)
    copies = cache.reserve(twin, 3)
    assert len(copies) >= 1
    move = (cache.slot(twin, 19), cache.slot(twin, 18))
    assert cache.commit(twin, [1], [99]) == [move]
    assert cache.verified_length(twin) == 19
    assert cache.reserve(twin, 100) is None  # exhausted: an answer, not an error
    cache.remove_sequence(twin)
    cache.remove_sequence(sequence)
    found = cache.add_sequence()
    assert cache.match_prefix(found, list(range(20))) == 16
    cache.remove_sequence(found)
    assert cache.stats().num_free == 3
    assert cache.check_integrity() == ""
    for call in (cache.verified_length, cache.remove_sequence, cache.block_table):
        with pytest.raises(ValueError, match="sequence"):
            call(77)


def test_engine_step_loop(tiny):
    engine = core.Engine(tiny.model, policy=core.make_off_policy())
    greedy = params(temperature=0.0, max_tokens=6)
    first = engine.add_request([1, 2, 3], greedy)
    second = engine.add_request(np.array([4, 5], np.int32), greedy, priority=-1)
    dropped = engine.add_request([6], greedy)
    assert engine.abort(dropped)
    assert not engine.abort(dropped)
    tokens = {first: [], second: []}
    while engine.has_unfinished():
        for output in engine.step():
            tokens[output.id] += output.new_token_ids
    assert [len(each) for each in tokens.values()] == [6, 6]
    logits = tiny.model.forward_logits([1, 2, 3, *tokens[first][:-1]])
    assert logits[2:].argmax(axis=1).tolist() == tokens[first]
    stats = engine.stats()
    assert stats.num_emitted == 12
    assert stats.kv.num_free == stats.kv.num_blocks


def test_preempted_requests_come_back_the_same(tiny):
    def run(preempt):
        engine = core.Engine(tiny.model)
        request = engine.add_request([1, 2, 3], params(temperature=0.8, seed=1, max_tokens=20))
        tokens = []
        while engine.has_unfinished():
            for output in engine.step():
                tokens += output.new_token_ids
            if preempt and len(tokens) in (3, 9, 15):
                engine.preempt(request)
        return tokens, engine.stats().num_preemptions

    plain, none = run(False)
    forced, some = run(True)
    assert plain == forced
    assert (none, some) == (0, 3)


def test_requests_from_other_threads_during_steps(tiny):
    engine = core.Engine(tiny.model)
    ids, done = [], []

    def feed(seed):
        for i in range(10):
            request = engine.add_request([seed, i], params(temperature=0.0, max_tokens=5))
            ids.append(request)
            if i % 3 == 0:
                engine.abort(request)

    threads = [threading.Thread(target=feed, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or engine.has_unfinished():
        done += [output.id for output in engine.step() if output.finish_reason]
    assert len(set(ids)) == 40
    assert 24 <= len(done) <= 40
    assert engine.check_integrity() == ""
    assert engine.stats().kv.num_free == engine.stats().kv.num_blocks


def test_forward_logits_checks_tokens(tiny):
    for bad in ([], [96], [-1], [1] * 257):
        with pytest.raises(ValueError, match="tokens"):
            tiny.model.forward_logits(bad)


def test_runtime():
    runtime = core.make_runtime("cpu", 1)
    assert runtime.num_threads == 1
    assert core.isa_name(runtime) in ("avx512_bf16", "avx512", "avx2", "generic")
    assert core.is_available("cpu")
    with pytest.raises(ValueError, match="device"):
        core.is_available("tpu")
