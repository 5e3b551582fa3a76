"""Post-processing and evaluation against the slow, obvious way, in the same run.

    python tests/benchmarks/postprocessing.py [--json OUT] [--quick] [--loops] [--large]

The references below are written from the description of the algorithms, one candidate or one
prediction at a time; the tests use them as oracles.  Both sides run in turns in one process, one
thread; a row gives medians of process CPU time, their ratio, and whether results are equal to the
last bit.

What a ratio is against stands in its row.  "Data frames" (3 minutes, needs pandas) is how the
ActivityNet toolkit is written, with a row lookup per prediction; the project's goals of 200, 100
and 140 mean that.  "Plain loops" over dictionaries are ten times faster for mAP and about the same
for AR@AN; they are used with `--loops` or without pandas, with floors that show a regression.

`--large` does something else: it writes a file of ten million detections (1 GB) and runs `lofi
evaluate` on it, whose peak memory has to stay below 4 GiB.
"""

import argparse
import importlib.util
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lofi.detection import GridSoftNMS, soft_nms, soft_nms_bmn
from lofi.evaluation import detection_map, diagnose, proposal_recall
from lofi.evaluation.detection import load as load_tables

TIOUS = np.linspace(0.5, 0.95, 10)
Span = tuple[float, float]


# ---- suppression, one candidate at a time ----


def plain_overlap(a: Span, b: Span) -> float:
    """tIoU of two segments, 0 when disjoint, NaN for 0/0."""
    if a[0] > b[1] or b[0] > a[1]:
        return 0.0
    return (min(a[1], b[1]) - max(a[0], b[0])) / (max(a[1], b[1]) - min(a[0], b[0]))


def plain_soft_nms(
    segments: np.ndarray, scores: np.ndarray, sigma: float, top_k: int = 100
) -> np.ndarray:
    """(score, start, end) rows as the G-TAD rule gives them."""
    order = np.argsort(-scores, kind="stable")
    live, start, end = list(scores[order]), list(segments[order, 0]), list(segments[order, 1])
    if len(live) == 1:
        return np.array([[live[0], start[0], end[0]]])
    kept = []
    while len(live) > 1 and len(kept) < top_k and max(live) > 0:
        best = live.index(max(live))
        score, span = live.pop(best), (start.pop(best), end.pop(best))
        kept.append((score, *span))
        for i in range(len(live)):
            tiou = plain_overlap(span, (start[i], end[i]))
            if tiou > 0:
                live[i] = live[i] * np.exp(-np.square(tiou) / sigma)
    return np.array(kept).reshape(-1, 3)


def plain_soft_nms_bmn(
    segments: np.ndarray,
    scores: np.ndarray,
    alpha: float = 0.4,
    low: float = 0.5,
    high: float = 0.9,
) -> np.ndarray:
    """(score, start, end) rows as the BMN rule gives them, at most 100."""
    order = np.argsort(-scores, kind="stable")
    live, start, end = list(scores[order]), list(segments[order, 0]), list(segments[order, 1])
    if len(live) == 1:
        return np.array([[live[0], start[0], end[0]]])
    kept = []
    while len(live) > 1 and len(kept) < 101:
        best = live.index(max(live))
        score, span = live.pop(best), (start.pop(best), end.pop(best))
        kept.append((score, *span))
        for i in range(len(live)):
            common = max(0.0, min(span[1], end[i]) - max(span[0], start[i]))
            tiou = common / (end[i] - start[i] - common + span[1] - span[0])
            if tiou > low + (high - low) * (span[1] - span[0]):
                live[i] = live[i] * np.exp(-np.square(tiou) / alpha)
    return np.array(sorted(kept, key=lambda row: -row[0])[:100]).reshape(-1, 3)


def plain_tiou(a: Span, b: Span) -> float:
    """Overlap over union as the evaluation defines it, NaN for 0/0."""
    common = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (b[1] - b[0]) + (a[1] - a[0]) - common
    if union == 0:
        return math.nan if common == 0 else math.inf
    return common / union


# ---- mAP, one prediction at a time ----


def plain_map(
    ground_truth: dict[str, Any], results: dict[str, Any], subset: str, tious: Sequence[float]
) -> np.ndarray:
    """AP (classes x tIoUs), classes in order of appearance, of equal scores the later first."""
    truth: dict[str, dict[str, list[Span]]] = {}
    for video, entry in ground_truth["database"].items():
        if entry["subset"] == subset:
            for a in entry["annotations"]:
                span = tuple(map(float, a["segment"]))
                truth.setdefault(a["label"], {}).setdefault(video, []).append(span)
    predictions: dict[str, list[tuple[float, str, Span]]] = {label: [] for label in truth}
    for video, entries in results["results"].items():
        for p in entries:
            predictions[p["label"]].append((p["score"], video, tuple(p["segment"])))
    return np.array(
        [[plain_ap(truth[c], predictions[c], t) for t in tious] for c in truth], np.float64
    )


def plain_ap(
    truth: dict[str, list[Span]], predictions: list[tuple[float, str, Span]], tiou: float
) -> float:
    """AP of one class at one threshold."""
    scores = [p[0] for p in predictions]
    order = np.argsort(scores, kind="stable")[::-1]
    taken = {video: [False] * len(spans) for video, spans in truth.items()}
    positive = np.zeros(len(order))
    for rank, i in enumerate(order):
        _, video, span = predictions[i]
        if video not in truth:
            continue
        overlaps = np.array([plain_tiou(span, other) for other in truth[video]])
        for j in overlaps.argsort(kind="stable")[::-1]:
            if overlaps[j] < tiou:
                break
            if not taken[video][j]:
                taken[video][j] = True
                positive[rank] = 1
                break
    hits = np.cumsum(positive)
    instances = float(sum(map(len, truth.values())))
    recall = hits / instances
    precision = hits / (hits + np.cumsum(1 - positive))
    return plain_area(precision, recall)


def plain_area(precision: np.ndarray, recall: np.ndarray) -> float:
    """Area under the envelope, all points."""
    precision = np.hstack([[0], precision, [0]])
    recall = np.hstack([[0], recall, [1]])
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    step = np.where(recall[1:] != recall[:-1])[0] + 1
    return float(np.sum((recall[step] - recall[step - 1]) * precision[step]))


# ---- the same with data frames, the way evaluation toolkits are written ----


def frames(ground_truth: dict[str, Any], results: dict[str, Any], subset: str) -> tuple[Any, Any]:
    """Annotations and predictions, a row each."""
    import pandas as pd

    truth = pd.DataFrame(
        [
            (video, a["label"], float(a["segment"][0]), float(a["segment"][1]))
            for video, entry in ground_truth["database"].items()
            if entry["subset"] == subset
            for a in entry["annotations"]
        ],
        columns=["video", "label", "start", "end"],
    )
    predictions = pd.DataFrame(
        [
            (video, p["label"], *p["segment"], p["score"])
            for video, entries in results["results"].items()
            for p in entries
        ],
        columns=["video", "label", "start", "end", "score"],
    )
    return truth, predictions


def frame_map(
    ground_truth: dict[str, Any], results: dict[str, Any], subset: str, tious: Sequence[float]
) -> np.ndarray:
    """`plain_map` on data frames; needs pandas."""
    truth, predictions = frames(ground_truth, results, subset)
    by_label = predictions.groupby("label")
    classes = truth["label"].unique()
    none = predictions.iloc[:0]
    return np.array(
        [
            frame_ap(
                truth[truth["label"] == c].reset_index(drop=True),
                by_label.get_group(c) if c in by_label.groups else none,
                tious,
            )
            for c in classes
        ]
    )


def frame_ap(truth: Any, predictions: Any, tious: Sequence[float]) -> list[float]:
    """AP of one class at all thresholds: one walk, ground truth looked up by group."""
    order = predictions["score"].values.argsort(kind="stable")[::-1]
    predictions = predictions.iloc[order].reset_index(drop=True)
    by_video = truth.groupby("video")
    taken = np.zeros((len(tious), len(truth)), bool)
    positive = np.zeros((len(tious), len(predictions)))
    for i, row in predictions.iterrows():
        try:
            mine = by_video.get_group(row["video"]).reset_index()
        except KeyError:
            continue
        common = np.minimum(row["end"], mine["end"].values)
        common = np.clip(common - np.maximum(row["start"], mine["start"].values), 0, None)
        union = (mine["end"].values - mine["start"].values) + (row["end"] - row["start"]) - common
        overlaps = common / union
        falling = overlaps.argsort(kind="stable")[::-1]
        for t, threshold in enumerate(tious):
            for j in falling:
                if overlaps[j] < threshold:
                    break
                if not taken[t, mine.loc[j, "index"]]:
                    taken[t, mine.loc[j, "index"]] = True
                    positive[t, i] = 1
                    break
    hits = np.cumsum(positive, axis=1)
    found = hits + np.cumsum(1 - positive, axis=1)
    return [plain_area(h / f, h / float(len(truth))) for h, f in zip(hits, found)]


# ---- AR@AN, one video at a time ----


def plain_recall(
    ground_truth: dict[str, Any], results: dict[str, Any], subset: str, limit: int | None
) -> tuple[np.ndarray, float]:
    """recall (10, 100) and AUC in percent."""
    truth = {
        video: [tuple(map(float, a["segment"])) for a in entry["annotations"]]
        for video, entry in ground_truth["database"].items()
        if entry["subset"] == subset and entry["annotations"]
    }
    found = results["results"]
    total = sum(map(len, found.values()))
    average = total / len(truth) if limit is None else limit
    ratio = average * float(len(truth)) / total
    overlaps = []
    for video, spans in truth.items():
        mine = found.get(video, [])
        order = np.argsort([p["score"] for p in mine], kind="stable")[::-1]
        mine = [mine[i] for i in order][: min(int(len(mine) * ratio), len(mine))]
        rows = [[plain_tiou(s, tuple(p["segment"])) for p in mine] for s in spans]
        overlaps.append(np.array(rows).reshape(len(spans), len(mine)))
    return plain_curve(overlaps, average)


def plain_curve(overlaps: list[np.ndarray], average: float) -> tuple[np.ndarray, float]:
    """Recall and AUC from the tIoUs (ground truth x kept proposals, best first) of every video."""
    kept = sum(rows.shape[1] for rows in overlaps)
    recall = np.zeros((10, 100))
    shares = np.arange(1, 101) / 100.0 * (average * float(len(overlaps)) / max(kept, 1))
    for t, threshold in enumerate(TIOUS):
        for rows in overlaps:
            recalls = rows >= threshold
            for k, share in enumerate(shares):
                count = min(int(rows.shape[1] * share), rows.shape[1])
                recall[t, k] += np.count_nonzero(recalls[:, :count].sum(axis=1) > 0)
    recall /= sum(len(rows) for rows in overlaps)
    axis = shares * (float(kept) / len(overlaps))
    curve = recall.mean(axis=0)
    area = np.sum((axis[1:] - axis[:-1]) * (curve[1:] + curve[:-1]) / 2.0)
    return recall, float(100.0 * area / axis[-1])


def frame_recall(
    ground_truth: dict[str, Any], results: dict[str, Any], subset: str, limit: int
) -> tuple[np.ndarray, float]:
    """`plain_recall` with the tables in data frames; needs pandas."""
    truth, found = frames(ground_truth, results, subset)
    truth_of, found_of = truth.groupby("video"), found.groupby("video")
    videos = truth["video"].unique()
    ratio = limit * float(len(videos)) / len(found)
    overlaps = []
    for video in videos:
        spans = truth_of.get_group(video)[["start", "end"]].values
        if video not in found_of.groups:
            overlaps.append(np.zeros((len(spans), 0)))
            continue
        mine = found_of.get_group(video)
        order = mine["score"].values.argsort(kind="stable")[::-1]
        mine = mine.iloc[order][: min(int(len(mine) * ratio), len(mine))][["start", "end"]].values
        rows = np.empty((len(spans), len(mine)))
        for i, (start, end) in enumerate(spans):
            common = np.minimum(end, mine[:, 1]) - np.maximum(start, mine[:, 0])
            common = np.clip(common, 0, None)
            rows[i] = common / ((mine[:, 1] - mine[:, 0]) + (end - start) - common)
        overlaps.append(rows)
    return plain_curve(overlaps, limit)


# ---- data of the measured size ----


def grid_proposals(seed: int, snippets: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """All released anchors of one video (4,950 at L = 100) with head-like scores."""
    rng = np.random.default_rng(seed)
    d, s = np.nonzero(np.add.outer(np.arange(snippets), np.arange(snippets)) + 1 < snippets)
    centre, width = rng.uniform(0.2, 0.8, 3) * snippets, rng.uniform(5, 40, 3)
    quality = sum(
        np.exp(-(((s + d / 2 - c) / w) ** 2) - ((d - w) / w) ** 2) for c, w in zip(centre, width)
    )
    scores = quality * rng.uniform(0.5, 1, len(s)) * 0.5 + rng.uniform(0, 0.05, len(s))
    return np.stack([s, s + d + 1], 1), scores


def challenge(
    videos: int, per_video: int, classes: int = 200, seed: int = 0
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ground truth and detections of ActivityNet's validation size; two classes a video."""
    rng = np.random.default_rng(seed)
    names = [f"class {i:03d}" for i in range(classes)]
    database, results = {}, {}
    for v in range(videos):
        duration = rng.uniform(10, 230)
        count = min(18, 1 + rng.poisson(0.54))
        cuts = np.sort(rng.uniform(0, duration, 2 * count)).reshape(-1, 2).round(2)
        true, other = names[v % classes], names[rng.integers(classes)]
        database[f"v{v}"] = {
            "subset": "validation",
            "duration": duration,
            "annotations": [{"segment": c, "label": true} for c in cuts.tolist()],
        }
        base = cuts[rng.integers(len(cuts), size=per_video)]
        spans = base + rng.normal(0, 0.15, (per_video, 2)) * (base[:, 1:] - base[:, :1] + 1)
        spans = np.sort(np.clip(spans, 0, duration), axis=1).tolist()
        scores = rng.uniform(0, 1, per_video).tolist()
        labels = [true if x < 0.5 else other for x in rng.uniform(size=per_video)]
        results[f"v{v}"] = [
            {"label": a, "score": x, "segment": s} for a, x, s in zip(labels, scores, spans)
        ]
    database |= {  # every class occurs, whatever the number of videos
        f"rare{i}": {"subset": "validation", "annotations": [{"segment": [0, 1], "label": name}]}
        for i, name in enumerate(names[videos:])
    }
    return {"database": database}, {"version": "", "results": results, "external_data": {}}


# ---- measuring ----


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process for one call, and what it returned."""
    start = time.process_time()
    value = function()
    return time.process_time() - start, value


def compare(
    name: str,
    goal: float,
    plain: Callable[[], Any],
    ours: Callable[[], Any],
    equal: Callable[[Any, Any], bool],
    repeats: int = 3,
    inner: int = 5,
) -> dict[str, Any]:
    """Run both sides in turns; `inner` calls of ours per call of the plain side."""
    slow, fast = [], []
    for _ in range(repeats):
        cost, expected = seconds(plain)
        slow.append(cost)
        for _ in range(inner):
            cost, got = seconds(ours)
            fast.append(cost)
    plain_s, ours_s = statistics.median(slow), statistics.median(fast)
    row = {
        "name": name,
        "plain_s": plain_s,
        "ours_s": ours_s,
        "ratio": plain_s / ours_s,
        "goal": goal,
        "equal": bool(equal(expected, got)),
    }
    print(
        f"{name:42s} plain {plain_s:9.4f} s   ours {ours_s:9.5f} s   ratio {row['ratio']:8.1f}   "
        f"goal {goal:g}   {'equal' if row['equal'] else 'DIFFERENT'}",
        flush=True,
    )
    return row


def measure(name: str, videos: int, ours: Callable[[], Any], repeats: int = 5) -> None:
    """Print what has no plain side: CPU seconds, median and range."""
    times = [seconds(ours)[0] for _ in range(repeats)]
    middle = f"{statistics.median(times):9.5f} s ({min(times):.3f} to {max(times):.3f})"
    print(f"{f'{name}, {videos} x 100':42s} ours {middle}", flush=True)


def bytes_a_detection(
    folder: Path, evaluate: Callable[[Path, Path], Any], videos: int = 400
) -> float:
    """Growth of the peak of everything allocated, from 100 to 250 detections a video."""
    counts, peaks = (100, 250), []
    for count in counts:
        paths = [folder / name for name in ("small truth.json", "small results.json")]
        for path, content in zip(paths, challenge(videos, count)):
            path.write_text(json.dumps(content))
        tracemalloc.start()
        evaluate(*paths)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return (peaks[1] - peaks[0]) / (videos * (counts[1] - counts[0]))


def suppression_rows(repeats: int) -> list[dict[str, Any]]:
    """Soft-NMS of 4,950 proposals to 100."""
    cells, scores = grid_proposals(0)
    segments = cells / 100

    def equal(expected: Any, got: Any) -> bool:
        return np.array_equal(expected, np.column_stack([got[1], got[0]]))

    def equal_grid(expected: Any, got: Any) -> bool:
        return equal(expected, (segments[got[0]], got[1]))

    grid = GridSoftNMS(100, 100, 0.84)
    for seed in range(200):  # rows remembered from other videos of a run
        grid(*grid_proposals(seed))
    return [
        compare(
            "soft-NMS, any segments",
            90,
            lambda: plain_soft_nms(segments, scores, 0.84),
            lambda: soft_nms(segments, scores, 0.84),
            equal,
            repeats,
        ),
        compare(
            "soft-NMS, anchor grid",
            500,
            lambda: plain_soft_nms(segments, scores, 0.84),
            lambda: grid(cells, scores),
            equal_grid,
            repeats,
            20,
        ),
        compare(
            "soft-NMS, BMN rule",
            45,
            lambda: plain_soft_nms_bmn(segments, scores),
            lambda: soft_nms_bmn(segments, scores),
            equal,
            repeats,
        ),
    ]


def evaluation_rows(videos: int, repeats: int, data_frames: bool) -> list[dict[str, Any]]:
    """mAP and AR@AN at the size of ActivityNet's validation set."""
    truth, results = challenge(videos, 100)
    precision, recall = (frame_map, frame_recall) if data_frames else (plain_map, plain_recall)
    goals = (200, 100, 140, 100) if data_frames else (18, 7, 110, 30)  # see the top of this file

    def same_map(expected: Any, got: Any) -> bool:
        return np.array_equal(expected, np.array(got.ap))

    def same_recall(expected: Any, got: Any) -> bool:
        return np.array_equal(expected[0], np.array(got.recall)) and expected[1] == got.auc

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("truth.json", "results.json")]
        for path, content in zip(paths, (truth, results)):
            path.write_text(json.dumps(content))

        def load() -> list[Any]:
            return [json.loads(path.read_text()) for path in paths]

        measure("the json module alone", videos, load)
        measure("load", videos, lambda: load_tables(*paths, None, None, "activitynet"))
        measure("diagnosis and JSON load", videos, lambda: diagnose(*paths))
        for name, score in (("mAP", detection_map), ("AR@AN", proposal_recall)):
            size = bytes_a_detection(Path(folder), score)
            print(f"peak memory of {name} from files: {size:.0f} B a detection")
        size = f"{videos} x 100 ({'data frames' if data_frames else 'plain loops'})"
        return [
            compare(
                f"mAP, {size}",
                goals[0],
                lambda: precision(truth, results, "validation", TIOUS),
                lambda: detection_map(truth, results),
                same_map,
                repeats,
            ),
            compare(
                f"mAP and JSON load, {size}",
                goals[1],
                lambda: precision(*load(), "validation", TIOUS),
                lambda: detection_map(*paths),
                same_map,
                repeats,
            ),
            compare(
                f"AR@AN, {size}",
                goals[2],
                lambda: recall(truth, results, "validation", 100),
                lambda: proposal_recall(truth, results),
                same_recall,
                repeats,
            ),
            compare(
                f"AR@AN and JSON load, {size}",
                goals[3],
                lambda: recall(*load(), "validation", 100),
                lambda: proposal_recall(*paths),
                same_recall,
                repeats,
            ),
        ]


def large(videos: int = 20_000, per_video: int = 500) -> None:
    """Peak memory and CPU seconds of `lofi evaluate` on so many detections, in a process."""
    with tempfile.TemporaryDirectory() as folder:
        truth, results = (Path(folder) / name for name in ("truth.json", "results.json"))
        database: dict[str, Any] = {}
        with open(results, "w") as file:
            file.write('{"version": "", "results": {')
            for low in range(0, videos, 200):  # as many as there are classes
                some, found = challenge(200, per_video, seed=low)
                names = {name: f"v{low + i}" for i, name in enumerate(some["database"])}
                database |= {names[name]: entry for name, entry in some["database"].items()}
                lines = (f'"{names[v]}": {json.dumps(f)}' for v, f in found["results"].items())
                file.write(", " * (low > 0) + ", ".join(lines))
            file.write('}, "external_data": {}}')
        truth.write_text(json.dumps({"database": database}))
        command = [sys.executable, "-m", "lofi", "evaluate", str(truth), str(results)]
        began = time.perf_counter()
        subprocess.run(command, check=True)
        wall = time.perf_counter() - began
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        size, cpu = results.stat().st_size / 1e9, used.ru_utime + used.ru_stime
        gib = used.ru_maxrss / 2**20
        print(f"{videos * per_video:,} detections, {size:.2f} GB: peak {gib:.2f} "
              f"GiB (goal 4), CPU {cpu:.0f} s, wall {wall:.0f} s")  # fmt: skip


def main() -> None:
    """Print a table; write it with the machine's description."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--quick", action="store_true", help="a tenth of the videos, one repeat")
    parser.add_argument("--loops", action="store_true", help="compare with plain loops")
    parser.add_argument("--large", action="store_true", help="only ten million detections")
    options = parser.parse_args()
    if options.large:
        return large()
    videos, repeats = (473, 1) if options.quick else (4728, 3)
    rows = suppression_rows(repeats)
    frames = not options.loops and importlib.util.find_spec("pandas") is not None
    rows += evaluation_rows(videos, 1 if options.quick or frames else 2, frames)
    if options.json:
        machine = {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "machine": platform.machine(),
            "system": platform.system(),
        }
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
