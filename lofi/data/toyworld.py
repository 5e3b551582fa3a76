"""The embedded data set: a small world of oscillating shapes, rendered from a seed.

It has two parts, as the paper's setting has: a *source* set of short trimmed clips with class
labels (stands in for Kinetics) and a *target* set of untrimmed videos with annotated segments in
the ActivityNet format. A class is a shape and the axis along which it oscillates. What separates
the two tasks is one nuisance, *vigour* (how far the actor swings and how tall it stands up):

* in the source clips it says nothing about the class, so a classifier learns to ignore it;
* in the target videos the action is vigorous, and the warm-up before it, the cool-down after it
  and false starts are the same actor in the same motion without vigour.

Layout below the folder:
    source/<class>/<clip>.mp4, source.csv   columns clip, label, vigour, subset
    videos/<id>.mp4, annotations.json       ActivityNet format, seconds
    events.json                             what nobody annotates: phases and false starts
    world.json, manifest.json               written first and last: configuration, and proof of end
"""

import csv
import hashlib
import io
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lofi.data.toyplan import TINY, TOY, ClipPlan, ToyWorld, VideoPlan, plan_clips, plan_videos
from lofi.data.toyrender import render_clip, render_video
from lofi.files import read_json, sha256, write_json, write_text

__all__ = ["TINY", "TOY", "ToyWorld", "WorldPaths", "write_world"]

logger = logging.getLogger(__name__)

# Without x264's macroblock tree, as `write_video` has it: with the tree, frames this small do not
# always give the same bytes (14 of 84 files differed between calls, 0 of 84 without). The world's
# crf of 22 then has the PSNR of "veryfast" with the tree at crf 18, for 15 % more bytes.
PRESET = "superfast"


@dataclass(frozen=True)
class WorldPaths:
    """Where the parts of a world lie."""

    folder: Path

    @property
    def source_dir(self) -> Path:
        return self.folder / "source"

    @property
    def source_csv(self) -> Path:
        return self.folder / "source.csv"

    @property
    def video_dir(self) -> Path:
        return self.folder / "videos"

    @property
    def annotations(self) -> Path:
        return self.folder / "annotations.json"

    @property
    def events(self) -> Path:
        return self.folder / "events.json"

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.json"


def write_world(
    folder: str | Path,
    world: ToyWorld,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    workers: int = 1,
) -> WorldPaths:
    """Render a world into `folder`, or return at once when it is already there.

    The bytes depend on `world` and `seed` alone (and on the version of the encoder library), not
    on `workers`, the number of threads. A killed call is continued by the next; files that were
    deleted since are rendered again. `progress(done, total)` is called after each file.

    Raises:
        ValueError: the folder holds another world (names the differing settings), or files were
            changed since they were written.
    """
    paths = WorldPaths(Path(folder))
    config = {"world": asdict(world), "seed": seed}
    started = paths.folder / "world.json"
    _check_same(started, config)
    clips, videos = plan_clips(world, seed), plan_videos(world, seed)
    tables = {
        paths.source_csv: _source_table(clips),
        paths.annotations: _annotations(world, videos),
        paths.events: _events(world, videos),
    }
    media = {paths.source_dir / clip.file: (render_clip, clip) for clip in clips}
    media |= {paths.video_dir / f"{video.id}.mp4": (render_video, video) for video in videos}
    missing = [path for path in [*media, *tables] if not path.is_file()]
    finished = paths.manifest.is_file()
    if not finished or missing:
        if not finished:
            write_json(started, config)
        logger.info("toy world %s: rendering %d files", world.name, len(missing))
        _render_all(world, seed, {p: media[p] for p in missing if p in media}, progress, workers)
        for path in tables.keys() & set(missing):
            write_text(path, tables[path])
    digest = _digest(paths.folder, [*media, *tables])
    if not finished or missing:
        write_json(paths.manifest, {**config, "files": len(media) + len(tables), "sha256": digest})
    elif read_json(paths.manifest, "a toy world's manifest").get("sha256") != digest:
        raise ValueError(
            f"{paths.folder}: files differ from manifest.json (they were changed after rendering); "
            "delete the folder and run again"
        )
    return paths


def _check_same(path: Path, config: dict[str, Any]) -> None:
    """Refuse a folder that was started with other settings."""
    if not path.is_file():
        return
    found = _flat(read_json(path, "a toy world's settings"))
    wanted = _flat(config)
    keys = sorted(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k))
    if keys:
        shown = ", ".join(f"{k} ({found.get(k)} there, {wanted.get(k)} asked)" for k in keys[:4])
        more = f" and {len(keys) - 4} more: {', '.join(keys[4:])}" if len(keys) > 4 else ""
        raise ValueError(
            f"{path.parent}: holds another toy world; it differs in {shown}{more}; "
            "choose another folder or delete this one"
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as {"a.b": leaf}, tuples as lists, as JSON gives them back."""
    if not isinstance(value, dict):
        return {prefix: list(value) if isinstance(value, tuple) else value}
    join = f"{prefix}." if prefix else ""
    return {k: v for key, part in value.items() for k, v in _flat(part, f"{join}{key}").items()}


def _digest(folder: Path, files: list[Path]) -> str:
    """SHA-256 over the sorted list of (relative path, SHA-256) of the files."""
    lines = sorted(f"{file.relative_to(folder).as_posix()} {sha256(file)}" for file in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _render_all(
    world: ToyWorld,
    seed: int,
    jobs: dict[Path, tuple[Callable, ClipPlan | VideoPlan]],
    progress: Callable[[int, int], None] | None,
    workers: int,
) -> None:
    """Render and encode the (renderer, plan) of every path; each file comes into being whole."""
    from lofi.data.encoding import write_video  # PyAV is heavy, and a finished world needs none

    def make(path: Path) -> None:
        render, plan = jobs[path]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, render(world, seed, plan), world.fps, world.crf, PRESET)

    with ThreadPoolExecutor(workers) as pool:
        for done, _ in enumerate(pool.map(make, jobs) if workers > 1 else map(make, jobs), 1):
            if progress:
                progress(done, len(jobs))


def _source_table(clips: list[ClipPlan]) -> str:
    """CSV with one row a clip; paths are relative to the world's folder."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["clip", "label", "vigour", "subset"])
    writer.writerows([f"source/{c.file}", c.label, f"{c.vigour:.4f}", c.subset] for c in clips)
    return text.getvalue()


def _annotations(world: ToyWorld, videos: list[VideoPlan]) -> str:
    """The official ActivityNet layout; only actions are annotated."""
    database = {
        video.id: {
            "subset": video.subset,
            "duration": world.video_frames / world.fps,
            "url": "",
            "annotations": [
                {"segment": [p.start / world.fps, p.end / world.fps], "label": video.label}
                for p in video.phases
                if p.kind == "action"
            ],
        }
        for video in videos
    }
    root = {"nodeId": 0, "nodeName": "Root", "parentId": None, "parentName": None}
    nodes = [
        {"nodeId": i, "nodeName": name, "parentId": 0, "parentName": "Root"}
        for i, name in enumerate(world.classes, 1)
    ]
    version = f"toy world {world.name}"
    return _json({"version": version, "taxonomy": [root, *nodes], "database": database})


def _events(world: ToyWorld, videos: list[VideoPlan]) -> str:
    """Every phase of every video in seconds, with its vigour on the scale of the source clips."""
    low, high = world.source_swing
    return _json(
        {
            video.id: [
                {
                    "kind": p.kind,
                    "segment": [p.start / world.fps, p.end / world.fps],
                    "label": video.label,
                    "vigour": round((p.swing - low) / (high - low), 4),
                }
                for p in video.phases
            ]
            for video in videos
        }
    )


def _json(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"
