"""What happens when in which video: annotation files in, `Video` objects out.

Formats: ActivityNet-1.3 (official JSON, and the derivative that BSN, BMN and G-TAD read), HACS
Segments 1.1.1, THUMOS14, and an own CSV with the columns video, start_s, end_s, label. Times are
seconds, labels stay as they are written. Files are checked for what no reader can live with (not
a number, negative, ids that are paths); what real files do contain, such as zero-length segments,
is read as it is and reported by `lofi.data.check_dataset`.
"""

import codecs
import logging
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from lofi.data.tables import Row, label_of, nfc, read_bytes, read_text, seconds, table_rows
from lofi.files import existing, parse_json

logger = logging.getLogger(__name__)

FORMATS = ("auto", "activitynet", "bsn", "hacs", "thumos14", "csv")
EXTENSIONS = (  # of videos, in order of preference
    *(".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg"),
    *(".vob", ".wmv", ".flv", ".f4v", ".3gp", ".ogv"),
)


@dataclass(frozen=True)
class Segment:
    """An annotated action, [start_s, end_s) in seconds."""

    start_s: float
    end_s: float
    label: str


@dataclass(frozen=True)
class Video:
    """One untrimmed video, or a window of one, and its annotations; None = not known."""

    id: str  # without the `v_` that media and feature files of ActivityNet carry
    path: Path | None  # of the media file
    duration_s: float | None  # as annotated; the decoded one (`probe`) counts for training
    fps: float | None  # as annotated
    subset: str | None  # as written in the file ("training", "validation", ...)
    segments: tuple[Segment, ...]  # in the order of the file; of a window from its beginning


@dataclass(frozen=True)
class TrimmedClip:
    """A piece of video that shows one action: the whole file, or [start_s, end_s) of it."""

    path: Path
    label: str
    start_s: float | None = None
    end_s: float | None = None
    subset: str | None = None


def read_annotations(
    path: str | Path, format: str = "auto", video_dir: str | Path | None = None, *,
    keep_ambiguous: bool = False,
) -> list[Video]:  # fmt: skip
    """Read an annotation file (JSON or CSV, UTF-8); videos come in the order of the file.

    Args:
        format: "auto" decides by the content. "activitynet" and "hacs": {"database": {id: ...}}.
            "bsn": `anet_anno_action.json`, with `video_info_new.csv` beside it. "thumos14":
            `val_Annotation.csv`, `test_Annotation.csv` or `thumos_gt.json`. "csv": the own format;
            optional columns subset, duration_s, fps; a row without times and label is a video
            without action; semicolons or tabs may separate; `video` is an id or a file name.
        video_dir: folder that is searched for the media files, with one level of sub-folders.
        keep_ambiguous: keep what THUMOS14 tables mark "Ambiguous"; videos stay in any case.
    FileNotFoundError: no such file or `video_dir`; ValueError: unusable, says where.
    """
    path = Path(path)
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    data = read_bytes(path)
    text = "" if data.lstrip(codecs.BOM_UTF8 + b" \t\r\n")[:1] in (b"{", b"[") else read_text(path)
    if not text:
        videos = _read_json(path, parse_json(data, path, "annotations"), format)
    elif path.suffix.lower() == ".json":
        raise ValueError(f"{path}: not JSON (expected annotations); restore or download it again")
    elif format in ("auto", "csv", "thumos14"):
        by_content = format == "auto" and "type_idx" in text.lstrip().split("\n")[0]
        videos = _read_table(path, text, format == "thumos14" or by_content, keep_ambiguous)
    else:
        raise ValueError(f"{path}: not JSON (expected format {format!r}); check path and format")
    if not videos:
        raise ValueError(f"{path}: no videos in it (expected annotations); restore the file")
    for video in videos:
        check_video_id(video.id, str(path))
    if video_dir is None and not any(video.path for video in videos):
        return videos
    files = index_videos(video_dir) if video_dir is not None else {}
    named = [video.path and files.get(nfc(video.path.name)) for video in videos]  # the file itself
    return [replace(v, path=file or find_in_index(v.id, files)) for v, file in zip(videos, named)]


def segments_as_clips(videos: Iterable[Video]) -> list[TrimmedClip]:
    """Segments of positive length of the videos that have a file, as trimmed clips (ACP+)."""
    return [
        TrimmedClip(video.path, segment.label, segment.start_s, segment.end_s)
        for video in videos
        if video.path is not None
        for segment in video.segments
        if segment.end_s > segment.start_s
    ]


def index_videos(video_dir: str | Path) -> dict[str, Path]:
    """Media files of a folder and its direct sub-folders (HACS: one a class), by name.

    Keys are file names, of media also without extension; the upper folder and earlier `EXTENSIONS`
    win. A name that a list gives in full is found whatever its extension.
    """
    name = attrgetter("name")
    upper = sorted(os.scandir(existing(video_dir, "videos", folder=True)), key=name)
    lower = [e for f in upper if f.is_dir() for e in sorted(os.scandir(f.path), key=name)]
    media = []  # (level, place of the extension, file)
    for level, entry in [(0, e) for e in upper] + [(1, e) for e in lower]:
        if (suffix := os.path.splitext(entry.name)[1].lower()) in EXTENSIONS and entry.is_file():
            media.append((level, EXTENSIONS.index(suffix), entry))
    found: dict[str, Path] = {}
    for *_, entry in sorted(media, key=lambda item: item[:2]):
        for key in (os.path.splitext(entry.name)[0], entry.name):
            found.setdefault(nfc(key), Path(entry.path))
    for entry in (*upper, *lower):
        if nfc(entry.name) not in found and entry.is_file():
            found[nfc(entry.name)] = Path(entry.path)
    return found


def find_in_index(video_id: str, files: dict[str, Path]) -> Path | None:
    """Look a video up in the result of `index_videos`, with and without `v_`."""
    return files.get(nfc(video_id)) or files.get(nfc(f"v_{video_id}"))


# ---------------------------------------------------------------------------- JSON


def _read_json(path: Path, content: Any, format: str) -> list[Video]:
    if isinstance(content, dict) and isinstance(content.get("database"), dict):
        if format in ("auto", "activitynet", "hacs", "thumos14"):
            return read_entries(path, content["database"])
    elif format in ("auto", "bsn") and isinstance(content, dict):
        entries = content.values()
        if entries and all(isinstance(v, dict) and "duration_second" in v for v in entries):
            prefix = "v_" if all(key.startswith("v_") for key in content) else ""
            table, info = path.with_name("video_info_new.csv"), {}
            if table.is_file():
                rows = table_rows(table, read_text(table), ("video", "subset"))
                info = {row["video"]: row for row in rows}
                if len(info) < len(rows):
                    raise ValueError(f"{table}: a video stands in two lines; keep one of them")
            else:
                logger.warning("%s: no %s beside it, so no subsets", path, table.name)
            return read_entries(path, content, "duration_second", prefix, info)
    known = "an ActivityNet, HACS, THUMOS14 or BSN annotation file"
    wanted = known if format == "auto" else f"of format {format!r}"
    shape = '(expected {"database": {id: {"annotations": ...}}})'
    raise ValueError(f"{path}: JSON, but not {wanted} {shape}; check path and format")


def read_entries(
    path: Path | str, entries: dict[str, Any], duration: str = "duration", prefix: str = "",
    info: Mapping[str, Row] = {},
) -> list[Video]:  # fmt: skip
    """One video an entry; HACS and THUMOS14 write numbers as strings.

    `duration` is the key of the seconds, `prefix` comes before ids, `info` has subsets and rates.
    """
    videos, wanted = [], {"annotations"}
    if any(isinstance(value, dict) and "subset" in value for value in entries.values()):
        wanted.add("subset")
    for key, value in entries.items():
        where = f"{path}: video {key!r}"
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {type(value).__name__}, expected an object; correct it")
        if missing := sorted(wanted - value.keys()):
            raise ValueError(f"{where} has no {missing[0]!r}, expected at least null; correct it")
        given, row = value.get(duration), info.get(key, {})
        length = None if given is None else seconds(given, f"{where}: {duration}") or None
        fps = row.number("fps") or None if row.get("fps") else None
        subset = row.get("subset") or value.get("subset")
        subset = None if subset is None else label_of(subset, f"{where}: subset")
        segments = []
        listed = value.get("annotations")
        if not isinstance(listed, list | tuple | None):
            raise ValueError(f"{where}: annotations are {listed!r:.50}, expected a list; fix it")
        for i, entry in enumerate(listed or ()):
            here = f"{where}: annotation {i}"
            if not isinstance(entry, dict) or "segment" not in entry or "label" not in entry:
                raise ValueError(f"{here} lacks 'segment' or 'label'; correct it")
            times = entry["segment"]
            if not isinstance(times, list | tuple) or len(times) != 2:
                raise ValueError(f"{here}: segment is {times!r:.50}, expected [start, end]; fix it")
            start, end = seconds(times[0], here, ": start"), seconds(times[1], here, ": end")
            segments.append(Segment(start, end, label_of(entry["label"], here, ": label")))
        videos.append(Video(key.removeprefix(prefix), None, length, fps, subset, tuple(segments)))
    return videos


# ---------------------------------------------------------------------------- tables


def _read_table(path: Path, text: str, thumos: bool, keep_ambiguous: bool) -> list[Video]:
    """The own format, or G-TAD's tables, whose subset is part of the id (video_validation_…).

    `path` of a video is the bare file name where the table gives one.
    """
    times, text_of = (("start", "end"), "type") if thumos else (("start_s", "end_s"), "label")
    videos: dict[str, Video] = {}
    cure = f", or run: lofi import {shlex.quote(str(path))} --videos FOLDER --out NEW.csv"
    for row in table_rows(path, text, ("video", *times, text_of), cure):
        name = check_video_id(row["video"], row.where)
        stem, suffix = os.path.splitext(name)
        video_id = stem if suffix.lower() in EXTENSIONS else name
        video = videos.get(video_id, Video(video_id, None, None, None, None, ()))
        news: dict[str, Any] = {}  # what this row says about the video
        if name != video_id:
            if video.path is not None and video.path.name != name:
                both = f"{name!r} and {video.path.name!r} would share the id {video_id!r}"
                raise ValueError(f"{row.where}: {both}; rename one of the files")
            news["path"] = Path(name)
        if thumos:
            row["subset"] = next((s for s in ("validation", "test") if f"_{s}_" in name), "")
        for column in ("subset", "duration_s", "fps"):
            if row.get(column):
                parse = {"subset": row.get, "duration_s": row.seconds, "fps": row.number}[column]
                value = parse(column)
                if (earlier := getattr(video, column)) not in (None, value):
                    found = f"{column} of video {video_id!r} is {value}, an earlier line says"
                    cure = "two videos with one id? correct one of them"
                    raise ValueError(f"{row.where}: {found} {earlier}; {cure}")
                news[column] = value
        label = nfc(row[text_of])
        given = label or any(row[n] for n in times)  # else a video without any action
        if given and not label:
            found = f"{row.where}: no label"
            raise ValueError(f"{found}; fill it in, or empty start_s and end_s as well")
        if given and (keep_ambiguous or not (thumos and label == "Ambiguous")):
            start, end = map(row.seconds, times)
            if start > end and not thumos:
                found = f"the segment is reversed (start {start:g} > end {end:g})"
                raise ValueError(f"{row.where}: {found}; swap the times")
            news["segments"] = (*video.segments, Segment(start, end, label))
        videos[video_id] = replace(video, **news)
    return list(videos.values())


def video_key(video_id: str) -> str:
    """What two files must share to mean one video: the id without `v_` and media suffix, in NFC."""
    key = nfc(video_id)
    stem, dot, suffix = key.rpartition(".")
    if stem and dot + suffix.lower() in EXTENSIONS:
        key = stem
    return key.removeprefix("v_") or key


def check_video_id(video_id: str, where: str) -> str:
    """The id itself, safe to look for in a folder; a ValueError for separators and `..`."""
    if not video_id:
        raise ValueError(f"{where}: empty video id; fill it in or remove the entry")
    if any(bad in video_id for bad in ("/", "\\", "..", "\0")):
        found = f"{where}: video id {video_id!r} contains a path separator or '..'"
        raise ValueError(f"{found}; ids are plain names, files are looked for in the video folder")
    return video_id
