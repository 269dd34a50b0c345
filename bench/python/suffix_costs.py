# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""What suffix proposers cost, for suffix_vs_reference.py: time, memory. Not a program."""

from __future__ import annotations

import ctypes
import gc
import importlib
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from suffix_arms import (
    Arm,
    IndexArm,
    Options,
    cpu_ns,
    fill,
    history_builder,
    make_arm,
    new_index,
    reference_options,
)
from suffix_workloads import Workload, read_workload


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


class MallInfo(ctypes.Structure):
    _fields_ = [
        *((f"unused{i}", ctypes.c_size_t) for i in range(4)),
        ("hblkhd", ctypes.c_size_t),  # in mappings of their own
        *((f"unused{i}", ctypes.c_size_t) for i in range(5, 7)),
        ("uordblks", ctypes.c_size_t),  # in the arenas
        *((f"unused{i}", ctypes.c_size_t) for i in range(8, 10)),
    ]


def heap_bytes() -> int:
    """Bytes that malloc has handed out; 0 where the C library cannot tell."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = MallInfo
    info = mallinfo2()
    return int(info.uordblks) + int(info.hblkhd)


def probe_build(kind: str, options: Options, path: str) -> dict[str, float]:
    """Time and memory of a history, alone in its process."""
    history = [r.response for r in read_workload(Path(path))]
    tokens = sum(map(len, history))
    build = history_builder(kind, options)
    gc.collect()
    rss, heap, start = resident_bytes(), heap_bytes(), cpu_ns()
    index = build(history)
    seconds = (cpu_ns() - start) / 1e9
    figures = {
        "tokens": tokens,
        "build_s": seconds,
        "build_mtok_s": tokens / seconds / 1e6,
        "rss_bytes_per_token": (resident_bytes() - rss) / tokens,
        "heap_bytes_per_token": (heap_bytes() - heap) / tokens,
    }
    if hasattr(index, "stats"):
        stats = index.stats()
        live = stats.num_tokens - stats.frozen_tokens
        figures["own_bytes_per_token"] = stats.num_bytes / stats.num_tokens
        figures["live_bytes_per_token"] = (stats.num_bytes - stats.frozen_bytes) / max(1, live)
        figures["frozen_bytes_per_token"] = stats.frozen_bytes / max(1, stats.frozen_tokens)
        figures["frozen_tokens"] = stats.frozen_tokens
    return figures


def measure_restart(kind: str, arm: IndexArm) -> dict[str, float]:
    """Save, and load into a new index."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "history"
        start = time.perf_counter()
        arm.index.save(path)
        saved = time.perf_counter()
        index = new_index(kind)
        before = time.perf_counter()
        index.load(path)
        loaded = time.perf_counter()
        return {
            "save_ms": (saved - start) * 1e3,
            "load_ms": (loaded - before) * 1e3,
            "file_bytes_per_token": path.stat().st_size / index.stats().num_tokens,
        }


def measure_prompts(arm: Arm, history: Workload, first_id: int) -> dict[str, float]:
    text = np.concatenate([r.response for r in history])
    costs: dict[str, float] = {}
    for length in (1024, 16384, 131072):
        starts, stops = [], []
        for i in range(3 if length > 20000 else 9):
            offset = (i * 190_001) % max(1, len(text) - length)
            prompt = text[offset : offset + length].copy()
            a = cpu_ns()
            arm.start(first_id, prompt)
            b = cpu_ns()
            arm.stop(first_id)
            stops.append(cpu_ns() - b)
            starts.append(b - a)
            arm.forget(first_id)
            first_id += 1
        costs[f"start_{length}_ms"] = statistics.median(starts) / 1e6
        costs[f"drop_{length}_ms"] = statistics.median(stops) / 1e6
    return costs


def measure_slices(arm: IndexArm, history: Workload, request: int) -> dict[str, float]:
    """A prompt of 128k tokens fed in slices, as between the steps of a server."""
    prompt = np.concatenate([r.response for r in history])[-131072:]
    arm.index.start_request(request, num_prompt_tokens=len(prompt))
    times = []
    for at in range(0, len(prompt), 4096):
        piece = prompt[at : at + 4096].copy()
        start = cpu_ns()
        arm.index.extend(request, piece)
        times.append((cpu_ns() - start) / 1e6)
    arm.stop(request)
    arm.forget(request)
    return {"slice_tokens": 4096, "median_ms": statistics.median(times), "max_ms": max(times)}


def measure_bound(history: Workload) -> dict[str, float]:
    """The history through an index that holds about a third of it, nothing frozen."""
    module = importlib.import_module("smartspec_core")
    gc.collect()
    rss = resident_bytes()
    bound = 64 << 20
    index = module.SuffixIndex(max_bytes=bound, generation_bytes=bound // 4, freeze=False)
    slowest, most = 0, 0
    for request in history:
        start = cpu_ns()
        index.preload([request.response])
        slowest = max(slowest, cpu_ns() - start)
        most = max(most, index.stats().num_bytes)
    stats = index.stats()
    return {
        "max_bytes": bound,
        "most_bytes": most,
        "rss_bytes": resident_bytes() - rss,
        "evicted_tokens": stats.evicted_tokens,
        "kept_tokens": stats.num_tokens,
        "slowest_response_ms": slowest / 1e6,
    }


def measure_batch(arm: Arm, batch: Workload, first_id: int, cold: bool) -> dict[str, float]:
    """Steps of a batch, 3 new tokens each. Cold: other memory is used before update and draft."""
    steps, new_tokens = (20, 3) if cold else (60, 3)
    other = np.zeros(256 << 20, dtype=np.uint8)

    def disturb() -> None:
        if cold:
            np.add(other, 1, out=other)

    ids = list(range(first_id, first_id + len(batch)))
    texts = [np.concatenate([r.prompt[-6000:], r.response]) for r in batch]
    ends = [min(len(r.prompt), 6000) for r in batch]
    for i, text, end in zip(ids, texts, ends, strict=True):
        arm.start(i, text[:end].copy())
    updates, drafts, totals, drafted = [], [], [], 0
    for _ in range(steps):
        new = [t[e : e + new_tokens].tolist() for t, e in zip(texts, ends, strict=True)]
        ends = [min(e + new_tokens, len(t)) for t, e in zip(texts, ends, strict=True)]
        contexts = [t[max(0, e - arm.context) : e] for t, e in zip(texts, ends, strict=True)]
        update, draft, count = arm.step(ids, new, contexts, disturb)
        updates.append(update / 1e6)
        drafts.append(draft / 1e6)
        totals.append((update + draft) / 1e6)
        drafted += count
    for i in ids:
        arm.stop(i)
        arm.forget(i)
    return {
        "requests": len(batch),
        "update_ms": statistics.median(updates),
        "draft_ms": statistics.median(drafts),
        "step_ms": statistics.median(totals),
        "drafted_per_request": drafted / steps / len(batch),
    }


def measure_forget(arm: Arm, history: Workload) -> dict[str, float]:
    chosen = list(range(0, len(history), max(1, len(history) // 64)))
    rss, start = resident_bytes(), cpu_ns()
    for i in chosen:
        arm.forget(i)
    tokens = sum(len(history[i].response) for i in chosen)
    return {
        "us_per_token": (cpu_ns() - start) / tokens / 1e3,
        "rss_given_back_per_token": (rss - resident_bytes()) / tokens,
    }


def run_costs(directory: Path, arms: Sequence[str], threshold: float) -> dict[str, Any]:
    history = read_workload(directory / "train.bin")
    batch = read_workload(directory / "batch.bin")
    results: dict[str, Any] = {}
    labels = [(label, o) for label, o in reference_options(False).items() if "reference" in arms]
    labels += [(kind, Options(threshold=threshold)) for kind in arms if kind != "reference"]
    for label, options in labels:
        kind = label.split()[0]
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            costs: dict[str, Any] = {
                "history": pool.apply(probe_build, (kind, options, str(directory / "train.bin")))
            }
        arm = make_arm(kind, options)
        fill(arm, history)
        if isinstance(arm, IndexArm):
            costs["restart"] = measure_restart(kind, arm)
        next_id = len(history)
        costs["prompts"] = measure_prompts(arm, history, next_id)
        if isinstance(arm, IndexArm):
            costs["slices"] = measure_slices(arm, history, next_id + 900)
            costs["bound"] = measure_bound(history)
        costs["batch_warm"] = measure_batch(arm, batch, next_id + 1000, cold=False)
        costs["batch_cold"] = measure_batch(arm, batch, next_id + 2000, cold=True)
        costs["forget"] = measure_forget(arm, history)
        results[label] = costs
        del arm
        gc.collect()
        print(f"costs of {label} ({directory.name}):")
        for part, values in costs.items():
            print(
                f"  {part:11} " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()), flush=True
            )
    return results
