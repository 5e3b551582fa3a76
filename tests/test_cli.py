"""The command line: bad input gets one clear line and a non-zero status, and nothing is lost."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lofi import config as configs
from lofi.data import write_video
from lofi.data.toyworld import TINY, write_world
from lofi.detection.detector import train_classifier
from lofi.experiment import localize, train_encoder
from lofi.files import write_json

ROOT = Path(__file__).resolve().parent.parent


def lofi(*words, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "lofi", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=options.pop("cwd", ROOT),
        **options,
    )


def one_line(result: subprocess.CompletedProcess) -> str:
    """The single line of an error; fails on success, tracebacks and talk."""
    assert result.returncode != 0, result.stdout
    lines = [line for line in result.stderr.splitlines() if line.startswith("lofi:")]
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with every stage done, in seconds: too short to be good, long enough to detect."""
    folder = tmp_path_factory.mktemp("run")
    world = folder / "world"
    write_world(world, replace(TINY, source_clips=(16, 4), videos=(6, 2)), seed=0)
    changes = {
        "data.world": str(world), "acp.epochs": 1, "acp.batch": 8, "head_training.epochs": 2,
        "lofi.training.epochs": 1, "detect.shared_classes": "acp",
    }  # fmt: skip
    config = configs.override(configs.preset("tiny"), changes)
    train_encoder(config, folder, "acp")
    localize(config, folder, "acp")
    train_classifier(config, folder, "acp")
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (64, 48, 56, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_video(path, frames, fps=8)
    return path


def test_detect_writes_table_files_and_picture(run, clip, tmp_path):
    result = lofi("detect", clip, "--model", run, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "label" in result.stdout and "start (s)" in result.stdout
    found = json.loads((tmp_path / "clip.json").read_text())["results"]["clip"]
    assert 1 <= len(found) <= 200
    for row in found:
        assert 0 <= row["segment"][0] < row["segment"][1] <= 8.0
    assert (tmp_path / "clip.csv").read_text().startswith("video,start_s,end_s,label,score")
    assert " --> " in (tmp_path / "clip.srt").read_text()
    assert (tmp_path / "clip.png").read_bytes()[:4] == b"\x89PNG"


def test_a_method_s_own_folder_is_a_model_too(run, clip, tmp_path):
    assert lofi("detect", clip, "--model", run / "acp", "--out", tmp_path).returncode == 0


def test_every_kind_of_broken_video_is_one_line_and_does_not_stop_the_others(run, clip, tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("this is not a video\n" * 50)
    whole = clip.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    bad = [tmp_path / name for name in ("missing.mp4", "empty.mp4", "text.mp4", "cut.mp4")]
    for path in bad:
        line = one_line(lofi("detect", path, "--model", run, "--out", tmp_path / "out"))
        assert str(path) in line and len(line) < 300
    result = lofi("detect", bad[1], clip, bad[2], "--model", run, "--out", tmp_path / "out")
    assert result.returncode != 0
    assert (tmp_path / "out" / "clip.json").is_file(), "the good video must not be lost"


def test_a_model_that_is_not_there_says_how_to_make_one(clip, tmp_path):
    line = one_line(lofi("detect", clip, "--model", tmp_path))
    assert "no trained run here" in line and "make demo" in line


def test_a_checkpoint_of_another_encoder_is_refused(run, clip, tmp_path):
    from lofi.encoders import build_encoder, save_encoder

    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("world"))
    save_encoder(
        build_encoder("tsm-r18", seed=0),
        tmp_path / "run" / "acp" / "encoder" / "encoder.safetensors",
    )
    line = one_line(lofi("detect", clip, "--model", tmp_path / "run"))
    assert "tsm-r18" in line and "tsm-toy" in line


def annotations(path: Path, **changes) -> Path:
    entry = {"subset": "validation", "duration": 8.0, "annotations": [
        {"segment": [1.0, 3.0], "label": "jump"}]}  # fmt: skip
    database = {"clip": {**entry, **changes.pop("entry", {})}}
    database |= changes.pop("extra", {})
    write_json(path, {"database": database, "taxonomy": [], "version": "test"})
    return path


def test_check_reports_a_reversed_segment_and_fails(tmp_path, clip):
    reversed_ = {"annotations": [{"segment": [3.0, 1.0], "label": "jump"}]}
    path = annotations(tmp_path / "a.json", entry=reversed_)
    result = lofi("check", path, "--videos", clip.parent)
    assert result.returncode != 0 and "reversed" in result.stdout + result.stderr
    good = lofi("check", annotations(tmp_path / "b.json"), "--videos", clip.parent)
    assert good.returncode == 0, good.stdout + good.stderr


def test_an_id_with_a_path_in_it_is_refused_before_any_file_is_touched(tmp_path):
    path = annotations(tmp_path / "a.json", extra={"../../etc/passwd": {
        "subset": "validation", "duration": 1.0, "annotations": []}})  # fmt: skip
    line = one_line(lofi("check", path))
    assert "../../etc/passwd" in line


def test_an_unknown_label_in_detections_is_named(tmp_path):
    truth = annotations(tmp_path / "a.json")
    detections = {"clip": [{"segment": [1.0, 3.0], "label": "jmup", "score": 0.5}]}
    write_json(tmp_path / "d.json", {"version": "1", "results": detections, "external_data": {}})
    line = one_line(lofi("evaluate", truth, tmp_path / "d.json"))
    assert "jmup" in line


def test_evaluate_writes_the_contract_s_json(tmp_path):
    truth = annotations(tmp_path / "a.json")
    detections = {"clip": [{"segment": [1.0, 3.0], "label": "jump", "score": 0.5}]}
    write_json(tmp_path / "d.json", {"version": "1", "results": detections, "external_data": {}})
    result = lofi("evaluate", truth, tmp_path / "d.json", "--json", tmp_path / "m.json")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "m.json").read_text())
    wanted = {"protocol", "subset", "tious", "map", "average_map", "classes", "ap", "videos",
              "instances"}  # fmt: skip
    assert wanted <= set(report)
    assert report["average_map"] == 1.0 and report["ap"] == [[1.0] * 10]


def test_settings_may_come_from_another_run(run, tmp_path):
    shutil.copytree(run / "acp", tmp_path / "acp")
    words = ["--config", run / "config.json", "--out", tmp_path]
    same = lofi("train", "acp", *words)  # finished, and the same settings: returns at once
    assert same.returncode == 0 and "accuracy=" in same.stdout, same.stderr
    assert "training.epochs: 1 → 2" in one_line(lofi("train", "acp", *words, "--acp.epochs", 2))
    assert "missing.json" in one_line(lofi("train", "acp", "--config", "missing.json", *words[2:]))


def test_unknown_presets_settings_and_commands_are_refused(tmp_path):
    assert "known: tiny, toy" in one_line(lofi("train", "acp", "--preset", "x", "--out", tmp_path))
    assert lofi("train", "acp", "--out", tmp_path, "--acp.learning-rate", "1").returncode == 2
    unknown = lofi("trian")
    assert unknown.returncode == 2 and "no command 'trian'" in unknown.stderr


def full_disk(limit: int):
    """Every file this process writes may have at most `limit` bytes, as on a full disk."""

    def apply() -> None:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error instead of a kill
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return apply


@pytest.mark.skipif(os.name != "posix", reason="file size limits exist on POSIX systems only")
def test_a_full_disk_is_one_line_and_keeps_what_is_there(run, clip, tmp_path):
    out = tmp_path / "out"
    assert lofi("detect", clip, "--model", run, "--out", out).returncode == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    result = lofi("detect", clip, "--model", run, "--out", out, preexec_fn=full_disk(600))
    line = one_line(result)
    assert "space" in line or "large" in line
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
