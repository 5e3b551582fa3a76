"""The toy world's dial: the same clips with another vigour, and what of a feature follows it.

A measurement of our own, not the paper's. Two renderings of one clip share background, noise, actor
and colours and differ in nothing but the vigour (and in the place where a wider swing needs the
room), so what changes in a feature is due to it.
V levels of vigour, N clips, F frames, S pixels a side, C channels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from lofi.data.snippets import crop_of
from lofi.data.toyplan import ToyWorld, plan_clips
from lofi.data.toyrender import render_clip


class Shares(NamedTuple):
    """Parts of a feature's variance, in [0, 1]; they add up to 1."""

    label: float  # between the means of the classes
    scene: float  # between the clips of one class, averaged over vigour
    vigour: float  # between the renderings of one clip


def dial_vigour(
    world: ToyWorld, seed: int, levels: Sequence[float], count: int = 64
) -> tuple[torch.Tensor, list[str]]:
    """Render the first `count` validation clips of a world once for each level.

    Args:
        levels: vigour, 0 and 1 are the extremes of the source clips.
    Returns:
        uint8 (V, N, F, 3, S, S), centre crops with S = the world's height, as rendered (no H.264
        in between); the N labels.
    """
    plans = [plan for plan in plan_clips(world, seed) if plan.subset == "validation"][:count]
    clips = np.array(
        [
            [render_clip(world, seed, plan._replace(vigour=float(level))) for plan in plans]
            for level in levels
        ]
    )  # (V, N, F, H, W, 3)
    side = min(world.height, world.width)
    crop = crop_of(world.height, world.width, side, crop_ratio=1.0)
    square = clips[:, :, :, crop.top : crop.top + side, crop.left : crop.left + side]
    frames = torch.from_numpy(square).permute(0, 1, 2, 5, 3, 4).contiguous()
    return frames, [plan.label for plan in plans]


def variance_shares(features: torch.Tensor, labels: Sequence[str]) -> Shares:
    """How much of the features' variance goes with class, scene and vigour (law of total variance).

    Args:
        features: (V, N, C), from the clips of `dial_vigour`.
        labels: N class names.
    Returns:
        shares of each channel, averaged over the channels that vary at all.
    """
    x = features.detach().double().cpu()
    scenes = x.mean(0)  # (N, C)
    classes = scenes.clone()
    for name in set(labels):
        members = torch.tensor([label == name for label in labels])
        classes[members] = scenes[members].mean(0)
    parts = [
        classes.var(0, correction=0),
        (scenes - classes).square().mean(0),
        (x - scenes).square().mean((0, 1)),
    ]
    total = sum(parts)
    alive = total > 1e-12 * total.max()
    return Shares(*(float((part[alive] / total[alive]).mean()) for part in parts))
