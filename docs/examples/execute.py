"""Run every cell of a notebook: ``python docs/examples/execute.py [--write]``.

A cell that fails ends with an error. ``--write`` keeps the outputs in the notebook.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent / "first_ten_minutes.ipynb"


def main() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    if "--write" in sys.argv[1:]:
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times of this machine
            for output in cell.get("outputs", []):
                if "text" in output:
                    output["text"] = re.sub(r"/\S*/(?=outputs/)", "", output["text"])
        nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
