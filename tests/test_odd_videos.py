"""Videos as they come: variable rates, late starts, odd containers, damage.

Every frame shows its number, every file is built with known time stamps, and ffprobe, where it is
installed, says once more when each frame is shown. What is right is then simple: at any second the
picture on screen.
"""

import json
import os
import shutil
import struct
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_video import numbered_frames, read_numbers

from lofi.data import check_dataset, read_annotations
from lofi.data.annotations import TrimmedClip, Video
from lofi.data.clips import read_clip_list
from lofi.data.copies import reencode
from lofi.data.reading import ClipReader, ClipRequest, TrimmedRequest
from lofi.data.video import VideoError, decode_frames, probe, verify
from lofi.fidelity import Fidelity

av.logging.set_level(av.logging.PANIC)
RATE = 25
B_FRAMES = ("libx264", "mpeg2video")
STEADY = [40 * i for i in range(100)]  # ms
# Bursts at 25 frames a second with long still parts between them, as screen recorders write.
BURSTS = [1000 * part + 40 * i for part in (0, 3, 60, 61, 200) for i in range(20)]
# A telephone's uneven rate: 20 to 60 ms
UNEVEN = np.cumsum(np.random.default_rng(0).integers(20, 60, 100)).tolist()


def write(
    path,
    stamps_ms,
    codec="libx264",
    format=None,
    sound=False,
    live=False,
    size=(64, 64),
    declared=RATE,
    **options,
):
    """Frames 0, 1, ... shown at these times, in order; `sound` from 0 s to the end."""
    settings = {"g": "12", "bf": "2", "threads": "1"} if codec in B_FRAMES else {"g": "12"}
    target = _Pipe(path) if live else str(path)
    container = av.open(target, "w", format=format, options={"live": "1"} if live else options)
    stream = container.add_stream(codec, rate=declared, options=settings)
    stream.height, stream.width = size
    stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
    base = Fraction(1, RATE) if Path(path).suffix in (".avi", ".mpg") else Fraction(1, 1000)
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
        self.path = path
        path.write_bytes(b"")

    def write(self, data):
        with open(self.path, "ab") as file:
            return file.write(data)


def on_screen(stamps_ms, seconds):
    """Number of the frame that a player shows."""
    return max(0, np.searchsorted(np.asarray(stamps_ms), 1000 * seconds, side="right") - 1)


def shown_by_ffmpeg(path):
    """Times of all frames after the container's start, in ms, as ffprobe gives them."""
    command = ["ffprobe", "-v", "error", "-select_streams", "V:0", "-show_entries"]
    command += ["frame=best_effort_timestamp_time:format=start_time", "-of", "json", str(path)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    start = max(
        0.0, float(found["format"]["start_time"])
    )  # some count the encoder's delay of sound
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
    for j in asked[:3].tolist():
        clip = TrimmedClip(path, "x", j / info.fps + 1e-6, (j + 1) / info.fps + 1e-6)
        window = TrimmedRequest(clip, 1, 64, 1, crop_ratio=1.0).read()
        assert read_numbers(window.movedim(1, -1).numpy()) == [axis[j]]
    copy = tmp_path / "copy.mp4"
    small = reencode(path, copy, short_side=32)
    assert (small.num_frames, small.fps) == (info.num_frames, pytest.approx(info.fps, rel=1e-3))
    assert read_numbers(decode_frames(copy, range(info.num_frames))) == axis
    assert verify(path) is None


@pytest.mark.skipif(not shutil.which("ffprobe"), reason="ffprobe is not installed")
@pytest.mark.parametrize("name", [n for n in ODD if n[-3:] not in ("avi", "mpg")])
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
    frames = TrimmedRequest(clip, 20, 48, 1, 1.0).read()
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
    path = write(tmp_path / "a.mkv", STEADY, declared=50)
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 50
    assert (probe(path).num_frames, probe(path).fps) == (100, pytest.approx(25))


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
    assert (
        len(found) == 100 and found[:36] == list(range(36)) and found[48:] == list(range(48, 100))
    )
    assert read_numbers(decode_frames(path, [99, 50, 3])) == [99, 50, 3]
    assert verify(path) is not None


def test_time_stamps_that_step_back_are_refused(tmp_path):
    """Joined transport streams, whose second part counts from the beginning again."""
    part = write(tmp_path / "part.ts", STEADY[:30]).read_bytes()
    (tmp_path / "joined.ts").write_bytes(part + part)
    with pytest.raises(VideoError, match="60 packets of unclear times; make a new file: ffmpeg"):
        probe(tmp_path / "joined.ts")


def test_a_turned_video_of_variable_rate_is_upright_at_the_right_second(tmp_path):
    path = write(tmp_path / "a.mp4", BURSTS)
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 4
    at += 4 + (20 if data[at] == 0 else 32) + 16
    one = 1 << 16
    matrix = (-one, 0, 0, 0, -one, 0, 0, 0, 1 << 30)  # half a turn
    data[at : at + 36] = struct.pack(">9i", *matrix)
    (tmp_path / "turned.mp4").write_bytes(data)
    asked = [1510, 5, 760, 80]  # at 25 frames a second: 60.4, 0.2, 30.4 and 3.2 s
    turned = decode_frames(tmp_path / "turned.mp4", asked)
    assert read_numbers(turned[:, ::-1, ::-1]) == [50, 5, 39, 25]


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
    with pytest.raises(VideoError, match="1 x 400 pixels"):
        probe(write(tmp_path / "thin.avi", STEADY[:2], "rawvideo", size=(400, 1)))
    path = write(tmp_path / "dot.mkv", STEADY[:9], "ffv1", size=(1, 1))
    clip = ClipRequest(path, Fidelity(4, 2, 224)).read()
    assert probe(path).num_frames == 9 and clip.shape == (4, 2, 3, 224, 224)
    path = write(tmp_path / "huge.mkv", STEADY[:2], "ffv1", size=(300, 300))
    data = path.read_bytes()
    assert data.count(b"\xb0\x82\x01\x2c") == data.count(b"\xba\x82\x01\x2c") == 1  # width, height
    path.write_bytes(data.replace(b"\x82\x01\x2c", b"\x82\x40\x00"))
    with pytest.raises(VideoError, match="huge.mkv"):
        probe(path)


def test_one_film_under_two_ids_is_found_across_subsets(tmp_path):
    for name in ("a", "b", "c", "d"):
        write(tmp_path / f"{name}.mp4", STEADY[: 30 if name == "d" else 40])
    subsets = {"a": "training", "b": "testing", "c": "training", "d": "testing"}
    videos = [Video(name, None, None, None, subset, ()) for name, subset in subsets.items()]
    found = check_dataset(videos, tmp_path).of("same_film")
    assert [(entry.video_id, entry.detail.split(" (")[0]) for entry in found] == [
        ("b", "the same film as a")
    ]


def test_names_are_found_in_either_form_of_accents_and_with_any_ending(tmp_path):
    composed, apart = "Caf\u00e9", "Cafe\u0301"
    for name in (f"{apart}.mp4", "b.m4v", "c.ts", "d.gif", "sub/e.divx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    rows = [f"{name},0,1,x" for name in (composed, "b.m4v", "c", "d.gif", "e.divx", "v.mp4")]
    table = tmp_path / "a.csv"
    table.write_text("\n".join(["video,start_s,end_s,label", *rows]), encoding="utf-8")
    found = [
        video.path and video.path.name for video in read_annotations(table, video_dir=tmp_path)
    ]
    assert found == [f"{apart}.mp4", "b.m4v", "c.ts", "d.gif", "e.divx", None]
    (tmp_path / "clips.csv").write_text(
        f"clip,label\n{composed}.mp4,x\nb.m4v,x\n", encoding="utf-8"
    )
    assert [clip.path.name for clip in read_clip_list(tmp_path / "clips.csv")] == [
        f"{apart}.mp4", "b.m4v",
    ]  # fmt: skip


KINDS = {
    "a.mp4": "libx264", "a.mkv": "libx264", "a.webm": "libvpx-vp9", "a.avi": "mpeg4",
    "a.ts": "libx264", "a.flv": "libx264",
}  # fmt: skip


def test_three_hundred_damaged_videos_end_nothing(tmp_path):
    """Bytes overwritten anywhere: read, or one clear line; check and reading agree which."""
    draws = np.random.default_rng(0)
    whole = {n: write(tmp_path / n, STEADY[:30], c).read_bytes() for n, c in KINDS.items()}
    folder = tmp_path / "damaged"
    folder.mkdir()
    for i in range(300):
        name, data = list(whole.items())[i % len(whole)]
        data = bytearray(data)
        for _ in range(draws.integers(1, 6)):
            at, length = draws.integers(len(data)), int(draws.integers(1, 80))
            data[at : at + length] = draws.bytes(min(length, len(data) - at))
        (folder / f"{i:03d}{name[1:]}").write_bytes(data)
    paths = sorted(folder.iterdir())
    with ClipReader() as reader:
        found = reader.read([ClipRequest(path, Fidelity(5, 2, 16)) for path in paths])
    skipped = {
        path.stem: error for path, error in zip(paths, found) if isinstance(error, VideoError)
    }
    assert 10 < len(skipped) < 290 and len(paths) == 300
    for path in paths:
        if path.stem in skipped:
            line = str(skipped[path.stem])
            assert line.startswith(str(path)) and "\n" not in line
        else:
            info = probe(path)
            assert len(decode_frames(path, range(info.num_frames), (8, 8))) == info.num_frames
    videos = [Video(path.stem, path, None, None, None, ()) for path in paths]
    report = check_dataset(videos, workers=2)
    assert {name for name, file in report.files.items() if file.info is None} == skipped.keys()
    assert skipped.keys() <= {entry.video_id for entry in report.of("undecodable")}


def test_a_video_that_is_damaged_after_it_was_probed_is_a_clear_error(tmp_path):
    path = write(tmp_path / "a.mp4", STEADY[:30])
    times, data = path.stat(), path.read_bytes()
    assert probe(path).num_frames == 30
    path.write_bytes(bytes(len(data)))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as if nothing had happened
    for content in (None, b""):
        if content is not None:
            path.write_bytes(content)
        with ClipReader() as reader:
            (found,) = reader.read([ClipRequest(path, Fidelity(3, 2, 16))])
        assert isinstance(found, VideoError) and str(path) in str(found)
