"""Commands that predict memory."""

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from lofi.files import write_json


def memory(
    encoder: str = "tsm-r18",
    snippets: int = 100,
    pixels: int = 224,
    frames: int = 8,
    batch: int = 16,
    head: Literal["gtad", "bmn", "none"] = "gtad",
    amp: Literal["fp32", "bf16"] = "fp32",
    mode: Literal["full", "exact", "sampled", "partial", "frozen"] = "full",
    chunk: int = 4,
    ratio: float = 0.3,
    stage: str = "layer2",
    recompute: bool = False,
    fold: bool = False,
    micro_batch: int = 0,
    top: int = 8,
    json: Path | None = None,
) -> None:
    """Memory of one training step, predicted without a GPU and without allocating it.

    Args:
        mode: how the encoder's gradient is found; "full" is one graph, as in every LoFi step.
        chunk: snippets encoded at a time (exact, sampled, frozen).
        ratio: share of the snippets that get a gradient (sampled).
        stage: last frozen stage (partial).
        recompute: run blocks again in the backward pass instead of keeping activations.
        fold: frozen batch normalisation folded into the convolutions.
        micro_batch: videos whose graph is held at once; 0 = the batch.
        top: largest consumers that are listed.
    """
    from lofi.budget import GIB, activation_bytes
    from lofi.config import Mode
    from lofi.fidelity import Fidelity

    model, built = _encoder_and_head(encoder, head, snippets)
    how = Mode(mode, chunk, ratio, stage=stage, recompute=recompute, fold=fold)
    fidelity = Fidelity(snippets, frames, pixels)
    report = activation_bytes(model, built, fidelity, batch, amp, how, micro_batch)
    if json:
        write_json(json, report.as_dict())
    print(f"{encoder}, {head} head, {report.fidelity}, batch {batch}, {amp}, mode {report.mode}")
    print(f"saved for the backward pass  {report.saved_bytes / GIB:9.2f} GiB")
    print(f"  a video                    {report.saved_bytes_per_video / GIB:9.2f} GiB")
    print(f"peak of the step             {report.peak_bytes / GIB:9.2f} GiB")
    print(f"parameters                   {report.parameters_bytes / GIB:9.3f} GiB")
    for row in report.top[:top]:
        print(f"  {row.bytes / report.saved_bytes:6.1%}  {row.name} ({row.kind})")


def plan(
    budget_gib: float,
    encoder: str = "tsm-r18",
    snippets: int = 100,
    pixels: int = 224,
    frames: int = 8,
    batch: int = 16,
    head: Literal["gtad", "bmn", "none"] = "gtad",
    amp: Literal["fp32", "bf16"] = "fp32",
    json: Path | None = None,
) -> None:
    """Which fidelities and encoder modes fit a memory budget, and what they cost.

    Args:
        budget_gib: memory of one device in GiB.
        batch: videos a step on that device.
    """
    from lofi.budget import GIB
    from lofi.budget import plan as make_plan
    from lofi.fidelity import Fidelity
    from lofi.figures.tables import Table

    model, built = _encoder_and_head(encoder, head, snippets)
    rows = make_plan(budget_gib, model, built, Fidelity(snippets, frames, pixels), batch, amp)
    if json:
        write_json(json, [asdict(row) for row in rows])
    header = ("configuration", "L×F×S²", "mode", "peak GiB", "fits", "largest batch", "compute",
              "frames a video")  # fmt: skip
    body = tuple(
        (
            row.configuration, str(row.fidelity), str(row.mode), f"{row.peak_bytes / GIB:.1f}",
            "yes" if row.fits else "no", str(row.largest_batch), f"{row.relative_compute:.2f}",
            str(row.decoded_frames),
        )
        for row in rows
    )  # fmt: skip
    print(Table(header, body, f"{encoder}, batch {batch}, {amp}, {budget_gib:g} GiB").text())


def _encoder_and_head(encoder: str, head: str, snippets: int) -> tuple:
    from lofi.config import BMNConfig, GTADConfig
    from lofi.encoders import build_encoder, freeze_batch_norm
    from lofi.heads import build_head

    model = build_encoder(encoder)
    freeze_batch_norm(model)  # as stage 2 trains by default
    if head == "none":
        return model, None
    return model, build_head(BMNConfig() if head == "bmn" else GTADConfig(), model.channels)
