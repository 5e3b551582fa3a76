"""Files that are either whole or absent: every output is written beside its place and renamed.

A run can be killed at any moment and a disk can fill up at any byte; readers of the project's
outputs therefore never see half a file, and what was there before stays until the new one is whole.
What stages hand to each other carries a checksum, so that a changed byte is an error, not a number.
"""

import codecs
import csv
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

NO_SPACE = 2**16  # bytes; a disk with less is full
NO_TEXT = {b"PK\3\4": "a spreadsheet or zip archive", b"\x1f\x8b": "a gzip archive"}  # by beginning
DAY_S = 86400.0
HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]  # short: names have limits
CHECKSUM = "checksum"  # of a whole safetensors file or JSON object, kept inside of it
ZEROS = b"0" * 64  # stand in its place while it is computed
# Controls of terminals (but line ends and tabs), of the direction of writing, and half characters.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# How cells begin that spreadsheets would run; and cells of several lines, marked as meant.
FORMULA = re.compile("'*[=+\\-@＝＋－＠\t]|(?s:.*)[\r\n]")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it is renamed to `path`.

    The folder is created. When the block raises, the temporary file is removed and whatever
    stood at `path` before is untouched. The data reach the disk (fsync) before the rename.
    The temporary name ends with the real one, so that writers which look at the suffix work.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    temporary = path.with_name(f".tmp-{os.getpid()}@{HOST}@{path.name}")
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


@functools.cache  # once a process: listing a folder of many features takes time
def _remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of killed processes, of other hosts' after a day."""
    for path in folder.glob(".tmp-*@*@*"):
        pid, host, _ = path.name.removeprefix(".tmp-").split("@", 2)
        with suppress(OSError, ValueError):
            age_s = time.time() - path.stat().st_mtime
            if not (alive(int(pid)) if host == HOST else age_s < DAY_S):
                path.unlink()


def alive(pid: int) -> bool:
    """Whether a process of this host runs; one that ended and is not waited for does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to somebody else, or there is no /proc
        return True


def lock(path: str | Path) -> Callable[[], None]:
    """Take a lock file for this process and return what gives it back.

    The file names host and process. That of a process of this host which is gone, of this very
    process, or of an earlier start of the same torchrun job on several hosts is taken over.
    ValueError: another process holds it; says which one.
    """
    path, hosts = Path(path), os.environ.get("GROUP_WORLD_SIZE", "1")
    job = os.environ.get("TORCHELASTIC_RUN_ID", "") if hosts != "1" else ""
    own = {"host": socket.gethostname(), "pid": os.getpid(), "job": job}
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            with open(path, "x", encoding="utf-8") as file:
                json.dump(own, file)
            break
        except FileExistsError:
            pass
        try:
            holder = json.loads(path.read_text(encoding="utf-8"))
            host, pid, theirs = holder["host"], int(holder["pid"]), holder["job"]
        except FileNotFoundError:  # given back this moment
            continue
        except (ValueError, TypeError, KeyError):
            host, pid, theirs = "an unknown host", 0, ""
        here = host == own["host"]
        if (pid != own["pid"] and alive(pid)) if here else not job or theirs != job:
            who = f"process {pid} on {host} is at work in this folder"
            cure = f"wait for it, or use another --out (if it is gone for sure, remove {path})"
            raise ValueError(f"{path.parent}: {who}; {cure}")
        path.unlink(missing_ok=True)

    def release() -> None:
        if os.getpid() == own["pid"]:  # not in a forked child
            path.unlink(missing_ok=True)

    return release


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, floats in full precision."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | Path, what: str) -> Any:
    """Read JSON; `what` names the expected content in errors (FileNotFoundError, ValueError)."""
    return parse_json(existing(path, what).read_bytes(), path, what)


def existing(path: str | Path, what: str, folder: bool = False) -> Path:
    """The path of a file, or folder, that is there; a FileNotFoundError says what was expected."""
    path, kind = Path(path), "folder" if folder else "file"
    if not (path.is_dir() if folder else path.is_file()):
        raise FileNotFoundError(f"{path}: no such {kind} (expected {what}); check the path")
    return path


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


def write_record(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with a checksum of its content, which `read_record` wants to see."""
    write_json(path, {**value, CHECKSUM: _digest(value)})


def read_record(path: str | Path, what: str) -> dict[str, Any]:
    """What `write_record` wrote; errors as in `read_json`, ValueError also after any change."""
    value = read_json(path, what)
    if not isinstance(value, dict) or value.pop(CHECKSUM, None) != _digest(value):
        found = "damaged, edited or of another lofi: its checksum does not fit"
        raise ValueError(f"{path}: {found} (expected {what})")
    return value


def _digest(value: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(value))  # as it will be read
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def printable(text: str) -> str:
    """Text for a terminal or a picture: what could steer it is shown as an escape (`\\x1b`)."""
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def to_cell(value: Any) -> Any:
    """A value for a CSV: text that a spreadsheet would run, or of two lines, begins with a `'`."""
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

    (The library writes metadata in random order, so that equal runs had unequal files.) The
    metadata get a checksum of all bytes of the file, its own place read as zeros.
    """
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={**metadata, CHECKSUM: ZEROS.decode()})
        with open(temporary, "r+b") as file:  # 8 bytes of length, then JSON
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            file.seek(8)
            file.write(text.encode().ljust(length))
            place, digest = _file_checksum(file)
            file.seek(place)
            file.write(digest.encode())


def load_tensors(path: str | Path, cure: str = "get it again") -> tuple[dict[str, Any], dict]:
    """Tensors by name and metadata of a safetensors file; files of others need no checksum.

    ValueError, ending with `cure`: damaged, or one of ours (format lofi-…) without a checksum.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file, open(path, "rb") as content:
            metadata = file.metadata() or {}
            place, digest = _file_checksum(content)
            whole = place == 0 or metadata.pop(CHECKSUM, None) == digest
            tensors = {name: file.get_tensor(name) for name in file.keys() if whole}  # noqa: SIM118
    except Exception as error:  # SafetensorError, and what a changed name or type leads to
        raise ValueError(f"{path}: damaged safetensors file ({error}); {cure}") from None
    if not whole:
        raise ValueError(f"{path}: damaged: its content does not have the stored checksum; {cure}")
    kind, version = metadata.get("format", ""), metadata.get("format_version", "1")
    if place == 0 and kind.startswith("lofi-"):
        found = f"{kind} file of version {version} without a checksum"
        raise ValueError(f"{path}: {found}, damaged or made by another lofi; {cure}")
    return tensors, metadata


def _file_checksum(file: BinaryIO) -> tuple[int, str]:
    """Where the checksum of an open safetensors file stands (0: nowhere), and what it has to be."""
    file.seek(0)
    length = file.read(8)
    start = length + file.read(int.from_bytes(length, "little"))
    mark = f'"{CHECKSUM}":"'.encode()
    if mark not in start:  # quotes inside of other values have a backslash in front
        return 0, ""
    place = start.index(mark) + len(mark)
    digest = hashlib.sha256(start[:place] + ZEROS + start[place + len(ZEROS) :])
    return place, hashlib.file_digest(file, lambda: digest).hexdigest()


@functools.cache
def code_hash() -> str:
    """Hex SHA-256 of this package's code, for what another version may do otherwise."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
