"""Project snippets, gather anchors, spread over the map: a head's way from features to cells.

A map cell holds the same numbers as its row; all cells whose anchor would end after the video share
one row (G-TAD: the region [0, 0]; BMN: no samples at all). B videos, L snippets, C channels, R
sample positions, H output channels.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lofi.heads.align import Plan, Sampler, plan_for


def project_and_gather(
    x: Tensor, context: Tensor | None, weight: Tensor, bias: Tensor, plan: Plan
) -> Tensor:
    """ReLU of the 1x1 convolution over all samples of every anchor: (B, L, C) -> (B, rows, H).

    Args:
        x: (B, L, C) features that the inner positions sample.
        context: (B, L, C) features that the remaining positions sample, or None.
        weight: (C, R, H), position-major form of the convolution weight; inner positions first.
        bias: (H,).
        plan: `gtad_entries` or `bmn_entries` for L snippets.
    """
    return _ProjectAndGather.apply(x, context, weight, bias, plan)


class _Project(NamedTuple):
    """Where the products of one input go: columns of the flat weight and of the table."""

    columns: slice
    target: slice
    add: bool


def _projections(weight: Tensor, plan: Plan, context: Tensor | None) -> list[_Project]:
    _, positions, hidden = weight.shape
    if context is None:
        return [_Project(slice(None), slice(None), False)]
    inner = slice(0, plan.inner * hidden)
    outer = slice(plan.inner * hidden, positions * hidden)
    if plan.positions == plan.inner:  # same places: add the projections, sample once
        return [_Project(inner, slice(None), False), _Project(outer, slice(None), True)]
    return [_Project(inner, inner, False), _Project(outer, outer, False)]


class _ProjectAndGather(torch.autograd.Function):
    """Saves inputs and rows; projected tables live for a few videos at a time, either way."""

    @staticmethod
    def forward(ctx, x, context, weight, bias, plan):
        ctx.plan = plan
        videos, snippets, channels = x.shape
        hidden = weight.shape[2]
        flat = weight.reshape(channels, -1)
        rows = x.new_empty(videos, plan.rows, hidden)
        for part in _batches(videos, snippets):
            table = x.new_empty(len(part) * snippets, plan.positions * hidden)
            for use, source in zip(_projections(weight, plan, context), (x, context)):
                features = source[part.start : part.stop].reshape(-1, channels)
                target = table[:, use.target]
                if use.add:
                    target.addmm_(features, flat[:, use.columns])
                else:
                    torch.mm(features, flat[:, use.columns], out=target)
            for i, lines in zip(part, table.view(len(part), -1, hidden)):
                torch.add(plan.gather(lines), bias, out=rows[i]).relu_()
        ctx.save_for_backward(x, context, weight, rows)
        return rows

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_rows):
        x, context, weight, rows = ctx.saved_tensors
        plan = ctx.plan
        videos, snippets, channels = x.shape
        hidden = weight.shape[2]
        flat = weight.reshape(channels, -1)
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(flat)
        grad_context = None if context is None else torch.empty_like(context)
        grad_bias = weight.new_zeros(hidden)
        for part in _batches(videos, snippets):
            table = x.new_empty(len(part), snippets * plan.positions, hidden)
            for i, lines in zip(part, table):
                grad = torch.ops.aten.threshold_backward(grad_rows[i], rows[i], 0)
                grad_bias += grad.sum(0)
                lines.copy_(plan.scatter(grad))
            table = table.view(len(part) * snippets, -1)
            inputs = ((x, grad_x), (context, grad_context))
            for use, (source, grad) in zip(_projections(weight, plan, context), inputs):
                span, lines = slice(part.start, part.stop), table[:, use.target]
                grad_weight[:, use.columns].addmm_(source[span].reshape(-1, channels).T, lines)
                grad[span] = (lines @ flat[:, use.columns].T).view(len(part), snippets, channels)
        return grad_x, grad_context, grad_weight.view_as(weight), grad_bias, None


def _batches(videos: int, snippets: int) -> list[range]:
    """Videos whose tables are built together: enough lines for a matrix product, but few."""
    step = max(1, 128 // snippets)
    return [range(first, min(first + step, videos)) for first in range(0, videos, step)]


class SampledLinear(nn.Module):
    """Weight and bias of a 1x1 convolution over all samples of an anchor, ReLU included.

    The weight is held position-major, (C, R, H); released checkpoints are channel-major, in the
    shape of the convolution that the authors wrote: `released` is that shape, (H, C * R, 1, 1) or
    (H, C, R, 1, 1).
    """

    def __init__(self, channels: int, positions: int, out: int, released: tuple[int, ...]) -> None:
        super().__init__()
        self.released = released
        bound = (channels * positions) ** -0.5  # the framework's default for this fan-in
        self.weight = nn.Parameter(torch.empty(channels, positions, out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out).uniform_(-bound, bound))

    def forward(self, x: Tensor, context: Tensor | None, sampler: Sampler) -> Tensor:
        """(B, L, C) features and context -> (B, rows, H)."""
        dtype = self.weight.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        context = None if context is None else context.to(dtype)
        x, weight, bias = x.to(dtype), self.weight.to(dtype), self.bias.to(dtype)
        return project_and_gather(x, context, weight, bias, plan_for(sampler, x))

    def to_published(self, weight: Tensor) -> Tensor:
        """(C, R, H) -> released shape."""
        return weight.permute(2, 0, 1).reshape(self.released)

    def from_published(self, weight: Tensor) -> Tensor:
        """Released shape -> (C, R, H)."""
        channels, positions, out = self.weight.shape
        return weight.reshape(out, channels, positions).permute(1, 2, 0).contiguous()


# -------------------------------------------------------------------------------------- rows to map


class Grid(NamedTuple):
    """Which row fills which cell of a flattened map; the last row fills all invalid cells."""

    shape: tuple[int, int]
    row_of_cell: Tensor  # (cells,) int64
    valid: Tensor  # (rows - 1,) int64, flat cells in row order
    invalid: Tensor  # (cells - rows + 1,) int64


def grid_for(cells: np.ndarray, device: torch.device) -> Grid:
    """Grid of a boolean map of valid cells, rows numbered in row-major order."""
    flat = cells.ravel()
    rows = np.where(flat, np.cumsum(flat) - 1, flat.sum())
    parts = (rows, np.nonzero(flat)[0], np.nonzero(~flat)[0])
    return Grid(cells.shape, *(torch.tensor(p, dtype=torch.int64, device=device) for p in parts))


class _Spread(torch.autograd.Function):
    """Rows to map cells; the shared row's gradient is a sum in a fixed order."""

    @staticmethod
    def forward(ctx, rows, grid):
        ctx.grid, ctx.rows = grid, rows.shape[1]
        return rows.index_select(1, grid.row_of_cell)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        rows = grad.new_empty(grad.shape[0], ctx.rows, grad.shape[2])
        rows[:, :-1] = grad.index_select(1, ctx.grid.valid)
        rows[:, -1] = grad.index_select(1, ctx.grid.invalid).sum(1)
        return rows, None


def spread(rows: Tensor, grid: Grid) -> Tensor:
    """(B, rows, C) -> (B, cells, C)."""
    return _Spread.apply(rows, grid)
