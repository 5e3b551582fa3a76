"""Which frames make a snippet, where snippets and windows lie in time, and which part is cut out.

Index arithmetic only: nothing here opens a file (`lofi.data.reading` does).
Sources: Xu et al., NeurIPS 2021, section 3 (L snippets of F frames, 64 frames at stride 8); the
frame grid, which the paper leaves open, follows the centres of ETAD and OpenTAD; windows over long
videos follow the released G-TAD for THUMOS14 (branch master).
L snippets a video, F frames a snippet, S pixels a side, N decoded frames. Frame i covers
[i, i + 1) / fps seconds, so its middle is at (i + 0.5) / fps. All rounding is half up,
floor(x + 0.5), done in whole numbers where frames are chosen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from lofi.data.annotations import Segment, TrimmedClip, Video
from lofi.data.video import VideoError
from lofi.fidelity import Fidelity

if TYPE_CHECKING:
    import torch

RULES = ("centred", "tile", "bsp", "window")
KEPT = 0.9  # share of a segment that must lie inside for a training window to be kept
Time = TypeVar("Time", float, np.ndarray, "torch.Tensor")


def snippet_to_seconds(position: Time, duration_s: float, snippets: int) -> Time:
    """Seconds of a position on the snippet axis, position · duration / L.

    Snippet i covers [i, i + 1), its middle is i + 0.5; a head's boundary scores are read at edges.
    """
    return position * (duration_s / snippets)


def seconds_to_snippet(seconds: Time, duration_s: float, snippets: int) -> Time:
    """Position on the snippet axis, not rounded; the inverse of `snippet_to_seconds`."""
    return seconds * (snippets / duration_s)


def snippet_centres(num_frames: int, snippets: int) -> np.ndarray:
    """Middles of the snippets in frames, (i + 0.5) · N / L - 0.5: float64 (L,)."""
    return (np.arange(snippets) + 0.5) * num_frames / snippets - 0.5


def frame_indices(
    num_frames: int, fidelity: Fidelity, frame_stride: int = 8, rule: str = "centred",
    jitter: Sequence[float] | None = None, span: tuple[int, int] | None = None,
) -> np.ndarray:  # fmt: skip
    """Frames of every snippet: int64 (L, F), in [0, N - 1].

    Args:
        frame_stride: frames between two frames of a snippet ("centred" only).
        rule: "centred": F frames at distance `frame_stride` around the snippet's middle, clamped
            to the video (frames repeat at its ends). "tile": F frames evenly inside the
            snippet's own interval. "bsp": F consecutive frames around the middle. "window":
            "centred", in a `Grid.sliding` whose windows do not leave the video.
        jitter: L numbers in [0, 1), where each snippet's middle lies in its interval of N / L
            frames; None = 0.5, the middle of it.
        span: frames [first, end) that the L snippets divide, instead of all N: one window of a long
            video. It may reach beyond the video, whose last frame then repeats.
    Raises:
        ValueError: no frames, stride below 1, unknown rule, jitter not of length L, empty span.
    """
    first, end = span or (0, num_frames)
    length, frames = fidelity.snippets, fidelity.frames
    if num_frames < 1 or frame_stride < 1:
        wanted = "frame_indices needs at least 1 frame and stride 1"
        raise ValueError(f"{wanted}, got {num_frames}, {frame_stride}")
    if end <= first:
        raise ValueError(f"span is frames [{first}, {end}), expected first < end")
    if rule not in RULES:
        raise ValueError(f"unknown frame rule {rule!r}; known: {', '.join(RULES)}")
    if jitter is not None and len(jitter) != length:
        found = f"jitter for {len(jitter)} snippets, the fidelity has {length}"
        raise ValueError(f"{found}; draw one number each")
    # Twice the place of the middle in its interval, in frames over L; the middle itself is exact.
    whole = end - first
    inside = np.full(length, whole) if jitter is None else np.asarray(jitter) * 2 * whole
    inside = np.floor(inside + 0.5).astype(np.int64)[:, None]
    start = 2 * np.arange(length, dtype=np.int64)[:, None] * whole
    place = np.arange(frames, dtype=np.int64)
    if rule == "tile":  # the centred grid of L·F snippets of one frame each
        shift = (inside - whole) * frames
        index = (start * frames + (2 * place + 1) * whole + shift) // (2 * length * frames)
    else:
        stride = 1 if rule == "bsp" else frame_stride
        # floor(middle + offset + 0.5) over the common denominator 2 L: no float tie decides
        index = (start + inside + (2 * place - (frames - 1)) * stride * length) // (2 * length)
    return (first + index).clip(0, num_frames - 1)


def resampled_frames(num_frames: int, fps: float, resample_fps: float) -> np.ndarray:
    """The video as if it had another frame rate: int64 (M,), the frame on screen in each middle.

    M = N · resample_fps / fps (rounded, at least 1; `resample_fps` 0: N) divide the length evenly.
    """
    if resample_fps < 0:
        raise ValueError(f"resample_fps is {resample_fps}, expected 0 (as decoded) or frames/s")
    count = num_frames
    if resample_fps:
        count = max(1, math.floor(num_frames * resample_fps / fps + 0.5))
    return (2 * np.arange(count, dtype=np.int64) + 1) * num_frames // (2 * count)


# ---------------------------------------------------------------------------- views


@dataclass(frozen=True)
class Augmentation:
    """One random draw that all snippets of a video share; relative, so it fits any fidelity."""

    top: float = 0.5  # of the crop, 0 = at the upper border, 1 = at the lower
    left: float = 0.5  # of the crop, 0 = at the left border, 1 = at the right
    flip: bool = False  # mirror left and right
    time: float = 0.5  # of the window in a trimmed clip, 0 = earliest, 1 = latest
    jitter: tuple[float, ...] | None = None  # see `frame_indices`
    scale: tuple[float, float] | None = None  # height and width of the crop over the short side

    @classmethod
    def draw(cls, generator: "torch.Generator | None" = None, snippets: int = 0) -> "Augmentation":
        """Uniform, mirrored half of the time; takes 4 + `snippets` numbers of a CPU generator."""
        import torch  # not needed to look at files, and slow to import

        top, left, flip, time = torch.rand(4, generator=generator).tolist()
        jitter = tuple(torch.rand(snippets, generator=generator).tolist()) if snippets else None
        return cls(top, left, flip < 0.5, time, jitter)


CENTRE = Augmentation()  # the test view: centre crop, not mirrored, middle of a trimmed clip


class Crop(NamedTuple):
    """How a frame becomes a square: scale to height x width, cut pixels² from (top, left)."""

    height: int
    width: int
    top: int
    left: int
    pixels: int
    flip: bool


def crop_of(
    height: int, width: int, pixels: int, crop_ratio: float = 0.875,
    augmentation: Augmentation | None = None, squeeze: bool = False,
) -> Crop:  # fmt: skip
    """Scale and crop that show the same field of view at every S.

    The video is scaled to a short side of S / crop_ratio, which lies in (0, 1] (paper: 224 / 256);
    with `squeeze` the long side becomes as short, so that nothing beside the square is lost. Where
    the augmentation has a scale, it says how large the crop is, and `crop_ratio` does not.
    """
    if not 0 < crop_ratio <= 1:
        raise ValueError(f"crop_ratio must be in (0, 1], got {crop_ratio}")
    view = augmentation or CENTRE
    short = max(pixels, math.floor(pixels / crop_ratio + 0.5))
    scale = short / min(height, width)
    new_height, new_width = (max(short, math.floor(s * scale + 0.5)) for s in (height, width))
    if squeeze:
        new_height = new_width = short
    if view.scale:
        sides = (height, width) if squeeze else [min(height, width)] * 2
        cuts = [round(side * ratio) for side, ratio in zip(sides, view.scale)]
        cuts = [pixels if abs(cut - pixels) < 3 else max(1, cut) for cut in cuts]  # as TSM snaps
        new_height, new_width = (
            max(pixels, round(whole * pixels / cut)) for whole, cut in zip((height, width), cuts)
        )
    top = math.floor(view.top * (new_height - pixels) + 0.5)
    left = math.floor(view.left * (new_width - pixels) + 0.5)
    return Crop(new_height, new_width, top, left, pixels, view.flip)


def window_indices(
    clip: TrimmedClip, num_frames: int, fps: float, frames: int, frame_stride: int,
    augmentation: Augmentation | None = None,
) -> np.ndarray:  # fmt: skip
    """Frames of one window of a trimmed clip: int64 (F,); see `TrimmedRequest`."""
    start_s = clip.start_s or 0.0
    if start_s * fps >= num_frames:
        found = f"the clip starts at {start_s:g} s, but {num_frames / fps:g} s decode"
        raise VideoError(f"{clip.path}: {found}; correct its times or leave it out")
    # frames whose middle lies in [start, end), at least one
    first = min(math.ceil(start_s * fps - 0.5), num_frames - 1)
    end = num_frames if clip.end_s is None else math.ceil(clip.end_s * fps - 0.5)
    end = max(first + 1, min(end, num_frames))
    spare = end - first - frames * frame_stride
    time = (augmentation or CENTRE).time if spare > 0 else 0.5
    window = first + math.floor(time * spare + 0.5)
    steps = window + frame_stride // 2 + frame_stride * np.arange(frames, dtype=np.int64)
    return steps.clip(first, end - 1)


# ---------------------------------------------------------------------------- sliding windows


class Window(NamedTuple):
    """L snippets of a long video, one every `stride` frames; the next window begins L / 2 further.

    In frames of the video, not of G-TAD's tables (seconds times a nominal 30, 25 or 24). The last
    snippets may lie beyond the end (they are zero in training).
    """

    first_frame: int  # of the first snippet
    last_frame: int  # of the last snippet
    rows: tuple[int, ...] = ()  # which segments reach into the window


def windows(
    num_frames: int, snippets: int = 256, stride: int = 5, segments: ArrayLike | None = None
) -> list[Window]:
    """Windows of one video, in order; at least one.

    With segments, (N, 2) start < end in frames of the video, only the windows that hold more than
    90 % of some segment, with every segment that they touch. ValueError for a number below 1.
    """
    if min(num_frames, snippets, stride) < 1:
        found = f"windows of {snippets} snippets, {stride} frames apart, in {num_frames} frames"
        raise ValueError(f"{found}: expected numbers of at least 1")
    count = -(-num_frames // stride)
    starts = list(range(0, max(count - snippets, 0) + 1, max(1, snippets // 2)))
    if count - snippets - starts[-1] > snippets / stride:  # else the rest is left, as released
        starts.append(count - snippets)
    found = [Window(start * stride, (start + snippets - 1) * stride) for start in starts]
    if segments is None:
        return found
    start, end = np.asarray(segments, np.float64).reshape(-1, 2).T
    kept = []
    for low, last, _ in found:
        inside = np.minimum(end, last + stride) - np.maximum(start, low)  # the last one is whole
        if (inside > KEPT * (end - start)).any():
            touched = np.flatnonzero((end >= low) & (start <= last))
            kept.append(Window(low, last, tuple(touched.tolist())))
    return kept


# ---------------------------------------------------------------------------- grids


@dataclass(frozen=True)
class Grid:
    """T equal steps over a stretch of a video; step i is [start_s + i · step_s, + step_s).

    Whole videos in T steps have `stride` 0 and start at 0; strided ones have frame numbers too.
    """

    steps: int  # T
    length_s: float  # that the T steps divide; a window may reach beyond the video's end
    duration_s: float  # of the video; proposals are clipped to [0, duration_s]
    stride: int = 0  # frames between two steps; 0 = the whole video, whatever its rate
    fps: float = 0.0  # frames a second that `stride` counts
    num_frames: int = 0  # of the video, counted at `fps`
    first_frame: int = 0  # of the first step
    # Left edge of step 0 minus the time of `first_frame`, (window - stride) / 2 frames of features.
    offset_s: float = 0.0

    @staticmethod
    def whole(steps: int, duration_s: float) -> "Grid":
        """The grid of a video that is divided into `steps` equal parts."""
        return Grid(steps, duration_s, duration_s)

    @staticmethod
    def strided(
        steps: int, stride: int, fps: float, num_frames: int, offset_s: float = 0.0
    ) -> "Grid":
        """The grid of a video with a step every `stride` frames from its first frame on."""
        length_s, duration_s = steps * stride / fps, num_frames / fps
        return Grid(steps, length_s, duration_s, stride, fps, num_frames, 0, offset_s)

    @staticmethod
    def sliding(num_frames: int, fps: float, stride: int, window: int = 0) -> "Grid":
        """Steps every `stride` frames up to the end of a video.

        With `window` each is centred in a window of so many frames that begins at its frame; those
        that would end behind the video are left out, but for the first.
        """
        if not window:
            return Grid.strided(-(-num_frames // stride), stride, fps, num_frames)
        steps = max(0, num_frames - window) // stride + 1
        return Grid.strided(steps, stride, fps, num_frames, (window - stride) / 2 / fps)

    @property
    def start_s(self) -> float:
        """Seconds from the beginning of the video to the left edge of step 0."""
        return self.first_frame / self.fps + self.offset_s if self.stride else 0.0

    @property
    def step_s(self) -> float:
        """Seconds a step."""
        return self.length_s / self.steps

    def seconds(self, position: Time) -> Time:
        """Seconds of the video at a position in steps that is 0 in the middle of step 0."""
        return self.start_s + (position + 0.5) * self.step_s

    def position(self, seconds: Time) -> Time:
        """The inverse of `seconds`."""
        return (seconds - self.start_s) / self.step_s - 0.5

    @property
    def covered_s(self) -> float:
        """Seconds from the beginning of the first step's window to the end of the last one's."""
        return self.length_s + 2 * self.offset_s

    def inside(self) -> np.ndarray:
        """(T,) bool: steps that begin before the end of the video."""
        if not self.stride:
            return np.ones(self.steps, bool)
        frames = round(self.length_s * self.fps)  # at low fidelity steps are longer than `stride`
        return self.first_frame + np.arange(self.steps) * frames / self.steps < self.num_frames

    def window(self, first: int, steps: int) -> "Grid":
        """Steps [first, first + steps) of a strided grid; they may reach beyond its end."""
        frame = self.first_frame + first * self.stride
        length_s = steps * self.stride / self.fps
        return replace(self, steps=steps, length_s=length_s, first_frame=frame)


def training_parts(video: Video, grid: Grid, steps: int) -> list[tuple[Video, Grid]]:
    """What is trained on of one video: itself, or of a strided grid the `windows` with segments.

    Segments are in seconds from the window's beginning; they may begin before or end behind it.
    """
    if not grid.stride:
        return [(video, grid)]
    given = [s for s in video.segments if s.end_s > s.start_s]
    times = [(s.start_s * grid.fps, s.end_s * grid.fps) for s in given]
    parts = []
    for window in windows(grid.steps * grid.stride, steps, grid.stride, times):
        part = grid.window(window.first_frame // grid.stride, steps)
        at, inside = part.start_s, (given[row] for row in window.rows)
        moved = tuple(Segment(s.start_s - at, s.end_s - at, s.label) for s in inside)
        parts.append((replace(video, segments=moved), part))
    return parts
