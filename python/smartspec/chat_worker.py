# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Renders chat templates in a process of its own: {"template", "values"} on stdin, {"texts"} or
{"error"} on stdout. Imports nothing of smartspec; see chat.py."""

import datetime
import json
import resource
import sys

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_MEMORY_BYTES = 1 << 30
MAX_OUTPUT_CHARS = 16 << 20


class Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks text for training; here it is only text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def raise_exception(message: str) -> None:
    raise TemplateError(message)


def to_json(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def render_all(template: str, values: list[dict[str, object]]) -> list[str]:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json  # transformers' form: no HTML escapes
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    compiled = environment.from_string(template)
    texts = []
    room = MAX_OUTPUT_CHARS
    for variables in values:
        parts = []
        for part in compiled.generate(variables):
            room -= len(part)
            if room < 0:
                raise TemplateError(f"the text exceeds {MAX_OUTPUT_CHARS} characters")
            parts.append(part)
        texts.append("".join(parts))
    return texts


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    job = json.load(sys.stdin)
    answer: dict[str, object]
    try:
        answer = {"texts": render_all(job["template"], job["values"])}
    except MemoryError:
        answer = {"error": f"needs more than the {MAX_MEMORY_BYTES >> 20} MiB allowed"}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"[:500]}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
