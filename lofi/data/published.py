"""Feature files that others extracted: which there are, what is in them, where their rows lie."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lofi.config import PublishedFeatures
from lofi.data.annotations import Video
from lofi.data.features import read_features
from lofi.data.snippets import Grid

KINDS = (".npy", ".npz", ".pt", ".csv", ".safetensors")  # one file a video; .h5 holds many
TOLERANCE = 0.05  # share of a duration by which features may end early or late


def published_files(folder: Path, setting: PublishedFeatures) -> dict[str, Path]:
    """{video id: file}; of an .h5 file every data set."""
    if folder.is_file():
        with _open_h5(folder) as file:
            return {name.removeprefix(setting.prefix): folder for name in file}
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder (expected published features)")
    kinds = (f".{setting.kind}",) if setting.kind else KINDS
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in kinds]
    return {path.stem.removeprefix(setting.prefix): path for path in files}


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

    From .npy, .npz (key `feats` or the only one), .pt (a tensor, loaded weights-only), .csv with a
    header line, or .h5 / .hdf5 with one data set a video (needs h5py). `setting.width` tells (T, C)
    from (C, T); 0 takes the rows as steps.

    FileNotFoundError, ValueError: missing, unreadable, not finite numbers of this width.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (expected published features)")
    try:
        rows = _rows_of(path, setting.prefix, video_id)
        data = torch.from_numpy(np.asarray(rows, dtype=np.float32))
    except Exception as error:  # every library raises its own kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: cannot be read as features: {reason}") from None
    shape, width = tuple(data.shape), setting.width
    if data.ndim == 3 and data.shape[0] == 1:
        data = data[0]
    if data.ndim != 2 or not data.numel() or not torch.isfinite(data).all():
        raise ValueError(f"{path}: expected finite numbers (T, C), got shape {shape}")
    if width and width not in data.shape:
        found = f"shape {shape}, but neither side is {width} channels"
        raise ValueError(f"{path}: {found}; correct data.features.width")
    if width and data.shape[0] == data.shape[1]:
        found = f"shape {shape}, steps and channels cannot be told apart"
        cure = "resample the file to another number of steps, or leave this video out"
        raise ValueError(f"{path}: {found}; {cure}")
    return (data if data.shape[0] == width else data.T).contiguous()


def _rows_of(path: Path, prefix: str, video_id: str) -> Any:
    """What a file holds for one video."""
    kind = path.suffix.lower()
    if kind == ".npy":
        return np.load(path, allow_pickle=False)
    if kind == ".pt":
        rows = torch.load(path, map_location="cpu", weights_only=True)
        return rows.float() if isinstance(rows, Tensor) else rows
    if kind == ".csv":
        return np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2, dtype=np.float32)
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
        for name in (prefix + video_id, video_id):
            if name in file:
                return file[name][()]
        raise ValueError(f"no data set for video {video_id!r} among {len(file)}")


def _open_h5(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise ValueError(f"{path}: needs h5py; run: pip install h5py") from None
    return h5py.File(path, "r")
