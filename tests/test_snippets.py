"""Where snippets lie, which frames they hold, and which part of a frame is seen."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lofi.config import DataConfig, PublishedFeatures
from lofi.data import VideoInfo
from lofi.data.annotations import TrimmedClip, Video
from lofi.data.datasets import video_grid, video_request
from lofi.data.features import FeatureHeader
from lofi.data.published import published_grid
from lofi.data.snippets import (
    Augmentation,
    crop_of,
    frame_indices,
    resampled_frames,
    seconds_to_snippet,
    snippet_centres,
    snippet_to_seconds,
    window_indices,
)
from lofi.fidelity import Fidelity
from lofi.training.augmentation import draw_geometry


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
    early = frame_indices(1000, fidelity, 2, rule, span=(-40, 40))
    assert early.min() == 0 and (early[:6] == 0).all()
    with pytest.raises(ValueError, match="span is frames"):
        frame_indices(1000, fidelity, span=(5, 5))


@pytest.mark.parametrize("stride", [1, 4, 5, 15, 16, 21])
@pytest.mark.parametrize("num_frames", [9, 16, 17, 100, 103])
def test_windows_begin_every_few_frames_and_stay_inside_the_video(num_frames, stride):
    """As VideoMAEv2's features were made: 16 frames from `range(0, num_frames - 15, stride)` on."""
    expected = [range(s, s + 16) for s in range(0, max(1, num_frames - 15), stride)]
    data = DataConfig(rule="window", frame_stride=1, window_stride=stride)
    grid = video_grid(data, VideoInfo(num_frames, 25.0, 8, 8), Fidelity(64, 16, 8))
    fidelity = Fidelity(grid.steps, 16, 8)
    request = video_request(data, "v.mp4", fidelity, grid=grid)
    found = frame_indices(num_frames, fidelity, 1, "window", span=request.span)
    assert found.tolist() == [[min(f, num_frames - 1) for f in window] for window in expected]
    # in time they lie where published features of these windows do
    video = Video("v", None, num_frames / 25, 25.0, None, ())
    setting = PublishedFeatures("", stride, 16)
    assert grid == published_grid(grid.steps, setting, video)
    header = FeatureHeader(None, 9, 16, 8, 1, "window", fps=25.0, window_stride=stride)
    assert replace(header, num_frames=num_frames).grid() == grid
    # a window of the video, at a quarter of the steps, is centred in the middles of four
    part = replace(grid.window(4, 8), steps=2)
    request = video_request(data, "v.mp4", Fidelity(2, 16, 8), grid=part)
    low = frame_indices(1000, Fidelity(2, 16, 8), 1, "window", span=request.span)
    middles = (np.asarray([5.5, 9.5]) * stride) + 7.5
    assert (abs(low.mean(1) - middles) <= 0.5).all()
    with pytest.raises(ValueError, match="set data.window_stride"):
        video_request(replace(data, window_stride=0), "v.mp4", fidelity)


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


def test_windows_of_trimmed_clips():
    # 10 frames a second, so [2, 5) s holds frames 20 to 49
    clip = TrimmedClip(Path("a.mp4"), "x", 2.0, 5.0)

    def window(frames, stride, time=0.5, of=clip):
        return window_indices(of, 128, 10.0, frames, stride, Augmentation(time=time)).tolist()

    assert window(4, 1, time=0.0) == [20, 21, 22, 23]
    assert window(4, 1, time=1.0) == [46, 47, 48, 49]
    assert window(4, 2) == [32, 34, 36, 38]  # 8 frames, 31 to 38, in the middle of 30
    assert window(8, 8)[0] == 20 and window(8, 8)[-1] == 49  # longer than the clip: ends repeat
    assert window(4, 1, of=TrimmedClip(Path("a.mp4"), "x", 3.0, 3.01)) == [30] * 4
    assert window(2, 64, of=TrimmedClip(Path("a.mp4"), "x")) == [32, 96]
    assert window(8, 1, 1.0, of=TrimmedClip(Path("a.mp4"), "x", 12.0, 99.0)) == [*range(120, 128)]


def test_multi_scale_crops_have_tsms_sizes_shapes_and_places():
    """A crop of (h, w) pixels of the source becomes a square: its scale says which h and w."""
    height, width, pixels = 256, 340, 224
    generator, sizes, places = torch.Generator().manual_seed(0), set(), set()
    for _ in range(2000):
        view = draw_geometry("multiscale", generator)
        crop = crop_of(height, width, pixels, augmentation=view)
        seen = round(pixels * height / crop.height), round(pixels * width / crop.width)
        sizes.add(seen)
        room = crop.height - pixels, crop.width - pixels
        assert 0 <= crop.top <= room[0] and 0 <= crop.left <= room[1]
        places.add((view.top, view.left))
    sides = [256, 224, 192, 169]  # 1, 0.875, 0.75 and 0.66 of the short side
    allowed = {(a, b) for i, a in enumerate(sides) for j, b in enumerate(sides) if abs(i - j) < 2}
    assert sizes == allowed and len(allowed) == 10
    quarters = {(a / 4, b / 4) for a in range(5) for b in range(5)}
    assert len(places) == 13 and places < quarters
    assert {(0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5), (0.25, 0.75)} < places
    snapped = crop_of(226, 226, 224, augmentation=Augmentation(scale=(1.0, 1.0)))
    assert snapped[:4] == (226, 226, 1, 1)  # within 3 pixels of the target: not resized
