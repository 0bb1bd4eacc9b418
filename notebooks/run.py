"""Runs every notebook from top to bottom, each in an empty folder, and writes it with its outputs.

python notebooks/run.py [OUT]     into the folder OUT; by default in place

Ends with the traceback of the first cell that fails.
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
_WIDGET = "application/vnd.jupyter.widget-view+json"  # of progress bars, which are empty without a kernel


def main() -> None:
    """Runs them."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # for medgan in cells
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA complains of slow machines
    for path in sorted(HERE.glob("*.ipynb")):
        print(path.name, flush=True)
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            NotebookClient(
                notebook, timeout=900, resources={"metadata": {"path": folder}}, coalesce_streams=True,
                record_timing=False, store_widget_state=False,
            ).execute()  # fmt: skip
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if _WIDGET not in output.get("data", {})]
                for output in cell.outputs:
                    output.get("data", {}).pop("image/jpeg", None)  # Pillow gives each picture as PNG and as JPEG
        notebook.metadata.language_info = {"name": "python"}  # without the version that ran it
        nbformat.write(notebook, out / path.name)


if __name__ == "__main__":
    main()
