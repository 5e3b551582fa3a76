"""Sliding windows through all stages: what is trained on, features, detections, evaluation."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lofi import config as configs
from lofi.data import ClipReader, Segment, Video, VideoInfo, probe
from lofi.data import windows as windows_module
from lofi.data.datasets import open_datasets
from lofi.data.toyworld import TINY, write_world
from lofi.data.windows import training_items
from lofi.detection import PostProcessing, read_detections
from lofi.detection.classes import is_class_file, read_video_classes
from lofi.detection.detector import Detector, detect_in_windows
from lofi.experiment import run_procedure
from lofi.fidelity import Fidelity
from lofi.figures.tables import results_table
from lofi.heads import valid_mask
from lofi.training import full_fidelity
from lofi.training.full_fidelity import clip_features, head_inputs, load_features
from lofi.training.joint import _Joint, read_batch, video_request, video_targets
from lofi.training.models import common_settings, load_encoder
from lofi.training.run_folder import read_metrics

SMALL = {
    "acp.epochs": 2, "acp.batch": 8, "lofi.training.epochs": 2, "head_training.epochs": 2,
    "data.window_stride": 3, "detect.rule": "thumos", "detect.class_rule": "thumos",
    "head.durations": 12, "detect.top_k": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Videos of 128 frames: 43 snippets, windows of 16 from snippets 0, 8, 16, 24."""
    folder = tmp_path_factory.mktemp("sliding")
    world = replace(TINY, source_clips=(16, 4), videos=(8, 3), video_frames=128)
    write_world(folder / "world", world, 0)
    config = configs.override(configs.preset("tiny"), SMALL | {"data.world": str(folder / "world")})
    results = run_procedure(config, folder / "run", ("acp", "c-lofi"))
    return config, folder / "run", results, open_datasets(config.data, 0, folder / "run")


@pytest.mark.parametrize("name", ["L256_D64_s5", "L64_D16_s5"])
def test_training_windows_and_labels_are_the_released_ones(golden, shared_data, name, monkeypatch):
    """From annotations in seconds and the frame rate, on real THUMOS14 videos."""
    known = json.loads(golden("thumos_windows.json").read_text())
    options = known["configs"][name]
    snippets, durations = options["temporal_scale"], options["max_duration"]
    rows, segments = known["feature_rows"], {video: [] for video in known["feature_rows"]}
    with open(shared_data / "thumos14" / known["annotation_file"], newline="") as file:
        for row in csv.DictReader(file):
            if row["video"] in rows:
                times = (float(row[x]) / 30 for x in ("startFrame", "endFrame"))
                segments[row["video"]].append(Segment(*times, row["type"]))
    monkeypatch.setattr(
        windows_module, "probe", lambda path: VideoInfo(rows[path.name], 30.0, 320, 180)
    )
    videos = [Video(v, Path(v), None, None, "train", tuple(segments[v])) for v in rows]
    changes = {"full.snippets": snippets, "head.durations": durations}
    config = configs.override(configs.preset("thumos14"), changes)
    items = training_items(videos, config.data, snippets)
    expected = [(w["video"], w["first_frame"]) for w in options["train_windows"]]
    assert [(item.id, item.span[0]) for item in items] == expected
    with np.load(golden("thumos_windows.npz")) as z:
        for i, row in enumerate(options["label_rows"]):
            found = video_targets(config, items[row], 0.0, config.full)
            for key in ("iou", "start", "end"):
                theirs = torch.from_numpy(z[f"{name}_{key}"][i])
                theirs = theirs * valid_mask(snippets, durations) if key == "iou" else theirs
                torch.testing.assert_close(getattr(found, key), theirs, rtol=0, atol=1e-7)


def test_without_a_stride_nothing_changes(run):
    whole = replace(run[0].data, window_stride=0)
    assert configs.preset("thumos14").data.window_stride == 5
    assert training_items(run[3].train, whole, 16) == list(run[3].train)
    assert "window_stride" not in common_settings(configs.preset("tiny"))["sampling"]
    features = torch.rand(3, 16)
    assert head_inputs(configs.preset("tiny"), features)[0][1] is features


def test_windows_hold_the_segments_of_their_video(run):
    config, _, _, data = run
    items = training_items(data.train, config.data, 16)
    videos = {video.id: video for video in data.train}
    assert {item.span[0] for item in items} <= {0, 24, 48, 72}
    for item in items:
        assert item.span[1] - item.span[0] == 48 and item.duration_s == 6.0  # 8 frames a second
        given = {(s.start_s, s.end_s) for s in videos[item.id].segments}
        moved = {(s.start_s + item.span[0] / 8, s.end_s + item.span[0] / 8) for s in item.segments}
        assert moved and moved <= given
        assert any(s.start_s > -0.2 * 6 and s.end_s < 1.2 * 6 for s in item.segments)
    covered = {(i.id, s.label, s.start_s + i.span[0] / 8) for i in items for s in i.segments}
    short = {(v.id, s.label, s.start_s) for v in videos.values() for s in v.segments
             if s.end_s - s.start_s <= 3}  # fmt: skip
    assert short <= covered  # no longer than the overlap of two windows


def test_features_of_windows_are_slices_of_those_of_the_video(run):
    config, out, _, data = run
    encoder = load_encoder(config, out, "c-lofi")[0].eval()
    video = data.test[0]
    features = load_features(out, "c-lofi", [video])[video.id]
    assert features.shape[1] == 43
    inputs = head_inputs(config, features)
    assert [first for first, _ in inputs] == [0, 24, 48, 72]
    for first, part in inputs[:3:2]:
        request = video_request(config, video.path, config.full, span=(first, first + 48))
        torch.testing.assert_close(part, clip_features(encoder, request.read()))
    long = configs.override(config, {"full.snippets": 64})
    ((first, part),) = head_inputs(long, features)
    assert first == 0 and torch.equal(part[:, :43], features) and not part[:, 43:].any()


def test_snippets_behind_the_end_have_no_features_in_stage_two(run):
    config, _, _, data = run
    long = configs.override(config, {"full.snippets": 64})  # 192 of 128 frames
    items = training_items(data.train[:2], long.data, 64)
    with ClipReader() as reader:
        batch = read_batch(long, reader, None, items, Fidelity(16, 4, 20), 0)
        inner = training_items(data.train[:1], config.data, 16)[:1]
        assert read_batch(config, reader, None, inner, Fidelity(8, 4, 20), 0).inside.all()
    assert batch.inside.tolist() == [[[1.0] * 11 + [0.0] * 5]] * 2  # snippet 10 begins at 120


def test_stage_two_reads_the_frames_of_its_windows(run):
    config, _, _, data = run
    plain = configs.override(config, {"lofi.training.augment": "none"})
    items, low = training_items(data.train, config.data, 16)[:6], Fidelity(8, 4, 20)
    with ClipReader() as reader:
        batch = read_batch(plain, reader, None, items, low, 0)
    for item, clip, iou in zip(items, batch.clips, batch.labels.iou):
        assert torch.equal(clip, video_request(plain, item.path, low, span=item.span).read())
        assert torch.equal(iou, video_targets(plain, item, 0.0, low).iou) and iou.any()
    assert len({item.span for item in items}) > 1


def test_what_lies_behind_the_end_does_not_reach_the_losses_of_stage_two(run):
    config, out, _, data = run
    long = configs.override(config, {"full.snippets": 64})
    items = training_items(data.train[:2], long.data, 64)
    joint = _Joint(long, load_encoder(config, out, "acp")[0], items, "cpu")
    with ClipReader() as reader:
        batch = read_batch(long, reader, None, items, Fidelity(16, 4, 20), 0)
    found = []
    for place in (slice(11, None), slice(10, 11)):
        other = batch.clips.clone()
        other[:, place] = 255 - other[:, place]
        changed = batch._replace(clips=other)
        found.append([float(joint.losses(b, 0)["loss"]) for b in (batch, changed)])
    assert found[0][0] == found[0][1] and found[1][0] != found[1][1]


def test_stage_three_trains_on_the_features_of_its_windows(run, tmp_path, monkeypatch):
    config, out, _, data = run
    (tmp_path / "c-lofi").mkdir()
    for part in ("encoder", "features"):
        (tmp_path / "c-lofi" / part).symlink_to(out / "c-lofi" / part)
    seen = []

    def look(training, *_):
        seen.append(training)
        raise InterruptedError

    monkeypatch.setattr(full_fidelity, "fit", look)
    with pytest.raises(InterruptedError):
        full_fidelity.train_head(config, tmp_path, "c-lofi")
    items = training_items(data.train, config.data, 16)
    features = load_features(out, "c-lofi", data.train)
    x, y, _, _ = seen[0].load(0)
    chosen = [items[i] for i in seen[0].batches.at(0)]
    assert len({item.span for item in chosen}) > 1
    for item, given, iou in zip(chosen, x, y.iou, strict=True):
        assert torch.equal(given, dict(head_inputs(config, features[item.id]))[item.span[0]])
        assert torch.equal(iou, video_targets(config, item, 0.0, config.full).iou)


def test_all_stages_leave_detections_inside_the_videos(run):
    _, out, _, data = run
    assert len(read_metrics(out / "c-lofi" / "encoder")) > 0
    for kind in ("shared", "own", "oracle"):
        found = read_detections(out / "c-lofi" / "detections" / f"{kind}.json")
        assert sorted(found) == sorted(video.id for video in data.test)
        for video in data.test:
            duration = probe(video.path).duration_s
            assert 0 < len(found[video.id]) <= 40
            assert all(0 <= d.start_s < d.end_s <= duration for d in found[video.id])
        assert max(d.end_s for d in sum(found.values(), [])) > 9  # not in the first windows only


def test_one_file_has_the_detections_of_the_stage(run):
    _, out, _, data = run
    own = read_detections(out / "c-lofi" / "detections" / "own.json")
    found = Detector.load(out, "c-lofi").detect(data.test[0].path)
    assert sorted(found) == sorted(own[data.test[0].id])


def test_results_follow_the_protocol_of_thumos14(run):
    _, out, results, _ = run
    assert results["protocol"] == "thumos14" and results["tious"] == [0.3, 0.4, 0.5, 0.6, 0.7]
    assert json.loads((out / "results.json").read_text())["protocol"] == "thumos14"
    table = results_table(results)
    assert table.header[3:] == ("@0.3", "@0.4", "@0.5", "@0.6", "@0.7")
    assert len(table.rows) == 6 and not any("–" in row for row in table.rows)


INFO = VideoInfo(100, 5.0, 40, 40)  # 20 snippets of a second
WINDOWED = configs.override(
    configs.preset("tiny"), {"data.window_stride": 5, "full.snippets": 8, "detect.rule": "thumos"}
)
POST = PostProcessing("thumos", sigma=0.46, top_k=5)


def oracle(start: int, end: int):
    """A head that knows where the action is: features hold the number of their snippet."""

    def maps(features):
        snippets = features.shape[1]
        confidence = np.zeros((2, snippets, snippets), np.float32)
        d, s = end - start - 1, start - int(features[0, 0])
        if s >= 0 and s + d + 1 < snippets:
            confidence[:, d, s] = 1
        return confidence, np.ones(snippets, np.float32), np.ones(snippets, np.float32)

    return maps


def test_an_action_on_a_window_boundary_is_found_in_the_next_window():
    """20 snippets, windows 0-8, 4-12, 8-16, 12-20; the action, 6-10, is whole in the second."""
    numbers = torch.arange(20.0)[None]
    (best, *_) = detect_in_windows(WINDOWED, oracle(6, 10), numbers, INFO, POST)
    assert (best.start_s, best.end_s, best.score) == (6.0, 10.0, 1.0)
    twice = detect_in_windows(WINDOWED, oracle(5, 7), numbers, INFO, POST)  # two windows see it
    assert twice[0][:2] == (5.0, 7.0) and twice[0].score == 1
    assert all(d.score < 0.2 for d in twice[1:])  # the copy: exp(-1 / 0.46) = 0.114


def test_segments_of_sixty_snippets_are_left_out_by_the_thumos_rule_only():
    """300 frames at stride 5, as released."""
    long = configs.override(WINDOWED, {"full.snippets": 70})
    info, numbers = replace(INFO, num_frames=350), torch.arange(70.0)[None]
    for length, rule, count in ((59, "thumos", 1), (60, "thumos", 0), (60, "gtad", 1)):
        found = detect_in_windows(
            long, oracle(2, 2 + length), numbers, info, replace(POST, rule=rule)
        )
        assert len(found) == count


def test_nothing_is_proposed_behind_the_end_of_a_short_video():
    """27 frames are six snippets of a window of eight; the last one is cut short."""
    info = replace(INFO, num_frames=27)
    maps = np.ones((2, 8, 8)), np.ones(8), np.ones(8)
    found = detect_in_windows(
        WINDOWED, lambda _: maps, torch.rand(1, 6), info, replace(POST, top_k=99)
    )
    assert {d.start_s for d in found} <= {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}
    assert all(d.start_s < d.end_s <= 27 / 5 for d in found)


def test_the_untrimmednet_table_can_name_the_classes(tmp_path):
    table = np.zeros((4, 101), np.float32)
    table[3, 23] = 2  # video 4, class 24
    np.save(tmp_path / "uNet_test.npy", table)
    classes = read_video_classes(tmp_path / "uNet_test.npy")
    assert is_class_file(str(tmp_path / "uNet_test.npy")) and not is_class_file("acp+")
    best = classes.names[int(classes.of("video_test_0000004").argmax())]
    assert best == "CricketShot"


def test_windows_are_joined_by_gaussian_suppression_only():
    post = PostProcessing("bmn", "start*end*cls*reg", "bmn", 0.4)
    with pytest.raises(ValueError, match="detect.suppression is 'bmn'"):
        detect_in_windows(WINDOWED, oracle(0, 1), torch.zeros(1, 20), INFO, post)
