"""One optimisation step of S-, T-, ST- and low-budget LoFi at the paper's size, from a real file.

    python tests/benchmarks/real_step.py [--video FILE] [--batch 1] [--only s t st low]

Without --video a 640 x 360 film of 40 s is rendered and encoded. Each configuration runs in a
process of its own: decode, TSM-R18 and G-TAD forward and backward, one step of SGD. Memory is
compared in memory.py. Exit status 1 when a loss is not finite or the encoder did not move.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

NAMES = ("s", "t", "st", "low")


def render(path: Path, seconds: int = 40, fps: int = 25) -> None:
    """A film of moving texture."""
    from lofi.data import write_video

    rng = np.random.default_rng(0)
    wide = rng.integers(0, 256, (90, 400, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    frames = (wide[:, 2 * t % 900 : 2 * t % 900 + 640] for t in range(seconds * fps))
    write_video(path, np.stack([frame.copy() for frame in frames]), fps)


def one(name: str, video: Path, batch: int) -> dict:
    """Run one step in this process; returns what was found."""
    from lofi import config as configs
    from lofi.data.datasets import video_request
    from lofi.encoders import build_encoder, encoder_hash
    from lofi.fidelity import schedule
    from lofi.training.joint import train_lofi
    from lofi.training.methods import lofi_method
    from lofi.training.run_folder import read_metrics

    with tempfile.TemporaryDirectory() as folder:
        annotations = Path(folder) / "list.csv"
        videos = Path(folder) / "videos"
        videos.mkdir()
        text = ["video,start_s,end_s,label,subset"]
        for i in range(batch):
            (videos / f"clip{i}{video.suffix}").symlink_to(video.resolve())
            text.append(f"clip{i},1.0,4.0,moving,training")
        annotations.write_text("\n".join(text) + "\n")
        changes = {
            "lofi.schedule": name, "lofi.start": "random", "lofi.training.epochs": 1,
            "lofi.training.batch": batch, "data.annotations": str(annotations),
            "data.videos": str(videos), "data.workers": 0,
        }  # fmt: skip
        config = configs.override(configs.preset("activitynet"), changes)
        fidelity = schedule(name, config.full).at(0, 0)
        began = time.perf_counter()
        video_request(config.data, video, fidelity).read()
        decode = time.perf_counter() - began
        before = encoder_hash(build_encoder(config.encoder, seed=config.seed))
        result = train_lofi(config, Path(folder) / "run")
        (row,) = read_metrics(Path(folder) / "run" / lofi_method(config) / "encoder")
    return {
        "fidelity": str(fidelity), "decode_s": decode, "step_s": row["seconds"],
        "loss": row["loss"], "moved": result["sha256"] != before,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--video", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(one(options.only[0], options.video, options.batch)))
        return
    with tempfile.TemporaryDirectory() as folder:
        video = options.video or Path(folder) / "film.mp4"
        if options.video is None:
            render(video)
        print(f"TSM-R18, G-TAD, batch {options.batch}, float32, {torch.get_num_threads()} threads")
        print("config  L×F×S²        decode s  step s   loss")
        failed = False
        for name in options.only:
            line = [sys.executable, __file__, "--child", "--only", name, "--video", str(video),
                    "--batch", str(options.batch)]  # fmt: skip
            out = subprocess.run(line, check=True, capture_output=True, text=True).stdout
            row = json.loads(out.splitlines()[-1])
            failed |= not (row["moved"] and math.isfinite(row["loss"]))
            print(
                f"{name:6s}  {row['fidelity']:12s}  {row['decode_s']:8.1f}  {row['step_s']:6.1f}"
                f"  {row['loss']:6.3f}",
                flush=True,
            )
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
