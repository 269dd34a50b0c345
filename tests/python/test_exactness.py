# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Promise P1 with a proposer written in Python, and with those that a server builds from Python:
tokens, and the logits behind them, of every request equal plain decoding of that request alone, bit
for bit. (The full matrix of native proposers is tests/cpp/engine/exactness_test.cpp.)"""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import smartspec
import smartspec_core as core

NUM_REQUESTS = 16
VOCAB = 96


class HalfRight(core.Proposer):
    """Random trees of a given width, seeded with the true continuation half of the time."""

    def __init__(self, futures: list[list[int]], width: int, seed: int) -> None:
        super().__init__()
        self.futures = futures
        self.width = width
        self.rng = random.Random(seed)

    def propose(self, requests):
        return [self.tree(request) for request in requests]

    def tree(self, request) -> core.TokenTree:
        tokens = request.tokens.tolist()
        future = next((f[len(tokens) :] for f in self.futures if f[: len(tokens)] == tokens), [])
        tree = core.TokenTree()
        parent = -1
        for depth in range(self.rng.randint(0, request.max_depth)):
            right = future[depth : depth + 1] if self.rng.random() < 0.8 else []
            siblings = {self.rng.randrange(VOCAB) for _ in range(self.width - len(right))}
            nodes = [tree.add(token, parent, 0.0) for token in {*right, *siblings}]
            if not nodes:
                break
            parent = self.rng.choice(nodes)
        return tree


def requests() -> list[tuple[list[int], core.SamplingParams]]:
    rng = random.Random(5)
    result = []
    for number in range(NUM_REQUESTS):
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 60))]
        params = core.SamplingParams()
        params.temperature = float(number % 2)
        params.seed = number
        params.max_tokens = rng.randint(10, 40)
        params.ignore_eos = True
        if number % 3 == 1:
            params.frequency_penalty = 0.5
        if number % 4 == 2:
            params.top_p = 0.9
        result.append((prompt, params))
    return result


def serve(
    model, pool, batch, proposer=None, length=0, chunk=512, preempt=False, predictions=None,
    policy=None,
):  # fmt: skip
    """{number: (tokens, logits hashes)} of serving the pool, odd numbers as another tenant."""
    options = core.EngineOptions()
    options.max_num_seqs = batch
    options.max_num_batched_tokens = max(chunk, batch)
    options.record_logits_hash = True
    options.enable_prefix_caching = chunk < 512
    if policy is None and proposer is not None:
        policy = core.make_fixed_policy(length)
    engine = core.Engine(model, options, None, proposer, policy)
    ids = {
        engine.add_request(
            prompt, params, cache_salt=n % 2, prediction=predictions[n] if predictions else []
        ): n
        for n, (prompt, params) in pool
    }
    streams: dict[int, tuple[list[int], list[int]]] = {n: ([], []) for n, _ in pool}
    rng = random.Random(length)
    while engine.has_unfinished():
        if preempt and rng.random() < 0.3:
            engine.preempt(rng.choice(list(ids)))
        for output in engine.step():
            tokens, hashes = streams[ids[output.id]]
            tokens += output.new_token_ids
            hashes += output.logits_hashes
    assert engine.check_integrity() == ""
    assert engine.stats().last_proposer_error == ""
    return streams, engine.stats()


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_python_proposer_changes_no_bit(tiny_path, num_threads):
    llm = smartspec.LLM(tiny_path, num_threads=num_threads)
    pool = list(enumerate(requests()))
    expected = {}
    for number, request in pool:
        expected |= serve(llm.model, [(number, request)], batch=1)[0]
    assert all(len(tokens) == len(hashes) for tokens, hashes in expected.values())
    futures = [[*prompt, *expected[n][0]] for n, (prompt, _) in pool]

    compared = accepted = 0
    settings = itertools.product([1, 4, 9, 16], [1, 3, 4], [1, 5, 16])
    for index, (length, width, batch) in enumerate(settings):
        proposer = HalfRight(futures, width, index)
        chunk = [512, 24, 33][index % 3]
        got, stats = serve(llm.model, pool, batch, proposer, length, chunk, index % 2 == 0)
        assert got == expected, f"length {length}, width {width}, batch {batch}, chunk {chunk}"
        compared += sum(len(tokens) for tokens, _ in got.values())
        accepted += stats.num_accepted
    assert compared > 10_000
    assert accepted > 1_000
    assert np.unique([h for _, hashes in expected.values() for h in hashes]).size > 100


def full_index(freeze: bool) -> core.SuffixIndex:
    """Holds other text, in small generations, so that some are sealed, frozen and evicted."""
    index = core.SuffixIndex(
        vocab_size=VOCAB, max_bytes=1 << 20, generation_bytes=1 << 14, freeze=freeze
    )
    rng = random.Random(3)
    for _ in range(6 if freeze else 9):
        index.preload([[rng.randrange(VOCAB) for _ in range(100)] for _ in range(20)])
        index.wait()
    return index


@pytest.mark.parametrize("name", ["suffix", "suffix tree", "suffix+draft", "lookup+draft"])
def test_suffix_and_stacked_proposers_change_no_bit(tiny_path, name):
    model = smartspec.LLM(tiny_path, num_threads=1).model
    pool = list(enumerate(requests()))
    expected = {}
    for number, request in pool:
        expected |= serve(model, [(number, request)], batch=1)[0]
    # What will come, with a slip now and then, for two thirds of the requests.
    predictions = [
        [(t + (i % 6 == 5)) % VOCAB for i, t in enumerate(expected[n][0])] if n % 3 else []
        for n, _ in pool
    ]
    accepted = 0
    for index, (length, batch) in enumerate(itertools.product([1, 5, 16], [1, 6, 16])):
        suffix = full_index(index % 2 == 0)
        free = core.SuffixProposer(suffix, 0.02, 3 if "tree" in name else 1)
        if "lookup" in name:
            free = core.PromptLookupProposer(3, 1)
        draft = core.DraftModelProposer(model, VOCAB)
        stacked = core.StackedProposer(free, draft, paid_max_depth=1 + index % 3)
        proposer = stacked if "draft" in name else free
        chunk = [512, 24, 33][index % 3]
        got, stats = serve(model, pool, batch, proposer, length, chunk, index == 4, predictions)
        assert got == expected, f"length {length}, batch {batch}, chunk {chunk}"
        accepted += stats.num_accepted
        again, more = serve(model, pool, batch, proposer, length, chunk, False, predictions)
        assert again == expected
        if "lookup" not in name:
            stats = suffix.stats()
            assert stats.num_namespaces == 2
            assert stats.num_requests == 0
            assert stats.num_bytes <= 1 << 20
            if "draft" not in name:
                assert more.num_accepted > 150, "the same requests once more"
    assert accepted > 500


class Paying(HalfRight):
    pays_per_depth = True


def test_several_proposers_and_the_goodput_policy_change_no_bit(tiny_path):
    model = smartspec.LLM(tiny_path, num_threads=1).model
    pool = list(enumerate(requests()))
    expected = {}
    for number, request in pool:
        expected |= serve(model, [(number, request)], batch=1)[0]
    futures = [[*prompt, *expected[n][0]] for n, (prompt, _) in pool]
    drafted = dict.fromkeys(["SuffixProposer", "draft", "HalfRight", "Paying"], 0)
    for index, (batch, chunk) in enumerate(itertools.product([1, 6, 16], [512, 24, 33])):
        suffix = core.SuffixProposer(full_index(index % 2 == 0), 0.02, 1 + index % 3)
        proposers = [
            [suffix, core.DraftModelProposer(model, VOCAB)],
            [HalfRight(futures, 2, index), Paying(futures, 1, index)],
            [Paying(futures, 3, index), suffix],
        ][index % 3]
        options = core.GoodputOptions()
        options.max_depth = options.max_paid_depth = 1 + index
        options.probe_budget = 0.05
        # Beside a target this tiny no draft model pays; say that it costs nothing.
        options.draft = core.CostCoefficients()
        options.draft.seconds = [1e-9]
        cost = core.CostModelOptions()
        cost.learn = False
        options.cost = cost
        policy = core.make_goodput_policy(options)
        got, stats = serve(model, pool, batch, proposers, 0, chunk, index % 2 == 0, policy=policy)
        assert got == expected, f"setting {index}, batch {batch}, chunk {chunk}"
        assert sum(each.num_drafted for each in stats.proposers) == stats.num_drafted
        assert stats.policy.num_drafted == stats.num_drafted
        for each in stats.proposers:
            assert each.pays_per_depth == (each.name in ("draft", "Paying"))
            drafted[each.name] = drafted.get(each.name, 0) + each.num_drafted
    assert drafted["draft"] + drafted["Paying"] > 0
    assert drafted["HalfRight"] > 0


def test_a_request_chooses_its_proposer_by_name(tiny_path):
    model = smartspec.LLM(tiny_path, num_threads=1).model
    pool = list(enumerate(requests()))[:2]
    expected = {}
    for number, request in pool:
        expected |= serve(model, [(number, request)], batch=1)[0]
    futures = [[*prompt, *expected[n][0]] for n, (prompt, _) in pool]
    proposers = [HalfRight(futures, 1, 1), Paying(futures, 1, 2)]
    engine = core.Engine(model, core.EngineOptions(), None, proposers, core.make_fixed_policy(3))
    for (_, (prompt, params)), name in zip(pool, ("HalfRight", "Paying"), strict=True):
        engine.add_request(prompt, params, proposer=name, max_draft_tokens=2)
    with pytest.raises(ValueError, match="HalfRight, Paying"):
        engine.add_request(*pool[0][1], proposer="nobody")
    with pytest.raises(ValueError, match="tpot_target"):
        engine.add_request(*pool[0][1], tpot_target=float("nan"))
    with pytest.raises(ValueError, match="min_draft_tokens"):
        engine.add_request(*pool[0][1], min_draft_tokens=3, max_draft_tokens=2)
    last = {}
    while engine.has_unfinished():
        last |= {output.id: output.stats for output in engine.step()}
    assert [last[0].proposer, last[1].proposer] == [0, 1]
    for stats in last.values():
        assert stats.num_drafted > 0
        assert sum(stats.length_histogram[3:]) == 0
