"""Stage 2: joint training of encoder and head on low-fidelity mini-batches (LoFi).

Source: LoFi paper section 3.2 and supplement B. A mini-batch holds fewer snippets, fewer pixels or
both; its size in videos never changes and the full fidelity never occurs. Beyond the paper, the
encoder's gradient can be found in other ways and at full fidelity: see `lofi.training.end_to_end`.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lofi.config import Config
from lofi.data import ClipReader, ClipRequest, Video
from lofi.data.datasets import fingerprint, open_reader
from lofi.data.reading import begun, frame_grid, training_items
from lofi.encoders import freeze_batch_norm
from lofi.fidelity import Fidelity, schedule
from lofi.heads import LossStatistics, Targets, collate_targets, loss, loss_statistics, targets
from lofi.training.augmentation import draw_colour, draw_geometry, recolour
from lofi.training.distributed import gather, is_first, reduce_sum, share
from lofi.training.end_to_end import EndToEnd, encode, sampled_snippets, verify_exact
from lofi.training.loop import Batches, OnStep, Training, fit, generator_for, prefetch_depth
from lofi.training.models import (
    Standardise,
    build_head,
    common_settings,
    label_rule,
    load_encoder,
    lofi_method,
    run_data,
    save_head,
    save_stage_encoder,
)
from lofi.training.run_folder import RunFolder

log = logging.getLogger(__name__)
# Settings that change speed and memory, not the result: an interrupted run may go on with others.
FREE = ("micro_batch", "verify_exact")
FREE_OF_MODE = ("chunk", "recompute", "fold")


def train_lofi(
    config: Config,
    run_dir: str | Path,
    *,
    resume: bool = True,
    on_step: OnStep | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train encoder and head jointly on low-fidelity mini-batches (paper section 3.2).

    The head is kept beside the encoder for study only; stage 3 trains a new one.
    """
    videos = run_data(config, run_dir).train
    videos = training_items(videos, config.data, config.full.snippets)
    method = lofi_method(config)
    encoder, start = load_encoder(config, run_dir, config.lofi.start)
    settings = _settings(config, start, videos)
    run = RunFolder(Path(run_dir) / method / "encoder", settings, resume)
    if (done := run.result()) is not None:
        return done
    joint = _Joint(config, encoder, videos, device)
    with open_reader(config.data) as reader:
        stage = joint.stage(reader, run)
        if config.standardise:
            joint.standardise(stage)
        fit(stage, run, on_step)
    if is_first():
        save_head(run.folder / "head.safetensors", joint.head, config.head, joint.scale)
    result = save_stage_encoder(config, run, encoder, method)
    return run.finish(result | {"skipped": run.skipped()})


def _settings(config: Config, start: str, videos: Sequence[Video]) -> dict[str, Any]:
    lofi = {key: value for key, value in asdict(config.lofi).items() if key not in FREE}
    lofi["mode"] = {k: v for k, v in lofi["mode"].items() if k not in FREE_OF_MODE}
    settings = {"stage": "lofi", "start": start, "videos": fingerprint(videos)}
    settings |= common_settings(config) | {"lofi": lofi, "head": asdict(config.head)}
    return settings | {"standardise": config.standardise, "jitter": config.data.jitter}


class Batch(NamedTuple):
    """This process's share of a logical batch; b of its videos could be read.

    Attributes:
        clips: (b, L, F, 3, S, S) uint8.
        labels: targets of these videos.
        places: their positions in the logical batch.
        videos: B, videos of the logical batch, readable or not.
        inside: (b, 1, L) False for snippets behind the end of their video; None = all inside.
    """

    clips: Tensor
    labels: Targets
    places: list[int]
    videos: int
    inside: Tensor | None = None


STATISTICS_STEPS = 8  # mini-batches whose features give the input statistics of the head


class _Joint:
    """What is trained together, and the losses of one step of it."""

    def __init__(self, config: Config, encoder: nn.Module, videos: Sequence[Video], device: str):
        self.config, self.encoder, self.videos, self.device = config, encoder, videos, device
        setting = config.lofi
        self.head = build_head(config.head, encoder.channels, config.full.snippets, config.seed)
        self.scale = Standardise(encoder.channels)
        self.modules = {"encoder": encoder, "scale": self.scale, "head": self.head}
        self.classes = sorted({s.label for video in videos for s in video.segments})
        if setting.class_loss:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                self.modules["classifier"] = nn.Linear(2 * encoder.channels, len(self.classes))
        for module in self.modules.values():
            module.to(device)
        if setting.frozen_bn:
            freeze_batch_norm(encoder, fold=setting.mode.fold)
        encoder.train()
        parameters = [p for module in self.modules.values() for p in module.parameters()]
        self.end_to_end = EndToEnd(
            encoder, setting.mode, parameters, amp=setting.amp, micro_batch=setting.micro_batch,
            bank=setting.micro_batch == 1,
        )  # fmt: skip
        self.batches = Batches(
            len(videos), setting.training.batch, setting.training.epochs, (config.seed, "lofi")
        )
        self.verified = not (setting.verify_exact and setting.mode.name in ("exact", "sampled"))

    def stage(self, reader: ClipReader, run: RunFolder) -> Training:
        """The training that `fit` runs."""
        lofi, batches = self.config.lofi, self.batches
        plan = schedule(
            lofi.schedule,
            self.config.full,
            period_epochs=lofi.period_epochs,
            period_iterations=lofi.period_iterations,
        )

        def load(step: int) -> Batch:
            fidelity = plan.at(step // batches.per_epoch, step)
            chosen = [self.videos[i] for i in batches.at(step)]
            return read_batch(self.config, reader, run, chosen, fidelity, step)

        return Training(
            self.modules,
            lofi.training,
            batches,
            load,
            self.losses,
            prefetch_depth(self.config.data.workers),
            self.config.checkpoint_every,
            describe=lambda step: ", ".join(self.videos[i].id for i in batches.at(step)),
            rates={"encoder": lofi.encoder_lr},
        )

    def standardise(self, stage: Training) -> None:
        """Fit the head's input statistics to the features of the first mini-batches."""
        self.encoder.eval()
        features: list[tuple[tuple[int, int], Tensor]] = []
        with torch.no_grad():
            for step in range(min(STATISTICS_STEPS, self.batches.steps)):
                batch = stage.load(step)
                for place, clip in zip(batch.places, batch.clips):
                    found = encode(self.encoder, clip[None].to(self.device))[0]
                    features.append(((step, place), found.cpu()))
        everywhere = sorted(sum(gather(features), []), key=lambda item: item[0])
        if everywhere:  # else `fit` will say that nothing can be read
            self.scale.fit_to([found.to(self.device) for _, found in everywhere])
        self.encoder.train()

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor] | None:
        """Losses of this share, their gradients already in place; None when it is empty."""
        config, address = self.config, (self.config.seed, "lofi", step)
        draws, statistics = logical_batch(config, batch.labels, batch.places, batch.videos, address)
        if not batch.places:
            return None
        if not self.verified:
            error = verify_exact(self.encoder, config.lofi.mode, batch.clips)
            log.info("mode %s: gradient within %.1e of one graph", config.lofi.mode, error)
            self.verified = True
        labels = Targets(*(t.to(self.device) for t in batch.labels))
        draws = draws.to(self.device)
        inside = None if batch.inside is None else batch.inside.to(self.device)

        def losses_of(features: Tensor, part: slice) -> dict[str, Tensor]:
            if inside is not None:  # as in stage 3: no features behind the end of a video
                features = features * inside[part]
            maps = self.head(self.scale(features))
            chosen = Targets(*(t[part] for t in labels))
            found = head_losses(config, maps, chosen, draws[part], statistics)
            if config.lofi.class_loss:
                total = statistics.nodes / features.shape[2]
                found["class"] = self._class_loss(features, batch, step, part) / total
                found["loss"] = found["loss"] + config.lofi.class_loss * found["class"]
            return found

        sampled = None
        if config.lofi.mode.name == "sampled":
            shape = batch.videos, batch.labels.iou.shape[-1]
            generator = generator_for(*address, "sampled")
            sampled = sampled_snippets(*shape, config.lofi.mode.ratio, generator)[batch.places]
        return self.end_to_end.backpropagate(batch.clips, losses_of, sampled)

    def _class_loss(self, features: Tensor, batch: Batch, step: int, part: slice) -> Tensor:
        """Summed cross-entropy of the videos' classes, from mean and top-quarter features."""
        chosen = self.batches.at(step)
        wanted = features.new_zeros(len(features), len(self.classes))
        for row, place in enumerate(batch.places[part]):
            for segment in self.videos[chosen[place]].segments:
                wanted[row, self.classes.index(segment.label)] += 1
        top = features.topk(max(1, features.shape[2] // 4), dim=2).values.mean(2)
        logits = self.modules["classifier"](torch.cat([features.mean(2), top], dim=1))
        wanted = wanted / wanted.sum(1, keepdim=True).clamp_min(1)
        return F.cross_entropy(logits.float(), wanted.float(), reduction="sum")


def read_batch(
    config: Config,
    reader: ClipReader,
    run: RunFolder,
    videos: Sequence[Video],
    fidelity: Fidelity,
    step: int,
) -> Batch:
    """This process's share of the logical batch `videos`; unreadable ones go to the skip list.

    All random numbers of the logical batch are drawn on every process, so what a video looks like
    does not depend on how many processes there are.
    """
    draws = generator_for(config.seed, "lofi", step, "augmentation")
    augment, jitter = config.lofi.training.augment, config.data.jitter * fidelity.snippets
    views = [draw_geometry(augment, draws, jitter) for _ in videos]  # one a video, for all snippets
    colours = [draw_colour(draws) for _ in videos] if augment == "colour" else None
    mine = share(len(videos))
    found = reader.read(
        [video_request(config, videos[i].path, fidelity, views[i], videos[i].span) for i in mine]
    )
    clips, labels, places, inside = [], [], [], []
    for i, clip in zip(mine, found):
        if isinstance(clip, Exception):
            run.skip(videos[i].id, clip)
            continue
        if colours:
            clip = recolour(clip.flatten(0, 1), colours[i]).view(clip.shape)
        info = reader.info(videos[i].path)
        clips.append(clip)
        labels.append(video_targets(config, videos[i], info.duration_s, fidelity))
        places.append(i)
        if videos[i].span:
            frames = frame_grid(config.data, info)[0]
            inside.append(torch.tensor(begun(videos[i].span, fidelity.snippets, frames))[None])
    if clips:
        mask = torch.stack(inside) if inside else None
        return Batch(torch.stack(clips), collate_targets(labels), places, len(videos), mask)
    nothing = collate_targets([head_targets(config, torch.zeros(0, 2).double(), 1.0, fidelity)])
    size = (0, fidelity.snippets, fidelity.frames, 3, fidelity.pixels, fidelity.pixels)
    empty = Targets(*(t[:0] for t in nothing))
    return Batch(torch.zeros(size, dtype=torch.uint8), empty, [], len(videos))


def head_targets(
    config: Config, times: Tensor, duration_s: float, fidelity: Fidelity, iou_shift_s: float = 0.0
) -> Targets:
    """Labels of one video for the configured head; times in seconds, see `segment_times`."""
    rule, durations = label_rule(config.head), config.head.durations or None
    shape = fidelity.snippets, durations, rule
    return targets(times, duration_s, *shape, iou_shift_s=iou_shift_s)


def video_targets(config: Config, video: Video, duration_s: float, fidelity: Fidelity) -> Targets:
    """Labels of a video (or window) of `duration_s` decoded seconds (of a window: not used).

    Windows of the "thumos" rule are labelled as released: snippet i stands around frame i · stride,
    so the grid begins half a stride before the window, rounded to a frame for the tIoU map.
    """
    times = segment_times(video)
    if video.span is None:
        return head_targets(config, times, duration_s, fidelity)
    if label_rule(config.head) != "thumos":
        return head_targets(config, times, video.duration_s, fidelity)
    first, end = video.span
    frame_s = video.duration_s / (end - first)
    half = config.data.window_stride / 2
    edge = first - half
    shift = (edge - int(edge)) * frame_s
    return head_targets(config, times + half * frame_s, video.duration_s, fidelity, shift)


def video_request(
    config: Config, path, fidelity: Fidelity, augmentation=None, span=None
) -> ClipRequest:
    """How the configuration cuts the snippets of one video, or of a window of it."""
    data = config.data
    return ClipRequest(
        path, fidelity, data.frame_stride, data.rule, data.crop_ratio, augmentation,
        data.resample_fps, span,
    )  # fmt: skip


def read_video(config: Config, path, fidelity: Fidelity, augmentation=None, cache=None):
    """Snippets of one video as the configuration cuts them: uint8 (L, F, 3, S, S)."""
    return video_request(config, path, fidelity, augmentation).read(cache)


def segment_times(video: Video) -> Tensor:
    """(N, 2) float64 seconds of a video's segments of positive length."""
    times = [[s.start_s, s.end_s] for s in video.segments if s.end_s > s.start_s]
    return torch.tensor(times, dtype=torch.float64).reshape(-1, 2)


def logical_batch(
    config: Config, labels: Targets, places: Sequence[int], videos: int, address: tuple
) -> tuple[Tensor, LossStatistics]:
    """What the losses of a share need to add up to those of the logical batch.

    Args:
        labels: (b, …) targets of this share, on the CPU.
        places: positions of its videos in the logical batch of `videos`.
        address: of the random numbers.
    Returns:
        draws (b, 2, D, L) and the statistics of the whole batch. Every process has to call this.
    """
    shape = (videos, 2, *labels.iou.shape[1:])
    draws = torch.rand(shape, generator=generator_for(*address, "loss"))[list(places)]
    best = config.head.best_anchor
    return draws, loss_statistics(labels, draws, best_anchor=best, reduce=reduce_sum)


def head_losses(
    config: Config, maps, labels: Targets, draws: Tensor, statistics: LossStatistics
) -> dict[str, Tensor]:
    """The head's named losses of a share, or of a part of it; all on one device."""
    terms = loss(
        maps,
        labels,
        rule="thumos" if config.head.variant == "thumos" else "anet",
        statistics=LossStatistics(*(count.to(draws.device) for count in statistics)),
        best_anchor=config.head.best_anchor,
        draws=draws,
    )
    found = terms._asdict()
    return {"loss": found.pop("total"), **found}
