"""What every notebook of the course keeps to, read from its file; nothing is executed.

That the stored outputs are those of the code is nbval's matter (`make test`), that the controls
work that of `test_jupyterlab.py`. A rule is a function from a notebook to the faults it finds.
"""

import ast
import base64
import functools
import re
import statistics
import struct
from pathlib import Path

import nbformat
import papermill
import pytest
from answers import ANSWERS

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
LESSONS = {path.name.split("_")[0]: path for path in sorted(FOLDER.glob("[0-9][0-9]*_*.ipynb"))}
SOLUTIONS = {path.name.split("_")[0]: path for path in sorted(FOLDER.glob("solutions/*.ipynb"))}
CLOCKS = {"perf_counter", "perf_counter_ns", "monotonic", "process_time", "time"}

# Rules that a notebook does not keep yet. An entry that is no longer needed fails.
PENDING: dict[str, str] = {}
PENDING_SOLUTIONS: dict[str, str] = {}


@functools.cache
def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code(book) -> list:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def text(book) -> str:
    return "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")


def lines(cell) -> list[str]:
    """Lines of a cell that are not blank."""
    return [line for line in cell.source.splitlines() if line.strip()]


def outputs(book) -> list:
    return [output for cell in code(book) for output in cell.outputs]


def checked(book) -> list[str]:
    """Names of the exercises that a notebook hands to `answers.check`, in order."""
    source = "\n".join(cell.source for cell in code(book) if "check(" in cell.source)
    if "from answers import check" in "\n".join(cell.source for cell in code(book)):
        return re.findall(r"(?<![\w.])check\(\s*\"(\w+)\"", source)
    return re.findall(r"answers\.check\(\s*\"(\w+)\"", source)


# ------------------------------------------------------------ rules of notebooks and solutions


def file(path, book):
    """A valid file below 1 MB, of a kernel that everybody has, without widget or papermill data."""
    nbformat.validate(book)
    if path.stat().st_size >= 1e6:
        yield f"{path.stat().st_size / 1e6:.2f} MB"
    if book.metadata.get("kernelspec", {}).get("name") != "python3":
        yield f"kernel {book.metadata.get('kernelspec')}"
    for cell in [book, *book.cells]:
        yield from {"widgets", "papermill", "execution"} & set(cell.metadata)


def executed(path, book):
    """Every code cell ran, once, in order, without an error or a word on stderr."""
    counts = [cell.execution_count for cell in code(book)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts {counts}"
    for output in outputs(book):
        if output.output_type == "error" or output.get("name") == "stderr":
            yield f"{output.output_type} on stderr: {str(output)[:80]}"
        yield from (kind for kind in output.get("data", ()) if "widget" in kind)


def short(path, book):
    """Half of the code cells have at most 8 lines, none more than 25."""
    sizes = [len(lines(cell)) for cell in code(book)]
    if statistics.median(sizes) > 8:
        yield f"median {statistics.median(sizes)}"
    if max(sizes) > 25:
        yield f"longest {max(sizes)}"


def narrow(path, book):
    """Lines of code fit a small screen."""
    yield from (line for cell in code(book) for line in lines(cell) if len(line) > 80)


def pictures(path, book):
    """Drawn pictures are not wider than 720 pixels, and a text behind each says what is seen."""
    for cell, behind in zip(book.cells, [*book.cells[1:], None]):
        data = [
            o.data["image/png"] for o in cell.get("outputs", ()) if "image/png" in o.get("data", ())
        ]
        for png in data:
            width = struct.unpack(">I", base64.b64decode(png)[16:20])[0]
            if width > 720:
                yield f"{width} pixels: {cell.source[:60]!r}"
        if data and (behind is None or behind.cell_type != "markdown"):
            yield f"no text behind the picture of {cell.source[:60]!r}"


def clean(path, book):
    """Nothing hides a failure: no shell commands, no early exit, at most 2 outputs not compared."""
    source = "\n".join(cell.source for cell in code(book))
    yield from re.findall(r"^ *(?:[!%].*|.*sys\.exit.*|.*clear_output.*)$", source, re.M)
    tags = [tag for cell in code(book) for tag in cell.metadata.get("tags", ())]
    if tags.count("nbval-ignore-output") > 2 or {"nbval-skip", "raises-exception"} & {*tags}:
        yield f"tags {tags}"


def timeless(path, book):
    """No assertion and no exercise depends on how fast the machine is."""
    tree = ast.parse("\n".join(cell.source for cell in code(book)))
    timed = {"seconds", "milliseconds", "elapsed", "took", "took_s", "wall_s"}

    def names(node):
        return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}

    for node in ast.walk(tree):
        calls = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
        if isinstance(node, ast.Assign) and any(getattr(c, "attr", "") in CLOCKS for c in calls):
            timed |= names(ast.Tuple(node.targets))
    for node in ast.walk(tree):
        check = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("check")
        if (isinstance(node, ast.Assert) or check) and timed & names(node):
            yield ast.unparse(node)


BOTH = (file, executed, short, narrow, pictures, clean, timeless)

# ------------------------------------------------------------------------ rules of notebooks


def parameters(path, book):
    """One parameters cell; papermill finds type and help of every name, each on a line."""
    tagged = [i for i, c in enumerate(code(book)) if "parameters" in c.metadata.get("tags", ())]
    if tagged not in ([0], [1]):  # the cell for Colab may come before
        yield f"tagged code cells: {tagged}"
        return
    source = code(book)[tagged[0]].source
    found = papermill.inspect_notebook(str(path))
    if len(found) != len(source.splitlines()) or not {"preset", "seed", "out_dir"} <= {*found}:
        yield f"papermill finds {list(found)}"
    for name, about in found.items():
        if about["inferred_type_name"] == "None" or not about["help"]:
            yield f"{name}: no type or help"


def told(path, book):
    """5 to 10 words of text for every line of code; a formula is a word, marks are none."""
    read_aloud = re.sub(r"\$\$?[^$]+\$\$?|!\[.*?\]\(.*?\)", " x ", text(book), flags=re.S)
    words = [word for word in read_aloud.split() if re.search(r"\w", word)]
    share = len(words) / sum(len(lines(cell)) for cell in code(book))
    if not 5 <= share <= 10:
        yield f"{share:.1f} words"


def diagrams(path, book):
    """At least two diagrams: files of the repository, with an alternative text of some words."""
    found = re.findall(r"!\[(.*?)\]\((.*?)\)", text(book), re.S)
    found = [(alt, target) for alt, target in found if not target.startswith("http")]
    if len(found) < 2:
        yield f"{len(found)} diagrams"
    for alt, target in found:
        if len(alt.split()) < 5:
            yield f"alternative text {alt!r}"
        if not (path.parent / target).is_file():
            yield f"no file {target}"


def exercises(path, book):
    """Three exercises, checked without the expected value in sight; the stubs are unanswered."""
    number = path.name.split("_")[0]
    names, said = checked(book), "".join(o.get("text", "") for o in outputs(book))
    if len(names) != 3 or len({*names}) != 3 or not all(n.startswith(number[:2]) for n in names):
        yield f"checked through answers.check: {names}"
    if number.isdigit() and names != [f"{number}{letter}" for letter in "abc"]:
        yield f"names {names}"
    yield from (f"{name} is not in answers.py" for name in names if name not in ANSWERS)
    yield from (f"{name}: no 'not yet' in the outputs" for name in names
                if f"{name}: not yet" not in said)  # fmt: skip
    for cell in code(book):
        if "check(" in cell.source or re.search(r"= \.\.\.|return \.\.\.", cell.source):
            yield from re.findall(
                r".*(?:is_close\(|wanted|expected|notebook\.check\().*", cell.source
            )


def solved(path, book):
    """There is a solutions notebook."""
    if path.name.split("_")[0] not in SOLUTIONS:
        yield f"no notebooks/solutions/{path.name.split('_')[0]}_solutions.ipynb"


LESSON = (*BOTH, parameters, told, diagrams, exercises, solved)

# ------------------------------------------------------------------------- rules of solutions


def answered(path, book):
    """The same exercises as the notebook's, all answered correctly."""
    names, said = checked(book), "".join(o.get("text", "") for o in outputs(book))
    lesson = checked(read(LESSONS[path.name.removesuffix("_solutions.ipynb")]))  # KeyError: none
    if names != lesson or not names:
        yield f"checks {names}, the notebook {lesson}"
    yield from (f"{name} is not correct" for name in names if f"{name}: correct" not in said)


SOLUTION = (*BOTH, answered)


def cases(paths, rules, pending) -> list:
    found = []
    for number, path in paths.items():
        for rule in rules:
            late = rule.__name__ in pending.get(number, "").split()
            mark = pytest.mark.xfail(strict=True, reason="not converted yet") if late else ()
            found.append(pytest.param(path, rule, marks=mark, id=f"{path.stem}-{rule.__name__}"))
    return found


@pytest.mark.parametrize(("path", "rule"), cases(LESSONS, LESSON, PENDING))
def test_a_notebook_keeps(path, rule):
    assert [*rule(path, read(path))] == [], rule.__doc__


@pytest.mark.parametrize(("path", "rule"), cases(SOLUTIONS, SOLUTION, PENDING_SOLUTIONS))
def test_a_solution_keeps(path, rule):
    assert [*rule(path, read(path))] == [], rule.__doc__


def test_what_is_pending_names_notebooks_and_rules():
    for pending, paths, rules in (
        (PENDING, LESSONS, LESSON), (PENDING_SOLUTIONS, SOLUTIONS, SOLUTION),
    ):  # fmt: skip
        assert {*pending} <= {*paths}
        known = {rule.__name__ for rule in rules}
        assert {name for names in pending.values() for name in names.split()} <= known


def test_every_answer_belongs_to_an_exercise():
    asked = [name for path in LESSONS.values() for name in checked(read(path))]
    assert sorted(asked) == sorted(ANSWERS)


@pytest.mark.parametrize(
    ("rule", "cell", "fault"),
    [
        (narrow, "x = " + "1 + " * 20 + "1", "1 +"),
        (short, "x = 1\n" * 26, "longest 26"),
        (clean, "  !ls", "!ls"),
        (timeless, "took = time.perf_counter() - began\nassert took < 3", "took < 3"),
        (timeless, "began = time.time()\ncheck('01a', began)", "began"),
        (exercises, 'answer = ...\ncheck("01a", notebook.is_close(answer, 3))', "is_close"),
        (told, "x = 1", "0.0 words"),
        (diagrams, "x = 1", "0 diagrams"),
        (executed, "x = 1", "execution counts [None]"),
    ],
)
def test_a_breach_would_be_found(rule, cell, fault):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    assert any(fault in found for found in rule(Path("01_x.ipynb"), book))
