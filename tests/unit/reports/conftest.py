"""Makes the synthetic run folder available to the tests of this folder."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from lit_semantic_peft.reports.run_folder import RunFolder

_SOURCE = Path(__file__).parents[2] / "fixtures" / "run_folder.py"


def _load_writer() -> Callable[..., RunFolder]:
    # `tests` is no package, so the module is loaded from its file.
    spec = importlib.util.spec_from_file_location("fixture_run_folder", _SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_run_folder


@pytest.fixture(scope="session")
def write_run_folder() -> Callable[..., RunFolder]:
    return _load_writer()


@pytest.fixture
def run_folder(tmp_path: Path, write_run_folder: Callable[..., RunFolder]) -> RunFolder:
    return write_run_folder(tmp_path / "run")
