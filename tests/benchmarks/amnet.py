"""The gates of AMNet's reconstruction on the toy world `long`: paired differences over seeds.

    lofi train acp --preset toy --seed 0 --out runs/toy
    lofi compare --preset long --seeds 2001 2002 2003 2004 2005 --methods weights \\
        --weights runs/toy/acp/encoder/encoder.safetensors --out runs/long --variants \\
        mask=none,attention=none mask=binary,join=multiply,attention=none attention=none \\
        attention=none,mask_weight=0 mask=none "" kind=actionformer,hidden=64,max_steps=64
    python -m tests.benchmarks.amnet runs/long

One frozen encoder for all seeds; a seed makes the videos, the initial weights and the batches.
Prints a row a variant and a verdict a gate, and writes amnet.csv beside this file: one line a seed
and variant, average mAP 0.5:0.05:0.95 in percent. Seeds 2001 to 2005 chose nothing.
"""

import csv
import sys
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch

from lofi import config as configs
from lofi.files import read_json, write_csv
from lofi.training import methods

ARMS = {
    "none": "mask=none,attention=none",
    "binary": "mask=binary,join=multiply,attention=none",
    "triplet": "attention=none",
    "triplet without its loss": "attention=none,mask_weight=0",
    "groups": "mask=none",
    "AMNet": "",
    "ActionFormer": "kind=actionformer,hidden=64,max_steps=64",
}
SEEDS = 5  # that a verdict needs
TABLE = Path(__file__).with_suffix(".csv")


def collect(run: Path) -> list[tuple[int, str, float]]:
    """(seed, arm, average mAP in percent) of everything that was evaluated below `run`."""
    rows = []
    for folder in sorted(run.glob("seed-*")):
        seed = int(folder.name.removeprefix("seed-"))
        for arm, variant in ARMS.items():
            path = folder / "weights" / "metrics" / variant / "head.json"
            if path.is_file():
                rows.append((seed, arm, 100 * read_json(path, "metrics")["average_map"]))
        if (folder / "weights" / "head" / ARMS["binary"] / "head.safetensors").is_file():
            rows.append((seed, "AUC of binary", 100 * mask_auc(folder, ARMS["binary"])))
    return rows


@torch.no_grad()
def mask_auc(folder: Path, variant: str) -> float:
    """How well the mask's probability ranks steps of actions above others, test videos."""
    config = configs.load(folder / "config.json")
    data = methods.run_data(config, folder)
    store = methods.open_features(config, folder, "weights", data)
    scaled = methods.load_head(config, folder, "weights", variant)
    found, truth = [], []
    for video in data.test:
        features = store[video.id]
        found += scaled(features.values[None]).action[0][0, :, 0].tolist()
        truth += (scaled.head.targets(video, features.grid).action > 0).tolist()
    found, truth = np.array(found), np.array(truth)
    ranks = np.searchsorted(np.sort(found), found) + 1
    positive = truth.sum()
    above = ranks[truth].sum() - positive * (positive + 1) / 2
    return above / (positive * (len(truth) - positive))


def verdict(differences: list[float], least: float = 0.0, every: bool = False) -> str:
    """A gate: the mean is at least `least` and two standard errors above 0 (on `every` seed > 0).

    Contradicted: two standard errors below `least`.
    """
    mean, error = fmean(differences), stdev(differences) / len(differences) ** 0.5
    held = mean - 2 * error > 0 and mean >= least and (not every or min(differences) > 0)
    word = "reproduced" if held else "not established"
    word = "contradicted" if mean + 2 * error < least else word
    word = word if len(differences) >= SEEDS else f"no verdict below {SEEDS} seeds"
    each = " ".join(f"{d:+.1f}" for d in differences)
    return f"{mean:+.1f} ± {error:.1f} (SE, {len(differences)} seeds: {each}): {word}"


def report(rows: list[tuple[int, str, float]]) -> None:
    """A line for each arm and each gate."""
    at = {(arm, seed): value for seed, arm, value in rows}
    for arm in dict.fromkeys(arm for _, arm, _ in rows):
        values = [value for _, other, value in rows if other == arm]
        each = " ".join(f"{value:.1f}" for value in values)
        print(f"{arm:26}{fmean(values):6.1f}   {each}")

    def lead(arm: str, other: str) -> list[float]:
        seeds = [seed for a, seed in at if a == arm and (other, seed) in at]
        return [at[arm, seed] - at[other, seed] for seed in seeds]

    gates = (
        ("a  binary over none, every seed", "binary", "none", 0.0, True),
        ("a  triplet over none, every seed, at least 3", "triplet", "none", 3.0, True),
        ("b  triplet over itself without its loss, 2", "triplet", "triplet without its loss", 2.0,
         False),
        ("e  group attention over none", "groups", "none", 0.0, False),
        ("-  AMNet over none", "AMNet", "none", 0.0, False),
        ("-  AMNet over triplet", "AMNet", "triplet", 0.0, False),
        ("-  AMNet over ActionFormer", "AMNet", "ActionFormer", 0.0, False),
    )  # fmt: skip
    for name, arm, other, least, every in gates:
        if len(differences := lead(arm, other)) > 1:
            print(f"{name}: {verdict(differences, least, every)}")
    areas = [value for _, arm, value in rows if arm == "AUC of binary"]
    if areas:
        word = "reproduced" if min(areas) > 85 else "contradicted"
        word = word if len(areas) >= SEEDS else f"no verdict below {SEEDS} seeds"
        print(f"d  AUC of the binary mask above 85 %: {min(areas):.1f} to {max(areas):.1f}: {word}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        found = collect(Path(sys.argv[1]))
        lines = [(seed, arm, f"{value:.2f}") for seed, arm, value in found]
        write_csv(TABLE, [("seed", "arm", "percent"), *lines])
    with TABLE.open() as file:
        stored = [(int(r["seed"]), r["arm"], float(r["percent"])) for r in csv.DictReader(file)]
    report(stored)
