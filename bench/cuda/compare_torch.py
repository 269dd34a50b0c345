#!/usr/bin/env python3
# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Tree attention beside what torch users have: scaled_dot_product_attention with a mask,
flex_attention with a tree mask, and FlashInfer's custom mask where it is installed. One process,
the same numbers, each candidate checked against float64 first, then replays of CUDA graphs in turn;
medians.

The others get their keys gathered into one dense tensor beforehand (FlashInfer: pages as they are),
which favours them. Needs a CUDA build of smartspec on PYTHONPATH and torch with CUDA."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from smartspec.cuda import PagedKv, TreeAttention, is_usable, unusable_reason

DEVICE = "cuda"
PAGE = 16
TOLERANCE = 4e-3  # absolute, bf16, values about normal


@dataclass(frozen=True)
class Case:
    name: str
    sequences: int
    context: int
    nodes: int
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128


CASES = [
    Case("B=1 L=8k T=16", 1, 8192, 16),
    Case("B=1 L=8k T=64", 1, 8192, 64),
    Case("B=16 L=8k T=16", 16, 8192, 16),
    Case("B=16 L=8k T=32", 16, 8192, 32),
    Case("B=16 L=8k T=64", 16, 8192, 64),
    Case("B=64 L=4k T=16", 64, 4096, 16),
    Case("B=64 L=4k T=64", 64, 4096, 64),
]


class Inputs:
    """One case; `sets` independent caches, so that replays do not find theirs in the L2 cache."""

    def __init__(self, case: Case, sets: int) -> None:
        self.case = case
        generator = torch.Generator(DEVICE).manual_seed(1)
        keys = case.context + case.nodes
        pages = -(-keys // PAGE)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(
                shape, generator=generator, device=DEVICE, dtype=torch.float32
            ).bfloat16()

        def integers(values: Any) -> torch.Tensor:
            return torch.as_tensor(values, dtype=torch.int32, device=DEVICE)

        self.q = normal(case.sequences * case.nodes, case.heads, case.head_dim)
        order = torch.randperm(case.sequences * pages, generator=generator, device=DEVICE)
        self.block_table = order.view(case.sequences, pages).int()
        shape = (case.sequences * pages, PAGE, case.kv_heads, case.head_dim)
        self.caches = [(normal(*shape), normal(*shape)) for _ in range(sets)]
        self.parents = [
            [int(torch.randint(n, (1,))) if n else -1 for n in range(case.nodes)]
            for _ in range(case.sequences)
        ]
        seen = torch.zeros(case.sequences, case.nodes, case.nodes, dtype=torch.bool)
        for s, parents in enumerate(self.parents):
            for n, parent in enumerate(parents):
                if parent >= 0:
                    seen[s, n] = seen[s, parent]
                seen[s, n, n] = True
        self.ancestors = seen.to(DEVICE)
        self.offsets = integers([s * case.nodes for s in range(case.sequences + 1)])
        self.flat_parents = integers([p for parents in self.parents for p in parents])
        self.context_lens = integers([case.context] * case.sequences)

    def mask(self) -> torch.Tensor:
        """[sequences, nodes, keys], True: visible."""
        case = self.case
        prefix = self.ancestors.new_ones(case.sequences, case.nodes, case.context)
        return torch.cat([prefix, self.ancestors], dim=2)

    def dense(self, which: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V as [sequences, kv_heads, keys, head_dim]."""
        case = self.case
        keys = case.context + case.nodes

        def gather(cache: torch.Tensor) -> torch.Tensor:
            rows = cache[self.block_table.long()].flatten(1, 2)[:, :keys]
            return rows.transpose(1, 2).contiguous()

        k, v = self.caches[which]
        return gather(k), gather(v)

    def heads_first(self) -> torch.Tensor:
        case = self.case
        shape = (case.sequences, case.nodes, case.heads, case.head_dim)
        return self.q.view(shape).transpose(1, 2).contiguous()

    def bytes(self) -> int:
        case = self.case
        kv = 2 * case.sequences * (case.context + case.nodes) * case.kv_heads * case.head_dim
        return 2 * (kv + 2 * self.q.numel())


def exact(inputs: Inputs) -> torch.Tensor:
    """[rows, heads, head_dim] in float64, sequence by sequence."""
    case = inputs.case
    group = case.heads // case.kv_heads
    k, v = inputs.dense(0)
    mask = inputs.mask()
    q = inputs.heads_first()
    out = []
    for s in range(case.sequences):
        keys = k[s].double().repeat_interleave(group, 0)
        scores = q[s].double() @ keys.transpose(1, 2) / math.sqrt(case.head_dim)
        scores = scores.masked_fill(~mask[s], -math.inf)
        values = v[s].double().repeat_interleave(group, 0)
        out.append((scores.softmax(-1) @ values).transpose(0, 1))
    return torch.cat(out)


# Candidates: for inputs, a list of calls, one per cache. Each returns [rows, heads, head_dim].
Calls = list[Callable[[], torch.Tensor]]


def smartspec_calls(inputs: Inputs) -> Calls:
    case = inputs.case
    rows = case.sequences * case.nodes
    attention = TreeAttention(
        num_heads=case.heads, num_kv_heads=case.kv_heads, head_dim=case.head_dim,
        max_sequences=case.sequences, max_rows=rows, max_nodes=rows,
    )  # fmt: skip
    attention.plan(
        row_offsets=inputs.offsets, context_lens=inputs.context_lens,
        node_offsets=inputs.offsets, parents=inputs.flat_parents, block_table=inputs.block_table,
        num_rows=rows,
    )  # fmt: skip
    stream = torch.cuda.current_stream().cuda_stream
    caches = [PagedKv(k=k, v=v, stream=stream) for k, v in inputs.caches]
    out = torch.empty_like(inputs.q)
    return [lambda kv=kv: attention.run(inputs.q, kv, out=out) for kv in caches]  # type: ignore[misc]


def sdpa_calls(inputs: Inputs) -> Calls:
    q, mask = inputs.heads_first(), inputs.mask()[:, None]
    sets = [inputs.dense(i) for i in range(len(inputs.caches))]

    def call(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)

    return [lambda kv=kv: call(*kv) for kv in sets]  # type: ignore[misc]


def sdpa_packed_calls(inputs: Inputs) -> Calls:
    """The query heads of a group as further rows, so that K and V are not repeated."""
    case = inputs.case
    group = case.heads // case.kv_heads
    shape = (case.sequences, case.kv_heads, group * case.nodes, case.head_dim)
    q = inputs.heads_first().view(shape)
    mask = inputs.mask()[:, None].repeat(1, 1, group, 1)
    sets = [inputs.dense(i) for i in range(len(inputs.caches))]

    def call(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        heads = out.view(case.sequences, case.heads, case.nodes, case.head_dim)
        return heads.transpose(1, 2).flatten(0, 1)

    return [lambda kv=kv: call(*kv) for kv in sets]  # type: ignore[misc]


def flex_calls(inputs: Inputs) -> Calls:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    case = inputs.case
    context, ancestors = case.context, inputs.ancestors

    def visible(batch: Any, _head: Any, row: Any, key: Any) -> Any:
        return (key < context) | ancestors[batch, row, (key - context).clamp(min=0)]

    block_mask = create_block_mask(
        visible, case.sequences, None, case.nodes, context + case.nodes, device=DEVICE
    )
    compiled = torch.compile(flex_attention, dynamic=False)
    q = inputs.heads_first()
    sets = [inputs.dense(i) for i in range(len(inputs.caches))]

    def call(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = compiled(q, k, v, block_mask=block_mask, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)

    return [lambda kv=kv: call(*kv) for kv in sets]  # type: ignore[misc]


def flashinfer_calls(inputs: Inputs) -> Calls:
    import flashinfer  # type: ignore[import-not-found]

    case = inputs.case
    keys = case.context + case.nodes
    pages = inputs.block_table.shape[1]
    workspace = torch.zeros(256 << 20, dtype=torch.uint8, device=DEVICE)
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
    counts = torch.arange(case.sequences + 1, dtype=torch.int32, device=DEVICE)
    wrapper.plan(
        inputs.offsets, counts * pages, inputs.block_table.flatten(),
        torch.full((case.sequences,), (keys - 1) % PAGE + 1, dtype=torch.int32, device=DEVICE),
        case.heads, case.kv_heads, case.head_dim, PAGE, custom_mask=inputs.mask().flatten(),
        q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16,
    )  # fmt: skip
    return [lambda kv=kv: wrapper.run(inputs.q, kv) for kv in inputs.caches]  # type: ignore[misc]


CANDIDATES: dict[str, Callable[[Inputs], Calls]] = {
    "smartspec": smartspec_calls,
    "sdpa, mask": sdpa_calls,
    "sdpa, mask, packed": sdpa_packed_calls,
    "flex_attention": flex_calls,
    "flashinfer": flashinfer_calls,
}


def captured(calls: Calls) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def copy_bandwidth(rounds: int) -> float:
    """Bytes read and written per second."""
    source = torch.randn(1 << 28, device=DEVICE)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(rounds):
        seconds.append(timed(lambda: target.copy_(source)))
    return 2 * source.numel() * 4 / statistics.median(seconds)


def timed(work: Callable[[], Any]) -> float:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
    start, stop = events
    start.record()
    work()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


def check(name: str, calls: Calls, reference: torch.Tensor) -> float:
    """Largest absolute difference; an error when it is too large or not a number."""
    error = float((calls[0]().double() - reference).abs().max())
    if not error <= TOLERANCE:
        raise ArithmeticError(f"{name} differs from float64 by {error:.2e}")
    return error


def run_case(case: Case, rounds: int, bandwidth: float) -> dict[str, Any]:
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    kv_bytes = 4 * case.sequences * case.context * case.kv_heads * case.head_dim
    inputs = Inputs(case, sets=min(8, 4 * l2 // kv_bytes + 1))
    reference = exact(inputs)
    graphs: dict[str, torch.cuda.CUDAGraph] = {}
    results: dict[str, dict[str, Any]] = {}
    kept = []  # graphs hold addresses
    for name, make in CANDIDATES.items():
        try:
            calls = make(inputs)
            kept.append(calls)
            results[name] = {"max_error": check(name, calls, reference)}
            graphs[name] = captured(calls)
        except Exception as error:  # a candidate that is missing or fails must not hide the others
            results[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
    seconds: dict[str, list[float]] = {name: [] for name in graphs}
    for i in range(-2, rounds):
        for name in graphs if i % 2 == 0 else reversed(list(graphs)):
            took = timed(graphs[name].replay) / len(inputs.caches)
            if i >= 0:
                seconds[name].append(took)
    for name, values in seconds.items():
        median = statistics.median(values)
        results[name] |= {
            "seconds": median,
            "best_seconds": min(values),
            "share_of_copy_bandwidth": inputs.bytes() / median / bandwidth,
        }
    return {"case": asdict(case), "bytes": inputs.bytes(), "results": results}


def print_case(record: dict[str, Any]) -> None:
    ours = record["results"]["smartspec"].get("seconds")
    for name, result in record["results"].items():
        line = f"{record['case']['name']:<18}{name:<22}"
        if "seconds" in result:
            ratio = f"{result['seconds'] / ours:8.2f}x" if ours else ""
            share = 100 * result["share_of_copy_bandwidth"]
            line += f"{1e6 * result['seconds']:10.1f} us{share:8.1f} %"
            line += f"{ratio}   error {result['max_error']:.1e}"
        else:
            line += result["failed"].splitlines()[0][:90]
        print(line, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--cases", type=int, default=len(CASES), help="only the first ones")
    options = parser.parse_args()
    if not is_usable():
        sys.exit(f"compare_torch: {unusable_reason()}")
    torch.manual_seed(1)
    bandwidth = copy_bandwidth(options.rounds)
    record: dict[str, Any] = {
        "program": "compare_torch", "device": torch.cuda.get_device_name(),
        "torch": torch.__version__, "copy_bandwidth": bandwidth, "cases": [],
    }  # fmt: skip
    print(f"{record['device']}, torch {torch.__version__}, copy {bandwidth / 1e9:.0f} GB/s")
    for case in CASES[: options.cases]:
        result = run_case(case, options.rounds, bandwidth)
        print_case(result)
        record["cases"].append(result)
        if options.json:
            with open(options.json, "w") as file:
                json.dump(record, file, indent=1)
        torch.cuda.empty_cache()
    return 0 if all("seconds" in c["results"]["smartspec"] for c in record["cases"]) else 1


if __name__ == "__main__":
    sys.exit(main())
