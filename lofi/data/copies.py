"""Frames into video files: rendered ones, and low-resolution copies of videos, made once.

A short side of 256 pixels decodes several times faster than 720 and loses nothing at the sizes used
here. All is written as H.264 (yuv420p) mp4 through PyAV, one frame at a time, atomically.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lofi.data.annotations import EXTENSIONS
from lofi.data.isolated import run_isolated
from lofi.data.snippets import resampled_frames
from lofi.data.video import VideoError, VideoInfo, probe, scaled_frames, shortage
from lofi.files import append_csv, atomic_path, existing, read_csv, write_csv

MANIFEST = "cache.csv"
ENDS = 2**16  # bytes at either end of a file that tell it from another of the same size
KEYFRAME_INTERVAL = 48  # frames; of copies, so that a few frames are found without decoding all


def write_video(
    path: str | Path, frames: np.ndarray, fps: float, crf: int = 18, preset: str = "veryfast",
    keyframe_interval: int = 250,
) -> None:  # fmt: skip
    """Write frames as H.264 (yuv420p) mp4, atomically; the same frames give the same bytes.

    Args:
        frames: (N, height, width, 3) uint8 RGB with N >= 1, both sides even.
        crf, preset: x264 quality, 0 (lossless) to 51, and speed.
        keyframe_interval: most frames between key frames.
    Raises:
        ValueError: wrong shape or type, odd sides, no frames, fps not positive.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        wanted = "frames must be (N, height, width, 3) uint8 with N >= 1"
        raise ValueError(f"{path}: {wanted}, got shape {tuple(frames.shape)} {frames.dtype}")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        sides = f"even sides, got {height}x{width}; crop or pad"
        raise ValueError(f"{path}: H.264 with yuv420p needs {sides}")
    if not fps > 0:
        raise ValueError(f"{path}: fps must be positive, got {fps}")
    with atomic_path(path) as temporary:
        options = {"crf": crf, "preset": preset, "g": keyframe_interval}
        _encode(temporary, frames, (height, width), fps, options)


def _encode(path: Path, frames: Iterable, size: tuple[int, int], fps: float, x264: dict) -> None:
    import av

    # Macroblock trees make x264 read memory that it never wrote: the bytes differ from run to run.
    options = {"threads": "1", "mbtree": "0"} | {name: str(value) for name, value in x264.items()}
    with av.open(str(path), "w") as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def small_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) with that short side, the aspect kept; even, never larger than before.

    A side of one pixel cannot be made even and becomes 2.
    """
    scale = min(1.0, short_side / min(height, width))
    small = [2 * math.floor(side * scale / 2 + 0.5) for side in (height, width)]
    small = [max(2, min(new, side // 2 * 2)) for new, side in zip(small, (height, width))]
    return small[0], small[1]


def reencode(
    path: str | Path, out: str | Path, short_side: int = 256, fps: float = 0.0, crf: int = 20
) -> VideoInfo:
    """Copy a video at low resolution in one pass, without sound; what decoding the copy gives.

    It has the frames and the rate of `path`, so also its times, damage passed over as in `probe`.

    Args:
        short_side: pixels of the shorter side; smaller videos keep their size.
        fps: frame rate of the copy, see `resampled_frames`; 0 keeps every frame.
    VideoError: see `probe`; or the copy does not have the frames that it should have.
    """
    info = probe(path)
    size = small_size(info.height, info.width, short_side)
    kept = resampled_frames(info.num_frames, info.fps, fps)
    times = np.bincount(kept, minlength=info.num_frames)  # 0 for frames that are left out
    frames = (picture() for picture, n in zip(scaled_frames(path, *size), times) for _ in range(n))
    with atomic_path(out) as temporary:
        options = {"crf": crf, "preset": "veryfast", "g": KEYFRAME_INTERVAL}
        _encode(temporary, frames, size, fps or info.fps, options)
        found = probe(temporary)
        if found.num_frames != len(kept):
            wrong = f"{found.num_frames} frames were written (expected {len(kept)})"
            cure = "run `lofi check` on it, download it again or leave it out"
            raise VideoError(f"{path}: {wrong}; {cure}")
    return found


class Copy(NamedTuple):
    """One line of the manifest; `kind` is "ok" or "failed", `file` relative to the folder."""

    file: str
    kind: str
    detail: str = ""
    frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    bytes: int = 0
    source: str = ""  # `content_id` of the video
    settings: str = ""


class CacheReport(NamedTuple):
    """What `cache_videos` did."""

    copies: tuple[Copy, ...]  # all that were asked for
    earlier: int  # of them, there already

    @property
    def failed(self) -> tuple[Copy, ...]:
        """Videos without a copy, with the reason in `detail`."""
        return tuple(copy for copy in self.copies if copy.kind != "ok")

    def summary(self, examples: int = 5) -> str:
        """Counts, the size of the folder and the first failures, for the terminal."""
        size = sum(copy.bytes for copy in self.copies) / 2**20
        made = len(self.copies) - len(self.failed) - self.earlier
        counts = f"{made:,} copies made, {self.earlier:,} were there, {len(self.failed):,} failed"
        failures = [f"  {copy.file}: {copy.detail}" for copy in self.failed[:examples]]
        return "\n".join([f"{counts}; {size:,.1f} MiB in all", *failures])


def media_files(folder: str | Path) -> list[Path]:
    """Videos of a folder and its direct sub-folders, sorted; refuses a folder without any."""
    folder = existing(folder, "videos", folder=True)
    found = [p for p in (*folder.glob("*"), *folder.glob("*/*")) if p.suffix.lower() in EXTENSIONS]
    if not found:
        raise ValueError(f"{folder}: no videos in it (expected {', '.join(EXTENSIONS)})")
    return sorted(p for p in found if p.is_file() and not p.name.startswith("."))


def cache_videos(
    paths: Iterable[Path], video_dir: str | Path, out: str | Path, *, short_side: int = 256,
    fps: float = 0.0, crf: int = 20, workers: int = 1, limit_s: float = 1800.0,
    progress: Callable[[int, int], None] | None = None,
) -> CacheReport:  # fmt: skip
    """Write low-resolution copies, under the videos' own names with .mp4; see `reencode`.

    Child processes make them, so that one bad file stops nothing. A copy that is there, made from
    the same content with the same settings, is not made again: an interrupted run goes on.

    Args:
        paths: videos below `video_dir`; (class) folders are kept.
        out: folder of the copies and of `cache.csv`, which lists every video, good or failed.
        limit_s, progress: seconds a video; called with (videos done, videos in all).
    Raises:
        ValueError: a bad setting, `out` inside `video_dir`, or `cache.csv` is something else.
    """
    video_dir, out = Path(os.path.abspath(video_dir)), Path(out)
    if short_side < 2 or fps < 0 or not 0 <= crf <= 51:
        given = f"short_side {short_side}, fps {fps:g}, crf {crf}"
        raise ValueError(f"{given}: expected >= 2, >= 0, 0-51")
    if video_dir.resolve() in (out.resolve(), *out.resolve().parents):
        found = "lies in the folder of the videos, which would then hold each video twice"
        raise ValueError(f"{out}: {found}; choose a folder beside it")
    settings = f"short_side={short_side} fps={fps:g} crf={crf}"
    manifest, done, todo = out / MANIFEST, {}, {}
    rows = read_csv(manifest, Copy._fields, "not a list of copies; choose another folder for them")
    kinds = Copy.__annotations__.values()  # the last line of a file counts
    known = {row[0]: Copy(*(kind(cell) for kind, cell in zip(kinds, row))) for row in rows}
    for path in paths:
        file = Path(os.path.abspath(path)).relative_to(video_dir).with_suffix(".mp4").as_posix()
        copy, place = known.get(file), out / file
        same = copy and (copy.kind, copy.settings) == ("ok", settings) and place.is_file()
        if file in done or file in todo:
            other = f"{path}: another video has the same name but for its ending; rename one"
            done[f"{file} ({path.suffix})"] = Copy(f"{file} ({path.suffix})", "failed", other)
        elif same and (place.stat().st_size, content_id(path)) == (copy.bytes, copy.source):
            done[file] = copy
        else:
            todo[file] = (str(path), str(place), short_side, fps, crf)
    earlier = sum(copy.kind == "ok" for copy in done.values())

    def tidy() -> None:
        for remains in (*out.glob(".tmp-*"), *out.glob("*/.tmp-*")):  # of who was killed
            remains.unlink()
        write_csv(manifest, [Copy._fields, *(known | done).values()])

    tidy()
    names, total = list(todo), len(done) + len(todo)
    for i, found in run_isolated(_copy, list(todo.values()), workers, limit_s):
        file = names[i]
        if isinstance(found, Exception):
            (out / file).unlink(missing_ok=True)  # an old copy must go as well
            kind = "" if isinstance(found, (ValueError, OSError)) else f"{type(found).__name__}: "
            found = Copy(file, "failed", kind + " ".join(str(found).split()))
        done[file] = found._replace(file=file, settings=settings)
        append_csv(manifest, done[file])
        if progress is not None:
            progress(len(done), total)
    tidy()
    return CacheReport(tuple(done.values()), earlier)


def content_id(path: str | Path) -> str:
    """Tells one video's content from another's: hash of its size and both ends; fast."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(ENDS)
        file.seek(max(0, size - ENDS))
        return hashlib.sha256(head + file.read(ENDS) + str(size).encode()).hexdigest()[:16]


def _copy(path: str, out: str, short_side: int, fps: float, crf: int) -> Copy:
    """In the child: one copy."""
    info = reencode(path, out, short_side, fps, crf)
    numbers = info.num_frames, info.fps, info.width, info.height, os.path.getsize(out)
    return Copy("", "ok", shortage(path), *numbers, content_id(path))
