"""What goes on after a checkpoint, beside what `cli/test_resume.py` holds to the last bit for LoRA."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lit_semantic_peft.callbacks import AdapterCheckpoint, AdapterExport, FactReport, InterferenceMonitor
from lit_semantic_peft.data import KnowledgeDataModule
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.semantics import (
    Focal,
    HiddenStateDistance,
    Online,
    Proximity,
    RandomFilter,
    Strata,
    TokenDistance,
)
from lit_semantic_peft.training import (
    ConflictAwareBatching,
    GradientSurgery,
    InterferenceWeighting,
    RetainSplit,
    SemanticPeftModule,
)
from peft import AdaLoraConfig

from fixtures.training import WEIGHTED, build, build_trainer, fit, is_same_adapter, with_retained

pytestmark = pytest.mark.usefixtures("shared_cache")


def optimizer_of(kind, **settings):
    return {"optimizer": partial(kind, **settings)}


def test_adalora_goes_on_with_its_budget(tiny_model, facts_file):
    """3 steps an epoch; ranks are taken away from step 3 on and settled at step 7: cut off before and behind that."""

    def run(folder, ckpt_path=None):
        config = AdaLoraConfig(
            init_r=6, target_r=2, tinit=2, tfinal=5, deltaT=1, total_step=12, target_modules=["q_proj", "v_proj"]
        )
        trainer = {"max_epochs": 4, "enable_checkpointing": True, "default_root_dir": folder}
        callbacks = [AdapterCheckpoint(save_top_k=-1)]
        return fit(
            tiny_model,
            facts_file,
            data=WEIGHTED,
            model={"peft_config": config},
            trainer=trainer,
            callbacks=callbacks,
            ckpt_path=ckpt_path,
        ).module

    whole = run("whole")
    for epoch in (0, 2):
        resumed = run("resumed", f"whole/checkpoints/epoch00{epoch}.ckpt")
        assert is_same_adapter(whole, resumed), epoch
        left, right = (one.model.peft_config["default"].rank_pattern for one in (whole, resumed))
        assert left == right
        assert not all(map(all, left.values()))


@pytest.mark.parametrize("validates", [False, True])
@pytest.mark.parametrize("length", [{"max_epochs": None, "max_steps": 8}, {"max_epochs": 3, "max_steps": 8}])
@pytest.mark.parametrize("late", [{}, {"filters": [RandomFilter(0.5, seed=3)], "deferred_from_epoch": 1}])
def test_a_number_of_steps_goes_on_at_each_epoch(tiny_model, facts_file, validates, length, late):
    """3 steps an epoch, or 2 in the first one."""

    def run(folder, ckpt_path=None):
        trainer = {**length, "enable_checkpointing": True, "default_root_dir": folder, "limit_val_batches": validates}
        callbacks = [AdapterCheckpoint(save_top_k=-1)]
        return fit(tiny_model, facts_file, data=late, trainer=trainer, callbacks=callbacks, ckpt_path=ckpt_path)

    whole, first = run("whole"), 2 if late else 3
    for epoch in (0, 1):
        resumed = run("resumed", f"whole/checkpoints/epoch00{epoch}.ckpt")
        assert resumed.facts == whole.facts[first + 3 * epoch :]
        assert resumed.trainer.current_epoch == whole.trainer.current_epoch
        assert is_same_adapter(whole.module, resumed.module)


class CutOff(Callback):
    """Ends a training before a micro-batch."""

    def __init__(self, micro_batch):
        self.micro_batch = micro_batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.micro_batch:
            raise RuntimeError("cut off")


@pytest.mark.parametrize("cut", [1, 2])
def test_several_validations_an_epoch_are_each_counted_once(tiny_model, facts_file, cut):
    """3 steps an epoch, a validation after each; none is lost where training was cut off, and none is made again."""

    def run(folder, *callbacks, ckpt_path=None):
        trainer = {
            "enable_checkpointing": True,
            "default_root_dir": folder,
            "limit_val_batches": None,
            "val_check_interval": 1,
        }
        every_step = AdapterCheckpoint(every_n_steps=1)
        model = optimizer_of(torch.optim.AdamW, lr=0.05)
        return fit(
            tiny_model,
            facts_file,
            model=model,
            trainer=trainer,
            callbacks=[every_step, *callbacks],
            ckpt_path=ckpt_path,
        )

    whole = run("whole").module
    history = whole.dynamics.compute()
    assert history["num_measured"].tolist() == [6] * 12
    assert set(history["first_learned"].tolist()) <= {-1, 0, 1}, "epochs, not validations"
    with pytest.raises(RuntimeError, match="cut off"):
        run("cut", CutOff(micro_batch=cut))
    resumed = run("cut", ckpt_path="cut/checkpoints/last.ckpt").module
    assert is_same_adapter(whole, resumed)
    again = resumed.dynamics.compute()
    for name, values in history.items():
        assert torch.equal(values.nan_to_num(), again[name].nan_to_num()), name


def test_objects_that_were_used_before_train_as_new_ones(tiny_model, facts_file):
    """As in a notebook: measured first, cut off within a step, resumed; then the data module for another training."""

    def new_module():
        return build(tiny_model, facts_file, model={"schedule": "cosine", "warmup_ratio": 0.1}).module

    def trainer(folder, *callbacks):
        return build_trainer(
            [AdapterCheckpoint(every_n_steps=1), *callbacks],
            max_epochs=1,
            accumulate_grad_batches=2,
            enable_checkpointing=True,
            limit_val_batches=None,
            default_root_dir=folder,
        )

    data = build(tiny_model, facts_file, data={"micro_batch_size": 2, **WEIGHTED}).data

    whole = new_module()
    trainer("whole").fit(whole, datamodule=data)

    module = new_module()
    trainer("cut").validate(module, datamodule=data, verbose=False)
    with pytest.raises(RuntimeError, match="cut off"):
        trainer("cut", CutOff(micro_batch=3)).fit(module, datamodule=data)
    trainer("cut").fit(module, datamodule=data, ckpt_path="cut/checkpoints/last.ckpt")
    assert is_same_adapter(module, whole)
    assert module.dynamics.compute()["num_measured"].tolist() == [1] * 12
    assert module.loss_weights.used() == whole.loss_weights.used()

    again = new_module()
    trainer("again").fit(again, datamodule=data)
    assert again.global_step == 3
    assert is_same_adapter(again, whole)


def test_callbacks_that_were_used_before_act_as_new_ones(tiny_model, facts_file, tmp_path):
    """A second training begins with nothing of the first, whose better validation and other steps were its own."""

    def new_callbacks():
        return [
            InterferenceWeighting(every_n_steps=2, num_facts=6),
            ConflictAwareBatching(num_facts=12, threshold=0.0),
            GradientSurgery(groups="conflict", num_facts=8),
            InterferenceMonitor(num_facts=4, every_n_epochs=1, alone_facts=2),
            AdapterExport(),
            FactReport(show_summary=False),
        ]

    def states(callbacks):
        found = {type(callback).__name__: callback.state_dict() for callback in callbacks}
        found["FactReport"].pop("seconds")
        return found

    def train(callbacks, folder, learning_rate):
        model = optimizer_of(torch.optim.AdamW, lr=learning_rate)
        settings = {"default_root_dir": tmp_path / folder, "limit_val_batches": 1.0}
        return fit(tiny_model, facts_file, model=model, trainer=settings, callbacks=callbacks).module

    new, used = new_callbacks(), new_callbacks()
    expected = train(new, "new", 1e-3)
    train(used, "first", 1e-2)
    used[-1].load_state_dict({**used[-1].state_dict(), "seconds": {"training": 1e6}})
    assert is_same_adapter(train(used, "second", 1e-3), expected)
    assert (tmp_path / "second/adapter_best").is_dir()
    for name, state in states(new).items():
        torch.testing.assert_close(states(used)[name], state, rtol=0, atol=0, equal_nan=True, msg=name)
    assert used[-1].state_dict()["seconds"]["training"] < 1e6


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"data": {"weighting": Online(Focal(2.0)), "token_weighting": TokenDistance(Proximity(3.0))}},
            r"`data.selection.token_weighting`: not set in the checkpoint, TokenDistance\(distance=Expected.*gamma=3.0",
        ),
        ({"data": {"mix_strata": True}}, "`data.batches.mix_strata`: False in the checkpoint, True here"),
        ({"data": {"weighting": Online(Focal(3.0))}}, r"Focal\(gamma=2.0\).* in the checkpoint, .*Focal\(gamma=3.0\)"),
        (
            {"model": {"retain": [RetainSplit(batch_size=2)]}},
            r"`model.retain`: RetainSplit\(batch_size=16, .*\) in the checkpoint, RetainSplit\(batch_size=2, .*\) here",
        ),
        ({"model": {"schedule": "linear"}}, "`model.schedule`: constant in the checkpoint, linear here"),
        (
            {"model": {"optimizer": partial(torch.optim.AdamW, lr=2e-2)}},
            r"`model.optimizer.lr`: 0\.01 in the checkpoint, 0\.02 here",
        ),
        (
            {"model": {"optimizer": partial(torch.optim.SGD, lr=1e-2)}},
            "`model.optimizer`: AdamW in the checkpoint, SGD here",
        ),
        (
            {"data": {"distance": HiddenStateDistance()}},
            "`data.selection.distance`: .*ExpectedEmbedding.* in the checkpoint, .*HiddenState",
        ),
        (
            {"data": {"strata": Strata(num_prompts=1), "mix_strata": True}},
            "`data.selection.strata`: not set in the checkpoint",
        ),
        ({"trainer": {"gradient_clip_val": 1.0}}, "`trainer.gradient_clip_val`: None in the checkpoint, 1.0 here"),
        ({"trainer": {"precision": "bf16-mixed"}}, "`trainer.precision`: 32-true in the checkpoint, bf16-mixed here"),
        (
            {"callbacks": []},
            r"`trainer\.callbacks\.InterferenceWeighting`: objective=worst, .* in the checkpoint, not set here",
        ),
        ({"callbacks": [InterferenceWeighting(beta=2.0)]}, r"beta=1\.0, .* in the checkpoint, .*beta=2\.0, .* here"),
        (
            {"callbacks": [InterferenceWeighting(), GradientSurgery()]},
            r"`trainer\.callbacks\.GradientSurgery`: not set in the checkpoint, groups=relation, .* here",
        ),
        (
            {"callbacks": [InterferenceWeighting(), ConflictAwareBatching("together")]},
            r"`trainer\.callbacks\.ConflictAwareBatching`: not set in the checkpoint, mode=together, .* here",
        ),
    ],
)
def test_another_training_is_refused(tiny_model, facts_file, changed, said):
    def run(max_epochs, changed, ckpt_path=None):
        fit(
            tiny_model,
            with_retained(facts_file),
            data={"weighting": Online(Focal(2.0))} | changed.get("data", {}),
            model={"retain": [RetainSplit(0.5)]} | changed.get("model", {}),
            trainer={"max_epochs": max_epochs, "enable_checkpointing": True, "default_root_dir": "run"}
            | changed.get("trainer", {}),
            callbacks=[*changed.get("callbacks", [InterferenceWeighting()]), AdapterCheckpoint()],
            ckpt_path=ckpt_path,
        )

    run(1, {})
    with pytest.raises(InputError, match=said):
        run(2, changed, "run/checkpoints/last.ckpt")


def test_how_a_step_is_computed_may_change(tiny_model, facts_file, tmp_path):
    module = fit(tiny_model, facts_file, trainer={"max_epochs": 1}).module
    module.trainer.save_checkpoint(tmp_path / "half.ckpt")
    other = optimizer_of(torch.optim.AdamW, lr=1e-2, foreach=False, fused=True)
    resumed = fit(tiny_model, facts_file, model=other, ckpt_path=str(tmp_path / "half.ckpt")).module
    assert resumed.global_step == 6


class OwnFacts(KnowledgeDataModule):
    """As a user derives one."""


def test_own_data_module_and_an_optimizer_of_matrices_alone_go_on(tiny_model, facts_file, tmp_path):
    muon = optimizer_of(torch.optim.Muon, lr=1e-2)
    own = {"model": muon, "data_class": OwnFacts}
    fit(tiny_model, facts_file, trainer={"max_epochs": 1}, **own).trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = fit(tiny_model, facts_file, ckpt_path=tmp_path / "half.ckpt", **own).module
    assert resumed.global_step == 6
    with pytest.raises(InputError, match="no position in the data for a data module of class KnowledgeDataModule"):
        fit(tiny_model, facts_file, model=muon, ckpt_path=tmp_path / "half.ckpt")


def test_an_exported_adapter_is_not_trained_on(tiny_model, facts_file):
    with pytest.raises(InputError, match=r"`model\.adapter` 'runs/one/adapter' is for `test` and `predict`"):
        fit(tiny_model, facts_file, model={"adapter": "runs/one/adapter"})


def test_a_checkpoint_of_another_version_is_refused_for_training(tiny_model, facts_file, tmp_path):
    trainer = fit(tiny_model, facts_file, trainer={"max_epochs": 1}).module.trainer
    trainer.save_checkpoint(tmp_path / "old.ckpt")
    checkpoint = torch.load(tmp_path / "old.ckpt", weights_only=True)
    del checkpoint["lit_semantic_peft"]["format"], checkpoint["lit_semantic_peft"]["loss_weights"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(InputError, match="written by another version"):
        fit(tiny_model, facts_file, ckpt_path=tmp_path / "old.ckpt")


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_an_adapter_of_another_strength_is_not_evaluated_whatever_version_wrote_it(
    tiny_model, facts_file, tmp_path, prefix
):
    """An earlier format named the settings of the adapter without `model.`."""
    parts = fit(tiny_model, facts_file, trainer={"max_epochs": 1})
    parts.trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    settings = checkpoint["lit_semantic_peft"]["settings"]
    strength = settings.pop("model.peft_config.lora_alpha")
    settings |= {f"{prefix}peft_config.lora_alpha": strength + "1"}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=rf"`model\.peft_config\.lora_alpha`: {strength}1 in .*, {strength} here"):
        parts.trainer.validate(parts.module, datamodule=parts.data, ckpt_path=tmp_path / "last.ckpt", verbose=False)


def test_a_changed_length_is_said(tiny_model, facts_file, tmp_path, caplog):
    """A schedule that ends elsewhere is another training from there on."""

    def run(max_epochs, ckpt_path=None):
        trainer = {"max_epochs": max_epochs, "enable_checkpointing": True, "default_root_dir": tmp_path}
        callbacks = [AdapterCheckpoint()]
        fit(
            tiny_model, facts_file, model={"schedule": "cosine"}, trainer=trainer, callbacks=callbacks,
            ckpt_path=ckpt_path,
        )  # fmt: skip

    run(1)
    run(2, tmp_path / "checkpoints" / "last.ckpt")
    assert "was to have 3 optimizer steps and has 6" in caplog.text
    caplog.clear()
    run(3, None)
    assert "was to have" not in caplog.text


def test_a_module_is_loaded_from_a_checkpoint_without_a_trainer(tiny_model, facts_file):
    checkpoints = {"enable_checkpointing": True, "default_root_dir": "whole", "max_epochs": 1}
    run = fit(tiny_model, facts_file, trainer=checkpoints, callbacks=[AdapterCheckpoint()])
    load = partial(SemanticPeftModule.load_from_checkpoint, "whole/checkpoints/last.ckpt", base_model=str(tiny_model))
    assert is_same_adapter(run.module, load(peft_config=run.module.peft_config))
    with pytest.raises(InputError, match=r"peft_config"):
        load(peft_config=AdaLoraConfig(total_step=10, target_modules=["q_proj"]))
