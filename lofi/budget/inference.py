"""What it costs to find the actions of one video: parameters, multiply-adds and time.

The encoders that LoFi compares (ACP, LoFi) are one network with other weights, so these numbers are
the same for all of them. Source: LoFi paper, table 3 and supplement B ("at inference").
L snippets of F frames with S pixels a side, C channels.
"""

import copy
import statistics
import time
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lofi.encoders.extraction import clip_features
from lofi.fidelity import Fidelity
from lofi.training.distributed import check_device


class Cost(NamedTuple):
    """Of one network, for one video."""

    parameters: int  # numbers, not bytes
    multiply_adds: float  # of convolutions and matrix products
    seconds: float | None  # median of the measured times; None: not measured


def inference_cost(
    encoder: nn.Module | None, head: nn.Module | None, fidelity: Fidelity, device: str = "cpu",
    repeats: int = 0,
) -> dict[str, Cost]:  # fmt: skip
    """{"encoder": …, "head": …} of those given, for a video (or window) as `lofi detect` sees it.

    Args:
        encoder: None: the head's features are given, (C, L).
        head: None: the encoder alone.
        device: where time is measured; ValueError: this machine lacks it.
        repeats: passes whose median time is taken; 0 = none, then only shapes are computed.
    """
    check_device(device)
    size, found = fidelity, {}
    if encoder is not None:
        count = size.snippets * _multiply_adds(encoder, 1, size.frames, 3, size.pixels, size.pixels)
        found["encoder"] = Cost(_parameters(encoder), count, None)
    if head is not None:
        count = _multiply_adds(head, 1, head.channels, size.snippets)
        found["head"] = Cost(_parameters(head), count, None)
    if repeats:
        seconds = _measured(encoder, head, size, device, repeats)
        found = {name: cost._replace(seconds=seconds[name]) for name, cost in found.items()}
    return found


def _parameters(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def _multiply_adds(network: nn.Module, *shape: int) -> float:
    """Of one pass, on tensors without data."""
    hollow = copy.deepcopy(network).to("meta").eval().requires_grad_(False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        hollow(torch.empty(shape, device="meta"))
    return counter.get_total_flops() / 2


@torch.no_grad()
def _measured(encoder, head, size: Fidelity, device: str, repeats: int) -> dict[str, float]:
    """Median seconds of each network, for whole videos that wait in memory: without decoding."""
    networks = {"encoder": encoder, "head": head}
    networks = {name: net.to(device).eval() for name, net in networks.items() if net is not None}
    shape = size.snippets, size.frames, 3, size.pixels, size.pixels
    clip = torch.randint(256, shape, dtype=torch.uint8) if encoder is not None else None
    features = torch.randn(encoder.channels if head is None else head.channels, size.snippets)
    times: dict[str, list[float]] = {name: [] for name in networks}

    def run(name: str, clip: Tensor | None) -> None:
        if name == "encoder":
            clip_features(encoder, clip)
        else:
            head(features[None].to(device))
            if torch.device(device).type != "cpu":
                torch.accelerator.synchronize()

    for name in networks:
        run(name, clip if clip is None else clip[:16])  # the first pass sets things up
        for _ in range(repeats):
            began = time.perf_counter()
            run(name, clip)
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(took) for name, took in times.items()}
