"""How long a command takes to start, beside what importing PyTorch alone takes in the same run.

    python tests/benchmarks/startup.py [--repeats N] [--json OUT]

Every row is a process of its own, all rows in turns: CPU seconds (user and system, with its
children) and wall seconds, medians and the range.  "beyond" is the CPU time over the row that it
stands on: a bare interpreter, or `import torch`.  Bytecode is written first, as in an installed
package.  `lofi detect` reads a 10-second clip with a tiny model that is trained here (one epoch,
about 20 s).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
BARE, TORCH = "bare interpreter", "import torch"
NOTEBOOK = """
import matplotlib.pyplot as plt, numpy as np, torch
from lofi import data, figures, notebook
from lofi import report as run_report
"""
SMALL = {
    "acp.epochs": 1, "acp.batch": 8, "head_training.epochs": 1, "head.hidden": 16, "head.paths": 4,
    "head.map_hidden": (16, 8), "detect.top_k": 20,
}  # fmt: skip


def cost(command: list[str]) -> tuple[float, float]:
    """CPU and wall seconds of one process; RuntimeError: it fails."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def train(folder: Path) -> Path:
    """The run folder of a tiny model."""
    from lofi import config as configs
    from lofi.data.toyworld import TINY, write_world
    from lofi.experiment import run_procedure

    world = replace(TINY, source_clips=(8, 4), videos=(4, 1))
    write_world(folder / "world", world, seed=0)
    changes = SMALL | {"data.world": str(folder / "world")}
    config = configs.override(configs.preset("tiny"), changes)
    run_procedure(config, folder / "run", ("acp",))
    return folder / "run"


def write_inputs(folder: Path) -> None:
    """A 10-second clip, and a ground truth with detections."""
    from lofi.data.copies import write_video

    noise = np.random.default_rng(0).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    frames = np.stack([np.roll(noise, i // 5, 1).repeat(20, 0).repeat(20, 1) for i in range(250)])
    write_video(folder / "clip.mp4", frames, fps=25.0)
    segment = {"segment": [1.0, 3.0], "label": "run"}
    video = {"subset": "validation", "duration": 10.0, "annotations": [segment]}
    (folder / "truth.json").write_text(json.dumps({"database": {"a": video}}))
    results = {"a": [segment | {"score": 0.5}]}
    (folder / "found.json").write_text(json.dumps({"results": results}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        run = train(folder)
        lofi, python = [sys.executable, "-m", "lofi"], [sys.executable, "-c"]
        clip, out = str(folder / "clip.mp4"), str(folder / "out")
        commands = {  # name -> command, what it stands on, goal in CPU seconds
            BARE: ([*python, "pass"], BARE, None),
            TORCH: ([*python, "import torch"], BARE, None),
            "lofi --help": ([*lofi, "--help"], BARE, 0.15),
            "lofi evaluate, 1 detection": (
                [*lofi, "evaluate", str(folder / "truth.json"), str(folder / "found.json")],
                BARE,
                None,
            ),
            "lofi detect, 10-s clip": (
                [*lofi, "detect", clip, "--model", str(run), "--out", out],
                TORCH,
                1.0,
            ),
            "import cell of a notebook": ([*python, NOTEBOOK], TORCH, 2.0),
        }
        times: dict[str, list[tuple[float, float]]] = {row: [] for row in commands}
        for turn in range(options.repeats + 1):
            for row, (command, *_) in commands.items():
                found = cost(command)
                if turn:  # the first writes bytecode and fills the disk's cache
                    times[row].append(found)
    cpu = {row: [c for c, _ in found] for row, found in times.items()}
    rows: list[dict[str, Any]] = []
    for row, (_, base, goal) in commands.items():
        middle = statistics.median(cpu[row])
        rows.append(
            {
                "name": row,
                "cpu_s": middle,
                "range_s": [min(cpu[row]), max(cpu[row])],
                "wall_s": statistics.median(wall for _, wall in times[row]),
                "beyond_s": middle - statistics.median(cpu[base]),
                "beyond": base,
                "goal_s": goal,
            }
        )
        low, high = rows[-1]["range_s"]
        line = f"{row:28s} CPU {middle:6.2f} s ({low:.2f} to {high:.2f})"
        line += f"  wall {rows[-1]['wall_s']:6.2f}  beyond {base} {rows[-1]['beyond_s']:6.2f}"
        print(line + (f"  goal {goal:g}" if goal else ""))
    if options.json:
        from lofi.files import write_json

        write_json(options.json, rows)


if __name__ == "__main__":
    main()
