# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Where the target/draft pair that comes with SmartSpec lies."""

from pathlib import Path

_NAMES = ("target", "draft")


def _models_dir() -> Path:
    """smartspec/models in an installed wheel, models/ of the repository in a source tree."""
    here = Path(__file__).resolve().parent
    for folder in (here / "models", here.parents[1] / "models"):
        if (folder / "target" / "config.json").is_file():
            return folder
    raise FileNotFoundError("the shipped models were not installed with this copy of smartspec")


def shipped_model(name: str) -> str:
    """Path of the shipped "target" or "draft" model, in Hugging Face layout."""
    if name not in _NAMES:
        raise ValueError(f"shipped_model: name must be one of {', '.join(_NAMES)}, got {name!r}")
    return str(_models_dir() / name)


def heldout_files() -> list[str]:
    """Files of Python's standard library, relative to it, that the pair was not trained on."""
    text = (_models_dir() / "heldout_files.txt").read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]
