"""Results as tables (text, Markdown, HTML) and as bars.

Results come as fractions (`results.json`) and are shown in percent with one decimal. "classes" says
where a detection's class comes from: "shared" (one video classifier for every method, as in the
paper), "own" (a classifier on the method's own features) or "oracle" (the true class:
localization alone).
"""

import html
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from lofi.figures.style import CYCLE, HATCHES, INK, LIGHT, as_spans, axes_for, quiet_frame

CLASSES = ("shared", "own", "oracle")
SHOWN_TIOUS = (0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Table:
    """A small table of strings.

    Args:
        header: one name per column.
        rows: as many entries each.
        caption: one sentence above the table.
        notes: remarks below it.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if len(row) != len(self.header):
                raise ValueError(f"row {i} has {len(row)} entries, the header {len(self.header)}")

    def text(self) -> str:
        """Aligned plain text for a terminal."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows)]
        right = self._numeric()

        def line(cells: Sequence[str]) -> str:
            padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right))
            return "  ".join(padded).rstrip()

        rule = "  ".join("-" * width for width in widths)
        lines = [line(self.header), rule, *(line(row) for row in self.rows)]
        return "\n".join([self.caption] * bool(self.caption) + lines + list(self.notes))

    def markdown(self) -> str:
        """A GitHub table; the caption stands before it and notes after it as paragraphs."""

        def line(cells: Iterable[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        marks = ("--:" if right else ":--" for right in self._numeric())
        table = "\n".join([line(self.header), line(marks), *(line(row) for row in self.rows)])
        return "\n\n".join([*[self.caption] * bool(self.caption), table, *self.notes])

    def html(self) -> str:
        """A `<table>` with caption and header cells that screen readers announce."""
        right = [' class="number"' if numeric else "" for numeric in self._numeric()]
        out = ['<div class="scroll"><table>']
        if self.caption:
            out.append(f"<caption>{html.escape(self.caption)}</caption>")
        heads = (f'<th scope="col"{r}>{html.escape(c)}</th>' for c, r in zip(self.header, right))
        out += ["<thead><tr>", *heads, "</tr></thead>", "<tbody>"]
        for first, *others in self.rows:
            cells = (f"<td{r}>{html.escape(c)}</td>" for c, r in zip(others, right[1:]))
            out += [f'<tr><th scope="row">{html.escape(first)}</th>', *cells, "</tr>"]
        out.append("</tbody></table></div>")
        out += [f'<p class="note">{html.escape(note)}</p>' for note in self.notes]
        return "\n".join(out)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self.html()

    def _numeric(self) -> list[bool]:
        """Columns (never the first) whose entries all look like numbers or are empty."""
        columns = list(zip(*self.rows)) or [()] * len(self.header)
        return [
            i > 0 and bool(column) and all(c.strip()[:1] in "0123456789+−-–." for c in column)
            for i, column in enumerate(columns)
        ]


class ResultRow(NamedTuple):
    """One method under one choice of classes; numbers are fractions, means over `trials`."""

    method: str
    classes: str
    average: float
    at: tuple[float, ...]  # mAP at the shown tIoUs; NaN where that threshold was not evaluated
    spread: float | None = None  # sample standard deviation of `average` over the trials
    trials: int = 1


def results_rows(
    results: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    shown: Sequence[float] = SHOWN_TIOUS,
) -> list[ResultRow]:
    """The rows of a `results.json`; repetitions (other seeds) of one row are averaged.

    Args:
        results: {"rows": [{"method", "classes", "average_map", "map": [per tIoU]}], "tious"} or
            just its rows. Without "tious" ten thresholds 0.5 … 0.95 are taken for granted.
        shown: thresholds whose mAP becomes `at`.
    Returns:
        Rows by method in order of appearance, classes in the order shared, own, oracle.
    Raises:
        ValueError: a row lacks a field, or its "map" has another length than "tious".
    """
    rows = results["rows"] if isinstance(results, Mapping) else results
    shared_tious = results.get("tious") if isinstance(results, Mapping) else None
    groups: dict[tuple[str, str], list[tuple[float, tuple[float, ...]]]] = {}
    for i, row in enumerate(rows):
        missing = [key for key in ("method", "classes", "average_map", "map") if key not in row]
        if missing:
            raise ValueError(f"result row {i} lacks {missing}; it holds {sorted(row)}")
        tious = row.get("tious") or shared_tious or list(np.linspace(0.5, 0.95, 10))
        if len(tious) != len(row["map"]):
            raise ValueError(f"result row {i}: {len(row['map'])} values for {len(tious)} tIoUs")
        at = tuple(_value_at(tiou, tious, row["map"]) for tiou in shown)
        key = (str(row["method"]), str(row["classes"]))
        groups.setdefault(key, []).append((float(row["average_map"]), at))
    methods = list(dict.fromkeys(method for method, _ in groups))
    order = {name: i for i, name in enumerate(CLASSES)}
    keys = sorted(groups, key=lambda key: (methods.index(key[0]), order.get(key[1], len(order))))
    return [_merge(key, groups[key]) for key in keys]


def results_table(results: Any, caption: str = "mAP in percent") -> Table:
    """One line per method and choice of classes: average mAP and mAP at 0.5, 0.75, 0.95.

    Results of the THUMOS14 protocol show its five tIoUs instead.

    Args:
        results: what `results_rows` takes.
    """
    thumos14 = isinstance(results, Mapping) and results.get("protocol") == "thumos14"
    shown = results["tious"] if thumos14 else SHOWN_TIOUS
    rows = results_rows(results, shown)
    header = ("method", "classes", "average", *(f"@{tiou:g}" for tiou in shown))
    body = tuple(
        (row.method, row.classes, _average(row), *(percent(value) for value in row.at))
        for row in rows
    )
    return Table(header, body, caption, _trial_note(rows))


def summary_table(
    results: Any, caption: str = "Average mAP in percent, by source of the class"
) -> Table:
    """Average mAP only: a line per method, a column per choice of classes."""
    rows = results_rows(results)
    cells = {(row.method, row.classes): _average(row) for row in rows}
    kinds = _kinds(rows)
    methods = dict.fromkeys(row.method for row in rows)
    body = tuple((m, *(cells.get((m, kind), "–") for kind in kinds)) for m in methods)
    return Table(("method", *kinds), body, caption, _trial_note(rows))


def detections_table(detections: Sequence[Any], caption: str = "") -> Table:
    """One line per detection, the best first; segments as `lofi.figures.style.as_spans` takes."""
    spans = sorted(as_spans(detections), key=lambda span: -(span.score or 0.0))
    body = tuple(
        (
            span.label or "–",
            "–" if span.score is None else f"{span.score:.3f}",
            f"{span.start_s:.2f}",
            f"{span.end_s:.2f}",
        )
        for span in spans
    )
    return Table(("label", "score", "start (s)", "end (s)"), body, caption)


def results_bars(results: Any, *, ax: Axes | None = None) -> Axes:
    """Average mAP: a group of bars per method, one bar per choice of classes, SD as whiskers."""
    rows = results_rows(results)
    methods = list(dict.fromkeys(row.method for row in rows))
    kinds = _kinds(rows)
    width_in = 1.8 + 0.33 * len(methods) * (len(kinds) + 0.6)
    ax = axes_for(ax, min(max(5.5, width_in), 11.0), 3.4)
    width = 0.84 / max(len(kinds), 1)
    for k, kind in enumerate(kinds):
        chosen = [row for row in rows if row.classes == kind]
        at = [methods.index(row.method) + (k - (len(kinds) - 1) / 2) * width for row in chosen]
        heights = [100 * row.average for row in chosen]
        spread = [100 * (row.spread or 0.0) for row in chosen]
        ax.bar(at, heights, 0.94 * width, label=kind, color=CYCLE[k % len(CYCLE)],
                      hatch=HATCHES[k % len(HATCHES)], edgecolor="white")  # fmt: skip
        if any(spread):
            ax.errorbar(at, heights, spread, fmt="none", ecolor=INK, capsize=2.5, linewidth=1)
        tops = [high + wide for high, wide in zip(heights, spread)]
        for x, top, high in zip(at, tops, heights):
            ax.annotate(f"{high:.1f}", (x, top), (0, 2), textcoords="offset points", ha="center",
                        fontsize=9)  # fmt: skip
    ax.set_xticks(range(len(methods)), methods)
    ax.set(ylabel="average mAP (%)")
    ax.margins(y=0.1)
    ax.tick_params(axis="x", length=0)
    ax.grid(axis="y", color=LIGHT)
    ax.set_axisbelow(True)
    ax.legend(title="classes from", title_fontsize=10, alignment="left", frameon=False,
              loc="upper left", bbox_to_anchor=(1, 1))  # fmt: skip
    return quiet_frame(ax)


def percent(fraction: float) -> str:
    """A fraction in percent with one decimal; a dash for NaN."""
    return "–" if np.isnan(fraction) else f"{100 * fraction:.1f}"


def _value_at(tiou: float, tious: Sequence[float], values: Sequence[float]) -> float:
    distances = np.abs(np.asarray(tious, dtype=float) - tiou)
    nearest = int(distances.argmin())
    return float(values[nearest]) if distances[nearest] < 1e-6 else float("nan")


def _merge(key: tuple[str, str], trials: list[tuple[float, tuple[float, ...]]]) -> ResultRow:
    averages = [average for average, _ in trials]
    at = tuple(statistics.fmean(column) for column in zip(*(at for _, at in trials)))
    spread = statistics.stdev(averages) if len(averages) > 1 else None
    return ResultRow(*key, statistics.fmean(averages), at, spread, len(averages))


def _kinds(rows: Sequence[ResultRow]) -> list[str]:
    seen = dict.fromkeys(row.classes for row in rows)
    return [kind for kind in CLASSES if kind in seen] + [k for k in seen if k not in CLASSES]


def _average(row: ResultRow) -> str:
    spread = "" if row.spread is None else f" ± {100 * row.spread:.1f}"
    return percent(row.average) + spread


def _trial_note(rows: Sequence[ResultRow]) -> tuple[str, ...]:
    counts = sorted({row.trials for row in rows})
    if counts in ([], [1]):
        return ()
    trials = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return (f"Mean ± standard deviation over {trials} trials.",)
