"""Runs of frames above a threshold as proposals, as weakly-supervised systems make them.

K classes, T steps, N proposals. Source of the default: supplement of Ju et al., CVPR 2023.
"""

from collections.abc import Sequence

import numpy as np

from lofi.config import PostProcessing, WeakConfig
from lofi.data.snippets import Grid
from lofi.detection.proposals import suppress
from lofi.detection.results import Detection
from lofi.heads.base import Proposals


def runs(curve: np.ndarray, threshold: float) -> np.ndarray:
    """(N, 2) [start, end) steps of the longest stretches of a curve (T,) above a threshold."""
    above = np.concatenate([[False], curve > threshold, [False]])
    return np.flatnonzero(above[1:] != above[:-1]).reshape(-1, 2)


def outer_inner(curve: np.ndarray, start: int, end: int) -> float:
    """Mean inside [start, end) minus the mean of a quarter of its length on both sides."""
    margin = max(1, (end - start) // 4)
    outer = np.concatenate([curve[max(0, start - margin) : start], curve[end : end + margin]])
    return float(curve[start:end].mean() - (outer.mean() if len(outer) else 0.0))


def run_proposals(curve: np.ndarray, grid: Grid, setting: WeakConfig) -> Proposals:
    """Proposals of one class from its curve (T,) of probabilities, before any suppression."""
    thresholds = [setting.theta_loc]
    if setting.thresholds > 1:
        thresholds = np.linspace(0.1, 0.95, setting.thresholds).tolist()
    spans = {tuple(span) for threshold in thresholds for span in runs(curve, threshold).tolist()}
    cells = np.array(sorted(spans), np.int64).reshape(-1, 2)
    inside = [float(curve[start:end].max()) for start, end in cells]
    if setting.score == "contrast":
        inside = [outer_inner(curve, start, end) for start, end in cells]
    times = np.clip(grid.start_s + cells * grid.step_s, 0, grid.duration_s)
    return Proposals(times, np.array(inside))


def run_detections(
    curves: np.ndarray, grid: Grid, classes: Sequence[str], setting: WeakConfig,
    post: PostProcessing, kept: Sequence[int] = (),
) -> list[Detection]:  # fmt: skip
    """Detections of one video from its curves (K, T), best first, of the classes `kept`.

    Without these: the classes above `theta_cls` (by the mean of the T/8 largest values), and the
    best one.
    """
    if not len(kept):
        top = np.sort(curves, 1)[:, -max(1, curves.shape[1] // 8) :].mean(1)
        kept = sorted({*np.flatnonzero(top > setting.theta_cls).tolist(), int(top.argmax())})
    found = []
    for k in kept:
        table = run_proposals(curves[k], grid, setting)
        if not len(table.scores):
            continue
        table = suppress([table], post, joined=False)
        rows = zip(table.segments_s.tolist(), table.scores.tolist())
        found += [Detection(*span, classes[k], score) for span, score in rows if span[0] < span[1]]
    return sorted(found, key=lambda detection: -detection.score)
