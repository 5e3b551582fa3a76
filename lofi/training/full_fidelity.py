"""Frozen-encoder features at full fidelity, and stage 3: a head trained from scratch on them.

Source: LoFi paper section 3 (evaluation of an optimised encoder); recipe: released G-TAD.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lofi.config import Config
from lofi.data import (
    FeatureHeader,
    Video,
    VideoError,
    probe,
    read_features,
    write_features,
)
from lofi.data.datasets import fingerprint, open_datasets
from lofi.heads import collate_targets, targets
from lofi.training.joint import encode, head_losses, read_video, segment_times
from lofi.training.loop import Batches, OnStep, RunFolder, Training, fit
from lofi.training.models import (
    Standardise,
    build_head,
    common_settings,
    label_rule,
    load_encoder,
    save_head,
)


def extract_features(
    config: Config,
    run_dir: str | Path,
    method: str,
    *,
    resume: bool = True,
    on_step: OnStep | None = None,
    device: str = "cpu",
) -> Path:
    """Features of every training and test video at full fidelity; returns their folder.

    Files that an interrupted run left are kept; `resume=False` computes all of them again.
    """
    data = open_datasets(config.data, config.seed, run_dir)
    encoder, sha256 = load_encoder(config, run_dir, method)
    encoder.to(device).eval()
    folder = Path(run_dir) / method / "features"
    settings = common_settings(config) | {"stage": "features", "encoder_sha256": sha256}
    run = RunFolder(folder, settings, resume)
    if not resume:
        for path in folder.glob("*.safetensors"):
            path.unlink()
    videos = [*data.train, *data.test]
    with run.logging():
        _extract(config, encoder, sha256, videos, run, on_step)
    run.finish({"videos": len(videos), "encoder_sha256": sha256})
    return folder


def _extract(config, encoder, sha256, videos, run: RunFolder, on_step) -> None:
    for i, video in enumerate(videos):
        path = run.folder / f"{video.id}.safetensors"
        if not path.exists():
            try:
                features, info = video_features(config, encoder, video.path)
            except (VideoError, FileNotFoundError) as error:
                run.skip(video.id, error)
                continue
            write_features(path, features, feature_header(config, sha256, info))
        if on_step:
            on_step(i, len(videos), {})


@torch.no_grad()
def video_features(config: Config, encoder: nn.Module, path, chunk: int = 16):
    """(C, L) features of one video at full fidelity and what was found in the file.

    `chunk` snippets pass the (eval mode) encoder at a time; the result does not depend on it.
    """
    device = next(encoder.parameters()).device
    info = probe(path)
    clips = read_video(config, path, config.full)
    parts = [encode(encoder, part[None].to(device))[0].cpu() for part in clips.split(chunk)]
    return torch.cat(parts, dim=1), info


def feature_header(config: Config, sha256: str, info) -> FeatureHeader:
    """The header that files of this encoder and sampling carry."""
    full = config.full
    return FeatureHeader(
        encoder=config.encoder,
        encoder_sha256=sha256,
        snippets=full.snippets,
        frames=full.frames,
        pixels=full.pixels,
        frame_stride=config.data.frame_stride,
        rule=config.data.rule,
        num_frames=info.num_frames,
        fps=info.fps,
    )


def load_features(run_dir: str | Path, method: str, videos: Sequence[Video]) -> dict[str, Any]:
    """{video id: (C, L) features} of the videos that have a file; {} is an error.

    Raises:
        FileNotFoundError: none of the videos has features yet.
    """
    folder = Path(run_dir) / method / "features"
    paths = {video.id: folder / f"{video.id}.safetensors" for video in videos}
    found = {key: read_features(path) for key, path in paths.items() if path.exists()}
    if not found:
        raise FileNotFoundError(
            f"{folder}: no features of these videos; run: lofi features --out {run_dir} "
            f"--method {method}"
        )
    return found


def train_head(
    config: Config,
    run_dir: str | Path,
    method: str,
    *,
    resume: bool = True,
    on_step: OnStep | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Stage 3: a head from scratch on the frozen encoder's full-fidelity features."""
    videos = open_datasets(config.data, config.seed, run_dir).train
    setting = config.head_training
    features = load_features(run_dir, method, videos)
    videos = [video for video in videos if video.id in features]
    _, sha256 = load_encoder(config, run_dir, method)
    settings = {"stage": "head", "encoder_sha256": sha256, "videos": fingerprint(videos)}
    settings |= common_settings(config) | {
        "head": asdict(config.head),
        "training": asdict(setting),
        "standardise": config.standardise,
    }
    run = RunFolder(Path(run_dir) / method / "head", settings, resume)
    if (done := run.result()) is not None:
        return done
    standardise = Standardise(next(iter(features.values())).shape[0])
    if config.standardise:
        standardise.fit_to(list(features.values()))
    head = build_head(config.head, standardise.mean.shape[0], config.full.snippets, config.seed)
    modules = {"standardise": standardise.to(device), "head": head.to(device)}
    batches = Batches(len(videos), setting.batch, setting.epochs, (config.seed, "head"))
    labels = [
        targets(
            segment_times(v),
            probe(v.path).duration_s,
            config.full.snippets,
            rule=label_rule(config.head),
        )
        for v in videos
    ]

    def load(step: int):
        chosen = batches.at(step)
        x = torch.stack([features[videos[i].id] for i in chosen])
        return x, collate_targets([labels[i] for i in chosen])

    def losses(batch, step: int):
        maps = head(standardise(batch[0].to(device)))
        return head_losses(config, maps, batch[1], (config.seed, "head", step), device)

    fit(Training(modules, setting, batches, load, losses, 0, config.checkpoint_every), run, on_step)
    save_head(run.folder / "head.safetensors", head, config.head, standardise)
    return run.finish({"head": "head.safetensors", "encoder_sha256": sha256})
