"""Weight files in every published layout, and files that must be refused."""

import json
import os
import pickle
import warnings

import pytest
import torch

from lofi.encoders import (
    build_encoder,
    encoder_hash,
    load_weights,
    save_encoder,
)


def state(name: str, seed: int = 3) -> dict[str, torch.Tensor]:
    """Random weights and statistics under torchvision's names, without a classifier."""
    encoder, generator = build_encoder(name, seed), torch.Generator().manual_seed(seed)
    for buffer in encoder.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5, generator=generator)
    return encoder.state_dict()


def classifier(name: str, channels: int, classes: int = 7) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.zeros(classes, channels), f"{name}.bias": torch.zeros(classes)}


def tsm_names(weights: dict) -> dict:
    shifted = [f"layer{i}.{j}.conv1.weight" for i in range(1, 5) for j in range(6)]
    return {
        f"module.base_model.{k.replace('conv1.', 'conv1.net.') if k in shifted else k}": v
        for k, v in weights.items()
    }


def assert_loaded(encoder, weights: dict) -> None:
    found = encoder.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in found)


@pytest.mark.parametrize("name", ["tsm-r18", "r2plus1d-18"])
def test_torchvision_files_load(name, tmp_path):
    weights = state(name)
    encoder = build_encoder(name, seed=0)
    torch.save({**weights, **classifier("fc", encoder.channels, 1000)}, tmp_path / "tv.pth")
    report = load_weights(encoder, tmp_path / "tv.pth")
    assert_loaded(encoder, weights)
    assert report.layout == "torchvision"
    assert report.classifier == ("fc.weight", "fc.bias")
    assert (report.missing, report.unexpected) == ((), ())
    assert len(report.matched) == len(weights)


def test_old_torchvision_files_without_batch_counters_load(tmp_path):
    weights = {k: v for k, v in state("tsm-r18").items() if not k.endswith("tracked")}
    path = tmp_path / "resnet18-old.pth"
    torch.save(weights, path, _use_new_zipfile_serialization=False)  # also the older container
    encoder = build_encoder("tsm-r18", seed=0)
    report = load_weights(encoder, path)
    assert len(report.matched) == len(weights) == 100 and report.missing == ()
    assert torch.equal(encoder.layer4[1].bn2.running_var, weights["layer4.1.bn2.running_var"])


def test_tsm_files_load(tmp_path):
    weights = state("tsm-r50")
    content = {
        "epoch": 50,
        "arch": "resnet50",
        "state_dict": {**tsm_names(weights), **classifier("module.new_fc", 2048, 400)},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "best_prec1": torch.tensor(71.2),
    }
    assert "module.base_model.layer3.5.conv1.net.weight" in content["state_dict"]
    path = tmp_path / "TSM_kinetics_RGB_resnet50_shift8_blockres_avg_segment8_e50.pth"
    torch.save(content, path)
    encoder = build_encoder("tsm-r50", seed=0)
    report = load_weights(encoder, path)
    assert_loaded(encoder, weights)
    assert (report.layout, report.classifier) == ("tsm", ("new_fc.weight", "new_fc.bias"))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_mmaction2_names_of_the_verified_list_load(name, golden, tmp_path):
    layouts = json.loads(golden("checkpoint_layouts.json").read_text())
    pairs = layouts["mmaction2_tsm"]["pairs_mit_to_mmaction2_without_prefixes"][name]
    ours = f"tsm-r{name.removeprefix('resnet')}"
    weights = state(ours)
    content = {f"backbone.{theirs}": weights[mit.replace(".net.", ".")] for mit, theirs in pairs}
    assert len(content) == len(weights)
    encoder = build_encoder(ours, seed=0)
    fc = classifier("cls_head.fc_cls", encoder.channels)
    torch.save({"meta": {"epoch": 50}, "state_dict": {**content, **fc}}, tmp_path / "mm.pth")
    report = load_weights(encoder, tmp_path / "mm.pth")
    assert_loaded(encoder, weights)
    assert report.layout == "mmaction2" and len(report.classifier) == 2


@pytest.mark.parametrize("heads", [["fc"], ["fc1", "fc2"]])
def test_tsp_files_load(heads, tmp_path):
    weights = state("r2plus1d-18")
    content = {f"features.{key}": value for key, value in weights.items()}
    for head in heads:
        content |= classifier(head, 512)
    torch.save({"model": content, "optimizer": {}, "lr_scheduler": {}}, tmp_path / "tsp.pth")
    encoder = build_encoder("r2plus1d-18", seed=0)
    report = load_weights(encoder, tmp_path / "tsp.pth")
    assert_loaded(encoder, weights)
    assert report.layout == "tsp" and len(report.classifier) == 2 * len(heads)


def test_listed_reference_names_are_ours(golden):
    listing = json.loads(golden("encoder_state_dicts.json").read_text())
    for key, name in [
        ("tsm_resnet18", "tsm-r18"),
        ("tsm_resnet34", "tsm-r34"),
        ("tsm_resnet50", "tsm-r50"),
        ("r2plus1d_18", "r2plus1d-18"),
    ]:
        expected = [
            (entry.removeprefix("base_model.").replace(".net.", "."), tuple(shape))
            for entry, shape, *_ in listing[key]["state_dict"]
            if "fc" not in entry
        ]
        with torch.device("meta"):
            found = [(k, tuple(v.shape)) for k, v in build_encoder(name).state_dict().items()]
        assert found == expected


@pytest.mark.parametrize("name", ["tsm-r18", "resnet-50", "r2plus1d-18", "tsm-toy"])
def test_own_files_bring_back_every_bit(name, tmp_path):
    encoder = build_encoder(name, seed=1)
    encoder.load_state_dict(state(name))
    digest = save_encoder(encoder, tmp_path / "encoder.safetensors", {"stage": "acp", "seed": "1"})
    other = build_encoder(name, seed=2)
    report = load_weights(other, tmp_path / "encoder.safetensors")
    assert_loaded(other, encoder.state_dict())
    assert encoder_hash(other) == digest == report.origin["sha256"]
    assert report.layout == "lofi" and report.origin["stage"] == "acp"
    assert os.listdir(tmp_path) == ["encoder.safetensors"]


def test_metadata_of_the_format_cannot_be_overwritten(tmp_path):
    with pytest.raises(ValueError, match="encoder"):
        save_encoder(build_encoder("tsm-toy"), tmp_path / "e.safetensors", {"encoder": "x"})
    assert os.listdir(tmp_path) == []


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "encoder.safetensors"
    digest = save_encoder(build_encoder("tsm-toy", seed=0), path)

    def fail(*_args, **_kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="no space"):
        save_encoder(build_encoder("tsm-toy", seed=1), path)
    encoder = build_encoder("tsm-toy", seed=2)
    assert load_weights(encoder, path).origin["sha256"] == digest == encoder_hash(encoder)
    assert os.listdir(tmp_path) == ["encoder.safetensors"]


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize(
    ("theirs", "ours", "first"),
    [
        ("tsm-r34", "tsm-r18", r"layer1\.2\.conv1\.weight: \(64, 64, 3, 3\) in the file, none"),
        ("tsm-r18", "tsm-r34", r"layer1\.2\.conv1\.weight: none in the file, \(64, 64, 3, 3\)"),
        ("tsm-r50", "tsm-r18", r"layer1\.0\.conv1\.weight: \(64, 64, 1, 1\) in the file, "),
        ("r2plus1d-18", "tsm-r18", r"conv1\.weight: none in the file, \(64, 3, 7, 7\)"),
        ("tsm-toy", "tsm-r18", r"conv1\.weight: \(16, 3, 5, 5\) in the file, \(64, 3, 7, 7\)"),
    ],
)
def test_weights_of_another_encoder_are_named(theirs, ours, first, tmp_path):
    path = tmp_path / "other.weights"
    if theirs in ("tsm-r34", "tsm-toy"):
        save_encoder(build_encoder(theirs, seed=0), path)
    else:
        torch.save(state(theirs), path)
    encoder = build_encoder(ours, seed=0)
    digest = encoder_hash(encoder)
    with pytest.raises(ValueError, match=rf"{theirs}.* wanted {ours} .*first difference {first}"):
        load_weights(encoder, path)
    assert encoder_hash(encoder) == digest


def test_our_unshifted_weights_are_another_encoder(tmp_path):
    save_encoder(build_encoder("resnet-toy", seed=0), tmp_path / "icp.safetensors")
    encoder = build_encoder("tsm-toy", seed=1)
    with pytest.raises(ValueError, match="weights of resnet-toy, wanted tsm-toy"):
        load_weights(encoder, tmp_path / "icp.safetensors")
    report = load_weights(encoder, tmp_path / "icp.safetensors", strict=False)
    assert len(report.matched) == 54 and report.origin["encoder"] == "resnet-toy"


def test_a_partial_match_needs_strict_false(tmp_path):
    weights = state("tsm-toy")
    del weights["layer3.0.conv2.weight"]
    weights["layer2.0.bn1.weight"] = torch.zeros(5)
    weights["extra.weight"] = torch.zeros(2)
    torch.save(weights, tmp_path / "part.pth")
    encoder = build_encoder("tsm-toy", seed=0)
    digest = encoder_hash(encoder)
    with pytest.raises(ValueError, match="an unknown architecture"):
        load_weights(encoder, tmp_path / "part.pth")
    assert encoder_hash(encoder) == digest
    report = load_weights(encoder, tmp_path / "part.pth", strict=False)
    assert report.missing == ("layer2.0.bn1.weight", "layer3.0.conv2.weight")
    assert report.unexpected == ("layer2.0.bn1.weight", "extra.weight")
    assert len(report.matched) == 52
    assert torch.equal(encoder.conv1.weight, weights["conv1.weight"])


def test_nothing_in_common_is_refused_even_without_strict(tmp_path):
    torch.save({"a.weight": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="an unknown architecture, wanted tsm-toy"):
        load_weights(build_encoder("tsm-toy"), tmp_path / "a.pth", strict=False)


def test_non_local_checkpoints_are_refused(tmp_path):
    weights = tsm_names(state("tsm-toy"))
    weights["module.base_model.layer2.1.nl.g.weight"] = torch.zeros(256, 512, 1, 1, 1)
    torch.save({"state_dict": weights}, tmp_path / "TSM_nl.pth")
    for strict in (True, False):
        with pytest.raises(ValueError, match=r"non-local.*layer2\.1\.nl\.g\.weight"):
            load_weights(build_encoder("tsm-toy"), tmp_path / "TSM_nl.pth", strict)


class Harmful:
    """Unpickling it would run a command."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def damaged_files(folder) -> dict[str, bytes]:
    whole = folder / "whole"
    torch.save(state("tsm-toy"), whole)
    zipped = whole.read_bytes()
    torch.save(state("tsm-toy"), whole, _use_new_zipfile_serialization=False)
    legacy = whole.read_bytes()
    save_encoder(build_encoder("tsm-toy"), whole)
    own = whole.read_bytes()
    torch.save([1, 2], whole)
    listed = whole.read_bytes()
    torch.save({"state_dict": {"epoch": 3}}, whole)
    no_tensors = whole.read_bytes()
    torch.save({"state_dict": state("tsm-toy"), "object": Harmful()}, whole)
    harmful = whole.read_bytes()
    whole.unlink()
    return {
        "empty": b"",
        "text": b"<html>404 not found</html>",
        "zip cut": zipped[: len(zipped) // 2],
        "legacy cut": legacy[: len(legacy) // 2],
        "own cut": own[: len(own) // 2],
        "own header cut": own[:100],
        "list": listed,
        "no tensors": no_tensors,
        "plain pickle": pickle.dumps(Harmful()),
        "object inside": harmful,
    }


def test_damaged_and_foreign_files_give_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder = build_encoder("tsm-toy", seed=0)
    digest = encoder_hash(encoder)
    for name, content in damaged_files(tmp_path).items():
        path = tmp_path / f"{name}.pth"
        path.write_bytes(content)
        for strict in (True, False):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with pytest.raises(ValueError) as error:
                    load_weights(encoder, path, strict)
            assert one_line(error).startswith(str(path)), name
    assert encoder_hash(encoder) == digest
    assert not (tmp_path / "unpickled").exists()
    with pytest.raises(FileNotFoundError, match="no such file") as error:
        load_weights(encoder, tmp_path / "nothing.pth")
    one_line(error)
    with pytest.raises(FileNotFoundError):
        load_weights(encoder, tmp_path)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    weights = state("tsm-toy")
    weights["layer2.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(weights, tmp_path / "diverged.pth")
    encoder = build_encoder("tsm-toy", seed=0)
    digest = encoder_hash(encoder)
    with pytest.raises(ValueError, match=r"layer2\.0\.conv1\.weight is not finite"):
        load_weights(encoder, tmp_path / "diverged.pth")
    assert encoder_hash(encoder) == digest


def test_files_of_a_later_format_are_refused(tmp_path):
    from safetensors.torch import save_file

    metadata = {"format": "lofi-encoder", "format_version": "2", "encoder": "tsm-toy"}
    save_file(state("tsm-toy"), tmp_path / "new.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match="version 2"):
        load_weights(build_encoder("tsm-toy"), tmp_path / "new.safetensors")


def test_foreign_safetensors_load_like_torchvision_files(tmp_path):
    from safetensors.torch import save_file

    weights = state("tsm-toy")
    save_file(weights, tmp_path / "other.safetensors")
    encoder = build_encoder("tsm-toy", seed=0)
    assert load_weights(encoder, tmp_path / "other.safetensors").layout == "torchvision"
    assert_loaded(encoder, weights)
