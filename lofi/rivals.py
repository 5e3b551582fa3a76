"""Simple ways to find events in the same features: `lofi fit` beats them, or says that it doesn't.

(a) a small LSTM over the steps of a video and a threshold, as back ends of labelling tools do it;
(b) dilated temporal convolutions that classify every step, runs above several thresholds;
(c) the nearest class mean of sliding windows. All see standardised features, (C, T) a video.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lofi.data.annotations import Video
from lofi.data.features import Features
from lofi.detection.nms import soft_nms
from lofi.detection.results import Detection
from lofi.detection.runs import runs
from lofi.detection.segment_classes import pooled
from lofi.heads.scaled import Standardise
from lofi.training.loop import generator_for

Predict = Callable[[Features], list[Detection]]
EPOCHS, LR = 40, 3e-3  # of the two networks; a step is one video


class LSTM(nn.Module):
    """(1, C, T) to (1, K, T) logits, both directions."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.lstm = nn.LSTM(channels, 32, batch_first=True, bidirectional=True)
        self.last = nn.Conv1d(64, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lstm(x.transpose(1, 2))[0].transpose(1, 2))


class Dilated(nn.Module):
    """(1, C, T) to (1, K, T) logits; residual layers that look 1, 2, 4, 8 steps to either side."""

    def __init__(self, channels: int, classes: int, hidden: int = 48):
        super().__init__()
        self.first = nn.Conv1d(channels, hidden, 1)
        self.layers = nn.ModuleList(
            nn.Conv1d(hidden, hidden, 3, padding=d, dilation=d) for d in (1, 2, 4, 8)
        )
        self.last = nn.Conv1d(hidden, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(F.dropout(x, 0.2, self.training))
        for layer in self.layers:
            x = x + F.dropout(F.relu(layer(x)), 0.2, self.training)
        return self.last(x)


def covered(video: Video, features: Features, names: Sequence[str]) -> Tensor:
    """(1, K, T): 1 where more than half of a step lies in an event of the class."""
    grid = features.grid
    lines = grid.start_s + grid.step_s * np.arange(grid.steps + 1)
    shares = np.zeros((len(names), grid.steps))
    for s in video.segments:
        inside = np.diff(lines.clip(s.start_s, s.end_s)) / grid.step_s
        row = names.index(s.label)
        shares[row] = np.maximum(shares[row], inside)
    return torch.from_numpy(shares > 0.5).float()[None]


def per_step(
    network: type[nn.Module], thresholds: Sequence[float], features: Mapping[str, Features],
    videos: Sequence[Video], names: Sequence[str], seed: int = 0,
) -> Predict:  # fmt: skip
    """Train a network that classifies steps; what it finds are runs above the thresholds.

    They are scored by their mean.
    """
    scale = Standardise(len(next(iter(features.values())).values))
    scale.fit_to([features[video.id].values for video in videos])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network(len(scale.mean), len(names))
        optimizer = torch.optim.Adam(model.parameters(), LR, weight_decay=1e-4)
        pairs = [(scale(features[v.id].values)[None], covered(v, features[v.id], names))
                 for v in videos]  # fmt: skip
        for epoch in range(EPOCHS):
            order = torch.randperm(len(pairs), generator=generator_for(seed, "rival", epoch))
            for x, y in (pairs[i] for i in order.tolist()):
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(model(x), y).backward()
                optimizer.step()
    model.eval()

    @torch.no_grad()
    def predict(seen: Features) -> list[Detection]:
        inside, grid = model(scale(seen.values)[None])[0].sigmoid().double().numpy(), seen.grid
        detections = []
        for name, row in zip(names, inside):
            steps = np.concatenate([runs(row, threshold) for threshold in thresholds])
            times = (grid.start_s + grid.step_s * steps).clip(0, grid.duration_s).tolist()
            means = [float(row[first:last].mean()) for first, last in steps]
            found = [(*span, name, mean) for span, mean in zip(times, means) if span[0] < span[1]]
            detections += map(Detection._make, found)
        return detections

    return predict


def nearest_mean(features, videos, names, seed: int = 0) -> Predict:
    """Rival (c): softmax over minus the squared distances to the means of class and background."""
    spans = {v.id: np.array([[s.start_s, s.end_s] for s in v.segments]) for v in videos}
    lengths = np.quantile(np.diff(np.concatenate(list(spans.values()))), (0.25, 0.5, 0.75))

    def windows(found: Features) -> np.ndarray:
        starts = [np.arange(0, max(found.grid.duration_s - n, 0) + 1e-9, n / 4) for n in lengths]
        pairs = [np.stack([s, s + n], 1) for s, n in zip(starts, lengths)]
        return np.concatenate(pairs).clip(0, found.grid.duration_s)

    def inside(found: Features, segments: np.ndarray) -> Tensor:
        return pooled(found, segments)[:, : len(found.values)]

    rows, labels = [], []
    for v in videos:
        pieces = windows(features[v.id])
        apart = (pieces[:, None, 1] <= spans[v.id][:, 0]) | (pieces[:, :1] >= spans[v.id][:, 1])
        rows += [inside(features[v.id], spans[v.id]), inside(features[v.id], pieces[apart.all(1)])]
        labels += [s.label for s in v.segments] + [""] * int(apart.all(1).sum())
    x = torch.cat(rows)
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    known = [*names, ""] if "" in labels else list(names)
    chosen = [torch.tensor([label == name for label in labels]) for name in known]
    centres = torch.stack([((x - mean) / std)[rows].mean(0) for rows in chosen if rows.any()])
    present = [name for name, rows in zip(known, chosen) if rows.any()]

    def predict(found: Features) -> list[Detection]:
        segments = windows(found)
        distance = torch.cdist((inside(found, segments) - mean) / std, centres).square()
        scores = (-distance / len(mean)).softmax(1).numpy()
        kept = {name: soft_nms(segments, row, 0.3) for name, row in zip(present, scores.T) if name}
        return [
            Detection(*segment, name, score)
            for name, pair in kept.items()
            for segment, score in zip(pair[0].tolist(), pair[1].tolist())
        ]

    return predict


RIVALS = {
    "LSTM, threshold": partial(per_step, LSTM, (0.5,)),
    "dilated convolutions, per step": partial(per_step, Dilated, (0.3, 0.5, 0.7)),
    "nearest class mean": nearest_mean,
}
