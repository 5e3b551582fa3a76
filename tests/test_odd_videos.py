"""Videos as they come: variable rates, late starts, odd containers, damage.

Every frame shows its number, every file is built with known time stamps, and ffprobe, where it is
installed, says once more when each frame is shown. What is right is then simple: at any second the
picture on screen.
"""

import json
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_video import numbered_frames, read_numbers, write_numbered

from lofi.data import annotations, check_dataset, read_annotations
from lofi.data.annotations import TrimmedClip, Video
from lofi.data.clips import read_clip_list
from lofi.data.copies import reencode
from lofi.data.reading import ClipReader, ClipRequest, read_trimmed_clip
from lofi.data.video import VideoError, _scan, decode_frames, file_identity, probe, verify
from lofi.fidelity import Fidelity

av.logging.set_level(av.logging.PANIC)
RATE = 25
STEADY = [40 * i for i in range(100)]  # ms
# Bursts at 25 frames a second with long still parts between them, as screen recorders write.
BURSTS = [1000 * part + 40 * i for part in (0, 3, 60, 61, 200) for i in range(20)]
# A telephone's uneven rate: 20 to 60 ms
UNEVEN = np.cumsum(np.random.default_rng(0).integers(20, 60, 100)).tolist()


def write(
    path, stamps_ms, codec="libx264", format=None, sound=False, live=False, size=(48, 64), **options
):
    """Frames 0, 1, ... shown at these times, in order; `sound` from 0 s to the end."""
    settings = {"g": "12", "bf": "2", "threads": "1"} if codec == "libx264" else {"g": "12"}
    target = _Pipe(path) if live else str(path)
    container = av.open(target, "w", format=format, options={"live": "1"} if live else options)
    stream = container.add_stream(codec, rate=RATE, options=settings)
    stream.height, stream.width = size
    stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
    base = Fraction(1, RATE) if Path(path).suffix == ".avi" else Fraction(1, 1000)
    stream.codec_context.time_base = base
    voice = container.add_stream("aac", rate=16000) if sound else None
    if voice:  # first, so that its packets lie before the late pictures
        quiet = np.zeros((1, 1024), np.float32)
        for i in range(int(stamps_ms[-1] * 16 / 1024) + 1):
            frame = av.AudioFrame.from_ndarray(quiet, "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, 1024 * i, Fraction(1, 16000)
            container.mux(voice.encode(frame))
        container.mux(voice.encode())
    for stamp, image in zip(stamps_ms, numbered_frames(range(len(stamps_ms)), *size)):
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.time_base, frame.pts = base, round(Fraction(stamp, 1000) / base)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())
    container.close()
    return path


class _Pipe:
    """What a browser records into: bytes that cannot be gone back to."""

    def __init__(self, path):
        self.file = open(path, "wb")

    def write(self, data):
        return self.file.write(data)


def on_screen(stamps_ms, seconds):
    """Number of the frame that a player shows."""
    return max(0, np.searchsorted(np.asarray(stamps_ms), 1000 * seconds, side="right") - 1)


def shown_by_ffmpeg(path):
    """Times of all frames after the container's start, in ms, as ffprobe gives them."""
    command = ["ffprobe", "-v", "error", "-select_streams", "V:0", "-show_entries"]
    command += ["frame=best_effort_timestamp_time:format=start_time", "-of", "json", str(path)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    start = float(found["format"]["start_time"])
    times = [float(frame["best_effort_timestamp_time"]) for frame in found["frames"]]
    return [1000 * (time - start) for time in times]


ODD = {
    "bursts.mkv": dict(stamps_ms=BURSTS),
    "bursts.mp4": dict(stamps_ms=BURSTS),
    "bursts.webm": dict(stamps_ms=BURSTS, codec="libvpx-vp9"),
    "uneven.mp4": dict(stamps_ms=UNEVEN),
    "uneven.webm": dict(stamps_ms=UNEVEN, codec="libvpx"),
    "uneven.ts": dict(stamps_ms=UNEVEN),
    "late.mp4": dict(stamps_ms=[500 + t for t in STEADY], sound=True),
    "late.mkv": dict(stamps_ms=[500 + t for t in STEADY], sound=True),
    "offset.mp4": dict(stamps_ms=[66 + t for t in STEADY], sound=True),
    "steady.avi": dict(stamps_ms=STEADY),
    "steady.ts": dict(stamps_ms=STEADY),
    "hls.mp4": dict(stamps_ms=STEADY, format="mpegts"),
    "steady.flv": dict(stamps_ms=STEADY),
    "steady.mpg": dict(stamps_ms=STEADY, codec="mpeg2video"),
    "steady.wmv": dict(stamps_ms=STEADY, codec="wmv2"),
    "live.webm": dict(stamps_ms=STEADY, codec="libvpx", format="webm", live=True),
    "uneven live.webm": dict(stamps_ms=UNEVEN, codec="libvpx-vp9", format="webm", live=True),
    "moving.gif": dict(stamps_ms=[10 * round(t / 10) for t in UNEVEN], codec="gif"),
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    return {name: write(folder / name, **how) for name, how in ODD.items()}


@pytest.mark.parametrize("name", ODD)
def test_frame_and_second_are_right(name, odd, tmp_path):
    path, stamps = odd[name], ODD[name]["stamps_ms"]
    if "sound" not in ODD[name]:  # of such files the first frame is the start
        stamps = [stamp - stamps[0] for stamp in stamps]
    info = probe(path)
    # multiples of the container's clock, 1 ms or 1/25 s here, and of the last frame's length
    assert abs(info.duration_s - (stamps[-1] + 40) / 1000) < 0.1
    middles = (np.arange(info.num_frames) + 0.5) / info.fps
    near = np.abs(np.asarray(stamps) - 1000 * middles[:, None]).min(axis=1) < 25  # sound's start
    sure = ~near if "sound" in ODD[name] else np.ones(info.num_frames, bool)
    expected = np.array([on_screen(stamps, t + 1e-6) for t in middles])
    axis = read_numbers(decode_frames(path, range(info.num_frames)))
    rounding = np.array([on_screen(stamps, t + 1.5e-3) for t in middles])  # clocks of 1 ms
    assert ((axis == expected) | (axis == rounding))[sure].all()
    assert (np.abs(axis - expected) <= 1).all()
    asked = np.random.default_rng(1).permutation(info.num_frames)[:40]
    assert read_numbers(decode_frames(path, asked, (24, 32))) == [axis[i] for i in asked]
    for seconds in (middles[-1] * share for share in (0.21, 0.5, 0.93)):
        clip = TrimmedClip(path, "x", seconds, seconds + 0.04)
        shown = read_numbers(read_trimmed_clip(clip, 1, 48, 1, 1.0).movedim(1, -1).numpy()[..., :])
        assert len(shown) == 1
    copy = tmp_path / "copy.mp4"
    small = reencode(path, copy, short_side=32)
    assert (small.num_frames, small.fps) == (info.num_frames, pytest.approx(info.fps, rel=1e-3))
    assert read_numbers(decode_frames(copy, range(info.num_frames))) == axis
    assert verify(path) is None


@pytest.mark.skipif(not shutil.which("ffprobe"), reason="ffprobe is not installed")
@pytest.mark.parametrize("name", [name for name in ODD if not name.endswith(".avi")])
def test_seconds_are_those_of_ffprobe(name, odd):
    info, times = probe(odd[name]), shown_by_ffmpeg(odd[name])
    assert len(times) == 100
    found = read_numbers(decode_frames(odd[name], range(info.num_frames)))
    middles = (np.arange(info.num_frames) + 0.5) / info.fps
    early, late = ([on_screen(times, t + d) for t in middles] for d in (-1e-5, 1e-5))
    assert all(number in pair for number, *pair in zip(found, early, late))


def test_a_recording_of_half_an_hour_that_is_mostly_still(tmp_path):
    stamps = [180_000 * part + 40 * i for part in range(10) for i in range(20)]
    info = probe(write(tmp_path / "screen.mkv", stamps))
    assert info.duration_s == pytest.approx(1620.8, abs=0.05)
    assert info.fps == pytest.approx(25, rel=1e-3)
    clip = TrimmedClip(tmp_path / "screen.mkv", "x", 1260.0, 1260.8)
    frames = read_trimmed_clip(clip, 20, 48, 1, 1.0)
    wide = decode_frames(tmp_path / "screen.mkv", [1260 * 25 + 10, 1259 * 25])
    assert frames.shape[0] == 20 and read_numbers(wide) == [150, 139]


def test_constant_rates_keep_every_frame_and_the_declared_rate(tmp_path):
    for name, rate in (("a.mp4", Fraction(30000, 1001)), ("a.mkv", 30), ("a.webm", 12)):
        codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=rate)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for image in numbered_frames(range(90), 48, 64):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        info = probe(tmp_path / name)
        assert (info.num_frames, info.fps) == (90, float(rate))
        assert read_numbers(decode_frames(tmp_path / name, range(90))) == list(range(90))


def test_a_wrong_rate_in_the_header_is_not_believed(tmp_path):
    path = write(tmp_path / "a.avi", STEADY)  # H.264 in AVI: FFmpeg declares 50 frames a second
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 50
    assert (probe(path).fps, probe(path).duration_s) == (25.0, 4.0)


def _packets(path):
    with av.open(str(path)) as container:
        return [(p.pts, p.pos, p.size) for p in container.demux(video=0) if p.size]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
@pytest.mark.parametrize("filling", [b"\0", b"\xff"])
def test_damaged_packets_shift_nothing(name, filling, tmp_path, caplog):
    path = write(tmp_path / name, STEADY)
    table, data = _packets(path), bytearray(path.read_bytes())
    for _, position, size in table[39:42]:  # behind the key frame 36; the next one is 48
        data[position + 4 : position + size] = filling * (size - 4)
    path.write_bytes(data)
    found = read_numbers(decode_frames(path, range(100)))
    assert len(found) == 100 and found[:36] == list(range(36)) and found[48:] == list(range(48, 100))
    assert read_numbers(decode_frames(path, [99, 50, 3])) == [99, 50, 3]
    assert verify(path) is not None


def test_what_is_no_video_says_so_in_one_line(tmp_path):
    image = av.VideoFrame.from_ndarray(numbered_frames([5])[0], format="rgb24")
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 56, 48, "rgb24"
    encoder.time_base = Fraction(1, 25)
    picture = bytes(encoder.encode(image)[0])
    (tmp_path / "picture.mp4").write_bytes(picture)
    write(tmp_path / "raw.mp4", STEADY, format="h264")
    with av.open(str(tmp_path / "song.mp4"), "w", format="mp4") as container:
        voice = container.add_stream("aac", rate=16000)
        cover = container.add_stream("png", rate=25)
        cover.width, cover.height, cover.pix_fmt = 56, 48, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        for i in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16000, 1024 * i
            container.mux(voice.encode(frame))
        container.mux(cover.encode(image))
    words = {"picture": "a picture", "raw": "holds no times", "song": "cover picture"}
    for name, found in words.items():
        for call in (probe, verify, lambda path: decode_frames(path, [0])):
            with pytest.raises(VideoError, match=found) as caught:
                call(tmp_path / f"{name}.mp4")
            assert "\n" not in str(caught.value) and f"{name}.mp4" in str(caught.value)


def test_sizes_beyond_reason_are_refused_and_tiny_ones_work(tmp_path):
    path = write(tmp_path / "flat.mkv", STEADY[:2], "ffv1", size=(2, 8000))
    with pytest.raises(VideoError, match="8000 x 2 pixels"):
        probe(path)
    path = write(tmp_path / "dot.mkv", STEADY[:9], "ffv1", size=(1, 1))
    clip = ClipRequest(path, Fidelity(4, 2, 224)).read()
    assert probe(path).num_frames == 9 and clip.shape == (4, 2, 3, 224, 224)
    huge = bytearray(write(tmp_path / "huge.mkv", STEADY[:2], "ffv1", size=(48, 64)).read_bytes())
    for code, wide in ((b"\xb0\x81\x40", b"\xb0\x82\x40\x00"), (b"\xba\x81\x30", b"\xba\x82\x40\x00")):
        assert code in huge  # PixelWidth and PixelHeight; Void elements make room
    with pytest.raises(VideoError, match="16384 x 16384 pixels"):
        probe(_resized(tmp_path / "huge.mp4", 16384))


def _resized(path, side):
    """A video whose track header and sample description claim another size."""
    write(path, STEADY[:4], "mpeg4")
    data = bytearray(path.read_bytes())
    at = data.index(b"mp4v", data.index(b"stsd") + 4) + 4 + 24
    data[at : at + 4] = side.to_bytes(2, "big") * 2
    path.write_bytes(data)
    return path
