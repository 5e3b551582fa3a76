"""Encoders: from the frames of a snippet to one feature vector.

`build_encoder(name)` makes one, `load_weights` and `save_encoder` move weights, `pretrained_file`
finds those of an installed package, `normalise` prepares frames, `freeze_batch_norm`,
`freeze_until` and `freeze_trunk` decide what trains.
"""

import torch
from torch import nn

from lofi.encoders.base import (
    Encoder,
    freeze_batch_norm,
    freeze_trunk,
    freeze_until,
    normalise,
)
from lofi.encoders.frames import DINOv2, EfficientNetLite, RegNetY, pretrained_file
from lofi.encoders.r2plus1d import R2Plus1D
from lofi.encoders.tsm import ResNet, temporal_shift
from lofi.encoders.vit import VideoViT
from lofi.encoders.weights import LoadReport, encoder_hash, load_weights, save_encoder

# tsm-*: shift of 1/8 + 1/8 of the channels (toy: 1/4 + 1/4); resnet-*: the same without shift,
# which is what image pre-training (ICP) trains; motion-*: tsm-* that sees changes as well.
# Toy ones have 16, 32 and 64 channels; 8 layers, counted as the 18 of R18, or 14 or 20.
ENCODERS = ("tsm-r18", "tsm-r34", "tsm-r50", "r2plus1d-18", "resnet-18", "resnet-34", "resnet-50")
ENCODERS += ("efficientnet-lite0", "dinov2-s", "regnety-200mf")
ENCODERS += ("tsm-toy", "resnet-toy", "motion-toy")
ENCODERS += ("tsm-toy14", "tsm-toy20", "resnet-toy14", "resnet-toy20", "r2plus1d-toy")
# VideoMAE; any even F and any S of whole patches.
ENCODERS += ("vit-toy", "vit-s", "vit-b", "vit-l", "vit-h", "vit-g")
_VIT = {  # patch, width, depth, heads, hidden units of the MLP
    "toy": (4, 32, 4, 2, 128),
    "s": (16, 384, 12, 6, 1536),
    "b": (16, 768, 12, 12, 3072),
    "l": (16, 1024, 24, 16, 4096),
    "h": (16, 1280, 32, 16, 5120),
    "g": (14, 1408, 40, 16, 6144),
}
_BLOCKS = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "50": (3, 4, 6, 3)}
_BLOCKS |= {"toy": (1, 1, 1), "toy14": (2, 2, 2), "toy20": (3, 3, 3)}


def build_encoder(name: str, seed: int | None = None) -> Encoder:
    """A new encoder with random weights (He et al. 2015, fan out, as torchvision starts them; the
    linear layers of a ViT: normal, SD 0.02; biases 0).

    `seed` makes the weights a function of the name and this number alone; without it torch's
    global generator does. ValueError for names not in `ENCODERS`.
    """
    if name not in ENCODERS:
        raise ValueError(f"unknown encoder {name!r}; known: {', '.join(ENCODERS)}")
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    family, size = name.split("-")
    size, fold = size.removeprefix("r"), 0 if family == "resnet" else 8
    with torch.random.fork_rng(devices=[]):  # torch's own initialisation draws numbers for nothing
        if family == "r2plus1d":
            encoder = R2Plus1D(name, toy=size == "toy")
        elif family == "efficientnet":
            encoder = EfficientNetLite(name)
        elif family == "dinov2":
            encoder = DINOv2(name)
        elif family == "regnety":
            encoder = RegNetY(name)
        elif family == "vit":
            encoder = VideoViT(name, *_VIT[size])
        elif size.startswith("toy"):
            motion = family == "motion"
            encoder = ResNet(name, _BLOCKS[size], 16, fold=fold // 2, toy_stem=True, motion=motion)
        else:
            encoder = ResNet(name, _BLOCKS[size], bottleneck=size == "50", fold=fold)
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            # Depthwise, both fans are k · k, but torch's "fan_out" counts all channels together.
            fan = "fan_in" if module.groups > 1 else "fan_out"
            nn.init.kaiming_normal_(module.weight, mode=fan, generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02, generator=generator)
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return encoder
