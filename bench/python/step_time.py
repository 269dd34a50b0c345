#!/usr/bin/env python3
# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""How well does the goodput policy predict the time of a step on the real engine?

Requests of random prompt lengths come and go, so that steps mix prompt chunks, decodes and drafts
at batches of 1 to --max-num-seqs. Every step's predicted and measured time are compared, from the
first step on, without a restart. The machine's own noise is measured in the same run: how far steps
of (nearly) the same load are from their median. With --disturb another process takes a core for
some time, which slows steps down; reported is how long the predictions take to follow.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import warnings
from collections import defaultdict
from collections.abc import Sequence

from smartspec.llm import LLM
from smartspec.metrics import percentile
from smartspec.sampling_params import SamplingParams
from smartspec.serving import cut_prompts, heldout_sources
from smartspec.shipped import shipped_model
from smartspec.speculation import Speculation


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--proposer", default="suffix+draft")
    parser.add_argument("--max-num-seqs", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--first", type=int, default=300, help="steps to learn from")
    parser.add_argument("--max-prompt", type=int, default=1800)
    parser.add_argument("--inflate-to", default=None)
    parser.add_argument("--disturb", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def burn() -> None:
    while True:
        pass


class Steps:
    """Runs steps under a load that wanders between 1 and the most requests."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.rng = random.Random(options.seed)
        self.options = options
        self.llm = LLM(
            shipped_model("target"),
            draft_model=shipped_model("draft") if "draft" in options.proposer else None,
            speculation=Speculation(options.proposer),
            max_num_seqs=options.max_num_seqs,
            max_model_len=2048,
            inflate_to=options.inflate_to,
            enable_prefix_caching=False,
        )
        self.sources = list(heldout_sources().values())
        self.wanted = 1
        self.rows: list[tuple[float, float, tuple[int, ...]]] = []  # predicted, measured, load

    def start_requests(self) -> None:
        most = self.options.max_num_seqs
        if self.rng.random() < 0.02:
            self.wanted = round(most ** self.rng.random())
        stats = self.llm.engine.stats()
        if stats.num_running + stats.num_waiting >= self.wanted:
            return
        length = round(64 * (self.options.max_prompt / 64) ** self.rng.random())
        prompt = cut_prompts(self.sources, self.llm.get_tokenizer(), [length], self.rng)[0]
        params = SamplingParams(
            temperature=self.rng.choice((0.0, 0.8)),
            seed=self.rng.randrange(1 << 30),
            max_tokens=self.rng.randint(16, 128),
            ignore_eos=True,
        )
        self.llm.start(self.llm.prepare(prompt, params))

    def run(self, count: int) -> None:
        while count > 0:
            self.start_requests()
            before = self.llm.engine.stats()
            self.llm.step()
            after = self.llm.engine.stats()
            measured = after.policy.measured_seconds - before.policy.measured_seconds
            if measured <= 0:
                continue
            predicted = after.policy.predicted_seconds - before.policy.predicted_seconds
            load = (
                after.num_tokens_computed - before.num_tokens_computed,
                before.num_running,
                after.num_drafted - before.num_drafted,
                (before.kv.num_blocks - before.kv.num_free) // 16,
            )
            self.rows.append((predicted, measured, load))
            count -= 1


def errors(rows: Sequence[tuple[float, float, tuple[int, ...]]]) -> list[float]:
    return [abs(predicted - measured) / measured for predicted, measured, _ in rows]


def noise(rows: Sequence[tuple[float, float, tuple[int, ...]]]) -> list[float]:
    """Distances from the median of steps with the same load; of loads seen at least 8 times."""
    groups = defaultdict(list)
    for _, measured, load in rows:
        groups[load].append(measured)
    groups = {load: times for load, times in groups.items() if len(times) >= 8}
    return [abs(statistics.median(times) - t) / t for times in groups.values() for t in times]


def line(name: str, values: list[float]) -> str:
    return (
        f"{name:<44} median {100 * percentile(values, 50):5.1f} %   "
        f"p95 {100 * percentile(values, 95):5.1f} %   ({len(values)} steps)"
    )


def main() -> int:
    options = parse()
    warnings.simplefilter("ignore")
    steps = Steps(options)
    steps.run(options.first + options.steps)
    rows = steps.rows[options.first :]
    print(line("predicted against measured", errors(rows)))
    print(line("steps of the same load against their median", noise(rows)))
    mixed = [row for row in rows if row[2][0] > row[2][1] + row[2][2]]
    print(line("predicted, steps with prompt chunks", errors(mixed)))
    if options.disturb:
        other = multiprocessing.Process(target=burn, daemon=True)
        other.start()
        start = len(steps.rows)
        steps.run(600)
        other.terminate()
        ratios = [measured / predicted for predicted, measured, _ in steps.rows[start:]]
        for first, last in ((0, 20), (20, 100), (100, 200), (200, 400), (400, 600)):
            ratio = statistics.median(ratios[first:last])
            print(f"beside a busy process, steps {first}..{last}: measured / predicted {ratio:.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
