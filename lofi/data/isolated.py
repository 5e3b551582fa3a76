"""Decode whole files in child processes, because a broken file can hang or crash a decoder.

A child reads one path a line and answers with one line of JSON. Children that take too long are
killed and replaced. They are started as plain interpreters rather than through `multiprocessing`,
so that scripts and notebooks need no guard around their own code.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from lofi.data.video import VideoError, VideoInfo, probe, verify

START_LIMIT_S = 120.0  # for a child to import its libraries
PROGRAM = "from lofi.data.isolated import serve; serve()"


@dataclass(frozen=True)
class FileResult:
    """What decoding a file gave.

    Args:
        num_bytes: size of the file.
        info: None when it could not be opened.
        problem: None when everything decodes.
    """

    num_bytes: int
    info: VideoInfo | None = None
    problem: str | None = None


def inspect_files(
    paths: Sequence[str | Path], workers: int = 1, limit_s: float = 120.0
) -> Iterator[tuple[int, FileResult]]:
    """Decode files from start to end; yields (position in `paths`, result) as they finish.

    Args:
        paths: video files.
        workers: child processes at work.
        limit_s: seconds a file may take before its child is killed.
    Raises:
        RuntimeError: a child cannot be started at all.
    """
    tasks: SimpleQueue[int] = SimpleQueue()
    results: SimpleQueue[tuple[int, FileResult | RuntimeError]] = SimpleQueue()
    stop = threading.Event()
    for i in range(len(paths)):
        tasks.put(i)

    children: list[_Child] = []

    def work() -> None:
        child = _Child()
        children.append(child)
        try:
            while not stop.is_set():
                i = tasks.get_nowait()
                results.put((i, child.inspect(str(paths[i]), limit_s)))
        except Empty:
            pass
        except RuntimeError as error:
            results.put((-1, error))
        finally:
            child.kill()

    count = min(max(1, workers), len(paths))
    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        for _ in paths:
            i, result = results.get()
            if isinstance(result, RuntimeError):
                raise result
            yield i, result
    finally:
        stop.set()
        for child in children:  # also when the reader gives up early
            child.end()
        for thread in threads:
            thread.join()


class _Child:
    """One child process, started when it is first needed and again after it was killed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def inspect(self, path: str, limit_s: float) -> FileResult:
        try:
            num_bytes = os.path.getsize(path)
        except OSError as error:
            return FileResult(0, None, f"{path}: {error.strerror}")
        if self.process is None:
            self._start()
        answer, in_time = self._ask(json.dumps(path), limit_s)
        if not answer:
            code = self.kill()
            gone = f"the decoder crashed (exit status {code})"
            return FileResult(num_bytes, None, gone if in_time else f"no result in {limit_s:g} s")
        found = json.loads(answer)
        info = VideoInfo(**found["info"]) if found["info"] else None
        return FileResult(num_bytes, info, found["problem"])

    def end(self) -> None:
        """Stop the child without waiting for it; safe from any thread."""
        if (process := self.process) is not None:
            process.kill()

    def kill(self) -> int | None:
        """End the child, if there is one; its exit status."""
        if self.process is None:
            return None
        self.end()
        code = self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process = None
        return code

    def _start(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        inherited = os.environ.get("PYTHONPATH")
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([root] + [inherited] * bool(inherited))}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # decoders write there from C
            text=True,
            encoding="utf-8",
            env=env,
        )
        if self._ask(None, START_LIMIT_S)[0].strip() != "ready":
            code = self.kill()
            raise RuntimeError(
                f"a child process for decoding did not start (exit status {code}); "
                f"try `{sys.executable} -c 'import lofi.data'`"
            )

    def _ask(self, line: str | None, limit_s: float) -> tuple[str, bool]:
        """Send a line and wait for one; the answer ("" when the child is gone), and if in time."""
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        process = self.process
        timer = threading.Timer(limit_s, give_up)
        timer.start()
        try:
            if line is not None:
                process.stdin.write(line + "\n")
                process.stdin.flush()
            return process.stdout.readline(), not late.is_set()
        except BrokenPipeError:
            return "", not late.is_set()
        finally:
            timer.cancel()


def serve() -> None:
    """The child's loop; answers go to the real standard output, everything else nowhere."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        info, problem = None, None
        try:
            path = json.loads(line)
            info = probe(path)
            problem = verify(path)
        except VideoError as error:
            problem = str(error)
        except Exception as error:  # one file must not end the check
            problem = f"{type(error).__name__}: {error}"
        answer = {"info": vars(info) if info else None, "problem": problem}
        print(json.dumps(answer), file=answers, flush=True)
