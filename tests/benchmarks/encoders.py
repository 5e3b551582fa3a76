"""TSM-R18 of `lofi` against a plain one, forward and backward, in turns in one process.

    python tests/benchmarks/encoders.py [--json OUT] [--device cuda] [--snippets 2] [--pixels 112]
                                        [--compile]

The plain network is written out below: shift by concatenation, channels first, float32, and
nn.BatchNorm2d with frozen statistics. A row gives the median time of a step (CPU: one thread's
process time; GPU: synchronised wall time), the ratio plain / ours, and the largest difference of
the features from the plain ones, relative to their largest value. Gradients are compared in
float64 (in float32 a ReLU at the edge may switch). Exits with 1 when a float32 row differs by more
than 1e-5 or a float64 gradient by more than 1e-10.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lofi.encoders import build_encoder, freeze_batch_norm

FRAMES = 8


# ---- the slow, obvious network ----


def plain_shift(x: Tensor, num_frames: int) -> Tensor:
    """An eighth of the channels one frame back, an eighth one ahead, zeros at the ends."""
    x = x.view(-1, num_frames, *x.shape[1:])
    fold = x.shape[2] // 8
    ahead, back, rest = x.split([fold, fold, x.shape[2] - 2 * fold], dim=2)
    ahead = torch.cat([ahead[:, 1:], torch.zeros_like(ahead[:, :1])], dim=1)
    back = torch.cat([torch.zeros_like(back[:, :1]), back[:, :-1]], dim=1)
    return torch.cat([ahead, back, rest], dim=2).flatten(0, 1)


class PlainBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        if stride > 1:
            down = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(down, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(plain_shift(x, FRAMES))))
        out = self.bn2(self.conv2(out))
        return torch.relu(out + (self.downsample(x) if hasattr(self, "downsample") else x))


class PlainTSM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for index, width in enumerate((64, 128, 256, 512)):
            blocks = [PlainBlock(inputs, width, 2 if index else 1), PlainBlock(width, width, 1)]
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
            inputs = width

    def forward(self, frames: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(frames.flatten(0, 1))))
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
        return x.view(-1, FRAMES, 512).mean(1)


# ---- the rows ----


def plain_encoder(weights: dict[str, Tensor], device: str) -> nn.Module:
    """The plain network with these weights and frozen batch normalisation."""
    encoder = PlainTSM()
    encoder.load_state_dict(weights)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    return encoder.to(device)


def our_encoder(weights: dict[str, Tensor], device: str, last: bool, fold: bool) -> nn.Module:
    """Ours with the same weights."""
    encoder = build_encoder("tsm-r18")
    encoder.load_state_dict(weights)
    freeze_batch_norm(encoder, fold=fold)
    return encoder.to(device, memory_format=torch.channels_last if last else None)


def stepper(encoder: nn.Module, frames: Tensor, bfloat16: bool) -> Callable[[], list[Tensor]]:
    """Forward and backward of a fixed loss; gives features and gradients."""

    def step() -> list[Tensor]:
        encoder.zero_grad(set_to_none=True)
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=bfloat16):
            features = encoder(frames)
        features.square().sum().backward()
        return [features.detach(), *(p.grad for p in encoder.parameters() if p.dim() > 1)]

    return step


def seconds(run: Callable[[], object], device: str) -> float:
    if device == "cpu":
        begin = time.process_time()
        run()
        return time.process_time() - begin
    torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def float64_error(weights: dict[str, Tensor], device: str) -> float:
    """Largest relative difference of a feature or gradient in float64, of all our layouts."""
    generator = torch.Generator().manual_seed(3)
    frames = torch.randn(2, FRAMES, 3, 48, 48, generator=generator).to(device, torch.float64)
    expected = stepper(plain_encoder(weights, device).double(), frames, False)()
    return max(
        difference(
            stepper(our_encoder(weights, device, *options).double(), frames, False)(), expected
        )
        for options in ((False, False), (True, False), (False, True))
    )


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def random_weights() -> dict[str, Tensor]:
    """Ours at initialisation, with statistics that are not the identity."""
    weights = build_encoder("tsm-r18", seed=0).state_dict()
    generator = torch.Generator().manual_seed(1)
    for name, value in weights.items():
        if "running" in name or value.dim() == 1:
            value.uniform_(0.5, 1.5, generator=generator)
    return weights


def measure(
    device: str, snippets: int, pixels: int, repeats: int, compiled: bool = False
) -> list[dict]:
    """One row a variant; the first is the plain network itself. `compiled` adds torch.compile."""
    weights = random_weights()
    generator = torch.Generator().manual_seed(2)
    frames = torch.randn(snippets, FRAMES, 3, pixels, pixels, generator=generator).to(device)
    variants = {
        "plain": stepper(plain_encoder(weights, device), frames, False),
        "plain, bf16": stepper(plain_encoder(weights, device), frames, True),
    }
    for name, *options, bfloat16 in (
        ("ours", False, False, False),
        ("ours, folded", False, True, False),
        ("ours, channels_last", True, False, False),
        ("ours, channels_last, folded", True, True, False),
        ("ours, channels_last, bf16", True, False, True),
        ("ours, channels_last, folded, bf16", True, True, True),
    ):
        variants[name] = stepper(our_encoder(weights, device, *options), frames, bfloat16)
    if compiled:
        for name, last in (("ours, compiled", False), ("ours, channels_last, compiled", True)):
            encoder = torch.compile(our_encoder(weights, device, last, False))
            variants[name] = stepper(encoder, frames, False)
    results = {name: run() for name, run in variants.items()}  # also the warm-up
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            times[name].append(seconds(run, device))
    plain = statistics.median(times["plain"])
    return [
        {
            "variant": name,
            "seconds": statistics.median(times[name]),
            "ratio": plain / statistics.median(times[name]),
            "difference": difference(results[name][:1], results["plain"][:1]),
        }
        for name in variants
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--snippets", type=int, default=2, help="of 8 frames each")
    parser.add_argument("--pixels", type=int, default=112)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="torch.compile beside the others")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # rows that say float32 are float32
    error = float64_error(random_weights(), arguments.device)
    sizes = arguments.snippets, arguments.pixels, arguments.repeats
    rows = measure(arguments.device, *sizes, arguments.compile)
    for row in rows:
        print("{variant:36} {seconds:9.4f} s  {ratio:6.2f}x  {difference:9.1e}".format(**row))
    print(f"largest float64 difference of a feature or gradient: {error:.1e}")
    if arguments.json:
        machine = {"torch": torch.__version__, "machine": platform.machine()}
        if arguments.device == "cuda":
            machine["gpu"] = torch.cuda.get_device_name()
        settings = {k: v for k, v in vars(arguments).items() if k != "json"}
        arguments.json.write_text(
            json.dumps({**settings, **machine, "float64_error": error, "rows": rows}, indent=1)
        )
    exact = [row["difference"] for row in rows if "bf16" not in row["variant"]]
    return int(max(exact) > 1e-5 or error > 1e-10)


if __name__ == "__main__":
    sys.exit(main())
