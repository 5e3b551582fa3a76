"""What the paper repeats, searches and tests: learning rates, trials, Table C, ICP, presets."""

import json
from dataclasses import replace

import pytest
import torch

from lofi import config as configs
from lofi.budget import activation_bytes
from lofi.data.annotations import read_annotations
from lofi.data.toyworld import TINY, write_world
from lofi.encoders import build_encoder
from lofi.evaluation import detection_map
from lofi.experiment import STAGES, Repeats, compare_seeds, low_fidelities
from lofi.fidelity import Fidelity, schedule
from lofi.files import load_tensors
from lofi.heads import build_head
from lofi.presets import PRESETS
from lofi.training.methods import load_encoder, method_config
from lofi.training.pretraining import train_icp

RATES = (0.0005, 0.004)
SMALL = {
    "acp.epochs": 1, "acp.batch": 8, "lofi.training.epochs": 1, "head_training.epochs": 2,
    "head.hidden": 16, "head.paths": 4, "head.map_hidden": (16, 8), "head_search": RATES,
    "detect.shared_classes": "acp",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Search, two trials of stages 2 and 3 and Table C, in one run folder."""
    out = tmp_path_factory.mktemp("out")
    write_world(out / "world", replace(TINY, source_clips=(16, 4), videos=(12, 3)), 0)
    config = configs.override(configs.preset("tiny"), SMALL | {"data.world": str(out / "world")})
    repeats = Repeats(2, "lofi", at_low=True)
    results = compare_seeds(config, out, (0,), ("acp", "t-lofi"), repeats=repeats)
    return config, out / "seed-0", results


def test_the_rate_is_chosen_on_held_out_training_videos(run):
    config, folder, results = run
    search = json.loads((folder / "acp/head/search/result.json").read_text())
    assert search["held_out"] == 2  # of twelve
    assert search["lr"] == max(RATES, key=lambda rate: search["average_map"][f"{rate:g}"])
    head = json.loads((folder / "acp/head/result.json").read_text())
    assert head["search"] == {k: v for k, v in search.items() if k in head["search"]}
    settings = json.loads((folder / "acp/head/config.json").read_text())
    assert settings["training"]["lr"] == search["lr"] and head["items"] == 12
    for rate in RATES:
        tried = json.loads((folder / f"acp/head/search/lr={rate:g}/result.json").read_text())
        assert tried["items"] == 10
    assert not list(folder.glob("acp/head/seed=1/search")), "trials share the search"
    assert list(folder.glob("t-lofi@1/head/search")), "another encoder has its own"
    found = {row["method"]: row["lr"] for row in results["rows"] if "lr" in row}
    assert set(found) == {"acp", "t-lofi", "pre-trained at 4×4×40²"}
    assert found["acp"] == search["lr"]


def test_a_search_goes_on_and_is_left_out_where_the_rate_is_given(run):
    config, folder, _ = run
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("head.safetensors")}
    head = STAGES["head"].run
    assert head(config, folder, "acp")["search"]["lr"] in RATES
    other = head(config, folder, "acp", variant="lr=0.001,epochs=1")
    assert "search" not in other
    again = {path: path.stat().st_mtime_ns for path in made}
    assert again == made
    with pytest.raises(ValueError, match="other settings: rates"):
        head(replace(config, head_search=(0.1,)), folder, "acp")


def test_a_rate_that_diverges_loses(run, tmp_path):
    config, folder, _ = run
    wild = replace(config, head_search=(1e30, 0.004))
    found = STAGES["head"].run(wild, folder, "acp", variant="epochs=3")["search"]
    assert found["average_map"]["1e+30"] is None and found["lr"] == 0.004


def test_trials_are_rows_of_one_method(run):
    _, folder, results = run
    rows = [row for row in results["rows"] if row["classes"] == "oracle"]
    trials = {(row["method"], row["trial"]) for row in rows if " at " not in row["method"]}
    assert trials == {
        ("acp", "acp"), ("acp", "acp seed=1"), ("t-lofi", "t-lofi"), ("t-lofi", "t-lofi@1")
    }  # fmt: skip
    for one, other in (("acp/head", "acp/head/seed=1"), ("t-lofi/encoder", "t-lofi@1/encoder")):
        weights = [load_tensors(folder / part / "head.safetensors")[0] for part in (one, other)]
        assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert len(list(folder.glob("acp/features/*.safetensors"))) == 15  # one extraction
    starts = [json.loads((folder / name / "encoder/config.json").read_text())["start"]
              for name in ("t-lofi", "t-lofi@1")]  # fmt: skip
    assert starts[0] == starts[1], "trials share stage 1"
    assert not (folder / "acp@1").exists()
    config = configs.preset("tiny")
    assert Repeats(2).heads(config, ["acp", "t-lofi"], ["", "lr=0.1"]) == [
        ("acp", ""), ("acp", "lr=0.1"), ("acp", "seed=1"), ("acp", "lr=0.1,seed=1"),
        ("t-lofi", ""), ("t-lofi", "lr=0.1"), ("t-lofi", "seed=1"), ("t-lofi", "lr=0.1,seed=1"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="trials is 0"):
        Repeats(0)
    for wrong in ("t-lofi@", "t-lofi@x", "acp@1"):
        with pytest.raises(ValueError, match="unknown method"):
            method_config(config, wrong)


def test_table_c_is_stage_twos_own_head_at_its_fidelity(run):
    config, folder, results = run
    low = folder / "low-t-lofi"
    for part in ("encoder/encoder.safetensors", "head/head.safetensors"):
        made = folder / "t-lofi" / part.replace("head/", "encoder/")
        assert (low / "t-lofi" / part).read_bytes() == made.read_bytes()
    assert configs.load(low / "config.json").full == Fidelity(4, 4, 40)
    values, _ = load_tensors(next((low / "t-lofi/features").glob("[!.]*.safetensors")))
    assert next(iter(values.values())).shape == (64, 4)
    path = low / "t-lofi/detections/oracle.json"
    again = detection_map(f"{config.data.world}/annotations.json", path, subset="validation")
    (row,) = [r for r in results["rows"] if r["method"].startswith("end-to-end")
              and r["classes"] == "oracle"]  # fmt: skip
    assert row["average_map"] == again.average_map
    annotated = read_annotations(f"{config.data.world}/annotations.json")
    assert again.videos == len([v for v in annotated if v.subset == "validation"])
    with pytest.raises(ValueError, match=r"--at-low needs one method of one low fidelity"):
        low_fidelities(config, ["acp", "c-lofi"])


def test_icp_features_come_through_the_shift_as_in_the_paper(tmp_path):
    plain = build_encoder("resnet-18", seed=7)
    path = tmp_path / "imagenet.pth"
    torch.save(plain.state_dict(), path)
    config = replace(configs.preset("activitynet"), weights=str(path))
    train_icp(config, tmp_path)
    encoder, _ = load_encoder(config, tmp_path, "icp")
    assert encoder.name == "tsm-r18"
    state = plain.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())
    with pytest.raises(ValueError, match="shift"):
        train_icp(replace(config, icp_shift=False), tmp_path)
    world = tmp_path / "world"
    write_world(world, replace(TINY, source_clips=(16, 4), videos=(2, 1)), 0)
    small = {"icp.epochs": 1, "icp.batch": 8, "icp_shift": True, "data.world": str(world)}
    toy = configs.override(configs.preset("tiny"), small)
    assert "accuracy" in train_icp(toy, tmp_path / "toy")
    assert load_encoder(toy, tmp_path / "toy", "icp")[0].name == "tsm-toy"


@pytest.mark.parametrize("name", ["activitynet-bmn", "activitynet-r2plus1d"])
def test_presets_of_the_supplement_are_as_the_paper_says_and_plan(name):
    config = PRESETS[name]
    assert schedule(config.lofi.schedule, config.full).fidelities[0].snippets == 25
    encoder = build_encoder(config.encoder)
    head = build_head(config.head, encoder.channels)
    (low,) = low_fidelities(config, ["t-lofi"]).values()
    assert 0 < activation_bytes(encoder, head, low, 16).peak_bytes < 128 * 2**30
    if name == "activitynet-bmn":
        assert (config.head.kind, config.detect.rule, config.detect.sigma) == ("bmn", "bmn", 0.4)
        rates = config.head_training
        assert (rates.lr, rates.epochs, rates.decay_every, config.head_search) == (1e-3, 9, 7, ())
    else:
        assert (config.encoder, config.full.pixels) == ("r2plus1d-18", 112)
        assert config.head_search == (0.0002, 0.0005, 0.001, 0.002, 0.005)


@pytest.mark.parametrize("rates", [(0.0,), (-1.0, 0.1), (0.1, 0.1), (float("nan"),)])
def test_rates_that_cannot_be_compared_are_refused_before_anything_trains(rates):
    with pytest.raises(ValueError, match="expected different rates above 0"):
        configs.override(configs.preset("tiny"), {"head_search": rates})
