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

from lofi.figures import style
from lofi.figures.maps import boundary_curves
from lofi.figures.style import Segments, Span, as_spans, axes_for, fill, quiet_frame

GROUND_TRUTH = "ground truth"
UNIT_IN = 0.46  # inches of a lane with one shelf
SHELF, GAP = 0.6, 0.38  # height of each shelf of a lane with several, space below it, in lanes
FOUND_FROM = 0.5  # tIoU of a detection with an action
CHARACTER_PX, TEXT_PX = 7.2, 12.0  # width of an average character and height of the smallest text
GREY_STEP = 16  # pictures of noise make notebooks large, and nobody sees the difference
TRUE_ACTION = {"facecolor": style.TRUTH, "edgecolor": "white", "label": "ground truth"}
RIGHT = {"facecolor": style.FOUND, "edgecolor": "white", "hatch": "///"}
RIGHT["label"] = f"found (tIoU ≥ {FOUND_FROM:g})"
WRONG = {"facecolor": style.FALSE_ALARM, "edgecolor": "white", "hatch": "xxx"}
WRONG["label"] = "false alarm"
MISSED = {"facecolor": style.LIGHT, "edgecolor": style.INK, "linestyle": "--", "label": "missed"}
LEGEND = [Patch(**look) for look in (TRUE_ACTION, RIGHT, WRONG, MISSED)]


class _Lane(NamedTuple):
    """What one lane shows and how it is stacked."""

    name: str
    spans: list[Span]  # best score first
    looks: list[dict[str, Any]]  # of each span
    shelves: list[int]  # of each span, 0 at the top
    missed: list[Span]
    is_truth: bool

    @property
    def height(self) -> float:
        return max(1.0, SHELF * (1 + max(self.shelves, default=0)))


def judge(
    truth: Segments, detections: Segments, tiou: float = FOUND_FROM
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
        overlaps = {k: _overlap(action, guesses[i]) for k, action in enumerate(actions)}
        free = [k for k, overlap in overlaps.items() if overlap > 0 and not found[k]]
        best = max(free, key=overlaps.get, default=None)
        if best is not None and overlaps[best] >= tiou:
            hit[i] = found[best] = True
    return hit, found


def _overlap(action: Span, guess: Span) -> float:
    """tIoU, or 0 when the labels differ."""
    if action.label and guess.label and action.label != guess.label:
        return 0.0
    shared = max(0.0, min(action.end_s, guess.end_s) - max(action.start_s, guess.start_s))
    covered = action.length_s + guess.length_s - shared
    return shared / covered if covered > 0 else 0.0


def timeline(
    rows: Mapping[str, Segments],
    duration_s: float,
    *,
    truth: str = GROUND_TRUTH,
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
        top: only so many detections of a lane are judged and drawn, the best first; the lane's
            name says so.
        legend: explain the colours above the lanes.
    Raises:
        ValueError: `duration_s` is not positive.
    """
    if not duration_s > 0:
        raise ValueError(f"duration_s must be positive, got {duration_s}")
    lanes = _lanes(rows, truth, top)
    total = _total_height(lanes)
    ax = axes_for(ax, 8.0, UNIT_IN * total + (1.0 if legend else 0.7))
    ax.set(xlim=(0, duration_s), ylim=(-total, 0), xlabel="time (s)")
    one_label = len({span.label for lane in lanes for span in lane.spans if span.label}) < 2
    middles, above = [], GAP / 2
    for lane in lanes:
        _draw_lane(ax, lane, -above, one_label)
        middles.append(-above - lane.height / 2)
        above += lane.height + GAP
    ax.set_yticks(middles, [lane.name for lane in lanes])
    ax.tick_params(axis="y", length=0)
    quiet_frame(ax).spines["left"].set_visible(False)
    if legend and truth in rows:
        columns = 4 if style.axes_size_px(ax)[0] > 520 else 2
        ax.legend(handles=LEGEND, ncols=columns, **style.ABOVE)
    return ax


def thumbnails(
    frames: Any, times_s: Any, duration_s: float, *, most: int = 10, ax: Axes | None = None
) -> Axes:
    """A strip of frames near their times, undistorted; the marks under it show the exact times.

    Args:
        frames: (n, H, W, 3) uint8, or float in [0, 1].
        times_s: n times in seconds, increasing.
        duration_s: length of the video.
        most: of more frames than this, every second (third, …) is drawn.
    Raises:
        ValueError: another shape, or not one time per frame.
    """
    frames, times = _thinned(frames, times_s, most)
    count = len(times)
    ax = axes_for(ax, 8.0, 0.55 + _strip_height(frames, 8.0))
    slot = np.diff(times).min(initial=duration_s / count)
    # Moved as little as keeps every slot inside the video and off its neighbours.
    packed = np.arange(count) * slot
    lefts = np.maximum.accumulate(times - slot / 2 - packed).clip(0, duration_s - count * slot)
    for frame, left in zip(frames, lefts + packed):
        inset = ax.inset_axes(
            (left + 0.01 * slot, 0.08, 0.98 * slot, 0.92), transform=ax.get_xaxis_transform()
        )
        inset.imshow(frame, interpolation="nearest" if frame.shape[0] < 80 else "antialiased")
        inset.set(xticks=[], yticks=[], anchor="S")
    ax.plot(times, np.zeros(count), "^", color=style.INK, markersize=5, clip_on=False)
    ax.set(xlim=(0, duration_s), ylim=(0, 1), xlabel="time (s)", yticks=[])
    quiet_frame(ax).spines["left"].set_visible(False)
    return ax


def video_timeline(
    frames: Any,
    times_s: Any,
    rows: Mapping[str, Segments],
    duration_s: float,
    *,
    boundaries: tuple[Any, Any] | None = None,
    top: int = 6,
    title: str = "",
) -> Figure:
    """Thumbnails over the lanes of `timeline`, on one time axis, for one whole video.

    Args:
        frames, times_s: see `thumbnails`.
        rows, top: see `timeline`.
        duration_s: length of the video.
        boundaries: (start, end) probabilities, (L,) each, drawn between thumbnails and lanes.
        title: above everything, for example the video's id.
    """
    lanes_in = UNIT_IN * _total_height(_lanes(rows, GROUND_TRUTH, top))
    strip_in = 0.1 + _strip_height(_thinned(frames, times_s, 10)[0], 7.2)
    heights = [strip_in, *[1.1] * (boundaries is not None), lanes_in]
    figure, axes = plt.subplots(
        len(heights), 1, figsize=(9.0, sum(heights) + 1.1), height_ratios=heights, sharex=True,
        layout="constrained",
    )  # fmt: skip
    thumbnails(frames, times_s, duration_s, ax=axes[0]).tick_params(axis="x", length=0)
    if boundaries is not None:
        boundary_curves(*boundaries, rows.get(GROUND_TRUTH), duration_s=duration_s, ax=axes[1])
    for ax in axes[:-1]:
        ax.set_xlabel("")
    timeline(rows, duration_s, top=top, legend=False, ax=axes[-1])
    if GROUND_TRUTH in rows:
        figure.legend(handles=LEGEND, loc="outside lower center", ncols=4, frameon=False)
    if title:
        figure.suptitle(title)
    return figure


def _lanes(rows: Mapping[str, Segments], truth: str, top: int) -> list[_Lane]:
    actions = as_spans(rows.get(truth))
    lanes = []
    for i, (name, segments) in enumerate(rows.items()):
        is_truth = name == truth
        spans = sorted(as_spans(segments), key=_score, reverse=True)
        shown = spans if is_truth else spans[:top]
        looks, missed = [TRUE_ACTION if is_truth else fill(i)] * len(shown), []
        if truth in rows and not is_truth:
            hit, found = judge(actions, shown)
            looks = [RIGHT if right else WRONG for right in hit]
            missed = [action for action, was_found in zip(actions, found) if not was_found]
        cut = f"\n({top} best of {len(spans)})" if len(shown) < len(spans) else ""
        lanes.append(_Lane(name + cut, shown, looks, _shelves(shown), missed, is_truth))
    return lanes


def _shelves(spans: Sequence[Span]) -> list[int]:
    """For each span the first shelf on which it overlaps no earlier one."""
    shelves: list[int] = []
    for span in spans:
        taken = {
            shelf
            for shelf, other in zip(shelves, spans)
            if span.start_s < other.end_s and other.start_s < span.end_s
        }
        shelves.append(min(set(range(len(spans))) - taken))
    return shelves


def _draw_lane(ax: Axes, lane: _Lane, top: float, one_label: bool) -> None:
    """Draw a lane downwards from the height `top`."""
    for span in lane.missed:
        low = top - lane.height - 0.08
        box = Rectangle((span.start_s, low), span.length_s, lane.height + 0.16, **MISSED)
        ax.add_patch(box).set_zorder(0.5)
    best = max((_score(span) for span in lane.spans), default=1.0) or 1.0
    full = lane.height / (1 + max(lane.shelves, default=0))
    for span, look, shelf in zip(lane.spans, lane.looks, lane.shelves):
        share = 1.0 if lane.is_truth else max(_score(span) / best, 0.0)
        tall = full * (0.62 + 0.32 * share)
        middle = top - (shelf + 0.5) * full
        bar = Rectangle((span.start_s, middle - tall / 2), span.length_s, tall, **look)
        ax.add_patch(bar).set_alpha(0.45 + 0.55 * share)
        _draw_label(ax, span, middle, tall, score_only=one_label and not lane.is_truth)


def _draw_label(ax: Axes, span: Span, middle: float, tall: float, score_only: bool) -> None:
    """Label and score inside the bar, as much of them as there is room for."""
    width_px, height_px = style.axes_size_px(ax)
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    room = span.length_s * width_px / (right - left)
    score = "" if span.score is None else f"{span.score:.2f}"
    label = "" if score_only else span.label
    texts = (f"{label} {score}".strip(), label or score, score)
    fits = [text for text in texts if text and len(text) * CHARACTER_PX <= room]
    if fits and tall * height_px / (high - low) >= TEXT_PX:
        ax.text(
            (span.start_s + span.end_s) / 2, middle, fits[0], fontsize=style.SMALL, color=style.INK,
            ha="center", va="center_baseline", path_effects=style.OUTLINE, clip_on=True,
        )  # fmt: skip


def _thinned(frames: Any, times_s: Any, most: int) -> tuple[np.ndarray, np.ndarray]:
    """An evenly spaced choice of at most `most` frames and their times."""
    frames, times = style.as_array(frames), np.asarray(times_s, dtype=float)
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be (n, H, W, 3), got {tuple(frames.shape)}")
    if len(times) != len(frames) or not len(times):
        raise ValueError(f"{len(frames)} frames need as many times, got {len(times)}")
    stride = -(-len(frames) // most)
    first = (len(frames) - 1) % stride // 2
    return frames[first::stride], times[first::stride]


def _strip_height(frames: np.ndarray, width_in: float) -> float:
    """Inches that make `frames` side by side fill a strip of `width_in` inches."""
    count, high, wide = frames.shape[:3]
    return float(np.clip(width_in / count * high / wide, 0.4, 1.4))


def _total_height(lanes: Sequence[_Lane]) -> float:
    return sum(lane.height + GAP for lane in lanes) or 1.0


def _score(span: Span) -> float:
    return 1.0 if span.score is None else span.score
