"""What heads of points share: labels, loss and decoding of a pyramid of steps with two distances.

A point is a step of one level: t = i · 2^l in steps of level 0, whose middle is the middle of that
step. It says how likely each class is there, and how far away the beginning and the end are.
Source: ActionFormer (ECCV 2022) and the released code of its authors. B videos, T_l steps of level
l, N segments, K classes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from lofi.config import PostProcessing
from lofi.data.annotations import Video
from lofi.data.snippets import Grid
from lofi.heads.base import Head, Proposals

RADIUS = 1.5  # strides around the middle of a segment where its points lie
FINEST = 4  # steps: level l finds segments whose farther end is 2 · 2^l to 4 · 2^l steps away
FARTHEST = 10000  # of the coarsest level
SAME = 1e-3  # steps: segments of as good as equal length; seconds: of as good as equal times
MEMORY = 0.9  # of the running count of positive points
ALPHA, GAMMA = 0.25, 2.0  # of the focal loss
EPSILON = 1e-8


class Points(NamedTuple):
    """What a head says about B videos, one tensor for each level."""

    logits: tuple[Tensor, ...]  # (B, T_l, K)
    offsets: tuple[Tensor, ...]  # (B, T_l, 2) to start and end, in strides of the level, >= 0
    masks: tuple[Tensor, ...]  # (B, T_l) bool, steps of the video


class PointTargets(NamedTuple):
    """Ground truth at every point; with a leading batch dimension after `collate`."""

    classes: tuple[Tensor, ...]  # (T_l, K) 0 or 1; all 0 at points that belong to no segment
    offsets: tuple[Tensor, ...]  # (T_l, 2) in strides of the level


class PointStatistics(NamedTuple):
    """Of one logical batch."""

    count: Tensor  # running mean of the number of positive points, float64


class PointHead(Head):
    """A head whose outputs are `Points`; a new one adds its networks and the number of levels.

    Args:
        classes: the labels of the classes; or K, labels are then numbers, and 1 is any label.
        first_count: where the running number of positive points begins. It belongs to the state:
            `statistics` moves it on, once a training step.
        regression_weight: of the distances in the loss.
        smoothing: of the class labels.
    """

    levels: int
    resizes = False
    draws_in_forward = True

    def __init__(
        self, classes: int | Sequence[str], first_count: float, regression_weight: float,
        smoothing: float,
    ) -> None:  # fmt: skip
        super().__init__()
        numbers = range(classes) if isinstance(classes, int) and classes != 1 else ()
        self.names = tuple(map(str, numbers if isinstance(classes, int) else classes))
        if not (self.names or classes == 1):
            raise ValueError("a head of points needs at least one class, got none")
        self.regression_weight, self.smoothing = regression_weight, smoothing
        self.register_buffer("count", torch.tensor(float(first_count), dtype=torch.float64))

    def branches(self, draws: Tensor | None, share: float) -> Tensor | None:
        """(B, branches) uniform numbers → (branches, B, 1, 1) factors: 0 for a `share` of them,
        1 / (1 - share) for the others; None in evaluation and without numbers."""
        if draws is None or not self.training:
            return None
        return ((draws + (1 - share)).floor() / (1 - share)).T[:, :, None, None]

    def targets(self, video: Video, grid: Grid) -> PointTargets:
        """Labels of a video; points behind its end have none.

        Segments shorter than a millisecond, and repeated ones, are left out. ValueError for a label
        that is no class of this head.
        """
        kept: list[tuple[float, float, int]] = []
        for segment in video.segments:
            if self.names and segment.label not in self.names:
                known = f"{', '.join(self.names[:5])}{', …' * (len(self.names) > 5)}"
                found = f"video {video.id}: label {segment.label!r}"
                raise ValueError(f"{found} is no class of this head ({known})")
            label = self.names.index(segment.label) if self.names else 0
            found = segment.start_s, segment.end_s, label
            repeated = any(
                label == other[2] and max(abs(found[0] - other[0]), abs(found[1] - other[1])) < SAME
                for other in kept
            )
            if segment.end_s - segment.start_s >= SAME and not repeated:
                kept.append(found)
        rows = np.array(kept, np.float64).reshape(-1, 3)
        steps = (rows[:, :2] / grid.step_s - 0.5).astype(np.float32)
        sizes = grid.steps, self.levels, len(self.names) or 1
        made = point_targets(steps, rows[:, 2].astype(int), *sizes)
        inside = torch.from_numpy(grid.inside())
        masks = [inside[:: 2**level, None] for level in range(self.levels)]
        return PointTargets(tuple(c * m for c, m in zip(made.classes, masks)), made.offsets)

    def collate(self, targets: Sequence[PointTargets]) -> PointTargets:
        """Stack the targets of videos of any lengths, zeros behind the ends of the shorter ones."""
        if not targets:
            raise ValueError("no targets to collate, expected at least one video")
        return PointTargets(
            *(
                tuple(pad_sequence(level, batch_first=True) for level in zip(*parts, strict=True))
                for parts in zip(*targets, strict=True)
            )
        )

    def statistics(
        self, targets: PointTargets, draws: Tensor, reduce: Callable[[Tensor], Tensor] | None = None
    ) -> PointStatistics:
        """The running count, which this batch moves on in training mode."""
        found = sum((level.sum(-1) > 0).sum() for level in targets.classes).double()
        found = reduce(found) if reduce else found
        count = self.count * MEMORY + (1 - MEMORY) * found.clamp(min=1).to(self.count.device)
        if self.training:
            self.count.copy_(count)
        return PointStatistics(count)

    def losses(
        self, outputs: Points, targets: PointTargets, statistics: PointStatistics, draws: Tensor
    ) -> dict[str, Tensor]:
        """Focal loss of the classes and DIoU loss of the segments, both over the running count."""
        parts = (*outputs, *targets)
        logits, offsets, inside, truth, wanted = (torch.cat(levels, 1) for levels in parts)
        logits, offsets = exact(logits), exact(offsets)
        count, truth = statistics.count.to(logits), truth.to(logits.dtype)
        smooth = truth * (1 - self.smoothing) + self.smoothing / (truth.shape[-1] + 1)
        classes = (focal_loss(logits, smooth) * inside[..., None]).sum() / count
        positive = inside & (truth.sum(-1) > 0)
        regression = (diou_loss(offsets, wanted.to(logits.dtype)) * positive).sum() / count
        loss = classes + self.regression_weight * regression
        return {"loss": loss, "classes": classes, "regression": regression}

    def decode(self, outputs: Points, grid: Grid, post: PostProcessing) -> Proposals:
        """The best points of every level with each class that they show, one row a class."""
        found = [np.zeros((0, 2), np.float32)], [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
        for level, (logits, offsets, mask) in enumerate(zip(*outputs, strict=True)):
            if len(logits) != 1:
                raise ValueError(f"outputs are of {len(logits)} videos, expected one to decode")
            scores = (logits[0].float().sigmoid() * mask[0, :, None]).flatten()
            if not torch.isfinite(scores).all():
                raise ValueError("scores hold NaN or infinity; check the head and its input")
            chosen = (scores > post.min_score).nonzero()[:, 0]
            best = scores[chosen].sort(descending=True, stable=True).indices[: post.candidates]
            chosen = chosen[best]
            step = chosen // logits.shape[2]
            reach = offsets[0].float()[step] * 2**level
            time = (step * 2**level).float()
            spans = torch.stack([time - reach[:, 0], time + reach[:, 1]], 1)
            long = spans[:, 1] - spans[:, 0] > post.shortest
            parts = spans[long], scores[chosen][long], (chosen % logits.shape[2])[long]
            for rows, part in zip(found, parts):
                rows.append(part.cpu().numpy())
        spans, scores, labels = map(np.concatenate, found)
        seconds = grid.seconds(spans.astype(np.float64))
        return Proposals(seconds, scores.astype(np.float64), labels, grid=grid)


def point_targets(
    segments: np.ndarray, labels: np.ndarray, steps: int, levels: int, classes: int
) -> PointTargets:
    """Targets of all points of T steps.

    Args:
        segments: (N, 2) float32 start and end in steps, 0 is the middle of the first one.
        labels: (N,) class indices.
    """
    start, end = segments.T.astype(np.float32)
    length, middle = end - start, (start + end) * np.float32(0.5)
    onehot = np.eye(classes, dtype=np.float32)[labels]
    found: tuple[list, list] = [], []
    for level in range(levels):
        stride = np.float32(2**level)
        t = np.arange(0, steps, 2**level, dtype=np.float32)[:, None]
        left, right = t - start, end - t  # (T_l, N)
        near = np.minimum(
            t - np.maximum(middle - stride * RADIUS, start),
            np.minimum(middle + stride * RADIUS, end) - t,
        )
        farther = np.maximum(left, right)
        low = FINEST / 2 * 2**level if level else 0
        high = FINEST * 2**level if level < levels - 1 else FARTHEST
        fits = (near > 0) & (farther >= low) & (farther <= high)
        size = np.where(fits, length, np.inf)
        shortest = size.min(1, initial=np.inf, keepdims=True)
        shown = (size <= shortest + np.float32(SAME)) & fits
        marks = np.minimum(shown.astype(np.float32) @ onehot, 1)
        distances = np.zeros((len(t), 2), np.float32)
        rows = np.flatnonzero(fits.any(1))
        first = size[rows].argmin(1) if len(rows) else rows
        distances[rows] = np.stack([left[rows, first], right[rows, first]], 1) / stride
        found[0].append(torch.from_numpy(marks))
        found[1].append(torch.from_numpy(distances))
    return PointTargets(*map(tuple, found))


def exact(x: Tensor) -> Tensor:
    """In float32 at least, for losses under autocast."""
    return x if x.dtype == torch.float64 else x.float()


def focal_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Sigmoid focal loss of every entry; `truth` may be soft."""
    p = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    wrong = p + truth - 2 * p * truth  # 1 − the probability of the truth
    weight = ALPHA * truth + (1 - ALPHA) * (1 - truth)
    return weight * entropy * wrong**GAMMA


def diou_loss(offsets: Tensor, wanted: Tensor) -> Tensor:
    """1 − IoU + (distance of the middles / enclosing length)², for (…, 2) distances."""
    overlap = torch.minimum(offsets, wanted).sum(-1)
    union = offsets.sum(-1) + wanted.sum(-1) - overlap
    around = torch.maximum(offsets, wanted).sum(-1)
    apart = 0.5 * (offsets.diff(dim=-1) - wanted.diff(dim=-1))[..., 0]
    iou = overlap / union.clamp(min=EPSILON)
    return 1 - iou + (apart / around.clamp(min=EPSILON)).square()
