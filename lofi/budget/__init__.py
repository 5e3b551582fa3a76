"""What one training step holds in memory, found without a GPU and without allocating it.

`activation_bytes` runs the real training step on tensors that have sizes but no data and adds up
what exists; `measured_bytes` runs it for real; `plan` lists what fits a budget;
`memory_model` is a closed form of the same numbers for one encoder. Scratch space
inside a kernel and the optimiser's state are not part of a step.
Source of the budget question: LoFi paper, section 3.2 and supplement B.

B videos, L snippets a video, F frames a snippet, S pixels a side, C channels.
"""

from lofi.budget.count import Consumer, MemoryReport, activation_bytes, measured_bytes
from lofi.budget.planning import GIB, PlanRow, plan
from lofi.budget.quick import MemoryModel, memory_model
from lofi.config import Mode

__all__ = [
    "GIB",
    "Consumer",
    "MemoryModel",
    "MemoryReport",
    "Mode",
    "PlanRow",
    "activation_bytes",
    "measured_bytes",
    "memory_model",
    "plan",
]
