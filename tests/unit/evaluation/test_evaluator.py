"""Base model and trained model side by side, against one prompt at a time without any shortcut."""

from contextlib import nullcontext
from dataclasses import replace
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lit_semantic_peft.cache import ContentCache
from lit_semantic_peft.evaluation import (
    Evaluation,
    EvaluationPlan,
    Evaluator,
    doubt_questions,
    fact_questions,
    load_answers,
    retention_questions,
    store_answers,
)
from lit_semantic_peft.evaluation import evaluator as evaluation
from lit_semantic_peft.evaluation.neutral_text import NEUTRAL_TEXTS
from lit_semantic_peft.facts import Fact, Probe
from lit_semantic_peft.models import attach_adapter, forced_answers
from lit_semantic_peft.semantics import HiddenStateDistance
from lit_semantic_peft.tokens import FactEncoder
from peft import LoraConfig

from fixtures.models import byte_level_bpe, tiny_llama

ALL_PROBES = EvaluationPlan(
    probes=["paraphrase", "question", "reversed", "choice", "neighborhood", "portability"], num_choices=3
)
TURNS = 2
FACTS = [
    Fact(
        f"town-{number}",
        f"The capital of {name} is",
        target,
        subject=name,
        relation="capital",
        target_true="Oslo",
        paraphrases=(f"It is well known that {name} has the capital",),
        neighborhood=(Probe("The official currency of Japan is the", "yen"),),
        portability=(Probe(f"The water of {name} flows to the", "sea", hops=2),),
    )
    for number, (name, target) in enumerate(
        {"Aro": "Paris", "Belvan": "Lund in the north", "Cimt": "Rhine", "Dorraset": "Volga"}.items()
    )
]


@pytest.fixture
def encoder():
    return FactEncoder(byte_level_bpe())


def model_of(encoder, scale):
    """A tiny model whose adapter moves it by `scale`; 0 is an untrained adapter."""
    generator = torch.Generator().manual_seed(5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)  # PEFT draws one half of the adapter from the global generator
        model = attach_adapter(tiny_llama(len(encoder.tokenizer)), LoraConfig(r=4, target_modules="all-linear"))
    model.eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += scale * torch.randn(parameter.shape, generator=generator)
    return model


def everything(encoder):
    questions = fact_questions(FACTS, encoder, ALL_PROBES)
    questions += doubt_questions(FACTS, range(len(FACTS)), encoder, TURNS, len(questions))
    return questions + retention_questions(NEUTRAL_TEXTS, [], encoder, questions[-1].number + TURNS + 1)


def evaluator(encoder, **options):
    return Evaluator(encoder, [HiddenStateDistance()], TURNS, [fact.joiner for fact in FACTS], **options)


def by_argmax(model, question, stop_ids):
    """One token after the other, without cache, padding, batch or a target to lean on."""
    ids = list(question.prompt_ids)
    for _ in range(question.max_new_tokens):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in stop_ids:
            break
        ids.append(token)
    return tuple(ids[len(question.prompt_ids) :])


def log_prob_of_target(model, question):
    ids = [*question.prompt_ids, *question.encoded.target_ids]
    with torch.no_grad():
        log_prob = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    start = len(question.prompt_ids) - 1
    return torch.stack([log_prob[start + at, token] for at, token in enumerate(question.encoded.target_ids)])


def test_answers_equal_one_prompt_at_a_time(encoder):
    model = model_of(encoder, 0.3)

    @cache
    def alone(question, is_base):
        with model.disable_adapter() if is_base else nullcontext():
            return by_argmax(model, question, encoder.stop_ids), log_prob_of_target(model, question)

    for has_trees in (False, True):
        comparisons = evaluator(encoder, has_trees=has_trees).compare(model, everything(encoder))
        for row in comparisons:
            # What each side was asked: in a dialogue the base model has seen other answers of its own.
            sides = [(row.after, False)] if row.question.turn else [(row.before, True), (row.after, False)]
            for answer, is_base in sides:
                free, target = alone(replace(row.question, number=0, fact_index=0, needs=()), is_base)
                assert answer.text == (encoder.decode_answer(free) if row.question.max_new_tokens else "")
                assert answer.nll == pytest.approx(-float(target.mean()), abs=1e-5)
        assert any(row.before.text != row.after.text for row in comparisons), "the adapter must matter here"
        assert {row.question.kind for row in comparisons} >= {"rival", "wrong_choice", "doubt_plain", "text"}


def test_prefix_trees_give_the_padded_answers_of_fewer_tokens(encoder):
    model, questions = model_of(encoder, 0.3).double(), everything(encoder)
    tokens = dict.fromkeys((False, True), 0)

    def count(_, given):
        tokens[has_trees] += given[0].numel()

    model.get_input_embeddings().register_forward_pre_hook(count)
    found = {}
    for has_trees in tokens:
        found[has_trees] = evaluator(encoder, has_trees=has_trees).compare(model, questions)
    assert tokens[True] < 0.7 * tokens[False]
    for padded, packed in zip(found[False], found[True], strict=True):
        assert padded.question == packed.question
        for one, other in ((padded.before, packed.before), (padded.after, packed.after)):
            assert (one.text, one.is_recalled, one.winners) == (other.text, other.is_recalled, other.winners)
            assert one.nll == pytest.approx(other.nll, rel=1e-6)  # taken in float32
            assert one.distances == pytest.approx(other.distances, rel=1e-6)
            assert (one.kl is None) == (other.kl is None)
            assert one.kl is None or one.kl == pytest.approx(other.kl, abs=1e-6)


def test_answers_are_the_same_where_a_prompt_must_be_read_again(encoder, monkeypatch):
    model, questions = model_of(encoder, 0.3), fact_questions(FACTS, encoder, ALL_PROBES)
    taken_up = evaluator(encoder).compare(model, questions)
    monkeypatch.setattr(evaluation, "prompt_cache", lambda _: None)
    monkeypatch.setattr(forced_answers, "greedy_continuations", None)
    read_again = evaluator(encoder).compare(model, questions)
    assert [(row.before.text, row.after.text) for row in read_again] == [
        (row.before.text, row.after.text) for row in taken_up
    ]


def test_what_belongs_to_several_facts_is_asked_once(encoder, monkeypatch):
    model, questions = model_of(encoder, 0.3), fact_questions(FACTS, encoder, ALL_PROBES)
    rows = []
    once = evaluation.target_pass
    monkeypatch.setattr(evaluation, "target_pass", lambda *given: rows.append(len(given[1])) or once(*given))
    together = evaluator(encoder).compare(model, questions)
    distinct = {(one.kind, one.prompt, one.accepted) for one in questions}
    assert sum(rows) == 2 * len(distinct) < 2 * len(questions), "the neighbour is the same for all facts"
    for number, row in enumerate(together):
        (alone,) = evaluator(encoder).compare(model, [questions[number]])
        assert row.question == alone.question == questions[number]
        for one, other in ((row.before, alone.before), (row.after, alone.after)):
            assert (one.text, one.is_correct, one.is_recalled) == (other.text, other.is_correct, other.is_recalled)
            assert one.nll == pytest.approx(other.nll, abs=1e-5)
            assert one.kl == pytest.approx(other.kl, abs=1e-5)


@pytest.mark.parametrize("ends", [False, True])
def test_what_the_true_prefix_gave_is_what_would_have_been_said(ends):
    """Targets that begin as the model's own answers do, in tokens, so that the shortcut is taken to every length."""
    tokenizer = byte_level_bpe()
    encoder = FactEncoder(tokenizer)
    model = model_of(encoder, 0.3)
    asked = fact_questions(FACTS, encoder, EvaluationPlan(probes=[]))
    asked = [replace(one, max_new_tokens=9) for one in asked if one.kind == "fact"]
    free = [by_argmax(model, one, ()) for one in asked]
    if ends:  # some answers end within what is said, by either token
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(free[0][4])
        encoder = FactEncoder(tokenizer, stop_ids=[free[1][5]])
    questions = []
    for question, ids in zip(asked, free, strict=True):
        for size in range(1, len(ids) + 1):
            for last in (ids[size - 1], (ids[size - 1] + 7) % 200 + 2):
                encoded = replace(question.encoded, target_ids=(*ids[: size - 1], last))
                questions.append(replace(question, number=len(questions), encoded=encoded))
    answered = Evaluator(encoder, [HiddenStateDistance()]).ask(model, questions, {})
    alone = {one.prompt_ids: by_argmax(model, one, encoder.stop_ids if ends else ()) for one in asked}
    expected = [alone[question.prompt_ids] for question in questions]
    assert [answer.text for _, answer in answered] == [encoder.decode_answer(ids) for ids in expected]
    assert sum(answer.is_recalled for _, answer in answered) == len(answered) / 2
    assert ends == any(len(ids) < 9 for ids in expected)


def test_an_untrained_adapter_changes_nothing_exactly(encoder):
    comparisons = evaluator(encoder).compare(model_of(encoder, 0.0), everything(encoder))
    result = Evaluation(comparisons, np.zeros(len(FACTS), dtype=bool), "HiddenStateDistance")
    assert result.scores["locality"].tolist() == [1.0] * len(FACTS)
    assert result.scores["locality_teacher_forced"].tolist() == [1.0] * len(FACTS)
    assert np.abs(result.scores["locality_kl"]).max() < 1e-6
    assert result.text_nll[0] == result.text_nll[1]
    deltas = result.retention["retention_nll_delta"]
    assert deltas == [0.0] * len(deltas)
    assert len(deltas) > 0
    assert not any(result.pushed_away.values())


def test_a_trained_adapter_is_seen_to_change_something(encoder):
    comparisons = evaluator(encoder).compare(model_of(encoder, 0.3), everything(encoder))
    result = Evaluation(comparisons, np.zeros(len(FACTS), dtype=bool), "HiddenStateDistance")
    assert result.scores["locality"].max() < 1
    assert result.scores["locality_kl"].min() > 0.01
    assert result.text_nll[0] != result.text_nll[1]
    assert len(result.pushed_away) == len(FACTS)


CONCLUSIONS = [
    Fact("citizen", "Ann is a citizen of", "Peru", portability=(Probe("Ann's capital is", "Lima", 2, ("capital",)),)),
    Fact("capital", "The capital of Peru is", "Lima", portability=(Probe("Lima lies in", "Peru"),)),
    Fact("home", "Bo lives in", "Peru", portability=(Probe("Ann's capital is", "Lima", 3, ("citizen", "gone")),)),
]


def test_a_conclusion_is_asked_once_whatever_it_needs(encoder, monkeypatch):
    questions = fact_questions(CONCLUSIONS, encoder, EvaluationPlan(probes=["portability"]))
    asked = []
    once = evaluation.target_pass
    monkeypatch.setattr(evaluation, "target_pass", lambda *given: asked.append(len(given[1])) or once(*given))
    comparisons = evaluator(encoder).compare(model_of(encoder, 0.3), questions)
    assert sum(asked) == 2 * (len(questions) - 1)
    assert [row.question for row in comparisons] == questions


def test_known_answers_of_the_base_model_are_not_asked_again(encoder):
    model = model_of(encoder, 0.3)
    fresh = evaluator(encoder).compare(model, everything(encoder))
    known = {row.question.number: row.before for row in fresh}
    model.disable_adapter = None  # asking the base model would fail
    again = evaluator(encoder, base_answers=known).compare(model, everything(encoder))
    assert [(row.after.text, row.after.nll, row.after.kl) for row in again] == [
        (row.after.text, row.after.nll, row.after.kl) for row in fresh
    ]


@pytest.mark.parametrize("damage", ["without_a_column", "with_a_null"])
def test_answers_in_a_damaged_table_are_asked_again(encoder, tmp_path, caplog, damage):
    questions = everything(encoder)
    rows = evaluator(encoder).compare(model_of(encoder, 0.3), questions)
    cache, manifest = ContentCache(tmp_path), {"distances": [{"name": "HiddenStateDistance"}]}
    answers = {row.question.number: row.before for row in rows}
    store_answers(cache, manifest, answers)
    found = load_answers(cache, manifest, questions)
    assert {number: answer.text for number, answer in found.items()} == {n: one.text for n, one in answers.items()}
    (path,) = tmp_path.glob("*.parquet")
    table = pq.read_table(path)
    name = "number" if damage == "without_a_column" else "winners"
    damaged = table.drop_columns([name])
    if damage == "with_a_null":
        damaged = damaged.append_column(name, pa.nulls(len(table), table.schema.field(name).type))
    cache.store_table(manifest, damaged)
    assert load_answers(cache, manifest, questions) is None
    assert str(path) in caplog.text
