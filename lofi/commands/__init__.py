"""What each `lofi` command does; settings come from the dataclasses of `lofi.config`.

A command is a plain function: its signature is its command line, its docstring the help text.
Results go to standard output, progress and warnings to standard error.
"""

from lofi.commands.budget import memory, plan
from lofi.commands.data import cache, check, toy
from lofi.commands.experiments import compare, course, tables
from lofi.commands.scoring import diagnose, evaluate, recall
from lofi.commands.training import detect, features, train

__all__ = [
    "cache",
    "check",
    "compare",
    "course",
    "detect",
    "diagnose",
    "evaluate",
    "features",
    "memory",
    "plan",
    "recall",
    "tables",
    "toy",
    "train",
]
