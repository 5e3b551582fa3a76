"""Every result of the LoFi paper and its supplement, row by row with its source.

Source: Xu et al., "Low-Fidelity Video Encoder Optimization for Temporal Action Localization",
NeurIPS 2021, Tables 1-7 and (supplement) A-D. Numbers are percent as printed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lofi.figures.tables import SHOWN_TIOUS, ResultRow, Table, results_rows

MAP = ("0.5", "0.75", "0.95", "average")
RECALL = ("AR@1", "AR@5", "AR@10", "AR@100", "AUC")
ANET, HACS = "ActivityNet-1.3", "HACS-1.1"


class PaperRow(NamedTuple):
    """One row of a table of the paper."""

    source: str  # "Table 2"; A to D are in the supplement
    dataset: str
    method: str
    setting: str  # encoder, fidelity or whatever else tells rows of one method apart
    metrics: tuple[str, ...]
    values: tuple[float | None, ...]  # percent; None where the paper prints a dash
    spread: tuple[float, ...] | None = None  # the paper's ± over ten trials
    note: str = ""


INCONSISTENCIES = (
    "HACS, LoFi: Table 1 prints 37.47 24.36 7.08 24.62, Tables 2 and 4 print 37.78 24.40 7.29 24.64"
    " for what should be the same run.",
    "Table A, gains: the rows differ by +0.42 (AR@1) and +0.68 (AUC); +0.32 and +0.58 are printed.",
    "Table B: TSM-R50 at 25 snippets and 112 pixels (34.23) beats TSM-R18 ACP but stays below"
    " TSM-R50's own ACP (34.26, Table 6): lowering both axes for a deeper encoder did not pay.",
    "Table 6: the TSM-R50 ACP row equals the same authors' BSP row (50.01 35.07 8.02 34.26)"
    " except for its first cell (50.32).",
    "Supplement B calls 25 snippets at 112 pixels T-LoFi although both axes are reduced.",
)
_HACS_TWICE = "Tables 1 and 2/4 disagree on LoFi for HACS"
_R50 = "equals the BSP row of the same authors except the value at 0.5"

# One line per printed row: method | setting | values. Two data sets side by side are two blocks.
_BLOCKS = (
    ("Table 1", ANET, MAP, """
        ACP  | TSM-R18 | 49.64 34.16 7.68 33.59
        ICP  | TSM-R18 | 48.45 32.40 6.89 32.16
        ACP+ | TSM-R18 | 49.87 34.58 7.85 33.84
        LoFi | TSM-R18 | 50.68 35.16 8.16 34.49"""),
    ("Table 1", HACS, MAP, """
        ACP  | TSM-R18 | 35.68 22.79 6.51 23.00
        ICP  | TSM-R18 | 31.74 19.64 5.67 20.18
        ACP+ | TSM-R18 | 36.31 22.96 6.62 23.31
        LoFi | TSM-R18 | 37.47 24.36 7.08 24.62"""),
    ("Table 2", ANET, MAP, """
        ACP          | TSM-R18, 224 px               | 49.64 34.16 7.68 33.59
        S-LoFi       | TSM-R18, 100 snippets, 112 px | 50.47 34.71 7.57 34.12
        T-LoFi       | TSM-R18, 25 snippets, 224 px  | 50.28 35.21 8.09 34.32
        ST-LoFi      | TSM-R18, 50 snippets, 158 px  | 50.36 34.79 7.59 34.12
        Short C-LoFi | TSM-R18, cycle by batch       | 50.57 35.12 8.14 34.38
        Long C-LoFi  | TSM-R18, cycle by epoch       | 50.68 35.16 8.16 34.49"""),
    ("Table 2", HACS, MAP, """
        ACP          | TSM-R18, 224 px               | 35.68 22.79 6.51 23.00
        S-LoFi       | TSM-R18, 100 snippets, 112 px | 37.16 24.23 6.84 24.25
        T-LoFi       | TSM-R18, 25 snippets, 224 px  | 37.30 24.18 7.07 24.36
        ST-LoFi      | TSM-R18, 50 snippets, 158 px  | 37.13 24.27 7.08 24.36
        Short C-LoFi | TSM-R18, cycle by batch       | 37.63 24.45 6.95 24.60
        Long C-LoFi  | TSM-R18, cycle by epoch       | 37.78 24.40 7.29 24.64"""),
    ("Table 3", ANET, MAP, """
        SCC        | C3D 79M       | 40.00 17.90 4.70 21.70
        CDC        | C3D 79M       | 45.30 26.00 0.20 23.80
        R-C3D      | C3D 79M       | 26.80 - - -
        BSN        | R50 23M, flow | 46.45 29.96 8.02 30.03
        P-GCN      | I3D 25M, flow | 48.26 33.16 3.27 31.11
        BMN        | R50 23M, flow | 50.07 34.78 8.29 33.85
        BC-GNN     | R50 23M, flow | 50.56 34.75 9.37 34.26
        G-TAD      | R50 23M, flow | 50.36 34.60 9.02 34.09
        ACP        | G-TAD, R18 12M | 49.64 34.16 7.68 33.59
        LoFi       | G-TAD, R18 12M | 50.68 35.16 8.16 34.49"""),
    ("Table 4", HACS, MAP, """
        SSN  | two-stream 12M, flow | 28.82 18.80 5.32 18.97
        ACP  | G-TAD, R18 12M | 35.68 22.79 6.51 23.00
        LoFi | G-TAD, R18 12M | 37.78 24.40 7.29 24.64"""),
    ("Table 5", ANET, MAP, """
        ACP    | TSM-R18      | 49.64 34.16 7.68 33.59
        T-LoFi | TSM-R18      | 50.28 35.21 8.09 34.32
        ACP    | R(2+1)D-R18  | 49.65 34.11 8.66 33.55
        T-LoFi | R(2+1)D-R18  | 49.84 34.73 8.64 34.21"""),
    ("Table 6", ANET, MAP, """
        ACP         | TSM-R18 | 49.64 34.16 7.68 33.59
        Long C-LoFi | TSM-R18 | 50.68 35.16 8.16 34.49
        ACP         | TSM-R34 | 50.16 34.35 8.31 33.90
        Long C-LoFi | TSM-R34 | 50.79 35.39 8.38 34.74
        ACP         | TSM-R50 | 50.32 35.07 8.02 34.26
        Long C-LoFi | TSM-R50 | 50.91 35.86 8.79 34.96"""),
    ("Table 7", ANET, MAP, """
        ACP       | TSM-R18              | 49.64 34.16 7.68 33.59
        Arrow     | TSM-R18              | 44.14 28.87 5.90 28.82
        Speed     | TSM-R18              | 44.50 29.52 6.14 29.39
        ACP+Arrow | TSM-R18, two encoders | 49.79 34.48 7.70 33.72
        ACP+Speed | TSM-R18, two encoders | 49.84 34.11 7.50 33.75
        LoFi      | TSM-R18              | 50.68 35.16 8.16 34.49"""),
    ("Table A", ANET, RECALL, """
        ACP    | BMN, TSM-R18 | 33.29 48.90 56.20 74.88 66.81
        T-LoFi | BMN, TSM-R18 | 33.71 49.41 56.81 75.58 67.49"""),
    ("Table B", ANET, MAP, """
        ACP        | TSM-R18                                | 49.64 34.16 7.68 33.59
        low budget | TSM-R18, 25 snippets, 112 px, 1 × 32 GB | 50.01 34.46 8.38 33.99
        T-LoFi     | TSM-R18, 25 snippets, 224 px, 4 × 32 GB | 50.28 35.21 8.09 34.32
        low budget | TSM-R50, 25 snippets, 112 px, 4 × 32 GB | 50.07 35.31 8.03 34.23"""),
    ("Table C", ANET, MAP, """
        pre-trained | TSM-R18, trained and tested at 25 snippets | 45.75 32.05 4.80 31.02
        end-to-end  | TSM-R18, trained and tested at 25 snippets | 47.52 33.30 5.31 32.21"""),
    ("Table C", HACS, MAP, """
        pre-trained | TSM-R18, trained and tested at 25 snippets | 29.28 17.95 4.05 18.49
        end-to-end  | TSM-R18, trained and tested at 25 snippets | 31.08 19.74 4.29 19.94"""),
    ("Table D", ANET, MAP, """
        ACP  | TSM-R18, ten trials | 49.64 34.16 7.68 33.59 | 0.09 0.05 0.17 0.04
        LoFi | TSM-R18, ten trials | 50.68 35.16 8.16 34.49 | 0.12 0.07 0.16 0.03"""),
)  # fmt: skip
_NOTES = {
    ("Table 1", HACS, "LoFi", "TSM-R18"): _HACS_TWICE,
    ("Table 2", HACS, "Long C-LoFi", "TSM-R18, cycle by epoch"): _HACS_TWICE,
    ("Table 4", HACS, "LoFi", "G-TAD, R18 12M"): _HACS_TWICE,
    ("Table 6", ANET, "ACP", "TSM-R50"): _R50,
    ("Table A", ANET, "T-LoFi", "BMN, TSM-R18"): "printed gains +0.32 (AR@1) and +0.58 (AUC)"
    " should be +0.42 and +0.68",
    ("Table B", ANET, "low budget", "TSM-R50, 25 snippets, 112 px, 4 × 32 GB"): "below TSM-R50's"
    " own ACP (34.26); called T-LoFi although both axes are reduced",
}


def paper_numbers(source: str | None = None, dataset: str | None = None) -> tuple[PaperRow, ...]:
    """All rows of the paper's tables, or those of one table and data set.

    Args:
        source: "Table 1" … "Table 7", "Table A" … "Table D", or just "1" … "D".
        dataset: "ActivityNet-1.3" or "HACS-1.1".
    Raises:
        ValueError: nothing matches.
    """
    wanted = source if source is None or source.startswith("Table ") else f"Table {source}"
    rows = []
    for table, data, metrics, lines in _BLOCKS:
        if wanted in (None, table) and dataset in (None, data):
            rows += [_parse(table, data, metrics, line) for line in lines.strip().splitlines()]
    if not rows:
        tables = ", ".join(dict.fromkeys(block[0] for block in _BLOCKS))
        raise ValueError(
            f"no rows for {source!r} and {dataset!r}; there are {tables}; {ANET}, {HACS}"
        )
    return tuple(rows)


def paper_table(source: str, dataset: str | None = None) -> Table:
    """One table of the paper as it is printed, with the remarks on its inconsistencies."""
    rows = paper_numbers(source, dataset)
    body = tuple(
        (row.method, row.setting, row.dataset, *(_cell(row, i) for i in range(len(row.values))))
        for row in rows
    )
    notes = tuple(
        f"{row.method}, {row.setting} ({row.dataset}): {row.note}." for row in rows if row.note
    )
    header = ("method", "setting", "data set", *rows[0].metrics)
    return Table(header, body, f"{rows[0].source} of the paper (percent)", notes)


def paper_vs_ours(
    results: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    source: str = "Table 2",
    dataset: str = ANET,
    setting: str = "",
    classes: str = "shared",
    names: Mapping[str, str] | None = None,
) -> Table:
    """The paper's mAP beside ours, with our average minus the paper's.

    The same method name on another data set (the toy world) is another experiment: compare
    differences between methods there, not levels.

    Args:
        results: what `lofi.figures.results_rows` takes (fractions).
        source, dataset: which table of the paper.
        setting: only rows whose setting contains this, for tables with several encoders.
        classes: which of our rows; the paper's choice is "shared".
        names: our method → the paper's; without an entry, names agree up to case and hyphens.
    """
    ours = {_plain((names or {}).get(row.method, row.method)): row
            for row in results_rows(results) if row.classes == classes}  # fmt: skip
    rows = [row for row in paper_numbers(source, dataset) if setting in row.setting]
    if not rows or rows[0].metrics != MAP:
        raise ValueError(f"{source} on {dataset} with {setting!r} has no mAP rows to compare with")
    body = tuple(
        (row.method, *(_cell(row, i) for i in range(4)), *_ours(ours.get(_plain(row.method)), row))
        for row in rows
    )
    header = (
        "method",
        *(f"paper {name}" for name in MAP),
        *(f"ours {name}" for name in MAP),
        "Δ average",
    )
    notes = tuple(f"{row.method}: {row.note}." for row in rows if row.note)
    caption = (
        f"{rows[0].source}, {dataset}: the paper and this run (mAP in percent, {classes} classes)"
    )
    return Table(header, body, caption, notes)


def _parse(source: str, dataset: str, metrics: tuple[str, ...], line: str) -> PaperRow:
    method, setting, numbers, *spread = (part.strip() for part in line.split("|"))
    values = tuple(None if number == "-" else float(number) for number in numbers.split())
    ten_trials = tuple(float(number) for number in spread[0].split()) if spread else None
    note = _NOTES.get((source, dataset, method, setting), "")
    return PaperRow(source, dataset, method, setting, metrics, values, ten_trials, note)


def _cell(row: PaperRow, i: int) -> str:
    if row.values[i] is None:
        return "–"
    return f"{row.values[i]:.2f}" + (f" ± {row.spread[i]:.2f}" if row.spread else "")


def _ours(row: ResultRow | None, paper: PaperRow) -> tuple[str, ...]:
    if row is None:
        return ("–",) * (len(SHOWN_TIOUS) + 2)
    values = [100 * value for value in (*row.at, row.average)]
    difference = "–" if paper.values[3] is None else f"{values[3] - paper.values[3]:+.1f}"
    return (*("–" if value != value else f"{value:.1f}" for value in values), difference)


def _plain(name: str) -> str:
    """Names that differ in case, spaces or hyphens, and c-lofi / long c-lofi, are the same."""
    plain = name.lower().replace("-", "").replace(" ", "").replace("_", "")
    return "longclofi" if plain in ("clofi", "longlofi", "lofilong") else plain
