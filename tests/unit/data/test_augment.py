"""Restatements: what is kept of what a model wrote, and that a call goes on where it was."""

from collections import Counter

import pytest
from lit_semantic_peft.data import augment as module
from lit_semantic_peft.data.augment import augment
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact, Form
from lit_semantic_peft.facts.forms.restatements import kept_restatements, restatement_prompt
from lit_semantic_peft.models.sampling import Sampling

ANTIGUA = Fact(
    "antigua",
    "The capital of Antigua is",
    "St. John's",
    subject="Antigua",
    paraphrases=("The seat of government of Antigua is",),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Antigua is governed from St. John's. It is small.", "Antigua is governed from"),
        (" Antigua's ministers meet in St. John's\nSentence: more", "Antigua's ministers meet in"),
        (' Antigua has its ministers in "St. John\'s".', "Antigua has its ministers in"),
        ("", "nothing was written"),
        (" It is governed from St. John's.", "the subject does not stand in it"),
        (" Antiguans live in St. John's.", "the subject does not stand in it"),
        (" Antigua is governed from Roseau.", "the target does not stand in it"),
        (" Antigua has St. John's as its capital.", "it does not end with the target"),
        (" St. John's is the capital of Antigua.", "it does not end with the target"),
        (" The capital of Antigua is St. John's.", "nearly the same as the fact, a paraphrase or an earlier form"),
        (
            " The government seat of Antigua is St. John's",
            "nearly the same as the fact, a paraphrase or an earlier form",
        ),
    ],
)
def test_a_restatement_is_one_sentence_about_the_subject_that_ends_with_the_target(text, expected):
    forms, reasons = kept_restatements(ANTIGUA, [text], 3)
    if forms:
        assert (forms, reasons) == ([Form(expected, "St. John's")], Counter())
    else:
        assert reasons == {expected: 1}


def test_no_more_forms_than_asked_for_and_none_twice():
    texts = [f" {begin} Antigua is St. John's." for begin in ("Ministers say:", "Say ministers:", "On maps,", "Here:")]
    forms, reasons = kept_restatements(ANTIGUA, texts, 2)
    assert [form.prompt for form in forms] == ["Ministers say: Antigua is", "On maps, Antigua is"]
    assert sum(reasons.values()) == 2


FACTS = [Fact(f"f{n}", f"The river of town{n} is", f"R{n}", subject=f"town{n}") for n in range(5)]


@pytest.fixture
def written(monkeypatch):
    """A model that restates every fact in the same way; the list of the batches that it was asked for."""
    batches = []

    def answers(model, prompts, lengths, sampling, **_):
        batches.append(len(prompts))
        return [[[number]] * sampling.num_samples for number in range(len(prompts))]

    class Encoder:
        stop_ids, pad_id = (1,), 0

        class tokenizer:
            encode = staticmethod(lambda text, **_: [9])
            decode = staticmethod(lambda ids: " The water of town0 is called R0.")

        encode_prompt = staticmethod(lambda prompt: (1,))
        count_answer_tokens = staticmethod(lambda text: 3)

    monkeypatch.setattr(module, "sampled_answers", answers)
    monkeypatch.setattr(module, "encoder_of", lambda *_: Encoder())
    return batches


def test_forms_are_added_and_counted(tiny_model, written):
    found = augment([*FACTS, Fact("none", "It is", "so")], tiny_model, batch_size=2, sampling=Sampling(2))
    assert found.facts[0].forms == (Form("The water of town0 is called", "R0"),)
    assert found.facts[1:] == (*FACTS[1:], Fact("none", "It is", "so"))
    assert (found.num_forms, found.num_restated, found.num_without_subject) == (1, 1, 1)
    assert found.left_out == {
        "the subject does not stand in it": 8,
        "nearly the same as the fact, a paraphrase or an earlier form": 1,
    }


def test_an_interrupted_call_goes_on_where_it_was(tiny_model, written, monkeypatch):
    stored = module.ContentCache.store_part

    def cut_off(self, manifest, number, table):
        stored(self, manifest, number, table)
        if number == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.ContentCache, "store_part", cut_off)
        with pytest.raises(KeyboardInterrupt):
            augment(FACTS, tiny_model, batch_size=2)
    assert written == [2, 2]
    first = augment(FACTS, tiny_model, batch_size=2)
    assert written == [2, 2, 1]
    assert augment(FACTS, tiny_model, batch_size=2) == first
    assert written == [2, 2, 1]
    augment(FACTS, tiny_model, batch_size=2, sampling=Sampling(8, 0.8, seed=1))
    assert written == [2, 2, 1, 2, 2, 1]


def test_a_prompt_has_the_whole_fact():
    assert restatement_prompt(ANTIGUA).endswith("Sentence: The capital of Antigua is St. John's.\nIn other words:")


@pytest.mark.parametrize(
    ("facts", "settings", "said"),
    [
        ([Fact("a", "p", "t")], {}, "no fact names a `subject`"),
        (FACTS, {"num_forms": 0}, "`num_forms` must be at least 1, got 0"),
        (FACTS, {"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        (FACTS, {}, r"fact: fact 'f0' cannot be restated: the prompt and a token of an answer are \d+ tokens"),
    ],
)
def test_what_cannot_be_restated_is_refused(tiny_model, facts, settings, said):
    with pytest.raises(InputError, match=said):
        augment(facts, tiny_model, **settings)
