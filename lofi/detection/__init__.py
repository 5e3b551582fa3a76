"""Proposals -> soft-NMS -> labelled detections, and the files they are kept in."""

from importlib import import_module
from typing import Any

from lofi.config import PostProcessing
from lofi.detection.nms import GridSoftNMS, soft_nms
from lofi.detection.nms_bmn import soft_nms_bmn
from lofi.detection.results import (
    Detection,
    read_detections,
    write_csv,
    write_detections,
    write_srt,
)

_WITH_TORCH = {  # imported when asked for: evaluation needs no PyTorch
    "classes": ("VideoClasses", "VideoClassifier", "add_classes", "detections", "main_labels",
                "read_hacs_top2", "read_untrimmednet", "read_video_classes",
                "train_video_classifier", "true_classes"),
    "proposals": ("suppress",),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    for module, names in _WITH_TORCH.items():
        if name in names:
            return getattr(import_module(f"lofi.detection.{module}"), name)
    raise AttributeError(f"module 'lofi.detection' has no attribute {name!r}")
