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


class _Variant(NamedTuple):
    resolution: int  # inner samples an anchor
    context_resolution: int
    head_kernel: int


VARIANTS = {"anet": _Variant(32, 4, 1), "thumos": _Variant(16, 16, 3)}
CONTEXTS = ("none", "neighbours", "layers")


# -------------------------------------------------------------------------------------------- graph


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
    """x[b, index[b]]; the gradient is a matrix product: its sums have a fixed order anywhere."""

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


def pick(x: Tensor, index: Tensor) -> Tensor:
    """(B, L, C) and (B, L, K) -> (B, L, K, C)."""
    return _Pick.apply(x, index)


class GCNeXt(nn.Module):
    """Sum of a temporal stream, a stream over feature-space neighbours and the input, then ReLU.

    Section 3.2 of the paper, `paths` parallel paths of width 4. The first 1x1 convolution of the
    neighbour stream sees (neighbour, centre) side by side; its two halves are applied to snippets
    before neighbours are picked.
    """

    def __init__(self, hidden: int, paths: int) -> None:
        super().__init__()
        width = 4 * paths
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

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        """(B, L, H), (B, L, K) neighbours -> (B, L, H)."""
        return F.relu(self._temporal(x) + x + self._semantic(x, graph))

    def _temporal(self, x: Tensor) -> Tensor:
        narrow, mixed, wide = self.tconvs[0], self.tconvs[2], self.tconvs[4]
        y = F.relu_(pointwise(x, narrow))
        y = F.relu_(mixed(y.transpose(1, 2))).transpose(1, 2)
        return pointwise(y, wide)

    def _semantic(self, x: Tensor, graph: Tensor) -> Tensor:
        first, mixed, wide = self.sconvs[0], self.sconvs[2], self.sconvs[4]
        neighbour, centre = first.weight.flatten(1).chunk(2, 1)
        y = pick(F.linear(x, neighbour), graph) + F.linear(x, centre, first.bias)[:, :, None]
        y = grouped(F.relu_(y).flatten(0, 2), mixed)  # (B L K, width)
        return _LargestNeighbour.apply(pointwise(F.relu_(y), wide).unflatten(0, graph.shape))


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


def grouped(x: Tensor, convolution: nn.Module) -> Tensor:
    """A grouped 1x1 convolution on rows: (N, in) -> (N, out)."""
    weight = convolution.weight.unflatten(0, (convolution.groups, -1)).flatten(2)  # (G, out, in)
    y = x.unflatten(1, (convolution.groups, -1)).transpose(0, 1) @ weight.transpose(1, 2)
    return y.transpose(0, 1).flatten(1) + convolution.bias


def pointwise(x: Tensor, convolution: nn.Module) -> Tensor:
    """A 1x1 convolution on rows: (..., in) -> (..., out)."""
    return F.linear(x, convolution.weight.flatten(1), convolution.bias)


class GraphFeatures(NamedTuple):
    """What the trunk hands on; its blocks used the graphs."""

    base: Tensor  # (B, L, H) after the first block
    refined: Tensor  # (B, L, H) after the second
    graphs: tuple[Tensor, Tensor]  # (B, L, K) neighbours in the input of either


# --------------------------------------------------------------------------------------------- head


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
    """

    def __init__(
        self,
        channels: int,
        snippets: int = 100,
        durations: int | None = None,
        variant: str = "anet",
        head_kernel: int | None = None,
        context_resolution: int | None = None,
        *,
        resolution: int | None = None,
        hidden: int = 256,
        paths: int = 32,
        map_hidden: tuple[int, int] = (512, 128),
        neighbours: int = 3,
        context: str = "neighbours",
        samples_per_bin: int = 0,
        best_anchor: bool = False,
    ) -> None:
        super().__init__()
        own = _own_options(variant, resolution, context_resolution, head_kernel, context)
        if channels % 4 or hidden % 4:
            raise ValueError(f"channels and hidden are {channels}, {hidden}: not multiples of 4")
        anchors.num_durations(snippets, durations)
        self.channels, self.snippets, self.durations = channels, snippets, durations
        self.options, self.context = own, context
        self.neighbours, self.samples_per_bin = neighbours, samples_per_bin
        self.label_rule = self.loss_rule = variant
        self.best_anchor = best_anchor
        wide, narrow = map_hidden
        positions = own.resolution + own.context_resolution
        kernel = {"kernel_size": own.head_kernel, "padding": own.head_kernel // 2}
        self.backbone1 = nn.Sequential(
            nn.Conv1d(channels, hidden, 3, padding=1, groups=4), nn.ReLU(), GCNeXt(hidden, paths)
        )
        self.regu_s = nn.Sequential(GCNeXt(hidden, paths), nn.Conv1d(hidden, 1, 1), nn.Sigmoid())
        self.regu_e = nn.Sequential(GCNeXt(hidden, paths), nn.Conv1d(hidden, 1, 1), nn.Sigmoid())
        self.backbone2 = nn.Sequential(GCNeXt(hidden, paths))
        self.localization = nn.Sequential(
            anchors.SampledLinear(
                hidden,
                own.resolution,
                own.context_resolution,
                wide,
                (wide, hidden * positions, 1, 1),
            ),  # fmt: skip
            nn.Identity(),  # the ReLU is part of the sampled convolution; numbering as released
            nn.Conv2d(wide, narrow, 1),
            nn.ReLU(),
            nn.Conv2d(narrow, narrow, **kernel),
            nn.ReLU(),
            nn.Conv2d(narrow, narrow, **kernel),
            nn.ReLU(),
            nn.Conv2d(narrow, 2, 1),
            nn.Sigmoid(),
        )

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Maps:
        """(B, C, L) float -> maps of L columns and min(durations, L) rows.

        The mask is not used: as released, features behind the end of a video are zeros.
        """
        anchors.check_features(features, self.channels)
        trunk = self.trunk(features)
        graph = trunk.graphs[1]  # made from what both boundary heads read
        start = self._boundary(self.regu_s, trunk.base, graph)
        end = self._boundary(self.regu_e, trunk.base, graph)
        return Maps(self._localize(trunk), start, end)

    def trunk(self, features: Tensor) -> GraphFeatures:
        """(B, C, L) -> features after each graph layer."""
        x = F.relu_(self.backbone1[0](features)).transpose(1, 2)
        first = nearest_snippets(x, self.neighbours)
        base = self.backbone1[2](x, first)
        second = nearest_snippets(base, self.neighbours)
        return GraphFeatures(base, self.backbone2[0](base, second), (first, second))

    def context_features(self, trunk: GraphFeatures) -> Tensor | None:
        """(B, L, H) features that the context positions sample."""
        if self.options.context_resolution == 0:
            return None
        if self.context == "layers":
            graph = torch.cat(trunk.graphs, 2)
        else:
            graph = nearest_snippets(trunk.refined, self.neighbours)
        return pick(trunk.refined, graph).mean(2)

    def _boundary(self, head: nn.Sequential, x: Tensor, graph: Tensor) -> Tensor:
        return anchors.probabilities(pointwise(head[0](x, graph), head[1]))[..., 0]

    def _localize(self, trunk: GraphFeatures) -> Tensor:
        x, own, layers = trunk.refined, self.options, self.localization
        snippets = x.shape[1]
        durations = anchors.num_durations(snippets, self.durations)
        sizes = (own.resolution, own.context_resolution, self.samples_per_bin)
        sampler = anchors.Sampler(anchors.gtad_entries, (snippets, durations, *sizes))
        cells = anchors.Sampler(anchors.cell_entries, (anchors.valid_cells, snippets, durations))
        context, convolutions = self.context_features(trunk), [layers[i] for i in (2, 4, 6, 8)]
        return anchors.anchor_scores(x, context, layers[0], convolutions, sampler, cells)


def _own_options(variant, resolution, context_resolution, head_kernel, context) -> _Variant:
    """The variant's options with the given ones in their place."""
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}, expected one of {', '.join(VARIANTS)}")
    if context not in CONTEXTS:
        raise ValueError(f"context is {context!r}, expected one of {', '.join(CONTEXTS)}")
    if head_kernel not in (None, 1, 3):
        raise ValueError(f"head_kernel is {head_kernel}, expected 1 or 3")
    given = {
        "resolution": resolution,
        "context_resolution": 0 if context == "none" else context_resolution,
        "head_kernel": head_kernel,
    }
    return VARIANTS[variant]._replace(**{k: v for k, v in given.items() if v is not None})
