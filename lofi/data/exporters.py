"""Annotations and detections into the formats of labelling tools (back: `importers`).

A writer turns a `Clip`, or all of them, into the text of a file. Frames are those of the video, or
of the rate that the tool counts with; where a tool wants the last frame of an event, it is inside.
"""

import csv
import io
import json
import xml.etree.ElementTree as xml
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from lofi.data.importers import COLUMNS, IN_BROWSER
from lofi.data.video import VideoInfo, probe, start_s
from lofi.files import write_text

HOW = {  # what to do with the files
    "via": "open it as a project; VIA asks for the videos",
    "elan": "open each .eaf beside its video",
    "boris": "Edit > Paste events, in an observation of that video",
    "cvat": "Upload annotations, format 'CVAT 1.1', in a task of that video with these labels",
    "label-studio": "import the JSON into a project with <Video name=\"video\" value=\"$video\" "
    "frameRate=\"$fps\"/> and <TimelineLabels name=\"timeline\" toName=\"video\">",
    "x-anylabeling": "lay each JSON beside its video, then open the video",
    "fiftyone": "load labels.json with the videos as FiftyOneTemporalDetectionDataset",
    "audacity": "File > Import > Labels",
    "csv": "our own format: any spreadsheet, lofi check, lofi train",
}  # fmt: skip


class Mark(NamedTuple):
    """An event of a video: [start_s, end_s) in seconds; no score = annotated."""

    start_s: float
    end_s: float
    label: str
    score: float | None = None


class Clip(NamedTuple):
    """A video with its events, as a tool counts them."""

    path: Path
    info: VideoInfo
    rate: float  # frames a second of the tool
    shift: float  # seconds, what the tool's clock shows at the first frame
    marks: Sequence[Mark]

    def frames(self) -> list[tuple[int, int, Mark]]:
        """First frame from 0, first frame behind the event, and the event."""
        spans = []
        for mark in self.marks:
            first = max(0, round((mark.start_s + self.shift) * self.rate))
            last = max(first + 1, round((mark.end_s + self.shift) * self.rate))
            spans.append((first, last, mark))
        return spans


def export_labels(
    tool: str, labelled: Mapping[Path, Sequence[Mark]], out: str | Path, fps: float = 0.0
) -> list[Path]:
    """Write the events of videos for a tool into the folder `out`; returns the files.

    `fps` is the rate that the tool counts with, 0 = each video's own. ValueError: a tool cannot
    hold the events.
    """
    if tool not in WRITERS:
        raise ValueError(f"unknown tool {tool!r}; known: {', '.join(WRITERS)}")
    clips = []
    for path, marks in labelled.items():
        info, shift = probe(path), start_s(path) if tool in IN_BROWSER else 0.0
        ordered = sorted(marks, key=lambda mark: (mark.start_s, mark.end_s))
        clips.append(Clip(path, info, fps or info.fps, shift, ordered))
    name, write = WRITERS[tool]
    twice = [stem for stem, n in Counter(path.stem for path in labelled).items() if n > 1]
    if twice and (name.startswith(".") or tool == "fiftyone"):
        raise ValueError(f"{tool}: two videos are called {twice[0]!r}; rename one of them")
    if name.startswith("."):
        texts = {f"{clip.path.stem}{name}": write(clip) for clip in clips}
    else:
        texts = {name: write(clips)}
    for name, text in texts.items():
        write_text(Path(out) / name, text)
    return [Path(out) / name for name in texts]


def _json(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _xml(root: xml.Element) -> str:
    xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + xml.tostring(root, encoding="unicode")


def _node(parent: xml.Element | None, tag: str, text: object = None, **attributes) -> xml.Element:
    """An element with text and attributes, under a parent."""
    given = {key: str(value) for key, value in attributes.items()}
    node = xml.Element(tag, given) if parent is None else xml.SubElement(parent, tag, given)
    node.text = None if text is None else str(text)
    return node


def _classes(clips: Sequence[Clip]) -> list[str]:
    return sorted({mark.label for clip in clips for mark in clip.marks})


def _via(clips: Sequence[Clip]) -> str:
    numbers = {clip.path: str(i) for i, clip in enumerate(clips, 1)}
    keys = {name: str(i) for i, name in enumerate(_classes(clips))}
    metadata = {}
    for clip in clips:
        for i, mark in enumerate(clip.marks):
            z = [mark.start_s + clip.shift, mark.end_s + clip.shift]
            entry = {"vid": numbers[clip.path], "flg": 0, "z": z, "xy": []}
            metadata[f"{numbers[clip.path]}_{i:08d}"] = entry | {"av": {"1": keys[mark.label]}}
    attribute = {
        "aname": "event", "anchor_id": "FILE1_Z2_XY0", "type": 4, "desc": "class of the event",
        "options": {key: name for name, key in keys.items()}, "default_option_id": "",
    }  # fmt: skip
    about = {"fid": 0, "fname": "", "type": 4, "loc": 1, "src": ""}  # a video, found on this disk
    files = {n: about | {"fid": n, "fname": path.name} for path, n in numbers.items()}
    shown = dict.fromkeys(("file_metadata", "spatial_metadata", "temporal_segment_metadata"), True)
    ui = {f"{name}_editor_visible": value for name, value in shown.items()}
    ui |= {"file_content_align": "center", "spatial_region_label_attribute_id": ""}
    project = {
        "project": {
            "pid": "__VIA_PROJECT_ID__", "rev": "__VIA_PROJECT_REV_ID__", "pname": "lofi",
            "rev_timestamp": "__VIA_PROJECT_REV_TIMESTAMP__", "creator": "lofi export",
            "created": 0, "data_format_version": "3.1.1", "vid_list": list(numbers.values()),
        },
        "config": {
            "file": {"loc_prefix": {"1": "", "2": "", "3": "", "4": ""}},
            "ui": ui | {"gtimeline_visible_row_count": "4"},
        },
        "attribute": {"1": attribute}, "file": files, "metadata": metadata,
        "view": {n: {"fid_list": [n]} for n in numbers.values()},
    }  # fmt: skip
    return _json(project)


def _elan(clip: Clip) -> str:
    """A tier a class; where events of one overlap, which a tier cannot hold, further ones."""
    root = _node(None, "ANNOTATION_DOCUMENT", AUTHOR="lofi", DATE="2000-01-01T00:00:00+00:00",
                 FORMAT="3.0", VERSION="3.0")  # fmt: skip
    header = _node(root, "HEADER", MEDIA_FILE="", TIME_UNITS="milliseconds")
    url = {"MEDIA_URL": clip.path.resolve().as_uri(), "MIME_TYPE": "video/*"}
    _node(header, "MEDIA_DESCRIPTOR", **url, RELATIVE_MEDIA_URL=f"./{clip.path.name}")
    order, slots, tiers = _node(root, "TIME_ORDER"), 0, {}
    for mark in clip.marks:
        number = 1
        while (tier := tiers.get((mark.label, number))) and tier[1] > mark.start_s:
            number += 1
        if tier is None:
            name = mark.label + (f" ({number})" if number > 1 else "")
            linked = {"TIER_ID": name, "LINGUISTIC_TYPE_REF": "default-lt"}
            tier = _node(root, "TIER", **linked), 0.0
        tiers[mark.label, number] = tier[0], mark.end_s
        for time in mark[:2]:
            slots += 1
            _node(order, "TIME_SLOT", TIME_SLOT_ID=f"ts{slots}", TIME_VALUE=round(time * 1000))
        spans = {f"TIME_SLOT_REF{i}": f"ts{slots - 2 + i}" for i in (1, 2)}
        entry = _node(tier[0], "ANNOTATION")
        entry = _node(entry, "ALIGNABLE_ANNOTATION", ANNOTATION_ID=f"a{slots // 2}", **spans)
        _node(entry, "ANNOTATION_VALUE", mark.label)
    _node(root, "LINGUISTIC_TYPE", LINGUISTIC_TYPE_ID="default-lt", TIME_ALIGNABLE="true",
          GRAPHIC_REFERENCES="false")  # fmt: skip
    return _xml(root)


def _boris(clip: Clip) -> str:
    for before, mark in pairwise(sorted(clip.marks, key=lambda m: (m.label, m.start_s))):
        if before.label == mark.label and mark.start_s < before.end_s:
            found = f"{clip.path.name}: two {mark.label!r} overlap at {mark.start_s:.3f} s"
            cure = "BORIS knows one at a time; leave one out, for example by --min-score"
            raise ValueError(f"{found}; {cure}")
    rows = [(time, mark.label) for mark in clip.marks for time in mark[:2]]
    lines = (f"{time:.6f}\t\t{label}\n" for time, label in sorted(rows))
    return "".join(lines)


def _cvat(clip: Clip) -> str:
    """An interval is a track of one rectangle that covers the picture."""
    root, info = _node(None, "annotations"), clip.info
    _node(root, "version", "1.1")
    task = _node(_node(root, "meta"), "task")
    count = round(info.duration_s * clip.rate)
    for tag, text in (("name", clip.path.stem), ("size", count), ("mode", "interpolation"),
                      ("start_frame", 0), ("stop_frame", count - 1),
                      ("source", clip.path.name)):  # fmt: skip
        _node(task, tag, text)
    labels = _node(task, "labels")
    for name in _classes([clip]):
        _node(_node(labels, "label"), "name", name)
    box = dict(xtl=0, ytl=0, xbr=info.width, ybr=info.height, occluded=0, keyframe=1, z_order=0)
    for i, (first, last, mark) in enumerate(clip.frames()):
        track = _node(root, "track", id=i, label=mark.label, source="auto")
        _node(track, "box", frame=first, outside=0, **box)
        if last < count:
            _node(track, "box", frame=last, outside=1, **box)
    return _xml(root)


def _label_studio(clips: Sequence[Clip]) -> str:
    """Tasks with predictions, which people accept or correct."""
    tasks = []
    for clip in clips:
        result = [
            {
                "id": f"e{i}", "type": "timelinelabels", "from_name": "timeline",
                "to_name": "video", "score": mark.score,
                "value": {
                    "ranges": [{"start": first + 1, "end": last}], "timelinelabels": [mark.label]
                },
            }
            for i, (first, last, mark) in enumerate(clip.frames())
        ]  # fmt: skip
        scores = [mark.score for mark in clip.marks if mark.score is not None]
        found = {"model_version": "lofi", "score": max(scores, default=None), "result": result}
        data = {"video": clip.path.name, "fps": clip.rate}
        tasks.append({"data": data, "predictions": [found]})
    return _json(tasks)


def _x_anylabeling(clip: Clip) -> str:
    segments = [
        {
            "id": f"s{i}", "label": mark.label, "description": "",
            "start_ms": round(first / clip.rate * 1000), "start_frame": first,
            "end_ms": round(last / clip.rate * 1000), "end_frame": last,
        }
        for i, (first, last, mark) in enumerate(clip.frames(), 1)
    ]  # fmt: skip
    info, labels = clip.info, _classes([clip])
    content = {"version": "1.0.0", "type": "video_classification", "video": clip.path.name}
    content |= {"fps": clip.rate, "duration_ms": round(info.duration_s * 1000)}
    content |= {"width": info.width, "height": info.height, "labels": labels}
    return _json(content | {"segments": segments})


def _fiftyone(clips: Sequence[Clip]) -> str:
    labels = {}
    for clip in clips:
        labels[clip.path.stem] = [
            {"label": mark.label, "support": [first + 1, last]}
            | ({} if mark.score is None else {"confidence": mark.score})
            for first, last, mark in clip.frames()
        ]
    return _json({"classes": None, "labels": labels})


def _audacity(clip: Clip) -> str:
    lines = (f"{m.start_s:.6f}\t{m.end_s:.6f}\t{m.label}\n" for m in clip.marks)
    return "".join(lines)


def _csv(clips: Sequence[Clip]) -> str:
    """Our own; detections are drafts in it, so that nobody trains on them by accident."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for clip in clips:
        for m in clip.marks or [Mark("", "", "")]:
            draft = "" if m.score is None else "draft"
            about = draft, f"{clip.info.duration_s:.6g}", f"{clip.info.fps:.6g}", draft
            rows.writerow((clip.path.name, *m[:3], *about))
    return text.getvalue()


WRITERS = {  # name of the file, or its ending where every video has one of its own
    "via": ("via.json", _via), "elan": (".eaf", _elan), "boris": (".tsv", _boris),
    "cvat": (".xml", _cvat), "label-studio": ("label-studio.json", _label_studio),
    "x-anylabeling": (".json", _x_anylabeling), "fiftyone": ("labels.json", _fiftyone),
    "audacity": (".txt", _audacity), "csv": ("events.csv", _csv),
}  # fmt: skip
