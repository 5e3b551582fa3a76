"""Feature stores: what is written comes back, anything else is refused with what to do about it."""

import dataclasses

import numpy as np
import pytest
import torch

from lofi.config import PublishedFeatures
from lofi.data import Segment, Video
from lofi.data.features import (
    FeatureHeader,
    Features,
    FeatureStore,
    head_inputs,
    read_features,
    resize_features,
    write_features,
)
from lofi.data.published import published_grid, read_published
from lofi.data.snippets import Grid
from lofi.files import write_record

HEADER = FeatureHeader(
    encoder_sha256="ab" * 32, snippets=5, frames=8, pixels=224, frame_stride=8, rule="centred",
    encoder="tsm-r18", crop_ratio=0.875, num_frames=301, fps=29.97002997002997, resample_fps=0.0,
    window_stride=0, video="a", squeeze=1, amp="bf16",
)  # fmt: skip
EXPECTED = dataclasses.replace(HEADER, num_frames=None, fps=None, video=None)
CURE = "run: lofi train features --out runs/x"


def video(video_id: str, duration_s: float | None = 10.0, fps: float | None = None) -> Video:
    return Video(video_id, None, duration_s, fps, "training", (Segment(1.0, 3.0, "jump"),))


@pytest.fixture
def written(tmp_path):
    features = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    write_features(tmp_path / "a.safetensors", features, HEADER)
    return tmp_path / "a.safetensors", features


def finished(folder, skipped=()):
    rows = [{"item": item, "reason": "does not decode"} for item in skipped]
    write_record(folder / "result.json", {"videos": 1, "skipped": rows})


# ---------------------------------------------------------------------------------------- our files


def test_features_and_header_come_back_exactly(written):
    path, features = written
    found, header = read_features(path, HEADER)
    assert torch.equal(found, features) and header == HEADER
    assert header.grid() == Grid.whole(5, 301 / 29.97002997002997)
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]


def test_every_differing_field_is_named_with_both_values(written):
    path, _ = written
    changed = dataclasses.replace(HEADER, snippets=100, encoder_sha256="cd" * 32, rule=None)
    with pytest.raises(ValueError) as caught:
        read_features(path, changed)
    message = str(caught.value)
    assert "snippets is 5, expected 100" in message and "cdcd" in message and "abab" in message
    assert "pixels" not in message and "rule" not in message and "\n" not in message
    for field in dataclasses.fields(FeatureHeader):
        value = getattr(HEADER, field.name)
        other = value + "x" if isinstance(value, str) else value + 1
        with pytest.raises(ValueError, match=f"{field.name} is "):
            read_features(path, dataclasses.replace(HEADER, **{field.name: other}))
    loose = FeatureHeader(snippets=5, squeeze=1, amp="bf16")
    assert torch.equal(read_features(path, loose)[0], written[1])


def test_damaged_files_are_refused(written):
    path, _ = written
    data = bytearray(path.read_bytes())
    for broken in (data[: len(data) // 2], b"", b"hello", data[:-1] + bytes([data[-1] ^ 1])):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="extract the features again") as caught:
            read_features(path)
        assert str(path) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_features(path.with_name("b.safetensors"))


def test_other_safetensors_are_not_features(tmp_path):
    from safetensors.torch import save_file

    save_file({"features": torch.zeros(2, 5)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="format None"):
        read_features(tmp_path / "a.safetensors")


def test_wrong_shapes_and_values_are_not_written(tmp_path):
    path = tmp_path / "a.safetensors"
    for features, words in (
        (torch.zeros(4, 6), r"\(C, 5\)"),
        (torch.zeros(5), r"\(C, 5\)"),
        (torch.full((4, 5), torch.nan), "NaN"),
    ):
        with pytest.raises(ValueError, match=words):
            write_features(path, features, HEADER)
    assert not path.exists()


def test_resizing_is_that_of_the_published_loader(golden):
    reference = np.load(golden("feature_rescale.npz"))
    names = {key.split("/")[0] for key in reference} - {"quirk_channels_equal_L"}
    assert len(names) == 24
    for name in names:
        rows, expected = reference[f"{name}/rows"], reference[f"{name}/out"]
        found = resize_features(torch.from_numpy(rows.T.copy()), expected.shape[1]).numpy()
        tolerance = 1e-6 if len(rows) <= 40 else 1e-4
        assert np.abs(found - expected).max() < tolerance * max(1, np.abs(expected).max())


# ------------------------------------------------------------------------------- extracted features


def test_a_store_gives_features_with_their_grid(written):
    path, features = written
    finished(path.parent)
    store = FeatureStore.extracted(path.parent, EXPECTED, CURE)
    assert torch.equal(store["a"].values, features)
    assert store["a"].grid.duration_s == 301 / 29.97002997002997
    assert store.require([video("a")]) == [video("a")]
    other = dataclasses.replace(EXPECTED, encoder_sha256="cd" * 32)
    assert FeatureStore.extracted(path.parent, other, CURE).identity != store.identity


@pytest.mark.parametrize(
    ("field", "value"),
    [("encoder_sha256", "cd" * 32), ("crop_ratio", 1.0), ("resample_fps", 15.0),
     ("window_stride", 5), ("pixels", 112), ("snippets", 100)],
)  # fmt: skip
def test_features_that_were_made_otherwise_are_refused(written, field, value):
    path, _ = written
    finished(path.parent)
    expect = dataclasses.replace(EXPECTED, **{field: value})
    with pytest.raises(ValueError, match=f"{field} is .*, expected {value}"):
        FeatureStore.extracted(path.parent, expect, CURE)["a"]
    expect = dataclasses.replace(EXPECTED, encoder_sha256="cd" * 32)  # it was trained anew
    with pytest.raises(ValueError, match=f"{CURE} --no-resume$"):
        FeatureStore.extracted(path.parent, expect, CURE)["a"]


def test_an_unfinished_extraction_is_refused_and_says_how_to_end_it(written):
    path, _ = written
    with pytest.raises(
        ValueError, match="incomplete, features of 1 videos were written.*run: lofi"
    ):
        FeatureStore.extracted(path.parent, EXPECTED, CURE)
    with pytest.raises(FileNotFoundError, match="no features yet; run: lofi train features"):
        FeatureStore.extracted(path.parent / "none", EXPECTED, CURE)


def test_missing_videos_are_named_and_undecodable_ones_left_out_with_a_count(written, caplog):
    path, _ = written
    finished(path.parent, skipped=["broken"])
    store = FeatureStore.extracted(path.parent, EXPECTED, CURE)
    assert store.require([video("a"), video("broken")]) == [video("a")]
    assert (
        "1 of 2 videos have no features and are left out (broken: does not decode)" in caplog.text
    )
    with pytest.raises(
        FileNotFoundError, match=r"features of 1 of 3 videos \(missing: b, c\); run"
    ):
        store.require([video(name) for name in "abc"])


# ------------------------------------------------------------------------------- published features


@pytest.fixture
def rows():
    return np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)


def test_published_features_of_every_kind(tmp_path, rows):
    np.save(tmp_path / "a.npy", rows)
    np.save(tmp_path / "turned.npy", rows.T)
    np.save(tmp_path / "batch.npy", rows[None])
    np.savez(tmp_path / "a.npz", feats=rows, other=rows[:1])
    torch.save(torch.from_numpy(rows), tmp_path / "a.pt")
    np.savetxt(tmp_path / "a.csv", rows, delimiter=",", header="f0,f1,f2", comments="")
    for path in tmp_path.iterdir():
        found = read_published(path, PublishedFeatures(width=3))
        assert np.allclose(found.numpy(), rows.T), path.name
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["v_abc"] = rows
    setting = PublishedFeatures(str(tmp_path / "all.h5"), width=3, prefix="v_")
    store = FeatureStore.published(setting, [video("abc")])
    assert np.array_equal(store["abc"].values.numpy(), rows.T)


def test_unusable_published_features(tmp_path, rows):
    (tmp_path / "a.npy").write_bytes(b"hello")
    (tmp_path / "a.csv").write_text("f0,f1\n1,two\n")
    (tmp_path / "a.mat").write_bytes(b"hello")
    (tmp_path / "a.pt").write_bytes(b"hello")
    np.save(tmp_path / "flat.npy", np.zeros(5))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "nan.npy", np.full((2, 3), np.nan))
    np.save(tmp_path / "wide.npy", np.zeros((2, 4)))
    np.save(tmp_path / "square.npy", np.zeros((3, 3)))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError) as caught:
            read_published(path, PublishedFeatures(width=3))
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"shape \(2, 4\), but neither side is 3 channels"):
        read_published(tmp_path / "wide.npy", PublishedFeatures(width=3))
    with pytest.raises(FileNotFoundError):
        read_published(tmp_path / "none.npy", PublishedFeatures())


def test_rows_stand_at_the_published_seconds():
    """THUMOS14 I3D: row i is centred at (4 i + 8) / 30 seconds."""
    i3d = PublishedFeatures("x", stride=4, window=16, fps=30.0)
    grid = published_grid(72, i3d, video("a", duration_s=10.0))
    for i in (0, 1, 71):
        centre = grid.window(i, 1).start_s + grid.step_s / 2
        assert centre == pytest.approx((4 * i + 8) / 30)
    assert grid.covered_s == pytest.approx((71 * 4 + 16) / 30)
    native = published_grid(72, PublishedFeatures("x", stride=4, window=16), video("a", 10.0, 30.0))
    assert native == grid
    even = published_grid(100, PublishedFeatures("x"), video("a", 123.0))
    assert even == Grid.whole(100, 123.0)


def test_rows_that_end_elsewhere_than_the_video_are_refused():
    """The wrong frame rate would move every boundary."""
    tsp = PublishedFeatures("x", stride=16, window=16, fps=30.0)
    with pytest.raises(
        ValueError, match="cover 50.1 s, but 100.0 s are annotated; correct data.fe"
    ):
        published_grid(94, tsp, video("a", duration_s=100.0))
    with pytest.raises(ValueError, match="frame rate unknown; set data.features.fps"):
        published_grid(94, dataclasses.replace(tsp, fps=0.0), video("a"))


def test_an_incomplete_folder_is_refused_unless_that_is_wanted(tmp_path, rows, caplog):
    np.save(tmp_path / "v_a.npy", rows)
    setting = PublishedFeatures(str(tmp_path), width=3, prefix="v_")
    videos = [video("a"), video("b")]
    with pytest.raises(
        FileNotFoundError, match=r"1 of 2 videos \(missing: b\); complete the folder"
    ):
        FeatureStore.published(setting, videos).require(videos)
    fewer = dataclasses.replace(setting, allow_missing=True)
    assert FeatureStore.published(fewer, videos).require(videos) == [video("a")]
    assert "1 of 2 videos have no features" in caplog.text
    with pytest.raises(
        ValueError, match=r"none of 2 annotated videos \(found v_a, …\); set data.fe"
    ):
        FeatureStore.published(dataclasses.replace(setting, prefix=""), videos)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        FeatureStore.published(PublishedFeatures(str(tmp_path / "none")), videos)


def test_a_changed_file_changes_the_identity(tmp_path, rows):
    np.save(tmp_path / "a.npy", rows)
    setting, videos = PublishedFeatures(str(tmp_path), width=3), [video("a")]
    first = FeatureStore.published(setting, videos).identity
    assert FeatureStore.published(setting, videos).identity == first
    np.save(tmp_path / "a.npy", rows[:5])
    assert FeatureStore.published(setting, videos).identity != first


# ------------------------------------------------------------------------------- what a head sees


def test_whole_videos_are_resized_and_keep_their_seconds():
    grid = published_grid(94, PublishedFeatures("x", 16, 16, 15.0), video("a", duration_s=100.3))
    ((values, whole),) = head_inputs(Features(torch.randn(3, 94), grid), steps=100, stride=0)
    assert values.shape == (3, 100)
    assert whole.stride == 0 and whole.start_s == 0
    assert whole.length_s == pytest.approx(94 * 16 / 15) and whole.duration_s == grid.duration_s


def test_windows_are_half_a_window_apart_and_padded_with_zeros():
    values = torch.arange(10.0)[None]
    grid = Grid.strided(10, stride=4, fps=30.0, num_frames=40)
    parts = head_inputs(Features(values, grid), steps=4, stride=4)
    assert [part.grid.first_frame for part in parts] == [0, 8, 16, 24]
    assert [part.values[0, 0].item() for part in parts] == [0.0, 2.0, 4.0, 6.0]
    (short,) = head_inputs(Features(values[:, :3], grid.window(0, 3)), steps=4, stride=4)
    assert short.values.tolist() == [[0.0, 1.0, 2.0, 0.0]]
    for features, stride in (
        (Features(values, grid), 5),
        (Features(values, Grid.whole(10, 4.0)), 4),
    ):
        with pytest.raises(ValueError, match=f"data.window_stride is {stride}, but features stand"):
            head_inputs(features, steps=4, stride=stride)
