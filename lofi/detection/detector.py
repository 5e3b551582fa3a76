"""A trained run as one object, video file in, detections out; the stages `classes` and `detect`."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lofi import config as configs
from lofi.config import Config, PostProcessing
from lofi.data.datasets import Datasets, fingerprint
from lofi.data.features import Features, head_inputs
from lofi.detection.classes import (
    VideoClasses,
    VideoClassifier,
    detections,
    is_class_file,
    main_labels,
    own_detections,
    read_video_classes,
    train_video_classifier,
    true_classes,
)
from lofi.detection.proposals import suppress
from lofi.detection.results import Detection, write_csv, write_detections, write_srt
from lofi.detection.segment_classes import (
    SegmentClassifier,
    segment_detections,
    train_segment_classifier,
)
from lofi.encoders import Encoder
from lofi.encoders.extraction import placed, video_features
from lofi.files import code_hash, read_json, sha256, write_json
from lofi.heads.base import Proposals
from lofi.heads.scaled import ScaledHead
from lofi.training import methods
from lofi.training.distributed import barrier, check_device, gather, is_first, share
from lofi.training.loop import OnStep

log = logging.getLogger(__name__)
CLASSES = ("shared", "own", "oracle", "segment", "head")  # sources, as detection files are named
SOURCES = {"video": CLASSES[:3], "external": ("shared",), "oracle": ("oracle",),
           "segment": ("segment",), "own": ("head",)}  # fmt: skip
SUFFIXES = (".json", ".csv", ".srt", ".png", ".html")  # of the results of one video
BEST_FIRST = ("c-lofi", "short-c-lofi", "st-lofi", "t-lofi", "s-lofi", "low-lofi", "acp+", "acp")


def decoded(config: Config, head: ScaledHead, features: Features) -> Iterator[Proposals]:
    """The proposals of one video, or of one window of it after the other, before suppression."""
    device = head.standardise.mean.device
    sizes = config.full.snippets, config.data.window_stride
    for part in head_inputs(features, *sizes, head.head.resizes):
        with torch.no_grad():
            outputs = head(part.values[None].to(device))
        yield head.head.decode(outputs, part.grid, config.detect)


def in_stretches(table: Proposals, seconds: float) -> Iterator[Proposals]:
    """The proposals of a whole video by where their middles lie; every stretch keeps its best."""
    number = table.segments_s.mean(1) // seconds
    for one in np.unique(number):
        yield Proposals(table.segments_s[number == one], table.scores[number == one])


def propose(config: Config, head: ScaledHead, features: Features) -> Proposals:
    """The proposals of one video after suppression, windows of it joined."""
    joined = config.data.window_stride > 0 and head.head.resizes
    return suppress(list(decoded(config, head, features)), config.detect, joined=joined)


def class_free(config: Config, head: ScaledHead, features: Features) -> Proposals:
    """The proposals of one video after a suppression that knows no classes, for AR@AN.

    Of a head that scores classes each segment keeps its best score, and all are suppressed
    together; windows are joined by Gaussian soft-NMS in any case.
    """
    tables, post = [], config.detect
    for table in decoded(config, head, features):
        if table.scores.ndim == 2:
            table = table._replace(scores=table.scores.max(1))
        elif table.labels is not None:
            best = np.argsort(-table.scores, kind="stable")
            best = best[np.unique(table.segments_s[best], axis=0, return_index=True)[1]]
            rows = (part[best] for part in table[:3])
            table = Proposals(*rows, grid=table.grid)
        tables.append(table)
    joined = config.data.window_stride > 0 and head.head.resizes
    if not any(len(table.scores) for table in tables):
        return tables[0]  # nothing is found
    if joined:
        post = replace(post, suppression="gaussian")
    elif post.suppression == "per-class":
        post = replace(post, suppression="joint", voting=0.0)
    return suppress(tables, post, joined=joined)


def inside(kept: Proposals, duration_s: float, post: PostProcessing, *classes) -> list[Detection]:
    """`detections` without those that begin behind the end of the video."""
    return [d for d in detections(kept, duration_s, post, *classes) if d.start_s <= d.end_s]


def classified(
    config: Config, head: ScaledHead, classifier: SegmentClassifier | None, features: Features
) -> list[Detection]:
    """Detections of one video whose proposals get their classes one by one; None = by the head."""
    if classifier is not None:
        windows = decoded(config, head, features)
        if not head.head.resizes and config.data.window_stride:
            stretch_s = config.full.snippets * features.grid.step_s
            windows = in_stretches(next(windows), stretch_s)
        return segment_detections(windows, features, classifier, config.detect)
    kept, names = propose(config, head, features), getattr(head.head, "names", ())
    return own_detections(kept, features.grid.duration_s, names, config.detect)


@dataclass
class Detector:
    """Encoder, head and classifier of one method of a run."""

    config: Config
    method: str
    encoder: Encoder
    head: ScaledHead  # with its input statistics
    # Gives the classes, trained on this encoder's features; None: the head does.
    classifier: VideoClassifier | SegmentClassifier | None

    @staticmethod
    def load(
        run_dir: str | Path, method: str = "", device: str = "cpu", variant: str = ""
    ) -> "Detector":
        """Load a run; `run_dir` may also be a method's own folder inside it.

        Args:
            method: "" takes the best trained method in the order of the paper's results.
            variant: of the head, see `lofi.training.methods.head_variant`.
        Raises:
            FileNotFoundError: no run here, or a stage is missing; names the command that makes it.
            ValueError: a file belongs to another encoder or head, or the run has none of its own;
                or this machine lacks the device.
        """
        check_device(device)
        run_dir = Path(run_dir)
        is_method = (run_dir / "head").is_dir()
        if is_method and (run_dir.parent / "config.json").is_file():
            run_dir, method = run_dir.parent, run_dir.name
        elif is_method or not (run_dir / "config.json").is_file():
            raise FileNotFoundError(
                f"{run_dir}: no trained run here (expected config.json and a method's folder); "
                "make one with: make demo"
            )
        config = configs.load(run_dir / "config.json")
        method = method or best_method(config, run_dir)
        if method == "published":
            found = "trained on published features, whose encoder is not ours: it cannot see videos"
            cure = methods.command("detect", config, run_dir, method)
            raise ValueError(f"{run_dir}: {found}. Detect in its test videos with: {cure}")
        encoder, _ = methods.load_encoder(config, run_dir, method)
        head = methods.load_head(config, run_dir, method, variant)
        classifier = None  # where the head itself tells classes
        if config.detect.classes != "own":
            kind = SegmentClassifier if config.detect.classes == "segment" else VideoClassifier
            cure = f"run: {methods.command('classes', config, run_dir, method)}"
            classifier = kind.load(run_dir / method / kind.file, cure)
        encoder = placed(config, encoder, device).eval()
        return Detector(config, method, encoder, head.to(device), classifier)

    def detect(self, path: str | Path) -> list[Detection]:
        """All detections of one video file, best first; errors as in `video_features`."""
        features, info = video_features(self.config, self.encoder, path)
        if self.config.detect.classes in ("segment", "own"):
            return classified(self.config, self.head, self.classifier, features)
        classes = self.classifier.predict(features.values), self.classifier.names
        kept = propose(self.config, self.head, features)
        found = inside(kept, info.duration_s, self.config.detect, *classes)
        return sorted(found, key=lambda detection: -detection.score)


def best_method(config: Config, run_dir: Path) -> str:
    """The best method with a trained head in the order of the paper's results, else any."""
    trained = [path.parent.parent.name for path in run_dir.glob("*/head/head.safetensors")]
    for method in (*BEST_FIRST, *sorted(trained)):
        if method in trained:
            return method
    cure = methods.command("head", config, run_dir, methods.default_method(config))
    raise FileNotFoundError(f"{run_dir}: no method with a trained head; run: {cure}")


def output_names(paths: Sequence[Path], out_dir: str | Path) -> dict[Path, str]:
    """A name for the results of every video: its own, or `clip-2`, … where another video of the
    same name (of another folder or ending) has results there, or gets them.

    A video finds its earlier results again, and replaces them.
    """
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in paths:
        for number in count(1):
            name = path.stem if number == 1 else f"{path.stem}-{number}"
            owner, old = _video_key(path), Path(out_dir) / f"{name}.json"
            free = not any(old.with_name(f"{name}{suffix}").exists() for suffix in SUFFIXES)
            if name.casefold() not in taken and (free or _made_for(old) == owner):
                break
        taken.add(name.casefold())
        names[path] = name
    return names


def _video_key(path: Path) -> str:
    """Tells a video file from others, without saying where it lies."""
    return hashlib.sha256(str(path.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]


def _made_for(results: Path) -> str | None:
    """The `_video_key` in a file of results, if it is one."""
    try:
        return json.loads(results.read_bytes())["external_data"]["video_key"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def write_results(
    found: Sequence[Detection], path: str | Path, out_dir: str | Path, detector: Detector,
    name: str = "",
) -> list[Path]:  # fmt: skip
    """Write <name>.json, .csv and .srt of one video; returns their paths.

    `name` of the files: "" is the video's own; inside them it is called by its own in any case."""
    video, out_dir = Path(path).stem, Path(out_dir)
    files = [out_dir / f"{name or video}{suffix}" for suffix in SUFFIXES[:3]]
    kind = {"own": "head", "segment": "segment"}.get(detector.config.detect.classes, "own")
    source = _source(detector.config, detector.method, kind)
    source |= {"video": Path(path).name, "video_key": _video_key(Path(path))}
    write_detections(files[0], {video: list(found)}, detector.config.detect, source=source)
    write_csv(files[1], {video: list(found)})
    write_srt(files[2], subtitles(found))
    return files


def subtitles(found: Sequence[Detection]) -> list[Detection]:
    """The detections worth a subtitle: at least half of the best score, overlaps left out."""
    best = max((d.score for d in found), default=0.0)
    chosen: list[Detection] = []
    for d in sorted(found, key=lambda d: -d.score):
        free = all(d.end_s <= c.start_s or d.start_s >= c.end_s for c in chosen)
        if d.score >= 0.5 * best and free:
            chosen.append(d)
    return sorted(chosen, key=lambda d: d.start_s)


def train_classifier(config: Config, run_dir: str | Path, method: str = "") -> dict[str, Any]:
    """Stage `classes`: a classifier on a method's features of the training videos.

    Of videos, or of segments under `detect.classes` "segment". Convex and without randomness, so it
    is simply fitted again whenever it is asked for."""
    method = method or methods.default_method(config)
    data = methods.run_data(config, run_dir)
    store = methods.open_features(config, run_dir, method, data)
    features = {video.id: store[video.id] for video in store.require(data.train)}
    if config.detect.classes == "segment":
        classifier = train_segment_classifier(features, data.train)
    else:
        values = {key: found.values for key, found in features.items()}
        classifier = train_video_classifier(values, main_labels(data.train))
    path = Path(run_dir) / method / classifier.file
    if is_first():
        classifier.save(path)
    barrier()
    absent = methods.without_features(store, data.train)
    found = {"classifier": str(path), "classes": list(classifier.names)}
    return found | methods.counts(len(data.train), absent)


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
    source = (kind == "shared" and config.detect.shared_classes) or method
    if kind == "shared" and is_class_file(source):
        ids = [video.id for video in data.test]
        found = read_video_classes(source, data.classes, ids)
        if not any(key in found.scores for key in ids):
            known, wanted = next(iter(found.scores), "nothing"), ids[0]
            reason = f"class scores of none of the {len(ids)} test videos"
            raise ValueError(f"{source}: {reason}; it knows {known} and others, not {wanted}")
        places = [i for i, name in enumerate(found.names) if name in data.classes]
        if unknown := sorted(set(found.names) - {*data.classes}):
            first = f"the first of these is {unknown[0]!r}, annotated is {data.classes[0]!r}"
            text = f"{len(unknown)} of {len(found.names)} classes of {source} are not annotated"
            if not places:
                raise ValueError(f"{text}: {first}; take a file that spells them alike")
            log.warning("%s and are left out (%s)", text, first)
            names = tuple(found.names[i] for i in places)
            scores = {key: row[places] for key, row in found.scores.items()}
            found = VideoClasses(names, scores, found.source)
        return found
    train_classifier(config, run_dir, source)
    store = methods.open_features(config, run_dir, source, data)
    classifier = VideoClassifier.load(Path(run_dir) / source / VideoClassifier.file)
    return classifier.video_classes({v.id: store[v.id].values for v in store.require(data.test)})


def detections_dir(run_dir: str | Path, method: str, variant: str = "") -> Path:
    """Where the detections of a method's test videos lie."""
    return Path(run_dir) / method / "detections" / variant


def detect_stage(
    config: Config, run_dir: str | Path, method: str = "", *, variant: str = "",
    on_step: OnStep | None = None, device: str = "cpu", again: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Stage `detect`: detections of all test videos under each source of `detect.classes`.

    Writes <run>/<method>/detections/{shared,own,oracle,segment,head}.{json,csv}, srt/<video>.srt,
    proposals.json (the same without classes, for AR@AN) and what it returns, result.json; several
    processes share the videos. Shared classes need the features of another method, or a score file:
    where neither is there they are left out, with a warning that says how to get them. Videos that
    the file lacks, "classes_missing" of them, get those of the method's own classifier; ValueError:
    it lacks all. `again` False: those that are there stay, if they are as they were written
    and all that they were made from, this code too, is the same.
    """
    method = method or methods.default_method(config)
    data = methods.run_data(config, run_dir)
    store = methods.open_features(config, run_dir, method, data)
    head = methods.load_head(config, run_dir, method, variant).to(device)
    keys = [video.id for video in store.require(data.test)]
    folder, written = detections_dir(run_dir, method, variant), {}
    weights = methods.head_dir(run_dir, method, variant) / "head.safetensors"
    made_from = _made_from(config, run_dir, method, weights, data)
    if kept := gather(None if again else _current(folder, made_from))[0]:  # all do as the first
        return kept
    kinds, classifier = SOURCES[config.detect.classes], None
    itself = kinds in (("segment",), ("head",))  # each proposal has its own class
    if kinds == ("head",) and not getattr(head.head, "names", ()):
        found = f"detect.classes is own, but head {config.head.kind} names none"
        raise ValueError(f"{found}; choose segment (each proposal by itself) or video")
    if kinds == ("segment",):
        path = Path(train_classifier(config, run_dir, method)["classifier"])
        classifier = SegmentClassifier.load(path)
    classes: dict[str, VideoClasses] = {}
    for kind in () if itself else dict.fromkeys(("own", *kinds) if "shared" in kinds else kinds):
        try:
            classes[kind] = video_classes(config, run_dir, method, kind, data)
        except FileNotFoundError as error:
            if kind != "shared":
                raise
            log.warning("no detections with shared classes (detect.shared_classes): %s", error)
    found = {kind: {} for kind in kinds if itself or kind in classes}
    unnamed, filled = {}, 0
    for done, i in enumerate(mine := share(len(keys))):
        features = store[keys[i]]
        duration_s = features.grid.duration_s
        if itself:
            found[kinds[0]][keys[i]] = classified(config, head, classifier, features)
            rows = class_free(config, head, features)
        else:
            rows = propose(config, head, features)
        for kind in () if itself else found:
            source = classes[kind]
            if keys[i] not in source.scores:  # an external file may lack videos
                source, filled = classes["own"], filled + 1
            scores = source.of(keys[i]), source.names
            found[kind][keys[i]] = inside(rows, duration_s, config.detect, *scores)
        unnamed[keys[i]] = inside(rows, duration_s, config.detect)
        if on_step and is_first():
            on_step(done, len(mine), {})
    if filled := sum(gather(filled)):
        log.warning("%d of %d videos are not in %s and got the classes of the method's own "
                    "classifier", filled, len(keys), classes["shared"].source)  # fmt: skip

    def write(name: str, mine: dict[str, list[Detection]], source: str) -> dict:
        """What all processes have found, in the order of the test set; one of them writes it."""
        together = {key: rows for part in gather(mine) for key, rows in part.items()}
        together = {key: together[key] for key in keys}
        written[name] = str(folder / f"{name}.json")
        if is_first():
            about = _source(config, method, source) | ({"variant": variant} if variant else {})
            write_detections(written[name], together, config.detect, source=about)
        return together

    for kind, mine in found.items():
        together = write(kind, mine, kind)
        if is_first():
            write_csv(folder / f"{kind}.csv", together)
            for key, listed in together.items() if len(written) == 1 else ():
                write_srt(folder / "srt" / f"{key}.srt", subtitles(listed))
    write("proposals", unnamed, "none")
    absent = methods.without_features(store, data.test)
    result = written | methods.counts(len(data.test), absent) | {"classes_missing": filled}
    if is_first():
        write_json(folder / "post_processing.json", config.detect.to_json())
        files = {path.name: sha256(path) for name in written for path in folder.glob(f"{name}.*")}
        write_json(folder / "result.json", result | {"made_from": made_from, "files": files})
    barrier()  # the others may read what rank 0 has written
    return result


def _current(folder: Path, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """What a detection returned that was made from the same and whose files are as written."""
    try:
        result = read_json(folder / "result.json", "what a detection left")
        same = result.pop("made_from") == made_from and None not in made_from.values()
        files = result.pop("files")
        if not same or any(sha256(folder / name) != digest for name, digest in files.items()):
            return None
    except (AttributeError, KeyError, OSError, TypeError, ValueError):  # not there, or damaged
        return None
    names = {Path(name).stem for name in files}  # the run may have been moved since
    return result | {name: str(folder / f"{name}.json") for name in names}


def _made_from(
    config: Config, run_dir: str | Path, method: str, head: Path, data: Datasets
) -> dict[str, Any]:
    """What detections depend on, as JSON: code, head, videos with their annotations, settings, the
    features of the method, and those (or the file) that give the shared classes; None: not there.
    """
    found = {"code": code_hash(), "head": sha256(head)}
    found["videos"] = fingerprint([*data.train, *data.test])
    found["detect"] = config.detect.to_json()
    for source in filter(None, (method, config.detect.shared_classes)):
        try:
            if is_class_file(source):
                found[source] = sha256(source)
                continue
            store = methods.open_features(config, run_dir, source, data)
            absent = methods.without_features(store, [*data.train, *data.test])
            found[source] = [store.identity, absent]
        except FileNotFoundError:
            found[source] = None
    return json.loads(json.dumps(found))


def _source(config: Config, method: str, classes: str) -> dict:
    """Where detections come from, kept in their file and beside every number made from it."""
    source = {"method": method, "encoder": config.encoder, "seed": config.seed}
    return source | {"preset": config.preset, "classes": classes}
