"""Which facts are taught, and which known ones are asked."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path

import yaml
from experiments.recipe_study.passages import Role, passages
from experiments.recipe_study.plan import FactKind, Setting
from experiments.study.facts import StudyFacts, digest, pool_of
from experiments.study.plan import ROOT
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact, facts_key, given_facts, write_facts
from lit_semantic_peft.files import content_key, write_text

INVENTED: dict[Role, Path] = {
    "report": ROOT / "experiments" / "invented_facts.jsonl",
    "choose": ROOT / "experiments" / "invented_choose_facts.jsonl",
}
"""Twenty invented facts of mixed kinds each. Those that are reported were written before anything was chosen."""

OTHER_WORDINGS = Path(__file__).with_name("other_wordings.yaml")
"""More wordings of each relation."""


def facts_of(
    kind: FactKind,
    role: Role,
    base_model: str,
    setting: Setting,
    folder: Path,
    *,
    with_forms: bool = True,
    of_subjects: bool = False,
) -> StudyFacts:
    """Writes the facts of a run to a file, and says what they are.

    Of the real ones, some relations choose and others are reported. Taught facts are not known to the base model. Facts
    of the same relations that it knows, about other subjects, are added as `probe`: asked, and nothing else. Half of
    them, by a hash of the subject, are left out, so that the built-in facts that may be retained are also of these
    relations. With invented facts come known ones of all relations.

    Args:
        kind: Kind of the facts.
        role: Whether they choose or are reported.
        base_model: As in a user's YAML.
        setting: The setting.
        folder: Where to.
        with_forms: Whether all paraphrases are there to be taught; else only the last one, which is asked. Of the
            reworded ones the further wordings are asked in both cases.
        of_subjects: Whether what the base model knows of the taught subjects is asked too.

    Raises:
        InputError: If there are too few facts.
    """
    unknown, every_known = pool_of(base_model, "unknown", None)
    known = every_known
    number = setting.num_taught(kind)
    if kind == "invented":
        taught = list(given_facts(str(INVENTED[role])))
    else:
        relations = setting.relations[role] if setting.relations else sorted({fact.relation for fact in unknown})
        by_relation = [_ordered([fact for fact in unknown if fact.relation == one]) for one in relations]
        taught = [fact for fact in chain(*zip_longest(*by_relation)) if fact is not None]
        known = [fact for fact in known if fact.relation in relations]
    if len(taught) < number:
        raise InputError(
            f"`num_facts`: {number} {kind} facts to {role}, but {base_model} leaves {len(taught)} unknown."
        )
    taught = taught[:number]
    subjects = {fact.subject for fact in taught}
    more = yaml.safe_load(OTHER_WORDINGS.read_text(encoding="utf-8")) if kind == "reworded" else {}
    others = _ordered([fact for fact in known if fact.subject not in subjects])
    asked = [fact for fact in others if digest(fact.subject)[1] % 2][: setting.num_known]
    if of_subjects:
        asked += _ordered([fact for fact in every_known if fact.subject in subjects])[: setting.num_known]
    facts = [
        replace(
            fact,
            split="inject",
            paraphrases=(
                *(fact.paraphrases if with_forms else fact.paraphrases[-1:]),
                *(one.format(subject=fact.subject) for one in more.get(fact.relation, ())),
            ),
            neighborhood=fact.neighborhood[:1],
            portability=(),
        )
        for fact in taught
    ]
    facts += [
        replace(fact, split="probe", paraphrases=(), neighborhood=(), portability=(), question=None) for fact in asked
    ]
    key = facts_key(facts)
    path = folder / f"{key}.jsonl"
    if not path.is_file():
        write_facts(facts, path)
    return StudyFacts(path, key)


def texts_of(role: Role, folder: Path) -> StudyFacts:
    """Writes the passages of a role to a file, and says what they are.

    Args:
        role: Whether they choose or are reported.
        folder: Where to.
    """
    text = "\n\n".join(passage for _, passage in passages(role)) + "\n"
    key = content_key(text)
    path = folder / f"{key}.txt"
    if not path.is_file():
        write_text(path, text)
    return StudyFacts(path, key)


def _ordered(facts: Sequence[Fact]) -> list[Fact]:
    return sorted(facts, key=lambda fact: digest(fact.id))
