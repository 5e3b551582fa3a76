"""Where optional test data live; tests that need absent files skip and say why."""

from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real annotation files and clips; they are not part of the repository."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("real annotations and clips are not here (they cannot be redistributed)")
    return folder


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Path]:
    """Find a reference file by name: the committed selection first, then the full set."""

    def find(name: str) -> Path:
        for folder in (ROOT / "tests" / "golden", SHARED / "golden"):
            if (folder / name).is_file():
                return folder / name
        pytest.skip(f"reference file {name} is not in tests/golden and the full set is not here")

    return find
