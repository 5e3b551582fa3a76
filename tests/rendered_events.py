"""Short videos with two kinds of event, as a person might bring them, and their list of events.

Not the toy world: another renderer, real-looking backgrounds (textures, a camera that pans and
shakes, light that drifts, noise, passers-by), pictures of 160 × 120, and a spreadsheet's CSV: with
semicolons, decimal commas, file names as ids and no subsets.

    python tests/rendered_events.py FOLDER [--look workshop | yard] [--videos 24] [--seed 0]
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from lofi.data import write_video

FPS, WIDTH, HEIGHT = 25.0, 160, 120
# In "workshop" the actors are always in view and only their motion makes an event; in "yard" they
# come and go.
KINDS = {"workshop": ("swing", "lift"), "yard": ("roll", "blink")}


class Event(NamedTuple):
    start: int  # frames, end exclusive
    end: int
    label: str


def texture(rng: np.random.Generator, height: int, width: int, tint: np.ndarray) -> np.ndarray:
    """(height, width, 3) float picture of smooth noise in several octaves around a colour."""
    total = np.zeros((height, width))
    for cell in (64, 32, 16, 8, 4):
        grid = rng.normal(size=(height // cell + 2, width // cell + 2)) * cell**0.7
        image = Image.fromarray(grid.astype(np.float32), mode="F")
        total += np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    return tint + (28 * total / total.std())[..., None] * rng.uniform(0.6, 1.2, 3)


def planned(rng: np.random.Generator, frames: int, kinds: tuple[str, ...]) -> list[Event]:
    """Two to five events of 1.4 to 4 s with pauses between them, both kinds in most videos."""
    events, now = [], int(rng.uniform(0.6, 2.5) * FPS)
    while len(events) < 5:
        length = int(rng.uniform(1.4, 4.0) * FPS)
        if now + length > frames - int(0.4 * FPS):
            break
        events.append(Event(now, now + length, str(rng.choice(kinds))))
        now += length + int(rng.uniform(0.9, 4.0) * FPS)
    return events


def box(cx: float, cy: float, length: float, thick: float, angle: float) -> list[tuple]:
    """Corners of a turned rectangle."""
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    corners = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    return [tuple((cx, cy) + a * length / 2 * along + b * thick / 2 * across) for a, b in corners]


def frames_of(
    look: str, rng: np.random.Generator, count: int, events: list[Event]
) -> Iterator[np.ndarray]:
    """The pictures of one video, (HEIGHT, WIDTH, 3) uint8 each."""
    margin = 24
    base = np.array((112, 98, 84) if look == "workshop" else (96, 128, 92)) + rng.normal(0, 16, 3)
    wall = texture(rng, HEIGHT + 2 * margin, WIDTH + 2 * margin, base)
    if look == "yard":  # a brighter sky above
        wall[: HEIGHT // 2] = 0.4 * wall[: HEIGHT // 2] + 0.6 * np.array((150, 170, 200))
    paint = [tuple(rng.integers(30, 226, 3).tolist()) for _ in range(4)]
    place = rng.uniform(-10, 10, (2, 2))
    phase, pace = rng.uniform(0, 2 * np.pi, 4), rng.uniform(0.8, 1.25, 2)
    side = rng.choice([-1, 1])
    walker = rng.uniform(0, count), rng.uniform(0.4, 1.0) * rng.choice([-1, 1])
    for t in range(count):
        seconds = t / FPS
        pan = margin + 14 * np.sin(0.13 * seconds + phase[0]), margin + 9 * np.cos(0.2 * seconds)
        dx, dy = (int(p + rng.normal(0, 0.5)) for p in pan)
        light = 1 + 0.12 * np.sin(0.25 * seconds + phase[1])
        picture = wall[dy : dy + HEIGHT, dx : dx + WIDTH].clip(0, 255).astype(np.uint8)
        image = Image.fromarray(picture)
        draw = ImageDraw.Draw(image)
        x = WIDTH / 2 + walker[1] * (t - walker[0])  # a passer-by, no event
        draw.ellipse([x - 7, 62, x + 7, 112], fill=paint[3])
        now = next((e for e in events if e.start <= t < e.end), None)
        since = (t - now.start) / FPS if now else 0.0
        left = (now.end - t) / FPS if now else 0.0
        ramp = min(1.0, 3 * since, 3 * left)  # starts and ends within a third of a second
        label = now.label if now else ""
        if look == "workshop":
            swing = 0.9 * ramp * np.sin(2 * np.pi * pace[0] * since) * (label == "swing")
            rise = 26 * ramp * abs(np.sin(np.pi * 0.8 * pace[1] * since)) * (label == "lift")
            idle = 0.06 * np.sin(0.7 * seconds + phase[2])
            px, py = 48 + place[0, 0], 28 + place[0, 1]
            angle = np.pi / 2 + swing + idle
            tip = px + 22 * np.cos(angle), py + 22 * np.sin(angle)
            draw.polygon(box(*tip, 46, 9, angle), fill=paint[0])
            draw.ellipse([px - 5, py - 5, px + 5, py + 5], fill=paint[1])
            bx, by = 112 + place[1, 0], 88 + place[1, 1] / 2 - rise
            draw.rectangle([bx - 13, by - 11, bx + 13, by + 11], fill=paint[2])
            draw.line([bx, 0, bx, by - 11], fill=(30, 30, 30), width=2)
        else:
            lx, ly = 124 + place[0, 0], 26 + place[0, 1]
            lit = label == "blink" and int(since * 4 * pace[0]) % 2 == 0
            draw.rectangle([lx - 2, ly, lx + 2, 96], fill=(60, 60, 64))
            glow = (255, 236, 150) if lit else (70, 66, 60)
            draw.ellipse([lx - 9, ly - 9, lx + 9, ly + 9], fill=glow)
            if label == "roll":
                share = (t - now.start) / (now.end - now.start)
                cx, cy = WIDTH / 2 + side * (share - 0.5) * (WIDTH + 10), 96 + place[1, 1] / 2
                draw.ellipse([cx - 12, cy - 12, cx + 12, cy + 12], fill=paint[0])
                turn = side * cx / 12
                draw.polygon(box(cx, cy, 22, 4, turn), fill=paint[1])
        noisy = np.asarray(image) * light + rng.normal(0, 6, (HEIGHT, WIDTH, 1))
        yield noisy.clip(0, 255).astype(np.uint8)


def render(
    folder: str | Path, look: str = "workshop", videos: int = 24, seed: int = 0,
    seconds: tuple[float, float] = (12.0, 25.0),
) -> Path:  # fmt: skip
    """Write the videos and events.csv; returns the path of the list."""
    folder = Path(folder)
    rows = [["video", "start_s", "end_s", "label"]]
    for i in range(videos):
        rng = np.random.default_rng((seed, sorted(KINDS).index(look), i))
        count = int(rng.uniform(*seconds) * FPS)
        events = planned(rng, count, KINDS[look])
        name = f"cam_{i + 1:03d}.mp4"
        pictures = np.stack(list(frames_of(look, rng, count, events)))
        write_video(folder / "videos" / name, pictures, FPS, preset="ultrafast")
        for event in events:
            times = [f"{t / FPS:.2f}".replace(".", ",") for t in event[:2]]
            rows.append([name, *times, event.label])
    with open(folder / "events.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=";").writerows(rows)
    return folder / "events.csv"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--look", choices=KINDS, default="workshop")
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(render(given.folder, given.look, given.videos, given.seed))
