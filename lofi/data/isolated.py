"""Decoding in child processes, because a broken file can hang or crash a decoder; and in threads.

Children that take too long are killed and replaced. They are plain interpreters that talk over a
pipe of `multiprocessing`, but are not started by it: it would run the caller's `__main__` again in
every child, so that scripts and notebooks would need a guard around their own code.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import LifoQueue
from subprocess import DEVNULL, Popen, TimeoutExpired
from typing import Any

from lofi.data.video import VideoError

START_LIMIT_S = 120.0  # for a child to import its libraries
LONGEST_S = 2e6  # 23 days; a pipe cannot be told to wait much longer
PROGRAM = "from lofi.data.isolated import serve; serve()"


class KilledError(VideoError):
    """The system ended the child: nothing is known of the file."""


class StartError(RuntimeError):
    """No child can be started; nothing that depends on one file."""


class Children:
    """Child processes that several threads share; each is started when it is first needed.

    `what` they are, and the option that helps where memory is short, stand in errors.
    """

    def __init__(
        self, number: int, what: str = "the decoder", cure: str = "fewer --workers"
    ) -> None:
        self.what, self.cure = what, cure
        self._idle: LifoQueue[tuple[Popen, Connection] | None] = LifoQueue()  # None: not started
        self._started: set[Popen] = set()
        self._closed = False
        for _ in range(number):
            self._idle.put(None)

    def call(self, function: Callable, arguments: tuple, limit_s: float) -> Any:
        """`function(*arguments)` in an idle child, a function of a module that it can import.

        Raises what the function raised; VideoError: the child crashed or gave no result in time;
        KilledError: the system killed it; StartError: no child starts; CancelledError: `close`
        ended it, which says nothing about the file.
        """
        child = self._idle.get()
        try:
            process, pipe = child = child or self._start()
            try:
                pipe.send((function, arguments))
                alive = pipe.poll(min(limit_s, LONGEST_S))
                late = VideoError(f"no result in {limit_s:g} s")
                good, value = pipe.recv() if alive else (False, late)
            except (EOFError, OSError):
                alive, good, value = False, False, self._ended(process)
            if not alive:
                self._end(process)
                child = None
                if self._closed:
                    raise CancelledError
        finally:
            self._idle.put(child)
        if not good:
            raise value
        return value

    def _ended(self, process: Popen) -> VideoError:
        """Why a child is gone that nobody here has ended."""
        with suppress(TimeoutExpired):  # its pipe is closed a moment before
            process.wait(1.0)
        by_system = process.returncode == -signal.SIGKILL
        status = self._end(process)
        if by_system:
            found = f"was killed by the system (signal {-status}: usually out of memory)"
            return KilledError(f"{self.what} {found}; try again with {self.cure}")
        return VideoError(f"{self.what} crashed (exit status {status})")

    def close(self) -> None:
        """End all children and with them the calls in progress; safe to repeat."""
        self._closed = True
        for process in list(self._started):
            self._end(process)

    def _end(self, process: Popen) -> int:
        process.kill()
        self._started.discard(process)
        return process.wait()

    def _start(self) -> tuple[Popen, Connection]:
        if self._closed:
            raise CancelledError
        environment = {"OMP_NUM_THREADS": "1"} | os.environ  # children share the cores
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        quiet = {"stdout": DEVNULL, "stderr": DEVNULL}  # decoders write there from C
        command = [sys.executable, "-c", PROGRAM]
        pipe, theirs = Pipe()
        with theirs:  # once our copy is closed, a child that is gone ends the pipe
            process = Popen(
                command, stdin=theirs.fileno(), env=environment, **quiet,
                start_new_session=True,  # Ctrl-C is for the parent: it is no crash of the decoder
            )  # fmt: skip
        self._started.add(process)
        try:
            ready = pipe.poll(START_LIMIT_S) and pipe.recv()
        except (EOFError, OSError):
            ready = False
        if not ready and self._closed:
            raise CancelledError
        if not ready:
            found = f"a child process did not start (exit status {self._end(process)})"
            raise StartError(f"{found}; try `{sys.executable} -c 'import lofi.data'`")
        return process, pipe


def serve() -> None:
    """The child's loop; its standard input is the pipe, until the parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # for the parent, which ends us
        signal.signal(number, signal.SIG_IGN)
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


def each(function: Callable, items: Sequence, threads: int) -> Iterator[Any]:
    """function(item) for every item, in order, several at a time; a `VideoError` is returned."""

    def one(item: Any) -> Any:
        try:
            return function(item)
        except VideoError as error:
            return error

    with ThreadPoolExecutor(max(1, threads)) as pool:
        yield from pool.map(one, items)


def run_isolated(
    function: Callable, calls: Sequence[tuple], workers: int = 1, limit_s: float = 120.0
) -> Iterator[tuple[int, Any]]:
    """Call `function(*call)` for every call in child processes, as they finish.

    Yields (position in `calls`, result or exception, see `Children.call`); raises StartError.
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
        children.close()
        threads.shutdown()
