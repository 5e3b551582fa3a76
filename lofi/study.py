"""Every table of the paper in small, its rivals beside it: arms over seeds, raw rows, verdicts.

docs/PROTOCOL.md says what is compared, how, and what counts; it was written before any run. An arm
is an encoder (and a head) of one seed, trained in a process of its own. Results are percent.
Layout: <run>/seed-N/{world, main, <arm>} as any run, the same below seed-N/<world> for arms of
another world and, without a world, below seed-N/<encoder>; seed-N/rows/<arm>.json; results.csv,
RESULTS.md; frames.npz, to which the worlds `real` link.
"""

import hashlib
import itertools
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lofi.config import Config, override, preset, to_dict
from lofi.data.real_frames import keep_frames
from lofi.data.tables import read_text, table_rows
from lofi.data.toyworld import FRAMES
from lofi.detection.detector import detect_stage, detections_dir
from lofi.evaluation.bootstrap import video_draws
from lofi.evaluation.paired import paired, verdict
from lofi.experiment import RECALL, at_low_fidelity, evaluate_method, localize, run_stage
from lofi.experiment import train_encoder as train_with_what_it_needs
from lofi.files import read_json, write_csv, write_json, write_text
from lofi.training.methods import method_config, run_data

if TYPE_CHECKING:
    from lofi.figures.tables import Table

log = logging.getLogger(__name__)
FIRST_SEED = 5001


class Arm(NamedTuple):
    """One row of the study: how its encoder is trained, and what is measured."""

    method: str
    # Of preset tiny; full and data are for the encoder alone. Arms with another data.preset (world)
    # or encoder are a family with an ACP of its own, which they start from and take classes from.
    changes: Mapping[str, Any] = {}
    start: str = "ACP"  # arm whose encoder joint training goes on with
    variant: str = ""  # of the head
    trials: int = 1  # heads that differ in their seed, averaged
    low: str = ""  # which row of Table C


BMN = {"detect.rule": "bmn", "detect.score": "start*end*cls*reg", "detect.suppression": "bmn",
       "detect.sigma": 0.4}  # fmt: skip
BACKGROUND = {"acp_plus_background": True, "acp_plus.epochs": 19}
WINDOW = {"full.snippets": 8, "full.pixels": 28, "data.window_stride": 4}
WINDOW |= {"lofi.training.epochs": 16}
POINTS = "hidden=32,max_steps=16"
CHAIN = {
    "ACP": Arm("acp"),
    "untrained": Arm("random"),
    "ACP+": Arm("acp+"),
    "Long C-LoFi": Arm("c-lofi"),
    "ACP+, as long": Arm("acp+", {"acp_plus.epochs": 60}),
    "ACP+ with background": Arm("acp+", BACKGROUND),
    "LoFi from ACP+": Arm("c-lofi", start="ACP+"),
    "LoFi from ACP+ with background": Arm("c-lofi", start="ACP+ with background"),
}
OTHERS = {
    "ICP": Arm("icp"),
    "S-LoFi": Arm("s-lofi"),
    "T-LoFi": Arm("t-lofi"),
    "ST-LoFi": Arm("st-lofi"),
    "Short C-LoFi": Arm("short-c-lofi"),
    "exact": Arm("full", {"lofi.training.epochs": 6}),
    "window": Arm("full", WINDOW),
    "LoFi with class loss": Arm("c-lofi", {"lofi.class_loss": 0.1}),
    "LoFi, half as long": Arm("c-lofi", {"lofi.training.epochs": 12}),
    "LoFi, then exact": Arm("full", {"lofi.training.epochs": 3}, start="LoFi, half as long"),
    "sampled": Arm("sampled", {"lofi.training.epochs": 9}),
    "memory bank": Arm("bank", {"lofi.mode.ratio": 0.125, "lofi.training.epochs": 34}),
    "partial freeze": Arm("partial", {"lofi.training.epochs": 12}),
    "low budget": Arm("low-lofi"),
    "pre-trained, low": Arm("t-lofi", low="pre-trained"),
    "end-to-end, low": Arm("t-lofi", low="end-to-end"),
    "ACP, BMN": Arm("acp", BMN, variant="kind=bmn,best_anchor=true,lr=0.001"),
    "T-LoFi, BMN": Arm("t-lofi", {"head.kind": "bmn", "head.best_anchor": True,
                                  "head_training.lr": 0.001} | BMN),
    "ACP, ActionFormer": Arm("acp", variant=f"kind=actionformer,{POINTS}"),
    "Long C-LoFi, ActionFormer": Arm("c-lofi", variant=f"kind=actionformer,{POINTS}"),
    "ACP, AMNet": Arm("acp", variant=f"kind=amnet,{POINTS}"),
    "Long C-LoFi, AMNet": Arm("c-lofi", variant=f"kind=amnet,{POINTS}"),
    "Arrow": Arm("arrow"),
    "Speed": Arm("speed"),
    "ACP+Arrow": Arm("acp+arrow"),
    "ACP+Speed": Arm("acp+speed"),
    "exact, as many steps": Arm("full", {"lofi.training.epochs": 24}),
    "ACP, ten heads": Arm("acp", trials=10),
    "Long C-LoFi, ten heads": Arm("c-lofi", trials=10),
}  # fmt: skip


def _family(name: str, change: Mapping[str, str], arms: Sequence[str]) -> dict[str, Arm]:
    """Those of `arms` (ACP first) in another world or with another encoder."""
    known = {arm: (CHAIN | OTHERS)[arm] for arm in arms}
    return {
        f"{arm}, {name}": of._replace(changes={**of.changes, **change}, start=f"ACP, {name}")
        for arm, of in known.items()
    }


# The same three encoders where vigour marks actions half and a quarter as much, and where instead
# the motion marks them that classification has to know.
WORLDS, DIALLED = ("half", "quarter", "still"), ("ACP", "ACP+, as long", "Long C-LoFi")
DIAL = {
    name: arm
    for world in WORLDS
    for name, arm in _family(world, {"data.preset": world}, DIALLED).items()
}
# Counted as the layers of R18: tsm-toy is an R8, R14 and R20 have two and three blocks a stage.
ENCODERS = _family("R(2+1)D", {"encoder": "r2plus1d-toy"}, ("ACP", "T-LoFi"))
ENCODERS |= _family("R14", {"encoder": "tsm-toy14"}, ("ACP", "Long C-LoFi"))
ENCODERS |= _family("R20", {"encoder": "tsm-toy20"}, ("ACP", "Long C-LoFi"))
# Backgrounds and surfaces out of real videos; run only where there are some, see `run_study`.
RIVALS = ("ACP", "ACP+", "ACP+, as long", "ACP+ with background")
REAL = _family("real", {"data.preset": "real"}, (*RIVALS, "Long C-LoFi"))
REST = OTHERS | DIAL | ENCODERS | REAL
ARMS = CHAIN | REST

# (arm, the arm that it is said to lead[, measure]); those of the paper first, by its tables.
PAPER_CLAIMS = (
    ("ACP", "ICP"), ("ACP+", "ACP"), ("Long C-LoFi", "ACP"), ("Long C-LoFi", "ACP+"),
    ("S-LoFi", "ACP"), ("T-LoFi", "ACP"), ("ST-LoFi", "ACP"), ("Short C-LoFi", "ACP"),
    ("Long C-LoFi", "S-LoFi"), ("Long C-LoFi", "T-LoFi"), ("Long C-LoFi", "ST-LoFi"),
    ("Long C-LoFi", "Short C-LoFi"), ("ACP", "Arrow"), ("ACP", "Speed"), ("ACP+Arrow", "ACP"),
    ("ACP+Speed", "ACP"), ("Long C-LoFi", "ACP+Arrow"), ("Long C-LoFi", "ACP+Speed"),
    ("T-LoFi, BMN", "ACP, BMN", "AUC"), ("low budget", "ACP"), ("T-LoFi", "low budget"),
    ("end-to-end, low", "pre-trained, low"), ("Long C-LoFi, ten heads", "ACP, ten heads"),
    ("T-LoFi, R(2+1)D", "ACP, R(2+1)D"), ("Long C-LoFi, R14", "ACP, R14"),
    ("Long C-LoFi, R20", "ACP, R20"),
)  # fmt: skip
RIVAL_CLAIMS = (
    ("ACP", "untrained"), ("Long C-LoFi", "ACP+, as long"),
    ("ACP+ with background", "ACP+, as long"), ("Long C-LoFi", "ACP+ with background"),
    ("LoFi from ACP+", "ACP+"), ("LoFi from ACP+", "Long C-LoFi"),
    ("LoFi from ACP+ with background", "ACP+ with background"),
    ("LoFi from ACP+ with background", "Long C-LoFi"),
    ("Long C-LoFi", "ACP", "own"), ("Long C-LoFi", "ACP+", "own"),
)  # fmt: skip
WAY_CLAIMS = (
    ("exact", "Long C-LoFi"), ("exact, as many steps", "Long C-LoFi"),
    ("LoFi, then exact", "Long C-LoFi"), ("sampled", "Long C-LoFi"),
    ("memory bank", "Long C-LoFi"),
    ("partial freeze", "Long C-LoFi"), ("window", "ACP"), ("window", "Long C-LoFi"),
    ("LoFi with class loss", "Long C-LoFi", "own"), ("LoFi with class loss", "Long C-LoFi"),
)  # fmt: skip
PLACE_CLAIMS = (
    ("Long C-LoFi, ActionFormer", "ACP, ActionFormer"), ("Long C-LoFi, AMNet", "ACP, AMNet"),
    *((f"Long C-LoFi, {world}", f"{other}, {world}")
      for world in WORLDS for other in ("ACP", "ACP+, as long")),
    *(("Long C-LoFi, real", f"{other}, real") for other in RIVALS),
)  # fmt: skip
CLAIMS = {
    "Claims of the paper": PAPER_CLAIMS, "Rivals": RIVAL_CLAIMS,
    "Other ways to train the encoder": WAY_CLAIMS, "Other heads, other worlds": PLACE_CLAIMS,
}  # fmt: skip
# Arms in the order of the paper's rows for ActivityNet; "": not built.
TABLES = {
    "1": ("ACP", "ICP", "ACP+", "Long C-LoFi"),
    "2": ("ACP", "S-LoFi", "T-LoFi", "ST-LoFi", "Short C-LoFi", "Long C-LoFi"),
    "5": ("ACP", "T-LoFi", "ACP, R(2+1)D", "T-LoFi, R(2+1)D"),
    "6": ("ACP", "Long C-LoFi", "ACP, R14", "Long C-LoFi, R14", "ACP, R20", "Long C-LoFi, R20"),
    "7": ("ACP", "Arrow", "Speed", "ACP+Arrow", "ACP+Speed", "Long C-LoFi"),
    "A": ("ACP, BMN", "T-LoFi, BMN"),
    "B": ("ACP", "low budget", "T-LoFi", ""),
    "C": ("pre-trained, low", "end-to-end, low"),
    "D": ("ACP, ten heads", "Long C-LoFi, ten heads"),
}
SOURCES = ("shared", "own", "oracle")
MAP = {"0.5": 0, "0.75": 5, "0.95": 9}  # places in the ten thresholds, shared classes
RECALLS = ("AR@1", "AR@5", "AR@10", "AR@100", "AUC")
FAMILY = {"data.preset", "encoder"}
COLUMNS = ("arm", "seed", *SOURCES, *MAP, *RECALLS, "trial_sd", "video_sd", "video_sd_over_acp",
           "cpu_s", "wall_s", "peak_mib", "config", "run", "machine")  # fmt: skip
TEXT = ("arm", "config", "machine")
Found = Mapping[str, Mapping[int, Mapping[str, Any]]]  # arm → seed → row


def base(arm: Arm) -> str:
    """The ACP row of an arm's family."""
    return arm.start if FAMILY & arm.changes.keys() else "ACP"


def needs(name: str) -> set[str]:
    """The arms whose encoders and features an arm begins with."""
    return {base(ARMS[name]), ARMS[name].start} - {name}


def world_of(root: Path, seed: int, arm: Arm) -> Path:
    return root / f"seed-{seed}" / arm.changes.get("data.preset", "") / "world"


def place_of(root: Path, seed: int, arm: Arm) -> Path:
    """Where the runs of an arm's family lie."""
    return world_of(root, seed, arm).parent / arm.changes.get("encoder", "")


def config_of(root: Path, seed: int, arm: Arm) -> Config:
    """The settings that train an arm's encoder."""
    world = {"data.preset": "study", "data.world": str(world_of(root, seed, arm))}
    start = {"lofi.start": ARMS[arm.start].method}
    return override(replace(preset("tiny"), seed=seed), world | start | dict(arm.changes))


def slug(name: str) -> str:
    """The name of an arm as that of a folder."""
    return name.lower().replace(",", "").replace(" ", "-")


def train_encoder(root: Path, seed: int, name: str) -> tuple[Path, str]:
    """The run folder and the method of an arm, its encoder trained, and all that it begins with.

    Arms of plain settings share a folder; another has links to the encoders that it begins with."""
    arm = ARMS[name]
    place, config = place_of(root, seed, arm), config_of(root, seed, arm)
    if {*arm.changes} <= FAMILY and arm.start == base(arm):
        train_with_what_it_needs(config, place / "main", arm.method)
        return place / "main", arm.method
    folder = place / slug(name)
    folder.mkdir(parents=True, exist_ok=True)
    for other in sorted(needs(name)):
        there, method = train_encoder(root, seed, other)
        if not (folder / method).is_symlink():
            (folder / method).symlink_to(os.path.relpath(there / method, folder))
    if arm.method == "acp+":
        run_stage("acp+", config, folder)
    elif arm.method != ARMS[arm.start].method:
        run_stage("lofi", method_config(config, arm.method), folder)
    return folder, arm.method


def measure(root: Path, seed: int, name: str) -> dict[str, Any]:
    """The row of one arm and seed; everything that is missing is trained first."""
    arm, began = ARMS[name], time.perf_counter()
    if name in REAL and not (link := world_of(root, seed, arm) / FRAMES).is_symlink():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(root / FRAMES, link.parent))
    acp_folder, _ = train_encoder(root, seed, base(arm))
    folder, method = train_encoder(root, seed, name)
    kept = {
        k: v
        for k, v in arm.changes.items()
        if k == "data.preset" or not k.startswith(("full.", "data."))
    }
    config = config_of(root, seed, arm._replace(changes=kept))
    run_stage("features", config, folder, "acp")  # its classifier names the shared classes
    row: dict[str, Any] = {"arm": name, "seed": seed, "config": hash_of(root, seed, name)}
    if arm.low:
        rows = at_low_fidelity(config, folder, method, device="cpu")
        rows = [found for found in rows if found["method"].startswith(arm.low)]
    else:
        seeds = ["", *(f"seed={seed + trial}" for trial in range(1, arm.trials))]
        variants = [",".join(filter(None, (arm.variant, text))) for text in seeds]
        localize(config, folder, method, variants=variants)
        rows = []
        for variant in variants:
            detect_stage(config, folder, method, variant=variant)
            rows += evaluate_method(config, folder, method, variant)
        truth, draws = run_data(config, folder).annotations, []
        for place in (detections_dir(folder, method, arm.variant), acp_folder / "acp/detections"):
            if (path := place / "shared.json").is_file():
                found = video_draws(truth, path, subset=config.data.test_subset, resamples=200)
                draws.append(100 * found[:, -1])
        row["video_sd"] = stdev(draws[0])
        if len(draws) > 1 and name != base(arm):
            row["video_sd_over_acp"] = stdev(draws[0] - draws[1])
    for kind in SOURCES:
        row[kind] = fmean(100 * found["average_map"] for found in rows if found["classes"] == kind)
    shared = [found for found in rows if found["classes"] == "shared"]
    row |= {key: fmean(100 * found["map"][i] for found in shared) for key, i in MAP.items()}
    row |= {k: fmean(100 * found[at] for found in shared) for k, at in zip(RECALLS, RECALL)}
    if arm.trials > 1:
        row["trial_sd"] = stdev(100 * found["average_map"] for found in shared)
    used = resource.getrusage(resource.RUSAGE_SELF)
    row |= {"cpu_s": used.ru_utime + used.ru_stime, "peak_mib": used.ru_maxrss / 1024}
    row |= {"wall_s": time.perf_counter() - began, "machine": machine()}
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}


def machine() -> str:
    """What computed a row: processor, cores, PyTorch."""
    path, name = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    lines = path.read_text().splitlines() if path.is_file() else []
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), name)
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}"


def hash_of(root: Path, seed: int, name: str) -> str:
    """Of everything that an arm says and of all settings, but not of the place of the world."""
    config = to_dict(config_of(root, seed, ARMS[name]))
    config["data"].pop("world")
    settings = json.dumps([name, ARMS[name], config], sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()[:12]


def run_study(
    root: Path, seeds: Sequence[int], jobs: int = 1, only: Sequence[str] = (),
    frames: Path | None = None,
) -> None:  # fmt: skip
    """All arms of all seeds (`only`: these arms and what they need), `jobs` of them at a time.

    The chain has all seeds before the other arms begin; finished arms are read. `frames`: folder of
    videos, from which <root>/frames.npz is made for the arms `REAL`, which need it.
    ValueError for an unknown arm; RuntimeError, with the log, for one that failed.
    """
    if unknown := [name for name in only if name not in ARMS]:
        raise ValueError(f"unknown arm {unknown[0]!r}; known: {', '.join(ARMS)}")
    kept = root / FRAMES
    if frames is not None:
        print(keep_frames(frames, kept), file=sys.stderr, flush=True)
    wanted = {*(only or (ARMS if kept.is_file() else ARMS.keys() - REAL.keys()))}
    while more := {need for name in wanted for need in needs(name)} - wanted:
        wanted |= more
    if (named := [name for name in only if name in REAL]) and not kept.is_file():
        raise ValueError(f"arm {named[0]!r} needs real videos; give a folder of some: --frames")
    order = [(seed, name) for part in (CHAIN, REST) for seed in seeds for name in part]
    order = [(seed, name) for seed, name in order if name in wanted]
    missing = [(seed, name) for seed, name in order if not _finished(root, seed, name)]
    took, running = list[float](), {}

    def one(seed: int, name: str) -> tuple[str, float]:
        for need in needs(name):  # stands before it in the order, so it runs or is done
            if (seed, need) in running:
                running[seed, need].result()
        began, path = time.perf_counter(), root / f"seed-{seed}" / "rows" / f"{slug(name)}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "lofi.study", str(root), str(seed), name]
        with path.open("w") as file:
            env = {"OMP_NUM_THREADS": "1"} | os.environ
            code = subprocess.run(words, stdout=file, stderr=file, env=env).returncode
        if code:
            last = path.read_text().strip().splitlines()[-1:]
            raise RuntimeError(f"arm {name}, seed {seed} failed: {''.join(last)}; see {path}")
        return f"seed {seed}  {name}", time.perf_counter() - began

    with ThreadPoolExecutor(jobs) as pool:
        for seed, name in missing:
            running[seed, name] = pool.submit(one, seed, name)
        try:
            for done in as_completed(running.values()):
                said, seconds = done.result()
                took.append(seconds)
                left = timedelta(seconds=round(fmean(took) * (len(missing) - len(took)) / jobs))
                count = f"{len(order) - len(missing) + len(took)}/{len(order)}"
                print(f"{count}  {said}  {seconds:.0f} s  left {left}", file=sys.stderr, flush=True)
                publish(root)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    publish(root)


def _finished(root: Path, seed: int, name: str) -> bool:
    path = root / f"seed-{seed}" / "rows" / f"{slug(name)}.json"
    return path.is_file() and read_json(path, "a row")["config"] == hash_of(root, seed, name)


def publish(root: Path) -> None:
    """Write <root>/results.csv of all rows, and RESULTS.md made of it."""
    rows = [read_json(path, "a row") for path in sorted(root.glob("seed-*/rows/[!.]*.json"))]
    if not rows:
        raise FileNotFoundError(f"{root}: no rows of the study; run: lofi tables --study --run …")
    rows.sort(key=lambda row: ([*ARMS].index(row["arm"]), row["seed"], row.get("run", 1)))
    lines = [[row.get(column, "") for column in COLUMNS] for row in rows]
    write_csv(root / "results.csv", [COLUMNS, *lines])
    write_text(root / "RESULTS.md", document(read_rows(root / "results.csv")))


def read_rows(path: str | Path) -> Found:
    """Arm → seed → row of a results.csv, of a spreadsheet too; empty cells are left out.

    What was trained again is the arm "…, again"; `run` numbers the ACP encoder that a row is from.
    ValueError: a missing column or number, or an arm and seed that are there twice.
    """
    path, names = Path(path), {column.lower(): column for column in COLUMNS}
    needed = ("seed", *SOURCES, "auc")
    found: dict[str, dict[int, dict[str, Any]]] = {}
    rows = table_rows(path, read_text(path, "results of a study"), ("arm", *needed))
    for row in sorted(rows, key=lambda row: row.get("run") or "1"):
        numeric = [key for key in names if key in needed or row.get(key)]
        values = {names[key]: row.number(key) for key in numeric if names[key] not in TEXT}
        name, seed = row["arm"], int(values["seed"])
        if (first := found.get(name, {}).get(seed)) is not None:
            name = f"{name}, again"
            if first.get("run") == values.get("run") or seed in found.get(name, {}):
                raise ValueError(f"{row.where}: {row['arm']}, seed {seed} is there twice; drop one")
        text = {key: row.get(key, "") for key in TEXT}
        found.setdefault(name, {})[seed] = text | values
    return found


def leads(found: Found, arm: str, other: str, key: str = "shared") -> dict[int, float]:
    """How far an arm is above another one on every seed that both have, in points, by seed.

    Of arms that were trained again those of one run are compared: they begin with the same ACP."""
    led = {}
    for seed in sorted(found.get(arm, {}).keys() & found.get(other, {})):
        mine, theirs = (
            [found[name][seed] for name in (of, f"{of}, again") if seed in found.get(name, {})]
            for of in (arm, other)
        )
        pairs = ((a, b) for a in mine for b in theirs if a.get("run") == b.get("run"))
        if pair := next(pairs, None):
            led[seed] = pair[0][key] - pair[1][key]
    return led


def lead(found: Found, arm: str, other: str, key: str = "shared") -> list[float]:
    """The values of `leads`, in the order of the seeds."""
    return [*leads(found, arm, other, key).values()]


def shrinks(found: Found, world: str, other: str) -> list[float]:
    """By how much LoFi's lead over `other` is smaller in a world than in `study`, a seed each."""
    there = leads(found, "Long C-LoFi", other)
    here = leads(found, f"Long C-LoFi, {world}", f"{other}, {world}")
    return [there[seed] - here[seed] for seed in sorted(there.keys() & here)]


def _cell(found: Found, arm: str, key: str) -> str:
    values = [row[key] for row in found.get(arm, {}).values() if row.get(key, "") != ""]
    if not values:
        return "–"
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _lead_cells(differences: Sequence[float]) -> tuple[str, ...]:
    """Difference with its interval, seeds above, smallest difference that shows, and verdict."""
    if not differences:
        return ("–", "–", "–", "not run")
    found, known = paired(differences), len(differences) > 1
    text = f"{found.mean:+.1f}" + (f" [{found.low:+.1f}, {found.high:+.1f}]" if known else "")
    shows = f"{3.84 * found.sd / found.n**0.5:.1f}" if known else "–"
    return text, f"{found.above} of {found.n}", shows, verdict(differences)


def tables(found: Found) -> "list[Table]":
    """Claims with verdicts, the paper's tables with the paper's numbers, and all arms."""
    from lofi.figures.tables import Table, paper_numbers  # matplotlib

    made = []
    head = ("claim", "measure", "difference [95 %]", "above", "shows from", "verdict")
    for title, claims in CLAIMS.items():
        rows = []
        for arm, other, *key in claims:
            measure = {"AUC": "AUC", "own": "own classes"}.get("".join(key), "shared classes")
            cells = _lead_cells(lead(found, arm, other, *key))
            rows.append((f"{arm} over {other}", measure, *cells))
        made.append(Table(head, tuple(rows), title))
    rows = []
    for world, other in itertools.product(WORLDS, ("ACP", "ACP+, as long")):
        cells = _lead_cells(shrinks(found, world, other))
        rows.append((f"smaller lead over {other} in {world}", "shared classes", *cells))
    made.append(
        Table(head, tuple(rows), "What decides it: LoFi's lead in `study`, minus elsewhere")
    )
    for name, arms in TABLES.items():
        rows, before = [], ""
        for paper, arm in zip(paper_numbers(name, "ActivityNet-1.3"), arms):
            metrics = [key if key != "average" else "shared" for key in paper.printed]
            before = arm if paper.method in ("ACP", "pre-trained") else before
            n, change = len(found.get(arm, {})), ("", "", "", "")
            if arm != before:
                change = _lead_cells(lead(found, arm, before, metrics[-1]))
            ours = [_cell(found, arm, key) for key in metrics]
            row = (paper.method, paper.setting, *paper.printed.values(), *ours, str(n))
            rows.append((*row, change[0], change[3] if arm else "not built"))
        names = [f"{whose} {key}" for whose in ("paper", "ours") for key in paper.printed]
        header = ("method", "setting of the paper", *names, "n", "over its ACP row", "verdict")
        made.append(Table(header, tuple(rows), f"{paper.source} of the paper, and ours"))
    rows = []
    for arm in (arm for arm in ARMS if arm in found):
        acp = base(ARMS[arm])
        change = _lead_cells(lead(found, arm, acp))[:2] if arm != acp else ("", "")
        keys = (*SOURCES, "AUC", "video_sd", "video_sd_over_acp", "cpu_s", "peak_mib")
        cells = [_cell(found, arm, key) for key in keys]
        rows.append((arm, str(len(found[arm])), *cells[:3], *change, *cells[3:]))
    header = ("arm", "n", "shared", "own", "oracle", "over ACP", "above", "AUC", "SD over videos",
              "of the lead over ACP", "CPU s", "peak MiB")  # fmt: skip
    return [*made, Table(header, tuple(rows), "All arms")]


def document(found: Found) -> str:
    """RESULTS.md: generated, never typed."""
    seeds = sorted({seed for rows in found.values() for seed in rows})
    hours = sum(row["cpu_s"] for rows in found.values() for row in rows.values()) / 3600
    claims = sum(map(len, CLAIMS.values())) + 2 * len(WORLDS)
    text = f"""# Results
Made by `lofi tables --study` from `results.csv` (a line an arm and seed), after `PROTOCOL.md`; not
typed. World `study` (`tiny` with 160 validation videos a seed), seeds {seeds[0]} to {seeds[-1]};
{hours:.1f} CPU hours.

Average mAP (0.5:0.05:0.95) in percent with shared classes, unless a column says otherwise; mean ±
SD over n seeds, each with a world, initial weights and draws of its own. A difference is paired by
seed, with the 95 % interval of its mean; *above*: seeds on which it is positive; *shows from*: what
n seeds show at 3 standard errors with a chance of 80 %. *Reproduced*, *contradicted*: at least 3
standard errors above, below zero. {claims} comparisons. *Paper*: as printed, ActivityNet-1.3;
compare orders, not levels. *CPU s*: what the arm took beyond the arms before it. *ACP* of an arm in
another world, or with another encoder, is the one there. Ours of TSM-R18, -R34, -R50: `tsm-toy`
with 8, 14, 20 layers; of R(2+1)D-R18: `r2plus1d-toy`.
"""
    made = [f"\n## {table.caption}\n{table.markdown()}\n" for table in tables(found)]
    return text + "".join(made)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    _root, _seed, _name = Path(sys.argv[1]).resolve(), int(sys.argv[2]), sys.argv[3]
    write_json(
        _root / f"seed-{_seed}" / "rows" / f"{slug(_name)}.json", measure(_root, _seed, _name)
    )
