"""From the maps of a head to a table of candidate segments.

Sources: the released inference rules of G-TAD (Xu et al., CVPR 2020; `gtad` is its ActivityNet and
HACS rule, `thumos` its THUMOS14 rule) and BMN (Lin et al., ICCV 2019).  A map has D durations and
L snippets; cell (d, s) is the segment from grid line s to grid line s + d + 1, in units of 1/L of
the video (or of the window).

What the released rules do and a reader would not expect:
  * the segment's end must be < L, so no proposal reaches the last grid line (`include_video_end`
    lifts that; the score of grid line L is then the one of the last snippet, L - 1);
  * the end score is read at s + d + 1, one snippet behind the last one inside the segment;
  * G-TAD uses start and end scores only to pick candidates, BMN only to score them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lofi.detection.nms import soft_nms

RULES = ("gtad", "thumos", "bmn")
DEFAULT_SCORE = {"gtad": "cls*reg", "thumos": "cls*reg", "bmn": "start*end*cls*reg"}


class Proposals(NamedTuple):
    """Candidates of one video, N rows in the order of the released tables."""

    segments: np.ndarray  # (N, 2) float64, seconds, [start, end)
    scores: np.ndarray  # (N,) float64
    cells: np.ndarray  # (N, 2) int64, grid lines (start, end) with 0 <= start < end <= L
    snippets: int  # L
    parts: dict[str, np.ndarray]  # cls, reg, start, end: (N,) float32, what the score is made of

    @property
    def unit_segments(self) -> np.ndarray:
        """(N, 2) segments as fractions of the video: suppression works on these."""
        return self.cells / self.snippets

    def frames(self, first_frame: int, frame_stride: int) -> np.ndarray:
        """(N, 2) segments in frames, for maps of a window that starts at `first_frame`."""
        return (first_frame + frame_stride * self.cells).astype(np.float64)


def proposals(
    maps: Any,
    duration_s: float,
    rule: str = "gtad",
    include_video_end: bool = False,
    score: str | None = None,
) -> Proposals:
    """List the candidate segments of one video with their scores.

    Args:
        maps: (confidence (2, D, L), start (L,), end (L,)), tensors or arrays, a leading batch
            dimension of 1 allowed; channel 0 of confidence is regression, 1 classification.
        duration_s: length of the video in seconds.
        rule: `gtad` (start and end must be candidates), `thumos` or `bmn` (all cells).
        include_video_end: also list segments that end at the very end of the video.
        score: product of `cls`, `reg`, `start`, `end` joined by `*`; None = the rule's own.
    Returns:
        Row order: by duration then start (`gtad`, `thumos`), by start then end (`bmn`). Scores are
        products in float64, in float32 for `bmn`, as released.
    Raises:
        ValueError: unknown rule or score term, maps of the wrong shape, non-positive duration.
    """
    if rule not in RULES:
        raise ValueError(f"rule {rule!r} is unknown; choose one of {', '.join(RULES)}")
    if not duration_s > 0:
        raise ValueError(f"duration_s is {duration_s}; expected the video's length, > 0 seconds")
    terms = score_terms(score or DEFAULT_SCORE[rule])
    confidence, start, end = _one_video(maps)
    durations, snippets = confidence.shape[1:]
    ends = snippets + 1 if include_video_end else snippets  # exclusive
    valid = np.add.outer(np.arange(durations), np.arange(snippets)) + 1 < ends
    if rule == "gtad":
        valid &= _candidate_pairs(start, end, durations)
    if rule == "bmn":
        s, d = np.nonzero(valid.T)
    else:
        d, s = np.nonzero(valid)
    e = s + d + 1
    parts = {
        "cls": confidence[1, d, s],
        "reg": confidence[0, d, s],
        "start": start[s],
        "end": end[np.minimum(e, snippets - 1)],
    }
    dtype = np.float32 if rule == "bmn" else np.float64
    scores = np.ones(len(s), dtype)
    for term in terms:
        scores = scores * parts[term].astype(dtype)
    cells = np.stack([s, e], axis=1)
    return Proposals(
        cells / snippets * duration_s, scores.astype(np.float64), cells, snippets, parts
    )


def score_terms(score: str) -> list[str]:
    """Split `cls*reg` and the like into its terms; ValueError names an unknown one."""
    terms = [term.strip() for term in score.split("*")]
    for term in terms:
        if term not in ("cls", "reg", "start", "end"):
            raise ValueError(f"score {score!r}: unknown term {term!r}; use cls, reg, start, end")
    return terms


def boundary_candidates(score: np.ndarray) -> np.ndarray:
    """(L,) bool: strict local maxima and values above half the maximum, among snippets 1..L-2."""
    inner = score[1:-1]
    peak = (inner > score[:-2]) & (inner > score[2:])
    found = np.zeros(len(score), bool)
    found[1:-1] = peak | (inner > 0.5 * score.max())
    return found


def _candidate_pairs(start: np.ndarray, end: np.ndarray, durations: int) -> np.ndarray:
    """(D, L) bool: both ends of the cell are candidates (G-TAD)."""
    snippets = len(start)
    starts = boundary_candidates(start)
    starts[0] = True
    ends = np.zeros(snippets + durations + 1, bool)  # beyond L: only reached when invalid
    ends[:snippets] = boundary_candidates(end)
    ends[[snippets - 1, snippets]] = True
    line = np.add.outer(np.arange(durations), np.arange(snippets)) + 1
    return starts[None, :] & ends[line]


def _one_video(maps: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Check shapes and bring the three maps to float32 arrays without batch dimension."""
    confidence, start, end = (_array(part) for part in maps)
    if confidence.ndim == 4 and confidence.shape[0] == 1:
        confidence = confidence[0]
        start, end = start.reshape(start.shape[-1]), end.reshape(end.shape[-1])
    snippets = confidence.shape[-1]
    good = confidence.ndim == 3 and confidence.shape[0] == 2 and snippets >= 2
    if not good or start.shape != (snippets,) or end.shape != (snippets,):
        raise ValueError(
            f"maps have shapes {confidence.shape}, {start.shape}, {end.shape}; expected (2, D, L), "
            "(L,), (L,) of one video: pass one element of the batch"
        )
    if not (np.isfinite(start).all() and np.isfinite(end).all() and np.isfinite(confidence).all()):
        raise ValueError("maps contain NaN or infinite values; check the head and its input")
    return confidence, start, end


def _array(part: Any) -> np.ndarray:
    if hasattr(part, "detach"):
        part = part.detach().float().cpu().numpy()
    return np.asarray(part, np.float32)


def join_windows(
    windows: Sequence[tuple[np.ndarray, np.ndarray]],
    sigma: float = 0.46,
    top_k: int = 200,
    max_frames: int = 300,
) -> tuple[np.ndarray, np.ndarray]:
    """Merge the proposals of one video's sliding windows (G-TAD, THUMOS14).

    Suppression runs inside every window, then over the union. Segments of `max_frames` or more
    get score 0 before each pass.

    Args:
        windows: per window segments (N, 2) in frames of the video and scores (N,).
    Returns:
        segments (K, 2) in frames and scores (K,), K <= top_k, best first.
    """

    def suppress(segments: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        too_long = segments[:, 1] - segments[:, 0] >= max_frames
        return soft_nms(segments, np.where(too_long, 0.0, scores), sigma, top_k)

    kept = [suppress(np.asarray(seg, np.float64), np.asarray(sc)) for seg, sc in windows]
    if not kept:
        return np.zeros((0, 2)), np.zeros(0)
    return suppress(np.concatenate([k[0] for k in kept]), np.concatenate([k[1] for k in kept]))
