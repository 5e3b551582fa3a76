"""Soft suppression as released with BMN; the quirks that `nms` names are here as well."""

from typing import Any

import numpy as np

from lofi.detection.nms import checked, like


def soft_nms_bmn(
    segments: Any, scores: Any, alpha: float = 0.4, top_k: int = 100
) -> tuple[Any, Any]:
    """BMN's suppression: decays only above a tIoU that grows with the picked segment's length.

    The factor is exp(-tIoU^2 / alpha) where tIoU > 0.5 + 0.4 * length, so segments must be
    fractions of the video. One more than `top_k` is picked, zero scores included, then cut.
    Arguments and results as in `soft_nms`.
    """
    low, high = 0.5, 0.9  # thresholds of a segment of length 0 and of the whole video
    spans, values = checked(segments, scores)
    if len(values) <= 1:
        return like(segments, spans), like(scores, values)
    by_start = np.argsort(spans[:, 0])
    index = np.argsort(np.argsort(-values, kind="stable"))[by_start]  # of equal maxima the first
    (start, end), live = spans[by_start].T.copy(), values[by_start]
    length, slack = end - start, 1e-6 * np.abs(spans).max()
    memory = np.empty((2, len(live)))
    picks = np.empty(min(top_k + 1, len(live) - 1), np.int64)
    kept = np.empty(len(picks))
    with np.errstate(invalid="ignore", divide="ignore"):
        for n in range(len(picks)):
            best = int(live.argmax())
            value, live[best] = live[best], -np.inf
            if live[live.argmax()] == value:  # a tie
                live[best] = value
                equal = np.flatnonzero(live == value)
                best = int(equal[index[equal].argmin()])
                live[best] = -np.inf
            picks[n], kept[n] = best, value
            first, last, size = start[best], end[best], length[best]
            end[best] = -np.inf  # gone: nothing overlaps with it
            if not size > 0:
                continue
            least = low + (high - low) * size
            # Who starts further away overlaps less, whatever the rounding.
            begin = int(start.searchsorted(first - size * (1 / least - 1) - slack))
            stop = int(start.searchsorted(first + size * (1 - least) + slack))
            overlap, span = memory[:, begin:stop]
            np.minimum(end[begin:stop], last, out=overlap)
            np.maximum(start[begin:stop], first, out=span)
            overlap -= span
            np.maximum(overlap, 0.0, out=overlap)
            np.subtract(length[begin:stop], overlap, out=span)  # released order
            span += last
            span -= first
            overlap /= span
            hit = (overlap > least).nonzero()[0]
            near, overlap = live[begin:stop], overlap[hit]
            near[hit] *= np.exp(-np.square(overlap) / alpha)
    best_first = np.argsort(-kept, kind="stable")[:top_k]
    spans = spans[by_start[picks[best_first]]]
    return like(segments, spans), like(scores, kept[best_first])
