"""Long videos with many short events: a head of points against a map of sliding windows.

    python tests/benchmarks/own_heads.py [--seed 0] [--keep FOLDER]

Films 12 videos of about two minutes, trains the encoder of `lofi fit` once (5 epochs, 32 pixels),
and prints held-out class-aware mAP with 95 % intervals for the map of sliding windows and for the
points that `lofi fit` chooses there. About 4 CPU minutes a seed.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "notebooks"))

import lectures

from lofi import config as configs
from lofi import fitting
from lofi.files import write_json
from lofi.fitting_report import span


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = given.keep or Path(tempfile.mkdtemp())
    long = {"seconds": (90.0, 130.0), "fps": 8.0, "events": 200, "lengths": (0.9, 2.4)}
    events = lectures.film_yard(folder, 12, given.seed + 50, **long)
    data = fitting.prepared(events, folder / "videos")
    subsets, _ = fitting.split(data)
    train, test = (
        [v for v in data.videos if subsets[v.id] == s] for s in ("training", "validation")
    )
    write_json(folder / "run" / "annotations.json", fitting.as_json(data.videos, subsets))
    where = {"data.annotations": str(folder / "run" / "annotations.json")}
    where |= {"data.videos": str(folder / "videos")}
    small = {"acp.epochs": 5, "full.pixels": 32, "encoder": "motion-toy", "seed": given.seed}
    progress = fitting.Progress(1.0, lambda line: None)
    seconds = dict.fromkeys(("encoder", "features", "head"), 1.0)
    for kind in ("gtad", "actionformer"):
        fixed = small | ({"head.kind": kind} if kind == "gtad" else {})
        base = configs.preset("own")
        config = fitting.planned(data, train, 0, 30.0, "cpu", fixed, base, where).config
        place, shared = folder / "run", kind != "gtad"
        if shared:
            place, training = folder / kind, config.head_training
            config = fitting.branch(config, folder / "run", place, data, subsets, shared)
            config = replace(config, head_training=training)
        began = time.process_time()
        found = fitting.trained(config, place, seconds, progress, "cpu", "", shared)
        score, used = fitting.scored(test, found)[0], time.process_time() - began
        print(f"{kind}: mAP@0.5 {span(score)}, average {span(score, 'average')}, CPU {used:.0f} s")


if __name__ == "__main__":
    main()
