"""The annotation formats themselves: text of a file in, one `Record` a video out.

Reading is strict about what no reader can live with and keeps everything else; see
`lofi.data.annotations.read_annotations`, the function to call.
"""

import csv
import io
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

FORMATS = ("auto", "activitynet", "bsn", "hacs", "thumos14", "csv")
EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov")  # in order of preference


@dataclass
class Record:
    """A video while its file is being read; `segments` are (start_s, end_s, label)."""

    id: str
    file_name: str = ""  # where the file names the media file itself
    duration_s: float | None = None
    fps: float | None = None
    subset: str | None = None
    segments: list[tuple[float, float, str]] = field(default_factory=list)


def read_records(path: Path, format: str, keep_ambiguous: bool) -> list[Record]:
    """Read any known format; see `lofi.data.annotations.read_annotations`."""
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    text = read_text(path)
    if text.lstrip()[:1] in ("{", "["):
        records = _read_json(path, text, format)
    elif path.suffix.lower() == ".json":
        raise ValueError(f"{path}: not JSON (expected annotations); restore or download it again")
    elif format == "thumos14" or (format == "auto" and "type_idx" in text.lstrip().split("\n")[0]):
        records = _read_thumos14(path, text, keep_ambiguous)
    elif format in ("auto", "csv"):
        records = _read_csv(path, text)
    else:
        raise ValueError(f"{path}: not JSON (expected format {format!r}); check path and format")
    if not records:
        raise ValueError(f"{path}: no videos in it (expected annotations); restore the file")
    for record in records:
        check_video_id(record.id, str(path))
    return records


def check_video_id(video_id: str, where: str) -> str:
    """Return an id that is safe to look for in a folder.

    Raises:
        ValueError: empty, or it could lead out of the folder (separators, `..`).
    """
    if not video_id:
        raise ValueError(f"{where}: empty video id; fill it in or remove the entry")
    if any(bad in video_id for bad in ("/", "\\", "..", "\0")):
        raise ValueError(
            f"{where}: video id {video_id!r} contains a path separator or '..'; ids are plain "
            "names, files are looked for in the video folder"
        )
    return video_id


def read_text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (expected annotations); check the path")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    if not text.strip():
        raise ValueError(f"{path}: the file is empty (expected annotations); restore it")
    return text


def number(value: Any, where: str, *, minimum: float = 0.0) -> float:
    """A finite number of at least `minimum`; strings are parsed (THUMOS14, HACS)."""
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where} is {value!r}, expected a number; correct it")
    if number < minimum:
        raise ValueError(f"{where} is {value}, expected at least {minimum:g}; correct it")
    return number


# ---------------------------------------------------------------------------- JSON


def _read_json(path: Path, text: str, format: str) -> list[Record]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if len(made) < len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))
            raise _Duplicate(twice)
        return made

    try:
        content = json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: not JSON at line {error.lineno} (expected annotations); restore it"
        ) from None
    except _Duplicate as error:
        raise ValueError(f"{path}: {error.args[0]!r} appears twice; keep one entry") from None
    if isinstance(content, dict) and isinstance(content.get("database"), dict):
        if format in ("auto", "activitynet", "hacs", "thumos14"):
            return [_entry(path, key, value) for key, value in content["database"].items()]
    elif format in ("auto", "bsn") and _looks_like_bsn(content):
        return _read_bsn(path, content)
    wanted = "an ActivityNet, HACS, THUMOS14 or BSN annotation file"
    raise ValueError(
        f"{path}: JSON, but not {wanted if format == 'auto' else f'of format {format!r}'} "
        '(expected {"database": {id: {"annotations": ...}}}); check path and format'
    )


class _Duplicate(Exception):
    pass


def _looks_like_bsn(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(isinstance(v, dict) and "duration_second" in v for v in content.values())
    )


def _entry(path: Path, video_id: str, value: Any) -> Record:
    """One video of an ActivityNet-like database; HACS and THUMOS14 write numbers as strings."""
    where = f"{path}: video {video_id!r}"
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {type(value).__name__}, expected an object; correct it")
    duration = value.get("duration")
    seconds = number(duration, f"{where}: duration") if duration is not None else 0.0
    subset = value.get("subset")
    return Record(
        video_id,
        duration_s=seconds or None,
        subset=None if subset is None else str(subset),
        segments=_segments(value.get("annotations") or [], where),
    )


def _segments(annotations: Any, where: str) -> list[tuple[float, float, str]]:
    segments = []
    for i, entry in enumerate(annotations):
        here = f"{where}: annotation {i}"
        if not isinstance(entry, dict) or "segment" not in entry or "label" not in entry:
            raise ValueError(f"{here} lacks 'segment' or 'label'; correct it")
        times = entry["segment"]
        if not isinstance(times, list) or len(times) != 2:
            raise ValueError(f"{here}: segment is {times!r}, expected [start, end]; correct it")
        start, end = (number(t, f"{here}: {n}") for t, n in zip(times, ("start", "end")))
        segments.append((start, end, str(entry["label"])))
    return segments


def _read_bsn(path: Path, content: dict[str, Any]) -> list[Record]:
    """The derivative of ActivityNet: ids with `v_`, no subsets (they stand in a CSV beside)."""
    info: dict[str, dict[str, str]] = {}
    table = path.with_name("video_info_new.csv")
    if table.is_file():
        info = {
            row["video"]: row for _, row in table_rows(table, read_text(table), ("video", "subset"))
        }
    else:
        logger.warning("%s: no %s beside it, so no subsets", path, table.name)
    prefixed = all(key.startswith("v_") for key in content)
    records = []
    for key, value in content.items():
        where = f"{path}: video {key!r}"
        row = info.get(key, {})
        fps = number(row["fps"], f"{table}: fps of {key!r}") if row.get("fps") else 0.0
        records.append(
            Record(
                key.removeprefix("v_") if prefixed else key,
                duration_s=number(value["duration_second"], f"{where}: duration_second") or None,
                fps=fps or None,
                subset=row.get("subset") or None,
                segments=_segments(value.get("annotations") or [], where),
            )
        )
    return records


# ---------------------------------------------------------------------------- tables


class Row(NamedTuple):
    line: int
    cells: dict[str, str]


def table_rows(path: Path, text: str, required: Sequence[str]) -> list[Row]:
    """Rows of a table with a header; separated by commas, or semicolons or tabs in the header."""
    first = text.lstrip().splitlines()[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    rows, header = [], None
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if header is None:
                header = [cell.lower() for cell in cells]
                if missing := [name for name in required if name not in header]:
                    raise ValueError(
                        f"{path}: no column {', '.join(missing)} (found: {', '.join(header)}); "
                        f"the header must name {', '.join(required)}"
                    )
                continue
            if len(cells) > len(header) and any(cells[len(header) :]):
                raise ValueError(
                    f"{path}: line {reader.line_num} has {len(cells)} cells, the header "
                    f"{len(header)}; quote cells that contain {delimiter!r}"
                )
            cells += [""] * (len(header) - len(cells))
            rows.append(Row(reader.line_num, dict(zip(header, cells))))
    except csv.Error as error:
        raise ValueError(f"{path}: not a table at line {reader.line_num} ({error})") from None
    if delimiter == ";":  # decimal commas, as spreadsheets of many countries write
        rows = [Row(n, {k: _decimal_point(v) for k, v in cells.items()}) for n, cells in rows]
    return rows


def _decimal_point(cell: str) -> str:
    whole, comma, fraction = cell.partition(",")
    return f"{whole}.{fraction}" if comma and (whole + fraction).isdigit() else cell


def _read_thumos14(path: Path, text: str, keep_ambiguous: bool) -> list[Record]:
    """G-TAD's tables; the subset is part of the id (video_validation_…, video_test_…)."""
    records: dict[str, Record] = {}
    for line, row in table_rows(path, text, ("video", "type", "start", "end")):
        where = f"{path}: line {line}"
        subset = next((s for s in ("validation", "test") if f"_{s}_" in row["video"]), None)
        record = records.setdefault(row["video"], Record(row["video"], subset=subset))
        if row["type"] != "Ambiguous" or keep_ambiguous:
            start, end = (number(row[name], f"{where}: {name}") for name in ("start", "end"))
            record.segments.append((start, end, row["type"]))
    return list(records.values())


def _read_csv(path: Path, text: str) -> list[Record]:
    records: dict[str, Record] = {}
    for line, row in table_rows(path, text, ("video", "start_s", "end_s", "label")):
        where = f"{path}: line {line}"
        name = check_video_id(row["video"], where)
        stem, suffix = os.path.splitext(name)
        video_id = stem if suffix.lower() in EXTENSIONS else name
        record = records.setdefault(video_id, Record(video_id))
        if name != video_id:
            if record.file_name not in ("", name):
                raise ValueError(
                    f"{where}: {name!r} and {record.file_name!r} would share the id {video_id!r}; "
                    "rename one of the files"
                )
            record.file_name = name
        for field_name in ("subset", "duration_s", "fps"):
            _set_once(record, field_name, row.get(field_name), where)
        if not (row["start_s"] or row["end_s"] or row["label"]):
            continue  # a video without any action
        if not row["label"]:
            raise ValueError(f"{where}: no label; fill it in, or empty start_s and end_s as well")
        start, end = (number(row[name], f"{where}: {name}") for name in ("start_s", "end_s"))
        if start > end:
            raise ValueError(
                f"{where}: the segment is reversed (start {start:g} > end {end:g}); swap the times"
            )
        record.segments.append((start, end, row["label"]))
    return list(records.values())


def _set_once(record: Record, name: str, cell: str | None, where: str) -> None:
    """Take a cell that describes the whole video; every row of it must say the same."""
    if not cell:
        return
    value = cell if name == "subset" else number(cell, f"{where}: {name}")
    earlier = getattr(record, name)
    if earlier not in (None, value):
        raise ValueError(
            f"{where}: {name} of video {record.id!r} is {value}, an earlier line says {earlier}; "
            "two videos with one id? correct one of them"
        )
    setattr(record, name, value)
