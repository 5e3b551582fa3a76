"""Snippet features on disk: one safetensors file a video, with a header that says what made it.

A head trained on features of another encoder, fidelity or frame rule gives numbers that look
plausible and mean nothing, so a header that differs from what the reader expects is an error.
"""

import hashlib
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from lofi.files import save_tensors

FORMAT = "lofi-features-1"


@dataclass(frozen=True)
class FeatureHeader:
    """What features were made of; None in an expected header means "any".

    Args:
        encoder_sha256: of the encoder's weights file.
        snippets, frames, pixels: the fidelity L, F, S.
        frame_stride, rule: see `lofi.data.snippets.frame_indices`.
        encoder: name of the architecture.
        crop_ratio: see `lofi.data.snippets.crop_of`.
        num_frames: decoded frames of this video.
        fps: of this video.
        resample_fps: see `lofi.data.snippets.resampled_frames`; absent in older files.
    """

    encoder_sha256: str | None
    snippets: int | None
    frames: int | None
    pixels: int | None
    frame_stride: int | None = None
    rule: str | None = None
    encoder: str | None = None
    crop_ratio: float | None = None
    num_frames: int | None = None
    fps: float | None = None
    resample_fps: float | None = None

    @property
    def duration_s(self) -> float | None:
        """Decoded length of the video in seconds."""
        return self.num_frames / self.fps if self.num_frames and self.fps else None


def write_features(path: str | Path, features: torch.Tensor, header: FeatureHeader) -> None:
    """Write the features of one video, atomically.

    Args:
        path: ends in .safetensors by custom.
        features: (C, L), stored as float32.
        header: its `snippets` must be L.
    Raises:
        ValueError: wrong shape, or values that are not finite.
    """
    if features.ndim != 2 or features.shape[1] != header.snippets:
        raise ValueError(
            f"{path}: features must be (C, {header.snippets}), got {tuple(features.shape)}"
        )
    data = features.detach().to("cpu", torch.float32).contiguous()
    if not torch.isfinite(data).all():
        raise ValueError(f"{path}: features hold NaN or infinity; check the encoder's weights")
    known = {key: str(value) for key, value in asdict(header).items() if value is not None}
    metadata = {"format": FORMAT, **known, "data_sha256": _data_sha256(data)}
    if header.duration_s is not None:
        metadata["duration_s"] = repr(header.duration_s)
    save_tensors(path, {"features": data}, metadata)


def read_features(path: str | Path, expect: FeatureHeader | None = None) -> torch.Tensor:
    """Read the features of one video: (C, L) float32.

    Args:
        path: written by `write_features`.
        expect: fields that are not None must be equal.
    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, not a feature file, or made otherwise than expected; names every
            field that differs with both values.
    """
    header, data = _load(path)
    if expect is not None:
        differing = [
            f"{field.name} is {getattr(header, field.name)}, expected {wanted}"
            for field in fields(FeatureHeader)
            if (wanted := getattr(expect, field.name)) is not None
            and getattr(header, field.name) != wanted
        ]
        if differing:
            raise ValueError(
                f"{path}: made with other settings ({'; '.join(differing)}); "
                "extract the features again"
            )
    return data


def read_feature_header(path: str | Path) -> FeatureHeader:
    """The header of a feature file; raises as `read_features`."""
    return _load(path)[0]


def _load(path: str | Path) -> tuple[FeatureHeader, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file (expected features); extract them first")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            data = file.get_tensor("features")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: not a readable feature file ({error}); extract the features again"
        ) from None
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path}: format {metadata.get('format')!r} (expected {FORMAT!r}); published features "
            "are read with read_published_features, others are extracted again"
        )
    if metadata.get("data_sha256") != _data_sha256(data):
        raise ValueError(f"{path}: the checksum does not match; extract the features again")
    kinds = {"snippets": int, "frames": int, "pixels": int, "frame_stride": int}
    kinds |= {"num_frames": int, "fps": float, "crop_ratio": float, "resample_fps": float}
    values = {
        field.name: kinds.get(field.name, str)(metadata[field.name])
        if field.name in metadata
        else None
        for field in fields(FeatureHeader)
    }
    return FeatureHeader(**values), data


def _data_sha256(data: torch.Tensor) -> str:
    return hashlib.sha256(data.numpy().tobytes()).hexdigest()


def resize_features(features: torch.Tensor, snippets: int) -> torch.Tensor:
    """Bring (C, T) features to (C, L) by linear interpolation with half-pixel centres.

    Source: the rule of G-TAD's data loader. T = L is the identity.
    """
    return functional.interpolate(
        features[None], size=snippets, mode="linear", align_corners=False
    )[0]


def read_published_features(
    path: str | Path, snippets: int | None = None, video_id: str | None = None
) -> torch.Tensor:
    """Read features that others extracted, one row a time step: (C, L) float32.

    Args:
        path: .npy (T, C); .csv with a header line and one row a time step; .h5 or .hdf5 with one
            (T, C) data set per video (needs h5py).
        snippets: L to resize to (`resize_features`), None keeps T.
        video_id: data set in an .h5 file, with or without `v_`.
    Raises:
        FileNotFoundError, ValueError: missing, unreadable, not (T, C), unknown video.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (expected published features)")
    kind = path.suffix.lower()
    try:
        if kind == ".npy":
            rows = np.load(path, allow_pickle=False)
        elif kind == ".csv":
            rows = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2, dtype=np.float32)
        elif kind in (".h5", ".hdf5"):
            rows = _read_h5(path, video_id)
        else:
            raise ValueError(f"unknown kind {kind!r}; known: .npy, .csv, .h5, .hdf5")
        data = torch.from_numpy(np.asarray(rows, dtype=np.float32))
    except (ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: cannot be read as features: {reason}") from None
    if data.ndim != 2 or not math.prod(data.shape) or not torch.isfinite(data).all():
        raise ValueError(f"{path}: expected finite numbers (T, C), got shape {tuple(data.shape)}")
    data = data.T.contiguous()
    return data if snippets is None else resize_features(data, snippets)


def _read_h5(path: Path, video_id: str | None) -> np.ndarray:
    try:
        import h5py
    except ImportError:
        raise ValueError("reading .h5 needs h5py; run `pip install h5py`") from None
    if not video_id:
        raise ValueError("an .h5 file holds many videos; pass video_id")
    with h5py.File(path, "r") as file:
        for name in (video_id, f"v_{video_id}", video_id.removeprefix("v_")):
            if name in file and isinstance(file[name], h5py.Dataset):
                return file[name][()]
        raise ValueError(f"no data set for video {video_id!r} among {len(file)} entries")
