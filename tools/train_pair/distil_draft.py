"""Distil the draft on the target's own outputs.

`generate` lets the target continue prompts cut from the training files and stores, next to the
tokens, the final hidden state behind every prediction. `train` rebuilds the target's full
distribution from those states with one matrix product, so that the target is not run again.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from tools.train_pair.data import load_tokens
from tools.train_pair.generate import CachedLlama, generate
from tools.train_pair.optimiser import HybridOptimiser, Schedule
from tools.train_pair.pair import DRAFT_SHAPE, create_model, load_model, save_model
from tools.train_pair.progress import ProgressLog

PROMPT_LENGTHS = (32, 64, 96, 128, 160, 192, 224, 256)
GREEDY_SHARE = 0.6
SAMPLED_TEMPERATURES = (0.8, 1.0)
SOURCE_POSITIONS = 64
"""Positions at the end of the prompt that count in the loss: a quarter beside 192 generated."""
REPEATED_SEGMENT = (4, 64)
REPEATED_LENGTH = 256
COPYING_ROWS = 16
COPYING_LENGTH = 160
WARMUP_STEPS = 40
DECAY_SHARE = 0.7


@dataclass(frozen=True)
class Batch:
    """Rows of one prompt length: tokens, the target's states and where its own output starts."""

    tokens: Tensor
    hidden: Tensor
    prompt_length: int


def cut_prompts(tokens: Tensor, rows: int, length: int, generator: torch.Generator) -> Tensor:
    """Cut `rows` random windows of `length` tokens."""
    starts = torch.randint(0, len(tokens) - length, (rows, 1), generator=generator)
    return tokens[starts + torch.arange(length)]


def row_temperatures(rows: int, generator: torch.Generator) -> Tensor:
    """Draw a temperature for each row: 0 (greedy) for `GREEDY_SHARE` of them."""
    low, high = SAMPLED_TEMPERATURES
    sampled = low + (high - low) * torch.rand(rows, generator=generator)
    greedy = torch.rand(rows, generator=generator) < GREEDY_SHARE
    return sampled.masked_fill(greedy, 0.0)


def generate_shards(arguments: argparse.Namespace) -> None:
    """Write one shard of target outputs after the other, until the token count is reached."""
    target = CachedLlama(load_model(arguments.target), torch.bfloat16)
    source = torch.from_numpy(load_tokens(arguments.work, "train").astype(np.int64))
    generator = torch.Generator().manual_seed(arguments.seed)
    arguments.shards.mkdir(parents=True, exist_ok=True)
    tokens_per_shard = arguments.rows * arguments.new_tokens
    shards = math.ceil(arguments.tokens / tokens_per_shard)
    started = time.monotonic()
    for shard in range(shards):
        length = PROMPT_LENGTHS[shard % len(PROMPT_LENGTHS)]
        prompts = cut_prompts(source, arguments.rows, length, generator)
        temperatures = row_temperatures(arguments.rows, generator)
        result = generate(target, prompts, arguments.new_tokens, temperatures, generator)
        save_file(
            {"tokens": result.tokens.to(torch.int32), "hidden": result.hidden.contiguous()},
            arguments.shards / f"{shard:05d}.safetensors",
            metadata={"prompt_length": str(length)},
        )
        rate = (shard + 1) * tokens_per_shard / (time.monotonic() - started)
        print(f"shard {shard + 1}/{shards}: {rate:.0f} generated tokens/s", flush=True)


class ShardReader:
    """Endless random batches from the shards; each pass visits every row once."""

    def __init__(self, folder: Path, rows: int, seed: int) -> None:
        self.files = sorted(folder.glob("*.safetensors"))
        if not self.files:
            raise FileNotFoundError(f"no shards in {folder}: run `generate` first")
        self.rows = rows
        self.generator = torch.Generator().manual_seed(seed)
        self.batches: list[Batch] = []
        for file in self.files:
            self.batches.extend(self._split(file))

    def _split(self, file: Path) -> Iterator[Batch]:
        with safe_open(file, framework="pt") as shard:
            prompt_length = int(shard.metadata()["prompt_length"])
            tokens, hidden = shard.get_tensor("tokens"), shard.get_tensor("hidden")
        parts = zip(tokens.split(self.rows), hidden.split(self.rows), strict=True)
        for row_tokens, row_hidden in parts:
            yield Batch(row_tokens, row_hidden, prompt_length)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            for index in torch.randperm(len(self.batches), generator=self.generator).tolist():
                yield self.batches[index]


def soft_labels(target_logits: Tensor, argmax_share: float) -> Tensor:
    """Mix the target's distribution with its first choice, weighted by `argmax_share`."""
    labels = target_logits.float().softmax(dim=-1).mul_(1 - argmax_share)
    first = target_logits.argmax(dim=-1, keepdim=True)
    return labels.scatter_add_(-1, first, torch.full(first.shape, argmax_share))


def distillation_loss(
    draft: LlamaForCausalLM, output: Tensor, batch: Batch, argmax_share: float
) -> Tensor:
    """Cross-entropy to `soft_labels` on the generated part and the end of the prompt."""
    first = max(0, batch.prompt_length - 1 - SOURCE_POSITIONS)
    with torch.no_grad():
        labels = soft_labels(functional.linear(batch.hidden[:, first:], output), argmax_share)
    with torch.autocast("cpu", torch.bfloat16):
        states = draft.model(batch.tokens[:, :-1].long(), use_cache=False).last_hidden_state
        logits = draft.lm_head(states[:, first:])
    return functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(0, 1))


def repeated_rows(source: Tensor, rows: int, length: int, generator: torch.Generator) -> Tensor:
    """Make rows that repeat one segment; half of the segments are shuffled source tokens."""
    made = []
    shortest, longest = REPEATED_SEGMENT
    for row in range(rows):
        size = int(torch.randint(shortest, longest + 1, (1,), generator=generator))
        segment = cut_prompts(source, 1, size, generator)[0]
        if row % 2:
            picks = torch.randint(0, len(source), (size,), generator=generator)
            segment = source[picks]
        made.append(segment.repeat(length // size + 1)[:length])
    return torch.stack(made)


def copying_loss(draft: LlamaForCausalLM, rows: Tensor) -> Tensor:
    """Cross-entropy on repeated rows, once every segment has been seen in full.

    Greedy output of a small target repeats itself; the draft follows it by copying from the past,
    which it learns far sooner from rows that nothing but copying predicts.
    """
    first = REPEATED_SEGMENT[1]
    with torch.autocast("cpu", torch.bfloat16):
        states = draft.model(rows[:, :-1], use_cache=False).last_hidden_state
        logits = draft.lm_head(states[:, first:])
    return functional.cross_entropy(logits.float().flatten(0, 1), rows[:, first + 1 :].flatten())


def teach_copying(draft: LlamaForCausalLM, source: Tensor, arguments: argparse.Namespace) -> None:
    """Train on repeated rows alone, from which a two-layer model learns to copy in minutes."""
    generator = torch.Generator().manual_seed(arguments.seed + 1)
    optimiser = HybridOptimiser(draft, arguments.muon_rate, arguments.adam_rate / 2)
    progress = ProgressLog(arguments.copying_steps, ("copying",))
    for step in range(arguments.copying_steps):
        rows = repeated_rows(source, COPYING_ROWS, COPYING_LENGTH, generator)
        loss = copying_loss(draft, rows)
        loss.backward()
        optimiser.step(min(1.0, (step + 1) / WARMUP_STEPS))
        progress.record(step + 1, loss.item())


def train_draft(arguments: argparse.Namespace) -> None:
    """Train the draft on the shards and write it to `--out`, also every `--save-every` steps."""
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    draft = load_model(arguments.init) if arguments.init else create_model(DRAFT_SHAPE)
    draft.train()
    output = load_model(arguments.target).lm_head.weight.detach().to(torch.bfloat16)
    tokenizer_file = arguments.target / "tokenizer.json"
    source = torch.from_numpy(load_tokens(arguments.work, "train").astype(np.int64))
    teach_copying(draft, source, arguments)
    batches = iter(ShardReader(arguments.shards, arguments.rows, arguments.seed))
    optimiser = HybridOptimiser(draft, arguments.muon_rate, arguments.adam_rate)
    progress = ProgressLog(arguments.steps, ("distillation", "copying"))
    schedule = Schedule(arguments.steps, arguments.minutes, WARMUP_STEPS, DECAY_SHARE)
    while not schedule.finished:
        loss = distillation_loss(draft, output, next(batches), arguments.argmax_share)
        loss.backward()
        losses = [loss.item()]
        if arguments.repeated_rows:
            rows = repeated_rows(source, arguments.repeated_rows, REPEATED_LENGTH, generator)
            loss = copying_loss(draft, rows)
            (loss * arguments.copying_weight).backward()
            losses.append(loss.item())
        optimiser.step(schedule.next_scale())
        progress.record(schedule.done, *losses)
        if schedule.done % arguments.save_every == 0:
            save_model(draft, tokenizer_file, arguments.out)
    save_model(draft, tokenizer_file, arguments.out)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="threads to compute with")
    parser.add_argument("--seed", type=int, default=3, help="seed of all random choices")
    parser.add_argument("--target", type=Path, default=Path("models/target"), help="target model")
    parser.add_argument("--work", type=Path, required=True, help="folder that data.py wrote to")
    parser.add_argument("--shards", type=Path, required=True, help="folder of target outputs")
    commands = parser.add_subparsers(dest="command", required=True)

    make = commands.add_parser("generate", help="let the target write the training data")
    make.add_argument("--rows", type=int, default=128, help="sequences a shard")
    make.add_argument("--new-tokens", type=int, default=192, help="tokens generated a sequence")
    make.add_argument("--tokens", type=int, default=2_000_000, help="tokens to generate in all")
    make.set_defaults(run=generate_shards)

    train = commands.add_parser("train", help="train the draft on the shards")
    train.add_argument("--out", type=Path, required=True, help="folder to write the draft to")
    train.add_argument("--init", type=Path, default=None, help="draft to start from (default: new)")
    train.add_argument("--steps", type=int, default=2000, help="optimiser steps")
    train.add_argument(
        "--minutes", type=float, default=None, help="end sooner, after this time (default: no)"
    )
    train.add_argument("--rows", type=int, default=16, help="sequences a step")
    train.add_argument("--muon-rate", type=float, default=0.02, help="Muon learning rate")
    train.add_argument("--adam-rate", type=float, default=2e-3, help="AdamW learning rate")
    train.add_argument(
        "--argmax-share", type=float, default=0.5, help="weight of the target's first choice"
    )
    train.add_argument(
        "--copying-steps", type=int, default=400, help="steps on repeated rows alone, at first"
    )
    train.add_argument(
        "--repeated-rows", type=int, default=4, help="rows a step that train copying alone"
    )
    train.add_argument(
        "--copying-weight", type=float, default=0.2, help="weight of the loss on repeated rows"
    )
    train.add_argument("--save-every", type=int, default=200, help="steps between checkpoints")
    train.set_defaults(run=train_draft)
    return parser.parse_args()


def main() -> None:
    """Run the command line."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
