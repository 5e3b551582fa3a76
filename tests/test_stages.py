"""The stages as a person runs them: by commands, with whatever part of the data there is.

Published features without a video, runs that outlive their videos, heads side by side, and
messages whose command really ends the trouble.
"""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from lofi import cli
from lofi import config as configs
from lofi.data.annotations import read_annotations
from lofi.data.features import read_features
from lofi.data.toyworld import TINY, write_world
from lofi.detection import read_detections
from lofi.experiment import train_encoder
from lofi.files import write_json
from lofi.training.head import extract_features, train_head
from lofi.training.methods import write_run_config

CHANNELS = 12  # of the published features; G-TAD's groups ask for a multiple of 4
SMALL = {
    "acp.epochs": 1, "acp.batch": 8, "lofi.training.epochs": 1, "head_training.epochs": 1,
    "head.hidden": 16, "head.paths": 4, "head.map_hidden": (16, 8), "detect.top_k": 20,
}  # fmt: skip


class Told(NamedTuple):
    """What a command printed, and its exit status."""

    status: int
    out: str
    error: str


def lofi(*words) -> Told:
    """`lofi …` in this process."""
    out, error = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["lofi", *map(str, words)]
    status = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            cli.main()
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.argv = before
    return Told(status, out.getvalue(), error.getvalue())


def works(*words) -> str:
    """Standard output of a command that succeeds."""
    told = lofi(*words)
    assert told.status == 0, told.error
    return told.out


def refused(*words) -> str:
    """The one line of a command that fails."""
    told = lofi(*words)
    assert told.status == 1, told
    (line,) = told.error.splitlines()
    return line


def cure(message: str) -> list[str]:
    """The words of the command that a message names, without the `lofi` in front."""
    (found,) = re.findall(r"(?:run|first|anew): lofi (.*)$", message)
    return shlex.split(found)


def partial_file(path: Path, **changes) -> Path:
    """A partial configuration in a file."""
    write_json(path, {"preset": "tiny"} | changes)
    return path


class World(NamedTuple):
    """A rendered world and a finished run of it; tests copy what they change."""

    folder: Path
    run: Path

    def options(self, out: Path) -> list[str]:
        """Words for a run folder that has no configuration yet."""
        return ["--config", str(self.run / "config.json"), "--out", str(out)]

    def copy(self, out: Path, *without: str) -> Path:
        """The run once more, in a folder of its own."""
        shutil.copytree(self.run, out)
        for part in without:
            shutil.rmtree(out / part) if (out / part).is_dir() else (out / part).unlink()
        return out


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, replace(TINY, source_clips=(16, 4), videos=(6, 2)), seed=0)
    run = tmp_path_factory.mktemp("run")
    config = configs.override(configs.preset("tiny"), SMALL | {"data.world": str(folder)})
    train_encoder(config, run, "c-lofi")
    for method in ("acp", "c-lofi"):
        extract_features(config, run, method)
    train_head(config, run, "c-lofi")
    write_run_config(config, run)
    return World(folder, run)


def check_detections(run: Path, method: str, annotations: Path, variant: str = "") -> None:
    """Detections of every test video lie inside it, and a metrics file belongs to them."""
    durations = {v.id: v.duration_s for v in read_annotations(annotations)
                 if v.subset == "validation"}  # fmt: skip
    for kind in ("own", "oracle"):
        found = read_detections(run / method / "detections" / variant / f"{kind}.json")
        assert sorted(found) == sorted(durations)
        for video_id, detections in found.items():
            assert detections
            assert all(0 <= d.start_s < d.end_s <= durations[video_id] for d in detections)
        metrics = json.loads((run / method / "metrics" / variant / f"{kind}.json").read_text())
        assert 0 <= metrics["average_map"] <= 1 and metrics["videos"] == len(durations)


# ------------------------------------------------------------------------ features that others made


@pytest.mark.parametrize("kind", ["gtad", "bmn"])
def test_published_features_reach_map_by_commands_alone(kind, world, tmp_path):
    """(T, C) arrays and annotations; there is no video anywhere."""
    published, draws = tmp_path / "published", np.random.default_rng(0)
    published.mkdir()
    projection = draws.normal(size=(64, CHANNELS)).astype(np.float32) / 8
    for i, path in enumerate(sorted((world.run / "acp" / "features").glob("*.safetensors"))):
        rows = np.repeat(read_features(path)[0].T.numpy() @ projection, 2, axis=0)
        np.save(published / f"{path.stem}.npy", rows[: 24 + i])  # of any length
    annotations = shutil.copy(world.folder / "annotations.json", tmp_path / "annotations.json")
    options = ["--preset", "tiny", "--head.kind", kind, "--head-training.epochs", 1]
    options += ["--data.annotations", annotations, "--data.features.folder", published]
    options += ["--data.features.width", CHANNELS, "--out", tmp_path / "run"]
    for stage in ("head", "classes", "detect", "evaluate"):
        printed = works("train", stage, *options)
    assert re.search(r"own=0\.\d+|own=1\.0", printed)
    check_detections(tmp_path / "run", "published", tmp_path / "annotations.json")
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["head"]["kind"] == kind
    assert not (tmp_path / "run" / "world").exists()
    message = refused("detect", annotations, "--model", tmp_path / "run")
    assert "cannot see videos" in message
    assert works(*shlex.split(message.split("with: lofi ")[1]))
    (published / f"{path.stem}.npy").unlink()
    message = refused("train", "detect", *options)
    assert path.stem in message and "data.features.allow_missing" in message
    works("train", "detect", *options, "--data.features.allow-missing")


def test_classes_of_segments_serve_any_run(world, tmp_path):
    run = world.copy(tmp_path / "run")
    options = [*world.options(run), "--detect.classes", "segment"]
    assert "head gtad names none" in refused("train", "detect", *options[:-1], "own")
    for stage in ("classes", "detect", "evaluate"):
        printed = works("train", stage, *options)
    assert printed.startswith("segment=0.")
    found = read_detections(run / "c-lofi" / "detections" / "segment.json")
    assert all(len({d.label for d in mine}) > 1 for mine in found.values())  # of any video
    video = next((world.folder / "videos").glob("*.mp4"))
    works("detect", video, "--model", run, "--out", tmp_path / "found")
    rows = read_detections(tmp_path / "found" / f"{video.stem}.csv")[video.stem]
    assert rows == sorted(rows, key=lambda d: -d.score) and rows


# --------------------------------------------------------------------- runs that outlive their data


def test_stage_three_detection_and_evaluation_need_no_videos(world, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(world.folder, data)
    run = world.copy(tmp_path / "run", "c-lofi/head")
    for folder in ("videos", "source"):
        shutil.rmtree(data / folder)
    options = ["--config", run / "config.json", "--data.world", data, "--out", run]
    for stage in ("head", "classes", "detect", "evaluate"):
        works("train", stage, *options)
    check_detections(run, "c-lofi", data / "annotations.json")


def test_a_killed_extraction_is_refused_with_the_command_that_completes_it(world, tmp_path):
    run = world.copy(tmp_path / "run", "c-lofi/head")
    folder = run / "c-lofi" / "features"
    (folder / "result.json").unlink()
    files = sorted(folder.glob("*.safetensors"))
    for path in files[::2]:
        path.unlink()
    times = {path: path.stat().st_mtime_ns for path in files[1::2]}
    message = refused("train", "head", *world.options(run))
    assert f"incomplete, features of {len(files) - len(files[::2])} videos" in message
    works(*cure(message))
    assert sorted(folder.glob("*.safetensors")) == files
    assert {path: path.stat().st_mtime_ns for path in times} == times  # what was there is kept
    works("train", "head", *world.options(run))
    assert (run / "c-lofi" / "head" / "head.safetensors").is_file()


def test_whole_features_are_left_alone_while_others_read_them(world, tmp_path):
    run = world.copy(tmp_path / "run", "c-lofi/head")
    folder = run / "c-lofi" / "features"
    before = (folder / "result.json").stat()
    words = ["train", "features", *world.options(run)]
    other = {"host": socket.gethostname(), "pid": os.getppid(), "job": ""}
    (folder / "lock.json").write_text(json.dumps(other))  # of another process
    works(*words)
    after = (folder / "result.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    next(folder.glob("*.safetensors")).unlink()
    assert "is at work in this folder" in refused(*words)
    assert (folder / "result.json").exists()


# ------------------------------------------------------------------------------- heads side by side


def test_variants_of_stage_three_lie_side_by_side(world, tmp_path):
    run, variant = world.copy(tmp_path / "run"), "lr=0.001,seed=3"
    default = (run / "c-lofi" / "head" / "head.safetensors").read_bytes()
    for stage in ("head", "detect", "evaluate"):
        works("train", stage, *world.options(run), "--variant", variant)
    folder = run / "c-lofi" / "head" / variant
    settings = json.loads((folder / "config.json").read_text())
    assert settings["training"]["lr"] == 0.001 and settings["seed"] == 3
    assert (folder / "head.safetensors").read_bytes() != default
    assert (run / "c-lofi" / "head" / "head.safetensors").read_bytes() == default
    check_detections(run, "c-lofi", world.folder / "annotations.json", variant)
    assert not list((run / "c-lofi" / "detections").glob("*.json"))
    source = json.loads((run / "c-lofi" / "detections" / variant / "own.json").read_text())
    assert variant in json.dumps(source["external_data"])
    works("train", "head", *world.options(run), "--variant", "kind=bmn,epochs=1")
    works("train", "detect", *world.options(run), "--variant", "kind=bmn,epochs=1")
    saved = json.loads((run / "config.json").read_text())
    assert saved["seed"] == 0 and saved["head"]["kind"] == "gtad"


def test_variants_that_mean_nothing_are_refused(world, tmp_path):
    options = world.options(tmp_path)
    message = refused("train", "head", *world.options(world.run), "--variant", "lrate=1")
    assert "no such setting of stage 3; known: seed, epochs, batch, optimizer, lr" in message
    message = refused("train", "acp", *options, "--variant", "lr=1")
    assert "stage acp has no --variant" in message and not list(tmp_path.iterdir())
    message = refused("train", "detect", *world.options(world.run), "--variant", "lr=0.5")
    assert "no trained head" in message and cure(message)[-2:] == ["--variant", "lr=0.5"]


# --------------------------------------------------------------------------------- whose data it is


def test_an_annotation_file_wins_over_the_toy_world(world, tmp_path):
    lines = ["video,start_s,end_s,label"]
    videos = read_annotations(world.folder / "annotations.json")
    lines += [f"{v.id}.mp4,{s.start_s},{s.end_s},{s.label}" for v in videos for s in v.segments]
    (tmp_path / "my.csv").write_text("\n".join(lines))
    given = ["--data.annotations", tmp_path / "my.csv", "--data.videos", world.folder / "videos"]
    options = ["--preset", "tiny", "--acp.epochs", 1, "--acp.batch", 8, "--out", tmp_path / "run"]
    works("train", "acp", *options, *given, "--data.source", "segments")
    assert (tmp_path / "run" / "acp" / "encoder" / "encoder.safetensors").is_file()
    assert not (tmp_path / "run" / "world").exists()
    message = refused("train", "acp", *options, *given, "--data.world", world.folder)
    assert "data.annotations" in message and "data.world" in message and "one of them" in message
    message = refused("train", "acp", *options, *given[2:])
    assert "data.annotations is not set, but data.videos is" in message
    assert not (tmp_path / "run" / "world").exists()


# ------------------------------------------------------------------------------- layers of settings


def test_options_lie_over_a_partial_file_and_that_over_its_preset(world, tmp_path):
    path = partial_file(tmp_path / "mine.json", acp={"epochs": 1, "batch": 8})
    layered, tiny = configs.layered(path=path), configs.preset("tiny")
    assert (layered.acp.epochs, layered.acp.batch) == (1, 8)
    assert layered == replace(tiny, acp=replace(tiny.acp, epochs=1, batch=8))
    assert configs.layered("tiny", path) == layered and configs.load(path) == layered
    words = ["train", "acp", "--config", path, "--data.world", world.folder]
    works(*words, "--acp.batch", 4, "--out", tmp_path / "run")
    saved = configs.load(tmp_path / "run" / "config.json")
    assert saved == configs.override(layered, {"acp.batch": 4, "data.world": str(world.folder)})


def test_files_of_another_preset_or_with_unknown_keys_are_refused(tmp_path):
    out = ["--out", tmp_path / "run"]
    path = partial_file(tmp_path / "mine.json")
    message = refused("train", "acp", "--preset", "toy", "--config", path, *out)
    assert "preset 'tiny'" in message and "--preset toy" in message
    for changes, name in (
        ({"acp": {"epoch": 1}}, "acp: unknown setting 'epoch'"),
        ({"acpp": {}}, "unknown setting 'acpp'"),
        ({"acp": {"epochs": "ten"}}, "acp.epochs: expected int"),
        ({"preset": "small"}, "unknown preset 'small'"),
    ):
        message = refused("train", "acp", "--config", partial_file(path, **changes), *out)
        assert name in message
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------------- messages that end the trouble


def test_a_missing_encoder_names_the_stage_that_trains_it(world, tmp_path):
    options = world.options(tmp_path)
    message = refused("train", "lofi", *options)
    assert "no acp encoder" in message
    words = cure(message)
    assert words[:2] == ["train", "acp"]
    works(*words, *options, *changed(SMALL))
    works("train", "lofi", *options)
    message = refused("train", "lofi", *options, "--lofi.start", "t-lofi")
    words = cure(message)  # now there is a saved configuration to go on with
    works(*words)
    works("train", "lofi", *options, "--lofi.start", "t-lofi", "--lofi.schedule", "s")


def changed(values: dict) -> list[str]:
    """Settings as options."""
    words = []
    for key, value in values.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            *parents, leaf = name.split(".")
            words.append("--" + ".".join([*parents, leaf if value else f"no-{leaf}"]))
            continue
        words.append(f"--{name}")
        words += [str(v) for v in value] if isinstance(value, tuple) else [str(value)]
    return words


def test_missing_features_a_head_and_a_classifier_name_their_stages(world, tmp_path):
    clip = next((world.folder / "videos").glob("*.mp4"))
    run = world.copy(tmp_path / "run", "c-lofi/head", "c-lofi/features")
    wanted = ["train", "detect", *world.options(run)]
    model = ["detect", clip, "--model", run, "--out", tmp_path / "out"]
    for words, missing, stage in (
        (["train", "head", *world.options(run)], "no features yet", "features"),
        (wanted, "no trained head", "head"),
        (model, "no video classifier", "classes"),
    ):
        if stage == "head":
            shutil.rmtree(run / "c-lofi" / "head")
        if stage == "classes":
            (run / "c-lofi" / "classifier.safetensors").unlink()  # the stage detect made one
        message = refused(*words)
        assert missing in message and cure(message)[:2] == ["train", stage]
        works(*cure(message))
        works(*words)
    message = refused("train", "evaluate", *world.options(run), "--method", "acp")
    assert "no detections" in message and cure(message)[:2] == ["train", "detect"]


def test_a_run_without_any_head_names_the_stage(world, tmp_path):
    clip = next((world.folder / "videos").glob("*.mp4"))
    run = world.copy(tmp_path / "run", "c-lofi/head")
    message = refused("detect", clip, "--model", run, "--out", tmp_path / "out")
    assert "no method with a trained head" in message
    works(*cure(message))
    assert "no video classifier" in refused("detect", clip, "--model", run)


@pytest.mark.parametrize("place", [slice(0, 64), slice(-64, None)], ids=["header", "weights"])
def test_a_damaged_encoder_is_trained_anew_by_the_command_that_is_named(place, world, tmp_path):
    run = world.copy(tmp_path / "run")
    path = run / "acp" / "encoder" / "encoder.safetensors"
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[place] = bytes(b ^ 255 for b in damaged[place])
    path.write_bytes(damaged)
    words = ["train", "lofi", *world.options(run), "--no-resume"]
    message = refused(*words)
    assert str(path) in message and "--no-resume" in message
    works(*cure(message))
    assert path.read_bytes() == whole
    works(*words)


def test_a_damaged_head_is_trained_anew_by_the_command_that_is_named(world, tmp_path):
    run = world.copy(tmp_path / "run")
    path = run / "c-lofi" / "head" / "head.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    words = ["train", "detect", *world.options(run)]
    message = refused(*words)
    assert str(path) in message and "--no-resume" in message
    works(*cure(message))
    works(*words)


def test_exchanged_and_damaged_features_are_made_anew_by_the_command_that_is_named(world, tmp_path):
    run = world.copy(tmp_path / "run", "c-lofi/head")
    whole = {
        path: path.read_bytes() for path in (run / "c-lofi" / "features").glob("*.safetensors")
    }
    for path, other in zip(whole, [*whole][1:]):
        path.write_bytes(whole[other])
    path.write_bytes(whole[path][:-8] + bytes(8))
    message = refused("train", "head", *world.options(run))
    assert "holds the features of video" in message
    works(*cure(message))
    assert {path: path.read_bytes() for path in whole} == whole
    works("train", "head", *world.options(run))


def test_a_stage_whose_settings_were_edited_says_how_to_go_on(world, tmp_path):
    run = world.copy(tmp_path / "run")
    path = run / "c-lofi" / "head" / "config.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    message = refused("train", "head", *world.options(run))
    assert str(path) in message and "--no-resume" in message
    works("train", "head", *world.options(run), "--no-resume")
    whole = (world.run / "c-lofi" / "head" / "head.safetensors").read_bytes()
    assert (run / "c-lofi" / "head" / "head.safetensors").read_bytes() == whole
    (run / "c-lofi" / "classifier.safetensors").write_bytes(whole)
    clip = next((world.folder / "videos").glob("*.mp4"))
    message = refused("detect", clip, "--model", run, "--out", tmp_path / "out")
    assert cure(message)[:2] == ["train", "classes"]


# ----------------------------------------------------------------- what a finished stage depends on


def test_a_finished_stage_depends_on_nothing_that_comes_behind_it(world, tmp_path):
    run = world.copy(tmp_path / "run")
    files = {path: path.stat().st_mtime_ns for path in run.glob("*/*/*.safetensors")}
    later = {
        "full.snippets": 20, "full.frames": 8, "data.window_stride": 3, "head_training.lr": 0.1,
        "lofi.training.lr": 0.2, "lofi.schedule": "t", "detect.sigma": 0.5, "standardise": False,
    }  # fmt: skip
    printed = works("train", "acp", *world.options(run), *changed(later))
    assert "accuracy=" in printed
    for name, value in (("full.pixels", 48), ("acp.lr", 0.1), ("data.crop_ratio", 0.9)):
        message = refused("train", "acp", *world.options(run), *changed({name: value}))
        assert f"{name.split('.')[-1]}: " in message
    detect = {"detect.sigma": 0.5, "head_training.lr": 0.1, "acp.lr": 0.1}
    works("train", "lofi", *world.options(run), *changed(detect))
    works("train", "head", *world.options(run), *changed({"detect.sigma": 0.5}))
    assert files and files == {path: path.stat().st_mtime_ns for path in files}
