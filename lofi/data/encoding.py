"""Frames into video files: rendered ones, and smaller copies of videos for fast training.

Everything is written as H.264 (yuv420p) mp4 through PyAV, one frame at a time, atomically.
"""

import math
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np

from lofi.data.snippets import resampled_frames
from lofi.data.video import (
    MISREAD_WIDTHS,
    VideoError,
    VideoInfo,
    probe,
    scaled_frames,
)
from lofi.files import atomic_path

KEYFRAME_INTERVAL = 48  # frames; of copies, so that a few frames are found without decoding all


def write_video(
    path: str | Path,
    frames: np.ndarray,
    fps: float,
    crf: int = 18,
    preset: str = "veryfast",
    keyframe_interval: int | None = None,
) -> None:
    """Write frames as H.264 (yuv420p) mp4, atomically; the same frames give the same bytes.

    Args:
        path: ends in .mp4 (or another container that holds H.264).
        frames: (N, height, width, 3) uint8 RGB with N >= 1, both sides even.
        fps: frames a second.
        crf: x264 quality, 0 (lossless) to 51.
        preset: x264 speed.
        keyframe_interval: most frames between key frames; None leaves it to x264 (250).
    Raises:
        ValueError: wrong shape or type, odd sides, no frames, fps not positive.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(
            f"{path}: frames must be (N, height, width, 3) uint8 with N >= 1, "
            f"got shape {tuple(frames.shape)} {frames.dtype}"
        )
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(
            f"{path}: H.264 with yuv420p needs even sides, got {height}x{width}; crop or pad"
        )
    if not fps > 0:
        raise ValueError(f"{path}: fps must be positive, got {fps}")
    with atomic_path(path) as temporary:
        _encode(temporary, frames, height, width, fps, crf, preset, keyframe_interval)


def small_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) with that short side, the aspect kept; even, never larger than before.

    Widths that decord misreads are avoided; a side of one pixel cannot be made even and stays 2.
    """
    scale = min(1.0, short_side / min(height, width))
    small = [2 * math.floor(side * scale / 2 + 0.5) for side in (height, width)]
    small = [max(2, min(new, side // 2 * 2)) for new, side in zip(small, (height, width))]
    while small[1] in MISREAD_WIDTHS and small[1] > 4:
        small[1] -= 2
    return small[0], small[1]


def reencode(
    path: str | Path,
    out: str | Path,
    short_side: int = 256,
    fps: float = 0.0,
    crf: int = 20,
    preset: str = "veryfast",
) -> VideoInfo:
    """Copy a video at low resolution in one pass, frame by frame; sound is dropped.

    Args:
        path: video file; frames after damage are passed over, as in `probe`.
        out: .mp4 file. It has the frames, in number and order, and the frame rate that `path`
            decodes to, so that annotations and snippets fit as they did.
        short_side: pixels of the shorter side; smaller videos keep their size.
        fps: frame rate of the copy, see `resampled_frames`; 0 keeps every frame.
        crf, preset: of x264.
    Returns:
        what decoding the copy gives.
    Raises:
        VideoError: see `probe`; or the copy does not have the frames that it should have.
    """
    info = probe(path)
    height, width = small_size(info.height, info.width, short_side)
    kept = resampled_frames(info.num_frames, info.fps, fps)
    copies = np.bincount(kept, minlength=info.num_frames)

    def frames():
        pictures = scaled_frames(path, height, width)
        for picture, times in zip(pictures, copies):  # `times` is 0 for frames that are left out
            for _ in range(times):
                yield picture()

    with atomic_path(out) as temporary:
        _encode(temporary, frames(), height, width, fps or info.fps, crf, preset, KEYFRAME_INTERVAL)
        found = probe(temporary)
        if found.num_frames != len(kept):
            raise VideoError(
                f"{path}: {found.num_frames} frames were written (expected {len(kept)}); "
                "run `lofi check` on it, download it again or leave it out"
            )
    return found


def _encode(
    path: Path,
    frames: Iterable[np.ndarray],
    height: int,
    width: int,
    fps: float,
    crf: int,
    preset: str,
    keyframe_interval: int | None,
) -> None:
    import av

    # Macroblock trees make x264 read memory that it never wrote: the bytes differ from run to run.
    options = {"crf": str(crf), "preset": preset, "threads": "1", "mbtree": "0"}
    if keyframe_interval is not None:
        options["g"] = str(keyframe_interval)
    with av.open(str(path), "w") as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
