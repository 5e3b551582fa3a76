"""Where the points are lost: oracles, kinds of false positives, hard instances, missing videos.

The ladder asks one question per rung: how much would mAP rise if this one thing were perfect?
Categories, their tIoU floor of 0.1, the buckets and normalised AP follow Alwassel et al.,
"Diagnosing Error in Temporal Action Detectors", ECCV 2018 (sections 4 to 6).
"""

from dataclasses import asdict, dataclass
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np

from lofi.evaluation.columns import Predictions, Truth, prediction_table
from lofi.evaluation.detection import DetectionResult, evaluate, load
from lofi.evaluation.matching import BLOCK, Matches, equal_runs, pairs, tiou_of

FLOOR = 0.1  # tIoU below which a detection has nothing to do with an instance
CATEGORIES = ("true positive", "double detection", "wrong label", "localisation error",
              "confusion", "background")  # fmt: skip
RUNGS = {  # what is perfect -> what that means
    "labels": "every detection has the class of the instance it overlaps most",
    "boundaries": f"detections with tIoU >= {FLOOR} to an instance of their class end where it "
    "ends",
    "scores": "detections are ranked by their tIoU to an instance of their class",
    "suppression": "every instance keeps its best overlapping detection, with the highest score "
    "of all",
    "rejection": f"no detection has tIoU < {FLOOR} to all instances of its class",
    "no suppression": "the detections before suppression",
    "best suppression": "before suppression, one detection per instance kept: the best",
}
BUCKETS = {  # property -> name: upper end, inclusive
    "coverage": {"XS": 0.2, "S": 0.4, "M": 0.6, "L": 0.8, "XL": np.inf},  # of the video
    "length": {"XS": 30, "S": 60, "M": 120, "L": 180, "XL": np.inf},  # seconds
    "instances": {"1": 1, "2-4": 4, "5-8": 8, "> 8": np.inf},  # of the class in the video
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
    gain: dict[str, float]  # mAP at `tiou` gained by dropping all detections of the category


@dataclass(frozen=True)
class Bucket:
    """Instances with a property in a range; 1 - recall is their false-negative rate."""

    property: str
    name: str
    instances: int
    recall: tuple[float, ...]  # per tIoU
    average_recall: float
    normalised_map: float  # Alwassel's AP_N, mean over classes and tIoUs: `_normalised_map`


@dataclass(frozen=True)
class ClassErrors:
    """One class: how well it does and what its best detections are."""

    name: str
    instances: int
    predictions: int
    average_ap: float
    average_recall: float
    share: dict[str, float]  # category -> fraction of the best `instances` detections, at `tiou`


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
    classes: tuple[ClassErrors, ...]
    grid: tuple[GridRecall, ...]  # empty when durations are unknown
    missing: MissingVideos

    def to_json(self) -> dict[str, Any]:
        """JSON-able dict, one key per field."""
        return asdict(self) | {"result": self.result.to_json()}

    def __str__(self) -> str:
        lines = [str(self.result), "", "if only ... were perfect   average mAP    gain"]
        for r in self.ladder:
            lines += [f"  {r.name:24s} {100 * r.average_map:12.2f} {100 * r.gain:+7.2f}"]
        p = self.profile
        lines += ["", f"top detections at tIoU {p.tiou:g}, in % (1, 2, ... 10 x instances of the "
                  "class), and mAP gained without them"]  # fmt: skip
        for name, share in p.share.items():
            gain = f" {100 * p.gain[name]:+8.2f}" if name in p.gain else ""
            lines += [f"  {name:20s}" + "".join(f" {100 * x:5.1f}" for x in share) + gain]
        lines += ["", "instances, means over tIoUs       number   recall    AP_N"]
        for b in self.sensitivity:
            values = f"{100 * b.average_recall:8.2f} {100 * b.normalised_map:7.2f}"
            lines += [f"  {b.property:12s} {b.name:14s}    {b.instances:8d} {values}"]
        lines += ["", "weakest classes                 instances   recall      AP"]
        for c in sorted(self.classes, key=lambda c: c.average_ap)[:5]:
            values = f"{100 * c.average_recall:8.2f} {100 * c.average_ap:7.2f}"
            lines += [f"  {c.name:30.30s} {c.instances:8d} {values}"]
        if self.grid:
            tious = " ".join(f"{t:g}" for t in self.result.tious)
            lines += ["", f"best recall of the anchor grid at tIoU {tious}"]
        for g in self.grid:
            size = f"L = {g.snippets}{' with video end' if g.include_video_end else ''}"
            lines += [f"  {size:24s} " + " ".join(f"{100 * x:6.2f}" for x in g.recall)]
        m = self.missing
        if m.videos:
            lines += ["", f"{len(m.videos)} videos with {m.instances} instances have no detection; "
                      f"mAP without them {100 * m.average_map_without_them:.2f}"]  # fmt: skip
        return "\n".join(lines)


def diagnose(
    ground_truth: Any, detections: Any, tious: Any = None, subset: str | None = None,
    protocol: str = "activitynet", snippets: tuple[int, ...] = (25, 50, 100),
    profile_tiou: float = 0.5, unsuppressed: Any = None, strict: bool = True,
) -> Diagnosis:  # fmt: skip
    """Evaluate and explain.

    Args:
        ground_truth, detections, tious, subset, protocol, strict: as in `detection_map`.
        snippets: grid sizes L whose best possible recall is reported.
        profile_tiou: threshold of the false-positive profile.
        unsuppressed: the same detections before suppression; adds two rungs, what they score
            without any, and with the best one possible.
    """
    truth, found, tious = load(ground_truth, detections, tious, subset, protocol, strict=strict)
    matches = Matches(truth, found, tious)
    result = evaluate(matches, protocol)
    nearest, own = _nearest(matches)
    given, close = matches.found, own.tiou >= FLOOR
    labels = np.where(nearest.row >= 0, truth.label[nearest.row], given.label)
    segments = np.where(close[:, None], truth.segments[own.row], given.segments)
    near = own.tiou >= tious.min()
    changes = {  # rung -> detections, which of them may take an instance
        "labels": (given._replace(label=labels), nearest.tiou >= tious.min()),
        "boundaries": (given._replace(segments=segments), near | close),
        "scores": (given._replace(scores=own.tiou), near),
        "suppression": (_best_of_each(given, own), None),
        "rejection": (given.select(close), near[close]),
    }
    if unsuppressed is not None:
        before = Matches(truth, prediction_table(unsuppressed, truth), tious)
        changes["no suppression"] = before.found, None
        changes["best suppression"] = _best_of_each(before.found, _nearest(before)[1]), None
    ladder = []
    for name, (changed, may) in changes.items():
        if name == "rejection" and close[matches.row].all():  # the others take no instance
            maps = matches.average_precision(close).mean(axis=1)
        else:
            maps = Matches(truth, changed, tious, may).average_precision().mean(axis=1)
        average = float(maps.mean())
        numbers = tuple(maps.tolist()), average, average - result.average_map
        ladder.append(Rung(name, RUNGS[name], *numbers))
    profiled = matches.at(np.array([profile_tiou]), own.tiou >= profile_tiou)
    true = np.zeros(len(matches.video), bool)
    true[profiled.row] = True
    rules = [true, *(x.tiou >= t for t in (profile_tiou, FLOOR) for x in (own, nearest))]
    category = np.select(rules, range(5), default=5)  # (N,) of `CATEGORIES` the first that is true
    recalled = np.zeros((len(tious), len(truth.segments)), bool)
    recalled[matches.level, matches.hit] = True
    sizes = snippets if np.isfinite(truth.durations).all() else ()
    grid = []
    for size, end in product(sizes, (False, True)):
        best = grid_tiou(truth, size, end)
        grid.append(GridRecall(size, end, tuple(float((best >= t).mean()) for t in tious)))
    return Diagnosis(
        result,
        tuple(ladder),
        _profile(profiled, category),
        _sensitivity(matches, recalled),
        _class_errors(matches, category, recalled, result),
        tuple(grid),
        _missing(found, matches),
    )


def precision_recall_curve(
    ground_truth: Any, detections: Any, label: str, tiou: float = 0.5, subset: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(recall, precision), (n,) each, after every detection of one class, best score first.

    The area under the envelope of these points is the class's AP at this tIoU. Inputs as in
    `detection_map`; ValueError when the subset does not have the class.
    """
    truth, found, tious = load(ground_truth, detections, [tiou], subset, "activitynet")
    if label not in truth.classes:
        raise ValueError(f"class {label!r} is not in subset {truth.subset!r}: {truth.classes}")
    matches = Matches(truth, found, tious)
    mine = truth.classes.index(label)
    hits = np.zeros(matches.sizes[mine])
    hits[matches.rank[matches.row[matches.found.label[matches.row] == mine]]] = 1
    hits = np.cumsum(hits)
    return hits / matches.instances[mine], hits / np.arange(1, len(hits) + 1)


class Nearest(NamedTuple):
    """The instance that every detection overlaps most."""

    row: np.ndarray  # (N,), -1 = none
    tiou: np.ndarray  # (N,)


def _nearest(matches: Matches) -> tuple[Nearest, Nearest]:
    """Among the instances of every class, and of the detection's own."""
    truth, found, video = matches.truth, matches.found, matches.video
    by_video = np.argsort(truth.video, kind="stable")
    counts = np.bincount(truth.video, minlength=len(truth.videos) + 1)  # last: not there
    first = np.cumsum(counts) - counts
    size = len(video)
    both = [Nearest(np.full(size, -1), np.zeros(size)) for _ in range(2)]
    for low in range(0, size, BLOCK):
        mine = low + np.flatnonzero(counts[video[low : low + BLOCK]])
        owner, place = pairs(counts[video[mine]])
        if not len(owner):
            continue
        rows = by_video[first[video[mine]][owner] + place]
        tiou = tiou_of(found.segments[mine].T[:, owner], truth.segments.T[:, rows])
        tiou = np.nan_to_num(tiou, nan=float(truth.toolkit))  # there, 0/0 is a match
        same = np.where(truth.label[rows] == found.label[mine][owner], tiou, -1.0)
        for values, nearest in zip((tiou, same), both):
            best = np.maximum.reduceat(values, np.flatnonzero(place == 0))
            hit = np.flatnonzero((values == best[owner]) & (values > 0))
            hit = hit[np.diff(owner[hit], prepend=-1) != 0]
            nearest.row[mine[owner[hit]]], nearest.tiou[mine[owner[hit]]] = rows[hit], values[hit]
    return both[0], both[1]


def _best_of_each(found: Predictions, own: Nearest) -> Predictions:
    """Of all detections close to an instance of their class only the one that overlaps it most,
    with the highest score of them; those close to none stay."""
    kept, scores = own.tiou < FLOOR, found.scores.copy()
    order = np.flatnonzero(~kept)
    order = order[np.lexsort((-own.tiou[order], own.row[order]))]
    first = np.flatnonzero(np.diff(own.row[order], prepend=-1))
    kept[order[first]] = True
    if len(first):
        scores[order[first]] = np.maximum.reduceat(found.scores[order], first)
    return found._replace(scores=scores).select(kept)


def _profile(matches: Matches, category: np.ndarray) -> FalsePositiveProfile:
    """Shares of the categories among the best detections, and what each costs."""
    multiples = range(1, 11)
    times = np.minimum(matches.rank // matches.instances[matches.found.label], len(multiples))
    size = len(CATEGORIES)
    counts = np.bincount(category + size * times, minlength=size * (len(multiples) + 1))
    counts = np.cumsum(counts.reshape(-1, size)[:-1], axis=0).T
    shares = dict(zip(CATEGORIES, map(tuple, (counts / np.maximum(counts.sum(0), 1)).tolist())))
    base = float(matches.average_precision()[0].mean())
    gain = {}
    for i, name in enumerate(CATEGORIES[1:], 1):  # none of these takes an instance from others
        gain[name] = float(matches.average_precision(category != i)[0].mean()) - base
    return FalsePositiveProfile(float(matches.tious[0]), tuple(multiples), shares, gain)


def _sensitivity(matches: Matches, recalled: np.ndarray) -> tuple[Bucket, ...]:
    """Recall and AP_N by coverage of the video, length, and instances of the class in the video.

    `recalled`: (T, G) which instances are found at each threshold.
    """
    truth = matches.truth
    length = truth.segments[:, 1] - truth.segments[:, 0]
    key = truth.label * len(truth.videos) + truth.video
    _, group, counts = np.unique(key, return_inverse=True, return_counts=True)
    coverage = length / truth.durations[truth.video]
    values = {"coverage": coverage, "length": length, "instances": counts[group]}
    buckets = []
    for name, limits in BUCKETS.items():
        for bucket, (low, high) in zip(limits, pairwise([-np.inf, *limits.values()])):
            inside = (values[name] > low) & (values[name] <= high)
            if inside.any():
                recall = recalled[:, inside].mean(axis=1)
                numbers = tuple(recall.tolist()), float(recall.mean())
                map_n = _normalised_map(matches, inside)
                buckets.append(Bucket(name, bucket, int(inside.sum()), *numbers, map_n))
    return tuple(buckets)


def _normalised_map(matches: Matches, inside: np.ndarray) -> float:
    """Mean AP_N of the instances `inside` (G,), over their classes and all thresholds.

    Only these are to be found, detections of the others are ignored. Precision is taken as if every
    class had N instances, the mean of the subset, so that buckets of different size can be
    compared: R N / (R N + F) with recall R, false positives F so far (Alwassel et al., section 5).
    """
    truth, mean = matches.truth, float(matches.instances.mean())
    wanted = np.bincount(truth.label[inside], minlength=len(truth.classes))
    values = np.zeros((len(matches.tious), len(wanted)))
    key, rank, chosen = matches.key, matches.rank[matches.row], inside[matches.hit]
    others = np.cumsum(~chosen)  # true positives of other instances so far
    others -= (others - ~chosen)[np.searchsorted(key, key)]
    key, place = key[chosen], (rank - others)[chosen]
    for run in equal_runs(key):
        c, t = np.divmod(key[run[:, 0]], len(matches.tious))
        count = np.arange(1, run.shape[1] + 1)
        weighted = count / wanted[c, None] * mean  # R N
        precision = weighted / (weighted + place[run] + 1 - count)
        envelope = np.maximum.accumulate(precision[:, ::-1].copy(), axis=1)
        values[t, c] = envelope.sum(axis=1) / wanted[c]
    return float(values[:, wanted > 0].ravel().mean())


def _class_errors(
    matches: Matches, category: np.ndarray, recalled: np.ndarray, result: DetectionResult
) -> tuple[ClassErrors, ...]:
    """A row a class, in the order of the truth."""
    label, recall, size = matches.found.label, recalled.mean(axis=0), len(CATEGORIES)
    best = matches.rank < matches.instances[label]
    counts = np.bincount(size * label[best] + category[best], minlength=size * len(matches.sizes))
    counts = counts.reshape(-1, size)
    shares = (counts / np.maximum(counts.sum(1, keepdims=True), 1)).tolist()
    rows = []
    for c, name in enumerate(result.classes):
        counts = int(matches.instances[c]), int(matches.sizes[c])
        means = float(np.mean(result.ap[c])), float(recall[matches.truth.label == c].mean())
        rows.append(ClassErrors(name, *counts, *means, dict(zip(CATEGORIES, shares[c]))))
    return tuple(rows)


def _missing(found: Predictions, matches: Matches) -> MissingVideos:
    truth, video = matches.truth, matches.video
    seen = np.isin(np.arange(len(truth.videos)), video)
    names, average = np.array(truth.videos, object), float("nan")
    if seen.any():  # the instances of the others are missed anyhow: they are not counted
        label = truth.label[seen[truth.video]]
        classes, first = np.unique(label, return_index=True)
        instances = np.bincount(label, minlength=len(truth.classes))
        ap = matches.average_precision(instances=instances)
        average = float(ap[:, classes[np.argsort(first)]].copy(order="C").mean())
    unknown = {found.videos[v] for v in np.unique(found.video[video < 0])}
    instances = int((~seen[truth.video]).sum())
    return MissingVideos(tuple(names[~seen]), instances, average, tuple(sorted(unknown)))


def grid_tiou(truth: Truth, snippets: int, include_video_end: bool = False) -> np.ndarray:
    """(G,) tIoU of every instance with the nearest segment of the anchor grid.

    The best start is one of the two grid lines around the instance's start, likewise the end.
    """
    last = snippets if include_video_end else snippets - 1
    unit = np.clip(truth.segments / truth.durations[truth.video][:, None], 0.0, 1.0)
    best = np.zeros(len(unit))
    for round_start, round_end in product((np.floor, np.ceil), repeat=2):
        start = np.clip(round_start(unit[:, 0] * snippets), 0, last - 1) / snippets
        end = np.clip(round_end(unit[:, 1] * snippets), 1, last) / snippets
        tiou = np.nan_to_num(tiou_of(unit.T, (start, end)))
        best = np.maximum(best, np.where(end > start, tiou, 0.0))
    return best
