#!/usr/bin/env python3
# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Compares python/smartspec_core/_core.pyi with what the built module says; --write replaces it."""

from __future__ import annotations

import argparse
import difflib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STUB = ROOT / "python" / "smartspec_core" / "_core.pyi"
BIN = ROOT / ".venv" / "bin"


def generate() -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [BIN / "pybind11-stubgen", "smartspec_core._core", "-o", folder, "--exit-code",
                   "--ignore-invalid-expressions", "<.* object at 0x.*>"]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            sys.exit(f"pybind11-stubgen failed:\n{result.stdout}{result.stderr}")
        made = Path(folder) / "smartspec_core" / "_core.pyi"
        # pybind11 takes None for a pointer and does not say so in the signature.
        text = re.sub(r"(: [\w.]+) = None\b", r"\1 | None = None", made.read_text())
        made.write_text(re.sub(r"\bos\.PathLike\b(?!\[)", "os.PathLike[str]", text))
        for step in (["check", "--fix", "--quiet", "--select", "I,UP"], ["format", "--quiet"]):
            subprocess.run([BIN / "ruff", *step, "--config", ROOT / "pyproject.toml", made])
        return made.read_text()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the stub instead of comparing")
    options = parser.parse_args()
    fresh = generate()
    if options.write:
        STUB.write_text(fresh)
        return 0
    stored = STUB.read_text() if STUB.exists() else ""
    if stored == fresh:
        return 0
    lines = difflib.unified_diff(
        stored.splitlines(), fresh.splitlines(), "stored", "from the module", lineterm="", n=1
    )
    print("\n".join(list(lines)[:60]))
    print("python/smartspec_core/_core.pyi is out of date; run `make stubs`")
    return 1


if __name__ == "__main__":
    sys.exit(main())
