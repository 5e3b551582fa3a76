"""Commands that train, extract features and detect."""

import os
import sys
from inspect import signature
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from lofi.commands.progress import also_tensorboard, progress_lines
from lofi.config import Config
from lofi.files import atomic_path

Method = Annotated[
    str, arg(help="whose encoder (random, acp, acp+, c-lofi, …); default: what is configured")
]
Variant = Annotated[
    str, arg(help="changes for this head alone, kept beside others: lr=0.001,seed=3,kind=bmn")
]
StageName = Literal["acp", "acp+", "icp", "arrow", "speed", "lofi", "features", "head", "classes",
                    "detect", "evaluate"]  # fmt: skip


def train(
    stage: Positional[StageName],
    /,
    out: Path,
    config: Annotated[Config, arg(name="")],
    method: Method = "",
    variant: Variant = "",
    resume: bool = True,
    device: str = "cpu",
    processes: int = 1,
    tensorboard: bool = False,
) -> None:
    """Run one stage of the procedure in the run folder OUT; finished stages return at once.

    Stages: acp, acp+, icp (classification), arrow, speed (without labels), lofi (joint, low
    fidelity), features (frozen encoder), head, classes (video classifier), detect (the test
    videos), evaluate (mAP). Settings: --preset NAME < --config FILE, whole or partial (such as the
    config.json of another run) < options.

    Args:
        out: run folder; every method gets a folder in it.
        resume: go on from the last checkpoint; --no-resume recomputes.
        device: cpu, cuda, cuda:1, mps, …
        processes: on this machine that train together; with --device cuda one for each GPU. For
            several machines start torchrun on each (README). The result does not depend on it.
        tensorboard: also write losses for TensorBoard to OUT/tensorboard (extra "gpu" or "dev").
    """
    from lofi.experiment import STAGES
    from lofi.training.distributed import is_first, joined
    from lofi.training.methods import write_run_config

    one_thread_for_small_work(config)
    on_step = progress_lines(stage)
    run = STAGES[stage].run
    with joined(device) as device:
        if tensorboard and is_first():
            on_step = also_tensorboard(on_step, out / "tensorboard" / stage)
        given = {"method": method, "variant": variant}
        given |= {"resume": resume, "on_step": on_step, "device": device}
        taken = {key: value for key, value in given.items() if key in signature(run).parameters}
        for option in ("method", "variant"):
            if given[option] and option not in taken:
                raise ValueError(f"stage {stage} has no --{option}; leave it out")
        result = run(config, out, **taken)
        write_run_config(config, out)  # not earlier: a refused run leaves the old one in place
        if is_first():
            shown = [key for key in result if key not in ("classes", "skipped")]
            print(" ".join(f"{key}={result[key]}" for key in shown))
            if result.get("skipped"):
                print(f"{len(result['skipped'])} items could not be read; see skipped.jsonl")


def one_thread_for_small_work(config: Config) -> None:
    """The toy networks are too small to share: threads that wait for each other cost time."""
    import torch

    if config.preset in ("tiny", "toy") and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def features(
    out: Path,
    config: Annotated[Config, arg(name="")],
    method: Method = "",
    device: str = "cpu",
    processes: int = 1,
) -> None:
    """Features of all training and test videos from a method's frozen encoder, full fidelity."""
    train("features", out=out, config=config, method=method, device=device)


def detect(
    videos: Positional[list[Path]],
    /,
    model: Path,
    out: Path = Path("detections"),
    method: str = "",
    variant: Variant = "",
    top: int = 10,
    device: str = "cpu",
    processes: int = 1,
) -> None:
    """Find actions in video files: a table, CSV, JSON, .srt subtitles and a timeline picture each.

    Args:
        model: run folder (or one method's folder in it) with a trained encoder and head.
        out: folder for the results.
        method: which encoder of the run; "" = the best trained one.
        top: lines printed a video; the files hold all detections.
        processes: that share the videos.
    """
    from lofi.detection.detector import Detector
    from lofi.training.distributed import gather, joined, share

    with joined(device) as device:
        detector = Detector.load(model, method, device, variant)
        failed = []
        for i in share(len(videos)):
            try:
                _detect_one(detector, videos[i], out, top)
            except (ValueError, FileNotFoundError) as error:
                failed.append(str(error))
                print(f"lofi: {error}", file=sys.stderr)
        if any(gather(failed)):
            raise SystemExit(1)


def _detect_one(detector, path: Path, out: Path, top: int) -> None:
    from lofi.detection.detector import write_results
    from lofi.figures.tables import detections_table
    from lofi.report import detections_figure

    found = detector.detect(path)
    files = write_results(found, path, out, detector)
    with atomic_path(out / f"{path.stem}.png") as picture:
        detections_figure(path, found).savefig(picture, dpi=110)
    files.append(out / f"{path.stem}.png")
    print(f"{path}: {len(found)} detections, the best {min(top, len(found))}:")
    print(detections_table(found[:top]).text())
    print("wrote " + ", ".join(str(file) for file in files))
