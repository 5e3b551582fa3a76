"""Videos, annotations, snippets and features on disk."""

from lofi.data.annotations import (
    Segment,
    TrimmedClip,
    Video,
    class_names,
    find_video_file,
    read_annotations,
    read_clip_list,
    segments_as_clips,
)
from lofi.data.check import DatasetReport, check_dataset
from lofi.data.copies import write_video
from lofi.data.features import (
    FeatureHeader,
    read_feature_header,
    read_features,
    read_published_features,
    resize_features,
    write_features,
)
from lofi.data.frame_cache import FrameCache
from lofi.data.reading import ClipReader, ClipRequest, TrimmedRequest
from lofi.data.snippets import (
    Augmentation,
    Crop,
    frame_indices,
    read_clip,
    read_trimmed_clip,
    seconds_to_snippet,
    snippet_centres,
    snippet_to_seconds,
)
from lofi.data.video import VideoError, VideoInfo, decode_frames, probe

__all__ = [
    "Augmentation",
    "ClipReader",
    "ClipRequest",
    "Crop",
    "DatasetReport",
    "FeatureHeader",
    "FrameCache",
    "Segment",
    "TrimmedClip",
    "TrimmedRequest",
    "Video",
    "VideoError",
    "VideoInfo",
    "check_dataset",
    "class_names",
    "decode_frames",
    "find_video_file",
    "frame_indices",
    "probe",
    "read_annotations",
    "read_clip",
    "read_clip_list",
    "read_feature_header",
    "read_features",
    "read_published_features",
    "read_trimmed_clip",
    "resize_features",
    "seconds_to_snippet",
    "segments_as_clips",
    "snippet_centres",
    "snippet_to_seconds",
    "write_features",
    "write_video",
]
