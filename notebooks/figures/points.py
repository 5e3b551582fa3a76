"""What a point of ActionFormer is, and the pyramid that points stand on: points.svg, notebook 10.

`python notebooks/figures/points.py` draws it.
"""

from pathlib import Path

from figures.evaluation import LARGE, SMALL, bar, dot, line, svg, words

from lofi.figures.style import FALSE_ALARM, FOUND, GREY, TRUTH
from lofi.files import write_text

LEFT, STEP, STEPS = 130, 34, 16  # pixels at step 0, pixels a step


def points() -> str:
    """An action from step 2.5 to step 11, and the row of points halved twice."""
    start, end, point = LEFT + 2.5 * STEP, LEFT + 11 * STEP, LEFT + 8 * STEP
    parts = [bar(start, 40, end - start, 34, TRUTH)]
    parts.append(words((start + end) / 2, 63, "action", LARGE, anchor="middle"))
    for x in (start, end):
        parts.append(line([(x, 74), (x, 300)], TRUTH, 1, "2 5"))
    for level in range(3):
        y = 140 + 70 * level
        parts.append(words(20, y + 6, f"level {level}", LARGE, bold=True))
        for t in range(0, STEPS, 2**level):
            parts.append(dot(LEFT + t * STEP, y, GREY, hollow=True))
    parts.append(line([(point, 210), (start, 210)], FOUND, 3))
    parts.append(line([(point, 210), (end, 210)], FALSE_ALARM, 3))
    for x, colour, side in ((start, FOUND, 1), (end, FALSE_ALARM, -1)):
        parts.append(line([(x + 12 * side, 202), (x, 210), (x + 12 * side, 218)], colour, 3))
    parts.append(dot(point, 210, TRUTH))
    parts.append(words((start + point) / 2, 192, "to the beginning", SMALL, FOUND, "middle"))
    parts.append(words(end + 10, 192, "to the end", SMALL, FALSE_ALARM))
    parts.append(words(LEFT, 330, "one point a step, then every second, then every fourth", SMALL))
    return svg(350, "A point and its two distances, on a pyramid of points", parts)


def draw() -> None:
    write_text(Path(__file__).with_suffix(".svg"), points())


if __name__ == "__main__":
    draw()
