"""What a run cost, in words: a sentence for each damage beyond a threshold, with the setting that would help.

The thresholds are `Thresholds`; none of them is a test of significance.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lit_semantic_peft.reports.phrases import percent
from lit_semantic_peft.reports.records import Summary

NO_DAMAGE = "No damage beyond the thresholds was measured."
"""Said where what was measured outside of the taught facts is as it was."""


_TAUGHT = {
    "efficacy": "own prompts",
    "generalization": "paraphrases",
    "generalization_question": "questions",
    "generalization_reversed": "reversed questions",
}
"""Scores of what was taught, and what is asked."""
_SHUT = 0.05
"""Share of the questions that a gate may keep shut before it is said."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From where on something is said.

    Attributes:
        known: Share of the known facts that the trained model no longer knows.
        unrelated: Rise of the loss of unrelated text, nats per token.
        neighbours: Share of the neighbouring questions whose answer changed.
        gap: Recall of the own prompts minus that of paraphrases.
        recall: Share of the kept facts below which little was learned.
        majority: Share of the kept facts that get the same answer, beyond the share for which it is right.
    """

    known: float = 0.1
    unrelated: float = 0.1
    neighbours: float = 0.2
    gap: float = 0.3
    recall: float = 0.5
    majority: float = 0.2


def verdict(summary: Summary, thresholds: Thresholds | None = None) -> list[str]:
    """What the training cost or did not reach, the damage first; empty where nothing is beyond its threshold.

    Args:
        summary: The run's numbers.
        thresholds: From where on something is said.

    Returns:
        Plain sentences. What was not measured is not judged. Where there is a gate, damage is judged through it, and
        damage without it is named as such; what was learned is judged without it, and what it keeps shut through it.
    """
    limits = thresholds or Thresholds()
    return [
        *_damage(summary.as_used, limits),
        *_advice(summary, limits),
        *_recall(summary, limits),
        *_paraphrases(summary, limits),
        *_shut(summary),
        *_majority(summary, limits),
        *_retain(summary),
        *_without_gate(summary, limits),
    ]


def judged(summary: Summary, thresholds: Thresholds | None = None) -> tuple[str, ...] | None:
    """`verdict`, or None where nothing outside of the taught facts was measured and nothing is to be said.

    Args:
        summary: The run's numbers.
        thresholds: From where on something is said.
    """
    found = tuple(verdict(summary, thresholds))
    return found if found or is_judged(summary) else None


def is_judged(summary: Summary) -> bool:
    """Whether anything that `verdict` looks at outside of the taught facts was measured."""
    retention = summary.retention
    outside = retention is not None and (retention.known is not None or retention.nll_after is not None)
    return outside or summary.score("locality").kept.after is not None


def _damage(summary: Summary, limits: Thresholds) -> list[str]:
    return [*_known(summary, limits), *_unrelated(summary, limits), *_neighbours(summary, limits)]


def _without_gate(summary: Summary, limits: Thresholds) -> list[str]:
    """Of what the gate protects."""
    if summary.gate is None:
        return []
    what = (sentence.partition(". ")[0].rstrip(".") for sentence in _damage(summary, limits))
    return [f"Without its gate, as plain peft loads the adapter: {one[0].lower()}{one[1:]}." for one in what]


def _advice(summary: Summary, limits: Thresholds) -> list[str]:
    """That a gate would help."""
    if summary.gate is not None or summary.routing is not None or not _damage(summary, limits):
        return []
    return [
        "If you do not need to merge the adapter and each fact has a `subject`, train with `--recipe gated` "
        "(`model.gate`: `SubjectGate`): then the base model answers all prompts that name nothing taught."
    ]


def _shut(summary: Summary) -> list[str]:
    """The questions whose answer the adapter knows and the gate keeps from it."""
    found = []
    for name, questions in _TAUGHT.items():
        own, gated = (one.score(name).kept.after for one in (summary, summary.as_used))
        if own is not None and gated is not None and own.mean - gated.mean > _SHUT:
            found.append(f"{questions} {percent(own.mean)} without the gate, {percent(gated.mean)} through it")
    if not found:
        return []
    return [
        f"The gate stays shut where the adapter knows the answer: {'; '.join(found)}. It opens for more names with "
        "`model.gate.aliases`, and for questions in the other direction with `match: subjects_and_targets`."
    ]


def _known(summary: Summary, limits: Thresholds) -> list[str]:
    known = summary.retention.known if summary.retention is not None else None
    if known is None or 1 - known.mean <= limits.known:
        return []
    lost = round((1 - known.mean) * known.num_facts)
    return [
        f"{lost} of {known.num_facts} facts that the base model knew are lost ({percent(1 - known.mean)}). "
        "To keep more of them, add `KnownFacts` to `model.retain`, or raise its weight."
    ]


def _unrelated(summary: Summary, limits: Thresholds) -> list[str]:
    retention = summary.retention
    if retention is None or retention.nll_before is None or retention.nll_after is None:
        return []
    rise = retention.nll_after - retention.nll_before
    if rise <= limits.unrelated:
        return []
    return [
        f"Unrelated text moved: its loss rose by {rise:.2f} nats per token, from {retention.nll_before:.2f} to "
        f"{retention.nll_after:.2f}. To change it less, add `OwnSamples` to `model.retain` or raise its "
        "weight, or lower the learning rate."
    ]


def _neighbours(summary: Summary, limits: Thresholds) -> list[str]:
    locality = summary.score("locality").kept.after
    if locality is None or 1 - locality.mean <= limits.neighbours:
        return []
    return [
        f"{percent(1 - locality.mean)} of the neighbouring questions get another answer than before. "
        "To change fewer of them, add `Neighbours` to `model.retain`."
    ]


def _recall(summary: Summary, limits: Thresholds) -> list[str]:
    recalled = summary.score("efficacy").kept.after
    if recalled is None or recalled.mean >= limits.recall:
        return []
    steps = summary.epochs[-1].global_step if summary.epochs else None
    after = "" if steps is None else f" after {steps} optimizer steps"
    share = f"Only {percent(recalled.mean)}" if recalled.mean else "None"
    return [f"{share} of the kept facts are recalled{after}: train longer (`trainer.max_steps`)."]


def _paraphrases(summary: Summary, limits: Thresholds) -> list[str]:
    own, other = (summary.score(name).kept.after for name in ("efficacy", "generalization"))
    if own is None or other is None or own.mean - other.mean <= limits.gap:
        return []
    return [
        f"More facts are recalled by their own prompts ({percent(own.mean)}) than in other words "
        f"({percent(other.mean)}): teach more forms (`data.forms.sources`)."
    ]


def _majority(summary: Summary, limits: Thresholds) -> list[str]:
    found = summary.repetition
    if found is None or not found.num_answers:
        return []
    beyond = (found.num_given - found.num_targets) / found.num_answers
    if beyond <= limits.majority:
        return []
    return [
        f"{found.num_given} of {found.num_answers} facts get the same answer, which is right for {found.num_targets}: "
        "train longer, or balance the targets."
    ]


def _retain(summary: Summary) -> list[str]:
    if not summary.num_retain or not _names_no_retain_split(summary.config.get("model")):
        return []
    facts = "1 fact" if summary.num_retain == 1 else f"{summary.num_retain} facts"
    return [
        f"{facts} must not change (`split: retain`), but nothing in training kept them: add `RetainSplit` to "
        "`model.retain`."
    ]


def _names_no_retain_split(model: object) -> bool:
    """Whether the model's settings say what is retained, and this is not the set's own split."""
    settings = model.get("init_args", model) if isinstance(model, Mapping) else None
    if not isinstance(settings, Mapping) or "retain" not in settings:
        return False
    sources = [source.get("class_path", "") for source in settings["retain"] or () if isinstance(source, Mapping)]
    return all(source.rpartition(".")[2] != "RetainSplit" for source in sources)
