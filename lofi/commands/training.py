"""Commands that train, extract features and detect."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from lofi.commands.progress import also_tensorboard, progress_lines
from lofi.config import Config
from lofi.files import atomic_path

Method = Annotated[str, arg(help="whose encoder: random, acp, acp+, c-lofi, s-lofi, …")]


def train(
    stage: Positional[Literal["acp", "acp+", "icp", "arrow", "speed", "lofi", "features", "head"]],
    /,
    out: Path,
    config: Annotated[Config, arg(name="")],
    method: Method = "c-lofi",
    resume: bool = True,
    device: str = "cpu",
    processes: int = 1,
    tensorboard: bool = False,
) -> None:
    """Run one stage of the procedure in the run folder OUT; finished stages return at once.

    Stages: acp, acp+, icp (classification), arrow, speed (without labels), lofi (joint, low
    fidelity), features (frozen encoder), head. Settings start from --preset NAME, or from
    --config FILE (the config.json of another run).

    Args:
        out: run folder; every method gets a folder in it.
        resume: go on from the last checkpoint; --no-resume recomputes.
        device: cpu, cuda, cuda:1, mps, …
        processes: on this machine that train together; with --device cuda one for each GPU. For
            several machines start torchrun on each (README). The result does not depend on it.
        tensorboard: also write losses for TensorBoard to OUT/tensorboard (extra "gpu" or "dev").
    """
    from lofi.training.distributed import is_first, joined
    from lofi.training.models import write_run_config

    one_thread_for_small_work(config)
    on_step = progress_lines(stage)
    with joined(device) as device:
        if tensorboard and is_first():
            on_step = also_tensorboard(on_step, out / "tensorboard" / stage)
        common = {"on_step": on_step, "device": device, "resume": resume}
        result = _run_stage(stage, config, out, method, common)
        write_run_config(config, out)  # not earlier: a refused run leaves the old one in place
        if is_first():
            shown = [key for key in result if key not in ("classes", "skipped")]
            print(" ".join(f"{key}={result[key]}" for key in shown))
            if result.get("skipped"):
                print(f"{len(result['skipped'])} items could not be read; see skipped.jsonl")


def _run_stage(stage: str, config: Config, out: Path, method: str, common: dict) -> dict:
    from lofi.training import full_fidelity, joint, pretext, pretraining

    if stage == "features":
        return {"features": full_fidelity.extract_features(config, out, method, **common)}
    if stage == "head":
        return full_fidelity.train_head(config, out, method, **common)
    run = {
        "acp": pretraining.train_acp,
        "acp+": pretraining.train_acp_plus,
        "icp": pretraining.train_icp,
        "arrow": pretext.train_arrow,
        "speed": pretext.train_speed,
        "lofi": joint.train_lofi,
    }[stage]
    return run(config, out, **common)


def one_thread_for_small_work(config: Config) -> None:
    """The toy networks are too small to share: threads that wait for each other cost time."""
    import torch

    if config.preset in ("tiny", "toy") and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def features(
    out: Path,
    config: Annotated[Config, arg(name="")],
    method: Method = "c-lofi",
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
        detector = Detector.load(model, method=method, device=device)
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
