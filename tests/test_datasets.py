"""Own videos with nothing but a CSV go through the same stages as the toy world."""

from dataclasses import replace

import pytest

from lofi import config as configs
from lofi.config import DataConfig
from lofi.data.annotations import read_annotations
from lofi.data.datasets import fingerprint, open_datasets
from lofi.data.toyworld import TINY, WORLDS, write_world
from lofi.experiment import localize, train_encoder
from lofi.files import write_json


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder of videos and a CSV that names no subsets."""
    folder = tmp_path_factory.mktemp("own")
    paths = write_world(folder / "world", replace(TINY, source_clips=(4, 4), videos=(8, 2)), seed=0)
    lines = ["video,start_s,end_s,label"]
    for video in read_annotations(paths.annotations):
        lines += [f"{video.id}.mp4,{s.start_s},{s.end_s},{s.label}" for s in video.segments]
    (folder / "my.csv").write_text("\n".join(lines))
    return DataConfig(
        preset="", annotations=str(folder / "my.csv"), videos=str(paths.video_dir),
        source="segments", frame_stride=1, crop_ratio=1.0,
    )  # fmt: skip


def test_without_subsets_every_fifth_video_is_held_out(own, tmp_path):
    data = open_datasets(own, 0, tmp_path)
    assert (len(data.train), len(data.test)) == (8, 2)
    assert not {v.id for v in data.train} & {v.id for v in data.test}
    assert {clip.path for clip in data.clips} == {v.path for v in data.train}
    again = open_datasets(own, 0, tmp_path)
    assert fingerprint(again.train) == fingerprint(data.train)


def test_a_toy_world_is_read_again_only_when_a_file_of_it_changed(tmp_path, monkeypatch):
    monkeypatch.setitem(WORLDS, "tiny", replace(TINY, source_clips=(4, 4), videos=(4, 2)))
    config = DataConfig(preset="tiny")
    open_datasets(config, 0, tmp_path)  # renders
    data = open_datasets(config, 0, tmp_path)
    assert open_datasets(config, 0, tmp_path) is data
    for item in (data.train[0], data.test[0], data.clips[0]):  # the same size, other content
        path, content = item.path, item.path.read_bytes()
        path.write_bytes(content[::-1])
        with pytest.raises(ValueError, match="changed after rendering"):
            open_datasets(config, 0, tmp_path)
        path.write_bytes(content)
    assert open_datasets(config, 0, tmp_path) == data
    data.test[0].path.unlink()
    assert open_datasets(config, 0, tmp_path) == data  # rendered again
    assert data.test[0].path.is_file()


def test_own_videos_train_from_a_csv_to_a_localizing_head(own, tmp_path):
    changes = {
        "acp.epochs": 1,
        "acp.batch": 8,
        "lofi.training.epochs": 1,
        "head_training.epochs": 1,
    }
    config = replace(configs.override(configs.preset("tiny"), changes), data=own)
    train_encoder(config, tmp_path, "c-lofi")
    localize(config, tmp_path, "c-lofi")
    assert (tmp_path / "c-lofi" / "head" / "head.safetensors").is_file()


def test_videos_without_a_file_stay_in_the_data_and_are_left_out_where_files_are_read(
    own, tmp_path, caplog
):
    entry = {"subset": "training", "duration": 8.0, "annotations": [
        {"segment": [1.0, 2.0], "label": "jump"}]}  # fmt: skip
    write_json(tmp_path / "a.json", {"database": {"gone": entry}, "taxonomy": [], "version": "x"})
    data = open_datasets(replace(own, annotations=str(tmp_path / "a.json"), source=""), 0, tmp_path)
    (gone,) = data.train  # features and evaluation need no file
    assert gone.id == "gone" and gone.path is None
    with pytest.raises(ValueError, match="none of 1 videos .* has a file in .*; set data.videos"):
        data.with_files(data.train)
    here = open_datasets(own, 0, tmp_path).train
    assert data.with_files([*here, gone]) == list(here)
    assert f"1 of {len(here) + 1} videos have no file (first: gone)" in caplog.text


def test_a_subset_that_does_not_exist_lists_the_ones_that_do(own, tmp_path):
    entry = {"subset": "val", "duration": 8.0, "annotations": []}
    write_json(tmp_path / "a.json", {"database": {"x": entry}, "taxonomy": [], "version": "x"})
    with pytest.raises(ValueError, match="found: val. Set data.train_subset"):
        open_datasets(replace(own, annotations=str(tmp_path / "a.json")), 0, tmp_path)
