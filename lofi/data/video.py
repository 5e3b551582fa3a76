"""Frames out of video files; the only module that knows the decoders (writing: `copies`).

decord decodes ordinary files: it scales while it decodes and jumps to the next key frame when few
frames are asked for. It cannot be trusted everywhere (decord2 3.4.0): some widths come back
misread, and random access is off by a few frames in files with open groups of pictures (much
H.265) or frames hidden by an edit list. `probe` reads the packet table once, notices what random
access relies on, and other files go through PyAV, frame by frame in order.

Sizes are (height, width) in pixels, frames RGB uint8, frame indices count decoded frames from 0.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

logger = logging.getLogger(__name__)

# Widths at which decord2 mistakes padded rows for four and more channels (every width up to 420
# tried on one file); it raises, and some callers would get a wrong shape.
MISREAD_WIDTHS = frozenset({2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 96, 144})
# Codecs whose packets may carry no picture (VP8 alternate references, packed MPEG-4 in AVI).
HIDING_CODECS = frozenset({"vp8", "libvpx", "mpeg4"})


class VideoError(ValueError):
    """A video that cannot be used; the message names the file, what was found and what to do."""


@dataclass(frozen=True)
class VideoInfo:
    """What decoding a file gives."""

    num_frames: int  # that really decode; the container may declare another number
    fps: float  # average frames a second
    width: int  # pixels, after the rotation that the file asks for
    height: int

    @property
    def duration_s(self) -> float:
        """Decoded length in seconds, num_frames / fps; all times of a video are measured in it."""
        return self.num_frames / self.fps


class _Scan(NamedTuple):
    info: VideoInfo
    declared: int  # frames that the container promises, 0 = it does not say
    packets: int
    random_access: bool  # decord's jumps can be trusted
    quarter_turns: int  # counter-clockwise, as numpy.rot90 counts


def declared_frames(path: str | Path) -> int:
    """Frames that the container promises; 0 = it does not say. `probe` counts those that decode."""
    return _scan(*file_identity(path)).declared


def probe(path: str | Path) -> VideoInfo:
    """Frame count, frame rate and size of a video, from one pass over its packets.

    Decoded whole only where packets and frames may differ; a file cut short logs a warning. Kept
    until size or time change. VideoError: missing, empty, not a video, or no frame decodes.
    """
    return _scan(*file_identity(path)).info


def first_frame_s(path: str | Path) -> float:
    """When the first frame shows on the container's clock, which browsers play by; mostly 0."""
    import av

    with av.open(file_identity(path)[0]) as container:
        stream = container.streams.best("video")
        return max(0.0, float((stream.start_time or 0) * stream.time_base))


def verify(path: str | Path) -> str | None:
    """Decode a whole video: what is wrong with it, or None. VideoError: see `probe`."""
    scan = _scan(*file_identity(path))
    errors: list[Exception] = []
    corrupt = [frame.is_corrupt for frame in frames_in_order(path, errors)]
    count, damaged = len(corrupt), len(errors) + sum(corrupt)
    expected = max(scan.info.num_frames, scan.declared if scan.packets < scan.declared else 0)
    if count < expected or (errors and scan.info.num_frames < scan.declared):
        return f"{count} of {max(expected, scan.declared)} frames decode, the file may be cut short"
    return f"{damaged} of {count} frames are damaged" if damaged else None


def decode_frames(
    path: str | Path, indices: Sequence[int] | np.ndarray, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Chosen frames, (N, height, width, 3) uint8, each decoded once, in one pass and one thread.

    Args:
        indices: N of them in [0, num_frames), in any order, repeats allowed.
        size: (height, width) to scale to (bicubic, in the decoder); None = the video's own.
    Raises:
        VideoError: see `probe`; or frames that should be there do not decode.
        ValueError: an index outside the video, or a size below 1.
    """
    scan = _scan(*(identity := file_identity(path)))
    wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
    height, width = size or (scan.info.height, scan.info.width)
    if height < 1 or width < 1:
        raise ValueError(f"{path}: size must be at least 1x1, got {height}x{width}")
    if wanted.size == 0:
        return np.zeros((0, height, width, 3), np.uint8)
    unique, inverse = np.unique(wanted, return_inverse=True)
    last = scan.info.num_frames - 1
    if unique[0] < 0 or unique[-1] > last:
        found = f"frame {unique[0] if unique[0] < 0 else unique[-1]} was asked for"
        raise ValueError(f"{path}: {found}, but the video has frames 0 to {last}; probe() it first")
    frames = None
    if scan.random_access and width not in MISREAD_WIDTHS:
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        scaled = dict(height=height, width=width) if size else {}
        try:
            reader = decord.VideoReader(identity[0], num_threads=1, **scaled)
            frames = reader.get_batch(unique).asnumpy()
        except (RuntimeError, IndexError) as error:
            logger.debug("%s: decord failed (%s), falling back to PyAV", identity[0], error)
    if frames is None or frames.shape != (len(unique), height, width, 3):
        pictures = scaled_frames(path, height, width)  # up to the last frame that is asked for
        asked = zip(np.isin(np.arange(unique[-1] + 1), unique), pictures)
        rows = [picture() for chosen, picture in asked if chosen]
        if len(rows) < len(unique):
            found = f"{len(rows)} of {len(unique)} frames decoded"
            cure = f"(expected up to frame {unique[-1]}); download it again or leave it out"
            raise VideoError(f"{identity[0]}: {found} {cure}")
        frames = np.stack(rows)
    return frames if np.array_equal(unique, wanted) else frames[inverse]


def file_identity(path: str | Path) -> tuple[str, int, int]:
    """Absolute path, modification time (ns) and size: what tells one content from another."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror or error}; check the path") from None
    if not os.path.isfile(path):
        raise VideoError(f"{path}: not a file; give the path of one video")
    if status.st_size == 0:
        raise VideoError(f"{path}: the file is empty; download or copy it again")
    return os.path.abspath(path), status.st_mtime_ns, status.st_size


@lru_cache(maxsize=1 << 16)
def _scan(path: str, mtime_ns: int, num_bytes: int) -> _Scan:
    """Read the packet table; the later arguments only tell the cache about changed files."""
    import av

    try:
        with av.open(path) as container:
            stream = container.streams.best("video")  # not the cover picture of a sound file
            if stream is None:
                raise VideoError(f"{path}: no video stream, only sound or data; use another file")
            declared, codec = stream.frames, stream.codec_context.name
            rate = stream.average_rate or stream.guessed_rate
            packets, plain, first = _read_packets(container, stream)
        count = packets
        if first is None or not plain or codec in HIDING_CODECS:
            count = 0
            for frame in frames_in_order(path):
                first, count = first or frame, count + 1
    except av.error.FFmpegError as error:
        found = f"no decodable video in {num_bytes:,} bytes ({error.strerror or error})"
        cure = "it is not a video or is cut short: download it again or leave it out"
        raise VideoError(f"{path}: {found}; {cure}") from None
    if first is None:
        raise VideoError(f"{path}: 0 frames decoded; download it again or leave it out")
    if not rate:
        raise VideoError(f"{path}: the file gives no frame rate; re-encode it (constant rate)")
    if declared and count < declared:
        logger.warning("%s: %d of %d declared frames decode", path, count, declared)
    turns = round(first.rotation / 90) % 4
    sides = (first.height, first.width) if turns % 2 else (first.width, first.height)
    info = VideoInfo(count, float(rate), *sides)
    return _Scan(info, declared, packets, plain and turns == 0 and count == packets, turns)


def _read_packets(container, stream):
    """Number of packets; whether frames are just these, in reach of jumps; the first frame."""
    import av

    stream.codec_context.thread_count = 1
    count, plain, first = 0, True, None
    stamps, latest, key_pts = set(), -math.inf, None
    try:
        for packet in container.demux(stream):
            if first is None:
                first = next(iter(packet.decode()), None)
            if not packet.size:
                continue
            count += 1
            pts = packet.pts
            if packet.is_corrupt or packet.is_discard or pts is None or pts in stamps:
                plain = False
            elif packet.is_keyframe:
                plain &= not stamps or pts > latest
                key_pts = pts
            else:  # a first frame that is no key frame, or a picture shown before its key frame
                plain &= key_pts is not None and pts > key_pts
            if pts is not None:
                stamps.add(pts)
                latest = max(latest, pts)
    except av.error.FFmpegError:
        plain = False
    return count, plain, first


def frames_in_order(path: str | Path, errors: list[Exception] | None = None) -> Iterator:
    """Every frame that decodes, in display order.

    Damaged packets are passed over (in a cut file the last one); `errors` collects the reasons.
    """
    import av

    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        packets = container.demux(stream)
        while True:
            try:
                frames = next(packets).decode()
            except (StopIteration, av.error.EOFError):
                return
            except av.error.InvalidDataError as error:
                if errors is not None:
                    errors.append(error)
                continue
            yield from frames


def scaled_frames(path: str | Path, height: int, width: int) -> Iterator[Callable[[], np.ndarray]]:
    """A function a frame that scales it (bicubic, as decord): upright (height, width, 3) uint8."""
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()  # one for all frames: it keeps its scaling tables
    turns = _scan(*file_identity(path)).quarter_turns
    if turns % 2:
        height, width = width, height
    options = dict(width=width, height=height, format="rgb24", interpolation="BICUBIC")
    for frame in frames_in_order(path):
        yield lambda frame=frame: np.rot90(
            reformatter.reformat(frame, **options).to_ndarray(), turns
        )
