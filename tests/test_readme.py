"""Every `lofi` command line that the READMEs show is one that the command line takes."""

import functools
import re
import shlex
from pathlib import Path

import pytest

from lofi import cli, launch

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "data").rglob("README.md"))]


def command_lines(text: str) -> list[tuple[str, bool]]:
    """What stands behind `lofi` in each command of a page, and whether it is a whole command."""
    text = re.sub(r" *\\\n *", " ", text)
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S) + re.findall(r"^    lofi .*", text, re.M)
    blocks = [re.sub(r"\s#.*", "", line) for block in blocks for line in block.splitlines()]
    lines = [(line, True) for line in blocks]
    lines += [(line, False) for line in re.findall(r"`(lofi [a-z][^`]* --[^`]*)`", text)]
    found = [(re.search(r"(?:^|-m )lofi ([a-z].*)", line.strip()), whole) for line, whole in lines]
    found = [(match.group(1).split(" && ")[0], whole) for match, whole in found if match]
    return [(line.replace("…", ""), whole and "…" not in line) for line, whole in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.parent.name)
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
    assert lines or page.parent.name == "data"
    for line, whole in lines:
        stages = ["head"]
        if "$stage" in line:
            stages = re.search(r"for stage in (.*?); do", text).group(1).split()
        for stage in stages:
            words = shlex.split(line.replace("$stage", stage))
            before = len(parsed)
            try:
                cli._run(words[0], words[1:])
            except SystemExit:
                said = capsys.readouterr()
                said = said.out + said.err
                assert not whole, f"{page}: lofi {line}\n{said}"
                assert "equired" in said and "nrecognized" not in said, f"{page}: {line}\n{said}"
            else:
                assert len(parsed) == before + 1, line


def test_a_wrong_option_would_be_found(capsys):
    with pytest.raises(SystemExit):
        cli._run("train", ["head", "--out", "x", "--data.annotation", "y"])
    assert "nrecognized" in "".join(capsys.readouterr())
