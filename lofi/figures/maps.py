"""What the head sees and predicts for one video: proposal maps, similarities, boundaries, graphs.

Maps are (D, L): row d, column s is the anchor that starts at snippet s and covers d + 1 snippets,
[s/L, (s + d + 1)/L] of the video. Cells with s + d >= L reach past the end and are not drawn.
Times on the axes are seconds when `duration_s` is given, else snippets; segments likewise.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from lofi.figures import style
from lofi.figures.style import Segments, as_array, as_spans, axes_for, quiet_frame

POSITIVE_ABOVE = (0.7, 0.9)  # tIoU
ROOMY_PX = 230  # small multiples have no room for texts; their caption explains them


def confidence_map(
    values: Any,
    *,
    truth: Segments = None,
    duration_s: float | None = None,
    label: str = "confidence",
    levels: Sequence[float] = (),
    ax: Axes | None = None,
) -> Axes:
    """Heat map over all anchors; start to the right, duration upwards.

    Args:
        values: (D, L) array or tensor in [0, 1].
        truth: segments whose anchors are marked with circles.
        label: name of the values, beside the colour bar.
        levels: values outlined in white where they occur, the highest with a full line.
    Raises:
        ValueError: `values` is not two-dimensional.
    """
    values = as_array(values).astype(float)
    if values.ndim != 2:
        raise ValueError(f"a map is (durations, snippets), got {tuple(values.shape)}")
    durations, snippets = values.shape
    row, column = np.indices(values.shape)
    inside = np.ma.masked_array(values, row + column >= snippets)
    unit, name = (duration_s / snippets, "s") if duration_s else (1.0, "snippets")
    ax = axes_for(ax, 5.0, 4.0)
    roomy = min(style.axes_size_px(ax)) >= ROOMY_PX  # before the colour bar takes its part
    ax.set_facecolor(style.LIGHT)
    image = ax.imshow(
        inside, origin="lower", aspect="auto", cmap="viridis", vmin=0, vmax=1,
        extent=(-0.5 * unit, (snippets - 0.5) * unit, 0.5 * unit, (durations + 0.5) * unit),
        interpolation="nearest",
    )  # fmt: skip
    ax.get_figure(root=True).colorbar(image, ax=ax, label=label)
    if roomy and durations == snippets:
        ax.text(0.97, 0.97, "past the end\nof the video", transform=ax.transAxes, ha="right",
                va="top", color="#5A5A5A", fontsize=style.SMALL)  # fmt: skip
    if actions := as_spans(truth):
        ax.plot(
            [span.start_s for span in actions], [span.length_s for span in actions], "o",
            markersize=11, markerfacecolor="none", markeredgecolor=style.FALSE_ALARM,
            markeredgewidth=1.8, path_effects=style.EDGE, label="ground truth",
        )  # fmt: skip
    for level in sorted(levels):
        if inside.max() > level > inside.min():
            dashes = "solid" if level == max(levels) else "dashed"
            ax.contour(column[0] * unit, (row[:, 0] + 1) * unit, inside, levels=[level],
                       colors="white", linestyles=dashes, linewidths=1.4)  # fmt: skip
            edge = [patheffects.withStroke(linewidth=3.2, foreground=style.INK)]
            ax.plot([], [], color="white", linestyle=dashes, linewidth=1.4, path_effects=edge,
                    label=f"tIoU {level:g}")  # fmt: skip
    if roomy and ax.get_legend_handles_labels()[1]:
        place = {"loc": "upper right", "bbox_to_anchor": (1, 0.86), "frameon": False}
        if durations < snippets:  # no empty corner
            place = style.ABOVE | {"ncols": 3, "columnspacing": 1.2}
        ax.legend(borderaxespad=0.2, handletextpad=0.5, fontsize=style.SMALL, **place)
    ax.set(xlabel=f"start ({name})", ylabel=f"duration ({name})")
    return ax


def similarity(
    features: Any,
    segments: Segments = None,
    *,
    duration_s: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Cosine similarity of every snippet with every other; actions are framed on the diagonal.

    Args:
        features: (C, L), one column per snippet.
        segments: actions, drawn as frames with lines to both axes.
    """
    features = as_array(features).astype(float)
    if features.ndim != 2:
        raise ValueError(f"features must be (channels, snippets), got {tuple(features.shape)}")
    unit_columns = features / np.maximum(np.linalg.norm(features, axis=0, keepdims=True), 1e-12)
    length, name = (duration_s, "time (s)") if duration_s else (features.shape[1], "snippet")
    ax = axes_for(ax, 4.8, 4.0)
    image = ax.imshow(unit_columns.T @ unit_columns, extent=(0, length, length, 0), vmax=1,
                      cmap="viridis", interpolation="nearest")  # fmt: skip
    ax.get_figure(root=True).colorbar(image, ax=ax, label="cosine similarity")
    for span in as_spans(segments):
        look = {"edgecolor": style.FALSE_ALARM, "linewidth": 1.8, "path_effects": style.EDGE}
        corner, side = (span.start_s, span.start_s), span.length_s
        ax.add_patch(Rectangle(corner, side, side, fill=False, label="action", **look))
    ax.set(xlabel=name, ylabel=name, xlim=(0, length), ylim=(length, 0))
    return ax


def boundary_curves(
    start: Any,
    end: Any,
    truth: Segments = None,
    *,
    duration_s: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Start and end probability of every snippet, over the actions' true extents.

    Args:
        start, end: (L,) probabilities, drawn at the snippets' centres.
        truth: segments, shaded; their true starts and ends are marked on the upper edge.
    """
    start, end = as_array(start).astype(float), as_array(end).astype(float)
    if start.ndim != 1 or start.shape != end.shape:
        raise ValueError(f"start and end must both be (L,), got {start.shape} and {end.shape}")
    ax = axes_for(ax, 7.0, 2.2)
    length, name = (duration_s, "time (s)") if duration_s else (len(start), "snippet")
    centres = (np.arange(len(start)) + 0.5) * length / len(start)
    ax.plot(centres, start, color=style.TRUTH, label="start")
    ax.plot(centres, end, color=style.FALSE_ALARM, linestyle="--", label="end")
    if actions := shaded(ax, truth):
        top = np.ones(len(actions))
        ax.plot([span.start_s for span in actions], top, ">", markersize=7, clip_on=False,
                color=style.TRUTH, label="true start")  # fmt: skip
        ax.plot([span.end_s for span in actions], top, "s", markersize=5, clip_on=False,
                color=style.FALSE_ALARM, label="true end")  # fmt: skip
    ax.set(xlim=(0, length), ylim=(0, 1), xlabel=name, ylabel="probability")
    ax.legend(**style.BESIDE)
    return quiet_frame(ax)


def shaded(ax: Axes, segments: Segments) -> list[style.Span]:
    """Shade actions behind everything else, and return them as spans."""
    actions = as_spans(segments)
    for span in actions:
        ax.axvspan(span.start_s, span.end_s, facecolor="#CFE6F5", edgecolor="none", zorder=0)
    return actions
