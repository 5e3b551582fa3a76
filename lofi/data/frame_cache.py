"""Decoded frames that stay in memory from one clip to the next."""

import threading
from collections import OrderedDict

import torch


class FrameCache:
    """Decoded frames in memory, least recently used out first; safe to share between threads.

    Small videos are decoded whole, so that any fidelity of the same size and any window of a
    trimmed clip is a copy; of longer ones only the frames asked for are kept, by frame set.

    Args:
        max_bytes: of all frames together.
        max_video_bytes: a video whose frames take at most this at the size asked for is "small".
    """

    def __init__(self, max_bytes: int, max_video_bytes: int = 64 * 2**20) -> None:
        self.max_bytes = max_bytes
        self.max_video_bytes = min(max_video_bytes, max_bytes)
        self.num_bytes = 0
        self._entries: OrderedDict[tuple, torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: tuple) -> torch.Tensor | None:
        """The frames kept under a key, now the most recently used; None when not kept."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def put(self, key: tuple, frames: torch.Tensor) -> None:
        """Keep frames, dropping the oldest; frames larger than the whole cache are not kept."""
        with self._lock:
            if key in self._entries or frames.nbytes > self.max_bytes:
                return
            self._entries[key] = frames
            self.num_bytes += frames.nbytes
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= self._entries.popitem(last=False)[1].nbytes
