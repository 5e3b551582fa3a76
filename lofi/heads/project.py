"""Project snippets, gather anchors, spread over the map: a head's way from features to cells.

A map cell holds the same numbers as its row; all cells whose anchor would end after the video share
one row (G-TAD: the region [0, 0]; BMN: no samples at all). B videos, L snippets, C channels, R
sample positions, H and O output channels of the first and second 1x1 convolution.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lofi.heads.align import Plan, Sampler, is_real, plan_for


def autocast_is_on(like: Tensor) -> bool:
    """Whether matrix products with this tensor run in another precision."""
    kind = like.device.type
    return kind != "meta" and torch.is_autocast_enabled(kind)


class SampledLinear(nn.Module):
    """Weight and bias of a 1x1 convolution over all samples of an anchor.

    The weight is held position-major, (C, R, H), inner positions before context positions; released
    checkpoints are channel-major, in the shape of the convolution that the authors wrote:
    `released` is that shape, (H, C * R, 1, 1) or (H, C, R, 1, 1).
    """

    def __init__(self, channels: int, positions: int, out: int, released: tuple[int, ...]) -> None:
        super().__init__()
        self.released = released
        bound = (channels * positions) ** -0.5  # the framework's default for this fan-in
        self.weight = nn.Parameter(torch.empty(channels, positions, out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out).uniform_(-bound, bound))

    def forward(
        self, x: Tensor, context: Tensor | None, sampler: Sampler, then: nn.Conv2d
    ) -> Tensor:
        """This convolution, ReLU and the 1x1 convolution `then`, one row an anchor.

        Args:
            x: (B, L, C) features that the inner positions sample.
            context: (B, L, C) features that the other positions sample, or None.
            sampler: of all anchors at L snippets.
        Returns:
            (B, rows, O), no activation applied.
        """
        dtype = self.weight.dtype
        if autocast_is_on(x):
            dtype = torch.get_autocast_dtype(x.device.type)
        context = None if context is None else context.to(dtype)
        x = x.to(dtype)
        layers = (self.weight, self.bias, then.weight.flatten(1), then.bias)
        plan = plan_for(sampler, x)
        return _SampledLayers.apply(x, context, *(p.to(dtype) for p in layers), plan)

    def to_published(self, weight: Tensor) -> Tensor:
        """(C, R, H) -> released shape."""
        return weight.permute(2, 0, 1).reshape(self.released)

    def from_published(self, weight: Tensor) -> Tensor:
        """Released shape -> (C, R, H)."""
        channels, positions, out = self.weight.shape
        return weight.reshape(out, channels, positions).permute(1, 2, 0).contiguous()


class _SampledLayers(torch.autograd.Function):
    """Projection, gather, ReLU and a linear layer, video by video in both directions.

    Saved: inputs and the (B, rows, H) activations. Projected tables and the gradients of the
    activations exist for one video (or a few short ones) at a time.
    """

    @staticmethod
    def forward(ctx, x, context, weight, bias, then_weight, then_bias, plan):
        ctx.plan = plan
        videos, snippets, _ = x.shape
        keep = videos if any(ctx.needs_input_grad) else 1  # without gradient one buffer will do
        rows = x.new_empty(keep, plan.rows, weight.shape[2])
        out = x.new_empty(videos, plan.rows, len(then_weight))
        for part in _parts(videos, snippets):
            tables = _project(x[part], None if context is None else context[part], weight, plan)
            for i, table in zip(range(part.start, part.stop), tables):
                row = torch.add(plan.gather(table), bias, out=rows[i % keep]).relu_()
                torch.addmm(then_bias, row, then_weight.T, out=out[i])
        if keep == videos:
            ctx.save_for_backward(x, context, weight, then_weight, rows)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        x, context, weight, then_weight, rows = ctx.saved_tensors
        plan, (videos, snippets, channels) = ctx.plan, x.shape
        hidden, flat = weight.shape[2], weight.flatten(1)
        grad_x, grad_context = (
            torch.empty_like(x),
            None if context is None else x.new_empty(x.shape),
        )
        # Sums over videos stay in float32 or better even where products are in bfloat16.
        wide = torch.promote_types(x.dtype, torch.float32)
        grad_weight = torch.empty_like(flat, dtype=wide)
        grad_then = torch.empty_like(then_weight, dtype=wide)
        grad_bias = weight.new_zeros(hidden, dtype=wide)
        for part in _parts(videos, snippets):
            tables = []
            for i in range(part.start, part.stop):
                _add_product(grad_then, grad_out[i].T, rows[i], first=i == 0)
                grad = grad_out[i] @ then_weight
                torch.ops.aten.threshold_backward.grad_input(grad, rows[i], 0, grad_input=grad)
                grad_bias += grad.sum(0)
                tables.append(plan.scatter(grad))
                del grad
            table = tables[0] if len(tables) == 1 else torch.cat(tables)
            table = table.view(len(tables) * snippets, -1)
            inputs = ((x, grad_x), (context, grad_context))
            for use, (source, grad) in zip(_uses(weight, plan, context), inputs):
                lines, features = table[:, use.lines], source[part].reshape(-1, channels)
                target = grad_weight[:, use.columns]
                _add_product(target, features.T, lines, first=part.start == 0)
                grad[part] = (lines @ flat[:, use.columns].T).view(-1, snippets, channels)
            del tables, table, lines  # or they would still be there beside those of the next part
        parameters = (grad_weight.view_as(weight), grad_bias, grad_then, grad_out.sum((0, 1)))
        return grad_x, grad_context, *(grad.to(x.dtype) for grad in parameters), None


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """total = a @ b the first time, then total += a @ b."""
    if total.dtype == a.dtype:
        total.addmm_(a, b, beta=0 if first else 1)
    elif first:
        total.copy_(a @ b)
    else:
        total += a @ b


class _Use(NamedTuple):
    """Which columns of the flat weight belong to an input, and where in the table they go."""

    columns: slice
    lines: slice
    add: bool


def _uses(weight: Tensor, plan: Plan, context: Tensor | None) -> list[_Use]:
    """For the features and, if there is one, the context."""
    _, positions, hidden = weight.shape
    if context is None:
        return [_Use(slice(None), slice(None), False)]
    inner = slice(0, plan.inner * hidden)
    outer = slice(plan.inner * hidden, positions * hidden)
    if plan.positions == plan.inner:  # same places: add the projections, sample once
        return [_Use(inner, slice(None), False), _Use(outer, slice(None), True)]
    return [_Use(inner, inner, False), _Use(outer, outer, False)]


def _project(x: Tensor, context: Tensor | None, weight: Tensor, plan: Plan) -> Tensor:
    """Features of a few videos times the weights of all positions: (b, L * positions, H)."""
    videos, snippets, channels = x.shape
    flat, hidden = weight.flatten(1), weight.shape[2]
    table = x.new_empty(videos * snippets, plan.positions * hidden)
    for use, source in zip(_uses(weight, plan, context), (x, context)):
        features, columns = source.reshape(-1, channels), flat[:, use.columns]
        if use.add:
            table.addmm_(features, columns)
        else:
            torch.mm(features, columns, out=table[:, use.lines])
    return table.view(videos, -1, hidden)


def _parts(videos: int, snippets: int) -> list[slice]:
    """Videos projected together: enough lines for a matrix product, few enough to stay small."""
    step = max(1, 128 // snippets)
    return [slice(first, min(first + step, videos)) for first in range(0, videos, step)]


# -------------------------------------------------------------------------------------- rows to map


class Grid(NamedTuple):
    """Which row fills which cell of a flattened map; the last row fills all invalid cells."""

    shape: tuple[int, int]
    row_of_cell: Tensor  # (cells,) int64
    valid: Tensor  # (rows - 1,) int64, flat cells in row order
    invalid: Tensor  # (cells - rows + 1,) int64


def make_grid(cells: np.ndarray, device: torch.device) -> Grid:
    """Grid of a boolean map of valid cells, rows numbered in row-major order."""
    flat = cells.ravel()
    rows = np.where(flat, np.cumsum(flat) - 1, flat.sum())
    parts = (rows, np.nonzero(flat)[0], np.nonzero(~flat)[0])
    return Grid(cells.shape, *(torch.tensor(p, dtype=torch.int64, device=device) for p in parts))


@lru_cache(maxsize=32)
def _cached_grid(cells: Callable[..., np.ndarray], arguments: tuple, device: torch.device) -> Grid:
    return make_grid(cells(*arguments), device)


def grid_for(cells: Callable[..., np.ndarray], arguments: tuple, like: Tensor) -> Grid:
    """Grid of cells(*arguments) on the device of `like`, built once a process."""
    build = _cached_grid if is_real(like) else _cached_grid.__wrapped__
    return build(cells, arguments, like.device)


class _MapLayers(torch.autograd.Function):
    """Convolutions with ReLU in between: on rows, from the first wide kernel on over the map.

    Saved: the rows and what the ReLUs hand on. The map that is filled in from the rows is made
    again for backward; it and all gradients inside exist for a few videos at a time.
    """

    @staticmethod
    def forward(ctx, rows, grid, *parameters):
        last, kept, out = len(parameters) // 2 - 1, [], []
        for part in _map_parts(rows, grid):
            x = rows[part]
            for i, (weight, bias) in enumerate(_pairs(parameters)):
                x = _convolve(_as_needed(x, weight, grid), weight, bias)
                if i < last:
                    kept.append(x.relu_())
            out.append(x)
            if not any(ctx.needs_input_grad):
                kept.clear()
        ctx.grid, ctx.layers = grid, last + 1
        ctx.save_for_backward(rows, *parameters, *kept)
        return out[0] if len(out) == 1 else torch.cat(out)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        rows, *saved = ctx.saved_tensors
        parameters, kept = saved[: 2 * ctx.layers], saved[2 * ctx.layers :]
        wide = torch.promote_types(rows.dtype, torch.float32)
        totals = _pairs([torch.zeros_like(p, dtype=wide) for p in parameters])
        grad_rows = torch.empty_like(rows)
        inner = ctx.layers - 1
        for n, part in enumerate(_map_parts(rows, ctx.grid)):
            inputs = [rows[part], *kept[n * inner : (n + 1) * inner]]
            grad = grad_out[part]
            for i in reversed(range(ctx.layers)):
                weight, x = parameters[2 * i], inputs[i]
                own = _parameter_gradients(grad, _as_needed(x, weight, ctx.grid), weight)
                for total, more in zip(totals[i], own, strict=True):
                    total += more
                del own, more
                grad = _input_gradient(grad, weight)
                if grad.ndim > x.ndim:  # this layer filled the map in
                    grad = _collect(grad.flatten(1, 2), ctx.grid)
                if i:
                    torch.ops.aten.threshold_backward.grad_input(grad, x, 0, grad_input=grad)
            grad_rows[part] = grad
            del grad
        totals = (total for pair in totals for total in pair)
        return grad_rows, None, *(total.to(rows.dtype) for total in totals)


def _pairs(parameters: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(parameters[::2], parameters[1::2], strict=True))


def _map_parts(rows: Tensor, grid: Grid) -> list[slice]:
    """Videos whose maps are worked on together: one large one or a few small ones."""
    step = max(1, 8192 // len(grid.row_of_cell))
    return [slice(first, first + step) for first in range(0, len(rows), step)]


def _as_needed(x: Tensor, weight: Tensor, grid: Grid) -> Tensor:
    """Rows (b, rows, C) as they are for a 1x1 kernel, filled into a map (b, h, w, C) for others."""
    if weight.shape[-1] == 1 or x.ndim == 4:
        return x
    return x.index_select(1, grid.row_of_cell).unflatten(1, grid.shape)


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


def _input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """Gradient of x of `_convolve`: a convolution with the mirrored kernel, without bias."""
    return _convolve(grad, weight.transpose(0, 1).flip(2, 3), None)


def map_layers(rows: Tensor, convolutions: list[nn.Conv2d], grid: Grid) -> Tensor:
    """Convolutions of kernel 1 or 3 with ReLU in between, none at the end.

    Args:
        rows: (B, rows, C), after a ReLU.
    Returns:
        (B, rows, O), or (B, height, width, O) if a kernel is wider than 1.
    """
    parameters = [p.to(rows.dtype) for c in convolutions for p in (c.weight, c.bias)]
    return _MapLayers.apply(rows, grid, *parameters)


def _collect(grad: Tensor, grid: Grid) -> Tensor:
    """(b, cells, C) -> (b, rows, C): the shared row's gradient is a sum in a fixed order."""
    rows = grad.new_empty(grad.shape[0], len(grid.valid) + 1, grad.shape[2])
    rows[:, :-1] = grad.index_select(1, grid.valid)
    rows[:, -1] = grad.index_select(1, grid.invalid).sum(1)
    return rows


class _Spread(torch.autograd.Function):
    """Rows to map cells."""

    @staticmethod
    def forward(ctx, rows, grid):
        ctx.grid = grid
        return rows.index_select(1, grid.row_of_cell)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return _collect(grad, ctx.grid), None


def spread(rows: Tensor, grid: Grid) -> Tensor:
    """(B, rows, C) -> (B, cells, C)."""
    return _Spread.apply(rows, grid)
