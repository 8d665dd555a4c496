"""Run every cell of the notebooks: ``python docs/examples/execute.py [--write] [NAME...]``.

A cell that fails ends with an error. ``--write`` keeps the outputs in the notebooks. NAME: a
notebook's name without its ending; default: all of them.
"""

from __future__ import annotations

import argparse
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
AT_ONCE = 2  # each has a process of its own


def execute(path: Path, *, write: bool) -> None:
    """Run a notebook; with ``write`` store it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        # Sockets of files: two kernels that start at once may choose the same TCP port.
        kernel = AsyncKernelManager(
            kernel_name="python3", transport="ipc", connection_file=f"{folder}/kernel.json"
        )
        NotebookClient(notebook, km=kernel, timeout=600).execute(cleanup_kc=True)
    if not write:
        return
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of this machine
        for output in cell.get("outputs", []):
            if "text" in output:
                output["text"] = re.sub(r"/\S*/(?=outputs/)", "", output["text"])
    nbformat.write(notebook, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    names = options.names or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    paths = [FOLDER / f"{name}.ipynb" for name in names]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        # list() raises the first error.
        list(pool.map(lambda path: execute(path, write=options.write), paths))


if __name__ == "__main__":
    main()
