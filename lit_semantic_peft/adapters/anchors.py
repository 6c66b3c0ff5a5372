"""The knowledge anchors of a text: which taught names it has, found by the tokens that a model gets."""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from lit_semantic_peft.adapters.subjects import SubjectTable
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.text import folded
from lit_semantic_peft.files import write_json, write_text

ANCHORS_FILE, TOKENIZER_FILE = "anchors.json", "tokenizer.json"
"""Beside an adapter that is routed by anchors: the names, and the tokenizer that turns tokens into text."""

_REMEMBERED = 20_000  # names whose tokens are kept, and texts whose names are


@dataclass(frozen=True, eq=False)
class Anchors:
    """The names that a router knows, and the tokenizer of the base model.

    A name is found as by `SubjectTable`, of names within one another the longest only: "New York", not "York".

    Args:
        table: The names.
        tokenizer: The base model's, of the library `tokenizers`.
        same_as: The subject that each alias stands for; an alias has the anchor of its subject.
        least_similarity: Least cosine with which a text that has no name has one all the same (`most_similar`); None
            for never.
    """

    table: SubjectTable
    tokenizer: Tokenizer
    same_as: Mapping[str, str] = field(default_factory=dict)
    least_similarity: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "_of_ids", lru_cache(_REMEMBERED)(self._find))
        object.__setattr__(self, "_named_of", lru_cache(_REMEMBERED)(self._mark))
        object.__setattr__(self, "_ids_of", lru_cache(_REMEMBERED)(self._encode))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.table, self.tokenizer, self.same_as, self.least_similarity)

    @classmethod
    def of(
        cls,
        table: SubjectTable,
        tokenizer: PreTrainedTokenizerBase,
        same_as: Mapping[str, str] | None = None,
        least_similarity: float | None = None,
    ) -> "Anchors":
        """The anchors of a table.

        Args:
            table: The names.
            tokenizer: The base model's.
            same_as: The subject of each alias.
            least_similarity: As in the class.

        Raises:
            InputError: If the tokenizer is none of the library `tokenizers`, so that it cannot be saved as one file.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise InputError(
                f"`peft_config`: the base model's tokenizer is a {type(tokenizer).__name__}, which is saved as no "
                "tokenizer.json. Experts find the names of a prompt by its tokens, and need a fast tokenizer."
            )
        own = Tokenizer.from_str(backend.to_str())
        own.no_padding()
        own.no_truncation()
        return cls(table, own, dict(same_as or {}), least_similarity)

    def of_tokens(self, ids: Sequence[int]) -> tuple[str, ...]:
        """The subjects (or other names) that a text has, each once.

        Args:
            ids: Its token ids, without padding.
        """
        found: tuple[str, ...] = self._of_ids(tuple(ids))  # type: ignore[attr-defined]
        return found

    def named_tokens(self, ids: Sequence[int]) -> tuple[bool, ...]:
        """Which tokens of a text belong, whole or in part, to one of the names.

        Args:
            ids: Its token ids, without padding.
        """
        found: tuple[bool, ...] = self._named_of(tuple(ids))  # type: ignore[attr-defined]
        return found

    def tokens_of(self, name: str) -> tuple[int, ...]:
        """Token ids of a name as it stands within a text.

        Args:
            name: The name.
        """
        ids: tuple[int, ...] = self._ids_of(name)  # type: ignore[attr-defined]
        return ids

    def write(self, folder: str | Path) -> None:
        """Writes the names and the tokenizer into an adapter's folder.

        Args:
            folder: The folder.
        """
        write_json(Path(folder) / ANCHORS_FILE, self.to_json())
        write_text(Path(folder) / TOKENIZER_FILE, self.tokenizer.to_str())

    def to_json(self) -> dict[str, Any]:
        """The names as plain types, without the tokenizer."""
        similar = {} if self.least_similarity is None else {"least_similarity": self.least_similarity}
        return {**self.table.to_json(), "same_as": dict(self.same_as), **similar}

    @classmethod
    def from_json(
        cls, value: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | Tokenizer, where: str
    ) -> "Anchors":
        """The anchors that `to_json` gave.

        Args:
            value: The object.
            tokenizer: The base model's.
            where: The file, for messages.

        Raises:
            InputError: If it is something else, or of another version.
        """
        table, same_as = SubjectTable.from_json(value, where), value.get("same_as", {})
        if not isinstance(same_as, dict) or not all(isinstance(one, str) for pair in same_as.items() for one in pair):
            raise InputError(f"{where}: `same_as` must name a subject for each alias.")
        least = value.get("least_similarity")
        if least is not None and not (isinstance(least, float | int) and 0 < least <= 1):
            raise InputError(f"{where}: `least_similarity` must be in (0, 1], got {least!r}")
        build = cls if isinstance(tokenizer, Tokenizer) else cls.of
        return build(table, tokenizer, same_as, least)

    @classmethod
    def read(cls, names_file: Path, tokenizer_file: Path) -> "Anchors":
        """The anchors that `write` wrote.

        Args:
            names_file: `anchors.json`.
            tokenizer_file: `tokenizer.json`.

        Raises:
            InputError: If a file is missing, damaged, or of another version.
        """
        try:
            value = json.loads(names_file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{names_file} cannot be read: {error}") from error
        if not isinstance(value, dict):
            raise InputError(f"{names_file} cannot be read: it holds no JSON object.")
        try:
            tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # the library raises nothing more special
            raise InputError(f"{tokenizer_file} is no tokenizer: {error}") from error
        return cls.from_json(value, tokenizer, str(names_file))

    def _find(self, ids: tuple[int, ...]) -> tuple[str, ...]:
        names = self.table.longest_names_in(self._text(ids))
        return tuple(dict.fromkeys(self.same_as.get(name, name) for name in names))

    def _mark(self, ids: tuple[int, ...]) -> tuple[bool, ...]:
        def end(place: int) -> int:
            """Where the text of the tokens up to this one ends, as the table folds it."""
            return len(folded(self._text(ids[: place + 1])))

        flags, places = [False] * len(ids), range(len(ids))
        for _, start, stop in self.table.places_in(self._text(ids)):
            first, last = bisect_right(places, start, key=end), bisect_left(places, stop, key=end)
            flags[first : last + 1] = [True] * (last + 1 - first)
        return tuple(flags[: len(ids)])

    def _text(self, ids: tuple[int, ...]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _encode(self, name: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(f" {name}", add_special_tokens=False).ids)
