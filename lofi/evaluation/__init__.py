"""mAP, average recall, and where the points are lost."""

from lofi.evaluation.detection import detection_map, precision_recall_curve, protocol_choices
from lofi.evaluation.diagnose import Diagnosis, diagnose
from lofi.evaluation.recall import proposal_recall

__all__ = [
    "Diagnosis",
    "detection_map",
    "diagnose",
    "precision_recall_curve",
    "proposal_recall",
    "protocol_choices",
]
