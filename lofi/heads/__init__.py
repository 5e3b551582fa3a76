"""Heads: snippet features in, boundary scores and a (duration, start) map of anchor scores out."""

from collections.abc import Sequence
from dataclasses import asdict

import torch

from lofi.config import HeadConfig
from lofi.heads.actionformer import ActionFormer
from lofi.heads.amnet import AMNet
from lofi.heads.base import (
    Head,
    Proposals,
    collate_targets,
    load_published,
    part_of,
    published_state_dict,
    to_device,
)
from lofi.heads.bmn import BMN
from lofi.heads.gtad import GTAD
from lofi.heads.maps import Maps, Targets, draw, loss, loss_statistics, targets, valid_mask
from lofi.heads.points import PointHead, Points, PointTargets


def build_head(
    config: HeadConfig, channels: int, classes: int | Sequence[str] = 0, seed: int = 0
) -> Head:
    """A freshly initialised head; the framework's default initialisation from the seed.

    Args:
        channels: C of the features.
        classes: K, or the labels; heads that do not tell classes apart ignore it.
    """
    options = asdict(config)
    kind = options.pop("kind")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind in ("actionformer", "amnet"):
            known = 1 if options.pop("one_class") else classes or 1
            head = ActionFormer if kind == "actionformer" else AMNet
            return head(channels, known, **options)
        options["durations"] = options["durations"] or None
        if kind == "bmn":
            return BMN(channels, **options)
        return GTAD(channels, **options)
