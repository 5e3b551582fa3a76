"""Candidate segments: the tables of the released inference scripts, and small maps by hand."""

import json

import numpy as np
import pytest
import torch

from lofi.config import PostProcessing
from lofi.data.snippets import Grid
from lofi.detection.proposals import suppress
from lofi.heads import GTAD, Maps, Proposals
from lofi.heads.maps import proposals


def unit(stored: np.ndarray) -> np.ndarray:
    """Reference inputs are stored as 16-bit numbers k and mean (k + 0.5) / 65536."""
    return ((stored.astype(np.float64) + 0.5) / 65536).astype(np.float32)


def by_duration(confidence: np.ndarray) -> np.ndarray:
    """BMN's reference maps are (2, start, last snippet); ours are (2, duration, start)."""
    size = confidence.shape[-1]
    turned = np.zeros_like(confidence)
    for d in range(size):
        s = np.arange(size - d)
        turned[:, d, s] = confidence[:, s, s + d]
    return turned


def table(found: Proposals, rule: str, info: dict) -> np.ndarray:
    """Columns of the released tables."""
    part = {name: column[:, None] for name, column in found.parts.items()}
    segments = found.cells / found.steps
    if rule == "thumos":
        segments = info["first_frame"] + info["skip_videoframes"] * found.cells
    columns = [segments, part["cls"], part["reg"]]
    if rule == "bmn":
        columns = [segments, part["start"], part["end"], *columns[1:], found.scores[:, None]]
    return np.hstack(columns)


def test_tables_equal_the_released_scripts_to_the_bit(golden):
    stored = np.load(golden("inference_tables.npz"))
    cases = json.loads(golden("inference_tables.json").read_text())
    for name, info in cases.items():
        rule = {"gtad_anet": "gtad", "gtad_thumos": "thumos", "bmn": "bmn"}[name.split("/")[0]]
        confidence, start, end = (unit(stored[f"{name}/{x}_u16"]) for x in ("conf", "start", "end"))
        if rule == "bmn":
            confidence = by_duration(confidence)
        ours = table(proposals((confidence, start, end), 60.0, rule), rule, info)
        assert len(ours) == info["rows"], name
        if f"{name}/table" in stored:
            np.testing.assert_array_equal(ours, stored[f"{name}/table"], name)
        else:
            np.testing.assert_array_equal(ours[::7], stored[f"{name}/table_every_7th"], name)


def flat_maps(snippets: int = 5, durations: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    confidence = np.full((2, durations, snippets), 0.5, np.float32)
    return confidence, np.ones(snippets, np.float32), np.ones(snippets, np.float32)


def test_five_snippets_by_hand():
    confidence, start, end = flat_maps()
    start[:] = [0.1, 0.2, 0.9, 0.1, 0.8]  # 0 always, 2 as a peak; 4 = L - 1 never
    end[:] = [0.9, 0.1, 0.1, 0.3, 0.1]  # 4 always, 3 as a peak; 0 never
    found = proposals((confidence, start, end), 10.0)
    assert found.cells.tolist() == [[2, 3], [2, 4], [0, 3], [0, 4]]  # by duration, then start
    assert found.segments_s.tolist() == [[4, 6], [4, 8], [0, 6], [0, 8]]
    assert found.scores.tolist() == [0.25] * 4


def test_the_video_end_is_out_of_reach_unless_asked_for():
    for rule, cells in (("gtad", 10), ("thumos", 10), ("bmn", 10)):
        found = proposals(flat_maps(), 10.0, rule)
        assert len(found.scores) == cells and found.cells.max() == 4, rule
        with_end = proposals(flat_maps(), 10.0, rule, include_video_end=True)
        assert with_end.cells.max() == 5, rule
        assert {tuple(c) for c in found.cells} < {tuple(c) for c in with_end.cells}, rule


def test_all_fifteen_cells_of_five_snippets_with_the_end():
    found = proposals(flat_maps(), 10.0, "bmn", include_video_end=True)
    assert found.cells.tolist() == [[s, e] for s in range(5) for e in range(s + 1, 6)]


def test_score_is_the_product_asked_for():
    confidence, start, end = flat_maps(3, 2)
    confidence[0], confidence[1] = 0.5, 0.25  # regression, classification
    start[:], end[:] = [0.5, 0.1, 0.1], [0.1, 0.25, 0.125]
    first = {
        score: proposals((confidence, start, end), 1.0, "thumos", score=score).scores[0]
        for score in ("cls", "reg", "cls*reg", "cls * reg * start * end")
    }
    assert list(first.values()) == [0.25, 0.5, 0.125, 0.125 * 0.5 * 0.25]


def test_tensors_with_a_batch_dimension_are_the_same_as_arrays():
    confidence, start, end = flat_maps()
    tensors = (torch.tensor(confidence)[None], torch.tensor(start)[None], torch.tensor(end)[None])
    np.testing.assert_array_equal(
        proposals(tensors, 7.0).segments_s, proposals((confidence, start, end), 7.0).segments_s
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "G-TAD"}, "choose one of gtad, thumos, bmn"),
        ({"score": "cls*iou"}, "unknown term 'iou'"),
        ({"duration_s": 0.0}, "> 0 seconds"),
        ({"maps": (np.zeros((2, 4, 5)), np.zeros(4), np.zeros(5))}, "shapes"),
        ({"maps": (np.full((2, 4, 5), np.nan), np.zeros(5), np.zeros(5))}, "NaN"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"maps": flat_maps(), "duration_s": 10.0} | change
    with pytest.raises(ValueError, match=message):
        proposals(**arguments)


def head_maps(snippets: int) -> Maps:
    return Maps(*(torch.tensor(part)[None] for part in flat_maps(snippets, snippets)))


def test_a_head_decodes_whole_videos_in_seconds():
    found = GTAD(4).decode(head_maps(5), Grid.whole(5, 10.0), PostProcessing("bmn"))
    assert found.segments_s.tolist() == proposals(flat_maps(), 10.0, "bmn").segments_s.tolist()
    assert found.scores.tolist() == [0.25] * 10 and found.steps == 5 and found.labels is None


def test_a_head_decodes_windows_in_seconds_of_the_video():
    """A window from frame 20 on, 5 frames a step, of a video that ends at frame 38."""
    grid = Grid.strided(8, stride=5, fps=5.0, num_frames=38, offset_s=0.5).window(4, 8)
    found = GTAD(4).decode(head_maps(8), grid, PostProcessing("thumos"))
    assert found.cells[:, 0].max() == 3  # frame 35; the next step begins behind the end
    np.testing.assert_array_equal(found.segments_s, 4 + found.cells + 0.5)
    assert len(found.scores) == len(found.segments_s) == len(found.parts["cls"])


@pytest.mark.parametrize(("rule", "left"), [("thumos", 0.0), ("bmn", 0.25)])
def test_sixty_steps_are_too_long_for_the_thumos_rule_only(rule, left):
    grid = Grid.strided(64, stride=5, fps=25.0, num_frames=10_000)
    found = GTAD(4).decode(head_maps(64), grid, PostProcessing(rule))
    steps = np.diff(found.cells)[:, 0]
    assert set(found.scores[steps >= 60]) == {left} and set(found.scores[steps < 60]) == {0.25}


def test_joined_windows_forget_what_has_no_score():
    window = Proposals(np.array([[0, 100], [10, 400], [200, 290.0]]), np.array([0.5, 0.0, 0.4]))
    found = suppress([window], PostProcessing.thumos14(), joined=True)
    assert found.segments_s.tolist() == [[0, 100]]  # the last of two in the second pass is gone
    assert found.scores.tolist() == [0.5]
