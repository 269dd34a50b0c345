"""A line of progress every few steps of a training run."""

from __future__ import annotations

import time

LOG_EVERY = 20
SMOOTHING = 0.95


class ProgressLog:
    """Print the smoothed losses and the minutes spent."""

    def __init__(self, steps: int, names: tuple[str, ...] = ("loss",)) -> None:
        self.steps = steps
        self.names = names
        self.started = time.monotonic()
        self.averages: dict[str, float] = {}

    def record(self, done: int, *losses: float) -> None:
        """Take in the losses of step number `done` (from 1), in the order of the names."""
        for name, loss in zip(self.names, losses, strict=False):
            previous = self.averages.get(name, loss)
            self.averages[name] = SMOOTHING * previous + (1 - SMOOTHING) * loss
        if done % LOG_EVERY == 0:
            minutes = (time.monotonic() - self.started) / 60
            values = ", ".join(f"{name} {value:.4f}" for name, value in self.averages.items())
            print(f"step {done}/{self.steps}: {values}, {minutes:.1f} min", flush=True)
