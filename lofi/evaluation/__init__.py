"""mAP, average recall, and where the points are lost."""

from lofi.evaluation.detection import DetectionResult, detection_map
from lofi.evaluation.proposals import RecallResult, proposal_recall

__all__ = ["DetectionResult", "RecallResult", "detection_map", "proposal_recall"]
