"""Sliding windows through all stages: what is trained on, features, detections, evaluation."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lofi import config as configs
from lofi.config import PostProcessing
from lofi.data import ClipReader, Segment, Video, VideoInfo, probe
from lofi.data.datasets import open_datasets, video_request
from lofi.data.features import Features, head_inputs
from lofi.data.snippets import Grid, training_parts
from lofi.data.toyworld import TINY, write_world
from lofi.detection import detections, read_detections
from lofi.detection.classes import is_class_file, read_video_classes
from lofi.detection.detector import Detector, propose
from lofi.encoders.extraction import clip_features
from lofi.experiment import run_procedure
from lofi.fidelity import Fidelity
from lofi.figures.tables import results_table
from lofi.heads import Maps, build_head, valid_mask
from lofi.heads.maps import MapHead
from lofi.heads.scaled import ScaledHead, Standardise
from lofi.training import head as stage_three
from lofi.training import methods
from lofi.training.joint import JointTraining, joint_items
from lofi.training.methods import load_encoder, open_features, video_settings
from lofi.training.run_folder import RunFolder, read_metrics

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
    monkeypatch.setattr(methods, "probe", lambda path: VideoInfo(rows[path.name], 30.0, 320, 180))
    videos = [Video(v, Path(v), None, None, "train", tuple(segments[v])) for v in rows]
    changes = {"full.snippets": snippets, "head.durations": durations}
    config = configs.override(configs.preset("thumos14"), changes)
    items = joint_items(config, videos)
    expected = [(w["video"], w["first_frame"]) for w in options["train_windows"]]
    assert [(video.id, grid.first_frame) for video, grid in items] == expected
    head = build_head(config.head, 32)
    with np.load(golden("thumos_windows.npz")) as z:
        for i, row in enumerate(options["label_rows"]):
            found = head.targets(*items[row])
            for key in ("iou", "start", "end"):
                theirs = torch.from_numpy(z[f"{name}_{key}"][i])
                theirs = theirs * valid_mask(snippets, durations) if key == "iou" else theirs
                torch.testing.assert_close(getattr(found, key), theirs, rtol=0, atol=1e-7)


def test_without_a_stride_nothing_changes(run):
    plain = configs.override(run[0], {"data.window_stride": 0})
    assert configs.preset("thumos14").data.window_stride == 5
    assert joint_items(plain, run[3].train) == [(video, None) for video in run[3].train]
    assert video_settings(configs.preset("tiny"))["window_stride"] == 0
    whole = Features(torch.rand(3, 16), Grid.whole(16, 4.0))
    (same,) = head_inputs(whole, 16, 0)
    assert same.values is whole.values and same.grid == whole.grid


def test_windows_hold_the_segments_of_their_video(run):
    config, _, _, data = run
    items = joint_items(config, data.train)
    videos = {video.id: video for video in data.train}
    assert {grid.first_frame for _, grid in items} <= {0, 24, 48, 72}
    for item, grid in items:
        assert (grid.steps, grid.stride, grid.length_s) == (16, 3, 6.0)  # 8 frames a second
        given = {(s.start_s, s.end_s) for s in videos[item.id].segments}
        moved = {(s.start_s + grid.start_s, s.end_s + grid.start_s) for s in item.segments}
        assert moved and moved <= given
        assert any(s.start_s > -0.2 * 6 and s.end_s < 1.2 * 6 for s in item.segments)
    covered = {(v.id, s.label, s.start_s + grid.start_s) for v, grid in items for s in v.segments}
    short = {(v.id, s.label, s.start_s) for v in videos.values() for s in v.segments
             if s.end_s - s.start_s <= 3}  # fmt: skip
    assert short <= covered  # no longer than the overlap of two windows


def test_a_stride_that_leaves_no_window_is_refused(run):
    config, _, _, data = run
    empty = [replace(video, segments=()) for video in data.train]
    with pytest.raises(ValueError, match="no window of 16 snippets.*set data.window_stride"):
        joint_items(config, empty)


def test_features_of_windows_are_slices_of_those_of_the_video(run):
    config, out, _, data = run
    encoder = load_encoder(config, out, "c-lofi")[0].eval()
    video = data.test[0]
    whole = open_features(config, out, "c-lofi", data)[video.id]
    assert whole.values.shape[1] == 43 and whole.grid == Grid.strided(43, 3, 8.0, 128)
    inputs = head_inputs(whole, 16, 3)
    assert [part.grid.first_frame for part in inputs] == [0, 24, 48, 72]
    for values, grid in inputs[:3:2]:
        request = video_request(config.data, video.path, config.full, grid=grid)
        assert request.span == (grid.first_frame, grid.first_frame + 48)
        torch.testing.assert_close(values, clip_features(encoder, request.read()))
    ((values, grid),) = head_inputs(whole, 64, 3)
    assert grid.first_frame == 0 and torch.equal(values[:, :43], whole.values)
    assert not values[:, 43:].any()


class Always:
    """A schedule of one fidelity."""

    def __init__(self, *fidelity: int):
        self.fidelity = Fidelity(*fidelity)

    def at(self, epoch: int, step: int) -> Fidelity:
        return self.fidelity


def joint_training(run, tmp_path, reader, *fidelity: int, videos=2, items=None, **changes):
    """Stage 2 of the first training videos, or of their first windows, at one fidelity."""
    config, out, _, data = run
    named = {key.replace("__", "."): value for key, value in changes.items()}
    config = configs.override(config, named)
    chosen = joint_items(config, data.train[:videos])[:items]
    folder, encoder = RunFolder(tmp_path / "run", {}), load_encoder(config, out, "acp")[0]
    joint = JointTraining(config, encoder, chosen, len(data.classes), reader, folder)
    joint.plan = Always(*fidelity)
    return joint


def test_snippets_behind_the_end_have_no_features_in_stage_two(run, tmp_path):
    with ClipReader() as reader:
        long = joint_training(run, tmp_path, reader, 16, 4, 20, full__snippets=64)  # 192 frames
        batch = long.load(0)
        inner = joint_training(run, tmp_path, reader, 8, 4, 20, items=1)
        assert inner.load(0).mask.all()
    assert batch.mask.tolist() == [[True] * 11 + [False] * 5] * 2  # snippet 10 begins at 120


def test_stage_two_reads_the_frames_of_its_windows(run, tmp_path):
    changes = {"lofi__training__augment": "none", "lofi__training__batch": 6}
    with ClipReader() as reader:
        joint = joint_training(run, tmp_path, reader, 8, 4, 20, videos=8, items=6, **changes)
        batch = joint.load(0)
    assert batch.places == list(range(6)) and batch.videos == 6
    chosen = [joint.items[i] for i in joint.batches.at(0)]
    for (video, grid), clip, iou in zip(chosen, batch.clips, batch.targets.iou, strict=True):
        low = joint.plan.fidelity
        request = video_request(run[0].data, video.path, low, grid=grid)
        assert torch.equal(clip, request.read())
        wanted = joint.head.head.targets(video, replace(grid, steps=8))
        assert torch.equal(iou, wanted.iou) and iou.any()
    assert len({grid.first_frame for _, grid in chosen}) > 1


def test_what_lies_behind_the_end_does_not_reach_the_losses_of_stage_two(run, tmp_path):
    with ClipReader() as reader:
        joint = joint_training(run, tmp_path, reader, 16, 4, 20, full__snippets=64)
        batch = joint.load(0)
    found = []
    for place in (slice(0), slice(11, None), slice(10, 11)):
        other = batch.clips.clone()
        other[:, place] = 255 - other[:, place]
        joint.encoder.zero_grad(set_to_none=True)
        loss = joint.step(batch._replace(clips=other), 0)["loss"]
        found.append((loss, joint.encoder.conv1.weight.grad.clone()))
    (as_is, gradient), behind, last = found
    assert behind[0] == as_is and torch.equal(behind[1], gradient)
    assert last[0] != as_is


def test_stage_three_trains_on_the_features_of_its_windows(run, tmp_path, monkeypatch):
    config, out, _, data = run
    (tmp_path / "c-lofi").mkdir()
    for part in ("encoder", "features"):
        (tmp_path / "c-lofi" / part).symlink_to(out / "c-lofi" / part)
    seen = []

    def look(training, *_):
        seen.append(training)
        raise InterruptedError

    monkeypatch.setattr(stage_three, "fit", look)
    with pytest.raises(InterruptedError):
        stage_three.train_head(config, tmp_path, "c-lofi")
    store = open_features(config, out, "c-lofi", data)
    items = [i for v in data.train for i in training_parts(v, store[v.id].grid, 16)]
    assert items == joint_items(config, data.train)  # what stage 2 trains on, without the videos
    x, mask, y, places, total = seen[0].load(0)
    chosen = [items[i] for i in seen[0].batches.at(0)]
    assert len({grid.first_frame for _, grid in chosen}) > 1
    assert places == list(range(total)) and total == len(chosen) and mask.all()
    head = seen[0].modules["head"].head
    for (video, grid), given, iou in zip(chosen, x, y.iou, strict=True):
        inputs = {part.grid: part.values for part in head_inputs(store[video.id], 16, 3)}
        assert torch.equal(given, inputs[grid])
        assert torch.equal(iou, head.targets(video, grid).iou)


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
    assert results["protocol"] == "thumos14"
    assert list(results["tious"]) == [0.3, 0.4, 0.5, 0.6, 0.7]
    assert json.loads((out / "results.json").read_text())["protocol"] == "thumos14"
    table = results_table(results)
    assert table.header[3:] == ("@0.3", "@0.4", "@0.5", "@0.6", "@0.7")
    assert len(table.rows) == 6 and not any("–" in row for row in table.rows)


GRID = Grid.strided(20, 5, 5.0, 100)  # 20 snippets of a second
WINDOWED = configs.override(
    configs.preset("tiny"),
    {"data.window_stride": 5, "full.snippets": 8, "detect.rule": "thumos", "detect.sigma": 0.46,
     "detect.top_k": 5},
)  # fmt: skip


class Oracle(MapHead):
    """A head that knows where the action is: features hold the number of their snippet."""

    def __init__(self, start: int, end: int):
        super().__init__()
        self.start, self.end = start, end

    def forward(self, features, mask=None):
        snippets = features.shape[2]
        confidence = torch.zeros(1, 2, snippets, snippets)
        d, s = self.end - self.start - 1, self.start - int(features[0, 0, 0])
        if s >= 0 and s + d + 1 < snippets:
            confidence[:, :, d, s] = 1
        return Maps(confidence, torch.ones(1, snippets), torch.ones(1, snippets))


class Everywhere(MapHead):
    """A head that finds an action in every cell."""

    def forward(self, features, mask=None):
        snippets = features.shape[2]
        ones = torch.ones(1, snippets)
        return Maps(torch.ones(1, 2, snippets, snippets), ones, ones)


def found_by(head: MapHead, grid: Grid = GRID, config=WINDOWED):
    """Class-agnostic detections of one video whose features are the numbers of its snippets."""
    scaled = ScaledHead(config.head, 4)
    scaled.standardise, scaled.head = Standardise(1), head
    numbers = Features(torch.arange(float(grid.steps))[None], grid)
    return detections(propose(config, scaled, numbers), grid.duration_s, config.detect)


def test_an_action_on_a_window_boundary_is_found_in_the_next_window():
    """20 snippets, windows 0-8, 4-12, 8-16, 12-20; the action, 6-10, is whole in the second."""
    (best, *_) = found_by(Oracle(6, 10))
    assert (best.start_s, best.end_s, best.score) == (6.0, 10.0, 1.0)
    twice = found_by(Oracle(5, 7))  # two windows see it
    assert twice[0][:2] == (5.0, 7.0) and twice[0].score == 1
    assert all(d.score < 0.2 for d in twice[1:])  # the copy: exp(-1 / 0.46) = 0.114


def test_segments_of_sixty_snippets_have_score_zero_by_the_thumos_rule_only():
    """300 frames at stride 5, as released."""
    grid = Grid.strided(70, 5, 5.0, 350)
    for length, rule, score in ((59, "thumos", 1.0), (60, "thumos", 0.0), (60, "gtad", 1.0)):
        changes = {"full.snippets": 70, "detect.rule": rule}
        found = found_by(Oracle(2, 2 + length), grid, configs.override(WINDOWED, changes))
        assert max((d.score for d in found), default=0.0) == score


def test_nothing_is_proposed_behind_the_end_of_a_short_video():
    """27 frames are six snippets of a window of eight; the last one is cut short."""
    config = configs.override(WINDOWED, {"detect.top_k": 99})
    found = found_by(Everywhere(), Grid.strided(6, 5, 5.0, 27), config)
    assert {d.start_s for d in found} <= {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}
    assert found and all(d.start_s < d.end_s <= 27 / 5 for d in found)


def test_the_untrimmednet_table_can_name_the_classes(tmp_path):
    table = np.zeros((4, 101), np.float32)
    table[3, 23] = 2  # video 4, class 24
    np.save(tmp_path / "uNet_test.npy", table)
    classes = read_video_classes(tmp_path / "uNet_test.npy")
    assert is_class_file(str(tmp_path / "uNet_test.npy")) and not is_class_file("acp+")
    best = classes.names[int(classes.of("video_test_0000004").argmax())]
    assert best == "CricketShot"


def test_windows_are_joined_by_gaussian_suppression_only():
    config = replace(WINDOWED, detect=PostProcessing.bmn())
    with pytest.raises(ValueError, match="detect.suppression is 'bmn'"):
        found_by(Oracle(0, 1), config=config)
