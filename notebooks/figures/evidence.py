"""Diagrams of notebook 13: what pairing takes out, and when a claim has a verdict.

Intervals, means and verdicts are computed from the differences that are drawn.
"""

from collections.abc import Sequence

from figures.svg import BLUE, GREEN, RED, SMALL, YELLOW, Picture

from lofi.evaluation.paired import paired, verdict
from lofi.figures.style import FALSE_ALARM, FOUND, GREY, INK, TRUTH

ONE, OTHER = (46, 51, 44, 49, 53), (49, 55, 46, 53, 55)  # percent, made up; a pair a seed
CASES = {  # made up, too
    "all seeds above 0": (2.1, 3.4, 2.6, 4.0, 2.9),
    "all seeds below 0": (-1.2, -2.3, -3.0, -1.9, -2.6),
    "mean above 0, one seed far": (0.4, 5.2, 1.0, -0.9, 2.2),
    "close to 0, and narrow": (0.3, -0.4, 0.2, 0.5, -0.3),
}


def paired_seeds() -> Picture:
    """Two columns of dots that overlap, and their differences, which do not overlap with zero."""
    picture = Picture(
        340, "Seeds move both methods; the difference is steadier",
        "Left: results of methods A and B on five seeds, a line joins those of one seed. The "
        "columns overlap, but every line rises. Right: the five differences, all above zero.",
    )  # fmt: skip
    top, unit = 275, 17.0  # pixels: where 42 % is, a point
    places = [[top - unit * (value - 42) for value in values] for values in (ONE, OTHER)]
    picture.text(160, 36, "results of five seeds", bold=True)
    for a, b in zip(*places):
        picture.line([(80, a), (240, b)], GREY, 1.5)
        picture.dot(80, a, 7, TRUTH)
        picture.box(233, b - 7, 14, 14, fill=FALSE_ALARM, edge=FALSE_ALARM)
    picture.text(80, 318, "A")
    picture.text(240, 318, "B")
    picture.text(520, 36, "differences B − A", bold=True)
    left, width = 400, 55.0  # pixels: where 0 is, a point
    picture.line([(left, 80), (left, 250)], INK, 2)
    picture.line([(left - 30, 250), (left + 5 * width, 250)], INK, 1.5)
    for value in range(6):
        picture.text(left + value * width, 278, f"{value}", size=SMALL)
    picture.text(520, 318, "points of mAP", size=SMALL)
    differences = [b - a for a, b in zip(ONE, OTHER)]
    for value in {*differences}:
        for stack in range(differences.count(value)):
            picture.dot(left + value * width, 225 - 26 * stack, 9, FOUND)
    mean = paired(differences).mean
    picture.line([(left + mean * width, 110), (left + mean * width, 242)], INK, 2, dashed=True)
    picture.text(left + mean * width, 98, f"mean {mean:.1f}", size=SMALL)
    return picture


def _case(picture: Picture, y: float, words: str, values: Sequence[float]) -> None:
    zero, unit = 255, 38.0
    found, word = paired(values), verdict(values)
    fill, edge = {"reproduced": (GREEN, FOUND), "contradicted": (RED, FALSE_ALARM)}.get(
        word, (YELLOW if found.sd > 1 else BLUE, INK)
    )
    picture.text(24, y - 24, words, size=SMALL, anchor="start")
    low, high = zero + unit * found.low, zero + unit * found.high
    picture.box(low, y - 12, high - low, 24, fill=fill, edge=edge)
    for value in values:
        picture.dot(zero + unit * value, y, 5, INK)
    mean = zero + unit * found.mean
    picture.line([(mean, y - 18), (mean, y + 18)], INK, 3)
    picture.text(580, y + 7, word)


def verdicts() -> Picture:
    """Four sets of five differences with their intervals and their verdicts."""
    picture = Picture(
        390, "When a claim has a verdict",
        "Four rows of five differences with the interval of their mean. Far above zero: "
        "reproduced. Far below zero: contradicted. An interval that holds zero, wide or narrow: "
        "not established.",
    )  # fmt: skip
    picture.text(255, 36, "0", bold=True)
    picture.line([(255, 46), (255, 372)], INK, 1.5, dashed=True)
    for row, (words, values) in enumerate(CASES.items()):
        _case(picture, 96 + 84 * row, words, values)
    return picture
