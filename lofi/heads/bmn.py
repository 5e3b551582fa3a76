"""BMN: boundary scores and a map of proposal scores from evenly sampled features.

Source: Lin et al., "BMN: Boundary-Matching Network for Temporal Action Proposal Generation", ICCV
2019; numbers that the paper leaves open follow the public PyTorch code that LoFi compares with
("master") or, as an option, its October 2019 revision ("2019", also the OpenMMLab port's sampling).
B videos, L snippets, D durations, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lofi.heads import anchors
from lofi.heads.maps import MapHead, Maps

HIDDEN = 256
MAP_HIDDEN = (512, 128)


class BMN(MapHead):
    """BMN head: (B, C, L) snippet features -> `Maps`; no weight depends on L or D.

    Args:
        channels: C, a multiple of 4.
        snippets: L at full fidelity; only documents the head, any other L works.
        durations: rows D of the map that are returned, at most L; None means L.
        samples: sample positions of an anchor.
        samples_per_bin: points averaged for each of them.
        boundary_ratio: how far sampling reaches beyond either end, as a share of the anchor's
            length.
        variant: "master" (map convolutions run over (start, end)) or "2019" (over (duration,
            start); narrower ranges).
    """

    def __init__(
        self,
        channels: int,
        snippets: int = 100,
        durations: int | None = None,
        samples: int = 32,
        samples_per_bin: int = 3,
        *,
        boundary_ratio: float = 0.5,
        variant: str = "master",
        best_anchor: bool = False,
    ) -> None:
        super().__init__()
        if channels % 4:
            raise ValueError(f"channels is {channels}, expected a multiple of 4")
        if samples < 1 or samples_per_bin < 1:
            raise ValueError(
                f"samples and samples_per_bin are {samples}, {samples_per_bin}, expected at least 1"
            )
        if variant not in anchors.BMN_VARIANTS:
            raise ValueError(
                f"variant is {variant!r}, expected {' or '.join(anchors.BMN_VARIANTS)}"
            )
        anchors.num_durations(snippets, durations)
        self.channels, self.snippets, self.durations = channels, snippets, durations
        self.variant, self.best_anchor = variant, best_anchor
        self.label_rule = "bmn"
        self.sampling = (samples, samples_per_bin, boundary_ratio, variant)
        wide, narrow = MAP_HIDDEN
        self.x_1d_b = nn.Sequential(
            nn.Conv1d(channels, HIDDEN, 3, padding=1, groups=4),
            nn.ReLU(),
            nn.Conv1d(HIDDEN, HIDDEN, 3, padding=1, groups=4),
            nn.ReLU(),
        )
        self.x_1d_s, self.x_1d_e = _boundary_head(), _boundary_head()
        self.x_1d_p = nn.Sequential(nn.Conv1d(HIDDEN, HIDDEN, 3, padding=1), nn.ReLU())
        released = (wide, HIDDEN, samples, 1, 1)
        self.x_3d_p = nn.Sequential(anchors.SampledLinear(HIDDEN, samples, 0, wide, released))
        self.x_2d_p = nn.Sequential(
            nn.Conv2d(wide, narrow, 1),
            nn.ReLU(),
            nn.Conv2d(narrow, narrow, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(narrow, narrow, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(narrow, 2, 1),
            nn.Sigmoid(),
        )

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Maps:
        """(B, C, L) float -> maps of L columns and min(durations, L) rows.

        The mask is not used: as released, features behind the end of a video are zeros.
        """
        anchors.check_features(features, self.channels)
        base = F.relu_(self.x_1d_b[2](F.relu_(self.x_1d_b[0](features))))
        start, end = (_boundary(head, base) for head in (self.x_1d_s, self.x_1d_e))
        x = F.relu_(self.x_1d_p[0](base)).transpose(1, 2)
        snippets = x.shape[1]
        sampler = anchors.Sampler(anchors.bmn_entries, (snippets, *self.sampling))
        cells = anchors.Sampler(anchors.cell_entries, (anchors.bmn_cells, snippets, self.variant))
        convolutions = [self.x_2d_p[i] for i in (0, 2, 4, 6)]
        scores = anchors.anchor_scores(x, None, self.x_3d_p[0], convolutions, sampler, cells)
        if self.variant == "master":
            scores = duration_start(scores)
        durations = anchors.num_durations(snippets, self.durations)
        return Maps(scores[:, :, :durations], start, end)


def duration_start(scores: Tensor) -> Tensor:
    """(..., start, end) -> (..., duration, start): cell (d, s) is cell (s, s + d), modulo L.

    The wrap only concerns invalid cells; it pairs them one to one, so nothing is lost.
    """
    snippets = scores.shape[-1]
    d = torch.arange(snippets, device=scores.device)[:, None]
    s = torch.arange(snippets, device=scores.device)[None, :]
    return _rearranged(scores, s * snippets + (s + d) % snippets)


def start_end(scores: Tensor) -> Tensor:
    """(..., duration, start) -> (..., start, end), end inclusive: inverse of `duration_start`."""
    snippets = scores.shape[-1]
    if scores.shape[-2] != snippets:
        raise ValueError(f"map is {tuple(scores.shape[-2:])}, expected all durations (square)")
    s = torch.arange(snippets, device=scores.device)[:, None]
    e = torch.arange(snippets, device=scores.device)[None, :]
    return _rearranged(scores, (e - s) % snippets * snippets + s)


class _Permute(torch.autograd.Function):
    """Reorder the last axis; the gradient is the inverse permutation, not a sum."""

    @staticmethod
    def forward(ctx, values, order):
        ctx.order = order
        return values.index_select(-1, order)

    @staticmethod
    def backward(ctx, grad):
        return grad.index_select(-1, ctx.order.argsort()), None


def _rearranged(scores: Tensor, order: Tensor) -> Tensor:
    return _Permute.apply(scores.flatten(-2), order.flatten()).view(scores.shape)


def _boundary_head() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(HIDDEN, HIDDEN, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.Conv1d(HIDDEN, 1, 1),
        nn.Sigmoid(),
    )


def _boundary(head: nn.Sequential, x: Tensor) -> Tensor:
    return anchors.probabilities(head[2](F.relu_(head[0](x))))[:, 0]
