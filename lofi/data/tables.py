"""Cells of tables and values of files: numbers, times and labels, or an error that says where.

Annotations, detections, clip lists and score files are read by the same rules.
"""

import codecs
import csv
import io
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lofi.files import decode_text, existing

TEXTS = ("video", "clip", "label", "type")  # columns whose cells are never numbers


class Row(dict[str, str]):
    """The cells of one line of a table by column, and where it stands."""

    where: str

    def number(self, column: str) -> float:
        return number(self[column], f"{self.where}: {column}")

    def seconds(self, column: str) -> float:
        return seconds(self[column], f"{self.where}: {column}")


def table_rows(path: Path, text: str, required: Sequence[str], cure: str = "") -> list[Row]:
    """Rows of a table with a header, separated by commas, or semicolons or tabs in the header.

    `cure`: what else helps where the header lacks a `required` name."""
    header, lines = table_lines(path, text, required, cure)
    rows = []
    for line, cells in lines:
        rows.append(Row(zip_longest(header, cells[: len(header)], fillvalue="")))
        rows[-1].where = f"{path}: line {line}"
    return rows


def table_lines(
    path: Path, text: str, required: Sequence[str], cure: str = ""
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names in the header, and number and cells of every other line that is not blank.

    A cell of several lines begins with `'` (see `to_cell`); else a quote was left open."""
    first = text.lstrip().splitlines()[0]
    delimiter = max(",;\t", key=first.count)
    format = {"delimiter": delimiter, "skipinitialspace": True, "strict": True}
    reader = csv.reader(io.StringIO(text, newline=""), **format)
    lines, before = [], 0
    try:
        for cells in reader:
            if any(re.match("(?!').*[\r\n]", cell, re.DOTALL) for cell in cells):
                where = f"{path}: lines {before + 1} to {reader.line_num}"
                raise ValueError(f"{where} are one row; close the quote in the first of them")
            before, cells = reader.line_num, [cell.strip() for cell in cells]
            if any(cells):
                lines.append((before, cells))
    except csv.Error as error:
        where = f"line {before + 1}"
        raise ValueError(f"{path}: not a table at {where} ({error}); correct its quotes") from None
    header = [cell.lower() for cell in lines[0][1]] if lines else required
    if missing := [name for name in required if name not in header]:
        found = f"no column {', '.join(missing)} (found: {', '.join(header)})"
        raise ValueError(f"{path}: {found}; the header must name {', '.join(required)}{cure}")
    if twice := [name for name, count in Counter(header).items() if name and count > 1]:
        raise ValueError(f"{path}: two columns are called {twice[0]}; rename or drop one")
    for line, cells in lines[1:]:
        if any(cells[len(header) :]):
            found = f"{len(cells)} cells, the header {len(header)}"
            cure = f"quote cells that contain {delimiter!r}"
            raise ValueError(f"{path}: line {line} has {found}; {cure}")
        if delimiter == ";":  # decimal commas, as spreadsheets of many countries write
            for i, (name, cell) in enumerate(zip(header, cells)):
                if name not in TEXTS:
                    cells[i] = re.sub(r"^([\d:-]*),(\d*)$", r"\1.\2", cell)
    return header, lines[1:]


def read_bytes(path: Path, what: str = "annotations") -> bytes:
    if not (data := existing(path, what).read_bytes()).strip(codecs.BOM_UTF8 + b" \t\r\n"):
        raise ValueError(f"{path}: the file is empty (expected {what}); restore it")
    return data


def read_text(path: Path, what: str = "annotations") -> str:
    return decode_text(read_bytes(path, what), path)


def number(value: Any, where: str, what: str = "", least: float = 0.0) -> float:
    """A finite number of at least `least`; strings are parsed (THUMOS14, HACS).

    `where` and `what` say in errors which; joined only there, as files are long."""
    if type(value) is float and least <= value < math.inf:
        return value
    where += what
    try:
        plain = not isinstance(value, str) or (value.isascii() and "_" not in value)
        found = float(value) if plain and not isinstance(value, bool) else math.nan
    except (OverflowError, TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{where} is {value!r:.60}, expected a number; correct it")
    if found < least:
        raise ValueError(f"{where} is {found:g}, expected at least {least:g}; correct it")
    return found


def seconds(value: Any, where: str, what: str = "") -> float:
    """A time of at least 0: a number of seconds, or a clock time, mm:ss or hh:mm:ss.s."""
    if not isinstance(value, str) or ":" not in value:
        return number(value, where, what)
    where += what
    parts = re.fullmatch(r"(?:(\d+):)?(\d+):(\d+(?:\.\d*)?)", value.strip(), re.ASCII)
    hours, minutes, rest = parts.groups() if parts else (None, "0", "60")
    if float(rest) >= 60 or (hours and int(minutes) >= 60):
        raise ValueError(f"{where} is {value!r:.60}, expected seconds or h:mm:ss; fix it")
    return number(60 * (60 * int(hours or 0) + int(minutes)) + float(rest), where)


def label_of(value: Any, where: str, what: str = "") -> str:
    """A name as text; accents in one form (NFC), whole numbers as they are written."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}{what} is {value!r:.60}, expected text; correct it")
    return nfc(value)


def nfc(name: str) -> str:
    """One form of accents: macOS stores names decomposed, lists hold them composed."""
    return unicodedata.normalize("NFC", name)
