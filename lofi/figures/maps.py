"""What the head sees and predicts for one video: proposal maps, similarities, boundaries, graphs.

Maps are (D, L): row d, column s is the anchor that starts at snippet s and covers d + 1 snippets,
[s/L, (s + d + 1)/L] of the video. Cells with s + d >= L reach past the end and are not drawn.
Times on the axes are seconds when `duration_s` is given, else snippets; segments likewise.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.patches import Arc, Rectangle

from lofi.figures.style import (
    FALSE_ALARM,
    FOUND,
    GREY,
    INK,
    LIGHT,
    SMALL,
    TRUTH,
    as_array,
    as_spans,
    axes_for,
    axes_size_px,
    quiet_frame,
)

LABELLED_UP_TO = 12  # snippets; a graph this small gets a number at every node


def valid_cells(durations: int, snippets: int) -> np.ndarray:
    """(D, L) bool, True where the anchor ends inside the video: s + d <= L - 1."""
    return np.arange(durations)[:, None] + np.arange(snippets)[None, :] <= snippets - 1


def confidence_map(
    values: Any,
    *,
    truth: Sequence[Any] | None = None,
    duration_s: float | None = None,
    label: str = "confidence",
    limits: tuple[float, float] = (0.0, 1.0),
    ax: Axes | None = None,
) -> Axes:
    """Heat map over all anchors; start to the right, duration upwards.

    Args:
        values: (D, L) array or tensor.
        truth: segments whose anchors are marked with circles.
        duration_s: length of the video; None counts in snippets.
        label: name of the values, beside the colour bar.
        limits: values at the two ends of the colour scale.
        ax: where to draw; a new figure when None.
    Raises:
        ValueError: `values` is not two-dimensional.
    """
    values = as_array(values).astype(float)
    if values.ndim != 2:
        raise ValueError(f"a map is (durations, snippets), got {tuple(values.shape)}")
    durations, snippets = values.shape
    unit = duration_s / snippets if duration_s else 1.0
    ax = axes_for(ax, 5.0, 4.0)
    roomy = _is_roomy(ax)  # before the colour bar takes its part
    ax.set_facecolor(LIGHT)
    image = ax.imshow(
        np.ma.masked_array(values, ~valid_cells(durations, snippets)), origin="lower",
        extent=(-0.5 * unit, (snippets - 0.5) * unit, 0.5 * unit, (durations + 0.5) * unit),
        aspect="auto", cmap="viridis", vmin=limits[0], vmax=limits[1], interpolation="nearest",
    )  # fmt: skip
    ax.get_figure(root=True).colorbar(image, ax=ax, label=label)
    if roomy and durations == snippets:
        ax.text(0.97, 0.97, "past the end\nof the video", transform=ax.transAxes, ha="right",
                va="top", color="#5A5A5A", fontsize=SMALL)  # fmt: skip
    actions = as_spans(truth)
    for colour, width, name in (("white", 3.5, "_edge"), (FALSE_ALARM, 1.8, "ground truth")):
        if actions:
            ax.plot(
                [span.start_s for span in actions], [s.end_s - s.start_s for s in actions], "o",
                markersize=11, markerfacecolor="none", markeredgecolor=colour,
                markeredgewidth=width, label=name,
            )  # fmt: skip
    if actions:
        _map_legend(ax, roomy, durations == snippets)
    name = "s" if duration_s else "snippets"
    ax.set(xlabel=f"start ({name})", ylabel=f"duration ({name})")
    return ax


def label_map(
    tiou: Any,
    *,
    truth: Sequence[Any] | None = None,
    duration_s: float | None = None,
    levels: Sequence[float] = (0.7, 0.9),
    ax: Axes | None = None,
) -> Axes:
    """The training target: best tIoU of every anchor with any action, (D, L) in [0, 1].

    `levels` are outlined in white (the losses treat cells above 0.7 and above 0.9 as positive;
    G-TAD section 3.4), the highest with a full line. Other arguments as in `confidence_map`.
    """
    values = as_array(tiou).astype(float)
    ax = axes_for(ax, 5.0, 4.0)
    roomy = _is_roomy(ax)
    ax = confidence_map(
        values, truth=truth, duration_s=duration_s, label="tIoU with the best action", ax=ax
    )
    durations, snippets = values.shape
    unit = duration_s / snippets if duration_s else 1.0
    inside = np.ma.masked_array(values, ~valid_cells(durations, snippets))
    for i, level in enumerate(sorted(levels)):
        if inside.max() > level > inside.min():
            style = "solid" if i == len(levels) - 1 else "dashed"
            ax.contour(
                np.arange(snippets) * unit, (np.arange(durations) + 1) * unit, inside,
                levels=[level], colors="white", linestyles=style, linewidths=1.4,
            )  # fmt: skip
            edge = [patheffects.withStroke(linewidth=3.2, foreground=INK)]
            ax.plot([], [], color="white", linestyle=style, linewidth=1.4, path_effects=edge,
                    label=f"tIoU {level:g}")  # fmt: skip
    if ax.get_legend_handles_labels()[1]:
        _map_legend(ax, roomy, durations == snippets)
    return ax


def similarity(
    features: Any,
    segments: Sequence[Any] | None = None,
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
    cosine = unit_columns.T @ unit_columns
    snippets = cosine.shape[0]
    length = duration_s or snippets
    ax = axes_for(ax, 4.8, 4.0)
    image = ax.imshow(
        cosine, extent=(0, length, length, 0), cmap="viridis", vmax=1, interpolation="nearest"
    )
    ax.get_figure(root=True).colorbar(image, ax=ax, label="cosine similarity")
    for span in as_spans(segments):
        size = span.end_s - span.start_s
        for colour, width in (("white", 3.5), (FALSE_ALARM, 1.8)):
            frame = Rectangle((span.start_s, span.start_s), size, size, fill=False)
            frame.set(edgecolor=colour, linewidth=width, label="action")
            ax.add_patch(frame)
    name = "time (s)" if duration_s else "snippet"
    ax.set(xlabel=name, ylabel=name, xlim=(0, length), ylim=(length, 0))
    return ax


def boundary_curves(
    start: Any,
    end: Any,
    truth: Sequence[Any] | None = None,
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
    length = duration_s or len(start)
    centres = (np.arange(len(start)) + 0.5) * length / len(start)
    _shade_actions(ax, truth)
    ax.plot(centres, start, color=TRUTH, label="start")
    ax.plot(centres, end, color=FALSE_ALARM, linestyle="--", label="end")
    actions = as_spans(truth)
    if actions:
        marks = {"color": TRUTH, "linestyle": "none", "clip_on": False}
        starts, ends = [s.start_s for s in actions], [s.end_s for s in actions]
        ax.plot(starts, [1.0] * len(starts), ">", **marks, markersize=7, label="true start")
        marks["color"] = FALSE_ALARM
        ax.plot(ends, [1.0] * len(ends), "s", **marks, markersize=5, label="true end")
    ax.set(xlim=(0, length), ylim=(0, 1), ylabel="probability")
    ax.set_xlabel("time (s)" if duration_s else "snippet")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return quiet_frame(ax)


def neighbour_graph(
    knn: Any,
    segments: Sequence[Any] | None = None,
    *,
    duration_s: float | None = None,
    snippet: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Which snippets a GCNeXt block joins: the time line with an arc per semantic edge.

    Arcs between two snippets of actions (the same or another) are green and thick, arcs between
    an action and its surroundings orange and dashed, all others grey.

    Args:
        knn: (L, k) or (k, L) indices of the nearest neighbours in feature space; self is not drawn.
        segments: actions, shaded.
        duration_s: length of the video; None counts in snippets.
        snippet: draw only the arcs that leave this snippet.
    Raises:
        ValueError: indices outside 0 … L - 1.
    """
    edges = as_array(knn).astype(int)
    if edges.ndim != 2:
        raise ValueError(f"knn must be (snippets, k), got {tuple(edges.shape)}")
    edges = edges.T if edges.shape[0] < edges.shape[1] else edges
    count = edges.shape[0]
    if edges.min() < 0 or edges.max() >= count:
        raise ValueError(
            f"knn holds indices {edges.min()} … {edges.max()}, expected 0 … {count - 1}"
        )
    unit = duration_s / count if duration_s else 1.0
    centres = (np.arange(count) + 0.5) * unit
    spans = as_spans(segments)
    inside = np.array([any(s.start_s <= t < s.end_s for s in spans) for t in centres])
    ax = axes_for(ax, 8.0, 2.8)
    _shade_actions(ax, segments)
    pairs = {(min(t, u), max(t, u)) for t in range(count) for u in edges[t]
             if u != t and snippet in (None, t)}  # fmt: skip
    reach = max((b - a for a, b in pairs), default=1)
    for a, b in sorted(pairs):
        colour, style, width = GREY, "-", 0.8
        if inside[a] and inside[b]:
            colour, width = FOUND, 1.8
        elif inside[a] or inside[b]:
            colour, style, width = FALSE_ALARM, "--", 1.2
        middle, span = (centres[a] + centres[b]) / 2, (b - a) * unit
        ax.add_patch(
            Arc((middle, 0), span, 2 * (b - a) / reach, theta1=0, theta2=180, color=colour,
                linestyle=style, linewidth=width)
        )  # fmt: skip
    ax.plot(centres, np.zeros(count), "-", color=INK, linewidth=0.8, zorder=2)
    ax.scatter(centres, np.zeros(count), s=22, zorder=3, edgecolor=INK,
               c=np.where(inside, TRUTH, "white"))  # fmt: skip
    if snippet is not None:
        ax.plot(centres[snippet], 0, "D", color=INK, markersize=8, zorder=4)
    _explain_graph(ax, inside, count, centres)
    ax.set(xlim=(0, count * unit), ylim=(-0.12, 1.08), yticks=[])
    ax.set_xlabel("time (s)" if duration_s else "snippet")
    quiet_frame(ax).spines["left"].set_visible(False)
    return ax


def _is_roomy(ax: Axes) -> bool:
    """Whether texts fit into a map; small multiples leave their explanation to the caption."""
    return min(axes_size_px(ax)) >= 230


def _map_legend(ax: Axes, roomy: bool, in_triangle: bool) -> None:
    """In the empty corner of a full map, above a map with few durations."""
    spacing = {"frameon": False, "borderaxespad": 0.2, "handletextpad": 0.5, "fontsize": SMALL}
    if roomy and in_triangle:
        ax.legend(loc="upper right", bbox_to_anchor=(1, 0.86), **spacing)
    elif roomy:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, columnspacing=1.2, **spacing)


def _explain_graph(ax: Axes, inside: np.ndarray, count: int, centres: np.ndarray) -> None:
    handles = [plt.Line2D([], [], color=INK, linewidth=0.8, marker="o", markerfacecolor="white",
                          label="temporal edges")]  # fmt: skip
    if inside.any():
        handles += [
            plt.Line2D([], [], color=FOUND, linewidth=1.8, label="action – action"),
            plt.Line2D([], [], color=FALSE_ALARM, linestyle="--", label="action – other"),
        ]
    handles.append(plt.Line2D([], [], color=GREY, linewidth=0.8, label="other semantic edge"))
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
    if count <= LABELLED_UP_TO:
        ax.set_xticks(centres, range(count))


def _shade_actions(ax: Axes, segments: Sequence[Any] | None) -> None:
    for span in as_spans(segments):
        ax.axvspan(span.start_s, span.end_s, facecolor="#CFE6F5", edgecolor="none", zorder=0)
