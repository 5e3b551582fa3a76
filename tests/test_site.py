"""The course as a site: whole, offline, readable by ear, on a telephone and in the dark."""

import base64
import json
import re
import struct
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import Browser
from build_site import HERE, PAGES, Notebook, build, html_of
from nbformat import v4

VOID = {"img", "meta", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Tags with their attributes, ids, and the text outside of code."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.tags, self.ids, self.words, self.inside = path, [], set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids.add(dict(attributes).get("id"))
        if tag not in VOID:
            self.inside.append(tag)

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"pre", "code", "script", "style"} & {*self.inside}:
            self.words.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    run = folder / "runs" / "mine"
    (run / "viewer").mkdir(parents=True)
    (run / "world").mkdir()
    (run / "world" / "a b.mp4").write_bytes(b"film")
    (run / "viewer" / "a.html").write_text('<video controls src="../world/a%20b.mp4"></video>')
    (run / "report.html").write_text('<h1>Report</h1><p><a href="viewer/a.html">Play</a></p>')
    build(folder / "out", [run])
    return folder / "out"


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_every_notebook_and_solution_has_a_page(site, pages):
    wanted = [path.relative_to(HERE).with_suffix(".html") for path in HERE.rglob("*.ipynb")]
    wanted = [path for path in wanted if path.parts[0] in ("solutions", path.name)]
    assert len(wanted) >= 12 and {site / path for path in wanted} <= {*pages}
    assert {site / f"{name}.html" for name in PAGES} <= {*pages}
    assert (site / "reports" / "mine" / "viewer" / "a b.mp4").read_bytes() == b"film"


def test_every_link_and_picture_is_there(site, pages):
    broken = []
    for path, page in pages.items():
        for tag, attributes in page.tags:
            target = attributes.get("href") or attributes.get("src") or ""
            if not target or urlsplit(target).scheme in ("http", "https", "mailto"):
                continue
            parts = urlsplit(target)
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            inside = file.is_relative_to(site.resolve()) and file.is_file()
            anchor = unquote(parts.fragment)
            if not inside or (anchor and anchor not in pages[file].ids):
                broken.append((path.name, tag, target))
    assert not broken


def test_nothing_is_loaded_from_the_network(site, pages):
    for path, page in pages.items():
        for tag, attributes in page.tags:
            if tag in ("script", "link", "img", "iframe", "video", "source"):
                loaded = attributes.get("src") or attributes.get("href") or ""
                assert "//" not in loaded and not loaded.startswith("data:"), (path.name, loaded)
        assert not re.search(r"@import|url\(", path.read_text(encoding="utf-8")), path.name


def test_every_picture_has_a_text_and_headings_go_in_order(pages):
    for path, page in pages.items():
        for tag, attributes in page.tags:
            if tag == "img":
                alt = attributes.get("alt") or ""
                assert len(alt.split()) >= 4 and "escription" not in alt, (path.name, alt)
        if "reports" in path.parts:
            continue
        levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1 and levels.count(1) == 1, (path.name, levels)
        assert all(b <= a + 1 for a, b in zip(levels, levels[1:])), (path.name, levels)


def test_formulas_are_mathml(pages):
    assert sum(tag == "math" for page in pages.values() for tag, _ in page.tags) > 200
    for path, page in pages.items():
        text = "".join(page.words)
        assert not re.search(r"\$[^\d ]|\\[a-z]{2,}|[⟦⟧]", text), path.name


def test_a_formula_beside_code_and_a_dollar():
    text = "$x_i$, `$HOME`, $5 or $6, $a\n= b$,\n\n$$\\frac{1}{2}$$"
    html = html_of([v4.new_markdown_cell(text)])
    assert (
        html.count("<math") == 3
        and "$5 or $6" in html
        and "<msub><mi>x</mi><mi>i</mi></msub>" in html
    )
    assert "<code>$HOME</code>" in html and "<mfrac>" in html


def test_a_picture_is_told_by_the_sentence_behind_it(tmp_path):
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 20, 10)  # all that is read
    output = v4.new_output("display_data", {"image/png": base64.b64encode(png).decode()})
    seen = "*What to see:* the **two** lines $a$ cross. They do so twice a second. More."
    texts = map(v4.new_markdown_cell, ("# 01 · A\n\nWhy?", "**You will learn** that.", seen))
    cells = [*texts]
    cells.insert(2, v4.new_code_cell(outputs=[output]))
    (tmp_path / "01_a.ipynb").write_text(json.dumps(v4.new_notebook(cells=cells)))
    book = Notebook(tmp_path / "01_a.ipynb")
    assert 'alt="the two lines a cross. They do so twice a second."' in html_of(book.cells)
    assert (book.title, book.question) == ("01 · A", "Why?")
    assert [len(cells) for cells in book.slides()] == [2, 3]


def test_pages_fit_a_telephone_and_know_the_dark(site, pages, tmp_path):
    with Browser(tmp_path) as browser:
        for path in pages:
            if path.is_relative_to(site / "reports"):
                continue
            browser.open(path, width=390, height=800)
            assert browser.run("document.documentElement.scrollWidth") <= 390, path.name
        shown = {}
        for scheme in ("light", "dark"):
            feature = {"name": "prefers-color-scheme", "value": scheme}
            browser.send("Emulation.setEmulatedMedia", features=[feature])
            browser.open(sorted(site.glob("04*internals.html"))[0])
            colours = "(e => [getComputedStyle(document.body).backgroundColor, e.color,"
            shown[scheme] = browser.run(
                f"{colours} e.backgroundColor])(getComputedStyle(document.querySelector('pre')))"
            )
        light, dark = ([sum(map(int, re.findall(r"\d+", c)[:3])) for c in shown[s]] for s in shown)
        assert light[0] > 600 > light[1] and dark[0] < 150 < 500 < dark[1]
        assert not [e for e in browser.events if e["method"] == "Runtime.exceptionThrown"]


def test_arrow_keys_turn_the_slides(site, tmp_path):
    with Browser(tmp_path) as browser:
        browser.open(next(site.glob("*_slides.html")))
        top = "Math.round(document.querySelectorAll('.slide')[{}].getBoundingClientRect().top)"
        browser.press("ArrowRight", 39)
        browser.wait(f"{top.format(1)} === 0")
        browser.press("ArrowLeft", 37)
        browser.wait(f"{top.format(0)} === 0")
