"""What every encoder shares: its attributes, frame normalisation, and freezing.

N snippets, F frames a snippet, S pixels a side, C feature channels.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class Encoder(nn.Module):
    """Base of the encoders: (N, F, 3, S, S) normalised frames to (N, C) snippet features.

    Attributes:
        name: what `build_encoder` calls it.
        channels: C.
        mean, std: per RGB channel, for frames in [0, 1]; `normalise` applies them.
        stages: names of the parts in forward order, "stem" first; `freeze_until` takes one.
        recompute: run the stem and each residual block again in the backward pass instead of
            keeping their activations (same gradients, about a third more time).
        origin: where the weights come from, in words; written into every file made from them.
        source, licence: of the public weights that this network takes, "" if there are none;
            `load_weights` sets them to those of the file.
        convention: "" or which of several public programs the network follows and how it takes
            pixels; part of `encoder_hash`, of our files and of feature headers; `follow` sets it.
        patch: pixels by which S has to be divisible.
        frozen_stage, frozen_batch_norm, frozen_trunk: read only; set by the functions below.
    """

    name: str
    channels: int
    stages: tuple[str, ...]
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of ImageNet, as `std`
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    recompute: bool = False
    origin: Mapping[str, str] = {}
    source: str = ""
    licence: str = ""
    convention: str = ""
    patch: int = 1
    frozen_stage: str | None = None
    frozen_trunk: bool = False
    frozen_batch_norm: str | None = None  # None | "affine" | "folded"

    def stage_modules(self, stage: str) -> list[nn.Module]:
        """The modules that make up one of `stages`."""
        return [getattr(self, stage)]

    def follow(self, convention: str = "", normalisation: str = "") -> None:
        """Set `convention` and all that depends on it; ValueError if the encoder lacks it.

        `normalisation`: "unit" (pixels in [0, 1]) or "imagenet"; "" = what the convention says.
        """
        if asked := convention or normalisation:
            cure = "leave normalisation out, or take a vit encoder"
            raise ValueError(f"{self.name} takes pixels in one way, {asked!r} was asked; {cure}")

    def add_adapters(self) -> None:
        """Small trainable layers behind its blocks, unless there; ValueError if it has no place."""
        raise ValueError(f"{self.name} has no place for adapters; take a vit encoder")

    def check_size(self, frames: int, *sides: int) -> None:
        """ValueError, with the cure, when it cannot take snippets of F frames with these sides."""
        if wrong := [side for side in sides if side % self.patch or not side]:
            near = max(1, round(wrong[0] / self.patch)) * self.patch
            found = f"{self.name}: {wrong[0]} pixels a side, expected whole patches of {self.patch}"
            raise ValueError(f"{found}; set full.pixels to {near}")

    def run(self, part: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """part(*inputs), recomputed in the backward pass where `recompute` asks for it."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)
        return part(*inputs)


class BatchNorm(_BatchNorm):
    """Batch normalisation over every dimension but the second, with a freeze that holds.

    `frozen` outlasts `.train()` of any parent: a stray call would otherwise exchange the running
    statistics for those of the batch, silently, in the middle of a run.
    """

    frozen = folded = False
    made: tuple[Tensor, ...] | None = None  # in `folding`: weight and bias, () before they are made

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (4, 5):
            raise ValueError(f"expected (N, C, H, W) or (N, C, T, H, W), got {tuple(input.shape)}")

    def train(self, mode: bool = True) -> "BatchNorm":
        return super().train(mode and not self.frozen)

    def forward(self, x: Tensor) -> Tensor:
        if not self.frozen:
            return super().forward(x)
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)


def convolve(convolution: nn.Module, norm: BatchNorm, x: Tensor) -> Tensor:
    """norm(convolution(x)), for a convolution without bias.

    Folded, the frozen scale goes into the weight and the offset becomes the bias. The function and
    the gradient of the weight stay the same; the convolution's output need not be kept.
    """
    if (made := norm.made) is None and not norm.folded:
        return norm(convolution(x))
    if not made:
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        offset = norm.bias - norm.running_mean * scale
        made = convolution.weight * scale.view(-1, *[1] * (x.dim() - 1)), offset
    if norm.made == ():
        norm.made = made = tuple(part.to(x.dtype) for part in made)  # autocast has changed x
    shape = convolution.stride, convolution.padding, convolution.dilation, convolution.groups
    return (F.conv2d if x.dim() == 4 else F.conv3d)(x, *made, *shape)


def normalise(clip: Tensor, encoder: Encoder) -> Tensor:
    """Turn frames as decoded into what the encoder expects.

    Args:
        clip: (..., 3, S, S) uint8 RGB, on the device where the result shall live.
    Returns:
        the same shape, (value / 255 - mean) / std; one new tensor, in the type and memory format
        (channels last or not) of the encoder's first weight.
    Raises:
        ValueError: not uint8, or the third dimension from the end is not RGB.
    """
    if clip.dtype != torch.uint8 or clip.dim() < 4 or clip.shape[-3] != 3:
        found = f"{clip.dtype} of shape {tuple(clip.shape)}"
        raise ValueError(f"normalise expects uint8 frames (..., 3, S, S), got {found}")
    weight = next(encoder.parameters())
    last = weight.dim() == 4 and not weight.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    out = clip.flatten(0, -4).to(weight.dtype, memory_format=layout, copy=True)
    out.sub_(out.new_tensor([255 * value for value in encoder.mean]).view(3, 1, 1))
    out.mul_(out.new_tensor([1 / (255 * value) for value in encoder.std]).view(3, 1, 1))
    return out.unflatten(0, clip.shape[:-3])


def freeze_batch_norm(encoder: Encoder, fold: bool = False) -> None:
    """Use the running statistics for good: no later `.train()` of any parent changes them.

    Low-fidelity training would otherwise estimate them at a resolution that feature extraction
    never sees, and the exact and sampled modes need every snippet to be independent. Scale and
    offset stop training too; with `fold` they are applied inside the convolutions (see `convolve`):
    the same features and gradients up to rounding for about 40 % less memory.
    """
    _freeze(encoder, frozen_batch_norm="folded" if fold else "affine")


def freeze_until(encoder: Encoder, stage: str | None) -> None:
    """Freeze the encoder's first part, batch statistics included; no graph is kept for it.

    `stage` is the last frozen one of `encoder.stages` (inclusive), else a ValueError; None trains
    everything again.
    """
    _freeze(encoder, frozen_stage=stage)


def freeze_trunk(encoder: Encoder) -> None:
    """Train adapters alone, which are added where they are absent; else as `freeze_until`."""
    encoder.add_adapters()
    _freeze(encoder, frozen_trunk=True)


def _freeze(encoder: Encoder, **change: str | bool | None) -> None:
    """Change one of the three `frozen_…` and set all flags from both, in any order."""
    if not isinstance(encoder, Encoder):
        found = type(encoder).__name__
        raise ValueError(f"expected an encoder of build_encoder, got {found}; pass model.encoder")
    stage, known = change.get("frozen_stage"), encoder.stages
    if stage not in (None, *known):
        raise ValueError(f"{encoder.name} has no stage {stage!r}; stages: {', '.join(known)}")
    vars(encoder).update(change)
    frozen, batch_norm = encoder.frozen_stage is not None, encoder.frozen_batch_norm is not None
    for stage in encoder.stages:
        for part in nn.ModuleList(encoder.stage_modules(stage)).modules():
            held = frozen or (isinstance(part, BatchNorm) and batch_norm)
            for parameter in part.parameters(recurse=False):
                parameter.requires_grad_(not held)
            if isinstance(part, BatchNorm):
                part.frozen = held
                part.folded = encoder.frozen_batch_norm == "folded"
        frozen = frozen and stage != encoder.frozen_stage
    if encoder.frozen_trunk:
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(".adapter." in name)
    encoder.train(encoder.training)
