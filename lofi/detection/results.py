"""Detections of videos: the type, how they are made from maps, and the files they are kept in.

JSON is the format of the ActivityNet challenge (seconds, ids without the prefix `v_`), with the
post-processing recorded under `external_data`; CSV is for spreadsheets, .srt for video players.
Floats are written in full precision: rounded scores create ties, and ties change mAP.
"""

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from lofi.data.tables import label_of, number, read_text, table_lines
from lofi.files import from_cell, parse_json, printable, read_json, to_cell, write_text

CSV_HEADER = ["video", "start_s", "end_s", "label", "score"]
NO_MARKUP = str.maketrans("<>{}", "‹›()")  # players take these for tags
PIECE = 2**16  # bytes read at a time
RESULTS = re.compile(rb'"results"\s*:\s*\{')
VIDEO_END = re.compile(rb'[}\[][ \t\r\n]*\]([ \t\r\n]*,)(?=[ \t\r\n]*")')  # while another follows


class Detection(NamedTuple):
    """One found action: [start_s, end_s) in seconds; label "" when the class is not known."""

    start_s: float
    end_s: float
    label: str
    score: float


Detections = Mapping[str, Sequence[Detection]]  # video id -> its detections


def shelves(segments: Sequence[Any]) -> list[int]:
    """Where segments are drawn: of each the first shelf on which it overlaps none before it."""
    found: list[int] = []
    for s in segments:
        before = zip(found, segments)
        taken = {n for n, b in before if s.start_s < b.end_s and b.start_s < s.end_s}
        found.append(min(set(range(len(segments))) - taken))
    return found


def write_detections(
    path: str | Path, detections: Detections, post_processing: Any = None,
    source: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write ActivityNet-format JSON, one video per line.

    `post_processing` (a JSON-able record, or an object with `to_json()`) and the entries of
    `source` (method, encoder, seed, where classes come from) go to `external_data`, which the
    official checker wants and does not look into; evaluation repeats them beside its numbers.
    """
    record = post_processing.to_json() if hasattr(post_processing, "to_json") else post_processing
    external = dict(source or {})
    if record is not None:
        external["post_processing"] = record
    lines = []
    for video, found in detections.items():
        entries = [
            ({"label": d.label} if d.label else {}) | {"score": d.score, "segment": list(d[:2])}
            for d in found
        ]
        lines.append(f"{json.dumps(video)}: {json.dumps(entries, allow_nan=False)}")
    body = ",\n".join(lines)
    tail = json.dumps(external, allow_nan=False)
    text = f'{{"version": "lofi",\n"results": {{\n{body}\n}},\n"external_data": {tail}}}\n'
    write_text(path, text)


def read_detections(path: str | Path, strict: bool = True) -> dict[str, list[Detection]]:
    """Read detections or proposals from ActivityNet-format JSON or from our CSV (by suffix).

    Errors name the file, the entry and what was expected, in one line; see `check_detections`."""
    if Path(path).suffix.lower() == ".csv":
        return _read_csv(Path(path), strict)
    return check_detections(read_results(path)["results"], str(path), strict=strict)


def is_detections(path: str | Path) -> bool:
    """Whether a file looks like what `read_detections` reads, rather than like annotations."""
    head = Path(path).read_bytes()[:2000] if Path(path).is_file() else b""
    return b'"results"' in head or head.startswith(b"video,start_s,end_s,label,score")


def read_results(path: str | Path) -> dict[str, Any]:
    """The JSON of a challenge, not looked into yet."""
    content = read_json(path, "detections in ActivityNet format")
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        form = '{"version", "results": {id: [...]}, "external_data"}'
        raise ValueError(f'{path}: no "results"; expected {form}')
    return content


class NotInPieces(Exception):
    """Only `read_results` can read this file, or say what is wrong with it."""


def read_pieces(path: str | Path) -> Iterator[dict[str, Any]]:
    """What `read_results` gives in pieces, each with the "results" of some more videos.

    A file of millions of detections is never in memory as a whole."""

    def parse(data: bytes) -> dict[str, Any]:
        return parse_json(data, path, "detections in ActivityNet format")

    seen: set[str] = set()
    try:
        with open(path, "rb") as file:
            data = file.read(PIECE)
            if (start := RESULTS.search(data)) is None:
                raise NotInPieces
            head, rest = parse(data[: start.end()] + b"}}"), data[start.end() :]
            yield head
            while more := file.read(max(PIECE, len(rest))):
                known, rest = len(rest), rest + more
                if end := VIDEO_END.search(rest, known):
                    some = parse(b"{" + rest[: end.start(1)] + b"}")  # fails beyond "results"
                    if not seen.isdisjoint(some):
                        raise NotInPieces
                    seen.update(some)
                    yield {"results": some}
                    rest = rest[end.end() :]
            tail = parse(b'{"results": {' + rest)
            if not seen.isdisjoint(tail["results"]) or len(head.keys() & tail.keys()) > 1:
                raise NotInPieces
            yield tail
    except (OSError, ValueError):
        raise NotInPieces from None


def check_detections(
    results: Mapping[str, Any], what: str, with_labels: bool = False, strict: bool = True
) -> dict[str, list[Detection]]:
    """Entries of JSON, or `Detection`s, by video; null is none.

    ValueError, with place and value: scores or times are no finite numbers, a segment ends before
    it starts (`strict`), a label is no text or (`with_labels`) missing.
    """
    found: dict[str, list[Detection]] = {}
    for video, entries in results.items():
        if not isinstance(entries, Sequence | None) or isinstance(entries, str):
            raise ValueError(f"{what}: video {video} is {entries!r:.60}, expected a list; fix it")
        found[video] = []
        for i, entry in enumerate(entries or ()):
            where = f"{what}: video {video}, entry {i}"
            try:
                cells = _cells(entry)
            except (KeyError, TypeError, ValueError):
                form = '"score": number, "segment": [start_s, end_s]}'
                form = ('{"label": name, ' if with_labels else "{") + form
                raise ValueError(f"{where} is {entry!r:.90}; expected {form}") from None
            if with_labels and not cells[2]:
                raise ValueError(f"{where} has no label; proposals are scored with: lofi recall")
            found[video].append(_detection(cells, where, strict))
    return found


def _cells(entry: Any) -> tuple:
    """start, end, label and score of an entry; KeyError, TypeError, ValueError: there are none."""
    if isinstance(entry, tuple) and len(entry) == 4:
        return entry
    if not isinstance(entry["segment"], list | tuple):
        raise TypeError
    start, end = entry["segment"]
    label = entry.get("label")
    return start, end, "" if label is None else label, entry["score"]


def _detection(cells: Sequence[Any], where: str, strict: bool) -> Detection:
    """start, end, label and score, checked."""
    start = number(cells[0], where, ": start", -math.inf)
    end = number(cells[1], where, ": end", -math.inf)
    label = cells[2] if cells[2] == "" else label_of(cells[2], where, ": label")
    if strict and start > end:
        found = f"{where}: the segment is reversed (start {start:g} > end {end:g})"
        raise ValueError(f"{found}; swap the times or drop it")
    return Detection(start, end, label, number(cells[3], where, ": score", -math.inf))


def write_csv(path: str | Path, detections: Detections) -> None:
    """Write one row per detection: video, start_s, end_s, label, score; see `to_cell`."""
    lines: list[str] = []
    rows = csv.writer(SimpleNamespace(write=lambda line: lines.append(line[:-2])))  # quotes \\r too
    rows.writerow(CSV_HEADER)
    for video, found in detections.items():
        rows.writerows(map(to_cell, (video, *d)) for d in found)
    write_text(path, "\n".join([*lines, ""]))


def _read_csv(path: Path, strict: bool) -> dict[str, list[Detection]]:
    header, lines = table_lines(path, read_text(path, "detections"), CSV_HEADER)
    video, *columns = map(header.index, CSV_HEADER)
    found: dict[str, list[Detection]] = {}
    for line, cells in lines:
        where = f"{path}: line {line}"
        if len(cells) <= max(video, *columns) or not cells[video]:
            raise ValueError(f"{where} lacks a cell; expected {','.join(CSV_HEADER)}")
        detection = _detection([from_cell(cells[i]) for i in columns], where, strict)
        found.setdefault(from_cell(cells[video]), []).append(detection)
    return found


def write_srt(path: str | Path, detections: Sequence[Detection]) -> int:
    """Write subtitles of one video: a cue per detection, by start time; returns their number.

    Times before 0 become 0; a cue lasts at least 1 ms.
    """
    cues = []
    for place, d in enumerate(sorted(detections, key=lambda d: d[:2]), 1):
        for seconds in d[:2]:
            if not math.isfinite(seconds):
                raise ValueError(f"a detection has the time {seconds}; expected seconds")
        start, end = (max(0, round(seconds * 1000)) for seconds in d[:2])
        times = f"{_clock(start)} --> {_clock(max(end, start + 1))}"
        label = printable(" ".join(d.label.split())).translate(NO_MARKUP) or "action"
        cues.append(f"{place}\n{times}\n{label} ({d.score:.2f})\n")
    write_text(path, "\n".join(cues))
    return len(cues)


def _clock(milliseconds: int) -> str:
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d},{milliseconds:03d}"
