#!/usr/bin/env python3
# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Checks who includes and imports whom against the layer rules of DESIGN.md.

Prints one line per broken rule and exits with status 1 when there is any. Text only: nothing is
compiled, so a rule holds also for files that the current configuration leaves out.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
CPP_SUFFIXES = {".hpp", ".cpp", ".h", ".cu", ".cuh", ".inc"}

# Public headers that carry no behaviour of a part: every layer may speak them.
VOCABULARY = {
    "export", "types", "error", "tensor_view", "token_tree", "sampling_params", "philox",
}  # fmt: skip

# C++20 headers used or usable by public headers; anything else is not the standard library.
STANDARD = set(
    """
    algorithm any array atomic barrier bit bitset cassert cctype cerrno cfenv cfloat charconv chrono
    cinttypes climits cmath compare complex concepts condition_variable csignal cstddef cstdint
    cstdio cstdlib cstring ctime cwchar deque exception execution filesystem forward_list fstream
    functional future initializer_list iomanip ios iosfwd iostream istream iterator latch limits
    list locale map memory memory_resource mutex new numbers numeric optional ostream queue random
    ranges ratio regex semaphore set shared_mutex source_location span sstream stack stdexcept
    stop_token streambuf string string_view system_error thread tuple type_traits typeindex typeinfo
    unordered_map unordered_set utility valarray variant vector version
    """.split()  # noqa: SIM905
)
# The operating system: mapping files, asking for cores and memory.
POSIX = {"fcntl.h", "pthread.h", "sched.h", "sys/mman.h", "sys/stat.h", "sys/types.h", "unistd.h"}
INTRINSICS = {"immintrin.h", "cpuid.h"}


@dataclass(frozen=True)
class Layer:
    """What the files below `folder` may include. `public`: headers of cpp/include/smartspec, None
    for all of them; `internal`: folders and files of cpp/src; `system`: what <...> may name, None
    for anything."""

    folder: str
    public: frozenset[str] | None
    internal: tuple[str, ...] = ()
    system: frozenset[str] | None = field(default=frozenset(STANDARD | POSIX))


def vocabulary_and(*headers: str) -> frozenset[str]:
    return frozenset(VOCABULARY | set(headers))


BACKEND_SEAM = "backend/backend.hpp"
SCHEDULE = (
    "length_policy", "cost_model", "allocation", "survival_model", "goodput_policy",
    "baseline_policies", "scheduler", "policy_trace",
)  # fmt: skip
LAYERS = [
    Layer("cpp/include/smartspec", None, (), frozenset(STANDARD)),
    # L0 and L1: the parts that stand alone.
    Layer("cpp/src/core", vocabulary_and(), ("core/",)),
    Layer("cpp/src/kv", vocabulary_and("kv_cache"), ("core/", "kv/")),
    Layer("cpp/src/verify", vocabulary_and("sampler"), ("core/", "verify/")),
    Layer("cpp/src/propose",
          vocabulary_and("proposer", "prompt_lookup", "suffix_index", "suffix_proposer"),
          ("core/", "propose/")),
    Layer("cpp/src/schedule", vocabulary_and(*SCHEDULE), ("core/", "schedule/")),
    # Drives the schedule part in virtual time, through its public headers.
    Layer("cpp/src/simulate", vocabulary_and("simulator", *SCHEDULE), ("core/", "simulate/")),
    # L2: the seam and the devices behind it. model.hpp declares make_runtime.
    Layer("cpp/src/backend", vocabulary_and("model", "cuda_ops"), ("core/", "backend/")),
    Layer("cpp/src/cpu", vocabulary_and(), ("core/", BACKEND_SEAM, "cpu/"),
          frozenset(STANDARD | POSIX | INTRINSICS)),
    Layer("cuda", vocabulary_and("cuda_ops"), ("core/", BACKEND_SEAM), None),
    # L3, L4.
    Layer("cpp/src/model", vocabulary_and("model", "safetensors"),
          ("core/", BACKEND_SEAM, "model/")),
    Layer("cpp/src/engine", None,
          ("core/", "kv/", "verify/", "propose/", "schedule/", "backend/", "model/", "engine/")),
    # L5: users of the library see what everybody sees.
    Layer("python/bindings", None, (), None),
    Layer("bench", None, (BACKEND_SEAM, "cpu/"), None),  # kernels are timed as verbs
    Layer("examples", None, (), None),
]  # fmt: skip


def includes_of(path: Path) -> Iterator[tuple[int, bool, str]]:
    """(line, quoted, name) of each include."""
    text = path.read_text(encoding="utf-8")
    for match in INCLUDE.finditer(text):
        yield text.count("\n", 0, match.start(2)) + 1, match[1] == '"', match[2]


def check_file(root: Path, path: Path, layer: Layer) -> Iterator[str]:
    for line, quoted, name in includes_of(path):
        where = f"{path.relative_to(root)}:{line}"
        public = name.removeprefix("smartspec/").removesuffix(".hpp")
        if name.startswith("smartspec/"):
            if not (root / "cpp/include" / name).exists():
                yield f"{where}: {name} is no public header"
            elif layer.public is not None and public not in layer.public:
                allowed = ", ".join(sorted(layer.public))
                yield f"{where}: {layer.folder} may not include {name}; allowed: {allowed}"
        elif not quoted:
            if layer.system is not None and name not in layer.system:
                yield f"{where}: {layer.folder} may not include <{name}>: not the standard library"
        elif (root / "cpp/src" / name).exists():
            if not name.startswith(layer.internal):
                allowed = ", ".join(layer.internal) or "none of cpp/src"
                yield f"{where}: {layer.folder} may not include {name}; allowed: {allowed}"
        elif not (path.parent / name).exists() and not any(
            (root / layer.folder / found).exists()
            for found in (name, f"kernels/{name}.in")  # .in: CMake writes it
        ):
            yield f"{where}: {name} was not found"
        elif layer.folder.startswith("cpp/"):
            yield f"{where}: write {name} with its folder, from cpp/src or cpp/include"


def find_cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """One cycle of the graph as a list of nodes, first one repeated; None without any."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        for other in sorted(graph.get(node, ())):
            cycle = visit(other, [*path, node])
            if cycle:
                return cycle
        done.add(node)
        return None

    return next((c for c in (visit(node, []) for node in sorted(graph)) if c), None)


def check_cpp(root: Path) -> Iterator[str]:
    for layer in LAYERS:
        for path in sorted((root / layer.folder).rglob("*")):
            if path.suffix in CPP_SUFFIXES:
                yield from check_file(root, path, layer)
    for folder in sorted((root / "cpp/src").iterdir()):
        if folder.is_dir() and f"cpp/src/{folder.name}" not in {layer.folder for layer in LAYERS}:
            yield f"cpp/src/{folder.name}: no layer rule; add one to tools/check_layers.py"

    include = root / "cpp/include"
    graph = {
        str(path.relative_to(include)): {name for _, _, name in includes_of(path)}
        for path in (include / "smartspec").glob("*.hpp")
    }
    cycle = find_cycle(graph)
    if cycle:
        yield f"public headers include each other in a circle: {' -> '.join(cycle)}"


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module


def check_python(root: Path) -> Iterator[str]:
    """smartspec_core never imports smartspec; smartspec needs neither torch nor transformers and
    does not reach around smartspec_core's front door."""
    for package in ("smartspec_core", "smartspec"):
        for path in sorted((root / "python" / package).rglob("*.py")):
            for line, module in imports_of(path):
                where = f"{path.relative_to(root)}:{line}"
                top = module.split(".")[0]
                if package == "smartspec_core" and top == "smartspec":
                    yield f"{where}: smartspec_core may not import smartspec"
                if top in {"torch", "transformers", "safetensors"}:
                    yield f"{where}: {package} may not import {top}: it is a test reference only"
                if package == "smartspec" and module.startswith("smartspec_core._"):
                    yield f"{where}: import smartspec_core, not {module}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    root = parser.parse_args().root.resolve()
    faults = [*check_cpp(root), *check_python(root)]
    print("\n".join(faults) if faults else "layer rules hold")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
