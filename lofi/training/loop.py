"""One training loop for every stage; it may be killed at any moment.

A step is addressed by its number: which items it sees, how they are augmented and what the losses
draw follow from (seed, stage, step) alone. So a checkpoint holds weights, optimiser and the number
of finished steps, and a resumed run ends with the same weights as one that was never interrupted.
Several processes (`lofi.training.distributed`) share each step; rank 0 alone writes files.
"""

import contextlib
import ctypes
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from lofi.config import Optimisation
from lofi.training.distributed import gather, is_first, sum_gradients
from lofi.training.run_folder import RunFolder

log = logging.getLogger(__name__)
Item = TypeVar("Item")


def generator_for(*address: Any) -> torch.Generator:
    """A CPU generator that depends on the address alone, such as (seed, "lofi", "order", epoch)."""
    digest = hashlib.sha256(repr(address).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@dataclass(frozen=True)
class Batches:
    """Which items each step sees: a fresh permutation every epoch, the last batch may be smaller.

    Args:
        items: number of items.
        batch: items a step.
        epochs: how often every item is seen.
        address: seed and stage; makes the order.
    """

    items: int
    batch: int
    epochs: int
    address: tuple[Any, ...]

    def __post_init__(self) -> None:
        if self.items < 1:
            raise ValueError(f"nothing to train on: {self.address} found no usable item")

    @property
    def per_epoch(self) -> int:
        """Steps an epoch."""
        return math.ceil(self.items / self.batch)

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.per_epoch * self.epochs

    def at(self, step: int) -> list[int]:
        """Item numbers of a step."""
        epoch, i = divmod(step, self.per_epoch)
        order = torch.randperm(self.items, generator=generator_for(*self.address, "order", epoch))
        return order[i * self.batch : (i + 1) * self.batch].tolist()


def learning_rate(setting: Optimisation, step: int, per_epoch: int) -> float:
    """Learning rate of a step: linear warm-up, then steps by epoch or a half cosine to zero."""
    total = setting.epochs * per_epoch
    if step < setting.warmup:
        return setting.lr * (step + 1) / (setting.warmup + 1)
    if setting.schedule == "step":
        return setting.lr * setting.decay ** (step // per_epoch // setting.decay_every)
    progress = (step - setting.warmup) / max(1, total - setting.warmup)
    return setting.lr * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(parameters: Sequence, setting: Optimisation):
    """The optimiser of a stage; weight decay on every parameter that is given."""
    if setting.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=setting.lr,
            momentum=setting.momentum,
            nesterov=setting.nesterov,
            weight_decay=setting.weight_decay,
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[setting.optimizer]
    return kind(parameters, lr=setting.lr, weight_decay=setting.weight_decay)


def prefetch_depth(workers: int) -> int:
    """Batches to prepare ahead: one beside the computation, two where several workers decode."""
    return min(workers, 2)


def prefetched(load: Callable[[int], Item], start: int, stop: int, workers: int) -> Iterator[Item]:
    """Yield load(start) … load(stop - 1) in order, the next ones being prepared in threads."""
    if workers < 1:
        yield from map(load, range(start, stop))
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(load, step) for step in range(start, min(stop, start + workers))]
        for step in range(start + workers, stop + workers):
            item = waiting.pop(0).result()
            if step < stop:
                waiting.append(pool.submit(load, step))
            yield item


OnStep = Callable[[int, int, dict[str, float]], None]


@dataclass
class Training:
    """What `fit` needs: what is trained, on what, and how one step computes its loss.

    Args:
        modules: by name; everything that a checkpoint must hold.
        setting: optimiser, schedule, clipping.
        batches: the order of the items.
        load: step → batch; runs in a thread, must depend on the step alone.
        losses: (batch, step) → named losses; "loss" is back-propagated, unless it has no graph
            because that has been done. None: no item of the batch could be read. With several
            processes each returns the losses of its share, normalised by the whole batch, so that
            they add up; it is called on every process at every step.
        rates: factor on the learning rate by name of the module, 1 for the others.
    """

    modules: dict[str, nn.Module]
    setting: Optimisation
    batches: Batches
    load: Callable[[int], Any]
    losses: Callable[[Any, int], dict[str, torch.Tensor] | None]
    workers: int = 1
    checkpoint_every: int = 100
    describe: Callable[[int], str] = field(default=lambda step: "")
    rates: dict[str, float] = field(default_factory=dict)


def fit(training: Training, run: RunFolder, on_step: OnStep | None = None) -> None:
    """Train to the last step, going on from the folder's checkpoint; logs to its log.txt.

    `on_step(step, steps, record)` sees what goes to metrics.jsonl.

    Raises:
        FloatingPointError: a loss is not finite; names the step and its items. The checkpoint
            before it stays.
    """
    with run.logging():
        _fit(training, run, on_step)


def _fit(training: Training, run: RunFolder, on_step: OnStep | None) -> None:
    modules, setting, batches = training.modules, training.setting, training.batches
    parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    optimizer = make_optimizer(_groups(training), setting)
    start = _restore(modules, optimizer, run)
    log.info(
        "settings %s: steps %d to %d of %d items", run.hash, start, batches.steps, batches.items
    )
    run.keep_metrics_before(start)
    trained = False
    keep_freed_memory()
    loaded = prefetched(training.load, start, batches.steps, training.workers)
    for step, batch in zip(range(start, batches.steps), loaded):
        began = time.perf_counter()
        rate = learning_rate(setting, step, batches.per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        record = _optimise(training, batch, step, parameters, optimizer)
        if record is not None:
            record |= {"lr": rate, "seconds": round(time.perf_counter() - began, 4)}
            record = {"step": step, "epoch": step // batches.per_epoch, **record}
            run.log_metrics(record)
            trained = True
            if on_step and is_first():
                on_step(step, batches.steps, record)
        elif step >= start + batches.per_epoch - 1 and not trained:
            raise ValueError(
                f"{run.folder}: not one of {batches.items} items could be read; "
                "see skipped.jsonl there for the reasons (lofi check finds broken videos)"
            )
        done = step + 1
        if done % training.checkpoint_every == 0 and done < batches.steps:
            run.save_checkpoint(_state(modules, optimizer, done))
    run.save_checkpoint(_state(modules, optimizer, batches.steps))
    log.info("settings %s: trained", run.hash)


def _groups(training: Training) -> list[dict[str, Any]]:
    """Parameter groups by factor of the learning rate, in the order of the modules."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, module in training.modules.items():
        chosen = groups.setdefault(training.rates.get(name, 1.0), [])
        chosen += [p for p in module.parameters() if p.requires_grad]
    return [{"params": params, "factor": factor} for factor, params in groups.items() if params]


def keep_freed_memory(size: int = 2**30) -> None:
    """Ask glibc to keep up to `size` freed bytes for the next step instead of returning them.

    Activations of a few megabytes are allocated and freed at every layer; without this the kernel
    zeroes their pages again each time, up to a third of a CPU step. No effect elsewhere.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_TRIM_THRESHOLD, size)
        libc.mallopt(_M_MMAP_THRESHOLD, size)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def _optimise(training: Training, batch, step: int, parameters, optimizer) -> dict | None:
    """One step of the optimiser; the losses of all processes, None when nothing could be read."""
    optimizer.zero_grad(set_to_none=True)
    losses = training.losses(batch, step)
    found = None
    if losses is not None:
        found = {name: float(value.detach()) for name, value in losses.items()}
        if losses["loss"].requires_grad and math.isfinite(found["loss"]):
            losses["loss"].backward()
    records = [record for record in gather(found) if record is not None]
    if not records:
        return None
    record = {name: sum(part[name] for part in records) for name in records[0]}
    if not math.isfinite(record["loss"]):
        raise FloatingPointError(
            f"step {step}: loss is {record['loss']} on {training.describe(step)}; "
            "lower the learning rate or set a gradient clip, then resume"
        )
    sum_gradients(parameters)
    if training.setting.clip:
        norm = nn.utils.clip_grad_norm_(parameters, training.setting.clip)
        record["grad_norm"] = float(norm)
    optimizer.step()
    return record


def _state(modules: dict[str, nn.Module], optimizer, step: int) -> dict[str, Any]:
    weights = {name: module.state_dict() for name, module in modules.items()}
    return {"step": step, "modules": weights, "optimizer": optimizer.state_dict()}


def _restore(modules: dict[str, nn.Module], optimizer, run: RunFolder) -> int:
    state = run.load_checkpoint()
    starts = gather(0 if state is None else state["step"])
    if len(set(starts)) > 1:
        raise ValueError(
            f"{run.folder}: the processes see checkpoints of different steps {starts}; "
            "all machines need the same run folder on shared storage"
        )
    if state is None:
        return 0
    for name, module in modules.items():
        module.load_state_dict(state["modules"][name])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
