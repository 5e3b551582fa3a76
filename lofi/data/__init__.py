"""Videos, annotations, snippets and features on disk."""

from importlib import import_module
from typing import Any

from lofi.data.annotations import Segment, TrimmedClip, Video, read_annotations
from lofi.data.check import check_dataset
from lofi.data.copies import write_video
from lofi.data.snippets import (
    Augmentation,
    frame_indices,
    seconds_to_snippet,
    snippet_centres,
    snippet_to_seconds,
)
from lofi.data.video import VideoError, VideoInfo, decode_frames, probe

_WITH_TORCH = {  # imported when asked for: looking at files and scores needs no PyTorch
    "features": ("FeatureHeader", "FeatureStore", "read_features", "resize_features"),
    "reading": ("ClipReader", "ClipRequest", "TrimmedRequest"),
}


def __getattr__(name: str) -> Any:
    for module, names in _WITH_TORCH.items():
        if name in names:
            return getattr(import_module(f"lofi.data.{module}"), name)
    raise AttributeError(f"module 'lofi.data' has no attribute {name!r}")
