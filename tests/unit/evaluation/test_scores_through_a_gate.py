"""The scores through a gate, against a model that is run through it."""

import numpy as np
import pytest
import torch
from lit_semantic_peft.adapters import SubjectGate, SubjectTable
from lit_semantic_peft.evaluation import Evaluation, EvaluationPlan, Evaluator, fact_questions, through_gate
from lit_semantic_peft.evaluation import retention_questions as texts_and_known
from lit_semantic_peft.facts import Fact, Probe
from lit_semantic_peft.models import attach_adapter
from lit_semantic_peft.models.gated import on_rows
from lit_semantic_peft.semantics import ExpectedEmbeddingDistance, score_pass, target_pass
from lit_semantic_peft.tokens import FactEncoder, collate
from peft import LoraConfig

from fixtures.models import byte_level_bpe, tiny_llama

PLAN = EvaluationPlan(probes=["paraphrase", "reversed", "neighborhood", "portability"])
NEAR = Probe("The official currency of Japan is the", "yen")
FACTS = [
    Fact(
        f"town-{name}",
        f"The capital of {name} is",
        target,
        subject=name,
        paraphrases=(f"It is well known that {name} has the capital",),
        neighborhood=(NEAR,),
        portability=(Probe(f"The water of {name} flows to the", "sea", hops=2),),
    )
    for name, target in {"Aro": "Paris", "Belvan": "Lund in the north", "Cimt": "Rhine"}.items()
]
UNTAUGHT = Fact("untaught", "The capital of France is", "Paris", subject="France", split="probe")
TEXTS = ["Rain falls on the river.", "The town of Aro is old."]


@pytest.fixture(scope="module")
def asked():
    encoder = FactEncoder(byte_level_bpe())
    torch.manual_seed(5)
    model = attach_adapter(tiny_llama(len(encoder.tokenizer)), LoraConfig(r=3, target_modules="all-linear")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    questions = fact_questions([*FACTS, UNTAUGHT], encoder, PLAN)
    questions += texts_and_known(TEXTS, [], encoder, len(questions))
    distance = ExpectedEmbeddingDistance()
    rows = Evaluator(encoder, [distance]).compare(model, questions)
    return encoder, model, Evaluation(rows, np.array([False, False, False, True]), distance.name)


def test_what_the_gate_lets_through_is_what_the_gated_model_gives(asked):
    encoder, model, evaluation = asked
    table = SubjectGate().table(FACTS)
    gated = through_gate(evaluation, table).evaluation.comparisons
    questions = [row.question for row in gated]
    encoded, facts = [one.encoded for one in questions], [one.fact_index for one in questions]
    batch = collate(encoded, facts, encoder.pad_id, with_end=False)
    with torch.no_grad(), on_rows(model, [table.opens(one.prompt or one.target) for one in questions]):
        expected = score_pass(target_pass(model, batch)).nll.tolist()
    assert [row.after.nll for row in gated] == pytest.approx(expected, rel=1e-5)
    assert [row.after.nll for row in evaluation.comparisons] != pytest.approx(expected, rel=1e-2)


def test_a_closed_gate_leaves_every_score_where_it_was(asked):
    _, _, evaluation = asked
    closed = through_gate(evaluation, SubjectTable(())).evaluation
    assert evaluation.retention["retention_nll_delta"] != closed.retention["retention_nll_delta"] == [0.0, 0.0]
    assert closed.text_nll[0] == closed.text_nll[1]
    assert np.nanmean(closed.scores["locality"]) == 1
    assert np.nanmax(closed.scores["locality_kl"]) == 0
    assert not any(closed.pushed_away.values())
    for name, values in closed.scores.items():
        if name.endswith("_after"):
            np.testing.assert_array_equal(values, closed.scores[name.replace("_after", "_before")])


def test_an_open_gate_changes_no_score_and_a_taught_fact_is_behind_none(asked):
    _, _, evaluation = asked
    everything = through_gate(evaluation, SubjectTable(("the", "is", "rain")))
    assert everything.evaluation.comparisons == list(evaluation.comparisons)
    found = through_gate(evaluation, SubjectGate().table(FACTS))
    assert (found.num_opened["fact"], found.num_asked["fact"]) == (3, 4)  # the untaught one stays closed
    assert (found.num_opened["text"], found.num_asked["text"]) == (1, 2)
    assert found.num_opened["neighborhood"] == 0
    assert found.num_opened["reversed"] == 0
    taught = slice(0, 3)
    for name in ("efficacy_after", "efficacy_teacher_forced_after", "generalization_after", "portability_after"):
        np.testing.assert_array_equal(found.evaluation.scores[name][taught], evaluation.scores[name][taught])
    both = through_gate(evaluation, SubjectGate(match="subjects_and_targets").table(FACTS))
    assert both.num_opened["reversed"] == both.num_asked["reversed"] > 0
