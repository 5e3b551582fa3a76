"""Stage 1: what the encoder learns before it meets untrimmed videos.

Action classification (ACP), its continuation on the target set (ACP+), image classification (ICP);
`lofi.training.pretext` adds the self-supervised tasks. Source: LoFi paper sections 3.1 and 4.1
(baselines); recipe of the real-size presets: TSM on Kinetics-400. Classifiers are thrown away, the
encoder stays. Batch statistics are live here, and with several processes each has those of its own
share, so that weights depend (slightly) on their number, unlike in later stages; at the end the
running statistics are averaged.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lofi.config import Config, Optimisation
from lofi.data import TrimmedClip, TrimmedRequest, VideoError
from lofi.data.datasets import fingerprint, open_reader, with_background
from lofi.encoders import encoder_hash, normalise
from lofi.encoders.base import Encoder
from lofi.encoders.dual import TinyDual, clean_name, train_tiny_dual
from lofi.encoders.extraction import autocast, grad_scaler, placed
from lofi.training import methods
from lofi.training.augmentation import draw_colour, draw_geometry, recolour, vary
from lofi.training.distributed import is_first, rank, reduce_sum, share, size
from lofi.training.end_to_end import is_out_of_memory
from lofi.training.loop import Batches, OnStep, Training, backward, fit, generator_for
from lofi.training.run_folder import RunFolder

log = logging.getLogger(__name__)
# (uint8 clips (n, F, 3, S, S), labels (n,)) of this process's share, or None when it is empty.
Batch = tuple[torch.Tensor, torch.Tensor] | None
CAPTIONED = 640  # source clips whose frames get captions
HELD_OUT = 10  # without subsets in the list, every tenth source clip only measures accuracy


@dataclass
class Task:
    """What an encoder learns in stage 1."""

    stage: str  # also the method's folder
    encoder: Encoder
    classifier: nn.Module  # trained beside the encoder
    logits: Callable[[torch.Tensor], torch.Tensor]  # (n, F, 3, S, S) frames → (n, classes) or (n,)
    kept: Sequence[TrimmedClip]
    held: Sequence[TrimmedClip]  # only measure accuracy; may be empty
    setting: Optimisation
    # (source, clips of a logical batch, address of the draws, augmentation) → this process's share
    read: Callable[["ClipSource", Sequence[TrimmedClip], tuple, str], Batch]
    settings: dict[str, Any]  # what the result depends on besides common settings and weights
    result: dict[str, Any]  # for result.json
    saved: Encoder | None = None  # what the weights are saved in, where not in `encoder`


def trains(task_of: Callable[[Config, str | Path], Task]) -> Callable[..., dict[str, Any]]:
    """Make the function that describes a stage's task the stage itself, see `pretrain`."""

    def stage(
        config: Config, run_dir: str | Path, *, resume: bool = True,
        on_step: OnStep | None = None, device: str = "cpu",
    ) -> dict[str, Any]:  # fmt: skip
        return pretrain(config, run_dir, task_of(config, run_dir), resume, on_step, device)

    stage.__name__, stage.__doc__ = task_of.__name__, task_of.__doc__
    return stage


@trains
def train_acp(config: Config, run_dir: str | Path) -> Task:
    """Action-classification pre-training on the source clips; returns what `pretrain` does."""
    clips, encoder = source_clips(config, run_dir, "acp"), methods.start_encoder(config)
    if encoder.source and not (config.start_weights or config.data.preset):
        found = f"stage acp: {encoder.name} begins with random weights"
        if not config.weights and config.preset != "own":
            known = "ImageNet weights (the README lists the files)"
            raise ValueError(f"{found}; give --weights {known}, or --weights none for random ones")
        log.warning("%s, where TSM begins with those of ImageNet: expect less", found)
    return _classification(config, "acp", encoder, clips, split_clips(clips), config.acp)


@trains
def train_acp_plus(config: Config, run_dir: str | Path) -> Task:
    """ACP+: go on with classification, on the trimmed segments of the target training videos."""
    data = methods.run_data(config, run_dir)
    data.with_files(data.train)  # refuses a data set without any
    segments = with_background(data.train) if config.acp_plus_background else data.segments
    encoder, start = methods.load_encoder(config, run_dir, config.acp_plus_start)
    task = _classification(config, "acp+", encoder, segments, (segments, []), config.acp_plus)
    task.settings["start"] = start
    return task


def train_icp(
    config: Config, run_dir: str | Path, *, resume: bool = True,
    on_step: OnStep | None = None, device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """ICP: what still images have taught the network without temporal shift (paper table 1).

    With `config.icp_shift` these weights go to the shifted network, as in the paper, else they stay
    where they were trained. Published ImageNet weights (`config.weights`) are taken as they are. In
    a toy world, which has no images, single frames of the source clips carry the clip's label; half
    of that label is the axis of the motion, which no frame shows, so about half of the accuracy is
    out of reach. ValueError for real data without `config.weights`, or an encoder without an image
    form.
    """
    plain = methods.unshifted(config.encoder)
    shift = {"shift": True} if config.icp_shift else {}
    if config.start_weights:
        encoder = methods.start_encoder(config, config.encoder if shift else plain)
        settings = {"stage": "icp", "start": encoder_hash(encoder)} | shift
        run = RunFolder(Path(run_dir) / "icp" / "encoder", settings, resume)
        if (done := run.result()) is not None:
            return done
        saved = methods.save_stage_encoder(config, run, encoder, "icp")
        return run.finish(saved | methods.counts(0, ()))
    if not config.data.preset:
        cure = "set weights to such a file (torchvision's resnet18-f37072fd.pth, …)"
        found = f"stage icp takes published ImageNet weights: {cure}"
        raise ValueError(f"{found}; only the toy worlds train it")
    clips, encoder = source_clips(config, run_dir, "icp"), methods.start_encoder(config, plain)
    task = _classification(config, "icp", encoder, clips, split_clips(clips), config.icp, frames=1)
    task.settings |= shift
    task.saved = methods.start_encoder(config) if shift else None
    return pretrain(config, run_dir, task, resume, on_step, device)


def train_dual(
    config: Config, run_dir: str | Path, *, resume: bool = True, device: str = "cpu"
) -> dict[str, Any]:
    """A stand-in for CLIP from the run's ICP encoder: contrasts frames of source clips with words.

    One frame each of `CAPTIONED` training clips, the class name as caption. It is no substitute
    for CLIP, whose file `weak.clip` makes this stage unnecessary. Every process does the same.
    """
    clips = split_clips(source_clips(config, run_dir, "dual"))[0]
    clips = clips[:: max(1, len(clips) // CAPTIONED)]
    trunk, start = methods.load_encoder(config, run_dir, "icp")
    settings = {"stage": "dual", "start": start, "clips": fingerprint(clips)}
    run = RunFolder(Path(run_dir) / "dual" / "encoder", settings | methods.clip_settings(config),
                    resume)  # fmt: skip
    if (done := run.result()) is not None:
        return done
    names = [clip.label for clip in clips]
    words = sorted({word for name in names for word in clean_name(name).split()})
    dual = TinyDual(trunk, words, config.seed)
    features, labels = [], []
    with run.logging(), ClipSource(config, run) as source, torch.no_grad():
        for first in range(0, len(clips), 64):
            part = clips[first : first + 64]
            found = source.read(part, [None] * len(part), 1)
            kept = [(x, clip.label) for x, clip in zip(found, part) if x is not None]
            if not kept:
                continue
            frames, own = zip(*kept)
            features.append(dual.trunk(normalise(torch.stack(frames), dual.trunk)))
            labels += own
    result = train_tiny_dual(dual, torch.cat(features), labels, config.seed)
    log.warning("%d words stand in for CLIP; this is no substitute for it", len(words))
    if is_first():
        dual.save(run.folder / "encoder.safetensors")
    counts = methods.counts(len(clips), run.skipped())
    return run.finish({"encoder": "encoder.safetensors"} | result | counts)


def source_clips(config: Config, run_dir: str | Path, stage: str) -> tuple[TrimmedClip, ...]:
    """The trimmed clips of `data.source`; ValueError when there are none."""
    data = methods.run_data(config, run_dir)
    if config.data.source == "segments":
        data.with_files(data.train)
    clips = data.clips
    if not clips:
        raise ValueError(
            f"stage {stage} needs trimmed source clips: set data.source to a list of clips, or to "
            "'segments' to classify the labelled segments of your training videos"
        )
    return clips


def split_clips(clips: Sequence[TrimmedClip]) -> tuple[list[TrimmedClip], list[TrimmedClip]]:
    """(clips to train on, held-out clips): by the list's subsets; without any, every tenth."""
    held = [clip.subset in ("validation", "val", "test") for clip in clips]
    if not any(clip.subset for clip in clips):
        log.info("every tenth of %d source clips only measures accuracy", len(clips))
        held = [i % HELD_OUT == 0 for i in range(len(clips))]
    kept = [clip for clip, out in zip(clips, held) if not out]
    return kept, [clip for clip, out in zip(clips, held) if out]


def _classification(config, stage, encoder, clips, split, setting, frames: int = 0) -> Task:
    names = sorted({clip.label for clip in clips})
    frames = frames or config.acp_frames
    torch.manual_seed(config.seed)  # the classifier's framework initialisation
    classifier = nn.Linear(encoder.channels, len(names))
    read = partial(_read_labelled, names, frames)
    if setting.dropout:  # as TSM: every frame's features are thinned out by themselves
        nn.init.normal_(classifier.weight, 0, 0.001)
        nn.init.zeros_(classifier.bias)

    def logits(x: torch.Tensor) -> torch.Tensor:
        if not setting.dropout:
            return classifier(encoder(x))
        by_frame = getattr(encoder, "frame_features", lambda x: encoder(x)[:, None])
        return classifier(F.dropout(by_frame(x), setting.dropout, classifier.training)).mean(1)

    return Task(
        stage, encoder, classifier, logits, *split, setting, read,
        settings={"clips": fingerprint(clips), "frames": frames}, result={"classes": names},
    )  # fmt: skip


def _read_labelled(names, frames: int, source, clips, address: tuple, augment: str) -> Batch:
    draws = generator_for(*address, "augmentation")
    views = [draw_geometry(augment, draws) for _ in clips]
    tints = [draw_colour(draws) if augment == "colour" else None for _ in clips]
    mine = share(len(clips))
    found = source.read([clips[i] for i in mine], [views[i] for i in mine], frames)
    kept = [(i, x) for i, x in zip(mine, found) if x is not None]
    if not kept:
        return None
    x = torch.stack([x if tints[i] is None else recolour(x, tints[i]) for i, x in kept])
    x = vary(x, draws) if augment == "varied" else x
    return x, torch.tensor([names.index(clips[i].label) for i, _ in kept])


def pretrain(config: Config, run_dir, task: Task, resume: bool, on_step, device: str) -> dict:
    """Train a task in its run folder; returns what is in result.json: {"encoder": path,
    "accuracy": on held-out clips, "sha256", "weights": where it started, …}.

    The loss is the cross-entropy, a mean over all items of the logical batch that could be read.
    A clip of a Kinetics list without a file is one left out; where segments of the training videos
    are the clips, a video without a file is.
    """
    stage, encoder = task.stage, task.encoder
    encoder.check_size(config.acp_frames, config.full.pixels)
    published = {"start": encoder_hash(encoder)} if config.start_weights else {}
    settings = {"stage": stage, **published, **task.settings, **methods.clip_settings(config)}
    settings |= {"training": asdict(task.setting)}
    settings |= {"amp": config.amp} if config.amp != "fp32" else {}
    settings |= {"micro_batch": config.acp_micro_batch} if config.acp_micro_batch else {}
    run = RunFolder(Path(run_dir) / stage / "encoder", settings, resume)
    if (done := run.result()) is not None:
        return done
    absent: Sequence[str] = []
    if stage == "acp+" or config.data.source:
        data = methods.run_data(config, run_dir)
        absent = data.clips_missing
        if stage == "acp+" or config.data.source == "segments":
            absent = [video.id for video in data.train if video.path is None]
    for item in absent:
        run.skip(item, FileNotFoundError(methods.NO_FILE))
    placed(config, encoder, device)
    task.classifier.to(device)
    with ClipSource(config, run) as source:
        fit(_training(config, task, source, device), run, on_step)
        with torch.no_grad():  # every process gets the mean of the running statistics
            for buffer in (*encoder.buffers(), *task.classifier.buffers()):
                if buffer.is_floating_point():
                    buffer.copy_(reduce_sum(buffer) / size())
        accuracy = _accuracy(config, task, source, device) if task.held else None
    if task.saved:
        task.saved.load_state_dict(encoder.state_dict())
        encoder = task.saved
    result = methods.save_stage_encoder(config, run, encoder, stage)
    counts = methods.counts(len(task.kept) + len(task.held) + len(absent), run.skipped())
    return run.finish(result | {"accuracy": accuracy} | counts | task.result)


def _training(config: Config, task: Task, source: "ClipSource", device: str) -> Training:
    address, setting = (config.seed, task.stage), task.setting
    modules = {"encoder": task.encoder.train(), "classifier": task.classifier.train()}
    batches = Batches(len(task.kept), setting.batch, setting.epochs, address)

    def load(step: int) -> Batch:
        clips = [task.kept[i] for i in batches.at(step)]
        return task.read(source, clips, (*address, step), setting.augment)

    scaler, at_once = grad_scaler(config.amp, device), config.acp_micro_batch

    def step(batch: Batch, number: int):
        nonlocal at_once
        mine = 0.0 if batch is None else float(len(batch[1]))
        count = float(reduce_sum(torch.tensor(mine, device=device)))
        if batch is None:
            return None
        while True:
            size, total = at_once or len(batch[1]), {"loss": 0.0, "accuracy": 0.0}
            torch.manual_seed(generator_for(*address, number, "dropout", rank()).initial_seed())
            try:
                for part in zip(*(x.split(size) for x in batch)):
                    loss, right = _scores(task, part, device, config.amp)
                    found = backward({"loss": loss / count, "accuracy": right / count}, scaler)
                    total = {name: total[name] + found[name] for name in found}
                return total
            except RuntimeError as error:
                if not is_out_of_memory(error) or size == 1:
                    raise
                why = str(error).splitlines()[0]
            at_once = (size + 1) // 2
            log.warning("out of memory (%s); going on with %d clips at once: batch norm sees only "
                        "these", why, at_once)  # fmt: skip
            for parameter in (p for module in modules.values() for p in module.parameters()):
                parameter.grad = None  # of the unfinished step

    ahead = min(config.data.workers, config.data.prefetch)
    return Training(
        modules, setting, batches, load, step, ahead, config.checkpoint_every, config.keep_every,
        rates={"classifier": setting.classifier_lr}, one_backward=lambda: not at_once,
        scaler=scaler,
    )  # fmt: skip


def _scores(task: Task, batch: Batch, device: str, amp: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and number of right answers, both summed over the batch."""
    x, label = (part.to(device, non_blocking=True) for part in batch)
    with autocast(amp, device):
        logits = task.logits(normalise(x, task.encoder))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.dim() == 1:
        loss = F.binary_cross_entropy_with_logits(logits, label.to(logits), reduction="sum")
        return loss, ((logits > 0) == label).sum()
    return F.cross_entropy(logits, label, reduction="sum"), (logits.argmax(1) == label).sum()


@torch.no_grad()
def _accuracy(config: Config, task: Task, source: "ClipSource", device: str) -> float | None:
    """Share of right answers on the held-out clips, unaugmented; None: not one can be read."""
    task.encoder.eval()
    task.classifier.eval()
    found = torch.zeros(2, device=device)  # right answers, answers
    for start in range(0, len(task.held), 64):
        clips = task.held[start : start + 64]
        batch = task.read(source, clips, (config.seed, task.stage, "held out", start), "none")
        if batch is not None:
            found[0] += _scores(task, batch, device, config.amp)[1]
            found[1] += len(batch[1])
    right, total = reduce_sum(found).tolist()
    return right / total if total else None


def clip_name(clip: TrimmedClip) -> str:
    """The file, and which part of it where it is not the whole."""
    whole = clip.start_s is None and clip.end_s is None
    return str(clip.path) if whole else f"{clip.path}, {clip.start_s} to {clip.end_s} s"


class ClipSource(AbstractContextManager):
    """Reads windows of trimmed clips as the configuration samples them; bad files are skipped."""

    def __init__(self, config: Config, run: RunFolder):
        self.data, self.pixels, self.run = config.data, config.full.pixels, run
        self.reader = open_reader(config.data)

    def __exit__(self, *error) -> None:
        self.reader.close()

    def read(self, clips, views, frames: int, stride: int = 0) -> list[torch.Tensor | None]:
        """uint8 (frames, 3, S, S) of each clip in its view, None for one that cannot be read."""
        how = frames, self.pixels, stride or self.data.frame_stride, self.data.crop_ratio
        rest = self.data.resample_fps, self.data.squeeze
        found = self.reader.read([TrimmedRequest(c, *how, v, *rest) for c, v in zip(clips, views)])
        for clip, item in zip(clips, found):
            if isinstance(item, VideoError):
                self.run.skip(clip_name(clip), item)
            else:
                self.run.readable(clip_name(clip))
        return [None if isinstance(item, VideoError) else item for item in found]
