"""Stage 1: action-classification pre-training of the encoder (ACP) and its continuation (ACP+).

Source: LoFi paper sections 3.1 and 4.1 (baselines); recipe of the real-size presets: TSM on
Kinetics-400. The classifier is thrown away, the encoder stays.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lofi.config import Config, Optimisation
from lofi.data import FrameCache, TrimmedClip, VideoError, read_trimmed_clip
from lofi.data.datasets import fingerprint, open_datasets
from lofi.encoders import build_encoder, normalise
from lofi.training.augmentation import colour, draw_geometry
from lofi.training.loop import Batches, OnStep, RunFolder, Training, fit, generator_for
from lofi.training.models import common_settings, load_encoder, save_stage_encoder


def train_acp(
    config: Config,
    run_dir: str | Path,
    *,
    resume: bool = True,
    on_step: OnStep | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Action-classification pre-training on the source clips.

    Returns:
        {"encoder": path, "accuracy": on held-out source clips, "sha256", …}; also in result.json.
    """
    clips = open_datasets(config.data, config.seed, run_dir).clips
    if not clips:
        raise ValueError(
            "stage acp needs trimmed source clips: set data.source to a list of clips, or to "
            "'segments' to classify the labelled segments of your training videos"
        )
    encoder = build_encoder(config.encoder, seed=config.seed)
    settings = {"stage": "acp", "clips": fingerprint(clips)}
    return _classify(
        config, Path(run_dir) / "acp", encoder, clips, config.acp, settings, resume, on_step, device
    )


def train_acp_plus(
    config: Config,
    run_dir: str | Path,
    *,
    resume: bool = True,
    on_step: OnStep | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """ACP+: go on with classification, on the trimmed segments of the target training videos."""
    segments = open_datasets(config.data, config.seed, run_dir).segments
    encoder, start = load_encoder(config, run_dir, "acp")
    settings = {"stage": "acp+", "clips": fingerprint(segments), "start": start}
    return _classify(
        config, Path(run_dir) / "acp+", encoder, segments, config.acp_plus, settings, resume,
        on_step, device,
    )  # fmt: skip


HELD_OUT = 10  # without subsets in the list, every tenth source clip only measures accuracy


def split_clips(clips: Sequence[TrimmedClip]) -> tuple[list[TrimmedClip], list[TrimmedClip]]:
    """(clips to train on, held-out clips): by the list's subset, else every tenth is held out."""
    held = [clip.subset in ("validation", "val", "test") for clip in clips]
    if not any(held):
        held = [i % HELD_OUT == 0 for i in range(len(clips))]
    kept = [clip for clip, out in zip(clips, held) if not out]
    return kept, [clip for clip, out in zip(clips, held) if out]


def _classify(
    config: Config,
    folder: Path,
    encoder: nn.Module,
    clips: Sequence[TrimmedClip],
    setting: Optimisation,
    settings: dict[str, Any],
    resume: bool,
    on_step: OnStep | None,
    device: str,
) -> dict[str, Any]:
    stage = settings["stage"]
    settings |= common_settings(config) | {"training": asdict(setting), "frames": config.acp_frames}
    run = RunFolder(folder / "encoder", settings, resume)
    if (done := run.result()) is not None:
        return done
    names = sorted({clip.label for clip in clips})
    kept, held = split_clips(clips) if stage == "acp" else (list(clips), [])
    torch.manual_seed(config.seed)  # the classifier's framework initialisation
    classifier = nn.Linear(encoder.channels, len(names))
    modules = {"encoder": encoder.to(device), "classifier": classifier.to(device)}
    batches = Batches(len(kept), setting.batch, setting.epochs, (config.seed, stage))
    read = _clip_reader(config, run, setting.augment)

    def load(step: int):
        return read([kept[i] for i in batches.at(step)], (config.seed, stage, step))

    def losses(batch, step: int):
        if batch is None:
            return None
        x, labels = batch
        logits = classifier(encoder(normalise(x.to(device), encoder)))
        label = torch.tensor([names.index(name) for name in labels], device=device)
        accuracy = (logits.argmax(1) == label).float().mean()
        return {"loss": F.cross_entropy(logits, label), "accuracy": accuracy}

    encoder.train()
    fit(
        Training(
            modules, setting, batches, load, losses, config.data.workers, config.checkpoint_every
        ),
        run,
        on_step,
    )
    accuracy = _accuracy(config, encoder, classifier, held, names, run, device) if held else None
    result = save_stage_encoder(config, run, encoder, stage)
    return run.finish(result | {"accuracy": accuracy, "classes": names})


def _clip_reader(config: Config, run: RunFolder, augment: str) -> Callable:
    cache = FrameCache(int(config.data.cache_gib * 2**30)) if config.data.cache_gib else None

    def read(clips: Sequence[TrimmedClip], address: tuple | None):
        draws = generator_for(*address, "augmentation") if address else None
        frames, labels = [], []
        for clip in clips:
            geometry = draw_geometry(augment, draws) if address else None
            try:
                frames.append(
                    read_trimmed_clip(
                        clip,
                        config.acp_frames,
                        config.full.pixels,
                        frame_stride=config.data.frame_stride,
                        crop_ratio=config.data.crop_ratio,
                        augmentation=geometry,
                        cache=cache,
                    )
                )
                labels.append(clip.label)
            except (VideoError, FileNotFoundError) as error:
                run.skip(str(clip.path), error)
        if not frames:
            return None
        x = torch.stack(frames)
        return (colour(x, draws) if address and augment == "colour" else x), labels

    return read


@torch.no_grad()
def _accuracy(config, encoder, classifier, clips, names, run, device) -> float:
    encoder.eval()
    read = _clip_reader(config, run, "none")
    right = total = 0
    for start in range(0, len(clips), 64):
        batch = read(clips[start : start + 64], None)
        if batch is None:
            continue
        x, labels = batch
        found = classifier(encoder(normalise(x.to(device), encoder))).argmax(1).tolist()
        right += sum(names[i] == label for i, label in zip(found, labels))
        total += len(labels)
    return right / max(1, total)
