"""Encoders and heads on their way between stages: which method is what, saving, loading, settings.

A method is a way to train the encoder ("random", "acp", "acp+", "c-lofi", "exact", …, or two side
by side, "acp+arrow"); "published" are features whose encoder is not ours. Each has a folder in the
run: <run>/<method>/{encoder,features,head,detections,metrics}.
"""

import dataclasses
import errno
import json
import logging
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lofi.config import Config, from_dict, preset
from lofi.data import Video, VideoError, VideoInfo, probe
from lofi.data.datasets import Datasets, open_datasets
from lofi.data.features import FeatureHeader, FeatureStore
from lofi.data.isolated import each
from lofi.encoders import (
    ENCODERS,
    build_encoder,
    encoder_hash,
    load_weights,
    pretrained_file,
    save_encoder,
)
from lofi.encoders.base import Encoder
from lofi.files import sha256, write_json
from lofi.heads.scaled import ScaledHead
from lofi.training.distributed import barrier, gather, is_first, share
from lofi.training.run_folder import RunFolder

log = logging.getLogger(__name__)

SCHEDULES = {
    "s": "s-lofi", "t": "t-lofi", "st": "st-lofi",
    "short": "short-c-lofi", "long": "c-lofi", "low": "low-lofi",
}  # fmt: skip
MODES = ("full", "exact", "sampled", "bank", "partial", "adapters", "frozen")
# Methods of stage 2: name → schedule and mode. At full fidelity a method is named as its mode; at
# low fidelity "full" and "exact" are the same training, so they share a name.
JOINT = {mode: ("full", mode) for mode in MODES}
JOINT |= {name: (schedule, "full") for schedule, name in SCHEDULES.items()}
JOINT |= {f"{n}-{mode}": (s, mode) for s, n in SCHEDULES.items() for mode in MODES[2:]}
FIRST_LESSONS = ("acp", "acp+", "icp", "arrow", "speed")  # stage 1
NO_FILE = "no video file"
MISSING = (NO_FILE, "no features in", os.strerror(errno.ENOENT))  # reasons


def lofi_method(config: Config) -> str:
    """The method name that stage 2 trains under this configuration, see `JOINT`."""
    schedule, mode = config.lofi.schedule, config.lofi.mode.name
    if schedule not in (known := [*SCHEDULES, "full"]):
        raise ValueError(f"unknown lofi.schedule {schedule!r}; known: {', '.join(known)}")
    wanted = schedule, "full" if mode == "exact" and schedule != "full" else mode
    name = next(name for name, trained_by in JOINT.items() if trained_by == wanted)
    return f"{name}@{config.lofi.trial}" if config.lofi.trial else name


def method_config(config: Config, method: str) -> Config:
    """`config` with schedule, mode and trial that train `method`, see `JOINT`; else ValueError."""
    base, _, trial = method.partition("@")
    if base not in JOINT or not (trial.isdigit() or method == base):
        known = ["random", "acp", "acp+", *SCHEDULES.values(), *MODES, "icp", "arrow", "speed"]
        listed = f"{', '.join(known)}, weights, c-lofi@2 (a trial), acp+arrow (side by side), …"
        raise ValueError(f"unknown method {method!r}; known: {listed}")
    schedule, name = JOINT[base]
    if base in SCHEDULES.values() and config.lofi.mode.name == "exact":
        name = "exact"
    mode = replace(config.lofi.mode, name=name)
    lofi = replace(config.lofi, schedule=schedule, mode=mode, trial=int(trial or 0))
    return replace(config, lofi=lofi)


def default_method(config: Config) -> str:
    """The method that a configuration trains: published features, or stage 2's."""
    return "published" if config.data.features.folder else lofi_method(config)


def command(
    stage: str, config: Config, run_dir: str | Path, method: str = "", more: str = ""
) -> str:
    """The command line that runs a stage of this run, for messages that send the user there.

    Settings come from the run's config.json; before there is one, as options."""
    saved = Path(run_dir) / "config.json"
    words = ["lofi", "train", stage, "--config", str(saved)]
    if not saved.is_file():
        words[3:] = ["--preset", config.preset, *_options(asdict(preset(config.preset)), config)]
    if stage == "lofi" and method not in ("", lofi_method(config)):
        wanted = method_config(config, method).lofi
        words += ["--lofi.schedule", wanted.schedule, "--lofi.mode.name", wanted.mode.name]
        words += ["--lofi.trial", str(wanted.trial)] if wanted.trial else []
    elif method and method != stage:
        words += ["--method", method]
    return shlex.join([*words, "--out", str(run_dir)]) + more


def _options(before: Mapping[str, Any], settings: Any, above: str = "") -> list[str]:
    """Command-line options for the fields of a dataclass that differ from `before`."""
    words = []
    for name, value in vars(settings).items():
        earlier, option = before.get(name), f"--{above}{name}".replace("_", "-")
        if dataclasses.is_dataclass(value):
            if name == "head" and value.kind != earlier["kind"]:
                words += [f"{option}.kind", value.kind]
                earlier = asdict(type(value)())
            words += _options(earlier, value, f"{above}{name}.")
        elif value == earlier:
            continue
        elif isinstance(value, bool):
            parents, leaf = above.replace("_", "-"), name.replace("_", "-")
            words.append(option if value else f"--{parents}no-{leaf}")
        else:
            words += [option, *map(str, value if isinstance(value, tuple) else [value])]
    return words


def head_dir(run_dir: str | Path, method: str, variant: str = "") -> Path:
    """Where a head of stage 3 lies; see `head_variant`."""
    return Path(run_dir) / method / "head" / variant


def head_variant(config: Config, variant: str) -> Config:
    """`config` with the changes that a variant's name lists, "lr=0.001,seed=3,kind=bmn".

    Variants that differ in their seed alone are trials of one, see `trial_of`.

    Names are fields of `head_training` and of the head's own settings, or `seed`. Variants of stage
    3 share encoder and features, and lie side by side in <method>/head/<variant>.
    ValueError for another name (it lists the known ones) or a value of another type.
    """
    for name, value in changes(variant):
        places = {"seed": {"seed": value}}
        places |= {key: {"head": {key: value}} for key in asdict(config.head)}
        places |= {k: {"head_training": {k: value}} for k in asdict(config.head_training)}
        if name not in places:
            known = ", ".join(["seed", *asdict(config.head_training), *asdict(config.head)])
            change = f"{name}={value}"
            raise ValueError(f"variant {change!r}: no such setting of stage 3; known: {known}")
        config = from_dict(Config, places[name], f"variant {name}={value}", config)
    return config


def changes(variant: str) -> Iterable[tuple[str, Any]]:
    """Names and values in the name of a variant, "lr=0.001,seed=3,kind=bmn"."""
    for change in filter(None, variant.split(",")):
        name, _, text = change.partition("=")
        try:
            yield name, json.loads(text)
        except json.JSONDecodeError:
            yield name, text


def trial_of(method: str, variant: str = "") -> str:
    """What a head is a trial of, "acp lr=0.001": method and variant without what only repeats."""
    named = ",".join(part for part in variant.split(",") if not part.startswith("seed="))
    return f"{method.partition('@')[0]} {named}".strip()


def counts(items: int, skipped: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What every result says of the videos or clips it was made from: how many, and which of them
    were left out, with the reason; `missing` of these have no file."""
    missing = sum(any(known in row["reason"] for known in MISSING) for row in skipped)
    return {"items": items, "skipped": list(skipped), "missing": missing}


def told(result: Mapping[str, Any]) -> str:
    """`counts` as a sentence."""
    skipped = result["skipped"]
    found = f"{len(skipped)} of {result['items']} videos or clips were left out"
    if skipped:
        first = f"first: {skipped[0]['item']}: {skipped[0]['reason']}"
        found += f", {result['missing']} of them without a file ({first})"
    if lacking := result.get("classes_missing"):
        found += f"; {lacking} are not in detect.shared_classes and got classes of our own"
    return found


def without_features(store: FeatureStore, videos: Iterable[Video]) -> list[dict[str, str]]:
    """The videos that a stage behind the features does without, and why."""
    absent = store.absent
    return [{"item": v.id, "reason": absent[v.id]} for v in videos if v.id in absent]


def load_head(config: Config, run_dir: str | Path, method: str, variant: str = "") -> ScaledHead:
    """Input statistics and head as stage 3 trained them, in eval mode.

    FileNotFoundError or ValueError, with the command, where it is untrained or of other settings.
    """
    more = f" --variant {shlex.quote(variant)}" if variant else ""
    path = head_dir(run_dir, method, variant) / "head.safetensors"
    if not path.is_file():
        cure = command("head", config, run_dir, method, more)
        raise FileNotFoundError(f"{path}: no trained head; run: {cure}")
    try:
        return ScaledHead.load(path, head_variant(config, variant).head)
    except ValueError as error:
        cure = command("head", config, run_dir, method, f"{more} --no-resume")
        raise ValueError(f"{error}; to train it anew: {cure}") from None


def encoder_path(run_dir: str | Path, method: str) -> Path:
    """Where a method's encoder lies."""
    return Path(run_dir) / method / "encoder" / "encoder.safetensors"


def components(method: str) -> tuple[str, ...]:
    """The two methods of a combination such as "acp+arrow"; a single one, "acp+" too, alone."""
    first, _, second = method.rpartition("+")
    return (first, second) if first and second else (method,)


def unshifted(name: str) -> str:
    """The image network that shares a TSM encoder's weights (ICP); ValueError if there is none."""
    plain = name.replace("tsm-r", "resnet-").replace("tsm-", "resnet-")
    if plain not in ENCODERS or not plain.startswith("resnet"):
        raise ValueError(f"{name} has no image form to pre-train (ICP); use a tsm-* encoder")
    return plain


def start_encoder(config: Config, name: str = "") -> Encoder:
    """The encoder that stage 1 starts from: `config.start_weights`, or random ones from the seed.

    Weights "pretrained" are those that an installed package carries (`pretrained_file`). `origin`
    on the encoder says where its weights come from; it is logged, and every later file made from
    them carries it (lofi.md question 30). `name` is the architecture, "" = configured.
    Errors as in `load_weights` and `pretrained_file`.
    """
    encoder = build_encoder(name or config.encoder, seed=config.seed)
    encoder.origin = {"weights": "random"}
    if config.normalisation:
        encoder.follow("", config.normalisation)
    if config.start_weights:
        packaged = config.weights == "pretrained"
        path = pretrained_file(encoder.name) if packaged else Path(config.weights)
        report = load_weights(encoder, path, normalisation=config.normalisation)
        encoder.origin = {
            "weights": path.name,
            "weights_source": encoder.source,
            "weights_licence": encoder.licence,
            "weights_sha256": sha256(path),
            "weights_layout": report.layout,
            "weights_matched": f"all {len(report.matched)} tensors",
            "weights_left_out": ", ".join(report.classifier) or "nothing",
        }
    log.info("%s starts from %s", encoder.name, encoder.origin)
    return encoder


class Concatenated(Encoder):
    """Two separate encoders on the same frames, features one after the other: (N, C1 + C2).

    Source: LoFi table 7, "ACP+Arrow" and "ACP+Speed". With `l2` each half is scaled to length 1.
    ValueError where the encoders want frames normalised differently.
    """

    def __init__(self, first: Encoder, second: Encoder, l2: bool = False):
        super().__init__()
        if (first.mean, first.std) != (second.mean, second.std):
            raise ValueError(f"{first.name} and {second.name} do not take the same frames")
        self.encoders = nn.ModuleList([first, second])
        self.name = f"{first.name}+{second.name}" + (" l2" if l2 else "")
        self.mean, self.std, self.l2 = first.mean, first.std, l2
        if first.convention or second.convention:
            self.convention = f"{first.convention}+{second.convention}"
        self.channels = first.channels + second.channels
        self.stages = ()  # it never trains

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(N, F, 3, S, S) normalised frames to (N, C1 + C2) snippet features."""
        parts = [encoder(frames) for encoder in self.encoders]
        return torch.cat([F.normalize(x) for x in parts] if self.l2 else parts, 1)


def standardises(config: Config, method: str) -> bool:
    """Whether a method's features are standardised per channel before the head: the halves of a
    combination have scales of their own, so "concat_norm" can ask for it as well."""
    combined = len(components(method)) > 1 and config.concat_norm == "standardise"
    return config.standardise or combined


def load_encoder(config: Config, run_dir: str | Path, method: str) -> tuple[Encoder, str]:
    """A method's encoder and its hash, which covers both encoders of a combination.

    `method`: a trained one; "random", untrained; "weights", as `config.weights` has them; or two
    joined by a plus. Without `config.icp_shift` "icp" is the network without temporal shift that
    its weights were trained in: behind a shift they see channels of other frames, which no image
    has taught them. FileNotFoundError (with the command) where it is not trained, ValueError where
    the file belongs to another architecture.
    """
    parts = components(method)
    if len(parts) > 1:
        pair = [load_encoder(config, run_dir, part)[0] for part in parts]
        encoder = Concatenated(*pair, l2=config.concat_norm == "l2")
    elif method in ("random", "weights"):
        if method == "weights" and not config.start_weights:
            raise ValueError("method weights: the setting weights names no file; give --weights")
        encoder = start_encoder(config if method == "weights" else replace(config, weights=""))
    elif method == "dual":
        encoder = _image_side(config, run_dir)
    else:
        encoder = _trained_encoder(config, run_dir, method)
    encoder.check_size(config.full.frames, config.full.pixels)
    return encoder, encoder_hash(encoder)


def _image_side(config: Config, run_dir: str | Path) -> Encoder:
    """The image encoder of the file `weak.clip`, or of the run's stand-in."""
    from lofi.encoders.dual import Clip, ImageSide, TinyDual

    path = Path(config.weak.clip) if config.weak.clip else encoder_path(run_dir, "dual")
    if not config.weak.clip and not path.is_file():
        cure = command("dual", config, run_dir)
        raise FileNotFoundError(f"{path}: no words for the images yet; run: {cure}")
    if TinyDual.wrote(path):
        return ImageSide(TinyDual.load(path), "tiny-dual")
    return ImageSide(Clip.load(path), "clip")


def _trained_encoder(config: Config, run_dir: str | Path, method: str) -> Encoder:
    path = encoder_path(run_dir, method)
    joint = method.partition("@")[0] in JOINT
    stage = "lofi" if joint else method
    if method not in FIRST_LESSONS:
        method_config(config, method)  # refuses a misspelling
    if not path.is_file():
        cure = command(stage, config, run_dir, method)
        raise FileNotFoundError(f"{path}: no {method} encoder in this run; train it first: {cure}")
    still = "icp" in (method, joint and config.lofi.start) and not config.icp_shift
    encoder = build_encoder(unshifted(config.encoder) if still else config.encoder, config.seed)
    try:
        report = load_weights(encoder, path, normalisation=config.normalisation)
    except ValueError as error:
        cure = command(stage, config, run_dir, method, " --no-resume")
        raise ValueError(f"{error}; to train it anew: {cure}") from None
    encoder.origin = {k: v for k, v in report.origin.items() if k.startswith("weights")}
    return encoder


def save_stage_encoder(config: Config, run: RunFolder, encoder, method: str) -> dict[str, Any]:
    """Write encoder.safetensors with its provenance; returns what result.json says about it."""
    extra = {"method": method, "run_hash": run.hash, "preset": config.preset, **encoder.origin}
    if is_first():
        save_encoder(encoder, run.folder / "encoder.safetensors", extra)
    return {"encoder": "encoder.safetensors", "sha256": encoder_hash(encoder), **encoder.origin}


def clip_settings(config: Config) -> dict[str, Any]:
    """What every encoder depends on: architecture, seed, and how clips are cut from videos."""
    data = config.data
    sampling = {key: getattr(data, key) for key in ("frame_stride", "crop_ratio", "resample_fps")}
    sampling |= {"squeeze": True} if data.squeeze else {}
    sampling |= {"normalisation": config.normalisation} if config.normalisation else {}
    return {"seed": config.seed, "encoder": config.encoder, "pixels": config.full.pixels} | sampling


def video_settings(config: Config) -> dict[str, Any]:
    """What features of whole videos depend on: clips, and where their snippets lie."""
    where = {key: getattr(config.data, key) for key in ("rule", "window_stride")}
    return clip_settings(config) | where | {"full": asdict(config.full)}


def feature_header(config: Config, encoder: Encoder, sha256: str) -> FeatureHeader:
    """What features of this encoder and configuration have to have been made of."""
    data, full = config.data, config.full
    names = ("frame_stride", "rule", "crop_ratio", "resample_fps", "window_stride")
    found = {name: getattr(data, name) for name in names} | asdict(full)
    if data.squeeze:
        found["squeeze"] = 1
    if config.amp != "fp32":
        found["amp"] = config.amp
    if data.window_stride:  # as many snippets as the video is long
        del found["snippets"]
    name = f"{encoder.name} ({encoder.convention})" if encoder.convention else encoder.name
    return FeatureHeader(encoder=name, encoder_sha256=sha256, **found)


def open_features(config: Config, run_dir: str | Path, method: str, data: Datasets) -> FeatureStore:
    """The features of a method, its own or published ones, for every stage behind them.

    FileNotFoundError or ValueError, with the command that helps: missing, incomplete, or others.
    """
    if method == "published":
        if not config.data.features.folder:
            raise ValueError("method published: set data.features.folder to the features' folder")
        return FeatureStore.published(config.data.features, [*data.train, *data.test])
    encoder, sha256 = load_encoder(config, run_dir, method)
    cure = f"run: {command('features', config, run_dir, method)}"
    header = feature_header(config, encoder, sha256)
    return FeatureStore.extracted(Path(run_dir) / method / "features", header, cure)


def run_data(config: Config, run_dir: str | Path) -> Datasets:
    """The data of a run; of several processes the first renders a toy world, the others wait."""
    if not is_first():
        barrier()
    data = open_datasets(config.data, config.seed, run_dir)
    if is_first():
        barrier()
    return data


def video_infos(config: Config, videos: Sequence[Video]) -> list[VideoInfo | VideoError]:
    """What `probe` finds in every video, or why it cannot be read.

    Every process looks into its share of the files, several at a time.
    """
    mine = share(len(videos))
    seen = zip(mine, each(probe, [videos[i].path for i in mine], config.data.workers))
    found = dict(sum(gather([*seen]), []))
    return [found[i] for i in range(len(videos))]


def write_run_config(config: Config, run_dir: str | Path) -> None:
    """Keep the full configuration in the run's folder, for `lofi detect` and for readers."""
    if is_first():
        write_json(Path(run_dir) / "config.json", asdict(config))
