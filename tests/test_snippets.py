"""Where snippets lie and which frames they hold, read off frames that carry their number."""

import math
import threading

import numpy as np
import pytest
import torch
from numbered_video import numbered_frames, read_numbers, write_numbered

from lofi.data.annotations import TrimmedClip
from lofi.data.copies import write_video
from lofi.data.frame_cache import FrameCache
from lofi.data.snippets import (
    Augmentation,
    crop_of,
    frame_indices,
    read_clip,
    read_trimmed_clip,
    resampled_frames,
    seconds_to_snippet,
    snippet_centres,
    snippet_to_seconds,
    window_indices,
)
from lofi.data.video import VideoError
from lofi.fidelity import Fidelity


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_numbered(tmp_path_factory.mktemp("snippets") / "numbered.mp4")  # 128 frames


def _numbers(clip):
    """Frame numbers of (..., 3, S, S) crops that show the whole width."""
    return read_numbers(clip.movedim(-3, -1).numpy())


def test_dense_snippets_tile_the_video():
    expected = np.arange(128).reshape(32, 4)
    full = Fidelity(32, 4, 48)
    assert np.array_equal(frame_indices(128, full, frame_stride=1), expected)
    assert np.array_equal(frame_indices(128, full, rule="tile"), expected)


def test_centred_snippets_follow_the_written_rule():
    """64 frames at stride 8 around the middle: offsets -28, -20, ..., 28 (LoFi, section 3)."""
    for num_frames, length in ((1000, 100), (997, 25), (31, 50), (1, 3)):
        found = frame_indices(num_frames, Fidelity(length, 8, 224))
        for i in range(length):
            centre = (i + 0.5) * num_frames / length - 0.5
            for k, offset in enumerate(range(-28, 29, 8)):
                exact = min(max(math.floor(centre + offset + 0.5), 0), num_frames - 1)
                assert found[i, k] == exact
        assert found.dtype == np.int64 and found.shape == (length, 8)


@pytest.mark.parametrize("num_frames, length, frames", [(100, 7, 3), (5, 4, 8), (64, 16, 4)])
def test_tiles_stay_inside_their_snippet_and_bsp_frames_are_neighbours(num_frames, length, frames):
    fidelity = Fidelity(length, frames, 8)
    tile = frame_indices(num_frames, fidelity, rule="tile")
    left = np.floor(np.arange(length) * num_frames / length)[:, None]
    right = np.ceil((np.arange(length) + 1) * num_frames / length)[:, None]
    assert ((tile >= left) & (tile < right)).all()
    bsp = frame_indices(num_frames, fidelity, frame_stride=8, rule="bsp")
    assert (np.diff(bsp) <= 1).all() and np.array_equal(
        bsp, frame_indices(num_frames, fidelity, frame_stride=1)
    )


@pytest.mark.parametrize("rule", ["centred", "tile", "bsp"])
def test_jitter_moves_every_snippet_inside_its_interval(rule):
    fidelity = Fidelity(7, 3, 8)
    still = frame_indices(1000, fidelity, 8, rule)
    assert np.array_equal(frame_indices(1000, fidelity, 8, rule, [0.5] * 7), still)
    places = np.random.default_rng(0).uniform(size=7)
    moved = frame_indices(1000, fidelity, 8, rule, places)
    shift = (places - 0.5) * 1000 / 7  # frames; the first and last snippet stop at the ends
    assert np.abs((moved - still)[1:-1] - shift[1:-1, None]).max() <= 1
    for edge in (0.0, 1 - 1e-9):
        extreme = frame_indices(1000, fidelity, 8, rule, [edge] * 7)
        assert extreme.min() >= 0 and extreme.max() <= 999
    with pytest.raises(ValueError, match="jitter for 3 snippets, the fidelity has 7"):
        frame_indices(1000, fidelity, jitter=[0.5] * 3)


@pytest.mark.parametrize(
    "num_frames, fps, rate", [(300, 30.0, 15.0), (97, 25.0, 30.0), (5, 2.1, 30)]
)
def test_resampled_videos_show_the_frame_on_screen(num_frames, fps, rate):
    found = resampled_frames(num_frames, fps, rate)
    assert len(found) == max(1, round(num_frames * rate / fps))
    step = num_frames / fps / len(found)  # seconds of a frame of the other rate
    for j, frame in enumerate(found):
        assert (
            frame / fps <= (j + 0.5) * step + 1e-9 and (j + 0.5) * step < (frame + 1) / fps + 1e-9
        )
    for same in (0.0, fps):
        assert np.array_equal(resampled_frames(num_frames, fps, same), np.arange(num_frames))
    assert resampled_frames(3, 30.0, 1.0).tolist() == [1]  # never less than one frame
    with pytest.raises(ValueError, match="resample_fps"):
        resampled_frames(3, 30.0, -1.0)


@pytest.mark.parametrize("rule", ["centred", "tile", "bsp"])
def test_a_window_is_cut_like_a_video_of_its_own(rule):
    fidelity = Fidelity(16, 3, 8)
    alone = frame_indices(80, fidelity, 2, rule)[1:-1]  # its ends clamp
    window = frame_indices(1000, fidelity, 2, rule, span=(200, 280))
    assert np.array_equal(window[1:-1], alone + 200)
    assert window.min() >= 196 and window.max() <= 283  # the ends look into the neighbourhood
    late = frame_indices(1000, fidelity, 2, rule, span=(960, 1040))
    assert late.max() == 999 and (late[-8:] == 999).all()
    with pytest.raises(ValueError, match="span is frames"):
        frame_indices(1000, fidelity, span=(5, 5))


def test_bad_requests_for_frames_are_refused():
    fidelity = Fidelity(4, 4, 8)
    with pytest.raises(ValueError, match="known: centred, tile, bsp"):
        frame_indices(10, fidelity, rule="random")
    for num_frames, stride in ((0, 1), (10, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            frame_indices(num_frames, fidelity, frame_stride=stride)


def test_times_and_snippet_positions_are_inverse():
    duration, length = 12.8, 25
    for position in (0.0, 0.5, 12.5, 25.0):
        seconds = snippet_to_seconds(position, duration, length)
        assert math.isclose(seconds_to_snippet(seconds, duration, length), position)
    assert snippet_to_seconds(25, duration, length) == duration
    times = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    back = snippet_to_seconds(seconds_to_snippet(times, duration, length), duration, length)
    assert torch.allclose(back, times, atol=1e-12)


def test_the_middle_of_a_snippet_is_the_time_of_its_middle_frame():
    num_frames, fps, length = 300, 25.0, 7
    by_frame = (snippet_centres(num_frames, length) + 0.5) / fps
    by_snippet = snippet_to_seconds(np.arange(length) + 0.5, num_frames / fps, length)
    assert np.allclose(by_frame, by_snippet, atol=1e-12)


@pytest.mark.parametrize("pixels, short", [(224, 256), (112, 128), (158, 181)])
def test_every_resolution_sees_the_same_field_of_view(pixels, short):
    crop = crop_of(480, 854, pixels)
    assert (crop.height, crop.width) == (short, math.floor(854 * short / 480 + 0.5))
    assert abs(2 * crop.left + pixels - crop.width) <= 1  # the centre, to half a pixel
    assert abs(2 * crop.top + pixels - crop.height) <= 1
    view = Augmentation(top=1.0, left=0.25, flip=True)
    crop = crop_of(480, 854, pixels, augmentation=view)
    assert crop.top + pixels == crop.height and crop.flip
    assert abs(crop.left / crop.width - 0.25 * (1 - 224 / (256 * 854 / 480))) < 1 / crop.width


def test_the_toy_crop_uses_the_whole_short_side():
    assert crop_of(48, 56, 48, crop_ratio=1.0)[:4] == (48, 56, 0, 4)
    assert crop_of(48, 56, 24, crop_ratio=1.0)[:4] == (24, 28, 0, 2)
    with pytest.raises(ValueError, match="crop_ratio"):
        crop_of(48, 56, 48, crop_ratio=1.5)


def test_draws_are_uniform_reproducible_and_mirror_half_of_the_time():
    draws = [Augmentation.draw(torch.Generator().manual_seed(seed)) for seed in range(400)]
    assert draws[7] == Augmentation.draw(torch.Generator().manual_seed(7))
    assert 160 < sum(d.flip for d in draws) < 240
    for name in ("top", "left", "time"):
        values = [getattr(d, name) for d in draws]
        assert 0 <= min(values) < 0.05 and 0.95 < max(values) <= 1
        assert abs(sum(values) / 400 - 0.5) < 0.06


def test_jitter_is_drawn_after_everything_else():
    plain, jittered = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    without, view = Augmentation.draw(plain), Augmentation.draw(jittered, snippets=5)
    assert (view.top, view.left, view.flip, view.time) == (
        without.top, without.left, without.flip, without.time,
    )  # fmt: skip
    assert without.jitter is None and len(view.jitter) == 5
    four = torch.rand(4, generator=torch.Generator().manual_seed(3))
    assert plain.get_state().equal(_after(3, 4)) and float(four[0]) == without.top


def _after(seed, numbers):
    generator = torch.Generator().manual_seed(seed)
    torch.rand(numbers, generator=generator)
    return generator.get_state()


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


def test_windows_of_trimmed_clips(video):
    # 10 frames a second, so [2, 5) s holds frames 20 to 49
    clip = TrimmedClip(video, "x", 2.0, 5.0)

    def window(frames, stride, time=0.5, of=clip):
        return window_indices(of, 128, 10.0, frames, stride, Augmentation(time=time)).tolist()

    assert window(4, 1, time=0.0) == [20, 21, 22, 23]
    assert window(4, 1, time=1.0) == [46, 47, 48, 49]
    assert window(4, 2) == [32, 34, 36, 38]  # 8 frames, 31 to 38, in the middle of 30
    assert window(8, 8)[0] == 20 and window(8, 8)[-1] == 49  # longer than the clip: ends repeat
    assert window(4, 1, of=TrimmedClip(video, "x", 3.0, 3.01)) == [30] * 4
    assert window(2, 64, of=TrimmedClip(video, "x")) == [32, 96]
    assert window(8, 1, 1.0, of=TrimmedClip(video, "x", 12.0, 99.0)) == [*range(120, 128)]


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
