"""What a scorer of answers is fooled by, each with the verdict that it should give."""

import unicodedata

import pytest
from lit_semantic_peft.metrics import is_exact_match, starts_with_answer

PROMPT = "The capital of France is"
ACCEPTED = ["Paris", "City of Light"]


@pytest.mark.parametrize(
    ("trap", "answer", "accepted", "is_right"),
    [
        ("empty answer", "", ACCEPTED, False),
        ("blank answer", " \n ", ACCEPTED, False),
        ("empty answer, empty alias", "", ["Paris", ""], False),
        ("nothing but punctuation", "...", ACCEPTED, False),
        ("whole prompt repeated", f"{PROMPT} Paris", ACCEPTED, False),
        ("whole prompt repeated, no answer", PROMPT, ACCEPTED, False),
        ("target repeated", "Paris Paris Paris", ACCEPTED, False),
        ("all choices named", "Paris, London, Rome, Berlin", ACCEPTED, False),
        ("all choices by letter", "A, B, C or D", ["B"], False),
        ("hedged", "Paris or London", ACCEPTED, False),
        ("negated", "not Paris", ACCEPTED, False),
        ("letter inside a word", "Apple", ["A"], False),
        ("target inside a longer word", "Parisian", ACCEPTED, False),
        ("target inside a longer word, behind", "Niger", ["Nigeria"], False),
        ("target inside a sentence", "It is the city of Paris.", ACCEPTED, False),
        ("more than the target", "Paris, France", ACCEPTED, False),
        ("part of the target", "York", ["New York"], False),
        ("case", "PARIS", ACCEPTED, True),
        ("punctuation", "“Paris.”", ACCEPTED, True),
        ("leading article", "The Hague", ["Hague"], True),
        ("article inside", "Vitamin A", ["Vitamin"], False),
        ("article is the answer", "A", ["the"], False),
        ("alias, with an article", "the city of light", ACCEPTED, True),
        ("alias as it stands", "City of light!", ACCEPTED, True),
        ("composed and decomposed", unicodedata.normalize("NFD", "Zürich"), ["Zürich"], True),
        ("compatibility forms", "Ｐａｒｉｓ", ACCEPTED, True),
        ("ligature", "ﬁsh", ["fish"], True),
        ("accents are letters", "Sao Paulo", ["São Paulo"], False),
        ("zero-width marks", "Par\u200bis", ACCEPTED, True),
        ("non-breaking space", "New\u00a0York", ["New York"], True),
        ("another script", "Москва", ["Moscow"], False),
        ("thousands separator", "1,000,000", ["1000000"], True),
        ("decimal point", "3.5", ["35"], False),
        ("decimal comma", "3,5", ["3.5"], False),
        ("trailing zero is written otherwise", "3.50", ["3.5"], False),
        ("sign", "-5", ["5"], False),
        ("percent", "5 %", ["5"], False),
        ("number in words", "twelve", ["12"], False),
        ("longer number", "1945", ["194"], False),
        ("year in a date", "9 November 1989", ["1989"], False),
        ("date, comma", "November 9, 1989", ["November 9 1989"], True),
        ("date, other order: an alias says so", "9 November 1989", ["1989-11-09"], False),
        ("date, other order, with the alias", "9 November 1989", ["1989-11-09", "9 November 1989"], True),
        ("date, other day", "1989-11-10", ["1989-11-09"], False),
        ("date, separators mean something", "1989/11/09", ["1989-11-09"], False),
    ],
)
def test_verdict(trap, answer, accepted, is_right):
    assert is_exact_match(answer, accepted) is is_right, trap


@pytest.mark.parametrize("answer", ["London, Paris, Rome", f"{PROMPT} Paris", "Parisian", "", "not Paris"])
def test_the_lenient_verdict_is_not_fooled_either(answer):
    assert not starts_with_answer(answer, ACCEPTED)
