"""Released checkpoints: their names and layouts in, ours out, and back.

Our heads keep the released parameter names; only the convolution over anchor samples has its own
layout (`project.SampledLinear`).
"""

from collections.abc import Mapping

from torch import Tensor, nn

from lofi.heads.project import SampledLinear

CONSTANTS = ("sample_mask",)  # BMN's sampling matrix travels in its checkpoints; ours is computed


def load_published(head: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load a released G-TAD or BMN checkpoint into a head of the same sizes.

    Args:
        head: `GTAD` or `BMN`.
        state_dict: names to tensors, with or without the data-parallel prefix "module."; the whole
            checkpoint {"epoch", "state_dict"} is accepted too.
    Raises:
        ValueError: names are missing or unexpected, or shapes differ; the head is left unchanged.
    """
    if isinstance(state_dict.get("state_dict"), Mapping):
        state_dict = state_dict["state_dict"]
    given = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    given = {name: tensor for name, tensor in given.items() if name not in CONSTANTS}
    wanted = published_state_dict(head)
    problems = [
        f"{what} {', '.join(names)}"
        for what, names in (
            ("missing", [name for name in wanted if name not in given]),
            ("unexpected", [name for name in given if name not in wanted]),
            ("wrong shape", _wrong_shapes(given, wanted)),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"checkpoint does not fit {type(head).__name__}: {'; '.join(problems)}. "
            "Build the head with the sizes and options that the checkpoint was trained with."
        )
    sampled = _sampled_weights(head)
    own = {
        name: sampled[name].from_published(tensor) if name in sampled else tensor
        for name, tensor in given.items()
    }
    head.load_state_dict(own)


def published_state_dict(head: nn.Module) -> dict[str, Tensor]:
    """Parameters of a head under the released names and in the released layouts, detached."""
    sampled = _sampled_weights(head)
    return {
        name: sampled[name].to_published(tensor) if name in sampled else tensor
        for name, tensor in head.state_dict().items()
    }


def _sampled_weights(head: nn.Module) -> dict[str, SampledLinear]:
    modules = head.named_modules()
    return {
        f"{name}.weight": module for name, module in modules if isinstance(module, SampledLinear)
    }


def _wrong_shapes(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} {tuple(given[name].shape)} (expected {tuple(tensor.shape)})"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
