"""Scaling an adapter up: exactly by the factor, once, after everything that trains, however it is resumed."""

import pytest
from lightning.pytorch import Callback
from lit_semantic_peft.callbacks import AdapterCheckpoint, Extrapolate, Refine
from lit_semantic_peft.errors import InputError
from peft import IA3Config, LoraConfig

from fixtures.scaled import ratio
from fixtures.training import fit, is_same_adapter


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_what_was_trained_is_multiplied(tiny_model, facts_file, factor):
    plain = fit(tiny_model, facts_file, trainer={"max_epochs": 2})
    run = fit(tiny_model, facts_file, callbacks=[callback := Extrapolate(factor)], trainer={"max_epochs": 2})
    assert callback.scale == factor
    assert ratio(run, plain) == pytest.approx(factor, abs=1e-4)
    assert run.losses == plain.losses


def test_the_steps_that_refine_come_before(tiny_model, facts_file):
    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, *_):
            seen.append(callback.scale)

    trainer = {"max_epochs": None, "max_steps": 9}
    plain = fit(tiny_model, facts_file, callbacks=[Refine(3)], trainer=trainer)
    run = fit(tiny_model, facts_file, callbacks=[Refine(3), callback := Extrapolate(1.25), Watch()], trainer=trainer)
    assert set(seen) == {None}
    assert len(seen) == 9
    assert ratio(run, plain) == pytest.approx(1.25, abs=1e-4)


def test_a_resumed_training_is_scaled_once(tiny_model, facts_file):
    def run(folder, ckpt_path=None):
        return fit(
            tiny_model,
            facts_file,
            callbacks=[AdapterCheckpoint(save_top_k=-1), Extrapolate(1.5)],
            trainer={"max_epochs": 4, "enable_checkpointing": True, "default_root_dir": folder},
            ckpt_path=ckpt_path,
        )

    whole = run("whole")
    assert is_same_adapter(whole.module, run("resumed", "whole/checkpoints/epoch002.ckpt").module)
    assert is_same_adapter(whole.module, run("whole", "whole/checkpoints/last.ckpt").module)


def test_a_training_that_goes_on_is_scaled_from_what_was_trained(tiny_model, facts_file):
    def run(folder, epochs, callbacks, ckpt_path=None):
        return fit(
            tiny_model,
            facts_file,
            callbacks=[AdapterCheckpoint(save_top_k=-1), *callbacks],
            trainer={"max_epochs": epochs, "enable_checkpointing": True, "default_root_dir": folder},
            ckpt_path=ckpt_path,
        )

    run("plain", 2, [])
    run("scaled", 2, [Extrapolate(2.0)])
    plain = run("plain_2", 4, [], "plain/checkpoints/last.ckpt")
    scaled = run("scaled_2", 4, [Extrapolate(2.0)], "scaled/checkpoints/last.ckpt")
    assert scaled.losses == plain.losses  # a half and a double are exact
    assert ratio(scaled, plain) == pytest.approx(2.0, abs=1e-4)


@pytest.mark.parametrize("factor", [0.99, -1.0, float("nan"), float("inf")])
def test_a_factor_that_does_not_scale_up_is_refused(factor):
    with pytest.raises(InputError, match="`factor` of Extrapolate must be at least 1"):
        Extrapolate(factor)


@pytest.mark.parametrize(
    "adapter", [LoraConfig(r=4, target_modules="all-linear", use_dora=True), IA3Config(target_modules="all-linear")]
)
def test_an_adapter_that_is_not_proportional_to_a_factor_is_refused(tiny_model, facts_file, adapter):
    with pytest.raises(InputError, match="`Extrapolate` multiplies LoRA's change"):
        fit(tiny_model, facts_file, callbacks=[Extrapolate(1.5)], model={"peft_config": adapter})
