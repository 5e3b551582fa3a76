"""Stage 1 without labels: is a clip reversed (Arrow of Time), is it sped up (SpeedNet)?

Sources: Wei et al., CVPR 2018; Benaim et al., CVPR 2020, on the snippets of the encoder. LoFi
table 7 does not say how it trained them; all numbers here are the originals' or ours. Both copies
of a clip are in the same batch with the same crop, flip and colour, so that nothing but the
direction (or the speed) tells them apart. The heads are thrown away, like ACP's classifier.
N snippets, F frames, C channels, h × w the encoder's last maps.

The toy worlds' actors oscillate, which looks the same in both directions: there arrow stays at
chance (0.50 measured, preset tiny, one seed) and its encoder localizes worse than a random one.
Speed reaches 0.6 to 0.7 there.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lofi.config import Config, Optimisation
from lofi.data import TrimmedClip, VideoError
from lofi.data.datasets import fingerprint
from lofi.data.snippets import resampled_frames, window_indices
from lofi.training import augmentation
from lofi.training.distributed import share
from lofi.training.loop import generator_for
from lofi.training.methods import start_encoder
from lofi.training.pretraining import (
    Batch,
    ClipSource,
    Task,
    clip_name,
    source_clips,
    split_clips,
    trains,
)

NORMAL, FAST = (1.0, 1.2), (1.7, 2.2)  # speed factors of the two classes
SIZES = (32, 64 / 224, 336 / 224)  # multiple, smallest and largest side over S
SMALL_SIZES = (8, 0.5, 1.5)  # the same for S below 112
DROPOUT = 0.5  # in front of the classifiers


@trains
def train_arrow(config: Config, run_dir: str | Path) -> Task:
    """Learn to tell forward from reversed source clips; returns and stores what `pretrain` does.

    "accuracy" is that of the pretext task on held-out clips; chance is 0.5.
    """
    return _task(config, run_dir, "arrow", config.arrow, config.arrow_head, _arrow_pairs)


@trains
def train_speed(config: Config, run_dir: str | Path) -> Task:
    """Learn to tell source clips at normal speed from sped-up ones; see `train_arrow`."""
    return _task(config, run_dir, "speed", config.speed, "speed", _speed_pairs)


def _task(config: Config, run_dir, stage: str, setting: Optimisation, kind: str, pairs) -> Task:
    clips = source_clips(config, run_dir, stage)
    kept, held = split_clips(clips)
    encoder = start_encoder(config)
    if not hasattr(encoder, "frame_maps"):
        raise ValueError(f"stage {stage} needs maps of every frame; use a tsm-* encoder, "
                         f"not {encoder.name}")  # fmt: skip
    torch.manual_seed(config.seed)  # the head's framework initialisation
    head = {"speed": SpeedHead, "tcam": ArrowHead, "avg": AverageHead}[kind](encoder.channels)
    read = partial(_read_pairs, pairs, config.full.frames)
    return Task(
        stage, encoder, head, lambda x: head(encoder.frame_maps(x)), kept, held, setting, read,
        settings={"clips": fingerprint(clips), "head": kind}, result={"held_out": len(held)},
    )  # fmt: skip


def _read_pairs(pairs, frames: int, source, clips, address: tuple, augment: str) -> Batch:
    """Both copies of every clip, the first labelled 0, the second 1."""
    mine = share(len(clips))
    draws = [generator_for(*address, "clip", i) for i in mine]
    found = list(pairs(source, [clips[i] for i in mine], draws, frames, augment))
    if not found:
        return None
    pixels = source.pixels
    if pairs is _speed_pairs and augment != "none":  # one size a batch
        step, low, high = SIZES if pixels >= 112 else SMALL_SIZES
        sizes = [n for n in range(step, int(high * pixels) + 1, step) if n >= low * pixels]
        draw = torch.randint(len(sizes), (), generator=generator_for(*address, "size"))
        pixels, whole = sizes[int(draw)], augmentation.Square(0, 0, source.pixels)
        found = [whole.cut(pair.flatten(0, 1), pixels).unflatten(0, (2, frames)) for pair in found]
    return torch.cat(found), torch.tensor([0, 1]).repeat(len(found))


def _arrow_pairs(source, clips, draws, frames: int, augment: str) -> Iterator[Tensor]:
    """(2, frames, 3, S, S) of every clip that can be read and moves steadily."""
    views = [augmentation.draw_geometry(augment, generator) for generator in draws]
    for clip, generator in zip(source.read(clips, views, frames), draws):
        if clip is None or not augmentation.is_steady(clip):
            continue
        square = augmentation.inside_borders(clip)
        if augment != "none":
            square = square.random_part(generator)
        clip = square.cut(clip, source.pixels)
        if augment == "colour":
            clip = augmentation.recolour(clip, augmentation.draw_colour(generator))
        if augment != "none":
            clip = augmentation.hide_origin(clip, generator)
        yield torch.stack([clip, clip.flip(0)])


def _speed_pairs(source, clips, draws, frames: int, augment: str) -> Iterator[Tensor]:
    """(2, frames, 3, S, S) of every clip that can be read and is long enough."""
    stride = max(1, source.data.frame_stride // 2)  # so that twice as fast is a snippet's stride
    for clip, generator in zip(clips, draws):
        view = augmentation.draw_geometry(augment, generator)
        try:
            run = min(3 * frames, clip_length(source, clip) // stride)
            picked = normal_and_fast(run, frames, generator)
        except VideoError as error:
            source.run.skip(clip_name(clip), error)
            continue
        (steps,) = source.read([clip], [view], run, stride)
        if steps is not None:
            pair = steps[picked.flatten()]
            if augment == "colour":
                pair = augmentation.recolour(pair, augmentation.draw_colour(generator))
            yield pair.unflatten(0, (2, frames))


def clip_length(source: ClipSource, clip: TrimmedClip) -> int:
    """Frames of a trimmed clip, at the frame rate of the sampling."""
    info = source.reader.info(clip.path)
    count = len(resampled_frames(info.num_frames, info.fps, source.data.resample_fps))
    indices = window_indices(clip, count, count / info.duration_s, count, 1)  # all of the clip
    return int(indices[-1] - indices[0]) + 1


def normal_and_fast(available: int, frames: int, generator: torch.Generator) -> Tensor:
    """Which frames of a run the two copies show: (2, frames), ascending, from the same start.

    A common start keeps the distance from the file's key frame out of the task. What overruns the
    end is drawn again (never padded: repeated frames would give the class away), which in clips
    shorter than about 3 `frames` makes the fast copy slower than its factor says (1.95 on average;
    measured 1.92 with 24 frames for 8, and 1.63 in the toy worlds' clips, 8 frames for 4).
    VideoError where fewer than 2 `frames` are available.
    """
    if available < 2 * frames:
        raise VideoError(f"{available} frames in the clip, 2 speeds need at least {2 * frames}")
    copies = []
    for low, high in (NORMAL, FAST):
        factor = low + (high - low) * float(torch.rand((), generator=generator))
        while (kept := keep_frames(frames, factor, generator))[-1] >= available:
            pass
        copies.append(kept)
    picked = torch.stack(copies)
    start = torch.randint(available - int(picked.max()), (), generator=generator)
    return picked + start


def keep_frames(frames: int, factor: float, generator: torch.Generator) -> Tensor:
    """Drop each next frame with probability 1 − 1/factor until `frames` are kept: their indices.

    The first is 0; the mean distance between two kept frames is `factor`. A fixed stride would be
    visible by itself.
    """
    kept, position = [0], 0
    while len(kept) < frames:
        position += 1
        if float(torch.rand((), generator=generator)) < 1 / factor:
            kept.append(position)
    return torch.tensor(kept)


class ArrowHead(nn.Module):
    """T-CAM: the maps of the two halves of the frames side by side, so that order is visible.

    Both convolutions have 2 C channels, the halves one after the other.
    """

    def __init__(self, channels: int):
        super().__init__()
        wide = 2 * channels

        def block() -> tuple[nn.Module, ...]:
            convolution = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
            return convolution, nn.BatchNorm2d(wide), nn.ReLU(inplace=True), nn.Dropout2d(DROPOUT)

        self.layers = nn.Sequential(*block(), *block())
        self.classifier = nn.Conv2d(wide, 1, 1)

    def heat(self, maps: Tensor) -> Tensor:
        """Where the picture looks reversed: (N, F, C, h, w) → (N, h, w), whose mean is the logit.

        ValueError for one frame, which has no direction.
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


class SpeedHead(AverageHead):
    """Largest value over space, mean over the frames, one logit."""

    def forward(self, maps: Tensor) -> Tensor:
        """(N, F, C, h, w) to (N,) logits, positive for sped-up clips."""
        return self.classifier(maps.amax((3, 4)).mean(1))[:, 0]
