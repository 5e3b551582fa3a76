"""From a video file to snippet features: ours against a plain loop, in turns in one process.

    python tests/benchmarks/features.py [--json OUT] [--pixels 224] [--snippets 16] [--repeats 5]
                                        [--device cuda] [--videos 32]

The plain loop opens the file with PyAV, decodes in order, scales and cuts every wanted frame, and
passes one snippet of 8 frames at a time through a plain TSM-R18 (that of `encoders.py`,
channels first, float32). Ours is what `lofi train features` and `lofi detect` call, in bfloat16
too where the processor computes in it. One thread, medians of process CPU time a frame, features
compared with the plain ones, and the share of the rate that this machine reaches in one large
matrix product of that precision (R18 at 224 pixels needs 3.64 GFLOP a frame). Decoded pixels differ
by the scaler, so the encoders are compared on equal pixels.

On a GPU: the network alone on a clip in pinned memory, norms folded and (`apart`) as in training,
and `lofi train features` on rendered videos with one decoding thread a core, in wall time, per
precision and memory order.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import torch
from decoding import render
from encoders import FRAMES, our_encoder, plain_encoder, random_weights

from lofi.config import override, preset
from lofi.data.reading import ClipRequest
from lofi.data.snippets import Crop, crop_of, frame_indices
from lofi.encoders.base import normalise
from lofi.encoders.extraction import autocast, clip_features, encode
from lofi.fidelity import Fidelity
from lofi.training.head import extract_features

GFLOP = 3.64  # of one frame of R18 at 224 pixels


def cpu_seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def gemm_rate(kind: torch.dtype, size: int = 1536, repeats: int = 5) -> float:
    """GFLOP/s of a matrix product."""
    a, b = torch.randn(2, size, size).to(kind)
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
    last = our_encoder(weights, "cpu", True, False).eval()
    ours = {"ours": our_encoder(weights, "cpu", False, False).eval(), "ours, channels_last": last}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and {"avx512_bf16", "amx_bf16"} & set(cpuinfo.read_text().split()):
        ours["ours, channels_last, bf16"] = last
    amp = {name: "bf16" if "bf16" in name else "fp32" for name in ("plain", *ours)}
    with tempfile.TemporaryDirectory() as folder:
        path, fidelity = Path(folder) / "a.mp4", Fidelity(snippets, FRAMES, pixels)
        render(path, snippets * FRAMES * 3, 360, 640)
        request = ClipRequest(path, fidelity, frame_stride=3)
        indices = frame_indices(snippets * FRAMES * 3, fidelity, 3).reshape(-1).tolist()
        crop, clip = crop_of(360, 640, pixels), request.read()
        expected = plain_features(plain, clip)
        runs = {"plain": lambda: plain_features(plain, clip)}
        runs |= {n: (lambda n=n: clip_features(ours[n], clip, amp=amp[n])) for n in ours}

        def plain_loop() -> None:
            plain_features(plain, plain_decode(path, indices, crop).view(request.shape))

        whole = {"plain": plain_loop}
        for name in ours:
            whole[name] = lambda n=name: clip_features(ours[n], request.read(), amp=amp[n])
        times: dict[str, list[float]] = {name: [] for name in whole}
        alone: dict[str, list[float]] = {name: [] for name in whole}
        for _ in range(repeats):
            for name in whole:
                times[name].append(cpu_seconds(whole[name]))
                alone[name].append(cpu_seconds(runs[name]))
        rates = {"fp32": gemm_rate(torch.float32)}
        rates |= {"bf16": gemm_rate(torch.bfloat16)} if "bf16" in amp.values() else {}
        rows = []
        for name in whole:
            frame = statistics.median(times[name]) / (snippets * FRAMES)
            network = statistics.median(alone[name]) / (snippets * FRAMES)
            found = runs[name]()
            rows.append({
                "variant": name, "ms_a_frame": 1e3 * frame, "network_ms": 1e3 * network,
                "ratio": statistics.median(times["plain"]) / statistics.median(times[name]),
                "of_gemm": GFLOP * (pixels / 224) ** 2 / network / rates[amp[name]],
                "difference": float((found - expected).abs().max() / expected.abs().max()),
            })  # fmt: skip
        return rows


def wall_seconds(run: Callable[[], object], repeats: int = 1) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats


@torch.no_grad()
def norms_apart(encoder, clip: torch.Tensor, amp: str) -> torch.Tensor:
    """As `clip_features`, with batch norms that are not folded."""
    with autocast(amp, "cuda"):
        parts = [part[None].to("cuda", non_blocking=True) for part in clip.split(16)]
        return torch.cat([encode(encoder, part)[0] for part in parts], dim=1).float().cpu()


def on_gpu(pixels: int, videos: int, repeats: int) -> list[dict]:
    """Frames a second of the network alone and of the whole stage, decoding included."""
    weights = random_weights()
    full = Fidelity(100, FRAMES, pixels)
    clip = torch.randint(0, 256, (100, FRAMES, 3, pixels, pixels), dtype=torch.uint8).pin_memory()
    torch.backends.cudnn.allow_tf32 = False
    exact = clip_features(our_encoder(weights, "cuda", False, False).eval(), clip)
    torch.backends.cudnn.allow_tf32 = True
    rates = {}
    for amp, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        torch.backends.cuda.matmul.allow_tf32 = True  # as convolutions do by default
        a, b = torch.randn(2, 8192, 8192, device="cuda").to(kind)
        wall_seconds(lambda a=a, b=b: a @ b, 3)
        rates[amp] = 2 * 8192**3 / wall_seconds(lambda a=a, b=b: a @ b, 10)
    torch.backends.cuda.matmul.allow_tf32 = False
    rows = []
    for amp in ("fp32", "bf16"):
        for last, apart in ((False, False), (True, True), (True, False)):
            encoder = our_encoder(weights, "cuda", last, False).eval()
            run = partial(norms_apart if apart else clip_features, encoder, clip, amp=amp)
            found = run()  # also warms up
            seconds = wall_seconds(run, repeats)
            flop = 1e9 * GFLOP * (pixels / 224) ** 2 * 100 * FRAMES
            rows.append({
                "variant": f"network, {amp}" + ", channels_last" * last + ", apart" * apart,
                "frames_a_second": 100 * FRAMES / seconds, "of_gemm": flop / seconds / rates[amp],
                "difference": float((found - exact).abs().max() / exact.abs().max()),
            })  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        render(folder / "v0.mp4", 750, 360, 640)
        database = {}
        for i in range(videos):
            if i:
                os.link(folder / "v0.mp4", folder / f"v{i}.mp4")
            span = {"segment": [1.0, 9.0], "label": "a"}
            subset = "validation" if i % 2 else "training"
            database[f"v{i}"] = {"subset": subset, "duration": 30.0, "annotations": [span]}
        (folder / "a.json").write_text(json.dumps({"database": database}))
        cores = len(os.sched_getaffinity(0))
        config = override(preset("activitynet"), {
            "data.annotations": str(folder / "a.json"), "data.videos": str(folder), "full": full,
            "data.workers": cores, "encoder": "tsm-r18",
        })  # fmt: skip
        for amp, last in (("fp32", False), ("fp32", True), ("bf16", True)):
            chosen = override(config, {"amp": amp, "channels_last": last})
            run = folder / f"{amp}-{last}"
            seconds = wall_seconds(
                lambda c=chosen, r=run: extract_features(c, r, "random", device="cuda")
            )
            name = f"videos, {amp}, {cores} threads" + ", channels_last" * last
            rows.append({"variant": name, "frames_a_second": videos * 100 * FRAMES / seconds})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--snippets", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--videos", type=int, default=32, help="of 30 s each (cuda)")
    arguments = parser.parse_args()
    if arguments.device == "cuda":
        rows = on_gpu(arguments.pixels, arguments.videos, arguments.repeats)
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    else:
        torch.set_num_threads(1)
        rows = measure(arguments.pixels, arguments.snippets, arguments.repeats)
        print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread")
    for row in rows:
        print("  ".join(f"{v:10.3g}" if isinstance(v, float) else f"{v:28s}" for v in row.values()))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
