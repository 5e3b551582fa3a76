"""Commands that score detections and proposals."""

from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from lofi.files import atomic_path, write_json

Protocol = Literal["activitynet", "thumos14"]


def evaluate(
    ground_truth: Positional[Path],
    detections: Positional[Path],
    /,
    subset: str = "",
    protocol: Protocol = "activitynet",
    available: str = "",
    json: Path | None = None,
) -> None:
    """Mean average precision of a detection file, with its protocol.

    Args:
        subset: exact name; "" = validation, for thumos14 test.
        available: also score the videos that could be had alone: a file with their ids, or "auto" =
            those with an entry in the detection file. The first line stays the official list's.
    """
    from lofi.evaluation import detection_map

    choices = {"subset": subset or None, "protocol": protocol, "available": available or None}
    _report(detection_map(ground_truth, detections, **choices), json)


def diagnose(
    ground_truth: Positional[Path],
    detections: Positional[Path],
    /,
    subset: str = "",
    protocol: Protocol = "activitynet",
    tiou: float = 0.5,
    unsuppressed: Path | None = None,
    json: Path | None = None,
    figure: Path | None = None,
) -> None:
    """Where points are lost: oracles, kinds of false positives, hard instances, classes, grid.

    Args:
        subset: exact name; "" = validation, for thumos14 test.
        tiou: threshold of the false-positive profile.
        unsuppressed: the detections before soft-NMS; adds what suppression costs and gains.
        figure: picture of the false-positive profile and of the sensitivity to instances.
    """
    from lofi.evaluation import diagnose as explain

    choices = {"subset": subset or None, "protocol": protocol, "profile_tiou": tiou}
    report = explain(ground_truth, detections, **choices, unsuppressed=unsuppressed)
    if figure:
        from lofi.figures import diagnosis_figure

        with atomic_path(figure) as picture:
            diagnosis_figure(report).savefig(picture, dpi=110)
    _report(report, json)


def recall(
    ground_truth: Positional[Path],
    proposals: Positional[Path],
    /,
    subset: str = "validation",
    available: str = "",
    json: Path | None = None,
) -> None:
    """Average recall at an average number of proposals (AR@AN) and its area (AUC).

    Args:
        available: as in `lofi evaluate`.
    """
    from lofi.evaluation import proposal_recall

    choices = {"subset": subset, "available": available or None}
    _report(proposal_recall(ground_truth, proposals, **choices), json)


def _report(result: Any, json: Path | None) -> None:
    if json:
        write_json(json, result.to_json())
    print(result)
