"""report.html of `lofi fit`: how good, how sure, where it fails and what to label next."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from lofi.data import Video
from lofi.detection.results import Detection
from lofi.figures.style import axes_for
from lofi.figures.tables import Table, percent
from lofi.figures.timelines import video_timeline
from lofi.report import Details, Picture, thumbnails_of, write_report


def span(row: Mapping[str, Any], key: str = "at_0.5") -> str:
    """A number in percent with its interval."""
    low, high = row["interval_at_0.5"] if key == "at_0.5" else row["average_interval"]
    value = row["map_at_0.5"] if key == "at_0.5" else row["average_map"]
    return f"{percent(value)} [{percent(low)}, {percent(high)}]"


def write_fit_report(
    why: str, out: Path, videos: Sequence[Video], test: Sequence[Video],
    found: Mapping[str, Sequence[Detection]], result: Mapping[str, Any], few: int,
) -> Path:  # fmt: skip
    """report.html: how good, how sure, where it fails and what to label next."""
    header = ("judged on", "videos", "mAP@0.5 (%)", "average mAP (%)")
    held = result["held_out"]
    where = f"held-out videos, trained on {held['training_videos']} others"
    rows = [(where, str(len(test)), span(held), span(held, "average"))]
    inside = "encoder, head and classes" if result["method"] == "acp" else "head and classes"
    if crossed := result.get("cross_validation"):
        where = f"all videos, {crossed['folds']}-fold cross-validation ({inside} new in each fold)"
        rows.append((where, str(len(videos)), span(crossed), span(crossed, "average")))
    brackets = "In brackets: 95 % interval, 1,000 draws of the videos; the model stays as it is."
    sections: dict[str, list] = {"": [brackets, *result["notes"]]}
    sections["Result"] = [Table(header, tuple(rows))]
    if not crossed:
        sections["Result"].append("One split, no cross-validation.")
    classes = tuple(
        (row["label"] + " (few!)" * (row["events"] < few), str(row["events"]),
         str(row["judged"]), span(row) if row["judged"] else "–")
        for row in result["classes"]
    )  # fmt: skip
    sections["Classes"] = [Table(("class", "events", "judged on", "AP@0.5 (%)"), classes)]
    sections["How many videos"] = [curve_picture(result["curve"])]
    if result["method"] == "acp":
        sections["How many videos"].append(
            "The encoder has learned from all training videos at every point, so the left end of "
            "the curve is too good; the held-out videos are new to it everywhere."
        )
    rivals = tuple(
        (f"{row['videos']} videos: {rival['name']}", span(rival), percent(row["map_at_0.5"]),
         verdict(rival["fit_ahead_by"]))
        for row in result["curve"] for rival in row["rivals"]
    )  # fmt: skip
    names = ("rival", "mAP@0.5 (%)", "lofi fit", "difference, paired over videos")
    about = "The same features, training and held-out videos."
    sections["Simple rivals"] = [Table(names, rivals, about)]
    listed = tuple(
        (s["video"], f"{s['start_s']:.1f}", f"{s['end_s']:.1f}", s["label"], f"{s['score']:.2f}",
         s["why"]) for s in result["label_next"]
    )  # fmt: skip
    wanted = ("video", "start (s)", "end (s)", "label", "score", "why")
    sections["Label these next"] = [
        f"Detections from a score of {result['threshold']:.2f} on are the best compromise between "
        "misses and false alarms (F1 at tIoU 0.5 on the videos above).",
        Table(wanted, listed),
    ]  # fmt: skip
    sections["Timelines"] = []
    for video in sorted(test, key=lambda v: (-len(v.segments), v.id))[:3]:
        shown = [d for d in found.get(video.id, ()) if d.score >= result["threshold"]]
        frames, times, duration_s = thumbnails_of(video.path)
        lanes = {"in the list": video.segments, "found": shown}
        top = max(3, len(video.segments))
        figure = video_timeline(frames, times, lanes, duration_s, top=top, title=video.id)
        sections["Timelines"].append(Picture(figure, f"{video.id}: listed and found events."))
    settings = (out / "config.json").read_text(encoding="utf-8")
    sections["Settings"] = [Details("Why they were chosen", why), Details("All", settings)]
    path = write_report(out / "report.html", f"Events in {len(videos)} videos", sections)
    plt.close("all")
    return path


def verdict(ahead: Sequence[float]) -> str:
    """What an interval of differences says."""
    low, high = (100 * value for value in ahead)
    word = "fit is better" if low > 0 else "fit is worse" if high < 0 else "no difference seen"
    return f"{low:+.1f} to {high:+.1f}: {word}"


def curve_picture(curve: Sequence[Mapping[str, Any]]) -> Picture:
    """mAP@0.5 over the number of training videos, with its interval."""
    axes = axes_for(None, 6.0, 3.2)
    sizes = [row["videos"] for row in curve]
    low, high = zip(*(row["interval_at_0.5"] for row in curve))
    values = [100 * row["map_at_0.5"] for row in curve]
    errors = [[max(0, v - 100 * a) for v, a in zip(values, low)],
              [max(0, 100 * b - v) for v, b in zip(values, high)]]  # fmt: skip
    axes.errorbar(sizes, values, errors, marker="o", capsize=3)
    axes.set(xlabel="training videos", ylabel="mAP@0.5 (%)", ylim=(0, 100))
    caption = "Held-out mAP by training videos; whiskers: 95 % interval over the held-out videos."
    return Picture(axes, caption)
