# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Replays workloads through suffix proposers: ArcticInference's SuffixDecodingCache and ours.

Replay: the first token of a response is free; then each step drafts, accepts the longest path that
equals the true continuation, and gains one token more. What a replayed request added to the history
is taken out again (--keep leaves it in). Times are CPU time of the calling thread and hold
Python's share. The reference is skipped with a message where arctic_inference cannot be imported.

    python bench/python/suffix_vs_reference.py --new NEWER_STDLIB [--answers 8B 70B] [--large]
"""

from __future__ import annotations

import argparse
import bisect
import dataclasses
import gc
import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from suffix_arms import (
    MODULES,
    Arm,
    CacheArm,
    Drafted,
    Options,
    available,
    cpu_ns,
    fill,
    make_arm,
    reference_options,
)
from suffix_costs import run_costs
from suffix_workloads import Request, add_arguments, build_all, read_workload

THRESHOLDS = (0.85, 0.7, 0.55, 0.45, 0.35, 0.28, 0.22, 0.17, 0.13, 0.1, 0.07, 0.05, 0.03)
MATCH_BUCKETS = (2, 4, 8, 16, 32)
BINS = 10


@dataclasses.dataclass
class Tally:
    """What one replay counted. Claims: one number per token, with whether it was right."""

    steps: int = 0
    output: int = 0
    accepted: int = 0
    drafted: int = 0
    # Of a token given that the path to its parent was right; only where it was.
    token_claims: list[float] = dataclasses.field(default_factory=list)
    token_hits: list[bool] = dataclasses.field(default_factory=list)
    # Of whole paths, every drafted token.
    path_claims: list[float] = dataclasses.field(default_factory=list)
    path_hits: list[bool] = dataclasses.field(default_factory=list)
    draft_ns: list[int] = dataclasses.field(default_factory=list)
    match_lengths: list[int] = dataclasses.field(default_factory=list)
    update_ns: int = 0
    start_ns: int = 0
    prompt_tokens: int = 0

    @property
    def tokens_per_step(self) -> float:
        return self.output / self.steps

    @property
    def accepted_per_step(self) -> float:
        return self.accepted / self.steps

    @property
    def drafted_per_step(self) -> float:
        return self.drafted / self.steps

    @property
    def drafted_per_output(self) -> float:
        return self.drafted / self.output

    def count(self, draft: Drafted, truth: Sequence[int]) -> int:
        """Scores a draft against what really followed; returns the number of accepted tokens."""
        accepted = 0
        on_path = {-1}
        depth = {-1: 0}
        for i, (token, parent) in enumerate(zip(draft.tokens, draft.parents, strict=True)):
            depth[i] = depth[parent] + 1
            if depth[i] > len(truth):  # past the end of the response: nobody knows
                continue
            hit = parent in on_path and token == truth[depth[i] - 1]
            if parent in on_path:
                before = draft.survival[parent] if parent >= 0 else 1.0
                self.token_claims.append(draft.survival[i] / before)
                self.token_hits.append(hit)
            self.path_claims.append(draft.survival[i])
            self.path_hits.append(hit)
            if hit:
                on_path.add(i)
                accepted = max(accepted, depth[i])
        self.drafted += len(draft.tokens)
        self.accepted += accepted
        return accepted


def replay(arm: Arm, requests: Sequence[Request], first_id: int, keep: bool) -> Tally:
    tally = Tally()
    for request_id, request in enumerate(requests, first_id):
        text = np.concatenate([request.prompt, request.response])
        words: list[int] = text.tolist()
        at = len(request.prompt)
        before = cpu_ns()
        arm.start(request_id, request.prompt)
        tally.start_ns += cpu_ns() - before
        tally.prompt_tokens += at
        take = 1
        while True:
            new = words[at : at + take]
            before = cpu_ns()
            arm.update(request_id, new)
            tally.update_ns += cpu_ns() - before
            at += take
            tally.steps += 1
            tally.output += take
            if at == len(words):
                break
            context = text[max(0, at - arm.context) : at]
            before = cpu_ns()
            draft = arm.draft(request_id, context)
            tally.draft_ns.append(cpu_ns() - before)
            tally.match_lengths.append(draft.match_length)
            take = min(tally.count(draft, words[at : at + 64]) + 1, len(words) - at)
        arm.stop(request_id)
        if not keep:
            arm.forget(request_id)
    return tally


@dataclasses.dataclass(frozen=True)
class Calibration:
    claimed: float
    true: float
    expected_error: float  # over equal-width bins, weighted by their tokens
    brier: float


def calibration(claims: Sequence[float], hits: Sequence[bool]) -> Calibration:
    if not claims:
        return Calibration(0.0, 0.0, 0.0, 0.0)
    p = np.array(claims)
    hit = np.array(hits, dtype=np.float64)
    bins = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, weights=p - hit, minlength=BINS)
    return Calibration(
        float(p.mean()),
        float(hit.mean()),
        float(np.abs(gaps).sum() / len(p)),
        float(((p - hit) ** 2).mean()),
    )


def percentile_us(ns: Sequence[int], q: float) -> float:
    return float(np.percentile(np.array(ns), q)) / 1e3 if ns else 0.0


def report(label: str, tally: Tally) -> dict[str, Any]:
    token = calibration(tally.token_claims, tally.token_hits)
    path = calibration(tally.path_claims, tally.path_hits)
    by_match: dict[int, list[int]] = {}
    for length, ns in zip(tally.match_lengths, tally.draft_ns, strict=True):
        if length > 0:
            by_match.setdefault(bisect.bisect_right(MATCH_BUCKETS, length), []).append(ns)
    names = ["1", *(f"{b}-{2 * b - 1}" for b in MATCH_BUCKETS[:-1]), f"{MATCH_BUCKETS[-1]}+"]
    latency = {
        names[b]: (percentile_us(v, 50), percentile_us(v, 99)) for b, v in sorted(by_match.items())
    }
    row: dict[str, Any] = {
        "tokens_per_step": tally.tokens_per_step,
        "accepted_per_step": tally.accepted_per_step,
        "drafted_per_step": tally.drafted_per_step,
        "rate": tally.accepted / max(1, tally.drafted),
        "drafted_per_output": tally.drafted_per_output,
        "token": dataclasses.asdict(token),
        "path": dataclasses.asdict(path),
        "draft_us": {
            "p50": percentile_us(tally.draft_ns, 50),
            "p99": percentile_us(tally.draft_ns, 99),
            "mean": sum(tally.draft_ns) / max(1, len(tally.draft_ns)) / 1e3,
        },
        "draft_us_by_match": latency,
        "update_us_per_token": tally.update_ns / tally.output / 1e3,
        "start_us_per_token": tally.start_ns / max(1, tally.prompt_tokens) / 1e3,
    }
    draft = row["draft_us"]
    print(
        f"  {label:34} {row['tokens_per_step']:6.3f} tok/step, accepted "
        f"{row['accepted_per_step']:6.3f} @ {row['drafted_per_step']:5.2f} ({row['rate']:.3f}), "
        f"{row['drafted_per_output']:.3f} drafted/output\n"
        f"      claim {token.claimed:.3f} true {token.true:.3f} ECE {token.expected_error:.3f} "
        f"Brier {token.brier:.3f}; paths claim {path.claimed:.3f} true {path.true:.3f} "
        f"ECE {path.expected_error:.3f}\n"
        f"      draft us p50 {draft['p50']:.1f} p99 {draft['p99']:.1f} mean {draft['mean']:.1f}; "
        + ", ".join(f"match {n}: {a:.1f}/{b:.1f}" for n, (a, b) in latency.items())
        + f"; update {row['update_us_per_token']:.2f} us/token, "
        f"start {row['start_us_per_token']:.3f} us/token",
        flush=True,
    )
    return row


def between(points: Sequence[tuple[float, float]], x: float, beyond: int) -> tuple[float, str]:
    """y at x on the line through the points. Outside: the end's, marked as a bound, on the side
    where that is on the safe side (beyond: 0 first, -1 last), else nan."""
    xs, ys = zip(*sorted(points), strict=True)
    if xs[0] <= x <= xs[-1]:
        return float(np.interp(x, xs, ys)), ""
    if (x < xs[0]) == (beyond == 0):
        return ys[beyond], " or better"
    return math.nan, ""


def equal_budget(label: str, theirs: Tally, ours: Sequence[Tally]) -> dict[str, float]:
    """Ours over theirs at their budget, and the budget ours needs for what they accept."""
    steps = [(t.drafted_per_step, t.accepted_per_step) for t in ours]
    outputs = [(t.drafted_per_output, t.accepted_per_step) for t in ours]
    a, mark_a = between(steps, theirs.drafted_per_step, -1)
    b, mark_b = between(outputs, theirs.drafted_per_output, -1)
    c, mark_c = between([(y, x) for x, y in steps], theirs.accepted_per_step, 0)
    d, mark_d = between([(y, x) for x, y in outputs], theirs.accepted_per_step, 0)
    ratios = {
        "accepted_at_equal_drafted_per_step": a / theirs.accepted_per_step,
        "accepted_at_equal_drafted_per_output": b / theirs.accepted_per_step,
        "tokens_at_equal_drafted_per_step": (1 + a) / (1 + theirs.accepted_per_step),
        "tokens_at_equal_drafted_per_output": (1 + b) / (1 + theirs.accepted_per_step),
        "drafted_per_step_for_equal_accepted": c / max(1e-9, theirs.drafted_per_step),
        "drafted_per_output_for_equal_accepted": d / max(1e-9, theirs.drafted_per_output),
    }
    marks = (mark_a, mark_b, mark_a, mark_b, mark_c, mark_d)
    print(f"{label}:")
    for (name, ratio), mark in zip(ratios.items(), marks, strict=True):
        print(f"      {name:40} {ratio:.3f}{mark}")
    # With every drafted token right: what no proposer can exceed at this budget per step.
    ceiling = theirs.drafted / max(1, theirs.accepted)
    print(f"      {'(accepted per step could be at most)':40} {ceiling:.3f}", flush=True)
    ratios["ceiling_at_equal_drafted_per_step"] = ceiling
    return ratios


def run_quality(
    directory: Path, names: Sequence[str], arms: Sequence[str], args: argparse.Namespace
) -> dict[str, Any]:
    history = read_workload(directory / "train.bin")
    workloads = {
        name: read_workload(directory / f"{name}.bin")[: args.limit]
        for name in names
        if (directory / f"{name}.bin").exists()
    }
    replayed = len(history)
    results: dict[str, Any] = {name: {} for name in workloads}
    tallies: dict[str, dict[str, Tally]] = {name: {} for name in workloads}

    def filled(kind: str, options: Options) -> Any:
        arm = make_arm(kind, options)
        fill(arm, history)
        return arm

    def measure(arm: Arm, name: str, label: str) -> None:
        nonlocal replayed
        tally = replay(arm, workloads[name], replayed, args.keep)
        replayed += len(workloads[name])
        tallies[name][label] = tally
        print(f"{directory.name} {name}:")
        results[name][label] = report(label, tally)

    if "reference" in arms:
        for depth in (24, 64):
            cache = None  # a gigabyte each; it keeps no state but its history
            for label, options in reference_options(args.full).items():
                if options.depth != depth:
                    continue
                for name in workloads:
                    if cache is None or args.keep:
                        cache = filled("reference", options).cache
                    measure(CacheArm(cache, options), name, label)
        cache = None
        gc.collect()
    if "compat" in arms:
        for name in workloads:
            measure(filled("compat", Options()), name, "compat")
    for kind in (k for k in arms if k in ("smartspec", "frozen")):
        for name, tree in itertools.product(workloads, (False, True) if args.full else (False,)):
            shape = f"{kind} tree" if tree else kind
            ours = []
            for threshold in args.sweep:
                # Anew each time: what it learnt from another workload must not count.
                label = f"{shape} {threshold}"
                measure(filled(kind, Options(threshold=threshold, tree=tree)), name, label)
                ours.append(tallies[name][label])
            for label, tally in tallies[name].items():
                if label.startswith("reference") and label.endswith("tree") == tree:
                    results[name][f"{shape} over {label}"] = equal_budget(
                        f"{directory.name} {name}: {shape} over {label}", tally, ours
                    )
    return results


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--arms", nargs="+", choices=list(MODULES), default=list(MODULES))
    parser.add_argument("--workloads", nargs="+", default=["held", "edit", "reask", "replay"])
    parser.add_argument("--sets", nargs="+", help="directories of the cache, default: all built")
    parser.add_argument("--limit", type=int, help="requests of each workload")
    parser.add_argument(
        "--keep", action="store_true", help="replayed responses stay in the history"
    )
    parser.add_argument("--full", action="store_true", help="also trees and the factors 2 and 4")
    parser.add_argument("--part", choices=["quality", "costs", "all"], default="all")
    parser.add_argument("--sweep", type=float, nargs="+", default=THRESHOLDS, help="min_survival")
    parser.add_argument("--threshold", type=float, default=0.1, help="ours, for the costs")
    parser.add_argument("--json", type=Path, help="write all figures there")
    args = parser.parse_args()
    if args.json and not args.json.parent.is_dir():
        parser.error(f"--json: {args.json.parent} is not a directory")
    arms = available(args.arms)
    results: dict[str, Any] = {}
    for directory in build_all(args):
        if not arms or (args.sets and directory.name not in args.sets):
            continue
        found: dict[str, Any] = {}
        if args.part != "costs":
            found["quality"] = run_quality(directory, args.workloads, arms, args)
        if args.part != "quality" and (directory / "batch.bin").exists():
            found["costs"] = run_costs(directory, arms, args.threshold)
        results[directory.name] = found
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
