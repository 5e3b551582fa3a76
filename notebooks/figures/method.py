"""Pictures of the method: its stages, snippets, mini-batches and gradients.

Source: Xu et al., "Low-Fidelity Video Encoder Optimization for Temporal Action Localization",
NeurIPS 2021, section 3. Sizes are true: a square's area stands for pixels, a strip for time.
"""

from figures.svg import BLUE, GREEN, LARGE, PLAIN, RED, SMALL, WIDTH, YELLOW, Picture

from lofi.data import frame_indices
from lofi.fidelity import Fidelity, schedule
from lofi.figures.style import AMBER, FALSE_ALARM, FOUND, GREY, INK, TRUTH

PLACES, PITCH = 8, 24  # of a drawn video; a full-fidelity tile fills its place but for 2 pixels
ACTION = (4, 7)  # the action covers these places, [first, last)


def three_stages() -> Picture:
    p = Picture(
        520,
        "The three stages of LoFi",
        "Three bands, one below the other. One, ACP: clips of one action pass an encoder and a "
        "classifier, both trained. Two, LoFi: whole videos with fewer pixels (S), fewer snippets "
        "(T) or some of both (ST) pass the encoder and a localization head, both trained. Three: "
        "whole videos at full fidelity pass the frozen encoder; a new head is trained. The "
        "encoder's weights move from band to band.",
    )
    titles = (
        ("1  ACP", "clips that show\none action", "classifier", "Which action?"),
        ("2  LoFi", "whole videos at\nlow fidelity", "head", "When?"),
        ("3  Final head", "whole videos at\nfull fidelity", "new head", "When?"),
    )
    for stage, (title, below, head, question) in enumerate(titles):
        y = 18 + 170 * stage
        p.text(24, y + 36, title, anchor="start", size=LARGE, bold=True)
        p.text(24, y + 66, below, anchor="start", size=SMALL)
        p.text(24, y + 124, question, anchor="start", size=SMALL, italic=True, colour="#00527F")
        frozen = stage == 2
        _box(p, 440, y + 18, 106, "encoder", "frozen" if frozen else "trained")
        _box(p, 574, y + 18, 108, head, "trained")
        p.arrow([(410, y + 49), (436, y + 49)])
        p.arrow([(546, y + 49), (571, y + 49)])
        back = [(628, y + 84), (628, y + 106), (512, y + 106), (512, y + 86)]
        if frozen:
            p.line([*back[:2], (584, y + 106)], FALSE_ALARM, 2.5, dashed=True)
            for dx in (-8, 8):
                p.line([(572 - dx, y + 98), (572 + dx, y + 114)], FALSE_ALARM, 3)
        else:
            p.arrow(back, FALSE_ALARM, dashed=True)
        words = "gradient stops" if frozen else "gradient"
        p.text(606 if frozen else 570, y + 130, words, size=SMALL, colour="#A84300")
        if stage < 2:
            p.arrow([(474, y + 84), (474, y + 185)], TRUTH, 4.5)
            p.text(464, y + 142, "weights", anchor="end", size=SMALL, colour=TRUTH, bold=True)
            p.line([(14, y + 158), (420, y + 158)], PLAIN, 2)
    for i, (pose, name) in enumerate(((0.9, "cheer"), (0.1, "balance"), (-0.7, "walk"))):
        _tile(p, 230 + 72 * i, 58, 56, pose, BLUE)
        p.text(230 + 72 * i, 108, name, size=SMALL)
    left = 210
    p.box(left + ACTION[0] * PITCH, 202, 3 * PITCH, 104, fill=BLUE, edge="none")
    for row, (name, fidelity) in enumerate(_low()):
        y = 224 + 31 * row
        p.text(left - 8, y + 7, name, anchor="end", bold=True)
        _strip(p, left, y, fidelity)
    p.box(left + ACTION[0] * PITCH, 386, 3 * PITCH, 44, fill=BLUE, edge="none")
    _strip(p, left, 408, Fidelity())
    p.text(left + 96, 452, "100 × 224²", size=SMALL)
    p.text(left + 96, 330, "each ¼ of full", size=SMALL)
    return p


def _low() -> list[tuple[str, Fidelity]]:
    return [(name, schedule(name.lower(), Fidelity()).at(0, 0)) for name in ("S", "T", "ST")]


def _box(p: Picture, x: float, y: float, width: float, name: str, state: str) -> None:
    trained = state == "trained"
    p.box(x, y, width, 62, fill=YELLOW if trained else PLAIN, edge=AMBER if trained else GREY,
          thick=2.5, corner=8, dashed=not trained)  # fmt: skip
    p.text(x + width / 2, y + 28, name, bold=True)
    p.text(x + width / 2, y + 50, state, size=SMALL, italic=True)


def _strip(p: Picture, left: float, y: float, fidelity: Fidelity) -> None:
    """A video as tiles at their times, one for every 12.5 snippets."""
    p.line([(left, y), (left + PLACES * PITCH, y)], GREY, 1)
    count = round(PLACES * fidelity.snippets / 100)
    for i in range(count):
        place = (i + 0.5) * PLACES / count
        acting = ACTION[0] <= place < ACTION[1]
        side = (PITCH - 2) * fidelity.pixels / 224
        _tile(p, left + place * PITCH, y, side, 0.9 if acting else -0.9)


def _tile(p: Picture, x: float, y: float, side: float, pose: float, fill: str = "white") -> None:
    """A frame, centred, with a stick figure."""
    p.box(x - side / 2, y - side / 2, side, side, fill=fill, thick=1)
    _figure(p, x, y, side, pose)


def _figure(p: Picture, x: float, y: float, side: float, pose: float) -> None:
    """A stick figure; `pose` from -1 (arms down) to 1 (arms up)."""
    thick = max(1.0, 0.06 * side)
    p.dot(x, y - 0.27 * side, 0.1 * side)
    p.line([(x, y - 0.2 * side), (x, y + 0.12 * side)], thick=thick)
    for sign in (-1, 1):
        hand = (x + sign * 0.27 * side, y - (0.08 + 0.26 * pose) * side)
        p.line([(x, y - 0.12 * side), hand], thick=thick)
        p.line([(x, y + 0.12 * side), (x + sign * 0.16 * side, y + 0.4 * side)], thick=thick)


def snippets() -> Picture:
    p = Picture(
        440,
        "From a video to features",
        "Five rows on one time axis of ten seconds. A video with one action; its eighty frames; "
        "eight snippets, of four frames each around the middle of their interval; the encoder; "
        "eight columns of numbers, one for each snippet.",
    )
    left, scale, frames = 124, 54, 80
    grid = Fidelity(8, 4, 40)
    chosen = frame_indices(frames, grid, frame_stride=2)
    unit = 10 * scale / grid.snippets
    names = ("video", 50), ("frames", 118), ("snippets", 180), ("encoder", 264), ("features", 328)
    for words, y in names:
        p.text(left - 14, y + 7, words, anchor="end", bold=True)
    p.box(left, 34, 10 * scale, 32, fill=PLAIN, corner=4)
    p.box(left + 3.6 * scale, 34, 3.5 * scale, 32, "action", fill=BLUE, edge=TRUTH, corner=4)
    for frame in range(frames):
        x, seen = left + (frame + 0.5) * scale / 8, frame in chosen
        p.line([(x, 106), (x, 130)], INK if seen else "#C4C4BE", 3.5 if seen else 2)
    for i, row in enumerate(chosen):
        x, acting = left + (i + 0.5) * unit, 3.6 <= (i + 0.5) * 1.25 < 7.1
        ends = [left + (row[0] + 0.1) * scale / 8, left + (row[-1] + 0.9) * scale / 8]
        p.line([(x - 31, 166), (ends[0], 134), (ends[1], 134), (x + 31, 166)], "none", fill=PLAIN)
        p.box(x - 31, 166, 62, 44, fill=BLUE if acting else "white", corner=5)
        for k in range(grid.frames):
            p.box(x - 26 + 13.5 * k, 182, 11, 12, thick=1)
        p.arrow([(x, 210), (x, 242)], thick=1.5)
        p.arrow([(x, 284), (x, 304)], thick=1.5)
        for c in range(4):
            strength = (
                (0.15, 0.75, 0.4, 0.55)[(c + i) % 4] if not acting else (0.9, 0.2, 0.7, 0.1)[c]
            )
            p.box(x - 12, 306 + 15 * c, 24, 15, fill=FOUND, opacity=strength, thick=1)
    p.box(left, 244, 10 * scale, 40, "the same network for every snippet", fill=YELLOW, edge=AMBER,
          corner=8, size=SMALL)  # fmt: skip
    p.arrow([(left, 392), (left + 10 * scale + 8, 392)], thick=1.5)
    for s in range(0, 11, 2):
        x = left + s * scale
        p.line([(x, 392), (x, 398)], thick=1.5)
        p.text(x, 420, f"{s} s" if s else "0", size=SMALL)
    p.text(left - 14, 358, "C × L", anchor="end", size=SMALL)
    p.text(left - 14, 208, "L = 8", anchor="end", size=SMALL)
    return p


def lofi_batches() -> Picture:
    full = Fidelity()
    p = Picture(
        340,
        "Mini-batches of LoFi beside full fidelity",
        "Four blocks whose length is the number of snippets and whose face is a frame. Full: 100 "
        "snippets of 224 times 224 pixels. S: 100 of 112 times 112. T: 25 of 224 times 224. ST: 50 "
        "of 158 times 158. S, T and ST each have a quarter of the volume of full.",
    )
    x = 30.0
    for name, f in [("full", full), *_low()]:
        side, depth = 0.48 * f.pixels, 0.74 * f.snippets
        fill, edge, words = (RED, FALSE_ALARM, "#A84300")
        if name != "full":
            fill, edge, words = GREEN, FOUND, "#00694D"
        width = _block(p, x, 214, side, depth, fill, edge)
        middle = x + width / 2
        p.text(middle, 40, name, size=LARGE, bold=True)
        p.text(middle, 248, f"{f.snippets} × {f.pixels}²", size=SMALL)
        share = "1" if name == "full" else f"{f.cost / full.cost:.2f}"
        p.text(middle, 282, share, size=LARGE, bold=True, colour=words)
        x += width + 46
    p.text(WIDTH / 2, 320, "depth: snippets L · face: pixels S × S · volume: memory", size=SMALL)
    return p


def _block(
    p: Picture, x: float, y: float, side: float, depth: float, fill: str, edge: str
) -> float:
    """A block with its front face on the line `y`, going back to the right; returns its width."""
    dx, dy = 0.8 * depth, -0.45 * depth
    top, right = y - side, x + side
    p.line([(x, top), (x + dx, top + dy), (right + dx, top + dy), (right, top)], edge, 2, fill=fill)
    p.line([(right, top), (right + dx, top + dy), (right + dx, y + dy), (right, y)], edge, 2,
           fill=edge)  # fmt: skip
    p.box(x, top, side, side, fill="white", edge=edge, thick=2)
    _figure(p, x + side / 2, y - side / 2, 0.9 * side, 0.9)
    return side + dx


def two_pass() -> Picture:
    p = Picture(
        470,
        "Exact gradients at constant memory, in two passes",
        "Pass one: the encoder turns chunk after chunk of snippets into features and keeps nothing "
        "else. The head sees all features and returns the gradient of each. Pass two: chunk after "
        "chunk passes the encoder again, this time with everything kept, and receives its part of "
        "the gradient; the weights' gradients add up. Only one chunk's activations ever exist.",
    )
    xs = [150 + 112 * i for i in range(4)]
    p.text(24, 76, "pass 1", anchor="start", size=LARGE, bold=True)
    p.text(24, 100, "keeps nothing", anchor="start", size=SMALL)
    p.text(24, 346, "pass 2", anchor="start", size=LARGE, bold=True)
    p.text(24, 370, "keeps 1 chunk", anchor="start", size=SMALL)
    p.text(24, 196, "features", anchor="start", size=SMALL, colour="#00694D")
    p.text(24, 278, "gradients", anchor="start", size=SMALL, colour="#A84300")
    for i, x in enumerate(xs):
        p.text(x + 48, 38, f"chunk {i + 1}", size=SMALL)
        p.box(x, 50, 96, 62, "encoder", fill="white", edge=GREY, corner=8, dashed=True)
        p.arrow([(x + 48, 114), (x + 48, 172)], FOUND)
        now = i == 1
        p.box(x, 320, 96, 62, "encoder", fill=YELLOW if now else "white",
              edge=AMBER if now else GREY, corner=8, dashed=not now, thick=3 if now else 1.5,
              bold=now)  # fmt: skip
        p.arrow([(x + 48, 292), (x + 48, 318)], FALSE_ALARM, dashed=i > 1)
        for k in range(4):
            p.box(x + 9 + 20 * k, 176, 18, 26, fill=GREEN, edge=FOUND)
            p.box(x + 9 + 20 * k, 264, 18, 26, fill=RED, edge=FALSE_ALARM)
        p.arrow([(x + 48, 384), (x + 48, 412)], INK, 2, dashed=i > 1)
    p.box(150, 212, 432, 42, "head: all snippets together", fill=BLUE, edge=TRUTH, corner=8)
    p.arrow([(582, 233), (612, 233)], INK, 2)
    p.box(615, 214, 66, 38, "loss", corner=8, size=SMALL)
    p.arrow([(648, 252), (648, 277), (590, 277)], FALSE_ALARM, 2)
    p.box(150, 414, 432, 38, "sum = the full gradient of the weights", fill=PLAIN, corner=8,
          size=SMALL)  # fmt: skip
    return p
