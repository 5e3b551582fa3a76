"""The training and test videos and source clips of a run, from the toy world or from real files."""

import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import cycle, pairwise
from pathlib import Path

import numpy as np

from lofi.config import DataConfig
from lofi.data.annotations import TrimmedClip, Video, read_annotations, segments_as_clips
from lofi.data.clips import read_clip_list
from lofi.data.features import FeatureHeader
from lofi.data.reading import ClipReader, ClipRequest
from lofi.data.snippets import Augmentation, Grid
from lofi.data.video import VideoInfo
from lofi.fidelity import Fidelity

log = logging.getLogger(__name__)
BACKGROUND = "(background)"  # label of what lies between the segments
MOST_BACKGROUND = 3
SHORTEST = 0.2  # of the median segment: shorter gaps show too little to be called background
HELD_OUT = 5  # annotations without subsets: every fifth video, by id, is a test video


@dataclass(frozen=True)
class Datasets:
    """What a run trains and tests on."""

    train: tuple[Video, ...]  # annotated; a media file is not needed for features and evaluation
    test: tuple[Video, ...]
    clips: tuple[TrimmedClip, ...]  # trimmed source clips
    annotations: Path  # what `lofi evaluate` reads
    classes: tuple[str, ...]  # all labels, sorted; a class index is a position in it
    videos: str = ""  # folder of the media files
    clips_missing: tuple[str, ...] = ()  # of a Kinetics list: clips without a file

    @property
    def segments(self) -> tuple[TrimmedClip, ...]:
        """The labelled segments of the training videos as trimmed clips (ACP+)."""
        return tuple(segments_as_clips(self.train))

    def with_files(self, videos: Sequence[Video]) -> list[Video]:
        """The videos that have a media file (ValueError: none has); the others are counted."""
        found = [video for video in videos if video.path is not None]
        if not found:
            where = f" in {self.videos}" if self.videos else ""
            reason = f"none of {len(videos)} videos of {self.annotations} has a file{where}"
            raise ValueError(f"{reason}; set data.videos to their folder")
        if len(found) < len(videos):
            text = "%d of %d videos have no file (first: %s); they are left out here and count as "
            lost = [video.id for video in videos if video.path is None]
            log.warning(text + "missed in evaluation", len(lost), len(videos), lost[0])
        return found


def open_datasets(data: DataConfig, seed: int, run_dir: str | Path) -> Datasets:
    """Read (or, for a toy world, first render) the data of a run.

    A toy world is verified and read again only when one of its files has changed since.
    ValueError, FileNotFoundError: a path is missing, a file unreadable, or settings contradict.
    """
    if data.annotations or data.videos or data.source or not data.preset:
        return _read.__wrapped__(data, seed, run_dir)
    folder = Path(data.world or Path(run_dir) / "world")
    names = [Path(place, name) for place, _, found in os.walk(folder) for name in found]
    files = [(p, os.stat(p)) for p in names if p.name[0] != "." and p.exists()]
    stamp = sorted((str(p), s.st_size, s.st_mtime_ns, s.st_ctime_ns) for p, s in files)
    return _read(data, seed, run_dir, tuple(stamp))


@lru_cache(maxsize=4)
def _read(data: DataConfig, seed: int, run_dir: str | Path, stamp: tuple = ()) -> Datasets:
    data = _with_world(data, seed, Path(run_dir))
    folder = data.videos if data.videos and Path(data.videos).is_dir() else None
    videos = read_annotations(data.annotations, video_dir=folder)  # features need no videos
    if all(video.subset is None for video in videos):
        log.warning("the annotations name no subsets: every %dth video is held out", HELD_OUT)
        subsets = [data.train_subset] * (HELD_OUT - 1) + [data.test_subset]
        ordered = sorted(videos, key=lambda video: video.id)
        videos = [replace(v, subset=subset) for v, subset in zip(ordered, cycle(subsets))]
    used = [v for v in videos if v.subset in (data.train_subset, data.test_subset)]
    if not used:
        wanted = f"{data.train_subset!r} or {data.test_subset!r}"
        found = ", ".join(sorted({str(v.subset) for v in videos}))
        cure = "Set data.train_subset and data.test_subset"
        raise ValueError(f"{data.annotations}: no video in subset {wanted}; found: {found}. {cure}")
    train = tuple(v for v in used if v.subset == data.train_subset and v.segments)
    lost: list[str] = []
    if data.source == "segments":
        clips = segments_as_clips(train)
    elif data.source == "segments+background":
        clips = with_background(train)
    else:
        clips = read_clip_list(data.source, lost) if data.source else []
    test = tuple(v for v in used if v.subset == data.test_subset)
    classes = tuple(sorted({segment.label for video in used for segment in video.segments}))
    found = train, test, tuple(clips), Path(data.annotations), classes
    return Datasets(*found, data.videos, tuple(lost))


def with_background(videos: Sequence[Video]) -> list[TrimmedClip]:
    """The segments of the videos and the gaps between them (`BACKGROUND`) as trimmed clips.

    Both are cut into pieces of about the median segment's length, so that an epoch sees every part
    of a video about equally often; of background there are at most `MOST_BACKGROUND` times as many,
    spread evenly. Videos without file or duration are left out.
    """
    shown = [video for video in videos if video.path is not None and video.duration_s]
    found = segments_as_clips(shown)
    if not found:
        return []
    lengths = sorted(clip.end_s - clip.start_s for clip in found)
    piece = lengths[len(lengths) // 2]
    for video in shown:
        now = 0.0
        for clip in [*sorted(segments_as_clips([video]), key=lambda c: c.start_s), None]:
            start = video.duration_s if clip is None else clip.start_s
            if start - now > SHORTEST * piece:
                found.append(TrimmedClip(video.path, BACKGROUND, now, start))
            now = max(now, start if clip is None else clip.end_s)
    pieces = []
    for clip in found:
        count = max(1, round((clip.end_s - clip.start_s) / piece))
        lines = np.linspace(clip.start_s, clip.end_s, count + 1).tolist()
        pieces += [replace(clip, start_s=a, end_s=b) for a, b in pairwise(lines)]
    empty = [piece for piece in pieces if piece.label == BACKGROUND]
    pieces = [piece for piece in pieces if piece.label != BACKGROUND]
    count = min(len(empty), MOST_BACKGROUND * len(pieces))
    return pieces + [empty[i] for i in np.linspace(0, len(empty) - 1, count).astype(int)]


def _with_world(data: DataConfig, seed: int, run_dir: Path) -> DataConfig:
    """The paths of given annotations, else of the toy world, which is rendered when absent."""
    if data.annotations:
        if data.world:
            both = f"data.annotations {data.annotations} and data.world {data.world}"
            raise ValueError(f"{both} contradict each other; give one of them")
        return data
    own = [name for name in ("videos", "source") if getattr(data, name)]
    own += ["features.folder"] * bool(data.features.folder)
    if not data.preset or (own and not data.world):
        found = "data.annotations is not set" + (f", but data.{own[0]} is" if own else "")
        raise ValueError(f"{found}: give the annotation file of your data set")
    from lofi.data.toyworld import WORLDS, write_world

    folder = Path(data.world) if data.world else run_dir / "world"
    if data.preset not in WORLDS:
        raise ValueError(f"unknown toy world {data.preset!r}; known: {', '.join(WORLDS)}")
    if not (data.world and (folder / "manifest.json").exists()):
        write_world(folder, WORLDS[data.preset], seed)
    videos = data.videos or str(folder / "videos")
    source = data.source or str(folder / "source.csv")
    return replace(data, annotations=str(folder / "annotations.json"), videos=videos, source=source)


def open_reader(data: DataConfig) -> ClipReader:
    """What decodes the clips of a run: threads with a cache, or child processes with a limit."""
    workers = data.workers if data.workers > 1 else 0  # one worker: the thread that prefetches
    if data.decode_limit_s:
        return ClipReader(workers, processes=True, limit_s=data.decode_limit_s)
    return ClipReader(workers, cache_bytes=int(data.cache_gib * 2**30))


def video_grid(data: DataConfig, info: VideoInfo, full: Fidelity) -> Grid:
    """Where the snippets of one video lie: L of a whole one, else one every few frames."""
    names = ("frame_stride", "rule", "resample_fps", "window_stride")
    sampled = {name: getattr(data, name) for name in names} | asdict(full)
    return FeatureHeader(num_frames=info.num_frames, fps=info.fps, **sampled).grid()


def video_request(
    data: DataConfig, path: str | Path, fidelity: Fidelity,
    augmentation: Augmentation | None = None, grid: Grid | None = None,
) -> ClipRequest:  # fmt: skip
    """How the configuration cuts the snippets of one video, or of the window that is `grid`."""
    span = None
    if grid is not None and grid.stride:
        first = grid.first_frame + math.floor(grid.offset_s * grid.fps + 1e-6)
        span = first, first + round(grid.length_s * grid.fps)
    elif data.rule == "window":
        raise ValueError("data.rule window needs the frames between two: set data.window_stride")
    cut = data.frame_stride, data.rule, data.crop_ratio
    return ClipRequest(path, fidelity, *cut, augmentation, data.resample_fps, span, data.squeeze)


def fingerprint(items: Sequence[Video | TrimmedClip]) -> str:
    """Hash of what is trained on (names, labels, times), independent of where the files lie."""
    rows = []
    for item in items:
        if isinstance(item, Video):
            rows.append([item.id, [[s.start_s, s.end_s, s.label] for s in item.segments]])
        else:
            rows.append([item.path.name, item.label, item.start_s, item.end_s])
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]
