"""What every localization head is: features in, its own targets, losses and proposals out.

Everything behind a head (joint training, stage 3, detection, the memory budget, reports) knows only
what stands here, so a new kind of head is one module and one branch in `build_head`.
B videos, C channels, T steps of a feature sequence, N proposals, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lofi.config import PostProcessing
from lofi.data.annotations import Video
from lofi.data.snippets import Grid


class Proposals(NamedTuple):
    """Candidate segments of one video, N rows.

    `cells`, `steps` and `parts` are given by heads with an anchor grid: equal segments in all
    videos make suppression several times faster, and notebooks look at what a score is made of.
    """

    segments_s: np.ndarray  # (N, 2) float64 seconds of the video, [start, end)
    scores: np.ndarray  # (N,) float64; (N, K) from heads that score K classes
    labels: np.ndarray | None = None  # (N,) class indices where each row is of one class
    cells: np.ndarray | None = None  # (N, 2) int64 grid lines, 0 <= start < end <= steps
    steps: int = 0
    parts: dict[str, np.ndarray] | None = None  # (N,) float32 factors of the score, by name
    grid: Grid | None = None  # of heads of points: suppression counts in its steps, in float32


class Head(nn.Module):
    """Base of all heads; `forward` and the methods that raise here are what a new head writes.

    Targets and outputs are NamedTuples of tensors, with a leading batch dimension after `collate`
    and `forward`. Losses of parts of a batch add up to those of the whole: every count that they
    divide by is in `statistics`, which is summed over all processes first.
    """

    channels: int  # C
    resizes: bool = True  # long videos are cut into windows; else taken whole, at any length
    draws_in_forward: bool = False  # `forward` takes the draws too, as a third argument

    def forward(self, features: Tensor, mask: Tensor | None = None) -> tuple:
        """(B, C, T) features, (B, T) bool mask of real steps (None: all) → outputs."""
        raise NotImplementedError

    def targets(self, video: Video, grid: Grid) -> tuple:
        """What the head should answer for a video whose times count from the grid's beginning."""
        raise NotImplementedError

    def collate(self, targets: Sequence[tuple]) -> tuple:
        """Stack the targets of several videos; the default needs equal shapes."""
        return collate_targets(targets)

    def draws(self, videos: int, targets: tuple, generator: torch.Generator) -> Tensor:
        """(videos, …) random numbers that the losses of a whole batch use; the default has none.

        `videos` are those of the logical batch, `targets` the collated ones of any part of it.
        """
        return torch.zeros(videos, 0)

    def statistics(
        self, targets: tuple, draws: Tensor, reduce: Callable[[Tensor], Tensor] | None = None
    ) -> tuple:
        """Sums over a logical batch that `losses` divide by; `targets`, `draws`: of a share of it.

        `reduce` sums a tensor over all processes; every process has to make the same calls.
        """
        raise NotImplementedError

    def losses(
        self, outputs: tuple, targets: tuple, statistics: tuple, draws: Tensor
    ) -> dict[str, Tensor]:
        """Named scalars of some videos of the batch; "loss" is what is minimised."""
        raise NotImplementedError

    def decode(self, outputs: tuple, grid: Grid, post: PostProcessing) -> Proposals:
        """Candidate segments of one video (a batch of one), before any suppression.

        In seconds of the video that `grid`, of the features that gave the outputs, belongs to.
        """
        raise NotImplementedError

    def published(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Our state dict from a released one; the default has the same names and layouts.

        What does not fit stays as it is: `load_published` will say so.
        """
        return dict(state_dict)

    def to_published(self) -> dict[str, Tensor]:
        """Parameters under the released names and in the released layouts; see `published`."""
        return self.state_dict()


def collate_targets(batch: Sequence[tuple]) -> tuple:
    """Stack the targets of several videos, of equal shapes, along a new first dimension."""
    if not batch:
        raise ValueError("no targets to collate, expected at least one video")
    for name, part in zip(type(batch[0])._fields, zip(*batch, strict=True)):
        shapes = sorted({tuple(t.shape) for t in part})
        if len(shapes) > 1:
            raise ValueError(f"targets {name} have shapes {shapes}, expected equal ones")
    return type(batch[0])(*(torch.stack(part) for part in zip(*batch, strict=True)))


def part_of(batch: tuple, part: Any) -> tuple:
    """The videos `part` (a slice or a list of rows) of collated targets or outputs."""
    return tree_map(lambda tensor: tensor[part], batch)


def to_device(batch: tuple, device: torch.device | str) -> tuple:
    """Collated targets or statistics on a device."""
    return tree_map(lambda tensor: tensor.to(device), batch)


def load_published(head: Head, state_dict: Mapping[str, Any]) -> None:
    """Load a released checkpoint into a head of the same sizes.

    Names may have the data-parallel prefix "module."; {"epoch", "state_dict"} is accepted too, and
    of one that also holds "state_dict_ema", these averaged weights are taken.

    Raises:
        ValueError: names are missing or unexpected, or shapes differ; the head is left unchanged.
    """
    for key in ("state_dict_ema", "state_dict"):
        if isinstance(state_dict.get(key), Mapping):
            state_dict = state_dict[key]
            break
    given = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    given, own, wanted = head.published(given), head.state_dict(), head.to_published()
    wrong = [
        f"{name} {tuple(given[name].shape)} (expected {tuple(wanted.get(name, own[name]).shape)})"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    problems = {
        "missing": [name for name in own if name not in given],
        "unexpected": [name for name in given if name not in own],
        "wrong shape": wrong,
    }
    found = [f"{what} {', '.join(names)}" for what, names in problems.items() if names]
    if found:
        raise ValueError(
            f"checkpoint does not fit {type(head).__name__}: {'; '.join(found)}. "
            "Build the head with the sizes and options that the checkpoint was trained with."
        )
    head.load_state_dict(given)


def published_state_dict(head: Head) -> dict[str, Tensor]:
    """Parameters of a head under the released names and in the released layouts."""
    return head.to_published()
