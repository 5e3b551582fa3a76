"""AMNet through the house: stage 2, also with videos of nothing; heads of points in compare."""

import math
from dataclasses import asdict, replace

import pytest
import torch

from lofi import config as configs
from lofi.config import AMNetConfig
from lofi.data.datasets import open_reader
from lofi.data.toyworld import TINY, write_world
from lofi.encoders import build_encoder
from lofi.experiment import compare_seeds
from lofi.training.head import extract_features, train_head
from lofi.training.joint import JointTraining, train_lofi
from lofi.training.methods import lofi_method, run_data
from lofi.training.run_folder import RunFolder, read_metrics

SMALL = AMNetConfig(hidden=16, heads=2, layers=1, levels=3, max_steps=16, drop_path=0.0)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, replace(TINY, source_clips=(8, 4), videos=(6, 2)), seed=0)
    changes = {
        "data.world": str(folder), "head": asdict(SMALL), "lofi.start": "random",
        "lofi.training.epochs": 1, "lofi.training.batch": 2, "head_training.epochs": 1,
        "detect.shared_classes": "",
    }  # fmt: skip
    return configs.override(configs.preset("tiny"), changes)


def one_step(config, tmp_path, shown, **mode):
    """Losses and gradients of the first step; `shown` of its two videos keep their actions."""
    named = {f"lofi.mode.{key}": value for key, value in mode.items()}
    config = configs.override(config, {"standardise": False, **named})
    data = run_data(config, tmp_path)
    videos = (replace(v, segments=v.segments * (i < shown)) for i, v in enumerate(data.train[:2]))
    encoder = build_encoder(config.encoder, 0)
    with open_reader(config.data) as reader:
        run = RunFolder(tmp_path / str(mode), {})
        joint = JointTraining(
            config, encoder, [(v, None) for v in videos], data.classes, reader, run
        )
        losses = joint.step(joint.load(0), 0)
    return losses, {f"{module}.{name}": p.grad for module, net in joint.modules.items()
                    for name, p in net.named_parameters() if p.grad is not None}  # fmt: skip


@pytest.mark.parametrize("shown", [0, 1, 2])
def test_modes_of_stage_two_give_the_gradient_of_one_graph(config, tmp_path, shown):
    wanted, graph = one_step(config, tmp_path, shown, name="full")
    assert all(math.isfinite(value) for value in wanted.values())
    assert (wanted["mask"] > 0) == (shown > 0), "nothing to tell apart where nothing happens"
    assert {"encoder", "head"} == {name.split(".")[0] for name in graph}
    size = max(g.abs().max() for g in graph.values())
    for mode in ({"name": "exact", "chunk": 3}, {"name": "sampled", "ratio": 1.0}):
        found, gradients = one_step(config, tmp_path, shown, **mode)
        assert found == pytest.approx(wanted, rel=1e-4)
        assert gradients.keys() == graph.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, graph[name], rtol=1e-3, atol=1e-4 * float(size))


@pytest.mark.parametrize("mode", ["exact", "sampled"])
def test_an_encoder_learns_with_amnet(config, tmp_path, mode):
    config = configs.override(config, {"lofi.mode.name": mode})
    assert not train_lofi(config, tmp_path)["skipped"]
    rows = read_metrics(tmp_path / lofi_method(config) / "encoder")
    assert rows and all(math.isfinite(row[key]) for row in rows for key in ("loss", "mask"))
    if mode == "exact":
        extract_features(config, tmp_path, "c-lofi")
        assert train_head(config, tmp_path, "c-lofi")["head"] == "head.safetensors"


def test_heads_of_points_are_rows_beside_the_preset_s_own(config, tmp_path):
    own = configs.override(config, {"head": asdict(configs.preset("tiny").head)})
    sizes = "hidden=16,heads=2,max_steps=16"
    variants = ("", f"kind=actionformer,{sizes}", f"kind=amnet,{sizes},levels=3,layers=1")
    results = compare_seeds(own, tmp_path, (0,), ("random",), variants=variants)
    rows = {(row["method"], row["classes"]): row["average_map"] for row in results["rows"]}
    names = [f"random {variant}".strip() for variant in variants]
    assert set(rows) == {(name, kind) for name in names for kind in ("shared", "own", "oracle")}
    assert all(0 <= value <= 1 for value in rows.values())
