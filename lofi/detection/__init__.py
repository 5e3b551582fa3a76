"""Maps -> proposals -> soft-NMS -> labelled detections, and the files they are kept in."""

from lofi.detection.classes import (
    VideoClasses,
    VideoClassifier,
    add_classes,
    main_labels,
    read_hacs_top2,
    read_untrimmednet,
    read_video_classes,
    train_video_classifier,
    true_classes,
)
from lofi.detection.nms import GridSoftNMS, soft_nms, soft_nms_bmn
from lofi.detection.pipeline import PostProcessing, detect_video, detect_windows
from lofi.detection.proposals import Proposals, join_windows, proposals
from lofi.detection.results import (
    Detection,
    read_detections,
    write_csv,
    write_detections,
    write_srt,
)

__all__ = [
    "Detection",
    "GridSoftNMS",
    "PostProcessing",
    "Proposals",
    "VideoClasses",
    "VideoClassifier",
    "add_classes",
    "detect_video",
    "detect_windows",
    "join_windows",
    "main_labels",
    "proposals",
    "read_detections",
    "read_hacs_top2",
    "read_untrimmednet",
    "read_video_classes",
    "soft_nms",
    "soft_nms_bmn",
    "train_video_classifier",
    "true_classes",
    "write_csv",
    "write_detections",
    "write_srt",
]
