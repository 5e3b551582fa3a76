"""Random changes of training clips, from an explicit CPU generator, one draw a clip."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch.nn import functional as F

from lofi.data import Augmentation, Segment, Video
from lofi.data.features import Features

MAX_SHIFT = 0.08  # of the side
MAX_SHAKE = 2  # pixels
GAIN = (0.7, 1.3)
BLACK = 16  # mean grey level of a row or column below which it is a black border
STATIC, SHOT_CUT = 1.0, 60.0  # mean grey-level change of neighbouring frames
MAX_BLEND, MAX_NOISE = 0.5, 10  # share of another picture; grey levels
GREY = 0.2  # probability
SMALLEST_CROP = 0.6  # of the side
SHORTEST_CROP, TRIALS, KEPT = 0.9, 200, 0.5  # of a video, draws, of a segment
SCALES = (1.0, 0.875, 0.75, 0.66)  # of "multiscale": sides of a crop over the short side
SHAPES = [(a, b) for i, a in enumerate(SCALES) for b in SCALES[max(0, i - 1) : i + 2]]
# (top, left) in quarters of the free space: corners, middles, and halfway between them
PLACES = [(i, j) for i in range(0, 5, 2) for j in range(0, 5, 2)]
PLACES += [(i, j) for i in (1, 3) for j in (1, 3)]


def draw_geometry(setting: str, generator: torch.Generator, jitter: int = 0) -> Augmentation | None:
    """Crop position and flip (not for "varied") of one clip or video; None for the setting "none".

    `jitter` is L of the fidelity where every snippet moves inside its interval, 0 for none.
    """
    if setting != "none":
        drawn = Augmentation.draw(generator, jitter)
        if setting == "multiscale":
            shape, place = (
                int(torch.randint(len(x), (), generator=generator)) for x in (SHAPES, PLACES)
            )
            top, left = PLACES[place]
            return replace(drawn, top=top / 4, left=left / 4, scale=SHAPES[shape])
        return replace(drawn, flip=False) if setting == "varied" else drawn
    return Augmentation(jitter=Augmentation.draw(generator, jitter).jitter) if jitter else None


class Colour(NamedTuple):
    """One draw of `recolour`; dy and dx are in [-1, 1], 1 = the largest shift of the picture."""

    order: torch.Tensor  # of the channels
    invert: bool
    gain: float
    dy: float
    dx: float


def draw_colour(generator: torch.Generator) -> Colour:
    """What one clip gets; takes the same numbers from the generator every time."""
    order = torch.randperm(3, generator=generator)
    invert, gain, dy, dx = torch.rand(4, generator=generator).tolist()
    return Colour(order, invert < 0.5, GAIN[0] + (GAIN[1] - GAIN[0]) * gain, 2 * dy - 1, 2 * dx - 1)


def recolour(clip: torch.Tensor, draw: Colour) -> torch.Tensor:
    """Permute and invert colour channels, change the gain and shift the picture of a whole clip.

    A source classifier that cannot rely on colour or position has to look at shape and motion.
    (F, 3, S, S) uint8 in and out.
    """
    side = clip.shape[-1]
    clip = 255 - clip[:, draw.order] if draw.invert else clip[:, draw.order]
    clip = (128 + (clip.float() - 128) * draw.gain).clamp_(0, 255).to(torch.uint8)
    reach = int(MAX_SHIFT * side)
    return _moved(clip, round(draw.dy * reach), round(draw.dx * reach))


def _moved(clip: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    """The picture shifted by whole pixels; the edge pixel is repeated."""
    rows, columns = ((torch.arange(n) + d).clamp_(0, n - 1)
                     for n, d in zip(clip.shape[-2:], (dy, dx)))  # fmt: skip
    return clip[..., rows[:, None], columns[None, :]]


def vary(clips: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Other views, light and surroundings of clips (n, F, 3, S, S) uint8, one draw a clip.

    A part of at least 0.75 of the side, zoomed; contrast, brightness and a tint; a still picture of
    another clip blended in, so that surroundings say little (Wang et al., "Removing the
    Background by Adding the Background", CVPR 2021); noise. No mirror and no other colours: a
    label may be one of direction or of colour.
    """
    pixels, varied = clips.shape[-1], []
    draws = torch.rand(len(clips), 10, generator=generator)
    others = torch.randint(clips.shape[1], (len(clips),), generator=generator)
    order = torch.randperm(len(clips), generator=generator)
    for clip, draw, at, other in zip(clips, draws, others, order):
        zoom, y, x, gain, light, *tint, blend, noise = draw.tolist()
        side = round(pixels * (1 - 0.25 * zoom))
        spare = pixels - side
        seen = Square(round(y * spare), round(x * spare), side).cut(clip, pixels).float()
        seen = seen + MAX_BLEND * blend * (clips[other, at].float() - seen)
        tint = torch.tensor(tint)[:, None, None] * 0.4 + 0.8
        seen = (seen - 128) * (0.6 + 0.8 * gain) * tint + 128 + 60 * (light - 0.5)
        seen += MAX_NOISE * noise * torch.randn(seen.shape, generator=generator)
        varied.append(seen.clamp_(0, 255).to(torch.uint8))
    return torch.stack(varied)


class Square(NamedTuple):
    """A square of a picture: `side` pixels down and right from (top, left)."""

    top: int
    left: int
    side: int

    def cut(self, clip: torch.Tensor, pixels: int) -> torch.Tensor:
        """This part of a clip (F, 3, S, S) uint8, resized to (F, 3, pixels, pixels)."""
        part = clip[..., self.top : self.top + self.side, self.left : self.left + self.side]
        if self.side == pixels:
            return part
        scaled = F.interpolate(part.float(), (pixels, pixels), mode="bilinear", antialias=True)
        return scaled.round_().clamp_(0, 255).to(torch.uint8)

    def random_part(self, generator: torch.Generator) -> "Square":
        """A smaller square inside, of at least 0.6 of the side; the aspect ratio stays."""
        size, y, x = torch.rand(3, generator=generator).tolist()
        side = round(self.side * (SMALLEST_CROP + (1 - SMALLEST_CROP) * size))
        spare = self.side - side
        return Square(self.top + round(y * spare), self.left + round(x * spare), side)


def inside_borders(clip: torch.Tensor) -> Square:
    """The largest centred square without the black stripes of wide-screen or upright videos.

    Frame borders give the direction of time away (Wei et al. 2018): camera men pan and zoom in
    conventional ways. A picture that is dark for the most part is left as it is.
    """
    light = clip.float().mean((0, 1))  # (S, S)
    spans = []
    for axis in (1, 0):
        lit = (light.mean(axis) >= BLACK).nonzero().flatten().tolist() or [0]
        spans.append((lit[0], lit[-1] + 1 - lit[0]))
    side = min(length for _, length in spans)
    if side < clip.shape[-1] / 2:
        return Square(0, 0, clip.shape[-1])
    return Square(*(start + (length - side) // 2 for start, length in spans), side)


def is_steady(clip: torch.Tensor) -> bool:
    """Whether a clip (F, 3, S, S) moves and holds no shot cut; else it has no direction to learn.

    Mean absolute difference of neighbouring frames: at least 1 grey level, for none above 60.
    """
    change = clip.float().diff(dim=0).abs().mean((1, 2, 3))
    return float(change.mean()) >= STATIC and float(change.max()) <= SHOT_CUT


def hide_origin(clip: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Cover traces of cameras and codecs: random grey, a shaking picture, ±1 grey level of noise.

    (F, 3, S, S) uint8. The shaking is a random walk, which looks the same in both directions.
    """
    if torch.rand((), generator=generator) < GREY:
        clip = clip.float().mean(1, keepdim=True).to(torch.uint8).expand(-1, 3, -1, -1)
    steps = torch.randint(-1, 2, (len(clip), 2), generator=generator)
    path = steps.cumsum(0).clamp_(-MAX_SHAKE, MAX_SHAKE).tolist()
    clip = torch.stack([_moved(frame, dy, dx) for frame, (dy, dx) in zip(clip, path)])
    noise = torch.randint(-1, 2, clip.shape, generator=generator, dtype=torch.int16)
    return (clip + noise).clamp_(0, 255).to(torch.uint8)


def crop_steps(
    video: Video, whole: Features, most: int, generator: torch.Generator
) -> tuple[Video, Features]:
    """A stretch of a video as ActionFormer is trained: at most `most` steps, of shorter videos 90 %
    to all of them; its times count from the stretch's beginning.

    Draws again until a segment keeps half of its length. Segments that keep less are left out, the
    others are cut to the frames that the stretch and one more step have seen.
    """
    values, grid = whole
    steps = min(values.shape[1], most)
    if steps == values.shape[1]:
        low = max(round(SHORTEST_CROP * steps), 1)
        steps = int(torch.randint(low, steps + 1, (), generator=generator))
    kept: list[Segment] = []
    for _ in range(TRIALS):
        first = int(torch.randint(values.shape[1] - steps + 1, (), generator=generator))
        part = grid.window(first, steps)
        begin = part.start_s - part.offset_s
        end = begin + part.covered_s + part.step_s
        if steps == values.shape[1]:
            begin, end = -float("inf"), float("inf")
        cut = [replace(s, start_s=max(s.start_s, begin), end_s=min(s.end_s, end))
               for s in video.segments]  # fmt: skip
        kept = [c for c, s in zip(cut, video.segments)
                if c.end_s - c.start_s >= KEPT * (s.end_s - s.start_s) > 0]  # fmt: skip
        if kept or not video.segments:
            break
    moved = tuple(
        replace(s, start_s=s.start_s - part.start_s, end_s=s.end_s - part.start_s) for s in kept
    )
    # every row counts, also behind the annotated end
    part = replace(part, num_frames=part.first_frame + steps * part.stride)
    return replace(video, segments=moved), Features(values[:, first : first + steps], part)
