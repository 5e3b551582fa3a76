"""One self-contained `report.html`: text, tables and figures, readable offline, on paper, by ear.

Styles and pictures are inside the file; nothing is loaded from elsewhere. Every figure has an
alternative text and a sentence under it.
"""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lofi.figures.tables import Table
from lofi.files import atomic_path

STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --paper: #ffffff; --faint: #5c5c66;
  --line: #d6d6dc; --band: #f5f5f7; --link: #0060a0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ec; --paper: #17181b; --faint: #a5a5b0; --line: #3c3d44; --band: #222328;
    --link: #7cc0f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; color: var(--ink);
  background: var(--paper); font: 1.03rem/1.6 system-ui, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.35rem; margin: 2.6rem 0 .6rem; padding-top: .8rem;
  border-top: 1px solid var(--line); }
p { max-width: 46rem; margin: .7rem 0; }
a { color: var(--link); }
nav ol { margin: .4rem 0 0; padding-left: 1.4rem; }
figure { margin: 1.4rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; padding: .6rem;
  border: 1px solid var(--line); border-radius: .5rem; }
figcaption { max-width: 46rem; margin-top: .5rem; color: var(--faint); }
.scroll { overflow-x: auto; margin: 1.2rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { caption-side: top; text-align: left; padding-bottom: .4rem; color: var(--faint); }
th, td { padding: .35rem .8rem; text-align: left; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--faint); vertical-align: bottom; }
tbody th { font-weight: 500; white-space: nowrap; }
tbody tr:nth-child(even) { background: var(--band); }
.number { text-align: right; }
td.number { white-space: nowrap; }
.note { color: var(--faint); font-size: .93rem; }
details { margin: 1rem 0; padding: .5rem .9rem; border: 1px solid var(--line);
  border-radius: .5rem; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; background: var(--band); padding: .8rem; border-radius: .5rem; }
@media print {
  :root { --ink: #000; --paper: #fff; --faint: #444; --line: #bbb; --band: #f4f4f4;
    --link: #000; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2, summary, caption { break-after: avoid; }
  figcaption { break-before: avoid; }
  figure, img, tr { break-inside: avoid; }
  table { font-size: 8.5pt; }
  th, td { padding: .2rem .4rem; }
  .scroll { overflow: visible; } }
"""


@dataclass(frozen=True)
class Picture:
    """A figure in a report.

    Args:
        figure: an Axes or a Figure of matplotlib; it stays open.
        caption: the sentence under it, which says what to see.
        alt: what the picture shows, for readers who cannot see it; the caption when empty.
        dpi: resolution of the picture in the file.
    """

    figure: Axes | Figure
    caption: str
    alt: str = ""
    dpi: int = 144

    def __post_init__(self) -> None:
        if not self.caption.strip():
            raise ValueError("a Picture needs a caption: one sentence that says what to see")


@dataclass(frozen=True)
class Details:
    """A part that is folded away until it is opened; `code` is shown as it is, in fixed width."""

    summary: str
    parts: tuple["Part", ...] = ()
    code: str = ""


Part = str | Table | Picture | Details  # a string is a paragraph


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it, in order."""

    heading: str
    parts: tuple[Part, ...] = ()


def write_report(path: str | Path, title: str, sections: Sequence[Section]) -> Path:
    """Write the report atomically and return its path.

    Args:
        path: where; the folder is created.
        title: headline and window title.
        sections: in order; a first section with an empty heading is the introduction.
    """
    path = Path(path)
    with atomic_path(path) as temporary:
        temporary.write_text(report_html(title, sections), encoding="utf-8")
    return path


def report_html(title: str, sections: Sequence[Section]) -> str:
    """The whole report as one HTML document."""
    name = html.escape(title)
    items, body, start = [], [], 0
    for i, section in enumerate(sections, start=1):
        if section.heading:
            heading = html.escape(section.heading)
            items.append(f'<li><a href="#s{i}">{heading}</a></li>')
            body.append(f'<h2 id="s{i}">{heading}</h2>')
        body += [_part(part) for part in section.parts]
        start = start if items else len(body)
    if len(items) > 2:  # the contents stand after an introduction without a heading
        body.insert(start, f'<nav aria-label="Contents"><ol>{"".join(items)}</ol></nav>')
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{name}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>",
            f"<h1>{name}</h1>",
            *body,
            "</main>\n</body>\n</html>\n",
        ]
    )


def _part(part: Part) -> str:
    if isinstance(part, str):
        return f"<p>{html.escape(part)}</p>"
    if isinstance(part, Table):
        return part.html()
    if isinstance(part, Picture):
        return _picture(part)
    if isinstance(part, Details):
        inside = [_part(inner) for inner in part.parts]
        inside += [f"<pre>{html.escape(part.code)}</pre>"] * bool(part.code)
        return "\n".join(
            [f"<details>\n<summary>{html.escape(part.summary)}</summary>", *inside, "</details>"]
        )
    raise ValueError(
        f"a report is made of str, Table, Picture and Details, got {type(part).__name__}"
    )


def _picture(picture: Picture) -> str:
    figure = picture.figure
    figure = figure.get_figure(root=True) if isinstance(figure, Axes) else figure
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=picture.dpi, metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    width = round(figure.get_figwidth() * 100)  # drawn for 100 dpi
    alt = html.escape(picture.alt or picture.caption, quote=True)
    return (
        f'<figure>\n<img width="{width}" alt="{alt}" src="data:image/png;base64,{data}">\n'
        f"<figcaption>{html.escape(picture.caption)}</figcaption>\n</figure>"
    )
