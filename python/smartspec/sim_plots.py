# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""The plots of `smartspec simulate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .simulation import ORACLE, CellResult, JumpResult, RateResult

_COLOURS = {
    "off": "#7f7f7f",
    "uniform": "#1f77b4",
    "turbospec": "#ff7f0e",
    "table": "#8c564b",
    "full-draft": "#2ca02c",
    "auto": "#9467bd",
    ORACLE: "#000000",
}
_FIXED = ("#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b", "#041c40")


def _style(policy: str) -> dict[str, Any]:
    if policy.startswith("fixed:"):
        return {"color": _FIXED[(int(policy[6:]) - 1) % len(_FIXED)], "linestyle": "--"}
    width = 2.6 if policy == "auto" else 1.4
    return {"color": _COLOURS.get(policy), "linewidth": width, "zorder": 3 if width > 2 else 2}


def _start() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _finish(plt: Any, figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _bare(axis: Any) -> None:
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def plot_regret(path: Path, results: Sequence[CellResult], policies: Sequence[str]) -> None:
    """What every policy misses of the oracle's goodput, each in its own order from best to worst
    cell, and by the acceptance of the cells."""
    plt = _start()
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.8), layout="constrained")
    shown = [policy for policy in policies if not policy.startswith("fixed:")] or policies
    for policy in shown:
        missed = sorted(100 * max(1 - result.share(policy), 0) for result in results)
        left.plot(np.arange(1, len(missed) + 1), missed, label=policy, **_style(policy))
    left.set_yscale("symlog", linthresh=1)
    ticks = (0, 0.5, 1, 2, 5, 10, 20, 50)
    left.set_yticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    left.set_ylim(0, 100)
    left.set_ylabel("goodput missed (% of the oracle's)")
    left.set_xlabel("cells, from each policy's best to its worst")
    left.legend(fontsize=8, ncols=2)
    shapes = list(dict.fromkeys(result.cell.shape.name for result in results))
    step = 0.84 / len(shown)
    for i, policy in enumerate(shown):
        means = [
            100 * np.mean([1 - r.share(policy) for r in results if r.cell.shape.name == shape])
            for shape in shapes
        ]
        places = np.arange(len(shapes)) + (i - (len(shown) - 1) / 2) * step
        right.bar(places, means, width=0.92 * step, color=_style(policy).get("color"))
    right.set_xticks(np.arange(len(shapes)), shapes, rotation=20)
    right.set_ylabel("mean of the cells (%)")
    for axis in (left, right):
        _bare(axis)
    _finish(plt, figure, path)


def plot_jumps(path: Path, results: Sequence[JumpResult], policies: Sequence[str]) -> None:
    """Draft nodes verified per request over time."""
    plt = _start()
    figure, grid = plt.subplots(
        len(results), 1, figsize=(11, 2.6 * len(results)), layout="constrained", squeeze=False
    )
    for (axis,), result in zip(grid, results, strict=True):
        for policy in [*policies, ORACLE]:
            if policy == "off":
                continue
            lengths = np.asarray(result.lengths[policy])
            smooth = np.convolve(lengths, np.ones(5) / 5, mode="valid")
            axis.plot(np.arange(len(smooth)) + 2, smooth, label=policy, **_style(policy))
        for step in (result.jump.first, result.jump.back):
            axis.axvline(step, color="#999999", linewidth=0.8)
        axis.set_xlim(result.jump.first - 150, result.jump.back + 350)
        axis.set_title(result.jump.name, loc="left", fontsize=10)
        axis.set_ylabel("nodes per request")
        _bare(axis)
    grid[0][0].legend(fontsize=8, ncols=3)
    grid[-1][0].set_xlabel("step")
    _finish(plt, figure, path)


def plot_rates(path: Path, results: Sequence[RateResult], policies: Sequence[str]) -> None:
    """Mean request latency against the request rate, a plot per service."""
    plt = _start()
    titles = list(dict.fromkeys(result.service.title for result in results))
    columns = min(len(titles), 4)
    rows = -(-len(titles) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(4 * columns, 3.6 * rows), layout="constrained", squeeze=False
    )
    for axis in grid.flat[len(titles) :]:
        axis.set_visible(False)
    for axis, title in zip(grid.flat, titles, strict=False):
        own = [result for result in results if result.service.title == title]
        for policy in policies:
            axis.plot(
                [result.rate for result in own],
                [result.latencies[policy].mean_latency for result in own],
                marker=".",
                label=policy,
                **_style(policy),
            )
        axis.set_yscale("log")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("requests per second")
        _bare(axis)
    grid[0][0].set_ylabel("mean request latency (s)")
    grid[0][0].legend(fontsize=7)
    _finish(plt, figure, path)
