"""Memory of one training step: predicted from tensors without data, and measured.

The step is the one that training makes (`lofi.training.end_to_end.EndToEnd`), run on modules whose
weights have a shape but no data: every storage that appears is added up until it vanishes.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lofi.budget.watches import GIVEN, CpuMeter, CudaMeter, Ledger
from lofi.config import Mode
from lofi.encoders import Encoder, build_encoder, freeze_batch_norm
from lofi.encoders.base import BatchNorm
from lofi.fidelity import Fidelity
from lofi.heads import Maps, Targets, draw, loss
from lofi.training.end_to_end import EndToEnd, Watch


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
    `saved_bytes_per_video` is its share of one of the videos held at once.
    `peak_bytes` is everything at once: weights, statistics, gradients, frames, activations and
    what the backward pass makes; the videos themselves wait elsewhere. `flops` counts
    multiplications and additions of convolutions and matrix products in both passes. `top` lists
    consumers of `saved_bytes`, largest first.
    """

    encoder: str
    head: str | None
    fidelity: Fidelity
    batch: int
    micro_batch: int
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


@dataclass(frozen=True)
class Setting:
    """A question about memory: one training step and the modules on which it is tried."""

    encoder: Encoder
    head: nn.Module | None
    fidelity: Fidelity
    batch: int
    amp: str
    mode: Mode
    micro_batch: int

    def __post_init__(self) -> None:
        if self.amp not in ("fp32", "bf16"):
            raise ValueError(f"unknown precision {self.amp!r}; known: fp32, bf16")
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}, expected at least 1 video")
        if self.micro_batch < 0:
            raise ValueError(f"micro_batch is {self.micro_batch}, expected 0 (all) or more videos")

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    @property
    def videos_at_once(self) -> int:
        return min(self.batch, self.micro_batch or self.batch)

    def modules(self) -> nn.ModuleDict:
        parts = {"encoder": self.encoder, "head": self.head}
        return nn.ModuleDict({name: part for name, part in parts.items() if part is not None})

    def static(self) -> list[Tensor]:
        return [*self.modules().parameters(), *self.modules().buffers()]

    def clips(self, videos: int) -> Tensor:
        size = self.fidelity
        shape = (videos, size.snippets, size.frames, 3, size.pixels, size.pixels)
        return torch.zeros(shape, dtype=torch.uint8, device=self.device)

    def run(self, clips: Tensor, watch: Watch) -> None:
        """Forward and backward; gradients stay on the modules."""
        encoder, mode = self.encoder, self.mode
        live = any(isinstance(m, BatchNorm) and m.training for m in encoder.modules())
        if mode.fold:
            freeze_batch_norm(encoder, fold=True)
        elif live and (mode.chunked or self.micro_batch):  # training refuses anything else
            freeze_batch_norm(encoder)
        self.modules().zero_grad(set_to_none=True)
        trained = list(self.modules().parameters())
        step = EndToEnd(
            encoder, mode, trained, amp=self.amp, micro_batch=self.micro_batch, watch=watch
        )
        sampled = None
        if mode.name == "sampled":
            count = max(1, round(mode.ratio * self.fidelity.snippets))
            sampled = torch.arange(count).expand(len(clips), count)
        step.backpropagate(clips, self._losses, sampled)

    def _losses(self, features: Tensor, _: slice) -> dict[str, Tensor]:
        """The loss of a head of this kit, else the sum of all outputs."""
        outputs = features if self.head is None else self.head(features)
        if isinstance(outputs, Maps):
            labels = outputs.start.new_zeros(outputs.start.shape)
            iou = outputs.start.new_zeros(outputs.confidence[:, 0].shape)
            targets = Targets(iou, labels, labels, iou.bool())
            return {"loss": loss(outputs, targets, draws=draw(targets)).total}
        leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
        return {"loss": sum(leaf.float().sum() for leaf in leaves)}

    def report(self, saved: int, peak: int, flops: float, top: list[Consumer]) -> MemoryReport:
        """What was counted or measured, beside the question that was asked."""
        size = self.fidelity
        at_once = self.videos_at_once * size.snippets
        if self.mode.chunked:
            at_once = min(self.mode.chunk, at_once)
        weight = next(self.encoder.parameters()).element_size()
        return MemoryReport(
            encoder=self.encoder.name,
            head=type(self.head).__name__ if self.head is not None else None,
            fidelity=size,
            batch=self.batch,
            micro_batch=self.micro_batch,
            amp=self.amp,
            mode=self.mode,
            saved_bytes=saved,
            saved_bytes_per_video=saved / self.videos_at_once,
            peak_bytes=peak,
            parameters_bytes=sum(tensor_bytes(p) for p in self.modules().parameters()),
            frames_bytes=at_once * size.frames * 3 * size.pixels**2 * weight,
            flops=flops,
            top=tuple(sorted(top, key=lambda entry: (-entry.bytes, entry.name, entry.kind))),
        )


def activation_bytes(
    encoder: Encoder | str,
    head: nn.Module | None,
    fidelity: Fidelity,
    batch: int = 1,
    amp: str = "fp32",
    mode: Mode | str = "full",
    micro_batch: int = 0,
) -> MemoryReport:
    """Predict the memory of one training step; takes a second and allocates next to nothing.

    Args:
        encoder: as it will be trained (frozen parts count as such; live batch norm counts as
            frozen where training demands it), or a name (frozen batch norm).
        head: from (B, C, L) features to `Maps`, whose loss is counted, or any tuple of tensors;
            None: the features are the output.
        batch: B, videos on one device.
        amp: "fp32", or "bf16" for autocast.
        micro_batch: videos whose graph is held at once; 0 = all.
    Raises:
        ValueError: unknown name, precision or mode, or a batch below 1.
    """
    with without_data(amp, encoder, head) as hollow:
        setting = Setting(
            hollow(encoder), hollow(head), fidelity, batch, amp, _mode(mode), micro_batch
        )
        videos = min(batch, 2 * setting.videos_at_once)  # equal parts: two stand for all
        clips = setting.clips(videos)
        with Ledger(setting.device) as ledger, ledger.naming(setting.modules()):
            ledger.times = batch / videos
            ledger.enter(clips, GIVEN)
            for tensor in setting.static():
                ledger.enter(tensor)
            setting.run(clips, ledger)
    top = [Consumer(name, size, kind) for (name, kind), size in ledger.consumers.items()]
    return setting.report(ledger.saved, ledger.peak, ledger.flops, top)


def measured_bytes(
    encoder: Encoder,
    head: nn.Module | None,
    fidelity: Fidelity,
    batch: int = 1,
    amp: str = "fp32",
    mode: Mode | str = "full",
    micro_batch: int = 0,
) -> MemoryReport:
    """Run the step for real on copies of the modules and read torch's allocator; `top` is empty.

    On the CPU the profiler lists every allocation; on CUDA the allocator's statistics are used.
    """
    copies = copy.deepcopy(encoder), copy.deepcopy(head)
    setting = Setting(*copies, fidelity, batch, amp, _mode(mode), micro_batch)
    if head is not None:  # makes the tables that a head keeps for the process
        bf16 = torch.autocast(setting.device.type, torch.bfloat16, enabled=amp == "bf16")
        with torch.no_grad(), bf16:
            like = next(setting.encoder.parameters())
            setting.head(like.new_zeros(1, setting.encoder.channels, fidelity.snippets))
    static, clips = sum(map(tensor_bytes, setting.static())), setting.clips(batch)
    meter = CudaMeter if setting.device.type == "cuda" else CpuMeter
    with meter() as measured:
        setting.run(clips, measured)
    return setting.report(measured.saved, measured.peak + static, float("nan"), [])


@contextmanager
def without_data(amp: str, *modules: nn.Module | str | None) -> Iterator:
    """Yields a function that copies (or builds) a module whose tensors have no data.

    Meta tensors where they suffice. Autocast only knows devices that compute, and modules from
    elsewhere may name one; for them fake tensors (slower, and not part of torch's public
    interface) pretend to be there.
    """
    kinds = {type(m) for part in modules if isinstance(part, nn.Module) for m in part.modules()}
    meta = amp == "fp32" and all(k.__module__.split(".")[0] in ("lofi", "torch") for k in kinds)
    if meta:
        fake, convert = nullcontext(), lambda tensor: tensor.to("meta")
    else:
        from torch._subclasses.fake_tensor import FakeTensorMode

        fake = FakeTensorMode(allow_non_fake_inputs=True)
        convert = fake.from_tensor

    def hollow(module: nn.Module | str | None) -> nn.Module | None:
        if module is None:
            return None
        if isinstance(module, str):
            with torch.device("meta") if meta else nullcontext():
                module = build_encoder(module)
            freeze_batch_norm(module)  # as LoFi trains by default
            return module
        memo: dict[int, Any] = {}
        for tensor in (*module.parameters(), *module.buffers()):
            empty = convert(tensor.detach())
            if isinstance(tensor, nn.Parameter):
                empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
            memo[id(tensor)] = empty
        return copy.deepcopy(module, memo)

    with fake:
        yield hollow


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's values."""
    return tensor.numel() * tensor.element_size()


def _mode(mode: Mode | str) -> Mode:
    return Mode(mode) if isinstance(mode, str) else mode
