"""The course as a static site, readable offline, on a telephone and in the dark: `make site`.

    python notebooks/build_site.py --out build/site --run runs/demo

A page and slides for every notebook, a page for every solution, the pages of `pages/*.md`, results
and protocol of `docs/`, and the reports of the runs that are named. Folders are those of
`notebooks/`, so that links between notebooks stay as they are. Nothing is executed here.
"""

import argparse
import base64
import functools
import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from html import escape, unescape
from pathlib import Path
from string import Template
from urllib.parse import unquote

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

HERE = Path(__file__).resolve().parent
PAGES = {
    "index": "Course",
    "lecturer": "For lecturers",
    "docs/RESULTS": "Results",
    "docs/PROTOCOL": "Protocol",
    "methods": "Related methods",
    "glossary": "Glossary",
}
CODE_OR_MATHS = re.compile(
    r"```.*?```|`[^`\n]*`|\$\$(.+?)\$\$|\$(?!\s)((?:[^$\n]|\n(?!\n))+?)(?<!\s)\$", re.S
)
UNIT = re.compile(r"(?<=\d) (?=(?:s|min|[GM]i?B)\b)| (?=± \d)|(?<=±) ")  # tables do not break it


class Notebook:
    """A notebook, read; every drawn picture has a text that says what it shows."""

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, path.name.split("_")[0]
        self.cells = nbformat.read(path, as_version=4).cells
        title, _, text = self.cells[0].source.partition("\n")
        self.title = title.lstrip("# ")
        self.question = " ".join(re.split(r"\n\s*\n", text.strip())[0].splitlines())
        self.pictures: dict[str, bytes] = {}  # name → PNG
        for i, cell in enumerate(self.cells):
            drawn = pictures(cell)
            text = next((c.source for c in self.cells[i:] if c.cell_type == "markdown"), "")
            for number, output in enumerate(drawn, 1):
                alt = first_sentence(text) + f" ({number} of {len(drawn)})" * (len(drawn) > 1)
                output.metadata.setdefault("image/png", {}).setdefault("alt", alt)
                png = base64.b64decode(output.data["image/png"])
                output.data["image/png"] = name = hashlib.sha256(png).hexdigest()[:16]
                self.pictures[name] = png

    def slides(self) -> list[list]:
        """Cells of each slide: what is asked, each section's first words, each picture."""
        decks, heading = [self.cells[:2]], ""
        for cell, behind in zip(self.cells[2:], [*self.cells[3:], None]):
            if cell.cell_type == "markdown":
                found = re.search(r"^##+ (.*)", cell.source, re.M)
                heading = found[1] if found else heading
                if found or "![" in cell.source:
                    decks.append([cell])
            elif drawn := pictures(cell):
                seen = behind.source if behind and behind.cell_type == "markdown" else ""
                above, below = (nbformat.v4.new_markdown_cell(text)
                                for text in (f"## {heading}", first_sentence(seen)))  # fmt: skip
                if len(decks[-1]) > 1 or "![" in decks[-1][0].source:  # it has a picture
                    decks.append([above])
                decks[-1] += [nbformat.v4.new_code_cell(outputs=drawn), below]
        return decks


def pictures(cell) -> list:
    return [o for o in cell.get("outputs", ()) if "image/png" in o.get("data", ())]


def plain(markdown: str) -> str:
    """Text without marks."""
    text = re.sub(r"!\[.*?\]\(.*?\)|<[^>]+>", "", markdown, flags=re.S)
    text = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", text, flags=re.S)
    return " ".join(re.sub(r"\*\*|(?<!\w)[*_]|[*_](?!\w)|[`$\\]|^#+ ", "", text).split())


def first_sentence(markdown: str) -> str:
    """The first sentence, or more until they have eight words."""
    first, *others = re.split(r"(?<=[.!?]) (?=[A-Z])", plain(markdown))
    first = re.sub(r"^What (?:to see|was drawn|is drawn): ", "", first)
    while others and len(first.split()) < 8:
        first += f" {others.pop(0)}"
    return first


@functools.cache
def exporter() -> HTMLExporter:
    made = HTMLExporter(
        template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True,
        exclude_anchor_links=True,
    )  # fmt: skip
    made.register_filter(
        "clean_html", lambda html: html
    )  # these notebooks are our own: half of the time
    return made


def html_of(cells: Iterable) -> str:
    """Cells as HTML; formulas become MathML, which browsers draw without any script."""
    formulas: list[str] = []

    def keep(match: re.Match) -> str:
        block, inline = match.groups()
        if not (block or inline):
            return match[0]  # code
        latex = re.sub(r"\\text\{\$(\w+)\$", r"\1\\text{", block or inline)
        formula = convert(latex, display="block" if block else "inline")
        formulas.append(f'<span class="display">{formula}</span>' if block else formula)
        return f"⟦{len(formulas) - 1}⟧"

    cells = [nbformat.from_dict(cell) for cell in cells]
    for cell in cells:
        if cell.cell_type == "markdown":
            source = re.sub(r"^\|.*", lambda row: UNIT.sub("\xa0", row[0]), cell.source, flags=re.M)
            cell.source = CODE_OR_MATHS.sub(keep, source)
    html, _ = exporter().from_notebook_node(nbformat.v4.new_notebook(cells=cells))
    html = re.sub(r'(?<= id=")[^"]*', lambda m: re.sub("⟦.*?⟧", "", m[0]), html)
    html = re.sub("⟦(\\d+)⟧", lambda m: formulas[int(m[1])], html)
    html = re.sub(r'(href=")\.\./(docs/\w+)\.md', r"\1\2.html", html)
    return re.sub(r'(href="(?!https?:)[^"]*)\.ipynb', r"\1.html", html)


class Site:
    """A folder that the pages are written to."""

    def __init__(self, out: Path) -> None:
        self.out, self.books = out, {}
        for path in sorted(HERE.glob("[0-9][0-9]*_*.ipynb")):
            self.books[path.name.split("_")[0]] = Notebook(path)
        self.solutions = [Notebook(path) for path in sorted(HERE.glob("solutions/*.ipynb"))]
        self.sizes = {}  # of the pictures: files, each once however often it is shown
        for book in [*self.books.values(), *self.solutions]:
            for name, png in book.pictures.items():
                (out / "images" / f"{name}.png").write_bytes(png)
                self.sizes[name] = [int.from_bytes(png[i : i + 4]) for i in (16, 20)]
        frame = (HERE.parent / "lofi" / "report.html").read_text(encoding="utf-8")
        light, dark = (HtmlFormatter(style=s).get_style_defs(".highlight")
                       for s in ("default", "github-dark"))  # fmt: skip
        code = f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
        style = code + (HERE / "pages" / "site.css").read_text(encoding="utf-8")
        self.frame = frame.replace("</style>", f"{style}</style>").replace(
            "<main>", "$above\n<main>"
        )

    def write(self, name: str, title: str, body: str, kind: str = "") -> None:
        """One page, in the frame of the reports, with the way to the others."""
        path = self.out / f"{name}.html"
        up = "../" * name.count("/")

        def stored(match: re.Match) -> str:
            width, height = self.sizes[match[1]]
            shape = f'width="{width}" height="{height}"' + ' loading="lazy"' * (kind != "deck")
            return f'src="{up}images/{match[1]}.png" {shape}'

        body = re.sub(r'src="data:image/png;base64,(\w{16})"', stored, body)
        links = " · ".join(f'<a href="{up}{page}.html">{text}</a>' for page, text in PAGES.items())
        above = f'<nav class="site" aria-label="Site">{links}</nav>'
        path.parent.mkdir(parents=True, exist_ok=True)
        page = Template(self.frame).substitute(title=escape(title), body=body, above=above)
        path.write_text(page, encoding="utf-8")

    def notebook(self, book: Notebook, name: str, around: list[str]) -> None:
        html = re.sub(r"<h1.*?</h1>", "", html_of(book.cells), count=1, flags=re.S)
        links = f'<nav aria-label="Further">{" · ".join(around)}</nav>'
        self.write(name, plain(book.title), f"{links}\n{html}\n{links}")

    def slides(self, book: Notebook) -> None:
        parts = [re.sub(r"<h1.*?</h1>", "", html_of(cells)) for cells in book.slides()]
        body = "\n".join(f'<section class="slide">\n{part}\n</section>' for part in parts)
        keys = (HERE / "pages" / "slides.js").read_text(encoding="utf-8")
        body += f"\n<script>\n{keys}</script>"
        self.write(f"{book.path.stem}_slides", f"Slides: {plain(book.title)}", body, "deck")

    def text(self, name: str, reports: str) -> None:
        """A page of pages/ or docs/; fills in {notebooks 01–02}, {cards}, {times}, {reports}."""

        def listed(match: re.Match) -> str:
            first, last = match[1].split("–")
            found = [book for number, book in self.books.items() if first <= number <= last + "z"]
            if not found:
                raise ValueError(f"pages/{name}.md: there is no notebook {match[1]}; mend the page")
            return "<br>".join(f"[{book.title}]({book.path.name})" for book in found)

        cards = [
            f"* **[{book.title}]({book.path.name})** {book.question}"
            for book in self.books.values()
        ]
        path = HERE.parent / f"{name}.md" if "/" in name else HERE / "pages" / f"{name}.md"
        source = path.read_text(encoding="utf-8")
        source = re.sub(r"\{notebooks (.*?)\}", listed, source)
        source = source.replace("{cards}", "\n".join(cards)).replace("{times}", self.times())
        html = html_of([nbformat.v4.new_markdown_cell(source.replace("{reports}", reports))])
        title = plain(re.search(r"^# (.*)", source, re.M)[1])
        self.write(name, title, re.sub(r"<h1.*?</h1>", "", html, count=1, flags=re.S))

    def times(self) -> str:
        """Seconds of every notebook, from the course.json of a measured run of each preset."""
        paths = sorted(HERE.glob("pages/times/*.json"))
        measured = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        rows = [["notebook, its slides", *(path.stem for path in paths)]]
        rows += [[":--", *("--:" for _ in paths)]]
        for book in self.books.values():
            found = [preset.get(book.path.name) for preset in measured]
            seconds = [f"{entry['seconds']:.0f} s" if entry else "–" for entry in found]
            rows.append([f"[{book.title}]({book.path.stem}_slides.html)", *seconds])
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def report(self, run: Path) -> str:
        """Copy the report of a run, with its videos to play; its line for the front page."""
        folder = self.out / "reports" / run.name
        (folder / "viewer").mkdir(parents=True)
        text = (run / "report.html").read_text(encoding="utf-8")
        (folder / "report.html").write_text(text, encoding="utf-8")
        for viewer in map(unquote, re.findall(r'href="(viewer/[^"]+)"', text)):
            page = (run / viewer).read_text(encoding="utf-8")
            source = re.search(r'<video[^>]*? src="([^"]+)"', page)[1]
            video = run / "viewer" / unquote(unescape(source))
            shutil.copy(video, folder / "viewer" / video.name)
            page = page.replace(f'src="{source}"', f'src="{source.rpartition("/")[2]}"')
            (folder / viewer).write_text(page, encoding="utf-8")
        return f"* [Report of the run {run.name}](reports/{run.name}/report.html)"


def build(out: Path, runs: Iterable[Path] = ()) -> None:
    """Write the whole site into `out`, which is emptied first."""
    shutil.rmtree(out, ignore_errors=True)
    (out / "images").mkdir(parents=True)
    for path in [p for p in sorted((HERE / "figures").iterdir()) if p.suffix in (".svg", ".png")]:
        (out / "figures").mkdir(exist_ok=True)
        shutil.copy(path, out / "figures" / path.name)
    site = Site(out)
    solved = {book.number: book for book in site.solutions}
    books = list(site.books.values())
    for before, book, after in zip([None, *books], books, [*books[1:], None]):
        around = [f'<a href="{book.path.stem}_slides.html">slides</a>']
        if book.number in solved:
            target = f"solutions/{solved[book.number].path.stem}.html"
            around.append(f'<a href="{target}">solutions</a>')
        if before:
            around.insert(0, f'<a href="{before.path.stem}.html">← {escape(before.title)}</a>')
        if after:
            around.append(f'<a href="{after.path.stem}.html">{escape(after.title)} →</a>')
        site.notebook(book, book.path.stem, around)
        site.slides(book)
    for number, book in solved.items():
        lesson = site.books[number]
        around = [f'<a href="../{lesson.path.stem}.html">{escape(lesson.title)}</a>']
        site.notebook(book, f"solutions/{book.path.stem}", around)
    reports = "\n".join(map(site.report, runs))
    for name in PAGES:
        site.text(name, reports or "This copy of the site holds no report.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/site"))
    parser.add_argument("--run", type=Path, nargs="*", default=[], help="folders of finished runs")
    options = parser.parse_args()
    runs = [run for run in options.run if (run / "report.html").is_file()]
    for run in {*options.run} - {*runs}:
        print(f"{run} has no report.html: left out (`make demo` makes one)")
    build(options.out, runs)
    print(f"{len([*options.out.rglob('*.html')])} pages; open {options.out / 'index.html'}")


if __name__ == "__main__":
    main()
