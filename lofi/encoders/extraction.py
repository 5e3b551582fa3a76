"""Features of one video: its snippets at full fidelity through a frozen encoder.

L snippets of F frames, S pixels a side, C channels; T snippets where videos are cut into windows.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lofi.config import Config
from lofi.data import ClipRequest, VideoInfo, probe
from lofi.data.datasets import video_grid, video_request
from lofi.data.features import Features
from lofi.encoders.base import normalise


def encode(encoder: nn.Module, clips: Tensor) -> Tensor:
    """Snippet features of whole videos: (B, L, F, 3, S, S) uint8 → (B, C, L).

    Every snippet passes the encoder as a clip of its own, so the temporal shift never crosses two.
    """
    videos, snippets = clips.shape[:2]
    features = encoder(normalise(clips.flatten(0, 1), encoder))
    return features.view(videos, snippets, -1).transpose(1, 2)


def full_requests(config: Config, path: str | Path) -> list[ClipRequest]:
    """The clips that make up one video at full fidelity: one, or with windows several.

    With `data.window_stride` a snippet stands every so many frames up to the end of the video
    (VideoError if they cannot be counted); at most `full.snippets` are in memory at a time.
    """
    data, full = config.data, config.full
    if not data.window_stride:
        return [video_request(data, path, full)]
    grid, count = video_grid(data, probe(path), full.snippets), full.snippets
    firsts = range(0, grid.steps, count)
    pieces = [grid.window(first, min(count, grid.steps - first)) for first in firsts]
    return [video_request(data, path, replace(full, snippets=p.steps), grid=p) for p in pieces]


@torch.no_grad()
def clip_features(encoder: nn.Module, clip: Tensor, chunk: int = 16) -> Tensor:
    """(C, L) features of the snippets (L, F, 3, S, S) uint8 of one video, on the CPU.

    `chunk` snippets pass the (eval mode) encoder at a time; the result does not depend on it.
    """
    device = next(encoder.parameters()).device
    parts = [encode(encoder, part[None].to(device))[0].cpu() for part in clip.split(chunk)]
    return torch.cat(parts, dim=1)


def video_features(
    config: Config, encoder: nn.Module, path: str | Path
) -> tuple[Features, VideoInfo]:
    """Features of one video file at full fidelity, and what was found in the file."""
    requests = full_requests(config, path)
    values = torch.cat([clip_features(encoder, request.read()) for request in requests], dim=1)
    info = probe(path)
    return Features(values, video_grid(config.data, info, config.full.snippets)), info
