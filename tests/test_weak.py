"""Weak supervision: pseudo-labels, losses and proposals by hand; stages on feature files alone."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lofi.config import (
    Config,
    DataConfig,
    Optimisation,
    PostProcessing,
    PublishedFeatures,
    WeakConfig,
)
from lofi.data.features import Features
from lofi.data.snippets import Grid
from lofi.detection.runs import outer_inner, run_detections, run_proposals, runs
from lofi.encoders.dual import TinyDual, prompted_text
from lofi.experiment import STAGES, run_stage
from lofi.files import load_tensors
from lofi.training.weak import (
    CBP,
    VLP,
    contrast,
    distillation,
    on_axis,
    pseudo_labels,
    stretched,
    top_mean,
)
from lofi.weak_study import ROWS, compare_weak, frame_scores, gates, tables

SMALL = Optimisation(6, 4, "adam", 3e-3, weight_decay=0.0, decay=1.0)


def test_pseudo_labels_one_zero_ignored_and_conflicts():
    setting = WeakConfig(stretch=False)
    fore = torch.tensor([[[0.9, 0.9, 0.5, 0.1, 0.9]] * 2])
    back = torch.tensor([[[0.9, 0.1, 0.5, 0.1, 0.9]] * 2])
    present, mask = torch.tensor([[True, False]]), torch.tensor([[True] * 4 + [False]])
    labels = pseudo_labels(fore, back, present, mask, setting)
    assert labels[0, 0].tolist() == [1, -1, -1, 0, -1]  # both claim the second: ignored
    assert labels[0, 1].tolist() == [0, 0, 0, 0, -1]  # an absent class is background
    alone = pseudo_labels(fore, None, present, mask, setting)[0, 0]
    assert alone.tolist() == [1, 1, -1, -1, -1]  # zeros=none: nothing says background


def test_without_zeros_everything_is_foreground_is_optimal():
    setting = WeakConfig(stretch=False)
    fore, present = torch.tensor([[[0.9, 0.1, 0.1]]]), torch.tensor([[True]])
    mask, everywhere = torch.ones(1, 3, dtype=torch.bool), torch.full((1, 1, 3), 1 - 1e-6)
    trap = pseudo_labels(fore, None, present, mask, setting)
    assert distillation(everywhere, trap, present).item() < 1e-5
    whole = pseudo_labels(fore, fore, present, mask, setting)
    assert distillation(everywhere, whole, present).item() > 5


def test_distillation_is_a_mean_for_ones_and_one_for_zeros():
    p, present = torch.tensor([[[0.5, 0.8, 0.2, 0.9]]]), torch.tensor([[True]])
    labels = torch.tensor([[[1.0, 1.0, 0.0, -1.0]]])
    wanted = -(math.log(0.5) + math.log(0.8)) / 2 - math.log(0.8)
    assert distillation(p, labels, present).item() == pytest.approx(wanted, abs=1e-6)
    nothing = torch.full_like(labels, -1.0)
    assert distillation(p, nothing, present).item() == 0


def test_contrast_wants_foreground_together_and_skips_videos_without_both_kinds():
    present = torch.ones(1, 1, dtype=torch.bool)
    labels = torch.tensor([[[1.0, 1.0, 0.0]]])
    near = torch.tensor([[[1.0, 1.0, -1.0], [0.0, 0.0, 0.0]]])
    apart = torch.tensor([[[1.0, -1.0, 1.0], [0.0, 0.0, 0.0]]])
    assert contrast(near, labels, present, 0.07) < 1e-5 < contrast(apart, labels, present, 0.07)
    assert contrast(near, labels.clamp(min=1), present, 0.07).item() == 0


def test_video_score_is_the_mean_of_the_largest_eighth_of_valid_steps():
    x = torch.arange(20.0)[None, None]
    mask = torch.arange(20)[None] < 16
    assert top_mean(x, mask).tolist() == [[14.5]]  # 15 and 14; 16 to 19 are not there
    assert top_mean(x[..., :3], mask[:, :3]).tolist() == [[2.0]]
    assert stretched(x, mask)[0, 0, :16].tolist() == pytest.approx((torch.arange(16) / 15).tolist())


def test_steps_behind_the_end_do_not_change_cbp():
    """So neither do the other videos of a batch, nor the number of processes."""
    torch.manual_seed(0)
    setting = WeakConfig(width=16, heads=2, levels=3, steps=32, prompts=2, layers=2)
    dual = TinyDual(None, ["long", "jump"], 0, 8)
    for branch in (CBP(8, 3, setting), VLP(dual, ["Jump", "LongJump", "Long"], setting)):
        for steps in (13, 16):  # no multiple of the coarsest level's step, and one
            x = torch.randn(1, 8, steps)
            alone = branch.eval()(x, torch.ones(1, steps, dtype=torch.bool))
            longer = torch.cat([x, torch.full((1, 8, 30 - steps), 7.0)], 2)
            far = branch(longer, torch.arange(30)[None] < steps)
            torch.testing.assert_close(far.probability[..., :steps], alone.probability)
            torch.testing.assert_close(far.video, alone.video)
        assert alone.probability.shape == (1, 3, 16)


def test_vlp_begins_as_the_frozen_encoders_and_without_anything_is_them():
    """Prompts and temporal layers are N(0, 0.01), so the start is near zero-shot."""
    dual = TinyDual(None, ["ring", "cross"], 0, 8).requires_grad_(False)
    names, x = ["ring", "cross"], torch.randn(1, 8, 5)
    mask = torch.ones(1, 5, dtype=torch.bool)
    text = prompted_text(dual, dual.tokenize(names), torch.zeros(0, 8))
    near = F.normalize(text, dim=1) @ F.normalize(x[0], dim=0) / 0.07
    bare = VLP(dual, names, WeakConfig(prompts=0, layers=0, heads=2))
    torch.testing.assert_close(bare(x, mask).probability[0], near.softmax(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layered = VLP(dual, names, WeakConfig(prompts=0, layers=2, heads=2))
    assert (layered(x, mask).features - x).abs().max() < 0.1
    assert not any(p.requires_grad for p in dual.parameters())


def test_classes_that_only_motion_tells_apart_share_a_probability():
    dual = TinyDual(None, ["ring", "cross", "up", "left"], 0, 8)
    names = ["ring up", "ring left", "cross up"]
    branch = VLP(dual, names, WeakConfig(prompts=0, layers=0, heads=2, prob="pair"))
    assert branch.visible.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    found = branch(torch.randn(1, 8, 4), torch.ones(1, 4, dtype=torch.bool)).probability[0]
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0] + found[2], torch.ones(4))


def test_runs_scores_and_detections_by_hand():
    curve = np.array([0.1, 0.6, 0.9, 0.2, 0.7, 0.7, 0.7, 0.7])
    assert runs(curve, 0.5).tolist() == [[1, 3], [4, 8]]
    assert outer_inner(curve, 1, 3) == pytest.approx(0.75 - 0.15)
    grid = Grid.whole(8, 16.0)
    table = run_proposals(curve, grid, WeakConfig())
    assert table.segments_s.tolist() == [[2, 6], [8, 16]] and table.scores.tolist() == [0.9, 0.7]
    many = run_proposals(curve, grid, WeakConfig(thresholds=10, score="contrast"))
    assert len({tuple(span) for span in many.segments_s.tolist()}) == len(many.scores) > 2
    both = np.stack([curve, np.full(8, 0.05)])
    found = run_detections(both, grid, ("a", "b"), WeakConfig(), PostProcessing())
    assert {d.label for d in found} == {"a"}  # the other class is below theta_cls


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """16 training and 8 test videos of two classes; features that hold the answer and noise."""
    folder = tmp_path_factory.mktemp("weak")
    rng, database = np.random.default_rng(0), {}
    for name in ("i3d", "clip"):
        (folder / name).mkdir()
    for i in range(24):
        label, start = ("RingToss", "LongJump")[i % 2], int(rng.integers(2, 12))
        x = rng.normal(size=(24, 6)).astype(np.float32)
        y = rng.normal(size=(24, 8)).astype(np.float32)
        x[start : start + 8, i % 2] += 4
        y[start : start + 8, i % 2] += 4
        np.save(folder / "i3d" / f"v{i}.npy", x)
        np.save(folder / "clip" / f"v{i}.npy", y)
        segments = [{"segment": [start, start + 8], "label": label}]
        subset = "training" if i < 16 else "validation"
        database[f"v{i}"] = {"duration": 24.0, "subset": subset, "annotations": segments}
    (folder / "truth.json").write_text(json.dumps({"version": "t", "database": database}))
    return folder


def configured(features, **weak) -> Config:
    store = PublishedFeatures(str(features / "i3d"), width=6)
    data = DataConfig(preset="", annotations=str(features / "truth.json"), features=store)
    frames = PublishedFeatures(str(features / "clip"), width=8)
    sizes = {"steps": 32, "width": 16, "heads": 2, "levels": 2, "prompts": 2, "layers": 1}
    sizes |= {"warm_up": SMALL, "training": SMALL}
    weak = WeakConfig(frames=frames, **(sizes | weak))
    return Config(seed=1, data=data, weak=weak)


@pytest.mark.parametrize("prob", ["softmax", "sigmoid"])
def test_all_stages_on_feature_files_alone(features, tmp_path, prob):
    config = configured(features, prob=prob)
    for stage in ("weak-warm-up", "weak-b", "weak-f"):
        done = STAGES[stage].run(config, tmp_path)
        assert done["held_out_videos"] == 3 and 0 <= done["held_out_map"] <= 1
    found = STAGES["weak-detect"].run(config, tmp_path)
    assert "official-8" in found["protocol"] and found["classes"] == 2
    assert (tmp_path / "weak" / "f-1" / "detections.json").is_file()
    second = replace(config, weak=replace(config.weak, round=2))
    for stage in ("weak-b", "weak-f"):
        STAGES[stage].run(second, tmp_path)
    thumos = replace(config, detect=PostProcessing.thumos14())
    ensemble = replace(thumos, weak=replace(config.weak, ensemble=True))
    averages = STAGES["weak-detect"].run(ensemble, tmp_path)
    assert averages["map_0.1_0.7"] == pytest.approx(averages["average_map"], abs=1e-4)
    assert averages["map_0.1_0.5"] >= averages["map_0.3_0.7"] and len(averages["map"]) == 7


def test_a_killed_step_resumes_to_the_same_weights(features, tmp_path):
    config = replace(configured(features), checkpoint_every=2)

    class Killed(Exception):
        pass

    def kill(step, steps, record):
        if step == 5:
            raise Killed

    for stage in ("weak-warm-up", "weak-b", "weak-f"):
        STAGES[stage].run(config, tmp_path / "whole")
        with pytest.raises(Killed):
            STAGES[stage].run(config, tmp_path / "cut", on_step=kill)
        STAGES[stage].run(config, tmp_path / "cut")
    for name in ("warm-up", "b-1", "f-1"):
        files = [tmp_path / run / "weak" / name / "head.safetensors" for run in ("whole", "cut")]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_variants_share_the_warm_up_and_what_they_do_not_change(features, tmp_path):
    config = configured(features)
    STAGES["weak-warm-up"].run(config, tmp_path)
    for variant in ("", "zeros=none", "contrast=0,zeros=none"):
        for stage in ("weak-b", "weak-f"):
            STAGES[stage].run(config, tmp_path, variant=variant)
    found = {path.parent.relative_to(tmp_path / "weak").as_posix()
             for path in tmp_path.glob("weak/**/head.safetensors")}  # fmt: skip
    f_steps = {f"{variant}f-1" for variant in ("", "zeros=none/", "contrast=0,zeros=none/")}
    assert found == {"warm-up", "b-1", "contrast=0/b-1"} | f_steps
    with pytest.raises(ValueError, match="width is not of the B or F step alone"):
        STAGES["weak-f"].run(config, tmp_path, variant="width=8")
    with pytest.raises(ValueError, match="variant zero=none"):
        STAGES["weak-f"].run(config, tmp_path, variant="zero=none")


def test_two_processes_train_the_same_weights(features, tmp_path):
    once = Optimisation(2, 13, "sgd", 0.1, weight_decay=0.0)
    config = configured(features, warm_up=once)
    for name, processes in (("one", 1), ("two", 2)):
        run_stage("weak-warm-up", config, tmp_path / name, processes=processes)
    one, two = (
        load_tensors(tmp_path / name / "weak" / "warm-up" / "head.safetensors")[0]
        for name in ("one", "two")
    )
    assert all((one[key] - two[key]).abs().max() < 1e-5 for key in one)


def test_all_rows_and_gates_from_feature_files(features, tmp_path):
    few = replace(SMALL, epochs=5, batch=16)
    config = configured(features, warm_up=few, training=few, prob="pair")
    results = compare_weak(replace(config, preset="weak"), tmp_path, (1,))
    assert len(results["rows"]) == len(ROWS) + 1 and len(results["gates"]) == 8
    by_name = {(row["row"], row["seed"]): row for row in results["rows"]}
    names = "CBP, trained as long", "CBP + B + F"
    longer, taught = (by_name[name, 1]["recall"] for name in names)
    wanted = pytest.approx(100 * (taught - longer), abs=0.01)
    assert results["gates"][5]["differences"][0] == wanted
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["seeds"] == [1] and "official-8" in stored["protocol"]
    text = "\n".join(table.text() for table in tables(results))
    assert "trap: foreground alone" in text and "no verdict below 5 seeds" in text
    before = (tmp_path / "seed-1" / "weak" / "b-1" / "head.safetensors").stat().st_mtime_ns
    again = compare_weak(replace(config, preset="weak"), tmp_path, (1,))
    assert again["rows"] == results["rows"]
    after = (tmp_path / "seed-1" / "weak" / "b-1" / "head.safetensors").stat().st_mtime_ns
    assert before == after  # read, not trained again


def test_frame_scores_equal_counting_pairs_and_steps():
    values, truth = np.array([0.9, 0.6, 0.6, 0.2, 0.1]), np.array([1, 0, 1, 1, 0], bool)
    found = frame_scores(values, truth)
    pairs = [(a > b) + (a == b) / 2 for a in values[truth] for b in values[~truth]]
    assert found["auc"] == pytest.approx(np.mean(pairs))
    assert found["recall"] == found["precision"] == pytest.approx(2 / 3)
    assert found["share"] == found["base"] == 0.6


def changed(features, tmp_path, change) -> Config:
    """The data set with its annotation file changed."""
    content = json.loads((features / "truth.json").read_text())
    change(content["database"])
    (tmp_path / "truth.json").write_text(json.dumps(content))
    config = configured(features)
    data = replace(config.data, annotations=str(tmp_path / "truth.json"))
    return replace(config, data=data)


def test_bad_input_is_one_clear_line(features, tmp_path):
    run = STAGES["weak-warm-up"].run

    def rename(database):
        database["v16"]["annotations"][0]["label"] = "Diving"

    with pytest.raises(ValueError, match=r"class 'Diving' has no training video \(1 of 3"):
        run(changed(features, tmp_path, rename), tmp_path / "a")
    with pytest.raises(ValueError, match="training video v3 has no label; give it one"):
        run(changed(features, tmp_path, lambda d: d["v3"].update(annotations=[])), tmp_path / "b")
    config = configured(features)
    frames = replace(config.weak.frames, stride=50, window=50, fps=25.0)
    short = replace(config, weak=replace(config.weak, frames=frames))
    with pytest.raises(ValueError, match="v0: 24 rows, 50 frames apart"):
        run(short, tmp_path / "c")
    with pytest.raises(
        ValueError, match=r"class 'LongJump' has 2 tokens, -9 fit beside 84 prompts"
    ):
        long = replace(config, weak=replace(config.weak, prompts=42))
        run(long, tmp_path / "d")
        STAGES["weak-b"].run(long, tmp_path / "d")
    with pytest.raises(FileNotFoundError, match="run: lofi train weak-b "):
        run(config, tmp_path / "e")
        STAGES["weak-f"].run(config, tmp_path / "e")
    with pytest.raises(ValueError, match="set weak.frames.folder"):
        run(replace(config, weak=WeakConfig()), tmp_path / "f")
    with pytest.raises(ValueError, match="expected 0 <= low < high <= 1"):
        WeakConfig(delta_low=0.8)


def test_the_weak_world_has_filler_across_the_axis_and_still_context():
    from lofi.data.toypixels import Phase, _motion
    from lofi.data.toyworld import TOY, WEAK

    phases = (Phase("warm-up", 4, 14, 0.0, 1.0), Phase("action", 14, 42, 1.0, 1.35))
    for world, moves in ((TOY, False), (WEAK, True)):
        x, y, height = _motion(np.random.default_rng(0), world, 8.0, "left-right", phases, 50)
        assert np.ptp(x[4:13]) < 1e-9 < np.ptp(x[15:21])
        assert np.ptp(y[14:21]) < 1e-9  # the first block names the class
        assert (np.ptp(y[21:28]) > 5) == moves


def test_thumos14_from_feature_files_alone(shared_data, tmp_path):
    """Rendered values, real annotations and lists: it trains, evaluates and names its protocol."""
    from lofi.data import read_annotations

    truth = shared_data / "thumos14" / "thumos_gt.json"
    videos = read_annotations(truth)
    names = sorted({s.label for video in videos for s in video.segments})
    rng = np.random.default_rng(0)
    for folder in ("i3d", "clip"):
        (tmp_path / folder).mkdir()
    for video in videos:
        steps = int(max(s.end_s for s in video.segments) * 25 / 16) + 4
        x = rng.normal(size=(steps, 24)).astype(np.float32)
        for s in video.segments:
            first, last = int(s.start_s * 25 / 16), int(np.ceil(s.end_s * 25 / 16))
            x[first:last, names.index(s.label)] += 6
        np.save(tmp_path / "i3d" / f"{video.id}.npy", x)
        np.save(tmp_path / "clip" / f"{video.id}.npy", np.repeat(x, 2, 0)[:, :20])
    rate = {"fps": 25.0, "stride": 16, "window": 16}
    store = PublishedFeatures(str(tmp_path / "i3d"), **rate)  # rows are steps
    data = DataConfig(preset="", annotations=str(truth), features=store)
    data = replace(data, train_subset="train", test_subset="test")
    frames = PublishedFeatures(str(tmp_path / "clip"), fps=25.0, stride=8, window=8)
    training = Optimisation(1, 32, "adam", 3e-3, weight_decay=0.0, decay=1.0)
    weak = WeakConfig(
        frames=frames, steps=256, width=16, heads=2, levels=2, prompts=1, layers=1, theta_cls=0.3,
        warm_up=replace(training, epochs=3), training=training,
    )  # fmt: skip
    config = Config(data=data, weak=weak, detect=PostProcessing.thumos14())
    for stage in ("weak-warm-up", "weak-b", "weak-f"):
        assert STAGES[stage].run(config, tmp_path / "run")["held_out_videos"] == 40
    found = STAGES["weak-detect"].run(config, tmp_path / "run")
    assert found["protocol"].startswith("thumos14/test official-210 [")
    assert "tIoU 0.1:0.7 (7)" in found["protocol"]
    assert found["protocol"].endswith("20 classes (THUMOS14)") and found["classes"] == 20
    assert found["without_features"] == 0 and 0 <= found["map_0.3_0.7"] <= found["map_0.1_0.5"]


def test_two_stores_on_one_time_axis():
    ours = Features(torch.zeros(1, 4), Grid.strided(4, 16, 25.0, 64))
    frames = Features(torch.arange(64.0)[None], Grid.strided(64, 1, 25.0, 64))
    assert on_axis("v", ours, frames)[0].tolist() == [8, 24, 40, 56]  # the middle frame of each
    short = Features(torch.zeros(1, 20), Grid.strided(20, 1, 25.0, 20))
    with pytest.raises(ValueError, match="video v: 4 steps cover 2.6 s .* 20 cover 0.8 s"):
        on_axis("v", ours, short)


def test_a_store_with_half_of_a_video_is_refused(features, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(features, folder)
    np.save(folder / "clip" / "v2.npy", np.zeros((12, 8), np.float32))
    with pytest.raises(ValueError, match="video v2: 24 steps in data.features, 12 in weak.frames"):
        run_stage("weak-warm-up", configured(folder), tmp_path / "run")


def test_the_readme_holds_what_the_runs_say():
    """Every mean and verdict of the committed rows (python: `lofi.weak_study.gates`)."""
    root = Path(__file__).parent
    readme = (root.parent / "README.md").read_text()
    results = json.loads((root / "benchmarks" / "weak.json").read_text())
    results["gates"] = gates(results["rows"], results["labels"])
    rows, _, verdicts = tables(results)
    assert len(verdicts.rows) == 8 and len(results["seeds"]) == 5
    for cells in (*rows.rows, *verdicts.rows):
        assert f"| {' | '.join(cells)} |" in readme
