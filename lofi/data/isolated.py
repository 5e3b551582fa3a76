"""Run decoding in child processes, because a broken file can hang or crash a decoder.

A child reads one call a line (a pickled function and its arguments) and answers with one line.
Children that take too long are killed and replaced. They are started as plain interpreters rather
than through `multiprocessing`, so that scripts and notebooks need no guard around their own code.
"""

import base64
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

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
    for i, found in run_isolated(_inspect, [(str(p),) for p in paths], workers, limit_s):
        if isinstance(found, Exception):
            num_bytes = os.path.getsize(paths[i]) if os.path.isfile(paths[i]) else 0
            found = FileResult(num_bytes, None, str(found))
        yield i, found


def _inspect(path: str) -> FileResult:
    info, problem = None, None
    try:
        info = probe(path)
        problem = verify(path)
    except VideoError as error:
        problem = str(error)
    except Exception as error:  # one file must not end the check
        problem = f"{type(error).__name__}: {error}"
    return FileResult(os.path.getsize(path) if os.path.isfile(path) else 0, info, problem)


def run_isolated(
    function: Callable, calls: Sequence[tuple], workers: int = 1, limit_s: float = 120.0
) -> Iterator[tuple[int, Any]]:
    """Call `function(*call)` for every call in child processes, as they finish.

    Args:
        function: of a module that children can import.
        calls: arguments, small enough to be sent through a pipe.
        workers: child processes at work.
        limit_s: seconds a call may take before its child is killed.
    Yields:
        (position in `calls`, result, or the exception: that of the function, or a VideoError for
        a child that crashed or took too long).
    Raises:
        RuntimeError: a child cannot be started at all.
    """
    tasks: SimpleQueue[int] = SimpleQueue()
    results: SimpleQueue[tuple[int, Any]] = SimpleQueue()
    stop = threading.Event()
    for i in range(len(calls)):
        tasks.put(i)
    children = [Child() for _ in range(min(max(1, workers), len(calls)))]

    def work(child: Child) -> None:
        try:
            while not stop.is_set():
                i = tasks.get_nowait()
                try:
                    results.put((i, child.call(function, calls[i], limit_s)))
                except StartError as error:
                    results.put((-1, error))
                    return
                except Exception as error:
                    results.put((i, error))
        except Empty:
            pass
        finally:
            child.kill()

    threads = [threading.Thread(target=work, args=(c,), daemon=True) for c in children]
    for thread in threads:
        thread.start()
    try:
        for _ in calls:
            i, result = results.get()
            if i < 0:
                raise result
            yield i, result
    finally:
        stop.set()
        for child in children:  # also when the reader gives up early
            child.end()
        for thread in threads:
            thread.join()


class StartError(RuntimeError):
    """No child can be started; nothing that depends on one file."""


class Child:
    """One child process, started when it is first needed and again after it was killed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def call(self, function: Callable, arguments: tuple, limit_s: float) -> Any:
        """`function(*arguments)` in the child.

        Raises:
            VideoError: the child crashed or gave no result in time.
            StartError: no child starts.
            Exception: whatever the function raised.
        """
        if self.process is None:
            self._start()
        line = base64.b64encode(pickle.dumps((function, arguments))).decode()
        answer, in_time = self._ask(line, limit_s)
        if not answer:
            code = self.kill()
            crashed = f"the decoder crashed (exit status {code})"
            raise VideoError(crashed if in_time else f"no result in {limit_s:g} s")
        good, value = pickle.loads(base64.b64decode(answer))
        if not good:
            raise value
        return value

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
        env.setdefault("OMP_NUM_THREADS", "1")  # children share the cores among themselves
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
            raise StartError(
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
        function, arguments = pickle.loads(base64.b64decode(line))
        try:
            answer = pickle.dumps((True, function(*arguments)))
        except Exception as error:  # goes to the parent, which decides
            answer = pickle.dumps((False, error))
        print(base64.b64encode(answer).decode(), file=answers, flush=True)
