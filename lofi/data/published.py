"""Feature files that others extracted: which there are, what is in them, where their rows lie."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lofi.config import PublishedFeatures
from lofi.data.annotations import Video
from lofi.data.features import read_features
from lofi.data.snippets import Grid
from lofi.data.tables import nfc
from lofi.files import decode_text, existing

KINDS = (".npy", ".npz", ".pt", ".csv", ".safetensors")  # one file a video; .h5 holds many
ROW_NUMBERS = ("", "index", "unnamed: 0")  # what data frames call them
TOLERANCE = 0.05  # share of a duration by which features may end early or late


def published_files(folder: Path, setting: PublishedFeatures) -> dict[str, Path]:
    """{video id: file}; of an .h5 file every data set."""
    if folder.is_file():
        with _open_h5(folder) as file:
            return {_id(name, setting): folder for name in file}
    existing(folder, "published features", folder=True)
    kinds = (f".{setting.kind}",) if setting.kind else KINDS
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in kinds]
    found: dict[str, Path] = {}
    for path in files:
        if (other := found.setdefault(_id(path.stem, setting), path)) is not path:
            cure = "set data.features.kind, or keep one of them"
            raise ValueError(f"{folder}: {other.name} and {path.name} are one video; {cure}")
    return found


def _id(name: str, setting: PublishedFeatures) -> str:
    return nfc(name).removeprefix(setting.prefix)


def published_grid(rows: int, setting: PublishedFeatures, video: Video) -> Grid:
    """Where T rows lie: row i is centred at (i · stride + window / 2) / fps seconds.

    ValueError: no frame rate or duration is known, or the rows end elsewhere than the video.
    """
    stride, window, fps = setting.stride, setting.window, setting.fps or video.fps
    if not stride:  # rows divide the video evenly, whatever its rate
        if not video.duration_s:
            raise ValueError(f"video {video.id}: its duration is not annotated; add duration_s")
        return Grid.whole(rows, video.duration_s)
    if not fps:
        raise ValueError(f"video {video.id}: frame rate unknown; set data.features.fps")
    covered_s = ((rows - 1) * stride + window) / fps
    duration_s = video.duration_s or covered_s
    if abs(covered_s - duration_s) > TOLERANCE * duration_s + 2 * max(window, stride) / fps:
        found = f"{rows} rows, {stride} frames apart at {fps:g} frames a second, cover"
        found += f" {covered_s:.1f} s, but {duration_s:.1f} s are annotated"
        cure = "correct data.features.stride, .fps, or the annotation"
        raise ValueError(f"video {video.id}: {found}; {cure}")
    offset_s = (window - stride) / 2 / fps
    return Grid.strided(rows, stride, fps, round(duration_s * fps), offset_s)


def read_published(path: str | Path, setting: PublishedFeatures, video_id: str = "") -> Tensor:
    """Features that others extracted, (C, T) float32.

    From .npy, .npz (key `feats` or the only one), .pt (a tensor, loaded weights-only), .csv with or
    without a header line (see `_table`), or .h5 / .hdf5 with one data set a video (needs h5py).
    `setting.width` tells (T, C) from (C, T); 0 takes the rows as steps.

    FileNotFoundError, ValueError: missing, unreadable, not finite numbers of this width.
    """
    path, width = existing(path, "published features"), setting.width
    try:
        rows = np.asarray(_rows_of(path, setting, video_id))
    except Exception as error:  # every library raises its own kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = reason.removeprefix(f"{path}: ")
        raise ValueError(f"{path}: cannot be read as features: {reason}") from None
    shape = rows.shape
    if rows.ndim == 3 and shape[0] == 1:
        rows = rows[0]
    if rows.dtype.kind not in "fiu" or rows.ndim != 2 or not rows.size:
        found = f"{rows.dtype} of shape {shape}"
        raise ValueError(f"{path}: expected finite numbers (T, C), got {found}; extract it again")
    with np.errstate(over="ignore"):
        rows = rows.astype(np.float32)
    if not np.isfinite(rows).all():
        bad = np.argwhere(~np.isfinite(rows))
        place = f"{rows[tuple(bad[0])]} in row {bad[0, 0]}, column {bad[0, 1]}, counted from 0"
        found = f"{len(bad)} of {rows.size} are no finite numbers ({place})"
        raise ValueError(f"{path}: {found}; extract it again, or leave this video out")
    if width and width not in rows.shape:
        found = f"shape {shape}, but neither side is {width} channels"
        raise ValueError(f"{path}: {found}; correct data.features.width")
    if width and rows.shape[0] == rows.shape[1]:
        found = f"shape {shape}, steps and channels cannot be told apart"
        cure = "resample the file to another number of steps, or leave this video out"
        raise ValueError(f"{path}: {found}; {cure}")
    data = torch.from_numpy(rows)
    return (data if data.shape[0] == width else data.T).contiguous()


def _rows_of(path: Path, setting: PublishedFeatures, video_id: str) -> Any:
    """What a file holds for one video."""
    kind = path.suffix.lower()
    if kind == ".npy":
        return np.load(path, allow_pickle=False)
    if kind == ".pt":
        rows = torch.load(path, map_location="cpu", weights_only=True)
        return rows.float() if isinstance(rows, Tensor) else rows
    if kind == ".csv":
        return _table(path, setting.width)
    if kind == ".safetensors":
        return read_features(path)[0].T
    if kind == ".npz":
        with np.load(path, allow_pickle=False) as file:
            names = list(file)
            if "feats" not in names and len(names) != 1:
                raise ValueError(f"holds {', '.join(names)}, expected feats")
            return file["feats" if "feats" in names else names[0]]
    if kind not in (".h5", ".hdf5"):
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}, .h5, .hdf5")
    with _open_h5(path) as file:
        for name in (setting.prefix + video_id, video_id):
            if name in file:
                return file[name][()]
        raise ValueError(f"no data set for video {video_id!r} among {len(file)}")


def _table(path: Path, width: int) -> np.ndarray:
    """Numbers of a CSV, with or without a line of names, without the row numbers of a data frame.

    A first line 0,1,2,… is the names that pandas writes, unless all cells are whole numbers.
    Row numbers stand below an empty name (`index`, `Unnamed: 0`), or are one column too many.
    """
    lines = decode_text(path.read_bytes(), path).splitlines()
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise ValueError("the file is empty")
    delimiter = max(",;\t", key=lines[0].count)
    names = [cell.strip().strip('"') for cell in lines[0].split(delimiter)]
    titles = names[1:] if names[0].lower() in ROW_NUMBERS else names
    counted = titles == [str(i) for i in range(len(titles))]
    if counted and titles is names and re.fullmatch(r"[\d\s,;-]*", "".join(lines[1:])):
        cure = "name the columns f0,f1,… or save it as .npy"
        raise ValueError(f"the first line {lines[0][:20]} may be names or numbers; {cure}")
    numbers = sum(map(_is_number, titles))
    if not counted and 0 < numbers < len(titles):
        raise ValueError(f"the first line {lines[0][:40]} mixes names and numbers; correct it")
    named = counted or not numbers
    rows = np.loadtxt(lines[named:], delimiter=delimiter, ndmin=2, comments=None)
    if named and rows.shape[1] != len(names):
        raise ValueError(f"{len(names)} names for {rows.shape[1]} columns; correct the first line")
    numbered = np.array_equal(rows[:, 0], np.arange(len(rows)))
    if named and titles is not names:
        if not numbered:
            raise ValueError("the first column has no name and is not 0,1,2,…; name or drop it")
        return rows[:, 1:]
    if numbered and len(rows) > 1 and width in (0, rows.shape[1] - 1):
        if not width:
            cure = "set data.features.width to the number of channels"
            raise ValueError(f"the first column counts 0,1,2,…, which may be row numbers; {cure}")
        return rows[:, 1:]
    return rows


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _open_h5(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise ValueError(f"{path}: needs h5py; run: pip install h5py") from None
    return h5py.File(path, "r")
