"""The texts of a training: in which of its forms a fact is taught in an epoch."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import accumulate

import numpy as np

from lit_semantic_peft.data.plans import FormsPlan
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact, Form
from lit_semantic_peft.facts.forms import FactForms, FormContext, Templates, relations_without, split_forms
from lit_semantic_peft.files import content_key
from lit_semantic_peft.tokens import EncodedFact, FactEncoder

logger = logging.getLogger(__name__)

_GOLDEN_RATIO = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class PreparedForms:
    """The forms of all facts, tokenized once.

    A text is a fact's own prompt or one of its forms, with its target. Texts are numbered: the own prompt of a fact has
    the fact's index, the taught forms follow, then the stopping ones.

    Attributes:
        of_facts: The forms of each fact.
        texts: The tokens of every text.
        fact_of: The fact that each text belongs to.
        taught: For each fact the texts of its taught forms, each with the end of its part of [0, 1).
        start: Each fact's place in [0, 1) in epoch 0.
        stopping: For each fact the texts that are asked of it during training, at least one.
        without_templates: Relations that have no template, and how many facts are of each.
        key: Content key of the taught texts and of when each is trained; "" where facts have no form.
    """

    of_facts: tuple[FactForms, ...]
    texts: tuple[EncodedFact, ...]
    fact_of: tuple[int, ...]
    taught: tuple[tuple[tuple[int, float], ...], ...]
    start: tuple[float, ...]
    stopping: tuple[tuple[int, ...], ...]
    without_templates: dict[str, int]
    key: str

    def text_of(self, row: int, epoch: int | None) -> int:
        """The text in which a fact is trained in an epoch; its own prompt where that is None.

        Epochs move a fact by the golden ratio on a circle that its forms share out, so that even in a few epochs each
        form has its share.

        Args:
            row: Fact index.
            epoch: Number of the epoch, from 0; or None.
        """
        if epoch is None:
            return row
        place = (self.start[row] + epoch * _GOLDEN_RATIO) % 1.0
        return next((text for text, end in self.taught[row] if place < end), row)

    def length_of(self, row: int, epoch: int | None) -> int:
        """Tokens of the text in which a fact is trained in an epoch; of its own prompt where that is None.

        Args:
            row: Fact index.
            epoch: Number of the epoch, from 0; or None.
        """
        return len(self.texts[self.text_of(row, epoch)])

    def texts_of(self, row: int) -> list[int]:
        """All texts in which a fact may be trained.

        Args:
            row: Fact index.
        """
        return [row, *(text for text, _ in self.taught[row])]

    def num_facts_by_source(self, rows: Iterable[int]) -> dict[str, int]:
        """How many facts have taught forms of each source.

        Args:
            rows: Fact indices.
        """
        return dict(Counter(name for row in rows for name in {form.source: 1 for form in self.of_facts[row].taught}))

    @property
    def has_stopping(self) -> np.ndarray:
        """Whether a fact has a stopping form; of the others the own prompt is asked during training. Bool `(n,)`."""
        return np.array([bool(one.stopping) for one in self.of_facts])

    def log(self) -> None:
        """Says in the log from where forms come, and how many facts have too few of them for a stopping form."""
        by_source = ", ".join(
            f"{name} {count}" for name, count in self.num_facts_by_source(range(len(self.of_facts))).items()
        )
        logger.info("Facts with taught forms: %s", by_source or "none")
        if without := int((~self.has_stopping).sum()):
            logger.info(
                "Facts with too few forms to ask another one during training: %d; their own prompt is asked.", without
            )


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
    if plan.num_per_fact is not None:
        split = [_chosen(forms, plan.num_per_fact, seed) for forms in split]
    in_chat = _chat_encoder(encoder, split)
    texts, fact_of = list(encoded), list(range(len(facts)))

    def add(row: int, kind: str, form: Form, how: FactEncoder) -> int:
        fact = facts[row]
        try:
            texts.append(how.encode(form.prompt, form.target, form.joiner))
        except InputError as error:
            place = f"{fact.location or 'fact'}: fact {fact.id!r}"
            raise InputError(f"{place}: {kind} form {form.prompt!r}: {error}") from error
        fact_of.append(row)
        return len(texts) - 1

    taught = []
    for row, forms in enumerate(split):
        ends = accumulate(one.share for one in forms.taught)
        added = [add(row, one.source, one.form, in_chat if one.in_chat else encoder) for one in forms.taught]
        taught.append(tuple(zip(added, ends, strict=True)))
    stopping = [
        tuple(add(row, "stopping", form, encoder) for form in forms.stopping) or (row,)
        for row, forms in enumerate(split)
    ]
    start = [int(content_key(seed, fact.id)[:12], 16) / 16**12 for fact in facts]
    key = content_key(start, [[(astuple(texts[text]), end) for text, end in parts] for parts in taught])
    prepared = PreparedForms(
        tuple(split), tuple(texts), tuple(fact_of), tuple(taught), tuple(start), tuple(stopping),
        _without_templates(facts, plan, set_name), key if any(taught) else "",
    )  # fmt: skip
    if plan.sources:
        prepared.log()
    return prepared


def _chosen(forms: FactForms, most: int, seed: int) -> FactForms:
    """The forms of a fact, of the taught ones a seeded choice, which takes over the shares of all."""
    order = sorted(forms.taught, key=lambda one: content_key(seed, forms.asked.id, one.form.prompt))
    total, left = (sum(one.share for one in some) for some in (forms.taught, order[:most]))
    return replace(forms, taught=tuple(replace(one, share=one.share * total / left) for one in order[:most]))


def _without_templates(facts: Sequence[Fact], plan: FormsPlan, set_name: str) -> dict[str, int]:
    file = next((source.file for source in plan.sources or [] if isinstance(source, Templates)), None)
    return relations_without(FormContext(facts, set_name).templates(file), facts)


def _chat_encoder(encoder: FactEncoder, split: Sequence[FactForms]) -> FactEncoder:
    """How forms in the chat template become tokens; the given encoder where there are none."""
    is_needed = any(form.in_chat for forms in split for form in forms.taught)
    if not is_needed or encoder.template == "chat":
        return encoder
    try:
        return encoder.without_limit("chat")
    except InputError as error:
        raise InputError(f"`forms.sources`: Question with `chat: true`: {error}") from error
