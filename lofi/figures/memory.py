"""Where the bytes of a training step go, and what fits on which card."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from lofi.figures.style import (
    CYCLE,
    FALSE_ALARM,
    GREY,
    HATCHES,
    INK,
    LIGHT,
    LINES,
    OUTLINE,
    SMALL,
    TRUTH,
    axes_for,
    quiet_frame,
)

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


def memory_wall(
    sizes: Mapping[str, Mapping[str, float]],
    second: Mapping[str, Mapping[str, float]] | None = None,
    lines_gib: Sequence[float] = (32, 80, 141),
    *,
    second_label: str = "bf16",
    label: str = "peak of one training step (GiB)",
    ax: Axes | None = None,
) -> Axes:
    """Groups of bars on a logarithmic axis against the memory of common cards.

    Args:
        sizes: encoder → configuration → bytes; a group for every configuration of the first
            encoder, a bar for every encoder.
        second: the same at another precision, a diamond on each bar.
        lines_gib: card sizes in GiB, drawn as horizontal lines.
    """
    groups = list(next(iter(sizes.values())))
    ax = axes_for(ax, 1.6 * len(groups) + 1.0, 4.0)
    width = 0.8 / len(sizes)
    smallest = largest = next(iter(sizes.values()))[groups[0]] / GIB
    for i, (name, row) in enumerate(sizes.items()):
        places = [g + (i - (len(sizes) - 1) / 2) * width for g in range(len(groups))]
        gib = [row[group] / GIB for group in groups]
        bars = ax.bar(places, gib, 0.92 * width, color=CYCLE[i % len(CYCLE)], label=name,
                      hatch=HATCHES[i % len(HATCHES)], edgecolor="white", zorder=2)  # fmt: skip
        texts = [f"{size:.2g}" if size < 10 else f"{size:.0f}" for size in gib]
        ax.bar_label(bars, texts, color=INK, fontsize=SMALL, path_effects=OUTLINE)
        smallest, largest = min([smallest, *gib]), max([largest, *gib])
        if second is not None:
            marks = [second[name][group] / GIB for group in groups]
            ax.plot(places, marks, "D", color="white", markeredgecolor=INK, markersize=5, zorder=3,
                    label=second_label if i == len(sizes) - 1 else None)  # fmt: skip
            smallest = min([smallest, *marks])
    ax.set_yscale("log")
    ax.set(ylabel=label, ylim=(smallest / 2, max([largest, *lines_gib]) * 1.7))
    ax.set_xticks(range(len(groups)), groups)
    ax.set_xlim(-0.55, len(groups) - 0.45)
    ticks = [10.0**power for power in range(-3, 6) if smallest / 2 <= 10.0**power <= 2 * largest]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    _card_lines(ax, lines_gib)
    handles, names = ax.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda i: names[i] not in sizes)  # bars, then diamonds
    ax.legend([handles[i] for i in order], [names[i] for i in order], frameon=False,
              ncols=len(names), loc="lower center", bbox_to_anchor=(0.5, 1.0))  # fmt: skip
    ax.tick_params(axis="x", length=0)
    return quiet_frame(ax)


def peak_by_snippets(
    curves: Mapping[str, Mapping[int, float]],
    lines_gib: Sequence[float] = (),
    *,
    ax: Axes | None = None,
) -> Axes:
    """Peak memory against the number of snippets, both axes logarithmic.

    Args:
        curves: name → {snippets: bytes}.
        lines_gib: card sizes in GiB, drawn as horizontal lines.
    """
    ax = axes_for(ax, 6.0, 3.6)
    sizes = [size for curve in curves.values() for size in curve.values()]
    factor, unit = _unit(max(sizes) if not lines_gib else GIB)
    for i, (name, curve) in enumerate(curves.items()):
        snippets = sorted(curve)
        ax.plot(snippets, [curve[n] / factor for n in snippets], color=CYCLE[i % len(CYCLE)],
                linestyle=LINES[i % len(LINES)], linewidth=2, marker="o", label=name)  # fmt: skip
    ticks = sorted({n for curve in curves.values() for n in curve})
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(ticks, [str(n) for n in ticks])
    ax.minorticks_off()
    low = min(sizes) / factor
    high = max([max(sizes) / factor, *(line * GIB / factor for line in lines_gib)])
    ax.set(xlabel="snippets a video, L", ylabel=f"peak of one training step ({unit})",
           ylim=(low / 2, high * 2))  # fmt: skip
    decades = [10.0**power for power in range(-3, 7) if low / 2 <= 10.0**power <= 2 * high]
    ax.set_yticks(decades, [f"{tick:g}" for tick in decades])
    _card_lines(ax, lines_gib, GIB / factor)
    ax.legend(frameon=False)
    return quiet_frame(ax)


def _card_lines(ax: Axes, lines_gib: Sequence[float], scale: float = 1.0) -> None:
    """Dashed horizontal lines with the cards' sizes at their right ends."""
    for line in lines_gib:
        ax.axhline(line * scale, color=INK, linestyle="--", linewidth=1.2, zorder=0.5)
        ax.text(1.005, line * scale, f"{line:g} GiB", transform=ax.get_yaxis_transform(),
                ha="left", va="center", color=INK, fontsize=SMALL)  # fmt: skip
    ax.grid(axis="y", color=LIGHT, zorder=0)
    ax.set_axisbelow(True)


def _pairs(rows: Mapping[str, float] | Iterable[Any]) -> list[tuple[str, float]]:
    if isinstance(rows, Mapping):
        return [(str(name), float(size)) for name, size in rows.items()]
    pairs = [(row["name"], row["bytes"]) if isinstance(row, Mapping) else row[:2] for row in rows]
    return [(str(name), float(size)) for name, size in pairs]


def _unit(largest: float) -> tuple[int, str]:
    return next((factor, unit) for factor, unit in UNITS if largest >= factor or factor == 1)
