"""Weak supervision judged: detections of the two branches, rows side by side, gates with verdicts.

A row is a trained branch, a setting of it, or a rule of inference. Gates are claims about rows,
judged over seeds that chose nothing. results.json: {"rows": [{"seed", "row", "recall", …}],
"gates": [{"gate", "differences", "verdict"}], "protocol", …}. K classes, T steps.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from lofi.config import Config
from lofi.data import Video
from lofi.data.datasets import Datasets
from lofi.detection.results import write_detections
from lofi.detection.runs import run_detections
from lofi.evaluation.detection import DetectionResult, detection_map
from lofi.evaluation.paired import verdict
from lofi.files import write_json
from lofi.training import weak
from lofi.training.distributed import is_first
from lofi.training.methods import run_data
from lofi.training.weak import Pair

if TYPE_CHECKING:
    from lofi.figures.tables import Table

log = logging.getLogger(__name__)
LISTS = {20: "THUMOS14", 100: "ActivityNet-1.2", 200: "ActivityNet-1.3"}  # by number of classes
PERCENT = ("recall", "precision", "share", "auc", "oracle", "own")


def evaluated(config: Config, data: Datasets, found: Mapping[str, list]) -> DetectionResult:
    """mAP at THUMOS14's tIoU 0.1:0.1:0.7, of ActivityNet at its own thresholds."""
    protocol = config.detect.protocol
    tious = np.arange(1, 8) / 10 if protocol == "thumos14" or config.data.preset else None
    return detection_map(data.annotations, found, tious, config.data.test_subset, protocol)


def summary(report: DetectionResult) -> dict[str, Any]:
    """Average mAP, those over 0.1–0.5, 0.3–0.7 and 0.1–0.7 where these were evaluated, and the
    protocol with its list of classes."""
    result: dict[str, Any] = {"average_map": round(report.average_map, 4)}
    if len(report.map) == 7:
        for low, high in ((1, 5), (3, 7), (1, 7)):
            mean = sum(report.map[low - 1 : high]) / (high - low + 1)
            result[f"map_0.{low}_0.{high}"] = round(mean, 4)
    count = len(report.classes)
    name = f" ({LISTS[count]})" if count in LISTS else ""
    result |= {"map": [round(value, 4) for value in report.map], "classes": count}
    return result | {"protocol": f"{report.protocol_string}; {count} classes{name}"}


def weak_detect(
    config: Config, run_dir: str | Path, *, variant: str = "", device: str = "cpu"
) -> dict[str, Any]:
    """Detections of the test videos by the CBP branch of round `weak.round`, and their mAP.

    With `weak.ensemble` the curves are the mean of both branches.
    """
    config = weak.varied(config, variant)
    data, setting = run_data(config, run_dir), config.weak
    pairs, _ = weak.paired(config, run_dir, data)
    kinds = ["f", "b"] if setting.ensemble else ["f"]
    found = {}
    for id, curves in test_curves(config, run_dir, data, pairs, kinds, variant, device).items():
        grid = pairs[id].classification.grid
        found[id] = run_detections(curves, grid, data.classes, setting, config.detect)
    report = evaluated(config, data, found)
    result = summary(report) | {"without_features": len(data.test) - len(found)}
    if is_first():
        folder = weak.stage_dir(run_dir, "f", setting.round, variant)
        about = {"method": "weak f", "seed": config.seed}
        write_detections(folder / "detections.json", found, asdict(setting), source=about)
        write_json(folder / "metrics.json", result | {"report": report.to_json()})
    return result


def test_curves(
    config: Config, run_dir, data: Datasets, pairs: Mapping[str, Pair], branches: Sequence[str],
    variant: str = "", device: str = "cpu",
) -> dict[str, np.ndarray]:  # fmt: skip
    """(K, T) probabilities of every test video: the mean of the branches "warm-up", "f", "b" or
    "vanilla", the frozen encoders as they come."""
    loaded = []
    for name in branches:
        number = 0 if name == "warm-up" else config.weak.round
        if name == "vanilla":
            own = replace(config, weak=replace(config.weak, prompts=0, layers=0))
            branch = weak.new_vlp(own, run_dir, pairs, data.classes)
        elif name == "b":
            branch = weak.load_vlp(config, run_dir, number, pairs, data.classes, variant)
        else:
            branch = weak.load_cbp(config, run_dir, name, number, pairs, data.classes, variant)
        loaded.append(branch.to(device))
    found = {}
    for id in (video.id for video in data.test if video.id in pairs):
        parts = [weak.curves(branch, pairs[id], config.weak.steps, device) for branch in loaded]
        found[id] = torch.stack(parts).mean(0).numpy()
    return found


def compare_weak(
    config: Config, out: str | Path, seeds: Sequence[int], **options: Any
) -> dict[str, Any]:  # fmt: skip
    """All rows for every seed in <out>/seed-N, and the gates; writes <out>/results.json.

    A seed makes the toy world, the encoders and every random draw; with features of others the
    draws alone. `options` as of `one_seed`.
    """
    began, parts = time.perf_counter(), []
    for seed in seeds:
        own = replace(config, seed=seed)
        parts.append(one_seed(own, Path(out) / f"seed-{seed}", **options))
    rows = [row for part in parts for row in part["rows"]]
    labels = [part["labels"] for part in parts]
    results = {"rows": rows, "labels": labels, "gates": gates(rows, labels)}
    results |= {"seeds": list(seeds), "protocol": parts[0]["protocol"], "preset": config.preset}
    results |= {"seconds": round(time.perf_counter() - began, 1)}
    if is_first():
        write_json(Path(out) / "results.json", results)
    return results


class Row(NamedTuple):
    """A line of the comparison: which branch, trained how, and how it is used."""

    name: str
    branches: tuple[str, ...]  # whose curves are averaged
    variant: str = ""  # settings of the B and F step
    use: Mapping[str, Any] = {}  # settings of inference, and `round`


LONGER = "distillation=0,contrast=0,init=continue"  # no pseudo-labels: video labels alone
ROWS = (
    Row("CBP warm-up", ("warm-up",)),
    Row("CBP, trained as long", ("f",), LONGER),
    Row("VLP as it comes, softmax", ("vanilla",), "prob=softmax"),
    Row("VLP as it comes", ("vanilla",)),
    Row("VLP, video labels only", ("b",), LONGER),
    Row("VLP + B", ("b",)),
    Row("CBP + B + F", ("f",)),
    Row("two rounds", ("f",), "", {"round": 2}),
    Row("both branches", ("f", "b")),
    Row("trap: foreground alone", ("f",), "zeros=none"),
    Row("background from VLP", ("f",), "zeros=vlp"),
    Row("without contrast", ("f",), "contrast=0"),
    Row("thresholds 0.6 / 0.4", ("f",), "delta_high=0.6,delta_low=0.4"),
    Row("thresholds 0.8 / 0.2", ("f",), "delta_high=0.8,delta_low=0.2"),
    Row("thresholds 0.9 / 0.1", ("f",), "delta_high=0.9,delta_low=0.1"),
    Row("no prompts", ("f",), "prompts=0"),
    Row("2 x 16 prompts", ("f",), "prompts=16"),
    Row("no temporal layer", ("f",), "layers=0"),
    Row("1 temporal layer", ("f",), "layers=1"),
    Row("VLP by softmax", ("f",), "prob=softmax"),
    Row("VLP by softmax, background", ("f",), "prob=softmax_bg"),
    Row("one threshold, largest inside", ("f",), "", {"thresholds": 1, "score": "max"}),
)


def actions(video: Video, pair: Pair, label: str) -> np.ndarray:
    """(T,) bool: steps whose middle lies in an action of a class."""
    grid = pair.classification.grid
    middle = grid.start_s + (np.arange(grid.steps) + 0.5) * grid.step_s
    spans = [(s.start_s, s.end_s) for s in video.segments if s.label == label]
    return np.any([(middle >= start) & (middle < end) for start, end in spans], axis=0)


def true_curves(
    videos: Iterable[Video], pairs: Mapping[str, Pair], classes: Sequence[str],
    curves: Mapping[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The curves of the classes that are there, each stretched to [0, 1], and the truth; (N,)."""
    values, truth = [], []
    for video in (video for video in videos if video.id in curves):
        for label in sorted({s.label for s in video.segments}):
            curve = curves[video.id][classes.index(label)]
            values.append((curve - curve.min()) / max(np.ptp(curve), 1e-6))
            truth.append(actions(video, pairs[video.id], label))
    return np.concatenate(values), np.concatenate(truth)


def frame_scores(values: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Recall, precision and share of the steps above 0.5, and the area under the ROC curve."""
    fore, positive = values > 0.5, int(truth.sum())
    below = np.searchsorted(np.sort(values), values, "left")
    upto = np.searchsorted(np.sort(values), values, "right")
    ranks = (below + upto + 1) / 2  # equal values share their mean rank
    area = ranks[truth].sum() - positive * (positive + 1) / 2
    return {
        "recall": float(fore[truth].mean()),
        "precision": float(truth[fore].mean()) if fore.any() else 0.0,
        "share": float(fore.mean()),
        "auc": float(area / (positive * (len(truth) - positive))),
        "base": float(truth.mean()),
    }


def one_seed(config: Config, run_dir: str | Path, **options: Any) -> dict[str, Any]:
    """All rows of one seed; encoders, features and trained steps that exist are read.

    `options`: resume, device, on_step of the stages. Returns {"rows", "labels", "protocol"}.
    """
    from lofi.experiment import run_stage

    if not config.data.features.folder:
        stages = [] if config.weak.features == "weights" else [config.weak.features]
        for stage in [*stages, *([] if config.weak.clip else ["icp", "dual"])]:
            run_stage(stage, config, run_dir, **options)
        for method in (config.weak.features, "dual"):
            run_stage("features", config, run_dir, method, **options)
    run_stage("weak-warm-up", config, run_dir, **options)
    data, device = run_data(config, run_dir), options.get("device", "cpu")
    pairs, _ = weak.paired(config, run_dir, data)
    rows, protocol = [], ""
    for row in ROWS:
        rounds = row.use.get("round", 1) if row.branches != ("vanilla",) else 0
        for number in range(1, rounds + 1):
            for stage in {"b": ("b",), "f": ("b", "f")}.get(row.branches[0], ()):
                own = replace(config, weak=replace(config.weak, round=number))
                own = replace(own, keep_every=KEPT) if row.name == "CBP + B + F" else own
                run_stage(f"weak-{stage}", own, run_dir, variant=row.variant, **options)
        own = weak.varied(config, row.variant)
        own = replace(own, weak=replace(own.weak, **row.use))
        curves = test_curves(own, run_dir, data, pairs, row.branches, row.variant, device)
        found, report = judged(own, data, pairs, curves)
        protocol = protocol or summary(report)["protocol"]
        rows.append({"seed": config.seed, "row": row.name} | found)
    rows.append({"seed": config.seed, "row": SELECTED} | selected(config, run_dir, data, pairs))
    labels = label_quality(config, run_dir, data, pairs, device)
    return {"rows": rows, "labels": {"seed": config.seed} | labels, "protocol": protocol}


KEPT = 5  # epochs between weights of the F step that `selected` looks at
SELECTED = "(best epoch by test mAP)"  # what this literature reports; shown to be compared with


def judged(config: Config, data: Datasets, pairs, curves) -> tuple[dict, DetectionResult]:
    """Frame scores of the true classes, and mAP with true ("oracle") and own classes."""
    found = frame_scores(*true_curves(data.test, pairs, data.classes, curves))
    for kind in ("oracle", "own"):
        detections = {}
        for id, curve in curves.items():
            kept = pairs[id].present.nonzero()[:, 0].tolist() if kind == "oracle" else ()
            how = pairs[id].classification.grid, data.classes, config.weak, config.detect
            detections[id] = run_detections(curve, *how, kept)
        report = evaluated(config, data, detections)
        found[kind] = report.average_map
    return found, report


def selected(config: Config, run_dir, data: Datasets, pairs) -> dict[str, float]:
    """The epoch of the F step with the best own-class mAP on the *test* videos."""
    cbp, found = weak.load_cbp(config, run_dir, "f", 1, pairs, data.classes), []
    for path in sorted((weak.stage_dir(run_dir, "f") / "kept").glob("epoch-*.pt")):
        cbp.load_state_dict(torch.load(path, weights_only=True)["branch"])
        ids = [video.id for video in data.test if video.id in pairs]
        curves = {id: weak.curves(cbp, pairs[id], config.weak.steps).numpy() for id in ids}
        found.append(judged(config, data, pairs, curves)[0])
    return max(found, key=lambda scores: scores["own"])


def label_quality(config: Config, run_dir, data: Datasets, pairs, device: str) -> dict[str, float]:
    """Share and purity of the pseudo-labels on whole training videos, own classes only."""
    train, found = replace(data, test=data.train), []
    for branch in ("warm-up", "b"):
        curves = test_curves(config, run_dir, train, pairs, [branch], device=device)
        found.append(true_curves(data.train, pairs, data.classes, curves))
    (background, truth), (foreground, _) = found
    zeros, ones = background < config.weak.delta_low, foreground > config.weak.delta_high
    return {
        "base": float(truth.mean()),
        "background_share": float(zeros.mean()),
        "background_purity": float((~truth)[zeros].mean()),
        "foreground_share": float(ones.mean()),
        "foreground_purity": float(truth[ones].mean()),
    }


def gates(rows: Sequence[Mapping], labels: Sequence[Mapping]) -> list[dict[str, Any]]:
    """The claims, each with its paired differences in percent, seed by seed, and the verdict."""
    at = {(row["row"], row["seed"]): row for row in rows}
    seeds = [label["seed"] for label in labels]

    def lead(key: str, first: str, second: str) -> list[float]:
        return [at[first, seed][key] - at[second, seed][key] for seed in seeds]

    vlp, cbp, longer = "VLP as it comes", "CBP warm-up", "CBP, trained as long"
    taught, trap = "CBP + B + F", "trap: foreground alone"
    zeros = [label["background_purity"] - (1 - label["base"]) - 0.1 for label in labels]
    ones = [label["foreground_purity"] - label["base"] - 0.1 for label in labels]
    claims = {
        "recall: VLP over CBP after warm-up": lead("recall", vlp, cbp),
        "precision: CBP after warm-up over VLP": lead("precision", cbp, vlp),
        "purity of B's background over its base rate + 10": zeros,
        "purity of F's foreground over its base rate + 10": ones,
        "mAP, oracle class: B + F over CBP trained as long": lead("oracle", taught, longer),
        "recall: B + F over CBP trained as long": lead("recall", taught, longer),
        "mAP, oracle class: foreground alone below B + F": lead("oracle", taught, trap),
        "mAP, oracle class: foreground alone below CBP trained as long":
            lead("oracle", longer, trap),
    }  # fmt: skip
    found = []
    for name, differences in claims.items():
        percent = [round(100 * value, 2) for value in differences]
        found.append({"gate": name, "differences": percent, "verdict": verdict(differences)})
    return found


def tables(results: Mapping[str, Any]) -> "list[Table]":
    """Rows, means ± SD over seeds in percent; pseudo-labels; gates with verdicts."""
    from lofi.figures.tables import Table  # matplotlib, which training does not need

    def cell(rows: Sequence[Mapping], key: str) -> str:
        values = [100 * row[key] for row in rows]
        return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")

    names = list(dict.fromkeys(row["row"] for row in results["rows"]))
    rows = {name: [row for row in results["rows"] if row["row"] == name] for name in names}
    header = ("branch", "recall", "precision", "called fore", "AUC", "mAP oracle", "mAP own")
    body = tuple((name, *(cell(rows[name], key) for key in PERCENT)) for name in names)
    notes = f"share of steps in actions {cell(rows[names[0]], 'base')}", results["protocol"]
    seeds = f"percent, seeds {', '.join(map(str, results['seeds']))}"
    quality = [(kind, *(cell(results["labels"], f"{kind}_{key}") for key in ("share", "purity")))
               for kind in ("background", "foreground")]  # fmt: skip
    judged = []
    for gate in results["gates"]:
        each = " ".join(f"{d:+.1f}" for d in gate["differences"])
        judged.append((gate["gate"], f"{fmean(gate['differences']):+.1f}", each, gate["verdict"]))
    return [
        Table(header, body, f"Steps (each curve stretched, above 0.5) and mAP, {seeds}", notes),
        Table(("pseudo-labels", "share", "purity"), tuple(quality), f"On training videos, {seeds}"),
        Table(("gate", "mean", "each seed", "verdict"), tuple(judged),
              "Reproduced, contradicted: mean at least 3 standard errors above, below 0"),
    ]  # fmt: skip
