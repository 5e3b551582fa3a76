"""Ground truth and predictions as columns: files and objects in, flat arrays out.

Predictions number in the hundreds of thousands, so their columns are built by comprehensions over
whole files; only when one fails is the file walked entry by entry to name the culprit.
"""

import gc
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lofi.files import read_json

POST_PROCESSING = "post_processing"  # key of `external_data` in a detection file


class Truth(NamedTuple):
    """Annotations of one subset, in file order; videos without annotations are left out."""

    subset: str
    videos: tuple[str, ...]  # ids, order of first appearance
    classes: tuple[str, ...]  # order of first appearance
    video: np.ndarray  # (G,) index into videos
    label: np.ndarray  # (G,) index into classes
    segments: np.ndarray  # (G, 2) seconds
    durations: np.ndarray  # (videos,) seconds, NaN where the source has none

    def select(self, rows: np.ndarray) -> "Truth":
        """The instances where `rows` (G,) is true; videos and classes without any vanish."""
        video, place = _compact(self.video[rows])
        label, number = _compact(self.label[rows])
        return Truth(
            self.subset,
            tuple(self.videos[v] for v in video.tolist()),
            tuple(self.classes[c] for c in label.tolist()),
            place,
            number,
            self.segments[rows],
            self.durations[video],
        )

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
    external: Mapping[str, Any] = {}  # what the file says about itself

    def select(self, rows: np.ndarray) -> "Predictions":
        """The predictions of these rows: (N,) bool, or indices in the order wanted."""
        return self._replace(
            video=self.video[rows],
            label=self.label[rows] if self.labels else self.label,
            scores=self.scores[rows],
            segments=self.segments[rows],
        )

    @property
    def post_processing(self) -> Any:
        """How the detections were made from maps, None when the file does not say."""
        return self.external.get(POST_PROCESSING)

    @property
    def source(self) -> dict[str, Any]:
        """What else the file says: method, encoder, seed, ..."""
        return {k: v for k, v in self.external.items() if k != POST_PROCESSING}


def truth_table(source: Any, subset: str, ignore: frozenset[str] = frozenset()) -> Truth:
    """Collect the annotations of a subset (exact name).

    Args:
        source: path, ActivityNet-format dict, or list of `lofi.data.Video`.
        ignore: labels to leave out.
    Raises:
        ValueError: no annotation in this subset (names the subsets there are), malformed entries.
    """
    what = str(source) if isinstance(source, str | Path) else "ground truth"
    with _collection_paused():
        rows = list(_truth_rows(source, what))
    videos: dict[str, int] = {}
    classes: dict[str, int] = {}
    video, labels, segments, durations = [], [], [], []
    for name, its_subset, duration, annotations in rows:
        if its_subset != subset:
            continue
        if ignore:
            annotations = [a for a in annotations if a[2] not in ignore]
        if annotations and name not in videos:
            durations.append(duration)
            videos[name] = len(videos)
        for start, end, its_label in annotations:
            video.append(videos[name])
            labels.append(classes.setdefault(its_label, len(classes)))
            segments += (start, end)
    if not segments:
        subsets = sorted({str(row[1]) for row in rows})
        raise ValueError(
            f"{what}: no annotated video in subset {subset!r} ({len(rows)} videos, subsets: "
            f"{', '.join(subsets) or 'none'}); choose one of these"
        )
    return Truth(
        subset,
        tuple(videos),
        tuple(classes),
        np.array(video),
        np.array(labels),
        np.array(segments, np.float64).reshape(-1, 2),
        np.array(durations, np.float64),
    )


def _compact(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values in order of first appearance, and every value's place among them."""
    distinct, first, place = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return distinct[order], np.argsort(order)[place]


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


def read_fast(path: str | Path, what: str) -> Any:
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
            source = read_fast(path, "annotations in ActivityNet format")
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
        external: Any = {}
        if isinstance(source, Mapping) and isinstance(source.get("results"), Mapping):
            source, external = source["results"], source.get("external_data")
        if not isinstance(source, Mapping):
            raise ValueError(f"{what}: {type(source).__name__}; expected a dict, id -> detections")
        table = Predictions(tuple(source), *_columns(source, with_labels, what))
        table = table._replace(external=external if isinstance(external, Mapping) else {})
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
    content = read_fast(path, "detections in ActivityNet format")
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
    counts = [len(entries) for entries in lists]
    index: dict[str, int] = {}
    as_dicts = any(isinstance(entries[0], Mapping) for entries in lists if entries)
    numbers = _dict_numbers if as_dicts else _object_numbers
    width = 4 if with_labels else 3
    try:
        flat = np.fromiter(
            numbers(chain.from_iterable(lists), index if with_labels else None),
            np.float64,
            width * sum(counts),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(_culprit(results, with_labels, what)) from None
    columns = flat.reshape(-1, width)
    label = columns[:, 3].astype(np.int64) if with_labels else np.zeros(0, np.int64)
    video = np.repeat(np.arange(len(lists)), counts)
    return video, tuple(index), label, columns[:, 2], columns[:, :2]


def _dict_numbers(entries: Iterable[Any], index: dict[str, int] | None) -> Iterator[Any]:
    """start, end, score and (with `index`, which it fills) label of entries as in JSON.

    One pass over half a million dicts is bound by memory: nothing is kept of them.
    """
    if index is None:
        for entry in entries:
            start, end = entry["segment"]
            yield start
            yield end
            yield entry["score"]
        return
    number = index.setdefault
    for entry in entries:
        start, end = entry["segment"]
        yield start
        yield end
        yield entry["score"]
        yield number(entry["label"], len(index))


def _object_numbers(entries: Iterable[Any], index: dict[str, int] | None) -> Iterator[Any]:
    """`_dict_numbers` of `Detection`s."""
    for d in entries:
        yield d.start_s
        yield d.end_s
        yield d.score
        if index is not None:
            yield index.setdefault(d.label, len(index))


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
