# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Reading small text files of a model directory: bounded, strict, never executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from smartspec_core import FormatError

MAX_JSON_BYTES = 16 << 20


def read_text(path: Path, limit: int = MAX_JSON_BYTES) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(data) > limit:
        raise FormatError(f"{path}: larger than the {limit} bytes allowed")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object; FormatError names the file."""
    try:
        value = json.loads(read_text(path, limit))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path}: must hold a JSON object, got {type(value).__name__}")
    return value
