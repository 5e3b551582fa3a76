"""Where points are lost: hand-made detections with one known fault each, and the published grid."""

import csv
import json

import numpy as np
import pytest

from lofi.data.annotations import Segment, Video
from lofi.detection import Detection
from lofi.evaluation import Diagnosis, detection_map, diagnose
from lofi.evaluation.diagnose import grid_recall, grid_segments
from lofi.evaluation.errors import BUCKETS, CATEGORIES
from lofi.evaluation.tables import truth_table


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
            assert grid_recall(truth, snippets, tious, end) == pytest.approx(expected)


def test_oracle_recall_of_the_grid_on_activitynet(shared_data):
    """gtad: 0.728 of the instances at L = 100, 0.731 with the video end; 0.457 and 0.491 at 25."""
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
    recall = [
        round(grid_recall(truth, size, np.array([0.95]), end)[0], 3)
        for size in (100, 25)
        for end in (False, True)
    ]
    # three zero-length instances are in our count and not in the published one
    assert recall == pytest.approx([0.728, 0.731, 0.457, 0.491], abs=0.0011)
