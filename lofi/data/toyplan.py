"""What happens in the toy world: sizes, presets, and the timeline of every clip and video.

No pixels here (`toyrender`) and no files (`toyworld`). Times are whole frames, ends exclusive.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

SHAPES = ("ring", "cross", "square", "triangle")
AXES = ("left-right", "up-down")
SUBSETS = ("training", "validation")
Range = tuple[float, float]  # uniform, low to high


@dataclass(frozen=True)
class Look:
    """Nuisances of one domain; pixels, grey levels of 255, (low, high) are uniform ranges."""

    radius: tuple[float, float]
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

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, e.g. "ring left-right"."""
        return tuple(f"{shape} {axis}" for shape in self.shapes for axis in AXES)


# Tuned on seeds 100 to 104 and frozen: results are quoted for other seeds. What was tuned is
# whether action classification (AdamW 0.004, weight decay 0.01, batch 64, 10 epochs) leaves its
# plateau: actors larger by 6 %, a period of 6 to 9 frames (first 7 to 11) and a distractor in half
# of the source clips (first in all). Held-out accuracy on decoded frames then was 0.975, 0.983,
# 0.979, 0.988, 0.983. Localization was not looked at.
TOY = ToyWorld(
    name="toy",
    height=48,
    width=56,  # decord2 cannot read a width of 48
    actor_width=48,
    shapes=SHAPES,
    source_clips=(2400, 240),
    videos=(160, 100),
    source=Look((8.0, 10.5), noise=5, contrast=18, exponent=2.4, jitter=0.3, distractor=0.5),
    target=Look(
        (6.8, 8.8), noise=14, contrast=25, exponent=1.7, jitter=0.8, distractor=1, exposure=0.075
    ),
    source_swing=(0.30, 1.15),
    action_swing=(0.85, 1.15),
    context_swing=(0.30, 0.45),
    source_height=(1.0, 1.35),
    action_height=1.35,
    context_height=1.0,
    swing=8,
    period=(6, 9),
    clip_frames=8,
    video_frames=128,
    instances=(0.4, 0.4, 0.2),
    instance_frames=(14, 48),
    context_frames=(6, 19),
    false_start=0.5,
    luma_distance=60,
)

# For tests: fewer classes, taller and faster actors, little noise. Only the number of epochs
# (batch 32, else as above) was tuned on seeds 100 to 104: held-out accuracy after 8 was 0.988,
# 0.950, 1.000, 0.900, 0.988; after 10 it was 1.000 (100) and 0.988 (103, the slowest).
TINY = replace(
    TOY,
    name="tiny",
    height=40,
    width=40,
    actor_width=40,
    shapes=("ring", "cross"),
    source_clips=(600, 80),
    videos=(60, 40),
    source=Look((6.7, 9.2), noise=4, contrast=18, exponent=2.4, jitter=0.3, distractor=0),
    target=Look(
        (6.7, 8.8), noise=6, contrast=18, exponent=1.7, jitter=0.4, distractor=1, exposure=0.075
    ),
    source_swing=(0.70, 1.15),
    action_swing=(0.90, 1.15),
    context_swing=(0.20, 0.35),
    source_height=(1.0, 1.6),
    action_height=1.6,
    context_height=1.0,
    swing=6.7,
    period=(5, 7),
    video_frames=64,
    instances=(0.6, 0.4),
    instance_frames=(10, 28),
    context_frames=(5, 10),
    luma_distance=70,
)


class Phase(NamedTuple):
    """Frames [start, end) in which the actor is there; kind is one of the four words below."""

    kind: str  # "warm-up" | "action" | "cool-down" | "false start"
    start: int
    end: int
    swing: float  # amplitude as a factor of the world's `swing`
    height: float  # elongation


class ClipPlan(NamedTuple):
    """One source clip; `vigour` in [0, 1] places swing and height in their source ranges."""

    index: int
    label: str
    vigour: float
    subset: str

    @property
    def file(self) -> str:
        """Path below the source folder, POSIX."""
        return f"{self.label.replace(' ', '_')}/{self.subset}_{self.index:05d}.mp4"


class VideoPlan(NamedTuple):
    """One target video and all its phases in order of time."""

    index: int
    id: str
    label: str
    subset: str
    phases: tuple[Phase, ...]


def generator(seed: int, part: int, index: int) -> np.random.Generator:
    """One generator for each item and purpose, so that the order of rendering does not matter."""
    return np.random.default_rng([seed, part, index])


def plan_clips(world: ToyWorld, seed: int) -> list[ClipPlan]:
    """Labels in turn (balanced), vigour uniform and independent of them."""
    subsets = [subset for subset, n in zip(SUBSETS, world.source_clips) for _ in range(n)]
    vigour = generator(seed, 0, 0).uniform(size=len(subsets))
    labels = world.classes
    return [
        ClipPlan(i, labels[i % len(labels)], float(vigour[i]), subset)
        for i, subset in enumerate(subsets)
    ]


def plan_videos(world: ToyWorld, seed: int) -> list[VideoPlan]:
    """One class per video, labels in turn within each subset, so that both are balanced."""
    plans, labels = [], world.classes
    for subset, count in zip(SUBSETS, world.videos):
        for i in range(count):
            index = len(plans)
            phases = _phases(world, generator(seed, 1, index))
            name = f"{subset}_{i:04d}"
            plans.append(VideoPlan(index, name, labels[i % len(labels)], subset, phases))
    return plans


def _phases(world: ToyWorld, rng: np.random.Generator) -> tuple[Phase, ...]:
    """Draw appearances, shorten them by one factor if they do not fit, spread the time left."""
    count = 1 + int(rng.choice(len(world.instances), p=world.instances))
    order = [("warm-up", "action", "cool-down")] * count
    if rng.uniform() < world.false_start:
        order.insert(int(rng.integers(count + 1)), ("false start",))
    absence = 2 * (len(order) + 1)  # at least two frames, at both ends too
    ranges = np.array([_lengths(world, kind) for kinds in order for kind in kinds])
    lengths = rng.integers(ranges[:, 0], ranges[:, 1] + 1)
    free = world.video_frames - absence - ranges[:, 0].sum()
    if free < 0:
        raise ValueError(
            f"toy world {world.name}: {count} instances with context need at least "
            f"{absence + ranges[:, 0].sum()} frames, a video has {world.video_frames}; "
            "lower the lengths or raise video_frames"
        )
    extra = lengths - ranges[:, 0]
    factor = min(1.0, free * rng.uniform(0.5, 1.0) / max(extra.sum(), 1))
    lengths = ranges[:, 0] + np.floor(factor * extra).astype(int)
    spare = world.video_frames - absence - lengths.sum()
    gaps = 2 + rng.multinomial(spare, rng.dirichlet([1.0] * (len(order) + 1)))
    now, phases = 0, []
    for gap, kinds in zip(gaps, order):
        now += int(gap)
        for kind in kinds:
            start, now = now, now + int(lengths[len(phases)])
            phases.append(Phase(kind, start, now, *_vigour(world, kind, rng)))
    return tuple(phases)


def _lengths(world: ToyWorld, kind: str) -> tuple[int, int]:
    """Shortest and longest duration of a phase, frames; a false start is warm-up and cool-down."""
    low, high = world.instance_frames if kind == "action" else world.context_frames
    return (2 * low, 2 * high) if kind == "false start" else (low, high)


def _vigour(world: ToyWorld, kind: str, rng: np.random.Generator) -> tuple[float, float]:
    """Swing factor and elongation of a phase."""
    if kind == "action":
        return float(rng.uniform(*world.action_swing)), world.action_height
    return float(rng.uniform(*world.context_swing)), world.context_height


def appearances(phases: tuple[Phase, ...]) -> list[list[Phase]]:
    """Phases grouped into the stretches in which the actor is there without a break."""
    groups: list[list[Phase]] = []
    for phase in phases:
        if groups and groups[-1][-1].end == phase.start:
            groups[-1].append(phase)
        else:
            groups.append([phase])
    return groups
