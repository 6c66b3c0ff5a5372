"""Which settings teach these facts to this model: how long, how fast, in which forms, and what is held still."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from peft import LoraConfig, PeftConfig
from torch.optim import AdamW, Optimizer

from lit_semantic_peft.adapters import SubjectGate
from lit_semantic_peft.arguments import require_whole_number
from lit_semantic_peft.data.plans import FormsPlan
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact, GivenFacts, given_facts
from lit_semantic_peft.facts import set_name as name_of
from lit_semantic_peft.facts.forms import FormSource, Given, Question, Reversed, Templates, builtin_templates
from lit_semantic_peft.facts.forms.frames import question_of, reversible
from lit_semantic_peft.models import traits_of
from lit_semantic_peft.models.peft_settings import acts_at_names, is_plain_lora
from lit_semantic_peft.training.retain import (
    HeldStill,
    InputDirections,
    KnownFacts,
    OwnSamples,
    RetainSplit,
    SubjectSamples,
)

PASSES = 16
"""Passes over the facts after which they are recalled in forms that were not taught."""
FEWEST_STEPS = 96
"""Optimizer steps below which few facts are not recalled, however often they are passed over."""
REFINING = 1 / 6
"""Share of the optimizer steps, the last ones, that teach once more the facts that resist."""

MANY_PASSES = 2 * PASSES
"""Passes over the facts above which the text that is held still is in every step."""

OF_TARGETS = 0.1
"""Weight of what the base model writes about targets, where they open a gate."""

_RATES = (
    (200e6, 4e-3, "tried in single runs"),
    (600e6, 1e-3, "tried in single runs"),
    (2e9, 5e-4, "not tried"),
    (10e9, 3e-4, "not tried"),
    (math.inf, 2e-4, "not tried"),
)
"""Most parameters of a base model, learning rate of LoRA under the recipe, and what it rests on."""

_FEWEST_OF_KIND = 0.5
"""Share of the facts that must bring a form, or its share of the epochs would mostly be their own prompts."""


@dataclass(frozen=True)
class Recipe:
    """Settings for a set of facts and a base model, each with the reason for it.

    Attributes:
        num_steps: Optimizer steps in all: `trainer.max_steps` and `refine`.
        num_refining: The last of these, which teach once more the facts that resist, `refine`.
        learning_rate: Peak rate of AdamW with warm-up and cosine decay.
        forms: In which forms each fact is taught, `data.forms`.
        retain: What is held still, `model.retain`.
        reasons: Why, by the name of the setting.
    """

    num_steps: int
    num_refining: int
    learning_rate: float
    forms: FormsPlan
    retain: tuple[HeldStill, ...]
    reasons: dict[str, str]

    @property
    def optimizer(self) -> Callable[[Iterable[Any]], Optimizer]:
        """AdamW at this rate without weight decay, for the argument of `SemanticPeftModule`."""
        return partial(AdamW, lr=self.learning_rate, weight_decay=0.0)


def choose_recipe(
    facts: GivenFacts,
    num_parameters: int,
    peft_config: PeftConfig,
    *,
    set_name: str = "",
    facts_per_step: int = 16,
    gate: SubjectGate | None = None,
) -> Recipe:
    """The recipe for a set of facts: rules over what the facts bring and how large the model is; nothing is measured.

    Args:
        facts: All facts, as `read_facts` takes them; those of the split `inject` are taught.
        num_parameters: Of the base model.
        peft_config: The adapter's configuration.
        set_name: Name of a built-in set, for which the package has templates; that of `facts` where it is empty.
        facts_per_step: Facts of an optimizer step.
        gate: Of the module: text that does not open it needs not be held still. None where the adapter acts on all
            prompts, or where what else is known of the taught names is to be held as without a gate.

    Raises:
        InputError: If the facts cannot be read, none is taught, or `facts_per_step` is below 1.

    Example:
        >>> from peft import LoraConfig
        >>> facts = [Fact(str(n), f"The code of door {n} is", str(n)) for n in range(20)]
        >>> recipe = choose_recipe(facts, 135_000_000, LoraConfig())
        >>> recipe.num_steps, recipe.num_refining, recipe.learning_rate, [source.name for source in recipe.retain]
        (96, 16, 0.004, ['own_samples', 'known_facts', 'input_directions'])
    """
    require_whole_number("facts_per_step", facts_per_step, 1)
    read = given_facts(facts)
    taught = [fact for fact in read if fact.split == "inject"]
    if not taught:
        raise InputError("`facts` holds no fact with split `inject`, so there is nothing to train.")
    reasons: dict[str, str] = {}

    passes = math.ceil(PASSES * len(taught) / facts_per_step)
    num_steps = max(FEWEST_STEPS, passes)
    reasons["num_steps"] = (
        f"{PASSES} passes over {len(taught)} facts, {facts_per_step} in a step"
        if passes >= FEWEST_STEPS
        else f"no fewer, though {passes} steps would pass {PASSES} times over {len(taught)} facts"
    )
    num_refining = int(num_steps * REFINING)
    reasons["num_refining"] = "the last steps teach once more the facts that resist, and repeat the others"
    learning_rate, reasons["learning_rate"] = _rate(num_parameters, peft_config)
    opens_for_targets = gate is None or gate.match == "subjects_and_targets"
    forms, reasons["forms"] = _forms(taught, set_name or name_of(facts), reverses=opens_for_targets)
    every = 1 if num_steps * facts_per_step > MANY_PASSES * len(taught) else 2
    retain: tuple[HeldStill, ...] = ()
    if acts_at_names(peft_config):
        reasons["retain"] = "the adapter acts at the taught names alone, so that all other text runs the base model"
    elif gate is not None and gate.match == "subjects":
        reasons["retain"] = "prompts that name no taught subject run the base model"
    elif gate is not None:
        retain = (SubjectSamples(weight=OF_TARGETS, batch_size=8, every=2, names="targets"),)
        reasons["retain"] = "what the base model writes about the targets, which other text may name; all else is gated"
    else:
        retain = (
            OwnSamples(weight=1.0, batch_size=4, length=16, every=every),
            KnownFacts(weight=2.0, batch_size=6, every=every),
        )
        reasons["retain"] = (
            "the base model's own samples keep unrelated text, known facts keep answers of the same kind; in every "
            + ("step, since few facts are passed over often" if every == 1 else "second step")
        )
    if any(fact.split == "retain" for fact in read):
        retain = (*retain, RetainSplit(weight=1.0, batch_size=6, every=every))
    if is_plain_lora(peft_config) and gate is None:
        retain = (*retain, InputDirections(0.9))
    return Recipe(num_steps, num_refining, learning_rate, forms, retain, reasons)


def _rate(num_parameters: int, peft_config: PeftConfig) -> tuple[float, str]:
    _, of_lora, origin = next(row for row in _RATES if num_parameters <= row[0])
    rate = of_lora * traits_of(peft_config).learning_rate / traits_of(LoraConfig()).learning_rate
    return rate, f"{origin}, for {num_parameters / 1e6:,.0f}M parameters and {peft_config.peft_type.value}"


def _forms(taught: Sequence[Fact], set_name: str, *, reverses: bool) -> tuple[FormsPlan, str]:
    """Paraphrases (or templates) 35 %, questions 15 %, reversed 30 %, as far as the facts have them.

    Reversed questions name the target alone: a gate that opens for subjects would stay shut on them.
    """
    with_templates = builtin_templates(set_name)
    brings = {
        "paraphrases": [len(fact.paraphrases) + len(fact.forms) >= 2 for fact in taught],
        "templates": [fact.relation in with_templates for fact in taught],
        "questions": [question_of(fact) is not None for fact in taught],
        "subjects to ask for": reversible(taught),
    }
    enough = {kind for kind, flags in brings.items() if sum(flags) >= _FEWEST_OF_KIND * len(taught)}
    sources: list[FormSource] = []
    if "paraphrases" in enough:
        sources.append(Given(share=0.175 if "templates" in enough else 0.35))
    if "templates" in enough:
        sources.append(Templates(share=0.175 if "paraphrases" in enough else 0.35))
    if "questions" in enough:
        sources.append(Question(share=0.15))
    if "subjects to ask for" in enough and reverses:
        sources.append(Reversed(share=0.3))
    most = max((len(fact.paraphrases) for fact in taught), default=0)
    from_paraphrases = max(0, most - 1) if "paraphrases" in enough else 0
    counts = ", ".join(f"{kind} {sum(flags)}" for kind, flags in brings.items())
    return FormsPlan(sources or None, from_paraphrases), f"of {len(taught)} facts bring {counts}"
