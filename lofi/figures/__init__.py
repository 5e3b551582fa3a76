"""Every plot and table of this kit: plain data in, matplotlib Axes (or a small table) out."""

from lofi.figures.curves import learning_rate, loss_curves, precision_recall
from lofi.figures.errors import diagnosis_figure, error_profile, sensitivity_bars
from lofi.figures.maps import (
    boundary_curves,
    confidence_map,
    label_map,
    neighbour_graph,
    similarity,
    valid_cells,
)
from lofi.figures.memory import (
    bytes_by_configuration,
    bytes_by_layer,
    memory_wall,
    peak_by_snippets,
)
from lofi.figures.method import three_stages
from lofi.figures.paper import INCONSISTENCIES, paper_numbers, paper_table, paper_vs_ours
from lofi.figures.report import Details, Picture, Section, write_report
from lofi.figures.tables import (
    Table,
    detections_table,
    results_bars,
    results_rows,
    results_table,
    summary_table,
)
from lofi.figures.timelines import judge, thumbnails, timeline, video_timeline

__all__ = [
    "INCONSISTENCIES",
    "Details",
    "Picture",
    "Section",
    "Table",
    "boundary_curves",
    "bytes_by_configuration",
    "bytes_by_layer",
    "confidence_map",
    "detections_table",
    "diagnosis_figure",
    "error_profile",
    "judge",
    "label_map",
    "learning_rate",
    "loss_curves",
    "memory_wall",
    "neighbour_graph",
    "paper_numbers",
    "paper_table",
    "paper_vs_ours",
    "peak_by_snippets",
    "precision_recall",
    "results_bars",
    "results_rows",
    "results_table",
    "sensitivity_bars",
    "similarity",
    "summary_table",
    "three_stages",
    "thumbnails",
    "timeline",
    "valid_cells",
    "video_timeline",
    "write_report",
]
