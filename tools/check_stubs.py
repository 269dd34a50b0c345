#!/usr/bin/env python3
# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Compares python/smartspec_core/_core/*.pyi with what the built module says; --write replaces
them."""

from __future__ import annotations

import argparse
import difflib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STUBS = ROOT / "python" / "smartspec_core" / "_core"
BIN = ROOT / ".venv" / "bin"


def generate() -> dict[str, str]:
    """File name and text."""
    with tempfile.TemporaryDirectory() as folder:
        command = [BIN / "pybind11-stubgen", "smartspec_core._core", "-o", folder, "--exit-code",
                   "--ignore-invalid-expressions", "<.* object at 0x.*>"]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            sys.exit(f"pybind11-stubgen failed:\n{result.stdout}{result.stderr}")
        made = Path(folder) / "smartspec_core" / "_core"
        for path in made.iterdir():
            # pybind11 takes None for a pointer and does not say so in the signature.
            text = re.sub(r"(: [\w.]+) = None\b", r"\1 | None = None", path.read_text())
            path.write_text(re.sub(r"\bos\.PathLike\b(?!\[)", "os.PathLike[str]", text))
        for step in (["check", "--fix", "--quiet", "--select", "I,UP"], ["format", "--quiet"]):
            subprocess.run([BIN / "ruff", *step, "--config", ROOT / "pyproject.toml", made])
        return {path.name: path.read_text() for path in made.iterdir()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the stubs, do not compare")
    options = parser.parse_args()
    fresh = generate()
    stored = {path.name: path.read_text() for path in STUBS.glob("*.pyi")}
    if options.write:
        STUBS.mkdir(exist_ok=True)
        for name in stored.keys() - fresh.keys():
            (STUBS / name).unlink()
        for name, text in fresh.items():
            (STUBS / name).write_text(text)
        return 0
    if stored == fresh:
        return 0
    for name in sorted(stored.keys() | fresh.keys()):
        lines = difflib.unified_diff(
            stored.get(name, "").splitlines(), fresh.get(name, "").splitlines(),
            f"stored {name}", "from the module", lineterm="", n=1,
        )  # fmt: skip
        print("\n".join(list(lines)[:60]))
    print("python/smartspec_core/_core/*.pyi are out of date; run `make stubs`")
    return 1


if __name__ == "__main__":
    sys.exit(main())
