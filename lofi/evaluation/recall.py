"""Average recall of proposals (AR@AN) and its area, equal to the ActivityNet toolkit to the bit.

Protocol (activitynet/ActivityNet, `eval_proposal`): the limit is an average.  Every video keeps the
share of its best proposals that brings the mean over annotated videos to `max_proposals`; 100
steps go from 1 % to 100 % of that.  A ground truth is recalled when any kept proposal overlaps by
at least the threshold.  Quirks kept: shares are floored in floating point (AR@29, 57, 58 use one
proposal less); proposals of videos outside the ground truth count towards the share; the AUC
starts at the first step, so a perfect method gets 99, not 100.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lofi.evaluation.columns import Predictions, Truth, restrict
from lofi.evaluation.detection import Result, load, provenance
from lofi.evaluation.matching import BLOCK, best_first, ranks, tiou_of

STEPS = 100


@dataclass(frozen=True, kw_only=True)
class RecallResult(Result):
    """AR@AN. Recalls are fractions, `auc` is in percent as in the literature."""

    average_recall: dict[str, float]  # at 1, 5, 10, 100 proposals per video on average
    auc: float
    proposals_per_video: tuple[float, ...]  # (100,) the axis AN
    recall: tuple[tuple[float, ...], ...]  # [tIoU][AN]
    average_recall_curve: tuple[float, ...]  # (100,) mean over tIoU
    max_proposals: int | None
    proposals: int
    videos_without_proposals: int
    proposals_outside_subset: int

    def __str__(self) -> str:
        values = ", ".join(f"AR@{k} {100 * v:.2f}" for k, v in self.average_recall.items())
        return self.text(
            f"{values}, AUC {self.auc:.2f} ({self.subset}, {self.video_list} "
            f"[{self.video_list_hash}]: {self.videos} videos, {self.instances} instances; "
            f"{self.proposals} proposals, {self.proposals_outside_subset} in videos outside the "
            f"subset, none in {self.videos_without_proposals} videos)"
        )


def proposal_recall(
    ground_truth: Any, proposals: Any, subset: str = "validation", tious: Any = None,
    max_proposals: int | None = 100, available: Any = None, strict: bool = True,
) -> RecallResult:  # fmt: skip
    """Compute AR@AN and AUC.

    Args:
        ground_truth, available, strict: as in `detection_map`.
        proposals: path, ActivityNet-format dict, or id -> list of `Detection` or
            (segments (N, 2), scores (N,)). Labels are not looked at.
        tious: thresholds; None = 0.5, 0.55, ..., 0.95.
        max_proposals: average per video; None = as many as the file has on average.
    Raises:
        ValueError: empty subset, malformed input, or no proposals at all.
    """
    given = ground_truth, proposals, tious, subset, "activitynet"
    truth, found, tious = load(*given, with_labels=False, strict=strict)
    result = _evaluate(truth, found, tious, max_proposals)
    if available is None:
        return result
    fewer = restrict(truth, found, available)
    return replace(result, available=_evaluate(*fewer, tious, max_proposals, "available"))


def _evaluate(
    truth: Truth, found: Predictions, tious: np.ndarray, max_proposals: int | None,
    list_name: str = "official",
) -> RecallResult:  # fmt: skip
    total = len(found.scores)
    if not total:
        raise ValueError("there are no proposals at all; recall needs at least one")
    num_videos = len(truth.videos)
    average = float(total) / num_videos if max_proposals is None else max_proposals
    ratio = average * float(num_videos) / total

    index = {name: i for i, name in enumerate(truth.videos)}  # others are one more group, the last
    group = np.array([index.get(name, num_videos) for name in found.videos], np.int32)[found.video]
    order, sizes = best_first(group, found.scores, num_videos + 1)
    counts = sizes[:-1]
    kept = np.minimum((counts * ratio).astype(np.int64), counts)
    order = order[: counts.sum()]
    if (kept < counts).any():
        order = order[ranks(np.arange(len(order)), counts) < np.repeat(kept, counts)]
    first = _first_ranks(truth, found.segments, order, kept, tious)

    steps = np.arange(1, STEPS + 1) / 100.0 * (average * float(num_videos) / max(kept.sum(), 1))
    recall = _recalled(kept[truth.video], first, steps) / len(truth.segments)
    axis = steps * (float(kept.sum()) / num_videos)
    curve = recall.mean(axis=0)
    area = float(np.sum((axis[1:] - axis[:-1]) * (curve[1:] + curve[:-1]) / 2.0))
    return RecallResult(
        average_recall={str(k): float(curve[k - 1]) for k in (1, 5, 10, 100)},
        auc=100.0 * area / float(axis[-1]) if axis[-1] else 0.0,
        tious=tuple(tious.tolist()),
        proposals_per_video=tuple(axis.tolist()),
        recall=tuple(map(tuple, recall.tolist())),
        average_recall_curve=tuple(curve.tolist()),
        max_proposals=max_proposals,
        proposals=total,
        videos_without_proposals=int(np.count_nonzero(counts == 0)),
        proposals_outside_subset=int(sizes[-1]),
        **provenance(truth, found, list_name),
    )


def _first_ranks(
    truth: Truth, segments: np.ndarray, order: np.ndarray, kept: np.ndarray, tious: np.ndarray
) -> np.ndarray:
    """(T, G) rank of the first kept proposal that recalls each ground truth, huge if none does.

    `order` lists the kept proposals by video, best first, and `kept` (videos,) how many each has.
    """
    lengths = kept[truth.video]  # proposals facing each ground truth
    offset = (np.cumsum(kept) - kept)[truth.video]  # place in `order` of the first of them
    start, end = segments.T
    rising = np.sort(tious)
    first = np.full((len(lengths), len(tious) + 1), np.iinfo(np.int64).max)
    for size in np.unique(lengths[lengths > 0]).tolist():  # those that face as many together
        facing, block = np.flatnonzero(lengths == size), max(1, BLOCK // size)
        for low in range(0, len(facing), block):
            mine = facing[low : low + block]
            row = order[offset[mine, None] + np.arange(size)]
            tiou = tiou_of(truth.segments.T[:, mine, None], (start[row], end[row]))
            best = np.maximum.accumulate(np.fmax(tiou, 0.0, out=tiou), axis=1)  # NaN becomes 0
            better = best >= rising[0]
            better[:, 1:] &= best[:, 1:] > best[:, :-1]  # only these can be the first to reach
            owner, place = np.nonzero(better)
            passed = np.searchsorted(rising, best[owner, place], "right")  # thresholds it reaches
            # falling, so that the smallest place is written last
            first[mine[owner[::-1]], passed[::-1]] = place[::-1]
    # who reaches a threshold reaches all lower ones
    first = np.minimum.accumulate(first[:, ::-1], axis=1)[:, ::-1]
    return first[:, 1:].T[np.searchsorted(rising, tious)]


def _recalled(facing: np.ndarray, first: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(T, steps) number of ground truths recalled when each video may use a share of its kept,
    of which `facing` (G,) face each ground truth."""
    recalled = np.zeros((len(first), len(steps) + 1), np.int64)
    for size in np.unique(facing).tolist():
        used = np.minimum((size * steps).astype(np.int64), size)  # never falls from step to step
        needed = np.searchsorted(used, first[:, facing == size], "right")  # first step that has it
        for t, row in enumerate(needed):
            recalled[t] += np.bincount(row, minlength=len(steps) + 1)
    return np.cumsum(recalled[:, :-1], axis=1)
