"""What one training step holds in memory, found without a GPU and without allocating it.

The step runs on fake tensors, which have sizes but no data. Every storage that appears is added up
until it vanishes, so the report contains what autograd really keeps, for any encoder, head,
fidelity and mode. Scratch space inside a kernel and the optimiser's state are not part of it.
Source of the budget question: LoFi paper, section 3.2 and supplement B.

B videos, L snippets a video, F frames a snippet, S pixels a side, C channels.
"""

import copy
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lofi.encoders import Encoder, build_encoder, freeze_batch_norm, freeze_until
from lofi.fidelity import LOW_BUDGET, REDUCTIONS, Fidelity

GIB = 2**30
MODES = ("full", "exact", "sampled", "partial", "frozen")


@dataclass(frozen=True)
class Mode:
    """How the encoder's gradient is found.

    Args:
        name: "full" (one graph; also every LoFi configuration), "exact" (features without graph,
            head, then every chunk again with its graph), "sampled" (the same for a share of the
            snippets only), "partial" (one graph above frozen stages), "frozen" (head only).
        chunk: snippets encoded at a time ("exact", "sampled", "frozen").
        ratio: share of the snippets that get a gradient ("sampled").
        stage: last frozen stage, inclusive ("partial").
        recompute: run each block again in the backward pass instead of keeping activations.
        fold: frozen batch normalisation folded into the convolutions.
    """

    name: str = "full"
    chunk: int = 4
    ratio: float = 0.3
    stage: str = "layer2"
    recompute: bool = False
    fold: bool = False

    def __post_init__(self) -> None:
        if self.name not in MODES:
            raise ValueError(f"unknown mode {self.name!r}; known: {', '.join(MODES)}")
        if self.chunk < 1 or not 0 < self.ratio <= 1:
            found = f"chunk {self.chunk}, ratio {self.ratio}"
            raise ValueError(f"{found}: expected chunk of at least 1 and ratio in (0, 1]")

    def __str__(self) -> str:
        details = {
            "exact": f", chunk {self.chunk}",
            "sampled": f" {self.ratio:g}, chunk {self.chunk}",
            "partial": f", frozen to {self.stage}",
        }
        extras = ", recompute" * self.recompute + ", folded" * self.fold
        return self.name + details.get(self.name, "") + extras


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
    encoder = build_encoder(encoder) if isinstance(encoder, str) else encoder
    step = _Step(encoder, head, fidelity, batch, amp, _mode(mode), all_chunks=False)
    # Not part of torch's public interface, and its only way to run a model without its data.
    from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(fake):
        step = replace(step, encoder=copy.deepcopy(encoder), head=copy.deepcopy(head))
    with fake, _Ledger() as ledger, ledger.naming(step.modules()):
        for tensor in (*step.modules().parameters(), *step.modules().buffers()):
            ledger.enter(tensor)
        step.run(ledger)
    top = [Consumer(*key, size) for key, size in ledger.consumers.items()]
    top = [Consumer(name, size, kind) for name, kind, size in top]
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
    step = _Step(encoder, head, fidelity, batch, amp, _mode(mode), all_chunks=True)
    step = replace(step, encoder=copy.deepcopy(encoder), head=copy.deepcopy(head))
    static = sum(_size(t) for t in (*step.modules().parameters(), *step.modules().buffers()))
    meter = _CudaMeter if step.device.type == "cuda" else _CpuMeter
    with meter() as measured:
        step.run(measured)
    return _report(step, measured.saved, measured.peak + static, float("nan"), [])


@dataclass(frozen=True)
class PlanRow:
    """One way to train under a budget.

    `peak_bytes` is for `batch` videos with the optimiser's state, `largest_batch` the most videos
    that fit (0: not even one), `relative_compute` the arithmetic of one graph at full fidelity
    taken as 1, `decoded_frames` frames a video, each counted once.
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
        first, second = (activation_bytes(encoder, head, fidelity, n, amp, mode) for n in (1, 2))
        per_video = max(1, second.peak_bytes - first.peak_bytes)
        fixed = first.peak_bytes - per_video + state
        largest = max(0, int((budget_gib * GIB - fixed) // per_video))
        rows.append(
            PlanRow(
                name, fidelity, mode, batch,
                peak_bytes=fixed + batch * per_video,
                largest_batch=largest,
                fits=largest >= batch,
                relative_compute=first.flops / one_graph,
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


def _report(step: "_Step", saved: int, peak: int, flops: float, top: list) -> MemoryReport:
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


# ---------------------------------------------------------------------------------- the step


class _Watch:
    """What a step tells its observer; does nothing by itself."""

    def begin(self) -> None:
        """The forward pass of a graph starts; what exists already is not saved by it."""

    def end(self) -> None:
        """The forward pass of a graph is over."""

    def repeat(self, times: float) -> None:
        """What follows stands for this many equal passes."""


@dataclass(frozen=True)
class _Step:
    """One training step, without data, loss or optimiser, that runs on real and fake modules."""

    encoder: Encoder
    head: nn.Module | None
    fidelity: Fidelity
    batch: int
    amp: str
    mode: Mode
    all_chunks: bool  # or two of each kind, which have the same peak

    def __post_init__(self) -> None:
        if self.amp not in ("fp32", "bf16"):
            raise ValueError(f"unknown precision {self.amp!r}; known: fp32, bf16")
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}, expected at least 1 video")

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    @property
    def chunked(self) -> bool:
        return self.mode.name in ("exact", "sampled", "frozen")

    @property
    def snippets_at_once(self) -> int:
        total = self.batch * self.fidelity.snippets
        return min(self.mode.chunk, total) if self.chunked else total

    def frames_shape(self, snippets: int) -> tuple[int, ...]:
        return (snippets, self.fidelity.frames, 3, self.fidelity.pixels, self.fidelity.pixels)

    def modules(self) -> nn.ModuleDict:
        parts = {"encoder": self.encoder, "head": self.head}
        return nn.ModuleDict({name: part for name, part in parts.items() if part is not None})

    def run(self, watch: _Watch) -> None:
        """Forward and backward; gradients stay on the modules."""
        self.encoder.recompute = self.mode.recompute
        if self.mode.name == "partial":
            freeze_until(self.encoder, self.mode.stage)
        if self.mode.fold:
            freeze_batch_norm(self.encoder, fold=True)
        self.modules().zero_grad(set_to_none=True)
        if self.chunked:
            return self._chunks(watch)
        frames = self._frames(self.snippets_at_once)
        watch.begin()
        with self._autocast():
            total = self._head(self.encoder(frames))
        watch.end()
        total.backward()
        return None

    def _chunks(self, watch: _Watch) -> None:
        count, size = self.batch * self.fidelity.snippets, self.snippets_at_once
        features = torch.zeros(count, self.encoder.channels, device=self.device)
        for part in self._parts(count, watch):
            with torch.no_grad(), self._autocast():
                features[part] = self.encoder(self._frames(part.stop - part.start))
        watch.repeat(1)
        features.requires_grad_(self.mode.name != "frozen" or self.head is None)
        watch.begin()
        with self._autocast():
            total = self._head(features)
        watch.end()
        total.backward()
        del total
        if self.mode.name == "frozen":
            return
        chosen = count if self.mode.name == "exact" else max(1, round(self.mode.ratio * count))
        for part in self._parts(chosen, watch):
            frames = self._frames(part.stop - part.start)
            watch.begin()
            with self._autocast():
                found = self.encoder(frames)
            watch.end()
            found.backward(features.grad[part])
            del found, frames
        assert size  # 0 snippets cannot occur

    def _parts(self, count: int, watch: _Watch) -> Iterator[slice]:
        size = self.snippets_at_once
        starts = list(range(0, count, size))
        if not self.all_chunks:
            watch.repeat(max(1.0, count / size / 2))
            starts = starts[:2]
        for start in starts:
            yield slice(start, min(start + size, count))

    def _frames(self, snippets: int) -> Tensor:
        return torch.zeros(self.frames_shape(snippets), device=self.device)

    def _head(self, features: Tensor) -> Tensor:
        """Sum of all outputs; stands for the loss, whose own tensors are small."""
        features = features.view(self.batch, self.fidelity.snippets, -1).transpose(1, 2)
        outputs = self.head(features) if self.head is not None else features
        leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
        return sum(leaf.float().sum() for leaf in leaves)

    def _autocast(self):
        if self.amp == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)
