# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Against transformers in float32, on random-weight models of every family: logits within a rule,
greedy tokens equal except where transformers' own two best logits are closer than that rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import smartspec
from smartspec import SamplingParams

torch = pytest.importorskip("torch", reason="torch is not installed (make test installs it)")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (make test installs it)"
)
transformers.utils.logging.disable_progress_bar()

NUM_SEQUENCES = 12
NUM_TOKENS = 100
PROMPT_LENGTHS = [1, 3, 15, 16, 17, 31, 40, 64, 65, 90, 2, 33]
VOCAB = 512

SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,  # wavelengths below, inside and above the smooth band
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}
WINDOW = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}

FAMILIES = {
    "llama2": ("Llama", {"num_key_value_heads": 4}),
    "llama2-gqa": ("Llama", {}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 32}),
    "llama-linear": ("Llama", {"rope_parameters": LINEAR}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-head-dim": ("Llama", {"head_dim": 32}),
    "mistral-window": ("Mistral", {"sliding_window": 20}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 24}),
    "qwen2": ("Qwen2", {}),
    "qwen2-window": ("Qwen2", {**WINDOW, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3-bias": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
}


def tolerance(row: np.ndarray, widest: int) -> float:
    """c * eps * sqrt(K) * max|row|; c covers the layers that errors pass through."""
    return 8 * float(np.finfo(np.float32).eps) * math.sqrt(widest) * float(np.abs(row).max())


def build(family: str, folder) -> tuple:
    kind, changes = FAMILIES[family]
    torch.manual_seed(sum(map(ord, family)))
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **changes})
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}ForCausalLM")(config).float().eval()
    with torch.no_grad():  # norms and biases start as ones and zeros: make them count
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_(0.2 * torch.randn_like(weight))
            assert torch.isfinite(weight).all(), name
    model.save_pretrained(folder)
    return model, smartspec.LLM(folder, num_threads=1, max_num_batched_tokens=64)


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, VOCAB, length).tolist() for length in PROMPT_LENGTHS]


def reference_logits(model, token_ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0].float().numpy()


@pytest.fixture(scope="module", params=list(FAMILIES))
def pair(request, tmp_path_factory):
    return request.param, *build(request.param, tmp_path_factory.mktemp(request.param))


def test_logits(pair):
    _, reference, engine = pair
    assert engine.model.dtype == "float32"
    assert engine.model.num_parameters == reference.num_parameters()
    for token_ids in prompts():
        expected = reference_logits(reference, token_ids)
        got = engine.model.forward_logits(token_ids)
        for row, mine in zip(expected, got, strict=True):
            assert np.abs(row - mine).max() <= tolerance(row, SHAPE["intermediate_size"])


_compared: dict[str, tuple[int, int]] = {}


def test_greedy_tokens(pair, record_property):
    family, reference, engine = pair
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    outputs = engine.generate(prompts(), params, use_tqdm=False)
    equal = ties = 0
    for prompt, output in zip(prompts(), outputs, strict=True):
        mine = output.outputs[0].token_ids
        # One pass over our own continuation shows what transformers picks at every position.
        rows = reference_logits(reference, prompt + mine[:-1])[len(prompt) - 1 :]
        for token, row in zip(mine, rows, strict=True):
            best = int(row.argmax())
            if token == best:
                equal += 1
                continue
            margin = float(row[best] - row[token])
            assert margin <= 2 * tolerance(row, SHAPE["intermediate_size"]), (family, margin)
            ties += 1
    record_property("ties", ties)
    _compared[family] = (equal, ties)


def test_enough_tokens_were_compared():
    """The whole file: at least 10,000 tokens, and ties are rare."""
    if len(_compared) < len(FAMILIES):
        pytest.skip("only some families were run")
    equal = sum(each for each, _ in _compared.values())
    ties = sum(each for _, each in _compared.values())
    print(f"greedy tokens equal: {equal}, ties: {ties}")
    assert equal >= 10_000
    assert ties <= equal // 1000


def test_generate_equals_transformers_generate(tmp_path):
    """Its own loop with its own cache, once: past a sliding window, in a padded-free batch of 1."""
    for family in ("llama3", "mistral-window", "qwen3"):
        reference, engine = build(family, tmp_path / family)
        prompt = prompts()[5]
        with torch.no_grad():
            expected = reference.generate(
                torch.tensor([prompt]), do_sample=False, max_new_tokens=60, min_new_tokens=60
            )[0, len(prompt) :].tolist()
        params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
        got = engine.generate(prompt, params, use_tqdm=False)[0].outputs[0].token_ids
        assert got == expected
