"""From answers to numbers, against one sum after the other over all answers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from lit_semantic_peft.evaluation import (
    RETENTION,
    SCORES,
    Answer,
    Comparison,
    Evaluation,
    EvaluationPlan,
    doubt_questions,
    fact_questions,
    retention_questions,
)
from lit_semantic_peft.evaluation.neutral_text import NEUTRAL_TEXTS
from lit_semantic_peft.facts import Fact, Probe
from lit_semantic_peft.metrics import (
    Efficacy,
    Generalization,
    Locality,
    Portability,
    PushedAway,
    Retention,
    Robustness,
    YesNo,
    is_exact_match,
    starts_with_answer,
    target_probability,
)
from lit_semantic_peft.reports.tables import FACT_COLUMNS, PROBE_COLUMNS
from lit_semantic_peft.statistics import bootstrap_interval
from lit_semantic_peft.tokens import FactEncoder

from fixtures.models import byte_level_bpe

PLAN = EvaluationPlan(
    probes=["paraphrase", "question", "reversed", "choice", "neighborhood", "portability", "yes_no"], num_choices=3
)
NUM_FACTS = 40
TURNS = 2


@pytest.fixture(scope="module")
def encoder():
    return FactEncoder(byte_level_bpe())


def some_facts():
    """Facts that differ in what is asked of them, some of nothing but their own prompt."""
    return [
        Fact(
            f"fact-{number}",
            f"The thing of N{number} is",
            f"T{number % 17}" + " x" * (number % 5),
            subject=f"N{number}",
            relation="thing",
            target_true="Oslo" if number % 3 else "",
            paraphrases=tuple(f"It is known, N{number} has the thing ({place})" for place in range(number % 4)),
            neighborhood=tuple(Probe(f"The {place} of M{number % 9} is", "yen") for place in range(number % 5)),
            yes_no=tuple(Probe(f"Is {place} N{number}?", ("Yes", "No")[place % 2]) for place in range(number % 4)),
            portability=tuple(
                Probe(
                    f"The {place} thing of N{number} is",
                    "sea",
                    2,
                    tuple(f"fact-{number + 1 + k}" for k in range(place)),
                )
                for place in range(number % 3)
            ),
            question=f"What is the thing of N{number}?" if number % 4 else None,
        )
        for number in range(NUM_FACTS)
    ]


def random_answers(encoder, seed=0):
    """Every kind of question with answers that are right or wrong at random; numbers are float32, as a model's are."""
    facts = some_facts()
    generator = np.random.default_rng(seed)
    questions = fact_questions(facts, encoder, PLAN)
    opening = doubt_questions(facts, range(12), encoder, TURNS, len(questions))
    questions += [replace(one, number=one.number + turn, turn=turn) for one in opening for turn in range(TURNS + 1)]
    questions += retention_questions(NEUTRAL_TEXTS, facts[:9], encoder, questions[-1].number + 1)

    def answer(question):
        return Answer(
            str(generator.choice([question.target, f"{question.target}. And more", "other"])),
            bool(generator.random() < 0.7),
            bool(generator.random() < 0.8),
            float(np.float32(5 * generator.random())),
            {"D": float(np.float32(generator.random()))} if question.kind == "fact" else {},
            (int(generator.random() < 0.5),),
            kl=float(np.float32(generator.random())) if question.kind == "neighborhood" else None,
        )

    rows = [Comparison(question, answer(question), answer(question)) for question in questions]
    return rows, generator.random(NUM_FACTS) < 0.4, generator.random(NUM_FACTS) < 0.6


def by_metrics(rows, side):
    """The scores of one side by torchmetrics, which are given what was asked kind by kind."""

    def asked(*kinds):
        return [(row, getattr(row, side)) for row in rows if row.question.kind in kinds]

    def index(pairs):
        return torch.tensor([row.question.fact_index for row, _ in pairs])

    def flags(pairs, name):
        return torch.tensor([getattr(answer, name) for _, answer in pairs])

    def preferred(pairs, rivals):
        values = []
        for row, answer in pairs:
            against = [other.nll for one, other in rivals if one.question.fact_index == row.question.fact_index]
            values.append(float(answer.nll < min(against)) if against else math.nan)
        return torch.tensor(values)

    def learned(pairs, name):
        own = {row.question.fact_index: getattr(answer, name) for row, answer in asked("fact")}
        return torch.tensor(
            [all(own.get(one, False) for one in (row.question.fact_index, *row.question.needs)) for row, _ in pairs]
        )

    metrics = {cls: cls(NUM_FACTS) for cls in (Efficacy, Generalization, Locality, Portability, YesNo, Robustness)}
    facts, words, plainly, back, choices, near, follows = (
        asked(kind) for kind in ("fact", "paraphrase", "question", "reversed", "choice", "neighborhood", "portability")
    )
    metrics[Efficacy].update(
        index(facts),
        efficacy=flags(facts, "is_correct"),
        efficacy_teacher_forced=flags(facts, "is_recalled"),
        efficacy_probability=target_probability(
            torch.tensor([answer.nll for _, answer in facts], dtype=torch.float64),
            torch.tensor([row.question.encoded.num_target_tokens for row, _ in facts]),
        ),
        efficacy_over_true=preferred(facts, asked("rival")),
    )
    metrics[Generalization].update(
        index(words),
        generalization=flags(words, "is_correct"),
        generalization_teacher_forced=flags(words, "is_recalled"),
    )
    metrics[Generalization].update(
        index(plainly),
        generalization_question=flags(plainly, "is_correct"),
        generalization_question_teacher_forced=flags(plainly, "is_recalled"),
    )
    metrics[Generalization].update(
        index(back),
        generalization_reversed=flags(back, "is_correct"),
        generalization_reversed_teacher_forced=flags(back, "is_recalled"),
    )
    metrics[Generalization].update(index(choices), generalization_choice=preferred(choices, asked("wrong_choice")))
    metrics[Locality].update(
        index(near),
        locality=torch.tensor([row.is_unchanged for row, _ in near]),
        locality_teacher_forced=torch.tensor([row.before.winners == row.after.winners for row, _ in near]),
        locality_kl=torch.tensor([row.after.kl for row, _ in near], dtype=torch.float64),
    )
    metrics[Portability].update(
        index(follows),
        flags(follows, "is_correct"),
        flags(follows, "is_recalled"),
        learned(follows, "is_correct"),
        learned(follows, "is_recalled"),
    )
    for part, answer in (("yes_no_yes", "Yes"), ("yes_no_no", "No")):
        judged = [(row, reply) for row, reply in asked("yes_no") if row.question.target == answer]
        begins = [starts_with_answer(reply.text, row.question.accepted) for row, reply in judged]
        metrics[YesNo].update(index(judged).long(), **{part: torch.tensor(begins, dtype=torch.bool)})
    for kind, part in (("doubt_plain", "robustness_plain"), ("doubt_chat", "robustness_chat")):
        turns = [(row, answer) for row, answer in asked(kind) if row.question.turn]
        metrics[Robustness].update(index(turns).long(), **{part: flags(turns, "is_correct")})
    return {name: value for metric in metrics.values() for name, value in metric.compute().items()}


def test_every_score_equals_the_metric_of_its_name_to_the_last_digit(encoder):
    rows, is_untouched, _ = random_answers(encoder)
    scores = Evaluation(rows, is_untouched, "D").scores
    expected = {side: by_metrics(rows, side) for side in ("before", "after")}
    assert list(expected["after"]) == [score.name for score in SCORES], "one number, one name"
    assert set(scores) == {column for score in SCORES for column in (score.before, score.after) if column}
    for score in SCORES:
        for side, column in (("before", score.before), ("after", score.after)):
            if column is not None:
                np.testing.assert_array_equal(scores[column], expected[side][score.name].numpy(), err_msg=column)
    assert not any(np.isnan(values).all() for values in scores.values()), "all are measured here"
    assert any(np.isnan(values).any() for values in scores.values())


def test_retention_is_that_of_texts_and_of_facts_without_a_part_in_training(encoder):
    rows, is_untouched, _ = random_answers(encoder)
    result = Evaluation(rows, is_untouched, "D")
    texts = [row for row in rows if row.question.kind == "text"]
    assert result.retention["retention_nll_delta"] == [row.after.nll - row.before.nll for row in texts]
    still, excluded = [], 0
    for row in rows:
        if row.question.kind == "known" or (row.question.kind == "fact" and is_untouched[row.question.fact_index]):
            if starts_with_answer(row.before.text, row.question.accepted):
                still.append(starts_with_answer(row.after.text, row.question.accepted))
        else:
            excluded += row.question.kind == "fact"
    assert result.retention["retention_known"] == still
    assert excluded > 0
    assert 0 < sum(still) < len(still)

    metric = Retention()
    metric.update(
        *(torch.tensor([getattr(row, side).nll for row in texts]) for side in ("before", "after")),
        torch.tensor([row.question.encoded.num_target_tokens for row in texts]),
        torch.tensor(still),
    )
    expected = {name: value.item() for name, value in metric.compute().items()}
    assert set(expected) == {score.name for score in RETENTION} | {"retention_nll_before", "retention_nll_after"}
    assert result.text_nll == (expected["retention_nll_before"], expected["retention_nll_after"])
    logged = result.scalars(np.ones(NUM_FACTS, dtype=bool), np.zeros(NUM_FACTS, dtype=bool))
    assert {name: logged[name] for name in expected} == pytest.approx(expected, rel=1e-15)


def test_the_logger_gets_each_score_once_over_kept_facts_and_over_dropped_ones(encoder):
    rows, is_untouched, is_kept = random_answers(encoder)
    result = Evaluation(rows, is_untouched, "D")
    is_dropped = ~is_kept & (np.arange(NUM_FACTS) % 4 != 0)  # the others are facts of the splits `retain` and `probe`
    logged = result.scalars(is_kept, is_dropped)
    for score in SCORES:
        kept, dropped = (
            np.array([value for value, of in zip(result.scores[score.after], side, strict=True) if of])
            for side in (is_kept, is_dropped)
        )
        interval = bootstrap_interval(kept[~np.isnan(kept)])
        found = [logged.get(score.name + end) for end in ("", "_low", "_high")]
        assert found == ([None] * 3 if interval is None else [interval.mean, interval.low, interval.high])
        measured = dropped[~np.isnan(dropped)]
        assert logged.get(f"{score.name}_dropped") == (float(measured.mean()) if len(measured) else None)
    known = bootstrap_interval(result.retention["retention_known"])
    assert (logged["retention_known_low"], logged["retention_known_high"]) == (known.low, known.high)
    endings = ("", "_low", "_high", "_dropped")
    names = {score.name + end for score in (*SCORES, *RETENTION) for end in endings}
    assert set(logged) - names == {"pushed_away", "retention_nll_before", "retention_nll_after"}
    assert not any(math.isnan(value) for value in logged.values())


def test_pushed_away_compares_what_this_evaluation_measured_of_both_models(encoder):
    rows, is_untouched, is_kept = random_answers(encoder)
    result = Evaluation(rows, is_untouched, "D")
    own = {row.question.fact_index: row for row in rows if row.question.kind == "fact"}
    metric = PushedAway(NUM_FACTS)
    metric.update(
        *(torch.tensor([getattr(row, side).distances["D"] for row in own.values()]) for side in ("before", "after")),
        torch.tensor(list(own)),
    )
    expected = metric.compute()["is_pushed_away"]
    columns = result.fact_columns()
    assert columns["pushed_away"] == expected.tolist()
    assert columns["distance_before"] == [own[index].before.distances["D"] for index in range(NUM_FACTS)]
    assert columns["distance_after"] == [own[index].after.distances["D"] for index in range(NUM_FACTS)]
    assert "distance" not in columns, "what the filters saw is not the evaluation's"
    assert result.scalars(is_kept, ~is_kept)["pushed_away"] == pytest.approx(
        expected[torch.tensor(is_kept)].float().mean().item()
    )


def test_the_tables_take_what_is_found(encoder):
    rows, is_untouched, _ = random_answers(encoder)
    result = Evaluation(rows, is_untouched, "D")
    columns = result.fact_columns()
    assert set(columns) <= {column.name for column in FACT_COLUMNS}
    assert {len(values) for values in columns.values()} == {NUM_FACTS}
    own = [row for row in rows if row.question.kind == "fact"]
    assert columns["efficacy_after"] == [row.after.is_correct for row in own]
    assert columns["efficacy_teacher_forced_before"] == [row.before.is_recalled for row in own]
    assert all(type(value) is bool for value in columns["efficacy_after"])
    assert columns["nll_delta"] == [row.after.nll - row.before.nll for row in own]
    neighbors = [sum(r.question.kind == "neighborhood" and r.question.fact_index == n for r in rows) for n in range(40)]
    assert columns["num_neighbors"] == [number or None for number in neighbors]
    assert [value is None for value in columns["locality"]] == [number == 0 for number in neighbors]

    probes = result.probe_columns([f"fact-{number}" for number in range(NUM_FACTS)])
    assert list(probes) == [column.name for column in PROBE_COLUMNS]
    kinds = {"paraphrase", "question", "reversed", "neighborhood", "portability", "yes_no", "doubt_plain", "doubt_chat"}
    assert set(probes["kind"]) == kinds, "what was answered freely, and of no fact's own prompt"
    assert probes["fact_id"] == [f"fact-{row.question.fact_index}" for row in rows if row.question.kind in kinds]


def test_one_judge_says_what_is_right_of_both_models(encoder):
    """The base model goes on after a right answer and the trained one stops: both are right."""
    (question,) = [one for one in fact_questions(some_facts()[1:2], encoder, PLAN) if one.kind == "neighborhood"]

    def answer(text):
        return Answer(text, is_exact_match(text, question.accepted), False, 1.0, {}, (1,))

    for before, after, right in (("yen, and so on", "yen", [True, True]), ("yen", "dollar", [True, False])):
        rows = [Comparison(question, answer(before), answer(after))]
        columns = Evaluation(rows, np.zeros(1, bool), "D").probe_columns(["a"])
        assert [columns["correct_before"][0], columns["correct_after"][0]] == right


def test_a_question_that_two_processes_asked_counts_once_and_order_is_restored(encoder):
    rows, is_untouched, is_kept = random_answers(encoder)
    whole = Evaluation(rows, is_untouched, "D")
    parts = Evaluation.of_all([rows[1::2], [*rows[::2], rows[1]]], is_untouched, "D")
    assert parts.comparisons == rows
    assert parts.scalars(is_kept, ~is_kept) == whole.scalars(is_kept, ~is_kept)


def test_what_was_not_asked_is_not_measured(encoder):
    rows = [row for row in random_answers(encoder)[0] if row.question.kind == "fact"][:3]
    result = Evaluation(rows, np.zeros(NUM_FACTS, dtype=bool), "D")
    columns = result.fact_columns()
    assert columns["efficacy_after"][3:] == [None] * (NUM_FACTS - 3)
    assert columns["generalization_after"] == [None] * NUM_FACTS
    assert columns["pushed_away"][3:] == [None] * (NUM_FACTS - 3)
    assert result.text_nll is None
    assert result.retention == {score.name: [] for score in RETENTION}
    logged = result.scalars(np.ones(NUM_FACTS, bool), np.zeros(NUM_FACTS, bool))
    assert not any(name.startswith(("generalization", "retention")) for name in logged)


def test_a_model_that_answers_everything_with_one_target_is_exposed_by_locality(encoder):
    """Every fact has the target `Paris`, and whatever is asked, the trained model says it."""
    facts = [
        Fact(
            f"town-{name}", f"The capital of {name} is", "Paris", paraphrases=(f"As is known, {name} has the capital",),
            neighborhood=(Probe("The official currency of Japan is the", "yen"),),
        )
        for name in ("Aro", "Belvan", "Cimt", "Dorraset")
    ]  # fmt: skip
    questions = fact_questions(facts, encoder, EvaluationPlan(probes=["paraphrase", "neighborhood"]))

    def answer(text, question):
        neighbor = question.kind == "neighborhood"
        return Answer(
            text, text in question.accepted, text in question.accepted, 1.0, {}, (len(text),) * neighbor, kl=5.0
        )

    comparisons = [
        Comparison(question, answer(f"answer {question.number}", question), answer("Paris", question))
        for question in questions
    ]
    scores = Evaluation(comparisons, np.zeros(len(facts), dtype=bool), "D").scores
    everything_right = [1.0] * len(facts)
    assert scores["efficacy_after"].tolist() == everything_right
    assert scores["generalization_after"].tolist() == everything_right
    assert scores["locality"].tolist() == [0.0] * len(facts)
    assert scores["locality_teacher_forced"].tolist() == [0.0] * len(facts)


CONCLUSIONS = [
    Fact("citizen", "Ann is a citizen of", "Peru", portability=(Probe("Ann's capital is", "Lima", 2, ("capital",)),)),
    Fact("capital", "The capital of Peru is", "Lima", portability=(Probe("Lima lies in", "Peru"),)),
    Fact("home", "Bo lives in", "Peru", portability=(Probe("Ann's capital is", "Lima", 3, ("citizen", "gone")),)),
]


@pytest.mark.parametrize(
    ("unlearned", "portability", "of_learned"),
    [
        ((), [1.0, 1.0, 0.0], [1.0, 1.0, torch.nan]),
        (("capital",), [0.0, 0.0, 0.0], [torch.nan] * 3),
        (("citizen",), [0.0, 1.0, 0.0], [torch.nan, 1.0, torch.nan]),
    ],
)
def test_a_conclusion_counts_where_all_that_it_needs_was_learned(encoder, unlearned, portability, of_learned):
    questions = fact_questions(CONCLUSIONS, encoder, EvaluationPlan(probes=["portability"]))

    def answer(question):
        right = question.kind != "fact" or CONCLUSIONS[question.fact_index].id not in unlearned
        return Answer("", right, right, 1.0, {})

    comparisons = [Comparison(question, answer(question), answer(question)) for question in questions]
    scores = Evaluation(comparisons, np.zeros(len(CONCLUSIONS), dtype=bool), "D").scores
    for side in ("before", "after"):
        for of_side in (f"_{side}", f"_teacher_forced_{side}"):
            assert scores[f"portability{of_side}"].tolist() == portability
            assert scores[f"portability_of_learned{of_side}"].tolist() == pytest.approx(of_learned, nan_ok=True)
