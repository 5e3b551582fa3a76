"""A stage that is killed at any moment resumes to the weights of an uninterrupted run (CPU)."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lofi import config as configs
from lofi.data.features import read_features
from lofi.data.toyworld import TINY, write_world
from lofi.detection.detector import train_classifier
from lofi.experiment import compare_seeds
from lofi.files import sha256
from lofi.training.head import extract_features, train_head
from lofi.training.joint import train_lofi
from lofi.training.methods import write_run_config
from lofi.training.pretraining import train_acp, train_acp_plus
from lofi.training.run_folder import read_metrics

SMALL = {
    "acp.epochs": 3, "acp.batch": 4, "acp_plus.epochs": 2, "acp_plus.batch": 4,
    "lofi.training.epochs": 6, "lofi.training.batch": 4, "head_training.epochs": 12,
    "head_training.batch": 4, "checkpoint_every": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A world of a few seconds and few steps; as settings and as command-line words."""
    world = tmp_path_factory.mktemp("world")
    write_world(world, replace(TINY, source_clips=(24, 4), videos=(8, 2)), seed=0)
    return configs.override(configs.preset("tiny"), {**SMALL, "data.world": str(world)})


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """Every stage, never interrupted."""
    run = tmp_path_factory.mktemp("whole")
    train_acp(config, run)
    train_acp_plus(config, run)
    train_lofi(config, run)
    extract_features(config, run, "c-lofi")
    train_head(config, run, "c-lofi")
    train_classifier(config, run, "c-lofi")
    write_run_config(config, run)
    return run


def start(stage: str, config, run: Path, *more: str) -> subprocess.Popen:
    """`lofi train STAGE`, or the command "compare"."""
    words = [f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items()]
    words += [f"--data.world={config.data.world}", "--preset", "tiny", "--out", str(run), *more]
    return lofi(*(["compare"] if stage == "compare" else ["train", stage]), *words)


def lofi(*words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "lofi", *words],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_when(process: subprocess.Popen, reached, number: int = signal.SIGKILL) -> None:
    """Send a signal as soon as `reached()`; fails when the stage ended before."""
    deadline = time.monotonic() + 120
    while not reached():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"ended (status {process.poll()}) before the kill: {process.stdout.read()}")
        time.sleep(0.001)
    os.kill(process.pid, number)
    process.wait(120)


STAGES = {
    "acp": ("acp/encoder", "encoder.safetensors", 4),
    "acp+": ("acp+/encoder", "encoder.safetensors", 2),
    "lofi": ("c-lofi/encoder", "encoder.safetensors", 7),
    "head": ("c-lofi/head", "head.safetensors", 10),
}


@pytest.mark.parametrize("stage", STAGES)
def test_kill_9_in_the_middle_of_a_stage_changes_nothing(stage, config, whole, tmp_path):
    folder, weights, steps = STAGES[stage]
    earlier_stages(stage, whole, tmp_path)
    kill_when(start(stage, config, tmp_path), lambda: len(read_metrics(tmp_path / folder)) >= steps)
    assert not (tmp_path / folder / "result.json").exists(), "the kill came too late to test resume"
    resumed = start(stage, config, tmp_path)
    assert resumed.wait(120) == 0, resumed.stdout.read()
    assert sha256(tmp_path / folder / weights) == sha256(whole / folder / weights)
    losses = [[row["loss"] for row in read_metrics(run / folder)] for run in (tmp_path, whole)]
    assert losses[0] == losses[1]


def earlier_stages(stage: str, whole: Path, run: Path) -> None:
    """Put links to what a stage needs into a run folder."""
    for method, part in (("acp", "encoder"), ("c-lofi", "encoder"), ("c-lofi", "features")):
        if f"{method}/{part}" != STAGES[stage][0] and not (stage == "acp" and method == "acp"):
            (run / method).mkdir(exist_ok=True)
            (run / method / part).symlink_to(whole / method / part)


def ended_by(process: subprocess.Popen, number: int) -> None:
    """The one line and the exit status of a command that a signal has ended."""
    told = [line for line in process.stdout.read().splitlines() if line.startswith("lofi: ")]
    assert process.returncode == 128 + number, told
    name = signal.Signals(number).name
    again = "the same command goes on from the last checkpoint"
    assert told == [f"lofi: interrupted by {name}; {again}"]


@pytest.mark.parametrize(
    ("stage", "number", "processes"),
    [("lofi", signal.SIGTERM, 2), ("acp", signal.SIGHUP, 1)],
)
def test_a_signal_ends_a_stage_behind_its_step_with_a_checkpoint(
    stage, number, processes, config, whole, tmp_path
):
    more = [f"--processes={processes}", "--checkpoint-every=1000"]
    runs = [tmp_path / name for name in ("stopped", "uninterrupted")[:processes]]
    folder, weights, steps = STAGES[stage]
    for run in runs:
        run.mkdir()
        earlier_stages(stage, whole, run)
    stopped = start(stage, config, runs[0], *more)
    kill_when(stopped, lambda: len(read_metrics(runs[0] / folder)) >= steps // 2, number)
    ended_by(stopped, number)
    checkpoint = torch.load(runs[0] / folder / "checkpoints" / "last.pt", weights_only=True)
    rows = read_metrics(runs[0] / folder)
    assert checkpoint["step"] == len(rows)  # nothing that was done is done again
    assert not (runs[0] / folder / "lock.json").exists()
    for process in [start(stage, config, run, *more) for run in runs]:
        assert process.wait(240) == 0, process.stdout.read()
    reference = runs[1] if processes == 2 else whole  # sums of shares round differently
    assert sha256(runs[0] / folder / weights) == sha256(reference / folder / weights)
    assert read_metrics(runs[0] / folder)[: len(rows)] == rows


def test_a_signal_ends_extraction_with_whole_files_only(config, whole, tmp_path):
    (tmp_path / "c-lofi").mkdir()
    (tmp_path / "c-lofi" / "encoder").symlink_to(whole / "c-lofi" / "encoder")
    features = tmp_path / "c-lofi" / "features"
    stopped = start("features", config, tmp_path)
    kill_when(stopped, lambda: any(features.glob("[!.]*.safetensors")), signal.SIGTERM)
    ended_by(stopped, signal.SIGTERM)
    left = {path.name for path in features.iterdir()} - {"config.json", "log.txt"}
    for name in left:  # no lock, no temporary file, no list of unreadable videos
        assert same_tensors(features / name, whole / "c-lofi" / "features" / name)
    assert 1 <= len(left) < 10


def test_an_ended_detection_leaves_whole_files_and_can_be_repeated(config, whole, tmp_path):
    videos = sorted(map(str, (Path(config.data.world) / "videos").iterdir()))[:6]
    words = ["detect", *videos, "--model", str(whole), "--out", str(tmp_path)]
    early: dict[str, bytes] = {}
    for number in (signal.SIGTERM, signal.SIGKILL):
        times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.srt")}
        ended = lofi(*words)
        kill_when(
            ended,
            lambda times=times: any(
                path.stat().st_mtime_ns != times.get(path) for path in tmp_path.glob("[!.]*.srt")
            ),
            number,
        )
        if number == signal.SIGTERM:
            ended_by(ended, number)
            assert not list(tmp_path.glob(".*"))
            early = {
                p.name: p.read_bytes()
                for p in tmp_path.iterdir()
                if p.suffix not in (".png", ".html")
            }
            assert 3 <= len(early) < 3 * len(videos)
    again = lofi(*words)
    assert again.wait(120) == 0, again.stdout.read()
    assert len(list(tmp_path.iterdir())) == 5 * len(videos)  # and no temporary file
    for name, content in early.items():
        assert (tmp_path / name).read_bytes() == content, name


def test_a_killed_comparison_is_continued_to_the_same_results(config, whole, tmp_path):
    killed, reference = tmp_path / "killed", tmp_path / "uninterrupted"
    for folder in (killed, reference):
        shutil.copytree(whole / "acp", folder / "seed-0" / "acp")
    more = ["--seeds=0", "--methods", "acp", "--detect.shared-classes=acp"]
    head = killed / "seed-0" / "acp" / "head"
    kill_when(start("compare", config, killed, *more), lambda: len(read_metrics(head)) >= 7)
    process = start("compare", config, killed, *more)
    assert process.wait(120) == 0, process.stdout.read()
    own = configs.override(config, {"detect.shared_classes": "acp"})
    compare_seeds(own, reference, [0], ["acp"])
    results = [json.loads((run / "results.json").read_text()) for run in (killed, reference)]
    for found in results:
        del found["seconds"]
    assert results[0] == results[1]
    path = Path("seed-0") / "acp" / "detections" / "own.json"
    assert (killed / path).read_bytes() == (reference / path).read_bytes()
    assert not [*killed.rglob(".tmp-*"), *killed.rglob("lock.json")]


def test_kill_9_in_feature_extraction_leaves_whole_files_only(config, whole, tmp_path):
    (tmp_path / "c-lofi").mkdir()
    (tmp_path / "c-lofi" / "encoder").symlink_to(whole / "c-lofi" / "encoder")
    features = tmp_path / "c-lofi" / "features"
    kill_when(
        start("features", config, tmp_path), lambda: len([*features.glob("*.safetensors")]) >= 2
    )
    resumed = start("features", config, tmp_path)
    assert resumed.wait(120) == 0, resumed.stdout.read()
    names = sorted(p.name for p in (whole / "c-lofi" / "features").glob("[!.]*.safetensors"))
    assert len(names) == 10
    assert sorted(p.name for p in features.glob("[!.]*.safetensors")) == names
    for name in names:
        assert same_tensors(features / name, whole / "c-lofi" / "features" / name)


def same_tensors(a: Path, b: Path) -> bool:
    (first, header), (second, other) = read_features(a), read_features(b)
    return torch.equal(first, second) and header == other


def test_a_finished_stage_returns_at_once_and_other_settings_are_refused(config, whole):
    result = train_lofi(config, whole, on_step=lambda *_: pytest.fail("trained again"))
    assert result["encoder"] == "encoder.safetensors"
    other = configs.override(config, {"lofi.training.lr": 0.05})
    with pytest.raises(ValueError, match=r"lofi\.training\.lr: 0\.1 → 0\.05"):
        train_lofi(other, whole)
