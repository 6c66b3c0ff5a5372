"""Reads facts: built-in sets, JSONL, CSV, Parquet, saved `datasets` folders and the Hub, into one contract."""

import csv
import difflib
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.builtin import BUILTIN, builtin_facts, choose
from lit_semantic_peft.facts.checks import find_contradictions
from lit_semantic_peft.facts.schema import SPLITS, Fact, FactSet, Probe, Split
from lit_semantic_peft.files import content_key

SUFFIXES: tuple[str, ...] = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")
"""Suffixes of the files that can be read."""

SPLIT_SYNONYMS: Mapping[str, Split] = {
    "train": "inject",
    "edit": "inject",
    "test": "probe",
    "val": "probe",
    "validation": "probe",
    "eval": "probe",
}
"""Names of splits in published sets, and what they mean here."""

_TEXT_FIELDS = ("id", "subject", "relation", "prompt", "target", "joiner", "target_true", "question", "split", "source")
_LIST_FIELDS = ("aliases", "paraphrases")
_PROBE_FIELDS = ("neighborhood", "portability")
_FIELDS = (*_TEXT_FIELDS, *_LIST_FIELDS, *_PROBE_FIELDS)
_PROBES_EXPECTED = 'a list of {"prompt": ..., "target": ...}'
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_MAX_PROBLEMS = 20
_MAX_SHOWN_CHARACTERS = 60
_KEY_DIGITS = 16

Row = tuple[int, Mapping[str, Any]]
"""A row's number, from 1, and its fields."""


def read_facts(
    source: str,
    *,
    num_facts: int | None = None,
    seed: int = 0,
    dataset_split: str = "train",
    contradictions: Literal["error", "keep"] = "error",
) -> FactSet:
    """Reads a set of facts and checks every field of every fact.

    Only `prompt` and `target` are required; null (an empty cell in CSV) means absent. A missing `id` becomes a hash
    of prompt, target and joiner. White space at the end of a prompt and around a target is stripped. The values
    `train` and `edit` of the field `split` mean `inject`; `test`, `val`, `validation` and `eval` mean `probe`.
    In CSV a list is JSON in its cell, or, for a list of texts, `a|b|c`; an empty joiner is JSON as well: a cell that
    holds two quotation marks. Fields that are not part of the contract are left out.

    Args:
        source: A built-in set (`world`, `counterfactual`, `fictional`), a file (`.jsonl`, `.jsonl.gz`, `.csv`,
            `.csv.gz`, `.parquet`), a folder written by `datasets.save_to_disk`, or a Hub name `owner/name`.
        num_facts: For `fictional`, how many facts to generate (None: 500). For every other source the size of a
            random subset, kept in the order of the file (None: all).
        seed: Seed of the generator or of the subset.
        dataset_split: Which split of a `datasets` folder or a Hub set to read.
        contradictions: What the same prompt with two targets means: `error`, or `keep` both with a warning.

    Returns:
        The facts, with warnings about what was repaired or ignored.

    Raises:
        InputError: If the source cannot be found or read, if any fact breaks the contract (all problems of the file
            are named with line and field, the first 20 shown), or if more facts are asked for than there are.

    Example:
        >>> facts = read_facts("fictional", num_facts=3, seed=1)
        >>> len(facts), facts.name, facts.facts[0].relation
        (3, 'fictional', 'capital')
    """
    if num_facts is not None and (isinstance(num_facts, bool) or not isinstance(num_facts, int) or num_facts < 1):
        raise InputError(f"`num_facts`: expected a whole number of at least 1, or null for all, got {num_facts!r}")
    if contradictions not in ("error", "keep"):
        raise InputError(f"`contradictions`: expected `error` or `keep`, got {contradictions!r}")
    if source in BUILTIN:
        return FactSet(tuple(builtin_facts(source, num_facts, seed)), name=source)

    reading, rows = _open(source, dataset_split)
    facts = _check_rows(reading, rows)
    _check_contradictions(reading, facts, contradictions)
    if reading.problems:
        raise InputError(reading.problem_report())
    if not facts:
        raise InputError(f"{source}: expected at least one fact, got an empty file")
    kept = list(facts.values())
    if num_facts is not None:
        kept = choose(kept, num_facts, seed, source)
    return FactSet(tuple(kept), reading.warnings(), _short_name(source))


@dataclass
class _Reading:
    """One pass over one source: what was wrong with it and what was repaired.

    Attributes:
        source: As the user gave it.
        unit: What a number counts: `line` in a text file, `row` elsewhere.
        cells: Whether values are CSV cells, where a list is text that must be parsed.
        problems: Row number and sentence.
        notes: For each sentence about a repair, the numbers of the rows that it is true of.
    """

    source: str
    unit: Literal["line", "row"]
    cells: bool = False
    problems: list[tuple[int, str]] = field(default_factory=list)
    notes: dict[str, list[int]] = field(default_factory=dict)

    def problem(self, number: int, sentence: str) -> None:
        self.problems.append((number, sentence))

    def field_problem(self, number: int, name: str, expected: str, got: str) -> None:
        self.problem(number, f"field `{name}`: expected {expected}, got {got}")

    def note(self, number: int, sentence: str) -> None:
        self.notes.setdefault(sentence, []).append(number)

    def location(self, number: int) -> str:
        return f"{self.source}:{number}" if self.unit == "line" else f"{self.source}:row {number}"

    def problem_report(self) -> str:
        in_order = sorted(self.problems, key=lambda problem: problem[0])
        lines = [f"{self.source}, {self.unit} {number}: {sentence}" for number, sentence in in_order[:_MAX_PROBLEMS]]
        if len(in_order) > _MAX_PROBLEMS:
            lines.append(f"... and {len(in_order) - _MAX_PROBLEMS} more")
        return "\n".join(lines)

    def warnings(self) -> tuple[str, ...]:
        return tuple(
            f"{self.source}: {sentence} ({self.unit} {numbers[0]}"
            + (f" and {len(numbers) - 1} more)" if len(numbers) > 1 else ")")
            for sentence, numbers in self.notes.items()
        )


# --- Where rows come from -------------------------------------------------------------------------------------------


def _open(source: str, dataset_split: str) -> tuple[_Reading, Iterator[Row]]:
    path = Path(source).expanduser()
    if path.is_dir():
        return _Reading(source, "row"), _saved_dataset_rows(source, path, dataset_split)
    if path.is_file():
        if path.name.endswith((".jsonl", ".jsonl.gz")):
            reading = _Reading(source, "line")
            return reading, _jsonl_rows(reading, _read_bytes(source, path))
        if path.name.endswith((".csv", ".csv.gz")):
            reading = _Reading(source, "line", cells=True)
            return reading, _csv_rows(reading, _read_bytes(source, path))
        if path.name.endswith(".parquet"):
            return _Reading(source, "row"), _parquet_rows(source, path)
        hint = " Write one JSON object a line and name the file `.jsonl`." if path.suffix == ".json" else ""
        raise InputError(f"{source}: expected a file that ends in {_listed(SUFFIXES)}, got {path.name!r}.{hint}")
    if _HUB_NAME.fullmatch(source) and not source.endswith(SUFFIXES) and not path.parent.is_dir():
        return _Reading(source, "row"), _hub_rows(source, dataset_split)
    raise InputError(_missing(source, path))


def _missing(source: str, path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=3)
    near_names = [str(path.parent / name) for name in near] + difflib.get_close_matches(source, BUILTIN, n=1)
    meant = f" Did you mean {_listed(near_names)}?" if near_names else ""
    if not path.parent.is_dir():
        meant += f" The folder {str(path.parent)!r} does not exist either."
    return (
        f"`facts`: expected a file, a folder of `datasets`, a Hub name `owner/name` or a built-in set "
        f"({_listed(BUILTIN)}), got {source!r}, which does not exist.{meant}"
    )


def _read_bytes(source: str, path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror or error}") from error
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except EOFError as error:
        raise InputError(
            f"{source}: expected a whole gzip file, got one that is cut short. Copy or download it again."
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"{source}: expected a gzip file, got something else or a broken one ({error}). "
            "Compress it again, or drop `.gz` from its name if it is plain text."
        ) from error


def _jsonl_rows(reading: _Reading, data: bytes) -> Iterator[Row]:
    # Split at \n only: JSON text may hold other characters that Python calls line ends.
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            reading.problem(number, _not_utf8(line, error))
            continue
        except json.JSONDecodeError as error:
            reading.problem(number, f"expected a JSON object, got broken JSON: {error.msg} at character {error.colno}")
            continue
        except RecursionError:
            reading.problem(number, "expected a JSON object, got JSON that is nested too deeply")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            reading.problem(
                number, f'expected a JSON object such as {{"prompt": ..., "target": ...}}, got {_shown(row)}'
            )


def _csv_rows(reading: _Reading, data: bytes) -> Iterator[Row]:
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        start_of_line = data.rfind(b"\n", 0, error.start) + 1
        reading.problem(number, _not_utf8(data[start_of_line:], error, start_of_line))
        return
    table = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    next_number = 1
    try:
        for cells in table:
            # A quoted cell may hold line ends: a row is named by the line on which it starts.
            number, next_number = next_number, table.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                if not _header_is_good(reading, number, header):
                    return
            elif len(cells) != len(header):
                reading.problem(number, f"expected {len(header)} cells as in the header, got {len(cells)}")
            else:
                yield number, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        reading.problem(next_number, f"expected CSV, got a row that cannot be parsed: {error}")


def _header_is_good(reading: _Reading, number: int, header: list[str]) -> bool:
    expected = "a header that names at least `prompt` and `target`"
    repeated = sorted({name for name in header if name and header.count(name) > 1})
    if repeated:
        reading.problem(
            number, f"expected a header that names each column once, got {_listed(repeated)} more than once"
        )
    elif "prompt" not in header or "target" not in header:
        whole = ",".join(header)
        hint = "Put a first line such as `prompt,target` above the facts."
        for separator, name in ((";", "semicolons"), ("\t", "tabs")):
            if {"prompt", "target"} <= {cell.strip() for cell in whole.split(separator)}:
                hint = f"The cells are separated by {name}: save the file with commas."
        reading.problem(number, f"expected {expected}, got {_shown(whole)}. {hint}")
    else:
        return True
    return False


def _parquet_rows(source: str, path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{source}: expected a Parquet file, got one that cannot be read: {error}") from error
    return _numbered(table.to_pylist())


def _saved_dataset_rows(source: str, path: Path, dataset_split: str) -> Iterator[Row]:
    if not (path / "dataset_dict.json").is_file() and not (path / "dataset_info.json").is_file():
        raise InputError(
            f"{source}: expected a folder written by `datasets.save_to_disk`, got one that holds neither "
            f"dataset_info.json nor dataset_dict.json. Name a file in it that ends in {_listed(SUFFIXES)}."
        )
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever a damaged folder makes `datasets` raise
        raise InputError(f"{source}: `datasets` cannot load this folder: {error}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if dataset_split not in loaded:
            raise InputError(
                f"`dataset_split`: expected one of {_listed(loaded)}, which {source} has, got {dataset_split!r}"
            )
        loaded = loaded[dataset_split]
    return _numbered(loaded)


def _hub_rows(source: str, dataset_split: str) -> Iterator[Row]:
    import datasets

    try:
        loaded = datasets.load_dataset(source, split=dataset_split)
    except Exception as error:  # network, name, rights, format: each raises its own class
        raise InputError(
            f"`facts`: {source!r} is neither a file here nor a built-in set ({_listed(BUILTIN)}), and loading it from "
            f"the Hub failed: {type(error).__name__}: {_cut(str(error), 300)}. Check the name and `dataset_split` "
            f"({dataset_split!r}). Without network: load it where there is one, write it with `save_to_disk`, and "
            "give that folder."
        ) from error
    return _numbered(loaded)


def _numbered(rows: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    return enumerate(rows, start=1)


# --- What a row must be ---------------------------------------------------------------------------------------------


def _check_rows(reading: _Reading, rows: Iterator[Row]) -> dict[int, Fact]:
    """Turns rows into facts, keyed by row number; what cannot become one is a problem, what is repaired a note."""
    facts: dict[int, Fact] = {}
    first_with_id: dict[str, tuple[int, bool]] = {}
    for number, raw in rows:
        for name in raw:
            near = [] if name in _FIELDS else difflib.get_close_matches(str(name).strip().lower(), _FIELDS, 1, 0.8)
            if near:
                reading.note(number, f"unknown field `{name}`, did you mean `{near[0]}`?")
        row = {name: value for name, value in raw.items() if not _is_absent(name, value, reading.cells)}
        fact = _RowChecker(reading, number, row).fact()
        if fact is None:
            continue
        has_id = "id" in row
        if fact.id not in first_with_id:
            first_with_id[fact.id] = (number, has_id)
            facts[number] = fact
            continue
        earlier_number, earlier_has_id = first_with_id[fact.id]
        earlier = f"{reading.unit} {earlier_number}"
        if has_id or earlier_has_id:
            expected = "an id that no other fact has"
            reading.field_problem(number, "id", expected, f"{_shown(fact.id)}, which {earlier} has as well")
        elif fact == facts[earlier_number]:
            reading.note(number, f"the same fact as in {earlier}, dropped")
        else:
            reading.problem(
                number,
                f"the same prompt and target as in {earlier}, but other fields differ. "
                "Merge the two, or give each an `id`.",
            )
    return facts


def _check_contradictions(reading: _Reading, facts: dict[int, Fact], contradictions: Literal["error", "keep"]) -> None:
    number_of = {fact.id: number for number, fact in facts.items()}
    for found in find_contradictions(list(facts.values())):
        first, second = found.first, found.second
        if contradictions == "keep":
            reading.note(number_of[second.id], "the same prompt as an earlier fact with another target, kept")
        else:
            reading.problem(
                number_of[second.id],
                f"field `target`: contradiction: after the same prompt {_shown(second.prompt)} "
                f"fact {first.id!r} ({reading.unit} {number_of[first.id]}) says {_shown(first.target)}, "
                f"fact {second.id!r} ({reading.unit} {number_of[second.id]}) says {_shown(second.target)}. "
                "Remove one, or list one target among the other's `aliases`.",
            )


@dataclass(frozen=True, slots=True)
class _RowChecker:
    """Checks the fields of one row; `row` holds only what is there (no nulls, no empty cells)."""

    reading: _Reading
    number: int
    row: Mapping[str, Any]

    def fact(self) -> Fact | None:
        """The fact, or None where a problem was found in this row."""
        problems_before = len(self.reading.problems)
        prompt = self.text("prompt", required=True)
        target = self.text("target", required=True)
        if prompt != prompt.rstrip():
            self.reading.note(self.number, "white space at the end of `prompt`, stripped")
        if target != target.strip():
            self.reading.note(self.number, "white space around `target`, stripped")
        prompt, target = prompt.rstrip(), target.strip()
        joiner = self.joiner()
        fact = Fact(
            id=self.id() or content_key(prompt, target, joiner)[:_KEY_DIGITS],
            prompt=prompt,
            target=target,
            subject=self.text("subject"),
            relation=self.text("relation"),
            aliases=self.texts("aliases"),
            joiner=joiner,
            target_true=self.text("target_true").strip() or None,
            paraphrases=self.texts("paraphrases"),
            neighborhood=self.probes("neighborhood"),
            portability=self.probes("portability"),
            question=self.text("question") or None,
            split=self.split(),
            source=self.text("source"),
            location=self.reading.location(self.number),
        )
        return fact if len(self.reading.problems) == problems_before else None

    def problem(self, name: str, expected: str, got: str) -> None:
        self.reading.field_problem(self.number, name, expected, got)

    def text(self, name: str, required: bool = False) -> str:
        if name not in self.row:
            if required:
                fields = f"; this {self.reading.unit} has {_listed(map(str, self.row))}" if self.row else ""
                self.problem(name, "text", f"nothing{fields}")
            return ""
        value = self.row[name]
        if not self.is_text(name, "text", value):
            return ""
        if required and not value.strip():
            self.problem(name, "text that is not empty", _shown(value))
        return str(value)

    def is_text(self, name: str, expected: str, value: Any) -> TypeGuard[str]:
        if not isinstance(value, str):
            self.problem(name, expected, _described(value))
            return False
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, which no file can hold
            self.problem(name, "text", f"{_shown(value)}, which holds half a character (a lone surrogate)")
            return False
        return True

    def id(self) -> str:
        value = self.row.get("id")
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)  # published sets number their rows; the number is as stable as a name
        return self.text("id").strip()

    def joiner(self) -> str:
        if "joiner" not in self.row:
            return " "
        joiner = self.text("joiner")
        return "" if self.reading.cells and joiner == '""' else joiner

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
        self.problem("split", f"one of {_listed(SPLITS)} ({synonyms})", _shown(name))
        return "inject"

    def texts(self, name: str) -> tuple[str, ...]:
        if name not in self.row:
            return ()
        value = self.row[name]
        if self.reading.cells and not value.lstrip().startswith("["):
            return tuple(part.strip() for part in value.split("|") if part.strip())
        items = self.items(name, "a list of texts", value)
        if not all(self.is_text(f"{name}[{index}]", "text", item) for index, item in enumerate(items)):
            return ()
        for index, item in enumerate(items):
            if not item.strip():
                self.problem(f"{name}[{index}]", "text that is not empty", _shown(item))
        return tuple(item.strip() for item in items)

    def probes(self, name: str) -> tuple[Probe, ...]:
        probes = []
        for index, item in enumerate(self.items(name, _PROBES_EXPECTED, self.row.get(name, []))):
            place = f"{name}[{index}]"
            if not isinstance(item, Mapping):
                self.problem(place, 'an object {"prompt": ..., "target": ...}', _described(item))
                continue
            parts: dict[str, str] = {}
            for part in ("prompt", "target"):
                value: Any = item.get(part)
                if self.is_text(f"{place}.{part}", "text", value):
                    parts[part] = value.strip() if part == "target" else value.rstrip()
                    if not parts[part]:
                        self.problem(f"{place}.{part}", "text that is not empty", _shown(value))
            hops = item.get("hops")
            if hops is not None and (isinstance(hops, bool) or not isinstance(hops, int) or hops < 1):
                self.problem(f"{place}.hops", "a whole number of at least 1", _described(hops))
            elif len(parts) == 2:
                probes.append(Probe(parts["prompt"], parts["target"], hops or 1))
        return tuple(probes)

    def items(self, name: str, expected: str, value: Any) -> list[Any]:
        if self.reading.cells and isinstance(value, str):
            try:
                value = json.loads(value)
            except (json.JSONDecodeError, RecursionError):
                self.problem(name, f"{expected} as JSON", _shown(value))
                return []
        if isinstance(value, list | tuple):
            return list(value)
        self.problem(name, expected, _described(value))
        return []


def _is_absent(name: str, value: Any, cells: bool) -> bool:
    if cells:
        # A joiner of blanks is a joiner; a required cell that is empty gets the message about empty text.
        return not (value if name == "joiner" else value.strip()) and name not in ("prompt", "target")
    return value is None or (isinstance(value, float) and math.isnan(value))  # pandas writes NaN for a gap


# --- How things are called in messages ------------------------------------------------------------------------------


def _described(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case str():
            return f"the text {_shown(value)}"
        case int() | float():
            return f"the number {value}"
        case list() | tuple():
            return f"a list of {len(value)}"
        case Mapping():
            return "an object"
        case _:
            return f"a value of type {type(value).__name__}"


def _shown(value: Any) -> str:
    return _cut(repr(value), _MAX_SHOWN_CHARACTERS)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "nothing"


def _not_utf8(line: bytes, error: UnicodeDecodeError, start_of_line: int = 0) -> str:
    position = error.start - start_of_line
    return f"expected UTF-8, got the byte 0x{line[position]:02x} at position {position + 1}. Save the file as UTF-8."


def _short_name(source: str) -> str:
    name = Path(source).name
    return next(
        (name.removesuffix(suffix) for suffix in sorted(SUFFIXES, key=len)[::-1] if name.endswith(suffix)), name
    )
