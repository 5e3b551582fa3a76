"""The whole procedure for several encoders side by side, and the results it leaves.

results.json: {"rows": [{"method", "classes", "average_map", "map", …}], "seconds", "protocol", …}
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lofi.config import Config
from lofi.data.datasets import Datasets
from lofi.detection.classes import is_class_file
from lofi.detection.detector import CLASSES, detect_stage
from lofi.detection.results import read_detections
from lofi.evaluation import detection_map
from lofi.files import read_json, write_json
from lofi.training.distributed import barrier, is_first
from lofi.training.full_fidelity import extract_features, train_head
from lofi.training.joint import train_lofi
from lofi.training.loop import OnStep
from lofi.training.models import components, method_config, run_data, write_run_config
from lofi.training.pretext import train_arrow, train_speed
from lofi.training.pretraining import train_acp, train_acp_plus, train_icp

log = logging.getLogger(__name__)
METHODS = ("random", "acp", "acp+", "c-lofi")


def train_encoder(config: Config, run_dir: str | Path, method: str, **options: Any) -> None:
    """Stages 1 and 2 of one method, and what it starts from; finished stages return at once."""
    parts = components(method)
    if len(parts) > 1:  # "acp+arrow": two encoders side by side
        for part in parts:
            train_encoder(config, run_dir, part, **options)
    elif method in STAGE_ONE:
        STAGE_ONE[method](config, run_dir, **options)
    elif method == "acp+":
        train_encoder(config, run_dir, config.acp_plus_start, **options)
        train_acp_plus(config, run_dir, **options)
    elif method not in UNTRAINED:
        config = method_config(config, method)
        train_encoder(config, run_dir, config.lofi.start, **options)
        train_lofi(config, run_dir, **options)


STAGE_ONE = {"acp": train_acp, "icp": train_icp, "arrow": train_arrow, "speed": train_speed}
UNTRAINED = ("random", "weights")


def localize(
    config: Config,
    run_dir: str | Path,
    method: str,
    *,
    resume: bool = True,
    on_step: OnStep | None = None,
    device: str = "cpu",
) -> None:
    """Features and stage 3 of one method whose encoder is trained."""
    extract_features(config, run_dir, method, resume=resume, device=device)
    train_head(config, run_dir, method, resume=resume, on_step=on_step, device=device)
    write_run_config(config, run_dir)


def evaluate_method(config: Config, run_dir: str | Path, method: str) -> list[dict[str, Any]]:
    """Detect and evaluate one method; one row for each source of classes, and metrics files.

    Class rule "thumos" goes with THUMOS14's protocol (tIoU 0.3 to 0.7), the others with
    ActivityNet's.
    """
    protocol = "thumos14" if config.detect.class_rule == "thumos" else "activitynet"
    data = run_data(config, run_dir)
    rows = []
    for kind, path in detect_stage(config, run_dir, method, data).items():
        found = _known_classes(path, data)
        subset = config.data.test_subset
        result = detection_map(data.annotations, found, subset=subset, protocol=protocol)
        report = result.to_json()
        if is_first():
            write_json(Path(run_dir) / method / "metrics" / f"{kind}.json", report)
        rows.append(
            {
                "method": method,
                "classes": kind,
                "average_map": report["average_map"],
                "map": report["map"],
                "seed": config.seed,
            }
        )
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
    config: Config,
    run_dir: str | Path,
    methods: Sequence[str] = METHODS,
    on_step: OnStep | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Everything for every method; writes and returns results.json."""
    began = time.perf_counter()
    for method in methods:
        train_encoder(config, run_dir, method, on_step=on_step, device=device)
        localize(config, run_dir, method, on_step=on_step, device=device)
    source = config.detect.shared_classes
    if source not in methods and not is_class_file(source):  # its features name the classes
        train_encoder(config, run_dir, source, on_step=on_step, device=device)
        extract_features(config, run_dir, source, device=device)
    return write_results(config, run_dir, methods, time.perf_counter() - began)


def compare_seeds(
    config: Config,
    out: str | Path,
    seeds: Sequence[int],
    methods: Sequence[str] = METHODS,
    on_step: OnStep | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """`run_procedure` for every seed in <out>/seed-N; results.json in `out` holds all rows.

    A seed makes the toy world, the initial weights and every random draw.
    """
    parts = [
        run_procedure(
            replace(config, seed=seed), Path(out) / f"seed-{seed}", methods, on_step, device
        )
        for seed in seeds
    ]
    results = parts[0] | {
        "rows": [row for part in parts for row in part["rows"]],
        "seconds": sum(part["seconds"] for part in parts),
        "seeds": list(seeds),
    }
    if is_first():
        write_json(Path(out) / "results.json", results)
    return results


def write_results(
    config: Config, run_dir: str | Path, methods: Sequence[str], seconds: float
) -> dict[str, Any]:
    """Evaluate the methods of a finished run and write results.json."""
    rows = []
    for method in methods:
        rows += evaluate_method(config, run_dir, method)
    barrier()
    first = read_json(Path(run_dir) / methods[0] / "metrics" / "shared.json", "metrics")
    results = {
        "rows": rows,
        "seconds": round(seconds, 1),
        "preset": config.preset,
        "seeds": [config.seed],
        "protocol": first["protocol"],
        "subset": first["subset"],
        "tious": first["tious"],
        "videos": first["videos"],
        "instances": first["instances"],
        "classes": list(CLASSES),
    }
    if is_first():
        write_json(Path(run_dir) / "results.json", results)
    return results


def read_results(run_dir: str | Path) -> dict[str, Any]:
    """results.json of a finished run."""
    return read_json(Path(run_dir) / "results.json", "the results of a run (make demo writes them)")
