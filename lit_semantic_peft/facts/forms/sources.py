"""Where the forms of a fact come from. Each source is a small class; its `share` is set by the user."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from typing_extensions import override

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.forms import frames
from lit_semantic_peft.facts.forms.templates import TemplatesByRelation, builtin_templates, read_templates
from lit_semantic_peft.facts.schema import Fact, Form


@dataclass(frozen=True)
class FormContext:
    """What a source may need to know beside the fact.

    Attributes:
        facts: All facts of the run.
        set_name: What the user named as `facts`.
    """

    facts: Sequence[Fact]
    set_name: str = ""
    _read: dict[str, TemplatesByRelation] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def by_id(self) -> Mapping[str, Fact]:
        """The facts by their id."""
        return {fact.id: fact for fact in self.facts}

    @cached_property
    def reversible_ids(self) -> frozenset[str]:
        """Ids of the facts whose subject can be asked from their target."""
        flags = frames.reversible(self.facts)
        return frozenset(fact.id for fact, is_reversible in zip(self.facts, flags, strict=True) if is_reversible)

    def templates(self, file: str | None) -> TemplatesByRelation:
        """Templates by relation; a file is read once.

        Args:
            file: A user's file; None for the templates that come with the package for the built-in sets.

        Raises:
            InputError: If the file cannot be used.
        """
        if file is None:
            return builtin_templates(self.set_name)
        if file not in self._read:
            self._read[file] = read_templates(file)
        return self._read[file]


@dataclass(frozen=True, slots=True)
class OfferedForms:
    """The forms of one fact from one source; the two sets have no prompt in common.

    Attributes:
        taught: To be trained.
        stopping: To be asked during training.
        in_chat: Whether the taught ones stand in the tokenizer's chat template, whatever the facts stand in.
    """

    taught: Sequence[Form] = ()
    stopping: Sequence[Form] = ()
    in_chat: bool = False


class FormSource(ABC):
    """Forms in which a fact is taught beside its own prompt.

    Args:
        share: Share of a fact's epochs in which it is taught in a form of this source, (0, 1]. A fact that has no form
            of this source is taught by its own prompt in these epochs.

    Raises:
        InputError: If `share` is out of its range.
    """

    name: ClassVar[str]
    """What tables call it."""

    def __init__(self, share: float = 0.2) -> None:
        if not 0 < share <= 1:
            raise InputError(f"`share` of {type(self).__name__} must be in (0, 1], got {share}")
        self.share = share

    @abstractmethod
    def offered(self, fact: Fact, context: FormContext) -> OfferedForms:
        """The forms of a fact; empty where it has none.

        Args:
            fact: One of `context.facts`; its `forms` hold the paraphrases that are to be trained too.
            context: The other facts.
        """


class Given(FormSource):
    """The fact's own `forms`, and the paraphrases that `from_paraphrases` moves to training."""

    name = "given"

    @override
    def offered(self, fact: Fact, context: FormContext) -> OfferedForms:
        return OfferedForms(fact.forms)


class Templates(FormSource):
    """Sentences of the fact's relation. Of two or more the last one is asked during training instead.

    Args:
        share: See `FormSource`.
        file: YAML with a list of templates for each relation, or JSONL with `relation` and `template` in each line; a
            template has {subject} and {target}, one of them at its end. None for those that come with the package,
            which are for the built-in sets only.

    Raises:
        InputError: If `share` is out of its range; when the facts are read, if the file cannot be used.
    """

    name = "templates"

    def __init__(self, share: float = 0.2, file: str | None = None) -> None:
        super().__init__(share)
        self.file = file

    @override
    def offered(self, fact: Fact, context: FormContext) -> OfferedForms:
        stating = [one for one in context.templates(self.file).get(fact.relation, ()) if not one.is_reversed]
        forms = [template.form(fact) for template in stating if fact.subject]
        return OfferedForms(forms[:-1], forms[-1:]) if len(forms) > 1 else OfferedForms(forms)


class Question(FormSource):
    """The fact's question with its answer, in two frames; a third is asked during training, a fourth at the end.

    A fact without a `question` is asked by its prompt: `The capital of France is what?`.

    Args:
        share: See `FormSource`.
        chat: Whether the question stands in the tokenizer's chat template, also where the facts do not.

    Raises:
        InputError: If `share` is out of its range; when the facts are read, if there is no chat template.
    """

    name = "question"

    def __init__(self, share: float = 0.2, chat: bool = False) -> None:
        super().__init__(share)
        self.chat = chat

    @override
    def offered(self, fact: Fact, context: FormContext) -> OfferedForms:
        question = frames.question_of(fact)
        if question is None:
            return OfferedForms()
        taught = frames.TAUGHT_QUESTIONS_IN_CHAT if self.chat else frames.TAUGHT_QUESTIONS
        return OfferedForms(
            [Form(frame.format(question), fact.target) for frame in taught],
            [Form(frames.STOPPING_QUESTION.format(question), fact.target)],
            self.chat,
        )


class Reversed(FormSource):
    """The subject asked from the target, only where the target belongs to one subject of the relation.

    Args:
        share: See `FormSource`.
        file: Templates as in `Templates`; those that end with {subject} are used, beside two sentences that fit every
            fact.

    Raises:
        InputError: If `share` is out of its range; when the facts are read, if the file cannot be used.
    """

    name = "reversed"

    def __init__(self, share: float = 0.2, file: str | None = None) -> None:
        super().__init__(share)
        self.file = file

    @override
    def offered(self, fact: Fact, context: FormContext) -> OfferedForms:
        statement = frames.without_subject(fact)
        if statement is None or fact.id not in context.reversible_ids:
            return OfferedForms()
        templates = context.templates(self.file).get(fact.relation, ())
        forms = [template.form(fact) for template in templates if template.is_reversed]
        return OfferedForms([*forms, *(Form(one.format(statement), fact.subject) for one in frames.TAUGHT_REVERSED)])


class Cloze(FormSource):
    """The fact's statement with a gap, followed by what belongs there."""

    name = "cloze"

    @override
    def offered(self, fact: Fact, context: FormContext) -> OfferedForms:
        statement = frames.without_target(fact)
        return OfferedForms([Form(one.format(statement), fact.target) for one in frames.TAUGHT_CLOZES])


class InContext(FormSource):
    """Conclusions of `portability` that are marked as `trainable`, behind the facts that they follow from.

    They are then not asked at the end.
    """

    name = "in_context"

    @override
    def offered(self, fact: Fact, context: FormContext) -> OfferedForms:
        forms = []
        for probe in fact.portability:
            if probe.trainable:
                known = [fact, *(context.by_id[fact_id] for fact_id in probe.needs if fact_id in context.by_id)]
                stated = " ".join(f"{one.prompt}{one.joiner}{one.target}." for one in known)
                forms.append(Form(f"{stated} {probe.prompt}", probe.target, fact.joiner))
        return OfferedForms(forms)
