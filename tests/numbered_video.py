"""Videos whose frames carry their own number, so that any decoder's answer can be read off.

A frame is eight vertical bars, white for the ones of the number's binary digits, black for the
zeros, the highest digit at the left; this survives compression and scaling.
"""

from pathlib import Path

import numpy as np

from lofi.data.copies import write_video


def numbered_frames(numbers, height: int = 48, width: int = 56) -> np.ndarray:
    """(N, height, width, 3) uint8; numbers below 256."""
    digits = np.asarray(numbers)[:, None] >> np.arange(7, -1, -1) & 1  # (N, 8)
    columns = (digits[:, np.arange(width) * 8 // width] * 255).astype(np.uint8)
    return np.broadcast_to(columns[:, None, :, None], (len(columns), height, width, 3)).copy()


def read_numbers(frames: np.ndarray) -> list[int]:
    """Numbers of (..., height, width, 3) frames that show all eight bars."""
    frames = np.asarray(frames)
    frames = frames.reshape(-1, *frames.shape[-3:])
    width = frames.shape[2]
    middles = ((np.arange(8) + 0.5) * width / 8).astype(int)
    digits = frames[:, :, middles].mean(axis=(1, 3)) > 128
    return (digits * (1 << np.arange(7, -1, -1))).sum(axis=1).tolist()


def write_numbered(path: Path, count: int = 128, height: int = 48, width: int = 56, **options):
    """Write a numbered video (10 frames a second unless `fps` says otherwise)."""
    write_video(path, numbered_frames(range(count), height, width), **{"fps": 10.0, **options})
    return path
