"""One training loop for every stage; it may be killed at any moment.

A step is addressed by its number: which items it sees, how they are augmented and what the losses
draw follow from (seed, stage, step) alone. So a checkpoint holds weights, optimiser and the number
of finished steps, and a resumed run ends with the same weights as one that was never interrupted.
Several processes (`lofi.training.distributed`) share each step; rank 0 alone writes files.
"""

import contextlib
import hashlib
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data._utils.pin_memory import pin_memory

from lofi.config import Optimisation
from lofi.training.distributed import GradientSum, gather, is_first, keep_memory
from lofi.training.run_folder import RunFolder

log = logging.getLogger(__name__)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # whose weights decay, see `decay_on`


def generator_for(*address: Any) -> torch.Generator:
    """A CPU generator that depends on the address alone, such as (seed, "lofi", "order", epoch)."""
    digest = hashlib.sha256(repr(address).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@dataclass(frozen=True)
class Batches:
    """Which items each step sees: a new permutation every epoch, the last batch may be smaller."""

    items: int
    batch: int  # items a step
    epochs: int
    address: tuple[Any, ...]  # seed and stage; makes the order

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
    warmup = setting.warmup + setting.warmup_epochs * per_epoch
    if step < warmup:
        return setting.lr * (step + 1) / (warmup + 1)
    if setting.schedule == "step":
        return setting.lr * setting.decay ** (step // per_epoch // setting.decay_every)
    progress = (step - warmup) / max(1, setting.epochs * per_epoch - warmup)
    return setting.lr * 0.5 * (1 + math.cos(math.pi * progress))


def prefetched(
    get: Callable[[int], Any], start: int, stop: int, workers: int, pin: bool = False
) -> Iterator[Any]:
    """Yield get(start) … get(stop - 1) in order, the next ones being prepared in threads.

    `pin`: their tensors in pinned memory, which GPUs copy from while they compute.
    """
    load = (lambda step: pin_memory(get(step))) if pin else get
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


@contextlib.contextmanager
def held_signals() -> Iterator[list[int]]:
    """Hold back SIGTERM and SIGHUP while the block runs; at its end the first is raised again.

    Yields the list of those that came. Ignored ones (nohup) stay ignored, and in other threads than
    the main one, which alone sees signals, nothing is held back.
    """
    held: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, lambda number, frame: held.append(number))
    try:
        yield held
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


OnStep = Callable[[int, int, dict[str, float]], None]


@dataclass
class Training:
    """What `fit` needs: what is trained, on what, and what one step does.

    `step(batch, step)` returns numbers with at least "loss"; it goes forward *and* backward, so
    that gradients are in the parameters afterwards (`backward` is all that a single graph needs).
    None: no item of the batch could be read. With several processes each handles its share,
    normalised by the whole batch, so that gradients and records add up; it is called on every
    process at every step.
    """

    modules: dict[str, nn.Module]  # everything that a checkpoint must hold
    setting: Optimisation
    batches: Batches
    load: Callable[[int], Any]  # step → batch; runs in a thread, must depend on the step alone
    step: Callable[[Any, int], dict[str, float] | None]
    workers: int = 1  # batches prepared ahead, in as many threads
    checkpoint_every: int = 100
    keep_every: int = 0  # epochs between weights that are kept for study; 0 = none
    describe: Callable[[int], str] = lambda step: ""
    rates: dict[str, float] = field(default_factory=dict)  # factors on the learning rate, else 1
    fidelity: Callable[[int], str] = lambda step: ""  # of a step, for metrics.jsonl
    one_backward: Callable[[], bool] = lambda: False  # see `GradientSum.overlaps`
    scaler: GradScaler = field(default_factory=lambda: GradScaler("cpu", enabled=False))  # fp16

    def optimizer(self) -> torch.optim.Optimizer:
        """One parameter group for every factor of the learning rate, with and without decay."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, module in self.modules.items():
            layers = [part for part in module.modules() if isinstance(part, LAYERS)]
            weights, biases = {part.weight for part in layers}, {part.bias for part in layers}
            for p in (p for p in module.parameters() if p.requires_grad):
                decays = self.setting.decay_on == "all" or p in weights
                factor = self.rates.get(name, 1.0) * (self.setting.bias_lr if p in biases else 1.0)
                group = factor, self.setting.weight_decay * decays
                groups.setdefault(group, []).append(p)
        options = {"lr": self.setting.lr}
        if self.setting.optimizer == "sgd":
            options |= {"momentum": self.setting.momentum, "nesterov": self.setting.nesterov}
        kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        given = [
            {"params": params, "factor": factor, "weight_decay": decay}
            for (factor, decay), params in groups.items()
        ]
        return kinds[self.setting.optimizer](given, **options)


def backward(losses: dict[str, Tensor], scaler: GradScaler | None = None) -> dict[str, float]:
    """Back-propagate "loss" unless it is not finite, which `fit` reports; returns the numbers."""
    record = {name: float(value.detach()) for name, value in losses.items()}
    if math.isfinite(record["loss"]):
        (scaler.scale(losses["loss"]) if scaler else losses["loss"]).backward()
    return record


def fit(training: Training, run: RunFolder, on_step: OnStep | None = None) -> None:
    """Train to the last step, going on from the folder's checkpoint; logs to its log.txt.

    `on_step(step, steps, record)` sees what goes to metrics.jsonl. SIGTERM and SIGHUP, to any of
    the processes, take effect behind the current step and a checkpoint.

    Raises:
        FloatingPointError: a loss is not finite; names the step and its items. The checkpoint
            before it stays.
        RuntimeError: a step left no gradient on any trained parameter.
        ValueError: not one item of an epoch could be read.
    """
    modules, batches, setting = training.modules, training.batches, training.setting
    inside = (p for m in modules.values() for p in m.parameters() if p.requires_grad)
    sums = GradientSum(inside, training.one_backward)
    with run.logging(), held_signals() as held, sums:
        optimizer = training.optimizer()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        means = {}
        if setting.ema:
            average = get_ema_multi_avg_fn(setting.ema)
            means = {k: AveragedModel(m, multi_avg_fn=average) for k, m in modules.items()}
            for name, mean in means.items():
                mean.update_parameters(modules[name])  # begins with a copy
        states = modules | {f"mean {name}": mean for name, mean in means.items()}
        start, trained = _restore(states, optimizer, training.scaler, run), False
        numbers = run.hash, start, batches.steps, batches.items
        log.info("settings %s: steps %d to %d of %d items", *numbers)
        run.keep_metrics_before(start)
        keep_memory(2**30)
        scaler, pin = training.scaler, any(p.is_cuda for p in parameters)
        loaded = prefetched(training.load, start, batches.steps, training.workers, pin)
        ended = time.perf_counter()
        for step, batch in zip(range(start, batches.steps), loaded):
            began = time.perf_counter()
            rate = learning_rate(setting, step, batches.per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            optimizer.zero_grad(set_to_none=True)
            found = training.step(batch, step)
            sums.finish()
            record, stopped = _together(training, found, step, parameters, held)
            if record is not None:
                scaler.unscale_(optimizer)
                if setting.clip:
                    norm = nn.utils.clip_grad_norm_(parameters, setting.clip)
                    record["grad_norm"] = float(norm)
                scaler.step(optimizer)
                scaler.update()
                for name, mean in means.items():
                    mean.update_parameters(modules[name])
                record |= {"lr": rate, "seconds": round(time.perf_counter() - began, 4)}
                record |= {"waited": round(began - ended, 4), "items": len(batches.at(step))}
                record |= {"fidelity": fidelity} if (fidelity := training.fidelity(step)) else {}
                record = {"step": step, "epoch": step // batches.per_epoch, **record}
                run.log_metrics(record)
                trained = True
                if on_step and is_first():
                    on_step(step, batches.steps, record)
            elif step >= start + batches.per_epoch - 1 and not trained:
                found = f"{run.folder}: not one of {batches.items} items could be read"
                cure = "see skipped.jsonl there for the reasons (lofi check finds broken videos)"
                raise ValueError(f"{found}; {cure}")
            done = step + 1
            due = done % training.checkpoint_every == 0 or done == batches.steps or stopped
            keep = training.keep_every and done % (training.keep_every * batches.per_epoch) == 0
            if due or keep:
                weights = {name: module.state_dict() for name, module in states.items()}
                if keep:
                    run.keep(f"epoch-{done // batches.per_epoch:03d}", weights)
                state = {"step": done, "modules": weights, "optimizer": optimizer.state_dict()}
                run.save_checkpoint(state | {"scaler": scaler.state_dict()})
            if stopped:
                log.info("stopped by signal %d behind step %d, with a checkpoint", *stopped, step)
                held[:] = stopped
                return
            ended = time.perf_counter()
        for name, mean in means.items():
            modules[name].load_state_dict(mean.module.state_dict())
        log.info("settings %s: trained", run.hash)


def _together(
    training: Training, found: dict | None, step: int, parameters: list, held: list[int]
) -> tuple[dict | None, list[int]]:
    """Sum records over all processes; None when nothing could be read anywhere.

    Also the signal, if any, that a process has got: all of them stop behind the same step.
    """
    records, signals = zip(*gather((found, held[:1])))
    records = [record for record in records if record is not None]
    stopped = sum(signals, [])[:1]
    if not records:
        return None, stopped
    record = {name: sum(part[name] for part in records) for name in records[0]}
    if not math.isfinite(record["loss"]):
        raise FloatingPointError(
            f"step {step}: loss is {record['loss']} on {training.describe(step)}; "
            "lower the learning rate or set a gradient clip, then resume"
        )
    if all(parameter.grad is None for parameter in parameters):
        found = f"step {step} left no gradient on any of {len(parameters)} trained parameters"
        raise RuntimeError(f"{found}: its loss was detached, or backward() was not called")
    return record, stopped


def _restore(modules: dict[str, nn.Module], optimizer, scaler, run: RunFolder) -> int:
    """Load the checkpoint, if there is one; returns the number of finished steps."""
    state = run.load_checkpoint()
    starts = gather(0 if state is None else state["step"])
    if len(set(starts)) > 1:
        found = f"{run.folder}: the processes see checkpoints of different steps {starts}"
        raise ValueError(f"{found}; all machines need the same run folder on shared storage")
    if state is None:
        return 0
    for name, module in modules.items():
        module.load_state_dict(state["modules"][name])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state.get("scaler", {}))
    return state["step"]
