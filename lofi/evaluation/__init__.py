"""mAP, average recall, and where the points are lost."""

from lofi.evaluation.detection import detection_map, precision_recall_curve
from lofi.evaluation.diagnose import Diagnosis, diagnose
from lofi.evaluation.recall import proposal_recall
