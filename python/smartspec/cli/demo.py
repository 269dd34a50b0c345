# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..demo import DemoOptions, run_demo
from .common import HelpFormatter

_DESCRIPTION = """\
Serves code-completion prompts, cut from standard-library files that the shipped
models were not trained on, with speculation off, with prompt lookup, with the suffix
index (empty at the start), with the draft model, and with the policy auto, which
chooses among these at every step. Prints tokens/s, TTFT, TPOT and acceptance, checks
that all five gave identical tokens (exit status 1 if not), and writes demo.json and
demo.png.
"""
_EXAMPLES = """\
examples:
  smartspec demo
  smartspec demo --num-prompts 16 --request-rate 8 --draft-tokens 6
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    defaults = DemoOptions()
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help="serve a workload on the shipped models and compare ways to speculate",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--num-prompts", type=int, default=defaults.num_prompts, help="requests")
    parser.add_argument(
        "--request-rate", type=float, default=defaults.request_rate, help="arrivals per second"
    )
    parser.add_argument(
        "--alone", type=int, default=defaults.alone, help="requests also served one at a time"
    )
    parser.add_argument(
        "--draft-tokens", type=int, default=defaults.draft_tokens, help="longest draft of prompt "
        "lookup and draft model",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of prompts and arrivals")
    parser.add_argument(
        "--num-threads", type=int, default=0, help="0: every core this process may use"
    )
    parser.add_argument(
        "--output-dir", type=str, default=str(defaults.output_dir), help="of demo.json, demo.png"
    )
    return parser


def run(options: argparse.Namespace) -> int:
    for name in ("num_prompts", "alone"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    if not options.request_rate > 0:
        raise ValueError(f"--request-rate must be above 0, got {options.request_rate}")
    return run_demo(
        DemoOptions(
            num_prompts=options.num_prompts,
            request_rate=options.request_rate,
            alone=min(options.alone, options.num_prompts),
            draft_tokens=options.draft_tokens,
            seed=options.seed,
            num_threads=options.num_threads,
            output_dir=Path(options.output_dir),
        )
    )
