"""Clips out of video files: one at a time, or many at once.

Decoders work outside Python's lock, so threads decode in parallel and are the default: they keep
frames in one `FrameCache` and hand clips over without a copy. Child processes cost copies and have
no cache; they are for files of unknown quality, where a decoder may hang or crash.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lofi.data.annotations import TrimmedClip
from lofi.data.isolated import Children
from lofi.data.snippets import (
    Augmentation,
    crop_of,
    frame_indices,
    resampled_frames,
    window_indices,
)
from lofi.data.video import VideoError, VideoInfo, decode_frames, file_identity, probe
from lofi.fidelity import Fidelity

# ---------------------------------------------------------------------------- one clip


class FrameCache:
    """Decoded frames in memory, least recently used out first; safe to share between threads.

    Small videos are decoded whole, so that any fidelity of the same size and any window of a
    trimmed clip is a copy; of longer ones only the frames asked for are kept, by frame set.

    `max_bytes` is for all frames, 0 = none; small are `max_video_bytes` at the size asked for.
    """

    def __init__(self, max_bytes: int, max_video_bytes: int = 64 * 2**20) -> None:
        self.max_bytes = max_bytes
        self.max_video_bytes = min(max_video_bytes, max_bytes)
        self.num_bytes = 0
        self._entries: OrderedDict[tuple, torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def frames(self, key: tuple, decode: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The frames kept under a key, or else decoded ones, which are kept if they fit at all."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        frames = decode()
        with self._lock:
            if key not in self._entries and frames.nbytes <= self.max_bytes:
                self._entries[key] = frames
                self.num_bytes += frames.nbytes
                while self.num_bytes > self.max_bytes:
                    self.num_bytes -= self._entries.popitem(last=False)[1].nbytes
        return frames


class ClipRequest(NamedTuple):
    """The snippets of a video, or of a window of it, at one fidelity."""

    path: str | Path
    fidelity: Fidelity
    frame_stride: int = 8  # see `frame_indices`
    rule: str = "centred"
    crop_ratio: float = 0.875  # see `crop_of`
    augmentation: Augmentation | None = None  # None = centre crop, no jitter
    resample_fps: float = 0.0  # as if the video had this frame rate; see `resampled_frames`
    span: tuple[int, int] | None = None  # a window, in frames (of that rate); see `frame_indices`
    squeeze: bool = False  # see `crop_of`

    @property
    def shape(self) -> tuple[int, ...]:
        """(L, F, 3, S, S)."""
        size = self.fidelity
        return size.snippets, size.frames, 3, size.pixels, size.pixels

    def read(self, cache: FrameCache | None = None) -> torch.Tensor:
        """uint8 (L, F, 3, S, S), RGB; shared frames are decoded once. VideoError: undecodable."""
        info = probe(self.path)
        shown = resampled_frames(info.num_frames, info.fps, self.resample_fps)
        jitter = self.augmentation.jitter if self.augmentation else None
        rule = self.frame_stride, self.rule, jitter, self.span
        indices = shown[frame_indices(len(shown), self.fidelity, *rule)]
        return _read_frames(self, indices.reshape(-1), info, cache).view(self.shape)


class TrimmedRequest(NamedTuple):
    """One window of a trimmed clip, F · `frame_stride` frames long.

    It lies inside [start_s, end_s), at `augmentation.time` or in the middle; when the clip is
    shorter, its first and last frames repeat.
    """

    clip: TrimmedClip
    frames: int  # F
    pixels: int  # S
    frame_stride: int = 8
    crop_ratio: float = 0.875
    augmentation: Augmentation | None = None
    resample_fps: float = 0.0  # the stride counts frames of this rate; see `resampled_frames`
    squeeze: bool = False  # see `crop_of`

    @property
    def path(self) -> Path:
        """Of the video file."""
        return self.clip.path

    @property
    def shape(self) -> tuple[int, ...]:
        """(F, 3, S, S)."""
        return self.frames, 3, self.pixels, self.pixels

    def read(self, cache: FrameCache | None = None) -> torch.Tensor:
        """uint8 (F, 3, S, S), RGB; VideoError: it does not decode, or the clip lies outside it."""
        info = probe(self.path)
        shown = resampled_frames(info.num_frames, info.fps, self.resample_fps)
        fps = len(shown) / info.duration_s if self.resample_fps else info.fps
        rule = self.frames, self.frame_stride, self.augmentation
        indices = shown[window_indices(self.clip, len(shown), fps, *rule)]
        return _read_frames(self, indices, info, cache)


Request = ClipRequest | TrimmedRequest


def _read_frames(
    request: Request, indices: np.ndarray, info: VideoInfo, cache: FrameCache | None
) -> torch.Tensor:
    """Decode (or look up), crop and mirror: uint8 (n, 3, S, S), never a view of the cache."""
    cache = FrameCache(0) if cache is None else cache
    path, view = request.path, (request.shape[-1], request.crop_ratio, request.augmentation)
    crop = crop_of(info.height, info.width, *view, request.squeeze)
    size = crop.height, crop.width
    key = (*file_identity(path), *size)
    if info.num_frames * crop.height * crop.width * 3 <= cache.max_video_bytes:
        wanted, rows = np.arange(info.num_frames), indices
    else:
        wanted, rows = np.unique(indices, return_inverse=True)
        key = (*key, wanted.tobytes())

    def decode() -> torch.Tensor:
        return torch.from_numpy(decode_frames(path, wanted, size)).permute(0, 3, 1, 2).contiguous()

    bottom, right = crop.top + crop.pixels, crop.left + crop.pixels
    part = cache.frames(key, decode)[:, :, crop.top : bottom, crop.left : right]
    part = part.index_select(0, torch.from_numpy(rows))
    return part.flip(-1) if crop.flip else part


# ---------------------------------------------------------------------------- many clips


class ClipReader(AbstractContextManager):
    """Reads clips in parallel; `read` may be called from several threads at once.

    Args:
        workers: threads or processes that decode; 0 decodes in the calling thread.
        processes: decode in child processes (at least one). A file that crashes the decoder, or
            keeps it busy for longer than `limit_s`, becomes a `VideoError` and the others go on.
        cache_bytes: memory for decoded frames, 0 = none; with processes a ValueError.
    """

    def __init__(
        self, workers: int = 0, processes: bool = False, cache_bytes: int = 0, limit_s: float = 120
    ) -> None:
        if processes and cache_bytes:
            found = f"a cache of {cache_bytes:,} bytes was asked for"
            cure = "set the cache to 0, or decode in threads"
            raise ValueError(f"child processes keep no frames, but {found}; {cure}")
        self.cache = FrameCache(cache_bytes)
        self.limit_s = limit_s
        self._infos: dict[str, VideoInfo] = {}
        self._children = Children(max(1, workers)) if processes else None
        self._threads = ThreadPoolExecutor(workers) if workers else None

    def read(self, requests: Sequence[Request]) -> list[torch.Tensor | VideoError]:
        """The clips in the order of the requests, uint8; a `VideoError` for one that fails.

        ValueError for a request that no file can fulfil (unknown rule, ...).
        """
        one = self._read_isolated if self._children else self._read_here
        return list((self._threads.map if self._threads else map)(one, requests))

    def info(self, path: str | Path) -> VideoInfo:
        """As `probe` finds them; with processes, as the child found them."""
        return self._infos.get(str(path)) or probe(path)

    def close(self) -> None:
        """End threads and processes; safe to repeat."""
        if self._threads:
            self._threads.shutdown(cancel_futures=True)
        if self._children is not None:
            self._children.close()

    def __exit__(self, *error) -> None:
        self.close()

    def _read_here(self, request: Request) -> torch.Tensor | VideoError:
        try:
            return request.read(self.cache)
        except VideoError as error:
            return error

    def _read_isolated(self, request: Request) -> torch.Tensor | VideoError:
        try:
            frames, info = self._children.call(_read_alone, (request,), self.limit_s)
            self._infos[str(request.path)] = info
            return torch.from_numpy(frames)
        except VideoError as error:
            known = str(error).startswith(str(request.path))
            return error if known else VideoError(f"{request.path}: {error}; leave it out")


def _read_alone(request: Request) -> tuple[np.ndarray, VideoInfo]:
    """In the child: the clip, and what was found in its file."""
    return request.read().numpy(), probe(request.path)
