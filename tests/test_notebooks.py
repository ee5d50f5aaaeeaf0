"""The notebooks run from top to bottom, and are committed with their outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_executed_and_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    pictures = [o for cell in code for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 3
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()


def test_there_is_a_quickstart():
    assert "01_quickstart.ipynb" in [path.name for path in NOTEBOOKS]
