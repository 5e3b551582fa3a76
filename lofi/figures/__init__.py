"""Every plot and table of this kit: plain data in, matplotlib Axes (or a small table) out.

`ax` is where to draw; a new figure when None.
"""

from lofi.figures.curves import (
    diagnosis_figure,
    error_profile,
    loss_curves,
    paired_dots,
    sensitivity_bars,
)
from lofi.figures.maps import boundary_curves, confidence_map, similarity
from lofi.figures.tables import (
    Table,
    amnet_table,
    paper_numbers,
    paper_table,
    paper_tables,
    paper_vs_ours,
    results_bars,
    results_table,
)
from lofi.figures.timelines import judge, thumbnails, timeline, video_timeline
