"""Facts about the toy world, from its files and its pixels."""

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lofi.data.copies import write_video
from lofi.data.real_frames import keep_frames, read_frames
from lofi.data.toypixels import LUMA, Look, _real_background, appearances, pick_colours
from lofi.data.toyworld import (
    REAL,
    TINY,
    TOY,
    plan_clips,
    plan_videos,
    render_clip,
    render_video,
    write_world,
)
from lofi.data.video import decode_frames, probe
from lofi.files import sha256

SMALL = replace(TINY, source_clips=(16, 8), videos=(8, 4))
CLEAN = Look((7.0, 9.0), noise=0, contrast=0, exponent=2, jitter=0, distractor=0)
DECODED = [  # world, (height, width) that the loaders ask for
    (TOY, [(48, 56), (24, 28), (34, 40)]),
    (TINY, [(40, 40), (20, 20), (28, 28)]),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world") / "small", SMALL, seed=3)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def actor_pixels(frames: np.ndarray) -> np.ndarray:
    """(N, H, W) bool: where a frame of a CLEAN world is not the plain background."""
    return np.abs(frames.astype(int) - frames[0, 0, 0]).max(-1) > 20


# --- files ---------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_bytes(small, tmp_path):
    again = write_world(tmp_path / "again", SMALL, seed=3)
    first, second = contents(small.folder), contents(again.folder)
    assert first == second
    assert len(first) == 24 + 12 + 5  # clips, videos, two tables of truth, source.csv, two records


def test_another_seed_gives_other_videos(small, tmp_path):
    other = write_world(tmp_path, SMALL, seed=4)
    first, second = contents(small.folder), contents(other.folder)
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first)


def test_deleted_files_come_back_and_the_others_are_left_alone(small):
    before = contents(small.folder)
    files = [f for f in small.folder.rglob("*") if f.is_file()]
    gone = [small.annotations, *sorted(small.video_dir.iterdir())[:3]]
    times = {f: f.stat().st_mtime_ns for f in files if f not in gone and f != small.manifest}
    for file in gone:
        file.unlink()
    seen = []
    write_world(small.folder, SMALL, 3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert contents(small.folder) == before
    assert {f: f.stat().st_mtime_ns for f in times} == times


def test_a_killed_call_is_continued(small, tmp_path):
    def killed(done, total):
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path, SMALL, 3, progress=killed)
    assert not (tmp_path / "manifest.json").exists()
    seen = []
    write_world(tmp_path, SMALL, 3, progress=lambda done, total: seen.append(total))
    assert len(set(seen)) == 1 and 0 < seen[0] <= 36 - 10  # some were being written
    assert contents(tmp_path) == contents(small.folder)


def test_a_finished_world_is_not_rendered_again(small):
    def never(done, total):
        raise AssertionError("rendered")

    assert write_world(small.folder, SMALL, 3, progress=never) == small


def test_another_world_in_the_folder_is_refused_by_name_of_setting(small):
    noisy = replace(SMALL, source=replace(SMALL.source, noise=9), fps=4)
    before = contents(small.folder)
    with pytest.raises(ValueError, match=r"seed: 3 → 5, world\.fps: 8 → 4, world\.source\.noise"):
        write_world(small.folder, noisy, 5)
    assert contents(small.folder) == before


def test_a_changed_file_is_noticed(tmp_path):
    world = replace(SMALL, source_clips=(4, 0), videos=(1, 1))
    paths = write_world(tmp_path, world, 0)
    file = next(paths.video_dir.iterdir())
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="changed after rendering"):
        write_world(tmp_path, world, 0)


@pytest.mark.parametrize(("world", "sizes"), DECODED, ids=["toy", "tiny"])
def test_videos_decode_at_the_sizes_in_use(world, sizes, tmp_path):
    import decord

    paths = write_world(tmp_path, replace(world, source_clips=(1, 0), videos=(1, 0)), 0)
    video, clip = next(paths.video_dir.iterdir()), next(paths.source_dir.rglob("*.mp4"))
    assert (probe(video).num_frames, probe(video).fps) == (world.video_frames, 8)
    assert probe(clip).num_frames == world.clip_frames
    for height, width in sizes:
        reader = decord.VideoReader(str(video), width=width, height=height)
        direct = reader.get_batch([0, 5, 9]).asnumpy()  # decord itself misreads some widths
        assert np.array_equal(decode_frames(video, [0, 5, 9], (height, width)), direct)
        assert direct.shape == (3, height, width, 3)
    rendered = render_video(world, 0, plan_videos(world, 0)[0]).astype(float)
    error = decode_frames(video, range(world.video_frames)) - rendered
    assert 10 * np.log10(255**2 / np.square(error).mean()) > 20  # PSNR in dB; noise costs most


# --- real frames ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder with a short and a long video whose grey level counts frames, and half a video."""
    folder = tmp_path_factory.mktemp("clips")
    for name, length in (("short", 6), ("long", 100)):
        frames = (
            np.full((length, 72, 128, 3), 50, np.uint8)
            + np.arange(length, dtype=np.uint8)[:, None, None, None]
        )
        write_video(folder / f"{name}.mp4", frames, 8, crf=0)
    (folder / "torn.mp4").write_bytes((folder / "long.mp4").read_bytes()[:300])
    return folder


def test_frames_are_kept_with_their_sources_and_unreadable_videos_are_counted(clips, tmp_path):
    said = keep_frames(clips, tmp_path / "frames.npz")
    assert said.startswith("106 frames of 2 of 3 videos in ")
    assert "1 of 3 videos cannot be read (first: " in said and "torn.mp4: " in said
    long, short = read_frames(tmp_path / "frames.npz")
    assert (long.shape, short.shape) == ((100, 64, 114, 3), (6, 64, 114, 3))
    with np.load(tmp_path / "frames.npz") as file:
        names = [(name, sha256(clips / name)) for name in ("long.mp4", "short.mp4")]
        assert [*map(tuple, file["sources"].tolist())] == names  # no path of this machine
    before = (tmp_path / "frames.npz").read_bytes()
    keep_frames(clips, tmp_path / "frames.npz")
    assert (tmp_path / "frames.npz").read_bytes() == before
    other, torn = tmp_path / "other", tmp_path / "torn"
    for folder, name in ((other, "short"), (torn, "torn")):
        folder.mkdir()
        (folder / "a.mp4").write_bytes((clips / f"{name}.mp4").read_bytes())
    with pytest.raises(ValueError, match="frames of 2 other videos than those of"):
        keep_frames(other, tmp_path / "frames.npz")
    with pytest.raises(
        ValueError, match=r"1 of 1 videos cannot be read \(first: .*; give a folder"
    ):
        keep_frames(torn, tmp_path / "torn.npz")
    (tmp_path / "frames.npz").write_bytes(before[:500])
    for use in (lambda path: keep_frames(clips, path), read_frames):
        with pytest.raises(ValueError, match="damaged, or not of this kit .*; delete it, and give"):
            use(tmp_path / "frames.npz")


def test_a_real_world_needs_its_frames_and_keeps_to_them(clips, tmp_path):
    world = replace(REAL, source_clips=(4, 0), videos=(2, 1))
    with pytest.raises(FileNotFoundError, match="run: lofi tables --study --frames"):
        write_world(tmp_path / "a", world, 3)
    for name in ("a", "b"):
        (tmp_path / name).mkdir(exist_ok=True)
        keep_frames(clips, tmp_path / name / "frames.npz")
        write_world(tmp_path / name, world, 3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    manifest = json.loads((tmp_path / "a/manifest.json").read_text())
    assert manifest["frames"] == sha256(tmp_path / "a/frames.npz")
    plain = replace(world, real=False)
    assert plan_videos(world, 3) == plan_videos(plain, 3)  # only the pixels are others
    (tmp_path / "b/frames.npz").unlink()
    (clips / "short.mp4").rename(tmp_path / "short.mp4")
    keep_frames(clips, tmp_path / "b/frames.npz")
    (tmp_path / "short.mp4").rename(clips / "short.mp4")
    with pytest.raises(ValueError, match="differs in frames: "):
        write_world(tmp_path / "b", world, 3)


def test_backgrounds_are_consecutive_real_frames_forth_and_back():
    count = np.arange(6, dtype=np.uint8)[:, None, None, None]
    video = np.full((6, 64, 90, 3), (100, 120, 140), np.uint8) + count
    look = replace(CLEAN, contrast=255)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        frames, luma = _real_background(rng, REAL, look, np.zeros((64, 2)), [video])
        assert frames.shape == (64, 40, 40, 3) and np.ptp(frames, axis=(1, 2)).max() < 1e-3
        grey = frames[:, 0, 0, 0] - 100
        assert np.allclose(np.abs(np.diff(grey)), 1, atol=1e-3)
        assert grey.min() == pytest.approx(0, abs=1e-3) and grey.max() == pytest.approx(5, abs=1e-3)
        assert luma == pytest.approx(frames.mean((0, 1, 2)) @ LUMA, abs=1e-3)


def test_contrast_of_real_frames_is_lowered_never_raised():
    rng = np.random.default_rng(0)
    bold = rng.integers(0, 256, (70, 64, 64, 3), dtype=np.uint8)
    faint = (bold // 32 + 100).astype(np.uint8)
    for video in (bold, faint):
        shake = rng.normal(0, 0.4, (64, 2))
        frames, _ = _real_background(rng, REAL, REAL.target, shake, [video])
        found = (frames - frames.mean((0, 1, 2))).std()
        assert found == pytest.approx(18, rel=1e-3) if video is bold else found < 4


# --- tables --------------------------------------------------------------------------------------


def test_annotations_have_the_official_layout(small):
    found = json.loads(small.annotations.read_text())
    assert found.keys() == {"version", "taxonomy", "database"}
    assert {node["nodeName"] for node in found["taxonomy"]} == {"Root", *SMALL.classes}
    assert len(found["database"]) == 12
    for name, video in found["database"].items():
        assert (small.video_dir / f"{name}.mp4").is_file()
        assert probe(small.video_dir / f"{name}.mp4").duration_s == video["duration"] == 8.0
        assert video["subset"] in ("training", "validation")
        for annotation in video["annotations"]:
            start, end = annotation["segment"]
            assert 0 < start < end < video["duration"]
            assert annotation["label"] in SMALL.classes


def test_annotations_are_the_actions_of_the_events(small):
    database = json.loads(small.annotations.read_text())["database"]
    events = json.loads(small.events.read_text())
    assert events.keys() == database.keys()
    for name, phases in events.items():
        actions = [
            {"segment": p["segment"], "label": p["label"]} for p in phases if p["kind"] == "action"
        ]
        assert database[name]["annotations"] == actions
        times = [time for p in phases for time in p["segment"]]
        assert times == sorted(times)
        for before, phase, after in zip([None, *phases], phases, [*phases[1:], None]):
            if phase["kind"] == "action":  # context on both sides, without a gap
                assert (before["kind"], after["kind"]) == ("warm-up", "cool-down")
                assert before["segment"][1] == phase["segment"][0]
                assert phase["segment"][1] == after["segment"][0]


def test_source_table_lists_every_clip(small):
    with open(small.source_csv, newline="") as file:
        rows = list(csv.DictReader(file))
    found = {p.relative_to(small.folder).as_posix() for p in small.source_dir.rglob("*.mp4")}
    assert {row["clip"] for row in rows} == found
    assert all(row["clip"].split("/")[1] == row["label"].replace(" ", "_") for row in rows)


@pytest.mark.parametrize("world", [TOY, TINY], ids=["toy", "tiny"])
def test_classes_are_balanced_in_every_subset(world):
    for plans in (plan_clips(world, 0), plan_videos(world, 0)):
        for subset in ("training", "validation"):
            counts = Counter(plan.label for plan in plans if plan.subset == subset)
            assert set(counts) == set(world.classes)
            assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("world", [TOY, TINY], ids=["toy", "tiny"])
def test_timelines_are_as_long_as_stated(world):
    plans = plan_videos(world, 0)
    for plan in plans:
        lengths = {kind: [] for kind in ("warm-up", "action", "cool-down", "false start")}
        for phase in plan.phases:
            lengths[phase.kind].append(phase.end - phase.start)
        low, high = world.instance_frames
        assert all(low <= length <= high for length in lengths["action"])
        low, high = world.context_frames
        assert all(low <= n <= high for n in lengths["warm-up"] + lengths["cool-down"])
        assert plan.phases[0].start >= 2 and plan.phases[-1].end <= world.video_frames - 2
        assert len(lengths["false start"]) <= 1
    number = Counter(sum(p.kind == "action" for p in plan.phases) for plan in plans)
    assert set(number) == set(range(1, len(world.instances) + 1))
    share = np.mean([any(p.kind == "false start" for p in plan.phases) for plan in plans])
    assert abs(share - world.false_start) < 4 * 0.5 / len(plans) ** 0.5


# --- vigour: the one nuisance that carries the story -------------------------------------------


def test_vigour_says_nothing_about_the_class_in_the_source():
    vigour = {name: [] for name in TOY.classes}
    for clip in plan_clips(TOY, 0):
        vigour[clip.label].append(clip.vigour)
    means = [np.mean(values) for values in vigour.values()]
    deviation_of_mean = 12**-0.5 / min(map(len, vigour.values())) ** 0.5  # uniform on [0, 1]
    assert np.abs(np.array(means) - 0.5).max() < 4 * deviation_of_mean


def test_vigour_marks_the_action_in_the_target(small):
    events = json.loads(small.events.read_text())
    phases = [phase for video in events.values() for phase in video]
    action = [p["vigour"] for p in phases if p["kind"] == "action"]
    context = [p["vigour"] for p in phases if p["kind"] != "action"]
    assert max(context) + 0.3 < min(action)


@pytest.mark.parametrize("world", [TOY, TINY], ids=["toy", "tiny"])
def test_actors_swing_wider_and_stand_taller_inside_actions(world):
    clean = replace(world, target=CLEAN)
    for plan in plan_videos(clean, 1)[: len(world.classes)]:
        shown = actor_pixels(render_video(clean, 1, plan))
        rows, columns = np.arange(world.height), np.arange(world.width)
        size = {"action": [], "warm-up": []}
        for phase in plan.phases:
            part = shown[phase.start + 1 : phase.end - 1]
            area = part.sum((1, 2))
            y, x = part.sum(2) @ rows / area, part.sum(1) @ columns / area
            along, across = (x, y) if plan.label.endswith("left-right") else (y, x)
            assert np.ptp(across) < 1  # along one axis only
            if phase.kind in size:
                size[phase.kind].append((np.ptp(along), part.any(2).sum(1).mean()))
        action, context = np.mean(size["action"], 0), np.mean(size["warm-up"], 0)
        assert action[0] > 1.6 * context[0]  # peak to peak, pixels
        assert action[1] > 1.15 * context[1]  # height, pixels


@pytest.mark.parametrize("world", [TOY, TINY], ids=["toy", "tiny"])
def test_actors_are_there_in_their_phases_only_and_inside_the_crop(world):
    clean = replace(world, target=CLEAN)
    side = (world.width - world.actor_width) // 2
    for plan in plan_videos(clean, 2)[:8]:
        shown = actor_pixels(render_video(clean, 2, plan))
        expected = np.zeros(world.video_frames, bool)
        for group in appearances(plan.phases):
            expected[group[0].start : group[-1].end] = True
        assert np.array_equal(shown.any((1, 2)), expected)
        assert not shown[:, :, :side].any() and not shown[:, :, world.width - side :].any()


def test_clip_swing_follows_its_vigour():
    clean = replace(TOY, source=CLEAN)
    clips = [c for c in plan_clips(clean, 0)[:240] if c.label == "square left-right"]
    widths = []
    for clip in clips:
        shown = actor_pixels(render_clip(clean, 0, clip))
        widths.append(np.ptp(shown.sum(1) @ np.arange(TOY.width) / shown.sum((1, 2))))
    assert np.corrcoef(widths, [c.vigour for c in clips])[0, 1] > 0.9


def test_colours_keep_their_distance_in_luma():
    rng = np.random.default_rng(0)
    for mean in rng.uniform(60, 195, 200):
        luma = pick_colours(rng, mean, 60) @ LUMA
        assert np.abs(luma - mean).min() > 60 - 1e-3
        assert abs(luma[0] - luma[1]) < 1e-3


def test_a_video_too_short_for_its_phases_is_refused():
    with pytest.raises(ValueError, match="instances with context need at least"):
        plan_videos(replace(TINY, video_frames=30), 0)
