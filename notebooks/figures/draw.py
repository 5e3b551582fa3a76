"""Every diagram of the course, drawn beside this file: `python -m figures.draw` in notebooks/.

`notebooks/refresh.py` does so too. Notebooks and README show the files, which are committed.
"""

from pathlib import Path

from figures import evaluation, evidence, method, networks

from lofi.files import write_text

PICTURES = {
    "three_stages": method.three_stages,
    "snippets": method.snippets,
    "lofi_batches": method.lofi_batches,
    "two_pass": method.two_pass,
    "residual_block": networks.residual_block,
    "temporal_shift": networks.temporal_shift,
    "r2plus1d": networks.r2plus1d,
    "gcnext": networks.gcnext,
    "sgalign": networks.sgalign,
    "bmn_sampling": networks.bmn_sampling,
    "mask_pyramid": networks.mask_pyramid,
    "b_f_steps": networks.b_f_steps,
    "matching": evaluation.matching,
    "interpolation": evaluation.interpolation,
    "suppression": evaluation.suppression,
    "errors": evaluation.errors,
    "points": evaluation.points,
    "paired_seeds": evidence.paired_seeds,
    "verdicts": evidence.verdicts,
}


def draw() -> None:
    for name, picture in PICTURES.items():
        write_text(Path(__file__).with_name(f"{name}.svg"), picture().svg())


if __name__ == "__main__":
    draw()
