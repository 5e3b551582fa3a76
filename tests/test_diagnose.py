"""Where points are lost: hand-made detections with one known fault each, and the published grid."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
from benchmarks.postprocessing import challenge, plain_area, plain_map, plain_tiou

from lofi import commands
from lofi.data.annotations import Segment, Video
from lofi.detection import Detection, write_detections
from lofi.evaluation import Diagnosis, detection_map, diagnose
from lofi.evaluation.columns import truth_table
from lofi.evaluation.diagnose import BUCKETS, CATEGORIES, grid_tiou
from lofi.figures import diagnosis_figure


def video(name: str, *segments: tuple[float, float, str]) -> Video:
    return Video(name, None, 100.0, None, "validation", tuple(Segment(*s) for s in segments))


TRUTH = [
    video("x", (0, 10, "run"), (20, 40, "run")),
    video("y", (0, 90, "jump")),
    video("z", (50, 60, "jump")),
]
PERFECT = {
    v.id: [Detection(s.start_s, s.end_s, s.label, 0.9 - i / 10) for i, s in enumerate(v.segments)]
    for v in TRUTH
}


def gains(report: Diagnosis) -> dict[str, float]:
    return {rung.name: rung.gain for rung in report.ladder}


def test_nothing_is_lost_by_perfect_detections():
    report = diagnose(TRUTH, PERFECT)
    assert report.result.average_map == 1.0 and set(gains(report).values()) == {0.0}
    assert report.profile.share["true positive"] == (1.0,) * 10
    assert {bucket.average_recall for bucket in report.sensitivity} == {1.0}
    assert report.missing.videos == () and report.missing.unknown_videos == ()


def test_wrong_labels_are_what_the_label_oracle_repairs():
    swapped = {
        v: [d._replace(label={"run": "jump", "jump": "run"}[d.label]) for d in found]
        for v, found in PERFECT.items()
    }
    report = diagnose(TRUTH, swapped)
    assert report.result.average_map == 0 and gains(report)["labels"] == 1.0
    assert gains(report)["boundaries"] == gains(report)["scores"] == 0
    assert report.profile.share["wrong label"][0] == 1.0


def test_wrong_boundaries_are_what_the_boundary_oracle_repairs():
    shifted = {
        v: [d._replace(end_s=d.start_s + 0.4 * (d.end_s - d.start_s)) for d in found]
        for v, found in PERFECT.items()
    }
    report = diagnose(TRUTH, shifted)
    assert report.result.average_map == 0 and gains(report)["boundaries"] == 1.0
    assert report.profile.share["localisation error"][0] == 1.0


def test_wrong_order_is_what_the_score_oracle_repairs():
    noisy = {v: [*found, Detection(95, 99, found[0].label, 1.0)] for v, found in PERFECT.items()}
    report = diagnose(TRUTH, noisy)
    assert report.result.average_map < 1
    assert report.result.average_map + gains(report)["scores"] == 1.0
    assert report.result.average_map + gains(report)["rejection"] == 1.0
    assert report.profile.share["background"][0] > 0


def test_double_detections_are_what_the_suppression_oracle_repairs():
    doubled = {v: [d for d in found for _ in range(3)] for v, found in PERFECT.items()}
    report = diagnose(TRUTH, doubled)
    assert report.result.average_map + gains(report)["suppression"] == 1.0
    assert report.profile.share["double detection"][-1] == pytest.approx(2 / 3)


def test_one_detection_of_each_category():
    kinds = {
        "true positive": Detection(20, 40, "run", 0.9),
        "double detection": Detection(21, 40, "run", 0.8),
        "localisation error": Detection(30, 60, "run", 0.7),
        "wrong label": Detection(0, 10, "jump", 0.6),
        "confusion": Detection(5, 25, "jump", 0.5),
        "background": Detection(80, 99, "run", 0.4),
    }
    report = diagnose(TRUTH, {"x": list(kinds.values())})
    assert {k: v[-1] for k, v in report.profile.share.items()} == pytest.approx(
        dict.fromkeys(CATEGORIES, 1 / 6)
    )


def test_recall_by_coverage_length_and_number():
    report = diagnose(TRUTH, {"x": PERFECT["x"]}, tious=[0.5])
    recall = {(b.property, b.name): (b.instances, b.average_recall) for b in report.sensitivity}
    assert recall[("coverage", "XS")] == (3, pytest.approx(2 / 3))
    assert recall[("coverage", "XL")] == (1, 0.0)
    assert recall[("length", "M")] == (1, 0.0)
    assert recall[("instances", "2-4")] == (2, 1.0) and recall[("instances", "1")] == (2, 0.0)


def test_missing_videos_are_counted_both_ways():
    report = diagnose(TRUTH, {"x": PERFECT["x"], "q": [Detection(0, 1, "run", 0.1)]})
    assert report.missing.videos == ("y", "z") and report.missing.instances == 2
    assert report.missing.unknown_videos == ("q",)
    assert report.result.average_map == 0.5  # class jump is never found
    assert report.missing.average_map_without_them == 1.0


def test_no_detections_at_all_are_reported_not_raised():
    report = diagnose(TRUTH, {})
    assert report.result.average_map == 0 and len(report.missing.videos) == 3
    assert "3 videos with 4 instances" in str(report)


def test_report_agrees_with_the_evaluation_and_is_json():
    report = diagnose(TRUTH, PERFECT, snippets=(10,))
    assert report.result == detection_map(TRUTH, PERFECT)
    record = json.loads(json.dumps(report.to_json()))
    assert [rung["name"] for rung in record["ladder"]] == [
        "labels", "boundaries", "scores", "suppression", "rejection",
    ]  # fmt: skip
    without, with_end = report.grid
    assert set(with_end.recall) == {1.0} and not without.include_video_end


def test_best_grid_segment_equals_brute_force():
    rng = np.random.default_rng(0)
    spans = np.sort(rng.uniform(0, 100, (200, 2)), axis=1)
    truth = truth_table([video("v", *[(s, e, "a") for s, e in spans.tolist()])], "validation")
    tious = np.linspace(0.3, 0.95, 14)
    for snippets in (4, 7, 25):
        for end in (False, True):
            last = snippets if end else snippets - 1
            cells = [(i, j) for i in range(last) for j in range(i + 1, last + 1)]
            best = [
                max(
                    max(0, min(e, b) - max(s, a)) / (max(e, b) - min(s, a))
                    for a, b in (100 / snippets * np.array(cells))
                )
                for s, e in spans
            ]
            expected = [(np.array(best) >= t).mean() for t in tious]
            ours = grid_tiou(truth, snippets, end)
            assert [(ours >= t).mean() for t in tious] == pytest.approx(expected)


@pytest.fixture(scope="module")
def activitynet(shared_data):
    """Validation videos of the derivative; the published count leaves zero-length ones out."""
    folder = shared_data / "activitynet"
    with open(folder / "video_info_new.csv") as file:
        subset = {row["video"]: row["subset"] for row in csv.DictReader(file)}
    database = {
        name: {
            "subset": subset[name],
            "duration": entry["duration_second"],
            "annotations": entry["annotations"],
        }
        for name, entry in json.loads((folder / "anet_anno_action.json").read_text()).items()
    }
    truth = truth_table({"database": database}, "validation")
    return truth.select(truth.segments[:, 1] > truth.segments[:, 0])


@pytest.mark.parametrize(
    ("snippets", "published"),
    [(100, (0.989, 0.955, 0.731)), (50, (0.969, 0.890, 0.615)), (25, (0.912, 0.793, 0.491))],
)
def test_oracle_recall_of_the_grid_on_activitynet(activitynet, snippets, published):
    tiou = grid_tiou(activitynet, snippets, include_video_end=True)
    recall = [float((tiou >= t).mean()) for t in (0.5, 0.75, 0.95)]
    assert [round(x, 3) for x in recall] == pytest.approx(published, abs=5e-4)
    shorter = grid_tiou(activitynet, snippets)  # as released: no segment ends at the end
    assert (shorter <= tiou).all()


# ---- the tables by brute force ----


def plain_categories(gt: dict, results: dict, tiou: float) -> dict[str, list[tuple]]:
    """class -> [(score, category, video, segment)] best first, one detection at a time."""
    instances = [
        (v, a["label"], tuple(a["segment"]))
        for v, entry in gt["database"].items() for a in entry["annotations"]
    ]  # fmt: skip
    taken, out = set(), {label: [] for _, label, _ in instances}
    rows = [(p["score"], v, p["label"], tuple(p["segment"]))
            for v, entries in results["results"].items() for p in entries]  # fmt: skip
    for score, video, label, span in sorted(rows, reverse=True):
        near = [(plain_tiou(span, s), c, i) for i, (v, c, s) in enumerate(instances) if v == video]
        own = max((t for t, c, _ in near if c == label), default=0)
        best = max((t for t, _, _ in near), default=0)
        free = sorted((t, i) for t, c, i in near if c == label and i not in taken and t >= tiou)
        if free:
            taken.add(free[-1][1])
            kind = "true positive"
        elif own >= tiou:
            kind = "double detection"
        elif best >= tiou:
            kind = "wrong label"
        elif own >= 0.1:
            kind = "localisation error"
        else:
            kind = "confusion" if best >= 0.1 else "background"
        out[label].append((score, kind, free[-1][1] if free else None, (video, span)))
    return out


@pytest.mark.parametrize("tiou", [0.5, 0.75])
def test_profile_and_class_rows_equal_brute_force(tiou):
    gt, results = challenge(25, 12, classes=4, seed=5)
    report = diagnose(gt, results, profile_tiou=tiou, tious=[tiou])
    kinds = plain_categories(gt, results, tiou)
    counts = Counter(a["label"] for e in gt["database"].values() for a in e["annotations"])
    for multiple in (1, 3, 10):
        top = [row[1] for c, rows in kinds.items() for row in rows[: multiple * counts[c]]]
        for name, share in report.profile.share.items():
            assert share[multiple - 1] == pytest.approx(top.count(name) / len(top))
    for row in report.classes:
        best = [kind for _, kind, *_ in kinds[row.name][: counts[row.name]]]
        assert {k: v for k, v in row.share.items() if v} == pytest.approx(
            {k: best.count(k) / len(best) for k in set(best)}
        )
        hits = [kind for _, kind, *_ in kinds[row.name]].count("true positive")
        assert row.average_recall == pytest.approx(hits / counts[row.name])
        assert (row.instances, row.predictions) == (counts[row.name], len(kinds[row.name]))
    for name, gain in report.profile.gain.items():
        dropped = {(span, c, s) for c, rows in kinds.items() for s, k, _, span in rows if k == name}
        left = {
            v: [p for p in entries
                if ((v, tuple(p["segment"])), p["label"], p["score"]) not in dropped]
            for v, entries in results["results"].items()
        }  # fmt: skip
        plain = plain_map(gt, {"results": left}, "validation", [tiou]).mean()
        assert gain == pytest.approx(plain - report.result.average_map)


def test_sensitivity_equals_brute_force():
    """Recall and AP_N of every bucket, from the categories above."""
    gt, results = challenge(30, 12, classes=3, seed=6)
    report = diagnose(gt, results, tious=[0.5])
    kinds = plain_categories(gt, results, 0.5)
    entries = [(v, e["duration"], a) for v, e in gt["database"].items() for a in e["annotations"]]
    per_video = Counter((v, a["label"]) for v, _, a in entries)
    lengths = [a["segment"][1] - a["segment"][0] for _, _, a in entries]
    values = {
        "coverage": [length / d for length, (_, d, _) in zip(lengths, entries)],
        "length": lengths,
        "instances": [per_video[v, a["label"]] for v, _, a in entries],
    }
    labels = [a["label"] for _, _, a in entries]
    mean = len(labels) / len(set(labels))
    seen = {(b.property, b.name): b for b in report.sensitivity}
    for name, limits in BUCKETS.items():
        low = -1.0
        for bucket, high in limits.items():
            inside = {i for i, x in enumerate(values[name]) if low < x <= high}
            low = high
            if not inside:
                assert (name, bucket) not in seen
                continue
            areas, hits = [], 0
            for label in {labels[i] for i in inside}:
                wanted = sum(labels[i] == label for i in inside)
                points, right, wrong = [], 0, 0
                for _, kind, instance, _ in kinds[label]:
                    if kind == "true positive" and instance not in inside:
                        continue
                    right += kind == "true positive"
                    wrong += kind != "true positive"
                    expected = right / wanted * mean
                    points.append((right / wanted, expected / (expected + wrong)))
                recall, precision = np.array(points).T
                areas.append(plain_area(precision, recall))
                hits += right
            row = seen[name, bucket]
            assert row.instances == len(inside)
            assert row.average_recall == pytest.approx(hits / len(inside))
            assert row.normalised_map == pytest.approx(np.mean(areas))


def test_without_and_with_the_best_suppression():
    doubled = {
        v: [d._replace(end_s=d.end_s - i * 0.01, score=d.score - i * 0.01) for d in found
            for i in (1, 0)]
        for v, found in PERFECT.items()
    }  # fmt: skip
    report = diagnose(TRUTH, PERFECT, unsuppressed=doubled)
    rungs = {rung.name: rung.average_map for rung in report.ladder}
    assert rungs["no suppression"] == detection_map(TRUTH, doubled).average_map < 1.0
    assert rungs["best suppression"] == 1.0


def test_command_writes_numbers_and_picture(tmp_path, capsys):
    database = {
        v.id: {"subset": "validation", "duration": v.duration_s,
               "annotations": [{"segment": [s.start_s, s.end_s], "label": s.label}
                               for s in v.segments]}
        for v in TRUTH
    }  # fmt: skip
    (tmp_path / "gt.json").write_text(json.dumps({"database": database}))
    write_detections(tmp_path / "d.json", PERFECT, {"sigma": 0.84})
    files = {"json": tmp_path / "out.json", "figure": tmp_path / "out.png"}
    commands.diagnose(tmp_path / "gt.json", tmp_path / "d.json", **files)
    printed = capsys.readouterr().out
    assert "average 100.00 %" in printed and "sigma 0.84" in printed
    record = json.loads(files["json"].read_text())
    assert record["result"]["average_map"] == 1.0 and len(record["classes"]) == 2
    assert files["figure"].read_bytes()[:4] == b"\x89PNG"


def test_figures_show_the_numbers():
    report = diagnose(TRUTH, {"x": PERFECT["x"]}, tious=[0.5])
    profile, recall, normalised = diagnosis_figure(report).axes
    assert len(profile.patches) == 6 * 10
    assert max(p.get_y() + p.get_height() for p in profile.patches) == pytest.approx(100)
    heights = [p.get_height() for p in recall.patches]
    assert heights == pytest.approx([100 * b.average_recall for b in report.sensitivity])
    assert len(normalised.patches) == len(report.sensitivity)
    assert recall.lines[0].get_ydata()[0] == pytest.approx(50)  # 2 of 4 instances
