"""Where optional test data live; tests that need absent files skip and say why."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

# A run in the background ignores these, and every process that a test starts and signals with it.
for name in ("SIGINT", "SIGHUP"):
    number = getattr(signal, name, None)  # Windows has no SIGHUP
    if number and signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


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
