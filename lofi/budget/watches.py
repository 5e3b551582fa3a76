"""Watches that keep the books on a step's memory.

`Ledger` adds up the storages of tensors without data; `CpuMeter` and `CudaMeter` read what torch
really allocated.
"""

import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from lofi.training.end_to_end import Watch

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


class Ledger(TorchDispatchMode, Watch):
    """Bytes of all storages that operations make, from their appearance to their end.

    Tables that a module makes from constants (a head's sampling plan) stay for the process and
    are left out. Of several equal passes only two are made: the second one has the peak of all.

    Attributes:
        live, peak: bytes now, and at most so far.
        saved: most bytes that stayed between `begin` and `end`.
        consumers: (module, kind) → bytes of that moment.
        flops: of convolutions and matrix products.
        times: what follows stands for this many equal passes.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.live = self.peak = self.saved = 0
        self.flops, self.times, self.consumers = 0.0, 1.0, {}
        self._device = device
        self._entries: dict[int, tuple[str, str, int]] = {}  # storage → module, kind, bytes
        self._before: set[int] = set()
        self._path = [""]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = _run(func, args, kwargs)
        packet = func.overloadpacket
        if packet is torch.ops.prim.device:  # fake tensors ask for it thousands of times
            return out
        if packet in flop_registry:
            self.flops += self.times * flop_registry[packet](*args, **kwargs, out_val=out)
        name = packet.__name__
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self._entries:
                self.enter(leaf, CONSTANT if _is_constant(self, name, args) else name)
        if packet is torch.ops.aten.convolution_backward and out[1] is not None:
            # The kernel's own layout of the weight gradient, before it is copied into ours.
            self.scratch(out[1].numel() * out[1].element_size())
        return out

    def enter(self, tensor: Tensor, operation: str = "") -> None:
        """Add the storage of a tensor, once; it leaves by itself."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._entries:
            return
        if operation in (CONSTANT, GIVEN) or tensor.device != self._device:
            size = 0
        kind = _KINDS.get(operation, operation.replace("_", " "))
        if operation == "max_pool2d_with_indices" and tensor.dtype == torch.int64:
            kind = "pooling indices"
        self._entries[key] = (self._path[-1], kind, size)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._leave, key)

    def scratch(self, size: int) -> None:
        """So many bytes exist for a moment."""
        self.peak = max(self.peak, self.live + size)

    def is_constant(self, tensor: Tensor) -> bool:
        """True for what was made from numbers in the program alone."""
        return self._entries.get(tensor.untyped_storage()._cdata, ("",) * 3)[1] == CONSTANT

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
                if size:
                    self.consumers[module, kind] += size

    def chunks(self, parts: list) -> Iterator:
        """The first two of a step's (number, rows) chunks, which stand for all of them."""
        few, before = parts[:2], self.times
        self.times *= sum(len(rows) for _, rows in parts) / sum(len(rows) for _, rows in few)
        yield from few
        self.times = before

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


_MEMO: dict[tuple, Any] = {}  # operation and shapes → what comes out


def _run(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """func(*args, **kwargs); on meta tensors only the first time that these shapes are met.

    torch finds most shapes in Python; a network asks for the same ones again and again.
    """
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    fresh = all(result.alias_info is None for result in func._schema.returns)
    if not (fresh and tensors and all(tensor.is_meta for tensor in tensors)):
        return func(*args, **kwargs)
    key = (func, _shapes(args), _shapes(tuple(kwargs.items())))
    if key not in _MEMO:
        out = func(*args, **kwargs)
        _MEMO[key] = tree_map_only(Tensor, lambda t: (t.shape, t.stride(), t.dtype), out)
        return out
    return _made(_MEMO[key])


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(_shapes, value))
    return type(value), value


def _made(value: Any) -> Any:
    if value is None or isinstance(value[0], torch.Size):
        return value and torch.empty_strided(*value[:2], dtype=value[2], device="meta")
    return tuple(map(_made, value))


def _is_constant(ledger: Ledger, operation: str, args: tuple) -> bool:
    if operation == "lift_fresh":
        return True
    inputs = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    return bool(inputs) and all(ledger.is_constant(tensor) for tensor in inputs)


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
