"""Sliding windows against those of the released code on six real videos."""

import csv
import json

import pytest

from lofi.config import PostProcessing, preset
from lofi.data.snippets import windows


@pytest.mark.parametrize("config", ["L256_D64_s5", "L64_D16_s5"])
def test_windows_are_those_of_the_released_code(golden, shared_data, config):
    known = json.loads(golden("thumos_windows.json").read_text())
    expected = known["configs"][config]
    snippets, stride = expected["temporal_scale"], expected["skip_videoframes"]
    segments: dict[str, list] = {name: [] for name in known["feature_rows"]}
    with open(shared_data / "thumos14" / known["annotation_file"], newline="") as file:
        for row in csv.DictReader(file):
            if row["video"] in segments:
                segments[row["video"]].append((float(row["startFrame"]), float(row["endFrame"])))
    inference, training = [], []
    for name, count in known["feature_rows"].items():
        for window in windows(count, snippets, stride):
            frames = {"first_frame": window.first_frame, "last_frame": window.last_frame}
            inference.append({"video": name, **frames})
        for window in windows(count, snippets, stride, segments[name]):
            frames = {"first_frame": window.first_frame, "last_frame": window.last_frame}
            touched = [list(segments[name][row]) for row in window.rows]
            training.append({"video": name, **frames, "gt_frames": touched})
    assert inference == expected["inference_windows"]
    assert training == expected["train_windows"]


def test_short_videos_are_one_window_and_long_ones_overlap_by_half():
    assert [w[:2] for w in windows(7, 4, 5)] == [(0, 15)]
    assert [w.first_frame for w in windows(40, 4, 5)] == [0, 10, 20]
    assert [w.first_frame for w in windows(45, 4, 5)] == [0, 10, 20, 25]  # 1 > 4 / 5 is lost


def test_a_window_is_kept_for_a_segment_that_lies_in_it():
    kept = windows(40, 4, 5, [(0, 18), (19, 21)])  # windows 0-20, 10-30, 20-40
    assert [w.first_frame for w in kept] == [0, 10]
    assert kept[1].rows == (0, 1)
    assert windows(40, 4, 5, []) == []


def test_the_preset_has_the_released_settings():
    config, post = preset("thumos14"), PostProcessing.thumos14()
    for name in (
        "rule",
        "score",
        "suppression",
        "sigma",
        "top_k",
        "class_rule",
        "classes_per_video",
    ):
        assert getattr(config.detect, name) == getattr(post, name), name
    assert (config.head.variant, config.head.resolution, config.full.snippets) == (
        "thumos",
        16,
        256,
    )


def test_windows_need_frames():
    with pytest.raises(ValueError, match="at least 1"):
        windows(0)
