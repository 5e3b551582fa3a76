"""Which fidelities and encoder modes fit a memory budget, and what they cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from lofi.budget.memory import activation_bytes
from lofi.config import Mode
from lofi.encoders import Encoder, build_encoder, freeze_batch_norm
from lofi.encoders.vit import VideoViT
from lofi.fidelity import LOW_BUDGET, REDUCTIONS, Fidelity

GIB = 2**30
MODES = (Mode(), Mode(fold=True), Mode(recompute=True), Mode("partial"), Mode("exact"),
         Mode("exact", chunk=1), Mode("sampled"), Mode("frozen"))  # fmt: skip


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
    budget_gib: float, encoder: Encoder | str | None, head: nn.Module | None = None,
    full: Fidelity | None = None, batch: int = 16, amp: str = "fp32", *,
    modes: Sequence[Mode] = MODES, optimiser_copies: int = 1,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> list[PlanRow]:  # fmt: skip
    """List which fidelities and modes fit on one device.

    Args:
        budget_gib: memory of the device in GiB (2^30 bytes).
        encoder: None: stage 3 alone, on features that are given.
        full: fidelity that LoFi reduces; default `Fidelity()`.
        batch: wanted videos a step on the device.
        modes: how to train at full fidelity.
        optimiser_copies: values kept for each trained weight (SGD with momentum 1, Adam 2).
        progress: called with (rows done, all rows, the next one) before every row.
    """
    if isinstance(encoder, str):
        encoder = build_encoder(encoder)
        freeze_batch_norm(encoder)
    full = full or Fidelity()
    if modes is MODES and isinstance(encoder, VideoViT):
        modes = (*MODES, Mode("adapters"))
    patch = encoder.patch if encoder else 1
    low = {name.upper(): full.reduced(*by, patch) for name, by in REDUCTIONS.items()}
    low["low budget"] = full.reduced(*LOW_BUDGET, patch)
    wanted = [(f"{name} LoFi", fidelity, Mode()) for name, fidelity in low.items()]
    wanted += [("full fidelity", full, mode) for mode in modes]
    if encoder is None:
        wanted = [("head on features", full, Mode())]
    weights = [weight for part in (encoder, head) if part for weight in part.parameters()]
    state = optimiser_copies * sum(weight.nbytes for weight in weights if weight.requires_grad)
    room = budget_gib * GIB - state
    reports, rows = [], []
    for done, (name, size, mode) in enumerate(wanted):
        progress(done, len(wanted), f"{name} {mode}")
        report, largest = activation_bytes(encoder, head, size, batch, amp, mode), batch
        if report.peak_bytes > room:
            largest = 0
            if batch > 1:
                one = activation_bytes(encoder, head, size, 1, amp, mode).peak_bytes
                per_video = (report.peak_bytes - one) / (batch - 1)
                largest = max(0, int((room - one) // per_video) + 1)
        reports.append((report, largest))
    base = next((r for r, _ in reports if r.fidelity == full and r.mode == Mode()), None)
    base = base or activation_bytes(encoder, head, full, 1, amp)
    for (name, fidelity, mode), (report, largest) in zip(wanted, reports, strict=True):
        fits = report.peak_bytes <= room
        compute = report.flops / batch / (base.flops / base.batch)
        decoded = fidelity.snippets * fidelity.frames if encoder else 0
        memory = report.peak_bytes + state
        rows.append(PlanRow(name, fidelity, mode, batch, memory, largest, fits, compute, decoded))
    return rows
