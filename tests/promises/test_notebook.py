"""The notebook runs from top to bottom, and is kept without what it printed."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent.parent / "examples" / "quickstart.ipynb"


def test_it_is_kept_without_outputs():
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 8 and not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.slow(seconds=30)
def test_every_cell_runs(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (length,) = (cell for cell in notebook.cells if cell.source == "STEPS = 240")
    length.source = "STEPS = 10"
    client = NotebookClient(notebook, timeout=2750, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # raises on the first cell that fails
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) >= 2, "the figures"
    assert "planted mistakes" in str(shown)
    assert (tmp_path / "runs" / "notebook" / "report" / "index.html").is_file()
