"""A watch list: answers that must hold, and prompts whose answers must not come apart between groups."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from peft import PeftModel

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation import Comparison, EvaluationPlan, Evaluator, fact_questions
from lit_semantic_peft.facts import Fact, Probe
from lit_semantic_peft.facts.reading import listed
from lit_semantic_peft.files import read_text
from lit_semantic_peft.semantics import Surprisal
from lit_semantic_peft.semantics.scoring import score_targets
from lit_semantic_peft.statistics import Interval, bootstrap_interval
from lit_semantic_peft.tokens import EncodedFact, FactEncoder, collate
from lit_semantic_peft.yaml_text import parsed_yaml

_SLOT = "{group}"
_BATCH = 64
_KEYS = {
    "must_hold": ("prompt", "answer", "aliases"),
    "must_not_diverge": ("name", "groups", "prompts"),
    "prompts": ("prompt", "answers"),
}


@dataclass(frozen=True, slots=True)
class HeldAnswer:
    """A prompt with its answer, which must hold.

    Attributes:
        prompt: The text before the answer.
        answer: The answer.
        aliases: Further right answers.
    """

    prompt: str
    answer: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupPrompt:
    """A prompt about a member of a group, with a favourable and an unfavourable answer.

    Attributes:
        prompt: Has `{group}` in it.
        favourable: The one answer.
        unfavourable: The other one.
    """

    prompt: str
    favourable: str
    unfavourable: str


@dataclass(frozen=True, slots=True)
class GroupComparison:
    """Groups whose answers must not come apart.

    Attributes:
        name: What the groups differ in.
        groups: A phrase for a member of each, at least two.
        prompts: At least two.
    """

    name: str
    groups: tuple[str, ...]
    prompts: tuple[GroupPrompt, ...]


@dataclass(frozen=True)
class WatchList:
    """What must hold whatever an adapter was taught.

    Attributes:
        must_hold: Answers that must hold.
        must_not_diverge: Groups that must be spoken of alike.
    """

    must_hold: tuple[HeldAnswer, ...] = ()
    must_not_diverge: tuple[GroupComparison, ...] = ()


@dataclass(frozen=True, slots=True)
class HeldFinding:
    """What became of an answer that must hold.

    Attributes:
        prompt: What was asked.
        answer: The right answer.
        before: The base model's answer.
        after: The adapter's answer.
        held_before: Whether the base model's answer begins with a right one.
        held_after: Whether the adapter's does.
        kl: KL(base ‖ adapter) over the tokens of the right answer, mean, nats.
    """

    prompt: str
    answer: str
    before: str
    after: str
    held_before: bool
    held_after: bool
    kl: float


@dataclass(frozen=True, slots=True)
class GroupFinding:
    """How far an adapter moved two groups apart.

    The log-odds of the favourable against the unfavourable answer are taken for each prompt and group. `change` is what
    the adapter adds to the first group's, less what it adds to the second's, mean over prompts: 0 where both move
    alike, whatever the base model thinks.

    Attributes:
        name: What the groups differ in.
        first: The one group.
        second: The other one.
        before: Difference of the log-odds between the groups under the base model, nats, mean over prompts.
        change: What the adapter adds to it, with its interval over prompts.
    """

    name: str
    first: str
    second: str
    before: float
    change: Interval


@dataclass(frozen=True)
class WatchFindings:
    """What was found on a watch list.

    Attributes:
        held: A row per answer that must hold.
        groups: A row per pair of groups, those first that came apart most.
    """

    held: tuple[HeldFinding, ...]
    groups: tuple[GroupFinding, ...]

    @property
    def broken(self) -> tuple[HeldFinding, ...]:
        """Answers that the base model gives rightly and the adapter wrongly."""
        return tuple(one for one in self.held if one.held_before and not one.held_after)

    def apart(self, limit: float) -> tuple[GroupFinding, ...]:
        """Pairs of groups that came apart beyond a limit, and beyond the chance of the prompts.

        Args:
            limit: In nats of the log-odds.
        """
        return tuple(
            one for one in self.groups if abs(one.change.mean) > limit and (one.change.low > 0 or one.change.high < 0)
        )

    def to_json(self) -> dict[str, Any]:
        """The findings as plain data."""
        return {"must_hold": [asdict(one) for one in self.held], "groups": [asdict(one) for one in self.groups]}


def builtin_watch_list() -> WatchList:
    """The package's own list: five kinds of groups in neutral, everyday sentences."""
    path = resources.files(__package__).joinpath("watch.yaml")
    return _watch_list(yaml.safe_load(path.read_text(encoding="utf-8")), "watch.yaml")


def read_watch_list(file: str | Path) -> WatchList:
    """Reads a watch list from YAML.

    Args:
        file: With `must_hold`, a list of `prompt`, `answer` and maybe `aliases`; and `must_not_diverge`, a list of
            `name`, `groups` and `prompts`, of which each has a `prompt` with `{group}` in it and two `answers`.

    Raises:
        InputError: If it cannot be read, or has another form; the message names the entry.
    """
    text = read_text(file, "`watch`")
    return _watch_list(parsed_yaml(text, f"`watch` {file}"), str(file))


def measure_watch(model: PeftModel, encoder: FactEncoder, watch: WatchList) -> WatchFindings:
    """Asks base model and adapter what is on a watch list.

    Args:
        model: The model with its adapter, in evaluation mode.
        encoder: How text becomes tokens.
        watch: The list.

    Raises:
        InputError: If a prompt and its answer cannot be tokenized.
    """
    groups = [finding for one in watch.must_not_diverge for finding in _compared(model, encoder, one)]
    return WatchFindings(
        _held(model, encoder, watch.must_hold), tuple(sorted(groups, key=lambda one: -abs(one.change.mean)))
    )


def _held(model: PeftModel, encoder: FactEncoder, asked: Sequence[HeldAnswer]) -> tuple[HeldFinding, ...]:
    # A neighbour of itself, so that the evaluator measures its divergence.
    facts = [
        Fact(
            f"must_hold[{number}]",
            one.prompt,
            one.answer,
            aliases=one.aliases,
            neighborhood=(Probe(one.prompt, one.answer),),
        )
        for number, one in enumerate(asked)
    ]
    questions = fact_questions(facts, encoder, EvaluationPlan(probes=["neighborhood"]))
    evaluator = Evaluator(encoder, [Surprisal()])
    rows: list[Comparison] = []
    for start in range(0, len(questions), _BATCH):
        rows += evaluator.compare(model, questions[start : start + _BATCH])
    kl = {row.question.fact_index: row.after.kl for row in rows if row.question.kind == "neighborhood"}
    return tuple(
        HeldFinding(
            prompt=row.question.prompt,
            answer=row.question.target,
            before=row.before.text,
            after=row.after.text,
            held_before=row.was_known,
            held_after=row.is_still_known,
            kl=kl[row.question.fact_index] or 0.0,
        )
        for row in rows
        if row.question.kind == "fact"
    )


def _compared(model: PeftModel, encoder: FactEncoder, asked: GroupComparison) -> list[GroupFinding]:
    free = encoder.without_limit()
    rows: list[EncodedFact] = [
        replace(free.encode(prompt.prompt.replace(_SLOT, group), answer), end_ids=())
        for group in asked.groups
        for prompt in asked.prompts
        for answer in (prompt.favourable, prompt.unfavourable)
    ]
    shape = (len(asked.groups), len(asked.prompts), 2)
    with model.disable_adapter():
        before = _log_prob(model, encoder, rows).reshape(shape)
    after = _log_prob(model, encoder, rows).reshape(shape)
    odds_before, odds_after = (values[..., 0] - values[..., 1] for values in (before, after))
    moved = odds_after - odds_before
    findings = []
    for first, second in combinations(range(len(asked.groups)), 2):
        interval = bootstrap_interval(moved[first] - moved[second])
        assert interval is not None
        gap = float((odds_before[first] - odds_before[second]).mean())
        findings.append(GroupFinding(asked.name, asked.groups[first], asked.groups[second], gap, interval))
    return findings


@torch.no_grad()
def _log_prob(model: PeftModel, encoder: FactEncoder, rows: Sequence[EncodedFact]) -> np.ndarray:
    """Log-probability of each whole answer, float64 `(n,)`, nats."""
    found = []
    for start in range(0, len(rows), _BATCH):
        chunk = rows[start : start + _BATCH]
        batch = collate(chunk, range(len(chunk)), encoder.pad_id, with_end=False).to(model.device)
        nll = score_targets(model, batch).nll.double().cpu().numpy()
        found.append(-nll * np.array([row.num_target_tokens for row in chunk]))
    return np.concatenate(found)


def _watch_list(found: object, where: str) -> WatchList:
    known = ("must_hold", "must_not_diverge")
    if not isinstance(found, Mapping) or not found.keys() <= set(known) or not found:
        raise InputError(f"`watch` {where}: expected a mapping with {' or '.join(f'`{name}`' for name in known)}")
    held = [
        HeldAnswer(
            _text(entry, "prompt", place),
            _text(entry, "answer", place),
            tuple(_texts(entry, "aliases", place, least=0)),
        )
        for place, entry in _entries(found, "must_hold", where)
    ]
    return WatchList(
        tuple(held),
        tuple(_group_comparison(entry, place) for place, entry in _entries(found, "must_not_diverge", where)),
    )


def _group_comparison(entry: Mapping[str, Any], place: str) -> GroupComparison:
    groups = _texts(entry, "groups", place, least=2)
    if len({*groups}) < len(groups):
        raise InputError(f"{place}: `groups` must differ from each other, got {groups!r}")
    prompts = []
    for where, one in _entries(entry, "prompts", place):
        prompt, answers = _text(one, "prompt", where), _texts(one, "answers", where, least=2)
        if _SLOT not in prompt or len({*answers}) != 2 or len(answers) != 2:
            raise InputError(
                f"{where}: expected a `prompt` with {_SLOT} in it and two different `answers`, got {one!r}"
            )
        prompts.append(GroupPrompt(prompt, *answers))
    if len(prompts) < 2:
        raise InputError(f"{place}: expected at least two `prompts`, since an interval is taken over them")
    return GroupComparison(_text(entry, "name", place), tuple(groups), tuple(prompts))


def _entries(found: Mapping[str, Any], name: str, where: str) -> list[tuple[str, Mapping[str, Any]]]:
    entries = found.get(name, [])
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise InputError(f"`watch` {where}: `{name}` must be a list of mappings, got {entries!r}")
    placed = [(f"{where}: `{name}[{number}]`", entry) for number, entry in enumerate(entries)]
    for place, entry in placed:
        if unknown := [str(key) for key in entry if key not in _KEYS[name]]:
            raise InputError(f"{place}: unknown {listed(unknown)}; such an entry may have {listed(_KEYS[name])}.")
    return placed


def _text(entry: Mapping[str, Any], name: str, where: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: `{name}` must be a text, got {value!r}. Quote words such as yes and no.")
    return value.strip()


def _texts(entry: Mapping[str, Any], name: str, where: str, least: int) -> list[str]:
    values = entry.get(name, [])
    if not isinstance(values, list) or len(values) < least or not all(isinstance(one, str) for one in values):
        raise InputError(
            f"{where}: `{name}` must be a list of at least {least} texts, got {values!r}. Quote words such as yes and "
            "no."
        )
    return [one.strip() for one in values]
