"""Videos, annotations, snippets and features on disk."""

from lofi.data.annotations import Segment, TrimmedClip, Video, read_annotations
from lofi.data.check import check_dataset
from lofi.data.copies import write_video
from lofi.data.features import FeatureHeader, FeatureStore, read_features, resize_features
from lofi.data.reading import ClipReader, ClipRequest, TrimmedRequest, read_trimmed_clip
from lofi.data.snippets import (
    Augmentation,
    frame_indices,
    seconds_to_snippet,
    snippet_centres,
    snippet_to_seconds,
)
from lofi.data.video import VideoError, VideoInfo, decode_frames, probe
