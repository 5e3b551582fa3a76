"""Lists of trimmed clips, which classification pre-trains on: folders, CSV, Kinetics."""

import logging
from pathlib import Path

from lofi.data.annotations import EXTENSIONS, TrimmedClip, check_video_id
from lofi.data.tables import nfc, read_text, table_rows

logger = logging.getLogger(__name__)
SPLITS = ("train", "training", "val", "validation", "test")  # folders above the class folders


def read_clip_list(path: str | Path, missing: list[str] | None = None) -> list[TrimmedClip]:
    """Trimmed clips for action classification (ACP).

    From a folder with one sub-folder of videos a class, these perhaps in train/, val/ and test/,
    which are then the subsets; or a CSV with the columns clip and label (optional start_s, end_s,
    subset), clips relative to its folder; or a Kinetics CSV (label, youtube_id, time_start,
    time_end, split) beside such folders; clips without file are left out, and their names are added
    to `missing`.

    FileNotFoundError: no such file or folder; ValueError: nothing in it, or a row is unusable.
    """
    path = Path(path)
    if path.is_dir():
        if not (files := _in_folders(path)):
            raise ValueError(f"{path}: no videos in sub-folders (expected one folder a class)")
        classes = {file.parent.name for file in files}
        if len(classes) > 1 and {name.lower() for name in classes} <= {*SPLITS}:
            found = f"{path}: {', '.join(sorted(classes))} hold videos and no class folders"
            raise ValueError(f"{found}; make them in each, or give a CSV: clip,label,subset")
        return [TrimmedClip(file, file.parent.name, subset=files[file]) for file in files]
    text = read_text(path)
    if "youtube_id" in text.lstrip().split("\n")[0]:
        return _kinetics_clips(path, text, [] if missing is None else missing)
    clips = []
    for row in table_rows(path, text, ("clip", "label")):
        name = Path(row["clip"].replace("\\", "/"))
        if not row["clip"] or not row["label"]:
            raise ValueError(f"{row.where}: clip or label is empty; fill it in or remove the line")
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(f"{row.where}: clip {row['clip']!r} must lie below the list's folder")
        start, end = (row.number(n) if row.get(n) else None for n in ("start_s", "end_s"))
        if None not in (start, end) and start >= end:
            raise ValueError(f"{row.where}: the clip ends before it starts ({start}, {end})")
        subset = row.get("subset") or None
        clips.append(TrimmedClip(_on_disk(path.parent / name), row["label"], start, end, subset))
    if not clips:
        raise ValueError(f"{path}: no clips in it (expected rows clip,label); restore the file")
    return clips


def _in_folders(folder: Path) -> dict[Path, str | None]:
    """Media files of the class folders, in order, with the subset whose folder these lie in."""
    found = {file: None for file in folder.glob("*/[!.]*")}  # no "._…" of a Mac, no temporary file
    for split in SPLITS:
        found |= {file: split for file in folder.glob(f"{split}/*/[!.]*")}
    return {file: found[file] for file in sorted(found) if file.suffix.lower() in EXTENSIONS}


def _on_disk(path: Path) -> Path:
    """The file itself, or the one whose name differs only in how accents are stored."""
    if path.exists() or nfc(str(path)).isascii() or not path.parent.is_dir():
        return path
    return next((p for p in path.parent.iterdir() if nfc(p.name) == nfc(path.name)), path)


def _kinetics_clips(path: Path, text: str, missing: list[str]) -> list[TrimmedClip]:
    """Clips as the crawler of ActivityNet or the tools of TSM name them.

    Crawler: `<label>/<id>_<start, 6 digits>_<end, 6 digits>`. TSM: `<id>_<start>` in a folder with
    underscores for spaces and neither quotes nor parentheses.
    """
    found = reversed([*_in_folders(path.parent)])
    files = {(nfc(file.parent.name), nfc(file.stem)): file for file in found}
    rows = table_rows(path, text, ("label", "youtube_id", "time_start", "time_end"))
    clips = []
    for row in rows:
        video_id, label = (check_video_id(row[n], row.where) for n in ("youtube_id", "label"))
        start, end = (int(row.number(n)) for n in ("time_start", "time_end"))
        plain = label.replace(" ", "_")
        folders = (label, plain, plain.translate(str.maketrans("", "", "\"'()")))
        names = (f"{start:06d}_{end:06d}", f"{start:06d}", f"{start}")
        places = ((nfc(folder), nfc(f"{video_id}_{name}")) for folder in folders for name in names)
        if place := next(filter(files.__contains__, places), None):
            clips.append(TrimmedClip(files[place], label, subset=row.get("split") or None))
        else:
            missing.append(f"{label}/{video_id}_{names[0]}")
    if not clips:
        found = f"none of {len(rows)} clips is below {path.parent}"
        cure = "move the list beside the class folders"
        raise ValueError(f"{path}: {found} (expected <label>/<id>_<start>_<end>.mp4); {cure}")
    if len(clips) < len(rows):
        logger.warning("%s: %d of %d clips have a file", path, len(clips), len(rows))
    return clips
