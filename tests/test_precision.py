"""Half precision, memory order, micro-batches and memory that runs out, in stages 1 and 3."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from lofi import config as configs
from lofi.data.features import read_features
from lofi.data.toyworld import TINY, write_world
from lofi.encoders.extraction import placed
from lofi.encoders.tsm import ResNet
from lofi.training.head import extract_features, train_head
from lofi.training.joint import train_lofi
from lofi.training.methods import load_encoder
from lofi.training.pretraining import train_acp
from lofi.training.run_folder import read_metrics

SMALL = {
    "acp.epochs": 2, "acp.batch": 8, "acp.clip": 1e9, "lofi.training.epochs": 1,
    "lofi.training.batch": 4, "head_training.epochs": 1, "head_training.clip": 1e9,
}  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, replace(TINY, source_clips=(16, 4), videos=(6, 2)), seed=0)
    return configs.override(configs.preset("tiny"), {**SMALL, "data.world": str(folder)})


@pytest.fixture(scope="module")
def exact(config, tmp_path_factory):
    """A run in float32."""
    run = tmp_path_factory.mktemp("fp32")
    for stage in (train_acp, train_lofi, extract_features, train_head):
        stage(config, run)
    return run


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_every_stage_in_half_precision_begins_like_float32(config, exact, tmp_path, amp):
    half = configs.override(config, {"amp": amp, "lofi.amp": amp})
    for stage in (train_acp, train_lofi, extract_features, train_head):
        stage(half, tmp_path)
    a, b = (read_metrics(run / "acp" / "encoder")[0] for run in (exact, tmp_path))
    assert a["loss"] == pytest.approx(b["loss"], rel=0.02) and a["loss"] != b["loss"]
    assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=0.1)  # unscaled before the clip
    found = read_metrics(tmp_path / "c-lofi" / "head")
    assert all(0 < row["loss"] < 10 for row in found)
    with pytest.raises(ValueError, match="amp"):  # another precision is another run
        train_acp(config, tmp_path)


def test_features_of_another_precision_are_refused(config, exact, tmp_path):
    half = configs.override(config, {"amp": "bf16"})
    video = next((exact / "c-lofi" / "features").glob("*.safetensors"))
    plain, header = read_features(video)
    with pytest.raises(ValueError, match="c-lofi"):
        train_head(half, exact, variant="lr=0.001")
    bf16 = replace(header, amp="bf16")
    with pytest.raises(ValueError, match="amp is None, expected bf16"):
        read_features(video, bf16)
    from lofi.data.features import write_features

    write_features(tmp_path / "half.safetensors", plain, bf16)
    with pytest.raises(ValueError, match="amp is bf16, expected None"):
        read_features(tmp_path / "half.safetensors", header)


def test_channels_last_changes_the_memory_order_and_not_the_function(config, exact):
    encoder, digest = load_encoder(config, exact, "acp")
    frames = torch.rand(2, 4, 3, 40, 40)
    plain = encoder.eval()(frames)
    placed(replace(config, channels_last=True), encoder, "cpu")
    weight = encoder.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert torch.allclose(encoder(frames), plain, atol=1e-5)
    maps = encoder.frame_maps(frames).flatten(0, 1)  # the shift between frames keeps the order
    assert maps.is_contiguous(memory_format=torch.channels_last)


def test_memory_that_runs_out_in_classification_halves_the_micro_batch(
    config, tmp_path, monkeypatch, caplog
):
    """The run is the one of that micro-batch from the start: the failed pass leaves no trace."""
    train_acp(configs.override(config, {"acp_micro_batch": 4}), tmp_path / "given")
    forward = ResNet.forward

    def small_memory(self, frames):
        if self.training and len(frames) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, frames)

    monkeypatch.setattr(ResNet, "forward", small_memory)
    train_acp(config, tmp_path / "found")
    assert caplog.text.count("going on with 4 clips at once") == 1
    a, b = (load_file(tmp_path / n / "acp/encoder/encoder.safetensors") for n in ("given", "found"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["conv1.weight"], torch.zeros_like(a["conv1.weight"]))


def test_a_single_clip_that_does_not_fit_ends_the_run(config, tmp_path, monkeypatch):
    def no_memory(self, frames):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ResNet, "forward", no_memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        train_acp(config, tmp_path)
