"""The gradient matrix says what a small step does to each loss, and the benchmark that asks more of it runs."""

import dataclasses
import sys

import pytest
import torch
from experiments.benchmarks import interference_validity, subject
from lit_semantic_peft.interference import gradient_matrix, predicted_change
from scipy.stats import spearmanr

from fixtures.models import tiny_llama


def test_a_small_step_changes_each_loss_as_predicted():
    model, facts, pad_id = interference_validity.tiny(24)
    study = interference_validity.Study(model.double(), facts, pad_id, 1e-2)  # float32 would round the changes away
    study.train(range(24), epochs=1)
    matrix = gradient_matrix(model, interference_validity.batches_of(facts, 8, pad_id))
    before = study.losses()
    for batch in interference_validity.batches_of(facts, 8, pad_id):
        (interference_validity.fact_nll(model, batch).sum() / 24).backward()
    rate = 1e-3
    for parameter in study.parameters:
        parameter.data -= rate * parameter.grad
    predicted = predicted_change(matrix, torch.ones(24), rate, 24).double()
    measured = study.losses() - before
    assert spearmanr(predicted, measured).statistic > 0.95
    torch.testing.assert_close(measured, predicted, rtol=0.05, atol=float(predicted.abs().max()) * 0.01)


def test_the_benchmark_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["interference_validity.py", "--smoke", f"--results={tmp_path}"])
    interference_validity.main()
    assert "Spearman" in capsys.readouterr().out
    assert (tmp_path / "interference_validity.json").is_file()


@pytest.mark.long  # the shorter test above holds the matrix to the losses it predicts
def test_victims_learn_better_without_the_aggressors_that_the_matrix_names():
    """Two facts contradict each of three others; trained to the end, where they cannot all be right."""
    _, facts, pad_id = interference_validity.tiny(24)
    for victim in range(3):
        for denier in (3 + victim, 6 + victim):
            facts[denier] = dataclasses.replace(facts[denier], prompt_ids=facts[victim].prompt_ids)
        facts[6 + victim] = facts[3 + victim]
    model = subject.with_moved_lora(tiny_llama(subject.TINY_VOCABULARY))
    found = interference_validity.Study(model, facts, pad_id, 1e-2).removal(epochs=80, draws=4)
    assert found["aggressors"] < min(found["random"])
    assert found["aggressors"] < found["nothing"]
