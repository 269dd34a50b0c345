#!/usr/bin/env python3
# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Installs what building and testing need: Python packages into ./.venv, and, where the system
lacks them, Python's C headers and GoogleTest with apt.

With root rights apt installs; without, the .deb files are unpacked into ./.deps, which the Makefile
puts on the search paths. Safe to run again: what is there is left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
DEPS = ROOT / ".deps"
PYTHON = VENV / "bin" / "python"
TORCH = "torch==2.13.0"


def say(text: str) -> None:
    print(f"== {text}", flush=True)


def fail(text: str) -> None:
    sys.exit(f"setup: {text}")


def run_quiet(*command: str | Path, env: dict[str, str] | None = None) -> tuple[bool, str]:
    result = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        env=env,
    )
    return result.returncode == 0, result.stdout


# ------------------------------------------------------------------------------------ apt packages


def apt(*arguments: str) -> tuple[bool, str]:
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive", LC_ALL="C")
    return run_quiet("apt-get", "-qq", *arguments, env=env)


def apt_install(packages: list[str]) -> bool:
    """Installs system-wide; refreshes the package lists and tries once more when that fails."""
    if os.geteuid() != 0:
        return False
    command = ["install", "-y", "--no-install-recommends", *packages]
    return apt(*command)[0] or (apt("update")[0] and apt(*command)[0])


def apt_unpack(packages: list[str]) -> bool:
    """Unpacks the packages (not what they depend on) into .deps; needs no rights."""
    lists = DEPS / "apt"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    private = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={lists}"]
    with tempfile.TemporaryDirectory() as folder:
        here = Path.cwd()
        os.chdir(folder)
        try:
            fetched = apt("download", *packages)[0] or (
                apt(*private, "update")[0] and apt(*private, "download", *packages)[0]
            )
        finally:
            os.chdir(here)
        if not fetched:
            return False
        return all(run_quiet("dpkg", "-x", deb, DEPS)[0] for deb in Path(folder).glob("*.deb"))


def compiles(header: str, *flags: str) -> bool:
    """Whether g++ finds the header and the libraries, on the system or in .deps."""
    library_dirs = [f"-L{path}" for path in DEPS.glob("usr/lib/*-linux-gnu")]
    source = f"#include <{header}>\nint main() {{}}\n"
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "g++", "-std=c++20", "-x", "c++", "-", f"-I{DEPS}/usr/include", *library_dirs, *flags,
            "-pthread", "-o", f"{folder}/probe",
        ]  # fmt: skip
        return subprocess.run(command, input=source, text=True, capture_output=True).returncode == 0


def need_system(what: str, packages: list[str], header: str, *flags: str) -> None:
    if compiles(header, *flags):
        return
    say(f"installing {what} ({', '.join(packages)})")
    brought = shutil.which("apt-get") and (apt_install(packages) or apt_unpack(packages))
    if brought and compiles(header, *flags):
        return
    fail(
        f"{what} was not found (header <{header}>) and apt could not bring it; install it "
        f"yourself (Debian: apt-get install {' '.join(packages)}) and run the command again"
    )


def need_python_headers() -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    include = Path(sysconfig.get_path("include"))
    if (include / "Python.h").exists():
        return
    need_system("the C headers of Python", [f"lib{version}-dev"], f"{version}/Python.h")


# ------------------------------------------------------------------------------------- virtual env


def add_pip() -> bool:
    """Brings pip into a virtual environment made without it (Debian without python3-venv)."""
    if run_quiet(sys.executable, "-m", "pip", "--python", PYTHON, "install", "-q", "pip")[0]:
        return True
    if not shutil.which("apt-get") or not apt_unpack(["python3-pip-whl"]):
        return False
    wheels = sorted(DEPS.glob("usr/share/python-wheels/pip-*.whl"))
    return (
        bool(wheels)
        and run_quiet(PYTHON, f"{wheels[-1]}/pip", "install", "-q", "--no-index", wheels[-1])[0]
    )


def make_venv() -> None:
    if PYTHON.exists() and run_quiet(PYTHON, "-m", "pip", "--version")[0]:
        return
    say(f"creating .venv with Python {sys.version.split()[0]}")
    if run_quiet(sys.executable, "-m", "venv", "--clear", VENV)[0]:
        return
    done, output = run_quiet(sys.executable, "-m", "venv", "--clear", "--without-pip", VENV)
    if not done:
        fail(f"could not create {VENV}:\n{output}")
    if not add_pip():
        fail("could not bring pip into .venv; install it (Debian: apt-get install python3-venv)")


def pip_install(requirements: list[str], *options: str) -> tuple[bool, str]:
    common = ("-q", "--disable-pip-version-check", "--no-input", "--progress-bar", "off")
    return run_quiet(PYTHON, "-m", "pip", "install", *common, *options, *requirements)


def install_torch() -> None:
    """The CPU build by name where pip's index has it, else the plain one, which on Linux brings
    gigabytes of CUDA libraries; PIP_EXTRA_INDEX_URL can point pip to PyTorch's CPU index."""
    if run_quiet(PYTHON, "-c", "import torch")[0]:
        return
    say(f"installing {TORCH}")
    done, first = pip_install([f"{TORCH}+cpu"])
    if done:
        return
    done, second = pip_install([TORCH])
    if not done:
        fail(f"pip could not install {TORCH}:\n{first}\n{second}")


def install_group(name: str, requirements: list[str], what: str) -> None:
    """One pip call, skipped while the list is the one of the last success."""
    stamp = VENV / f".smartspec-{name}"
    digest = hashlib.sha256("\n".join(requirements).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    if name == "test":
        install_torch()
    say(f"installing Python packages for {what}")
    done, output = pip_install(requirements)
    if not done:
        fail(f"pip failed:\n{output}")
    stamp.write_text(digest)


def link_tree() -> None:
    """Makes .venv import the packages of build/release and have the command, without an install."""
    scheme = {"base": str(VENV), "platbase": str(VENV)}
    packages = Path(sysconfig.get_path("purelib", "posix_prefix", scheme))
    (packages / "smartspec-tree.pth").write_text(f"{ROOT}/build/release/pythonpath\n")
    command = VENV / "bin" / "smartspec"
    command.write_text(
        f"#!{PYTHON}\nimport sys\n\nfrom smartspec.__main__ import main\n\nsys.exit(main())\n"
    )
    command.chmod(0o755)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tests", action="store_true", help="also what the tests and linters need")
    options = parser.parse_args()
    if not shutil.which("g++"):
        fail("g++ was not found; SmartSpec needs g++ 12 or later (Debian: apt-get install g++)")

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    make_venv()
    install_group(
        "build",
        ["cmake>=3.26", "ninja>=1.11", *project["build-system"]["requires"],
         *project["project"]["dependencies"], *extras["plot"]],
        "building and running",
    )  # fmt: skip
    link_tree()
    need_python_headers()
    if options.tests:
        need_system("GoogleTest", ["libgtest-dev"], "gtest/gtest.h", "-lgtest", "-lgtest_main")
        install_group("test", [*extras["test"], *extras["dev"]], "the tests")


if __name__ == "__main__":
    main()
