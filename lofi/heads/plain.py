"""The heads once more, the slow and obvious way: what tests and benchmarks compare the lean ones with.

Every step is written as the papers describe it: edge features are built for all neighbours, the
samples of all anchors are materialised as one dense map, and all convolutions run on that map.
Parameters have the released names and shapes, so `published_state_dict` of a lean head fits.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lofi.heads.gtad import GTAD, Maps


def align_plain(x: Tensor, regions: Tensor, resolution: int, samples: int = 0) -> Tensor:
    """1-D region aligner, one region and one bin at a time: (C, N), (K, 2) -> (K, C, resolution).

    Source: G-TAD (CVPR 2020), section 3.3; coordinates are snippet indices.
    """
    return torch.stack([_align_one(x, *region, resolution, samples) for region in regions.tolist()])


def _align_one(x: Tensor, low: float, high: float, resolution: int, samples: int) -> Tensor:
    width = max(high - low, 1.0) / resolution
    count = samples or math.ceil(width)
    bins = []
    for r in range(resolution):
        points = [low + r * width + (i + 0.5) * width / count for i in range(count)]
        bins.append(torch.stack([_interpolate(x, at) for at in points]).mean(0))
    return torch.stack(bins, 1)


def _interpolate(x: Tensor, at: float) -> Tensor:
    last = x.shape[1] - 1
    if at < -1 or at > last + 1:
        return torch.zeros_like(x[:, 0])
    at = max(at, 0.0)
    left = int(at)
    if left >= last:
        return x[:, last]
    return (1 - (at - left)) * x[:, left] + (at - left) * x[:, left + 1]


def bmn_matrix(snippets: int, samples: int = 32, per_bin: int = 3, ratio: float = 0.5) -> Tensor:
    """BMN's sampling matrix, float64: (L, samples, L, L), last axes (start, end), end inclusive."""
    matrix = torch.zeros(snippets, samples, snippets, snippets, dtype=torch.float64)
    for start in range(snippets):
        for end in range(start, snippets):
            length = end + 1 - start + 1
            low, high = start - ratio * length, end + 1 + ratio * length
            for k in range(samples * per_bin):
                at = low + k * (high - low) / (samples * per_bin - 1)
                share, whole = math.modf(at)
                for index, weight in ((int(whole), 1 - share), (math.ceil(at), share)):
                    if 0 <= index < snippets:
                        matrix[index, k // per_bin, start, end] += weight / per_bin
    return matrix


class PlainGCNeXt(nn.Module):
    """A graph block on (B, H, L) features that builds every edge."""

    def __init__(self, hidden: int, paths: int, neighbours: int) -> None:
        super().__init__()
        width, self.neighbours = 4 * paths, neighbours
        self.tconvs = nn.Sequential(
            nn.Conv1d(hidden, width, 1),
            nn.ReLU(),
            nn.Conv1d(width, width, 3, padding=1, groups=paths),
            nn.ReLU(),
            nn.Conv1d(width, hidden, 1),
        )
        self.sconvs = nn.Sequential(
            nn.Conv2d(2 * hidden, width, 1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1, groups=paths),
            nn.ReLU(),
            nn.Conv2d(width, hidden, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, L) -> (B, H, L)."""
        neighbour = neighbours_plain(x, self.neighbours)  # (B, H, L, K)
        centre = x[..., None].expand_as(neighbour)
        semantic = self.sconvs(torch.cat([neighbour, centre], 1)).max(3).values
        return F.relu(self.tconvs(x) + x + semantic)


def neighbours_plain(x: Tensor, neighbours: int) -> Tensor:
    """(B, H, L) -> (B, H, L, K): features of the K snippets nearest to each, itself among them."""
    with torch.no_grad():
        distance = (x[:, :, :, None] - x[:, :, None, :]).square().sum(1)  # (B, L, L)
        index = distance.topk(neighbours, dim=2, largest=False).indices
    return torch.stack([features[:, chosen] for features, chosen in zip(x, index)])


class PlainGTAD(nn.Module):
    """A `GTAD` head with the same options that fills the dense map of anchor features."""

    def __init__(self, like: GTAD, snippets: int) -> None:
        """Copies sizes and weights of `like`; for inputs of exactly `snippets` snippets."""
        super().__init__()
        hidden, paths = like.backbone1[0].out_channels, like.backbone1[2].tconvs[2].groups
        self.options, self.snippets = like.options, snippets
        self.durations, self.neighbours = like.durations or snippets, like.neighbours
        if like.context == "layers" or like.samples_per_bin:
            raise ValueError("the plain head knows neither context='layers' nor samples_per_bin")

        def block() -> PlainGCNeXt:
            return PlainGCNeXt(hidden, paths, like.neighbours)

        first = nn.Conv1d(like.channels, hidden, 3, padding=1, groups=4)
        self.backbone1 = nn.Sequential(first, nn.ReLU(), block())
        self.regu_s = nn.Sequential(block(), nn.Conv1d(hidden, 1, 1), nn.Sigmoid())
        self.regu_e = nn.Sequential(block(), nn.Conv1d(hidden, 1, 1), nn.Sigmoid())
        self.backbone2 = nn.Sequential(block())
        self.localization = nn.Sequential(*like.localization)
        sampled = like.localization[0]
        out, positions = sampled.released[:2]
        self.localization[0] = nn.Conv2d(positions, out, 1)
        self.localization[1] = nn.ReLU()
        raise NotImplementedError
