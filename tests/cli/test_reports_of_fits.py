"""A training that ended well: whatever its facts and its report are like, it keeps its results and exits with 0."""

import json
import sys
from pathlib import Path

import pytest
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.reports import RunFolder, html


@pytest.fixture
def fit(tiny_model, monkeypatch, capsys):
    """Trains one epoch on facts; returns the run folder and what the terminal showed."""
    monkeypatch.setattr(sys, "argv", ["lit-semantic-peft"])

    def run(*facts: dict) -> tuple[RunFolder, str]:
        Path("facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts), encoding="utf-8")
        settings = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--recipe=plain"]
        where = [f"--model.base_model={tiny_model}", "--data.facts=facts.jsonl", "--trainer.default_root_dir=run"]
        status = main(["fit", *where, *settings, "--data.evaluation.retention=false"])
        output = capsys.readouterr()
        assert status == 0, output.err
        assert "Traceback" not in output.err
        return RunFolder("run"), output.out + output.err

    return run


def test_what_needs_two_facts_is_not_measured_of_one(fit, drawn_plots):
    folder, shown = fit(
        {"prompt": "The price ($_{USD) of Zorvex is", "target": "40", "relation": "price ($_{USD) in $"}
    )
    assert "run/report.html" in shown
    page = folder.paths.report.read_text(encoding="utf-8")
    assert "Pairs in conflict</span><strong>not measured" in page
    assert "price ($_{USD) in $" in page
    assert "Left out of this report" not in page


def test_a_log_has_lines_and_no_bar(fit):
    _, shown = fit({"prompt": "The seat of Zorvex is in", "target": "Lund"})
    assert "Epoch 1 of 1 ended, step 1 of 1" in shown
    assert "it/s" not in shown
    assert "enable_progress_bar: null" in Path("run/config.yaml").read_text(encoding="utf-8")


def test_a_report_that_cannot_be_made_costs_nothing_else(fit, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no paper")

    monkeypatch.setattr(html, "build_report", fail)
    folder, shown = fit({"prompt": "The seat of Zorvex is in", "target": "Lund"})
    assert "The report cannot be made: RuntimeError: no paper" in shown
    assert "`lit-semantic-peft report run`" in shown.replace("\n", " ")
    assert (folder.paths.adapter / "adapter_model.safetensors").is_file()
    assert len(folder.facts) == folder.summary.num_kept == 1
