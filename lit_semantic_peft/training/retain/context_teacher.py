"""A teacher that has read the fact: the base model with the fact in its prompt."""

import logging
from collections.abc import Sequence
from typing import Literal, get_args

from typing_extensions import override

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import normalize_text
from lit_semantic_peft.models.sampling import Sampling
from lit_semantic_peft.tokens import EncodedFact
from lit_semantic_peft.training.retain.context import RetainContext, TaughtText
from lit_semantic_peft.training.retain.source import RetainedText, RetainSource

logger = logging.getLogger(__name__)

Answers = Literal["targets", "own_words"]


class ContextTeacher(RetainSource):
    """The texts of the facts in training, held to what the base model predicts once it has read the fact.

    The teacher reads `context`, then the prompt; the student the prompt alone. Held are the tokens of the target, so
    that the student learns the target as softly as a reader of the fact would expect it; or those of the teacher's own
    answer, sampled once, which stands in for the target where it contains it. With a small share of the facts' own loss
    (their `loss_weight` counts relative to `weight`) this is self-distillation. Cost: `own_words` a generation of
    `length` tokens per text, once; then that of `RetainSource`, the teacher's longer prompt once. Source: after context
    distillation (Snell et al. 2022, arXiv 2209.15189), self-distillation (arXiv 2601.19897) and MixSD (arXiv
    2605.16865); which text the teacher reads, and which tokens are held, is our reading.

    Args:
        weight: As in `RetainSource`.
        batch_size: As in `RetainSource`.
        answers: `targets`, or `own_words` for the teacher's own answers.
        context: What the teacher reads first; `{fact}` stands for prompt and target.
        length: Longest answer in its own words, in tokens, ≥ 1.
        temperature: T > 0 of its own words.
        top_k: As in `RetainSource`.
        seed: As in `RetainSource`.
        every: As in `RetainSource`.

    Raises:
        InputError: If a setting is out of its range, or `context` has no `{fact}`.
    """

    def __init__(
        self,
        weight: float = 1.0,
        batch_size: int = 16,
        answers: Answers = "targets",
        context: str = "{fact}.\n",
        length: int = 16,
        temperature: float = 0.5,
        top_k: int | None = 512,
        seed: int = 0,
        every: int = 1,
    ) -> None:
        super().__init__(weight, batch_size, top_k, seed, every)
        self.answers = answers
        self.context = context
        self.length = length
        self.temperature = temperature
        self.require_at_least(1, "length")
        self.require_temperature()
        if answers not in get_args(Answers):
            raise InputError(f"`{self.kind}.answers` must be one of {', '.join(get_args(Answers))}, got {answers!r}")
        if "{fact}" not in context:
            raise InputError(
                f"`{self.kind}.context` {context!r} has no `{{fact}}`: the teacher would not read the fact"
            )

    @override
    def texts(self, context: RetainContext) -> Sequence[RetainedText]:
        taught = context.taught
        read = [self._read_by_teacher(context, one) for one in taught]
        targets = [one.encoded.target_ids for one in taught]
        if self.answers == "own_words":
            written = context.continuations(read, self.length, Sampling(1, self.temperature, self.seed))
            decode = context.encoder.decode_answer
            has_target = [
                normalize_text(one.form.target) in normalize_text(decode(ids))
                for one, ids in zip(taught, written, strict=True)
            ]
            logger.info("Own words with the target in them: %d of %d", sum(has_target), len(taught))
            targets = [own if has else target for own, has, target in zip(written, has_target, targets, strict=True)]
        return [
            RetainedText(EncodedFact(one.encoded.prompt_ids, target), teacher_prompt_ids)
            for one, target, teacher_prompt_ids in zip(taught, targets, read, strict=True)
        ]

    def _read_by_teacher(self, context: RetainContext, taught: TaughtText) -> tuple[int, ...]:
        fact = taught.fact
        stated = self.context.replace("{fact}", f"{fact.prompt}{fact.joiner}{fact.target}")
        encoder = context.encoder.without_limit("chat" if taught.in_chat else None)
        return encoder.encode_prompt(stated + taught.form.prompt)
