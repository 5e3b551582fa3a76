"""The method in one picture, for readers who have not seen the paper.

`python notebooks/figures/method.py` draws three_stages.png, which README and notebook 05 show.

Source: Xu et al., "Low-Fidelity Video Encoder Optimization for Temporal Action Localization",
NeurIPS 2021, section 3. Sizes in the picture are true: one drawn square stands for 12.5 snippets,
its area for the pixels of a snippet, so the three low-fidelity strips cover the same area, a
quarter of the full-fidelity strip.
"""

import math
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from lofi.figures.style import FALSE_ALARM, FOUND, GREY, INK, TRUTH
from lofi.files import atomic_path

WIDTH, HEIGHT = 12.0, 6.3  # inches; all coordinates below are inches from the lower left corner
TILE, PITCH, TILES = 0.27, 0.30, 8  # a full-resolution snippet, its place, places in a video
ACTION = (4, 7)  # the action covers these places, [first, last)
ACTION_TINT, PANEL, TRAINED = "#BBDDF2", "#F6F6F3", "#FBE3B0"
TEXT, FINE = 12, 11  # points
STRIPS = (  # name, reduction of time, reduction of each side, what it holds, what it saves
    ("S", 1, 2.0, "100 snippets, 112²", "fewer pixels"),
    ("T", 4, 1.0, "25 snippets, 224²", "fewer snippets"),
    ("ST", 2, math.sqrt(2.0), "50 snippets, 158²", "some of both"),
)


class _Box(NamedTuple):
    """A box by its left, bottom, width and height."""

    x: float
    y: float
    w: float
    h: float

    @property
    def middle(self) -> float:
        return self.x + self.w / 2

    @property
    def top(self) -> float:
        return self.y + self.h


PANELS = (_Box(0.1, 0.1, 2.75, 6.1), _Box(3.2, 0.1, 4.75, 6.1), _Box(8.3, 0.1, 3.6, 6.1))


def three_stages() -> Figure:
    """LoFi's stages: classify clips, learn end to end at low fidelity, train the final head."""
    figure = plt.figure(figsize=(WIDTH, HEIGHT))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal")
    ax.set_axis_off()
    for panel in PANELS:
        _rounded(ax, panel, facecolor=PANEL, edgecolor="#D0D0CA", radius=0.14)
    encoders = (
        _stage_one(ax, PANELS[0]),
        _stage_two(ax, PANELS[1]),
        _stage_three(ax, PANELS[2]),
    )
    for left, right in zip(encoders, encoders[1:]):
        y = left.y + left.h / 2
        _arrow(ax, (left.x + left.w + 0.03, y), (right.x - 0.03, y), width=3.5, colour=TRUTH)
    second = encoders[1]
    for x in ((PANELS[1].x + second.x) / 2, (PANELS[1].x + PANELS[1].w + second.x + second.w) / 2):
        ax.text(x, second.y + second.h / 2 + 0.1, "weights", ha="center", va="bottom",
                fontsize=FINE, color=TRUTH, weight="bold")  # fmt: skip
    return figure


def _stage_one(ax: Axes, panel: _Box) -> _Box:
    _heading(ax, panel, "1  Pre-train (ACP)", "clips that show one action")
    for i, (pose, name) in enumerate(((0.9, "cheer"), (0.1, "balance"), (-0.7, "walk"))):
        x = panel.x + 0.25 + 0.8 * i
        for shift in (0.1, 0.05):
            _sheet(ax, x + shift, 4.27 + shift, 0.6, ACTION_TINT)
        _tile(ax, x, 4.27, 0.6, pose=pose, tint=ACTION_TINT)
        ax.text(x + 0.3, 4.18, name, ha="center", va="top", fontsize=FINE)
    encoder, head = _column(ax, panel, "classifier")
    _gradient(ax, head, encoder)
    _output(ax, panel, head, "which action is it?")
    _footnote(ax, panel, "The encoder learns what\nhappens, not when.")
    return encoder


def _stage_two(ax: Axes, panel: _Box) -> _Box:
    _heading(ax, panel, "2  LoFi", "whole videos at low fidelity, three kinds in turn")
    left = panel.x + 0.6
    _action_band(ax, left, 3.66, 5.17)
    for (name, time, side, size, saved), y in zip(STRIPS, (4.87, 4.38, 3.89)):
        ax.text(panel.x + 0.5, y, name, ha="right", va="center", fontsize=TEXT, weight="bold")
        _strip(ax, left, y, time, TILE / side)
        x = left + TILES * PITCH + 0.1
        ax.text(x, y + 0.09, size, va="center", fontsize=FINE)
        ax.text(x, y - 0.1, saved, va="center", fontsize=FINE, style="italic", color="#444444")
    encoder, head = _column(ax, panel, "localization head")
    _gradient(ax, head, encoder)
    _output(ax, panel, head, "when does the action start and end?")
    _footnote(ax, panel, "Both learn from the localization loss; each strip\n"
              "needs a quarter of full fidelity's memory.")  # fmt: skip
    return encoder


def _stage_three(ax: Axes, panel: _Box) -> _Box:
    _heading(ax, panel, "3  Full-fidelity head", "whole videos at full fidelity")
    left = panel.middle - TILES * PITCH / 2
    _action_band(ax, left, 4.05, 4.75)
    _strip(ax, left, 4.4, 1, TILE)
    ax.text(panel.middle, 3.95, "100 snippets, 224²", ha="center", va="top", fontsize=FINE)
    encoder, head = _column(ax, panel, "localization head", frozen=True)
    _gradient(ax, head, encoder, stops=True)
    y = 1.02
    ax.plot((left, left + TILES * PITCH), (y, y), color=GREY, linewidth=1)
    start = left + (ACTION[0] + 0.1) * PITCH
    bar = Rectangle((start, y - 0.09), (ACTION[1] - ACTION[0] + 0.1) * PITCH, 0.18)
    bar.set(facecolor=FOUND, hatch="///", edgecolor="white")
    ax.add_patch(bar)
    _arrow(ax, (panel.middle, head.y - 0.03), (panel.middle, y + 0.14))
    ax.text(left + TILES * PITCH, y + 0.08, "detection", ha="right", va="bottom", fontsize=FINE)
    _footnote(ax, panel, "Full fidelity fits: a frozen encoder\nkeeps nothing for the gradient.")
    return encoder


def _heading(ax: Axes, panel: _Box, title: str, below: str) -> None:
    x = panel.x + 0.2
    ax.text(x, panel.top - 0.16, title, va="top", fontsize=15, weight="bold", color=INK)
    ax.text(x, panel.top - 0.5, below, va="top", fontsize=TEXT, color=INK)


def _footnote(ax: Axes, panel: _Box, text: str) -> None:
    ax.text(panel.middle, panel.y + 0.1, text, ha="center", va="bottom", fontsize=FINE,
            color="#444444", linespacing=1.25)  # fmt: skip


def _column(ax: Axes, panel: _Box, head_name: str, frozen: bool = False) -> tuple[_Box, _Box]:
    """Arrow from the input, encoder, arrow, head; returns the two boxes."""
    encoder = _Box(panel.middle - 0.9, 2.5, 1.8, 0.64)
    head = _Box(panel.middle - 1.1, 1.42, 2.2, 0.64)
    _arrow(ax, (panel.middle, 3.55), (panel.middle, encoder.top + 0.03))
    _arrow(ax, (panel.middle, encoder.y - 0.03), (panel.middle, head.top + 0.03))
    trained = {"facecolor": TRAINED, "edgecolor": "#A36A00", "linewidth": 1.8}
    still = {"facecolor": "#E3E6EA", "edgecolor": "#5F6B7A", "linewidth": 1.8, "linestyle": "--"}
    kept = "trained, new and kept" if frozen else "trained, then discarded"
    for box, name, state, look in (
        (encoder, "encoder", "frozen" if frozen else "trained", still if frozen else trained),
        (head, head_name, kept, trained),
    ):
        _rounded(ax, box, radius=0.09, **look)
        ax.text(box.middle, box.y + 0.65 * box.h, name, ha="center", va="center", fontsize=TEXT,
                weight="bold")  # fmt: skip
        ax.text(box.middle, box.y + 0.27 * box.h, state, ha="center", va="center", fontsize=FINE,
                style="italic")  # fmt: skip
    return encoder, head


def _output(ax: Axes, panel: _Box, head: _Box, text: str) -> None:
    _arrow(ax, (panel.middle, head.y - 0.03), (panel.middle, 1.17))
    ax.text(panel.middle, 1.14, text, ha="center", va="top", fontsize=TEXT)


def _gradient(ax: Axes, head: _Box, encoder: _Box, stops: bool = False) -> None:
    """A dashed arrow from the head back into the encoder, or one that stops before it."""
    x, low, high = encoder.x + 0.05, head.top + 0.04, encoder.y - 0.04
    colour = "#B34700"
    if stops:
        ax.plot((x, x), (low, low + 0.2), color=FALSE_ALARM, linewidth=1.8, linestyle=(0, (3, 1.5)))
        ax.plot(x, low + 0.27, "x", color=FALSE_ALARM, markersize=9, markeredgewidth=2.5)
    else:
        _arrow(ax, (x, low), (x, high), colour=FALSE_ALARM, dashed=True)
    text = "gradient\nstops" if stops else "gradient"
    ax.text(x + 0.13, (low + high) / 2, text, va="center", fontsize=FINE, color=colour,
            linespacing=1.0)  # fmt: skip


def _action_band(ax: Axes, left: float, low: float, high: float) -> None:
    x, width = left + ACTION[0] * PITCH, (ACTION[1] - ACTION[0]) * PITCH
    ax.add_patch(Rectangle((x, low), width, high - low, facecolor=ACTION_TINT, edgecolor="none"))
    ax.text(x + width / 2, high + 0.03, "action", ha="center", va="bottom", fontsize=FINE,
            color=TRUTH)  # fmt: skip


def _strip(ax: Axes, left: float, y: float, time: int, side: float) -> None:
    """A video as squares at their times: every `time`-th place holds one, `side` inches large."""
    ax.plot((left, left + TILES * PITCH), (y, y), color=GREY, linewidth=0.8, zorder=1.5)
    for i in range(TILES // time):
        place = (i + 0.5) * time
        acting = ACTION[0] <= place < ACTION[1]
        x = left + place * PITCH - side / 2
        _tile(ax, x, y - side / 2, side, pose=0.9 if acting else -0.9)


def _tile(ax: Axes, x: float, y: float, side: float, pose: float, tint: str = "white") -> None:
    """A frame with a stick figure; `pose` from -1 (arms down) to 1 (arms up)."""
    _sheet(ax, x, y, side, tint)
    line = {"color": INK, "linewidth": max(0.7, 3.4 * side), "zorder": 3, "solid_capstyle": "round"}
    middle = x + side / 2
    ax.add_patch(plt.Circle((middle, y + 0.77 * side), 0.09 * side, color=INK, zorder=3))
    ax.plot((middle, middle), (y + 0.68 * side, y + 0.38 * side), **line)
    hands = y + (0.58 + 0.26 * pose) * side
    for sign in (-1, 1):
        ax.plot((middle, middle + sign * 0.26 * side), (y + 0.6 * side, hands), **line)
        ax.plot((middle, middle + sign * 0.15 * side), (y + 0.38 * side, y + 0.12 * side), **line)


def _sheet(ax: Axes, x: float, y: float, side: float, tint: str) -> None:
    square = Rectangle((x, y), side, side, facecolor=tint, edgecolor=INK, linewidth=0.9, zorder=2)
    ax.add_patch(square)


def _rounded(ax: Axes, box: _Box, radius: float, **look) -> None:
    shape = FancyBboxPatch(
        (box.x, box.y), box.w, box.h, boxstyle=f"round,pad=0,rounding_size={radius}", **look
    )
    ax.add_patch(shape)


def _arrow(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    width: float = 1.8,
    colour: str = INK,
    dashed: bool = False,
) -> None:
    ax.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=10 + 3 * width, linewidth=width,
            color=colour, linestyle=(0, (3, 1.5)) if dashed else "-", shrinkA=0, shrinkB=0,
            zorder=4,
        )
    )  # fmt: skip


def draw() -> None:
    """Write the picture beside this file."""
    with atomic_path(Path(__file__).with_name("three_stages.png")) as picture:
        three_stages().savefig(picture, dpi=110)


if __name__ == "__main__":
    draw()
