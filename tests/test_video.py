"""Decoding and encoding, against files whose frames carry their number and against PyAV."""

import json
import os
import struct
from fractions import Fraction

import numpy as np
import pytest
from numbered_video import numbered_frames, read_numbers, write_numbered

from lofi.data.copies import write_video
from lofi.data.video import VideoError, decode_frames, probe, verify

av = pytest.importorskip("av")

CLIPS = (
    "av1_video.mkv",
    "demo.mp4",
    "discard_first_keyframe.mp4",
    "h265_video.mp4",
    "test.avi",
    "test_video_structuralize.mp4",
)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_numbered(tmp_path_factory.mktemp("video") / "numbered.mp4", keyframe_interval=20)


@pytest.mark.parametrize("name", CLIPS)
def test_real_clips_give_the_frames_that_pyav_decodes(name, shared_data, golden):
    expected = json.loads(golden("clips.json").read_text())["clips"][name]
    path = shared_data / "clips" / name
    info = probe(path)
    assert info.num_frames == expected["decoded_frames"]
    assert info.fps == float(Fraction(expected["average_rate"]))
    assert (info.width, info.height) == (expected["width"], expected["height"])
    numbers = [int(number) for number in expected["frames"]]
    wanted = numbers[::-1] + numbers  # decoders like to be asked in order, callers may not
    means = decode_frames(path, wanted).mean(axis=(1, 2))
    for mean, number in zip(means, wanted):
        assert np.abs(mean - expected["frames"][str(number)]["rgb_mean"]).max() < 1.5
    tenth = decode_frames(path, range(0, info.num_frames, 10)).mean(axis=(1, 2, 3))
    assert np.abs(tenth - expected["frame_rgb_mean_every_10th"]).max() < 1.5


@pytest.mark.parametrize("name", CLIPS)
def test_random_access_gives_the_same_frames_as_decoding_in_order(name, shared_data):
    path = shared_data / "clips" / name
    with av.open(str(path)) as container:
        in_order = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    late = range(len(in_order) // 2, len(in_order), 3)  # starts behind a key frame, not at 0
    found = decode_frames(path, late)
    assert np.array_equal(found, np.stack([in_order[i] for i in late]))


def test_every_frame_is_the_one_asked_for(video):
    assert probe(video).num_frames == 128
    assert probe(video).duration_s == 12.8
    assert read_numbers(decode_frames(video, range(128))) == list(range(128))
    asked = [100, 3, 3, 127, 0, 64, 65, 3]
    assert read_numbers(decode_frames(video, asked)) == asked
    assert decode_frames(video, []).shape == (0, 48, 56, 3)


@pytest.mark.parametrize("width", [16, 24, 32, 48, 50, 64, 70, 96, 144])
def test_scaling_to_any_width_keeps_frames_and_their_order(video, width):
    frames = decode_frames(video, [5, 90, 17], size=(30, width))
    assert frames.shape == (3, 30, width, 3) and frames.dtype == np.uint8
    assert read_numbers(frames) == [5, 90, 17]


@pytest.mark.parametrize("width", [16, 48, 96])
def test_videos_of_narrow_widths(tmp_path, width):
    path = write_numbered(tmp_path / "narrow.mp4", 12, height=48, width=width)
    assert read_numbers(decode_frames(path, [11, 2, 7])) == [11, 2, 7]


def test_open_groups_of_pictures_are_not_decoded_by_jumping(tmp_path):
    path = tmp_path / "open.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=4:scenecut=0"}
        for frame in numbered_frames(range(100), 48, 64):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    for first in range(0, 100, 7):
        wanted = list(range(first, 100, 5))
        assert read_numbers(decode_frames(path, wanted)) == wanted


def _rotated(path, out, matrix):
    """Overwrite the display matrix in the track header of an mp4."""
    data = bytearray(path.read_bytes())
    header = data.find(b"tkhd")
    start = header + 8 + (20 if data[header + 4] == 0 else 32) + 16
    data[start : start + 36] = struct.pack(">9i", *matrix)
    out.write_bytes(data)
    return out


def test_phone_videos_are_turned_upright(video, tmp_path):
    one = 1 << 16
    half = _rotated(video, tmp_path / "180.mp4", (-one, 0, 0, 0, -one, 0, 0, 0, 1 << 30))
    upright = decode_frames(video, [1, 30])
    assert np.array_equal(decode_frames(half, [1, 30]), upright[:, ::-1, ::-1])
    right = _rotated(video, tmp_path / "90.mp4", (0, one, 0, -one, 0, 0, 0, 0, 1 << 30))
    assert (probe(right).width, probe(right).height) == (48, 56)
    assert np.array_equal(decode_frames(right, [1, 30]), np.rot90(upright, -1, axes=(1, 2)))
    assert decode_frames(right, [1, 30], size=(28, 20)).shape == (2, 28, 20, 3)


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "No such file"),
        (b"", "empty"),
        (b"this is not a video\n" * 50, "no decodable video"),
        (b"\0\0\0\x18ftypisom" + bytes(2000), "no decodable video"),
    ],
)
def test_unusable_files_are_one_clear_line_and_silent(content, words, tmp_path, capfd):
    path = tmp_path / "broken.mp4"
    if content is not None:
        path.write_bytes(content)
    for call in (probe, verify, lambda p: decode_frames(p, [0])):
        with pytest.raises(VideoError, match=words) as caught:
            call(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # decoders like to write there from C


def test_names_may_hold_spaces_and_any_letters(tmp_path):
    path = write_numbered(tmp_path / "Übung 1 %03d – 体操.mp4", 6)
    assert read_numbers(decode_frames(path, [4, 1])) == [4, 1]


def test_a_folder_is_not_a_video(tmp_path):
    with pytest.raises(VideoError, match="not a file"):
        probe(tmp_path)


def test_a_file_cut_short_gives_the_frames_before_the_cut(video, tmp_path, capfd):
    whole = tmp_path / "front.mp4"  # with the index in front, so that a cut leaves it readable
    with av.open(str(video)) as source:
        options = {"movflags": "+faststart"}
        with av.open(str(whole), "w", options=options) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
    data = whole.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: len(data) * 6 // 10])
    count = probe(cut).num_frames
    assert 0 < count < 128 and verify(whole) is None
    assert f"{count} of 128" in verify(cut)
    assert read_numbers(decode_frames(cut, range(count - 8))) == list(range(count - 8))
    assert len(decode_frames(cut, [count - 1])) == 1
    with pytest.raises(ValueError, match=f"frames 0 to {count - 1}"):
        decode_frames(cut, [count])
    assert capfd.readouterr().err == ""
    (tmp_path / "lost.mp4").write_bytes(video.read_bytes()[:3000])  # index at the end: lost
    with pytest.raises(VideoError, match="cut short"):
        probe(tmp_path / "lost.mp4")


def test_a_replaced_file_is_probed_again(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 8)
    assert probe(path).num_frames == 8
    write_numbered(path, 12)
    os.utime(path, ns=(1, 1))
    assert probe(path).num_frames == 12


def test_the_same_frames_give_the_same_bytes_and_leave_nothing_else(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (24, 40, 46, 3), dtype=np.uint8)
    for frames in (noise, numbered_frames(range(24)), numbered_frames(range(24), 64, 80)):
        found = set()
        for _ in range(12):  # default x264 settings gave up to 9 different files out of 25
            write_video(tmp_path / "a.mp4", frames, fps=10)
            found.add((tmp_path / "a.mp4").read_bytes())
        assert len(found) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_encoding_is_close_to_the_pixels(tmp_path):
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    frames = np.broadcast_to(ramp[None, None, :, None], (8, 48, 64, 3)).copy()
    frames[..., 1] = frames[:, :, ::-1, 1]
    write_video(tmp_path / "a.mp4", frames, fps=29.97)
    found = decode_frames(tmp_path / "a.mp4", range(8))
    assert np.abs(found.astype(int) - frames).mean() < 3
    assert abs(probe(tmp_path / "a.mp4").fps - 29.97) < 1e-3


@pytest.mark.parametrize(
    "frames, fps, words",
    [
        (np.zeros((4, 48, 55, 3), np.uint8), 10, "even"),
        (np.zeros((4, 48, 56), np.uint8), 10, "shape"),
        (np.zeros((0, 48, 56, 3), np.uint8), 10, "N >= 1"),
        (np.zeros((4, 48, 56, 3), np.float32), 10, "uint8"),
        (np.zeros((4, 48, 56, 3), np.uint8), 0, "fps"),
    ],
)
def test_unwritable_frames_are_refused_and_the_old_file_stays(frames, fps, words, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=words):
        write_video(path, frames, fps)
    assert path.read_bytes() == b"old"


def test_indices_and_sizes_outside_are_refused(video):
    for indices in ([128], [-1, 3]):
        with pytest.raises(ValueError, match="frames 0 to 127"):
            decode_frames(video, indices)
    with pytest.raises(ValueError, match="size"):
        decode_frames(video, [0], size=(0, 10))
