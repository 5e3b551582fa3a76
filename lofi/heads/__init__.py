"""Heads: snippet features in, boundary scores and a (duration, start) map of anchor scores out."""

import torch

from lofi.config import HeadConfig
from lofi.heads.base import Head, Proposals, collate_targets, part_of, to_device
from lofi.heads.bmn import BMN
from lofi.heads.gtad import GTAD
from lofi.heads.maps import Maps, Targets, draw, loss, loss_statistics, targets, valid_mask
from lofi.heads.published import load_published, published_state_dict


def build_head(config: HeadConfig, channels: int, classes: int = 0, seed: int = 0) -> Head:
    """A freshly initialised head; the framework's default initialisation from the seed.

    Args:
        channels: C of the features.
        classes: K; heads that do not tell classes apart ignore it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.kind == "bmn":
            return BMN(channels, durations=config.durations or None, best_anchor=config.best_anchor)
        return GTAD(
            channels,
            durations=config.durations or None,
            variant=config.variant,
            context_resolution=config.context_resolution,
            resolution=config.resolution,
            hidden=config.hidden,
            paths=config.paths,
            map_hidden=config.map_hidden,
            best_anchor=config.best_anchor,
        )
