"""The order in which the folders of the package may import each other, held by reading every import."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import lit_semantic_peft
import pytest

PACKAGE = "lit_semantic_peft"
ROOT = Path(lit_semantic_peft.__file__).parent
ORDER = [
    *("facts", "tokens", "adapters", "models", "interference", "metrics"),
    *("semantics", "evaluation", "data", "training", "reports", "audit", "callbacks", "cli"),
]
GROUND = [  # below all
    *("lazy", "errors", "arguments", "files", "locks", "terminal", "statistics", "stopwatch", "cache"),
    *("situation", "compatibility", "yaml_text"),
]
REACHES = {("cache", "files"), ("compatibility", "situation")}  # all that a module of the ground asks of another
TOP = ["__main__"]
LEVEL = {name: level for level, name in enumerate([*GROUND, *ORDER, *TOP])}
HEAVY = {"torch", "lightning", "transformers", "peft", "torchmetrics", "datasets", "wandb", "pyarrow", "matplotlib"}


def imported(tree, module, is_package):
    """The dotted name and the statement of every import anywhere in a module, relative ones resolved.

    `from a import b` counts as `a.b`, since `b` may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                up = node.level - is_package
                home = module.split(".")[: len(module.split(".")) - up]
                base = ".".join([*home, *([node.module] if node.module else [])])
            else:
                base = node.module
            for alias in node.names:
                yield f"{base}.{alias.name}", node


def modules(root):
    """Path, dotted name and syntax tree of every module below a package's folder."""
    for path in sorted(root.rglob("*.py")):
        parts = list(path.relative_to(root).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        name = ".".join([PACKAGE, *(parts[:-1] if is_package else parts)])
        yield path, name, is_package, ast.parse(path.read_text(encoding="utf-8"))


def stage(dotted):
    """`lit_semantic_peft.tokens.collate` belongs to `tokens`; the package itself to nothing."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 else None


def wrong_edges(root):
    """Sentences about the imports that go against the order."""
    problems = []
    for path, module, is_package, tree in modules(root):
        mine = stage(module)
        if mine is not None and mine not in LEVEL:
            problems.append(f"{module} stands in no place of the order")
            continue
        in_function = {
            inner for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for inner in ast.walk(node)
        }
        for name, node in imported(tree, module, is_package):
            where = f"{path.relative_to(root)}:{node.lineno}"
            top, theirs = name.split(".")[0], stage(name)
            if top == PACKAGE and mine is not None and theirs in LEVEL and theirs != mine:
                reaches_out = (
                    mine in GROUND
                    and theirs != "errors"
                    and (mine, theirs) not in {("cache", "files"), ("compatibility", "situation")}
                )
                allowed = LEVEL[theirs] < LEVEL[mine] and not reaches_out
                if not allowed:
                    problems.append(f"{where}: {mine} imports {theirs}")
            if top in ("torch", "transformers", "peft") and mine in ("facts", *GROUND):
                problems.append(f"{where}: {mine} imports {top}")
            if top in ("lightning", "pytorch_lightning") and mine in (*GROUND, *ORDER[:5]):
                problems.append(f"{where}: {mine} imports {top}")
            if top == "wandb" and (mine != "callbacks" or node not in in_function):
                problems.append(f"{where}: wandb is imported where no W&B logger may be in use")
    return problems


def test_imports_go_from_later_to_earlier_only():
    assert wrong_edges(ROOT) == []


def test_the_walk_sees_the_package():
    edges = {
        (stage(module), stage(name))
        for _, module, is_package, tree in modules(ROOT)
        for name, _ in imported(tree, module, is_package)
    }
    assert {("tokens", "facts"), ("models", "tokens"), ("data", "semantics"), ("cli", "training")} <= edges
    assert len(list(modules(ROOT))) > 40


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("facts/schema.py", "from lit_semantic_peft.tokens import collate", "facts/schema.py:1: facts imports tokens"),
        ("facts/schema.py", "import numpy\nimport torch.nn", "facts/schema.py:2: facts imports torch"),
        ("facts/schema.py", "from ..data import module", "facts/schema.py:1: facts imports data"),
        ("facts/__init__.py", "from ..data import module", "facts/__init__.py:1: facts imports data"),
        ("facts/builtin/__init__.py", "from ... import cli", "facts/builtin/__init__.py:1: facts imports cli"),
        ("models/base.py", "from lit_semantic_peft import semantics", "models/base.py:1: models imports semantics"),
        ("models/base.py", "def f():\n    import lightning", "models/base.py:2: models imports lightning"),
        (
            "interference/x.py",
            "from lightning.pytorch import Callback",
            "interference/x.py:1: interference imports lightning",
        ),
        ("reports/html.py", "import lit_semantic_peft.callbacks", "reports/html.py:1: reports imports callbacks"),
        (
            "callbacks/x.py",
            "from lit_semantic_peft.cli.trainer import T",
            "callbacks/x.py:1: callbacks imports cli",
        ),
        ("errors.py", "import lit_semantic_peft.files", "errors.py:1: errors imports files"),
        ("files.py", "from .facts import schema", "files.py:1: files imports facts"),
        ("callbacks/x.py", "import wandb", "callbacks/x.py:1: wandb is imported where no W&B logger may be in use"),
        (
            "reports/x.py",
            "def f():\n    from wandb import Table",
            "reports/x.py:2: wandb is imported where no W&B logger may be in use",
        ),
        ("utils/x.py", "", "lit_semantic_peft.utils.x stands in no place of the order"),
        ("callbacks/x.py", "class C:\n    def f(self):\n        import wandb", None),
        ("tokens/x.py", "import torch\nfrom lit_semantic_peft.facts import Fact\nfrom . import collate", None),
        ("files.py", "from lit_semantic_peft.errors import InputError", None),
        ("cli/x.py", "import lightning\nfrom lit_semantic_peft import training", None),
    ],
)
def test_the_walk_can_fail(tmp_path, path, source, expected):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(source)
    assert wrong_edges(tmp_path) == ([] if expected is None else [expected])


def test_every_folder_is_a_stage_and_holds_something_real():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(ORDER)
    for folder in ORDER:
        trees = [tree for path, _, _, tree in modules(ROOT) if path.relative_to(ROOT).parts[0] == folder]
        defined = [
            node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)
        ]
        assert len(defined) >= 3, f"{folder} is an empty room"
    for name in (*GROUND, *TOP):
        assert (ROOT / f"{name}.py").is_file()


MOST_LINES = {"data/module.py": 250, "training/module.py": 350, "callbacks/fact_report.py": 200}


def test_no_file_is_too_long_to_read():
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in ROOT.rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES.get(name, 450)} == {}
    assert MOST_LINES.keys() <= lengths.keys()


def loaded_by(statement):
    """Names of the heavy packages that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*sorted(set({sorted(HEAVY)}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_help_pulls_nothing_heavy():
    assert loaded_by(f"import {PACKAGE}.__main__") == set()
    assert "pyarrow" in loaded_by("import pyarrow"), "the check cannot fail"


def test_reports_need_no_tensor():
    statement = f"import {PACKAGE}.reports, {PACKAGE}.reports.charts.png, {PACKAGE}.reports.charts.svg"
    assert loaded_by(statement) & {"torch", "lightning", "transformers", "peft", "matplotlib"} == set()


def test_facts_need_no_tensor():
    assert loaded_by(f"import {PACKAGE}.facts") & {"torch", "lightning", "transformers", "peft"} == set()


def test_scores_and_gradients_of_facts_need_no_lightning():
    loaded = loaded_by(f"import {PACKAGE} as lsp\nlsp.score, lsp.interference_matrix, lsp.read_facts, lsp.BaseModel")
    assert "torch" in loaded
    assert "lightning" not in loaded


def test_a_name_that_is_loaded_when_used_is_not_that_of_a_module():
    """Importing a module sets its name in the package, where it would hide a function of the same name."""
    for path in ROOT.rglob("__init__.py"):
        package = importlib.import_module(".".join([PACKAGE, *path.parent.relative_to(ROOT).parts]))
        if "__getattr__" in vars(package):
            beside = {found.stem for found in path.parent.glob("*.py")}
            assert not beside & set(package.__all__), path
