# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Results, shaped as vLLM's."""

from __future__ import annotations

from dataclasses import dataclass, field

Logprobs = dict[int, "Logprob"]


@dataclass
class Logprob:
    """Natural logarithm of the probability before penalties and temperature; rank 1 is best."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class SpeculationStats:
    """What speculation did for one completion, or for a whole request."""

    num_drafted: int = 0
    num_accepted: int = 0
    num_steps: int = 0
    reason: str = "none"  # why the last step did not speculate; "none" when it did
    proposer: str | None = None  # that drafted last
    length_histogram: list[int] = field(
        default_factory=list
    )  # steps by tokens verified; last: more

    @property
    def acceptance_length(self) -> float:
        """Mean tokens per forward pass: 1 when nothing was accepted."""
        return 1.0 + self.num_accepted / self.num_steps if self.num_steps else 1.0

    @property
    def acceptance_rate(self) -> float:
        return self.num_accepted / self.num_drafted if self.num_drafted else 0.0


@dataclass
class CompletionOutput:
    """One of the `n` completions of a request."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[Logprobs] | None = None
    finish_reason: str | None = None  # "stop", "length", "error"; None while it runs
    stop_reason: int | str | None = None  # the stop string or stop token id; None for end of text
    error: str | None = None  # with finish_reason "error"
    speculation: SpeculationStats = field(default_factory=SpeculationStats)

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass
class RequestMetrics:
    """Times in seconds on time.monotonic()'s clock."""

    arrival_time: float
    first_token_time: float | None = None
    last_token_time: float | None = None
    finished_time: float | None = None
    num_preemptions: int = 0


@dataclass
class RequestOutput:
    """One request. From LLM.generate: everything; from LLM.stream: what is new since the last."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[Logprobs | None] | None = None
    metrics: RequestMetrics | None = None
    num_cached_tokens: int = 0

    @property
    def speculation(self) -> SpeculationStats:
        """Summed over the completions."""
        each = [output.speculation for output in self.outputs]
        longest = max((len(stats.length_histogram) for stats in each), default=0)
        return SpeculationStats(
            num_drafted=sum(stats.num_drafted for stats in each),
            num_accepted=sum(stats.num_accepted for stats in each),
            num_steps=sum(stats.num_steps for stats in each),
            reason=each[0].reason if each else "none",
            proposer=next((stats.proposer for stats in each if stats.proposer), None),
            length_histogram=[
                sum(stats.length_histogram[k] for stats in each if k < len(stats.length_histogram))
                for k in range(longest)
            ],
        )
