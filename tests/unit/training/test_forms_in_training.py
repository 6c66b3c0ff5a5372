"""A fact taught in several forms: one trajectory however it is cut up, and the steps of plain training."""

from collections import Counter

import pytest
import torch
from lit_semantic_peft.callbacks import AdapterCheckpoint, InterferenceMonitor
from lit_semantic_peft.data import MicroBatch
from lit_semantic_peft.data.loaders import FactBatches
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.forms import Cloze, Given, Question, Reversed
from lit_semantic_peft.models import adapter_state_dict
from peft import LoraConfig

from fixtures.training import assert_same_trajectory, build, build_data, fit, fit_ramped, is_same_adapter

pytestmark = pytest.mark.usefixtures("shared_cache")

FORMS = {"sources": [Question(0.4), Cloze(0.2), Reversed(0.2)]}


def texts_of(run):
    """The texts of each epoch, by fact."""
    forms = run.data.prepared.forms
    return [[forms.text_of(row, epoch) for row in range(12)] for epoch in range(run.trainer.max_epochs)]


def test_every_fact_is_trained_once_an_epoch_in_one_of_its_forms(tiny_model, facts_file):
    plain = fit(tiny_model, facts_file, trainer={"max_epochs": 3})
    seen = []
    original = FactBatches.__getitem__

    def noted(self, micro_batch):
        batch = original(self, micro_batch)
        seen.append((micro_batch.epoch, batch))
        return batch

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FactBatches, "__getitem__", noted)
        run = fit(tiny_model, facts_file, data=FORMS, trainer={"max_epochs": 3})
    assert len(run.losses) == len(plain.losses) == 9
    for epoch, texts in enumerate(texts_of(run)):
        batches = [batch for number, batch in seen if number == epoch]
        pairs = {
            (fact, text)
            for batch in batches
            for fact, text in zip(batch.fact_index.tolist(), batch.text_index.tolist(), strict=True)
        }
        assert pairs == set(enumerate(texts))
        for batch in batches:
            for row, text in enumerate(batch.text_index.tolist()):
                encoded = run.data.prepared.forms.texts[text]
                whole = [*encoded.prompt_ids, *encoded.target_ids, *encoded.end_ids]
                assert batch.input_ids[row, : len(whole)].tolist() == whole
                assert batch.attention_mask[row].sum() == len(whole)
    assert len({tuple(texts) for texts in texts_of(run)}) == 3


def test_each_form_has_its_share_of_the_epochs(tiny_model, facts_file):
    data = build_data(tiny_model, facts_file, **FORMS)
    data.setup()
    forms = data.prepared.forms
    for row in range(12):
        for num_epochs, slack in ((10, 0.12), (1000, 0.005)):
            found = Counter(forms.text_of(row, epoch) for epoch in range(num_epochs))
            ends = [end for _, end in forms.taught[row]]
            shares = [end - start for start, end in zip([0.0, *ends], ends, strict=False)]
            assert [found[text] / num_epochs for text, _ in forms.taught[row]] == pytest.approx(shares, abs=slack)
            assert found[row] / num_epochs == pytest.approx(1 - sum(shares), abs=slack)
    other = build_data(tiny_model, facts_file, seed=1, **FORMS)
    other.setup()
    assert other.prepared.forms.start != forms.start
    assert other.prepared.forms.texts == forms.texts


def test_a_number_of_forms_for_each_fact(tiny_model, facts_file):
    """Which ones is chosen by seed; together they have the shares of all."""

    def taught(**settings):
        data = build_data(tiny_model, facts_file, sources=[Question(0.3), Cloze(0.5)], **settings)
        data.setup()
        return [one.taught for one in data.prepared.forms.of_facts]

    every, few = taught(), taught(num_per_fact=3)
    assert {len(one) for one in every} == {4}
    for all_forms, chosen in zip(every, few, strict=True):
        assert len(chosen) == 3
        assert {one.form for one in chosen} < {one.form for one in all_forms}
        assert sum(one.share for one in chosen) == pytest.approx(0.8)
    assert len({tuple(one.source for one in chosen) for chosen in few}) > 1
    assert few == taught(num_per_fact=3) != taught(num_per_fact=3, seed=1)
    assert {len(one) for one in taught(num_per_fact=9)} == {4}


def test_steps_are_bucketed_by_the_lengths_of_the_epoch(tiny_model, facts_file):
    run = fit(tiny_model, facts_file, data=FORMS)
    loader = run.data.train_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for step in loader.sampler.steps(epoch):
            lengths = [run.data.prepared.forms.length_of(row, epoch) for row in step]
            assert lengths == sorted(lengths)


@pytest.mark.parametrize(("micro_batch_size", "accumulate"), [(4, 2), (1, 8)])
def test_one_trajectory(tiny_model, facts_file, micro_batch_size, accumulate):
    whole = fit_ramped(tiny_model, facts_file, micro_batch_size=8, data=FORMS)
    cut = fit_ramped(tiny_model, facts_file, micro_batch_size=micro_batch_size, accumulate=accumulate, data=FORMS)
    assert_same_trajectory(whole, cut)
    with pytest.raises(AssertionError):
        assert_same_trajectory(whole, fit_ramped(tiny_model, facts_file, micro_batch_size=8))


def test_the_monitor_watches_the_facts_own_prompts_and_changes_nothing(tiny_model, facts_file, tmp_path):
    monitor = InterferenceMonitor(num_facts=6, every_n_epochs=1)
    trainer = {"default_root_dir": tmp_path / "run"}
    run = fit_ramped(tiny_model, facts_file, micro_batch_size=8, data=FORMS, callbacks=[monitor], trainer=trainer)
    assert_same_trajectory(fit_ramped(tiny_model, facts_file, micro_batch_size=8, data=FORMS), run)
    (batch,) = run.data.training_batches(range(12), 12)
    assert batch.text_index.tolist() == list(range(12))


def test_frozen_layers_are_kept_for_each_text(tiny_model, facts_file):
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], layers_to_transform=[1])
    adapters = []
    for reuse in (False, True):
        run = build(
            tiny_model,
            facts_file,
            model={"peft_config": config, "reuse_frozen_layers": reuse},
            data=FORMS,
            trainer={"max_epochs": 6},
        )
        run.trainer.fit(run.module, datamodule=run.data)
        adapters.append(adapter_state_dict(run.module.model))
    for name, tensor in adapters[0].items():
        assert (adapters[1][name] - tensor).norm() <= 1e-5 * tensor.norm(), name


def test_a_resumed_training_goes_on_in_the_same_forms(tiny_model, facts_file):
    settings = {"data": FORMS, "callbacks": [AdapterCheckpoint(save_top_k=-1)]}
    trainer = {"max_epochs": 4, "enable_checkpointing": True}
    whole = fit(tiny_model, facts_file, trainer={**trainer, "default_root_dir": "whole"}, **settings)
    path = "whole/checkpoints/epoch001.ckpt"
    trainer["default_root_dir"] = "resumed"
    resumed = fit(tiny_model, facts_file, trainer=trainer, ckpt_path=path, **settings)
    assert is_same_adapter(whole.module, resumed.module)
    with pytest.raises(InputError, match=r"`data.forms`: \w{12} in the checkpoint, own prompts only here"):
        fit(tiny_model, facts_file, trainer=trainer, ckpt_path=path, callbacks=[AdapterCheckpoint()])


def test_the_identity_of_the_facts_has_their_forms(tiny_model, facts_file):
    keys = []
    for settings in ({}, FORMS, {"sources": [Cloze(0.2)]}, {"sources": [Cloze(0.3)]}):
        data = build_data(tiny_model, facts_file, **settings)
        data.setup()
        keys.append(data.prepared.key)
    assert len(set(keys)) == 4


@pytest.mark.parametrize(
    ("sources", "from_paraphrases", "said"),
    [
        ([Cloze(0.6), Question(0.5)], 0, "`forms.sources` have shares of 1.1 together; expected at most 1"),
        ([Given()], -1, "`forms.from_paraphrases` must be at least 0, got -1"),
        ([Cloze()], 2, "`forms.from_paraphrases` is 2, but no source teaches paraphrases. Add `Given`"),
    ],
)
def test_plans_that_contradict_themselves_are_refused(tiny_model, facts_file, sources, from_paraphrases, said):
    with pytest.raises(InputError, match=said):
        build_data(tiny_model, facts_file, sources=sources, from_paraphrases=from_paraphrases)


def test_a_form_that_cannot_be_tokenized_is_named_before_training(tiny_model, facts_file):
    with pytest.raises(
        InputError, match=r"facts\.jsonl:1: fact 'town-0': cloze form 'The words that .*`max_length` is"
    ):
        build_data(tiny_model, facts_file, sources=[Cloze()], max_length=35).setup()


def test_a_question_in_the_chat_template(tiny_model, facts_file):
    data = build_data(tiny_model, facts_file, sources=[Question(0.5, chat=True)])
    data.setup()
    (text, _), *others = data.prepared.forms.taught[0]
    decoded = data.encoder.tokenizer.decode(data.prepared.forms.texts[text].prompt_ids)
    assert others == []
    assert decoded == "<|user|>The capital of Aro is what?</s><|assistant|>"
    assert torch.equal(FactBatches(data.prepared, 0, True)[MicroBatch((0,))].text_index, torch.tensor([0]))
