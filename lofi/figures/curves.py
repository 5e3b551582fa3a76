"""Curves over training steps and over recall; bars of shares, of errors and of hard instances;
differences between methods, a dot a seed."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lofi.evaluation.paired import paired, verdict
from lofi.figures import style
from lofi.figures.style import Canvas, axes_for, fill, literal, stroke

Log = Sequence[Mapping[str, Any]]  # rows of a metrics.jsonl: {"step": 3, "loss": 1.2, "lr": 0.1}
ERRORS = (style.FOUND, style.SKY, style.PURPLE, style.AMBER, style.FALSE_ALARM, style.GREY)
PROPERTIES = (style.TRUTH, style.AMBER, style.PURPLE)


def loss_curves(runs: Mapping[str, Log], *, key: str = "loss", ax: Canvas = None) -> Axes:
    """Loss against step: raw values thin and pale, on top the mean of the last twentieth of rows.

    Rows without `key` or with NaN are left out; a run of nothing else is refused (ValueError).
    """
    ax = axes_for(ax, 6.0, 3.2)
    for i, (name, rows) in enumerate(runs.items()):
        finite = [row for row in rows if row.get(key) is not None and np.isfinite(row[key])]
        if not finite:
            known = sorted({field for row in rows for field in row})
            raise ValueError(f"run {name!r} has no finite {key!r}; its rows hold {known}")
        steps, values = zip(*((row["step"], float(row[key])) for row in finite))
        width = max(1, len(values) // 20)
        averaged = np.minimum(np.arange(len(values)) + 1, width)  # fewer at the beginning
        means = np.convolve(values, np.ones(width))[: len(values)] / averaged
        line = stroke(i)
        if width > 1:
            ax.plot(steps, values, color=line["color"], linewidth=0.7, alpha=0.35)
        ax.plot(steps, means, label=literal(name), **line)
    ax.set(xlabel="step", ylabel=key)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(runs) > 1:
        ax.legend(frameon=False)
    return ax


def error_profile(profile: Any, *, ax: Canvas = None) -> Axes:
    """Stacked bars: of what the best k x (instances of the class) detections consist.

    Takes the `FalsePositiveProfile` of `lofi.evaluation.diagnose`.
    """
    ax = axes_for(ax, 6.4, 3.4)
    places, bottom = np.arange(len(profile.multiples)), np.zeros(len(profile.multiples))
    for i, (name, values) in enumerate(profile.share.items()):
        percent = 100 * np.asarray(values, float)
        look = fill(i) | {"facecolor": ERRORS[i], "linewidth": 0.5}
        ax.bar(places, percent, 0.8, bottom, label=name, **look)
        bottom += percent
    ax.set(xticks=places, xticklabels=[f"{k}G" for k in profile.multiples], ylim=(0, 100))
    ax.set(xlabel="best detections (G = instances of the class)", ylabel="share (%)")
    ax.legend(reverse=True, fontsize=style.SMALL, **style.BESIDE)
    return ax


def sensitivity_bars(
    buckets: Sequence[Any], value: str, overall: float | None = None, *, ax: Canvas = None
) -> Axes:
    """One bar per `Bucket` of `lofi.evaluation.diagnose`, those of a property side by side.

    They show `value`, "average_recall" or "normalised_map"; a dashed line is it over all instances.
    """
    ax = axes_for(ax, 7.2, 3.0)
    names, places = list(dict.fromkeys(b.property for b in buckets)), []
    for i, name in enumerate(names):
        group = [bucket for bucket in buckets if bucket.property == name]
        at = len(places) + i + np.arange(len(group))  # a gap before each property
        heights = [100 * getattr(bucket, value) for bucket in group]
        bars = ax.bar(at, heights, 0.8, label=name, **fill(i) | {"facecolor": PROPERTIES[i]})
        texts = [bucket.instances for bucket in group]
        ax.bar_label(bars, texts, fontsize=style.SMALL, color=style.GREY)
        places.extend(at)
    ax.set_xticks(places, [bucket.name for bucket in buckets], fontsize=style.SMALL)
    ylabel = {"average_recall": "recall (%)", "normalised_map": "normalised mAP (%)"}[value]
    ax.set(ylabel=ylabel, ylim=(0, 109), xlabel="group (number of instances above each bar)")
    if overall is not None:
        look = {"color": style.GREY, "linestyle": "--", "linewidth": 1}
        ax.axhline(100 * overall, label="all instances", **look)
    ax.legend(fontsize=style.SMALL, **style.BESIDE)
    return ax


def diagnosis_figure(report: Any) -> Figure:
    """What `diagnose` found: false positives above, recall and mAP by groups of instances below."""
    figure, axes = plt.subplots(3, 1, figsize=(8, 9), layout="constrained")
    title = f"what the best detections are, tIoU {report.profile.tiou:g}"
    error_profile(report.profile, ax=axes[0]).set_title(title)
    total = sum(c.instances for c in report.classes)
    recall = sum(c.average_recall * c.instances for c in report.classes) / total
    sensitivity_bars(report.sensitivity, "average_recall", recall, ax=axes[1])
    axes[1].set_title("recall, mean over tIoUs")
    sensitivity_bars(report.sensitivity, "normalised_map", ax=axes[2])
    axes[2].set_title("normalised mAP, mean over tIoUs")
    return figure


def paired_dots(differences: Mapping[str, Sequence[float]], *, ax: Canvas = None) -> Axes:
    """A line a claim "A over B": A − B, a dot a seed, over the 95 % interval of the mean (a tick).

    Mean and verdict of at least one difference stand beside each line.
    """
    ax = axes_for(ax, 7.0, 0.8 + 0.42 * len(differences))
    colours = {"reproduced": style.FOUND, "contradicted": style.FALSE_ALARM}
    for y, values in enumerate(differences.values()):
        found, word = paired(values), verdict(values)
        colour = colours.get(word, style.GREY)
        bar = {"linewidth": 8, "alpha": 0.35, "solid_capstyle": "butt"}
        ax.plot((found.low, found.high), (y, y), color=colour, **bar)
        ax.plot(found.mean, y, "|", color=style.INK, markersize=11)
        ax.plot(values, [y] * found.n, "o", color=colour, markersize=3.5)
        text = f"{found.mean:+.1f}  {word}".replace("-", "−")
        where = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": style.SMALL}
        ax.text(1.02, y, text, **where)
    ax.axvline(0, color=style.INK, linewidth=1)
    ax.set_yticks(range(len(differences)), map(literal, differences))
    ax.set(xlabel="difference (points)", ylim=(len(differences) - 0.4, -0.6))
    return ax
