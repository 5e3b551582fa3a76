"""Figures say what they should, read back from the Axes; tables and reports are well formed."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
import lectures
import matplotlib.pyplot as plt
import torch
from lectures import Shares

from lofi import figures, report
from lofi.detection import Detection
from lofi.figures import tables
from lofi.figures.style import FALSE_ALARM, FOUND, TRUTH, as_array, as_spans

ROOT = Path(__file__).resolve().parent.parent
ANET, HACS = "ActivityNet-1.3", "HACS-1.1"
TRUTH_LANE = [(10, 30, "wave"), (50, 60, "jump")]
LANES = {"ground truth": TRUTH_LANE, "ACP": [(12, 30, "wave", 0.9), (70, 80, "jump", 0.3)]}
FRAMES = np.zeros((6, 20, 30, 3), np.uint8)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def bars(ax, colour=None):
    wanted = None if colour is None else matplotlib.colors.to_rgb(colour)
    drawn = [patch for patch in ax.patches if patch.get_label() != "missed"]
    return [patch for patch in drawn if wanted in (None, patch.get_facecolor()[:3])]


def words(texts):
    return [text.get_text().strip() for text in texts]


# Timelines ----------------------------------------------------------------------------------


def test_segments_are_read_from_tuples_arrays_tensors_and_objects():
    detection = Detection(1.0, 2.0, "wave", 0.5)
    segment = SimpleNamespace(start_s=1.0, end_s=2.0, label="wave")
    for given in ([(1, 2)], np.array([[1, 2]]), torch.tensor([[1.0, 2.0]])):
        assert as_spans(given) == [(1.0, 2.0, "", None)]
    assert as_spans([detection, segment]) == [(1, 2, "wave", 0.5), (1, 2, "wave", None)]
    assert as_spans(None) == []
    assert as_array(torch.ones(2, requires_grad=True, dtype=torch.bfloat16)).tolist() == [1, 1]


def test_the_best_detection_of_an_action_from_the_threshold_on_is_right():
    detections = [(11, 30, "wave", 0.6), (10, 30, "wave", 0.9), (50, 60, "wave", 0.8)]
    hit, found = figures.judge(TRUTH_LANE, detections)
    assert hit == [False, True, False]  # the duplicate, the best, the wrong class
    assert found == [True, False]
    assert figures.judge([(0, 10)], [(0, 5)]) == ([True], [True])
    assert figures.judge([(0, 10)], [(0, 4.9)]) == ([False], [False])
    assert figures.judge([], [(0, 5)]) == ([False], []) and figures.judge([], []) == ([], [])


def test_timeline_draws_one_bar_per_segment_and_marks_what_is_missed():
    ax = figures.timeline(LANES, 100.0)
    true, right, wrong = (bars(ax, colour) for colour in (TRUTH, FOUND, FALSE_ALARM))
    assert (len(true), len(right), len(wrong)) == (2, 1, 1)
    assert len({bar[0].get_hatch() for bar in (true, right, wrong)}) == 3
    assert right[0].get_height() > wrong[0].get_height()  # as their scores
    assert right[0].get_alpha() > wrong[0].get_alpha()
    missed = [patch for patch in ax.patches if patch.get_label() == "missed"]
    assert [(patch.get_x(), patch.get_width()) for patch in missed] == [(50, 10)]
    assert ax.get_xlim() == (0, 100) and ax.get_xlabel() == "time (s)"
    assert words(ax.get_yticklabels()) == ["ground truth", "ACP"]
    kinds = ["ground truth", "found (tIoU ≥ 0.5)", "false alarm", "missed"]
    assert words(ax.get_legend().get_texts()) == kinds


def test_timeline_without_ground_truth_judges_nothing():
    ax = figures.timeline({"snippets": [(0, 1), (1, 2)], "frames": [(0.2, 0.4)]}, 3.0)
    assert len(bars(ax)) == 3 and ax.get_legend() is None
    assert len({(patch.get_facecolor(), patch.get_hatch()) for patch in bars(ax)}) == 2
    assert len(figures.timeline({"ground truth": [], "ACP": []}, 10.0).patches) == 0


def test_only_the_best_detections_are_drawn_and_the_lane_says_so():
    many = [(i, i + 5, "wave", i / 100) for i in range(50)]
    ax = figures.timeline({"ground truth": TRUTH_LANE, "ACP": many}, 100.0, top=3)
    assert len(bars(ax)) == 2 + 3
    assert words(ax.get_yticklabels())[1] == "ACP\n(3 best of 50)"
    assert min(patch.get_x() for patch in bars(ax, FALSE_ALARM)) == 47


def test_overlapping_detections_do_not_hide_each_other():
    same = [(10, 30, "wave", score) for score in (0.9, 0.8, 0.7)]
    boxes = [patch.get_bbox() for patch in bars(figures.timeline({"ACP": same}, 100.0))]
    assert len(boxes) == 3
    assert boxes[0].y0 > boxes[1].y1 > boxes[1].y0 > boxes[2].y1


def test_a_label_is_written_only_where_it_fits():
    ax = figures.timeline({"ground truth": [(0, 50, "wave"), (60, 60.5, "jump")]}, 100.0)
    assert words(ax.texts) == ["wave"]


@pytest.mark.parametrize("times", [(np.arange(16) + 0.5) * 2, [0, 0.5, 1, 30, 31, 31.9]])
def test_thumbnails_keep_their_shape_and_stay_in_the_video(times):
    ax = figures.thumbnails(np.zeros((len(times), 20, 30, 3), np.uint8), times, 32.0)
    assert len(ax.child_axes) == {16: 8, 6: 6}[len(times)]  # at most 10: every second of 16
    assert all(child.get_aspect() == 1.0 for child in ax.child_axes)
    assert np.isin(ax.lines[0].get_xdata(), times).all()
    ax.figure.canvas.draw()
    spans = [child.get_window_extent() for child in ax.child_axes]
    assert all(a.x1 <= b.x0 + 0.5 for a, b in zip(spans, spans[1:]))
    whole = ax.get_window_extent()
    assert whole.x0 <= spans[0].x0 and spans[-1].x1 <= whole.x1


def test_video_timeline_shares_the_time_axis():
    curves = (np.linspace(0, 1, 10), np.linspace(1, 0, 10))
    times, lanes = np.arange(6) + 0.5, {"ground truth": [(1, 4)]}
    figure = figures.video_timeline(FRAMES, times, lanes, 8.0, boundaries=curves, title="v1")
    assert len(figure.axes) == 3
    assert {ax.get_xlim() for ax in figure.axes} == {(0.0, 8.0)}
    assert figure.get_suptitle() == "v1"


def test_a_film_puts_frames_side_by_side_and_leaves_its_input_alone():
    frames = torch.full((3, 3, 4, 5), 100, dtype=torch.uint8)
    picture = lectures.film(frames, "three").images[0].get_array()
    assert picture.shape == (4, 15, 3)
    assert (np.asarray(picture)[:, [4, 9, 14]] == 255).all()  # lines between the frames
    assert (frames == 100).all()
    assert lectures.film(frames.permute(0, 2, 3, 1)).images[0].get_array().shape == (4, 15, 3)


# Maps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "cells"),
    [((25, 25), 325), ((50, 50), 1275), ((100, 100), 5050), ((64, 256), 14368)],
)
def test_drawn_cells_are_counted_as_in_the_papers(shape, cells):
    assert figures.confidence_map(np.ones(shape)).images[0].get_array().count() == cells


def test_anchors_past_the_end_are_masked_and_cells_sit_at_their_times():
    ax = figures.confidence_map(np.ones((4, 4)), duration_s=8.0, truth=[(2, 6)])
    mask = ax.images[0].get_array().mask
    assert mask.tolist() == [[False] * (4 - d) + [True] * d for d in range(4)]
    assert ax.images[0].get_extent() == [-1.0, 7.0, 1.0, 9.0]  # first cell: start 0 s, 2 s long
    assert ax.lines[-1].get_xydata().tolist() == [[2, 4]]
    assert ax.get_xlabel() == "start (s)" and ax.get_ylabel() == "duration (s)"
    assert figures.confidence_map(torch.rand(4, 6)).get_xlabel() == "start (snippets)"


def test_label_map_outlines_the_levels_that_occur():
    tiou = np.zeros((8, 8))
    tiou[2, 2], tiou[2, 3] = 0.95, 0.75
    assert words(lectures.label_map(tiou).get_legend().get_texts()) == ["tIoU 0.7", "tIoU 0.9"]
    assert lectures.label_map(np.zeros((8, 8))).get_legend() is None


def test_small_multiples_leave_the_explanation_to_the_caption():
    small = plt.subplots(1, 3, figsize=(9, 2.5))[1][0]
    assert figures.confidence_map(np.ones((8, 8)), truth=[(2, 5)], ax=small) is small
    assert small.get_legend() is None and not small.texts
    large = figures.confidence_map(np.ones((8, 8)), truth=[(2, 5)])
    assert large.get_legend() is not None and len(large.texts) == 1


def test_similarity_is_a_cosine_and_frames_actions():
    features = np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])  # columns 0 and 2 are parallel
    ax = figures.similarity(features, [(0, 1)])
    assert np.allclose(ax.images[0].get_array(), [[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    assert [patch.get_label() for patch in ax.patches] == ["action"]


def test_boundary_curves_are_drawn_at_snippet_centres():
    ax = figures.boundary_curves([0, 1, 0, 0], [0, 0, 1, 0], [(2, 6)], duration_s=8.0)
    assert ax.lines[0].get_xdata().tolist() == [1, 3, 5, 7]
    assert ax.lines[0].get_linestyle() != ax.lines[1].get_linestyle()
    assert ax.get_xlim() == (0, 8)


def test_salience_scales_the_mean_of_the_channels_and_frames_actions():
    features = np.array([[0.0, 2.0, 4.0], [0.0, 0.0, 4.0]])
    ax = lectures.salience({"before": features, "mask": [5, 5, 5]}, [(1, 3)], duration_s=6.0)
    drawn = [image.get_array()[0].tolist() for image in ax.images]
    assert drawn == [[0, 0.25, 1], [0, 0, 0]]
    (box,) = ax.patches
    assert (box.get_x(), box.get_width(), ax.get_xlim()) == (1, 2, (0, 6))


@pytest.mark.parametrize("form", [np.array, torch.tensor])
def test_neighbour_graph_draws_each_edge_once_and_never_self(form):
    edges = form([[0, 2], [1, 2], [2, 0]])  # 0-2 (twice) and 1-2
    assert [patch.width for patch in lectures.neighbour_graph(edges).patches] == [2.0, 1.0]


def test_neighbour_graph_separates_kinds_of_edges():
    ax = lectures.neighbour_graph([[1, 2], [0, 0], [2, 2], [3, 0]], [(0, 2)])
    looks = {patch.width: (patch.get_edgecolor()[:3], patch.get_linestyle()) for patch in ax.patches
             if hasattr(patch, "theta1")}  # fmt: skip
    assert looks[1.0][0] == matplotlib.colors.to_rgb(FOUND)  # 0-1, both in the action
    assert looks[2.0] == looks[3.0] == (matplotlib.colors.to_rgb(FALSE_ALARM), "--")


# Curves and memory --------------------------------------------------------------------------


def test_loss_curves_draw_raw_and_mean_and_skip_rows_without_loss():
    rows = [{"step": i, "loss": 2.0 * i} for i in range(40)]
    rows += [{"step": 40, "lr": 0.1}, {"step": 41, "loss": float("nan")}]
    ax = figures.loss_curves({"T-LoFi": rows, "S-LoFi": rows})
    raw, mean, _, other = ax.lines
    assert raw.get_ydata().tolist() == list(range(0, 80, 2))
    assert mean.get_ydata().tolist() == [0, *range(1, 78, 2)]  # of two rows, a twentieth
    assert mean.get_linestyle() != other.get_linestyle()


def test_precision_recall_envelope_encloses_the_average_precision():
    recall, precision = [0.5, 0.5, 1.0], [1.0, 0.5, 2 / 3]  # hit, miss, hit of two actions
    curves = {"ACP": (recall, precision), "nothing found": ([], [])}
    ax = lectures.precision_recall(curves)
    x, y = ax.lines[1].get_data()
    assert np.sum(np.diff(x) * y[1:]) == pytest.approx(5 / 6)
    assert words(ax.get_legend().get_texts()) == ["ACP", "nothing found"]


def test_parts_of_a_bar_lie_end_to_end():
    ax = lectures.share_bars({"a": Shares(0.5, 0.3, 0.2), "b": Shares(0.1, 0.1, 0.8)})
    starts = [[bar.get_x() for bar in bars] for bars in ax.containers]
    assert np.allclose(starts, [[0, 0], [0.5, 0.1], [0.8, 0.2]])
    assert words(ax.get_legend().get_texts()) == ["label", "scene", "vigour"]


def test_bytes_by_layer_sums_what_has_no_bar():
    ax = lectures.bytes_by_layer({"a": 4 * 2**30, "b": 2**30, "c": 2**29, "d": 2**29}, top=2)
    assert [bar.get_width() for bar in ax.patches] == [4, 1, 1]
    assert words(ax.get_yticklabels()) == ["a", "b", "2 others"]
    assert words(ax.texts) == ["67 %", "17 %", "17 %"]
    assert "GiB" in ax.get_xlabel()
    assert "bytes" in lectures.bytes_by_layer({"a": 5, "b": 7}).get_xlabel()


def test_bytes_by_configuration_hatches_what_fits_no_card():
    ax = lectures.bytes_by_configuration({"full": 321 * 2**30, "T": 80 * 2**30})
    assert [bool(bar.get_hatch()) for bar in ax.patches] == [True, False]
    assert sorted(line.get_xdata()[0] for line in ax.lines) == [32, 80, 141]
    assert ax.get_xlim()[1] > 321
    small = lectures.bytes_by_configuration({"tiny": 2**30})
    assert [line.get_xdata()[0] for line in small.lines] == [32]


# Tables and the paper -----------------------------------------------------------------------


def result(method, classes, average, first=0.5):
    values = [first - 0.05 * i for i in range(10)]
    return {"method": method, "classes": classes, "average_map": average, "map": values}


RESULTS = {"rows": [result("acp", "own", 0.25), result("acp", "shared", 0.3),
                    result("c-lofi", "shared", 0.4, 0.7)], "seconds": 3}  # fmt: skip


def test_results_are_percent_with_one_decimal_at_the_right_thresholds():
    table = figures.results_table(RESULTS)
    assert table.header == ("method", "classes", "average", "@0.5", "@0.75", "@0.95")
    assert table.rows[0] == ("acp", "shared", "30.0", "50.0", "25.0", "5.0")
    assert table.rows[2] == ("c-lofi", "shared", "40.0", "70.0", "45.0", "25.0")
    assert tables.summary_table(RESULTS).rows == (("acp", "30.0", "25.0"), ("c-lofi", "40.0", "–"))
    thumos = {**result("acp", "own", 0.2), "map": [0.5, 0.4, 0.3], "tious": [0.3, 0.4, 0.5]}
    assert figures.results_table([thumos]).rows[0][3:] == ("30.0", "–", "–")


def test_trials_are_averaged_with_their_standard_deviation():
    trials = [result("acp", "own", 0.2), result("acp", "own", 0.4)]
    row = tables.results_rows(trials)[0]
    assert row.trials == 2 and row.average == pytest.approx(0.3)
    assert row.spread == pytest.approx(0.02**0.5)
    table = figures.results_table(trials)
    assert table.rows[0][2] == "30.0 ± 14.1" and "2 trials" in table.notes[0]


def test_a_table_as_text_aligns_numbers_at_the_right():
    table = figures.Table(("name", "value"), (("a|b", "1.5"), ("c", "22.0")), "Caption", ("note",))
    lines = ["Caption", "name  value", "----  -----", "a|b     1.5", "c      22.0", "note"]
    assert table.text().splitlines() == lines


def test_result_bars_stand_for_the_numbers():
    ax = figures.results_bars(RESULTS)
    assert sorted(patch.get_height() for patch in ax.patches) == pytest.approx([25, 30, 40])
    assert len({patch.get_hatch() for patch in ax.patches}) == 2
    assert words(ax.get_xticklabels()) == ["acp", "c-lofi"]
    assert sorted(words(ax.texts)) == ["25.0", "30.0", "40.0"]


SUMS = {  # taken from the text of the paper and its supplement by another script
    ("1", ANET): (4, [198.64, 136.3, 30.58, 134.08]),
    ("1", HACS): (4, [141.2, 89.75, 25.88, 91.11]),
    ("2", ANET): (6, [302.0, 209.15, 47.23, 205.02]),
    ("2", HACS): (6, [222.68, 144.32, 41.74, 145.21]),
    ("3", ANET): (10, [458.12, 280.47, 58.71, 276.92]),
    ("4", HACS): (3, [102.28, 65.99, 19.12, 66.61]),
    ("5", ANET): (4, [199.41, 138.21, 33.07, 135.67]),
    ("6", ANET): (6, [302.5, 209.99, 49.34, 205.94]),
    ("7", ANET): (6, [288.59, 196.3, 43.08, 193.76]),
    ("A", ANET): (2, [67.0, 98.31, 113.01, 150.46, 134.3]),
    ("B", ANET): (4, [200.0, 139.14, 32.18, 136.13]),
    ("C", ANET): (2, [93.27, 65.35, 10.11, 63.23]),
    ("C", HACS): (2, [60.36, 37.69, 8.34, 38.43]),
    ("D", ANET): (2, [100.32, 69.32, 15.84, 68.08]),
}


@pytest.mark.parametrize("table", SUMS)
def test_column_sums_equal_those_of_the_printed_tables(table):
    rows = figures.paper_numbers(*table)
    sums = [sum(value or 0 for value in column) for column in zip(*(row.values for row in rows))]
    assert len(rows) == SUMS[table][0] and sums == pytest.approx(SUMS[table][1])


def test_rows_printed_twice_agree_except_where_noted():
    rows = [r for r in figures.paper_numbers(dataset=ANET) if "0.5" in r.printed]
    r18 = [r for r in rows if "R18" in r.setting and "R(2+1)D" not in r.setting]
    acp = {r.values for r in r18 if r.method == "ACP"}
    lofi = {r.values for r in r18 if r.method in ("LoFi", "Long C-LoFi")}
    assert acp == {(49.64, 34.16, 7.68, 33.59)} and lofi == {(50.68, 35.16, 8.16, 34.49)}
    hacs = [r for r in figures.paper_numbers(dataset=HACS) if r.method in ("LoFi", "Long C-LoFi")]
    assert len({r.values for r in hacs}) == 2 and all("disagree" in r.note for r in hacs)


def test_paper_and_ours_meet_in_one_row():
    of_paper = {"encoder": "tsm-r18", "head": "gtad", "protocol": "activitynet", "videos": 4728}
    results = RESULTS | of_paper | {"subset": "validation"}
    rows = {row[0]: row[1:] for row in figures.paper_vs_ours(results).rows}
    assert rows["ACP"] == ("49.64", "34.16", "7.68", "33.59", "50.0", "25.0", "5.0", "30.0", "-3.6")
    assert rows["Long C-LoFi"][-2:] == ("40.0", "+5.5")  # "c-lofi" is the paper's long cycle
    assert rows["T-LoFi"][-1] == "–"
    for other in ({"head": "bmn"}, {"encoder": "tsm-r50"}, {"videos": 20}):
        table = figures.paper_vs_ours(results | other)
        assert {row[-1] for row in table.rows} == {"–"} and len(table.notes) == 1
        assert table.notes[0].startswith(f"{next(iter(other))}: ")
    hacs = figures.paper_vs_ours(results | {"videos": 5981}, "HACS-1.1")
    assert hacs.rows[0][4] == "23.00" and hacs.rows[0][-1] == "+7.0"
    assert figures.paper_table("D").rows[1][3] == "50.68 ± 0.12"


def test_a_run_prints_the_tables_of_its_encoder_head_and_trials():
    def titles(**other):
        tables = figures.paper_tables(RESULTS | like_paper | other)
        return [table.caption.split(",")[0].removeprefix("Table ") for table in tables]

    like_paper = {"encoder": "tsm-r18", "head": "gtad", "protocol": "activitynet"}
    like_paper |= {"videos": 4926, "subset": "validation"}
    assert titles() == ["1", "2", "3", "6", "7"]
    assert titles(encoder="tsm-r34") == ["6"]
    (table,) = figures.paper_tables(RESULTS | like_paper | {"encoder": "tsm-r34"})
    rows = {row[:2]: row[6:] for row in table.rows}
    assert rows["Long C-LoFi", "TSM-R34"] == ("70.0", "45.0", "25.0", "40.0", "+5.3")
    assert set(rows["Long C-LoFi", "TSM-R18"]) == {"–"}
    recall = {"ar@1": 0.3, "ar@5": 0.5, "ar@10": 0.6, "ar@100": 0.75, "auc": 0.67}
    low = [result(f"{name} at 25×8×224²", "shared", 0.3) for name in ("pre-trained", "end-to-end")]
    rows = [result("t-lofi", "shared", 0.34) | recall, *low, result("acp", "shared", 0.3)]
    assert titles(rows=rows) == ["2", "5", "B", "C"]
    assert titles(rows=rows, head="bmn") == ["A"]
    (table,) = figures.paper_tables(RESULTS | like_paper | {"rows": rows, "head": "bmn"})
    assert table.rows[1][6:] == ("30.0", "50.0", "60.0", "75.0", "67.0", "-0.5")
    trials = [result("c-lofi", "shared", value) | {"lr": 0.002} for value in (0.33, 0.35)]
    assert titles(rows=trials)[-1] == "D"
    table = figures.paper_tables(RESULTS | like_paper | {"rows": trials})[-1]
    assert table.rows[1][8] == "34.0 ± 1.4" and table.rows[1][-1] == "-0.5"
    assert "c-lofi 0.002" in figures.results_table(trials).notes[1]


def test_the_printed_tables_keep_their_inconsistencies():
    assert "should be +0.42 and +0.68" in figures.paper_table("A").notes[0]


# Reports ------------------------------------------------------------------------------------


def test_report_is_well_formed_and_needs_nothing_else(tmp_path):
    sections = {
        "": ["An introduction with <angle> & ampersand, for $5."],
        "Results": [figures.results_table(RESULTS)],
        "Figure": [report.Picture(plt.subplots()[1], 'What "it" shows.')],
        "More": [report.Details("Fold", "a < b")],
    }
    path = report.write_report(tmp_path / "deep" / "report.html", "A <title>", sections)
    document = path.read_text(encoding="utf-8")
    names, nested = re.findall(r"<([a-z]\w*)", document), []
    for closes, name in re.findall(r"<(/?)([a-z]\w*)", document):
        if closes:
            assert nested.pop() == name
        elif name not in ("meta", "img"):
            nested.append(name)
    assert not nested
    assert [tag for tag in names if tag in ("h1", "nav", "h2")] == ["h1", "nav", "h2", "h2", "h2"]
    assert {"table", "thead", "caption", "figure", "figcaption", "details", "main"} <= set(names)
    sources = re.findall(r'(?:src|href)="([^"]*)', document)
    assert sources and all(source.startswith(("data:image/png;base64,iVBORw0KGgo", "#"))
                           for source in sources)  # fmt: skip
    assert "http" not in document and "<script" not in document and "@import" not in document
    assert "&lt;angle&gt; &amp; ampersand, for $5" in document and "a &lt; b" in document
    assert "prefers-color-scheme: dark" in document and "@media print" in document
    assert 'alt="What &quot;it&quot; shows."' in document
    with pytest.raises(ValueError, match="got int"):
        report.write_report(path, "x", {"bad": [3]})
    assert path.read_text(encoding="utf-8") == document and list(path.parent.iterdir()) == [path]


# All figures --------------------------------------------------------------------------------

BROKEN = {**result("acp", "own", 0.2), "map": [0.5, 0.4, 0.3]}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: as_spans([(1, 2), (5, 4)]), "segment 1 runs from 5 to 4"),
        (lambda: as_spans([(1, 2, "a", 0.1, 7)]), "5 entries"),
        (lambda: figures.timeline({}, 0.0), "duration_s"),
        (lambda: lectures.film(np.zeros((4, 5), np.uint8)), r"\(4, 5\)"),
        (lambda: figures.thumbnails(FRAMES, [0, 1, 2], 3.0), "6 frames need as many times, got 3"),
        (lambda: figures.thumbnails(np.zeros((2, 3, 4, 4)), [0, 1], 3.0), "n, H, W, 3"),
        (lambda: figures.confidence_map(np.ones((2, 4, 4))), r"\(2, 4, 4\)"),
        (lambda: figures.boundary_curves([0, 1], [1]), "both be"),
        (lambda: lectures.salience({"a": np.zeros((1, 2, 3))}), r"a must be \(channels, steps\)"),
        (lambda: lectures.neighbour_graph([[0, 3], [1, 1], [2, 2]]), "0 … 2"),
        (lambda: figures.loss_curves({"T": [{"step": 0, "loss": 1.0}]}, key="acc"),
         r"'T' has no finite 'acc'.*\['loss', 'step'\]"),
        (lambda: tables.results_rows([BROKEN]), "3 values for 10"),
        (lambda: tables.results_rows([{"method": "acp", "classes": "own", "average_map": 0.2}]),
         r"row 0 lacks \['map'\]"),
        (lambda: figures.Table(("name", "value"), (("a",),)), "row 0 has 1 entries"),
        (lambda: figures.paper_numbers("8"), "no rows for '8'.*Table 7, Table A"),
        (lambda: report.Picture(plt.figure(), " "), "caption"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def every_figure():
    square = np.random.default_rng(0).uniform(size=(20, 20))
    log = [{"step": i, "loss": 1.0} for i in range(30)]
    known = {"duration_s": 100.0}
    ends, knn, times = (square[0], square[1]), np.argsort(square, 1)[:, :3], np.arange(6) * 15 + 5
    yield figures.timeline(LANES, 100.0)
    yield figures.video_timeline(FRAMES, times, LANES, 100.0, boundaries=ends, title="v")
    yield figures.confidence_map(square, truth=TRUTH_LANE, **known)
    yield lectures.label_map(square, truth=TRUTH_LANE, **known)
    yield figures.similarity(square, TRUTH_LANE, **known)
    yield figures.boundary_curves(*ends, TRUTH_LANE, **known)
    yield lectures.salience({"before": square, "mask": square[0]}, TRUTH_LANE, **known)
    yield lectures.neighbour_graph(knn, TRUTH_LANE, **known)
    yield figures.loss_curves({"a": log, "b": log})
    yield lectures.precision_recall({"a": ([0.5, 1.0], [1.0, 0.7])})
    yield lectures.bytes_by_layer({f"layer{i}": 2.0**i for i in range(20)})
    yield lectures.bytes_by_configuration({"full": 321 * 2**30, "T": 80 * 2**30})
    yield figures.results_bars(RESULTS)


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


def test_no_figure_has_small_text_or_text_that_is_cut_off():
    for i, drawn in enumerate(every_figure()):
        figure = drawn if isinstance(drawn, plt.Figure) else drawn.get_figure(root=True)
        renderer = figure.canvas.get_renderer()
        for text in drawn_texts(figure):
            where = f"figure {i}: {text.get_text()!r}"
            assert text.get_fontsize() >= 9, where
            box = text.get_window_extent(renderer)
            inside_x = box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1
            inside_y = box.y0 >= -1 and box.y1 <= figure.bbox.y1 + 1
            assert inside_x and inside_y, (where, box)


def test_figures_know_nothing_of_training():
    code = (
        "import sys, lofi.figures; print([m for m in sys.modules if m.startswith('lofi.training')"
        " or m.split('.')[0] in ('torch', 'scipy', 'pandas')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.strip() == "[]", run.stderr
