"""Features of one video: its snippets at full fidelity through a frozen encoder.

L snippets of F frames, S pixels a side, C channels; T snippets where videos are cut into windows.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from lofi.config import Config
from lofi.data import ClipRequest, VideoInfo, probe
from lofi.data.datasets import video_grid, video_request
from lofi.data.features import Features
from lofi.encoders.base import BatchNorm, normalise


def placed(config: Config, encoder: nn.Module, device: str) -> nn.Module:
    """The encoder on a device, in the memory order of `config.channels_last`."""
    if not config.channels_last:
        return encoder.to(device)
    deep = any(parameter.dim() == 5 for parameter in encoder.parameters())
    order = torch.channels_last_3d if deep else torch.channels_last
    return encoder.to(device, memory_format=order)


def autocast(amp: str, device: torch.device | str) -> contextlib.AbstractContextManager:
    """Where operations that allow it compute in "bf16" or "fp16"; nothing for "fp32"."""
    if amp == "fp32":
        return contextlib.nullcontext()
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    return torch.autocast(torch.device(device).type, kind)


def grad_scaler(amp: str, device: torch.device | str) -> GradScaler:
    """What keeps small gradients from becoming 0 in "fp16"; it does nothing for the others."""
    on = amp == "fp16"
    return GradScaler(torch.device(device).type if on else "cpu", enabled=on)


@contextlib.contextmanager
def folding(encoder: nn.Module) -> Iterator[None]:
    """While the block runs, norms with fixed statistics go into the convolutions before them, see
    `convolve`, whose weights are made once: for features, of which no graph is kept."""
    norms = [part for part in encoder.modules() if isinstance(part, BatchNorm)]
    fixed = [norm for norm in norms if not norm.training]
    try:
        for norm in fixed:
            norm.made = ()
        yield
    finally:
        for norm in fixed:
            norm.made = None


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
    (VideoError if they cannot be counted); at most `full.snippets` and half a GiB of frames are in
    memory at a time.
    """
    data, full = config.data, config.full
    if not data.window_stride:
        return [video_request(data, path, full)]
    grid = video_grid(data, probe(path), full)
    count = max(1, min(full.snippets, 2**29 // (full.frames * 3 * full.pixels**2)))
    firsts = range(0, grid.steps, count)
    pieces = [grid.window(first, min(count, grid.steps - first)) for first in firsts]
    return [video_request(data, path, replace(full, snippets=p.steps), grid=p) for p in pieces]


@torch.no_grad()
def clip_features(encoder: nn.Module, clip: Tensor, chunk: int = 0, amp: str = "fp32") -> Tensor:
    """(C, L) features of the snippets (L, F, 3, S, S) uint8 of one video, on the CPU.

    `chunk` snippets pass the (eval mode) encoder at a time, whatever the result. 0: 16, on a CPU no
    more than make half a million pixels, because more only wait for pages of memory.
    """
    device = next(encoder.parameters()).device
    pixels = clip[0].numel() // 3
    chunk = chunk or (16 if device.type != "cpu" else min(16, max(1, 2**19 // pixels)))
    with autocast(amp, device), folding(encoder):
        parts = (part[None].to(device, non_blocking=True) for part in clip.split(chunk))
        features = torch.cat([encode(encoder, part)[0] for part in parts], dim=1)
    return features.float().cpu()


def video_features(
    config: Config, encoder: nn.Module, path: str | Path
) -> tuple[Features, VideoInfo]:
    """Features of one video file at full fidelity, and what was found in the file."""
    requests = full_requests(config, path)
    parts = [clip_features(encoder, request.read(), amp=config.amp) for request in requests]
    values = torch.cat(parts, dim=1)
    info = probe(path)
    return Features(values, video_grid(config.data, info, config.full)), info
