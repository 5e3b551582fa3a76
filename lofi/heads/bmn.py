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

HIDDEN, MAP_HIDDEN = 256, (512, 128)


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
        best_anchor: see `lofi.heads.loss`.
    """

    label_rule = "bmn"

    def __init__(
        self, channels: int, snippets: int = 100, durations: int | None = None, samples: int = 32,
        samples_per_bin: int = 3, *, boundary_ratio: float = 0.5, variant: str = "master",
        best_anchor: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if channels % 4:
            raise ValueError(f"channels is {channels}, expected a multiple of 4")
        if samples < 1 or samples_per_bin < 1:
            given = f"samples and samples_per_bin are {samples}, {samples_per_bin}"
            raise ValueError(f"{given}, expected at least 1")
        if variant not in anchors.BMN_VARIANTS:
            known = " or ".join(anchors.BMN_VARIANTS)
            raise ValueError(f"variant is {variant!r}, expected {known}")
        anchors.num_durations(snippets, durations)
        self.channels, self.snippets, self.durations = channels, snippets, durations
        self.variant, self.best_anchor = variant, best_anchor
        self.sampling = (samples, samples_per_bin, boundary_ratio, variant)
        wide, narrow = MAP_HIDDEN

        def three(inputs: int) -> nn.Conv1d:
            return nn.Conv1d(inputs, HIDDEN, 3, padding=1, groups=4)

        self.x_1d_b = nn.Sequential(three(channels), nn.ReLU(), three(HIDDEN), nn.ReLU())
        self.x_1d_s, self.x_1d_e = (
            nn.Sequential(three(HIDDEN), nn.ReLU(), nn.Conv1d(HIDDEN, 1, 1), nn.Sigmoid())
            for _ in range(2)
        )
        self.x_1d_p = nn.Sequential(nn.Conv1d(HIDDEN, HIDDEN, 3, padding=1), nn.ReLU())
        released = (wide, HIDDEN, samples, 1, 1)
        self.x_3d_p = nn.Sequential(anchors.SampledLinear(HIDDEN, samples, 0, wide, released))
        self.x_2d_p = anchors.with_relus(
            nn.Conv2d(wide, narrow, 1),
            nn.Conv2d(narrow, narrow, 3, padding=1),
            nn.Conv2d(narrow, narrow, 3, padding=1),
            nn.Conv2d(narrow, 2, 1),
        ).append(nn.Sigmoid())

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Maps:
        """(B, C, L) float -> maps of L columns and min(durations, L) rows; the mask is not used."""
        anchors.check_features(features, self.channels)
        base = F.relu_(self.x_1d_b[2](F.relu_(self.x_1d_b[0](features))))
        heads = self.x_1d_s, self.x_1d_e
        logits = (head[2](F.relu_(head[0](base)))[:, 0] for head in heads)
        start, end = map(anchors.probabilities, logits)
        x = F.relu_(self.x_1d_p[0](base)).transpose(1, 2)
        snippets, layers = x.shape[1], [self.x_3d_p[0], *self.x_2d_p[:-1:2]]
        sampler = anchors.bmn_entries, snippets, *self.sampling
        cells = anchors.bmn_cells, snippets, self.variant  # of its own map
        scores = anchors.anchor_scores(x, None, layers, sampler, cells)
        if self.variant == "master":
            scores = duration_start(scores)
        durations = anchors.num_durations(snippets, self.durations)
        return Maps(scores[:, :, :durations], start, end)


def duration_start(scores: Tensor) -> Tensor:
    """(..., start, end) -> (..., duration, start): cell (d, s) is cell (s, s + d), modulo L.

    The wrap only concerns invalid cells; it pairs them one to one, so nothing is lost.
    """
    d, s = torch.arange(scores.shape[-1], device=scores.device).expand(2, -1)
    return scores[..., s, (s + d[:, None]) % len(s)]


def start_end(scores: Tensor) -> Tensor:
    """(..., duration, start) -> (..., start, end), end inclusive: inverse of `duration_start`."""
    if scores.shape[-2] != scores.shape[-1]:
        raise ValueError(f"map is {tuple(scores.shape[-2:])}, expected all durations (square)")
    s, e = torch.arange(scores.shape[-1], device=scores.device).expand(2, -1)
    return scores[..., (e - s[:, None]) % len(s), s[:, None]]
