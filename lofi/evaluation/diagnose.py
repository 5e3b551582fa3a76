"""Where the points are lost: oracles, kinds of false positives, hard instances, missing videos.

The categories, their tIoU floor of 0.1 and the buckets follow Alwassel et al., "Diagnosing Error
in Temporal Action Detectors", ECCV 2018.  The ladder asks one question per rung: how much would
mAP rise if this one thing were perfect?
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lofi.evaluation.detection import (
    PROTOCOLS,
    DetectionResult,
    align,
    average_precision,
    best_first,
    detection_map,
    match,
    pairwise_tiou,
)
from lofi.evaluation.tables import Predictions, Truth, prediction_table, truth_table

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
class Rung:
    """mAP if one thing were perfect."""

    name: str
    meaning: str
    map: tuple[float, ...]
    average_map: float
    gain: float  # over the detections as they are


@dataclass(frozen=True)
class FalsePositiveProfile:
    """What the best detections are: per class the top `multiple` x (instances of the class)."""

    tiou: float
    multiples: tuple[int, ...]
    share: dict[str, tuple[float, ...]]  # category -> fraction per multiple, sums to 1


@dataclass(frozen=True)
class Bucket:
    """Recall of the instances with a property in a range (1 - recall = false-negative rate)."""

    property: str
    name: str
    instances: int
    recall: tuple[float, ...]  # per tIoU
    average_recall: float


@dataclass(frozen=True)
class GridRecall:
    """Best possible recall of the anchor grid with L snippets."""

    snippets: int
    include_video_end: bool
    recall: tuple[float, ...]  # per tIoU


@dataclass(frozen=True)
class MissingVideos:
    """Annotated videos without any detection."""

    videos: tuple[str, ...]
    instances: int
    average_map_without_them: float  # as if the subset had only the other videos
    unknown_videos: tuple[str, ...]  # have detections but no annotation in the subset


@dataclass(frozen=True)
class Diagnosis:
    """Everything `diagnose` found."""

    result: DetectionResult
    ladder: tuple[Rung, ...]
    profile: FalsePositiveProfile
    sensitivity: tuple[Bucket, ...]
    grid: tuple[GridRecall, ...]  # empty when durations are unknown
    missing: MissingVideos

    def to_json(self) -> dict[str, Any]:
        """JSON-able dict, one key per field."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [str(self.result), "", "if only ... were perfect   average mAP    gain"]
        for r in self.ladder:
            lines.append(f"  {r.name:24s} {100 * r.average_map:12.2f} {100 * r.gain:+7.2f}")
        lines += ["", f"top detections at tIoU {self.profile.tiou:g} (x instances of the class)"]
        for name, share in self.profile.share.items():
            lines.append(f"  {name:20s}" + "".join(f" {100 * x:5.1f}" for x in share) + " %")
        lines += ["", "recall, mean over tIoUs"]
        for b in self.sensitivity:
            recall = f"{100 * b.average_recall:6.2f} of {b.instances}"
            lines.append(f"  {b.property:10s} {b.name:4s} {recall}")
        if self.missing.videos:
            lines += [
                "",
                f"{len(self.missing.videos)} videos with {self.missing.instances} instances have "
                f"no detection; mAP without them {100 * self.missing.average_map_without_them:.2f}",
            ]
        return "\n".join(lines)


def diagnose(
    ground_truth: Any,
    detections: Any,
    tious: Any = None,
    subset: str | None = None,
    protocol: str = "activitynet",
    snippets: tuple[int, ...] = (25, 50, 100),
    profile_tiou: float = 0.5,
) -> Diagnosis:
    """Evaluate and explain.

    Args:
        ground_truth, detections, tious, subset, protocol: as in `detection_map`.
        snippets: grid sizes L whose best possible recall is reported.
        profile_tiou: threshold of the false-positive profile.
    """
    result = detection_map(ground_truth, detections, tious, subset, protocol)
    truth = truth_table(ground_truth, result.subset, PROTOCOLS[protocol].ignore)
    found = prediction_table(detections, with_labels=True)
    thresholds = np.array(result.tious)
    video, label = align(truth, found)
    found = found._replace(labels=truth.classes, label=label)
    grid = ()
    if np.isfinite(truth.durations).all():
        grid = tuple(
            GridRecall(size, end, grid_recall(truth, size, thresholds, end))
            for size in snippets
            for end in (False, True)
        )
    return Diagnosis(
        result,
        _ladder(truth, found, video, thresholds, result.average_map),
        _profile(truth, found, video, profile_tiou),
        _sensitivity(truth, found, video, thresholds),
        grid,
        _missing(truth, found, video, thresholds),
    )


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


def _ladder(
    truth: Truth, found: Predictions, video: np.ndarray, tious: np.ndarray, base: float
) -> tuple[Rung, ...]:
    any_row, _ = best_truth(truth, found, video, same_label=False)
    own_row, own_tiou = best_truth(truth, found, video, same_label=True)
    near = own_tiou >= FLOOR
    relabelled = np.where(any_row >= 0, truth.label[any_row], found.label)
    snapped = np.where(near[:, None], truth.segments[own_row], found.segments)
    kept, promoted = _one_per_instance(found.scores, own_row, own_tiou, near)
    steps = {
        "labels": (
            "every detection has the class of the instance it overlaps most",
            found._replace(label=relabelled),
        ),
        "boundaries": (
            f"detections with tIoU >= {FLOOR} to an instance of their class end where it ends",
            found._replace(segments=snapped),
        ),
        "scores": (
            "detections are ranked by their tIoU to an instance of their class",
            found._replace(scores=own_tiou),
        ),
        "suppression": (
            "every instance keeps its best overlapping detection, with the highest score of all",
            _select(found._replace(scores=promoted), kept | ~near),
        ),
        "rejection": (
            f"no detection has tIoU < {FLOOR} to all instances of its class",
            _select(found, near),
        ),
    }
    rungs = []
    for name, (meaning, changed) in steps.items():
        maps = average_precision(truth, changed, tious)[0].mean(axis=1)
        average = float(maps.mean())
        rungs.append(Rung(name, meaning, tuple(maps.tolist()), average, average - base))
    return tuple(rungs)


def _select(found: Predictions, rows: np.ndarray) -> Predictions:
    """The predictions where `rows` (N,) is true."""
    return found._replace(
        video=found.video[rows],
        label=found.label[rows],
        scores=found.scores[rows],
        segments=found.segments[rows],
    )


def _one_per_instance(
    scores: np.ndarray, row: np.ndarray, tiou: np.ndarray, near: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) bool: the best overlapping detection of every instance; and scores where it has the
    highest one of the detections of its instance."""
    candidates = np.flatnonzero(near)
    order = candidates[np.lexsort((-tiou[candidates], row[candidates]))]
    first = np.flatnonzero(np.diff(row[order], prepend=-1))
    kept, promoted = np.zeros(len(row), bool), scores.copy()
    kept[order[first]] = True
    if len(first):
        promoted[order[first]] = np.maximum.reduceat(scores[order], first)
    return kept, promoted


def _profile(
    truth: Truth, found: Predictions, video: np.ndarray, tiou: float
) -> FalsePositiveProfile:
    order, rank = best_first(found.label, found.scores, len(truth.classes), "stable")
    _, hits, _ = match(truth, found, video, found.label, order, np.array([tiou]))
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
    instances = np.bincount(truth.label, minlength=len(truth.classes))
    multiples = tuple(range(1, 11))
    shares = []
    for multiple in multiples:
        counts = np.bincount(
            category[rank < multiple * instances[found.label]], minlength=len(CATEGORIES)
        )
        shares.append(counts / max(counts.sum(), 1))
    share = {name: tuple(float(s[i]) for s in shares) for i, name in enumerate(CATEGORIES)}
    return FalsePositiveProfile(tiou, multiples, share)


def _sensitivity(
    truth: Truth, found: Predictions, video: np.ndarray, tious: np.ndarray
) -> tuple[Bucket, ...]:
    order, _ = best_first(found.label, found.scores, len(truth.classes), "stable")
    level, _, row = match(truth, found, video, found.label, order, tious)
    recalled = np.zeros((len(tious), len(truth.segments)), bool)
    recalled[level, row] = True
    length = truth.segments[:, 1] - truth.segments[:, 0]
    key = truth.label * len(truth.videos) + truth.video
    _, group, counts = np.unique(key, return_inverse=True, return_counts=True)
    values = {
        "coverage": length / truth.durations[truth.video],
        "length": length,
        "instances": counts[group],
    }
    buckets = []
    for name, limits in BUCKETS.items():
        low = -INFINITE
        for bucket, high in limits.items():
            inside = (values[name] > low) & (values[name] <= high)
            if inside.any():
                recall = recalled[:, inside].mean(axis=1)
                average = float(recall.mean())
                buckets.append(
                    Bucket(name, bucket, int(inside.sum()), tuple(recall.tolist()), average)
                )
            low = high
    return tuple(buckets)


def _missing(
    truth: Truth, found: Predictions, video: np.ndarray, tious: np.ndarray
) -> MissingVideos:
    seen = np.zeros(len(truth.videos), bool)
    seen[video[video >= 0]] = True
    rows = seen[truth.video]
    average = float("nan")
    if rows.any():
        classes = np.unique(truth.label[rows])
        names = tuple(truth.classes[c] for c in classes)
        fewer = truth._replace(
            classes=names,
            video=truth.video[rows],
            label=np.searchsorted(classes, truth.label[rows]),
            segments=truth.segments[rows],
        )
        known = _select(found, np.isin(found.label, classes))
        known = known._replace(labels=names, label=np.searchsorted(classes, known.label))
        average = float(average_precision(fewer, known, tious)[0].mean())
    return MissingVideos(
        tuple(np.array(truth.videos, object)[~seen]),
        int((~rows).sum()),
        average,
        tuple(sorted({found.videos[v] for v in np.unique(found.video[video < 0])})),
    )


def grid_recall(
    truth: Truth, snippets: int, tious: np.ndarray, include_video_end: bool = False
) -> tuple[float, ...]:
    """Fraction of instances for which some grid segment reaches each tIoU.

    The best start is one of the two grid lines around the instance's start, likewise the end.
    """
    last = snippets if include_video_end else snippets - 1
    unit = np.clip(truth.segments / truth.durations[truth.video][:, None], 0.0, 1.0)
    best = np.zeros(len(unit))
    for round_start in (np.floor, np.ceil):
        for round_end in (np.floor, np.ceil):
            start = np.clip(round_start(unit[:, 0] * snippets), 0, last - 1)
            end = np.clip(round_end(unit[:, 1] * snippets), 1, last)
            cell = np.stack([start, end], axis=1) / snippets
            tiou = np.where(end > start, np.nan_to_num(pairwise_tiou(unit, cell)), 0.0)
            best = np.maximum(best, tiou)
    return tuple(float((best >= threshold).mean()) for threshold in tious)
