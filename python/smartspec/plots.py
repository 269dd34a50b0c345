# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""The plot of `smartspec demo`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = {
    "off": "#7f7f7f",
    "lookup": "#1f77b4",
    "suffix": "#2ca02c",
    "draft": "#d62728",
    "auto": "#9467bd",
}
LABELS = {
    "off": "off",
    "lookup": "prompt lookup",
    "suffix": "suffix index",
    "draft": "draft model",
    "auto": "auto",
}


def plot_demo(
    path: Path,
    load: Mapping[str, float],
    alone: Mapping[str, float],
    ttft: Mapping[str, Sequence[float]],
    tpot: Mapping[str, Sequence[float]],
    title: str,
) -> None:
    """Throughput under load and alone (tokens/s), and how TTFT and TPOT (seconds) spread."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    _bars(left, load, alone)
    _shares(middle, ttft, "time to first token (ms)")
    _shares(right, tpot, "time per output token (ms)")
    middle.set_ylabel("share of requests at or below")
    right.legend(loc="lower right", title="speculation")
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _bars(axes: Any, load: Mapping[str, float], alone: Mapping[str, float]) -> None:
    names = list(load)
    step = 0.8 / len(names)
    for i, name in enumerate(names):
        for group, values in ((0, load), (1, alone)):
            x = group + (i - (len(names) - 1) / 2) * step
            axes.bar(x, values[name], width=0.92 * step, color=COLOURS.get(name))
            axes.text(x, values[name], f"{values[name]:.0f}", ha="center", va="bottom", fontsize=9)
    axes.set_xticks([0, 1], ["requests arriving\nover time", "one request\nat a time"])
    axes.set_ylabel("output tokens per second")
    axes.set_ylim(0, 1.15 * max([*load.values(), *alone.values()]))
    axes.spines[["top", "right"]].set_visible(False)


def _shares(axes: Any, series: Mapping[str, Sequence[float]], label: str) -> None:
    for name, values in series.items():
        ordered = sorted(1e3 * value for value in values)
        shares = [(i + 1) / len(ordered) for i in range(len(ordered))]
        axes.step(
            ordered, shares, where="post", color=COLOURS.get(name), label=LABELS.get(name, name)
        )
    axes.set_xlabel(label)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
