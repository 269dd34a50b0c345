# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Chat templates: Jinja from a model directory, which is untrusted.

They are rendered by Jinja's immutable sandbox, in a child process with a limit on memory and time
(chat_worker.py), so a template can neither reach Python nor hang or exhaust the server.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smartspec_core import FormatError

from .files import read_json, read_text

MAX_TEMPLATE_BYTES = 1 << 20
MAX_SECONDS = 10.0
_WORKER = str(Path(__file__).with_name("chat_worker.py"))
# Isolated (-I), but with the paths of this process, so that it finds the same Jinja.
_START = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "runpy.run_path(sys.argv[2], run_name='__main__')"
)


class ChatTemplate:
    """One template and the special tokens it may name."""

    def __init__(self, source: str, tokens: Mapping[str, str] | None = None) -> None:
        if len(source) > MAX_TEMPLATE_BYTES:
            raise FormatError(f"chat template: longer than {MAX_TEMPLATE_BYTES} characters")
        self._source = source
        self._tokens = dict(tokens or {})

    @staticmethod
    def from_directory(folder: Path, name: str = "default") -> ChatTemplate | None:
        """chat_template.jinja, else chat_template of tokenizer_config.json, else None."""
        values: dict[str, Any] = {}
        if (folder / "tokenizer_config.json").is_file():
            values = read_json(folder / "tokenizer_config.json")
        source: Any = values.get("chat_template")
        if (folder / "chat_template.jinja").is_file():
            source = read_text(folder / "chat_template.jinja", MAX_TEMPLATE_BYTES)
        if isinstance(source, list):
            entries = [entry for entry in source if isinstance(entry, dict)]
            source = {str(entry.get("name")): entry.get("template") for entry in entries}.get(name)
        if source is None:
            return None
        if not isinstance(source, str):
            raise FormatError(f"{folder}: chat_template must be text, got {type(source).__name__}")
        return ChatTemplate(source, _special_tokens(values))

    def render(
        self,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[str]:
        """One text per conversation. ValueError when the template refuses or breaks a limit."""
        for messages in conversations:
            _check_messages(messages)
        shared = {**self._tokens, **variables, "add_generation_prompt": add_generation_prompt}
        values = [{**shared, "messages": list(messages)} for messages in conversations]
        try:
            job = json.dumps({"template": self._source, "values": values})
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"messages must be plain JSON values: {error}") from None
        return _run(job)


def _run(job: str) -> list[str]:
    command = [sys.executable, "-I", "-c", _START, json.dumps(sys.path), _WORKER]
    try:
        done = subprocess.run(
            command, input=job.encode(), capture_output=True, timeout=MAX_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"chat template: did not finish within {MAX_SECONDS:g} s") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        tail = done.stderr.decode("utf-8", "replace").strip()[-300:]
        raise ValueError(
            f"chat template: rendering ended with status {done.returncode}: {tail}"
        ) from None
    if "error" in answer:
        raise ValueError(f"chat template: {answer['error']}")
    texts: list[str] = answer["texts"]
    return texts


def _special_tokens(values: Mapping[str, Any]) -> dict[str, str]:
    tokens = {}
    for key, value in values.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            tokens[key] = content
    return tokens


def _check_messages(messages: object) -> None:
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence) or not messages:
        raise ValueError("messages must be a non-empty list of {'role': ..., 'content': ...}")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"messages[{i}] must be a mapping with a 'role' string")
