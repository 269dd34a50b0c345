# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path
from typing import Any

from ..llm import LLM
from ..metrics import ServingSummary, Spread, summarize
from ..sampling_params import SamplingParams
from ..serving import (
    WorkItem,
    cut_prompts,
    heldout_sources,
    poisson_arrivals,
    random_prompts,
    serve,
)
from . import bench_serve
from .common import HelpFormatter, add_engine_options, make_llm, save_suffix_index

_DESCRIPTION = """\
Serves a synthetic workload once and prints the figures of vLLM's serving benchmark
under its names: throughput, TTFT, TPOT, ITL, E2EL and speculation.
`smartspec bench serve` sweeps rates, concurrencies and policies.
"""
_EXAMPLES = """\
examples:
  offline throughput    smartspec bench --model target --num-prompts 64
  latency, one by one   smartspec bench --model target --max-concurrency 1 --num-prompts 8
  under load            smartspec bench --model target --draft-model draft --request-rate 5
  to a file             smartspec bench --model target --speculation lookup --save-result a.json
  compare and sweep     smartspec bench serve --help
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        "bench",
        help="measure throughput and latency of a model; bench serve: sweeps",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    subcommands = parser.add_subparsers(dest="subcommand", metavar="[serve]")
    bench_serve.add_parser(subcommands)
    add_engine_options(parser, required=False)
    group = parser.add_argument_group("workload")
    group.add_argument("--num-prompts", type=int, default=32)
    group.add_argument(
        "--request-rate", type=float, default=math.inf, help="Poisson arrivals a second; inf: all "
        "at once",
    )  # fmt: skip
    group.add_argument(
        "--max-concurrency", type=int, default=None, help="later requests wait outside"
    )
    group.add_argument("--input-len", type=int, default=128, help="prompt tokens")
    group.add_argument("--output-len", type=int, default=128, help="output tokens; ignores eos")
    group.add_argument(
        "--dataset",
        choices=("code", "random"),
        default="code",
        help="Python standard-library files, or random token ids (nothing to speculate on)",
    )
    group.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    group.add_argument("--seed", type=int, default=0, help="of prompts, arrivals and sampling")
    group.add_argument("--save-result", type=str, default=None, metavar="FILE", help="write JSON")
    return parser


def _workload(llm: LLM, options: argparse.Namespace) -> list[WorkItem]:
    rng = random.Random(options.seed)
    lengths = [options.input_len] * options.num_prompts
    sources = list(heldout_sources().values()) if options.dataset == "code" else []
    if options.dataset == "code" and not sources:
        raise ValueError("--dataset code: this Python has none of the held-out files; use random")
    if options.dataset == "code":
        prompts = cut_prompts(sources, llm.get_tokenizer(), lengths, rng)
    else:
        prompts = random_prompts(llm.model_config.vocab_size, lengths, rng)
    arrivals = poisson_arrivals(options.num_prompts, options.request_rate, rng)
    items = []
    for i, (prompt, arrival) in enumerate(zip(prompts, arrivals, strict=True)):
        params = SamplingParams(
            temperature=options.temperature,
            seed=options.seed + i,
            max_tokens=options.output_len,
            ignore_eos=True,
        )
        items.append(WorkItem(prompt, params, arrival))
    return items


def _line(name: str, value: float | int) -> str:
    shown = f"{value:<10d}" if isinstance(value, int) else f"{value:<10.2f}"
    return f"{name:<40} {shown}"


def _spread(title: str, short: str, spread: Spread) -> list[str]:
    return [
        f"{title:-^50}",
        _line(f"Mean {short} (ms):", 1e3 * spread.mean),
        _line(f"Median {short} (ms):", 1e3 * spread.median),
        _line(f"P99 {short} (ms):", 1e3 * spread.p99),
    ]


def report(s: ServingSummary, request_rate: float) -> str:
    lines = [
        f"{' Serving Benchmark Result ':=^50}",
        _line("Successful requests:", s.completed),
        _line("Request rate configured (RPS):", request_rate),
        _line("Benchmark duration (s):", s.duration),
        _line("Total input tokens:", s.total_input),
        _line("Total generated tokens:", s.total_output),
        _line("Request throughput (req/s):", s.request_throughput),
        _line("Output token throughput (tok/s):", s.output_throughput),
        _line("Total token throughput (tok/s):", s.total_throughput),
        *_spread("Time to First Token", "TTFT", s.ttft),
        *_spread("Time per Output Token (excl. 1st token)", "TPOT", s.tpot),
        *_spread("Inter-token Latency", "ITL", s.itl),
        *_spread("End-to-end Latency", "E2EL", s.e2el),
    ]
    if s.num_drafted:
        lines += [
            f"{'Speculative Decoding':-^50}",
            _line("Acceptance rate (%):", 100 * s.acceptance_rate),
            _line("Acceptance length:", s.acceptance_length),
            _line("Steps:", s.num_steps),
            _line("Draft tokens:", s.num_drafted),
            _line("Accepted tokens:", s.num_accepted),
        ]
    return "\n".join([*lines, "=" * 50])


def run(options: argparse.Namespace) -> int:
    if options.subcommand == "serve":
        return bench_serve.run(options)
    if options.model is None:
        raise ValueError("--model is missing")
    for name in ("num_prompts", "input_len", "output_len", "max_concurrency"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    if not options.request_rate > 0:
        raise ValueError(f"--request-rate must be above 0, got {options.request_rate}")
    llm = make_llm(options)
    items = _workload(llm, options)
    serve(llm, [WorkItem(items[0].token_ids, SamplingParams(max_tokens=2, ignore_eos=True))])
    llm.engine.clear_prefix_cache()
    done = serve(llm, items, options.max_concurrency, "Serving")
    summary = summarize(done.requests, done.duration)
    if options.inflate_to is not None:
        print(f"{llm.model_name}, {llm.model.num_parameters:,} parameters")
    print(report(summary, options.request_rate))
    save_suffix_index(options, llm)
    if options.save_result:
        record = {
            "model": options.model,
            "model_name": llm.model_name,
            "num_parameters": llm.model.num_parameters,
            "draft_model": options.draft_model,
            "speculation": llm.speculation.proposer,
            "policy": llm.speculation.policy,
            "draft_tokens": llm.speculation.longest_draft,
            "request_rate": options.request_rate if math.isfinite(options.request_rate) else "inf",
            "max_concurrency": options.max_concurrency,
            "isa": llm.runtime.isa_name,
            "num_threads": llm.runtime.num_threads,
            **summary.to_json(),
        }
        Path(options.save_result).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0
