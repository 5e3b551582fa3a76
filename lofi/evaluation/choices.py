"""Why the same detections score 30 or 34: one change of protocol a row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lofi.evaluation.available import available_ids, restrict, without_labels
from lofi.evaluation.detection import DetectionResult, evaluate_tables, rules_of
from lofi.evaluation.tables import Predictions, Truth, prediction_table, truth_table


@dataclass(frozen=True)
class Choice:
    """What one set of detections scores when one thing about the evaluation is changed."""

    name: str
    meaning: str
    result: DetectionResult
    change: float  # of average mAP against the first row


def protocol_choices(
    ground_truth: Any,
    detections: Mapping[str, Any],
    subset: str | None = None,
    protocol: str = "activitynet",
    available: Any = "auto",
    decimals: int = 4,
) -> tuple[Choice, ...]:
    """Score the same segments under the choices that publications differ in.

    The first source of classes, as it is, is the first row and what the others are compared with.

    Args:
        ground_truth, subset, protocol: as in `detection_map`.
        detections: source of classes ("shared", "own", "oracle") -> its detections, in any form
            that `detection_map` takes.
        available: list of videos as in `detection_map`.
        decimals: to which scores are rounded.
    Raises:
        ValueError: no source, or what `detection_map` raises.
    """
    if not detections:
        raise ValueError("there are no detections; give at least one source, name -> detections")
    rules, tious = rules_of(protocol, None)
    truth = truth_table(ground_truth, subset or rules.subset, rules.ignore)
    tables = {name: prediction_table(x, with_labels=True) for name, x in detections.items()}
    source, found = next(iter(tables.items()))
    rows: list[tuple[str, str, Truth, Predictions, str]] = [
        (f"{name} classes", "as it is", truth, table, "official") for name, table in tables.items()
    ]
    rows += [(*change, "official") for change in _changes(truth, found, decimals)]
    fewer = restrict(truth, found, available_ids(available, found))
    rows.append(("available videos", "the others are left out", *fewer, "available"))
    results = [
        evaluate_tables(gt, table, tious, protocol, list_name=listed)
        for _, _, gt, table, listed in rows
    ]
    base = results[0].average_map
    return tuple(
        Choice(name, f"{source}: {meaning}" if i >= len(tables) else meaning, result, change)
        for i, ((name, meaning, *_), result) in enumerate(zip(rows, results))
        for change in [result.average_map - base]
    )


def _changes(
    truth: Truth, found: Predictions, decimals: int
) -> list[tuple[str, str, Truth, Predictions]]:
    """Name, meaning, ground truth and detections of the choices that change either of them."""
    rounded = found._replace(scores=np.round(found.scores, decimals))
    clean = cleaned(truth)
    return [
        ("one class", "of every segment only the best class", truth, one_class(found)),
        (
            f"scores to {decimals} decimals",
            "ties: the later in the file first",
            truth,
            rounded,
        ),
        (
            f"scores to {decimals} decimals, reversed",
            "ties: the earlier in the file first",
            truth,
            rounded.select(np.arange(len(found.scores))[::-1]),
        ),
        (
            "times to 0.1 s",
            "as G-TAD on THUMOS14",
            truth,
            found._replace(segments=np.round(found.segments, 1)),
        ),
        (
            "clean truth",
            "without duplicate and zero-length instances",
            clean,
            without_labels(found, set(truth.classes) - set(clean.classes)),
        ),
    ]


def one_class(found: Predictions) -> Predictions:
    """Of detections with the same video and segment, the one with the highest score (the first of
    equals); the others are copies that video-level fusion adds for the second class."""
    order = np.lexsort((-found.scores, found.segments[:, 1], found.segments[:, 0], found.video))
    video, segments = found.video[order], found.segments[order]
    new = np.ones(len(order), bool)
    new[1:] = (video[1:] != video[:-1]) | (segments[1:] != segments[:-1]).any(axis=1)
    return found.select(np.sort(order[new]))


def cleaned(truth: Truth, tolerance_s: float = 1e-3) -> Truth:
    """Without zero-length instances and without those that repeat an earlier one of their video
    and class to within `tolerance_s` (ActionFormer's and OpenTAD's files are like that)."""
    seen: dict[tuple[int, int], list[tuple[float, float]]] = {}
    keep = np.zeros(len(truth.segments), bool)
    triples = zip(truth.video.tolist(), truth.label.tolist(), truth.segments.tolist())
    for row, (video, label, (start, end)) in enumerate(triples):
        mine = seen.setdefault((video, label), [])
        repeats = any(
            abs(start - a) <= tolerance_s and abs(end - b) <= tolerance_s for a, b in mine
        )
        if end > start and not repeats:
            mine.append((start, end))
            keep[row] = True
    return truth.select(keep)
