#!/usr/bin/env python3
# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Registers, stack and spills of every kernel of a build, as the assembler reported them.

Reads the *.ptxas files that tools/keep_ptxas left in the build folder. Exits with status 1 when a
kernel spills that cuda/allowed_spills.txt does not name, when a line there names no kernel, or when
there is nothing to report.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
# run_kernel<Functor>(Functor) is what everything is launched through.
FUNCTOR = re.compile(r"^void smartspec::cuda::run_kernel<(.*)>\(.*\)$")


@dataclass
class Usage:
    """Of one kernel on one architecture."""

    registers: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0

    @property
    def spills(self) -> int:
        return self.spill_stores + self.spill_loads


@dataclass
class Kernel:
    name: str
    usage: dict[str, Usage] = field(default_factory=dict)  # by architecture

    @property
    def spills(self) -> int:
        return max(usage.spills for usage in self.usage.values())


def parse(text: str) -> dict[tuple[str, str], Usage]:
    """By mangled name and architecture."""
    out: dict[tuple[str, str], Usage] = {}
    current: Usage | None = None
    for line in text.splitlines():
        if match := ENTRY.search(line):
            current = out.setdefault((match[1], match[2]), Usage())
        elif current and (match := STACK.search(line)):
            # A function's own lines follow its entry line; called functions may add theirs.
            current.stack = max(current.stack, int(match[1]))
            current.spill_stores = max(current.spill_stores, int(match[2]))
            current.spill_loads = max(current.spill_loads, int(match[3]))
        elif current and (match := USED.search(line)):
            current.registers = int(match[1])
    return out


def demangle(names: list[str]) -> list[str]:
    tool = shutil.which("c++filt")
    if tool is None:
        return names
    text = "\n".join(names)
    done = subprocess.run([tool], input=text, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def short(name: str) -> str:
    name = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::", "", name)
    if match := FUNCTOR.match(name):
        name = match[1]
    name = re.sub(r"\b(smartspec|cuda|kernels)::", "", name)
    return re.sub(r"\((?:int|bool|[\w:]+)\)(-?\d+)", r"\1", name).replace(" >", ">").strip()


def collect(folder: Path) -> list[Kernel]:
    found: dict[tuple[str, str], Usage] = {}
    for path in sorted(folder.rglob("*.ptxas")):
        if path.with_suffix("").exists():  # its object; else left over from a renamed source
            found |= parse(path.read_text(errors="replace"))
    mangled = sorted({name for name, _ in found})
    kernels: dict[str, Kernel] = {}
    names = dict(zip(mangled, demangle(mangled), strict=True))
    for (name, architecture), usage in found.items():
        display = short(names[name])
        kernels.setdefault(display, Kernel(display)).usage[architecture] = usage
    return sorted(kernels.values(), key=lambda kernel: kernel.name)


def read_allowed(path: Path) -> list[tuple[re.Pattern[str], int]]:
    """Lines `PATTERN BYTES REASON`: kernels whose name matches may spill so many bytes."""
    out = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split(maxsplit=2)
        if len(parts) != 3 or not parts[1].isdigit():
            sys.exit(f"{path}:{number}: expected PATTERN BYTES REASON")
        out.append((re.compile(parts[0]), int(parts[1])))
    return out


def print_table(kernels: list[Kernel], width: int) -> None:
    known = {architecture for kernel in kernels for architecture in kernel.usage}
    architectures = sorted(known, key=lambda name: (int(re.sub(r"\D", "", name)), name))
    print("registers per thread (+ bytes of stack, bytes spilled)")
    print(f"{'kernel':<{width}}" + "".join(f"{a:>16}" for a in architectures))
    for kernel in kernels:
        cells = []
        for architecture in architectures:
            usage = kernel.usage.get(architecture)
            text = "" if usage is None else str(usage.registers)
            if usage is not None and (usage.stack or usage.spills):
                text += f" +{usage.stack} +{usage.spills}"
            cells.append(f"{text:>16}")
        name = kernel.name if len(kernel.name) <= width else kernel.name[: width - 3] + "..."
        print(f"{name:<{width}}" + "".join(cells))


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("build", type=Path, help="the build folder")
    parser.add_argument("--allowed", type=Path, default=root / "cuda/allowed_spills.txt")
    parser.add_argument("--width", type=int, default=72, help="of the names")
    options = parser.parse_args()

    kernels = collect(options.build)
    if not kernels:
        print(f"no kernels found below {options.build}: built without -Xptxas -v?")
        return 1
    print_table(kernels, options.width)
    allowed = read_allowed(options.allowed)
    faults = []
    for kernel in kernels:
        most = max((n for pattern, n in allowed if pattern.search(kernel.name)), default=0)
        if kernel.spills > most:
            faults.append(f"{kernel.name} spills {kernel.spills} bytes; allowed: {most}")
    for pattern, _ in allowed:
        if not any(pattern.search(kernel.name) and kernel.spills for kernel in kernels):
            faults.append(f"{options.allowed.name}: {pattern.pattern}: no such kernel spills")
    spilling = sum(kernel.spills > 0 for kernel in kernels)
    print(f"{len(kernels)} kernels, {spilling} of them spill")
    if faults:
        print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
