# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Recorded acceptance: how drafts fared along real outputs, for the simulator to play again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import smartspec_core as core

from .files import read_json
from .requests import ActiveRequest, DraftStep
from .sampling_params import check_float, check_int

VERSION = 1
PROPOSERS = ("lookup", "suffix", "draft")
MIN_POSITIONS = 8  # shorter recordings say nothing, and the simulator repeats them
_MAX_BYTES = 256 << 20
_NEIGHBOUR = 0.8  # weight of the next position, of AcceptanceModel's usual persistence
_REACH = 20


@dataclass(frozen=True)
class RecordedAcceptance:
    """`recordings`: per request, in order, 1 for an accepted draft token and 0 for the first
    rejected of a step (or rates in between). Tokens behind a rejection were not looked at and are
    not in it; neither is the token that every step adds, nor what a draft shorter than `length`
    left out, so a proposer that stops where it doubts looks somewhat better. `length`: of the
    drafts, at most. `coverage`: share of the steps that could draft at which anything was."""

    proposer: str
    length: int
    coverage: float
    recordings: Sequence[Sequence[float]]

    @staticmethod
    def of_requests(
        proposer: str, length: int, requests: Iterable[ActiveRequest]
    ) -> RecordedAcceptance:
        """ValueError when there is too little to record."""
        steps = [request.draft_steps for request in requests]
        could = sum(len(each) for each in steps)
        did = sum(step.drafted > 0 for each in steps for step in each)
        recordings = [outcomes_of(each) for each in steps]
        kept = [each for each in recordings if len(each) >= MIN_POSITIONS]
        if not kept:
            longest = max((len(each) for each in recordings), default=0)
            raise ValueError(
                f"acceptance: a recording needs a request with at least {MIN_POSITIONS} draft "
                f"tokens verified, got at most {longest}; let outputs be longer"
            )
        return RecordedAcceptance(proposer, length, did / could, kept)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"version": VERSION, **asdict(self)}, separators=(",", ":"))
        path.write_text(text + "\n", encoding="utf-8")

    @staticmethod
    def load(path: Path) -> RecordedAcceptance:
        """FormatError names the file, the field and what is allowed."""
        record = read_json(path, _MAX_BYTES)
        try:
            return _from_json(record)
        except ValueError as error:
            raise core.FormatError(f"{path}: {error}") from None

    def rates(self) -> list[list[float]]:
        """Rates as they are. Outcomes become rates, half from about nine neighbours and half from
        the recording's mean: as 0 and 1 they would tell policies and oracle their luck."""
        values = [np.array(recording, float) for recording in self.recordings]
        joined = np.concatenate(values)
        if np.any((joined > 0) & (joined < 1)):
            return [list(recording) for recording in self.recordings]
        mean = float(joined.mean())
        kernel = _NEIGHBOUR ** np.abs(np.arange(-_REACH, _REACH + 1))
        smooth = []
        for value in values:
            here = slice(_REACH, _REACH + len(value))
            own = (value.sum() + mean) / (len(value) + 1)
            hits = np.convolve(value, kernel)[here] + kernel.sum() * own
            seen = np.convolve(np.ones_like(value), kernel)[here] + kernel.sum()
            smooth.append(np.clip(hits / seen, 0, 1).tolist())
        return smooth


def outcomes_of(steps: Iterable[DraftStep]) -> list[float]:
    outcomes: list[float] = []
    for step in steps:
        outcomes += [1.0] * step.accepted
        # Without a token of the target's own the output ended at an accepted one.
        if step.accepted < step.drafted and step.emitted > step.accepted:
            outcomes.append(0.0)
    return outcomes


def _from_json(record: dict[str, Any]) -> RecordedAcceptance:
    if record.get("version") != VERSION:
        raise ValueError(f"version must be {VERSION}, got {str(record.get('version'))[:40]}")
    proposer = record.get("proposer")
    if proposer not in PROPOSERS:
        raise ValueError(
            f"proposer must be one of {', '.join(PROPOSERS)}, got {str(proposer)[:80]!r}"
        )
    length = check_int("length", record.get("length"), 1, core.MAX_TREE_NODES)
    coverage = check_float("coverage", record.get("coverage", 1.0), 0.0, 1.0)
    recordings = record.get("recordings")
    if not isinstance(recordings, list) or not recordings:
        raise ValueError("recordings must be a list of at least one list of rates in [0, 1]")
    for i, recording in enumerate(recordings):
        if not isinstance(recording, list) or not recording:
            raise ValueError(
                f"recordings[{i}] must be a list of at least one rate in [0, 1], got "
                f"{str(recording)[:40]}"
            )
        for j, rate in enumerate(recording):
            check_float(f"recordings[{i}][{j}]", rate, 0.0, 1.0)
    return RecordedAcceptance(proposer, length, coverage, recordings)
