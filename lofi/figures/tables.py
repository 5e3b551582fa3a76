"""Results as tables (text, HTML) and as bars, and the numbers that the paper prints.

Results come as fractions (`results.json`) and are shown in percent with one decimal. "classes" says
where a detection's class comes from: "shared" (one video classifier for every method, as in the
paper), "own" (a classifier on the method's own features) or "oracle" (the true class).

The paper's numbers stand in `paper.csv`, as printed, in percent. Source: Xu et al., "Low-Fidelity
Video Encoder Optimization for Temporal Action Localization", NeurIPS 2021, Tables 1-7 and, in the
supplement, A-D.
"""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from lofi.figures import style
from lofi.figures.style import Canvas, axes_for, fill, literal
from lofi.table import Table

NAMES = {  # of methods, in notebooks, reports and figures
    "random": "untrained", "acp": "ACP", "acp+": "ACP+", "s-lofi": "S-LoFi",
    "t-lofi": "T-LoFi", "st-lofi": "ST-LoFi", "short-c-lofi": "Short C-LoFi",
    "c-lofi": "C-LoFi", "low-lofi": "low budget", "icp": "ICP", "arrow": "Arrow",
    "speed": "Speed", "acp+arrow": "ACP+Arrow", "acp+speed": "ACP+Speed",
}  # fmt: skip
CLASSES = ("shared", "own", "oracle")
SHOWN_TIOUS = (0.5, 0.75, 0.95)
PAPER_MAP = ("0.5", "0.75", "0.95", "average")  # columns of paper.csv
RECALLS = ("AR@1", "AR@5", "AR@10", "AR@100", "AUC")  # in lower case also those of results.json
PAPER_METRICS = (*PAPER_MAP, *RECALLS)


def percent(fraction: float | None) -> str:
    """A fraction in percent with one decimal; a dash for None."""
    return "–" if fraction is None else f"{100 * fraction:.1f}"


class ResultRow(NamedTuple):
    """One method under one choice of classes; numbers are fractions, means over `trials`."""

    method: str
    classes: str
    average: float
    at: dict[float, float]  # tIoU → mAP
    spread: float  # sample standard deviation of `average` over the trials; 0 for one
    trials: int
    text: str  # `average` in percent, with ± over trials
    numbers: dict[str, tuple[float, float]]  # `PAPER_METRICS` that there are → mean, deviation
    rates: tuple[float, ...]  # learning rates of its heads that were searched for


def results_rows(results: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[ResultRow]:
    """The rows of a `results.json` by method and classes; trials and seeds of one are averaged.

    Args:
        results: {"rows": [{"method", "classes", "average_map", "map": [per tIoU]}], "tious"} or
            just its rows. Without "tious" ten thresholds 0.5 … 0.95 are taken for granted.
    Raises:
        ValueError: a row lacks a field, or its "map" has another length than "tious".
    """
    results = results if isinstance(results, Mapping) else {"rows": results}
    trials, rates = defaultdict(list), defaultdict(set)
    for i, row in enumerate(results["rows"]):
        missing = [key for key in ("method", "classes", "average_map", "map") if key not in row]
        if missing:
            raise ValueError(f"result row {i} lacks {missing}; it holds {sorted(row)}")
        tious = row.get("tious") or results.get("tious") or np.linspace(0.5, 0.95, 10)
        if len(tious) != len(row["map"]):
            raise ValueError(f"result row {i}: {len(row['map'])} values for {len(tious)} tIoUs")
        at = zip(np.round(tious, 6).tolist(), row["map"])
        found = dict(at) | {"average": row["average_map"]}
        found |= {name: row[name.lower()] for name in RECALLS if name.lower() in row}
        trials[row["method"], row["classes"]].append(found)
        rates[row["method"], row["classes"]] |= {row["lr"]} if "lr" in row else set()
    rows = []
    for key, found in trials.items():
        common, count = [name for name in found[0] if all(name in one for one in found)], len(found)
        values = {name: [one[name] for one in found] for name in common}
        numbers = {
            f"{name:g}" if isinstance(name, float) else name: (
                fmean(mine), stdev(mine) if count > 1 else 0.0
            )
            for name, mine in values.items()
        }  # fmt: skip
        at = {name: numbers[f"{name:g}"][0] for name in common if isinstance(name, float)}
        average, spread = numbers["average"]
        text = _with_deviation(average, spread, count)
        rate = tuple(sorted(rates[key]))
        rows.append(ResultRow(*key, average, at, spread, count, text, numbers, rate))
    methods, kinds = _order(rows)
    return sorted(rows, key=lambda row: (methods.index(row.method), kinds.index(row.classes)))


def _with_deviation(mean: float, deviation: float, trials: int) -> str:
    """A fraction in percent, with ± where there are several trials."""
    return percent(mean) + (f" ± {percent(deviation)}" if trials > 1 else "")


def _order(rows: Sequence[ResultRow]) -> tuple[list[str], list[str]]:
    """Methods as they come, and sources of classes: those of `CLASSES` first, then others."""
    kinds = dict.fromkeys(row.classes for row in rows)
    kinds = sorted(kinds, key=lambda kind: (*CLASSES, kind).index(kind))
    return list(dict.fromkeys(row.method for row in rows)), kinds


def _trial_note(rows: Sequence[ResultRow]) -> tuple[str, ...]:
    counts, notes = sorted({row.trials for row in rows}), []
    if counts not in ([], [1]):
        trials = " to ".join(dict.fromkeys(map(str, (counts[0], counts[-1]))))
        notes.append(f"Mean ± standard deviation over {trials} trials.")
    rates = {row.method: ", ".join(f"{lr:g}" for lr in row.rates) for row in rows if row.rates}
    if rates:
        found = "; ".join(f"{method} {lr}" for method, lr in rates.items())
        notes.append(f"Learning rate of the head, chosen on held-out training videos: {found}.")
    return tuple(notes)


def results_table(results: Any) -> Table:
    """One line per method and classes: average mAP and mAP at 0.5, 0.75, 0.95 (THUMOS14: all)."""
    thumos14 = isinstance(results, Mapping) and results.get("protocol") == "thumos14"
    rows = results_rows(results)
    shown = tuple(rows[0].at) if thumos14 else SHOWN_TIOUS
    header = ("method", "classes", "average", *(f"@{tiou:g}" for tiou in shown))
    body = tuple((*row[:2], row.text, *map(percent, map(row.at.get, shown))) for row in rows)
    return Table(header, body, "mAP in percent", _trial_note(rows))


def summary_table(results: Any) -> Table:
    """Average mAP only: a line per method, a column per choice of classes."""
    rows = results_rows(results)
    methods, kinds = _order(rows)
    cells = {(row.method, row.classes): row.text for row in rows}
    body = tuple((m, *(cells.get((m, kind), "–") for kind in kinds)) for m in methods)
    about = "Average mAP in percent, by source of the class", _trial_note(rows)
    return Table(("method", *kinds), body, *about)


def results_bars(results: Any, *, ax: Canvas = None) -> Axes:
    """Average mAP: a group of bars per method, one bar per choice of classes, SD as whiskers."""
    rows = results_rows(results)
    methods, kinds = _order(rows)
    width_in = 1.8 + 0.33 * len(methods) * (len(kinds) + 0.6)
    ax = axes_for(ax, min(max(5.5, width_in), 11.0), 3.4)
    width = 0.84 / max(len(kinds), 1)
    for k, kind in enumerate(kinds):
        chosen = [row for row in rows if row.classes == kind]
        at = [methods.index(row.method) + (k - (len(kinds) - 1) / 2) * width for row in chosen]
        heights = [100 * row.average for row in chosen]
        spread = [100 * row.spread for row in chosen]
        whiskers = {"yerr": spread, "ecolor": style.INK, "capsize": 2.5} if any(spread) else {}
        bars = ax.bar(at, heights, 0.94 * width, label=kind, **fill(k), **whiskers)
        ax.bar_label(bars, fmt="%.1f", padding=2, fontsize=style.SMALL)
    ax.set_xticks(range(len(methods)), map(literal, methods))
    ax.set(ylabel="average mAP (%)", ymargin=0.1)
    ax.tick_params(axis="x", length=0)
    ax.grid(axis="y", color=style.LIGHT)
    ax.set_axisbelow(True)
    ax.legend(title="classes from", title_fontsize=10, alignment="left", **style.BESIDE)
    return ax


class PaperRow(NamedTuple):
    """One row of a table of the paper."""

    source: str  # "Table 2"; A to D are in the supplement
    dataset: str
    method: str
    setting: str  # encoder, fidelity or whatever else tells rows of one method apart
    note: str  # what is odd about the row
    printed: dict[str, str]  # metric → percent, with the ± over ten trials where the paper gives it
    values: tuple[float | None, ...]  # None where the paper prints a dash


PAPER_VIDEOS = {  # of the validation subset; the paper does not say which list of ActivityNet
    "ActivityNet-1.3": (4926, 4728), "HACS-1.1": (5981,)
}  # fmt: skip


def paper_numbers(table: str = "", dataset: str = "") -> tuple[PaperRow, ...]:
    """Rows of the paper's tables, of one ("1" … "7", "A" … "D") and one data set where given."""
    rows = []
    text = Path(__file__).with_name("paper.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        about = map(row.get, ("table", "dataset", "method", "setting", "note"))
        printed = {name: row[name] for name in PAPER_METRICS if row[name]}
        cells = printed.values()
        values = (None if cell == "–" else float(cell.split()[0]) for cell in cells)
        rows.append(PaperRow(*about, printed, tuple(values)))
    found = [r for r in rows if table in ("", r.source[-1]) and dataset in ("", r.dataset)]
    if not found:
        tables, datasets = (", ".join(dict.fromkeys(names)) for names in list(zip(*rows))[:2])
        raise ValueError(f"no rows for {table!r} and {dataset!r}; there are {tables}; {datasets}")
    return tuple(found)


def paper_table(table: str) -> Table:
    """One table of the paper as it is printed, with the remarks on its inconsistencies."""
    rows = paper_numbers(table)
    body = tuple((row.method, row.setting, row.dataset, *row.printed.values()) for row in rows)
    notes = tuple(f"{r.method}, {r.setting} ({r.dataset}): {r.note}." for r in rows if r.note)
    header = ("method", "setting", "data set", *rows[0].printed)
    return Table(header, body, f"{rows[0].source} of the paper (percent)", notes)


ENCODERS = {"R(2+1)D-R18": "r2plus1d-18", "R18": "tsm-r18", "R34": "tsm-r34", "R50": "tsm-r50"}
LOW = "25×8×224²"  # what Table C trains and tests at


def paper_vs_ours(results: Any, dataset: str = "ActivityNet-1.3", table: str = "2") -> Table:
    """One of the paper's tables beside ours: mAP with shared classes, of Table A recall.

    A paper's row is ours where the encoder is, too, if the table has several. The difference is
    there only where encoder, head, protocol and number of videos are the paper's; else a note says
    what is not.
    """
    paper = paper_numbers(table, dataset)
    encoders = [next((e for s, e in ENCODERS.items() if s in r.setting), "") for r in paper]
    wanted = {
        "encoder": tuple(dict.fromkeys(filter(None, encoders))),
        "head": ("bmn",) if table == "A" else ("gtad",), "protocol": ("activitynet",),
        "subset": ("validation",), "videos": PAPER_VIDEOS[dataset],
    }  # fmt: skip
    notes = tuple(
        f"{name}: {results.get(name, 'unknown')} here, {' or '.join(map(str, known))} in the paper."
        for name, known in wanted.items()
        if results.get(name) not in known
    )
    rows = results_rows(results)
    ours = {NAMES.get(r.method, r.method): r for r in rows if table == "A" or r.classes == "shared"}
    body, metrics = [], tuple(paper[0].printed)
    for row, encoder in zip(paper, encoders):
        name = {"LoFi": "C-LoFi", "Long C-LoFi": "C-LoFi"}.get(row.method, row.method)
        name += f" at {LOW}" if table == "C" else ""
        match = ours.get(name)
        if match and len(wanted["encoder"]) > 1 and encoder != results.get("encoder"):
            match = None
        cells, change = ["–"] * len(metrics), "–"
        if match:
            trials = match.trials if table == "D" else 1
            known = [match.numbers.get(metric) for metric in metrics]
            cells = [_with_deviation(*found, trials) if found else "–" for found in known]
            if known[-1] and not notes:
                change = f"{100 * known[-1][0] - row.values[-1]:+.1f}"
        setting = [row.setting] if len(wanted["encoder"]) > 1 else []
        body.append((row.method, *setting, *row.printed.values(), *cells, change))
    names = [f"{whose} {name}" for whose in ("paper", "ours") for name in metrics]
    what = "recall" if table == "A" else "mAP in percent, shared classes"
    caption = f"{paper[0].source}, {dataset}: the paper and this run ({what})"
    first = ("method", *["setting"] * (len(wanted["encoder"]) > 1))
    return Table((*first, *names, f"Δ {metrics[-1]}"), tuple(body), caption, notes)


def paper_tables(results: Any, dataset: str = "ActivityNet-1.3") -> list[Table]:
    """`paper_vs_ours` for the tables of this encoder and head that the run has more than the ACP
    row of, D only for trials; Table 2 where there is none."""
    several, found = any(row.trials > 1 for row in results_rows(results)), []
    for name in dict.fromkeys(row.source[-1] for row in paper_numbers("", dataset)):
        table = paper_vs_ours(results, dataset, name)
        first = next(i for i, title in enumerate(table.header) if title.startswith("ours"))
        ours = {row[0] for row in table.rows if set(row[first:]) != {"–"}}
        other = any(note.startswith(("encoder: ", "head: ")) for note in table.notes)
        if ours - {"ACP"} and not other and (name != "D" or several):
            found.append(table)
    return found or [paper_vs_ours(results, dataset)]


def amnet_table(results: Any) -> Table:
    """Tables 1 and 2 of AMNet's supplement (THUMOS14) beside ours, and our other variants.

    A row is a variant of AMNet's default; ours is the first method's. Source: Kang, Lee, Jin, Lee,
    WACV 2023, supplement; one run each there.
    """
    ours = {row.method.partition(" ")[2]: row for row in reversed(results_rows(results))}
    text = Path(__file__).with_name("amnet.csv").read_text(encoding="utf-8")
    body, left = [], dict(ours)
    for row in csv.DictReader(text.splitlines()):
        match, name = ours.get(row["variant"]), row["variant"] or "as published"
        left.pop(row["variant"], None)
        cells = [percent(match and match.at.get(tiou)) for tiou in (0.5, 0.7)]
        cells = [*map(row.get, ("0.5", "0.7", "average")), *cells, match.text if match else "–"]
        body.append((f"table {row['table']}: {name}", *(cell or "–" for cell in cells)))
    for variant, row in left.items():
        cells = [percent(row.at.get(tiou)) for tiou in (0.5, 0.7)]
        body.append((variant, "–", "–", "–", *cells, row.text))
    names = [f"{whose} {name}" for whose in ("paper", "ours") for name in ("@0.5", "@0.7", "avg")]
    notes = (
        "Paper: THUMOS14, average of 0.3:0.1:0.7, one run a row; hidden=1024 and heads=8 did not "
        "fit into its 12 GB.",
        "Ours: a reconstruction, without the paper's method text or code; its protocol is unknown. "
        "Levels compare on THUMOS14 only.",
    )
    caption = "AMNet's supplement and ours (mAP in percent)"
    return Table(("variant", *names), tuple(body), caption, notes)
