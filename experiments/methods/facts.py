"""Which facts are taught, and which known ones are asked."""

from dataclasses import replace
from pathlib import Path

from experiments.methods.plan import Role, Setting
from experiments.study.facts import StudyFacts, digest, pool_of, role_of
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import facts_key, write_facts
from lit_semantic_peft.models import BaseModel


def facts_of(role: Role, setting: Setting, folder: Path) -> tuple[StudyFacts, list[int]]:
    """Writes the facts of a role to a file, and says what they are.

    Taught are facts of `world` that the base model does not know, each with one paraphrase, which is asked and never
    taught. Facts that it knows, about other subjects, are added as `probe`. Facts about one subject either look for a
    learning rate or are reported.

    Args:
        role: Whether they look for a learning rate or are reported.
        setting: The setting.
        folder: Where to.

    Returns:
        The file, and the ids of the tokens that name the taught subjects, ascending.

    Raises:
        InputError: If there are too few facts.
    """
    its_role = {"choose": "tune", "report": "report"}[role]
    unknown, known = (
        sorted((fact for fact in pool if role_of(fact) == its_role), key=lambda fact: digest(fact.id))
        for pool in pool_of(setting.base_model, "unknown", None)
    )
    number = setting.num_facts[role]
    if len(unknown) < number:
        raise InputError(
            f"`num_facts`: {number} facts to {role}, but {setting.base_model} leaves {len(unknown)} unknown"
        )
    bare = {"neighborhood": (), "portability": (), "question": None}
    taught = [replace(fact, split="inject", paraphrases=fact.paraphrases[-1:], **bare) for fact in unknown[:number]]
    subjects = {fact.subject for fact in taught}
    asked = [fact for fact in known if fact.subject not in subjects][: setting.num_known]
    facts = [*taught, *(replace(fact, split="probe", paraphrases=(), **bare) for fact in asked)]
    key = facts_key(facts)
    path = folder / f"{key}.jsonl"
    if not path.is_file():
        write_facts(facts, path)
    tokenizer = BaseModel(setting.base_model).load_tokenizer()
    names = [f" {subject}" for subject in sorted(filter(None, subjects))]
    return StudyFacts(path, key), sorted({token for ids in tokenizer(names)["input_ids"] for token in ids})
