"""Every notebook runs from top to bottom, on a tiny model."""

import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


class ThisInterpreter(AsyncKernelManager):
    """The kernel of the environment that runs the tests, whatever kernels are installed for the user."""

    def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
        return [sys.executable, "-m", "ipykernel_launcher", "-f", self.connection_file]


@pytest.fixture(scope="module")
def kernel(tiny_model, tmp_path_factory) -> Iterator[ThisInterpreter]:
    """One process for all notebooks: each takes less time than what it imports."""
    manager = ThisInterpreter(kernel_name="python3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_SEMANTIC_PEFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("LIT_SEMANTIC_PEFT_NOTEBOOK_MODEL", str(tiny_model))
        patch.setenv("LIT_SEMANTIC_PEFT_NOTEBOOK_EPOCHS", "2")
        run_sync(manager.start_kernel)()
    yield manager
    run_sync(manager.shutdown_kernel)(now=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, kernel):
    notebook = nbformat.read(path, as_version=4)
    stored = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert "image/png" in stored[-1].data, "the site shows the outputs: jupyter execute --inplace"
    assert not [output for output in stored if output.output_type == "error"]
    # Nothing of the notebook before it is left but what was imported.
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    client = NotebookClient(notebook, timeout=120, km=kernel)
    client.execute()
    client.kc.stop_channels()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    shown = [output.data for cell in code for output in cell.outputs if "data" in output]
    assert not [data for data in shown if data["text/plain"].startswith("<Figure") and "image/png" not in data]
    assert "image/png" in shown[-1]


def test_there_are_notebooks():
    assert NOTEBOOKS
