"""Ground truth and predictions as columns: files and objects in, flat arrays out.

Predictions number in the hundreds of thousands, so their columns are filled in one pass over whole
files; only when that fails is the file walked entry by entry to name the culprit.
"""

import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lofi.files import read_json

MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError)


class Truth(NamedTuple):
    """Annotations of one subset, in file order; videos without annotations are left out."""

    subset: str
    videos: tuple[str, ...]  # ids, order of first appearance
    classes: tuple[str, ...]  # order of first appearance
    video: np.ndarray  # (G,) index into videos
    label: np.ndarray  # (G,) index into classes
    segments: np.ndarray  # (G, 2) seconds
    durations: np.ndarray  # (videos,) seconds, NaN where the source has none

    @staticmethod
    def of(subset: str, videos: Any, labels: Any, segments: Any, durations: Any) -> "Truth":
        """From one id, label, segment and duration of the video per instance."""
        videos, video = _numbered(videos)
        classes, label = _numbered(labels)
        durations = np.array(durations, float)[np.unique(video, return_index=True)[1]]
        return Truth(subset, videos, classes, video, label, np.array(segments), durations)

    def select(self, rows: np.ndarray) -> "Truth":
        """The instances where `rows` (G,) is true; videos and classes without any vanish."""
        video, label = self.video[rows], self.label[rows]
        videos, labels = (self.videos[v] for v in video), (self.classes[c] for c in label)
        return Truth.of(self.subset, videos, labels, self.segments[rows], self.durations[video])


class Predictions(NamedTuple):
    """Detections or proposals in file order."""

    videos: tuple[str, ...]  # ids in the file
    video: np.ndarray  # (N,) index into videos
    labels: tuple[str, ...]  # names in the file, () for proposals
    label: np.ndarray  # (N,) index into labels, all 0 for proposals
    scores: np.ndarray  # (N,)
    segments: np.ndarray  # (N, 2) seconds
    post_processing: Any = None  # how they were made from maps, when the file says so
    source: Mapping[str, Any] = {}  # what else the file says: method, encoder, seed, ...

    def select(self, rows: np.ndarray) -> "Predictions":
        """The predictions of these rows: (N,) bool, or indices in the order wanted."""
        names = ("video", "label", "scores", "segments")
        return self._replace(**{name: getattr(self, name)[rows] for name in names})


def _numbered(names: Iterable[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The distinct names in order of first appearance, and every name's place among them."""
    place: dict[str, int] = {}
    numbers = [place.setdefault(name, len(place)) for name in names]
    return tuple(place), np.array(numbers, np.int64)


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


def _read_fast(path: str | Path, what: str) -> Any:
    """`read_json` three times as fast; that one gets what orjson refuses: NaN, broken files."""
    import orjson

    try:
        return orjson.loads(Path(path).read_bytes())
    except (OSError, ValueError):
        return read_json(path, what)


@_collection_paused()
def truth_table(source: Any, subset: str, ignore: frozenset[str] = frozenset()) -> Truth:
    """Collect the annotations of a subset (exact name), without the labels to `ignore`.

    `source`: path, ActivityNet-format dict, or list of `lofi.data.Video`. ValueError for malformed
    entries, or no annotation in this subset (names the subsets there are).
    """
    what = str(source) if isinstance(source, str | Path) else "ground truth"
    videos = list(_annotated(source, what))
    rows = [
        (name, label, segment, duration)
        for name, its_subset, duration, annotations in videos
        if its_subset == subset
        for label, segment in annotations
        if label not in ignore
    ]
    if not rows:
        subsets = sorted({str(video[1]) for video in videos})
        raise ValueError(
            f"{what}: no annotated video in subset {subset!r} ({len(videos)} videos, subsets: "
            f"{', '.join(subsets) or 'none'}); choose one of these"
        )
    return Truth.of(subset, *zip(*rows))


def _annotated(source: Any, what: str) -> Iterator[tuple[str, str | None, float, list]]:
    """(id, subset, duration, [(label, (start, end))]) per video."""
    if isinstance(source, str | Path):
        path, source = source, None
        if Path(path).suffix.lower() == ".json":
            source = _read_fast(path, "annotations in ActivityNet format")
        if not isinstance(source, Mapping) or "database" not in source:  # the other formats
            from lofi.data.annotations import read_annotations

            source = read_annotations(path)
    if not isinstance(source, Mapping):
        for v in source:
            rows = [(s.label, (float(s.start_s), float(s.end_s))) for s in v.segments]
            yield v.id, v.subset, np.nan if v.duration_s is None else v.duration_s, rows
        return
    entry_form = '{"subset", "annotations": [{"label": name, "segment": [start_s, end_s]}]}'
    if not isinstance(source.get("database"), Mapping):
        raise ValueError(f'{what}: no "database"; expected {{"database": {{id: {entry_form}}}}}')
    for name, entry in source["database"].items():
        try:
            rows = [
                (a["label"], (float(a["segment"][0]), float(a["segment"][1])))
                for a in entry.get("annotations", ())
            ]
            yield name, entry["subset"], float(entry.get("duration", "nan")), rows
        except MALFORMED:
            raise ValueError(f"{what}: video {name} is malformed; expected {entry_form}") from None


@_collection_paused()
def prediction_table(source: Any, with_labels: bool) -> Predictions:
    """Collect detections (`with_labels`) or proposals.

    `source`: path (ActivityNet-format JSON or our CSV), such a dict, or a dict from id to a list of
    `Detection`, to a list of such JSON entries, or to arrays (segments (N, 2), scores). ValueError
    for malformed entries, and for scores or times that are not finite.
    """
    what = str(source) if isinstance(source, str | Path) else "predictions"
    if isinstance(source, str | Path) and Path(source).suffix.lower() == ".csv":
        from lofi.detection.results import read_detections

        source = read_detections(source)
    elif isinstance(source, str | Path):
        source = _read_fast(source, "detections in ActivityNet format")
        if not isinstance(source, dict) or not isinstance(source.get("results"), dict):
            form = '{"version", "results": {id: [...]}, "external_data"}'
            raise ValueError(f'{what}: no "results"; expected {form}')
    external = None
    if isinstance(source, Mapping) and isinstance(source.get("results"), Mapping):
        source, external = source["results"], source.get("external_data")
    if not isinstance(source, Mapping):
        raise ValueError(f"{what}: {type(source).__name__}; expected a dict, id -> detections")
    external = dict(external) if isinstance(external, Mapping) else {}
    made = external.pop("post_processing", None)
    table = Predictions(tuple(source), *_columns(source, with_labels, what), made, external)
    finite = np.isfinite(table.scores) & np.isfinite(table.segments).all(axis=1)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ValueError(
            f"{what}: video {table.videos[table.video[first]]} has a score or time that is not a "
            f"finite number ({table.scores[first]}, {table.segments[first].tolist()}); drop it"
        )
    return table


def _columns(results: Mapping[str, Any], with_labels: bool, what: str) -> tuple:
    """video, labels, label, scores, segments of `Predictions`."""
    lists, index = list(results.values()), {} if with_labels else None
    if lists and isinstance(lists[0], tuple) and len(lists[0]) == 2 and not with_labels:
        counts = [len(scores) for _, scores in lists]
        pairs = [np.column_stack([np.reshape(s, (-1, 2)), scores]) for s, scores in lists]
        columns = np.concatenate(pairs, dtype=np.float64)
    else:
        counts, width = [len(entries) for entries in lists], 4 if with_labels else 3
        as_dicts = any(isinstance(entries[0], Mapping) for entries in lists if entries)
        numbers = _numbers(chain.from_iterable(lists), as_dicts, index)
        try:
            columns = np.fromiter(numbers, np.float64, width * sum(counts)).reshape(-1, width)
        except MALFORMED:
            raise ValueError(f"{what}: {_culprit(results, as_dicts, index)}") from None
    label = columns[:, 3].astype(np.int64) if with_labels else np.zeros(len(columns), np.int64)
    video = np.repeat(np.arange(len(lists)), counts)
    return video, tuple(index or ()), label, columns[:, 2], columns[:, :2]


def _numbers(entries: Iterable[Any], as_dicts: bool, index: dict[str, int] | None) -> Iterator[Any]:
    """start, end, score and (with `index`, which it fills) label of JSON entries or `Detection`s.

    One pass over half a million dicts is bound by memory: nothing is kept of them.
    """
    if as_dicts:
        named = index is not None
        entries = ((*e["segment"], e["label"] if named else "", e["score"]) for e in entries)
    for start, end, label, score in entries:
        yield start
        yield end
        yield score
        if index is not None:
            yield index.setdefault(label, len(index))


def _culprit(results: Mapping[str, Any], as_dicts: bool, index: dict[str, int] | None) -> str:
    """What is wrong with the first malformed entry."""
    form = '"score": number, "segment": [start_s, end_s]}'
    form = "{" + form if index is None else '{"label": name, ' + form
    for video, entries in results.items():
        for position, entry in enumerate(entries):
            try:
                list(map(float, _numbers([entry], as_dicts, index)))
            except MALFORMED:
                return f"video {video}, entry {position} is {entry}; expected {form}"
    return f"malformed; expected a list of {form} per video"


def restrict(truth: Truth, found: Predictions, available: Any) -> tuple[Truth, Predictions]:
    """Both tables as if only the videos that could be had existed in the ground truth.

    Classes that then have no instance vanish, with their predictions; predictions in videos that
    the ground truth never had stay.

    `available`: "auto" = every video with an entry (perhaps empty) in the prediction file; a path:
    text with one id a line, JSON list, or JSON with "database" or "results"; or the ids. A prefix
    `v_` is dropped where the id is then known. ValueError where none of them is annotated.
    """
    ids = set(found.videos)
    if not isinstance(available, str) or available != "auto":
        ids = set(map(str, _read_ids(available)))
        ids |= {name.removeprefix("v_") for name in ids}
    keep = np.array([name in ids for name in truth.videos])
    if not keep.any():
        raise ValueError(
            f"none of the {len(ids)} available videos is among the {len(truth.videos)} annotated "
            f"ones of subset {truth.subset!r} (first: {truth.videos[0]}); check the ids"
        )
    fewer = truth.select(keep[truth.video])
    left_out = set(truth.videos) - set(fewer.videos)
    kept = np.array([name not in left_out for name in found.videos], bool)[found.video]
    if found.labels:  # proposals have none
        gone = set(truth.classes) - set(fewer.classes)
        kept &= np.array([name not in gone for name in found.labels])[found.label]
    return fewer, found.select(kept)


def _read_ids(source: Any) -> Iterable[Any]:
    """The ids in a file; other sources are ids already."""
    if not isinstance(source, str | Path):
        return source
    if Path(source).suffix.lower() == ".json":
        ids = _read_fast(source, "list of available videos")
        return ids.get("database", ids.get("results", ids)) if isinstance(ids, Mapping) else ids
    if not Path(source).is_file():
        expected = 'the ids of available videos, or "auto"'
        raise FileNotFoundError(f"{source}: no such file (expected {expected})")
    return Path(source).read_text(encoding="utf-8").split()
