"""Soft suppression of overlapping proposals (Bodla et al., ICCV 2017, Gaussian form).

`soft_nms` follows the released G-TAD code to the last bit, `nms_bmn` the released BMN code.
The "threshold 0.84" of the LoFi and G-TAD papers is the Gaussian's sigma: any overlap decays.

Shared quirks of both originals, kept because they change numbers:
  * candidates are sorted by score once (stable), and of equal maxima the first one wins;
  * the loop ends when one candidate is left, which is never output: n > 1 rows give at most n - 1;
  * a single proposal skips the loop and survives;
  * two zero-length segments at one place have tIoU 0/0 and leave each other alone.

`GridSoftNMS` gives the same bits for segments on an anchor grid and remembers the decay factors.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

_TINY = np.finfo(np.float64).tiny


def soft_nms(segments: Any, scores: Any, sigma: float = 0.84, top_k: int = 100) -> tuple[Any, Any]:
    """Pick the best proposal, decay all others by exp(-tIoU^2 / sigma), repeat.

    Stops at `top_k` outputs, when one candidate is left, or when no score is positive.

    Args:
        segments: (N, 2) start and end in any unit; arrays or tensors.
        scores: (N,) finite.
    Returns:
        segments (K, 2) and decayed scores (K,), best first, of the kind and dtype that came in.
    Raises:
        ValueError: shapes that do not fit, scores that are not finite, sigma <= 0.
    """
    spans, values = checked(segments, scores)
    by_start = np.argsort(spans[:, 0])
    decay = _Decay(spans[by_start], sigma)
    if len(values) > 1:
        rows, values = _greedy(values[by_start], by_start, len(values), decay, top_k)
        spans = spans[by_start[rows]]
    return like(segments, spans), like(scores, values)


def _greedy(
    scores: np.ndarray, index: np.ndarray, count: int, factors: Callable[[int], np.ndarray],
    top_k: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Rows picked and their scores when picked.

    The originals sort by score first; here rows lie in order of their start, and the sorted order
    is consulted only when two rows share the maximum.

    Args:
        index: (N,) place in the caller's list, for ties.
        count: of candidates; rows that are none have score 0.
        factors: row -> what its pick multiplies the first rows by (the others do not overlap).
    """
    live = scores.copy()
    picks = np.empty(max(0, min(top_k, count - 1)), np.int64)
    kept = np.empty(len(picks))
    for n in range(len(picks)):
        best = int(live.argmax())
        value = live[best]
        if not value > 0:
            return picks[:n], kept[:n]
        live[best] = 0.0  # gone: a zero is never picked
        if live[live.argmax()] == value:  # a tie
            live[best] = value
            equal = np.flatnonzero(live == value)
            best = int(equal[np.lexsort((index[equal], -scores[equal]))[0]])
            live[best] = 0.0
        picks[n], kept[n] = best, value
        near = factors(best)
        live[: len(near)] *= near
    return picks, kept


class _Decay:
    """exp(-tIoU^2 / sigma) of one segment with all that start before its end.

    Segments (N, 2) come sorted by start, so half of the minima and maxima are slices. A positive
    overlap implies a positive span, also for reversed segments, so clamping both is exact and
    turns 0/0 into 0. A result is overwritten by the next call.
    """

    def __init__(self, spans: np.ndarray, sigma: float) -> None:
        if not sigma > 0:
            expected = "a positive number (0.84 in the LoFi paper)"
            raise ValueError(f"sigma is {sigma}; expected {expected}")
        self.start, self.end = spans.T.copy()
        self.sigma = sigma
        self.proper = bool((self.end > self.start).all())
        self.memory = np.empty((2, len(spans)))

    def __call__(self, row: int) -> np.ndarray:
        first, last = self.start[row], self.end[row]
        stop = int(self.start.searchsorted(last))
        middle = min(stop, int(self.start.searchsorted(first)))
        start, end = self.start[:stop], self.end[:stop]
        overlap, span = self.memory[:, :stop]
        np.minimum(end, last, out=overlap)
        np.maximum(end, last, out=span)
        overlap[:middle] -= first
        span[:middle] -= start[:middle]
        overlap[middle:] -= start[middle:]
        span[middle:] -= first
        apart = overlap[:middle] if self.proper else overlap  # who starts inside does overlap
        np.maximum(apart, 0.0, out=apart)
        if not self.proper:
            np.maximum(span, _TINY, out=span)
        overlap /= span
        overlap *= overlap
        overlap /= -self.sigma
        return np.exp(overlap, out=overlap)


class GridSoftNMS:
    """`soft_nms` for segments on the grid of L snippets and D durations, decay rows remembered.

    One object serves all videos of a run: a row of factors is computed the first time its segment
    is picked. Same bits as `soft_nms(cells / L, scores, sigma, top_k)`.
    """

    def __init__(
        self, snippets: int, durations: int, sigma: float = 0.84, max_bytes: int = 2**28
    ) -> None:
        self.snippets, self.sigma = snippets, sigma
        s, d = np.nonzero(np.add.outer(np.arange(snippets), np.arange(durations)) < snippets)
        self._row_of = np.full((snippets + 1, snippets + 1), -1, np.int64)
        self._row_of[s, s + d + 1] = np.arange(len(s))
        self._size = len(s)
        decay = _Decay(np.stack([s, s + d + 1], axis=1) / snippets, sigma)
        remember = lru_cache(maxsize=max(1, max_bytes // (8 * len(s))))
        self._factors = remember(lambda row: decay(row).copy())

    def __call__(
        self, cells: np.ndarray, scores: np.ndarray, top_k: int = 100
    ) -> tuple[np.ndarray, np.ndarray]:
        """Suppress.

        Args:
            cells: (N, 2) int, grid lines (start, end), 0 <= start < end <= L, end - start <= D;
                no cell twice.
            scores: (N,) finite.
        Returns:
            indices (K,) into the input, best first, and decayed scores (K,).
        """
        scores = np.asarray(scores, np.float64)
        if not np.isfinite(scores).all():
            raise ValueError("scores contain NaN or infinite values; check the maps")
        if len(scores) <= 1:
            return np.arange(len(scores)), scores.copy()
        rows = self._row_of[cells[:, 0], cells[:, 1]]
        index = np.full(self._size, -1)
        index[rows] = np.arange(len(rows))
        if rows.min() < 0 or np.count_nonzero(index >= 0) < len(rows):
            found = f"cells are outside the grid of {self.snippets} snippets or occur twice"
            raise ValueError(f"{found}; use soft_nms for free segments")
        on_grid = np.zeros(self._size)
        on_grid[rows] = scores
        picks, kept = _greedy(on_grid, index, len(rows), self._factors, top_k)
        return index[picks], kept


def checked(segments: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both inputs as float64 arrays, shapes and finiteness checked."""
    spans, values = (
        x.detach().cpu().double().numpy() if hasattr(x, "detach") else np.asarray(x, np.float64)
        for x in (segments, scores)
    )
    if values.ndim != 1 or (spans.shape != (len(values), 2) and len(values)):
        found = f"segments {spans.shape} and scores {values.shape}"
        raise ValueError(f"{found}; expected (N, 2) and (N,)")
    if not (np.isfinite(values).all() and np.isfinite(spans).all()):
        raise ValueError("segments or scores contain NaN or infinite values; check the maps")
    return spans.reshape(-1, 2), values


def like(source: Any, result: np.ndarray) -> Any:
    """Give a result the container and floating dtype of its input."""
    if hasattr(source, "detach"):
        return source.new_tensor(result, dtype=source.dtype if source.is_floating_point() else None)
    floating = isinstance(source, np.ndarray) and source.dtype.kind == "f"
    return result.astype(source.dtype if floating else result.dtype)
