"""What is said before the first step."""

import logging

import pytest
import torch
from lit_semantic_peft.callbacks import Preflight
from lit_semantic_peft.callbacks.preflight import names_alike
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.facts.forms import Question
from lit_semantic_peft.training import OwnSamples

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
    assert lines["held still"].startswith("nothing")
    assert lines["most common target"] == "'Danube', of 3 facts (25%): always saying it would recall as many"
    assert lines["training"].startswith("1 optimizer steps of ")


def test_a_training_with_forms_and_retained_text(said):
    lines = said(data={"sources": [Question()]}, model={"retain": [OwnSamples(num_samples=4, length=4)]})
    assert lines["answers"].startswith("end with the end token")
    assert "question of 12 facts" in lines["forms"]
    assert lines["held still"] == "OwnSamples (weight 1)"


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
