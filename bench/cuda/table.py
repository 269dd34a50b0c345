#!/usr/bin/env python3
# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Prints a result file of the CUDA benchmarks as a table: table.py FILE..."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def line(name: str, result: dict[str, Any]) -> str:
    if "seconds" not in result:
        return f"{name:<44} {result.get('failed', 'no result').splitlines()[0][:70]}"
    text = f"{name:<44}{1e6 * result['seconds']:10.2f} us"
    text += f"{100 * result['share_of_copy_bandwidth']:8.1f} % of copy"
    if "prepare_seconds" in result:
        text += f"   prepare {1e6 * result['prepare_seconds']:.2f} us"
    if "max_error" in result:
        text += f"   error {result['max_error']:.1e}"
    return text


def main() -> None:
    for file in sys.argv[1:]:
        record = json.loads(Path(file).read_text())
        bandwidth = record["copy_bandwidth"] / 1e9
        print(f"-- {Path(file).stem}: {record['device']}, copy {bandwidth:.0f} GB/s")
        for case in record["cases"]:
            if "results" not in case:
                print(line(case["name"], case))
                continue
            for candidate, result in case["results"].items():
                print(line(f"{case['case']['name']}, {candidate}", result))


if __name__ == "__main__":
    main()
