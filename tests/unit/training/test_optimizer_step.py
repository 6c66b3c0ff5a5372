"""One optimizer step, however it is cut up: the weighted loss, its gradient, and what Lightning makes of them."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from lit_semantic_peft.data import KnowledgeDataModule
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import adapter_state_dict, fact_nll
from lit_semantic_peft.semantics import Proximity, Weighting
from lit_semantic_peft.training import SemanticPeftModule
from peft import AdaLoraConfig, LoraConfig


class Ramp(Weighting):
    """Very different weights, among them zeros, so that a broken weighting cannot hide."""

    def __init__(self, num_zero: int = 0) -> None:
        self.num_zero = num_zero

    def raw(self, distance: np.ndarray) -> np.ndarray:
        ranks = np.argsort(np.argsort(distance)).astype(float)
        return np.where(ranks < self.num_zero, 0.0, ranks + 1)


class Recorder(Callback):
    """Loss and gradient norm of each optimizer step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step > len(self.losses):
            self.losses.append(float(trainer.callback_metrics["train/loss"]))
            self.norms.append(float(trainer.callback_metrics["train/grad_norm"]))


def train(
    tiny_model: Path,
    facts_file: Path,
    *,
    micro_batch_size: int = 4,
    accumulate: int = 1,
    weighting: Weighting | None = None,
    epochs: int = 2,
    peft_config=None,
    normalization: str = "step_weights",
    gradient_checkpointing: bool = False,
    max_steps: int = -1,
    num_facts: int | None = None,
    lr: float = 1e-2,
) -> tuple[SemanticPeftModule, Recorder, KnowledgeDataModule]:
    seed_everything(0, verbose=False)
    data = KnowledgeDataModule(
        facts=str(facts_file),
        base_model=str(tiny_model),
        weighting=weighting or Ramp(),
        micro_batch_size=micro_batch_size,
        num_facts=num_facts,
    )
    module = SemanticPeftModule(
        base_model=str(tiny_model),
        peft_config=peft_config or LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
        optimizer=partial(torch.optim.AdamW, lr=lr),
        normalization=normalization,
        gradient_checkpointing=gradient_checkpointing,
    )
    recorder = Recorder()
    trainer = Trainer(
        max_epochs=epochs,
        max_steps=max_steps,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[recorder],
    )
    trainer.fit(module, datamodule=data)
    return module, recorder, data


def assert_same_run(left, right, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(left[1].losses, right[1].losses, rtol=tolerance)
    np.testing.assert_allclose(left[1].norms, right[1].norms, rtol=tolerance)
    mine, other = adapter_state_dict(left[0].model), adapter_state_dict(right[0].model)
    assert mine.keys() == other.keys()
    residuals = []
    for name in mine:
        difference = mine[name] - other[name]
        assert difference.norm() <= tolerance * mine[name].norm() + 1e-12, name
        residuals.append(difference.mean() / (mine[name].abs().mean() + 1e-12))
    assert abs(float(torch.stack(residuals).mean())) < tolerance  # a one-sided shift hides under a maximum


@pytest.mark.parametrize(("micro_batch_size", "accumulate"), [(4, 2), (2, 4), (1, 8)])
@pytest.mark.parametrize("normalization", ["step_weights", "step_count"])
def test_a_step_does_not_depend_on_how_it_is_cut_up(
    tiny_model, facts_file, micro_batch_size, accumulate, normalization
):
    """12 facts in steps of 8: a whole and a partial window each epoch."""
    whole = train(tiny_model, facts_file, micro_batch_size=8, normalization=normalization)
    cut = train(
        tiny_model,
        facts_file,
        micro_batch_size=micro_batch_size,
        accumulate=accumulate,
        normalization=normalization,
    )
    assert len(whole[1].losses) == 4
    assert_same_run(whole, cut)


def test_gradient_checkpointing_changes_nothing(tiny_model, facts_file):
    assert_same_run(train(tiny_model, facts_file), train(tiny_model, facts_file, gradient_checkpointing=True))


@pytest.mark.parametrize("normalization", ["step_weights", "step_count"])
def test_loss_and_gradient_equal_an_obvious_loop(tiny_model, facts_file, normalization):
    _, recorder, data = train(
        tiny_model,
        facts_file,
        micro_batch_size=3,
        accumulate=4,
        epochs=1,
        weighting=Ramp(3),
        normalization=normalization,
    )
    seed_everything(0, verbose=False)
    fresh = SemanticPeftModule(
        base_model=str(tiny_model), peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    )
    fresh.configure_model()
    weights = data.prepared.loss_weight
    assert np.count_nonzero(weights == 0) == 3
    total = torch.zeros(())
    for row in range(12):
        (batch,) = data.training_batches([row], 1)
        total = total + float(weights[row]) * fact_nll(fresh.model, batch)[0]
    normalizer = weights.sum() if normalization == "step_weights" else np.count_nonzero(weights)
    loss = total / float(normalizer)
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.norm()) ** 2 for p in fresh.model.parameters() if p.grad is not None))
    assert recorder.losses == pytest.approx([loss.item()], rel=1e-5)
    assert recorder.norms == pytest.approx([norm], rel=1e-5)


def test_weight_zero_is_the_fact_removed(tiny_model, facts_file, monkeypatch):
    """The same planned steps, once with facts of weight 0 in them and once without these facts."""
    with_zeros = train(tiny_model, facts_file, weighting=Ramp(4), micro_batch_size=12)
    weights = with_zeros[2].prepared.loss_weight
    steps = KnowledgeDataModule.train_dataloader

    def without(self):
        loader = steps(self)
        loader.sampler.rows = [row for row in loader.sampler.rows if weights[row] > 0]
        return loader

    monkeypatch.setattr(KnowledgeDataModule, "train_dataloader", without)
    removed = train(tiny_model, facts_file, weighting=Ramp(4), micro_batch_size=12)
    assert_same_run(with_zeros, removed)


def test_weights_change_the_run(tiny_model, facts_file):
    weighted = train(tiny_model, facts_file, weighting=Ramp(6))
    other = train(tiny_model, facts_file, weighting=Proximity())
    assert not np.allclose(weighted[1].losses, other[1].losses, rtol=1e-3)


def test_a_step_without_any_weight_changes_nothing(tiny_model, facts_file, monkeypatch):
    """Micro-batches of one fact; the facts of weight 0 are steps of their own."""
    before: dict[int, dict[str, torch.Tensor]] = {}

    class Watch(Recorder):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.state = {name: value.clone() for name, value in adapter_state_dict(pl_module.model).items()}
            self.weight = float(batch.loss_weight.sum())

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            after = adapter_state_dict(pl_module.model)
            changed = any(not torch.equal(self.state[name], after[name]) for name in after)
            before[batch_idx] = {"changed": torch.tensor(changed), "weight": torch.tensor(self.weight)}

    monkeypatch.setattr(f"{__name__}.Recorder", Watch)
    train(tiny_model, facts_file, weighting=Ramp(5), micro_batch_size=1, epochs=1)
    assert sum(float(row["weight"]) == 0 for row in before.values()) == 5
    first = min(before)  # the first step of the warm-up has learning rate 0
    for number, row in before.items():
        if number != first:
            assert bool(row["changed"]) == (float(row["weight"]) > 0)


def test_training_learns(tiny_model, facts_file):
    _, recorder, _ = train(tiny_model, facts_file, epochs=30, lr=3e-2)
    assert recorder.losses[-1] < 0.5 * recorder.losses[0]


def test_adalora_trains_and_moves_its_budget(tiny_model, facts_file):
    config = AdaLoraConfig(
        init_r=6, target_r=2, tinit=2, tfinal=2, deltaT=1, total_step=12, target_modules=["q_proj", "v_proj"]
    )
    module, recorder, _ = train(tiny_model, facts_file, epochs=4, peft_config=config)
    assert len(recorder.losses) == 12
    assert all(map(math.isfinite, recorder.losses))
    assert module.model.peft_config["default"].rank_pattern


def test_a_loss_that_is_not_finite_ends_the_run_and_says_what_to_do(tiny_model, facts_file):
    with pytest.raises(InputError, match=r"`train/loss` is .* at optimizer step \d+.*learning rate"):
        train(tiny_model, facts_file, lr=1e30, epochs=5)


def test_same_seed_same_bytes(tiny_model, facts_file):
    first, second = train(tiny_model, facts_file), train(tiny_model, facts_file)
    mine, other = adapter_state_dict(first[0].model), adapter_state_dict(second[0].model)
    assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_base_models_must_agree(tiny_model, facts_file, tmp_path):
    from fixtures.tiny import save_tiny_model

    other = save_tiny_model(tmp_path / "other", seed=1)
    data = KnowledgeDataModule(facts=str(facts_file), base_model=str(tiny_model))
    module = SemanticPeftModule(base_model=str(other))
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(InputError, match="another model than the one that is trained"):
        trainer.fit(module, datamodule=data)
