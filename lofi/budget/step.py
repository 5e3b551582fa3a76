"""One training step, run while somebody keeps the books on its memory.

`Step` is the step itself: it runs on real modules and on fake ones. A `Watch` looks on: `Ledger`
adds up the storages of fake tensors, `CpuMeter` and `CudaMeter` read what torch really allocated.
B videos, L snippets a video, F frames a snippet, S pixels a side, C channels.
"""

import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from lofi.encoders import Encoder, freeze_batch_norm, freeze_until
from lofi.fidelity import Fidelity

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


class Watch:
    """What a step tells its observer; does nothing by itself."""

    def begin(self) -> None:
        """The forward pass of a graph starts; what exists already is not saved by it."""

    def end(self) -> None:
        """The forward pass of a graph is over."""

    def repeat(self, times: float) -> None:
        """What follows stands for this many equal passes."""


@dataclass(frozen=True)
class Step:
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

    def run(self, watch: Watch) -> None:
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

    def _chunks(self, watch: Watch) -> None:
        count = self.batch * self.fidelity.snippets
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

    def _parts(self, count: int, watch: Watch) -> Iterator[slice]:
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


class Ledger(TorchDispatchMode, Watch):
    """Bytes of all storages that operations make, from their appearance to their end.

    Attributes:
        live, peak: bytes now, and at most so far.
        saved: most bytes that stayed between `begin` and `end`.
        consumers: (module, kind) → bytes of that moment.
        flops: of convolutions and matrix products.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.saved = 0
        self.flops, self.consumers = 0.0, {}
        self._entries: dict[int, tuple[str, str, int]] = {}  # storage → module, kind, bytes
        self._before: set[int] = set()
        self._path, self._times = [""], 1.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func.overloadpacket
        if packet in flop_registry:
            self.flops += self._times * flop_registry[packet](*args, **kwargs, out_val=out)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.enter(leaf, packet.__name__)
        if packet is torch.ops.aten.convolution_backward and out[1] is not None:
            # The kernel's own layout of the weight gradient, before it is copied into ours.
            self.peak = max(self.peak, self.live + out[1].numel() * out[1].element_size())
        return out

    def enter(self, tensor: Tensor, operation: str = "") -> None:
        """Add the storage of a tensor, once; it leaves by itself."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._entries:
            return
        kind = _KINDS.get(operation, operation.replace("_", " "))
        if operation == "max_pool2d_with_indices" and tensor.dtype == torch.int64:
            kind = "pooling indices"
        self._entries[key] = (self._path[-1], kind, size)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._leave, key)

    def _leave(self, key: int) -> None:
        self.live -= self._entries.pop(key)[2]

    def begin(self) -> None:
        """The forward pass of a graph starts; what exists already is not saved by it."""
        self._before, self._path = set(self._entries), [""]

    def end(self) -> None:
        """The forward pass of a graph is over; what is new is kept for the backward pass."""
        kept = [entry for key, entry in self._entries.items() if key not in self._before]
        total = sum(size for *_, size in kept)
        if total > self.saved:
            self.saved, self.consumers = total, defaultdict(int)
            for module, kind, size in kept:
                self.consumers[module, kind] += size

    def repeat(self, times: float) -> None:
        """What follows stands for this many equal passes."""
        self._times = times

    @contextmanager
    def naming(self, modules: nn.ModuleDict) -> Iterator[None]:
        """Note for every storage in which module it was made; the encoder's go without prefix."""
        handles = []
        for name, module in modules.named_modules():
            name = name.removeprefix("encoder.").removeprefix("encoder")
            handles.append(
                module.register_forward_pre_hook(lambda *_, name=name: self._path.append(name))
            )
            handles.append(module.register_forward_hook(self._pop))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _pop(self, *_: Any) -> None:
        self._path.pop()


class CpuMeter(Watch):
    """Reads torch's CPU allocator through the profiler; bytes of what the block allocates."""

    saved = peak = 0

    def __enter__(self) -> "CpuMeter":
        activities = [torch.profiler.ProfilerActivity.CPU]
        self._profile = torch.profiler.profile(activities=activities, profile_memory=True)
        self._profile.__enter__()
        return self

    def begin(self) -> None:
        """Mark the start of a forward pass."""
        with torch.profiler.record_function("lofi:begin"):
            pass

    def end(self) -> None:
        """Mark the end of a forward pass."""
        with torch.profiler.record_function("lofi:end"):
            pass

    def __exit__(self, *error: Any) -> None:
        self._profile.__exit__(*error)
        events = self._profile.profiler.kineto_results.events()
        live = start = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                live += event.nbytes()
                self.peak = max(self.peak, live)
            elif event.name() == "lofi:begin":
                start = live
            elif event.name() == "lofi:end":
                self.saved = max(self.saved, live - start)


class CudaMeter(Watch):
    """Reads the statistics of torch's CUDA allocator; bytes above what was there before."""

    saved = peak = 0

    def __enter__(self) -> "CudaMeter":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self._base = self._start = torch.cuda.memory_allocated()
        return self

    def begin(self) -> None:
        """Note what exists before the forward pass."""
        self._start = torch.cuda.memory_allocated()

    def end(self) -> None:
        """Note what the forward pass left."""
        self.saved = max(self.saved, torch.cuda.memory_allocated() - self._start)

    def __exit__(self, *error: Any) -> None:
        self.peak = torch.cuda.max_memory_allocated() - self._base
