"""Commands that score detections and proposals."""

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from lofi.files import atomic_path, write_json


def evaluate(
    ground_truth: Positional[Path],
    detections: Positional[Path],
    /,
    subset: str = "",
    protocol: Literal["activitynet", "thumos14"] = "activitynet",
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

    result = detection_map(
        ground_truth, detections, None, subset or None, protocol, available=available or None
    )
    if json:
        write_json(json, result.to_json())
    print(result)


def diagnose(
    ground_truth: Positional[Path],
    detections: Positional[Path],
    /,
    subset: str = "",
    protocol: Literal["activitynet", "thumos14"] = "activitynet",
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

    report = explain(
        ground_truth,
        detections,
        subset=subset or None,
        protocol=protocol,
        profile_tiou=tiou,
        unsuppressed=unsuppressed,
    )
    if json:
        write_json(json, report.to_json())
    if figure:
        from lofi.figures import diagnosis_figure

        with atomic_path(figure) as picture:
            diagnosis_figure(report).savefig(picture, dpi=110)
    print(report)


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

    result = proposal_recall(ground_truth, proposals, subset=subset, available=available or None)
    if json:
        write_json(json, result.to_json())
    print(result)
