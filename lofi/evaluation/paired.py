"""Two methods on the same seeds: how far one leads, how sure that is, and a verdict."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np

SEEDS = 5  # that a verdict needs


class Paired(NamedTuple):
    """Differences A − B, one a seed, in the unit that they came in."""

    mean: float
    sd: float  # NaN for one seed, as the interval
    low: float  # ends of the 95 % interval of the mean (Student's t, n − 1)
    high: float
    above: int  # seeds on which A leads
    n: int


def paired(differences: Sequence[float]) -> Paired:
    """Mean, spread and interval of at least one difference."""
    count, mean = len(differences), fmean(differences)
    sd = stdev(differences) if count > 1 else math.nan
    half = student(count - 1) * sd / math.sqrt(count) if count > 1 else math.nan
    above = sum(difference > 0 for difference in differences)
    return Paired(mean, sd, mean - half, mean + half, above, count)


def student(freedom: int) -> float:
    """The t that the middle 95 % of Student's distribution lie within; sums 100,000 slices."""
    lines = np.linspace(0, math.pi / 2, 100_001)  # t = √freedom · tan, density cos^(freedom - 1)
    mass = np.cumsum(np.cos((lines[1:] + lines[:-1]) / 2) ** (freedom - 1))
    return math.sqrt(freedom) * math.tan(np.interp(0.95, mass / mass[-1], lines[1:]))


def verdict(
    differences: Sequence[float], errors: float = 3.0, least: float = 0.0, every: bool = False
) -> str:
    """ "reproduced": the mean is `errors` standard errors above 0, at least `least`, and where
    `every` is set no seed is at or below 0; "contradicted": as many errors below `least`."""
    if len(differences) < SEEDS:
        return f"no verdict below {SEEDS} seeds"
    mean = fmean(differences)
    margin = errors * stdev(differences) / math.sqrt(len(differences))
    if mean > 0 and mean >= max(margin, least) and (not every or min(differences) > 0):
        return "reproduced"
    below = mean < least and mean - least <= -margin
    return "contradicted" if below else "not established"
