# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Options that several subcommands share."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..llm import LLM
from ..shipped import shipped_model
from ..speculation import POLICIES, PROPOSERS, Speculation


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the examples as they are and shows defaults."""


def model_path(text: str) -> str:
    """The names target and draft mean the shipped pair, unless such a directory is here."""
    if text in ("target", "draft") and not Path(text).exists():
        return shipped_model(text)
    return text


def add_engine_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    group = parser.add_argument_group("model and engine")
    group.add_argument(
        "--model",
        type=model_path,
        required=required,
        metavar="DIR",
        help="Hugging Face model directory, or 'target' for the shipped model",
    )
    group.add_argument(
        "--draft-model",
        type=model_path,
        default=None,
        metavar="DIR",
        help="smaller model with the same vocabulary, or 'draft' for the shipped one",
    )
    group.add_argument(
        "--speculation",
        "--proposer",
        choices=PROPOSERS,
        default="auto",
        help="what drafts; auto: the suffix index, and the draft model where one is given",
    )
    group.add_argument(
        "--policy",
        default=None,
        metavar="POLICY",
        help=f"how much is drafted: {', '.join(POLICIES)}, with an argument as in fixed:4, "
        "tetris:64, threshold:0.7, table:1-8=4/9-32=2; unset: auto, or fixed with --draft-tokens",
    )
    group.add_argument(
        "--draft-tokens", type=int, default=None, metavar="K", help="longest draft; unset: 16 with "
        "a suffix index or the policy auto, else 4",
    )  # fmt: skip
    group.add_argument("--tree-width", type=int, default=1, help="candidates per position")
    group.add_argument(
        "--suffix-index", type=Path, default=None, metavar="FILE", help="past outputs to draft "
        "from: loaded if the file is there, saved at the end",
    )  # fmt: skip
    group.add_argument("--max-num-seqs", type=int, default=64, help="requests running at once")
    group.add_argument(
        "--max-num-batched-tokens", type=int, default=512, help="rows of one forward pass"
    )
    group.add_argument(
        "--max-model-len", type=int, default=None, help="longest prompt plus output; unset: as "
        "the model allows",
    )  # fmt: skip
    group.add_argument("--block-size", type=int, default=16, help="tokens per KV block")
    group.add_argument("--num-kv-blocks", type=int, default=0, help="0: chosen automatically")
    group.add_argument(
        "--no-enable-prefix-caching", action="store_true", help="never reuse prompts' KV"
    )
    group.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    group.add_argument("--kv-dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    group.add_argument(
        "--inflate-to", default=None, metavar="N", help="pad the model to N parameters, such as "
        "300M, with layers that cost what layers cost and change no output; for measuring",
    )  # fmt: skip
    group.add_argument(
        "--num-threads", type=int, default=0, help="0: every core this process may use"
    )
    group.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


_ARGUMENT_OF = {
    "auto": "max_tokens", "fixed": "max_tokens", "turbospec": "max_tokens", "full": "max_tokens",
    "sequoia": "max_tokens", "tetris": "capacity", "threshold": "threshold", "disco": "threshold",
    "ddd": "threshold",
}  # fmt: skip


def _table(text: str) -> list[list[int]]:
    rows = []
    for part in text.split("/"):
        match = re.fullmatch(r"(\d{1,7})(?:-(\d{1,7}))?=(\d{1,7})", part, re.ASCII)
        if match is None:
            raise ValueError(f"policy table: rows must be FIRST-LAST=TOKENS, got {part[:80]!r}")
        rows.append([int(match[1]), int(match[2] or match[1]), int(match[3])])
    return rows


def with_policy(base: Speculation, text: str) -> Speculation:
    """`base` under the policy NAME[:ARGUMENT][@PROPOSER]."""
    name, _, proposer = text.partition("@")
    name, _, argument = name.partition(":")
    changes: dict[str, Any] = {"policy": name}
    if proposer:
        changes["proposer"] = proposer
    if argument and name == "table":
        changes["num_speculative_tokens_per_batch_size"] = _table(argument)
    elif argument:
        if name not in _ARGUMENT_OF:
            raise ValueError(f"policy {name[:80]!r} takes no argument, got {text[:80]!r}")
        field = _ARGUMENT_OF[name]
        try:
            changes[field] = float(argument) if field == "threshold" else int(argument)
        except ValueError:
            raise ValueError(
                f"policy {name}: {field} must be a number, got {text[:80]!r}"
            ) from None
    return replace(base, **changes)


def speculation_of(options: argparse.Namespace) -> Speculation:
    spec = Speculation(
        options.speculation, max_tokens=options.draft_tokens, tree_width=options.tree_width
    )
    if options.suffix_index is not None and not spec.uses("suffix"):
        raise ValueError("--suffix-index needs --proposer auto, suffix or suffix+draft")
    return with_policy(spec, options.policy) if options.policy is not None else spec


def make_llm(options: argparse.Namespace, spec: Speculation | None = None) -> LLM:
    llm = LLM(
        options.model,
        draft_model=options.draft_model,
        speculation=spec or speculation_of(options),
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        block_size=options.block_size,
        num_kv_blocks=options.num_kv_blocks,
        max_model_len=options.max_model_len,
        dtype=options.dtype,
        kv_dtype=options.kv_dtype,
        enable_prefix_caching=not options.no_enable_prefix_caching,
        num_threads=options.num_threads,
        device=options.device,
        inflate_to=options.inflate_to,
    )
    path: Path | None = options.suffix_index
    if path is not None and llm.suffix_index is not None and path.exists():
        llm.suffix_index.load(path)
    return llm


def save_suffix_index(options: argparse.Namespace, llm: LLM) -> None:
    if options.suffix_index is not None and llm.suffix_index is not None:
        llm.suffix_index.save(options.suffix_index)
