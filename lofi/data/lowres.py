"""A folder of low-resolution copies of videos, made once, read many times by training.

A video at a short side of 256 pixels decodes several times faster than at 720 and loses nothing
at the sizes used here. Work is done in child processes, so that one bad file stops nothing,
and written down in `cache.csv` as it is done, so that an interrupted run goes on.
"""

import csv
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lofi.data.annotations import EXTENSIONS
from lofi.data.encoding import reencode
from lofi.data.isolated import run_isolated
from lofi.data.video import declared_frames, probe
from lofi.files import atomic_path

MANIFEST = "cache.csv"
COLUMNS = [
    "file", "kind", "detail", "frames", "fps", "width", "height", "bytes", "source", "settings",
]  # fmt: skip
ENDS = 2**16  # bytes at either end of a file that tell it from another of the same size


@dataclass(frozen=True)
class Copy:
    """One line of the manifest; `kind` is "ok" or "failed", `file` relative to the folder."""

    file: str
    kind: str
    detail: str = ""
    frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    bytes: int = 0
    source: str = ""  # `content_id` of the video
    settings: str = ""


@dataclass(frozen=True)
class CacheReport:
    """What `cache_videos` did: all copies that were asked for, and how many were there already."""

    copies: tuple[Copy, ...]
    earlier: int

    @property
    def failed(self) -> tuple[Copy, ...]:
        """Videos without a copy, with the reason in `detail`."""
        return tuple(copy for copy in self.copies if copy.kind != "ok")

    def summary(self, examples: int = 5) -> str:
        """Counts, the size of the folder and the first failures, for the terminal."""
        size = sum(copy.bytes for copy in self.copies) / 2**20
        made = len(self.copies) - len(self.failed) - self.earlier
        lines = [
            f"{made:,} copies made, {self.earlier:,} were there, {len(self.failed):,} failed; "
            f"{size:,.1f} MiB in all"
        ]
        return "\n".join(lines + [f"  {c.file}: {c.detail}" for c in self.failed[:examples]])


def media_files(folder: str | Path) -> list[Path]:
    """Videos of a folder and its direct sub-folders, sorted.

    Raises:
        FileNotFoundError: no such folder. ValueError: no video in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder (expected videos); check the path")
    found = [p for p in (*folder.glob("*"), *folder.glob("*/*")) if p.suffix.lower() in EXTENSIONS]
    if not found:
        raise ValueError(f"{folder}: no videos in it (expected {', '.join(EXTENSIONS)})")
    return sorted(p for p in found if p.is_file() and not p.name.startswith("."))


def cache_videos(
    paths: Iterable[Path],
    video_dir: str | Path,
    out: str | Path,
    *,
    short_side: int = 256,
    fps: float = 0.0,
    crf: int = 20,
    workers: int = 1,
    limit_s: float = 1800.0,
    progress: Callable[[int, int], None] | None = None,
) -> CacheReport:
    """Write low-resolution copies, under the videos' own names with .mp4; see `reencode`.

    A copy that is there, made from the same content with the same settings, is not made again.

    Args:
        paths: videos below `video_dir`; folders are kept, so that class folders stay.
        out: folder of the copies and of `cache.csv`, which lists every video, good or failed.
        short_side, fps, crf: see `reencode`.
        workers: child processes.
        limit_s: seconds that one video may take.
        progress: called with (videos done, videos in all).
    Raises:
        ValueError: a bad setting, `out` inside `video_dir`, or `cache.csv` is something else.
    """
    video_dir, out = Path(os.path.abspath(video_dir)), Path(out)
    if short_side < 2 or fps < 0 or not 0 <= crf <= 51:
        raise ValueError(
            f"short_side {short_side}, fps {fps:g}, crf {crf}: expected >= 2, >= 0, 0-51"
        )
    if video_dir.resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(
            f"{out}: lies in the folder of the videos, which would then hold each video twice; "
            "choose a folder beside it"
        )
    settings = f"short_side={short_side} fps={fps:g} crf={crf}"
    done, todo = {}, {}
    known = _read_manifest(out / MANIFEST)
    for path in paths:
        file = Path(os.path.abspath(path)).relative_to(video_dir).with_suffix(".mp4").as_posix()
        if file in done or file in todo:
            other = f"{path}: another video has the same name but for its ending; rename one"
            done[f"{file} ({path.suffix})"] = Copy(f"{file} ({path.suffix})", "failed", other)
            continue
        if _is_current(known.get(file), path, out / file, settings):
            done[file] = known[file]
        else:
            todo[file] = path
    earlier = sum(copy.kind == "ok" for copy in done.values())
    total = len(done) + len(todo)
    for remains in (*out.glob(".tmp-*"), *out.glob("*/.tmp-*")):  # of a run that was killed
        remains.unlink()
    _write_manifest(out / MANIFEST, {**known, **done}.values())
    calls = [(str(p), str(out / f), short_side, fps, crf) for f, p in todo.items()]
    names = list(todo)
    with open(out / MANIFEST, "a", newline="", encoding="utf-8") as log:
        for i, found in run_isolated(_copy, calls, workers, limit_s):
            file = names[i]
            if isinstance(found, Exception):
                _remove_remains(out / file)
                found = Copy(file, "failed", _reason(found))
            done[file] = Copy(**{**vars(found), "file": file, "settings": settings})
            csv.writer(log).writerow(vars(done[file]).values())
            log.flush()
            if progress is not None:
                progress(len(done), total)
    _write_manifest(out / MANIFEST, {**known, **done}.values())
    return CacheReport(tuple(done.values()), earlier)


def _is_current(copy: Copy | None, path: Path, place: Path, settings: str) -> bool:
    if copy is None or copy.kind != "ok" or copy.settings != settings or not place.is_file():
        return False
    return place.stat().st_size == copy.bytes and content_id(path) == copy.source


def content_id(path: str | Path) -> str:
    """Tells one video's content from another's: hash of its size and both ends; fast."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(ENDS)
        file.seek(max(0, size - ENDS))
        return hashlib.sha256(head + file.read(ENDS) + str(size).encode()).hexdigest()[:16]


def _copy(path: str, out: str, short_side: int, fps: float, crf: int) -> Copy:
    """In the child: one copy."""
    info = reencode(path, out, short_side, fps, crf)
    found, declared = probe(path).num_frames, declared_frames(path)
    damage = f"{found} of {declared} declared frames decode" if found < declared else ""
    return Copy(
        "", "ok", damage, info.num_frames, info.fps, info.width, info.height, os.path.getsize(out),
        content_id(path),
    )  # fmt: skip


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"


def _remove_remains(path: Path) -> None:
    """A child that was killed leaves its unfinished file; an outdated copy must not stay either."""
    for place in path.parent.glob(".tmp-*"):
        if place.name.endswith(f"-{path.name}"):
            place.unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _write_manifest(path: Path, copies: Iterable[Copy]) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(vars(copy).values() for copy in copies)


def _read_manifest(path: Path) -> dict[str, Copy]:
    """Lines of an earlier, perhaps interrupted, run; the last line of a file counts."""
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        if next(reader, None) != COLUMNS:
            raise ValueError(f"{path}: not a list of copies; choose another folder for them")
        return {row[0]: _parsed(row) for row in reader if len(row) == len(COLUMNS)}


def _parsed(row: Sequence[str]) -> Copy:
    kinds = (str, str, str, int, float, int, int, int, str, str)
    return Copy(*(kind(cell) for kind, cell in zip(kinds, row)))
