"""Every notebook runs from top to bottom, on a tiny model."""

import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tiny_model, monkeypatch):
    monkeypatch.setenv("LIT_SEMANTIC_PEFT_NOTEBOOK_MODEL", str(tiny_model))
    monkeypatch.setenv("LIT_SEMANTIC_PEFT_NOTEBOOK_EPOCHS", "2")
    notebook = nbformat.read(path, as_version=4)
    stored = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert "image/png" in stored[-1].data, "the site shows the outputs: jupyter execute --inplace"
    assert not [output for output in stored if output.output_type == "error"]

    class ThisInterpreter(AsyncKernelManager):
        """The kernel of the environment that runs the tests, whatever kernels are installed for the user."""

        def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
            return [sys.executable, "-m", "ipykernel_launcher", "-f", self.connection_file]

    client = NotebookClient(notebook, timeout=120, kernel_name="python3", kernel_manager_class=ThisInterpreter)
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    shown = [output.data for cell in code for output in cell.outputs if "data" in output]
    assert not [data for data in shown if data["text/plain"].startswith("<Figure") and "image/png" not in data]
    assert "image/png" in shown[-1]


def test_there_are_notebooks():
    assert NOTEBOOKS
