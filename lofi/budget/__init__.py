"""What one training step holds in memory, found without a GPU and without allocating it.

The step runs on fake tensors, which have sizes but no data. Every storage that appears is added up
until it vanishes, so the report contains what autograd really keeps, for any encoder, head,
fidelity and mode. Scratch space inside a kernel and the optimiser's state are not part of it.
Source of the budget question: LoFi paper, section 3.2 and supplement B.

B videos, L snippets a video, F frames a snippet, S pixels a side, C channels.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lofi.budget.step import CpuMeter, CudaMeter, Ledger, Mode, Step
from lofi.encoders import Encoder, build_encoder
from lofi.fidelity import LOW_BUDGET, REDUCTIONS, Fidelity

__all__ = [
    "Consumer",
    "MemoryReport",
    "Mode",
    "PlanRow",
    "activation_bytes",
    "measured_bytes",
    "plan",
]
GIB = 2**30


class Consumer(NamedTuple):
    """Memory kept for the backward pass by one kind of tensor of one layer."""

    name: str  # module path in the encoder, or "head.…"
    bytes: int
    kind: str


@dataclass(frozen=True)
class MemoryReport:
    """Bytes of one training step; see `activation_bytes`.

    `saved_bytes` is what waits for the backward pass, frames and weights not included, when it is
    most: all of the graph, or in the chunked modes the larger of one chunk's and the head's graph.
    `peak_bytes` is everything at once: weights, statistics, gradients, frames, activations and
    what the backward pass makes. `flops` counts multiplications and additions of convolutions and
    matrix products in both passes. `top` lists consumers of `saved_bytes`, largest first.
    """

    encoder: str
    head: str | None
    fidelity: Fidelity
    batch: int
    amp: str
    mode: Mode
    saved_bytes: int
    saved_bytes_per_video: float
    peak_bytes: int
    parameters_bytes: int
    frames_bytes: int
    flops: float
    top: tuple[Consumer, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries, for JSON."""
        return asdict(self) | {"top": [entry._asdict() for entry in self.top]}


def activation_bytes(
    encoder: Encoder | str,
    head: nn.Module | None,
    fidelity: Fidelity,
    batch: int = 1,
    amp: str = "fp32",
    mode: Mode | str = "full",
) -> MemoryReport:
    """Predict the memory of one training step; takes seconds and allocates next to nothing.

    Args:
        encoder: as it will be trained (frozen parts count as such), or a name.
        head: from (B, C, L) features to any tuple of tensors; None: the features are the output.
        batch: B, videos on one device.
        amp: "fp32", or "bf16" for autocast.
    Raises:
        ValueError: unknown name, precision or mode, or a batch below 1.
    """
    # Not part of torch's public interface, and its only way to run a model without its data.
    from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(fake):
        encoder, head = copy.deepcopy(encoder), copy.deepcopy(head)
    if isinstance(encoder, str):
        with torch.device("meta"):
            encoder = build_encoder(encoder)
        with fake:
            encoder.to_empty(device="cpu")
    step = Step(encoder, head, fidelity, batch, amp, _mode(mode), all_chunks=False)
    with fake, Ledger() as ledger, ledger.naming(step.modules()):
        for tensor in (*step.modules().parameters(), *step.modules().buffers()):
            ledger.enter(tensor)
        step.run(ledger)
    top = [Consumer(name, size, kind) for (name, kind), size in ledger.consumers.items()]
    return _report(step, ledger.saved, ledger.peak, ledger.flops, top)


def measured_bytes(
    encoder: Encoder,
    head: nn.Module | None,
    fidelity: Fidelity,
    batch: int = 1,
    amp: str = "fp32",
    mode: Mode | str = "full",
) -> MemoryReport:
    """Run the step for real on copies of the modules and read torch's allocator; `top` is empty.

    On the CPU the profiler lists every allocation; on CUDA the allocator's statistics are used.
    """
    step = Step(encoder, head, fidelity, batch, amp, _mode(mode), all_chunks=True)
    step = replace(step, encoder=copy.deepcopy(encoder), head=copy.deepcopy(head))
    static = sum(_size(t) for t in (*step.modules().parameters(), *step.modules().buffers()))
    meter = CudaMeter if step.device.type == "cuda" else CpuMeter
    with meter() as measured:
        step.run(measured)
    return _report(step, measured.saved, measured.peak + static, float("nan"), [])


@dataclass(frozen=True)
class PlanRow:
    """One way to train under a budget.

    `peak_bytes` is for `batch` videos with the optimiser's state; `largest_batch` the most videos,
    up to `batch`, that fit (0: not even one); `relative_compute` the arithmetic, with that of one
    graph at full fidelity as 1; `decoded_frames` frames a video, each counted once.
    """

    configuration: str
    fidelity: Fidelity
    mode: Mode
    batch: int
    peak_bytes: int
    largest_batch: int
    fits: bool
    relative_compute: float
    decoded_frames: int


def plan(
    budget_gib: float,
    encoder: Encoder | str,
    head: nn.Module | None = None,
    full: Fidelity | None = None,
    batch: int = 16,
    amp: str = "fp32",
    *,
    modes: Sequence[Mode] | None = None,
    optimiser_copies: int = 1,
) -> list[PlanRow]:
    """List which fidelities and modes fit on one device.

    Args:
        budget_gib: memory of the device in GiB (2^30 bytes).
        full: fidelity that LoFi reduces; default `Fidelity()`.
        batch: wanted videos a step on the device.
        modes: how to train at full fidelity; default: every mode.
        optimiser_copies: values kept for each trained weight (SGD with momentum 1, Adam 2).
    """
    encoder = build_encoder(encoder) if isinstance(encoder, str) else encoder
    full = full or Fidelity()
    if modes is None:
        modes = (Mode(), Mode(fold=True), Mode(recompute=True), Mode("partial"), Mode("exact"),
                 Mode("exact", chunk=1), Mode("sampled"), Mode("frozen"))  # fmt: skip
    low = {name.upper(): full.reduced(*by) for name, by in REDUCTIONS.items()}
    low["low budget"] = full.reduced(*LOW_BUDGET)
    wanted = [(f"{name} LoFi", fidelity, Mode()) for name, fidelity in low.items()]
    wanted += [("full fidelity", full, mode) for mode in modes]
    trained = sum(_size(p) for p in _trained(encoder)) + sum(_size(p) for p in _trained(head))
    state = optimiser_copies * trained
    one_graph = activation_bytes(encoder, head, full, 1, amp).flops
    rows = []
    for name, fidelity, mode in wanted:
        report = activation_bytes(encoder, head, fidelity, batch, amp, mode)
        largest = batch
        if report.peak_bytes + state > budget_gib * GIB and batch > 1:
            one = activation_bytes(encoder, head, fidelity, 1, amp, mode).peak_bytes
            per_video = (report.peak_bytes - one) / (batch - 1)
            largest = max(0, int((budget_gib * GIB - state - one) // per_video) + 1)
        fits = report.peak_bytes + state <= budget_gib * GIB
        rows.append(
            PlanRow(
                name,
                fidelity,
                mode,
                batch,
                peak_bytes=report.peak_bytes + state,
                largest_batch=largest if fits or batch > 1 else 0,
                fits=fits,
                relative_compute=report.flops / batch / one_graph,
                decoded_frames=fidelity.snippets * fidelity.frames,
            )  # fmt: skip
        )
    return rows


def _trained(module: nn.Module | None) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad] if module is not None else []


def _mode(mode: Mode | str) -> Mode:
    return Mode(mode) if isinstance(mode, str) else mode


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _report(step: Step, saved: int, peak: int, flops: float, top: list) -> MemoryReport:
    chunk = step.snippets_at_once * _size(torch.empty(step.frames_shape(1), device="meta"))
    return MemoryReport(
        encoder=step.encoder.name,
        head=type(step.head).__name__ if step.head is not None else None,
        fidelity=step.fidelity,
        batch=step.batch,
        amp=step.amp,
        mode=step.mode,
        saved_bytes=saved,
        saved_bytes_per_video=saved / step.batch,
        peak_bytes=peak,
        parameters_bytes=sum(_size(p) for p in step.modules().parameters()),
        frames_bytes=chunk,
        flops=flops,
        top=tuple(sorted(top, key=lambda entry: (-entry.bytes, entry.name, entry.kind))),
    )
