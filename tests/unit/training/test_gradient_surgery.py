"""What surgery makes of conflicting gradients, in vectors and in a run, against the plain step."""

import numpy as np
import pytest
import torch
from lit_semantic_peft.callbacks import Refine
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.forms import Question, Reversed
from lit_semantic_peft.models import fact_nll
from lit_semantic_peft.training import GradientSurgery
from lit_semantic_peft.training.interference_aware import gradient_surgery
from lit_semantic_peft.training.interference_aware.gradient_surgery import surgery_coefficients

from fixtures.training import CONTRADICTING, WEIGHTED, assert_same_adapter, fit, is_same_adapter, losses

pytestmark = pytest.mark.usefixtures("shared_cache")

FORMS = {"sources": [Question(0.4), Reversed(0.4)]}


def pcgrad(gradients: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Algorithm 1 as it stands, on the vectors themselves."""
    total = np.zeros(gradients.shape[1])
    for number in range(len(gradients)):
        mine = gradients[number].copy()
        for other in generator.permutation(len(gradients)):
            if other != number and mine @ gradients[other] < 0:
                mine -= (mine @ gradients[other]) / (gradients[other] @ gradients[other]) * gradients[other]
        total += mine
    return total


def test_projection_equals_the_algorithm_on_vectors():
    rng = np.random.default_rng(0)
    for case in range(200):
        gradients = rng.normal(size=(rng.integers(1, 7), rng.integers(1, 5))) * rng.lognormal(0, 2)
        coefficients = surgery_coefficients(gradients @ gradients.T, np.random.default_rng(case))
        expected = pcgrad(gradients, np.random.default_rng(case))
        np.testing.assert_allclose(coefficients @ gradients, expected, atol=1e-9 * np.abs(gradients).max())
        assert (coefficients >= 1).all()


def test_two_groups_both_gain_where_plain_undoes_one():
    rng = np.random.default_rng(0)
    num_undone = 0
    for _ in range(200):
        gradients = rng.normal(size=(2, 3)) * [[3.0], [1.0]]
        plain = gradients @ gradients.sum(axis=0)
        coefficients = surgery_coefficients(gradients @ gradients.T, rng)
        assert (gradients @ (coefficients @ gradients) >= -1e-9).all()
        num_undone += (plain < 0).any()
    assert num_undone > 20


def test_no_conflict_is_the_plain_sum():
    gradients = np.array([[1.0, 0.0, 0.5], [0.0, 2.0, 0.0], [0.3, 0.1, 0.0]])
    assert surgery_coefficients(gradients @ gradients.T, np.random.default_rng(0)).tolist() == [1, 1, 1]


def test_unit_norm():
    gradients = np.array([[8.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
    coefficients = surgery_coefficients(
        gradients @ gradients.T, np.random.default_rng(0), project=False, unit_norm=True
    )
    scaled = coefficients[:, None] * gradients
    assert np.linalg.norm(scaled, axis=1) == pytest.approx([4.25, 4.25, 0])
    gradients = np.array([[8.0, 0.0], [-0.5, 0.5]])
    both = surgery_coefficients(gradients @ gradients.T, np.random.default_rng(0), unit_norm=True)
    equal = gradients * (np.linalg.norm(gradients, axis=1).mean() / np.linalg.norm(gradients, axis=1))[:, None]
    np.testing.assert_allclose(both @ gradients, pcgrad(equal, np.random.default_rng(0)))


def gradient_of(module, rows) -> torch.Tensor:
    (batch,) = module.data.training_batches(rows, len(rows))
    parameters = [parameter for parameter in module.model.parameters() if parameter.requires_grad]
    return torch.cat([one.flatten() for one in torch.autograd.grad(fact_nll(module.model, batch).sum(), parameters)])


class Gradients(GradientSurgery):
    """Also keeps the model's gradients of the groups and the one that the step takes."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.of_groups = [gradient_of(pl_module, rows) for rows in ([0, 1, 2], [3])]
        super().on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        gradients = [parameter.grad for parameter in pl_module.model.parameters() if parameter.grad is not None]
        self.taken = torch.cat([one.flatten() for one in gradients])


@pytest.mark.parametrize("unit_norm", [False, True])
def test_the_step_takes_the_projected_gradient(tiny_model, contradiction, unit_norm):
    surgery = Gradients(unit_norm=unit_norm)
    fit(tiny_model, contradiction, data=CONTRADICTING, callbacks=[surgery], trainer={"max_epochs": 8})
    groups = torch.stack(surgery.of_groups).double().numpy()
    assert groups[0] @ groups[1] < 0
    if unit_norm:
        norms = np.linalg.norm(groups, axis=1)
        groups *= (norms.mean() / norms)[:, None]
    expected = pcgrad(groups, np.random.default_rng((0, 7))) / 4
    np.testing.assert_allclose(surgery.taken.numpy(), expected, atol=1e-5 * np.abs(expected).max())


def test_the_minority_is_learned_better_than_in_the_plain_run(tiny_model, contradiction):
    """Three against one: the plain optimum gives the minority a quarter, groups that pull equally hard give it half."""
    minority, majority = [], []
    for surgery in ([], [GradientSurgery()], [GradientSurgery(unit_norm=True)]):
        run = fit(tiny_model, contradiction, data=CONTRADICTING, callbacks=surgery, trainer={"max_epochs": 20})
        module = run.module
        both = losses(module)
        majority.append(both[0])
        minority.append(both[3])
    assert minority[1] < minority[0] - 0.4
    assert minority[2] < minority[1] - 0.3
    assert majority[0] < majority[1] < majority[2] < 2.5  # what it costs; 5.3 at the start
    assert run.of("train/group_conflicts")[-1] == 1


@pytest.mark.parametrize("forms", [{}, FORMS], ids=["own prompts", "forms"])
@pytest.mark.parametrize(("micro_batch_size", "accumulate"), [(8, 1), (2, 4)])
def test_without_conflict_it_is_the_plain_run(tiny_model, facts_file, micro_batch_size, accumulate, forms, monkeypatch):
    """12 facts in steps of 8, so that there is a partial step too; coefficients 1 stand for no conflict."""
    monkeypatch.setattr(gradient_surgery, "surgery_coefficients", lambda dot, *_, **__: np.ones(len(dot)))
    settings = {
        "data": {"micro_batch_size": micro_batch_size, **WEIGHTED, **forms},
        "trainer": {"accumulate_grad_batches": accumulate},
    }
    plain_run = fit(tiny_model, facts_file, **settings)
    plain = plain_run.module
    run = fit(tiny_model, facts_file, callbacks=[GradientSurgery()], **settings)
    same = run.module
    assert_same_adapter(plain, same)
    assert run.of("train/grad_norm") == pytest.approx(plain_run.of("train/grad_norm"), rel=1e-5)


def test_a_second_pass_is_that_of_the_plain_run(tiny_model, facts_file, monkeypatch):
    """Its steps are in the forms of several epochs, and some of their facts in their own prompts."""
    monkeypatch.setattr(gradient_surgery, "surgery_coefficients", lambda dot, *_, **__: np.ones(len(dot)))

    def run(*callbacks):
        trainer = {"max_epochs": -1, "max_steps": 9, "accumulate_grad_batches": 2}
        return fit(
            tiny_model,
            facts_file,
            data={"micro_batch_size": 2, "append_eos": True, **FORMS},
            trainer=trainer,
            callbacks=[Refine(num_steps=4), *callbacks],
        )

    plain, same = run(), run(GradientSurgery())
    assert same.data.second_pass.own_prompts
    assert len(plain.losses) == len(same.losses) == 9
    assert_same_adapter(plain.module, same.module)


class GradientsOfTexts(GradientSurgery):
    """Also computes the gradient of each fact of a step, from a row of its own that is encoded by hand."""

    steps = ()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        forms = pl_module.data.prepared.forms
        rows = pl_module.loss_weights.of_step().fact_index.tolist()
        texts = [forms.texts[forms.text_of(row, trainer.current_epoch)] for row in sorted(rows)]
        parameters = [parameter for parameter in pl_module.model.parameters() if parameter.requires_grad]
        gradients = []
        for text in texts:
            ids = [*text.prompt_ids, *text.target_ids, *text.end_ids]
            labels = torch.tensor([[-100] * len(text.prompt_ids) + ids[len(text.prompt_ids) :]])
            loss = pl_module.model(input_ids=torch.tensor([ids]), labels=labels).loss
            of_parameters = torch.autograd.grad(loss, parameters)
            gradients.append(torch.cat([one.flatten() for one in of_parameters]).double().numpy())
        # A generator of its own, with the seed of the step.
        expected = pcgrad(np.stack(gradients), np.random.default_rng((0, trainer.global_step))) / len(rows)
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        self.steps = (*self.steps, [expected, None])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.steps and self.steps[-1][1] is None:
            found = [parameter.grad for parameter in pl_module.model.parameters() if parameter.requires_grad]
            self.steps[-1][1] = torch.cat([one.flatten() for one in found]).numpy()


@pytest.mark.parametrize("append_eos", [False, True])
def test_the_gradients_are_those_of_the_forms_that_the_step_teaches(tiny_model, facts_file, append_eos):
    surgery = GradientsOfTexts("fact")
    data = {"micro_batch_size": 3, "append_eos": append_eos, **FORMS}
    fit(tiny_model, facts_file, data=data, trainer={"accumulate_grad_batches": 2}, callbacks=[surgery])
    assert len(surgery.steps) == 4
    for expected, found in surgery.steps:
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("groups", ["relation", "conflict", "fact"])
def test_it_does_not_depend_on_how_a_step_is_cut_up(tiny_model, facts_file, groups):
    def run(micro_batch_size, accumulate, callbacks):
        return fit(
            tiny_model,
            facts_file,
            data={"micro_batch_size": micro_batch_size, **WEIGHTED},
            trainer={"accumulate_grad_batches": accumulate, "max_epochs": 4},
            callbacks=callbacks,
        ).module

    whole = run(8, 1, [GradientSurgery(groups)])
    assert_same_adapter(whole, run(2, 4, [GradientSurgery(groups)]), tolerance=1e-4)
    assert not is_same_adapter(whole, run(8, 1, []))


def test_conflict_groups_find_the_two_sides(tiny_model, contradiction):
    surgery = GradientSurgery("conflict", every_n_epochs=2)
    fit(tiny_model, contradiction, data=CONTRADICTING, callbacks=[surgery], trainer={"max_epochs": 9})
    assert surgery.group_of == [1, 1, 1, 2]
    part = GradientSurgery("conflict", num_facts=2)
    fit(tiny_model, contradiction, data=CONTRADICTING, callbacks=[part], trainer={"max_epochs": 2})
    assert part.group_of.count(0) == 2  # not in the sample


def test_an_interrupted_run_goes_on_with_its_groups(tiny_model, contradiction, tmp_path):
    def surgery():
        return GradientSurgery("conflict", every_n_epochs=4)

    settings = {"data": CONTRADICTING, "model": {"optimizer": torch.optim.AdamW}}
    whole = fit(tiny_model, contradiction, callbacks=[surgery()], trainer={"max_epochs": 6}, **settings).module
    half = fit(tiny_model, contradiction, callbacks=[surgery()], trainer={"max_epochs": 3}, **settings).module
    half.trainer.save_checkpoint(tmp_path / "half.ckpt")
    rest = fit(
        tiny_model,
        contradiction,
        callbacks=[surgery()],
        trainer={"max_epochs": 6},
        ckpt_path=str(tmp_path / "half.ckpt"),
        **settings,
    ).module
    assert_same_adapter(whole, rest)


def test_bad_settings(tiny_model, facts_file):
    with pytest.raises(InputError, match="`groups` must be one of relation, conflict, fact, got 'subject'"):
        GradientSurgery("subject")
    with pytest.raises(InputError, match="does nothing"):
        GradientSurgery(project=False)
    with pytest.raises(InputError, match="`num_facts` must be at least 2, got 1"):
        GradientSurgery(num_facts=1)
    text = facts_file.read_text(encoding="utf-8").replace('"river"', '"capital"')
    facts_file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"one relation only.*`groups: conflict`"):
        fit(tiny_model, facts_file, callbacks=[GradientSurgery()])
