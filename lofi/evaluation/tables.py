"""Ground truth and predictions as columns: files and objects in, flat arrays out.

Predictions number in the hundreds of thousands, so their columns are built by comprehensions over
whole files; only when one fails is the file walked entry by entry to name the culprit.
"""

import gc
import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lofi.files import read_json


class Truth(NamedTuple):
    """Annotations of one subset, in file order; videos without annotations are left out."""

    subset: str
    videos: tuple[str, ...]  # ids, order of first appearance
    classes: tuple[str, ...]  # order of first appearance
    video: np.ndarray  # (G,) index into videos
    label: np.ndarray  # (G,) index into classes
    segments: np.ndarray  # (G, 2) seconds
    durations: np.ndarray  # (videos,) seconds, NaN where the source has none

    @property
    def video_list_hash(self) -> str:
        """First 12 hex digits of SHA-256 over the sorted ids: which videos were evaluated."""
        return hashlib.sha256("\n".join(sorted(self.videos)).encode()).hexdigest()[:12]


class Predictions(NamedTuple):
    """Detections or proposals in file order."""

    videos: tuple[str, ...]  # ids in the file
    video: np.ndarray  # (N,) index into videos
    labels: tuple[str, ...]  # names in the file, () for proposals
    label: np.ndarray  # (N,) index into labels
    scores: np.ndarray  # (N,)
    segments: np.ndarray  # (N, 2) seconds


def truth_table(source: Any, subset: str, ignore: frozenset[str] = frozenset()) -> Truth:
    """Collect the annotations of a subset (exact name).

    Args:
        source: path, ActivityNet-format dict, or list of `lofi.data.Video`.
        ignore: labels to leave out.
    Raises:
        ValueError: no annotation in this subset (names the subsets there are), malformed entries.
    """
    what = str(source) if isinstance(source, str | Path) else "ground truth"
    rows = list(_truth_rows(source, what))
    subsets = sorted({str(row[1]) for row in rows})
    videos: dict[str, int] = {}
    classes: dict[str, int] = {}
    video, label, segments, durations = [], [], [], []
    for name, its_subset, duration, annotations in rows:
        if its_subset != subset:
            continue
        for start, end, its_label in annotations:
            if its_label in ignore:
                continue
            if name not in videos:
                durations.append(duration)
            video.append(videos.setdefault(name, len(videos)))
            label.append(classes.setdefault(its_label, len(classes)))
            segments.append((start, end))
    if not segments:
        raise ValueError(
            f"{what}: no annotated video in subset {subset!r} ({len(rows)} videos, subsets: "
            f"{', '.join(subsets) or 'none'}); choose one of these"
        )
    return Truth(
        subset,
        tuple(videos),
        tuple(classes),
        np.array(video),
        np.array(label),
        np.array(segments, np.float64),
        np.array(durations, np.float64),
    )


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Half a million small dicts are built and dropped twice as fast without garbage collection."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _load(path: str | Path, what: str) -> Any:
    """`read_json` by orjson where that is installed (three times as fast).

    What orjson refuses (NaN, broken files) goes to `read_json`, which has the error messages.
    """
    try:
        import orjson

        return orjson.loads(Path(path).read_bytes())
    except (ImportError, OSError, ValueError):
        return read_json(path, what)


TruthRow = tuple[str, str | None, float, list[tuple[float, float, str]]]


def _truth_rows(source: Any, what: str) -> Iterable[TruthRow]:
    """(id, subset, duration, [(start, end, label)]) per video."""
    if isinstance(source, str | Path):
        path, source = source, None
        if Path(path).suffix.lower() == ".json":
            source = _load(path, "annotations in ActivityNet format")
        if not isinstance(source, Mapping) or "database" not in source:  # the other formats
            from lofi.data.annotations import read_annotations

            source = read_annotations(path)
    if not isinstance(source, Mapping):
        for v in source:
            rows = [(s.start_s, s.end_s, s.label) for s in v.segments]
            yield v.id, v.subset, float("nan") if v.duration_s is None else v.duration_s, rows
        return
    if not isinstance(source.get("database"), Mapping):
        raise ValueError(
            f'{what}: no "database"; expected {{"database": {{id: {{"subset", "annotations": '
            '[{"label", "segment"}]}}}'
        )
    for name, entry in source["database"].items():
        try:
            rows = [
                (float(a["segment"][0]), float(a["segment"][1]), a["label"])
                for a in entry.get("annotations", ())
            ]
            duration = float(entry.get("duration", "nan"))
            yield name, entry["subset"], duration, rows
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise ValueError(
                f'{what}: video {name} is malformed; expected {{"subset", "annotations": '
                '[{"label": name, "segment": [start_s, end_s]}]}'
            ) from None


def prediction_table(source: Any, with_labels: bool) -> Predictions:
    """Collect detections (`with_labels`) or proposals.

    Args:
        source: path (ActivityNet-format JSON or our CSV), such a dict, or a dict from id to a list
            of `Detection`, to a list of such JSON entries, or to arrays (segments (N, 2), scores).
    Raises:
        ValueError: malformed entries, scores or times that are not finite.
    """
    what = str(source) if isinstance(source, str | Path) else "predictions"
    with _collection_paused():
        if isinstance(source, str | Path):
            source = _read_results(Path(source))
        if isinstance(source, Mapping) and isinstance(source.get("results"), Mapping):
            source = source["results"]
        if not isinstance(source, Mapping):
            raise ValueError(f"{what}: {type(source).__name__}; expected a dict, id -> detections")
        table = Predictions(tuple(source), *_columns(source, with_labels, what))
        del source
    if not (np.isfinite(table.scores).all() and np.isfinite(table.segments).all()):
        finite = np.isfinite(table.scores) & np.isfinite(table.segments).all(1)
        first = int(np.argmin(finite))
        raise ValueError(
            f"{what}: video {table.videos[table.video[first]]} has a score or time that is not a "
            f"finite number ({table.scores[first]}, {table.segments[first].tolist()}); drop it"
        )
    return table


def _read_results(path: Path) -> Any:
    if path.suffix.lower() == ".csv":
        from lofi.detection.results import read_detections

        return read_detections(path)
    content = _load(path, "detections in ActivityNet format")
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise ValueError(
            f'{path}: no "results"; expected {{"version", "results": {{id: [...]}}, '
            '"external_data"}'
        )
    return content


Columns = tuple[np.ndarray, tuple[str, ...], np.ndarray, np.ndarray, np.ndarray]


def _columns(results: Mapping[str, Any], with_labels: bool, what: str) -> Columns:
    """video, labels, label, scores, segments."""
    lists = list(results.values())
    if lists and isinstance(lists[0], tuple) and len(lists[0]) == 2 and not with_labels:
        return _array_columns(lists)
    video = np.repeat(np.arange(len(lists)), [len(entries) for entries in lists])
    times, scores, label = array("d"), array("d"), array("q")
    index: dict[str, int] = {}
    add_time, add_score = times.append, scores.append
    try:
        if any(isinstance(entries[0], Mapping) for entries in lists if entries):
            for entry in chain.from_iterable(lists):
                start, end = entry["segment"]
                add_time(start)
                add_time(end)
                add_score(entry["score"])
                if with_labels:
                    label.append(index.setdefault(entry["label"], len(index)))
        else:
            for d in chain.from_iterable(lists):
                add_time(d.start_s)
                add_time(d.end_s)
                add_score(d.score)
                if with_labels:
                    label.append(index.setdefault(d.label, len(index)))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(_culprit(results, with_labels, what)) from None
    segments = np.array(times, np.float64).reshape(-1, 2)
    return video, tuple(index), np.array(label, np.int64), np.array(scores, np.float64), segments


def _array_columns(lists: list[Any]) -> Columns:
    counts = [len(scores) for _, scores in lists]
    segments = [np.asarray(s, np.float64).reshape(-1, 2) for s, _ in lists]
    scores = [np.asarray(scores, np.float64) for _, scores in lists]
    video = np.repeat(np.arange(len(lists)), counts)
    return video, (), np.zeros(0, np.int64), np.concatenate(scores), np.concatenate(segments)


def _culprit(results: Mapping[str, Any], with_labels: bool, what: str) -> str:
    """One line about the first malformed entry."""
    expected = '{"label": name, ' if with_labels else "{"
    expected += '"score": number, "segment": [start_s, end_s]}'
    for video, entries in results.items():
        for position, entry in enumerate(entries):
            try:
                if not isinstance(entry, Mapping):
                    entry = {"segment": entry.segment, "score": entry.score, "label": entry.label}
                start, end = entry["segment"]
                float(start), float(end), float(entry["score"])
                if with_labels:
                    hash(entry["label"])
            except (AttributeError, KeyError, TypeError, ValueError):
                return f"{what}: video {video}, entry {position} is {entry}; expected {expected}"
    return f"{what}: malformed; expected a list of {expected} per video"
