# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""The plots of `smartspec bench serve`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .serving_bench import CellResult

_SERIES = (
    ("mean_e2el_ms", "mean latency of a request (ms)"),
    ("mean_tpot_ms", "mean time per output token (ms)"),
    ("output_throughput", "output tokens per second"),
)


def plot_sweep(path: Path, results: Sequence[CellResult], title: str) -> bool:
    """Latency and throughput of every policy over what was swept: rates, or where there is one
    rate only, concurrencies; a row of plots per value of the other. False: nothing was swept."""
    by_rate = len({result.cell.rate_text for result in results}) > 1
    if not by_rate and len({result.cell.max_concurrency for result in results}) < 2:
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows: dict[str, list[CellResult]] = {}
    for result in results:
        rows.setdefault(_other(result, by_rate), []).append(result)
    figure, grid = plt.subplots(
        len(rows), 3, figsize=(14, 4.2 * len(rows)), layout="constrained", squeeze=False
    )
    for axes, (name, cells) in zip(grid, rows.items(), strict=True):
        for axis, (key, label) in zip(axes, _SERIES, strict=True):
            _lines(axis, cells, key, by_rate)
            axis.set_ylabel(label)
        if len(rows) > 1:
            axes[0].set_title(name, loc="left", fontsize=10)
        axes[-1].legend(title="policy", fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def _other(result: CellResult, by_rate: bool) -> str:
    limit = result.cell.max_concurrency
    if by_rate:
        return "any number at a time" if limit is None else f"at most {limit} at a time"
    return result.cell.rate_text


def _lines(axis: Any, cells: Sequence[CellResult], key: str, by_rate: bool) -> None:
    labels = [
        cell.cell.rate_text if by_rate else str(cell.cell.max_concurrency or "all")
        for cell in cells
    ]
    for i, name in enumerate(cells[0].policies):
        values = [cell.policies[name].medians[key] for cell in cells]
        style = {"linewidth": 2.6, "zorder": 3} if name.startswith("auto") else {}
        axis.plot(range(len(cells)), values, marker="osv^Dx"[i % 6], label=name, **style)
    axis.set_xticks(range(len(cells)), labels)
    axis.set_xlabel("requests per second" if by_rate else "requests at a time")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
