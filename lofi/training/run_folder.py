"""The folder of one stage's run: settings, log, metrics, checkpoints and the final result.

It can be killed at any moment: every file is written to a temporary name and renamed. Of several
processes rank 0 alone writes, except for the list of items that could not be read.
"""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from lofi.config import differences
from lofi.files import atomic_path, read_json, write_json, write_text
from lofi.training.distributed import barrier, first_alone, is_first, restarted

log = logging.getLogger(__name__)
INPUTS = ("start", "encoder_sha256", "features", "videos", "clips")  # hashes of what went in


class RunFolder:
    """A stage's folder: config.json, log.txt, metrics.jsonl, checkpoints/, result.json at the end.

    Args:
        settings: everything the stage's result depends on, JSON types only. Its hash is the run's
            identity; a folder of another identity is refused: ValueError with what differs.
        resume: False forgets what an earlier run with the same settings left, also when the stage
            before it has been trained anew since. A process that torchrun started again after a
            failure resumes in any case.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any], resume: bool = True):
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
        resume = resume or restarted()
        with first_alone():
            if is_first():
                self._refuse_other_settings(() if resume else INPUTS)
                if not resume:
                    shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
                    for name in ("config.json", "result.json", "metrics.jsonl", "skipped.jsonl"):
                        (self.folder / name).unlink(missing_ok=True)
                self.folder.mkdir(parents=True, exist_ok=True)
                if not (self.folder / "config.json").exists():
                    write_json(self.folder / "config.json", self.settings)
            self._refuse_other_settings()
            rows = self.skipped()
            path = self.folder / "skipped.jsonl"
            if is_first() and path.exists():  # a kill may have cut its last line
                write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
            self._skipped = {row["item"] for row in rows}

    @property
    def hash(self) -> str:
        """First 12 hex digits of the settings' SHA-256."""
        text = json.dumps(self.settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _refuse_other_settings(self, free: Sequence[str] = ()) -> None:
        path = self.folder / "config.json"
        if not path.exists():
            return
        lines = differences(read_json(path, "the settings of an earlier run"), self.settings)
        lines = [line for line in lines if line.split(":")[0] not in free]
        if lines:
            shown = "; ".join(lines[:4]) + (f" (+{len(lines) - 4} more)" if lines[4:] else "")
            cure = "Use another --out folder, or remove this one"
            if all(line.split(":")[0] in INPUTS for line in lines):
                cure = "What it was made from has changed since: --no-resume makes it anew"
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
        finally:
            package.removeHandler(handler)
            package.setLevel(level)
            handler.close()

    def result(self) -> dict[str, Any] | None:
        """What a finished run returned, or None while it is not finished."""
        path = self.folder / "result.json"
        return read_json(path, "the result of a finished run") if path.exists() else None

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Declare the run finished; its checkpoints are no longer needed."""
        if is_first():
            write_json(self.folder / "result.json", result)
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        barrier()
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

    def forget_skipped(self) -> None:
        """Empty the list: items that could not be read are tried again, they may be mended."""
        self._skipped = set()
        if is_first():
            (self.folder / "skipped.jsonl").unlink(missing_ok=True)

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

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint on the CPU, or None."""
        path = self.folder / "checkpoints" / "last.pt"
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            found = f"{path}: cannot be read as a checkpoint ({type(error).__name__})"
            raise ValueError(f"{found}; remove it to start this stage anew") from error


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
