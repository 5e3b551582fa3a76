"""The viewer of one video: what the page holds, and what it does in a real browser."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import av
import numpy as np
import pytest
from browser import Browser
from numbered_video import numbered_frames
from PIL import Image

from lofi.data import Segment
from lofi.detection import Detection
from lofi.report import Link, write_report
from lofi.viewer import write_picture, write_viewer

EVIL = "</script><img src=x onerror=alert(1)> & 'ü' \u2028"
FOUND = [
    Detection(4.0, 6.0, "run", 0.9),
    Detection(8.0, 9.0, EVIL, 0.6),
    Detection(2.0, 3.0, "run", 0.2),
]
TRUTH = [Segment(4.5, 6.0, "run")]
VIDEO = 'document.querySelector("video")'


def write_webm(path: Path, first_pts: int = 0) -> Path:
    """100 numbered frames, 10 a second, in VP8, which every Chromium plays."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libvpx", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 224, 192, "yuv420p", 500_000
        for i, picture in enumerate(numbered_frames(range(100), 192, 224)):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts = i + first_pts
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_webm(tmp_path_factory.mktemp("videos") / "Küche 1 #2 & 50%.webm")


@pytest.fixture(scope="module")
def page(video) -> Path:
    return write_viewer(video.parent / "out" / "page.html", video, FOUND, TRUTH)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_the_page_is_whole_and_links_nothing_but_the_video(page, video):
    text = page.read_text()
    parser = Tags()
    parser.feed(text)
    sources = [a["src"] for _, a in parser.tags if "src" in a]
    assert [(page.parent / unquote(s)).resolve() for s in sources] == [video.resolve()]
    assert not re.search(r"https?://", text) and not any(t == "link" for t, _ in parser.tags)
    assert sum(tag == "script" for tag, _ in parser.tags) == 2
    assert not any(tag == "img" for tag, _ in parser.tags)


def test_the_picture_has_a_bar_for_every_detection_above_the_axis(video, tmp_path):
    found = [*FOUND, Detection(2.5, 5.0, "two\nlines", 0.5)]  # overlaps two: a second row
    with Image.open(write_picture(tmp_path / "a.png", video, found)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] == 1000  # ten seconds from 20 to 980
    for row, *spans in ((82 + 62 + 4, (4, 6), (8, 9), (2, 3)), (82 + 62 + 44, (2.5, 5))):
        blue = np.flatnonzero(pixels[row, :, 2] - pixels[row, :, 0] > 50)
        places = {round(20 + 96 * t) for start, end in spans for t in np.linspace(start, end, 9)}
        assert set(places) <= {*blue, *blue + 3, *blue - 3}
        assert len(blue) == pytest.approx(96 * sum(b - a for a, b in spans), abs=8)


def test_the_events_of_the_page_are_those_that_were_given(page):
    text = page.read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    events = {(e["start"], e["end"], e["label"], e["score"]) for e in data["events"]}
    assert events == {*map(tuple, FOUND), (4.5, 6.0, "run", None)}
    assert data["duration"] == 10 and data["best"] == 0.9 and data["from"] == 0.45


def test_a_report_links_to_pages_beside_it(tmp_path):
    path = write_report(tmp_path / "r.html", "t", {"": [Link("play <it>", "viewer/a b#1.html")]})
    assert '<a href="viewer/a%20b%231.html">play &lt;it&gt;</a>' in path.read_text()


# ---------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def shown(browser, page):
    """The page, open and ready to play; no script error may have happened by the end."""
    browser.events.clear()
    browser.open(page)
    browser.wait(f"{VIDEO}.readyState >= 2")
    yield browser
    assert not [e for e in browser.events if e["method"] == "Runtime.exceptionThrown"]


def bar(label: str, start: str, kind: str = "") -> str:
    return f'.bar{kind}[aria-label^="{label}, {start} "]'


def test_a_click_on_a_bar_seeks_to_its_start(shown):
    assert shown.run(f"{VIDEO}.currentTime") == 0
    shown.click(bar("run", "0:04.0"))
    shown.wait(f"!{VIDEO}.seeking && {VIDEO}.currentTime > 0")
    assert shown.run(f"{VIDEO}.currentTime") == pytest.approx(4.0, abs=0.01)
    assert shown.run("document.getElementById('said').textContent").startswith("run, 0:04.0 to")
    assert shown.run(f"document.querySelector('{bar('run', '0:04.0')}').ariaCurrent") == "true"


def visible(browser) -> list[str]:
    """Starts of the bars that can be seen, read from their names."""
    shown = "[...document.querySelectorAll('.bar')].filter(b => b.checkVisibility())"
    names = browser.run(f"{shown}.map(b => b.ariaLabel)")
    return sorted(name.split(" to ")[0].split()[-1] for name in names)


def test_the_slider_hides_detections_and_never_ground_truth(shown):
    assert visible(shown) == ["0:04.0", "0:04.5", "0:08.0"]  # from half of the best score
    for value, left in ((0, ["0:02.0", "0:04.0", "0:04.5", "0:08.0"]), (0.9, ["0:04.0", "0:04.5"])):
        shown.run(
            f"(s => {{ s.value = {value}; s.dispatchEvent(new Event('input')) }})"
            "(document.getElementById('from'))"
        )
        assert visible(shown) == left
    assert "1 of 3" in shown.run("document.getElementById('count').textContent")


def test_keys_step_through_the_events_and_play(shown):
    at = []
    for key, code in (("ArrowRight", 39),) * 3 + (("ArrowLeft", 37),):
        shown.press(key, code)
        shown.wait(f"!{VIDEO}.seeking")
        at.append(round(shown.run(f"{VIDEO}.currentTime"), 1))
    assert at == [4.0, 4.5, 8.0, 4.5]
    shown.press(" ", 32, " ")
    shown.wait(f"!{VIDEO}.paused && {VIDEO}.currentTime > 4.7")
    shown.press(" ", 32, " ")
    shown.wait(f"{VIDEO}.paused")


def test_labels_are_text_whatever_they_are(shown):
    names = shown.run("[...document.querySelectorAll('.name')].map(n => n.textContent)")
    assert sorted(names) == sorted(["run", EVIL])
    assert shown.run("document.querySelectorAll('img').length") == 0


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_screen_and_everything_has_a_name(browser, page, width):
    browser.open(page, width)
    browser.wait("document.querySelectorAll('.bar').length == 4")
    assert browser.run("document.documentElement.scrollWidth") <= width
    unnamed = "[...document.querySelectorAll('button, input, video')].filter(e => !(e.ariaLabel || "
    unnamed += "e.textContent.trim() || e.labels?.[0]?.textContent.trim())).length"
    assert browser.run(unnamed) == 0


def test_a_bar_leads_to_its_frame_also_where_the_container_starts_late(browser, tmp_path):
    """Frame 40 of a file whose first frame shows at 0.5 s; the picture carries its number."""
    video = write_webm(tmp_path / "late.webm", first_pts=5)
    browser.open(write_viewer(tmp_path / "late.html", video, FOUND))
    browser.wait(f"{VIDEO}.readyState >= 2")
    browser.click(bar("run", "0:04.0"))
    browser.wait(f"!{VIDEO}.seeking && {VIDEO}.currentTime > 4")
    assert browser.run(f"{VIDEO}.currentTime") == pytest.approx(4.5, abs=0.01)
    picture = tmp_path / "shot.png"
    browser.run(f"{VIDEO}.controls = false")
    browser.screenshot(picture)
    box = browser.run(f"(r => [r.x, r.y, r.width, r.height])({VIDEO}.getBoundingClientRect())")
    assert read_number(picture, box) == 40


def read_number(picture: Path, box: list[float]) -> int:
    """The number in the bars of the video, which stands in the middle of its box on a page."""
    import matplotlib.image

    left, top, width, height = box
    shown = height * 224 / 192  # the video is higher than wide enough: bars of black beside it
    columns = left + (width - shown) / 2 + (np.arange(8) + 0.5) * shown / 8
    row = matplotlib.image.imread(picture)[round(top + height / 2)]
    return sum(int(row[round(x)][0] > 0.5) << (7 - i) for i, x in enumerate(columns))


def test_a_video_that_is_not_there_can_be_chosen(browser, page, video, tmp_path):
    lost = tmp_path / "page.html"
    lost.write_text(page.read_text())  # moved away from its video, as onto a telephone
    browser.open(lost)
    browser.wait("!document.getElementById('open').hidden")
    assert video.name in browser.run("document.getElementById('why').textContent")
    root = browser.send("DOM.getDocument")["root"]["nodeId"]
    node = browser.send("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    browser.send("DOM.setFileInputFiles", files=[str(video)], nodeId=node)
    browser.wait(f"{VIDEO}.readyState >= 2 && document.getElementById('open').hidden")
    browser.click(bar("run", "0:04.0"))
    browser.wait(f"!{VIDEO}.seeking && Math.abs({VIDEO}.currentTime - 4) < 0.01")
