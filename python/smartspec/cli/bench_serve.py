# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""`smartspec bench serve`; the sweep itself is ..serving_bench."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..acceptance import PROPOSERS, RecordedAcceptance
from ..llm import LLM
from ..metrics import SLO_METRICS, parse_slos
from ..serving import ServingRun, forget
from ..serving_bench import (
    DATASETS,
    RECORDED,
    Cell,
    CellResult,
    Measuring,
    Workload,
    make_requests,
    run_cell,
    table,
    warm_up,
)
from ..speculation import Speculation
from .common import HelpFormatter, add_engine_options, make_llm, speculation_of, with_policy

_DESCRIPTION = """\
Serves a workload at every request rate and concurrency given, under every policy
given, and reports under the names of `vllm bench serve`. The policies share the
loaded model, take turns, and must give the same tokens (exit status 1 if not).
"""
_EXAMPLES = """\
examples:
  one run          smartspec bench serve --model target --draft-model draft --request-rate 5
  sweep of rates   smartspec bench serve --model target --policies off,fixed:4,auto \\
                     --request-rate 2,4,8,16 --goodput ttft:200 tpot:30 --plot --save-result
  concurrencies    smartspec bench serve --model target --inflate-to 300M --proposer suffix \\
                     --policies off,fixed:2,fixed:4,auto --max-concurrency 1,2,4,8,16,32
  recorded trace   smartspec bench serve --model target --dataset trace \\
                     --dataset-path azure_llm_2023_conv.csv --request-rate 4
"""
_METRICS = ("ttft", "tpot", "itl", "e2el")
_TITLES = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}


def _rates(text: str) -> list[float]:
    rates = [RECORDED if part == "trace" else float(part) for part in text.split(",")]
    if not all(rate > 0 or rate == RECORDED for rate in rates):
        raise argparse.ArgumentTypeError(f"rates must be above 0, inf or trace, got {text!r}")
    return rates


def _positive(text: str) -> list[int]:
    values = [int(part) for part in text.split(",")]
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text!r}")
    return values


def _percents(text: str) -> list[float]:
    values = [float(part) for part in text.split(",")]
    if not all(0 <= value <= 100 for value in values):
        raise argparse.ArgumentTypeError(f"percentiles must be in [0, 100], got {text!r}")
    return values


def _metric_names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in _METRICS]:
        raise argparse.ArgumentTypeError(
            f"metrics must be of {', '.join(_METRICS)}, got {unknown[0]!r}"
        )
    return names


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        "serve",
        help="sweep request rates, concurrencies and policies",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    add_engine_options(parser)
    _add_workload(parser.add_argument_group("workload"))
    _add_sweep(parser.add_argument_group("sweep"))
    _add_output(parser.add_argument_group("figures"))
    return parser


def _add_workload(group: Any) -> None:
    group.add_argument("--dataset", choices=DATASETS, default="code", help="prompts: Python "
        "standard-library files, random token ids, or code of the lengths and at the times of a "
        "trace")  # fmt: skip
    group.add_argument("--dataset-path", type=Path, default=None, metavar="FILE", help="trace: CSV "
        "with the columns TIMESTAMP, ContextTokens, GeneratedTokens")  # fmt: skip
    group.add_argument("--num-prompts", type=int, default=32)
    group.add_argument("--input-len", type=int, default=128, help="prompt tokens, code and random")
    group.add_argument("--output-len", type=int, default=128, help="output tokens at most")
    group.add_argument("--max-input-len", type=int, default=512, help="a trace's prompts are "
        "scaled down to this")  # fmt: skip
    group.add_argument("--max-output-len", type=int, default=128, help="and its outputs to this")
    group.add_argument("--ignore-eos", action="store_true", help="go on after end of text")
    group.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    group.add_argument("--seed", type=int, default=0, help="of prompts, arrivals and sampling")


def _add_sweep(group: Any) -> None:
    group.add_argument("--request-rate", type=_rates, default=None, metavar="R,...",
        help="arrivals a second; inf: all at once; trace: as recorded; unset: inf, or trace with "
        "a trace")  # fmt: skip
    group.add_argument("--burstiness", type=float, default=1.0, help="shape of the gamma-"
        "distributed gaps: 1 is Poisson, less comes in bursts")  # fmt: skip
    group.add_argument("--max-concurrency", type=_positive, default=None, metavar="N,...",
        help="later requests wait outside; unset: no limit")  # fmt: skip
    group.add_argument("--policies", type=str, default=None, metavar="P,...", help="policies to "
        "compare, each as for --policy, with @PROPOSER for another proposer: "
        "off,fixed:4@draft,auto; unset: --policy alone")  # fmt: skip
    group.add_argument("--repetitions", type=int, default=1, help="of every cell; medians count")
    group.add_argument("--num-warmups", type=int, default=4, help="requests served before")


def _add_output(group: Any) -> None:
    group.add_argument("--goodput", nargs="+", default=[], metavar="NAME:MS", help="targets of a "
        f"request ({', '.join(SLO_METRICS)}), such as ttft:200 tpot:30")  # fmt: skip
    group.add_argument("--percentile-metrics", type=_metric_names, default=list(_METRICS),
        metavar="NAME,...", help="what the report of a single run tells")  # fmt: skip
    group.add_argument("--metric-percentiles", type=_percents, default=[50.0, 90.0, 99.0],
        metavar="P,...", help="percentiles in report and JSON")  # fmt: skip
    group.add_argument("--save-result", action="store_true", help="write JSON")
    group.add_argument("--plot", action="store_true", help="write a PNG; needs matplotlib")
    group.add_argument("--save-acceptance", type=Path, default=None, metavar="FILE", help="write "
        "which draft tokens were accepted in the first run, for smartspec simulate --acceptance; "
        "needs a single policy fixed:K and one proposer, without trees")  # fmt: skip
    group.add_argument("--result-dir", type=Path, default=Path(), help="of both")
    group.add_argument("--result-filename", type=str, default=None, help="unset: serve-TIME.json")


def _check(options: argparse.Namespace) -> None:
    names = ("num_prompts", "input_len", "output_len", "max_input_len", "max_output_len",
             "repetitions")  # fmt: skip
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    if options.num_warmups < 0:
        raise ValueError("--num-warmups must be at least 0")
    if not 0 < options.burstiness < math.inf:
        raise ValueError(f"--burstiness must be above 0 and finite, got {options.burstiness}")
    if options.dataset != "trace" and RECORDED in (options.request_rate or []):
        raise ValueError("--request-rate trace needs --dataset trace")
    if options.dataset == "trace" and options.dataset_path is None:
        raise ValueError("--dataset trace needs --dataset-path")
    if options.save_acceptance is not None:
        _check_recordable(options)


def _specs(options: argparse.Namespace) -> dict[str, Speculation]:
    """Those of --policies, by name."""
    policies = options.policies.split(",") if options.policies else []
    base = speculation_of(options)
    return {name: with_policy(base, name) for name in policies}


def _check_recordable(options: argparse.Namespace) -> None:
    """Other policies choose what is drafted by what they expect of it, and of a tree's rejected
    nodes it is not known which position they stood for."""
    specs = list(_specs(options).values()) or [speculation_of(options)]
    policies = ", ".join(str(spec.policy) for spec in specs)
    if policies != "fixed":
        raise ValueError(
            "--save-acceptance needs a single policy of a fixed length, such as --policy fixed:4; "
            f"got {policies}"
        )
    spec = Speculation.resolve(specs[0], options.draft_model is not None, warn=False)
    if spec.proposer not in PROPOSERS:
        raise ValueError(
            f"--save-acceptance needs --proposer {', '.join(PROPOSERS)}; got {spec.proposer}"
        )
    if spec.tree_width != 1:
        raise ValueError(f"--save-acceptance needs --tree-width 1, got {spec.tree_width}")


def _cells(options: argparse.Namespace) -> list[Cell]:
    rates = options.request_rate or [RECORDED if options.dataset == "trace" else math.inf]
    limits = options.max_concurrency or [None]
    return [Cell(rate, options.burstiness, limit) for rate in rates for limit in limits]


def _workload(options: argparse.Namespace) -> Workload:
    return Workload(
        dataset=options.dataset,
        path=options.dataset_path,
        num_prompts=options.num_prompts,
        input_len=options.input_len,
        output_len=options.output_len,
        max_input_len=options.max_input_len,
        max_output_len=options.max_output_len,
        temperature=options.temperature,
        ignore_eos=options.ignore_eos,
        seed=options.seed,
    )


def _fit_memory(options: argparse.Namespace, work: Workload) -> None:
    """Enough KV for what may run at once, and no more: an engine per policy has its own, and an
    inflated model needs much of it."""
    if options.max_model_len is None:
        options.max_model_len = work.longest
    running = max(options.max_concurrency or [options.num_prompts])
    options.max_num_seqs = min(options.max_num_seqs, running)
    if options.num_kv_blocks == 0:
        per_request = -(-options.max_model_len // options.block_size) + 2
        options.num_kv_blocks = options.max_num_seqs * per_request


def _engines(options: argparse.Namespace) -> dict[str, LLM]:
    specs = _specs(options)  # mistakes show before loading
    if not specs:
        llm = make_llm(options)
        return {str(llm.speculation.policy): llm}
    # The draft model is loaded with the first that may use it.
    first = next(
        (n for n in specs if specs[n].uses("auto") or specs[n].uses("draft")), next(iter(specs))
    )
    llm = make_llm(options, specs[first])
    return {
        name: llm if name == first else llm.with_speculation(spec) for name, spec in specs.items()
    }


def _line(name: str, value: float) -> str:
    shown = f"{value:<10.2f}" if value != round(value) else f"{value:<10.0f}"
    return f"{name:<40} {shown}"


def report(cell: Cell, result: dict[str, float], metrics: list[str], percents: list[float]) -> str:
    """A single run, as `vllm bench serve` prints it."""
    lines = [
        f"{' Serving Benchmark Result ':=^50}",
        _line("Successful requests:", result["completed"]),
        f"{'Request rate configured (RPS):':<40} {cell.rate_text}",
        _line("Benchmark duration (s):", result["duration"]),
        _line("Total input tokens:", result["total_input_tokens"]),
        _line("Total generated tokens:", result["total_output_tokens"]),
        _line("Request throughput (req/s):", result["request_throughput"]),
        _line("Output token throughput (tok/s):", result["output_throughput"]),
        _line("Total token throughput (tok/s):", result["total_token_throughput"]),
    ]
    if "request_goodput" in result:
        lines += [
            _line("Request goodput (req/s):", result["request_goodput"]),
            _line("SLO attainment (%):", result["slo_attainment_percent"]),
        ]
    for name in metrics:
        lines.append(f"{_TITLES[name]:-^50}")
        shown = [f"p{percent:g}" for percent in percents if percent != 50]
        for key in ("mean", "median", *shown):
            title = f"{key.capitalize()} {name.upper()} (ms):"
            lines.append(_line(title, result[f"{key}_{name}_ms"]))
    if result["spec_decode_draft_tokens"]:
        lines += [
            f"{'Speculative Decoding':-^50}",
            _line("Acceptance rate (%):", result["spec_decode_acceptance_rate"]),
            _line("Acceptance length:", result["spec_decode_acceptance_length"]),
            _line("Steps:", result["spec_decode_num_steps"]),
            _line("Draft tokens:", result["spec_decode_draft_tokens"]),
            _line("Accepted tokens:", result["spec_decode_accepted_tokens"]),
        ]
    return "\n".join([*lines, "=" * 50])


def _summary(results: list[CellResult]) -> str:
    """Each adaptive policy against the best of the others, over the cells."""
    lines = []
    for name in results[0].policies:
        if not name.startswith("auto") or len(results[0].policies) < 2:
            continue
        ratios = [r.policies[name].ratios[str(r.best_other(name))] for r in results]
        lines.append(
            f"{name}: {min(ratios):.3f} to {max(ratios):.3f} times the tokens/s of the best other "
            f"policy of the cell, in {len(ratios)} cells"
        )
    return "\n".join(lines)


def _record(options: argparse.Namespace, llm: LLM, results: list[CellResult]) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "model": llm.model_name,
        "num_parameters": llm.model.num_parameters,
        "inflated": options.inflate_to is not None,
        "draft_model": options.draft_model,
        "proposer": llm.speculation.proposer,
        "dataset": options.dataset,
        "num_prompts": options.num_prompts,
        "temperature": options.temperature,
        "ignore_eos": options.ignore_eos,
        "goodput": options.goodput,
        "repetitions": options.repetitions,
        "isa": llm.runtime.isa_name,
        "num_threads": llm.runtime.num_threads,
        "dtype": llm.model.dtype,
        "cells": [result.to_json() for result in results],
    }


def _write(options: argparse.Namespace, llm: LLM, results: list[CellResult]) -> None:
    folder: Path = options.result_dir
    folder.mkdir(parents=True, exist_ok=True)
    name = options.result_filename or f"serve-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path = folder / name
    if options.save_result:
        text = json.dumps(_record(options, llm, results), indent=2)
        path.write_text(text + "\n", encoding="utf-8")
        print(f"Figures: {path}")
    if options.plot:
        from ..serving_plots import plot_sweep

        title = f"{llm.model_name}, {options.dataset}, {llm.runtime.num_threads} threads"
        try:
            done = plot_sweep(path.with_suffix(".png"), results, title)
        except ImportError:
            raise ValueError("--plot needs matplotlib (pip install matplotlib)") from None
        print(f"Plot:    {path.with_suffix('.png')}" if done else "No plot: nothing was swept")


def _write_acceptance(path: Path, llm: LLM, run: ServingRun) -> None:
    spec = llm.speculation
    recorded = RecordedAcceptance.of_requests(str(spec.proposer), spec.longest_draft, run.requests)
    recorded.save(path)
    print(f"Acceptance of {len(recorded.recordings)} requests: {path}")


def run(options: argparse.Namespace) -> int:
    _check(options)
    work = _workload(options)
    measuring = Measuring(
        options.repetitions, options.metric_percentiles, parse_slos(options.goodput), options.seed
    )
    _fit_memory(options, work)
    engines = _engines(options)
    llm = next(iter(engines.values()))
    requests = make_requests(llm, work)
    print(
        f"{llm.model_name}, {llm.model.num_parameters / 1e6:.1f} M parameters; "
        f"{len(requests.items)} requests, {options.dataset}",
        flush=True,
    )
    warm_up(engines, requests, options.num_warmups)
    single = len(engines) == 1 and len(_cells(options)) == 1
    results = []
    runs: list[ServingRun] = []
    watch = runs.append if options.save_acceptance is not None else None
    for cell in _cells(options):
        results.append(run_cell(engines, requests, cell, measuring, _reset(options), watch))
        if single:
            (policy,) = results[0].policies.values()
            print(
                report(cell, policy.medians, options.percentile_metrics, options.metric_percentiles)
            )
        else:
            print(f"\n{table(results[-1])}", flush=True)
    if summary := _summary(results):
        print(f"\n{summary}")
    differing = any(result.differing for result in results)
    if len(engines) > 1 and not differing:
        print(f"All {len(engines)} policies produced identical tokens.")
    if options.save_result or options.plot:
        _write(options, llm, results)
    if runs:
        _write_acceptance(options.save_acceptance, llm, runs[0])
    return 1 if differing else 0


def _reset(options: argparse.Namespace) -> Callable[[LLM], None]:
    def reset(llm: LLM) -> None:
        forget(llm)
        if options.suffix_index is not None and llm.suffix_index is not None:
            llm.suffix_index.load(options.suffix_index)

    return reset
