"""`import lit_semantic_peft as lsp`: every name is there, editors see the same names, and nothing heavy is loaded."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import lit_semantic_peft as lsp
import pytest

SOURCE = Path(lsp.__file__)
HEAVY = ("torch", "lightning", "transformers", "peft", "pyarrow", "numpy")


@pytest.mark.parametrize("name", [name for name in lsp.__all__ if name != "__version__"])
def test_a_name_is_the_object_of_its_module(name):
    value = getattr(lsp, name)
    if name.islower() and (SOURCE.parent / name).is_dir():
        assert value is import_module(f"lit_semantic_peft.{name}")
    else:
        assert value.__name__ == name
        assert value.__module__.startswith("lit_semantic_peft.")


def test_editors_and_type_checkers_see_the_same_names():
    (block,) = (node for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == set(lsp.__all__) - {"__version__"}
    assert dir(lsp) == sorted(lsp.__all__)


def test_every_stage_is_there_before_anything_of_it_was_used():
    stages = sorted(path.parent.name for path in SOURCE.parent.glob("*/__init__.py") if path.parent.name != "cli")
    code = f"import lit_semantic_peft as lsp; print(*(getattr(lsp, name).__name__ for name in {stages}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"lit_semantic_peft.{name}" for name in stages]
    assert {"training", "callbacks", "reports"} <= set(stages)


def test_the_version_is_the_installed_one():
    from importlib.metadata import version

    assert lsp.__version__ == version("lit-semantic-peft")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Lora'"):
        _ = lsp.Lora


def test_importing_and_listing_load_nothing_heavy():
    code = f"import sys, lit_semantic_peft as lsp; dir(lsp); print(*set({HEAVY}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    assert len(lsp.__all__) >= 20


@pytest.mark.parametrize("package", ["data", "evaluation", "interference"])
def test_a_stage_that_loads_its_names_when_used_has_all_of_them(package):
    stage = import_module(f"lit_semantic_peft.{package}")
    assert dir(stage) == sorted(stage.__all__)
    assert all(getattr(stage, name) is not None for name in stage.__all__)
    with pytest.raises(AttributeError, match=f"module 'lit_semantic_peft.{package}' has no attribute 'Lora'"):
        _ = stage.Lora
