"""Scaling an adapter back: by how much, what it asks, and exact however the training is resumed."""

import pytest
import torch
from lightning.pytorch import Callback
from lit_semantic_peft.callbacks import AdapterCheckpoint, ScaleBack, StopWhenRecalled, scale_back
from lit_semantic_peft.callbacks.scaling import output_factors
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.forms import Question
from lit_semantic_peft.models import adapter_state_dict
from lit_semantic_peft.semantics.scoring import score_targets
from lit_semantic_peft.tokens import collate
from peft import LoraConfig

from fixtures.scaled import ratio
from fixtures.training import fit, is_same_adapter

TRAINED = 12


def recalled_with(run, scale):
    """Whether each taught or stopping text is recalled with α, each asked alone."""
    model, forms = run.module.model.eval(), run.data.prepared.forms
    factors = output_factors(model)
    kept = [factor.detach().clone() for factor in factors]
    with torch.no_grad():
        for factor, value in zip(factors, kept, strict=True):
            factor.copy_(value * scale)
        found = [bool(score_targets(model, collate([text], [0], 0)).is_recalled) for text in forms.texts]
        for factor, value in zip(factors, kept, strict=True):
            factor.copy_(value)
    return torch.tensor(found)


@pytest.mark.parametrize("tolerance", [0.0, 0.3])
def test_the_least_scale_that_keeps_what_is_recalled(tiny_model, facts_file, tolerance):
    """Against each text asked alone with each α of an adapter that was not scaled."""
    settings = {"data": {"sources": [Question(0.4)]}, "trainer": {"max_epochs": 40}}
    plain = fit(tiny_model, facts_file, **settings)
    run = fit(tiny_model, facts_file, callbacks=[callback := ScaleBack(tolerance)], **settings)
    before, expected = recalled_with(plain, 1.0), 1.0
    assert before[:TRAINED].any()
    for tried in (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5):
        lost = before & ~recalled_with(plain, tried)
        if lost[:TRAINED].any() or lost.sum() > tolerance * before.sum():
            break
        expected = tried
    assert callback.scale == pytest.approx(expected)
    assert expected < 1
    assert ratio(run, plain) == pytest.approx(expected, abs=1e-4)
    assert run.losses == plain.losses


def test_nothing_is_scaled_before_training_ends(tiny_model, facts_file):
    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            seen.append(callback.scale)

    fit(tiny_model, facts_file, callbacks=[callback := ScaleBack(), Watch()], trainer={"max_epochs": 3})
    assert len(seen) == 9
    assert set(seen) == {None}
    assert callback.scale is not None


def test_an_adapter_that_recalls_nothing_stays(tiny_model, facts_file, monkeypatch):
    nothing = torch.zeros(TRAINED, dtype=torch.bool)
    monkeypatch.setattr(scale_back, "recalled_texts", lambda *_: nothing)
    plain = fit(tiny_model, facts_file, trainer={"max_epochs": 1})
    run = fit(tiny_model, facts_file, callbacks=[callback := ScaleBack()], trainer={"max_epochs": 1})
    assert callback.scale == 1.0
    assert is_same_adapter(run.module, plain.module)


@pytest.mark.parametrize("trainer", [{"max_epochs": 40}, {"max_epochs": None, "max_steps": 120}])
def test_the_last_checkpoint_is_scaled_and_a_resumed_training_is_the_same(tiny_model, facts_file, trainer):
    def run(folder, ckpt_path=None):
        return fit(
            tiny_model,
            facts_file,
            callbacks=[AdapterCheckpoint(save_top_k=-1), ScaleBack()],
            trainer={**trainer, "enable_checkpointing": True, "default_root_dir": folder},
            ckpt_path=ckpt_path,
        )

    whole = run("whole")
    last = torch.load("whole/checkpoints/last.ckpt", weights_only=False)["state_dict"]
    held = {name.rpartition("model.")[2]: value for name, value in last.items()}
    for name, value in adapter_state_dict(whole.module.model).items():
        (found,) = [tensor for key, tensor in held.items() if name.endswith(key) or key.endswith(name)]
        assert torch.equal(found, value)
    resumed = run("resumed", "whole/checkpoints/epoch020.ckpt")
    assert is_same_adapter(whole.module, resumed.module)
    again = run("whole", "whole/checkpoints/last.ckpt")  # is not scaled once more
    assert is_same_adapter(whole.module, again.module)


def test_a_training_that_is_ended_early_is_scaled(tiny_model, facts_file):
    early = StopWhenRecalled(threshold=0.5, cooldown_steps=2)
    callbacks = [early, callback := ScaleBack()]
    run = fit(tiny_model, facts_file, callbacks=callbacks, trainer={"max_epochs": 60, "limit_val_batches": 1.0})
    assert len(run.losses) < 180
    assert callback.scale is not None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tolerance": 1.0}, r"`tolerance` of ScaleBack must be in \[0, 1\), got 1"),
        ({"lowest": 0.0}, r"`lowest` of ScaleBack must be in \(0, 1\), got 0"),
        ({"step": 1.0}, r"`step` of ScaleBack must be in \(0, 1\), got 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        ScaleBack(**settings)


def test_an_adapter_that_is_not_proportional_to_a_factor_is_refused(tiny_model, facts_file):
    model = {"peft_config": LoraConfig(r=4, target_modules="all-linear", use_dora=True)}
    with pytest.raises(InputError, match="changes it in other ways"):
        fit(tiny_model, facts_file, callbacks=[ScaleBack()], model=model)
