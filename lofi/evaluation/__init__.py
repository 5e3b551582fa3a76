"""mAP, average recall, and where the points are lost."""

from lofi.evaluation.detection import detection_map
from lofi.evaluation.diagnose import Diagnosis, diagnose, precision_recall_curve
from lofi.evaluation.recall import proposal_recall
