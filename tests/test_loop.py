"""The training loop: order, schedules, resume to the same bits, and what a broken run says."""

import pytest
import torch
from torch import nn

from lofi.config import Optimisation
from lofi.training.loop import (
    Batches,
    RunFolder,
    Training,
    backward,
    fit,
    generator_for,
    learning_rate,
    prefetched,
)
from lofi.training.run_folder import read_metrics

SETTING = Optimisation(epochs=3, batch=4, lr=0.1, momentum=0.9, schedule="cosine", warmup=2)


def line_training(**changes) -> Training:
    """Fit y = 2x with one weight; the data of a step follow from its number."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    batches = Batches(10, SETTING.batch, SETTING.epochs, (0, "line"))

    def step(items, number):
        x = torch.tensor([[float(i)] for i in items]) / 10
        noise = 0.01 * torch.randn(x.shape, generator=generator_for(0, "noise", number))
        return backward({"loss": (model(x) - 2 * x + noise).square().mean()})

    parts = {"modules": {"model": model}, "setting": SETTING, "batches": batches}
    parts |= {"load": batches.at, "step": step, "checkpoint_every": 2}
    return Training(**(parts | changes))


def test_every_epoch_sees_every_item_once_in_a_new_order():
    batches = Batches(10, 4, 2, (0, "x"))
    epochs = [sum((batches.at(3 * e + i) for i in range(3)), []) for e in range(2)]
    assert batches.steps == 6
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]
    assert [len(batches.at(i)) for i in range(3)] == [4, 4, 2]


def test_nothing_to_train_on_is_an_error_not_an_endless_loop():
    with pytest.raises(ValueError, match="nothing to train on"):
        Batches(0, 4, 2, (0, "acp"))


def test_step_schedule_halves_and_cosine_ends_near_zero():
    step = Optimisation(epochs=15, lr=0.1, decay_every=5, decay=0.5)
    assert [learning_rate(step, 10 * e, 10) for e in (0, 4, 5, 9, 10)] == pytest.approx(
        [0.1, 0.1, 0.05, 0.05, 0.025]
    )
    rates = [learning_rate(SETTING, i, 10) for i in range(30)]
    assert rates[0] < rates[1] < rates[2] == pytest.approx(0.1)
    assert rates[-1] < 0.001


def test_prefetching_keeps_the_order_for_any_number_of_workers():
    for workers in (0, 1, 3, 20):
        assert list(prefetched(lambda i: i * i, 2, 9, workers)) == [i * i for i in range(2, 9)]


class Killed(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 2, 5, 8])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, stop):
    whole = line_training()
    fit(whole, RunFolder(tmp_path / "whole", {}))

    def kill(step, steps, record):
        if step == stop:
            raise Killed

    with pytest.raises(Killed):
        fit(line_training(), RunFolder(tmp_path / "cut", {}), kill)
    resumed = line_training()
    run = RunFolder(tmp_path / "cut", {})
    fit(resumed, run)
    for a, b in zip(whole.modules["model"].parameters(), resumed.modules["model"].parameters()):
        assert torch.equal(a, b)
    assert [row["step"] for row in read_metrics(run.folder)] == list(range(9))
    reference = read_metrics(tmp_path / "whole")
    assert [row["loss"] for row in read_metrics(run.folder)] == [row["loss"] for row in reference]


def test_other_settings_in_the_same_folder_are_refused_by_name(tmp_path):
    run = RunFolder(tmp_path, {"seed": 0, "training": {"lr": 0.1, "clip": 0.0}})
    run.save_checkpoint({"step": 1})
    with pytest.raises(ValueError, match=r"training\.lr: 0\.1 → 0\.2.*another --out"):
        RunFolder(tmp_path, {"seed": 0, "training": {"lr": 0.2, "clip": 0.0}})


def test_a_finished_run_returns_its_result_and_resume_false_forgets_it(tmp_path):
    run = RunFolder(tmp_path, {"seed": 0})
    run.finish({"accuracy": 0.5})
    assert RunFolder(tmp_path, {"seed": 0}).result() == {"accuracy": 0.5}
    assert RunFolder(tmp_path, {"seed": 0}, resume=False).result() is None


def test_only_resume_false_accepts_that_the_stage_before_was_trained_anew(tmp_path):
    RunFolder(tmp_path, {"seed": 0, "start": "abc"}).finish({"accuracy": 0.5})
    with pytest.raises(ValueError, match="start: 'abc' → 'def'"):
        RunFolder(tmp_path, {"seed": 0, "start": "def"})
    with pytest.raises(ValueError, match="seed: 0 → 1"):
        RunFolder(tmp_path, {"seed": 1, "start": "def"}, resume=False)
    assert RunFolder(tmp_path, {"seed": 0, "start": "def"}, resume=False).result() is None
    assert RunFolder(tmp_path, {"seed": 0, "start": "def"}).result() is None  # is the new owner


def test_a_loss_that_is_not_finite_stops_and_names_the_items(tmp_path):
    training = line_training(
        step=lambda items, number: {"loss": float("nan")},
        describe=lambda step: "video v_1, v_2",
    )
    with pytest.raises(FloatingPointError, match="step 0: loss is nan on video v_1, v_2"):
        fit(training, RunFolder(tmp_path, {}))


def test_a_batch_that_cannot_be_read_is_left_out(tmp_path):
    training = line_training()
    usual = training.step
    training.step = lambda items, number: None if number == 1 else usual(items, number)
    run = RunFolder(tmp_path, {})
    fit(training, run)
    assert [row["step"] for row in read_metrics(run.folder)] == [0, 2, 3, 4, 5, 6, 7, 8]


def test_a_damaged_checkpoint_is_named_not_half_loaded(tmp_path):
    run = RunFolder(tmp_path, {})
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"last\.pt: cannot be read.*remove it"):
        fit(line_training(), run)


def test_a_step_without_any_gradient_is_an_error(tmp_path):
    """A detached loss would train nothing, silently."""
    training = line_training(step=lambda items, number: {"loss": 1.0})
    with pytest.raises(RuntimeError, match="step 0 left no gradient on any of 2 trained parameter"):
        fit(training, RunFolder(tmp_path, {}))
