"""Two branches that teach each other from video labels alone (Ju et al., CVPR 2023; specification
in their supplement, the rest ours, see `lofi.config.WeakConfig`).

CBP sees features of a classifier and misses frames; VLP sees features of an image-text encoder and
fires too often. Warm-up: CBP by multiple-instance learning. B step: VLP learns background that CBP
is sure of. F step: CBP learns foreground that VLP is sure of *and* CBP's own background: with
foreground alone "everything is foreground" is optimal, and localization collapses (`zeros=none`).
B videos, K classes, T steps, C channels.
"""

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lofi.config import Config, WeakConfig, from_dict
from lofi.data import read_annotations
from lofi.data.datasets import Datasets, fingerprint
from lofi.data.features import Features, FeatureStore
from lofi.encoders.dual import DualEncoder, TinyDual, clean_name, prompted_text
from lofi.files import load_tensors, save_tensors, sha256
from lofi.heads.scaled import Standardise
from lofi.training import methods
from lofi.training.distributed import is_first, share
from lofi.training.loop import Batches, OnStep, Training, backward, fit, generator_for
from lofi.training.run_folder import RunFolder, read_metrics

log = logging.getLogger(__name__)
HELD_OUT = 5  # every fifth training video judges classification and is not trained on


class Output(NamedTuple):
    """What a branch finds in a batch."""

    probability: Tensor  # (B, K, T)
    video: Tensor  # (B, K), probability of the class in the video
    features: Tensor  # (B, W, T), what the contrast is about


class CBP(nn.Module):
    """Transformer pyramid with a convolutional decoder on (B, C, T); padding changes nothing."""

    language = False  # which of a pair's features it sees

    def __init__(self, channels: int, classes: int, setting: WeakConfig):
        super().__init__()
        width = setting.width
        self.standardise = Standardise(channels)
        self.embed, self.norm = nn.Conv1d(channels, width, 3, padding=1), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(_layer(width, setting.heads) for _ in range(setting.levels))
        convolutions = (nn.Conv1d(width, width, 3, padding=1) for _ in range(2))
        self.decoder = nn.ModuleList([*convolutions, nn.Conv1d(width, classes, 1)])

    def forward(self, x: Tensor, mask: Tensor) -> Output:
        valid, steps = mask[:, None], x.shape[2]
        x = self.embed(self.standardise(x) * valid).transpose(1, 2)
        x = F.gelu(self.norm(x)).transpose(1, 2)
        spare = -steps % 2 ** (len(self.blocks) - 1)  # so that every level is half the one below
        x, inside, whole = F.pad(x, (0, spare)), F.pad(valid, (0, spare)), 0.0
        for level, block in enumerate(self.blocks):
            if level:
                x = F.max_pool1d(x.masked_fill(~inside, -torch.inf), 2)
                inside = F.max_pool1d(inside.float(), 2) > 0
            x = x.masked_fill(~inside, 0)
            x = block(x.transpose(1, 2), src_key_padding_mask=~inside[:, 0]).transpose(1, 2)
            size = {"size": steps + spare, "mode": "linear"}
            share = F.interpolate(inside.to(x), **size).clamp(min=1e-6)  # of what lies inside
            whole = whole + F.interpolate(x * inside, **size) / share
        y = features = whole[..., :steps] * valid
        for convolution in self.decoder[:-1]:
            y = F.relu(convolution(y)) * valid
        logits = self.decoder[-1](y)
        return Output(logits.sigmoid(), top_mean(logits, mask).sigmoid(), features)


class VLP(nn.Module):
    """Prompts and temporal layers on frozen image and text features, (B, d, T).

    `visible` (K, K) says which classes the text side cannot tell apart (`prob="pair"`).
    """

    language = True

    def __init__(self, dual: DualEncoder, names: Sequence[str], setting: WeakConfig):
        super().__init__()
        self.frozen, self.names, self.setting = [dual], tuple(names), setting  # a list: no child
        self.tokens = dual.tokenize(names)
        width = dual.token_embed(torch.tensor(dual.ends)).shape[1]
        self.prompts = nn.Parameter(0.01 * torch.randn(2 * setting.prompts, width))
        self.places = nn.Parameter(0.01 * torch.randn(setting.steps, dual.d))
        layers = [_layer(dual.d, setting.heads) for _ in range(setting.layers)]
        self.layers = nn.ModuleList(layers)
        for name, p in self.layers.named_parameters():  # it begins near the frozen features
            if p.dim() > 1:
                nn.init.normal_(p, 0, 0.01)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
        self.background = nn.Parameter(0.01 * torch.randn(dual.d))
        first = [clean_name(name).split()[0] for name in names]
        same = torch.tensor([[float(a == b) for b in first] for a in first])
        self.register_buffer("visible", same, persistent=False)
        prompted_text(dual, self.tokens, self.prompts.detach(), names)  # refuses long names now

    def forward(self, x: Tensor, mask: Tensor) -> Output:
        x = x.transpose(1, 2)
        if len(self.layers):
            x = x + self.places[: x.shape[1]]
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=~mask)
        dual = self.frozen[0].to(x.device)
        text = prompted_text(dual, self.tokens, self.prompts, self.names)
        text = F.normalize(torch.cat([text, self.background[None]]), dim=1)
        near = torch.einsum("btd,kd->bkt", F.normalize(x, dim=2), text) / self.setting.temperature
        names, background = near.split([len(self.names), 1], 1)
        if self.setting.prob == "sigmoid":
            found = torch.sigmoid(names - background)
        elif self.setting.prob == "softmax_bg":
            found = near.softmax(1)[:, :-1]
        else:
            found = names.softmax(1)
            if self.setting.prob == "pair":
                found = torch.einsum("bkt,jk->bjt", found, self.visible)
        return Output(found, top_mean(found, mask), x.transpose(1, 2))


def _layer(width: int, heads: int) -> nn.Module:
    if width % heads:
        raise ValueError(f"weak.heads {heads} does not divide {width} channels; set another")
    return nn.TransformerEncoderLayer(
        width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
    )


def top_mean(x: Tensor, mask: Tensor, divisor: int = 8) -> Tensor:
    """(B, K, T) to the mean of the largest max(1, ⌊valid / 8⌋) values of each class, (B, K)."""
    count = (mask.sum(1) // divisor).clamp(min=1)
    ordered = x.masked_fill(~mask[:, None], -torch.inf).sort(2, descending=True).values
    kept = torch.arange(x.shape[2], device=x.device) < count[:, None]
    return ordered.masked_fill(~kept[:, None], 0).sum(2) / count[:, None]


def stretched(curves: Tensor, mask: Tensor) -> Tensor:
    """Each curve (B, K, T) to [0, 1] by its least and largest valid value."""
    low = curves.masked_fill(~mask[:, None], torch.inf).amin(2, keepdim=True)
    high = curves.masked_fill(~mask[:, None], -torch.inf).amax(2, keepdim=True)
    return ((curves - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)


def pseudo_labels(
    fore: Tensor | None, back: Tensor | None, present: Tensor, mask: Tensor, setting: WeakConfig
) -> Tensor:
    """1 foreground, 0 background, -1 ignored; (B, K, T) float.

    Args:
        fore, back: (B, K, T) probabilities of the teacher of ones and of zeros; None: there is no
            such teacher.
        present: (B, K) bool, the classes of the video. Absent classes are background everywhere.
    A frame that both teachers claim is ignored, as are steps behind the end of the video.
    """
    shape = (*present.shape, mask.shape[1])
    scaled = [
        None if x is None else stretched(x, mask) if setting.stretch else x for x in (fore, back)
    ]
    none = torch.zeros(shape, dtype=torch.bool, device=mask.device)
    ones = none if fore is None else scaled[0] > setting.delta_high
    zeros = none if back is None else scaled[1] < setting.delta_low
    labels = torch.full(shape, -1.0, device=mask.device)
    labels[ones & ~zeros] = 1.0
    labels[zeros & ~ones] = 0.0
    labels = torch.where(present[..., None], labels, 0.0)
    return labels.masked_fill(~mask[:, None], -1.0)


def distillation(probability: Tensor, labels: Tensor, present: Tensor) -> Tensor:
    """(B,) cross-entropy with ones plus that with zeros, each a mean of its own in each video."""
    p, total = probability.clamp(1e-6, 1 - 1e-6), 0.0
    for value, cost in ((1.0, -p.log()), (0.0, -(1 - p).log())):
        chosen = ((labels == value) & present[..., None]).to(p)
        total = total + (cost * chosen).sum((1, 2)) / chosen.sum((1, 2)).clamp(min=1)
    return total


def contrast(features: Tensor, labels: Tensor, present: Tensor, temperature: float) -> Tensor:
    """(B,) InfoNCE inside each video: confident foreground together, apart from background.

    A video without both kinds costs nothing.
    """
    x = F.normalize(features, dim=1)
    costs = []
    for video, own, classes in zip(x, labels, present):
        ones = ((own == 1) & classes[:, None]).any(0)
        zeros = ((own == 0) | ~classes[:, None]).all(0)
        if ones.sum() < 2 or not zeros.any():
            costs.append(video.sum() * 0)
            continue
        near = video[:, ones].T @ video / temperature
        itself = torch.eye(int(ones.sum()), dtype=torch.bool, device=x.device)
        negatives = near[:, zeros].logsumexp(1, keepdim=True)
        cost = torch.logaddexp(near[:, ones], negatives) - near[:, ones]
        costs.append(cost[~itself].mean())
    return torch.stack(costs)


class Pair(NamedTuple):
    """One video's features of both branches on one time axis, and its classes."""

    classification: Features  # (C, T)
    language: Tensor  # (d, T)
    present: Tensor  # (K,) bool


def on_axis(video_id: str, features: Features, other: Features) -> Tensor:
    """The columns of `other` that lie nearest to the steps of `features`; (d, T).

    ValueError: the two stores end at different times.
    """
    grid, more = features.grid, other.grid
    slack = 0.05 * grid.covered_s + grid.step_s + more.step_s
    if abs(grid.covered_s - more.covered_s) > slack:
        found = f"{grid.steps} steps cover {grid.covered_s:.1f} s in data.features, but "
        found += f"{more.steps} cover {more.covered_s:.1f} s in weak.frames"
        cure = "set stride, window and fps of both, or extract one of them again"
        raise ValueError(f"video {video_id}: {found}; {cure}")
    centres = grid.start_s + (np.arange(grid.steps) + 0.5) * grid.step_s
    columns = np.floor((centres - more.start_s) / more.step_s + 1e-6).astype(int)
    return other.values[:, np.clip(columns, 0, more.steps - 1)]


def paired(config: Config, run_dir: str | Path, data: Datasets) -> tuple[dict[str, Pair], str]:
    """Both stores of every training and test video, and a hash of what made them.

    ValueError: a training video without label, a class without training videos, a store that is
    not named, or other lengths in the two stores.
    """
    names = {name: i for i, name in enumerate(data.classes)}
    taught = {segment.label for video in data.train for segment in video.segments}
    for video in read_annotations(data.annotations):  # other stages leave these out
        if video.subset == config.data.train_subset and not video.segments:
            cure = "give it one, or take it out of the training subset"
            raise ValueError(f"{data.annotations}: training video {video.id} has no label; {cure}")
    if lost := [name for name in data.classes if name not in taught]:
        found = f"class {lost[0]!r} has no training video ({len(lost)} of {len(names)} classes)"
        raise ValueError(f"{data.annotations}: {found}; add some, or take it out of the test set")
    own = not config.data.features.folder
    if not own and not config.weak.frames.folder:
        raise ValueError("set weak.frames.folder to the features of single frames (CLIP)")
    videos = [*data.train, *data.test]
    method = config.weak.features if own else "published"
    first = methods.open_features(config, run_dir, method, data)
    usable = {video.id for video in first.require(videos)}
    try:
        if config.weak.frames.folder:
            second = FeatureStore.published(config.weak.frames, videos)
        else:
            second = methods.open_features(config, run_dir, "dual", data)
        usable &= {video.id for video in second.require(videos)}
        frames = {video.id: second[video.id] for video in videos if video.id in usable}
    except (ValueError, FileNotFoundError) as error:  # the reader knows one place of its settings
        raise type(error)(str(error).replace("data.features", "weak.frames")) from None
    found: dict[str, Pair] = {}
    for video in (video for video in videos if video.id in usable):
        present = torch.zeros(len(names), dtype=torch.bool)
        present[[names[segment.label] for segment in video.segments]] = True
        features = first[video.id]
        found[video.id] = Pair(features, on_axis(video.id, features, frames[video.id]), present)
    # Without a stride features are stretched over their video, whatever their number.
    steps = {id: (pair.classification.grid.steps, frames[id].grid.steps)
             for id, pair in found.items()}  # fmt: skip
    usual = float(np.median([more / own for own, more in steps.values()]))
    for id, (own, more) in steps.items():
        if abs(more - usual * own) > 1 + 0.05 * usual * own:
            where = f"video {id}: {own} steps in data.features, {more} in weak.frames"
            raise ValueError(f"{where}, elsewhere {usual:g} for each; extract one of them again")
    return found, f"{first.identity} {second.identity}"


def open_dual(config: Config, run_dir: str | Path, classes: Sequence[str], d: int) -> DualEncoder:
    """CLIP's text side from the file `weak.clip`, the run's stand-in (stage `dual`), or, for frame
    features of others without such a file, untrained words."""
    if config.weak.clip or not config.weak.frames.folder:
        dual = methods.load_encoder(config, run_dir, "dual")[0].dual
    else:
        log.warning("weak.clip names no file: words are untrained, no substitute for CLIP's text")
        words = sorted({word for name in classes for word in clean_name(name).split()})
        dual = TinyDual(None, words, config.seed, d).requires_grad_(False).eval()
    if dual.d != d:
        raise ValueError(f"weak.frames has {d} channels, the text side of weak.clip {dual.d}")
    return dual


WARM_UP = ("steps", "width", "heads", "levels", "warm_up", "features", "frames")
F_ONLY = ("zeros", "init")
INFERENCE = ("round", "score", "thresholds", "theta_cls", "theta_loc", "ensemble", "clip")


def varied(config: Config, variant: str) -> Config:
    """`config` with the settings of the B and F step that a variant names, "zeros=none,prompts=0".

    ValueError for other settings. Variants lie side by side in a run and share the warm-up.
    """
    for name, value in methods.changes(variant):
        if name in WARM_UP or name == "round":
            raise ValueError(f"variant {variant!r}: {name} is not of the B or F step alone")
        config = from_dict(Config, {"weak": {name: value}}, f"variant {variant}", config)
    return config


def stage_dir(run_dir: str | Path, stage: str, number: int = 1, variant: str = "") -> Path:
    """Where a branch lies: "warm-up", or "b" and "f" of a round counted from 1.

    What only the F step depends on leaves the first B step as it is.
    """
    if stage == "warm-up":
        return Path(run_dir) / "weak" / stage
    if stage == "b" and number == 1:
        changes = variant.split(",")
        variant = ",".join(part for part in changes if part.split("=")[0] not in F_ONLY)
    return Path(run_dir) / "weak" / variant / f"{stage}-{number}"


def train(
    stage: str, config: Config, run_dir: str | Path, *, variant: str = "", resume: bool = True,
    on_step: OnStep | None = None, device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """One step of the alternation, in round `weak.round`; `variant`: see `varied`.

    Stages: "warm-up", CBP from video labels alone; "b", VLP taught the background that CBP is sure
    of; "f", CBP taught the foreground that VLP is sure of. The last iterate is the result.
    """
    config = varied(config, variant)
    setting, data = config.weak, methods.run_data(config, run_dir)
    pairs, identity = paired(config, run_dir, data)
    usable = [video for video in data.train if video.id in pairs]
    held_out = usable[HELD_OUT - 1 :: HELD_OUT] or usable
    videos = [video for i, video in enumerate(usable) if i % HELD_OUT != HELD_OUT - 1]
    left_out = ("frames", "features", *INFERENCE, *(F_ONLY if stage == "b" else ()))
    used = {key: value for key, value in asdict(setting).items() if key not in left_out}
    if stage == "warm-up":
        used = {key: value for key, value in used.items() if key in WARM_UP}
    settings = {"stage": f"weak {stage}", "features": identity, "videos": fingerprint(videos)}
    settings |= {"standardise": config.standardise} if stage == "warm-up" else {}
    settings |= {"seed": config.seed, "weak": used, "classes": list(data.classes)}
    if config.weak.clip and stage != "warm-up":
        settings["text"] = sha256(config.weak.clip)[:16]
    teacher = critic = None
    if stage != "warm-up":
        before = ("warm-up", 0) if setting.round == 1 else ("f", setting.round - 1)
        teacher = load_cbp(config, run_dir, *before, pairs, data.classes, variant).to(device)
        settings["start"] = _hash(stage_dir(run_dir, *before, variant))
    if stage == "f":
        critic = load_vlp(config, run_dir, setting.round, pairs, data.classes, variant).to(device)
        settings["encoder_sha256"] = _hash(stage_dir(run_dir, "b", setting.round, variant))
    run = RunFolder(stage_dir(run_dir, stage, setting.round, variant), settings, resume)
    if (done := run.result()) is not None:
        return done
    if stage == "b":
        branch: nn.Module = new_vlp(config, run_dir, pairs, data.classes)
    else:
        branch = new_cbp(config, pairs, data.classes)
        if config.standardise:
            rows = [pairs[video.id].classification.values for video in videos]
            branch.standardise.fit_to(rows)
        if stage == "f":
            untrained = branch.decoder[-1].state_dict()
            branch.load_state_dict(teacher.state_dict())
            if setting.init == "scratch":  # the decoder's last layer forgets
                branch.decoder[-1].load_state_dict(untrained)
    branch.to(device)
    optimisation = setting.warm_up if stage == "warm-up" else setting.training
    address = (config.seed, f"weak {stage}", setting.round)
    batches = Batches(len(videos), optimisation.batch, optimisation.epochs, address)

    def load(number: int):
        chosen = batches.at(number)
        draws = generator_for(*address, number, "crop")
        starts = torch.rand(len(chosen), generator=draws).tolist()
        places = share(len(chosen))
        mine = [pairs[videos[chosen[i]].id] for i in places]
        return _batch(mine, setting.steps, [starts[i] for i in places]), len(chosen)

    def step(batch, number: int):
        parts, total = batch
        if parts is None:
            return None
        x, frames, mask, present = (part.to(device) for part in parts)
        output = branch(frames if branch.language else x, mask)
        wanted = present.float()
        if stage == "b" and setting.prob == "pair":  # classes that it cannot tell apart are one
            wanted = (wanted @ branch.visible).clamp(max=1)
        video = output.video.clamp(1e-6, 1 - 1e-6)
        costs = {"mil": F.binary_cross_entropy(video, wanted, reduction="none").mean(1)}
        weights = {"mil": setting.mil if stage == "b" else 1.0}
        shares = {}
        if teacher is not None:
            with torch.no_grad():
                cbp = teacher(x, mask).probability
                vlp = None if critic is None else critic(frames, mask).probability
                fore = vlp if stage == "f" else cbp if setting.foreground_in_b else None
                zeros = {"cbp": cbp, "vlp": vlp, "none": None}[setting.zeros]
                labels = pseudo_labels(fore, zeros if stage == "f" else cbp, present, mask, setting)
            costs["distillation"] = distillation(output.probability, labels, present)
            weights["distillation"] = setting.distillation
            if setting.contrast:
                costs["contrast"] = contrast(output.features, labels, present, setting.temperature)
                weights["contrast"] = setting.contrast
            own = labels[present]
            valid = mask[:, None].expand_as(labels)[present].sum().clamp(min=1)
            for name, value in (("foreground", 1), ("background", 0)):
                shares[name] = (own == value).sum() / valid * len(x) / total
        losses = {name: cost.sum() / total for name, cost in costs.items()}
        losses["loss"] = sum(weights[name] * cost for name, cost in losses.items())
        return backward(losses | shares)

    training = Training({"branch": branch}, optimisation, batches, load, step, 0,
                        config.checkpoint_every, config.keep_every)  # fmt: skip
    fit(training, run, on_step)
    last = (read_metrics(run.folder) or [{}])[-1]
    for name in {"b": ("background",), "f": ("foreground", "background")}.get(stage, ()):
        if not 0.02 <= last.get(name, 0.5) <= 0.98:
            found = f"{last[name]:.1%} of the frames are confident {name}"
            log.warning("weak %s: %s; pseudo-labels collapsed", stage, found)
    if is_first():
        save_tensors(run.folder / "head.safetensors", branch.state_dict(), {"stage": stage})
    judges = [pairs[video.id] for video in held_out]
    accuracy = _classifies(branch, judges, setting.steps, device)
    found = {"held_out_map": accuracy, "held_out_videos": len(held_out)}
    found |= {"head": "head.safetensors", "features": identity}
    return run.finish(found | methods.counts(len(data.train), []))


def _batch(pairs: Sequence[Pair], steps: int, starts: Sequence[float]):
    """Crops of at most `steps` steps, padded: x (B, C, T), frames, mask (B, T), present (B, K)."""
    if not pairs:
        return None
    longest = min(steps, max(pair.language.shape[1] for pair in pairs))
    rows = []
    for pair, start in zip(pairs, starts):
        first = int(start * (max(0, pair.language.shape[1] - longest) + 1))
        cut = [x[:, first : first + longest] for x in (pair.classification.values, pair.language)]
        valid = torch.arange(longest) < cut[0].shape[1]
        rows.append([*(F.pad(x, (0, longest - x.shape[1])) for x in cut), valid, pair.present])
    return tuple(torch.stack(column) for column in zip(*rows))


@torch.no_grad()
def curves(branch: nn.Module, pair: Pair, steps: int, device: str = "cpu") -> Tensor:
    """(K, T) probabilities of one video; a long one in windows of `steps`, half overlapping.

    Where windows overlap, their mean."""
    x = (pair.language if branch.language else pair.classification.values).to(device)
    last, total, seen = max(0, x.shape[1] - steps), 0.0, 0.0
    for first in sorted({*range(0, last, max(1, steps // 2)), last}):
        part = x[None, :, first : first + steps]
        mask = torch.ones_like(part[:, 0], dtype=torch.bool)
        found = branch.eval()(part, mask).probability[0]
        around = first, x.shape[1] - first - found.shape[1]
        total = total + F.pad(found, around)
        seen = seen + F.pad(torch.ones_like(found), around)
    return (total / seen).cpu()


def _classifies(branch: nn.Module, pairs: Sequence[Pair], steps: int, device: str) -> float:
    """Mean average precision of whole videos' classes, over classes that occur."""
    scores = []
    for pair in pairs:
        found = curves(branch, pair, steps, device)[None]
        scores.append(top_mean(found, torch.ones_like(found[:, 0], dtype=torch.bool))[0])
    truth = torch.stack([pair.present for pair in pairs])
    order = torch.stack(scores).argsort(dim=0, descending=True, stable=True)
    hits = truth.gather(0, order).float()
    precision = hits.cumsum(0) / torch.arange(1, len(pairs) + 1)[:, None]
    occurs = truth.any(0)
    return float(((precision * hits).sum(0)[occurs] / hits.sum(0)[occurs]).mean())


def new_cbp(config: Config, pairs: Mapping[str, Pair], classes: Sequence[str]) -> CBP:
    """An untrained classification branch; its weights follow from the seed."""
    channels = len(next(iter(pairs.values())).classification.values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return CBP(channels, len(classes), config.weak)


def new_vlp(config: Config, run_dir, pairs: Mapping[str, Pair], classes: Sequence[str]) -> VLP:
    """An untrained language branch; its weights follow from the seed."""
    dual = open_dual(config, run_dir, classes, len(next(iter(pairs.values())).language))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return VLP(dual, classes, config.weak)


def load_cbp(
    config: Config, run_dir, stage: str, number: int, pairs, classes, variant: str = ""
) -> CBP:
    """CBP as a stage left it, in eval mode; FileNotFoundError with the command."""
    return _loaded(config, run_dir, stage, number, variant, new_cbp(config, pairs, classes))


def load_vlp(config: Config, run_dir, number: int, pairs, classes, variant: str = "") -> VLP:
    """VLP as the B step of a round left it, in eval mode; FileNotFoundError with the command."""
    return _loaded(config, run_dir, "b", number, variant, new_vlp(config, run_dir, pairs, classes))


def _loaded(config: Config, run_dir, stage: str, number: int, variant: str, branch: nn.Module):
    path = stage_dir(run_dir, stage, number, variant) / "head.safetensors"
    if not path.is_file():
        more = f" --weak.round {number}" if number not in (0, config.weak.round) else ""
        more += f" --variant {shlex.quote(variant)}" if variant and stage != "warm-up" else ""
        cure = methods.command(f"weak-{stage}", config, run_dir, "", more)
        raise FileNotFoundError(f"{path}: not trained yet; run: {cure}")
    branch.load_state_dict(load_tensors(path)[0])
    return branch.requires_grad_(False).eval()


def _hash(folder: Path) -> str:
    return sha256(folder / "head.safetensors")[:16]
