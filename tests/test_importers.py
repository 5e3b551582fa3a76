"""Labelling tools in and out. Samples are built here from the formats' public descriptions.

One video of 250 frames at 25 a second holds two events: frames [50, 100) and [120, 125).
"""

import csv
import json
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from lofi.data import probe, read_annotations, write_video
from lofi.data.exporters import WRITERS, Mark, export_labels
from lofi.data.importers import COLUMNS, READERS, guess, import_labels

ROOT = Path(__file__).resolve().parent.parent
NAME = "Wäsche 1.mp4"
FRAMES = [(50, 100, "run"), (120, 125, "<b>jump</b> & ü")]
ODD = FRAMES[1][2]


def xml_text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def studio(ranges, name=NAME, key="annotations", **data) -> str:
    result = [
        {
            "id": str(i), "type": "timelinelabels", "from_name": "t", "to_name": "video",
            "value": {"ranges": [{"start": start, "end": end}], "timelinelabels": [label]},
        }
        for i, (start, end, label) in enumerate(ranges)
    ]  # fmt: skip
    task = {"id": 7, "data": {"video": f"/data/upload/3/1a2b3c4d-{name}", **data}}
    return json.dumps([task | {key: [{"completed_by": 1, "result": result}]}])


SAMPLES = {
    "via": ("via.json", json.dumps({
        "project": {"pname": "p", "data_format_version": "3.1.1", "vid_list": ["1"]},
        "config": {},
        "attribute": {
            "1": {"aname": "Activity", "anchor_id": "FILE1_Z2_XY0", "type": 4,
                  "options": {"1": "run", "2": ODD}, "default_option_id": ""},
            "2": {"aname": "Object", "anchor_id": "FILE1_Z1_XY1", "type": 1, "options": {}}},
        "file": {"1": {"fid": "1", "fname": NAME, "type": 4, "loc": 1, "src": ""}},
        "metadata": {
            "1_a": {"vid": "1", "flg": 0, "z": [2.0, 4.0], "xy": [], "av": {"1": "1"}},
            "1_b": {"vid": "1", "flg": 0, "z": [4.8, 5.0], "xy": [], "av": {"1": "2"}},
            "1_c": {"vid": "1", "flg": 0, "z": [1.0], "xy": [2, 1, 1, 5, 5], "av": {"2": "cup"}}},
        "view": {"1": {"fid_list": ["1"]}},
    })),
    "elan": ("notes.eaf", f"""<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT AUTHOR="" DATE="2024-01-01T00:00:00+00:00" FORMAT="3.0" VERSION="3.0">
 <HEADER MEDIA_FILE="" TIME_UNITS="milliseconds"><MEDIA_DESCRIPTOR
  MEDIA_URL="file:///C:/My%20Videos/W%C3%A4sche%201.mp4" MIME_TYPE="video/mp4"/></HEADER>
 <TIME_ORDER><TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="2000"/>
  <TIME_SLOT TIME_SLOT_ID="ts2" TIME_VALUE="4000"/><TIME_SLOT TIME_SLOT_ID="ts3" TIME_VALUE="4800"/>
  <TIME_SLOT TIME_SLOT_ID="ts4" TIME_VALUE="5000"/></TIME_ORDER>
 <TIER LINGUISTIC_TYPE_REF="t" TIER_ID="run"><ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1"
  TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts2"><ANNOTATION_VALUE></ANNOTATION_VALUE>
  </ALIGNABLE_ANNOTATION></ANNOTATION></TIER>
 <TIER LINGUISTIC_TYPE_REF="t" TIER_ID="other"><ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a2"
  TIME_SLOT_REF1="ts3" TIME_SLOT_REF2="ts4"><ANNOTATION_VALUE>{xml_text(ODD)}</ANNOTATION_VALUE>
  </ALIGNABLE_ANNOTATION></ANNOTATION></TIER>
</ANNOTATION_DOCUMENT>"""),
    "boris": ("project.boris", json.dumps({
        "project_name": "p", "time_format": "hh:mm:ss",
        "behaviors_conf": {"0": {"type": "State event", "code": "run"},
                           "1": {"type": "State event", "code": ODD}},
        "observations": {"o": {
            "type": "MEDIA", "file": {"1": [f"/home/me/{NAME}"], "2": []}, "time offset": 0.0,
            "media_info": {"length": {f"/home/me/{NAME}": 10.0}, "fps": {f"/home/me/{NAME}": 25.0}},
            "events": [[2.0, "", "run", "", ""], [4.0, "", "run", "", ""],
                       [4.8, "", ODD, "", "", 120], [5.0, "", ODD, "", "", 125]]}},
    })),
    "boris-table": ("tabular.tsv", "\n".join("\t".join(map(str, row)) for row in [
        ["Observation id", "Source", "Time offset (s)", "Media duration (s)", "FPS", "Subject",
         "Behavior", "Behavioral category", "Behavior type", "Time", "Media file name", "Comment"],
        *(["o", f"player #1:/x/{NAME}", 0.0, 10.0, 25.0, "cat", label, "", kind, time,
           f"/x/{NAME}", ""] for time, kind, label in ((2.0, "START", "run"), (4.0, "STOP", "run"),
                                    (4.8, "START", ODD), (5.0, "STOP", ODD))),
    ])),
    "boris-paste": ("Wäsche 1.tsv", f"2.0\t\trun\n4.0\t\trun\n4.8\tcat\t{ODD}\n5.0\tcat\t{ODD}\n"),
    "cvat": ("annotations.xml", f"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><id>5</id><name>t</name><size>250</size>
<mode>interpolation</mode><start_frame>0</start_frame><stop_frame>249</stop_frame>
<source>{NAME}</source></task></meta>
<track id="0" label="run" source="manual"><box frame="50" keyframe="1" outside="0" occluded="0"
 xtl="1" ytl="1" xbr="9" ybr="9" z_order="0"/><box frame="51" keyframe="0" outside="0" occluded="0"
 xtl="1" ytl="1" xbr="9" ybr="9" z_order="0"/><box frame="100" keyframe="1" outside="1" occluded="0"
 xtl="1" ytl="1" xbr="9" ybr="9" z_order="0"/></track>
<track id="1" label="{xml_text(ODD)}" source="manual"><polygon frame="120" keyframe="1" outside="0"
 occluded="0" points="1,1;2,2;3,1"/><polygon frame="125" keyframe="1" outside="1" occluded="0"
 points="1,1;2,2;3,1"/></track></annotations>"""),
    "label-studio": ("export.json", studio([(51, 100, "run"), (121, 125, ODD)], fps=25)),
    "label-studio-min": ("min.json", json.dumps([{
        "video": f"/data/local-files/?d=x/{NAME}", "id": 7, "fps": "25",
        "videoLabels": [{"ranges": [{"start": 51, "end": 100}], "timelinelabels": ["run"]},
                        {"ranges": [{"start": 121, "end": 125}], "timelinelabels": [ODD]}]}])),
    "x-anylabeling": ("side.json", json.dumps({
        "version": "1.0.0", "type": "video_classification", "video": NAME, "fps": 25.0,
        "duration_ms": 10000, "width": 56, "height": 48, "labels": ["run", ODD], "segments": [
            {"id": "s1", "label": "run", "start_ms": 2000, "end_ms": 4000, "start_frame": 50,
             "end_frame": 100, "description": ""},
            {"id": "s2", "label": ODD, "start_ms": 4800, "end_ms": 5000, "start_frame": 120,
             "end_frame": 125, "description": ""}]})),
    "fiftyone": ("labels.json", json.dumps({"classes": ["run", ODD], "labels": {
        "Wäsche 1": [{"label": 0, "support": [51, 100]}, {"label": 1, "support": [121, 125]}]}})),
    "fiftyone-samples": ("samples.json", json.dumps({"samples": [{
        "filepath": f"/data/{NAME}", "tags": [],
        "metadata": {"_cls": "VideoMetadata", "frame_rate": 25, "total_frame_count": 250},
        "events": {"_cls": "TemporalDetections", "detections": [
            {"_cls": "TemporalDetection", "label": "run", "support": [51, 100]},
            {"_cls": "TemporalDetection", "label": ODD, "support": [121, 125]}]}}]})),
    "audacity": ("Wäsche 1.txt", f"2.000000\t4.000000\trun\n\\\t1.0\t2.0\n4.8\t5.0\t{ODD}\n"),
    "csv": ("excel.csv", f"Filename;Start (s);Stop (s);Class\r\n{NAME};2,0;4,0;run\r\n"
                         f'{NAME};0:04,8;00:00:05;"{ODD}"\r\n'),
    "csv-tabs": ("t.txt", f"label\tvideo\tstart_ms\tduration_ms\nrun\t{NAME}\t2000\t2000\n"
                          f"{ODD}\t{NAME}\t4800\t200\n"),
}  # fmt: skip
DRAFTS = {
    "seconds": json.dumps([{"video": NAME, "start": 2, "end": 4.0, "label": "run"},
                           {"video": NAME, "start": 4.8, "end": "5.0", "label": ODD}]),
    "clock": "Here are the events:\n```json\n" + json.dumps({"video_file": NAME, "events": [
        {"start_time": "00:00:02", "end_time": "00:00:04", "event": "run"},
        {"start_time": "0:04.8", "end_time": "0:05", "event": ODD}]}) + "\n```\nAsk me for more!",
    "by name": json.dumps({NAME: [{"begin": "2", "end": "4", "action": "run"},
                                  {"begin": "4.8", "end": "5", "action": ODD}]}),
}  # fmt: skip


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / NAME, np.zeros((250, 48, 56, 3), np.uint8), fps=25)
    return folder


def lofi(*words) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lofi", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def frames_of(table: Path, fps: float = 25) -> list[tuple[int, int, str]]:
    """Events in frames; all times lie on frames."""
    segments = [s for video in read_annotations(table) for s in video.segments]
    for time in (t for s in segments for t in (s.start_s, s.end_s)):
        assert abs(time * fps - round(time * fps)) < 1e-3
    return [(round(s.start_s * fps), round(s.end_s * fps), s.label) for s in segments]


@pytest.mark.parametrize("name", SAMPLES)
def test_every_tool_is_recognised_and_gives_the_same_frames(name, videos, tmp_path):
    file, text = SAMPLES[name]
    path, out = write(tmp_path / file, text), tmp_path / "events.csv"
    done = import_labels(path, videos, out)
    assert done.tool == (name if name in READERS else name.rsplit("-", 1)[0])
    assert frames_of(out) == FRAMES
    video = read_annotations(out, video_dir=videos)[0]
    assert (video.path, video.duration_s, video.fps) == (videos / NAME, 10, 25)
    assert tuple(next(csv.reader(out.open(encoding="utf-8")))) == COLUMNS


@pytest.mark.parametrize("tool", WRITERS)
def test_import_then_export_is_the_identity_in_frames(tool, videos, tmp_path):
    file, text = SAMPLES[tool]
    first, second = tmp_path / "1.csv", tmp_path / "2.csv"
    import_labels(write(tmp_path / file, text), videos, first)
    video = read_annotations(first, video_dir=videos)[0]
    marks = [Mark(s.start_s, s.end_s, s.label) for s in video.segments]
    (written,) = export_labels(tool, {video.path: marks}, tmp_path / "out")
    done = import_labels(written, videos, second)
    assert done.tool == tool and frames_of(second) == FRAMES
    # In the tool's own numbers, too.
    numbers = {
        "label-studio": r'"(start|end)": (\d+)', "x-anylabeling": r'"(\w+_frame)": (\d+)',
        "fiftyone": r"\[\s*(\d+),\s*(\d+)\s*\]", "cvat": r'<\w+ frame="(\d+)" .*?outside="(\d)"',
    }  # fmt: skip
    if tool in numbers:
        found = sorted(set(re.findall(numbers[tool], written.read_text())))
        shown = [pair for pair in re.findall(numbers[tool], text) if pair != ("51", "0")]
        assert found == sorted(set(shown))


@pytest.mark.parametrize("tool", [t for t in WRITERS if t != "boris"])
def test_random_events_survive_the_way_there_and_back_in_every_tool(tool, videos, tmp_path):
    rng = np.random.default_rng(3)
    starts, lengths = rng.integers(0, 240, 40), rng.integers(1, 11, 40)
    spans = {(int(a), int(a + n), f"c{i % 3}") for i, (a, n) in enumerate(zip(starts, lengths))}
    marks = [Mark(a / 25, b / 25, label) for a, b, label in spans]
    (written,) = export_labels(tool, {videos / NAME: marks}, tmp_path)
    import_labels(written, videos, tmp_path / "back.csv", tool)
    assert sorted(frames_of(tmp_path / "back.csv")) == sorted(spans)


@pytest.mark.parametrize("name", DRAFTS)
def test_drafts_of_a_language_model_are_never_taken_for_truth(name, videos, tmp_path):
    path, out = write(tmp_path / "answer.json", DRAFTS[name]), tmp_path / "events.csv"
    done = import_labels(path, videos, out)
    assert done.tool == "draft" and frames_of(out) == FRAMES
    rows = list(csv.DictReader(out.open(encoding="utf-8")))
    assert {row["source"] for row in rows} == {row["subset"] for row in rows} == {"draft"}
    assert any("2 events are drafts" in note for note in done.notes)
    from lofi.config import DataConfig
    from lofi.data.datasets import open_datasets

    with pytest.raises(ValueError, match="no video in subset 'training'.*found: draft"):
        open_datasets(DataConfig(annotations=str(out)), 0, tmp_path)
    # Also when they come back as our own table.
    import_labels(out, videos, tmp_path / "again.csv")
    assert "draft" in (tmp_path / "again.csv").read_text()


def test_predictions_in_label_studio_are_drafts_until_annotated(videos, tmp_path):
    text = studio([(51, 100, "run")], fps=25, key="predictions")
    rows = import_labels(write(tmp_path / "p.json", text), videos, tmp_path / "o.csv").rows
    assert [row[-1] for row in rows] == ["draft"]


# ---------------------------------------------------------------------------- the rate trap


@pytest.fixture(scope="module")
def ntsc(tmp_path_factory) -> Path:
    """300 frames at 30000/1001, from 0 in one file, with the first frame at 0.066 s in another."""
    folder, rate = tmp_path_factory.mktemp("ntsc"), Fraction(30000, 1001)
    for name, late in (("clip.mp4", 0), ("late.mp4", 2)):
        with av.open(str(folder / name), "w") as file:
            stream = file.add_stream("libx264", rate=rate)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.time_base = 1 / rate
            for i in range(300):
                frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")
                frame.pts, frame.time_base = i + late, 1 / rate
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
    return folder


@pytest.mark.parametrize("rate", [24, 25])
def test_labels_at_24_or_25_on_a_video_of_2997_are_refused_and_remapped(rate, ntsc, tmp_path):
    """An event over the seconds [2, 6) of a video, as a tool counts it that assumes `rate`."""
    ranges = [(2 * rate + 1, 6 * rate, "run")]
    known = {"fps": rate} if rate == 25 else {}
    path = write(tmp_path / "ls.json", studio(ranges, "clip.mp4", **known))
    out = tmp_path / "events.csv"
    with pytest.raises(ValueError) as refused:
        import_labels(path, ntsc, out)
    message = str(refused.value)
    assert "\n" not in message and "Label Studio" in message and not out.exists()
    assert f"at {rate} a second" in message and "clip.mp4 has 300 frames at 29.97" in message
    assert ("its default" in message) == (rate == 24)
    command = message[message.index("lofi import") :]
    assert command.endswith(f"--fps {rate}")
    done = lofi(*command.split()[1:])
    assert done.returncode == 0, done.stderr
    assert f"clip.mp4: from {rate} to 29.97 frames a second" in done.stdout
    (segment,) = read_annotations(out)[0].segments
    assert (segment.start_s, segment.end_s) == pytest.approx((2, 6))
    # And back: the same numbers in the tool.
    marks = [Mark(segment.start_s, segment.end_s, "run")]
    (written,) = export_labels("label-studio", {ntsc / "clip.mp4": marks}, tmp_path, fps=rate)
    assert f'"start": {ranges[0][0]}' in written.read_text()
    assert f'"end": {ranges[0][1]}' in written.read_text()


def test_a_wrong_rate_that_leaves_the_video_is_noticed(ntsc, tmp_path):
    path = write(tmp_path / "ls.json", studio([(200, 290, "run")], "clip.mp4"))
    with pytest.raises(ValueError, match="is outside its 10.01 s: another rate"):
        import_labels(path, ntsc, tmp_path / "o.csv", fps=24)


def test_frames_at_the_videos_own_rate_need_no_option(ntsc, tmp_path):
    path = write(tmp_path / "ls.json", studio([(1, 300, "run")], "clip.mp4", fps=29.97))
    import_labels(path, ntsc, tmp_path / "o.csv")
    assert frames_of(tmp_path / "o.csv", 30000 / 1001) == [(0, 300, "run")]


@pytest.mark.parametrize("tool", ["label-studio", "via", "elan"])
def test_browsers_start_to_count_before_the_first_frame_of_some_files(tool, ntsc, tmp_path):
    """`late.mp4` shows frame 0 at 0.066 s of its own clock; measured in Chromium: at 1 s frame 27.

    Players that begin with the first frame (mpv, ELAN) see frame 27 at 27 / 29.97 s.
    """
    rate, info = 30000 / 1001, probe(ntsc / "late.mp4")
    assert info.num_frames == 300
    mark = Mark(27 / rate, 57 / rate, "run")
    (written,) = export_labels(tool, {ntsc / "late.mp4": [mark]}, tmp_path)
    text = written.read_text()
    if tool == "label-studio":  # frame 29 of the clock, 1-based 30
        assert '"start": 30' in text and '"end": 59' in text
    else:
        shown = json.loads(text)["metadata"]["1_00000000"]["z"][0] if tool == "via" else 0.901
        assert shown == pytest.approx((27 / rate) + (0.066 if tool == "via" else 0), abs=1e-3)
    import_labels(written, ntsc, tmp_path / "back.csv")
    (segment,) = read_annotations(tmp_path / "back.csv")[0].segments
    assert abs(segment.start_s * rate - 27) < 0.03 and abs(segment.end_s * rate - 57) < 0.03


# ---------------------------------------------------------------------------- what files can be


def refused(path: Path, videos: Path, **options) -> str:
    """The message of a refusal: one line, and nothing is written."""
    out = path.with_name("out.csv")
    with pytest.raises(ValueError) as error:
        import_labels(path, videos, out, **options)
    assert "\n" not in str(error.value) and not out.exists()
    return str(error.value)


def test_point_events_are_refused_or_get_a_length(videos, tmp_path):
    project = json.loads(SAMPLES["boris"][1])
    project["behaviors_conf"]["2"] = {"type": "Point event", "code": "blink"}
    project["observations"]["o"]["events"] += [
        [3.0, "", "blink", "", ""],
        [9.9, "", "blink", "", ""],
    ]
    path = write(tmp_path / "p.boris", json.dumps(project))
    message = refused(path, videos)
    assert "2 events are points in time (2 'blink')" in message and "--point-length 1" in message
    import_labels(path, videos, tmp_path / "o.csv", point_s=0.4)
    blinks = [s for s in read_annotations(tmp_path / "o.csv")[0].segments if s.label == "blink"]
    times = [time for s in blinks for time in (s.start_s, s.end_s)]
    assert times == pytest.approx([2.8, 3.2, 9.7, 10.0])


def test_states_without_their_stop_are_named(videos, tmp_path):
    path = write(tmp_path / "Wäsche 1.tsv", "1.0\t\trun\n2.5\t\trun\n3.0\t\trun\n")
    assert "'run' starts at 3 s and never stops" in refused(path, videos)
    text = SAMPLES["boris-table"][1].replace("START", "STOP")
    assert "'run' stops without a start at 2 s" in refused(write(tmp_path / "t.tsv", text), videos)


def test_videos_that_are_not_there_are_counted(videos, tmp_path):
    text = f"video,start,end,label\n{NAME},1,2,a\nother.mp4,1,2,a\n"
    done = import_labels(write(tmp_path / "a.csv", text), videos, tmp_path / "o.csv")
    assert any("1 of 2 videos have no file" in n and "other.mp4" in n for n in done.notes)
    assert "none of its 1 videos" in refused(
        write(tmp_path / "b.csv", "video,start,end,label\nx.mp4,1,2,a\n"), videos
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_tables_come_in_the_encodings_of_spreadsheets(encoding, videos, tmp_path):
    path = write(tmp_path / "t.csv", SAMPLES["csv"][1], encoding)
    import_labels(path, videos, tmp_path / "o.csv")
    assert frames_of(tmp_path / "o.csv") == FRAMES


def test_file_names_and_labels_meet_in_composed_unicode(tmp_path):
    """A file system may spell ä as a and a combining mark; labels become NFC."""
    name = "Wa\u0308sche.mp4"
    write_video(tmp_path / name, np.zeros((25, 48, 56, 3), np.uint8), fps=25)
    text = "video,start,end,label\nW\u00e4sche.mp4,0,1,u\u0308 \n"
    done = import_labels(write(tmp_path / "t.csv", text), tmp_path, tmp_path / "o.csv")
    assert done.rows[0][0] == name and done.rows[0][3] == "\u00fc"
    assert read_annotations(tmp_path / "o.csv", video_dir=tmp_path)[0].path == tmp_path / name


def test_videos_without_events_stay_without_events(videos, tmp_path):
    for text in (studio([], fps=25), f"video,start,end,label\n{NAME},,,\n"):
        import_labels(write(tmp_path / "t", text), videos, tmp_path / "o.csv")
        (video,) = read_annotations(tmp_path / "o.csv")
        assert video.segments == ()


BROKEN = [  # sample, what is changed, into what, what the message says
    ("via", '"metadata"', '"meta"', "VIA 3, but an entry lacks 'metadata'"),
    ("via", "[2.0, 4.0]", '["a", 4.0]', "VIA 3, but z of metadata '1_a' is 'a', expected a number"),
    ("elan", 'TIME_VALUE="2000"', "", "ELAN, but annotation 'a1' (TIME_VALUE) is 'None'"),
    ("elan", "milliseconds", "PAL-frames", "ELAN, but it names no video in its header, or no mill"),
    ("boris", "behaviors_conf", "ethogram", "BORIS, but an entry lacks 'behaviors_conf'"),
    ("boris", "10.0", "99.0", "BORIS, labelled on 99.0 s, but Wäsche 1.mp4 has 10.0 s"),
    ("cvat", "<stop_frame>249", "<stop_frame>299", "CVAT for video, it counts 300 frames"),
    ("cvat", "track", "image", "CVAT for video, but it holds no tracks of a video"),
    ("label-studio", '"end": 100', '"end": "x"', "Label Studio, but a range of task 1 is 'x'"),
    (
        "x-anylabeling",
        '"start_ms": 2000',
        '"start_ms": 9000',
        "start_ms 9000 and frame 50 disagree",
    ),
    (
        "fiftyone",
        '"support": [51, 100]',
        '"support": 51',
        "FiftyOne, but an entry is not as expected",
    ),
    ("audacity", "4.8\t5.0", "4.8\tlater", "Audacity labels, but line 3 is 'later'"),
    (
        "csv",
        "Class",
        "Farbe",
        "a table, but its table: line 2 has no label (found: filename, start",
    ),
    ("csv", "4,0", "1:75", "is '1:75', expected seconds or h:mm:ss"),
    ("csv", "2,0;4,0", "4,0;2,0", "'run' from 4 to 2 s of Wäsche 1.mp4 is reversed"),
    ("csv", "2,0;4,0", "50;100", "is outside its 10 s: not seconds"),
]


@pytest.mark.parametrize("name, old, new, said", BROKEN)
def test_a_broken_file_is_one_line_with_the_tool_and_what_is_missing(
    name, old, new, said, videos, tmp_path
):
    file, text = SAMPLES[name]
    assert old in text
    message = refused(write(tmp_path / file, text.replace(old, new)), videos)
    assert str(tmp_path / file) in message and said in message, message


@pytest.mark.parametrize("name", [*SAMPLES, *DRAFTS])
def test_truncated_and_garbled_files_never_crash(name, videos, tmp_path):
    """Cut anywhere, or with values of other types: refused in one line, or read."""
    file, text = SAMPLES.get(name) or ("d.json", DRAFTS[name])
    rng, path = np.random.default_rng(0), tmp_path / file
    changes = ["null", "[]", "{}", '"x"', "-3", "1e999", "true"]
    texts = [text[: int(cut)] for cut in rng.integers(1, len(text), 12)]
    values = list(re.finditer(r'\[[^\[\]]*\]|"[^"]*"(?!\s*:)|\b\d+\.?\d*\b', text))
    for i in rng.integers(0, len(values), 30):
        begin, end = values[i].span()
        texts.append(text[:begin] + changes[rng.integers(len(changes))] + text[end:])
    tool = name if name in READERS else None
    cut_named = 0
    for changed in texts:
        for options in ({}, {"tool": tool} if tool else {}):
            try:
                import_labels(write(path, changed), videos, tmp_path / "o.csv", **options)
                read_annotations(tmp_path / "o.csv")
            except ValueError as error:
                assert "\n" not in str(error) and str(path) in str(error), error
                cut_named += "taken for" in str(error)
    assert cut_named


def test_files_that_need_no_import_or_are_no_text_say_what_to_do(videos, tmp_path):
    anet = '{"version": "1", "database": {"a": {"annotations": []}}}'
    assert "needs no import" in refused(write(tmp_path / "a.json", anet), videos)
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04rest")
    assert "unpack it" in refused(tmp_path / "a.zip", videos)
    assert "of none of VIA 3, ELAN" in refused(write(tmp_path / "a.txt", "hello world\n"), videos)
    assert guess("\n".join(["video,start,end,label", "a,1,2,b"]), "x") == "csv"


def test_detections_go_out_as_they_are_in_the_subtitles(videos, tmp_path):
    found = {"results": {Path(NAME).stem: [
        {"label": "run", "score": 0.9, "segment": [2, 4]},
        {"label": "run", "score": 0.8, "segment": [2.2, 4]},
        {"label": "jump", "score": 0.1, "segment": [6, 7]}]}}  # fmt: skip
    path = write(tmp_path / "found.json", json.dumps({"version": "x", **found}))

    def export(tool: str, *more: str) -> subprocess.CompletedProcess:
        where = "--videos", videos, "--out", tmp_path / tool
        return lofi("export", path, "--tool", tool, *where, *more)

    assert "1 events of 1 videos" in export("audacity").stdout
    assert (tmp_path / "audacity" / "Wäsche 1.txt").read_text() == "2.000000\t4.000000\trun\n"
    result = export("boris", "--min-score", "0")
    assert result.returncode == 1 and "two 'run' overlap at 2.200 s" in result.stderr
    assert "3 events" in export("csv", "--min-score", "0").stdout
    rows = list(csv.DictReader((tmp_path / "csv" / "events.csv").open(encoding="utf-8")))
    assert {row["subset"] for row in rows} == {"draft"}


@pytest.mark.parametrize("tool", ["audacity", "fiftyone"])
def test_labels_of_two_videos_of_one_name_do_not_replace_each_other(tool, videos, tmp_path):
    twin = shutil.copy(videos / NAME, tmp_path / NAME)
    marks = [Mark(0.0, 1.0, "run")]
    with pytest.raises(ValueError, match="two videos are called 'W"):
        export_labels(tool, {videos / NAME: marks, Path(twin): marks}, tmp_path / "out")
