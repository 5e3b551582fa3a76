"""Heads of the self-supervised pretext tasks; thrown away after training, like ACP's classifier.

Sources: Wei et al., "Learning and Using the Arrow of Time", CVPR 2018 (T-CAM); Benaim et al.,
"SpeedNet", CVPR 2020. N snippets, F frames, C channels, h × w the encoder's last maps.
"""

import torch
from torch import Tensor, nn

DROPOUT = 0.5


class ArrowHead(nn.Module):
    """T-CAM: the maps of the two halves of the frames side by side, so that order is visible.

    Args:
        channels: C; the two convolutions have 2 C, the halves one after the other.
    """

    def __init__(self, channels: int):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [
                nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(2 * channels),
                nn.ReLU(inplace=True),
                nn.Dropout2d(DROPOUT),
            ]
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Conv2d(2 * channels, 1, 1)

    def heat(self, maps: Tensor) -> Tensor:
        """Where the picture looks reversed: (N, F, C, h, w) → (N, h, w), whose mean is the logit.

        Raises:
            ValueError: one frame, which has no direction.
        """
        frames = maps.shape[1]
        if frames < 2:
            raise ValueError(f"{frames} frame has no direction in time; use at least 2")
        halves = maps[:, : frames // 2].mean(1), maps[:, frames // 2 :].mean(1)
        return self.classifier(self.layers(torch.cat(halves, 1)))[:, 0]

    def forward(self, maps: Tensor) -> Tensor:
        """(N, F, C, h, w) to (N,) logits, positive for reversed clips."""
        return self.heat(maps).mean((1, 2))


class AverageHead(nn.Module):
    """One logit a frame, averaged: order is visible only through the encoder's temporal shift."""

    def __init__(self, channels: int):
        super().__init__()
        self.classifier = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(channels, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """(N, F, C, h, w) to (N,) logits, positive for reversed clips."""
        return self.classifier(maps.mean((3, 4))).mean((1, 2))


class SpeedHead(nn.Module):
    """Largest value over space, mean over the frames, one logit."""

    def __init__(self, channels: int):
        super().__init__()
        self.classifier = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(channels, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """(N, F, C, h, w) to (N,) logits, positive for sped-up clips."""
        return self.classifier(maps.amax((3, 4)).mean(1))[:, 0]
