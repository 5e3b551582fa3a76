"""Several processes that train as one: who is who, sums over all of them, a share of the work.

Every rank computes the gradient of its share of a logical batch, normalised by the whole batch, so
that the ranks' gradients add up to those of one process. They are summed in buckets: during the
backward pass where a step has only one, behind it otherwise. Without torchrun everything here is
the identity.
"""

import contextlib
import ctypes
import datetime
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lofi.launch import MEETING

CONNECT = datetime.timedelta(minutes=3)  # to find each other
BUCKET = 16 * 2**20  # bytes of gradients that are summed together
TIMEOUT = datetime.timedelta(hours=6)  # one may render, read or write while the others wait


def check_device(device: str) -> None:
    """ValueError, which names those that can be used, for a device that this machine lacks."""
    usable = ["cpu"]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator().type
        usable += [kind, *(f"{kind}:{i}" for i in range(torch.accelerator.device_count()))]
    if device not in usable:
        found = f"device {device!r} is not on this machine, as torch sees it"
        raise ValueError(f"{found}; use one of: {', '.join(usable)}")


def one_thread_for_small_work(preset: str) -> None:
    """The toy networks are too small to share: beside other work two threads took 20 × as long.

    The process also keeps the memory that it frees, see `keep_memory`.
    """
    if preset in ("tiny", "toy", "long", "weak"):
        keep_memory()
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)


def keep_memory(size: int = -1) -> None:
    """Let this process keep up to `size` bytes that it frees, -1: all (glibc; elsewhere nothing).

    Every layer of a training step asks for the same arrays again and again. Getting each anew from
    the system, page by page, takes a fifth of a step of the toy networks, up to a third of larger
    ones on a CPU. No number depends on it.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, size)  # M_TRIM_THRESHOLD
        if size < 0:
            libc.mallopt(-4, 0)  # M_MMAP_MAX: no array is a mapping of its own
        else:
            libc.mallopt(-3, size)  # M_MMAP_THRESHOLD: none that is smaller


def restarted() -> bool:
    """True when torchrun started this process again after a failure: it must go on, not begin."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextlib.contextmanager
def joined(device: str = "cpu") -> Iterator[str]:
    """Join the other processes that torchrun started, if it did; yields this process's device.

    "cuda" becomes the card of the local rank; ValueError where there are fewer cards than ranks,
    or no such device.
    """
    check_device(device)
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ):  # not started by torchrun
        yield device
        return
    options: dict[str, Any] = {}
    if device == "cuda":
        local, cards = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= cards:
            raise ValueError(f"process {local} of this machine has no GPU: {cards} found, "
                             "start as many processes as there are")  # fmt: skip
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
        options["device_id"] = torch.device(device)
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if MEETING in os.environ:  # one machine: a file, so that nothing listens on the network
        number, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = dist.FileStore(f"{os.environ[MEETING]}-{attempt}", processes)
    else:
        store, number, processes = next(dist.rendezvous("env://", timeout=CONNECT))
        if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
            # torchrun keeps one store for all restarts: without a prefix a process may read the
            # address that another one had before the failure, and wait for it.
            store = dist.PrefixStore(f"lofi-{attempt}", store)
    options |= {"store": store, "rank": number, "world_size": processes, "timeout": CONNECT}
    dist.init_process_group(backend, **options)
    # Not part of torch's public interface; without it, waiting is limited to CONNECT.
    set_timeout = getattr(dist.distributed_c10d, "_set_pg_timeout", lambda timeout: None)
    set_timeout(TIMEOUT)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, 0 ≤ rank < size."""
    return dist.get_rank() if _active() else 0


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _active() else 1


def is_first() -> bool:
    """True in the one process that writes files and reports progress."""
    return rank() == 0


def share(number: int) -> list[int]:
    """Positions of range(number) that this process works on; every position has one process."""
    return list(range(rank(), number, size()))


def barrier() -> None:
    """Wait until every process is here."""
    if _active():
        dist.barrier()


def reduce_sum(tensor: Tensor) -> Tensor:
    """Sum of a tensor over all processes, on every one of them; a new tensor."""
    if not _active():
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def gather(item: Any) -> list[Any]:
    """What every process passes (anything that pickles), in order of rank, on every process."""
    if not _active():
        return [item]
    items: list[Any] = [None] * size()
    dist.all_gather_object(items, item)
    return items


class GradientSum:
    """Replaces every gradient by its sum over all processes, in buckets.

    While the block runs, a bucket is sent as soon as all its gradients are there, so that the sum
    overlaps with the backward pass; `finish` sends the others and waits. A parameter without
    gradient counts as zero; without one on any process it stays without.

    Args:
        parameters: in forward order; the last ones are sent first, in the same order everywhere.
        overlaps: whether the step that runs has one backward pass only; otherwise a gradient that
            is there may still grow.
        size: bytes of a bucket.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], overlaps: Callable[[], bool] = lambda: False,
        size: int = BUCKET,
    ):  # fmt: skip
        self.overlaps, self.buckets = overlaps, []
        self.sent: list[tuple[Tensor, Any]] = []
        room = 0
        for parameter in reversed(list(parameters)) if _active() else ():
            if room <= 0:
                self.buckets.append([])
                room = size
            self.buckets[-1].append(parameter)
            room -= parameter.numel() * parameter.element_size()
        self.arrived = [0] * len(self.buckets)

    def __enter__(self) -> "GradientSum":
        self.hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._arrive, i))
            for i, bucket in enumerate(self.buckets)
            for parameter in bucket
        ]
        return self

    def __exit__(self, *error) -> None:
        for hook in self.hooks:
            hook.remove()

    def _arrive(self, bucket: int, _: nn.Parameter) -> None:
        if not self.overlaps():
            return
        self.arrived[bucket] += 1
        for i in range(len(self.sent), len(self.buckets)):
            if self.arrived[i] < len(self.buckets[i]):
                break
            self._send(self.buckets[i])

    @torch.no_grad()
    def _send(self, bucket: list[nn.Parameter]) -> None:
        present = torch.tensor([p.grad is not None for p in bucket]).to(bucket[0])
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        vector = torch.cat([present, *(part.reshape(-1) for part in parts)])
        self.sent.append((vector, dist.all_reduce(vector, async_op=True)))

    def finish(self) -> None:
        """Behind the backward pass, on every process: the gradients are the sums afterwards."""
        for bucket in self.buckets[len(self.sent) :]:
            self._send(bucket)
        for bucket, (vector, work) in zip(self.buckets, self.sent):
            work.wait()
            present, values = vector[: len(bucket)].tolist(), vector[len(bucket) :]
            parts = values.split([parameter.numel() for parameter in bucket])
            for parameter, found, part in zip(bucket, present, parts):
                parameter.grad = part.view_as(parameter) if found else None
        self.sent, self.arrived = [], [0] * len(self.buckets)


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()
