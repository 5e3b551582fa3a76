"""Which classes does a video show: score files, the truth, or our own classifier; and their fusion.

A localization head says where something happens, not what.  Published numbers take the class from
an external video classifier and multiply its score in; the rule is worth several mAP points, so it
is part of `PostProcessing` and printed with every result.

Sources: released post-processing of G-TAD for ActivityNet, HACS and THUMOS14.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from lofi.config import PostProcessing
from lofi.data.tables import label_of, number
from lofi.detection.results import Detection
from lofi.files import existing, load_tensors, read_json, save_tensors
from lofi.heads.base import Proposals

CLASS_RULES = ("anet", "hacs", "thumos", "sqrt")
TENSORS = ("weight", "bias", "mean", "std")  # of a classifier's file
THUMOS14_CLASSES = {  # name -> class number in THUMOS14's list of 101
    "BaseballPitch": 7, "BasketballDunk": 9, "Billiards": 12, "CleanAndJerk": 21,
    "CliffDiving": 22, "CricketBowling": 23, "CricketShot": 24, "Diving": 26, "FrisbeeCatch": 31,
    "GolfSwing": 33, "HammerThrow": 36, "HighJump": 40, "JavelinThrow": 45, "LongJump": 51,
    "PoleVault": 68, "Shotput": 79, "SoccerPenalty": 85, "TennisSwing": 92, "ThrowDiscus": 93,
    "VolleyballSpiking": 97,
}  # fmt: skip


@dataclass(frozen=True)
class VideoClasses:
    """Class scores of whole videos: `scores[video id]` is (C,) in the order of `names`."""

    names: tuple[str, ...]
    scores: Mapping[str, np.ndarray]
    source: str = ""

    def __post_init__(self) -> None:
        for video, scores in self.scores.items():
            if np.shape(scores) != (len(self.names),):
                found = f"video {video} has class scores of shape {np.shape(scores)}"
                expected = f"({len(self.names)},), one per class"
                raise ValueError(f"{self.source}: {found}; expected {expected}")

    def of(self, video: str) -> np.ndarray:
        """(C,) scores of one video; ValueError when the file does not have it."""
        if video not in self.scores:
            raise ValueError(
                f"{self.source or 'class scores'}: no scores for video {video} (has "
                f"{len(self.scores)} videos, ids without the prefix v_); add it or use a classifier"
            )
        return self.scores[video]

    def accuracy(self, labels: Mapping[str, str]) -> float:
        """Fraction of the videos in `labels` (id -> name) whose best class is the label."""
        hits = [self.names[int(np.argmax(self.of(v)))] == name for v, name in labels.items()]
        return float(np.mean(hits)) if hits else float("nan")


def read_video_classes(
    path: str | Path, names: Sequence[str] = (), videos: Sequence[str] = ()
) -> VideoClasses:
    """Read class scores keyed by video id.

    UntrimmedNet's table (.npy, see `read_untrimmednet`), or JSON in two layouts:
    `{"results": {id: [C scores]}, "class": [C names]}` (the CUHK file of G-TAD), and
    `{id: [{"label": name, "score": x}, ...]}`, optionally under "results"; classes that a video
    does not list get score 0 there. Scores are used as stored. A prefix `v_` of ids is dropped.
    Keys 0, 1, 2, … with class numbers are G-TAD's file for HACS (`read_hacs_top2`): they count the
    sorted ids `videos` of the test set and the sorted classes `names`, and are refused without.
    FileNotFoundError, ValueError: with the file and what was expected.
    """
    if Path(path).suffix == ".npy":
        return read_untrimmednet(path)
    content = read_json(path, "video class scores")
    if isinstance(content, dict) and content.keys() == set(map(str, range(len(content)))):
        if len(content) != len(videos):
            found = f"{len(content)} videos by position, but there are {len(videos)} test videos"
            cure = "take a file that is keyed by id, or annotations of the whole test set"
            raise ValueError(f"{path}: {found}; {cure}")
        folders = sorted(names, key=lambda name: name.replace(" ", "_"))  # as HACS sorts them
        return read_hacs_top2(path, folders, sorted(videos))
    rows = content.get("results", content) if isinstance(content, dict) else None
    if not isinstance(rows, dict) or not all(isinstance(row, list) for row in rows.values()):
        form = '{"results": {id: [scores]}, "class": [names]} or {id: [{"label", "score"}]}'
        raise ValueError(f"{path}: not a class-score file; expected {form}")
    table = {}
    for video, row in rows.items():
        if (key := video.removeprefix("v_")) in table:
            raise ValueError(f"{path}: video {key} stands twice, with v_ and without; keep one")
        table[key] = row, f"{path}: video {video}"
    if "class" in content:
        if not isinstance(content["class"], list):
            raise ValueError(f'{path}: "class" is {content["class"]!r}; expected a list of names')
        names = [label_of(name, f"{path}: a name in class") for name in content["class"]]
        if len(set(names)) < len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise ValueError(f"{path}: class {twice!r} stands twice; correct the names")
        scores = {
            video: np.array([number(x, where, f": {i}", -math.inf) for i, x in enumerate(row)])
            for video, (row, where) in table.items()
        }
        return VideoClasses(tuple(names), scores, Path(path).name)
    listed: dict[str, dict[str, float]] = {}
    for video, (row, where) in table.items():
        listed[video] = mine = {}
        for entry in row:
            if not isinstance(entry, dict) or not {"label", "score"} <= entry.keys():
                raise ValueError(f'{where}: {entry!r:.90}; expected {{"label": name, "score": x}}')
            name = label_of(entry["label"], f"{where}: label")
            if name in mine:
                raise ValueError(f"{where}: class {name!r} stands twice; keep one")
            mine[name] = number(entry["score"], where, f": score of {name!r}", -math.inf)
    names = sorted(set().union(*listed.values()))
    scores = {v: np.array([x.get(n, 0.0) for n in names]) for v, x in listed.items()}
    return VideoClasses(tuple(names), scores, Path(path).name)


def is_class_file(source: str) -> bool:
    """Whether `detect.shared_classes` names an external score file; else it is a method."""
    return Path(source).suffix in (".json", ".npy")


def read_hacs_top2(
    path: str | Path, names: Sequence[str], video_ids: Sequence[str]
) -> VideoClasses:
    """Read G-TAD's HACS file: two (class index, raw score) per video, keyed by position.

    Args:
        names: the alphabetical HACS class list that the indices refer to, else ValueError.
        video_ids: sorted validation ids, as the file counts them; ValueError where it has fewer.
    """
    rows = read_json(path, "two best classes per video, keyed by position")
    if not isinstance(rows, dict):
        raise ValueError(f'{path}: expected {{position: [{{"label": index, "score": number}}]}}')
    scores = {}
    for position, video in enumerate(video_ids):
        where = f"{path}: entry {position}"
        if str(position) not in rows:
            raise ValueError(
                f"{path}: no entry {position} for video {video} ({len(rows)} entries, "
                f"{len(video_ids)} videos); the file matches videos by position only"
            )
        scores[video] = np.zeros(len(names))
        for entry in rows[str(position)]:
            if not isinstance(entry, dict) or not {"label", "score"} <= entry.keys():
                raise ValueError(f'{where} is {entry!r:.90}; expected {{"label": index, "score"}}')
            index = entry["label"]
            if type(index) is not int or not 0 <= index < len(names):
                raise ValueError(f"{path}: class index {index!r} of {len(names)} classes")
            scores[video][index] = number(entry["score"], where, ": score", -math.inf)
    return VideoClasses(tuple(names), scores, Path(path).name)


def read_untrimmednet(path: str | Path) -> VideoClasses:
    """Read UntrimmedNet's THUMOS14 test scores (.npy, 1574 x 101): row = video number - 1,
    column = class number - 1; the 20 localization classes are kept."""
    path = existing(path, "UntrimmedNet scores, .npy")
    try:
        table = np.load(path, allow_pickle=False)
        shape, finite = table.shape, np.isfinite(table).all()
    except Exception as error:  # damaged files give errors of many kinds
        raise ValueError(f"{path}: not readable ({error}); download it again") from None
    if len(shape) != 2 or shape[1] != 101:
        raise ValueError(f"{path}: shape {shape}; expected (videos, 101)")
    if not finite:
        raise ValueError(f"{path}: scores that are no finite numbers; download it again")
    columns = np.array(list(THUMOS14_CLASSES.values())) - 1
    scores = {f"video_test_{i + 1:07d}": row[columns] for i, row in enumerate(table)}
    return VideoClasses(tuple(THUMOS14_CLASSES), scores, path.name)


def true_classes(videos: Iterable[Any]) -> VideoClasses:
    """Oracle: score 1 for every class annotated in the video (localization alone is judged)."""
    shown = {video.id: {segment.label for segment in video.segments} for video in videos}
    names = tuple(sorted(set().union(*shown.values())))
    scores = {v: np.array([name in labels for name in names], float) for v, labels in shown.items()}
    return VideoClasses(names, scores, "ground truth")


def main_labels(videos: Iterable[Any]) -> dict[str, str]:
    """One label per annotated video: the most frequent, then the longest in total."""
    labels = {}
    for video in videos:
        lengths: dict[str, list[float]] = {}
        for segment in video.segments:
            lengths.setdefault(segment.label, []).append(segment.end_s - segment.start_s)
        if lengths:
            weight = {name: (len(its), sum(its)) for name, its in lengths.items()}
            labels[video.id] = max(sorted(weight), key=weight.get)
    return labels


def detections(
    kept: Proposals, duration_s: float, post: PostProcessing,
    class_scores: np.ndarray | None = None, names: Sequence[str] = (),
) -> list[Detection]:  # fmt: skip
    """What is left after suppression, cut at the ends of the video, with classes.

    `class_scores` (C,) of the video; None = class-agnostic, label ""."""
    start, end = kept.segments_s.T
    segments = np.stack([np.maximum(start, 0.0), np.minimum(end, duration_s)], 1)
    if class_scores is None:
        pairs = zip(segments.tolist(), kept.scores.tolist())
        return [Detection(start, end, "", score) for (start, end), score in pairs]
    if len(class_scores) != len(names):
        raise ValueError(f"{len(class_scores)} class scores for {len(names)} names; expected equal")
    rule = post.class_rule, post.classes_per_video
    return add_classes(segments, kept.scores, class_scores, names, *rule)


def own_detections(
    kept: Proposals, duration_s: float, names: Sequence[str], post: PostProcessing
) -> list[Detection]:
    """Detections of a head that tells classes apart, in the order of its `names`.

    Rows with a score for each class, (N, K), give one detection a class; the best `top_k` stay.
    ValueError: the head has no classes, or suppression has lost them.
    """
    labels, scores, spans = kept.labels, kept.scores, kept.segments_s
    if scores.ndim == 2:
        labels = np.tile(np.arange(scores.shape[1]), len(scores))
        spans, scores = np.repeat(spans, scores.shape[1], 0), scores.ravel()
    if labels is None or (len(labels) and labels.max() >= len(names)):
        found = "detect.classes is own, but these proposals have no classes of the head"
        raise ValueError(
            f"{found}; set detect.suppression to per-class, or detect.classes to video"
        )
    best = np.argsort(-scores, kind="stable")[: post.top_k]
    rows = zip(spans[best].clip(0, duration_s).tolist(), labels[best], scores[best].tolist())
    return [Detection(*span, names[label], score) for span, label, score in rows]


def add_classes(
    segments: np.ndarray, scores: np.ndarray, class_scores: np.ndarray, names: Sequence[str],
    rule: str = "anet", count: int = 2,
) -> list[Detection]:  # fmt: skip
    """Turn class-agnostic proposals into detections.

    Rules: `anet` lists all proposals with the best class, then all with the next (`count` classes),
    score x class score; `hacs` uses the best class only, weighted by best / (best + second);
    `thumos` lists both classes of a proposal side by side, rounds scores to 6 digits and times to
    0.1 s; `sqrt` is `anet` with the root of the product, as ActionFormer. Equal class scores: the
    earlier name first. A class whose score is 0 is left out.
    Segments (K, 2) in seconds, scores (K,), class scores (C,) in the order of `names`.
    """
    if rule not in CLASS_RULES:
        raise ValueError(f"class rule {rule!r} is unknown; choose one of {', '.join(CLASS_RULES)}")
    class_scores = np.asarray(class_scores)
    best = np.argsort(-class_scores.astype(np.float64), kind="stable")
    chosen = [(names[c], float(class_scores[c])) for c in best[:count]]
    if rule == "hacs":
        first, second = [*class_scores[best[:2]], 0.0][:2]  # 0: there is only one class
        chosen = [(names[best[0]], float(first / (first + second)) if first else 0.0)]
    chosen = [(name, weight) for name, weight in chosen if weight != 0]
    spans = np.asarray(segments, np.float64).tolist()
    values = np.asarray(scores, np.float64).tolist()
    if rule == "thumos":
        return [
            Detection(round(start, 1), round(end, 1), name, round(value * weight, 6))
            for (start, end), value in zip(spans, values)
            for name, weight in chosen
        ]
    root = 0.5 if rule == "sqrt" else 1
    return [
        Detection(start, end, name, (value * weight) ** root)
        for name, weight in chosen
        for (start, end), value in zip(spans, values)
    ]


@dataclass(frozen=True)
class VideoClassifier:
    """Multinomial logistic regression on summaries of a video's features."""

    names: tuple[str, ...]
    weight: torch.Tensor  # (classes, 2C)
    bias: torch.Tensor  # (classes,)
    mean: torch.Tensor  # (2C,) of the training summaries
    std: torch.Tensor  # (2C,)
    what, format, file = "video classifier", "lofi-classifier-1", "classifier.safetensors"

    def predict(self, features: torch.Tensor) -> np.ndarray:
        """Probabilities (classes,) of one video from its (C, L) snippet features."""
        if 2 * len(features) != len(self.mean):
            known = f"this classifier was trained on {len(self.mean) // 2}"
            cure = "use the encoder it was trained with"
            raise ValueError(f"features have {len(features)} channels, {known}; {cure}")
        summary = (video_summary(features) - self.mean) / self.std
        return (self.weight @ summary + self.bias).softmax(0).double().numpy()

    def video_classes(self, features: Mapping[str, torch.Tensor]) -> VideoClasses:
        """Class probabilities of many videos, id -> (C, L) features."""
        scores = {video: self.predict(x) for video, x in features.items()}
        return VideoClasses(self.names, scores, "own classifier")

    def save(self, path: str | Path) -> None:
        """Write safetensors with the names in its header."""
        tensors = {k: getattr(self, k) for k in TENSORS}
        save_tensors(path, tensors, {"format": self.format, "names": json.dumps(self.names)})

    @classmethod
    def load(cls, path: str | Path, cure: str = "train it again") -> Self:
        """Read what `save` wrote; ValueError, ending with `cure`: damaged, or something else."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no {cls.what}; {cure}")
        tensors, metadata = load_tensors(path, cure)
        if metadata.get("format") != cls.format:
            found = f"format {metadata.get('format')!r} (expected {cls.format!r})"
            raise ValueError(f"{path}: not a {cls.what}, {found}; {cure}")
        return cls(tuple(json.loads(metadata["names"])), *(tensors[name] for name in TENSORS))


def video_summary(features: torch.Tensor) -> torch.Tensor:
    """(2C,) of (C, L): mean over time, and per channel the mean of its largest quarter."""
    features = features.detach().float().cpu()
    quarter = max(1, -(-features.shape[1] // 4))
    return torch.cat([features.mean(1), features.topk(quarter, dim=1).values.mean(1)])


def train_video_classifier(
    features: Mapping[str, torch.Tensor], labels: Mapping[str, str], weight_decay: float = 1e-2
) -> VideoClassifier:
    """Fit the classifier with L-BFGS on the standardised summaries.

    The problem is convex and starts at zero, so the result depends on no seed. ValueError for fewer
    than 2 classes.

    Args:
        features: video id -> (C, L) snippet features.
        labels: video id -> class name; videos without features are left out.
        weight_decay: factor of half the squared weights beside the mean cross-entropy.
    """
    videos = [video for video in labels if video in features]
    names = tuple(sorted({labels[video] for video in videos}))
    if len(names) < 2:
        raise ValueError(
            f"{len(videos)} videos with features and a label, {len(names)} classes; a classifier "
            "needs at least 2 classes: check that ids of features and annotations agree"
        )
    x = torch.stack([video_summary(features[video]) for video in videos])
    y = torch.tensor([names.index(labels[video]) for video in videos])
    return VideoClassifier(names, *softmax_regression(x, y, len(names), weight_decay))


def softmax_regression(
    x: torch.Tensor, y: torch.Tensor, classes: int, weight_decay: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight (classes, P) and bias that L-BFGS finds from zero for x (N, P), standardised by the
    mean and deviation (P,) that come with them.

    y: class numbers (N,), or shares of the classes (N, classes).
    """
    mean, std = x.mean(0), x.std(0, correction=0).clamp_min(1e-6)
    x = (x - mean) / std
    weight = torch.zeros(classes, x.shape[1], dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, y)
        loss = loss + 0.5 * weight_decay * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach(), bias.detach(), mean, std
