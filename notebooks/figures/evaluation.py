"""Diagrams of notebooks 06 and 06a: how detections are matched, averaged, suppressed and named.

`python notebooks/figures/evaluation.py` writes matching.svg, interpolation.svg, suppression.svg and
errors.svg. Every curve is computed, none is drawn by eye.
"""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from lofi.figures.style import FALSE_ALARM, FOUND, GREY, INK, TRUTH
from lofi.files import write_text

WIDTH, LARGE, SMALL = 700, 18, 16  # pixels
PAPER = "#FBFBF8"
PALE = {FOUND: "#CCECE3", FALSE_ALARM: "#F9DFCF", TRUTH: "#CCE3F0", GREY: "#E9E9E4"}
Point = tuple[float, float]


def words(x: float, y: float, text: str, size: int = SMALL, colour: str = INK,
          anchor: str = "start", bold: bool = False) -> str:  # fmt: skip
    look = f'fill="{colour}" font-size="{size}" text-anchor="{anchor}"'
    look += ' font-weight="bold"' if bold else ""
    look += f' paint-order="stroke" stroke="{PAPER}" stroke-width="4"'  # over lines
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(text)}</text>'


def bar(x: float, y: float, width: float, height: float, colour: str, dashed: bool = False) -> str:
    look = f'fill="{PALE[colour]}" stroke="{colour}" stroke-width="2"'
    look += ' stroke-dasharray="6 4"' if dashed else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" {look}/>'


def line(points: Sequence[Point], colour: str, thick: float = 2, dashes: str = "") -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    look = f'fill="none" stroke="{colour}" stroke-width="{thick}"'
    look += f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<polyline points="{places}" {look}/>'


def dot(x: float, y: float, colour: str, hollow: bool = False) -> str:
    fill = "white" if hollow else colour
    look = f'fill="{fill}" stroke="{colour}" stroke-width="2"'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" {look}/>'


def svg(height: int, title: str, parts: Sequence[str]) -> str:
    """A picture on a light panel of its own, legible on white and on dark pages."""
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" '
    head += f'font-family="Helvetica, Arial, sans-serif"><title>{escape(title)}</title>'
    panel = f'<rect x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="14" '
    panel += f'fill="{PAPER}" stroke="#D0D0CA"/>'
    return "\n".join([head, panel, *parts, "</svg>", ""])


def matching() -> str:
    """Notebook 06's five detections, best score first, and what each of them finds."""
    left, unit = 110, 7.8  # pixels at 0 s, pixels a second
    actions = [(0, 10), (20, 30), (40, 50)]
    guesses = [
        (1, 10, 0.9, "finds action 1 (tIoU 0.90)"), (21, 34, 0.8, "finds action 2 (0.64)"),
        (0, 9, 0.7, "action 1 is taken: false alarm"), (60, 70, 0.6, "touches none: false alarm"),
        (42, 49, 0.5, "finds action 3 (0.70)"),
    ]  # fmt: skip
    parts = [words(20, 45, "actions", LARGE, bold=True), words(20, 92, "score", LARGE, bold=True)]
    for number, (start, end) in enumerate(actions, 1):
        x = left + start * unit
        parts.append(line([(x, 62), (x, 345)], TRUTH, 1, "2 5"))
        parts.append(line([(left + end * unit, 62), (left + end * unit, 345)], TRUTH, 1, "2 5"))
        parts.append(bar(x, 25, (end - start) * unit, 34, TRUTH))
        parts.append(words(x + 5 * unit, 48, str(number), LARGE, anchor="middle", bold=True))
    for row, (start, end, score, text) in enumerate(guesses):
        y, right = 105 + 48 * row, "finds" in text
        colour = FOUND if right else FALSE_ALARM
        parts.append(words(28, y + 22, f"{score:.1f}", LARGE))
        parts.append(bar(left + start * unit, y, (end - start) * unit, 30, colour, not right))
        parts.append(words(left + (start + end) / 2 * unit, y + 22, "✓" if right else "✗", LARGE,
                           colour, "middle", True))  # fmt: skip
        beside = left + end * unit + 8
        room = beside + 8.2 * len(text) < WIDTH
        place = (beside, "start") if room else (left + start * unit - 8, "end")
        parts.append(words(place[0], y + 21, text, SMALL, colour, place[1]))
    return svg(365, "Matching detections with actions, best score first", parts)


def interpolation() -> str:
    """A zigzag of precision over recall, and the staircase whose area is the AP."""
    hits = [False, True, True, False, True]
    x0, y0, wide, high = 80, 300, 380, 250
    found, points = 0, []
    for seen, hit in enumerate(hits, 1):
        found += hit
        points.append((found / 3, found / seen))
    best = [max(p for r, p in points if r >= k / 3) for k in (1, 2, 3)]

    def at(recall: float, precision: float) -> Point:
        return x0 + wide * recall, y0 - high * precision

    stairs = [at(k / 3 + side / 3, best[k]) for k in range(3) for side in (0, 1)]
    area = [at(0, 0), *stairs, at(1, 0)]
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in area)
    parts = [f'<polygon points="{corners}" fill="{PALE[TRUTH]}"/>']
    parts += [line([at(0, 1.05), at(0, 0), at(1.08, 0)], INK)]
    parts += [line([at(*p) for p in points], FALSE_ALARM, 2, "7 5"), line(stairs, TRUTH, 4)]
    parts += [dot(*at(*p), FOUND if hit else FALSE_ALARM, not hit) for p, hit in zip(points, hits)]
    for k in range(4):
        x, _ = at(k / 3, 0)
        parts.append(words(x, y0 + 24, ("0", "1/3", "2/3", "1")[k], anchor="middle"))
    for value in (0, 0.5, 1):
        parts.append(words(x0 - 10, at(0, value)[1] + 6, f"{value:g}", anchor="end"))
    parts.append(words(x0 + wide / 2, y0 + 48, "recall", LARGE, anchor="middle"))
    parts.append(words(20, 32, "precision", LARGE))
    legend = [
        (FOUND, "a hit"), (FALSE_ALARM, "a false alarm"), (FALSE_ALARM, "as the list grows"),
        (TRUTH, "best precision at"), (TRUTH, "this recall or more"),
    ]  # fmt: skip
    for row, (colour, text) in enumerate(legend):
        y = 90 + 34 * row - (10 if row == 4 else 0)
        if row < 2:
            parts.append(dot(505, y - 6, colour, row == 1))
        elif row < 4:
            dashes, thick = ("7 5", 2) if row == 2 else ("", 4)
            parts.append(line([(490, y - 6), (520, y - 6)], colour, thick, dashes))
        parts.append(words(530, y, text))
    area = sum(best) / 3
    parts.append(words(490, 250, f"AP = shaded = {area:.3f}", LARGE, TRUTH, bold=True))
    return svg(365, "Average precision is the area under a staircase", parts)


def suppression() -> str:
    """What hard, linear and Gaussian suppression leave of a score."""
    x0, y0, wide, high = 80, 290, 360, 230
    grid = [i / 100 for i in range(101)]

    def curve(rule) -> list[Point]:
        return [(x0 + wide * t, y0 - high * rule(t)) for t in grid]

    rules = [
        (lambda t: float(t < 0.5), GREY, "2 5", "hard: all or nothing"),
        (lambda t: 1 - t if t >= 0.5 else 1.0, FALSE_ALARM, "9 5", "linear: still a step"),
        (lambda t: math.exp(-(t**2) / 0.84), TRUTH, "", "Gaussian: no step"),
    ]
    parts = [line([(x0, 45), (x0, y0), (x0 + wide + 20, y0)], INK)]
    for row, (rule, colour, dashes, text) in enumerate(rules):
        parts.append(line(curve(rule), colour, 4, dashes))
        y = 110 + 40 * row
        parts.append(line([(470, y - 6), (510, y - 6)], colour, 4, dashes))
        parts.append(words(520, y, text))
    for value in (0, 0.5, 1):
        x = x0 + wide * value
        parts.append(words(x, y0 + 24, f"{value:g}", anchor="middle"))
        parts.append(words(x0 - 10, y0 - high * value + 6, f"{value:g}", anchor="end"))
    parts.append(
        words(x0 + wide / 2, y0 + 48, "tIoU with the picked segment", LARGE, anchor="middle")
    )
    parts.append(words(20, 34, "share of the score that is left", LARGE))
    parts.append(words(470, 235, "0.49 and 0.51 are the"))
    parts.append(words(470, 257, "same overlap: a rule with"))
    parts.append(words(470, 279, "a step parts them."))
    return svg(355, "Three rules of suppression", parts)


def errors() -> str:
    """The kinds of detections that notebook 06a counts."""
    left, unit = 250, 4.2
    kinds = [
        ("true positive", 22, 58, FOUND, "jump", "tIoU high enough, right class"),
        ("double detection", 18, 60, FALSE_ALARM, "jump", "the action is already found"),
        ("localisation error", 38, 90, FALSE_ALARM, "jump", "right class, too little overlap"),
        ("wrong label", 21, 61, FALSE_ALARM, "run", "good segment, another class"),
        ("confusion", 40, 92, FALSE_ALARM, "run", "little overlap, another class"),
        ("background", 70, 98, FALSE_ALARM, "jump", "touches no action"),
    ]
    parts = [
        words(20, 43, "the action", LARGE, bold=True),
        bar(left + 20 * unit, 20, 40 * unit, 34, TRUTH),
    ]
    parts.append(words(left + 40 * unit, 43, "jump", LARGE, anchor="middle"))
    for edge in (20, 60):
        parts.append(line([(left + edge * unit, 58), (left + edge * unit, 435)], TRUTH, 1, "2 5"))
    for row, (name, start, end, colour, label, why) in enumerate(kinds):
        y = 76 + 60 * row
        parts.append(bar(left + start * unit, y, (end - start) * unit, 30, colour, colour != FOUND))
        middle = left + (start + end) / 2 * unit
        parts.append(words(middle, y + 21, label, SMALL, anchor="middle"))
        parts.append(words(20, y + 14, name, LARGE, bold=True))
        parts.append(words(20, y + 36, why, 14))
    return svg(445, "Kinds of detections", parts)


def draw() -> None:
    folder = Path(__file__).parent
    for picture in (matching, interpolation, suppression, errors):
        write_text(folder / f"{picture.__name__}.svg", picture())


if __name__ == "__main__":
    draw()
