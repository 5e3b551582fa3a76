"""Ground truth and predictions as columns: files and objects in, flat arrays out.

Predictions number in the hundreds of thousands, so a file is read in pieces whose columns are
filled at once; only where that fails is a piece read entry by entry, which names the culprit.
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lofi.data.annotations import read_annotations, read_entries, video_key
from lofi.data.tables import nfc, read_text
from lofi.files import read_json

VIDEOS = 64  # whose predictions become columns at a time, while they are in the cache
NUMBERS = {int, float, np.float64, np.float32, np.int64}  # no bool, no text


class Truth(NamedTuple):
    """Annotations of one subset, in file order; videos without annotations are left out."""

    subset: str
    videos: tuple[str, ...]  # ids, order of first appearance
    classes: tuple[str, ...]  # order of first appearance
    video: np.ndarray  # (G,) index into videos
    label: np.ndarray  # (G,) index into classes
    segments: np.ndarray  # (G, 2) seconds
    durations: np.ndarray  # (videos,) seconds, NaN where the source has none
    other_classes: frozenset[str] = frozenset()  # that only other subsets have
    toolkit: bool = False  # 0/0 overlap is a match, as in the toolkit

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
        chosen = Truth.of(self.subset, videos, labels, self.segments[rows], self.durations[video])
        return chosen._replace(other_classes=self.other_classes, toolkit=self.toolkit)


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
    left_out: int = 0  # detections of classes that only other subsets have

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


@_collection_paused()
def truth_table(
    source: Any, subset: str, ignore: frozenset[str] = frozenset(), strict: bool = True
) -> Truth:
    """Collect the annotations of a subset (exact name), without the labels to `ignore`.

    `source`: path (as `lofi.data.read_annotations`), ActivityNet-format dict, or list of
    `lofi.data.Video`. ValueError for malformed entries, for reversed ones (`strict`), for videos
    that stand twice, or no annotation in this subset (names the subsets there are).
    """
    what, videos = "ground truth", source
    if isinstance(source, str | Path):
        what, videos = str(source), read_annotations(source)
    elif isinstance(source, Mapping):
        if not isinstance(source.get("database"), Mapping):
            form = '{"subset", "annotations": [{"label": name, "segment": [start_s, end_s]}]}'
            raise ValueError(f'{what}: no "database"; expected {{"database": {{id: {form}}}}}')
        videos = read_entries(what, source["database"])
    mine = [video for video in videos if video.subset == subset]
    rows = [
        (v.id, s.label, (s.start_s, s.end_s), np.nan if v.duration_s is None else v.duration_s)
        for v in mine
        for s in v.segments
        if s.label not in ignore
    ]
    if not rows:
        subsets = sorted({str(video.subset) for video in videos})
        raise ValueError(
            f"{what}: no annotated video in subset {subset!r} ({len(videos)} videos, subsets: "
            f"{', '.join(subsets) or 'none'}); choose one of these"
        )
    truth = Truth.of(subset, *zip(*rows))
    start, end = truth.segments.T
    good = np.isfinite(start + end) & (True if not strict else start <= end)
    if not good.all():
        video, label, (start, end), _ = rows[int(np.argmin(good))]
        found = f"{what}: video {video!r}: {label!r} lasts from {start:g} to {end:g} s, which is "
        raise ValueError(f"{found}{'reversed' if start > end else 'no time'}; correct the times")
    if len({video.id for video in mine}) < len(mine) or strict:
        _unique([video.id for video in mine], what, video_key if strict else str)
    labels = {segment.label for video in videos for segment in video.segments}
    others = frozenset(labels - ignore - set(truth.classes)) if strict else frozenset()
    return truth._replace(other_classes=others, toolkit=not strict)


def _unique(ids: Iterable[str], what: str, key: Callable[[str], str]) -> dict[str, str]:
    """Ids by key; a ValueError names two that are one video."""
    names: dict[str, str] = {}
    for name in ids:
        if (other := names.setdefault(key(name), name)) is not name:
            raise ValueError(f"{what}: {other!r} and {name!r} are one video; keep one of them")
    return names


@_collection_paused()
def prediction_table(source: Any, truth: Truth, with_labels: bool = True) -> Predictions:
    """Collect detections (`with_labels`) or proposals, under the ids of the truth.

    `source`: path (ActivityNet-format JSON or our CSV), such a dict, or a dict from id to a list of
    `Detection`, to a list of such JSON entries, or to arrays (segments (N, 2), scores). Ids are
    compared by `video_key`, and detections of classes that only other subsets have are left out;
    neither with `truth.toolkit`. ValueError for what `lofi.detection.results` refuses.
    """
    from lofi.detection import results

    what, strict = "predictions", not truth.toolkit
    if not isinstance(source, str | Path):
        found = _collect([source], what, with_labels, strict)
    elif (what := str(source)).lower().endswith(".csv"):
        found = _collect([results.read_detections(source, strict)], what, with_labels, strict)
    else:
        try:
            found = _collect(results.read_pieces(source), what, with_labels, strict)
        except results.NotInPieces:
            found = _collect([results.read_results(source)], what, with_labels, strict)
    if not strict:
        return found
    names = {video_key(name): name for name in truth.videos}
    keys = _unique(map(str, found.videos), what, video_key)
    labels = tuple(map(nfc, found.labels))
    found = found._replace(videos=tuple(names.get(k, v) for k, v in keys.items()), labels=labels)
    if not truth.other_classes.isdisjoint(labels):
        kept = np.array([label not in truth.other_classes for label in labels])[found.label]
        found = found.select(kept)._replace(left_out=int(np.count_nonzero(~kept)))
    return found


def _collect(pieces: Iterable[Any], what: str, with_labels: bool, strict: bool) -> Predictions:
    """One table of what all pieces hold. ValueError: what the slow reader says of an entry."""
    from lofi.detection.results import check_detections

    videos, parts, external = [], [_columns({}, None, strict)], {}
    index: dict[str, int] | None = {} if with_labels else None
    for piece in pieces:
        if isinstance(piece, Mapping) and isinstance(piece.get("results"), Mapping):
            said = piece.get("external_data")
            external |= said if isinstance(said, Mapping) else {}
            piece = piece["results"]
        if not isinstance(piece, Mapping):
            raise ValueError(f"{what}: {type(piece).__name__}; expected a dict, id -> detections")
        items = list(piece.items())
        for low in range(0, len(items), VIDEOS):
            some = dict(items[low : low + VIDEOS])
            columns = _columns(some, index, strict)
            if columns is None:  # the slow reader says what is wrong, or knows how to read it
                some = check_detections(some, what, with_labels, strict)
                columns = _columns(some, index, strict)
            videos += some
            parts.append(columns)
    made, columns = external.pop("post_processing", None), list(zip(*parts))
    parts.clear()
    counts, *table = (np.concatenate(columns.pop(0)) for _ in range(4))
    video = np.repeat(np.arange(len(videos), dtype=np.int32), counts)
    return Predictions(tuple(videos), video, tuple(index or ()), *table, made, external)


def _columns(results: Mapping[str, Any], index: dict[str, int] | None, strict: bool) -> Any:
    """Entries of every video; label (by `index`, which grows), score and segment of every entry.

    None where something is not plain."""
    lists, names, plain = list(results.values()), (), True
    try:
        if lists and isinstance(lists[0], tuple) and len(lists[0]) == 2 and index is None:
            counts = [len(scores) for _, scores in lists]
            spans, scores = [np.reshape(s, (-1, 2)) for s, _ in lists], [s for _, s in lists]
            numbers = np.concatenate([*map(np.ravel, spans), *scores], dtype=np.float64)
            plain = list(map(len, spans)) == counts
        elif not all(isinstance(entries, list | tuple) for entries in lists):
            return None
        else:
            counts, entries = list(map(len, lists)), list(chain.from_iterable(lists))
            if any(isinstance(some[0], Mapping) for some in lists if some):
                spans, scores = [e["segment"] for e in entries], [e["score"] for e in entries]
                names = [e["label"] for e in entries] if index is not None else ()
            else:
                starts, ends, names, scores = zip(*entries, strict=True) if entries else [()] * 4
                spans = list(zip(starts, ends))
            types = {*map(type, chain.from_iterable(spans)), *map(type, scores)}
            if not types <= NUMBERS or not set(map(len, spans)) <= {2}:
                return None
            numbers = np.fromiter(chain(chain.from_iterable(spans), scores), np.float64)
        spans, scores = np.split(numbers, [2 * sum(counts)])
        segments = spans.reshape(-1, 2)
        plain = plain and len(segments) == len(scores) and np.isfinite(numbers).all()
        plain = plain and not (strict and (segments[:, 0] > segments[:, 1]).any())
        new = () if index is None or index.keys() >= set(names) else dict.fromkeys(names)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError):
        return None
    if not plain or not all(type(name) is str and name for name in new):
        return None
    label = np.zeros(len(scores), np.int32)
    if index is not None:
        for name in new:
            index.setdefault(name, len(index))
        label[:] = np.fromiter(map(index.__getitem__, names), np.int32)
    return np.array(counts, np.int64), label, scores, segments


def restrict(truth: Truth, found: Predictions, available: Any) -> tuple[Truth, Predictions]:
    """Both tables as if only the videos that could be had existed in the ground truth.

    Classes that then have no instance vanish, with their predictions; predictions in videos that
    the ground truth never had stay.

    `available`: "auto" = every video with an entry (perhaps empty) in the prediction file; a path:
    text with one id a line, JSON list, or JSON with "database" or "results"; or the ids, compared
    by `video_key`. ValueError where none of them is annotated.
    """
    ids = found.videos
    if not isinstance(available, str) or available != "auto":
        ids = map(str, _read_ids(available))
    ids = set(map(video_key, ids))
    keep = np.array([video_key(name) in ids for name in truth.videos])
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
        ids = read_json(source, "list of available videos")
        ids = ids.get("database", ids.get("results", ids)) if isinstance(ids, Mapping) else ids
        if not isinstance(ids, Mapping | list) or not all(isinstance(name, str) for name in ids):
            raise ValueError(f"{source}: no list of ids (expected available videos); correct it")
        return ids
    text = read_text(Path(source), 'the ids of available videos, or "auto"')
    return filter(None, map(str.strip, text.splitlines()))
