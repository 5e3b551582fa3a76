"""Commands that run the whole procedure, and print what it found."""

import time
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from lofi.commands.progress import progress_lines
from lofi.commands.training import one_thread_for_small_work
from lofi.config import Config


def compare(
    out: Path,
    config: Annotated[Config, arg(name="")],
    seeds: tuple[int, ...] = (0, 1, 2),
    methods: tuple[str, ...] = ("random", "acp", "acp+", "c-lofi"),
    device: str = "cpu",
    processes: int = 1,
) -> None:
    """The whole procedure for several encoders and seeds, without notebooks: mean ± SD.

    Args:
        out: results.json, and one run folder a seed.
        seeds: each makes a world, initial weights and random draws of its own.
        methods: random, acp, acp+, s-lofi, t-lofi, st-lofi, short-c-lofi, c-lofi, low-lofi, icp,
            arrow, speed, weights (as they are), or two encoders side by side, such as acp+arrow.
    """
    from lofi.experiment import compare_seeds
    from lofi.figures.tables import summary_table
    from lofi.training.distributed import is_first, joined

    one_thread_for_small_work(config)
    with joined(device) as device:
        results = compare_seeds(config, out, seeds, methods, progress_lines("training"), device)
        if is_first():
            print(summary_table(results).text())


def course(
    preset: str = "tiny",
    run: Path = Path("runs/course"),
    seed: int = 0,
    first: Annotated[str, arg(name="from")] = "00",
    last: Annotated[str, arg(name="to")] = "99",
) -> None:
    """Run the ordered notebooks as one batch; ends in results.json, a table and report.html.

    Args:
        first: number of the first notebook.
        last: number of the last notebook.
    """
    from lofi.course import run_course

    began = time.perf_counter()
    table = run_course(preset, run, seed=seed, first=first, last=last)
    print(table)
    print(f"report: {run / 'report.html'}   seconds: {time.perf_counter() - began:.0f}")


def tables(run: Path = Path("runs/demo")) -> None:
    """Print the results of a finished run, beside the paper's numbers."""
    from lofi import figures
    from lofi.experiment import read_results

    results = read_results(run)
    print(figures.results_table(results).text())
    if results["preset"] in ("tiny", "toy"):
        print("\nThe paper's own numbers are for another data set: compare orders, not levels.")
        print(figures.paper_table("Table 1").text())
    else:
        print(f"\n{figures.paper_vs_ours(results).text()}")
