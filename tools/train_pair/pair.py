"""Shapes of the two models, and how they are created, loaded and written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from tools.train_pair.data import END_OF_TEXT, END_OF_TEXT_ID, VOCAB_SIZE

MAX_POSITIONS = 2048
HEAD_DIM = 64

logging.disable_progress_bar()


@dataclass(frozen=True)
class Shape:
    """The sizes in which the target and the draft differ."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int


TARGET_SHAPE = Shape(hidden=384, layers=8, heads=6, kv_heads=3, feed_forward=1024)
DRAFT_SHAPE = Shape(hidden=192, layers=2, heads=3, kv_heads=3, feed_forward=512)


def create_model(shape: Shape) -> LlamaForCausalLM:
    """Create a randomly initialised model with tied embeddings."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_POSITIONS,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
    )
    return LlamaForCausalLM(config)


def load_model(folder: Path) -> LlamaForCausalLM:
    """Load a checkpoint in float32, ready for evaluation."""
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    return model.eval()


def parameter_count(model: LlamaForCausalLM) -> int:
    """Count parameters; tied embeddings count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def save_model(model: LlamaForCausalLM, tokenizer_file: Path, folder: Path) -> None:
    """Write weights (bf16 safetensors), configuration and tokenizer; leaves `model` as it is."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_file),
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=MAX_POSITIONS,
    )
    stored = LlamaForCausalLM(model.config)
    stored.load_state_dict(model.state_dict())
    stored.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
