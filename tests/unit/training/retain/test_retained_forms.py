"""Retained texts of facts that are taught in several forms."""

import json

import pytest
from lit_semantic_peft.facts.forms import Given, Reversed
from lit_semantic_peft.tokens import EncodedFact
from lit_semantic_peft.training import ContextTeacher, MaskedTarget
from lit_semantic_peft.training.retain import holding

from fixtures.training import fit


@pytest.fixture
def run(tiny_model, facts_file):
    """Twelve facts, the first two with a form of their own, all with their reverse where it is unique."""
    rows = [json.loads(line) for line in facts_file.read_text(encoding="utf-8").splitlines()]
    for row in rows[:2]:
        row["forms"] = [{"prompt": f"Everyone at {row['subject']} knows", "target": row["target"]}]
    facts_file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return fit(tiny_model, facts_file, data={"sources": [Given(0.4), Reversed(0.2)]}, trainer={"max_steps": 1})


def texts_of(run, source):
    run.module.retain = [source]
    return holding.held_still(run.module, begins=True)[0].retained[0].texts


def test_every_taught_form_is_held(run):
    forms = run.data.prepared.forms
    places = [place for row in range(12) for place in forms.texts_of(row)]
    assert len(places) > 14
    expected = [forms.texts[place] for place in places]
    held = [text.student for text in texts_of(run, MaskedTarget())]
    assert held == [EncodedFact(one.prompt_ids, one.target_ids + one.end_ids) for one in expected]


def test_a_teacher_reads_the_fact_before_each_form(run):
    decode = run.data.encoder.tokenizer.decode
    fact = run.data.prepared.facts[0]
    prompts = {decode(text.student.prompt_ids): text for text in texts_of(run, ContextTeacher())}
    form = prompts["Everyone at Aro knows"]
    assert decode(form.teacher.prompt_ids) == f"{fact.prompt} {fact.target}.\nEveryone at Aro knows"
    assert form.teacher.target_ids == form.student.target_ids
