#!/usr/bin/env python3
# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Does speculation="auto" reach the best of off and every fixed length, on the real engine?

For every concurrency and proposer the shipped target serves the same requests under off, fixed
lengths and auto. Counted is the time in which that many requests run: what is emitted until the
last request of a run is let in, prompts included; a drained batch says more about its stragglers.
The policies take turns in slices of a fraction of a second, so that a slow while of the machine
is every policy's, and are compared within a round; reported are medians of these ratios, and the
standard error of auto's: a cell is measured until that is small enough. The first rounds teach
auto and do not count. Outputs have to be identical.
--inflate-to makes the model stream the weights of a larger one (identity layers).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
import warnings
from collections import deque
from pathlib import Path
from typing import Any

from smartspec.llm import LLM
from smartspec.requests import ActiveRequest
from smartspec.sampling_params import SamplingParams
from smartspec.serving import WorkItem, cut_prompts, heldout_sources
from smartspec.shipped import shipped_model
from smartspec.speculation import Speculation


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--proposers", default="lookup,suffix,draft")
    parser.add_argument("--concurrency", default="1,2,4,8,16,32")
    parser.add_argument("--fixed", default="1,2,4", help="lengths to compare with")
    parser.add_argument("--inflate-to", default=None)
    parser.add_argument("--rounds", type=int, default=7, help="that count, at least")
    parser.add_argument("--most-rounds", type=int, default=100)
    parser.add_argument("--precision", type=float, default=0.008, help="standard error wanted")
    parser.add_argument("--warm-up", type=int, default=2, help="rounds before them")
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64, help="mean; between half and 1.5")
    parser.add_argument("--requests", type=int, default=12, help="per run, at least")
    parser.add_argument("--waves", type=int, default=4, help="requests per run over concurrency")
    parser.add_argument("--slice", type=float, default=0.03, help="seconds of a policy's turn")
    parser.add_argument("--save", type=Path, default=None)
    return parser.parse_args()


def workload(llm: LLM, count: int, prompt: int, length: int, rng: random.Random) -> list[WorkItem]:
    """Code to complete, half greedy and half sampled."""
    sources = list(heldout_sources().values())
    prompts = cut_prompts(sources, llm.get_tokenizer(), [prompt] * count, rng)
    return [
        WorkItem(
            prompt,
            SamplingParams(
                temperature=0.8 if i % 2 else 0.0,
                seed=rng.randrange(1 << 30),
                max_tokens=rng.randint(length // 2, length + length // 2),
                ignore_eos=True,
            ),
        )
        for i, prompt in enumerate(prompts)
    ]


class Server:
    """Serves `items` with one policy, `concurrency` at a time, whenever it is its turn."""

    def __init__(self, llm: LLM, items: list[WorkItem], concurrency: int) -> None:
        self.llm = llm
        self.seconds = 0.0  # while all places were taken
        self._waiting = deque(llm.prepare(item.token_ids, item.params) for item in items)
        self._concurrency = concurrency
        self._requests: list[ActiveRequest] = []

    @property
    def filled(self) -> bool:
        return bool(self._waiting)

    def run(self, seconds: float) -> None:
        """For that long, or until the last request is let in."""
        start = now = time.monotonic()
        while self._waiting and now - start < seconds:
            running = sum(not request.finished for request in self._requests)
            for _ in range(min(self._concurrency - running, len(self._waiting))):
                self._requests.append(self.llm.start(self._waiting.popleft()))
            if self._waiting:
                self.llm.step()
            now = time.monotonic()
        self.seconds += now - start

    def num_tokens(self) -> int:
        return sum(n for request in self._requests for _, n in request.token_times)

    def drain(self) -> list[list[int]]:
        """The outputs, when all requests have been let in."""
        while not all(request.finished for request in self._requests):
            self.llm.step()
        return [request.result().outputs[0].token_ids for request in self._requests]


def run_round(
    engines: dict[str, LLM], items: list[WorkItem], concurrency: int, seconds: float, turn: int
) -> dict[str, float]:
    """Tokens per second of each policy; raises when outputs differ."""
    names = list(engines)
    names = names[turn % len(names) :] + names[: turn % len(names)]
    servers = {name: Server(engines[name], items, concurrency) for name in names}
    while any(server.filled for server in servers.values()):
        for server in servers.values():
            server.run(seconds)
    speeds = {name: server.num_tokens() / server.seconds for name, server in servers.items()}
    outputs = {name: server.drain() for name, server in servers.items()}
    if any(outputs[name] != outputs["off"] for name in names):
        raise SystemExit("FAILED: outputs differ")
    return speeds


def ratios(rounds: list[dict[str, float]], name: str, other: str) -> list[float]:
    return [speeds[name] / speeds[other] for speeds in rounds]


def best_other(rounds: list[dict[str, float]]) -> str:
    others = [name for name in rounds[0] if name != "auto"]
    return max(others, key=lambda name: statistics.median(ratios(rounds, name, "off")))


def standard_error(values: list[float]) -> float:
    """Of the median, by the bootstrap."""
    rng = random.Random(0)
    medians = [statistics.median(rng.choices(values, k=len(values))) for _ in range(200)]
    return statistics.stdev(medians)


def run_cell(options: argparse.Namespace, base: LLM, proposer: str, many: int) -> dict[str, Any]:
    rng = random.Random(many)
    engines = {"off": base.with_speculation(Speculation("off"))}
    for k in options.fixed.split(","):
        engines[f"fixed {k}"] = base.with_speculation(Speculation(proposer, max_tokens=int(k)))
    engines["auto"] = base.with_speculation(Speculation(proposer))
    count = max(options.requests, options.waves * many)
    rounds: list[dict[str, float]] = []
    turn = 0
    error = 1.0
    while len(rounds) < options.rounds or (
        len(rounds) < options.most_rounds and error > options.precision
    ):
        items = workload(base, count, options.prompt_len, options.output_len, rng)
        speeds = run_round(engines, items, many, options.slice, turn)
        turn += 1
        if turn <= options.warm_up:
            continue
        rounds.append(speeds)
        if len(rounds) >= options.rounds:
            error = standard_error(ratios(rounds, "auto", best_other(rounds)))
    best = best_other(rounds)
    stats = engines["auto"].engine.stats()
    return {
        "proposer": proposer,
        "concurrency": many,
        "off_tokens_per_second": statistics.median(speeds["off"] for speeds in rounds),
        "against_off": {name: statistics.median(ratios(rounds, name, "off")) for name in rounds[0]},
        "best_other": best,
        "auto_against_best": statistics.median(ratios(rounds, "auto", best)),
        "standard_error": error,
        "median_step_error": stats.policy.median_step_error,
        "decision_us": 1e6 * stats.decision_seconds / max(1, stats.num_steps),
        "rounds": rounds,
    }


def main() -> int:
    options = parse()
    warnings.simplefilter("ignore")
    base = LLM(
        shipped_model("target"),
        draft_model=shipped_model("draft"),
        speculation="draft",
        max_num_seqs=32,
        max_model_len=1024,
        inflate_to=options.inflate_to,
    )
    base.generate([[1, 2, 3]], SamplingParams(max_tokens=8), use_tqdm=False)
    print(f"{base.model.num_parameters / 1e6:.1f} M parameters; tokens/s against off")
    cells = []
    for proposer in options.proposers.split(","):
        for many in map(int, options.concurrency.split(",")):
            cell = run_cell(options, base, proposer, many)
            cells.append(cell)
            shares = "  ".join(f"{k} {v:.3f}" for k, v in cell["against_off"].items() if k != "off")
            print(
                f"{proposer:<7} x{many:<3} off {cell['off_tokens_per_second']:7.0f} tok/s  {shares}"
                f"  | {cell['auto_against_best']:.3f} +- {cell['standard_error']:.3f}"
                f" of {cell['best_other']} in {len(cell['rounds'])} rounds"
                f"  (step error {cell['median_step_error']:.3f}, {cell['decision_us']:.0f} us)",
                flush=True,
            )
    worst = min(cell["auto_against_best"] for cell in cells)
    print(f"worst cell {worst:.3f}; outputs identical in all {len(cells)} cells")
    if options.save:
        options.save.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
