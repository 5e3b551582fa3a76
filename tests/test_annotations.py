"""Readers against counts of the real files, and small files for everything else."""

import json
import math
from collections import Counter

import pytest

from lofi.data.annotations import (
    Segment,
    TrimmedClip,
    Video,
    find_in_index,
    index_videos,
    read_annotations,
    segments_as_clips,
)
from lofi.data.clips import read_clip_list
from lofi.training.pretraining import split_clips


@pytest.fixture(scope="module")
def summary(golden):
    return json.loads(golden("annotation_summary.json").read_text())


@pytest.fixture(scope="module")
def activitynet(shared_data):
    return read_annotations(shared_data / "activitynet" / "anet_anno_action.json")


def _of(videos, subset):
    return [video for video in videos if video.subset == subset]


@pytest.mark.parametrize(
    "subset, num_videos, num_segments, zero",
    [("training", 9649, 14859, 9), ("validation", 4728, 7293, 3), ("testing", 4851, 0, 0)],
)
def test_activitynet_counts(activitynet, summary, subset, num_videos, num_segments, zero):
    videos = _of(activitynet, subset)
    segments = [s for v in videos for s in v.segments]
    assert (len(videos), len(segments)) == (num_videos, num_segments)
    assert sum(s.start_s == s.end_s for s in segments) == zero
    seconds = summary["activitynet"]["subsets"][subset]["total_duration_seconds"]
    assert math.isclose(sum(v.duration_s for v in videos), seconds, rel_tol=1e-12)


def test_activitynet_labels_and_ids(activitynet, summary):
    assert len({s.label for v in activitynet for s in v.segments}) == 200
    found = Counter(s.label for v in _of(activitynet, "training") for s in v.segments)
    expected = summary["activitynet"]["instances_per_class"]
    assert found == {label: counts[0] for label, counts in expected.items()}
    first = activitynet[0]  # in the file: v_QOlSCBRmfWY, 25 frames a second in the CSV beside it
    assert (first.id, first.duration_s, first.fps, first.path) == ("QOlSCBRmfWY", 82.73, 25.0, None)
    assert first.segments == (Segment(6.195294851794072, 77.73085420904837, "Ballet"),)
    assert Counter(v.fps for v in activitynet)[30.0] == 12713


@pytest.mark.parametrize("split, rows, kept", [("val", 3096, 3007), ("test", 3457, 3358)])
def test_thumos14_tables(shared_data, summary, split, rows, kept):
    path = shared_data / "thumos14" / f"{split}_Annotation.csv"
    videos = read_annotations(path)
    expected = summary["thumos14"][f"{split}_Annotation"]
    assert len(videos) == expected["videos"]
    assert sum(bool(v.segments) for v in videos) == expected["videos_with_a_real_class"]
    counts = Counter(s.label for v in videos for s in v.segments)
    assert sum(counts.values()) == kept and len(counts) == 20
    ambiguous = expected["instances_per_class"].pop("Ambiguous")
    assert counts == expected["instances_per_class"] and rows - kept == ambiguous
    everything = read_annotations(path, keep_ambiguous=True)
    assert sum(len(v.segments) for v in everything) == rows
    assert {v.subset for v in videos} == {"validation" if split == "val" else "test"}


def test_thumos14_evaluation_file_has_times_as_strings(shared_data):
    videos = read_annotations(shared_data / "thumos14" / "thumos_gt.json")
    counts = {s: sum(len(v.segments) for v in _of(videos, s)) for s in ("train", "test")}
    assert (len(_of(videos, "test")), counts) == (210, {"train": 3007, "test": 3311})
    assert videos[0].segments[0] == Segment(18.6, 24.8, "HighJump")


def test_official_format(golden):
    path = golden("eval/gt_200.json")
    videos = read_annotations(path)
    raw = json.loads(path.read_text())["database"]
    assert [v.id for v in videos] == list(raw)
    assert len(_of(videos, "validation")) == 200
    assert sum(len(v.segments) for v in videos) == sum(len(v["annotations"]) for v in raw.values())


def _write(path, text, encoding="utf-8"):
    path.write_text(text, encoding=encoding)
    return path


def _database(path, **entries):
    return _write(path, json.dumps({"version": "1", "database": entries}))


def test_hacs_writes_durations_as_strings(tmp_path):
    entry = {"duration": "12.5", "subset": "training", "url": "", "annotations": []}
    entry["annotations"] = [{"label": "Surfing", "segment": [1, 2.5]}]
    (video,) = read_annotations(_database(tmp_path / "hacs.json", abc=entry), format="hacs")
    assert video == Video("abc", None, 12.5, None, "training", (Segment(1.0, 2.5, "Surfing"),))


def test_own_csv_with_everything(tmp_path):
    text = (
        "video,start_s,end_s,label,subset,duration_s,fps\r\n"
        " a.mp4 , 1.5 ,2,jump,training,10,25\r\n"
        "b,0,0,run ,validation,,\r\n"
        '"a.mp4",3,4,"high, very high",,,\r\n'
        "empty one,,,,training,,\r\n"
    )
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").touch()
    path = _write(tmp_path / "own.csv", text, "utf-8-sig")  # with a byte order mark
    a, b, empty = read_annotations(path, video_dir=tmp_path / "videos")
    segments = (Segment(1.5, 2.0, "jump"), Segment(3.0, 4.0, "high, very high"))
    assert a == Video("a", tmp_path / "videos" / "a.mp4", 10.0, 25.0, "training", segments)
    assert b == Video("b", None, None, None, "validation", (Segment(0.0, 0.0, "run"),))
    assert (empty.id, empty.segments, empty.subset) == ("empty one", (), "training")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_own_csv_from_a_spreadsheet_with_decimal_commas(tmp_path, separator):
    rows = [["Video", "start_s", "End_s", "label"], ["a", "1,5", "2,25", "x, y"]]
    if separator == "\t":
        rows[1][1:3] = ["1.5", "2.25"]
    path = _write(tmp_path / "own.csv", "\n".join(separator.join(row) for row in rows))
    (video,) = read_annotations(path)
    assert video.segments == (Segment(1.5, 2.25, "x, y"),)


HEADER = "video,start_s,end_s,label\n"


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "empty"),
        (HEADER, "no videos"),
        ("video,start,end,label\na,1,2,x\n", "no column start_s, end_s"),
        (HEADER + "a,3,2,x\n", "line 2.*reversed"),
        (HEADER + "a,1,2,x\nb,-1,2,x\n", "line 3.*start_s is -1"),
        (HEADER + "a,nan,2,x\n", "line 2.*start_s is 'nan'"),
        (HEADER + "a,1,inf,x\n", "line 2.*end_s is 'inf'"),
        (HEADER + "a,1,soon,x\n", "line 2.*end_s is 'soon'"),
        (HEADER + "a,1,2,\n", "line 2.*no label"),
        (HEADER + ",1,2,x\n", "line 2.*empty video id"),
        (HEADER + "../a,1,2,x\n", "line 2.*path separator"),
        (HEADER + "/etc/passwd,1,2,x\n", "line 2.*path separator"),
        (HEADER + "a\\b,1,2,x\n", "line 2.*path separator"),
        (HEADER + "a,1,2,x,y\n", "line 2 has 5 cells"),
        (HEADER + "a.mp4,1,2,x\na.avi,1,2,x\n", "line 3.*share the id 'a'"),
        ("video,start_s,end_s,label,subset\na,1,2,x,t\na,1,2,x,v\n", "line 3.*earlier line"),
    ],
)
def test_unusable_csv_is_one_clear_line(tmp_path, text, words):
    path = _write(tmp_path / "own.csv", text)
    with pytest.raises(ValueError, match=words) as caught:
        read_annotations(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


GOOD = {"duration": 5, "subset": "training", "annotations": [{"segment": [1, 2], "label": "x"}]}


def _with(**changes):
    return {**GOOD, **changes}


def _segment(*times):
    return _with(annotations=[{"segment": list(times), "label": "x"}])


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "empty"),
        ("{", "not JSON at line 1"),
        ("video,start_s\n", "not JSON"),
        ("[1, 2]", "expected"),
        ('{"results": {}}', "expected"),
        ('{"database": {}}', "no videos"),
        ('{"database": {"a": {}, "a": {}}}', "'a' appears twice"),
        (json.dumps({"database": {"../../a": GOOD}}), "path separator"),
        (json.dumps({"database": {"..": GOOD}}), "path separator"),
        (json.dumps({"database": {"a": 3}}), "'a' is int"),
        (json.dumps({"database": {"a": _segment(math.nan, 2)}}), "'a': annotation 0: start is nan"),
        (json.dumps({"database": {"a": _segment(-1, 2)}}), "'a': annotation 0: start is -1"),
        (json.dumps({"database": {"a": _segment(1, "x")}}), "'a': annotation 0: end is 'x'"),
        (json.dumps({"database": {"a": _segment(1)}}), r"expected \[start, end\]"),
        (json.dumps({"database": {"a": _with(annotations=[{"segment": [1, 2]}])}}), "lacks"),
        (json.dumps({"database": {"a": _with(duration="long")}}), "duration is 'long'"),
    ],
)
def test_unusable_json_is_one_clear_line(tmp_path, text, words):
    path = _write(tmp_path / "a.json", text)
    with pytest.raises(ValueError, match=words) as caught:
        read_annotations(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_reversed_and_zero_segments_of_official_files_are_kept_for_the_check(tmp_path):
    path = _database(tmp_path / "a.json", a=_segment(3, 2), b=_segment(2, 2))
    assert [v.segments[0] for v in read_annotations(path)] == [
        Segment(3.0, 2.0, "x"),
        Segment(2.0, 2.0, "x"),
    ]


def test_missing_files_and_wrong_formats(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_annotations(tmp_path / "nothing.json")
    path = _database(tmp_path / "a.json", a=GOOD)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_annotations(path, video_dir=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="format 'bsn'"):
        read_annotations(path, format="bsn")
    with pytest.raises(ValueError, match="known: auto, activitynet"):
        read_annotations(path, format="coco")
    (tmp_path / "latin.csv").write_bytes(HEADER.encode() + "a,1,2,caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        read_annotations(tmp_path / "latin.csv")


def test_video_files_are_found_by_prefix_extension_and_class_folder(tmp_path):
    for name in ("a.mp4", "a.webm", "v_b.MKV", "Some_Class/v_c.avi", "d.txt", "Some_Class/a.mov"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = index_videos(tmp_path)
    found = {name: find_in_index(name, files) for name in ("a", "b", "c", "d", "a.webm")}
    assert found == {
        "a": tmp_path / "a.mp4",
        "b": tmp_path / "v_b.MKV",
        "c": tmp_path / "Some_Class" / "v_c.avi",
        "d": None,
        "a.webm": tmp_path / "a.webm",
    }


def test_segments_of_positive_length_become_clips(tmp_path):
    file = tmp_path / "a.mp4"
    segments = (Segment(1.0, 2.0, "x"), Segment(3.0, 3.0, "y"), Segment(5.0, 4.0, "z"))
    videos = [
        Video("a", file, None, None, None, segments),
        Video("b", None, None, None, None, segments),
    ]
    assert segments_as_clips(videos) == [TrimmedClip(file, "x", 1.0, 2.0)]


def test_clip_lists(tmp_path):
    folder = tmp_path / "source"
    hidden = "run/._1.mp4", "run/.tmp-7@a@9.mp4"  # of a Mac, and of who was killed
    for name in ("run/2.mp4", "run/1.mp4", "jump/3.mkv", "jump/notes.txt", *hidden):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    by_folder = read_clip_list(folder)
    assert [(c.path.name, c.label) for c in by_folder] == [
        ("3.mkv", "jump"),
        ("1.mp4", "run"),
        ("2.mp4", "run"),
    ]
    text = "clip,label,start_s,end_s\nsource/run/1.mp4,run,,\nsource/run/2.mp4,run,0.5,1.5\n"
    assert read_clip_list(_write(tmp_path / "list.csv", text)) == [
        TrimmedClip(folder / "run" / "1.mp4", "run"),
        TrimmedClip(folder / "run" / "2.mp4", "run", 0.5, 1.5),
    ]


def test_train_and_val_are_subsets_never_classes(tmp_path):
    for name in ("train/run/1.mp4", "train/jump/2.mp4", "val/run/3.mp4"):
        (tmp_path / "kinetics" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "kinetics" / name).touch()
    clips = read_clip_list(tmp_path / "kinetics")
    found = [(c.path.name, c.label, c.subset) for c in clips]
    assert found == [("2.mp4", "jump", "train"), ("1.mp4", "run", "train"), ("3.mp4", "run", "val")]
    kept, held = split_clips(clips)
    assert [c.path.name for c in held] == ["3.mp4"] and len(kept) == 2
    text = "label,youtube_id,time_start,time_end,split\nrun,a,1,11,train\n"
    (tmp_path / "kinetics" / "train" / "run" / "a_000001_000011.mp4").touch()
    (clip,) = read_clip_list(_write(tmp_path / "kinetics" / "train.csv", text))
    assert split_clips([clip] * 20) == ([clip] * 20, []), "an official training list stays whole"

    for name in ("train/1.mp4", "val/2.mp4"):
        (tmp_path / "flat" / name).parent.mkdir(parents=True)
        (tmp_path / "flat" / name).touch()
    with pytest.raises(ValueError, match="train, val hold videos and no class folders"):
        read_clip_list(tmp_path / "flat")


def test_kinetics_list_beside_the_folders_of_the_crawler(tmp_path):
    for name in ("riding a bike/abc_000004_000014.mp4", "air_drumming/xyz_000100_000110.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    text = (
        "label,youtube_id,time_start,time_end,split,is_cc\nriding a bike,abc,4,14,val,0\n"
        "air drumming,xyz,100,110,val,0\nair drumming,gone,1,11,val,0\n"
    )
    clips = read_clip_list(_write(tmp_path / "val.csv", text))
    assert [(c.path.name, c.label) for c in clips] == [
        ("abc_000004_000014.mp4", "riding a bike"),
        ("xyz_000100_000110.mp4", "air drumming"),
    ]


def test_kinetics_list_beside_folders_made_by_the_tools_of_tsm(tmp_path):
    for name in ("playing_organ_x/abc_4.mp4", "shooting_goal_soccer/xyz_000100.webm"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    text = (
        'label,youtube_id,time_start,time_end,split\n"playing ""organ"" x",abc,4,14,train\n'
        "shooting goal (soccer),xyz,100,110,train\n"
    )
    clips = read_clip_list(_write(tmp_path / "train.csv", text))
    assert [(c.path.name, c.label, c.subset) for c in clips] == [
        ("abc_4.mp4", 'playing "organ" x', "train"),
        ("xyz_000100.webm", "shooting goal (soccer)", "train"),
    ]


@pytest.mark.parametrize(
    "text, words",
    [
        ("clip,name\na,x\n", "no column label"),
        ("clip,label\n", "no clips"),
        ("clip,label\n../a.mp4,x\n", "line 2.*below the list"),
        ("clip,label\n/a.mp4,x\n", "line 2.*below the list"),
        ("clip,label\na.mp4,\n", "line 2.*empty"),
        ("clip,label,start_s,end_s\na.mp4,x,2,1\n", "line 2.*ends before"),
        ("label,youtube_id,time_start,time_end\nx,abc,1,2\n", "none of 1 clips"),
    ],
)
def test_unusable_clip_lists(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        read_clip_list(_write(tmp_path / "list.csv", text))
