"""Several processes train as one: same weights, restarted workers, two machines, no orphans.

Weights are compared in float64 where many steps are made: in float32 a rounding error of 1e-8
decides sooner or later the sign of a ReLU's input, and then gradients differ by 1e-5.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from lofi import config as configs
from lofi import launch
from lofi.data.toyworld import TINY, write_world
from lofi.training.distributed import GradientSum
from lofi.training.head import extract_features, train_head
from lofi.training.joint import train_lofi
from lofi.training.pretraining import train_acp
from lofi.training.run_folder import read_metrics

SMALL = {
    "acp.epochs": 1, "acp.batch": 8, "lofi.training.epochs": 12, "lofi.training.batch": 4,
    "head_training.epochs": 1, "head_training.batch": 4, "checkpoint_every": 3,
}  # fmt: skip
DOUBLE = """
import os, sys, torch
from pathlib import Path
torch.set_default_dtype(torch.float64)
out = Path(sys.argv[sys.argv.index("--out") + 1])
(out / f"pid-{os.environ.get('RANK', 0)}").write_text(str(os.getpid()))
from lofi.cli import main
main()
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
linux_only = pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, replace(TINY, source_clips=(16, 4), videos=(8, 3)), seed=0)
    return folder


@pytest.fixture(scope="module")
def acp(world, tmp_path_factory):
    """A run folder with a trained ACP encoder, to be copied."""
    run = tmp_path_factory.mktemp("acp")
    values = {**SMALL, "data.world": str(world)}
    train_acp(configs.override(configs.preset("tiny"), values), run)
    return run


@pytest.fixture
def new_run(acp, tmp_path):
    """new_run(name): a fresh run folder that starts from the same ACP encoder."""

    def copy(name: str) -> Path:
        run = tmp_path / name
        shutil.copytree(acp, run)
        return run

    return copy


def words(stage: str, world: Path, out: Path, **changes) -> list[str]:
    values = {**SMALL, **changes, "data.world": world}
    options = [f"--{key.replace('_', '-')}={value}" for key, value in values.items()]
    return ["train", stage, "--preset", "tiny", "--out", str(out), *options]


def torchrun(script: Path, options: list[str], arguments: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", *options, str(script), *arguments]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=ENVIRONMENT, **pipe)


def largest_difference(first: Path, second: Path, name: str = "encoder") -> float:
    file = Path("c-lofi") / "encoder" / f"{name}.safetensors"
    a, b = load_file(first / file), load_file(second / file)
    assert a.keys() == b.keys()
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.05)


def steps_done(run: Path) -> int:
    path = run / "c-lofi" / "encoder" / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(scope="module")
def double(tmp_path_factory):
    """The command line in float64; leaves its process number in the run folder."""
    script = tmp_path_factory.mktemp("script") / "double.py"
    script.write_text(DOUBLE)
    return script


@pytest.fixture(scope="module")
def alone(world, acp, double, tmp_path_factory):
    """Stage 2 in float64 by one process, never interrupted."""
    run = tmp_path_factory.mktemp("alone")
    shutil.copytree(acp, run, dirs_exist_ok=True)
    line = [sys.executable, str(double), *words("lofi", world, run)]
    subprocess.run(line, check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    return run


def test_two_processes_make_the_weights_and_features_of_one(world, new_run):
    runs = {n: new_run(f"run-{n}") for n in (1, 2)}
    changes = {"lofi.training.epochs": 1}
    values = {**SMALL, **changes, "data.world": str(world)}
    config = configs.override(configs.preset("tiny"), values)
    train_lofi(config, runs[1])
    extract_features(config, runs[1], "c-lofi")
    train_head(config, runs[1], "c-lofi")
    for stage in ("lofi", "features", "head"):
        launch.run(words(stage, world, runs[2], **changes), 2, echo=lambda line: None)
    assert largest_difference(runs[1], runs[2]) < 1e-6
    assert largest_difference(runs[1], runs[2], "head") < 1e-6
    one, two = (sorted((runs[n] / "c-lofi" / "features").glob("*.safetensors")) for n in (1, 2))
    assert [p.name for p in one] == [p.name for p in two] and len(one) == 11
    for a, b in zip(one, two):
        torch.testing.assert_close(load_file(a)["features"], load_file(b)["features"])
    # Adam divides gradients by their own size, so rounding moves weights whose gradient is ~ 0:
    # the losses of the head's steps are compared, not its weights.
    logs = [read_metrics(runs[n] / "c-lofi" / "head") for n in (1, 2)]
    losses = [[row["loss"] for row in log] for log in logs]
    assert len(losses[0]) == 2 and losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_micro_batches_of_several_processes_make_the_same_weights(world, new_run):
    runs = {n: new_run(f"micro-{n}") for n in (1, 3)}
    changes = {"lofi.training.epochs": 1, "lofi.micro_batch": 1}
    values = {**SMALL, **changes, "data.world": str(world)}
    train_lofi(configs.override(configs.preset("tiny"), values), runs[1])
    launch.run(words("lofi", world, runs[3], **changes), 3, echo=lambda line: None)
    assert steps_done(runs[1]) == steps_done(runs[3]) == 2
    assert largest_difference(runs[1], runs[3]) < 1e-6
    assert largest_difference(runs[1], runs[3], "head") < 1e-6


def test_a_killed_worker_is_restarted_and_the_run_ends_with_the_same_weights(
    world, new_run, double, alone
):
    killed = new_run("killed")
    options = ["--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    agent = torchrun(double, options, words("lofi", world, killed))
    wait_for(lambda: steps_done(killed) >= 5, 120)
    os.kill(int((killed / "pid-1").read_text()), signal.SIGKILL)
    output, _ = agent.communicate(timeout=240)
    assert agent.returncode == 0, output
    log = (killed / "c-lofi" / "encoder" / "log.txt").read_text()
    starts = [int(step) for step in re.findall(r"steps (\d+) to 24", log)]
    assert len(starts) == 2 and starts[0] == 0 and starts[1] >= 3, log
    assert steps_done(killed) == 24
    assert largest_difference(alone, killed) < 1e-10


@linux_only
def test_no_process_outlives_the_one_that_launched_it(world, new_run):
    run = new_run("orphans")
    line = words("lofi", world, run, **{"lofi.training.epochs": 400})
    code = f"from lofi import launch; launch.run({line!r}, 2, echo=lambda line: None)"
    parent = subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT)
    wait_for(lambda: steps_done(run) >= 2, 60)
    together = _processes_with(str(run))
    assert len(together) >= 3  # torchrun, two workers (and the parent)
    listening = _listening_addresses(together)
    assert listening and all(ip.startswith("7F", 6) for ip in listening), listening  # 127.…
    parent.kill()
    parent.wait()
    wait_for(lambda: not _processes_with(str(run)), 20)


def _listening_addresses(processes: list[int]) -> set[str]:
    """Addresses of this machine on which they wait for connections, in the kernel's hexadecimal."""
    links = [link for pid in processes for link in Path(f"/proc/{pid}/fd").glob("*")]
    sockets = {os.readlink(link) for link in links if link.is_symlink()}
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
        found |= {
            r[1].split(":")[0] for r in rows if r[3] == "0A" and f"socket:[{r[9]}]" in sockets
        }
    return found


def _processes_with(word: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word in path.read_bytes().decode(errors="replace"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_bad_input_of_launched_processes_is_one_clear_error(world, tmp_path):
    line = [*words("head", world, tmp_path), "--method", "nobody"]
    with pytest.raises(
        launch.LaunchError, match="2 processes failed: .*unknown method 'nobody'"
    ) as caught:
        launch.run(line, 2, restarts=0, echo=lambda line: None)
    assert caught.value.lines
    with pytest.raises(ValueError, match="at least 1"):
        launch.run(line, 0)


def test_gradients_without_a_process_group_stay_as_they_are():
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.tensor([1.0, 2.0, 3.0])
    with GradientSum([weight]) as sums:
        sums.finish()
    assert weight.grad.tolist() == [1.0, 2.0, 3.0]


def _every_way(rank: int, folder: str) -> None:
    """A process of two."""
    store = dist.FileStore(f"{folder}/meeting", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for overlaps, size in ((True, 1), (True, 100), (False, 1)):
        _two_sums(rank, overlaps, size)
    dist.destroy_process_group()


def _two_sums(rank: int, overlaps: bool, size: int) -> None:
    """Gradients are rank + 1 times known ones; the last layer is unused."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(*(torch.nn.Linear(5, 5) for _ in range(3)), torch.nn.Linear(5, 1))
    unused, once = torch.nn.Linear(2, 2), torch.nn.Linear(5, 1)  # on no process; on the first
    x = torch.arange(10.0).view(2, 5) * (rank + 1)

    def loss_of(x, first: bool):
        return layers(x).sum() + (once(x).sum() if first else 0)

    expected = []
    used = [*layers.parameters(), *once.parameters()]
    for first, scale in ((True, 1), (False, 2)):
        loss = loss_of(torch.arange(10.0).view(2, 5) * scale, first)
        expected.append(torch.autograd.grad(loss, used, allow_unused=True))
    wanted = [sum(g for g in pair if g is not None) for pair in zip(*expected)]
    parameters = [*unused.parameters(), *once.parameters(), *layers.parameters()]
    with GradientSum(parameters, lambda: overlaps and rank == 0, size) as sums:
        for step in range(2):  # the second begins afresh
            for parameter in parameters:
                parameter.grad = None
            if not (step and rank):  # an empty share makes no backward pass
                loss_of(x, rank == 0).backward()
            early = len(sums.sent)
            sums.finish()
            if rank == 0 and size == 1:  # a bucket each: all but those of the unused layer
                assert early == (len(parameters) - 2 if overlaps else 0), early
    assert all(parameter.grad is None for parameter in unused.parameters())
    step_1 = [g if g is not None else None for g in expected[0]]
    for found, value in zip(used, step_1):
        assert torch.equal(found.grad, value)
    with GradientSum(parameters, lambda: overlaps, size) as sums:
        for parameter in parameters:
            parameter.grad = None
        loss_of(x, rank == 0).backward()
        sums.finish()
    for found, value in zip(used, wanted):
        assert torch.allclose(found.grad, value, rtol=1e-6)
    assert not any(parameter._post_accumulate_grad_hooks for parameter in parameters)


def test_gradients_are_summed_while_the_backward_pass_goes_on(tmp_path):
    torch.multiprocessing.spawn(_every_way, (str(tmp_path),), nprocs=2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs two GPUs")
def test_two_gpus_over_nccl_train_as_one_does(world, new_run):
    runs = {n: new_run(f"nccl-{n}") for n in (1, 2)}
    for n, run in runs.items():
        launch.run([*words("lofi", world, run), "--device", "cuda"], n, echo=lambda line: None)
    assert torch.distributed.is_nccl_available()
    assert largest_difference(runs[1], runs[2]) < 1e-4


FAKES = {  # what Slurm does with a job of two nodes, on one machine
    "scontrol": "echo 127.0.0.1",
    "srun": """
        "$@" & first=$!
        "$@" & second=$!
        wait $first && wait $second""",
    "torchrun": f"""
        exec {sys.executable} -m torch.distributed.run --local-addr=127.0.0.1 "$@" """,
}


@pytest.mark.parametrize("recipe", ["slurm", "one machine"])
def test_recipes_of_the_readme_train_as_one_process(recipe, world, new_run, tmp_path):
    """The README's own words, with two processes a machine on the CPU instead of four GPUs."""
    text = (Path(__file__).parent.parent / "README.md").read_text()
    slurm = re.search(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", text, re.S).group(1)
    single = re.search(r"^(lofi train lofi .*--processes 4)  +# one machine$", text, re.M).group(1)
    run = new_run("recipe")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = words("lofi", world, run, **{"lofi.training.epochs": 1})[2:]
    script = slurm if recipe == "slurm" else single
    changes = {
        r"--preset activitynet --out \S+ …": " ".join(options), "--device cuda": "--device cpu",
        "--nproc-per-node=4": "--nproc-per-node=2", "--processes 4": "--processes 2",
        "29500": port,
    }  # fmt: skip
    for old, new in changes.items():
        script = re.sub(old, new, script)
    for name, body in {**FAKES, "lofi": f'exec {sys.executable} -m lofi "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "n", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
    environment = {**ENVIRONMENT, **job, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    alone = new_run("recipe-alone")
    values = {**SMALL, "lofi.training.epochs": 1, "data.world": str(world)}
    train_lofi(configs.override(configs.preset("tiny"), values), alone)
    assert steps_done(run) == steps_done(alone) == 2
    assert largest_difference(run, alone) < 1e-6
