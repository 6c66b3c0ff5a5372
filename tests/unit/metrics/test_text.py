import unicodedata

import pytest
from lit_semantic_peft.metrics import is_exact_match, normalize_answer, starts_with_answer


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Paris", " paris. "),
        ("The Beatles", "Beatles"),
        ("U.S.", "US"),
        ("Jean-Luc", "Jean Luc"),
        ("“Hamlet”", "hamlet"),
        ("Ｐａｒｉｓ", "Paris"),
        ("Straße", "STRASSE"),
        (unicodedata.normalize("NFD", "Zürich"), "zürich"),
        ("1,000,000", "1000000"),
        ("−5", "-5"),
        ("1990–1995", "1990-1995"),
        ("7‑12", "7-12"),
        ("“The Hague”", "Hague"),
        ("–The 49ers", "49ers"),
        ("Saint—Denis", "Saint-Denis"),
        ("New\n York\u200b", "new york"),
        ("东京。", "东京"),
    ],
)
def test_what_does_not_change_an_answer(left, right):
    assert normalize_answer(left) == normalize_answer(right)
    assert is_exact_match(left, [right])


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("C#", "C"),
        ("C++", "C"),
        ("3.5", "35"),
        ("3,5", "35"),
        ("1/2", "12"),
        ("-5", "5"),
        ("5%", "5"),
        ("Vitamin A", "Vitamin"),
        ("Hepatitis A", "Hepatitis B"),
        ("São", "Sao"),
        ("Parisian", "Paris"),
        (".", "!"),
        ("The The", "The Who"),
        ("A", "B"),
        ("A-1", "1"),
        ("An-225", "225"),
        ("A/B", "B"),
        ("The–Who", "Who"),
        ("A. Milne", "Milne"),
        ("1990–1995", "19901995"),
    ],
)
def test_what_does(left, right):
    assert not is_exact_match(left, [right])
    assert not is_exact_match(right, [left])


@pytest.mark.parametrize("text", [".", "...", "The The", "the", "A", "a an", "!?", "-", "、", "¿", "\u200b", "the."])
def test_a_text_that_is_not_blank_never_becomes_empty_and_matches_itself(text):
    assert normalize_answer(text)
    assert is_exact_match(text, [text])
    assert starts_with_answer(text, [text])


@pytest.mark.parametrize("text", ["Paris", "The The", "Jean-Luc", "1,000", ".", "the the the", "３．５", "İstanbul"])
def test_normalising_punctuation_again_changes_nothing(text):
    once = normalize_answer("x " + text)
    assert normalize_answer(once) == once


@pytest.mark.parametrize("answer", ["", "  ", "\n"])
def test_an_empty_answer_never_matches(answer):
    assert not is_exact_match(answer, ["", " ", "Paris"])
    assert not starts_with_answer(answer, ["", " ", "Paris"])
    assert not starts_with_answer("Paris", [answer])
    assert not is_exact_match("Paris", [])


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        ("Paris", "Paris"),
        ("Paris. It is the capital", "Paris"),
        ("Paris, France", "Paris"),
        ("The Beatles were", "Beatles"),
        ("Beatles were", "The Beatles"),
        ("A. Because", "A"),
        ("vitamin A is", "Vitamin A"),
        ("东京是日本的首都", "东京"),
        ("パリです", "パリ"),
        ("Paris是", "Paris"),
        ("กรุงเทพเป็น", "กรุงเทพ"),
        ("The The is a band", "The The"),
    ],
)
def test_prefixes_that_end_at_a_word(answer, accepted):
    assert starts_with_answer(answer, ["something else", accepted])


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        ("Parisian", "Paris"),
        ("In Paris", "Paris"),
        ("C# is", "C"),
        ("3.5 km", "3"),
        ("19th century", "19"),
        ("the cat", "The The"),
        ("Par", "Paris"),
        ("파리는", "파"),
        ("A-1 is a motorway", "1"),
        ("1990–1995", "1990"),
    ],
)
def test_prefixes_that_do_not(answer, accepted):
    assert not starts_with_answer(answer, [accepted])
