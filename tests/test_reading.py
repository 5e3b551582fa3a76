"""Clips hold the frames they should, one at a time, from a cache, in threads or in processes."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from numbered_video import numbered_frames, read_numbers, write_numbered

from lofi.data import isolated
from lofi.data.annotations import TrimmedClip
from lofi.data.copies import write_video
from lofi.data.reading import (
    ClipReader,
    ClipRequest,
    FrameCache,
    TrimmedRequest,
)
from lofi.data.snippets import Augmentation, frame_indices
from lofi.data.video import VideoError, probe
from lofi.fidelity import Fidelity

FIDELITY = Fidelity(4, 2, 16)


def read_clip(path, fidelity, *, cache=None, **options):
    return ClipRequest(path, fidelity, **options).read(cache)


def read_trimmed_clip(clip, *size, cache=None, **options):
    return TrimmedRequest(clip, *size, **options).read(cache)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reading")
    for i in range(3):
        write_numbered(folder / f"{i}.mp4", 20 + i)
    (folder / "text.mp4").write_text("not a video")
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_numbered(tmp_path_factory.mktemp("clips") / "numbered.mp4")  # 128 frames


def _numbers(clip):
    """Frame numbers of (..., 3, S, S) crops that show the whole width."""
    return read_numbers(clip.movedim(-3, -1).numpy())


def test_clips_may_be_cut_at_another_rate_and_with_jitter(tmp_path):
    path = write_numbered(tmp_path / "square.mp4", 100, height=64, width=64)  # 10 frames a second
    fidelity = Fidelity(5, 4, 32)
    clip = read_clip(path, fidelity, frame_stride=2, crop_ratio=1.0, resample_fps=5.0)
    # at 5 frames a second: 50 frames, shown by frames 1, 3, ..., 99; stride 2 of them is 4 frames
    assert _numbers(clip)[:4] == [(2 * k + 1) for k in (2, 4, 6, 8)]
    view = Augmentation(jitter=(0.0, 0.25, 0.5, 0.75, 0.999))
    moved = _numbers(read_clip(path, fidelity, frame_stride=1, crop_ratio=1.0, augmentation=view))
    assert moved == frame_indices(100, fidelity, 1, jitter=view.jitter).reshape(-1).tolist()
    window = read_trimmed_clip(
        TrimmedClip(path, "x", 2.0, 6.0), 4, 32, 1, crop_ratio=1.0, resample_fps=5.0
    )
    assert _numbers(window) == [37, 39, 41, 43]  # 4 frames at 5 a second in the middle of [2, 6)


def test_a_clip_holds_the_frames_of_the_rule(tmp_path):
    path = write_numbered(tmp_path / "square.mp4", 100, height=64, width=64)
    fidelity = Fidelity(5, 8, 32)
    clip = read_clip(path, fidelity, crop_ratio=1.0)
    assert clip.shape == (5, 8, 3, 32, 32) and clip.dtype == torch.uint8
    assert _numbers(clip) == frame_indices(100, fidelity).reshape(-1).tolist()
    mirrored = read_clip(path, fidelity, crop_ratio=1.0, augmentation=Augmentation(flip=True))
    assert torch.equal(mirrored, clip.flip(-1))
    assert read_clip(path, fidelity).shape == (5, 8, 3, 32, 32)  # crop 7/8


def test_crops_are_where_they_say(tmp_path):
    frames = np.zeros((8, 64, 96, 3), np.uint8)
    frames[:, :16, :16] = 255  # only the upper left corner is white
    write_video(tmp_path / "corner.mp4", frames, fps=10)
    bright = {}
    for name, view in {
        "corner": Augmentation(0.0, 0.0),
        "mirrored": Augmentation(0.0, 0.0, flip=True),
        "centre": None,
        "far": Augmentation(1.0, 1.0),
    }.items():
        clip = read_clip(tmp_path / "corner.mp4", Fidelity(1, 1, 56), augmentation=view)[0, 0, 0]
        bright[name] = [int(clip[3, 3] > 128), int(clip[3, -4] > 128)]
    assert bright == {"corner": [1, 0], "mirrored": [0, 1], "centre": [0, 0], "far": [0, 0]}


@pytest.mark.parametrize("max_video_bytes", [2**20, 1000])  # whole videos, or frame sets
@pytest.mark.parametrize("fidelity", [Fidelity(32, 4, 48), Fidelity(8, 4, 48), Fidelity(9, 3, 24)])
def test_cached_clips_equal_decoded_ones(video, fidelity, max_video_bytes):
    cache = FrameCache(2**22, max_video_bytes)
    for view in (None, Augmentation(0.1, 0.9, flip=True), Augmentation(0.7, 0.2)):
        options = dict(frame_stride=1, crop_ratio=1.0, augmentation=view)
        decoded = read_clip(video, fidelity, **options)
        first = read_clip(video, fidelity, cache=cache, **options)
        again = read_clip(video, fidelity, cache=cache, **options)
        assert torch.equal(first, decoded) and torch.equal(again, decoded)
        again.zero_()  # a caller may write into its clip
    assert len(cache) == 1


def test_the_cache_drops_the_oldest_and_notices_replaced_files(tmp_path):
    one = 8 * 48 * 56 * 3  # bytes of a video of 8 frames
    cache = FrameCache(2 * one)
    paths = [write_numbered(tmp_path / f"{i}.mp4", 8) for i in range(3)]
    options = dict(frame_stride=1, crop_ratio=1.0, cache=cache)
    for path in (paths[0], paths[1], paths[0], paths[2]):  # 1 is the oldest when 2 comes
        read_clip(path, Fidelity(2, 4, 48), **options)
    assert len(cache) == 2 and cache.num_bytes == 2 * one
    kept = {key[0] for key in cache._entries}
    assert kept == {str(paths[0]), str(paths[2])}
    write_video(paths[0], numbered_frames([200] * 8), fps=10)
    clip = read_clip(paths[0], Fidelity(1, 1, 48), **options)
    whole = read_clip(paths[0], Fidelity(1, 1, 48), frame_stride=1, crop_ratio=1.0)
    assert torch.equal(clip, whole)
    read_clip(paths[1], Fidelity(2, 4, 96), **options)  # larger than the cache: used, not kept
    assert cache.num_bytes <= 2 * one


def test_the_cache_may_be_shared_between_threads(tmp_path):
    paths = [write_numbered(tmp_path / f"{i}.mp4", 4 + i) for i in range(6)]
    cache = FrameCache(3 * 10 * 48 * 56 * 3)
    expected = [read_clip(p, Fidelity(2, 2, 48), crop_ratio=1.0) for p in paths]
    wrong = []

    def work(seed):
        for i in np.random.default_rng(seed).integers(0, 6, 40):
            clip = read_clip(paths[i], Fidelity(2, 2, 48), crop_ratio=1.0, cache=cache)
            if not torch.equal(clip, expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.num_bytes == sum(frames.nbytes for frames in cache._entries.values())


def test_trimmed_clips_hold_their_frames(tmp_path):
    path = write_numbered(tmp_path / "square.mp4", 64, height=64, width=64)
    cache = FrameCache(2**24)
    clip = TrimmedClip(path, "x", 2.0, 5.0)
    for options in ({}, {"cache": cache}, {"cache": cache}):
        frames = read_trimmed_clip(clip, 8, 32, 1, crop_ratio=1.0, **options)
        assert frames.shape == (8, 3, 32, 32) and frames.dtype == torch.uint8
        assert _numbers(frames) == list(range(31, 39))
    late = read_trimmed_clip(clip, 8, 32, 1, crop_ratio=1.0, augmentation=Augmentation(time=1.0))
    assert _numbers(late) == list(range(42, 50))
    with pytest.raises(VideoError, match="starts at 7 s, but 6.4 s decode"):
        read_trimmed_clip(TrimmedClip(path, "x", 7.0, 8.0), 8, 32)


def _requests(folder):
    view = Augmentation(0.2, 0.8, True, 0.9)
    return [
        ClipRequest(folder / "0.mp4", FIDELITY, 1, "tile", 1.0, view),
        ClipRequest(folder / "text.mp4", FIDELITY),
        TrimmedRequest(TrimmedClip(folder / "1.mp4", "x", 0.5, 1.5), 2, 24, 1, 1.0, view),
        ClipRequest(folder / "2.mp4", FIDELITY, resample_fps=5.0, span=(2, 8)),
        ClipRequest(folder / "gone.mp4", FIDELITY),
    ]


def _expected(folder):
    view = Augmentation(0.2, 0.8, True, 0.9)
    options = dict(crop_ratio=1.0, augmentation=view)
    clip = TrimmedClip(folder / "1.mp4", "x", 0.5, 1.5)
    return {
        0: read_clip(folder / "0.mp4", FIDELITY, frame_stride=1, rule="tile", **options),
        2: read_trimmed_clip(clip, 2, 24, 1, **options),
        3: read_clip(folder / "2.mp4", FIDELITY, resample_fps=5.0, span=(2, 8)),
    }


@pytest.mark.parametrize(
    "options",
    [{}, {"workers": 2}, {"workers": 2, "cache_bytes": 2**22}, {"workers": 2, "processes": True}],
    ids=["inline", "threads", "cached", "processes"],
)
def test_clips_come_in_order_and_bad_files_as_errors(folder, options):
    requests, expected = _requests(folder), _expected(folder)
    with ClipReader(**options) as reader:
        for _ in range(2):  # the second time from the cache, where there is one
            found = reader.read(requests)
            for i, clip in expected.items():
                assert torch.equal(found[i], clip) and found[i].shape == requests[i].shape
            for i, words in ((1, "text.mp4.*no decodable video"), (4, "gone.mp4.*No such file")):
                assert isinstance(found[i], VideoError)
                with pytest.raises(VideoError, match=words):
                    raise found[i]
            found[0].zero_()  # the caller's own
        assert reader.info(folder / "2.mp4") == probe(folder / "2.mp4")
        with pytest.raises(ValueError, match="unknown frame rule"):
            reader.read([ClipRequest(folder / "0.mp4", FIDELITY, rule="no")])


def test_several_threads_may_read_at_once(folder):
    expected = {i: read_clip(folder / f"{i}.mp4", FIDELITY) for i in range(3)}
    wrong = []

    def work(reader, i):
        for _ in range(8):
            found = reader.read(
                [ClipRequest(folder / f"{k % 3}.mp4", FIDELITY) for k in (i, i + 1)]
            )
            if not all(torch.equal(found[k], expected[(i + k) % 3]) for k in (0, 1)):
                wrong.append(i)

    for options in ({"cache_bytes": 2**22}, {"processes": True}):
        with ClipReader(2, **options) as reader:
            threads = [threading.Thread(target=work, args=(reader, i)) for i in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert not wrong


REAL = isolated.PROGRAM
BAD = """
import lofi.data.reading as s, os, time
whole = s.ClipRequest.read
def read(request, *args):
    if "crash" in str(request.path): os.abort()
    if "hang" in str(request.path): time.sleep(60)
    return whole(request, *args)
s.ClipRequest.read = read
"""


def test_a_decoder_that_crashes_or_hangs_costs_one_clip(folder, monkeypatch):
    monkeypatch.setattr(isolated, "PROGRAM", BAD + REAL)
    requests = [
        ClipRequest(folder / name, FIDELITY)
        for name in ("crash.mp4", "0.mp4", "hang.mp4", "1.mp4", "2.mp4")
    ]
    with ClipReader(1, processes=True, limit_s=3.0) as reader:
        found = reader.read(requests)
    assert [isinstance(clip, VideoError) for clip in found] == [True, False, True, False, False]
    assert "crash.mp4: the decoder crashed" in str(found[0])
    assert "hang.mp4: no result in 3 s" in str(found[2])
    assert torch.equal(found[4], read_clip(folder / "2.mp4", FIDELITY))


SCRIPT = """
import os
from lofi.data.isolated import run_isolated
print("once")
for i, found in run_isolated(os.path.basename, [("a/b",)]):
    print(i, found)
"""


def test_a_script_needs_no_guard_around_its_code(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "script.py"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    out = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert out.stdout.split("\n") == ["once", "0 b", ""], out.stderr


def test_processes_with_a_cache_are_refused():
    with pytest.raises(ValueError, match="keep no frames"):
        ClipReader(1, processes=True, cache_bytes=100)
