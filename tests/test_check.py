"""The data set check finds what was planted, and on real annotations what is known to be there."""

import csv
import json
import random
from collections import Counter

import numpy as np
import pytest
from numbered_video import write_numbered

from lofi.data import check, isolated
from lofi.data.annotations import Segment, Video, read_annotations
from lofi.data.check import KINDS, KNOWN, check_dataset, suspicious_labels


def _video(name, *segments, duration_s=None, path=None):
    segments = tuple(Segment(*segment) for segment in segments)
    return Video(name, path, duration_s, None, None, segments)


def _found(report):
    return {(e.video_id, e.kind) for e in report.entries}


@pytest.fixture
def folder(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    write_numbered(videos / "good.mp4", 40)  # 4 s
    (videos / "text.mp4").write_text("not a video")
    data = (videos / "good.mp4").read_bytes()
    (videos / "cut.mp4").write_bytes(data[: len(data) // 2])
    return videos


def test_planted_annotation_errors_are_found():
    report = check_dataset(
        [
            _video("fine", (0, 1, "run"), (2, 3, "run"), (0.5, 2.5, "jump"), duration_s=3),
            _video("zero", (1, 1, "run")),
            _video("reversed", (2, 1, "run")),
            _video("overlap", (0, 2, "run"), (0.5, 1, "run"), (1.5, 3, "run")),
            _video("twice", (0, 2, "jump"), (0, 2, "jump")),
            _video("late", (1, 3.2, "run"), duration_s=3.0),
            _video("nearly", (1, 3.05, "run"), duration_s=3.0),
            _video("fine", (0, 1, "run")),
        ]
    )
    assert _found(report) == {
        ("zero", "zero_length"),
        ("reversed", "reversed"),
        ("overlap", "overlapping"),
        ("twice", "duplicate"),
        ("late", "out_of_range"),
        ("fine", "duplicate"),
    }
    assert len(report.of("overlapping")) == 2  # 0.5-1 and 1.5-3, both with 0-2
    assert (report.num_videos, report.num_segments) == (8, 13)


@pytest.mark.parametrize(
    "labels, suspects",
    [
        (["Running"] * 3 + ["running"], {"running"}),
        (["Running"] * 3 + ["Running "], {"Running "}),
        (["High jump"] * 3 + ["HighJump"], {"HighJump"}),
        (["Running"] * 6 + ["Runing"], {"Runing"}),
        (["Playing guitar"] * 10 + ["Plaiyng guitar"] * 2, {"Plaiyng guitar"}),
        (["Surfing"] * 6 + ["Kurling"] * 5, set()),  # two letters of seven: other words
        (["Hurling"] * 6 + ["Curling"] * 5, set()),  # as frequent: both are classes
        (["step 1"] * 9 + ["step 2"], set()),
        (["run"] * 9 + ["ran"], set()),
    ],
)
def test_misspelled_labels(labels, suspects):
    assert set(suspicious_labels(Counter(labels))) == suspects


def test_files_are_decoded_and_segments_measured_against_them(folder, tmp_path):
    videos = [_video(name, (1, 4.5, "run"), duration_s=9) for name in ("good", "text", "cut", "no")]
    calls = []
    report = check_dataset(
        videos,
        folder,
        workers=2,
        report=tmp_path / "report.csv",
        progress=lambda *call: calls.append(call),
    )
    assert _found(report) == {
        ("good", "out_of_range"),  # 4 s decode, the annotation says 9
        ("text", "undecodable"),
        ("cut", "undecodable"),
        ("no", "missing"),
    }
    assert report.files["good"].info.num_frames == 40
    assert sorted(call[0] for call in calls) == [1, 2, 3] and {call[1] for call in calls} == {3}
    assert all(kind in report.summary() for kind in KINDS)
    with open(tmp_path / "report.csv", newline="") as file:
        rows = {(row["video"], row["kind"]) for row in csv.DictReader(file)}
    assert rows == _found(report) | {("good", "ok")}


def test_without_decoding_only_presence_is_asked(folder):
    videos = [_video("text"), _video("no")]
    assert _found(check_dataset(videos, folder, decode=False)) == {("no", "missing")}


def test_an_interrupted_check_goes_on(folder, tmp_path):
    videos = [_video(name) for name in ("cut", "good", "text")]
    path = tmp_path / "report.csv"

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_dataset(videos, folder, report=path, progress=stop)
    with open(path, "a") as file:
        file.write("text,undecod")  # a line that was being written
    write_numbered(folder / "cut.mp4", 8)  # repaired: another size, so it is decoded again
    decoded = []
    report = check_dataset(
        videos, folder, report=path, progress=lambda done, total: decoded.append(done)
    )
    assert decoded == [2, 3]  # "good" was done before
    assert _found(report) == {("text", "undecodable")}
    assert check_dataset(videos, folder, report=path).files == report.files  # nothing to do


def test_a_foreign_file_is_not_overwritten(folder, tmp_path):
    (tmp_path / "notes.csv").write_text("my,own,notes\n")
    with pytest.raises(ValueError, match="not a report"):
        check_dataset([_video("good")], folder, report=tmp_path / "notes.csv")
    assert (tmp_path / "notes.csv").read_text() == "my,own,notes\n"


def test_a_folder_of_hundreds_with_five_kinds_of_broken_files(tmp_path, monkeypatch):
    av = pytest.importorskip("av")
    videos = tmp_path / "videos"
    videos.mkdir()
    data = write_numbered(videos / "good0.mp4", 16).read_bytes()
    for i in range(1, 295):
        (videos / f"good{i}.mp4").write_bytes(data)
    middle = data.find(b"mdat") + 200
    for name, content in {
        "empty": b"",
        "text": b"not a video\n" * 50,
        "cut": data[: len(data) // 2],
        "damaged": data[:middle] + bytes(700) + data[middle + 700 :],
    }.items():
        (videos / f"{name}.mp4").write_bytes(content)
    with av.open(str(videos / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    all_videos = [_video(path.stem) for path in sorted(videos.iterdir())]
    report = check_dataset(all_videos, videos, workers=2, report=tmp_path / "report.csv")
    broken = {"empty", "text", "cut", "damaged", "sound"}
    assert _found(report) == {(name, "undecodable") for name in broken}
    assert len(report.files) == 300
    monkeypatch.setattr(isolated, "PROGRAM", "raise SystemExit")  # nothing is decoded again
    assert check_dataset(all_videos, videos, report=tmp_path / "report.csv").files == report.files


def test_present_videos_are_counted_beside_the_official_number(folder):
    names = ("aaaaaaaaaaa", "bbbbbbbbbbb", "0dkIbKXXFzI")
    subsets = ("training", "training", "validation")
    videos = [Video(n, None, 4.0, None, s, ()) for n, s in zip(names, subsets)]
    (folder / "v_aaaaaaaaaaa.mp4").write_bytes((folder / "good.mp4").read_bytes())
    report = check_dataset(videos, folder)
    assert report.subsets == (
        "training: 2 videos annotated, 1 with a file (50.0%); ActivityNet-1.3 has 10,024",
        "validation: 1 videos annotated, 0 with a file (0.0%); ActivityNet-1.3 has 4,926",
    )
    assert [(e.video_id, e.kind) for e in report.known] == [("0dkIbKXXFzI", "known")]
    assert "2.1 frames a second" in report.summary() and "bbbbbbbbbbb" in report.summary()


BAD = "import os, time\nimport lofi.data.check as check\ncheck.probe = lambda path: {}\n"
HANG, CRASH = (BAD.format(call) + isolated.PROGRAM for call in ("time.sleep(60)", "os.abort()"))


@pytest.mark.parametrize("program, words", [(HANG, "no result in 0.5 s"), (CRASH, "crashed")])
def test_decoders_that_hang_or_crash_do_not_stop_the_check(folder, monkeypatch, program, words):
    monkeypatch.setattr(isolated, "PROGRAM", program)
    report = check_dataset([_video("good"), _video("text")], folder, limit_s=0.5, workers=2)
    assert [entry.kind for entry in report.entries] == ["undecodable"] * 2
    assert all(words in entry.detail for entry in report.entries)


def test_a_decoder_killed_by_the_system_says_nothing_of_the_file(folder, monkeypatch, tmp_path):
    kill = BAD.format("os.kill(os.getpid(), 9)") + isolated.PROGRAM  # as when memory runs out
    monkeypatch.setattr(isolated, "PROGRAM", kill)
    table = tmp_path / "report.csv"
    report = check_dataset([_video("good")], folder, report=table)
    assert _found(report) == {("good", "killed")}
    words = "was killed by the system (signal 9: usually out of memory)"
    assert words in report.entries[0].detail
    assert [row["kind"] for row in csv.DictReader(table.open())] == ["killed"]
    monkeypatch.undo()
    assert check_dataset([_video("good")], folder, report=table).entries == ()  # once more


def test_many_files_share_one_decoder(folder, monkeypatch):
    started, start = [], isolated.Children._start
    monkeypatch.setattr(isolated.Children, "_start", lambda self: started.append(1) or start(self))
    names = [f"copy{i}" for i in range(20)]
    for name in names:
        (folder / f"{name}.mp4").write_bytes((folder / "good.mp4").read_bytes())
    report = check_dataset([_video(name) for name in (*names, "text", "cut")], folder)
    assert _found(report) == {("text", "undecodable"), ("cut", "undecodable")}
    assert len(started) == 1


def test_a_check_that_cannot_start_is_an_error(folder, monkeypatch):
    monkeypatch.setattr(isolated, "PROGRAM", "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="did not start"):
        check_dataset([_video("good")], folder)


def test_real_annotations_hold_what_is_known(shared_data, golden):
    videos = read_annotations(shared_data / "activitynet" / "anet_anno_action.json")
    summary = json.loads(golden("annotation_summary.json").read_text())["activitynet"]
    report = check_dataset(videos, tolerance_s=0.0)
    known = {(row[0].removeprefix("v_"), row[3]) for row in summary["zero_length_list"]}
    found = {(e.video_id, e.detail.split("'")[1]) for e in report.of("zero_length")}
    assert found == known and len(report.of("zero_length")) == 12
    beyond = sum(s.get("instances_ending_after_duration", 0) for s in summary["subsets"].values())
    assert len(report.of("out_of_range")) == beyond == 215
    assert not report.of("reversed") and not report.of("label") and not report.of("missing")
    copies = [int(e.detail.split()[-2]) - 1 for e in report.of("duplicate")]
    assert sum(copies) == 50
    assert {e.video_id for e in report.known} >= {row[0] for row in known}


def test_what_is_known_about_thumos14_is_in_its_files(shared_data):
    folder = shared_data / "thumos14"
    test = {v.id: v for v in read_annotations(folder / "test_Annotation.csv")}
    evaluated = {v.id for v in read_annotations(folder / "thumos_gt.json") if v.subset == "test"}
    left_out = {name for name in KNOWN if name.startswith("video_test_")}
    assert left_out == set(test) - evaluated
    counts = {name: len(test[name].segments) for name in sorted(left_out)}
    assert list(counts.values()) == [29, 0, 18]
    assert sum(len(v.segments) for v in test.values()) - sum(counts.values()) == 3311
    report = check_dataset(test.values())
    assert report.subsets == ("test: 213 videos annotated; THUMOS14 has 213",)


def all_with_all(counts):
    """Suspicious labels and what they look like, by comparing each with every other."""
    found = {}
    for label, count in counts.items():
        near = []
        for other, frequent in counts.items():
            letters = check._label_distance(label, other)
            often_enough = letters == 0 or count == 1 or 5 * count <= frequent
            if letters is not None and often_enough and (count, other) < (frequent, label):
                near.append((letters, other))
        if near:
            found[label] = min(near)[1]
    return found


def test_look_alikes_are_those_that_comparing_all_with_all_finds():
    draws = random.Random(0)
    for _ in range(60):
        words = ["".join(draws.choices("ab c1", k=draws.randint(1, 11))) for _ in range(12)]
        for word in words[:12] * 3:
            letters = list(word)
            for _ in range(draws.randint(0, 3)):
                place = draws.randint(0, len(letters))
                letters[place : place + draws.randint(0, 1)] = draws.choices(
                    ["", "a", "B", " ", "2"]
                )
            words.append("".join(letters))
        counts = Counter({word: draws.choice([1, 1, 2, 5, 30]) for word in words})
        found, wanted = suspicious_labels(counts), all_with_all(counts)
        assert found.keys() == wanted.keys()
        assert all(f"differs from {other!r} in" in found[word] for word, other in wanted.items())


@pytest.mark.parametrize("number", [1, 40])  # segments a label: each looks rare, or none does
def test_ten_times_the_classes_take_about_ten_times_the_comparisons(number, monkeypatch):
    draws, done = random.Random(0), []
    distance = check._label_distance
    monkeypatch.setattr(check, "_label_distance", lambda *two: done.append(two) or distance(*two))
    labels = ["".join(draws.choices("abcdefghijklmnop", k=16)) for _ in range(2000)]
    for some in (labels[:200], labels):
        misspelt = [label[1:] for label in some[::10]]
        found = suspicious_labels(Counter({n: number for n in some}) + Counter(misspelt))
        assert len(found) == len(misspelt)  # of a pair that is used equally, one or the other
        assert len(done) <= 2 * len(some)
        done.clear()
