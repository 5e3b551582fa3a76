"""Pixels of the toy world: flat actors that oscillate in front of a drifting texture.

Everything is numpy and vectorised over the frames of one video; the only randomness is the
generator that is passed in. N frames, H × W pixels, origin at the top left, y points down.
"""

from dataclasses import dataclass

import numpy as np

from lofi.data.toyplan import (
    AXES,
    SHAPES,
    ClipPlan,
    Look,
    Phase,
    ToyWorld,
    VideoPlan,
    appearances,
    generator,
)

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, what yuv420p keeps best


@dataclass(frozen=True)
class Actor:
    """One sprite over N frames; it is drawn where `visible`."""

    shape: str
    colours: np.ndarray  # (2, 3) float32, upper and lower half
    radius: float  # half width; half height is radius * elongation
    x: np.ndarray  # (N,) centre, pixels
    y: np.ndarray  # (N,)
    elongation: np.ndarray  # (N,)
    visible: np.ndarray  # (N,) bool


def render_clip(world: ToyWorld, seed: int, plan: ClipPlan) -> np.ndarray:
    """One source clip, (clip_frames, H, W, 3) uint8; the actor is there in every frame."""
    rng = generator(seed, 2, plan.index)
    swing, height = (low + plan.vigour * (high - low)
                     for low, high in (world.source_swing, world.source_height))  # fmt: skip
    phases = (Phase("action", 0, world.clip_frames, swing, height),)
    return _render(world, world.source, rng, plan.label, phases, world.clip_frames)


def render_video(world: ToyWorld, seed: int, plan: VideoPlan) -> np.ndarray:
    """One target video, (video_frames, H, W, 3) uint8."""
    rng = generator(seed, 3, plan.index)
    return _render(world, world.target, rng, plan.label, plan.phases, world.video_frames)


def _render(
    world: ToyWorld,
    look: Look,
    rng: np.random.Generator,
    label: str,
    phases: tuple[Phase, ...],
    num_frames: int,
) -> np.ndarray:
    shape, axis = label.split(" ")
    shake = rng.normal(0, look.jitter, (num_frames, 2))
    frames, mean_luma = _background(rng, look, world.height, world.width, shake)
    others = [other for other in world.shapes if other != shape]
    if rng.uniform() < look.distractor:
        draw(frames, _distractor(rng, world, look, str(rng.choice(others)), mean_luma, shake))
    draw(frames, _actor(rng, world, look, shape, axis, phases, mean_luma, shake))
    if look.exposure:
        frames = _exposed(frames, rng, look.exposure)
    return _finish(frames, rng, look.noise)


def _actor(
    rng: np.random.Generator,
    world: ToyWorld,
    look: Look,
    shape: str,
    axis: str,
    phases: tuple[Phase, ...],
    mean_luma: float,
    shake: np.ndarray,
) -> Actor:
    """The one who acts: present in the phases, at a new place after each absence."""
    count = len(shake)
    radius, period = rng.uniform(*look.radius), rng.uniform(*world.period)
    wave = np.sin(2 * np.pi * (np.arange(count) / period + rng.uniform()))
    x, y, height, visible = np.zeros(count), np.zeros(count), np.ones(count), np.zeros(count, bool)
    direction = np.array([0, 1] if axis == AXES[0] else [1, 0])  # (y, x)
    for group in appearances(phases):
        span = slice(group[0].start, group[-1].end)
        swing = _eased([p.swing for p in group], group) * world.swing
        height[span] = _eased([p.height for p in group], group)
        visible[span] = True
        reach = np.array([radius * height[span].max(), radius]) + direction * swing.max()
        room = np.maximum(np.array([world.height, world.actor_width]) / 2 - reach, 0)
        centre = np.array([world.height, world.width]) / 2 + rng.uniform(-room, room)
        y[span] = centre[0] + direction[0] * swing * wave[span]
        x[span] = centre[1] + direction[1] * swing * wave[span]
    colours = pick_colours(rng, mean_luma, world.luma_distance)
    return Actor(shape, colours, radius, x - shake[:, 1], y - shake[:, 0], height, visible)


def _eased(values: list[float], group: list[Phase]) -> np.ndarray:
    """One value per frame of a group of phases; a change is spread over three frames."""
    steps = np.repeat(values, [phase.end - phase.start for phase in group])
    padded = np.concatenate([steps[:1], steps, steps[-1:]])
    return 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]


def _distractor(
    rng: np.random.Generator,
    world: ToyWorld,
    look: Look,
    shape: str,
    mean_luma: float,
    shake: np.ndarray,
) -> Actor:
    """Somebody of another shape who only drifts by."""
    times = np.arange(len(shake))[:, None]
    place = rng.uniform(0, [world.height, world.width]) + rng.uniform(-0.25, 0.25, 2) * times
    y, x = (place - shake).T
    height = np.full(len(shake), rng.uniform(*world.source_height))
    colours = pick_colours(rng, mean_luma, world.luma_distance)
    always = np.ones(len(shake), bool)
    return Actor(shape, colours, rng.uniform(*look.radius), x, y, height, always)


def _background(
    rng: np.random.Generator, look: Look, height: int, width: int, shake: np.ndarray
) -> tuple[np.ndarray, float]:
    """A drifting random texture seen through a shaking camera.

    Args:
        shake: (N, 2) camera offsets (y, x) in pixels.
    Returns:
        (N, H, W, 3) float32 in grey levels (not clipped) and its mean luma.
    """
    size = 64  # the texture is periodic, so any offset is inside it
    grey, tint = _texture(rng, look.exponent, size, 1), _texture(rng, look.exponent, size, 3)
    base = rng.uniform(80, 175) + rng.uniform(-25, 25, 3).astype(np.float32)
    texture = (base + look.contrast * (0.9 * grey + 0.45 * tint)).astype(np.float32)
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.7)
    drift = speed * np.arange(len(shake))[:, None] * [np.sin(angle), np.cos(angle)]
    offset = rng.uniform(0, size, 2) + drift + shake  # (N, 2)
    rows, row_part = _sample_points(offset[:, 0], height)
    columns, column_part = _sample_points(offset[:, 1], width)
    texture = np.concatenate([texture, texture[:1]])  # one row and column more: + 1 needs no modulo
    texture = np.concatenate([texture, texture[:, :1]], axis=1)
    frames = np.empty((len(shake), height, width, 3), np.float32)
    for i in range(len(shake)):
        band = (
            texture[rows[i] % size] * (1 - row_part[i]) + texture[rows[i] % size + 1] * row_part[i]
        )
        left = columns[i] % size
        frames[i] = band[:, left] * (1 - column_part[i]) + band[:, left + 1] * column_part[i]
    return frames, float(base @ LUMA)


def _texture(rng: np.random.Generator, exponent: float, size: int, channels: int) -> np.ndarray:
    """Periodic (size, size, channels) noise of mean 0 and deviation 1 with a power-law spectrum."""
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    radius = np.hypot(fy, fx)
    radius[0, 0] = np.inf  # no constant part
    white = rng.standard_normal((2, channels, size, size // 2 + 1), np.float32)
    spectrum = (white[0] + 1j * white[1]) * radius ** (-exponent / 2)
    field = np.fft.irfft2(spectrum, s=(size, size)).transpose(1, 2, 0)
    return (field / field.std(axis=(0, 1))).astype(np.float32)


def _sample_points(offset: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole positions (N, length) and the fraction (N,) shared by all pixels of a frame."""
    whole = np.floor(offset)
    return whole.astype(int)[:, None] + np.arange(length), (offset - whole).astype(np.float32)


def pick_colours(rng: np.random.Generator, mean_luma: float, distance: float) -> np.ndarray:
    """Two colours (2, 3) of one luma, more than `distance` grey levels from the background's mean.

    Without this rule some actors are all but invisible after H.264, and the classifier's training
    stays on its plateau for some seeds.
    """
    while True:
        first, other = rng.uniform(10, 245, (2, 3)).astype(np.float32)
        luma = first @ LUMA
        other += luma - other @ LUMA
        visible = abs(luma - mean_luma) > distance
        distinct = np.abs(first - other).max() > 40
        if visible and distinct and other.min() >= 0 and other.max() <= 255:
            return np.stack([first, other])


def draw(frames: np.ndarray, actor: Actor) -> None:
    """Blend an actor into (N, H, W, 3) float32 frames in place; parts outside are cut off."""
    shown = np.flatnonzero(actor.visible)
    if not len(shown):
        return
    height, width = frames.shape[1:3]
    half = int(np.ceil(actor.radius * 1.1 * actor.elongation[shown].max())) + 2
    top = np.floor(actor.y[shown]).astype(int) - half
    left = np.floor(actor.x[shown]).astype(int) - half
    steps = np.arange(2 * half + 2, dtype=np.float32)
    u = steps - (actor.x[shown] - left).astype(np.float32)[:, None]
    v = steps - (actor.y[shown] - top).astype(np.float32)[:, None]
    stretch = actor.elongation[shown].astype(np.float32)[:, None]
    u, v = (u / actor.radius)[:, None, :], (v / (actor.radius * stretch))[:, :, None]
    cover = np.clip(0.5 - actor.radius * _distance(actor.shape, u, v), 0, 1)[..., None]
    lower = np.clip(0.5 + actor.radius * v, 0, 1)[..., None]  # 0 in the upper half, 1 in the lower
    colour = actor.colours[0] + lower * (actor.colours[1] - actor.colours[0])  # (n, side, 1, 3)
    for k, i in enumerate(shown):
        y0, y1 = max(top[k], 0), min(top[k] + len(steps), height)
        x0, x1 = max(left[k], 0), min(left[k] + len(steps), width)
        if y0 >= y1 or x0 >= x1:
            continue
        patch = frames[i, y0:y1, x0:x1]
        inside = slice(y0 - top[k], y1 - top[k])
        patch += cover[k, inside, x0 - left[k] : x1 - left[k]] * (colour[k, inside] - patch)


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
    raise ValueError(f"unknown shape {shape!r}; expected one of {', '.join(SHAPES)}")


def _exposed(frames: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Contrast and brightness that sway over about a second, like a camera's automatic exposure.

    A classifier learns to ignore them, the features of an untrained encoder do not: without this
    the mere presence of an actor was enough to localize well.
    """
    own = np.random.default_rng(rng.integers(2**31))

    def sway() -> np.ndarray:
        window = np.hanning(13)
        drawn = own.normal(size=len(frames) + 32)
        smooth = np.convolve(drawn, window / np.sqrt((window**2).sum()), "same")
        return smooth[16 : 16 + len(frames), None, None, None]

    gain, offset = np.exp(strength * sway()), 93 * strength * sway()
    return ((frames - 128) * gain + 128 + offset).astype(frames.dtype)


def _finish(frames: np.ndarray, rng: np.random.Generator, noise: float) -> np.ndarray:
    """Add sensor noise and quantise (N, H, W, 3) float32 to uint8; `frames` is overwritten."""
    frames += noise * rng.standard_normal(frames.shape, np.float32)
    np.clip(frames, 0, 255, out=frames)
    return (frames + 0.5).astype(np.uint8)
