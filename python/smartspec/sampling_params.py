# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""How requests choose tokens and when they stop: vLLM's field names, units and defaults."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import smartspec_core as core

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

_INT32_MAX = 2**31 - 1
# field: (lowest, highest, whether the lowest itself is allowed)
_FLOATS = {
    "temperature": (0.0, 1e4, True),
    "top_p": (0.0, 1.0, False),
    "min_p": (0.0, 1.0, True),
    "presence_penalty": (-2.0, 2.0, True),
    "frequency_penalty": (-2.0, 2.0, True),
    "repetition_penalty": (0.0, 1e4, False),
}
_INTS = {
    "n": (1, core.MAX_N),
    "top_k": (-1, _INT32_MAX),
    "min_tokens": (0, _INT32_MAX),
}
_OPTIONAL_INTS = {
    "max_tokens": (1, _INT32_MAX),
    "seed": (-(2**63), 2**63 - 1),
    "logprobs": (0, core.MAX_LOGPROBS),
    "prompt_logprobs": (0, core.MAX_LOGPROBS),
}
_FLAGS = (
    "ignore_eos",
    "include_stop_str_in_output",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
)


def _bad(name: str, value: object, allowed: str) -> ValueError:
    shown = repr(value)
    return ValueError(f"{name} must be {allowed}, got {shown[:80]}{'...' * (len(shown) > 80)}")


def check_int(name: str, value: object, low: int, high: int) -> int:
    """`value` as an int in [low, high]; ValueError naming the field otherwise. No bools."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise _bad(name, value, f"an integer in [{low}, {high}]") from None
    if isinstance(value, bool) or not low <= number <= high:
        raise _bad(name, value, f"an integer in [{low}, {high}]")
    return number


def check_float(name: str, value: object, low: float, high: float, closed: bool = True) -> float:
    allowed = f"a finite number in {'[' if closed else '('}{low:g}, {high:g}]"
    if isinstance(value, (bool, str, bytes)):
        raise _bad(name, value, allowed)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise _bad(name, value, allowed) from None
    # Written so that NaN fails.
    if not (low <= number <= high) or (not closed and number == low):
        raise _bad(name, value, allowed)
    return number


def _check_list(name: str, value: object, limit: int, what: str) -> list[Any]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise _bad(name, value, f"a list of {what}")
    if len(value) > limit:
        raise ValueError(f"{name} must have at most {limit} entries, got {len(value)}")
    return list(value)


def _check_ids(name: str, value: object, limit: int) -> list[int]:
    entries = _check_list(name, value, limit, "token ids")
    return [check_int(f"{name}[{i}]", entry, 0, _INT32_MAX) for i, entry in enumerate(entries)]


@dataclass
class SamplingParams:
    """Checked when it is made; ValueError names the field, the value and what is allowed.

    temperature 0 is greedy. `seed` makes a request reproducible whatever it is batched with and
    however it is speculated. `max_tokens` None: as many as the context holds. Stop strings end the
    text before them unless `include_stop_str_in_output`; `token_ids` keep the token that completed
    the stop string. Special tokens do not take part in stop strings: name them in `stop_token_ids`.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True  # no effect: fast tokenizers have no such choice
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None

    def __post_init__(self) -> None:
        for name, (low, high, closed) in _FLOATS.items():
            setattr(self, name, check_float(name, getattr(self, name), low, high, closed))
        for name, (least, most) in _INTS.items():
            setattr(self, name, check_int(name, getattr(self, name), least, most))
        for name, (least, most) in _OPTIONAL_INTS.items():
            if getattr(self, name) is not None:
                setattr(self, name, check_int(name, getattr(self, name), least, most))
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise _bad(name, getattr(self, name), "True or False")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _bad("min_tokens", self.min_tokens, f"at most max_tokens ({self.max_tokens})")
        self._check_stops()
        self._check_token_lists()

    def _check_stops(self) -> None:
        stop = [self.stop] if isinstance(self.stop, str) else (self.stop or [])
        self.stop = _check_list("stop", stop, core.MAX_STOP_STRINGS, "strings")
        for i, text in enumerate(self.stop):
            if not isinstance(text, str) or not text:
                raise _bad(f"stop[{i}]", text, "a non-empty string")
            if _utf8_length(f"stop[{i}]", text) > core.MAX_STOP_STRING_BYTES:
                raise _bad(f"stop[{i}]", text, f"at most {core.MAX_STOP_STRING_BYTES} bytes long")
        if self.stop and not self.detokenize:
            raise ValueError("stop strings need detokenize=True")

    def _check_token_lists(self) -> None:
        self.stop_token_ids = _check_ids(
            "stop_token_ids", self.stop_token_ids or [], core.MAX_STOP_TOKEN_IDS
        )
        self.bad_words = _check_list(
            "bad_words", self.bad_words or [], core.MAX_BAD_WORDS // 2, "strings"
        )
        for i, word in enumerate(self.bad_words):
            if not isinstance(word, str) or not word.strip():
                raise _bad(f"bad_words[{i}]", word, "a string with more than spaces in it")
            _utf8_length(f"bad_words[{i}]", word)
        if self.allowed_token_ids is not None:
            self.allowed_token_ids = _check_ids(
                "allowed_token_ids", self.allowed_token_ids, _INT32_MAX
            )
            if not self.allowed_token_ids:
                raise ValueError("allowed_token_ids must be None or name at least one token")
        if self.logit_bias is not None:
            if not isinstance(self.logit_bias, Mapping):
                raise _bad("logit_bias", self.logit_bias, "a dict from token id to number")
            self.logit_bias = {
                check_int("logit_bias key", key, 0, _INT32_MAX): check_float(
                    f"logit_bias[{key}]", value, -100.0, 100.0
                )
                for key, value in self.logit_bias.items()
            }

    @property
    def stop_strings(self) -> list[str]:
        return list(self.stop or [])

    def clone(self, **changes: Any) -> SamplingParams:
        return replace(self, **changes)

    def to_native(
        self, tokenizer: Tokenizer | None, vocab_size: int, room: int
    ) -> core.SamplingParams:
        """The engine's parameters. `room`: tokens that the context has left after the prompt."""
        self.__post_init__()  # fields may have been assigned since
        native = core.SamplingParams()
        for name in (*_FLOATS, *_INTS, "seed", "logprobs", "prompt_logprobs", "ignore_eos"):
            setattr(native, name, getattr(self, name))
        native.include_stop_str_in_output = self.include_stop_str_in_output
        native.max_tokens = max(1, room if self.max_tokens is None else self.max_tokens)
        native.stop = self.stop_strings
        native.stop_token_ids = self.stop_token_ids or []
        native.allowed_token_ids = self.allowed_token_ids
        native.logit_bias = list((self.logit_bias or {}).items())
        if (self.stop or self.bad_words) and tokenizer is None:
            raise ValueError("stop and bad_words need a tokenizer, and the model has none")
        if self.bad_words and tokenizer is not None:
            native.bad_words = tokenizer.bad_word_ids(self.bad_words)
        native.validate(vocab_size)
        return native


def _utf8_length(name: str, text: str) -> int:
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise _bad(name, text, "valid Unicode (it has a lone surrogate)") from None
