"""Notebooks as a batch: parameters are checked, failures are named, finished ones are skipped."""

import json
import re

import nbformat
import pytest
import tour

from lofi import course
from lofi.course import ordered_notebooks, run_course, run_notebook
from lofi.detection import Detection, read_detections
from lofi.detection.results import write_detections
from lofi.experiment import METHODS


def notebook(path, *cells: str):
    """A notebook with a parameters cell and further code cells."""
    parameters = nbformat.v4.new_code_cell(
        'preset: str = "tiny"  # x\nseed: int = 0  # x\nout_dir: str = ""  # x\n'
        "resume: bool = False  # x"
    )
    parameters.metadata["tags"] = ["parameters"]
    book = nbformat.v4.new_notebook(
        cells=[parameters, *(nbformat.v4.new_code_cell(cell) for cell in cells)]
    )
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "x", "language": "python"}
    nbformat.write(book, path)
    return path


def test_the_repository_s_notebooks_come_in_order():
    def numbers(*ends):
        return [path.name.split("_")[0] for path in ordered_notebooks(*ends)]

    assert numbers() == sorted(numbers()) and {"00", "01", "02a", "06"} <= set(numbers())
    assert numbers()[0] == "00" and numbers("02", "02") == ["02", "02a"]
    assert numbers("06", "06") == ["06", "06a"]
    assert numbers("02a", "03")[0] == "02a" and numbers("02a", "02a") == ["02a"]


def test_a_misspelt_parameter_is_refused_before_anything_runs(tmp_path):
    path = notebook(tmp_path / "01_x.ipynb", "raise SystemExit")
    with pytest.raises(ValueError, match="no parameter 'sede'; known: preset, seed, out_dir"):
        run_notebook(path, tmp_path / "out.ipynb", {"sede": 1})


def test_a_failing_cell_is_named_and_its_notebook_kept(tmp_path):
    path = notebook(tmp_path / "01_x.ipynb", "1 / 0")
    with pytest.raises(RuntimeError, match="01_x.ipynb, cell .*ZeroDivisionError"):
        run_notebook(path, tmp_path / "out.ipynb", {"seed": 1})
    assert not (tmp_path / "out.ipynb").exists()
    assert (tmp_path / "out.failed.ipynb").exists()


def test_a_course_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    count = (
        "import pathlib; p = pathlib.Path(out_dir) / '{0}'; "
        "p.write_text(p.read_text() + 'x' if p.exists() else 'x')"
    )
    wait = "assert pathlib.Path(out_dir, 'go').exists()"
    books = [
        notebook(tmp_path / "01_a.ipynb", count.format("a")),
        notebook(tmp_path / "02_b.ipynb", count.format("b"), wait),
    ]  # fmt: skip
    monkeypatch.setattr(course, "ordered_notebooks", lambda first, last: books)
    monkeypatch.setattr(course, "report", lambda *_: "table")
    run = tmp_path / "run"
    with pytest.raises(RuntimeError, match="02_b.ipynb"):
        run_course("tiny", run)
    told = r"2 of 2: 02_b.ipynb … \(\d+ s so far"
    assert re.search(told + r", about \d+ s left\)", capsys.readouterr().err)
    (run / "go").touch()
    assert run_course("tiny", run) == "table"  # nothing ran before in this call: no guess
    assert re.search(told + r"\)", capsys.readouterr().err)
    assert run_course("tiny", run) == "table"
    assert ((run / "a").read_text(), (run / "b").read_text()) == ("x", "xx")
    assert set(json.loads((run / "course.json").read_text())) == {"01_a.ipynb", "02_b.ipynb"}


def test_notebooks_go_on_side_by_side_as_far_as_they_may(tmp_path, monkeypatch):
    """05 and 00 wait for each other; 06 needs 05, and 07 all of them."""
    meet = """
import pathlib, time
folder = pathlib.Path(out_dir)
(folder / "{mine}").touch()
until = time.time() + 300
while not (folder / "{other}").exists() and time.time() < until:
    time.sleep(0.05)
assert (folder / "{other}").exists()
"""
    after = "import pathlib; assert all(pathlib.Path(out_dir, f).exists() for f in {0!r}); "
    after += "pathlib.Path(out_dir, '{1}').touch()"
    books = [
        notebook(tmp_path / "00_a.ipynb", meet.format(mine="a", other="b")),
        notebook(tmp_path / "05_b.ipynb", meet.format(mine="b", other="a")),
        notebook(tmp_path / "06_c.ipynb", after.format("ab", "c")),
        notebook(tmp_path / "07_d.ipynb", after.format("abc", "d")),
    ]
    monkeypatch.setattr(course, "ordered_notebooks", lambda first, last: books)
    monkeypatch.setattr(course, "report", lambda *_: "table")
    monkeypatch.setattr(course, "AHEAD", {})
    assert run_course("tiny", tmp_path / "run") == "table"
    assert (tmp_path / "run" / "d").exists()


def test_what_goes_on_side_by_side_is_all_that_the_notebooks_train():
    heads = {f"head of {method}" for method in METHODS}
    assert set(course.AHEAD) == {"data", "acp", "acp+", "lofi", "icp", "vigour"} | heads
    numbers = [path.name.split("_")[0] for path in ordered_notebooks("00", "06")]
    assert set(course.NOTEBOOKS) == set(numbers)
    order = course.AHEAD | course.NOTEBOOKS
    assert all(set(before) <= set(order) for before in order.values())


def test_the_tour_keeps_the_best_detections_of_a_run(tmp_path, monkeypatch):
    many = [Detection(float(i), i + 1.0, "wave", 1 / (i + 3)) for i in range(9)]
    for method in tour.METHODS:
        path = tmp_path / method / "detections" / "shared.json"
        write_detections(path, {"v": many, "empty": []}, source={"preset": "toy"})
    monkeypatch.setattr(tour, "FOLDER", tmp_path / "tour")
    tour.keep(tmp_path)
    kept = read_detections(tmp_path / "tour" / "acp.json")
    assert [d.score for d in kept["v"]] == [0.3333, 0.25, 0.2, 0.1667, 0.1429]
    assert kept["empty"] == [] and kept["v"][4][:2] == (4.0, 5.0)
    assert '"preset": "toy"' in (tmp_path / "tour" / "c-lofi.json").read_text()
