"""The stages of the procedure in one table, and the whole of it for several encoders and seeds.

results.json: {"rows": [{"method", "classes", "average_map", "map", …}], "seconds", "protocol", …}
"""

import inspect
import json
import logging
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from lofi import launch
from lofi.config import Config, save
from lofi.data.annotations import Video
from lofi.data.datasets import fingerprint
from lofi.data.features import FeatureStore
from lofi.detection.classes import is_class_file, true_classes
from lofi.detection.detector import (
    CLASSES,
    SOURCES,
    classified,
    detect_stage,
    detections_dir,
    inside,
    propose,
    train_classifier,
)
from lofi.detection.results import read_detections
from lofi.evaluation import detection_map, proposal_recall
from lofi.fidelity import Fidelity, schedule
from lofi.files import atomic_path, read_json, write_json
from lofi.heads.scaled import ScaledHead
from lofi.training import weak
from lofi.training.distributed import barrier, gather, is_first, share
from lofi.training.head import extract_features, train_head
from lofi.training.joint import train_lofi
from lofi.training.loop import OnStep, generator_for
from lofi.training.methods import (
    FIRST_LESSONS,
    JOINT,
    command,
    components,
    counts,
    default_method,
    encoder_path,
    head_dir,
    head_variant,
    method_config,
    open_features,
    run_data,
    trial_of,
    write_run_config,
)
from lofi.training.pretext import train_arrow, train_speed
from lofi.training.pretraining import train_acp, train_acp_plus, train_dual, train_icp
from lofi.training.run_folder import RunFolder
from lofi.weak_study import weak_detect

log = logging.getLogger(__name__)
METHODS = ("random", "acp", "acp+", "c-lofi")
UNTRAINED = ("random", "weights", "published")
RECALL = ("ar@1", "ar@5", "ar@10", "ar@100", "auc")  # of proposals without classes, fractions


def head_stage(
    config: Config, run_dir: str | Path, method: str = "", *, variant: str = "",
    resume: bool = True, on_step: OnStep | None = None, device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """Stage `head`: `train_head`, with `head_search` at the rate that `search_rate` finds.

    A variant that names its rate has it; trials of a variant share one search."""
    method = method or default_method(config)
    how = {"resume": resume, "on_step": on_step, "device": device}
    if not config.head_search or any(part.startswith("lr=") for part in variant.split(",")):
        return train_head(config, run_dir, method, variant=variant, **how)
    found = search_rate(config, run_dir, method, trial_of("", variant), **how)
    config = replace(config, head_training=replace(config.head_training, lr=found["lr"]))
    return train_head(config, run_dir, method, variant=variant, about={"search": found}, **how)


def search_rate(
    config: Config, run_dir: str | Path, method: str, variant: str = "", *,
    resume: bool = True, on_step: OnStep | None = None, device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """The rate of `head_search` whose head is best on held-out *training* videos.

    Every head trains on nine tenths of them, in <method>/head/<variant>/search, and its detections
    in the others are evaluated with the run's protocol and post-processing. The classes are the
    head's own, else the true ones: they don't depend on the rate. Of equal rates the first wins;
    one whose loss is not finite has no mAP.

    Returns {"lr", "average_map": {rate: mAP}, "held_out": how many videos}.
    """
    data, folder = run_data(config, run_dir), head_dir(run_dir, method, variant) / "search"
    store = open_features(config, run_dir, method, data)
    videos = sorted(store.require(data.train), key=lambda video: video.id)
    order = torch.randperm(len(videos), generator=generator_for(config.seed, "head search"))
    held = [videos[i] for i in order[: -(-len(videos) // 10)].tolist()]
    if len(held) == len(videos):
        found = f"head_search holds out a tenth of the training videos, but there is {len(videos)}"
        raise ValueError(f"{found}; set head_training.lr, and head_search to nothing")
    setting = head_variant(config, variant)
    settings = {"stage": "head search", "features": store.identity, "seed": config.seed}
    settings |= {"videos": fingerprint(videos), "head": asdict(setting.head)}
    settings |= {"rates": config.head_search, "detect": config.detect.to_json()}
    settings |= {"training": asdict(setting.head_training) | {"lr": 0.0}}
    run, scores = RunFolder(folder, settings, resume), dict[str, float | None]()
    if (done := run.result()) is not None:
        return done
    with run.logging():
        for rate in config.head_search:
            chosen = replace(config, head_training=replace(config.head_training, lr=rate))
            part = folder / f"lr={rate:g}"
            how = {"resume": resume, "on_step": on_step, "device": device, "folder": part}
            try:
                train_head(chosen, run_dir, method, variant=variant,
                           without={video.id for video in held}, **how)  # fmt: skip
            except FloatingPointError as error:
                log.warning("learning rate %g is out of the search: %s", rate, error)
                scores[f"{rate:g}"] = None
                continue
            head = ScaledHead.load(part / "head.safetensors", setting.head).to(device)
            scores[f"{rate:g}"] = _held_out_map(config, head, store, held)
        if set(scores.values()) == {None}:
            raise FloatingPointError(f"{folder}: no rate of {config.head_search} could be trained")
        rated = [score or 0.0 for score in scores.values()]
        result = {"lr": config.head_search[rated.index(max(rated))], "average_map": scores}
        result["held_out"] = len(held)
        log.info("learning rate %g of %s on %d held-out videos", result["lr"], scores, len(held))
    return run.finish(result)


def _held_out_map(
    config: Config, head: ScaledHead, store: FeatureStore, videos: Sequence[Video]
) -> float:
    truth, found = true_classes(videos), {}
    for video in (videos[i] for i in share(len(videos))):
        features = store[video.id]
        if config.detect.classes == "own":
            rows = classified(config, head, None, features)
        else:
            kept, names = propose(config, head, features), (truth.of(video.id), truth.names)
            rows = inside(kept, features.grid.duration_s, config.detect, *names)
        found[video.id] = [d for d in rows if d.label in truth.names]
    together = {key: rows for part in gather(found) for key, rows in part.items()}
    how = {"subset": config.data.train_subset, "protocol": config.detect.protocol}
    return detection_map(videos, together, **how).average_map


def evaluate_stage(
    config: Config, run_dir: str | Path, method: str = "", *, variant: str = ""
) -> dict[str, Any]:
    """Stage `evaluate`: average mAP of a method's detections; <method>/metrics holds the rest.

    Returns {source of the classes: average mAP, …, "ar@1", …, "protocol", "tious", "videos"}."""
    method = method or default_method(config)
    rows = evaluate_method(config, run_dir, method, variant)
    found = {row["classes"]: round(row["average_map"], 4) for row in rows}
    found |= {key: round(value, 4) for key, value in rows[0].items() if key in RECALL}
    found |= {key: rows[0]["report"][key] for key in ("protocol", "tious", "videos")}
    path = detections_dir(run_dir, method, variant) / "result.json"
    detected = read_json(path, "the result of the detection") if path.exists() else {}
    told = ("items", "skipped", "missing", "classes_missing")
    return found | {key: detected[key] for key in told if key in detected}


class Stage(NamedTuple):
    """A step of the procedure: run(config, run_dir, …) → what it found."""

    run: Callable[..., dict[str, Any]]
    needs: str
    leaves: str  # below the method's folder


STAGES = {
    "acp": Stage(train_acp, "trimmed clips (data.source)", "encoder"),
    "acp+": Stage(train_acp_plus, "videos, acp", "encoder"),
    "icp": Stage(train_icp, "weights", "encoder"),
    "arrow": Stage(train_arrow, "trimmed clips", "encoder"),
    "speed": Stage(train_speed, "trimmed clips", "encoder"),
    "lofi": Stage(train_lofi, "videos, the encoder of lofi.start", "encoder"),
    "features": Stage(extract_features, "videos, an encoder", "features"),
    "head": Stage(head_stage, "features", "head"),
    "classes": Stage(train_classifier, "features", "classifier.safetensors"),
    "detect": Stage(detect_stage, "features, head", "detections"),
    "evaluate": Stage(evaluate_stage, "detections", "metrics"),
    "dual": Stage(train_dual, "trimmed clips, icp", "encoder"),
    "weak-warm-up": Stage(partial(weak.train, "warm-up"), "features of acp and dual", "head"),
    "weak-b": Stage(partial(weak.train, "b"), "weak-warm-up", "head"),
    "weak-f": Stage(partial(weak.train, "f"), "weak-b", "head"),
    "weak-detect": Stage(weak_detect, "weak-f", "detections, metrics"),
}


def run_stage(
    name: str, config: Config, run_dir: str | Path, method: str = "", *, processes: int = 1,
    **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """One stage of the table, trained in this process or in several of this machine; its result.

    `options` are those of `lofi train`: variant, resume, device, on_step; what a stage does not
    take is left out. Errors as of the stage, and LaunchError.
    """
    run, options = STAGES[name].run, {"method": method} | options
    known = inspect.signature(run).parameters
    if processes > 1 and "resume" in known:
        with tempfile.TemporaryDirectory() as folder:
            save(config, Path(folder) / "config.json")
            words = ["train", name, "--config", f"{folder}/config.json", "--out", str(run_dir)]
            for key in ("method", "variant", "device"):
                words += [f"--{key}", options[key]] if options.get(key) and key in known else []
            words += ["--no-resume"] * (not options.get("resume", True))
            launch.run(words, processes)
        options["resume"] = True  # it is finished: only its result is read here
    return run(config, run_dir, **{key: options[key] for key in known if key in options})


def train_encoder(config: Config, run_dir: str | Path, method: str, **options: Any) -> None:
    """Stages 1 and 2 of one method, and what it starts from; finished stages return at once.

    `options` as of `run_stage`.
    """
    parts = components(method)
    if len(parts) > 1:  # "acp+arrow": two encoders side by side
        for part in parts:
            train_encoder(config, run_dir, part, **options)
    elif method in FIRST_LESSONS:
        if method == "acp+":
            train_encoder(config, run_dir, config.acp_plus_start, **options)
        run_stage(method, config, run_dir, **options)
    elif method not in UNTRAINED:
        config = method_config(config, method)
        train_encoder(config, run_dir, config.lofi.start, **options)
        run_stage("lofi", config, run_dir, **options)


def localize(
    config: Config, run_dir: str | Path, method: str, *, variants: Sequence[str] = ("",),
    **options: Any,
) -> None:  # fmt: skip
    """Features and stage 3, in all its variants, of one method whose encoder is trained.

    `options` as of `run_stage`; `on_step` sees the steps of the head."""
    if method != "published":
        run_stage("features", config, run_dir, method, **(options | {"on_step": None}))
    for variant in variants:
        run_stage("head", config, run_dir, method, variant=variant, **options)
    write_run_config(config, run_dir)


def evaluate_method(
    config: Config, run_dir: str | Path, method: str, variant: str = ""
) -> list[dict[str, Any]]:
    """Evaluate the detections of one method; one row for each source of classes, metrics files.

    Each row also has the AR@AN of proposals.json, where there is any proposal, see `RECALL`.
    "method" is what `trial_of` names, "trial" its method and variant, "lr" what a search found.
    FileNotFoundError, with the command, where there are no detections.
    """
    protocol, data = config.detect.protocol, run_data(config, run_dir)
    folder, rows, subset = detections_dir(run_dir, method, variant), [], config.data.test_subset
    path, recall = folder / "proposals.json", {}
    proposals = read_detections(path) if path.is_file() else {}
    if any(proposals.values()):
        result = proposal_recall(data.annotations, proposals, subset)
        recall = dict(zip(RECALL, (*result.average_recall.values(), result.auc / 100)))
    path = head_dir(run_dir, method, variant) / "result.json"
    searched = read_json(path, "what a head left").get("search") if path.is_file() else None
    rate = {"lr": searched["lr"]} if searched else {}
    for kind in CLASSES:
        if not (folder / f"{kind}.json").is_file():
            continue
        how = {"subset": subset, "protocol": protocol}
        result = detection_map(data.annotations, folder / f"{kind}.json", **how)
        if result.predictions_left_out:  # a small data set of one's own may have such classes
            log.warning("%s: %d detections of classes that do not occur in the test videos are not "
                        "evaluated", folder, result.predictions_left_out)  # fmt: skip
        report = result.to_json()
        if is_first():
            write_json(Path(run_dir) / method / "metrics" / variant / f"{kind}.json", report)
        row = {"method": trial_of(method, variant), "trial": f"{method} {variant}".strip()}
        row |= {"classes": kind, "seed": config.seed, "report": report} | rate
        rows.append(row | {key: report[key] for key in ("average_map", "map")} | recall)
    if not rows:
        more = f" --variant {shlex.quote(variant)}" if variant else ""
        cure = command("detect", config, run_dir, method, more)
        raise FileNotFoundError(f"{folder}: no detections; run: {cure}")
    return rows


@dataclass(frozen=True)
class Repeats:
    """What of a run is repeated, to know how far results scatter, and what is added to it."""

    trials: int = 1  # of each method: its first is the method itself
    repeat: Literal["head", "lofi"] = "head"  # from which stage on: 3, or 2 where there is one
    at_low: bool = False  # also Table C, see `at_low_fidelity`

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ValueError(f"trials is {self.trials}; expected 1 or more")

    def heads(self, config: Config, methods: Sequence[str], variants: Sequence[str]) -> list:
        """[(method, variant), …] of all trials: `seed=…` heads, or encoders `<method>@<trial>`."""
        found = []
        for method in methods:
            joint = self.repeat == "lofi" and method in JOINT
            for trial in range(self.trials):
                name = f"{method}@{trial}" if joint and trial else method
                seed = [f"seed={config.seed + trial}"] if trial and not joint else []
                found += [(name, ",".join([*filter(None, [v]), *seed])) for v in variants]
        return found


def run_procedure(
    config: Config, run_dir: str | Path, methods: Sequence[str] = METHODS,
    on_step: OnStep | None = None, device: str = "cpu", variants: Sequence[str] = ("",),
    repeats: Repeats = Repeats(),
) -> dict[str, Any]:  # fmt: skip
    """Everything for every method and variant of stage 3; writes and returns results.json."""
    began, how = time.perf_counter(), {"on_step": on_step, "device": device}
    heads = repeats.heads(config, methods, variants)
    low = low_fidelities(config, methods) if repeats.at_low else ()
    for method in dict(heads):
        train_encoder(config, run_dir, method, **how)
        mine = [variant for name, variant in heads if name == method]
        localize(config, run_dir, method, variants=mine, **how)
    source = config.detect.shared_classes
    if source and source not in methods and not is_class_file(source):  # it names the classes
        train_encoder(config, run_dir, source, on_step=on_step, device=device)
        extract_features(config, run_dir, source, device=device)
    rows = [row for method in low for row in at_low_fidelity(config, run_dir, method, **how)]
    seconds = time.perf_counter() - began
    return write_results(config, run_dir, methods, seconds, device, variants, repeats, rows)


def low_fidelities(config: Config, methods: Sequence[str]) -> dict[str, Fidelity]:
    """The methods that train at one low fidelity throughout, and this; ValueError: there is none.

    Windows of a video would need another distance between their snippets."""
    found = {}
    for method in (name for name in methods if name in JOINT and not config.data.window_stride):
        sizes = schedule(method_config(config, method).lofi.schedule, config.full).fidelities
        if len(sizes) == 1 and sizes[0] != config.full:
            found[method] = sizes[0]
    if not found:
        wanted = "one method of one low fidelity (t-lofi, s-lofi, …) on whole videos"
        raise ValueError(f"--at-low needs {wanted}, got {', '.join(methods)}")
    return found


def at_low_fidelity(
    config: Config, run_dir: str | Path, method: str, **options: Any
) -> list[dict[str, Any]]:
    """Rows of the paper's Table C: what is trained *and tested* at a method's low fidelity.

    "end-to-end" is stage 2's own encoder and head, "pre-trained" a head on the encoder that stage 2
    began with. <run>/low-<method> is a run at that fidelity with copies of the encoders.
    """
    trained, how = method_config(config, method).lofi, {"device": options["device"]}
    (size,), folder = low_fidelities(config, [method]).values(), Path(run_dir) / f"low-{method}"
    world = config.data.world or ("" if config.data.annotations else str(Path(run_dir) / "world"))
    low = replace(config, full=size, data=replace(config.data, world=world))
    joint = encoder_path(run_dir, method).with_name("head.safetensors")
    copies = {joint: head_dir(folder, method) / joint.name}
    source = config.detect.shared_classes
    needed = {trained.start, method, *([source] if source and not is_class_file(source) else ())}
    for name in {part for each in needed for part in components(each)}:
        copies[encoder_path(run_dir, name)] = encoder_path(folder, name)
    for made, copy in copies.items():
        if made.is_file() and is_first():  # else it is made from nothing, as "random"
            with atomic_path(copy) as temporary:
                shutil.copyfile(made, temporary)
    barrier()
    for name in sorted(needed):
        run_stage("features", low, folder, name, **how)
    run_stage("head", low, folder, trained.start, **options)
    write_run_config(low, folder)
    rows = []
    for what, name in (("pre-trained", trained.start), ("end-to-end", method)):
        detect_stage(low, folder, name, **how)
        for row in evaluate_method(low, folder, name):
            rows.append(row | {"method": f"{what} at {size}", "trial": f"{name} at {size}"})
    return rows


def compare_seeds(
    config: Config, out: str | Path, seeds: Sequence[int], methods: Sequence[str] = METHODS,
    **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """`run_procedure` for every seed in <out>/seed-N; results.json in `out` holds all rows.

    A seed makes the toy world, the initial weights and every random draw. `options`: on_step,
    device, variants and repeats of `run_procedure`.
    """
    parts = []
    for seed in seeds:
        own, folder = replace(config, seed=seed), Path(out) / f"seed-{seed}"
        parts.append(run_procedure(own, folder, methods, **options))
    results = parts[0] | {
        "rows": [row for part in parts for row in part["rows"]],
        "seconds": sum(part["seconds"] for part in parts),
        "seeds": list(seeds),
    }
    results |= left_out(Path(out), "seed-*/*/*/result.json")
    if is_first():
        write_json(Path(out) / "results.json", results)
    return results


def write_results(
    config: Config, run_dir: str | Path, methods: Sequence[str], seconds: float,
    device: str = "cpu", variants: Sequence[str] = ("",), repeats: Repeats = Repeats(),
    more: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:  # fmt: skip
    """Detect with and evaluate the methods of a finished run; writes results.json.

    Detections made from the same heads, features, classes and settings stay as they are. The
    "method" of a row is followed by its variant, where that has a name; `more` rows follow.
    """
    rows = []
    for method, variant in repeats.heads(config, methods, variants):
        detect_stage(config, run_dir, method, variant=variant, device=device, again=False)
        rows += evaluate_method(config, run_dir, method, variant)
    rows += more
    barrier()
    reports = [row.pop("report") for row in rows]
    about = ("protocol", "subset", "tious", "videos", "instances")
    results = {"rows": rows, "seconds": round(seconds, 1), "preset": config.preset}
    results |= {"encoder": config.encoder, "head": config.head.kind}
    results |= {"seeds": [config.seed], **{key: reports[0][key] for key in about}}
    results["classes"] = list(SOURCES[config.detect.classes])
    results |= left_out(Path(run_dir))
    results = json.loads(json.dumps(results))  # in memory as in the file: lists, no tuples
    if is_first():
        write_json(Path(run_dir) / "results.json", results)
    return results


def left_out(run_dir: Path, results: str = "*/*/result.json") -> dict[str, Any]:
    """Videos and clips that stages of a run did without, as in `lofi.training.methods.counts`:
    each once, "items" the most that a stage was given, "stages" those that left it out;
    "classes_missing" the most videos that external class scores lacked."""
    rows: dict[str, dict[str, Any]] = {}
    items = lacking = 0
    for path in sorted(run_dir.glob(results)):
        found = read_json(path, "the result of a stage")
        items = max(items, found.get("items", 0))
        lacking = max(lacking, found.get("classes_missing", 0))
        for row in found.get("skipped", ()):
            stages = rows.setdefault(row["item"], row | {"stages": []})["stages"]
            stages.append(path.parent.relative_to(run_dir).as_posix())
    return counts(items, [rows[item] for item in sorted(rows)]) | {"classes_missing": lacking}


def read_results(run_dir: str | Path) -> dict[str, Any]:
    """results.json of a finished run."""
    return read_json(Path(run_dir) / "results.json", "the results of a run (make demo writes them)")
