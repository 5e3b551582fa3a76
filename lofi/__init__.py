"""LoFi: end-to-end temporal action localization under a memory budget.

A teaching and reproduction kit for Xu et al., "Low-Fidelity Video Encoder Optimization for Temporal
Action Localization", NeurIPS 2021. Start with the notebooks, or with `lofi --help`.
"""

from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def fit(
    annotations: str | Path, videos: str | Path, out: str | Path, **options: Any
) -> dict[str, Any]:
    """A detector from own videos and a list of their events; see `lofi.fitting.fit`."""
    from lofi.fitting import fit as run

    return run(annotations, videos, out, **options)


def detect(video_path: str | Path, run_dir: str | Path, **options: Any) -> list[Any]:
    """All `Detection`s of one video file, best first; options as in `Detector.load`."""
    from lofi.detection.detector import Detector  # heavy imports only when they are needed

    return Detector.load(run_dir, **options).detect(video_path)
