"""nbval: what notebooks write to stderr (versions, log lines, progress) is not compared."""

import os

if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # notebooks side by side do not share a run
    os.environ["LOFI_RUNS"] = f"runs/{worker}"


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
