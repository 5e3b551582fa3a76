"""report.html of a run, and the pictures of it that notebooks show too.

The page holds text, tables and figures, readable offline, on paper and by ear: styles (from the
template report.html beside this file) and pictures are inside, nothing is loaded from elsewhere.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lofi.config import Config, load
from lofi.data import Video, VideoError, read_features
from lofi.data.datasets import Datasets, open_datasets
from lofi.data.features import Features, head_inputs
from lofi.detection import read_detections
from lofi.evaluation import detection_map
from lofi.evaluation.bootstrap import interval, video_draws
from lofi.figures import curves, maps, tables, timelines
from lofi.figures.tables import NAMES
from lofi.files import read_json, write_text
from lofi.heads.maps import MapHead
from lofi.heads.scaled import Standardise
from lofi.training.methods import components, load_encoder, load_head, open_features, run_data, told
from lofi.training.run_folder import read_metrics
from lofi.viewer import thumbnails_of, write_viewer


@dataclass(frozen=True)
class Picture:
    """A figure in a report."""

    figure: Axes | Figure  # it stays open
    caption: str  # the sentence under it, which says what to see
    alt: str = ""  # what it shows, for readers who cannot see it; the caption when empty

    def __post_init__(self) -> None:
        if not self.caption.strip():
            raise ValueError("a Picture needs a caption: one sentence that says what to see")


@dataclass(frozen=True)
class Details:
    """Code, shown as it is in fixed width, that is folded away until it is opened."""

    summary: str
    code: str


@dataclass(frozen=True)
class Link:
    """A line that leads to another page of the run, by a path relative to the report."""

    text: str
    path: str


Part = str | tables.Table | Picture | Details | Link  # a string is a paragraph


def write_report(path: str | Path, title: str, sections: Mapping[str, Sequence[Part]]) -> Path:
    """Write a report of {heading: parts}, the introduction under "", and return its path."""
    contents, body = [], []
    for i, (heading, parts) in enumerate(sections.items(), start=1):
        if heading:
            contents.append(f'<li><a href="#s{i}">{escape(heading)}</a></li>')
            body.append(f'<h2 id="s{i}">{escape(heading)}</h2>')
        body += map(_part, parts)
    if len(contents) > 2:
        start = len(sections.get("", ()))
        body.insert(start, f'<nav aria-label="Contents"><ol>{"".join(contents)}</ol></nav>')
    template = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    write_text(path, template.substitute(title=escape(title), body="\n".join(body)))
    return Path(path)


def _part(part: Part) -> str:
    match part:
        case str():
            return f"<p>{escape(part)}</p>"
        case Link(text, path):
            return f'<p><a href="{escape(quote(path))}">{escape(text)}</a></p>'
        case tables.Table():
            return part.html()
        case Details(summary, code):
            summary = f"<summary>{escape(summary)}</summary>"
            return f"<details>\n{summary}\n<pre>{escape(code)}</pre>\n</details>"
        case Picture(figure, caption, alt):
            figure, buffer = figure.get_figure(root=True), io.BytesIO()
            figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
            data = base64.b64encode(buffer.getvalue()).decode("ascii")
            width = round(figure.get_figwidth() * 100)  # drawn for 100 dpi
            return (
                f'<figure>\n<img width="{width}" alt="{escape(alt or caption)}" '
                f'src="data:image/png;base64,{data}">\n'
                f"<figcaption>{escape(caption)}</figcaption>\n</figure>"
            )
    kind = type(part).__name__
    raise ValueError(f"a report is made of str, Table, Picture, Details and Link, got {kind}")


def maps_figure(config: Config, run_dir: str | Path, video: Video, method: str) -> Figure:
    """Confidence (classification) map and boundary probabilities of one test video.

    Of its first window, when videos are cut into windows. For heads whose outputs are `Maps`.
    """
    features = open_features(config, run_dir, method, run_data(config, run_dir))[video.id]
    values, grid = head_inputs(features, config.full.snippets, config.data.window_stride)[0]
    with torch.no_grad():
        outputs = load_head(config, run_dir, method)(values[None])
    confidence, start, end = (part[0] for part in outputs)
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    truth = [segment for segment in video.segments if segment.start_s < grid.length_s]
    maps.confidence_map(confidence[1], truth=truth, duration_s=grid.length_s, ax=axes[0])
    maps.boundary_curves(start, end, truth, duration_s=grid.length_s, ax=axes[1])
    return figure


def similarity_figure(run_dir: str | Path, video: Video, methods: Sequence[str]) -> Figure:
    """Self-similarity of one video under several methods, from their stored features.

    They are standardised over some other stored videos, as in stage 3 before the head.
    """
    found = {}
    for method in methods:
        folder = Path(run_dir) / method / "features"
        paths = folder / f"{video.id}.safetensors", *sorted(folder.glob("[!.]*.safetensors"))[:16]
        stored = map(read_features, paths)
        found[method] = [Features(values, header.grid()) for values, header in stored]
    return similarity_panels(found, video)


def similarity_panels(found: Mapping[str, list[Features]], video: Video) -> Figure:
    """A panel for each method, from features of `video` and then of others."""
    size = (3.9 * len(found), 3.3)
    figure, axes = plt.subplots(1, len(found), figsize=size, layout="constrained", squeeze=False)
    for ax, (method, (own, *others)) in zip(axes[0], found.items()):
        standardise = Standardise(own.values.shape[0])
        standardise.fit_to([features.values for features in others])
        duration_s = own.grid.duration_s
        maps.similarity(standardise(own.values), video.segments, duration_s=duration_s, ax=ax)
        ax.set_title(NAMES.get(method, method))
    return figure


def losses_axes(run_dir: str | Path, stages: dict[str, str]) -> Axes:
    """Loss curves of stages: {legend name: stage folder below the run}."""
    logs = {name: read_metrics(Path(run_dir) / stage) for name, stage in stages.items()}
    return curves.loss_curves({name: rows for name, rows in logs.items() if rows})


def busiest_videos(data: Datasets, count: int) -> list[Video]:
    """Test videos with the most actions first, ties by id: the ones worth looking at."""
    return sorted(data.test, key=lambda v: (-len(v.segments), v.id))[:count]


def write_run_report(config: Config, run_dir: str | Path, results: dict[str, Any]) -> Path:
    """report.html of a finished run: results, protocol, losses, timelines, maps."""
    run_dir = Path(run_dir)
    data = open_datasets(config.data, config.seed, run_dir)
    methods = dict.fromkeys(row["method"] for row in results["rows"])
    methods = [method for method in methods if (run_dir / method).is_dir()]  # not variants
    bars = Picture(
        tables.results_bars(results),
        f"Average mAP over tIoU {results['tious'][0]:g} to {results['tious'][-1]:g}. Compare "
        "within one source of classes: shared and oracle judge localization; own also judges what "
        "an encoder still knows about classes, for which the paper's joint loss has no term.",
        "Grouped bars of average mAP for each encoder under shared, own and oracle classes",
    )
    about = (
        f"Preset {config.preset}, seed {config.seed}, {results['videos']} validation videos with "
        f"{results['instances']} actions, protocol {results['protocol']}; the whole procedure took "
        f"{results['seconds']:.0f} s. One seed shows the direction of an effect, not its size."
    )
    skipped = tuple(
        (r["item"], r["reason"], ", ".join(r["stages"])) for r in results["skipped"][:20]
    )
    sections = {
        "": [
            *(WHAT, about, f"{told(results)}."),
            *[tables.Table(("left out", "reason", "by"), skipped)] * bool(skipped),
            *weights_parts(config, run_dir, methods),
        ],
        "Results": [
            *(tables.results_table(results), CLASS_SOURCES, bars),
            *conclusions(run_dir, results, data, methods),
            *(f"{NAMES[m]}: {TRAINED[m]}" for m in methods if m in TRAINED),
        ],
        "Training": _training_parts(run_dir, methods),
        "Timelines": _timeline_parts(run_dir, data, methods),
        "Inside one video": [
            *_inside_parts(config, run_dir, data, methods),
            Details("Settings of this run", (run_dir / "config.json").read_text(encoding="utf-8")),
        ],
    }
    path = write_report(run_dir / "report.html", f"LoFi on the {config.preset} world", sections)
    plt.close("all")
    return path


def write_any_report(run_dir: str | Path) -> Path:
    """report.html of a run: `write_run_report` where there are results, else how far it is.

    The page of `lofi fit` stays; how far it is then goes to training.html.
    FileNotFoundError: no stage has begun there.
    """
    run_dir = Path(run_dir)
    results = run_dir / "results.json"
    if results.is_file() and (run_dir / "config.json").is_file():
        found = read_json(results, "the results of a run")
        return write_run_report(load(run_dir / "config.json"), run_dir, found)
    folders = sorted({path.parent for path in run_dir.rglob("metrics.jsonl")})
    folders += sorted({path.parent for path in run_dir.rglob("result.json")} - {*folders})
    if not folders:
        cure = "give the folder of --out that lofi train, compare, fit or course wrote to"
        raise FileNotFoundError(f"{run_dir}: no stage of a run in it; {cure}")
    logs = {folder.relative_to(run_dir).as_posix(): read_metrics(folder) for folder in folders}
    header = ("stage", "state", "steps", "epochs", "loss", "fidelity", "seconds a step",
              "waiting for data", "left out")  # fmt: skip
    rows = tuple((name, *_stage_row(run_dir / name, log)) for name, log in logs.items())
    notes = (
        "loss: mean of the last 20 steps; time: median; - where a stage writes no such number",
    )
    parts = {"": [], "Stages": [tables.Table(header, rows, f"Stages of {run_dir.name}", notes)]}
    shown = {name: log for name, log in logs.items() if any(_finite(log, "loss"))}
    parts["Training"] = [
        Picture(curves.loss_curves({name: log}), f"Loss of {name}; thick: running mean.")
        for name, log in shown.items()
    ]
    scores = []
    for path in sorted(run_dir.glob("*/metrics/**/[!.]*.json")):
        found = read_json(path, "what an evaluation found")
        name = path.relative_to(run_dir).as_posix().replace("/metrics", "").removesuffix(".json")
        scores.append((name, f"{100 * found['average_map']:.2f}", str(found["protocol"])))
    if scores:
        header = ("method and classes", "average mAP (%)", "protocol")
        parts["Results"] = [tables.Table(header, tuple(scores))]
    if (run_dir / "config.json").is_file():
        text = (run_dir / "config.json").read_text(encoding="utf-8")
        parts["Settings"] = [Details("Settings of this run", text)]
    fitted = (run_dir / "plan.json").is_file()
    name = "training.html" if fitted else "report.html"
    path = write_report(run_dir / name, f"Run {run_dir.name}", parts)
    plt.close("all")
    return path


def _stage_row(folder: Path, log: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The numbers of one stage as text."""
    done = folder / "result.json"
    result = read_json(done, "the result of a stage") if done.is_file() else None
    losses, took, waited = (_finite(log, key) for key in ("loss", "seconds", "waited"))
    sizes = list(dict.fromkeys(row["fidelity"] for row in log if "fidelity" in row))
    share = sum(waited) / max(sum(waited) + sum(took), 1e-9)
    return (
        "unfinished" if result is None else "finished",
        f"{log[-1]['step'] + 1:,}" if log else "-",
        str(log[-1]["epoch"] + 1) if log and "epoch" in log[-1] else "-",
        f"{np.mean(losses[-20:]):.4g}" if losses else "-",
        ", ".join(sizes[:4]) + " …" * (len(sizes) > 4) or "-",
        f"{np.median(took):.3g}" if took else "-",
        f"{share:.0%}" if waited else "-",
        str(len((result or {}).get("skipped", ()))) if result else "-",
    )


def _finite(log: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [row[key] for row in log if key in row and np.isfinite(row[key])]


WHAT = (
    "Temporal action localization: find when each action starts and ends, and which it is. Every "
    "row uses the same head, trained from scratch on frozen full-fidelity features; the rows "
    "differ only in how the encoder was trained."
)
CLASS_SOURCES = (
    "shared: one video classifier gives the classes for every method, as the paper does with "
    "external class scores. own: a classifier on each method's own features. oracle: the true "
    "class of each video, so only localization counts."
)
TRAINED = {  # what a row's encoder went through
    "random": "random weights, which every other row has to beat.",
    "acp": "classification of trimmed clips.",
    "acp+": "ACP, then classification of the segments of the untrimmed training videos.",
    "icp": "classification of single frames.",
    "arrow": "telling whether a clip runs forwards.",
    "speed": "telling how fast a clip is played.",
    "s-lofi": "ACP, then training together with a head, on fewer pixels.",
    "t-lofi": "ACP, then training together with a head, on fewer snippets.",
    "st-lofi": "ACP, then training together with a head, on fewer snippets and pixels.",
    "c-lofi": "ACP, then training together with a head, on S-, T- and ST-LoFi's sizes by turns.",
}
ALIKE = (
    "How alike the features of any two moments are. Blocks along the diagonal that match the "
    "actions mean that the encoder tells inside from outside."
)
MAPS = "confidence of every (start, duration) pair, and start and end probability of each moment."


def conclusions(run: Path, results: Mapping, data: Datasets, methods: Sequence[str]) -> list[str]:
    """What the numbers say: C-LoFi minus ACP and ACP+, paired over the same draws of videos."""
    told = [m for m in ("acp", "acp+", "c-lofi") if m in methods] if "c-lofi" in methods else []
    draws, means, said, kind = {}, {}, [], results["rows"][0]["classes"]
    for m in told:
        found = run / m / "detections" / f"{kind}.json"
        how = (data.annotations, found, results["tious"], results["subset"], results["protocol"])
        draws[m], means[m] = video_draws(*how)[:, -1], 100 * detection_map(*how).average_map
    for m in told[:-1]:
        low, high = 100 * interval(draws["c-lofi"] - draws[m])
        seen = "better" if low > 0 else "worse" if high < 0 else "no difference seen"
        ahead = f"{means['c-lofi'] - means[m]:+.1f} (95 % over videos: {low:+.1f} to {high:+.1f})"
        pair = f"{NAMES['c-lofi']} {means['c-lofi']:.1f}, {NAMES[m]} {means[m]:.1f}"
        said.append(f"{pair} ({kind} classes), paired difference {ahead}: {seen}.")
    return said


def weights_parts(config: Config, run_dir: Path, methods: Sequence[str]) -> list[str]:
    """Source and licence of every published weight file that an encoder of the run began with."""
    parts = [part for m in methods if m != "published" for part in components(m)]
    origins = [load_encoder(config, run_dir, method)[0].origin for method in parts]
    named = [o for o in origins if "weights_source" in o]
    found = {(origin["weights_source"], origin["weights_licence"]) for origin in named}
    return [f"Published weights: {source}; licence: {terms}." for source, terms in sorted(found)]


def _training_parts(run_dir: Path, methods: Sequence[str]) -> list[Part]:
    parts: list[Part] = []
    for method, what in (("acp", "classification"), ("c-lofi", "joint low-fidelity training")):
        if method in methods and read_metrics(run_dir / method / "encoder"):
            axes = losses_axes(run_dir, {NAMES[method]: f"{method}/encoder"})
            parts.append(Picture(axes, f"Loss of {what}; thin: every step, thick: running mean."))
    heads = {NAMES.get(m, m): f"{m}/head" for m in methods}
    return [*parts, Picture(losses_axes(run_dir, heads), "Loss of the head on frozen features.")]


def _timeline_parts(run_dir: Path, data: Datasets, methods: Sequence[str]) -> list[Part]:
    """Thumbnails, ground truth and the detections of several methods for three test videos."""
    parts: list[Part] = []
    for video in (video for video in busiest_videos(data, 3) if video.path is not None):
        rows: dict[str, Any] = {"ground truth": video.segments}
        for method in [m for m in ("acp", "acp+", "c-lofi") if m in methods] or methods:
            folder = run_dir / method / "detections"
            kinds = ("shared", "own", "segment", "head", "oracle")  # the first that was asked for
            path = next(p for kind in kinds if (p := folder / f"{kind}.json").is_file())
            rows[NAMES.get(method, method)] = read_detections(path).get(video.id, [])
        try:
            frames, times, duration_s = thumbnails_of(video.path)
        except VideoError as error:  # damaged since its features were extracted
            parts.append(f"Video {video.id} cannot be shown: {error}")
            continue
        figure = timelines.video_timeline(frames, times, rows, duration_s, top=3, title=video.id)
        text = "the three best detections of each method below the ground truth."
        parts.append(Picture(figure, f"Video {video.id}: {text}"))
        page = f"viewer/{video.id}.html"
        write_viewer(run_dir / page, video.path, list(rows.values())[-1], video.segments)
        parts.append(Link(f"Play {video.id} with the detections of {list(rows)[-1]}", page))
    return parts


def _inside_parts(config: Config, run_dir: Path, data: Datasets, methods: list[str]) -> list[Part]:
    """Pictures of the busiest test video that has features."""
    best = "c-lofi" if "c-lofi" in methods else methods[-1]
    shown = [m for m in ("random", "acp", "c-lofi") if m in methods]
    stores = [open_features(config, run_dir, method, data).ids for method in {best, *shown}]
    videos = [v for v in busiest_videos(data, len(data.test)) if all(v.id in ids for ids in stores)]
    if not videos:
        return []
    video, parts = videos[0], []
    if shown:
        parts.append(Picture(similarity_figure(run_dir, video, shown), ALIKE))
    if isinstance(load_head(config, run_dir, best).head, MapHead):
        figure = maps_figure(config, run_dir, video, best)
        parts.append(Picture(figure, f"{NAMES.get(best, best)}: {MAPS}"))
    return parts
