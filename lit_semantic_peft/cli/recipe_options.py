"""The options of `fit` for the recipe and for what comes after its steps, and the callbacks that they stand for."""

from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, restricted_number_type
from lightning.pytorch import Callback

from lit_semantic_peft.callbacks import Extrapolate, Refine, ScaleBack

RecipeName = Literal["auto", "gated", "plain"]

AtLeastOne = restricted_number_type("AtLeastOne", float, (">=", 1.0))


def add_recipe_options(parser: ArgumentParser) -> None:
    """Adds them to the parser of a command.

    Args:
        parser: The parser.
    """
    parser.add_argument(
        "--recipe",
        type=RecipeName,
        default="auto",
        help="`auto` chooses steps, learning rate, forms and what is held still, as far as they are not given; "
        "`gated` does so for an adapter that acts only where something taught is named (`model.gate`), and needs "
        "facts with a `subject`; `plain` trains the facts' own prompts and holds nothing still. For `fit` only.",
    )
    parser.add_argument(
        "--refine",
        type=NonNegativeInt | None,
        default=None,
        help="How many optimizer steps after `trainer.max_steps` teach once more the facts that resist, and repeat "
        "the others: `trainer.callbacks.Refine`. Left out, the recipe decides it where it decides the steps, else "
        "none. For `fit` only.",
    )
    parser.add_argument(
        "--extrapolate",
        type=AtLeastOne | None,
        default=None,
        help="By what the adapter is scaled up at the end of training, at least 1: `trainer.callbacks.Extrapolate`. "
        "Other wordings are recalled more, and unrelated text loses more. Left out, it is not scaled up. For "
        "`fit` only.",
    )
    parser.add_argument(
        "--scale_back",
        type=bool,
        default=False,
        help="Whether the adapter is scaled down at the end of training, as far as no taught text is lost: "
        "`trainer.callbacks.ScaleBack`. Unrelated text loses less, and other wordings are recalled less. For `fit` "
        "only.",
    )


def callbacks_of(settings: Namespace, trainer: dict[str, Any]) -> list[Callback]:
    """The callbacks that the options of a `fit` stand for.

    Args:
        settings: The options.
        trainer: Settings of the trainer, whose `max_steps` are raised by those of `Refine`.
    """
    callbacks: list[Callback] = []
    if settings.refine:
        callbacks.append(Refine(settings.refine))
        if trainer["max_steps"] >= 0:  # else Refine is refused
            trainer["max_steps"] += settings.refine
    if settings.extrapolate is not None and settings.extrapolate > 1:
        callbacks.append(Extrapolate(settings.extrapolate))
    if settings.scale_back:
        callbacks.append(ScaleBack())
    return callbacks
