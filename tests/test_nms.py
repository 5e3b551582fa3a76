"""Soft suppression: released results, the published toy, and the plain loops to the bit."""

import json

import numpy as np
import pytest
import torch
from benchmarks.postprocessing import grid_proposals, plain_soft_nms, plain_soft_nms_bmn

from lofi.detection import GridSoftNMS, soft_nms, soft_nms_bmn

TOY = np.array(
    [(0, 0.4), (0.05, 0.45), (0.5, 0.9), (0.1, 0.3), (0.55, 0.6), (0, 0.99)],
)
TOY_SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])


def rows(result: tuple) -> np.ndarray:
    """(score, start, end) rows."""
    return np.column_stack([result[1], result[0]]).reshape(-1, 3)


@pytest.mark.parametrize(
    ("sigma", "expected"),
    [
        (0.84, [(0.9, 0, 0.4), (0.7, 0.5, 0.9), (0.490785, 0.55, 0.6), (0.445551, 0.1, 0.3),
                (0.289116, 0.05, 0.45)]),
        (0.8, [(0.9, 0, 0.4), (0.7, 0.5, 0.9), (0.490329, 0.55, 0.6), (0.438969, 0.1, 0.3),
               (0.274771, 0.05, 0.45)]),
        (0.46, [(0.9, 0, 0.4), (0.7, 0.5, 0.9), (0.483302, 0.55, 0.6), (0.348435, 0.1, 0.3),
                (0.179006, 0, 0.99)]),
    ],
)  # fmt: skip
def test_published_toy(sigma, expected):
    np.testing.assert_allclose(rows(soft_nms(TOY, TOY_SCORES, sigma)), expected, atol=5e-7)


def test_published_toy_of_bmn():
    expected = [(0.9, 0, 0.4), (0.7, 0.5, 0.9), (0.6, 0.1, 0.3), (0.5, 0.55, 0.6), (0.4, 0, 0.99)]
    np.testing.assert_allclose(rows(soft_nms_bmn(TOY, TOY_SCORES)), expected, atol=1e-12)


def assert_released(ours: np.ndarray, stored: np.ndarray, name: str = "") -> None:
    """(score, start, end) rows: the same segments to the bit in the same order; scores but for exp.

    The stored numbers were computed on a processor with AVX-512, for which numpy has an exp of its
    own; elsewhere it takes the C library's, which differs in the last bit of some factors. A score
    is a product of up to a hundred of them.
    """
    np.testing.assert_array_equal(ours[:, 1:], stored[:, 1:], name)
    np.testing.assert_allclose(ours[:, 0], stored[:, 0], rtol=2e-14, err_msg=name)


def test_released_suppression_of_forty_videos(golden):
    stored = np.load(golden("postproc.npz"))
    given, expected = stored["anet_in"], stored["anet_softnms_0.8"]
    for video in range(1, 40):  # video 0 has one row, which skips suppression
        mine = given[given[:, 0] == video]
        segments, scores = mine[:, 1:3], mine[:, 3] * mine[:, 4]
        ours = rows(soft_nms(segments, scores, sigma=0.8))
        with np.errstate(invalid="ignore"):
            plain = plain_soft_nms(segments, scores, 0.8)
        np.testing.assert_array_equal(ours, plain)
        assert_released(ours, expected[expected[:, 0] == video][:, 1:])


def test_released_bmn_suppression(golden):
    stored = np.load(golden("postproc.npz"))
    info = json.loads(golden("postproc.json").read_text())
    videos = {v["name"]: v for v in info["anet_videos"]}
    for i, name in enumerate(info["bmn_videos"]):
        mine = stored["bmn_in"][stored["bmn_in"][:, 0] == i]
        segments, scores = soft_nms_bmn(mine[:, 1:3], mine[:, 7])
        with np.errstate(invalid="ignore"):
            plain = plain_soft_nms_bmn(mine[:, 1:3], mine[:, 7])
        np.testing.assert_array_equal(rows((segments, scores)), plain, name)
        frames = videos[name]["duration_frame"]
        seconds = float(frames // 16 * 16) / frames * videos[name]["duration_second"]
        start, end = np.maximum(segments[:, 0], 0), np.minimum(segments[:, 1], 1)
        ours = np.column_stack([scores, start * seconds, end * seconds])
        assert_released(ours, stored["bmn_out"][stored["bmn_out"][:, 0] == i][:, 2:], name)


def hostile(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Few values, so that ties, zero-length, reversed, touching and equal segments are common."""
    rng = np.random.default_rng(seed)
    count = rng.integers(0, 30)
    segments = rng.integers(0, 6, (count, 2)) / 5
    if seed % 3:
        segments.sort(axis=1)
    scores = rng.choice([0.0, 0.25, 0.5, 0.5, 1.0, -0.5 if seed % 5 == 0 else 0.75], count)
    return segments, scores


@pytest.mark.filterwarnings("ignore:(invalid value|divide by)")
@pytest.mark.parametrize("sigma", [0.84, 0.1])
def test_equal_to_the_plain_loop_on_hostile_segments(sigma):
    for seed in range(300):
        segments, scores = hostile(seed)
        ours = rows(soft_nms(segments, scores, sigma, top_k=12))
        plain = plain_soft_nms(segments, scores, sigma, top_k=12)
        np.testing.assert_array_equal(ours, plain.reshape(-1, 3), str(seed))


@pytest.mark.filterwarnings("ignore:(invalid value|divide by)")
def test_bmn_rule_equals_the_plain_loop_on_hostile_segments():
    for seed in range(300):
        segments, scores = hostile(seed)
        if seed % 5 == 0:
            continue  # BMN's scores are products of probabilities
        ours = rows(soft_nms_bmn(segments, scores))
        np.testing.assert_array_equal(ours, plain_soft_nms_bmn(segments, scores), str(seed))


def test_grid_gives_the_bits_of_free_segments_with_ties_and_missing_cells():
    grid = GridSoftNMS(12, 8, sigma=0.5)
    rng = np.random.default_rng(0)
    all_cells = np.array([(s, e) for s in range(12) for e in range(s + 1, min(12, s + 8) + 1)])
    for trial in range(100):
        cells = rng.permutation(all_cells)[: rng.integers(0, len(all_cells) + 1)]
        scores = rng.choice([0.0, 0.2, 0.4, 0.4, 0.8], len(cells))
        if trial % 2:
            scores = rng.uniform(size=len(cells))
        picked, kept = grid(cells, scores, top_k=20)
        segments, expected = soft_nms(cells / 12, scores, 0.5, top_k=20)
        np.testing.assert_array_equal(cells[picked] / 12, segments)
        np.testing.assert_array_equal(kept, expected)


def test_grid_with_room_for_three_rows_forgets_and_stays_right():
    cells, scores = grid_proposals(1, snippets=20)
    small, large = GridSoftNMS(20, 20, max_bytes=3 * 8 * 210), GridSoftNMS(20, 20)
    for _ in range(2):
        np.testing.assert_array_equal(small(cells, scores)[1], large(cells, scores)[1])
    assert small._factors.cache_info().currsize == 3


def test_the_last_candidate_is_lost_and_a_single_one_survives():
    assert len(soft_nms([[0, 1], [5, 6]], [0.5, 0.4])[1]) == 1
    assert soft_nms([[0, 1]], [0.5])[1].tolist() == [0.5]
    assert soft_nms(np.zeros((0, 2)), np.zeros(0))[0].shape == (0, 2)


def test_disjoint_segments_keep_their_scores():
    segments = np.array([[i, i + 1] for i in range(10)], float)  # touching
    scores = np.linspace(1, 0.1, 10)
    assert soft_nms(segments, scores)[1].tolist() == scores[:9].tolist()


def test_tensors_in_tensors_out():
    segments, scores = torch.tensor(TOY, dtype=torch.float32), torch.tensor(TOY_SCORES)
    found, kept = soft_nms(segments, scores, 0.84, top_k=3)
    assert found.dtype == torch.float32 and kept.dtype == torch.float64
    same = soft_nms(segments.double().numpy(), TOY_SCORES, 0.84, top_k=3)
    np.testing.assert_array_equal(found.numpy(), same[0].astype(np.float32))
    np.testing.assert_array_equal(kept.numpy(), same[1])


@pytest.mark.parametrize(
    ("segments", "scores", "message"),
    [
        ([[0, 1, 2]], [0.5], "expected"),
        ([[0, 1]], [float("nan")], "NaN"),
        ([[0, float("inf")]], [0.5], "infinite"),
    ],
)
def test_bad_input_is_named(segments, scores, message):
    with pytest.raises(ValueError, match=message):
        soft_nms(segments, scores)
    with pytest.raises(ValueError, match="sigma"):
        soft_nms(TOY, TOY_SCORES, sigma=0)
    with pytest.raises(ValueError, match="twice"):
        GridSoftNMS(5, 5)(np.array([[0, 1], [0, 1]]), np.ones(2))
