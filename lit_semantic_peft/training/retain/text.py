"""A user's own text."""

from collections.abc import Sequence
from pathlib import Path

from typing_extensions import override

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation.neutral_text import read_passages
from lit_semantic_peft.tokens import EncodedFact
from lit_semantic_peft.training.retain.context import RetainContext
from lit_semantic_peft.training.retain.source import RetainedText, RetainSource


class Text(RetainSource):
    """The passages of a text file, held at every token but the first.

    Passages are separated by empty lines and cut into pieces of `length` tokens. Cost: that of `RetainSource`.

    Args:
        file: A UTF-8 text file.
        weight: As in `RetainSource`.
        batch_size: As in `RetainSource`.
        length: Longest piece, in tokens, ≥ 2.
        top_k: As in `RetainSource`.
        seed: As in `RetainSource`.
        every: As in `RetainSource`.

    Raises:
        InputError: If a setting is out of its range or the file is not there; from `texts`, if the file cannot be read
            or has no passage of at least two tokens.
    """

    def __init__(
        self,
        file: str,
        weight: float = 1.0,
        batch_size: int = 4,
        length: int = 24,
        top_k: int | None = 512,
        seed: int = 0,
        every: int = 1,
    ) -> None:
        super().__init__(weight, batch_size, top_k, seed, every)
        self.file = file
        self.length = length
        self.require_at_least(2, "length")
        path = Path(file).expanduser()
        if not path.is_file():
            what = "no file but a folder, a pipe or a device" if path.exists() else "not there"
            raise InputError(f"`{self.kind}.file`: expected a text file, got {file!r}, which is {what}")

    @override
    def texts(self, context: RetainContext) -> Sequence[RetainedText]:
        opening = context.encoder.opening_ids[:1]
        pieces = [
            piece
            for ids in map(context.encoder.encode_ids, read_passages(self.file, f"{self.kind}.file"))
            for start in range(0, len(ids), self.length)
            if len(piece := (opening if start == 0 else ()) + ids[start : start + self.length]) > 1
        ]
        if not pieces:
            raise InputError(f"{self.file}: expected text to retain, got none that is at least two tokens long")
        return [RetainedText(EncodedFact(piece[:1], piece[1:])) for piece in pieces]
