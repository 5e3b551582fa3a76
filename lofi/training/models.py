"""Encoders and heads on their way between stages: building, saving, loading, input statistics."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lofi.config import Config, HeadConfig
from lofi.data.datasets import Datasets, open_datasets
from lofi.encoders import ENCODERS, build_encoder, encoder_hash, load_weights, save_encoder
from lofi.encoders.base import Encoder
from lofi.files import save_tensors, sha256, write_json
from lofi.heads import BMN, GTAD
from lofi.training.distributed import first_alone, is_first
from lofi.training.run_folder import RunFolder

log = logging.getLogger(__name__)

LOFI_METHODS = {
    "s": "s-lofi", "t": "t-lofi", "st": "st-lofi",
    "short": "short-c-lofi", "long": "c-lofi", "low": "low-lofi",
}  # fmt: skip


FULL_METHODS = ("full", "exact", "sampled", "partial", "frozen")  # modes at full fidelity


def lofi_method(config: Config) -> str:
    """The method name that stage 2 trains under this configuration.

    At full fidelity it is the mode's name. At low fidelity "full" and "exact" are the same
    training, so they have the same name; another mode is appended: "c-lofi-sampled".
    """
    schedule, mode = config.lofi.schedule, config.lofi.mode.name
    if schedule == "full":
        return mode
    if schedule not in LOFI_METHODS:
        known = ", ".join([*LOFI_METHODS, "full"])
        raise ValueError(f"unknown lofi.schedule {schedule!r}; known: {known}")
    return LOFI_METHODS[schedule] + ("" if mode in ("full", "exact") else f"-{mode}")


def is_joint(method: str) -> bool:
    """True for the methods whose encoder stage 2 trains."""
    base = method
    for mode in FULL_METHODS:
        base = base.removesuffix(f"-{mode}")
    return method in FULL_METHODS or base in LOFI_METHODS.values()


def method_config(config: Config, method: str) -> Config:
    """`config` with the LoFi schedule and mode that train `method`; see `lofi_method`.

    Raises:
        ValueError: not a method of stage 2; lists the known ones.
    """
    schedules = {name: key for key, name in LOFI_METHODS.items()}
    mode = config.lofi.mode
    if method in FULL_METHODS:
        schedule, mode = "full", replace(mode, name=method)
    elif method in schedules:
        schedule = schedules[method]
        mode = mode if mode.name == "exact" else replace(mode, name="full")
    elif is_joint(method):
        base, _, name = method.rpartition("-")
        schedule, mode = schedules[base], replace(mode, name=name)
    else:
        known = ["random", "acp", "acp+", *schedules, *FULL_METHODS, "icp", "arrow", "speed"]
        raise ValueError(
            f"unknown method {method!r}; known: {', '.join(known)}, weights, "
            "or two of them side by side, such as acp+arrow"
        )
    return replace(config, lofi=replace(config.lofi, schedule=schedule, mode=mode))


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
            return BMN(channels, snippets, head.durations or None)
        return GTAD(
            channels,
            snippets,
            head.durations or None,
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


def components(method: str) -> tuple[str, ...]:
    """The two methods of a combination such as "acp+arrow"; a single method alone.

    "acp+" is a method of its own (it trains on); a combination names something behind the plus.
    """
    first, _, second = method.rpartition("+")
    return (first, second) if first and second else (method,)


def unshifted(name: str) -> str:
    """The image network without temporal shift that shares a TSM encoder's weights (ICP).

    Raises:
        ValueError: there is none (R(2+1)D has no image form).
    """
    plain = name.replace("tsm-r", "resnet-").replace("tsm-", "resnet-")
    if plain not in ENCODERS or plain.startswith("r2plus1d"):
        raise ValueError(f"{name} has no image form to pre-train (ICP); use a tsm-* encoder")
    return plain


def start_encoder(config: Config, name: str = "") -> Encoder:
    """The encoder that stage 1 starts from: `config.weights`, or random weights from the seed.

    `origin` on the encoder says where its weights come from; it is logged, and every later file
    made from them carries it (lofi.md question 30).

    Args:
        name: the architecture, "" = the configured one.
    Raises:
        FileNotFoundError, ValueError: no such file, or weights of another encoder.
    """
    encoder = build_encoder(name or config.encoder, seed=config.seed)
    encoder.origin = {"weights": "random"}
    if config.weights:
        report = load_weights(encoder, config.weights)
        encoder.origin = {
            "weights": Path(config.weights).name,
            "weights_sha256": sha256(config.weights),
            "weights_layout": report.layout,
            "weights_matched": f"all {len(report.matched)} tensors",
            "weights_left_out": ", ".join(report.classifier) or "nothing",
        }
    log.info("%s starts from %s", encoder.name, encoder.origin)
    return encoder


def _origins(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key.startswith("weights")}


class Concatenated(Encoder):
    """Two separate encoders on the same frames, features one after the other: (N, C1 + C2).

    Source: LoFi table 7, "ACP+Arrow" and "ACP+Speed", which cost twice the encoding.

    Args:
        l2: scale each half to length 1, so that neither outweighs the other.
    Raises:
        ValueError: the encoders want frames normalised differently.
    """

    def __init__(self, first: Encoder, second: Encoder, l2: bool = False):
        super().__init__()
        if (first.mean, first.std) != (second.mean, second.std):
            raise ValueError(f"{first.name} and {second.name} do not take the same frames")
        self.encoders = nn.ModuleList([first, second])
        self.name = f"{first.name}+{second.name}" + (" l2" if l2 else "")
        self.mean, self.std, self.l2 = first.mean, first.std, l2
        self.channels = first.channels + second.channels
        self.stages = ()  # it never trains

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(N, F, 3, S, S) normalised frames to (N, C1 + C2) snippet features."""
        parts = [encoder(frames) for encoder in self.encoders]
        return torch.cat([F.normalize(x) for x in parts] if self.l2 else parts, 1)


def standardises(config: Config, method: str) -> bool:
    """Whether a method's features are standardised per channel before the head.

    The halves of a combination have scales of their own, so "concat_norm" asks for it even where
    the configuration does not.
    """
    combined = len(components(method)) > 1 and config.concat_norm == "standardise"
    return config.standardise or combined


def load_encoder(config: Config, run_dir: str | Path, method: str) -> tuple[Encoder, str]:
    """A method's encoder and its hash, which covers both encoders of a combination.

    Args:
        method: a trained one ("acp", "icp", "c-lofi", …); "random", untrained; "weights", as
            `config.weights` has them; or two joined by a plus ("acp+arrow"). "icp" is the network
            without temporal shift that its weights were trained in, for features as well: behind
            a shift they would see channels of other frames, which no image has taught them.
    Raises:
        FileNotFoundError: the method's encoder has not been trained; names the command.
        ValueError: the file belongs to another architecture.
    """
    parts = components(method)
    if len(parts) > 1:
        pair = [load_encoder(config, run_dir, part)[0] for part in parts]
        encoder = Concatenated(*pair, l2=config.concat_norm == "l2")
    elif method in ("random", "weights"):
        if method == "weights" and not config.weights:
            raise ValueError("method weights: the setting weights names no file; give --weights")
        encoder = start_encoder(config if method == "weights" else replace(config, weights=""))
    else:
        encoder = _trained_encoder(config, run_dir, method)
    return encoder, encoder_hash(encoder)


def _trained_encoder(config: Config, run_dir: str | Path, method: str) -> Encoder:
    path = encoder_path(run_dir, method)
    if not path.is_file():
        stage = "lofi" if is_joint(method) else method
        raise FileNotFoundError(
            f"{path}: no {method} encoder in this run; train it first: "
            f"lofi train {stage} --preset {config.preset} --out {run_dir}"
        )
    still = method == "icp" or (is_joint(method) and config.lofi.start == "icp")
    encoder = build_encoder(unshifted(config.encoder) if still else config.encoder, config.seed)
    encoder.origin = _origins(load_weights(encoder, path).origin)
    return encoder


def save_stage_encoder(config: Config, run: RunFolder, encoder, method: str) -> dict[str, Any]:
    """Write encoder.safetensors with its provenance; returns what result.json says about it."""
    extra = {"method": method, "run_hash": run.hash, "preset": config.preset, **encoder.origin}
    if is_first():
        save_encoder(encoder, run.folder / "encoder.safetensors", extra)
    return {"encoder": "encoder.safetensors", "sha256": encoder_hash(encoder), **encoder.origin}


def common_settings(config: Config) -> dict[str, Any]:
    """Settings on which every stage's result depends; speed settings and paths are left out."""
    data = asdict(config.data)
    sampling = {key: data[key] for key in ("frame_stride", "rule", "crop_ratio", "resample_fps")}
    if config.data.window_stride:
        sampling["window_stride"] = config.data.window_stride
    return {
        "seed": config.seed,
        "encoder": config.encoder,
        "full": asdict(config.full),
        "sampling": sampling,
    }


def run_data(config: Config, run_dir: str | Path) -> Datasets:
    """The data of a run; of several processes the first renders a toy world, the others wait."""
    with first_alone():
        return open_datasets(config.data, config.seed, run_dir)


def write_run_config(config: Config, run_dir: str | Path) -> None:
    """Keep the full configuration in the run's folder, for `lofi detect` and for readers."""
    if is_first():
        write_json(Path(run_dir) / "config.json", asdict(config))
