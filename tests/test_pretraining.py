"""Stage 1 with labels: published weights, still images, clip lists of any form, several processes.

That a killed run resumes to the same weights is tested in test_resume.py.
"""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lofi import config as configs
from lofi.data.toyworld import TINY, write_world
from lofi.encoders import build_encoder
from lofi.experiment import train_encoder
from lofi.files import sha256
from lofi.training import pretraining
from lofi.training.loop import Batches, Training
from lofi.training.methods import encoder_path, load_encoder
from lofi.training.pretraining import train_acp, train_acp_plus, train_icp

SMALL = {
    "acp.epochs": 2, "acp.batch": 8, "acp_plus.epochs": 1, "icp.epochs": 2, "icp.batch": 8,
    "lofi.training.epochs": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, replace(TINY, source_clips=(24, 8), videos=(4, 2)), seed=0)
    return folder


@pytest.fixture(scope="module")
def config(world):
    return configs.override(configs.preset("tiny"), {**SMALL, "data.world": str(world)})


@pytest.fixture
def published(tmp_path) -> Path:
    """A file as torchvision writes them: no shift, a classification layer, no metadata."""
    state = build_encoder("resnet-toy", seed=7).state_dict()
    path = tmp_path / "resnet.pth"
    torch.save({**state, "fc.weight": torch.zeros(9, 64), "fc.bias": torch.zeros(9)}, path)
    return path


def real(config, world, source) -> configs.Config:
    """The same data as a person's own: paths instead of a toy world."""
    changes = {
        "data.preset": "", "data.world": "", "data.source": str(source),
        "data.annotations": f"{world}/annotations.json", "data.videos": f"{world}/videos",
    }  # fmt: skip
    return configs.override(config, changes)


def rows_of(world) -> list[dict[str, str]]:
    with open(world / "source.csv", newline="") as file:
        return list(csv.DictReader(file))


def as_kinetics(world, folder) -> Path:
    """The crawler's layout: <label>/<id>_<start>_<end>.mp4 beside a list of YouTube ids."""
    lines = ["label,youtube_id,time_start,time_end,split"]
    for i, row in enumerate(rows_of(world)):
        place = folder / row["label"].replace(" ", "_")
        place.mkdir(parents=True, exist_ok=True)
        os.link(world / row["clip"], place / f"id{i:09d}_{i:06d}_{i + 10:06d}.mp4")
        split = {"training": "train", "validation": "val"}[row["subset"]]
        lines.append(f"{row['label']},id{i:09d},{i},{i + 10},{split}")
    (folder / "kinetics.csv").write_text("\n".join(lines) + "\n")
    return folder / "kinetics.csv"


def test_clips_of_a_kinetics_list_without_a_file_count_in_the_result(config, world, tmp_path):
    kinetics = as_kinetics(world, tmp_path / "crawled")
    gone = sorted((tmp_path / "crawled").rglob("*.mp4"))[:3]
    for path in gone:
        path.unlink()
    once = configs.override(real(config, world, kinetics), {"acp.epochs": 1})
    result = train_acp(once, tmp_path / "run")
    assert (result["items"], result["missing"]) == (32, 3)
    names = sorted(f"{path.parent.name.replace('_', ' ')}/{path.stem}" for path in gone)
    assert [row["item"] for row in result["skipped"]] == names
    kept = json.loads((tmp_path / "run" / "acp" / "encoder" / "result.json").read_text())
    assert kept["missing"] == 3 and {row["reason"] for row in kept["skipped"]} == {"no video file"}


def as_folders(world, folder) -> Path:
    """One folder a class, no list; a tenth of the clips is then held out."""
    for row in rows_of(world):
        place = folder / row["label"].replace(" ", "_")
        place.mkdir(parents=True, exist_ok=True)
        os.link(world / row["clip"], place / Path(row["clip"]).name)
    return folder


def test_acp_trains_the_same_weights_from_every_form_of_clip_list(config, world, tmp_path):
    toy = train_acp(config, tmp_path / "toy")
    own = train_acp(real(config, world, world / "source.csv"), tmp_path / "own")
    kinetics = as_kinetics(world, tmp_path / "crawled")
    crawled = train_acp(real(config, world, kinetics), tmp_path / "kinetics")
    assert toy["sha256"] == own["sha256"] == crawled["sha256"]
    assert toy["accuracy"] == own["accuracy"] == crawled["accuracy"]
    assert toy["classes"] == crawled["classes"] and len(toy["classes"]) == 4
    folders = as_folders(world, tmp_path / "folders")
    listed = train_acp(real(config, world, folders), tmp_path / "from-folders")
    assert listed["classes"] == [name.replace(" ", "_") for name in toy["classes"]]
    assert listed["sha256"] != toy["sha256"]  # other clips are held out


def test_published_weights_start_acp_and_are_named_in_every_result(config, published, tmp_path):
    config = replace(config, weights=str(published))
    start, _ = load_encoder(config, tmp_path, "weights")
    state = build_encoder("resnet-toy", seed=7).state_dict()
    assert start.name == "tsm-toy"
    assert all(torch.equal(value, state[key]) for key, value in start.state_dict().items())
    assert not torch.equal(load_encoder(config, tmp_path, "random")[0].conv1.weight,
                           start.conv1.weight)  # fmt: skip
    for result in (train_acp(config, tmp_path), train_acp_plus(config, tmp_path)):
        assert result["weights"] == "resnet.pth"
        assert result["weights_sha256"] == sha256(published)
        assert result["weights_layout"] == "torchvision"
        assert result["weights_left_out"] == "fc.weight, fc.bias"
    assert load_encoder(config, tmp_path, "acp+")[0].origin["weights"] == "resnet.pth"
    without = replace(config, weights="")
    with pytest.raises(ValueError, match="holds a run with other settings: start"):
        train_acp(without, tmp_path)


def test_a_missing_or_unset_weight_file_is_an_error(config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such file \(expected encoder"):
        train_acp(replace(config, weights=str(tmp_path / "none.pth")), tmp_path)
    with pytest.raises(ValueError, match="setting weights names no file"):
        load_encoder(config, tmp_path, "weights")


def test_lofi_and_acp_plus_can_start_from_published_weights_without_acp(
    config, published, tmp_path
):
    changes = {"weights": str(published), "lofi.start": "weights", "acp_plus_start": "weights"}
    config = configs.override(config, changes)
    train_encoder(config, tmp_path, "c-lofi")
    train_encoder(config, tmp_path, "acp+")
    assert not encoder_path(tmp_path, "acp").exists()
    assert load_encoder(config, tmp_path, "c-lofi")[0].origin["weights"] == "resnet.pth"
    result = json.loads((tmp_path / "c-lofi" / "encoder" / "result.json").read_text())
    assert result["weights_sha256"] == sha256(published)


def test_icp_is_the_published_image_network_as_it_is(config, world, published, tmp_path):
    own = real(replace(config, weights=str(published)), world, "")  # no source clips are needed
    result = train_icp(own, tmp_path)
    encoder, digest = load_encoder(own, tmp_path, "icp")
    assert encoder.name == "resnet-toy" and digest == result["sha256"]
    state = build_encoder("resnet-toy", seed=7).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())
    with pytest.raises(ValueError, match="stage icp takes published ImageNet weights"):
        train_icp(replace(own, weights=""), tmp_path / "other")


def test_icp_of_a_toy_world_sees_single_frames_without_shift(config, tmp_path):
    result = train_icp(config, tmp_path)
    assert 0 <= result["accuracy"] <= 1
    encoder, _ = load_encoder(config, tmp_path, "icp")
    frames = torch.rand(2, 4, 3, 40, 40)
    order = frames[:, [2, 0, 3, 1]]
    encoder.eval()
    assert torch.allclose(encoder(frames), encoder(order), atol=1e-6)
    settings = json.loads((tmp_path / "icp" / "encoder" / "config.json").read_text())
    assert settings["frames"] == 1


def test_the_shares_of_several_processes_add_up_to_one_batch(config, tmp_path, monkeypatch):
    clips = pretraining.source_clips(config, tmp_path, "acp")
    encoder = build_encoder("tsm-toy", seed=0)
    task = pretraining._classification(config, "acp", encoder, clips, (clips, []), config.acp)
    run = pretraining.RunFolder(tmp_path / "run", {})
    with pretraining.ClipSource(config, run) as source:
        training = pretraining._training(config, task, source, "cpu")
        encoder.eval()  # batch statistics are those of a share: with them only about equal
        whole = training.step(training.load(1), 1)
        parameters = [p for module in training.modules.values() for p in module.parameters()]
        gradient = [p.grad for p in parameters]
        for parameter in parameters:
            parameter.grad = None
        monkeypatch.setattr(pretraining, "reduce_sum", lambda count: torch.tensor(8.0))
        total = {"loss": 0.0, "accuracy": 0.0}
        for rank in range(3):
            monkeypatch.setattr(pretraining, "share", lambda n, r=rank: list(range(r, n, 3)))
            for name, value in training.step(training.load(1), 1).items():
                total[name] += value
    assert total["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert total["accuracy"] == pytest.approx(whole["accuracy"])
    for parameter, wanted in zip(parameters, gradient, strict=True):
        assert wanted is not None
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-6)


# The recipe of TSM on Kinetics-400, written down by hand from its released code.


def test_rates_and_decay_of_the_paper_presets_are_tsms():
    setting = configs.preset("activitynet").acp
    modules = {"encoder": build_encoder("tsm-r18"), "classifier": torch.nn.Linear(512, 400)}
    rates = {"classifier": setting.classifier_lr}
    training = Training(modules, setting, Batches(1, 1, 1, ()), None, None, rates=rates)
    found = {
        id(p): (group["factor"], group["weight_decay"])
        for group in training.optimizer().param_groups
        for p in group["params"]
    }
    encoder, classifier = modules.values()
    assert found[id(encoder.layer1[0].conv1.weight)] == (1, 1e-4)
    assert found[id(encoder.bn1.weight)] == found[id(encoder.bn1.bias)] == (1, 0)
    assert found[id(classifier.weight)] == (5, 1e-4) and found[id(classifier.bias)] == (10, 0)
    assert (setting.lr, setting.batch, setting.epochs, setting.clip) == (0.02, 128, 50, 20)
    assert setting.dropout == 0.5 and setting.augment == "multiscale"


def test_dropout_thins_out_frames_and_the_classifier_begins_near_zero(config, world, tmp_path):
    setting = replace(config.acp, dropout=0.5)
    clips = pretraining.source_clips(config, tmp_path, "acp")
    encoder = build_encoder("tsm-toy").eval()
    task = pretraining._classification(config, "acp", encoder, clips, (clips, []), setting)
    assert 0.0005 < task.classifier.weight.std() < 0.002 and not task.classifier.bias.any()
    frames = torch.rand(3, 4, 3, 40, 40)
    task.classifier.eval()
    expected = task.classifier(encoder(frames))
    assert torch.allclose(task.logits(frames), expected, atol=1e-6)
    task.classifier.train()
    torch.manual_seed(1)
    drawn = torch.stack([task.logits(frames) for _ in range(400)])
    assert drawn.std(0).min() > 0  # random
    spread = 4 * drawn.std(0) / 20
    assert ((drawn.mean(0) - expected).abs() < spread).all()  # and right on average
    # A mask for each of 4 frames: half as much noise as one for their mean.
    weight, means = task.classifier.weight, encoder.frame_features(frames)
    variance = ((means[:, :, None] * weight) ** 2).sum((1, 3)) / 16
    assert torch.allclose(drawn.var(0), variance, rtol=0.4)


@pytest.mark.parametrize("name", ["activitynet", "thumos14", "hacs"])
def test_a_random_start_on_real_data_has_to_be_said(config, world, tmp_path, caplog, name):
    paper = configs.preset(name)
    mine = configs.override(real(config, world, f"{world}/source.csv"), {"encoder": "tsm-r18"})
    mine = replace(mine, preset=name, acp=replace(paper.acp, epochs=1, batch=24))
    with pytest.raises(ValueError, match="tsm-r18 begins with random weights; give --weights"):
        train_acp(mine, tmp_path)
    assert not (tmp_path / "acp").exists()
    if name == "activitynet":
        train_acp(replace(mine, weights="none"), tmp_path)
        assert "expect less" in caplog.text
        assert json.loads((tmp_path / "acp/encoder/result.json").read_text())["weights"] == "random"
