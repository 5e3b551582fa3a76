"""VideoMAE and VideoMAEv2: plain vision transformers on tubes of two frames.

Sources: Tong et al., NeurIPS 2022; Wang et al., CVPR 2023; parameter names of their repositories.
N snippets, F frames a snippet, S pixels a side, P pixels a patch, d channels.
"""

from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lofi.encoders.base import Encoder


class VideoViT(Encoder):
    """(N, F, 3, S, S') frames, F even, sides whole patches, to (N, d) snippet features."""

    source, licence = "VideoMAE, VideoMAEv2", "CC-BY-NC 4.0 (non-commercial)"

    def __init__(
        self, name: str, patch: int, width: int, depth: int, heads: int, hidden: int
    ) -> None:
        super().__init__()
        self.name, self.patch, self.channels = name, patch, width
        self.stages = ("stem", "layer1", "layer2", "layer3", "layer4", "fc_norm")
        tube = 2, patch, patch
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, width, tube, tube)})
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.fc_norm = nn.LayerNorm(width)
        self.follow("videomae")

    def follow(self, convention: str = "", normalisation: str = "") -> None:
        """Epsilons of a public program, "videomae" (or "" = as now) or "transformers", and pixels.

        Pixels are "unit" with the first, as VideoMAEv2 releases its features, and "imagenet" with
        the other, unless said: convention "videomae imagenet", or `normalisation`.
        """
        program, _, pixels = (convention or self.convention).partition(" ")
        usual = {"videomae": "unit", "transformers": "imagenet"}
        pixels = normalisation or pixels or usual.get(program)
        if program not in usual or pixels not in usual.values():
            found = f"{self.name} has no convention {convention!r} with pixels {pixels!r}"
            raise ValueError(f"{found}; known: videomae, transformers; unit, imagenet")
        self.convention, plain = f"{program} {pixels}", program == "videomae"
        unit = (0.0,) * 3, (1.0,) * 3
        self.mean, self.std = unit if pixels == "unit" else (Encoder.mean, Encoder.std)
        for block in self.blocks:
            block.norm1.eps = block.norm2.eps = 1e-6 if plain else 1e-12
        self.fc_norm.eps = 1e-6 if plain else 1e-5

    def add_adapters(self) -> None:
        for i, block in enumerate(self.blocks):
            if block.adapter is None:
                with self.fc_norm.weight.device:
                    block.adapter = Adapter(self.channels, i)

    def stage_modules(self, stage: str) -> list[nn.Module]:
        if stage in ("stem", "fc_norm"):
            return [self.patch_embed if stage == "stem" else self.fc_norm]
        number, depth = int(stage.removeprefix("layer")), len(self.blocks)
        return list(self.blocks[(number - 1) * depth // 4 : number * depth // 4])

    def check_size(self, frames: int, *sides: int) -> None:
        super().check_size(frames, *sides)
        if frames % 2:
            cure = f"set full.frames (stage 1: acp_frames) to {frames + 1}"
            raise ValueError(f"{self.name}: {frames} frames, expected an even number; {cure}")

    def forward(self, frames: Tensor) -> Tensor:
        """(N, F, 3, S, S') normalised frames to (N, d), float32 at least."""
        if frames.dim() != 5 or frames.shape[2] != 3:
            found = f"{self.name}: frames {tuple(frames.shape)}"
            raise ValueError(f"{found}, expected (N, F, 3, S, S')")
        self.check_size(frames.shape[1], *frames.shape[-2:])
        x = self.patch_embed["proj"](frames.transpose(1, 2))
        times, x = x.shape[2], x.flatten(2).transpose(1, 2)
        x = x + torch.from_numpy(positions(*x.shape[1:])).to(x)
        for block in self.blocks:
            x = self.run(block, x, times)
        x = self.fc_norm(x.mean(1))
        return x.to(torch.promote_types(x.dtype, torch.float32))


def positions(tokens: int, width: int) -> np.ndarray:
    """Sine positions, float64 (tokens, width): even channels sin, odd ones cos."""
    rate = 10000.0 ** (-2 * (np.arange(width) // 2) / width)
    angle = np.arange(tokens)[:, None] * rate
    return np.where(np.arange(width) % 2, np.cos(angle), np.sin(angle))


class Attention(nn.Module):
    """Self-attention with a bias on queries and values, none on keys."""

    fused = True  # its kernels keep no (tokens, tokens) matrix; meta tensors have no such kernel

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv = heads, nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1))
        out = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        return self.proj(out.transpose(1, 2).flatten(2))


class Adapter(nn.Module):
    """What a frozen block learns about time: a bottleneck with a convolution over its tokens.

    Idea: Liu et al., "End-to-End Temporal Action Detection with 1B Parameters Across 1000 Frames",
    CVPR 2024; the last layer begins at zero, so that the block begins as it was.
    """

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, width // 4), nn.Linear(width // 4, width)
        self.time = nn.Conv2d(width // 4, width // 4, (3, 1), padding=(1, 0), groups=width // 4)
        self.scale = nn.Parameter(torch.ones(()))
        draws = torch.Generator().manual_seed(seed)  # on the CPU, the same on every device
        with torch.no_grad():
            for layer, fan in ((self.down, width), (self.time, 3)):
                numbers = torch.randn(layer.weight.shape, generator=draws, device="cpu")
                layer.weight.copy_(numbers / fan**0.5)
        for zero in (self.up.weight, self.up.bias, self.down.bias, self.time.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor, times: int) -> Tensor:
        """(N, tokens, d), the tokens time by time, to the same shape."""
        inner = F.gelu(self.down(x)).transpose(1, 2).unflatten(2, (times, -1))
        inner = self.time(inner).flatten(2).transpose(1, 2)  # (N, d/4, T, places) inside
        return x + self.scale * self.up(inner)


class Block(nn.Module):
    """Pre-norm transformer block: attention, then an MLP with exact GELU, perhaps an adapter."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.adapter: Adapter | None = None
        layers = {"fc1": nn.Linear(width, hidden), "act": nn.GELU()}
        self.mlp = nn.Sequential(OrderedDict(layers, fc2=nn.Linear(hidden, width)))

    def forward(self, x: Tensor, times: int) -> Tensor:
        """(N, tokens, d), the tokens of so many `times`, to the same shape."""
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x if self.adapter is None else self.adapter(x, times)
