"""What the exercises expect, kept out of sight of who solves them.

    from answers import check

    check("01a", answer)            # prints "correct" or "not yet" and a hint
    check("03b", answer, budget)    # budget goes to the function that expects

Values are compared with a tolerance, truth values and texts exactly. `notebooks/solutions/`
shows every answer worked out and goes through the same checks.
"""

from typing import Any

import torch

from lofi import notebook
from lofi.encoders import temporal_shift

# Name: (expected value, or a function of what the notebook hands over; hint; options of is_close)
ANSWERS: dict[str, tuple] = {
    "00a": (2 / 3, "Seconds that both cover, divided by the seconds that at least one covers"),
    "00b": (4, "Memory grows in proportion to the number of videos"),
    "00c": ([1, 2 / 3, 1 / 3], "For each action: does any guess reach the level? Then the mean"),
    "02aa": (33, "One frame more on either side for every block: how many blocks are there?"),
    "02ab": (460, "layer1 has 64 channels, and every further stage has twice as many"),
    "02ac": (
        lambda: temporal_shift(torch.arange(40.0).view(5, 8, 1, 1), 5, 4)[..., 0, 0],
        "Copy first, then overwrite two groups of columns; the missing neighbours are 0",
    ),
}


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
