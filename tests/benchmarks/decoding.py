"""Decoding the frames of a low-fidelity clip: ours against decoding everything, then resizing.

    python tests/benchmarks/decoding.py [--quick] [--json OUT]

Renders videos (toy size, and 30 s of 640 x 360 with a moving texture), then times in turn, so that
ratios do not depend on the machine's mood:

* one clip: `ClipRequest` (only the frames asked for, scaled in the decoder), PyAV frame by frame
  with every frame resized by torch, and `ClipRequest` with a filled cache; medians of milliseconds
  of process CPU time (all threads);
* many clips: `ClipReader` inline, with two threads and with two processes, and on low-resolution
  copies as `lofi cache` makes them; medians of milliseconds of wall time a clip.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

CASES = {  # (frames, height, width), snippets, frames a snippet, pixels, stride
    "toy S, 32 x 4 x 24": ((128, 48, 56), 32, 4, 24, 1),
    "toy T, 8 x 4 x 48": ((128, 48, 56), 8, 4, 48, 1),
    "real S, 100 x 8 x 112": ((750, 360, 640), 100, 8, 112, 8),
    "real T, 25 x 8 x 224": ((750, 360, 640), 25, 8, 224, 8),
}
WORKERS, CLIPS = 2, 4  # of the comparison of readers; every clip is of another file


def render(path: Path, num_frames: int, height: int, width: int) -> None:
    """A drifting smooth texture; a key frame every 50 frames, as video sites do."""
    from lofi.data.copies import write_video

    draws = torch.Generator().manual_seed(0)
    texture = torch.zeros(3, height, width)
    for cells in (4, 8, 32):
        coarse = torch.rand(1, 3, height // cells, width // cells, generator=draws)
        smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
        texture += 85 * smooth[0]
    texture = texture.permute(1, 2, 0).to(torch.uint8).numpy()
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for i in range(num_frames):
        frames[i] = np.roll(texture, (i // 2, i), axis=(0, 1))
    write_video(path, frames, fps=25.0, crf=23, keyframe_interval=50)


def naive(path: Path, indices: np.ndarray, crop) -> torch.Tensor:
    """Decode the whole video, resize every frame, then pick and cut."""
    import av

    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    resized = [
        torch.nn.functional.interpolate(
            torch.from_numpy(frame).permute(2, 0, 1)[None],
            size=(crop.height, crop.width),
            mode="bicubic",
            antialias=True,
        )[0]
        for frame in frames
    ]
    bottom, right = crop.top + crop.pixels, crop.left + crop.pixels
    return torch.stack([resized[i][:, crop.top : bottom, crop.left : right] for i in indices])


def median_ms(
    calls: dict[str, Callable], repeats: int, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Times of every call in turn, `repeats` times."""
    times = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = clock()
            call()
            times[name].append(1e3 * (clock() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def measure(case: tuple, folder: Path) -> dict[str, float]:
    """Medians, their ratios, and the mean difference of the two results in grey levels."""
    from lofi.data.reading import ClipRequest, FrameCache
    from lofi.data.snippets import crop_of, frame_indices
    from lofi.fidelity import Fidelity

    shape, snippets, frames, pixels, stride = case
    path = folder / f"{shape}.mp4"
    if not path.exists():
        render(path, *shape)
    fidelity = Fidelity(snippets, frames, pixels)
    ratio = 1.0 if stride == 1 else 0.875
    indices = frame_indices(shape[0], fidelity, stride).reshape(-1)
    crop = crop_of(*shape[1:], pixels, ratio)
    cache = FrameCache(2**30)
    options = dict(frame_stride=stride, crop_ratio=ratio)
    calls = {
        "ours": lambda: ClipRequest(path, fidelity, **options).read(),
        "naive": lambda: naive(path, indices, crop),
        "cached": lambda: ClipRequest(path, fidelity, **options).read(cache),
    }
    results = {name: call().float() for name, call in calls.items()}  # also warms up
    difference = (results["ours"].flatten(0, 1) - results["naive"]).abs().mean().item()
    times = median_ms(calls, repeats=9 if shape[0] < 1000 else 3)
    return {
        **{f"{name}_ms": value for name, value in times.items()},
        "naive_over_ours": times["naive"] / times["ours"],
        "ours_over_cached": times["ours"] / times["cached"],
        "mean_difference": difference,
    }


def measure_readers(folder: Path, num_frames=750, height=360, width=640) -> dict[str, float]:
    """Wall milliseconds a clip of every way to read many, and what a low-resolution copy costs."""
    from lofi.data.copies import reencode
    from lofi.data.reading import ClipReader, ClipRequest
    from lofi.fidelity import Fidelity

    path = folder / f"{(num_frames, height, width)}.mp4"
    if not path.exists():
        render(path, num_frames, height, width)
    began = time.perf_counter()
    reencode(path, folder / "copy.mp4", short_side=256)
    results = {"reencode_256_ms": 1e3 * (time.perf_counter() - began)}
    reencode(path, folder / "copy128.mp4", short_side=128)
    requests = {}
    for source, name in ((path, "full"), ("copy.mp4", "256"), ("copy128.mp4", "128")):
        copies = [folder / f"{name}-{i}.mp4" for i in range(CLIPS)]
        for copy in copies:
            copy.write_bytes((folder / source).read_bytes())
        requests[name] = [ClipRequest(copy, Fidelity(100, 8, 112)) for copy in copies]
        results[f"megabytes_{name}"] = copies[0].stat().st_size / 1e6
    inline, threads = ClipReader(), ClipReader(WORKERS)
    with ClipReader(WORKERS, processes=True) as processes:
        calls = {
            "inline": lambda: inline.read(requests["full"]),
            "threads": lambda: threads.read(requests["full"]),
            "processes": lambda: processes.read(requests["full"]),
            "threads_copy_256": lambda: threads.read(requests["256"]),
            "threads_copy_128": lambda: threads.read(requests["128"]),
        }
        for _ in range(2):  # children start, every one has seen every file
            clips = [call() for call in calls.values()]
        assert all(torch.equal(a, b) for other in clips[1:3] for a, b in zip(clips[0], other))
        times = median_ms(calls, repeats=5, clock=time.perf_counter)
    results |= {f"{name}_ms": value / CLIPS for name, value in times.items()}
    for name in ("threads", "processes"):
        results[f"inline_over_{name}"] = times["inline"] / times[name]
    for name in ("256", "128"):
        results[f"full_over_copy_{name}"] = times["threads"] / times[f"threads_copy_{name}"]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--quick", action="store_true", help="only the toy cases")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {k: v for k, v in CASES.items() if not (arguments.quick and k.startswith("real"))}
    with tempfile.TemporaryDirectory() as folder:
        results = {name: measure(case, Path(folder)) for name, case in chosen.items()}
        if not arguments.quick:
            results[f"readers, {WORKERS} workers"] = measure_readers(Path(folder))
    for name, numbers in results.items():
        print(name, {key: round(value, 3) for key, value in numbers.items()})
    if arguments.json:
        from lofi.files import write_json

        write_json(arguments.json, results)


if __name__ == "__main__":
    main()
