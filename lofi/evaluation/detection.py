"""Mean average precision of detections, equal to the ActivityNet toolkit to the last bit.

Protocol (activitynet/ActivityNet, `eval_detection`): per class and tIoU threshold, detections in
order of score; each takes the best ground truth of its video and class that is still free and
overlaps by at least the threshold; AP is the area under the interpolated precision-recall curve;
mAP the mean over the classes of the subset.  Quirks kept, because they move numbers:
  * a detection whose best match is taken may take the next best;
  * 0/0 overlap (two zero-length segments) counts as a match at every threshold;
  * detections of videos outside the subset are false positives; duplicates in the ground truth
    are instances; classes without detections have AP 0;
  * equal scores: the toolkit reverses an unstable sort.  Here the sort is stable, so of equal
    scores the later in the file comes first, on every machine; `tie_order="numpy"` gives what the
    toolkit gives with the numpy at hand.

THUMOS14 is evaluated by the same code, as in G-TAD: subset "test", tIoU 0.3 to 0.7.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from lofi.evaluation.tables import Predictions, Truth, prediction_table, truth_table


class Protocol(NamedTuple):
    """What a named protocol fixes."""

    subset: str
    tious: tuple[float, ...]
    ignore: frozenset[str]  # labels that are no class


PROTOCOLS = {
    "activitynet": Protocol("validation", tuple(np.linspace(0.5, 0.95, 10).tolist()), frozenset()),
    "thumos14": Protocol("test", (0.3, 0.4, 0.5, 0.6, 0.7), frozenset(["Ambiguous"])),
}


@dataclass(frozen=True)
class DetectionResult:
    """mAP with everything needed to compare it. All values are fractions."""

    protocol: str
    subset: str
    tious: tuple[float, ...]
    map: tuple[float, ...]  # per tIoU
    average_map: float
    classes: tuple[str, ...]
    ap: tuple[tuple[float, ...], ...]  # [class][tIoU]
    class_instances: tuple[int, ...]
    videos: int  # annotated videos of the subset
    instances: int
    predictions: int
    videos_without_predictions: int
    predictions_outside_subset: int
    zero_length_instances: int
    video_list_hash: str
    tie_order: str

    def to_json(self) -> dict[str, Any]:
        """JSON-able dict, one key per field."""
        return asdict(self)

    def at(self, tiou: float) -> float:
        """mAP at one of the thresholds, e.g. 0.75."""
        for value, threshold in zip(self.map, self.tious):
            if abs(threshold - tiou) < 1e-6:
                return value
        raise ValueError(f"tIoU {tiou} was not evaluated; thresholds are {self.tious}")

    def __str__(self) -> str:
        columns = self.tious if self.protocol == "thumos14" else (0.5, 0.75, 0.95)
        shown = [t for t in columns if min(abs(t - x) for x in self.tious) < 1e-6]
        values = " ".join(f"{100 * self.at(t):.2f}@{t:g}" for t in shown)
        return (
            f"mAP {values}, average {100 * self.average_map:.2f} % over {len(self.tious)} tIoUs "
            f"({self.protocol}, {self.subset}: {self.videos} videos [{self.video_list_hash}], "
            f"{self.instances} instances, {len(self.classes)} classes; {self.predictions} "
            f"detections, none in {self.videos_without_predictions} videos)"
        )


def detection_map(
    ground_truth: Any,
    detections: Any,
    tious: Any = None,
    subset: str | None = None,
    protocol: str = "activitynet",
    tie_order: str = "file",
) -> DetectionResult:
    """Compute mAP.

    Args:
        ground_truth: path or dict in ActivityNet format, or list of `lofi.data.Video`.
        detections: path (JSON or CSV), ActivityNet-format dict, or id -> list of `Detection`.
        tious: thresholds; None = the protocol's.
        subset: exact name; None = the protocol's ("validation", for thumos14 "test").
        protocol: `activitynet` or `thumos14`.
        tie_order: `file` (reproducible) or `numpy` (the toolkit's unstable sort).
    Raises:
        ValueError: unknown protocol, empty subset, malformed input, a label that the subset does
            not have (names it and its video).
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r} is unknown; choose one of {', '.join(PROTOCOLS)}")
    rules = PROTOCOLS[protocol]
    thresholds = np.array(rules.tious if tious is None else tious, np.float64).reshape(-1)
    if not len(thresholds) or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise ValueError(f"tious are {thresholds.tolist()}; expected numbers in (0, 1]")
    if tie_order not in ("file", "numpy"):
        raise ValueError(f"tie_order is {tie_order!r}; choose file or numpy")
    truth = truth_table(ground_truth, subset or rules.subset, rules.ignore)
    found = prediction_table(detections, with_labels=True)
    ap, outside = average_precision(truth, found, thresholds, tie_order)
    maps = ap.mean(axis=1)
    covered = np.isin(truth.videos, [found.videos[v] for v in np.unique(found.video)])
    return DetectionResult(
        protocol=protocol,
        subset=truth.subset,
        tious=tuple(thresholds.tolist()),
        map=tuple(maps.tolist()),
        average_map=float(maps.mean()),
        classes=truth.classes,
        ap=tuple(map(tuple, ap.T.tolist())),
        class_instances=tuple(np.bincount(truth.label, minlength=len(truth.classes)).tolist()),
        videos=len(truth.videos),
        instances=len(truth.segments),
        predictions=len(found.scores),
        videos_without_predictions=int((~covered).sum()),
        predictions_outside_subset=outside,
        zero_length_instances=int((truth.segments[:, 0] == truth.segments[:, 1]).sum()),
        video_list_hash=truth.video_list_hash,
        tie_order=tie_order,
    )


def average_precision(
    truth: Truth, found: Predictions, tious: np.ndarray, tie_order: str = "file"
) -> tuple[np.ndarray, int]:
    """AP (T, classes), and how many predictions lie in videos without ground truth."""
    kind = "stable" if tie_order == "file" else None
    video, label = align(truth, found)
    matched = match(truth, found, video, label, tious, kind)
    ap = np.zeros((len(tious), len(truth.classes)))
    by_class = np.argsort(label, kind="stable")  # file order inside a class
    bounds = np.searchsorted(label[by_class], np.arange(len(truth.classes) + 1))
    instances = np.bincount(truth.label, minlength=len(truth.classes))
    for c, (low, high) in enumerate(zip(bounds[:-1], bounds[1:])):
        rows = by_class[low:high]
        rows = rows[np.argsort(found.scores[rows], kind=kind)[::-1]]
        for t in range(len(tious)):
            ranks = np.flatnonzero(matched[t, rows]) + 1
            ap[t, c] = interpolated_ap(ranks, instances[c])
    return ap, int((video < 0).sum())


def align(truth: Truth, found: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Predictions' videos (-1 = not in the ground truth) and labels as indices of the truth."""
    videos = {name: i for i, name in enumerate(truth.videos)}
    classes = {name: i for i, name in enumerate(truth.classes)}
    for i, name in enumerate(found.labels):
        if name not in classes:
            row = int(np.argmax(found.label == i))
            raise ValueError(
                f"label {name!r} (video {found.videos[found.video[row]]}) is not among the "
                f"{len(classes)} classes of subset {truth.subset!r}; check spelling and subset"
            )
    to_video = np.array([videos.get(name, -1) for name in found.videos], np.int64)
    to_class = np.array([classes[name] for name in found.labels], np.int64)
    return to_video[found.video], to_class[found.label]


def interpolated_ap(ranks: np.ndarray, instances: int) -> float:
    """Area under the precision envelope from the ranks (1-based) of the true positives.

    Recall only moves at true positives, and the envelope is attained there, so nothing else is
    needed; the closing point (recall 1, precision 0) stays because it changes how numpy sums.
    """
    if not len(ranks):
        return 0.0
    recall = np.arange(len(ranks) + 1) / float(instances)
    precision = np.arange(1, len(ranks) + 1) / ranks
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(recall) * envelope
    if recall[-1] != 1.0:
        steps = np.append(steps, 0.0)
    return float(np.sum(steps))


def match(
    truth: Truth,
    found: Predictions,
    video: np.ndarray,
    label: np.ndarray,
    tious: np.ndarray,
    kind: str | None = "stable",
) -> np.ndarray:
    """True positives (T, N): greedy assignment inside every (video, class).

    All groups with the same number of ground truths advance together, one prediction each a step.
    """
    matched = np.zeros((len(tious), len(video)), bool)
    group_of_truth = truth.label * len(truth.videos) + truth.video
    groups, size = np.unique(group_of_truth, return_counts=True)
    truth_rows = np.argsort(group_of_truth, kind="stable")  # file order inside a group
    first_truth = np.cumsum(size) - size
    key = np.where(video >= 0, label * len(truth.videos) + video, -1)
    slot = np.minimum(np.searchsorted(groups, key), len(groups) - 1)
    hit = np.flatnonzero(groups[slot] == key)
    # predictions of a group in the toolkit's order: the class vector sorted, then reversed
    order = _score_order(found.scores, label, kind)
    rows = hit[np.argsort(order[hit], kind="stable")]
    for count in np.unique(size[slot[hit]]):
        mine = rows[size[slot[rows]] == count]
        truths = truth_rows[first_truth[slot[mine]][:, None] + np.arange(count)]
        tiou = pairwise_tiou(found.segments[mine][:, None], truth.segments[truths])  # (P, count)
        near = ~(tiou < tious.min()).all(axis=1)
        mine, tiou = mine[near], tiou[near]
        matched[:, mine] = _assign(slot[mine], tiou, tious, kind)
    return matched


def _score_order(scores: np.ndarray, label: np.ndarray, kind: str | None) -> np.ndarray:
    """Rank of every prediction inside its class, best first."""
    rank = np.empty(len(scores), np.int64)
    by_class = np.argsort(label, kind="stable")
    bounds = np.flatnonzero(np.diff(label[by_class])) + 1
    for rows in np.split(by_class, bounds):
        rank[rows[np.argsort(scores[rows], kind=kind)[::-1]]] = np.arange(len(rows))
    return rank


def _assign(group: np.ndarray, tiou: np.ndarray, tious: np.ndarray, kind: str | None) -> np.ndarray:
    """(T, P) true positives; `tiou` (P, count) of predictions in order with their group's truths.

    A prediction takes the first free truth in falling order of tIoU; NaN comes first and passes.
    """
    preference = np.argsort(tiou, axis=1, kind=kind)[:, ::-1]
    passes = ~(np.take_along_axis(tiou, preference, 1)[:, None, :] < tious[None, :, None])
    groups, member = np.unique(group, return_inverse=True)
    step = _position_in_group(member)
    free = np.ones((len(groups), len(tious), tiou.shape[1]), bool)
    result = np.zeros((len(tious), len(group)), bool)
    by_step = np.argsort(step, kind="stable")
    for rows in np.split(by_step, np.flatnonzero(np.diff(step[by_step])) + 1):
        choice = preference[rows][:, None, :]  # (R, 1, count)
        state = free[member[rows]]  # (R, T, count)
        open_ = passes[rows] & np.take_along_axis(state, np.broadcast_to(choice, state.shape), 2)
        best = open_.argmax(2)
        r, t = np.nonzero(open_.any(2))
        free[member[rows][r], t, choice[r, 0, best[r, t]]] = False
        result[t, rows[r]] = True
    return result


def _position_in_group(member: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... for the first, second, third occurrence of every value."""
    order = np.argsort(member, kind="stable")
    counts = np.bincount(member)
    position = np.empty(len(member), np.int64)
    position[order] = np.arange(len(member)) - np.repeat(np.cumsum(counts) - counts, counts)
    return position


def pairwise_tiou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """tIoU of broadcast segments (..., 2); 0/0 is NaN, reversed segments as in the toolkit."""
    overlap = np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0])
    overlap = np.maximum(overlap, 0.0)
    union = (b[..., 1] - b[..., 0]) + (a[..., 1] - a[..., 0]) - overlap
    with np.errstate(invalid="ignore", divide="ignore"):
        return overlap / union
