# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Runs scenarios under policies, in virtual time, and sums up how the policies compare.

A simulation ranks policies. It says nothing about a device of which it has no measured costs.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import smartspec_core as core

from .scenarios import HOMOGENEOUS, MAX_DEPTH, Cell, Cost, Jump, Service
from .serving import TraceRow, gamma_arrivals

ORACLE = "oracle"
UNIFORM = "uniform"  # the best fixed length of the cell, in hindsight
GRID_POLICIES = (
    "off", "fixed:1", "fixed:3", "fixed:5", "fixed:7", UNIFORM, "turbospec", "table", "full-draft",
    "auto",
)  # fmt: skip
RATE_POLICIES = ("off", "fixed:1", "fixed:3", "fixed:5", "fixed:7", "turbospec", "auto", ORACLE)
JUMP_POLICIES = ("off", "turbospec", "table", "full-draft", "auto")
WINDOWS = ((-100, 0), (0, 20), (20, 100), (100, 400))  # steps after a jump
_VLLM_TABLE = [(1, 64, 3), (65, 128, 1), (129, 512, 0)]  # of its documentation

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Progress = Callable[[int, int], None]


def make_policy(name: str, cost: Cost) -> core.LengthPolicy | None:
    """None: the oracle. Lengths are at most MAX_DEPTH. ValueError when there is no such policy."""
    kind, _, number = name.partition(":")
    if kind == "fixed" and number.isdigit() and 0 <= int(number) <= MAX_DEPTH:
        return core.make_fixed_policy(int(number)) if int(number) else core.make_off_policy()
    if name == "turbospec":
        turbo = core.TurboSpecOptions()
        turbo.max_tokens = MAX_DEPTH
        turbo.overhead = cost.overhead
        turbo.target, turbo.draft = cost.target, cost.draft
        return core.make_turbospec_policy(turbo)
    if name == "auto":
        goodput = core.GoodputOptions()
        goodput.max_depth = goodput.max_paid_depth = MAX_DEPTH
        goodput.target, goodput.draft = cost.target, cost.draft
        return core.make_goodput_policy(goodput)
    makers: dict[str, Callable[[], core.LengthPolicy | None]] = {
        ORACLE: lambda: None,
        "off": core.make_off_policy,
        "table": lambda: core.make_table_policy(_VLLM_TABLE),
        "full-draft": lambda: core.make_full_draft_policy(MAX_DEPTH, cost.target),
        "specdec++": lambda: core.make_threshold_policy(MAX_DEPTH),
        "disco": lambda: core.make_disco_policy(MAX_DEPTH),
        "tetris": lambda: core.make_tetris_policy(MAX_DEPTH, 256),
        "ddd": lambda: core.make_dynamic_depth_policy(MAX_DEPTH),
    }
    if name not in makers:
        known = ", ".join([*makers, f"fixed:0 to fixed:{MAX_DEPTH}", UNIFORM, "turbospec", "auto"])
        raise ValueError(f"policy must be one of {known}; got {name!r}")
    return makers[name]()


def check_policies(names: Iterable[str], cost: Cost) -> None:
    for name in names:
        if name != UNIFORM:
            make_policy(name, cost)


@dataclass(frozen=True)
class Recorder:
    """Writes the decisions of every run to a file of its own, with what made them beside it."""

    directory: Path

    def run(
        self, options: core.SimulationOptions, policy: str, cost: Cost, name: str
    ) -> core.SimulationResult:
        made = make_policy(policy, cost)
        if made is None:
            return core.simulate(options, None)
        self.directory.mkdir(parents=True, exist_ok=True)
        safe = "".join(c if c.isalnum() or c in ".-+" else "_" for c in f"{name}_{policy}")
        path = self.directory / f"{safe}.trace"
        recording = core.make_recording_policy(made, path)
        result = core.simulate(options, recording)
        core.finish_recording(recording)
        note = {"scenario": name, "policy": policy, "cost": cost.name, "seed": options.seed}
        path.with_suffix(".json").write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
        return result


def _simulate(
    options: core.SimulationOptions, policy: str, cost: Cost, name: str, recorder: Recorder | None
) -> core.SimulationResult:
    if recorder is not None:
        return recorder.run(options, policy, cost, name)
    return core.simulate(options, make_policy(policy, cost))


def in_threads(
    job: Callable[[Item], Answer], items: Sequence[Item], progress: Progress | None = None
) -> list[Answer]:
    """Simulations leave the interpreter's lock, so threads are enough."""
    answers = []
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for i, answer in enumerate(pool.map(job, items)):
            answers.append(answer)
            if progress is not None:
                progress(i + 1, len(items))
    return answers


# The grid.


@dataclass(frozen=True)
class CellResult:
    cell: Cell
    goodput: Mapping[str, float]  # tokens a second, by policy; the oracle's among them
    best_length: int  # of fixed ones

    def share(self, policy: str, of: str = ORACLE) -> float:
        return self.goodput[policy] / self.goodput[of]


def run_cell(
    cell: Cell, policies: Sequence[str], steps: int, seed: int, recorder: Recorder | None = None
) -> CellResult:
    options = cell.options(steps, seed)
    wanted = {*policies, "off", ORACLE} - {UNIFORM}
    lengths = range(MAX_DEPTH + 1) if UNIFORM in policies else ()
    wanted |= {f"fixed:{k}" if k else "off" for k in lengths}
    goodput = {
        name: _simulate(options, name, cell.cost, cell.name, recorder).goodput
        for name in sorted(wanted)
    }
    best = -1
    if lengths:
        best = max(lengths, key=lambda k: goodput[f"fixed:{k}" if k else "off"])
        goodput[UNIFORM] = goodput[f"fixed:{best}" if best else "off"]
    return CellResult(cell, goodput, best)


def run_grid(
    cells: Sequence[Cell], policies: Sequence[str], steps: int, seed: int,
    progress: Progress | None = None, recorder: Recorder | None = None,
) -> list[CellResult]:  # fmt: skip
    return in_threads(lambda cell: run_cell(cell, policies, steps, seed, recorder), cells, progress)


@dataclass(frozen=True)
class GridSummary:
    """Shares over all cells; `of_uniform`: over those where all requests are alike and stay so."""

    mean: float
    worst: float
    worst_cell: str
    of_uniform: float  # nan: not run
    of_uniform_worst: float
    of_off_worst: float


def summarize(results: Sequence[CellResult], policy: str) -> GridSummary:
    shares = [result.share(policy) for result in results]
    worst = int(np.argmin(shares))
    alike = [
        result.share(policy, UNIFORM)
        for result in results
        if UNIFORM in result.goodput and result.cell.shape.name in HOMOGENEOUS
    ]
    return GridSummary(
        mean=float(np.mean(shares)),
        worst=shares[worst],
        worst_cell=results[worst].cell.name,
        of_uniform=float(np.mean(alike)) if alike else math.nan,
        of_uniform_worst=min(alike, default=math.nan),
        of_off_worst=min(result.share(policy, "off") for result in results),
    )


# Jumps.


@dataclass
class JumpResult:
    jump: Jump
    # [2 jumps, windows] of the oracle's goodput, all seeds together
    shares: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    # [steps] nodes verified per request, mean over the seeds
    lengths: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)


def run_jumps(
    jumps: Sequence[Jump], policies: Sequence[str], seeds: int, seed: int,
    progress: Progress | None = None, recorder: Recorder | None = None,
) -> list[JumpResult]:  # fmt: skip
    names = list(dict.fromkeys([*policies, ORACLE]))
    jobs = [(jump, name, n) for jump in jumps for name in names for n in range(seeds)]

    def job(item: tuple[Jump, str, int]) -> tuple[Any, Any]:
        jump, name, n = item
        keep = recorder if n == 0 else None
        steps = _simulate(jump.options(seed + n), name, jump.cell.cost, jump.name, keep).steps
        lengths = steps["num_verified"] / np.maximum(steps["num_decodes"], 1)
        sums = [
            (steps["expected_emitted"][part].sum(), steps["seconds"][part].sum())
            for start in (jump.first, jump.back)
            for part in (slice(start + first, start + last) for first, last in WINDOWS)
        ]
        return np.array(sums), lengths

    answers = in_threads(job, jobs, progress)
    results = []
    for i, jump in enumerate(jumps):
        result = JumpResult(jump)
        rates = {}
        for j, name in enumerate(names):
            first = (i * len(names) + j) * seeds
            of_seeds = answers[first : first + seeds]
            sums = np.sum([sums for sums, _ in of_seeds], axis=0)
            rates[name] = (sums[:, 0] / sums[:, 1]).reshape(2, len(WINDOWS))
            result.lengths[name] = np.mean([lengths for _, lengths in of_seeds], axis=0)
        result.shares = {name: rates[name] / rates[ORACLE] for name in names}
        results.append(result)
    return results


# Servers that requests arrive at.


@dataclass(frozen=True)
class Latencies:
    """Seconds; percentiles are of requests (of gaps for the inter-token latency)."""

    mean_latency: float
    p99_latency: float
    mean_ttft: float
    p99_ttft: float
    mean_tpot: float
    p99_tpot: float
    median_itl: float
    p99_itl: float
    tokens_per_second: float
    verified_per_token: float  # draft nodes per emitted token
    num_preemptions: int

    @classmethod
    def of(cls, result: core.SimulationResult) -> Latencies:
        requests = result.requests
        latency = requests["finish"] - requests["arrival"]
        ttft = requests["first_token"] - requests["arrival"]
        outputs = requests["num_output_tokens"]
        several = outputs > 1
        spans = requests["finish"] - requests["first_token"]
        tpot = spans[several] / (outputs[several] - 1) if several.any() else np.zeros(1)
        gaps = result.output_gaps if len(result.output_gaps) else np.zeros(1)
        return cls(
            mean_latency=float(latency.mean()),
            p99_latency=float(np.percentile(latency, 99)),
            mean_ttft=float(ttft.mean()),
            p99_ttft=float(np.percentile(ttft, 99)),
            mean_tpot=float(tpot.mean()),
            p99_tpot=float(np.percentile(tpot, 99)),
            median_itl=float(np.median(gaps)),
            p99_itl=float(np.percentile(gaps, 99)),
            tokens_per_second=result.num_emitted / result.seconds,
            verified_per_token=result.num_verified / max(result.num_emitted, 1),
            num_preemptions=result.num_preemptions,
        )


@dataclass(frozen=True)
class Work:
    """Requests: when they come, what they bring, what they want."""

    arrivals: np.ndarray[Any, Any]  # float64, seconds
    prompts: np.ndarray[Any, Any]  # int32, tokens
    outputs: np.ndarray[Any, Any]

    @classmethod
    def sharegpt_like(cls, rate: float, seconds: float, burstiness: float, seed: int) -> Work:
        """Lognormal lengths with about the means of vLLM's ShareGPT sample, 220 and 200 tokens."""
        rng = random.Random(seed)
        count = max(round(rate * seconds), 64)
        times = gamma_arrivals(count, rate, burstiness, rng)
        prompts = [_lognormal(rng, 110, 1.2, 1024) for _ in range(count)]
        outputs = [_lognormal(rng, 130, 1.0, 1024) for _ in range(count)]
        return cls(np.array(times), np.array(prompts, np.int32), np.array(outputs, np.int32))

    @classmethod
    def of_rows(cls, rows: Sequence[TraceRow], speedup: float) -> Work:
        return cls(
            np.array([row.arrival / speedup for row in rows]),
            np.array([max(row.num_input, 1) for row in rows], np.int32),
            np.array([max(row.num_output, 1) for row in rows], np.int32),
        )

    def at_rate(self, rate: float, burstiness: float, seed: int) -> Work:
        times = gamma_arrivals(len(self.arrivals), rate, burstiness, random.Random(seed))
        return Work(np.array(times), self.prompts, self.outputs)


def _lognormal(rng: random.Random, median: float, deviation: float, most: int) -> int:
    return min(max(round(rng.lognormvariate(math.log(median), deviation)), 4), most)


@dataclass(frozen=True)
class RateResult:
    service: Service
    rate: float
    latencies: Mapping[str, Latencies]  # by policy

    def gain(self, policy: str) -> float:
        """How many times lower than without speculation the mean latency is."""
        return self.latencies["off"].mean_latency / self.latencies[policy].mean_latency


def run_services(
    services: Sequence[Service], policies: Sequence[str], seed: int,
    work: Callable[[Service, float], Work], progress: Progress | None = None,
    recorder: Recorder | None = None,
) -> list[RateResult]:  # fmt: skip
    names = list(dict.fromkeys(["off", *policies]))
    places = [(service, rate) for service in services for rate in service.rates]
    jobs = [(service, rate, name) for service, rate in places for name in names]

    def job(item: tuple[Service, float, str]) -> Latencies:
        service, rate, name = item
        options = service.options(seed)
        given = work(service, rate)
        options.set_requests(given.arrivals, given.prompts, given.outputs)
        title = f"{service.title}, {rate:g} per s"
        return Latencies.of(_simulate(options, name, service.cost, title, recorder))

    answers = in_threads(job, jobs, progress)
    size = len(names)
    return [
        RateResult(service, rate, dict(zip(names, answers[i * size : (i + 1) * size], strict=True)))
        for i, (service, rate) in enumerate(places)
    ]


# Recorded decisions.


def replay(path: Path, policies: Sequence[str], known: Mapping[str, Cost]) -> dict[str, Any]:
    """Shows a recorded run to each policy; by policy, in how many decisions it differs."""
    note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    if note.get("cost") not in known:
        raise ValueError(
            f"{path}: recorded with the cost {note.get('cost')!r}; give it with --cost"
        )
    cost = known[note["cost"]]
    answers = {}
    for name in policies or [note["policy"]]:
        made = make_policy(name, cost)
        if made is None:
            raise ValueError("the oracle needs the simulation, it cannot replay")
        answers[name] = core.replay(path, made)
    return answers
