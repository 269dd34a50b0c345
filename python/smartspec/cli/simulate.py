# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""`smartspec simulate`; the simulations themselves are ..simulation, their settings ..scenarios."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import scenarios, simulation
from ..serving import read_trace
from ..simulation import ORACLE, UNIFORM, CellResult, JumpResult, RateResult, Recorder, Work
from .common import HelpFormatter

_DESCRIPTION = """\
Runs the real scheduler and policies in virtual time, on costs and acceptance given
as data. It ranks policies; it proves nothing about a device it has no costs of.
"""
_EXAMPLES = """\
examples:
  policies, cell by cell    smartspec simulate grid --output-dir grid
  after a jump              smartspec simulate jump --quick
  latency over rates        smartspec simulate rates --policies fixed:3,turbospec,auto
  a recorded workload       smartspec simulate trace azure_llm_2023_conv.csv --speedup 1,4
  this machine              smartspec profile --model target --draft-model draft --output c.json
                            smartspec simulate grid --cost c.json
  acceptance as measured    smartspec bench serve --model target --proposer suffix \\
                              --policy fixed:4 --save-acceptance a.json
                            smartspec simulate grid --acceptance a.json
  decisions                 smartspec simulate jump --quick --policies auto --record decisions
                            smartspec simulate replay decisions/*.trace
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        "simulate",
        help="compare policies in virtual time",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    grid = _add(kinds, "grid", "goodput of policies in many cells, against an oracle", _grid)
    _add_common(grid, simulation.GRID_POLICIES)
    _add_acceptance(grid)
    grid.add_argument("--steps", type=int, default=None, help="of a cell; 1500, --quick: 400")
    grid.add_argument("--cells", default="", metavar="TEXT", help="only cells whose name has it")
    jump = _add(kinds, "jump", "how fast policies adapt to another acceptance or batch", _jump)
    _add_common(jump, simulation.JUMP_POLICIES)
    jump.add_argument("--seeds", type=int, default=None, help="averaged over; 16, --quick: 2")
    rates = _add(kinds, "rates", "latency of requests that arrive at several rates", _rates)
    _add_common(rates, simulation.RATE_POLICIES)
    _add_acceptance(rates)
    rates.add_argument("--rates", type=_numbers, default=(), help="requests a second, by commas")
    rates.add_argument("--burstiness", type=float, default=1.0, help="shape of gamma-distributed "
                       "gaps; 1: Poisson, less: bursts")  # fmt: skip
    rates.add_argument("--trace", type=Path, default=None, metavar="FILE", help="lengths of "
                       "requests from this CSV file")  # fmt: skip
    trace = _add(kinds, "trace", "latency of requests as a trace file has them", _trace)
    trace.add_argument("file", type=Path, help="CSV with TIMESTAMP,ContextTokens,GeneratedTokens")
    _add_common(trace, simulation.RATE_POLICIES)
    _add_acceptance(trace)
    trace.add_argument("--speedup", type=_numbers, default=(1.0,), help="of its clock, by commas")
    trace.add_argument("--num-requests", type=int, default=2000, help="first ones of the file")
    again = _add(kinds, "replay", "show recorded decisions to policies", _replay)
    again.add_argument("files", type=Path, nargs="+", metavar="FILE", help="of --record")
    again.add_argument("--policies", type=_names, default=None, help="default: the recorded one")
    again.add_argument("--cost", type=Path, default=None, metavar="FILE", help="as recorded with")
    return parser


def _add(kinds: Any, name: str, text: str, job: Callable[..., int]) -> Any:
    parser = kinds.add_parser(name, help=text, description=text, formatter_class=HelpFormatter)
    parser.set_defaults(job=job)
    return parser


def _add_common(parser: Any, policies: Sequence[str]) -> None:
    parser.add_argument("--policies", type=_names, default=policies, help="by commas")
    parser.add_argument("--cost", type=Path, default=None, metavar="FILE", help="costs of a "
                        "target and a draft model, by smartspec profile")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="few cells and steps, rough figures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", type=Path, default=None, metavar="DIR", help="write JSON "
                        "and plots")  # fmt: skip
    parser.add_argument("--record", type=Path, default=None, metavar="DIR", help="write the "
                        "decisions of every run")  # fmt: skip


def _add_acceptance(parser: Any) -> None:
    parser.add_argument("--acceptance", type=Path, default=None, metavar="FILE", help="in place of "
                        "the shapes: as recorded by smartspec bench serve --save-acceptance; "
                        "outcomes are smoothed over about nine tokens")  # fmt: skip


def _names(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(value > 0 and math.isfinite(value) for value in values):
        raise argparse.ArgumentTypeError(f"needs numbers above 0, by commas, got {text!r}")
    return values


def run(options: argparse.Namespace) -> int:
    job: Callable[[argparse.Namespace], int] = options.job
    return job(options)


def _cost(options: argparse.Namespace) -> scenarios.Cost | None:
    cost = scenarios.cost_of_file(options.cost) if options.cost is not None else None
    if options.policies:
        simulation.check_policies(options.policies, cost or scenarios.costs()["8b"])
    return cost


def _shapes(options: argparse.Namespace) -> tuple[scenarios.Shape, ...]:
    return (scenarios.recorded_shape(options.acceptance),) if options.acceptance else ()


def _recorder(options: argparse.Namespace) -> Recorder | None:
    return Recorder(options.record) if options.record is not None else None


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\r" if done < total else "\r" + " " * 20 + "\r"
        print(f"{done} of {total}", end=end, file=sys.stderr, flush=True)


def _save(options: argparse.Namespace, name: str, record: dict[str, Any]) -> Path | None:
    if options.output_dir is None:
        return None
    options.output_dir.mkdir(parents=True, exist_ok=True)
    path: Path = options.output_dir / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")
    return path.with_suffix(".png")


def _plotted(path: Path) -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print(f"no matplotlib: {path.name} is left out", file=sys.stderr)
        return False
    return True


def _least(options: argparse.Namespace, name: str, usual: int, quick: int) -> int:
    value = getattr(options, name)
    if value is None:
        return quick if options.quick else usual
    if value < 1:
        raise ValueError(f"--{name} must be at least 1, got {value}")
    return int(value)


# grid


def grid_table(results: Sequence[CellResult], policies: Sequence[str]) -> str:
    width = max(len(result.cell.name) for result in results)
    lines = [f"{'goodput / oracle':<{width}} {'oracle tok/s':>12}  " + _row(policies)]
    for result in results:
        shares = [f"{result.share(policy):.3f}" for policy in policies]
        lines.append(f"{result.cell.name:<{width}} {result.goodput[ORACLE]:>12.1f}  {_row(shares)}")
    summaries = [simulation.summarize(results, policy) for policy in policies]
    for title, key in (
        ("mean", "mean"),
        ("worst cell", "worst"),
        ("of best uniform, alike requests: mean", "of_uniform"),
        ("of best uniform, alike requests: worst", "of_uniform_worst"),
        ("of off: worst", "of_off_worst"),
    ):
        values = [getattr(summary, key) for summary in summaries]
        shown = ["" if math.isnan(value) else f"{value:.4f}" for value in values]
        lines.append(f"{title:<{width}} {'':>12}  {_row(shown)}")
    return "\n".join(lines)


def _row(texts: Sequence[str]) -> str:
    return "".join(f"{text:>11}" for text in texts)


def _grid(options: argparse.Namespace) -> int:
    cost = _cost(options)
    cells = scenarios.grid(options.quick, cost, _shapes(options) or scenarios.SHAPES)
    cells = [cell for cell in cells if options.cells in cell.name]
    if not cells:
        raise ValueError(f"--cells: no cell's name has {options.cells!r} in it")
    steps = _least(options, "steps", 1500, 400)
    policies = list(options.policies)
    results = simulation.run_grid(
        cells, policies, steps, options.seed, _progress, _recorder(options)
    )
    print(grid_table(results, policies))
    record = {
        "steps": steps,
        "seed": options.seed,
        "summary": {p: _finite(dataclasses.asdict(simulation.summarize(results, p)))
                    for p in policies},
        "cells": [
            {"cost": r.cell.cost.name, "shape": r.cell.shape.name, "batch": r.cell.batch,
             "context": r.cell.context, "goodput": dict(r.goodput), "best_length": r.best_length}
            for r in results
        ],
    }  # fmt: skip
    plot = _save(options, "grid", record)
    if plot is not None and _plotted(plot):
        from ..sim_plots import plot_regret

        plot_regret(plot, results, policies)
    return 0


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


# jump


def jump_table(results: Sequence[JumpResult], policies: Sequence[str]) -> str:
    windows = [f"{first}..{last}" for first, last in simulation.WINDOWS]
    lines = []
    for result in results:
        lines.append(f"{result.jump.name}: goodput / oracle, steps before and after each jump")
        lines.append(f"  {'':<12}{_row([*windows, *windows])}")
        for policy in policies:
            shares = [f"{share:.3f}" for share in result.shares[policy].ravel()]
            lines.append(f"  {policy:<12}{_row(shares)}")
    return "\n".join(lines)


def _jump(options: argparse.Namespace) -> int:
    jumps = scenarios.jumps(options.quick, _cost(options))
    seeds = _least(options, "seeds", 16, 2)
    policies = [policy for policy in options.policies if policy != UNIFORM]
    results = simulation.run_jumps(
        jumps, policies, seeds, options.seed, _progress, _recorder(options)
    )
    print(jump_table(results, policies))
    record = {
        "seeds": seeds,
        "seed": options.seed,
        "windows": simulation.WINDOWS,
        "jumps": [
            {"name": r.jump.name, "shares": {p: r.shares[p].tolist() for p in policies}}
            for r in results
        ],
    }
    plot = _save(options, "jump", record)
    if plot is not None and _plotted(plot):
        from ..sim_plots import plot_jumps

        plot_jumps(plot, results, policies)
    return 0


# rates, trace


def rates_table(results: Sequence[RateResult], policies: Sequence[str]) -> str:
    lines = []
    title = ""
    for result in results:
        if result.service.title != title:
            title = result.service.title
            lines.append(f"{title}: milliseconds; gain: mean latency of off / of this")
            lines.append(
                f"  {'rate':>6} {'policy':<12}"
                + _row(["latency", "p99", "TTFT", "p99", "TPOT", "ITL p50", "ITL p99", "tokens/s",
                        "gain"])
            )  # fmt: skip
        for policy in policies:
            x = result.latencies[policy]
            times = (x.mean_latency, x.p99_latency, x.mean_ttft, x.p99_ttft, x.mean_tpot,
                     x.median_itl, x.p99_itl)  # fmt: skip
            shown = [f"{1e3 * value:.1f}" for value in times]
            shown += [f"{x.tokens_per_second:.0f}", f"{result.gain(policy):.2f}"]
            lines.append(f"  {result.rate:>6g} {policy:<12}{_row(shown)}")
    return "\n".join(lines)


def headline(results: Sequence[RateResult], policies: Sequence[str], goal: float = 3.2) -> str:
    """Where the mean latency is that many times lower than without speculation."""
    lines = [f"mean latency at least {goal:g} times lower than off (the paper's headline: 3.2):"]
    for policy in policies:
        reached: dict[str, list[RateResult]] = {}
        for result in results:
            if policy != "off" and result.gain(policy) >= goal:
                reached.setdefault(result.service.title, []).append(result)
        for title, places in reached.items():
            rates = ", ".join(f"{place.rate:g}" for place in places)
            gains = [place.gain(policy) for place in places]
            lines.append(
                f"  {policy:<12}{title}: at {rates} per s, {min(gains):.1f} to {max(gains):.1f}"
            )
    return "\n".join(lines if len(lines) > 1 else [*lines, "  nowhere"])


def _report_rates(
    options: argparse.Namespace, results: Sequence[RateResult], policies: Sequence[str], name: str
) -> int:
    print(rates_table(results, policies))
    print(headline(results, policies))
    record = {
        "seed": options.seed,
        "results": [
            {"service": r.service.title, "rate": r.rate,
             "policies": {p: {**dataclasses.asdict(r.latencies[p]), "gain": r.gain(p)}
                          for p in policies}}
            for r in results
        ],
    }  # fmt: skip
    plot = _save(options, name, record)
    if plot is not None and _plotted(plot):
        from ..sim_plots import plot_rates

        plot_rates(plot, results, policies)
    return 0


def _latency_policies(options: argparse.Namespace) -> list[str]:
    return list(dict.fromkeys(["off", *(p for p in options.policies if p != UNIFORM)]))


def _rates(options: argparse.Namespace) -> int:
    if not (options.burstiness > 0 and math.isfinite(options.burstiness)):
        raise ValueError(f"--burstiness must be above 0 and finite, got {options.burstiness}")
    services = scenarios.services(
        options.quick, _cost(options), options.rates, options.burstiness, _shapes(options)
    )
    policies = _latency_policies(options)
    rows = read_trace(options.trace, 1 << 20) if options.trace is not None else None

    def work(service: scenarios.Service, rate: float) -> Work:
        if rows is None:
            return Work.sharegpt_like(rate, service.seconds, service.burstiness, options.seed)
        count = max(round(rate * service.seconds), 64)
        given = Work.of_rows(rows[:count], 1.0)
        return given.at_rate(rate, service.burstiness, options.seed)

    results = simulation.run_services(
        services, policies, options.seed, work, _progress, _recorder(options)
    )
    return _report_rates(options, results, policies, "rates")


def _trace(options: argparse.Namespace) -> int:
    if options.num_requests < 1:
        raise ValueError(f"--num-requests must be at least 1, got {options.num_requests}")
    cost = _cost(options)
    policies = _latency_policies(options)
    rows = read_trace(options.file, min(options.num_requests, 200) if options.quick
                      else options.num_requests)  # fmt: skip
    span = max(rows[-1].arrival, 1e-9)
    services = [
        dataclasses.replace(service, name=f"{options.file.stem}: {service.title}",
                            rates=[len(rows) * speed / span for speed in options.speedup])
        for service in scenarios.services(options.quick, cost, shapes=_shapes(options))
    ]  # fmt: skip
    results = simulation.run_services(
        services,
        policies,
        options.seed,
        lambda _, rate: Work.of_rows(rows, rate * span / len(rows)),
        _progress,
        _recorder(options),
    )
    return _report_rates(options, results, policies, "trace")


def _replay(options: argparse.Namespace) -> int:
    known = scenarios.costs()
    cost = _cost(options)
    if cost is not None:
        known[cost.name] = cost
    different = 0
    for file in options.files:
        for name, answer in simulation.replay(file, options.policies or (), known).items():
            print(
                f"{file}: recorded {answer.recorded_policy}, replayed {name}: "
                f"{answer.num_decisions} decisions in {answer.num_steps} steps, "
                f"{answer.num_different} different"
                + (f", first at step {answer.first_different_step}"
                   if answer.num_different else "")
            )  # fmt: skip
            different += answer.num_different
    return 0 if different == 0 or options.policies else 1
