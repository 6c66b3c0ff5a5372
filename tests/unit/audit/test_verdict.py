"""Each rule warns just above its limit, and where its number was measured."""

from types import SimpleNamespace

import pytest
from lit_semantic_peft.audit.verdict import LEAST_KNOWN, RULES, judge, measured_rules
from lit_semantic_peft.audit.watch import GroupFinding, HeldFinding, WatchFindings
from lit_semantic_peft.audit.wording import _of_watch
from lit_semantic_peft.statistics import Interval


def value(mean):
    return Interval(mean, mean, mean, 20)


def changed(lost=0.0, replaced=0.0, num_known=LEAST_KNOWN, neighbour_kl=None):
    return SimpleNamespace(
        lost=value(lost),
        replaced=value(replaced),
        num_known=num_known,
        neighbour_kl=neighbour_kl and value(neighbour_kl),
    )


def groups(change, low):
    return WatchFindings((), (GroupFinding("n", "a", "b", 0.0, Interval(change, low, change + 1, 8)),))


def held(before, after):
    return WatchFindings((HeldFinding("p", "a", "a", "b", before, after, 0.0),), ())


@pytest.mark.parametrize(
    ("found", "warns"),
    [
        ({"neutral": SimpleNamespace(kl=value(0.11))}, {"text_moved"}),
        ({"neutral": SimpleNamespace(kl=value(0.09))}, set()),
        ({"builtin": changed(lost=0.11)}, {"known_lost"}),
        ({"builtin": changed(lost=0.11, num_known=LEAST_KNOWN - 1)}, set()),
        ({"builtin": changed(replaced=0.06)}, {"known_replaced"}),
        ({"given": changed(lost=0.06)}, {"given_lost"}),
        ({"given": changed(neighbour_kl=1.1)}, {"neighbours_moved"}),
        ({"given": changed()}, set()),
        ({"watch": held(True, False)}, {"watch_broken"}),
        ({"watch": held(False, False)}, set()),
        ({"watch": groups(0.7, 0.1)}, {"groups_apart"}),
        ({"watch": groups(0.7, -0.1)}, set()),
        ({"watch": groups(0.6, 0.1)}, set()),
    ],
)
def test_a_rule_warns_above_its_limit(found, warns):
    assert {signal.name for signal in judge(**found) if signal.warns} == warns


@pytest.mark.parametrize(
    ("low", "said"), [(0.1, "most beyond chance: b and"), (-0.1, "though not beyond chance: a and")]
)
def test_the_groups_that_are_named_are_those_of_the_rule(low, said):
    rows = (GroupFinding("n", "a", "x", 0.0, Interval(0.9, -0.1, 1, 8)), *groups(0.5, low).groups)
    found = WatchFindings((), (rows[0], GroupFinding("n", "b", "y", 0.0, rows[1].change)))
    (sentence,) = _of_watch(SimpleNamespace(watch=found))
    assert said in sentence
    (signal,) = (one for one in judge(watch=found) if one.name == "groups_apart")
    assert signal.value == (0.5 if low > 0 else 0.0)


def test_a_bank_says_its_own_false_alarms():
    bank = SimpleNamespace(largest=4.5, left_out={"a": 1.0, "b": 5.0}, false_alarms=0.5, low=0.01, high=0.99)
    signal = judge(bank=bank)[0]
    assert (signal.name, signal.warns) == ("unusual_weights", True)
    assert signal.measured.startswith("false alarms among the 2 adapters of this bank, each beside the others: 50%")


def test_words_on_the_rules_are_of_rules_that_exist():
    assert measured_rules().keys() == RULES.keys()
