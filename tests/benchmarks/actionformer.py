"""ActionFormer's head against a plain rendering of its released algorithm, and its soft-NMS.

python -m tests.benchmarks.actionformer [--json OUT] [--device cuda] [--repeats 3] [--steps 2304]

Ratios are lean / plain medians of the THUMOS14 head (2048 → 512 channels); memory is the growth
during forward + backward of one video, weight gradients included, see `tests.benchmarks.heads`.
`products`: multiply-adds of matrix products and convolutions, and the plain head's time for its
own at the rate of a large product in this process: what no arrangement of the rest can go below.
Inference: growth while a 20-minute file (9,000 steps) is decoded and suppressed.
"""

import argparse
import ctypes
import json
import multiprocessing
import shutil
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lofi.config import PostProcessing
from lofi.data.snippets import Grid
from lofi.detection import suppress
from lofi.detection.nms_points import soft_nms_classes
from lofi.heads import ActionFormer
from tests.benchmarks.heads import _status, keep_large_tensors_off_the_heap, peak_bytes, seconds

GOALS = {"peak_share": 0.6, "forward_backward_share": 0.7, "inference_bytes": 2**30}
LONG = 9000  # steps of 20 minutes, 4 frames apart at 30 frames a second


class Plain(nn.Module):
    """The released computation: channels first, every normalisation spelled out, each level by
    itself, window attention on overlapping chunks whose scores are skewed into diagonals."""

    def __init__(self, lean: ActionFormer) -> None:
        super().__init__()
        self.lean, self.channels = lean, lean.channels

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        net, mask = self.lean.backbone, x.new_ones((len(x), 1, x.shape[2]))
        for convolution, n in zip(net.embd, net.embd_norm):
            x = norm(convolution.conv(x) * mask, n).relu()
        for block in net.stem:
            x = self.block(block, x, mask)
        levels = [x]
        for block in net.branch:
            mask = F.interpolate(mask, scale_factor=0.5, mode="nearest")
            levels.append(self.block(block, levels[-1], mask))
        levels = [norm(x, n) for x, n in zip(levels, self.lean.neck.fpn_norms)]
        outputs = []
        towers = self.lean.cls_head, self.lean.reg_head
        for tower, out in zip(towers, (towers[0].cls_head, towers[1].offset_head)):
            for level, scale in zip(levels, towers[1].scale):
                mask = level.new_ones((len(level), 1, level.shape[2]))
                for convolution, n in zip(tower.head, tower.norm):
                    level = norm(convolution.conv(level) * mask, n).relu()
                y = out.conv(level) * mask
                outputs.append(y if tower is towers[0] else F.relu(y * scale.scale))
        return tuple(y.transpose(1, 2) for y in outputs)

    def block(self, block: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        y, a = norm(x, block.ln1), block.attn
        q, k, v = (
            getattr(a, kind)(
                norm(getattr(a, f"{kind}_conv").conv(y) * mask, getattr(a, f"{kind}_norm"))
            )
            for kind in ("query", "key", "value")
        )
        y = a.proj(chunked(q, k, v, mask, a.heads, a.window // 2)) * mask
        skip = x if block.stride == 1 else F.max_pool1d(x, 3, 2, 1)
        x = skip * mask + block.drop_path_attn.scale * y
        return x + block.drop_path_mlp.scale * (block.mlp(norm(x, block.ln2)) * mask)


def norm(x: Tensor, layer: nn.Module) -> Tensor:
    """Over channels, in elementary steps."""
    centred = x - x.mean(1, keepdim=True)
    variance = centred.square().mean(1, keepdim=True)
    return centred / torch.sqrt(variance + 1e-5) * layer.weight + layer.bias


def chunked(q, k, v, mask, heads: int, r: int) -> Tensor:
    """(B, D, T) → (B, D, T): chunks of 2 r steps that overlap by half, as Longformer."""
    videos, width, steps = q.shape
    d = width // heads
    q, k, v = (x.view(videos * heads, d, steps).transpose(1, 2) for x in (q, k, v))
    q = q * d**-0.5
    pieces = [x.unfold(1, 2 * r, r).transpose(2, 3) for x in (q, k)]  # (BH, n, 2r, d)
    scores = pieces[0] @ pieces[1].transpose(2, 3)
    skewed = F.pad(scores, (0, 0, 0, 1)).view(*scores.shape[:2], 2 * r, 2 * r + 1)
    band = q.new_empty((videos * heads, steps // r, r, 2 * r + 1))
    band[:, :-1, :, r:] = skewed[:, :, :r, : r + 1]
    band[:, -1, :, r:] = skewed[:, -1, r:, : r + 1]
    band[:, 1:, :, :r] = skewed[:, :, -(r + 1) : -1, r + 1 :]
    band[:, 0, 1:r, 1:r] = skewed[:, 0, : r - 1, 1 - r :] if r > 1 else 0
    band = band.flatten(1, 2)
    column = torch.arange(2 * r + 1) + torch.arange(steps)[:, None] - r
    outside = ((column < 0) | (column >= steps)).to(q.device)
    inside = mask.expand(-1, heads, -1).reshape(videos * heads, steps)
    shown = F.pad(inside, (r, r)).unfold(1, 2 * r + 1, 1)
    band = band.masked_fill(outside, -torch.inf) + (1 - shown) * -1e4
    p = band.softmax(-1).masked_fill(inside[:, :, None] == 0, 0.0)
    p = F.pad(p.view(videos * heads, steps // r, r, 2 * r + 1), (0, r)).flatten(2)
    p = p[:, :, :-r].view(videos * heads, steps // r, r, 3 * r)
    around = F.pad(v, (0, 0, r, r)).unfold(1, 3 * r, r).transpose(2, 3)  # (BH, n, 3r, d)
    y = (p @ around).flatten(1, 2)
    return y.transpose(1, 2).reshape(videos, width, steps)


def networks(device: torch.device) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    lean = ActionFormer(2048, 20).to(device)
    with torch.no_grad():  # beginning values hide mistakes: branches weigh 1e-4
        for block in (*lean.backbone.stem, *lean.backbone.branch):
            block.drop_path_attn.scale.fill_(0.5)
            block.drop_path_mlp.scale.fill_(0.5)
    return Plain(lean), lean


def run(network: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    found = network(x)
    return found if isinstance(network, Plain) else (*found.logits, *found.offsets)


def train(network: nn.Module, x: Tensor) -> None:
    sum(y.square().sum() for y in run(network, x)).backward()
    network.zero_grad(set_to_none=True)


def products(pair: tuple[nn.Module, nn.Module], x: Tensor, plain_s: float, repeats: int) -> dict:
    """Multiply-adds of both heads, and their time at the machine's rate over the plain head's."""
    macs = []
    for network in pair:
        with FlopCounterMode(display=False) as counter:
            train(network, x)
        macs.append(counter.get_total_flops() // 2)
    a, b = (torch.randn(n, n, device=x.device) for n in (2048, 2048))
    took = statistics.median(seconds(lambda: a @ b, x.device) for _ in range(2 * repeats + 1))
    rate = 2048**3 / took
    shares = {name: n / rate / plain_s for name, n in zip(("plain", "lean"), macs)}
    return {"macs": dict(zip(("plain", "lean"), macs)), "rate": rate, "share_of_plain": shares}


def peaks(steps: int) -> list[int | None]:
    """Of the plain and the lean head, in a fresh process."""
    torch.set_num_threads(1)
    keep_large_tensors_off_the_heap()
    x = torch.randn(1, 2048, steps)
    found = []
    for network in networks(torch.device("cpu")):
        train(network, x)
        found.append(peak_bytes(network, x, train))
    return found


def inference() -> dict:
    """Memory and time of a 20-minute file, from features to detections."""
    torch.set_num_threads(1)
    keep_large_tensors_off_the_heap()
    lean = networks(torch.device("cpu"))[1].eval()
    x = torch.randn(1, 2048, LONG)
    post = PostProcessing(suppression="per-class", sigma=0.5, top_k=200)
    grid = Grid.strided(LONG, 4, 30.0, LONG * 4 + 12, 0.2)
    with torch.no_grad():
        lean(x[:, :, :100])
        Path("/proc/self/clear_refs").write_text("5")
        before, begin = _status("VmRSS"), time.process_time()
        kept = suppress([lean.decode(lean(x), grid, post)], post)
        took = time.process_time() - begin
    return {"bytes": _status("VmHWM") - before, "seconds": took, "detections": len(kept.scores)}


def fresh(function, *arguments):
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# The plain loop as a compiler likes it: pick the best, decay the rest, close the gaps.
LOOP = r"""
#include <math.h>
int soft_nms(float *start, float *end, float *score, int rows, float sigma, int picks,
             float least) {
  int n = 0;
  for (; n < rows && n < picks; n++) {
    int best = n;
    for (int i = n + 1; i < rows; i++) if (score[i] > score[best]) best = i;
    float a = start[best], b = end[best], c = score[best];
    start[best] = start[n]; end[best] = end[n]; score[best] = score[n];
    start[n] = a; end[n] = b; score[n] = c;
    for (int i = n + 1; i < rows; i++) {
      float both = fminf(b, end[i]) - fmaxf(a, start[i]);
      if (both > 0) {
        float tiou = both / (b - a + 1e-6f + end[i] - start[i] + 1e-6f - both);
        score[i] *= expf(-tiou * tiou / sigma);
      }
      if (score[i] < least) {
        rows--;
        start[i] = start[rows]; end[i] = end[rows]; score[i] = score[rows];
        i--;
      }
    }
  }
  return n;
}
"""


def compiled(folder: Path):
    """The plain loop of C, optimised; None without a compiler."""
    if not (compiler := shutil.which("cc")):
        return None
    (folder / "loop.c").write_text(LOOP)
    library = folder / "loop.so"
    words = [compiler, "-O3", "-march=native", "-shared", "-fPIC", "loop.c", "-lm", "-o", library]
    subprocess.run(words, cwd=folder, check=True)
    return ctypes.CDLL(library).soft_nms


def suppression(repeats: int, rows: int = 2000) -> dict:
    """One class of 2,000 candidates, 200 picks, beside the same loop compiled from C, in turns.

    `all` lets the compiled loop go on until no candidate is left, as the released one does, which
    takes its 200 afterwards.
    """
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 2000, rows)
    spans = np.stack([start, start + rng.uniform(1, 200, rows)], 1).astype(np.float32)
    scores, labels = rng.uniform(0.001, 1, rows).astype(np.float32), np.zeros(rows, int)
    lean = partial(soft_nms_classes, spans, scores, labels, 0.5, 200, 0.001)
    cpu, found = torch.device("cpu"), {"rows": rows}
    runs = {"seconds": lean}
    with tempfile.TemporaryDirectory() as folder:
        if loop := compiled(Path(folder)):

            def plain(picks: int) -> np.ndarray:
                start, end, values = (x.copy() for x in (*spans.T, scores))
                pointers = (x.ctypes.data_as(ctypes.c_void_p) for x in (start, end, values))
                sigma, least = ctypes.c_float(0.5), ctypes.c_float(0.001)
                return values[: loop(*pointers, rows, sigma, picks, least)]

            runs |= {"compiled": partial(plain, 200), "compiled, all": partial(plain, rows)}
            found["largest_difference"] = float(np.abs(plain(200) - lean()[1]).max())
        times = [{name: seconds(run, cpu) for name, run in runs.items()} for _ in range(repeats)]
    return found | {name: statistics.median(row[name] for row in times) for name in runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2304)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(1)
    plain, lean = networks(device)
    x = torch.randn(1, 2048, options.steps, device=device)
    with torch.no_grad():
        error = max((a - b).abs().max().item() for a, b in zip(run(plain, x), run(lean, x)))
    pairs = [
        [seconds(partial(train, network, x), device) for network in (plain, lean)]
        for _ in range(options.repeats + 1)
    ]
    times = [statistics.median(side) for side in zip(*pairs[1:])]
    if device.type == "cuda":
        peak = [peak_bytes(network, x, train) for network in (plain, lean)]
    else:
        peak = fresh(peaks, options.steps)
    found = {
        "largest_difference": error,
        "seconds": dict(zip(("plain", "lean"), times)),
        "forward_backward_share": times[1] / times[0],
        "products": products((plain, lean), x, times[0], options.repeats),
        "peak_bytes": dict(zip(("plain", "lean"), peak)),
        "peak_share": peak[1] / peak[0],
        "soft_nms": suppression(20),
        "goals": GOALS,
        "torch": torch.__version__,
        "device": str(device),
    }
    if device.type == "cpu":
        found["inference"] = fresh(inference)
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
