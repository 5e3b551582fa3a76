"""Proposals -> soft-NMS -> labelled detections, and the files they are kept in."""

from lofi.config import PostProcessing
from lofi.detection.classes import (
    VideoClasses,
    VideoClassifier,
    add_classes,
    detections,
    main_labels,
    read_hacs_top2,
    read_untrimmednet,
    read_video_classes,
    train_video_classifier,
    true_classes,
)
from lofi.detection.nms import GridSoftNMS, soft_nms, soft_nms_bmn
from lofi.detection.proposals import join_windows, suppress
from lofi.detection.results import (
    Detection,
    read_detections,
    write_csv,
    write_detections,
    write_srt,
)
