"""Notebooks as a batch: parameters are checked, failures are named, finished ones are skipped."""

import json
import re

import nbformat
import pytest

from lofi import course
from lofi.course import ordered_notebooks, run_course, run_notebook


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
    names = [path.name[:2] for path in ordered_notebooks()]
    assert names == sorted(names) and {"01", "02", "03", "04", "05", "06"} <= set(names)
    assert [path.name[:2] for path in ordered_notebooks("02", "03")] == ["02", "03"]


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
