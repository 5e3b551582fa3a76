"""How much of a video one training step sees, and in which order the fidelities alternate.

Source: Xu et al., "Low-Fidelity Video Encoder Optimization for Temporal Action Localization",
NeurIPS 2021, section 3.2 (configurations) and supplement B (budgets).
L snippets a video, F frames a snippet, S pixels a side.
"""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Fidelity:
    """The temporal and spatial resolution of one mini-batch."""

    snippets: int = 100  # L, a video
    frames: int = 8  # F, a snippet; LoFi never changes it
    pixels: int = 224  # S, side of the square crop that the encoder sees

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"Fidelity.{name} must be an integer of at least 1, got {value!r}")

    def reduced(self, time: float = 1.0, space: float = 1.0, patch: int = 1) -> "Fidelity":
        """Divide L by `time` (r_t) and S by `space` (r_s, each side); rounds half away from zero.

        S becomes whole patches of so many pixels, where an encoder has them. ValueError for a
        factor below 1 (LoFi only ever reduces).
        """
        for name, factor in (("time", time), ("space", space)):
            if not factor >= 1:
                raise ValueError(f"{name} is a reduction factor of at least 1, got {factor}")
        sizes = (self.snippets, time), (self.pixels, space * patch)
        snippets, pixels = (max(1, math.floor(size / by + 0.5)) for size, by in sizes)
        return replace(self, snippets=snippets, pixels=pixels * patch)

    @property
    def cost(self) -> int:
        """Input values of one video and colour channel, L·F·S·S: activation memory follows it."""
        return self.snippets * self.frames * self.pixels**2

    def __str__(self) -> str:
        return f"{self.snippets}×{self.frames}×{self.pixels}²"


# r_t and r_s of section 3.2, in the order in which the cycles visit them.
REDUCTIONS = {"s": (1.0, 2.0), "t": (4.0, 1.0), "st": (2.0, math.sqrt(2.0))}
LOW_BUDGET = (4.0, 2.0)  # supplement B: one 32 GB card (R18), or R50 on four


@dataclass(frozen=True)
class Schedule:
    """Which fidelity each step uses."""

    name: str  # in run folders and tables
    fidelities: tuple[Fidelity, ...]  # visited in turn
    period_epochs: int = 1  # c_l, epochs that each lasts (long cycle)
    period_iterations: int = 0  # c_s, iterations that each lasts (short cycle); 0 = by epoch

    def at(self, epoch: int, iteration: int) -> Fidelity:
        """The fidelity of a step; both numbers count from 0.

        `iteration` counts over the whole stage: a short cycle goes on across epoch ends.
        """
        if epoch < 0 or iteration < 0:
            raise ValueError(f"epoch and iteration start at 0, got {epoch} and {iteration}")
        short, long = self.period_iterations, self.period_epochs
        turn = iteration // short if short else epoch // long
        return self.fidelities[turn % len(self.fidelities)]


def schedule(
    name: str, full: Fidelity, *, period_epochs: int = 1, period_iterations: int = 16,
    patch: int = 1,
) -> Schedule:  # fmt: skip
    """The paper's configurations by name; ValueError for an unknown one.

    "s", "t" or "st" (one fidelity throughout), "short" (switch every `period_iterations` batches),
    "long" (every `period_epochs` epochs; the paper's default), "low" (supplement B), or "full" (no
    reduction; not part of LoFi). `patch`: see `Fidelity.reduced`.
    """
    single = {**REDUCTIONS, "low": LOW_BUDGET, "full": (1.0, 1.0)}
    if name in single:
        return Schedule(name, (full.reduced(*single[name], patch),))
    cycle = tuple(full.reduced(*factors, patch) for factors in REDUCTIONS.values())
    if name == "long":
        return Schedule(name, cycle, period_epochs=period_epochs)
    if name == "short":
        return Schedule(name, cycle, period_iterations=period_iterations)
    raise ValueError(f"unknown schedule {name!r}; known: {', '.join(single)}, short, long")
