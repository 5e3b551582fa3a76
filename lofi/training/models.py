"""Encoders and heads on their way between stages: building, saving, loading, input statistics."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lofi.config import Config, HeadConfig
from lofi.encoders import build_encoder, encoder_hash, load_weights, save_encoder
from lofi.files import save_tensors, write_json
from lofi.heads import BMN, GTAD
from lofi.training.loop import RunFolder

LOFI_METHODS = {
    "s": "s-lofi", "t": "t-lofi", "st": "st-lofi",
    "short": "short-c-lofi", "long": "c-lofi", "low": "low-lofi",
}  # fmt: skip


def lofi_method(config: Config) -> str:
    """The method name that stage 2 trains under this configuration."""
    if config.lofi.schedule not in LOFI_METHODS:
        known = ", ".join(LOFI_METHODS)
        raise ValueError(f"unknown lofi.schedule {config.lofi.schedule!r}; known: {known}")
    return LOFI_METHODS[config.lofi.schedule]


def encoder_path(run_dir: str | Path, method: str) -> Path:
    """Where a method's encoder lies."""
    return Path(run_dir) / method / "encoder" / "encoder.safetensors"


class Standardise(nn.Module):
    """(x − mean) / std for every channel, fixed statistics; identity before `fit_to`."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1))
        self.register_buffer("std", torch.ones(channels, 1))

    def fit_to(self, features: Sequence[torch.Tensor]) -> None:
        """Take the statistics of (C, L) feature tensors over videos and time."""
        stacked = torch.cat(list(features), dim=1).double()
        self.mean.copy_(stacked.mean(1, keepdim=True))
        self.std.copy_(stacked.std(1, keepdim=True).clamp_min(1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


def label_rule(head: HeadConfig) -> str:
    """Which windows the start and end labels of a head use; see `lofi.heads.targets`."""
    return "bmn" if head.kind == "bmn" else head.variant


def build_head(head: HeadConfig, channels: int, snippets: int, seed: int) -> nn.Module:
    """A freshly initialised head; framework-default initialisation from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if head.kind == "bmn":
            return BMN(channels, snippets)
        return GTAD(
            channels,
            snippets,
            variant=head.variant,
            context_resolution=head.context_resolution,
            resolution=head.resolution,
            hidden=head.hidden,
            paths=head.paths,
            map_hidden=head.map_hidden,
        )


def save_head(
    path: Path, head: nn.Module, config: HeadConfig, standardise: Standardise | None
) -> None:
    """Write a head and its input statistics as one safetensors file."""
    parts = {f"head.{k}": v for k, v in head.state_dict().items()}
    if standardise is not None:
        parts |= {f"standardise.{k}": v for k, v in standardise.state_dict().items()}
    metadata = {"format": "lofi-head-1", "head": json.dumps(asdict(config))}
    save_tensors(path, parts, metadata)


def load_head(config: Config, path: str | Path, channels: int) -> nn.Sequential:
    """Standardise → head as trained by stage 3, in eval mode.

    Raises:
        FileNotFoundError: stage 3 has not run. ValueError: the file belongs to another head.
    """
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no trained head; run: lofi train head first")
    try:
        tensors = load_file(path)
        standardise = Standardise(channels)
        head = build_head(config.head, channels, config.full.snippets, seed=0)
        standardise.load_state_dict(_part(tensors, "standardise.") or standardise.state_dict())
        head.load_state_dict(_part(tensors, "head."))
    except Exception as error:  # safetensors and torch raise their own kinds
        first = str(error).splitlines()[-1].strip()
        raise ValueError(f"{path}: does not fit this head ({first}); retrain stage head") from error
    return nn.Sequential(standardise, head).eval()


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def load_encoder(config: Config, run_dir: str | Path, method: str) -> tuple[nn.Module, str]:
    """A method's encoder and its hash; "random" is the untrained one that ACP starts from.

    Raises:
        FileNotFoundError: the method's encoder has not been trained; names the command.
        ValueError: the file belongs to another architecture.
    """
    encoder = build_encoder(config.encoder, seed=config.seed)
    if method != "random":
        path = encoder_path(run_dir, method)
        if not path.is_file():
            stage = "lofi" if method.endswith("lofi") else method
            raise FileNotFoundError(
                f"{path}: no {method} encoder in this run; train it first: "
                f"lofi train {stage} --preset {config.preset} --out {run_dir}"
            )
        load_weights(encoder, path)
    return encoder, encoder_hash(encoder)


def save_stage_encoder(config: Config, run: RunFolder, encoder, method: str) -> dict[str, Any]:
    """Write encoder.safetensors with its provenance; returns what result.json says about it."""
    extra = {"method": method, "run_hash": run.hash, "preset": config.preset}
    save_encoder(encoder, run.folder / "encoder.safetensors", extra)
    return {"encoder": "encoder.safetensors", "sha256": encoder_hash(encoder)}


def common_settings(config: Config) -> dict[str, Any]:
    """Settings on which every stage's result depends; speed settings and paths are left out."""
    data = asdict(config.data)
    sampling = {key: data[key] for key in ("frame_stride", "rule", "crop_ratio")}
    return {
        "seed": config.seed,
        "encoder": config.encoder,
        "full": asdict(config.full),
        "sampling": sampling,
    }


def write_run_config(config: Config, run_dir: str | Path) -> None:
    """Keep the full configuration in the run's folder, for `lofi detect` and for readers."""
    write_json(Path(run_dir) / "config.json", asdict(config))
