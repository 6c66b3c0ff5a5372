"""The taught prompts themselves: what the base model finds likely there beside the target."""

from collections.abc import Sequence

from typing_extensions import override

from lit_semantic_peft.tokens import EncodedFact
from lit_semantic_peft.training.retain.context import RetainContext
from lit_semantic_peft.training.retain.source import RetainedText, RetainSource


class MaskedTarget(RetainSource):
    """The texts of the facts in training, held at every taught token to the order of all *other* tokens.

    The taught token is dropped from both distributions, which are normalised again; so the penalty does not resist
    learning, and is 0 if all other tokens lose probability in proportion. The end token, where it is taught, counts as
    one. Cost: that of `RetainSource`; no further text is needed. Source: after arXiv 2605.29498; a mean per text over
    its taught tokens is our reading. Arguments: those of `RetainSource`.
    """

    drops_target = True

    @override
    def texts(self, context: RetainContext) -> Sequence[RetainedText]:
        taught = (one.encoded for one in context.taught)
        return [RetainedText(EncodedFact(one.prompt_ids, one.target_ids + one.end_ids)) for one in taught]
