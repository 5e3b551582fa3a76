"""What was found in one video, drawn over its time axis.

A lane holds segments; the ground truth is one lane, each method another. Against the ground truth
every detection is *found* or a *false alarm* and every action that no detection covers is *missed*.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from lofi.figures.maps import boundary_curves
from lofi.figures.style import (
    CYCLE,
    FALSE_ALARM,
    FOUND,
    HATCHES,
    INK,
    LIGHT,
    OUTLINE,
    SMALL,
    TRUTH,
    Span,
    as_array,
    as_spans,
    axes_for,
    axes_size_px,
    quiet_frame,
)

UNIT_IN = 0.46  # inches of a lane with one shelf
SHELF, GAP = 0.6, 0.38  # height of each shelf of a lane with several, space below it, in lanes
CHARACTER_PX, TEXT_PX = 7.2, 12.0  # width of an average character and height of the smallest text


class _Lane(NamedTuple):
    """What one lane shows and how it is stacked."""

    name: str
    spans: list[Span]  # best score first
    styles: list[tuple[str, str]]  # colour and hatch of each span
    shelves: list[int]  # 0 at the top
    missed: list[Span]
    is_truth: bool

    @property
    def height(self) -> float:
        return max(1.0, SHELF * (1 + max(self.shelves, default=0)))


def judge(
    truth: Sequence[Any], detections: Sequence[Any], tiou: float = 0.5
) -> tuple[list[bool], list[bool]]:
    """Which detections are right and which actions were found, at one tIoU threshold.

    Detections are visited from the highest score down; each takes the free ground-truth segment
    of its label (or of any label where one side has none) that it overlaps most, when their tIoU
    is at least `tiou`. A second detection of the same action is a false alarm, as in average
    precision.

    Returns:
        One flag per detection and one per ground-truth segment, in the given order.
    """
    actions, guesses = as_spans(truth), as_spans(detections)
    hit, found = [False] * len(guesses), [False] * len(actions)
    for i in sorted(range(len(guesses)), key=lambda i: -(guesses[i].score or 0.0)):
        overlaps = [
            0.0 if taken or not _same_label(action, guesses[i]) else _tiou(action, guesses[i])
            for action, taken in zip(actions, found)
        ]
        best = int(np.argmax(overlaps)) if overlaps else -1
        if best >= 0 and overlaps[best] >= tiou and overlaps[best] > 0:
            hit[i] = found[best] = True
    return hit, found


def timeline(
    rows: Mapping[str, Sequence[Any]],
    duration_s: float,
    *,
    truth: str = "ground truth",
    tiou: float = 0.5,
    top: int = 6,
    legend: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """One lane of segments per entry of `rows`, judged against the lane called `truth`.

    Detections that overlap in time are stacked inside their lane, the best at the top; a bar's
    height and opacity follow its score relative to the best of its lane. Without a lane called
    `truth` the lanes only differ by colour and hatch.

    Args:
        rows: lane name → segments in seconds, see `as_spans`; `(start, end, label, score)`.
        duration_s: length of the video.
        truth: name of the ground-truth lane.
        tiou: overlap from which a detection counts as found.
        top: only so many detections of a lane are judged and drawn, the best first; the lane's
            name says so.
        legend: explain the colours above the lanes.
        ax: where to draw; a new figure when None.
    Raises:
        ValueError: `duration_s` is not positive.
    """
    if not duration_s > 0:
        raise ValueError(f"duration_s must be positive, got {duration_s}")
    lanes = _lanes(rows, truth, tiou, top)
    total = _total_height(lanes)
    ax = axes_for(ax, 8.0, UNIT_IN * total + (1.0 if legend else 0.7))
    ax.set(xlim=(0, duration_s), ylim=(-total, 0), xlabel="time (s)")
    same_label = len({span.label for lane in lanes for span in lane.spans if span.label}) < 2
    middles, above = [], GAP / 2
    for lane in lanes:
        _draw_lane(ax, lane, -above, same_label)
        middles.append(-above - lane.height / 2)
        above += lane.height + GAP
    ax.set_yticks(middles, [lane.name for lane in lanes])
    ax.tick_params(axis="y", length=0)
    quiet_frame(ax).spines["left"].set_visible(False)
    if legend and truth in rows:
        columns = 4 if axes_size_px(ax)[0] > 520 else 2
        ax.legend(handles=timeline_legend(tiou), loc="lower left", bbox_to_anchor=(0, 1),
                  ncols=columns, frameon=False)  # fmt: skip
    return ax


def timeline_legend(tiou: float = 0.5) -> list[Patch]:
    """Legend handles of a judged timeline."""
    return [
        Patch(facecolor=TRUTH, edgecolor="white", label="ground truth"),
        Patch(facecolor=FOUND, hatch="///", edgecolor="white", label=f"found (tIoU ≥ {tiou:g})"),
        Patch(facecolor=FALSE_ALARM, hatch="xxx", edgecolor="white", label="false alarm"),
        Patch(facecolor=LIGHT, edgecolor=INK, linestyle="--", label="missed"),
    ]


def thumbnails(
    frames: Any,
    times_s: Sequence[float],
    duration_s: float,
    *,
    most: int = 10,
    ax: Axes | None = None,
) -> Axes:
    """A strip of frames near their times, undistorted; the marks under it show the exact times.

    Args:
        frames: (n, H, W, 3) uint8, or float in [0, 1].
        times_s: n times in seconds, increasing.
        duration_s: length of the video.
        most: of more frames than this, every second (third, …) is drawn.
        ax: where to draw; a new figure when None.
    Raises:
        ValueError: another shape, or not one time per frame.
    """
    frames, times = _thinned(frames, times_s, most)
    ax = axes_for(ax, 8.0, 0.55 + _strip_height(frames, 8.0))
    slot = min(np.diff(times).min() if len(times) > 1 else duration_s, duration_s / len(times))
    for frame, left in zip(frames, _side_by_side(times - slot / 2, slot, duration_s)):
        inset = ax.inset_axes(
            (left + 0.01 * slot, 0.08, 0.98 * slot, 0.92), transform=ax.get_xaxis_transform()
        )
        inset.imshow(frame, interpolation="nearest" if frame.shape[0] < 80 else "antialiased")
        inset.set(xticks=[], yticks=[], anchor="S")
    ax.plot(times, np.zeros(len(times)), "^", color=INK, markersize=5, clip_on=False)
    ax.set(xlim=(0, duration_s), ylim=(0, 1), xlabel="time (s)", yticks=[])
    ax.spines[["top", "right", "left"]].set_visible(False)
    return ax


def video_timeline(
    frames: Any,
    times_s: Sequence[float],
    rows: Mapping[str, Sequence[Any]],
    duration_s: float,
    *,
    boundaries: tuple[Any, Any] | None = None,
    truth: str = "ground truth",
    tiou: float = 0.5,
    top: int = 6,
    title: str = "",
) -> Figure:
    """Thumbnails over the lanes of `timeline`, on one time axis, for one whole video.

    Args:
        frames, times_s: see `thumbnails`.
        rows, truth, tiou, top: see `timeline`.
        duration_s: length of the video.
        boundaries: (start, end) probabilities, (L,) each, drawn between thumbnails and lanes.
        title: above everything, for example the video's id.
    """
    lanes_in = UNIT_IN * _total_height(_lanes(rows, truth, tiou, top))
    strip_in = 0.1 + _strip_height(_thinned(frames, times_s, 10)[0], 7.2)
    heights = [strip_in, *[1.1] * (boundaries is not None), lanes_in]
    figure, axes = plt.subplots(
        len(heights), 1, figsize=(9.0, sum(heights) + 1.1), height_ratios=heights, sharex=True,
        layout="constrained", squeeze=False,
    )  # fmt: skip
    strip, *middle, lanes = axes[:, 0]
    thumbnails(frames, times_s, duration_s, ax=strip)
    strip.set_xlabel("")
    strip.tick_params(axis="x", length=0, labelbottom=False)
    if middle:
        segments = rows.get(truth, ())
        boundary_curves(*boundaries, segments, duration_s=duration_s, ax=middle[0])
        middle[0].set_xlabel("")
    timeline(rows, duration_s, truth=truth, tiou=tiou, top=top, legend=False, ax=lanes)
    if truth in rows:
        handles = timeline_legend(tiou)
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    if title:
        figure.suptitle(title)
    return figure


def _lanes(rows: Mapping[str, Sequence[Any]], truth: str, tiou: float, top: int) -> list[_Lane]:
    actions = as_spans(rows.get(truth))
    lanes = []
    for i, (name, segments) in enumerate(rows.items()):
        spans = sorted(as_spans(segments), key=_score, reverse=True)
        missed: list[Span] = []
        if name == truth:
            styles = [(TRUTH, "")] * len(spans)
        else:
            name += f"\n({top} best of {len(spans)})" if len(spans) > top else ""
            spans = spans[:top]
            styles = [(CYCLE[i % len(CYCLE)], HATCHES[i % len(HATCHES)])] * len(spans)
        if name != truth and truth in rows:
            hit, found = judge(actions, spans, tiou)
            styles = [(FOUND, "///") if right else (FALSE_ALARM, "xxx") for right in hit]
            missed = [action for action, was_found in zip(actions, found) if not was_found]
        lanes.append(_Lane(name, spans, styles, _shelves(spans), missed, name == truth))
    return lanes


def _draw_lane(ax: Axes, lane: _Lane, top: float, same_label: bool) -> None:
    """Draw a lane downwards from the height `top`."""
    for span in lane.missed:
        box = Rectangle(
            (span.start_s, top - lane.height - 0.08), span.end_s - span.start_s, lane.height + 0.16
        )
        box.set(facecolor=LIGHT, edgecolor=INK, linestyle="--", zorder=0.5, label="missed")
        ax.add_patch(box)
    best = max((_score(span) for span in lane.spans), default=1.0) or 1.0
    full = lane.height / (1 + max(lane.shelves, default=0))
    for span, (colour, hatch), shelf in zip(lane.spans, lane.styles, lane.shelves):
        share = 1.0 if lane.is_truth else max(_score(span) / best, 0.0)
        tall = full * (0.62 + 0.32 * share)
        middle = top - (shelf + 0.5) * full
        bar = Rectangle((span.start_s, middle - tall / 2), span.end_s - span.start_s, tall)
        bar.set(facecolor=colour, hatch=hatch, edgecolor="white", alpha=0.45 + 0.55 * share)
        ax.add_patch(bar)
        _draw_label(ax, span, middle, tall, score_only=same_label and not lane.is_truth)


def _draw_label(ax: Axes, span: Span, middle: float, tall: float, score_only: bool) -> None:
    """Label and score inside the bar, as much of them as there is room for."""
    width_px, height_px = axes_size_px(ax)
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    if tall * height_px / (high - low) < TEXT_PX:
        return
    room = (span.end_s - span.start_s) * width_px / (right - left)
    score = "" if span.score is None else f"{span.score:.2f}"
    label = "" if score_only else span.label
    for text in (f"{label} {score}".strip(), label or score, score):
        if text and len(text) * CHARACTER_PX <= room:
            ax.text(
                (span.start_s + span.end_s) / 2, middle, text, fontsize=SMALL, color=INK,
                ha="center", va="center_baseline", path_effects=OUTLINE, clip_on=True,
            )  # fmt: skip
            return


def _thinned(frames: Any, times_s: Sequence[float], most: int) -> tuple[np.ndarray, np.ndarray]:
    """An evenly spaced choice of at most `most` frames and their times."""
    frames, times = as_array(frames), np.asarray(times_s, dtype=float)
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be (n, H, W, 3), got {tuple(frames.shape)}")
    if len(times) != len(frames) or not len(times):
        raise ValueError(f"{len(frames)} frames need as many times, got {len(times)}")
    stride = -(-len(frames) // most)
    first = (len(frames) - 1) % stride // 2
    return frames[first::stride], times[first::stride]


def _side_by_side(lefts: np.ndarray, slot: float, duration_s: float) -> np.ndarray:
    """Left edges moved as little as keeps every slot inside the video and off its neighbours."""
    lefts = lefts.copy()
    for i in range(len(lefts)):
        lefts[i] = max(lefts[i], lefts[i - 1] + slot if i else 0.0)
    for i in reversed(range(len(lefts))):
        limit = duration_s if i == len(lefts) - 1 else lefts[i + 1]
        lefts[i] = min(lefts[i], limit - slot)
    return lefts


def _strip_height(frames: np.ndarray, width_in: float) -> float:
    """Inches that make `frames` side by side fill a strip of `width_in` inches."""
    count, high, wide = frames.shape[:3]
    return float(np.clip(width_in / count * high / wide, 0.4, 1.4))


def _total_height(lanes: Sequence[_Lane]) -> float:
    return sum(lane.height + GAP for lane in lanes) or 1.0


def _tiou(a: Span, b: Span) -> float:
    overlap = max(0.0, min(a.end_s, b.end_s) - max(a.start_s, b.start_s))
    union = (a.end_s - a.start_s) + (b.end_s - b.start_s) - overlap
    return overlap / union if union > 0 else 0.0


def _same_label(a: Span, b: Span) -> bool:
    return not a.label or not b.label or a.label == b.label


def _score(span: Span) -> float:
    return 1.0 if span.score is None else span.score


def _shelves(spans: Sequence[Span]) -> list[int]:
    """The first shelf on which each span overlaps no earlier one."""
    shelves: list[list[Span]] = []
    chosen = []
    for span in spans:
        free = (
            level
            for level, shelf in enumerate(shelves)
            if all(span.end_s <= other.start_s or other.end_s <= span.start_s for other in shelf)
        )
        level = next(free, len(shelves))
        if level == len(shelves):
            shelves.append([])
        shelves[level].append(span)
        chosen.append(level)
    return chosen
