"""Run decoding in child processes, because a broken file can hang or crash a decoder.

Children that take too long are killed and replaced. They are plain interpreters that talk over a
pipe of `multiprocessing`, but are not started by it: it would run the caller's `__main__` again in
every child, so that scripts and notebooks would need a guard around their own code.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.pool import ThreadPool
from queue import SimpleQueue
from typing import Any

from lofi.data.video import VideoError

START_LIMIT_S = 120.0  # for a child to import its libraries
LONGEST_S = 2e6  # 23 days; a pipe cannot be told to wait much longer
PROGRAM = "from lofi.data.isolated import serve; serve()"


class StartError(RuntimeError):
    """No child can be started; nothing that depends on one file."""


class Child:
    """One child process, started when it is first needed and again after it was killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._pipe: Connection | None = None

    def call(self, function: Callable, arguments: tuple, limit_s: float) -> Any:
        """`function(*arguments)` in the child, a function of a module that it can import.

        Raises:
            VideoError: the child crashed or gave no result in time.
            StartError: no child starts.
            Exception: whatever the function raised.
        """
        if self._process is None:
            self._start()
        try:
            self._pipe.send((function, arguments))
            in_time = self._pipe.poll(min(limit_s, LONGEST_S))
            good, value = self._pipe.recv() if in_time else (False, None)
        except (EOFError, OSError):
            code = self.kill()
            raise VideoError(f"the decoder crashed (exit status {code})") from None
        if not in_time:
            self.kill()
            raise VideoError(f"no result in {limit_s:g} s")
        if not good:
            raise value
        return value

    def stop(self) -> None:
        """Stop the child without waiting for it; safe from any thread, ends a call in progress."""
        if (process := self._process) is not None:
            process.kill()

    def kill(self) -> int | None:
        """End the child, if there is one; its exit status."""
        if self._process is None:
            return None
        self.stop()
        code = self._process.wait()
        self._pipe.close()
        self._process = None
        return code

    def _start(self) -> None:
        path = os.pathsep.join(filter(None, sys.path))
        one = {"OMP_NUM_THREADS": "1"}  # children share the cores among themselves
        self._pipe, theirs = Pipe()
        with theirs:  # once our copy is closed, a child that is gone ends the pipe
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # decoders write there from C
                env={**one, **os.environ, "PYTHONPATH": path},
            )
        try:
            ready = self._pipe.poll(START_LIMIT_S) and self._pipe.recv()
        except (EOFError, OSError):
            ready = False
        if not ready:
            code = self.kill()
            raise StartError(
                f"a child process for decoding did not start (exit status {code}); "
                f"try `{sys.executable} -c 'import lofi.data'`"
            )


def serve() -> None:
    """The child's loop; its standard input is the pipe, until the parent is gone."""
    pipe = Connection(os.dup(0))
    pipe.send(True)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(*arguments)))
        except Exception as error:  # goes to the parent, which decides
            pipe.send((False, error))


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
    children = [Child() for _ in range(max(1, min(workers, len(calls))))]
    idle: SimpleQueue[Child] = SimpleQueue()
    for child in children:
        idle.put(child)

    def call(i: int) -> tuple[int, Any]:
        child = idle.get()
        try:
            return i, child.call(function, calls[i], limit_s)
        except StartError:
            raise
        except Exception as error:
            return i, error
        finally:
            idle.put(child)

    pool = ThreadPool(len(children))
    try:
        yield from pool.imap_unordered(call, range(len(calls)))
    finally:  # also when the reader gives up early
        pool.terminate()
        for child in children:
            child.stop()
        pool.join()
        for child in children:
            child.kill()
