# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""What drafts, and how much: for an LLM, and for one request."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import smartspec_core as core

from .sampling_params import check_float, check_int

PROPOSERS = ("auto", "off", "lookup", "suffix", "draft", "suffix+draft", "lookup+draft")
POLICIES = (
    "auto", "off", "fixed", "table", "turbospec", "threshold", "disco", "tetris", "full", "sequoia",
    "ddd",
)  # fmt: skip
_MIB = 1 << 20
_T = TypeVar("_T")
_THRESHOLDS = {"threshold": 0.7, "disco": 0.4, "ddd": 0.3}


@dataclass(frozen=True)
class Speculation:
    """Whatever is chosen, the output is the same.

    `proposer`: "auto" (the suffix index, and the draft model where one is given), "off", "lookup"
    (prompt lookup), "suffix" (an index over past outputs and the request's own text), "draft"
    (needs a draft model), "suffix+draft", "lookup+draft", or an object of a subclass of
    smartspec.Proposer. Of two, the policy "auto" chooses for every request at every step; under any
    other policy a request drafts with the one that expects more accepted tokens.

    `policy`, how many tokens are drafted and verified: "auto" (goodput: for every request, at every
    step, what makes the batch emit most tokens per second), "off", "fixed" (max_tokens, always),
    "table" (num_speculative_tokens_per_batch_size), or one to compare with: "turbospec",
    "threshold" (SpecDec++), "disco", "tetris", "full" (full drafts, the best nodes of the batch are
    verified), "sequoia" (max_tokens nodes of one tree), "ddd". Unset: "table" where there is a
    table; "fixed" where `max_tokens` is given, so that it means that many; else "auto".

    `max_tokens`: longest draft; None: 16 with a suffix index and under "auto", else 4.
    `tree_width`: candidates per position, 1 drafts chains. `draft_max_tokens`: the draft model's
    longest draft beside another proposer or under "auto"; None: 8 under "auto", else 4.
    `max_bytes`: memory of the index's history. `min_survival`: it drafts a token while the
    probability that everything up to it is accepted is at least this. `suffix_index`: one to
    share, such as another LLM's; None makes one.

    `num_speculative_tokens_per_batch_size`: [[first, last, tokens], ...] as in vLLM, none beyond.
    `capacity`: nodes that "tetris" verifies per step. `threshold`: of "threshold" (probability
    that a draft is rejected, .7), "disco" (acceptance of the next token, .4) and "ddd" (sum of
    survivals, .3). `rank_acceptance`: "sequoia", how often the j-th child is accepted.
    `draft_model`: directory of the draft model, for LLM(draft_model=None).
    """

    proposer: str | core.Proposer = "auto"
    max_tokens: int | None = None
    tree_width: int = 1
    prompt_lookup_max: int = 4
    prompt_lookup_min: int = 2
    draft_max_tokens: int | None = None
    max_bytes: int = 1 << 30
    min_survival: float = 0.1
    suffix_index: core.SuffixIndex | None = None
    policy: str | None = None
    num_speculative_tokens_per_batch_size: Sequence[Sequence[int]] | None = None
    capacity: int = 64
    threshold: float | None = None
    rank_acceptance: Sequence[float] = (0.7, 0.12, 0.05, 0.02)
    draft_model: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.proposer, core.Proposer) and self.proposer not in PROPOSERS:
            raise ValueError(
                f"proposer must be one of {', '.join(PROPOSERS)} or a smartspec.Proposer object, "
                f"got {str(self.proposer)[:80]!r}"
            )
        self._check_policy()
        if self.max_tokens is not None:
            check_int("max_tokens", self.max_tokens, 1, core.MAX_TREE_NODES)
        check_int("tree_width", self.tree_width, 1, 4 if self.uses("suffix") else 64)
        if self.draft_max_tokens is not None:
            check_int("draft_max_tokens", self.draft_max_tokens, 1, core.MAX_TREE_NODES)
        check_int("max_bytes", self.max_bytes, _MIB, 2**63 - 1)
        check_float("min_survival", self.min_survival, 0.0, 1.0)
        if self.suffix_index is not None:
            if not isinstance(self.suffix_index, core.SuffixIndex):
                kind = type(self.suffix_index).__name__
                raise ValueError(f"suffix_index must be a smartspec_core.SuffixIndex, got {kind}")
            if not self.uses("suffix"):
                raise ValueError(
                    "suffix_index needs the proposer 'auto', 'suffix' or 'suffix+draft'"
                )
        check_int("prompt_lookup_min", self.prompt_lookup_min, 1, 64)
        check_int("prompt_lookup_max", self.prompt_lookup_max, self.prompt_lookup_min, 64)

    def _check_policy(self) -> None:
        table = self.num_speculative_tokens_per_batch_size
        if self.policy is None:
            implied = "fixed" if self.max_tokens is not None else "auto"
            object.__setattr__(self, "policy", "table" if table is not None else implied)
        if self.policy not in POLICIES:
            raise ValueError(
                f"policy must be one of {', '.join(POLICIES)}, got {str(self.policy)[:80]!r}"
            )
        if (self.policy == "table") != (table is not None):
            raise ValueError(
                "policy 'table' and num_speculative_tokens_per_batch_size go together, got policy "
                f"{self.policy!r}"
            )
        if table is not None:
            rows = _check_table(table)
            object.__setattr__(self, "num_speculative_tokens_per_batch_size", rows)
        check_int("capacity", self.capacity, 1, 1 << 20)
        if self.threshold is not None:
            if self.policy not in _THRESHOLDS:
                raise ValueError(
                    f"threshold is of the policies {', '.join(_THRESHOLDS)}, got policy "
                    f"{self.policy!r}"
                )
            check_float("threshold", self.threshold, 0.0, 1024.0)
        object.__setattr__(self, "rank_acceptance", tuple(self.rank_acceptance))
        if not self.rank_acceptance:
            raise ValueError("rank_acceptance must not be empty")
        for i, share in enumerate(self.rank_acceptance):
            check_float(f"rank_acceptance[{i}]", share, 0.0, 1.0)

    def uses(self, name: str) -> bool:
        """Whether the proposer is `name`, or has it as a part; "auto" has "suffix"."""
        if self.proposer == "auto":
            return name in ("auto", "suffix")
        return isinstance(self.proposer, str) and name in self.proposer.split("+")

    @property
    def is_off(self) -> bool:
        return self.proposer == "off" or self.policy == "off"

    @property
    def longest_draft(self) -> int:
        if self.max_tokens is None and self.num_speculative_tokens_per_batch_size is not None:
            return max(row[2] for row in self.num_speculative_tokens_per_batch_size)
        return self.max_tokens or (16 if self.uses("suffix") or self.policy == "auto" else 4)

    @property
    def longest_paid_draft(self) -> int:
        """Of a draft model beside another proposer, or under the policy "auto"."""
        longest = self.draft_max_tokens or (8 if self.policy == "auto" else 4)
        return min(longest, self.longest_draft) if self.max_tokens is not None else longest

    @property
    def threshold_or_default(self) -> float:
        return self.threshold if self.threshold is not None else _THRESHOLDS[str(self.policy)]

    @staticmethod
    def resolve(value: object, has_draft_model: bool, warn: bool = True) -> Speculation:
        """None: everything automatic; names of proposers, dicts and proposers are wrapped. The
        result's proposer is not "auto" any more."""
        if value is None:
            chosen = Speculation()
        elif isinstance(value, Speculation):
            chosen = value
        elif isinstance(value, (str, core.Proposer)):
            chosen = Speculation(value)
        elif isinstance(value, Mapping):
            chosen = _from_mapping(Speculation, value, "speculation")
        else:
            raise ValueError(
                "speculation must be None, a Speculation, a dict of its fields, a proposer's name "
                f"or a Proposer object, got {type(value).__name__}"
            )
        has_draft_model = has_draft_model or chosen.draft_model is not None
        if chosen.proposer == "auto":
            chosen = replace(chosen, proposer="suffix+draft" if has_draft_model else "suffix")
        if chosen.uses("draft") and not has_draft_model:
            raise ValueError(f"speculation: proposer {chosen.proposer!r} needs draft_model")
        if warn and not chosen.uses("draft") and has_draft_model:
            warnings.warn(
                f"draft_model is not used: the proposer is {_name(chosen.proposer)!r}",
                stacklevel=3,
            )
        return chosen

    @staticmethod
    def from_vllm(config: Mapping[str, Any]) -> Speculation:
        """Of vLLM's speculative_config: method ("ngram", "draft_model", "suffix"), model,
        num_speculative_tokens, prompt_lookup_min, prompt_lookup_max and
        num_speculative_tokens_per_batch_size, with vLLM's meaning: that many tokens, always.
        ValueError names whatever else is in it."""
        return _from_vllm(config)


@dataclass(frozen=True)
class RequestSpeculation:
    """What one request asks for, over the LLM's Speculation; no output changes.

    `enabled` False: it never drafts. `min_tokens`: draft tokens verified at every step at least,
    where that many are drafted. `max_tokens`: at most. `proposer`: only this one of the LLM's
    ("lookup", "suffix", "draft", or the name of a Proposer object). `tpot_target_ms`: milliseconds
    per output token that this request should not exceed; the policy "auto" gives it what it needs
    for that before it maximizes the throughput of all.
    """

    enabled: bool = True
    min_tokens: int = 0
    max_tokens: int | None = None
    proposer: str | None = None
    tpot_target_ms: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.enabled, bool):
            raise ValueError(f"enabled must be True or False, got {str(self.enabled)[:80]!r}")
        check_int("min_tokens", self.min_tokens, 0, core.MAX_TREE_NODES)
        if self.max_tokens is not None:
            check_int("max_tokens", self.max_tokens, self.min_tokens, core.MAX_TREE_NODES)
        if self.proposer is not None and not isinstance(self.proposer, str):
            raise ValueError(f"proposer must be a name, got {type(self.proposer).__name__}")
        if self.tpot_target_ms is not None:
            check_float("tpot_target_ms", self.tpot_target_ms, 1e-6, 1e9)

    @staticmethod
    def resolve(value: object, name: str = "speculation") -> RequestSpeculation:
        if value is None:
            return RequestSpeculation()
        if isinstance(value, RequestSpeculation):
            return value
        if isinstance(value, Mapping):
            return _from_mapping(RequestSpeculation, value, name)
        raise ValueError(
            f"{name} must be None, a RequestSpeculation or a dict of its fields, got "
            f"{type(value).__name__}"
        )


def _name(proposer: str | core.Proposer) -> str:
    return proposer if isinstance(proposer, str) else proposer.name


def _from_mapping(kind: type[_T], value: Mapping[Any, Any], name: str) -> _T:
    known = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    if unknown := [str(key)[:40] for key in value if key not in known]:
        raise ValueError(
            f"{name}: unknown field {unknown[0]!r}, allowed are {', '.join(sorted(known))}"
        )
    return kind(**value)


def _check_table(table: object) -> tuple[tuple[int, int, int], ...]:
    name = "num_speculative_tokens_per_batch_size"
    if not isinstance(table, Sequence) or isinstance(table, (str, bytes)) or not table:
        raise ValueError(f"{name} must be a list of [first, last, tokens], got {str(table)[:80]!r}")
    rows: list[tuple[int, int, int]] = []
    for i, row in enumerate(table):
        if not isinstance(row, Sequence) or isinstance(row, (str, bytes)) or len(row) != 3:
            raise ValueError(f"{name}[{i}] must be [first, last, tokens], got {str(row)[:80]!r}")
        first = check_int(f"{name}[{i}] first", row[0], rows[-1][1] + 1 if rows else 1, 1 << 20)
        last = check_int(f"{name}[{i}] last", row[1], first, 1 << 20)
        rows.append((first, last, check_int(f"{name}[{i}]", row[2], 0, core.MAX_TREE_NODES)))
    if not any(tokens for _, _, tokens in rows):
        raise ValueError(f"{name} drafts nothing; use policy 'off'")
    return tuple(rows)


_VLLM_METHODS = {"ngram": "lookup", "draft_model": "draft", "suffix": "suffix"}
_VLLM_KEYS = (
    "method", "model", "num_speculative_tokens", "prompt_lookup_min", "prompt_lookup_max",
    "num_speculative_tokens_per_batch_size",
)  # fmt: skip


def _from_vllm(config: Mapping[str, Any]) -> Speculation:
    if not isinstance(config, Mapping):
        raise ValueError(f"speculative_config must be a dict, got {type(config).__name__}")
    given = {str(key): value for key, value in config.items() if value is not None}
    if unknown := [key[:60] for key in given if key not in _VLLM_KEYS]:
        raise ValueError(
            f"speculative_config: not supported: {', '.join(sorted(unknown))}; supported are "
            f"{', '.join(_VLLM_KEYS)}"
        )
    model = given.get("model")
    method = given.get("method", "draft_model" if model is not None else None)
    if method not in _VLLM_METHODS:
        raise ValueError(
            f"speculative_config: method must be one of {', '.join(_VLLM_METHODS)}, got "
            f"{str(method)[:80]!r}"
        )
    values: dict[str, Any] = {"proposer": _VLLM_METHODS[method]}
    if method == "draft_model":
        values["draft_model"] = model
    elif model is not None:
        raise ValueError(f"speculative_config: model does not go with method {method!r}")
    if method == "ngram":
        # vLLM: each is the other's default, and 5 is that of both.
        low, high = given.get("prompt_lookup_min"), given.get("prompt_lookup_max")
        values["prompt_lookup_min"] = low if low is not None else high if high is not None else 5
        values["prompt_lookup_max"] = high if high is not None else values["prompt_lookup_min"]
    elif wrong := [key for key in given if key.startswith("prompt_lookup")]:
        raise ValueError(f"speculative_config: {wrong[0]} does not go with method {method!r}")
    values["max_tokens"] = given.get("num_speculative_tokens")
    table = given.get("num_speculative_tokens_per_batch_size")
    if table is not None:
        values["num_speculative_tokens_per_batch_size"] = table
    elif values["max_tokens"] is None and method != "suffix":
        raise ValueError("speculative_config: num_speculative_tokens is missing")
    elif values["max_tokens"] is None:
        values |= {"policy": "fixed", "max_tokens": 24}  # vLLM's suffix_decoding_max_tree_depth
    return Speculation(**values)
