#!/usr/bin/env python3
# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""The engine on a device against plain decoding on the CPU, with the shipped pair.

Greedy requests run on the CPU without speculation, recording the two best tokens of each position,
then on the device by every proposer. Sums are rounded in another order there, so where the two best
logits nearly tie another token may win: such a place is recorded with its gap, and the request
counts up to it. Any other difference is an error. Also says how fast each run was; the pair is far
too small for a device to show its speed."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import smartspec
from smartspec.serving import heldout_sources

Outputs = list[Any]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--speculation", default="off,lookup,suffix,draft,auto")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt-len", type=int, default=96)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--tie", type=float, default=2e-3, help="gap of logits, at most")
    parser.add_argument("--json", type=Path, default=None)
    return parser.parse_args()


def prompts(llm: smartspec.LLM, args: argparse.Namespace) -> list[dict[str, list[int]]]:
    text = "\n".join(heldout_sources().values())
    rng = random.Random(1)
    starts = [rng.randrange(len(text) - 40 * args.prompt_len) for _ in range(args.requests)]
    encode = llm.get_tokenizer().encode
    ids = [encode(text[at : at + 20 * args.prompt_len])[: args.prompt_len] for at in starts]
    return [{"prompt_token_ids": list(one)} for one in ids]


def load(device: str, speculation: str) -> smartspec.LLM:
    has_draft = speculation in ("draft", "auto")
    return smartspec.LLM(
        smartspec.shipped_model("target"),
        draft_model=smartspec.shipped_model("draft") if has_draft else None,
        speculation=speculation,
        device=device,
    )


def generate(
    llm: smartspec.LLM, requests: list[Any], max_tokens: int, logprobs: int | None = None
) -> Outputs:
    params = smartspec.SamplingParams(
        temperature=0.0, max_tokens=max_tokens, ignore_eos=True, logprobs=logprobs
    )
    return llm.generate(requests, params, use_tqdm=False)


def compare(right: Outputs, got: Outputs, tie: float) -> dict[str, Any]:
    """Counts, ties and faults of one run."""
    equal, ties, faults = 0, [], []
    for number, (one, other) in enumerate(zip(right, got, strict=True)):
        expected, tokens = one.outputs[0], list(other.outputs[0].token_ids)
        pairs = zip(expected.token_ids, tokens, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), len(tokens))
        equal += at
        if at == len(tokens) == len(expected.token_ids):
            continue
        place: dict[str, Any] = {"request": number, "position": at, "gap": None}
        if at < len(tokens):
            top = expected.logprobs[at]
            if tokens[at] in top:
                place["gap"] = abs(top[expected.token_ids[at]].logprob - top[tokens[at]].logprob)
        is_tie = place["gap"] is not None and place["gap"] <= tie
        (ties if is_tie else faults).append(place)
    return {"equal_tokens": equal, "ties": ties, "faults": faults}


def main() -> int:
    args = parse()
    reference = load("cpu", "off")
    requests = prompts(reference, args)
    right = generate(reference, requests, args.max_tokens, logprobs=2)
    record: dict[str, Any] = {"device": args.device, "requests": args.requests, "runs": {}}
    failed = False
    for speculation in args.speculation.split(","):
        llm = load(args.device, speculation)
        generate(llm, requests[:4], args.max_tokens)  # compiles, records and allocates
        start = time.perf_counter()
        got = generate(llm, requests, args.max_tokens)
        seconds = time.perf_counter() - start
        run = compare(right, got, args.tie)
        run["tokens_per_second"] = sum(len(o.outputs[0].token_ids) for o in got) / seconds
        record["runs"][speculation] = run
        failed = failed or bool(run["faults"])
        print(
            f"{speculation:<8} {run['equal_tokens']:7d} equal tokens, {len(run['ties'])} ties, "
            f"{len(run['faults'])} faults, {run['tokens_per_second']:8.0f} tokens/s"
        )
        for fault in run["faults"][:5]:
            print(f"  differs: {fault}")
    if args.json is not None:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
