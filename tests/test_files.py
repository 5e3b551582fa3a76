"""Outputs are whole or absent, whatever happens while they are written."""

import pytest

from lofi.files import atomic_path, read_json, save_tensors, write_json


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(tmp_path / "a.json", "x") == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_temporary_name_keeps_the_suffix_and_the_folder(tmp_path):
    with atomic_path(tmp_path / "deep" / "a.mp4") as temporary:
        assert temporary.suffix == ".mp4" and temporary.parent == tmp_path / "deep"
        temporary.write_bytes(b"x")
    assert (tmp_path / "deep" / "a.mp4").read_bytes() == b"x"


@pytest.mark.parametrize(("text", "found"), [("", "is empty"), ("{", "not JSON at line 1")])
def test_unreadable_json_says_where_and_what_was_expected(tmp_path, text, found):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.json: .*{found}.*expected a thing"):
        read_json(tmp_path / "a.json", "a thing")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_json(tmp_path / "a.json", "a thing")


def test_equal_tensors_and_metadata_give_equal_files(tmp_path):
    import torch
    from safetensors import safe_open

    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1)}
    metadata = {f"key{i}": f"wörd {i}" for i in range(8)}
    for i in range(5):
        save_tensors(tmp_path / f"{i}.safetensors", tensors, metadata)
    assert len({(tmp_path / f"{i}.safetensors").read_bytes() for i in range(5)}) == 1
    with safe_open(tmp_path / "0.safetensors", framework="pt") as file:
        found = file.metadata()
        assert len(found.pop("checksum")) == 64 and found == metadata
        assert torch.equal(file.get_tensor("a"), tensors["a"])
