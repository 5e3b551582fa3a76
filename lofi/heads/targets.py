"""What a head should answer for one video: tIoU of every anchor, and where actions start and end.

Source: Xu et al., G-TAD (CVPR 2020), section 3.4, and Lin et al., BMN (ICCV 2019), section 3.5; the
windows that the papers leave open follow the released codes. L snippets, D durations, N segments.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lofi.heads import align

REGION = 1.5  # snippets on either side of a boundary that count as that boundary
HIGH_TIOU = 0.9  # above: positive for the classification score

# Window of snippet i that is compared with boundary regions, in snippets relative to i.
WINDOWS = {"anet": (-0.5, 1.5), "bmn": (-0.5, 0.5), "thumos": (0.0, 1.0)}


class Targets(NamedTuple):
    """Ground truth on the snippet grid; with a leading batch dimension after `collate_targets`."""

    iou: Tensor  # (D, L) largest tIoU of anchor [s, s + d + 1) with any segment; 0 where s + d >= L
    start: Tensor  # (L,) share of the snippet's window that lies in a start region
    end: Tensor  # (L,)
    best: Tensor  # (D, L) bool, best anchor of each segment that no anchor matches with tIoU > 0.9


def targets(
    segments: Tensor | np.ndarray | Sequence,
    duration_s: float,
    snippets: int,
    durations: int | None = None,
    rule: str = "anet",
    *,
    iou_shift_s: float = 0.0,
) -> Targets:
    """Targets of one video or window, computed in float64 and stored as float32.

    Args:
        segments: (N, 2) start and end in seconds, end exclusive; N may be 0, and starts may equal
            ends.
        duration_s: length of the video (or window) in seconds, from the left edge of the first
            snippet to the right edge of the last one; times are clipped to [0, duration_s].
        snippets: L.
        durations: D of the head, None for L; at most L rows are made, as in the head.
        rule: "anet", "bmn" or "thumos": the window of a snippet for start and end labels; with
            "thumos" boundaries outside the video give no labels (only the tIoU map is clipped), as
            released.
        iou_shift_s: added to the times for the tIoU map only; the released THUMOS14 windows round
            their offset there to whole frames.
    Raises:
        ValueError: unknown rule, a duration that is not positive, times that are not numbers or run
            backwards.
    """
    if rule not in WINDOWS:
        raise ValueError(f"rule is {rule!r}, expected one of {', '.join(WINDOWS)}")
    if not duration_s > 0:
        raise ValueError(f"duration_s is {duration_s}, expected a positive number of seconds")
    times = _times(segments)
    inside = ((times + iou_shift_s) / duration_s).clip(0, 1)
    edges = times / duration_s
    edges = edges if rule == "thumos" else edges.clip(0, 1)
    overlap = _anchor_tiou(inside, snippets, align.num_durations(snippets, durations))
    start, end = (_boundary(edge, snippets, WINDOWS[rule]) for edge in edges.T)
    iou = np.max(overlap, 0, initial=0.0)
    maps = [torch.from_numpy(np.asarray(a, np.float32)) for a in (iou, start, end)]
    return Targets(*maps, torch.from_numpy(_best_anchors(overlap)))


def collate_targets(batch: Sequence[Targets]) -> Targets:
    """Stack targets of equal L and D along a new first dimension."""
    if not batch:
        raise ValueError("no targets to collate, expected at least one video")
    shapes = {tuple(t.iou.shape) for t in batch}
    if len(shapes) > 1:
        raise ValueError(f"targets have maps of shapes {sorted(shapes)}, expected equal ones")
    return Targets(*(torch.stack(part) for part in zip(*batch, strict=True)))


def valid_mask(snippets: int, durations: int | None = None) -> Tensor:
    """(D, L) bool: the anchor that starts at s and lasts d + 1 snippets ends inside the video."""
    return torch.tensor(align.valid_cells(snippets, align.num_durations(snippets, durations)))


def _times(segments: Tensor | np.ndarray | Sequence) -> np.ndarray:
    if isinstance(segments, Tensor):
        segments = segments.detach().cpu().numpy()
    times = np.asarray(segments, np.float64)
    if times.size == 0:
        return np.zeros((0, 2))
    if times.ndim != 2 or times.shape[1] != 2:
        raise ValueError(
            f"segments have shape {times.shape}, expected (N, 2): start and end in seconds"
        )
    wrong = ~(times[:, 0] <= times[:, 1])  # also true for values that are not numbers
    if wrong.any():
        raise ValueError(
            f"segment {times[wrong][0].tolist()} has no start <= end; correct the annotation"
        )
    return times


def _anchor_tiou(times: np.ndarray, snippets: int, durations: int) -> np.ndarray:
    """(N, 2) normalised times -> (N, D, L) tIoU with [s / L, (s + d + 1) / L]; invalid cells 0."""
    valid = align.valid_cells(snippets, durations)
    d, s = np.nonzero(valid)
    low, high = s / snippets, (s + d + 1) / snippets
    begin, end = times[:, :1], times[:, 1:]
    inter = np.maximum(np.minimum(high, end) - np.maximum(low, begin), 0)
    overlap = np.zeros((len(times), *valid.shape))
    overlap[:, valid] = inter / ((high - low) + (end - begin) - inter)
    return overlap


def _boundary(edges: np.ndarray, snippets: int, window: tuple[float, float]) -> np.ndarray:
    """(N,) normalised times -> (L,) largest share of a snippet's window covered by one region."""
    if len(edges) == 0:
        return np.zeros(snippets)
    low, high = ((np.arange(snippets) + offset) / snippets for offset in window)
    begin, end = edges[:, None] - REGION / snippets, edges[:, None] + REGION / snippets
    inter = np.maximum(np.minimum(high, end) - np.maximum(low, begin), 0)
    return (inter / (high - low)).max(0)


def _best_anchors(overlap: np.ndarray) -> np.ndarray:
    """(N, D, L) -> (D, L) bool; coarse grids match short actions badly."""
    best = np.zeros(overlap.shape[1:], bool)
    flat = overlap.reshape(len(overlap), best.size).astype(np.float32)
    peak = flat.max(1, initial=0)
    missed = (peak > 0) & (peak <= np.float32(HIGH_TIOU))
    best.ravel()[flat[missed].argmax(1)] = True
    return best
