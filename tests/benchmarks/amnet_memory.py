"""Memory of one training step of AMNet at the sizes of its supplement: two videos of 2304 steps.

    python tests/benchmarks/amnet_memory.py [variant …]

The supplement's hidden=1024 and heads=8 ran out of 12 GB there (batch unknown). A process a
variant: peak resident memory beyond imports, weights and features, and time, one CPU thread.
"""

import json
import resource
import subprocess
import sys
import time

VARIANTS = ("", "hidden=1024", "heads=8")
STEPS, VIDEOS, CHANNELS, CLASSES = 2304, 2, 2048, 20


def step(variant: str) -> dict[str, float]:
    """Forward, losses and backward of one batch in this process."""
    import torch

    from lofi import config as configs
    from lofi.data import Segment, Video
    from lofi.data.snippets import Grid
    from lofi.heads import build_head
    from lofi.training.methods import head_variant

    torch.set_num_threads(1)
    config = head_variant(configs.preset("thumos14-amnet"), variant)
    head = build_head(config.head, CHANNELS, CLASSES)
    grid = Grid.whole(STEPS, STEPS * 4 / 30)
    video = Video("v", None, grid.duration_s, None, None, (Segment(10.0, 20.0, "0"),))
    targets = head.collate([head.targets(video, grid)] * VIDEOS)
    features = torch.randn(VIDEOS, CHANNELS, STEPS)
    draws = head.draws(VIDEOS, targets, torch.Generator().manual_seed(0))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    outputs, statistics = head(features, None, draws), head.statistics(targets, draws)
    head.losses(outputs, targets, statistics, draws)["loss"].backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    weights = sum(p.numel() for p in head.parameters())
    return {"weights": weights, "gib": peak / 2**20, "s": time.perf_counter() - began}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(step(sys.argv[2])))
        sys.exit()
    for variant in sys.argv[1:] or VARIANTS:
        command = [sys.executable, __file__, "--one", variant]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        name = f"{variant or 'as published'}: {found['weights'] / 1e6:.0f} M weights"
        print(f"{name}, {found['gib']:.1f} GiB, {found['s']:.0f} s", flush=True)
