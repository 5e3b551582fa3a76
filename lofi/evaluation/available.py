"""Which videos count: evaluation as if those that cannot be had did not exist."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lofi.evaluation.tables import Predictions, Truth, read_fast


def restrict(truth: Truth, found: Predictions, ids: Collection[str]) -> tuple[Truth, Predictions]:
    """Both tables as if only the videos `ids` of the ground truth existed.

    Classes that then have no instance vanish, with their predictions; predictions in videos that
    the ground truth never had stay.

    Raises:
        ValueError: none of `ids` is annotated.
    """
    keep = np.array([name in ids for name in truth.videos])
    if not keep.any():
        raise ValueError(
            f"none of the {len(ids)} available videos is among the {len(truth.videos)} annotated "
            f"ones of subset {truth.subset!r} (first: {truth.videos[0]}); check the ids"
        )
    fewer = truth.select(keep[truth.video])
    left_out = set(truth.videos) - set(fewer.videos)
    here = np.array([name not in left_out for name in found.videos], bool)[found.video]
    return fewer, without_labels(found.select(here), set(truth.classes) - set(fewer.classes))


def without_labels(found: Predictions, gone: Collection[str]) -> Predictions:
    """The predictions of all other classes."""
    names = tuple(name for name in found.labels if name not in gone)
    if len(names) == len(found.labels):
        return found
    index = {name: i for i, name in enumerate(names)}
    moved = np.array([index.get(name, -1) for name in found.labels], np.int64)[found.label]
    return found.select(moved >= 0)._replace(labels=names, label=moved[moved >= 0])


def available_ids(source: Any, found: Predictions) -> Collection[str]:
    """Which videos could be had.

    Args:
        source: "auto" = every video with an entry (perhaps empty) in the prediction file; a path:
            text with one id a line, JSON list, or JSON with "database" or "results"; or the ids.
            A prefix `v_` is dropped where the id is then known.
    """
    if isinstance(source, str) and source == "auto":
        return frozenset(found.videos)
    if isinstance(source, str | Path):
        path = Path(source)
        if path.suffix.lower() == ".json":
            source = read_fast(path, "list of available videos")
            if isinstance(source, Mapping):
                source = source.get("database", source.get("results", source))
        elif path.is_file():
            source = path.read_text(encoding="utf-8").split()
        else:
            raise FileNotFoundError(
                f'{path}: no such file (expected the ids of available videos, or "auto")'
            )
    ids = [str(name) for name in source]
    return frozenset(ids) | {name.removeprefix("v_") for name in ids}
