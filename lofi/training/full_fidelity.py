"""Frozen-encoder features at full fidelity, and stage 3: a head trained from scratch on them.

Source: LoFi paper section 3 (evaluation of an optimised encoder); recipe: released G-TAD.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lofi.config import Config
from lofi.data import (
    ClipReader,
    ClipRequest,
    FeatureHeader,
    Video,
    VideoError,
    probe,
    read_features,
    write_features,
)
from lofi.data.datasets import fingerprint, open_reader
from lofi.data.reading import frame_grid, training_items
from lofi.data.snippets import windows
from lofi.heads import Targets, collate_targets
from lofi.training.distributed import barrier, first_alone, is_first, restarted, share
from lofi.training.end_to_end import encode
from lofi.training.joint import (
    head_losses,
    logical_batch,
    video_request,
    video_targets,
)
from lofi.training.loop import Batches, OnStep, Training, fit, prefetched
from lofi.training.models import (
    Standardise,
    build_head,
    common_settings,
    load_encoder,
    run_data,
    save_head,
    standardises,
)
from lofi.training.run_folder import RunFolder


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
    data = run_data(config, run_dir)
    encoder, sha256 = load_encoder(config, run_dir, method)
    encoder.to(device).eval()
    folder = Path(run_dir) / method / "features"
    settings = common_settings(config) | {"stage": "features", "encoder_sha256": sha256}
    run = RunFolder(folder, settings, resume)
    with first_alone():
        if is_first() and not (resume or restarted()):
            for path in folder.glob("*.safetensors"):
                path.unlink()
    videos = [*data.train, *data.test]
    mine = [videos[i] for i in share(len(videos))]
    with run.logging(), open_reader(config.data) as reader:
        _extract(config, encoder, sha256, mine, run, reader, on_step)
    barrier()  # every process has written its share
    run.finish({"videos": len(videos), "encoder_sha256": sha256, "skipped": run.skipped()})
    return folder


def _extract(config, encoder, sha256, videos, run: RunFolder, reader: ClipReader, on_step) -> None:
    """Features of this process's videos; the next ones are decoded while the encoder works."""
    paths = [run.folder / f"{video.id}.safetensors" for video in videos]
    jobs: list[tuple[int, ClipRequest, bool]] = []  # video, piece, is it the video's last one
    for i in (i for i, path in enumerate(paths) if not path.exists()):
        try:
            pieces = full_requests(config, videos[i].path)
        except VideoError as error:
            run.skip(videos[i].id, error)
            continue
        jobs += [(i, piece, piece is pieces[-1]) for piece in pieces]

    def read(job: int):
        clip = reader.read([jobs[job][1]])[0]
        return clip, None if isinstance(clip, Exception) else reader.info(jobs[job][1].path)

    parts: list[torch.Tensor | None] = []
    loaded = prefetched(read, 0, len(jobs), config.data.workers)
    for (i, _, last), (clip, info) in zip(jobs, loaded):
        if info is None:
            run.skip(videos[i].id, clip)
        parts.append(None if info is None else clip_features(encoder, clip))
        if not last:
            continue
        if all(part is not None for part in parts):
            features = torch.cat(parts, dim=1)
            header = feature_header(config, encoder.name, sha256, info)
            write_features(paths[i], features, replace(header, snippets=features.shape[1]))
        parts = []
        if on_step and is_first():
            on_step(i, len(videos), {})


def full_requests(config: Config, path) -> list[ClipRequest]:
    """The clips that make up one video at full fidelity: one, or with windows several.

    With `data.window_stride` a snippet stands every so many frames up to the end of the video; at
    most `full.snippets` of them are held in memory at a time.

    Raises:
        VideoError: the frames of a video to be cut into windows cannot be counted.
    """
    stride, full = config.data.window_stride, config.full
    if not stride:
        return [video_request(config, path, full)]
    count = -(-frame_grid(config.data, probe(path))[0] // stride)
    found = []
    for first in range(0, count, full.snippets):
        end = min(first + full.snippets, count)
        span = first * stride, end * stride
        piece = replace(full, snippets=end - first)
        found.append(video_request(config, path, piece, span=span))
    return found


@torch.no_grad()
def clip_features(encoder: nn.Module, clip: torch.Tensor, chunk: int = 16) -> torch.Tensor:
    """(C, L) features of the snippets (L, F, 3, S, S) uint8 of one video, on the CPU.

    `chunk` snippets pass the (eval mode) encoder at a time; the result does not depend on it.
    """
    device = next(encoder.parameters()).device
    parts = [encode(encoder, part[None].to(device))[0].cpu() for part in clip.split(chunk)]
    return torch.cat(parts, dim=1)


def video_features(config: Config, encoder: nn.Module, path, chunk: int = 16):
    """Features of one video at full fidelity and what was found in the file.

    (C, L) of a whole video; with `data.window_stride` (C, T), T snippets that many frames apart.
    """
    requests = full_requests(config, path)
    parts = [clip_features(encoder, request.read(), chunk) for request in requests]
    return torch.cat(parts, dim=1), probe(path)


def head_inputs(config: Config, features: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """(first frame, (C, L) features) of every window of a video; of the video itself without.

    Args:
        features: of `video_features`.
    """
    stride, snippets = config.data.window_stride, config.full.snippets
    if not stride:
        return [(0, features)]
    found = windows(features.shape[1] * stride, snippets, stride)
    return [(w.first_frame, _window(features, w.first_frame // stride, snippets)) for w in found]


def _window(features: torch.Tensor, first: int, snippets: int) -> torch.Tensor:
    part = features[:, first : first + snippets]
    return F.pad(part, (0, snippets - part.shape[1]))  # zeros behind the end, as released


def feature_header(config: Config, encoder: str, sha256: str, info) -> FeatureHeader:
    """The header that files of this encoder and sampling carry."""
    full = config.full
    return FeatureHeader(
        encoder=encoder,
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
    """{video id: `video_features`} of the videos that have a file; {} is an error.

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
    videos = run_data(config, run_dir).train
    setting = config.head_training
    features = load_features(run_dir, method, videos)
    videos = training_items(
        [video for video in videos if video.id in features], config.data, config.full.snippets
    )
    _, sha256 = load_encoder(config, run_dir, method)
    settings = {"stage": "head", "encoder_sha256": sha256, "videos": fingerprint(videos)}
    settings |= common_settings(config) | {
        "head": asdict(config.head),
        "training": asdict(setting),
        "standardise": standardises(config, method),
    }
    run = RunFolder(Path(run_dir) / method / "head", settings, resume)
    if (done := run.result()) is not None:
        return done
    standardise = Standardise(next(iter(features.values())).shape[0])
    if standardises(config, method):
        standardise.fit_to(list(features.values()))
    head = build_head(config.head, standardise.mean.shape[0], config.full.snippets, config.seed)
    modules = {"standardise": standardise.to(device), "head": head.to(device)}
    batches = Batches(len(videos), setting.batch, setting.epochs, (config.seed, "head"))
    labels = [video_targets(config, v, probe(v.path).duration_s, config.full) for v in videos]

    def features_of(video: Video) -> torch.Tensor:
        found = features[video.id]
        if video.span is None:
            return found
        return _window(found, video.span[0] // config.data.window_stride, config.full.snippets)

    def load(step: int):
        chosen = batches.at(step)
        places = share(len(chosen))
        x = [features_of(videos[chosen[i]]) for i in places]
        y = [labels[chosen[i]] for i in places or [0]]  # an empty share still has a shape
        y = Targets(*(t[: len(places)] for t in collate_targets(y)))
        return (torch.stack(x) if x else None), y, places, len(chosen)

    def losses(batch, step: int):
        x, y, places, total = batch
        draws, statistics = logical_batch(config, y, places, total, (config.seed, "head", step))
        if x is None:
            return None
        maps = head(standardise(x.to(device)))
        y = Targets(*(t.to(device) for t in y))
        return head_losses(config, maps, y, draws.to(device), statistics)

    fit(Training(modules, setting, batches, load, losses, 0, config.checkpoint_every), run, on_step)
    if is_first():
        save_head(run.folder / "head.safetensors", head, config.head, standardise)
    return run.finish({"head": "head.safetensors", "encoder_sha256": sha256})
