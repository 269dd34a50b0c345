"""
SmartSpec's engine core. Array arguments are never converted or copied silently.
"""

from __future__ import annotations

import collections.abc
import os
import typing

import numpy
import numpy.typing

from . import cuda

__all__: list[str] = [
    "AcceptanceModel",
    "ClaimReading",
    "CostCoefficients",
    "CostModel",
    "CostModelOptions",
    "CostSample",
    "DeviceError",
    "DraftModelOptions",
    "DraftModelProposer",
    "Engine",
    "EngineOptions",
    "EngineStats",
    "Error",
    "FormatError",
    "GoodputOptions",
    "GoodputPolicy",
    "KvCache",
    "KvCacheStats",
    "LengthPolicy",
    "MAX_BAD_WORDS",
    "MAX_BAD_WORD_TOKENS",
    "MAX_LOGPROBS",
    "MAX_N",
    "MAX_STOP_STRINGS",
    "MAX_STOP_STRING_BYTES",
    "MAX_STOP_TOKEN_IDS",
    "MAX_TREE_NODES",
    "Model",
    "ModelConfig",
    "Outcome",
    "PolicyStats",
    "PromptLookupProposer",
    "ProposeRequest",
    "Proposer",
    "ProposerStats",
    "ReplayResult",
    "RequestOutput",
    "RequestStats",
    "Roofline",
    "RopeScaling",
    "Runtime",
    "SafetensorsFile",
    "Sampler",
    "SamplingParams",
    "SchedulerOptions",
    "SimulatedProposer",
    "SimulatedRequest",
    "SimulatedShift",
    "SimulationOptions",
    "SimulationResult",
    "SpeculationControl",
    "StackedProposer",
    "StepLoad",
    "StopVocabulary",
    "SuffixDrafts",
    "SuffixIndex",
    "SuffixIndexOptions",
    "SuffixIndexStats",
    "SuffixLookup",
    "SuffixProposer",
    "SurvivalModelOptions",
    "Tensor",
    "TokenLogprob",
    "TokenTree",
    "TurboSpecOptions",
    "Verification",
    "compute_logprobs",
    "cuda",
    "finish_recording",
    "fit_cost",
    "gumbel_noise",
    "is_available",
    "isa_name",
    "make_disco_policy",
    "make_dynamic_depth_policy",
    "make_fixed_policy",
    "make_full_draft_policy",
    "make_goodput_policy",
    "make_off_policy",
    "make_recording_policy",
    "make_roofline",
    "make_runtime",
    "make_sequoia_policy",
    "make_table_policy",
    "make_tetris_policy",
    "make_threshold_policy",
    "make_turbospec_policy",
    "profile_model",
    "replay",
    "roofline_of",
    "seed_of_completion",
    "simulate",
    "verify_tree",
]

class Error(RuntimeError):
    pass

class FormatError(Error):
    pass

class DeviceError(Error):
    pass

class TokenTree:
    """
    Draft tokens in topological order; parent -1 is the last verified token. Without parents: a chain. Fields may be assigned freely; whoever takes the tree checks it.
    """
    @typing.overload
    def __init__(self) -> None: ...
    @typing.overload
    def __init__(
        self,
        tokens: collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int32],
        parents: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None = None,
        survival: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]
        | None = None,
    ) -> None: ...
    def __len__(self) -> int: ...
    def __repr__(self) -> str: ...
    def add(
        self,
        token: typing.SupportsInt | typing.SupportsIndex,
        parent: typing.SupportsInt | typing.SupportsIndex,
        survival: typing.SupportsFloat | typing.SupportsIndex = 1.0,
    ) -> int:
        """
        Appends a node and returns its index.
        """
    def validate(
        self,
        vocab_size: typing.SupportsInt | typing.SupportsIndex,
        max_nodes: typing.SupportsInt | typing.SupportsIndex = 256,
        max_depth: typing.SupportsInt | typing.SupportsIndex = 256,
    ) -> str:
        """
        Empty when sound, else the first fault in words.
        """
    @property
    def depths(self) -> list[int]: ...
    @depths.setter
    def depths(
        self, arg0: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
    ) -> None: ...
    @property
    def parents(self) -> list[int]: ...
    @parents.setter
    def parents(
        self, arg0: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
    ) -> None: ...
    @property
    def survival(self) -> list[float]: ...
    @survival.setter
    def survival(
        self, arg0: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]
    ) -> None: ...
    @property
    def tokens(self) -> list[int]: ...
    @tokens.setter
    def tokens(
        self, arg0: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
    ) -> None: ...

class SamplingParams:
    """
    How to choose tokens and when to stop; vLLM's names and defaults. Bad words are token sequences here.
    """

    ignore_eos: bool
    include_stop_str_in_output: bool
    def __init__(self) -> None: ...
    def validate(self, vocab_size: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Raises ValueError naming the field, its value and what is allowed.
        """
    @property
    def allowed_token_ids(self) -> list[int] | None: ...
    @allowed_token_ids.setter
    def allowed_token_ids(
        self, arg0: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None
    ) -> None: ...
    @property
    def bad_words(self) -> list[list[int]]: ...
    @bad_words.setter
    def bad_words(
        self,
        arg0: collections.abc.Sequence[
            collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
        ],
    ) -> None: ...
    @property
    def frequency_penalty(self) -> float: ...
    @frequency_penalty.setter
    def frequency_penalty(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def logit_bias(self) -> list[tuple[int, float]]: ...
    @logit_bias.setter
    def logit_bias(
        self,
        arg0: collections.abc.Sequence[
            tuple[
                typing.SupportsInt | typing.SupportsIndex,
                typing.SupportsFloat | typing.SupportsIndex,
            ]
        ],
    ) -> None: ...
    @property
    def logprobs(self) -> int | None: ...
    @logprobs.setter
    def logprobs(self, arg0: typing.SupportsInt | typing.SupportsIndex | None) -> None: ...
    @property
    def max_tokens(self) -> int: ...
    @max_tokens.setter
    def max_tokens(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def min_p(self) -> float: ...
    @min_p.setter
    def min_p(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def min_tokens(self) -> int: ...
    @min_tokens.setter
    def min_tokens(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def n(self) -> int: ...
    @n.setter
    def n(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def presence_penalty(self) -> float: ...
    @presence_penalty.setter
    def presence_penalty(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def prompt_logprobs(self) -> int | None: ...
    @prompt_logprobs.setter
    def prompt_logprobs(self, arg0: typing.SupportsInt | typing.SupportsIndex | None) -> None: ...
    @property
    def repetition_penalty(self) -> float: ...
    @repetition_penalty.setter
    def repetition_penalty(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def seed(self) -> int | None: ...
    @seed.setter
    def seed(self, arg0: typing.SupportsInt | typing.SupportsIndex | None) -> None: ...
    @property
    def stop(self) -> list[str]: ...
    @stop.setter
    def stop(self, arg0: collections.abc.Sequence[str]) -> None: ...
    @property
    def stop_token_ids(self) -> list[int]: ...
    @stop_token_ids.setter
    def stop_token_ids(
        self, arg0: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
    ) -> None: ...
    @property
    def temperature(self) -> float: ...
    @temperature.setter
    def temperature(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def top_k(self) -> int: ...
    @top_k.setter
    def top_k(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def top_p(self) -> float: ...
    @top_p.setter
    def top_p(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...

class StopVocabulary:
    """
    End-of-text ids, and the bytes of every token for stop strings.
    """
    def __init__(
        self,
        eos_token_ids: collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int32] = [],
        token_bytes: collections.abc.Sequence[bytes] = [],
    ) -> None: ...
    def __len__(self) -> int: ...
    @property
    def eos_token_ids(self) -> list[int]: ...

class TokenLogprob:
    @property
    def logprob(self) -> float: ...
    @property
    def rank(self) -> int: ...
    @property
    def token(self) -> int: ...

class Sampler:
    """
    Sampling state of one request. Logits are float32 [vocab_size], read in place. One thread at a time.
    """
    def __init__(
        self,
        params: SamplingParams,
        seed: typing.SupportsInt | typing.SupportsIndex,
        prompt: collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int32],
        vocab_size: typing.SupportsInt | typing.SupportsIndex,
        stops: StopVocabulary | None = None,
    ) -> None: ...
    def accept(self, token: typing.SupportsInt | typing.SupportsIndex) -> str | None:
        """
        Appends an emitted token: None, or 'stop' or 'length' when the request ends with it.
        """
    def mark(self) -> int: ...
    def rewind(self, mark: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    def sample(self, logits: numpy.ndarray) -> int:
        """
        The token at the next position; does not advance.
        """
    def sample_top(
        self, logits: numpy.ndarray, count: typing.SupportsInt | typing.SupportsIndex
    ) -> list[tuple[int, float]]:
        """
        The `count` best tokens of the same rule and their softmax(logits / T), best first.
        """
    @property
    def is_greedy(self) -> bool: ...
    @property
    def matched_stop_string(self) -> int: ...
    @property
    def matched_stop_token(self) -> int: ...
    @property
    def num_output_tokens(self) -> int: ...

class Verification:
    """
    What verifying one tree gave.
    """
    @property
    def finish_reason(self) -> str | None: ...
    @property
    def logprobs(self) -> list[list[TokenLogprob]]: ...
    @property
    def path(self) -> list[int]: ...
    @property
    def rows(self) -> list[int]: ...
    @property
    def tokens(self) -> list[int]: ...

class Tensor:
    """
    A weight in memory, borrowed from a file or an array.
    """
    def __init__(self, array: numpy.ndarray, dtype: str | None = None) -> None:
        """
        Borrows a NumPy array; bfloat16 comes as uint16 with dtype='bfloat16'.
        """
    def numpy(self) -> numpy.ndarray:
        """
        A read-only view; bfloat16 as uint16 bits.
        """
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> list[int]: ...

class SafetensorsFile:
    """
    A safetensors file, mapped and checked. Raises FormatError.
    """
    def __init__(self, path: str) -> None: ...
    def find(self, name: str) -> Tensor | None:
        """
        The tensor, or None.
        """
    def names(self) -> list[str]: ...

class RopeScaling:
    """
    Long-context scaling of rotary embeddings.
    """
    class Type:
        """
        Members:

          none

          linear

          llama3
        """

        __members__: typing.ClassVar[dict[str, RopeScaling.Type]]
        linear: typing.ClassVar[RopeScaling.Type]
        llama3: typing.ClassVar[RopeScaling.Type]
        none: typing.ClassVar[RopeScaling.Type]
        @typing.overload
        def __eq__(self, other: RopeScaling.Type) -> bool: ...
        @typing.overload
        def __eq__(self, other: typing.Any) -> bool: ...
        def __getstate__(self) -> int: ...
        def __hash__(self) -> int: ...
        def __index__(self) -> int: ...
        def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None: ...
        def __int__(self) -> int: ...
        @typing.overload
        def __ne__(self, other: RopeScaling.Type) -> bool: ...
        @typing.overload
        def __ne__(self, other: typing.Any) -> bool: ...
        def __repr__(self) -> str: ...
        def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None: ...
        def __str__(self) -> str: ...
        @property
        def name(self) -> str: ...
        @property
        def value(self) -> int: ...

    type: RopeScaling.Type
    def __init__(self) -> None: ...
    @property
    def factor(self) -> float: ...
    @factor.setter
    def factor(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def high_freq_factor(self) -> float: ...
    @high_freq_factor.setter
    def high_freq_factor(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def low_freq_factor(self) -> float: ...
    @low_freq_factor.setter
    def low_freq_factor(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def original_max_position_embeddings(self) -> int: ...
    @original_max_position_embeddings.setter
    def original_max_position_embeddings(
        self, arg0: typing.SupportsInt | typing.SupportsIndex
    ) -> None: ...

class ModelConfig:
    """
    Shape of a Llama-family model; config.json's names.
    """

    attention_bias: bool
    attention_output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    rope_scaling: RopeScaling
    tie_word_embeddings: bool
    def __init__(self) -> None: ...
    def validate(self) -> None:
        """
        Raises FormatError naming the field.
        """
    @property
    def head_dim(self) -> int: ...
    @head_dim.setter
    def head_dim(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def hidden_size(self) -> int: ...
    @hidden_size.setter
    def hidden_size(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def intermediate_size(self) -> int: ...
    @intermediate_size.setter
    def intermediate_size(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @max_position_embeddings.setter
    def max_position_embeddings(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def max_window_layers(self) -> int: ...
    @max_window_layers.setter
    def max_window_layers(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def num_attention_heads(self) -> int: ...
    @num_attention_heads.setter
    def num_attention_heads(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @num_hidden_layers.setter
    def num_hidden_layers(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @num_key_value_heads.setter
    def num_key_value_heads(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def rms_norm_eps(self) -> float: ...
    @rms_norm_eps.setter
    def rms_norm_eps(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def rope_theta(self) -> float: ...
    @rope_theta.setter
    def rope_theta(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def sliding_window(self) -> int: ...
    @sliding_window.setter
    def sliding_window(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def vocab_size(self) -> int: ...
    @vocab_size.setter
    def vocab_size(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...

class Runtime:
    """
    One device with its threads; models may share it.
    """
    @property
    def isa_name(self) -> str: ...
    @property
    def num_threads(self) -> int: ...

class Model:
    """
    Weights packed for a device; immutable.
    """
    @staticmethod
    def from_tensors(
        runtime: Runtime, config: ModelConfig, source: typing.Any, dtype: str | None = None
    ) -> Model:
        """
        `source` maps a Hugging Face weight name to a Tensor or a NumPy array: a mapping, or a callable that returns None where there is none.
        """
    def bytes_per_kv_token(self, kv_dtype: str | None = None) -> int: ...
    def forward_logits(
        self, token_ids: collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int32]
    ) -> numpy.typing.NDArray[numpy.float32]:
        """
        For tests and debugging: float32 logits [len(token_ids), vocab_size] of one sequence.
        """
    @property
    def config(self) -> ModelConfig: ...
    @property
    def dtype(self) -> str: ...
    @property
    def isa_name(self) -> str: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def num_threads(self) -> int: ...

class StepLoad:
    """
    What a forward pass, or several together, computes.
    """
    def __init__(
        self,
        num_tokens: typing.SupportsInt | typing.SupportsIndex = 0,
        num_sequences: typing.SupportsInt | typing.SupportsIndex = 0,
        num_logits: typing.SupportsInt | typing.SupportsIndex = 0,
        kv_tokens: typing.SupportsInt | typing.SupportsIndex = 0,
        attention_pairs: typing.SupportsInt | typing.SupportsIndex = 0,
        num_passes: typing.SupportsInt | typing.SupportsIndex = 1,
    ) -> None: ...
    @property
    def attention_pairs(self) -> int: ...
    @attention_pairs.setter
    def attention_pairs(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def kv_tokens(self) -> int: ...
    @kv_tokens.setter
    def kv_tokens(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def num_logits(self) -> int: ...
    @num_logits.setter
    def num_logits(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def num_passes(self) -> int: ...
    @num_passes.setter
    def num_passes(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def num_sequences(self) -> int: ...
    @num_sequences.setter
    def num_sequences(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def num_tokens(self) -> int: ...
    @num_tokens.setter
    def num_tokens(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...

class CostSample:
    """
    A load and the seconds it took.
    """

    load: StepLoad
    def __init__(
        self, load: StepLoad, seconds: typing.SupportsFloat | typing.SupportsIndex
    ) -> None: ...
    @property
    def seconds(self) -> float: ...
    @seconds.setter
    def seconds(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...

class CostCoefficients:
    """
    The numbers behind a CostModel. Lists are copied in and out: assign whole ones.
    """
    def __init__(self) -> None: ...
    def validate(self) -> None:
        """
        Raises ValueError naming the field.
        """
    @property
    def experts_per_token(self) -> int: ...
    @experts_per_token.setter
    def experts_per_token(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def num_experts(self) -> int: ...
    @num_experts.setter
    def num_experts(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def per_attention_pair(self) -> float: ...
    @per_attention_pair.setter
    def per_attention_pair(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def per_expert(self) -> float: ...
    @per_expert.setter
    def per_expert(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def per_kv_token(self) -> float: ...
    @per_kv_token.setter
    def per_kv_token(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def per_logit(self) -> float: ...
    @per_logit.setter
    def per_logit(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def per_sequence(self) -> float: ...
    @per_sequence.setter
    def per_sequence(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def seconds(self) -> list[float]: ...
    @seconds.setter
    def seconds(
        self, arg0: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]
    ) -> None: ...
    @property
    def tiers(self) -> list[int]: ...
    @tiers.setter
    def tiers(
        self, arg0: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
    ) -> None: ...
    @property
    def tokens(self) -> list[int]: ...
    @tokens.setter
    def tokens(
        self, arg0: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
    ) -> None: ...

class Roofline:
    """
    A model and a device before anything was measured.
    """
    def __init__(self) -> None: ...
    @property
    def bytes_per_second(self) -> float: ...
    @bytes_per_second.setter
    def bytes_per_second(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def flops_per_logit(self) -> float: ...
    @flops_per_logit.setter
    def flops_per_logit(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def flops_per_pair(self) -> float: ...
    @flops_per_pair.setter
    def flops_per_pair(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def flops_per_second(self) -> float: ...
    @flops_per_second.setter
    def flops_per_second(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def flops_per_token(self) -> float: ...
    @flops_per_token.setter
    def flops_per_token(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def kv_bytes_per_token(self) -> float: ...
    @kv_bytes_per_token.setter
    def kv_bytes_per_token(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def overhead_seconds(self) -> float: ...
    @overhead_seconds.setter
    def overhead_seconds(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def weight_bytes(self) -> float: ...
    @weight_bytes.setter
    def weight_bytes(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...

class CostModelOptions:
    learn: bool
    def __init__(self) -> None: ...
    @property
    def memory_passes(self) -> float: ...
    @memory_passes.setter
    def memory_passes(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def outlier_ratio(self) -> float: ...
    @outlier_ratio.setter
    def outlier_ratio(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...

class CostModel:
    """
    Predicts what passes take and corrects itself with every one observed. One thread.
    """
    def __init__(self, start: CostCoefficients, options: CostModelOptions = ...) -> None: ...
    def coefficients(self) -> CostCoefficients:
        """
        As learnt so far.
        """
    def observe(
        self, load: StepLoad, seconds: typing.SupportsFloat | typing.SupportsIndex
    ) -> None: ...
    def predict(self, load: StepLoad) -> float:
        """
        Seconds.
        """
    @property
    def num_observed(self) -> int: ...
    @property
    def speed(self) -> float: ...

class KvCacheStats:
    @property
    def evictions(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def num_cached(self) -> int: ...
    @property
    def num_free(self) -> int: ...
    @property
    def prefix_hits(self) -> int: ...
    @property
    def prefix_queries(self) -> int: ...

class KvCache:
    """
    Bookkeeping of a paged KV cache: says which slots to write, read and copy. Holds no tensors. Moves are (source slot, destination slot).
    """
    def __init__(
        self,
        num_blocks: typing.SupportsInt | typing.SupportsIndex,
        block_size: typing.SupportsInt | typing.SupportsIndex = 16,
        enable_prefix_caching: bool = True,
        hash_seed: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> None: ...
    def add_sequence(self, cache_salt: typing.SupportsInt | typing.SupportsIndex = 0) -> int: ...
    def block_table(
        self, sequence: typing.SupportsInt | typing.SupportsIndex
    ) -> numpy.typing.NDArray[numpy.int32]: ...
    def blocks_needed(
        self,
        sequence: typing.SupportsInt | typing.SupportsIndex,
        num_slots: typing.SupportsInt | typing.SupportsIndex,
    ) -> int: ...
    def check_integrity(self) -> str:
        """
        Empty when sound.
        """
    def clear_prefix_cache(self) -> None: ...
    def commit(
        self,
        sequence: typing.SupportsInt | typing.SupportsIndex,
        path: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        tokens: collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int32],
    ) -> list[tuple[int, int]]:
        """
        Keeps the reserved offsets in `path`; returns the moves that make them contiguous.
        """
    def fork(
        self,
        sequence: typing.SupportsInt | typing.SupportsIndex,
        length: typing.SupportsInt | typing.SupportsIndex,
    ) -> int: ...
    def match_prefix(
        self,
        sequence: typing.SupportsInt | typing.SupportsIndex,
        tokens: collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int32],
    ) -> int:
        """
        The verified length after attaching.
        """
    def remove_sequence(self, sequence: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    def reserve(
        self,
        sequence: typing.SupportsInt | typing.SupportsIndex,
        num_slots: typing.SupportsInt | typing.SupportsIndex,
    ) -> list[tuple[int, int]] | None:
        """
        Copies to perform first, or None when the pool is exhausted (nothing changed).
        """
    def reserved(self, sequence: typing.SupportsInt | typing.SupportsIndex) -> int: ...
    def rollback(self, sequence: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    def slot(
        self,
        sequence: typing.SupportsInt | typing.SupportsIndex,
        index: typing.SupportsInt | typing.SupportsIndex,
    ) -> int: ...
    def stats(self) -> KvCacheStats: ...
    def truncate(
        self,
        sequence: typing.SupportsInt | typing.SupportsIndex,
        length: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...
    def verified_length(self, sequence: typing.SupportsInt | typing.SupportsIndex) -> int: ...
    @property
    def num_sequences(self) -> int: ...

class ClaimReading:
    """
    How a proposer's claims read: with claim c of a token, its path being accepted, logit P(accepted) = offset + scale * logit(c).
    """
    def accepted(self, claim: typing.SupportsFloat | typing.SupportsIndex) -> float:
        """
        In (0, 1); 1 for a claim of 1 or more, which is no claim.
        """
    @property
    def offset(self) -> float: ...
    @property
    def scale(self) -> float: ...

class ProposeRequest:
    """
    A running request that may draft now. `tokens` is the prompt and the verified output, int32.
    """
    def __init__(
        self,
        id: typing.SupportsInt | typing.SupportsIndex,
        tokens: collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int32],
        max_depth: typing.SupportsInt | typing.SupportsIndex,
        num_prompt_tokens: typing.SupportsInt | typing.SupportsIndex | None = None,
        max_nodes: typing.SupportsInt | typing.SupportsIndex | None = None,
        sampling: SamplingParams = ...,
        seed: typing.SupportsInt | typing.SupportsIndex = 0,
        cache_salt: typing.SupportsInt | typing.SupportsIndex = 0,
        prediction: collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int32] = (),
        min_survival: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    ) -> None: ...
    @property
    def cache_salt(self) -> int:
        """
        The tenant.
        """
    @property
    def claims(self) -> ClaimReading:
        """
        How its survival is read: the product over its nodes.
        """
    @property
    def id(self) -> int: ...
    @property
    def max_depth(self) -> int: ...
    @property
    def max_nodes(self) -> int: ...
    @property
    def min_survival(self) -> float:
        """
        A path whose survival falls below need not be continued.
        """
    @property
    def num_prompt_tokens(self) -> int: ...
    @property
    def prediction(self) -> numpy.typing.NDArray[numpy.int32]:
        """
        Text that the output may resemble, from the user; int32.
        """
    @property
    def sampling(self) -> SamplingParams: ...
    @property
    def seed(self) -> int: ...
    @property
    def tokens(self) -> numpy.typing.NDArray[numpy.int32]: ...

class Outcome:
    """
    What a step did to one request. `tree` is empty when it drafted nothing.
    """
    @property
    def accepted_path(self) -> list[int]: ...
    @property
    def emitted(self) -> list[int]: ...
    @property
    def id(self) -> int: ...
    @property
    def tree(self) -> TokenTree: ...

class Proposer:
    """
    Subclass it and define propose(self, requests) -> list with one entry per request: a TokenTree, a list of token ids (a chain), or None. Optional: observe(self, outcomes) and finish(self, request_id). An attribute pays_per_depth = True says that every level of a draft costs a model pass: it is then asked only for what the policy wants. Nothing it returns or raises can change any output.
    """
    def __init__(self) -> None: ...
    def propose(self, requests: collections.abc.Sequence[ProposeRequest]) -> list[TokenTree]: ...
    @property
    def name(self) -> str: ...

class SuffixIndexOptions:
    @property
    def background(self) -> bool: ...
    @property
    def freeze(self) -> bool: ...
    @property
    def generation_bytes(self) -> int: ...
    @property
    def max_bytes(self) -> int: ...
    @property
    def tokenizer_hash(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...

class SuffixLookup:
    """
    What the shared history knows of a context.
    """
    def __repr__(self) -> str: ...
    @property
    def best_count(self) -> int:
        """
        Its occurrences.
        """
    @property
    def best_token(self) -> int:
        """
        Most frequent continuation, any of equals; -1: none.
        """
    @property
    def count(self) -> int:
        """
        Occurrences.
        """
    @property
    def match_length(self) -> int:
        """
        Tokens of its longest suffix that occurs; the rest is about that suffix.
        """

class SuffixIndexStats:
    @property
    def accepted_tokens(self) -> int:
        """
        Of those, equal to the text that came.
        """
    @property
    def drafted_tokens(self) -> int:
        """
        Of drafts followed up by later tokens.
        """
    @property
    def evicted_tokens(self) -> int: ...
    @property
    def expected_tokens(self) -> float:
        """
        Sum of their claimed survivals.
        """
    @property
    def frozen_bytes(self) -> int: ...
    @property
    def frozen_tokens(self) -> int: ...
    @property
    def num_bytes(self) -> int:
        """
        It takes, at most max_bytes.
        """
    @property
    def num_generations(self) -> int: ...
    @property
    def num_namespaces(self) -> int: ...
    @property
    def num_requests(self) -> int:
        """
        Active.
        """
    @property
    def num_tokens(self) -> int:
        """
        Of shared history.
        """
    @property
    def request_bytes(self) -> int:
        """
        Their text and index.
        """

class SuffixDrafts:
    """
    Drafts of a batch of B requests, at most K tokens each. Row i is valid up to lengths[i].
    """
    @staticmethod
    def wrap(
        tokens: numpy.ndarray,
        parents: numpy.ndarray,
        survival: numpy.ndarray,
        lengths: numpy.ndarray,
        match_lengths: numpy.ndarray,
    ) -> SuffixDrafts:
        """
        Writes to the caller's arrays, such as pinned memory.
        """
    def __init__(
        self,
        batch_size: typing.SupportsInt | typing.SupportsIndex,
        max_tokens: typing.SupportsInt | typing.SupportsIndex = 16,
    ) -> None:
        """
        Fresh arrays, to be reused with draft(out=).
        """
    def __len__(self) -> int: ...
    def __repr__(self) -> str: ...
    @property
    def lengths(self) -> numpy.ndarray:
        """
        int32 [B], tokens drafted.
        """
    @property
    def match_lengths(self) -> numpy.ndarray:
        """
        int32 [B], tokens of context known to some source.
        """
    @property
    def parents(self) -> numpy.ndarray:
        """
        int32 [B, K], a column of the same row; -1: child of the last token.
        """
    @property
    def survival(self) -> numpy.ndarray:
        """
        float32 [B, K], probability that the whole path to here is accepted.
        """
    @property
    def tokens(self) -> numpy.ndarray:
        """
        int32 [B, K].
        """

class SuffixIndex:
    """
    Drafts what followed the same context in the request's own text and in past outputs, each token with a calibrated probability. Any thread may call any method, one at a time for one request; arrays must not change during a call.
    """
    def __init__(
        self,
        *,
        vocab_size: typing.SupportsInt | typing.SupportsIndex = 0,
        max_bytes: typing.SupportsInt | typing.SupportsIndex = 1073741824,
        generation_bytes: typing.SupportsInt | typing.SupportsIndex = 0,
        freeze: bool = True,
        background: bool = True,
        tokenizer_hash: str = "",
    ) -> None:
        """
        Token ids are in [0, vocab_size), 0: any; shared history takes at most max_bytes; see SuffixIndexOptions in suffix_index.hpp.
        """
    def clear(self, name_space: str = "") -> None:
        """
        Drops all history of a namespace, and what was learnt in it.
        """
    def draft(
        self,
        ids: collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int64],
        *,
        max_tokens: typing.SupportsInt | typing.SupportsIndex = 16,
        max_tokens_per_request: collections.abc.Sequence[int]
        | numpy.typing.NDArray[numpy.int32]
        | None = None,
        min_survival: typing.SupportsFloat | typing.SupportsIndex = 0.1,
        tree_width: typing.SupportsInt | typing.SupportsIndex = 1,
        out: SuffixDrafts | None = None,
    ) -> SuffixDrafts:
        """
        Drafts for distinct active ids [B]: tokens while their path's survival is at least min_survival; tree_width > 1: trees. `out`: arrays to reuse, [>= B, max_tokens].
        """
    def draft_one(
        self,
        id: typing.SupportsInt | typing.SupportsIndex,
        max_tokens: typing.SupportsInt | typing.SupportsIndex = 16,
        min_survival: typing.SupportsFloat | typing.SupportsIndex = 0.1,
        tree_width: typing.SupportsInt | typing.SupportsIndex = 1,
    ) -> tuple[list[int], list[int], list[float], int]:
        """
        draft() of one request as lists: tokens, parents, survival, and the match length.
        """
    def extend(
        self,
        id: typing.SupportsInt | typing.SupportsIndex,
        tokens: collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int32],
    ) -> None:
        """
        update() of one request, at its end.
        """
    def finish_request(self, id: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Drops its own text; its output stays in the history.
        """
    def forget(self, id: typing.SupportsInt | typing.SupportsIndex) -> bool:
        """
        Takes a request's output out of the history; False: nothing of it is there.
        """
    def is_active(self, id: typing.SupportsInt | typing.SupportsIndex) -> bool: ...
    def load(self, path: os.PathLike[str] | str) -> None:
        """
        Replaces history and calibration; FormatError, and nothing changes, for a bad file.
        """
    def lookup(
        self,
        context: collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int32],
        name_space: str = "",
    ) -> SuffixLookup:
        """
        The shared history only.
        """
    def num_tokens(self, id: typing.SupportsInt | typing.SupportsIndex) -> int:
        """
        Known of an active request: the largest position that update() may start at.
        """
    @typing.overload
    def preload(
        self,
        offsets: collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int64],
        tokens: collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int32],
        name_space: str = "",
    ) -> None:
        """
        Adds finished texts: int64 offsets [n + 1] into int32 tokens.
        """
    @typing.overload
    def preload(
        self,
        texts: collections.abc.Iterable[
            collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int32]
        ],
        name_space: str = "",
    ) -> None:
        """
        Adds finished texts, each a sequence of tokens.
        """
    def save(self, path: os.PathLike[str] | str) -> None:
        """
        Writes history and calibration of all namespaces, atomically.
        """
    def start_request(
        self,
        id: typing.SupportsInt | typing.SupportsIndex,
        prompt: collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int32] | None = None,
        *,
        num_prompt_tokens: typing.SupportsInt | typing.SupportsIndex | None = None,
        name_space: str = "",
        share_output: bool = True,
        prediction: collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int32] | None = None,
    ) -> None:
        """
        `prompt` is fed at once; with num_prompt_tokens alone, feed it by update(). `prediction`: text that the output may resemble.
        """
    def stats(self) -> SuffixIndexStats: ...
    def update(
        self,
        ids: collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int64],
        positions: collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int64],
        offsets: collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int64],
        tokens: collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int32],
    ) -> None:
        """
        New verified tokens: int64 ids [B], positions [B] of each first token, offsets [B + 1] into int32 tokens. What is known already is compared and skipped.
        """
    def wait(self) -> None:
        """
        Returns when no generation is waiting to be frozen.
        """
    @property
    def options(self) -> SuffixIndexOptions: ...

class PromptLookupProposer(Proposer):
    """
    Drafts what followed the latest earlier occurrence of the newest n-gram.
    """
    def __init__(
        self,
        prompt_lookup_max: typing.SupportsInt | typing.SupportsIndex = 4,
        prompt_lookup_min: typing.SupportsInt | typing.SupportsIndex = 2,
        tree_width: typing.SupportsInt | typing.SupportsIndex = 1,
    ) -> None: ...

class DraftModelOptions:
    def __init__(self) -> None: ...
    @property
    def block_size(self) -> int: ...
    @block_size.setter
    def block_size(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def kv_memory_bytes(self) -> int: ...
    @kv_memory_bytes.setter
    def kv_memory_bytes(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def max_model_len(self) -> int: ...
    @max_model_len.setter
    def max_model_len(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def max_num_batched_tokens(self) -> int: ...
    @max_num_batched_tokens.setter
    def max_num_batched_tokens(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def max_num_seqs(self) -> int: ...
    @max_num_seqs.setter
    def max_num_seqs(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def num_kv_blocks(self) -> int: ...
    @num_kv_blocks.setter
    def num_kv_blocks(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def tree_width(self) -> int: ...
    @tree_width.setter
    def tree_width(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...

class DraftModelProposer(Proposer):
    """
    Drafts with a small model that draws with the target's noise.
    """
    def __init__(
        self,
        model: Model,
        target_vocab_size: typing.SupportsInt | typing.SupportsIndex,
        options: DraftModelOptions = ...,
    ) -> None: ...
    def check_integrity(self) -> str:
        """
        Empty when sound.
        """

class SuffixProposer(Proposer):
    """
    Drafts from a SuffixIndex, and feeds it what requests emit; several engines may share one. The namespace of a request is its cache_salt in decimal, '' for 0.
    """
    def __init__(
        self,
        index: SuffixIndex,
        min_survival: typing.SupportsFloat | typing.SupportsIndex = 0.10000000149011612,
        tree_width: typing.SupportsInt | typing.SupportsIndex = 1,
    ) -> None: ...
    @property
    def index(self) -> SuffixIndex: ...

class StackedProposer(Proposer):
    """
    `free` where it expects at least margin times the accepted tokens that `paid` does for the request, `paid` elsewhere, at most paid_max_depth tokens deep.
    """
    def __init__(
        self,
        free: Proposer,
        paid: Proposer,
        margin: typing.SupportsFloat | typing.SupportsIndex = 0.8,
        paid_max_depth: typing.SupportsInt | typing.SupportsIndex = 256,
    ) -> None: ...

class SpeculationControl:
    """
    What a user asks for one request.
    """

    enabled: bool
    def __init__(
        self,
        enabled: bool = True,
        min_tokens: typing.SupportsInt | typing.SupportsIndex = 0,
        max_tokens: typing.SupportsInt | typing.SupportsIndex = 256,
        proposer: typing.SupportsInt | typing.SupportsIndex = -1,
        tpot_target: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    ) -> None: ...
    def validate(self, num_proposers: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def max_tokens(self) -> int:
        """
        Draft nodes at most.
        """
    @max_tokens.setter
    def max_tokens(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def min_tokens(self) -> int:
        """
        Draft nodes at least, where that many are drafted.
        """
    @min_tokens.setter
    def min_tokens(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def proposer(self) -> int:
        """
        Only this one of the engine's; -1: any.
        """
    @proposer.setter
    def proposer(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def tpot_target(self) -> float:
        """
        Seconds per output token; 0: none.
        """
    @tpot_target.setter
    def tpot_target(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...

class PolicyStats:
    """
    What a policy did so far; totals.
    """
    @property
    def decision_seconds(self) -> float: ...
    @property
    def expected_accepted(self) -> float: ...
    @property
    def length_histogram(self) -> typing.Annotated[list[int], "FixedSize(17)"]:
        """
        Decoding requests by nodes verified; the last entry: that many or more.
        """
    @property
    def measured_seconds(self) -> float: ...
    @property
    def median_step_error(self) -> float: ...
    @property
    def num_accepted(self) -> int: ...
    @property
    def num_drafted(self) -> int:
        """
        Nodes verified.
        """
    @property
    def num_probes(self) -> int:
        """
        Drafts made to learn, not to gain.
        """
    @property
    def num_steps(self) -> int: ...
    @property
    def predicted_seconds(self) -> float: ...
    @property
    def regret(self) -> float:
        """
        Share of goodput missed against lengths known in hindsight.
        """
    @property
    def wasted_seconds(self) -> float:
        """
        Predicted cost of the nodes that were rejected.
        """

class LengthPolicy:
    """
    How much each request may draft.
    """
    def stats(self) -> PolicyStats:
        """
        Not while an engine that has it is in step().
        """
    @property
    def max_depth(self) -> int:
        """
        Longest draft it will ever want.
        """
    @property
    def name(self) -> str: ...

class TurboSpecOptions:
    draft: CostCoefficients
    target: CostCoefficients
    def __init__(self) -> None: ...
    @property
    def first_acceptance(self) -> float: ...
    @first_acceptance.setter
    def first_acceptance(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def max_tokens(self) -> int: ...
    @max_tokens.setter
    def max_tokens(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def overhead(self) -> float: ...
    @overhead.setter
    def overhead(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def period(self) -> int: ...
    @period.setter
    def period(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def window(self) -> int: ...
    @window.setter
    def window(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...

class SurvivalModelOptions:
    def __init__(self) -> None: ...
    @property
    def first_rate(self) -> float: ...
    @first_rate.setter
    def first_rate(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def memory_tokens(self) -> float: ...
    @memory_tokens.setter
    def memory_tokens(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def num_proposers(self) -> int: ...
    @num_proposers.setter
    def num_proposers(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def request_shrinkage(self) -> float: ...
    @request_shrinkage.setter
    def request_shrinkage(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...

class GoodputOptions:
    cost: CostModelOptions
    draft: CostCoefficients
    survival: SurvivalModelOptions
    target: CostCoefficients
    def __init__(self) -> None: ...
    @property
    def margin(self) -> float: ...
    @margin.setter
    def margin(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def max_depth(self) -> int: ...
    @max_depth.setter
    def max_depth(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def max_paid_depth(self) -> int: ...
    @max_paid_depth.setter
    def max_paid_depth(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def probe_budget(self) -> float: ...
    @probe_budget.setter
    def probe_budget(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...

class GoodputPolicy(LengthPolicy):
    """
    What it has learnt must not be read while its engine is in step().
    """
    def draft_coefficients(
        self, proposer: typing.SupportsInt | typing.SupportsIndex
    ) -> CostCoefficients | None:
        """
        None: it does not pay per depth, or nothing was decided yet.
        """
    @property
    def target_coefficients(self) -> CostCoefficients: ...

class ReplayResult:
    @property
    def first_different_step(self) -> int:
        """
        -1: none.
        """
    @property
    def num_decisions(self) -> int:
        """
        Requests times steps.
        """
    @property
    def num_different(self) -> int: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def recorded_policy(self) -> str: ...
    @property
    def stats(self) -> PolicyStats: ...

class AcceptanceModel:
    """
    P(draft token accepted) = sigmoid(logit(rate) + x - decay * depth); x wanders along the output. Lists are copied in and out.
    """
    def __init__(self) -> None: ...
    @property
    def decay(self) -> float: ...
    @decay.setter
    def decay(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def persistence(self) -> float:
        """
        Correlation of neighbours.
        """
    @persistence.setter
    def persistence(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def rates(self) -> list[float]:
        """
        In [0, 1), each as likely.
        """
    @rates.setter
    def rates(
        self, arg0: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]
    ) -> None: ...
    @property
    def recorded(self) -> list[list[float]]:
        """
        Rates along recorded outputs, in place of rates and spread.
        """
    @recorded.setter
    def recorded(
        self,
        arg0: collections.abc.Sequence[
            collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]
        ],
    ) -> None: ...
    @property
    def spread(self) -> float:
        """
        Deviation of x.
        """
    @spread.setter
    def spread(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...

class SimulatedProposer:
    acceptance: AcceptanceModel
    name: str
    pass_cost: CostCoefficients
    pays_per_depth: bool
    def __init__(self) -> None: ...
    @property
    def claim_bias(self) -> float: ...
    @claim_bias.setter
    def claim_bias(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def claim_noise(self) -> float:
        """
        Deviation of claimed logits; below 0: it claims 1.
        """
    @claim_noise.setter
    def claim_noise(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def coverage(self) -> float:
        """
        Share of steps at which it has anything to propose.
        """
    @coverage.setter
    def coverage(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def max_depth(self) -> int: ...
    @max_depth.setter
    def max_depth(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...

class SimulatedRequest:
    control: SpeculationControl
    def __init__(self) -> None: ...
    @property
    def arrival(self) -> float: ...
    @arrival.setter
    def arrival(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def num_output_tokens(self) -> int: ...
    @num_output_tokens.setter
    def num_output_tokens(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def num_prompt_tokens(self) -> int: ...
    @num_prompt_tokens.setter
    def num_prompt_tokens(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def priority(self) -> int: ...
    @priority.setter
    def priority(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...

class SimulatedShift:
    """
    A change of the world from `step` on.
    """

    acceptance: AcceptanceModel
    def __init__(self) -> None: ...
    @property
    def batch(self) -> int:
        """
        -1: as it was.
        """
    @batch.setter
    def batch(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def proposer(self) -> int:
        """
        Whose acceptance; -1: nobody's.
        """
    @proposer.setter
    def proposer(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def slowdown(self) -> float: ...
    @slowdown.setter
    def slowdown(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def step(self) -> int: ...
    @step.setter
    def step(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...

class SchedulerOptions:
    def __init__(self) -> None: ...
    @property
    def aging_seconds(self) -> float: ...
    @aging_seconds.setter
    def aging_seconds(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def max_num_batched_tokens(self) -> int: ...
    @max_num_batched_tokens.setter
    def max_num_batched_tokens(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def max_num_seqs(self) -> int: ...
    @max_num_seqs.setter
    def max_num_seqs(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...

class SimulationOptions:
    """
    Lists are copied in and out: assign whole ones.
    """

    record_steps: bool
    scheduler: SchedulerOptions
    def __init__(self) -> None: ...
    def set_requests(
        self, arrivals: numpy.ndarray, prompt_tokens: numpy.ndarray, output_tokens: numpy.ndarray
    ) -> None:
        """
        `requests` from arrays: float64, int32 and int32 [n].
        """
    def validate(self) -> None:
        """
        Raises ValueError naming the field.
        """
    @property
    def batch(self) -> int:
        """
        Closed loop: so many requests always run, without prompts.
        """
    @batch.setter
    def batch(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def block_size(self) -> int: ...
    @block_size.setter
    def block_size(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def context(self) -> int: ...
    @context.setter
    def context(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def max_steps(self) -> int: ...
    @max_steps.setter
    def max_steps(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def num_kv_blocks(self) -> int:
        """
        0: not limited.
        """
    @num_kv_blocks.setter
    def num_kv_blocks(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def outlier_rate(self) -> float: ...
    @outlier_rate.setter
    def outlier_rate(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def output_tokens(self) -> int:
        """
        Mean of the closed loop.
        """
    @output_tokens.setter
    def output_tokens(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def overhead(self) -> float: ...
    @overhead.setter
    def overhead(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def proposers(self) -> list[SimulatedProposer]: ...
    @proposers.setter
    def proposers(self, arg0: collections.abc.Sequence[SimulatedProposer]) -> None: ...
    @property
    def requests(self) -> list[SimulatedRequest]:
        """
        Open loop, by arrival.
        """
    @requests.setter
    def requests(self, arg0: collections.abc.Sequence[SimulatedRequest]) -> None: ...
    @property
    def seed(self) -> int: ...
    @seed.setter
    def seed(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def shifts(self) -> list[SimulatedShift]: ...
    @shifts.setter
    def shifts(self, arg0: collections.abc.Sequence[SimulatedShift]) -> None: ...
    @property
    def target(self) -> CostCoefficients:
        """
        True seconds of a pass.
        """
    @target.setter
    def target(self, arg0: CostCoefficients) -> None: ...
    @property
    def time_noise(self) -> float: ...
    @time_noise.setter
    def time_noise(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def warmup_steps(self) -> int: ...
    @warmup_steps.setter
    def warmup_steps(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...

class SimulationResult:
    @property
    def expected_emitted(self) -> float:
        """
        num_emitted without the luck of the draws.
        """
    @property
    def goodput(self) -> float:
        """
        expected_emitted / seconds.
        """
    @property
    def num_accepted(self) -> int: ...
    @property
    def num_drafted(self) -> int: ...
    @property
    def num_emitted(self) -> int: ...
    @property
    def num_preemptions(self) -> int: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def num_verified(self) -> int: ...
    @property
    def output_gaps(self) -> numpy.typing.NDArray[numpy.float64]:
        """
        Seconds between outputs of a request, of all of them, in an open loop.
        """
    @property
    def policy(self) -> PolicyStats: ...
    @property
    def requests(self) -> dict[str, numpy.ndarray]:
        """
        Arrays by field, in an open loop.
        """
    @property
    def seconds(self) -> float:
        """
        Virtual, after the warm-up.
        """
    @property
    def steps(self) -> dict[str, numpy.ndarray]:
        """
        Arrays by field; empty unless recorded.
        """
    @property
    def wall_seconds(self) -> float: ...

class EngineOptions:
    """
    Names and meaning as in vLLM.
    """

    enable_prefix_caching: bool
    kv_dtype: str | None
    record_logits_hash: bool
    def __init__(self) -> None: ...
    @property
    def aging_seconds(self) -> float: ...
    @aging_seconds.setter
    def aging_seconds(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def block_size(self) -> int: ...
    @block_size.setter
    def block_size(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def kv_memory_bytes(self) -> int: ...
    @kv_memory_bytes.setter
    def kv_memory_bytes(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def max_model_len(self) -> int: ...
    @max_model_len.setter
    def max_model_len(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def max_num_batched_tokens(self) -> int: ...
    @max_num_batched_tokens.setter
    def max_num_batched_tokens(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def max_num_seqs(self) -> int: ...
    @max_num_seqs.setter
    def max_num_seqs(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def num_kv_blocks(self) -> int: ...
    @num_kv_blocks.setter
    def num_kv_blocks(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def prefix_hash_seed(self) -> int: ...
    @prefix_hash_seed.setter
    def prefix_hash_seed(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def seed(self) -> int: ...
    @seed.setter
    def seed(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...

class RequestStats:
    @property
    def length_histogram(self) -> typing.Annotated[list[int], "FixedSize(17)"]:
        """
        Decoding steps by draft tokens verified; the last entry: that many or more.
        """
    @property
    def no_speculation_reason(self) -> str:
        """
        Why the last step did not speculate, or 'none'.
        """
    @property
    def num_accepted(self) -> int: ...
    @property
    def num_cached_tokens(self) -> int: ...
    @property
    def num_drafted(self) -> int: ...
    @property
    def num_preemptions(self) -> int: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def proposer(self) -> int:
        """
        Whose draft was verified last: an index into EngineStats.proposers; -1: none.
        """

class ProposerStats:
    @property
    def name(self) -> str: ...
    @property
    def num_accepted(self) -> int: ...
    @property
    def num_calls(self) -> int: ...
    @property
    def num_drafted(self) -> int:
        """
        Of them verified.
        """
    @property
    def num_proposed(self) -> int:
        """
        Tokens it returned.
        """
    @property
    def pays_per_depth(self) -> bool: ...
    @property
    def seconds(self) -> float: ...

class EngineStats:
    @property
    def decision_seconds(self) -> float:
        """
        Scheduler and policy.
        """
    @property
    def forward_seconds(self) -> float: ...
    @property
    def kv(self) -> KvCacheStats: ...
    @property
    def last_proposer_error(self) -> str: ...
    @property
    def num_accepted(self) -> int: ...
    @property
    def num_drafted(self) -> int: ...
    @property
    def num_emitted(self) -> int: ...
    @property
    def num_invalid_drafts(self) -> int: ...
    @property
    def num_preemptions(self) -> int: ...
    @property
    def num_proposer_errors(self) -> int: ...
    @property
    def num_running(self) -> int: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def num_tokens_computed(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def paid_seconds(self) -> float:
        """
        Of propose_seconds: by proposers that pay per depth.
        """
    @property
    def policy(self) -> PolicyStats:
        """
        What the length policy did.
        """
    @property
    def propose_seconds(self) -> float: ...
    @property
    def proposers(self) -> list[ProposerStats]: ...
    @property
    def step_seconds(self) -> float: ...
    @property
    def verify_seconds(self) -> float: ...

class RequestOutput:
    """
    What one step did for one completion of one request.
    """
    @property
    def error(self) -> str: ...
    @property
    def finish_reason(self) -> str | None: ...
    @property
    def id(self) -> int: ...
    @property
    def index(self) -> int: ...
    @property
    def logits_hashes(self) -> list[int]: ...
    @property
    def logprobs(self) -> list[list[TokenLogprob]]: ...
    @property
    def new_token_ids(self) -> list[int]: ...
    @property
    def prompt_logprobs(self) -> list[list[TokenLogprob]]: ...
    @property
    def stats(self) -> RequestStats: ...
    @property
    def stop_string_index(self) -> int: ...
    @property
    def stop_token_id(self) -> int: ...

class Engine:
    """
    Continuous batching over one model, speculating as the proposer and the policy say, and emitting exactly what plain decoding would emit. Any thread may call any method; step() and the rest run one at a time, add_request() and abort() also during a step.
    """
    @typing.overload
    def __init__(
        self,
        model: Model,
        options: EngineOptions = ...,
        stops: StopVocabulary | None = None,
        proposer: Proposer | None = None,
        policy: LengthPolicy | None = None,
    ) -> None: ...
    @typing.overload
    def __init__(
        self,
        model: Model,
        options: EngineOptions,
        stops: StopVocabulary,
        proposers: collections.abc.Sequence[Proposer],
        policy: LengthPolicy | None = None,
    ) -> None:
        """
        Several proposers, among which the policy chooses per request. One with `pays_per_depth` is asked only for what the policy wants.
        """
    def abort(self, request_id: typing.SupportsInt | typing.SupportsIndex) -> bool:
        """
        False when unknown or already ended. No output follows.
        """
    def add_request(
        self,
        prompt_token_ids: collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int32],
        sampling: SamplingParams = ...,
        priority: typing.SupportsInt | typing.SupportsIndex = 0,
        cache_salt: typing.SupportsInt | typing.SupportsIndex = 0,
        speculate: bool = True,
        max_draft_tokens: typing.SupportsInt | typing.SupportsIndex | None = None,
        prediction: collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int32] = (),
        min_draft_tokens: typing.SupportsInt | typing.SupportsIndex = 0,
        proposer: str | None = None,
        tpot_target: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    ) -> int:
        """
        Checks everything, then queues the request; returns its id. `prediction`: text that the output may resemble, for proposers that can use it. Draft tokens verified per step: min_draft_tokens at least where so many are drafted, max_draft_tokens at most. `proposer`: only the one of this name. `tpot_target`: seconds per output token.
        """
    def check_integrity(self) -> str:
        """
        Empty when sound.
        """
    def clear_prefix_cache(self) -> None: ...
    def has_unfinished(self) -> bool: ...
    def preempt(
        self,
        request_id: typing.SupportsInt | typing.SupportsIndex,
        index: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> bool:
        """
        For tests: preempts a running request now.
        """
    def stats(self) -> EngineStats: ...
    def step(self) -> list[RequestOutput]:
        """
        One forward pass; outputs of requests that emitted or ended.
        """
    @property
    def model_config(self) -> ModelConfig: ...
    @property
    def options(self) -> EngineOptions: ...

def compute_logprobs(
    logits: numpy.ndarray,
    chosen: typing.SupportsInt | typing.SupportsIndex,
    num_top: typing.SupportsInt | typing.SupportsIndex,
) -> list[TokenLogprob]: ...
def finish_recording(policy: LengthPolicy) -> None:
    """
    Writes what is left and closes; raises Error when anything was lost.
    """

def fit_cost(samples: collections.abc.Sequence[CostSample]) -> CostCoefficients:
    """
    Coefficients from measurements, none negative.
    """

def gumbel_noise(
    seed: typing.SupportsInt | typing.SupportsIndex,
    position: typing.SupportsInt | typing.SupportsIndex,
    token: typing.SupportsInt | typing.SupportsIndex,
) -> float:
    """
    The noise of (seed, absolute output position, token id) that every draw adds.
    """

def is_available(device: str) -> bool: ...
def isa_name(runtime: Runtime) -> str: ...
def make_disco_policy(
    max_tokens: typing.SupportsInt | typing.SupportsIndex,
    confidence: typing.SupportsFloat | typing.SupportsIndex = 0.4,
) -> LengthPolicy:
    """
    Drafts on while the next token's claimed acceptance is at least `confidence` (DISCO).
    """

def make_dynamic_depth_policy(
    max_tokens: typing.SupportsInt | typing.SupportsIndex,
    threshold: typing.SupportsFloat | typing.SupportsIndex = 0.3,
) -> LengthPolicy:
    """
    Drafts on while a level's claimed survivals add up to `threshold` (DDD).
    """

def make_fixed_policy(max_tokens: typing.SupportsInt | typing.SupportsIndex) -> LengthPolicy:
    """
    min(max_tokens, what may still be emitted) for everyone.
    """

def make_full_draft_policy(
    max_tokens: typing.SupportsInt | typing.SupportsIndex, target: CostCoefficients
) -> LengthPolicy:
    """
    Full drafts; verifies the best nodes of the batch for a cost that knows only the number of tokens (vLLM's enable_adaptive_verification).
    """

def make_goodput_policy(options: GoodputOptions = ...) -> LengthPolicy:
    """
    For every request the length that makes the batch emit most tokens per second.
    """

def make_off_policy() -> LengthPolicy:
    """
    Length 0 for everyone.
    """

def make_recording_policy(
    policy: LengthPolicy, path: os.PathLike[str] | str | bytes
) -> LengthPolicy:
    """
    `policy`, with every call and its answer written to `path`; holds no token ids.
    """

def make_roofline(roofline: Roofline) -> CostCoefficients:
    """
    Coefficients to start from: the larger of what memory and arithmetic need.
    """

def make_runtime(
    device: str = "cpu", num_threads: typing.SupportsInt | typing.SupportsIndex = 0
) -> Runtime:
    """
    num_threads 0 takes the cores this process may run on.
    """

def make_sequoia_policy(
    num_nodes: typing.SupportsInt | typing.SupportsIndex,
    max_depth: typing.SupportsInt | typing.SupportsIndex,
    rank_acceptance: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
) -> LengthPolicy:
    """
    The tree shape of the highest expected length when the j-th child of a node is accepted with rank_acceptance[j] (Sequoia).
    """

def make_table_policy(
    table: collections.abc.Sequence[
        tuple[
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsInt | typing.SupportsIndex,
        ]
    ],
) -> LengthPolicy:
    """
    A length per batch size: rows (first, last, num_tokens), ascending; 0 beyond them.
    """

def make_tetris_policy(
    max_tokens: typing.SupportsInt | typing.SupportsIndex,
    capacity: typing.SupportsInt | typing.SupportsIndex,
) -> LengthPolicy:
    """
    Full drafts; verifies the `capacity` most likely nodes of the batch (TETRIS).
    """

def make_threshold_policy(
    max_tokens: typing.SupportsInt | typing.SupportsIndex,
    threshold: typing.SupportsFloat | typing.SupportsIndex = 0.7,
) -> LengthPolicy:
    """
    Drafts on while P(some token of the draft is rejected) <= threshold (SpecDec++).
    """

def make_turbospec_policy(options: TurboSpecOptions = ...) -> LengthPolicy:
    """
    One length for the batch, decided once per period, as TurboSpec's authors have it.
    """

def profile_model(
    model: Model,
    *,
    seconds: typing.SupportsFloat | typing.SupportsIndex = 8.0,
    max_num_seqs: typing.SupportsInt | typing.SupportsIndex = 32,
    max_num_tokens: typing.SupportsInt | typing.SupportsIndex = 512,
    max_drafts: typing.SupportsInt | typing.SupportsIndex = 8,
    max_context: typing.SupportsInt | typing.SupportsIndex = 2048,
    block_size: typing.SupportsInt | typing.SupportsIndex = 16,
    kv_memory_bytes: typing.SupportsInt | typing.SupportsIndex = 1073741824,
    progress: collections.abc.Callable[[float], None] | None = None,
) -> list[CostSample]:
    """
    Measures passes with random tokens for about `seconds`; `progress` gets the share spent.
    """

def replay(path: os.PathLike[str] | str | bytes, policy: LengthPolicy) -> ReplayResult:
    """
    Shows a recorded trace to a fresh policy and counts what it decides differently.
    """

def roofline_of(
    model: Model, num_threads: typing.SupportsInt | typing.SupportsIndex = 0
) -> Roofline:
    """
    Estimated from the model's shape; num_threads 0: those of its runtime.
    """

def seed_of_completion(
    seed: typing.SupportsInt | typing.SupportsIndex,
    index: typing.SupportsInt | typing.SupportsIndex,
) -> int: ...
def simulate(options: SimulationOptions, policy: LengthPolicy | None = None) -> SimulationResult:
    """
    A server in virtual time, by the real scheduler; policy None: the oracle. One policy object serves one simulation at a time.
    """

def verify_tree(tree: TokenTree, logits: numpy.ndarray, sampler: Sampler) -> Verification:
    """
    Walks `tree` with the target's own tokens and advances the sampler. `logits` is float32 [len(tree) + 1, vocab_size]; row 0 follows the last verified token, row i + 1 node i.
    """

MAX_BAD_WORDS: int = 4096
MAX_BAD_WORD_TOKENS: int = 256
MAX_LOGPROBS: int = 1024
MAX_N: int = 1024
MAX_STOP_STRINGS: int = 256
MAX_STOP_STRING_BYTES: int = 4096
MAX_STOP_TOKEN_IDS: int = 4096
MAX_TREE_NODES: int = 256
__version__: str = "0.1.0"
