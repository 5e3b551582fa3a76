"""What stages hand to each other is whole and of this run, or refused; one run at a time."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lofi.config import GTADConfig
from lofi.data.features import FeatureHeader, FeatureStore, read_features, write_features
from lofi.detection.classes import VideoClassifier
from lofi.encoders import build_encoder, load_weights, save_encoder
from lofi.files import atomic_path, load_tensors, read_json, save_tensors, write_json, write_record
from lofi.heads.scaled import ScaledHead
from lofi.training.loop import held_signals
from lofi.training.run_folder import RunFolder

HEAD = GTADConfig(hidden=32, map_hidden=(16, 16), resolution=4)
HEADER = FeatureHeader(
    encoder_sha256="ab" * 32, snippets=5, frames=8, pixels=224, frame_stride=8, rule="centred",
    encoder="tsm-r18", crop_ratio=0.875, num_frames=301, fps=30.0, video="a",
)  # fmt: skip


def encoder_file(path: Path):
    save_encoder(build_encoder("tsm-toy", seed=0), path, {"method": "acp"})
    return lambda: load_weights(build_encoder("tsm-toy"), path, strict=False)


def head_file(path: Path):
    ScaledHead(HEAD, channels=4).save(path)
    return lambda: ScaledHead.load(path, HEAD)


def classifier_file(path: Path):
    VideoClassifier(("a", "b"), torch.ones(2, 4), *torch.ones(3, 4).unbind()).save(path)
    return lambda: VideoClassifier.load(path)


def features_file(path: Path):
    write_features(path, torch.arange(20.0).view(4, 5), HEADER)
    return lambda: read_features(path)


def checkpoint_file(path: Path):
    run = RunFolder(path.parent, {})
    run.save_checkpoint({"step": 3, "modules": {"a": {"weight": torch.ones(40)}}})
    (run.folder / "checkpoints" / "last.pt").replace(path)
    (run.folder / "checkpoints" / "last.pt").symlink_to(path)
    return run.load_checkpoint


def settings_file(path: Path):
    RunFolder(path.parent, {"seed": 0, "training": {"lr": 0.1}}).finish({})
    (path.parent / "config.json").rename(path)
    (path.parent / "config.json").symlink_to(path)
    return lambda: RunFolder(path.parent, {"seed": 0, "training": {"lr": 0.1}})


def result_file(path: Path):
    run = RunFolder(path.parent, {})
    run.finish({"accuracy": 0.25, "skipped": [{"item": "a", "reason": "b"}]})
    (path.parent / "result.json").rename(path)
    (path.parent / "result.json").symlink_to(path)
    return run.result


@pytest.mark.parametrize(
    "make",
    [encoder_file, head_file, classifier_file, features_file, checkpoint_file, settings_file,
     result_file],
)  # fmt: skip
def test_a_changed_bit_anywhere_is_found(make, tmp_path):
    """In lengths, names, shapes, metadata, padding, weights and the checksum itself."""
    path = tmp_path / "artefact"
    read = make(path)
    read()
    whole, draws = path.read_bytes(), torch.Generator().manual_seed(0)
    step = max(1, len(whole) // 200)
    places = sorted({*range(40), *range(0, len(whole), step), *range(len(whole) - 40, len(whole))})
    for place in (p for p in places if whole[p : p + 1] not in (b" ", b"\n")):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(torch.randint(8, (), generator=draws))
        path.write_bytes(damaged)
        with pytest.raises(ValueError) as caught:
            read()
        message = str(caught.value)
        assert "artefact" in message or str(tmp_path) in message, place
        assert "\n" not in message, place
    for cut in (0, 4, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError):
            read()
    path.write_bytes(whole)
    read()


def test_files_of_others_need_no_checksum_and_ours_do(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(2)}, path, metadata={"format": "pt"})
    assert load_tensors(path)[1] == {"format": "pt"}
    save_file({"x": torch.ones(2)}, path, metadata={"format": "lofi-head-1"})
    with pytest.raises(ValueError, match="lofi-head-1 file of version 1 without a checksum"):
        load_tensors(path)
    quoted = {"format": "lofi-x", "note": '"checksum":"' + "0" * 64 + '"'}
    save_tensors(path, {"x": torch.ones(2)}, quoted)
    tensors, metadata = load_tensors(path)
    assert metadata == quoted and torch.equal(tensors["x"], torch.ones(2))


def test_exchanged_feature_files_are_found(tmp_path):
    for video in "ab":
        header = FeatureHeader(snippets=5, num_frames=300, fps=30.0, video=video)
        write_features(tmp_path / f"{video}.safetensors", torch.zeros(4, 5), header)
    write_record(tmp_path / "result.json", {"skipped": []})
    shutil.copy(tmp_path / "b.safetensors", tmp_path / "a.safetensors")
    store = FeatureStore.extracted(tmp_path, FeatureHeader(snippets=5), "run: lofi train features")
    store["b"]
    with pytest.raises(ValueError, match="a.safetensors: holds the features of video b; run: lofi"):
        store["a"]


# ------------------------------------------------------------------------------------- run folders


@pytest.mark.parametrize("left", ["result.json", "metrics.jsonl", "encoder.safetensors"])
def test_a_folder_without_settings_is_refused_not_adopted(left, tmp_path):
    run = RunFolder(tmp_path, {"seed": 0})
    run.log_metrics({"step": 0})
    save_tensors(tmp_path / "encoder.safetensors", {"x": torch.ones(1)}, {})
    run.finish({})
    for name in {"config.json", "result.json", "metrics.jsonl", "encoder.safetensors"} - {left}:
        (tmp_path / name).unlink()
    for settings in ({"seed": 0}, {"seed": 1}):
        with pytest.raises(ValueError, match=f"holds {left} of a run, but not.*--no-resume makes"):
            RunFolder(tmp_path, settings)
    assert not (tmp_path / "config.json").exists() and not (tmp_path / "lock.json").exists()
    RunFolder(tmp_path, {"seed": 1}, resume=False)
    assert not (tmp_path / left).exists()  # nothing of the unknown run is used


def test_edited_settings_are_refused_with_the_way_out(tmp_path):
    RunFolder(tmp_path, {"seed": 0}).finish({})
    edited = read_json(tmp_path / "config.json", "settings") | {"seed": 1}
    write_json(tmp_path / "config.json", edited)
    for settings in ({"seed": 0}, {"seed": 1}):
        with pytest.raises(ValueError, match=r"config\.json: damaged, edited .*--no-resume"):
            RunFolder(tmp_path, settings)
    assert RunFolder(tmp_path, {"seed": 1}, resume=False).result() is None


def test_a_start_that_made_nothing_pins_no_settings(tmp_path):
    run = RunFolder(tmp_path, {"lr": -1.0})
    run.log_metrics({"step": 0, "loss": 1.0})  # stopped before its first checkpoint
    run.skip("a", ValueError("no video"))
    del run
    again = RunFolder(tmp_path, {"lr": 0.1})
    assert again.skipped() == [] and not (tmp_path / "metrics.jsonl").exists()
    again.save_checkpoint({"step": 1})
    with pytest.raises(ValueError, match="lr: 0.1 → 0.2"):
        RunFolder(tmp_path, {"lr": 0.2})
    with pytest.raises(ValueError, match="lr: 0.1 → 0.2"):  # other results are never overwritten
        RunFolder(tmp_path, {"lr": 0.2}, resume=False)


def test_a_finished_run_whose_weights_are_gone_is_not_finished(tmp_path):
    run = RunFolder(tmp_path, {})
    save_tensors(tmp_path / "encoder.safetensors", {"x": torch.ones(1)}, {})
    run.finish({"encoder": "encoder.safetensors"})
    assert RunFolder(tmp_path, {}).result() == {"encoder": "encoder.safetensors"}
    (tmp_path / "encoder.safetensors").unlink()
    assert RunFolder(tmp_path, {}).result() is None


# -------------------------------------------------------------------------------- locks and signals

HOLD = """
import sys, time
from lofi.training.run_folder import RunFolder
run = RunFolder(sys.argv[1], {})
print("locked", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that works in the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"locked\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_told_who_works_in_the_folder(holder, tmp_path):
    for resume in (True, False):
        with pytest.raises(ValueError) as caught:
            RunFolder(tmp_path, {}, resume)
        assert f"process {holder.pid} on {socket.gethostname()} is at work" in str(caught.value)
        assert str(tmp_path / "lock.json") in str(caught.value)
    os.kill(holder.pid, signal.SIGKILL)
    while Path(f"/proc/{holder.pid}/stat").exists():  # dead, but nobody has waited for it
        if Path(f"/proc/{holder.pid}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.01)
    else:
        holder.wait()
    run = RunFolder(tmp_path, {})
    assert read_json(tmp_path / "lock.json", "lock")["pid"] == os.getpid()
    run.finish({})
    assert not (tmp_path / "lock.json").exists()


def test_locks_of_other_hosts_hold_and_those_of_this_process_do_not(tmp_path, monkeypatch):
    run = RunFolder(tmp_path, {})
    assert RunFolder(tmp_path, {}).folder == run.folder  # a notebook after an error
    lock = {"host": "far", "pid": os.getpid(), "job": "abc"}
    write_json(tmp_path / "lock.json", lock)
    with pytest.raises(ValueError, match=f"process {os.getpid()} on far is at work"):
        RunFolder(tmp_path, {})
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "abc")
    with pytest.raises(ValueError, match="on far is at work"):  # every job of one host may be "abc"
        RunFolder(tmp_path, {})
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")  # the same job, started again elsewhere
    RunFolder(tmp_path, {})
    (tmp_path / "lock.json").write_text("")
    with pytest.raises(ValueError, match=r"unknown host.*remove .*lock\.json"):
        RunFolder(tmp_path, {})


def test_an_error_and_the_end_of_a_process_give_the_folder_back(tmp_path):
    run = RunFolder(tmp_path, {})
    with pytest.raises(ValueError, match="stop"), run.logging():
        raise ValueError("stop")
    assert not (tmp_path / "lock.json").exists()
    code = HOLD.replace("time.sleep(600)", "raise KeyboardInterrupt")
    subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True)
    assert not (tmp_path / "lock.json").exists()


def test_temporary_files_of_dead_processes_alone_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
    names = {
        "dead": f".tmp-{dead.pid}@{host}@a.json", "alive": f".tmp-{os.getppid()}@{host}@a.json",
        "far": f".tmp-{dead.pid}@far@a.json", "old": f".tmp-{dead.pid}@far@b.json",
        "other": ".tmp-notes",
    }  # fmt: skip
    for name in names.values():
        (tmp_path / name).write_text("half")
    os.utime(tmp_path / names["old"], (0, 0))
    write_json(tmp_path / "a.json", {})
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a.json", names["alive"], names["far"], names["other"]}
    with atomic_path(tmp_path / "a.json") as temporary:
        assert temporary.name.startswith(f".tmp-{os.getpid()}@{host}@")
        temporary.write_text("{}")


def test_signals_wait_for_the_end_of_the_block_and_ignored_ones_stay_ignored():
    told = []
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        with held_signals() as held:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
            assert held == [signal.SIGTERM] and told == []
        assert told == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_records_of_every_kind_of_value_come_back(tmp_path):
    from lofi.files import read_record

    value = {"a": [1, 2.5, None, float("inf")], "b": {"é": True}, "c": (1, 2), "d": {3: "x", 21: 0}}
    write_record(tmp_path / "a.json", value)
    assert read_record(tmp_path / "a.json", "x") == json.loads(json.dumps(value))
