"""What was found in one video, to look at: a page with the video itself, and a picture.

The page (template viewer.html beside this file) holds styles, script and events as bars that can be
clicked; only the video is linked, by a path relative to the page. It needs no server and no
network, also on a telephone. The picture is drawn by Pillow, which starts in a tenth of the time of
matplotlib: `lofi detect` would spend more on that than on its work.
"""

import json
import os
from collections.abc import Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from string import Template
from urllib.parse import quote

import numpy as np

from lofi.data.annotations import Segment
from lofi.data.video import decode_frames, probe, start_s
from lofi.detection.results import Detection, shelves
from lofi.files import atomic_path, printable, write_text

BAR, INK = (0, 114, 178), (34, 34, 34)


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


def thumbnails_of(path: str | Path, count: int = 10) -> tuple[np.ndarray, np.ndarray, float]:
    """Evenly spaced small frames (n, H, W, 3), their times in seconds, and the video's duration."""
    info = probe(path)
    indices = ((np.arange(count) + 0.5) * info.num_frames / count).astype(int)
    scale = min(1.0, 240 / max(info.height, info.width))
    size = max(1, round(info.height * scale)), max(1, round(info.width * scale))
    return decode_frames(path, indices, size), (indices + 0.5) / info.fps, info.duration_s


def write_picture(
    path: str | Path, video: str | Path, found: Sequence[Detection], top: int = 8
) -> Path:
    """Write a PNG of ten frames over the `top` best detections as bars; returns its path.

    Overlapping bars are stacked, the best at the top; their opacity follows the score.
    VideoError: see `probe` and `decode_frames`.
    """
    from PIL import Image, ImageDraw, ImageFont

    frames, _, duration_s = thumbnails_of(video)
    best = sorted(found, key=lambda d: -d.score)[:top]
    places = shelves(best)
    left, wide, high = 20, 960, min(max(96 * frames.shape[1] // frames.shape[2], 1), 240)
    bars, end = high + 62, high + 62 + 40 * (max(places, default=0) + 1)
    image = Image.new("RGB", (left + wide + left, end + 54), "white")
    draw = ImageDraw.Draw(image)
    fonts = Path(find_spec("matplotlib").origin).parent / "mpl-data" / "fonts" / "ttf"
    font = ImageFont.truetype(fonts / "DejaVuSans.ttf", 14)
    middle = {"fill": INK, "font": font, "anchor": "mm"}
    labels = {d.label for d in best}
    title = " · ".join([Path(video).name, *labels] if len(labels) == 1 else [Path(video).name])
    draw.text((left + wide / 2, 18), printable(" ".join(title.split())), **middle)
    for i, frame in enumerate(frames):
        place = left + i * wide // len(frames)
        image.paste(Image.fromarray(frame).resize((wide // len(frames) - 2, high)), (place, 36))
    for d, shelf in zip(best, places):
        low, high_s = (left + wide * min(max(t / duration_s, 0.0), 1.0) for t in d[:2])
        share = 0.45 + 0.55 * max(d.score / (best[0].score or 1.0), 0.0)
        colour = tuple(round(255 + share * (c - 255)) for c in BAR)
        box = (low, bars + 40 * shelf, max(high_s - 2, low), bars + 40 * shelf + 34)
        draw.rectangle(box, colour)
        score, label = f"{d.score:.2f}", printable(" ".join(d.label.split()))
        short = (f"{label[:length]}…" for length in (24, 12, 6))
        for text in (*((f"{label} {score}", label, *short) if len(labels) > 1 else ()), score):
            if draw.textlength(text, font) + 8 <= box[2] - low:
                place = (low + box[2]) / 2, box[1] + 17
                draw.text(place, text, **middle | ({"fill": "white"} if share > 0.8 else {}))
                break
    draw.line((left, end + 4, left + wide, end + 4), INK)
    step = 10 ** np.floor(np.log10(duration_s / 4))  # 4 to 10 marks
    step *= next(n for n in (5, 2, 1) if duration_s / (n * step) >= 4)
    for n in range(int(duration_s / step) + 1):
        place = left + wide * n * step / duration_s
        draw.line((place, end + 4, place, end + 9), INK)
        draw.text((place, end + 20), f"{n * step:g}", **middle)
    draw.text((left + wide / 2, end + 40), "time (s)", **middle)
    with atomic_path(path) as temporary:
        image.save(temporary)
    return Path(path)
