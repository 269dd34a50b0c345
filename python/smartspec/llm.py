# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""The offline interface: a model directory in, completions out; shaped as vLLM's LLM."""

from __future__ import annotations

import copy
import hashlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import smartspec_core as core

from . import metrics
from .chat import ChatTemplate
from .config import load_config, load_generation_config
from .drafting import DraftingModels, make_drafting
from .inflate import format_parameters, parse_parameters
from .loader import load_model, model_directory
from .outputs import RequestOutput
from .requests import ActiveRequest, PreparedRequest, read_prediction, read_prompt
from .sampling_params import SamplingParams, check_int
from .speculation import RequestSpeculation, Speculation
from .tokenizer import Tokenizer

_INT32_MAX = 2**31 - 1
_UINT64_MAX = 2**64 - 1
_DTYPES = ("auto", "float32", "bfloat16")

Prompt = str | Sequence[int] | Mapping[str, Any]
Prediction = str | Sequence[int]
Control = RequestSpeculation | Mapping[str, Any] | None


class LLM:
    """One target model, an engine over it, and its tokenizer.

    `model`, `draft_model`: Hugging Face directories (config.json, safetensors, tokenizer.json).
    `speculation`: a Speculation, its fields as a dict, a proposer's name or a Proposer object; None
    is "auto": the suffix index and the draft model, where one is given, as much as pays at every
    step. `speculative_config`: vLLM's, in its place (Speculation.from_vllm).
    `num_kv_blocks` 0 and `max_model_len` None choose automatically; `num_threads` 0 takes the cores
    this process may use. `inflate_to`: parameters, such as "300M", to pad the model to with layers
    that change no output, for measuring; `model_name` then says so. The attribute `suffix_index` is
    the index of the suffix proposers, to save, load and preload; else None. Methods may be called
    from several threads: their requests share batches.
    """

    def __init__(
        self,
        model: str | Path,
        draft_model: str | Path | None = None,
        speculation: Speculation | Mapping[str, Any] | str | core.Proposer | None = None,
        *,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 512,
        block_size: int = 16,
        num_kv_blocks: int = 0,
        max_model_len: int | None = None,
        dtype: str = "auto",
        kv_dtype: str = "auto",
        enable_prefix_caching: bool = True,
        num_threads: int = 0,
        device: str = "cpu",
        seed: int = 0,
        inflate_to: int | str | None = None,
        speculative_config: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value in (("dtype", dtype), ("kv_dtype", kv_dtype)):
            if value not in _DTYPES:
                raise ValueError(f"{name} must be one of {', '.join(_DTYPES)}, got {value!r}")
        options = core.EngineOptions()
        options.max_num_seqs = check_int("max_num_seqs", max_num_seqs, 1, 4096)
        options.max_num_batched_tokens = check_int(
            "max_num_batched_tokens", max_num_batched_tokens, options.max_num_seqs, 1 << 20
        )
        options.block_size = check_int("block_size", block_size, 16, 4096)
        options.num_kv_blocks = check_int("num_kv_blocks", num_kv_blocks, 0, _INT32_MAX)
        options.max_model_len = check_int("max_model_len", max_model_len or 0, 0, _INT32_MAX)
        options.kv_dtype = None if kv_dtype == "auto" else kv_dtype
        options.enable_prefix_caching = bool(enable_prefix_caching)
        options.seed = check_int("seed", seed, 0, _UINT64_MAX)
        check_int("num_threads", num_threads, 0, 1024)
        if speculative_config is not None:
            if speculation is not None:
                raise ValueError("give speculation or speculative_config, not both")
            speculation = Speculation.from_vllm(speculative_config)
        self.speculation = Speculation.resolve(speculation, draft_model is not None)
        draft_model = draft_model if draft_model is not None else self.speculation.draft_model

        folder = model_directory("model", model)
        self.model_path = folder
        self.model_name = folder.resolve().name
        if inflate_to is not None:
            asked = format_parameters(parse_parameters(inflate_to))
            self.model_name += f" (inflated to {asked})"
        self.model_config = load_config(folder)
        vocab_size = self.model_config.vocab_size
        self.runtime = core.make_runtime(device, num_threads)
        self.model = load_model(self.runtime, folder, self.model_config, dtype, inflate_to)
        self.tokenizer = Tokenizer.from_directory(folder, vocab_size)
        self.chat_template = ChatTemplate.from_directory(folder)
        self.generation_config = load_generation_config(folder, vocab_size)
        self._stops = core.StopVocabulary(
            self.generation_config.eos_token_ids,
            self.tokenizer.stop_bytes() if self.tokenizer is not None else [],
        )
        self._options = options
        self._draft_model: core.Model | None = None
        if draft_model is not None and self.speculation.uses("draft"):
            folder = model_directory("draft_model", draft_model)
            self._draft_model = load_model(self.runtime, folder, load_config(folder), dtype)
        self._start_engine()

    def _start_engine(self) -> None:
        models = DraftingModels(
            self.model, self._draft_model, self._options, _tokenizer_hash(self.model_path)
        )
        drafting = make_drafting(self.speculation, models)
        self.suffix_index = drafting.suffix_index
        self.proposer_names = drafting.names
        self._proposers = drafting.proposers
        self.engine = core.Engine(
            self.model, self._options, self._stops, drafting.proposers, drafting.policy
        )
        self._active: dict[int, ActiveRequest] = {}
        self._lock = threading.Lock()

    def with_speculation(
        self, speculation: Speculation | Mapping[str, Any] | str | core.Proposer
    ) -> LLM:
        """Another engine over the same loaded models, with a KV cache and requests of its own."""
        other = copy.copy(self)
        has_draft_model = self._draft_model is not None
        other.speculation = Speculation.resolve(speculation, has_draft_model, warn=False)
        other._start_engine()
        return other

    @property
    def max_model_len(self) -> int:
        return self.engine.options.max_model_len

    def get_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(f"{self.model_path} has no tokenizer.json")
        return self.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What generation_config.json recommends, over SamplingParams' own defaults."""
        values: dict[str, Any] = dict(self.generation_config.sampling)
        return SamplingParams(**values)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
        prediction: Prediction | Sequence[Prediction | None] | None = None,
        speculation: Control | Sequence[Control] = None,
    ) -> list[RequestOutput]:
        """Completions in the order of the prompts: texts, lists of token ids, or dicts with
        "prompt" or "prompt_token_ids". `prediction`: what the output may resemble (OpenAI's
        predicted outputs), a text or token ids, or a list with one or None per prompt; the suffix
        proposers draft from it. `speculation`: what requests ask for, a RequestSpeculation or its
        fields as a dict, for all or a list with one per prompt. Everything is checked before
        anything starts."""
        entries = _as_list(prompts)
        params = self._params_for(sampling_params, len(entries))
        if priority is not None and len(priority) != len(entries):
            raise ValueError(f"priority must have {len(entries)} entries, got {len(priority)}")
        ranks = [
            check_int(f"priority[{i}]", rank, -(2**31), _INT32_MAX)
            for i, rank in enumerate(priority or [0] * len(entries))
        ]
        predicted = _predictions(prediction, len(entries))
        controls = _controls(speculation, len(entries))
        prepared = [
            self.prepare(entry, chosen, rank, f"prompts[{i}]", guess, control)
            for i, (entry, chosen, rank, guess, control) in enumerate(
                zip(entries, params, ranks, predicted, controls, strict=True)
            )
        ]
        requests = [self.start(request) for request in prepared]
        bar = metrics.ProgressBar(len(requests), use_tqdm)
        pending = requests
        try:
            while pending:
                self.step(pending[0])
                bar.update([request for request in pending if request.finished])
                pending = [request for request in pending if not request.finished]
        finally:
            bar.close()
            for request in requests:
                self.abort(request)
        return [request.result() for request in requests]

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        prediction: Prediction | Sequence[Prediction | None] | None = None,
        speculation: Control | Sequence[Control] = None,
        **template_variables: Any,
    ) -> list[RequestOutput]:
        """One conversation, or a list of them, put into the model's chat template. `prediction` and
        `speculation`: as in generate()."""
        template = self.chat_template if chat_template is None else ChatTemplate(chat_template)
        if template is None:
            raise ValueError(f"{self.model_path} has no chat template; pass chat_template")
        if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
            raise ValueError("messages must be a list of {'role': ..., 'content': ...}")
        many = bool(messages) and not isinstance(messages[0], Mapping)
        conversations: Any = messages if many else [messages]
        texts = template.render(conversations, add_generation_prompt, **template_variables)
        tokenizer = self.get_tokenizer()
        prompts = [
            {"prompt": text, "prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)}
            for text in texts
        ]
        return self.generate(
            prompts, sampling_params, use_tqdm, prediction=prediction, speculation=speculation
        )

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        priority: int = 0,
        prediction: Prediction | None = None,
        speculation: Control = None,
    ) -> Iterator[RequestOutput]:
        """What is new, step by step; the texts of all parts join to generate()'s. Checked at the
        call; closing the iterator aborts the request."""
        chosen = self._params_for(sampling_params, 1)[0]
        rank = check_int("priority", priority, -(2**31), _INT32_MAX)
        prepared = self.prepare(prompt, chosen, rank, "prompt", prediction, speculation)
        return self._stream(prepared)

    def _stream(self, prepared: PreparedRequest) -> Iterator[RequestOutput]:
        request = self.start(prepared)
        try:
            while not request.finished:
                self.step(request)
                if (news := request.take_news()) is not None:
                    yield news
        finally:
            self.abort(request)

    def get_metrics(self) -> dict[str, float]:
        """Counters and gauges under vLLM's names with the prefix "smartspec:", and the policy's."""
        return metrics.engine_metrics(self.engine.stats())

    # ------------------------------------------------------- one request at a time, for servers

    def prepare(
        self,
        prompt: Prompt,
        params: SamplingParams,
        priority: int = 0,
        field: str = "prompt",
        prediction: Prediction | None = None,
        speculation: Control = None,
    ) -> PreparedRequest:
        """Tokenizes and checks; ValueError names the field. Nothing has started yet."""
        text, token_ids = read_prompt(prompt, field, self.tokenizer, self.model_config.vocab_size)
        room = self.max_model_len - len(token_ids)
        if room < 1:
            raise ValueError(
                f"{field} has {len(token_ids)} tokens; allowed are 1 to {self.max_model_len - 1} "
                "(max_model_len - 1)"
            )
        vocab_size = self.model_config.vocab_size
        guess = read_prediction(prediction, f"prediction of {field}", self.tokenizer, vocab_size)
        if len(guess) > self.max_model_len:
            raise ValueError(
                f"prediction of {field} has {len(guess)} tokens; allowed are at most "
                f"{self.max_model_len} (max_model_len)"
            )
        control = RequestSpeculation.resolve(speculation, f"speculation of {field}")
        if control.proposer is not None and control.proposer not in self.proposer_names:
            allowed = ", ".join(self.proposer_names) or "none: speculation is off"
            raise ValueError(
                f"speculation of {field}: proposer must be one of this LLM's ({allowed}), got "
                f"{control.proposer[:80]!r}"
            )
        native = params.to_native(self.tokenizer, vocab_size, room)
        return PreparedRequest(text, token_ids, params, native, priority, guess, control)

    def start(self, prepared: PreparedRequest) -> ActiveRequest:
        """Queues a request; drive it with step() until it is finished."""
        with self._lock:
            return self._start(prepared)

    def _start(self, prepared: PreparedRequest) -> ActiveRequest:
        arrival = time.monotonic()
        request_id = self.engine.add_request(
            prepared.token_ids,
            prepared.native,
            priority=prepared.priority,
            prediction=prepared.prediction,
            **self._control(prepared.speculation),
        )
        request = ActiveRequest(request_id, prepared, self.tokenizer, arrival, self.proposer_names)
        self._active[request_id] = request
        return request

    def _control(self, wish: RequestSpeculation) -> dict[str, Any]:
        proposer = None
        if wish.proposer is not None:
            proposer = self._proposers[self.proposer_names.index(wish.proposer)].name
        return {
            "speculate": wish.enabled,
            "min_draft_tokens": wish.min_tokens,
            "max_draft_tokens": wish.max_tokens,
            "proposer": proposer,
            "tpot_target": (wish.tpot_target_ms or 0.0) / 1e3,
        }

    def step(self, until: ActiveRequest | None = None) -> None:
        """One engine step, and everybody's outputs to where they belong. With `until`: nothing
        when that request has finished meanwhile in another thread's step."""
        with self._lock:
            if until is not None and until.finished:
                return
            outputs = self.engine.step()
            now = time.monotonic()
            for output in outputs:
                request = self._active.get(output.id)
                if request is None:
                    continue
                request.add(output, now)
                if request.finished:
                    del self._active[output.id]

    def abort(self, request: ActiveRequest) -> None:
        """Ends a request that is still running; nothing happens when it has finished."""
        with self._lock:
            if self._active.pop(request.request_id, None) is not None:
                self.engine.abort(request.request_id)
                request.aborted(time.monotonic())

    def _params_for(
        self, params: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> list[SamplingParams]:
        if params is None:
            params = self.get_default_sampling_params()
        if isinstance(params, SamplingParams):
            return [params] * count
        if not isinstance(params, Sequence) or not all(
            isinstance(entry, SamplingParams) for entry in params
        ):
            raise ValueError("sampling_params must be SamplingParams, a list of them, or None")
        if len(params) != count:
            raise ValueError(f"sampling_params must have {count} entries, got {len(params)}")
        return list(params)


def _tokenizer_hash(folder: Path) -> str:
    """Files of a suffix index hold token ids, which mean nothing under another tokenizer."""
    path = folder / "tokenizer.json"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _predictions(
    prediction: Prediction | Sequence[Prediction | None] | None, count: int
) -> list[Any]:
    """One per prompt."""
    is_list = hasattr(prediction, "__len__") and not isinstance(prediction, (str, bytes, Mapping))
    if prediction is None or (is_list and len(prediction) == 0):
        return [None] * count
    entries: list[Any] = [prediction]
    if is_list and not hasattr(prediction[0], "__index__"):  # else one list of ids
        entries = list(prediction)
    if len(entries) != count:
        raise ValueError(
            f"prediction must be a text or token ids for one prompt, or have {count} entries, one "
            f"per prompt; got {len(entries)}"
        )
    return entries


def _controls(speculation: Control | Sequence[Control], count: int) -> list[Control]:
    """One per prompt."""
    if not isinstance(speculation, Sequence) or isinstance(speculation, (str, bytes)):
        return [RequestSpeculation.resolve(speculation)] * count
    if len(speculation) != count:
        raise ValueError(f"speculation must have {count} entries, got {len(speculation)}")
    return list(speculation)


def _as_list(prompts: Any) -> list[Any]:
    """A single prompt (a text, a dict, a list of ids) becomes a list of one."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    if isinstance(prompts, (bytes, bytearray)):
        raise ValueError("prompts must be str or token ids, got bytes")
    try:
        entries = list(prompts)
    except TypeError:
        raise ValueError(
            f"prompts must be a prompt or a list of prompts, got {type(prompts).__name__}"
        ) from None
    if not entries:
        return []
    if not isinstance(entries[0], (str, Mapping)) and hasattr(entries[0], "__index__"):
        return [entries]
    return entries
