"""Which detection takes which instance, at every tIoU threshold at once, and the AP of the outcome.

Everything is exact: the same comparisons and the same sums as one detection at a time would give,
in an order that suits arrays.
"""

from collections.abc import Iterator, Sequence
from copy import copy

import numpy as np

from lofi.evaluation.columns import Predictions, Truth

BLOCK = 2**15  # values handled at a time: they stay in the cache and in memory that is mapped


class Matches:
    """Which detection takes which instance of its class, at every threshold.

    `near` (N,): detections that may, where it is known that no other overlaps enough; None = all.

    Attributes:
        found: the detections, their labels as indices of the truth's classes.
        video: (N,) index of their video in the truth, -1 = not there.
        order, sizes, rank: detections of a class, best first: `best_first` and `ranks`.
        level, row, hit: of each true positive the index of threshold, detection and instance; by
            class, level and rank.
        instances: (classes,) of the truth.
    """

    def __init__(self, truth: Truth, found: Predictions, tious: np.ndarray, near=None) -> None:
        videos = {name: i for i, name in enumerate(truth.videos)}
        classes = {name: i for i, name in enumerate(truth.classes)}
        for i in np.flatnonzero(np.bincount(found.label)).tolist():  # the labels that occur
            if found.labels[i] not in classes:
                video = found.videos[found.video[np.argmax(found.label == i)]]
                raise ValueError(
                    f"label {found.labels[i]!r} (video {video}) is not among the {len(classes)} "
                    f"classes of subset {truth.subset!r}; check spelling and subset"
                )
        to_video = np.array([videos.get(name, -1) for name in found.videos], np.int32)
        to_class = np.array([classes.get(name, -1) for name in found.labels], np.int32)
        self.video, label = to_video[found.video], to_class[found.label]
        self.found = found._replace(labels=truth.classes, label=label)
        self.truth, self.tious = truth, tious
        self.order, self.sizes = best_first(label, found.scores, len(classes))
        self.rank = ranks(self.order, self.sizes)
        self.level, self.row, self.hit = self._match(near)
        self.instances = np.bincount(truth.label, minlength=len(classes))

    def at(self, tious: np.ndarray, near: np.ndarray) -> "Matches":
        """The same at other thresholds, with `near` as above."""
        other = copy(self)
        other.tious = tious
        other.level, other.row, other.hit = other._match(near)
        return other

    def _match(self, near: np.ndarray | None) -> np.ndarray:
        """level, row and hit, greedily inside every (video, class); all groups with about as many
        ground truths advance together."""
        truth, segments, tious = self.truth, self.found.segments, self.tious
        key = truth.label * len(truth.videos) + truth.video
        truth_rows = np.argsort(key, kind="stable")  # file order inside a group
        if not truth.toolkit:  # there, 0/0 overlap passes every threshold
            long = truth.segments[:, 1] > truth.segments[:, 0]
            truth_rows, key = truth_rows[long[truth_rows]], key[long]
        groups, size = np.unique(key, return_counts=True)
        first = np.cumsum(size) - size
        parts = [np.zeros((3, 0), np.int64)]
        order = self.order if near is None else self.order[near[self.order]]
        near = [np.zeros((2, 0), np.int64)]  # rows and groups of predictions that overlap enough
        for low in range(0, len(order) if len(groups) else 0, BLOCK):
            rows = order[low : low + BLOCK]
            key = self.found.label[rows].astype(np.int64) * len(truth.videos) + self.video[rows]
            slot = np.minimum(np.searchsorted(groups, key), len(groups) - 1)
            hit = (groups[slot] == key) & (self.video[rows] >= 0)
            rows, slot = rows[hit], slot[hit]
            owner, place = pairs(size[slot])
            truths = truth_rows[first[slot][owner] + place]
            tiou = tiou_of(segments[rows].T[:, owner], truth.segments.T[:, truths])
            owner = owner[~(tiou < tious.min())]
            owner = owner[np.diff(owner, prepend=-1) != 0]
            near.append(np.stack([rows[owner], slot[owner]]))
        rows, slot = np.concatenate(near, axis=1)
        step = np.argsort(slot, kind="stable")  # group after group, best first
        rows, slot = rows[step], slot[step]
        widths = 2 ** np.arange(int(size.max(initial=1)).bit_length() + 1)
        width = widths[np.searchsorted(widths, size)][slot]
        for count in np.unique(width).tolist():
            mine, its = rows[width == count], slot[width == count]
            place = np.arange(count)[:, None]
            truths = truth_rows[first[its] + np.minimum(place, size[its] - 1)]
            tiou = tiou_of(segments[mine].T[:, None], truth.segments.T[:, truths])  # (count, P)
            tiou[place >= size[its]] = -1.0  # stands for none
            level, winner, place = _assign(its, tiou, tious)
            parts.append(np.stack([level, mine[winner], truths[place, winner]]))
        level, row, hit = np.concatenate(parts, axis=1)
        sequence = np.lexsort((self.rank[row], level, self.found.label[row]))
        return np.stack([level, row, hit])[:, sequence]

    def average_precision(
        self, kept: np.ndarray | None = None, instances: np.ndarray | None = None
    ) -> np.ndarray:
        """AP (T, classes): area under the envelope of precision over recall.

        Recall only moves at true positives, and the envelope is attained there, so nothing else is
        needed; the closing point (recall 1, precision 0) stays because it changes how numpy sums.
        `kept` (N,): as if all others, none of them a true positive, were not there; `instances`
        (classes,): as if there were as many.
        """
        instances = self.instances if instances is None else instances
        ap = np.zeros((len(self.tious), len(instances)))
        key, rank = self.key, self.rank[self.row]
        if kept is not None:
            before = (np.cumsum(self.sizes) - self.sizes)[key // len(self.tious)]
            count = np.append(0, np.cumsum(kept[self.order]))
            rank = count[before + rank] - count[before]
        for run in equal_runs(key):
            c, t = np.divmod(key[run[:, 0]], len(self.tious))
            recall = np.arange(run.shape[1] + 1.0) / instances[c, None]
            precision = np.arange(1.0, run.shape[1] + 1.0) / (rank[run] + 1)
            steps = np.zeros(recall.shape)
            steps[:, :-1] = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            steps[:, :-1] *= np.diff(recall)
            whole = recall[:, -1] == 1.0
            ap[t[~whole], c[~whole]] = steps[~whole].sum(axis=1)
            ap[t[whole], c[whole]] = steps[whole, :-1].copy().sum(axis=1)
        return ap

    @property
    def key(self) -> np.ndarray:
        """Of each true positive class · T + level, which never falls."""
        return self.found.label[self.row].astype(np.int64) * len(self.tious) + self.level


def pairs(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For counts (P,): 0 … P - 1, each repeated as often as its count says, and 0 … count - 1."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def equal_runs(key: np.ndarray) -> Iterator[np.ndarray]:
    """Places (k, n) of the k runs of equal keys that are n long, for every n."""
    first = np.flatnonzero(np.diff(key, prepend=-1))
    lengths = np.diff(first, append=len(key))
    for length in np.unique(lengths).tolist():
        yield first[lengths == length, None] + np.arange(length)


def best_first(group: np.ndarray, scores: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N,) ordered by group, then score falling, of equal scores the later row first; and the
    sizes (groups,) of the groups."""
    small = group.astype(np.uint16) if groups < 2**16 else group  # radix sort
    order = np.argsort(small, kind="stable")
    sizes = np.bincount(group, minlength=groups)
    starts = np.cumsum(sizes) - sizes
    for size in np.unique(sizes[sizes > 1]).tolist():  # groups of one size together
        first = starts[sizes == size]
        block = max(1, BLOCK // size)
        for low in range(0, len(first), block):
            places = first[low : low + block, None] + np.arange(size)
            rows = order[places]
            mine = scores[rows]
            rising = mine.argsort(axis=1)
            ordered = np.take_along_axis(mine, rising, 1)
            tied = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
            rising[tied] = mine[tied].argsort(axis=1, kind="stable")  # slow, so only where needed
            order[places] = np.take_along_axis(rows, rising[:, ::-1], 1)
    return order, sizes


def ranks(order: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N,) place of every row in its group, 0 = best, from what `best_first` returns."""
    first = np.cumsum(sizes, dtype=np.int32) - sizes.astype(np.int32)
    rank = np.empty(len(order), np.int32)  # half the memory, of many
    rank[order] = np.arange(len(order), dtype=np.int32) - np.repeat(first, sizes)
    return rank


def _assign(group: np.ndarray, tiou: np.ndarray, tious: np.ndarray) -> np.ndarray:
    """(3, hits) threshold index, row and place of the truth of the true positives.

    Of P predictions with tIoU (count, P) to the truths of their group (P,), group after group and
    best first, each takes the first free truth in falling order of tIoU; NaN comes first and
    passes. In every round the first prediction of each group that can take one does.
    """
    found, best = [np.zeros((3, 0), np.int64)], tiou.max(axis=0)
    for t, threshold in enumerate(tious):
        rows = np.flatnonzero(~(best < threshold))
        open_ = ~(tiou[:, rows] < threshold)
        while len(rows):
            new = np.diff(group[rows], prepend=-1) != 0
            order = np.argsort(tiou[:, rows[new]], axis=0, kind="stable")[::-1]
            chosen = np.take_along_axis(open_[:, new], order, 0).argmax(axis=0)
            place = order[chosen, np.arange(len(chosen))]
            found.append(np.stack([np.full(len(place), t), rows[new], place]))
            open_[place[np.cumsum(new) - 1], np.arange(len(rows))] = False
            left = open_.any(axis=0) & ~new
            rows, open_ = rows[left], open_[:, left]
    return np.concatenate(found, axis=1)


def tiou_of(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> np.ndarray:
    """tIoU of segments given as (starts, ends), arrays that broadcast; 0/0 is NaN, reversed
    segments as in the toolkit."""
    (a_start, a_end), (b_start, b_end) = a, b
    overlap = np.minimum(a_end, b_end)
    overlap -= np.maximum(a_start, b_start)
    np.maximum(overlap, 0.0, out=overlap)
    union = (b_end - b_start) + (a_end - a_start)
    union -= overlap
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(overlap, union, out=overlap)
