"""What must not change: the divergence from the base model, its gradient, and what it does to a run."""

import json
from dataclasses import replace

import lit_semantic_peft.data.scoring as scoring
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.undisturbed import undisturbed
from lit_semantic_peft.semantics import KnownFilter
from lit_semantic_peft.tokens import IGNORE_INDEX
from lit_semantic_peft.training.penalties import RetainPenalty, retain_kl
from peft import AdaLoraConfig

from fixtures.training import assert_same_adapter, fit, is_same_adapter, with_retained


@pytest.fixture
def facts(facts_file):
    return with_retained(facts_file)


def retained_batch(module):
    return module.data.training_batches(range(12, 17), 5, with_end=False)[0]


def slow_kl(model, batch):
    """Position by position, with the whole vocabulary written out."""
    with torch.no_grad(), model.disable_adapter():
        base = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.double()
    adapted = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.double()
    rows = []
    for row in range(len(batch)):
        divergences = []
        for position in range(batch.labels.shape[1] - 1):
            if batch.labels[row, position + 1] != IGNORE_INDEX:
                p, q = base[row, position].softmax(0), adapted[row, position].softmax(0)
                divergences.append((p * (p / q).log()).sum())
        rows.append(torch.stack(divergences).mean())
    return torch.stack(rows)


def drift(module) -> float:
    with undisturbed(module.model), torch.no_grad():
        return float(retain_kl(module.model, retained_batch(module)).mean())


def test_divergence_equals_its_definition(tiny_model, facts):
    module = fit(tiny_model, facts).module
    batch = retained_batch(module)
    with undisturbed(module.model):
        assert torch.allclose(retain_kl(module.model, batch).double(), slow_kl(module.model, batch), rtol=1e-4)
        with module.model.disable_adapter():
            assert retain_kl(module.model, batch).abs().max() == 0


def test_gradient_is_lambda_times_that_of_the_definition(tiny_model, facts):
    module = fit(tiny_model, facts).module
    parameters = [parameter for parameter in module.model.parameters() if parameter.requires_grad]
    penalty = RetainPenalty(3.0, 5, list(range(12, 17)), seed=0)
    batches = module.data.training_batches(penalty.rows(0), 2, with_end=False)
    mean, gradient = penalty.gradient(module.model, parameters, batches, torch.enable_grad)
    with undisturbed(module.model):
        expected = slow_kl(module.model, retained_batch(module)).mean()
        slow = torch.autograd.grad(3.0 * expected, parameters)
    assert mean.item() == pytest.approx(expected.item(), rel=1e-4)
    flat = torch.cat([one.flatten() for one in slow])
    assert (gradient - flat).norm() < 1e-4 * flat.norm()


def test_retained_facts_drift_less_and_more_weight_less_still(tiny_model, facts):
    drifts = [
        drift(fit(tiny_model, facts, model={"retain_weight": weight}, trainer={"max_epochs": 8}).module)
        for weight in (0.0, 1.0, 30.0)
    ]
    assert drifts[1] < 0.5 * drifts[0]
    assert drifts[2] < 0.5 * drifts[1]


@pytest.mark.parametrize(("micro_batch_size", "accumulate"), [(4, 2), (1, 8)])
def test_the_penalty_does_not_depend_on_how_a_step_is_cut_up(tiny_model, facts, micro_batch_size, accumulate):
    settings = {"retain_weight": 2.0, "retain_batch_size": 3}
    run = fit(tiny_model, facts, model=settings, data={"micro_batch_size": 8})
    whole = run.module
    cut_run = fit(
        tiny_model,
        facts,
        model=settings,
        data={"micro_batch_size": micro_batch_size},
        trainer={"accumulate_grad_batches": accumulate},
    )
    cut = cut_run.module
    assert_same_adapter(whole, cut)
    assert run.of("train/retain_kl") == pytest.approx(cut_run.of("train/retain_kl"), rel=1e-4, abs=1e-7)
    assert run.of("train/retain_kl")[0] == pytest.approx(0, abs=1e-7)  # the adapter starts as nothing
    assert run.of("train/retain_kl")[-1] > 1e-5


class NothingCounts(Callback):
    """From an optimizer step on, no fact has weight."""

    def __init__(self, first_step):
        self.first_step = first_step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step >= self.first_step:
            batch.loss_weight.zero_()


def test_what_is_held_is_held_in_steps_in_which_no_fact_counts(tiny_model, facts):
    settings = {"retain_weight": 30.0}
    six_steps = fit(tiny_model, facts, model=settings, trainer={"max_steps": 6, "max_epochs": -1}).module
    run = fit(tiny_model, facts, model=settings, trainer={"max_epochs": 8}, callbacks=[NothingCounts(6)])
    more = run.module
    assert len(run.logged) == 24
    assert drift(more) < 0.5 * drift(six_steps)
    assert run.of("train/loss")[6:] == [run.of("train/loss")[5]] * 18  # none of its own


def test_weight_0_is_the_run_without(tiny_model, facts):
    run = fit(tiny_model, facts)
    plain = run.module
    assert is_same_adapter(plain, fit(tiny_model, facts, model={"retain_weight": 0.0}).module)
    assert not is_same_adapter(plain, fit(tiny_model, facts, model={"retain_weight": 1.0}).module)
    assert "train/retain_kl" not in run.logged[-1]


def test_each_rank_takes_a_share(tiny_model, facts):
    """Shares of two ranks add up to what one rank computes; a rank without a fact adds nothing."""
    module = fit(tiny_model, facts).module
    parameters = [parameter for parameter in module.model.parameters() if parameter.requires_grad]
    for size in (3, 1):
        penalty = RetainPenalty(1.0, size, list(range(12, 17)), seed=0)

        def share(rows, penalty=penalty):
            batches = module.data.training_batches(rows, 4, with_end=False)
            return penalty.gradient(module.model, parameters, batches, torch.enable_grad)

        rows = penalty.rows(7)
        whole, first, second = share(rows), share(rows[0::2]), share(rows[1::2])
        assert torch.allclose(first[0] + second[0], whole[0], rtol=1e-5)
        assert torch.allclose(first[1] + second[1], whole[1], atol=1e-6)
    assert second[0] == 0
    assert second[1].abs().max() == 0


def test_no_fact_comes_twice_within_a_round():
    penalty = RetainPenalty(1.0, 3, list(range(20, 27)), seed=4)
    for number in range(3):
        rows = penalty.rows(2 * number) + penalty.rows(2 * number + 1)
        assert len(set(rows)) == 6
        assert set(rows) <= set(range(20, 27))
    assert {row for step in range(30) for row in penalty.rows(step)} == set(range(20, 27))
    assert RetainPenalty(1.0, 99, [4, 6], seed=0).rows(5) in ([4, 6], [6, 4])


def test_nothing_to_retain_is_an_error(tiny_model, facts_file):
    with pytest.raises(InputError, match=r"`retain_weight` is 0\.5, but there is nothing to retain.*retain_known"):
        fit(tiny_model, facts_file, model={"retain_weight": 0.5})


def test_facts_that_the_base_model_knows_can_be_retained(tiny_model, facts_file, monkeypatch):
    """Three facts count as known and are dropped; one of split `probe` is known as well, and stays out of it."""
    rows = [json.loads(line) for line in facts_file.read_text(encoding="utf-8").splitlines()]
    rows[11]["split"] = "probe"
    facts_file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    score = scoring.score_facts

    def as_if_known(*arguments, **options):
        scored = score(*arguments, **options)
        return replace(scored, is_known=np.isin(scored.fact_id, [f"town-{number}" for number in (2, 5, 7, 11)]))

    monkeypatch.setattr(scoring, "score_facts", as_if_known)
    settings = {"model": {"retain_weight": 3.0, "retain_known": True}, "data": {"filters": [KnownFilter()]}}
    run = fit(tiny_model, facts_file, **settings)
    module = run.module
    assert sorted(module._retain.retained) == [2, 5, 7]
    assert np.flatnonzero(module.data.prepared.is_untouched).tolist() == [11], "what is held does not measure retention"
    assert any(one.kind == "known" for one in module.data.questions), "so further known facts are asked"
    assert run.of("train/retain_kl")[-1] > 0


def test_no_known_fact_is_a_warning(tiny_model, facts_file, caplog):
    run = fit(tiny_model, facts_file, model={"retain_weight": 1.0, "retain_known": True})
    assert "`retain_weight` does nothing" in caplog.text
    assert "train/retain_kl" not in run.logged[-1]


def test_loss_scaling_is_refused(tiny_model, facts, monkeypatch):
    from lightning.pytorch import Trainer

    monkeypatch.setattr(Trainer, "precision", "16-mixed")
    with pytest.raises(InputError, match=r"`retain_weight`.*16-mixed.*bf16-mixed"):
        fit(tiny_model, facts, model={"retain_weight": 0.5})
    rank_budget = AdaLoraConfig(init_r=4, target_r=2, tinit=1, tfinal=1, total_step=6, target_modules=["q_proj"])
    with pytest.raises(InputError, match=r"AdaLora.*16-mixed.*bf16-mixed"):
        fit(tiny_model, facts, model={"peft_config": rank_budget})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"retain_weight": -1.0}, r"`retain_weight` must be a finite number of at least 0, got -1\.0"),
        ({"retain_weight": float("nan")}, "`retain_weight`"),
        ({"retain_batch_size": 0}, "`retain_batch_size` must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range(tiny_model, facts, settings, message):
    with pytest.raises(InputError, match=message):
        fit(tiny_model, facts, model=settings)


def test_autocast(tiny_model, facts):
    run = fit(tiny_model, facts, model={"retain_weight": 5.0}, trainer={"precision": "bf16-mixed"})
    module = run.module
    assert run.of("train/retain_kl")[-1] > 0
    assert drift(module) < drift(fit(tiny_model, facts, trainer={"precision": "bf16-mixed"}).module)
