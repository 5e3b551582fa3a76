"""Where the bytes of a training step go, and what fits on which card."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from lofi.figures.style import FALSE_ALARM, GREY, INK, LIGHT, OUTLINE, TRUTH, axes_for, quiet_frame

GIB = 2**30
UNITS = ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))


def bytes_by_layer(
    rows: Mapping[str, float] | Iterable[Any], *, top: int = 12, ax: Axes | None = None
) -> Axes:
    """One bar per layer, the largest at the top; what is left over is summed in a last bar.

    Args:
        rows: name → bytes, or (name, bytes) pairs, or mappings with "name" and "bytes".
        top: layers with a bar of their own.
    """
    pairs = sorted(_pairs(rows), key=lambda pair: -pair[1])
    rest = pairs[top:]
    shown = pairs[:top] + [(f"{len(rest)} others", sum(size for _, size in rest))] * bool(rest)
    total = sum(size for _, size in pairs) or 1
    factor, unit = _unit(max((size for _, size in shown), default=1))
    ax = axes_for(ax, 7.0, 0.27 * len(shown) + 0.9)
    colours = [TRUTH] * min(top, len(pairs)) + [GREY] * bool(rest)
    bars = ax.barh(range(len(shown)), [size / factor for _, size in shown], color=colours)
    ax.bar_label(bars, [f" {100 * size / total:.0f} %" for _, size in shown], color=INK)
    ax.set_yticks(range(len(shown)), [name for name, _ in shown])
    ax.set(xlabel=f"saved for the backward pass ({unit})", ylim=(len(shown) - 0.4, -0.6))
    ax.margins(x=0.1)
    ax.tick_params(axis="y", length=0)
    return quiet_frame(ax)


def bytes_by_configuration(
    sizes: Mapping[str, float],
    lines_gib: Sequence[float] = (32, 80, 141),
    *,
    label: str = "memory of one training step (GiB)",
    ax: Axes | None = None,
) -> Axes:
    """One bar per configuration against the memory of common cards.

    Bars that no line's card can hold are hatched. Only lines near the bars' range are drawn.

    Args:
        sizes: name → bytes.
        lines_gib: card sizes in GiB, drawn as vertical lines; () for none.
    """
    gib = [size / GIB for size in sizes.values()]
    largest = max(gib, default=1.0)
    ax = axes_for(ax, 7.0, 0.4 * len(sizes) + 1.2)
    limit = max(lines_gib, default=float("inf"))
    bars = ax.barh(range(len(gib)), gib, height=0.7, color=TRUTH)
    for bar, size in zip(bars, gib):
        if size > limit:
            bar.set(facecolor=FALSE_ALARM, hatch="//", edgecolor="white")
    texts = [f" {size:.3g}" if size < 100 else f" {size:.0f}" for size in gib]
    ax.bar_label(bars, texts, color=INK, padding=2, path_effects=OUTLINE)
    drawn = [line for line in lines_gib if line <= 2 * largest] or list(lines_gib)[:1]
    for line in drawn:
        ax.axvline(line, color=INK, linestyle="--", linewidth=1.2, zorder=0.5)
        ax.text(line, 1.0, f"{line:g} GiB", transform=ax.get_xaxis_transform(), ha="center",
                va="bottom", color=INK)  # fmt: skip
    ax.set_yticks(range(len(gib)), list(sizes))
    ax.set(xlabel=label, xlim=(0, 1.12 * max([largest, *drawn])), ylim=(len(gib) - 0.4, -0.6))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=LIGHT, zorder=0)
    ax.set_axisbelow(True)
    return quiet_frame(ax)


def _pairs(rows: Mapping[str, float] | Iterable[Any]) -> list[tuple[str, float]]:
    if isinstance(rows, Mapping):
        return [(str(name), float(size)) for name, size in rows.items()]
    pairs = [(row["name"], row["bytes"]) if isinstance(row, Mapping) else row[:2] for row in rows]
    return [(str(name), float(size)) for name, size in pairs]


def _unit(largest: float) -> tuple[int, str]:
    return next((factor, unit) for factor, unit in UNITS if largest >= factor or factor == 1)
