"""What the course's diagrams are drawn with: boxes, arrows, words, on a light panel of its own.

Coordinates are pixels from the upper left corner of a picture that is WIDTH wide; a phone shows it
at half that size, so words are few and large. The same call gives the same bytes.
"""

from collections.abc import Sequence
from html import escape

from lofi.figures.style import INK

WIDTH = 700
SMALL, TEXT, LARGE = 18, 20, 24  # pixels
PAPER, EDGE = "#FBFBF8", "#D0D0CA"
# Pale forms of the colours, to write on.
BLUE, GREEN, RED, YELLOW = "#CCE3F0", "#CCECE3", "#F9DFCF", "#FBEBCC"
PLAIN = "#E9E9E4"

Point = tuple[float, float]


class Picture:
    """An SVG that grows by one shape a call; `svg()` is its text.

    Args:
        title, description: what a screen reader says.
    """

    def __init__(self, height: int, title: str, description: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img" aria-labelledby="t d" '
            'font-family="Helvetica, Arial, sans-serif">',
            f'<title id="t">{escape(title)}</title>',
            f'<desc id="d">{escape(description)}</desc>',
        ]
        self.box(1, 1, WIDTH - 2, height - 2, fill=PAPER, edge=EDGE, corner=14)

    def svg(self) -> str:
        return "\n".join([*self.parts, "</svg>", ""])

    def box(
        self, x: float, y: float, width: float, height: float, words: str = "", *,
        fill: str = "white", edge: str = INK, thick: float = 1.5, corner: float = 0,
        dashed: bool = False, size: int = TEXT, bold: bool = False, colour: str = INK,
        opacity: float = 1.0,
    ) -> None:  # fmt: skip
        """A rectangle, with `words` (lines divided by newlines) in its middle."""
        look = {"fill": fill, "stroke": edge, "stroke-width": thick, "rx": corner or None,
                "stroke-dasharray": "6 4" if dashed else None,
                "fill-opacity": None if opacity == 1 else opacity}  # fmt: skip
        self._add("rect", x=x, y=y, width=width, height=height, **look)
        if words:
            middle = (x + width / 2, y + height / 2 + 0.35 * size)
            self.text(*middle, words, size=size, bold=bold, colour=colour, centred=True)

    def text(
        self, x: float, y: float, words: str, *, size: int = TEXT, anchor: str = "middle",
        colour: str = INK, bold: bool = False, italic: bool = False, centred: bool = False,
    ) -> None:  # fmt: skip
        """Lines of words, the baseline of the first at `y`, or all of them `centred` on it."""
        lines, step = words.split("\n"), 1.22 * size
        y -= (len(lines) - 1) * step / 2 if centred else 0
        look = {"font-size": size, "text-anchor": anchor, "fill": colour,
                "font-weight": "bold" if bold else None,
                "font-style": "italic" if italic else None}  # fmt: skip
        for i, line in enumerate(lines):
            self._add("text", escape(line), x=x, y=y + i * step, **look)

    def line(
        self, points: Sequence[Point], colour: str = INK, thick: float = 2, dashed: bool = False,
        fill: str = "none",
    ) -> None:  # fmt: skip
        """Straight from point to point; with a fill it is an area."""
        places = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
        dash = "6 4" if dashed else None
        self._add("polyline" if fill == "none" else "polygon", points=places, fill=fill,
                  stroke=colour, **{"stroke-width": thick, "stroke-dasharray": dash,
                                    "stroke-linejoin": "round"})  # fmt: skip

    def arrow(
        self, points: Sequence[Point], colour: str = INK, thick: float = 2.5, dashed: bool = False
    ) -> None:
        """A line whose last point is the tip of an arrow."""
        *_, (x0, y0), (x, y) = points
        length, size = ((x - x0) ** 2 + (y - y0) ** 2) ** 0.5, 4 + 3 * thick
        dx, dy = (x - x0) / length, (y - y0) / length
        back = (x - size * dx, y - size * dy)
        self.line([*points[:-1], back], colour, thick, dashed)
        wings = [(back[0] + s * 0.5 * size * dy, back[1] - s * 0.5 * size * dx) for s in (1, -1)]
        self.line([(x, y), *wings], colour, 0, fill=colour)

    def curve(
        self, start: Point, control: Point, end: Point, colour: str = INK, thick: float = 2,
        dashed: bool = False,
    ) -> None:  # fmt: skip
        """A bow from start to end, drawn towards `control`."""
        (a, b), (c, d), (e, f) = (tuple(map(_number, p)) for p in (start, control, end))
        look = {"stroke-width": thick, "stroke-dasharray": "6 4" if dashed else None}
        self._add("path", d=f"M{a} {b}Q{c} {d} {e} {f}", fill="none", stroke=colour, **look)

    def dot(
        self, x: float, y: float, radius: float = 5, fill: str = INK, edge: str = "none",
        thick: float = 1.5,
    ) -> None:  # fmt: skip
        self._add("circle", cx=x, cy=y, r=radius, fill=fill, stroke=edge,
                  **{"stroke-width": thick})  # fmt: skip

    def _add(self, name: str, inside: str = "", **attributes: object) -> None:
        words = (f'{key}="{_number(v)}"' for key, v in attributes.items() if v is not None)
        self.parts.append(
            f"<{name} {' '.join(words)}" + (f">{inside}</{name}>" if inside else "/>")
        )


def _number(value: object) -> str:
    """Numbers with at most two decimals, so that no rounding error of a machine is written."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
