"""Full scale in small: a set in ActivityNet's shape through all commands and all notebooks.

The commands train; the notebooks then are the report of the finished run, read from another
working directory as a server's job would.
"""

import json
import shlex
import subprocess
import sys

import pytest
from standin import write_standin

from lofi import cli
from lofi.budget import inference_cost
from lofi.config import load
from lofi.course import ordered_notebooks, run_course
from lofi.files import sha256
from lofi.training.methods import encoder_path, load_encoder

METHODS = ("acp", "acp+", "c-lofi")


def lofi(*words) -> None:
    """`lofi …` in this process, which must succeed."""
    before, sys.argv = sys.argv, ["lofi", *map(str, words)]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, words
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("standin")
    standin, run = write_standin(folder / "data"), folder / "run"
    lofi("check", standin.annotations, "--videos", standin.videos)
    for stage in METHODS[:2] + ("lofi",):
        lofi("train", stage, "--config", standin.config, "--out", run)
    for stage in ("features", "head", "classes", "detect", "evaluate"):
        lofi("train", stage, "--config", standin.config, "--out", run)
    return standin, run


def test_the_commands_alone_end_in_an_mAP_under_each_source_of_classes(trained, capsys):
    standin, run = trained
    for kind in ("shared", "own", "oracle"):
        report = json.loads((run / "c-lofi" / "metrics" / f"{kind}.json").read_text())
        assert (report["videos"], report["instances"]) == (4, 4)  # the validation subset
        assert 0 <= report["average_map"] <= 1
    found = json.loads((run / "c-lofi" / "detections" / "result.json").read_text())
    assert found["classes_missing"] == 1  # the score file lacks one of the four
    lofi("detect", next(standin.videos.glob("*10x.mkv")), "--model", run, "--out", run / "found")
    lofi("evaluate", standin.annotations, run / "c-lofi" / "detections" / "shared.json")
    lofi("diagnose", standin.annotations, run / "c-lofi" / "detections" / "shared.json")
    assert "average mAP" in capsys.readouterr().out
    assert (run / "found" / "v_standin10x.csv").is_file()


def test_inference_costs_the_same_whatever_trained_the_encoder(trained):
    """The paper's claim: LoFi changes weights, not what a video costs."""
    _, run = trained
    config = load(run / "config.json")
    found = [inference_cost(load_encoder(config, run, method)[0], None, config.full)
             for method in METHODS]  # fmt: skip
    assert found == [found[0]] * 3


def test_the_notebooks_read_the_finished_run_from_anywhere(trained, tmp_path, monkeypatch):
    standin, run = trained
    monkeypatch.chdir(tmp_path)
    before = {method: sha256(encoder_path(run, method)) for method in METHODS}
    table = run_course("", run, config=standin.config, last="06")  # 07 and on read no run
    assert "average mAP" in table or "mAP" in table
    assert before == {
        method: sha256(encoder_path(run, method)) for method in METHODS
    }  # no training
    written = {path.name for path in (run / "notebooks").glob("*.ipynb")}
    assert written == {path.name for path in ordered_notebooks(last="06")}


def test_papermill_runs_a_notebook_on_a_configuration(trained, tmp_path):
    standin, run = trained
    book = ordered_notebooks("07", "07")[0]
    words = ["papermill", book, tmp_path / "07.ipynb", "-p", "config", standin.config]
    words += ["-p", "out_dir", run, "-k", "python3"]
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{shlex.join(map(str, words))}\n{done.stderr[-2000:]}"
