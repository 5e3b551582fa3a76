"""Files that are either whole or absent: every output is written beside its place and renamed.

A run can be killed at any moment and a disk can fill up at any byte; readers of the project's
outputs therefore never see half a file, and what was there before stays until the new one is whole.
"""

import codecs
import csv
import errno
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NO_SPACE = 2**16  # bytes; a disk with less is full
NO_TEXT = {b"PK\3\4": "a spreadsheet or zip archive", b"\x1f\x8b": "a gzip archive"}  # by beginning


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
    return parse_json(path.read_bytes(), path, what)


def parse_json(data: bytes, path: str | Path, what: str) -> Any:
    """JSON in which no key stands twice; orjson is three times as fast, where it can be sure.

    It keeps the last of equal keys. So the colons of the file are counted: as many as there are
    pairs means that no key is lost, and otherwise the strings that hold some are counted too.
    """
    import orjson

    try:
        content, colons = orjson.loads(data.removeprefix(codecs.BOM_UTF8)), data.count(b":")
        if colons == _pairs(content) or (
            b"\\u" not in data and colons == orjson.dumps(content).count(b":")
        ):
            return content
    except (TypeError, ValueError):
        pass  # the slow reader knows NaN, and says what is wrong
    text = decode_text(data, path)

    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs = dict(items)
        if len(pairs) < len(items):
            key = Counter(key for key, _ in items).most_common(1)[0][0]
            raise ValueError(f"{key!r} appears twice; keep one entry")
        return pairs

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        found = "the file is empty" if not text.strip() else f"not JSON at line {error.lineno}"
        raise ValueError(f"{path}: {found} (expected {what}); restore or regenerate it") from None
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply (expected {what}); restore it") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _pairs(value: Any) -> int:
    """Keys in JSON, at least: dicts in a list are taken to hold no other dicts.

    TypeError for a list that holds dicts and something else."""
    if isinstance(value, dict):
        return len(value) + sum(map(_pairs, value.values()))
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return sum(map(dict.__len__, value))
    return 0


def decode_text(data: bytes, path: str | Path) -> str:
    """UTF-8 with or without byte order mark; a ValueError says what it looks like instead."""
    zeros = [byte == 0 for byte in data[:4]]
    if kind := next((kind for mark, kind in NO_TEXT.items() if data.startswith(mark)), ""):
        raise ValueError(f"{path}: looks like {kind}, expected text; unpack it or export as CSV")
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if wide or zeros in ([False, True] * 2, [True, False] * 2):
        encoding, place = "UTF-16", ""
    elif b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise ValueError(f"{path}: a zero byte in line {line}, expected text; restore the file")
    else:
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            encoding, place = "Windows-1252", f" at byte {error.start} (line {line})"
    cure = f"save it as UTF-8, or run: iconv -f {encoding} -t UTF-8 {path} > NEW"
    raise ValueError(f"{path}: not UTF-8{place}, looks like {encoding}; {cure}")


def write_csv(path: str | Path, rows: Iterable[Sequence]) -> None:
    """Write a table atomically, the row of names first."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def append_csv(path: str | Path, row: Sequence) -> None:
    """Add one row to a table that `write_csv` began."""
    with open(path, "a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(row)


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
    return [row for row in rows[1:] if len(row) == len(names)]


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
