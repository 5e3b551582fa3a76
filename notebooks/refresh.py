"""Execute the notebooks in place at their default parameters (preset tiny): `make notebooks`.

    python notebooks/refresh.py [NOTEBOOK …]     # without names all of them, and the solutions

Their outputs are committed: readers see them, and the notebook tests compare with them. The
diagrams are drawn again too.
"""

import os
import sys
from pathlib import Path

import matplotlib
import nbformat
from figures.draw import draw
from nbclient import NotebookClient

from lofi.course import ordered_notebooks
from lofi.files import atomic_path

FOLDER = Path(__file__).resolve().parent


def main() -> None:
    matplotlib.use("Agg")
    os.environ["LOFI_STATIC"] = "1"
    paths = [Path(name) for name in sys.argv[1:]]
    if not paths:
        draw()
        paths = [*ordered_notebooks(), *sorted(FOLDER.glob("solutions/*.ipynb"))]
    for path in paths:
        print(path.name, file=sys.stderr, flush=True)
        book = nbformat.read(path, as_version=4)
        NotebookClient(
            book, timeout=1800, kernel_name="python3", record_timing=False,
            resources={"metadata": {"path": str(path.parent)}},
        ).execute()  # fmt: skip
        for cell in book.cells:  # stderr holds versions and paths of this machine
            if cell.cell_type == "code":
                cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        book.metadata.pop("widgets", None)
        book.metadata["language_info"] = {"name": "python"}
        with atomic_path(path) as temporary:
            nbformat.write(book, temporary)


if __name__ == "__main__":
    main()
