"""mAP, average recall, and where the points are lost."""

from lofi.evaluation.detection import DetectionResult, detection_map
from lofi.evaluation.diagnose import Diagnosis, diagnose
from lofi.evaluation.proposals import RecallResult, proposal_recall

__all__ = [
    "DetectionResult",
    "Diagnosis",
    "RecallResult",
    "detection_map",
    "diagnose",
    "proposal_recall",
]
