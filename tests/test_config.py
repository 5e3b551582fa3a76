"""Presets, overrides, JSON round trip and messages of the configuration."""

import pytest

from lofi import config as configs
from lofi.config import Config
from lofi.fidelity import Fidelity, schedule
from lofi.presets import PRESETS
from lofi.training.loop import learning_rate


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_a_round_trip_through_json(name, tmp_path):
    configs.save(PRESETS[name], tmp_path / "c.json")
    assert configs.load(tmp_path / "c.json") == PRESETS[name]
    assert PRESETS[name].preset == name


def test_the_paper_preset_has_the_paper_s_settings():
    paper = configs.preset("activitynet")
    training = paper.lofi.training
    assert paper.full == Fidelity(100, 8, 224)
    assert (training.optimizer, training.momentum, training.weight_decay) == ("sgd", 0.0, 1e-4)
    assert (training.lr, training.batch, paper.lofi.schedule) == (0.1, 16, "long")
    assert (paper.detect.sigma, paper.detect.top_k) == (0.84, 100)
    rates = [learning_rate(training, step=604 * epoch, per_epoch=604) for epoch in range(15)]
    assert rates == pytest.approx([0.1] * 5 + [0.05] * 5 + [0.025] * 5)


def test_low_budget_preset_reduces_both_axes():
    low = configs.preset("activitynet-low")
    assert schedule(low.lofi.schedule, low.full).at(0, 0) == Fidelity(25, 8, 112)


def test_override_reaches_nested_settings_and_keeps_the_rest():
    changed = configs.override(Config(), {"lofi.training.lr": 0.05, "seed": 3})
    assert (changed.lofi.training.lr, changed.seed) == (0.05, 3)
    assert configs.differences(configs.to_dict(Config()), configs.to_dict(changed)) == [
        "lofi.training.lr: 0.1 → 0.05",
        "seed: 0 → 3",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lofi.trainin.lr": 1.0}, "unknown setting 'lofi.trainin.lr'; known here"),
        ({"sede": 1}, "unknown setting 'sede'"),
        ({"seed": "1"}, "config.seed: expected int, got '1'"),
        ({"acp.optimizer": "adagrad"}, "'adagrad' is not one of sgd, adam, adamw"),
        ({"acp.lr": "1e-3"}, "config.acp.lr: expected float, got '1e-3'"),
        ({"head.map_hidden": [1]}, "config.head.map_hidden: expected 2 values"),
    ],
)
def test_bad_overrides_say_what_was_found_and_expected(changes, message):
    with pytest.raises(ValueError, match=message):
        configs.override(Config(), changes)


@pytest.mark.parametrize("head", [3, None, [1], "bmn"])
def test_a_head_that_is_no_object_is_refused(head):
    with pytest.raises(ValueError, match="config.head: expected an object with settings"):
        configs.from_dict(configs.Config, {"head": head})


def test_another_kind_of_head_is_the_one_difference_that_is_named():
    before = configs.preset("tiny")
    after = configs.override(before, {"head.kind": "bmn", "seed": 3})
    lines = configs.differences(configs.to_dict(before), configs.to_dict(after))
    assert lines == ["head.kind: 'gtad' → 'bmn'", "seed: 0 → 3"]
