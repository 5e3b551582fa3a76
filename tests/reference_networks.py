"""What the heads are compared with: inputs of the released networks, and heads the obvious way.

Weights, inputs and random numbers of the released networks are made from their names. The plain
heads do every step as the papers describe it: edges are built for all neighbours, the samples of
all anchors are materialised as one dense map, and all convolutions run on that map. Parameters have
the released names and shapes. B videos, L snippets, D durations, C channels, R sample positions.
"""

import copy
import json
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lofi.heads import BMN, GTAD, Maps, load_published, published_state_dict
from lofi.heads.bmn import duration_start
from lofi.heads.gtad import GCNeXt


def generator(name: str, salt: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + salt))


def reference_weight(name: str, shape: tuple[int, ...], salt: int) -> Tensor:
    """Convolution weights and biases of the recipe in golden/README.md."""
    z = generator(name, salt).standard_normal(shape)
    if name.endswith("bias"):
        z = 0.05 * z
    else:
        z = z * np.sqrt((0.1 if shape[0] in (1, 2) else 2) / np.prod(shape[1:]))
    return torch.from_numpy(z.astype(np.float32))


def fill(head: nn.Module, salt: int) -> None:
    """Give a head the reference weights, through the door for released checkpoints."""
    published = published_state_dict(head)
    load_published(
        head, {k: reference_weight(k, tuple(v.shape), salt) for k, v in published.items()}
    )


def reference_input(model: dict) -> Tensor:
    z = generator(model["input_tag"], model["input_salt"]).standard_normal(model["input_shape"])
    return torch.from_numpy(z.astype(np.float32))


def uniform(k: np.ndarray) -> Tensor:
    """uint16 → the float32 number in (0, 1) that it stands for."""
    return (torch.from_numpy(k.astype(np.float32)) + 0.5) / 65536


def reference_uniform(tag: str, salt: int, shape: tuple[int, ...]) -> Tensor:
    return uniform(generator(tag, salt).integers(0, 65536, size=shape).astype(np.uint16))


def rows_of(targets: str) -> list[int]:
    """The row numbers in a sentence like "labels_L25.npz rows [2, 11] (gtad_*)"."""
    return json.loads(targets[targets.index("[") : targets.index("]") + 1])


def read(path: Path) -> dict:
    return json.loads(path.read_text())


# ------------------------------------------------------------------------------- plain heads


class _Points(NamedTuple):
    """Where the anchors of one duration look: snippets and weights, all (L, R, n)."""

    left: Tensor
    left_weight: Tensor
    right: Tensor
    right_weight: Tensor


def _points(d: int, like: Tensor, resolution: int) -> _Points:
    """Sample points of the anchors of d + 1 snippets, one for each start (G-TAD, section 3.3).

    Anchors that end after the video look at [0, 1]. Coordinates are snippet indices.
    """
    snippets, count = like.shape[2], math.ceil((2 * d + 1) / resolution)
    start, r, i = (
        torch.arange(n, dtype=torch.float64, device=like.device)
        for n in (snippets, resolution, count)
    )
    start, r = start[:, None, None], r[:, None]
    inside = start + d < snippets
    low = torch.where(inside, start - 0.5 * (d + 1), 0)
    width, counts = torch.where(inside, 2 * d + 1, 1), torch.where(inside, count, 1)
    at = low + (r + (i + 0.5) / counts) * width / resolution
    share = ((at >= -1) & (at <= snippets) & (i < counts)) / counts.double()
    at = at.clamp(min=0)
    left = at.long().clamp(max=snippets - 1)
    fraction = torch.where(left < snippets - 1, at - left, 0)
    right = (left + 1).clamp(max=snippets - 1)
    weights = (share * (1 - fraction)).to(like.dtype), (share * fraction).to(like.dtype)
    return _Points(left, weights[0], right, weights[1])


class _Align(torch.autograd.Function):
    """Features of all anchors by interpolation at every sample point, duration by duration."""

    @staticmethod
    def forward(ctx, x, durations, resolution):
        ctx.save_for_backward(x)
        out = x.new_empty(*x.shape[:2], resolution, durations, x.shape[2])
        for d in range(durations):
            p = _points(d, x, resolution)
            values = x[:, :, p.left] * p.left_weight + x[:, :, p.right] * p.right_weight
            out[:, :, :, d] = values.sum(4).transpose(2, 3)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        grad_x = torch.zeros_like(x)
        for d in range(grad.shape[3]):
            p = _points(d, x, grad.shape[2])
            values = grad[:, :, :, d].transpose(2, 3)[..., None]  # (B, C, L, R, 1)
            grad_x.index_add_(2, p.left.flatten(), (values * p.left_weight).flatten(2))
            grad_x.index_add_(2, p.right.flatten(), (values * p.right_weight).flatten(2))
        return grad_x, None, None


def align_plain(x: Tensor, durations: int, resolution: int) -> Tensor:
    """(B, C, L) -> (B, C, R, D, L): R samples of every anchor, invalid ones included."""
    return _Align.apply(x, durations, resolution)


def bmn_weights(snippets: int, samples: int = 32, per_bin: int = 3, ratio: float = 0.5) -> Tensor:
    """BMN's sampling matrix, (samples, L, L, L) float64: sample, start, end inclusive, snippet."""
    weights = np.zeros((samples, snippets, snippets, snippets))
    for start in range(snippets):
        for end in range(start, snippets):
            length = end + 1 - start + 1
            low, high = start - ratio * length, end + 1 + ratio * length
            for k in range(samples * per_bin):
                at = low + k * (high - low) / (samples * per_bin - 1)
                share, whole = math.modf(at)
                for index, weight in ((int(whole), 1 - share), (math.ceil(at), share)):
                    if 0 <= index < snippets:
                        weights[k // per_bin, start, end, index] += weight / per_bin
    return torch.from_numpy(weights)


def neighbours_plain(x: Tensor, neighbours: int) -> Tensor:
    """(B, C, L) -> (B, C, L, K): features of the K snippets nearest to each, itself among them."""
    with torch.no_grad():
        square = x.square().sum(1)
        distance = square[:, :, None] - 2 * x.transpose(1, 2) @ x + square[:, None, :]  # (B, L, L)
        index = distance.topk(min(neighbours, x.shape[2]), dim=2, largest=False).indices
    return torch.stack([features[:, chosen] for features, chosen in zip(x, index)])


class PlainGTAD(nn.Module):
    """The head `like` with a dense map of anchor features."""

    def __init__(self, like: GTAD) -> None:
        super().__init__()
        if like.context == "layers" or like.samples_per_bin:
            raise ValueError("the plain head knows neither context='layers' nor samples_per_bin")
        for name in ("backbone1", "regu_s", "regu_e", "backbone2", "localization"):
            self.add_module(name, copy.deepcopy(getattr(like, name)))
        out, inputs = like.localization[0].released[:2]
        self.localization[0], self.localization[1] = nn.Conv2d(inputs, out, 1), nn.ReLU()
        self.load_state_dict(published_state_dict(like))
        self.neighbours, self.durations, self.options = (
            like.neighbours,
            like.durations,
            like.options,
        )

    def forward(self, features: Tensor) -> Maps:
        """(B, C, L) -> maps."""
        base = self._block(self.backbone1[2], F.relu(self.backbone1[0](features)))
        start, end = (head[1:](self._block(head[0], base)) for head in (self.regu_s, self.regu_e))
        x = self._block(self.backbone2[0], base)
        durations, own = self.durations or x.shape[2], self.options
        dense = align_plain(x, durations, own.resolution)
        if own.context_resolution:
            mean = neighbours_plain(x, self.neighbours).mean(3)
            dense = torch.cat([dense, align_plain(mean, durations, own.context_resolution)], 2)
        return Maps(self.localization(dense.flatten(1, 2)), start[:, 0], end[:, 0])

    def _block(self, block: GCNeXt, x: Tensor) -> Tensor:
        neighbour = neighbours_plain(x, self.neighbours)
        edges = torch.cat([neighbour, x[..., None].expand_as(neighbour)], 1)
        return F.relu(block.tconvs(x) + x + block.sconvs(edges).max(3).values)


class PlainBMN(nn.Module):
    """The head `like` ("master") with a dense map of samples, for inputs of exactly `snippets`."""

    def __init__(self, like: BMN, snippets: int) -> None:
        super().__init__()
        samples, per_bin, ratio, variant = like.sampling
        if variant != "master":
            raise ValueError(f"the plain head knows the variant 'master', not {variant!r}")
        for name in ("x_1d_b", "x_1d_s", "x_1d_e", "x_1d_p", "x_3d_p", "x_2d_p"):
            self.add_module(name, copy.deepcopy(getattr(like, name)))
        out, inputs = like.x_3d_p[0].released[:2]
        self.x_3d_p[0] = nn.Conv3d(inputs, out, (samples, 1, 1))
        self.load_state_dict(published_state_dict(like))
        dtype = next(like.parameters()).dtype
        self.weights = bmn_weights(snippets, samples, per_bin, ratio).to(dtype)

    def forward(self, features: Tensor) -> Maps:
        """(B, C, L) -> maps."""
        base = self.x_1d_b(features)
        x = self.x_1d_p(base)
        dense = (x @ self.weights.flatten(0, 2).T).unflatten(2, self.weights.shape[:3])
        scores = self.x_2d_p(F.relu(self.x_3d_p(dense)).squeeze(2))
        start, end = self.x_1d_s(base)[:, 0], self.x_1d_e(base)[:, 0]
        return Maps(duration_start(scores), start, end)
