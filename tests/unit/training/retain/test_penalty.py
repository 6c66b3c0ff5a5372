"""What must not change: the penalty of all sources, its gradient, and what it does to a run."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.undisturbed import undisturbed
from lit_semantic_peft.tokens import IGNORE_INDEX, collate
from lit_semantic_peft.training import OwnSamples, RetainSplit
from lit_semantic_peft.training.retain import held_still
from lit_semantic_peft.training.retain import teacher as teacher_module
from peft import AdaLoraConfig

from fixtures.training import assert_same_adapter, fit, is_same_adapter, with_retained

BOTH = [RetainSplit(2.0, batch_size=3, top_k=None), OwnSamples(0.5, batch_size=4, num_samples=9, length=5, top_k=None)]
NAMES = ["retain_split", "own_samples"]


@pytest.fixture
def facts(facts_file):
    return with_retained(facts_file)


def retaining(weight=1.0, **settings):
    return {"retain": [RetainSplit(weight, **settings)]}


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
        return float(slow_kl(module.model, retained_batch(module)).mean())


def penalty_of(run, sources):
    run.module.retain = sources
    return held_still(run.module, begins=True)[0]


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("micro_batch_size", [2, 16])
def test_each_source_has_its_own_mean_and_weight(tiny_model, facts, micro_batch_size):
    run = fit(tiny_model, facts, data={"micro_batch_size": micro_batch_size})
    model, parameters = run.module.model, trained(run.module.model)
    penalty = penalty_of(run, BOTH)
    chosen = penalty.chosen(step=1)
    assert [sum(one.source == source for one in chosen) for source in (0, 1)] == [3, 4]
    means, gradient = penalty.gradient(model, parameters, chosen, torch.enable_grad)
    with undisturbed(model):
        expected = []
        for number, retained in enumerate(penalty.retained):
            texts = [retained.texts[one.text].student for one in chosen if one.source == number]
            batch = collate(texts, range(len(texts)), 0, with_end=False)
            expected.append(slow_kl(model, batch).mean())
        total = 2.0 * expected[0] + 0.5 * expected[1]
        slow = torch.cat([one.flatten() for one in torch.autograd.grad(total, parameters)])
    assert means.tolist() == pytest.approx([one.item() for one in expected], rel=1e-4)
    assert (gradient - slow).norm() < 1e-4 * slow.norm()


def test_a_stored_teacher_of_all_tokens_is_the_base_model(tiny_model, facts):
    run = fit(tiny_model, facts)
    model, parameters = run.module.model, trained(run.module.model)
    found = []
    for top_k in (10_000, None):
        penalty = penalty_of(run, [RetainSplit(top_k=top_k), OwnSamples(num_samples=9, length=5, top_k=top_k)])
        found.append(penalty.gradient(model, parameters, penalty.chosen(0), torch.enable_grad))
    assert found[0][0].tolist() == pytest.approx(found[1][0].tolist(), rel=1e-4)
    assert (found[0][1] - found[1][1]).norm() < 1e-4 * found[1][1].norm()


def test_each_rank_takes_a_share(tiny_model, facts):
    """Shares of two ranks add up to what one rank computes; a rank without a text adds nothing."""
    run = fit(tiny_model, facts)
    model, parameters = run.module.model, trained(run.module.model)
    for sources in (BOTH, [RetainSplit(batch_size=1)]):
        penalty = penalty_of(run, sources)
        chosen = penalty.chosen(7)
        whole, first, second = (
            penalty.gradient(model, parameters, share, torch.enable_grad)
            for share in (chosen, chosen[0::2], chosen[1::2])
        )
        assert torch.allclose(first[0] + second[0], whole[0], rtol=1e-5)
        assert torch.allclose(first[1] + second[1], whole[1], atol=1e-6)
    assert second[0].abs().max() == second[1].abs().max() == 0


def test_no_text_comes_twice_within_a_round(tiny_model, facts):
    penalty = penalty_of(fit(tiny_model, facts), [RetainSplit(batch_size=2, seed=4)])
    for number in range(3):
        texts = [one.text for step in (2 * number, 2 * number + 1) for one in penalty.chosen(step)]
        assert len(set(texts)) == 4
    assert {one.text for step in range(30) for one in penalty.chosen(step)} == set(range(5))


def test_a_source_that_leaves_out_steps_pulls_as_hard_in_the_others(tiny_model, facts):
    run = fit(tiny_model, facts)
    model, parameters = run.module.model, trained(run.module.model)
    always, seldom = (penalty_of(run, [RetainSplit(0.5, batch_size=2, every=every)]) for every in (1, 3))
    assert [bool(seldom.chosen(step)) for step in range(6)] == [False, False, True, False, False, True]
    assert [seldom.chosen(step) for step in (2, 5, 8)] == [always.chosen(step) for step in range(3)]
    assert seldom.tokens_per_step == pytest.approx(always.tokens_per_step / 3)
    chosen = always.chosen(0)
    (kl, slow), (same_kl, fast) = (
        one.gradient(model, parameters, chosen, torch.enable_grad) for one in (always, seldom)
    )
    assert kl.tolist() == same_kl.tolist()
    assert (fast - 3 * slow).norm() < 1e-5 * fast.norm()


def test_steps_without_retained_text_log_no_divergence(tiny_model, facts):
    logged = []

    class Listener(Callback):
        def on_train_batch_end(self, trainer, *_):
            logged.append({name for name in trainer.logged_metrics if "retain_kl" in name})

    fit(tiny_model, facts, model=retaining(every=3), trainer={"max_steps": 4}, callbacks=[Listener()])
    assert logged[0] == logged[1] == set()
    assert logged[2] == {"train/retain_kl", "train/retain_kl/retain_split"}


def test_retained_facts_drift_less_and_more_weight_less_still(tiny_model, facts):
    drifts = [
        drift(fit(tiny_model, facts, model=model, trainer={"max_epochs": 8}).module)
        for model in ({}, retaining(1.0), retaining(30.0))
    ]
    assert drifts[1] < 0.5 * drifts[0]
    assert drifts[2] < 0.5 * drifts[1]


@pytest.mark.parametrize(("micro_batch_size", "accumulate"), [(4, 2), (1, 8)])
def test_the_penalty_does_not_depend_on_how_a_step_is_cut_up(tiny_model, facts, micro_batch_size, accumulate):
    settings = {"retain": [RetainSplit(2.0, batch_size=3), OwnSamples(0.5, batch_size=4, num_samples=9, length=5)]}
    run = fit(tiny_model, facts, model=settings, data={"micro_batch_size": 8})
    cut = fit(
        tiny_model,
        facts,
        model=settings,
        data={"micro_batch_size": micro_batch_size},
        trainer={"accumulate_grad_batches": accumulate},
    )
    assert_same_adapter(run.module, cut.module)
    for name in ("retain_kl", *(f"retain_kl/{source}" for source in NAMES)):
        assert run.of(f"train/{name}") == pytest.approx(cut.of(f"train/{name}"), rel=1e-4, abs=1e-6)
        assert run.of(f"train/{name}")[0] == pytest.approx(0, abs=1e-6)  # the adapter starts as nothing
        assert run.of(f"train/{name}")[-1] > 1e-5
    total = [2.0 * row["train/retain_kl/retain_split"] + 0.5 * row["train/retain_kl/own_samples"] for row in run.logged]
    assert run.of("train/retain_kl") == pytest.approx(total, rel=1e-5, abs=1e-7)


class NothingCounts(Callback):
    """From an optimizer step on, no fact has weight."""

    def __init__(self, first_step):
        self.first_step = first_step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step >= self.first_step:
            batch.loss_weight.zero_()


def test_what_is_held_is_held_in_steps_in_which_no_fact_counts(tiny_model, facts):
    settings = retaining(30.0)
    six_steps = fit(tiny_model, facts, model=settings, trainer={"max_steps": 6, "max_epochs": -1}).module
    run = fit(tiny_model, facts, model=settings, trainer={"max_epochs": 8}, callbacks=[NothingCounts(6)])
    assert len(run.logged) == 24
    assert drift(run.module) < 0.5 * drift(six_steps)
    assert run.of("train/loss")[6:] == [run.of("train/loss")[5]] * 18  # none of its own


def test_no_source_is_the_run_without(tiny_model, facts):
    plain = fit(tiny_model, facts)
    assert is_same_adapter(plain.module, fit(tiny_model, facts, model={"retain": []}).module)
    assert not is_same_adapter(plain.module, fit(tiny_model, facts, model=retaining()).module)
    assert "train/retain_kl" not in plain.logged[-1]


def test_two_sources_of_a_class_have_two_names(tiny_model, facts):
    run = fit(tiny_model, facts, model={"retain": [RetainSplit(batch_size=2), RetainSplit(batch_size=1)]})
    assert {"train/retain_kl/retain_split", "train/retain_kl/retain_split_2"} <= run.logged[-1].keys()


def test_the_base_model_is_asked_once(tiny_model, facts, monkeypatch):
    """A second run takes samples and predictions from the cache and is the same to the last bit."""
    settings = {"retain": [OwnSamples(num_samples=9, length=5), RetainSplit()]}
    first = fit(tiny_model, facts, model=settings)

    def refuse(*_, **__):
        raise AssertionError("asked again")

    monkeypatch.setattr(teacher_module, "target_logits", refuse)
    monkeypatch.setattr("lit_semantic_peft.training.retain.own_samples.free_samples", refuse)
    assert is_same_adapter(first.module, fit(tiny_model, facts, model=settings).module)
    with pytest.raises(AssertionError, match="asked again"):
        fit(tiny_model, facts, model={"retain": [OwnSamples(num_samples=9, length=5, top_k=3)]})
    with pytest.raises(AssertionError, match="asked again"):
        fit(tiny_model, facts, model={"retain": [OwnSamples(num_samples=9, length=5, seed=1)]})


def test_loss_scaling_is_refused(tiny_model, facts, monkeypatch):
    monkeypatch.setattr(Trainer, "precision", "16-mixed")
    with pytest.raises(InputError, match=r"`retain`.*16-mixed.*bf16-mixed"):
        fit(tiny_model, facts, model=retaining())
    rank_budget = AdaLoraConfig(init_r=4, target_r=2, tinit=1, tfinal=1, total_step=6, target_modules=["q_proj"])
    with pytest.raises(InputError, match=r"AdaLora.*16-mixed.*bf16-mixed"):
        fit(tiny_model, facts, model={"peft_config": rank_budget})


def test_autocast(tiny_model, facts):
    run = fit(tiny_model, facts, model=retaining(5.0), trainer={"precision": "bf16-mixed"})
    assert run.of("train/retain_kl")[-1] > 0
    assert drift(run.module) < drift(fit(tiny_model, facts, trainer={"precision": "bf16-mixed"}).module)
