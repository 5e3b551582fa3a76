"""Curves over training steps and over recall."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lofi.figures.style import CYCLE, LINES, as_array, axes_for, quiet_frame

Log = Sequence[Mapping[str, Any]]  # rows of a metrics.jsonl: {"step": 3, "loss": 1.2, "lr": 0.1}


def loss_curves(
    runs: Mapping[str, Log], *, key: str = "loss", window: int | None = None, ax: Axes | None = None
) -> Axes:
    """Loss against step: raw values thin and pale, their running mean on top.

    Args:
        runs: name → rows with "step" and `key`; rows without `key` or with NaN are left out.
        key: which number of a row.
        window: rows of the running mean (each point averages the last `window` rows, fewer at the
            beginning); None takes a twentieth of the run.
    Raises:
        ValueError: a run without a single row that has `key`.
    """
    ax = axes_for(ax, 6.0, 3.2)
    for i, (name, rows) in enumerate(runs.items()):
        steps, values = _series(name, rows, key)
        colour = CYCLE[i % len(CYCLE)]
        width = max(1, window or len(values) // 20)
        if width > 1:
            ax.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
        ax.plot(
            steps, running_mean(values, width), color=colour, linewidth=2,
            linestyle=LINES[i % len(LINES)], label=name,
        )  # fmt: skip
    ax.set(xlabel="step", ylabel=key)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(runs) > 1:
        ax.legend(frameon=False)
    return quiet_frame(ax)


def learning_rate(
    runs: Mapping[str, Log] | Log, *, key: str = "lr", ax: Axes | None = None
) -> Axes:
    """Learning rate against step as a staircase, logarithmic when it spans more than tenfold."""
    named = dict(runs) if isinstance(runs, Mapping) else {"": runs}
    ax = axes_for(ax, 6.0, 2.2)
    smallest, largest = np.inf, 0.0
    for i, (name, rows) in enumerate(named.items()):
        steps, values = _series(name, rows, key)
        ax.step(steps, values, where="post", color=CYCLE[i % len(CYCLE)], linewidth=2,
                linestyle=LINES[i % len(LINES)], label=name)  # fmt: skip
        smallest = min(smallest, values[values > 0].min(initial=np.inf))
        largest = max(largest, values.max())
    if largest > 10.001 * smallest:
        ax.set_yscale("log")
    else:
        ax.set_ylim(0, 1.08 * largest)
    ax.set(xlabel="step", ylabel="learning rate")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(named) > 1:
        ax.legend(frameon=False)
    return quiet_frame(ax)


def precision_recall(
    curves: Mapping[str, tuple[Any, Any]],
    *,
    average_precision: Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Precision against recall, raw and (filled) as the falling envelope that AP measures.

    Args:
        curves: name → (recall, precision), (n,) each, one point per detection in score order.
        average_precision: name → AP in [0, 1], added to the legend in percent.
    """
    ax = axes_for(ax, 4.6, 3.6)
    for i, (name, (recall, precision)) in enumerate(curves.items()):
        recall, precision = as_array(recall).astype(float), as_array(precision).astype(float)
        colour = CYCLE[i % len(CYCLE)]
        x = np.concatenate([[0.0], recall, [recall[-1] if len(recall) else 0.0]])
        y = np.concatenate([precision[:1], precision, [0.0]])
        envelope = np.maximum.accumulate(y[::-1])[::-1]
        known = (average_precision or {}).get(name)
        label = name if known is None else f"{name}: AP {100 * known:.1f}"
        ax.plot(x[:-1], y[:-1], color=colour, linewidth=0.9, alpha=0.6, marker=".", markersize=4)
        ax.plot(x, envelope, color=colour, linewidth=2, drawstyle="steps-pre", label=label,
                linestyle=LINES[i % len(LINES)])  # fmt: skip
        ax.fill_between(x, envelope, step="pre", color=colour, alpha=0.12, linewidth=0)
    ax.set(xlim=(0, 1.01), ylim=(0, 1.04), xlabel="recall", ylabel="precision")
    if curves:
        ax.legend(loc="best", framealpha=0.85)
    return quiet_frame(ax)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values at each place, of fewer at the beginning; same length."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - window, 0)
    return (total[last] - total[first]) / (last - first)


def _series(name: str, rows: Log, key: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(row["step"], float(row[key])) for row in rows if row.get(key) is not None]
    pairs = [(step, value) for step, value in pairs if np.isfinite(value)]
    if not pairs:
        known = sorted({field for row in rows for field in row})
        raise ValueError(f"run {name!r} has no finite {key!r}; its rows hold {known}")
    steps, values = zip(*pairs)
    return np.array(steps), np.array(values)
