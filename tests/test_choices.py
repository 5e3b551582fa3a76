"""One set of segments under several protocols: each row against a file with that change."""

import numpy as np
import pytest

from lofi.detection import Detection
from lofi.evaluation import detection_map, protocol_choices


def world() -> tuple[dict, dict, dict]:
    """Ground truth with a duplicate, a zero-length instance and a missing video; two class sources:
    every segment with the right class and, lower, a wrong one; and with the right one alone."""
    spans = {"u": [(0, 10)], "v": [(0, 10), (0, 10.0005), (20, 30), (40, 40)], "w": [(5, 9)]}
    label = {"u": "a", "v": "a", "w": "b"}
    gt = {
        "database": {
            v: {
                "subset": "validation",
                "annotations": [{"segment": s, "label": label[v]} for s in its],
            }
            for v, its in spans.items()
        }
    }
    found = {
        "v": [(0.04, 10.04, 0.90001), (20, 29, 0.8), (60, 70, 0.90002)],
        "w": [(5, 9, 0.7)],
    }
    other = {"a": "b", "b": "a"}
    oracle = {v: [Detection(s, e, label[v], c) for s, e, c in its] for v, its in found.items()}
    shared = {
        v: [*its, *(d._replace(label=other[d.label], score=d.score * 0.9) for d in its)]
        for v, its in oracle.items()
    }
    return gt, shared, oracle


def test_every_row_is_what_a_file_with_that_change_scores():
    gt, shared, oracle = world()
    rows = {r.name: r for r in protocol_choices(gt, {"shared": shared, "oracle": oracle})}
    base = detection_map(gt, shared).average_map

    def change(f) -> dict:
        return {v: [f(d) for d in its] for v, its in shared.items()}

    rounded = change(lambda d: d._replace(score=round(d.score, 4)))
    clean = {
        v: e | {"annotations": [a for a in e["annotations"] if a["segment"] not in dropped]}
        for dropped in [[(0, 10.0005), (40, 40)]]
        for v, e in gt["database"].items()
    }
    expected = {
        "shared classes": base,
        "oracle classes": detection_map(gt, oracle).average_map,
        "one class": detection_map(gt, oracle).average_map,
        "scores to 4 decimals": detection_map(gt, rounded).average_map,
        "scores to 4 decimals, reversed": detection_map(
            gt, {v: its[::-1] for v, its in list(rounded.items())[::-1]}
        ).average_map,
        "times to 0.1 s": detection_map(
            gt, change(lambda d: d._replace(start_s=round(d.start_s, 1), end_s=round(d.end_s, 1)))
        ).average_map,
        "clean truth": detection_map({"database": clean}, shared).average_map,
        "available videos": detection_map(gt, shared, available=["v", "w"]).available.average_map,
    }
    assert {name: row.result.average_map for name, row in rows.items()} == pytest.approx(expected)
    assert rows["one class"].change == pytest.approx(expected["one class"] - base)
    assert rows["available videos"].result.video_list == "available-2"
    assert rows["clean truth"].result.instances == 4


def test_the_choices_move_the_number():
    gt, shared, oracle = world()
    rows = {r.name: r.change for r in protocol_choices(gt, {"shared": shared, "oracle": oracle})}
    for name in ("oracle classes", "clean truth", "available videos"):
        assert rows[name] > 0.01
    # the false alarm at 60 s leads by 1e-5: rounded, file order decides who is first
    assert rows["scores to 4 decimals"] == 0 < rows["scores to 4 decimals, reversed"]
    assert np.isfinite(list(rows.values())).all()


def test_no_source_is_named():
    with pytest.raises(ValueError, match="give at least one source"):
        protocol_choices(world()[0], {})
