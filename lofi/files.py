"""Files that are either whole or absent: every output is written beside its place and renamed.

A run can be killed at any moment and a disk can fill up at any byte; readers of the project's
outputs therefore never see half a file, and what was there before stays until the new one is whole.
"""

import csv
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NO_SPACE = 2**16  # bytes; a disk with less is full
# Controls of terminals (but line ends and tabs), of the direction of writing, and half characters.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
FORMULA = re.compile("'*[=+\\-@＝＋－＠\t\r\n]")  # how cells begin that spreadsheets would run


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it is renamed to `path`.

    The folder is created. When the block raises, the temporary file is removed and whatever
    stood at `path` before is untouched. The data reach the disk (fsync) before the rename.
    The temporary name ends with the real one, so that writers which look at the suffix work.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:
        # Writers hide a full disk behind errors of their own.
        if shutil.disk_usage(path.parent).free < NO_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, floats in full precision."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | Path, what: str) -> Any:
    """Read JSON; `what` names the expected content in errors (FileNotFoundError, ValueError)."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (expected {what}); check the path")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        found = "the file is empty" if not text.strip() else f"not JSON at line {error.lineno}"
        raise ValueError(f"{path}: {found} (expected {what}); restore or regenerate it") from None


def printable(text: str) -> str:
    """Text for a terminal or a picture: what could steer it is shown as an escape (`\\x1b`)."""
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def to_cell(value: Any) -> Any:
    """A value for a CSV: text that a spreadsheet would take for a formula gets a `'` in front."""
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value


def from_cell(text: str) -> str:
    """What `to_cell` was given."""
    return text[1:] if text[:1] == "'" and FORMULA.match(text) else text


def write_csv(path: str | Path, rows: Iterable[Sequence]) -> None:
    """Write a table atomically, the row of names first."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(map(to_cell, row) for row in rows)


def append_csv(path: str | Path, row: Sequence) -> None:
    """Add one row to a table that `write_csv` began."""
    with open(path, "a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(map(to_cell, row))


def read_csv(path: str | Path, names: Sequence[str], problem: str) -> list[list[str]]:
    """Rows of a table below its names; none where there is no file, without a half-written line.

    A file with other names is a ValueError that ends with `problem`.
    """
    if not Path(path).exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if not rows or rows[0] != list(names):
        raise ValueError(f"{path}: {problem}")
    return [list(map(from_cell, row)) for row in rows[1:] if len(row) == len(names)]


def save_tensors(path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically; the same content always gives the same bytes.

    (The library writes metadata in random order, so that equal runs had unequal files.)
    """
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=dict(metadata))
        with open(temporary, "r+b") as file:  # 8 bytes of length, then JSON
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            encoded = text.encode().ljust(length)
            if len(encoded) == length:
                file.seek(8)
                file.write(encoded)


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
