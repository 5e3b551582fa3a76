"""Decoding the frames of a low-fidelity clip: ours against decoding everything, then resizing.

    python tests/benchmarks/decoding.py [--json OUT]

Renders a video, then times three ways to get the same clip in turn, so that their ratio does not
depend on the machine's mood: `read_clip` (only the frames asked for, scaled in the decoder),
PyAV frame by frame with every frame resized by torch, and `read_clip` with its cache filled.
Numbers are medians of milliseconds of process CPU time per video (all threads).
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
    "real S, 100 x 8 x 112": ((1500, 256, 340), 100, 8, 112, 8),
    "real T, 25 x 8 x 224": ((1500, 256, 340), 25, 8, 224, 8),
}


def render(path: Path, num_frames: int, height: int, width: int) -> None:
    """A drifting smooth texture; a key frame every 50 frames, as video sites do."""
    from lofi.data.encoding import write_video

    coarse = torch.rand(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    texture = torch.nn.functional.interpolate(255 * coarse, size=(height, width), mode="bilinear")
    texture = texture[0].permute(1, 2, 0).to(torch.uint8).numpy()
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for i in range(num_frames):
        frames[i] = np.roll(texture, (i // 2, i), axis=(0, 1))
    write_video(path, frames, fps=25.0, keyframe_interval=50)


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


def median_ms(calls: dict[str, Callable], repeats: int) -> dict[str, float]:
    """CPU times of every call in turn, `repeats` times."""
    times = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def measure(case: tuple, folder: Path) -> dict[str, float]:
    """Medians, their ratios, and the mean difference of the two results in grey levels."""
    from lofi.data.snippets import FrameCache, crop_of, frame_indices, read_clip
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
        "ours": lambda: read_clip(path, fidelity, **options),
        "naive": lambda: naive(path, indices, crop),
        "cached": lambda: read_clip(path, fidelity, cache=cache, **options),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--quick", action="store_true", help="only the toy cases")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {k: v for k, v in CASES.items() if not (arguments.quick and k.startswith("real"))}
    with tempfile.TemporaryDirectory() as folder:
        results = {name: measure(case, Path(folder)) for name, case in chosen.items()}
    for name, numbers in results.items():
        print(name, {key: round(value, 3) for key, value in numbers.items()})
    if arguments.json:
        from lofi.files import write_json

        write_json(arguments.json, results)


if __name__ == "__main__":
    main()
