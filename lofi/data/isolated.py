"""Run decoding in child processes, because a broken file can hang or crash a decoder.

Children that take too long are killed and replaced. They are plain interpreters that talk over a
pipe of `multiprocessing`, but are not started by it: it would run the caller's `__main__` again in
every child, so that scripts and notebooks would need a guard around their own code.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import LifoQueue
from typing import Any

from lofi.data.video import VideoError

START_LIMIT_S = 120.0  # for a child to import its libraries
LONGEST_S = 2e6  # 23 days; a pipe cannot be told to wait much longer
PROGRAM = "from lofi.data.isolated import serve; serve()"


class StartError(RuntimeError):
    """No child can be started; nothing that depends on one file."""


class Child:
    """One child process, started when it is first needed and again after it was killed."""

    process: subprocess.Popen | None = None
    _pipe: Connection

    def call(self, function: Callable, arguments: tuple, limit_s: float) -> Any:
        if self.process is None:
            self._start()
        try:
            self._pipe.send((function, arguments))
            in_time = self._pipe.poll(min(limit_s, LONGEST_S))
            good, value = self._pipe.recv() if in_time else (False, None)
        except (EOFError, OSError):
            raise VideoError(f"the decoder crashed (exit status {self.end()})") from None
        if not in_time:
            self.end()
            raise VideoError(f"no result in {limit_s:g} s")
        if not good:
            raise value
        return value

    def end(self) -> int | None:
        """Kill the process, if there is one; its exit status."""
        if self.process is None:
            return None
        self.process.kill()
        code = self.process.wait()
        self._pipe.close()
        self.process = None
        return code

    def _start(self) -> None:
        environment = {
            "OMP_NUM_THREADS": "1",  # children share the cores among themselves
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        self._pipe, theirs = Pipe()
        with theirs:  # once our copy is closed, a child that is gone ends the pipe
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # decoders write there from C
                env=environment,
            )
        try:
            ready = self._pipe.poll(START_LIMIT_S) and self._pipe.recv()
        except (EOFError, OSError):
            ready = False
        if not ready:
            raise StartError(
                f"a child process for decoding did not start (exit status {self.end()}); "
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


class Children:
    """Child processes that several threads share; a call takes one that is idle."""

    def __init__(self, number: int) -> None:
        self._all = [Child() for _ in range(number)]
        self._idle: LifoQueue[Child] = LifoQueue()
        for child in self._all:
            self._idle.put(child)

    def call(self, function: Callable, arguments: tuple, limit_s: float) -> Any:
        """`function(*arguments)` in a child, a function of a module that it can import.

        Raises:
            VideoError: the child crashed or gave no result in time.
            StartError: no child starts.
            Exception: whatever the function raised.
        """
        child = self._idle.get()
        try:
            return child.call(function, arguments, limit_s)
        finally:
            self._idle.put(child)

    def interrupt(self) -> None:
        """End calls in progress, from any thread; their own threads clear up."""
        for child in self._all:
            if (process := child.process) is not None:
                process.kill()

    def close(self) -> None:
        """End all children, which must be idle; safe to repeat."""
        for child in self._all:
            child.end()


def run_isolated(
    function: Callable, calls: Sequence[tuple], workers: int = 1, limit_s: float = 120.0
) -> Iterator[tuple[int, Any]]:
    """Call `function(*call)` for every call in child processes, as they finish.

    Yields:
        (position in `calls`, result, or the exception: that of the function, or a VideoError for
        a child that crashed or took longer than `limit_s` seconds).
    Raises:
        RuntimeError: a child cannot be started at all.
    """
    workers = max(1, min(workers, len(calls)))
    children = Children(workers)
    threads = ThreadPoolExecutor(workers)
    places = {threads.submit(children.call, function, c, limit_s): i for i, c in enumerate(calls)}
    try:
        for done in as_completed(places):
            if isinstance(error := done.exception(), StartError):
                raise error
            yield places[done], error or done.result()
    finally:  # also when the reader gives up early
        threads.shutdown(wait=False, cancel_futures=True)
        children.interrupt()
        threads.shutdown()
        children.close()
