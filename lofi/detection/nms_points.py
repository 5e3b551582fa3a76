"""Soft-NMS of heads of points: inside each class or over all, as released with ActionFormer."""

import numpy as np

from lofi.config import PostProcessing
from lofi.heads.base import Proposals


def suppress_points(table: Proposals, post: PostProcessing) -> Proposals:
    """ActionFormer's suppression, in steps of the grid and float32; keeps the labels.

    "joint" forgets classes in soft-NMS, and then averages each segment with its candidates.
    """
    grid = table.grid
    if grid is None:
        found = f"detect.suppression is {post.suppression!r}, which is for heads of points"
        raise ValueError(f"{found}; set it to gaussian")
    spans = grid.position(table.segments_s).astype(np.float32)
    scores, together = table.scores.astype(np.float32), post.suppression == "joint"
    groups = np.zeros_like(table.labels) if together else table.labels
    limits = post.sigma, post.top_k, post.min_score
    rows, kept = soft_nms_classes(spans, scores, groups, *limits)
    chosen = spans[rows]
    if together and post.voting and len(rows):
        chosen = average_segments(chosen, spans, scores, post.voting)
    best = np.argsort(-kept, kind="stable")[: post.top_k]
    seconds = grid.seconds(chosen[best].astype(np.float64))
    return Proposals(seconds, kept[best].astype(np.float64), table.labels[rows[best]], grid=grid)


def soft_nms_classes(
    segments: np.ndarray, scores: np.ndarray, labels: np.ndarray, sigma: float, top_k: int,
    min_score: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Gaussian soft-NMS of every class by itself, as released with ActionFormer: in float32.

    1e-6 is added to lengths in the tIoU; a candidate leaves when its score falls below `min_score`.
    All classes pick at once, each its first best row; one class alone has a faster way.

    Args:
        segments: (N, 2) float32; scores: (N,) float32; labels: (N,) integers.
        top_k: picks of a class.
    Returns:
        rows (M,) picked, class after class and best first, and their decayed scores (M,) float32.
    """
    row = np.argsort(labels, kind="stable")
    row = row[scores[row] >= min_score]
    if len(row) and labels[row[0]] == labels[row[-1]]:
        picks, kept = _one_class(segments[row], scores[row], sigma, top_k, min_score)
        return row[picks], kept
    live, (start, end) = scores[row].astype(np.float32), segments[row].astype(np.float32).T
    length, group = end - start + np.float32(1e-6), labels[row]
    picked: list[tuple[np.ndarray, np.ndarray]] = []
    gone = len(row)  # rows that have left, marked by -1, since they were last taken out
    while len(row) and len(picked) < top_k:
        if 4 * gone >= len(row):
            kept, gone = live >= 0, 0
            parts = (row, live, start, end, length, group)
            row, live, start, end, length, group = (part[kept] for part in parts)
            first = np.flatnonzero(np.diff(group, prepend=-1))  # of each class
            counts = np.diff(first, append=len(row))
            if not len(row):
                break
        best = np.flatnonzero(live == np.repeat(np.maximum.reduceat(live, first), counts))
        best = best[np.diff(group[best], prepend=-1) != 0]
        mine = np.repeat(best, counts)
        chosen = best[live[best] >= 0]
        picked.append((row[chosen], live[chosen]))
        overlap = np.minimum(end, end[mine]) - np.maximum(start, start[mine])
        near = np.flatnonzero((overlap > 0) & (live >= 0) & (live[mine] >= 0))
        overlap = overlap[near]
        tiou = overlap / (length[mine[near]] + length[near] - overlap)
        # exp in float64, rounded: what a correctly rounded float32 exp gives
        factor = np.exp(-(tiou * tiou) / np.float32(sigma), dtype=np.float64)
        decayed = live[near] * factor.astype(np.float32)
        decayed[decayed < min_score] = -1
        live[near] = decayed
        live[chosen] = -1
        gone += len(chosen) + np.count_nonzero(decayed < 0)
        if not len(chosen):
            break
    rows, values = (np.concatenate(part) for part in zip(*picked)) if picked else (row, live)
    order = np.argsort(labels[rows], kind="stable")
    return rows[order], values[order]


def _one_class(
    segments: np.ndarray, scores: np.ndarray, sigma: float, top_k: int, min_score: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rows picked, best first, and their scores; at least one row, no score below `min_score`.

    Rows lie in order of their start, so what can overlap with one of them is a slice.
    """
    order = np.argsort(segments[:, 0], kind="stable")
    start, end = segments[order].astype(np.float32).T.copy()
    live, length = scores[order].astype(np.float32), end - start + np.float32(1e-6)
    first = np.maximum.accumulate(end).searchsorted(start, "right").tolist()
    stop, memory = start.searchsorted(end).tolist(), np.empty((2, len(order)), np.float32)
    picks, kept = [], []
    while len(picks) < min(top_k, len(order)):
        best = int(live.argmax())
        value = live[best]
        live[best] = -1
        if live[live.argmax()] == value:  # a tie: the first in the order that came in
            equal = np.append(np.flatnonzero(live == value), best)
            live[best], best = value, int(equal[order[equal].argmin()])
            live[best] = -1
        if not value >= min_score:
            break
        picks.append(best)
        kept.append(value)
        near = slice(first[best], max(first[best], stop[best]))
        overlap, union = memory[:, : near.stop - near.start]
        np.minimum(end[near], end[best], out=overlap)
        overlap -= np.maximum(start[near], start[best], out=union)
        np.maximum(overlap, 0, out=overlap)
        np.add(length[near], length[best], out=union)
        union -= overlap
        overlap /= union
        overlap *= overlap
        overlap /= np.float32(-sigma)
        live[near] *= np.exp(overlap, dtype=np.float64).astype(np.float32)
        if min_score <= 0:  # a factor may be 0, and -0 is not below 0
            live[picks] = -1
    return order[picks], np.array(kept, np.float32)


def average_segments(
    chosen: np.ndarray, segments: np.ndarray, scores: np.ndarray, tiou: float
) -> np.ndarray:
    """Mean of the segments that overlap a chosen one by `tiou` or more, weighted by score · tIoU.

    (M, 2) chosen among (N, 2) segments of positive length, with (N,) scores before any decay.
    """
    low = np.maximum(chosen[:, None, 0], segments[:, 0])
    high = np.minimum(chosen[:, None, 1], segments[:, 1])
    overlap = (high - low).clip(0)
    overlap = overlap / (np.diff(chosen) + np.diff(segments)[:, 0] - overlap)
    weights = (overlap >= tiou) * scores * overlap
    return (weights / weights.sum(1, keepdims=True)) @ segments
