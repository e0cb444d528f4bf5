"""docs/quickstart.ipynb runs from top to bottom, offline, and what it displays was kept."""

import pathlib
import re

import nbformat
import pytest

from tests.notebook import METADATA, QUICKSTART, run


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def displayed(notebook: nbformat.NotebookNode) -> list[str]:
    """Everything displayed, in its richest form: HTML, a picture, or text."""
    kinds = ("text/html", "image/png", "text/plain")
    return [next(kind for kind in kinds if kind in output.data) for output in outputs(notebook) if "data" in output]


def printed(notebook: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in outputs(notebook) if output.output_type == "stream")


def arrays(notebook: nbformat.NotebookNode) -> dict[str, tuple[int, ...]]:
    """Shapes of the result's arrays by name, as the notebook prints them."""
    lines = re.findall(r"^(\w+) +\w+ +\(([\d, ]+)\)$", printed(notebook), flags=re.MULTILINE)
    return {name: tuple(int(side) for side in shape.split(",") if side.strip()) for name, shape in lines}


@pytest.fixture(scope="module")
def kept() -> nbformat.NotebookNode:
    return nbformat.read(QUICKSTART, as_version=4)


def test_what_it_displays_was_kept(kept):
    nbformat.validate(kept)
    code = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert kept.metadata == METADATA and not any(cell.metadata for cell in kept.cells)
    assert QUICKSTART.stat().st_size < 500e3


def test_a_sentence_precedes_each_cell(kept):
    kinds = [cell.cell_type for cell in kept.cells]
    assert kinds == ["markdown", "code"] * (len(kinds) // 2)


@pytest.mark.slow
def test_it_runs(kept, tmp_path: pathlib.Path):
    """With fewer frames than it has."""
    quick, changes = nbformat.from_dict(kept), 0
    for cell in quick.cells:
        cell.source, count = re.subn(r"^NUM_FRAMES = 6$", "NUM_FRAMES = 3", cell.source, flags=re.MULTILINE)
        changes += count
    assert changes == 1
    run(quick, tmp_path)
    assert {output.output_type for output in outputs(quick)} <= {"stream", "display_data", "execute_result"}
    assert not [output.text for output in outputs(quick) if output.get("name") == "stderr"]  # warnings
    assert displayed(quick) == displayed(kept) and displayed(quick).count("image/png") >= 6
    shapes = arrays(quick)
    assert shapes["world_from_cam"] == (3, 4, 4) and shapes["depth"] == shapes["dynamic_mask"] == (3, 64, 96)
    assert {name: (6, *shape[1:]) for name, shape in shapes.items()} == arrays(kept)
    assert (tmp_path / "results" / "quickstart" / "scene.npz").is_file()
