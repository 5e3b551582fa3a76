"""What every notebook needs: set-up, pictures to play with, expected errors, records, exercises.

The same cell has to work in four places: a person's JupyterLab, papermill, nbval and nbconvert.
Text for the reader goes to stdout (nbval compares it); versions, timings and logs go to stderr.
"""

import logging
import math
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch

from lofi import config as configs
from lofi.config import Config
from lofi.detection.classes import is_class_file
from lofi.files import write_json
from lofi.training.distributed import one_thread_for_small_work

PER_ROW = 2  # small multiples beside each other: a phone shows no more


class Setup(NamedTuple):
    """What `setup` prepared."""

    out_dir: Path  # exists
    generator: torch.Generator  # on the CPU, seeded
    config: Config
    how: dict[str, Any]  # for every stage call: resume, device, processes
    toy: bool  # the data are the rendered world, whose hidden truth is known
    known: bool  # a toy preset, but for the notebook's own changes: what must be learned is known


def setup(
    seed: int = 0, out_dir: str | Path = "", preset: str = "tiny", config: str | Path | Config = "",
    device: str = "cpu", processes: int = 1, resume: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> Setup:  # fmt: skip
    """Make a notebook repeatable, say on stderr what it runs on, and read its configuration.

    Seeds Python, NumPy and torch, asks for deterministic algorithms (a warning where an accelerator
    has none), prints three decimals, and sends the kit's log to stderr. Relative paths, also those
    inside a configuration, count from the repository's root wherever the notebook was started.

    Args:
        seed: 0 keeps the configuration's own.
        out_dir: run folder; "" is `runs/<preset>`, or <preset> in the folder that LOFI_RUNS names.
            A run that is named is read or continued, never trained anew.
        preset: "tiny", the notebooks' default, gives way to the preset that `config` names.
        config: JSON file over its preset, or a `Config` as it is (when a cell runs again); "" takes
            the config.json of a run that `out_dir` names.
        device, processes, resume: of every stage.
        changes: settings by dotted name, see `lofi.config.override`.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    # As use_deterministic_algorithms(True, warn_only=True), which imports a compiler (seconds).
    torch.set_deterministic_debug_mode("warn")
    # It would also fill all new memory, to show who reads what was never written: a twentieth of a
    # step of the toy encoder.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.set_printoptions(precision=3, sci_mode=False)
    np.set_printoptions(precision=3, suppress=True)
    plt.rcParams["figure.dpi"] = 100  # notebooks used to default to 72, too small to read
    if shell := _shell():
        shell.run_line_magic("precision", "3")
    logger = logging.getLogger("lofi")
    handler = logging.StreamHandler(sys.stderr)
    handler.set_name("lofi.notebook")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    others = [h for h in logger.handlers if h.get_name() != handler.get_name()]
    logger.handlers[:] = [*others, handler]  # a second call must not print every line twice
    logger.setLevel(logging.INFO)
    root = repository_root()
    if str(root / "notebooks") not in sys.path:  # for lectures.py, wherever this was started
        sys.path.append(str(root / "notebooks"))
    folder = root / (out_dir or Path(os.environ.get("LOFI_RUNS", "runs")) / preset)
    folder.mkdir(parents=True, exist_ok=True)
    of_run = folder / "config.json"
    path = config or (of_run if out_dir and of_run.is_file() else "")
    if not isinstance(chosen := path, Config):
        preset = "" if path and preset == "tiny" else preset
        chosen = configs.layered(preset, root / path if path else "")
    own = {name: str(root / value) for name, value in _paths(chosen).items() if value}
    seeds = {"seed": seed} if seed else {}
    chosen = configs.override(chosen, own | seeds)
    toy = not (chosen.data.annotations or chosen.data.features.folder)
    how = {"resume": resume or bool(out_dir), "device": device, "processes": processes}
    known = toy and chosen == replace(configs.preset(chosen.preset), seed=chosen.seed)
    chosen = configs.override(chosen, changes or {})
    one_thread_for_small_work(chosen.preset)
    card = "mps" if torch.backends.mps.is_available() else "cpu"
    card = torch.cuda.get_device_name(0) if torch.cuda.is_available() else card
    versions = f"Python {sys.version.split()[0]}, torch {torch.__version__}, numpy {np.__version__}"
    print(f"{versions}, {card}, {torch.get_num_threads()} threads", file=sys.stderr)
    return Setup(folder, torch.Generator().manual_seed(chosen.seed), chosen, how, toy, known)


def _paths(config: Config) -> dict[str, str]:
    """The settings that name files and folders."""
    data, classes = config.data, config.detect.shared_classes
    found = {f"data.{key}": getattr(data, key) for key in ("world", "annotations", "videos")}
    found["data.source"] = "" if data.source.startswith("segments") else data.source
    found["detect.shared_classes"] = classes if is_class_file(classes) else ""
    found["weights"] = "" if config.weights in ("pretrained", "none") else config.weights
    found["weak.clip"] = config.weak.clip
    for name, features in (("data.features", data.features), ("weak.frames", config.weak.frames)):
        found[f"{name}.folder"] = features.folder
    return found


def repository_root() -> Path:
    """The folder of the project: above this package, else above the working directory."""
    here, current = Path(__file__).resolve(), Path.cwd().resolve()
    for folder in (here.parent.parent, current, *current.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir():
            return folder
    return current


def _shell() -> Any:
    """The running IPython shell, or None in plain Python (without importing IPython)."""
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()


def is_live() -> bool:
    """True where a person can move a slider: Jupyter, VS Code or Colab, not batch runs.

    A papermill that a notebook started inherits its environment: there LOFI_STATIC=1 says no.
    """
    shell = _shell()
    if os.environ.get("LOFI_STATIC", "") not in ("", "0") or not hasattr(shell, "kernel"):
        return False
    in_vscode = "__vsc_ipynb_file__" in getattr(shell, "user_ns", {})
    return "JPY_SESSION_NAME" in os.environ or in_vscode or "google.colab" in sys.modules


def explore(
    draw: Callable[..., Any], *, size: tuple[float, float] = (3.0, 2.5), **values: Sequence
) -> None:
    """A picture for every choice: sliders for a person, small multiples elsewhere.

    Args:
        draw: called as `draw(**chosen, ax=ax)`; a slider does so at each move.
        size: width and height in inches of one small picture.
        values: name → choices, numbers or texts. Small multiples vary the first name and keep the
            others at their first choice, where sliders start; numbers ascend on sliders.
    """
    if not values or not all(len(options) for options in values.values()):
        raise ValueError("explore needs at least one name with choices, e.g. pixels=(224, 112)")
    if is_live():
        return _explore_live(draw, size, values)
    (name, choices), *others = values.items()
    fixed = {key: options[0] for key, options in others}
    columns = min(PER_ROW, len(choices))
    rows = math.ceil(len(choices) / columns)
    whole = (size[0] * columns, size[1] * rows)
    figure, axes = plt.subplots(rows, columns, figsize=whole, layout="constrained", squeeze=False)
    for ax, choice in zip(axes.flat, choices):
        draw(**{name: choice}, **fixed, ax=ax)
        pad, legend = None, ax.get_legend()
        if legend and legend.get_bbox_to_anchor().y0 >= 0.99 * ax.bbox.height + ax.bbox.y0:
            # The legend stands above: lift the title, in points, over it and the space below it.
            pad = 11 + legend.get_window_extent().height * 72 / figure.dpi
        ax.set_title(f"{name} = {choice}", pad=pad)
    for ax in axes.flat[len(choices) :]:
        ax.set_axis_off()
    if fixed:
        figure.suptitle(", ".join(f"{key} = {value}" for key, value in fixed.items()))
    plt.show()


def _explore_live(
    draw: Callable[..., Any], size: tuple[float, float], values: Mapping[str, Sequence]
) -> None:
    import ipywidgets as widgets
    from IPython.display import display

    controls = {}
    for key, options in values.items():
        numbers = all(isinstance(option, int | float) for option in options)
        # With its text: a pair such as (4.5, 5.5) would be taken for a text and a value.
        choices = [(str(o), o) for o in (sorted(options) if numbers else options)]
        # Wide, so that long choices, such as names of videos, stay readable.
        look = {"value": options[0], "description": key, "layout": {"width": "480px"}}
        controls[key] = widgets.SelectionSlider(options=choices, **look)

    def redraw(**chosen: Any) -> None:
        larger = (1.4 * size[0], 1.4 * size[1])  # one picture may be larger than one of many
        draw(**chosen, ax=plt.subplots(figsize=larger, layout="constrained")[1])
        plt.show()

    display(widgets.VBox([*controls.values(), widgets.interactive_output(redraw, controls)]))


@contextmanager
def expect(*exceptions: type[BaseException]) -> Iterator[None]:
    """Run a block that must fail, and print the message that a reader will meet one day."""
    try:
        yield
    except exceptions as error:
        inside = str(error).replace(f"{repository_root()}/", "")  # no path of anybody's machine
        print(f"{type(error).__name__}: {inside}")
    else:
        names = " or ".join(kind.__name__ for kind in exceptions)
        raise AssertionError(f"expected {names}, but nothing was raised")


def record(metrics: Mapping[str, Any], out_dir: str | Path) -> None:
    """Write numbers, texts, lists and mappings of them to `metrics.json`, whole or not at all.

    NumPy and torch values become plain ones; what JSON cannot hold (also NaN and infinity) is
    refused and named by its place.
    """
    write_json(Path(out_dir) / "metrics.json", _plain(dict(metrics), "metrics"))


def check(name: str, ok: bool, hint: str = "") -> None:
    """Print whether the answer to the exercise `name` ("01a") is right, else a hint."""
    print(f"{name}: correct" if ok else f"{name}: not yet. {hint}".rstrip(". ") + ".")


def is_close(answer: Any, expected: Any, *, relative: float = 1e-3, absolute: float = 1e-6) -> bool:
    """Whether shape and values are as expected; a stub's `...`, None, text and NaN are not."""
    try:
        given, wanted = (np.asarray(_plain(x, ""), dtype=float) for x in (answer, expected))
    except (TypeError, ValueError):
        return False
    return given.shape == wanted.shape and bool(np.allclose(given, wanted, relative, absolute))


def _plain(value: Any, where: str) -> Any:
    """`value` as nested containers of plain Python values."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    if hasattr(value, "tolist"):  # NumPy arrays and scalars, torch tensors
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, f"{where}[{key!r}]") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{where}[{i}]") for i, inner in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        advice = "record a finite number or None"
        raise ValueError(f"{where} is {value}, which JSON cannot hold; {advice}")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    kind = type(value).__name__
    raise ValueError(f"{where} is a {kind}; record numbers, texts, lists or mappings")
