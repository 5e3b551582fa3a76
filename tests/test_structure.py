"""The architecture as a test: imports point down the list, heavy ones are lazy, versions agree."""

import ast
import subprocess
import sys
import tomllib
import traceback
from dataclasses import replace
from pathlib import Path
from typing import get_args

ROOT = Path(__file__).resolve().parent.parent

# A module may import from its own layer and from those before it, never from a later one.
LAYERS = [
    ["files", "table", "config", "presets", "fidelity", "launch"],
    ["data"],
    ["encoders"],
    ["heads"],
    ["training"],
    ["budget"],
    ["detection"],
    ["evaluation"],
    ["figures"],
    ["weak_study", "experiment", "study", "report", "viewer", "rivals"],
    ["fitting_report", "fitting"],
    ["notebook"],
    ["course"],
    ["commands"],
    ["cli", "__main__"],
]
RANK = {name: i for i, layer in enumerate(LAYERS) for name in layer}

# The code in one afternoon (README), in reading order, and what a first reading may skip.
SPINE = [
    *("config", "fidelity", "data.annotations", "data.video", "data.snippets", "data.reading"),
    *("data.features", "encoders.base", "encoders.tsm"),
    *("heads.base", "heads.anchors", "heads.maps", "heads.gtad"),
    *("training.loop", "training.joint", "training.head"),
    *("detection.nms", "detection.proposals"),
    *("evaluation.columns", "evaluation.matching", "evaluation.detection"),
]
PLUMBING = [
    *("files", "data", "data.datasets", "data.isolated", "data.tables", "detection.nms_bmn"),
    "detection.nms_points",
    *("encoders", "encoders.extraction"),
    *("heads", "heads.scaled", "training.augmentation", "training.distributed"),
    *("training.end_to_end", "training.methods", "training.run_folder"),
]
STAGES = ["pretraining", "pretext", "joint", "head", "weak"]  # of lofi.training


def imports(path: Path, lazy: bool = True) -> set[str]:
    """Modules of `lofi` that a module imports, as `data.video`; without `lazy` at its top only."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lofi":
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in inside if file_of(name.removeprefix("lofi."))]
            found |= set(modules or [node.module])
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("lofi.")}
    return {name.removeprefix("lofi.") for name in found} - {"lofi"}


def file_of(module: str) -> Path | None:
    """The file of a module below `lofi`, or None when there is none of that name."""
    path = ROOT / "lofi" / module.replace(".", "/")
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def modules() -> list[str]:
    files = (path.relative_to(ROOT / "lofi") for path in (ROOT / "lofi").rglob("*.py"))
    return sorted(".".join(f.with_suffix("").parts).removesuffix(".__init__") for f in files)


def test_imports_never_point_up_the_data_flow():
    wrong = []
    for module in modules():
        part = module.split(".")[0]
        if part == "__init__":  # the package's front door is lazy
            continue
        assert part in RANK, f"{module}: add it to LAYERS"
        wrong += [
            f"{module} → {other}"
            for other in imports(file_of(module))
            if RANK[other.split(".")[0]] > RANK[part]
        ]
    assert wrong == []


def test_no_module_imports_itself_around_a_corner():
    graph = {m: imports(file_of(m), lazy=False) for m in modules() if m != "__init__"}

    def reach(module: str, seen: frozenset[str]) -> None:
        assert module not in seen, f"circle: {' → '.join([*seen, module])}"
        package = module.split(".")[0]  # a package's own front door may list its modules
        for other in graph.get(module, ()):
            if other != package:
                reach(other, seen | {module})

    for module in graph:
        if "." in module or file_of(module).name != "__init__.py":
            reach(module, frozenset())


def test_a_stage_imports_no_other_stage():
    for stage in STAGES:
        others = {f"training.{other}" for other in STAGES if other != stage}
        if stage == "pretext":  # the self-supervised tasks are pre-training with another question
            others.discard("training.pretraining")
        assert not imports(file_of(f"training.{stage}")) & others, stage


def test_detection_budget_and_evaluation_stand_on_no_stage():
    for part in ("detection", "budget", "evaluation"):
        for module in (m for m in modules() if m.split(".")[0] == part):
            assert not imports(file_of(module)) & {f"training.{stage}" for stage in STAGES}, module


def test_the_spine_is_closed_and_readable_in_an_afternoon():
    allowed = set(SPINE) | set(PLUMBING)
    for module in SPINE:
        outside = imports(file_of(module), lazy=False) - allowed
        outside = {other for other in outside if other != module.split(".")[0]}  # its package
        assert not outside, f"{module} imports {outside}, which are not in the spine"
    lines = sum(file_of(module).read_text().count("\n") for module in SPINE)
    assert lines <= 5650, f"the spine has {lines} lines"
    readme = (ROOT / "README.md").read_text()
    names = [f"{m.split('.')[-1]}.py" for m in SPINE]
    missing = [name for name in names if name not in readme]
    assert not missing, f"README: the code in one afternoon lacks {missing}"


def test_from_the_command_to_the_backward_pass_are_few_doors(tmp_path, monkeypatch):
    """Traced: `lofi train lofi` passes at most 8 functions of `lofi` in 5 files."""
    import torch

    from lofi import cli
    from lofi.data.toyworld import TINY, write_world

    write_world(tmp_path / "world", replace(TINY, source_clips=(8, 4), videos=(4, 1)), seed=0)
    paths = []
    original = torch.Tensor.backward

    def traced(tensor, *args, **kwargs):
        frames = [frame.f_code for frame, _ in traceback.walk_stack(None)]
        inside = [c for c in frames if Path(c.co_filename).is_relative_to(ROOT / "lofi")]
        paths.append([(Path(c.co_filename).name, c.co_name) for c in inside])
        return original(tensor, *args, **kwargs)

    options = ["--data.world", str(tmp_path / "world"), "--preset", "tiny", "--out"]
    options += [str(tmp_path), "--acp.epochs=1", "--acp.batch=8", "--lofi.training.epochs=1"]
    for stage in ("acp", "lofi"):
        if stage == "lofi":
            monkeypatch.setattr(torch.Tensor, "backward", traced)
        monkeypatch.setattr(sys, "argv", ["lofi", "train", stage, *options])
        cli.main()
    assert paths, "nothing was trained"
    for path in paths:
        assert len(path) <= 8 and len({file for file, _ in path}) <= 5, path


def test_stage_names_on_the_command_line_are_those_of_the_table():
    from lofi.commands import StageName
    from lofi.experiment import STAGES as table

    assert list(get_args(StageName)) == list(table)


def test_core_parts_import_without_anything_but_torch_and_numpy():
    code = (
        "import sys\n"
        "import lofi.encoders, lofi.heads, lofi.training.loop, lofi.fidelity, lofi.detection\n"
        "import lofi.training.joint, lofi.training.head, lofi.training.pretraining\n"
        "heavy = ['matplotlib', 'av', 'decord', 'tyro', 'safetensors', 'papermill', 'h5py']\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert out.stdout.strip() == "[]", out.stdout + out.stderr


def test_lock_and_conda_environment_and_project_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        name, _, version = line.partition("==")
        assert version, f"requirements.lock: {line!r} is not pinned exactly"
        lock[name.lower().replace("_", "-")] = version
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    for requirement in wanted:
        name = requirement.split(">=")[0].lower()
        assert name in lock, f"{name} is missing in requirements.lock"
    assert lock["torch"] == "2.13.0"
    conda = (ROOT / "environment.yml").read_text()
    assert "-r requirements.lock" in conda and "-e .[dev]" in conda
    assert "==" not in conda, "versions live in requirements.lock only"
    binder = (ROOT / ".binder" / "environment.yml").read_text()
    assert "-r ../requirements.lock" in binder and "==" not in binder
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {project['version']}\n" in cited
    assert f"version = {{{project['version']}}}" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert project["license"] == "MIT" and f"license: {project['license']}" in cited


def test_a_command_does_not_wait_for_what_it_does_not_need():
    light = "lofi.commands, lofi.data.check, lofi.data.importers, lofi.evaluation, lofi.detection"
    for modules, heavy in ((light, "torch"), ("lofi.experiment", "matplotlib")):
        code = f"import sys, {modules}; sys.exit({heavy!r} in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0, modules
