# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Proposers written in Python, good and hostile: no output ever changes, nothing crashes."""

from __future__ import annotations

import gc
import math
import random
import weakref

import numpy as np
import pytest
import smartspec
import smartspec_core as core
from smartspec import Proposer, SamplingParams, Speculation, TokenTree

PROMPTS = [[1, 2, 3, 4], [7] * 20, [90, 4, 5]]
PARAMS = [
    SamplingParams(temperature=0.0, max_tokens=25),
    SamplingParams(temperature=0.9, seed=4, max_tokens=25, logprobs=1),
    SamplingParams(temperature=0.8, seed=5, max_tokens=25, n=2, repetition_penalty=1.2),
]


def run(path, proposer, max_tokens=4):
    engine = smartspec.LLM(
        path, speculation=Speculation(proposer, max_tokens=max_tokens), num_threads=1
    )
    outputs = engine.generate(PROMPTS, PARAMS, use_tqdm=False)
    assert engine.engine.check_integrity() == ""
    stats = engine.engine.stats()
    assert stats.kv.num_free == stats.kv.num_blocks
    return [[(o.token_ids, o.logprobs) for o in each.outputs] for each in outputs], stats, outputs


@pytest.fixture(scope="module")
def expected(tiny_path):
    return run(tiny_path, "off")[0]


class Oracle(Proposer):
    """Knows what will come, and sometimes lies."""

    def __init__(self, sequences):
        super().__init__()
        self.sequences = sequences
        self.rng = random.Random(0)
        self.outcomes = []
        self.finished = []

    def propose(self, requests):
        trees = []
        for request in requests:
            tokens = request.tokens.tolist()
            assert request.tokens.dtype == np.int32
            assert request.max_nodes >= request.max_depth >= 1
            known = next((s for s in self.sequences if s[: len(tokens)] == tokens), None)
            if known is None:
                trees.append(None)
                continue
            future = known[len(tokens) : len(tokens) + request.max_depth]
            if self.rng.random() < 0.3 and future:
                future[-1] = (future[-1] + 1) % 96
            trees.append(future)
        return trees

    def observe(self, outcomes):
        for outcome in outcomes:
            accepted = [outcome.tree.tokens[node] for node in outcome.accepted_path]
            assert outcome.emitted[: len(accepted)] == accepted
            self.outcomes.append(outcome)

    def finish(self, request_id):
        self.finished.append(request_id)


def test_a_good_proposer(tiny_path, expected):
    sequences = [
        prompt + tokens
        for prompt, each in zip(PROMPTS, expected, strict=True)
        for tokens, _ in each
    ]
    oracle = Oracle(sequences)
    got, stats, outputs = run(tiny_path, oracle)
    assert got == expected
    assert stats.num_proposer_errors == stats.num_invalid_drafts == 0
    assert stats.num_accepted > 60
    assert outputs[0].speculation.acceptance_length > 2
    assert outputs[0].speculation.num_accepted <= outputs[0].speculation.num_drafted
    assert len(oracle.finished) == 4
    assert len(oracle.outcomes) > 10


class Junk(Proposer):
    """Random trees, all valid."""

    def __init__(self):
        super().__init__()
        self.rng = random.Random(1)

    def propose(self, requests):
        trees = []
        for request in requests:
            tree = TokenTree()
            chances = []
            for i in range(self.rng.randint(0, request.max_nodes)):
                parent = self.rng.randint(-1, i - 1)
                bound = 1.0 if parent < 0 else chances[parent]
                if parent >= 0 and tree.depths[parent] + 1 >= request.max_depth:
                    parent, bound = -1, 1.0
                chances.append(np.float32(self.rng.random()) * np.float32(bound))
                tree.add(self.rng.randrange(96), parent, chances[-1])
            trees.append(tree)
        return trees


def test_a_junk_proposer(tiny_path, expected):
    got, stats, _ = run(tiny_path, Junk())
    assert got == expected
    assert stats.num_drafted > 100
    assert stats.num_proposer_errors == stats.num_invalid_drafts == 0


def cyclic():
    tree = TokenTree([1, 2, 3])
    tree.parents = [2, 0, 1]
    return tree


def ragged():
    tree = TokenTree([1, 2, 3])
    tree.survival = [1.0]
    return tree


def wrong_depths():
    tree = TokenTree([1, 2, 3])
    tree.depths = [0, 7, -1]
    return tree


def raising(error):
    def propose(_requests):
        raise error

    return propose


INVALID_TREES = {
    "out of vocabulary": lambda r: [[96]] * len(r),
    "negative": lambda r: [[5, -1]] * len(r),
    "huge id": lambda r: [[2**31 - 1]] * len(r),
    "cyclic parents": lambda r: [cyclic()] * len(r),
    "ragged arrays": lambda r: [ragged()] * len(r),
    "wrong depths": lambda r: [wrong_depths()] * len(r),
    "nan survival": lambda r: [TokenTree([1, 2], survival=[math.nan, 0.5])] * len(r),
    "survival above one": lambda r: [TokenTree([1], survival=[3.0])] * len(r),
    "rising survival": lambda r: [TokenTree([1, 2], survival=[0.1, 0.9])] * len(r),
    "far too long": lambda r: [[1] * 100_000] * len(r),
}
ERRORS = {
    "throws": raising(RuntimeError("broken")),
    "throws SystemExit": raising(SystemExit(3)),
    "throws nothing sensible": raising(MemoryError()),
    "not a list": lambda _: 7,
    "a dict": lambda r: {i: [1] for i in range(len(r))},
    "None": lambda _: None,
    "too few": lambda r: [[1]] * (len(r) - 1),
    "too many": lambda r: [[1]] * (len(r) + 1),
    "strings": lambda r: ["abc"] * len(r),
    "floats": lambda r: [[1.5]] * len(r),
    "objects": lambda r: [object()] * len(r),
    "beyond 64 bits": lambda r: [[10**40]] * len(r),
    "wrong array": lambda r: [np.array([1.0, 2.0])] * len(r),
    "two dimensions": lambda r: [np.zeros((2, 2), np.int32)] * len(r),
}


def hostile(behaviour):
    class Hostile(Proposer):
        def propose(self, requests):
            return behaviour(requests)

    return Hostile()


@pytest.mark.parametrize("name", INVALID_TREES)
def test_invalid_trees_are_dropped_and_counted(tiny_path, expected, name):
    got, stats, outputs = run(tiny_path, hostile(INVALID_TREES[name]))
    assert got == expected
    assert stats.num_drafted == 0
    assert stats.num_invalid_drafts > 0
    assert outputs[0].speculation.num_drafted == 0


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_counted(tiny_path, expected, name):
    got, stats, _ = run(tiny_path, hostile(ERRORS[name]))
    assert got == expected
    assert stats.num_drafted == 0
    assert stats.num_proposer_errors > 0
    assert "Proposer.propose" in stats.last_proposer_error


def test_reason_tells_the_request(tiny_path):
    def clueless(_requests):
        raise ValueError("no idea")

    spec = Speculation(hostile(clueless), policy="fixed")
    engine = smartspec.LLM(tiny_path, speculation=spec, num_threads=1)
    stream = engine.stream([1, 2, 3], SamplingParams(max_tokens=6, ignore_eos=True))
    reasons = [part.outputs[0].speculation.reason for part in stream]
    assert "proposer_error" in reasons
    assert "no idea" in engine.engine.stats().last_proposer_error


def test_observe_and_finish_may_throw(tiny_path, expected):
    class Thrower(Proposer):
        def propose(self, requests):
            return [[1, 2]] * len(requests)

        def observe(self, _outcomes):
            raise RuntimeError("observe")

        def finish(self, _request_id):
            raise RuntimeError("finish")

    got, stats, _ = run(tiny_path, Thrower())
    assert got == expected
    assert stats.num_proposer_errors > 0


def test_a_class_without_propose(tiny_path, expected):
    class Empty(Proposer):
        pass

    got, stats, _ = run(tiny_path, Empty())
    assert got == expected
    assert "does not define it" in stats.last_proposer_error
    with pytest.raises(core.Error, match="does not define it"):
        Empty().propose([])


def test_calling_the_engine_from_inside_a_step(tiny_path, expected):
    class Reentrant(Proposer):
        llm: smartspec.LLM
        errors = 0

        def propose(self, requests):
            for call in (self.llm.engine.step, self.llm.engine.stats):
                with pytest.raises(ValueError, match="inside its own step"):
                    call()
                self.errors += 1
            return [None] * len(requests)

    proposer = Reentrant()
    engine = smartspec.LLM(
        tiny_path, speculation=Speculation(proposer, policy="fixed"), num_threads=1
    )
    proposer.llm = engine
    outputs = engine.generate(PROMPTS[:1], PARAMS[:1], use_tqdm=False)
    assert outputs[0].outputs[0].token_ids == expected[0][0][0]
    assert proposer.errors >= 2
    assert engine.engine.stats().num_proposer_errors == 0
    proposer.llm = None


def test_requests_may_be_kept(tiny_path, expected):
    class Hoarder(Proposer):
        def __init__(self):
            super().__init__()
            self.kept = []

        def propose(self, requests):
            self.kept += [(request, request.tokens) for request in requests]
            requests.clear()
            return [None] * 0

    hoarder = Hoarder()
    got, _, _ = run(tiny_path, hoarder)
    assert got == expected
    for request, tokens in hoarder.kept:
        assert tokens[: request.num_prompt_tokens].tolist() in PROMPTS
        assert request.sampling.max_tokens == 25


def test_engine_keeps_its_proposer_alive(tiny_path):
    class Mine(Proposer):
        calls = 0

        def propose(self, requests):
            Mine.calls += 1
            return [[1]] * len(requests)

    engine = smartspec.LLM(
        tiny_path, speculation=Speculation(Mine(), policy="fixed"), num_threads=1
    )
    proposer = weakref.ref(engine.speculation.proposer)
    object.__setattr__(engine.speculation, "proposer", "off")
    gc.collect()
    engine.generate(PROMPTS, PARAMS, use_tqdm=False)
    assert Mine.calls > 5
    assert proposer() is not None
    del engine
    gc.collect()
    assert proposer() is None


def test_native_proposers_stand_alone():
    lookup = core.PromptLookupProposer(3, 1)
    assert lookup.name
    request = core.ProposeRequest(1, [5, 6, 7, 8, 5, 6], max_depth=2)
    (tree,) = lookup.propose([request])
    assert tree.tokens == [7, 8]
    assert tree.parents == [-1, 0]
    assert lookup.propose([core.ProposeRequest(2, [1, 2, 3], max_depth=4)])[0].tokens == []
    for bad in ({"max_depth": 0}, {"max_depth": 2, "max_nodes": 1}):
        with pytest.raises(ValueError, match="max_depth"):
            core.ProposeRequest(1, [1], **bad)
