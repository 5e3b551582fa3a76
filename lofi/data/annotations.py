"""What happens when in which video: annotation files in, `Video` objects out.

Formats: ActivityNet-1.3 (official JSON, and the derivative that BSN, BMN and G-TAD read), HACS
Segments 1.1.1, THUMOS14, and an own CSV with the columns video, start_s, end_s, label. Times are
seconds, labels stay as they are written. Files are checked for what no reader can live with (not
a number, negative, ids that are paths); what real files do contain, such as zero-length segments,
is read as it is and reported by `lofi.data.check_dataset`.
"""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lofi.data.formats import (
    EXTENSIONS,
    check_video_id,
    number,
    read_records,
    read_text,
    table_rows,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Segment:
    """An annotated action, [start_s, end_s) in seconds."""

    start_s: float
    end_s: float
    label: str


@dataclass(frozen=True)
class Video:
    """One untrimmed video, or a window of one, and its annotations.

    Args:
        id: without the `v_` that media and feature files of ActivityNet carry.
        path: of the media file, None when it was not found or not looked for.
        duration_s: as annotated; the decoded one (`probe`) counts for training.
        fps: as annotated, None when the file does not say.
        subset: as written in the file ("training", "validation", ...), None when it does not say.
        segments: in the order of the file; of a window relative to its beginning.
        span: frames [first, end) of a window (`lofi.data.windows`); None = the whole video.
    """

    id: str
    path: Path | None
    duration_s: float | None
    fps: float | None
    subset: str | None
    segments: tuple[Segment, ...]
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class TrimmedClip:
    """A piece of video that shows one action: the whole file, or [start_s, end_s) of it."""

    path: Path
    label: str
    start_s: float | None = None
    end_s: float | None = None
    subset: str | None = None


def read_annotations(
    path: str | Path,
    format: str = "auto",
    video_dir: str | Path | None = None,
    *,
    keep_ambiguous: bool = False,
) -> list[Video]:
    """Read an annotation file; videos come in the order of the file.

    Args:
        path: JSON or CSV, UTF-8.
        format: "auto" decides by the content. "activitynet" and "hacs": {"database": {id: ...}}.
            "bsn": `anet_anno_action.json`; subsets and frame rates come from
            `video_info_new.csv` beside it. "thumos14": `val_Annotation.csv`,
            `test_Annotation.csv` or `thumos_gt.json`. "csv": the own format; optional columns
            subset, duration_s, fps; a row without times and label is a video without action;
            semicolons or tabs may separate; `video` is an id or a file name.
        video_dir: folder that is searched for the media files, with one level of sub-folders.
        keep_ambiguous: THUMOS14 tables mark unclear stretches "Ambiguous"; they are dropped
            unless this is set. A video with nothing else stays, without segments.
    Raises:
        FileNotFoundError: no such file or `video_dir`.
        ValueError: the file or an entry is unusable; says where.
    """
    records = read_records(Path(path), format, keep_ambiguous)
    files = index_videos(video_dir) if video_dir is not None else {}
    return [
        Video(
            id=record.id,
            path=files.get(record.file_name) or find_in_index(record.id, files),
            duration_s=record.duration_s,
            fps=record.fps,
            subset=record.subset,
            segments=tuple(Segment(*segment) for segment in record.segments),
        )
        for record in records
    ]


def class_names(videos: Iterable[Video]) -> list[str]:
    """All labels, sorted; a class index is a position in this list."""
    return sorted({segment.label for video in videos for segment in video.segments})


def segments_as_clips(videos: Iterable[Video]) -> list[TrimmedClip]:
    """Segments of positive length of the videos that have a file, as trimmed clips (ACP+)."""
    return [
        TrimmedClip(video.path, segment.label, segment.start_s, segment.end_s)
        for video in videos
        if video.path is not None
        for segment in video.segments
        if segment.end_s > segment.start_s
    ]


def read_clip_list(path: str | Path) -> list[TrimmedClip]:
    """Trimmed clips for action classification (ACP).

    Args:
        path: a folder with one sub-folder of videos a class; or a CSV with the columns clip and
            label (optional start_s, end_s, subset), clips relative to the CSV's folder; or a
            Kinetics CSV (label, youtube_id, time_start, time_end, split) beside the crawler's
            class folders, `<label>/<id>_<start>_<end>.mp4` (or TSM's, `<id>_<start>`); clips
            without a file are left out.
    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: nothing in it, or a row is unusable; says which line.
    """
    path = Path(path)
    if path.is_dir():
        clips = [
            TrimmedClip(file, folder.name)
            for folder in sorted(path.iterdir())
            if folder.is_dir()
            for file in sorted(folder.iterdir())
            if file.suffix.lower() in EXTENSIONS
        ]
        if not clips:
            raise ValueError(f"{path}: no videos in sub-folders (expected one folder a class)")
        return clips
    text = read_text(path)
    if "youtube_id" in text.lstrip().split("\n")[0]:
        return _kinetics_clips(path, text)
    clips = []
    for line, row in table_rows(path, text, ("clip", "label")):
        where = f"{path}: line {line}"
        name = Path(row["clip"].replace("\\", "/"))
        if not row["clip"] or not row["label"]:
            raise ValueError(f"{where}: clip or label is empty; fill it in or remove the line")
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(f"{where}: clip {row['clip']!r} must lie below the list's folder")
        times = [
            number(row[column], f"{where}: {column}") if row.get(column) else None
            for column in ("start_s", "end_s")
        ]
        if None not in times and times[0] >= times[1]:
            raise ValueError(f"{where}: the clip ends before it starts ({times[0]}, {times[1]})")
        clips.append(
            TrimmedClip(path.parent / name, row["label"], *times, row.get("subset") or None)
        )
    if not clips:
        raise ValueError(f"{path}: no clips in it (expected rows clip,label); restore the file")
    return clips


def _kinetics_clips(path: Path, text: str) -> list[TrimmedClip]:
    """Clips as the crawler of ActivityNet or the tools of TSM name them, and below which folders.

    Crawler: `<label>/<id>_<start, 6 digits>_<end, 6 digits>`. TSM: `<id>_<start>` in a folder whose
    name has underscores for spaces and neither quotes nor parentheses.
    """
    rows = table_rows(path, text, ("label", "youtube_id", "time_start", "time_end"))
    clips = []
    for line, row in rows:
        where = f"{path}: line {line}"
        video_id = check_video_id(row["youtube_id"], where)
        label = check_video_id(row["label"], where)
        start, end = (int(number(row[n], f"{where}: {n}")) for n in ("time_start", "time_end"))
        plain = label.replace(" ", "_")
        folders = (label, plain, plain.translate(str.maketrans("", "", "\"'()")))
        names = (f"{start:06d}_{end:06d}", f"{start:06d}", f"{start}")
        found = (
            _media_of(path.parent / folder).get(f"{video_id}_{name}")
            for folder in dict.fromkeys(folders)
            for name in names
        )
        if clip := next(filter(None, found), None):
            clips.append(TrimmedClip(clip, label, subset=row.get("split") or None))
    _media_of.cache_clear()  # the next call looks again
    if not clips:
        raise ValueError(
            f"{path}: none of {len(rows)} clips is below {path.parent} (expected "
            "<label>/<id>_<start>_<end>.mp4); move the list beside the class folders"
        )
    if len(clips) < len(rows):
        logger.warning("%s: %d of %d clips have a file", path, len(clips), len(rows))
    return clips


@lru_cache(maxsize=2048)
def _media_of(folder: Path) -> dict[str, Path]:
    """Media files of one folder by name without extension; {} when there is no such folder."""
    if not folder.is_dir():
        return {}
    files = sorted(folder.iterdir(), reverse=True)
    return {file.stem: file for file in files if file.suffix.lower() in EXTENSIONS}


def index_videos(video_dir: str | Path) -> dict[str, Path]:
    """Media files of a folder and its direct sub-folders (HACS: one a class), by name.

    Keys are file names with and without extension; the upper folder and earlier `EXTENSIONS` win.

    Raises:
        FileNotFoundError: no such folder.
    """
    folder = Path(video_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder (expected videos); check the path")
    upper = sorted(os.scandir(folder), key=lambda entry: entry.name)
    folders = [entry for entry in upper if entry.is_dir()]
    lower = [e for f in folders for e in sorted(os.scandir(f.path), key=lambda e: e.name)]
    found: dict[str, Path] = {}
    for level in (upper, lower):
        for extension in EXTENSIONS:
            for entry in level:
                stem, suffix = os.path.splitext(entry.name)
                if suffix.lower() == extension and entry.is_file():
                    found.setdefault(stem, Path(entry.path))
                    found.setdefault(entry.name, Path(entry.path))
    return found


def find_video_file(video_id: str, video_dir: str | Path) -> Path | None:
    """The media file of a video, named `<id>` or `v_<id>` with one of `EXTENSIONS`, or None.

    Raises:
        ValueError: the id could lead out of the folder.
        FileNotFoundError: no such folder.
    """
    check_video_id(video_id, str(video_dir))
    return find_in_index(video_id, index_videos(video_dir))


def find_in_index(video_id: str, files: dict[str, Path]) -> Path | None:
    """Look a video up in the result of `index_videos`, with and without `v_`."""
    return files.get(video_id) or files.get(f"v_{video_id}")
