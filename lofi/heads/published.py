"""Released checkpoints into our heads, and back."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lofi.heads.base import Head


def load_published(head: Head, state_dict: Mapping[str, Any]) -> None:
    """Load a released checkpoint into a head of the same sizes.

    Args:
        state_dict: names to tensors, with or without the data-parallel prefix "module."; the whole
            checkpoint {"epoch", "state_dict"} is accepted too.
    Raises:
        ValueError: names are missing or unexpected, or shapes differ; the head is left unchanged.
    """
    if isinstance(state_dict.get("state_dict"), Mapping):
        state_dict = state_dict["state_dict"]
    given = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    given, own, wanted = head.published(given), head.state_dict(), head.to_published()
    both = [name for name in own if name in given]
    wrong = [
        f"{name} {tuple(given[name].shape)} (expected {tuple(wanted.get(name, own[name]).shape)})"
        for name in both
        if given[name].shape != own[name].shape
    ]
    problems = {
        "missing": [name for name in own if name not in given],
        "unexpected": [name for name in given if name not in own],
        "wrong shape": wrong,
    }
    found = [f"{what} {', '.join(names)}" for what, names in problems.items() if names]
    if found:
        raise ValueError(
            f"checkpoint does not fit {type(head).__name__}: {'; '.join(found)}. "
            "Build the head with the sizes and options that the checkpoint was trained with."
        )
    head.load_state_dict(given)


def published_state_dict(head: Head) -> dict[str, Tensor]:
    """Parameters of a head under the released names and in the released layouts."""
    return head.to_published()
