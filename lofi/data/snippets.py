"""Which frames make a snippet, where snippets lie in time, and the clip tensors made of them.

Sources: Xu et al., NeurIPS 2021, section 3 (L snippets of F frames, 64 frames at stride 8); the
frame grid, which the paper leaves open, follows the centres of ETAD and OpenTAD.
L snippets a video, F frames a snippet, S pixels a side, N decoded frames. Frame i covers
[i, i + 1) / fps seconds, so its middle is at (i + 0.5) / fps. All rounding is half up,
floor(x + 0.5), done in whole numbers where frames are chosen.
"""

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from lofi.data.annotations import TrimmedClip
from lofi.data.video import VideoError, decode_frames, file_identity, probe
from lofi.fidelity import Fidelity

RULES = ("centred", "tile", "bsp")
Time = TypeVar("Time", float, np.ndarray, torch.Tensor)


def snippet_to_seconds(position: Time, duration_s: float, snippets: int) -> Time:
    """Seconds of a position on the snippet axis, position · duration / L.

    Snippet i covers positions [i, i + 1): its left edge is i, its middle i + 0.5. The boundary
    scores of a head are read at edges. Works on numbers, arrays and tensors.
    """
    return position * (duration_s / snippets)


def seconds_to_snippet(seconds: Time, duration_s: float, snippets: int) -> Time:
    """Position on the snippet axis, not rounded; the inverse of `snippet_to_seconds`."""
    return seconds * (snippets / duration_s)


def snippet_centres(num_frames: int, snippets: int) -> np.ndarray:
    """Middles of the snippets in frames, (i + 0.5) · N / L - 0.5: float64 (L,)."""
    return (np.arange(snippets) + 0.5) * num_frames / snippets - 0.5


def frame_indices(
    num_frames: int, fidelity: Fidelity, frame_stride: int = 8, rule: str = "centred"
) -> np.ndarray:
    """Frames of every snippet: int64 (L, F), in [0, N - 1].

    Args:
        num_frames: N, decoded frames of the video.
        fidelity: L and F; the pixels do not matter here.
        frame_stride: frames between two frames of a snippet ("centred" only).
        rule: "centred": F frames at distance `frame_stride` around the snippet's middle, clamped
            to the video (frames repeat at its ends). "tile": F frames evenly inside the
            snippet's own interval. "bsp": F consecutive frames around the middle.
    Raises:
        ValueError: no frames, stride below 1, unknown rule.
    """
    if num_frames < 1 or frame_stride < 1:
        raise ValueError(
            f"frame_indices needs at least 1 frame and stride 1, got {num_frames}, {frame_stride}"
        )
    length, frames = fidelity.snippets, fidelity.frames
    if rule == "tile":  # the centred grid of L·F snippets of one frame each
        point = np.arange(length * frames, dtype=np.int64).reshape(length, frames)
        return (2 * point + 1) * num_frames // (2 * length * frames)
    if rule not in RULES:
        raise ValueError(f"unknown frame rule {rule!r}; known: {', '.join(RULES)}")
    stride = 1 if rule == "bsp" else frame_stride
    # floor(centre + offset + 0.5) over the common denominator 2 L, so that no float tie decides
    centre = (2 * np.arange(length, dtype=np.int64)[:, None] + 1) * num_frames
    offset = (2 * np.arange(frames, dtype=np.int64) - (frames - 1)) * stride * length
    return ((centre + offset) // (2 * length)).clip(0, num_frames - 1)


class Crop(NamedTuple):
    """How a frame becomes a square: scale to height x width, cut pixels² from (top, left)."""

    height: int
    width: int
    top: int
    left: int
    pixels: int
    flip: bool


@dataclass(frozen=True)
class Augmentation:
    """One random draw that all snippets of a video share; relative, so it fits any fidelity.

    Args:
        top, left: crop position, 0 = at the top or left border, 1 = at the bottom or right.
        flip: mirror left and right.
        time: position of the window in a trimmed clip, 0 = earliest, 1 = latest.
    """

    top: float = 0.5
    left: float = 0.5
    flip: bool = False
    time: float = 0.5

    @classmethod
    def draw(cls, generator: torch.Generator | None = None) -> "Augmentation":
        """Uniform position and time, mirrored half of the time; a CPU generator."""
        top, left, flip, time = torch.rand(4, generator=generator).tolist()
        return cls(top, left, flip < 0.5, time)


CENTRE = Augmentation()  # the test view: centre crop, not mirrored, middle of a trimmed clip


def crop_of(
    height: int,
    width: int,
    pixels: int,
    crop_ratio: float = 0.875,
    augmentation: Augmentation | None = None,
) -> Crop:
    """Scale and crop that show the same field of view at every S.

    The crop's side is `crop_ratio` of the short side of the video (224 of 256 in the paper's
    pipeline), so the video is scaled to a short side of S / crop_ratio.

    Args:
        height, width: of the video.
        pixels: S.
        crop_ratio: in (0, 1]; 1 uses the whole short side.
        augmentation: crop position and mirroring; None is the centre, as it is.
    """
    if not 0 < crop_ratio <= 1:
        raise ValueError(f"crop_ratio must be in (0, 1], got {crop_ratio}")
    view = augmentation or CENTRE
    short = max(pixels, math.floor(pixels / crop_ratio + 0.5))
    scale = short / min(height, width)
    new_height, new_width = (max(short, math.floor(s * scale + 0.5)) for s in (height, width))
    top = math.floor(view.top * (new_height - pixels) + 0.5)
    left = math.floor(view.left * (new_width - pixels) + 0.5)
    return Crop(new_height, new_width, top, left, pixels, view.flip)


class FrameCache:
    """Decoded frames in memory, least recently used out first; safe to share between threads.

    Small videos are decoded whole, so that any fidelity of the same size and any window of a
    trimmed clip is a copy; of longer ones only the frames asked for are kept, by frame set.

    Args:
        max_bytes: of all frames together.
        max_video_bytes: a video whose frames take at most this at the size asked for is "small".
    """

    def __init__(self, max_bytes: int, max_video_bytes: int = 64 * 2**20) -> None:
        self.max_bytes = max_bytes
        self.max_video_bytes = min(max_video_bytes, max_bytes)
        self.num_bytes = 0
        self._entries: OrderedDict[tuple, torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: tuple) -> torch.Tensor | None:
        """The frames kept under a key, now the most recently used; None when not kept."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def put(self, key: tuple, frames: torch.Tensor) -> None:
        """Keep frames, dropping the oldest; frames larger than the whole cache are not kept."""
        with self._lock:
            if key in self._entries or frames.nbytes > self.max_bytes:
                return
            self._entries[key] = frames
            self.num_bytes += frames.nbytes
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= self._entries.popitem(last=False)[1].nbytes


def read_clip(
    path: str | Path,
    fidelity: Fidelity,
    *,
    frame_stride: int = 8,
    rule: str = "centred",
    crop_ratio: float = 0.875,
    augmentation: Augmentation | None = None,
    cache: FrameCache | None = None,
) -> torch.Tensor:
    """The snippets of a whole video at one fidelity: uint8 (L, F, 3, S, S), RGB.

    Frames are scaled while they are decoded, frames that several snippets share only once.

    Args:
        path: video file.
        fidelity: L, F, S.
        frame_stride, rule: see `frame_indices`.
        crop_ratio: see `crop_of`.
        augmentation: None = centre crop.
        cache: keeps decoded frames for the next call.
    Raises:
        VideoError: the video does not decode.
    """
    info = probe(path)
    indices = frame_indices(info.num_frames, fidelity, frame_stride, rule)
    crop = crop_of(info.height, info.width, fidelity.pixels, crop_ratio, augmentation)
    frames = _read_frames(path, indices.reshape(-1), crop, info.num_frames, cache)
    return frames.view(*indices.shape, 3, crop.pixels, crop.pixels)


def read_trimmed_clip(
    clip: TrimmedClip,
    frames: int,
    pixels: int,
    frame_stride: int = 8,
    *,
    crop_ratio: float = 0.875,
    augmentation: Augmentation | None = None,
    cache: FrameCache | None = None,
) -> torch.Tensor:
    """One window of a trimmed clip: uint8 (F, 3, S, S), RGB.

    The window is F · `frame_stride` frames long and lies inside [start_s, end_s), at
    `augmentation.time` or in the middle; when the clip is shorter, its first and last frames
    repeat.

    Raises:
        VideoError: the video does not decode, or the clip lies outside of it.
    """
    info = probe(clip.path)
    indices = window_indices(clip, info.num_frames, info.fps, frames, frame_stride, augmentation)
    crop = crop_of(info.height, info.width, pixels, crop_ratio, augmentation)
    return _read_frames(clip.path, indices, crop, info.num_frames, cache)


def window_indices(
    clip: TrimmedClip,
    num_frames: int,
    fps: float,
    frames: int,
    frame_stride: int,
    augmentation: Augmentation | None = None,
) -> np.ndarray:
    """Frames of one window of a trimmed clip: int64 (F,); see `read_trimmed_clip`."""
    start_s = 0.0 if clip.start_s is None else clip.start_s
    if start_s * fps >= num_frames:
        raise VideoError(
            f"{clip.path}: the clip starts at {start_s:g} s, but {num_frames / fps:g} s decode; "
            "correct its times or leave it out"
        )
    # frames whose middle lies in [start, end), at least one
    first = min(math.ceil(start_s * fps - 0.5), num_frames - 1)
    end = num_frames if clip.end_s is None else math.ceil(clip.end_s * fps - 0.5)
    end = max(first + 1, min(end, num_frames))
    spare = end - first - frames * frame_stride
    time = (augmentation or CENTRE).time if spare > 0 else 0.5
    window = first + math.floor(time * spare + 0.5)
    steps = window + frame_stride // 2 + frame_stride * np.arange(frames, dtype=np.int64)
    return steps.clip(first, end - 1)


def _read_frames(
    path: str | Path, indices: np.ndarray, crop: Crop, num_frames: int, cache: FrameCache | None
) -> torch.Tensor:
    """Decode (or look up), crop and mirror: uint8 (n, 3, S, S), never a view of the cache."""
    frames, rows = _frames_holding(path, indices, crop.height, crop.width, num_frames, cache)
    bottom, right = crop.top + crop.pixels, crop.left + crop.pixels
    view = frames[:, :, crop.top : bottom, crop.left : right]
    if len(rows) > 0 and (np.diff(rows) == 1).all():
        view = view[int(rows[0]) : int(rows[-1]) + 1]
        return view.flip(-1) if crop.flip else view.clone(memory_format=torch.contiguous_format)
    picked = view.index_select(0, torch.from_numpy(rows))
    return picked.flip(-1) if crop.flip else picked


def _frames_holding(
    path: str | Path,
    indices: np.ndarray,
    height: int,
    width: int,
    num_frames: int,
    cache: FrameCache | None,
) -> tuple[torch.Tensor, np.ndarray]:
    """Frames (K, 3, height, width) and the row of each index in them."""
    if cache is None:
        unique, rows = np.unique(indices, return_inverse=True)
        return _decoded(path, unique, height, width), rows
    key = (*file_identity(path), height, width)
    if num_frames * height * width * 3 <= cache.max_video_bytes:
        wanted, rows = None, indices
    else:
        wanted, rows = np.unique(indices, return_inverse=True)
        key = (*key, wanted.tobytes())
    frames = cache.get(key)
    if frames is None:
        frames = _decoded(path, np.arange(num_frames) if wanted is None else wanted, height, width)
        cache.put(key, frames)
    return frames, rows


def _decoded(path: str | Path, indices: np.ndarray, height: int, width: int) -> torch.Tensor:
    frames = decode_frames(path, indices, size=(height, width))
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
