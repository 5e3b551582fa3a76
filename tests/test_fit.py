"""`lofi fit` and its parts: folds, classes of segments, intervals, long and short videos."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from rendered_events import render

import lofi
from lofi import cli, fitting
from lofi import config as configs
from lofi.data import ClipRequest, Segment, Video, read_annotations, write_video
from lofi.data.datasets import BACKGROUND, with_background
from lofi.data.exporters import Mark, export_labels
from lofi.data.features import Features
from lofi.data.importers import import_labels
from lofi.data.snippets import Grid
from lofi.detection import Detection
from lofi.detection.detector import Detector, in_stretches
from lofi.detection.segment_classes import (
    SegmentClassifier,
    pooled,
    segment_detections,
    train_segment_classifier,
)
from lofi.encoders import build_encoder
from lofi.encoders.extraction import video_features
from lofi.evaluation import detection_map
from lofi.evaluation.bootstrap import interval, video_draws
from lofi.fidelity import Fidelity
from lofi.fitting import choices, in_folds, label_next, prepared, split
from lofi.heads.base import Proposals
from lofi.heads.scaled import ScaledHead
from lofi.rivals import RIVALS
from lofi.training.augmentation import vary


def video(name: str, *events: tuple[float, float, str], length: float = 20.0) -> Video:
    return Video(name, None, length, 25.0, "all", tuple(Segment(*event) for event in events))


def features_of(shown: Video, steps: int = 40, channels: int = 8, seed: int = 0) -> Features:
    """Noise, and one channel a class that is 1 inside its events."""
    grid = Grid.whole(steps, shown.duration_s)
    values = 0.2 * torch.randn(channels, steps, generator=torch.Generator().manual_seed(seed))
    middles = (np.arange(steps) + 0.5) * grid.step_s
    for event in shown.segments:
        inside = torch.from_numpy((middles >= event.start_s) & (middles < event.end_s))
        values["ab".index(event.label), inside] += 1
    return Features(values, grid)


@pytest.fixture(scope="module")
def labelled() -> dict[str, tuple[Video, Features]]:
    """Twelve videos with an event of either class, at places that differ."""
    rng, found = np.random.default_rng(0), {}
    for i in range(12):
        first, second = rng.uniform(1, 6), rng.uniform(11, 15)
        labels = "ab" if i % 2 else "ba"
        shown = video(f"v{i}", (first, first + 3, labels[0]), (second, second + 4, labels[1]))
        found[shown.id] = shown, features_of(shown, seed=i)
    return found


def test_every_fold_has_its_share_of_videos_and_of_each_class():
    rng = np.random.default_rng(1)
    videos = []
    for i in range(22):
        labels = rng.choice(["often", "sometimes", "rare"], p=[0.7, 0.22, 0.08], size=4)
        videos.append(
            video(f"{i:02d}", *((float(t), t + 1.0, str(x)) for t, x in enumerate(labels)))
        )
    fold_of = in_folds(videos)
    assert fold_of == in_folds(videos[::-1])  # of the videos, not of their order
    assert sorted(Counter(fold_of.values()).values()) in ([5, 5, 6, 6], [4, 6, 6, 6])
    for label in ("often", "sometimes", "rare"):
        counts = [sum(s.label == label for v in videos for s in v.segments if fold_of[v.id] == k)
                  for k in range(4)]  # fmt: skip
        assert max(counts) - min(counts) <= max(2, 0.35 * sum(counts) / 4), (label, counts)


def test_what_is_held_out_first_has_no_class_that_is_nowhere_else():
    videos = [video(f"{i}", (1, 2, "a"), (4, 5, "b" if i % 2 else "c")) for i in range(11)]
    videos.append(video("only", (1, 2, "once"), (3, 4, "a"), (6, 7, "a"), (8, 9, "b")))
    fold_of = in_folds(videos)
    held = {s.label for v in videos for s in v.segments if fold_of[v.id] == 0}
    assert held == {"a", "b", "c"} and fold_of["only"] != 0


def test_pieces_of_events_and_background_cover_a_video_once(tmp_path):
    shown = replace(video("v", (2, 5, "a"), (4, 9, "b"), (15, 16, "a")), path=tmp_path / "v.mp4")
    pieces = with_background([shown])
    gaps = sorted((p.start_s, p.end_s) for p in pieces if p.label == BACKGROUND)
    assert sum(end - start for start, end in gaps) == pytest.approx(20 - 7 - 1)
    for start, end in gaps:
        assert not any(s.start_s < end and start < s.end_s for s in shown.segments)
    events = sum(p.end_s - p.start_s for p in pieces if p.label != BACKGROUND)
    assert events == pytest.approx(3 + 5 + 1)
    assert max(p.end_s - p.start_s for p in pieces) <= 1.5 * 3  # the median segment lasts 3 s


def test_pooled_features_are_means_over_inside_before_and_after():
    torch.manual_seed(0)
    found = Features(torch.randn(3, 10), Grid.whole(10, 20.0))
    fine = found.values.double().repeat_interleave(2000, 1)  # a value every millisecond
    segments = np.array([[4.5, 9.25], [0.0, 6.0], [12.0, 20.0]])
    rows = pooled(found, segments)
    for (start, end), row in zip(segments, rows):
        half = (end - start) / 2
        spans = [(start, end), (start - half, start), (end, end + half)]
        for part, (first, last) in enumerate(spans):
            first, last = max(0.0, first), min(20.0, last)
            if last <= first:  # nothing is there: the nearest step
                first, last = max(0.0, first - 1), min(20.0, last + 1)
                first, last = (0.0, 1.0) if first == 0 else (19.0, 20.0)
            mean = fine[:, round(first * 1000) : round(last * 1000)].mean(1)
            torch.testing.assert_close(row[3 * part : 3 * part + 3], mean, atol=1e-9, rtol=0)
        assert row[-1] == pytest.approx(np.log(end - start))


def test_a_segment_classifier_tells_classes_badly_cut_segments_and_background(labelled, tmp_path):
    items = list(labelled.values())
    train, (held, found) = items[:-1], items[-1]
    store = {v.id: f for v, f in train}
    classifier = train_segment_classifier(store, [v for v, _ in train])
    again = train_segment_classifier(store, [v for v, _ in train])
    assert torch.equal(classifier.weight, again.weight)
    classifier.save(tmp_path / "c.safetensors")
    classifier = SegmentClassifier.load(tmp_path / "c.safetensors")
    for event in held.segments:
        start, end, half = event.start_s, event.end_s, (event.end_s - event.start_s) / 2
        segments = np.array([[start, end], [start + half, end + half], [8.5, 10.0]])
        right = classifier.predict(found, segments)[:, classifier.names.index(event.label)]
        wrong = 1 - classifier.predict(found, segments).sum(1)
        assert right[0] > 0.6 and right[0] > right[1] > right[2]
        assert wrong[2] > 0.8
    with pytest.raises(ValueError, match="8; use the encoder"):
        classifier.predict(Features(torch.zeros(5, 4), Grid.whole(4, 8.0)), np.array([[0, 1]]))
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="bad.safetensors: damaged.*train it again"):
        SegmentClassifier.load(tmp_path / "bad.safetensors")


def test_two_kinds_of_event_in_one_video_get_their_own_classes(labelled):
    items = list(labelled.values())
    classifier = train_segment_classifier({v.id: f for v, f in items[:-1]}, [v for v, _ in items])
    held, found = items[-1]
    lines = np.linspace(0, 20, 41)
    every = np.array([(a, b) for a in lines for b in lines if 1 <= b - a <= 8])
    post = configs.preset("own").detect
    detections = segment_detections(
        [Proposals(every, np.ones(len(every)))], found, classifier, post
    )
    report = detection_map([held], {held.id: detections}, subset="all")
    assert report.at(0.5) == 1.0
    best = {label: next(d for d in detections if d.label == label) for label in "ab"}
    for event in held.segments:
        assert abs(best[event.label].start_s - event.start_s) < 0.75


def test_memory_of_detection_does_not_grow_with_the_recording(labelled):
    """Windows are decoded one after the other; what is kept of each is a hundred rows a class."""
    items = list(labelled.values())
    classifier = train_segment_classifier({v.id: f for v, f in items}, [v for v, _ in items])
    post = replace(configs.preset("own").detect, top_k=10)
    rng = np.random.default_rng(0)

    def peak(windows: int) -> int:
        grid = Grid.whole(windows * 20, windows * 10.0)
        found = Features(torch.zeros(8, windows * 20), grid)

        def proposals():
            for i in range(windows):
                start = 10 * i + rng.uniform(0, 8, 20_000)
                segments = np.stack([start, start + 1], 1)
                yield Proposals(segments, rng.uniform(size=len(segments)))

        tracemalloc.start()
        segment_detections(proposals(), found, classifier, post)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(80) < 1.5 * peak(8)


def test_the_interval_over_videos_is_that_of_copied_videos():
    """Against the definition: draw videos, copy them and their detections, compute mAP anew."""
    rng, videos, found = np.random.default_rng(3), [], {}
    for i in range(9):
        starts = rng.uniform(0, 15, rng.integers(1, 5))
        shown = video(f"v{i}", *((s, s + rng.uniform(1, 4), "ab"[rng.integers(2)]) for s in starts))
        near = [Detection(s.start_s + rng.normal() / 3, s.end_s + rng.normal() / 3, s.label,
                          rng.random()) for s in shown.segments]  # fmt: skip
        alarms = [
            Detection(s, s + 2, "ab"[rng.integers(2)], rng.random()) for s in rng.uniform(0, 15, 3)
        ]
        videos, found = [*videos, shown], found | {shown.id: near + alarms}
    draws = video_draws(videos, found, subset="all", resamples=60, seed=5)
    same = np.random.default_rng(5)
    for row in draws:
        picked = same.integers(9, size=9)
        copies = [replace(videos[i], id=str(n)) for n, i in enumerate(picked)]
        shown = {s.label for v in copies for s in v.segments}
        theirs = {str(n): [d for d in found[f"v{i}"] if d.label in shown]
                  for n, i in enumerate(picked)}  # fmt: skip
        report = detection_map(copies, theirs, subset="all")
        np.testing.assert_allclose(row, [*report.map, report.average_map], atol=1e-12)


def test_the_interval_of_random_detections_holds_their_map():
    """Interpolation lifts the draws, most where detections are right by luck alone."""
    rng = np.random.default_rng(0)
    videos, found = [], {}
    for i in range(40):
        start = rng.uniform(0, 90, 4)
        videos.append(video(f"v{i}", *((s, s + 5, "a") for s in start)))
        start = rng.uniform(0, 90, 200)
        found[f"v{i}"] = [Detection(s, s + 5, "a", rng.uniform()) for s in start]
    draws = video_draws(videos, found, subset="all", resamples=200)
    value = detection_map(videos, found, subset="all").average_map
    assert draws[:, -1].mean() > 1.02 * value
    low, high = interval(draws, np.append(draws[0, :-1], value))[-1]
    assert low < value < high and high - low == pytest.approx(np.diff(interval(draws)[-1])[0])
    low, high = interval(np.linspace(0.9, 1, 101)[:, None], np.array([0.99]))[0]
    assert (low, high) == (pytest.approx(0.9425), 1)  # not 1.0375: no mAP is above 1


def test_a_squeezed_frame_keeps_what_a_square_crop_cuts_off(tmp_path):
    frames = np.zeros((12, 48, 96, 3), np.uint8)
    frames[:, :, :12] = frames[:, :, -12:] = 255  # only the sides are bright
    write_video(tmp_path / "v.mp4", frames, 10)
    size = Fidelity(1, 2, 32)
    cut = ClipRequest(tmp_path / "v.mp4", size, crop_ratio=1.0).read()
    whole = ClipRequest(tmp_path / "v.mp4", size, crop_ratio=1.0, squeeze=True).read()
    assert cut.float().mean() < 20
    assert whole.float().mean() == pytest.approx(255 / 4, rel=0.1)


def test_varied_clips_keep_left_and_right_and_colours_apart():
    clips = torch.zeros(4, 3, 3, 32, 32, dtype=torch.uint8)
    clips[:, :, 0, :, :16] = 220  # red on the left of every clip
    varied = vary(clips, torch.Generator().manual_seed(0)).float()
    assert torch.equal(varied, vary(clips, torch.Generator().manual_seed(0)).float())
    assert varied.shape == clips.shape and (varied != clips).any()
    left, right = varied[..., :8].mean((1, 3, 4)), varied[..., -8:].mean((1, 3, 4))
    assert (left[:, 0] > right[:, 0] + 40).all()  # on the left still
    assert (left[:, 0] > left[:, 1] + 40).all()  # and red


def test_rivals_find_plain_events(labelled):
    """Each is a fair opponent: where features show the class plainly, it finds the events."""
    items = list(labelled.values())
    train, test = items[:10], items[10:]
    features = {v.id: f for v, f in items}
    for name, rival in RIVALS.items():
        predict = rival(features, [v for v, _ in train], ["a", "b"])
        found = {v.id: predict(f) for v, f in test}
        report = detection_map([v for v, _ in test], found, subset="all")
        assert report.at(0.5) > 0.7, name


def test_suggestions_are_sure_false_alarms_and_doubtful_places():
    shown = video("v", (2, 4, "a"))
    found = {"v": [Detection(2, 4, "a", 0.9), Detection(10, 12, "b", 0.8),
                   Detection(15, 16, "a", 0.35), Detection(17, 18, "a", 0.01)]}  # fmt: skip
    listed = label_next([shown], found, threshold=0.4)
    assert [(s["start_s"], s["label"]) for s in listed] == [(10, "b"), (15, "a")]
    assert "no event in the list" in listed[0]["why"]


@pytest.fixture(scope="module")
def few_videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("events")
    return render(folder, "yard", videos=6, seed=4, seconds=(5.0, 6.0))


def test_faults_of_a_list_are_counted_and_left_out(few_videos, tmp_path):
    text = few_videos.read_text(encoding="utf-8-sig")
    lines = ["gone.mp4;1,0;2,0;roll", "cam_001.mp4;90;95;roll", "cam_002.mp4;1,0;1,0;roll"]
    lines += ["cam_003.mp4;0,1;0,4;rolll", "cam_004.mp4;4,0;999;roll"]
    path = tmp_path / "events.csv"
    path.write_text(text + "\n".join(lines) + "\n", encoding="utf-8")
    data = prepared(path, few_videos.parent / "videos")
    notes = "\n".join(data.notes)
    assert "1 videos have no file" in notes and "gone" in notes
    assert "2 events are empty or behind the end" in notes
    assert "'rolll' differs from 'roll'" in notes and "fewer than 10 events" in notes
    assert all(s.end_s <= v.duration_s for v in data.videos for s in v.segments)
    with pytest.raises(ValueError, match="0 videos with a file and an event.*ids = file names"):
        prepared(path, tmp_path)


def test_added_lists_correct_or_join_and_the_same_videos_stay_held_out(few_videos, tmp_path):
    """The loop: labels go to a tool, come back corrected, and join the list."""
    videos = few_videos.parent / "videos"
    header, *rows = few_videos.read_text(encoding="utf-8-sig").splitlines()
    early, drafts = tmp_path / "early.csv", tmp_path / "drafts.csv"
    early.write_text("\n".join([header, *(row for row in rows if "cam_006" not in row)]))
    before = prepared(early, videos)
    subsets, folds = split(before)
    held = next(key for key, subset in subsets.items() if subset == "validation")
    draft, other = [key for key in subsets if key != held][:2]
    marks = {videos / f"{held}.mp4": [Mark(0.5, 1.25, "roll")]}
    marks[videos / "cam_006.mp4"] = [Mark(2.0, 3.0, "blink"), Mark(3.5, 4.0, "roll")]
    (sent,) = export_labels("via", marks, tmp_path)
    sent.write_text(sent.read_text().replace("1.25", "1.75"))  # somebody moves an end
    import_labels(sent, videos, tmp_path / "corrected.csv")
    top = f"video,start_s,end_s,label,subset\n{draft}.mp4,1,2,roll,draft\n"
    drafts.write_text(f"{top}{other}.mp4,1,2,roll,\n")
    after = prepared(early, videos, [tmp_path / "corrected.csv", drafts])
    notes = "\n".join(after.notes)
    assert "corrected.csv: 1 videos corrected, 1 new, 3 events" in notes
    assert "drafts.csv: 1 videos corrected, 0 new" in notes
    assert "1 videos are drafts" in notes and f"(first: {draft})" in notes
    now = {video.id: video.segments for video in after.videos}
    old = {video.id: video.segments for video in before.videos}
    assert now[held] == (Segment(0.5, 1.75, "roll"),)
    assert now[draft] == old[draft] and now[other] == (Segment(1.0, 2.0, "roll"),)
    again, places = split(after)
    assert again == subsets | {"cam_006": "training"}
    assert {key: places[key] for key in folds} == folds and places["cam_006"] > 0
    detections = tmp_path / "found.csv"
    detections.write_text("video,start_s,end_s,label,score\ncam_001,1,2,roll,0.9\n")
    with pytest.raises(ValueError, match="nobody has checked; correct them first.*lofi export"):
        prepared(early, videos, [detections])
    drafts.write_text(top)
    with pytest.raises(ValueError, match="drafts.csv: adds nothing; 1 videos are drafts"):
        prepared(early, videos, [drafts])


def test_settings_follow_lengths_of_events_and_videos(few_videos):
    data = prepared(few_videos, few_videos.parent / "videos")
    merged = {k: v for c in choices(data, data.videos) for k, v in c.settings.items()}
    assert merged["data.window_stride"] == 0 and merged["full.snippets"] >= 16
    first, *others = data.videos
    longer = data._replace(videos=(replace(first, duration_s=7200.0), *others))
    merged = {k: v for c in choices(longer, data.videos) for k, v in c.settings.items()}
    step_s = merged["data.window_stride"] / 25
    shortest, longest = np.quantile(data.lengths, (0.1, 1.0))
    assert 0 < step_s <= shortest / 4  # an event is several steps
    assert merged["full.snippets"] * step_s > longest  # and fits into a window


def test_many_short_events_in_long_videos_get_a_head_of_points(few_videos, monkeypatch):
    data = prepared(few_videos, few_videos.parent / "videos")
    monkeypatch.setattr(fitting, "expected_seconds", lambda *arguments: {"head": 1.0})
    lengths = [3600.0, *[120.0] * (len(data.videos) - 1)]

    def head(events: int, **given):
        each = tuple(Segment(4.0 * i, 4.0 * i + 1.5, "roll") for i in range(events))
        lasting = zip(data.videos, lengths)
        videos = tuple(replace(v, duration_s=s, segments=each) for v, s in lasting)
        longer = data._replace(videos=videos)
        base = configs.preset("own")
        plan = fitting.planned(longer, videos, 0, 30.0, "cpu", given, base, {})
        return plan.config.head.kind, plan.config.head_training.optimizer

    assert head(28) == head(28, **{"head.kind": "actionformer"}) == ("actionformer", "adamw")
    assert head(4) == head(28, **{"head.kind": "gtad"})
    assert head(4)[0] == "gtad"


def test_every_stretch_of_a_recording_keeps_its_points(labelled):
    segments = np.array([[25.0, 26.0], [0.0, 1.0], [9.0, 12.0], [10.5, 11.0]])
    parts = list(in_stretches(Proposals(segments, np.arange(4.0)), 10.0))
    assert [part.scores.tolist() for part in parts] == [[1.0], [2.0, 3.0], [0.0]]
    items = list(labelled.values())
    classifier = train_segment_classifier({v.id: f for v, f in items}, [v for v, _ in items])
    nothing = in_stretches(Proposals(np.zeros((0, 2)), np.zeros(0)), 10.0)
    post = configs.preset("own").detect
    assert segment_detections(nothing, items[0][1], classifier, post) == []


def test_a_plan_keeps_to_the_minutes_and_says_what_it_leaves_out(few_videos, monkeypatch):
    data = prepared(few_videos, few_videos.parent / "videos")
    seconds = {"encoder": 600.0, "features": 60.0, "head": 60.0}
    monkeypatch.setattr(fitting, "expected_seconds", lambda *arguments: dict(seconds))

    def plan(minutes: float, **settings):
        base = configs.preset("own")
        return fitting.planned(data, data.videos, 4, minutes, "cpu", settings, base, {})

    full, short = plan(70.0), plan(30.0)
    assert full.folds == 4 and full.seconds["cross-validation"] == 3 * 720
    assert short.folds == 0 and any("--minutes 60" in note for note in short.notes)
    hasty = plan(10.0)  # 80 % of ten minutes are 480 s: 360 of 600 for the encoder
    assert hasty.config.acp.epochs == int(0.6 * full.config.acp.epochs)
    assert plan(10.0, **{"acp.epochs": 7}).config.acp.epochs == 7
    assert plan(10.0, encoder="tsm-toy").config.encoder == "tsm-toy"
    assert "memory about" in str(full)


def test_an_encoder_that_has_not_learned_its_clips_is_named(tmp_path):
    folder, config = tmp_path / "acp" / "encoder", configs.preset("own")
    folder.mkdir(parents=True)
    for accuracy, notes in ((0.6, 1), (0.9, 0)):
        rows = [json.dumps({"step": i, "accuracy": accuracy}) for i in range(60)]
        (folder / "metrics.jsonl").write_text("\n".join(rows))
        found = fitting.unlearned(config, tmp_path)
        assert len(found) == notes and all("60%" in note for note in found)
    assert fitting.unlearned(replace(config, weights="file.pth"), tmp_path) == []


def test_fit_leaves_a_detector_a_split_and_a_report(few_videos, tmp_path, capsys, monkeypatch):
    out, videos = tmp_path / "my run", tmp_path / "videos"
    shutil.copytree(few_videos.parent / "videos", videos)
    shutil.copy(videos / "cam_002.mp4", videos / "unlabelled.mp4")
    settings = {"acp.epochs": 1, "full.pixels": 32, "full.snippets": 16, "head_training.epochs": 2}
    options = [word for k, v in settings.items() for word in (f"--{k}", str(v))]
    corrected = tmp_path / "corrected.csv"
    rows = few_videos.read_text(encoding="utf-8-sig").splitlines()
    corrected.write_text("\n".join([rows[0], *(row for row in rows if "cam_003" in row)]))
    command = ["lofi", "fit", str(few_videos), "--videos", str(videos), "--out", str(out), *options]
    command += ["--add", str(corrected)]
    # killed in the middle, it says so by its status, and goes on
    started = subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in started.stdout:
        if line.startswith("encoder"):
            started.send_signal(signal.SIGTERM)
    error = started.communicate()[1]
    assert started.returncode == 128 + signal.SIGTERM and "the same command goes on" in error
    assert (out / "plan.json").is_file() and not (out / "fit.json").exists()
    monkeypatch.setattr("sys.argv", command)
    cli.main()
    said = capsys.readouterr().out
    assert "going on with the settings" in said and "1 videos corrected, 0 new" in said
    assert "plan:" in said and "about" in said
    last = shlex.split(said.strip().splitlines()[-1])
    saved = configs.load(out / "config.json")
    assert saved.full == Fidelity(16, 8, 32) and saved.detect.classes == "segment"
    result = json.loads((out / "fit.json").read_text())
    assert result["cross_validation"]["folds"] == 4
    assert {"LSTM", "dilated", "nearest"} == {
        rival["name"].split()[0].rstrip(",") for rival in result["curve"][-1]["rivals"]
    }
    page = (out / "report.html").read_text()
    for heading in ("Result", "Classes", "How many videos", "Simple rivals", "Label these next"):
        assert f">{heading}</h2>" in page
    # the held-out videos of every later command are the same
    split = {v.id: v.subset for v in read_annotations(out / "annotations.json")}
    assert Counter(split.values()) == {"training": 4, "validation": 2}
    found = json.loads((out / "acp" / "detections" / "segment.json").read_text())["results"]
    assert set(found) == {key for key, subset in split.items() if subset == "validation"}
    words = [out / "annotations.json", out / "acp" / "detections" / "segment.json"]
    monkeypatch.setattr("sys.argv", ["lofi", "evaluate", *map(str, words)])
    cli.main()
    judged = capsys.readouterr().out
    assert f"average {100 * result['held_out']['average_map']:.2f} %" in judged
    low, high = (100 * x for x in result["held_out"]["average_interval"])
    assert f"average {low:.1f} to {high:.1f} (1,000 draws of the videos)" in judged
    # the last line runs
    assert last[:2] == ["lofi", "detect"]
    monkeypatch.setattr("sys.argv", last[:-1] + [str(tmp_path / "found")])
    cli.main()
    assert list((tmp_path / "found").glob("*.csv"))
    # again: nothing is trained, the numbers stay; other events are refused
    capsys.readouterr()
    before = (out / "acp" / "encoder" / "encoder.safetensors").stat().st_mtime_ns
    same = {"add": [corrected], "settings": settings, "say": lambda line: None}
    again = lofi.fit(few_videos, videos, out, **same)
    assert again["held_out"] == result["held_out"]
    assert (out / "acp" / "encoder" / "encoder.safetensors").stat().st_mtime_ns == before
    other = tmp_path / "other.csv"
    other.write_text(few_videos.read_text(encoding="utf-8-sig") + "cam_001.mp4;0,1;0,5;roll\n")
    with pytest.raises(ValueError, match="holds a run of other events"):
        lofi.fit(other, videos, out)


def found_and_peaks(detector: Detector, paths: Sequence[Path]) -> list[tuple]:
    """Of each video in turn: the detections, and the most memory so far in MiB."""
    resource, rows = pytest.importorskip("resource"), []  # Windows has none
    for path in paths:
        found = detector.detect(path)
        rows.append((found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
    return rows


def test_an_event_is_found_at_both_ends_of_a_recording_of_any_length(tmp_path):
    """Clips of ten seconds teach it; then a new clip, four minutes and forty minutes are searched.

    Memory stays flat: forty minutes have 33 MiB more of pixels than four.
    """
    fps, rng = 3, np.random.default_rng(0)

    def write(name: str, seconds: int, starts: Sequence[float]) -> Video:
        pictures = rng.integers(60, 120, (seconds * fps, 32, 48, 3), np.uint8)
        for start in starts:
            for t in range(round(start * fps), round((start + 3) * fps)):
                x = 6 + 9 * (t % 3)
                pictures[t, 10:22, x : x + 9] = (250, 220, 40)
        write_video(tmp_path / f"{name}.mp4", pictures, fps, preset="ultrafast")
        given = [(start, start + 3.0, "pass") for start in starts]
        return replace(video(name, *given, length=float(seconds)), path=tmp_path / f"{name}.mp4")

    clips = [write(f"clip{i}", 10, [2.0 + i % 3]) for i in range(6)]
    config = configs.override(
        configs.preset("own"),
        {"full": Fidelity(24, 4, 32), "data.window_stride": 2, "data.frame_stride": 1},
    )
    encoder = build_encoder("tsm-toy", seed=0).eval()
    features = {v.id: video_features(config, encoder, v.path)[0] for v in clips}
    classifier = train_segment_classifier(features, clips)
    head = ScaledHead(config.head, encoder.channels, 1, seed=0).eval()
    detector = Detector(config, "acp", encoder, head, classifier)
    lengths = {10: [5.0], 240: [1.0, 235.0], 2400: [1.0, 2395.0]}
    shown = [write(f"{seconds} s", seconds, starts) for seconds, starts in lengths.items()]
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # nothing else has used its memory
        rows = pool.submit(found_and_peaks, detector, [v.path for v in shown]).result()
    for long, (found, _) in zip(shown, rows):
        best = sorted(found[: len(long.segments)])
        for detection, event in zip(best, long.segments, strict=True):
            assert abs(detection.start_s - event.start_s) < 1.0, (long.id, best)
            assert abs(detection.end_s - event.end_s) < 1.0, (long.id, best)
    peaks = [peak for _, peak in rows]
    assert peaks[2] - peaks[1] < 16, peaks
