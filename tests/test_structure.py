"""The architecture as a test: imports point down the list, heavy ones are lazy, versions agree."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# A module may import from its own layer and from those before it, never from a later one.
LAYERS = [
    ["files", "config", "presets", "fidelity"],
    ["data"],
    ["encoders"],
    ["heads"],
    ["training"],
    ["budget"],
    ["detection"],
    ["evaluation"],
    ["figures"],
    ["experiment", "report"],
    ["notebook", "launch"],
    ["course"],
    ["commands"],
    ["cli", "__main__"],
]
RANK = {name: i for i, layer in enumerate(LAYERS) for name in layer}


def imported_parts(path: Path) -> set[str]:
    """Names right below `lofi` that a module imports at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "lofi":
                names = [f"lofi.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("lofi.")}
    return found


def test_imports_never_point_up_the_data_flow():
    wrong = []
    for path in (ROOT / "lofi").rglob("*.py"):
        part = path.relative_to(ROOT / "lofi").parts[0].removesuffix(".py")
        if part == "__init__":  # the package's front door is lazy
            continue
        assert part in RANK, f"{path.name}: add it to LAYERS"
        wrong += [
            f"{path.relative_to(ROOT)} → {other}"
            for other in imported_parts(path)
            if RANK[other] > RANK[part]
        ]
    assert wrong == []


def test_core_parts_import_without_anything_but_torch_and_numpy():
    code = (
        "import sys\n"
        "import lofi.encoders, lofi.heads, lofi.training.loop, lofi.fidelity, lofi.detection\n"
        "import lofi.training.joint, lofi.training.full_fidelity, lofi.training.pretraining\n"
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
