"""Result files: what is written can be read, a broken file says where, subtitles are valid."""

import json
import os

import pytest

from lofi.detection import (
    Detection,
    PostProcessing,
    read_detections,
    results,
    write_csv,
    write_detections,
    write_srt,
)

FOUND = {
    "abc": [Detection(0.1, 1 / 3, "Playing guitarra", 2 / 3), Detection(5, 6, 'say, "hi"', 1e-17)],
    "üñ": [],
}


def test_json_keeps_every_bit_and_the_post_processing(tmp_path):
    path = tmp_path / "new" / "detections.json"
    write_detections(path, FOUND, PostProcessing(sigma=0.5))
    assert read_detections(path) == FOUND
    content = json.loads(path.read_text())
    assert set(content) == {"version", "results", "external_data"}
    assert content["results"]["abc"][0] == {
        "label": "Playing guitarra", "score": 2 / 3, "segment": [0.1, 1 / 3],
    }  # fmt: skip
    assert content["external_data"]["post_processing"]["sigma"] == 0.5


def test_proposals_have_no_label_in_the_file(tmp_path):
    write_detections(tmp_path / "p.json", {"a": [Detection(0, 1, "", 0.5)]})
    content = json.loads((tmp_path / "p.json").read_text())
    assert content["results"]["a"] == [{"score": 0.5, "segment": [0, 1]}]
    assert read_detections(tmp_path / "p.json")["a"][0].label == ""


def test_no_videos_is_a_valid_file(tmp_path):
    write_detections(tmp_path / "none.json", {})
    assert read_detections(tmp_path / "none.json") == {}


def test_csv_keeps_every_bit(tmp_path):
    write_csv(tmp_path / "d.csv", FOUND)
    assert read_detections(tmp_path / "d.csv") == {"abc": FOUND["abc"]}  # no row, no video


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_detections(tmp_path / "d.json", FOUND)
    with pytest.raises(ValueError):
        write_detections(tmp_path / "d.json", {"a": [Detection(0, float("nan"), "x", 1.0)]})
    assert read_detections(tmp_path / "d.json") == FOUND
    assert os.listdir(tmp_path) == ["d.json"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "", "empty"),
        ("a.json", "[1]", 'no "results"'),
        ("a.json", '{"results": {"x": [{"score": 1, "segment": [1]}]}}', "video x, entry 0"),
        ("a.json", '{"results": {"x": [{"score": "?", "segment": [1, 2]}]}}', "video x, entry 0"),
        ("a.json", '{"results": {"x": 5}}', "video x"),
        ("a.csv", "video,start,end\n", "header"),
        ("a.csv", "video,start_s,end_s,label,score\nx,1,two,run,0.5\n", "line 2"),
    ],
)
def test_broken_files_say_where(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_detections(tmp_path / name)
    assert "\n" not in str(error.value) and str(tmp_path / name) in str(error.value)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_detections(tmp_path / f"absent{name}")


def test_subtitles_are_sorted_positive_and_formatted(tmp_path):
    found = [
        Detection(3661.5, 3662.0004, "late", 0.9),
        Detection(-2, 1.25, "two\nlines", 0.8),
        Detection(2, 2, "zero length", 0.7),
    ]
    assert write_srt(tmp_path / "x.srt", found) == 3
    assert (tmp_path / "x.srt").read_text() == (
        "1\n00:00:00,000 --> 00:00:01,250\ntwo lines (0.80)\n\n"
        "2\n00:00:02,000 --> 00:00:02,001\nzero length (0.70)\n\n"
        "3\n01:01:01,500 --> 01:01:02,000\nlate (0.90)\n"
    )
    assert write_srt(tmp_path / "none.srt", []) == 0
    with pytest.raises(ValueError, match="expected seconds"):
        write_srt(tmp_path / "x.srt", [Detection(0, float("inf"), "x", 1.0)])


ODD = {  # as other programs write the same content
    "indented": lambda c: json.dumps(c, indent=2),
    "compact": lambda c: json.dumps(c, separators=(",", ":")),
    "results last": lambda c: json.dumps({"external_data": c["external_data"]} | c),
    "with a mark": lambda c: "\ufeff" + json.dumps(c),
    "escaped": lambda c: json.dumps(c).replace("label", "\\u006cabel"),
}


@pytest.mark.parametrize("size", [40, 97, 150, 10**6])
@pytest.mark.parametrize("used", ["x", [{}]])  # the second looks like the end of a video
@pytest.mark.parametrize("write", ODD.values(), ids=ODD)
def test_pieces_of_a_file_are_the_file(tmp_path, monkeypatch, write, used, size):
    monkeypatch.setattr(results, "PIECE", size)
    names = ['a}], "b": [', "]},", '"results": {', "ü"]
    found = {
        f"video {i}": [
            {"segment": [i, i + 0.1 * j], "score": 0.1 * j, "label": names[(i + j) % 4]}
            for j in range(i % 4)
        ]
        for i in range(12)
    }
    content = {"version": "1 [{}], ", "results": found, "external_data": {"used": used, "b": 1}}
    (tmp_path / "d.json").write_text(write(content), encoding="utf-8")
    try:
        pieces = list(results.read_pieces(tmp_path / "d.json"))
    except results.NotInPieces:  # the reader of whole files takes over
        assert size == 40 or (used == [{}] and size < 10**6)
        return
    whole = results.read_results(tmp_path / "d.json")
    assert [item for piece in pieces for item in piece["results"].items()] == [*found.items()]
    joined = {key: value for piece in pieces for key, value in piece.items()}
    assert joined.keys() == whole.keys() and joined["external_data"] == whole["external_data"]
    assert len(pieces) == 2 if size == 10**6 else len(pieces) > 3


@pytest.mark.parametrize(
    "text",
    [
        '{"results": {"a": [{}], "a": [{}]}}',
        '{"results": {"a": [{}]}, "results": {}}',
        '{"x": {"results": {"a": [{}]}}}',
        '{"results": {"a": [{}],, "b": [{}]}}',
        '{"results": {"a": [{}], "b": [{}]}} x',
        '{"results": {"a": [{}], "b": [{',
        '{"version": 1, "results": {"a": [{}]}, "version": 2}',
        '{"results": [1]}',
        "[]",
        "",
    ],
)
def test_what_is_no_result_file_is_left_to_the_reader_that_explains_it(tmp_path, monkeypatch, text):
    (tmp_path / "d.json").write_text(text)
    for size in (5, 25, 10**6):
        monkeypatch.setattr(results, "PIECE", size)
        with pytest.raises(results.NotInPieces):
            list(results.read_pieces(tmp_path / "d.json"))
    with pytest.raises(ValueError, match="d.json: "):
        results.read_results(tmp_path / "d.json")
