"""Targets of a video: hand-sized numbers, brute force, labels of the released data sets."""

import json

import numpy as np
import pytest
import torch

from lofi.data import Segment, Video
from lofi.data.snippets import Grid
from lofi.heads import BMN, GTAD, Targets, collate_targets, targets, valid_mask
from lofi.heads.bmn import duration_start

SEGMENTS = [(12, 47.5), (50, 51.2), (80, 119)]


def on(labels: torch.Tensor) -> list[int]:
    return (labels > 0.5).nonzero().flatten().tolist()


def test_labels_of_the_specification_at_100_snippets():
    t = targets(SEGMENTS, 120, 100)
    assert on(t.start) == [9, 10, 40, 41, 42, 65, 66, 67]
    assert on(t.end) == [38, 39, 40, 41, 42, 43, 98, 99]
    assert t.iou.double().sum().item() == pytest.approx(1739.577082, abs=1e-6)
    assert (t.iou > 0.9).sum() == 36 and (t.iou > 0.7).sum() == 381
    assert ((t.iou > 0.3) & (t.iou <= 0.7)).sum() == 2538
    assert ((t.iou > 0) & (t.iou <= 0.3)).sum() == 1799
    assert t.iou[29, 10].item() == pytest.approx(0.986111, abs=1e-6)


def test_labels_of_the_specification_at_25_snippets():
    t = targets(SEGMENTS, 120, 25)
    assert on(t.start) == [1, 2, 3, 9, 10, 11, 15, 16, 17] and on(t.end) == [8, 9, 10, 11, 23, 24]
    assert t.start[:5].tolist() == [0.25, 0.75, 1, 0.75, 0.25]
    assert t.iou.double().sum().item() == pytest.approx(116.803922, abs=1e-6)
    b = targets(SEGMENTS, 120, 25, rule="bmn")
    assert on(b.start) == [2, 3, 9, 10, 11, 16, 17, 18] and on(b.end) == [9, 10, 11, 12, 24]
    assert torch.equal(b.iou, t.iou)


def test_tiou_map_equals_brute_force():
    rng = np.random.default_rng(0)
    segments = np.sort(rng.uniform(0, 30, (5, 2)), 1)
    t = targets(segments, 30, 12, durations=7)
    for d in range(7):
        for s in range(12):
            low, high = s * 30 / 12, (s + d + 1) * 30 / 12
            best = 0.0
            for a, b in segments if s + d < 12 else ():
                inter = max(0.0, min(b, high) - max(a, low))
                best = max(best, inter / (high - low + b - a - inter))
            assert t.iou[d, s].item() == pytest.approx(best, abs=1e-7)


@pytest.mark.parametrize("snippets", [25, 100])
def test_labels_equal_those_of_the_released_data_sets(golden, snippets):
    videos = json.loads(golden("labels_videos.json").read_text())["videos"]
    with np.load(golden(f"labels_L{snippets}.npz")) as z:
        for i, video in enumerate(videos):
            duration = video["feature_frame"] / video["duration_frame"] * video["duration_second"]
            segments = [a["segment"] for a in video["annotations"]]
            for rule, name in (("anet", "gtad"), ("bmn", "bmn")):
                t = targets(segments, duration, snippets, rule=rule)
                iou = torch.from_numpy(z[f"{name}_iou"][i])
                iou = iou * valid_mask(snippets) if rule == "anet" else duration_start(iou)
                torch.testing.assert_close(t.iou, iou, rtol=0, atol=1e-7)
                for key in ("start", "end"):
                    theirs = torch.from_numpy(z[f"{name}_{key}"][i])
                    torch.testing.assert_close(getattr(t, key), theirs, rtol=0, atol=1e-7)
                    assert on(getattr(t, key)) == on(theirs)


@pytest.mark.parametrize("config", ["L256_D64_s5", "L64_D16_s5"])
def test_labels_equal_those_of_the_released_thumos_windows(golden, config):
    options = json.loads(golden("thumos_windows.json").read_text())["configs"][config]
    snippets, durations = options["temporal_scale"], options["max_duration"]
    with np.load(golden("thumos_windows.npz")) as z:
        for i, row in enumerate(options["label_rows"]):
            window = options["train_windows"][row]
            edge = window["first_frame"] - 2.5  # frames stand in for seconds here
            t = targets(
                np.array(window["gt_frames"]) - edge,
                5 * snippets,
                snippets,
                durations,
                rule="thumos",
                iou_shift_s=edge - int(edge),  # the released map truncates the window's offset
            )
            expected = [
                torch.from_numpy(z[f"{config}_{key}"][i]) for key in ("iou", "start", "end")
            ]
            expected[0] = expected[0] * valid_mask(snippets, durations)
            for ours, theirs in zip(t[:3], expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


def video_of(segments) -> Video:
    """Times count from the beginning of the grid."""
    parts = tuple(Segment(float(start), float(end), "jump") for start, end in segments)
    return Video("v", None, None, None, None, parts)


@pytest.mark.parametrize("config", ["L256_D64_s5", "L64_D16_s5"])
def test_a_head_labels_windows_as_released(golden, config):
    options = json.loads(golden("thumos_windows.json").read_text())["configs"][config]
    snippets, durations = options["temporal_scale"], options["max_duration"]
    head = GTAD(4, durations=durations, variant="thumos")
    whole = Grid.strided(10_000, stride=5, fps=30.0, num_frames=50_000)
    with np.load(golden("thumos_windows.npz")) as z:
        for i, row in enumerate(options["label_rows"]):
            window = options["train_windows"][row]
            times = (np.array(window["gt_frames"]) - window["first_frame"]) / 30
            grid = whole.window(window["first_frame"] // 5, snippets)
            found = head.targets(video_of(times), grid)
            for key in ("iou", "start", "end"):
                theirs = torch.from_numpy(z[f"{config}_{key}"][i])
                theirs = theirs * valid_mask(snippets, durations) if key == "iou" else theirs
                torch.testing.assert_close(getattr(found, key), theirs, rtol=0, atol=1e-7)


def test_heads_label_with_their_own_rule_and_leave_out_empty_segments():
    video = video_of([*SEGMENTS, (60, 60)])
    shifted = Grid.strided(25, stride=6, fps=1.25, num_frames=150, offset_s=0.4)
    for head, rule in ((BMN(4), "bmn"), (GTAD(4), "anet"), (GTAD(4, variant="thumos"), "thumos")):
        expected = targets(SEGMENTS, 120, 25, rule=rule)
        for grid in (Grid.whole(25, 120.0), shifted):  # 120 s; published features know their offset
            found = head.targets(video, grid)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    few = GTAD(4, durations=3).targets(video, Grid.whole(25, 120.0))
    assert few.iou.shape == (3, 25)


def test_exactly_half_a_window_is_not_a_boundary():
    """A segment that starts with the video covers snippet 1's window [0.5, 2.5] by exactly half."""
    t = targets([(0, 10)], 10, 10)
    assert t.start[:3].tolist() == [1.0, 0.5, 0.0] and on(t.start) == [0]


def test_videos_without_segments_and_degenerate_segments():
    empty = targets([], 10, 6)
    assert not any(t.any() for t in empty) and empty.iou.shape == (6, 6)
    point = targets([(5, 5)], 10, 6)
    assert point.iou.sum() == 0 and point.start.sum() > 0 and not point.best.any()
    one = targets([(0, 10)], 10, 1)
    assert one.iou.tolist() == [[1.0]]
    late = targets([(11, 15)], 10, 6)  # annotation past the end
    assert late.iou.sum() == 0 and on(late.start) == [5]
    assert targets(torch.tensor([[1.0, 2.0]]), 10, 6, 3).iou.shape == (3, 6)


def test_best_anchor_is_marked_only_where_no_anchor_exceeds_nine_tenths():
    t = targets([(0.0, 2.5), (5.3, 5.6)], 10, 8)  # snippets 0 and 1 exactly; part of snippet 4
    assert t.iou[1, 0] == 1 and not t.best[1, 0]
    assert t.best.nonzero().tolist() == [[0, 4]]
    assert torch.equal(targets([(0.0, 2.5)], 10, 8).best, torch.zeros(8, 8, dtype=torch.bool))


def test_collating_stacks_and_checks_shapes():
    both = collate_targets([targets([(1, 2)], 10, 6), targets([], 10, 6)])
    assert isinstance(both, Targets) and both.iou.shape == (2, 6, 6) and both.start.shape == (2, 6)
    with pytest.raises(ValueError, match="expected equal ones"):
        collate_targets([targets([], 10, 6), targets([], 10, 7)])
    with pytest.raises(ValueError, match="at least one"):
        collate_targets([])


def test_valid_mask_is_a_triangle_cut_at_the_longest_duration():
    assert valid_mask(4, 2).tolist() == [[True] * 4, [True] * 3 + [False]]
    assert [valid_mask(n).sum().item() for n in (25, 50, 100)] == [325, 1275, 5050]
    assert valid_mask(256, 64).sum() == 14368


@pytest.mark.parametrize(
    "segments, duration, options, message",
    [
        ([(3, 2)], 10, {}, r"segment \[3.0, 2.0\]"),
        ([(float("nan"), 2)], 10, {}, "segment"),
        ([(1, 2, 3)], 10, {}, r"shape \(1, 3\)"),
        ([(1, 2)], 0, {}, "duration_s is 0"),
        ([(1, 2)], 10, {"rule": "opentad"}, "rule is 'opentad'"),
    ],
)
def test_bad_annotations_are_refused(segments, duration, options, message):
    with pytest.raises(ValueError, match=message):
        targets(segments, duration, 8, **options)
