"""Video classes: files, fusion rules of the released code, and our own classifier."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.postprocessing import plain_soft_nms

from lofi import cli
from lofi import config as configs
from lofi.data.annotations import Segment, Video
from lofi.detection import (
    Detection,
    PostProcessing,
    VideoClasses,
    VideoClassifier,
    add_classes,
    detections,
    detector,
    main_labels,
    read_hacs_top2,
    read_untrimmednet,
    read_video_classes,
    soft_nms,
    soft_nms_bmn,
    suppress,
    train_video_classifier,
    true_classes,
)
from lofi.detection.classes import video_summary
from lofi.detection.detector import detect_stage
from lofi.detection.results import read_detections
from lofi.experiment import evaluate_stage, write_results
from lofi.heads import Proposals
from lofi.heads.maps import proposals
from lofi.training.head import train_head

SEGMENTS, SCORES = np.array([[0, 2], [4, 9.0]]), np.array([0.5, 0.25])


def table(detections: list[Detection], names: list[str]) -> np.ndarray:
    """(class, score, start, end) rows."""
    rows = [(names.index(d.label), d.score, d.start_s, d.end_s) for d in detections]
    return np.array(rows).reshape(-1, 4)


def suppressed(given: np.ndarray, sigma: float, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """A reference table -> segments in seconds as released, and scores, both to the bit those of
    the released algorithm's plain loop."""
    segments, scores = given[:, 1:3], given[:, 3] * given[:, 4]
    with np.errstate(invalid="ignore"):
        plain = plain_soft_nms(segments, scores, sigma)
    segments, scores = soft_nms(segments, scores, sigma)
    np.testing.assert_array_equal(np.column_stack([scores, segments]), plain)
    start, end = np.maximum(segments[:, 0], 0), np.minimum(segments[:, 1], 1)
    return np.stack([start, end], 1) * seconds, scores


def by_loop(
    segments: np.ndarray, scores: np.ndarray, weights: list[tuple[int, float]]
) -> np.ndarray:
    """(class, score, start, end) rows as the released fusion lists them."""
    rows = [
        (c, score * weight, *span)
        for c, weight in weights
        for span, score in zip(segments.tolist(), scores.tolist())
    ]
    return np.array(rows).reshape(-1, 4)


def assert_released(ours: np.ndarray, stored: np.ndarray, name: str) -> None:
    """The stored rows; scores but for the last bits of exp (see `assert_released` in test_nms)."""
    np.testing.assert_array_equal(ours[:, [0, 2, 3]], stored[:, [0, 2, 3]], name)
    np.testing.assert_allclose(ours[:, 1], stored[:, 1], rtol=2e-14, err_msg=name)


@pytest.mark.parametrize("sigma", [0.8, 0.3])
def test_anet_rule_equals_the_released_code(golden, sigma):
    stored = np.load(golden("postproc.npz"))
    info = json.loads(golden("postproc.json").read_text())
    names, expected = info["class_order"], stored[f"anet_{sigma}_out"]
    for i, video in enumerate(info["anet_videos"]):
        given = stored["anet_in"][stored["anet_in"][:, 0] == i]
        segments, scores = suppressed(given, sigma, video["duration_second"])
        class_scores = (stored["anet_class_scores_u16"][i] + 0.5) / 65536
        ours = table(add_classes(segments, scores, class_scores, names, "anet"), names)
        best = np.argsort(-class_scores, kind="stable")[:2].tolist()
        loop = by_loop(segments, scores, [(c, class_scores[c]) for c in best])
        np.testing.assert_array_equal(ours, loop, video["name"])
        assert_released(ours, expected[expected[:, 0] == i][:, 1:], video["name"])


def test_hacs_rule_equals_the_released_code(golden, shared_data):
    stored = np.load(golden("postproc.npz"))
    info = json.loads(golden("postproc.json").read_text())
    hacs_names = (shared_data / "hacs/action_name.csv").read_text().split("\n")[1:201]
    order, expected = info["class_order"], stored["hacs_0.8_out"]
    known = [v for v in info["hacs_videos"] if v != info["hacs_training_video_skipped"]]
    classes = read_hacs_top2(shared_data / "hacs/hacs_val_cls_top2.json", hacs_names, known)
    for i, video in enumerate(info["hacs_videos"]):
        rows = expected[expected[:, 0] == i][:, 1:]
        if video not in known:
            assert len(rows) == 0
            continue
        given = stored["anet_in"][stored["anet_in"][:, 0] == i]
        segments, scores = suppressed(given, 0.8, info["anet_videos"][i]["duration_second"])
        ours = table(add_classes(segments, scores, classes.of(video), hacs_names, "hacs"), order)
        first, second = np.sort(classes.of(video))[:-3:-1]
        label = order.index(hacs_names[int(np.argmax(classes.of(video)))])
        loop = by_loop(segments, scores, [(label, first / (first + second))])
        np.testing.assert_array_equal(ours, loop, video)
        assert_released(ours, rows, video)


def test_thumos_pipeline_equals_the_released_code_on_all_test_videos(golden, shared_data):
    stored = np.load(golden("postproc_thumos.npz"))
    info = json.loads(golden("postproc.json").read_text())["thumos"]
    classes = read_untrimmednet(shared_data / "thumos14/uNet_test.npy")
    with open(shared_data / "thumos14/thumos14_test_groundtruth.csv") as file:
        videos = {row["video-name"]: row for row in csv.DictReader(file)}
    scores = stored["in_clr_u16"] / 65536 * (stored["in_reg_u16"] / 65536)
    names, total, post = info["class_order"], 0, PostProcessing.thumos14()
    for i, video in enumerate(info["out_videos"]):
        mine = [w for w, (name, _) in enumerate(info["windows"]) if name == video]
        frames, fps = (float(videos[video][x]) for x in ("video-frames", "frame-rate"))
        windows = []
        for window in (stored["in_window"] == w for w in mine):
            segments, values = stored["in_frames"][window], scores[window]
            too_long = segments[:, 1] - segments[:, 0] >= 300  # as `MapHead.decode` has it
            windows.append(Proposals(segments / fps, np.where(too_long, 0.0, values)))
        kept = suppress(windows, post, joined=True)
        found = detections(kept, int(frames) / fps, post, classes.of(video), classes.names)
        ours = np.rint(table(found, names) * [1, 1e6, 10, 10]).astype(int)
        where = stored["out_video"] == i
        expected = [stored[f"out_{x}"][where] for x in ("class", "score_1e6", "segment_01s")]
        np.testing.assert_array_equal(ours, np.column_stack(expected), video)
        total += len(ours)
    assert total == info["n_out"]


def test_anet_rule_lists_all_with_the_best_class_then_all_with_the_next():
    found = add_classes(SEGMENTS, SCORES, np.array([0.25, 1.0, 0.5]), "abc")
    assert found == [
        Detection(0, 2, "b", 0.5),
        Detection(4, 9, "b", 0.25),
        Detection(0, 2, "c", 0.25),
        Detection(4, 9, "c", 0.125),
    ]


def test_thumos_rule_alternates_and_rounds():
    found = add_classes(SEGMENTS / 3, SCORES, np.array([1 / 3, 1.0]), "ab", "thumos")
    assert [d.label for d in found] == ["b", "a", "b", "a"]
    assert found[1] == Detection(0.0, 0.7, "a", 0.166667)


def test_hacs_rule_weighs_the_best_of_two():
    found = add_classes(SEGMENTS, SCORES, np.array([0, 12.0, 4.0]), "abc", "hacs")
    assert [(d.label, d.score) for d in found] == [("b", 0.375), ("b", 0.1875)]


def test_equal_class_scores_go_to_the_earlier_name_and_zero_is_left_out():
    found = add_classes(SEGMENTS[:1], SCORES[:1], np.array([0.5, 0.5, 0.5]), "abc")
    assert [d.label for d in found] == ["a", "b"]
    assert len(add_classes(SEGMENTS, SCORES, np.array([1.0, 0, 0]), "abc")) == 2


def test_class_files_in_both_layouts(tmp_path):
    (tmp_path / "a.json").write_text('{"results": {"v_x": [0.1, 0.9]}, "class": ["run", "jump"]}')
    (tmp_path / "b.json").write_text('{"x": [{"label": "run", "score": 0.1}], "y": []}')
    first, second = (read_video_classes(tmp_path / f) for f in ("a.json", "b.json"))
    assert first.names == ("run", "jump") and first.of("x").tolist() == [0.1, 0.9]
    assert second.names == ("run",) and second.of("y").tolist() == [0]
    assert first.accuracy({"x": "jump"}) == 1.0
    with pytest.raises(ValueError, match="no scores for video z"):
        first.of("z")


def test_the_hacs_file_by_position_is_read_with_the_ids_and_classes_of_the_test_set(
    shared_data, tmp_path
):
    path = shared_data / "hacs/hacs_val_cls_top2.json"
    names = (shared_data / "hacs/action_name.csv").read_text().split("\n")[1:201]
    ids = [f"id{i:04d}" for i in range(5981)]
    shuffled = read_video_classes(path, sorted(names), ids[::-1])
    assert shuffled.names == tuple(names)  # "Rock-paper-scissors" stands before "Rock climbing"
    rows = json.loads(path.read_text())
    for i in (0, 1, 5980):
        expected = dict.fromkeys(names, 0.0)
        expected |= {names[entry["label"]]: entry["score"] for entry in rows[str(i)]}
        assert dict(zip(shuffled.names, shuffled.of(ids[i]))) == expected
    with pytest.raises(ValueError, match=r"5981 videos by position, but there are 5970 test"):
        read_video_classes(path, names, ids[:5970])


NAMES = ("BaseballPitch", "Diving", "Shotput")
TEST_IDS = tuple(f"video_test_{i:07d}" for i in (1, 2, 3, 4))


@pytest.fixture(scope="module")
def headed(tmp_path_factory):
    """A head trained on published features of eight videos, four of them for testing."""
    folder, rng = tmp_path_factory.mktemp("headed"), np.random.default_rng(0)
    rows = ["video,start_s,end_s,label,subset,duration_s,fps"]
    for i, key in enumerate((*(f"train{i}" for i in range(4)), *TEST_IDS)):
        subset = "validation" if key in TEST_IDS else "training"
        rows.append(f"{key},1,3,{NAMES[i % 3]},{subset},8,30")
        np.save(folder / f"{key}.npy", rng.normal(size=(10, 8)).astype(np.float32))
    (folder / "a.csv").write_text("\n".join(rows) + "\n")
    changes = {
        "data.annotations": str(folder / "a.csv"), "data.features.folder": str(folder),
        "data.features.width": 8, "data.features.kind": "npy", "full.snippets": 8,
        "head.kind": "bmn", "head_training.epochs": 1, "head_training.batch": 4,
    }  # fmt: skip
    config = configs.override(configs.preset("activitynet"), changes)
    train_head(config, folder / "run")
    return config, folder / "run"


def cuhk(path, without):
    rows = {f"v_{key}": [0.7, 0.2, 0.1] for key in TEST_IDS if key not in without}
    path.write_text(json.dumps({"results": rows | {"v_other": [1, 0, 0]}, "class": list(NAMES)}))


def top_three(path, without):  # m5_val.json
    rows = {key: [{"label": n, "score": 0.3} for n in NAMES] for key in TEST_IDS}
    path.write_text(json.dumps({k: v for k, v in rows.items() if k not in without} | {"other": []}))


def untrimmednet(path, without):
    np.save(path, np.full((len(TEST_IDS) - len(without), 101), 0.5))  # the last rows are missing


@pytest.mark.parametrize(
    ("write", "name"),
    [(cuhk, "cuhk.json"), (top_three, "m5.json"), (untrimmednet, "unet.npy")],
)
def test_videos_that_a_score_file_lacks_are_counted_and_told(headed, tmp_path, capsys, write, name):
    config, run = headed
    config = configs.override(config, {"detect.shared_classes": str(tmp_path / name)})
    write(tmp_path / name, TEST_IDS[3:])
    result = detect_stage(config, run)
    assert result["classes_missing"] == 1 and (result["items"], result["missing"]) == (4, 0)
    kept = json.loads((run / "published/detections/result.json").read_text())
    assert kept["classes_missing"] == 1
    assert set(read_detections(result["shared"])) == set(TEST_IDS)  # nobody is left out
    assert evaluate_stage(config, run)["classes_missing"] == 1
    assert write_results(config, run, ["published"], 0.0)["classes_missing"] == 1
    assert json.loads((run / "results.json").read_text())["classes_missing"] == 1
    words = ["lofi", "train", "detect", "--config", str(tmp_path / "config.json"), "--out", run]
    configs.save(config, tmp_path / "config.json")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", list(map(str, words)))
        cli.main()
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert "1 are not in detect.shared_classes and got classes of our own" in last

    write(tmp_path / name, ())
    assert detect_stage(config, run)["classes_missing"] == 0
    if write is untrimmednet:  # it knows 20 classes, the annotations three
        labels = {d.label for rows in read_detections(result["shared"]).values() for d in rows}
        assert labels <= set(NAMES)
    else:
        write(tmp_path / name, TEST_IDS)
        with pytest.raises(ValueError, match="class scores of none of the 4 test videos; it knows"):
            detect_stage(config, run)


def test_current_detections_stay_and_all_others_are_made_again(headed, tmp_path, monkeypatch):
    config, run = headed[0], tmp_path / "run"
    shutil.copytree(headed[1], run)
    scores = tmp_path / "cuhk.json"
    cuhk(scores, ())
    config = configs.override(config, {"detect.shared_classes": str(scores)})
    found, calls = detector.propose, []
    monkeypatch.setattr(detector, "propose", lambda *given: calls.append(1) or found(*given))

    place = run / "published/detections"

    def detected(config=config):
        calls.clear()
        result = detect_stage(config, run, again=False)
        assert result == detect_stage(config, run, again=False)  # at once
        assert all(result[name] == str(place / f"{name}.json") for name in ("shared", "proposals"))
        return len(calls)

    assert [detected(), detected()] == [4, 0]
    assert detect_stage(config, run) and len(calls) == 4  # unless asked for
    assert detected(configs.override(config, {"detect.sigma": 0.3})) == 4  # other settings
    assert [detected(), detected()] == [4, 0]
    for path in (place / "oracle.json", place / "shared.csv"):
        path.unlink()
        assert [detected(), path.is_file(), detected()] == [4, True, 0]
    written = (place / "shared.json").read_text()
    for name in ("shared.json", "result.json"):  # cut short, edited, of an older version
        for text in ("", "[]", "{}", written.replace("0.", "1.")):
            (place / name).write_text(text)
            assert [detected(), detected()] == [4, 0]
            assert (place / "shared.json").read_text() == written
    shutil.move(run, tmp_path / "moved")
    run = tmp_path / "moved"
    place = run / "published/detections"
    assert detected() == 0
    monkeypatch.setattr(detector, "code_hash", lambda: "of another version")
    assert [detected(), detected()] == [4, 0]
    cuhk(scores, TEST_IDS[3:])  # another file of scores
    assert [detected(), detected()] == [4, 0]
    train_head(configs.override(config, {"seed": 1}), run, resume=False, folder=tmp_path / "new")
    shutil.copy(tmp_path / "new/head.safetensors", run / "published/head")  # another head
    assert [detected(), detected()] == [4, 0]
    table = Path(config.data.annotations)
    rows = table.read_text()
    table.write_text(rows.replace(f"{TEST_IDS[0]},1,3", f"{TEST_IDS[0]},1,4"))  # and truth
    assert [detected(), detected()] == [4, 0]
    table.write_text(rows)


def test_malformed_class_files_are_named(tmp_path):
    for text in ("[]", '{"results": {"x": 1}, "class": ["a"]}', '{"x": [{"label": "a"}]}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=r"bad\.json"):
            read_video_classes(tmp_path / "bad.json")
    np.save(tmp_path / "bad.npy", np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"shape \(3, 4\)"):
        read_untrimmednet(tmp_path / "bad.npy")
    (tmp_path / "top2.json").write_text('{"0": [{"label": 7, "score": 1.0}]}')
    with pytest.raises(ValueError, match="class index 7 of 2"):
        read_hacs_top2(tmp_path / "top2.json", ["a", "b"], ["x"])
    with pytest.raises(ValueError, match="no entry 1 for video y"):
        read_hacs_top2(tmp_path / "top2.json", ["a"] * 8, ["x", "y"])


def videos() -> list[Video]:
    def video(name: str, *segments: Segment) -> Video:
        return Video(name, None, 60.0, None, "training", segments)

    return [
        video("x", Segment(0, 9, "run"), Segment(10, 11, "jump"), Segment(12, 13, "jump")),
        video("y", Segment(0, 1, "run"), Segment(2, 5, "swim")),
        video("z"),
    ]


def test_main_label_is_the_most_frequent_then_the_longest():
    assert main_labels(videos()) == {"x": "jump", "y": "swim"}


def test_true_classes_are_all_classes_of_the_video():
    truth = true_classes(videos())
    assert truth.names == ("jump", "run", "swim")
    assert truth.of("x").tolist() == [1, 1, 0] and truth.of("z").tolist() == [0, 0, 0]


def clouds(seed: int = 0) -> tuple[dict, dict]:
    """Three classes; the class channel is high in a quarter of the snippets only."""
    generator = torch.Generator().manual_seed(seed)
    features, labels = {}, {}
    for i in range(60):
        x = torch.randn(6, 16, generator=generator)
        x[i % 3, 4:8] += 3
        features[f"v{i}"], labels[f"v{i}"] = x, "abc"[i % 3]
    return features, labels


def test_own_classifier_generalises_and_a_file_keeps_it(tmp_path):
    classifier = train_video_classifier(*clouds())
    features, labels = clouds(seed=1)
    scores = classifier.video_classes(features)
    assert scores.accuracy(labels) > 0.95
    assert scores.of("v0").sum() == pytest.approx(1)
    classifier.save(tmp_path / "classifier.safetensors")
    again = VideoClassifier.load(tmp_path / "classifier.safetensors")
    assert again.names == ("a", "b", "c")
    np.testing.assert_array_equal(again.predict(features["v0"]), scores.of("v0"))


def test_own_classifier_is_the_minimum_of_its_loss():
    features, labels = clouds()
    classifier = train_video_classifier(features, labels, weight_decay=0.1)
    x = torch.stack([video_summary(f) for f in features.values()])
    x = ((x - classifier.mean) / classifier.std).double()
    y = torch.tensor(["abc".index(label) for label in labels.values()])
    weight = classifier.weight.double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(x @ weight.T + classifier.bias, y)
    (loss + 0.05 * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 1e-4


def test_classifier_errors_are_named(tmp_path):
    features, _ = clouds()
    with pytest.raises(ValueError, match="needs at least 2 classes"):
        train_video_classifier(features, {"v0": "a", "other": "b"})
    classifier = train_video_classifier(*clouds())
    with pytest.raises(ValueError, match="5 channels"):
        classifier.predict(torch.zeros(5, 4))
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="train it again"):
        VideoClassifier.load(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="one per class"):
        VideoClasses(("a", "b"), {"x": np.zeros(3)}, "file")


def random_maps(seed: int = 0, snippets: int = 16) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, snippets, snippets), (snippets,), (snippets,))
    return tuple(torch.rand(shape, generator=generator) for shape in shapes)


def test_one_video_from_maps_to_detections_with_and_without_the_grid():
    class_scores, names = np.array([0.1, 0.8, 0.3]), ("a", "b", "c")
    post = PostProcessing(score="cls*reg*start*end", top_k=7)
    table = proposals(random_maps(), 32.0, score=post.score)
    kept = suppress([table], post)
    free = suppress([table._replace(cells=None)], post)  # as heads without an anchor grid
    np.testing.assert_allclose(kept.segments_s, free.segments_s)
    np.testing.assert_allclose(kept.scores, free.scores)
    plain = detections(kept, 32.0, post, class_scores, names)
    assert [d.label for d in plain] == ["b"] * 7 + ["c"] * 7
    assert all(0 <= d.start_s < d.end_s <= 30 for d in plain)  # 15/16 of the video
    assert {d.label for d in detections(kept, 32.0, post)} == {""}
    assert max(d.end_s for d in detections(kept, 9.0, post)) <= 9  # cut where the video ends
    with pytest.raises(ValueError, match="3 class scores for 2 names"):
        detections(kept, 32.0, post, class_scores, ("a", "b"))


def test_bmn_suppression_counts_in_shares_of_the_video():
    table = proposals(random_maps(), 32.0, rule="bmn")
    kept = suppress([table], PostProcessing.bmn())
    units, scores = soft_nms_bmn(table.cells / 16, table.scores, 0.4)
    np.testing.assert_array_equal(kept.scores, scores)
    np.testing.assert_array_equal(kept.segments_s, units * 32.0)
    with pytest.raises(ValueError, match="windows are joined by soft-NMS"):
        suppress([table], PostProcessing.bmn(), joined=True)
    assert len(kept.scores) == 100


def test_post_processing_prints_itself_and_refuses_nonsense():
    assert str(PostProcessing()) == (
        "gtad proposals scored cls*reg; gaussian soft-NMS 0.84, top 100; classes anet x 2"
    )
    assert PostProcessing(**PostProcessing.bmn().to_json()) == PostProcessing.bmn()
    for field in ({"rule": "x"}, {"suppression": "x"}, {"class_rule": "x"}, {"sigma": 0.0}):
        with pytest.raises(ValueError, match=next(iter(field))):
            PostProcessing(**field)
