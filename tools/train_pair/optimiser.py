"""Muon for the projection matrices, AdamW for embeddings and norms, one shared schedule."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor, nn

NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
MOMENTUM = 0.95


def orthogonalise(matrix: Tensor) -> Tensor:
    """Approximate the nearest semi-orthogonal matrix by a quintic Newton-Schulz iteration."""
    linear, cubic, quintic = NEWTON_SCHULZ_COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    state = (matrix.T if tall else matrix).to(torch.bfloat16)
    state = state / (state.norm() + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = state @ state.T
        state = linear * state + (cubic * gram + quintic * gram @ gram) @ state
    return (state.T if tall else state).to(matrix.dtype)


class Schedule:
    """Counts the steps of a run, which ends after `steps` or, if given, after `minutes`."""

    def __init__(self, steps: int, minutes: float | None, warmup: int, decay_share: float) -> None:
        self.steps = steps
        self.seconds = math.inf if minutes is None else 60 * minutes
        self.warmup = warmup
        self.decay_share = decay_share
        self.done = 0
        self.started = time.monotonic()

    @property
    def progress(self) -> float:
        """Share of the run that has passed."""
        elapsed = time.monotonic() - self.started
        return max(self.done / self.steps, elapsed / self.seconds)

    @property
    def finished(self) -> bool:
        """Whether no step is left."""
        return self.progress >= 1

    def next_scale(self) -> float:
        """Scale of the next step's rate: linear warm-up, constant, then linear decay to zero."""
        remaining = max(0.0, 1 - self.progress) / self.decay_share
        self.done += 1
        return min(1.0, self.done / self.warmup, remaining)


class HybridOptimiser:
    """Muon on two-dimensional weights other than the embedding, AdamW on the rest."""

    def __init__(self, model: nn.Module, muon_rate: float, adam_rate: float) -> None:
        self.muon_rate = muon_rate
        self.adam_rate = adam_rate
        self.matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            is_matrix = parameter.ndim == 2 and "embed" not in name
            (self.matrices if is_matrix else rest).append(parameter)
        self.momenta = [torch.zeros_like(matrix) for matrix in self.matrices]
        self.adam = torch.optim.AdamW(rest, lr=adam_rate, betas=(0.9, 0.95), weight_decay=0.0)

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Apply the gradients with both learning rates times `scale`, then clear them."""
        for group in self.adam.param_groups:
            group["lr"] = self.adam_rate * scale
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        for matrix, momentum in zip(self.matrices, self.momenta, strict=True):
            gradient = matrix.grad
            if gradient is None:
                continue
            momentum.lerp_(gradient, 1 - MOMENTUM)
            update = orthogonalise(gradient.lerp(momentum, MOMENTUM))
            aspect = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
            matrix.add_(update, alpha=-self.muon_rate * scale * aspect)
            matrix.grad = None
