"""The ordered notebooks as one batch: papermill with a run folder, parameter checks and resume.

<run>/notebooks/NN_name.ipynb   executed notebooks
<run>/results.json, report.html what the notebooks measured, as a table and as pictures
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lofi import config as configs
from lofi.experiment import METHODS, write_results
from lofi.files import atomic_path, read_json, write_json
from lofi.notebook import repository_root


def ordered_notebooks(first: str = "00", last: str = "99") -> list[Path]:
    """The notebooks NN_*.ipynb and NNa_*.ipynb from `first` to `last` ("02": 02a too), in order."""
    folder = repository_root() / "notebooks"
    numbers = {p: p.name.split("_")[0] for p in sorted(folder.glob("[0-9][0-9]*_*.ipynb"))}
    found = [p for p, number in numbers.items() if first <= number and number[: len(last)] <= last]
    if not found:
        advice = "run from a clone of the repository"
        raise FileNotFoundError(f"{folder}: no notebooks {first} to {last}; {advice}")
    return found


def run_notebook(notebook: Path, output: Path, parameters: dict[str, Any]) -> None:
    """Execute one notebook into `output`, written whole or not at all.

    Refuses unknown parameters (ValueError). When a cell fails (RuntimeError), the notebook so far
    is kept as `*.failed.ipynb`.
    """
    import papermill

    known = _parameters(notebook)
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ValueError(f"{notebook.name}: no parameter {unknown[0]!r}; known: {', '.join(known)}")
    failed = output.with_suffix(".failed.ipynb")
    with atomic_path(output) as temporary:
        try:
            papermill.execute_notebook(
                str(notebook), str(temporary), parameters, kernel_name="python3",
                progress_bar=sys.stderr.isatty(), cwd=str(repository_root() / "notebooks"),
                extra_arguments=["--IPKernelApp.log_level=40"],  # no remark on every start
            )  # fmt: skip
        except papermill.PapermillExecutionError as error:
            os.replace(temporary, failed)
            place = f"{notebook.name}, cell {error.cell_index}"
            raise RuntimeError(f"{place}: {error.ename}: {error.evalue} (see {failed})") from None


def run_course(
    preset: str, run_dir: str | Path, *, config: str | Path = "", seed: int = 0,
    first: str = "00", last: str = "99", device: str = "cpu", processes: int = 1,
    parameters: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    """Run the notebooks in order, then evaluate, print and report; returns the results table.

    A run that was interrupted goes on: finished stages are loaded, not computed again. A notebook
    that fails stops no other; RuntimeError at the end names the cell of each.

    Args:
        config: JSON file laid over `preset` ("" = over the preset that it names).
        parameters: further ones, for the notebooks that know them; ValueError where none does.
    """
    chosen = configs.override(configs.layered(preset, config), {"seed": seed} if seed else {})
    run_dir = Path(run_dir).resolve()
    run_dir.mkdir(parents=True, exist_ok=True)
    os.environ["LOFI_STATIC"] = "1"  # a batch has no sliders, even when a notebook started it
    given = {"preset": preset or chosen.preset, "seed": chosen.seed, "out_dir": str(run_dir)}
    given |= {"resume": True} | ({"config": str(Path(config).resolve())} if config else {})
    books = {book: _parameters(book) for book in ordered_notebooks(first, last)}
    wanted = {"device": device, "processes": processes} | dict(parameters or {})
    if unknown := sorted(set(parameters or {}) - set().union(*books.values())):
        known = ", ".join(sorted(set().union(*books.values())))
        raise ValueError(f"no notebook has a parameter {unknown[0]!r}; known: {known}")
    code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")))
    record = run_dir / "course.json"
    done: dict[str, Any] = read_json(record, "notebooks that ran") if record.exists() else {}
    failures, began, ran = [], time.perf_counter(), 0
    for number, (book, known) in enumerate(books.items(), 1):
        output = run_dir / "notebooks" / book.name
        own = given | {key: value for key, value in wanted.items() if key in known}
        before = done.get(book.name, {"seconds": 0.0, "made_from": ""})
        # An output belongs to its notebook, its parameters, its configuration and this code.
        sources = book.read_bytes() + json.dumps(own).encode() + repr(chosen).encode() + code
        made_from = hashlib.sha256(sources).hexdigest()[:16]
        if before["made_from"] == made_from and output.exists():
            print(f"{book.name} is done", file=sys.stderr)
            continue
        so_far, started = time.perf_counter() - began, time.perf_counter()
        about = f"{so_far:.0f} s so far"
        if ran:  # what was done before took no time
            about += f", about {so_far / ran * (len(books) - number + 1):.0f} s left"
        ran += 1
        print(f"{number} of {len(books)}: {book.name} … ({about})", file=sys.stderr, flush=True)
        try:
            run_notebook(book, output, own)
        except RuntimeError as error:
            failures.append(str(error))
            print(error, file=sys.stderr, flush=True)
            continue
        took = round(time.perf_counter() - started, 1)
        # A resumed notebook only loads what took long the first time: the longest time counts.
        done[book.name] = {"seconds": max(took, before["seconds"]), "made_from": made_from}
        write_json(record, done)
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(books)} failed: {'; '.join(failures)}")
    seconds = sum(entry["seconds"] for entry in done.values())
    return report(chosen, run_dir, METHODS, seconds)


def _parameters(notebook: Path) -> dict[str, Any]:
    import papermill

    return papermill.inspect_notebook(str(notebook))


def report(config: configs.Config, run_dir: Path, methods: Sequence[str], seconds: float) -> str:
    """results.json, report.html and the table that `make demo` prints."""
    from lofi.figures.tables import summary_table
    from lofi.report import write_run_report

    results = write_results(config, run_dir, methods, seconds)
    write_run_report(config, run_dir, results)
    return summary_table(results).text()
