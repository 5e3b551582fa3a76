"""Detections of videos: the type, how they are made from maps, and the files they are kept in.

JSON is the format of the ActivityNet challenge (seconds, ids without the prefix `v_`), with the
post-processing recorded under `external_data`; CSV is for spreadsheets, .srt for video players.
Floats are written in full precision: rounded scores create ties, and ties change mAP.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from lofi.files import from_cell, printable, read_json, to_cell, write_text

CSV_HEADER = ["video", "start_s", "end_s", "label", "score"]
NO_MARKUP = str.maketrans("<>{}", "‹›()")  # players take these for tags


class Detection(NamedTuple):
    """One found action: [start_s, end_s) in seconds; label "" when the class is not known."""

    start_s: float
    end_s: float
    label: str
    score: float

    @property
    def segment(self) -> tuple[float, float]:
        """(start_s, end_s)."""
        return (self.start_s, self.end_s)


Detections = Mapping[str, Sequence[Detection]]  # video id -> its detections


def write_detections(
    path: str | Path, detections: Detections, post_processing: Any = None, version: str = "lofi",
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
    head, tail = json.dumps(version), json.dumps(external, allow_nan=False)
    text = f'{{"version": {head},\n"results": {{\n{body}\n}},\n"external_data": {tail}}}\n'
    write_text(path, text)


def read_detections(path: str | Path) -> dict[str, list[Detection]]:
    """Read detections or proposals from ActivityNet-format JSON or from our CSV (by suffix).

    Errors name the file, the entry and what was expected, in one line."""
    if Path(path).suffix.lower() == ".csv":
        return _read_csv(Path(path))
    content = read_json(path, "detections in ActivityNet format")
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict):
        raise ValueError(
            f'{path}: no "results"; expected {{"version", "results": {{id: [{{"label", "score", '
            '"segment"}]}, "external_data"}'
        )
    found: dict[str, list[Detection]] = {}
    for video, entries in results.items():
        found[video] = mine = []
        try:
            for e in entries:
                start, end = map(float, e["segment"])
                mine.append(Detection(start, end, e.get("label", ""), float(e["score"])))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ValueError(
                f"{path}: video {video}, entry {len(mine)} is malformed; expected "
                '{"label": name, "score": number, "segment": [start_s, end_s]}'
            ) from None
    return found


def write_csv(path: str | Path, detections: Detections) -> None:
    """Write one row per detection: video, start_s, end_s, label, score; see `to_cell`."""
    lines: list[str] = []
    rows = csv.writer(SimpleNamespace(write=lambda line: lines.append(line[:-2])))  # quotes \\r too
    rows.writerow(CSV_HEADER)
    for video, found in detections.items():
        rows.writerows(map(to_cell, (video, *d)) for d in found)
    write_text(path, "\n".join([*lines, ""]))


def _read_csv(path: Path) -> dict[str, list[Detection]]:
    names = ",".join(CSV_HEADER)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (expected detections, {names})")
    found: dict[str, list[Detection]] = {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        if (header := next(rows, [])) != CSV_HEADER:
            raise ValueError(f"{path}: header is {','.join(header)!r}; expected {names!r}")
        for row in rows:
            try:
                video, start, end, label, score = map(from_cell, row)
                detection = Detection(float(start), float(end), label, float(score))
            except ValueError:
                line = f"{path}: line {rows.line_num} is {','.join(row)!r}"
                raise ValueError(f"{line}; expected {names} with numbers") from None
            found.setdefault(video, []).append(detection)
    return found


def write_srt(path: str | Path, detections: Sequence[Detection], min_score: float = 0.0) -> int:
    """Write subtitles of one video: a cue per detection with score >= `min_score`, by start time.

    Times before 0 become 0; a cue lasts at least 1 ms. Returns the number of cues.
    """
    chosen = sorted((d for d in detections if d.score >= min_score), key=lambda d: d[:2])
    cues = []
    for number, d in enumerate(chosen, 1):
        for seconds in d[:2]:
            if not math.isfinite(seconds):
                raise ValueError(f"a detection has the time {seconds}; expected seconds")
        start, end = (max(0, round(seconds * 1000)) for seconds in d[:2])
        times = f"{_clock(start)} --> {_clock(max(end, start + 1))}"
        label = printable(" ".join(d.label.split())).translate(NO_MARKUP) or "action"
        cues.append(f"{number}\n{times}\n{label} ({d.score:.2f})\n")
    write_text(path, "\n".join(cues))
    return len(cues)


def _clock(milliseconds: int) -> str:
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d},{milliseconds:03d}"
