"""Memory of an encoder's training step in closed form, for pictures that are drawn again at once.

Every tensor of these networks has the size of one of a few levels: with S pixels a side and F
frames, level (j, k) has ceil(F / 2^j) time steps and ceil(S / 2^k)² places. One run without data
tells how many bytes a place of each level has at every moment; the rest is multiplication.
B videos, L snippets a video.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lofi.budget.count import Setting, without_data
from lofi.budget.watches import GIVEN, Ledger
from lofi.config import Mode
from lofi.fidelity import Fidelity

# The step that is run: powers of two, and more snippets than any weight has rows.
PROBE = Fidelity(snippets=10_007, frames=8, pixels=256)
Level = tuple[int | None, int | None]  # halvings of time and space; None: does not depend on it


@dataclass(frozen=True, eq=False)
class MemoryModel:
    """Bytes of one training step (one graph, no head) as a function of the fidelity.

    The same numbers as those of `activation_bytes` without head, in microseconds.
    """

    parameters_bytes: int
    levels: tuple[Level | None, ...]  # None: once a step, whatever its size
    saved: np.ndarray  # (levels,) bytes a place
    moments: np.ndarray  # (moments, levels) of everything that exists

    def saved_bytes(self, fidelity: Fidelity, batch: int = 1) -> float:
        """What waits for the backward pass of `batch` videos."""
        return float(self.saved @ self._places(fidelity, batch))

    def peak_bytes(self, fidelity: Fidelity, batch: int = 1) -> float:
        """The most that exists at once."""
        return float((self.moments @ self._places(fidelity, batch)).max())

    def _places(self, fidelity: Fidelity, batch: int) -> np.ndarray:
        return np.array([_places(level, fidelity, batch) for level in self.levels], float)


@lru_cache(maxsize=32)
def memory_model(encoder: str, amp: str = "fp32", mode: Mode | None = None) -> MemoryModel:
    """The closed form for an encoder's name and a precision; a second, once a process.

    Raises:
        ValueError: unknown name or precision, or a mode with chunks.
    """
    mode = mode or Mode()
    if mode.chunked:
        raise ValueError(f"mode {mode} is no single graph; ask activation_bytes")
    with without_data(amp, encoder) as hollow:
        setting = Setting(hollow(encoder), None, PROBE, 1, amp, mode, 0)
        clips = setting.clips(1)
        with _Levels(setting.device) as ledger:
            ledger.enter(clips, GIVEN)
            for tensor in setting.static():
                ledger.enter(tensor)
            setting.run(clips, ledger)
        parameters = setting.report(0, 0, 0.0, []).parameters_bytes
    levels = tuple(ledger.now)
    places = np.array([_places(level, PROBE, 1) for level in levels], float)
    moments = np.array([[moment[level] for level in levels] for moment in ledger.moments])
    saved = np.array([ledger.at_end[level] for level in levels])
    return MemoryModel(parameters, levels, saved / places, np.unique(moments, axis=0) / places)


class _Levels(Ledger):
    """A ledger that keeps the bytes of each level apart and remembers every moment."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.now: Counter[Level | None] = Counter()
        self.at_end: Counter[Level | None] = Counter()
        self.moments: list[Counter[Level | None]] = []
        self._level_of: dict[int, Level | None] = {}

    def enter(self, tensor: Tensor, operation: str = "") -> None:
        key = tensor.untyped_storage()._cdata
        if key in self._entries:
            return
        super().enter(tensor, operation)
        level = self._level_of[key] = _level(tuple(tensor.shape))
        self.now[level] += self._entries[key][2]
        self.moments.append(self.now.copy())

    def scratch(self, size: int) -> None:
        self.moments.append(self.now + Counter({None: size}))

    def _leave(self, key: int) -> None:
        self.now[self._level_of.pop(key)] -= self._entries[key][2]
        super()._leave(key)

    def end(self) -> None:
        for key, (*_, size) in self._entries.items():
            if key not in self._before:
                self.at_end[self._level_of[key]] += size


def _level(shape: tuple[int, ...]) -> Level | None:
    """Which level a shape of the probe belongs to; None: it does not depend on the snippets."""
    number, frames = PROBE.snippets, PROBE.frames
    if not shape or shape[0] not in (number, number * frames):
        return None
    space = PROBE.pixels.bit_length() - shape[-1].bit_length() if len(shape) >= 4 else None
    if shape[0] == number * frames or frames in shape[1:3]:
        return 0, space
    time = frames.bit_length() - shape[2].bit_length() if len(shape) == 5 else None
    return time, space


def _places(level: Level | None, fidelity: Fidelity, batch: int) -> int:
    """Time steps times places of a level, of all snippets."""
    if level is None:
        return 1
    time, space = level
    steps = 1 if time is None else -(-fidelity.frames // 2**time)
    side = 1 if space is None else -(-fidelity.pixels // 2**space)
    return batch * fidelity.snippets * steps * side**2
