"""Where the bytes of a training step go, and what fits on which card."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from lofi.figures import style
from lofi.figures.style import Canvas, axes_for, fill

Sizes = Mapping[str, float]  # name → bytes
GIB = 2**30
UNITS = ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))
CARDS_GIB = (32, 80, 141)


def bytes_by_layer(sizes: Sizes, *, top: int = 12, ax: Canvas = None) -> Axes:
    """One bar per layer, the largest at the top; beyond `top` they are one bar."""
    pairs = sorted(sizes.items(), key=lambda pair: -pair[1])
    shown, rest = dict(pairs[:top]), pairs[top:]
    colours = [style.TRUTH] * len(shown) + [style.GREY] * bool(rest)
    if rest:
        shown[f"{len(rest)} others"] = sum(size for _, size in rest)
    largest, total = max(shown.values(), default=1), sum(sizes.values()) or 1
    factor, unit = next(size for size in UNITS if largest >= size[0] or size[0] == 1)
    texts = [f" {100 * size / total:.0f} %" for size in shown.values()]
    ax = axes_for(ax, 7.0, 0.27 * len(shown) + 0.9)
    bars = _rows(ax, shown, [size / factor for size in shown.values()], color=colours)
    ax.bar_label(bars, texts, color=style.INK)
    ax.set_xlabel(f"saved for the backward pass ({unit})")
    ax.margins(x=0.1)
    return ax


def bytes_by_configuration(
    sizes: Sizes, lines_gib: Sequence[float] = CARDS_GIB, *, ax: Canvas = None
) -> Axes:
    """One bar per configuration against the memory of common cards.

    Bars that no card of `lines_gib` can hold are hatched. Only cards near the range are drawn.
    """
    gib = [size / GIB for size in sizes.values()]
    largest = max(gib, default=1.0)
    ax = axes_for(ax, 7.0, 0.4 * len(sizes) + 1.2)
    bars = _rows(ax, sizes, gib, height=0.7, color=style.TRUTH)
    for bar in (bar for bar, size in zip(bars, gib) if size > max(lines_gib)):
        bar.set(facecolor=style.FALSE_ALARM, hatch="//", edgecolor="white")
    texts = [f" {size:.3g}" if size < 100 else f" {size:.0f}" for size in gib]
    ax.bar_label(bars, texts, color=style.INK, padding=2, path_effects=style.OUTLINE)
    drawn = [line for line in lines_gib if line <= 2 * largest] or list(lines_gib)[:1]
    for line in drawn:
        ax.axvline(line, color=style.INK, linestyle="--", linewidth=1.2, zorder=0.5)
        ax.text(line, 1.0, f"{line:g} GiB", transform=ax.get_xaxis_transform(), ha="center",
                va="bottom", color=style.INK)  # fmt: skip
    ax.set(xlim=(0, 1.12 * max([largest, *drawn])), xlabel="memory of one training step (GiB)")
    ax.grid(axis="x", color=style.LIGHT, zorder=0)
    ax.set_axisbelow(True)
    return ax


def _rows(ax: Axes, names: Sizes, widths: Sequence[float], **look):
    """Horizontal bars with their names, the first at the top."""
    bars = ax.barh(range(len(widths)), widths, **look)
    ax.set_yticks(range(len(widths)), list(names))
    ax.set_ylim(len(widths) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    return bars


def memory_wall(
    sizes: Mapping[str, Sizes], bf16: Mapping[str, Sizes], *, ax: Canvas = None
) -> Axes:
    """Memory of encoder → configuration on a logarithmic axis, against that of common cards.

    A group for every configuration, in it a bar for every encoder; diamonds are bf16.
    """
    groups = list(next(iter(sizes.values())))
    ax = axes_for(ax, 1.6 * len(groups) + 1.0, 4.0)
    width = 0.8 / len(sizes)
    everything, handles = [], []
    for i, (name, row) in enumerate(sizes.items()):
        places = [g + (i - (len(sizes) - 1) / 2) * width for g in range(len(groups))]
        gib, marks = ([of[group] / GIB for group in groups] for of in (row, bf16[name]))
        bars = ax.bar(places, gib, 0.92 * width, label=name, zorder=2, **fill(i))
        texts = [f"{size:.2g}" if size < 10 else f"{size:.0f}" for size in gib]
        ax.bar_label(bars, texts, color=style.INK, fontsize=style.SMALL, path_effects=style.OUTLINE)
        diamonds = ax.plot(places, marks, "D", color="white", markeredgecolor=style.INK,
                           markersize=5, zorder=3, label="bf16")  # fmt: skip
        handles.append(bars)
        everything += gib + marks
    ax.set(ylabel="peak of one training step (GiB)", xlim=(-0.55, len(groups) - 0.45))
    ax.set_xticks(range(len(groups)), groups)
    low, high = min(everything) / 2, 2 * max([*everything, *CARDS_GIB])
    ticks = [10.0**power for power in range(-3, 7) if low <= 10.0**power <= high]
    ax.set(yscale="log", ylim=(low, high))
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    for card in CARDS_GIB:
        ax.axhline(card, color=style.INK, linestyle="--", linewidth=1.2, zorder=0.5)
        ax.text(1.005, card, f"{card:g} GiB", transform=ax.get_yaxis_transform(), ha="left",
                va="center", color=style.INK, fontsize=style.SMALL)  # fmt: skip
    ax.grid(axis="y", color=style.LIGHT, zorder=0)
    ax.set_axisbelow(True)
    ax.legend(handles=handles + diamonds, frameon=False, ncols=len(handles) + 1,
              loc="lower center", bbox_to_anchor=(0.5, 1.0))  # fmt: skip
    ax.tick_params(axis="x", length=0)
    return ax
