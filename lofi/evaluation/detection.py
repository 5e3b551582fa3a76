"""Mean average precision of detections, equal to the ActivityNet toolkit to the last bit.

The toolkit also scores what is no segment: it gives a reversed detection full marks where 0/0 is
its overlap.  Such rows are refused here, unless `strict` is off; valid files score the same.

Protocol (activitynet/ActivityNet, `eval_detection`): per class and tIoU threshold, detections in
order of score; each takes the best ground truth of its video and class that is still free and
overlaps by at least the threshold; AP is the area under the interpolated precision-recall curve;
mAP the mean over the classes of the subset.  Quirks kept, because they move numbers:
  * a detection whose best match is taken may take the next best;
  * a zero-length instance is never found (the toolkit: by any zero-length detection in its video);
  * detections of videos outside the subset are false positives; duplicates in the ground truth
    are instances; classes without detections have AP 0;
  * no limit on detections a video: the copies that a second class adds are false positives;
  * equal scores: the toolkit reverses an unstable sort.  Here the sort is stable, so of equal
    scores the later in the file comes first, on every machine.  Rounded scores make ties.

Which videos count moves numbers too: by default all annotated videos of the subset
("official-4926"), so that a missing one costs recall; `available` adds the figures of those that
could be had ("available-4728").  Numbers of different lists cannot be compared; notebook 06 shows
why the same detections score 30 or 34.

THUMOS14 is evaluated by the same code, as in G-TAD: subset "test", tIoU 0.3 to 0.7, times as
strings or numbers.  "Ambiguous" is no class and its segments are not there: a detection on one is
a false positive (the original MATLAB kit forgives it).  CliffDiving rows stand a second time as
Diving by design and count twice.  G-TAD's file leaves out three test videos (210, 3,311
instances); its rounding of times to 0.1 s is the `thumos` rule of `lofi.detection.add_classes`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple, Self

import numpy as np

from lofi.evaluation.columns import Predictions, Truth, prediction_table, restrict, truth_table
from lofi.evaluation.matching import Matches


class Protocol(NamedTuple):
    """What a named protocol fixes."""

    subset: str
    tious: tuple[float, ...]
    ignore: frozenset[str]  # labels that are no class


PROTOCOLS = {
    "activitynet": Protocol("validation", tuple(np.linspace(0.5, 0.95, 10).tolist()), frozenset()),
    "thumos14": Protocol("test", (0.3, 0.4, 0.5, 0.6, 0.7), frozenset(["Ambiguous"])),
}


def load(
    ground_truth: Any, predictions: Any, tious: Any, subset: str | None, protocol: str,
    with_labels: bool = True, strict: bool = True,
) -> tuple[Truth, Predictions, np.ndarray]:  # fmt: skip
    """Both tables and the thresholds, by the rules of a protocol; see `detection_map`."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r} is unknown; choose one of {', '.join(PROTOCOLS)}")
    rules = PROTOCOLS[protocol]
    thresholds = np.array(rules.tious if tious is None else tious, np.float64).reshape(-1)
    if not len(thresholds) or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise ValueError(f"tious are {thresholds.tolist()}; expected numbers in (0, 1]")
    truth = truth_table(ground_truth, subset or rules.subset, rules.ignore, strict)
    return truth, prediction_table(predictions, truth, with_labels), thresholds


@dataclass(frozen=True, kw_only=True)
class Result:
    """Where the numbers of an evaluation come from; everything needed to compare them."""

    protocol: str = "activitynet"
    subset: str
    tious: tuple[float, ...]
    videos: int  # annotated videos of the subset
    instances: int
    video_list: str  # "official-4926" = all annotated videos, "available-4728" = those at hand
    video_list_hash: str  # first 12 hex digits of SHA-256 over the sorted ids
    tie_order: str = "file"  # of equal scores the later in the file first
    post_processing: Any = field(default=None, hash=False)  # as the prediction file says
    source: Mapping[str, Any] = field(default_factory=dict, hash=False)  # method, encoder, seed
    available: Self | None = None  # the same predictions on the available videos

    @property
    def protocol_string(self) -> str:
        """One line that two numbers must share to be comparable."""
        tious = f"{self.tious[0]:g}"
        if len(self.tious) > 1:
            tious += f":{self.tious[-1]:g} ({len(self.tious)})"
        return (
            f"{self.protocol}/{self.subset} {self.video_list} [{self.video_list_hash}], "
            f"tIoU {tious}, duplicates kept, ties later in the file first"
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-able dict, one key per field, and the protocol in words."""
        record = asdict(replace(self, available=None))
        record["protocol_string"] = self.protocol_string
        record["available"] = self.available and self.available.to_json()
        return record

    def text(self, line: str, *notes: str) -> str:
        """For printing: the numbers in one line, where the file says it is from, the notes."""
        lines = [line]
        for name, record in (("post-processing", self.post_processing), ("from", self.source)):
            if record:
                pairs = record.items() if isinstance(record, Mapping) else [("", record)]
                lines.append(f"  {name}: " + ", ".join(f"{k} {v}".strip() for k, v in pairs))
        lines += notes
        if self.available:  # of the same file: its origin is said once
            lines.append(str(replace(self.available, post_processing=None, source={})))
        return "\n".join(lines)


def provenance(truth: Truth, found: Predictions, list_name: str) -> dict[str, Any]:
    """The fields of a `Result` that the tables determine."""
    ids = "\n".join(sorted(truth.videos)).encode()
    return {
        "subset": truth.subset,
        "videos": len(truth.videos),
        "instances": len(truth.segments),
        "video_list": f"{list_name}-{len(truth.videos)}",
        "video_list_hash": hashlib.sha256(ids).hexdigest()[:12],
        "post_processing": found.post_processing,
        "source": found.source,
    }


@dataclass(frozen=True, kw_only=True)
class DetectionResult(Result):
    """mAP. All values are fractions."""

    map: tuple[float, ...]  # per tIoU
    average_map: float
    classes: tuple[str, ...]
    ap: tuple[tuple[float, ...], ...]  # [class][tIoU]
    class_instances: tuple[int, ...]
    predictions: int
    videos_without_predictions: int
    predictions_outside_subset: int
    predictions_left_out: int  # of classes that only other subsets have
    zero_length_instances: int

    def at(self, tiou: float) -> float:
        """mAP at one of the thresholds, e.g. 0.75."""
        near = [value for x, value in zip(self.tious, self.map) if abs(x - tiou) < 1e-6]
        if not near:
            raise ValueError(f"tIoU {tiou} was not evaluated; thresholds are {self.tious}")
        return near[0]

    def __str__(self) -> str:
        pairs = list(zip(self.tious, self.map))
        if self.protocol != "thumos14":
            pairs = [(t, value) for t, value in pairs if round(t, 6) in (0.5, 0.75, 0.95)]
        values = " ".join(f"{100 * value:.2f}@{t:g}" for t, value in pairs)
        notes = []
        if self.predictions and self.predictions_outside_subset == self.predictions:
            notes = ["  every detection is of a video outside the subset; compare the ids"]
        if self.predictions_left_out:
            found = f"  {self.predictions_left_out} detections are left out, of classes that only"
            notes += [f"{found} other subsets have"]
        return self.text(
            f"mAP {values}, average {100 * self.average_map:.2f} % over {len(self.tious)} tIoUs "
            f"({self.protocol}, {self.subset}, {self.video_list} [{self.video_list_hash}]: "
            f"{self.videos} videos, {self.instances} instances, {len(self.classes)} classes; "
            f"{self.predictions} detections, {self.predictions_outside_subset} in videos outside "
            f"the subset, none in {self.videos_without_predictions} videos)",
            *notes,
        )


def detection_map(
    ground_truth: Any, detections: Any, tious: Any = None, subset: str | None = None,
    protocol: str = "activitynet", available: Any = None, strict: bool = True,
) -> DetectionResult:  # fmt: skip
    """Compute mAP.

    Args:
        ground_truth: path or dict in ActivityNet format, or list of `lofi.data.Video`.
        detections: path (JSON or CSV), ActivityNet-format dict, or id -> list of `Detection`.
        tious: thresholds; None = the protocol's.
        subset: exact name; None = the protocol's ("validation", for thumos14 "test").
        protocol: `activitynet` or `thumos14`.
        available: also evaluate the videos that could be had, in the result's `available`:
            "auto" = those with an entry in the detection file, a path to a list, or ids
            (`columns.restrict`). The main numbers stay those of all annotated videos.
        strict: False replays the toolkit on what is no segment: reversed rows are scored, two of
            length zero match wherever they lie, ids and labels are compared as they are written.
    Raises:
        ValueError: unknown protocol, empty subset, malformed input, a reversed segment, a label
            that the ground truth does not have (names it and its video).
    """
    truth, found, tious = load(ground_truth, detections, tious, subset, protocol, strict=strict)
    return evaluate(Matches(truth, found, tious), protocol, available)


def evaluate(
    matches: Matches, protocol: str, available: Any = None, list_name: str = "official"
) -> DetectionResult:
    """The result of what is matched already; `available` as in `detection_map`."""
    truth, found = matches.truth, matches.found
    if available is not None:
        fewer = Matches(*restrict(truth, found, available), matches.tious)
        available = evaluate(fewer, protocol, list_name="available")
    ap = matches.average_precision()
    maps = ap.mean(axis=1)
    covered = {found.videos[v] for v in np.flatnonzero(np.bincount(found.video)).tolist()}
    return DetectionResult(
        protocol=protocol,
        tious=tuple(matches.tious.tolist()),
        map=tuple(maps.tolist()),
        average_map=float(maps.mean()),
        classes=truth.classes,
        ap=tuple(map(tuple, ap.T.tolist())),
        class_instances=tuple(matches.instances.tolist()),
        predictions=len(found.scores),
        videos_without_predictions=len(set(truth.videos) - covered),
        predictions_outside_subset=int(np.count_nonzero(matches.video < 0)),
        predictions_left_out=found.left_out,
        zero_length_instances=int((truth.segments[:, 0] == truth.segments[:, 1]).sum()),
        available=available,
        **provenance(truth, found, list_name),
    )
