"""Kinds of false positives, and which instances are hard to find.

Categories, their tIoU floor of 0.1, the buckets and normalised AP follow Alwassel et al.,
"Diagnosing Error in Temporal Action Detectors", ECCV 2018 (sections 4 to 6).
"""

from dataclasses import dataclass

import numpy as np

from lofi.evaluation.matching import (
    align,
    average_precision,
    best_first,
    match,
    pairwise_tiou,
    ranks,
)
from lofi.evaluation.tables import Predictions, Truth

FLOOR = 0.1  # tIoU below which a detection has nothing to do with an instance
CATEGORIES = (
    "true positive",
    "double detection",
    "wrong label",
    "localisation error",
    "confusion",
    "background",
)
INFINITE = float("inf")
BUCKETS = {  # property -> name: upper end, inclusive
    "coverage": {"XS": 0.2, "S": 0.4, "M": 0.6, "L": 0.8, "XL": INFINITE},  # of the video
    "length": {"XS": 30, "S": 60, "M": 120, "L": 180, "XL": INFINITE},  # seconds
    "instances": {"1": 1, "2-4": 4, "5-8": 8, "> 8": INFINITE},  # of the class in the video
}


@dataclass(frozen=True)
class FalsePositiveProfile:
    """What the best detections are: per class the top `multiple` x (instances of the class)."""

    tiou: float
    multiples: tuple[int, ...]
    share: dict[str, tuple[float, ...]]  # category -> fraction per multiple, sums to 1
    gain: dict[str, float]  # mAP at `tiou` gained by dropping all detections of the category


@dataclass(frozen=True)
class Bucket:
    """Instances with a property in a range: recall (1 - recall = false-negative rate) and AP_N.

    `normalised_map` is Alwassel's AP_N, mean over classes and tIoUs: only these instances are to
    be found, detections of the others are ignored, and precision is taken as if every class had
    the mean number of instances, so that buckets of different size can be compared.
    """

    property: str
    name: str
    instances: int
    recall: tuple[float, ...]  # per tIoU
    average_recall: float
    normalised_map: float


@dataclass(frozen=True)
class ClassErrors:
    """One class: how well it does and what its best detections are."""

    name: str
    instances: int
    predictions: int
    average_ap: float
    average_recall: float
    share: dict[str, float]  # category -> fraction of the best `instances` detections, at `tiou`


class Matches:
    """Predictions of the truth's classes with what they hit: computed once for all tables."""

    def __init__(self, truth: Truth, found: Predictions, tious: np.ndarray) -> None:
        self.truth, self.tious = truth, tious
        self.video, label = align(truth, found)
        self.found = found._replace(labels=truth.classes, label=label)
        self.order, sizes = best_first(label, found.scores, len(truth.classes), "stable")
        self.rank = ranks(self.order, sizes)
        self.sizes = sizes
        self.instances = np.bincount(truth.label, minlength=len(truth.classes))
        self.level, self.row, self.hit = self.at(tious)  # threshold, prediction, instance

    def at(self, tious: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """True positives at other thresholds."""
        return match(self.truth, self.found, self.video, self.found.label, self.order, tious)

    def recalled(self) -> np.ndarray:
        """(T, G) which instances are found at each threshold."""
        found = np.zeros((len(self.tious), len(self.truth.segments)), bool)
        found[self.level, self.hit] = True
        return found


def best_truth(
    truth: Truth, found: Predictions, video: np.ndarray, same_label: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Row of the ground truth that each prediction overlaps most (-1: none), and that tIoU.

    Args:
        video: (N,) index of the prediction's video in the truth, -1 = not there.
        same_label: consider only ground truth of the prediction's class.
    """
    by_video = np.argsort(truth.video, kind="stable")
    counts = np.bincount(truth.video, minlength=len(truth.videos) + 1)  # last: not there
    offset = np.cumsum(counts) - counts
    lengths = counts[video]
    owner = np.repeat(np.arange(len(video)), lengths)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    rows = by_video[offset[video][owner] + place]
    tiou = pairwise_tiou(found.segments[owner], truth.segments[rows])
    tiou = np.nan_to_num(tiou, nan=1.0)  # 0/0 counts as a match
    if same_label:
        tiou = np.where(truth.label[rows] == found.label[owner], tiou, -1.0)
    order = np.lexsort((-tiou, owner))
    first = order[np.flatnonzero(np.diff(owner[order], prepend=-1))]
    best, value = np.full(len(video), -1), np.zeros(len(video))
    good = first[tiou[first] > 0]
    best[owner[good]], value[owner[good]] = rows[good], tiou[good]
    return best, value


def categories(matches: Matches, tiou: float) -> np.ndarray:
    """(N,) index into `CATEGORIES` of every prediction at one threshold."""
    truth, found, video = matches.truth, matches.found, matches.video
    _, hits, _ = matches.at(np.array([tiou]))
    _, any_tiou = best_truth(truth, found, video, same_label=False)
    _, own_tiou = best_truth(truth, found, video, same_label=True)
    category = np.full(len(video), CATEGORIES.index("background"))
    for name, where in (
        ("confusion", any_tiou >= FLOOR),
        ("localisation error", own_tiou >= FLOOR),
        ("wrong label", (any_tiou >= tiou) & (own_tiou < tiou)),
        ("double detection", own_tiou >= tiou),
    ):
        category[where] = CATEGORIES.index(name)
    category[hits] = CATEGORIES.index("true positive")
    return category


def profile(matches: Matches, category: np.ndarray, tiou: float) -> FalsePositiveProfile:
    """Shares of the categories among the best detections, and what each costs."""
    truth, found = matches.truth, matches.found
    multiples = tuple(range(1, 11))
    shares = []
    for multiple in multiples:
        top = matches.rank < multiple * matches.instances[found.label]
        counts = np.bincount(category[top], minlength=len(CATEGORIES))
        shares.append(counts / max(counts.sum(), 1))
    share = {name: tuple(float(s[i]) for s in shares) for i, name in enumerate(CATEGORIES)}

    def map_of(rows: np.ndarray) -> float:
        return float(average_precision(truth, found.select(rows), np.array([tiou]))[0].mean())

    base = map_of(category >= 0)
    gain = {name: map_of(category != i) - base for i, name in enumerate(CATEGORIES) if i}
    return FalsePositiveProfile(tiou, multiples, share, gain)


def sensitivity(matches: Matches) -> tuple[Bucket, ...]:
    """Recall and AP_N by coverage of the video, length, and instances of the class in the video."""
    truth = matches.truth
    length = truth.segments[:, 1] - truth.segments[:, 0]
    key = truth.label * len(truth.videos) + truth.video
    _, group, counts = np.unique(key, return_inverse=True, return_counts=True)
    values = {
        "coverage": length / truth.durations[truth.video],
        "length": length,
        "instances": counts[group],
    }
    recalled = matches.recalled()
    buckets = []
    for name, limits in BUCKETS.items():
        low = -INFINITE
        for bucket, high in limits.items():
            inside = (values[name] > low) & (values[name] <= high)
            if inside.any():
                recall = recalled[:, inside].mean(axis=1)
                buckets.append(
                    Bucket(
                        name,
                        bucket,
                        int(inside.sum()),
                        tuple(recall.tolist()),
                        float(recall.mean()),
                        normalised_map(matches, inside),
                    )
                )
            low = high
    return tuple(buckets)


def normalised_map(matches: Matches, inside: np.ndarray) -> float:
    """Mean AP_N of the instances `inside` (G,), over their classes and all thresholds.

    Normalised precision R N / (R N + F) with recall R, false positives F so far, and N the mean
    number of instances of a class of the subset (Alwassel et al., section 5).
    """
    truth, mean = matches.truth, float(matches.instances.mean())
    wanted = np.bincount(truth.label[inside], minlength=len(truth.classes))
    chosen = inside[matches.hit]
    values = []
    for t in range(len(matches.tious)):
        here = matches.level == t
        others = np.zeros(len(matches.rank), bool)  # true positives of other instances: ignored
        others[matches.row[here & ~chosen]] = True
        hits = np.zeros(len(matches.rank), bool)
        hits[matches.row[here & chosen]] = True
        for c in np.flatnonzero(wanted).tolist():
            low = int(matches.sizes[:c].sum())
            rows = matches.order[low : low + int(matches.sizes[c])]
            hit = hits[rows[~others[rows]]]
            true = np.flatnonzero(hit)
            count = np.arange(1, len(true) + 1)
            weighted = count / wanted[c] * mean  # R N
            values.append(_envelope_area(weighted / (weighted + true + 1 - count), wanted[c]))
    return float(np.mean(values))


def _envelope_area(precision: np.ndarray, instances: int) -> float:
    """Area under the falling envelope of precisions at the true positives."""
    return float(np.maximum.accumulate(precision[::-1]).sum() / instances)


def class_errors(matches: Matches, category: np.ndarray, ap: np.ndarray) -> tuple[ClassErrors, ...]:
    """A row a class, in the order of the truth. `ap`: (classes, T)."""
    truth, label = matches.truth, matches.found.label
    recall = matches.recalled().mean(axis=0)
    rows = []
    for c, name in enumerate(truth.classes):
        mine = label == c
        best = category[mine & (matches.rank < matches.instances[c])]
        counts = np.bincount(best, minlength=len(CATEGORIES)) / max(len(best), 1)
        rows.append(
            ClassErrors(
                name,
                int(matches.instances[c]),
                int(matches.sizes[c]),
                float(ap[c].mean()),
                float(recall[truth.label == c].mean()),
                dict(zip(CATEGORIES, counts.tolist())),
            )
        )
    return tuple(rows)
