"""What a clip shows, and what an encoder takes from it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from lofi.figures.style import CYCLE, HATCHES, INK, SMALL, as_array, axes_for, quiet_frame

ROUND_TO = 16  # grey levels; pictures of noise make notebooks large, and nobody sees the difference


def film(frames: Any, title: str = "", *, ax: Axes | None = None) -> Axes:
    """Consecutive frames side by side, a white line between two.

    Args:
        frames: uint8, (N, H, W, 3) as decoded or (N, 3, S, S) as an encoder gets them.
        title: above the strip.
        ax: where to draw; a new figure when None.
    Raises:
        ValueError: another shape.
    """
    frames = as_array(frames)
    if frames.ndim == 4 and frames.shape[1] == 3 and frames.shape[-1] != 3:
        frames = np.moveaxis(frames, 1, -1)
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(
            f"film expects frames (N, H, W, 3) or (N, 3, S, S), got {tuple(frames.shape)}"
        )
    frames = frames // ROUND_TO * ROUND_TO
    frames[:, :, -1] = 255
    ax = axes_for(ax, 6.0, 0.3 + 6.0 / len(frames))
    ax.imshow(np.hstack(frames), interpolation="nearest")
    ax.set_title(title, fontsize=SMALL)
    ax.set_axis_off()
    return ax


def share_bars(shares: Mapping[str, Any], *, ax: Axes | None = None) -> Axes:
    """One bar a row, cut into named parts that add up to 1; parts differ by hatch and colour.

    Args:
        shares: row name → named tuple of fractions, for example `lofi.data.toyworld.Shares`.
    """
    ax = axes_for(ax, 7.0, 0.5 * len(shares) + 1.2)
    left = np.zeros(len(shares))
    for i, part in enumerate(next(iter(shares.values()))._fields):
        values = np.array([getattr(share, part) for share in shares.values()])
        bars = ax.barh(
            list(shares), values, left=left, label=part, color=CYCLE[i], hatch=HATCHES[i],
            edgecolor="white",
        )  # fmt: skip
        texts = [f"{value:.2f}" if value > 0.07 else "" for value in values]
        box = {"facecolor": "white", "pad": 1, "linewidth": 0}
        ax.bar_label(bars, texts, label_type="center", color=INK, fontsize=SMALL, bbox=box)
        left += values
    ax.set(xlabel="share of the features' variance", xlim=(0, 1))
    ax.invert_yaxis()
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
    return quiet_frame(ax)
