"""The data contract: how a row becomes a fact, field by field."""

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, TypeGuard

from lit_semantic_peft.facts.reading import Place, Reading, Row, cut, described, listed, shown, unencodable
from lit_semantic_peft.facts.schema import SPLITS, Fact, Form, Probe, Split, apart, content_id
from lit_semantic_peft.facts.text import is_visible, parsed_texts

SPLIT_SYNONYMS: Mapping[str, Split] = {
    "train": "inject",
    "edit": "inject",
    "test": "probe",
    "val": "probe",
    "validation": "probe",
    "eval": "probe",
}
"""Names of splits in published sets, and the split of the contract that each one maps to."""

MOST_HOPS = 1_000
"""Facts that a question may have to put together."""

_TEXT_FIELDS = ("id", "subject", "relation", "prompt", "target", "joiner", "target_true", "question", "split", "source")
_LIST_FIELDS = ("aliases", "paraphrases")
_PROBE_FIELDS = ("neighborhood", "portability", "yes_no")
FIELDS: tuple[str, ...] = (*_TEXT_FIELDS, *_LIST_FIELDS, "forms", *_PROBE_FIELDS)
"""The fields of the contract."""

_TEXTS_EXPECTED = "a list of texts"
_PROBES_EXPECTED = 'a list of {"prompt": ..., "target": ...}'


def contract_facts(reading: Reading, rows: Iterable[Row]) -> dict[Place, Fact]:
    """Turns rows of the contract into facts. An invalid row is recorded as a problem, a repair as a note.

    Args:
        reading: Collects problems and notes.
        rows: The rows.

    Returns:
        The facts, by the location of their row.
    """
    facts: dict[Place, Fact] = {}
    first_with_id: dict[str, tuple[Place, bool]] = {}
    for row in rows:
        for name in _unknown_fields(row):
            near = near_field(name)
            what = f"did you mean `{near}`?" if near else "left out"
            if not near and name in row.fields:
                what += "; `convert --columns` can put it into another field"
            reading.note(row.place, f"unknown field `{name}`, {what}")
        given = {name: value for name, value in row.fields.items() if not _is_absent(name, value, row.cells)}
        fact = _RowChecker(reading, row.place, given, row.cells).fact()
        if fact is None:
            continue
        if row.location:
            fact = replace(fact, location=row.location)
        has_id = "id" in given
        if fact.id not in first_with_id:
            first_with_id[fact.id] = (row.place, has_id)
            facts[row.place] = fact
            continue
        earlier_place, earlier_has_id = first_with_id[fact.id]
        earlier = reading.short(earlier_place)
        if has_id or earlier_has_id:
            expected = "an id that no other fact has"
            reading.field_problem(row.place, "id", expected, f"{shown(fact.id)}, which {earlier} has as well")
        elif fact == facts[earlier_place]:
            reading.note(row.place, f"the same fact as in {earlier}, dropped")
        else:
            reading.problem(
                row.place,
                f"the same prompt and target as in {earlier}, but other fields differ. "
                "Merge the two, or give each an `id`.",
            )
    return facts


@lru_cache(maxsize=1024)
def near_field(name: str) -> str | None:
    """The contract's field that a name probably misspells; None if the name is a field, or similar to none.

    A name within a list is written as `neighborhood[].prompt`.
    """
    if name in FIELDS:
        return None
    place, nested, own = str(name).rpartition("[].")
    known = _fields_within(place) if nested else FIELDS
    near = difflib.get_close_matches(own.strip().lower(), known, 1, 0.8)
    return f"{place}{nested}{near[0]}" if near else None


@dataclass(frozen=True, slots=True)
class _RowChecker:
    """Checks the fields of one row; `row` holds only fields with a value (no nulls, no empty cells)."""

    reading: Reading
    place: Place
    row: Mapping[str, Any]
    cells: bool

    def fact(self) -> Fact | None:
        """The fact, or None if this row has a problem."""
        problems_before = len(self.reading.problems)
        prompt = self.text("prompt", required=True)
        target = self.text("target", required=True)
        if prompt != prompt.rstrip():
            self.reading.note(self.place, "white space at the end of `prompt`, stripped")
        if target != target.strip():
            self.reading.note(self.place, "white space around `target`, stripped")
        prompt, target = prompt.rstrip(), target.strip()
        joiner = self.joiner()
        conclusions, asked = apart(self.probes("portability"))
        if asked:
            self.reading.note(self.place, "a question of `portability` to be answered by yes or no, read as `yes_no`")
        fact = Fact(
            id=self.id() or content_id(prompt, target, joiner),
            prompt=prompt,
            target=target,
            subject=self.text("subject"),
            relation=self.text("relation"),
            aliases=self.others("aliases", target),
            joiner=joiner,
            target_true=self.text("target_true").strip() or None,
            paraphrases=self.others("paraphrases", prompt),
            forms=self.forms(),
            neighborhood=self.probes("neighborhood"),
            portability=conclusions,
            yes_no=(*asked, *self.yes_no()),
            question=self.text("question") or None,
            split=self.split(),
            source=self.text("source"),
            location=self.place.location,
        )
        return fact if len(self.reading.problems) == problems_before else None

    def problem(self, name: str, expected: str, got: str) -> None:
        self.reading.field_problem(self.place, name, expected, got)

    def text(self, name: str, required: bool = False) -> str:
        if name not in self.row:
            if required:
                fields = f"; this {self.place.unit} has {listed(map(str, self.row))}" if self.row else ""
                self.problem(name, "text", f"nothing{fields}")
            return ""
        value = self.row[name]
        if not self.is_text(name, "text", value):
            return ""
        if required and not is_visible(value):
            self.problem(
                name,
                "text that is not empty",
                f"{value!a}, which holds only invisible characters" if value.strip() else shown(value),
            )
        return str(value)

    def is_text(self, name: str, expected: str, value: Any) -> TypeGuard[str]:
        if not isinstance(value, str):
            self.problem(name, expected, described(value) + _as_text(value))
            return False
        wrong = unencodable(value)
        if wrong:
            self.problem(name, "text", wrong)
        return wrong is None

    def id(self) -> str:
        value = self.row.get("id")
        return str(value) if _is_number(value) else self.text("id").strip()

    def joiner(self) -> str:
        if "joiner" not in self.row:
            return " "
        joiner = self.text("joiner")
        return "" if self.cells and joiner == '""' else joiner

    def split(self) -> Split:
        name = self.text("split").strip()
        if not name:
            return "inject"
        if name in SPLIT_SYNONYMS:
            return SPLIT_SYNONYMS[name]
        for split in SPLITS:
            if name == split:
                return split
        synonyms = ", ".join(f"`{synonym}` for `{split}`" for synonym, split in SPLIT_SYNONYMS.items())
        self.problem("split", f"one of {listed(SPLITS)} ({synonyms})", shown(name))
        return "inject"

    def texts(self, name: str) -> tuple[str, ...]:
        if name not in self.row:
            return ()
        value = self.row[name]
        if self.cells:
            value = parsed_texts(value)
            if isinstance(value, str):
                if value.lstrip().startswith("["):
                    self.reading.note(
                        self.place, f"`{name}` begins with `[` and is no list of texts as JSON, read as text"
                    )
                value = [part for part in value.split("|") if part.strip()]
        items = self.items(name, _TEXTS_EXPECTED, value)
        if not all(self.is_text(f"{name}[{index}]", "text", item) for index, item in enumerate(items)):
            return ()
        for index, item in enumerate(items):
            if not item.strip():
                self.problem(f"{name}[{index}]", "text that is not empty", shown(item))
        return tuple(item.strip() for item in items)

    def others(self, name: str, own: str) -> tuple[str, ...]:
        """The texts of a list without repeats, and without the fact's own."""
        texts = self.texts(name)
        others = tuple(text for text in dict.fromkeys(texts) if text != own)
        if len(others) < len(texts):
            own_name = "prompt" if name == "paraphrases" else "target"
            self.reading.note(self.place, f"a text of `{name}` that repeats another or `{own_name}`, left out")
        return others

    def yes_no(self) -> tuple[Probe, ...]:
        probes = self.probes("yes_no")
        for index, probe in enumerate(probes):
            if probe not in apart([probe])[1]:
                self.problem(f"yes_no[{index}].target", "`Yes` or `No`", shown(probe.target))
        return probes

    def forms(self) -> tuple[Form, ...]:
        forms = []
        for place, item, parts in self.prompts_with_targets("forms"):
            joiner = self.joiner() if item.get("joiner") is None else item["joiner"]
            if self.is_text(f"{place}.joiner", "text", joiner):
                forms.append(Form(*parts, joiner))
        return tuple(forms)

    def probes(self, name: str) -> tuple[Probe, ...]:
        probes = []
        for place, item, parts in self.prompts_with_targets(name):
            hops = item.get("hops")
            needs = item.get("needs") or []
            trainable = False if item.get("trainable") is None else item["trainable"]
            if hops is not None and not (_is_number(hops) and 1 <= hops <= MOST_HOPS):
                self.problem(f"{place}.hops", f"a whole number from 1 to {MOST_HOPS:,}", described(hops))
            elif not isinstance(needs, list | tuple) or not all(
                isinstance(one, str) or _is_number(one) for one in needs
            ):
                self.problem(f"{place}.needs", "a list of ids", described(needs))
            elif not isinstance(trainable, bool):
                self.problem(f"{place}.trainable", "true or false", described(trainable))
            else:
                probes.append(Probe(*parts, hops or 1, tuple(map(str, needs)), trainable))
        return tuple(probes)

    def prompts_with_targets(self, name: str) -> Iterator[tuple[str, Mapping[str, Any], tuple[str, str]]]:
        """Place, object, and stripped prompt and target of each item of a list; what lacks one is a problem."""
        for index, item in enumerate(self.items(name, _PROBES_EXPECTED, self.row.get(name, []))):
            place = f"{name}[{index}]"
            if not isinstance(item, Mapping):
                self.problem(place, 'an object {"prompt": ..., "target": ...}', described(item))
                continue
            parts: dict[str, str] = {}
            for part in ("prompt", "target"):
                value: Any = item.get(part)
                if self.is_text(f"{place}.{part}", "text", value):
                    parts[part] = value.strip() if part == "target" else value.rstrip()
                    if not is_visible(parts[part]):
                        self.problem(f"{place}.{part}", "text that is not empty", shown(value))
            if len(parts) == 2:
                yield place, item, (parts["prompt"], parts["target"])

    def items(self, name: str, expected: str, value: Any) -> list[Any]:
        if self.cells and isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                self.problem(name, f"{expected} as JSON", shown(value))
                return []
        if isinstance(value, list | tuple):
            return list(value)
        is_one_text = isinstance(value, str) and expected == _TEXTS_EXPECTED
        remedy = f"; write `[{json.dumps(cut(value, 40), ensure_ascii=False)}]`" if is_one_text else ""
        self.problem(name, expected, described(value) + remedy)
        return []


def _unknown_fields(row: Row) -> Iterator[str]:
    """The names of the fields with a value that the contract does not have, also of those in probes."""
    for name, value in row.fields.items():
        if name in (*_PROBE_FIELDS, "forms") and isinstance(value, list):
            known = _fields_within(name)
            keys = dict.fromkeys(key for item in value if isinstance(item, Mapping) for key in item)
            yield from (f"{name}[].{key}" for key in keys if key not in known)
        elif name not in FIELDS and not _is_absent(name, value, row.cells):
            yield name


def _fields_within(name: str) -> list[str]:
    """The fields of the items of a list."""
    return [field.name for field in fields(Form if name == "forms" else Probe)]


def _is_number(value: Any) -> bool:
    """Whether it is a whole number. Published sets number their rows; a row number is as stable an id as a name."""
    return isinstance(value, int) and not isinstance(value, bool)


def _as_text(value: Any) -> str:
    """How to write a number as a text, which of two ways (`1.50`, `007`) only its author knows."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f'; write `"{value}"`' if is_number else ""


def _is_absent(name: str, value: Any, cells: bool) -> bool:
    if cells and value is not None:
        # A joiner of spaces is a value. An empty required cell gets the message about empty text.
        return not (value if name == "joiner" else value.strip()) and name not in ("prompt", "target")
    return value is None or (isinstance(value, float) and math.isnan(value))  # pandas writes NaN for a gap
