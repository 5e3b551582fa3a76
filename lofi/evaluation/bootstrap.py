"""How sure mAP is: its spread under other choices of videos."""

from typing import Any

import numpy as np

from lofi.evaluation.detection import load
from lofi.evaluation.matching import Matches


def video_draws(
    ground_truth: Any, detections: Any, tious: Any = None, subset: str | None = None,
    protocol: str = "activitynet", resamples: int = 1000, seed: int = 0, strict: bool = True,
) -> np.ndarray:  # fmt: skip
    """mAP under other choices of videos, (resamples, tIoUs + 1), the average last; see `interval`.

    The videos are drawn anew, as many with replacement (not the instances: those of one video hang
    together), and mAP is recomputed over the classes that are then there. The model is given: how
    another training run would differ is not in it. Two detection files of the same videos get the
    same draws, so that their differences are paired. Arguments as in `detection_map`.
    """
    given = ground_truth, detections, tious, subset, protocol
    return draws_of(Matches(*load(*given, strict=strict)), resamples, seed)


def draws_of(matches: Matches, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """`video_draws` of what is matched already."""
    truth, classes = matches.truth, len(matches.instances)
    count, generator = len(truth.videos), np.random.default_rng(seed)
    key, row = matches.key, matches.row
    label = matches.found.label[row]
    first = np.flatnonzero(np.diff(key, prepend=-1))  # true positives of a class and threshold
    group = np.repeat(np.arange(len(first)), np.diff(first, append=len(key)))
    before = np.cumsum(matches.sizes) - matches.sizes
    place = before[label] + matches.rank[row]  # in `order`
    # How many detections are listed matters at true positives alone: what lies between two of them
    # is counted once a video, so that a draw costs no more for ten times as many detections.
    ends, at = np.unique(np.append(before[label], place + 1), return_inverse=True)
    sizes = np.diff(ends, prepend=0, append=len(matches.order))
    part = np.repeat(np.arange(len(ends) + 1) * (count + 1), sizes)
    part += matches.video[matches.order] % (count + 1)  # -1 is the last
    part, times = np.unique(part, return_counts=True)
    part, whose = np.divmod(part, count + 1)
    low, high = np.searchsorted(part, np.arange(len(ends)), "right")[at].reshape(2, -1)
    owner, annotated = matches.video[row], truth.video
    found = []
    for _ in range(resamples):
        weight = np.bincount(generator.integers(count, size=count), minlength=count)
        weight = np.append(weight, 1.0)  # videos outside the subset stay, at index -1
        instances = np.bincount(truth.label, weight[annotated], classes)
        seen = np.append(0.0, np.cumsum(weight[whose] * times))
        listed = seen[high] - seen[low]
        mine = weight[owner]
        hits = np.cumsum(mine)
        hits -= (hits - mine)[first][group] if len(first) else 0.0
        precision = hits / np.maximum(listed, 1.0) - 2.0 * group  # falls from group to group
        envelope = np.maximum.accumulate(precision[::-1])[::-1] + 2.0 * group
        gained = np.bincount(key, mine * envelope, classes * len(matches.tious))
        there = instances > 0
        ap = gained.reshape(classes, -1)[there] / instances[there, None]
        found.append(np.append(ap.mean(0), ap.mean()))
    return np.array(found)


def interval(draws: np.ndarray, found: np.ndarray | None = None) -> np.ndarray:
    """(…, 2) low and high end of the middle 95 % along the first axis.

    With what was `found` on all videos the draws are moved so that their mean lies there: the best
    precision from a recall on is higher on average in videos of which some are repeated, and with
    many detections the middle of the draws may even leave the value out. No end leaves [0, 1].
    """
    ends = np.moveaxis(np.quantile(draws, (0.025, 0.975), axis=0), 0, -1)
    return ends if found is None else (ends + (found - draws.mean(0))[..., None]).clip(0, 1)
