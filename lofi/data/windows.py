"""Sliding windows over long videos, as G-TAD cuts THUMOS14.

Source: released G-TAD for THUMOS14 (branch master). A snippet stands every `stride` frames; a
window holds L of them and the next begins L / 2 further. Times are frames of the video here;
the frame columns of G-TAD's tables are seconds times a nominal rate (30, 25 or 24).
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from lofi.config import DataConfig
from lofi.data.annotations import Segment, Video
from lofi.data.snippets import resampled_frames
from lofi.data.video import VideoError, VideoInfo, probe

log = logging.getLogger(__name__)

KEPT = 0.9  # share of a segment that must lie inside for a training window to be kept


class Window(NamedTuple):
    """L snippets of a video; the last ones may lie beyond its end (they are zero in training)."""

    first_frame: int  # of the first snippet
    last_frame: int  # of the last snippet
    segments: np.ndarray  # (N, 2) frames of the video: all segments that reach into the window
    rows: tuple[int, ...] = ()  # which of the video's segments these are

    def span(self, stride: int = 5) -> tuple[int, int]:
        """Frames [first, end) that the window's snippets divide, for `read_clip`."""
        return self.first_frame, self.last_frame + stride


def windows(num_frames: int, snippets: int = 256, stride: int = 5) -> list[Window]:
    """Windows of one video without annotations, in order; at least one.

    Args:
        num_frames: decoded frames (or rows of a per-frame feature file).
        snippets: L.
        stride: frames between two snippets.
    Raises:
        ValueError: a number below 1.
    """
    if min(num_frames, snippets, stride) < 1:
        raise ValueError(
            f"windows of {snippets} snippets, {stride} frames apart, in {num_frames} frames: "
            "expected numbers of at least 1"
        )
    count = -(-num_frames // stride)
    starts = list(range(0, max(count - snippets, 0) + 1, max(1, snippets // 2)))
    lost = count - snippets - starts[-1]
    if lost > snippets / stride:  # otherwise the last snippets are not looked at, as released
        starts.append(count - snippets)
    none = np.zeros((0, 2))
    return [Window(s * stride, (s + snippets - 1) * stride, none) for s in starts]


def training_windows(
    num_frames: int,
    segments: Sequence[tuple[float, float]] | np.ndarray,
    snippets: int = 256,
    stride: int = 5,
) -> list[Window]:
    """Windows that hold more than 90 % of some segment, with every segment that they touch.

    Args:
        segments: (N, 2) start and end in frames of the video; start < end.
    """
    times = np.asarray(segments, np.float64).reshape(-1, 2)
    found = []
    for window in windows(num_frames, snippets, stride):
        low, high = window.first_frame, window.last_frame + stride  # the last snippet is whole
        inside = np.minimum(times[:, 1], high) - np.maximum(times[:, 0], low)
        if (inside > KEPT * (times[:, 1] - times[:, 0])).any():
            touched = (times[:, 1] >= low) & (times[:, 0] <= window.last_frame)
            rows = tuple(np.flatnonzero(touched).tolist())
            found.append(window._replace(segments=times[touched], rows=rows))
    return found


def begun(span: tuple[int, int], snippets: int, num_frames: int) -> np.ndarray:
    """(L,) bool: snippets of a window that begin before the end of the video."""
    first, end = span
    return first + np.arange(snippets) * (end - first) / snippets < num_frames


def frame_grid(data: DataConfig, info: VideoInfo) -> tuple[int, float]:
    """Frames and frame rate in which the windows of a video are counted (`data.resample_fps`)."""
    if not data.resample_fps:
        return info.num_frames, info.fps
    count = len(resampled_frames(info.num_frames, info.fps, data.resample_fps))
    return count, count / info.duration_s


def training_items(videos: Sequence[Video], data: DataConfig, snippets: int) -> list[Video]:
    """What is trained on: the videos themselves, or with `data.window_stride` their windows.

    A window is a `Video` with a `span`, the window's duration, and segments in seconds from the
    beginning of the window (they may begin before it or end behind it). Windows that hold 90 % of
    no segment are left out, as are videos that do not decode.

    Raises:
        ValueError: no window is left.
    """
    if not data.window_stride:
        return list(videos)
    items = []
    for video in videos:
        try:
            count, fps = frame_grid(data, probe(video.path))
        except VideoError as error:
            log.warning("no windows of %s: %s", video.id, error)
            continue
        given = [s for s in video.segments if s.end_s > s.start_s]
        times = [(s.start_s * fps, s.end_s * fps) for s in given]
        for window in training_windows(count, times, snippets, data.window_stride):
            first, end = span = window.span(data.window_stride)
            at = first / fps
            inside = (given[row] for row in window.rows)
            moved = tuple(Segment(s.start_s - at, s.end_s - at, s.label) for s in inside)
            length = (end - first) / fps
            items.append(replace(video, duration_s=length, segments=moved, span=span))
    if not items:
        raise ValueError(
            f"no window of {snippets} snippets, {data.window_stride} frames apart, holds an action "
            f"of the {len(videos)} videos; set data.window_stride to more frames"
        )
    return items
