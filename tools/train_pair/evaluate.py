"""Measure the pair on held-out files.

Reports the target's loss, how often the draft's first choice is the target's (teacher-forced), and
the share of drafted tokens accepted when chains of k are drafted greedily along the target's own
greedy output.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from tools.train_pair.data import END_OF_TEXT_ID, load_tokens
from tools.train_pair.generate import CachedLlama, generate
from tools.train_pair.pair import load_model, parameter_count

WINDOW = 512
WINDOWS_PER_BATCH = 8
PROMPT_LENGTHS = (64, 96, 128, 160, 192, 224, 256)


@dataclass
class Acceptance:
    """Counts of a greedy speculative run: chains by how many of their tokens were accepted."""

    chain_length: int
    chains_by_accepted: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.chains_by_accepted:
            self.chains_by_accepted = [0] * (self.chain_length + 1)

    @property
    def chains(self) -> int:
        """Number of chains drafted, that is of passes of the target."""
        return sum(self.chains_by_accepted)

    @property
    def accepted(self) -> int:
        """Number of drafted tokens accepted."""
        return sum(count * chains for count, chains in enumerate(self.chains_by_accepted))

    @property
    def rate(self) -> float:
        """Share of drafted tokens accepted."""
        return self.accepted / max(1, self.chains * self.chain_length)

    @property
    def full_share(self) -> float:
        """Share of chains accepted as a whole."""
        return self.chains_by_accepted[-1] / max(1, self.chains)

    def add(self, accepted: int) -> None:
        """Count one chain."""
        self.chains_by_accepted[accepted] += 1

    def merge(self, other: Acceptance) -> None:
        """Add the chains of another run."""
        for accepted, chains in enumerate(other.chains_by_accepted):
            self.chains_by_accepted[accepted] += chains


def windows(tokens: Tensor) -> Iterator[Tensor]:
    """Yield batches of consecutive windows of `WINDOW` tokens."""
    count = len(tokens) // WINDOW
    yield from tokens[: count * WINDOW].view(count, WINDOW).split(WINDOWS_PER_BATCH)


@torch.inference_mode()
def held_out_loss(model: LlamaForCausalLM, tokens: Tensor) -> float:
    """Mean cross-entropy in nats a token over consecutive windows."""
    total, count = 0.0, 0
    for batch in windows(tokens):
        logits = model(input_ids=batch).logits[:, :-1].flatten(0, 1)
        labels = batch[:, 1:].flatten()
        total += functional.cross_entropy(logits, labels, reduction="sum").item()
        count += labels.numel()
    return total / count


@dataclass(frozen=True)
class SourceScore:
    """Both models on the source text of the held-out files."""

    target_loss: float
    draft_loss: float
    agreement: float
    """Share of positions where both models' first choices are equal."""


@torch.inference_mode()
def score_source(target: LlamaForCausalLM, draft: LlamaForCausalLM, tokens: Tensor) -> SourceScore:
    """Losses in nats a token and agreement of first choices over consecutive windows."""
    totals, equal, count = [0.0, 0.0], 0, 0
    for batch in windows(tokens):
        labels = batch[:, 1:].flatten()
        first_choices = []
        for index, model in enumerate((target, draft)):
            logits = model(input_ids=batch).logits[:, :-1].flatten(0, 1)
            totals[index] += functional.cross_entropy(logits, labels, reduction="sum").item()
            first_choices.append(logits.argmax(-1))
        equal += int((first_choices[0] == first_choices[1]).sum())
        count += labels.numel()
    return SourceScore(totals[0] / count, totals[1] / count, equal / count)


def cut_prompts(tokens: Tensor, length: int, rows: int, generator: torch.Generator) -> Tensor:
    """Cut `rows` random prompts of `length` tokens, each from the inside of one file."""
    prompts: list[Tensor] = []
    while len(prompts) < rows:
        start = int(torch.randint(0, len(tokens) - length, (1,), generator=generator))
        prompt = tokens[start : start + length]
        if not bool((prompt == END_OF_TEXT_ID).any()):
            prompts.append(prompt)
    return torch.stack(prompts)


def output_length(output: Tensor, limit: int) -> int:
    """Number of output tokens that count: up to the end of text, at most `limit`."""
    ends = (output[:limit] == END_OF_TEXT_ID).nonzero()
    return int(ends[0]) + 1 if len(ends) else limit


def replay(matches: list[bool], new_tokens: int, chain_length: int) -> Acceptance:
    """Replay greedy speculation from where the draft's first choice equals the target's token.

    As long as a chain is accepted its tokens are the target's own, so the draft's choices along
    the target's output are exactly those of the chain. Each chain ends with the target's own token.
    """
    acceptance = Acceptance(chain_length)
    position = 0
    while position < new_tokens:
        chain = matches[position : position + chain_length]
        accepted = chain.index(False) if False in chain else chain_length
        acceptance.add(accepted)
        position += accepted + 1
    return acceptance


@torch.inference_mode()
def draft_chains(
    draft: CachedLlama, tokens: Tensor, prompt_length: int, new_tokens: int, chain_length: int
) -> Acceptance:
    """Do what `replay` computes the slow way: draft every chain from the verified text."""
    acceptance = Acceptance(chain_length)
    position = prompt_length
    while position < prompt_length + new_tokens:
        drafted = generate(draft, tokens[None, :position], chain_length).tokens[0, position:]
        equal = (drafted == tokens[position : position + chain_length]).tolist()
        accepted = equal.index(False) if False in equal else chain_length
        acceptance.add(accepted)
        position += accepted + 1
    return acceptance


@dataclass(frozen=True)
class OwnOutput:
    """Target's greedy continuations of a batch of prompts of one length."""

    tokens: Tensor
    prompt_length: int
    new_tokens: int


def target_outputs(
    target: LlamaForCausalLM, tokens: Tensor, arguments: argparse.Namespace
) -> list[OwnOutput]:
    """Let the target continue held-out prompts greedily, one batch for each prompt length."""
    generator = torch.Generator().manual_seed(arguments.seed)
    decoder = CachedLlama(target, torch.float32)
    rows = -(-arguments.prompts // len(PROMPT_LENGTHS))
    outputs = []
    for length in PROMPT_LENGTHS:
        prompts = cut_prompts(tokens, length, rows, generator)
        # The last chain may begin at the last token, so the output goes on for one chain.
        result = generate(decoder, prompts, arguments.new_tokens + arguments.chain)
        outputs.append(OwnOutput(result.tokens, length, arguments.new_tokens))
    return outputs


@dataclass(frozen=True)
class DraftScore:
    """How well the draft follows the target's greedy output."""

    prompts: int
    acceptance: Acceptance
    agreement: float
    """Share of the target's output tokens that are the draft's first choice (teacher-forced)."""
    rate_error: float
    """Standard error of the accepted share over prompts."""


@torch.inference_mode()
def score_draft(
    draft: LlamaForCausalLM, outputs: list[OwnOutput], chain_length: int, explicit: bool = False
) -> DraftScore:
    """Compare the draft's first choices with the target's output and replay the speculation."""
    total = Acceptance(chain_length)
    rates, equal, count = [], 0, 0
    decoder = CachedLlama(draft, torch.float32)
    for output in outputs:
        length = output.prompt_length
        choices = draft(input_ids=output.tokens).logits.argmax(-1)[:, length - 1 : -1]
        for row, row_choices in zip(output.tokens, choices, strict=True):
            matches = row_choices == row[length:]
            counted = output_length(row[length:], output.new_tokens)
            acceptance = replay(matches.tolist(), counted, chain_length)
            if explicit and acceptance != draft_chains(decoder, row, length, counted, chain_length):
                raise RuntimeError("replayed and drafted chains differ")
            total.merge(acceptance)
            rates.append(acceptance.rate)
            equal += int(matches[:counted].sum())
            count += counted
    error = float(np.std(rates, ddof=1) / np.sqrt(len(rates)))
    return DraftScore(len(rates), total, equal / count, error)


def describe(score: DraftScore) -> dict[str, float | int | list[int]]:
    """Name the figures of a score for the report."""
    acceptance = score.acceptance
    return {
        "prompts": score.prompts,
        "chains": acceptance.chains,
        "chains_by_accepted": acceptance.chains_by_accepted,
        "accepted_share": round(acceptance.rate, 4),
        "accepted_share_standard_error": round(score.rate_error, 4),
        "fully_accepted_share": round(acceptance.full_share, 4),
        "tokens_per_target_pass": round(1 + acceptance.accepted / acceptance.chains, 3),
        "agreement_on_target_output": round(score.agreement, 4),
    }


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder that data.py wrote to")
    parser.add_argument("--target", type=Path, default=Path("models/target"), help="target model")
    parser.add_argument("--draft", type=Path, default=Path("models/draft"), help="draft model")
    parser.add_argument("--prompts", type=int, default=98, help="number of held-out prompts")
    parser.add_argument("--new-tokens", type=int, default=128, help="tokens to generate a prompt")
    parser.add_argument("--chain", type=int, default=4, help="tokens drafted at a time (k)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of prompts")
    parser.add_argument("--threads", type=int, default=2, help="threads to compute with")
    parser.add_argument(
        "--skip-source", action="store_true", help="measure acceptance only, not the source text"
    )
    parser.add_argument(
        "--explicit", action="store_true", help="also draft every chain and compare the counts"
    )
    return parser.parse_args()


def main() -> None:
    """Run the command line."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    target, draft = load_model(arguments.target), load_model(arguments.draft)
    held_out = torch.from_numpy(load_tokens(arguments.work, "held_out").astype(np.int64))
    outputs = target_outputs(target, held_out, arguments)
    score = score_draft(draft, outputs, arguments.chain, arguments.explicit)
    report: dict[str, float | int | list[int]] = {
        "target_parameters": parameter_count(target),
        "draft_parameters": parameter_count(draft),
        **describe(score),
    }
    if not arguments.skip_source:
        source = score_source(target, draft, held_out)
        report["target_held_out_loss"] = round(source.target_loss, 4)
        report["draft_held_out_loss"] = round(source.draft_loss, 4)
        report["agreement_on_source"] = round(source.agreement, 4)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
