"""mAP: every reference file to the last bit, quirks by hand, and the plain loops."""

import csv
import gzip
import json

import numpy as np
import pytest
from benchmarks.postprocessing import TIOUS, bytes_a_detection, challenge, plain_area, plain_map

from lofi.data.annotations import Segment, Video
from lofi.detection import (
    Detection,
    PostProcessing,
    add_classes,
    read_untrimmednet,
    write_csv,
    write_detections,
)
from lofi.evaluation import detection_map, diagnose, precision_recall_curve, proposal_recall

CASES = [
    "good", "ties", "duplicates", "missing", "unknown_videos", "degenerate", "many", "perfect",
    "empty", "single", "good_tiou_3_7",
]  # fmt: skip


def truth(**videos: list[tuple]) -> dict:
    """{video: [(start, end, label)]} -> ActivityNet format, subset validation."""
    database = {
        name: {
            "subset": "validation",
            "annotations": [{"segment": [s, e], "label": label} for s, e, label in rows],
        }
        for name, rows in videos.items()
    }
    return {"database": database}


def found(**videos: list[tuple]) -> dict[str, list[Detection]]:
    """{video: [(start, end, label, score)]}."""
    return {name: [Detection(*row) for row in rows] for name, rows in videos.items()}


@pytest.fixture(scope="module")
def expected(golden):
    return json.loads(golden("eval/expected.json").read_text())["detection"]


def load(golden, name: str) -> dict:
    with gzip.open(golden(f"eval/{name}")) as file:
        return json.load(file)


@pytest.mark.parametrize("name", CASES)
def test_equal_to_the_toolkit_to_the_bit(golden, expected, name):
    case = expected[name]
    result = detection_map(
        golden(f"eval/{case['ground_truth']}"),
        load(golden, case["predictions"]),
        tious=case["tiou"],
        subset=case["subset"],
        strict=False,
    )
    assert list(result.classes) == case["classes"]
    np.testing.assert_array_equal(np.array(result.ap).T, case["ap"])
    assert list(result.map) == case["mAP"]
    assert result.average_map == case["average_mAP"]


def test_of_tied_scores_the_later_in_the_file_comes_first(golden, expected):
    case = expected["ties"]
    result = detection_map(
        golden(f"eval/{case['ground_truth']}"), load(golden, case["predictions"]), strict=False
    )
    assert result.average_map == case["average_mAP_variants"]["ties_later_first"]


def test_unknown_label_names_label_and_video(golden, expected):
    for name, label in (("unknown_label", "No such class"), ("good_on_training_subset", "Playing")):
        case = expected[name]
        with pytest.raises(ValueError, match=f"{label}.*video FLImHIKzzm4"):
            detection_map(
                golden(f"eval/{case['ground_truth']}"),
                load(golden, case["predictions"]),
                subset=case["subset"],
                strict=False,
            )


def test_thumos14_protocol_on_the_real_ground_truth(golden, shared_data):
    info = json.loads(golden("postproc.json").read_text())
    stored, names = np.load(golden("postproc_thumos.npz")), info["thumos"]["class_order"]
    detections = {video: [] for video in info["thumos"]["out_videos"]}
    columns = ("video", "class", "score_1e6", "segment_01s")
    for v, c, score, (s, e) in zip(*(stored[f"out_{x}"].tolist() for x in columns)):
        video = info["thumos"]["out_videos"][v]
        detections[video].append(Detection(s / 10, e / 10, names[c], score / 1e6))
    gt = shared_data / "thumos14/thumos_gt.json"
    with pytest.raises(ValueError, match="video_test_0000270, entry 0.*reversed"):
        detection_map(gt, detections, protocol="thumos14")  # the released code writes some
    result = detection_map(gt, detections, protocol="thumos14", strict=False)
    wanted = info["thumos_evaluation"]
    assert (result.videos, result.instances, len(result.classes)) == (210, 3311, 20)
    assert list(result.map) == wanted["mAP"] and result.average_map == wanted["average"]
    np.testing.assert_array_equal(np.array(result.ap).T, wanted["ap"])


@pytest.mark.parametrize("sigma", ["0.8", "0.3"])
def test_activitynet_videos_end_to_end(golden, shared_data, sigma):
    info = json.loads(golden("postproc.json").read_text())
    stored = np.load(golden("postproc.npz"))[f"anet_{sigma}_out"]
    annotations = json.loads((shared_data / "activitynet/anet_anno_action.json").read_text())
    ids = [v["name"] for v in info["anet_videos"]]
    gt = truth(
        **{v: [(*a["segment"], a["label"]) for a in annotations[v]["annotations"]] for v in ids}
    )
    known = {a["label"] for v in ids for a in annotations[v]["annotations"]}
    detections = {video: [] for video in ids}
    for v, c, score, s, e in stored.tolist():
        label = info["class_order"][int(c)]
        if label in known:
            detections[ids[int(v)]].append(Detection(s, e, label, score))
    with pytest.raises(ValueError, match="reversed"):  # the released code writes some
        detection_map(gt, detections)
    result = detection_map(gt, detections, strict=False)
    wanted = info["evaluation_of_these_outputs"][f"anet_{sigma}"]
    np.testing.assert_allclose(result.map, wanted["mAP"], rtol=1e-12)
    assert result.average_map == pytest.approx(wanted["average_mAP"], rel=1e-12)


# ---- quirks, each in the smallest file that shows it ----


def ap(gt: dict, detections: dict, tiou: float = 0.5) -> float:
    return detection_map(gt, detections, tious=[tiou]).average_map


def test_a_match_needs_at_least_the_threshold():
    gt, half = truth(v=[(0, 4, "a")]), found(v=[(0, 2, "a", 1)])
    assert ap(gt, half, 0.5) == 1.0
    assert ap(gt, half, 0.51) == 0.0


def test_a_second_detection_takes_the_next_best_instance():
    gt = truth(v=[(0, 10, "a"), (1, 11, "a")])
    assert ap(gt, found(v=[(0, 10, "a", 0.9), (0, 10, "a", 0.8)])) == 1.0


def test_zero_length_never_matches_unless_the_toolkit_is_replayed():
    gt, nothing = truth(v=[(3, 3, "a")]), found(v=[(70, 70, "a", 1)])
    assert detection_map(gt, nothing, strict=False).average_map == 1.0
    assert detection_map(gt, nothing).average_map == 0.0
    assert ap(gt, found(v=[(3, 3, "a", 1)])) == ap(gt, found(v=[(3, 3.1, "a", 1)]), 0.1) == 0.0
    both = truth(v=[(3, 3, "a"), (5, 9, "a")])  # it stays an instance
    assert ap(both, found(v=[(70, 70, "a", 1), (5, 9, "a", 0.5)])) == 0.25


def test_reversed_detections_are_refused_and_named():
    """As long as the instance, backwards: 0/0 in the toolkit, which calls it a hit."""
    gt, back = truth(v=[(2, 6, "a")]), found(v=[(2, 5, "a", 0.1), (9, 5, "a", 1)])
    assert detection_map(gt, back, tious=[0.95], strict=False).average_map == 1.0
    for evaluate in (detection_map, proposal_recall, diagnose):
        with pytest.raises(ValueError, match=r"video v, entry 1.*reversed \(start 9 > end 5\)"):
            evaluate(gt, back)
        with pytest.raises(ValueError, match=r"video 'v': 'a' lasts from 6 to 2 s.*reversed"):
            evaluate(truth(v=[(0, 1, "a"), (6, 2, "a")]), found(v=[(0, 1, "a", 1)]))


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("degenerate", "ties", "missing")])
def test_valid_reference_files_score_the_same_when_checked(golden, expected, name):
    """To the bit; but for `perfect`, whose three zero-length segments are no hits here."""
    case = expected[name]
    files = golden(f"eval/{case['ground_truth']}"), load(golden, case["predictions"])
    both = [
        detection_map(*files, tious=case["tiou"], subset=case["subset"], strict=strict)
        for strict in (True, False)
    ]
    zero = {
        a["label"]
        for v in json.loads(files[0].read_text())["database"].values()
        for a in v["annotations"]
        if v["subset"] == case["subset"] and a["segment"][0] == a["segment"][1]
    }
    assert list(both[1].map) == case["mAP"]
    for label, *values in zip(both[0].classes, both[0].ap, both[1].ap):
        if name == "perfect" and label in zero:
            assert max(values[0]) < min(values[1])
        else:
            assert values[0] == values[1], label


def test_one_class_and_test_videos_that_lack_one():
    gt = truth(v=[(0, 4, "a")])
    gt["database"]["t"] = {"subset": "training", "annotations": [{"segment": [0, 4], "label": "b"}]}
    detections = found(v=[(0, 4, "b", 0.9), (0, 4, "a", 0.5)], t=[(0, 4, "a", 0.2)])
    result = detection_map(gt, detections)
    assert (result.average_map, result.predictions, result.predictions_left_out) == (1.0, 2, 1)
    assert "1 in videos outside the subset" in str(result) and "1 detections are left" in str(
        result
    )
    assert diagnose(gt, detections).result == result
    with pytest.raises(ValueError, match="'c' .video v. is not among the 1 classes"):
        detection_map(gt, found(v=[(0, 4, "c", 1)]))


def test_ids_are_compared_without_prefix_and_suffix_and_labels_in_one_form():
    composed, apart = "caf\u00e9", "cafe\u0301"
    gt = truth(**{f"v_{apart}.mp4": [(0, 4, apart)], "w": [(0, 4, "3")]})
    detections = {composed: [Detection(0, 4, composed, 1)], "v_w.webm": [Detection(0, 4, "3", 1)]}
    result = detection_map(gt, detections)
    assert (result.average_map, result.predictions_outside_subset) == (1.0, 0)
    assert detection_map(gt, {"w": [{"label": 3, "score": 1, "segment": [0, 4]}]}).map[0] == 0.5
    assert proposal_recall(gt, detections).recall[0][-1] == 1.0
    for twice in (truth(v=[(0, 4, "a")], v_v=[(0, 4, "a")]), {"v.mp4": [], "v": []}):
        files = (twice, {}) if "database" in twice else (gt, twice)
        with pytest.raises(ValueError, match="'v.*' and 'v.*' are one video"):
            detection_map(*files)


def test_other_videos_are_false_positives_and_silent_classes_count():
    gt = truth(v=[(0, 4, "a"), (6, 8, "b")])
    assert ap(gt, found(v=[(0, 4, "a", 0.5)])) == 0.5  # class b: 0
    assert ap(gt, found(v=[(0, 4, "a", 0.5)], elsewhere=[(0, 4, "a", 0.9)])) == 0.25


def test_duplicate_instances_are_instances():
    gt = truth(v=[(0, 4, "a"), (0, 4, "a")])
    assert ap(gt, found(v=[(0, 4, "a", 0.5)])) == 0.5


def test_copies_with_a_second_class_are_only_false_positives_and_nothing_limits_their_number():
    gt = truth(v=[(0, 4, "a")], w=[(0, 4, "b")])
    right = found(v=[(0, 4, "a", 0.9)], w=[(0, 4, "b", 0.8)])
    low = {
        v: [*d, *[Detection(0, 4, "b" if v == "v" else "a", 0.1)] * 500] for v, d in right.items()
    }
    assert ap(gt, right) == ap(gt, low) == 1.0
    high = right | {"v": [*right["v"], Detection(0, 4, "b", 0.85)]}  # before the right one of b
    assert ap(gt, high) == 0.75


def test_numbers_may_be_strings_and_scores_integers():
    gt = {
        "database": {
            "v": {"subset": "test", "annotations": [{"segment": ["0.0", "4"], "label": "a"}]}
        }
    }
    entries = [("0", "2.5", "7"), (0, 2, 3)]
    results = {"v": [{"label": "a", "score": c, "segment": [s, e]} for s, e, c in entries]}
    result = detection_map(gt, {"results": results}, tious=[0.6, 0.5], subset="test")
    assert result.map == (1.0, 1.0)


def test_ids_that_never_match_are_pointed_out():
    gt = truth(v=[(0, 4, "a")])
    assert "compare the ids" in str(detection_map(gt, found(w=[(0, 4, "a", 1)])))
    assert "compare the ids" not in str(detection_map(gt, found(v=[(0, 4, "a", 1)])))
    assert "1 in videos outside" in str(proposal_recall(gt, found(w=[(0, 4, "a", 1)])))


def test_thumos14_ambiguous_is_no_class_and_its_segments_are_not_forgiven():
    rows = [{"segment": ["0", "4"], "label": "Diving"}, {"segment": [6, 9], "label": "Ambiguous"}]
    gt = {"database": {"t": {"subset": "test", "annotations": rows}}}
    on_ambiguous = found(t=[(6, 9, "Diving", 0.9), (0, 4, "Diving", 0.8)])
    result = detection_map(gt, on_ambiguous, protocol="thumos14")
    assert result.classes == ("Diving",) and result.instances == 1
    assert result.map == (0.5,) * 5


def test_thumos14_cliff_diving_counts_once_more_as_diving(shared_data):
    with open(shared_data / "thumos14/test_Annotation.csv") as file:
        rows = list(csv.DictReader(file))
    spans = {
        name: {(r["video"], r["start"], r["end"]) for r in rows if r["type"] == name}
        for name in ("Diving", "CliffDiving")
    }
    assert len(spans["CliffDiving"]) == 217 and spans["CliffDiving"] < spans["Diving"]
    gt = truth(v=[(0, 4, "CliffDiving"), (0, 4, "Diving")])
    assert ap(gt, found(v=[(0, 4, "CliffDiving", 1)])) == 0.5
    assert ap(gt, found(v=[(0, 4, "CliffDiving", 1), (0, 4, "Diving", 0.5)])) == 1.0


def test_thumos14_true_segments_with_untrimmednet_classes(shared_data):
    """What perfect boundaries give under the released fusion: 93.3 at every tIoU. The classes are
    looked up here from the numbers in the annotation tables, the mAP is the plain loops'."""
    folder = shared_data / "thumos14"
    gt = json.loads((folder / "thumos_gt.json").read_text())
    scores = np.load(folder / "uNet_test.npy")
    with open(folder / "val_Annotation.csv") as file:
        number = {row["type"]: int(row["type_idx"]) - 1 for row in csv.DictReader(file)}
    del number["Ambiguous"]
    classes = read_untrimmednet(folder / "uNet_test.npy")
    ours, plain = {}, {}
    for video, entry in gt["database"].items():
        if entry["subset"] != "test":
            continue
        spans = sorted({tuple(map(float, a["segment"])) for a in entry["annotations"]})
        mine = scores[int(video[-7:]) - 1]
        best = sorted(number, key=lambda name: -mine[number[name]])[:2]
        plain[video] = [
            {"label": name, "score": round(float(mine[number[name]]), 6),
             "segment": [round(start, 1), round(end, 1)]}
            for start, end in spans for name in best
        ]  # fmt: skip
        once = np.ones(len(spans))
        ours[video] = add_classes(np.array(spans), once, classes.of(video), classes.names, "thumos")
    result = detection_map(gt, ours, protocol="thumos14")
    expected = plain_map(gt, {"results": plain}, "test", (0.3, 0.4, 0.5, 0.6, 0.7))
    np.testing.assert_array_equal(result.ap, expected)
    assert [round(100 * x, 3) for x in result.map] == [93.319, 93.308, 93.305, 93.299, 93.297]


# ---- which videos ----


def test_missing_videos_are_counted_both_ways_in_one_call(tmp_path):
    gt, results = challenge(30, 20, classes=4, seed=3)
    gone = ["v3", "v7", "v20"]
    for video in gone:
        del results["results"][video]
    results["results"]["v8"] = []  # was there, nothing found
    both = detection_map(gt, results, available="auto")
    kept = {v: e for v, e in gt["database"].items() if v not in gone}
    alone = detection_map({"database": kept}, results)
    assert both == detection_map(gt, results, available=list(kept))
    assert (both.video_list, both.available.video_list) == ("official-30", "available-27")
    assert both.videos_without_predictions == 4 and both.available.videos_without_predictions == 1
    assert both.available.ap == alone.ap and both.available.classes == alone.classes
    assert both.available.video_list_hash == alone.video_list_hash != both.video_list_hash
    assert both.available.average_map > both.average_map == detection_map(gt, results).average_map
    text = str(both)
    assert both.video_list_hash in text and both.available.video_list_hash in text
    record = json.loads(json.dumps(both.to_json()))
    assert record["available"]["average_map"] == both.available.average_map
    assert "official-30" in record["protocol_string"]
    (tmp_path / "ids.txt").write_text("\n".join(f"v_{video}" for video in kept) + "\nelsewhere\n")
    assert detection_map(gt, results, available=tmp_path / "ids.txt").available == both.available
    (tmp_path / "ids.json").write_text(json.dumps({"database": kept}))
    assert detection_map(gt, results, available=tmp_path / "ids.json").available == both.available
    recall = proposal_recall(gt, results, available="auto")
    assert recall.available.auc == proposal_recall({"database": kept}, results).auc > recall.auc
    assert recall.available.video_list == "available-27"
    with pytest.raises(ValueError, match="none of the 1 available videos"):
        detection_map(gt, results, available=["nowhere"])
    with pytest.raises(FileNotFoundError, match="ids of available videos"):
        detection_map(gt, results, available=tmp_path / "none.txt")


def test_predictions_in_left_out_videos_and_classes_do_not_count():
    gt = truth(v=[(0, 4, "a")], w=[(0, 4, "b"), (5, 9, "a")])
    all_ = found(v=[(0, 4, "a", 0.5), (0, 4, "b", 0.9)], w=[(0, 1, "a", 0.9)])
    part = detection_map(gt, all_, available=["v"]).available
    assert (part.classes, part.instances, part.predictions) == (("a",), 1, 1)
    assert part.average_map == 1.0


def test_the_result_says_how_the_detections_were_made(tmp_path):
    gt, detections = three_instances()
    post, source = PostProcessing(sigma=0.5), {"method": "c-lofi", "encoder": "tsm-r18", "seed": 3}
    write_detections(tmp_path / "d.json", detections, post, source=source)
    for result in (
        detection_map(gt, tmp_path / "d.json"),
        proposal_recall(gt, tmp_path / "d.json"),
    ):
        assert result.post_processing == post.to_json() and result.source == source
        assert "sigma 0.5" in str(result) and "method c-lofi, encoder tsm-r18" in str(result)
        assert json.loads(json.dumps(result.to_json()))["source"] == source
    bare = detection_map(gt, {"results": {}, "external_data": "no"})
    assert bare.post_processing is None and bare.source == {}


# ---- curves ----


def test_curve_of_the_lesson_in_notebook_06():
    gt = truth(v=[(0, 10, "a"), (20, 30, "a"), (40, 50, "a"), (0, 9, "b")])
    rows = [(1, 10, 0.9), (21, 34, 0.8), (0, 9, 0.7), (60, 70, 0.6), (42, 49, 0.5)]
    detections = found(v=[(s, e, "a", c) for s, e, c in rows[::-1]] + [(0, 9, "b", 1.0)])
    recall, precision = precision_recall_curve(gt, detections, "a")
    np.testing.assert_allclose(recall, [1 / 3, 2 / 3, 2 / 3, 2 / 3, 1])
    np.testing.assert_allclose(precision, [1, 1, 2 / 3, 1 / 2, 3 / 5])
    result = detection_map(gt, detections, tious=[0.5])
    assert plain_area(precision, recall) == pytest.approx(result.ap[0][0])
    with pytest.raises(ValueError, match="class 'c' is not in subset"):
        precision_recall_curve(gt, detections, "c")


def three_instances() -> tuple[dict, dict]:
    """Two videos: one instance found exactly, one shifted, one missed."""
    gt = truth(v=[(0, 10, "a"), (20, 30, "a")], w=[(5, 15, "b")])
    return gt, found(v=[(0, 10, "a", 0.9), (22, 30, "a", 0.8)], w=[(40, 50, "b", 0.7)])


def test_three_instances_by_hand():
    result = detection_map(*three_instances())
    # class a: both found up to tIoU 0.8 (second overlaps 8/10), then AP 0.5; class b: never
    assert list(result.map) == [0.5] * 7 + [0.25] * 3
    assert result.at(0.75) == 0.5 and result.at(0.95) == 0.25


# ---- real annotations as predictions ----


@pytest.fixture(scope="module")
def validation(shared_data) -> dict:
    """The 4,728 validation videos of the derivative."""
    folder = shared_data / "activitynet"
    with open(folder / "video_info_new.csv") as file:
        subset = {row["video"]: row["subset"] for row in csv.DictReader(file)}
    annotations = json.loads((folder / "anet_anno_action.json").read_text())
    return truth(
        **{
            video: [(*a["segment"], a["label"]) for a in entry["annotations"]]
            for video, entry in annotations.items()
            if subset[video] == "validation"
        }
    )


def test_the_truth_as_prediction_gives_one(validation):
    perfect = {
        video: [a | {"score": 1} for a in entry["annotations"]]
        for video, entry in validation["database"].items()
    }
    result = detection_map(validation, perfect, strict=False)
    assert (result.videos, result.instances, len(result.classes)) == (4728, 7293, 200)
    assert set(result.map) == {1.0} and result.zero_length_instances > 0


# ---- brute force ----


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_plain_loops_to_the_bit(seed):
    gt, results = challenge(40, 30, classes=5, seed=seed)
    if seed % 2:  # ties, zero-length segments, duplicates in the truth
        rng = np.random.default_rng(seed)
        for entries in results["results"].values():
            for p in entries:
                p["score"] = round(p["score"], 1)
                p["segment"] = np.round(p["segment"], rng.choice([-1, 0])).tolist()
        for entry in gt["database"].values():
            for a in entry["annotations"]:
                a["segment"] = np.round(a["segment"], -1).tolist()
            entry["annotations"] *= 2
    with np.errstate(invalid="ignore"):
        plain = plain_map(gt, results, "validation", TIOUS)
    ours = np.array(detection_map(gt, results, strict=False).ap)
    np.testing.assert_array_equal(ours, plain)
    if seed % 2:  # what never matches may as well lie far away from everything
        for entry in gt["database"].values():
            for i, a in enumerate(entry["annotations"]):
                if a["segment"][0] == a["segment"][1]:
                    entry["annotations"][i] = a | {"segment": [1e6, 1e6 + 1]}
        plain = plain_map(gt, results, "validation", TIOUS)
        assert not np.array_equal(ours, plain)
    np.testing.assert_array_equal(np.array(detection_map(gt, results).ap), plain)


# ---- inputs and outputs ----


def test_paths_dicts_videos_and_detections_are_the_same(tmp_path):
    gt, detections = three_instances()
    (tmp_path / "gt.json").write_text(json.dumps(gt))
    write_detections(tmp_path / "d.json", detections)
    write_csv(tmp_path / "d.csv", detections)
    videos = [
        Video("v", None, None, None, "validation", (Segment(0, 10, "a"), Segment(20, 30, "a"))),
        Video("w", None, None, None, "validation", (Segment(5, 15, "b"),)),
        Video("t", None, None, None, "training", (Segment(5, 15, "c"),)),
    ]
    results = {
        detection_map(truth_, found_)
        for truth_ in (gt, tmp_path / "gt.json", str(tmp_path / "gt.json"), videos)
        for found_ in (detections, tmp_path / "d.json", str(tmp_path / "d.csv"))
    }
    assert len(results) == 1


def test_json_has_the_agreed_shape():
    record = json.loads(json.dumps(detection_map(*three_instances()).to_json()))
    assert record["protocol"] == "activitynet" and record["subset"] == "validation"
    assert record["classes"] == ["a", "b"] and len(record["ap"]) == 2
    assert len(record["ap"][0]) == len(record["tious"]) == len(record["map"]) == 10
    assert record["tious"][8] == 0.8999999999999999
    assert (record["videos"], record["instances"], record["predictions"]) == (2, 3, 3)
    assert record["average_map"] == pytest.approx(0.425)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "thumos"}, "choose one of activitynet, thumos14"),
        ({"subset": "val"}, "subset 'val'.*subsets: validation"),
        ({"tious": [50]}, r"expected numbers in \(0, 1\]"),
        ({"ground_truth": {"v": 1}}, 'no "database"'),
        ({"ground_truth": {"database": {"v": {"subset": "validation", "annotations": [{}]}}}}, "v"),
        ({"detections": {"v": [{"label": "a", "score": 1}]}}, "video v, entry 0"),
        ({"detections": {"v": [{"label": "a", "score": 1, "segment": [1, 2, 3]}]}}, "entry 0"),
        (
            {"detections": {"v": [Detection(0, 1, "a", float("nan"))]}},
            "entry 0: score is nan",
        ),
        ({"detections": [1, 2]}, "expected a dict"),
    ],
)
def test_bad_input_is_named(change, message):
    gt, detections = three_instances()
    with pytest.raises(ValueError, match=message) as error:
        detection_map(**({"ground_truth": gt, "detections": detections} | change))
    assert "\n" not in str(error.value)


# Three numbers, video and label are 32 bytes; recall has no label.
@pytest.mark.parametrize(("score", "least"), [(detection_map, 32), (proposal_recall, 24)])
def test_a_detection_of_a_file_takes_at_most_100_bytes(tmp_path, score, least):
    assert least < bytes_a_detection(tmp_path, score) <= 100
