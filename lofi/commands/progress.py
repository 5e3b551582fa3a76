"""Progress of long commands: a bar on a terminal, a few plain lines elsewhere."""

import sys
from collections.abc import Callable
from pathlib import Path


def progress_lines(what: str, lines: int = 10) -> Callable[[int, int, dict[str, float]], None]:
    """An `on_step`: a bar on a terminal, about `lines` plain lines elsewhere."""
    show = bar(what)

    def on_step(step: int, steps: int, record: dict[str, float]) -> None:
        if sys.stderr.isatty():
            show(step + 1, steps)
        elif step + 1 == steps or step % max(1, steps // lines) == 0:
            shown = "".join(f" {k} {record[k]:.3f}" for k in ("loss", "accuracy") if k in record)
            print(f"{what} {step + 1}/{steps}{shown}", file=sys.stderr)

    return on_step


def also_tensorboard(on_step: Callable, folder: Path) -> Callable:
    """`on_step`, and every number of the record as a scalar for TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder)

    def both(step: int, steps: int, record: dict[str, float]) -> None:
        on_step(step, steps, record)
        for name, value in record.items():
            writer.add_scalar(name, value, step)

    return both


def bar(what: str) -> Callable[[int, int], None]:
    """update(done, total, item="") moves a bar on a terminal and does nothing elsewhere."""
    from tqdm import tqdm

    shown = tqdm(desc=what, disable=not sys.stderr.isatty(), leave=False)

    def update(done: int, total: int, item: str = "") -> None:
        shown.total = total
        shown.set_postfix_str(item, refresh=False)
        shown.update(done - shown.n)

    return update
