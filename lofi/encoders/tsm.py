"""Residual networks on single frames, with or without the temporal shift between frames.

Sources: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (the V1.5 form with
the stride in the 3×3 convolution, as in torchvision, whose parameter names are used); Lin et al.,
"TSM: Temporal Shift Module for Efficient Video Understanding", ICCV 2019 (shift inside the
residual branch). N snippets, F frames a snippet, S pixels a side, C channels.
"""

import torch
from torch import Tensor, nn

from lofi.encoders.base import BatchNorm, Encoder, convolve


class ResNet(Encoder):
    """A residual network on the frames of each snippet; the frame vectors are averaged.

    Args:
        blocks: residual blocks in each stage.
        width: channels of the first stage; each further stage doubles them.
        bottleneck: three convolutions a block instead of two, see `Block`.
        fold: 1/fold of the channels look one frame ahead and as many one frame back; 0 = no shift.
        toy_stem: 5×5 convolution with stride 2 and no pooling, for frames of about 48 pixels.
        motion: beside a frame its difference from the snippet's mean frame is seen, so that little
            data teach what moves [ours].
    """

    def __init__(
        self, name: str, blocks: tuple[int, ...], width: int = 64, *, bottleneck: bool = False,
        fold: int = 8, toy_stem: bool = False, motion: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        kernel = 5 if toy_stem else 7
        self.name = name
        if not toy_stem:
            self.source, self.licence = "torchvision (ImageNet-1k)", "BSD-3-Clause"
        self.motion = motion
        seen, padding = 6 if motion else 3, kernel // 2
        self.conv1 = nn.Conv2d(seen, width, kernel, stride=2, padding=padding, bias=False)
        self.bn1 = BatchNorm(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if toy_stem else nn.MaxPool2d(3, stride=2, padding=1)
        inputs = width
        for index, count in enumerate(blocks):
            stage = nn.Sequential()
            for position in range(count):
                stride = 2 if index > 0 and position == 0 else 1
                stage.append(Block(inputs, width * 2**index, stride, fold, bottleneck))
                inputs = width * 2**index * (4 if bottleneck else 1)
            self.add_module(f"layer{index + 1}", stage)
        self.channels = inputs
        self.stages = ("stem", *(f"layer{index + 1}" for index in range(len(blocks))))

    def stage_modules(self, stage: str) -> list[nn.Module]:
        return [self.conv1, self.bn1] if stage == "stem" else super().stage_modules(stage)

    def frame_maps(self, frames: Tensor) -> Tensor:
        """The last feature maps (N, F, C, h, w) of every frame, (N, F, 3, S, S') normalised."""
        if frames.dim() != 5 or frames.shape[2] != 3:
            raise ValueError(f"expected frames (N, F, 3, S, S), got {tuple(frames.shape)}")
        num_frames = frames.shape[1]
        if self.motion:
            frames = torch.cat([frames, frames - frames.mean(1, keepdim=True)], 2)
        x = self.run(self._stem, frames.flatten(0, 1))  # (N·F, 3, S, S') in
        for stage in self.stages[1:]:
            for block in getattr(self, stage):
                x = self.run(block, x, num_frames)
        return x.unflatten(0, (-1, num_frames))

    def frame_features(self, frames: Tensor) -> Tensor:
        """Frame vectors (N, F, C) before the average, float32 at least whatever the autocast."""
        x = self.frame_maps(frames).flatten(0, 1)
        pooled = x.mean((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))
        return pooled.unflatten(0, frames.shape[:2])

    def _stem(self, x: Tensor) -> Tensor:
        return self.maxpool(self.relu(convolve(self.conv1, self.bn1, x)))

    def forward(self, frames: Tensor) -> Tensor:
        """(N, F, 3, S, S') normalised frames to (N, C) snippet features."""
        return self.frame_features(frames).mean(1)


class Block(nn.Module):
    """Two 3×3 convolutions, or 1×1, 3×3 and 1×1 (`bottleneck`, four times as wide at the end).

    Only the first one sees the shifted frames; the stride is in the first 3×3 one.
    """

    def __init__(self, inputs: int, width: int, stride: int, fold: int, bottleneck: bool) -> None:
        super().__init__()
        self.fold = fold
        kernel, strides = (1, (1, stride)) if bottleneck else (3, (stride, 1))
        outputs = 4 * width if bottleneck else width
        self.conv1 = nn.Conv2d(inputs, width, kernel, strides[0], kernel // 2, bias=False)
        self.bn1 = BatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, strides[1], padding=1, bias=False)
        self.bn2 = BatchNorm(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False) if bottleneck else None
        self.bn3 = BatchNorm(outputs) if bottleneck else None
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(skip, BatchNorm(outputs))

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """(N·F, inputs, H, W) to (N·F, outputs, H/stride, W/stride)."""
        skip = x if self.downsample is None else convolve(*self.downsample, x)
        out = temporal_shift(x, num_frames, self.fold)
        out = self.relu(convolve(self.conv1, self.bn1, out))
        out = convolve(self.conv2, self.bn2, out)
        if self.conv3 is not None:
            out = convolve(self.conv3, self.bn3, self.relu(out))
        out += skip
        return self.relu(out)


def temporal_shift(x: Tensor, num_frames: int, fold: int) -> Tensor:
    """Exchange channels between neighbouring frames of one snippet.

    The first C // fold channels of frame t come from frame t + 1, the next C // fold from frame
    t - 1, the rest from t itself; what lies outside the snippet is 0. Source: TSM, section 3.
    `x` is (N·num_frames, C, H, W), the frames of a snippet next to each other; the result a new
    tensor like it, memory format included, or with `fold` 0 `x` itself.
    """
    if fold == 0:
        return x
    if x.shape[0] % num_frames:
        raise ValueError(f"{x.shape[0]} frames are no whole number of snippets of {num_frames}")
    return _Shift.apply(x, num_frames, x.shape[1] // fold, 1)


class _Shift(torch.autograd.Function):
    """The shift as one copy; its adjoint is the shift the other way, so nothing is saved."""

    @staticmethod
    def forward(ctx, x: Tensor, num_frames: int, count: int, step: int) -> Tensor:
        ctx.arguments = num_frames, count, step
        out = torch.empty_like(x).copy_(x)
        source, target = (t.unflatten(0, (-1, num_frames)) for t in (x, out))  # (N, F, C, H, W)
        for first, ahead in ((0, step), (count, -step)):
            channels = slice(first, first + count)
            if ahead > 0:
                target[:, :-1, channels] = source[:, 1:, channels]
                target[:, -1, channels] = 0
            else:
                target[:, 1:, channels] = source[:, :-1, channels]
                target[:, 0, channels] = 0
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        num_frames, count, step = ctx.arguments
        return _Shift.apply(gradient, num_frames, count, -step), None, None, None
