"""Results as tables (text, Markdown, HTML) and as bars, and the numbers that the paper prints.

Results come as fractions (`results.json`) and are shown in percent with one decimal. "classes" says
where a detection's class comes from: "shared" (one video classifier for every method, as in the
paper), "own" (a classifier on the method's own features) or "oracle" (the true class:
localization alone).

The paper's numbers stand in `paper.csv` beside this file, as printed, in percent (with ± over ten
trials in Table D). Source: Xu et al., "Low-Fidelity Video Encoder Optimization for Temporal Action
Localization", NeurIPS 2021, Tables 1-7 and, in the supplement, A-D.
"""

import csv
import html
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from lofi.figures import style
from lofi.figures.style import as_spans, axes_for, fill, quiet_frame

CLASSES = ("shared", "own", "oracle")
SHOWN_TIOUS = (0.5, 0.75, 0.95)
PAPER_MAP = ("0.5", "0.75", "0.95", "average")  # columns of paper.csv
PAPER_RECALL = ("AR@1", "AR@5", "AR@10", "AR@100", "AUC")
ANET = "ActivityNet-1.3"


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

    _repr_html_ = html  # what a notebook shows

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

    @property
    def average_text(self) -> str:
        """In percent, with ± over trials."""
        return percent(self.average) + (f" ± {100 * self.spread:.1f}" if self.trials > 1 else "")


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
    results = results if isinstance(results, Mapping) else {"rows": results}
    trials: dict[tuple[str, str], list[list[float]]] = {}
    for i, row in enumerate(results["rows"]):
        missing = [key for key in ("method", "classes", "average_map", "map") if key not in row]
        if missing:
            raise ValueError(f"result row {i} lacks {missing}; it holds {sorted(row)}")
        tious = row.get("tious") or results.get("tious") or np.linspace(0.5, 0.95, 10)
        if len(tious) != len(row["map"]):
            raise ValueError(f"result row {i}: {len(row['map'])} values for {len(tious)} tIoUs")
        by_tiou = {round(float(tiou), 6): value for tiou, value in zip(tious, row["map"])}
        numbers = [row["average_map"], *(by_tiou.get(round(tiou, 6), np.nan) for tiou in shown)]
        trials.setdefault((str(row["method"]), str(row["classes"])), []).append(numbers)
    methods = list(dict.fromkeys(method for method, _ in trials))
    kinds = _kinds(kind for _, kind in trials)
    rows = []
    for key in sorted(trials, key=lambda key: (methods.index(key[0]), kinds.index(key[1]))):
        average, *at = (statistics.fmean(column) for column in zip(*trials[key]))
        averages = [numbers[0] for numbers in trials[key]]
        spread = statistics.stdev(averages) if len(averages) > 1 else None
        rows.append(ResultRow(*key, average, tuple(at), spread, len(averages)))
    return rows


def results_table(results: Any) -> Table:
    """One line per method and choice of classes: average mAP and mAP at 0.5, 0.75, 0.95.

    Results of the THUMOS14 protocol show its five tIoUs instead.

    Args:
        results: what `results_rows` takes.
    """
    thumos14 = isinstance(results, Mapping) and results.get("protocol") == "thumos14"
    shown = results["tious"] if thumos14 else SHOWN_TIOUS
    rows = results_rows(results, shown)
    header = ("method", "classes", "average", *(f"@{tiou:g}" for tiou in shown))
    body = tuple((r.method, r.classes, r.average_text, *map(percent, r.at)) for r in rows)
    return Table(header, body, "mAP in percent", _trial_note(rows))


def summary_table(results: Any) -> Table:
    """Average mAP only: a line per method, a column per choice of classes."""
    rows = results_rows(results)
    cells = {(row.method, row.classes): row.average_text for row in rows}
    kinds = _kinds(row.classes for row in rows)
    methods = dict.fromkeys(row.method for row in rows)
    body = tuple((m, *(cells.get((m, kind), "–") for kind in kinds)) for m in methods)
    caption = "Average mAP in percent, by source of the class"
    return Table(("method", *kinds), body, caption, _trial_note(rows))


def detections_table(detections: Sequence[Any]) -> Table:
    """One line per detection, the best first; segments as `lofi.figures.style.as_spans` takes."""
    spans = sorted(as_spans(detections), key=lambda span: -(span.score or 0.0))
    scores = ("–" if span.score is None else f"{span.score:.3f}" for span in spans)
    body = tuple(
        (span.label or "–", score, f"{span.start_s:.2f}", f"{span.end_s:.2f}")
        for span, score in zip(spans, scores)
    )
    return Table(("label", "score", "start (s)", "end (s)"), body)


def results_bars(results: Any, *, ax: Axes | None = None) -> Axes:
    """Average mAP: a group of bars per method, one bar per choice of classes, SD as whiskers."""
    rows = results_rows(results)
    methods = list(dict.fromkeys(row.method for row in rows))
    kinds = _kinds(row.classes for row in rows)
    width_in = 1.8 + 0.33 * len(methods) * (len(kinds) + 0.6)
    ax = axes_for(ax, min(max(5.5, width_in), 11.0), 3.4)
    width = 0.84 / max(len(kinds), 1)
    for k, kind in enumerate(kinds):
        chosen = [row for row in rows if row.classes == kind]
        at = [methods.index(row.method) + (k - (len(kinds) - 1) / 2) * width for row in chosen]
        heights = [100 * row.average for row in chosen]
        spread = [100 * (row.spread or 0.0) for row in chosen]
        whiskers = {"yerr": spread, "ecolor": style.INK, "capsize": 2.5} if any(spread) else {}
        bars = ax.bar(at, heights, 0.94 * width, label=kind, **fill(k), **whiskers)
        ax.bar_label(bars, fmt="%.1f", padding=2, fontsize=style.SMALL)
    ax.set_xticks(range(len(methods)), methods)
    ax.set(ylabel="average mAP (%)")
    ax.margins(y=0.1)
    ax.tick_params(axis="x", length=0)
    ax.grid(axis="y", color=style.LIGHT)
    ax.set_axisbelow(True)
    ax.legend(title="classes from", title_fontsize=10, alignment="left", **style.BESIDE)
    return quiet_frame(ax)


def percent(fraction: float) -> str:
    """A fraction in percent with one decimal; a dash for NaN."""
    return "–" if np.isnan(fraction) else f"{100 * fraction:.1f}"


class PaperRow(NamedTuple):
    """One row of a table of the paper."""

    source: str  # "Table 2"; A to D are in the supplement
    dataset: str
    method: str
    setting: str  # encoder, fidelity or whatever else tells rows of one method apart
    metrics: tuple[str, ...]
    printed: tuple[str, ...]  # percent, with the ± over ten trials where the paper gives it
    note: str  # what is odd about the row

    @property
    def values(self) -> tuple[float | None, ...]:
        """Percent; None where the paper prints a dash."""
        return tuple(None if cell == "–" else float(cell.split()[0]) for cell in self.printed)


def paper_numbers(source: str | None = None, dataset: str | None = None) -> tuple[PaperRow, ...]:
    """All rows of the paper's tables, or those of one table and data set.

    Args:
        source: "Table 1" … "Table 7", "Table A" … "Table D", or just "1" … "D".
        dataset: "ActivityNet-1.3" or "HACS-1.1".
    Raises:
        ValueError: nothing matches.
    """
    rows = []
    with open(Path(__file__).with_name("paper.csv"), encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            metrics = tuple(name for name in PAPER_MAP + PAPER_RECALL if row[name])
            printed = tuple(row[name] for name in metrics)
            place = row["table"], row["dataset"], row["method"], row["setting"]
            rows.append(PaperRow(*place, metrics, printed, row["note"]))
    wanted = source if source is None or source.startswith("Table ") else f"Table {source}"
    found = [r for r in rows if wanted in (None, r.source) and dataset in (None, r.dataset)]
    if not found:
        known = dict.fromkeys([row.source for row in rows]), dict.fromkeys(r.dataset for r in rows)
        tables, datasets = map(", ".join, known)
        raise ValueError(f"no rows for {source!r} and {dataset!r}; there are {tables}; {datasets}")
    return tuple(found)


def paper_table(source: str) -> Table:
    """One table of the paper as it is printed, with the remarks on its inconsistencies."""
    rows = paper_numbers(source)
    body = tuple((row.method, row.setting, row.dataset, *row.printed) for row in rows)
    notes = [f"{r.method}, {r.setting} ({r.dataset}): {r.note}." for r in rows if r.note]
    header = ("method", "setting", "data set", *rows[0].metrics)
    return Table(header, body, f"{rows[0].source} of the paper (percent)", tuple(notes))


def paper_vs_ours(results: Any, *, source: str = "Table 2", dataset: str = ANET) -> Table:
    """The paper's mAP beside ours with shared classes, and our average minus the paper's.

    The same method name on another data set (the toy world) is another experiment: compare
    differences between methods there, not levels.

    Args:
        results: what `lofi.figures.results_rows` takes (fractions).
        source, dataset: which table of the paper.
    """
    theirs = paper_numbers(source, dataset)
    if theirs[0].metrics != PAPER_MAP:
        raise ValueError(f"{source} on {dataset} has no mAP rows to compare with")
    ours = {_plain(row.method): row for row in results_rows(results) if row.classes == "shared"}
    body = []
    for row in theirs:
        cells = ["–"] * 5
        if match := ours.get(_plain(row.method)):
            average = row.values[-1]
            change = "–" if average is None else f"{100 * match.average - average:+.1f}"
            cells = [*map(percent, (*match.at, match.average)), change]
        body.append((row.method, *row.printed, *cells))
    names = [f"{whose} {name}" for whose in ("paper", "ours") for name in PAPER_MAP]
    notes = tuple(f"{row.method}: {row.note}." for row in theirs if row.note)
    caption = f"{theirs[0].source}, {dataset}: the paper and this run (mAP in percent, "
    caption += "shared classes)"
    return Table(("method", *names, "Δ average"), tuple(body), caption, notes)


def _plain(name: str) -> str:
    """Names that differ in case, spaces or hyphens, and c-lofi / long c-lofi, are the same."""
    plain = name.lower().replace("-", "").replace(" ", "").replace("_", "")
    return "longclofi" if plain in ("clofi", "longlofi", "lofilong") else plain


def _kinds(seen: Iterable[str]) -> list[str]:
    """Sources of classes, the known ones in their order, then others."""
    seen = dict.fromkeys(seen)
    return [kind for kind in CLASSES if kind in seen] + [k for k in seen if k not in CLASSES]


def _trial_note(rows: Sequence[ResultRow]) -> tuple[str, ...]:
    counts = sorted({row.trials for row in rows})
    if counts in ([], [1]):
        return ()
    trials = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return (f"Mean ± standard deviation over {trials} trials.",)
