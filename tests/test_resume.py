"""A stage that is killed at any moment resumes to the weights of an uninterrupted run (CPU)."""

import os
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
from lofi.files import sha256
from lofi.training.head import extract_features, train_head
from lofi.training.joint import train_lofi
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
    return run


def start(stage: str, config, run: Path) -> subprocess.Popen:
    words = [f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items()]
    words += [f"--data.world={config.data.world}", "--preset", "tiny", "--out", str(run)]
    return subprocess.Popen(
        [sys.executable, "-m", "lofi.cli", "train", stage, *words],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_when(process: subprocess.Popen, reached) -> None:
    """SIGKILL as soon as `reached()`; fails when the stage ended before."""
    deadline = time.monotonic() + 120
    while not reached():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"ended (status {process.poll()}) before the kill: {process.stdout.read()}")
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


STAGES = {
    "acp": ("acp/encoder", "encoder.safetensors", 4),
    "acp+": ("acp+/encoder", "encoder.safetensors", 2),
    "lofi": ("c-lofi/encoder", "encoder.safetensors", 7),
    "head": ("c-lofi/head", "head.safetensors", 10),
}


@pytest.mark.parametrize("stage", STAGES)
def test_kill_9_in_the_middle_of_a_stage_changes_nothing(stage, config, whole, tmp_path):
    folder, weights, steps = STAGES[stage]
    for method, part in (("acp", "encoder"), ("c-lofi", "encoder"), ("c-lofi", "features")):
        if f"{method}/{part}" != folder and not (stage == "acp" and method == "acp"):
            (tmp_path / method).mkdir(exist_ok=True)
            (tmp_path / method / part).symlink_to(whole / method / part)  # earlier stages
    kill_when(start(stage, config, tmp_path), lambda: len(read_metrics(tmp_path / folder)) >= steps)
    assert not (tmp_path / folder / "result.json").exists(), "the kill came too late to test resume"
    resumed = start(stage, config, tmp_path)
    assert resumed.wait(120) == 0, resumed.stdout.read()
    assert sha256(tmp_path / folder / weights) == sha256(whole / folder / weights)
    losses = [[row["loss"] for row in read_metrics(run / folder)] for run in (tmp_path, whole)]
    assert losses[0] == losses[1]


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


def test_stage_two_changes_the_encoder_but_not_its_batch_norm_buffers(config, whole):
    from safetensors.torch import load_file

    before = load_file(whole / "acp" / "encoder" / "encoder.safetensors")
    after = load_file(whole / "c-lofi" / "encoder" / "encoder.safetensors")
    frozen = [k for k in before if "bn" in k or "running" in k or "downsample.1" in k]
    trained = [k for k in before if k not in frozen]
    assert all(torch.equal(before[k], after[k]) for k in frozen)
    assert all(not torch.equal(before[k], after[k]) for k in trained)


def test_a_finished_stage_returns_at_once_and_other_settings_are_refused(config, whole):
    result = train_lofi(config, whole, on_step=lambda *_: pytest.fail("trained again"))
    assert result["encoder"] == "encoder.safetensors"
    other = configs.override(config, {"lofi.training.lr": 0.05})
    with pytest.raises(ValueError, match=r"lofi\.training\.lr: 0\.1 → 0\.05"):
        train_lofi(other, whole)
