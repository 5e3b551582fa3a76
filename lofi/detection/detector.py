"""A trained run as one object: video file in, detections out; and the `detect` stage."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lofi import config as configs
from lofi.config import Config, DetectConfig
from lofi.data import VideoInfo, probe
from lofi.data.datasets import Datasets
from lofi.data.windows import frame_grid
from lofi.detection.classes import (
    VideoClasses,
    VideoClassifier,
    is_class_file,
    main_labels,
    read_video_classes,
    train_video_classifier,
    true_classes,
)
from lofi.detection.nms import GridSoftNMS
from lofi.detection.pipeline import (
    PostProcessing,
    detect_video,
    detect_windows,
    with_classes,
)
from lofi.detection.proposals import proposals
from lofi.detection.results import Detection, write_csv, write_detections, write_srt
from lofi.files import write_json
from lofi.training.distributed import barrier, gather, is_first, share
from lofi.training.full_fidelity import head_inputs, load_features, video_features
from lofi.training.models import load_encoder, load_head

log = logging.getLogger(__name__)
LONGEST = 60  # snippets: 300 frames at stride 5, from where G-TAD scores 0 on THUMOS14
CLASSES = ("shared", "own", "oracle")
BEST_FIRST = ("c-lofi", "short-c-lofi", "st-lofi", "t-lofi", "s-lofi", "low-lofi", "acp+", "acp")


def post_processing(setting: DetectConfig) -> PostProcessing:
    """The post-processing object of a configuration."""
    fields = asdict(setting)
    del fields["shared_classes"]
    return PostProcessing(**fields)


@dataclass
class Detector:
    """Encoder, head and video classifier of one method of a run.

    Attributes:
        head: standardisation and head, (B, C, L) features → Maps.
        classifier: gives the classes; trained on this encoder's features.
    """

    config: Config
    method: str
    encoder: nn.Module
    head: nn.Module
    classifier: VideoClassifier

    @staticmethod
    def load(run_dir: str | Path, method: str = "", device: str = "cpu") -> "Detector":
        """Load a run; `run_dir` may also be a method's own folder inside it.

        Args:
            method: "" takes the best trained method in the order of the paper's results.
        Raises:
            FileNotFoundError: no run here, or a stage is missing; names the command that makes it.
            ValueError: a file belongs to another encoder or head.
        """
        run_dir = Path(run_dir)
        if not (run_dir / "config.json").is_file() or (run_dir / "head").is_dir():
            if (run_dir.parent / "config.json").is_file() and (run_dir / "head").is_dir():
                run_dir, method = run_dir.parent, run_dir.name
            else:
                raise FileNotFoundError(
                    f"{run_dir}: no trained run here (expected config.json and a method's folder); "
                    "make one with: make demo"
                )
        config = configs.load(run_dir / "config.json")
        method = method or _best_method(run_dir)
        encoder, _ = load_encoder(config, run_dir, method)
        head_path = run_dir / method / "head" / "head.safetensors"
        head = load_head(config, head_path, encoder.channels)
        classifier = VideoClassifier.load(classifier_path(run_dir, method))
        return Detector(config, method, encoder.to(device).eval(), head.to(device), classifier)

    @torch.no_grad()
    def maps(self, features: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Confidence (2, D, L), start (L,) and end (L,) of one video's (C, L) features."""
        device = next(self.encoder.parameters()).device
        confidence, start, end = self.head(features[None].to(device))
        return confidence[0].cpu().numpy(), start[0].cpu().numpy(), end[0].cpu().numpy()

    def detect(self, path: str | Path) -> list[Detection]:
        """All detections of one video file, best first.

        Raises:
            FileNotFoundError, ValueError: the file is missing or not a readable video.
        """
        features, info = video_features(self.config, self.encoder, path)
        post = post_processing(self.config.detect)
        classes = self.classifier.predict(features), self.classifier.names
        if self.config.data.window_stride:
            agnostic = detect_in_windows(self.config, self.maps, features, info, post)
            found = with_classes(agnostic, *classes, post)
        else:
            found = detect_video(self.maps(features), info.duration_s, *classes, post)
        return sorted(found, key=lambda detection: -detection.score)


def detect_in_windows(
    config: Config, maps_of: Callable, features: torch.Tensor, info: VideoInfo, post: PostProcessing
) -> list[Detection]:
    """Class-agnostic detections of one video that is cut into windows (`data.window_stride`).

    Args:
        maps_of: (C, L) features of a window → (confidence (2, D, L), start (L,), end (L,)).
        features: (C, T) of the whole video, see `video_features`.
    Raises:
        ValueError: a suppression other than "gaussian", which joins windows.
    """
    if post.suppression != "gaussian":
        raise ValueError(
            f"detect.suppression is {post.suppression!r}, but windows are joined by soft-NMS; set "
            "it to gaussian, or data.window_stride to 0"
        )
    stride = config.data.window_stride
    count, fps = frame_grid(config.data, info)
    seconds = config.full.snippets * stride / fps
    found = []
    for first, part in head_inputs(config, features):
        table = proposals(maps_of(part), seconds, post.rule, post.include_video_end, post.score)
        frames = table.frames(first, stride)
        inside = frames[:, 0] < count  # a window may reach beyond the end
        found.append((frames[inside], table.scores[inside]))
    longest = LONGEST * stride if post.rule == "thumos" else math.inf
    return detect_windows(found, count, fps, None, post=post, max_frames=longest)


def detect(video_path: str | Path, run_dir: str | Path, method: str = "", device: str = "cpu"):
    """Detections of one video file, best first: list of (start_s, end_s, label, score).

    Args:
        run_dir: a run with trained encoder, head and classifier, for instance runs/demo.
        method: whose encoder; "" = the best of the run.
    """
    return Detector.load(run_dir, method, device).detect(video_path)


def write_results(
    found: Sequence[Detection], path: str | Path, out_dir: str | Path, detector: Detector
) -> list[Path]:
    """Write <name>.json, .csv and .srt of one video; returns their paths."""
    name, out_dir = Path(path).stem, Path(out_dir)
    files = [out_dir / f"{name}{suffix}" for suffix in (".json", ".csv", ".srt")]
    config = detector.config
    source = _source(config, detector.method, "own")
    write_detections(files[0], {name: list(found)}, post_processing(config.detect), source=source)
    write_csv(files[1], {name: list(found)})
    write_srt(files[2], subtitles(found))
    return files


def subtitles(found: Sequence[Detection], share: float = 0.5) -> list[Detection]:
    """The detections worth a subtitle: at least `share` of the best score, overlaps left out."""
    best = max((d.score for d in found), default=0.0)
    chosen: list[Detection] = []
    for d in sorted(found, key=lambda d: -d.score):
        free = all(d.end_s <= c.start_s or d.start_s >= c.end_s for c in chosen)
        if d.score >= share * best and free:
            chosen.append(d)
    return sorted(chosen, key=lambda d: d.start_s)


def classifier_path(run_dir: str | Path, method: str) -> Path:
    """Where a method's video classifier lies."""
    return Path(run_dir) / method / "classifier.safetensors"


def train_classifier(run_dir: str | Path, method: str, data: Datasets) -> VideoClassifier:
    """Fit and save the video classifier on a method's features of the training videos.

    Convex and without randomness, so it is simply fitted again whenever it is asked for.
    """
    features = load_features(run_dir, method, data.train)
    classifier = train_video_classifier(features, main_labels(data.train))
    if is_first():
        classifier.save(classifier_path(run_dir, method))
    return classifier


def video_classes(
    config: Config, run_dir: str | Path, method: str, kind: str, data: Datasets
) -> VideoClasses:
    """Class scores of the test videos: "shared", "own" or "oracle".

    "shared" gives every method the same classes: an external score file, or the classifier of the
    method named in `detect.shared_classes` (the paper uses external scores). "own" classifies this
    method's features. "oracle" is the ground truth: it isolates localization.
    """
    if kind == "oracle":
        return true_classes(data.test)
    source = config.detect.shared_classes if kind == "shared" else method
    if kind == "shared" and is_class_file(source):
        return read_video_classes(source)
    classifier = train_classifier(run_dir, source, data)
    return classifier.video_classes(load_features(run_dir, source, data.test))


def detect_stage(
    config: Config,
    run_dir: str | Path,
    method: str,
    data: Datasets,
    on_step: Callable[[int, int, dict[str, float]], None] | None = None,
) -> dict[str, Path]:
    """Detections of all test videos under each source of classes; {"shared": JSON path, …}.

    Writes <run>/<method>/detections/{shared,own,oracle}.{json,csv} and srt/<video>.srt (shared);
    several processes share the videos.
    """
    folder = Path(run_dir) / method / "detections"
    features = load_features(run_dir, method, data.test)
    channels = next(iter(features.values())).shape[0]
    head = load_head(config, Path(run_dir) / method / "head" / "head.safetensors", channels)
    post = post_processing(config.detect)
    snippets, windowed = config.full.snippets, config.data.window_stride > 0
    grid = None if windowed else GridSoftNMS(snippets, snippets, post.sigma)
    keys = list(features)
    mine = [keys[i] for i in share(len(keys))]
    infos = {v.id: probe(v.path) for v in data.test if v.id in features}

    def detections_in(key: str) -> Callable[[np.ndarray, Sequence[str]], list[Detection]]:
        """What gives the detections of a video for class scores and their names."""
        maps_of, seconds = partial(_maps, head), infos[key].duration_s
        if windowed:
            found = detect_in_windows(config, maps_of, features[key], infos[key], post)
            return partial(with_classes, found, post=post)
        return partial(detect_video, maps_of(features[key]), seconds, post=post, grid=grid)

    find = {key: detections_in(key) for key in mine}
    written: dict[str, Path] = {}
    for i, kind in enumerate(CLASSES):
        classes = video_classes(config, run_dir, method, kind, data)
        share_found = {key: find[key](classes.of(key), classes.names) for key in mine}
        together = {key: d for part in gather(share_found) for key, d in part.items()}
        written[kind] = folder / f"{kind}.json"
        if is_first():
            source = _source(config, method, kind)
            _write_stage(folder, kind, {key: together[key] for key in keys}, post, source)
            if on_step:
                on_step(i, len(CLASSES), {})
    barrier()  # the others may read what rank 0 has written
    return written


def _source(config: Config, method: str, classes: str) -> dict:
    """Where detections come from, kept in their file and beside every number made from it."""
    source = {"method": method, "encoder": config.encoder, "seed": config.seed}
    return source | {"preset": config.preset, "classes": classes}


def _write_stage(folder: Path, kind: str, found: dict, post, source: dict) -> None:
    write_detections(folder / f"{kind}.json", found, post, source=source)
    write_csv(folder / f"{kind}.csv", found)
    write_json(folder / "post_processing.json", post.to_json())
    if kind == "shared":
        for key, detections in found.items():
            write_srt(folder / "srt" / f"{key}.srt", subtitles(detections))


@torch.no_grad()
def _maps(head: nn.Module, features: torch.Tensor):
    return tuple(part[0].numpy() for part in head(features[None]))


def _best_method(run_dir: Path) -> str:
    for method in BEST_FIRST:
        if (run_dir / method / "head" / "head.safetensors").is_file():
            return method
    raise FileNotFoundError(
        f"{run_dir}: no method with a trained head; finish the run (lofi course --run {run_dir})"
    )
