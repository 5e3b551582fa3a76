"""Snippet features on disk: what made them, where their steps lie in time, and who may use them.

A head trained on features of another encoder, fidelity, frame rate or video gives numbers that look
plausible and mean nothing. So a file of ours carries what made it, a folder that others published
is described by the configuration, and a `FeatureStore` refuses what does not fit.
C channels, T steps of a video.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lofi.config import PublishedFeatures
from lofi.data.annotations import Video
from lofi.data.snippets import Grid, resampled_frames, windows
from lofi.files import load_tensors, read_record, save_tensors

log = logging.getLogger(__name__)
FORMAT = "lofi-features-1"
UNSAID = ("squeeze", "amp")  # of a header: absent means the default
AGAIN = "extract the features again"


@dataclass(frozen=True)
class FeatureHeader:
    """What features were made of; None in an expected header means "any", but for `UNSAID`."""

    encoder_sha256: str | None = None  # see `lofi.encoders.encoder_hash`
    snippets: int | None = None  # T of this file
    frames: int | None = None  # F
    pixels: int | None = None  # S
    frame_stride: int | None = None  # see `lofi.data.snippets.frame_indices`, as `rule`
    rule: str | None = None
    encoder: str | None = None  # name of the architecture (and its convention)
    crop_ratio: float | None = None  # see `lofi.data.snippets.crop_of`
    squeeze: int | None = None  # 1 = whole frames, see `crop_of`
    amp: str | None = None  # precision, fp32 where nothing is said
    num_frames: int | None = None  # decoded frames of this video
    fps: float | None = None  # of this video
    resample_fps: float | None = None  # see `lofi.data.snippets.resampled_frames`
    window_stride: int | None = None  # frames between snippets; 0 = they divide the whole video
    video: str | None = None  # id

    def grid(self) -> Grid:
        """Where the T steps lie: in frames at the decoded (or resampled) rate, or evenly."""
        duration_s = self.num_frames / self.fps
        if not self.window_stride:
            return Grid.whole(self.snippets, duration_s)
        frames = len(resampled_frames(self.num_frames, self.fps, self.resample_fps or 0.0))
        fps = frames / duration_s if self.resample_fps else self.fps
        window = (self.frames - 1) * self.frame_stride + 1 if self.rule == "window" else 0
        return Grid.sliding(frames, fps, self.window_stride, window)


def write_features(path: str | Path, features: Tensor, header: FeatureHeader) -> None:
    """Write (C, T) atomically as float32; ValueError: T is not `header.snippets`, or not finite."""
    if features.ndim != 2 or features.shape[1] != header.snippets:
        wanted = f"features must be (C, {header.snippets}), got {tuple(features.shape)}"
        raise ValueError(f"{path}: {wanted}")
    data = features.detach().to("cpu", torch.float32).contiguous()
    if not torch.isfinite(data).all():
        raise ValueError(f"{path}: features hold NaN or infinity; check the encoder's weights")
    known = {key: str(value) for key, value in asdict(header).items() if value is not None}
    save_tensors(path, {"features": data}, {"format": FORMAT, **known})


def read_features(
    path: str | Path, expect: FeatureHeader | None = None, again: str = AGAIN
) -> tuple[Tensor, FeatureHeader]:
    """The features of one video, (C, T) float32, and what made them.

    FileNotFoundError: no file; ValueError: damaged, not ours, or (fields named) not as expected;
    it ends with `again`, the cure.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file (expected features); extract them first")
    tensors, metadata = load_tensors(path, again)
    if metadata.get("format") != FORMAT:
        found = f"format {metadata.get('format')!r} (expected {FORMAT!r})"
        cure = "features made by others are named with data.features.folder"
        raise ValueError(f"{path}: {found}; {cure}")
    kinds = {"int | None": int, "float | None": float, "str | None": str}
    known = [field for field in fields(FeatureHeader) if field.name in metadata]
    header = FeatureHeader(**{f.name: kinds[str(f.type)](metadata[f.name]) for f in known})
    differing = [
        f"{name} is {value}, expected {wanted}"
        for name, value in vars(header).items()
        if (wanted := getattr(expect, name, None)) != value
        and (wanted is not None or (expect and name in UNSAID))
    ]
    if differing:
        if again.startswith("run:") and differing[0].startswith("encoder_sha256"):
            again += " --no-resume"  # the encoder was trained anew: whole, but of the old one
        raise ValueError(f"{path}: made with other settings ({'; '.join(differing)}); {again}")
    return tensors["features"], header


def resize_features(features: Tensor, steps: int) -> Tensor:
    """(C, T) features to (C, `steps`), linear with half-pixel centres (G-TAD's data loader)."""
    return F.interpolate(features[None], size=steps, mode="linear", align_corners=False)[0]


class Features(NamedTuple):
    """Features of one video, (C, T) float32, and the grid of their T steps."""

    values: Tensor
    grid: Grid


@dataclass(frozen=True)
class FeatureStore:
    """The features of a data set: `store[video id]` → `Features`."""

    folder: Path  # where they lie, for messages
    identity: str  # hash of what made them; enters the settings of every stage that uses them
    ids: frozenset[str]  # videos that have features
    absent: Mapping[str, str]  # videos that cannot have any, and why
    cure: str  # what to do when features are missing
    _read: Callable[[str], Features]

    def __getitem__(self, video_id: str) -> Features:
        """Raises ValueError, FileNotFoundError: no features, or not those that are expected."""
        if video_id not in self.ids:
            raise FileNotFoundError(f"{self.folder}: no features of video {video_id}; {self.cure}")
        return self._read(video_id)

    def require(self, videos: Iterable[Video]) -> list[Video]:
        """The videos that have features; those that cannot have any are counted and left out.

        Raises FileNotFoundError: the set is incomplete, or of other videos; says what is missing.
        """
        videos = list(videos)
        wanted = [video for video in videos if video.id not in self.absent]
        missing = sorted(video.id for video in wanted if video.id not in self.ids)
        if missing or not wanted:
            found = f"features of {len(wanted) - len(missing)} of {len(videos)} videos"
            if missing:
                found += f" (missing: {', '.join(missing[:3])}{', …' * (len(missing) > 3)})"
            raise FileNotFoundError(f"{self.folder}: {found}; {self.cure}")
        if len(wanted) < len(videos):
            found = f"{len(videos) - len(wanted)} of {len(videos)} videos have no features"
            log.warning("%s and are left out (%s: %s)", found, *next(iter(self.absent.items())))
        return wanted

    @staticmethod
    def extracted(folder: str | Path, expect: FeatureHeader, cure: str) -> "FeatureStore":
        """What `lofi train features` left in a folder; `cure` is the command that makes it.

        `expect` is checked when a file is read. FileNotFoundError: none; ValueError: unfinished.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no features yet; {cure}")
        files = {path.stem: path for path in folder.glob("[!.]*.safetensors")}
        if not (folder / "result.json").is_file():
            found = f"incomplete, features of {len(files)} videos were written before"
            raise ValueError(f"{folder}: {found} the extraction was interrupted; {cure}")
        try:
            result = read_record(folder / "result.json", "the result of the extraction")
        except ValueError as error:
            raise ValueError(f"{error}; {cure}") from None
        absent = {row["item"]: row["reason"] for row in result["skipped"]}

        def read(video_id: str) -> Features:
            data, header = read_features(files[video_id], expect, cure)
            if header.video != video_id:
                found = f"holds the features of video {header.video}"
                raise ValueError(f"{files[video_id]}: {found}; {cure}")
            return Features(data, header.grid())

        return FeatureStore(folder, _hash(asdict(expect)), frozenset(files), absent, cure, read)

    @staticmethod
    def published(setting: PublishedFeatures, videos: Sequence[Video]) -> "FeatureStore":
        """A folder (or .h5 file) of features that others extracted; see `PublishedFeatures`.

        Videos give durations, and rates where `setting.fps` is 0. FileNotFoundError: no such
        folder; ValueError: nothing usable in it.
        """
        from lofi.data.published import published_files, published_grid, read_published

        folder = Path(setting.folder)
        names = published_files(folder, setting)
        annotated = {video.id: video for video in videos}
        known = frozenset(names.keys() & annotated.keys())
        if not known:
            found = f"features of none of {len(annotated)} annotated videos"
            shown = ", ".join(sorted(names)[:3])
            cure = "set data.features.prefix or data.features.kind"
            raise ValueError(f"{folder}: {found} (found {shown}, …); {cure}")
        left_out = [id for id in annotated if id not in names and setting.allow_missing]
        absent = dict.fromkeys(left_out, f"no features in {folder}")
        cure = "complete the folder, or set data.features.allow_missing to leave videos out"
        sizes = {id: names[id].stat().st_size for id in sorted(known)}
        identity = _hash({**asdict(setting), "folder": folder.name, "files": sizes})
        widths: dict[int, str] = {}  # of the files read so far, and one that has it

        def read(video_id: str) -> Features:
            values = read_published(names[video_id], setting, video_id)
            if len(values) not in widths and not setting.width:
                cure = "set data.features.width to the number of channels"
                widths[len(values)] = video_id
                shapes = ", ".join(f"{width} channels in {name}" for width, name in widths.items())
                if len(widths) > 1:
                    raise ValueError(f"{folder}: rows taken as steps give {shapes}; {cure}")
                log.warning("%s: rows are taken as steps: %s; else %s", folder, shapes, cure)
            return Features(values, published_grid(values.shape[1], setting, annotated[video_id]))

        return FeatureStore(folder, identity, known, absent, cure, read)

    @staticmethod
    def frames(folder: str | Path, videos: Sequence[Video], stride: int = 1, **options: Any):
        """Features of single frames, every `stride` frames, as image and text encoders give."""
        setting = PublishedFeatures(str(folder), stride=stride, window=1, **options)
        return FeatureStore.published(setting, videos)


def _hash(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def head_inputs(
    features: Features, steps: int, stride: int, resizes: bool = True
) -> list[Features]:
    """What a head sees of one video: windows of it, or (`stride` 0) the whole, resized to `steps`.

    Heads that do not resize (see `lofi.heads.Head`) see the whole as it is instead of windows.
    ValueError when `stride` is not the distance of these features' steps.
    """
    values, grid = features
    if not stride:
        whole = replace(grid, steps=steps, stride=0, offset_s=0.0, length_s=grid.covered_s)
        values = values if values.shape[1] == steps else resize_features(values, steps)
        return [Features(values, whole)]
    if grid.stride != stride:
        found = f"features stand {grid.stride or 'no fixed number of'} frames apart"
        cure = "set it to that, or to 0 for whole videos"
        raise ValueError(f"data.window_stride is {stride}, but {found}; {cure}")
    if not resizes:
        return [features]
    parts = windows(values.shape[1] * stride, steps, stride)
    return [windowed(features, window.first_frame // stride, steps) for window in parts]


def windowed(features: Features, first: int, steps: int) -> Features:
    """`steps` steps from `first` on; zeros behind the end, as released."""
    part = features.values[:, first : first + steps]
    part = F.pad(part, (0, steps - part.shape[1]))
    return Features(part, features.grid.window(first, steps))
