# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""The two programs in README.md: the Python one runs, the C++ one compiles."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def code_blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = code_blocks("python")
    exec(compile(program, "README.md", "exec"), {})
    assert "drafted" in capsys.readouterr().out


def test_the_cpp_example_compiles(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    assert compiler is not None
    (program,) = code_blocks("cpp")
    declared = "#include <span>\nvoid handle(std::span<const std::int32_t> tokens);\n"
    includes, body = program.split("\n\n", 1)
    source = tmp_path / "example.cpp"
    source.write_text(f"{includes}\n{declared}{body}")
    command = [compiler, "-std=c++20", "-Wall", "-Wextra", "-Werror", "-fsyntax-only",
               f"-I{ROOT}/cpp/include", str(source)]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
