"""Train the target on the source text of the training files."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from tools.train_pair.data import load_tokens
from tools.train_pair.evaluate import held_out_loss
from tools.train_pair.optimiser import HybridOptimiser, Schedule
from tools.train_pair.pair import TARGET_SHAPE, create_model, load_model, save_model
from tools.train_pair.progress import ProgressLog

WARMUP_STEPS = 50
DECAY_SHARE = 0.5
LONG_WINDOW_SHARE = 0.25


def window_sizes(progress: float, tokens_per_step: int) -> tuple[int, int]:
    """Rows and length of a step: windows of 256 tokens at first, of 512 towards the end."""
    length = 512 if progress >= 1 - LONG_WINDOW_SHARE else 256
    return max(1, tokens_per_step // length), length


def sample_windows(tokens: Tensor, rows: int, length: int, generator: torch.Generator) -> Tensor:
    """Cut `rows` random windows of `length` + 1 tokens: inputs and the labels one further on."""
    starts = torch.randint(0, len(tokens) - length, (rows, 1), generator=generator)
    return tokens[starts + torch.arange(length + 1)]


def language_model_loss(model: LlamaForCausalLM, window: Tensor) -> Tensor:
    """Mean cross-entropy of the next token over a batch of windows."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=window[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())


def train_target(arguments: argparse.Namespace) -> None:
    """Train, writing the target to `--out` every `--save-every` steps and at the end."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed + 1)
    tokens = torch.from_numpy(load_tokens(arguments.work, "train").astype(np.int64))
    model = load_model(arguments.init) if arguments.init else create_model(TARGET_SHAPE)
    model.train()
    optimiser = HybridOptimiser(model, arguments.muon_rate, arguments.adam_rate)
    tokenizer_file = arguments.work / "tokenizer.json"
    progress = ProgressLog(arguments.steps)
    schedule = Schedule(arguments.steps, arguments.minutes, WARMUP_STEPS, DECAY_SHARE)
    while not schedule.finished:
        rows, length = window_sizes(schedule.progress, arguments.tokens_per_step)
        loss = language_model_loss(model, sample_windows(tokens, rows, length, generator))
        loss.backward()
        optimiser.step(schedule.next_scale())
        progress.record(schedule.done, loss.item())
        if schedule.done % arguments.save_every == 0:
            save_model(model, tokenizer_file, arguments.out)
    save_model(model, tokenizer_file, arguments.out)

    held_out = torch.from_numpy(load_tokens(arguments.work, "held_out").astype(np.int64))
    loss_value = held_out_loss(load_model(arguments.out), held_out)
    print(f"held-out loss of the stored weights: {loss_value:.4f} nats a token")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder that data.py wrote to")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the target to")
    parser.add_argument("--init", type=Path, default=None, help="target to go on from")
    parser.add_argument("--steps", type=int, default=1900, help="optimiser steps")
    parser.add_argument(
        "--minutes", type=float, default=None, help="end sooner, after this time (default: no)"
    )
    parser.add_argument("--tokens-per-step", type=int, default=2048, help="tokens a step")
    parser.add_argument("--muon-rate", type=float, default=0.02, help="Muon learning rate")
    parser.add_argument("--adam-rate", type=float, default=2e-3, help="AdamW learning rate")
    parser.add_argument("--save-every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--threads", type=int, default=2, help="threads to compute with")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices")
    return parser.parse_args()


def main() -> None:
    """Run the command line."""
    train_target(parse_arguments())


if __name__ == "__main__":
    main()
