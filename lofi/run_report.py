"""The pictures of a run: what the stages left in its folder, handed to `lofi.figures`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from lofi.config import Config
from lofi.data import Video, decode_frames, probe, read_features
from lofi.data.datasets import Datasets, open_datasets
from lofi.data.reading import frame_grid
from lofi.detection import Detection, read_detections
from lofi.encoders.extraction import video_features
from lofi.figures import curves, maps, tables, timelines
from lofi.figures.report import Details, Part, Picture, Section, write_report
from lofi.heads.scaled import Standardise
from lofi.training.methods import load_head
from lofi.training.run_folder import read_metrics

NAMES = {
    "random": "untrained encoder", "acp": "ACP", "acp+": "ACP+", "s-lofi": "S-LoFi",
    "t-lofi": "T-LoFi", "st-lofi": "ST-LoFi", "short-c-lofi": "Short C-LoFi",
    "c-lofi": "Long C-LoFi", "low-lofi": "low budget",
}  # fmt: skip


def thumbnails_of(path: str | Path, count: int = 10) -> tuple[np.ndarray, np.ndarray, float]:
    """Evenly spaced frames (n, H, W, 3) of a video, their times in seconds, and its duration."""
    info = probe(path)
    indices = ((np.arange(count) + 0.5) * info.num_frames / count).astype(int)
    return decode_frames(path, indices), (indices + 0.5) / info.fps, info.duration_s


def detections_figure(path: str | Path, found: Sequence[Detection], top: int = 8) -> Figure:
    """Thumbnails of one video over its best detections (no ground truth needed)."""
    frames, times, duration = thumbnails_of(path)
    rows = {"detections": list(found)[:top]}
    return timelines.video_timeline(frames, times, rows, duration, top=top, title=Path(path).name)


def comparison_figure(
    run_dir: str | Path, video: Video, methods: Sequence[str], kind: str = "shared"
) -> Figure:
    """Thumbnails, ground truth and the detections of several methods for one test video."""
    frames, times, duration = thumbnails_of(video.path)
    rows: dict[str, Any] = {"ground truth": list(video.segments)}
    for method in methods:
        path = Path(run_dir) / method / "detections" / f"{kind}.json"
        rows[NAMES.get(method, method)] = read_detections(path).get(video.id, [])
    return timelines.video_timeline(frames, times, rows, duration, top=3, title=video.id)


def maps_figure(config: Config, run_dir: str | Path, video: Video, method: str) -> Figure:
    """Confidence (classification) map and boundary probabilities of one test video.

    Of its first window, when videos are cut into windows.
    """
    features = head_inputs(config, load_features(run_dir, method, [video])[video.id])[0][1]
    head_path = Path(run_dir) / method / "head" / "head.safetensors"
    with torch.no_grad():
        maps_of_video = load_head(config, head_path, features.shape[0])(features[None])
    confidence, start, end = (part[0] for part in maps_of_video)
    info = probe(video.path)
    frames = config.full.snippets * config.data.window_stride
    duration = frames / frame_grid(config.data, info)[1] if frames else info.duration_s
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    truth = [segment for segment in video.segments if segment.start_s < duration]
    common = {"truth": truth, "duration_s": duration}
    maps.confidence_map(confidence[1], ax=axes[0], label="confidence", **common)
    maps.boundary_curves(start, end, ax=axes[1], **common)
    return figure


def similarity_figure(run_dir: str | Path, video: Video, methods: Sequence[str]) -> Figure:
    """Self-similarity of one video under several methods, from their stored features.

    Channels are standardised over some other stored videos, as in stage 3 before the head.
    """
    values = {}
    for method in methods:
        features = load_features(run_dir, method, [video])[video.id]
        others = sorted((Path(run_dir) / method / "features").glob("[!.]*.safetensors"))[:16]
        values[method] = _standardised(features, [read_features(path) for path in others])
    return _similarity_panels(values, video)


def encoders_figure(
    config: Config, encoders: Mapping[str, nn.Module], video: Video, others: Sequence[Video]
) -> Figure:
    """The same for encoders, {method: encoder}, whose features are computed here.

    Channels are standardised over the videos `others`.
    """
    values = {}
    for method, encoder in encoders.items():
        encoder.eval()
        features, *rest = (video_features(config, encoder, v.path)[0] for v in (video, *others))
        values[method] = _standardised(features, rest)
    return _similarity_panels(values, video)


def _standardised(features: torch.Tensor, others: Sequence[torch.Tensor]) -> torch.Tensor:
    standardise = Standardise(features.shape[0])
    standardise.fit_to(others)
    return standardise(features)


def _similarity_panels(values: Mapping[str, torch.Tensor], video: Video) -> Figure:
    duration_s = probe(video.path).duration_s
    size = (3.9 * len(values), 3.3)
    figure, axes = plt.subplots(1, len(values), figsize=size, layout="constrained", squeeze=False)
    for ax, (method, features) in zip(axes[0], values.items()):
        maps.similarity(features, video.segments, duration_s=duration_s, ax=ax)
        ax.set_title(NAMES.get(method, method))
    return figure


def losses_axes(run_dir: str | Path, stages: dict[str, str]) -> Axes:
    """Loss curves of stages: {legend name: stage folder below the run}."""
    logs = {name: read_metrics(Path(run_dir) / stage) for name, stage in stages.items()}
    return curves.loss_curves({name: rows for name, rows in logs.items() if rows})


def busiest_videos(data: Datasets, count: int) -> list[Video]:
    """Test videos with the most actions first, ties by id: the ones worth looking at."""
    return sorted(data.test, key=lambda v: (-len(v.segments), v.id))[:count]


def write_run_report(config: Config, run_dir: str | Path, results: dict[str, Any]) -> Path:
    """report.html of a finished run: results, protocol, losses, timelines, maps."""
    run_dir = Path(run_dir)
    data = open_datasets(config.data, config.seed, run_dir)
    methods = list(dict.fromkeys(row["method"] for row in results["rows"]))
    sections = [
        Section("", _introduction(config, results)),
        Section("Results", _result_parts(results)),
        Section("Training", _training_parts(run_dir, methods)),
        Section("Timelines", _timeline_parts(run_dir, data, methods)),
        Section("Inside one video", _inside_parts(config, run_dir, data, methods)),
    ]
    path = write_report(run_dir / "report.html", f"LoFi on the {config.preset} world", sections)
    plt.close("all")
    return path


def _introduction(config: Config, results: dict[str, Any]) -> tuple[Part, ...]:
    return (
        "Temporal action localization: find when each action starts and ends, and which it is. "
        "Every row uses the same head, trained from scratch on frozen full-fidelity features; the "
        "rows differ only in how the encoder was trained.",
        f"Preset {config.preset}, seed {config.seed}, {results['videos']} validation videos with "
        f"{results['instances']} actions, protocol {results['protocol']}; the whole procedure took "
        f"{results['seconds']:.0f} s. One seed shows the direction of an effect, not its size.",
    )


def _result_parts(results: dict[str, Any]) -> tuple[Part, ...]:
    bars = Picture(
        tables.results_bars(results),
        f"Average mAP over tIoU {results['tious'][0]:g} to {results['tious'][-1]:g}. Compare "
        "within one source of classes: shared and oracle judge localization; own also judges what "
        "an encoder still knows about classes, for which the paper's joint loss has no term.",
        "Grouped bars of average mAP for each encoder under shared, own and oracle classes",
    )
    notes = (
        "shared: one video classifier gives the classes for every method, as the paper does with "
        "external class scores. own: a classifier on each method's own features. oracle: the true "
        "class of each video, so only localization counts."
    )
    return (tables.results_table(results), notes, bars)


def _training_parts(run_dir: Path, methods: Sequence[str]) -> tuple[Part, ...]:
    parts: list[Part] = []
    for method, what in (("acp", "classification"), ("c-lofi", "joint low-fidelity training")):
        if method in methods and read_metrics(run_dir / method / "encoder"):
            axes = losses_axes(run_dir, {NAMES[method]: f"{method}/encoder"})
            parts.append(Picture(axes, f"Loss of {what}; thin: every step, thick: running mean."))
    heads = {NAMES.get(m, m): f"{m}/head" for m in methods}
    parts.append(Picture(losses_axes(run_dir, heads), "Loss of the head on frozen features."))
    return tuple(parts)


def _timeline_parts(run_dir: Path, data: Datasets, methods: Sequence[str]) -> tuple[Part, ...]:
    shown = [m for m in ("acp", "acp+", "c-lofi") if m in methods] or list(methods)
    return tuple(
        Picture(
            comparison_figure(run_dir, video, shown),
            f"Video {video.id}: the three best detections of each method below the ground truth.",
        )
        for video in busiest_videos(data, 3)
    )


def _inside_parts(
    config: Config, run_dir: Path, data: Datasets, methods: Sequence[str]
) -> tuple[Part, ...]:
    video = busiest_videos(data, 1)[0]
    best = "c-lofi" if "c-lofi" in methods else methods[-1]
    shown = [m for m in ("random", "acp", "c-lofi") if m in methods] or list(methods)
    return (
        Picture(
            similarity_figure(run_dir, video, shown),
            "How alike the features of any two moments are. Blocks along the diagonal that match "
            "the actions mean that the encoder tells inside from outside.",
        ),
        Picture(
            maps_figure(config, run_dir, video, best),
            f"{NAMES.get(best, best)}: confidence of every (start, duration) pair, and the "
            "probabilities that an action starts or ends at each moment.",
        ),
        Details("Settings of this run", code=(run_dir / "config.json").read_text()),
    )
