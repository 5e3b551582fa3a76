"""The folder of one stage's run: settings, log, metrics, checkpoints and the final result.

It can be killed at any moment: every file is written to a temporary name and renamed. Settings,
result and checkpoint carry checksums. Of several processes rank 0 alone writes, except for the list
of items that could not be read, and holds a lock that keeps other runs out.
"""

import contextlib
import hashlib
import json
import logging
import shutil
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from lofi.config import differences
from lofi.files import atomic_path, lock, read_record, write_record, write_text
from lofi.training.distributed import barrier, gather, is_first, restarted

log = logging.getLogger(__name__)
INPUTS = ("start", "encoder_sha256", "features", "videos", "clips")  # hashes of what went in
ANEW = "lofi train … --no-resume makes this stage anew"


class RunFolder:
    """A stage's folder: config.json, log.txt, metrics.jsonl, checkpoints/, result.json at the end.

    Args:
        settings: everything the stage's result depends on, JSON types only. Its hash is the run's
            identity; a folder of another identity is refused: ValueError with what differs. So is
            one whose config.json is gone or was changed. A start that left no checkpoint and no
            result binds nobody.
        resume: False forgets what an earlier run with the same settings left, also when the stage
            before it has been trained anew since. A process that torchrun started again after a
            failure resumes in any case.
        reopen: complete a finished run; items that could not be read are tried again.

    Unless it is finished, the folder is locked until `finish`, an error or the end of the process;
    ValueError: another process works in it.
    """

    def __init__(
        self, folder: str | Path, settings: dict[str, Any], resume: bool = True,
        reopen: bool = False,
    ):  # fmt: skip
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
        self._release = lambda: None
        problem = None
        if is_first():
            try:
                self._open(resume or restarted(), reopen)
            except (ValueError, OSError) as error:
                self._release()
                problem = error
        if problem := gather(problem)[0]:  # every process ends with the same words
            raise problem
        self._refuse(self._differing())
        rows, path = self.skipped(), self.folder / "skipped.jsonl"
        if is_first() and path.exists():  # a kill may have cut its last line
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._skipped = {row["item"] for row in rows}

    def _open(self, resume: bool, reopen: bool) -> None:
        """Rank 0: lock the folder, refuse what belongs to another run, clear what is forgotten."""
        config, result = self.folder / "config.json", self.folder / "result.json"
        locked = self.folder / "lock.json"
        if reopen or not resume or self.result() is None:
            self._release = weakref.finalize(self, lock(locked))
        elif locked.exists():  # it was killed just after its result
            with contextlib.suppress(ValueError, OSError):
                lock(locked)()
        logs = [self.folder / name for name in ("metrics.jsonl", "skipped.jsonl")]
        made = [result, self.folder / "checkpoints" / "last.pt"]
        made = [path for path in made if path.exists()] + [*self.folder.glob("[!.]*.safetensors")]
        if config.exists():
            differing: list[str] = []
            with contextlib.suppress(*() if resume else (ValueError,)):  # damaged: nobody knows
                differing = self._differing()
            if made:
                self._refuse(differing, () if resume else INPUTS)
        elif resume and (left := [path.name for path in (*made, *logs) if path.exists()]):
            found = f"holds {left[0]} of a run, but not its config.json"
            raise ValueError(f"{self.folder}: {found}; put it back, or {ANEW}")
        if not (resume and made):
            for path in (*made, *logs):
                path.unlink(missing_ok=True)
            shutil.rmtree(self.folder / "kept", ignore_errors=True)
            write_record(config, self.settings)
        elif reopen:
            for path in (result, logs[1]):
                path.unlink(missing_ok=True)

    @property
    def hash(self) -> str:
        """First 12 hex digits of the settings' SHA-256."""
        text = json.dumps(self.settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _differing(self) -> list[str]:
        try:
            found = read_record(self.folder / "config.json", "the settings of an earlier run")
        except ValueError as error:
            raise ValueError(f"{error}; put it back, or {ANEW}") from None
        return differences(found, self.settings)

    def _refuse(self, lines: Sequence[str], free: Sequence[str] = ()) -> None:
        lines = [line for line in lines if line.split(":")[0] not in free]
        if lines:
            shown = "; ".join(lines[:4]) + (f" (+{len(lines) - 4} more)" if lines[4:] else "")
            cure = "Use another --out folder, or remove this one"
            if all(line.split(":")[0] in INPUTS for line in lines):
                cure = f"What it was made from has changed since: {ANEW}"
            raise ValueError(f"{self.folder}: holds a run with other settings: {shown}. {cure}")

    @contextlib.contextmanager
    def logging(self) -> Iterator[None]:
        """While the block runs, what the package logs is also kept in log.txt (of rank 0)."""
        if not is_first():
            yield
            return
        handler = logging.FileHandler(self.folder / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        package = logging.getLogger("lofi")
        level = package.level
        package.addHandler(handler)
        package.setLevel(logging.INFO)
        try:
            yield
        except BaseException:
            self._release()  # a notebook's process lives on
            raise
        finally:
            package.removeHandler(handler)
            package.setLevel(level)
            handler.close()

    def result(self) -> dict[str, Any] | None:
        """What a finished run returned; None while it is not finished or its weights are gone."""
        path = self.folder / "result.json"
        if not path.exists():
            return None
        try:
            result = read_record(path, "the result of a finished run")
        except ValueError as error:
            raise ValueError(f"{error}; {ANEW}") from None
        weights = [result[key] for key in ("encoder", "head") if key in result]
        return result if all((self.folder / name).exists() for name in weights) else None

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Declare the run finished; its checkpoints are no longer needed."""
        if is_first():
            write_record(self.folder / "result.json", result)
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        barrier()
        self._release()
        return result

    def skipped(self) -> list[dict[str, str]]:
        """Items that could not be read and why, as every process wrote them down."""
        lines = _whole_lines(self.folder / "skipped.jsonl", "item", str)
        last = {row["item"]: row for row in lines}
        return [last[item] for item in sorted(last) if last[item].get("reason") is not None]

    def skip(self, item: str, reason: Exception) -> None:
        """Write down, once, an item that cannot be read; one bad video never ends a long job."""
        if item in self._skipped:
            return
        self._skipped.add(item)
        level = logging.WARNING if len(self._skipped) <= 5 else logging.DEBUG
        log.log(level, "skipped %s: %s", item, reason)
        self._note(item, str(reason))

    def readable(self, item: str) -> None:
        """Take an item off the list, if it is there: it can be read after all, it was mended."""
        if item in self._skipped:
            self._skipped.discard(item)
            self._note(item, None)

    def _note(self, item: str, reason: str | None) -> None:
        with open(self.folder / "skipped.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"item": item, "reason": reason}) + "\n")

    def log_metrics(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        if not is_first():
            return
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def keep_metrics_before(self, step: int) -> None:
        """Drop the lines of steps that a resumed run will do again."""
        path = self.folder / "metrics.jsonl"
        if is_first() and path.exists():
            rows = _whole_lines(path, "step", int)
            kept = [json.dumps(row) for row in rows if row["step"] < step]
            write_text(path, "".join(line + "\n" for line in kept))

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint; a kill in between leaves the previous one."""
        if not is_first():
            return
        with atomic_path(self.folder / "checkpoints" / "last.pt") as temporary:
            torch.save(state, temporary)
            with open(temporary, "r+b") as file:  # the checksum goes behind the zip archive
                file.write(hashlib.file_digest(file, "sha256").digest())

    def keep(self, name: str, weights: dict[str, Any]) -> None:
        """Write {module: state dict} to kept/<name>.pt, which outlasts the end of the run."""
        if is_first():
            with atomic_path(self.folder / "kept" / f"{name}.pt") as temporary:
                torch.save(weights, temporary)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint on the CPU, or None."""
        path = self.folder / "checkpoints" / "last.pt"
        if not path.exists():
            return None
        with open(path, "rb") as file:
            digest, size = hashlib.sha256(), path.stat().st_size - hashlib.sha256().digest_size
            for start in range(0, size, 2**20):
                digest.update(file.read(min(2**20, size - start)))
            whole = file.read() == digest.digest()
        try:
            if not whole:
                raise ValueError("its checksum does not fit")
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds
            found = f"{path}: cannot be read as a checkpoint ({error})"
            raise ValueError(f"{found}; remove it, or {ANEW}") from None


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl, [] when there is nothing; damaged ones are left out, with a count."""
    return _whole_lines(Path(folder) / "metrics.jsonl", "step", int)


def _whole_lines(path: Path, key: str, kind: type) -> list[dict[str, Any]]:
    """The lines that are records with a `key`; a kill or a full disk may have damaged others."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError):  # not JSON, not UTF-8
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get(key), kind):
                rows.append(row)
    if len(rows) < len(lines):
        damaged = len(lines) - len(rows)
        log.warning("%s: %d of %d lines are damaged and left out", path, damaged, len(lines))
    return rows
