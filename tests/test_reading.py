"""Many clips at once give what one at a time gives, whatever threads, processes or files do."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from numbered_video import write_numbered

from lofi.data import isolated, reading
from lofi.data.annotations import TrimmedClip
from lofi.data.reading import ClipReader, ClipRequest, TrimmedRequest
from lofi.data.snippets import Augmentation, read_clip, read_trimmed_clip
from lofi.data.video import VideoError, probe
from lofi.fidelity import Fidelity

FIDELITY = Fidelity(4, 2, 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reading")
    for i in range(3):
        write_numbered(folder / f"{i}.mp4", 20 + i)
    (folder / "text.mp4").write_text("not a video")
    return folder


def _requests(folder):
    view = Augmentation(0.2, 0.8, True, 0.9)
    return [
        ClipRequest(folder / "0.mp4", FIDELITY, 1, "tile", 1.0, view),
        ClipRequest(folder / "text.mp4", FIDELITY),
        TrimmedRequest(TrimmedClip(folder / "1.mp4", "x", 0.5, 1.5), 2, 24, 1, 1.0, view),
        ClipRequest(folder / "2.mp4", FIDELITY, resample_fps=5.0, span=(2, 8)),
        ClipRequest(folder / "gone.mp4", FIDELITY),
    ]


def _expected(folder):
    view = Augmentation(0.2, 0.8, True, 0.9)
    options = dict(crop_ratio=1.0, augmentation=view)
    clip = TrimmedClip(folder / "1.mp4", "x", 0.5, 1.5)
    return {
        0: read_clip(folder / "0.mp4", FIDELITY, frame_stride=1, rule="tile", **options),
        2: read_trimmed_clip(clip, 2, 24, 1, **options),
        3: read_clip(folder / "2.mp4", FIDELITY, resample_fps=5.0, span=(2, 8)),
    }


@pytest.mark.parametrize(
    "options",
    [{}, {"workers": 2}, {"workers": 2, "cache_bytes": 2**22}, {"workers": 2, "processes": True}],
    ids=["inline", "threads", "cached", "processes"],
)
def test_clips_come_in_order_and_bad_files_as_errors(folder, options):
    requests, expected = _requests(folder), _expected(folder)
    with ClipReader(**options) as reader:
        for _ in range(2):  # the second time from the cache, where there is one
            found = reader.read(requests)
            for i, clip in expected.items():
                assert torch.equal(found[i], clip) and found[i].shape == requests[i].shape
            for i, words in ((1, "text.mp4.*no decodable video"), (4, "gone.mp4.*No such file")):
                assert isinstance(found[i], VideoError)
                with pytest.raises(VideoError, match=words):
                    raise found[i]
            found[0].zero_()  # the caller's own
        assert reader.info(folder / "2.mp4") == probe(folder / "2.mp4")
        with pytest.raises(ValueError, match="unknown frame rule"):
            reader.read([ClipRequest(folder / "0.mp4", FIDELITY, rule="no")])


def test_several_threads_may_read_at_once(folder):
    expected = {i: read_clip(folder / f"{i}.mp4", FIDELITY) for i in range(3)}
    wrong = []

    def work(reader, i):
        for _ in range(8):
            found = reader.read(
                [ClipRequest(folder / f"{k % 3}.mp4", FIDELITY) for k in (i, i + 1)]
            )
            if not all(torch.equal(found[k], expected[(i + k) % 3]) for k in (0, 1)):
                wrong.append(i)

    for options in ({"cache_bytes": 2**22}, {"processes": True}):
        with ClipReader(2, **options) as reader:
            threads = [threading.Thread(target=work, args=(reader, i)) for i in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert not wrong


REAL = isolated.PROGRAM
BAD = """
import lofi.data.reading as s, os, time
whole = s.read_clip
def read_clip(path, *args, **options):
    if "crash" in str(path): os.abort()
    if "hang" in str(path): time.sleep(60)
    return whole(path, *args, **options)
s.read_clip = read_clip
"""


def test_a_decoder_that_crashes_or_hangs_costs_one_clip(folder, monkeypatch):
    monkeypatch.setattr(isolated, "PROGRAM", BAD + REAL)
    requests = [
        ClipRequest(folder / name, FIDELITY)
        for name in ("crash.mp4", "0.mp4", "hang.mp4", "1.mp4", "2.mp4")
    ]
    started = time.monotonic()
    left = set(_shared_files())
    with ClipReader(1, processes=True, limit_s=3.0) as reader:
        found = reader.read(requests)
    assert [isinstance(clip, VideoError) for clip in found] == [True, False, True, False, False]
    assert "crash.mp4: the decoder crashed" in str(found[0])
    assert "hang.mp4: no result in 3 s" in str(found[2])
    assert torch.equal(found[4], read_clip(folder / "2.mp4", FIDELITY))
    assert time.monotonic() - started < 40 and set(_shared_files()) <= left


SCRIPT = """
import os
from lofi.data.isolated import run_isolated
print("once")
for i, found in run_isolated(os.path.basename, [("a/b",)]):
    print(i, found)
"""


def test_a_script_needs_no_guard_around_its_code(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "script.py"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    out = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert out.stdout.split("\n") == ["once", "0 b", ""], out.stderr


def _shared_files() -> list[Path]:
    return list(reading.SHARED_MEMORY.glob("lofi-clip-*"))


def test_full_or_absent_shared_memory_is_replaced_by_a_file(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(reading, "SHARED_MEMORY", tmp_path / "absent")
    with ClipReader(1, processes=True) as reader:
        (clip,) = reader.read([ClipRequest(folder / "0.mp4", FIDELITY)])
    assert torch.equal(clip, read_clip(folder / "0.mp4", FIDELITY))


def test_processes_with_a_cache_are_refused():
    with pytest.raises(ValueError, match="keep no frames"):
        ClipReader(1, processes=True, cache_bytes=100)
