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
    """A detector from own videos and a list of their events; see `lofi.fit.fit`."""
    from lofi.fitting import fit as run

    return run(annotations, videos, out, **options)


def detect(video_path: str | Path, run_dir: str | Path, **options: Any) -> list[Any]:
    """Detections of one video file; see `lofi.detection.detector.detect`."""
    from lofi.detection.detector import detect as run  # heavy imports only when they are needed

    return run(video_path, run_dir, **options)
