"""Which facts are taught: chosen by content, so that choosing, reporting, and sizes never depend on each other."""

import hashlib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from experiments.study.plan import Block, FactKind, Role, Setting, defaults
from jsonargparse import ArgumentParser
from lit_semantic_peft.data import KnowledgeDataModule
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact, Split, facts_key, write_facts

_SOURCES: dict[FactKind, str] = {"unknown": "world", "counterfactual": "counterfactual", "fictional": "fictional"}
_NUM_FICTIONAL = 4096


@dataclass(frozen=True)
class StudyFacts:
    """The facts of a run.

    Attributes:
        path: File of the facts.
        key: Content key.
    """

    path: Path
    key: str


def facts_of(block: Block, role: Role, setting: Setting, folder: Path) -> StudyFacts:
    """Writes the facts of a block's runs to a file, and says what they are.

    Facts about one subject either choose or are reported, by a hash of the subject. What is taught is not known to the
    base model; facts that it knows are added as `probe`: asked, never taught.

    Args:
        block: The block.
        role: Whether they choose or are reported.
        setting: The setting.
        folder: Where to.

    Raises:
        InputError: If there are too few facts.
    """
    unknown, known = pool_of(setting.base_model, block.facts, _num_candidates(block, setting))
    taught, asked = (
        sorted((fact for fact in pool if role_of(fact) == role), key=lambda fact: digest(fact.id))
        for pool in (unknown, known)
    )
    if len(taught) < block.num_facts:
        raise InputError(
            f"block {block.name!r} asks for {block.num_facts} facts to {role}; of the kind {block.facts!r} there are "
            f"{len(taught)} that {setting.base_model} does not know. Lower `num_facts`, or raise `max_candidates`."
        )
    facts = [
        _only(fact, "inject", num_neighbors=int(place < setting.num_neighbors))
        for place, fact in enumerate(taught[: block.num_facts])
    ]
    facts += [_only(fact, "probe", num_neighbors=0) for fact in asked[: setting.num_known_facts]]
    key = facts_key(facts)
    path = folder / f"{key}.jsonl"
    if not path.is_file():
        write_facts(facts, path)
    return StudyFacts(path, key)


@cache
def pool_of(base_model: str, kind: FactKind, num_candidates: int | None) -> tuple[list[Fact], list[Fact]]:
    """Facts that the base model does not know, and those that it says by itself.

    Args:
        base_model: As in a user's YAML.
        kind: Kind of the facts.
        num_candidates: How many facts of the set are looked at; None for all.
    """
    data = _data_module({"facts": _SOURCES[kind], "num_facts": num_candidates}, base_model)
    data.prepare_data()
    data.setup("score")
    prepared = data.prepared
    rows = list(zip(prepared.facts, prepared.scored.is_known.tolist(), strict=True))
    return [fact for fact, is_known in rows if not is_known], [fact for fact, is_known in rows if is_known]


def _data_module(config: dict[str, Any], base_model: str) -> KnowledgeDataModule:
    """With the settings that all runs have in common."""
    common = defaults()
    model = {**common["model"]["base_model"], "name": base_model}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(KnowledgeDataModule, "data")
    parsed = parser.parse_object({"data": {**common["data"], **config, "base_model": model}})
    data: KnowledgeDataModule = parser.instantiate_classes(parsed).data
    return data


def _num_candidates(block: Block, setting: Setting) -> int | None:
    return setting.max_candidates or (_NUM_FICTIONAL if block.facts == "fictional" else None)


def role_of(fact: Fact) -> Role:
    """Whether facts about its subject choose or are reported.

    Args:
        fact: The fact.
    """
    return "tune" if digest(fact.subject)[0] % 2 else "report"


def _only(fact: Fact, split: Split, num_neighbors: int) -> Fact:
    return replace(fact, split=split, neighborhood=fact.neighborhood[:num_neighbors], paraphrases=(), portability=())


def digest(text: str) -> bytes:
    """By which facts are ordered and divided.

    Args:
        text: Id or subject of a fact.
    """
    return hashlib.sha256(text.encode("utf-8")).digest()
