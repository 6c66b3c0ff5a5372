"""What is said before the first step."""

import logging

import pytest
import torch
from lit_semantic_peft.callbacks import Preflight, preflight
from lit_semantic_peft.callbacks.preflight import names_alike
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.facts.forms import Question
from lit_semantic_peft.training import OwnSamples
from transformers import AutoModelForCausalLM

from fixtures.training import build_data, fit


@pytest.fixture
def said(tiny_model, facts_file, caplog):
    """The lines of a run of one step, by their names."""

    def run(**parts):
        caplog.set_level(logging.INFO, logger="lit_semantic_peft")
        fit(tiny_model, facts_file, trainer={"max_steps": 1}, callbacks=[Preflight()], **parts)
        lines = [record.getMessage() for record in caplog.records if record.name.endswith("preflight")]
        return dict(line.strip().split(": ", 1) for line in lines[1:])

    return run


def test_a_plain_training_says_what_it_leaves_out(said):
    lines = said(data={"append_eos": False})
    assert lines["facts"] == "12 are trained; the base model answers 0 of them already"
    assert lines["answers"].startswith("do not end")
    assert lines["forms"] == "only the own prompts are taught"
    assert lines["held still"].startswith("nothing; no source in `model.retain` for unrelated text and other facts")
    assert lines["against what the model is sure of"] == "none"
    assert len(lines) == 10
    assert lines["most common target"] == "'Danube', of 3 of 12 facts (25%): always saying it would recall as many"
    assert lines["training"].startswith("1 optimizer step of ")


def test_a_training_with_forms_and_retained_text(said):
    lines = said(data={"sources": [Question()]}, model={"retain": [OwnSamples(num_samples=4, length=4)]})
    assert lines["answers"].startswith("end with the end token")
    assert lines["forms"].startswith("the facts' own prompts are taught, also: question of 12")
    assert lines["held still"].startswith("OwnSamples (weight 1); no source in `model.retain` for other facts")


def test_targets_that_are_all_different_have_no_most_common_one():
    facts = [Fact(prompt=f"The code of door {number} is", target=str(number)) for number in range(3)]
    assert preflight._majority(facts) == "none, each fact has a target of its own"
    assert preflight._majority(facts[:1]) == "'0', of 1 of 1 facts (100%)"


def test_facts_against_what_the_base_model_is_sure_of(said, tiny_model, facts_file, monkeypatch):
    """Against a pass over each fact alone; a random model is sure of nothing."""
    monkeypatch.setattr(preflight, "_SURE", 0.01)
    data = build_data(tiny_model, facts_file)
    data.setup()
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    found = []
    for fact, encoded in zip(data.prepared.facts, data.prepared.encoded, strict=True):
        probability, likeliest = model(torch.tensor([encoded.prompt_ids])).logits[0, -1].softmax(dim=0).max(dim=0)
        if likeliest != encoded.target_ids[0] and probability >= 0.01:
            found.append((float(probability), fact))
    share, fact = max(found, key=lambda one: one[0])
    line = said()["against what the model is sure of"]
    assert line.startswith(f"{len(found)} ({fact.prompt!r}: {fact.target!r} is taught, ")
    assert f"has probability {share:.2f}" in line


@pytest.mark.parametrize("sources", [[], [Question(1.0)]], ids=["own prompts", "forms"])
def test_memory_is_that_of_weights_moments_activations_and_logits(tiny_model, facts_file, sources):
    """Counted by hand, for the forms that are taught first."""
    found = []

    class Keep(Preflight):
        def on_train_start(self, trainer, pl_module):
            found.append(preflight.bytes_of_training(trainer, pl_module))

    run = fit(tiny_model, facts_file, data={"sources": sources}, trainer={"max_steps": 1}, callbacks=[Keep()])
    parameters = list(run.module.model.parameters())
    trained = sum(one.numel() for one in parameters if one.requires_grad)
    forms = run.data.prepared.forms
    encoded = [forms.texts[forms.text_of(row, 0)] for row in range(4)]
    assert (encoded == list(run.data.prepared.encoded[:4])) == (not sources)
    tokens = 4 * max(len(one.prompt_ids) + len(one.target_ids) + 1 for one in encoded)
    config = run.module.model.config
    expected = 4 * sum(one.numel() for one in parameters) + 12 * trained
    expected += 4 * 55 * tokens * config.hidden_size * config.num_hidden_layers
    expected += 12 * sum(len(one.target_ids) + 1 for one in encoded) * config.vocab_size
    assert found == [expected]


def test_it_leaves_no_trace(tiny_model, facts_file):
    adapters = [
        fit(tiny_model, facts_file, trainer={"max_steps": 2}, callbacks=callbacks).adapter
        for callbacks in ([], [Preflight()])
    ]
    assert adapters[0].keys() == adapters[1].keys()
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])


def test_a_name_that_shares_half_of_its_tokens_with_a_known_one(tiny_model):
    data = build_data(tiny_model)
    data.setup()
    taught = [Fact("a", "The river of New Aro City is", "Rhine", subject="New Aro City")]
    known = [Fact(name, f"The river of {name} is", "Rhine", subject=name) for name in ("New Aro Town", "Xyz")]
    assert names_alike(taught, known, data.encoder) == [("New Aro City", "New Aro Town")]
    assert names_alike(taught, known[1:], data.encoder) == []
