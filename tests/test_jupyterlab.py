"""Notebooks in JupyterLab, in a real browser: every cell runs, every control moves its picture.

LOFI_BROWSER=all tries every notebook (minutes), LOFI_BROWSER="01 06" some; without it none.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from browser import Browser

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
CHOSEN = os.environ.get("LOFI_BROWSER", "").split()
NOTEBOOKS = [
    path
    for path in sorted(FOLDER.glob("[0-9][0-9]*_*.ipynb"))
    if CHOSEN == ["all"] or path.name.split("_")[0] in CHOSEN
]
PANEL = "globalThis.panel"  # the notebook that is open
CONTROLS = ".widget-slider .noUi-base, .widget-dropdown select"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab on a copy of the notebooks, with settings and runs of its own."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(FOLDER, folder / "notebooks", ignore=shutil.ignore_patterns("__pycache__"))
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


@pytest.fixture(scope="module")
def browser(lab, tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile"), limit_s=240) as opened:
        yield opened


def move(browser: Browser, index: int) -> None:
    """Choose something else with one control: a click on the far end of a slider, or in a menu."""
    control = f"document.querySelectorAll({CONTROLS!r})[{index}]"
    browser.run("document.querySelector('[data-moved]')?.removeAttribute('data-moved')")
    browser.run(f"{control}.setAttribute('data-moved', '')")
    if browser.run(f"{control}.tagName") == "SELECT":
        last = f"{control}.selectedIndex = {control}.selectedIndex ? 0 : {control}.length - 1"
        browser.run(f"{last}; {control}.dispatchEvent(new Event('change', {{bubbles: true}}))")
        return
    places = f"[{control}, {control}.querySelector('.noUi-handle')].map("
    base, handle = browser.run(f"{places}e => (b => b.x + b.width / 2)(e.getBoundingClientRect()))")
    shown = f"{control}.closest('.widget-slider').querySelector('.widget-readout').textContent"
    before = browser.run(shown)
    for _ in range(5):  # a picture that is drawn may push the slider away from under the mouse
        browser.click("[data-moved]", 0.02 if handle > base else 0.98)
        time.sleep(0.5)
        if browser.run(shown) != before:
            return
    pytest.fail(f"control {index} does not leave {before!r}")


@pytest.mark.skipif(not CHOSEN, reason="LOFI_BROWSER=all or =01 runs notebooks in a browser")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
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
    controls = browser.run(f"document.querySelectorAll({CONTROLS!r}).length")
    assert controls >= explored
    for index in range(controls):
        area = f"document.querySelectorAll({CONTROLS!r})[{index}].closest('.jp-OutputArea-output')"
        picture = f"[...{area}.querySelectorAll('img')].map(e => e.src).join()"
        browser.wait(picture)
        before = browser.run(picture)
        move(browser, index)
        browser.wait(f"{picture} && {picture} !== {json.dumps(before)}")
        assert "Error" not in browser.run(f"{area}.textContent")
    said = [e["params"] for e in browser.events if e["method"] == "Runtime.consoleAPICalled"]
    said = [[part.get("value") for part in e["args"]] for e in said if e["type"] == "error"]
    assert not said
    assert not [e for e in browser.events if e["method"] == "Runtime.exceptionThrown"]
    browser.run("jupyterapp.commands.execute('docmanager:save').then(() => true)")  # else it asks
    browser.run(f"{PANEL}.context.sessionContext.shutdown().then(() => true)")
