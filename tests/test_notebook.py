"""The notebook helper behaves the same for a person, papermill, nbval and nbconvert."""

import json
import logging
import os
import random
import sys
import types

import ipywidgets
import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from lofi import config as configs
from lofi import notebook


@pytest.fixture(autouse=True)
def _leave_no_trace(monkeypatch):
    """`setup` changes global settings on purpose; other tests must not see them."""
    deterministic = torch.get_deterministic_debug_mode()
    logger = logging.getLogger("lofi")
    level, handlers = logger.level, list(logger.handlers)
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    for name in ("LOFI_STATIC", "JPY_SESSION_NAME"):
        monkeypatch.delenv(name, raising=False)
    with np.printoptions(), matplotlib.rc_context():
        yield
    plt.close("all")
    torch.set_deterministic_debug_mode(deterministic)
    torch.set_printoptions(profile="default")
    torch.set_printoptions(sci_mode=None)
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    logger.setLevel(level)
    logger.handlers[:] = handlers
    if workspace is None:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def fake_shell(monkeypatch, **namespace):
    """Pretend to run in a notebook kernel."""
    shell = types.SimpleNamespace(
        kernel=object(), user_ns=namespace, run_line_magic=lambda *_: None
    )
    module = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", module)


def test_setup_gives_the_same_numbers_twice(tmp_path, capsys):
    draws = []
    for _ in range(2):
        nb = notebook.setup(3, tmp_path)
        draws.append(
            (torch.rand(2, generator=nb.generator).tolist(), torch.rand(2).tolist(),
             np.random.rand(2).tolist(), random.random())
        )  # fmt: skip
    assert draws[0] == draws[1]
    assert torch.are_deterministic_algorithms_enabled()


def test_setup_speaks_only_on_stderr(tmp_path, capsys):
    notebook.setup(0, tmp_path)
    notebook.setup(0, tmp_path)
    logging.getLogger("lofi.training").info("step 1/2")
    out, err = capsys.readouterr()
    assert out == ""
    assert f"torch {torch.__version__}" in err
    assert err.count("step 1/2") == 1  # a second setup does not double the log


def test_numbers_print_with_three_decimals(tmp_path):
    notebook.setup(0, tmp_path)
    assert str(torch.tensor([1 / 3, 20000.0])) == "tensor([    0.333, 20000.000])"
    assert str(np.array([1 / 3])) == "[0.333]"


@pytest.mark.parametrize(("preset", "threads"), [("weak", 1), ("activitynet", 3)])
def test_only_toy_networks_get_one_thread(preset, threads, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        notebook.setup(0, tmp_path, config=configs.preset(preset))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_relative_folders_count_from_the_repository(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(notebook, "__file__", str(tmp_path / "lofi" / "notebook.py"))
    monkeypatch.chdir(tmp_path / "notebooks")
    assert notebook.setup(0, "runs/a").out_dir == tmp_path / "runs" / "a"
    assert notebook.setup(0, "", preset="toy").out_dir == tmp_path / "runs" / "toy"
    assert (tmp_path / "runs" / "toy").is_dir()


def test_a_configuration_wins_over_the_notebooks_defaults(tmp_path):
    save = {"preset": "activitynet", "seed": 4, "data": {"annotations": "data/own.json"}}
    save["weak"] = {"clip": "clip.pt", "frames": {"folder": "frames"}}
    (tmp_path / "own.json").write_text(json.dumps(save))
    nb = notebook.setup(0, tmp_path / "run", "tiny", tmp_path / "own.json", "cuda", 2)
    root = notebook.repository_root()
    assert (nb.config.preset, nb.config.seed) == ("activitynet", 4)
    assert nb.config.data.annotations == str(root / "data" / "own.json")  # not from here
    weak = nb.config.weak
    assert (weak.clip, weak.frames.folder) == (str(root / "clip.pt"), str(root / "frames"))
    assert nb.how == {"resume": True, "device": "cuda", "processes": 2}  # a named run is read
    assert not nb.toy and not nb.known
    again = notebook.setup(0, tmp_path / "run", "tiny", nb.config)  # a cell that runs twice
    assert again.config == nb.config
    with pytest.raises(ValueError, match="configuration of preset 'activitynet', but .* toy"):
        notebook.setup(0, tmp_path / "run", "toy", tmp_path / "own.json")


@pytest.mark.parametrize(
    ("weights", "source"),
    [("none", "segments"), ("pretrained", "segments+background"), ("a.pth", "clips.csv")],
)
def test_words_are_no_paths(tmp_path, weights, source):
    data = {"annotations": "/own.json", "source": source}
    save = {"preset": "activitynet", "weights": weights, "data": data}
    (tmp_path / "own.json").write_text(json.dumps(save))
    found = notebook.setup(0, tmp_path / "run", "tiny", tmp_path / "own.json").config
    root = notebook.repository_root()
    named = (found.weights, found.data.source)
    assert named == (
        (str(root / weights), str(root / source)) if "." in weights else (weights, source)
    )


def test_a_finished_run_gives_its_own_configuration(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"preset": "toy", "seed": 7}))
    nb = notebook.setup(out_dir=tmp_path)
    assert (nb.config.preset, nb.config.seed, nb.toy, nb.known) == ("toy", 7, True, True)
    changed = notebook.setup(out_dir=tmp_path, changes={"lofi.training.epochs": 2})
    assert changed.config.lofi.training.epochs == 2


def test_an_installed_package_finds_the_repository_from_the_working_directory(
    tmp_path, monkeypatch
):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    elsewhere = tmp_path / "site-packages" / "lofi" / "notebook.py"
    monkeypatch.setattr(notebook, "__file__", str(elsewhere))
    monkeypatch.chdir(tmp_path / "notebooks")
    assert notebook.repository_root() == tmp_path


def test_live_only_in_a_kernel_that_a_person_opened(monkeypatch):
    assert not notebook.is_live()
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/01.ipynb")
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    assert not notebook.is_live()  # a plain script started from a notebook inherits the variable
    fake_shell(monkeypatch)
    assert notebook.is_live()
    monkeypatch.setenv("LOFI_STATIC", "1")
    assert not notebook.is_live()


def test_live_in_vscode_but_not_in_a_bare_kernel(monkeypatch):
    fake_shell(monkeypatch)
    assert not notebook.is_live()  # nbval, nbconvert, papermill
    fake_shell(monkeypatch, __vsc_ipynb_file__="01.ipynb")
    assert notebook.is_live()


def test_explore_draws_every_choice_of_the_first_control():
    calls = []

    def draw(pixels, time, ax):
        calls.append((pixels, time))
        ax.plot([0, pixels])

    assert notebook.explore(draw, pixels=(224, 158, 112, 56, 28), time=(1, 4)) is None
    figure = plt.gcf()
    assert calls == [(224, 1), (158, 1), (112, 1), (56, 1), (28, 1)]
    assert [ax.get_title() for ax in figure.axes][:2] == ["pixels = 224", "pixels = 158"]
    assert figure.get_suptitle() == "time = 1"
    assert sum(ax.axison for ax in figure.axes) == 5  # the empty places of the grid are blank


def test_explore_puts_titles_above_legends_that_stand_over_the_axes():
    def draw(lines, ax):
        for i in range(lines):
            ax.plot([0, 1], label=str(i))
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1))

    notebook.explore(draw, lines=(1, 3))
    figure = plt.gcf()
    figure.canvas.draw()
    for ax in figure.axes:
        assert ax.title.get_window_extent().y0 >= ax.get_legend().get_window_extent().y1


def test_explore_offers_sliders_to_a_person(monkeypatch):
    shown = []
    fake_shell(monkeypatch, __vsc_ipynb_file__="01.ipynb")

    class Box(list):
        pass

    widgets = types.SimpleNamespace(
        SelectionSlider=ipywidgets.SelectionSlider,
        interactive_output=lambda redraw, controls: redraw(
            **{c: s.value for c, s in controls.items()}
        ),
        VBox=Box,
    )
    display = types.SimpleNamespace(display=shown.append)
    monkeypatch.setitem(sys.modules, "ipywidgets", widgets)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    drawn = []
    notebook.explore(
        lambda pixels, encoder, region, ax: drawn.append((pixels, encoder, region)),
        pixels=(158, 224, 112), encoder=("r34", "r18"), region=((4.5, 5.5), (7, 12)),
    )  # fmt: skip
    ((*sliders, _),) = shown
    assert [(s.description, [label for label, _ in s.options], s.index) for s in sliders] == [
        ("pixels", ["112", "158", "224"], 1),
        ("encoder", ["r34", "r18"], 0),
        ("region", ["(4.5, 5.5)", "(7, 12)"], 0),  # pairs are choices, too
    ]
    assert drawn == [(158, "r34", (4.5, 5.5))]


def test_explore_without_choices_is_refused():
    with pytest.raises(ValueError, match="at least one name"):
        notebook.explore(print)
    with pytest.raises(ValueError, match="at least one name"):
        notebook.explore(print, pixels=())


def test_expect_prints_the_message(capsys):
    with notebook.expect(ValueError, KeyError):
        raise ValueError("time must be at least 1, got 0.5")
    assert capsys.readouterr().out == "ValueError: time must be at least 1, got 0.5\n"


def test_expect_fails_when_nothing_or_something_else_is_raised(capsys):
    nothing = pytest.raises(AssertionError, match="expected ValueError or KeyError")
    with nothing, notebook.expect(ValueError, KeyError):
        pass
    with pytest.raises(ZeroDivisionError), notebook.expect(ValueError):
        1 / 0  # noqa: B018


def test_record_writes_plain_json(tmp_path):
    notebook.record(
        {"map": np.float32(0.5), "per_tiou": torch.tensor([0.25, 0.5]), "n": np.int64(3),
         "ok": True, "note": None, "deep": {"a": (1, 2)}, 5: "key"},
        tmp_path / "new",
    )  # fmt: skip
    assert json.loads((tmp_path / "new" / "metrics.json").read_text()) == {
        "map": 0.5, "per_tiou": [0.25, 0.5], "n": 3, "ok": True, "note": None,
        "deep": {"a": [1, 2]}, "5": "key",
    }  # fmt: skip


def test_record_names_what_json_cannot_hold_and_keeps_the_old_file(tmp_path):
    notebook.record({"loss": 1.0}, tmp_path)
    with pytest.raises(ValueError, match=r"metrics\['curve'\]\[1\] is nan"):
        notebook.record({"curve": [1.0, float("nan")]}, tmp_path)
    with pytest.raises(ValueError, match=r"metrics\['x'\] is a set"):
        notebook.record({"x": {1}}, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"loss": 1.0}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_checks_say_correct_or_not_yet(capsys):
    notebook.check("01a", False, "Frame numbers start at 0")
    notebook.check("01a", True, "Frame numbers start at 0")
    notebook.check("02b", False)
    lines = ["01a: not yet. Frame numbers start at 0.", "01a: correct", "02b: not yet."]
    assert capsys.readouterr().out.splitlines() == lines


def test_answers_are_compared_with_a_tolerance_and_never_raise():
    assert notebook.is_close(0.33333, 1 / 3)
    assert not notebook.is_close(0.34, 1 / 3)
    for wrong in (..., None, "a third", [1 / 3], float("nan"), print, {"a": 1}):
        assert not notebook.is_close(wrong, 1 / 3)
