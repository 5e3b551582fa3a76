"""Feature files: what is written comes back, anything else is an error that says what differs."""

import dataclasses

import numpy as np
import pytest
import torch

from lofi.data.features import (
    FeatureHeader,
    read_feature_header,
    read_features,
    read_published_features,
    resize_features,
    write_features,
)

HEADER = FeatureHeader(
    encoder_sha256="ab" * 32, snippets=5, frames=8, pixels=224, frame_stride=8, rule="centred",
    encoder="tsm-r18", crop_ratio=0.875, num_frames=301, fps=29.97002997002997,
)  # fmt: skip


@pytest.fixture
def written(tmp_path):
    features = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    write_features(tmp_path / "a.safetensors", features, HEADER)
    return tmp_path / "a.safetensors", features


def test_features_and_header_come_back_exactly(written):
    path, features = written
    assert torch.equal(read_features(path, HEADER), features)
    assert torch.equal(read_features(path), features)
    assert read_feature_header(path) == HEADER
    assert HEADER.duration_s == 301 / 29.97002997002997
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
        if value is None:  # `resample_fps` came later; files without it have none
            continue
        other = value + "x" if isinstance(value, str) else value + 1
        with pytest.raises(ValueError, match=f"{field.name} is "):
            read_features(path, dataclasses.replace(HEADER, **{field.name: other}))


def test_an_expected_header_may_leave_fields_open(written):
    path, features = written
    assert torch.equal(read_features(path, FeatureHeader(None, 5, None, None)), features)


def test_another_frame_rate_is_another_feature(tmp_path):
    path = tmp_path / "a.safetensors"
    slow = dataclasses.replace(HEADER, resample_fps=15.0)
    write_features(path, torch.zeros(3, 5), slow)
    assert read_feature_header(path) == slow
    with pytest.raises(ValueError, match="resample_fps is 15.0, expected 0.0"):
        read_features(path, dataclasses.replace(HEADER, resample_fps=0.0))


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


def test_published_features_of_every_kind(tmp_path):
    rows = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", rows)
    np.savetxt(tmp_path / "a.csv", rows, delimiter=",", header="f0,f1,f2", comments="")
    for name in ("a.npy", "a.csv"):
        assert np.allclose(read_published_features(tmp_path / name).numpy(), rows.T)
        assert read_published_features(tmp_path / name, snippets=100).shape == (3, 100)
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["v_abc"] = rows
    for video_id in ("abc", "v_abc"):
        found = read_published_features(tmp_path / "all.h5", video_id=video_id)
        assert np.array_equal(found.numpy(), rows.T)
    for video_id, words in ((None, "video_id"), ("xyz", "no data set for video 'xyz'")):
        with pytest.raises(ValueError, match=words):
            read_published_features(tmp_path / "all.h5", video_id=video_id)


def test_unusable_published_features(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"hello")
    (tmp_path / "a.csv").write_text("f0,f1\n1,two\n")
    (tmp_path / "a.h5").write_bytes(b"hello")
    (tmp_path / "a.mat").write_bytes(b"hello")
    np.save(tmp_path / "flat.npy", np.zeros(5))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "nan.npy", np.full((2, 2), np.nan))
    for name in ("a.npy", "a.csv", "a.h5", "a.mat", "flat.npy", "object.npy", "nan.npy"):
        with pytest.raises(ValueError) as caught:
            read_published_features(tmp_path / name, video_id="abc")
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        read_published_features(tmp_path / "none.npy")
