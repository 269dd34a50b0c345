# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""The `smartspec` command. Each subcommand is a module with add_parser() and run()."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from smartspec_core import Error, __version__

from . import bench, demo, generate, info, profile, simulate

_DESCRIPTION = """\
Speculative decoding that never changes an output.

  smartspec demo        serve a workload on the shipped models and compare ways to speculate
  smartspec generate    complete prompts with a model
  smartspec bench       measure throughput and latency of a model
  smartspec profile     measure what a model's passes cost here, to start from
  smartspec simulate    compare ways to decide how much to speculate, in virtual time
  smartspec info        say what was built and what a model needs
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="smartspec",
        description=_DESCRIPTION,
        epilog="Each subcommand has its own --help with examples.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"smartspec {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (demo, generate, bench, profile, simulate, info):
        command = module.add_parser(commands)
        command.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, Error, OSError) as error:
        print(f"smartspec {options.command}: {error}", file=sys.stderr)
        return 2
    return status
