"""The gradient matrix says what a small step does to each loss, and the benchmark that asks more of it runs."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from lit_semantic_peft.interference import gradient_matrix, predicted_change
from scipy.stats import spearmanr

from fixtures.tiny import tiny_llama

BENCHMARKS = Path(__file__).resolve().parents[3] / "experiments" / "benchmarks"


@pytest.fixture
def validity(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import interference_validity

    yield interference_validity
    for name in ("interference_validity", "subject", "measured"):
        sys.modules.pop(name, None)


def test_a_small_step_changes_each_loss_as_predicted(validity):
    model, facts, pad_id = validity.tiny(24)
    study = validity.Study(model.double(), facts, pad_id, 1e-2)  # float32 would round the changes away
    study.train(range(24), epochs=1)
    matrix = gradient_matrix(model, validity.batches_of(facts, 8, pad_id))
    before = study.losses()
    for batch in validity.batches_of(facts, 8, pad_id):
        (validity.fact_nll(model, batch).sum() / 24).backward()
    rate = 1e-3
    for parameter in study.parameters:
        parameter.data -= rate * parameter.grad
    predicted = predicted_change(matrix, torch.ones(24), rate, 24).double()
    measured = study.losses() - before
    assert spearmanr(predicted, measured).statistic > 0.95
    torch.testing.assert_close(measured, predicted, rtol=0.05, atol=float(predicted.abs().max()) * 0.01)


def test_the_benchmark_runs(validity, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["interference_validity.py", "--smoke", f"--results={tmp_path}"])
    validity.main()
    assert "Spearman" in capsys.readouterr().out
    assert (tmp_path / "interference_validity.json").is_file()


def test_victims_learn_better_without_the_aggressors_that_the_matrix_names(validity):
    """Two facts contradict each of three others; trained to the end, where they cannot all be right."""
    import subject

    _, facts, pad_id = validity.tiny(24)
    for victim in range(3):
        for denier in (3 + victim, 6 + victim):
            facts[denier] = dataclasses.replace(facts[denier], prompt_ids=facts[victim].prompt_ids)
        facts[6 + victim] = facts[3 + victim]
    model = subject.with_moved_lora(tiny_llama(subject.TINY_VOCABULARY))
    found = validity.Study(model, facts, pad_id, 1e-2).removal(epochs=80, draws=4)
    assert found["aggressors"] < min(found["random"])
    assert found["aggressors"] < found["nothing"]
