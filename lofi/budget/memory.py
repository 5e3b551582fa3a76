"""Memory of one training step, predicted from tensors without data.

The step is the one that training makes (`lofi.training.end_to_end.EndToEnd`), run on modules whose
weights have a shape but no data: every storage that appears is added up until it vanishes. The
optimiser's state is not part of a step, nor is scratch space inside a kernel, but for one copy of
a weight's gradient in every convolution. Some kernels take more: without AVX-512, those for the
2 × 2 maps in which 48 pixels end took four such copies (measured, oneDNN 3.12).
B videos, L snippets a video, F frames a snippet, S pixels a side, C channels.
"""

import copy
import math
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from lofi.config import Mode
from lofi.data.annotations import Video
from lofi.data.snippets import Grid
from lofi.encoders import Encoder, build_encoder, freeze_batch_norm, freeze_trunk
from lofi.encoders.base import BatchNorm
from lofi.encoders.extraction import autocast
from lofi.fidelity import Fidelity
from lofi.heads import Head, to_device
from lofi.training.end_to_end import EndToEnd, Watch


class Consumer(NamedTuple):
    """Memory kept for the backward pass by one kind of tensor of one layer."""

    name: str  # module path in the encoder, or "head.…"
    bytes: int
    kind: str


@dataclass(frozen=True)
class MemoryReport:
    """Bytes of one training step; see `activation_bytes`."""

    encoder: str  # "none": the features are given
    head: str | None
    fidelity: Fidelity
    batch: int
    micro_batch: int
    amp: str
    mode: Mode
    # What waits for the backward pass, frames and weights not included, when it is most: all of the
    # graph, or in the chunked modes the larger of one chunk's and the head's graph.
    saved_bytes: int
    saved_bytes_per_video: float  # its share of one of the videos held at once
    # Everything at once: weights, statistics, gradients, frames, activations and what the backward
    # pass makes; the videos themselves wait elsewhere.
    peak_bytes: int
    parameters_bytes: int
    frames_bytes: int
    flops: float  # multiplications and additions of convolutions, matrix products; both passes
    top: tuple[Consumer, ...]  # of `saved_bytes`, largest first

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries, for JSON."""
        return asdict(self) | {"top": [entry._asdict() for entry in self.top]}


def activation_bytes(
    encoder: Encoder | str | None, head: nn.Module | None, fidelity: Fidelity, batch: int = 1,
    amp: str = "fp32", mode: Mode | str = "full", micro_batch: int = 0,
) -> MemoryReport:  # fmt: skip
    """Predict the memory of one training step; takes a second and allocates next to nothing.

    Args:
        encoder: as it will be trained (frozen parts count as such; live batch norm counts as
            frozen where training demands it), or a name (frozen batch norm). None: a step of stage
            3, whose features are given; of the fidelity only the number of snippets counts.
        head: from (B, C, L) features to `Maps`, whose loss is counted, or any tuple of tensors;
            None: the features are the output.
        batch: B, videos on one device.
        amp: "fp32", or "bf16" for autocast.
        micro_batch: videos whose graph is held at once; 0 = all.
    Raises:
        ValueError: unknown name, precision or mode, or a batch below 1.
    """
    with _without_data(amp, encoder, head) as hollow:
        step = Step(hollow(encoder), hollow(head), fidelity, batch, amp, mode, micro_batch)
        videos = min(batch, 2 * step.videos_at_once)  # equal parts: two stand for all
        clips = step.clips(videos)
        with _Ledger(step.modules, batch / videos) as ledger:
            ledger.enter(clips, GIVEN if encoder else "")
            for tensor in step.static:
                ledger.enter(tensor)
            step.run(clips, ledger)
    top = [Consumer(name, size, kind) for (name, kind), size in ledger.consumers.items()]
    top.sort(key=lambda entry: (-entry.bytes, entry.name, entry.kind))
    return step.report(ledger.saved, ledger.peak, ledger.flops, tuple(top))


class Step:
    """A question about memory: one training step and the modules on which it is tried."""

    def __init__(self, encoder, head, fidelity, batch, amp, mode: Mode | str, micro_batch) -> None:
        if batch < 1:
            raise ValueError(f"batch is {batch}, expected at least 1 video")
        if micro_batch < 0:
            raise ValueError(f"micro_batch is {micro_batch}, expected 0 (all) or more videos")
        self.encoder, self.head, self.fidelity = encoder, head, fidelity
        self.batch, self.amp, self.micro_batch = batch, amp, micro_batch
        self.mode = Mode(mode) if isinstance(mode, str) else mode
        if encoder is None and (head is None or micro_batch or self.mode != Mode()):
            found = "features are given, so a step is one graph of the head"
            raise ValueError(f"{found}: leave out mode and micro-batch, and name a head")
        if self.mode.name == "adapters":
            freeze_trunk(encoder)
        self.videos_at_once = min(batch, micro_batch or batch)
        self.modules = nn.ModuleDict({"encoder": encoder, "head": head})
        self.static = [*self.modules.parameters(), *self.modules.buffers()]

    def clips(self, videos: int) -> Tensor:
        """(B, L, F, 3, S, S) uint8 beside the encoder; without one features (B, C, L)."""
        size = self.fidelity
        if self.encoder is None:
            given = videos, self.head.channels, size.snippets
            return torch.zeros(given, device=self.static[0].device)
        shape = (videos, size.snippets, size.frames, 3, size.pixels, size.pixels)
        return torch.zeros(shape, dtype=torch.uint8, device=self.static[0].device)

    def run(self, clips: Tensor, watch: Watch) -> None:
        """Forward and backward; gradients stay on the modules."""
        encoder, mode = self.encoder, self.mode
        self.modules.zero_grad(set_to_none=True)
        if encoder is None:
            watch.begin()
            with autocast(self.amp, clips.device):
                loss = self._losses(clips, slice(None))["loss"]
            watch.end()
            return loss.backward()
        live = any(isinstance(m, BatchNorm) and m.training for m in encoder.modules())
        if mode.fold or (live and (mode.chunked or self.micro_batch)):  # training refuses the rest
            freeze_batch_norm(encoder, fold=mode.fold)
        sampled = known = None
        if mode.name == "bank":
            shape = len(clips), encoder.channels, self.fidelity.snippets
            known = torch.zeros(shape, device=clips.device)
        if mode.drawn:
            count = max(1, round(mode.ratio * self.fidelity.snippets))
            sampled = torch.arange(count).expand(len(clips), count)
        step = EndToEnd(encoder, mode, list(self.modules.parameters()), amp=self.amp,
                        micro_batch=self.micro_batch, watch=watch)  # fmt: skip
        step.backpropagate(clips, self._losses, sampled, known)

    def _losses(self, features: Tensor, _: slice) -> dict[str, Tensor]:
        """The loss of a head of this kit for videos without actions, else the sum of outputs."""
        outputs = features if self.head is None else self.head(features)
        head = getattr(self.head, "head", self.head)  # of a head with its input statistics
        if not isinstance(head, Head):
            leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
            return {"loss": sum(leaf.float().sum() for leaf in leaves)}
        video = Video("", None, None, None, None, ())
        one = head.targets(video, Grid.whole(features.shape[2], 1.0))
        targets = to_device(head.collate([one] * len(features)), features.device)
        draws = head.draws(len(features), targets, torch.Generator()).to(features.device)
        return head.losses(outputs, targets, head.statistics(targets, draws), draws)

    def report(
        self, saved: int, peak: int, flops: float = math.nan, top: tuple[Consumer, ...] = ()
    ) -> MemoryReport:
        """What was counted or measured, beside the question that was asked."""
        size = self.fidelity
        at_once = self.videos_at_once * size.snippets
        if self.mode.chunked:
            at_once = min(self.mode.chunk, at_once)
        head = type(self.head).__name__ if self.head is not None else None
        parameters = sum(weight.nbytes for weight in self.modules.parameters())
        frames = at_once * size.frames * 3 * size.pixels**2 * self.static[0].itemsize
        frames, name = (frames, self.encoder.name) if self.encoder else (0, "none")
        return MemoryReport(
            name, head, size, self.batch, self.micro_batch, self.amp, self.mode, saved,
            saved / self.videos_at_once, peak, parameters, frames, flops, top,
        )  # fmt: skip


@contextmanager
def _without_data(amp: str, *modules: nn.Module | str | None) -> Iterator:
    """Yields a function that copies (or builds) a module whose tensors have no data.

    Meta tensors where they suffice. Autocast and fused attention only know devices that compute,
    and modules from elsewhere may name one; for them fake tensors (slower, and not part of torch's
    public interface) pretend to be there.
    """
    with torch.device("meta"):
        shapes = [build_encoder(part) if isinstance(part, str) else part for part in modules]
    kinds = {type(m) for part in shapes if part is not None for m in part.modules()}
    ours = all(kind.__module__.split(".")[0] in ("lofi", "torch") for kind in kinds)
    meta = amp == "fp32" and ours and not any(getattr(kind, "fused", False) for kind in kinds)
    if meta:
        fake, convert = nullcontext(), lambda tensor: tensor.to("meta")
    else:
        from torch._subclasses.fake_tensor import FakeTensorMode

        fake = FakeTensorMode(allow_non_fake_inputs=True)
        convert = fake.from_tensor

    def hollow(module: nn.Module | str | None) -> nn.Module | None:
        if isinstance(module, str):
            with torch.device("meta") if meta else nullcontext():
                module = build_encoder(module)
            freeze_batch_norm(module)  # as LoFi trains by default
            return module
        if module is None:
            return None
        memo = {id(buffer): convert(buffer) for buffer in module.buffers()}
        for weight in module.parameters():
            memo[id(weight)] = nn.Parameter(convert(weight.detach()), weight.requires_grad)
        return copy.deepcopy(module, memo)

    with fake:
        yield hollow


CONSTANT, GIVEN = "constant", "given"  # storages that are not counted

# What made a tensor that is still there after the forward pass, and why it is kept.
_KINDS = {
    "convolution": "convolution output",
    "native_batch_norm": "batch norm or ReLU output",
    "_native_batch_norm_legit": "batch norm or ReLU output",
    "_native_batch_norm_legit_no_training": "batch norm or ReLU output",
    "cudnn_batch_norm": "batch norm or ReLU output",
    "max_pool2d_with_indices": "pooled output",
    "empty_like": "shifted copy",
    "_to_copy": "copy in another precision",
}


class _Ledger(TorchDispatchMode, Watch):
    """Bytes of all storages that operations make, from their appearance to their end.

    Tables that a module makes from constants (a head's sampling plan) stay for the process and
    are left out. Of several equal passes only two are made: the second one has the peak of all.
    """

    def __init__(self, modules: nn.ModuleDict, times: float) -> None:
        super().__init__()
        self.live = self.peak = 0  # bytes now, and at most so far
        self.saved = 0  # most bytes that stayed between `begin` and `end`
        self.consumers: Counter[tuple[str, str]] = Counter()  # (module, kind): bytes then
        self.flops = 0.0  # of convolutions and matrix products
        self.times = times  # what follows stands for this many equal passes
        self._device = next(modules.parameters()).device
        self._entries: dict[int, tuple[str, str, int]] = {}  # storage → module, kind, bytes
        self._constants, self._before = set(), set()  # storages
        self._path = [""]  # of the modules that are running; the encoder's go without prefix
        for name, module in modules.named_modules():
            name = name.removeprefix("encoder.").removeprefix("encoder")
            module.register_forward_pre_hook(lambda *_, name=name: self._path.append(name))
            module.register_forward_hook(self._leave_module)

    def _leave_module(self, *_: Any) -> None:
        self._path.pop()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func.overloadpacket
        if packet in flop_registry:
            self.flops += self.times * flop_registry[packet](*args, **kwargs, out_val=out)
        found = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        new = [tensor for tensor in found if _storage(tensor) not in self._entries]
        if new:
            name = packet.__name__
            given = tree_leaves((args, kwargs))
            inputs = [_storage(leaf) for leaf in given if isinstance(leaf, Tensor)]
            if name == "lift_fresh" or (inputs and self._constants.issuperset(inputs)):
                name = CONSTANT  # made from numbers in the program alone
            for tensor in new:
                self.enter(tensor, name)
        if packet is torch.ops.aten.convolution_backward and out[1] is not None:
            # The kernel's own layout of the weight gradient, before it is copied into ours.
            self.peak = max(self.peak, self.live + out[1].nbytes)
        return out

    def enter(self, tensor: Tensor, operation: str = "") -> None:
        """Add the storage of a tensor, once; it leaves by itself."""
        storage, key = tensor.untyped_storage(), _storage(tensor)
        if key in self._entries:
            return
        counted = operation not in (CONSTANT, GIVEN) and tensor.device == self._device
        size = storage.nbytes() if counted else 0
        if operation == CONSTANT:
            self._constants.add(key)
        kind = _KINDS.get(operation, operation.replace("_", " "))
        if operation == "max_pool2d_with_indices" and tensor.dtype == torch.int64:
            kind = "pooling indices"
        self._entries[key] = (self._path[-1], kind, size)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._leave, key)

    def _leave(self, key: int) -> None:
        self.live -= self._entries.pop(key)[2]
        self._constants.discard(key)

    def begin(self) -> None:
        self._before, self._path = set(self._entries), [""]

    def end(self) -> None:
        kept = [entry for key, entry in self._entries.items() if key not in self._before]
        total = sum(size for *_, size in kept)
        if total > self.saved:
            self.saved, self.consumers = total, Counter()
            for module, kind, size in kept:
                self.consumers[module, kind] += size
            self.consumers = +self.consumers  # without those of 0 bytes

    def chunks(self, parts: list) -> Iterator:
        """The first two of a step's (number, rows) chunks, which stand for all of them."""
        few, before = parts[:2], self.times
        self.times *= sum(len(rows) for _, rows in parts) / sum(len(rows) for _, rows in few)
        yield from few
        self.times = before


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
