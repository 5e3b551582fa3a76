"""What it costs to find the actions of one video: parameters, multiply-adds and time.

The encoders that LoFi compares (ACP, LoFi) are one network with other weights, so these numbers are
the same for all of them. Source: LoFi paper, table 3 and supplement B ("at inference").
L snippets of F frames with S pixels a side, C channels.
"""

import copy
import statistics
import time
from functools import partial
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
    size, networks, found = fidelity, {}, {}
    if encoder is not None:
        frames = size.frames, 3, size.pixels, size.pixels
        networks["encoder"] = encoder, (1, *frames), size.snippets
    if head is not None:
        networks["head"] = head, (1, head.channels, size.snippets), 1
    for name, (network, shape, passes) in networks.items():
        hollow = copy.deepcopy(network).to("meta").eval().requires_grad_(False)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            hollow(torch.empty(shape, device="meta"))
        parameters = sum(weight.numel() for weight in network.parameters())
        seconds = _seconds(network, shape, passes, device, repeats) if repeats else None
        found[name] = Cost(parameters, passes * (counter.get_total_flops() / 2), seconds)
    return found


@torch.no_grad()
def _seconds(
    network: nn.Module, shape: tuple[int, ...], snippets: int, device: str, repeats: int
) -> float:
    """Median over passes with a video that waits in memory: without decoding."""
    network.to(device).eval()
    if len(shape) > 3:  # frames, so an encoder
        whole = torch.randint(256, (snippets, *shape[1:]), dtype=torch.uint8)
        run = partial(clip_features, network)
    else:
        whole = torch.randn(shape)

        def run(x: Tensor) -> None:
            network(x.to(device))
            if torch.device(device).type != "cpu":
                torch.accelerator.synchronize()

    run(whole[:16])  # the first pass sets things up
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run(whole)
        times.append(time.perf_counter() - began)
    return statistics.median(times)
