"""Turn snippet features into one row of features per anchor, without ever building the dense map.

Two samplers are used by the heads: the 1-D region-of-interest aligner of G-TAD (Xu et al., "G-TAD:
Sub-Graph Localization for Temporal Action Detection", CVPR 2020, section 3.3; coordinates are
snippet indices) and the boundary-matching sampling of BMN (Lin et al., ICCV 2019, section 3.3).
Both are *fixed linear maps*: a sample is a weighted sum of snippets, and the weights depend only on
the anchor grid. And both are followed by a 1x1 convolution, which is linear as well, so the order
may be swapped: project every snippet once per sample position, then gather. That is exact, and it
replaces (anchors x samples x channels) numbers by (snippets x samples x outputs).

B videos, L snippets, D durations, C channels, R sample positions, H output channels of the 1x1
convolution.
"""

from collections.abc import Callable
from dataclasses import dataclass
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
    inner: int  # positions that sample the features themselves; the others sample the context
    snippets: int
    row: np.ndarray  # (n,) int64
    position: np.ndarray  # (n,) int64
    snippet: np.ndarray  # (n,) int64
    weight: np.ndarray  # (n,) float64


# ------------------------------------------------------------------------------- where anchors look


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
    """Refuse anything but (B, channels, L)."""
    if features.ndim != 3 or features.shape[1] != channels or 0 in features.shape:
        shape = tuple(features.shape)
        raise ValueError(f"features have shape {shape}, expected (videos, {channels}, snippets)")


# ----------------------------------------------------------------------------------- sampling rules


def align_samples(regions: np.ndarray, snippets: int, resolution: int, samples: int = 0) -> Entries:
    """Weights of the 1-D aligner: `resolution` averages over each region.

    Regions are (K, 2), [low, high] in snippet indices.

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
    """Weights of BMN's sampling: `samples` averages over each range.

    `samples * per_bin` points cover a range evenly, both ends included.

    Integer and fractional part are taken towards zero, so points in (-1, 0) take the first snippet
    whole while points in (L - 1, L) keep only 1 - fraction of the last one; anything beyond counts
    as zero.
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
    return Entries(len(count), positions, positions, snippets, *parts)


# -------------------------------------------------------------------------------------------- plans


@dataclass(frozen=True, eq=False)
class Plan:
    """A sampler as two lists of weighted sums, one for each direction.

    Row v is the sum of `weight[i] * table[index[i]]` for i in offsets[v] .. offsets[v + 1]; a table
    has one line per (snippet, position). The backward lists are the transpose, so that gradients
    are sums in a fixed order as well: no atomic additions, hence the same bits in every run.
    """

    rows: int
    positions: int
    inner: int
    snippets: int
    index: Tensor  # (n,) int32, line of the table
    offsets: Tensor  # (rows + 1,) int32
    weight: Tensor  # (n,)
    back_index: Tensor  # (n,) int32, row
    back_offsets: Tensor  # (snippets * positions + 1,) int32
    back_weight: Tensor  # (n,)

    def gather(self, table: Tensor) -> Tensor:
        """(snippets * positions, H) -> (rows, H)."""
        return _weighted_sums(table, self.index, self.offsets, self.weight)

    def scatter(self, rows: Tensor) -> Tensor:
        """Transpose of `gather`: (rows, H) -> (snippets * positions, H)."""
        return _weighted_sums(rows, self.back_index, self.back_offsets, self.back_weight)


def _weighted_sums(table: Tensor, index: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    if table.device.type == "mps":  # no embedding_bag kernel there: a dense matrix does the same
        bags = len(offsets) - 1
        line = torch.repeat_interleave(torch.arange(bags, device=table.device), offsets.diff())
        matrix = table.new_zeros(bags, len(table))
        matrix[line, index.long()] = weight
        return matrix @ table
    return F.embedding_bag(
        index, table, offsets, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


def make_plan(entries: Entries, device: torch.device | str, dtype: torch.dtype) -> Plan:
    """Sort the entries both ways and place them; weights are rounded from float64 once."""
    source = entries.snippet * entries.positions + entries.position
    order = np.lexsort((entries.row, source))

    def tensors(index: np.ndarray, bag: np.ndarray, bags: int, weight: np.ndarray) -> list[Tensor]:
        offsets = np.searchsorted(bag, np.arange(bags + 1))
        ints = [torch.tensor(a.astype(np.int32), device=device) for a in (index, offsets)]
        return [*ints, torch.tensor(weight).to(dtype).to(device)]

    lines = entries.snippets * entries.positions
    forward = tensors(source, entries.row, entries.rows, entries.weight)
    backward = tensors(entries.row[order], source[order], lines, entries.weight[order])
    sizes = (entries.rows, entries.positions, entries.inner, entries.snippets)
    return Plan(*sizes, *forward, *backward)


@lru_cache(maxsize=16)
def gtad_entries(
    snippets: int, durations: int, resolution: int, context: int, samples: int
) -> Entries:
    """Inner samples of all G-TAD anchors, then `context` samples of the same regions.

    With equal resolutions and sampling rules both use the same weights: only `resolution` positions
    are listed and the caller adds the two projections first.
    """
    regions = gtad_regions(snippets, durations)
    inner = align_samples(regions, snippets, resolution, samples)
    if context == 0 or shares_plan(resolution, context, samples):
        return inner
    outer = align_samples(regions, snippets, context)
    row = np.concatenate([inner.row, outer.row])
    order = np.argsort(row, kind="stable")
    position = np.concatenate([inner.position, outer.position + resolution])
    snippet = np.concatenate([inner.snippet, outer.snippet])
    weight = np.concatenate([inner.weight, outer.weight])
    parts = (part[order] for part in (row, position, snippet, weight))
    return Entries(inner.rows, resolution + context, resolution, snippets, *parts)


def shares_plan(resolution: int, context: int, samples: int) -> bool:
    """Inner and context samples sit at the same places, as in the THUMOS14 head."""
    return context == resolution and samples == 0


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


class Sampler(NamedTuple):
    """A function that lists the weights of a sampler, and its arguments."""

    entries: Callable[..., Entries]
    arguments: tuple


@lru_cache(maxsize=32)
def _cached_plan(sampler: Sampler, device: torch.device, dtype: torch.dtype) -> Plan:
    return make_plan(sampler.entries(*sampler.arguments), device, dtype)


def plan_for(sampler: Sampler, like: Tensor) -> Plan:
    """Plan for the device and dtype of `like`, built once a process, never part of a checkpoint."""
    build = _cached_plan if is_real(like) else _cached_plan.__wrapped__
    return build(sampler, like.device, like.dtype)


def is_real(tensor: Tensor) -> bool:
    """False for fake tensors (memory planning): nothing made from them may reach a cache."""
    return type(tensor) in (Tensor, nn.Parameter)
