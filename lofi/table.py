"""A small table of strings as text, Markdown and HTML; needs no matplotlib."""

from dataclasses import dataclass
from html import escape

from lofi.files import printable


@dataclass(frozen=True)
class Table:
    """A small table of strings: a sentence above it, remarks below it."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]  # as many entries each
    caption: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if len(row) != len(self.header):
                raise ValueError(f"row {i} has {len(row)} entries, the header {len(self.header)}")

    def _numeric(self) -> list[bool]:
        """Columns (never the first) whose entries all look like numbers or are empty."""
        return [
            i > 0 < len(column) and all(c.strip()[:1] in "0123456789+−-–." for c in column)
            for i, (_, *column) in enumerate(zip(self.header, *self.rows))
        ]

    def text(self) -> str:
        """Aligned plain text for a terminal, in which no cell can do anything but be shown."""
        header, *rows = (
            tuple(printable(cell).replace("\n", "\\n").replace("\t", "\\t") for cell in cells)
            for cells in (self.header, *self.rows)
        )
        widths = [max(map(len, column)) for column in zip(header, *rows)]
        columns = list(zip(widths, self._numeric()))
        rule = tuple("-" * width for width in widths)
        lines = [
            "  ".join(c.rjust(w) if right else c.ljust(w) for c, (w, right) in zip(cells, columns))
            for cells in (header, rule, *rows)
        ]
        lines = [self.caption] * bool(self.caption) + [line.rstrip() for line in lines]
        return "\n".join([*lines, *self.notes])

    def markdown(self) -> str:
        """The table alone, for a page of documentation."""
        marks = tuple("--:" if right else ":--" for right in self._numeric())
        rows = ([c.replace("|", r"\|") for c in cells] for cells in (self.header, *self.rows))
        header, *rows = (" | ".join(cells) for cells in rows)
        return "\n".join(f"| {row} |" for row in (header, " | ".join(marks), *rows))

    def html(self) -> str:
        """A `<table>` with caption and header cells that screen readers announce."""
        right = [' class="number"' if numeric else "" for numeric in self._numeric()]
        caption = f"<caption>{escape(self.caption)}</caption>" if self.caption else ""
        heads = (f'<th scope="col"{r}>{escape(c)}</th>' for c, r in zip(self.header, right))
        out = [f'<div class="scroll"><table>{caption}<thead><tr>', *heads, "</tr></thead><tbody>"]
        for first, *others in self.rows:
            cells = (f"<td{r}>{escape(c)}</td>" for c, r in zip(others, right[1:]))
            out += [f'<tr><th scope="row">{escape(first)}</th>', *cells, "</tr>"]
        out.append("</tbody></table></div>")
        return "\n".join(out + [f'<p class="note">{escape(note)}</p>' for note in self.notes])

    _repr_html_ = html  # what a notebook shows
