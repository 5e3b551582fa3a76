"""Which detection takes which instance, at every tIoU threshold at once, and the AP of the outcome.

Everything is exact: the same comparisons and the same sums as one detection at a time would give,
in an order that suits arrays.
"""

import numpy as np

from lofi.evaluation.tables import Predictions, Truth

BLOCK = 2**15  # values handled at a time: they stay in the cache and in memory that is mapped


def average_precision(
    truth: Truth, found: Predictions, tious: np.ndarray, kind: str | None = "stable"
) -> tuple[np.ndarray, int]:
    """AP (T, classes), and how many predictions lie in videos without ground truth."""
    video, label = align(truth, found)
    order, sizes = best_first(label, found.scores, len(truth.classes), kind)
    rank = ranks(order, sizes)
    level, row, _ = match(truth, found, video, label, order, tious, kind)
    ap = np.zeros((len(tious), len(truth.classes)))
    key = label[row] * len(tious) + level
    sequence = np.lexsort((rank[row], key))
    key, found_at = key[sequence], rank[row[sequence]] + 1
    instances = np.bincount(truth.label, minlength=len(truth.classes)).tolist()
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    for mine in np.split(np.arange(len(key)), starts[1:]) if len(key) else ():
        c, t = divmod(int(key[mine[0]]), len(tious))
        ap[t, c] = interpolated_ap(found_at[mine[0] : mine[-1] + 1], instances[c])
    return ap, int(np.count_nonzero(video < 0))


def align(truth: Truth, found: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Predictions' videos (-1 = not in the ground truth) and labels as indices of the truth."""
    videos = {name: i for i, name in enumerate(truth.videos)}
    classes = {name: i for i, name in enumerate(truth.classes)}
    for i, name in enumerate(found.labels):
        if name not in classes:
            row = int(np.argmax(found.label == i))
            raise ValueError(
                f"label {name!r} (video {found.videos[found.video[row]]}) is not among the "
                f"{len(classes)} classes of subset {truth.subset!r}; check spelling and subset"
            )
    to_video = np.array([videos.get(name, -1) for name in found.videos], np.int64)
    to_class = np.array([classes[name] for name in found.labels], np.int64)
    return to_video[found.video], to_class[found.label]


def best_first(
    group: np.ndarray, scores: np.ndarray, groups: int, kind: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N,) ordered by group, then score falling; and the sizes (groups,) of the groups.

    Equal scores: the later row first, or as numpy's unstable sort leaves them (`kind` None).
    """
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
            if kind == "stable":
                ordered = np.take_along_axis(mine, rising, 1)
                tied = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
                rising[tied] = mine[tied].argsort(axis=1, kind="stable")
            order[places] = np.take_along_axis(rows, rising[:, ::-1], 1)
    return order, sizes


def ranks(order: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N,) place of every row in its group, 0 = best, from what `best_first` returns."""
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rank


def interpolated_ap(ranks: np.ndarray, instances: int) -> float:
    """Area under the precision envelope from the ranks (1-based) of the true positives.

    Recall only moves at true positives, and the envelope is attained there, so nothing else is
    needed; the closing point (recall 1, precision 0) stays because it changes how numpy sums.
    """
    count = np.arange(len(ranks) + 1.0)
    recall = count / instances
    envelope = np.maximum.accumulate((count[1:] / ranks)[::-1])[::-1]
    steps = np.zeros(len(ranks) + (recall[-1] != 1.0))
    np.multiply(recall[1:] - recall[:-1], envelope, out=steps[: len(ranks)])
    return float(steps.sum())


def match(
    truth: Truth,
    found: Predictions,
    video: np.ndarray,
    label: np.ndarray,
    order: np.ndarray,
    tious: np.ndarray,
    kind: str | None = "stable",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True positives: threshold index, prediction row and ground-truth row of each.

    Greedy inside every (video, class); all groups with the same number of ground truths advance
    together, one prediction each a step.

    Args:
        order: rows, best first inside each class.
    """
    key = truth.label * len(truth.videos) + truth.video
    truth_rows = np.argsort(key, kind="stable")  # file order inside a group
    groups, size = np.unique(key, return_counts=True)
    first_truth = np.cumsum(size) - size
    rows = order[video[order] >= 0]
    key = label[rows] * len(truth.videos) + video[rows]
    slot = np.minimum(np.searchsorted(groups, key), len(groups) - 1)
    hit = groups[slot] == key
    rows, slot = rows[hit], slot[hit]
    levels, winners, taken = [], [], []
    for count in np.unique(size).tolist():
        select = size[slot] == count
        mine, its_slot = rows[select], slot[select]
        truths = truth_rows[first_truth[its_slot][:, None] + np.arange(count)]
        tiou = pairwise_tiou(found.segments[mine][:, None], truth.segments[truths])  # (P, count)
        near = ~(tiou < tious.min()).all(axis=1)
        assign = _assign_single if count == 1 else _assign
        level, winner, place = assign(its_slot[near], tiou[near], tious, kind)
        levels.append(level)
        winners.append(mine[near][winner])
        taken.append(truths[near][winner, place])
    return np.concatenate(levels), np.concatenate(winners), np.concatenate(taken)


def _assign_single(
    group: np.ndarray, tiou: np.ndarray, tious: np.ndarray, kind: str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`_assign` where every group has one ground truth: the first that overlaps enough wins."""
    levels, winners = [], []
    first = np.empty(int(group.max(initial=-1)) + 1, np.int64)
    for t, threshold in enumerate(tious.tolist()):
        rows = np.flatnonzero(~(tiou[:, 0] < threshold))
        first[group[rows[::-1]]] = rows[::-1]  # the first is written last
        winner = rows[first[group[rows]] == rows]
        levels.append(np.full(len(winner), t))
        winners.append(winner)
    level = np.concatenate(levels)
    return level, np.concatenate(winners), np.zeros_like(level)


def _assign(
    group: np.ndarray, tiou: np.ndarray, tious: np.ndarray, kind: str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True positives (threshold index, row, place of the truth) among P predictions in order.

    A prediction takes the first free truth in falling order of tIoU; NaN comes first and passes.

    Args:
        group: (P,) which predictions compete.
        tiou: (P, count) with the ground truths of their group.
    """
    preference = np.argsort(tiou, axis=1, kind=kind)[:, ::-1]
    ranked = np.take_along_axis(tiou, preference, 1)
    passes = ~(ranked[:, None, :] < tious[None, :, None])  # (P, T, count)
    groups, member = np.unique(group, return_inverse=True)
    step = _place_in_group(member)
    free = np.ones((len(groups), len(tious), tiou.shape[1]), bool)
    found = [np.zeros((3, 0), np.int64)]
    by_step = np.argsort(step, kind="stable")
    for rows in np.split(by_step, np.flatnonzero(np.diff(step[by_step])) + 1):
        choice = preference[rows][:, None, :]  # (R, 1, count)
        state = free[member[rows]]  # (R, T, count)
        open_ = passes[rows] & np.take_along_axis(state, np.broadcast_to(choice, state.shape), 2)
        r, t = np.nonzero(open_.any(2))
        best = open_[r, t].argmax(1)
        place = choice[r, 0, best]
        free[member[rows[r]], t, place] = False
        found.append(np.stack([t, rows[r], place]))
    level, winner, place = np.concatenate(found, axis=1)
    return level, winner, place


def _place_in_group(member: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... for the first, second, third occurrence of every value."""
    order = np.argsort(member, kind="stable")
    counts = np.bincount(member)
    place = np.empty(len(member), np.int64)
    place[order] = np.arange(len(member)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place


def pairwise_tiou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """tIoU of broadcast segments (..., 2); 0/0 is NaN, reversed segments as in the toolkit."""
    return overlap_ratio(a[..., 0], a[..., 1], b[..., 0], b[..., 1])


def overlap_ratio(
    a_start: np.ndarray, a_end: np.ndarray, b_start: np.ndarray, b_end: np.ndarray
) -> np.ndarray:
    """`pairwise_tiou` of starts and ends that lie apart."""
    overlap = np.minimum(a_end, b_end)
    overlap -= np.maximum(a_start, b_start)
    np.maximum(overlap, 0.0, out=overlap)
    union = (b_end - b_start) + (a_end - a_start)
    union -= overlap
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(overlap, union, out=overlap)
