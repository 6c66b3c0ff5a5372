"""Which forms of a fact are taught, which asked during training, which at the end: three sets that never meet."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lit_semantic_peft.facts.checks import normalize_text
from lit_semantic_peft.facts.forms.frames import asked_question, asked_reversed
from lit_semantic_peft.facts.forms.sources import FormContext, FormSource, InContext
from lit_semantic_peft.facts.schema import Fact, Form


@dataclass(frozen=True, slots=True)
class TaughtForm:
    """A form that is trained.

    Attributes:
        form: Prompt and target.
        source: Name of its source.
        share: Share of the fact's epochs in which it is the one that is trained.
        in_chat: Whether it stands in the tokenizer's chat template, whatever the facts stand in.
    """

    form: Form
    source: str
    share: float
    in_chat: bool = False


@dataclass(frozen=True, slots=True)
class FactForms:
    """The forms of one fact. No prompt stands in two of the three sets, and none is the fact's own prompt.

    Attributes:
        taught: Trained in turn with the fact's own prompt.
        stopping: Asked during training; empty where the fact has too few, so that its own prompt is asked.
        asked: The fact with those of its probes that are asked at the end.
    """

    taught: tuple[TaughtForm, ...]
    stopping: tuple[Form, ...]
    asked: Fact


def split_forms(
    facts: Sequence[Fact], sources: Sequence[FormSource], from_paraphrases: int = 0, set_name: str = ""
) -> list[FactForms]:
    """Divides the forms of each fact among teaching, stopping and asking.

    The first `from_paraphrases` paraphrases are taught, at least one is asked. A fact without any gives a form of its
    own to asking first. Of two or more that are left to ask, the first is a stopping form; where there are not so many,
    one of two or more given forms is. A fact that is not to be trained (split `retain` or `probe`) is only asked.

    Args:
        facts: The facts.
        sources: Where the taught forms come from; empty to teach each fact by its own prompt only.
        from_paraphrases: How many of a fact's paraphrases are taught.
        set_name: What the user named as `facts`.
    """
    if not sources:
        return [FactForms((), (), fact) for fact in facts]
    divided = [_divided(fact, from_paraphrases) if fact.split == "inject" else (fact, []) for fact in facts]
    context = FormContext([fact for fact, _ in divided], set_name)
    return [
        _forms_of(fact, stopping, sources, context) if fact.split == "inject" else FactForms((), (), fact)
        for fact, stopping in divided
    ]


def _divided(fact: Fact, from_paraphrases: int) -> tuple[Fact, list[Form]]:
    """The fact with `forms` to teach and `paraphrases` to ask; and the form of either that is a stopping form."""
    num_moved = max(0, min(from_paraphrases, len(fact.paraphrases) - 1))
    moved = [Form(prompt, fact.target, fact.joiner) for prompt in fact.paraphrases[:num_moved]]
    asked = list(fact.paraphrases[num_moved:])
    wordings = [form for form in fact.forms if (form.target, form.joiner) == (fact.target, fact.joiner)]
    others = [form for form in fact.forms if form not in wordings]
    if not asked and wordings:
        asked.append(wordings.pop().prompt)
    stopping = []
    if len(asked) > 1:
        stopping.append(Form(asked.pop(0), fact.target, fact.joiner))
    elif len(wordings) > 1:
        stopping.append(wordings.pop())
    return replace(fact, paraphrases=tuple(asked), forms=(*moved, *wordings, *others)), stopping


def _forms_of(fact: Fact, stopping: Sequence[Form], sources: Sequence[FormSource], context: FormContext) -> FactForms:
    is_concluding = any(isinstance(source, InContext) for source in sources)
    conclusions = tuple(probe for probe in fact.portability if not (is_concluding and probe.trainable))
    asked = replace(fact, portability=conclusions)
    taken = {normalize_text(prompt) for prompt in _asked_prompts(asked)}
    taught: list[TaughtForm] = []
    offered_for_stopping = list(stopping)
    for source in sources:
        offered = source.offered(fact, context)
        forms = [form for form in offered.taught if normalize_text(form.prompt) not in taken]
        taught += [TaughtForm(form, source.name, source.share / len(forms), offered.in_chat) for form in forms]
        offered_for_stopping += offered.stopping
    taken |= {normalize_text(one.form.prompt) for one in taught}
    left = tuple(form for form in offered_for_stopping if normalize_text(form.prompt) not in taken)
    return FactForms(tuple(taught), left, asked)


def _asked_prompts(fact: Fact) -> list[str]:
    """The fact's own prompt and everything that is asked at the end; neighbours are never taught either."""
    made_up = [prompt for prompt in (asked_question(fact), asked_reversed(fact)) if prompt is not None]
    probes = [probe.prompt for probe in (*fact.neighborhood, *fact.portability)]
    return [fact.prompt, *fact.paraphrases, *probes, *made_up]
