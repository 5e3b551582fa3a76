"""What notebook 00 shows: the best detections of a finished run, kept beside it.

`make demo`, then `python notebooks/tour.py runs/demo` writes notebooks/tour/<method>.json. The
notebook itself trains nothing, so that it takes seconds. Its two paragraphs "Where it works" and
"Where it does not" speak of what that run found: read them again afterwards.
"""

import sys
from pathlib import Path

from lofi.detection import read_detections
from lofi.detection.results import read_results, write_detections

FOLDER = Path(__file__).with_name("tour")
METHODS = ("acp", "c-lofi")
TOP = 5  # detections a video


def keep(run_dir: Path) -> None:
    """Copy the first detections of every test video, shared classes, with where they come from."""
    for method in METHODS:
        path = run_dir / method / "detections" / "shared.json"
        found = read_detections(path)
        best = {
            video: [d._replace(score=round(d.score, 4)) for d in detections[:TOP]]
            for video, detections in found.items()
        }
        source = read_results(path)["external_data"]
        write_detections(FOLDER / f"{method}.json", best, source=source)


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
