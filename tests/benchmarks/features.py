"""From a video file to snippet features: ours against a plain loop, in turns in one process.

    python tests/benchmarks/features.py [--json OUT] [--pixels 224] [--snippets 16] [--repeats 5]

The plain loop opens the file with PyAV, decodes in order, scales and cuts every wanted frame, and
passes one snippet of 8 frames at a time through a plain TSM-R18 (that of `encoders.py`,
channels first, float32). Ours is what `lofi train features` and `lofi detect` call. One thread,
medians of process CPU time a frame, features compared with the plain ones, and the share of the
rate that this machine reaches in one large float32 matrix product (R18 at 224 pixels needs 3.64
GFLOP a frame). Decoded pixels differ by the scaler, so the encoders are compared on equal pixels.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import torch
from decoding import render
from encoders import FRAMES, our_encoder, plain_encoder, random_weights

from lofi.data.reading import ClipRequest
from lofi.data.snippets import Crop, crop_of, frame_indices
from lofi.encoders.base import normalise
from lofi.encoders.extraction import clip_features
from lofi.fidelity import Fidelity

GFLOP = 3.64  # of one frame of R18 at 224 pixels


def cpu_seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def gemm_rate(size: int = 1536, repeats: int = 5) -> float:
    """GFLOP/s of a float32 matrix product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2e-9 * size**3 / min(cpu_seconds(lambda: a @ b) for _ in range(repeats))


@torch.no_grad()
def plain_features(encoder, clip: torch.Tensor) -> torch.Tensor:
    """(C, L) of (L, F, 3, S, S) uint8, one snippet at a time."""
    return torch.cat([encoder(normalise(snippet[None], encoder)) for snippet in clip]).T


def plain_decode(path: Path, indices: list[int], crop: Crop) -> torch.Tensor:
    """Every frame in order; the wanted ones scaled and cut."""
    found, wanted = {}, set(indices)
    with av.open(str(path)) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i in wanted:
                small = frame.reformat(crop.width, crop.height, "rgb24").to_ndarray()
                bottom, right = crop.top + crop.pixels, crop.left + crop.pixels
                found[i] = torch.from_numpy(small[crop.top : bottom, crop.left : right])
    return torch.stack([found[i].permute(2, 0, 1) for i in indices])


def measure(pixels: int, snippets: int, repeats: int) -> list[dict]:
    weights = random_weights()
    plain = plain_encoder(weights, "cpu").eval()
    plain.mean, plain.std = our_encoder(weights, "cpu", False, False).mean, (0.229, 0.224, 0.225)
    ours = {
        "ours": our_encoder(weights, "cpu", False, False).eval(),
        "ours, channels_last": our_encoder(weights, "cpu", True, False).eval(),
        "ours, channels_last, folded": our_encoder(weights, "cpu", True, True).eval(),
    }
    with tempfile.TemporaryDirectory() as folder:
        path, fidelity = Path(folder) / "a.mp4", Fidelity(snippets, FRAMES, pixels)
        render(path, snippets * FRAMES * 3, 360, 640)
        request = ClipRequest(path, fidelity, frame_stride=3)
        indices = frame_indices(snippets * FRAMES * 3, fidelity, 3).reshape(-1).tolist()
        crop, clip = crop_of(360, 640, pixels), request.read()
        expected = plain_features(plain, clip)
        runs = {"plain": lambda: plain_features(plain, clip)}
        runs |= {name: (lambda e=e: clip_features(e, clip)) for name, e in ours.items()}

        def plain_loop() -> None:
            plain_features(plain, plain_decode(path, indices, crop).view(request.shape))

        whole = {"plain": plain_loop}
        whole |= {n: (lambda n=n: clip_features(ours[n], request.read())) for n in ours}
        times: dict[str, list[float]] = {name: [] for name in whole}
        alone: dict[str, list[float]] = {name: [] for name in whole}
        for _ in range(repeats):
            for name in whole:
                times[name].append(cpu_seconds(whole[name]))
                alone[name].append(cpu_seconds(runs[name]))
        rate, rows = gemm_rate(), []
        for name in whole:
            frame = statistics.median(times[name]) / (snippets * FRAMES)
            network = statistics.median(alone[name]) / (snippets * FRAMES)
            found = expected if name == "plain" else clip_features(ours[name], clip)
            rows.append({
                "variant": name, "ms_a_frame": 1e3 * frame, "network_ms": 1e3 * network,
                "ratio": statistics.median(times["plain"]) / statistics.median(times[name]),
                "of_gemm": GFLOP * (pixels / 224) ** 2 / network / rate,
                "difference": float((found - expected).abs().max() / expected.abs().max()),
            })  # fmt: skip
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--snippets", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(arguments.pixels, arguments.snippets, arguments.repeats)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread")
    for row in rows:
        print("  ".join(f"{v:10.3g}" if isinstance(v, float) else f"{v:28s}" for v in row.values()))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
