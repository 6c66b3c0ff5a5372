"""The texts of a training: in which of its forms a fact is taught in an epoch."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from lit_semantic_peft.data.plans import FormsPlan
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.facts.forms import FactForms, split_forms
from lit_semantic_peft.files import content_key
from lit_semantic_peft.tokens import EncodedFact, FactEncoder

_GOLDEN_RATIO = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class PreparedForms:
    """The forms of all facts, tokenized once.

    A text is a fact's own prompt or one of its forms, with its target. Texts are numbered: the own prompt of a fact has
    the fact's index, the taught forms follow, then the stopping ones.

    Attributes:
        of_facts: The forms of each fact.
        texts: The tokens of every text.
        taught: For each fact the texts of its taught forms, each with the end of its part of [0, 1).
        start: Each fact's place in [0, 1) in epoch 0.
        stopping: For each fact the texts that are asked of it during training, at least one.
        key: Content key of the taught texts and of when each is trained; "" where facts have no form.
    """

    of_facts: tuple[FactForms, ...]
    texts: tuple[EncodedFact, ...]
    taught: tuple[tuple[tuple[int, float], ...], ...]
    start: tuple[float, ...]
    stopping: tuple[tuple[int, ...], ...]
    key: str

    def text_of(self, row: int, epoch: int) -> int:
        """The text in which a fact is trained in an epoch.

        Epochs move a fact by the golden ratio on a circle that its forms share out, so that even in a few epochs each
        form has its share.

        Args:
            row: Fact index.
            epoch: Number of the epoch, from 0.
        """
        place = (self.start[row] + epoch * _GOLDEN_RATIO) % 1.0
        return next((text for text, end in self.taught[row] if place < end), row)

    def length_of(self, row: int, epoch: int) -> int:
        """Tokens of the text in which a fact is trained in an epoch.

        Args:
            row: Fact index.
            epoch: Number of the epoch, from 0.
        """
        return len(self.texts[self.text_of(row, epoch)])

    def texts_of(self, row: int) -> list[int]:
        """All texts in which a fact may be trained.

        Args:
            row: Fact index.
        """
        return [row, *(text for text, _ in self.taught[row])]

    def num_facts_by_source(self) -> dict[str, int]:
        """How many facts have taught forms of each source."""
        return dict(Counter(name for one in self.of_facts for name in {form.source for form in one.taught}))

    @property
    def num_without_stopping(self) -> int:
        """Facts that have too few forms for a stopping one, so that their own prompt is asked during training."""
        return sum(not one.stopping for one in self.of_facts)


def prepare_forms(
    facts: Sequence[Fact],
    encoded: Sequence[EncodedFact],
    plan: FormsPlan,
    encoder: FactEncoder,
    seed: int,
    set_name: str,
) -> PreparedForms:
    """Divides the forms of facts and tokenizes them.

    Args:
        facts: The facts.
        encoded: Tokens of their own prompts.
        plan: Where the forms come from.
        encoder: How they become tokens.
        seed: Of the epochs in which each form is trained.
        set_name: What the user named as `facts`.

    Raises:
        InputError: If a form cannot be tokenized; names the fact, its file and line, and the form.
    """
    split = split_forms(facts, plan.sources or [], plan.from_paraphrases, set_name)
    in_chat = _chat_encoder(encoder, split)
    texts = list(encoded)

    def add(fact: Fact, kind: str, prompt: str, target: str, joiner: str, how: FactEncoder) -> int:
        try:
            texts.append(how.encode(prompt, target, joiner))
        except InputError as error:
            raise InputError(f"{fact.location or 'fact'}: fact {fact.id!r}: {kind} form {prompt!r}: {error}") from error
        return len(texts) - 1

    taught = []
    for fact, forms in zip(facts, split, strict=True):
        parts, end = [], 0.0
        for one in forms.taught:
            end += one.share
            how = in_chat if one.in_chat else encoder
            parts.append((add(fact, one.source, one.form.prompt, one.form.target, one.form.joiner, how), end))
        taught.append(tuple(parts))
    stopping = [
        tuple(add(fact, "stopping", form.prompt, form.target, form.joiner, encoder) for form in forms.stopping)
        or (row,)
        for row, (fact, forms) in enumerate(zip(facts, split, strict=True))
    ]
    start = [int(content_key(seed, fact.id)[:12], 16) / 16**12 for fact in facts]
    has_forms = any(taught)
    key = content_key(start, [[(astuple(texts[text]), end) for text, end in parts] for parts in taught])
    return PreparedForms(
        tuple(split), tuple(texts), tuple(taught), tuple(start), tuple(stopping), key if has_forms else ""
    )


def _chat_encoder(encoder: FactEncoder, split: Sequence[FactForms]) -> FactEncoder:
    """How forms in the chat template become tokens; the given encoder where there are none."""
    is_needed = any(form.in_chat for forms in split for form in forms.taught)
    if not is_needed or encoder.template == "chat":
        return encoder
    try:
        return encoder.without_limit("chat")
    except InputError as error:
        raise InputError(f"`forms.sources`: Question with `chat: true`: {error}") from error
