"""ActionFormer through the house: stage 3 on published features, stage 2, detection, memory."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from lofi import config as configs
from lofi.budget import activation_bytes
from lofi.config import ActionFormerConfig
from lofi.data.toyworld import TINY, write_world
from lofi.detection.detector import Detector, detect_stage
from lofi.detection.results import read_detections
from lofi.experiment import evaluate_method
from lofi.fidelity import Fidelity
from lofi.heads import build_head
from lofi.training.head import extract_features, train_head
from lofi.training.joint import train_lofi
from lofi.training.methods import write_run_config

SMALL = ActionFormerConfig(hidden=16, heads=2, window=(5, 5, 5, 5, 5, 0), max_steps=48)
CLASSES = ("dive", "jump", "run")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """24 videos of 30 to 70 steps, three classes; a class raises one channel of the features."""
    folder = tmp_path_factory.mktemp("data")
    rng, rows = np.random.default_rng(0), ["video,start_s,end_s,label,subset,duration_s,fps"]
    (folder / "features").mkdir()
    for i in range(24):
        steps = int(rng.integers(30, 70))
        values = rng.normal(0, 0.3, (steps, 8)).astype(np.float32)
        seconds, subset = ((steps - 1) * 4 + 16) / 30, "train" if i < 18 else "test"
        for at in range(3, steps - 10, 16):
            label, length = int(rng.integers(3)), int(rng.integers(4, 10))
            values[at : at + length + 1, label] += 3
            start, end = (at * 4 + 8) / 30, ((at + length) * 4 + 8) / 30
            rows.append(f"v{i},{start:.4f},{end:.4f},{CLASSES[label]},{subset},{seconds:.4f},30")
        np.save(folder / "features" / f"v{i}.npy", values)
    (folder / "annotations.csv").write_text("\n".join(rows) + "\n")
    changes = {
        "data.annotations": str(folder / "annotations.csv"),
        "data.features.folder": str(folder / "features"),
        "data.features.width": 8, "head": asdict(SMALL), "head_training.epochs": 10,
        "head_training.warmup_epochs": 2, "head_training.batch": 3, "head_training.lr": 0.003,
        "head_training.ema": 0.95, "checkpoint_every": 10,
    }  # fmt: skip
    return configs.override(configs.preset("thumos14-i3d"), changes)


class Killed(Exception):
    pass


def kill(step: int, *_) -> None:
    if step == 23:
        raise Killed


def test_features_of_any_length_train_a_head_that_names_classes(config, tmp_path):
    train_head(config, tmp_path)
    detect_stage(config, tmp_path)
    (row,) = evaluate_method(config, tmp_path, "published")
    assert row["classes"] == "head"
    assert row["average_map"] > 0.5, "of three classes that one channel tells apart"
    assert row["ar@100"] > 0.5
    folder = tmp_path / "published/detections"
    free, named = (read_detections(folder / f"{name}.json") for name in ("proposals", "head"))
    for video, found in free.items():
        assert found[0].score == named[video][0].score and not any(d.label for d in found)
        last = max(d.end_s for d in found)  # segments that leave the video are cut to one
        inner = [d[:2] for d in found if d.start_s > 0 and d.end_s < last]
        assert len(set(inner)) == len(inner) > 9, "the best class of a segment counts"


def test_crops_drops_mean_weights_and_count_resume(config, tmp_path):
    short = configs.override(config, {"head_training.epochs": 6})
    train_head(short, tmp_path / "whole")
    with pytest.raises(Killed):
        train_head(short, tmp_path / "cut", on_step=kill)
    train_head(short, tmp_path / "cut")
    whole, cut = (tmp_path / run / "published/head/head.safetensors" for run in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


def test_stage_two_trains_encoder_and_head_together(tmp_path):
    write_world(tmp_path / "world", replace(TINY, source_clips=(8, 4), videos=(6, 2)), seed=0)
    changes = {
        "data.world": str(tmp_path / "world"), "head": asdict(replace(SMALL, hidden=8)),
        "lofi.start": "random", "lofi.training.epochs": 3, "lofi.training.batch": 3,
        "head_training.epochs": 2, "detect.suppression": "per-class", "detect.sigma": 0.5,
        "detect.classes": "own", "lofi.mode.name": "exact",
    }  # fmt: skip
    config = configs.override(configs.preset("tiny"), changes)
    result = train_lofi(config, tmp_path)
    assert not result["skipped"]
    extract_features(config, tmp_path, "c-lofi")
    train_head(config, tmp_path, "c-lofi")
    write_run_config(config, tmp_path)
    assert detect_stage(config, tmp_path, "c-lofi")["head"].endswith("head.json")
    video = next((tmp_path / "world").rglob("*.mp4"))
    found = Detector.load(tmp_path, "c-lofi").detect(video)
    assert all(d.label for d in found)


def test_memory_of_joint_training_is_predicted():
    head = build_head(SMALL, 64)
    short = activation_bytes("tsm-toy", head, Fidelity(8, 4, 40), 2)
    long = activation_bytes("tsm-toy", head, Fidelity(16, 4, 40), 2)
    exact = activation_bytes("tsm-toy", head, Fidelity(16, 4, 40), 2, mode="exact")
    assert short.peak_bytes < long.peak_bytes and exact.peak_bytes < long.peak_bytes
    assert long.head == "ActionFormer"
    assert torch.isfinite(torch.tensor(float(long.flops)))


def test_a_head_of_one_class_cannot_name_classes(config, tmp_path):
    few = {"head.one_class": True, "head_training.epochs": 1, "head_training.batch": 18}
    blind = configs.override(config, few)
    train_head(blind, tmp_path)
    with pytest.raises(ValueError, match="but head actionformer names none"):
        detect_stage(blind, tmp_path)
    sqrt = {"detect.classes": "video", "detect.suppression": "joint", "detect.class_rule": "sqrt"}
    written = detect_stage(configs.override(blind, sqrt), tmp_path)
    assert {"own", "oracle"} <= set(written)
