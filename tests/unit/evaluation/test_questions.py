import dataclasses

import numpy as np
import pytest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation import EvaluationPlan, questions
from lit_semantic_peft.evaluation.neutral_text import NEUTRAL_TEXTS
from lit_semantic_peft.evaluation.questions import (
    ANSWER_MARGIN,
    fact_questions,
    prompt_questions,
    retention_questions,
)
from lit_semantic_peft.facts import Fact, Probe
from lit_semantic_peft.metrics import is_exact_match
from lit_semantic_peft.tokens import FactEncoder

from fixtures.models import byte_level_bpe

FRANCE = Fact(
    "france",
    "The capital of France is",
    "Paris",
    aliases=("the city of the river", "Par"),
    paraphrases=("France has the capital", "It is the capital of France:"),
    neighborhood=(Probe("The capital of Mongolia is", "Ulaanbaatar"),),
    portability=(Probe("The river of the capital of France is the", "Rhine", hops=2),),
    location="facts.jsonl:3",
)
JAPAN = Fact("japan", "日本の首都は", "東京", joiner="", paraphrases=("首都は",))
ONLY_FACTS = EvaluationPlan(probes=[])


@pytest.fixture
def encoder():
    return FactEncoder(byte_level_bpe())


def test_each_fact_is_followed_by_its_probes(encoder):
    questions = fact_questions([FRANCE, JAPAN], encoder, EvaluationPlan())
    assert [(one.fact_index, one.kind, one.prompt, one.accepted) for one in questions] == [
        (0, "fact", "The capital of France is", ("Paris", "the city of the river", "Par")),
        (0, "paraphrase", "France has the capital", ("Paris", "the city of the river", "Par")),
        (0, "paraphrase", "It is the capital of France:", ("Paris", "the city of the river", "Par")),
        (0, "neighborhood", "The capital of Mongolia is", ("Ulaanbaatar",)),
        (0, "portability", "The river of the capital of France is the", ("Rhine",)),
        (1, "fact", "日本の首都は", ("東京",)),
        (1, "paraphrase", "首都は", ("東京",)),
    ]
    assert [one.number for one in questions] == list(range(7))
    assert [one.target for one in questions] == ["Paris"] * 3 + ["Ulaanbaatar", "Rhine", "東京", "東京"]


def test_a_conclusion_names_the_other_facts_that_it_needs(encoder):
    river = Probe("The river of the capital of France is the", "Rhine", 3, ("japan", "not here"))
    facts = [dataclasses.replace(FRANCE, portability=(river,)), JAPAN]
    assert {one.kind: one.needs for one in fact_questions(facts, encoder, EvaluationPlan())} == {
        "fact": (), "paraphrase": (), "neighborhood": (), "portability": (1, -1),
    }  # fmt: skip


def test_a_question_is_spelt_as_in_training(encoder):
    for question, joiner in zip(
        fact_questions([FRANCE, JAPAN], encoder, EvaluationPlan()), [" "] * 5 + [""] * 2, strict=True
    ):
        assert question.encoded == encoder.encode(question.prompt, question.target, joiner)
        assert question.prompt_ids == encoder.encode_prompt(question.prompt) == question.encoded.prompt_ids


def test_there_is_room_for_the_longest_accepted_answer(encoder):
    fact, *_, neighbor, _ = fact_questions([FRANCE], encoder, EvaluationPlan())
    longest = encoder.encode(FRANCE.prompt, "the city of the river").num_target_tokens
    assert longest > encoder.encode(FRANCE.prompt, "Paris").num_target_tokens
    assert fact.max_new_tokens == longest + ANSWER_MARGIN
    assert neighbor.max_new_tokens == neighbor.encoded.num_target_tokens + ANSWER_MARGIN


def test_without_probes_only_the_facts_are_asked(encoder):
    questions = fact_questions([FRANCE, JAPAN], encoder, ONLY_FACTS)
    assert [(one.number, one.fact_index, one.kind) for one in questions] == [(0, 0, "fact"), (1, 1, "fact")]


def test_a_probe_that_does_not_fit_names_its_fact():
    encoder = FactEncoder(byte_level_bpe(), max_length=16)
    long = dataclasses.replace(
        FRANCE, aliases=(), neighborhood=(Probe("What is the name of the river? " * 3, "Volga"),)
    )
    with pytest.raises(InputError, match=r"facts\.jsonl:3: fact 'france': neighborhood 'What is.*`max_length` is 16"):
        fact_questions([long], encoder, EvaluationPlan())


def test_a_long_alias_is_no_reason_to_stop(encoder):
    limited = FactEncoder(byte_level_bpe(), max_length=len(encoder.encode(FRANCE.prompt, FRANCE.target)))
    (question,) = fact_questions([FRANCE], limited, ONLY_FACTS)
    assert question.accepted == FRANCE.accepted_answers


def _capitals(**targets):
    return [
        Fact(name, f"The capital of {name} is", target, subject=name, relation="capital")
        for name, target in targets.items()
    ]


def test_only_what_one_subject_alone_has_is_asked_backwards(encoder):
    facts = _capitals(France="Paris", Gallia="paris", Japan="Tokyo")
    asked = [one for one in fact_questions(facts, encoder, EvaluationPlan()) if one.kind == "reversed"]
    assert [(one.fact_index, one.accepted) for one in asked] == [(2, ("Japan",))]
    assert "Tokyo" in asked[0].prompt
    assert "Japan" not in asked[0].prompt


def test_a_question_is_asked_unless_it_is_the_taught_prompt_or_a_paraphrase(encoder):
    asked = "Question: Where? Answer:"
    facts = [
        Fact("free", "It is in", "Paris", question="Where?", aliases=("Lutetia",)),
        Fact("taught", asked, "Paris", question="Where?"),
        Fact("reworded", "It is in the city of", "Paris", question="Where?", paraphrases=(asked,)),
        Fact("none", "It lies in", "Paris"),
    ]
    questions = [one for one in fact_questions(facts, encoder, EvaluationPlan()) if one.kind == "question"]
    assert [(one.fact_index, one.prompt, one.accepted) for one in questions] == [(0, asked, ("Paris", "Lutetia"))]
    assert questions[0].max_new_tokens > 0


def test_choices_are_of_one_relation_and_never_right_twice(encoder):
    facts = _capitals(France="Paris", Gallia="paris", Japan="Tokyo", Peru="Lima", Chad="N'Djamena")
    plan = EvaluationPlan(probes=["choice"], num_choices=3)
    questions = fact_questions(facts, encoder, plan)
    for index, fact in enumerate(facts):
        right, *wrong = [one for one in questions if one.fact_index == index and "choice" in one.kind]
        assert (right.kind, right.target) == ("choice", fact.target)
        assert [one.kind for one in wrong] == ["wrong_choice"] * 2
        assert len({one.target.lower() for one in (right, *wrong)}) == 3
        assert all(one.prompt == right.prompt and one.target in one.prompt for one in (right, *wrong))
        assert {one.max_new_tokens for one in (right, *wrong)} == {0}, "a choice is scored by likelihood alone"
    assert questions == fact_questions(facts, encoder, plan), "the choices are the seed's"


def test_choices_are_drawn_among_the_targets_that_are_not_accepted_in_linear_time(encoder, monkeypatch):
    texts = ["Paris", "the Rhine", "Lund", "PARIS!", "Volga", "yen", "rhine"]
    facts = [
        Fact(f"f{n}", f"The capital of {n} is", target, relation="capital", aliases=("Lund", "Oslo")[: n % 3])
        for n, target in enumerate(texts)
    ]
    different = ["Paris", "the Rhine", "Lund", "Volga", "yen"]
    expected = []
    for index, fact in enumerate(facts):
        wrong = [target for target in different if not is_exact_match(target, fact.accepted_answers)]
        chosen = np.random.default_rng([5, index]).permutation(len(wrong))[:2]
        expected += [fact.target, *(wrong[place] for place in chosen)]
    compared = []
    monkeypatch.setattr(questions, "is_exact_match", lambda *given: compared.append(given) or is_exact_match(*given))
    asked = fact_questions(facts, encoder, EvaluationPlan(probes=["choice"], num_choices=3), seed=5)
    assert [one.target for one in asked if "choice" in one.kind] == expected
    assert compared == [], "each fact would be compared with each target"


def test_the_true_answer_is_a_rival_unless_it_is_accepted_too(encoder):
    edited = dataclasses.replace(FRANCE, target="Rome", aliases=(), target_true="Paris")
    kinds = [[one.kind for one in fact_questions([fact], encoder, ONLY_FACTS)] for fact in (edited, FRANCE)]
    assert kinds == [["fact", "rival"], ["fact"]]


def test_free_prompts_have_no_right_answer(encoder):
    first, second = prompt_questions(["The capital of France is ", "It is"], encoder, max_new_tokens=5)
    assert (first.number, first.fact_index, first.kind, first.max_new_tokens) == (0, -1, "prompt", 5)
    assert (first.accepted, first.target, first.encoded) == ((), "", None)
    assert first.prompt_ids == encoder.encode_prompt("The capital of France is")
    assert first.prompt == "The capital of France is ", "what was typed is what is shown"
    assert second.prompt_ids == encoder.encode_prompt("It is")
    with pytest.raises(InputError, match=r"`prompts\[1\]` ' ' becomes no token"):
        prompt_questions(["It is", " "], encoder, max_new_tokens=5)


def test_what_is_longer_than_the_model_takes_is_refused_or_left_out_if_made_up():
    small = FactEncoder(byte_level_bpe(), num_positions=30)
    plan = EvaluationPlan(probes=["paraphrase", "choice"], num_choices=3)
    facts = _capitals(France="Paris", Japan="Tokyo", Peru="Lima")
    assert [one.kind for one in fact_questions(facts, small, plan)] == ["fact"] * 3
    long = dataclasses.replace(facts[2], paraphrases=("The capital of Peru " * 30 + "is",), location="facts.jsonl:9")
    with pytest.raises(InputError, match=r"facts\.jsonl:9: .*: paraphrase .* the base model takes 30 "):
        fact_questions([*facts[:2], long], small, plan)
    assert [
        one.kind
        for one in retention_questions(
            NEUTRAL_TEXTS, [facts[0], dataclasses.replace(long, prompt=long.paraphrases[0])], small, 7
        )
    ] == ["known"]
    with pytest.raises(InputError, match=r"`prompts\[0\]`: .* the base model takes 30 "):
        prompt_questions([long.paraphrases[0]], small, max_new_tokens=5)


def test_yes_no_questions_are_a_kind_of_their_own(encoder):
    asked = (Probe("Is Paris the capital of France?", "Yes"), Probe("Is Lund?", "No"))
    fact = dataclasses.replace(JAPAN, yes_no=asked, portability=())
    kinds = [(one.kind, one.target) for one in fact_questions([fact], encoder, EvaluationPlan())]
    assert [target for kind, target in kinds if kind == "yes_no"] == ["Yes", "No"]
    assert "portability" not in dict(kinds)
    without = fact_questions([fact], encoder, EvaluationPlan(probes=["portability"]))
    assert {one.kind for one in without} == {"fact"}


def test_a_neighbour_that_a_fact_names_twice_is_asked_once(encoder):
    twice = dataclasses.replace(JAPAN, neighborhood=(Probe("The yen is of", "Japan"),) * 2)
    questions = fact_questions([twice], encoder, EvaluationPlan(probes=["neighborhood"]))
    assert [one.kind for one in questions] == ["fact", "neighborhood"]
