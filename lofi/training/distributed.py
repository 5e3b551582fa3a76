"""Several processes that train as one: who is who, sums over all of them, a share of the work.

Every rank computes the gradient of its share of a logical batch, normalised by the whole batch, so
that the ranks' gradients add up to those of one process. They are summed once a step, after the
backward pass: one flat tensor works for every encoder mode, where hooks in the backward pass would
need special care as soon as a step has several of them. Without torchrun everything here is the
identity.
"""

import contextlib
import datetime
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MEETING = "LOFI_MEETING"  # file that `lofi.launch` gives its processes to find each other by
CONNECT = datetime.timedelta(minutes=3)  # to find each other
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


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """Let rank 0 pass the block first; the others then find what it made."""
    if not is_first():
        barrier()
    yield
    if is_first():
        barrier()


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


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its sum over all processes.

    A parameter without gradient counts as zero; without one on any process it stays without.
    """
    if not _active():
        return
    parameters = list(parameters)
    present = torch.tensor([p.grad is not None for p in parameters]).to(parameters[0])
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    vector = reduce_sum(torch.cat([present, *(part.reshape(-1) for part in parts)]))
    present, values = vector[: len(parameters)].tolist(), vector[len(parameters) :]
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, found, part in zip(parameters, present, values.split(sizes)):
        parameter.grad = part.view_as(parameter).clone() if found else None


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()
