"""Colours (Okabe and Ito's palette), plain-data conversion and axes that every figure shares.

Figures take numbers and give matplotlib Axes back; no figure carries a meaning by colour alone.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes

from lofi.files import printable

TRUTH, FOUND, FALSE_ALARM = "#0072B2", "#009E73", "#D55E00"  # blue, green, vermilion
AMBER, SKY, PURPLE = "#E69F00", "#56B4E9", "#CC79A7"
INK, GREY, LIGHT = "#222222", "#767676", "#E6E6E6"
CYCLE = (TRUTH, AMBER, FOUND, PURPLE, SKY, FALSE_ALARM, INK)
HATCHES = ("", "//", "xx", "..", "\\\\", "++", "oo")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
SMALL = 9  # points; the smallest text in any figure
OUTLINE = [patheffects.withStroke(linewidth=3, foreground="white")]  # keeps text legible on bars
EDGE = [patheffects.withStroke(linewidth=3.5, foreground="white")]  # and marks on maps
BESIDE = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False}  # places of legends
ABOVE = {"loc": "lower left", "bbox_to_anchor": (0, 1), "frameon": False}

Canvas = Axes | None  # where to draw; None makes a new figure
Segments = Iterable[Any] | None  # in any form that `as_spans` takes


class Span(NamedTuple):
    """One segment to draw: [start_s, end_s) in seconds, with a label and a score where known."""

    start_s: float
    end_s: float
    label: str = ""
    score: float | None = None

    @property
    def length_s(self) -> float:
        return self.end_s - self.start_s


def as_array(values: Any, dims: int = 0, what: str = "values") -> np.ndarray:
    """Any array, nested list or tensor (of any device) as a NumPy array.

    `dims`, unless 0, is how many dimensions it must have; `what` begins the error message.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
    array = np.asarray(values)
    if dims and array.ndim != dims:
        raise ValueError(f"{what}, got {array.shape}")
    return array


def as_spans(segments: Segments) -> list[Span]:
    """Segments as `Span`s; refuses those that end before they start. None is no segment.

    They come as (start, end[, label[, score]]) tuples, as an (N, 2) array or tensor, or as objects
    with `start_s`, `end_s` and `label`.
    """
    if hasattr(segments, "detach") or isinstance(segments, np.ndarray):
        segments = as_array(segments).tolist()
    spans = []
    for i, item in enumerate(segments if segments is not None else ()):
        if hasattr(item, "start_s") and not isinstance(item, tuple):
            item = (item.start_s, item.end_s, item.label)
        if not 2 <= len(item) <= 4:
            form = "(start, end[, label[, score]])"
            raise ValueError(f"segment {i} has {len(item)} entries; give {form}")
        start, end, label, score = *item, *(None,) * (4 - len(item))
        if not float(start) <= float(end):
            raise ValueError(f"segment {i} runs from {start} to {end}; the end must not come first")
        score = None if score is None else float(score)
        spans.append(Span(float(start), float(end), str(label or ""), score))
    return spans


def literal(text: str) -> str:
    """A name as matplotlib shows it as it is: no formula between dollars, no control characters."""
    return printable(text).replace("$", r"\$")


def fill(i: int) -> dict[str, Any]:
    """Colour and hatch of the i-th kind of bar."""
    colour, hatch = CYCLE[i % len(CYCLE)], HATCHES[i % len(HATCHES)]
    return {"facecolor": colour, "hatch": hatch, "edgecolor": "white"}


def stroke(i: int) -> dict[str, Any]:
    """Colour and dashes of the i-th line."""
    return {"color": CYCLE[i % len(CYCLE)], "linestyle": LINES[i % len(LINES)], "linewidth": 2}


def axes_for(ax: Canvas, width: float, height: float) -> Axes:
    """`ax`, or that of a new figure of `width` × `height` inches, without upper and right edge."""
    ax = ax or plt.subplots(figsize=(width, height), layout="constrained")[1]
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def axes_size_px(ax: Axes) -> tuple[float, float]:
    """Roughly how many pixels wide and high `ax` will be drawn (before the layout is known)."""
    figure, place = ax.get_figure(root=True), ax.get_position()
    width, height = figure.get_size_inches() * figure.dpi
    return width * place.width, height * place.height
