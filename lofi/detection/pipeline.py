"""From the maps of one video to its detections, and the record of how that was done."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lofi.detection.classes import CLASS_RULES, add_classes
from lofi.detection.nms import GridSoftNMS, soft_nms, soft_nms_bmn
from lofi.detection.proposals import DEFAULT_SCORE, RULES, join_windows, proposals, score_terms
from lofi.detection.results import Detection


@dataclass(frozen=True)
class PostProcessing:
    """Everything between maps and detections that changes a number.

    The default is the LoFi paper's: G-TAD's rule with sigma 0.84, 100 proposals x 2 classes.
    `bmn()` and `thumos14()` give the released settings of the other two.
    """

    rule: str = "gtad"  # which cells are proposals: gtad | thumos | bmn
    score: str = "cls*reg"  # product of cls, reg, start, end
    suppression: str = "gaussian"  # gaussian | bmn
    sigma: float = 0.84  # of the Gaussian; alpha of the bmn form
    top_k: int = 100  # proposals per video that survive
    class_rule: str = "anet"  # anet | hacs | thumos
    classes_per_video: int = 2
    include_video_end: bool = False  # also propose segments that end with the video

    def __post_init__(self) -> None:
        choices = [("rule", RULES), ("suppression", ("gaussian", "bmn"))]
        for name, allowed in [*choices, ("class_rule", CLASS_RULES)]:
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}"
                )
        score_terms(self.score)
        if not self.sigma > 0 or self.top_k < 1 or self.classes_per_video < 1:
            raise ValueError(
                f"sigma {self.sigma}, top_k {self.top_k}, classes_per_video "
                f"{self.classes_per_video}; expected all > 0"
            )

    @staticmethod
    def bmn() -> "PostProcessing":
        """BMN as released."""
        return PostProcessing("bmn", DEFAULT_SCORE["bmn"], "bmn", 0.4)

    @staticmethod
    def thumos14() -> "PostProcessing":
        """G-TAD on THUMOS14 as released; see `detect_windows`."""
        return PostProcessing("thumos", sigma=0.46, top_k=200, class_rule="thumos")

    def to_json(self) -> dict[str, Any]:
        """All fields, for files and reports."""
        return asdict(self)

    def __str__(self) -> str:
        end = ", video end allowed" if self.include_video_end else ""
        return (
            f"{self.rule} proposals scored {self.score}{end}; {self.suppression} soft-NMS "
            f"{self.sigma:g}, top {self.top_k}; classes {self.class_rule} x "
            f"{1 if self.class_rule == 'hacs' else self.classes_per_video}"
        )


def detect_video(
    maps: Any,
    duration_s: float,
    class_scores: np.ndarray | None,
    names: Sequence[str] = (),
    post: PostProcessing | None = None,
    grid: GridSoftNMS | None = None,
) -> list[Detection]:
    """Maps of one video -> proposals -> soft-NMS -> labels.

    Args:
        maps: (confidence (2, D, L), start (L,), end (L,)).
        class_scores: (C,) of the video; None = class-agnostic, label "".
        names: C class names.
        grid: shared by the videos of a run, makes the Gaussian suppression faster; same result.
    Raises:
        ValueError: no cell is a proposal (cannot happen with the released rules at L >= 3).
    """
    post = post or PostProcessing()
    table = proposals(maps, duration_s, post.rule, post.include_video_end, post.score)
    if not len(table.scores):
        raise ValueError("no cell of the maps is a proposal; use more snippets")
    if post.suppression == "bmn":
        units, scores = soft_nms_bmn(
            table.unit_segments, table.scores, post.sigma, top_k=post.top_k
        )
    elif grid is not None:
        _check_grid(grid, table.snippets, post.sigma)
        rows, scores = grid(table.cells, table.scores, post.top_k)
        units = table.unit_segments[rows]
    else:
        units, scores = soft_nms(table.unit_segments, table.scores, post.sigma, post.top_k)
    return _labelled(units * duration_s, scores, class_scores, names, post)


def detect_windows(
    windows: Sequence[tuple[np.ndarray, np.ndarray]],
    num_frames: int,
    fps: float,
    class_scores: np.ndarray | None,
    names: Sequence[str] = (),
    post: PostProcessing | None = None,
    max_frames: int = 300,
) -> list[Detection]:
    """Sliding windows of one video -> joined proposals -> labels (G-TAD, THUMOS14).

    Args:
        windows: per window segments (N, 2) in frames of the video (`Proposals.frames`) and scores.
        num_frames, fps: of the video; ends are cut at its length.
        max_frames: segments this long or longer get score 0.
    """
    post = post or PostProcessing.thumos14()
    frames, scores = join_windows(windows, post.sigma, post.top_k, max_frames)
    start, end = np.maximum(frames[:, 0], 0), np.minimum(frames[:, 1], num_frames)
    return _labelled(np.stack([start, end], 1) / fps, scores, class_scores, names, post)


def with_classes(
    found: Sequence[Detection],
    class_scores: np.ndarray,
    names: Sequence[str],
    post: PostProcessing,
) -> list[Detection]:
    """Class-agnostic detections of one video (label "") as detections of its classes."""
    segments = np.array([[d.start_s, d.end_s] for d in found]).reshape(-1, 2)
    return _labelled(segments, np.array([d.score for d in found]), class_scores, names, post)


def _labelled(
    segments: np.ndarray,
    scores: np.ndarray,
    class_scores: np.ndarray | None,
    names: Sequence[str],
    post: PostProcessing,
) -> list[Detection]:
    if class_scores is None:
        return [Detection(s, e, "", v) for (s, e), v in zip(segments.tolist(), scores.tolist())]
    if len(class_scores) != len(names):
        raise ValueError(f"{len(class_scores)} class scores for {len(names)} names; expected equal")
    return add_classes(
        segments, scores, class_scores, names, post.class_rule, post.classes_per_video
    )


def _check_grid(grid: GridSoftNMS, snippets: int, sigma: float) -> None:
    if grid.snippets != snippets or grid.sigma != sigma:
        raise ValueError(
            f"the grid is for {grid.snippets} snippets and sigma {grid.sigma}, the maps have "
            f"{snippets} and the post-processing {sigma}; make one GridSoftNMS per setting"
        )
