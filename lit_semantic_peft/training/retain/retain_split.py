"""The user's own facts that must not change."""

from collections.abc import Sequence

from typing_extensions import override

from lit_semantic_peft.data import PreparedFacts
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.training.retain.context import RetainContext
from lit_semantic_peft.training.retain.source import RetainedText, RetainSource


class RetainSplit(RetainSource):
    """Facts of the split `retain`, held at the tokens of their targets, whatever the base model predicts there.

    Cost: that of `RetainSource`. Arguments: those of `RetainSource`.

    Raises:
        InputError: From `texts`, if no fact has that split.
    """

    @override
    def rows(self, prepared: PreparedFacts) -> list[int]:
        return [row for row, fact in enumerate(prepared.facts) if fact.split == "retain"]

    @override
    def texts(self, context: RetainContext) -> Sequence[RetainedText]:
        texts = [RetainedText(context.prepared.encoded[row]) for row in self.rows(context.prepared)]
        if not texts:
            raise InputError(
                '`RetainSplit` has nothing to retain. Add lines with "split": "retain" for what must not change, or '
                "use `KnownFacts` or `OwnSamples`, which need no data."
            )
        return texts
