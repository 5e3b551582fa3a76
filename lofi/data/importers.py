"""Labels out of the tools people label with, as rows of our own CSV (back: `exporters`).

A reader gives events in the time of its tool: seconds, or frames [first, last) from 0 at the rate
that the tool assumed. That rate is a trap (a tool counts 24 a second, the video has 29.97, and all
events drift), so frames become seconds only beside the video: where duration times rate and the
frames that are there differ, the file is refused with the command that remaps it. Browsers count
from the container's clock, whose first frame need not be at 0; our seconds begin with that frame.
"""

import json
import re
import shlex
import unicodedata
import xml.etree.ElementTree as xml
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from lofi.data import tables
from lofi.data.annotations import EXTENSIONS, index_videos
from lofi.data.video import probe, start_s
from lofi.files import existing, write_csv

TITLES = {
    "via": "VIA 3", "elan": "ELAN", "boris": "BORIS", "cvat": "CVAT for video",
    "label-studio": "Label Studio", "x-anylabeling": "X-AnyLabeling", "fiftyone": "FiftyOne",
    "audacity": "Audacity labels", "draft": "a language model's draft", "csv": "a table",
}  # fmt: skip
COLUMNS = ("video", "start_s", "end_s", "label", "subset", "duration_s", "fps", "source")
IN_BROWSER = ("via", "label-studio")  # they count from the container's clock
STUDIO_FPS = 24.0  # what Label Studio counts with until its project configuration says otherwise
MARKS = {  # what files of a tool hold, also when they are cut short; the first that fits
    "elan": r"<ANNOTATION_DOCUMENT",
    "cvat": r"<annotations\b",
    "x-anylabeling": r'"type"\s*:\s*"video_classification"',
    "via": r'"(anchor_id|fid_list)"',
    "boris": r'"(behaviors_conf|observations)"\s*:|'
    r"(?im:^[^{\n]*\bbehavior\b.*\b(behavior type|status)\b)",
    "label-studio": r'"(timelinelabels|completed_by)"',
    "fiftyone": r'"support"\s*:|TemporalDetection|"labels"\s*:\s*\{',
    "draft": r"^\s*[{[]|```",
    "audacity": r"^\s*-?[\d.,]+\t-?[\d.,]+(\t|\r?\n)",
    "csv": r"(?i)^[^\n]*\b(start|begin|onset|from|video|filename|label)",
}
NAMES = {  # of columns and keys, letters only; the first that is there
    "video": "video filename file videoname videoid videofile videopath mediafilename mediafile "
    "media clip filepath path",
    "start": "starts start starttime starttimes startsec startseconds begins begin begintime "
    "begintimessmsec begintimehhmmssms onset from tstart timestart startms begintimemsec",
    "end": "ends end endtime endtimes endsec endseconds stops stop stoptime endtimessmsec "
    "endtimehhmmssms offset to tend timeend endms endtimemsec",
    "length": "durations duration length durationms",
    "label": "label class classname action event behavior behaviour category activity annotation "
    "description text name",
}


class Event(NamedTuple):
    """[start, end) in the unit of its sheet; start = end is a point in time."""

    video: str  # as the tool names it; "" = the video that is called as the file is
    start: float
    end: float
    label: str
    draft: bool = False  # made by a model and not checked by anybody


@dataclass
class Sheet:
    """What a file says, in its tool's own time."""

    in_frames: bool = False  # else seconds
    events: list[Event] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)  # videos that were labelled as without events
    # What the file says about a video: fps, frames, seconds, subset.
    media: dict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    notes: list[str] = field(default_factory=list)  # what was not taken


class Imported(NamedTuple):
    """What `import_labels` wrote."""

    tool: str  # key of `TITLES`
    rows: list[tuple]  # cells of `COLUMNS`
    notes: list[str]  # for the user: rates, drafts, what was left out


def import_labels(
    path: str | Path, videos: str | Path, out: str | Path, tool: str = "", fps: float = 0.0,
    point_s: float = 0.0,
) -> Imported:  # fmt: skip
    """Read a labelling tool's file and write our CSV, which `read_annotations` reads.

    Args:
        videos: folder of the media files; each is opened, for its rate and its number of frames.
        tool: key of `TITLES`; "" guesses it from the content.
        fps: the rate that the tool counted with, where it is not the video's: frames are remapped.
        point_s: seconds that events without length get, centred; 0 refuses them.
    FileNotFoundError: file or folder. ValueError: unreadable, or rates or lengths contradict.
    """
    path, text = Path(path), _read(Path(path))
    tool = tool or guess(text, path)
    if tool not in TITLES:
        raise ValueError(f"unknown tool {tool!r}; known: {', '.join(TITLES)}")
    if not (fps >= 0 and point_s >= 0):
        raise ValueError(f"--fps {fps:g}, --point-length {point_s:g}: expected at least 0")
    try:
        sheet = READERS[tool](_parsed(text, tool))
        if not sheet.events and not sheet.empty:
            raise ValueError("it holds no events")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        reason = f"an entry is not as expected ({' '.join(str(error).split())})"
        if isinstance(error, KeyError):
            reason = f"an entry lacks {error}"
        elif isinstance(error, ValueError):
            reason = str(error)
        cure = "name another tool with --tool, or export it again"
        raise ValueError(f"{path}: taken for {TITLES[tool]}, but {reason}; {cure}") from None
    words = "lofi", "import", str(path), "--videos", str(videos), "--out", str(out), "--tool", tool
    try:
        rows, notes = _in_seconds(sheet, path.stem, tool, videos, fps, point_s, shlex.join(words))
    except ValueError as error:
        raise ValueError(f"{path}: {TITLES[tool]}, {error}") from None
    write_csv(out, [COLUMNS, *rows])
    return Imported(tool, rows, notes + sheet.notes)


def guess(text: str, path: str | Path) -> str:
    """The tool whose files look like this text (ValueError: none)."""
    if re.match(r'\s*\{.{0,2000}?"database"\s*:\s*\{', text, re.S):
        raise ValueError(f"{path}: ActivityNet's format, which needs no import; use it as it is")
    for tool, mark in MARKS.items():
        if re.search(mark, text):
            return tool
    if re.match(r"[^\t\n]+\t[^\t\n]*\t[^\t\n]+", text):
        return "boris"  # rows to paste
    raise ValueError(f"{path}: of none of {', '.join(TITLES.values())}; name one with --tool")


def _read(path: Path) -> str:
    """The text of a file; in Excel's encodings as well as in UTF-8."""
    content = existing(path, "labels").read_bytes()
    if content[:2] == b"PK":
        raise ValueError(f"{path}: packed (.zip or .xlsx); unpack it, or save the sheet as CSV")
    wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    for encoding in ("utf-16",) if wide else ("utf-8-sig", "cp1252"):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise ValueError(f"{path}: neither UTF-8 nor Windows text; save it as UTF-8")


def _parsed(text: str, tool: str) -> Any:
    """JSON or XML where the tool writes that, else the text (ValueError: broken)."""
    fenced = re.search(r"```\w*\s*(.*?)```", text, re.S) if tool == "draft" else None
    body = (fenced[1] if fenced else text).strip()
    if tool in ("audacity", "csv") or (tool == "boris" and body[:1] != "{"):
        return text
    try:
        if tool in ("elan", "cvat"):
            return xml.fromstring(re.sub(r"^<\?xml.*?\?>", "", body))
        return json.loads(body)
    except (xml.ParseError, json.JSONDecodeError) as error:
        raise ValueError(f"the file is broken or cut short ({error})") from None


# ---------------------------------------------------------------------------- into seconds


def _in_seconds(
    sheet: Sheet, stem: str, tool: str, videos: str | Path, fps: float, point_s: float, command: str
) -> tuple[list[tuple], list[str]]:
    """Rows of our CSV, and notes; every video is opened."""
    files = index_videos(videos)
    if fps and not sheet.in_frames:
        raise ValueError("which counts in seconds, so there is no rate to remap: leave --fps out")
    rows, notes, missing, points = [], [], [], Counter()
    names = list(dict.fromkeys([*(event.video for event in sheet.events), *sheet.empty]))
    for name in names:
        if (file := find_media(str(name or stem), files)) is None:
            missing.append(name or stem)
            continue
        info, said = probe(file), sheet.media.get(name, {})
        there = f"{file.name} has {info.num_frames} frames at {info.fps:.6g}"
        rate = fps or said.get("fps") or (STUDIO_FPS if tool == "label-studio" else info.fps)
        if sheet.in_frames and not fps:
            if abs(info.duration_s * rate - info.num_frames) >= 0.5:  # the last frame has drifted
                source = "" if "fps" in said else " (its default; the file does not say)"
                found = f"frames are counted at {rate:g} a second{source}, but {there}"
                raise ValueError(f"{found}; if so, this remaps them: {command} --fps {rate:g}")
            if abs(said.get("frames", info.num_frames) - info.num_frames) > 1:
                cure = f"give the videos that were labelled, or their rate: {command} --fps RATE"
                raise ValueError(f"it counts {said['frames']:g} frames, but {there}; {cure}")
            rate = info.fps
        elif sheet.in_frames:
            notes.append(f"{file.name}: from {rate:g} to {info.fps:.6g} frames a second")
        seconds = said.get("seconds", info.duration_s)
        if abs(seconds - info.duration_s) > max(0.5, 0.01 * info.duration_s):
            found = f"labelled on {seconds:.1f} s, but {file.name} has {info.duration_s:.1f} s"
            raise ValueError(f"{found}; give the videos that were labelled")
        unit = rate if sheet.in_frames else 1.0
        shift = start_s(file) if tool in IN_BROWSER else 0.0
        about = f"{info.duration_s:.6g}", f"{info.fps:.6g}"
        if name in sheet.empty:
            rows.append((file.name, "", "", "", said.get("subset", ""), *about, tool))
        for event in (event for event in sheet.events if event.video == name):
            start, end = event.start / unit - shift, event.end / unit - shift
            what = f"{event.label!r} from {start:.6g} to {end:.6g} s of {file.name}"
            if not start <= end:
                raise ValueError(f"{what} is reversed; correct it")
            slack = 1 / unit if sheet.in_frames else (1.0 if event.draft else 0.1)
            if end > info.duration_s + slack or start < -max(slack, shift):
                wrong = "another rate (--fps)" if sheet.in_frames else "not seconds, another video"
                raise ValueError(f"{what} is outside its {info.duration_s:.6g} s: {wrong}?")
            if start == end and not point_s:
                points[event.label] += 1
            if start == end or event.draft:
                half = point_s / 2 if start == end else 0.0
                start, end = start - half, min(end + half, info.duration_s)
            subset = said.get("subset") or ("draft" if event.draft else "")
            source = "draft" if event.draft else tool
            rows.append((file.name, max(0.0, start), end, event.label, subset, *about, source))
    if len(missing) == len(names):
        raise ValueError(f"none of its {len(names)} videos is in {videos} (first: {missing[0]!r})")
    if count := points.total():
        found = ", ".join(f"{n} {label!r}" for label, n in points.most_common(3))
        cure = f"this gives them a second each: {command} --point-length 1"
        raise ValueError(f"{count} events are points in time ({found}); {cure}")
    if missing:
        some = f"{len(missing)} of {len(names)} videos have no file in {videos} and are left out"
        notes.append(f"{some} (first: {missing[0]!r})")
    if drafts := sum(row[-1] == "draft" for row in rows):
        kept = "subset 'draft' keeps them out of training and test until somebody has checked them"
        notes.append(f"{drafts} events are drafts: {kept}; correct them in a tool and import again")
    return rows, notes


def find_media(name: str, files: Mapping[str, Path]) -> Path | None:
    """The file that a tool means by a path, URL or upload name; `files` as of `index_videos`."""
    for text in (name, unquote(name), unquote(name).rsplit("=", 1)[-1]):
        base = tables.nfc(re.split(r"[/\\]", text)[-1])
        for key in (base, re.sub(r"^[0-9a-f]{8}-", "", base)):  # uploads get a number before them
            stem = key.rsplit(".", 1)[0] if key.lower().endswith(EXTENSIONS) else key
            for known in (key, stem, f"v_{stem}"):
                if known in files:
                    return files[known]
    return None


# ---------------------------------------------------------------------------- small parts


def _seconds(value: Any, where: str) -> float:
    """Of a number, or of a clock time such as 1:02:03.5 or 02:03,5."""
    return tables.seconds(str(value).strip().replace(",", "."), where)


def _label(value: Any, where: str) -> str:
    """One line in Unicode's NFC, without control characters; whatever it means is left alone."""
    text = " ".join(str("" if value is None else value).split())
    kept = "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cs"))
    if not kept or isinstance(value, dict | list):
        raise ValueError(f"{where} has no label")
    return tables.nfc(kept)


def _columns(names: Iterable[str]) -> dict[str, str]:
    """Which of the names of a table or an object is what of `NAMES`."""
    plain = {re.sub(r"[^a-z]", "", str(name).lower()): name for name in reversed(list(names))}
    found: dict[str, str] = {}
    for what, known in NAMES.items():
        fits = [plain[key] for key in known.split() if key in plain]
        if fits := [name for name in fits if name not in found.values()]:
            found[what] = fits[0]
    return found


def _event(row: Mapping[str, Any], columns: dict[str, str], where: str, video: str) -> Event:
    """One event of a table or of a draft."""
    lacks = [what for what in ("start", "end", "label") if what not in columns]
    if lacks and (lacks != ["end"] or "length" not in columns):
        frames = "; frames need a tool that says its rate" if "frame" in str(row.keys()) else ""
        found = ", ".join(map(str, row))[:120]
        raise ValueError(f"{where} has no {' and no '.join(lacks)} (found: {found}{frames})")

    def time(what: str) -> float:
        name = columns[what]
        thousandths = re.search(r"[ _(]ms(ec)?\)?$", str(name).lower())
        return _seconds(row[name], f"{where}: {name}") * (0.001 if thousandths else 1.0)

    end = time("end") if "end" in columns else time("start") + time("length")
    return Event(video, time("start"), end, _label(row[columns["label"]], where))


def _intervals(marks: Iterable[tuple[tuple, float, str, str]]) -> Iterator[Event]:
    """Pairs starts and stops of one key (video, …, label); status "" = whichever is due."""
    begun: dict[tuple, tuple[float, str]] = {}
    for key, time, status, where in sorted(marks, key=lambda mark: mark[1]):
        if status == "POINT":
            yield Event(key[0], time, time, key[-1])
        elif status and (status == "STOP") != (key in begun):
            found = "stops without a start" if status == "STOP" else "starts twice"
            raise ValueError(f"{where}: {key[-1]!r} {found} at {time:g} s; repair it in BORIS")
        elif key in begun:
            yield Event(key[0], begun.pop(key)[0], time, key[-1])
        else:
            begun[key] = time, where
    for key, (time, where) in begun.items():
        found = f"{key[-1]!r} starts at {time:g} s and never stops"
        raise ValueError(f"{where}: {found}; repair it in BORIS")


# ---------------------------------------------------------------------------- readers


def _via(project: dict) -> Sheet:
    """Project JSON: seconds in `z`, the class in the first attribute of temporal segments."""
    sheet, others = Sheet(), 0
    temporal = {k: a for k, a in project["attribute"].items() if "Z2_XY0" in a["anchor_id"]}
    for key, entry in project["metadata"].items():
        where = f"metadata {key!r}"
        if len(entry["z"]) != 2 or entry["xy"]:
            others += 1
            continue
        values = entry["av"]
        name = next((k for k in temporal if values.get(k)), None)
        label = values[name] if name else None
        if name and isinstance(temporal[name].get("options"), dict):
            label = temporal[name]["options"].get(label, label)
        video = project["file"][str(project["view"][str(entry["vid"])]["fid_list"][0])]["fname"]
        start, end = (tables.number(z, f"z of {where}") for z in entry["z"])
        sheet.events.append(Event(video, start, end, _label(label, where)))
    if others:
        sheet.notes.append(f"{others} regions and marks without start and end are left out")
    if len(temporal) > 1:
        named = ", ".join(repr(a.get("aname")) for a in temporal.values())
        sheet.notes.append(f"classes come from the first filled one of the attributes {named}")
    return sheet


def _elan(root: xml.Element) -> Sheet:
    """Annotations of all time-aligned tiers, milliseconds; the value, or else the tier's name."""
    sheet, media = Sheet(), root.find("HEADER/MEDIA_DESCRIPTOR")
    units = root.find("HEADER").get("TIME_UNITS", "milliseconds") if media is not None else ""
    if units != "milliseconds":
        raise ValueError(f"it names no video in its header, or no milliseconds (found: {units!r})")
    video = media.get("RELATIVE_MEDIA_URL") or media.get("MEDIA_URL")
    origin = _seconds(media.get("TIME_ORIGIN", 0), "TIME_ORIGIN")
    slots = {s.get("TIME_SLOT_ID"): s.get("TIME_VALUE") for s in root.iter("TIME_SLOT")}
    for tier in root.iter("TIER"):
        for entry in tier.iter("ALIGNABLE_ANNOTATION"):
            where = f"annotation {entry.get('ANNOTATION_ID')!r} (TIME_VALUE)"
            times = [slots.get(entry.get(f"TIME_SLOT_REF{i}")) for i in (1, 2)]
            start, end = ((_seconds(time, where) + origin) / 1000 for time in times)
            text = (entry.findtext("ANNOTATION_VALUE") or "").strip() or tier.get("TIER_ID")
            sheet.events.append(Event(video, start, end, _label(text, where)))
    if others := sum(1 for _ in root.iter("REF_ANNOTATION")):
        sheet.notes.append(f"{others} annotations that refer to other annotations are left out")
    return sheet


def _boris(content: dict | str) -> Sheet:
    """Project JSON, tabular or aggregated events, or rows to paste; states from their pairs."""
    sheet, marks = Sheet(), []
    if isinstance(content, dict):
        kinds = {b["code"]: b["type"].lower() for b in content["behaviors_conf"].values()}
        for name, entry in content["observations"].items():
            where = f"observation {name!r}"
            video = _only_file(entry["file"]["1"], where)
            lengths = (entry.get("media_info") or {}).get("length") or {}
            if video in lengths:
                sheet.media[video]["seconds"] = tables.number(lengths[video], f"length of {where}")
            late = float(entry.get("time offset") or 0)
            for row in entry["events"]:
                status = "POINT" if "point" in kinds.get(row[2], "") else ""
                key = video, name, str(row[1]), str(row[3:4]), _label(row[2], where)
                marks.append((key, tables.number(row[0], where) - late, status, where))
            if not entry["events"]:
                sheet.notes.append(f"{where} has no events: its video is left out")
    elif header := re.search(r"(?im)^[^\n]*\bbehavior\b[^\n]*$", content):
        rows = tables.table_rows(Path("its table"), content[header.start() :], ("behavior",))
        if rows and "start (s)" in rows[0]:
            return _table(content[header.start() :])
        for row in rows:
            status = (row.get("behavior type") or row.get("status", "")).upper()
            if status not in ("START", "STOP", "POINT") or "time" not in row:
                raise ValueError(f"{row.where} has no Time, or no START, STOP or POINT")
            media = row.get("media file name") or row.get("media file path") or ""
            video = _only_file([part for part in re.split("[;|]", media) if part], row.where)
            length = row.get("media duration (s)") or row.get("total length") or ""
            if re.fullmatch(r"\d+(\.\d+)?", length):
                sheet.media[video]["seconds"] = float(length)
            late = float(row.get("time offset (s)") or 0)
            parts = (row[k] for k in row if k in ("observation id", "subject") or "modifier" in k)
            key = video, *parts, _label(row["behavior"], row.where)
            marks.append((key, _seconds(row["time"], row.where) - late, status, row.where))
    else:
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                where, cells = f"line {number}", [*line.split("\t"), "", ""]
                key = "", cells[1], _label(cells[2], where)
                marks.append((key, _seconds(cells[0], where), "", where))
    sheet.events = list(_intervals(marks))
    return sheet


def _only_file(files: list, where: str) -> str:
    if len(files) != 1:
        raise ValueError(f"{where} has {len(files)} media files, expected one")
    return re.sub(r"^player #\d+:\s*", "", files[0])


def _cvat(root: xml.Element) -> Sheet:
    """Tracks as intervals: from the first frame that shows one to the frame where it is outside."""
    sheet = Sheet(in_frames=True)
    parts = [*root.iterfind("meta//task"), *root.iterfind("meta/job")]
    if not parts or root.find("track") is None:
        raise ValueError("it holds no tracks of a video (export it as 'CVAT for video 1.1')")
    tasks = {part.findtext("id"): part for part in parts}
    for track in root.iterfind("track"):
        where, task = f"track {track.get('id')!r}", tasks.get(track.get("task_id"), parts[0])
        video = task.findtext("source") or root.findtext("meta/source") or task.findtext("name")
        if not video:
            raise ValueError("its task names no source")
        label, begin, last = _label(track.get("label"), where), None, 0.0
        stop, size = task.findtext("stop_frame"), task.findtext("size")
        whole = _seconds(stop, "stop_frame") + 1 if stop else _seconds(size, "size")
        shapes = []
        for shape in track.iterfind("*[@frame]"):
            inner = (part.get("outside", "0") for part in shape)  # of a skeleton
            hidden = (shape.get("outside") or min(inner, default="0")) == "1"
            shapes.append((_seconds(shape.get("frame"), f"a frame of {where}"), hidden))
        for last, hidden in sorted(shapes):
            if not hidden and begin is None:
                begin = last
            elif hidden and begin is not None:
                sheet.events.append(Event(video, begin, last, label))
                begin = None
        if begin is not None:  # it lasts to the end of what was labelled
            sheet.events.append(Event(video, begin, max(whole, last + 1), label))
        if task.tag == "task" and task.findtext("start_frame") in (None, "0"):
            sheet.media[video]["frames"] = whole
    return sheet


def _label_studio(tasks: list) -> Sheet:
    """Timelines of the full or the small JSON; frames from 1, the last one inside."""
    sheet = Sheet(in_frames=True)
    for number, task in enumerate(tasks, 1):
        where, data = f"task {number}", task.get("data", task)
        texts = [data.get("video"), *data.values()]
        video = next((t for t in texts if str(t).lower().endswith(EXTENSIONS)), None)
        if video is None:
            raise ValueError(f"{where} names no video")
        for key in ("fps", "framerate", "frameRate"):  # what the configuration may refer to
            if data.get(key):
                sheet.media[video]["fps"] = _seconds(data[key], f"{key} of {where}")
        made = [a for a in task.get("annotations") or [] if not a.get("was_cancelled")]
        drafts = [] if made else task.get("predictions") or []
        if len(made) > 1:
            sheet.notes.append(f"{where}: the last of its {len(made)} annotations is taken")
        regions = list(_regions((made or drafts)[-1:] if "data" in task else task))
        for region in regions:
            for span, label in ((s, n) for s in region["ranges"] for n in region["timelinelabels"]):
                edges = span["start"], span["end"]
                first, last = (tables.number(edge, f"a range of {where}") for edge in edges)
                event = Event(video, first - 1, last, _label(label, where), bool(drafts))
                sheet.events.append(event)
        sheet.empty += [video] if made and not regions else []
    return sheet


def _regions(node: Any) -> Iterator[dict]:
    """All labelled time ranges below a node."""
    if isinstance(node, dict) and "timelinelabels" in node:
        yield node
    elif isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _regions(child)


def _x_anylabeling(content: dict) -> Sheet:
    """The file beside a video: frames [start, end) from 0, and milliseconds that have to agree."""
    video, rate = content["video"], tables.number(content["fps"], "fps") or 1.0
    sheet = Sheet(in_frames=True)
    sheet.media[video]["fps"] = rate
    for number, entry in enumerate(content["segments"], 1):
        where = f"segment {number}"
        keys = "start_frame", "end_frame"
        start, end = (tables.number(entry[key], f"{key} of {where}") for key in keys)
        for key, frame in (("start_ms", start), ("end_ms", end)):
            stamp_s = tables.number(entry[key], f"{key} of {where}") / 1000
            if abs(frame / rate - stamp_s) > 1 / rate + 1e-3:
                found = f"{key} {entry[key]} and frame {frame:g} disagree at {rate:g} a second"
                raise ValueError(f"{where}: {found}")
        sheet.events.append(Event(video, start, end, _label(entry["label"], where)))
    return sheet


def _fiftyone(content: dict) -> Sheet:
    """labels.json of temporal detections, or samples.json; frames from 1, the last one inside."""
    sheet, found = Sheet(in_frames='"timestamps"' not in json.dumps(content)), {}
    if "samples" not in content:
        found = content["labels"]
    for sample in content.get("samples", ()):
        video, about = sample["filepath"], sample.get("metadata") or {}
        for key, what in (("frame_rate", "fps"), ("total_frame_count", "frames")):
            if about.get(key):
                sheet.media[video][what] = tables.number(about[key], key)
        for value in (v for v in sample.values() if isinstance(v, dict)):
            if str(value.get("_cls")).startswith("TemporalDetection"):
                found.setdefault(video, []).extend(value.get("detections", [value]))
    for video, entries in found.items():
        for number, entry in enumerate(entries or [], 1):
            where, name = f"detection {number} of {video!r}", entry["label"]
            times = entry["support" if sheet.in_frames else "timestamps"]
            start, end = (_seconds(time, where) for time in times)
            if isinstance(name, int) and content.get("classes"):
                name = content["classes"][name]
            sheet.events.append(Event(video, start - sheet.in_frames, end, _label(name, where)))
        sheet.empty += [video] if entries == [] else []
    return sheet


def _audacity(content: str) -> Sheet:
    """Rows start, end, label; lines that begin with a backslash give frequencies."""
    sheet = Sheet()
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip() and not line.startswith("\\"):
            cells, where = line.split("\t"), f"line {number}"
            if len(cells) != 3:
                raise ValueError(f"{where} is {line[:40]!r}, expected start, end, label with tabs")
            start, end = (_seconds(cell, where) for cell in cells[:2])
            sheet.events.append(Event("", start, end, _label(cells[2], where)))
    return sheet


def _draft(content: Any) -> Sheet:
    """Every object with a time, however deep; a guess until somebody has checked it."""
    sheet = Sheet()

    def walk(node: Any, video: str) -> None:
        if isinstance(node, list):
            for child in node:
                walk(child, video)
        elif isinstance(node, dict):
            columns = _columns(node)
            named = node.get(columns.get("video"))
            video = named if isinstance(named, str) else video
            inner = [(k, v) for k, v in node.items() if isinstance(v, dict | list)]
            if "start" in columns or not inner:
                event = _event(node, columns, f"event {len(sheet.events) + 1}", video)
                sheet.events.append(event._replace(draft=True))
            else:
                for key, child in inner:
                    walk(child, key if key.lower().endswith(EXTENSIONS) else video)

    walk(content, "")
    return sheet


def _table(content: str) -> Sheet:
    """A table whose header names start, end (or duration) and label; seconds or clock times."""
    sheet, columns = Sheet(), {}
    for row in tables.table_rows(Path("its table"), re.sub(r"^sep=.\r?\n", "", content), ()):
        columns = columns or _columns(row)
        video = row[columns["video"]] if "video" in columns else ""
        if subset := row.get("subset") or row.get("split"):
            sheet.media[video]["subset"] = subset
        if not any(row[columns[what]] for what in ("start", "label") if what in columns):
            sheet.empty.append(video)
        else:
            event = _event(row, columns, row.where, video)
            sheet.events.append(event._replace(draft=row.get("source") == "draft"))
    return sheet


READERS = {
    "via": _via, "elan": _elan, "boris": _boris, "cvat": _cvat, "label-studio": _label_studio,
    "x-anylabeling": _x_anylabeling, "fiftyone": _fiftyone, "audacity": _audacity,
    "draft": _draft, "csv": _table,
}  # fmt: skip
