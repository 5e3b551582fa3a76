"""What only the course draws and measures: memory, labels, graphs, a dial, a yard with a camera.

Notebooks import it after `lofi.notebook.setup`, which knows where it lies, as tests do; the
package does without.
"""

import copy
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Arc, Rectangle
from torch import nn

from lofi.budget.memory import MemoryReport, Step
from lofi.config import Config, Mode
from lofi.data import TrimmedClip, TrimmedRequest, Video, write_video
from lofi.data.datasets import Datasets, fingerprint, open_datasets
from lofi.data.toyworld import ToyWorld, plan_clips, render_clip
from lofi.encoders import Encoder
from lofi.encoders.extraction import video_features
from lofi.fidelity import Fidelity
from lofi.figures import confidence_map, style, tables
from lofi.figures.maps import Seconds, shaded, time_axis
from lofi.figures.style import Canvas, Segments, as_array, as_spans, axes_for, fill, stroke
from lofi.figures.tables import Table
from lofi.figures.timelines import LEGEND, pictures
from lofi.files import read_json, write_text
from lofi.heads import BMN, Maps, anchors, published_state_dict
from lofi.heads.bmn import duration_start
from lofi.heads.gtad import GTAD, nearest_snippets
from lofi.notebook import repository_root
from lofi.report import similarity_panels
from lofi.training.augmentation import draw_colour, draw_geometry, recolour
from lofi.training.end_to_end import Watch
from lofi.training.loop import generator_for
from lofi.training.methods import start_encoder
from lofi.training.pretraining import Task, split_clips, trains

Sizes = Mapping[str, float]  # name → bytes
GIB = 2**30
UNITS = ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))
CARDS_GIB = (32, 80, 141)
POSITIVE_ABOVE = (0.7, 0.9)  # tIoU
CYCLE = style.CYCLE
KINDS = ("warm-up", "action", "cool-down", "false start")  # phases of a rendered video
LABELLED_UP_TO = 12  # snippets; a graph this small gets a number at every node
ENDS_IN_ACTIONS = (  # how a semantic edge looks with 0, 1 or 2 ends in actions, and its name
    {"color": style.GREY, "linestyle": "-", "linewidth": 0.8, "label": "other semantic edge"},
    {"color": style.FALSE_ALARM, "linestyle": "--", "linewidth": 1.2, "label": "action – other"},
    {"color": style.FOUND, "linestyle": "-", "linewidth": 1.8, "label": "action – action"},
)


# ------------------------------------------------------------------------------- own videos


def film_yard(
    folder: Path, videos: int, seed: int = 0, seconds: tuple[float, float] = (7.0, 9.0),
    fps: float = 10.0, size: tuple[int, int] = (48, 64), events: int = 3,
    lengths: tuple[float, float] = (1.0, 2.2),
) -> Path:  # fmt: skip
    """Videos of a yard as somebody might bring them, and a spreadsheet's list of what happens.

    A ball may pass, a lamp may blink, up to `events` times a video, with pauses; texture, drifting
    light and noise do not matter. Writes <folder>/videos and <folder>/events.csv: semicolons,
    decimal commas, file names, no subsets.
    """
    height, width = size
    rows = ["video;start_s;end_s;label"]
    for number in range(1, videos + 1):
        rng = np.random.default_rng((seed, number))
        count, now, happens = int(rng.uniform(*seconds) * fps), rng.uniform(0.4, 1.5), []
        while len(happens) < events and now + lengths[1] < count / fps - 0.2:
            end = now + rng.uniform(*lengths)
            happens.append((round(now, 1), round(end, 1), str(rng.choice(["pass", "blink"]))))
            now = end + rng.uniform(0.6, 2.0)
        coarse = rng.integers(70, 150, (height // 8 + 1, width // 8 + 1, 3))
        wall = coarse.repeat(8, 0).repeat(8, 1)[:height, :width]
        light = 1 + 0.1 * np.sin(np.arange(count) / fps * 0.4 + rng.uniform(0, 6))
        noise = rng.integers(-9, 10, (16, height, width, 1), dtype=np.int16)
        ball, lamp = rng.integers(120, 256, 3), (rng.integers(4, 10), rng.integers(6, width - 12))
        frames = np.empty((count, height, width, 3), np.uint8)
        for t in range(count):
            frame = (wall * light[t]).astype(np.int16)
            frame[lamp[0] - 3 : lamp[0] + 4, lamp[1] - 3 : lamp[1] + 4] = 60
            for start, end, label in happens:
                since = t / fps - start
                if 0 <= since < end - start and label == "blink" and int(4 * since) % 2 == 0:
                    frame[lamp[0] - 3 : lamp[0] + 4, lamp[1] - 3 : lamp[1] + 4] = 250, 230, 140
                elif 0 <= since < end - start and label == "pass":
                    x = int((width - 10) * since / (end - start))
                    frame[height - 20 : height - 8, x : x + 12] = ball
            frames[t] = (frame + noise[t % 16]).clip(0, 255)
        name = f"cam_{number:02d}.mp4"
        write_video(folder / "videos" / name, frames, fps, preset="ultrafast")
        rows += [f"{name};{a:.1f};{b:.1f};{label}".replace(".", ",").replace(",mp4", ".mp4")
                 for a, b, label in happens]  # fmt: skip
    write_text(folder / "events.csv", "\n".join(rows) + "\n")
    return folder / "events.csv"


# ------------------------------------------------------------------------------ small things


NAMES = {method: tables.NAMES[method] for method in ("random", "acp", "acp+", "c-lofi")}


def tiou(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Temporal intersection over union of two segments (start, end)."""
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared / ((a[1] - a[0]) + (b[1] - b[0]) - shared)


def named(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of results with the course's names of methods."""
    return [{**row, "method": NAMES.get(row["method"], row["method"])} for row in rows]


def same_scale(figure: Figure) -> Figure:
    """Give all heat maps of a figure one colour scale and one colour bar, the last one's."""
    images = [image for ax in figure.axes for image in ax.images if image.colorbar]
    limits = [image.get_clim() for image in images]
    for image in images:
        image.set_clim(min(low for low, _ in limits), max(high for _, high in limits))
    for image in images[:-1]:
        image.colorbar.remove()
    return figure


def narrow(ax: Axes, height: float) -> Axes:
    """Make a timeline with ground truth as wide as the page of a notebook, legend in two rows."""
    ax.figure.set_size_inches(6.6, height)
    ax.legend(handles=LEGEND, ncols=2, **style.ABOVE)
    return ax


# ---------------------------------------------------------------------------------- one video


def label_map(
    tiou: Any, *, truth: Segments = None, duration_s: Seconds = None, ax: Canvas = None
) -> Axes:
    """The training target: best tIoU of every anchor with any action, (D, L) in [0, 1].

    Outlined are the levels above which the losses treat cells as positive (G-TAD, section 3.4).
    """
    about = {"label": "tIoU with the best action", "levels": POSITIVE_ABOVE}
    return confidence_map(tiou, truth=truth, duration_s=duration_s, ax=ax, **about)


def salience(
    rows: Mapping[str, Any], truth: Segments = None, *, duration_s: Seconds = None,
    ax: Canvas = None,
) -> Axes:  # fmt: skip
    """How much of a video's steps stands out: a strip a row, darkest at the highest channel mean.

    AMNet's supplement, figure 1, draws the features before and after the mask so.

    Args:
        rows: name → (C, T) features, or (T,) values; every row is scaled to its own range.
        truth: segments that are framed.
    """
    if not rows:
        raise ValueError("no rows to draw, expected features by name")
    strips = []
    for name, values in rows.items():
        values = as_array(values).astype(float)
        if values.ndim not in (1, 2) or not values.size:
            raise ValueError(f"{name} must be (channels, steps) or (steps,), got {values.shape}")
        values = values.mean(0) if values.ndim == 2 else values
        low, high = values.min(), values.max()
        strips.append((values - low) / (high - low or 1.0))
    length, unit = time_axis(duration_s, len(strips[0]))
    ax = axes_for(ax, 8.0, 0.9 + 0.5 * len(rows))
    for i, strip in enumerate(strips):
        ax.imshow(strip[None], cmap="Greys", vmin=0, vmax=1, aspect="auto",
                  interpolation="nearest", extent=(0, length, i + 0.92, i + 0.08))  # fmt: skip
    look = {"edgecolor": style.FALSE_ALARM, "linewidth": 1.8, "path_effects": style.EDGE}
    for span in as_spans(truth):
        box = Rectangle((span.start_s, 0), span.length_s, len(rows), fill=False, **look)
        ax.add_patch(box)
    ax.set_yticks([i + 0.5 for i in range(len(rows))], list(rows))
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel=unit, xlim=(0, length), ylim=(len(rows), 0))
    return ax


def neighbour_graph(
    knn: Any, segments: Segments = None, *, duration_s: Seconds = None, ax: Canvas = None
) -> Axes:
    """Which snippets a GCNeXt block joins: the time line with an arc per semantic edge.

    Arcs between two snippets of actions (the same or another) are green and thick, arcs between
    an action and its surroundings orange and dashed, all others grey. `knn` are (L, k) indices of
    the nearest neighbours in feature space; self is not drawn.
    """
    edges = as_array(knn, 2, "knn must be (snippets, k)").astype(int)
    count, low, high = len(edges), edges.min(), edges.max()
    if low < 0 or high >= count:
        raise ValueError(f"knn holds indices {low} … {high}, expected 0 … {count - 1}")
    length, name = time_axis(duration_s, count)
    unit = length / count
    centres = (np.arange(count) + 0.5) * unit
    ax = axes_for(ax, 8.0, 2.8)
    actions = shaded(ax, segments)
    inside = np.array([any(s.start_s <= t < s.end_s for s in actions) for t in centres])
    pairs = sorted({(min(t, u), max(t, u)) for t in range(count) for u in edges[t] if u != t})
    reach = max((b - a for a, b in pairs), default=1)
    for a, b in pairs:
        look = ENDS_IN_ACTIONS[int(inside[a]) + int(inside[b])]
        middle, size = ((centres[a] + centres[b]) / 2, 0), ((b - a) * unit, 2 * (b - a) / reach)
        ax.add_patch(Arc(middle, *size, theta1=0, theta2=180, **look))
    ax.plot(centres, np.zeros(count), "-", color=style.INK, linewidth=0.8, zorder=2)
    ax.scatter(centres, np.zeros(count), s=22, zorder=3, edgecolor=style.INK,
               c=np.where(inside, style.TRUTH, "white"))  # fmt: skip
    time_line = {"color": style.INK, "linewidth": 0.8, "marker": "o", "markerfacecolor": "white"}
    kinds = [time_line | {"label": "temporal edges"}]
    kinds += ENDS_IN_ACTIONS[::-1] if inside.any() else ENDS_IN_ACTIONS[:1]
    ax.legend(handles=[plt.Line2D([], [], **kind) for kind in kinds], ncols=2, **style.ABOVE)
    if count <= LABELLED_UP_TO:
        ax.set_xticks(centres, range(count))
    ax.set(xlim=(0, length), ylim=(-0.12, 1.08), yticks=[], xlabel=name)
    ax.spines["left"].set_visible(False)
    return ax


def share_bars(shares: Mapping[str, Any], *, ax: Canvas = None) -> Axes:
    """One bar a row, a named tuple of fractions that add up to 1, cut into these parts."""
    ax = axes_for(ax, 7.0, 0.5 * len(shares) + 1.2)
    look = {"color": style.INK, "fontsize": style.SMALL}
    look["bbox"] = {"facecolor": "white", "pad": 1, "linewidth": 0}
    left = np.zeros(len(shares))
    for i, part in enumerate(next(iter(shares.values()))._fields):
        values = np.array([getattr(share, part) for share in shares.values()])
        bars = ax.barh(list(shares), values, left=left, label=part, **fill(i))
        texts = [f"{value:.2f}" if value > 0.07 else "" for value in values]
        ax.bar_label(bars, texts, label_type="center", **look)
        left += values
    ax.set(xlabel="share of the features' variance", xlim=(0, 1))
    ax.invert_yaxis()
    ax.legend(ncols=4, **style.ABOVE)
    return ax


def score_bars(
    pairs: Mapping[str, tuple[float, float]], names: tuple[str, str], *, ax: Canvas = None
) -> Axes:
    """Two horizontal bars a row, one below the other, from 0: name → (first, second)."""
    ax = axes_for(ax, 6.5, 0.6 * len(pairs) + 1.0)
    places = np.arange(len(pairs))
    for i, name in enumerate(names):
        values = [pair[i] for pair in pairs.values()]
        bars = ax.barh(places + 0.4 * i, values, 0.38, label=name, **fill(i))
        ax.bar_label(bars, [f" {value:.3g}" for value in values], fontsize=style.SMALL)
    ax.set_yticks(places + 0.2, list(pairs))
    ax.margins(x=0.12)
    ax.invert_yaxis()
    ax.axvline(0, color=style.INK, linewidth=0.8)
    ax.tick_params(axis="y", length=0)
    ax.legend(ncols=2, **style.ABOVE)
    return ax


def change_bars(points: Mapping[str, float], *, ax: Canvas = None) -> Axes:
    """How many points every row adds (//) or takes (xx)."""
    ax = axes_for(ax, 6.8, 0.36 * len(points) + 0.8)
    for i, value in enumerate(np.round(list(points.values()), 1) + 0.0):  # no -0.0
        colour, hatch = (style.FOUND, "//") if value > 0 else (style.FALSE_ALARM, "xx")
        ax.barh(i, value, 0.65, color=colour, hatch=hatch, edgecolor="white")
        side, shift = ("left", 4) if value >= 0 else ("right", -4)
        place = {"xytext": (shift, 0), "textcoords": "offset points", "ha": side, "va": "center"}
        ax.annotate(f"{value:+.1f}", (value, i), fontsize=style.SMALL, **place)
    ax.axvline(0, color=style.INK, linewidth=1)
    ax.set_yticks(range(len(points)), list(points))
    ax.invert_yaxis()
    ax.margins(x=0.15)
    return ax


def precision_recall(curves: Mapping[str, tuple[Any, Any]], *, ax: Canvas = None) -> Axes:
    """Precision against recall, raw and (filled) as the falling envelope that AP measures.

    Curves are (recall, precision), (n,) each, one point per detection in score order.
    """
    ax = axes_for(ax, 4.6, 3.6)
    for i, (name, (recall, precision)) in enumerate(curves.items()):
        recall, precision = as_array(recall), as_array(precision)
        x = np.concatenate([[0.0], recall, recall[-1:]])
        y = np.concatenate([precision[:1], precision, [0.0]])
        envelope = np.maximum.accumulate(y[::-1])[::-1]
        line = stroke(i)
        pale = {"color": line["color"], "alpha": 0.6, "linewidth": 0.9}
        ax.plot(x[:-1], y[:-1], marker=".", markersize=4, **pale)
        ax.plot(x, envelope, drawstyle="steps-pre", label=name, **line)
        ax.fill_between(x, envelope, step="pre", color=line["color"], alpha=0.12, linewidth=0)
    ax.set(xlim=(0, 1.01), ylim=(0, 1.04), xlabel="recall", ylabel="precision")
    ax.legend(loc="best", framealpha=0.85)
    return ax


def film(frames: Any, title: str = "", *, ax: Canvas = None) -> Axes:
    """Consecutive uint8 frames, (N, H, W, 3) or (N, 3, S, S), with a white line between two."""
    frames = as_array(frames)
    if frames.ndim == 4 and frames.shape[-1] != 3:
        frames = np.moveaxis(frames, 1, -1)
    # Pictures of noise make notebooks large; nobody sees the steps of 16 grey levels.
    frames = pictures(frames, "film expects frames (N, H, W, 3) or (N, 3, S, S)") // 16 * 16
    frames[:, :, -1] = 255
    ax = axes_for(ax, 6.0, 0.3 + 6.0 / len(frames))
    ax.imshow(np.hstack(frames), interpolation="nearest")
    ax.set_title(title, fontsize=style.SMALL)
    ax.set_axis_off()
    return ax


# --------------------------------------------------------- heads, written as their papers draw them


def as_matrix(entries: anchors.Entries) -> np.ndarray:
    """(rows, positions, snippets): what every sample of every region takes from every snippet."""
    matrix = np.zeros((entries.rows, entries.positions, entries.snippets))
    matrix[entries.row, entries.position, entries.snippet] = entries.weight
    return matrix


class GatherFirst(nn.Module):
    """A G-TAD head that builds the samples of all anchors in one dense map, for one video."""

    def __init__(self, head: GTAD, snippets: int) -> None:
        super().__init__()
        self.head, sizes = head, head.options[:2]  # inner and context samples
        matrix = as_matrix(anchors.gtad_entries(snippets, snippets, *sizes, 0))
        cells = anchors.make_cells(anchors.valid_cells(snippets, snippets), "cpu")
        rows = torch.tensor(matrix).float()[cells.row_of_cell]  # a row for each cell
        shared = rows.shape[1] < sum(sizes)  # THUMOS14: one table of samples for both
        self.matrices = (rows, rows) if shared else rows.split(sizes, 1)
        self.weight = nn.Parameter(published_state_dict(head)["localization.0.weight"])

    def forward(self, features: torch.Tensor) -> Maps:
        """(1, C, L) -> maps of L columns and rows."""
        head, trunk = self.head, self.head.trunk(features)
        x, grid = trunk.refined[0], (features.shape[2],) * 2
        mean = x[nearest_snippets(x[None], head.neighbours)[0]].mean(1)  # (L, C)
        pairs = zip(self.matrices, (x, mean))
        samples = torch.cat([torch.einsum("vrl,lc->crv", m, f) for m, f in pairs], 1)
        dense = samples.flatten(0, 1).unflatten(1, grid)[None]  # (1, C R, D, L)
        first, *others = head.localization
        cells = nn.Sequential(*others)(torch.conv2d(dense, self.weight, first.bias))
        nodes = [
            part[1:](part[0](trunk.base, trunk.graphs[1]).transpose(1, 2))[:, 0]
            for part in (head.regu_s, head.regu_e)
        ]
        return Maps(cells, *nodes)


class SampleFirst(nn.Module):
    """A BMN head that builds the samples of all segments in one dense tensor."""

    def __init__(self, head: BMN, snippets: int) -> None:
        super().__init__()
        rows = as_matrix(anchors.bmn_entries(snippets, *head.sampling))
        cells = anchors.make_cells(anchors.bmn_cells(snippets, head.variant), "cpu")
        self.head, self.grid = head, (snippets, snippets)
        self.weights = torch.tensor(rows[cells.row_of_cell]).to(head.x_3d_p[0].weight)
        self.first = nn.Parameter(published_state_dict(head)["x_3d_p.0.weight"])

    def forward(self, features: torch.Tensor) -> Maps:
        """(B, C, L) -> maps of L columns and rows."""
        head, base = self.head, self.head.x_1d_b(features)
        dense = torch.einsum("bcl,vrl->bcrv", head.x_1d_p(base), self.weights)
        dense = dense.unflatten(3, self.grid)  # (B, C, 32, start, end)
        cells = torch.conv3d(dense, self.first, head.x_3d_p[0].bias)[:, :, 0].relu()
        nodes = head.x_1d_s(base)[:, 0], head.x_1d_e(base)[:, 0]
        return Maps(duration_start(head.x_2d_p(cells)), *nodes)


def kept_for_backward(
    module: nn.Module, features: torch.Tensor, constants: Sequence[torch.Tensor] = ()
) -> int:
    """Bytes that autograd keeps of one forward pass, weights and `constants` left out."""
    own = {p.data_ptr() for p in (*module.parameters(), *constants)}
    kept = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        if t.data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = module(features)  # alive while counted: freed memory would be counted twice
    return sum(kept.values()) if out.start.requires_grad else 0


# ------------------------------------------------------------------------------------- memory


def _rows(ax: Axes, names: Sizes, widths: Sequence[float], **look):
    """Horizontal bars with their names, the first at the top."""
    bars = ax.barh(range(len(widths)), widths, **look)
    ax.set_yticks(range(len(widths)), list(names))
    ax.set_ylim(len(widths) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    return bars


def bytes_by_layer(sizes: Sizes, *, top: int = 12, ax: Canvas = None) -> Axes:
    """One bar per layer, the largest at the top; beyond `top` they are one bar."""
    pairs = sorted(sizes.items(), key=lambda pair: -pair[1])
    shown, rest = dict(pairs[:top]), pairs[top:]
    colours = [style.TRUTH] * len(shown) + [style.GREY] * bool(rest)
    if rest:
        shown[f"{len(rest)} others"] = sum(size for _, size in rest)
    largest, total = max(shown.values(), default=1), sum(sizes.values()) or 1
    factor, unit = next(size for size in UNITS if largest >= size[0] or size[0] == 1)
    texts = [f" {100 * size / total:.0f} %" for size in shown.values()]
    ax = axes_for(ax, 7.0, 0.27 * len(shown) + 0.9)
    bars = _rows(ax, shown, [size / factor for size in shown.values()], color=colours)
    ax.bar_label(bars, texts, color=style.INK)
    ax.set_xlabel(f"saved for the backward pass ({unit})")
    ax.margins(x=0.1)
    return ax


def bytes_by_configuration(
    sizes: Sizes, lines_gib: Sequence[float] = CARDS_GIB, *, ax: Canvas = None
) -> Axes:
    """One bar per configuration against the memory of common cards.

    Bars that no card of `lines_gib` can hold are hatched. Only cards near the range are drawn.
    """
    gib = [size / GIB for size in sizes.values()]
    largest = max(gib, default=1.0)
    ax = axes_for(ax, 7.0, 0.4 * len(sizes) + 1.2)
    bars = _rows(ax, sizes, gib, height=0.7, color=style.TRUTH)
    for bar in (bar for bar, size in zip(bars, gib) if size > max(lines_gib)):
        bar.set(facecolor=style.FALSE_ALARM, hatch="//", edgecolor="white")
    texts = [f" {size:.3g}" if size < 100 else f" {size:.0f}" for size in gib]
    ax.bar_label(bars, texts, color=style.INK, padding=2, path_effects=style.OUTLINE)
    drawn = [line for line in lines_gib if line <= 2 * largest] or list(lines_gib)[:1]
    for line in drawn:
        ax.axvline(line, color=style.INK, linestyle="--", linewidth=1.2, zorder=0.5)
        ax.text(line, 1.0, f"{line:g} GiB", transform=ax.get_xaxis_transform(), ha="center",
                va="bottom", color=style.INK)  # fmt: skip
    ax.set(xlim=(0, 1.12 * max([largest, *drawn])), xlabel="memory of one training step (GiB)")
    ax.grid(axis="x", color=style.LIGHT, zorder=0)
    ax.set_axisbelow(True)
    return ax


def memory_wall(
    sizes: Mapping[str, Sizes], bf16: Mapping[str, Sizes], *, ax: Canvas = None
) -> Axes:
    """Memory of encoder → configuration on a logarithmic axis, against that of common cards.

    A group for every configuration, in it a bar for every encoder; diamonds are bf16.
    """
    groups = list(next(iter(sizes.values())))
    ax = axes_for(ax, 1.6 * len(groups) + 1.0, 4.0)
    width = 0.8 / len(sizes)
    everything, handles = [], []
    for i, (name, row) in enumerate(sizes.items()):
        places = [g + (i - (len(sizes) - 1) / 2) * width for g in range(len(groups))]
        gib, marks = ([of[group] / GIB for group in groups] for of in (row, bf16[name]))
        bars = ax.bar(places, gib, 0.92 * width, label=name, zorder=2, **fill(i))
        texts = [f"{size:.2g}" if size < 10 else f"{size:.0f}" for size in gib]
        ax.bar_label(bars, texts, color=style.INK, fontsize=style.SMALL, path_effects=style.OUTLINE)
        diamonds = ax.plot(places, marks, "D", color="white", markeredgecolor=style.INK,
                           markersize=5, zorder=3, label="bf16")  # fmt: skip
        handles.append(bars)
        everything += gib + marks
    ax.set(ylabel="peak of one training step (GiB)", xlim=(-0.55, len(groups) - 0.45))
    ax.set_xticks(range(len(groups)), groups)
    low, high = min(everything) / 2, 2 * max([*everything, *CARDS_GIB])
    ticks = [10.0**power for power in range(-3, 7) if low <= 10.0**power <= high]
    ax.set(yscale="log", ylim=(low, high))
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    for card in CARDS_GIB:
        ax.axhline(card, color=style.INK, linestyle="--", linewidth=1.2, zorder=0.5)
        ax.text(1.005, card, f"{card:g} GiB", transform=ax.get_yaxis_transform(), ha="left",
                va="center", color=style.INK, fontsize=style.SMALL)  # fmt: skip
    ax.grid(axis="y", color=style.LIGHT, zorder=0)
    ax.set_axisbelow(True)
    ax.legend(handles=handles + diamonds, frameon=False, ncols=len(handles) + 1,
              loc="lower center", bbox_to_anchor=(0.5, 1.0))  # fmt: skip
    ax.tick_params(axis="x", length=0)
    return ax


def saw_of_two_passes(chunks: int, *, ax: Canvas = None) -> Axes:
    """Activations kept against compute: one graph, LoFi, and two passes with `chunks` chunks.

    A sketch: forward is 1 unit of compute for the whole video, backward 2.
    """

    def triangle(start: float, size: float) -> tuple[list[float], list[float]]:
        return [start, start + size, start + 3 * size], [0, size, 0]

    ax = axes_for(ax, 6.8, 3.2)
    exact_t, exact_m = [0.0, 1.0], [0.0, 0.0]  # pass 1: nothing is kept
    for i in range(chunks):  # pass 2: one chunk after the other
        t, m = triangle(1 + 3 * i / chunks, 1 / chunks)
        exact_t, exact_m = exact_t + t, exact_m + m
    ax.plot(*triangle(0, 1), label="one graph: 3 F", **stroke(0))
    ax.plot(*triangle(0, 0.25), label="LoFi: 0.75 F, a coarser video", **stroke(1))
    ax.fill_between(exact_t, exact_m, color=style.FALSE_ALARM, alpha=0.5)
    label = f"two passes, {chunks} chunks: 4 F"
    ax.plot(exact_t, exact_m, "-", color=style.FALSE_ALARM, label=label)
    for name, left, right in (("pass 1", 0, 1), ("pass 2", 1, 4)):
        ax.annotate("", (left, -0.06), (right, -0.06), arrowprops={"arrowstyle": "<->"})
        ax.text((left + right) / 2, -0.16, name, color=style.INK, ha="center")
    ax.set(xlabel="compute (F = one forward pass of the whole video)", xlim=(0, 4.05))
    ax.set(ylabel="activations kept\n(1 = whole video)", ylim=(-0.2, 1.05))
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    ax.legend(frameon=False)
    return ax


def peak_by_snippets(
    curves: Mapping[str, Mapping[int, float]],
    lines_gib: Sequence[float] = (),
    *,
    ax: Canvas = None,
) -> Axes:
    """Peak memory against the number of snippets, both axes logarithmic.

    Args:
        curves: name → {snippets: bytes}.
        lines_gib: card sizes in GiB, drawn as horizontal lines.
    """
    ax = axes_for(ax, 6.0, 3.6)
    sizes = [size for curve in curves.values() for size in curve.values()]
    factor, unit = _unit(GIB if lines_gib else max(sizes))
    for i, (name, curve) in enumerate(curves.items()):
        heights = [curve[n] / factor for n in sorted(curve)]
        ax.plot(sorted(curve), heights, marker="o", label=name, **stroke(i))
    ticks = sorted({n for curve in curves.values() for n in curve})
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [str(n) for n in ticks])
    ax.set(xlabel="snippets a video, L", ylabel=f"peak of one training step ({unit})")
    _log_axis_with_cards(ax, [size / factor for size in sizes], lines_gib)
    ax.minorticks_off()
    ax.legend(frameon=False)
    return ax


def _log_axis_with_cards(ax: Axes, values: Sequence[float], lines_gib: Sequence[float]) -> None:
    """A logarithmic height axis around `values`, and the cards' sizes as dashed lines."""
    low, high = min(values) / 2, 2 * max([*values, *lines_gib])
    ticks = [10.0**power for power in range(-3, 7) if low <= 10.0**power <= high]
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    for line in lines_gib:
        ax.axhline(line, color=style.INK, linestyle="--", linewidth=1.2, zorder=0.5)
        ax.text(1.005, line, f"{line:g} GiB", transform=ax.get_yaxis_transform(), ha="left",
                va="center", color=style.INK, fontsize=style.SMALL)  # fmt: skip
    ax.grid(axis="y", color=style.LIGHT, zorder=0)
    ax.set_axisbelow(True)


def _unit(largest: float) -> tuple[int, str]:
    return next((factor, unit) for factor, unit in UNITS if largest >= factor or factor == 1)


# ------------------------------------------------------------------------ encoders, compared


def alike(
    config: Config, encoders: Mapping[str, nn.Module], video: Video, others: Sequence[Video]
) -> Figure:
    """Self-similarity of one video's features by method: one panel each, one colour scale."""
    found = {
        method: [video_features(config, encoder.eval(), v.path)[0] for v in (video, *others)]
        for method, encoder in encoders.items()
    }
    figure = similarity_panels(found, video)
    for ax, method in zip(figure.axes, encoders):
        ax.set_title(NAMES.get(method, method))
    return same_scale(figure)


def films(shown: Mapping[str, Any], columns: int = 1, width: float = 6.6) -> Figure:
    """A `film` for each title, in rows of so many columns."""
    rows = -(-len(shown) // columns)
    height = 0.32 + width / columns / max(map(len, shown.values()))
    size = {"figsize": (width, rows * height), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(rows, columns, **size)
    for ax, (title, frames) in zip(axes.flat, shown.items()):
        film(frames, title, ax=ax)
    for ax in axes.flat[len(shown) :]:
        ax.set_axis_off()
    return figure


def source_batch(
    config: Config, clips: Sequence[TrimmedClip], generator: torch.Generator | None = None
) -> torch.Tensor:
    """uint8 (B, F, 3, S, S) source clips as stage 1 reads them; augmented with a generator."""
    draws = [draw_geometry("geometric", generator) if generator else None for _ in clips]
    cut = {"frame_stride": config.data.frame_stride, "crop_ratio": config.data.crop_ratio}
    size = (config.acp_frames, config.full.pixels)
    wanted = [TrimmedRequest(c, *size, augmentation=d, **cut) for c, d in zip(clips, draws)]
    frames = [request.read() for request in wanted]
    if generator:
        frames = [recolour(clip, draw_colour(generator)) for clip in frames]
    return torch.stack(frames)


def study(preset: str) -> dict[str, dict[str, list[float]]]:
    """What tests/benchmarks/vigour.json has of a preset: encoder → measurement → a value a seed.

    "map x" is the average mAP of its segments with the classes of x, in percent.
    """
    path = repository_root() / "tests" / "benchmarks" / "vigour.json"
    found: dict[str, dict[str, list[float]]] = {}
    for row in read_json(path, "the study of vigour and classes")["rows"]:
        if row["preset"] == preset:
            mine = found.setdefault(row["encoder"], {})
            for key, value in (row | {f"map {k}": v for k, v in row["map"].items()}).items():
                mine.setdefault(key, []).append(value)
    return found


def mean_error(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard error."""
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{np.mean(values):.{digits}f} ± {error:.{digits}f}"


def paired(preset: str, a: str, b: str, what: str) -> str:
    """Mean difference of two encoders on the same seeds of `study`, ± standard error."""
    found = study(preset)
    gap = np.subtract(found[a][what], found[b][what])
    return f"{'+' if gap.mean() > 0 else ''}{mean_error(gap, 1)}"


def seeds_table(preset: str, columns: Mapping[str, tuple[str, int]], encoders: Mapping) -> Table:
    """`study` as a table: title → measurement and digits, encoder → name; mean ± error."""
    found = study(preset)
    seeds = len(found["acp"]["seed"])
    rows = [
        (name, *(mean_error(found[key][what], digits) for what, digits in columns.values()))
        for key, name in encoders.items()
    ]
    notes = (f"preset {preset}, mean ± standard error over {seeds} seeds",)
    return Table(("encoder", *columns), tuple(rows), notes=notes)


# ------------------------------------------------------------------------- a dial for vigour


def dial_vigour(
    world: ToyWorld, seed: int, levels: Sequence[float], count: int = 64
) -> tuple[torch.Tensor, list[str]]:
    """Render the first `count` validation clips of a world once for each level of vigour.

    A measurement of our own, not the paper's. Two renderings of one clip share background, noise,
    actor and colours and differ in nothing but the vigour (and in the place where a wider swing
    needs the room), so what changes in a feature is due to it.

    Args:
        levels: V levels of vigour, 0 and 1 are the extremes of the source clips.
    Returns:
        uint8 (V, N, F, 3, S, S), centre crops with S = the world's height, as rendered (no H.264
        in between); the N labels.
    """
    plans = [plan for plan in plan_clips(world, seed) if plan.subset == "validation"][:count]
    clips = np.array(
        [
            [render_clip(world, seed, plan._replace(vigour=float(level))) for plan in plans]
            for level in levels
        ]
    )  # (V, N, F, H, W, 3)
    side = min(world.height, world.width)
    top, left = (world.height - side + 1) // 2, (world.width - side + 1) // 2
    square = torch.from_numpy(clips[:, :, :, top : top + side, left : left + side])
    return square.permute(0, 1, 2, 5, 3, 4).contiguous(), [plan.label for plan in plans]


class Shares(NamedTuple):
    """Parts of a feature's variance, in [0, 1]; they add up to 1."""

    label: float  # between the means of the classes
    scene: float  # between the clips of one class, averaged over vigour
    vigour: float  # between the renderings of one clip


def variance_shares(features: torch.Tensor, labels: Sequence[str]) -> Shares:
    """How much of the features' variance goes with class, scene and vigour (law of total variance).

    Args:
        features: (V, N, C), from the clips of `dial_vigour`.
        labels: N class names.
    Returns:
        shares of each channel, averaged over the channels that vary at all.
    """
    x = features.detach().double().cpu()
    scenes = x.mean(0)  # (N, C)
    classes = scenes.clone()
    for name in set(labels):
        members = torch.tensor([label == name for label in labels])
        classes[members] = scenes[members].mean(0)
    parts = [
        classes.var(0, correction=0),
        (scenes - classes).square().mean(0),
        (x - scenes).square().mean((0, 1)),
    ]
    total = sum(parts)
    alive = total > 1e-12 * total.max()
    return Shares(*(float((part[alive] / total[alive]).mean()) for part in parts))


def read_vigour(world: Datasets) -> dict[Path, float]:
    """The hidden vigour of every source clip of a rendered world, by file."""
    folder = world.annotations.parent
    with open(folder / "source.csv", newline="") as file:
        return {folder / row["clip"]: float(row["vigour"]) for row in csv.DictReader(file)}


@trains
def train_vigour(config: Config, run_dir: str | Path) -> Task:
    """The positive control: ACP's network, clips and recipe, but vigour is the label, no class.

    Binary cross-entropy with a label between 0 and 1. Returns what `pretrain` does, without an
    accuracy; the encoder lies in <run>/vigour.
    """
    world = open_datasets(config.data, config.seed, run_dir)
    vigour, encoder = read_vigour(world), start_encoder(config)
    clips = split_clips(world.clips)[0]
    torch.manual_seed(config.seed)
    last = nn.Linear(encoder.channels, 1)

    def read(source, clips, address, augment):
        draws = generator_for(*address, "augmentation")
        views = [draw_geometry(augment, draws) for _ in clips]
        frames = source.read(clips, views, config.acp_frames)
        frames = torch.stack([recolour(clip, draw_colour(draws)) for clip in frames])
        return frames, torch.tensor([vigour[clip.path] for clip in clips])

    return Task(
        "vigour", encoder, last, lambda x: last(encoder(x))[:, 0], clips, [], config.acp, read,
        settings={"clips": fingerprint(clips)}, result={},
    )  # fmt: skip


def read_vigour_off(
    features: torch.Tensor, levels: Sequence[float], ridge: float = 100.0
) -> tuple[torch.Tensor, float]:
    """Vigour as a ridge regression on standardised channels reads it, and its R².

    Fitted on the first half of the scenes, judged on the others.

    Args:
        features: (V, N, C), from the clips of `dial_vigour` at V levels between 0 and 1.
    Returns:
        (V, N / 2) readings; 1 - their squared error over that of always saying one half.
    """
    half, dial = features.shape[1] // 2, torch.tensor(levels, dtype=torch.float64) - 0.5
    seen, new = features[:, :half].double(), features[:, half:].double()
    mean, std = seen.mean((0, 1)), seen.std((0, 1)) + 1e-6
    seen, new = (seen - mean) / std, (new - mean) / std
    moments = torch.einsum("vnc,vnd->cd", seen, seen) + ridge * torch.eye(seen.shape[2])
    read = new @ torch.linalg.solve(moments, torch.einsum("vnc,v->c", seen, dial))
    missed, spread = (read - dial[:, None]).square().mean(), dial.square().mean()
    return read + 0.5, float(1 - missed / spread)


# ------------------------------------------------------------------------- memory, measured


def measured_bytes(
    encoder: Encoder,
    head: nn.Module | None,
    fidelity: Fidelity,
    batch: int = 1,
    amp: str = "fp32",
    mode: Mode | str = "full",
    micro_batch: int = 0,
) -> MemoryReport:
    """Run the step for real on copies of the modules and read torch's allocator; `top` is empty.

    On the CPU the profiler lists every allocation; on CUDA the allocator's statistics are used.
    """
    copies = copy.deepcopy(encoder), copy.deepcopy(head)
    step = Step(*copies, fidelity, batch, amp, mode, micro_batch)
    if head is not None:  # makes the tables that a head keeps for the process
        like = next(step.encoder.parameters())
        bf16 = torch.autocast(like.device.type, torch.bfloat16, enabled=amp == "bf16")
        with torch.no_grad(), bf16:
            step.head(like.new_zeros(1, step.encoder.channels, fidelity.snippets))
    static, clips = sum(tensor.nbytes for tensor in step.static), step.clips(batch)
    meter = CudaMeter if clips.is_cuda else CpuMeter
    with meter() as measured:
        step.run(clips, measured)
    return step.report(measured.saved, measured.peak + static)


class CpuMeter(Watch):
    """Reads torch's CPU allocator through the profiler; bytes of what the block allocates."""

    saved = peak = 0

    def __enter__(self) -> "CpuMeter":
        activities = [torch.profiler.ProfilerActivity.CPU]
        self._profile = torch.profiler.profile(activities=activities, profile_memory=True)
        self._profile.__enter__()
        return self

    def begin(self) -> None:
        with torch.profiler.record_function("lofi:begin"):
            pass

    def end(self) -> None:
        with torch.profiler.record_function("lofi:end"):
            pass

    def __exit__(self, *error: Any) -> None:
        self._profile.__exit__(*error)
        events = self._profile.profiler.kineto_results.events()
        live = start = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                live += event.nbytes()
                self.peak = max(self.peak, live)
            elif event.name() == "lofi:begin":
                start = live
            elif event.name() == "lofi:end":
                self.saved = max(self.saved, live - start)


class CudaMeter(Watch):
    """Reads the statistics of torch's CUDA allocator; bytes above what was there before."""

    saved = peak = 0

    def __enter__(self) -> "CudaMeter":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self._base = torch.cuda.memory_allocated()
        return self

    def begin(self) -> None:
        self._start = torch.cuda.memory_allocated()

    def end(self) -> None:
        self.saved = max(self.saved, torch.cuda.memory_allocated() - self._start)

    def __exit__(self, *error: Any) -> None:
        self.peak = torch.cuda.max_memory_allocated() - self._base
