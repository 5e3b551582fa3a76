"""Weights, inputs and random numbers of the reference networks, made from their names."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lofi.heads import load_published, published_state_dict


def generator(name: str, salt: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + salt))


def reference_weight(name: str, shape: tuple[int, ...], salt: int) -> Tensor:
    """Convolution weights and biases of the recipe in golden/README.md."""
    z = generator(name, salt).standard_normal(shape)
    if name.endswith("bias"):
        z = 0.05 * z
    else:
        z = z * np.sqrt((0.1 if shape[0] in (1, 2) else 2) / np.prod(shape[1:]))
    return torch.from_numpy(z.astype(np.float32))


def fill(head: nn.Module, salt: int) -> None:
    """Give a head the reference weights, through the door for released checkpoints."""
    published = published_state_dict(head)
    load_published(
        head, {k: reference_weight(k, tuple(v.shape), salt) for k, v in published.items()}
    )


def reference_input(model: dict) -> Tensor:
    z = generator(model["input_tag"], model["input_salt"]).standard_normal(model["input_shape"])
    return torch.from_numpy(z.astype(np.float32))


def uniform(k: np.ndarray) -> Tensor:
    """uint16 → the float32 number in (0, 1) that it stands for."""
    return (torch.from_numpy(k.astype(np.float32)) + 0.5) / 65536


def reference_uniform(tag: str, salt: int, shape: tuple[int, ...]) -> Tensor:
    return uniform(generator(tag, salt).integers(0, 65536, size=shape).astype(np.uint16))


def rows_of(targets: str) -> list[int]:
    """The row numbers in a sentence like "labels_L25.npz rows [2, 11] (gtad_*)"."""
    return json.loads(targets[targets.index("[") : targets.index("]") + 1])


def read(path: Path) -> dict:
    return json.loads(path.read_text())
