"""Heads: snippet features in, boundary scores and a (duration, start) map of anchor scores out."""

from lofi.heads.bmn import BMN
from lofi.heads.gtad import GTAD, Maps
from lofi.heads.losses import Losses, LossStatistics, draw, loss, loss_statistics
from lofi.heads.published import load_published, published_state_dict
from lofi.heads.targets import Targets, collate_targets, targets, valid_mask

__all__ = [
    "BMN",
    "GTAD",
    "LossStatistics",
    "Losses",
    "Maps",
    "Targets",
    "collate_targets",
    "draw",
    "load_published",
    "loss",
    "loss_statistics",
    "published_state_dict",
    "targets",
    "valid_mask",
]
