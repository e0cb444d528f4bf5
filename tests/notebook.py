"""Runs docs/quickstart.ipynb and keeps what its cells display: `make notebook`.

The kernel is this Python, whatever kernels are installed, and neither reads nor writes the user's settings and history.
What is kept names no version and no time of the machine it was made on.
"""

import base64
import io
import json
import os
import pathlib
import re
import sys
import tempfile
from unittest import mock

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
QUICKSTART = ROOT / "docs" / "quickstart.ipynb"
#: What is kept of a notebook's metadata.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_WIDTH = 912  # pixels
_KERNEL = {
    "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--IPKernelApp.log_level=ERROR"],
    "display_name": "Python 3",
    "language": "python",
    "env": {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else the debugger, which nobody asked for, warns
        "PYTHONPATH": str(ROOT),
    },
}


def run(notebook: nbformat.NotebookNode, folder: pathlib.Path) -> None:
    """Runs every cell in that folder, and replaces the outputs.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell raises an error.
    """
    kernel = folder / ".jupyter" / "kernels" / "this-python"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps(_KERNEL), encoding="utf-8")
    own = {
        "JUPYTER_PATH": str(folder / ".jupyter"),
        "JUPYTER_RUNTIME_DIR": str(folder / ".jupyter" / "runtime"),
        "IPYTHONDIR": str(folder / ".ipython"),
    }
    with mock.patch.dict(os.environ, own):
        NotebookClient(
            notebook,
            kernel_name="this-python",
            timeout=600,
            record_timing=False,
            resources={"metadata": {"path": str(folder)}},
        ).execute()
    notebook.metadata = nbformat.from_dict(METADATA)


def shrink(notebook: nbformat.NotebookNode) -> None:
    """Gives its pictures 256 colours each and the width of a page, which makes them five times smaller."""
    for output in [output for cell in notebook.cells for output in cell.get("outputs", ())]:
        for kind, data in output.get("data", {}).items():
            if kind == "image/png":
                output.data[kind] = _smaller(data)
            elif kind == "text/html":
                output.data[kind] = re.sub(r"(?<=data:image/png;base64,)[^\"]+", lambda png: _smaller(png[0]), data)


def _smaller(png: str) -> str:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        image = image.convert("RGB")
        image.thumbnail((_WIDTH, 10 * _WIDTH))
        image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    quickstart = nbformat.read(QUICKSTART, as_version=4)
    with tempfile.TemporaryDirectory() as name:
        run(quickstart, pathlib.Path(name))
    shrink(quickstart)
    nbformat.write(quickstart, QUICKSTART)
