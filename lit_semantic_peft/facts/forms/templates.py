"""Templates of relations: sentences with {subject} and {target} that state any fact of a relation."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.reading import shown
from lit_semantic_peft.facts.schema import Fact, Form
from lit_semantic_peft.files import read_text
from lit_semantic_peft.yaml_text import parsed_yaml

SUBJECT, TARGET = "{subject}", "{target}"
_ENDING = re.compile(r"(\s*)(\{subject\}|\{target\})[.!]?\s*$")
_BUILTIN_FILE = Path(__file__).parent / "templates.yaml"


@dataclass(frozen=True, slots=True)
class Template:
    """A sentence that states a fact of a relation, cut before the part that is to be answered.

    Attributes:
        prompt: Text before the answer, with the placeholder of the other part.
        joiner: White space between prompt and answer.
        is_reversed: Whether the answer is the subject.
    """

    prompt: str
    joiner: str
    is_reversed: bool

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Reads a template.

        Args:
            text: A sentence with {subject} and {target}, each once, one of them at its end.

        Raises:
            ValueError: With what is wrong, if it is not such a sentence.
        """
        ending = _ENDING.search(text)
        if text.count(SUBJECT) != 1 or text.count(TARGET) != 1 or ending is None:
            raise ValueError(f"expected a sentence with {SUBJECT} and {TARGET}, one of them at its end")
        if not text[: ending.start()].strip():
            raise ValueError("expected text before the placeholder at its end")
        return cls(text[: ending.start()], ending[1], ending[2] == SUBJECT)

    def form(self, fact: Fact) -> Form:
        """The fact in this template.

        Args:
            fact: With a subject.
        """
        subject = _with_article(fact)
        prompt = self.prompt.replace(SUBJECT, subject).replace(TARGET, fact.target)
        answer = subject if self.is_reversed else fact.target
        return Form(prompt[:1].upper() + prompt[1:], answer, self.joiner)


TemplatesByRelation = Mapping[str, Sequence[Template]]
"""Templates by relation."""


def builtin_templates(name: str) -> TemplatesByRelation:
    """The templates of a built-in set; none for any other name.

    Args:
        name: Name of the set.
    """
    return _of_builtin().get(name, {})


def read_templates(file: str | os.PathLike[str]) -> TemplatesByRelation:
    """Reads templates of a user.

    Args:
        file: YAML with a list of templates for each relation, or JSONL with `relation` and `template` in each line.

    Raises:
        InputError: If the file cannot be read or a template cannot be used; names the file, the relation or line, and
            what was expected.
    """
    name = os.fspath(file)
    text = read_text(name, "`templates`")
    found: dict[str, list[Template]] = {}
    rows = _jsonl_rows(name, text) if name.endswith(".jsonl") else _yaml_rows(name, text)
    for place, relation, template in rows:
        try:
            found.setdefault(relation, []).append(Template.parse(template))
        except ValueError as error:
            raise InputError(f"{place}: {error}, got {shown(template)}") from error
    if not found:
        raise InputError(f"`templates`: {file} holds no template")
    return found


def relations_without(templates: TemplatesByRelation, facts: Sequence[Fact]) -> dict[str, int]:
    """The relations that have no template, and how many of the facts are of each.

    Args:
        templates: The templates.
        facts: The facts; those without a relation count under "".
    """
    missing: dict[str, int] = {}
    for fact in facts:
        if fact.relation not in templates:
            missing[fact.relation] = missing.get(fact.relation, 0) + 1
    return missing


def _jsonl_rows(file: str, text: str) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            row = None
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("relation", "template")):
            raise InputError(f'{place}: expected {{"relation": ..., "template": ...}}, got {shown(line)}')
        yield place, row["relation"], row["template"]


def _yaml_rows(file: str, text: str) -> Iterator[tuple[str, str, str]]:
    content = parsed_yaml(text, file)
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a list of templates for each relation, got {shown(text)}")
    for relation, templates in content.items():
        place = f"{file}: relation {str(relation)!r}"
        if not isinstance(templates, list) or not all(isinstance(one, str) for one in templates):
            raise InputError(f"{place}: expected a list of texts, got {shown(str(templates))}")
        for template in templates:
            yield place, str(relation), template


@lru_cache(maxsize=1)
def _of_builtin() -> dict[str, dict[str, list[Template]]]:
    sets = yaml.safe_load(_BUILTIN_FILE.read_text(encoding="utf-8"))
    return {
        name: {relation: [Template.parse(text) for text in texts] for relation, texts in relations.items()}
        for name, relations in sets.items()
    }


def _with_article(fact: Fact) -> str:
    """The subject with the article that the fact's own prompt gives it: `the Gambia`."""
    has_article = re.search(rf"\bthe {re.escape(fact.subject)}(?!\w)", fact.prompt, re.IGNORECASE)
    return f"the {fact.subject}" if has_article else fact.subject
