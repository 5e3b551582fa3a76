"""Average recall of proposals (AR@AN) and its area, equal to the ActivityNet toolkit to the bit.

Protocol (activitynet/ActivityNet, `eval_proposal`): the limit is an average.  Every video keeps the
share of its best proposals that brings the mean over annotated videos to `max_proposals`; 100
steps go from 1 % to 100 % of that.  A ground truth is recalled when any kept proposal overlaps by
at least the threshold.  Quirks kept: shares are floored in floating point (AR@29, 57, 58 use one
proposal less); proposals of videos outside the ground truth count towards the share; the AUC
starts at the first step, so a perfect method gets 99, not 100.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lofi.evaluation.detection import (
    PROTOCOLS,
    SORTS,
    best_first,
    checked_tie_order,
    pairwise_tiou,
)
from lofi.evaluation.tables import Truth, prediction_table, truth_table

STEPS = 100


@dataclass(frozen=True)
class RecallResult:
    """AR@AN. Recalls are fractions, `auc` is in percent as in the literature."""

    average_recall: dict[str, float]  # at 1, 5, 10, 100 proposals per video on average
    auc: float
    tious: tuple[float, ...]
    proposals_per_video: tuple[float, ...]  # (100,) the axis AN
    recall: tuple[tuple[float, ...], ...]  # [tIoU][AN]
    average_recall_curve: tuple[float, ...]  # (100,) mean over tIoU
    max_proposals: int | None
    subset: str
    videos: int
    instances: int
    proposals: int
    video_list_hash: str
    tie_order: str

    def to_json(self) -> dict[str, Any]:
        """JSON-able dict, one key per field."""
        return asdict(self)

    def __str__(self) -> str:
        values = ", ".join(f"AR@{k} {100 * v:.2f}" for k, v in self.average_recall.items())
        return (
            f"{values}, AUC {self.auc:.2f} ({self.subset}: {self.videos} videos "
            f"[{self.video_list_hash}], {self.instances} instances; {self.proposals} proposals)"
        )


def proposal_recall(
    ground_truth: Any,
    proposals: Any,
    subset: str = "validation",
    tious: Any = None,
    max_proposals: int | None = 100,
    tie_order: str = "file",
) -> RecallResult:
    """Compute AR@AN and AUC.

    Args:
        ground_truth: path or dict in ActivityNet format, or list of `lofi.data.Video`.
        proposals: path, ActivityNet-format dict, or id -> list of `Detection` or
            (segments (N, 2), scores (N,)). Labels are not looked at.
        tious: thresholds; None = 0.5, 0.55, ..., 0.95.
        max_proposals: average per video; None = as many as the file has on average.
        tie_order: as in `detection_map`.
    Raises:
        ValueError: empty subset, malformed input, or no proposals at all.
    """
    kind = SORTS[checked_tie_order(tie_order)]
    thresholds = np.array(PROTOCOLS["activitynet"].tious if tious is None else tious, np.float64)
    truth = truth_table(ground_truth, subset)
    found = prediction_table(proposals, with_labels=False)
    total = len(found.scores)
    if not total:
        raise ValueError("there are no proposals at all; recall needs at least one")
    num_videos = len(truth.videos)
    average = float(total) / num_videos if max_proposals is None else max_proposals
    ratio = average * float(num_videos) / total

    index = {name: i for i, name in enumerate(truth.videos)}
    video = np.array([index.get(name, -1) for name in found.videos], np.int64)[found.video]
    counts = np.bincount(video[video >= 0], minlength=num_videos)
    kept = np.minimum((counts * ratio).astype(np.int64), counts)
    group = np.where(video < 0, num_videos, video)  # videos without ground truth come last
    order, rank = best_first(group, found.scores, num_videos + 1, kind)
    order = order[: counts.sum()]
    order = order[rank[order] < kept[video[order]]]
    first = _first_ranks(truth, found.segments.take(order, axis=0), kept, thresholds)

    steps = np.arange(1, STEPS + 1) / 100.0 * (average * float(num_videos) / max(kept.sum(), 1))
    used = np.minimum((kept[:, None] * steps).astype(np.int64), kept[:, None])  # (videos, steps)
    used = used[truth.video]  # (G, steps)
    recalled = np.stack([np.count_nonzero(row[:, None] < used, axis=0) for row in first])
    recall = recalled / len(truth.segments)
    axis = steps * (float(kept.sum()) / num_videos)
    curve = recall.mean(axis=0)
    area = float(np.sum((axis[1:] - axis[:-1]) * (curve[1:] + curve[:-1]) / 2.0))
    return RecallResult(
        average_recall={str(k): float(curve[k - 1]) for k in (1, 5, 10, 100)},
        auc=100.0 * area / float(axis[-1]) if axis[-1] else 0.0,
        tious=tuple(thresholds.tolist()),
        proposals_per_video=tuple(axis.tolist()),
        recall=tuple(map(tuple, recall.tolist())),
        average_recall_curve=tuple(curve.tolist()),
        max_proposals=max_proposals,
        subset=subset,
        videos=num_videos,
        instances=len(truth.segments),
        proposals=total,
        video_list_hash=truth.video_list_hash,
        tie_order=tie_order,
    )


def _first_ranks(
    truth: Truth, segments: np.ndarray, kept: np.ndarray, tious: np.ndarray
) -> np.ndarray:
    """(T, G) rank of the first kept proposal that recalls each ground truth, huge if none does.

    Args:
        segments: kept proposals, by video, best first.
        kept: (videos,) how many each has.
    """
    lengths = kept[truth.video]  # proposals facing each ground truth
    owner = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    row = place + np.repeat((np.cumsum(kept) - kept)[truth.video], lengths)
    theirs = np.repeat(truth.segments, lengths, axis=0)
    tiou = pairwise_tiou(theirs, segments.take(row, axis=0))
    near = np.flatnonzero(tiou >= tious.min())[::-1]  # falling, so the smallest is written last
    tiou, owner, place = tiou[near], owner[near], place[near]
    first = np.full((len(tious), len(lengths)), np.iinfo(np.int64).max)
    for t, threshold in enumerate(tious.tolist()):
        good = np.flatnonzero(tiou >= threshold)
        first[t, owner.take(good)] = place.take(good)
    return first
