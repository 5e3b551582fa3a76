"""How far a run is: lines in a log, metrics.jsonl, kept weights, `lofi report` of any run."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from lofi import config as configs
from lofi.commands import progress_lines
from lofi.data.toyworld import TINY, write_world
from lofi.report import write_any_report
from lofi.training.joint import train_lofi
from lofi.training.pretraining import train_acp
from lofi.training.run_folder import read_metrics

SMALL = {
    "acp.epochs": 3, "acp.batch": 8, "keep_every": 2, "lofi.training.epochs": 2,
    "lofi.training.batch": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_world(folder / "world", replace(TINY, source_clips=(16, 4), videos=(6, 2)), seed=0)
    config = configs.override(
        configs.preset("tiny"), {**SMALL, "data.world": str(folder / "world")}
    )
    train_acp(config, folder)
    train_lofi(config, folder)
    return folder


def test_a_log_gets_a_line_a_minute_with_rates_of_that_minute(capsys):
    now = 0.0
    on_step = progress_lines("lofi", clock=lambda: now)
    for step in range(100):  # 2 s a step: 0.5 s of waiting for 16 videos, 1.5 s of work
        now += 2.0
        record = {"epoch": step // 50, "loss": 0.5, "lr": 0.1, "items": 16, "waited": 0.5,
                  "seconds": 1.5, "fidelity": "50×8×112²"}  # fmt: skip
        on_step(step, 100, record)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1/100", "30/100", "60/100", "90/100", "100/100"]
    assert lines[1] == (
        "lofi 30/100 epoch 0 loss 0.5 lr 0.1 fidelity 50×8×112² 8 items/s waiting 25% left 0:02:20"
    )
    assert lines[-1].endswith("left 0:00:00")


def test_another_stage_starts_its_own_clock(capsys):
    now = 0.0
    on_step = progress_lines("training", clock=lambda: now)
    for _ in range(2):
        now += 1000.0  # loading
        for step in range(3):
            now += 1.0
            on_step(step, 3, {"items": 4, "waited": 0.0, "seconds": 1.0})
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] * 2 == lines and "4 items/s waiting 0% left 0:00:02" in lines[0]


def test_metrics_say_fidelity_waiting_and_items(run):
    rows = read_metrics(run / "c-lofi" / "encoder")
    sizes = [row["fidelity"] for row in rows]
    assert len(set(sizes)) > 1, "a long cycle changes the fidelity every epoch"
    assert all(row["waited"] >= 0 and row["seconds"] > 0 for row in rows)
    assert [row["items"] for row in rows] == [4, 2, 4, 2]  # 6 videos, 4 a step
    assert all("fidelity" not in row for row in read_metrics(run / "acp" / "encoder"))


def test_weights_of_every_other_epoch_outlast_the_run(run):
    kept = run / "acp" / "encoder" / "kept"
    assert [path.name for path in kept.iterdir()] == ["epoch-002.pt"]
    assert [path.name for path in (run / "c-lofi/encoder/kept").iterdir()] == ["epoch-002.pt"]
    state = torch.load(run / "c-lofi/encoder/kept/epoch-002.pt", weights_only=True)["encoder"]
    final = load_file(run / "c-lofi/encoder/encoder.safetensors")
    assert state.keys() == final.keys()  # the last epoch was the second
    assert all(torch.equal(state[key], final[key]) for key in final)


def test_a_report_of_any_run(run, tmp_path):
    (run / "acp" / "metrics").mkdir(exist_ok=True)
    text = '{"average_map": 0.3359, "protocol": "activitynet"}'
    (run / "acp" / "metrics" / "shared.json").write_text(text)
    text = write_any_report(run).read_text()
    for words in ("acp/encoder", "c-lofi/encoder", "finished", "33.59", "waiting for data"):
        assert words in text, words
    unfinished = run / "c-lofi" / "encoder" / "result.json"
    unfinished.rename(tmp_path / "kept.json")
    assert "unfinished" in write_any_report(run).read_text()
    with pytest.raises(
        FileNotFoundError, match="no stage of a run in it; give the folder of --out"
    ):
        write_any_report(tmp_path)
