"""Loss of a head that predicts boundaries and a map of anchor scores.

Source: Xu et al., G-TAD (CVPR 2020), section 3.5, and Lin et al., BMN (ICCV 2019), section 3.5;
balancing and sub-sampling as in the released codes. Every coefficient depends on targets and random
draws, never on predictions, so the coefficients of a large logical batch can be computed first and
its videos processed in parts: the parts' losses and gradients then add up to those of the whole
batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lofi.heads.gtad import Maps
from lofi.heads.targets import HIGH_TIOU, Targets, valid_mask

EPSILON = 1e-6  # inside every logarithm
REGRESSION_WEIGHT = 10.0


class Losses(NamedTuple):
    """Scalars; `total` is what to minimise."""

    total: Tensor
    node: Tensor
    regression: Tensor
    classification: Tensor


class LossStatistics(NamedTuple):
    """Counts of one logical batch, float64 scalars."""

    nodes: Tensor  # B * L
    starts: Tensor  # snippets with start label > 0.5
    ends: Tensor
    high: Tensor  # cells with tIoU > 0.7
    middle: Tensor  # 0.3 < tIoU <= 0.7
    low: Tensor  # 0 < tIoU <= 0.3
    positives: Tensor  # cells that the classification score should find
    negatives: Tensor  # valid cells besides
    kept: Tensor  # sum of the regression weights


def draw(targets: Targets, generator: torch.Generator | None = None) -> Tensor:
    """(B, 2, D, L) uniform numbers: which middle and low cells the regression term keeps.

    Made on the generator's device, so that the same seed gives the same numbers wherever the model
    runs.
    """
    videos, durations, snippets = targets.iou.shape
    device = torch.device("cpu") if generator is None else generator.device
    shape = (videos, 2, durations, snippets)
    return torch.rand(shape, generator=generator, device=device).to(targets.iou.device)


def loss_statistics(
    targets: Targets,
    draws: Tensor,
    *,
    safe: bool = True,
    best_anchor: bool = False,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> LossStatistics:
    """Counts over a logical batch.

    Args:
        targets: of all videos of the batch (of this worker's share when `reduce` is given).
        draws: (B, 2, D, L) from `draw`.
        reduce: sums a tensor over all workers; called twice, because what is kept depends on the
            global counts.
    """
    reduce = reduce or (lambda counts: counts)
    high, middle, low = _bands(targets.iou)
    positive, negative = _classes(targets, best_anchor)
    masks = (targets.start > 0.5, targets.end > 0.5, high, middle, low, positive, negative)
    counts = [torch.tensor(targets.start.numel(), device=high.device), *(m.sum() for m in masks)]
    counts = reduce(torch.stack(counts).double())
    unfinished = LossStatistics(*counts, counts.new_zeros(()))
    kept = _kept(targets.iou, draws, unfinished, safe).sum(dtype=torch.float64)
    return unfinished._replace(kept=reduce(kept))


def loss(
    maps: Maps,
    targets: Targets,
    *,
    rule: str = "anet",
    safe: bool = True,
    generator: torch.Generator | None = None,
    statistics: LossStatistics | None = None,
    best_anchor: bool = False,
    draws: Tensor | None = None,
) -> Losses:
    """Loss of a batch, or of a part of one.

    Args:
        maps: predictions of a head for B videos.
        targets: collated targets of the same B videos, L snippets and D durations.
        rule: "anet" (also BMN): node + 10 regression + classification; "thumos": the weight sits on
            the classification term, and its counts are padded, as released for THUMOS14.
        safe: leave out terms that have no positive, and keep sub-sampling within its own cells,
            where the released code divides by zero or keeps the whole map; equal to it in all other
            cases.
        generator: source of the draws; None uses torch's default one.
        statistics: of the logical batch that these videos are a part of (then `draws` are this
            part's own);
            None: these videos are the whole batch.
        best_anchor: count the best anchor of a segment as positive when no anchor exceeds tIoU 0.9
            (our option for very few snippets).
        draws: (B, 2, D, L) uniform numbers instead of fresh ones.
    """
    _check(maps, targets, rule, statistics, draws)
    if draws is None:
        draws = draw(targets, generator)
    if statistics is None:
        statistics = loss_statistics(targets, draws, safe=safe, best_anchor=best_anchor)
    confidence, start, end = (_at_least_float32(m) for m in maps)
    count = statistics
    node = _balanced(
        start, targets.start > 0.5, targets.start <= 0.5, count.starts, count.nodes, safe
    )
    node = node + _balanced(
        end, targets.end > 0.5, targets.end <= 0.5, count.ends, count.nodes, safe
    )

    weight = _kept(targets.iou, draws, statistics, safe).to(confidence.dtype)
    error = (weight * (confidence[:, 0] - targets.iou)).square().sum()
    regression = 0.5 * _ratio(error, count.kept, safe)

    positive, negative = _classes(targets, best_anchor)
    found, entries = count.positives, count.positives + count.negatives
    if rule == "thumos":
        found, entries = found + 10, entries + 20
    classification = _balanced(confidence[:, 1], positive, negative, found, entries, safe)
    weights = (REGRESSION_WEIGHT, 1.0) if rule == "anet" else (1.0, REGRESSION_WEIGHT)
    total = node + weights[0] * regression + weights[1] * classification
    return Losses(total, node, regression, classification)


def _check(maps, targets, rule, statistics, draws) -> None:
    if rule not in ("anet", "thumos"):
        raise ValueError(f"rule is {rule!r}, expected 'anet' (also for BMN) or 'thumos'")
    videos, _, durations, snippets = maps.confidence.shape
    expected = (videos, durations, snippets)
    if targets.iou.shape != expected:
        raise ValueError(
            f"targets.iou has shape {tuple(targets.iou.shape)}, the maps ask for {expected}; "
            "make targets for the same snippets and durations and collate them"
        )
    if statistics is not None and draws is None:
        raise ValueError(
            "statistics were given without draws; pass the draws that they were made from"
        )


def _at_least_float32(scores: Tensor) -> Tensor:
    return scores if scores.dtype == torch.float64 else scores.float()


def _bands(iou: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """High, middle and low cells; float32 values against float32 limits."""
    high, some = iou > 0.7, iou > 0.3
    return high, some & ~high, (iou > 0) & ~some


def _classes(targets: Targets, best_anchor: bool) -> tuple[Tensor, Tensor]:
    """Positive and negative cells of the classification term."""
    positive = targets.iou > HIGH_TIOU
    if best_anchor:
        positive = positive | targets.best
    durations, snippets = targets.iou.shape[-2:]
    return positive, valid_mask(snippets, durations).to(positive.device) & ~positive


def _kept(iou: Tensor, draws: Tensor, count: LossStatistics, safe: bool) -> Tensor:
    """(B, D, L) weights of the regression term: high cells, and on average as many of the others.

    Not safe: once there are more high than middle (low) cells the limit is negative, and every cell
    of the map, invalid ones included, is kept a second (third) time. Released behaviour.
    """
    high, middle, low = _bands(iou)
    weight = high.to(draws.dtype)
    for band, number, uniform in (
        (middle, count.middle, draws[:, 0]),
        (low, count.low, draws[:, 1]),
    ):
        limit = (1 - count.high / number).to(draws.dtype)
        chosen = band * uniform > limit
        if safe:
            chosen = chosen & band & (count.high > 0)
        weight = weight + chosen
    return weight


def _ratio(amount: Tensor, number: Tensor, safe: bool) -> Tensor:
    """amount / number; safe: 0, with zero gradient, where the number is 0."""
    if safe:
        amount = amount * (number > 0)
        number = number.clamp(min=1)
    return amount / number.to(amount.dtype)


def _balanced(score, positive, negative, found: Tensor, entries: Tensor, safe: bool) -> Tensor:
    """Cross-entropy in which positives and negatives weigh the same in total.

    `found` of `entries` are positive in the logical batch; weights r / 2 and r / (2 (r - 1)) with r
    = entries / found.
    """
    usable = found > 0
    if safe:
        found = found.clamp(min=1)
    ratio = entries / found
    if safe:  # nothing but positives: the released code divides by zero
        ratio = torch.where(ratio > 1, ratio, 1.05)
    gain = positive * torch.log(score + EPSILON) * (0.5 * ratio).to(score.dtype)
    gain = gain + negative * torch.log(1 - score + EPSILON) * (0.5 * ratio / (ratio - 1)).to(
        score.dtype
    )
    mean = -gain.sum() / entries.to(score.dtype)
    return mean * usable if safe else mean
