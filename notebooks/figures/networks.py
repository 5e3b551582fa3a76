"""Pictures of what happens inside encoders, heads and branches, with the numbers that `lofi` finds.

Sources: Lin et al., "TSM", ICCV 2019; Xu et al., "G-TAD", CVPR 2020; Lin et al., "BMN", ICCV 2019;
Kang et al., "Action-aware Masking Network", WACV 2023 (our reconstruction); Ju et al., CVPR 2023.
"""

import numpy as np
from figures.svg import BLUE, GREEN, LARGE, PLAIN, RED, SMALL, TEXT, WIDTH, YELLOW, Picture

from lofi.figures.style import AMBER, FALSE_ALARM, FOUND, GREY, INK, TRUTH
from lofi.heads import anchors

SHIFTED = (1, 2, 3, 4), (5, 6, 7, 8)  # two channels of four frames
RESIDUAL = (0, 2, 4, 4, 0)
NODES = (2, 8, 4, 10)  # one channel of four snippets
DARK_RED, DARK_GREEN, DARK_BLUE = "#A84300", "#00694D", "#00527F"


def temporal_shift() -> Picture:
    p = Picture(
        330,
        "The temporal shift on eight numbers",
        "Two tables with a column for each of four frames. Before: the first channel holds 1 2 3 "
        "4, the second 5 6 7 8. After: the first holds 2 3 4 0, it comes from the next frame; the "
        "second holds 0 5 6 7, it comes from the frame before. All other channels stay.",
    )
    ahead, back = SHIFTED
    tables = (("before", 96, (ahead, back)), ("after", 428, ((*ahead[1:], 0), (0, *back[:-1]))))
    p.text(24, 60, "frame", anchor="start", size=SMALL)
    for title, left, rows in tables:
        p.text(left + 120, 34, title, size=LARGE, bold=True)
        for t in range(4):
            p.text(left + 30 + 60 * t, 60, str(t), size=SMALL)
        for row, (values, fill) in enumerate(zip(rows, (BLUE, GREEN))):
            for t, value in enumerate(values):
                new = title == "after" and value == 0
                p.box(left + 60 * t, 72 + 60 * row, 60, 60, str(value), size=24, bold=not new,
                      fill="white" if new else fill, colour=DARK_RED if new else INK)  # fmt: skip
        p.box(left, 192, 240, 60, "all others stay", fill=PLAIN, size=SMALL)
    for y, words in ((102, "⅛"), (162, "⅛"), (222, "¾")):
        p.text(56, y + 8, words, size=26)
    p.arrow([(408, 102), (356, 102)], TRUTH, 4)
    p.arrow([(356, 162), (408, 162)], FOUND, 4)
    p.arrow([(356, 222), (408, 222)], GREY, 2, dashed=True)
    p.text(24, 284, "First row: what the next frame held.", anchor="start", size=SMALL,
           colour=DARK_BLUE)  # fmt: skip
    p.text(24, 310, "Second row: what the frame before held. Outside a snippet: 0.",
           anchor="start", size=SMALL, colour=DARK_GREEN)  # fmt: skip
    return p


def residual(row: np.ndarray) -> dict[str, np.ndarray]:
    """What a residual block makes of a row of numbers, step by step."""
    padded = np.pad(row, 1)
    first = padded[2:] - padded[:-2]
    positive = np.maximum(first, 0)
    return {"x": row, "conv 1": first, "ReLU": positive, "conv 2": positive / 2,
            "+ x": np.maximum(row + positive / 2, 0)}  # fmt: skip


def residual_block() -> Picture:
    p = Picture(
        440,
        "A residual block on five numbers",
        "The row 0 2 4 4 0 passes a convolution, right minus left: 2 4 2 -4 -4. ReLU sets what is "
        "negative to zero: 2 4 2 0 0. A second convolution halves: 1 2 1 0 0. The skip path adds "
        "the input, and another ReLU gives 1 4 5 4 0.",
    )
    about = ("", "right − left", "negative → 0", "times ½", "then ReLU")
    fills, edges = (BLUE, "white", PLAIN, "white", YELLOW), (TRUTH, INK, GREY, INK, AMBER)
    left = 120
    for i, (name, values) in enumerate(residual(np.array(RESIDUAL, float)).items()):
        y = 28 + 80 * i
        p.text(left - 16, y + 31, name, anchor="end", bold=True)
        for k, value in enumerate(values):
            words = f"{value:g}".replace("-", "−")
            p.box(left + 60 * k, y, 60, 46, words, fill=fills[i], edge=edges[i], size=24)
        if about[i]:
            p.text(left + 318, y + 30, about[i], anchor="start", size=SMALL)
            p.arrow([(left + 150, y - 33), (left + 150, y - 2)], INK, 2)
    p.arrow([(left + 302, 51), (620, 51), (620, 371), (544, 371)], TRUTH, 3.5)
    p.text(610, 44, "skip path", anchor="end", size=SMALL, colour=DARK_BLUE)
    return p


def r2plus1d() -> Picture:
    whole, middle = 27 * 64 * 64, 27 * 64 * 64 // (9 * 64 + 3 * 64)
    space, time = 9 * 64 * middle, 3 * middle * 64
    p = Picture(
        230,
        "A convolution split into space and time",
        "Three frames of three by three pixels, three times. A 3 by 3 by 3 convolution reads all "
        "27 at once; from 64 to 64 channels it has 110,592 weights. It is replaced by one that "
        "reads the nine pixels of one frame, to 144 channels, 82,944 weights, and after a ReLU one "
        "that reads one pixel of three frames, 27,648 weights. The sums are equal.",
    )
    every, pixels = range(27), range(9, 18)
    kinds = (
        ("3 × 3 × 3", 22, every, whole, "64 → 64", BLUE, TRUTH),
        ("1 × 3 × 3", 244, pixels, space, f"64 → {middle}", GREEN, FOUND),
        ("3 × 1 × 1", 504, (4, 13, 22), time, f"{middle} → 64", RED, FALSE_ALARM),
    )
    for name, left, read, weights, channels, fill, edge in kinds:
        p.text(left + 87, 40, name, size=LARGE, bold=True)
        for i in range(27):
            frame, pixel = divmod(i, 9)
            place = left + 60 * frame + 18 * (pixel % 3), 66 + 18 * (pixel // 3)
            seen = i in read
            p.box(*place, 18, 18, fill=fill if seen else "white", edge=edge if seen else GREY)
        p.text(left + 87, 160, f"{weights:,}", bold=True)
        p.text(left + 87, 190, channels, size=SMALL)
    p.text(221, 101, "→", size=LARGE, bold=True)
    p.text(221, 160, "=", size=LARGE, bold=True)
    p.box(432, 69, 58, 48, "ReLU", fill=PLAIN, edge=GREY, corner=8, size=SMALL)
    p.arrow([(418, 93), (431, 93)], INK, 1.5)
    p.arrow([(490, 93), (503, 93)], INK, 1.5)
    p.text(461, 160, "+", size=LARGE, bold=True)
    return p


def messages() -> dict[str, list[float]]:
    """What reaches each of NODES in `gcnext`, and their sum."""
    x = np.array(NODES, float)
    near = np.abs(x[:, None] - x)
    near[np.diag_indices(4)] = np.inf
    padded = np.pad(x, 1)
    found = {
        "itself": x,
        "in time": (padded[:-2] + padded[2:]) / 2,
        "alike": np.maximum(x, x[near.argmin(1)]),
    }
    return {name: row.tolist() for name, row in (found | {"sum": sum(found.values())}).items()}


def gcnext() -> Picture:
    p = Picture(
        450,
        "Message passing in a GCNeXt block",
        "Four snippets in time hold 2, 8, 4 and 10. Edges in time join neighbours. Dashed edges "
        "join each snippet with the one most like it: 2 with 4, 8 with 10. To its own number each "
        "adds half of its two neighbours in time and the larger of itself and its likeness; the "
        "sums are 10, 21, 17 and 22. In a trained block both rules are small networks.",
    )
    xs = [158 + 104 * i for i in range(4)]
    p.text(24, 127, "snippets", anchor="start", bold=True)
    for a, b in ((0, 2), (1, 3)):
        p.curve((xs[a], 94), ((xs[a] + xs[b]) / 2, 10), (xs[b], 94), FALSE_ALARM, 3, dashed=True)
    p.line([(xs[0], 120), (xs[3], 120)], INK, 3)
    p.text(524, 58, "alike", anchor="start", size=SMALL, colour=DARK_RED)
    p.line([(524, 72), (570, 72)], FALSE_ALARM, 3, dashed=True)
    p.text(524, 112, "in time", anchor="start", size=SMALL)
    p.line([(524, 126), (570, 126)], INK, 3)
    for x, value in zip(xs, NODES):
        p.dot(x, 120, 27, BLUE, TRUTH, 2.5)
        p.text(x, 128, str(value), size=24, bold=True)
    about = {
        "itself": "as it is",
        "in time": "½ (before + after)",
        "alike": "the larger one",
        "sum": "ReLU",
    }
    fills, edges = (BLUE, PLAIN, RED, YELLOW), (TRUTH, GREY, FALSE_ALARM, AMBER)
    for i, (name, row) in enumerate(messages().items()):
        y, last = 176 + 64 * i, name == "sum"
        p.text(24, y + 28, name, anchor="start", bold=last)
        p.text(524, y + 28, about[name], anchor="start", size=SMALL)
        for x, value in zip(xs, row):
            p.box(x - 36, y, 72, 42, f"{value:g}", fill=fills[i], edge=edges[i], corner=8,
                  size=24, bold=last)  # fmt: skip
            if i:
                p.text(x, y - 5, "=" if last else "+", size=TEXT)
    return p


def sgalign() -> Picture:
    p = Picture(
        440,
        "Sub-graph alignment",
        "Twelve snippets with one feature value each, joined by straight lines. An anchor covers "
        "snippets four to seven; its region is widened by half its length on either side. Eight "
        "evenly spaced samples of the region are read off the lines: they make a vector of fixed "
        "length, however long the anchor.",
    )
    values = np.array([1, 2, 1, 3, 7, 9, 8, 9, 4, 2, 1, 2], float)
    low, high, where, samples = aligned(values, 4, 4, 8)
    unit, left = 50, 50

    def x(position: float) -> float:
        return left + unit * (position + 0.5)

    def y(value: float) -> float:
        return 214 - 13.5 * value

    p.box(x(low), 72, unit * (high - low), 144, fill=YELLOW, edge=AMBER, dashed=True)
    p.box(x(3.5), 72, unit * 4, 144, fill=BLUE, edge=TRUTH)
    p.text(x(5.5), 34, "anchor: 4 snippets", bold=True, colour=DARK_BLUE)
    p.text(x(5.5), 60, "region: half as long again on either side", size=SMALL)
    p.line([(x(i), y(v)) for i, v in enumerate(values)], GREY, 2)
    for i, v in enumerate(values):
        p.dot(x(i), y(v), 5, "white", INK)
        p.text(x(i), 238, str(i), size=SMALL, colour=INK if 4 <= i <= 7 else GREY)
    for k, (place, value) in enumerate(zip(where, samples)):
        box = 90 + 66 * k
        for points in ([y(value), 216], [248, 314]):
            ends = zip((x(place), x(place) if points[1] == 216 else box + 31), points)
            p.line(list(ends), FALSE_ALARM, 1.5, dashed=True)
        p.dot(x(place), y(value), 7, FALSE_ALARM, "white")
        p.box(box, 316, 62, 44, f"{value:.1f}", fill=RED, edge=FALSE_ALARM)
    p.text(WIDTH / 2, 390, "8 samples between snippets (paper: 32)", size=SMALL)
    p.text(WIDTH / 2, 418, "the same number for every anchor", size=SMALL, italic=True)
    return p


def aligned(
    values: np.ndarray, start: int, length: int, samples: int
) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Region of an anchor, the places of its samples in it, and what `lofi` reads there."""
    cells = np.argwhere(anchors.valid_cells(len(values), len(values)))
    row = int(np.flatnonzero((cells == (length - 1, start)).all(1))[0])
    low, high = anchors.gtad_regions(len(values), len(values))[row]
    found = anchors.align_samples(np.array([[low, high]]), len(values), samples)
    read = np.bincount(found.position, found.weight * values[found.snippet], samples)
    return float(low), float(high), low + (np.arange(samples) + 0.5) * (high - low) / samples, read


def bmn_sampling() -> Picture:
    snippets, first, last = 12, 3, 7
    low, high = anchors.bmn_ranges(np.array([first]), np.array([last]), 0.5, "master")[0]
    found = anchors.bmn_samples(np.array([[low, high]]), snippets)
    p = Picture(
        500,
        "The sampling mask of BMN",
        "A table of weights: a row for each of 32 samples of one anchor, a column for each of "
        "twelve snippets. The anchor covers snippets three to seven, its samples are spread evenly "
        "from zero to eleven. A sample between two snippets takes a share of either, so the "
        "weights form a diagonal band; each row adds up to one.",
    )
    left, top, unit, tall = 110, 104, 44, 9

    def x(position: float) -> float:
        return left + unit * (position + 0.5)

    p.text(left - 12, 62, "anchor", anchor="end", size=SMALL, colour=DARK_BLUE, bold=True)
    p.box(x(first - 0.5), 46, unit * (last - first + 1), 22, fill=BLUE, edge=TRUTH, corner=4)
    p.text(x((low + high) / 2), 34, f"samples from {low:g} to {high:g}", size=SMALL)
    p.text(left - 12, 94, "snippet", anchor="end", size=SMALL)
    for i in range(snippets):
        inside = first <= i <= last
        p.text(x(i), 94, str(i), size=SMALL, bold=inside, colour=DARK_BLUE if inside else INK)
    p.box(left, top, unit * snippets, 32 * tall, thick=2)
    for i in range(1, snippets):
        p.line([(left + unit * i, top), (left + unit * i, top + 32 * tall)], PLAIN, 1)
    for k, i, weight in zip(found.position, found.snippet, found.weight):
        p.box(left + unit * i, top + tall * k, unit, tall, fill=TRUTH, edge="none", thick=0,
              opacity=round(float(weight), 2))  # fmt: skip
    for k, y in ((0, top + 14), (31, top + 32 * tall)):
        p.text(left - 12, y, str(k), anchor="end", size=SMALL)
    p.text(left - 12, top + 16 * tall, "sample", anchor="end", size=SMALL)
    k = 10
    shares = [(i, w) for n, i, w in zip(found.position, found.snippet, found.weight) if n == k]
    p.box(left - 4, top + tall * k - 1, unit * snippets + 8, tall + 2, fill="none",
          edge=FALSE_ALARM, thick=2.5)  # fmt: skip
    p.text(left - 12, top + tall * (k + 0.5) + 6, str(k), anchor="end", size=SMALL, bold=True,
           colour=DARK_RED)  # fmt: skip
    sum_of = " + ".join(f"{weight:.2f} · snippet {i}" for i, weight in shares)
    p.text(WIDTH / 2, 430, f"sample {k} = {sum_of}", bold=True, colour=DARK_RED)
    p.text(WIDTH / 2, 464, "dark: weight 1 · white: weight 0 · each row adds up to 1", size=SMALL)
    return p


def mask_pyramid() -> Picture:
    p = Picture(
        500,
        "The action-aware mask over the levels of a pyramid",
        "A row of sixteen steps of features, plus a mask of the same length that is strong in two "
        "actions (drawn as one number a step), gives masked features. From them come four levels "
        "of 16, 8, 4 and 2 steps, which all carry the mask. The two fine levels form the short "
        "group, the two coarse ones the long group; the groups attend to each other.",
    )
    left, unit, tops = 126, 27, (164, 230, 328, 394)
    mask = [0, 0, 0.1, 0.8, 1, 0.2, 0, 0, 0, 0.1, 0.7, 1, 1, 0.9, 0.2, 0]
    features = [0.3, 0.5, 0.2, 0.5, 0.4, 0.3, 0.5, 0.2, 0.4, 0.3, 0.5, 0.3, 0.4, 0.5, 0.2, 0.4]
    right, middle = left + 16 * unit + 14, left + 8 * unit
    for name, y, strengths, colour in (
        ("features", 28, features, FOUND),
        ("mask", 90, mask, AMBER),
    ):
        p.text(left - 14, y + 26, name, anchor="end", bold=True)
        for i, strength in enumerate(strengths):
            p.box(left + unit * i, y, unit, 36, fill=colour, opacity=strength, thick=1)
    p.text(middle, 84, "+", size=LARGE, bold=True)
    p.text(right, 114, "dark: action", anchor="start", size=SMALL)
    p.arrow([(middle, 128), (middle, 161)], INK, 2.5)
    for level, y in enumerate(tops):
        p.text(left - 14, y + 27, f"level {level}", anchor="end", size=SMALL)
        width = 2**level
        for i in range(0, 16, width):
            place = left + unit * i, y, unit * width, 40
            for strengths, colour in ((features, FOUND), (mask, AMBER)):
                mean = sum(strengths[i : i + width]) / width
                p.box(*place, fill=colour, opacity=round(mean, 2), thick=1)
        if level < 3:
            p.arrow([(middle, y + 42), (middle, tops[level + 1] - 3)], INK, 2)
    for words, top in (("short\ngroup", tops[0]), ("long\ngroup", tops[2])):
        p.line([(right, top), (right + 10, top), (right + 10, top + 106), (right, top + 106)])
        p.text(right + 22, top + 58, words, anchor="start", bold=True, centred=True)
    for x, ends in ((right + 34, (276, 334)), (right + 54, (334, 276))):
        p.arrow([(x, end) for end in ends], TRUTH, 2.5)
    p.text(middle, 470, "The groups attend to each other.", size=SMALL, colour=DARK_BLUE)
    return p


def b_f_steps() -> Picture:
    p = Picture(
        470,
        "Two branches that teach each other",
        "Warm-up: from the label of a whole video the classification branch, CBP, learns. B step: "
        "CBP is frozen; the background of which it is sure trains the language branch, VLP. F "
        "step: VLP is frozen; the foreground of which it is sure, and CBP's own background, train "
        "CBP. Steps in between are ignored.",
    )
    bands = (
        ("Warm-up", "video label", "“dive”", "", "", "CBP"),
        ("B step", "CBP", "frozen", "00·0····0000·····000",
         "0 where CBP is sure: background", "VLP"),
        ("F step", "VLP", "frozen", "00··11··0·00·111··00",
         "1 where VLP is sure, 0 where CBP is", "CBP"),
    )  # fmt: skip
    for i, (title, teacher, state, labels, rule, student) in enumerate(bands):
        y = 20 + 134 * i
        p.text(24, y + 30, title, anchor="start", size=LARGE, bold=True)
        p.box(20, y + 44, 138, 62, fill=PLAIN, edge=GREY, corner=8, dashed=True)
        p.text(89, y + 70, teacher, bold=True)
        p.text(89, y + 94, state, size=SMALL, italic=True)
        p.box(588, y + 44, 92, 62, fill=YELLOW, edge=AMBER, corner=8, thick=2.5)
        p.text(634, y + 70, student, bold=True)
        p.text(634, y + 94, "trained", size=SMALL, italic=True)
        p.arrow([(158, y + 75), (184, y + 75)])
        p.arrow([(556, y + 75), (584, y + 75)])
        if not labels:
            p.box(188, y + 54, 360, 42, "somewhere in this video", size=SMALL, thick=1)
        for k, label in enumerate(labels):
            fill = {"0": PLAIN, "1": GREEN, "·": "white"}[label]
            p.box(188 + 18 * k, y + 54, 18, 42, fill=fill, thick=1)
            if label in "01":
                p.text(197 + 18 * k, y + 82, label, size=SMALL, bold=label == "1",
                       colour=DARK_GREEN if label == "1" else INK)  # fmt: skip
        if rule:
            p.text(368, y + 36, rule, size=SMALL)
    p.text(24, 440, "CBP misses actions, VLP sees too many. White: ignored.", size=SMALL,
           anchor="start")  # fmt: skip
    return p
