"""Weights that follow the interference: what they promise is what a step does, and what they do to a run."""

import numpy as np
import pytest
import torch
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.interference import feature_store, gradient_matrix, one_backward_per_fact
from lit_semantic_peft.training import GradientSurgery, InterferenceWeighting
from lit_semantic_peft.training.interference_aware import fact_sample
from lit_semantic_peft.training.interference_aware.progress_weights import predicted_progress, progress_weights
from lit_semantic_peft.training.loss_weights import LossWeights

from fixtures.training import CONTRADICTING, WEIGHTED, assert_same_adapter, fit, is_same_adapter, losses

pytestmark = pytest.mark.usefixtures("shared_cache")


def test_a_step_does_what_was_predicted_and_the_worst_fact_gains(tiny_model, contradiction):
    """Both sides are known half: one plain step of descent, three against one, undoes the one."""
    surgery = GradientSurgery(unit_norm=True)
    module = fit(tiny_model, contradiction, data=CONTRADICTING, callbacks=[surgery], trainer={"max_epochs": 25}).module
    batches = module.data.training_batches(range(4), 4)
    before = np.array(losses(module))
    gradients = one_backward_per_fact(module.model, batches)
    matrix = gradient_matrix(module.model, batches).double().numpy()
    parameters = [parameter for parameter in module.model.parameters() if parameter.requires_grad]
    start = torch.nn.utils.parameters_to_vector(parameters).detach()
    step, worst = 3e-4, {}
    for name, weight in (("plain", np.ones(4)), ("aware", progress_weights(matrix, np.ones(4), beta=0.01))):
        moved = start - step * torch.as_tensor(weight, dtype=torch.float32) @ gradients
        torch.nn.utils.vector_to_parameters(moved, parameters)
        change = np.array(losses(module)) - before
        predicted = -step * predicted_progress(matrix, weight) * matrix.diagonal().mean()
        np.testing.assert_allclose(change, predicted, atol=0.05 * np.abs(predicted).max())
        worst[name] = change.max()
    assert worst["plain"] > 3e-4
    assert worst["aware"] < 0


def test_the_worst_fact_is_learned_better_than_in_the_plain_run(tiny_model, contradiction):
    plain = losses(fit(tiny_model, contradiction, data=CONTRADICTING, trainer={"max_epochs": 20}).module)
    weighting = InterferenceWeighting(beta=0.1, every_n_steps=4)
    run = fit(tiny_model, contradiction, data=CONTRADICTING, callbacks=[weighting], trainer={"max_epochs": 20})
    module = run.module
    aware = losses(module)
    assert max(aware) < max(plain) - 0.5
    assert module.loss_weights.factor[3] > 1.5
    assert module.loss_weights.factor.mean() == pytest.approx(1, abs=1e-5)
    assert (module.loss_weights.factor >= 0.25).all()
    for row in run.logged[4:]:
        assert row["train/progress_worst"] >= row["train/progress_worst_before"] - 1e-3
    assert "train/progress_worst" not in run.logged[3]


def test_large_gradients_wait_on_disk(tiny_model, facts_file, monkeypatch):
    folders = []

    def watched(model, batches, folder=None):
        folders.append(folder)
        return gradient_matrix(model, batches, folder)

    monkeypatch.setattr(fact_sample, "gradient_matrix", watched)
    in_memory = fit(tiny_model, facts_file, callbacks=[InterferenceWeighting(every_n_steps=2)]).module
    assert set(folders) == {None}
    monkeypatch.setattr(feature_store, "BYTES_IN_MEMORY", 0)
    folders.clear()
    on_disk = fit(tiny_model, facts_file, callbacks=[InterferenceWeighting(every_n_steps=2)]).module
    assert folders
    assert None not in folders
    assert is_same_adapter(in_memory, on_disk)


def test_a_high_price_is_the_plain_run_and_so_is_the_time_before_the_first_solution(tiny_model, facts_file):
    plain = fit(tiny_model, facts_file, data=WEIGHTED).module
    dear = InterferenceWeighting(beta=1e7, every_n_steps=2)
    assert_same_adapter(plain, fit(tiny_model, facts_file, data=WEIGHTED, callbacks=[dear]).module, tolerance=1e-4)
    late = InterferenceWeighting(beta=0, every_n_steps=6)
    assert is_same_adapter(plain, fit(tiny_model, facts_file, data=WEIGHTED, callbacks=[late]).module)
    early = InterferenceWeighting(beta=0, every_n_steps=2)
    assert not is_same_adapter(plain, fit(tiny_model, facts_file, data=WEIGHTED, callbacks=[early]).module)


@pytest.mark.parametrize("objective", ["worst", "mean"])
def test_it_does_not_depend_on_how_a_step_is_cut_up(tiny_model, facts_file, objective):
    def run(micro_batch_size, accumulate):
        return fit(
            tiny_model,
            facts_file,
            data={"micro_batch_size": micro_batch_size, **WEIGHTED},
            trainer={"accumulate_grad_batches": accumulate, "max_epochs": 4},
            callbacks=[InterferenceWeighting(objective, every_n_steps=3)],
        ).module

    # The solver stops within its tolerance, so rounding may move the weights by a little.
    assert_same_adapter(run(8, 1), run(2, 4), tolerance=1e-3)


def test_every_fact_has_its_turn_and_sums_stay(tiny_model, facts_file):
    weighting = InterferenceWeighting(every_n_steps=1, num_facts=4)
    module = fit(tiny_model, facts_file, data=WEIGHTED, callbacks=[weighting], trainer={"max_steps": 4}).module
    assert (module.loss_weights.factor != 1).all()
    given = module.data.prepared.weights.start
    assert (given * module.loss_weights.factor.numpy()).sum() == pytest.approx(given.sum(), rel=1e-5)


def test_a_fact_without_weight_yet_is_trained_when_the_schedule_gives_it_one(tiny_model, facts_file, monkeypatch):
    weighting = InterferenceWeighting(every_n_steps=1)
    given = np.ones(12)
    given[[2, 5]] = 0.0
    monkeypatch.setattr(LossWeights, "planned", lambda weights, rows: given[rows])
    module = fit(tiny_model, facts_file, callbacks=[weighting], trainer={"max_steps": 2}).module
    assert module.loss_weights.factor[[2, 5]].tolist() == [1.0, 1.0]
    assert (module.loss_weights.factor != 1).sum() == 10


def test_an_interrupted_run_goes_on_with_its_weights(tiny_model, facts_file, tmp_path):
    def run(epochs, ckpt_path=None):
        weighting = InterferenceWeighting(beta=0.1, every_n_steps=4)
        return fit(
            tiny_model, facts_file, callbacks=[weighting], trainer={"max_epochs": epochs}, ckpt_path=ckpt_path
        ).module

    run(3).trainer.save_checkpoint(tmp_path / "half.ckpt")
    assert_same_adapter(run(5), run(5, str(tmp_path / "half.ckpt")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "best"}, "`objective` must be one of worst, mean, got 'best'"),
        ({"beta": -1.0}, "`beta` must be in"),
        ({"beta": float("nan")}, "`beta` must be in"),
        ({"floor": 1.5}, r"`floor` must be in \[0, 1\], got 1\.5"),
        ({"cap": 0.5}, r"`cap` must be in \[1, inf\], got 0\.5"),
        ({"every_n_steps": 0}, "`every_n_steps` must be at least 1, got 0"),
        ({"num_facts": 1}, "`num_facts` must be at least 2, got 1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        InterferenceWeighting(**settings)
