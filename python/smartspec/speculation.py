# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""What drafts, and how much."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import smartspec_core as core

from .sampling_params import check_float, check_int

PROPOSERS = ("off", "lookup", "suffix", "draft", "suffix+draft", "lookup+draft")
_MIB = 1 << 20


@dataclass(frozen=True)
class Speculation:
    """`proposer`: "off", "lookup" (prompt lookup), "suffix" (an index over past outputs and the
    request's own text), "draft" (needs a draft model), "suffix+draft" or "lookup+draft" (per
    request whichever expects more accepted tokens), or an object of a subclass of
    smartspec.Proposer. Whatever is chosen, the output is the same.

    `max_tokens`: longest draft; None: 16 with a suffix index, which ends drafts itself where it is
    unsure, else 4. `tree_width`: candidates per position, 1 drafts chains.
    `draft_max_tokens`: the draft model's longest draft in "suffix+draft" and "lookup+draft".
    `max_bytes`: memory of the index's history. `min_survival`: it drafts a token while the
    probability that everything up to it is accepted is at least this. `suffix_index`: one to
    share, such as another LLM's; None makes one.
    """

    proposer: str | core.Proposer = "off"
    max_tokens: int | None = None
    tree_width: int = 1
    prompt_lookup_max: int = 4
    prompt_lookup_min: int = 2
    draft_max_tokens: int = 4
    max_bytes: int = 1 << 30
    min_survival: float = 0.1
    suffix_index: core.SuffixIndex | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.proposer, core.Proposer) and self.proposer not in PROPOSERS:
            raise ValueError(
                f"proposer must be one of {', '.join(PROPOSERS)} or a smartspec.Proposer object, "
                f"got {str(self.proposer)[:80]!r}"
            )
        if self.max_tokens is not None:
            check_int("max_tokens", self.max_tokens, 1, core.MAX_TREE_NODES)
        check_int("tree_width", self.tree_width, 1, 4 if self.uses("suffix") else 64)
        check_int("draft_max_tokens", self.draft_max_tokens, 1, core.MAX_TREE_NODES)
        check_int("max_bytes", self.max_bytes, _MIB, 2**63 - 1)
        check_float("min_survival", self.min_survival, 0.0, 1.0)
        if self.suffix_index is not None:
            if not isinstance(self.suffix_index, core.SuffixIndex):
                kind = type(self.suffix_index).__name__
                raise ValueError(f"suffix_index must be a smartspec_core.SuffixIndex, got {kind}")
            if not self.uses("suffix"):
                raise ValueError("suffix_index needs the proposer 'suffix' or 'suffix+draft'")
        check_int("prompt_lookup_min", self.prompt_lookup_min, 1, 64)
        check_int("prompt_lookup_max", self.prompt_lookup_max, self.prompt_lookup_min, 64)

    def uses(self, name: str) -> bool:
        """Whether the proposer is `name`, or has it as a part."""
        return isinstance(self.proposer, str) and name in self.proposer.split("+")

    @property
    def longest_draft(self) -> int:
        return self.max_tokens or (16 if self.uses("suffix") else 4)

    @staticmethod
    def resolve(value: object, has_draft_model: bool) -> Speculation:
        """None: "draft" with a draft model, else "off"; names, dicts and proposers are wrapped."""
        if value is None:
            chosen = Speculation("draft" if has_draft_model else "off")
        elif isinstance(value, Speculation):
            chosen = value
        elif isinstance(value, (str, core.Proposer)):
            chosen = Speculation(value)
        elif isinstance(value, Mapping):
            chosen = _from_mapping(value)
        else:
            raise ValueError(
                "speculation must be None, a Speculation, a dict of its fields, a proposer's name "
                f"or a Proposer object, got {type(value).__name__}"
            )
        if chosen.uses("draft") and not has_draft_model:
            raise ValueError(f"speculation: proposer {chosen.proposer!r} needs draft_model")
        if not chosen.uses("draft") and has_draft_model:
            warnings.warn(
                f"draft_model is not used: the proposer is {_name(chosen.proposer)!r}",
                stacklevel=3,
            )
        return chosen


def _name(proposer: str | core.Proposer) -> str:
    return proposer if isinstance(proposer, str) else proposer.name


def _from_mapping(value: Mapping[Any, Any]) -> Speculation:
    known = {entry.name for entry in fields(Speculation)}
    if unknown := [str(key)[:40] for key in value if key not in known]:
        raise ValueError(
            f"speculation: unknown field {unknown[0]!r}, allowed are {', '.join(sorted(known))}"
        )
    return Speculation(**value)
