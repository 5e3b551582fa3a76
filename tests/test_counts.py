"""Nothing is left out without a word, and no name that a file brings along can do any harm."""

import csv
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pytest
import torch
from test_stages import SMALL, changed, cure, lofi, refused, works

from lofi import config as configs
from lofi.data.annotations import read_annotations
from lofi.data.isolated import Children
from lofi.data.toyworld import TINY, write_world
from lofi.detection import Detection, read_detections, write_csv, write_srt
from lofi.detection.detector import output_names
from lofi.experiment import evaluate_stage, read_results, run_procedure
from lofi.figures import Table, loss_curves, timeline, video_timeline
from lofi.files import read_csv
from lofi.files import write_csv as write_table
from lofi.report import write_report, write_run_report
from lofi.training.methods import command
from lofi.training.run_folder import RunFolder, read_metrics

matplotlib.use("Agg")
HOSTILE = [
    "\x1b[2J\x1b[31mred", "a\rb", "a\nb", "\x07\x9b5n", "\u202eback", "$x", "$\\frac{1$ and $^$",
    "=1+1", "@SUM(A1)", "+1", "-1", "\t=1", "＝1", "'=1", "''-1", "'plain",
    "<script>alert(1)</script>",
    'say "hi", {\\an8} & <i>', "ü→×…",
]  # fmt: skip


class World:
    """A small world in which some things are missing and some damaged, and a run of it."""

    def __init__(self, folder: Path):
        self.folder, self.run = folder / "world", folder / "run"
        write_world(self.folder, replace(TINY, source_clips=(16, 4), videos=(6, 3)), seed=0)
        videos = {v.id: v for v in read_annotations(self.folder / "annotations.json")}
        train = sorted(id for id, v in videos.items() if v.subset == "training" and v.segments)
        test = sorted(id for id, v in videos.items() if v.subset == "validation")
        self.absent, self.empty, self.fine = train[0], test[0], test[1]
        self.train, self.test = train, test
        self.path(self.absent).unlink()
        self.whole = self.path(self.empty).read_bytes()
        self.path(self.empty).write_bytes(b"")
        self.clip = sorted((self.folder / "source").rglob("*.mp4"))[0]
        self.clip.write_bytes(b"")
        changes = SMALL | {"data.world": str(self.folder)}
        self.config = configs.override(configs.preset("tiny"), changes)
        self.results = run_procedure(self.config, self.run, ("acp", "c-lofi"))
        self.path(self.fine).write_bytes(self.whole[:1000])  # once all features are there

    def path(self, video_id: str) -> Path:
        return next((self.folder / "videos").glob(f"*{video_id}.mp4"))

    def options(self, out: Path) -> list:
        return ["--preset", "tiny", *changed(SMALL), "--data.world", self.folder, "--out", out]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("counts"))


# ------------------------------------------------------------------------------------------- counts


def test_every_result_counts_what_it_was_made_without(world):
    total, clips = len(world.train) + len(world.test), 20
    wanted = {  # items, left out, of them without a file
        "acp/encoder": (clips, [str(world.clip)], 0),
        "acp/features": (total, [world.absent, world.empty], 1),
        "acp/head": (len(world.train), [world.absent], 1),
        "acp/detections": (len(world.test), [world.empty], 0),
        "c-lofi/encoder": (len(world.train), [world.absent], 1),
    }
    for stage, (items, left_out, missing) in wanted.items():
        result = json.loads((world.run / stage / "result.json").read_text())
        assert result["items"] == items and result["missing"] == missing, stage
        assert [row["item"] for row in result["skipped"]] == sorted(left_out), stage
        assert all(row["reason"] for row in result["skipped"])
    found = evaluate_stage(world.config, world.run, "acp")
    assert [row["item"] for row in found["skipped"]] == [world.empty]


def test_results_and_report_count_each_item_once(world):
    assert world.results == read_results(world.run)  # in memory as in the file
    names = [row["item"] for row in world.results["skipped"]]
    assert names == sorted([str(world.clip), world.absent, world.empty])
    assert world.results["missing"] == 1
    stages = {row["item"]: row["stages"] for row in world.results["skipped"]}
    assert stages[str(world.clip)] == ["acp/encoder"]
    assert "c-lofi/encoder" in stages[world.absent] and "acp/features" in stages[world.empty]
    page = write_run_report(world.config, world.run, world.results).read_text()
    assert f"3 of {world.results['items']} videos or clips were left out, 1 of them" in page
    assert world.absent in page and "the file is empty" in page
    assert f"Video {world.fine} cannot be shown" in page


def test_the_last_line_of_a_stage_counts(world):
    last = works("train", "head", *world.options(world.run)).splitlines()[-2:]
    assert "skipped=1 missing=1" in last[0]
    assert last[1].startswith(f"1 of {len(world.train)} videos or clips were left out, 1 of them")
    assert f"{world.absent}: no video file" in last[1]


def test_a_mended_video_leaves_the_list_and_damage_after_extraction_stops_nothing(world, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(world.run, run)
    other = world.path(world.train[1])
    before = other.read_bytes()
    try:
        world.path(world.empty).write_bytes(world.whole)
        last = works("train", "features", *world.options(run)).splitlines()[-1]
        assert last.startswith("1 of ") and world.absent in last
        result = json.loads((run / "c-lofi" / "features" / "result.json").read_text())
        assert [row["item"] for row in result["skipped"]] == [world.absent]
        assert not (run / "c-lofi" / "features" / "skipped.jsonl").read_text().count(world.empty)
        other.write_bytes(b"")  # from here on features are all that is needed
        works("train", "head", *world.options(run), "--no-resume")
        works("train", "detect", *world.options(run))
        found = read_detections(run / "c-lofi" / "detections" / "own.json")
        assert sorted(found) == world.test
    finally:
        other.write_bytes(before)
        world.path(world.empty).write_bytes(b"")


def test_not_one_readable_video_is_an_error(world, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(world.folder, data)
    for path in (*(data / "videos").glob("*.mp4"), *(data / "source").rglob("*.mp4")):
        path.write_bytes(b"")
    shutil.copytree(world.run / "acp" / "encoder", tmp_path / "run" / "acp" / "encoder")
    for stage in ("lofi", "features"):
        words = ["--data.world", data, "--method", "acp"][: 2 if stage == "lofi" else 4]
        told = lofi("train", stage, *world.options(tmp_path / "run"), *words)
        assert told.status == 1 and "not one of" in told.error.splitlines()[-1]
    shutil.rmtree(tmp_path / "run")
    told = lofi("train", "acp", *world.options(tmp_path / "run"), "--data.world", data)
    assert told.status == 1 and "not one of" in told.error.splitlines()[-1]


def test_damaged_lines_are_dropped_and_said_and_new_ones_are_kept(tmp_path, caplog):
    run = RunFolder(tmp_path, {"stage": "x"})
    for name in ("a", "b"):
        run.skip(name, ValueError("broken"))
        run.log_metrics({"step": 0, "loss": 1.0})
    run.save_checkpoint({"step": 1})  # without it the next start would clear what it left
    for name in ("skipped.jsonl", "metrics.jsonl"):
        path = tmp_path / name
        first, second = path.read_bytes().splitlines()
        path.write_bytes(first + b"\n\xff\xfe{\n[1]\n" + second + b'\n{"item": "c", "st')
    assert len(read_metrics(tmp_path)) == 2
    assert "metrics.jsonl: 3 of 5 lines are damaged" in caplog.text
    again = RunFolder(tmp_path, {"stage": "x"})
    assert "skipped.jsonl: 3 of 5 lines are damaged" in caplog.text
    again.skip("d", ValueError("broken"))  # not glued to half a line
    again.readable("a")
    assert [row["item"] for row in again.skipped()] == ["b", "d"]
    caplog.clear()
    assert [row["item"] for row in RunFolder(tmp_path, {"stage": "x"}).skipped()] == ["b", "d"]
    assert not caplog.text


@pytest.mark.skipif(os.name != "posix", reason="process groups exist on POSIX systems only")
def test_ctrl_c_says_nothing_about_a_clip(tmp_path):
    children, threads = Children(1), ThreadPoolExecutor(1)
    call = threads.submit(children.call, time.sleep, (60,), 60)
    while not children._started:
        time.sleep(0.01)
    (child,) = children._started
    assert os.getpgid(child.pid) != os.getpgid(0)  # the terminal's signal goes to the group
    children.close()
    assert isinstance(call.exception(), CancelledError)  # no VideoError, which lists the clip
    threads.shutdown()


# ------------------------------------------------------------------------------------------- detect


def test_detect_goes_on_after_a_bad_file_and_keeps_files_of_equal_names(world, tmp_path):
    a, b, bad = tmp_path / "a" / "clip.mp4", tmp_path / "b" / "clip.mp4", tmp_path / "bad.mp4"
    for path in (a, b):
        path.parent.mkdir()
        shutil.copy(world.path(world.test[2]), path)
    bad.write_bytes(b"no video")
    out = tmp_path / "out"
    told = lofi("detect", a, bad, b, "--model", world.run, "--method", "acp", "--out", out)
    assert told.status == 1 and told.out.splitlines()[-1] == "2 of 3 videos read, 1 left out"
    (line,) = told.error.splitlines()
    assert str(bad) in line
    names = {
        f"{name}{end}"
        for name in ("clip", "clip-2")
        for end in (".json", ".csv", ".srt", ".png", ".html")
    }
    assert {path.name for path in out.iterdir()} == names
    first = (out / "clip.json").read_bytes()
    assert list(read_detections(out / "clip-2.json")) == ["clip"]  # the id stays
    assert works("detect", b, "--model", world.run, "--method", "acp", "--out", out)  # alone, again
    assert {path.name for path in out.iterdir()} == names
    assert (out / "clip.json").read_bytes() == first


def test_output_names_are_unique_and_never_those_of_other_files(tmp_path):
    paths = [Path(p) for p in ("a/clip.mp4", "b/clip.mp4", "clip.mkv", "Clip.mp4", "clip-2.mp4")]
    names = output_names(paths, tmp_path)
    assert list(names.values()) == ["clip", "clip-2", "clip-3", "Clip-4", "clip-2-2"]
    (tmp_path / "clip.csv").write_text("of somebody else")
    assert output_names(paths[:1], tmp_path) == {paths[0]: "clip-2"}


# ----------------------------------------------------------------------------- devices and settings


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "mps", "nonsense"])
def test_a_device_that_is_not_there_is_one_line(device, world, tmp_path):
    if torch.accelerator.is_available() and device in ("cuda", "mps"):
        pytest.skip("this machine may have it")
    for words in (
        ["train", "acp", *world.options(tmp_path / "run")],
        ["detect", world.path(world.fine), "--model", world.run],
        ["compare", "--preset", "tiny", "--out", tmp_path / "run"],
    ):
        message = refused(*words, "--device", device)
        assert repr(device) in message and "use one of: cpu" in message
    assert not (tmp_path / "run").exists()


def test_the_command_of_a_message_carries_settings_and_quotes_paths(world, tmp_path):
    run = tmp_path / "my  run's"
    message = refused("train", "lofi", *world.options(run), "--no-standardise")
    words = cure(message)
    assert words[:2] == ["train", "acp"] and words[-2:] == ["--out", str(run)]
    works(*words)
    saved, wanted = configs.load(run / "config.json"), world.config
    assert saved == configs.override(wanted, {"standardise": False})
    words = shlex.split(command("lofi", saved, run, "s-lofi"))
    assert words[3:5] == ["--config", str(run / "config.json")]
    bmn = configs.override(world.config, {"head.kind": "bmn", "data.decode_limit_s": 5.0})
    words = shlex.split(command("acp", bmn, tmp_path / "other"))
    assert "bmn" in words and not any(word.startswith("--head.paths") for word in words)


def test_of_a_repeated_option_the_last_counts(world, tmp_path):
    partial = tmp_path / "partial.json"
    partial.write_text('{"acp": {"epochs": 1, "batch": 4}}')
    words = ["--config", "missing.json", "--preset", "toy", "--preset=tiny", "--config", partial]
    works("train", "acp", *words, "--data.world", world.folder, "--out", tmp_path / "run")
    assert configs.load(tmp_path / "run" / "config.json").acp.batch == 4


# -------------------------------------------------------------------------------- names that attack


def control(text: str) -> list[str]:
    return [c for c in text if c != "\n" and (not c.isprintable() or c == "\u202e")]


def test_terminals_show_names_and_do_nothing_else():
    text = Table(("label", "n"), tuple((label, "1") for label in HOSTILE)).text()
    assert len(text.splitlines()) == 2 + len(HOSTILE) and not control(text)
    assert "\\x1b[2J" in text and "ü→×…" in text


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path):
    entry = {"subset": "validation", "annotations": [
        {"segment": [3, 1], "label": label} for label in HOSTILE]}  # fmt: skip
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"database": {"\x1b[31mid": entry, "\x1b[31mid ": entry}}))
    told = lofi("check", path)
    assert told.status == 1 and not control(told.out + told.error)
    told = lofi("check", tmp_path / "\x1b[31m.json")
    assert told.status == 1 and not control(told.error)


def test_figures_draw_every_name(tmp_path):
    frames = torch.zeros(3, 8, 8, 3).numpy()
    rows = {label: [(10 * i, 10 * i + 9, label, 0.5)] for i, label in enumerate(HOSTILE)}
    ax = timeline(rows, 10.0 * len(HOSTILE))
    drawn = [t.get_text() for t in (*ax.texts, *ax.get_yticklabels())]
    assert any("frac" in t for t in drawn) and all("$" not in t.replace("\\$", "") for t in drawn)
    for label in ("$\\frac{1$ and $^$", "\x1b$a$"):
        one = {label: [(0, 9, label, 0.5)], "other": [(0, 5, "x", 0.1)]}
        figure = video_timeline(frames, [1.0, 5.0, 8.0], one, 10.0, title=label)
        figure.savefig(io.BytesIO(), format="png")
    curves = loss_curves({label: [{"step": 0, "loss": 1.0}] for label in HOSTILE})
    for figure in (ax.figure, curves.figure):
        figure.savefig(io.BytesIO(), format="png")
    matplotlib.pyplot.close("all")


def test_spreadsheets_run_nothing_and_every_name_reads_back_equal(tmp_path):
    found = {label: [Detection(0.0, 1.5, label, 0.5)] for label in HOSTILE}
    write_csv(tmp_path / "d.csv", found)
    assert read_detections(tmp_path / "d.csv") == found
    write_table(tmp_path / "t.csv", [["a", "b"], *([label, -1.5] for label in HOSTILE)])
    rows = read_csv(tmp_path / "t.csv", ["a", "b"], "other")
    assert rows == [[label, "-1.5"] for label in HOSTILE]
    for name in ("d.csv", "t.csv"):
        with open(tmp_path / name, newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row if cell != "-1.5"]
        assert not [cell for cell in cells if cell[:1] in tuple("=+-@\t\r\n＝")]


def test_subtitles_hold_no_tags(tmp_path):
    write_srt(tmp_path / "x.srt", [Detection(0.0, 1.5, label, 0.5) for label in HOSTILE])
    text = (tmp_path / "x.srt").read_text(encoding="utf-8")
    assert len(text.split("\n\n")) == len(HOSTILE) and not control(text)
    assert not set("<{}") & set(text) and "alert(1)" in text


def test_pages_run_no_script(tmp_path):
    table = Table(("a", "b"), tuple((label, label) for label in HOSTILE))
    page = write_report(tmp_path / "r.html", HOSTILE[-3], {"": HOSTILE, HOSTILE[-3]: [table]})
    tags = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attributes):
            tags.append(tag)

    Tags().feed(page.read_text(encoding="utf-8"))
    assert "table" in tags and not {"script", "i"} & set(tags)


# ------------------------------------------------------------------------------- signals and shells


@pytest.mark.parametrize("start", [["-m", "lofi"], ["-c", "from lofi.cli import main; main()"]])
@pytest.mark.parametrize("library", ["tyro", "torch"])
def test_ctrl_c_during_an_import_is_one_line(start, library, tmp_path):
    code = f"import os, signal, time\nos.kill(os.getpid(), {int(signal.SIGINT)})\ntime.sleep(9)"
    (tmp_path / f"{library}.py").write_text(code)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    result = subprocess.run(
        [sys.executable, *start, "memory"], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert result.returncode == 130 and len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("lofi: interrupted")


def test_terminals_that_only_know_ascii_get_every_answer(world, monkeypatch):
    sizes = ["--encoder", "tsm-toy", "--snippets", 4, "--pixels", 32, "--batch", 2]
    for words in (
        ["--help"], ["memory", *sizes],
        ["tables", "--run", world.run], ["check", "missing→.json"], ["tränieren"],
    ):  # fmt: skip
        streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        monkeypatch.setattr(sys, "argv", ["lofi", *map(str, words)])
        from lofi import cli

        try:
            cli.main()
        except SystemExit:
            assert words[0] in ("check", "tränieren")
        written = b""
        for stream in streams:
            stream.flush()
            written += stream.buffer.getvalue()
        assert written.isascii() and written
