"""Notebooks in JupyterLab, in a real browser: every cell runs, every control moves its picture.

By default notebooks run up to the last control before the first cell that trains.
LOFI_BROWSER=all runs every notebook whole (half an hour), LOFI_BROWSER="01 06" some.
"""

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from browser import Browser

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
CHOSEN = os.environ.get("LOFI_BROWSER", "").split()
TRAINS = re.compile(r"run_stage\(|train_\w+\(|localize\(|lofi\.fit\(")
PANEL = "globalThis.panel"  # the notebook that is open
SLIDERS = ".widget-slider .noUi-base"


def cells_to_run() -> dict[Path, int]:
    """Notebooks to open, and how many of their cells."""
    found = {}
    for path in sorted(FOLDER.glob("[0-9][0-9]*_*.ipynb")):
        sources = [c.source * (c.cell_type == "code") for c in nbformat.read(path, 4).cells]
        cheap = [*itertools.takewhile(lambda source: not TRAINS.search(source), sources)]
        controls = [i for i, source in enumerate(cheap, 1) if "explore(" in source]
        if CHOSEN == ["all"] or path.name.split("_")[0] in CHOSEN:
            found[path] = len(sources)
        elif not CHOSEN and controls:
            found[path] = controls[-1]
    return found


CELLS = cells_to_run()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile"), limit_s=1800 if CHOSEN else 300) as opened:
        yield opened


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):  # no server where there is no browser
    """Address of a JupyterLab on a copy of the notebooks, with settings and runs of its own."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(FOLDER, folder / "notebooks", ignore=shutil.ignore_patterns("__pycache__"))
    for path, count in CELLS.items():
        book = nbformat.read(path, 4)
        book.cells = book.cells[:count]
        nbformat.write(book, folder / "notebooks" / path.name)
    tracker = folder / "settings" / "@jupyterlab" / "notebook-extension"
    tracker.mkdir(parents=True)
    settings = {"windowingMode": "none"}  # cells out of sight are in the page, too
    (tracker / "tracker.jupyterlab-settings").write_text(json.dumps(settings))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {
        "ServerApp.port": port, "ServerApp.ip": "127.0.0.1", "ServerApp.open_browser": False,
        "ServerApp.root_dir": folder / "notebooks", "IdentityProvider.token": "tests",
        "ServerApp.allow_root": True, "LabApp.expose_app_in_browser": True,
        "LabApp.user_settings_dir": folder / "settings",
        "LabApp.workspaces_dir": folder / "workspaces", "LabApp.news_url": None,
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }  # fmt: skip
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime",
           "IPYTHONDIR": "ipython", "LOFI_RUNS": "runs"}  # fmt: skip
    environment = os.environ | {name: str(folder / where) for name, where in own.items()}
    environment.pop("LOFI_STATIC", None)
    words = [f"--{name}={value}" for name, value in options.items()]
    log = (folder / "log.txt").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *words], env=environment, stdout=log, stderr=log
    )
    until = time.monotonic() + 120
    while socket.socket().connect_ex(("127.0.0.1", port)):
        assert server.poll() is None and time.monotonic() < until, (folder / "log.txt").read_text()
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}/lab/tree", "?reset&token=tests"
    server.terminate()
    server.wait(30)


def move(browser: Browser, slider: str, share: float) -> None:
    """Click a slider at a share of its width."""
    shown = f"document.querySelector({slider!r}).closest('.widget-slider').innerText"
    before = browser.run(shown)
    for _ in range(5):  # a picture that is drawn may push the slider away from under the mouse
        browser.click(slider, share)
        time.sleep(0.3)
        if browser.run(shown) != before:
            return
    pytest.fail(f"a click at {share:.2f} does not move the slider from {before!r}")


@pytest.mark.parametrize("path", CELLS, ids=lambda path: path.stem)
def test_every_cell_runs_and_every_control_redraws(lab, browser, path):
    address, query = lab
    browser.events.clear()
    browser.open(f"{address}/{path.name}{query}")
    browser.wait("globalThis.jupyterapp && jupyterapp.restored.then(() => true)")
    opened = f"[...jupyterapp.shell.widgets('main')].find(w => w.context?.path === {path.name!r})"
    browser.wait(f"({PANEL} = {opened}) && true")
    browser.wait(f"{PANEL}.context.isReady")
    browser.wait(f"{PANEL}.context.sessionContext.session?.kernel?.status === 'idle'")
    browser.run("jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)")
    book = browser.run(f"{PANEL}.content.model.toJSON()")
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    errors = [o for cell in cells for o in cell["outputs"] if o["output_type"] == "error"]
    assert not errors, errors[0]["evalue"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    explored = sum("notebook.explore(" in "".join(cell["source"]) for cell in cells)
    sliders = f"[...document.querySelectorAll({SLIDERS!r})]"
    count = browser.run(f"{sliders}.map((e, i) => e.dataset.slider = i).length")
    assert count >= explored
    for index in range(count):
        slider = f"[data-slider='{index}']"
        area = f"document.querySelector({slider!r}).closest('.jp-OutputArea-output')"
        pictures = f"[...{area}.querySelectorAll('img')].map(e => e.src).join()"
        browser.wait(f"(globalThis.first = {pictures}) !== ''", 60)
        places = "[e.querySelector('.noUi-handle'), e].map(x => x.getBoundingClientRect())"
        start = f"(([h, b]) => (h.x + h.width / 2 - b.x) / b.width)({places})"
        start = browser.run(f"(e => {start})(document.querySelector({slider!r}))")
        move(browser, slider, 0.02 if start > 0.5 else 0.98)
        browser.wait(f"![first, ''].includes({pictures})", 60)
        assert "Error" not in browser.run(f"{area}.textContent")
        move(browser, slider, min(max(start, 0.005), 0.995))
        browser.wait(f"{pictures} === first", 60)  # the same choice, the same picture
    said = [e["params"] for e in browser.events if e["method"] == "Runtime.consoleAPICalled"]
    said = [[part.get("value") for part in e["args"]] for e in said if e["type"] == "error"]
    assert not said
    assert not [e for e in browser.events if e["method"] == "Runtime.exceptionThrown"]
    browser.run(f"{PANEL}.context.save().then(() => true)")  # else it asks
    browser.run(f"{PANEL}.context.sessionContext.shutdown().then(() => true)")
