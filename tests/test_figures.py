"""Figures say what they should, read back from the Axes; tables and reports are well formed."""

from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from lofi import figures
from lofi.figures import paper
from lofi.figures.style import FALSE_ALARM, FOUND, TRUTH, as_array, as_spans
from lofi.figures.timelines import _side_by_side

ROOT = Path(__file__).resolve().parent.parent
TRUTH_LANE = [(10, 30, "wave"), (50, 60, "jump")]


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def bars(ax, colour=None):
    wanted = None if colour is None else matplotlib.colors.to_rgb(colour)
    return [
        patch
        for patch in ax.patches
        if patch.get_label() != "missed" and wanted in (None, patch.get_facecolor()[:3])
    ]


def drawn_texts(figure):
    """Every text of a figure that is drawn, after layout; ticks outside the limits are not."""
    figure.canvas.draw()
    outside = set()
    for axis in figure.findobj(matplotlib.axis.Axis):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if not low <= tick.get_loc() <= high:
                outside |= {tick.label1, tick.label2}
    found = figure.findobj(matplotlib.text.Text)
    return [text for text in found
            if text.get_visible() and text.get_text().strip() and text not in outside]  # fmt: skip


# Plain data ---------------------------------------------------------------------------------


def test_segments_are_read_from_tuples_arrays_tensors_and_objects():
    class Detection:
        segment, label, score = (1.0, 2.0), "wave", 0.5

    class Segment:
        start_s, end_s, label = 1.0, 2.0, "wave"

    for given in ([(1, 2)], np.array([[1, 2]]), torch.tensor([[1.0, 2.0]])):
        assert as_spans(given) == [(1.0, 2.0, "", None)]
    assert as_spans([Detection(), Segment()]) == [(1, 2, "wave", 0.5), (1, 2, "wave", None)]
    assert as_spans(None) == []


def test_segments_that_end_before_they_start_are_refused():
    with pytest.raises(ValueError, match="segment 1 runs from 5 to 4"):
        as_spans([(1, 2), (5, 4)])
    with pytest.raises(ValueError, match="5 entries"):
        as_spans([(1, 2, "a", 0.1, 7)])


def test_tensors_with_gradient_or_bfloat16_become_arrays():
    assert as_array(torch.ones(2, requires_grad=True)).tolist() == [1, 1]
    assert as_array(torch.ones(2, dtype=torch.bfloat16)).tolist() == [1, 1]


# Timelines ----------------------------------------------------------------------------------


def test_a_second_detection_of_the_same_action_is_a_false_alarm():
    detections = [(11, 30, "wave", 0.6), (10, 30, "wave", 0.9), (50, 60, "wave", 0.8)]
    hit, found = figures.judge(TRUTH_LANE, detections)
    assert hit == [False, True, False]  # the duplicate, the best, the wrong class
    assert found == [True, False]


def test_a_detection_at_exactly_the_threshold_is_found():
    assert figures.judge([(0, 10)], [(0, 5)], tiou=0.5) == ([True], [True])
    assert figures.judge([(0, 10)], [(0, 4.9)], tiou=0.5) == ([False], [False])
    assert figures.judge([], [(0, 5)]) == ([False], [])
    assert figures.judge([(0, 5)], []) == ([], [False])


def test_timeline_draws_one_bar_per_segment_and_marks_what_is_missed():
    ax = figures.timeline(
        {"ground truth": TRUTH_LANE, "ACP": [(12, 30, "wave", 0.9), (70, 80, "jump", 0.3)]}, 100.0
    )
    assert len(bars(ax, TRUTH)) == 2
    assert len(bars(ax, FOUND)) == 1 and len(bars(ax, FALSE_ALARM)) == 1
    missed = [patch for patch in ax.patches if patch.get_label() == "missed"]
    assert [(patch.get_x(), patch.get_width()) for patch in missed] == [(50, 10)]
    assert ax.get_xlim() == (0, 100)
    assert ax.get_xlabel() == "time (s)"
    assert [text.get_text() for text in ax.get_yticklabels()] == ["ground truth", "ACP"]


def test_found_false_and_truth_differ_by_hatch_and_score_by_height_and_opacity():
    ax = figures.timeline(
        {"ground truth": TRUTH_LANE, "ACP": [(12, 30, "wave", 0.9), (70, 80, "jump", 0.3)]}, 100.0
    )
    kinds = [bars(ax, colour)[0] for colour in (TRUTH, FOUND, FALSE_ALARM)]
    assert len({patch.get_hatch() for patch in kinds}) == 3
    assert kinds[1].get_height() > kinds[2].get_height()
    assert kinds[1].get_alpha() > kinds[2].get_alpha()


def test_timeline_without_ground_truth_judges_nothing():
    ax = figures.timeline({"snippets": [(0, 1), (1, 2)], "frames": [(0.2, 0.4)]}, 3.0)
    assert len(bars(ax)) == 3 and ax.get_legend() is None
    assert len({(patch.get_facecolor(), patch.get_hatch()) for patch in bars(ax)}) == 2


def test_only_the_best_detections_are_drawn_and_the_lane_says_so():
    many = [(i, i + 5, "wave", i / 100) for i in range(50)]
    ax = figures.timeline({"ground truth": TRUTH_LANE, "ACP": many}, 100.0, top=3)
    assert len(bars(ax)) == 2 + 3
    assert ax.get_yticklabels()[1].get_text() == "ACP\n(3 best of 50)"
    assert min(patch.get_x() for patch in bars(ax, FALSE_ALARM)) == 47


def test_overlapping_detections_do_not_hide_each_other():
    same = [(10, 30, "wave", score) for score in (0.9, 0.8, 0.7)]
    ax = figures.timeline({"ground truth": TRUTH_LANE, "ACP": same}, 100.0)
    boxes = [patch.get_bbox() for patch in bars(ax)[2:]]
    assert len(boxes) == 3
    assert boxes[0].y0 > boxes[1].y1 > boxes[1].y0 > boxes[2].y1


def test_a_label_is_written_only_where_it_fits():
    ax = figures.timeline({"ground truth": [(0, 50, "wave"), (60, 60.5, "jump")]}, 100.0)
    assert [text.get_text() for text in ax.texts] == ["wave"]


def test_empty_lanes_and_bad_durations():
    ax = figures.timeline({"ground truth": [], "ACP": []}, 10.0)
    assert len(ax.patches) == 0
    figures.timeline({}, 10.0)
    with pytest.raises(ValueError, match="duration_s"):
        figures.timeline({}, 0.0)


def test_thumbnails_keep_their_shape_and_stay_in_the_video():
    frames = np.zeros((16, 20, 30, 3), np.uint8)
    times = (np.arange(16) + 0.5) * 2
    ax = figures.thumbnails(frames, times, 32.0, most=10)
    assert len(ax.child_axes) == 8  # every second of 16
    assert all(child.get_aspect() == 1.0 for child in ax.child_axes)
    marks = ax.lines[0].get_xdata()
    assert np.isin(marks, times).all() and np.allclose(np.diff(marks), 4)
    ax.figure.canvas.draw()
    spans = [child.get_window_extent() for child in ax.child_axes]
    assert all(a.x1 <= b.x0 + 0.5 for a, b in zip(spans, spans[1:]))


def test_slots_move_as_little_as_needed():
    assert _side_by_side(np.array([-1.0, 1.0, 5.0]), 2.0, 7.0).tolist() == [0.0, 2.0, 5.0]
    assert _side_by_side(np.array([0.0, 4.0, 6.0]), 2.0, 7.0).tolist() == [0.0, 3.0, 5.0]


def test_frames_need_times():
    with pytest.raises(ValueError, match="2 frames need as many times, got 3"):
        figures.thumbnails(np.zeros((2, 4, 4, 3)), [0, 1, 2], 3.0)
    with pytest.raises(ValueError, match="n, H, W, 3"):
        figures.thumbnails(np.zeros((2, 3, 4, 4)), [0, 1], 3.0)


def test_video_timeline_shares_the_time_axis():
    frames = np.zeros((4, 20, 30, 3), np.uint8)
    curves = (np.linspace(0, 1, 10), np.linspace(1, 0, 10))
    figure = figures.video_timeline(
        frames, [1, 3, 5, 7], {"ground truth": [(1, 4)]}, 8.0, boundaries=curves, title="v1"
    )
    assert len(figure.axes) == 3
    assert {ax.get_xlim() for ax in figure.axes} == {(0.0, 8.0)}
    assert figure.get_suptitle() == "v1"


# Maps ---------------------------------------------------------------------------------------


def test_valid_cells_are_counted_as_in_the_paper():
    for snippets, cells in ((25, 325), (50, 1275), (100, 5050)):
        assert figures.valid_cells(snippets, snippets).sum() == cells
    assert figures.valid_cells(64, 256).sum() == 14368  # G-TAD's THUMOS sizes


def test_anchors_past_the_end_are_masked_and_cells_sit_at_their_times():
    ax = figures.confidence_map(np.ones((4, 4)), duration_s=8.0, truth=[(2, 6)])
    mask = ax.images[0].get_array().mask
    assert mask.tolist() == [[False] * (4 - d) + [True] * d for d in range(4)]
    assert ax.images[0].get_extent() == [-1.0, 7.0, 1.0, 9.0]  # first cell: start 0 s, 2 s long
    marked = ax.lines[-1]
    assert (marked.get_xdata()[0], marked.get_ydata()[0]) == (2, 4)
    assert ax.get_xlabel() == "start (s)" and ax.get_ylabel() == "duration (s)"


def test_map_in_snippets_and_wrong_shape():
    assert figures.confidence_map(torch.rand(4, 6)).get_xlabel() == "start (snippets)"
    with pytest.raises(ValueError, match=r"\(2, 4, 4\)"):
        figures.confidence_map(np.ones((2, 4, 4)))


def test_label_map_outlines_the_levels_that_occur():
    tiou = np.zeros((8, 8))
    tiou[2, 2], tiou[2, 3] = 0.95, 0.75
    ax = figures.label_map(tiou)
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["tIoU 0.7", "tIoU 0.9"]
    assert figures.label_map(np.zeros((8, 8))).get_legend() is None


def test_small_multiples_leave_the_explanation_to_the_caption():
    small = plt.subplots(1, 3, figsize=(9, 2.5))[1][0]
    figures.confidence_map(np.ones((8, 8)), truth=[(2, 5)], ax=small)
    assert small.get_legend() is None and not small.texts
    large = figures.confidence_map(np.ones((8, 8)), truth=[(2, 5)])
    assert large.get_legend() is not None and len(large.texts) == 1


def test_similarity_is_a_cosine_and_frames_actions():
    features = np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])  # columns 0 and 2 are parallel
    ax = figures.similarity(features, [(0, 1)])
    image = ax.images[0].get_array()
    assert np.allclose(image, [[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    assert [patch.get_label() for patch in ax.patches] == ["action"] * 2  # frame and its white edge


def test_boundary_curves_are_drawn_at_snippet_centres():
    ax = figures.boundary_curves([0, 1, 0, 0], [0, 0, 1, 0], [(2, 6)], duration_s=8.0)
    assert ax.lines[0].get_xdata().tolist() == [1, 3, 5, 7]
    assert ax.lines[0].get_linestyle() != ax.lines[1].get_linestyle()
    assert ax.get_xlim() == (0, 8)
    with pytest.raises(ValueError, match="both be"):
        figures.boundary_curves([0, 1], [1])


def test_neighbour_graph_draws_each_edge_once_and_never_self():
    knn = [[0, 2], [1, 2], [2, 0]]  # edges 0-2 (twice) and 1-2
    for given in (np.array(knn), torch.tensor(knn)):
        assert len(figures.neighbour_graph(given).patches) == 2
    ax = figures.neighbour_graph(np.array(knn), snippet=1)
    assert [patch.width for patch in ax.patches] == [1.0]
    with pytest.raises(ValueError, match="0 … 2"):
        figures.neighbour_graph([[0, 3], [1, 1], [2, 2]])


def test_neighbour_graph_separates_kinds_of_edges():
    ax = figures.neighbour_graph([[1, 2], [0, 0], [2, 2], [3, 0]], [(0, 2)])
    looks = {patch.width: (patch.get_edgecolor()[:3], patch.get_linestyle()) for patch in ax.patches
             if hasattr(patch, "theta1")}  # fmt: skip
    assert looks[1.0][0] == matplotlib.colors.to_rgb(FOUND)  # 0-1, both in the action
    assert looks[2.0] == looks[3.0] == (matplotlib.colors.to_rgb(FALSE_ALARM), "--")


# Curves and memory --------------------------------------------------------------------------


def test_running_mean_of_hand_sized_numbers():
    from lofi.figures.curves import running_mean

    assert running_mean(np.array([2.0, 4.0, 6.0, 8.0]), 2).tolist() == [2, 3, 5, 7]


def test_loss_curves_draw_raw_and_mean_and_skip_rows_without_loss():
    rows = [{"step": i, "loss": 1.0 / (i + 1)} for i in range(40)]
    rows += [{"step": 40, "lr": 0.1}, {"step": 41, "loss": float("nan")}]
    ax = figures.loss_curves({"T-LoFi": rows, "S-LoFi": rows})
    assert len(ax.lines) == 4 and len(ax.lines[1].get_xdata()) == 40
    assert ax.lines[1].get_linestyle() != ax.lines[3].get_linestyle()
    with pytest.raises(ValueError, match=r"'T-LoFi' has no finite 'acc'.*\['loss', 'step'\]"):
        figures.loss_curves({"T-LoFi": rows[:3]}, key="acc")


def test_learning_rate_is_a_staircase_and_logarithmic_over_a_wide_range():
    halved = [{"step": i, "lr": 0.1 * 0.5 ** (i // 5)} for i in range(15)]
    ax = figures.learning_rate(halved)
    assert ax.get_yscale() == "linear" and ax.lines[0].get_drawstyle() == "steps-post"
    wide = [{"step": i, "lr": 0.1**i} for i in range(4)]
    assert figures.learning_rate({"G-TAD": wide}).get_yscale() == "log"


def test_precision_recall_envelope_encloses_the_average_precision():
    recall, precision = [0.5, 0.5, 1.0], [1.0, 0.5, 2 / 3]  # hit, miss, hit of two actions
    ax = figures.precision_recall({"ACP": (recall, precision)}, average_precision={"ACP": 5 / 6})
    x, y = ax.lines[1].get_data()
    assert np.sum(np.diff(x) * y[1:]) == pytest.approx(5 / 6)
    assert ax.get_legend().get_texts()[0].get_text() == "ACP: AP 83.3"


def test_bytes_by_layer_sums_what_has_no_bar():
    ax = figures.bytes_by_layer({"a": 4 * 2**30, "b": 2**30, "c": 2**29, "d": 2**29}, top=2)
    assert [bar.get_width() for bar in ax.patches] == [4, 1, 1]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b", "2 others"]
    assert [text.get_text().strip() for text in ax.texts] == ["67 %", "17 %", "17 %"]
    assert "GiB" in ax.get_xlabel()
    rows = [{"name": "a", "bytes": 5}, {"name": "b", "bytes": 7}]
    assert "bytes" in figures.bytes_by_layer(rows).get_xlabel()


def test_bytes_by_configuration_hatches_what_fits_no_card():
    ax = figures.bytes_by_configuration({"full": 321 * 2**30, "T": 80 * 2**30})
    assert [bool(bar.get_hatch()) for bar in ax.patches] == [True, False]
    assert sorted(line.get_xdata()[0] for line in ax.lines) == [32, 80, 141]
    assert ax.get_xlim()[1] > 321
    small = figures.bytes_by_configuration({"tiny": 2**30})
    assert [line.get_xdata()[0] for line in small.lines] == [32]


# Tables and the paper -----------------------------------------------------------------------


def result(method, classes, average, first=0.5):
    return {
        "method": method,
        "classes": classes,
        "average_map": average,
        "map": [first - 0.05 * i for i in range(10)],
    }


RESULTS = {"rows": [result("acp", "own", 0.25), result("acp", "shared", 0.3),
                    result("c-lofi", "shared", 0.4, 0.7)], "seconds": 3}  # fmt: skip


def test_results_are_percent_with_one_decimal_at_the_right_thresholds():
    table = figures.results_table(RESULTS)
    assert table.header == ("method", "classes", "average", "@0.5", "@0.75", "@0.95")
    assert table.rows[0] == ("acp", "shared", "30.0", "50.0", "25.0", "5.0")
    assert table.rows[2] == ("c-lofi", "shared", "40.0", "70.0", "45.0", "25.0")
    assert figures.summary_table(RESULTS).rows == (("acp", "30.0", "25.0"), ("c-lofi", "40.0", "–"))


def test_trials_are_averaged_with_their_standard_deviation():
    rows = figures.results_rows([result("acp", "own", 0.2), result("acp", "own", 0.4)])
    assert rows[0].trials == 2 and rows[0].average == pytest.approx(0.3)
    assert rows[0].spread == pytest.approx(0.02**0.5)
    table = figures.results_table([result("acp", "own", 0.2), result("acp", "own", 0.4)])
    assert table.rows[0][2] == "30.0 ± 14.1" and "2 trials" in table.notes[0]


def test_other_thresholds_leave_a_dash_and_broken_rows_are_named():
    thumos = {**result("acp", "own", 0.2), "map": [0.5, 0.4, 0.3], "tious": [0.3, 0.4, 0.5]}
    assert figures.results_table([thumos]).rows[0][3:] == ("30.0", "–", "–")
    with pytest.raises(ValueError, match="3 values for 10"):
        figures.results_rows([{**result("acp", "own", 0.2), "map": [0.5, 0.4, 0.3]}])
    with pytest.raises(ValueError, match=r"row 0 lacks \['map'\]"):
        figures.results_rows([{"method": "acp", "classes": "own", "average_map": 0.2}])


def test_tables_as_text_and_markdown():
    table = figures.Table(("name", "value"), (("a|b", "1.5"), ("c", "22.0")), "Caption", ("note",))
    assert table.text().splitlines() == [
        "Caption", "name  value", "----  -----", "a|b     1.5", "c      22.0", "note",
    ]  # fmt: skip
    lines = table.markdown().splitlines()
    assert lines[2:6] == [
        "| name | value |", "| :-- | --: |", "| a\\|b | 1.5 |", "| c | 22.0 |",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="row 0 has 1 entries"):
        figures.Table(("name", "value"), (("a",),))


def test_detections_are_listed_best_first():
    table = figures.detections_table([(1, 2.5, "jump", 0.25), (10, 30, "wave", 0.9), (3, 4)])
    assert table.header == ("label", "score", "start (s)", "end (s)")
    assert table.rows == (("wave", "0.900", "10.00", "30.00"), ("jump", "0.250", "1.00", "2.50"),
                          ("–", "–", "3.00", "4.00"))  # fmt: skip
    assert figures.detections_table([]).text().startswith("label")


def test_result_bars_stand_for_the_numbers():
    ax = figures.results_bars(RESULTS)
    assert sorted(patch.get_height() for patch in ax.patches) == pytest.approx([25, 30, 40])
    assert len({patch.get_hatch() for patch in ax.patches}) == 2
    assert [text.get_text() for text in ax.get_xticklabels()] == ["acp", "c-lofi"]
    assert sorted(text.get_text() for text in ax.texts) == ["25.0", "30.0", "40.0"]


def test_the_papers_tables_are_complete():
    sizes = {source: len(paper.paper_numbers(source)) for source in "1234567ABCD"}
    assert sizes == {"1": 8, "2": 12, "3": 10, "4": 3, "5": 4, "6": 6, "7": 6, "A": 2, "B": 4,
                     "C": 4, "D": 2}  # fmt: skip
    for row in paper.paper_numbers():
        assert len(row.values) == len(row.metrics)
    with pytest.raises(ValueError, match="Table 8|'8'"):
        paper.paper_numbers("8")


def test_column_sums_equal_those_of_the_printed_tables():
    """Sums taken from the text of the paper and its supplement by another script."""
    anet, hacs = "ActivityNet-1.3", "HACS-1.1"
    sums = {
        ("1", anet): [198.64, 136.3, 30.58, 134.08], ("1", hacs): [141.2, 89.75, 25.88, 91.11],
        ("2", anet): [302.0, 209.15, 47.23, 205.02], ("2", hacs): [222.68, 144.32, 41.74, 145.21],
        ("3", anet): [458.12, 280.47, 58.71, 276.92], ("4", hacs): [102.28, 65.99, 19.12, 66.61],
        ("5", anet): [199.41, 138.21, 33.07, 135.67], ("6", anet): [302.5, 209.99, 49.34, 205.94],
        ("7", anet): [288.59, 196.3, 43.08, 193.76], ("B", anet): [200.0, 139.14, 32.18, 136.13],
        ("C", anet): [93.27, 65.35, 10.11, 63.23], ("C", hacs): [60.36, 37.69, 8.34, 38.43],
        ("D", anet): [100.32, 69.32, 15.84, 68.08],
    }  # fmt: skip
    for (source, dataset), wanted in sums.items():
        columns = zip(*(row.values for row in paper.paper_numbers(source, dataset)))
        assert [sum(v or 0 for v in c) for c in columns] == pytest.approx(wanted), source


def test_rows_printed_twice_agree_except_where_noted():
    rows = paper.paper_numbers(dataset="ActivityNet-1.3")
    acp = {row.values for row in rows if row.method == "ACP" and "R18" in row.setting
           and row.metrics == paper.MAP and "R(2+1)D" not in row.setting}  # fmt: skip
    assert acp == {(49.64, 34.16, 7.68, 33.59)}
    lofi = {row.values for row in rows if row.method in ("LoFi", "Long C-LoFi")
            and "R18" in row.setting}  # fmt: skip
    assert lofi == {(50.68, 35.16, 8.16, 34.49)}
    hacs = [row for row in paper.paper_numbers(dataset="HACS-1.1")
            if row.method in ("LoFi", "Long C-LoFi")]  # fmt: skip
    assert len({row.values for row in hacs}) == 2 and all("disagree" in row.note for row in hacs)


def test_printed_gains_follow_from_the_rows():
    def average(source, method, setting, dataset="ActivityNet-1.3"):
        rows = paper.paper_numbers(source, dataset)
        return next(r.values[-1] for r in rows if r.method == method and setting in r.setting)

    for encoder, gain in (("R18", 0.90), ("R34", 0.84), ("R50", 0.70)):
        difference = average("6", "Long C-LoFi", encoder) - average("6", "ACP", encoder)
        assert difference == pytest.approx(gain, abs=0.001)
    for dataset, gain in (("ActivityNet-1.3", 1.19), ("HACS-1.1", 1.45)):
        difference = average("C", "end-to-end", "", dataset) - average(
            "C", "pre-trained", "", dataset
        )
        assert difference == pytest.approx(gain, abs=0.001)
    a = paper.paper_numbers("A")
    gains = [round(lofi - acp, 2) for acp, lofi in zip(a[0].values, a[1].values)]
    assert gains == [0.42, 0.51, 0.61, 0.70, 0.68]  # the paper prints 0.32 and 0.58
    assert any("+0.42" in remark for remark in paper.INCONSISTENCIES)


def test_paper_and_ours_meet_in_one_row():
    table = figures.paper_vs_ours(RESULTS, source="Table 2")
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["ACP"] == ("49.64", "34.16", "7.68", "33.59", "50.0", "25.0", "5.0", "30.0", "-3.6")
    assert rows["Long C-LoFi"][-2:] == ("40.0", "+5.5")  # "c-lofi" is the paper's long cycle
    assert rows["T-LoFi"][-1] == "–"
    with pytest.raises(ValueError, match="no mAP rows"):
        figures.paper_vs_ours(RESULTS, source="Table A")


# Reports ------------------------------------------------------------------------------------


class Outline(HTMLParser):
    """Checks that tags nest and collects what tests ask about."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, document):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []
        self.feed(document)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"


def full_report(tmp_path):
    sections = [
        figures.Section("", ("An introduction with <angle> & ampersand.",)),
        figures.Section("Results", (figures.results_table(RESULTS),)),
        figures.Section(
            "Figure", (figures.Picture(plt.subplots()[1], 'What "it" shows.', dpi=50),)
        ),
        figures.Section("More", (figures.Details("Fold", ("inner",), code="a < b"),)),
    ]
    return figures.write_report(tmp_path / "deep" / "report.html", "A <title>", sections)


def test_report_is_well_formed_and_needs_nothing_else(tmp_path):
    document = full_report(tmp_path).read_text(encoding="utf-8")
    outline = Outline(document)
    assert [tag for tag in outline.tags if tag in ("h1", "h2")] == ["h1", "h2", "h2", "h2"]
    for tag in ("table", "thead", "caption", "figure", "figcaption", "details", "nav", "main"):
        assert tag in outline.tags
    for tag, attributes in outline.attributes:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), (tag, attributes)
    assert "http" not in document and "<script" not in document and "@import" not in document
    assert "&lt;angle&gt; &amp; ampersand" in document and "a &lt; b" in document
    assert "prefers-color-scheme: dark" in document and "@media print" in document


def test_every_picture_has_an_alternative_text_and_a_sentence(tmp_path):
    outline = Outline(full_report(tmp_path).read_text(encoding="utf-8"))
    images = [attributes for tag, attributes in outline.attributes if tag == "img"]
    assert [image["alt"] for image in images] == ['What "it" shows.']
    assert images[0]["src"].startswith("data:image/png;base64,iVBORw0KGgo")
    with pytest.raises(ValueError, match="caption"):
        figures.Picture(plt.figure(), " ")


def test_a_failing_report_leaves_the_old_one(tmp_path):
    path = full_report(tmp_path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="got int"):
        figures.write_report(path, "x", [figures.Section("bad", (3,))])
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


# All figures --------------------------------------------------------------------------------


def every_figure():
    rng = np.random.default_rng(0)
    square = rng.uniform(size=(20, 20))
    log = [{"step": i, "loss": 1.0, "lr": 0.1} for i in range(30)]
    lanes = {"ground truth": TRUTH_LANE, "ACP": [(12, 30, "wave", 0.9), (40, 61, "jump", 0.3)]}
    frames = np.zeros((6, 20, 30, 3), np.uint8)
    yield "timeline", figures.timeline(lanes, 100.0)
    yield (
        "video",
        figures.video_timeline(
            frames,
            np.arange(6) * 15 + 5,
            lanes,
            100.0,
            boundaries=(square[0], square[1]),
            title="v",
        ),
    )
    yield "map", figures.confidence_map(square, truth=TRUTH_LANE, duration_s=100.0)
    yield "label", figures.label_map(square, truth=TRUTH_LANE, duration_s=100.0)
    yield "similarity", figures.similarity(square, TRUTH_LANE, duration_s=100.0)
    yield "boundaries", figures.boundary_curves(square[0], square[1], TRUTH_LANE, duration_s=100.0)
    yield (
        "graph",
        figures.neighbour_graph(np.argsort(square, 1)[:, :3], TRUTH_LANE, duration_s=100.0),
    )
    yield "loss", figures.loss_curves({"a": log, "b": log})
    yield "lr", figures.learning_rate(log)
    yield "pr", figures.precision_recall({"a": ([0.5, 1.0], [1.0, 0.7])})
    yield "layers", figures.bytes_by_layer({f"layer{i}": 2.0**i for i in range(20)})
    yield "cards", figures.bytes_by_configuration({"full": 321 * 2**30, "T": 80 * 2**30})
    yield "bars", figures.results_bars(RESULTS)
    yield "method", figures.three_stages()


def test_no_figure_has_small_text_or_text_that_is_cut_off():
    for name, drawn in every_figure():
        figure = drawn if isinstance(drawn, plt.Figure) else drawn.get_figure(root=True)
        renderer = figure.canvas.get_renderer()
        for text in drawn_texts(figure):
            where = f"{name}: {text.get_text()!r}"
            assert text.get_fontsize() >= 9, where
            box = text.get_window_extent(renderer)
            inside_x = box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1
            inside_y = box.y0 >= -1 and box.y1 <= figure.bbox.y1 + 1
            assert inside_x and inside_y, (where, box)


def test_figures_draw_into_given_axes():
    ax = plt.subplots()[1]
    assert figures.timeline({"a": [(0, 1)]}, 2.0, ax=ax) is ax
    assert figures.loss_curves({"a": [{"step": 0, "loss": 1.0}]}, ax=plt.subplots()[1]) is not ax


def test_the_overview_names_all_three_stages_and_three_fidelities():
    words = " ".join(text.get_text() for text in drawn_texts(figures.three_stages()))
    for word in ("ACP", "LoFi", "Full-fidelity", "100 snippets, 112²", "25 snippets, 224²",
                 "50 snippets, 158²", "frozen", "discarded", "weights", "gradient"):  # fmt: skip
        assert word in words


def test_the_overviews_strips_cover_equal_areas():
    from lofi.figures import method

    areas = [
        method.TILES // time * (method.TILE / side) ** 2 for _, time, side, *_ in method.STRIPS
    ]
    assert areas == pytest.approx([method.TILES * method.TILE**2 / 4] * 3)


def test_figures_know_nothing_of_training():
    import subprocess
    import sys

    code = (
        "import sys, lofi.figures; print([m for m in sys.modules if m.startswith('lofi.training')"
    )
    code += " or m.split('.')[0] in ('torch', 'scipy', 'pandas')])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.strip() == "[]", run.stderr
