"""Soft suppression of overlapping proposals (Bodla et al., ICCV 2017, Gaussian form).

`soft_nms` follows the released G-TAD code to the last bit, `soft_nms_bmn` the released BMN code.
The "threshold 0.84" of the LoFi and G-TAD papers is the Gaussian's sigma: any overlap decays.

Shared quirks of both originals, kept because they change numbers:
  * candidates are sorted by score once (stable), and of equal maxima the first one wins;
  * the loop ends when one candidate is left, which is never output: n > 1 rows give at most n - 1;
  * a single proposal skips the loop and survives;
  * two zero-length segments at one place have tIoU 0/0 and leave each other alone.

`GridSoftNMS` gives the same bits for segments on an anchor grid and remembers the decay factors.
"""

from collections.abc import Callable
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
    spans, start_scores = _checked(segments, scores)
    if not sigma > 0:
        raise ValueError(f"sigma is {sigma}; expected a positive number (0.84 in the LoFi paper)")
    if len(start_scores) <= 1:
        return _like(segments, scores, spans, start_scores)
    order = np.argsort(-start_scores, kind="stable")
    start, end = spans[order].T.copy()

    def factors(row: Any, among: slice) -> np.ndarray:
        return _decay(start[among], end[among], start[row], end[row], sigma)

    picks, kept = _greedy(start_scores[order], factors, top_k)
    return _like(segments, scores, spans[order[picks]], kept)


def _greedy(
    scores: np.ndarray, factors: Callable[[Any, slice], np.ndarray], top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows picked from falling `scores`, and their scores when picked.

    Scores only ever fall, so a row cannot be picked before the running maximum drops below its
    first score: only the first `live` rows are kept up to date, and when the maximum drops below
    the next one, more rows join and catch up on the picks so far, in the same order of products.

    Args:
        factors: (picked row, or column of rows; slice of rows) -> what the slice is multiplied by.
    """
    scores = scores.copy()
    count, live = len(scores), min(256, len(scores))
    picks = np.empty(min(top_k, count - 1), np.int64)
    kept = np.empty(len(picks))
    for n in range(len(picks)):
        best = int(scores[:live].argmax())  # the first of equal maxima
        while live < count and scores[best] < scores[live]:
            grown = min(count, live + max(256, live // 2))
            joining = slice(live, grown)
            late = np.vstack([scores[None, joining], factors(picks[:n, None], joining)])
            scores[joining] = np.multiply.reduce(late, axis=0)
            live = grown
            best = int(scores[:live].argmax())
        value = scores[best]
        if not value > 0:
            return picks[:n], kept[:n]
        picks[n], kept[n] = best, value
        scores[:live] *= factors(best, slice(0, live))
        scores[best] = 0.0  # gone: a zero is never picked
    return picks, kept


def _decay(
    start: np.ndarray, end: np.ndarray, first: Any, last: Any, sigma: float
) -> np.ndarray:
    """exp(-tIoU^2 / sigma) of segments (N,) with [first, last]; 1 where nothing overlaps.

    A positive overlap implies a positive span, also for reversed segments, so clamping both is
    exact and turns 0/0 into 0.
    """
    overlap = np.minimum(end, last)
    overlap -= np.maximum(start, first)
    np.maximum(overlap, 0.0, out=overlap)
    span = np.maximum(end, last)
    span -= np.minimum(start, first)
    np.maximum(span, _TINY, out=span)
    overlap /= span
    np.square(overlap, out=overlap)
    overlap /= -sigma
    return np.exp(overlap, out=overlap)


class GridSoftNMS:
    """`soft_nms` for segments on the grid of L snippets and D durations, decay rows remembered.

    One object serves all videos of a run: a row of factors is computed the first time its segment
    is picked. Same bits as `soft_nms(cells / L, scores, sigma, top_k)`.
    """

    def __init__(
        self, snippets: int, durations: int, sigma: float = 0.84, max_bytes: int = 2**28
    ) -> None:
        if not sigma > 0:
            raise ValueError(f"sigma is {sigma}; expected a positive number")
        self.snippets, self.sigma = snippets, sigma
        d, s = np.nonzero(np.add.outer(np.arange(durations), np.arange(snippets)) < snippets)
        self._row_of = np.full((snippets + 1, snippets + 1), -1, np.int64)
        self._row_of[s, s + d + 1] = np.arange(len(s))
        grid = np.stack([s, s + d + 1], axis=1) / snippets
        self._start, self._end = grid.T.copy()
        self._rows: dict[int, np.ndarray] = {}
        self._max_rows = max(1, max_bytes // (8 * len(s)))

    def __call__(
        self, cells: np.ndarray, scores: np.ndarray, top_k: int = 100
    ) -> tuple[np.ndarray, np.ndarray]:
        """Suppress.

        Args:
            cells: (N, 2) int, grid lines (start, end), 0 <= start < end <= L, end - start <= D.
            scores: (N,) finite.
        Returns:
            indices (K,) into the input, best first, and decayed scores (K,).
        """
        scores = np.asarray(scores, np.float64)
        if not np.isfinite(scores).all():
            raise ValueError("scores contain NaN or infinite values; check the maps")
        if len(scores) <= 1:
            return np.arange(len(scores)), scores.copy()
        order = np.argsort(-scores, kind="stable")
        where = self._row_of[cells[order, 0], cells[order, 1]]
        if (where < 0).any():
            raise ValueError("cells lie outside the grid; expected start < end, end - start <= D")

        def factors(rows: Any, among: slice) -> np.ndarray:
            if isinstance(rows, int):
                return self._row(int(where[rows])).take(where[among])
            late = [self._row(cell).take(where[among]) for cell in where[rows[:, 0]].tolist()]
            return np.array(late).reshape(len(rows), -1)

        picks, kept = _greedy(scores[order], factors, top_k)
        return order[picks], kept

    def _row(self, cell: int) -> np.ndarray:
        row = self._rows.get(cell)
        if row is None:
            if len(self._rows) >= self._max_rows:
                self._rows.pop(next(iter(self._rows)))  # the oldest
            first, last = self._start[cell], self._end[cell]
            row = self._rows[cell] = _decay(self._start, self._end, first, last, self.sigma)
        return row


def soft_nms_bmn(
    segments: Any,
    scores: Any,
    alpha: float = 0.4,
    low: float = 0.5,
    high: float = 0.9,
    top_k: int = 100,
) -> tuple[Any, Any]:
    """BMN's suppression: decays only above a tIoU that grows with the picked segment's length.

    The factor is exp(-tIoU^2 / alpha) where tIoU > low + (high - low) * length, so segments must
    be fractions of the video. One more than `top_k` is picked, zero scores included, then cut.

    Args:
        segments: (N, 2) start and end in [0, 1].
        scores: (N,) finite.
    Returns:
        As `soft_nms`.
    """
    spans, start_scores = _checked(segments, scores)
    if len(start_scores) <= 1:
        return _like(segments, scores, spans, start_scores)
    order = np.argsort(-start_scores, kind="stable")
    start, end = spans[order].T.copy()
    live = start_scores[order]
    length = end - start
    picks, kept = [], []
    for _ in range(min(top_k + 1, len(live) - 1)):
        best = int(live.argmax())
        picks.append(best)
        kept.append(live[best])
        live[best] = -np.inf
        overlap = np.maximum(np.minimum(end, end[best]) - np.maximum(start, start[best]), 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            tiou = overlap / (length - overlap + end[best] - start[best])
            hit = np.flatnonzero(tiou > low + (high - low) * length[best])
        hit = hit[live[hit] > -np.inf]
        live[hit] *= np.exp(-np.square(tiou[hit]) / alpha)
    kept = np.array(kept)
    best_first = np.argsort(-kept, kind="stable")[:top_k]
    return _like(segments, scores, spans[order[np.array(picks)[best_first]]], kept[best_first])


def _checked(segments: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both inputs as float64 arrays, shapes and finiteness checked."""
    spans, values = (
        x.detach().cpu().double().numpy() if hasattr(x, "detach") else np.asarray(x, np.float64)
        for x in (segments, scores)
    )
    if values.ndim != 1 or (spans.shape != (len(values), 2) and len(values)):
        raise ValueError(
            f"segments {spans.shape} and scores {values.shape}; expected (N, 2) and (N,)"
        )
    if not (np.isfinite(values).all() and np.isfinite(spans).all()):
        raise ValueError("segments or scores contain NaN or infinite values; check the maps")
    return spans.reshape(-1, 2), values


def _like(segments: Any, scores: Any, spans: np.ndarray, values: np.ndarray) -> tuple[Any, Any]:
    """Give results the container and floating dtype of the inputs."""
    results = []
    for source, result in ((segments, spans), (scores, values)):
        if hasattr(source, "detach"):
            dtype = source.dtype if source.dtype.is_floating_point else None
            results.append(source.new_tensor(result, dtype=dtype))
        elif isinstance(source, np.ndarray) and source.dtype.kind == "f":
            results.append(result.astype(source.dtype))
        else:
            results.append(result.copy())
    return results[0], results[1]
