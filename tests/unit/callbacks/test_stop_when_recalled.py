import math

import pytest
import torch
from lightning.pytorch import Callback
from lit_semantic_peft.callbacks import AdapterCheckpoint, StopWhenRecalled
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.forms import Question
from lit_semantic_peft.semantics.scoring import score_targets
from lit_semantic_peft.tokens import collate

from fixtures.training import fit, is_same_adapter

pytestmark = pytest.mark.usefixtures("shared_cache")

STOPPING, OWN = "val/stopping_efficacy_teacher_forced", "val/efficacy_teacher_forced"


class Recall(Callback):
    """Sets the recall of the stopping forms after each validation, where there are none."""

    def __init__(self, *values):
        self.values = values

    def on_validation_end(self, trainer, pl_module):
        trainer.callback_metrics[STOPPING] = torch.tensor(self.values[trainer.current_epoch])


def num_epochs(tiny_model, facts_file, recalls, *, trainer=None, **settings):
    run = fit(
        tiny_model,
        facts_file,
        callbacks=[Recall(*recalls), StopWhenRecalled(**{"cooldown_steps": 0, **settings})],
        trainer={"max_epochs": len(recalls), "limit_val_batches": 1, **(trainer or {})},
    )
    return len(run.losses) // 3


@pytest.mark.parametrize(
    ("recalls", "settings", "expected"),
    [
        ([0.5, 0.96, 1.0], {}, 2),
        ([0.95, 1.0], {}, 1),
        ([0.5, 0.9, 0.94], {}, 3),
        ([0.96, 0.5, 0.97, 0.98, 0.99], {"patience": 2}, 4),
        ([0.3, 0.4, 0.4, 0.4, 0.5], {"max_stale": 2}, 4),
        ([0.3, 0.2, 0.4, 0.3, 0.5], {"max_stale": 2}, 5),
    ],
)
def test_training_ends_when_recall_is_enough_or_stays(tiny_model, facts_file, recalls, settings, expected):
    assert num_epochs(tiny_model, facts_file, recalls, **settings) == expected


def test_without_stopping_forms_the_own_prompts_count(tiny_model, facts_file, caplog):
    with caplog.at_level("INFO"):
        run = fit(
            tiny_model,
            facts_file,
            callbacks=[StopWhenRecalled(max_stale=1, cooldown_steps=0)],
            trainer={"max_epochs": 4, "limit_val_batches": 1},
        )
    assert run.trainer.current_epoch < 4
    assert f"{OWN} has not risen above" in caplog.text


def test_it_goes_on_counting_where_a_checkpoint_was_written(tiny_model, facts_file):
    recalls = [0.96, 0.97, 0.98, 0.99]
    stop = {"patience": 3, "cooldown_steps": 0}

    def run(folder, num, ckpt_path=None, **settings):
        callbacks = [Recall(*recalls), StopWhenRecalled(**settings), AdapterCheckpoint(save_top_k=-1)]
        trainer = {"max_epochs": num, "limit_val_batches": 1, "enable_checkpointing": True, "default_root_dir": folder}
        return fit(tiny_model, facts_file, callbacks=callbacks, trainer=trainer, ckpt_path=ckpt_path)

    run("first", 2, **stop)
    resumed = run("second", 4, "first/checkpoints/epoch001.ckpt", **stop)
    assert resumed.trainer.current_epoch == 3
    with pytest.raises(InputError, match="StopWhenRecalled"):
        run("other", 4, "first/checkpoints/epoch001.ckpt", patience=1)


class Rates(Callback):
    """The learning rate of each optimizer step."""

    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, *_):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def cooled(tiny_model, facts_file, folder="run", ckpt_path=None):
    """Recall is enough after the second of six epochs of three steps; four more are left."""
    rates = Rates()
    stop = StopWhenRecalled(cooldown_steps=4)
    settings = {"max_epochs": 6, "limit_val_batches": 1, "enable_checkpointing": True, "default_root_dir": folder}
    run = fit(
        tiny_model,
        facts_file,
        callbacks=[Recall(0.5, 1.0, 0.0, 0.0), stop, rates, AdapterCheckpoint(save_top_k=-1)],
        model={"schedule": "cosine", "warmup_ratio": 0.1},
        trainer=settings,
        ckpt_path=ckpt_path,
    )
    return run, rates.rates


def test_the_rate_falls_to_0_before_training_ends(tiny_model, facts_file):
    run, rates = cooled(tiny_model, facts_file)
    plain = Rates()
    fit(
        tiny_model,
        facts_file,
        callbacks=[plain],
        model={"schedule": "cosine", "warmup_ratio": 0.1},
        trainer={"max_epochs": 6},
    )
    assert len(run.losses) == 10
    assert rates[:7] == plain.rates[:7]
    assert rates[6:] == pytest.approx([plain.rates[6] * share for share in (1, 0.75, 0.5, 0.25)])


def test_a_training_that_is_resumed_while_the_rate_falls_is_the_same(tiny_model, facts_file):
    whole, _ = cooled(tiny_model, facts_file, "whole")
    checkpoint = "whole/checkpoints/epoch00{}.ckpt"
    for epoch, num_done in ((1, 6), (2, 9), (3, 10)):
        resumed, _ = cooled(tiny_model, facts_file, "resumed", checkpoint.format(epoch))
        assert resumed.losses == whole.losses[num_done:]
        assert is_same_adapter(resumed.module, whole.module)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"threshold": 0}, r"`threshold` of StopWhenRecalled must be in \(0, 1\], got 0"),
        ({"threshold": 1.1}, r"`threshold` of StopWhenRecalled must be in \(0, 1\], got 1\.1"),
        ({"patience": 0}, "`patience` of StopWhenRecalled must be at least 1, got 0"),
        ({"max_stale": 0}, "`max_stale` of StopWhenRecalled must be at least 1, got 0"),
        ({"cooldown_steps": -1}, "`cooldown_steps` of StopWhenRecalled must be at least 0, got -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        StopWhenRecalled(**settings)


def test_a_training_without_validation_is_refused(tiny_model, facts_file):
    with pytest.raises(InputError, match=r"`trainer\.limit_val_batches` is 0"):
        num_epochs(tiny_model, facts_file, [1.0], trainer={"limit_val_batches": 0})


def test_what_is_logged_is_the_recall_of_the_stopping_forms(tiny_model, facts_file):
    """Against each stopping text alone."""
    run = fit(
        tiny_model,
        facts_file,
        data={"sources": [Question(0.3)]},
        trainer={"max_epochs": 3, "limit_val_batches": None},
    )
    forms, shares = run.data.prepared.forms, []
    for row in range(12):
        recalled = [
            score_targets(run.module.model.eval(), collate([forms.texts[text]], [0], 0, with_end=False)).is_recalled
            for text in forms.stopping[row]
        ]
        shares.append(torch.cat(recalled).float().mean().item())
        assert row not in forms.stopping[row]
    assert run.logged[-1][STOPPING] == pytest.approx(sum(shares) / 12)
    assert math.isfinite(run.logged[-1][OWN])
    assert STOPPING not in fit(tiny_model, facts_file, trainer={"limit_val_batches": None}).logged[-1]
