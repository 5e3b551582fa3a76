"""G-TAD: a graph network over snippets that scores every anchor of a (duration, start) map.

Source: Xu et al., "G-TAD: Sub-Graph Localization for Temporal Action Detection", CVPR 2020; numbers
that the paper leaves open follow the released code of its authors (ActivityNet variant "anet",
THUMOS14 variant "thumos").
B videos, L snippets, D durations, C channels, H hidden channels, K neighbours. Inside, features are
(B, L, channels).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lofi.heads import anchors
from lofi.heads.maps import MapHead, Maps


class Options(NamedTuple):
    """What the released variants set differently."""

    resolution: int = 32  # inner samples an anchor
    context_resolution: int = 4
    head_kernel: int = 1


VARIANTS = {"anet": Options(), "thumos": Options(16, 16, 3)}
CONTEXTS = ("none", "neighbours", "layers")


@torch.no_grad()
def nearest_snippets(x: Tensor, neighbours: int) -> Tensor:
    """(B, L, C) -> (B, L, K) int64: the closest snippets in feature space, itself first.

    K = min(neighbours, L). Distances are float32 or better in any autocast mode.
    """
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return nearest_snippets(x, neighbours)
    x = x if x.dtype == torch.float64 else x.float()
    x = x - x.mean(1, keepdim=True)  # the same distances, less rounding
    square = x.square().sum(2)
    # Minus the squared distance, up to a constant a row.
    closeness = 2 * x @ x.transpose(1, 2) - square[:, None, :]
    closeness.diagonal(dim1=1, dim2=2).fill_(float("inf"))
    return closeness.topk(min(neighbours, x.shape[1]), dim=2).indices


class _Pick(torch.autograd.Function):
    """(B, L, C), (B, L, K) -> (B, L, K, C); the gradient sums in a fixed order (matrix product)."""

    @staticmethod
    def forward(ctx, x, index):
        ctx.save_for_backward(index)
        ctx.snippets = x.shape[1]
        first = torch.arange(len(x), device=x.device)[:, None, None] * x.shape[1]
        return x.flatten(0, 1)[(index + first).flatten()].view(*index.shape, -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (index,) = ctx.saved_tensors
        snippets = torch.arange(ctx.snippets, device=index.device)
        choice = (index.flatten(1)[:, None] == snippets[:, None]).to(grad.dtype)  # (B, L, L K)
        return choice @ grad.flatten(1, 2), None


class GCNeXt(nn.Module):
    """Sum of a temporal stream, a stream over feature-space neighbours and the input, then ReLU.

    Section 3.2 of the paper, `paths` parallel paths of width 4. The first 1x1 convolution of the
    neighbour stream sees (neighbour, centre) side by side; its two halves are applied to snippets
    before neighbours are picked.
    """

    def __init__(self, hidden: int, paths: int) -> None:
        super().__init__()
        width = 4 * paths
        self.tconvs = anchors.with_relus(
            nn.Conv1d(hidden, width, 1),
            nn.Conv1d(width, width, 3, padding=1, groups=paths),
            nn.Conv1d(width, hidden, 1),
        )
        self.sconvs = anchors.with_relus(
            nn.Conv2d(2 * hidden, width, 1),
            nn.Conv2d(width, width, 1, groups=paths),
            nn.Conv2d(width, hidden, 1),
        )

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        """(B, L, H), (B, L, K) neighbours -> (B, L, H)."""
        narrow, mixed, wide = self.tconvs[0], self.tconvs[2], self.tconvs[4]
        y = F.relu_(pointwise(x, narrow))
        y = F.relu_(mixed(y.transpose(1, 2))).transpose(1, 2)
        temporal = pointwise(y, wide) + x

        first, mixed, wide = self.sconvs[0], self.sconvs[2], self.sconvs[4]
        neighbour, centre = first.weight.flatten(1).chunk(2, 1)
        y = _Pick.apply(F.linear(x, neighbour), graph)
        y = y + F.linear(x, centre, first.bias)[:, :, None]
        y = F.relu_(y).flatten(0, 2).unflatten(1, (mixed.groups, -1)).transpose(0, 1)
        weight = mixed.weight.unflatten(0, (mixed.groups, -1)).flatten(2)  # (G, out, in)
        y = (y @ weight.transpose(1, 2)).transpose(0, 1).flatten(1) + mixed.bias  # (B L K, width)
        semantic = _LargestNeighbour.apply(pointwise(F.relu_(y), wide).unflatten(0, graph.shape))
        return F.relu(temporal + semantic)


class _LargestNeighbour(torch.autograd.Function):
    """Maximum over axis 2, the first one on ties; remembers it in a byte, not in eight."""

    @staticmethod
    def forward(ctx, y):
        largest, which = y[:, :, 0].clone(), torch.zeros_like(y[:, :, 0], dtype=torch.uint8)
        for k in range(1, y.shape[2]):
            which.masked_fill_(y[:, :, k] > largest, k)
            torch.maximum(largest, y[:, :, k], out=largest)
        ctx.save_for_backward(which)
        ctx.neighbours = y.shape[2]
        return largest

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (which,) = ctx.saved_tensors
        return torch.stack([grad * (which == k) for k in range(ctx.neighbours)], 2)


def pointwise(x: Tensor, convolution: nn.Module) -> Tensor:
    """A 1x1 convolution on rows: (..., in) -> (..., out)."""
    return F.linear(x, convolution.weight.flatten(1), convolution.bias)


class GraphFeatures(NamedTuple):
    """What the trunk hands on; its blocks used the graphs."""

    base: Tensor  # (B, L, H) after the first block
    refined: Tensor  # (B, L, H) after the second
    graphs: tuple[Tensor, Tensor]  # (B, L, K) neighbours in the input of either


class GTAD(MapHead):
    """G-TAD head: (B, C, L) snippet features -> `Maps`; no weight depends on L or D.

    Args:
        channels: C, a multiple of 4.
        snippets: L at full fidelity; only documents the head, any other L works.
        durations: rows D of the map, at most L; None means L.
        variant: "anet" (32 inner and 4 context samples, 1x1 kernels) or "thumos" (16 and 16, 3x3
            kernels).
        head_kernel: kernel of the third and fourth map convolution (1 or 3); None: the variant's.
        context_resolution: context samples an anchor; None: the variant's.
        resolution: inner samples an anchor; None: the variant's.
        hidden: H, a multiple of 4.
        paths: parallel paths of width 4 in each stream of a block; 4 * paths channels.
        map_hidden: channels after the first convolution of the map, and after the others.
        neighbours: K, the snippet itself included.
        context: "neighbours" (mean over the neighbours of the last features), "layers" (over those
            of both graph layers of the trunk) or "none".
        samples_per_bin: points a bin of the inner samples; 0 adapts to the length of the anchor.
        best_anchor: see `lofi.heads.loss`.
    """

    def __init__(
        self, channels: int, snippets: int = 100, durations: int | None = None,
        variant: str = "anet", head_kernel: int | None = None,
        context_resolution: int | None = None, *, resolution: int | None = None,
        hidden: int = 256, paths: int = 32, map_hidden: tuple[int, int] = (512, 128),
        neighbours: int = 3, context: str = "neighbours", samples_per_bin: int = 0,
        best_anchor: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}, expected one of {', '.join(VARIANTS)}")
        if context not in CONTEXTS:
            raise ValueError(f"context is {context!r}, expected one of {', '.join(CONTEXTS)}")
        if head_kernel not in (None, 1, 3):
            raise ValueError(f"head_kernel is {head_kernel}, expected 1 or 3")
        if channels % 4 or hidden % 4:
            raise ValueError(f"channels and hidden are {channels}, {hidden}: not multiples of 4")
        given = resolution, 0 if context == "none" else context_resolution, head_kernel
        pairs = zip(given, VARIANTS[variant])
        own = Options(*(default if value is None else value for value, default in pairs))
        anchors.num_durations(snippets, durations)
        self.channels, self.snippets, self.durations = channels, snippets, durations
        self.options, self.context, self.neighbours = own, context, neighbours
        self.samples_per_bin, self.best_anchor = samples_per_bin, best_anchor
        self.label_rule = self.loss_rule = variant
        wide, narrow = map_hidden
        positions = own.resolution, own.context_resolution
        kernel = {"kernel_size": own.head_kernel, "padding": own.head_kernel // 2}
        self.backbone1 = nn.Sequential(
            nn.Conv1d(channels, hidden, 3, padding=1, groups=4), nn.ReLU(), GCNeXt(hidden, paths)
        )
        self.regu_s = nn.Sequential(GCNeXt(hidden, paths), nn.Conv1d(hidden, 1, 1), nn.Sigmoid())
        self.regu_e = nn.Sequential(GCNeXt(hidden, paths), nn.Conv1d(hidden, 1, 1), nn.Sigmoid())
        self.backbone2 = nn.Sequential(GCNeXt(hidden, paths))
        released = wide, hidden * sum(positions), 1, 1
        self.localization = anchors.with_relus(
            anchors.SampledLinear(hidden, *positions, wide, released),
            nn.Conv2d(wide, narrow, 1),
            nn.Conv2d(narrow, narrow, **kernel),
            nn.Conv2d(narrow, narrow, **kernel),
            nn.Conv2d(narrow, 2, 1),
        ).append(nn.Sigmoid())

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Maps:
        """(B, C, L) float -> maps of L columns and min(durations, L) rows.

        The mask is not used: as released, features behind the end of a video are zeros.
        """
        anchors.check_features(features, self.channels)
        trunk = self.trunk(features)
        start, end = (
            anchors.probabilities(pointwise(head[0](trunk.base, trunk.graphs[1]), head[1]))[..., 0]
            for head in (self.regu_s, self.regu_e)  # both read what the second graph is made from
        )
        context, own = None, self.options
        if own.context_resolution:
            if self.context == "layers":
                graph = torch.cat(trunk.graphs, 2)
            else:
                graph = nearest_snippets(trunk.refined, self.neighbours)
            context = _Pick.apply(trunk.refined, graph).mean(2)
        grid = features.shape[2], anchors.num_durations(features.shape[2], self.durations)
        sizes = own.resolution, own.context_resolution, self.samples_per_bin
        sampler, cells = (anchors.gtad_entries, *grid, *sizes), (anchors.valid_cells, *grid)
        layers = self.localization[:-1:2]
        confidence = anchors.anchor_scores(trunk.refined, context, layers, sampler, cells)
        return Maps(confidence, start, end)

    def trunk(self, features: Tensor) -> GraphFeatures:
        """(B, C, L) -> features after each graph layer."""
        x = F.relu_(self.backbone1[0](features)).transpose(1, 2)
        first = nearest_snippets(x, self.neighbours)
        base = self.backbone1[2](x, first)
        second = nearest_snippets(base, self.neighbours)
        return GraphFeatures(base, self.backbone2[0](base, second), (first, second))
