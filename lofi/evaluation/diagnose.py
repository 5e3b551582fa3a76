"""Where the points are lost: oracles, kinds of false positives, hard instances, missing videos.

The ladder asks one question per rung: how much would mAP rise if this one thing were perfect?
False-positive profile and sensitivity: `lofi.evaluation.errors`.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lofi.evaluation.available import restrict
from lofi.evaluation.detection import DetectionResult, evaluate_tables, rules_of
from lofi.evaluation.errors import (
    FLOOR,
    Bucket,
    ClassErrors,
    FalsePositiveProfile,
    Matches,
    best_truth,
    categories,
    class_errors,
    profile,
    sensitivity,
)
from lofi.evaluation.matching import align, average_precision, pairwise_tiou
from lofi.evaluation.tables import Predictions, Truth, prediction_table, truth_table


@dataclass(frozen=True)
class Rung:
    """mAP if one thing were perfect."""

    name: str
    meaning: str
    map: tuple[float, ...]
    average_map: float
    gain: float  # over the detections as they are


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
            lines.append(f"  {r.name:24s} {100 * r.average_map:12.2f} {100 * r.gain:+7.2f}")
        p = self.profile
        lines += ["", f"top detections at tIoU {p.tiou:g}, in % (1, 2, ... 10 x instances of the"]
        lines[-1] += " class), and mAP gained without them"
        for name, share in p.share.items():
            gain = f" {100 * p.gain[name]:+8.2f}" if name in p.gain else ""
            lines.append(f"  {name:20s}" + "".join(f" {100 * x:5.1f}" for x in share) + gain)
        lines += ["", "instances, means over tIoUs       number   recall    AP_N"]
        for b in self.sensitivity:
            values = f"{100 * b.average_recall:8.2f} {100 * b.normalised_map:7.2f}"
            numbers = f"{b.instances:8d} {values}"
            lines.append(f"  {b.property:12s} {b.name:14s}    {numbers}")
        worst = sorted(self.classes, key=lambda c: c.average_ap)[:5]
        lines += ["", "weakest classes                 instances   recall      AP"]
        for c in worst:
            numbers = f"{c.instances:8d} {100 * c.average_recall:8.2f} {100 * c.average_ap:7.2f}"
            lines.append(f"  {c.name[:30]:30s} {numbers}")
        if self.grid:
            lines += ["", f"best recall of the anchor grid at tIoU {self.grid_tious()}"]
        for g in self.grid:
            end = " with video end" if g.include_video_end else ""
            values = " ".join(f"{100 * x:6.2f}" for x in g.recall)
            lines.append(f"  {f'L = {g.snippets}{end}':24s} {values}")
        if self.missing.videos:
            lines += [
                "",
                f"{len(self.missing.videos)} videos with {self.missing.instances} instances have "
                f"no detection; mAP without them {100 * self.missing.average_map_without_them:.2f}",
            ]
        return "\n".join(lines)

    def grid_tious(self) -> str:
        """The thresholds of the grid's columns."""
        return " ".join(f"{t:g}" for t in self.result.tious)


def diagnose(
    ground_truth: Any,
    detections: Any,
    tious: Any = None,
    subset: str | None = None,
    protocol: str = "activitynet",
    snippets: tuple[int, ...] = (25, 50, 100),
    profile_tiou: float = 0.5,
    unsuppressed: Any = None,
) -> Diagnosis:
    """Evaluate and explain.

    Args:
        ground_truth, detections, tious, subset, protocol: as in `detection_map`.
        snippets: grid sizes L whose best possible recall is reported.
        profile_tiou: threshold of the false-positive profile.
        unsuppressed: the same detections before suppression; adds two rungs, what they score
            without any, and with the best one possible.
    """
    rules, thresholds = rules_of(protocol, tious)
    truth = truth_table(ground_truth, subset or rules.subset, rules.ignore)
    found = prediction_table(detections, with_labels=True)
    result = evaluate_tables(truth, found, thresholds, protocol)
    matches = Matches(truth, found, thresholds)
    category = categories(matches, profile_tiou)
    ladder = _ladder(truth, matches.found, matches.video, thresholds, result.average_map)
    if unsuppressed is not None:
        all_of_them = prediction_table(unsuppressed, with_labels=True)
        ladder += _without_suppression(truth, all_of_them, thresholds, result.average_map)
    grid = ()
    if np.isfinite(truth.durations).all():
        grid = tuple(
            GridRecall(size, end, grid_recall(truth, size, thresholds, end))
            for size in snippets
            for end in (False, True)
        )
    return Diagnosis(
        result,
        ladder,
        profile(matches, category, profile_tiou),
        sensitivity(matches),
        class_errors(matches, category, np.array(result.ap)),
        grid,
        _missing(truth, found, matches.video, thresholds),
    )


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
            found._replace(scores=promoted).select(kept | ~near),
        ),
        "rejection": (
            f"no detection has tIoU < {FLOOR} to all instances of its class",
            found.select(near),
        ),
    }
    return tuple(
        _rung(truth, name, meaning, changed, tious, base)
        for name, (meaning, changed) in steps.items()
    )


def _rung(
    truth: Truth, name: str, meaning: str, found: Predictions, tious: np.ndarray, base: float
) -> Rung:
    maps = average_precision(truth, found, tious)[0].mean(axis=1)
    average = float(maps.mean())
    return Rung(name, meaning, tuple(maps.tolist()), average, average - base)


def _without_suppression(
    truth: Truth, found: Predictions, tious: np.ndarray, base: float
) -> tuple[Rung, Rung]:
    video, label = align(truth, found)
    found = found._replace(labels=truth.classes, label=label)
    row, tiou = best_truth(truth, found, video, same_label=True)
    near = tiou >= FLOOR
    kept, promoted = _one_per_instance(found.scores, row, tiou, near)
    best = found._replace(scores=promoted).select(kept | ~near)
    none = ("no suppression", "the detections before suppression")
    ideal = ("best suppression", "before suppression, one detection per instance kept: the best")
    return _rung(truth, *none, found, tious, base), _rung(truth, *ideal, best, tious, base)


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


def _missing(
    truth: Truth, found: Predictions, video: np.ndarray, tious: np.ndarray
) -> MissingVideos:
    seen = np.zeros(len(truth.videos), bool)
    seen[video[video >= 0]] = True
    average = float("nan")
    if seen.any():
        names = set(np.array(truth.videos, object)[seen])
        average = float(average_precision(*restrict(truth, found, names), tious)[0].mean())
    return MissingVideos(
        tuple(np.array(truth.videos, object)[~seen]),
        int((~seen[truth.video]).sum()),
        average,
        tuple(sorted({found.videos[v] for v in np.unique(found.video[video < 0])})),
    )


def grid_recall(
    truth: Truth, snippets: int, tious: np.ndarray, include_video_end: bool = False
) -> tuple[float, ...]:
    """Fraction of instances for which some grid segment reaches each tIoU."""
    _, best = grid_segments(truth, snippets, include_video_end)
    return tuple(float((best >= threshold).mean()) for threshold in tious)


def grid_segments(
    truth: Truth, snippets: int, include_video_end: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The grid segment (G, 2) in seconds nearest to every instance, and its tIoU (G,).

    The best start is one of the two grid lines around the instance's start, likewise the end.
    """
    last = snippets if include_video_end else snippets - 1
    duration = truth.durations[truth.video]
    unit = np.clip(truth.segments / duration[:, None], 0.0, 1.0)
    best, cells = np.zeros(len(unit)), np.zeros((len(unit), 2))
    for round_start in (np.floor, np.ceil):
        for round_end in (np.floor, np.ceil):
            start = np.clip(round_start(unit[:, 0] * snippets), 0, last - 1)
            end = np.clip(round_end(unit[:, 1] * snippets), 1, last)
            cell = np.stack([start, end], axis=1) / snippets
            tiou = np.where(end > start, np.nan_to_num(pairwise_tiou(unit, cell)), 0.0)
            better = tiou > best
            best[better], cells[better] = tiou[better], cell[better]
    return cells * duration[:, None], best
