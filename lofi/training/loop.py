"""One training loop for every stage, and the run folder that lets it be killed at any moment.

A step is addressed by its number: which items it sees, how they are augmented and what the losses
draw follow from (seed, stage, step) alone. So a checkpoint holds weights, optimiser and the number
of finished steps, and a resumed run ends with the same weights as one that was never interrupted.
"""

import contextlib
import ctypes
import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from lofi.config import Optimisation, differences
from lofi.files import atomic_path, read_json, write_json, write_text

log = logging.getLogger(__name__)
Item = TypeVar("Item")
INPUTS = ("start", "encoder_sha256")  # settings that are hashes of what an earlier stage made


class RunFolder:
    """A stage's folder: config.json, log.txt, metrics.jsonl, checkpoints/, result.json at the end.

    Args:
        folder: created when absent.
        settings: everything the stage's result depends on, JSON types only. Its hash is the run's
            identity: another identity in the same folder is refused.
        resume: False forgets what an earlier run with the same settings left, also when the stage
            before it has been trained anew since.
    Raises:
        ValueError: the folder belongs to other settings; names the ones that differ.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any], resume: bool = True):
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
        self._refuse_other_settings(() if resume else INPUTS)
        if not resume:
            self._forget()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._skipped = {row["item"] for row in _whole_lines(self.folder / "skipped.jsonl")}
        if not (self.folder / "config.json").exists():
            write_json(self.folder / "config.json", self.settings)

    @property
    def hash(self) -> str:
        """First 12 hex digits of the settings' SHA-256."""
        text = json.dumps(self.settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _refuse_other_settings(self, free: Sequence[str]) -> None:
        path = self.folder / "config.json"
        if not path.exists():
            return
        lines = differences(read_json(path, "the settings of an earlier run"), self.settings)
        lines = [line for line in lines if line.split(":")[0] not in free]
        if lines:
            shown = "; ".join(lines[:4]) + (f" (+{len(lines) - 4} more)" if lines[4:] else "")
            raise ValueError(
                f"{self.folder}: holds a run with other settings: {shown}. "
                "Use another --out folder, or remove this one"
            )

    def _forget(self) -> None:
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        for name in ("config.json", "result.json", "metrics.jsonl", "skipped.jsonl"):
            (self.folder / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def logging(self) -> Iterator[None]:
        """While the block runs, what the package logs is also kept in log.txt."""
        handler = logging.FileHandler(self.folder / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        package = logging.getLogger("lofi")
        level = package.level
        package.addHandler(handler)
        package.setLevel(logging.INFO)
        try:
            yield
        finally:
            package.removeHandler(handler)
            package.setLevel(level)
            handler.close()

    def result(self) -> dict[str, Any] | None:
        """What a finished run returned, or None while it is not finished."""
        path = self.folder / "result.json"
        return read_json(path, "the result of a finished run") if path.exists() else None

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Declare the run finished; its checkpoints are no longer needed."""
        write_json(self.folder / "result.json", result)
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        return result

    def skip(self, item: str, reason: Exception) -> None:
        """Write down, once, an item that cannot be read; one bad video never ends a long job."""
        if item in self._skipped:
            return
        self._skipped.add(item)
        level = logging.WARNING if len(self._skipped) <= 5 else logging.DEBUG
        log.log(level, "skipped %s: %s", item, reason)
        with open(self.folder / "skipped.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"item": item, "reason": str(reason)}) + "\n")

    def log_metrics(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a half-written last line is left out."""
        return read_metrics(self.folder)

    def keep_metrics_before(self, step: int) -> None:
        """Drop the lines of steps that a resumed run will do again."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            kept = [json.dumps(row) for row in _whole_lines(path) if row["step"] < step]
            write_text(path, "".join(line + "\n" for line in kept))

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint; a kill in between leaves the previous one."""
        with atomic_path(self.folder / "checkpoints" / "last.pt") as temporary:
            torch.save(state, temporary)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint on the CPU, or None."""
        path = self.folder / "checkpoints" / "last.pt"
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise ValueError(
                f"{path}: cannot be read as a checkpoint ({type(error).__name__}); "
                "remove it to start this stage anew"
            ) from error


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """What a stage's run logged, one dictionary a step; [] when there is nothing."""
    return list(_whole_lines(Path(folder) / "metrics.jsonl"))


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


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


def make_optimizer(parameters: Sequence[nn.Parameter], setting: Optimisation):
    """The optimiser of a stage; weight decay on every trainable parameter (lofi.md question 31)."""
    parameters = [p for p in parameters if p.requires_grad]
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
        losses: (batch, step) → named losses; "loss" is back-propagated. None skips the step (no
            item of the batch could be read).
    """

    modules: dict[str, nn.Module]
    setting: Optimisation
    batches: Batches
    load: Callable[[int], Any]
    losses: Callable[[Any, int], dict[str, torch.Tensor] | None]
    workers: int = 1
    checkpoint_every: int = 100
    describe: Callable[[int], str] = field(default=lambda step: "")


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
    optimizer = make_optimizer(parameters, setting)
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
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        losses = training.losses(batch, step)
        if losses is not None:
            record = _optimise(losses, parameters, optimizer, setting, training, step)
            record |= {"lr": rate, "seconds": round(time.perf_counter() - began, 4)}
            record = {"step": step, "epoch": step // batches.per_epoch, **record}
            run.log_metrics(record)
            trained = True
            if on_step:
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


def _optimise(losses, parameters, optimizer, setting, training, step) -> dict[str, float]:
    record = {name: float(value.detach()) for name, value in losses.items()}
    if not math.isfinite(record["loss"]):
        raise FloatingPointError(
            f"step {step}: loss is {record['loss']} on {training.describe(step)}; "
            "lower the learning rate or set a gradient clip, then resume"
        )
    losses["loss"].backward()
    if setting.clip:
        record["grad_norm"] = float(nn.utils.clip_grad_norm_(parameters, setting.clip))
    optimizer.step()
    return record


def _state(modules: dict[str, nn.Module], optimizer, step: int) -> dict[str, Any]:
    weights = {name: module.state_dict() for name, module in modules.items()}
    return {"step": step, "modules": weights, "optimizer": optimizer.state_dict()}


def _restore(modules: dict[str, nn.Module], optimizer, run: RunFolder) -> int:
    state = run.load_checkpoint()
    if state is None:
        return 0
    for name, module in modules.items():
        module.load_state_dict(state["modules"][name])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
