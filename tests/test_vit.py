"""VideoMAE encoders against numbers of the repository's own class."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lectures import measured_bytes
from safetensors.torch import load_file
from test_encoders import reference_numbers

from lofi.budget import Mode, activation_bytes, plan
from lofi.config import override, preset
from lofi.data.features import read_features, write_features
from lofi.data.toyworld import TINY, write_world
from lofi.detection.detector import Detector
from lofi.encoders import (
    build_encoder,
    encoder_hash,
    freeze_batch_norm,
    freeze_trunk,
    load_weights,
    normalise,
    save_encoder,
)
from lofi.encoders.vit import VideoViT
from lofi.experiment import localize, run_stage, train_encoder
from lofi.fidelity import Fidelity, schedule
from lofi.report import weights_parts
from lofi.training.joint import train_lofi
from lofi.training.methods import (
    feature_header,
    load_encoder,
    open_features,
    run_data,
    start_encoder,
)
from lofi.training.run_folder import read_metrics


def test_features_equal_the_public_code(golden):
    facts = json.loads(golden("videomaev2.json").read_text())
    state = {}
    for name, shape in facts["state_dict"]:
        z = reference_numbers(name, facts["weight_salt"], shape)
        if name.endswith("bias"):
            z = 0.05 * z
        elif len(shape) == 1:
            z = 1 + 0.1 * z
        else:
            z = z / np.sqrt(np.prod(shape[1:]))
        state[name] = torch.from_numpy(z.astype(np.float32))
    encoder = VideoViT("small", 14, 44, 3, 4, 192)
    head = {name: state.pop(name) for name in ("head.weight", "head.bias")}
    encoder.load_state_dict(state)
    expected = np.load(golden("videomaev2.npz"))
    z = reference_numbers("input:videomaev2", facts["input_salt"], [2, 3, 16, 42, 42])
    with torch.no_grad():
        found = encoder(torch.from_numpy(z.astype(np.float32)).transpose(1, 2))
    np.testing.assert_allclose(found, expected["feature"], atol=1e-5)
    logits = found @ head["head.weight"].T + head["head.bias"]
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-5)


@pytest.mark.parametrize("part", ["videomae_d48_f8", "videomae_d36_f16_p16"])
def test_transformers_layout(part, golden, tmp_path):
    facts, arrays = json.loads(golden("vit_clip.json").read_text())[part], golden("vit_clip.npz")
    arrays, config, state = np.load(arrays), facts["config"], {}
    for name, shape in facts["state_dict"]:
        z = reference_numbers(name, facts["weight_salt"], shape)
        if len(shape) > 1:
            z = z / np.sqrt(np.prod(shape[1:]))
        else:
            z = 1 + 0.1 * z if name.endswith("weight") else 0.05 * z
        state[name] = torch.from_numpy(z.astype(np.float32))
    torch.save(state, tmp_path / "theirs.pth")
    sizes = [config[k] for k in ("patch_size", "hidden_size", "num_hidden_layers")]
    sizes += [config["num_attention_heads"], config["intermediate_size"]]
    encoder = VideoViT("small", *sizes)
    assert load_weights(encoder, tmp_path / "theirs.pth").layout == "transformers"
    assert encoder.mean == (0.485, 0.456, 0.406) and "non-commercial" in encoder.licence
    shape = [facts["batch"], config["num_frames"], 3, config["image_size"], config["image_size"]]
    z = reference_numbers(f"input:{part}", facts["input_salt"], shape)
    frames = torch.from_numpy(z.astype(np.float32)).requires_grad_()
    found = encoder(frames)
    np.testing.assert_allclose(found.detach(), arrays[f"{part}.feature"], atol=1e-5)
    found.square().sum().backward()
    norms = frames.grad.flatten(2).norm(dim=2)
    np.testing.assert_allclose(norms, arrays[f"{part}.input_grad_norm"], rtol=1e-4, atol=1e-5)
    digest = save_encoder(encoder, tmp_path / "ours.safetensors")
    again = VideoViT("small", *sizes)
    load_weights(again, tmp_path / "ours.safetensors")
    assert encoder_hash(again) == digest and again.convention == "transformers imagenet"
    again.follow("videomae")
    assert encoder_hash(again) != digest


@pytest.mark.parametrize(
    ("wrap", "prefix"), [("module", ""), ("model", "module.encoder."), ("state_dict", "model.")]
)
def test_repository_layout_with_decoder(wrap, prefix, tmp_path):
    theirs = build_encoder("vit-toy", seed=3)
    state = {prefix + k: v for k, v in theirs.state_dict().items()}
    if prefix.endswith("encoder."):
        state = {k.replace("fc_norm", "norm"): v for k, v in state.items()}
        state["module.decoder.norm.weight"] = state["module.mask_token"] = torch.ones(2)
    torch.save({wrap: state}, tmp_path / "theirs.pth")
    encoder = build_encoder("vit-toy", seed=4)
    encoder.follow("transformers")
    assert load_weights(encoder, tmp_path / "theirs.pth").layout == "videomae"
    assert encoder_hash(encoder) == encoder_hash(theirs)


def test_pixels_are_unit_or_imagenets_and_travel_with_the_weights(tmp_path, caplog):
    grey = torch.full((1, 2, 3, 4, 4), 51, dtype=torch.uint8)  # 0.2
    torch.save(build_encoder("vit-toy", seed=3).state_dict(), tmp_path / "vit_pixels.pth")
    config = replace(preset("tiny"), encoder="vit-toy", weights=str(tmp_path / "vit_pixels.pth"))
    unit = start_encoder(config)
    torch.testing.assert_close(normalise(grey, unit), torch.full(grey.shape, 0.2))
    assert "pixels: videomae unit" in caplog.text and "--normalisation imagenet" in caplog.text
    config = replace(config, normalisation="imagenet")
    other = start_encoder(config)
    assert normalise(grey, other)[0, 0, :, 0, 0].tolist() == pytest.approx(
        [(0.2 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    )
    save_encoder(other, tmp_path / "acp" / "encoder" / "encoder.safetensors", other.origin)
    (told,) = weights_parts(config, tmp_path, ["acp"])
    assert "vit_pixels.pth (VideoMAE); licence: CC-BY-NC 4.0 (non-commercial)" in told
    trained, digest = load_encoder(config, tmp_path, "acp")
    assert trained.mean == other.mean and digest == encoder_hash(other) != encoder_hash(unit)
    header = feature_header(config, trained, digest)
    assert header.encoder == "vit-toy (videomae imagenet)"
    write_features(tmp_path / "f", torch.ones(32, 16), header)
    with pytest.raises(ValueError, match=r"encoder is vit-toy \(videomae imagenet\), expected"):
        read_features(tmp_path / "f", feature_header(config, unit, encoder_hash(unit)))
    with pytest.raises(ValueError, match="trained with pixels 'videomae imagenet', not 'unit'"):
        load_encoder(replace(config, normalisation="unit"), tmp_path, "acp")
    with pytest.raises(ValueError, match="tsm-toy takes pixels in one way"):
        start_encoder(replace(preset("tiny"), normalisation="unit"))


def test_sizes_seed_and_wrong_inputs():
    for name, millions in [("vit-s", 22), ("vit-b", 86), ("vit-l", 304), ("vit-h", 632)]:
        with torch.device("meta"):
            count = sum(p.numel() for p in build_encoder(name).parameters())
        assert round(count / 1e6) == millions
    torch.manual_seed(1)
    first = build_encoder("vit-toy", seed=0)
    torch.manual_seed(2)
    assert encoder_hash(first) == encoder_hash(build_encoder("vit-toy", seed=0))
    assert first(torch.rand(2, 6, 3, 8, 12)).shape == (2, 32)
    with pytest.raises(ValueError, match="even number"):
        first(torch.rand(1, 3, 3, 8, 8))
    with pytest.raises(ValueError, match="10 pixels a side, expected whole patches of 4"):
        first(torch.rand(1, 4, 3, 10, 8))
    config = replace(preset("tiny"), encoder="vit-toy", full=Fidelity(16, 4, 42))
    with pytest.raises(ValueError, match="set full.pixels to 40"):
        load_encoder(config, "", "random")
    with pytest.raises(ValueError, match=r"acp_frames\) to 6"):
        load_encoder(replace(config, full=Fidelity(16, 5, 40)), "", "random")


def test_low_fidelities_are_whole_patches():
    full = Fidelity(16, 8, 224)
    assert [f.pixels for f in schedule("long", full).fidelities] == [112, 224, 158]
    assert [f.pixels for f in schedule("long", full, patch=16).fidelities] == [112, 224, 160]
    assert [f.pixels for f in schedule("long", full, patch=14).fidelities] == [112, 224, 154]
    rows = plan(1.0, "vit-toy", None, Fidelity(2, 2, 44), batch=1, modes=(Mode(),))
    assert [row.fidelity.pixels for row in rows] == [24, 44, 32, 24, 44]
    rows = plan(1.0, "vit-toy", None, Fidelity(2, 2, 16), batch=1)
    assert rows[-1].mode.name == "adapters" and rows[-1].peak_bytes < rows[4].peak_bytes


@pytest.mark.parametrize(
    ("name", "fidelity", "mode"),
    [
        ("vit-toy", Fidelity(4, 4, 40), "full"),
        ("vit-toy", Fidelity(4, 4, 40), "adapters"),
        ("vit-toy", Fidelity(4, 2, 20), Mode("sampled", chunk=2)),
        ("vit-s", Fidelity(2, 2, 64), Mode("exact", chunk=1)),
        ("vit-s", Fidelity(1, 4, 64), "adapters"),
    ],
)
def test_predicted_memory_equals_measurement(name, fidelity, mode):
    encoder = build_encoder(name, seed=0)
    predicted = activation_bytes(encoder, None, fidelity, 1, mode=mode)
    measured = measured_bytes(encoder, None, fidelity, 1, mode=mode)
    assert predicted.saved_bytes == pytest.approx(measured.saved_bytes, rel=0.01)
    assert predicted.peak_bytes == pytest.approx(measured.peak_bytes, rel=0.05)
    if mode == "adapters":
        whole = measured_bytes(encoder, None, fidelity, 1, mode="full")
        assert measured.saved_bytes < whole.saved_bytes and measured.peak_bytes < whole.peak_bytes


def test_adapters_begin_as_nothing_and_train_alone():
    encoder, frames = build_encoder("vit-toy", seed=0), torch.rand(2, 6, 3, 8, 8)
    trunk = {name: value.clone() for name, value in encoder.state_dict().items()}
    before = encoder(frames)
    freeze_trunk(encoder)
    freeze_batch_norm(encoder)  # does not thaw the trunk
    assert torch.equal(encoder(frames), before)
    trained = [name for name, p in encoder.named_parameters() if p.requires_grad]
    assert len(trained) == 4 * 7 and all(".adapter." in name for name in trained)
    for _ in range(2):
        encoder(frames).square().sum().backward()
        with torch.no_grad():
            for p in encoder.parameters():
                p -= 0 if p.grad is None else 0.1 * p.grad
    state = encoder.state_dict()
    assert all(torch.equal(state[name], value) for name, value in trunk.items())
    # the convolution by hand: time step t sees t - 1, t, t + 1 of its own place
    x, adapter = torch.randn(1, 3 * 2, 32), encoder.blocks[0].adapter
    inner = torch.nn.functional.gelu(adapter.down(x)).view(3, 2, 8)
    padded, kernel = torch.zeros(5, 2, 8), adapter.time.weight.view(8, 3)
    padded[1:4] = inner
    mixed = sum(padded[k : k + 3] * kernel[:, k] for k in range(3)) + adapter.time.bias
    expected = x + adapter.scale * adapter.up(mixed.view(1, 6, 8))
    torch.testing.assert_close(adapter(x, 3), expected)
    with pytest.raises(ValueError, match="no place for adapters"):
        freeze_trunk(build_encoder("tsm-toy"))


def test_adapters_killed_between_checkpoints_resume_to_the_same_bits(tmp_path):
    world = replace(TINY, source_clips=(4, 2), videos=(6, 1), video_frames=64)
    write_world(tmp_path / "world", world, 0)
    changes = {
        "encoder": "vit-toy", "data.world": str(tmp_path / "world"),
        "lofi.start": "random", "lofi.mode.name": "adapters", "lofi.training.epochs": 3,
        "lofi.training.batch": 3, "checkpoint_every": 2,
    }  # fmt: skip
    config = override(preset("tiny"), changes)

    def kill(step: int, *_) -> None:
        if step == 2:  # the third of six: its work is lost and done again
            raise KeyboardInterrupt

    train_lofi(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_lofi(config, tmp_path / "cut", on_step=kill)
    whole, cut = (tmp_path / run / "c-lofi-adapters" / "encoder" for run in ("whole", "cut"))
    assert torch.load(cut / "checkpoints" / "last.pt", weights_only=True)["step"] == 2
    train_lofi(config, tmp_path / "cut")
    for part in ("encoder", "head"):
        names = (folder / f"{part}.safetensors" for folder in (whole, cut))
        first, second = map(Path.read_bytes, names)
        assert first == second, part
    losses = [[row["loss"] for row in read_metrics(folder)] for folder in (whole, cut)]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    state = load_file(whole / "encoder.safetensors")
    assert any(state[name].any() for name in state if name.endswith("adapter.up.weight"))


def test_the_whole_chain(tmp_path):
    """From trimmed clips to detections, in windows of 4 frames that begin every 3."""
    world = replace(TINY, source_clips=(8, 4), videos=(4, 1), video_frames=64)
    write_world(tmp_path / "world", world, 0)
    changes = {
        "encoder": "vit-toy", "data.world": str(tmp_path / "world"), "acp.epochs": 1,
        "acp.batch": 8, "lofi.training.epochs": 3, "head_training.epochs": 1,
        "data.window_stride": 3, "data.rule": "window", "lofi.mode.chunk": 6,
    }  # fmt: skip
    config, run = override(preset("tiny"), changes), tmp_path / "run"
    train_encoder(config, run, "acp")
    train_encoder(config, run, "c-lofi")  # three fidelities, three numbers of tokens
    shown = [row["fidelity"] for row in read_metrics(run / "c-lofi" / "encoder")]
    assert {text.split("×")[-1] for text in shown} == {"20²", "40²", "28²"}
    train_encoder(config, run, "sampled")  # the gradient is checked against one graph
    localize(config, run, "sampled")
    train_encoder(config, run, "c-lofi-adapters")
    (acp, _), (adapted, _) = (load_encoder(config, run, m) for m in ("acp", "c-lofi-adapters"))
    after = adapted.state_dict()
    assert all(torch.equal(after[name], value) for name, value in acp.state_dict().items())
    assert any(after[name].any() for name in after if name.endswith("adapter.up.weight"))
    run_stage("classes", config, run, "sampled")
    test = run_data(config, run).test[0]
    found = Detector.load(run, "sampled").detect(test.path)
    assert found and all(0 <= d.start_s < d.end_s for d in found)
    store = open_features(config, run, "sampled", run_data(config, run))
    values, grid = store[next(iter(store.ids))]
    assert values.shape == (32, 21) and grid.steps == 21  # range(0, 64 - 3, 3)
    shifted = replace(config, data=replace(config.data, rule="centred"))
    with pytest.raises(ValueError, match="rule is window, expected centred"):
        open_features(shifted, run, "sampled", run_data(config, run))[next(iter(store.ids))]
