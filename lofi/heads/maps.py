"""What G-TAD and BMN share: labels, loss and decoding of a (duration, start) map of anchors.

Sources: Xu et al., G-TAD (CVPR 2020), sections 3.4 and 3.5, and Lin et al., BMN (ICCV 2019),
sections 3.5 to 3.7; what the papers leave open follows the released codes. B videos, L snippets, D
durations, N segments. Cell (d, s) of a map is the anchor that starts at snippet s and lasts d + 1
snippets, [s / L, (s + d + 1) / L) of the video (or window); it means something where s + d < L.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lofi.config import PostProcessing
from lofi.data.annotations import Video
from lofi.data.snippets import Grid
from lofi.heads import anchors
from lofi.heads.base import Head, Proposals, to_device

Reduce = Callable[[Tensor], Tensor]  # sums a tensor over all processes
REGION = 1.5  # snippets on either side of a boundary that count as that boundary
HIGH_TIOU = 0.9  # above: positive for the classification score
EPSILON = 1e-6  # inside every logarithm
REGRESSION_WEIGHT = 10.0
LONGEST = 60  # snippets: 300 frames at stride 5, from where G-TAD scores 0 on THUMOS14

# Window of snippet i that is compared with boundary regions, in snippets relative to i.
WINDOWS = {"anet": (-0.5, 1.5), "bmn": (-0.5, 0.5), "thumos": (0.0, 1.0)}
SCORES = {"gtad": "cls*reg", "thumos": "cls*reg", "bmn": "start*end*cls*reg"}  # as released


class Maps(NamedTuple):
    """What a head says about B videos; all values are probabilities in (0, 1)."""

    confidence: Tensor  # (B, 2, D, L): regression (the tIoU), classification (is it high)
    start: Tensor  # (B, L)
    end: Tensor  # (B, L)


class Targets(NamedTuple):
    """Ground truth on the snippet grid; with a leading batch dimension after `collate_targets`."""

    iou: Tensor  # (D, L) largest tIoU of an anchor with any segment; 0 where s + d >= L
    start: Tensor  # (L,) share of the snippet's window that lies in a start region
    end: Tensor  # (L,)
    best: Tensor  # (D, L) bool, best anchor of each segment that no anchor matches with tIoU > 0.9


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


class MapHead(Head):
    """A head whose outputs are `Maps`; a new one adds its networks and these attributes."""

    durations: int | None = None  # rows D of the map, at most L; None means L
    label_rule: str = "anet"  # of `targets`
    loss_rule: str = "anet"  # of `loss`
    best_anchor: bool = False

    def targets(self, video: Video, grid: Grid) -> Targets:
        """Labels of a video or window; segments of length zero are left out.

        Windows of the "thumos" rule are labelled as released: snippet i stands around frame
        i · stride, so the grid begins half a stride before the window, rounded to a frame for the
        tIoU map.
        """
        given = [(s.start_s, s.end_s) for s in video.segments if s.end_s > s.start_s]
        times, shift_s = np.array(given, np.float64).reshape(-1, 2), 0.0
        if self.label_rule == "thumos" and grid.stride and grid.offset_s == 0:
            frame_s = grid.length_s / round(grid.length_s * grid.fps)
            edge = grid.first_frame - grid.stride / 2
            times = times + grid.stride / 2 * frame_s
            shift_s = (edge - int(edge)) * frame_s
        shape = grid.steps, self.durations, self.label_rule
        return targets(times, grid.length_s, *shape, iou_shift_s=shift_s)

    def draws(self, videos: int, targets: Targets, generator: torch.Generator) -> Tensor:
        """(videos, 2, D, L), see `draw`."""
        return torch.rand((videos, 2, *targets.iou.shape[1:]), generator=generator)

    def statistics(
        self, targets: Targets, draws: Tensor, reduce: Reduce | None = None
    ) -> LossStatistics:
        """See `loss_statistics`."""
        return loss_statistics(targets, draws, best_anchor=self.best_anchor, reduce=reduce)

    def losses(
        self, outputs: Maps, targets: Targets, statistics: LossStatistics, draws: Tensor
    ) -> dict[str, Tensor]:
        """Terms of `loss`; "loss" is their weighted sum."""
        options = {"rule": self.loss_rule, "best_anchor": self.best_anchor, "draws": draws}
        counts = to_device(statistics, outputs.start.device)
        terms = loss(outputs, targets, statistics=counts, **options)._asdict()
        return {"loss": terms.pop("total"), **terms}

    def decode(self, outputs: Maps, grid: Grid, post: PostProcessing) -> Proposals:
        """`proposals` in seconds of the video; those that begin behind its end are left out.

        With the rule "thumos" segments of 60 or more snippets of a window have score 0.
        """
        options = post.rule, post.include_video_end, post.score
        found = proposals(outputs, grid.length_s, *options)
        if not grid.stride:
            return found
        frames = (grid.first_frame + grid.stride * found.cells).astype(np.float64)
        inside = frames[:, 0] < grid.num_frames
        too_long = (post.rule == "thumos") & (np.diff(found.cells)[:, 0] >= LONGEST)
        return found._replace(
            segments_s=frames[inside] / grid.fps + grid.offset_s,
            scores=np.where(too_long, 0.0, found.scores)[inside],
            cells=found.cells[inside],
            parts={name: part[inside] for name, part in found.parts.items()},
        )

    def published(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """BMN's sampling matrix, which travels in its checkpoints, is computed and left out."""
        given = {name: tensor for name, tensor in state_dict.items() if name != "sample_mask"}
        return self._converted(given, anchors.SampledLinear.from_published)

    def to_published(self) -> dict[str, Tensor]:
        """Released names are ours; the convolution over anchor samples has its own layout."""
        return self._converted(self.state_dict(), anchors.SampledLinear.to_published)

    def _converted(self, state_dict: dict[str, Any], convert: Callable) -> dict[str, Any]:
        for name, module in self.named_modules():
            key = f"{name}.weight"
            if isinstance(module, anchors.SampledLinear) and key in state_dict:
                state_dict[key] = convert(module, state_dict[key])
        return state_dict


def targets(
    segments: Tensor | np.ndarray | Sequence, duration_s: float, snippets: int,
    durations: int | None = None, rule: str = "anet", *, iou_shift_s: float = 0.0,
) -> Targets:  # fmt: skip
    """Targets of one video or window, computed in float64 and stored as float32.

    Args:
        segments: (N, 2) start <= end in seconds, end exclusive; N may be 0.
        duration_s: from the left edge of the first snippet to the right edge of the last one; times
            are clipped to it.
        durations: D of the head, None for L; at most L rows are made, as in the head.
        rule: "anet", "bmn" or "thumos": the window of a snippet for start and end labels; with
            "thumos" only the tIoU map is clipped: boundaries outside give no labels, as released.
        iou_shift_s: added to the times for the tIoU map only; the released THUMOS14 windows round
            their offset there to whole frames.
    Raises:
        ValueError: unknown rule, a duration that is not positive, times that are not numbers or run
            backwards.
    """
    if rule not in WINDOWS:
        raise ValueError(f"rule is {rule!r}, expected one of {', '.join(WINDOWS)}")
    if not duration_s > 0:
        raise ValueError(f"duration_s is {duration_s}, expected a positive number of seconds")
    if isinstance(segments, Tensor):
        segments = segments.detach().cpu().numpy()
    times = np.asarray(segments, np.float64)
    times = times if times.size else np.zeros((0, 2))
    if times.ndim != 2 or times.shape[1] != 2:
        found = f"segments have shape {times.shape}"
        raise ValueError(f"{found}, expected (N, 2): start and end in seconds")
    wrong = ~(times[:, 0] <= times[:, 1])  # also true for values that are not numbers
    if wrong.any():
        first = times[wrong][0].tolist()
        raise ValueError(f"segment {first} has no start <= end; correct the annotation")
    edges = times / duration_s if rule == "thumos" else (times / duration_s).clip(0, 1)
    low, high = ((np.arange(snippets) + offset) / snippets for offset in WINDOWS[rule])
    low, high, region = low[:, None, None], high[:, None, None], REGION / snippets
    inter = np.maximum(np.minimum(high, edges + region) - np.maximum(low, edges - region), 0)
    start, end = (inter / (high - low)).max(1, initial=0.0).T  # (L, N, 2) shares

    valid = anchors.valid_cells(snippets, anchors.num_durations(snippets, durations))
    d, s = np.nonzero(valid)
    low, high = s / snippets, (s + d + 1) / snippets
    begin, stop = np.split(((times + iou_shift_s) / duration_s).clip(0, 1), 2, 1)  # (N, 1) each
    inter = np.maximum(np.minimum(high, stop) - np.maximum(low, begin), 0)
    overlap = np.zeros((len(times), *valid.shape))  # tIoU
    overlap[:, valid] = inter / ((high - low) + (stop - begin) - inter)

    best = np.zeros(valid.shape, bool)
    flat = overlap.reshape(len(overlap), best.size).astype(np.float32)
    peak = flat.max(1, initial=0)
    missed = (peak > 0) & (peak <= np.float32(HIGH_TIOU))
    best.ravel()[flat[missed].argmax(1)] = True
    labels = (a.astype(np.float32) for a in (overlap.max(0, initial=0.0), start, end))
    return Targets(*map(torch.from_numpy, labels), torch.from_numpy(best))


def valid_mask(snippets: int, durations: int | None = None) -> Tensor:
    """(D, L) bool: the anchor that starts at s and lasts d + 1 snippets ends inside the video."""
    return torch.tensor(anchors.valid_cells(snippets, anchors.num_durations(snippets, durations)))


def draw(targets: Targets, generator: torch.Generator | None = None) -> Tensor:
    """(B, 2, D, L) uniform numbers: which middle and low cells the regression term keeps.

    Made on the generator's device: a seed gives the same numbers wherever the model runs.
    """
    videos, *cells = targets.iou.shape
    device = torch.device("cpu") if generator is None else generator.device
    uniform = torch.rand((videos, 2, *cells), generator=generator, device=device)
    return uniform.to(targets.iou.device)


def loss_statistics(
    targets: Targets, draws: Tensor, *, safe: bool = True, best_anchor: bool = False,
    reduce: Reduce | None = None,
) -> LossStatistics:  # fmt: skip
    """Counts over a logical batch.

    `targets` and `draws`, from `draw`, are of this worker's share when `reduce` is given: it sums a
    tensor over all workers, and is called twice, as what is kept depends on the global counts.
    """
    reduce = reduce or (lambda counts: counts)
    found = *_bands(targets), *_classes(targets, best_anchor)
    masks = targets.start > 0.5, targets.end > 0.5, *found
    nodes = torch.tensor(targets.start.numel(), device=targets.start.device)
    counts = reduce(torch.stack([nodes, *(mask.sum() for mask in masks)]).double())
    unfinished = LossStatistics(*counts, counts.new_zeros(()))
    kept = _kept(targets, draws, unfinished, safe).sum(dtype=torch.float64)
    return unfinished._replace(kept=reduce(kept))


def loss(
    maps: Maps, targets: Targets, *, rule: str = "anet", safe: bool = True,
    generator: torch.Generator | None = None, statistics: LossStatistics | None = None,
    best_anchor: bool = False, draws: Tensor | None = None,
) -> Losses:  # fmt: skip
    """Loss of a batch, or of a part of one.

    Every coefficient depends on targets and random draws, never on predictions, so those of a large
    logical batch can be computed first and its videos processed in parts: the parts' losses and
    gradients then add up to those of the whole batch.

    Args:
        maps, targets: predictions of a head for B videos, and their collated targets.
        rule: "anet" (also BMN): node + 10 regression + classification; "thumos": the weight sits on
            the classification term, and its counts are padded, as released for THUMOS14.
        safe: leave out terms that have no positive, and keep sub-sampling within its own cells,
            where the released code divides by zero or keeps the whole map; else equal to it.
        generator: source of the draws; None uses torch's default one.
        statistics: of the logical batch that these videos are a part of (then `draws` are this
            part's own); None: these videos are the whole batch.
        best_anchor: count the best anchor of a segment as positive when no anchor exceeds tIoU 0.9
            (our option for very few snippets).
        draws: (B, 2, D, L) uniform numbers instead of fresh ones.
    """
    if rule not in ("anet", "thumos"):
        raise ValueError(f"rule is {rule!r}, expected 'anet' (also for BMN) or 'thumos'")
    expected = maps.confidence[:, 0].shape
    if targets.iou.shape != expected:
        raise ValueError(
            f"targets.iou has shape {tuple(targets.iou.shape)}, the maps ask for "
            f"{tuple(expected)}; make targets for the same snippets and durations and collate them"
        )
    if draws is None:
        if statistics is not None:
            raise ValueError(
                "statistics were given without draws; pass the draws that they were made from"
            )
        draws = draw(targets, generator)
    count = statistics or loss_statistics(targets, draws, safe=safe, best_anchor=best_anchor)
    confidence, start, end = (m if m.dtype == torch.float64 else m.float() for m in maps)

    started, ended = targets.start > 0.5, targets.end > 0.5
    node = _balanced(start, started, ~started, count.starts, count.nodes, safe)
    node = node + _balanced(end, ended, ~ended, count.ends, count.nodes, safe)

    weight = _kept(targets, draws, count, safe).to(confidence.dtype)
    error = (weight * (confidence[:, 0] - targets.iou)).square().sum()
    kept = count.kept
    if safe:  # 0, with zero gradient, where nothing is kept
        error, kept = error * (kept > 0), kept.clamp(min=1)
    regression = 0.5 * (error / kept.to(error.dtype))

    positive, negative = _classes(targets, best_anchor)
    found, entries = count.positives, count.positives + count.negatives
    if rule == "thumos":
        found, entries = found + 10, entries + 20
    classification = _balanced(confidence[:, 1], positive, negative, found, entries, safe)
    weights = (REGRESSION_WEIGHT, 1.0) if rule == "anet" else (1.0, REGRESSION_WEIGHT)
    total = node + weights[0] * regression + weights[1] * classification
    return Losses(total, node, regression, classification)


def _bands(targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
    """High, middle and low cells; float32 values against float32 limits."""
    high, some = targets.iou > 0.7, targets.iou > 0.3
    return high, some & ~high, (targets.iou > 0) & ~some


def _classes(targets: Targets, best_anchor: bool) -> tuple[Tensor, Tensor]:
    """Positive and negative cells of the classification term."""
    positive = targets.iou > HIGH_TIOU
    if best_anchor:
        positive = positive | targets.best
    durations, snippets = targets.iou.shape[-2:]
    return positive, valid_mask(snippets, durations).to(positive.device) & ~positive


def _kept(targets: Targets, draws: Tensor, count: LossStatistics, safe: bool) -> Tensor:
    """(B, D, L) weights of the regression term: high cells, and on average as many of the others.

    Not safe: once there are more high than middle (low) cells the limit is negative, and every cell
    of the map, invalid ones included, is kept a second (third) time. Released behaviour.
    """
    high, *others = _bands(targets)
    weight = high.to(draws.dtype)
    for i, (band, number) in enumerate(zip(others, (count.middle, count.low))):
        chosen = band * draws[:, i] > (1 - count.high / number).to(draws.dtype)
        if safe:
            chosen = chosen & band & (count.high > 0)
        weight = weight + chosen
    return weight


def _balanced(score, positive, negative, found: Tensor, entries: Tensor, safe: bool) -> Tensor:
    """Cross-entropy in which positives and negatives weigh the same in total.

    `found` of `entries` are positive in the logical batch; weights r / 2 and r / (2 (r - 1)) with r
    = entries / found.
    """
    usable = found > 0
    ratio = entries / (found.clamp(min=1) if safe else found)
    if safe:  # nothing but positives: the released code divides by zero
        ratio = torch.where(ratio > 1, ratio, 1.05)
    weights = (w.to(score.dtype) for w in (0.5 * ratio, 0.5 * ratio / (ratio - 1)))
    logs = positive * torch.log(score + EPSILON), negative * torch.log(1 - score + EPSILON)
    gain = sum(log * weight for log, weight in zip(logs, weights))
    mean = -gain.sum() / entries.to(score.dtype)
    return mean * usable if safe else mean


def proposals(
    maps: Any, duration_s: float, rule: str = "gtad", include_video_end: bool = False,
    score: str | None = None,
) -> Proposals:  # fmt: skip
    """List the candidate segments of one video (or window) with their scores.

    What the released rules do and a reader would not expect: the segment's end must be < L, so no
    proposal reaches the last grid line; the end score is read at s + d + 1, one snippet behind the
    last one inside the segment; G-TAD uses start and end scores only to pick candidates, BMN only
    to score them.

    Args:
        maps: (confidence (2, D, L), start (L,), end (L,)), tensors or arrays, a leading batch
            dimension of 1 allowed.
        duration_s: what the L snippets divide.
        rule: of G-TAD for ActivityNet and HACS (`gtad`: start and end must be candidates) and for
            THUMOS14 (`thumos`), or `bmn` (both: all cells).
        include_video_end: also list segments that end at the very end of the video; their end score
            is the last snippet's.
        score: product of `cls`, `reg`, `start`, `end` joined by `*`; None = the rule's own.
    Returns:
        Row order: by duration then start (`gtad`, `thumos`), by start then end (`bmn`). Scores are
        products in float64, in float32 for `bmn`, as released. `parts` are these four terms.
    Raises:
        ValueError: unknown rule or score term, maps of the wrong shape, non-positive duration.
    """
    if rule not in SCORES:
        raise ValueError(f"rule {rule!r} is unknown; choose one of {', '.join(SCORES)}")
    if not duration_s > 0:
        raise ValueError(f"duration_s is {duration_s}; expected the video's length, > 0 seconds")
    terms = [term.strip() for term in (score or SCORES[rule]).split("*")]
    for term in terms:
        if term not in ("cls", "reg", "start", "end"):
            raise ValueError(f"score {score!r}: unknown term {term!r}; use cls, reg, start, end")
    confidence, start, end = _one_video(maps)
    durations, snippets = confidence.shape[1:]
    line = np.add.outer(np.arange(durations), np.arange(snippets)) + 1  # where a cell's anchor ends
    valid = line < (snippets + 1 if include_video_end else snippets)
    if rule == "gtad":
        starts = boundary_candidates(start)
        ends = np.zeros(snippets + durations + 1, bool)  # beyond L: only reached when invalid
        ends[:snippets] = boundary_candidates(end)
        starts[0] = ends[snippets - 1] = ends[snippets] = True
        valid &= starts[None, :] & ends[line]
    s, d = np.nonzero(valid.T) if rule == "bmn" else np.nonzero(valid)[::-1]
    e = s + d + 1
    parts = {
        "cls": confidence[1, d, s],
        "reg": confidence[0, d, s],
        "start": start[s],
        "end": end[np.minimum(e, snippets - 1)],
    }
    dtype = np.float32 if rule == "bmn" else np.float64
    scores = np.ones(len(s), dtype)
    for term in terms:
        scores = scores * parts[term].astype(dtype)
    cells = np.stack([s, e], axis=1)
    segments_s = cells / snippets * duration_s
    return Proposals(segments_s, scores.astype(np.float64), None, cells, snippets, parts)


def boundary_candidates(score: np.ndarray) -> np.ndarray:
    """(L,) bool: strict local maxima and values above half the maximum, among snippets 1..L-2."""
    inner = score[1:-1]
    peak = (inner > score[:-2]) & (inner > score[2:])
    found = np.zeros(len(score), bool)
    found[1:-1] = peak | (inner > 0.5 * score.max())
    return found


def _one_video(maps: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Check shapes and bring the three maps to float32 arrays without batch dimension."""
    parts = (p.detach().float().cpu() if isinstance(p, Tensor) else p for p in maps)
    confidence, start, end = (np.asarray(part, np.float32) for part in parts)
    if confidence.ndim == 4 and confidence.shape[0] == 1:
        confidence = confidence[0]
        start, end = start.reshape(start.shape[-1]), end.reshape(end.shape[-1])
    snippets = confidence.shape[-1]
    good = confidence.ndim == 3 and confidence.shape[0] == 2 and snippets >= 2
    if not good or start.shape != (snippets,) or end.shape != (snippets,):
        raise ValueError(
            f"maps have shapes {confidence.shape}, {start.shape}, {end.shape}; expected (2, D, L), "
            "(L,), (L,) of one video: pass one element of the batch"
        )
    if not (np.isfinite(start).all() and np.isfinite(end).all() and np.isfinite(confidence).all()):
        raise ValueError("maps contain NaN or infinite values; check the head and its input")
    return confidence, start, end
