# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Plants one violation of each layer rule and expects tools/check_layers.py to name it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_layers", ROOT / "tools/check_layers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_layers"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("layers")
    for folder in ("cpp", "cuda", "python", "bench", "examples"):
        source = ROOT / folder
        shutil.copytree(source, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def faults(tool: ModuleType, root: Path) -> list[str]:
    return [*tool.check_cpp(root), *tool.check_python(root)]


def test_the_tree_is_clean(tool: ModuleType, tree: Path) -> None:
    assert faults(tool, tree) == []


@pytest.mark.parametrize(
    ("file", "line", "expected"),
    [
        ("cpp/include/smartspec/planted.hpp", "#include <pybind11/pybind11.h>", "<pybind11"),
        ("cpp/include/smartspec/planted.hpp", '#include "kv/kv_ledger.hpp"', "kv/kv_ledger.hpp"),
        ("cpp/src/core/planted.cpp", '#include "smartspec/engine.hpp"', "may not include"),
        ("cpp/src/kv/planted.cpp", '#include "smartspec/sampler.hpp"', "may not include"),
        ("cpp/src/verify/planted.cpp", '#include "backend/backend.hpp"', "may not include"),
        ("cpp/src/propose/planted.cpp", '#include "smartspec/kv_cache.hpp"', "may not include"),
        ("cpp/src/schedule/planted.cpp", '#include "smartspec/proposer.hpp"', "may not include"),
        ("cpp/src/cpu/planted.cpp", '#include "model/decoder.hpp"', "may not include"),
        ("cpp/src/model/planted.cpp", '#include "cpu/kernels.hpp"', "may not include"),
        ("cpp/src/model/planted.cpp", "#include <immintrin.h>", "not the standard library"),
        ("cpp/src/engine/planted.cpp", '#include "cpu/kernels.hpp"', "may not include"),
        ("cuda/host/planted.cpp", '#include "model/decoder.hpp"', "may not include"),
        ("python/bindings/planted.cpp", '#include "backend/backend.hpp"', "may not include"),
        ("bench/cpp/planted.cpp", '#include "model/decoder.hpp"', "may not include"),
        ("cpp/src/core/planted.cpp", '#include "smartspec/absent.hpp"', "no public header"),
        ("cpp/src/newpart/planted.cpp", "#include <vector>", "no layer rule"),
        ("python/smartspec_core/planted.py", "import smartspec", "may not import smartspec"),
        ("python/smartspec_core/planted.py", "from smartspec.llm import LLM", "may not import"),
        ("python/smartspec/planted.py", "import torch", "test reference only"),
        ("python/smartspec/planted.py", "from smartspec_core._core import x", "smartspec_core._"),
    ],
)
def test_a_planted_violation_is_found(
    tool: ModuleType, tree: Path, file: str, line: str, expected: str
) -> None:
    path = tree / file
    existed = path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{line}\n")
    try:
        found = faults(tool, tree)
    finally:
        if existed:
            path.unlink()
        else:
            shutil.rmtree(path.parent)
    assert len(found) == 1, found
    assert expected in found[0]


def test_a_circle_of_public_headers_is_found(tool: ModuleType, tree: Path) -> None:
    header = tree / "cpp/include/smartspec/types.hpp"
    original = header.read_text()
    header.write_text('#include "smartspec/engine.hpp"\n' + original)
    try:
        found = [fault for fault in faults(tool, tree) if "circle" in fault]
    finally:
        header.write_text(original)
    assert len(found) == 1
    assert "types.hpp" in found[0]
