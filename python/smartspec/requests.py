# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""A request on its way through the engine: prompt in, outputs collected, text made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import smartspec_core as core

from .outputs import (
    CompletionOutput,
    Logprob,
    Logprobs,
    RequestMetrics,
    RequestOutput,
    SpeculationStats,
)
from .sampling_params import SamplingParams, check_int
from .speculation import RequestSpeculation
from .tokenizer import Detokenizer, Tokenizer


@dataclass(frozen=True)
class PreparedRequest:
    """Checked and tokenized; nothing has started."""

    prompt: str | None
    token_ids: list[int]
    params: SamplingParams
    native: core.SamplingParams
    priority: int = 0
    prediction: list[int] = field(default_factory=list)
    speculation: RequestSpeculation = field(default_factory=RequestSpeculation)


def read_prompt(
    prompt: Any, name: str, tokenizer: Tokenizer | None, vocab_size: int
) -> tuple[str | None, list[int]]:
    """(text or None, token ids); ValueError names the field."""
    text: str | None = None
    ids: Any = prompt
    if isinstance(prompt, Mapping):
        text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
        if text is not None and not isinstance(text, str):
            raise ValueError(f"{name}['prompt'] must be a string, got {type(text).__name__}")
        if text is None and ids is None:
            raise ValueError(f"{name} must have 'prompt' or 'prompt_token_ids'")
    elif isinstance(prompt, str):
        text, ids = prompt, None
    if ids is None:
        if tokenizer is None:
            raise ValueError(f"{name}: the model has no tokenizer.json, so pass token ids")
        try:
            ids = tokenizer.encode(text or "")
        except (UnicodeEncodeError, TypeError):
            raise ValueError(f"{name} must be valid Unicode (it has a lone surrogate)") from None
    elif isinstance(ids, (str, bytes)) or not hasattr(ids, "__len__"):
        raise ValueError(f"{name} must be a string or token ids, got {type(ids).__name__}")
    if len(ids) == 0:
        raise ValueError(f"{name} is empty; at least one token is needed")
    return text, [
        check_int(f"{name}: token id {i}", token, 0, vocab_size - 1) for i, token in enumerate(ids)
    ]


def read_prediction(
    prediction: Any, name: str, tokenizer: Tokenizer | None, vocab_size: int
) -> list[int]:
    """Token ids of a text or of ids; none for None and for what is empty."""
    if prediction is None:
        return []
    if isinstance(prediction, str):
        if tokenizer is None:
            raise ValueError(f"{name}: the model has no tokenizer.json, so pass token ids")
        try:
            return tokenizer.encode(prediction, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            raise ValueError(f"{name} must be valid Unicode (it has a lone surrogate)") from None
    if isinstance(prediction, (bytes, Mapping)) or not hasattr(prediction, "__len__"):
        kind = type(prediction).__name__
        raise ValueError(f"{name} must be a string or token ids, got {kind}")
    return [
        check_int(f"{name}: token id {i}", token, 0, vocab_size - 1)
        for i, token in enumerate(prediction)
    ]


@dataclass
class _Completion:
    """What one completion has so far, and how much of it stream() has handed out."""

    output: CompletionOutput
    detokenizer: Detokenizer | None
    given_tokens: int = 0
    given_text: int = 0
    given_finish: bool = False


class DraftStep(NamedTuple):
    """One decoding step that drafted, or wanted to and found nothing."""

    drafted: int
    accepted: int
    emitted: int


@dataclass
class ActiveRequest:
    """Collects the engine's outputs of one request. LLM drives it and holds its lock meanwhile."""

    request_id: int
    prepared: PreparedRequest
    tokenizer: Tokenizer | None
    arrival: float
    proposer_names: list[str] = field(default_factory=list)
    metrics: RequestMetrics = field(init=False)
    token_times: list[tuple[float, int]] = field(default_factory=list)  # (when, tokens)
    draft_steps: list[DraftStep] = field(default_factory=list)  # of the first completion

    def __post_init__(self) -> None:
        self.metrics = RequestMetrics(self.arrival)
        self._prompt_logprobs: list[Logprobs | None] | None = None
        self._cached_tokens = 0
        self._completions = [self._new(i) for i in range(self.prepared.params.n)]
        self._unfinished = len(self._completions)

    def _new(self, index: int) -> _Completion:
        params = self.prepared.params
        output = CompletionOutput(index)
        if params.logprobs is not None:
            output.logprobs, output.cumulative_logprob = [], 0.0
        detokenizer = None
        if self.tokenizer is not None and params.detokenize:
            detokenizer = Detokenizer(
                self.tokenizer,
                params.stop_strings,
                params.include_stop_str_in_output,
                params.skip_special_tokens,
            )
        return _Completion(output, detokenizer)

    @property
    def finished(self) -> bool:
        return self._unfinished == 0

    def add(self, event: core.RequestOutput, now: float) -> None:
        state = self._completions[event.index]
        output = state.output
        new_ids = event.new_token_ids
        output.token_ids += new_ids
        stats = event.stats
        before, output.speculation = output.speculation, self._speculation(stats)
        self._cached_tokens = max(self._cached_tokens, stats.num_cached_tokens)
        self.metrics.num_preemptions = max(self.metrics.num_preemptions, stats.num_preemptions)
        if output.logprobs is not None:
            self._add_logprobs(output, event.logprobs)
        if event.prompt_logprobs and self._prompt_logprobs is None:
            self._prompt_logprobs = [None, *map(self._logprobs, event.prompt_logprobs)]
        if new_ids:
            self.token_times.append((now, len(new_ids)))
            if event.index == 0:
                self._add_draft_step(before, output.speculation, len(new_ids))
            self.metrics.first_token_time = self.metrics.first_token_time or now
            self.metrics.last_token_time = now
        if state.detokenizer is not None:
            state.detokenizer.append(new_ids)
        if event.finish_reason is not None:
            self._finish(state, event, now)

    def _add_draft_step(
        self, before: SpeculationStats, after: SpeculationStats, emitted: int
    ) -> None:
        drafted = after.num_drafted - before.num_drafted
        if drafted > 0 or after.reason == "nothing_found":
            accepted = after.num_accepted - before.num_accepted
            self.draft_steps.append(DraftStep(drafted, accepted, emitted))

    def _speculation(self, stats: core.RequestStats) -> SpeculationStats:
        proposer = stats.proposer
        return SpeculationStats(
            stats.num_drafted,
            stats.num_accepted,
            stats.num_steps,
            stats.no_speculation_reason,
            self.proposer_names[proposer] if proposer >= 0 else None,
            list(stats.length_histogram),
        )

    def _finish(self, state: _Completion, event: core.RequestOutput, now: float) -> None:
        output = state.output
        output.finish_reason = event.finish_reason
        if event.error:
            output.error = event.error
        if event.stop_string_index >= 0:
            output.stop_reason = self.prepared.params.stop_strings[event.stop_string_index]
        elif event.stop_token_id >= 0:
            output.stop_reason = event.stop_token_id
        if state.detokenizer is not None:
            output.text += state.detokenizer.finish(event.stop_string_index)
        self._unfinished -= 1
        if self._unfinished == 0:
            self.metrics.finished_time = now

    def aborted(self, now: float) -> None:
        for state in self._completions:
            if state.output.finish_reason is None:
                state.output.finish_reason = "abort"
                if state.detokenizer is not None:
                    state.output.text += state.detokenizer.finish()
        self._unfinished = 0
        self.metrics.finished_time = now

    def _logprobs(self, entries: Sequence[core.TokenLogprob]) -> Logprobs:
        text_of = self.tokenizer.token_text if self.tokenizer is not None else lambda _: None
        return {
            entry.token: Logprob(entry.logprob, entry.rank, text_of(entry.token))
            for entry in entries
        }

    def _add_logprobs(
        self, output: CompletionOutput, rows: Sequence[Sequence[core.TokenLogprob]]
    ) -> None:
        assert output.logprobs is not None
        assert output.cumulative_logprob is not None
        for row in rows:
            output.logprobs.append(self._logprobs(row))
            output.cumulative_logprob += row[0].logprob  # the chosen token comes first

    def result(self) -> RequestOutput:
        """Everything so far."""
        return self._output([state.output for state in self._completions])

    def _output(self, outputs: list[CompletionOutput]) -> RequestOutput:
        return RequestOutput(
            request_id=str(self.request_id),
            prompt=self.prepared.prompt,
            prompt_token_ids=self.prepared.token_ids,
            outputs=outputs,
            finished=self.finished,
            prompt_logprobs=self._prompt_logprobs,
            metrics=self.metrics,
            num_cached_tokens=self._cached_tokens,
        )

    def take_news(self) -> RequestOutput | None:
        """What came since the last call, None when nothing did."""
        news = []
        for state in self._completions:
            output = state.output
            if state.detokenizer is not None and output.finish_reason is None:
                output.text += state.detokenizer.take()
            fresh_ids = output.token_ids[state.given_tokens :]
            fresh_text = output.text[state.given_text :]
            ended = output.finish_reason is not None and not state.given_finish
            if not fresh_ids and not fresh_text and not ended:
                continue
            part = CompletionOutput(
                output.index,
                fresh_text,
                fresh_ids,
                output.cumulative_logprob,
                None if output.logprobs is None else output.logprobs[state.given_tokens :],
                output.finish_reason,
                output.stop_reason,
                output.error,
                output.speculation,
            )
            state.given_tokens = len(output.token_ids)
            state.given_text = len(output.text)
            state.given_finish = ended
            news.append(part)
        return self._output(news) if news else None
