"""One optimizer step: the weighted loss, its gradient, and what Lightning makes of them."""

import math
import re
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import BaseModel, adapter_state_dict, fact_nll
from lit_semantic_peft.semantics import Proximity
from peft import AdaLoraConfig

from fixtures.models import save_tiny_model
from fixtures.training import Ramp, build, build_data, build_module, build_trainer, fit_ramped

pytestmark = pytest.mark.usefixtures("shared_cache")

ONE_BY_ONE = {"micro_batch_size": 1, "data": {"weighting": Ramp(5)}, "trainer": {"max_epochs": 1}}
"""Each fact is an optimizer step of its own; five have no weight."""


def adamw(lr):
    return {"optimizer": partial(torch.optim.AdamW, lr=lr)}


@pytest.mark.parametrize("normalization", ["step_weights", "step_count"])
def test_loss_and_gradient_equal_an_obvious_loop(tiny_model, facts_file, normalization):
    run = fit_ramped(
        tiny_model,
        facts_file,
        micro_batch_size=3,
        accumulate=4,
        model={"normalization": normalization},
        data={"weighting": Ramp(3)},
        trainer={"max_epochs": 1},
    )
    fresh = build(tiny_model, facts_file).module
    fresh.configure_model()
    data, weights = run.data, run.data.prepared.weights.start
    assert np.count_nonzero(weights == 0) == 3
    total = torch.zeros(())
    for row in range(12):
        (batch,) = data.training_batches([row], 1)
        total = total + float(weights[row]) * fact_nll(fresh.model, batch)[0]
    normalizer = weights.sum() if normalization == "step_weights" else np.count_nonzero(weights)
    loss = total / float(normalizer)
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.norm()) ** 2 for p in fresh.model.parameters() if p.grad is not None))
    assert run.losses == pytest.approx([loss.item()], rel=1e-5)
    assert run.norms == pytest.approx([norm], rel=1e-5)


def test_weights_change_the_run(tiny_model, facts_file):
    weighted = fit_ramped(tiny_model, facts_file, data={"weighting": Ramp(6)})
    other = fit_ramped(tiny_model, facts_file, data={"weighting": Proximity()})
    assert not np.allclose(weighted.losses, other.losses, rtol=1e-3)


def test_a_step_without_any_weight_changes_nothing(tiny_model, facts_file):
    """Micro-batches of one fact; the facts of weight 0 are steps of their own."""
    before: dict[int, dict[str, torch.Tensor]] = {}

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.state = {name: value.clone() for name, value in adapter_state_dict(pl_module.model).items()}
            self.weight = float(batch.loss_weight.sum())

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            after = adapter_state_dict(pl_module.model)
            changed = any(not torch.equal(self.state[name], after[name]) for name in after)
            before[batch_idx] = {"changed": torch.tensor(changed), "weight": torch.tensor(self.weight)}

    fit_ramped(tiny_model, facts_file, callbacks=[Watch()], **ONE_BY_ONE)
    assert sum(float(row["weight"]) == 0 for row in before.values()) == 5
    first = min(before)  # the first step of the warm-up has learning rate 0
    for number, row in before.items():
        if number != first:
            assert bool(row["changed"]) == (float(row["weight"]) > 0)


def test_training_learns(tiny_model, facts_file):
    losses = fit_ramped(tiny_model, facts_file, model=adamw(3e-2), trainer={"max_epochs": 30}).losses
    assert losses[-1] < 0.5 * losses[0]


def test_adalora_trains_and_moves_its_budget(tiny_model, facts_file):
    config = AdaLoraConfig(
        init_r=6, target_r=2, tinit=2, tfinal=2, deltaT=1, total_step=12, target_modules=["q_proj", "v_proj"]
    )
    run = fit_ramped(tiny_model, facts_file, model={"peft_config": config}, trainer={"max_epochs": 4})
    assert len(run.losses) == 12
    assert all(map(math.isfinite, run.losses))
    assert run.module.model.peft_config["default"].rank_pattern


def test_adalora_passes_over_a_step_without_any_weight(tiny_model, facts_file):
    """PEFT multiplies each entry by its gradient, which there is none of in such a step."""
    config = AdaLoraConfig(init_r=4, target_r=2, tinit=2, tfinal=4, total_step=24, target_modules=["q_proj"])
    run = fit_ramped(tiny_model, facts_file, model={"peft_config": config}, **ONE_BY_ONE)
    assert run.module.global_step == 12
    assert all(map(math.isfinite, run.losses))


def test_a_loss_that_is_not_finite_ends_the_run_and_says_what_to_do(tiny_model, facts_file):
    with pytest.raises(InputError, match=r"`train/loss` is .* at optimizer step \d+.*learning rate"):
        fit_ramped(tiny_model, facts_file, model=adamw(1e30), trainer={"max_epochs": 5})


def test_same_seed_same_bytes(tiny_model, facts_file):
    first, second = fit_ramped(tiny_model, facts_file), fit_ramped(tiny_model, facts_file)
    assert first.losses == second.losses
    assert all(torch.equal(first.adapter[name], second.adapter[name]) for name in first.adapter)


def test_base_models_must_agree(tiny_model, facts_file, tmp_path):
    """Facts are measured against the model that is trained, by whatever name both know it."""
    other = save_tiny_model(tmp_path / "other", seed=1)
    here = BaseModel(str(tiny_model))
    for name, different in (
        ("name", BaseModel(str(other))),
        ("dtype", replace(here, dtype="bfloat16")),
        ("trust_remote_code", replace(here, trust_remote_code=True)),
    ):
        run = build(tiny_model, facts_file, model={"base_model": different})
        theirs, ours = getattr(different, name), getattr(here, name)
        said = f"`base_model.{name}` is {theirs!r} in the module and {ours!r} in the data module. Facts"
        with pytest.raises(InputError, match=f"^{re.escape(said)}.* another model than the one that is trained"):
            run.trainer.fit(run.module, datamodule=run.data)
    same = shutil.copytree(tiny_model, tmp_path / "same")
    for equal in (BaseModel(str(same)), replace(here, revision="main")):  # a folder has no revisions
        run = build(tiny_model, facts_file, model={"base_model": equal}, trainer={"max_steps": 1})
        run.trainer.fit(run.module, datamodule=run.data)
        assert run.trainer.global_step == 1


def test_the_data_module_takes_the_base_model_of_whatever_module_is_trained(tiny_model, facts_file, tmp_path):
    other = save_tiny_model(tmp_path / "other", seed=1)
    data = build_data(tiny_model, facts_file, base_model=None)
    scores = []
    for folder in (tiny_model, other, tiny_model):
        build_trainer(max_steps=1).fit(build_module(folder), datamodule=data)
        scores.append(data.prepared.scored.base_nll.tolist())
    assert scores[0] == scores[2] != scores[1]
    with pytest.raises(InputError, match="`base_model` is missing: without a trainer"):
        build_data(tiny_model, facts_file, base_model=None).setup("fit")


def test_a_schedule_of_micro_batches_is_refused(tiny_model, facts_file):
    """Steps, rate and progress are planned for one number of them; Lightning would only count otherwise."""
    with pytest.raises(InputError, match=r"Set `trainer\.accumulate_grad_batches`"):
        fit_ramped(tiny_model, facts_file, callbacks=[GradientAccumulationScheduler({0: 1, 1: 3})])
