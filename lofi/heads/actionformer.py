"""ActionFormer: a pyramid of local self-attention whose every step is a point with two distances.

Source: Zhang, Wu, Li, "ActionFormer: Localizing Moments of Actions with Transformers", ECCV 2022;
what the paper leaves open follows the released code of its authors, whose checkpoints load.
B videos, T steps, T_l = ⌈T / 2^l⌉ steps of level l, C channels, D hidden channels, H attention
heads, K classes. Inside, features are (B, T, D); a mask is (B, T, 1) bool.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lofi.heads.points import PointHead, Points

PRIOR = 0.01  # probability of a class at the beginning


class ActionFormer(PointHead):
    """ActionFormer head: (B, C, T) features → `Points`; no weight depends on T.

    Args:
        channels: C, or the widths of streams that lie one after the other and are projected to
            equal parts of D first.
        classes: K, or their names; 1 stands for "an action", whatever its label.
        hidden: D, a multiple of `heads`.
        heads: H.
        window: steps that a step looks at, itself in the middle (odd), of every level or one for
            each; 1 or less: at the whole level.
        levels: of the pyramid; level l has a step every 2^l.
        embedding, stem: layers and blocks before the pyramid.
        max_steps: steps to which a training video is padded at most; longer ones are cropped.
        positions: add sinusoids to the embedded features.
        relative: learn a bias for every place in the window.
        neck: a normalisation a level, or coarse levels added to the finer ones first.
        drop_path: share of videos for which a branch of a block is left out in training.
        first_count, regression_weight, smoothing: of the loss, see `PointHead`.
    """

    def __init__(
        self, channels: int | Sequence[int], classes: int | Sequence[str] = 1, *,
        hidden: int = 512, heads: int = 4, window: int | Sequence[int] = 19, levels: int = 6,
        embedding: int = 2, stem: int = 2, max_steps: int = 2304, positions: bool = False,
        relative: bool = False, neck: str = "identity", drop_path: float = 0.1,
        first_count: float = 100.0, regression_weight: float = 1.0, smoothing: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(classes, first_count, regression_weight, smoothing)
        windows = [window] * levels if isinstance(window, int) else list(window)
        if len(windows) != levels or any(w > 1 and w % 2 == 0 for w in windows):
            found = f"window is {window}, expected an odd number, or one for each level"
            raise ValueError(f"{found} ({levels})")
        if hidden % heads or neck not in ("identity", "fpn"):
            found = f"hidden is {hidden}, neck {neck!r}"
            raise ValueError(f"{found}; expected a multiple of {heads} heads, and identity or fpn")
        widths = [channels] if isinstance(channels, int) else list(channels)
        self.channels, self.levels, self.max_steps = sum(widths), levels, max_steps
        # What released code pads longer videos to multiples of.
        self.unit = max(2**i * max(w // 2 * 2, 1) for i, w in enumerate(windows))
        self.backbone = nn.Module()
        if len(widths) > 1:
            self.backbone.proj = _list(Convolution(w, hidden // len(widths), 1) for w in widths)
        first = self.channels if len(widths) == 1 else hidden
        self.backbone.embd = _list(
            Convolution(first if i == 0 else hidden, hidden, bias=False) for i in range(embedding)
        )
        self.backbone.embd_norm = _list(Norm(hidden) for _ in range(embedding))
        options = hidden, heads, relative
        self.backbone.stem = _list(Block(windows[0], 1, *options) for _ in range(stem))
        self.backbone.branch = _list(Block(w, 2, *options) for w in windows[1:])
        self.neck = nn.Module()
        if neck == "fpn":
            self.neck.lateral_convs = _list(
                Convolution(hidden, hidden, 1, bias=False) for _ in windows
            )
            self.neck.fpn_convs = _list(Depthwise(hidden) for _ in windows)
        self.neck.fpn_norms = _list(Norm(hidden) for _ in windows)
        self.cls_head, self.reg_head = Tower(hidden), Tower(hidden)
        self.cls_head.cls_head = Convolution(hidden, len(self.names) or 1)
        nn.init.constant_(self.cls_head.cls_head.conv.bias, -math.log((1 - PRIOR) / PRIOR))
        self.reg_head.offset_head = Convolution(hidden, 2)
        self.reg_head.scale = _list(Scale() for _ in windows)
        self.drop_path = drop_path
        self.table = sinusoids(max_steps, hidden) if positions else None

    def forward(
        self, features: Tensor, mask: Tensor | None = None, draws: Tensor | None = None
    ) -> Points:
        """(B, C, T), (B, T) bool → `Points` of ⌈T / 2^l⌉ steps.

        A video's points do not depend on how far it is padded: behind its end lie as many steps as
        the released padding to `max_steps` would let it see. `draws`: as `self.draws` makes them;
        without, no branch is left out.
        """
        if features.ndim != 3 or features.shape[1] != self.channels or not features.shape[2]:
            expected = f"(videos, {self.channels}, steps)"
            raise ValueError(f"features are {tuple(features.shape)}, expected {expected}")
        videos, _, steps = features.shape
        whole = self.max_steps if steps <= self.max_steps else -(-steps // self.unit) * self.unit
        coarsest = 2 ** (self.levels - 1)
        padded = max(steps, min(whole, (-(-steps // coarsest) + 1) * coarsest))
        padded = -(-padded // coarsest) * coarsest
        if mask is None:
            mask = features.new_ones((videos, steps), dtype=torch.bool)
        inside = F.pad(mask, (0, padded - steps))[:, :, None]
        x = features if padded == steps else F.pad(features, (0, padded - steps))
        x = x.transpose(1, 2)
        masks = [inside[:, :: 2**level] for level in range(self.levels)]
        drops = self.branches(draws, self.drop_path)
        pyramid = self._neck(self._pyramid(x, masks, whole, drops), masks)
        joined, places, gaps = join_levels(pyramid, masks)
        logits, offsets = (t(joined, places, gaps) for t in (self.cls_head, self.reg_head))
        logits = split_levels(self.cls_head.cls_head(logits, places), masks)
        offsets = split_levels(self.reg_head.offset_head(offsets, places), masks)
        offsets = [F.relu(x * s.scale) for x, s in zip(offsets, self.reg_head.scale)]
        sizes = [-(-steps // 2**level) for level in range(self.levels)]
        parts = (logits, offsets, [m[:, :, 0] for m in masks])
        return Points(*(tuple(x[:, :n] for x, n in zip(part, sizes)) for part in parts))

    def draws(self, videos: int, targets: tuple, generator: torch.Generator) -> Tensor:
        """(videos, 2 · blocks) uniform numbers: which branches a video goes without."""
        blocks = len(self.backbone.stem) + len(self.backbone.branch)
        return torch.rand((videos, 2 * blocks), generator=generator)

    def _pyramid(self, x: Tensor, masks, whole: int, drops: Tensor | None) -> list[Tensor]:
        """Features of all levels, (B, T_l, D) each."""
        net, inside = self.backbone, masks[0]
        if hasattr(net, "proj"):
            streams = x.split([p.conv.in_channels for p in net.proj], 2)
            x = torch.cat([p(s, inside) for p, s in zip(net.proj, streams)], 2)
        for convolution, norm in zip(net.embd, net.embd_norm):
            x = F.relu_(norm(convolution(x, inside)))
        if self.table is not None:
            table = self.table.to(x)
            if whole > self.max_steps:
                table = F.interpolate(table.T[None], size=whole, mode="linear")[0].T
            x = x + table[: x.shape[1]] * inside
        drops = repeat(None) if drops is None else iter(drops)
        for block in net.stem:
            x = block(x, inside, next(drops), next(drops))
        levels = [x]
        for block, inside in zip(net.branch, masks[1:]):
            levels.append(block(levels[-1], inside, next(drops), next(drops)))
        return levels

    def _neck(self, levels: list[Tensor], masks) -> list[Tensor]:
        neck = self.neck
        if hasattr(neck, "fpn_convs"):
            levels = [c(x, m) for c, x, m in zip(neck.lateral_convs, levels, masks)]
            for coarse, fine in pairwise(reversed(range(len(levels)))):
                levels[fine] = levels[fine] + levels[coarse].repeat_interleave(2, 1)
            levels = [c(x) * m for c, x, m in zip(neck.fpn_convs, levels, masks)]
        return [norm(x) for norm, x in zip(neck.fpn_norms, levels)]

    def published(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Released checkpoints lack the running count of the loss: it stays as it is."""
        return {**state_dict, "count": self.count}

    def to_published(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.state_dict().items() if name != "count"}


def _list(modules) -> nn.ModuleList:
    return nn.ModuleList(modules)


def sinusoids(steps: int, hidden: int) -> Tensor:
    """(steps, D) sines (even channels) and cosines of the position, over the root of D."""
    channel = torch.arange(hidden, dtype=torch.float64)
    rate = 10000 ** (2 * (channel // 2) / hidden)
    angle = torch.arange(steps, dtype=torch.float64)[:, None] / rate
    table = torch.where(channel % 2 == 0, angle.sin(), angle.cos())
    return (table / hidden**0.5).float()


def join_levels(levels: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """All levels one after the other, so that they share a convolution; their mask; the gaps.

    A gap is a step of zeros behind each level.
    """
    gap = levels[0].new_zeros((len(levels[0]), 1, levels[0].shape[2]))
    spaced = [part for level in levels for part in (level, gap)]
    places = [part for mask in masks for part in (mask, mask.new_zeros((len(mask), 1, 1)))]
    gaps = torch.tensor([level.shape[1] + 1 for level in levels]).cumsum(0) - 1
    return torch.cat(spaced, 1), torch.cat(places, 1), gaps.to(gap.device)


def split_levels(x: Tensor, masks: list[Tensor]) -> list[Tensor]:
    sizes = [mask.shape[1] + 1 for mask in masks]
    return [part[:, :-1] for part in x.split(sizes, 1)]


class Norm(nn.Module):
    """Layer normalisation over channels; the parameters have the released shape (1, D, 1)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, hidden, 1))
        self.bias = nn.Parameter(torch.zeros(1, hidden, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight.flatten(), self.bias.flatten())


class Scale(nn.Module):
    """A learnable factor."""

    def __init__(self, *shape: int, value: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full(shape, value))


class Convolution(nn.Module):
    """Over time, (B, T, in) → (B, T, out), zero behind the end of the video."""

    def __init__(self, channels: int, out: int, kernel: int = 3, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, out, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.conv.kernel_size == (1,):
            return pointwise(x, self.conv).mul_(mask)
        kind = x.device.type  # other devices have faster kernels, and autocast its own precision
        if kind not in ("cpu", "meta") or (kind == "cpu" and torch.is_autocast_enabled(kind)):
            return self.conv(x.transpose(1, 2)).transpose(1, 2) * mask
        y = _ThreeTaps.apply(x, self.conv.weight, mask)
        return y if self.conv.bias is None else (y + self.conv.bias).mul_(mask)


class _ThreeTaps(torch.autograd.Function):
    """(B, T, in) with (out, in, 3) → (B, T, out) times a mask (B, T, 1), zeros at both ends.

    Saves its input alone. m steps take m + 2 matrix products in place of 3 m: the transpose of
    multiplying polynomials, of 3 and of m coefficients, by their values at m + 2 points (Winograd,
    "Arithmetic Complexity of Computations", SIAM 1980). m = 4 rounds like `conv1d`, m = 2 less.
    """

    @staticmethod
    def forward(ctx, x, weight, mask):
        ctx.save_for_backward(x, weight, mask)
        return _taps(x, weight, TWO).mul_(mask)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight, mask = ctx.saved_tensors
        grad, given, wanted = grad * mask, None, None
        if ctx.needs_input_grad[0]:
            given = _taps(grad, weight.transpose(0, 1).flip(2), FOUR)
        if ctx.needs_input_grad[1]:
            three, four, _ = (part.to(grad) for part in FOUR)
            seen = _seen(x.to(grad.dtype), FOUR)
            spare = 4 * (len(seen) // len(x)) - x.shape[1]
            values = four @ F.pad(grad, (0, 0, 0, spare)).view(len(seen), 4, -1)
            wanted = torch.bmm(values.permute(1, 2, 0), seen.transpose(0, 1))
            wanted = (wanted.flatten(1).T @ three).view(weight.shape).to(weight.dtype)
        return given, wanted, None


def _rule(*points: float) -> tuple[Tensor, Tensor, Tensor]:
    """Values at the points and at infinity, of 3 and of m coefficients; back to all m + 2."""

    def values(coefficients: int) -> Tensor:
        powers = torch.tensor(points).double()[:, None] ** torch.arange(coefficients)
        return torch.cat([powers, torch.eye(coefficients)[-1:].double()])

    return values(3), values(len(points) - 1), values(len(points) + 1).inverse().T


TWO, FOUR = _rule(0, 1, -1), _rule(0, 1, -1, 0.5, -2)


def _seen(x: Tensor, rule: tuple[Tensor, ...]) -> Tensor:
    """(B · n, m + 2, in): what every m steps, and m spare ones behind a video, see, as values."""
    (videos, steps, width), (points, m) = x.shape, rule[1].shape
    parts = -(-steps // m) + 1
    rows = x.new_zeros((videos * parts * m + 2, width))
    rows[:-2].view(videos, -1, width)[:, 1 : steps + 1] = x
    return rule[2].to(x) @ rows.unfold(0, points, m).transpose(1, 2)


def _taps(x: Tensor, weight: Tensor, rule: tuple[Tensor, ...]) -> Tensor:
    three, some, _ = (part.to(x) for part in rule)
    values = (three @ weight.to(x.dtype).flatten(0, 1).T).unflatten(1, weight.shape[:2])
    products = torch.bmm(_seen(x, rule).transpose(0, 1), values.transpose(1, 2))
    y = some.T @ products.transpose(0, 1)
    return y.view(len(x), -1, len(weight))[:, : x.shape[1]]


def light(function: Callable[[Tensor], Tensor], *given: Tensor) -> Tensor:
    """function(*given), of which only `given` waits for the backward pass.

    What lies before its last product is computed again there, the product itself is not. Small
    inputs and GPUs keep all: what it costs in Python, up to a millisecond each, is more there.
    """
    if given[0].nbytes < 2**20 or given[0].device.type not in ("cpu", "meta"):
        return function(*given)
    return checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False)


class Depthwise(nn.Module):
    """Over time, every channel by itself: (B, T, D) → (B, T / stride, D)."""

    def __init__(self, hidden: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return _ByChannel.apply(x, self.conv.weight, *self.conv.stride)


class _ByChannel(torch.autograd.Function):
    """(B, T, D) with (D, 1, 3) → (B, ⌈T / stride⌉, D), zeros at both ends; saves its input alone.

    On rows, where `conv1d` would turn its input and its gradient around.
    """

    @staticmethod
    def forward(ctx, x, weight, stride):
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        first, *others = zip(_shifted(F.pad(x, (0, 0, 1, 1)), stride), weight[:, 0].T.to(x.dtype))
        y = torch.mul(*first)
        for part, tap in others:
            y.addcmul_(part, tap)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        x = F.pad(x, (0, 0, 1, 1))
        given, wanted = torch.zeros_like(x), []
        parts = _shifted(x, ctx.stride), _shifted(given, ctx.stride), weight[:, 0].T.to(x.dtype)
        for part, place, tap in zip(*parts):
            place.addcmul_(grad, tap)
            wanted.append((grad * part).sum((0, 1)))
        return given[:, 1:-1], torch.stack(wanted, 1)[:, None].to(weight.dtype), None


def _shifted(x: Tensor, stride: int) -> list[Tensor]:
    """Every `stride`-th step of (B, 1 + T + 1, D): the one before it, itself, the one behind it."""
    steps = x.shape[1] - 2
    return [x[:, k : k + steps : stride] for k in range(3)]


class Tower(nn.Module):
    """Two convolutions in front of an output, shared by all levels."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.head = _list(Convolution(hidden, hidden, bias=False) for _ in range(2))
        self.norm = _list(Norm(hidden) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor, gaps: Tensor) -> Tensor:
        """(B, T, D) of all levels; see `join_levels`."""
        for convolution, norm in zip(self.head, self.norm):
            x = F.relu_(norm(convolution(x, mask)).index_fill_(1, gaps, 0.0))
        return x


class Attention(nn.Module):
    """Self-attention inside a window; query, key and value come from depth-wise convolutions."""

    def __init__(self, window: int, stride: int, hidden: int, heads: int, relative: bool) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        for name in ("query", "key", "value"):
            self.add_module(f"{name}_conv", Depthwise(hidden, stride))
            self.add_module(f"{name}_norm", Norm(hidden))
        for name in ("key", "query", "value", "proj"):
            self.add_module(name, nn.Conv1d(hidden, hidden, 1))
        if relative and window > 1:
            self.rel_pe = nn.Parameter(torch.zeros(1, 1, heads, window))

    def forward(self, x: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
        """(B, T, D) → (B, T / stride, D) times `scale` (D,); `mask` is that of the result."""
        kinds = ("query", "key", "value")
        q, k, v = (self._kind(x, mask, kind).unflatten(2, (self.heads, -1)) for kind in kinds)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (B, H, T, D / H)
        if self.window > 1:
            bias = self.rel_pe[0, 0] if hasattr(self, "rel_pe") else None
            y = light(window_attention, q, k, v, mask[:, :, 0], self.window // 2, bias)
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask.transpose(1, 2)[:, None])
        return pointwise(y.transpose(1, 2).flatten(2), self.proj, scale).mul_(mask)

    def _kind(self, x: Tensor, mask: Tensor, kind: str) -> Tensor:
        convolution, norm = getattr(self, f"{kind}_conv"), getattr(self, f"{kind}_norm")
        linear = getattr(self, kind)
        return light(lambda y: pointwise(norm(y), linear), convolution(x).mul_(mask))


def pointwise(x: Tensor, convolution: nn.Conv1d, scale: Tensor | None = None) -> Tensor:
    """A 1x1 convolution on rows, times `scale` (out,): (..., in) → (..., out)."""
    weight, bias = convolution.weight[:, :, 0], convolution.bias
    if scale is not None:  # scaling the weights keeps no copy of the product
        weight, bias = weight * scale[:, None], bias * scale
    return F.linear(x, weight, bias)


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, reach: int, bias: Tensor | None = None
) -> Tensor:
    """Attention of every step to those at most `reach` away, in O(T · reach) memory.

    Queries are taken in blocks, each with the keys of the block and `reach` to both sides. Rows
    that see no key are an average of values: the caller masks them.

    Args:
        q, k, v: (B, H, T, d).
        mask: (B, T) keys that count.
        bias: (H, 2 reach + 1) added to the scores.
    """
    steps = q.shape[2]
    block = max(min(max(4 * reach, 32), steps), reach)
    spare = -steps % block
    size = block + 2 * reach
    q, k, v = (F.pad(x, (0, 0, 0, spare)).unflatten(2, (-1, block)) for x in (q, k, v))
    q, k, v = q * q.shape[4] ** -0.5, _around(k, reach), _around(v, reach)
    apart = torch.arange(size, device=q.device) - torch.arange(block, device=q.device)[:, None]
    near = (apart >= 0) & (apart <= 2 * reach)
    around = F.pad(mask, (reach, reach + spare)).unfold(1, size, block)
    seen = near & around[:, None, :, None]
    scores = q @ k.transpose(3, 4)
    if bias is not None:
        scores = scores + bias[:, apart.clamp(0, 2 * reach)][:, None]
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    return (scores.softmax(-1) @ v).flatten(2, 3)[:, :, :steps]


def _around(x: Tensor, reach: int) -> Tensor:
    """(B, H, n, block, d) with `reach` steps of the blocks to both sides, zeros at the ends."""
    before = F.pad(x[:, :, :-1, x.shape[3] - reach :], (0, 0, 0, 0, 1, 0))
    behind = F.pad(x[:, :, 1:, :reach], (0, 0, 0, 0, 0, 1))
    return torch.cat([before, x, behind], 3)


class Block(nn.Module):
    """Attention and a network of two layers, each added to what came in; may halve the steps."""

    def __init__(self, window: int, stride: int, hidden: int, heads: int, relative: bool) -> None:
        super().__init__()
        self.stride = stride
        self.ln1, self.ln2 = Norm(hidden), Norm(hidden)
        self.attn = Attention(window, stride, hidden, heads, relative)
        widen, narrow = nn.Conv1d(hidden, 4 * hidden, 1), nn.Conv1d(4 * hidden, hidden, 1)
        # Two places without parameters stand for dropout in the released names.
        self.mlp = nn.Sequential(widen, nn.GELU(), nn.Identity(), narrow)
        self.drop_path_attn = Scale(1, hidden, 1, value=1e-4)
        self.drop_path_mlp = Scale(1, hidden, 1, value=1e-4)

    def forward(self, x: Tensor, mask: Tensor, *drops: Tensor | None) -> Tensor:
        """(B, T, D) → (B, T / stride, D); `mask` is that of the result."""
        first, second = (path.scale.flatten() for path in (self.drop_path_attn, self.drop_path_mlp))
        y = self.attn(self.ln1(x), mask, first)
        if self.stride > 1:  # padded steps are 0 and may win: as released
            x = F.max_pool1d(x.transpose(1, 2), 3, self.stride, 1).transpose(1, 2)
        x = x * mask + (y if drops[0] is None else y * drops[0])
        y = light(lambda x: pointwise(self.ln2(x), self.mlp[0]), x)
        y = light(lambda y: pointwise(F.gelu(y), self.mlp[3], second), y).mul_(mask)
        return x + (y if drops[1] is None else y * drops[1])
