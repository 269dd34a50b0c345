# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""What drafts, and how much."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import smartspec_core as core

from .sampling_params import check_int

PROPOSERS = ("off", "lookup", "draft")


@dataclass(frozen=True)
class Speculation:
    """`proposer`: "off", "lookup" (prompt lookup), "draft" (needs a draft model) or an object of a
    subclass of smartspec.Proposer. `max_tokens`: longest draft. `tree_width`: candidates per
    position, 1 drafts chains. Whatever is chosen, the output is the same.
    """

    proposer: str | core.Proposer = "off"
    max_tokens: int = 4
    tree_width: int = 1
    prompt_lookup_max: int = 4
    prompt_lookup_min: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.proposer, core.Proposer) and self.proposer not in PROPOSERS:
            raise ValueError(
                f"proposer must be one of {', '.join(PROPOSERS)} or a smartspec.Proposer object, "
                f"got {str(self.proposer)[:80]!r}"
            )
        check_int("max_tokens", self.max_tokens, 1, core.MAX_TREE_NODES)
        check_int("tree_width", self.tree_width, 1, 64)
        check_int("prompt_lookup_min", self.prompt_lookup_min, 1, 64)
        check_int("prompt_lookup_max", self.prompt_lookup_max, self.prompt_lookup_min, 64)

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
        if chosen.proposer == "draft" and not has_draft_model:
            raise ValueError("speculation: proposer 'draft' needs draft_model")
        if chosen.proposer != "draft" and has_draft_model:
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
