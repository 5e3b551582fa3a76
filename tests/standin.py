"""A small set in the shape of ActivityNet and Kinetics, rendered: what full-scale runs read.

Twelve untrimmed videos in mp4, mkv and webm at 25, 29.97 and 30 frames a second, in three subsets;
class scores of others for all test videos but one; trimmed clips in one folder a class. Colour
tells the classes apart, motion tells action from rest.
"""

import json
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from lofi.config import Config, from_dict, preset

CLASSES = ("Archery", "Cleaning windows", "Playing ten pins")  # of ActivityNet's 200
SIDE = 32  # pixels
RATES = (Fraction(25), Fraction(30000, 1001), Fraction(30))
KINDS = ((".mp4", "libx264"), (".mkv", "libx264"), (".webm", "libvpx-vp9"))
SUBSETS = ("training",) * 6 + ("validation",) * 4 + ("testing",) * 2
SMALL = {  # over preset activitynet: everything as the paper has it, but smaller
    "encoder": "tsm-toy",
    "full": {"snippets": 8, "frames": 4, "pixels": SIDE},
    "acp_frames": 4,
    "acp": {"epochs": 1, "batch": 6, "lr": 0.01, "warmup": 0},
    "acp_plus": {"epochs": 1, "batch": 4},
    "arrow": {"epochs": 1, "batch": 4, "warmup": 0},
    "speed": {"epochs": 1, "batch": 4, "warmup": 0},
    "lofi": {"training": {"epochs": 3, "batch": 3, "lr": 0.01}},
    "head": {"hidden": 16, "paths": 4, "map_hidden": [16, 8], "resolution": 4},
    "head_training": {"epochs": 2, "batch": 3},
}


class Standin(NamedTuple):
    """Where the parts of the set lie."""

    annotations: Path
    videos: Path
    source: Path  # one folder a class
    scores: Path  # class scores of others
    config: Path  # of a run on the set: partial, over preset activitynet


def write_standin(folder: Path) -> Standin:
    """Write the whole set; the same bytes every time."""
    rng = np.random.default_rng(0)
    database, scores = {}, {}
    for i, subset in enumerate(SUBSETS):
        rate, (suffix, codec) = RATES[i % 3], KINDS[(i + i // 3) % 3]
        label, name = CLASSES[i % 3], f"v_standin{i:02d}x"
        seconds, start, end = 4.0 + 0.5 * (i % 4), 1.0 + 0.2 * (i % 3), 2.4 + 0.3 * (i % 4)
        frames = _frames(rng, label, round(seconds * rate), float(rate), [(start, end)])
        write(folder / "videos" / f"{name}{suffix}", frames, rate, codec)
        actions = [{"segment": [start, end], "label": label}] if subset != "testing" else []
        about = {"duration": round(len(frames) / float(rate), 2), "subset": subset}
        database[name.removeprefix("v_")] = about | {"annotations": actions, "url": ""}
        if subset == "validation" and i != 7:  # one is missing
            found = [0.8 if c == label else 0.1 for c in CLASSES]
            scores[name] = [{"label": c, "score": s} for c, s in zip(CLASSES, found)]
    for i in range(12):
        label = CLASSES[i % 3]
        frames = _frames(rng, label, 20, 25.0, [(0.0, 1.0)])
        write(folder / "source" / label / f"clip{i:02d}_000010.mp4", frames, RATES[0], "libx264")
    paths = Standin(*(folder / n for n in ("activity_net.v1-3.json", "videos", "source",
                                           "scores.json", "standin.json")))  # fmt: skip
    paths.annotations.write_text(json.dumps({"version": "VERSION 1.3", "database": database}))
    paths.scores.write_text(json.dumps({"results": scores}))
    places = {"annotations": paths.annotations, "videos": paths.videos, "source": paths.source}
    data = {key: str(value) for key, value in places.items()} | {"workers": 1, "frame_stride": 2}
    classes = {"shared_classes": str(paths.scores)}
    whole = {"preset": "activitynet", **SMALL, "data": data, "detect": classes}
    from_dict(Config, whole, "stand-in", preset("activitynet"))  # it is a valid configuration
    paths.config.write_text(json.dumps(whole))
    return paths


def _frames(rng, label: str, count: int, fps: float, actions: list[tuple[float, float]]):
    """(N, SIDE, SIDE, 3): a square in the colour of its class, which moves during actions."""
    background = rng.integers(60, 120, (SIDE, SIDE, 3), dtype=np.uint8)
    colour = np.eye(3)[CLASSES.index(label)] * 200 + 30
    frames, place = np.repeat(background[None], count, 0), 4.0
    for n, frame in enumerate(frames):
        if any(start <= n / fps < end for start, end in actions):
            place = (place + 2.5) % (SIDE - 10)
        frame[10:20, int(place) : int(place) + 10] = colour
    return frames


def write(path: Path, frames: np.ndarray, rate: Fraction, codec: str) -> None:
    """Encode frames at an exact rate, in the container that the name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
        if codec == "libvpx-vp9":
            stream.options = {"deadline": "realtime", "cpu-used": "8"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
