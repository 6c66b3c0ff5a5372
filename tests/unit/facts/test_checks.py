import itertools
import random
import re

import pytest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact, Form, find_contradictions, find_near_duplicates, group_near_duplicates
from lit_semantic_peft.facts.similar_words import similar_earlier

from fixtures.calls import count_calls


def fact(identifier: str, prompt: str, target: str, **more) -> Fact:
    return Fact(identifier, prompt, target, **more)


def contradicting_ids(*facts: Fact) -> list[tuple[str, str]]:
    return [(found.first.id, found.second.id) for found in find_contradictions(facts)]


def test_the_same_prompt_with_another_target_is_a_contradiction():
    facts = (fact("a", "Ivory comes from", "elephants"), fact("b", "ivory  comes from", "soap", joiner=""))
    assert contradicting_ids(*facts) == [("a", "b")]


@pytest.mark.parametrize(
    "second",
    [
        fact("b", "Ivory comes from", "  ELEPHANTS"),
        fact("b", "Ivory comes from", "tusks"),
        fact("b", "Ivory comes from", "mammoths", aliases=("Elephants",)),
        fact("b", "Wool comes from", "sheep"),
    ],
)
def test_the_same_answer_or_an_alias_or_another_prompt_is_none(second):
    assert contradicting_ids(fact("a", "Ivory comes from", "elephants", aliases=("Tusks",)), second) == []


def test_a_form_that_denies_another_fact_or_form_is_a_contradiction():
    ivory = fact("a", "Ivory comes from", "elephants", aliases=("Tusks",))
    denies = fact("b", "Soap is made of", "fat", forms=(Form("Ivory comes from", "soap"),))
    assert contradicting_ids(ivory, denies) == [("a", "b")]
    assert (
        str(find_contradictions([ivory, denies])[0])
        == "'Ivory comes from': 'elephants' (fact 'a') or 'soap' (fact 'b')"
    )
    agrees = fact("b", "Soap is made of", "fat", forms=(Form("Ivory comes from", "tusks"),))
    assert contradicting_ids(ivory, agrees) == []
    reversed_forms = [fact(name, name, "x", forms=(Form("It gives", name),)) for name in ("wool", "milk")]
    assert contradicting_ids(*reversed_forms) == [("wool", "milk")]
    assert contradicting_ids(fact("c", "It is", "one", forms=(Form("It is", "two"),))) == [("c", "c")]


def test_each_fact_is_named_once_with_the_earliest_that_it_contradicts():
    targets = ("one", "two", "one", "three")
    facts = [fact(name, "It is", target) for name, target in zip("abcd", targets, strict=True)]
    assert contradicting_ids(*facts) == [("a", "b"), ("b", "c"), ("a", "d")]


def test_a_contradiction_prints_both_targets_and_places():
    found = find_contradictions(
        [fact("a", "It is", "one", location="f.jsonl:1"), fact("b", "It is", "two", location="f.jsonl:4")]
    )
    assert str(found[0]) == "'It is': 'one' (fact 'a', f.jsonl:1) or 'two' (fact 'b', f.jsonl:4)"


def words(one: Fact) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", f"{one.prompt} {one.target}".lower()))


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.75, 0.9, 1.0])
def test_near_duplicates_are_those_of_brute_force(threshold):
    draw = random.Random(0)
    vocabulary = [f"w{index}" for index in range(14)]
    drawn = {frozenset(draw.sample(vocabulary, draw.randint(1, 11))) for _ in range(160)}
    facts = [fact(str(index), " ".join(sorted(each)), "") for index, each in enumerate(sorted(drawn, key=sorted))]
    expected = {
        (one.id, two.id): len(words(one) & words(two)) / len(words(one) | words(two))
        for one, two in itertools.combinations(facts, 2)
    }
    expected = {pair: similarity for pair, similarity in expected.items() if similarity >= threshold}
    found = {(each.first.id, each.second.id): each.similarity for each in find_near_duplicates(facts, threshold)}
    assert found.items() <= expected.items()
    order = {one.id: place for place, one in enumerate(sorted(facts, key=lambda one: len(words(one))))}
    later = [max(pair, key=order.__getitem__) for pair in found]
    assert sorted(later) == sorted({max(pair, key=order.__getitem__) for pair in expected}), (
        "each once, and none missed"
    )
    assert threshold == 1.0 or found


def test_the_same_words_are_paired_with_the_first_only():
    facts = [fact(str(index), "It is called", "one") for index in range(50)]
    assert [(each.first.id, each.second.id) for each in find_near_duplicates(facts)] == [
        ("0", str(index)) for index in range(1, 50)
    ]


def test_characters_are_the_words_of_chinese():
    facts = [fact("a", "法国的首都是", "巴黎", joiner=""), fact("b", "法国的首都叫", "巴黎", joiner="")]
    assert find_near_duplicates(facts, 0.9) == []
    (found,) = find_near_duplicates(facts, 0.75)
    assert found.similarity == pytest.approx(7 / 9)
    assert str(found) == "0.78: '法国的首都是 巴黎' (fact 'a') and '法国的首都叫 巴黎' (fact 'b')"


def test_facts_without_any_word_have_no_duplicates():
    assert find_near_duplicates([fact("a", "?", "!"), fact("b", "?", "!")]) == []


def test_of_ten_thousand_facts_each_is_compared_with_few():
    draw = random.Random(1)
    names = ["".join(draw.choices("abcdefghijklmnop", k=6)) for _ in range(10_000)]
    facts = [fact(str(index), f"The town of {name} lies in the land of", "Aland") for index, name in enumerate(names)]
    found, calls = count_calls(lambda: find_near_duplicates(facts))
    assert len(found) == len(names) - len(set(names))
    assert calls < 100 * len(names), "each with each would be 10,000 per fact"


def test_facts_of_one_template_are_one_group_and_few_comparisons():
    text = (
        "According to the register of companies kept by the district court in its current form, the office of {} is in"
    )
    facts = [fact(str(index), text.format(f"number{index}"), f"Town{index}") for index in range(2000)]
    found, calls = count_calls(lambda: find_near_duplicates(facts, 0.8))
    assert len(found) == len(facts) - 1, "not the two million pairs"
    assert calls < 200 * len(facts)
    unlike, calls = count_calls(lambda: find_near_duplicates(facts, 0.95))  # no pair is so similar
    assert (unlike, calls < 200 * len(facts)) == ([], True)
    (group,) = group_near_duplicates(found)
    assert len(group.facts) == len(facts)
    assert group.template == text.format("…") + " …"
    assert str(group).endswith("(fact '0', fact '1' and 1998 more)")


def test_groups_are_the_connected_facts_the_largest_first():
    texts = ["a b c d e f g h", "a b c d e f g x", "k l m n o p q r", "a b c d e f y x", "k l m n o p q s", "z"]
    facts = [fact(str(index), text, "") for index, text in enumerate(texts)]
    groups = group_near_duplicates(find_near_duplicates(facts, 0.75))
    assert [{one.id for one in group.facts} for group in groups] == [{"0", "1", "3"}, {"2", "4"}]
    assert group_near_duplicates([]) == []


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("num_words", [40, 700], ids=["a bit a word", "several words a bit"])
def test_each_fact_is_paired_with_the_first_that_comparing_all_finds(threshold, num_words):
    draw = random.Random(num_words)
    vocabulary = [f"w{index}" for index in range(num_words)]
    sets = [set(draw.sample(vocabulary, draw.randint(20, 39))) for _ in range(30)]
    for _ in range(200):  # others in a few words
        words = set(draw.choice(sets))
        words -= set(draw.sample(sorted(words), draw.randint(0, 4)))
        sets.append(words | set(draw.sample(vocabulary, draw.randint(0, 4))))
    distinct = sorted({frozenset(one) for one in sets}, key=lambda one: (len(one), sorted(one)))
    expected = []
    for place, one in enumerate(distinct):
        similarities = [len(one & other) / len(one | other) for other in distinct[:place]]
        first = next((earlier for earlier, value in enumerate(similarities) if value >= threshold), None)
        if first is not None:
            expected.append((place, first, similarities[first]))
    assert list(similar_earlier(distinct, threshold)) == expected
    assert 5 < len(expected) < len(distinct)


def test_facts_that_share_all_words_but_few_are_compared_by_few_calls():
    draw = random.Random(0)
    vocabulary = [f"w{index}" for index in range(50)]
    facts = [fact(str(index), " ".join(draw.sample(vocabulary, 40)), "") for index in range(1000)]
    found, calls = count_calls(lambda: find_near_duplicates(facts, 0.9))
    assert len(found) < 20
    assert calls < 200 * len(facts), "each with each would be 500 per fact, and several calls each"


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.1])
def test_a_threshold_outside_its_range_is_refused(threshold):
    with pytest.raises(InputError, match=r"`threshold`: expected a number in \(0, 1\], got"):
        find_near_duplicates([], threshold)
