"""The study of all tables: statistics against printed tables, arms in miniature, documents."""

import math
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lofi import config as configs
from lofi import study
from lofi.data import toyworld
from lofi.data.copies import write_video
from lofi.data.real_frames import keep_frames
from lofi.evaluation.paired import paired, student, verdict
from lofi.figures import paired_dots, paper_numbers
from lofi.files import read_json, sha256, write_json

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize(
    "freedom, t", [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (29, 2.045), (120, 1.980)]
)
def test_students_t_is_that_of_the_printed_tables(freedom, t):
    assert student(freedom) == pytest.approx(t, abs=6e-4)


def test_paired_differences_by_hand():
    found = paired([1.0, 3.0, 2.0, -1.0, 5.0])  # deviations −1, 1, 0, −3, 3: sum of squares 20
    assert (found.mean, found.above, found.n) == (2.0, 4, 5)
    assert found.sd == pytest.approx(math.sqrt(5))
    assert (found.low, found.high) == pytest.approx((2 - 2.776, 2 + 2.776), abs=1e-3)
    alone = paired([2.0])
    assert alone.mean == 2.0 and math.isnan(alone.sd) and math.isnan(alone.low)


def test_verdicts_by_hand():
    lead = [1.0, 2.0, 3.0, 2.0, 2.0]  # 2 ± 0.316
    assert verdict(lead) == "reproduced"
    assert verdict([-value for value in lead]) == "contradicted"
    assert verdict([5.0, 1.0, -1.0, 2.0, 0.0]) == "not established"  # 1.4 ± 1.03
    assert verdict([0.0] * 5) == "not established"
    assert verdict(lead[:4]) == "no verdict below 5 seeds"


def test_dots_are_the_differences_and_the_verdict_stands_beside_them():
    ax = paired_dots({"A over B": [1.0, 2.0, 3.0, 2.0, 2.0], "C over D": [0.5]})
    bar, mean, dots = ax.lines[:3]
    assert [*dots.get_xdata()] == [1.0, 2.0, 3.0, 2.0, 2.0] and [*mean.get_xdata()] == [2.0]
    half = 2.776 * math.sqrt(0.5 / 5)
    assert [*bar.get_xdata()] == pytest.approx([2 - half, 2 + half], abs=1e-3)
    said = ["+2.0  reproduced", "+0.5  no verdict below 5 seeds"]
    assert [text.get_text() for text in ax.texts] == said


def test_arms_stand_where_the_paper_has_its_rows():
    for name, arms in study.TABLES.items():
        rows = paper_numbers(name, "ActivityNet-1.3")
        assert len(rows) == len(arms)
        for row, arm in zip(rows, arms):
            known = {"LoFi": "Long C-LoFi"}.get(row.method, row.method)
            assert not arm or known.split(",")[0] in arm, (name, row.method, arm)
    claimed = [name for claims in study.CLAIMS.values() for c in claims for name in c[:2]]
    assert set(claimed) <= {*study.ARMS}


def test_published_rows_are_those_of_todays_arms():
    """Rows are resumed by this hash, so a change of an arm or a setting would run them again."""
    for name, rows in study.read_rows(DOCS / "results.csv").items():
        for seed, row in rows.items():
            arm = name.removesuffix(", again")
            assert study.hash_of(Path("anywhere"), seed, arm) == row["config"], (name, seed)


def test_families_have_a_world_or_an_encoder_and_an_acp_of_their_own(tmp_path):
    for name in study.DIAL | study.ENCODERS | study.REAL:
        arm, (which, family) = study.ARMS[name], name.rsplit(", ", 1)
        config = study.config_of(tmp_path, 1, arm)
        known = study.config_of(tmp_path, 1, study.ARMS[which])
        assert study.needs(name) == {f"ACP, {family}"} - {name}
        world = family if name not in study.ENCODERS else "study"
        assert (config.data.preset, config.encoder != "tsm-toy") == (world, world == "study")
        place = study.place_of(tmp_path, 1, arm)
        assert Path(config.data.world) == (place if world != "study" else place.parent) / "world"
        same = {"encoder": known.encoder, "data.preset": "study", "data.world": known.data.world}
        assert configs.override(config, same) == known


def test_arms_of_the_real_world_need_a_folder_of_videos(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="arm 'ACP, real' needs real videos; .*--frames"):
        study.run_study(tmp_path, [1], only=("ACP, real",))
    ran = []

    def run(words, **how):
        ran.append(words[-1])
        write_json(tmp_path / f"seed-1/rows/{study.slug(words[-1])}.json", {"config": ""})
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(study, "publish", lambda root: None)
    monkeypatch.setattr(study.subprocess, "run", run)
    study.run_study(tmp_path, [1])
    assert {*ran} == {*study.ARMS} - {*study.REAL}
    (tmp_path / "frames.npz").touch()  # as an earlier call left it
    study.run_study(tmp_path, [1])
    assert {*ran} == {*study.ARMS}


def test_a_lead_shrinks_by_the_difference_of_both_leads_on_the_same_seeds():
    levels = {"Long C-LoFi": (9, 8), "ACP": (4, 5)}
    levels |= {"Long C-LoFi, still": (7, 6, 9), "ACP, still": (6, 6, 1)}
    found = {
        arm: {seed: {"shared": value} for seed, value in enumerate(values, 1)}
        for arm, values in levels.items()
    }
    assert study.leads(found, "Long C-LoFi", "ACP") == {1: 5, 2: 3}
    assert study.shrinks(found, "still", "ACP") == [4, 3]  # seed 3 is not in both
    assert study.shrinks(found, "half", "ACP") == []


def test_arms_are_compared_that_begin_with_the_same_acp(tmp_path):
    rows = ["arm;seed;shared;own;oracle;AUC;run"]  # of a spreadsheet, in another order
    for arm, level, run in (
        ("ACP", 6, 2), ("exact", 7, 2), ("ACP", 4, ""), ("Long C-LoFi", 8, 2),
        ("Long C-LoFi", 9, ""), ("window", 1, 3),
    ):  # fmt: skip
        rows.append(f"{arm};1;{level},0;0,5;0;0;{run}")
    path = tmp_path / "results.csv"
    path.write_text("\ufeff" + "\n".join(rows) + "\n")
    found = study.read_rows(tmp_path / "results.csv")
    assert study.lead(found, "Long C-LoFi", "ACP") == [5]  # of the first run
    assert study.lead(found, "exact", "ACP") == [1] and study.lead(
        found, "Long C-LoFi", "exact"
    ) == [1]
    assert study.lead(found, "window", "ACP") == []
    assert found["ACP, again"][1]["shared"] == 6 and found["ACP"][1]["own"] == 0.5
    path.write_text("\n".join([*rows, "window;1;1;1;1;1;3"]) + "\n")
    with pytest.raises(ValueError, match="line 8: window, seed 1 is there twice; drop one"):
        study.read_rows(path)
    path.write_text("\n".join([rows[0], "ACP;1;;1;1;1;"]) + "\n")
    with pytest.raises(ValueError, match="line 2: shared is '', expected a number"):
        study.read_rows(path)


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """A study in a few seconds: a world of 12 videos, an epoch for whatever no arm changes."""
    small = {"source_clips": (16, 8), "videos": (8, 4)}
    tiny, once = configs.preset("tiny"), {}
    for stage in ("acp", "acp_plus", "lofi.training", "head_training"):
        once[f"{stage}.epochs"] = 1
    with pytest.MonkeyPatch.context() as patch:
        for name in ("study", "still", "real"):
            world = toyworld.WORLDS[name]
            patch.setitem(toyworld.WORLDS, name, replace(world, **small))
        patch.setattr(study, "preset", lambda name: configs.override(tiny, once))
        clips = tmp_path_factory.mktemp("clips")
        for name, length in (("short", 5), ("long", 90)):
            pictures = np.random.default_rng(length).integers(0, 256, (length, 48, 80, 3), np.uint8)
            write_video(clips / f"{name}.mp4", pictures, 8)
        root = tmp_path_factory.mktemp("study")
        keep_frames(clips, root / "frames.npz")
        yield root


CHECKED = ("ACP", "LoFi from ACP+ with background", "window", "end-to-end, low", "T-LoFi, BMN",
           "ACP, BMN", "ACP, ActionFormer", "Long C-LoFi, still", "T-LoFi, R(2+1)D",
           "ACP+ with background, real")  # fmt: skip


def test_arms_run_are_measured_and_never_run_again(miniature, capfd):
    rows = {}
    for name in CHECKED:
        rows[name] = study.measure(miniature, 7, name)
        path = miniature / "seed-7" / "rows" / f"{study.slug(name)}.json"
        write_json(path, rows[name])
        assert {*rows[name]} <= {*study.COLUMNS}
        assert all(0 <= rows[name][key] <= 100 for key in (*study.SOURCES, "AUC"))
    assert len({row["config"] for row in rows.values()}) == len(rows)
    place = miniature / "seed-7"
    folder = place / "lofi-from-acp+-with-background"
    start = read_json(folder / "c-lofi/encoder/config.json", "settings")["start"]
    own = read_json(place / "acp+-with-background/acp+/encoder/result.json", "a result")
    assert start == own["sha256"] and "(background)" in own["classes"]
    assert not (place / "main" / "acp+").exists()  # nothing asked for the plain one
    still = read_json(place / "still" / "world" / "world.json", "a world")
    assert still["world"]["name"] == "still" and (place / "still/main/c-lofi/encoder").is_dir()
    lofi = read_json(place / "r2plus1d-toy/main/t-lofi/encoder/config.json", "settings")
    acp = read_json(place / "r2plus1d-toy/main/acp/encoder/result.json", "a result")
    assert lofi["start"] == acp["sha256"] and not (place / "r2plus1d-toy/world").exists()
    real = read_json(place / "real/world/world.json", "a world")
    assert real["world"]["real"] and real["frames"] == sha256(miniature / "frames.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "needs", lambda name: set())
        study.run_study(miniature, [7], only=CHECKED)  # finds all of them
    assert "seed" not in capfd.readouterr().err
    found = study.read_rows(miniature / "results.csv")
    for name, row in rows.items():
        assert found[name][7]["shared"] == pytest.approx(row["shared"], abs=5e-4)
        assert found[name][7]["machine"] == row["machine"] and row["wall_s"] > 0
    differences = study.lead(found, "T-LoFi, BMN", "ACP, BMN", "AUC")
    assert differences == [pytest.approx(rows["T-LoFi, BMN"]["AUC"] - rows["ACP, BMN"]["AUC"])]
    assert (miniature / "RESULTS.md").read_text() == study.document(found)


def test_arms_wait_for_those_that_they_begin_with(tmp_path, monkeypatch):
    began, ended = [], []

    def run(words, stdout, stderr, env):
        seed, name = words[-2:]
        began.append((seed, name, {*ended}))
        time.sleep(0.02 if "from" in name else 0.1)
        path = tmp_path / f"seed-{seed}" / "rows" / f"{study.slug(name)}.json"
        row = {key: 1.0 for key in study.COLUMNS}
        hashed = study.hash_of(tmp_path, int(seed), name)
        write_json(path, row | {"arm": name, "seed": int(seed), "config": hashed})
        ended.append((seed, name))
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(study.subprocess, "run", run)
    study.run_study(tmp_path, [1, 2], jobs=3, only=("LoFi from ACP+", "ACP, still", "Speed"))
    wanted = {"ACP", "ACP+", "LoFi from ACP+", "ACP, still", "Speed"}
    assert {(s, n) for s, n, _ in began} == {(s, n) for s in "12" for n in wanted}
    for seed, name, before in began:
        assert {(seed, need) for need in study.needs(name)} <= before
    monkeypatch.setattr(study.subprocess, "run", None)
    study.run_study(tmp_path, [1, 2], only=("ACP, still",))  # nothing is left to run


def test_an_unknown_arm_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="unknown arm 'LoFi'; known: ACP, untrained"):
        study.run_study(tmp_path, [1], only=("LoFi",))


def test_published_results_are_generated_from_the_raw_rows():
    found = study.read_rows(DOCS / "results.csv")
    assert (DOCS / "RESULTS.md").read_text(encoding="utf-8") == study.document(found)
    lofi, acp = (found[name] for name in ("Long C-LoFi", "ACP"))
    pairs = np.array([lofi[seed]["shared"] - acp[seed]["shared"] for seed in sorted(lofi)])
    text = (DOCS / "RESULTS.md").read_text(encoding="utf-8")
    assert f"| Long C-LoFi over ACP | shared classes | {pairs.mean():+.1f}" in text


def test_the_verdicts_of_the_readme_are_those_of_the_raw_rows():
    found = study.read_rows(DOCS / "results.csv")
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) over (.+?)(, own classes)? \| (.+) \| (\d+ of \d+) \| (.+) \|$",
                      text, re.M)  # fmt: skip
    assert len(rows) >= 10
    for arm, other, own, difference, above, said in rows:
        claim = (arm, other, "own") if own else (arm, other)
        assert any(claim in claims for claims in study.CLAIMS.values())
        values = study.lead(found, *claim)
        mean = paired(values)
        ends = f"{mean.mean:+.1f} [{mean.low:+.1f}, {mean.high:+.1f}]".replace("-", "−")
        assert (difference, above) == (ends, f"{mean.above} of {mean.n}")
        assert said == verdict(values)
