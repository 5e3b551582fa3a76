"""What was found in one video, drawn over its time axis.

A lane holds segments; the ground truth is one lane, each method another. Against the ground truth
every detection is *found* or a *false alarm* and every action that no detection covers is *missed*.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from lofi.detection.results import shelves
from lofi.figures import style
from lofi.figures.maps import boundary_curves

Rows = Mapping[str, style.Segments]  # lane name → segments in seconds, (start, end, label, score)
GROUND_TRUTH = "ground truth"
UNIT_IN = 0.46  # inches of a lane with one shelf
SHELF, GAP = 0.6, 0.38  # height of each shelf of a lane with several, space below it, in lanes
FOUND_FROM = 0.5  # tIoU of a detection with an action
CHARACTER_PX, TEXT_PX = 7.2, 12.0  # width of an average character and height of the smallest text
MOST = 10  # frames in a strip
TRUE_ACTION = dict(facecolor=style.TRUTH, edgecolor="white", label="ground truth")
RIGHT = dict(facecolor=style.FOUND, edgecolor="white", hatch="///", label="found (tIoU ≥ 0.5)")
WRONG = dict(facecolor=style.FALSE_ALARM, edgecolor="white", hatch="xxx", label="false alarm")
MISSED = dict(facecolor=style.LIGHT, edgecolor=style.INK, linestyle="--", label="missed")
LEGEND = [Patch(**look) for look in (TRUE_ACTION, RIGHT, WRONG, MISSED)]


def judge(truth: style.Segments, detections: style.Segments) -> tuple[list[bool], list[bool]]:
    """Which detections are right and which actions were found, at tIoU 0.5.

    From the highest score down each detection takes the free ground-truth segment of its label (or
    of any label where one side has none) that it overlaps most, when their tIoU is large enough.
    A second detection of the same action is a false alarm, as in average precision. Returns one
    flag per detection and one per ground-truth segment, in the given order.
    """
    actions, guesses = style.as_spans(truth), style.as_spans(detections)
    hit, found = [False] * len(guesses), [False] * len(actions)
    for i in sorted(range(len(guesses)), key=lambda i: -(guesses[i].score or 0.0)):
        guess, overlaps = guesses[i], [0.0]
        for action, taken in zip(actions, found):
            other = action.label and guess.label and action.label != guess.label
            shared = min(action.end_s, guess.end_s) - max(action.start_s, guess.start_s)
            covered = action.length_s + guess.length_s - shared
            overlaps.append(shared / covered if shared > 0 and not (taken or other) else 0.0)
        if max(overlaps) >= FOUND_FROM:
            hit[i] = found[overlaps.index(max(overlaps)) - 1] = True
    return hit, found


class _Lane(NamedTuple):
    """What one lane shows and how it is stacked."""

    name: str
    spans: list[style.Span]  # best score first
    shelves: list[int]  # of each span, 0 at the top
    height: float


def _lanes(rows: Rows, truth: str, top: int) -> list[_Lane]:
    lanes = []
    for name, segments in rows.items():
        spans = sorted(style.as_spans(segments), key=lambda span: -(span.score or 0.0))
        if name != truth and len(spans) > top:
            name, spans = f"{name}\n({top} best of {len(spans)})", spans[:top]
        places = shelves(spans)
        height = max(1.0, SHELF * (1 + max(places, default=0)))
        lanes.append(_Lane(name, spans, places, height))
    return lanes


def _total_height(lanes: list[_Lane]) -> float:
    return sum(lane.height + GAP for lane in lanes) or 1.0


def timeline(
    rows: Rows, duration_s: float, *, truth: str = GROUND_TRUTH, top: int = 6,
    ax: style.Canvas = None,
) -> Axes:  # fmt: skip
    """One lane of segments per entry of `rows`, judged against the lane called `truth`.

    Detections that overlap in time are stacked inside their lane, the best at the top; a bar's
    height and opacity follow its score relative to the best of its lane. Without a lane called
    `truth` the lanes only differ by colour and hatch. A figure of its own explains the colours.

    Only the `top` best detections of a lane are judged and drawn; its name says so.
    """
    if not duration_s > 0:
        raise ValueError(f"duration_s must be positive, got {duration_s}")
    lanes = _lanes(rows, truth, top)
    total = _total_height(lanes)
    legend, ax = ax is None and truth in rows, style.axes_for(ax, 8.0, UNIT_IN * total + 1.0)
    ax.set(xlim=(0, duration_s), ylim=(-total, 0), xlabel="time (s)")
    one_label = len({span.label for lane in lanes for span in lane.spans if span.label}) < 2
    middles, above = [], -GAP / 2
    for i, lane in enumerate(lanes):
        looks = [TRUE_ACTION if lane.name == truth else style.fill(i)] * len(lane.spans)
        if lane.name != truth and truth in rows:
            actions = style.as_spans(rows[truth])
            hit, found = judge(actions, lane.spans)
            looks = [RIGHT if right else WRONG for right in hit]
            low, tall = above - lane.height - 0.08, lane.height + 0.16
            for action in (action for action, was_found in zip(actions, found) if not was_found):
                box = Rectangle((action.start_s, low), action.length_s, tall, **MISSED)
                ax.add_patch(box).set_zorder(0.5)
        _draw_bars(ax, lane, looks, above, one_label)
        middles.append(above - lane.height / 2)
        above -= lane.height + GAP
    ax.set_yticks(middles, [style.literal(lane.name) for lane in lanes])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    if legend:
        ax.legend(handles=LEGEND, ncols=4, **style.ABOVE)
    return ax


def _draw_bars(ax: Axes, lane: _Lane, looks: list[dict], above: float, one_label: bool) -> None:
    """Bars of a lane downwards from the height `above`; texts inside as far as there is room."""
    width_px, height_px = style.axes_size_px(ax)
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    best = max((span.score or 0.0 for span in lane.spans), default=0.0) or 1.0
    full = lane.height / (1 + max(lane.shelves, default=0))
    for span, look, shelf in zip(lane.spans, looks, lane.shelves):
        is_truth = look is TRUE_ACTION
        share = 1.0 if is_truth or span.score is None else max(span.score / best, 0.0)
        tall = full * (0.62 + 0.32 * share)
        middle = above - (shelf + 0.5) * full
        bar = Rectangle((span.start_s, middle - tall / 2), span.length_s, tall, **look)
        ax.add_patch(bar).set_alpha(0.45 + 0.55 * share)
        score = "" if span.score is None else f"{span.score:.2f}"
        label = "" if one_label and not is_truth else span.label
        room = span.length_s * width_px / (right - left) / CHARACTER_PX
        texts = (f"{label} {score}".strip(), label or score, score)
        fitting = [text for text in texts if 0 < len(text) <= room]
        if fitting and tall * height_px / (high - low) >= TEXT_PX:
            ax.text(
                (span.start_s + span.end_s) / 2, middle, style.literal(fitting[0]),
                fontsize=style.SMALL, color=style.INK, ha="center", va="center_baseline",
                path_effects=style.OUTLINE, clip_on=True,
            )  # fmt: skip


def thumbnails(
    frames: Any, times_s: Any, duration_s: float, *, most: int = MOST, ax: style.Canvas = None
) -> Axes:
    """A strip of frames near their times, undistorted; the marks under it show the exact times.

    Args:
        frames: (n, H, W, 3) uint8, or float in [0, 1]; of more than `most` every second (third, …)
            is drawn.
        times_s: n times in seconds, increasing, in a video of `duration_s`.
    """
    frames, times, strip_in = _strip(frames, times_s, most, 8.0)
    count = len(times)
    ax = style.axes_for(ax, 8.0, 0.55 + strip_in)
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
    ax.spines["left"].set_visible(False)
    return ax


def pictures(frames: Any, what: str) -> np.ndarray:
    frames = style.as_array(frames, 4, what)
    if frames.shape[-1] != 3:
        raise ValueError(f"{what}, got {frames.shape}")
    return frames


def _strip(
    frames: Any, times_s: Any, most: int, width_in: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """At most `most` evenly chosen frames, their times, and the strip's height in inches."""
    frames, times = pictures(frames, "frames must be (n, H, W, 3)"), style.as_array(times_s)
    if len(times) != len(frames) or not len(times):
        raise ValueError(f"{len(frames)} frames need as many times, got {len(times)}")
    stride = -(-len(frames) // most)
    first = (len(frames) - 1) % stride // 2
    frames, times = frames[first::stride], times[first::stride].astype(float)
    count, high, wide = frames.shape[:3]
    return frames, times, float(np.clip(width_in / count * high / wide, 0.4, 1.4))


def video_timeline(
    frames: Any, times_s: Any, rows: Rows, duration_s: float, *,
    boundaries: tuple[Any, Any] | None = None, top: int = 6, title: str,
) -> Figure:  # fmt: skip
    """Thumbnails over the lanes of `timeline`, on one time axis, for one whole video.

    Args:
        frames, times_s: see `thumbnails`; rows, duration_s, top: see `timeline`.
        boundaries: (start, end) probabilities, (L,) each, drawn between thumbnails and lanes.
    """
    lanes_in = UNIT_IN * _total_height(_lanes(rows, GROUND_TRUTH, top))
    strip_in = 0.1 + _strip(frames, times_s, MOST, 7.2)[2]
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
    timeline(rows, duration_s, top=top, ax=axes[-1])
    if GROUND_TRUTH in rows:
        figure.legend(handles=LEGEND, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(style.literal(title))
    return figure
