"""Many clips at once: in threads that share a cache, or in processes that a bad file cannot stop.

Decoders work outside Python's lock, so threads decode in parallel and are the default: they keep
frames in one `FrameCache` and hand clips over without a copy. Child processes cost a copy and have
no cache; they are for files of unknown quality, where a decoder may hang or crash.
"""

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import LifoQueue
from typing import NamedTuple

import torch

from lofi.data.annotations import TrimmedClip
from lofi.data.frame_cache import FrameCache
from lofi.data.isolated import Child
from lofi.data.snippets import Augmentation, read_clip, read_trimmed_clip
from lofi.data.video import VideoError, VideoInfo, probe
from lofi.fidelity import Fidelity

SHARED_MEMORY = Path("/dev/shm")


class ClipRequest(NamedTuple):
    """Snippets of a video; the fields are the arguments of `read_clip`."""

    path: str | Path
    fidelity: Fidelity
    frame_stride: int = 8
    rule: str = "centred"
    crop_ratio: float = 0.875
    augmentation: Augmentation | None = None
    resample_fps: float = 0.0
    span: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(L, F, 3, S, S)."""
        size = self.fidelity
        return size.snippets, size.frames, 3, size.pixels, size.pixels

    def read(self, cache: FrameCache | None = None) -> torch.Tensor:
        """The clip; raises what `read_clip` raises."""
        return read_clip(self.path, self.fidelity, cache=cache, **_options(self, "rule", "span"))


class TrimmedRequest(NamedTuple):
    """One window of a trimmed clip; the fields are the arguments of `read_trimmed_clip`."""

    clip: TrimmedClip
    frames: int
    pixels: int
    frame_stride: int = 8
    crop_ratio: float = 0.875
    augmentation: Augmentation | None = None
    resample_fps: float = 0.0

    @property
    def path(self) -> Path:
        """Of the video file."""
        return self.clip.path

    @property
    def shape(self) -> tuple[int, ...]:
        """(F, 3, S, S)."""
        return self.frames, 3, self.pixels, self.pixels

    def read(self, cache: FrameCache | None = None) -> torch.Tensor:
        """The clip; raises what `read_trimmed_clip` raises."""
        return read_trimmed_clip(self.clip, self.frames, self.pixels, cache=cache, **_options(self))


Request = ClipRequest | TrimmedRequest


def _options(request: Request, *more: str) -> dict:
    names = ("frame_stride", "crop_ratio", "augmentation", "resample_fps", *more)
    return {name: getattr(request, name) for name in names}


class ClipReader:
    """Reads clips in parallel; `read` may be called from several threads at once.

    Args:
        workers: threads or processes that decode; 0 decodes in the calling thread.
        processes: decode in child processes (at least one). A file that crashes the decoder, or
            keeps it busy for longer than `limit_s`, becomes a `VideoError` and the others go on.
        cache_bytes: memory for decoded frames, 0 = none; threads only.
        limit_s: seconds a clip may take in a child process; threads cannot be stopped.
    Raises:
        ValueError: processes with a cache.
    """

    def __init__(
        self,
        workers: int = 0,
        processes: bool = False,
        cache_bytes: int = 0,
        limit_s: float = 120.0,
    ) -> None:
        if processes and cache_bytes:
            raise ValueError(
                f"child processes keep no frames, but a cache of {cache_bytes:,} bytes was asked "
                "for; set the cache to 0, or decode in threads"
            )
        self.cache = FrameCache(cache_bytes) if cache_bytes else None
        self.limit_s = limit_s
        self._infos: dict[str, VideoInfo] = {}
        self._children: LifoQueue[Child] | None = None
        if processes:
            self._children = LifoQueue()
            self._all = [Child() for _ in range(max(1, workers))]
            for child in self._all:
                self._children.put(child)
        self._threads = ThreadPoolExecutor(workers) if workers else None

    def read(self, requests: Sequence[Request]) -> list[torch.Tensor | VideoError]:
        """The clips in the order of the requests, uint8; a `VideoError` for one that fails.

        Raises:
            ValueError: a request that no file can fulfil (unknown rule, ...).
        """
        one = self._read_here if self._children is None else self._read_isolated
        return list((self._threads.map if self._threads else map)(one, requests))

    def info(self, path: str | Path) -> VideoInfo:
        """Frame count and rate of a video; with processes, as the child found them.

        Raises:
            VideoError: see `probe`.
        """
        return self._infos.get(str(path)) or probe(path)

    def close(self) -> None:
        """End threads and processes; safe to repeat."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        if self._children is not None:
            for child in self._all:
                child.kill()

    def __enter__(self) -> "ClipReader":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def _read_here(self, request: Request) -> torch.Tensor | VideoError:
        try:
            return request.read(self.cache)
        except VideoError as error:
            return error

    def _read_isolated(self, request: Request) -> torch.Tensor | VideoError:
        child = self._children.get()
        try:
            place, frames = _shared_tensor(request.shape)
            try:
                self._infos[str(request.path)] = child.call(
                    _read_into, (request, place), self.limit_s
                )
            finally:
                Path(place).unlink(missing_ok=True)  # the memory lives as long as the tensor
            return frames
        except VideoError as error:
            known = str(error).startswith(str(request.path))
            return error if known else VideoError(f"{request.path}: {error}; leave it out")
        finally:
            self._children.put(child)


def _shared_tensor(shape: tuple[int, ...]) -> tuple[str, torch.Tensor]:
    """A file in memory (on disk where memory is short) and the uint8 tensor that is mapped on it.

    Space is reserved first: writing into a full shared memory (64 MB in many containers) would
    kill the process instead of raising.
    """
    size = torch.Size(shape).numel()
    for folder in (SHARED_MEMORY, Path(tempfile.gettempdir())):
        if not os.access(folder, os.W_OK):
            continue
        handle, place = tempfile.mkstemp(prefix="lofi-clip-", dir=folder)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle, 0, size)
            return place, _mapped(place, shape)
        except OSError:
            os.unlink(place)
        finally:
            os.close(handle)
    raise OSError(f"no space for a clip of {size:,} bytes in {SHARED_MEMORY} or {folder}")


def _mapped(place: str, shape: tuple[int, ...]) -> torch.Tensor:
    size = torch.Size(shape).numel()
    return torch.from_file(place, shared=True, size=size, dtype=torch.uint8).view(shape)


def _read_into(request: Request, place: str) -> VideoInfo:
    """In the child: decode into the parent's memory."""
    frames = _mapped(place, request.shape)
    os.unlink(place)  # both sides have it mapped: nothing is left over should the parent be killed
    frames.copy_(request.read())
    return probe(request.path)
