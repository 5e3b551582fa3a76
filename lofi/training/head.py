"""Frozen-encoder features at full fidelity, and stage 3: a head trained from scratch on features.

Source: LoFi paper section 3 (evaluation of an optimised encoder); recipe: released G-TAD. Stage 3
needs annotations and a `FeatureStore`, no videos: features may be our own or published ones.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lofi.config import Config
from lofi.data import ClipReader, ClipRequest, Video, VideoError, VideoInfo, probe
from lofi.data.datasets import Datasets, fingerprint, open_reader, video_grid, video_request
from lofi.data.features import (
    FeatureHeader,
    Features,
    FeatureStore,
    resize_features,
    write_features,
)
from lofi.data.grid import training_parts
from lofi.data.snippets import windows
from lofi.heads import part_of, to_device
from lofi.heads.scaled import ScaledHead
from lofi.training.distributed import barrier, first_alone, is_first, reduce_sum, restarted, share
from lofi.training.end_to_end import encode
from lofi.training.loop import Batches, OnStep, Training, backward, fit, generator_for, prefetched
from lofi.training.methods import (
    command,
    default_method,
    head_dir,
    head_variant,
    load_encoder,
    run_data,
    standardises,
    video_settings,
)
from lofi.training.run_folder import RunFolder

log = logging.getLogger(__name__)


# ------------------------------------------------------------------------------- features of videos


def extract_features(
    config: Config,
    run_dir: str | Path,
    method: str = "",
    *,
    resume: bool = True,
    on_step: OnStep | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Features of every training and test video at full fidelity, one file a video.

    Files that an interrupted run left are kept; `resume=False` computes all of them again. Videos
    that do not decode are in `skipped`; a later run tries them again.
    """
    method = method or default_method(config)
    if method == "published":
        raise ValueError("published features (data.features.folder) need no extraction")
    data = run_data(config, run_dir)
    encoder, sha256 = load_encoder(config, run_dir, method)
    encoder.to(device).eval()
    settings = video_settings(config) | {"stage": "features", "encoder_sha256": sha256}
    run = RunFolder(Path(run_dir) / method / "features", settings, resume)
    with first_alone():
        if is_first():
            (run.folder / "result.json").unlink(missing_ok=True)  # until this run is complete
            run.forget_skipped()
            if not (resume or restarted()):
                for path in run.folder.glob("*.safetensors"):
                    path.unlink()
    videos = [*data.train, *data.test]
    header = feature_header(config, encoder.name, sha256)
    mine = [videos[i] for i in share(len(videos))]
    with run.logging(), open_reader(config.data) as reader:
        _extract(config, encoder, header, mine, run, reader, on_step)
    barrier()  # every process has written its share
    skipped = run.skipped()
    return run.finish({"videos": len(videos), "encoder_sha256": sha256, "skipped": skipped})


def _extract(config, encoder, header, videos, run: RunFolder, reader: ClipReader, on_step) -> None:
    """Features of this process's videos; the next ones are decoded while the encoder works."""
    paths = [run.folder / f"{video.id}.safetensors" for video in videos]
    jobs: list[tuple[int, ClipRequest, bool]] = []  # video, piece, is it the video's last one
    for i in (i for i, path in enumerate(paths) if not path.exists()):
        if videos[i].path is None:
            run.skip(videos[i].id, FileNotFoundError("no video file"))
            continue
        try:
            pieces = full_requests(config, videos[i].path)
        except VideoError as error:
            run.skip(videos[i].id, error)
            continue
        jobs += [(i, piece, piece is pieces[-1]) for piece in pieces]

    def read(job: int):
        clip = reader.read([jobs[job][1]])[0]
        return clip, None if isinstance(clip, Exception) else reader.info(jobs[job][1].path)

    parts: list[Tensor | None] = []
    loaded = prefetched(read, 0, len(jobs), config.data.workers)
    for (i, _, last), (clip, info) in zip(jobs, loaded):
        if info is None:
            run.skip(videos[i].id, clip)
        parts.append(None if info is None else clip_features(encoder, clip))
        if not last:
            continue
        if all(part is not None for part in parts):
            features = torch.cat(parts, dim=1)
            found = {"num_frames": info.num_frames, "fps": info.fps, "video": videos[i].id}
            write_features(paths[i], features, replace(header, snippets=features.shape[1], **found))
        parts = []
        if on_step and is_first():
            on_step(i, len(videos), {})


def full_requests(config: Config, path: str | Path) -> list[ClipRequest]:
    """The clips that make up one video at full fidelity: one, or with windows several.

    With `data.window_stride` a snippet stands every so many frames up to the end of the video; at
    most `full.snippets` of them are held in memory at a time.

    Raises:
        VideoError: the frames of a video to be cut into windows cannot be counted.
    """
    data, full = config.data, config.full
    if not data.window_stride:
        return [video_request(data, path, full)]
    grid = video_grid(data, probe(path), full.snippets)
    found = []
    for first in range(0, grid.steps, full.snippets):
        piece = grid.window(first, min(full.snippets, grid.steps - first))
        fidelity = replace(full, snippets=piece.steps)
        found.append(video_request(data, path, fidelity, grid=piece))
    return found


@torch.no_grad()
def clip_features(encoder: nn.Module, clip: Tensor, chunk: int = 16) -> Tensor:
    """(C, L) features of the snippets (L, F, 3, S, S) uint8 of one video, on the CPU.

    `chunk` snippets pass the (eval mode) encoder at a time; the result does not depend on it.
    """
    device = next(encoder.parameters()).device
    parts = [encode(encoder, part[None].to(device))[0].cpu() for part in clip.split(chunk)]
    return torch.cat(parts, dim=1)


def video_features(
    config: Config, encoder: nn.Module, path: str | Path
) -> tuple[Features, VideoInfo]:
    """Features of one video file at full fidelity, and what was found in the file."""
    requests = full_requests(config, path)
    values = torch.cat([clip_features(encoder, request.read()) for request in requests], dim=1)
    info = probe(path)
    return Features(values, video_grid(config.data, info, config.full.snippets)), info


def feature_header(config: Config, encoder: str, sha256: str) -> FeatureHeader:
    """What features of this encoder and configuration have to have been made of."""
    data, full = config.data, config.full
    return FeatureHeader(
        encoder=encoder,
        encoder_sha256=sha256,
        snippets=None if data.window_stride else full.snippets,
        frames=full.frames,
        pixels=full.pixels,
        frame_stride=data.frame_stride,
        rule=data.rule,
        crop_ratio=data.crop_ratio,
        resample_fps=data.resample_fps,
        window_stride=data.window_stride,
    )


def open_features(config: Config, run_dir: str | Path, method: str, data: Datasets) -> FeatureStore:
    """The features of a method, its own or published ones, for every stage behind them.

    Raises:
        FileNotFoundError, ValueError: not extracted, incomplete, or made otherwise; names the
            command that helps.
    """
    if method == "published":
        if not config.data.features.folder:
            raise ValueError("method published: set data.features.folder to the features' folder")
        return FeatureStore.published(config.data.features, [*data.train, *data.test])
    encoder, sha256 = load_encoder(config, run_dir, method)
    cure = f"run: {command('features', config, run_dir, method)}"
    header = feature_header(config, encoder.name, sha256)
    return FeatureStore.extracted(Path(run_dir) / method / "features", header, cure)


def head_inputs(config: Config, features: Features) -> list[Features]:
    """What the head sees of one video: windows of it, or the whole of it with L steps.

    Raises:
        ValueError: `data.window_stride` is not the distance of these features' steps.
    """
    values, grid = features
    steps, stride = config.full.snippets, config.data.window_stride
    if not stride:
        whole = replace(grid, steps=steps, stride=0, offset_s=0.0, length_s=grid.covered_s)
        values = values if values.shape[1] == steps else resize_features(values, steps)
        return [Features(values, whole)]
    if grid.stride != stride:
        raise ValueError(
            f"data.window_stride is {stride}, but features stand {grid.stride or 'no fixed number'}"
            f"{' of' * (not grid.stride)} frames apart; set it to that, or to 0 for whole videos"
        )
    return [
        windowed(features, window.first_frame // stride, steps)
        for window in windows(values.shape[1] * stride, steps, stride)
    ]


def windowed(features: Features, first: int, steps: int) -> Features:
    """`steps` steps from `first` on; zeros behind the end, as released."""
    part = features.values[:, first : first + steps]
    part = F.pad(part, (0, steps - part.shape[1]))
    return Features(part, features.grid.window(first, steps))


# ------------------------------------------------------------------------------------------ stage 3


def train_head(
    config: Config,
    run_dir: str | Path,
    method: str = "",
    *,
    variant: str = "",
    resume: bool = True,
    on_step: OnStep | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Stage 3: a head from scratch on the frozen encoder's full-fidelity features.

    Args:
        variant: changes for this head alone, see `head_variant`; "" = as configured.
    """
    method = method or default_method(config)
    data = run_data(config, run_dir)
    store = open_features(config, run_dir, method, data)
    config = head_variant(config, variant)
    setting = config.head_training
    features = {video.id: store[video.id] for video in store.require(data.train)}
    items = _training_items(config, data.train, features)
    settings = {
        "stage": "head",
        "features": store.identity,
        "videos": fingerprint([video for video, _ in items]),
        "seed": config.seed,
        "snippets": config.full.snippets,
        "window_stride": config.data.window_stride,
        "head": asdict(config.head),
        "training": asdict(setting),
        "standardise": standardises(config, method),
    }
    run = RunFolder(head_dir(run_dir, method, variant), settings, resume)
    if (done := run.result()) is not None:
        return done
    channels = next(iter(features.values())).values.shape[0]
    scaled = ScaledHead(config.head, channels, len(data.classes), config.seed)
    if standardises(config, method):
        scaled.standardise.fit_to([found.values for found in features.values()])
    head = scaled.to(device).head
    labels = [head.targets(video, part.grid) for video, part in items]
    batches = Batches(len(items), setting.batch, setting.epochs, (config.seed, "head"))

    def load(step: int):
        chosen = batches.at(step)
        places = share(len(chosen))
        mine = [chosen[i] for i in places or [0]]  # an empty share still has a shape
        x = torch.stack([items[i][1].values for i in mine])[: len(places)]
        mask = torch.stack([torch.from_numpy(items[i][1].grid.inside()) for i in mine])
        y = part_of(head.collate([labels[i] for i in mine]), slice(len(places)))
        return x, mask[: len(places)], y, places, len(chosen)

    def step(batch, number: int):
        x, mask, y, places, total = batch
        draws = head.draws(total, y, generator_for(config.seed, "head", number, "loss"))[places]
        statistics = head.statistics(y, draws, reduce_sum)
        if not places:
            return None
        outputs = scaled(x.to(device), mask.to(device))
        return backward(head.losses(outputs, to_device(y, device), statistics, draws.to(device)))

    modules = {"head": scaled}
    fit(Training(modules, setting, batches, load, step, 0, config.checkpoint_every), run, on_step)
    if is_first():
        scaled.save(run.folder / "head.safetensors")
    return run.finish({"head": "head.safetensors", "features": store.identity})


def _training_items(
    config: Config, videos: Sequence[Video], features: dict[str, Features]
) -> list[tuple[Video, Features]]:
    """Whole videos, or the windows that hold most of an action; segments count from their start."""
    items = []
    for video in (video for video in videos if video.id in features):
        whole = features[video.id]
        if not config.data.window_stride:
            items.append((video, head_inputs(config, whole)[0]))
            continue
        head_inputs(config, whole)  # refuses another distance between the steps
        steps, stride = config.full.snippets, config.data.window_stride
        for part, grid in training_parts(video, whole.grid, steps):
            items.append((part, windowed(whole, grid.first_frame // stride, steps)))
    if not items:
        raise ValueError(
            f"no window of {config.full.snippets} steps holds an action of the {len(videos)} "
            "videos; set full.snippets to more steps"
        )
    return items
