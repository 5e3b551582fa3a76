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
from typing import Any, NamedTuple

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
        found = f"features have shape {tuple(features.shape)}"
        raise ValueError(f"{found}, expected (videos, {channels}, snippets)")


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


class Cells(NamedTuple):
    """Which row fills which cell of a flattened map; the last row fills all invalid cells."""

    shape: tuple[int, int]
    row_of_cell: Tensor  # (cells,) int64
    valid: Tensor  # (rows - 1,) int64, flat cells in row order
    invalid: Tensor  # (cells - rows + 1,) int64

    def fill(self, rows: Tensor) -> Tensor:
        """(b, rows, C) -> (b, height, width, C)."""
        return rows.index_select(1, self.row_of_cell).unflatten(1, self.shape)

    def collect(self, grad: Tensor) -> Tensor:
        """Transpose of `fill`: the shared row's gradient is a sum in a fixed order."""
        grad = grad.flatten(1, 2)
        rows = grad.new_empty(grad.shape[0], len(self.valid) + 1, grad.shape[2])
        rows[:, :-1] = grad.index_select(1, self.valid)
        rows[:, -1] = grad.index_select(1, self.invalid).sum(1)
        return rows


def make_cells(valid: np.ndarray, device: torch.device | str) -> Cells:
    """`Cells` of a boolean map of valid cells, rows numbered in row-major order."""
    flat = valid.ravel()
    rows = np.where(flat, np.cumsum(flat) - 1, flat.sum())
    parts = (rows, np.nonzero(flat)[0], np.nonzero(~flat)[0])
    return Cells(valid.shape, *(torch.tensor(p, dtype=torch.int64, device=device) for p in parts))


@lru_cache(maxsize=32)
def _cached(make: Callable, source: tuple, *place: Any) -> Any:
    function, *arguments = source
    return make(function(*arguments), *place)


def _once(like: Tensor, make: Callable, source: tuple, *place: Any) -> Any:
    """make(source[0](*source[1:]), *place), once a process, never part of a checkpoint."""
    # Nothing made from fake tensors (memory planning) may reach a cache.
    real = type(like) in (Tensor, nn.Parameter)
    return (_cached if real else _cached.__wrapped__)(make, source, *place)


def plan_for(sampler: tuple, like: Tensor) -> Plan:
    """Plan of (a function that lists `Entries`, *its arguments), for a device and dtype `like`."""
    return _once(like, make_plan, sampler, like.device, like.dtype)


class SampledLinear(nn.Module):
    """Weight and bias of a 1x1 convolution over all samples of an anchor.

    The weight is held position-major, (C, R, H), inner positions before context positions; released
    checkpoints are channel-major, in the shape of the convolution that the authors wrote:
    `released` is that shape, (H, C * R, 1, 1) or (H, C, R, 1, 1). The `inner` positions sample the
    features themselves, the others the context.
    """

    def __init__(
        self, channels: int, inner: int, context: int, out: int, released: tuple[int, ...]
    ) -> None:
        super().__init__()
        positions, self.inner, self.released = inner + context, inner, released
        bound = (channels * positions) ** -0.5  # the framework's default for this fan-in
        self.weight = nn.Parameter(torch.empty(channels, positions, out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out).uniform_(-bound, bound))

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
    end.

    Args:
        x: (B, L, C) features that the inner positions sample.
        context: (B, L, C) features that the other positions sample, or None.
        layers: a `SampledLinear`, then two or more convolutions of kernel 1 or 3, the first of 1.
        sampler: function and arguments that give the `Entries` of all anchors at L snippets.
        cells: function and arguments that give the (height, width) map of valid cells.
    Returns:
        (B, O, height, width) probabilities.
    """
    first, then, *convolutions = layers
    dtype = first.weight.dtype
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    inputs = [part.to(dtype) for part in (x, context) if part is not None]
    weights = [p.to(dtype) for p in (first.weight, first.bias, then.weight.flatten(1), then.bias)]
    plan = plan_for(sampler, inputs[0])
    rows = F.relu_(_SampledLayers.apply(plan, first.inner, *weights, *inputs))
    weights = [p.to(dtype) for layer in convolutions for p in (layer.weight, layer.bias)]
    place = _once(x, make_cells, cells, x.device)
    scores = probabilities(_MapLayers.apply(rows, place, *weights))
    return (scores if scores.ndim == 4 else _Fill.apply(scores, place)).permute(0, 3, 1, 2)


class _Fill(torch.autograd.Function):
    """Rows to map cells, and back in a fixed order."""

    @staticmethod
    def forward(ctx, rows, cells):
        ctx.cells = cells
        return cells.fill(rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return ctx.cells.collect(grad), None


class _SampledLayers(torch.autograd.Function):
    """Projection, gather, ReLU and a 1x1 convolution, video by video in both directions.

    Saved: inputs and the (B, rows, H) activations. Projected tables and the gradients of the
    activations exist for one video (or a few short ones) at a time.
    """

    @staticmethod
    def forward(ctx, plan, inner, weight, bias, then_weight, then_bias, *inputs):
        hidden, flat = weight.shape[2], weight.flatten(1)
        ctx.plan, ctx.parts = plan, _parts(inputs[0], 128 // inputs[0].shape[1])
        videos, snippets, _ = inputs[0].shape
        lines = len(plan.transposed.offsets) - 1
        # Columns of the weight that belong to each input, and where in a table they go.
        columns = [slice(0, inner * hidden), slice(inner * hidden, None)][: len(inputs)]
        shared = len(inputs) > 1 and lines == snippets * inner  # same places: add, sample once
        ctx.uses = list(zip(columns, [slice(None)] * 2 if shared else columns))
        keep = videos if any(ctx.needs_input_grad) else 1  # without gradient one buffer will do
        rows = weight.new_empty(keep, len(plan.forward.offsets) - 1, hidden)
        out = weight.new_empty(videos, rows.shape[1], len(then_weight))
        for part in ctx.parts:
            height = (part.stop - part.start) * snippets
            table = weight.new_empty(height, lines // snippets * hidden)
            for i, (source, (column, place)) in enumerate(zip(inputs, ctx.uses)):
                features = source[part].flatten(0, 1)
                if i and shared:
                    table.addmm_(features, flat[:, column])
                else:
                    torch.mm(features, flat[:, column], out=table[:, place])
            for i, own in zip(range(part.start, part.stop), table.view(-1, lines, hidden)):
                row = torch.add(plan.forward.of(own), bias, out=rows[i % keep]).relu_()
                torch.addmm(then_bias, row, then_weight.T, out=out[i])
        if keep == videos:
            ctx.save_for_backward(weight, then_weight, rows, *inputs)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        weight, then_weight, rows, *inputs = ctx.saved_tensors
        flat, snippets = weight.flatten(1), inputs[0].shape[1]
        grads = [torch.empty_like(source) for source in inputs]
        # Sums over videos stay in float32 or better even where products are in bfloat16.
        wide = torch.promote_types(weight.dtype, torch.float32)
        totals = [torch.empty_like(p, dtype=wide) for p in (flat, then_weight)]
        grad_bias = weight.new_zeros(weight.shape[2], dtype=wide)
        for part in ctx.parts:
            tables = []
            for i in range(part.start, part.stop):
                _add_product(totals[1], grad_out[i].T, rows[i], first=i == 0)
                grad = grad_out[i] @ then_weight
                torch.ops.aten.threshold_backward.grad_input(grad, rows[i], 0, grad_input=grad)
                grad_bias += grad.sum(0)
                tables.append(ctx.plan.transposed.of(grad))
                del grad
            table = tables[0] if len(tables) == 1 else torch.cat(tables)
            table = table.view(len(tables) * snippets, -1)
            for source, grad, (column, place) in zip(inputs, grads, ctx.uses):
                lines, features = table[:, place], source[part].flatten(0, 1)
                _add_product(totals[0][:, column], features.T, lines, first=part.start == 0)
                grad[part] = (lines @ flat[:, column].T).view(-1, snippets, len(weight))
            del tables, table, lines  # or they would still be there beside those of the next part
        parameters = totals[0].view_as(weight), grad_bias, totals[1], grad_out.sum((0, 1))
        return None, None, *(grad.to(weight.dtype) for grad in parameters), *grads


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """total = a @ b the first time, then total += a @ b."""
    if total.dtype == a.dtype:
        total.addmm_(a, b, beta=0 if first else 1)
    elif first:
        total.copy_(a @ b)
    else:
        total += a @ b


def _parts(batch: Tensor, step: int) -> list[slice]:
    """Videos worked on together: large enough for a matrix product, few enough to stay small."""
    step = max(1, step)
    return [slice(i, min(i + step, len(batch))) for i in range(0, len(batch), step)]


class _MapLayers(torch.autograd.Function):
    """Convolutions with ReLU in between: on rows, from the first wide kernel on over the map.

    Saved: the rows and what the ReLUs hand on. The map that is filled in from the rows is made
    again for backward; it and all gradients inside exist for a few videos at a time.
    """

    @staticmethod
    def forward(ctx, rows, cells, *parameters):
        layers, kept, out = list(zip(parameters[::2], parameters[1::2])), [], []
        ctx.cells, ctx.parts = cells, _parts(rows, 8192 // len(cells.row_of_cell))
        for part in ctx.parts:
            x = rows[part]
            for i, (weight, bias) in enumerate(layers):
                x = _convolve(_as_needed(x, weight, cells), weight, bias)
                if i + 1 < len(layers):
                    kept.append(x.relu_())
            out.append(x)
            if not any(ctx.needs_input_grad):
                kept.clear()
        ctx.save_for_backward(rows, *parameters, *kept)
        return out[0] if len(out) == 1 else torch.cat(out)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        count, cells = len(ctx.needs_input_grad) - 2, ctx.cells
        rows, *saved = ctx.saved_tensors
        parameters, kept, inner = saved[:count], saved[count:], count // 2 - 1
        wide = torch.promote_types(rows.dtype, torch.float32)
        totals = [torch.zeros_like(p, dtype=wide) for p in parameters]
        grad_rows = torch.empty_like(rows)
        for n, part in enumerate(ctx.parts):
            inputs = [rows[part], *kept[n * inner : (n + 1) * inner]]
            grad = grad_out[part]
            for i in reversed(range(inner + 1)):
                weight, x = parameters[2 * i], inputs[i]
                own = _parameter_gradients(grad, _as_needed(x, weight, cells), weight)
                for total, more in zip(totals[2 * i : 2 * i + 2], own, strict=True):
                    total += more
                del own, more
                # The gradient of the input is a convolution with the mirrored kernel.
                grad = _convolve(grad, weight.transpose(0, 1).flip(2, 3), None)
                if grad.ndim > x.ndim:  # this layer filled the map in
                    grad = cells.collect(grad)
                if i:
                    torch.ops.aten.threshold_backward.grad_input(grad, x, 0, grad_input=grad)
            grad_rows[part] = grad
            del grad
        return grad_rows, None, *(total.to(rows.dtype) for total in totals)


def _as_needed(x: Tensor, weight: Tensor, cells: Cells) -> Tensor:
    """Rows (b, rows, C) as they are for a 1x1 kernel, filled into a map (b, h, w, C) for others."""
    return x if weight.shape[-1] == 1 or x.ndim == 4 else cells.fill(x)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(b, ..., in) -> (b, ..., out); kernels wider than 1 take (b, h, w, in)."""
    if weight.shape[-1] == 1:
        return F.linear(x, weight.flatten(1), bias)
    padding = weight.shape[-1] // 2
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=padding).permute(0, 2, 3, 1)


def _parameter_gradients(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias of `_convolve`; not of x, or two large results would coexist."""
    if weight.shape[-1] == 1:
        lines = grad.flatten(0, -2)
        return (lines.T @ x.flatten(0, -2)).view_as(weight), lines.sum(0)
    padding, out = [weight.shape[-1] // 2] * 2, [len(weight)]
    options = (out, [1, 1], padding, [1, 1], False, [0, 0], 1, [False, True, True])
    grad, x = grad.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2)
    return torch.ops.aten.convolution_backward(grad, x, weight, *options)[1:]


def probabilities(logits: Tensor) -> Tensor:
    """Sigmoid in float32 or better: losses take logarithms of both sides."""
    return torch.sigmoid(logits if logits.dtype == torch.float64 else logits.float())
