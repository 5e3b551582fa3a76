"""The training and test videos and source clips of a run, from the toy world or from real files."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lofi.config import DataConfig
from lofi.data.annotations import (
    TrimmedClip,
    Video,
    class_names,
    read_annotations,
    read_clip_list,
    segments_as_clips,
)
from lofi.data.reading import ClipReader

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Datasets:
    """What a run trains and tests on.

    `train` and `test` hold videos whose file is present; `missing` names the others. `clips` are
    the trimmed source clips, `annotations` the file that `lofi evaluate` reads.
    """

    train: tuple[Video, ...]
    test: tuple[Video, ...]
    missing: tuple[str, ...]
    clips: tuple[TrimmedClip, ...]
    annotations: Path
    classes: tuple[str, ...]

    @property
    def segments(self) -> tuple[TrimmedClip, ...]:
        """The labelled segments of the training videos as trimmed clips (ACP+)."""
        return tuple(segments_as_clips(self.train))


def open_datasets(data: DataConfig, seed: int, run_dir: str | Path) -> Datasets:
    """Read (or, for a toy world, first render) the data of a run.

    Raises:
        ValueError, FileNotFoundError: a path is missing or a file unreadable; says which setting.
    """
    if data.preset:
        data = _with_world(data, seed, Path(run_dir))
    if not data.annotations:
        raise ValueError("data.annotations is not set: give the annotation file of your data set")
    videos = read_annotations(data.annotations, video_dir=data.videos or None)
    if all(video.subset is None for video in videos):
        videos = _hold_out(videos, data)
    used = [v for v in videos if v.subset in (data.train_subset, data.test_subset)]
    if not used:
        found = ", ".join(sorted({str(v.subset) for v in videos})) or "none"
        raise ValueError(
            f"{data.annotations}: no video in subset {data.train_subset!r} or "
            f"{data.test_subset!r}; found: {found}. Set data.train_subset and data.test_subset"
        )
    missing = tuple(v.id for v in used if v.path is None)
    if missing:
        log.warning(
            "%d of %d videos are not in %s (first: %s); they are left out of training and count "
            "as missed in evaluation",
            len(missing), len(used), data.videos, missing[0],
        )  # fmt: skip
    present = [v for v in used if v.path is not None]
    train = tuple(v for v in present if v.subset == data.train_subset and v.segments)
    if data.source == "segments":
        clips = tuple(segments_as_clips(train))
    else:
        clips = tuple(read_clip_list(data.source)) if data.source else ()
    return Datasets(
        train=train,
        test=tuple(v for v in present if v.subset == data.test_subset),
        missing=missing,
        clips=clips,
        annotations=Path(data.annotations),
        classes=tuple(class_names(used)),
    )


HELD_OUT = 5  # annotations without subsets: every fifth video, by id, is a test video


def _hold_out(videos: Sequence[Video], data: DataConfig) -> list[Video]:
    log.warning("the annotations name no subsets: every %dth video is held out", HELD_OUT)
    subsets = [data.train_subset] * (HELD_OUT - 1) + [data.test_subset]
    ordered = sorted(videos, key=lambda video: video.id)
    return [replace(video, subset=subsets[i % HELD_OUT]) for i, video in enumerate(ordered)]


def _with_world(data: DataConfig, seed: int, run_dir: Path) -> DataConfig:
    from lofi.data.toyworld import TINY, TOY, write_world

    folder = Path(data.world) if data.world else run_dir / "world"
    worlds = {world.name: world for world in (TINY, TOY)}
    if data.preset not in worlds:
        raise ValueError(f"unknown toy world {data.preset!r}; known: {', '.join(worlds)}")
    if not (data.world and (folder / "manifest.json").exists()):
        write_world(folder, worlds[data.preset], seed)
    return replace(
        data,
        annotations=str(folder / "annotations.json"),
        videos=str(folder / "videos"),
        source=str(folder / "source.csv"),
    )


def open_reader(data: DataConfig) -> ClipReader:
    """What decodes the clips of a run: threads with a cache, or child processes with a limit."""
    workers = data.workers if data.workers > 1 else 0  # one worker: the thread that prefetches
    if data.decode_limit_s:
        return ClipReader(workers, processes=True, limit_s=data.decode_limit_s)
    return ClipReader(workers, cache_bytes=int(data.cache_gib * 2**30))


def fingerprint(items: Sequence[Video | TrimmedClip]) -> str:
    """Hash of what is trained on (names, labels, times), independent of where the files lie."""
    rows = []
    for item in items:
        if isinstance(item, Video):
            rows.append([item.id, [[s.start_s, s.end_s, s.label] for s in item.segments]])
            rows[-1] += [item.span] if item.span else []
        else:
            rows.append([item.path.name, item.label, item.start_s, item.end_s])
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]
