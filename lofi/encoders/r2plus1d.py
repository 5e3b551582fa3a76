"""R(2+1)D: residual network whose convolutions are split into space and time.

Source: Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition", CVPR
2018; the 18-layer form, parameter names and normalisation constants of torchvision.
N snippets, F frames a snippet, S pixels a side, C channels.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lofi.encoders.base import BatchNorm, Encoder, convolve


class R2Plus1D(Encoder):
    """R(2+1)D-18: (N, F, 3, S, S) normalised frames to (N, 512); time shrinks by 8 inside.

    `toy`: stages, blocks, channels and first kernel of tsm-toy; to (N, 64), time shrinks by 4."""

    mean = (0.43216, 0.394666, 0.37645)
    std = (0.22803, 0.22145, 0.216989)

    def __init__(self, name: str = "r2plus1d-18", toy: bool = False) -> None:
        super().__init__()
        self.name = name
        widths = (16, 32, 64) if toy else (64, 128, 256, 512)
        if not toy:
            self.source, self.licence = "torchvision (Kinetics-400)", "BSD-3-Clause"
        inputs = widths[0]
        split = _split(3, 45 * inputs // 64, inputs, (1, 2, 2), side=5 if toy else 7)
        self.stem = nn.Sequential(*split, BatchNorm(inputs), nn.ReLU(inplace=True))
        for index, width in enumerate(widths):
            stage = nn.Sequential(Block(inputs, width, stride=2 if index else 1))
            if not toy:
                stage.append(Block(width, width))
            self.add_module(f"layer{index + 1}", stage)
            inputs = width
        self.channels = inputs
        self.stages = ("stem", *(f"layer{index + 1}" for index in range(len(widths))))

    def forward(self, frames: Tensor) -> Tensor:
        """(N, F, 3, S, S') normalised frames to (N, C), float32 at least."""
        if frames.dim() != 5 or frames.shape[2] != 3:
            raise ValueError(f"expected frames (N, F, 3, S, S), got {tuple(frames.shape)}")
        # (N, 3, F, S, S') to (N, width, F, S/2, S'/2), and on
        x = self.run(self._stem, frames.transpose(1, 2))
        for stage in self.stages[1:]:
            for block in getattr(self, stage):
                x = self.run(block, x)
        return x.mean((2, 3, 4), dtype=torch.promote_types(x.dtype, torch.float32))

    def _stem(self, x: Tensor) -> Tensor:
        *split, norm, relu = self.stem
        return relu(_apply(split, norm, x))


class Block(nn.Module):
    """Two split 3×3×3 convolutions and a skip path."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        # So wide that the pair has the parameters of the full 3×3×3 convolution; found once from
        # the widths of the block and used for both pairs, as in the published weights.
        middle = inputs * width * 27 // (inputs * 9 + 3 * width)
        first = _split(inputs, middle, width, (stride,) * 3)
        self.conv1 = nn.Sequential(first, BatchNorm(width), nn.ReLU(inplace=True))
        self.conv2 = nn.Sequential(_split(width, middle, width), BatchNorm(width))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or inputs != width:
            skip = nn.Conv3d(inputs, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(skip, BatchNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, T, H, W) to (N, width, T/stride, H/stride, W/stride)."""
        skip = x if self.downsample is None else convolve(*self.downsample, x)
        out = self.relu(_apply(*self.conv1[:2], x))
        out = _apply(*self.conv2, out)
        out += skip
        return self.relu(out)


def _apply(split: Iterable[nn.Module], norm: BatchNorm, x: Tensor) -> Tensor:
    """A split convolution and the normalisation behind it."""
    in_space, middle_norm, relu, in_time = split
    return convolve(in_time, norm, relu(convolve(in_space, middle_norm, x)))


def _split(inputs: int, middle: int, outputs: int, stride=(1, 1, 1), side=3) -> nn.Sequential:
    """A convolution in space (`side` pixels), normalised, then one in time."""
    time, *space = stride
    pad = side // 2
    in_space = nn.Conv3d(inputs, middle, (1, side, side), (1, *space), (0, pad, pad), bias=False)
    in_time = nn.Conv3d(middle, outputs, (3, 1, 1), (time, 1, 1), (1, 0, 0), bias=False)
    return nn.Sequential(in_space, BatchNorm(middle), nn.ReLU(inplace=True), in_time)
