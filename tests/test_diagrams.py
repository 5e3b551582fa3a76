"""The course's diagrams: the committed files are what the scripts draw, legible, and true."""

import re
import xml.etree.ElementTree as ET
from itertools import combinations
from pathlib import Path

import pytest
import torch
from figures.draw import PICTURES
from figures.networks import NODES, SHIFTED, messages
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from lofi.encoders import temporal_shift
from lofi.heads.gtad import GCNeXt, nearest_snippets

FOLDER = Path(__file__).resolve().parent.parent / "notebooks" / "figures"
SVG = "{http://www.w3.org/2000/svg}"


def texts(root):
    """(words, size, left, top, right, bottom) of every text, in a wide font: DejaVu Sans."""
    for text in root.iter(f"{SVG}text"):
        size, x, y = (float(text.get(key)) for key in ("font-size", "x", "y"))
        font = FontProperties(family="DejaVu Sans", weight=text.get("font-weight", "normal"))
        width = 0.9 * TextPath((0, 0), text.text, size=size, prop=font).get_extents().width
        left = x - {"start": 0, "middle": width / 2, "end": width}[text.get("text-anchor")]
        yield text.text, size, left, y - 0.75 * size, left + width, y + 0.22 * size


@pytest.mark.parametrize("name", PICTURES)
def test_a_diagram_is_the_committed_file_and_legible(name):
    drawn = PICTURES[name]().svg()
    assert drawn == (FOLDER / f"{name}.svg").read_text(encoding="utf-8"), "run make notebooks"
    root = ET.fromstring(drawn)
    width, height = float(root.get("width")), float(root.get("height"))
    assert width <= 700
    assert len(root.find(f"{SVG}title").text) > 10 and len(root.find(f"{SVG}desc").text) > 50
    found = list(texts(root))
    assert found and sum(len(words.split()) for words, *_ in found) <= 70
    for words, size, left, top, right, bottom in found:
        assert size >= 14, words
        assert min(left, top) >= 8 and right <= width - 8 and bottom <= height - 8, words
    for a, b in combinations(found, 2):
        apart = a[4] <= b[2] or b[4] <= a[2] or a[5] <= b[3] or b[5] <= a[3]
        assert apart, (a, b)


def test_every_diagram_is_drawn_by_a_script_and_every_script_s_diagram_is_there():
    assert {path.stem for path in FOLDER.glob("*.svg")} == set(PICTURES)


def test_the_numbers_of_the_temporal_shift_are_those_of_the_encoder():
    frames = torch.zeros(4, 16, 1, 1)  # 2 channels ahead, 2 back; the first of each are drawn
    frames[:, 0, 0, 0], frames[:, 2, 0, 0] = torch.tensor(SHIFTED, dtype=torch.float32)
    ahead, back = temporal_shift(frames, 4, 8)[:, (0, 2), 0, 0].T.int().tolist()
    numbers = re.findall(r">(\d)</text>", PICTURES["temporal_shift"]().svg())
    frame_numbers = list("0123")
    before = frame_numbers + [str(v) for row in SHIFTED for v in row]
    assert numbers == before + frame_numbers + [str(v) for v in ahead + back]


def test_the_messages_are_what_a_gcnext_block_sends():
    """A block of one channel whose weights are chosen so that each stream is a rule by hand."""
    block = GCNeXt(1, 1)
    for parameter in block.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        block.tconvs[0].weight[0] = 1
        block.tconvs[2].weight[0, 0] = torch.tensor([0.5, 0.0, 0.5])
        block.tconvs[4].weight[0, 0] = 1
        block.sconvs[0].weight[0, 0] = 1  # the neighbour; nothing of the centre
        block.sconvs[2].weight[0, 0] = 1
        block.sconvs[4].weight[0, 0] = 1
        x = torch.tensor(NODES, dtype=torch.float32).view(1, 4, 1)
        out = block(x, nearest_snippets(x, 2)).flatten()  # itself and the nearest other
    assert out.tolist() == messages()["sum"] == [10, 21, 17, 22]
