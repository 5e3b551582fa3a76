"""Low-resolution copies hold the frames of their videos, and are made once."""

import csv

import numpy as np
import pytest
from numbered_video import numbered_frames, read_numbers, write_numbered

from lofi import commands
from lofi.data import copies, isolated
from lofi.data.copies import (
    MANIFEST,
    cache_videos,
    content_id,
    media_files,
    reencode,
    small_size,
    write_video,
)
from lofi.data.video import VideoError, decode_frames, probe

CLIPS = ("av1_video.mkv", "demo.mp4", "h265_video.mp4", "test.avi", "discard_first_keyframe.mp4")


def _psnr(a, b):
    return 10 * np.log10(255**2 / ((a - b) ** 2).mean())


@pytest.mark.parametrize("name", CLIPS)
def test_copies_of_real_clips_have_their_frames(name, shared_data, tmp_path):
    path, out = shared_data / "clips" / name, tmp_path / "a.mp4"
    before, after = probe(path), reencode(path, out, short_side=96)
    assert (after.num_frames, after.fps) == (before.num_frames, before.fps)
    assert min(after.width, after.height) == min(96, before.width, before.height)
    every = range(before.num_frames)
    original = decode_frames(path, every, (after.height, after.width)).astype(float)
    copy = decode_frames(out, every).astype(float)
    assert _psnr(copy, original) > 26  # dB; colour is kept at half the resolution
    assert _psnr(copy.mean(-1), original.mean(-1)) > 34
    assert _psnr(copy, original) > max(
        _psnr(copy[1:], original[:-1]), _psnr(copy[:-1], original[1:])
    )


def test_frames_keep_their_numbers_and_rates_divide_them(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 100, height=64, width=80)  # 10 frames a second
    reencode(path, tmp_path / "same.mp4", short_side=32)
    assert read_numbers(decode_frames(tmp_path / "same.mp4", range(100))) == list(range(100))
    half = reencode(path, tmp_path / "half.mp4", short_side=32, fps=5)
    assert (half.num_frames, half.fps, half.duration_s) == (50, 5.0, 10.0)
    # frame j of the copy covers [j, j + 1) / 5 s; in its middle frame 2 j + 1 begins
    numbers = read_numbers(decode_frames(tmp_path / "half.mp4", range(50)))
    assert numbers == list(range(1, 100, 2))
    double = reencode(path, tmp_path / "double.mp4", short_side=32, fps=20)
    numbers = read_numbers(decode_frames(tmp_path / "double.mp4", range(200)))
    assert double.num_frames == 200 and numbers == [i // 2 for i in range(200)]


@pytest.mark.parametrize(
    "size, short_side, expected",
    [
        ((720, 1280), 256, (256, 456)),  # 455.1 wide
        ((1280, 720), 256, (456, 256)),
        ((240, 320), 256, (240, 320)),  # never larger
        ((241, 321), 256, (240, 320)),
        ((360, 640), 128, (128, 228)),
    ],
)
def test_sizes_are_even_and_keep_the_aspect(size, short_side, expected):
    assert small_size(*size, short_side) == expected


def test_one_frame_is_in_memory_at_a_time(tmp_path, monkeypatch):
    """The encoder asks for the next frame only when it has the one before."""
    path = write_numbered(tmp_path / "a.mp4", 60)
    alive, most = 0, 0
    scaled = copies.scaled_frames

    def counted(*args):
        nonlocal alive, most
        for picture in scaled(*args):
            alive += 1
            most = max(most, alive)
            yield picture
            alive -= 1

    monkeypatch.setattr(copies, "scaled_frames", counted)
    reencode(path, tmp_path / "b.mp4")
    assert most == 1


@pytest.fixture
def folder(tmp_path):
    videos = tmp_path / "videos"
    (videos / "run").mkdir(parents=True)
    for name, count in (("a.mp4", 30), ("run/b.mp4", 20), ("c.mkv", 12)):
        write_numbered(videos / name, count, height=64, width=80)
    (videos / "broken.mp4").write_text("not a video")
    return videos


def test_a_folder_is_copied_once_and_bad_files_are_listed(folder, tmp_path):
    out, calls = tmp_path / "small", []
    options = dict(short_side=32, workers=2)
    first = cache_videos(
        media_files(folder), folder, out, progress=lambda *n: calls.append(n), **options
    )
    assert [copy.file for copy in first.failed] == ["broken.mp4"] and first.earlier == 0
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert files == {"a.mp4", "run/b.mp4", "c.mp4", MANIFEST}
    assert read_numbers(decode_frames(out / "run/b.mp4", range(20))) == list(range(20))
    with open(out / MANIFEST, newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert rows["broken.mp4"]["kind"] == "failed" and "no decodable" in rows["broken.mp4"]["detail"]
    assert rows["a.mp4"]["frames"] == "30" and rows["a.mp4"]["height"] == "32"
    assert "1 failed" in first.summary() and "broken.mp4: " in first.summary()

    times = {p: p.stat().st_mtime_ns for p in out.rglob("*.mp4")}
    write_numbered(folder / "broken.mp4", 8, height=64, width=80)  # repaired
    write_numbered(folder / "a.mp4", 31, height=64, width=80)  # replaced
    again = cache_videos(media_files(folder), folder, out, **options)
    changed = {p.name for p in out.rglob("*.mp4") if times.get(p) != p.stat().st_mtime_ns}
    assert changed == {"a.mp4", "broken.mp4"} and not again.failed and again.earlier == 2
    assert probe(out / "a.mp4").num_frames == 31
    other = cache_videos(media_files(folder), folder, out, short_side=48)
    assert other.earlier == 0 and probe(out / "a.mp4").height == 48  # settings count


def test_an_interrupted_run_goes_on_and_leaves_no_half_files(folder, tmp_path):
    out = tmp_path / "small"
    paths = media_files(folder)[:2] + [folder / "run/b.mp4"]

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_videos(paths, folder, out, short_side=32, progress=stop)
    (out / ".tmp-123-b.mp4").write_bytes(b"half")  # as a killed run leaves it
    with open(out / MANIFEST, "a") as file:
        file.write("run/b.mp4,ok,,1")  # a line that was being written
    report = cache_videos(paths, folder, out, short_side=32)
    assert report.earlier == 1 and [c.file for c in report.failed] == ["broken.mp4"]
    assert not list(out.glob(".tmp-*"))


HANG = "import time\nimport lofi.data.copies as c\nc.probe = lambda path: time.sleep(60)\n"


def test_a_video_that_hangs_is_given_up_and_its_old_copy_removed(folder, tmp_path, monkeypatch):
    out = tmp_path / "small"
    out.mkdir()
    (out / "a.mp4").write_bytes(b"of another video")
    monkeypatch.setattr(isolated, "PROGRAM", HANG + isolated.PROGRAM)
    report = cache_videos([folder / "a.mp4"], folder, out, limit_s=0.5)
    assert report.failed[0].detail == "no result in 0.5 s"
    assert not (out / "a.mp4").exists()


def test_unusable_settings_and_folders_are_refused(folder, tmp_path):
    paths = media_files(folder)
    with pytest.raises(ValueError, match="lies in the folder of the videos"):
        cache_videos(paths, folder, folder / "small")
    with pytest.raises(ValueError, match="short_side 1"):
        cache_videos(paths, folder, tmp_path / "x", short_side=1)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / MANIFEST).write_text("a,b\n")
    with pytest.raises(ValueError, match="not a list of copies"):
        cache_videos(paths, folder, tmp_path / "foreign")
    with pytest.raises(ValueError, match="no videos in it"):
        media_files(tmp_path / "foreign")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        media_files(tmp_path / "gone")
    with pytest.raises(VideoError, match="no decodable video"):
        reencode(folder / "broken.mp4", tmp_path / "b.mp4")
    assert not (tmp_path / "b.mp4").exists()


def test_two_videos_of_one_name_do_not_overwrite_each_other(folder, tmp_path):
    write_numbered(folder / "a.mkv", 8)
    report = cache_videos(media_files(folder), folder, tmp_path / "small", short_side=32)
    assert {c.file for c in report.failed} == {"broken.mp4", "a.mp4 (.mp4)"}


def test_the_command_says_what_is_there_and_fails_when_a_video_fails(folder, tmp_path, capsys):
    (tmp_path / "a.csv").write_text("video,start_s,end_s,label\na,0,1,x\nb,0,1,x\ngone,0,1,x\n")
    commands.cache(tmp_path / "a.csv", out=tmp_path / "small", videos=folder, short_side=32)
    assert "2 of 3 annotated videos have a file" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "small").rglob("*.mp4")} == {"a.mp4", "b.mp4"}
    with pytest.raises(SystemExit) as end:
        commands.cache(folder, out=tmp_path / "small", short_side=32)
    assert end.value.code == 1 and "1 copies made, 2 were there" in capsys.readouterr().out
    with pytest.raises(ValueError, match="Give their folder with --videos"):
        commands.cache(tmp_path / "a.csv", out=tmp_path / "small")


def test_content_is_told_by_size_and_ends(tmp_path):
    names = [tmp_path / str(i) for i in range(4)]
    for name, data in zip(names, (b"a" * 9, b"a" * 9, b"a" * 8, b"a" * 8 + b"b")):
        name.write_bytes(data)
    a, same, shorter, other = map(content_id, names)
    assert a == same and len({a, shorter, other}) == 3


def test_the_same_video_gives_the_same_copy(tmp_path):
    write_video(tmp_path / "a.mp4", numbered_frames(range(24), 64, 80), 10.0)
    for name in ("b", "c"):
        reencode(tmp_path / "a.mp4", tmp_path / f"{name}.mp4", 32)
    assert (tmp_path / "b.mp4").read_bytes() == (tmp_path / "c.mp4").read_bytes()
