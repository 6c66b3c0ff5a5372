"""One module knows the names of a run's files; a user reads a run through it."""

import ast
from pathlib import Path

import lit_semantic_peft
import pyarrow.parquet as pq
import pytest
from lit_semantic_peft.cli.early import OF_A_TRAINING
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.reports import (
    FACT_COLUMNS,
    PROBE_COLUMNS,
    InterferenceMatrix,
    Manifest,
    RunFolder,
    Summary,
    build_report,
    compare_runs,
    without_fact_text,
)
from lit_semantic_peft.reports.run_folder import ENTRIES

PACKAGE = Path(lit_semantic_peft.__file__).parent
KNOWS = "reports/run_folder.py"

# Words that name other things too: packages, loggers, PEFT's own entries. As a path they are found all the same.
ALSO_OTHER_THINGS = {"adapter", "inspection", "score", "wandb", "logs", "plots", "checkpoints"}
NAMES = {part for entry in ENTRIES for part in entry.name.split("/")}


def named_files(source: str) -> list[str]:
    """What a module says of a run's files in strings that are no prose and no docstrings."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    prose |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # under a constant
    joined = {
        id(right)
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
        for right in ast.walk(node.right)
    }
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in prose:
            continue
        if any(character.isspace() for character in node.value):
            continue  # a sentence for people
        known = NAMES if id(node) in joined or "/" in node.value else NAMES - ALSO_OTHER_THINGS
        if known & set(node.value.split("/")) or node.value.endswith(".png"):
            found.append(f"{node.lineno}: {node.value}")
    return found


def test_no_other_module_knows_the_names_of_a_runs_files():
    found = {
        path.relative_to(PACKAGE).as_posix(): names
        for path in sorted(PACKAGE.rglob("*.py"))
        if (names := named_files(path.read_text(encoding="utf-8")))
    }
    assert found.pop(KNOWS), "the walk sees nothing"
    # Looked for before anything heavy is imported, as this module would be.
    assert found.pop("cli/early.py")
    run = RunFolder("run").paths
    assert {run.folder / name for name in OF_A_TRAINING} == {run.manifest, run.config, run.summary}
    assert found == {}


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("path = folder / 'facts.parquet'", True),
        ("path = Path(root, 'summary.json')", True),
        ("path = run / ('adapter_best' if best else 'adapter')", True),
        ("path = root / 'adapter'", True),
        ("path = f'{root}/checkpoints/last.ckpt'", True),
        ("FILES = ('config.yaml',)", True),
        ("path = plots / 'recall.png'", True),
        ("path = plots / f'{name}.png'", True),
        ("_PACKAGES = ('wandb',)", False),
        ("'''What `facts.parquet` holds.'''", False),
        ("def f():\n    'facts.parquet'\n", False),
        ("raise E('see config.yaml of the run')", False),
        ("path = folder / 'config.json'", False),
    ],
)
def test_the_walk_can_fail(source, is_found):
    assert bool(named_files(source)) == is_found


def test_a_user_reads_a_run_by_its_properties(run_folder):
    run = RunFolder(run_folder.path)
    assert run.facts.column("fact_id").to_pylist() == run.fact_ids()
    assert run.facts.to_pandas().shape == (96, len(run.facts.column_names))
    assert set(run.probes.column("kind").to_pylist()) == {"neighborhood"}
    assert isinstance(run.matrix, InterferenceMatrix)
    assert isinstance(run.summary, Summary)
    assert run.config.startswith("# synthetic")
    contents = run.read()
    assert contents.facts.equals(run.facts)
    assert contents.summary == run.summary
    assert contents.name == "run"


def test_the_matrix_is_named_by_the_fact_table_beside_it(run_folder):
    id_of = dict(zip(*run_folder.facts.select(["fact_index", "fact_id"]).to_pydict().values(), strict=True))
    matrix = run_folder.matrix
    assert matrix.fact_id == tuple(id_of[index] for index in matrix.fact_index.tolist())
    assert list(matrix.to_pandas().columns) == list(matrix.fact_id)
    assert run_folder.read().matrix.fact_id == matrix.fact_id
    pq.write_table(run_folder.facts.slice(0, 1), run_folder.paths.facts)
    assert run_folder.matrix.fact_id == (), "a table of other facts names none"
    run_folder.paths.facts.unlink()
    assert run_folder.matrix.fact_id == ()


def test_a_manifest_survives_its_file_and_says_what_is_wrong(tmp_path):
    run = RunFolder(tmp_path)
    assert run.fact_ids() is None
    manifest = Manifest("key", "base", "print", 12, 10)
    run.write_manifest(manifest)
    assert run.manifest == manifest
    run.paths.manifest.write_text('{"facts_key": 3, "num_facts": 12}')
    with pytest.raises(InputError) as error:
        _ = run.manifest
    for said in ("manifest.json.facts_key`: expected str, got 3", "missing field(s) base_model, base_fingerprint"):
        assert said in str(error.value)
    run.paths.manifest.write_text("{")
    with pytest.raises(InputError, match="expected JSON"):
        _ = run.manifest


def test_what_goes_to_a_dashboard_follows_from_marks(run_folder):
    build_report(run_folder)
    run_folder.paths.last_checkpoint.parent.mkdir()
    run_folder.paths.last_checkpoint.write_text("")
    run_folder.paths.adapter.mkdir()
    for name in ("adapter_model.safetensors", "subject_gate.json", "anchors.json"):
        (run_folder.paths.adapter / name).write_text("")

    def shared(**flag) -> set[str]:
        return {path.relative_to(run_folder.path).as_posix() for path in run_folder.shared_files(**flag)}

    # The table of facts and the summary go without their texts instead.
    text = {"facts.parquet", "probes.parquet", "report.html", "summary.json"}
    text |= {"adapter/subject_gate.json", "adapter/anchors.json"}  # names of subjects
    assert shared(with_fact_text=True) - shared(with_fact_text=False) == text
    assert shared(with_fact_text=False) >= {"plots/recall.png", "adapter/adapter_model.safetensors"}
    assert not any("ckpt" in name for name in shared(with_fact_text=True))


def test_columns_with_words_of_facts_are_marked(run_folder):
    marked = {column.name for column in (*FACT_COLUMNS, *PROBE_COLUMNS) if column.holds_fact_text}
    assert marked == {"subject", "prompt", "target", "target_true", "answer_before", "answer_after", "taught_forms"}
    for table in (run_folder.facts, run_folder.probes):
        assert set(table.column_names) - set(without_fact_text(table).column_names) == marked & set(table.column_names)


def test_a_report_reads_each_table_once(run_folder, monkeypatch):
    read, table = [], pq.read_table
    monkeypatch.setattr(pq, "read_table", lambda path, **rest: read.append(Path(path).name) or table(path, **rest))
    build_report(run_folder)
    assert sorted(read) == ["facts.parquet", "probes.parquet"]
    read.clear()
    compare_runs(run_folder.path, run_folder.path)
    assert read == ["facts.parquet"] * 2
    contents = run_folder.read()
    read.clear()
    build_report(run_folder, contents)
    assert read == []
