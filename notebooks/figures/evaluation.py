"""Diagrams of notebooks 06, 06a and 10: matching, averaging, suppression, errors, points.

Every curve is computed, none is drawn by eye.
"""

import math

from figures.svg import BLUE, GREEN, RED, SMALL, Picture

from lofi.figures.style import FALSE_ALARM, FOUND, GREY, INK, TRUTH

ACTIONS = [(0, 10), (20, 30), (40, 50)]  # of notebook 06, in seconds
GUESSES = [  # start, end, score, what it finds
    (1, 10, 0.9, "finds action 1"), (21, 34, 0.8, "finds action 2"), (0, 9, 0.7, "1 is taken"),
    (60, 70, 0.6, "touches none"), (42, 49, 0.5, "finds action 3"),
]  # fmt: skip
HITS = [False, True, True, False, True]  # once the first detection is misplaced


def matching() -> Picture:
    """Notebook 06's five detections, best score first, and what each of them finds."""
    left, unit = 110, 7.6  # pixels at 0 s, pixels a second
    picture = Picture(
        365, "Matching detections with actions, best score first",
        "Three actions in a row, five detections below, by falling score. The first, the second "
        "and the last find an action each; the third comes too late, the fourth touches nothing.",
    )  # fmt: skip
    picture.text(20, 48, "actions", anchor="start", bold=True)
    picture.text(20, 94, "score", anchor="start", bold=True)
    for number, (start, end) in enumerate(ACTIONS, 1):
        for edge in (start, end):
            picture.line([(left + edge * unit, 62), (left + edge * unit, 345)], BLUE, 1.5)
        box = left + start * unit, 25, (end - start) * unit, 34
        picture.box(*box, f"{number}", fill=BLUE, edge=TRUTH, bold=True)
    for row, (start, end, score, words) in enumerate(GUESSES):
        y, right = 105 + 48 * row, "finds" in words
        picture.text(30, y + 22, f"{score}", anchor="start")
        look = {"fill": GREEN, "edge": FOUND} if right else {"fill": RED, "edge": FALSE_ALARM}
        box = left + start * unit, y, (end - start) * unit, 30
        picture.box(*box, dashed=not right, **look)
        beside, side = (start, -8) if start > 50 else (end, 8)
        anchor = "end" if start > 50 else "start"
        picture.text(left + beside * unit + side, y + 21, words, size=SMALL, anchor=anchor)
    return picture


def staircase(hits: list[bool]) -> tuple[list[tuple[float, float]], list[float]]:
    """(recall, precision) as the list grows, and the best precision from each hit's recall on."""
    found = [sum(hits[: n + 1]) for n in range(len(hits))]
    points = [(right / sum(hits), right / (n + 1)) for n, right in enumerate(found)]
    steps = [k / sum(hits) for k in range(1, sum(hits) + 1)]
    return points, [max(p for r, p in points if r >= step) for step in steps]


def interpolation() -> Picture:
    """A zigzag of precision over recall, and the staircase whose area is the AP."""
    points, best = staircase(HITS)
    picture = Picture(
        365, "Average precision is the area under a staircase",
        "Precision over recall: the raw values zigzag, the staircase takes for every recall the "
        "best precision at this recall or more, two thirds twice and then 0.6.",
    )  # fmt: skip

    def at(recall: float, precision: float) -> tuple[float, float]:
        return 80 + 380 * recall, 300 - 250 * precision

    stairs = [at((k + side) / 3, best[k]) for k in range(3) for side in (0, 1)]
    picture.line([at(0, 0), *stairs, at(1, 0)], BLUE, 0, fill=BLUE)
    picture.line([at(0, 1.05), at(0, 0), at(1.08, 0)])
    picture.line([at(*point) for point in points], FALSE_ALARM, 2, dashed=True)
    picture.line(stairs, TRUTH, 4)
    for point, hit in zip(points, HITS):
        picture.dot(*at(*point), 6, FOUND if hit else "white", FOUND if hit else FALSE_ALARM)
    for recall, word in zip((0, 1 / 3, 2 / 3, 1), ("0", "1/3", "2/3", "1")):
        picture.text(at(recall, 0)[0], 324, word, size=SMALL)
    for precision in (0.5, 1):
        picture.text(70, at(0, precision)[1] + 6, f"{precision:g}", size=SMALL, anchor="end")
    picture.text(270, 350, "recall")
    picture.text(20, 32, "precision", anchor="start")
    picture.dot(505, 84, 6, FOUND, FOUND)
    picture.dot(505, 118, 6, "white", FALSE_ALARM)
    picture.line([(490, 152), (520, 152)], FALSE_ALARM, 2, dashed=True)
    picture.line([(490, 186), (520, 186)], TRUTH, 4)
    legend = "a hit", "a false alarm", "as it grows", "best from here"
    for row, words in enumerate(legend):
        picture.text(532, 90 + 34 * row, words, size=SMALL, anchor="start")
    picture.text(490, 250, f"AP = {sum(best) / 3:.3f}", bold=True, colour=TRUTH, anchor="start")
    return picture


def suppression() -> Picture:
    """What hard, linear and Gaussian suppression leave of a score."""
    picture = Picture(
        355, "Three rules of suppression",
        "Share of a score that is left against the overlap: the hard rule falls from one to "
        "nothing at one half, the linear rule has a step there, the Gaussian falls smoothly.",
    )  # fmt: skip
    rules = [
        (lambda t: float(t < 0.5), GREY, 2, True, "hard"),
        (lambda t: 1 - t if t >= 0.5 else 1.0, FALSE_ALARM, 3.5, True, "linear"),
        (lambda t: math.exp(-(t**2) / 0.84), TRUTH, 4, False, "Gaussian"),
    ]
    picture.line([(80, 45), (80, 290), (470, 290)])
    for row, (rule, colour, thick, dashed, words) in enumerate(rules):
        curve = [(80 + 3.6 * n, 290 - 230 * rule(n / 100)) for n in range(101)]
        picture.line(curve, colour, thick, dashed)
        y = 110 + 42 * row
        picture.line([(500, y - 6), (545, y - 6)], colour, thick, dashed)
        picture.text(558, y, words, anchor="start")
    for value in (0, 0.5, 1):
        picture.text(80 + 360 * value, 314, f"{value:g}", size=SMALL)
        if value:
            picture.text(70, 296 - 230 * value, f"{value:g}", size=SMALL, anchor="end")
    picture.text(260, 340, "tIoU with the picked segment")
    picture.text(20, 34, "share of the score that is left", anchor="start")
    return picture


def errors() -> Picture:
    """The kinds of detections that notebook 06a counts."""
    left, unit = 250, 4.2
    kinds = [
        ("true positive", 22, 58, "jump"), ("double detection", 18, 60, "jump"),
        ("localisation error", 38, 90, "jump"), ("wrong label", 21, 61, "run"),
        ("confusion", 40, 92, "run"), ("background", 70, 98, "jump"),
    ]  # fmt: skip
    picture = Picture(
        385, "Kinds of detections",
        "One action, a jump, and six detections below it: a true positive, a double detection, a "
        "localisation error, a wrong label, a confusion, and background.",
    )  # fmt: skip
    picture.text(20, 45, "the action", anchor="start", bold=True)
    for edge in (20, 60):
        picture.line([(left + edge * unit, 56), (left + edge * unit, 368)], BLUE, 1.5)
    picture.box(left + 20 * unit, 20, 40 * unit, 36, "jump", fill=BLUE, edge=TRUTH)
    for row, (name, start, end, label) in enumerate(kinds):
        y = 76 + 50 * row
        look = {"fill": RED, "edge": FALSE_ALARM, "dashed": True}
        look = {"fill": GREEN, "edge": FOUND} if row == 0 else look
        picture.box(left + start * unit, y, (end - start) * unit, 32, label, **look)
        picture.text(20, y + 23, name, anchor="start")
    return picture


def points() -> Picture:
    """A point of ActionFormer and its two distances, on a row of points halved twice."""
    left, step, steps = 130, 34, 16  # pixels at step 0, pixels a step
    start, end, point = left + 2.5 * step, left + 11 * step, left + 8 * step
    picture = Picture(
        320, "A point and its two distances, on a pyramid of points",
        "Three rows of points, each with half as many as the one above. One point of the middle "
        "row has an arrow to the beginning of an action and one to its end.",
    )  # fmt: skip
    for x in (start, end):
        picture.line([(x, 74), (x, 300)], BLUE, 1.5)
    picture.box(start, 40, end - start, 34, "action", fill=BLUE, edge=TRUTH)
    for level in range(3):
        y = 140 + 70 * level
        picture.text(20, y + 6, f"level {level}", anchor="start", bold=True)
        for t in range(0, steps, 2**level):
            picture.dot(left + t * step, y, 6, "white", GREY)
    picture.arrow([(point, 210), (start, 210)], FOUND, 3)
    picture.arrow([(point, 210), (end, 210)], FALSE_ALARM, 3)
    picture.dot(point, 210, 7, TRUTH, INK)
    picture.text((start + point) / 2, 192, "to the beginning", size=SMALL)
    picture.text(end + 12, 192, "to the end", size=SMALL, anchor="start")
    return picture
