"""`lofi fit` on rendered videos of its own, from nothing: quality, time and memory.

    python tests/benchmarks/own_videos.py [--look workshop | yard] [--videos 24] [--seed 0]
        [--minutes 30] [--keep FOLDER] [-- OPTIONS of lofi fit]

Settings were tuned on "workshop", seed 0, alone. Prints held-out and cross-validated class-aware
mAP@0.5 with 95 % intervals over videos, wall and CPU seconds, peak memory, and what the run's
detector finds in a new video.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rendered_events import KINDS, render

from lofi.detection import read_detections
from lofi.files import read_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--look", choices=KINDS, default="workshop")
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", default="30")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("options", nargs="*")
    given = parser.parse_args()
    folder = given.keep or Path(tempfile.mkdtemp())
    events = render(folder, given.look, given.videos, given.seed)
    for seed in range(given.seed + 1000, given.seed + 1100):
        new = render(folder / "new", given.look, 1, seed)
        if len({row.split(";")[3] for row in new.read_text(encoding="utf-8-sig").split()[1:]}) > 1:
            break  # a new video with both kinds of event
    run = [sys.executable, "-m", "lofi"]
    began = time.perf_counter()
    fit = ["fit", events, "--videos", folder / "videos", "--out", folder / "run"]
    fit += ["--minutes", given.minutes, *given.options]
    subprocess.run([*run, *map(str, fit)], check=True)
    wall, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    result = read_json(folder / "run" / "fit.json", "the result of lofi fit")
    for name in ("held_out", "cross_validation"):
        if name in result:
            low, high = result[name]["interval_at_0.5"]
            print(f"{name}: mAP@0.5 {result[name]['map_at_0.5']:.3f} [{low:.3f}, {high:.3f}]")
    print(f"{wall:.0f} s, CPU {used.ru_utime:.0f} s, peak {used.ru_maxrss / 2**20:.2f} GiB")
    (clip,) = (folder / "new" / "videos").iterdir()
    detect = ["detect", clip, "--model", folder / "run", "--out", folder / "found"]
    subprocess.run([*run, *map(str, detect)], check=True, stdout=subprocess.DEVNULL)
    print(new.read_text(encoding="utf-8-sig"))
    for d in next(iter(read_detections(folder / "found" / f"{clip.stem}.json").values())):
        if d.score >= result["threshold"]:
            print(f"found {d.label} {d.start_s:.2f} to {d.end_s:.2f}, score {d.score:.2f}")


if __name__ == "__main__":
    main()
