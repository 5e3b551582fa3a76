"""Mean average precision of detections, equal to the ActivityNet toolkit to the last bit.

Protocol (activitynet/ActivityNet, `eval_detection`): per class and tIoU threshold, detections in
order of score; each takes the best ground truth of its video and class that is still free and
overlaps by at least the threshold; AP is the area under the interpolated precision-recall curve;
mAP the mean over the classes of the subset.  Quirks kept, because they move numbers:
  * a detection whose best match is taken may take the next best;
  * 0/0 overlap (two zero-length segments) counts as a match at every threshold; a detection of
    positive length never finds a zero-length instance;
  * detections of videos outside the subset are false positives; duplicates in the ground truth
    are instances; classes without detections have AP 0;
  * no limit on detections a video: the copies that a second class adds are false positives;
  * equal scores: the toolkit reverses an unstable sort.  Here the sort is stable, so of equal
    scores the later in the file comes first, on every machine; `tie_order="numpy"` gives what the
    toolkit gives with the numpy at hand.  Rounded scores make ties.

Which videos count moves numbers too: by default all annotated videos of the subset
("official-4926"), so that a missing one costs recall; `available` adds the figures of those that
could be had ("available-4728").  Numbers of different lists cannot be compared.

THUMOS14 is evaluated by the same code, as in G-TAD: subset "test", tIoU 0.3 to 0.7, times as
strings or numbers.  "Ambiguous" is no class and its segments are not there: a detection on one is
a false positive (the original MATLAB kit forgives it).  CliffDiving rows stand a second time as
Diving by design and count twice.  G-TAD's file leaves out three test videos (210, 3,311
instances); its rounding of times to 0.1 s is the `thumos` rule of `lofi.detection.add_classes`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from lofi.evaluation.available import available_ids, restrict
from lofi.evaluation.matching import align, average_precision, best_first, match, ranks
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
    video_list: str  # "official-4926" = all annotated videos, "available-4728" = those at hand
    video_list_hash: str
    tie_order: str
    post_processing: Any = field(default=None, hash=False)  # as the detection file says
    source: Mapping[str, Any] = field(default_factory=dict, hash=False)  # method, encoder, seed
    available: "DetectionResult | None" = None  # the same detections on the available videos

    @property
    def protocol_string(self) -> str:
        """Protocol, subset, video list with its hash, and the choices that move numbers."""
        return protocol_string(self)

    def to_json(self) -> dict[str, Any]:
        """JSON-able dict, one key per field, and the protocol in words."""
        record = asdict(replace(self, available=None))
        record["protocol_string"] = self.protocol_string
        record["available"] = self.available and self.available.to_json()
        return record

    def at(self, tiou: float) -> float:
        """mAP at one of the thresholds, e.g. 0.75."""
        return self.map[threshold_index(self.tious, tiou)]

    def __str__(self) -> str:
        columns = self.tious if self.protocol == "thumos14" else (0.5, 0.75, 0.95)
        shown = [t for t in columns if min(abs(t - x) for x in self.tious) < 1e-6]
        values = " ".join(f"{100 * self.at(t):.2f}@{t:g}" for t in shown)
        lines = [
            f"mAP {values}, average {100 * self.average_map:.2f} % over {len(self.tious)} tIoUs "
            f"({self.protocol}, {self.subset}, {self.video_list} [{self.video_list_hash}]: "
            f"{self.videos} videos, {self.instances} instances, {len(self.classes)} classes; "
            f"{self.predictions} detections, none in {self.videos_without_predictions} videos)"
        ]
        lines += origin_lines(self)
        if self.predictions and self.predictions_outside_subset == self.predictions:
            lines.append("  every detection is of a video outside the subset; compare the ids")
        if self.available:  # of the same file: its origin is said once
            lines.append(str(replace(self.available, post_processing=None, source={})))
        return "\n".join(lines)


def protocol_string(result: Any) -> str:
    """One line that two numbers must share to be comparable; takes either kind of result."""
    tious = result.tious
    listed = f"{tious[0]:g}:{tious[-1]:g} ({len(tious)})" if len(tious) > 1 else f"{tious[0]:g}"
    order = {"file": "later in the file first", "numpy": "as numpy sorts"}[result.tie_order]
    return (
        f"{result.protocol}/{result.subset} {result.video_list} [{result.video_list_hash}], "
        f"tIoU {listed}, duplicates kept, ties {order}"
    )


def origin_lines(result: Any) -> list[str]:
    """What a prediction file says about itself, for printing."""
    lines = []
    for name, record in (("post-processing", result.post_processing), ("from", result.source)):
        if record:
            pairs = record.items() if isinstance(record, Mapping) else [("", record)]
            lines.append(f"  {name}: " + ", ".join(f"{k} {v}".strip() for k, v in pairs))
    return lines


def threshold_index(tious: Iterable[float], tiou: float) -> int:
    """Place of a threshold in a list; ValueError when it is not there."""
    for i, threshold in enumerate(tious):
        if abs(threshold - tiou) < 1e-6:
            return i
    raise ValueError(f"tIoU {tiou} was not evaluated; thresholds are {tuple(tious)}")


def detection_map(
    ground_truth: Any,
    detections: Any,
    tious: Any = None,
    subset: str | None = None,
    protocol: str = "activitynet",
    tie_order: str = "file",
    available: Any = None,
) -> DetectionResult:
    """Compute mAP.

    Args:
        ground_truth: path or dict in ActivityNet format, or list of `lofi.data.Video`.
        detections: path (JSON or CSV), ActivityNet-format dict, or id -> list of `Detection`.
        tious: thresholds; None = the protocol's.
        subset: exact name; None = the protocol's ("validation", for thumos14 "test").
        protocol: `activitynet` or `thumos14`.
        tie_order: `file` (reproducible) or `numpy` (the toolkit's unstable sort).
        available: also evaluate the videos that could be had, in the result's `available`:
            "auto" = those with an entry in the detection file, a path to a list, or ids
            (`tables.available_ids`). The main numbers stay those of all annotated videos.
    Raises:
        ValueError: unknown protocol, empty subset, malformed input, a label that the subset does
            not have (names it and its video).
    """
    rules, thresholds = rules_of(protocol, tious)
    checked_tie_order(tie_order)
    truth = truth_table(ground_truth, subset or rules.subset, rules.ignore)
    found = prediction_table(detections, with_labels=True)
    result = evaluate_tables(truth, found, thresholds, protocol, tie_order)
    if available is None:
        return result
    fewer = restrict(truth, found, available_ids(available, found))
    part = evaluate_tables(*fewer, thresholds, protocol, tie_order, "available")
    return replace(result, available=part)


def rules_of(protocol: str, tious: Any) -> tuple[Protocol, np.ndarray]:
    """A protocol by name, and the thresholds to use (its own when `tious` is None)."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r} is unknown; choose one of {', '.join(PROTOCOLS)}")
    rules = PROTOCOLS[protocol]
    thresholds = np.array(rules.tious if tious is None else tious, np.float64).reshape(-1)
    if not len(thresholds) or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise ValueError(f"tious are {thresholds.tolist()}; expected numbers in (0, 1]")
    return rules, thresholds


def checked_tie_order(tie_order: str) -> str:
    """`tie_order` when it is one of `SORTS`, else ValueError."""
    if tie_order not in SORTS:
        raise ValueError(f"tie_order is {tie_order!r}; choose {' or '.join(SORTS)}")
    return tie_order


def evaluate_tables(
    truth: Truth,
    found: Predictions,
    tious: np.ndarray,
    protocol: str = "activitynet",
    tie_order: str = "file",
    list_name: str = "official",
) -> DetectionResult:
    """`detection_map` of tables that are there already."""
    ap, outside = average_precision(truth, found, tious, SORTS[tie_order])
    maps = ap.mean(axis=1)
    covered = {found.videos[v] for v in np.flatnonzero(np.bincount(found.video)).tolist()}
    return DetectionResult(
        protocol=protocol,
        subset=truth.subset,
        tious=tuple(tious.tolist()),
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
        video_list=f"{list_name}-{len(truth.videos)}",
        video_list_hash=truth.video_list_hash,
        tie_order=tie_order,
        post_processing=found.post_processing,
        source=found.source,
    )


def precision_recall_curve(
    ground_truth: Any,
    detections: Any,
    label: str,
    tiou: float = 0.5,
    subset: str | None = None,
    protocol: str = "activitynet",
) -> tuple[np.ndarray, np.ndarray]:
    """(recall, precision), (n,) each, after every detection of one class, best score first.

    The area under the envelope of these points is the class's AP at this tIoU. Inputs as in
    `detection_map`; ValueError when the subset does not have the class.
    """
    rules, thresholds = rules_of(protocol, [tiou])
    truth = truth_table(ground_truth, subset or rules.subset, rules.ignore)
    if label not in truth.classes:
        raise ValueError(f"class {label!r} is not in subset {truth.subset!r}: {truth.classes}")
    found = prediction_table(detections, with_labels=True)
    video, labels = align(truth, found)
    order, sizes = best_first(labels, found.scores, len(truth.classes), "stable")
    rank = ranks(order, sizes)
    _, rows, _ = match(truth, found, video, labels, order, thresholds)
    mine = truth.classes.index(label)
    hits = np.zeros(np.count_nonzero(labels == mine))
    hits[rank[rows[labels[rows] == mine]]] = 1
    hits = np.cumsum(hits)
    return hits / np.count_nonzero(truth.label == mine), hits / np.arange(1, len(hits) + 1)
