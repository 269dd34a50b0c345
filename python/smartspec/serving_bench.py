# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Sweeps of `smartspec bench serve`: one workload, several policies, rates and concurrencies.

The policies take turns, repetition by repetition and in rotating order, and are compared within a
repetition, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import smartspec_core as core

from .llm import LLM
from .metrics import benchmark_result, summarize
from .sampling_params import SamplingParams
from .serving import (
    ServingRun,
    WorkItem,
    cut_prompts,
    forget,
    gamma_arrivals,
    heldout_sources,
    random_prompts,
    read_trace,
    scale_lengths,
    serve,
)

RECORDED = -1.0  # request rate: arrivals as the trace has them
DATASETS = ("code", "random", "trace")


@dataclass(frozen=True)
class Workload:
    dataset: str = "code"
    path: Path | None = None  # of a trace
    num_prompts: int = 32
    input_len: int = 128  # of code and random prompts
    output_len: int = 128
    max_input_len: int = 512  # of a trace: its lengths are scaled down to these
    max_output_len: int = 128
    temperature: float = 0.0
    ignore_eos: bool = False
    seed: int = 0

    @property
    def longest(self) -> int:
        if self.dataset == "trace":
            return self.max_input_len + self.max_output_len
        return self.input_len + self.output_len


@dataclass(frozen=True)
class BenchRequests:
    """What is served, the same in every cell; arrivals are of a trace."""

    items: list[WorkItem]
    recorded: list[float] | None = None

    def arriving(self, rate: float, burstiness: float, seed: int) -> list[WorkItem]:
        count = len(self.items)
        if rate == float("inf"):
            times = [0.0] * count
        elif self.recorded is None:
            times = gamma_arrivals(count, rate, burstiness, random.Random(seed))
        else:
            span = self.recorded[-1]
            scale = 1.0 if rate == RECORDED or span <= 0 else (count - 1) / rate / span
            times = [scale * time for time in self.recorded]
        return [
            WorkItem(item.token_ids, item.params, time)
            for item, time in zip(self.items, times, strict=True)
        ]


def make_requests(llm: LLM, work: Workload) -> BenchRequests:
    rng = random.Random(work.seed)
    recorded = None
    inputs, outputs = [work.input_len] * work.num_prompts, [work.output_len] * work.num_prompts
    if work.dataset == "trace":
        if work.path is None:
            raise ValueError("--dataset trace needs --dataset-path")
        rows = read_trace(work.path, work.num_prompts)
        recorded = [row.arrival for row in rows]
        inputs = scale_lengths([row.num_input for row in rows], work.max_input_len)
        outputs = scale_lengths([row.num_output for row in rows], work.max_output_len)
    if work.dataset == "random":
        prompts = random_prompts(llm.model_config.vocab_size, inputs, rng)
    else:
        sources = list(heldout_sources().values())
        if not sources:
            raise ValueError(
                f"--dataset {work.dataset}: this Python has none of the held-out files that the "
                "prompts are cut from; use random"
            )
        prompts = cut_prompts(sources, llm.get_tokenizer(), inputs, rng)
    items = [
        WorkItem(
            prompt,
            SamplingParams(
                temperature=work.temperature,
                seed=work.seed + i,
                max_tokens=length,
                ignore_eos=work.ignore_eos,
            ),
        )
        for i, (prompt, length) in enumerate(zip(prompts, outputs, strict=True))
    ]
    return BenchRequests(items, recorded)


@dataclass(frozen=True)
class Cell:
    """One point of the sweep; rate infinite: all at once, RECORDED: as the trace has it."""

    rate: float = float("inf")
    burstiness: float = 1.0
    max_concurrency: int | None = None

    @property
    def rate_text(self) -> str:
        return "trace" if self.rate == RECORDED else f"{self.rate:g}"

    def __str__(self) -> str:
        rate = {"trace": "as recorded", "inf": "all at once"}.get(
            self.rate_text, f"{self.rate_text} requests/s"
        )
        if self.burstiness != 1 and self.rate > 0 and self.rate != float("inf"):
            rate += f", burstiness {self.burstiness:g}"
        limit = self.max_concurrency
        return rate if limit is None else f"{rate}, at most {limit} at a time"


@dataclass
class PolicyResult:
    """Medians over the repetitions, and throughput against the others within a repetition."""

    runs: list[dict[str, float]] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)

    @property
    def medians(self) -> dict[str, float]:
        return {name: statistics.median(run[name] for run in self.runs) for name in self.runs[0]}

    def to_json(self) -> dict[str, Any]:
        return {**self.medians, "throughput_ratios": self.ratios, "repetitions": self.runs}


@dataclass
class CellResult:
    cell: Cell
    policies: dict[str, PolicyResult]
    differing: list[str] = field(default_factory=list)  # policies whose tokens differ

    def best_other(self, name: str) -> str | None:
        """The policy with the highest throughput beside `name`."""
        others = {k: v.medians["output_throughput"] for k, v in self.policies.items() if k != name}
        return max(others, key=lambda other: others[other]) if others else None

    def to_json(self) -> dict[str, Any]:
        rate = self.cell.rate
        return {
            "request_rate": rate if 0 < rate < float("inf") else self.cell.rate_text,
            "burstiness": self.cell.burstiness,
            "max_concurrency": self.cell.max_concurrency,
            "identical_outputs": not self.differing,
            "policies": {name: result.to_json() for name, result in self.policies.items()},
        }


@dataclass(frozen=True)
class Measuring:
    repetitions: int = 1
    percents: Sequence[float] = (50, 90, 99)
    slos: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0


def warm_up(engines: Mapping[str, LLM], requests: BenchRequests, count: int) -> None:
    """The last requests come first; then what they left behind is forgotten, not what a policy
    has learnt about costs."""
    for llm in engines.values():
        if count > 0:
            serve(llm, requests.items[-count:])
        forget(llm)


def run_cell(
    engines: Mapping[str, LLM],
    requests: BenchRequests,
    cell: Cell,
    measuring: Measuring,
    reset: Callable[[LLM], None] = forget,
    watch: Callable[[ServingRun], None] | None = None,
) -> CellResult:
    """`reset` after every run; `watch` sees each."""
    names = list(engines)
    result = CellResult(cell, {name: PolicyResult() for name in names})
    items = requests.arriving(cell.rate, cell.burstiness, measuring.seed)
    expected: list[list[int]] | None = None
    for repetition in range(measuring.repetitions):
        turn = repetition % len(names)
        for name in names[turn:] + names[:turn]:
            before = engines[name].engine.stats()
            run = serve(engines[name], items, cell.max_concurrency, f"{cell}: {name}")
            after = engines[name].engine.stats()
            reset(engines[name])
            if watch is not None:
                watch(run)
            summary = summarize(run.requests, run.duration, measuring.percents, measuring.slos)
            result.policies[name].runs.append(
                benchmark_result(summary) | _engine_result(before, after)
            )
            tokens = _tokens(run)
            expected = tokens if expected is None else expected
            if tokens != expected and name not in result.differing:
                result.differing.append(name)
    for name, policy in result.policies.items():
        policy.ratios = {
            other: _ratio(policy, result.policies[other]) for other in names if other != name
        }
    return result


def _engine_result(before: core.EngineStats, after: core.EngineStats) -> dict[str, float]:
    """What the engine did in between, and what its policy expected of it."""
    steps = after.num_steps - before.num_steps
    seconds = after.step_seconds - before.step_seconds
    decision = after.decision_seconds - before.decision_seconds
    was, now = before.policy, after.policy
    predicted = now.predicted_seconds - was.predicted_seconds
    measured = now.measured_seconds - was.measured_seconds
    return {
        "num_engine_steps": steps,
        "mean_step_ms": 1e3 * seconds / max(1, steps),
        "mean_decision_us": 1e6 * decision / max(1, steps),
        "num_preemptions": after.num_preemptions - before.num_preemptions,
        "policy_predicted_per_measured_seconds": predicted / measured if measured > 0 else 0.0,
        "policy_median_step_error": now.median_step_error,
        "policy_expected_accepted_tokens": now.expected_accepted - was.expected_accepted,
        "policy_probes": now.num_probes - was.num_probes,
        "policy_regret": now.regret,
    }


def _tokens(run: ServingRun) -> list[list[int]]:
    return [request.result().outputs[0].token_ids for request in run.requests]


def _ratio(mine: PolicyResult, other: PolicyResult) -> float:
    key = "output_throughput"
    return statistics.median(
        a[key] / max(b[key], 1e-9) for a, b in zip(mine.runs, other.runs, strict=True)
    )


_COLUMNS = (
    ("tokens/s", "output_throughput", 9, 0),
    ("TTFT mean", "mean_ttft_ms", 11, 1),
    ("p99 ms", "p99_ttft_ms", 9, 1),
    ("TPOT mean", "mean_tpot_ms", 11, 2),
    ("p99 ms", "p99_tpot_ms", 9, 2),
    ("E2EL mean", "mean_e2el_ms", 11, 0),
    ("p99 ms", "p99_e2el_ms", 9, 0),
    ("accept len", "spec_decode_acceptance_length", 12, 2),
)


def table(result: CellResult) -> str:
    """A row per policy; the last columns compare throughput with the first policy and with the
    best of the others."""
    first = next(iter(result.policies))
    with_slo = "slo_attainment_percent" in result.policies[first].runs[0]
    head = f"{'policy':<16}" + "".join(f"{title:>{width}}" for title, _, width, _ in _COLUMNS)
    head += f"{'SLO %':>8}" if with_slo else ""
    compare = len(result.policies) > 1
    head += f"{'/ ' + first[:9]:>12}{'/ best other':>14}" if compare else ""
    lines = [str(result.cell), "", head, "-" * len(head)]
    for name, policy in result.policies.items():
        medians = policy.medians
        line = f"{name:<16}"
        line += "".join(f"{medians[key]:>{width}.{d}f}" for _, key, width, d in _COLUMNS)
        line += f"{medians['slo_attainment_percent']:>8.1f}" if with_slo else ""
        if compare:
            other = result.best_other(name)
            assert other is not None
            line += f"{policy.ratios.get(first, 1.0):>12.3f}{policy.ratios[other]:>14.3f}"
        lines.append(line)
    if result.differing:
        lines += ["", f"FAILED: the tokens of {', '.join(result.differing)} differ"]
    return "\n".join(lines)
