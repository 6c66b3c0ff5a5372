"""`--self_check` on the command line."""

import pytest
import yaml
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.data import self_checks
from lit_semantic_peft.models.fast_ways import FastWays
from lit_semantic_peft.reports import RunFolder


@pytest.mark.parametrize("words", [[], ["--self_check=false"]])
def test_the_option_turns_the_check_off_and_is_kept_with_the_run(words, tiny_model, facts_file, monkeypatch):
    asked = []
    monkeypatch.setattr(self_checks, "self_check", lambda *_, trains: asked.append(trains) or FastWays())
    monkeypatch.setattr("sys.argv", ["lit-semantic-peft"])
    settings = [f"--model.base_model={tiny_model}", f"--data.facts={facts_file}", *words, "--trainer.accelerator=cpu"]
    run = ["--trainer.max_epochs=1", "--recipe=plain", "--data.evaluation={probes: [], retention: false}"]
    assert main(["score", *settings]) == 0
    assert main(["fit", *settings, *run, "--trainer.default_root_dir=runs/one"]) == 0
    assert asked == ([] if words else [False, True])
    written = yaml.safe_load(RunFolder("runs/one").paths.config.read_text(encoding="utf-8"))
    assert written["self_check"] == (not words)
    assert "self_check" not in written["data"]
