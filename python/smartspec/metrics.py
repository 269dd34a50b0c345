# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Figures about requests and engines, under the names that vLLM and its benchmark use."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import smartspec_core as core

from .requests import ActiveRequest


def engine_metrics(stats: core.EngineStats) -> dict[str, float]:
    """Gauges and counters of the engine, its proposers and its policy."""
    result = _engine_counters(stats) | policy_metrics(stats.policy)
    for each in stats.proposers:
        for name, value in (
            ("calls", each.num_calls),
            ("proposed_tokens", each.num_proposed),
            ("verified_tokens", each.num_drafted),
            ("accepted_tokens", each.num_accepted),
            ("seconds", each.seconds),
        ):
            result[f'smartspec:proposer_{name}_total{{proposer="{each.name}"}}'] = value
    return result


def _engine_counters(stats: core.EngineStats) -> dict[str, float]:
    used = stats.kv.num_blocks - stats.kv.num_free
    return {
        "smartspec:num_requests_running": stats.num_running,
        "smartspec:num_requests_waiting": stats.num_waiting,
        "smartspec:kv_cache_usage_perc": used / max(1, stats.kv.num_blocks),
        "smartspec:num_preemptions_total": stats.num_preemptions,
        "smartspec:generation_tokens_total": stats.num_emitted,
        "smartspec:prefix_cache_queries_total": stats.kv.prefix_queries,
        "smartspec:prefix_cache_hits_total": stats.kv.prefix_hits,
        "smartspec:spec_decode_num_draft_tokens_total": stats.num_drafted,
        "smartspec:spec_decode_num_accepted_tokens_total": stats.num_accepted,
        "smartspec:spec_decode_num_invalid_drafts_total": stats.num_invalid_drafts,
        "smartspec:spec_decode_num_proposer_errors_total": stats.num_proposer_errors,
        "smartspec:num_steps_total": stats.num_steps,
        "smartspec:iteration_tokens_total": stats.num_tokens_computed,
        "smartspec:propose_seconds_total": stats.propose_seconds,
        "smartspec:paid_drafting_seconds_total": stats.paid_seconds,
        "smartspec:decision_seconds_total": stats.decision_seconds,
        "smartspec:forward_seconds_total": stats.forward_seconds,
        "smartspec:verify_seconds_total": stats.verify_seconds,
        "smartspec:step_seconds_total": stats.step_seconds,
    }


def policy_metrics(stats: core.PolicyStats) -> dict[str, float]:
    """What the policy believed and what came of it; the histogram's buckets are cumulative, as
    Prometheus has them."""
    result: dict[str, float] = {
        "smartspec:policy_steps_total": stats.num_steps,
        "smartspec:policy_predicted_step_seconds_total": stats.predicted_seconds,
        "smartspec:policy_measured_step_seconds_total": stats.measured_seconds,
        "smartspec:policy_median_step_error_ratio": stats.median_step_error,
        "smartspec:policy_expected_accepted_tokens_total": stats.expected_accepted,
        "smartspec:policy_accepted_tokens_total": stats.num_accepted,
        "smartspec:policy_verified_tokens_total": stats.num_drafted,
        "smartspec:policy_wasted_tokens_total": stats.num_drafted - stats.num_accepted,
        "smartspec:policy_wasted_seconds_total": stats.wasted_seconds,
        "smartspec:policy_probes_total": stats.num_probes,
        "smartspec:policy_regret_ratio": stats.regret,
        "smartspec:policy_decision_seconds_total": stats.decision_seconds,
    }
    name, below = "smartspec:draft_length", 0
    histogram = list(stats.length_histogram)
    for length, count in enumerate(histogram[:-1]):
        below += count
        result[f'{name}_bucket{{le="{length}"}}'] = below
    result[f'{name}_bucket{{le="+Inf"}}'] = result[f"{name}_count"] = sum(histogram)
    result[f"{name}_sum"] = stats.num_drafted
    return result


class ProgressBar:
    """Finished requests and speeds on stderr; silent when that is not a terminal."""

    def __init__(self, total: int, enabled: bool = True, text: str = "Processed prompts") -> None:
        self._bar: Any = None
        self._input = self._output = 0
        if enabled:
            from tqdm import tqdm

            self._start = time.monotonic()
            self._bar = tqdm(total=total, desc=text, disable=None, dynamic_ncols=True, unit="req")

    def update(self, finished: Sequence[ActiveRequest]) -> None:
        if self._bar is None or not finished:
            return
        self._input += sum(len(request.prepared.token_ids) for request in finished)
        self._output += sum(num_output_tokens(request) for request in finished)
        seconds = max(time.monotonic() - self._start, 1e-9)
        self._bar.set_postfix_str(
            f"est. speed input: {self._input / seconds:.0f} toks/s, "
            f"output: {self._output / seconds:.0f} toks/s",
            refresh=False,
        )
        self._bar.update(len(finished))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def num_output_tokens(request: ActiveRequest) -> int:
    return sum(tokens for _, tokens in request.token_times)


def percentile(values: Iterable[float], percent: float) -> float:
    """Linear between the neighbours, as NumPy's default; 0 of nothing."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    rank = (len(ordered) - 1) * percent / 100
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


@dataclass(frozen=True)
class Spread:
    mean: float
    median: float
    p99: float
    std: float = 0.0
    percentiles: dict[str, float] = field(default_factory=dict)  # "p90": value

    @staticmethod
    def of(values: Sequence[float], percents: Sequence[float] = ()) -> Spread:
        mean = sum(values) / len(values) if values else 0.0
        return Spread(
            mean,
            percentile(values, 50),
            percentile(values, 99),
            statistics.pstdev(values) if values else 0.0,
            {f"p{percent:g}": percentile(values, percent) for percent in percents},
        )


@dataclass(frozen=True)
class ServingSummary:
    """Times in seconds. TTFT from the arrival; TPOT is (last - first token) / (tokens - 1); ITL is
    the time between two outputs of a request, which may hold several tokens each."""

    completed: int
    duration: float
    total_input: int
    total_output: int
    request_throughput: float
    output_throughput: float
    total_throughput: float
    ttft: Spread
    tpot: Spread
    itl: Spread
    e2el: Spread
    num_drafted: int
    num_accepted: int
    num_steps: int
    slo_attainment: float | None = None  # share of requests within every target; None: no target

    @property
    def acceptance_rate(self) -> float:
        return self.num_accepted / self.num_drafted if self.num_drafted else 0.0

    @property
    def acceptance_length(self) -> float:
        return 1.0 + self.num_accepted / self.num_steps if self.num_steps else 1.0

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "acceptance_rate": self.acceptance_rate,
            "acceptance_length": self.acceptance_length,
        }


def ttft_of(request: ActiveRequest) -> float:
    return (request.metrics.first_token_time or request.arrival) - request.arrival


def e2el_of(request: ActiveRequest) -> float:
    return (request.metrics.finished_time or request.arrival) - request.arrival


def tpot_of(request: ActiveRequest) -> float | None:
    """None with fewer than two tokens."""
    tokens = num_output_tokens(request)
    if tokens < 2 or len(request.token_times) < 2:
        return None
    return (request.token_times[-1][0] - request.token_times[0][0]) / (tokens - 1)


SLO_METRICS = ("ttft", "tpot", "e2el")


def parse_slos(entries: Sequence[str]) -> dict[str, float]:
    """["ttft:200", "tpot:30"], milliseconds, as vLLM's --goodput; seconds by metric."""
    slos = {}
    for entry in entries:
        name, _, value = entry.partition(":")
        try:
            limit = float(value)
        except ValueError:
            limit = math.nan
        if name not in SLO_METRICS or not 0 < limit < math.inf:
            raise ValueError(
                f"goodput must be NAME:MILLISECONDS with NAME of {', '.join(SLO_METRICS)}, got "
                f"{entry[:80]!r}"
            )
        slos[name] = limit / 1e3
    return slos


def meets(request: ActiveRequest, slos: Mapping[str, float]) -> bool:
    measured = {"ttft": ttft_of(request), "tpot": tpot_of(request) or 0.0, "e2el": e2el_of(request)}
    return all(measured[name] <= limit for name, limit in slos.items())


def summarize(
    requests: Sequence[ActiveRequest],
    duration: float,
    percents: Sequence[float] = (),
    slos: Mapping[str, float] | None = None,
) -> ServingSummary:
    duration = max(duration, 1e-9)
    total_input = sum(len(request.prepared.token_ids) for request in requests)
    total_output = sum(num_output_tokens(request) for request in requests)
    times = [[when for when, _ in request.token_times] for request in requests]
    stats = [request.result().speculation for request in requests]
    return ServingSummary(
        completed=len(requests),
        duration=duration,
        total_input=total_input,
        total_output=total_output,
        request_throughput=len(requests) / duration,
        output_throughput=total_output / duration,
        total_throughput=(total_input + total_output) / duration,
        ttft=Spread.of([ttft_of(request) for request in requests], percents),
        tpot=Spread.of([tpot for r in requests if (tpot := tpot_of(r)) is not None], percents),
        itl=Spread.of([b - a for each in times for a, b in pairwise(each)], percents),
        e2el=Spread.of([e2el_of(request) for request in requests], percents),
        num_drafted=sum(each.num_drafted for each in stats),
        num_accepted=sum(each.num_accepted for each in stats),
        num_steps=sum(each.num_steps for each in stats),
        slo_attainment=sum(meets(r, slos) for r in requests) / max(1, len(requests))
        if slos
        else None,
    )


def benchmark_result(summary: ServingSummary) -> dict[str, float]:
    """Under the names of the JSON that `vllm bench serve` writes; times in milliseconds."""
    result: dict[str, float] = {
        "duration": summary.duration,
        "completed": summary.completed,
        "total_input_tokens": summary.total_input,
        "total_output_tokens": summary.total_output,
        "request_throughput": summary.request_throughput,
        "output_throughput": summary.output_throughput,
        "total_token_throughput": summary.total_throughput,
    }
    if summary.slo_attainment is not None:
        result["request_goodput"] = summary.slo_attainment * summary.request_throughput
        result["slo_attainment_percent"] = 100 * summary.slo_attainment
    for name in ("ttft", "tpot", "itl", "e2el"):
        spread: Spread = getattr(summary, name)
        result[f"mean_{name}_ms"] = 1e3 * spread.mean
        result[f"median_{name}_ms"] = 1e3 * spread.median
        result[f"std_{name}_ms"] = 1e3 * spread.std
        for percent, value in ({"p99": spread.p99} | spread.percentiles).items():
            result[f"{percent}_{name}_ms"] = 1e3 * value
    return result | {
        "spec_decode_acceptance_rate": 100 * summary.acceptance_rate,
        "spec_decode_acceptance_length": summary.acceptance_length,
        "spec_decode_draft_tokens": summary.num_drafted,
        "spec_decode_accepted_tokens": summary.num_accepted,
        "spec_decode_num_steps": summary.num_steps,
    }
