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


SORTS = {"file": "stable", "numpy": None}  # tie_order -> kind of numpy's argsort


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
    kind = SORTS[checked_tie_order(tie_order)]
    truth = truth_table(ground_truth, subset or rules.subset, rules.ignore)
    found = prediction_table(detections, with_labels=True)
    ap, outside = average_precision(truth, found, thresholds, kind)
    maps = ap.mean(axis=1)
    covered = {found.videos[v] for v in np.flatnonzero(np.bincount(found.video)).tolist()}
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
        videos_without_predictions=len(set(truth.videos) - covered),
        predictions_outside_subset=outside,
        zero_length_instances=int((truth.segments[:, 0] == truth.segments[:, 1]).sum()),
        video_list_hash=truth.video_list_hash,
        tie_order=tie_order,
    )


def checked_tie_order(tie_order: str) -> str:
    """`tie_order` when it is one of `SORTS`, else ValueError."""
    if tie_order not in SORTS:
        raise ValueError(f"tie_order is {tie_order!r}; choose {' or '.join(SORTS)}")
    return tie_order


def average_precision(
    truth: Truth, found: Predictions, tious: np.ndarray, kind: str | None = "stable"
) -> tuple[np.ndarray, int]:
    """AP (T, classes), and how many predictions lie in videos without ground truth."""
    video, label = align(truth, found)
    order, rank = best_first(label, found.scores, len(truth.classes), kind)
    level, row, _ = match(truth, found, video, label, order, tious, kind)
    ap = np.zeros((len(tious), len(truth.classes)))
    key = label[row] * len(tious) + level
    sequence = np.lexsort((rank[row], key))
    key, ranks = key[sequence], rank[row[sequence]]
    instances = np.bincount(truth.label, minlength=len(truth.classes)).tolist()
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    for mine in np.split(np.arange(len(key)), starts[1:]) if len(key) else ():
        c, t = divmod(int(key[mine[0]]), len(tious))
        ap[t, c] = interpolated_ap(ranks[mine[0] : mine[-1] + 1] + 1, instances[c])
    return ap, int(np.count_nonzero(video < 0))


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


def best_first(
    group: np.ndarray, scores: np.ndarray, groups: int, kind: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows ordered by group, then score falling; and every row's place (0 = best) in its group.

    Equal scores: the later row first, or as numpy's unstable sort leaves them (`kind` None).
    """
    small = group.astype(np.uint16) if groups < 2**16 else group  # radix sort
    order = np.argsort(small, kind="stable")
    sizes = np.bincount(group, minlength=groups)
    starts = np.cumsum(sizes) - sizes
    for size in np.unique(sizes).tolist():  # groups of one size together
        places = starts[sizes == size][:, None] + np.arange(size)
        rows = order[places]
        mine = scores[rows]
        rising = mine.argsort(axis=1)
        if kind == "stable":
            ordered = np.take_along_axis(mine, rising, 1)
            tied = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
            rising[tied] = mine[tied].argsort(axis=1, kind="stable")
        order[places] = np.take_along_axis(rows, rising[:, ::-1], 1)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(starts, sizes)
    return order, rank


def interpolated_ap(ranks: np.ndarray, instances: int) -> float:
    """Area under the precision envelope from the ranks (1-based) of the true positives.

    Recall only moves at true positives, and the envelope is attained there, so nothing else is
    needed; the closing point (recall 1, precision 0) stays because it changes how numpy sums.
    """
    count = np.arange(len(ranks) + 1.0)
    recall = count / instances
    envelope = np.maximum.accumulate((count[1:] / ranks)[::-1])[::-1]
    steps = np.zeros(len(ranks) + (recall[-1] != 1.0))
    np.multiply(recall[1:] - recall[:-1], envelope, out=steps[: len(ranks)])
    return float(steps.sum())


def match(
    truth: Truth,
    found: Predictions,
    video: np.ndarray,
    label: np.ndarray,
    order: np.ndarray,
    tious: np.ndarray,
    kind: str | None = "stable",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True positives: threshold index, prediction row and ground-truth row of each.

    Greedy inside every (video, class); all groups with the same number of ground truths advance
    together, one prediction each a step.

    Args:
        order: rows, best first inside each class.
    """
    key = truth.label * len(truth.videos) + truth.video
    truth_rows = np.argsort(key, kind="stable")  # file order inside a group
    groups, size = np.unique(key, return_counts=True)
    first_truth = np.cumsum(size) - size
    rows = order[video[order] >= 0]
    key = label[rows] * len(truth.videos) + video[rows]
    slot = np.minimum(np.searchsorted(groups, key), len(groups) - 1)
    hit = groups[slot] == key
    rows, slot = rows[hit], slot[hit]
    levels, winners, taken = [], [], []
    for count in np.unique(size).tolist():
        select = size[slot] == count
        mine, its_slot = rows[select], slot[select]
        truths = truth_rows[first_truth[its_slot][:, None] + np.arange(count)]
        tiou = pairwise_tiou(found.segments[mine][:, None], truth.segments[truths])  # (P, count)
        near = ~(tiou < tious.min()).all(axis=1)
        assign = _assign_single if count == 1 else _assign
        level, winner, place = assign(its_slot[near], tiou[near], tious, kind)
        levels.append(level)
        winners.append(mine[near][winner])
        taken.append(truths[near][winner, place])
    return np.concatenate(levels), np.concatenate(winners), np.concatenate(taken)


def _assign_single(
    group: np.ndarray, tiou: np.ndarray, tious: np.ndarray, kind: str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`_assign` where every group has one ground truth: the first that overlaps enough wins."""
    levels, winners = [], []
    first = np.empty(int(group.max(initial=-1)) + 1, np.int64)
    for t, threshold in enumerate(tious.tolist()):
        rows = np.flatnonzero(~(tiou[:, 0] < threshold))
        first[group[rows[::-1]]] = rows[::-1]  # the first is written last
        winner = rows[first[group[rows]] == rows]
        levels.append(np.full(len(winner), t))
        winners.append(winner)
    level = np.concatenate(levels)
    return level, np.concatenate(winners), np.zeros_like(level)


def _assign(
    group: np.ndarray, tiou: np.ndarray, tious: np.ndarray, kind: str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True positives (threshold index, row, place of the truth) among P predictions in order.

    A prediction takes the first free truth in falling order of tIoU; NaN comes first and passes.

    Args:
        group: (P,) which predictions compete.
        tiou: (P, count) with the ground truths of their group.
    """
    preference = np.argsort(tiou, axis=1, kind=kind)[:, ::-1]
    ranked = np.take_along_axis(tiou, preference, 1)
    passes = ~(ranked[:, None, :] < tious[None, :, None])  # (P, T, count)
    groups, member = np.unique(group, return_inverse=True)
    step = _place_in_group(member)
    free = np.ones((len(groups), len(tious), tiou.shape[1]), bool)
    found = [np.zeros((3, 0), np.int64)]
    by_step = np.argsort(step, kind="stable")
    for rows in np.split(by_step, np.flatnonzero(np.diff(step[by_step])) + 1):
        choice = preference[rows][:, None, :]  # (R, 1, count)
        state = free[member[rows]]  # (R, T, count)
        open_ = passes[rows] & np.take_along_axis(state, np.broadcast_to(choice, state.shape), 2)
        r, t = np.nonzero(open_.any(2))
        best = open_[r, t].argmax(1)
        place = choice[r, 0, best]
        free[member[rows[r]], t, place] = False
        found.append(np.stack([t, rows[r], place]))
    level, winner, place = np.concatenate(found, axis=1)
    return level, winner, place


def _place_in_group(member: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... for the first, second, third occurrence of every value."""
    order = np.argsort(member, kind="stable")
    counts = np.bincount(member)
    place = np.empty(len(member), np.int64)
    place[order] = np.arange(len(member)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place


def pairwise_tiou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """tIoU of broadcast segments (..., 2); 0/0 is NaN, reversed segments as in the toolkit."""
    a_start, a_end, b_start, b_end = a[..., 0], a[..., 1], b[..., 0], b[..., 1]
    overlap = np.minimum(a_end, b_end)
    overlap -= np.maximum(a_start, b_start)
    np.maximum(overlap, 0.0, out=overlap)
    union = (b_end - b_start) + (a_end - a_start)
    union -= overlap
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(overlap, union, out=overlap)
