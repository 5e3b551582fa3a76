"""The whole procedure on a world of seconds: what it leaves, and in which shape."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib
import pytest

from lofi import config as configs
from lofi.data.datasets import open_datasets
from lofi.data.toyworld import TINY, write_world
from lofi.detection import read_detections
from lofi.evaluation import detection_map, proposal_recall
from lofi.experiment import compare_seeds
from lofi.report import conclusions, write_run_report

matplotlib.use("Agg")
SMALL = {
    "acp.epochs": 2, "acp.batch": 8, "lofi.training.epochs": 3, "head_training.epochs": 3,
    "detect.shared_classes": "acp",
}  # fmt: skip
METHODS = ("random", "acp", "c-lofi")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    config = configs.override(configs.preset("tiny"), SMALL)
    for seed in (0, 1):
        world = replace(TINY, source_clips=(16, 4), videos=(8, 4))
        write_world(out / f"world-{seed}", world, seed)
    config = configs.override(config, {"data.world": str(out / "world-0")})
    return config, out, compare_seeds(config, out, (0, 1), METHODS)


def test_results_have_a_row_for_every_method_class_source_and_seed(run):
    _, out, results = run
    written = json.loads((out / "results.json").read_text())
    assert written == json.loads(json.dumps(results))
    found = {(row["method"], row["classes"], row["seed"]) for row in results["rows"]}
    sources = ("shared", "own", "oracle")
    assert found == {(m, c, s) for m in METHODS for c in sources for s in (0, 1)}
    for row in results["rows"]:
        assert len(row["map"]) == 10
        assert row["average_map"] == pytest.approx(sum(row["map"]) / 10)
        assert 0 <= row["average_map"] <= 1


def test_results_agree_with_evaluating_the_written_detections(run):
    config, out, results = run
    row = next(r for r in results["rows"] if (r["method"], r["classes"]) == ("acp", "oracle"))
    path = out / "seed-0" / "acp" / "detections" / "oracle.json"
    again = detection_map(f"{config.data.world}/annotations.json", path, subset="validation")
    assert again.average_map == row["average_map"]
    assert len(list((out / "seed-0" / "acp" / "detections" / "srt").glob("*.srt"))) == 4
    path = path.with_name("proposals.json")
    recall = proposal_recall(f"{config.data.world}/annotations.json", path)
    assert row["ar@100"] == recall.average_recall["100"] and 100 * row["auc"] == recall.auc
    proposals, named = read_detections(path), read_detections(path.with_name("oracle.json"))
    for video, found in proposals.items():
        best = max(d.score for d in named[video])  # the true class weighs 1
        assert {d.label for d in found} == {""} and found[0].score == best


def test_the_report_is_whole_and_needs_nothing_from_elsewhere(run):
    config, out, results = run
    only = results | {"rows": [row for row in results["rows"] if row["seed"] == 0]}
    page = write_run_report(config, out / "seed-0", only).read_text()
    images = []

    class Collect(HTMLParser):
        def handle_starttag(self, tag, attributes):
            values = dict(attributes)
            if tag == "img":
                images.append(values)
            assert tag not in ("script", "link", "iframe")

    Collect().feed(page)
    assert len(images) >= 7
    assert all(i["src"].startswith("data:image/png;base64,") and i["alt"] for i in images)
    viewers = re.findall(r'<a href="(viewer/[^"]+)"', page)
    assert len(viewers) == 3
    for viewer in viewers:
        assert "</video>" in (out / "seed-0" / viewer).read_text()


def test_the_report_says_what_its_numbers_say(run, tmp_path):
    config, out, results = run
    only = results | {"rows": [row for row in results["rows"] if row["seed"] == 0]}
    shared = {r["method"]: 100 * r["average_map"] for r in only["rows"] if r["classes"] == "shared"}
    page = write_run_report(config, out / "seed-0", only).read_text()
    assert "ACP: classification of trimmed clips." in page
    number = r"([+-]?\d+\.\d)"
    pair = rf"C-LoFi {number}, ACP {number} \(shared classes\), paired difference {number} "
    spread = rf"\(95 % over videos: {number} to {number}\): (.*?)\.<"
    *found, word = re.search(pair + spread, page).groups()
    ours, theirs, ahead, low, high = map(float, found)
    assert (ours, theirs) == pytest.approx((shared["c-lofi"], shared["acp"]), abs=0.051)
    assert ahead == pytest.approx(shared["c-lofi"] - shared["acp"], abs=0.051) and low <= high
    assert word == ("better" if low > 0 else "worse" if high < 0 else "no difference seen")
    same = (out / "seed-0" / "acp" / "detections" / "shared.json").read_bytes()
    for method in ("acp", "c-lofi"):  # the same detections twice
        (tmp_path / method / "detections").mkdir(parents=True)
        (tmp_path / method / "detections" / "shared.json").write_bytes(same)
    data = open_datasets(config.data, config.seed, out / "seed-0")
    (said,) = conclusions(tmp_path, only, data, METHODS)
    assert said.endswith("+0.0 (95 % over videos: +0.0 to +0.0): no difference seen.")
