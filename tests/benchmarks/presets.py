"""A table of all presets in Markdown, as the README has it: command, hardware, memory, hours, runs.

    python tests/benchmarks/presets.py [--json OUT] [--only activitynet tiny]

Memory is predicted as by `lofi plan --preset NAME`: the largest step of stage 2 that the preset's
schedule makes, or of stage 3 on published features, with the optimiser's state. Hours are an
estimate: multiply-adds of all stages (the official numbers of videos and clips, every window of
THUMOS14, forward and backward three times a forward pass; not for weak supervision) over what one
core of this machine does when it trains TSM-R18 on 112 pixels, measured here. Decoding is not in
them, nor ACP+. Nothing here runs the presets.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lofi.budget import GIB, inference_cost, plan
from lofi.config import Config
from lofi.data.check import OFFICIAL
from lofi.data.toyworld import WORLDS
from lofi.encoders import build_encoder, freeze_batch_norm
from lofi.fidelity import Fidelity, schedule
from lofi.heads import build_head
from lofi.presets import PRESETS

KINETICS = 246_500  # training clips, data/kinetics/README.md
WINDOWS = 5  # of 256 snippets, 5 frames apart: a THUMOS14 test video has 6,347 frames on average
HARDWARE = {  # sections 3.3 and supplement B
    "activitynet": "4 × V100 32 GB (the paper's)",
    "activitynet-low": "1 × V100 32 GB (the paper's)",
    "activitynet-middle": "4 × V100 32 GB (the paper's)",
    "hacs": "4 × V100 32 GB (the paper's)",
}
STANDIN = "in its shape: 12 videos of 32 pixels, `tests/test_full_scale.py`"
RAN = {
    "tiny": "whole, in the tests and notebooks",
    "toy": "whole, seeds 0–3 (Results)",
    "long": "whole, five seeds (`tests/benchmarks/amnet.csv`)",
    "own": "whole (`tests/benchmarks/own_videos.py`)",
    "activitynet": f"{STANDIN}; one step at full size, `tests/benchmarks/real_step.py`",
    "activitynet-low": "one step at full size, `tests/benchmarks/real_step.py`",
    "thumos14-weak": "rendered values on the real lists, `tests/test_weak.py`",
    "weak": "the rows of the gates, seeds 3002–3006 (Results)",
}
NOT = "not on the real data"


def dataset(config: Config) -> tuple[int, int, int]:
    """Training videos, test videos and source clips of a preset; () for own data."""
    if config.data.preset:
        world = WORLDS[config.data.preset]
        return *world.videos, world.source_clips[0]
    family = config.preset.partition("-")[0]
    name = {"activitynet": "ActivityNet-1.3", "hacs": "HACS Segments 1.1.1",
            "thumos14": "THUMOS14 (thumos_gt.json)"}.get(family)  # fmt: skip
    if name is None:
        return ()
    sizes = OFFICIAL[name]
    return sizes[config.data.train_subset], sizes[config.data.test_subset], KINETICS


def memory_gib(config: Config) -> float:
    """Of the largest step of stage 2, or of stage 3 where features are published."""
    width = config.data.features.width
    if width:
        head, training = build_head(config.head, width), config.head_training
        return (
            plan(1, None, head, config.full, training.batch, optimiser_copies=2)[0].peak_bytes / GIB
        )
    encoder = build_encoder(config.encoder)
    freeze_batch_norm(encoder)
    head, batch = build_head(config.head, encoder.channels), config.lofi.training.batch
    sizes = set(schedule(config.lofi.schedule, config.full).fidelities)
    rows = plan(1, encoder, head, config.full, batch, config.lofi.amp, modes=[config.lofi.mode])
    return max(row.peak_bytes for row in rows if row.fidelity in sizes) / GIB


def multiply_adds(config: Config) -> float | None:
    """Of stages 1, 2 and 3, and of the features; None where the data are the user's own."""
    counts = dataset(config)
    if not counts:
        return None
    train, test, clips = counts
    windows = WINDOWS if config.data.window_stride and not config.data.features.width else 1
    width, encoder = config.data.features.width, None
    if not width:
        encoder = build_encoder(config.encoder)
    head = build_head(config.head, width or encoder.channels)
    costs = inference_cost(encoder, head, config.full)
    items = 2 * windows - 1  # windows overlap by a half; features are found once
    total = 3 * config.head_training.epochs * train * items * costs["head"].multiply_adds
    total += test * items * costs["head"].multiply_adds
    if encoder is not None:
        total += (train + test) * windows * costs["encoder"].multiply_adds
        clip = Fidelity(1, config.acp_frames, config.full.pixels)
        one = inference_cost(encoder, None, clip)["encoder"].multiply_adds
        total += 3 * config.acp.epochs * clips * one
        cycle = schedule(config.lofi.schedule, config.full).fidelities
        for size in cycle:
            parts = inference_cost(encoder, head, size)
            step = sum(cost.multiply_adds for cost in parts.values())
            total += 3 * config.lofi.training.epochs / len(cycle) * train * items * step
    return total


def measured_rate(repeats: int = 5) -> float:
    """Multiply-adds a second of one core: forward and backward of TSM-R18."""
    torch.set_num_threads(1)
    encoder, times = build_encoder("tsm-r18", seed=0), []
    freeze_batch_norm(encoder)
    frames = torch.randn(2, 8, 3, 112, 112)
    for _ in range(repeats + 1):
        began = time.process_time()
        encoder(frames).sum().backward()
        times.append(time.process_time() - began)
    count = 3 * inference_cost(encoder, None, Fidelity(2, 8, 112))["encoder"].multiply_adds
    return count / statistics.median(times[1:])


def row_of(config: Config, rate: float) -> dict:
    """The cells of one preset."""
    published, toy = config.data.features.width, bool(config.data.preset)
    own = config.preset == "own"
    command = f"lofi train $stage --preset {config.preset} …"
    command = f"lofi compare --preset {config.preset} …" if toy else command
    command = "lofi fit LABELS --videos DIR …" if own else command
    weak = "weak" in config.preset.split("-")  # other stages than those that are counted here
    command = command.replace("$stage", "weak-warm-up") if weak else command
    total = None if weak else multiply_adds(config)
    return {
        "preset": config.preset,
        "command": f"`{command}`",
        "hardware": HARDWARE.get(config.preset, "one CPU core" if toy or own else "–"),
        "gib": None if weak else memory_gib(config),
        "memory": "stage 3" if published else "stage 2",
        "hours": None if total is None else total / rate / 3600,
        "ran": RAN.get(config.preset, NOT),
    }


def markdown(rows: list[dict]) -> str:
    """The table."""
    heads = "preset", "command", "hardware", "GiB of a step", "hours of one core", "really run"
    lines = [f"| {' | '.join(heads)} |", "|:--|:--|:--|--:|--:|:--|"]  # fmt: skip
    for row in rows:
        hours = "–"
        if row["hours"] is not None:
            rounded = float(f"{row['hours']:.2g}")  # two digits are more than it deserves
            hours = f"{rounded:,g}"
        memory = "–" if row["gib"] is None else f"{row['gib']:.3g} ({row['memory']})"
        cells = row["preset"], row["command"], row["hardware"], memory, hours, row["ran"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    rate = measured_rate()
    rows = [row_of(PRESETS[name], rate) for name in options.only]
    print(markdown(rows))
    print(f"\nOne core: {rate / 1e9:.1f} G multiply-adds a second (TSM-R18, 112 pixels, float32).")
    if options.json:
        options.json.write_text(json.dumps({"rate": rate, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
