"""What is wrong with a data set, found before a long run finds it."""

import filecmp
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from lofi.data.annotations import Segment, Video, find_in_index, index_videos, video_key
from lofi.data.copies import content_id
from lofi.data.isolated import KilledError, run_isolated
from lofi.data.video import VideoError, VideoInfo, probe, verify
from lofi.files import append_csv, read_csv, write_csv

KINDS = {
    "missing": "no media file",
    "undecodable": "not all frames decode, or the decoder hangs or crashes",
    "out_of_range": "a segment reaches beyond the video",
    "zero_length": "start = end",
    "reversed": "start > end",
    "overlapping": "two segments with one label overlap",
    "duplicate": "one segment, or one video id, twice",
    "same_film": "one file's content under two ids of different subsets",
    "label": "looks like a misspelling of another label",
}
KILLED = {"killed": "the system ended the decoder, nothing is known of the file"}  # seldom
COLUMNS = ["video", "kind", "detail", "frames", "fps", "width", "height", "bytes"]

# Videos of public data sets that need care, from the public files (data/*/README.md says which).
KNOWN = {
    # THUMOS14: not in `thumos_gt.json`, the released evaluation file of 210 test videos.
    "video_test_0000270": "29 segments of HammerThrow, known to be wrong",
    "video_test_0001292": "nothing but Ambiguous segments",
    "video_test_0001496": "18 segments of CricketShot, not evaluated as released",
    # ActivityNet-1.3
    "0dkIbKXXFzI": "2.1 frames a second (33 frames): snippets repeat frames",
    "JMpwIWxoB5s": "3.8 frames a second: snippets span several times their usual time",
    "vdYFwqfqgJA": "common copies end at 73 s, the segment at 118 s: it is cut there",
}
ZERO_LENGTH = (
    "H-yBxySDyTw 6kgJx6ahgq0 6KXVjADefBY 8slE1UskRS4 QhiKgeJV3k0 EJxWhTE_ZeE "
    "dJVWRkiRXHM sCzauf2u4dc e6J_ygZ779A 2IRQ5fPwHV8 ZZVrH3Hv1fM RuBLAghI1vE"
)
for known in ZERO_LENGTH.split():
    KNOWN[known] = "has a segment of length zero: dropped in training, kept in evaluation"

# Videos of the official releases; derivatives and crawls hold fewer.
OFFICIAL = {
    "ActivityNet-1.3": {"training": 10_024, "validation": 4_926, "testing": 5_044},
    "HACS Segments 1.1.1": {"training": 37_613, "validation": 5_981, "testing": 5_987},
    "THUMOS14": {"validation": 200, "test": 213},
    "THUMOS14 (thumos_gt.json)": {"train": 200, "test": 210},
}


class FileResult(NamedTuple):
    """What decoding a file gave."""

    num_bytes: int
    info: VideoInfo | None = None  # None when it could not be opened
    problem: str | None = None  # None when everything decodes
    kind: str = "ok"  # or, of the problem, "undecodable" or "killed"

    def row(self, video_id: str) -> list:
        """Cells of `COLUMNS`."""
        info = self.info
        numbers = [info.num_frames, info.fps, info.width, info.height] if info else [""] * 4
        return [video_id, self.kind, self.problem or "", *numbers, self.num_bytes]


class Finding(NamedTuple):
    """One problem: `kind` is a key of `KINDS` or `KILLED`, `detail` says what exactly."""

    video_id: str
    kind: str
    detail: str


@dataclass(frozen=True)
class DatasetReport:
    """Everything that `check_dataset` found."""

    entries: tuple[Finding, ...]  # problems, in the order of the videos
    num_videos: int
    num_segments: int
    files: dict[str, FileResult]  # by video id, those that were decoded, good and bad
    known: tuple[Finding, ...] = ()  # videos that need care (`KNOWN`); no problems
    subsets: tuple[str, ...] = ()  # one line of counts a subset

    def of(self, kind: str) -> list[Finding]:
        """The problems of one kind."""
        return [entry for entry in self.entries if entry.kind == kind]

    def summary(self, examples: int = 2) -> str:
        """A table for the terminal: each kind of problem, how often, and the first ones."""
        good = sum(result.problem is None for result in self.files.values())
        counts = f"{self.num_videos:,} videos, {self.num_segments:,} segments"
        lines = [f"{counts}; {len(self.files):,} files decoded, {good:,} of them completely"]
        for kind, meaning in (KINDS | (KILLED if self.of("killed") else {})).items():
            found = self.of(kind)
            lines.append(f"{len(found):>7,}  {kind:<13}{meaning}")
            lines += [f"{'':9}  {entry.video_id}: {entry.detail}" for entry in found[:examples]]
        if self.known:
            lines.append(f"{len(self.known):>7,}  {'known':<13}of this data set, nothing to do")
            for reason in dict.fromkeys(entry.detail for entry in self.known):
                ids = [entry.video_id for entry in self.known if entry.detail == reason]
                lines.append(f"{'':9}  {', '.join(ids)}: {reason}")
        return "\n".join([*lines, *self.subsets])


def check_dataset(
    videos: Iterable[Video], video_dir: str | Path | None = None, *, decode: bool = True,
    workers: int = 1, limit_s: float = 120.0, tolerance_s: float = 0.1,
    report: str | Path | None = None, progress: Callable[[int, int], None] | None = None,
) -> DatasetReport:  # fmt: skip
    """Check annotations and, where there are any, video files.

    Args:
        video_dir: folder of the media files; None = each video's own path. When no video has one,
            only the annotations are checked.
        decode: every file from start to end; False only asks whether it is there.
        workers, limit_s: child processes that decode, and seconds that a file may take.
        tolerance_s: how far a segment may reach beyond the video.
        report: CSV of problems, and of kind "ok" for good files. It grows while files are decoded;
            a file that stands in it with its present size is not decoded again.
        progress: called with (files done, files in all) after each file.
    Raises:
        ValueError: `report` holds something else. FileNotFoundError: no such `video_dir`.
    """
    videos = list(videos)
    if video_dir is not None:
        found = index_videos(video_dir)
        videos = [replace(v, path=v.path or find_in_index(v.id, found)) for v in videos]
    with_media = video_dir is not None or any(v.path is not None for v in videos)
    files = _decode(videos, workers, limit_s, report, progress) if decode else {}
    films = _same_films([v for v in videos if v.id in files and files[v.id].info])
    suspects = suspicious_labels(Counter(s.label for v in videos for s in v.segments))
    entries: list[Finding] = []
    seen: dict[str, str] = {}  # id by what makes it one video
    for video in videos:
        problems, key = [], video_key(video.id)
        if key in seen:
            problems.append(("duplicate", f"the video stands twice, also as {seen[key]!r}"))
        seen.setdefault(key, video.id)
        problems += [("same_film", films[video.id])] if video.id in films else []
        file = files.get(video.id, FileResult(0))
        if with_media and not _has_file(video):
            place = video.path or f"in {video_dir or 'the video folder'}"
            problems.append(("missing", f"no file {place}"))
        elif file.problem:
            problems.append((file.kind, file.problem))
        duration_s = file.info.duration_s if file.info else video.duration_s
        problems += _segment_problems(video.segments, duration_s, tolerance_s)
        labels = sorted({s.label for s in video.segments} & suspects.keys())
        problems += [("label", suspects[label]) for label in labels]
        entries += [Finding(video.id, *problem) for problem in problems]
    known = tuple(Finding(v.id, "known", KNOWN[v.id]) for v in videos if v.id in KNOWN)
    if report is not None:
        rows = [result.row(video_id) for video_id, result in files.items()]
        others = [e for e in entries if e.kind not in ("undecodable", "killed")]
        rows += [[*entry, *[""] * 5] for entry in (*others, *known)]
        write_csv(report, [COLUMNS, *rows])
    counts = len(videos), sum(len(v.segments) for v in videos)
    subsets = tuple(_subset_lines(videos, with_media))
    return DatasetReport(tuple(entries), *counts, files, known, subsets)


def _has_file(video: Video) -> bool:
    return video.path is not None and video.path.is_file()


def _same_films(videos: list[Video]) -> dict[str, str]:
    """By id: videos with the content of an earlier one of another subset, which one it is."""
    sizes, films, found = defaultdict(list), {}, {}
    for video in videos:
        sizes[os.path.getsize(video.path)].append(video)
    for video in (video for group in sizes.values() if len(group) > 1 for video in group):
        first = films.setdefault(content_id(video.path), video)
        if first.subset != video.subset and filecmp.cmp(first.path, video.path, shallow=False):
            both = f"({first.subset or 'no subset'}, here {video.subset or 'no subset'})"
            found[video.id] = f"the same film as {first.id} {both}; keep it in one of them"
    return found


def _subset_lines(videos: list[Video], with_media: bool) -> Iterator[str]:
    """A line for every subset: videos annotated, with a file, and in the official release.

    Public data sets are told by ids (THUMOS14), or by subsets, 11-character ids and size.
    """
    annotated = Counter(video.subset for video in videos)
    present = Counter(video.subset for video in videos if _has_file(video))
    name = ""
    if videos and all(v.id.startswith(("video_test_", "video_validation_")) for v in videos):
        name = "THUMOS14 (thumos_gt.json)" if "train" in annotated else "THUMOS14"
    elif all(len(v.id) == 11 for v in videos) and "training" in annotated:
        small = len(videos) <= sum(OFFICIAL["ActivityNet-1.3"].values())
        name = "ActivityNet-1.3" if small else "HACS Segments 1.1.1"
    official = OFFICIAL.get(name, {})
    for subset in sorted(annotated, key=str):
        count = annotated[subset]
        line = f"{subset or 'no subset'}: {count:,} videos annotated"
        if with_media:
            line += f", {present[subset]:,} with a file ({present[subset] / count:.1%})"
        if subset in official:
            line += f"; {name} has {official[subset]:,}"
        yield line


def _segment_problems(
    segments: Iterable[Segment], duration_s: float | None, tolerance_s: float
) -> Iterator[tuple[str, str]]:
    groups, by_label = defaultdict(list), defaultdict(list)
    for segment in segments:  # equal to a hundredth of a second is equal
        groups[round(segment.start_s, 2), round(segment.end_s, 2), segment.label].append(segment)
    for segment, *copies in groups.values():
        start, end = segment.start_s, segment.end_s
        what = f"{segment.label!r} {start:.2f} to {end:.2f} s"
        if copies:
            yield "duplicate", f"{what} stands {1 + len(copies)} times"
        if start < end:
            by_label[segment.label].append(segment)
        else:
            yield "reversed" if start > end else "zero_length", what
        if duration_s is not None and max(start, end) > duration_s + tolerance_s:
            yield "out_of_range", f"{what}, the video has {duration_s:.2f} s"
    for label, proper in by_label.items():
        first, *others = sorted(proper, key=lambda s: (s.start_s, s.end_s))
        for segment in others:
            if segment.start_s < first.end_s:
                what = f"{label!r} {first.start_s:.2f} to {first.end_s:.2f} s"
                yield "overlapping", f"{what} and {segment.start_s:.2f} to {segment.end_s:.2f} s"
            first = max(first, segment, key=lambda s: s.end_s)


def suspicious_labels(counts: Counter[str]) -> dict[str, str]:
    """Labels that look misspelled, with the reason; `counts` are segments a label.

    Suspicious is a label that equals a more frequent one up to case and white space, or is at most
    two edits (one for short labels) away from a label at least five times as frequent, or is used
    once. Labels that differ in digits only ("step 1", "step 2") are different classes.
    """
    suspects, near_ones = {}, _look_alikes(counts)
    for label, count in sorted(counts.items()):
        near = []  # (letters, other label)
        for other in near_ones[label]:
            if (count, other) < (frequent := counts[other], label):
                letters = _label_distance(label, other)
                if letters == 0 or (letters and (count == 1 or 5 * count <= frequent)):
                    near.append((letters, other))
        if near:
            letters, other = min(near)
            how = f"{letters} letters" if letters else "case or white space"
            suspects[label] = f"{label!r} differs from {other!r} in {how}"
    return suspects


def _look_alikes(counts: Counter[str]) -> dict[str, Sequence[str]]:
    """For every label the others that it may be a misspelling of; finds them in linear time.

    Labels are k edits apart only if they become equal when each loses at most k of its letters.
    """
    labels, most = sorted(counts), max(counts.values(), default=0)
    near, groups = [set() for _ in labels], defaultdict(list)
    for i, label in enumerate(labels):
        groups[_plain(label).replace(" ", "")].append(i)
    for group in groups.values():
        for i in group:
            near[i].update(group)
    rare = [counts[label] == 1 or 5 * counts[label] <= most for label in labels]
    if any(rare):
        texts = [_plain(label) for label in labels]
        wordless = [re.sub(r"\d", "", text) for text in texts]
        owners = defaultdict(list)
        for i, text in enumerate(texts):
            for shorter in _shortened(text, _allowed(len(text))):
                owners[shorter].append(i)
        for group in owners.values():
            if len(group) > 1 and len({wordless[i] for i in group}) > 1:  # not in digits only
                for i in group:
                    if rare[i]:
                        near[i].update(group)
    return {labels[i]: [labels[j] for j in near[i] if j != i] for i in range(len(labels))}


def _shortened(text: str, most: int) -> set[str]:
    """The text, and what is left of it without up to `most` of its letters."""
    found = edge = {text}
    for _ in range(most):
        edge = {part[:i] + part[i + 1 :] for part in edge for i in range(len(part))}
        found = found | edge
    return found


def _allowed(length: int) -> int:
    """Edits between two labels, the shorter of that length, that look like a mistake."""
    return 2 if length >= 8 else 1 if length >= 4 else 0


def _plain(label: str) -> str:
    return " ".join(label.split()).casefold()


def _label_distance(a: str, b: str) -> int | None:
    """0 when equal but for case and white space, else 1 or 2 edits, None when unlike."""
    a, b = _plain(a), _plain(b)
    if a.replace(" ", "") == b.replace(" ", ""):
        return 0
    if [c for c in a if not c.isdigit()] == [c for c in b if not c.isdigit()]:
        return None
    allowed = _allowed(min(len(a), len(b)))
    if abs(len(a) - len(b)) > allowed:
        return None
    start = len(os.path.commonprefix([a, b]))
    end = len(os.path.commonprefix([a[start:][::-1], b[start:][::-1]]))
    a, b = a[start : len(a) - end], b[start : len(b) - end]
    row = list(range(len(b) + 1))  # Levenshtein: insertions, deletions and replacements
    for i, x in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1] if row[-1] <= allowed else None


def _decode(
    videos: list[Video], workers: int, limit_s: float, report: str | Path | None, progress
) -> dict[str, FileResult]:
    """Results of all files that are there; those in the report already are taken from it."""
    present = {video.id: video.path for video in videos if _has_file(video)}
    results = {}
    if report is not None:
        wrong = "not a report of this check; choose another name for it"
        for name, kind, detail, *numbers, num_bytes in read_csv(report, COLUMNS, wrong):
            same = name in present and num_bytes == str(os.path.getsize(present[name]))
            if kind in ("ok", "undecodable") and same:
                kinds = VideoInfo.__annotations__.values()
                cells = [kind(cell) for kind, cell in zip(kinds, numbers) if cell]
                info = VideoInfo(*cells) if cells else None
                results[name] = FileResult(int(num_bytes), info, detail or None, kind)
        write_csv(report, [COLUMNS, *(result.row(name) for name, result in results.items())])
    todo = [item for item in present.items() if item[0] not in results]
    calls = [(str(path),) for _, path in todo]
    for i, found in run_isolated(_inspect, calls, workers, limit_s):
        name, path = todo[i]
        info, problem = (None, str(found)) if isinstance(found, Exception) else found
        size = path.stat().st_size if path.is_file() else 0
        kind = "killed" if isinstance(found, KilledError) else "undecodable" if problem else "ok"
        results[name] = FileResult(size, info, problem, kind)
        if report is not None:
            append_csv(report, results[name].row(name))
        if progress is not None:
            progress(len(results), len(present))
    return {video_id: results[video_id] for video_id in present}


def _inspect(path: str) -> tuple[VideoInfo | None, str | None]:
    """In the child: what the file holds, and what is wrong with it."""
    info = None
    try:
        info = probe(path)
        return info, verify(path)
    except Exception as error:  # one file must not end the check
        kind = "" if isinstance(error, VideoError) else f"{type(error).__name__}: "
        return info, f"{kind}{error}"
