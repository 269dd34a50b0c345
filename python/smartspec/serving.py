# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Workloads that arrive over time, and a loop that serves them."""

from __future__ import annotations

import csv
import itertools
import math
import random
import sysconfig
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from .llm import LLM
from .metrics import ProgressBar
from .requests import ActiveRequest, PreparedRequest
from .sampling_params import SamplingParams
from .shipped import heldout_files
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class WorkItem:
    """One request and when it arrives, in seconds after the start."""

    token_ids: list[int]
    params: SamplingParams
    arrival: float = 0.0


def gamma_arrivals(count: int, rate: float, burstiness: float, rng: random.Random) -> list[float]:
    """Arrival times with gamma-distributed gaps of mean 1/rate and shape `burstiness`, as in
    vLLM's benchmark: 1 is a Poisson process, less comes in bursts, more is more regular."""
    if not 0 < burstiness < float("inf"):
        raise ValueError(f"burstiness must be above 0 and finite, got {burstiness}")
    if burstiness == 1 or rate == float("inf"):
        return poisson_arrivals(count, rate, rng)
    times = [0.0]
    for _ in range(count - 1):
        times.append(times[-1] + rng.gammavariate(burstiness, 1 / (rate * burstiness)))
    return times


@dataclass(frozen=True)
class TraceRow:
    arrival: float  # seconds after the first
    num_input: int
    num_output: int


_TRACE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def read_trace(path: Path, count: int) -> list[TraceRow]:
    """The first `count` rows of a CSV file with the columns of Azure's LLM traces: TIMESTAMP
    (date and time, or seconds), ContextTokens, GeneratedTokens."""
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in _TRACE_COLUMNS if name not in (reader.fieldnames or ())]:
            raise ValueError(f"{path}: the column {missing[0]} is missing")
        for line, row in enumerate(itertools.islice(reader, count), start=2):
            try:
                values = [_seconds(row["TIMESTAMP"]), *(int(row[c]) for c in _TRACE_COLUMNS[1:])]
            except (TypeError, ValueError):
                values = [math.nan]
            if not all(math.isfinite(value) for value in values) or min(values[1:]) < 0:
                raise ValueError(f"{path}: line {line}: needs a time and two numbers of tokens")
            rows.append(TraceRow(values[0], int(values[1]), int(values[2])))
    if not rows:
        raise ValueError(f"{path} has no rows")
    rows.sort(key=lambda row: row.arrival)
    first = rows[0].arrival
    return [TraceRow(row.arrival - first, row.num_input, row.num_output) for row in rows]


def scale_lengths(lengths: Sequence[int], longest: int) -> list[int]:
    """Shrunk so that none exceeds `longest`, in proportion, at least 1; never stretched."""
    scale = min(1.0, longest / max(1, *lengths))
    return [max(1, round(length * scale)) for length in lengths]


def poisson_arrivals(count: int, rate: float, rng: random.Random) -> list[float]:
    """Arrival times of a Poisson process with `rate` requests a second; infinite: all at once."""
    if rate == float("inf"):
        return [0.0] * count
    times = [0.0]
    for _ in range(count - 1):
        times.append(times[-1] + rng.expovariate(rate))
    return times


def heldout_sources() -> dict[str, str]:
    """Texts of the running Python's standard-library files that the shipped pair never saw."""
    library = Path(sysconfig.get_path("stdlib"))
    sources = {}
    for name in heldout_files():
        path = library / name
        try:
            sources[name] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
    return sources


def cut_prompts(
    sources: Sequence[str], tokenizer: Tokenizer, lengths: Sequence[int], rng: random.Random
) -> list[list[int]]:
    """One prompt per length: consecutive tokens of a source, from the beginning of a line."""
    texts = [text for text in sources if text.strip()]
    if not texts:
        raise ValueError("there is no source to cut prompts from")
    prompts = []
    for length in lengths:
        for _ in range(1000):
            text = rng.choice(texts)
            start = text.rfind("\n", 0, rng.randrange(len(text))) + 1
            ids = tokenizer.encode(text[start : start + 16 * length], add_special_tokens=False)
            if len(ids) >= length:
                break
        else:
            raise ValueError(f"no source is long enough for a prompt of {length} tokens")
        prompts.append(ids[:length])
    return prompts


def random_prompts(vocab_size: int, lengths: Sequence[int], rng: random.Random) -> list[list[int]]:
    return [[rng.randrange(vocab_size) for _ in range(length)] for length in lengths]


@dataclass(frozen=True)
class ServingRun:
    requests: list[ActiveRequest]
    duration: float


def serve(
    llm: LLM,
    items: Sequence[WorkItem],
    max_concurrency: int | None = None,
    progress: str | None = None,
) -> ServingRun:
    """Plays the arrivals in real time. With `max_concurrency`, later ones wait; a request's
    arrival, from which TTFT counts, is then when it is let in, as in vLLM's benchmark."""
    waiting: deque[tuple[float, PreparedRequest]] = deque(
        (item.arrival, llm.prepare(item.token_ids, item.params)) for item in items
    )
    limit = max_concurrency or len(items)
    bar = ProgressBar(len(items), progress is not None, progress or "")
    running: list[ActiveRequest] = []
    requests = []
    start = time.monotonic()
    try:
        while waiting or running:
            now = time.monotonic() - start
            while waiting and waiting[0][0] <= now and len(running) < limit:
                request = llm.start(waiting.popleft()[1])
                running.append(request)
                requests.append(request)
            if not running:
                time.sleep(max(0.0, min(waiting[0][0] - now, 0.05)))
                continue
            llm.step()
            bar.update([request for request in running if request.finished])
            running = [request for request in running if not request.finished]
    finally:
        bar.close()
        for request in running:
            llm.abort(request)
    return ServingRun(requests, time.monotonic() - start)


def forget(llm: LLM) -> None:
    """What was served before must not help: prompts in the prefix cache, outputs in the index."""
    llm.engine.clear_prefix_cache()
    if llm.suffix_index is not None:
        llm.suffix_index.clear()
