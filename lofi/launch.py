"""A `lofi` command in several processes: torchrun as a child that ends with its parent.

The same from a shell, a notebook or papermill: the child is a fresh process, so it does not matter
what the caller has done with CUDA. Results come back as the files of the run folder. The processes
meet in a file and talk over the loopback device: nothing listens on the network. Several machines:
start torchrun on each of them (README, "Several GPUs and machines").
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

WATCH = "LOFI_WATCH_PARENT"
MEETING = "LOFI_MEETING"  # file by which the processes find each other
LAST_LINES = 20
GRACE_S = 30.0  # between asking the processes to end, after the step they are in, and killing them


class LaunchError(RuntimeError):
    """The processes failed; `lines` holds the last lines that they printed."""

    def __init__(self, message: str, lines: Sequence[str]):
        super().__init__(message)
        self.lines = tuple(lines)


def launched() -> bool:
    """True in a process that torchrun started."""
    return "RANK" in os.environ and "LOCAL_RANK" in os.environ


def run(
    words: Sequence[str], processes: int, *, restarts: int = 2,
    echo: Callable[[str], None] | None = None,
) -> None:  # fmt: skip
    """Run `lofi WORDS…` in several processes of this machine that train together.

    Args:
        words: the command line after `lofi`, for instance ["train", "lofi", "--out", "runs/a"].
        processes: how many; with `--device cuda` one for each GPU.
        restarts: how often all start again, from the last checkpoint, after one has died.
        echo: gets every line that is printed; default: standard error.
    Raises:
        ValueError: fewer than one process, or called inside of a launched process.
        LaunchError: the processes failed for good; ends with what they printed last.
    """
    if processes < 1:
        raise ValueError(f"processes is {processes}, expected at least 1")
    if launched():
        raise ValueError("this process was itself launched by torchrun; it must not launch others")
    echo = echo or (lambda line: print(line, file=sys.stderr, flush=True))
    last: deque[str] = deque(maxlen=LAST_LINES)
    reason = ""
    with tempfile.TemporaryDirectory(prefix="lofi-meeting-") as folder:
        child = _torchrun(words, processes, restarts, folder)
        try:
            for line in child.stdout:
                last.append(line.rstrip("\n"))
                reason = last[-1] if last[-1].startswith("lofi: ") else reason
                echo(last[-1])
            status = child.wait()
        finally:  # ask torchrun to stop its processes, and insist
            if child.poll() is None:
                child.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(GRACE_S)
            with contextlib.suppress(OSError):
                child.stdin.close()
            child.kill()
            child.wait()
            child.stdout.close()
    if status != 0:
        shown = f" with exit status {status}; they printed last:\n" + "\n".join(last)
        if reason:  # the one-line error of a worker
            shown = f": {reason.removeprefix('lofi: ')}"
        raise LaunchError(f"{processes} processes failed{shown}", last)


def _torchrun(words: Sequence[str], processes: int, restarts: int, folder: str) -> subprocess.Popen:
    command = [sys.executable, "-u", "-m", "torch.distributed.run"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint={folder}/torchrun", "--rdzv-id=lofi"]
    command += ["--rdzv-conf=store_type=file", "--local-addr=127.0.0.1"]
    command += [f"--nproc-per-node={processes}", f"--max-restarts={restarts}", "-m", "lofi", *words]
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment = {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        **os.environ,
        "PYTHONIOENCODING": "utf-8:backslashreplace",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        WATCH: "1",
        MEETING: f"{folder}/workers",
    }
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,  # closes when this process ends, however it ends
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches this process alone, which ends the others
        encoding="utf-8",
        errors="replace",
    )


def watch_parent() -> None:
    """In a launched process: end, and torchrun too, as soon as the one that launched them is gone.

    When papermill is stopped its kernel dies, but the kernel's children would go on and hold their
    GPUs. Their standard input is a pipe from the kernel, which ends with it.
    """
    agent = os.getppid()

    def until_alone() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):  # not sys.stdin: its lock would block the interpreter's end
                pass
        try:
            os.kill(agent, signal.SIGTERM)  # it asks this process to end, which may take a step
        except OSError:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os._exit(1)

    if os.environ.get(WATCH) and launched():
        threading.Thread(target=until_alone, daemon=True).start()
