"""How the toy world looks: flat actors that oscillate before a drifting texture or real frames.

Everything is numpy and vectorised over the frames of one video; the only randomness is the
generator that is passed in. N frames, H × W pixels, origin at the top left, y points down, grey
levels of 255. Frame ranges are [start, end).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

AXES = ("left-right", "up-down")
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, what yuv420p keeps best
TEXTURE = 64  # pixels after which the background repeats itself
Range = tuple[float, float]  # uniform, low to high


@dataclass(frozen=True)
class Look:
    """Nuisances of one domain; pixels, grey levels of 255, (low, high) are uniform ranges."""

    radius: Range
    noise: float  # standard deviation of the sensor noise
    contrast: float  # standard deviation of the background texture
    exponent: float  # power of the background falls as 1 / frequency**exponent
    jitter: float  # standard deviation of the camera's shake per frame
    distractor: float  # probability of an actor of another shape that drifts by and means nothing
    exposure: float = 0.0  # standard deviation of the slowly swaying logarithm of the contrast


@dataclass(frozen=True)
class ToyWorld:
    """Sizes and nuisances of a world. Lengths are in pixels and frames, ranges are (low, high)."""

    name: str
    height: int
    width: int
    actor_width: int  # actors stay inside the central columns, which a centre crop keeps
    shapes: tuple[str, ...]
    source_clips: tuple[int, int]  # training, validation
    videos: tuple[int, int]  # training, validation
    source: Look
    target: Look
    source_swing: Range  # amplitude, as a factor of `swing`
    action_swing: Range
    context_swing: Range
    source_height: Range  # elongation of the actor; rises with the swing
    action_height: float
    context_height: float
    swing: float  # pixels
    period: Range  # frames
    clip_frames: int
    video_frames: int
    instances: tuple[float, ...]  # probability of 1, 2, ... instances in a video
    instance_frames: tuple[int, int]  # inclusive
    context_frames: tuple[int, int]  # inclusive; warm-up and cool-down each
    false_start: float  # probability of one in a video
    luma_distance: float  # grey levels between an actor and the background's mean
    fps: int = 8
    crf: int = 22
    filler: int = 0  # frames of the blocks of an action that alternate with other motion; 0 = none
    real: bool = False  # backgrounds and the actors' surfaces are cut out of real videos

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, e.g. "ring left-right"."""
        return tuple(f"{shape} {axis}" for shape in self.shapes for axis in AXES)


class Phase(NamedTuple):
    """Frames [start, end) in which the actor is there; kind is one of the four words below."""

    kind: str  # "warm-up" | "action" | "cool-down" | "false start"
    start: int
    end: int
    swing: float  # amplitude as a factor of the world's `swing`
    height: float  # elongation


def render(
    world: ToyWorld, look: Look, rng: np.random.Generator, label: str, phases: tuple[Phase, ...],
    num_frames: int, real: Sequence[np.ndarray] = (),
) -> np.ndarray:  # fmt: skip
    """One clip or video of a class, (num_frames, H, W, 3) uint8; `real`: see `_real_background`."""
    shape, axis = label.split(" ")
    shake = rng.normal(0, look.jitter, (num_frames, 2))  # camera, (y, x)
    skins = [None, None]  # of the distractor and of the actor
    if real:
        frames, mean_luma = _real_background(rng, world, look, shake, real)
        one = np.zeros((1, 2))  # frame, not shaken
        skins = [_real_background(rng, world, look, one, real)[0][0] for _ in skins]
    else:
        frames, mean_luma = _background(rng, world, look, shake)
    if rng.uniform() < look.distractor:  # somebody of another shape who only drifts by
        other = str(rng.choice([name for name in world.shapes if name != shape]))
        place = rng.uniform(0, [world.height, world.width])
        place = place + rng.uniform(-0.25, 0.25, 2) * np.arange(num_frames)[:, None]
        y, x = (place - shake).T
        height = np.full(num_frames, rng.uniform(*world.source_height))
        colours = pick_colours(rng, mean_luma, world.luma_distance)
        track = np.stack([x, y, height])
        _draw(frames, other, colours, rng.uniform(*look.radius), track, skins[0])
    radius = rng.uniform(*look.radius)
    track = _motion(rng, world, radius, axis, phases, num_frames)
    track[:2] -= shake.T[::-1]
    colours = pick_colours(rng, mean_luma, world.luma_distance)
    _draw(frames, shape, colours, radius, track, skins[1])
    if look.exposure:
        frames = _exposed(frames, rng, look.exposure)
    frames += look.noise * rng.standard_normal(frames.shape, np.float32)
    return (np.clip(frames, 0, 255) + 0.5).astype(np.uint8)


def _background(
    rng: np.random.Generator, world: ToyWorld, look: Look, shake: np.ndarray
) -> tuple[np.ndarray, float]:
    """A drifting texture, (N, H, W, 3) float32 (not clipped), and its mean luma; `shake` (y, x)."""
    grey, tint = _texture(rng, look.exponent, 1), _texture(rng, look.exponent, 3)
    base = rng.uniform(80, 175) + rng.uniform(-25, 25, 3).astype(np.float32)
    texture = (base + look.contrast * (0.9 * grey + 0.45 * tint)).astype(np.float32)
    texture = np.pad(texture, ((0, 1), (0, 1), (0, 0)), "wrap")  # below, + 1 needs no modulo
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.7)
    drift = speed * np.arange(len(shake))[:, None] * [np.sin(angle), np.cos(angle)]
    offset = rng.uniform(0, TEXTURE, 2) + drift + shake  # (N, 2)
    whole = np.floor(offset)
    part = (offset - whole).astype(np.float32)  # shared by all pixels of a frame
    frames = np.empty((len(shake), world.height, world.width, 3), np.float32)
    for i, (y, x) in enumerate(whole.astype(int)):
        rows = (y + np.arange(world.height)) % TEXTURE
        columns = (x + np.arange(world.width)) % TEXTURE
        down, right = part[i]
        band = texture[rows] * (1 - down) + texture[rows + 1] * down
        frames[i] = band[:, columns] * (1 - right) + band[:, columns + 1] * right
    return frames, float(base @ LUMA)


def _real_background(
    rng: np.random.Generator, world: ToyWorld, look: Look, shake: np.ndarray,
    videos: Sequence[np.ndarray],
) -> tuple[np.ndarray, float]:  # fmt: skip
    """As `_background`, a stretch of one of `videos`, (N', H', W', 3) uint8 each, sides >= 2.

    Video, start, place, scale and mirroring are random; a video that is too short runs forth and
    back. Colours and motion are its own, its contrast is lowered to that of `look` if it has more.
    """
    video = videos[rng.integers(len(videos))][:, :, :: rng.choice([1, -1])]
    num_frames, *sides = video.shape[:3]
    period = max(1, 2 * num_frames - 2)
    free = num_frames - len(shake) + 1
    time = (rng.integers(free if free > 0 else period) + np.arange(len(shake))) % period
    time = np.minimum(time, period - time)
    small = np.array([world.height, world.width])
    last = np.array(sides) - 1
    scale = rng.uniform(0.6, 1) * (last / (small - 1)).min()  # its pixels in one of the world's
    corner = rng.uniform(0, last - scale * (small - 1)) + scale * shake
    frames = np.empty((len(shake), *small, 3), np.float32)
    for i, t in enumerate(time):
        y, x = (corner[i, k] + scale * np.arange(small[k]) for k in (0, 1))
        y, x = np.clip(y, 0, last[0] - 1e-3), np.clip(x, 0, last[1] - 1e-3)
        down, right = np.float32(y % 1)[:, None, None], np.float32(x % 1)[:, None]
        y, x = y.astype(int), x.astype(int)
        band = video[t, y] * (1 - down) + video[t, y + 1] * down
        frames[i] = band[:, x] * (1 - right) + band[:, x + 1] * right
    mean = frames.mean((0, 1, 2))
    frames -= mean
    frames *= look.contrast / max(frames.std(), look.contrast, 1e-3)
    return frames + mean, float(mean @ LUMA)


def _texture(rng: np.random.Generator, exponent: float, channels: int) -> np.ndarray:
    """Periodic (64, 64, channels) noise of mean 0 and deviation 1 with a power-law spectrum."""
    fy, fx = np.fft.fftfreq(TEXTURE)[:, None], np.fft.rfftfreq(TEXTURE)[None]
    radius = np.hypot(fy, fx)
    radius[0, 0] = np.inf  # no constant part
    white = rng.standard_normal((2, channels, TEXTURE, TEXTURE // 2 + 1), np.float32)
    spectrum = (white[0] + 1j * white[1]) * radius ** (-exponent / 2)
    field = np.fft.irfft2(spectrum, s=(TEXTURE, TEXTURE)).transpose(1, 2, 0)
    return (field / field.std(axis=(0, 1))).astype(np.float32)


def _motion(
    rng: np.random.Generator, world: ToyWorld, radius: float, axis: str,
    phases: tuple[Phase, ...], num_frames: int,
) -> np.ndarray:  # fmt: skip
    """Centre x, y and elongation of the one who acts, (3, N); a new place after each absence."""
    period = rng.uniform(*world.period)
    wave = np.sin(2 * np.pi * (np.arange(num_frames) / period + rng.uniform()))
    track = np.zeros((3, num_frames))
    x, y, height = track
    direction = np.array([0, 1] if axis == AXES[0] else [1, 0])  # (y, x)
    for group in appearances(phases):
        span = slice(group[0].start, group[-1].end)
        lengths = [phase.end - phase.start for phase in group]
        steps = np.repeat([[phase.swing, phase.height] for phase in group], lengths, axis=0)
        padded = np.concatenate([steps[:1], steps, steps[-1:]])  # changes take three frames
        eased = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
        swing, height[span] = eased[:, 0] * world.swing, eased[:, 1]
        reach = np.array([radius * height[span].max(), radius]) + direction * swing.max()
        room = np.maximum(np.array([world.height, world.actor_width]) / 2 - reach, 0)
        centre = np.array([world.height, world.width]) / 2 + rng.uniform(-room, room)
        y[span] = centre[0] + direction[0] * swing * wave[span]
        x[span] = centre[1] + direction[1] * swing * wave[span]
        if world.filler:  # vigorous motion across the class's axis, which names no class
            for phase in (phase for phase in group if phase.kind == "action"):
                frame = np.arange(phase.start, phase.end)
                frame = frame[(frame - phase.start) // world.filler % 2 == 1]
                across = phase.swing * world.swing * np.cos(2 * np.pi * frame / period)
                y[frame] += direction[1] * across
                x[frame] += direction[0] * across
    return track


def appearances(phases: tuple[Phase, ...]) -> list[list[Phase]]:
    """Phases grouped into the stretches in which the actor is there without a break."""
    groups: list[list[Phase]] = []
    for phase in phases:
        if groups and groups[-1][-1].end == phase.start:
            groups[-1].append(phase)
        else:
            groups.append([phase])
    return groups


def pick_colours(rng: np.random.Generator, mean_luma: float, distance: float) -> np.ndarray:
    """Two colours (2, 3) of one luma, more than `distance` grey levels from the background's mean.

    Others are all but invisible after H.264, and some seeds' training then stays on its plateau.
    """
    while True:
        first, other = rng.uniform(10, 245, (2, 3)).astype(np.float32)
        luma = first @ LUMA
        other += luma - other @ LUMA
        visible, distinct = abs(luma - mean_luma) > distance, np.abs(first - other).max() > 40
        if visible and distinct and other.min() >= 0 and other.max() <= 255:
            return np.stack([first, other])


def _draw(
    frames: np.ndarray, shape: str, colours: np.ndarray, radius: float, track: np.ndarray,
    skin: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Blend an actor into (N, H, W, 3) float32 frames in place; parts outside are cut off.

    `colours`: (2, 3) float32, upper and lower half. `radius`: half the width in pixels; times the
    elongation half the height. `track`: (3, N) of `_motion`, elongation 0 where nobody is there.
    `skin`: (H, W, 3) whose differences from its mean are added to the colours, moving along.
    """
    shown = np.flatnonzero(track[2])
    if not len(shown):
        return
    x, y, stretch = track[:, shown]
    height, width = frames.shape[1:3]
    half = int(np.ceil(radius * 1.1 * stretch.max())) + 2
    top, left = np.floor(y).astype(int) - half, np.floor(x).astype(int) - half
    steps = np.arange(2 * half + 2, dtype=np.float32)
    u = steps - (x - left).astype(np.float32)[:, None]
    v = steps - (y - top).astype(np.float32)[:, None]
    stretch = stretch.astype(np.float32)[:, None]
    u, v = (u / radius)[:, None, :], (v / (radius * stretch))[:, :, None]
    cover = np.clip(0.5 - radius * _distance(shape, u, v), 0, 1)[..., None]
    lower = np.clip(0.5 + radius * v, 0, 1)[..., None]  # 0 in the upper half, 1 in the lower
    colour = colours[0] + lower * (colours[1] - colours[0])  # (n, side, 1, 3)
    if skin is not None:
        tiled = np.tile(skin - skin.mean((0, 1)), (2, 2, 1))  # actors are lower than two frames
        colour = np.clip(colour + tiled[: len(steps), : len(steps)], 0, 255)  # (n, side, side, 3)
    for k, i in enumerate(shown):
        y0, y1 = max(top[k], 0), min(top[k] + len(steps), height)
        x0, x1 = max(left[k], 0), min(left[k] + len(steps), width)
        if y0 < y1 and x0 < x1:
            patch = frames[i, y0:y1, x0:x1]
            inside = slice(y0 - top[k], y1 - top[k])
            across = slice(x0 - left[k], x1 - left[k])
            shade = colour[k, inside] if skin is None else colour[k, inside, across]
            patch += cover[k, inside, across] * (shade - patch)


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to the outline in units of the radius, negative inside; u, v broadcast."""
    if shape == "ring":
        return np.abs(np.hypot(u, v) - 0.72) - 0.28
    u, height = np.abs(u), np.abs(v)
    if shape == "cross":
        return np.minimum(np.maximum(u - 1, height - 0.32), np.maximum(u - 0.32, height - 1))
    if shape == "square":
        return np.maximum(u, height) - 0.85
    if shape == "triangle":  # base below, tip above
        return np.maximum(v - 0.85, (1.85 * u - (v + 1)) / np.hypot(1.85, 1))
    raise ValueError(f"unknown shape {shape!r}; expected one of ring, cross, square, triangle")


def _exposed(frames: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Contrast and brightness sway over about a second, as with automatic exposure.

    Without this, features of an untrained encoder localized well by an actor's mere presence.
    """
    own = np.random.default_rng(rng.integers(2**31))
    window = np.hanning(13)
    window /= np.sqrt((window**2).sum())

    def sway() -> np.ndarray:
        drawn = own.normal(size=len(frames) + 32)
        return np.convolve(drawn, window, "same")[16 : 16 + len(frames), None, None, None]

    gain, offset = np.exp(strength * sway()), 93 * strength * sway()
    return ((frames - 128) * gain + 128 + offset).astype(frames.dtype)
