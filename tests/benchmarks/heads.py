"""Lean heads against the plain ones of `tests/reference_networks.py`, interleaved in one process.

python -m tests.benchmarks.heads [--json OUT] [--device cuda] [--repeats 5] [--cases NAME]

Ratios are plain / lean medians (CPU: process time; GPU: synchronised wall time). Saved bytes are
the tensors that autograd keeps for backward, every storage once, without parameters and constants.
Peak bytes are the growth of memory during forward + backward of two videos, weight gradients
included (GPU: allocator; Linux: resident set of a fresh process, large tensors off its heap).
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lofi.heads import BMN, GTAD, Maps
from tests.reference_networks import PlainBMN, PlainGTAD

CASES = {
    "gtad_anet": lambda: GTAD(512),
    "gtad_3x3": lambda: GTAD(512, head_kernel=3),
    "bmn": lambda: BMN(512),
}
GOALS = {  # forward, forward + backward, saved share, peak share
    "gtad_anet": (50, 40, 0.06, 0.05),
    "gtad_3x3": (35, 30, 0.08, 0.05),
    "bmn": (15, 15, 0.08, 0.05),
}


def forward(head: nn.Module, x: Tensor) -> Maps:
    with torch.no_grad():
        return head(x)


def forward_backward(head: nn.Module, x: Tensor) -> None:
    maps = head(x.requires_grad_())
    sum(m.square().sum() for m in maps).backward()
    head.zero_grad(set_to_none=True)
    x.grad = None


def seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - begin
    begin = time.process_time()
    run()
    return time.process_time() - begin


def saved_bytes(head: nn.Module, x: Tensor) -> int:
    constant = {p.untyped_storage().data_ptr() for p in head.parameters()}
    constant |= {
        v.untyped_storage().data_ptr() for v in vars(head).values() if isinstance(v, Tensor)
    }
    seen = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in constant:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        maps = head(x.requires_grad_())
        total = sum(seen.values())
        del maps
    return total


def peak_bytes(head: nn.Module, x: Tensor, run: Callable = forward_backward) -> int | None:
    gc.collect()
    if x.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(head, x)
        return torch.cuda.max_memory_allocated() - before
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # give freed memory back, or the growth would reuse it
    reset.write_text("5")
    before = _status("VmRSS")
    run(head, x)
    return _status("VmHWM") - before


def keep_large_tensors_off_the_heap() -> None:
    """Map every block of 1 MiB or more by itself, so that its pages go when it is freed.

    By default glibc raises this limit up to 32 MiB as blocks are freed, and the resident set then
    contains the holes that earlier tensors left. Has to be called before the first tensor.
    """
    if Path("/proc/self/clear_refs").exists():
        ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD


def peaks(name: str, snippets: int, device: torch.device) -> list[int | None]:
    """Of the plain and the lean head; on a CPU to be called in a process of its own."""
    torch.set_num_threads(1)
    if device.type == "cpu":
        keep_large_tensors_off_the_heap()
    plain, lean = heads(name, snippets, device)
    pair = torch.randn(2, lean.channels, snippets, device=device)
    forward_backward(lean, pair)  # libraries are loaded and have their own buffers from here on
    return [peak_bytes(head, pair) for head in (plain, lean)]


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def heads(name: str, snippets: int, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """The plain and the lean head with the same weights."""
    torch.manual_seed(0)
    lean = CASES[name]().to(device)
    plain = (PlainBMN(lean, snippets) if name == "bmn" else PlainGTAD(lean)).to(device)
    for key, value in vars(plain).items():
        if isinstance(value, Tensor):
            setattr(plain, key, value.to(device))
    return plain, lean


def measure(name: str, snippets: int, repeats: int, device: torch.device) -> dict:
    plain, lean = heads(name, snippets, device)
    x = torch.randn(1, lean.channels, snippets, device=device)
    pair = torch.randn(2, lean.channels, snippets, device=device)
    error = max((a - b).abs().max().item() for a, b in zip(forward(lean, x), forward(plain, x)))
    times = {}
    for label, run in (("forward", forward), ("forward_backward", forward_backward)):
        pairs = []
        for _ in range(repeats + 1):
            pairs.append([seconds(partial(run, head, x), device) for head in (plain, lean)])
        times[label] = [statistics.median(side) for side in zip(*pairs[1:], strict=True)]
    saved = [saved_bytes(head, pair) // 2 for head in (plain, lean)]
    if device.type == "cpu":
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            peak = fresh.submit(peaks, name, snippets, device).result()
    else:
        peak = peaks(name, snippets, device)
    return {
        "seconds": {k: {"plain": v[0], "lean": v[1]} for k, v in times.items()},
        "forward_ratio": times["forward"][0] / times["forward"][1],
        "forward_backward_ratio": times["forward_backward"][0] / times["forward_backward"][1],
        "saved_bytes_per_video": {"plain": saved[0], "lean": saved[1]},
        "saved_share": saved[1] / saved[0],
        "peak_bytes_of_two_videos": {"plain": peak[0], "lean": peak[1]},
        "peak_share": None if peak[0] is None else peak[1] / peak[0],
        "largest_difference": error,
        "goals": dict(zip(("forward", "forward_backward", "saved", "peak"), GOALS[name])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--snippets", type=int, default=100)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(1)
    results = {}
    for name in options.cases:
        results[name] = measure(name, options.snippets, options.repeats, device)
        print(json.dumps({name: results[name]}), flush=True)
    if options.json:
        settings = {"torch": torch.__version__, "device": str(device), "snippets": options.snippets}
        options.json.write_text(json.dumps({"settings": settings, "heads": results}, indent=1))


if __name__ == "__main__":
    main()
