"""The proposals of a video after soft-NMS, those of sliding windows joined.

Sources: released post-processing of G-TAD (ActivityNet, HACS; sliding windows of THUMOS14) and BMN.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from lofi.config import PostProcessing
from lofi.detection.nms import GridSoftNMS, soft_nms
from lofi.detection.nms_bmn import soft_nms_bmn
from lofi.detection.nms_points import suppress_points
from lofi.heads.base import Proposals


def suppress(windows: Sequence[Proposals], post: PostProcessing, joined: bool = False) -> Proposals:
    """Soft-NMS over the proposals of one video, best first.

    `joined`: `windows` are sliding windows; suppression runs inside each, then over their union.
    ValueError for no proposal at all, or windows with another suppression than "gaussian".
    """
    if joined:
        if post.suppression != "gaussian":
            raise ValueError(
                f"detect.suppression is {post.suppression!r}, but windows are joined by soft-NMS; "
                "set it to gaussian, or data.window_stride to 0"
            )
        limits = post.sigma, post.top_k
        kept = [soft_nms(window.segments_s, window.scores, *limits) for window in windows]
        return Proposals(*soft_nms(*map(np.concatenate, zip(*kept)), *limits))
    (table,) = windows
    if post.suppression in ("per-class", "joint"):
        return suppress_points(table, post)
    if not len(table.scores):
        if table.grid is not None:  # no point is sure enough: nothing is found
            return table
        raise ValueError("no cell of the maps is a proposal; use more snippets")
    if post.suppression == "bmn":  # its limits count in shares of the video
        shares = table.cells / table.steps
        found, scores = soft_nms_bmn(shares, table.scores, post.sigma, top_k=post.top_k)
        row_of = {cell: row for row, cell in enumerate(map(tuple, table.cells))}
        cells = np.rint(found * table.steps).astype(int)
        rows = np.array([row_of[tuple(cell)] for cell in cells], int)
    elif table.cells is not None:
        rows, scores = _grid(table.steps, post.sigma)(table.cells, table.scores, post.top_k)
    else:
        return Proposals(*soft_nms(table.segments_s, table.scores, post.sigma, post.top_k))
    return Proposals(table.segments_s[rows], scores, cells=table.cells[rows], steps=table.steps)


@lru_cache(maxsize=4)
def _grid(steps: int, sigma: float) -> GridSoftNMS:
    """The same segments in every video: factors are computed once a process."""
    return GridSoftNMS(steps, steps, sigma)
