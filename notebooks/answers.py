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

import numpy as np
import torch

from lofi import notebook
from lofi.data import Segment
from lofi.encoders import temporal_shift
from lofi.fidelity import Fidelity, schedule
from lofi.heads import Targets, targets
from lofi.heads.points import point_targets


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


THREE = [(12.0, 47.5), (50.0, 51.2), (80.0, 119.0)]  # actions of notebooks 04 and 07, in seconds
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
    "04a": (1275, "Row d of the map has L - d valid cells; add up the rows"),
    "04b": (
        lambda: 1 + max(n for n in range(4, 101) if not (_three_actions(n).iou > 0.9).any()),
        "Print the column '> 0.9' for more L",
    ),
    "04c": (lambda: _three_actions(25).start, "Test it on snippet 2: the label is 1"),
    "05a": (2352, "Count the values that go in and the values that come out of one video"),
    "05b": (
        lambda training, videos: training.decay_every * math.ceil(videos / training.batch),
        "An epoch has as many steps as batches; decay_every counts epochs",
    ),
    "05c": (
        0.5**0.5 - (0 + 3 / 5 + 0.5**0.5 + 7 / 50**0.5) / 4,
        "One pair is inside, with a cosine of 0.707; four pairs cross the border",
    ),
    "06a": (
        (1 + 2 / 3 + 3 / 5) / 3,
        "Write down the five rows of precision and recall again",
        {"relative": 2e-3},
    ),
    "06b": (
        0.6 * math.exp(-(0.5**2) / 0.3),
        "Its tIoU with the best proposal is 0.5; or call soft_nms_by_hand with another sigma",
        {"absolute": 1e-3},
    ),
    "06c": ([1 / 3, 2 / 3, 2 / 3, 2 / 3, 1], "At k = 3 no new action is found"),
    "06aa": (36, "Every step of recall gets a tenth narrower; what does the area do?"),
    "06ab": (
        lambda: next(n for n in (4, 8, 16, 32, 64) if _best_of_grid(0.6, 2.9, 8.0, n) >= 0.95),
        "Print the best tIoU for each of the five numbers",
    ),
    "06ac": (
        ["true positive", "double detection", "localisation error", "wrong label", "confusion",
         "background"],
        "Ask for the overlap first: below 0.1, below 0.75, or enough",
    ),
    "07a": (1225, "No listed segment ends at the last grid line"),
    "07b": (9, "The range now ends at 8 + 0.25 · 6 = 9.5; the last sample lies just before it"),
    "07c": (
        lambda: [_listed_share(n, 0.8) for n in (8, 25, 100)],
        "At 8 snippets the best segment for the second action has a tIoU of 0.08",
    ),
    "08a": (2 / 3, "Solve 1 + 3 r = 3", {"relative": 0.02}),
    "08b": (16, "The peak grows in step with the chunk"),
    "08c": (lambda *given: _sampled_gradient(*given), "Do not forget the factor N / k"),
    "09a": (1 / 2, "Draw precision over recall"),
    "09b": (1 / 3, "With the length as unit, s of it late: overlap 1 - s, union 1 + s",
            {"relative": 2e-3}),
    "09c": ([(0, 1), (2, 4)], "Ends are exclusive: 4 to 5 is free"),
    "10a": (4536, "Halve six times and add: less than 2 · T"),
    "10b": ([2, 3], "'Near' is strict: count in a picture"),
    "10c": (
        lambda: [_share_without_point(length) for length in (0.5, 1.0, 2.0)],
        "A point must lie strictly inside",
    ),
    "11a": (120, "Each level has half as many as the last"),
    "11b": (0, "Without background there is no N"),
    "11c": ([True, False, False], "Five seeds: the mean against 2 · SD / √5"),
    "12a": (2, "Both or neither: ignored"),
    "12b": (math.log(1 + math.exp(-3)), "One step speaks for the video", {"absolute": 1e-3}),
    "12c": ([[3 / 8, 2 / 3], [3 / 8, 2 / 3], [0, 0]], "Mind the case without such a label"),
    "13a": (2 / (2.5 / 5) ** 0.5, "The SD over √5 is the standard error", {"absolute": 6e-3}),
    "13b": ("reproduced", "The mean is 2.2, the SD 1.3: how many standard errors is that?"),
    "13c": ([1 / 1024, 11 / 1024, 1 / 2], "Add up from k to n, both included"),
}  # fmt: skip


def _share_without_point(length: float) -> float:
    """Segments of this length that no point of a pyramid has to find."""
    found = []
    for start in np.linspace(0.0, 32.0, 65):
        rows = np.array([[start, start + length]], np.float32)
        made = point_targets(rows, np.zeros(1, int), 64, 6, classes=1)
        found.append(any(bool(classes.any()) for classes in made.classes))
    return 1 - float(np.mean(found))


def _sampled_gradient(encoder, loss_of, snippets, chosen) -> torch.Tensor:
    """The mean over the chosen snippets of their part of the gradient, times all snippets."""
    features = encoder(snippets).detach().requires_grad_()
    loss_of(features).backward()
    found = torch.autograd.grad(encoder(snippets[chosen]), list(encoder.parameters()),
                                features.grad[chosen] * len(snippets) / len(chosen))  # fmt: skip
    return torch.cat([part.flatten() for part in found])


def _listed_share(snippets: int, threshold: float) -> float:
    """Actions of the two minutes that a segment before the last grid line matches."""
    ends = np.add.outer(np.arange(snippets), np.arange(snippets)) + 1
    maps = [targets([action], 120.0, snippets).iou.numpy() for action in THREE]
    return float(np.mean([tious[ends < snippets].max() >= threshold for tious in maps]))


def _three_actions(snippets: int) -> Targets:
    """Labels of notebook 04's two minutes."""
    return targets(THREE, 120.0, snippets)


def _best_of_grid(start_s: float, end_s: float, duration_s: float, snippets: int) -> float:
    return float(targets([(start_s, end_s)], duration_s, snippets).iou.max())


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
