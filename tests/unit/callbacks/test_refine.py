"""The second pass over facts that resist: which facts, at which rate, and exact however it is split or resumed."""

from functools import partial
from itertools import chain

import pytest
import torch
from lightning.pytorch import Callback
from lit_semantic_peft.callbacks import AdapterCheckpoint, Refine, refine
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.forms import Question
from lit_semantic_peft.semantics.scoring import score_targets
from lit_semantic_peft.tokens import collate
from lit_semantic_peft.training import OwnSamples

from fixtures.training import assert_same_trajectory, fit, is_same_adapter

pytestmark = pytest.mark.usefixtures("shared_cache")

RESISTING = [1, 4, 6]
TRAINED = list(range(12))


class Rates(Callback):
    """The learning rate of each optimizer step."""

    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.batch_idx % trainer.accumulate_grad_batches == 0:
            self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.fixture
def given(monkeypatch):
    """Three facts resist, whatever the model has learned."""
    monkeypatch.setattr(refine, "_resisting", lambda *_: (tuple(RESISTING), frozenset()))


def refined(tiny_model, facts_file, max_steps, num_steps, *, callbacks=(), trainer=None, **settings):
    """12 facts in steps of 4: an epoch has three steps."""
    return fit(
        tiny_model,
        facts_file,
        callbacks=[Refine(num_steps), *callbacks],
        trainer={"max_epochs": None, "max_steps": max_steps, **(trainer or {})},
        **settings,
    )


def test_half_of_each_last_step_are_facts_that_resist(tiny_model, facts_file, given):
    run = refined(tiny_model, facts_file, 9, 4)
    assert [len(step) for step in run.facts] == [4] * 9
    assert sorted(chain(*run.facts[:3])) == TRAINED
    # The second epoch has two steps, so that the second pass begins after five.
    last = run.facts[5:]
    assert all(len(set(step) & set(RESISTING)) == 2 and len(set(step)) == 4 for step in last)
    assert {row for step in last for row in step if row in RESISTING} == set(RESISTING)
    assert len({row for step in last for row in step} - set(RESISTING)) == 8
    assert run.trainer.current_epoch == 3


def test_before_them_it_is_the_run_without(tiny_model, facts_file, given):
    plain = fit(tiny_model, facts_file, trainer={"max_epochs": None, "max_steps": 5})
    assert refined(tiny_model, facts_file, 9, 4).losses[:5] == plain.losses


def test_a_loader_for_each_epoch_is_no_warning_in_each(tiny_model, facts_file, given, recwarn):
    refined(tiny_model, facts_file, 9, 4, trainer={"log_every_n_steps": 50})
    said = [str(one.message) for one in recwarn]
    assert not [one for one in said if "LeafSpec" in one or "logging interval" in one], said


def test_the_schedule_ends_before_them_and_the_rate_falls_once_more(tiny_model, facts_file, given):
    rates, plain = Rates(), Rates()
    model = {"schedule": "cosine", "warmup_ratio": 0.2}
    refined(tiny_model, facts_file, 9, 4, callbacks=[rates], model=model)
    fit(tiny_model, facts_file, callbacks=[plain], model=model, trainer={"max_epochs": None, "max_steps": 5})
    assert rates.rates[:5] == plain.rates
    assert rates.rates[5:] == pytest.approx([0.5e-2, 0.375e-2, 0.25e-2, 0.125e-2])


def test_each_fact_stands_in_its_forms_in_turn(tiny_model, facts_file, given):
    texts = []

    class Texts(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            texts.append(set(batch.text_index.tolist()))

    data = {"sources": [Question(0.7)], "micro_batch_size": 12}
    refined(tiny_model, facts_file, 13, 12, callbacks=[Texts()], data=data)
    seen = set().union(*texts[1:])
    assert {1, 4, 6} <= seen
    assert len([text for text in seen if text >= 12]) > 3


def test_a_fact_whose_own_prompt_resists_is_taught_in_it(tiny_model, facts_file, monkeypatch):
    monkeypatch.setattr(refine, "_resisting", lambda *_: (tuple(RESISTING), frozenset({4})))
    texts = []

    class Texts(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            texts.extend(zip(batch.fact_index.tolist(), batch.text_index.tolist(), strict=True))

    data = {"sources": [Question(0.7)], "micro_batch_size": 12}
    refined(tiny_model, facts_file, 13, 12, callbacks=[Texts()], data=data)
    last = texts[12:]
    assert {text for fact, text in last if fact == 4} == {4}
    assert all(len({text for fact, text in last if fact == other}) > 1 for other in (1, 6))


def test_a_resumed_training_is_the_same(tiny_model, facts_file, given):
    """After the first epoch, between the passes, and within the second pass."""

    class CutOff(Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 7:
                raise RuntimeError("cut off")

    def run(folder, ckpt_path=None, callbacks=()):
        return refined(
            tiny_model,
            facts_file,
            9,
            4,
            callbacks=[AdapterCheckpoint(every_n_steps=7, save_top_k=-1), *callbacks],
            model={"schedule": "cosine", "retain": [OwnSamples(num_samples=4, length=4)]},
            data={"sources": [Question(0.5)]},
            trainer={"enable_checkpointing": True, "default_root_dir": folder},
            ckpt_path=ckpt_path,
        )

    whole = run("whole")
    with pytest.raises(RuntimeError, match="cut off"):
        run("cut", callbacks=[CutOff()])
    for num_done, checkpoint in (
        (3, "whole/checkpoints/epoch000"),
        (5, "whole/checkpoints/epoch001"),
        (7, "cut/checkpoints/last"),
    ):
        resumed = run("resumed", f"{checkpoint}.ckpt")
        assert resumed.facts == whole.facts[num_done:]
        assert resumed.losses == whole.losses[num_done:]
        assert is_same_adapter(whole.module, resumed.module)


@pytest.mark.parametrize(("micro_batch_size", "accumulate"), [(1, 4), (8, 2)])
def test_it_does_not_depend_on_how_a_step_is_split(tiny_model, facts_file, given, micro_batch_size, accumulate):
    """16 facts in a step are more than there are, so that some micro-batches have none."""
    size = micro_batch_size * accumulate
    runs = [
        refined(
            tiny_model,
            facts_file,
            6,
            3,
            data={"micro_batch_size": micro, "bucket_steps": 1},
            trainer={"accumulate_grad_batches": number},
            model={"optimizer": partial(torch.optim.SGD, lr=0.3)},  # AdamW enlarges the rounding of each part's tree
        )
        for micro, number in ((size, 1), (micro_batch_size, accumulate))
    ]
    assert_same_trajectory(*runs, tolerance=1e-5)


def test_a_fact_resists_until_its_prompt_and_stopping_forms_are_recalled(tiny_model, facts_file):
    """Against each text alone."""
    found = []

    class Keep(Refine):
        def on_train_epoch_end(self, trainer, pl_module):
            super().on_train_epoch_end(trainer, pl_module)
            assert pl_module.model.training
            if self.resisting is not None and not found:
                forms, model = pl_module.data.prepared.forms, pl_module.model.eval()
                is_recalled = [
                    bool(score_targets(model, collate([text], [0], 0, with_end=False)).is_recalled)
                    for text in forms.texts
                ]
                model.train()
                found.extend(row for row in TRAINED if not all(is_recalled[t] for t in [row, *forms.stopping[row]]))
                assert self.own_prompts == {row for row in TRAINED if not is_recalled[row]}
                assert 0 < sum(is_recalled) < len(is_recalled)
                assert list(self.resisting) == found

    fit(
        tiny_model,
        facts_file,
        callbacks=[Keep(2)],
        data={"sources": [Question(0.4)]},
        trainer={"max_epochs": None, "max_steps": 100},
    )
    assert 0 < len(found) < 12


def test_training_ends_where_no_fact_resists(tiny_model, facts_file, monkeypatch):
    monkeypatch.setattr(refine, "_resisting", lambda *_: ((), frozenset()))
    trainer = {"enable_checkpointing": True, "default_root_dir": "run"}
    run = refined(tiny_model, facts_file, 9, 4, trainer=trainer, callbacks=[AdapterCheckpoint()])
    assert len(run.losses) == 5
    again = refined(tiny_model, facts_file, 9, 4, trainer=trainer, ckpt_path="run/checkpoints/last.ckpt")
    assert again.losses == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_steps": 0}, "`num_steps` of Refine must be at least 1, got 0"),
        ({"rate": 0.0}, r"`rate` of Refine must be in \(0, 1\], got 0"),
        ({"rate": 1.5}, r"`rate` of Refine must be in \(0, 1\], got 1\.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        Refine(**settings)


def test_it_needs_steps_before_it(tiny_model, facts_file):
    with pytest.raises(InputError, match=r"`trainer\.max_steps` is 4, of which the last 4 are those of Refine"):
        refined(tiny_model, facts_file, 4, 4)


def test_a_data_module_is_trained_without_it_afterwards(tiny_model, facts_file, given):
    run = refined(tiny_model, facts_file, 9, 4)
    assert run.data.second_pass.resisting == tuple(RESISTING)
    assert torch.isfinite(torch.tensor(run.losses)).all()
    run.data.setup("fit")
    assert run.data.second_pass is None
