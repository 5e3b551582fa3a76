"""The gates of AMNet's reconstruction on the toy world `long`: paired differences over seeds.

    lofi train acp --preset toy --seed 0 --out runs/toy
    lofi compare --preset long --seeds 2001 2002 2003 2004 2005 --methods weights \\
        --weights runs/toy/acp/encoder/encoder.safetensors --out runs/long --variants \\
        mask=none,attention=none mask=binary,join=multiply,attention=none attention=none \\
        attention=none,mask_weight=0 attention=none,rule=positive mask=none,attention=self \\
        mask=none "" kind=actionformer,hidden=64,max_steps=64
    python -m tests.benchmarks.amnet runs/long

One frozen encoder for all seeds; a seed makes the videos, the initial weights and the batches.
Trains the oracle, looks into the trained heads, writes amnet.csv beside this file (a line a seed
and measurement) and prints the README's two tables from it. Without a folder it only prints. Seeds
2001 to 2005 chose nothing.
"""

import csv
import sys
from pathlib import Path
from statistics import fmean, stdev
from unittest import mock

import numpy as np
import torch

from lofi import config as configs
from lofi import experiment
from lofi.config import Config
from lofi.data import Segment, Video
from lofi.data.features import FeatureStore
from lofi.detection import suppress
from lofi.evaluation.paired import SEEDS, verdict
from lofi.files import read_json, write_csv
from lofi.heads import AMNet, build_head
from lofi.training import methods

VARIANTS = {
    "none": "mask=none,attention=none",
    "binary": "mask=binary,join=multiply,attention=none",
    "triplet": "attention=none",
    "no loss": "attention=none,mask_weight=0",
    "positive": "attention=none,rule=positive",
    "self": "mask=none,attention=self",
    "groups": "mask=none",
    "AMNet": "",
    "ActionFormer": "kind=actionformer,hidden=64,max_steps=64",
}
TITLES = {
    "none": "no mask, no groups",
    "binary": "mask (binary, multiplied)",
    "triplet": "mask (triplet, added)",
    "no loss": "mask (triplet), its loss off",
    "positive": "mask (triplet), rule `positive`",
    "self": "groups without exchange",
    "groups": "groups",
    "AMNet": "AMNet: mask (triplet) and groups",
    "ActionFormer": "ActionFormer of the same width",
    "oracle": "the true mask (wiring check only)",
}
GATES = (  # an arm over another: the least mean, and whether it has to lead on every seed
    ("a  binary mask over none, every seed", "binary", "none", 0.0, True),
    ("a  triplet mask over none, every seed, mean ≥ 3", "triplet", "none", 3.0, True),
    ("b  triplet over itself without its loss, mean ≥ 2", "triplet", "no loss", 2.0, False),
    ("e  groups beside convolutions over none", "groups", "none", 0.0, False),
    ("–  exchange over no exchange", "groups", "self", 0.0, False),
    ("–  triplet over binary", "triplet", "binary", 0.0, False),
    ("–  rule `aware` over `positive`", "triplet", "positive", 0.0, False),
    ("–  AMNet over none", "AMNet", "none", 0.0, False),
    ("–  AMNet over its mask alone", "AMNet", "triplet", 0.0, False),
    ("–  AMNet over ActionFormer", "AMNet", "ActionFormer", 0.0, False),
)
LIMITS = (  # what holds on every seed: above a number, or below it
    ("c  average mAP with the true mask > 70", "oracle", 70.0, True),
    ("d  AUC of the binary mask > 0.85", "AUC", 0.85, True),
    ("e  keys of the other group in another order move the logits > 1 % of their SD", "exchange",
     1.0, True),
    ("f  detections of a padded video differ by < 1e-4", "padding", 1e-4, False),
    ("g  infinite gradients, no action or nothing but one: < 1", "infinite", 1.0, False),
)  # fmt: skip
TABLE = Path(__file__).with_suffix(".csv")


class Oracle(AMNet):
    """For the wiring alone: the last channel of the features is the true mask, and only that."""

    def _mask(self, x, inside):
        return (), (x * self.truth + x) * inside

    def forward(self, features, mask=None, draws=None):
        self.truth = (features[:, -1:] > 0).transpose(1, 2)  # also where it was standardised
        features = torch.cat([features[:, :-1], torch.zeros_like(features[:, -1:])], 1)
        return super().forward(features, mask, draws)


def opened(folder: Path) -> tuple[Config, list[Video], list[Video], FeatureStore]:
    """Settings, training and test videos, and the features of one seed."""
    config = configs.load(folder / "config.json")
    data = methods.run_data(config, folder)
    return config, data.train, data.test, methods.open_features(config, folder, "weights", data)


def train_oracle(folder: Path) -> float:
    """Average mAP in percent with the true mask in place of a learned one, same features."""
    config, train, test, store = opened(folder)
    run = folder / "oracle"
    (run / "features").mkdir(parents=True, exist_ok=True)
    names = sorted({s.label for video in train for s in video.segments})
    truth = build_head(config.head, store[train[0].id].values.shape[0], names)
    for video in [*train, *test]:
        values, grid = store[video.id]
        shown = (truth.targets(video, grid).action > 0).float()
        np.save(run / "features" / f"{video.id}.npy", torch.cat([values, shown[None]]).T.numpy())
    changes = {"head.mask": "none", "head.attention": "none",
               "data.features.folder": str(run / "features"),
               "data.features.width": len(values) + 1,
               "data.world": config.data.world or str(folder / "world")}  # fmt: skip
    config = configs.override(config, changes)
    with mock.patch("lofi.heads.AMNet", Oracle):
        for stage in ("head", "detect", "evaluate"):
            found = experiment.run_stage(stage, config, run, "published")
    return 100 * found["head"]


@torch.no_grad()
def mask_auc(folder: Path) -> float:
    """How well the binary mask's probability ranks steps of actions above others, test videos."""
    config, _, test, store = opened(folder)
    scaled = methods.load_head(config, folder, "weights", VARIANTS["binary"])
    found, truth = [], []
    for video in test:
        features = store[video.id]
        found += scaled(features.values[None]).action[0][0, :, 0].tolist()
        truth += (scaled.head.targets(video, features.grid).action > 0).tolist()
    found, truth = np.array(found), np.array(truth)
    ranks = np.searchsorted(np.sort(found), found) + 1
    positive = truth.sum()
    above = ranks[truth].sum() - positive * (positive + 1) / 2
    return above / (positive * (len(truth) - positive))


@torch.no_grad()
def exchange(folder: Path) -> float:
    """RMS change of class logits, in percent of their SD, when each group gets the keys of the
    other one, positions included, in another order than its values."""
    config, _, test, store = opened(folder)
    scaled = methods.load_head(config, folder, "weights", VARIANTS["groups"])
    batch = torch.stack([store[video.id].values for video in test])
    before = torch.cat(scaled(batch).logits, 1)
    draws = torch.Generator().manual_seed(0)

    def shuffled(module, given, keys):
        return keys[:, torch.randperm(keys.shape[1], generator=draws)]

    for layer in scaled.head.gam:
        for attention in layer.other:
            attention.key.register_forward_hook(shuffled)
    moved = torch.cat(scaled(batch).logits, 1) - before
    return 100 * float(moved.square().mean().sqrt() / before.std())


@torch.no_grad()
def padding(folder: Path, videos: int = 10) -> float:
    """Largest difference of detections (score, or seconds) of a video alone and padded."""
    config, _, test, store = opened(folder)
    scaled = methods.load_head(config, folder, "weights")
    worst = 0.0
    for video in test[:videos]:
        values, grid = store[video.id]
        mask = torch.arange(values.shape[1] + 37) < values.shape[1]
        padded = torch.nn.functional.pad(values, (0, 37), value=3.0)[None]
        outputs = scaled(values[None]), scaled(padded, mask[None])
        kept = [suppress([scaled.head.decode(o, grid, config.detect)], config.detect)
                for o in outputs]  # fmt: skip
        if len(kept[0].scores) != len(kept[1].scores):
            return float("inf")
        worst = max(worst, abs(kept[0].scores - kept[1].scores).max(initial=0))
        worst = max(worst, abs(kept[0].segments_s - kept[1].segments_s).max(initial=0))
    return worst


def infinite(folder: Path) -> int:
    """Gradients that are no numbers, for a batch without actions and one that is all action."""
    config, _, test, store = opened(folder)
    head = methods.load_head(config, folder, "weights").train()
    values, grid = store[test[0].id]
    whole = (Segment(0.0, grid.duration_s, test[0].segments[0].label),)
    wrong = 0
    for segments in ((), whole):
        video = Video("made up", None, grid.duration_s, None, None, segments)
        targets = head.head.collate([head.head.targets(video, grid)] * 2)
        draws = head.head.draws(2, targets, torch.Generator().manual_seed(0))
        outputs = head(torch.stack([values, values]), None, draws)
        statistics = head.head.statistics(targets, draws)
        head.zero_grad()
        head.head.losses(outputs, targets, statistics, draws)["loss"].backward()
        given = [p.grad for p in head.parameters() if p.grad is not None]
        wrong += sum(int((~torch.isfinite(g)).sum()) for g in given)
    return wrong


def collect(run: Path) -> list[tuple[int, str, float]]:
    """(seed, arm or measurement, value) of everything that was evaluated below `run`."""
    rows = []
    looks = {"AUC": (mask_auc, "binary"), "exchange": (exchange, "groups"),
             "padding": (padding, "AMNet"), "infinite": (infinite, "AMNet"),
             "oracle": (train_oracle, "none")}  # fmt: skip
    for folder in sorted(run.glob("seed-*")):
        seed = int(folder.name.removeprefix("seed-"))
        for arm, variant in VARIANTS.items():
            path = folder / "weights" / "metrics" / variant / "head.json"
            if path.is_file():
                rows.append((seed, arm, 100 * read_json(path, "metrics")["average_map"]))
        known = {arm for number, arm, _ in rows if number == seed}
        rows += [(seed, name, look(folder)) for name, (look, arm) in looks.items() if arm in known]
    return rows


def stored() -> dict[str, dict[int, float]]:
    """Arm or measurement → seed → value, of amnet.csv."""
    found: dict[str, dict[int, float]] = {}
    with TABLE.open() as file:
        for row in csv.DictReader(file):
            found.setdefault(row["arm"], {})[int(row["seed"])] = float(row["value"])
    return found


def lead(found: dict[str, dict[int, float]], arm: str, other: str) -> list[float]:
    """How far an arm is above another one, on every seed that both have."""
    pairs = found.get(arm, {}), found.get(other, {})
    return [pairs[0][seed] - pairs[1][seed] for seed in sorted(pairs[0].keys() & pairs[1])]


def report(found: dict[str, dict[int, float]]) -> str:
    """The README's tables: a row an arm, a row a gate."""
    lines = ["| head on the same features | average mAP | over the first row, each seed |",
             "|:--|--:|--:|"]  # fmt: skip
    for arm in (arm for arm in TITLES if arm in found):
        values, each = [*found[arm].values()], lead(found, arm, "none")
        spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
        more = "" if arm == "none" else ", ".join(f"{d:+.1f}" for d in each)
        lines.append(f"| {TITLES[arm]} | {fmean(values):.1f}{spread} | {more} |")
    lines += ["", "| gate | measured | verdict |", "|:--|--:|:--|"]
    for name, arm, other, least, every in GATES:
        if len(each := lead(found, arm, other)) > 1:
            shown = f"{fmean(each):+.1f} ± {stdev(each) / len(each) ** 0.5:.1f} (SE)"
            lines.append(f"| {name} | {shown} | {verdict(each, 2.0, least, every)} |")
    for name, key, limit, above in LIMITS:
        if values := [*found.get(key, {}).values()]:
            word = "reproduced" if (min(values) > limit if above else max(values) < limit) else ""
            word = word or "contradicted"
            word = word if len(values) >= SEEDS else f"no verdict below {SEEDS} seeds"
            lines.append(f"| {name} | {min(values):.3g} to {max(values):.3g} | {word} |")
    return "\n".join(lines).replace("| -", "| −").replace(", -", ", −")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        rows = [(seed, arm, f"{value:.5g}") for seed, arm, value in collect(Path(sys.argv[1]))]
        write_csv(TABLE, [("seed", "arm", "value"), *rows])
    print(report(stored()))
