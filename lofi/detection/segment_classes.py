"""The class of every proposal by itself, because one video may show several kinds of event [ours].

A multinomial logistic regression looks at the mean features inside a segment, just before and just
after it. It is trained on annotated segments, on shifted and stretched copies of them and on pieces
of background, each with the class as far as it overlaps an event and "nothing" for the rest. So its
probability falls for a proposal that is cut badly or lies beside an event, and the product with the
proposal's score ranks well. Convex, started at zero: the result depends on no seed.
C channels, K classes, N segments in seconds.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lofi.config import PostProcessing
from lofi.data.annotations import Video
from lofi.data.features import Features
from lofi.detection.classes import VideoClassifier, softmax_regression
from lofi.detection.nms import soft_nms
from lofi.detection.results import Detection
from lofi.heads.base import Proposals

CONTEXT = 0.5  # length of what is seen before and after, in lengths of the segment
SHIFTS, SCALES = (-0.6, -0.3, -0.15, 0.0, 0.15, 0.3, 0.6), (0.5, 0.75, 1.0, 1.35, 2.0)
NOTHING, WHOLE = 0.3, 0.7  # tIoU with an event up to which, and from which, the target is 0 and 1
PIECES = 200  # of one length that a video gives at most
WEIGHT_DECAY = 3e-2  # factor of half the squared weights beside the mean cross-entropy
CANDIDATES = 1000  # proposals of one window that are classified


def pooled(features: Features, segments_s: np.ndarray) -> Tensor:
    """(N, 3C + 1) float64: means inside, before and after each segment, and its log length."""
    values, grid = features
    steps = values.shape[1]
    start, end = torch.as_tensor(np.asarray(segments_s, np.float64)).T
    length = (end - start).clamp_min(1e-3)
    starts = torch.stack([start, start - CONTEXT * length, end])  # (3, N)
    ends = torch.stack([end, start, end + CONTEXT * length])
    first, last = (((t - grid.start_s) / grid.step_s).clamp(0, steps) for t in (starts, ends))
    middle, half = (first + last) / 2, ((last - first) / 2).clamp_min(0.5)  # at least one step
    middle = torch.minimum(torch.maximum(middle, half), steps - half)  # inside the video
    places = torch.stack([middle - half, middle + half]).clamp(0, steps)
    low, high = (int(places.min()), int(places.max().ceil())) if len(start) else (0, 0)
    summed = torch.nn.functional.pad(values[:, low:high].double().cumsum(1), (1, 0))
    below = places.floor().long().clamp_max(max(0, high - 1))
    share = places - below
    sums = summed[:, below - low] * (1 - share) + summed[:, below + 1 - low] * share
    means = (sums[:, 1] - sums[:, 0]) / (2 * half)  # (C, 3, N)
    return torch.cat([means.transpose(0, 1).flatten(0, 1), length.log()[None]]).T


class SegmentClassifier(VideoClassifier):
    """See the module; (K + 1, 3C + 1) float64 weights, whose last row is "nothing"."""

    what, format = "segment classifier", "lofi-segment-classifier-1"
    file = "segment_classifier.safetensors"

    def predict(self, features: Features, segments_s: np.ndarray) -> np.ndarray:
        """(N, K) probability that a segment shows each class; a row's rest to 1 is "nothing"."""
        channels = (len(self.mean) - 1) // 3
        if len(features.values) != channels:
            found = f"features have {len(features.values)} channels"
            cure = "use the encoder it was trained with"
            raise ValueError(f"{found}, the segment classifier was trained on {channels}; {cure}")
        x = (pooled(features, segments_s) - self.mean) / self.std
        return (x @ self.weight.T + self.bias).softmax(1)[:, :-1].numpy()


def examples(video: Video, features: Features, names: Sequence[str], lengths: Sequence[float]):
    """Training segments (N, 2) of one video, and how much of each class they are, (N, K + 1)."""
    truth = np.array([[s.start_s, s.end_s] for s in video.segments]).reshape(-1, 2)
    duration = features.grid.duration_s
    length = truth[:, 1] - truth[:, 0]
    moved = [truth]
    for shift in SHIFTS:
        for scale in SCALES:
            middle = truth.mean(1) + shift * length
            half = scale * length / 2
            moved.append(np.stack([middle - half, middle + half], 1))
    for size in lengths:  # the whole video in pieces, mostly background
        room = max(duration - size, 0.0)
        start = np.linspace(0, room, min(PIECES, 1 + int(2 * room / size)))
        moved.append(np.stack([start, start + size], 1))
    segments = np.concatenate(moved).clip(0, duration)
    segments = segments[np.diff(segments)[:, 0] > 0]
    inner = np.minimum(segments[:, None, 1], truth[:, 1]) - np.maximum(segments[:, :1], truth[:, 0])
    inner = inner.clip(0)  # (N, events)
    overlap = inner / (np.diff(segments) + np.diff(truth)[:, 0] - inner)
    target = np.zeros((len(segments), len(names) + 1))
    for i, event in enumerate(video.segments):
        share = ((overlap[:, i] - NOTHING) / (WHOLE - NOTHING)).clip(0, 1)
        column = names.index(event.label)
        target[:, column] = np.maximum(target[:, column], share)
    target /= np.maximum(target.sum(1, keepdims=True), 1)
    target[:, -1] = 1 - target.sum(1)
    return segments, target


def train_segment_classifier(
    features: Mapping[str, Features], videos: Sequence[Video]
) -> SegmentClassifier:
    """Fit the classifier with L-BFGS; videos whose id has no features are left out.

    ValueError where no video with features has an event.
    """
    videos = [video for video in videos if video.id in features]
    events = [s for video in videos for s in video.segments if s.end_s > s.start_s]
    names = tuple(sorted({event.label for event in events}))
    if not names:
        found = f"{len(videos)} videos with features, none with an event"
        raise ValueError(f"{found}; check that ids of features and annotations agree")
    lengths = np.quantile([event.end_s - event.start_s for event in events], (0.1, 0.5, 0.9))
    inputs, targets = [], []
    for video in videos:
        segments, target = examples(video, features[video.id], names, lengths)
        inputs.append(pooled(features[video.id], segments))
        targets.append(torch.from_numpy(target))
    fitted = softmax_regression(torch.cat(inputs), torch.cat(targets), len(names) + 1, WEIGHT_DECAY)
    return SegmentClassifier(names, *fitted)


def segment_detections(
    windows: Iterable[Proposals], features: Features, classifier: SegmentClassifier,
    post: PostProcessing,
) -> list[Detection]:  # fmt: skip
    """Classified proposals of one video, best first; soft-NMS inside each class.

    `windows` are proposals before suppression, of the whole video or of one sliding window after
    the other, which are joined by suppression over their union. Of a window the `CANDIDATES` best
    are classified; `top_k` of a class survive, in long videos as many for every two windows.
    """
    tables: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in classifier.names]
    for window in windows:
        best = np.argsort(-window.scores, kind="stable")[:CANDIDATES]
        segments = window.segments_s[best].clip(0, features.grid.duration_s)
        inside = np.diff(segments)[:, 0] > 0
        segments, scores = segments[inside], window.scores[best][inside]
        classified = scores[:, None] * classifier.predict(features, segments)
        for mine, column in zip(tables, classified.T):
            mine.append(soft_nms(segments, column, post.sigma, post.top_k))
    found = []
    for name, mine in zip(classifier.names, tables if tables[0] else ()):
        kept = mine[0]
        if len(mine) > 1:
            joined = map(np.concatenate, zip(*mine))
            kept = soft_nms(*joined, post.sigma, post.top_k * max(1, len(mine) // 2))
        pairs = zip(kept[0].tolist(), kept[1].tolist())
        found += [Detection(*segment, name, score) for segment, score in pairs]
    return sorted(found, key=lambda detection: -detection.score)
