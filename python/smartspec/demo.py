# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""`smartspec demo`: one real workload, served in five ways, the same tokens each time."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import plots
from .llm import LLM
from .metrics import ServingSummary, summarize, tpot_of, ttft_of
from .sampling_params import SamplingParams
from .serving import (
    ServingRun,
    WorkItem,
    cut_prompts,
    forget,
    heldout_sources,
    poisson_arrivals,
    serve,
)
from .shipped import shipped_model
from .speculation import Speculation

MODES = ("off", "lookup", "suffix", "draft", "auto")


@dataclass(frozen=True)
class DemoOptions:
    num_prompts: int = 48
    request_rate: float = 8.0
    alone: int = 16  # requests of the one-at-a-time comparison
    draft_tokens: int = 4
    seed: int = 0
    num_threads: int = 0
    output_dir: Path = Path("demo_output")


def make_workload(llm: LLM, options: DemoOptions) -> list[WorkItem]:
    """Code to complete, half greedy and half sampled, short and long mixed."""
    rng = random.Random(options.seed)
    sources = heldout_sources()
    if not sources:
        raise FileNotFoundError(
            "none of the files in models/heldout_files.txt is in this Python's standard library, "
            "so there is nothing to complete; run the demo with another Python 3.11"
        )
    count = options.num_prompts
    lengths = [round(32 * 12 ** rng.random()) for _ in range(count)]  # 32..384, log-uniform
    prompts = cut_prompts(list(sources.values()), llm.get_tokenizer(), lengths, rng)
    arrivals = poisson_arrivals(count, options.request_rate, rng)
    items = []
    for i, (prompt, arrival) in enumerate(zip(prompts, arrivals, strict=True)):
        sampled = i % 2 == 1
        params = SamplingParams(
            temperature=0.8 if sampled else 0.0,
            seed=options.seed + i if sampled else None,
            max_tokens=rng.randint(32, 192),
        )
        items.append(WorkItem(prompt, params, arrival))
    return items


def _speculation(mode: str, options: DemoOptions) -> Speculation:
    if mode in ("off", "auto"):
        return Speculation(mode)
    # The suffix index ends its drafts itself, where it is unsure.
    return Speculation(
        mode, policy="fixed", max_tokens=None if mode == "suffix" else options.draft_tokens
    )


def _tokens(run: ServingRun) -> list[list[int]]:
    return [request.result().outputs[0].token_ids for request in run.requests]


def _row(mode: str, s: ServingSummary) -> str:
    drafted = f"{s.num_accepted}/{s.num_drafted}" if s.num_drafted else "-"
    return (
        f"{plots.LABELS[mode]:<14}{s.output_throughput:>9.0f}"
        f"{1e3 * s.ttft.mean:>11.1f}{1e3 * s.ttft.p99:>9.1f}"
        f"{1e3 * s.tpot.mean:>11.2f}{1e3 * s.tpot.p99:>9.2f}"
        f"{s.acceptance_length:>12.2f}{drafted:>18}"
    )


_HEADER = (
    f"{'speculation':<14}{'tokens/s':>9}{'TTFT mean':>11}{'p99 ms':>9}"
    f"{'TPOT mean':>11}{'p99 ms':>9}{'accept len':>12}{'accepted/drafted':>18}"
)


def _table(title: str, summaries: dict[str, ServingSummary]) -> None:
    print(f"\n{title}\n\n{_HEADER}\n{'-' * len(_HEADER)}")
    for mode, summary in summaries.items():
        print(_row(mode, summary))
    print(flush=True)


def _load(mode: str, options: DemoOptions) -> LLM:
    return LLM(
        shipped_model("target"),
        draft_model=shipped_model("draft") if mode in ("draft", "auto") else None,
        speculation=_speculation(mode, options),
        num_threads=options.num_threads,
        max_num_seqs=48,
        max_model_len=1024,
    )


@dataclass
class _Results:
    load: dict[str, ServingRun]
    alone: dict[str, ServingRun]

    def summaries(self, which: str) -> dict[str, ServingSummary]:
        runs: dict[str, ServingRun] = getattr(self, which)
        return {mode: summarize(run.requests, run.duration) for mode, run in runs.items()}

    def differing(self) -> list[str]:
        """Modes whose tokens differ from those without speculation, in words."""
        faults = []
        for name, runs in (("under load", self.load), ("one at a time", self.alone)):
            expected = _tokens(runs["off"])
            for mode, run in runs.items():
                pairs = zip(_tokens(run), expected, strict=True)
                if wrong := [i for i, (got, want) in enumerate(pairs) if got != want]:
                    faults.append(f"{mode} {name}: requests {wrong}")
        return faults


def _run_all(options: DemoOptions) -> tuple[_Results, LLM]:
    engines = {mode: _load(mode, options) for mode in MODES}
    items = make_workload(engines["off"], options)
    few = [WorkItem(item.token_ids, item.params) for item in items[: options.alone]]
    tokens = sum(item.params.max_tokens or 0 for item in items)
    print(
        f"{len(items)} completions of Python code, at most {tokens} tokens, arriving at "
        f"{options.request_rate:g} requests/s; half greedy, half at temperature 0.8 with seeds",
        flush=True,
    )
    results = _Results({}, {})
    for mode, llm in engines.items():
        serve(llm, few[:1])  # touches every page once, so that no run pays for it
        forget(llm)
        results.load[mode] = serve(llm, items, progress=f"speculation: {plots.LABELS[mode]}")
        forget(llm)
    results.alone = _take_turns(engines, few)
    return results, engines["off"]


def _take_turns(engines: dict[str, LLM], items: Sequence[WorkItem]) -> dict[str, ServingRun]:
    """One request at a time, each mode in turn, so that a busy machine slows all of them alike."""
    runs = {mode: ServingRun([], 0.0) for mode in engines}
    for item in items:
        for mode, llm in engines.items():
            run = serve(llm, [item])
            runs[mode] = ServingRun(
                runs[mode].requests + run.requests, runs[mode].duration + run.duration
            )
    return runs


def run_demo(options: DemoOptions) -> int:
    """Prints the tables, writes demo.json and demo.png; 0 when all tokens agree."""
    results, llm = _run_all(options)
    load, alone = results.summaries("load"), results.summaries("alone")
    _table(f"{options.num_prompts} requests arriving over time", load)
    _table(f"one request at a time ({options.alone} of them)", alone)
    base = alone["off"].output_throughput
    ratios = {mode: summary.output_throughput / base for mode, summary in alone.items()}
    print(
        f"One request at a time, the draft model makes {ratios['draft']:.2f} times, the suffix "
        f"index {ratios['suffix']:.2f} times and prompt lookup {ratios['lookup']:.2f} times the "
        "tokens/s of plain decoding; choosing among index, draft model and nothing at every step "
        f"makes {ratios['auto']:.2f} times."
    )
    faults = results.differing()
    total = load["off"].total_output + alone["off"].total_output
    if faults:
        print("FAILED: tokens differ from plain decoding: " + "; ".join(faults))
    else:
        print(f"All five produced identical tokens ({total} of them, 0 differ).")
    _write(options, results, load, alone, {"ratios_alone": ratios, "identical": not faults}, llm)
    return 1 if faults else 0


def _write(
    options: DemoOptions,
    results: _Results,
    load: dict[str, ServingSummary],
    alone: dict[str, ServingSummary],
    facts: dict[str, Any],
    llm: LLM,
) -> None:
    folder = options.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        **facts,
        "num_prompts": options.num_prompts,
        "request_rate": options.request_rate,
        "draft_tokens": options.draft_tokens,
        "seed": options.seed,
        "isa": llm.runtime.isa_name,
        "num_threads": llm.runtime.num_threads,
        "load": {mode: summary.to_json() for mode, summary in load.items()},
        "one_at_a_time": {mode: summary.to_json() for mode, summary in alone.items()},
    }
    (folder / "demo.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"Figures: {folder / 'demo.json'}")
    requests = {mode: run.requests for mode, run in results.load.items()}
    try:
        plots.plot_demo(
            folder / "demo.png",
            {mode: summary.output_throughput for mode, summary in load.items()},
            {mode: summary.output_throughput for mode, summary in alone.items()},
            {mode: [ttft_of(r) for r in each] for mode, each in requests.items()},
            {
                mode: [t for r in each if (t := tpot_of(r)) is not None]
                for mode, each in requests.items()
            },
            f"SmartSpec, shipped pair, {llm.runtime.num_threads} threads "
            f"({llm.runtime.isa_name}), {options.request_rate:g} requests/s",
        )
    except ImportError:
        print("No plot: matplotlib is missing (pip install matplotlib)")
    else:
        print(f"Plot:    {folder / 'demo.png'}")
