"""One HTML page a video: the video itself, and its events as bars that can be clicked.

The page (template viewer.html beside this file) holds styles, script and events; only the video is
linked, by a path relative to the page. It needs no server and no network, also on a telephone.
"""

import json
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import quote

from lofi.data.annotations import Segment
from lofi.data.video import probe, start_s
from lofi.detection.results import Detection
from lofi.files import write_text


def write_viewer(
    path: str | Path, video: str | Path, found: Sequence[Detection], truth: Sequence[Segment] = ()
) -> Path:
    """Write the page of a video, with its ground truth where there is one; returns its path.

    The slider starts at half of the best score, as the subtitles do. VideoError: see `probe`.
    """
    path, video, info = Path(path), Path(video).resolve(), probe(video)
    scored = [(d.start_s, d.end_s, d.label or "action", d.score) for d in found]
    events = scored + [(s.start_s, s.end_s, s.label, None) for s in truth]
    keys = "start", "end", "label", "score"
    best = max((score for *_, score in scored), default=1.0) or 1.0
    data = {
        "name": video.name, "duration": info.duration_s, "offset": start_s(video),
        "best": best, "from": best / 2,
        "events": [dict(zip(keys, event)) for event in sorted(events, key=lambda e: e[:3])],
    }  # fmt: skip
    text = json.dumps(data, allow_nan=False)  # ASCII; nothing in it may end the script
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    try:
        source = quote(Path(os.path.relpath(video, path.resolve().parent)).as_posix())
    except ValueError:  # on another drive
        source = video.as_uri()
    template = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    shown = {"title": escape(video.name), "source": escape(source), "data": text}
    write_text(path, template.substitute(shown))
    return path
