"""Random changes of training clips, from an explicit CPU generator, one draw a clip."""

import torch

from lofi.data import Augmentation

MAX_SHIFT = 0.08  # of the side
GAIN = (0.7, 1.3)


def draw_geometry(setting: str, generator: torch.Generator) -> Augmentation | None:
    """Crop position and flip of one clip or video; None for the setting "none"."""
    return None if setting == "none" else Augmentation.draw(generator)


def colour(clips: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Permute and invert colour channels, change the gain and shift the picture, per clip.

    A source classifier that cannot rely on colour or position has to look at shape and motion.

    Args:
        clips: (B, F, 3, S, S) uint8; every frame of a clip changes in the same way.
    Returns:
        uint8 of the same shape.
    """
    return torch.stack([_colour_one(clip, generator) for clip in clips])


def _colour_one(clip: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    side = clip.shape[-1]
    clip = clip[:, torch.randperm(3, generator=generator)]
    invert, gain, dy, dx = torch.rand(4, generator=generator).tolist()
    if invert < 0.5:
        clip = 255 - clip
    factor = GAIN[0] + (GAIN[1] - GAIN[0]) * gain
    clip = (128 + (clip.float() - 128) * factor).clamp_(0, 255).to(torch.uint8)
    reach = int(MAX_SHIFT * side)
    rows = _shifted(side, round((2 * dy - 1) * reach))
    columns = _shifted(side, round((2 * dx - 1) * reach))
    return clip[..., rows[:, None], columns[None, :]]


def _shifted(side: int, offset: int) -> torch.Tensor:
    return (torch.arange(side) + offset).clamp_(0, side - 1)  # the edge pixel is repeated
