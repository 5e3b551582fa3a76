"""Sliding windows over long videos, as G-TAD cuts THUMOS14.

Source: released G-TAD for THUMOS14 (branch master). A snippet stands every `stride` frames; a
window holds L of them and the next begins L / 2 further. Times are frames of the video here;
the frame columns of G-TAD's tables are seconds times a nominal rate (30, 25 or 24).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

KEPT = 0.9  # share of a segment that must lie inside for a training window to be kept


class Window(NamedTuple):
    """L snippets of a video; the last ones may lie beyond its end (they are zero in training)."""

    first_frame: int  # of the first snippet
    last_frame: int  # of the last snippet
    segments: np.ndarray  # (N, 2) frames of the video: all segments that reach into the window

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
            found.append(window._replace(segments=times[touched]))
    return found
