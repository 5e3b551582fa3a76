"""Frames out of video files; the only module that knows the decoder (writing: `copies`).

Files give their frames time stamps, often at no constant rate, and may start late. Everything else
here counts frames of a constant rate from the container's start, so `probe` reads all stamps (from
the packet table; few files must be decoded for it) and lays that axis over them: its frame i is the
picture that a player shows at (i + 0.5) / fps seconds. In a file of constant rate these are just
the decoded frames in turn. Frames are found by their stamps, never by counting, so one that does
not decode moves no other; the picture before it stays on screen.

Sizes are (height, width) in pixels, frames RGB uint8, frame indices count that axis from 0.
"""

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

logger = logging.getLogger(__name__)

# Containers whose stamps stay what they are after a jump; others are read from the beginning.
SEEKABLE = frozenset({"mov", "mp4", "matroska", "webm", "flv"})
# Codecs whose packets may carry no picture (VP8 alternate references, packed MPEG-4 in AVI).
HIDING_CODECS = frozenset({"vp8", "libvpx", "mpeg4"})
MOST_PIXELS = 2**26  # of a frame: 8192 x 8192; decoders hold several
MOST_ELONGATED = 8  # long side over short side, of which a square is cut
MOST_FRAMES = 2**24  # six days at 30 frames a second; stamps further apart are damage
AGAIN = "download it again or leave it out"


class VideoError(ValueError):
    """A video that cannot be used; the message names the file, what was found and what to do."""


@dataclass(frozen=True)
class VideoInfo:
    """What decoding a file gives."""

    num_frames: int  # from the container's start to the end of the last frame, at `fps`
    fps: float  # frames a second of the constant axis
    width: int  # pixels, after the rotation that the file asks for
    height: int

    @property
    def duration_s(self) -> float:
        """Length in seconds, num_frames / fps; all times of a video are measured in it."""
        return self.num_frames / self.fps


class _Scan(NamedTuple):
    info: VideoInfo
    declared: int  # pictures that the container promises, 0 = it does not say
    packets: int
    stamps: Sequence[int]  # of the pictures, ascending
    in_turn: bool  # the decoder's stamps are useless: picture i has the i-th stamp
    keys: np.ndarray | None  # stamps that decoding can start from; None = only the beginning
    shown: np.ndarray | None  # picture of every frame of the axis; None = each in turn
    quarter_turns: int  # counter-clockwise, as numpy.rot90 counts


def probe(path: str | Path) -> VideoInfo:
    """Frame count, frame rate and size of a video, from one pass over its packets.

    Decoded whole only where packets and frames may differ; a file cut short logs a warning. Kept
    until size or time change. VideoError: missing, empty, not a video, or no frame decodes.
    """
    return _scan(*file_identity(path)).info


def shortage(path: str | Path) -> str:
    """What the container promises and does not hold, or ""; VideoError: see `probe`."""
    scan = _scan(*file_identity(path))
    found = f"{len(scan.stamps)} of {scan.declared} declared frames decode"
    return found if len(scan.stamps) < scan.declared else ""


def start_s(path: str | Path) -> float:
    """Where the container's clock stands at second 0 of this kit; browsers play by it. Mostly 0."""
    import av

    with av.open(file_identity(path)[0]) as container:
        return max(0.0, (container.start_time or 0) / av.time_base)


def verify(path: str | Path) -> str | None:
    """Decode a whole video: what is wrong with it, or None. VideoError: see `probe`."""
    scan = _scan(*file_identity(path))
    errors: list[Exception] = []
    corrupt = [frame.is_corrupt for frame in frames_in_order(path, errors)]
    count, damaged = len(corrupt), len(errors) + sum(corrupt)
    expected = max(len(scan.stamps), scan.declared if scan.packets < scan.declared else 0)
    if count < expected or (errors and len(scan.stamps) < scan.declared):
        return f"{count} of {max(expected, scan.declared)} frames decode, the file may be cut short"
    return f"{damaged} of {count} frames are damaged" if damaged else None


def decode_frames(
    path: str | Path, indices: Sequence[int] | np.ndarray, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Chosen frames, (N, height, width, 3) uint8, each decoded once, in one pass and one thread.

    Args:
        indices: N of them in [0, num_frames), in any order, repeats allowed.
        size: (height, width) to scale to (bicubic); None = the video's own.
    Raises:
        VideoError: see `probe`; or nothing decodes.
        ValueError: an index outside the video, or a size below 1.
    """
    scan = _scan(*(identity := file_identity(path)))
    wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
    height, width = size or (scan.info.height, scan.info.width)
    if height < 1 or width < 1:
        raise ValueError(f"{path}: size must be at least 1x1, got {height}x{width}")
    if wanted.size == 0:
        return np.zeros((0, height, width, 3), np.uint8)
    last = scan.info.num_frames - 1
    if wanted.min() < 0 or wanted.max() > last:
        found = f"frame {wanted.min() if wanted.min() < 0 else wanted.max()} was asked for"
        raise ValueError(f"{path}: {found}, but the video has frames 0 to {last}; probe() it first")
    pictures = wanted if scan.shown is None else scan.shown[wanted]
    unique, inverse = np.unique(pictures, return_inverse=True)
    frames = np.empty((len(unique), height, width, 3), np.uint8)
    if not _fill_by_jumps(identity[0], scan, unique, frames):
        for row, picture in enumerate(_pictures(identity[0], scan, (height, width), unique)):
            frames[row] = picture()
    return frames if np.array_equal(unique, pictures) else frames[inverse]


def file_identity(path: str | Path) -> tuple[str, int, int]:
    """Absolute path, modification time (ns) and size: what tells one content from another."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise VideoError(f"{path}: {getattr(error, 'strerror', error)}; check the path") from None
    if not os.path.isfile(path):
        raise VideoError(f"{path}: not a file; give the path of one video")
    if status.st_size == 0:
        raise VideoError(f"{path}: the file is empty; download or copy it again")
    return os.path.abspath(path), status.st_mtime_ns, status.st_size


# ---------------------------------------------------------------------------- what a file holds


@lru_cache(maxsize=1 << 16)
def _scan(path: str, mtime_ns: int, num_bytes: int) -> _Scan:
    """Read the packet table; the later arguments only tell the cache about changed files."""
    with _opened(path) as (container, stream):
        formats, codec = set(container.format.name.split(",")), stream.codec_context.name
        declared, base, began = stream.frames, stream.time_base, container.start_time
        rates = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
        packets, keys, plain, first = _read_packets(container, stream)
    in_turn = "avi" in formats  # numbers its packets; stamps of reordered ones are guesses
    if first is None or not plain or codec in HIDING_CODECS or in_turn:
        plain &= not in_turn
        pictures = []
        for frame in frames_in_order(path):
            first = first or frame
            pictures.append((frame.pts, frame.duration))
        stamps = [pts for pts, _ in pictures]
        in_turn |= None in stamps or any(a >= b for a, b in pairwise(stamps))
        if in_turn:
            order = [dts for _, dts, _ in packets]
            steady = None not in order and all(a < b for a, b in pairwise(order))
            if len(pictures) != len(packets) or not steady:
                found = f"{len(pictures)} frames from {len(packets)} packets of unclear times"
                raise VideoError(f"{path}: {found}; make a new file: ffmpeg -i OLD NEW.mp4")
            pictures = sorted((dts, duration) for _, dts, duration in packets)
    else:
        pictures = sorted((pts, duration) for pts, _, duration in packets)
    if first is None or not pictures:
        raise VideoError(f"{path}: 0 frames decoded; {AGAIN}")
    turns = round(first.rotation / 90) % 4
    sides = (first.height, first.width) if turns % 2 else (first.width, first.height)
    if max(sides) > MOST_ELONGATED * min(sides):
        found = "frames of {} x {} pixels".format(*sides)
        raise VideoError(f"{path}: {found} (expected sides at most 1:{MOST_ELONGATED}); crop it")
    stamps = np.array([stamp for stamp, _ in pictures], np.int64)
    steps = np.diff(stamps)
    if "avi" in formats and len(steps):  # its numbers count packets without a picture too
        declared = max(0, declared - int(stamps[-1] - stamps[0] + steps.min()) + len(stamps))
    if declared and len(stamps) < declared:
        logger.warning("%s: %d of %d declared frames decode", path, len(stamps), declared)
    late_s = max(0.0, float(stamps[0] * base) - began / 1e6) if began is not None else 0.0
    times = late_s + (stamps.astype(np.float64) - stamps[0]) * float(base)
    last_s = (pictures[-1][1] or 0) * float(base)
    count, fps, shown = _axis(path, times, last_s, rates)
    jumps = plain and len(stamps) == len(packets) and formats & SEEKABLE
    if len(steps) and (steps == steps[0]).all():  # many scans are kept: no table where none is due
        stamps = range(int(stamps[0]), int(stamps[-1]) + 1, int(steps[0]))
    return _Scan(
        VideoInfo(count, fps, *sides), declared, len(packets), stamps, in_turn,
        np.array(keys) if jumps else None, shown, turns,
    )  # fmt: skip


def _axis(path: str, times: np.ndarray, last_s: float, rates: list[float]):
    """Frames and frames a second of the constant axis, and the picture that each frame shows.

    None for the pictures in turn: at one of `rates`, or at their own mean rate, every one of them
    is on screen in the middle of its frame. `times` (N,) ascend; the last picture stays `last_s`.
    """
    last_s = last_s if last_s > 0 else 1 / rates[0] if rates else 0.0
    if len(times) > 1:
        last_s = last_s or float(times[-1] - times[-2])
        rates = [*rates, (len(times) - 1) / max(1e-9, float(times[-1] - times[0]))]
    if not last_s:
        raise VideoError(f"{path}: the file gives no frame rate; re-encode it (constant rate)")
    end_s = float(times[-1]) + last_s
    for fps in rates:
        count = math.floor(end_s * fps + 0.5)
        if count == len(times) and (_on_screen(times, fps, count) == np.arange(count)).all():
            return count, fps, None
    # the rate of the dense parts, where something moves: still ones are stored as few pictures
    steps = np.append(np.diff(times), last_s)
    dense = 1 / float(steps[steps <= 1.5 * np.quantile(steps, 0.1)].mean())
    fps = next((rate for rate in rates if abs(rate / dense - 1) < 0.01), dense)
    if end_s * fps > MOST_FRAMES:
        found = f"time stamps from {times[0]:.6g} to {end_s:.6g} s, {fps:.6g} frames a second"
        raise VideoError(f"{path}: {found}; the file is damaged: {AGAIN}")
    count = max(1, math.floor(end_s * fps + 0.5))
    return count, fps, _on_screen(times, fps, count)


def _on_screen(times: np.ndarray, fps: float, count: int) -> np.ndarray:
    """Picture on screen in the middle of each frame: int64 (count,); the first one also before."""
    middles = (np.arange(count) + 0.5) / fps
    return np.maximum(np.searchsorted(times, middles, side="right") - 1, 0)


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple]:
    """Container and video stream, ready to decode; whatever fails inside is a `VideoError`."""
    import av
    from av.format import Flags
    from av.stream import Disposition

    try:
        local = {"protocol_whitelist": "file"}  # playlists may name anything
        with av.open(str(path), metadata_errors="replace", options=local) as container:
            name, raw = container.format.name, container.format.flags & Flags.no_timestamps.value
            if name.endswith("_pipe") or name == "image2":
                raise VideoError(f"{path}: a picture ({name}), no video; leave it out")
            covers = Disposition.attached_pic
            streams = [s for s in container.streams.video if not s.disposition & covers]
            best = container.streams.best("video")
            streams = [best] if best in streams else streams
            if not streams or streams[0].codec_context is None:
                found = "only sound, data or a cover picture" if not streams else "unknown codec"
                raise VideoError(f"{path}: no video stream, {found}; use another file")
            context = streams[0].codec_context
            if raw:
                cure = f"give it some: ffmpeg -r FRAMES_A_SECOND -i {Path(path).name} NEW.mp4"
                raise VideoError(f"{path}: a raw {name} stream, which holds no times; {cure}")
            if context.width * context.height > MOST_PIXELS:
                found = f"frames of {context.width} x {context.height} pixels"
                raise VideoError(f"{path}: {found} (expected at most {MOST_PIXELS:,}); scale it")
            context.thread_count = 1
            context.options = {"max_pixels": str(MOST_PIXELS)}  # sizes may change on the way
            yield container, streams[0]
    except VideoError:
        raise
    except (av.error.FFmpegError, OSError, ValueError, ArithmeticError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or error
        cure = f"it is not a video or is cut short: {AGAIN}"
        raise VideoError(f"{path}: no decodable video in it ({reason}); {cure}") from None


def _read_packets(container, stream):
    """(pts, dts, duration) of every packet, stamps of key frames; whether frames are just these,
    in reach of jumps; the first frame."""
    import av

    packets, keys, plain, first = [], [], True, None
    stamps, latest = set(), -math.inf
    try:
        for packet in container.demux(stream):
            if first is None:
                try:
                    first = next(iter(packet.decode()), None)
                except av.error.FFmpegError:
                    plain = False
            if not packet.size:
                continue
            pts = packet.pts
            packets.append((pts, packet.dts, packet.duration))
            if packet.is_corrupt or packet.is_discard or pts is None or pts in stamps:
                plain = False
            elif packet.is_keyframe:
                plain &= not stamps or pts > latest
                keys.append(pts)
            else:  # a first frame that is no key frame, or a picture shown before its key frame
                plain &= bool(keys) and pts > keys[-1]
            if pts is not None:
                stamps.add(pts)
                latest = max(latest, pts)
    except av.error.FFmpegError:
        plain = False
    return packets, keys, plain, first


# ---------------------------------------------------------------------------- pictures


def frames_in_order(path: str | Path, errors: list[Exception] | None = None) -> Iterator:
    """Every picture that decodes, in display order.

    Damaged packets are passed over (in a cut file the last one); `errors` collects the reasons.
    """
    import av

    with _opened(path) as (container, stream):
        packets = container.demux(stream)
        while True:
            try:
                frames = next(packets).decode()
            except (StopIteration, av.error.EOFError):
                return
            except av.error.FFmpegError as error:
                if errors is not None:
                    errors.append(error)
                continue
            yield from frames


def scaled_frames(path: str | Path, height: int, width: int) -> Iterator[Callable[[], np.ndarray]]:
    """A function a frame that scales it (bicubic): upright (height, width, 3) uint8."""
    scan = _scan(*(identity := file_identity(path)))
    numbers = range(len(scan.stamps)) if scan.shown is None else scan.shown
    return _pictures(identity[0], scan, (height, width), numbers)


def _pictures(
    path: str, scan: _Scan, size: tuple[int, int], numbers: Iterable[int]
) -> Iterator[Callable[[], np.ndarray]]:
    """As `scaled_frames`, of the pictures with these ascending numbers, decoded in order."""
    scale, picture, missing = _scaler(path, *size, scan.quarter_turns), None, set()
    decoded = zip(scan.stamps, frames_in_order(path)) if scan.in_turn else (
        (frame.pts, frame) for frame in frames_in_order(path) if frame.pts is not None
    )  # fmt: skip
    at, following = next(decoded, (0, None))
    if following is None:
        raise VideoError(f"{path}: 0 frames decoded; {AGAIN}")
    for number in numbers:
        stamp = scan.stamps[number]
        while picture is None or (following is not None and at <= stamp):
            picture, now = cache(lambda frame=following: scale(frame)), at
            at, following = next(decoded, (0, None))
        if now != stamp:
            missing.add(number)
        yield picture
    if missing:
        _warn_once(f"{path}: {len(missing)} damaged frames are replaced by those before them")


@lru_cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _fill_by_jumps(path: str, scan: _Scan, numbers: np.ndarray, frames: np.ndarray) -> bool:
    """Fill `frames` with the pictures of these numbers; decodes from the key frames before them.

    False: there are none, or some picture does not come with its stamp.
    """
    if scan.keys is None:
        return False
    scale = _scaler(path, *frames.shape[1:3], scan.quarter_turns)
    stamps = np.asarray(scan.stamps)
    wanted = stamps[numbers]
    starts = scan.keys[np.searchsorted(scan.keys, wanted, side="right") - 1]
    jumps = zip(wanted.tolist(), starts.tolist(), np.searchsorted(stamps, starts).tolist())
    try:
        with _opened(path) as (container, stream):
            decoded, position = container.decode(stream), 0
            for row, (stamp, start, first) in enumerate(jumps):
                if first > position + 1:
                    container.seek(start, stream=stream)
                    decoded, position = container.decode(stream), first
                for frame in decoded:
                    position += 1
                    if frame.pts is None or frame.pts >= stamp:
                        break
                else:
                    return False
                if frame.pts != stamp:
                    return False
                frames[row] = scale(frame)
    except VideoError:
        return False
    return True


def _scaler(path: str, height: int, width: int, turns: int) -> Callable[..., np.ndarray]:
    """A function that scales a frame (bicubic) and turns it upright: (height, width, 3) uint8."""
    import av.filter

    if turns % 2:
        height, width = width, height
    graphs: dict[tuple, av.filter.Graph] = {}  # one, but for videos that change their size

    def scale(frame) -> np.ndarray:
        kind = frame.width, frame.height, frame.format.name
        try:
            if kind not in graphs:
                graph = av.filter.Graph()
                graph.threads = 1
                size = dict(width=frame.width, height=frame.height, format=frame.format)
                source = graph.add_buffer(**size, time_base=Fraction(1, 1000))
                steps = ("scale", f"{width}:{height}:flags=bicubic"), ("format", "rgb24")
                nodes = [graph.add(*step) for step in (*steps, ("buffersink",))]
                graph.link_nodes(source, *nodes).configure()
                graphs[kind] = graph
            graphs[kind].push(frame)
            plane = graphs[kind].pull().planes[0]
        except (av.error.FFmpegError, ValueError) as error:
            found = "frames of {} x {} pixels, {}".format(*kind)
            cure = f"cannot become {width} x {height} RGB ({error}); re-encode it or leave it out"
            raise VideoError(f"{path}: {found}, {cure}") from None
        rows = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)
        image = rows[:, : 3 * width].reshape(height, width, 3)
        return np.rot90(image, turns) if turns else image

    return scale
