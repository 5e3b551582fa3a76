"""What one training step holds in memory and what a video costs, found without a GPU.

`activation_bytes` runs the real training step on tensors that have sizes but no data and adds up
what exists; `plan` lists what fits a budget; `inference_cost` counts a trained model's work.
Source of the budget question: LoFi paper, section 3.2 and supplement B.
"""

from lofi.budget.inference import Cost, inference_cost
from lofi.budget.memory import MemoryReport, activation_bytes
from lofi.budget.plan import GIB, PlanRow, plan
from lofi.config import Mode
