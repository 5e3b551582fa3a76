"""The stages of the procedure in one table, and the whole of it for several encoders and seeds.

results.json: {"rows": [{"method", "classes", "average_map", "map", …}], "seconds", "protocol", …}
"""

import inspect
import json
import logging
import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lofi import launch
from lofi.config import Config, save
from lofi.data.datasets import Datasets
from lofi.detection.classes import is_class_file
from lofi.detection.detector import CLASSES, SOURCES, detect_stage, detections_dir, train_classifier
from lofi.detection.results import read_detections
from lofi.evaluation import detection_map
from lofi.files import read_json, write_json
from lofi.training import weak
from lofi.training.distributed import barrier, is_first
from lofi.training.head import extract_features, train_head
from lofi.training.joint import train_lofi
from lofi.training.loop import OnStep
from lofi.training.methods import (
    command,
    components,
    counts,
    default_method,
    method_config,
    run_data,
    write_run_config,
)
from lofi.training.pretext import train_arrow, train_speed
from lofi.training.pretraining import train_acp, train_acp_plus, train_dual, train_icp
from lofi.weak_study import weak_detect

log = logging.getLogger(__name__)
METHODS = ("random", "acp", "acp+", "c-lofi")
UNTRAINED = ("random", "weights", "published")


def evaluate_stage(
    config: Config, run_dir: str | Path, method: str = "", *, variant: str = ""
) -> dict[str, Any]:
    """Stage `evaluate`: average mAP of a method's detections; <method>/metrics holds the rest.

    Returns {source of the classes: average mAP, …, "protocol", "tious", "videos"}."""
    method = method or default_method(config)
    rows = evaluate_method(config, run_dir, method, variant)
    found = {row["classes"]: round(row["average_map"], 4) for row in rows}
    found |= {key: rows[0]["report"][key] for key in ("protocol", "tious", "videos")}
    path = detections_dir(run_dir, method, variant) / "result.json"
    detected = read_json(path, "the result of the detection") if path.exists() else {}
    return found | {key: detected[key] for key in ("items", "skipped", "missing") if detected}


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
    "head": Stage(train_head, "features", "head"),
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
    elif method in STAGES and method not in ("lofi", "features", "head"):
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

    Class rule "thumos" goes with THUMOS14's protocol (tIoU 0.3 to 0.7), the others with
    ActivityNet's. FileNotFoundError, with the command, where there are no detections.
    """
    protocol = "thumos14" if config.detect.class_rule == "thumos" else "activitynet"
    data = run_data(config, run_dir)
    folder, rows = detections_dir(run_dir, method, variant), []
    for kind in CLASSES:
        if not (folder / f"{kind}.json").is_file():
            continue
        found = _known_classes(folder / f"{kind}.json", data)
        subset = config.data.test_subset
        report = detection_map(data.annotations, found, subset=subset, protocol=protocol).to_json()
        if is_first():
            write_json(Path(run_dir) / method / "metrics" / variant / f"{kind}.json", report)
        name = f"{method} {variant}".strip()
        row = {"method": name, "classes": kind, "seed": config.seed, "report": report}
        rows.append(row | {key: report[key] for key in ("average_map", "map")})
    if not rows:
        more = f" --variant {shlex.quote(variant)}" if variant else ""
        cure = command("detect", config, run_dir, method, more)
        raise FileNotFoundError(f"{folder}: no detections; run: {cure}")
    return rows


def _known_classes(path: Path, data: Datasets):
    """The detection file, or its content without classes that no test video is annotated with.

    A small data set of one's own may have training classes that do not occur in its test videos.
    They have no average precision, and the official protocol refuses detections of them.
    """
    classes = {segment.label for video in data.test for segment in video.segments}
    unknown = set(data.classes) - classes
    if not unknown:
        return path
    found = read_detections(path)
    log.warning(
        "%d classes do not occur in the test videos (%s, …); detections of them are not evaluated",
        len(unknown), min(unknown),
    )  # fmt: skip
    return {key: [d for d in detections if d.label in classes] for key, detections in found.items()}


def run_procedure(
    config: Config, run_dir: str | Path, methods: Sequence[str] = METHODS,
    on_step: OnStep | None = None, device: str = "cpu", variants: Sequence[str] = ("",),
) -> dict[str, Any]:  # fmt: skip
    """Everything for every method and variant of stage 3; writes and returns results.json."""
    began, how = time.perf_counter(), {"on_step": on_step, "device": device}
    for method in methods:
        train_encoder(config, run_dir, method, **how)
        localize(config, run_dir, method, variants=variants, **how)
    source = config.detect.shared_classes
    if source and source not in methods and not is_class_file(source):  # it names the classes
        train_encoder(config, run_dir, source, on_step=on_step, device=device)
        extract_features(config, run_dir, source, device=device)
    seconds = time.perf_counter() - began
    return write_results(config, run_dir, methods, seconds, device, variants)


def compare_seeds(
    config: Config, out: str | Path, seeds: Sequence[int], methods: Sequence[str] = METHODS,
    on_step: OnStep | None = None, device: str = "cpu", variants: Sequence[str] = ("",),
) -> dict[str, Any]:  # fmt: skip
    """`run_procedure` for every seed in <out>/seed-N; results.json in `out` holds all rows.

    A seed makes the toy world, the initial weights and every random draw.
    """
    parts = []
    for seed in seeds:
        own, folder = replace(config, seed=seed), Path(out) / f"seed-{seed}"
        parts.append(run_procedure(own, folder, methods, on_step, device, variants))
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
    device: str = "cpu", variants: Sequence[str] = ("",),
) -> dict[str, Any]:  # fmt: skip
    """Detect with and evaluate the methods of a finished run; writes results.json.

    The "method" of a row is followed by its variant, where that has a name."""
    rows = []
    for method in methods:
        for variant in variants:
            detect_stage(config, run_dir, method, variant=variant, device=device)
            rows += evaluate_method(config, run_dir, method, variant)
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
    each once, "items" the most that a stage was given, "stages" those that left it out."""
    rows: dict[str, dict[str, Any]] = {}
    items = 0
    for path in sorted(run_dir.glob(results)):
        found = read_json(path, "the result of a stage")
        items = max(items, found.get("items", 0))
        for row in found.get("skipped", ()):
            stages = rows.setdefault(row["item"], row | {"stages": []})["stages"]
            stages.append(path.parent.relative_to(run_dir).as_posix())
    return counts(items, [rows[item] for item in sorted(rows)])


def read_results(run_dir: str | Path) -> dict[str, Any]:
    """results.json of a finished run."""
    return read_json(Path(run_dir) / "results.json", "the results of a run (make demo writes them)")
