"""What each `lofi` command does; settings come from the dataclasses of `lofi.config`.

A command is a plain function: its signature is its command line, its docstring the help text.
Results go to standard output, progress and warnings to standard error. Heavy imports wait until a
command runs, so that `lofi --help` is quick.
"""

import gc
import inspect
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from json import loads
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, Suppress, UseAppendAction, arg

from lofi.config import Config, Mode, layered, override
from lofi.fidelity import Fidelity
from lofi.files import atomic_path, printable, write_json

Settings = Annotated[Config, arg(name="")]
Method = Annotated[
    str, arg(help="whose encoder (random, acp, acp+, c-lofi, …); default: what is configured")
]
Variant = Annotated[
    str, arg(help="changes for this head alone, kept beside others: lr=0.001,seed=3,kind=bmn")
]
EVERY_S = 60.0  # between two lines of progress in a log
Protocol = Literal["activitynet", "thumos14"]
StageName = Literal["acp", "acp+", "icp", "arrow", "speed", "lofi", "features", "head", "classes",
                    "detect", "evaluate", "dual", "weak-warm-up", "weak-b", "weak-f",
                    "weak-detect"]  # fmt: skip


@contextmanager
def imports_undisturbed() -> Iterator[None]:
    """PyTorch makes half a million objects that stay: to look through them for garbage, again and
    again while they are made and once more at the end, takes a quarter of its import."""
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def toy(
    folder: Positional[Path], /, preset: Literal["tiny", "toy", "long", "weak"] = "toy",
    seed: int = 0,
) -> None:  # fmt: skip
    """Render the toy world: source clips, untrimmed videos and their annotations."""
    from lofi.data.toyworld import WORLDS, write_world

    paths = write_world(folder, WORLDS[preset], seed, progress=bar("rendering"))
    print(f"{paths.annotations}\n{paths.video_dir}\n{paths.source_csv}")


def check(
    annotations: Positional[Path], /, videos: Path | None = None, format: str = "auto",
    decode: bool = True, workers: int = 2, limit_s: float = 60.0, report: Path | None = None,
) -> None:  # fmt: skip
    """Report missing, undecodable, out-of-range, zero-length, overlapping and mislabelled entries.

    Exit status 1 when something was found.

    Args:
        videos: folder with the video files; without it only the annotations are checked.
        decode: open and decode the videos, not only look for their files.
        limit_s: seconds that one video may take.
        report: CSV of all findings; an unfinished check goes on from it.
    """
    from lofi.data import check_dataset, read_annotations

    entries = read_annotations(annotations, format=format, video_dir=videos)
    found = check_dataset(
        entries, videos, decode=decode and videos is not None, workers=workers, limit_s=limit_s,
        report=report, progress=bar("checking"),
    )  # fmt: skip
    print(printable(found.summary()))
    if found.entries:
        raise SystemExit(1)


def cache(
    source: Positional[Path], /, out: Path, videos: Path | None = None, short_side: int = 256,
    fps: float = 0.0, crf: int = 20, workers: int = 2, limit_s: float = 1800.0,
) -> None:  # fmt: skip
    """Copy videos at low resolution, once, so that training decodes several times faster.

    Then train with --data.videos OUT. Start again to go on; OUT/cache.csv lists every video.
    Exit status 1 when a video failed.

    Args:
        source: folder of videos, or an annotation file (then only its videos are copied).
        out: folder of the copies, beside the folder of the videos.
        videos: folder of the videos when SOURCE is an annotation file.
        short_side: pixels; smaller videos keep their size.
        fps: frame rate of the copies; 0 keeps every frame.
        crf: quality, lower is better and larger.
        workers: processes.
        limit_s: seconds that one video may take.
    """
    from lofi.data import read_annotations
    from lofi.data.copies import cache_videos, media_files

    if source.is_dir():
        videos, paths = source, media_files(source)
    elif videos is None:
        raise ValueError(f"{source}: whose videos? Give their folder with --videos")
    else:
        annotated = read_annotations(source, video_dir=videos)
        paths = sorted({video.path for video in annotated if video.path is not None})
        print(f"{len(paths):,} of {len(annotated):,} annotated videos have a file in {videos}")
    done = cache_videos(
        paths, videos, out, short_side=short_side, fps=fps, crf=crf, workers=workers,
        limit_s=limit_s, progress=bar("copying"),
    )  # fmt: skip
    print(printable(done.summary()))
    if done.failed:
        raise SystemExit(1)


def import_(
    labels: Positional[Path], /, videos: Path, out: Path = Path("events.csv"), tool: str = "",
    fps: float = 0.0, point_length: float = 0.0,
) -> None:  # fmt: skip
    """Labels of VIA, ELAN, BORIS, CVAT, Label Studio, … as our CSV, checked against the videos.

    Args:
        videos: folder of the videos that were labelled.
        tool: via, elan, boris, cvat, label-studio, x-anylabeling, fiftyone, audacity, draft (of a
            language model) or csv; by default it is guessed from the content.
        fps: frames a second that the tool counted with, where it is not the video's.
        point_length: seconds that events without length get; 0 refuses them.
    """
    from lofi.data.importers import TITLES, import_labels

    done = import_labels(labels, videos, out, tool, fps, point_length)
    events = [row for row in done.rows if row[3]]
    counts = f"{len({row[0] for row in done.rows})} videos, {len(events)} events"
    print(f"{TITLES[done.tool]}: {counts} of {len({row[3] for row in events})} classes")
    print("\n".join([*done.notes, f"wrote {out}; next: lofi check {out} --videos {videos}"]))


def export(
    labels: Positional[Path], /, tool: str, videos: Path, out: Path = Path("labels"),
    fps: float = 0.0, min_score: float | None = None,
) -> None:  # fmt: skip
    """Annotations or detections for a labelling tool, to correct them and train again.

    Args:
        labels: an annotation file, or the JSON or CSV of `lofi detect`.
        tool: via, elan, boris, cvat, label-studio, x-anylabeling, fiftyone, audacity or csv.
        videos: folder of the videos.
        out: folder of the files.
        fps: frames a second that the tool counts with, where it is not the video's.
        min_score: detections from this score on; by default those that do not overlap and score at
            least half of a video's best, as in the subtitles.
    """
    from lofi.data import read_annotations
    from lofi.data.annotations import find_in_index, index_videos
    from lofi.data.exporters import HOW, Mark, export_labels
    from lofi.detection.detector import subtitles
    from lofi.detection.results import is_detections, read_detections

    if is_detections(labels):
        marks = {
            key: subtitles(all_) if min_score is None else [d for d in all_ if d.score >= min_score]
            for key, all_ in read_detections(labels).items()
        }
        files = index_videos(videos)
        named = {key: find_in_index(key, files) for key in marks}
    else:
        annotated = read_annotations(labels, video_dir=videos)
        marks, named = {v.id: v.segments for v in annotated}, {v.id: v.path for v in annotated}
    labelled = {
        named[key]: [Mark(m.start_s, m.end_s, m.label or "action", getattr(m, "score", None))
                     for m in found]
        for key, found in marks.items() if named[key]
    }  # fmt: skip
    if lost := [key for key in marks if not named[key]]:
        print(f"{len(lost)} of {len(marks)} videos have no file in {videos} (first: {lost[0]})")
    if not labelled:
        raise ValueError(f"{labels}: nothing to export; give the folder of its videos")
    files = export_labels(tool, labelled, out, fps)
    print(f"{sum(map(len, labelled.values()))} events of {len(labelled)} videos: wrote "
          f"{files[0]}" + f" and {len(files) - 1} more" * (len(files) > 1))  # fmt: skip
    print(f"{tool}: {HOW[tool]}")


def train(
    stage: Positional[StageName], /, out: Path, config: Settings, method: Method = "",
    variant: Variant = "", resume: bool = True, device: str = "cpu", processes: int = 1,
    tensorboard: bool = False,
) -> None:  # fmt: skip
    """Run one stage of the procedure in the run folder OUT; finished stages return at once.

    Stages: acp, acp+, icp (classification), arrow, speed (without labels), lofi (joint, low
    fidelity), features (frozen encoder), head, classes (video classifier), detect (the test
    videos), evaluate (mAP); dual (a stand-in for CLIP), weak-warm-up, weak-b, weak-f, weak-detect
    (two branches from video labels alone). Settings: --preset NAME < --config FILE, whole or
    partial (such as the config.json of another run) < options.

    Args:
        out: run folder; every method gets a folder in it.
        resume: go on from the last checkpoint; --no-resume recomputes.
        device: cpu, cuda, cuda:1, mps, …
        processes: on this machine that train together; with --device cuda one for each GPU. For
            several machines start torchrun on each (README). The result does not depend on it.
        tensorboard: also write losses for TensorBoard to OUT/tensorboard (extra "gpu" or "dev").
    """
    with imports_undisturbed():
        from lofi.experiment import STAGES
        from lofi.training.distributed import is_first, joined, one_thread_for_small_work
        from lofi.training.methods import told, write_run_config

    one_thread_for_small_work(config.preset)
    run = STAGES[stage].run
    with joined(device) as device:
        scalars = out / "tensorboard" / stage if tensorboard and is_first() else None
        given = {"method": method, "variant": variant, "resume": resume, "device": device}
        given["on_step"] = progress_lines(stage, scalars)
        taken = {key: given[key] for key in inspect.signature(run).parameters if key in given}
        for option in ("method", "variant"):
            if given[option] and option not in taken:
                raise ValueError(f"stage {stage} has no --{option}; leave it out")
        result = run(config, out, **taken)
        write_run_config(config, out)  # not earlier: a refused run leaves the old one in place
        if is_first():
            shown = {key: value for key, value in result.items() if key != "classes"}
            shown["skipped"] = len(result.get("skipped", ()))
            print(printable(" ".join(f"{key}={value}" for key, value in shown.items())))
            if shown["skipped"] or result.get("classes_missing"):
                print(printable(told(result)))


def fit(
    annotations: Positional[Path], /, videos: Path, out: Path, config: Settings,
    add: UseAppendAction[tuple[Path, ...]] = (), minutes: float = 30.0, device: str = "cpu",
    given: Suppress[tuple[str, ...]] = (),
) -> None:  # fmt: skip
    """Own videos and a list of their events in; a detector, an honest report and how to use it out.

    Every setting is chosen from the data and may be fixed by an option. The same command goes on
    where it was stopped. OUT/config.json keeps the settings, OUT/annotations.json the split.

    Args:
        annotations: CSV (video, start_s, end_s, label) or any annotation file lofi reads.
        videos: folder of the video files.
        out: run folder.
        add: a list of corrected and of new videos, such as `lofi import` writes (may be repeated):
            they replace those of the same name, or train too; what is held out stays the same.
        minutes: time that it may take.
        device: cpu, cuda, cuda:1, mps, …
    """
    from lofi.fitting import fit as run

    settings = {}
    for name in given:  # only what was said on the command line is fixed
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is not None and name.split(".")[0] in asdict(config):
            settings[name] = value
    options = {"add": add, "minutes": minutes, "device": device}
    options |= {"settings": settings, "base": config}
    run(annotations, videos, out, **options, say=lambda line: print(line, flush=True))


def features(
    out: Path, config: Settings, method: Method = "", device: str = "cpu", processes: int = 1
) -> None:
    """Features of all training and test videos from a method's frozen encoder, full fidelity."""
    train("features", out=out, config=config, method=method, device=device)


def detect(
    videos: Positional[list[Path]], /, model: Path, out: Path = Path("detections"),
    method: str = "", variant: Variant = "", top: int = 10, device: str = "cpu", processes: int = 1,
) -> None:  # fmt: skip
    """Find actions in video files: a table, CSV, JSON, subtitles, a picture and a viewer.

    Goes on after a video that cannot be read; exit status 1 then. Results of another video of the
    same name stay: the new ones are called clip-2.

    Args:
        model: run folder (or one method's folder in it) with a trained encoder and head.
        out: folder for the results.
        method: which encoder of the run; "" = the best trained one.
        top: lines printed a video; the files hold all detections.
        processes: that share the videos.
    """
    with imports_undisturbed():
        from lofi.detection.detector import Detector, output_names, write_results
        from lofi.table import Table
        from lofi.training.distributed import barrier, gather, is_first, joined, share
        from lofi.viewer import write_picture, write_viewer

    with joined(device) as device:
        detector = Detector.load(model, method, device, variant)
        failed, videos = 0, list(dict.fromkeys(videos))
        names = output_names(videos, out)
        barrier()  # every process has seen the folder before any writes there
        for path in (videos[i] for i in share(len(videos))):
            try:
                found = detector.detect(path)
                picture = write_picture(out / f"{names[path]}.png", path, found)
            except (ValueError, OSError, RuntimeError, ArithmeticError) as error:
                failed += 1
                print(f"lofi: {printable(' '.join(str(error).split()))}", file=sys.stderr)
                continue
            files = [*write_results(found, path, out, detector, names[path]), picture]
            files.append(write_viewer(picture.with_suffix(".html"), path, found))
            print(printable(f"{path}: {len(found)} detections, the best {min(top, len(found))}:"))
            rows = [(d.label or "–", *(f"{d.score:.3f} {d.start_s:.2f} {d.end_s:.2f}".split()))
                    for d in found[:top]]  # fmt: skip
            print(Table(("label", "score", "start (s)", "end (s)"), tuple(rows)).text())
            print(printable("wrote " + ", ".join(map(str, files))))
        failed = sum(gather(failed))
        if is_first() and (failed or len(videos) > 1):
            print(f"{len(videos) - failed} of {len(videos)} videos read, {failed} left out")
        if failed:
            raise SystemExit(1)


def evaluate(
    ground_truth: Positional[Path], detections: Positional[Path], /, subset: str = "",
    protocol: Protocol = "activitynet", available: str = "", json: Path | None = None,
    replay_toolkit: bool = False,
) -> None:  # fmt: skip
    """Mean average precision of a detection file, with its protocol.

    Args:
        subset: exact name; "" = validation, for thumos14 test.
        available: also score the videos that could be had alone: a file with their ids, or "auto" =
            those with an entry in the detection file. The first line stays the official list's.
        replay_toolkit: score reversed and zero-length rows as the official toolkit does, which
            rewards some; without it they are refused, or never match.
    """
    import numpy as np

    from lofi.evaluation.bootstrap import draws_of, interval
    from lofi.evaluation.detection import Matches, load
    from lofi.evaluation.detection import evaluate as scored

    given = ground_truth, detections, None, subset or None, protocol
    matches = Matches(*load(*given, strict=not replay_toolkit))
    result = scored(matches, protocol, available or None)
    spread = interval(draws_of(matches), np.array([*result.map, result.average_map]))
    if json:
        write_json(json, result.to_json() | {"interval": spread.tolist()})
    print(result)
    first, mean = (f"{low:.1f} to {high:.1f}" for low, high in 100 * spread[[0, -1]])
    at = f"at tIoU {result.tious[0]:g}"
    print(f"  95 % interval over videos: {first} {at}, average {mean} (1,000 draws of the videos)")


def diagnose(
    ground_truth: Positional[Path], detections: Positional[Path], /, subset: str = "",
    protocol: Protocol = "activitynet", tiou: float = 0.5, unsuppressed: Path | None = None,
    json: Path | None = None, figure: Path | None = None, replay_toolkit: bool = False,
) -> None:  # fmt: skip
    """Where points are lost: oracles, kinds of false positives, hard instances, classes, grid.

    Args:
        subset: exact name; "" = validation, for thumos14 test.
        tiou: threshold of the false-positive profile.
        unsuppressed: the detections before soft-NMS; adds what suppression costs and gains.
        figure: picture of the false-positive profile and of the sensitivity to instances.
        replay_toolkit: as in `lofi evaluate`.
    """
    from lofi.evaluation import diagnose as explain

    report = explain(
        ground_truth, detections, subset=subset or None, protocol=protocol, profile_tiou=tiou,
        unsuppressed=unsuppressed, strict=not replay_toolkit,
    )  # fmt: skip
    _show(report, json)
    if figure:
        from lofi.figures import diagnosis_figure

        with atomic_path(figure) as picture:
            diagnosis_figure(report).savefig(picture, dpi=110)


def recall(
    ground_truth: Positional[Path], proposals: Positional[Path], /, subset: str = "validation",
    available: str = "", json: Path | None = None, replay_toolkit: bool = False,
) -> None:  # fmt: skip
    """Average recall at an average number of proposals (AR@AN) and its area (AUC).

    Args:
        available, replay_toolkit: as in `lofi evaluate`.
    """
    from lofi.evaluation import proposal_recall

    choices = {"subset": subset, "available": available or None, "strict": not replay_toolkit}
    found = proposal_recall(ground_truth, proposals, **choices)
    _show(found, json)


def _show(result: Any, json: Path | None) -> None:
    """Print a result, and write it as JSON where that was asked for."""
    if json:
        write_json(json, result.to_json())
    print(printable(str(result)))


@dataclass(frozen=True)
class Workload:
    """What is trained: the options that the memory commands share, laid over a configuration."""

    preset: str = ""  # what the rest is taken from; "" = the file's own, else activitynet
    config: Path | None = None  # JSON configuration over its preset
    encoder: str | None = None
    snippets: int | None = None
    pixels: int | None = None
    frames: int | None = None
    batch: int | None = None  # videos a step on that device
    head: Literal["gtad", "bmn", "actionformer", "amnet", "none"] | None = None
    amp: Literal["fp32", "bf16", "fp16"] | None = None

    def read(self) -> tuple[str, tuple]:
        """In words, and as the memory functions take it: encoder, head, fidelity, batch, precision.

        The encoder is frozen as stage 2 trains it by default. Where a preset reads published
        features and no encoder is named there is none: the step is that of stage 3.
        """
        from lofi.encoders import build_encoder, freeze_batch_norm
        from lofi.heads import build_head

        config = layered(self.preset or ("" if self.config else "activitynet"), self.config or "")
        given = self.snippets, self.frames, self.pixels
        own = config.full.snippets, config.full.frames, config.full.pixels
        size = Fidelity(*(b if a is None else a for a, b in zip(given, own)))
        published, kind = config.data.features, self.head or config.head.kind
        amp, training = config.lofi.amp, config.lofi.training
        if self.encoder or not (published.folder or published.width):
            encoder = build_encoder(self.encoder or config.encoder)
            freeze_batch_norm(encoder)
            channels, what = encoder.channels, f"{encoder.name}, {kind} head, {size}"
        else:
            encoder, channels = None, published.width
            amp, training = config.amp, config.head_training
            what = f"{kind} head alone, on published features of {channels} × {size.snippets}"
            if not channels:
                raise ValueError("data.features.width, the channels of the features, is not set")
        head = None
        if kind != "none":
            same = kind == config.head.kind
            chosen = config if same else override(config, {"head.kind": kind})
            head = build_head(chosen.head, channels)
        batch, amp = training.batch if self.batch is None else self.batch, self.amp or amp
        return f"{what}, batch {batch}, {amp}", (encoder, head, size, batch, amp)


Shared = Annotated[Workload, arg(name="")]


def memory(
    work: Shared = Workload(),
    mode: Literal["full", "exact", "sampled", "bank", "partial", "adapters", "frozen"] = "full",
    chunk: int = 4, ratio: float = 0.3, stage: str = "layer2", recompute: bool = False,
    fold: bool = False, micro_batch: int = 0, top: int = 8, measure: int = 0, device: str = "cpu",
    json: Path | None = None,
) -> None:  # fmt: skip
    """Memory of one training step, predicted without allocating it, and what a video costs.

    Args:
        mode: how the encoder's gradient is found; "full" is one graph, as in every LoFi step.
        chunk: snippets encoded at a time (exact, sampled, bank, frozen).
        ratio: share of the snippets that get a gradient (sampled, bank).
        stage: last frozen stage (partial).
        recompute: run blocks again in the backward pass instead of keeping activations.
        fold: frozen batch normalisation folded into the convolutions.
        micro_batch: videos whose graph is held at once; 0 = the batch.
        top: largest consumers that are listed.
        measure: videos that are really put through encoder and head on DEVICE, without decoding;
            the median is the latency of inference. 0 = no measurement.
        device: of the measurement: cpu, cuda, cuda:1, mps, …
    """
    import torch

    from lofi.budget import GIB, activation_bytes, inference_cost

    what, (encoder, head, *sizes) = work.read()
    how = Mode(mode, chunk, ratio, stage=stage, recompute=recompute, fold=fold)
    report = activation_bytes(encoder, head, *sizes, how, micro_batch)
    costs = inference_cost(encoder, head, report.fidelity, device, measure)
    if json:
        where = {"device": device, "threads": torch.get_num_threads(), "repeats": measure}
        found = {name: cost._asdict() for name, cost in costs.items()}
        write_json(json, report.as_dict() | {"inference": found | (where if measure else {})})
    print(f"{what}, mode {report.mode}")
    print(f"saved for the backward pass  {report.saved_bytes / GIB:9.2f} GiB")
    print(f"  a video                    {report.saved_bytes_per_video / GIB:9.2f} GiB")
    print(f"peak of the step             {report.peak_bytes / GIB:9.2f} GiB")
    print(f"parameters                   {report.parameters_bytes / GIB:9.3f} GiB")
    for row in report.top[:top]:
        print(f"  {row.bytes / report.saved_bytes:6.1%}  {row.name} ({row.kind})")
    print("inference of one video       parameters   multiply-adds" + "  latency" * bool(measure))
    for name, cost in costs.items():
        numbers = f"{cost.parameters / 1e6:24.2f} M {cost.multiply_adds / 1e9:13.4g} G"
        print(f"  {name:<10} {numbers}" + (f"  {cost.seconds:7.3g} s" if measure else ""))
    if measure:
        threads = f", {torch.get_num_threads()} thread(s)" * (device == "cpu")
        print(f"  latency: median of {measure} on {device}{threads}, in fp32, without decoding")


def plan(budget_gib: float = 32.0, work: Shared = Workload(), json: Path | None = None) -> None:
    """Which fidelities and encoder modes fit a memory budget, and what they cost.

    Args:
        budget_gib: memory of one device in GiB.
    """
    from lofi.budget import GIB
    from lofi.budget import plan as rows_of
    from lofi.table import Table

    what, (encoder, *others) = work.read()
    copies = 1 if encoder else 2
    rows = rows_of(budget_gib, encoder, *others, optimiser_copies=copies, progress=bar("counting"))
    if json:
        write_json(json, [asdict(row) for row in rows])
    header = ("configuration", "L×F×S²", "mode", "peak GiB", "fits", "largest batch", "compute",
              "frames a video")  # fmt: skip
    body = tuple((
        row.configuration, str(row.fidelity) if encoder else "", str(row.mode),
        f"{row.peak_bytes / GIB:.1f}",
        "yes" if row.fits else "no", str(row.largest_batch), f"{row.relative_compute:.2f}",
        str(row.decoded_frames),
    ) for row in rows)  # fmt: skip
    print(Table(header, body, f"{what}, {budget_gib:g} GiB").text())


def compare(
    out: Path, config: Settings, seeds: tuple[int, ...] = (0, 1, 2),
    methods: tuple[str, ...] = ("random", "acp", "acp+", "c-lofi"),
    variants: tuple[str, ...] = ("",), trials: int = 1, repeat: Literal["head", "lofi"] = "head",
    at_low: bool = False, device: str = "cpu", processes: int = 1,
) -> None:  # fmt: skip
    """The whole procedure for several encoders and seeds, without notebooks: mean ± SD.

    With preset weak (or *-weak): its two branches, step by step, in variations, and the gates.

    Args:
        out: results.json, and one run folder a seed.
        seeds: each makes a world, initial weights and random draws of its own.
        methods: random, acp, acp+, s-lofi, t-lofi, st-lofi, short-c-lofi, c-lofi, low-lofi, icp,
            arrow, speed, weights (as they are), or two encoders side by side, such as acp+arrow.
        variants: of the head, each for every method: "" hidden=128 mask=none,attention=none …
        trials: of each method in one run folder, averaged: heads that differ in seed alone.
        repeat: lofi: trials of methods of stage 2 train their encoder again as well.
        at_low: also train and test at the low fidelity of s-lofi, t-lofi, … (the paper's Table C).
    """
    from lofi.experiment import Repeats, compare_seeds
    from lofi.figures.tables import amnet_table, summary_table
    from lofi.training.distributed import is_first, joined, one_thread_for_small_work
    from lofi.training.methods import told
    from lofi.weak_study import compare_weak, tables

    one_thread_for_small_work(config.preset)
    with joined(device) as device:
        how = {"device": device, "on_step": progress_lines("training")}
        repeats = Repeats(trials, repeat, at_low)
        if "weak" in config.preset.split("-"):
            plain = ("random", "acp", "acp+", "c-lofi"), ("",), Repeats()
            if (methods, variants, repeats) != plain:
                found = f"preset {config.preset} has rows of its own"
                raise ValueError(f"{found}; leave out --methods, --variants, trials and --at-low")
            results = compare_weak(config, out, seeds, **how)
            if is_first():
                print("\n\n".join(table.text() for table in tables(results)))
            return
        how |= {"variants": variants, "repeats": repeats}
        results = compare_seeds(config, out, seeds, methods, **how)
        if is_first():
            print(summary_table(results).text())
            if config.head.kind == "amnet" and results["protocol"] == "thumos14":
                print(amnet_table(results).text())
            print(printable(told(results)))


def course(
    preset: str = "", run: Path = Path("runs/course"), seed: int = 0,
    file: Annotated[Path | None, arg(name="config")] = None,
    first: Annotated[str, arg(name="from")] = "00", last: Annotated[str, arg(name="to")] = "99",
    device: str = "cpu", workers: Annotated[int, arg(name="processes")] = 1,
    parameters: Annotated[
        UseAppendAction[tuple[str, ...]], arg(name="parameter", aliases=["-p"])
    ] = (), jobs: int = min(2, os.cpu_count() or 1),
) -> None:  # fmt: skip
    """Run the ordered notebooks as one batch; ends in results.json, a table and report.html.

    Args:
        preset: "" = the one that the configuration names, else tiny.
        seed: 0 = the configuration's own.
        file: JSON configuration over its preset, for data of your own and full scale.
        first: number of the first notebook.
        last: number of the last notebook.
        device: of every stage: cpu, cuda, cuda:1, mps, …
        workers: processes that train each stage together.
        parameters: name=value of further notebook parameters.
        jobs: notebooks and stages side by side, where tiny or toy is run as it is.
    """
    from lofi.course import run_course

    began, given = time.perf_counter(), {}
    for text in parameters:
        name, _, value = text.partition("=")
        try:
            given[name] = loads(value)
        except ValueError:
            given[name] = value
    where = {"config": file or "", "seed": seed, "first": first, "last": last}
    how = {"device": device, "processes": workers, "parameters": given, "jobs": jobs}
    print(run_course(preset or ("" if file else "tiny"), run, **where, **how))
    print(f"report: {run / 'report.html'}   seconds: {time.perf_counter() - began:.0f}")


def report(run: Positional[Path], /) -> None:
    """A run as one page that opens anywhere, finished or not: report.html in it.

    Of a finished procedure results, timelines and maps; of any other how far each stage is, its
    losses, how long it waited for data, and what has been evaluated.
    """
    from lofi.report import write_any_report

    print(printable(str(write_any_report(run))))


def tables(
    run: Path | None = None, study: bool = False, seeds: int = 10, jobs: int = 1,
    arms: tuple[str, ...] = (), frames: Path | None = None,
) -> None:  # fmt: skip
    """The results of a finished run beside the paper's numbers; without a run, the paper's tables.

    Args:
        run: run folder with results.json, as `lofi course` and `lofi compare` leave them.
        study: run (or go on with) the study of all tables there, see docs/PROTOCOL.md; it writes
            results.csv and RESULTS.md.
        seeds: of the study, from 5001 on.
        jobs: arms that run side by side, a CPU core each.
        arms: of the study, these and what they begin with.
        frames: of the study, a folder of videos whose frames are the backgrounds of world "real";
            some are kept in the run, which needs the folder once.
    """
    from lofi import figures
    from lofi.experiment import read_results

    if study:
        from lofi.study import FIRST_SEED, run_study

        root = (run or Path("runs/tables")).resolve()
        run_study(root, range(FIRST_SEED, FIRST_SEED + seeds), jobs, arms, frames)
        print((root / "RESULTS.md").read_text(encoding="utf-8"))
        return
    if arms or frames:
        raise ValueError("--arms and --frames belong to the study of all tables; add --study")
    if run is None:
        print("\n\n".join(figures.paper_table(name).text() for name in "1234567ABCD"))
        return
    results = read_results(run)
    print(figures.results_table(results).text())
    sets = {"activitynet": "ActivityNet-1.3", "hacs": "HACS-1.1"}
    if dataset := sets.get(results["preset"].partition("-")[0]):
        for table in figures.paper_tables(results, dataset):
            print(f"\n{table.text()}")
    else:
        print("\nThe paper's own numbers are for another data set: compare orders, not levels.")
        print(figures.paper_table("1").text())


def bar(what: str) -> Callable[..., None]:
    """update(done, total, item="") moves a bar on a terminal and does nothing elsewhere."""
    from tqdm import tqdm

    shown = tqdm(desc=what, disable=not sys.stderr.isatty(), leave=False)

    def update(done: int, total: int, item: str = "") -> None:
        shown.total = total
        shown.set_postfix_str(printable(item), refresh=False)
        shown.update(done - shown.n)

    return update


def progress_lines(
    what: str, scalars: Path | None = None, clock: Callable[[], float] = time.perf_counter
) -> Callable[[int, int, dict], None]:
    """An `on_step`: a bar on a terminal; elsewhere a line at first, each minute and at last.

    It shows what the record holds and, of the last minute, items a second, the share of the time
    that was spent on waiting for data, and the time left. With `scalars`, every number of the
    record goes to TensorBoard files in that folder as well.
    """
    show, writer = bar(what), None
    if scalars:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(scalars)
    last = total = -1  # of the step before
    first, start, items, waited = 0, 0.0, 0.0, 0.0  # of this minute

    def on_step(step: int, steps: int, record: dict[str, Any]) -> None:
        nonlocal first, start, items, waited, last, total
        now, begins = clock(), step <= last or steps != total
        if begins:  # a stage, perhaps behind another one
            took = record.get("seconds", 0.0) + record.get("waited", 0.0)
            first, start, items, waited = step, now - took, 0.0, 0.0
        last, total = step, steps
        items, waited = items + record.get("items", 1), waited + record.get("waited", 0.0)
        spent = max(now - start, 1e-6)
        left = timedelta(seconds=round(spent / (step + 1 - first) * (steps - step - 1)))
        named = ("epoch", "loss", "accuracy", "lr", "fidelity")
        shown = {key: record[key] for key in named if key in record}
        parts = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()]
        parts.append(f"{items / spent:.3g} items/s")
        if "waited" in record:
            parts.append(f"waiting {waited / spent:.0%}")
        text = " ".join([*parts, f"left {left}"])
        if sys.stderr.isatty():
            show(step + 1, steps, text)
        elif begins or step + 1 == steps or spent >= EVERY_S:
            print(printable(f"{what} {step + 1}/{steps} {text}"), file=sys.stderr, flush=True)
        if spent >= EVERY_S:
            first, start, items, waited = step + 1, now, 0.0, 0.0
        if writer:
            for name, value in record.items():
                if isinstance(value, int | float):
                    writer.add_scalar(name, value, step)

    return on_step
