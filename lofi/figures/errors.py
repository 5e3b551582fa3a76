"""What the best detections are, and which instances are hard: the pictures of a diagnosis."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lofi.figures.style import (
    AMBER,
    FALSE_ALARM,
    FOUND,
    GREY,
    HATCHES,
    PURPLE,
    SKY,
    SMALL,
    TRUTH,
    axes_for,
    quiet_frame,
)

COLOURS = (FOUND, SKY, PURPLE, AMBER, FALSE_ALARM, GREY)


def error_profile(
    share: Mapping[str, Sequence[float]],
    multiples: Sequence[int] = range(1, 11),
    *,
    ax: Axes | None = None,
) -> Axes:
    """Stacked bars: of what the best k x (instances of the class) detections consist.

    Args:
        share: category → fraction for every multiple; the fractions of a multiple add up to 1.
        multiples: k of each bar.
    """
    ax = axes_for(ax, 6.4, 3.4)
    places, bottom = np.arange(len(multiples)), np.zeros(len(multiples))
    for i, (name, values) in enumerate(share.items()):
        percent = 100 * np.asarray(values, float)
        ax.bar(places, percent, 0.8, bottom, color=COLOURS[i % len(COLOURS)], label=name,
               hatch=HATCHES[i % len(HATCHES)], edgecolor="white", linewidth=0.5)  # fmt: skip
        bottom += percent
    ax.set(xticks=places, xticklabels=[f"{k}G" for k in multiples], ylim=(0, 100))
    ax.set(xlabel="best detections (G = instances of the class)", ylabel="share (%)")
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1, 1), frameon=False,
              fontsize=SMALL)  # fmt: skip
    return quiet_frame(ax)


def sensitivity_bars(
    buckets: Sequence[tuple[str, str, float, int]],
    overall: float | None = None,
    *,
    ylabel: str = "recall (%)",
    ax: Axes | None = None,
) -> Axes:
    """One bar per group of instances, groups of the same property side by side.

    Args:
        buckets: (property, name, value in [0, 1], number of instances) each.
        overall: value over all instances, a dashed line.
    """
    ax = axes_for(ax, 7.2, 3.0)
    properties = list(dict.fromkeys(bucket[0] for bucket in buckets))
    places = [i + properties.index(bucket[0]) for i, bucket in enumerate(buckets)]
    for i, name in enumerate(properties):
        mine = [(x, b) for x, b in zip(places, buckets) if b[0] == name]
        bars = ax.bar([x for x, _ in mine], [100 * b[2] for _, b in mine], 0.8, label=name,
                      color=(TRUTH, AMBER, PURPLE)[i % 3], hatch=HATCHES[i % len(HATCHES)],
                      edgecolor="white")  # fmt: skip
        ax.bar_label(bars, [f"{b[3]}" for _, b in mine], fontsize=SMALL, color=GREY)
    ax.set_xticks(places, [bucket[1] for bucket in buckets], fontsize=SMALL)
    ax.set(ylabel=ylabel, ylim=(0, 109), xlabel="group (number of instances above each bar)")
    if overall is not None:
        ax.axhline(100 * overall, color=GREY, linestyle="--", linewidth=1, label="all instances")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=SMALL)
    return quiet_frame(ax)


def diagnosis_figure(report: Any) -> Figure:
    """False-positive profile above, recall and normalised mAP by groups of instances below.

    Args:
        report: what `lofi.evaluation.diagnose` returns.
    """
    figure, axes = plt.subplots(3, 1, figsize=(8, 9), layout="constrained")
    error_profile(report.profile.share, report.profile.multiples, ax=axes[0])
    axes[0].set_title(f"what the best detections are, tIoU {report.profile.tiou:g}")
    groups = report.sensitivity
    total = sum(c.instances for c in report.classes)
    recall = sum(c.average_recall * c.instances for c in report.classes) / total
    rows = [(b.property, b.name, b.average_recall, b.instances) for b in groups]
    sensitivity_bars(rows, recall, ax=axes[1])
    axes[1].set_title("recall, mean over tIoUs")
    rows = [(b.property, b.name, b.normalised_map, b.instances) for b in groups]
    sensitivity_bars(rows, ylabel="normalised mAP (%)", ax=axes[2])
    axes[2].set_title("normalised mAP, mean over tIoUs")
    return figure
