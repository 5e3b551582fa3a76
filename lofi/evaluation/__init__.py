"""mAP, average recall, and where the points are lost."""

from lofi.evaluation.choices import Choice, protocol_choices
from lofi.evaluation.detection import DetectionResult, detection_map, precision_recall_curve
from lofi.evaluation.diagnose import Diagnosis, diagnose
from lofi.evaluation.proposals import RecallResult, proposal_recall

__all__ = [
    "Choice",
    "DetectionResult",
    "Diagnosis",
    "RecallResult",
    "detection_map",
    "diagnose",
    "precision_recall_curve",
    "proposal_recall",
    "protocol_choices",
]
