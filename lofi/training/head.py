"""Frozen-encoder features at full fidelity, and stage 3: a head trained from scratch on features.

Source: LoFi paper section 3 (evaluation of an optimised encoder); recipe: released G-TAD. Stage 3
needs annotations and a `FeatureStore`, no videos: features may be our own or published ones.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lofi.config import Config
from lofi.data import ClipReader, ClipRequest, Video, VideoError
from lofi.data.datasets import fingerprint, open_reader
from lofi.data.features import Features, head_inputs, read_features, windowed, write_features
from lofi.data.isolated import each
from lofi.data.snippets import training_parts
from lofi.encoders.extraction import autocast, clip_features, full_requests, grad_scaler, placed
from lofi.heads import part_of, to_device
from lofi.heads.scaled import ScaledHead
from lofi.training import methods
from lofi.training.augmentation import crop_steps
from lofi.training.distributed import barrier, gather, is_first, reduce_sum, share
from lofi.training.loop import Batches, OnStep, Training, backward, fit, generator_for, prefetched
from lofi.training.run_folder import RunFolder

log = logging.getLogger(__name__)


def extract_features(
    config: Config, run_dir: str | Path, method: str = "", *, resume: bool = True,
    on_step: OnStep | None = None, device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """Features of every training and test video at full fidelity, one file a video.

    Files that an interrupted run left are kept where they are whole and of their video;
    `resume=False` computes all again. Videos that do not decode are in `skipped`, for a later run.
    """
    method = method or methods.default_method(config)
    if method == "published":
        raise ValueError("published features (data.features.folder) need no extraction")
    data = methods.run_data(config, run_dir)
    encoder, sha256 = methods.load_encoder(config, run_dir, method)
    placed(config, encoder, device).eval()
    settings = methods.video_settings(config) | {"stage": "features", "encoder_sha256": sha256}
    folder, videos = Path(run_dir) / method / "features", [*data.train, *data.test]
    header = methods.feature_header(config, encoder, sha256)
    mine = [videos[i] for i in share(len(videos))]
    lacking = _lacking(folder, header, mine)
    left_out = (folder / "skipped.jsonl").exists()
    whole = resume and not any(gather(bool(lacking) or left_out))  # untouched: others may read it
    run = RunFolder(folder, settings, resume, reopen=not whole)
    if whole and (done := run.result()) is not None:
        return done
    if not resume:
        lacking = _lacking(folder, header, mine)  # all, unless torchrun started it again
    with run.logging(), open_reader(config.data) as reader:
        for error in (e for e in lacking.values() if not isinstance(e, FileNotFoundError)):
            log.warning("%s (done now)", error)
        _extract(config, encoder, header, [*lacking], run, reader, on_step)
    barrier()  # every process has written its share
    skipped = run.skipped()
    if not list(run.folder.glob("[!.]*.safetensors")):
        first = f"{skipped[0]['item']}: {skipped[0]['reason']}"
        found = f"not one of {len(videos)} videos could be read (first: {first})"
        raise ValueError(f"{run.folder}: {found}; set data.videos, or see what lofi check finds")
    counts = methods.counts(len(videos), skipped)
    return run.finish({"videos": len(videos), "encoder_sha256": sha256} | counts)


def _lacking(folder: Path, header, videos: Sequence[Video]) -> dict[Video, Exception]:
    """The videos without whole features of their own, and what is wrong."""
    found = {}
    for video in videos:
        try:
            read_features(folder / f"{video.id}.safetensors", replace(header, video=video.id))
        except (FileNotFoundError, ValueError) as error:
            found[video] = error
    return found


def _extract(config, encoder, header, videos, run: RunFolder, reader: ClipReader, on_step) -> None:
    """Features of `videos`; the next ones are decoded while the encoder works."""
    paths = [run.folder / f"{video.id}.safetensors" for video in videos]
    jobs: list[tuple[int, ClipRequest, bool]] = []  # video, piece, is it the video's last one
    wanted = [i for i, video in enumerate(videos) if video.path is not None]
    for video in (video for video in videos if video.path is None):
        run.skip(video.id, FileNotFoundError(methods.NO_FILE))
    files = [videos[i].path for i in wanted]
    cut = each(partial(full_requests, config), files, config.data.workers)
    for i, pieces in zip(wanted, cut):
        if isinstance(pieces, VideoError):
            run.skip(videos[i].id, pieces)
            continue
        jobs += [(i, piece, piece is pieces[-1]) for piece in pieces]

    def read(job: int):
        clip = reader.read([jobs[job][1]])[0]
        return clip, None if isinstance(clip, Exception) else reader.info(jobs[job][1].path)

    parts: list[Tensor | None] = []
    pin = next(encoder.parameters()).is_cuda
    loaded = prefetched(read, 0, len(jobs), config.data.workers, pin)
    for (i, _, last), (clip, info) in zip(jobs, loaded):
        if info is None:
            run.skip(videos[i].id, clip)
        parts.append(None if info is None else clip_features(encoder, clip, amp=config.amp))
        if not last:
            continue
        if all(part is not None for part in parts):
            features = torch.cat(parts, dim=1)
            found = {"num_frames": info.num_frames, "fps": info.fps, "video": videos[i].id}
            write_features(paths[i], features, replace(header, snippets=features.shape[1], **found))
        parts = []
        if on_step and is_first():
            on_step(i, len(videos), {})


def train_head(
    config: Config, run_dir: str | Path, method: str = "", *, variant: str = "",
    resume: bool = True, on_step: OnStep | None = None, device: str = "cpu",
    without: Collection[str] = (), folder: str | Path = "", about: Mapping[str, Any] = {},
) -> dict[str, Any]:  # fmt: skip
    """Stage 3: a head from scratch on full-fidelity features; `variant`: see `head_variant`.

    A search leaves out the videos of the ids `without` and says which `folder` the head gets;
    `about` is added to what result.json says.
    """
    method = method or methods.default_method(config)
    data = methods.run_data(config, run_dir)
    store = methods.open_features(config, run_dir, method, data)
    trial = method.partition("@")[2]  # of stages 2 and 3
    seed = config.seed + (int(trial) if trial.isdigit() else 0)
    config = methods.head_variant(replace(config, seed=seed), variant)
    setting, train = config.head_training, [v for v in data.train if v.id not in without]
    features = {video.id: store[video.id] for video in store.require(train)}
    channels = next(iter(features.values())).values.shape[0]
    scaled = ScaledHead(config.head, channels, data.classes, config.seed)
    resizes = scaled.head.resizes or not config.data.window_stride
    items = _training_items(config, train, features, resizes)
    videos, standardise = [video for video, _ in items], methods.standardises(config, method)
    settings = {"stage": "head", "features": store.identity, "videos": fingerprint(videos)}
    settings |= {"seed": config.seed, "snippets": config.full.snippets}
    settings |= {"window_stride": config.data.window_stride, "head": asdict(config.head)}
    settings |= {"training": asdict(setting), "standardise": standardise}
    settings |= {"amp": config.amp} if config.amp != "fp32" else {}
    run = RunFolder(folder or methods.head_dir(run_dir, method, variant), settings, resume)
    if (done := run.result()) is not None:
        return done
    if standardise:
        scaled.standardise.fit_to([found.values for found in features.values()])
    head = scaled.to(device).head
    labels = [head.targets(video, part.grid) for video, part in items if resizes]
    batches = Batches(len(items), setting.batch, setting.epochs, (config.seed, "head"))

    def example(i: int, step: int) -> tuple[Features, tuple]:
        if resizes:
            return items[i][1], labels[i]
        generator = generator_for(config.seed, "head", step, "crop", i)
        video, part = crop_steps(*items[i], head.max_steps, generator)
        return part, head.targets(video, part.grid)

    def load(step: int):
        chosen = batches.at(step)
        places = share(len(chosen))
        mine = [chosen[i] for i in places or [0]]  # an empty share still has a shape
        parts, y = zip(*(example(i, step) for i in mine))
        longest = max(part.grid.steps for part in parts)
        spare = [(0, longest - part.grid.steps) for part in parts]
        x = torch.stack([F.pad(p.values, after) for p, after in zip(parts, spare)])[: len(places)]
        inside = [torch.from_numpy(part.grid.inside()) for part in parts]
        mask = torch.stack([F.pad(m, after) for m, after in zip(inside, spare)])
        y = part_of(head.collate(y), slice(len(places)))
        return x, mask[: len(places)], y, places, len(chosen)

    def step(batch, number: int):
        x, mask, y, places, total = batch
        draws = head.draws(total, y, generator_for(config.seed, "head", number, "loss"))[places]
        statistics = head.statistics(y, draws, reduce_sum)
        if not places:
            return None
        draws = draws.to(device)
        with autocast(config.amp, device):
            outputs = scaled(x.to(device, non_blocking=True), mask.to(device), draws)
            losses = head.losses(outputs, to_device(y, device), statistics, draws)
        return backward(losses, scaler)

    scaler, every = grad_scaler(config.amp, device), (config.checkpoint_every, config.keep_every)
    more = {"scaler": scaler, "one_backward": lambda: True}
    fit(Training({"head": scaled}, setting, batches, load, step, 0, *every, **more), run, on_step)
    if is_first():
        scaled.save(run.folder / "head.safetensors")
    counts = methods.counts(len(train), methods.without_features(store, train))
    made = {"head": "head.safetensors", "features": store.identity}
    return run.finish(made | dict(about) | counts)


def _training_items(
    config: Config, videos: Sequence[Video], features: dict[str, Features], resizes: bool = True
) -> list[tuple[Video, Features]]:
    """Whole videos, or the windows that hold most of an action; segments count from their start.

    `resizes` False: whole videos at their own length, of which every step crops a stretch.
    """
    items, steps, stride = [], config.full.snippets, config.data.window_stride
    for video in (video for video in videos if video.id in features):
        whole = features[video.id]
        if not stride:
            items.append((video, head_inputs(whole, steps, stride)[0]))
            continue
        head_inputs(whole, steps, stride, resizes)  # refuses another distance between the steps
        if not resizes:
            items.append((video, whole))
            continue
        for part, grid in training_parts(video, whole.grid, steps):
            items.append((part, windowed(whole, grid.first_frame // stride, steps)))
    if not items:
        found = f"no window of {steps} steps holds an action of the {len(videos)} videos"
        raise ValueError(f"{found}; set full.snippets to more steps")
    return items
