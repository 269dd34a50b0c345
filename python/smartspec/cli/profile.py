# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import smartspec_core as core

from .. import profile
from ..config import load_config
from ..loader import load_model, model_directory
from .common import HelpFormatter, model_path

_EXAMPLES = """\
examples:
  smartspec profile --model target --draft-model draft
  smartspec profile --model /models/llama --seconds 30 --output llama.json
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        "profile",
        help="measure what a model's passes cost here, to start from",
        description="Runs forward passes of many kinds with random tokens, fits the cost model "
        "that decides how much to speculate, and keeps it in the cache directory, where engines "
        "with the policy auto find it. Without a profile they start from an estimate and learn.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--model", type=model_path, required=True, metavar="DIR", help="a model directory, or "
        "'target' for the shipped model",
    )  # fmt: skip
    parser.add_argument(
        "--draft-model", type=model_path, default=None, metavar="DIR", help="profiled as well"
    )
    parser.add_argument(
        "--output", type=Path, default=None, metavar="FILE", help="write here, not to the cache"
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="to measure, per model")
    parser.add_argument("--max-num-seqs", type=int, default=32, help="largest batch measured")
    parser.add_argument(
        "--max-num-batched-tokens", type=int, default=512, help="most rows of a pass"
    )
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument(
        "--inflate-to", default=None, metavar="N", help="pad the model to N parameters first"
    )
    parser.add_argument(
        "--num-threads", type=int, default=0, help="0: every core this process may use"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def _kind(load: core.StepLoad) -> str:
    if load.num_sequences == 1 and load.num_logits == 1 and load.num_tokens > 1:
        return "prompt chunks"
    if load.num_logits < load.num_tokens:
        return "chunk + decodes"
    return "decodes" if load.num_tokens == load.num_sequences else "decodes + drafts"


_KINDS = ("decodes", "decodes + drafts", "prompt chunks", "chunk + decodes")


def _table(samples: Sequence[core.CostSample], estimate: core.CostCoefficients) -> None:
    fitted = profile.errors_of(core.fit_cost(list(samples)), samples)
    held_out = profile.held_out_errors(samples)
    guessed = profile.errors_of(estimate, samples)
    rows = {kind: [i for i, s in enumerate(samples) if _kind(s.load) == kind] for kind in _KINDS}
    rows["all"] = list(range(len(samples)))
    print(
        f"  {'loads':<18}{'count':>6}{'fastest ms':>12}{'slowest ms':>12}"
        f"{'fitted: median':>16}{'p95':>8}{'left out: median':>18}{'p95':>8}"
        f"{'estimate: median':>18}"
    )
    for kind, chosen in rows.items():
        if not chosen:
            continue
        seconds = [samples[i].seconds for i in chosen]
        cells = [
            profile.quantile([errors[i] for i in chosen], share)
            for errors, share in (
                (fitted, 0.5), (fitted, 0.95), (held_out, 0.5), (held_out, 0.95), (guessed, 0.5)
            )
        ]  # fmt: skip
        texts = [f"{100 * cell:.1f} %" for cell in cells]
        print(
            f"  {kind:<18}{len(chosen):>6}{1e3 * min(seconds):>12.3f}{1e3 * max(seconds):>12.3f}"
            f"{texts[0]:>16}{texts[1]:>8}{texts[2]:>18}{texts[3]:>8}{texts[4]:>18}"
        )


def _progress(options: argparse.Namespace) -> Callable[[float], None] | None:
    if options.quiet or not sys.stderr.isatty():
        return None
    shown = -1

    def show(share: float) -> None:
        nonlocal shown
        if (percent := int(100 * share)) > shown:
            shown = percent
            end = "\r" if percent < 100 else "\r     \r"
            print(f"{percent:3d} %", end=end, file=sys.stderr, flush=True)

    return show


def run(options: argparse.Namespace) -> int:
    runtime = core.make_runtime("cpu", options.num_threads)
    given = [("--model", options.model), ("--draft-model", options.draft_model)]
    profiles = []
    for name, path in given:
        if path is None:
            continue
        folder = model_directory(name, path)
        inflate_to = options.inflate_to if name == "--model" else None
        model = load_model(runtime, folder, load_config(folder), options.dtype, inflate_to)
        samples = profile.measure(
            model,
            options.seconds,
            _progress(options),
            max_num_seqs=options.max_num_seqs,
            max_num_tokens=options.max_num_batched_tokens,
        )
        print(
            f"{folder.resolve().name}: {model.num_parameters / 1e6:.1f} M parameters, "
            f"{model.dtype}, {runtime.isa_name}, {runtime.num_threads} threads"
        )
        _table(samples, core.make_roofline(core.roofline_of(model)))
        profiles.append(profile.profile_of(model, samples))
        if options.output is None:
            print(f"  written to {profile.save_cached(profiles[-1])}")
    if options.output is not None:
        print(f"written to {profile.save(options.output, profiles)}")
    return 0
