# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""The programs in README.md: the Python ones run, the C++ one compiles."""

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


def run(program: str) -> None:
    exec(compile(program, "README.md", "exec"), {})


def test_the_engine_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run(code_blocks("python")[0])
    assert "drafted" in capsys.readouterr().out


def test_the_suffix_index_example_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (program,) = code_blocks("python")[1:]
    run(program)
    assert capsys.readouterr().out.startswith("[7 8")  # drafts what followed 5, 6 before
    assert (tmp_path / "outputs.suffix").stat().st_size > 0


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
