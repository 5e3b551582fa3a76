"""Stage 2: joint training of encoder and head on low-fidelity mini-batches (LoFi).

Source: LoFi paper section 3.2 and supplement B. A mini-batch holds fewer snippets, fewer pixels or
both; its size in videos never changes and the full fidelity never occurs.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lofi.config import Config
from lofi.data import FrameCache, Video, VideoError, probe, read_clip
from lofi.data.datasets import fingerprint, open_datasets
from lofi.encoders import freeze_batch_norm, normalise
from lofi.fidelity import Fidelity, schedule
from lofi.heads import collate_targets, loss, targets
from lofi.training.augmentation import colour, draw_geometry
from lofi.training.loop import Batches, OnStep, RunFolder, Training, fit, generator_for
from lofi.training.models import (
    Standardise,
    build_head,
    common_settings,
    label_rule,
    load_encoder,
    lofi_method,
    save_head,
    save_stage_encoder,
)


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
    videos = open_datasets(config.data, config.seed, run_dir).train
    setting, method = config.lofi.training, lofi_method(config)
    encoder, start = load_encoder(config, run_dir, config.lofi.start)
    settings = {"stage": "lofi", "start": start, "videos": fingerprint(videos)}
    settings |= common_settings(config) | {"lofi": asdict(config.lofi), "head": asdict(config.head)}
    settings |= {"standardise": config.standardise}
    run = RunFolder(Path(run_dir) / method / "encoder", settings, resume)
    if (done := run.result()) is not None:
        return done
    head = build_head(config.head, encoder.channels, config.full.snippets, config.seed)
    scale = Standardise(encoder.channels)
    modules = {"encoder": encoder.to(device), "scale": scale.to(device), "head": head.to(device)}
    if config.lofi.frozen_bn:
        freeze_batch_norm(encoder)
    plan = schedule(
        config.lofi.schedule,
        config.full,
        period_epochs=config.lofi.period_epochs,
        period_iterations=config.lofi.period_iterations,
    )
    batches = Batches(len(videos), setting.batch, setting.epochs, (config.seed, "lofi"))
    read = _video_reader(config, run, setting.augment)

    def load(step: int):
        fidelity = plan.at(step // batches.per_epoch, step)
        return read([videos[i] for i in batches.at(step)], fidelity, (config.seed, "lofi", step))

    def losses(batch, step: int):
        if batch is None:
            return None
        maps = head(scale(encode(encoder, batch[0].to(device))))
        return head_losses(config, maps, batch[1], (config.seed, "lofi", step), device)

    if config.standardise:
        scale.fit_to(_first_features(encoder, load, min(STATISTICS_STEPS, batches.steps), device))
    encoder.train()
    training = Training(
        modules, setting, batches, load, losses, config.data.workers, config.checkpoint_every,
        describe=lambda step: ", ".join(videos[i].id for i in batches.at(step)),
    )  # fmt: skip
    fit(training, run, on_step)
    save_head(run.folder / "head.safetensors", head, config.head, scale)
    return run.finish(save_stage_encoder(config, run, encoder, method))


STATISTICS_STEPS = 8  # mini-batches whose features give the input statistics of the head


@torch.no_grad()
def _first_features(encoder: nn.Module, load: Callable, steps: int, device: str):
    """Features of the first mini-batches before training: the scale that the head starts from."""
    encoder.eval()
    batches = [load(step) for step in range(steps)]
    clips = [clip for batch in batches if batch is not None for clip in batch[0]]
    return [encode(encoder, clip[None].to(device))[0] for clip in clips]


def encode(encoder: nn.Module, clips: torch.Tensor) -> torch.Tensor:
    """Snippet features of whole videos: (B, L, F, 3, S, S) uint8 → (B, C, L).

    Every snippet passes the encoder as a clip of its own, so the temporal shift never crosses two.
    """
    videos, snippets = clips.shape[:2]
    features = encoder(normalise(clips.flatten(0, 1), encoder))
    return features.view(videos, snippets, -1).transpose(1, 2)


def _video_reader(config: Config, run: RunFolder, augment: str) -> Callable:
    cache = FrameCache(int(config.data.cache_gib * 2**30)) if config.data.cache_gib else None

    def read(videos: Sequence[Video], fidelity: Fidelity, address: tuple):
        draws = generator_for(*address, "augmentation")
        clips, labels = [], []
        for video in videos:
            geometry = draw_geometry(augment, draws)  # one draw a video, shared by its snippets
            try:
                clips.append(read_video(config, video.path, fidelity, geometry, cache))
                duration = probe(video.path).duration_s
            except (VideoError, FileNotFoundError) as error:
                run.skip(video.id, error)
                continue
            times = segment_times(video)
            labels.append(targets(times, duration, fidelity.snippets, rule=label_rule(config.head)))
        if not clips:
            return None
        x = torch.stack(clips)
        if augment == "colour":
            x = colour(x.flatten(1, 2), draws).view(x.shape)
        return x, collate_targets(labels)

    return read


def read_video(config: Config, path, fidelity: Fidelity, augmentation=None, cache=None):
    """Snippets of one video as the configuration cuts them: uint8 (L, F, 3, S, S)."""
    return read_clip(
        path,
        fidelity,
        frame_stride=config.data.frame_stride,
        rule=config.data.rule,
        crop_ratio=config.data.crop_ratio,
        augmentation=augmentation,
        cache=cache,
    )


def segment_times(video: Video) -> torch.Tensor:
    """(N, 2) float64 seconds of a video's segments of positive length."""
    times = [[s.start_s, s.end_s] for s in video.segments if s.end_s > s.start_s]
    return torch.tensor(times, dtype=torch.float64).reshape(-1, 2)


def head_losses(config: Config, maps, batch_targets, address: tuple, device: str):
    """The head's named losses of one step; what they draw at random follows from `address`."""
    batch_targets = type(batch_targets)(*(t.to(device) for t in batch_targets))
    terms = loss(
        maps,
        batch_targets,
        rule="thumos" if config.head.variant == "thumos" else "anet",
        generator=generator_for(*address, "loss"),
        best_anchor=config.head.best_anchor,
    )
    return {
        "loss": terms.total,
        "node": terms.node,
        "regression": terms.regression,
        "classification": terms.classification,
    }
