"""The benchmarks of the gate run, and the docs show what they found."""

import json
from pathlib import Path

from experiments.benchmarks import gate_matching, gate_mistakes
from experiments.benchmarks.measured import RESULTS, ROOT


def test_the_docs_have_the_table_of_the_last_measurement():
    result = json.loads((RESULTS / "gate_mistakes.json").read_text(encoding="utf-8"))
    assert gate_mistakes.as_markdown(result) in (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")


def test_mistakes_are_measured_by_kind(tiny_model, tmp_path, capsys):
    gate_mistakes.main([f"--base_model={tiny_model}", "--steps=2", f"--results={tmp_path}"])
    kinds = json.loads((tmp_path / "gate_mistakes.json").read_text(encoding="utf-8"))["by_match"]["subjects"]
    assert kinds["own prompt"]["opened"] == kinds["own prompt"]["asked"] == 27
    assert kinds["misspelled"]["opened"] == kinds["unrelated"]["opened"] == 0
    assert kinds["homonym"]["opened"] > 0
    assert kinds["unrelated"]["gated"] == kinds["unrelated"]["base"] != kinds["unrelated"]["ungated"]
    assert kinds["own prompt"]["gated"] == kinds["own prompt"]["ungated"]
    assert "| homonym | no |" in capsys.readouterr().out


def test_matching_is_timed(tmp_path, capsys):
    gate_matching.main(["--subjects=500", "--prompts=20", f"--results={tmp_path}"])
    result = json.loads(Path(tmp_path / "gate_matching.json").read_text(encoding="utf-8"))
    assert result["subjects"] > 450
    assert all(0 < row["mean_ms"] < 1 for row in list(result["by_words"].values())[:2])
