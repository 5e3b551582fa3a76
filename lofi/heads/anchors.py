"""From snippet features to the scores of all anchors, without ever building the dense map.

Two samplers are used by the heads: the 1-D region-of-interest aligner of G-TAD (Xu et al., "G-TAD:
Sub-Graph Localization for Temporal Action Detection", CVPR 2020, section 3.3; coordinates are
snippet indices) and the boundary-matching sampling of BMN (Lin et al., ICCV 2019, section 3.3).
Both are *fixed linear maps*: a sample is a weighted sum of snippets, and the weights depend only on
the anchor grid. And both are followed by a 1x1 convolution, which is linear as well, so the order
may be swapped: project every snippet once per sample position, then gather. That is exact, and it
replaces (anchors x samples x channels) numbers by (snippets x samples x outputs).

Every valid anchor has a row of features. Cells of the map whose anchor would end after the video
share one more row (G-TAD: the region [0, 0]; BMN: no samples at all).

B videos, L snippets, D durations, C channels, R sample positions, H output channels of the first
1x1 convolution.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BMN_VARIANTS = ("master", "2019")
CHUNK = 256  # regions whose weights are built at once: bounds the memory of plan building


class Entries(NamedTuple):
    """Non-zero weights of a sampler, sorted by (row, position, snippet)."""

    rows: int
    positions: int
    snippets: int
    row: np.ndarray  # (n,) int64
    position: np.ndarray  # (n,) int64
    snippet: np.ndarray  # (n,) int64
    weight: np.ndarray  # (n,) float64


def num_durations(snippets: int, durations: int | None) -> int:
    """Number of rows D of the map: `durations`, at most `snippets`; None means `snippets`."""
    if snippets < 1:
        raise ValueError(f"snippets is {snippets}, expected at least 1")
    if durations is not None and durations < 1:
        raise ValueError(f"durations is {durations}, expected at least 1 or None (all)")
    return snippets if durations is None else min(durations, snippets)


@lru_cache(maxsize=64)
def valid_cells(snippets: int, durations: int) -> np.ndarray:
    """(D, L) bool: anchor (d, s), d + 1 snippets from snippet s on, ends inside the video."""
    cells = np.arange(durations)[:, None] + np.arange(snippets)[None, :] < snippets
    cells.setflags(write=False)
    return cells


def gtad_regions(snippets: int, durations: int) -> np.ndarray:
    """(V + 1, 2) float64 regions [low, high] in snippet indices, one a row of features.

    First the V valid anchors in (duration, start) order, then [0, 0], which all other cells share.
    An anchor of d + 1 snippets is widened by half its length on either side; the region is then
    2d + 1 long because its ends are snippet *indices* (released code).
    """
    d, s = np.nonzero(valid_cells(snippets, durations))
    half = 0.5 * (d + 1)
    return np.concatenate([np.stack([s - half, s + d + half], 1), np.zeros((1, 2))])


def bmn_ranges(starts: np.ndarray, ends: np.ndarray, ratio: float, variant: str) -> np.ndarray:
    """(K, 2) float64 sampling ranges of BMN anchors [start, end], both inclusive snippet indices.

    "master": [s - ratio c, e + 1 + ratio c] with c = e - s + 2 (the public code since June 2020);
    "2019": [s - ratio c, e + ratio c] with c = e - s + 1 (October 2019 and the OpenMMLab port).
    """
    last = ends + 1 if variant == "master" else ends
    margin = ratio * (last - starts + 1)
    return np.stack([starts - margin, last + margin], 1).astype(np.float64)


def check_features(features: Tensor, channels: int) -> None:
    """ValueError for anything but (B, channels, L)."""
    if features.ndim != 3 or features.shape[1] != channels or 0 in features.shape:
        shape = tuple(features.shape)
        raise ValueError(f"features have shape {shape}, expected (videos, {channels}, snippets)")


def align_samples(regions: np.ndarray, snippets: int, resolution: int, samples: int = 0) -> Entries:
    """Weights of the 1-D aligner: `resolution` averages over each of (K, 2) regions [low, high].

    Regions shorter than 1 are lengthened to the right. Each of the equal bins is the mean of
    `samples` interpolated points (0: ceil(length / resolution), per region). Points in [-1, 0] take
    the first snippet, points in [L - 1, L] the last one; points beyond count as zero but stay in
    the mean.
    """
    regions = np.asarray(regions, np.float64)
    low = regions[:, 0]
    width = np.maximum(regions[:, 1] - low, 1.0) / resolution
    count = np.full(len(low), samples) if samples > 0 else np.ceil(width).astype(np.int64)

    def points(chosen: np.ndarray, n: int) -> tuple[np.ndarray, ...]:
        bins = np.arange(resolution)[None, :, None]
        step = width[chosen, None, None]
        at = low[chosen, None, None] + bins * step + (np.arange(n) + 0.5) * step / n  # (k, R, n)
        inside = ((at >= -1) & (at <= snippets)) / n
        at = np.maximum(at, 0)
        left = np.minimum(at.astype(np.int64), snippets - 1)
        right = np.minimum(left + 1, snippets - 1)
        share = at - left
        share[left >= snippets - 1] = 0.0
        return left, inside * (1 - share), right, inside * share

    return _collect(points, count, resolution, snippets)


def bmn_samples(ranges: np.ndarray, snippets: int, samples: int = 32, per_bin: int = 3) -> Entries:
    """Weights of BMN's sampling: `samples` averages over each of (K, 2) ranges.

    `samples * per_bin` points cover a range evenly, both ends included. Integer and fractional part
    are taken towards zero, so points in (-1, 0) take the first snippet whole while points in
    (L - 1, L) keep only 1 - fraction of the last one; anything beyond counts as zero.
    """
    ranges = np.asarray(ranges, np.float64)
    total = samples * per_bin
    step = (ranges[:, 1] - ranges[:, 0]) / max(total - 1, 1)

    def points(chosen: np.ndarray, n: int) -> tuple[np.ndarray, ...]:
        at = ranges[chosen, 0, None] + np.arange(total) * step[chosen, None]
        at = at.reshape(len(chosen), samples, n)
        left, right = np.trunc(at), np.ceil(at)
        share = at - left
        weights = [
            np.where((index >= 0) & (index < snippets), weight, 0.0) / n
            for index, weight in ((left, 1 - share), (right, share))
        ]
        left, right = (np.clip(i, 0, snippets - 1).astype(np.int64) for i in (left, right))
        return left, weights[0], right, weights[1]

    return _collect(points, np.full(len(ranges), per_bin), samples, snippets)


def _collect(points: Callable, count: np.ndarray, positions: int, snippets: int) -> Entries:
    """Sum the weights of all points that fall on the same (row, position, snippet)."""
    found = []
    for n in np.unique(count):
        members = np.nonzero(count == n)[0]
        for first in range(0, len(members), CHUNK):
            chosen = members[first : first + CHUNK]
            left, left_weight, right, right_weight = points(chosen, int(n))
            bins = np.arange(len(chosen) * positions).reshape(len(chosen), positions, 1) * snippets
            size = len(chosen) * positions * snippets
            dense = np.bincount((bins + left).ravel(), left_weight.ravel(), size)
            dense += np.bincount((bins + right).ravel(), right_weight.ravel(), size)
            at = np.nonzero(dense)[0]
            row, rest = np.divmod(at, positions * snippets)
            found.append((chosen[row], *np.divmod(rest, snippets), dense[at]))
    row, position, snippet, weight = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.argsort(row, kind="stable")
    parts = (part[order] for part in (row, position, snippet, weight))
    return Entries(len(count), positions, snippets, *parts)


@lru_cache(maxsize=16)
def gtad_entries(
    snippets: int, durations: int, resolution: int, context: int, samples: int
) -> Entries:
    """Inner samples of all G-TAD anchors, then `context` samples of the same regions.

    With equal resolutions and sampling rules both use the same weights: only `resolution` positions
    are listed and `SampledLinear` adds the two projections first.
    """
    regions = gtad_regions(snippets, durations)
    inner = align_samples(regions, snippets, resolution, samples)
    if context == 0 or (context == resolution and samples == 0):  # the latter in the THUMOS14 head
        return inner
    outer = align_samples(regions, snippets, context)
    outer = outer._replace(position=outer.position + resolution)
    order = np.argsort(np.concatenate([inner.row, outer.row]), kind="stable")
    parts = (np.concatenate(pair)[order] for pair in zip(inner[3:], outer[3:]))
    return Entries(inner.rows, resolution + context, snippets, *parts)


def bmn_cells(snippets: int, variant: str) -> np.ndarray:
    """(L, L) bool, valid cells of BMN's own map, which is (start, end) only for "master"."""
    cells = valid_cells(snippets, snippets)
    return np.triu(np.ones_like(cells)) if variant == "master" else cells


@lru_cache(maxsize=16)
def bmn_entries(snippets: int, samples: int, per_bin: int, ratio: float, variant: str) -> Entries:
    """Samples of the valid BMN cells in row-major order of its own map, then one empty row."""
    first, second = np.nonzero(bmn_cells(snippets, variant))
    starts, ends = (first, second) if variant == "master" else (second, first + second)
    ranges = bmn_ranges(starts, ends, ratio, variant)
    return bmn_samples(ranges, snippets, samples, per_bin)._replace(rows=len(starts) + 1)


def cell_entries(cells: Callable[..., np.ndarray], *arguments) -> Entries:
    """Which row fills which cell of the flattened map cells(*arguments); the last one all others.

    Rows are numbered along the valid cells.
    """
    valid = cells(*arguments).ravel()
    row = np.where(valid, np.cumsum(valid) - 1, valid.sum())
    count, rows = np.arange(len(valid)), int(valid.sum()) + 1
    return Entries(len(valid), 1, rows, count, np.zeros_like(count), row, np.ones(len(valid)))


class Sums(NamedTuple):
    """Row v is the sum of `weight[i] * table[index[i]]` for i in offsets[v] .. offsets[v + 1]."""

    index: Tensor  # (n,) int32
    offsets: Tensor  # (rows + 1,) int32
    weight: Tensor  # (n,)

    def of(self, table: Tensor) -> Tensor:
        """(lines, H) -> (rows, H)."""
        if table.device.type == "mps":  # older versions of torch have no embedding_bag there
            rows = torch.arange(len(self.offsets) - 1, device=table.device)
            matrix = table.new_zeros(len(rows), len(table))
            matrix[rows.repeat_interleave(self.offsets.diff()), self.index.long()] = self.weight
            return matrix @ table
        return F.embedding_bag(
            self.index, table, self.offsets, mode="sum", per_sample_weights=self.weight,
            include_last_offset=True,
        )  # fmt: skip


class Plan(NamedTuple):
    """A sampler as weighted sums of a table that has one line per (snippet, position).

    The transposed sums give the gradient in a fixed order as well: no atomic additions, hence the
    same bits in every run.
    """

    forward: Sums
    transposed: Sums


def make_plan(entries: Entries, device: torch.device | str, dtype: torch.dtype) -> Plan:
    """Sort the entries both ways and place them; weights are rounded from float64 once."""
    line = entries.snippet * entries.positions + entries.position
    order = np.lexsort((entries.row, line))

    def sums(index: np.ndarray, row: np.ndarray, rows: int, weight: np.ndarray) -> Sums:
        offsets = np.searchsorted(row, np.arange(rows + 1))
        ints = [torch.tensor(a.astype(np.int32), device=device) for a in (index, offsets)]
        return Sums(*ints, torch.tensor(weight).to(dtype).to(device))

    lines = entries.snippets * entries.positions
    transposed = sums(entries.row[order], line[order], lines, entries.weight[order])
    return Plan(sums(line, entries.row, entries.rows, entries.weight), transposed)


@lru_cache(maxsize=32)
def _cached_plan(sampler: tuple, device: torch.device, dtype: torch.dtype) -> Plan:
    entries, *arguments = sampler
    return make_plan(entries(*arguments), device, dtype)


def plan_for(sampler: tuple, like: Tensor) -> Plan:
    """Plan for the device and dtype of `like`, built once a process, never part of a checkpoint.

    Args:
        sampler: a function that lists `Entries`, and its arguments.
    """
    # Nothing made from fake tensors (memory planning) may reach a cache.
    real = type(like) in (Tensor, nn.Parameter)
    build = _cached_plan if real else _cached_plan.__wrapped__
    return build(sampler, like.device, like.dtype)


class _Gather(torch.autograd.Function):
    """(snippets * positions, H) -> (rows, H)."""

    @staticmethod
    def forward(ctx, table, plan):
        ctx.plan = plan
        return plan.forward.of(table)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return ctx.plan.transposed.of(grad.contiguous()), None


class SampledLinear(nn.Module):
    """Weight and bias of a 1x1 convolution over all samples of an anchor.

    The weight is held position-major, (C, R, H), inner positions before context positions; released
    checkpoints are channel-major, in the shape of the convolution that the authors wrote:
    `released` is that shape, (H, C * R, 1, 1) or (H, C, R, 1, 1).

    Args:
        inner: positions that sample the features themselves; the others sample the context.
    """

    def __init__(
        self, channels: int, inner: int, context: int, out: int, released: tuple[int, ...]
    ) -> None:
        super().__init__()
        positions, self.inner, self.released = inner + context, inner, released
        bound = (channels * positions) ** -0.5  # the framework's default for this fan-in
        self.weight = nn.Parameter(torch.empty(channels, positions, out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out).uniform_(-bound, bound))

    def project(self, x: Tensor, context: Tensor | None, positions: int) -> Tensor:
        """(B, L, C) features and context, or None -> (B, L * positions, H), no bias yet."""
        sizes = [self.inner, self.weight.shape[1] - self.inner]
        inner, outer = (weight.flatten(1) for weight in self.weight.split(sizes, 1))
        table = x @ inner
        if context is not None:
            more = context @ outer
            shared = positions == self.inner  # same places: add the projections, sample once
            table = table + more if shared else torch.cat([table, more], 2)
        return table.unflatten(2, (positions, -1)).flatten(1, 2)

    def to_published(self, weight: Tensor) -> Tensor:
        """(C, R, H) -> released shape."""
        return weight.permute(2, 0, 1).reshape(self.released)

    def from_published(self, weight: Tensor) -> Tensor:
        """Released shape -> (C, R, H); any other stays as it is."""
        if weight.shape != self.released:
            return weight
        channels, positions, out = self.weight.shape
        return weight.reshape(out, channels, positions).permute(1, 2, 0).contiguous()


def with_relus(*layers: nn.Module) -> nn.Sequential:
    """Layers with ReLU in between, which gives them the numbers of released checkpoints."""
    return nn.Sequential(*sum(((layer, nn.ReLU()) for layer in layers), ())[:-1])


def anchor_scores(
    x: Tensor, context: Tensor | None, layers: Sequence[nn.Module], sampler: tuple, cells: tuple
) -> Tensor:
    """Layers with ReLU in between and a sigmoid at the end, for every cell of a map.

    1x1 convolutions act on rows; the map is filled in before the first wider one, or at the very
    end. Videos are worked on one by one: only one's gradients of rows and maps exist at a time.

    Args:
        x, context: (B, L, C), see `SampledLinear.project`.
        layers: a `SampledLinear`, then convolutions of kernel 1 or 3.
        sampler: function and arguments that give the `Entries` of all anchors at L snippets.
        cells: function and arguments that give the (height, width) map of valid cells.
    Returns:
        (B, O, height, width) probabilities.
    """
    first, *convolutions = layers
    shape, fill = cells[0](*cells[1:]).shape, (cell_entries, *cells)
    tables = first.project(x, context, sampler[0](*sampler[1:]).positions)
    plan, scores = plan_for(sampler, tables), []
    for table in tables.unbind():
        y = _Gather.apply(table, plan).add_(first.bias)  # (rows, H), later (1, H, height, width)
        for layer in convolutions:
            y = y.relu_()
            # Cast here and not by autocast: gradients of several videos then add up in float32.
            weight, bias = layer.weight.to(y.dtype), layer.bias.to(y.dtype)
            if y.ndim == 4:
                y = F.conv2d(y, weight, bias, padding=layer.padding)
            elif weight.shape[-1] == 1:
                y = F.linear(y, weight.flatten(1), bias)
            else:
                y = _FilledConvolution.apply(y, weight, bias, plan_for(fill, y), shape)
        y = probabilities(y)
        if y.ndim == 2:
            y = _filled(_Gather.apply(y, plan_for(fill, y)), shape)
        scores.append(y)
    return torch.cat(scores)


def _filled(cells: Tensor, shape: tuple[int, int]) -> Tensor:
    """(cells, C) -> (1, C, height, width)."""
    return cells.T.unflatten(1, shape)[None]


class _FilledConvolution(torch.autograd.Function):
    """Rows filled into a map, and a convolution of it; the map is made again for backward."""

    @staticmethod
    def forward(ctx, rows, weight, bias, plan, shape):
        ctx.plan, ctx.shape = plan, shape
        ctx.save_for_backward(rows, weight)
        return F.conv2d(_filled(plan.forward.of(rows), shape), weight, bias, padding="same")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        rows, weight = ctx.saved_tensors
        x = _filled(ctx.plan.forward.of(rows), ctx.shape)
        padding = [weight.shape[-1] // 2] * 2
        options = ([len(weight)], [1, 1], padding, [1, 1], False, [0, 0], 1, [True] * 3)
        grad, *parameters = torch.ops.aten.convolution_backward(grad, x, weight, *options)
        lines = grad[0].flatten(1).T.contiguous()
        return ctx.plan.transposed.of(lines), *parameters, None, None


def probabilities(logits: Tensor) -> Tensor:
    """Sigmoid in float32 or better: losses take logarithms of both sides."""
    return torch.sigmoid(logits if logits.dtype == torch.float64 else logits.float())
