"""Every plot and table of this kit: plain data in, matplotlib Axes (or a small table) out.

`ax` is where to draw; a new figure when None.
"""

from lofi.figures.curves import (
    diagnosis_figure,
    error_profile,
    loss_curves,
    precision_recall,
    sensitivity_bars,
    share_bars,
)
from lofi.figures.maps import (
    boundary_curves,
    confidence_map,
    label_map,
    neighbour_graph,
    similarity,
)
from lofi.figures.memory import (
    bytes_by_configuration,
    bytes_by_layer,
    memory_wall,
    peak_by_snippets,
)
from lofi.figures.tables import (
    Table,
    detections_table,
    paper_numbers,
    paper_table,
    paper_vs_ours,
    results_bars,
    results_rows,
    results_table,
    summary_table,
)
from lofi.figures.timelines import film, judge, thumbnails, timeline, video_timeline

__all__ = [
    "Table", "boundary_curves", "bytes_by_configuration", "bytes_by_layer", "confidence_map",
    "detections_table", "diagnosis_figure", "error_profile", "film", "judge", "label_map",
    "loss_curves", "memory_wall", "neighbour_graph", "paper_numbers", "paper_table",
    "paper_vs_ours", "peak_by_snippets", "precision_recall", "results_bars", "results_rows",
    "results_table", "sensitivity_bars", "share_bars", "similarity", "summary_table",
    "thumbnails", "timeline", "video_timeline",
]  # fmt: skip
