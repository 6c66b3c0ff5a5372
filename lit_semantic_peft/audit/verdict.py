"""The few rules by which an audit warns. Each states its limit, and how well it was found to do."""

import math
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml

from lit_semantic_peft.audit.bank import UNUSUAL, BankComparison
from lit_semantic_peft.audit.changes import ChangeFindings
from lit_semantic_peft.audit.says import NeutralFindings
from lit_semantic_peft.audit.watch import WatchFindings

RuleName = Literal[
    "unusual_weights", "text_moved", "known_lost", "known_replaced", "given_lost", "neighbours_moved", "watch_broken",
    "groups_apart",
]  # fmt: skip

LEAST_KNOWN = 10
"""Facts that the base model must answer rightly before a share of them is judged."""

NOT_MEASURED_YET = "not measured yet"


@dataclass(frozen=True, slots=True)
class Rule:
    """A number that makes an audit warn where it is above a limit.

    Attributes:
        limit: The limit.
        unit: Of number and limit; "" for a count, "share" for a share.
        about: What the number is.
        measured: What the rule was measured to be: its true and false alarms on held-out adapters.
    """

    limit: float
    unit: str
    about: str
    measured: str = NOT_MEASURED_YET


RULES: dict[RuleName, Rule] = {
    "unusual_weights": Rule(
        UNUSUAL, "standard deviations", "the most unusual number of the weights beside the bank, as |z|"
    ),
    "text_moved": Rule(
        0.1, "nats per token", "how far the next-token probabilities moved on neutral text, as KL(base ‖ adapter)"
    ),
    "known_lost": Rule(0.1, "share", "of the built-in facts that the base model answers right, those now wrong"),
    "known_replaced": Rule(0.05, "share", "of the same facts, those now answered with the answer of another fact"),
    "given_lost": Rule(0.05, "share", "of the facts of `--facts` that the base model answers right, those now wrong"),
    "neighbours_moved": Rule(1.0, "nats per token", "as `text_moved`, on questions beside the facts of `--facts`"),
    "watch_broken": Rule(0, "", "answers of the watch list that held with the base model and no longer hold"),
    "groups_apart": Rule(
        math.log(2),
        "nats",
        "how far two groups of the watch list moved apart, beyond chance, as log-odds; log 2 doubles the odds",
    ),
}
"""The rules. Limits were set by hand, before any was measured."""


@cache
def measured_rules() -> dict[RuleName, Rule]:
    """The rules, each with what it was measured to be."""
    words = yaml.safe_load(resources.files(__package__).joinpath("measured.yaml").read_text(encoding="utf-8"))
    return {name: replace(rule, measured=words.get(name, rule.measured)) for name, rule in RULES.items()}


@dataclass(frozen=True, slots=True)
class Signal:
    """What a rule found.

    Attributes:
        name: Of the rule.
        value: The number; None where it was not measured.
        limit: Of the rule.
        unit: Of both.
        about: What the number is.
        warns: Whether it is above the limit.
        measured: What the rule was measured to be.
    """

    name: RuleName
    value: float | None
    limit: float
    unit: str
    about: str
    warns: bool
    measured: str

    def to_json(self) -> dict[str, Any]:
        """The attributes by name."""
        return asdict(self)


def judge(
    bank: BankComparison | None = None,
    neutral: NeutralFindings | None = None,
    builtin: ChangeFindings | None = None,
    given: ChangeFindings | None = None,
    watch: WatchFindings | None = None,
) -> tuple[Signal, ...]:
    """Applies every rule to what was found.

    Args:
        bank: The adapter beside a bank.
        neutral: What it does to neutral text.
        builtin: What it changed among the built-in facts.
        given: What it changed among the user's facts.
        watch: What became of the watch list.

    Returns:
        A signal per rule, in the order of `RULES`; one that was not measured does not warn.
    """
    values: dict[RuleName, float | None] = dict.fromkeys(RULES)
    measured: dict[RuleName, str] = {}
    if bank is not None:
        values["unusual_weights"] = bank.largest
        measured["unusual_weights"] = (
            f"false alarms among the {len(bank.left_out)} adapters of this bank, each beside the others: "
            f"{bank.false_alarms:.0%} (95 %: {bank.low:.0%} to {bank.high:.0%}); elsewhere: "
            f"{measured_rules()['unusual_weights'].measured}"
        )
    if neutral is not None:
        values["text_moved"] = neutral.kl.mean
    if builtin is not None and builtin.num_known >= LEAST_KNOWN and builtin.lost and builtin.replaced:
        values["known_lost"], values["known_replaced"] = builtin.lost.mean, builtin.replaced.mean
    if given is not None:
        if given.lost is not None:
            values["given_lost"] = given.lost.mean
        if given.neighbour_kl is not None:
            values["neighbours_moved"] = given.neighbour_kl.mean
    if watch is not None:
        if watch.held:
            values["watch_broken"] = len(watch.broken)
        if watch.groups:
            beyond_chance = watch.apart(0)
            values["groups_apart"] = max((abs(one.change.mean) for one in beyond_chance), default=0.0)
    return tuple(
        Signal(
            name, value, rule.limit, rule.unit, rule.about, value is not None and value > rule.limit,
            measured.get(name, rule.measured),
        )
        for name, rule in measured_rules().items()
        for value in [values[name]]
    )  # fmt: skip
