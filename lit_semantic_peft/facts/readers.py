"""Reads facts: built-in sets, files, folders and the Hub, in the contract or in a published format."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Literal, TypeVar

from tqdm.auto import tqdm

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import opened
from lit_semantic_peft.facts.builtin import BUILTIN, builtin_facts, choose
from lit_semantic_peft.facts.checks import find_contradictions
from lit_semantic_peft.facts.columns import ColumnMap, renamed_fields, tidy, with_names
from lit_semantic_peft.facts.containers import Table, open_source, short_name
from lit_semantic_peft.facts.contract import FIELDS, contract_facts, near_field
from lit_semantic_peft.facts.formats import (
    FORMATS,
    Dropped,
    FieldError,
    Format,
    Noted,
    Record,
    are_templates,
    recognise,
    templates_of,
    why_unread,
)
from lit_semantic_peft.facts.in_memory import IN_MEMORY, GivenFacts, held_facts, names_of
from lit_semantic_peft.facts.libraries import DEFAULT_DATASET_SPLIT, require_default_split
from lit_semantic_peft.facts.reading import Place, Reading, Row, listed, shown
from lit_semantic_peft.facts.schema import Conversion, Fact, FactSet, Omission, content_id
from lit_semantic_peft.facts.text import composed

CONTRACT = "contract"
"""The name of the format that needs no conversion."""

FORMAT_NAMES: tuple[str, ...] = (CONTRACT, *FORMATS)
"""What `format` may be."""

_NUM_ROWS_TO_RECOGNISE = 20

Contradictions = Literal["error", "keep"]
_Item = TypeVar("_Item")


def read_facts(
    source: GivenFacts,
    *,
    num_facts: int | None = None,
    seed: int = 0,
    dataset_split: str = DEFAULT_DATASET_SPLIT,
    contradictions: Contradictions = "error",
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    show_progress: bool = False,
) -> FactSet:
    """Reads a set of facts and checks every field of every fact.

    The contract: only `prompt` and `target` are required; null (an empty cell in CSV) means absent. A missing `id`
    becomes a hash of prompt, target and joiner. White space at the end of a prompt and around a target is stripped, and
    letters with accents are composed (NFC). Capitals and blanks in names of fields are forgiven.
    The values `train` and `edit` of the field `split` mean `inject`; `test`, `val`, `validation` and `eval` mean
    `probe`. In CSV a list is JSON in its cell, or, for a list of texts, `a|b|c`. An empty joiner is JSON as well: a
    cell that holds two quotation marks. Fields outside the contract are left out and named with their number.
    Questions that need a fact that was not read are left out, too.

    A published format (`FORMATS`) is recognised by its fields. A malformed record is an error. A field or record that
    the contract has no place for, or that has no answer, is left out and counted in the set's `conversion`. If a fact
    repeats an earlier one, its probes are added to the earlier one. A fact with the prompt of an earlier one but
    another target is left out.

    Args:
        source: A built-in set (`world`, `counterfactual`, `fictional`), a file (its suffix is one of `SUFFIXES`), a
            folder written by `datasets.save_to_disk`, a folder of such files, a Hub name `owner/name`, or several.
            Or what is in memory: what this function returned, a list of `Fact` or of records (dictionaries), a data
            frame of pandas, a data set of `datasets`.
        num_facts: For `fictional`, how many facts to generate (None: 500). For every other source the size of a
            random subset, kept in the order of the file (None: all).
        seed: Seed of the generator or of the subset.
        dataset_split: Which split of a `datasets` folder, a Hub set or a `DatasetDict` to read.
        contradictions: How to treat two targets of the same prompt: `error` (in a published format the second is
            left out), or `keep` both with a warning.
        format: A name of `FORMAT_NAMES`; None recognises the format by its fields.
        columns: Which fields of the source become which of the contract, as `ColumnMap` takes it; then the format is
            the contract.
        skip_bad: Whether a record that cannot be read is left out with a warning, instead of refused.
        show_progress: Whether to show a progress bar on a terminal if reading takes longer than a second.

    Returns:
        The facts, with warnings about what was repaired or ignored.

    Raises:
        InputError: If the source cannot be found or read, if its format is unknown, if a record violates the contract
            or its format (the message lists file, record and field of the first 20 problems), or if there are fewer
            facts than asked for.

    Example:
        >>> facts = read_facts("fictional", num_facts=3, seed=1)
        >>> len(facts), facts.name, facts.facts[0].relation
        (3, 'fictional', 'capital')
    """
    if num_facts is not None and (isinstance(num_facts, bool) or not isinstance(num_facts, int) or num_facts < 1):
        raise InputError(f"`num_facts`: expected a whole number of at least 1, or null for all, got {num_facts!r}")
    if contradictions not in ("error", "keep"):
        raise InputError(f"`contradictions`: expected `error` or `keep`, got {contradictions!r}")
    if format is not None and format not in FORMAT_NAMES:
        raise InputError(f"`format`: expected one of {listed(FORMAT_NAMES)}, got {format!r}")
    column_map = ColumnMap(columns) if columns else None
    sources = names_of(source)
    if sources is not None and len(sources) == 1 and sources[0] in BUILTIN:
        require_default_split(sources[0], dataset_split)
        return FactSet.checked(builtin_facts(sources[0], num_facts, seed), name=sources[0])
    if isinstance(source, FactSet) and source.is_checked and column_map is None:
        require_default_split(f"`{IN_MEMORY}`", dataset_split)
        return _read_again(source, num_facts, seed, contradictions)

    name = IN_MEMORY if sources is None else ", ".join(sources)
    reading = Reading(name, goes_on=skip_bad)
    if sources is None:
        held = held_facts(source, dataset_split)
        tables, format = [held.table], CONTRACT if held.has_facts else format
    else:
        check = _header_problem if format is None and column_map is None else lambda header: None
        tables = [table for one in sources for table in open_source(one, dataset_split, check)]
    as_written = column_map.taken if column_map else frozenset()
    chosen, rows, templates = _one_format(reading, tables, CONTRACT if column_map else format, as_written)
    if column_map is not None:
        rows = column_map.apply(reading, rows)
    counted = tqdm(rows, "Reading", unit=" records", unit_scale=True, delay=1, disable=None if show_progress else True)
    conversion = None
    if chosen is None:
        by_place = contract_facts(reading, counted)
        _check_contradictions(reading, by_place, contradictions)
        bad = {place for place, _ in reading.problems}
        facts = [fact for place, fact in by_place.items() if place not in bad]
    else:
        facts, conversion = _published_facts(reading, counted, chosen, templates, contradictions)
    if reading.problems and (not skip_bad or reading.has_stopped):
        raise InputError(reading.problem_report())
    if not facts:
        raise InputError(f"{name}: expected at least one fact, got {_nothing(reading, conversion, templates)}")
    if num_facts is not None:
        facts = choose(facts, num_facts, seed, name)
    facts, poorer = _answerable(facts)
    warnings = reading.warnings()
    if reading.problems:
        number = len(reading.problems)
        what = "1 problem, its record left out" if number == 1 else f"{number} problems, their records left out"
        warnings += (f"{name}: {what}:\n{reading.problem_report()}",)
    warnings += _less_asked(name, poorer)
    if isinstance(source, FactSet):
        return FactSet.checked(facts, source.warnings + warnings, source.name, source.conversion)
    return FactSet.checked(facts, warnings, ", ".join(map(short_name, sources or [])), conversion)


def _read_again(source: FactSet, num_facts: int | None, seed: int, contradictions: Contradictions) -> FactSet:
    """A set that this module returned: of its checks, only that of contradictions may have been laxer."""
    if contradictions == "error":
        reading = Reading(IN_MEMORY)
        by_place = {Place(IN_MEMORY, number, "record"): fact for number, fact in enumerate(source.facts, start=1)}
        _check_contradictions(reading, by_place, contradictions)
        if reading.problems:
            raise InputError(reading.problem_report())
    facts = list(source.facts) if num_facts is None else choose(source.facts, num_facts, seed, IN_MEMORY)
    facts, poorer = _answerable(facts)
    return FactSet.checked(facts, source.warnings + _less_asked(IN_MEMORY, poorer), source.name, source.conversion)


def _less_asked(source: str, poorer: Sequence[Fact]) -> tuple[str, ...]:
    """The warning of what `_answerable` left out."""
    if not poorer:
        return ()
    more = f" and {len(poorer) - 1} more" if len(poorer) > 1 else ""
    sentence = "a question that needs a fact which is not among those read, left out"
    return (f"{source}: {sentence} ({poorer[0].location}{more})",)


def _answerable(facts: Iterable[Fact]) -> tuple[list[Fact], list[Fact]]:
    """The facts without the probes that need a missing fact, and those facts that had such probes."""
    facts = list(facts)
    poorer: list[Fact] = []
    ids = {fact.id for fact in facts}
    for index, fact in enumerate(facts):
        answerable = tuple(probe for probe in fact.portability if ids.issuperset(probe.needs))
        if len(answerable) < len(fact.portability):
            facts[index] = replace(fact, portability=answerable)
            poorer.append(facts[index])
    return facts, poorer


def _nothing(reading: Reading, conversion: Conversion | None, templates: Mapping[str, list[str]]) -> str:
    if reading.problems:
        return f"none that can be read:\n{reading.problem_report()}"
    if conversion is None or not conversion.num_records:
        if templates:
            return "patterns of LAMA or ParaRel alone; name the folder or the files that hold the triples as well"
        return "no record" if reading.source == IN_MEMORY else "a file without records"
    reasons = "; ".join(f"{one.reason} ({one.count})" for one in conversion.omissions if one.part == "record")
    return f"{conversion.num_records} records of {conversion.format} that give none: {reasons}"


# --- Which format ---------------------------------------------------------------------------------------------------


def _header_problem(header: list[str]) -> str | None:
    if _is_header(header):
        return None
    return (
        "expected a header that names at least `prompt` and `target`, or the fields of a published format "
        f"({listed(FORMATS)}), got {listed(header)}. Put a first line such as `prompt,target` above the facts."
    )


def _is_header(names: Collection[str]) -> bool:
    return any(
        {"prompt", "target"} <= set(known) or recognise(known) is not None or are_templates(frozenset(known))
        for known in (names, list(map(tidy, names)))
    )


def _one_format(
    reading: Reading, tables: Iterable[Table], forced: str | None, as_written: Collection[str]
) -> tuple[Format | None, Iterator[Row], dict[str, list[str]]]:
    """The format of all tables (None: the contract), their rows one after the other, and the templates in them.

    Fields that are `as_written` keep their names, however near they are to one of the contract.
    """
    templates: dict[str, list[str]] = {}
    found: dict[str, tuple[Format | None, str]] = {}
    streams: list[Iterator[Row]] = []
    for table in tables:
        peek = Reading(reading.source)
        first = list(islice(table.rows(peek), _NUM_ROWS_TO_RECOGNISE))
        if not first:
            reading.problems += peek.problems
            reading.has_stopped |= peek.has_stopped
            continue
        names = dict.fromkeys(str(name) for row in first for name in row.fields)
        renamed = {name: meant for name, meant in renamed_fields(names).items() if name not in as_written}
        names = dict.fromkeys(renamed.get(name, name) for name in names)
        rows = with_names(reading, table.rows(reading), renamed) if renamed else table.rows(reading)
        if recognise(names) is None and are_templates(frozenset(names)) and forced in (None, "triples"):
            _collect_templates(reading, rows, templates)
            continue
        name = forced or _format_name(peek, table.file, names)
        found.setdefault(name, (FORMATS.get(name), table.file))
        streams.append(rows)
    if len(found) > 1:
        both = ", ".join(f"{name} in {file}" for name, (_, file) in found.items())
        raise InputError(f"{reading.source}: expected files of one format, got {both}. Name the files of one of them.")
    chosen = next(iter(found.values()))[0] if found else None
    return chosen, _composed(reading, chain.from_iterable(streams)), templates


def _composed(reading: Reading, rows: Iterable[Row]) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        if number > opened.MOST_RECORDS:
            raise InputError(
                f"{row.place}: expected at most {opened.MOST_RECORDS:,} records in all, got more. Split the "
                "source, or read a part of it (of a dataset `dataset_split: 'train[:1000000]'`)."
            )
        try:
            fields = composed(row.fields)
        except RecursionError:
            reading.problem(row.place, "expected a record, got one that is nested too deeply")
            continue
        if fields != row.fields:
            reading.note(row.place, "letters with separate accents, read as composed ones (Unicode NFC)")
        yield replace(row, fields=fields)


def _format_name(peek: Reading, file: str, names: Collection[str]) -> str:
    known = recognise(names)
    if {"prompt", "target"} <= set(names):
        return CONTRACT
    if known is not None:
        return known.name
    if all(name in FIELDS or near_field(name) for name in names):
        return CONTRACT  # the checks of the fields report which one is missing
    if peek.problems:
        raise InputError(peek.problem_report())
    raise InputError(
        f"{file}: expected facts with the fields `prompt` and `target`, or one of the published formats "
        f"({listed(FORMATS)}), got records with the fields {listed(names)}. {why_unread(names)}"
        "Rename the fields, map them by `convert --columns`, or name the format if it is one of these."
    )


def _collect_templates(reading: Reading, rows: Iterable[Row], templates: dict[str, list[str]]) -> None:
    for row in rows:
        try:
            relation, template = templates_of(Record(row.fields, row.place.file))
        except FieldError as error:
            reading.field_problem(row.place, error.name, error.expected, error.got)
        else:
            templates.setdefault(relation, []).append(template)


# --- Published formats ----------------------------------------------------------------------------------------------


@dataclass
class _Converted:
    """The facts collected from a published format, and what was left out.

    Attributes:
        facts: By prompt, target and joiner.
        places: Location of each fact's record, by the fact's id.
        omissions: Number and first location of what was left out, by part and reason.
        num_merged: Facts that were merged into an earlier one.
    """

    facts: dict[tuple[str, str, str], Fact] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    first: dict[tuple[str, str], str] = field(default_factory=dict)
    num_merged: int = 0

    def leave_out(self, dropped: Dropped, location: str) -> None:
        key = (dropped.part, dropped.reason)
        self.counts[key] += 1
        self.first.setdefault(key, location)

    def add(self, fact: Fact, place: Place) -> None:
        key = (fact.prompt, fact.target, fact.joiner)
        if key in self.facts:
            self.facts[key] = _merged(self.facts[key], fact)
            self.num_merged += 1
            return
        if fact.id in self.places:  # two files of a benchmark may number their records alike
            fact = replace(fact, id=content_id(*key))
        self.facts[key] = replace(fact, location=place.location)
        self.places[fact.id] = place

    def omissions(self) -> tuple[Omission, ...]:
        in_order = sorted(self.counts.items(), key=lambda item: (item[0][0] != "record", -item[1], item[0]))
        return tuple(Omission(*key, count, self.first[key]) for key, count in in_order)


def _merged(first: Fact, second: Fact) -> Fact:
    return replace(
        first,
        aliases=_united(first.aliases, second.aliases),
        paraphrases=_united(first.paraphrases, second.paraphrases),
        neighborhood=_united(first.neighborhood, second.neighborhood),
        portability=_united(first.portability, second.portability),
        yes_no=_united(first.yes_no, second.yes_no),
    )


def _united(first: tuple[_Item, ...], second: tuple[_Item, ...]) -> tuple[_Item, ...]:
    return tuple(dict.fromkeys((*first, *second)))


def _published_facts(
    reading: Reading,
    rows: Iterable[Row],
    chosen: Format,
    templates: dict[str, list[str]],
    contradictions: Contradictions,
) -> tuple[list[Fact], Conversion]:
    converted = _Converted()
    num_records = 0
    for row in rows:
        num_records += 1
        try:
            outcomes = chosen.outcomes(Record(row.fields, row.place.file, templates, cells=row.cells))
        except FieldError as error:
            reading.field_problem(row.place, error.name, error.expected, error.got)
            continue
        seen: set[Dropped] = set()
        for outcome in outcomes:
            if isinstance(outcome, Fact):
                converted.add(outcome, row.place)
            elif isinstance(outcome, Noted):
                reading.note(row.place, outcome.sentence)
            elif outcome not in seen:  # one record counts once
                converted.leave_out(outcome, row.place.location)
                seen.add(outcome)
    facts = _consistent(reading, converted, contradictions)
    return facts, Conversion(chosen.title, num_records, converted.num_merged, converted.omissions())


def _consistent(reading: Reading, converted: _Converted, contradictions: Contradictions) -> list[Fact]:
    """The facts without those that contradict an earlier one, and without the probes that need such a fact."""
    facts = list(converted.facts.values())
    later = {found.second.id: found for found in find_contradictions(facts)}
    if contradictions == "keep":
        for fact_id in later:
            reading.note(converted.places[fact_id], "the same prompt as an earlier fact with another target, kept")
        later = {}
    for fact_id in later:
        reason = "another answer to the prompt of an earlier record"
        converted.leave_out(Dropped(reason), converted.places[fact_id].location)
    kept, poorer = _answerable(fact for fact in facts if fact.id not in later)
    for fact in poorer:
        converted.leave_out(Dropped("it needs a fact that was left out", "portability"), fact.location)
    return kept


# --- The contract ---------------------------------------------------------------------------------------------------


def _check_contradictions(reading: Reading, facts: dict[Place, Fact], contradictions: Contradictions) -> None:
    place_of = {fact.id: place for place, fact in facts.items()}
    for found in find_contradictions(list(facts.values())):
        first, second = found.first, found.second
        first_place, second_place = reading.short(place_of[first.id]), reading.short(place_of[second.id])
        if contradictions == "keep":
            reading.note(place_of[second.id], "the same prompt as an earlier fact with another target, kept")
        else:
            reading.problem(
                place_of[second.id],
                f"field `target`: contradiction: for the same prompt {shown(found.second_form.prompt)} "
                f"fact {first.id!r} ({first_place}) has the target {shown(found.first_form.target)}, "
                f"fact {second.id!r} ({second_place}) has {shown(found.second_form.target)}. "
                "Remove one, or list one target among the other's `aliases`.",
            )
