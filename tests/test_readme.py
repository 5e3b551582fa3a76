"""Every `lofi` command line that the READMEs show is one that the command line takes."""

import functools
import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
from benchmarks import presets

from lofi import cli, launch
from lofi.commands import StageName

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "data").rglob("README.md"))]


def command_lines(text: str) -> list[tuple[str, bool]]:
    """What stands behind `lofi` in each command of a page, and whether it is a whole command.

    A loop over stages counts as one line; its stages are checked to exist.
    """
    text = re.sub(r" *\\\n *", " ", text)
    loops = [loop.split() for loop in re.findall("for stage in (.*?); do", text)]
    assert {stage for loop in loops for stage in loop} <= {*get_args(StageName)}
    text = text.replace("$stage", "head")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    lines = [(line, True) for block in blocks for line in block.splitlines()]
    outside = re.sub(r"```.*?```", "", text, flags=re.S)
    lines += [(line, True) for line in re.findall(r"^    (lofi .*)", outside, re.M)]
    lines += [(line, False) for line in re.findall(r"`(lofi [a-z][^`]* --[^`]*)`", outside)]
    found = []
    for line, whole in lines:
        if match := re.search(r"(?:^|-m )lofi ([a-z].*)", re.sub(r"\s#.*", "", line).strip()):
            words = match.group(1).split(" && ")[0]
            found.append((words.replace("…", ""), whole and "…" not in words))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_command_line_takes_every_command_that_is_shown(page, tmp_path, monkeypatch, capsys):
    text, parsed = page.read_text(), []
    real = cli._command

    def nothing(name: str):
        @functools.wraps(real(name))
        def command(*_, **__) -> None:
            parsed.append(name)

        return command

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_command", nothing)
    monkeypatch.setattr(launch, "launched", lambda: True)  # --processes is parsed, nobody starts
    for content, name in re.findall(r"^echo '(.*?)' > (\S+\.json)$", text, re.M | re.S):
        Path(name).write_text(content)
    Path("my-run.json").write_text('{"preset": "activitynet"}')
    lines = command_lines(text)
    assert lines
    for line, whole in lines:
        words = shlex.split(line)
        before = len(parsed)
        try:
            cli._run(words[0], words[1:])
        except SystemExit:
            said = "".join(capsys.readouterr())
            assert not whole, f"{page}: lofi {line}\n{said}"
            wrong = re.search("nrecognized|nvalid", said)  # a fragment may only lack something
            assert not wrong, f"{page}: {line}\n{said}"
        else:
            assert len(parsed) == before + 1, line


def test_a_wrong_option_would_be_found(capsys):
    with pytest.raises(SystemExit):
        cli._run("train", ["head", "--out", "x", "--data.annotation", "y"])
    assert "nrecognized" in "".join(capsys.readouterr())


def test_the_table_of_presets_is_the_generated_one():
    """All but the hours, which are measured; of the smallest, as the whole takes a minute."""
    readme = (ROOT / "README.md").read_text()
    table = re.search(r"\| preset \|.*?\n\n", readme, re.S).group(0).splitlines()[2:-1]
    shown = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in table}
    cure = "run python tests/benchmarks/presets.py and paste its table"
    assert list(shown) == list(presets.PRESETS), cure
    row = presets.markdown([presets.row_of(presets.PRESETS["tiny"], 1e9)]).splitlines()[2]
    fresh = row.split(" | ")
    assert fresh[:4] + fresh[5:] == shown["tiny"][:4] + shown["tiny"][5:], cure
