"""A head together with the fixed statistics that standardise its input, in memory and on disk."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from lofi.config import HeadConfig
from lofi.files import load_tensors, save_tensors
from lofi.heads import build_head

FORMAT = "lofi-head-1"


class Standardise(nn.Module):
    """(x − mean) / std for every channel, fixed statistics; identity before `fit_to`."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1))
        self.register_buffer("std", torch.ones(channels, 1))

    def fit_to(self, features: Sequence[Tensor]) -> None:
        """Take the statistics of (C, T) feature tensors over videos and time."""
        stacked = torch.cat(list(features), dim=1).double()
        self.mean.copy_(stacked.mean(1, keepdim=True))
        self.std.copy_(stacked.std(1, keepdim=True).clamp_min(1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """(…, C, T) → the same shape."""
        return (x - self.mean) / self.std


class ScaledHead(nn.Module):
    """Input statistics and the head behind them, as stages 2 and 3 train them."""

    def __init__(
        self, config: HeadConfig, channels: int, classes: int | Sequence[str] = 0, seed: int = 0
    ):  # fmt: skip
        super().__init__()
        self.config, self.classes = config, classes  # see `build_head`
        self.standardise = Standardise(channels)
        self.head = build_head(config, channels, classes, seed)

    def forward(
        self, features: Tensor, mask: Tensor | None = None, draws: Tensor | None = None
    ) -> tuple:
        """(B, C, T) features of the encoder, (B, T) mask → outputs of the head.

        `draws` are those of `Head.draws` in training, for heads that use them here.
        """
        more = (draws,) if self.head.draws_in_forward else ()
        return self.head(self.standardise(features), mask, *more)

    def save(self, path: Path) -> None:
        """One safetensors file, with the head's settings in its header."""
        sizes = {"channels": str(self.head.channels), "classes": json.dumps(self.classes)}
        metadata = {"format": FORMAT, "head": json.dumps(asdict(self.config)), **sizes}
        save_tensors(path, self.state_dict(), metadata)

    @staticmethod
    def load(path: str | Path, config: HeadConfig) -> "ScaledHead":
        """What `save` wrote, in eval mode.

        Raises:
            ValueError: damaged, or a head of other settings than `config`.
        """
        tensors, metadata = load_tensors(path)
        try:
            if metadata.get("format") != FORMAT:
                raise ValueError(f"format {metadata.get('format')!r}, expected {FORMAT!r}")
            if (found := json.loads(metadata["head"])) != json.loads(json.dumps(asdict(config))):
                raise ValueError(f"trained as {found}, expected {asdict(config)}")
            classes = json.loads(metadata["classes"])
            scaled = ScaledHead(config, int(metadata["channels"]), classes)
            scaled.load_state_dict(tensors)
        except (ValueError, KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"{path}: does not fit this head ({reason})") from None
        return scaled.eval()
