"""What the exercises expect, kept out of sight of who solves them.

    from answers import check

    check("01a", answer)            # prints "correct" or "not yet" and a hint
    check("03b", answer, budget)    # budget goes to the function that expects

Values are compared with a tolerance, truth values and texts exactly. `notebooks/solutions/`
shows every answer worked out and goes through the same checks.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from lofi import notebook
from lofi.data import Segment
from lofi.encoders import temporal_shift
from lofi.fidelity import Fidelity, schedule
from lofi.heads import targets


def snippets_needed(action: tuple[Segment, float]) -> int:
    segment, duration_s = action
    spans = [(segment.start_s, segment.end_s)]
    counts = (n for n in range(1, 1000) if targets(spans, duration_s, n).iou.max() >= 0.9)
    return next(counts)


def frames_needed(accuracy_with: Callable[[int], float]) -> int:
    return next(n for n in (1, 2, 4, 8) if accuracy_with(n) >= 0.8 * accuracy_with(8))


def cosines(row: torch.Tensor) -> torch.Tensor:
    columns = [torch.nn.functional.cosine_similarity(row, x[:, None], 0) for x in row.T]
    return torch.stack(columns, 1)


def short_cycle(full: Fidelity) -> list[str]:
    names = {schedule(name.lower(), full).at(0, 0): name for name in ("S", "T", "ST")}
    plan = schedule("short", full, period_iterations=5)
    return [names[plan.at(0, i)] for i in range(40)]


# Name: (expected value, or a function of what the notebook hands over; hint; options of is_close)
ANSWERS: dict[str, tuple] = {
    "00a": (2 / 3, "Seconds that both cover, divided by the seconds that at least one covers"),
    "00b": (4, "Memory grows in proportion to the number of videos"),
    "00c": ([1, 2 / 3, 1 / 3], "For each action: does any guess reach the level? Then the mean"),
    "01a": ([part * 64 / 4 + (64 / 4 - 1) / 2 for part in range(4)],
            "Cut the 64 frames into 4 equal parts; frame numbers start at 0"),
    "01b": (snippets_needed, "Try every number from 5 upwards"),
    "01c": ([1 / 3, 1 / 2, 0, 0, 1], "Draw the first pair on paper"),
    "02a": (math.log(200), "Cross-entropy is minus the logarithm (base e) of the probability of "
            "the true class", {"relative": 0.01}),
    "02b": (frames_needed, "One frame shows a shape, but no motion"),
    "02c": (cosines, "The diagonal must be 1; the result is (L, L)", {"absolute": 1e-4}),
    "02aa": (33, "One frame more on either side for every block: how many blocks are there?"),
    "02ab": (460, "layer1 has 64 channels, and every further stage has twice as many"),
    "02ac": (
        lambda: temporal_shift(torch.arange(40.0).view(5, 8, 1, 1), 5, 4)[..., 0, 0],
        "Copy first, then overwrite two groups of columns; the missing neighbours are 0",
    ),
    "03a": (16, "Snippets count once, the side length twice", {"relative": 0.02}),
    "03b": (16, "Double it until it fits"),
    "03c": (short_cycle, "The first five are S, the next five T"),
    "09a": (1 / 2, "Draw precision over recall"),
    "09b": (1 / 3, "With the length as unit, s of it late: overlap 1 - s, union 1 + s",
            {"relative": 2e-3}),
    "09c": ([(0, 1), (2, 4)], "Ends are exclusive: 4 to 5 is free"),
}  # fmt: skip


def check(name: str, answer: Any, *given: Any) -> None:
    """Print whether the answer to the exercise `name` is right, else a hint.

    Raises:
        KeyError: no exercise has this name.
    """
    wanted, hint, *options = ANSWERS[name]
    wanted = wanted(*given) if callable(wanted) else wanted
    close = notebook.is_close(answer, wanted, **(options[0] if options else {}))
    exact = type(answer) is type(wanted) and isinstance(wanted, bool | str | list | tuple)
    notebook.check(name, close or (exact and answer == wanted), hint)
