"""The ordered notebooks as one batch: papermill with a run folder, parameter checks and resume.

Of a toy preset two things go on side by side: stages are trained ahead, in the order of `AHEAD`,
and notebooks that have all they need read them. Every stage is the same alone, to the last bit.

<run>/notebooks/NN_name.ipynb   executed notebooks
<run>/results.json, report.html what the notebooks measured, as a table and as pictures
"""

import contextlib
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from lofi import config as configs
from lofi import experiment, notebook
from lofi.data.datasets import open_datasets
from lofi.data.isolated import LONGEST_S, Children
from lofi.experiment import METHODS, write_results
from lofi.files import atomic_path, code_hash, read_json, write_json
from lofi.notebook import repository_root

# Side by side: task → what has to be finished before. Of those that can begin the first begins; no
# two that write into one folder of the run may. Notebooks that are not here come after all others.
AHEAD = {
    "data": (), "acp": ("data",), "vigour": ("data",), "lofi": ("acp",), "acp+": ("acp",),
    "head of c-lofi": ("lofi",), "head of acp+": ("acp+",), "head of acp": ("acp",),
    "head of random": ("data",), "icp": ("data",),
}  # fmt: skip
NOTEBOOKS = {
    "05": ("lofi", "acp+", *(f"head of {method}" for method in METHODS)), "06": ("05",),
    "06a": ("06",), "02": ("acp+", "vigour", "icp"), "03": ("lofi",), "01": ("data",),
    "04": ("acp",), "02a": (), "00": (),
}  # fmt: skip


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
    parameters: Mapping[str, Any] | None = None, jobs: int = 2,
) -> str:  # fmt: skip
    """Run the notebooks in order, then evaluate, print and report; returns the results table.

    A run that was interrupted goes on: finished stages are loaded, not computed again. A notebook
    that fails stops no other; RuntimeError at the end names the cell of each.

    Args:
        config: JSON file laid over `preset` ("" = over the preset that it names).
        parameters: further ones, for the notebooks that know them; ValueError where none does.
        jobs: notebooks and stages side by side, where a toy preset is run as it is.
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
    record = run_dir / "course.json"
    done: dict[str, Any] = read_json(record, "notebooks that ran") if record.exists() else {}
    tasks, pending = {}, {}
    for book, known in books.items():
        output = run_dir / "notebooks" / book.name
        own = given | {key: value for key, value in wanted.items() if key in known}
        # An output belongs to its notebook, its parameters, its configuration and this code.
        sources = book.read_bytes() + json.dumps(own).encode() + repr(chosen).encode()
        sources += code_hash().encode()
        made_from = hashlib.sha256(sources).hexdigest()[:16]
        if done.get(book.name, {}).get("made_from") == made_from and output.exists():
            print(f"{book.name} is done", file=sys.stderr)
            continue
        number = book.name.split("_")[0]
        tasks[number], pending[number] = tuple(tasks), (book, output, own, made_from)
    as_it_is = replace(configs.preset(chosen.preset), seed=chosen.seed) == chosen
    toy = as_it_is and chosen.preset in ("tiny", "toy") and not (config or parameters)
    if jobs > 1 and toy and (device, processes) == ("cpu", 1) and "05" in tasks:
        order = AHEAD | {number: NOTEBOOKS[number] for number in NOTEBOOKS if number in tasks}
        tasks = order | {n: (*order, *before) for n, before in tasks.items() if n not in order}
    else:
        jobs = 1
    was_done = len(books) - len(pending)
    failures, began, finished, started_at = [], time.perf_counter(), set(), time.time()
    running: dict[Future, tuple[str, float]] = {}
    names = {number: pending[number][0].name if number in pending else number for number in tasks}
    children, threads = Children(jobs, "its process", "--jobs 1"), ThreadPoolExecutor(jobs)
    try:
        while len(finished) < len(tasks):
            started = finished | {task for task, _ in running.values()}
            for task, before in tasks.items():
                ready = finished.issuperset(set(before) & set(tasks))
                if task in started or not ready or len(running) == jobs:
                    continue
                so_far, ran = time.perf_counter() - began, len(finished)
                about = f"{so_far:.0f} s so far"
                if ran:  # what was done before took no time
                    about += f", about {so_far / ran * (len(tasks) - ran):.0f} s left"
                place = f"{was_done + len(started) + 1} of {was_done + len(tasks)}"
                print(f"{place}: {names[task]} … ({about})", file=sys.stderr, flush=True)
                started.add(task)
                call = _train, (task, given)
                if task in pending:
                    call = run_notebook, pending[task][:3]
                began_at = time.perf_counter()
                if jobs == 1:
                    future = _finished(*call)
                else:
                    future = threads.submit(children.call, *call, LONGEST_S)
                running[future] = task, began_at
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task, began_at = running.pop(future)
                finished.add(task)
                if error := future.exception():
                    said = str(error) if names[task] in str(error) else f"{names[task]}: {error}"
                    print(said, file=sys.stderr)
                    failures += [said] if task in pending else []  # of a stage notebooks say
                    continue
                took, name = round(time.perf_counter() - began_at, 1), names[task]
                # A resumed notebook only loads what took long the first time: the longest counts.
                before = done.get(name, {"seconds": 0.0})
                made_from = pending[task][3] if task in pending else ""
                done[name] = {"seconds": max(took, before["seconds"]), "made_from": made_from}
                write_json(record, done)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        children.close()
        threads.shutdown()
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(books)} failed: {'; '.join(failures)}")
    seconds = sum(entry["seconds"] for entry in done.values())
    path, known = run_dir / "results.json", None
    if "06" in pending and path.is_file() and path.stat().st_mtime >= started_at:
        known = read_json(path, "results")
    return report(chosen, run_dir, METHODS, seconds, known)


def _finished(function: Callable, arguments: tuple) -> Future:
    """Call it here and now; what it raised is the future's."""
    future: Future = Future()
    try:
        future.set_result(function(*arguments))
    except Exception as error:
        future.set_exception(error)
    return future


def _train(task: str, given: Mapping[str, Any]) -> None:
    """A task of `AHEAD`, as a notebook would do it: same configuration, seeds and threads."""
    with contextlib.redirect_stderr(io.StringIO()):
        nb = notebook.setup(given["seed"], given["out_dir"], given["preset"], resume=True)
    if task == "data":
        open_datasets(nb.config.data, nb.config.seed, nb.out_dir)
    elif task.startswith("head of "):
        experiment.localize(nb.config, nb.out_dir, task.removeprefix("head of "), **nb.how)
    elif task == "vigour":  # the control of notebook 02, which is no stage of the kit
        import lectures  # of notebooks/, which `setup` has put on the path

        lectures.train_vigour(nb.config, nb.out_dir, resume=True)
    else:
        experiment.run_stage(task, nb.config, nb.out_dir, **nb.how)


def _parameters(notebook: Path) -> dict[str, Any]:
    import papermill

    return papermill.inspect_notebook(str(notebook))


def report(
    config: configs.Config, run_dir: str | Path, methods: Sequence[str], seconds: float,
    results: dict[str, Any] | None = None,
) -> str:  # fmt: skip
    """results.json, report.html and the table that `make demo` prints.

    `results`: what notebook 06 has just found; None: detect and evaluate.
    """
    from lofi.figures.tables import summary_table
    from lofi.report import write_run_report

    if results is None:
        results = write_results(config, run_dir, methods, seconds)
    else:
        results["seconds"] = round(seconds, 1)
        write_json(Path(run_dir) / "results.json", results)
    write_run_report(config, run_dir, results)
    return summary_table(results).text()
