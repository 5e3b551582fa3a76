"""AR@AN: every file of the reference set to the last bit, published toys, brute force."""

import gzip
import json

import numpy as np
import pytest
from benchmarks.postprocessing import challenge, plain_recall

from lofi.detection import Detection
from lofi.evaluation import proposal_recall


def truth(**videos: list[tuple]) -> dict:
    """{video: [(start, end)]} -> ActivityNet format."""
    database = {
        name: {
            "subset": "validation",
            "annotations": [{"segment": list(row), "label": "a"} for row in rows],
        }
        for name, rows in videos.items()
    }
    return {"database": database}


def test_equal_to_the_toolkit_to_the_bit(golden):
    cases = json.loads(golden("eval/expected.json").read_text())["proposal"]
    arrays = np.load(golden("eval/expected_proposals.npz"))
    for name, case in cases.items():
        with gzip.open(golden(f"eval/{case['proposals']}")) as file:
            proposals = json.load(file)
        gt, limit = golden(f"eval/{case['ground_truth']}"), case["max_avg_nr_proposals"]
        if "official_error" in case:
            with pytest.raises(ValueError, match="no proposals at all"):
                proposal_recall(gt, proposals, max_proposals=limit, strict=False)
            continue
        result = proposal_recall(gt, proposals, max_proposals=limit, strict=False)
        np.testing.assert_array_equal(result.recall, arrays[f"{case['arrays']}/recall"], name)
        axis = arrays[f"{case['arrays']}/proposals_per_video"]
        np.testing.assert_array_equal(result.proposals_per_video, axis, name)
        assert result.auc == case["auc_percent"], name
        for count, value in result.average_recall.items():
            assert value == case["AR_at"][count], name


def test_bmn_outputs_end_to_end(golden, shared_data):
    info = json.loads(golden("postproc.json").read_text())
    stored = np.load(golden("postproc.npz"))["bmn_out"]
    annotations = json.loads((shared_data / "activitynet/anet_anno_action.json").read_text())
    ids = info["bmn_videos"][12:]
    gt = truth(**{v: [tuple(a["segment"]) for a in annotations[v]["annotations"]] for v in ids})
    proposals = {v: [] for v in ids}
    for v, _, score, start, end in stored.tolist():
        if int(v) >= 12:
            proposals[info["bmn_videos"][int(v)]].append(Detection(start, end, "", score))
    wanted = info["evaluation_of_these_outputs"]["bmn"]
    result = proposal_recall(gt, proposals)
    assert result.auc == pytest.approx(wanted["auc_percent"], rel=1e-12)
    assert result.average_recall == pytest.approx(wanted["AR_at"], rel=1e-12)


def test_two_videos_with_two_equal_proposals_each():
    """Published toy: the share of each video is floored, so half the curve is empty."""
    gt = truth(a=[(0, 1), (1, 2)], b=[(0, 1), (1, 2)])
    both = (np.array([[0, 1], [1, 2]]), np.ones(2))
    result = proposal_recall(gt, {"a": both, "b": both}, max_proposals=None)
    assert result.average_recall_curve == (0.0,) * 49 + (0.5,) * 50 + (1.0,)
    np.testing.assert_allclose(result.proposals_per_video, 0.02 * np.arange(1, 101))
    assert result.auc == pytest.approx(25.5)
    far = (np.array([[10, 11], [11, 12]]), np.ones(2))
    assert proposal_recall(gt, {"a": far, "b": far}, max_proposals=None).auc == 0


def test_a_perfect_method_gets_99():
    steps = np.arange(100)
    first = (np.stack([steps, steps + 1], 1), 1 / (steps + 1))
    result = proposal_recall(truth(a=[(0, 1)]), {"a": first})
    assert set(result.average_recall.values()) == {1.0} and result.auc == pytest.approx(99.0)


def test_at_29_only_28_proposals_are_used():
    segments = np.tile([[50.0, 60.0]], (100, 1))
    segments[28] = (0, 1)  # the 29th best
    scores = np.linspace(1, 0, 100)
    curve = proposal_recall(truth(a=[(0, 1)]), {"a": (segments, scores)}).average_recall_curve
    assert curve[27:30] == (0.0, 0.0, 1.0)


def test_videos_without_proposals_cost_recall_and_others_cost_share():
    gt = truth(a=[(0, 1)], b=[(0, 1)])
    one = (np.array([[0, 1.0]]), np.ones(1))
    assert proposal_recall(gt, {"a": one}).average_recall["100"] == 0.5
    many = (np.tile([[0, 1.0]], (400, 1)), np.ones(400))
    few = (np.tile([[0, 1.0]], (2, 1)), np.ones(2))
    # 2 of 402 proposals: the share 200/402 leaves int(2 * 0.4975) = 0 of them
    assert proposal_recall(gt, {"a": few, "elsewhere": many}).average_recall["100"] == 0.0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limit", [100, 7, None])
def test_equal_to_the_plain_loops_to_the_bit(seed, limit):
    gt, results = challenge(12, 25, classes=3, seed=seed)
    rng = np.random.default_rng(seed)
    for video, entries in results["results"].items():
        results["results"][video] = entries[: rng.integers(0, 26)]
        if seed % 2:
            for p in entries:
                p["score"], p["segment"] = round(p["score"], 1), np.round(p["segment"]).tolist()
    with np.errstate(invalid="ignore"):
        recall, auc = plain_recall(gt, results, "validation", limit)
    ours = proposal_recall(gt, results, max_proposals=limit, strict=False)
    np.testing.assert_array_equal(ours.recall, recall)
    assert ours.auc == auc


def test_json_has_the_agreed_shape():
    one = {"a": [Detection(0, 1, "", 0.5)]}
    record = json.loads(json.dumps(proposal_recall(truth(a=[(0, 1)]), one).to_json()))
    assert set(record["average_recall"]) == {"1", "5", "10", "100"}
    assert {"auc", "tious", "videos", "instances"} <= set(record)
    with pytest.raises(ValueError, match="no proposals at all"):
        proposal_recall(truth(a=[(0, 1)]), {})
