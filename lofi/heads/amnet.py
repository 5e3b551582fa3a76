"""AMNet, a reconstruction: an action-aware mask, two groups of levels that attend to each other.

Of Kang, Lee, Jin, Lee, "Action-aware Masking Network with Group-based Attention for Temporal Action
Localization", WACV 2023, only the supplement, the first page and a figure are public; there is no
code. From them: I3D features projected to D = 512, two layers of four heads; snippets of actions
and of background as positive and negative keys of an Action Masking Encoder, whose mask, positive
and negative attention enter one triplet loss; the mask added to the features; long and short groups
with self- and cross-attention; heads for class, matching score and boundaries. All else here is
ours: layers, distance and margin of the triplet loss, the groups, the pyramid, the form of the
matching loss, optimisation and decoding (those of ActionFormer).

Letters and layout as in `actionformer`: inside, features are (B, T, D) and masks (B, T, 1).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from lofi.config import AMNetConfig, PostProcessing
from lofi.data.annotations import Video
from lofi.data.snippets import Grid
from lofi.heads.actionformer import (
    PRIOR,
    Convolution,
    Depthwise,
    Norm,
    Scale,
    join_levels,
    light,
    sinusoids,
    split_levels,
    window_attention,
)
from lofi.heads.base import Proposals
from lofi.heads.points import (
    EPSILON,
    PointHead,
    Points,
    PointStatistics,
    PointTargets,
    exact,
)

POSITION = 0.1  # weight of positions beside normalised features; with 1 they drown them


class MaskedPoints(NamedTuple):
    """`Points`, and what the other losses and the figures look at; () where it is switched off."""

    logits: tuple[Tensor, ...]  # (B, T_l, K)
    offsets: tuple[Tensor, ...]  # (B, T_l, 2) in strides of the level, >= 0
    masks: tuple[Tensor, ...]  # (B, T_l) bool, steps of the video
    matching: tuple[Tensor, ...]  # (B, T_l, 1) logits of the overlap with the truth
    action: tuple[Tensor, ...]  # one: the mask (B, T, D), or its logits (B, T, 1) of "binary"
    embedded: tuple[Tensor, ...]  # two (B, T, D): features before and after the mask joined them


class AMNetTargets(NamedTuple):
    """`PointTargets` and what the mask learns from; a leading batch dimension after `collate`."""

    classes: tuple[Tensor, ...]  # (T_l, K)
    offsets: tuple[Tensor, ...]  # (T_l, 2)
    action: Tensor  # (T,) 1 inside any segment, -1 in the background, 0 behind the video


class AMNetStatistics(NamedTuple):
    """Of one logical batch; numbers of steps in float64."""

    count: Tensor  # see `PointStatistics`
    positive: Tensor  # steps of actions
    negative: Tensor  # steps of background
    mixed: Tensor  # steps of the videos that hold both


class AMNet(PointHead):
    """AMNet as reconstructed: (B, C, T) features → `MaskedPoints`; no weight depends on T.

    Args:
        channels: C.
        classes: K, or their names; 1 stands for "an action", whatever its label.
        options: fields of `AMNetConfig`, which says what they switch.
    """

    def __init__(self, channels: int, classes: int | Sequence[str] = 1, **options) -> None:
        own = AMNetConfig(**options)
        super().__init__(classes, own.first_count, 1.0, 0.0)
        self.config, self.channels, self.levels = own, channels, own.levels
        self.max_steps = own.max_steps
        hidden, heads = own.hidden, own.heads
        width = hidden // (2 if own.groups == "channel" else 1)
        if width % heads or self.levels < 2 or own.window % 2 == 0:
            found = f"hidden is {hidden} in groups of {width}, levels {self.levels}"
            wanted = f"groups of a multiple of {heads} heads, 2 levels, an odd window"
            raise ValueError(f"{found}, window {own.window}; expected {wanted}")
        self.embedding = nn.ModuleList(
            Convolution(n, hidden, bias=False) for n in (channels, hidden)
        )
        self.embedding_norm = nn.ModuleList(Norm(hidden) for _ in range(2))
        if own.mask == "triplet":
            self.ame = nn.ModuleDict({"norm": Norm(hidden), "attend": Attention(hidden, heads)})
        elif own.mask == "binary":
            self.ame = nn.ModuleDict({"convolutions": Tower(hidden), "out": nn.Linear(hidden, 1)})
        if own.mask != "none" and own.join == "multiply":
            self.alpha = nn.Parameter(torch.ones(()))
        self.down = nn.ModuleList(Depthwise(hidden, 2) for _ in range(self.levels - 1))
        self.down_norm = nn.ModuleList(Norm(hidden) for _ in self.down)
        self.down_out = nn.ModuleList(Convolution(hidden, hidden, 1) for _ in self.down)
        self.refine = nn.ModuleList(Residual(hidden) for _ in range(self.levels))
        self.norms = nn.ModuleList(Norm(hidden) for _ in range(self.levels))
        if own.attention != "none":
            self.level = nn.Parameter(torch.zeros(self.levels, hidden))
            exchange = own.attention == "full"
            self.gam = nn.ModuleList(GroupLayer(width, heads, exchange) for _ in range(own.layers))
            self.gam_norms = nn.ModuleList(Norm(hidden) for _ in range(self.levels))
            self.table = sinusoids(self.max_steps, hidden)
        self.towers = nn.ModuleDict({name: Tower(hidden) for name in ("classes", "offsets")})
        self.classes = Convolution(hidden, len(self.names) or 1)
        nn.init.constant_(self.classes.conv.bias, -math.log((1 - PRIOR) / PRIOR))
        self.offsets = Convolution(hidden, 2)
        self.scales = nn.ModuleList(Scale() for _ in range(self.levels))
        if own.matching != "none":
            self.towers["matching"] = Tower(hidden)
            self.matching = Convolution(hidden, 1)
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))  # steps of training

    def forward(
        self, features: Tensor, mask: Tensor | None = None, draws: Tensor | None = None
    ) -> MaskedPoints:
        """(B, C, T), (B, T) bool → outputs of ⌈T / 2^l⌉ steps, however far a video is padded.

        `draws`: as `self.draws` makes them; without, no branch is left out.
        """
        if features.ndim != 3 or features.shape[1] != self.channels or not features.shape[2]:
            expected = f"(videos, {self.channels}, steps)"
            raise ValueError(f"features are {tuple(features.shape)}, expected {expected}")
        if mask is None:
            mask = features.new_ones((len(features), features.shape[2]), dtype=torch.bool)
        inside = mask[:, :, None]
        x = features.transpose(1, 2) * inside
        for convolution, norm in zip(self.embedding, self.embedding_norm):
            x = F.relu(norm(convolution(x, inside))) * inside
        action, after = self._mask(x, inside)
        levels, masks = [after], [inside[:, :: 2**level] for level in range(self.levels)]
        for down, norm, out, m in zip(self.down, self.down_norm, self.down_out, masks[1:]):
            levels.append(out(norm(down(levels[-1])), m))
        levels = [refine(y, m) for refine, y, m in zip(self.refine, levels, masks)]
        levels = [norm(y) * m for norm, y, m in zip(self.norms, levels, masks)]
        if self.config.attention != "none":
            levels = self._grouped(levels, masks, draws, action)
        together, places, _ = join_levels(levels, masks)
        towers = {name: tower(together, places) for name, tower in self.towers.items()}
        offsets = split_levels(self.offsets(towers["offsets"], places), masks)
        offsets = (F.softplus(y * s.scale) * m for y, s, m in zip(offsets, self.scales, masks))
        matching = ()
        if "matching" in towers:
            matching = tuple(split_levels(self.matching(towers["matching"], places), masks))
        logits = tuple(split_levels(self.classes(towers["classes"], places), masks))
        insides = tuple(m[:, :, 0] for m in masks)
        return MaskedPoints(logits, tuple(offsets), insides, matching, action, (x, after))

    def _mask(self, x: Tensor, inside: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """The mask of embedded features, and the features that it has joined."""
        if self.config.mask == "none":
            return (), x
        if self.config.mask == "triplet":
            action = found = self._attend(x, inside[:, :, 0]) * inside
        else:
            found = self.ame["out"](self.ame["convolutions"](x, inside)) * inside
            action = found.sigmoid()
        if self._frozen():
            action = action.detach()
        after = x + action if self.config.join == "add" else x * action + self.alpha * x
        return (found,), after * inside

    def _attend(self, x: Tensor, keys: Tensor) -> Tensor:
        """Attention of every step to the steps that are `keys` (B, T), by the same weights."""
        x = self.ame["norm"](x)
        return self.ame["attend"](x, x, keys)

    def _alone(self) -> bool:
        """The mask is still learned by itself (`mask_first`)."""
        counted = not self.seen.is_meta and self.training
        return counted and 0 < self.seen.item() <= self.config.mask_first

    def _frozen(self) -> bool:
        return self.training and self.config.mask_first > 0 and not self._alone()

    def _grouped(self, levels, masks, draws: Tensor | None, action) -> list[Tensor]:
        """Group attention; see `AMNetConfig.groups`."""
        (_, steps, width), config = levels[0].shape, self.config
        table = self.table if steps <= len(self.table) else sinusoids(steps, width)
        table = table.to(levels[0]) * width**0.5
        places = [table[: steps : 2**i] + self.level[i] for i in range(self.levels)]
        levels = [(y + POSITION * p) * m for y, p, m in zip(levels, places, masks)]
        insides, bias = [m[:, :, 0] for m in masks], None
        if config.bias_keys and config.mask == "binary":
            shown = (action[0].detach() if self._frozen() else action[0]).sigmoid()[:, :, 0]
            bias = [(shown[:, :: 2**i] + 1e-6).log() for i in range(self.levels)]
        drops = self.branches(draws, config.drop_path)
        if config.groups == "level":
            half = (self.levels + 1) // 2
            ends = slice(half), slice(half, None)
            groups = [torch.cat(levels[end], 1) for end in ends]
            seen = [torch.cat(insides[end], 1) for end in ends]
            added = [bias and torch.cat(bias[end], 1) for end in ends]
            groups = self._layers(groups, seen, added, drops, 0)
            sizes = [[y.shape[1] for y in levels[end]] for end in ends]
            levels = [y for group, n in zip(groups, sizes) for y in group.split(n, 1)]
        else:
            reach, split = config.window // 2, config.groups == "channel"
            for i, y in enumerate(levels):
                given = list(y.chunk(2, 2)) if split else [y, y]
                added = [bias and bias[i]] * 2
                short, long = self._layers(given, [insides[i]] * 2, added, drops, reach)
                levels[i] = torch.cat([short, long], 2) if split else (short + long) / 2
        return [norm(y) * m for norm, y, m in zip(self.gam_norms, levels, masks)]

    def _layers(self, groups, seen, bias, drops: Tensor | None, reach: int) -> list[Tensor]:
        for i, layer in enumerate(self.gam):
            groups = layer(groups, seen, bias, None if drops is None else drops[6 * i :], reach)
        return groups

    def draws(self, videos: int, targets: tuple, generator: torch.Generator) -> Tensor:
        """(videos, 6 · layers) uniform numbers: which branches a video goes without."""
        layers = self.config.layers if self.config.attention != "none" else 0
        return torch.rand((videos, 6 * layers), generator=generator)

    def targets(self, video: Video, grid: Grid) -> AMNetTargets:
        """Labels of points as in `PointHead`; every segment marks at least its middle step."""
        points = super().targets(video, grid)
        rows = np.array([(s.start_s, s.end_s) for s in video.segments], np.float64).reshape(-1, 2)
        start, end = (rows / grid.step_s - 0.5).T
        middle = ((start + end) / 2).round().clip(0, grid.steps - 1)
        t = np.arange(grid.steps)[:, None]
        shown = (t >= np.minimum(start, middle)) & (t <= np.maximum(end, middle))
        action = np.where(shown.any(1), 1.0, -1.0) * grid.inside()
        return AMNetTargets(*points, torch.from_numpy(action).float())

    def collate(self, targets: Sequence[AMNetTargets]) -> AMNetTargets:
        """Stack the targets of videos of any lengths, zeros behind the ends of the shorter ones."""
        points = super().collate([PointTargets(*target[:2]) for target in targets])
        action = pad_sequence([target.action for target in targets], batch_first=True)
        return AMNetTargets(*points, action)

    def statistics(
        self, targets: AMNetTargets, draws: Tensor,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> AMNetStatistics:  # fmt: skip
        """The running count and the numbers of steps; in training mode a step is counted."""
        count = super().statistics(targets, draws, reduce).count
        positive, negative = targets.action > 0, targets.action < 0
        steps = (targets.action != 0) & _mixed(targets.action)
        found = torch.stack([s.sum() for s in (positive, negative, steps)]).double()
        found = reduce(found) if reduce else found
        if self.training:
            self.seen += 1
        return AMNetStatistics(count, *found.clamp(min=1).to(count.device))

    def losses(
        self, outputs: MaskedPoints, targets: AMNetTargets, statistics: AMNetStatistics,
        draws: Tensor,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Those of `PointHead`, "matching" and "mask"; `mask_first` steps of the mask's alone."""
        given = Points(*outputs[:3]), PointTargets(*targets[:2])
        found = super().losses(*given, PointStatistics(statistics.count), draws)
        if outputs.matching:
            found["matching"] = self._matching_loss(outputs, targets, statistics)
            found["loss"] = found["loss"] + self.config.matching_weight * found["matching"]
        if outputs.action and not self._frozen():
            found["mask"] = self._mask_loss(outputs, targets, statistics)
            kept = 0.0 if self._alone() else found["loss"]
            found["loss"] = kept + self.config.mask_weight * found["mask"]
        return found

    def _matching_loss(self, outputs: MaskedPoints, targets: AMNetTargets, counts) -> Tensor:
        """Cross entropy with the overlap of what a positive point predicts."""
        columns = outputs.matching, outputs.offsets, outputs.masks, *targets[:2]
        logits, offsets, inside, truth, wanted = (torch.cat(levels, 1) for levels in columns)
        offsets, wanted = exact(offsets.detach()), wanted.float()
        overlap = torch.minimum(offsets, wanted).sum(-1)
        union = (offsets.sum(-1) + wanted.sum(-1) - overlap).clamp(min=EPSILON)
        entropy = F.binary_cross_entropy_with_logits(
            exact(logits[..., 0]), (overlap / union).clamp(0, 1), reduction="none"
        )
        return (entropy * (inside & (truth.sum(-1) > 0))).sum() / counts.count.to(entropy)

    def _mask_loss(self, outputs: MaskedPoints, targets: AMNetTargets, counts) -> Tensor:
        found, action = exact(outputs.action[0]), targets.action
        positive, negative = action > 0, action < 0
        if self.config.mask == "binary":  # both kinds of step weigh the same
            entropy = F.binary_cross_entropy_with_logits(
                found[..., 0], positive.to(found.dtype), reduction="none"
            )
            pairs = (positive, counts.positive), (negative, counts.negative)
            return sum((entropy * kind).sum() / n.to(found) for kind, n in pairs) / 2
        near, far = (
            (found - exact(self._attend(outputs.embedded[0], keys))).square().mean(-1)
            for keys in (positive, negative)
        )
        gap = (near + EPSILON).sqrt() - (far + EPSILON).sqrt()
        if self.config.rule == "aware":
            gap = torch.where(negative, -gap, gap)
        counted = (action != 0) & _mixed(action)
        return (F.relu(gap + self.config.margin) * counted).sum() / counts.mixed.to(found)

    def decode(self, outputs: MaskedPoints, grid: Grid, post: PostProcessing) -> Proposals:
        """As `PointHead`; with matching "score" a score is √(class · matching)."""
        logits = outputs.logits
        if self.config.matching == "score":
            pairs = zip(logits, outputs.matching, strict=True)
            logits = tuple((a.float().sigmoid() * b.float().sigmoid()).sqrt().logit(1e-7)
                           for a, b in pairs)  # fmt: skip
        return super().decode(Points(logits, *outputs[1:3]), grid, post)


def _mixed(action: Tensor) -> Tensor:
    """(B, 1) videos that show both, an action and background."""
    return (action > 0).any(1, keepdim=True) & (action < 0).any(1, keepdim=True)


class Tower(nn.Module):
    """Two convolutions in front of an output; nothing behind the end of a video is seen."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(Convolution(hidden, hidden, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(Norm(hidden) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D) → the same shape."""
        for convolution, norm in zip(self.convolutions, self.norms):
            x = F.relu(norm(convolution(x, mask))) * mask
        return x


class Residual(nn.Module):
    """Two convolutions, added to what came in."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first = Convolution(hidden, hidden, bias=False)
        self.norm = Norm(hidden)
        self.second = Convolution(hidden, hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D) → the same shape."""
        return x + self.second(F.relu(self.norm(self.first(x, mask))) * mask, mask)


class Attention(nn.Module):
    """Attention with several heads, of queries to keys of the same or of another sequence."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(hidden, hidden) for _ in range(4))

    def forward(
        self, x: Tensor, y: Tensor, seen: Tensor, bias: Tensor | None = None, reach: int = 0
    ) -> Tensor:
        """(B, T, D) to the steps of (B, S, D) that are `seen` (B, S) bool → (B, T, D).

        `bias` (B, S) is added to the scores. `reach` > 0: only to steps at most so far away, for a
        sequence and itself. Where nothing is seen the result is an average, never NaN.
        """
        layers = (self.query, x), (self.key, y), (self.value, y)
        q, k, v = (f(z).unflatten(2, (self.heads, -1)).transpose(1, 2) for f, z in layers)
        if reach:
            z = light(window_attention, q, k, v, seen, reach)
        else:
            added = q.new_zeros(seen.shape) if bias is None else bias.to(q.dtype)
            added = added.masked_fill(~seen, torch.finfo(q.dtype).min)
            z = F.scaled_dot_product_attention(q, k, v, added[:, None, None])
        return self.out(z.transpose(1, 2).flatten(2))


class GroupLayer(nn.Module):
    """Attention inside both groups, then (exchange) of each to the other, then two layers."""

    def __init__(self, hidden: int, heads: int, exchange: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(6))  # two a branch
        self.own = nn.ModuleList(Attention(hidden, heads) for _ in range(2))
        self.other = nn.ModuleList(Attention(hidden, heads) for _ in range(2 * exchange))
        self.network = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden))
            for _ in range(2)
        )

    def forward(self, groups, seen, bias, drops: Tensor | None, reach: int) -> list[Tensor]:
        """The short and the long group; `reach` of the short one inside itself, 0: everywhere.

        `drops` (6, B, 1, 1): factors of the branches, 0 or 1 / share kept.
        """
        keep = [1.0] * 6 if drops is None else drops
        groups, normed = list(groups), [norm(x) for norm, x in zip(self.norms, groups)]
        for i, y in enumerate(normed):
            far = reach if i == 0 else 0
            groups[i] = groups[i] + keep[i] * self.own[i](y, y, seen[i], bias[i], far)
        if self.other:
            normed = [norm(x) for norm, x in zip(self.norms[2:], groups)]
            for i, y in enumerate(normed):
                back = normed[1 - i], seen[1 - i], bias[1 - i]
                groups[i] = groups[i] + keep[2 + i] * self.other[i](y, *back)
        for i, x in enumerate(groups):
            groups[i] = x + keep[4 + i] * self.network[i](self.norms[4 + i](x))
        return groups
