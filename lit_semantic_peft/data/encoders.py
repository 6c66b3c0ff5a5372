"""How facts become the tokens of a model: the encoder for a base model, and for one that is loaded already."""

import logging
from collections.abc import Sequence

from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_semantic_peft.data.plans import EncodingPlan
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.base import BaseModel, num_positions, num_tokens, stop_ids
from lit_semantic_peft.models.peft_traits import positions_taken
from lit_semantic_peft.models.saved_adapter import read_adapter
from lit_semantic_peft.tokens import FactEncoder

logger = logging.getLogger(__name__)


def encoder_of(base: BaseModel, encoding: EncodingPlan, module: object = None) -> FactEncoder:
    """How facts become the tokens of a base model.

    Args:
        base: The base model.
        encoding: The user's settings.
        module: What is trained or measured, whose adapter may take positions of the base model; None for nothing.

    Raises:
        InputError: If the model is not found, or the settings do not fit its tokenizer.
    """
    tokenizer, ends, positions = base.load_tokenizer(), base.load_stop_ids(), base.load_num_positions()
    if positions is not None and (config := _adapter_config(module)) is not None:
        positions = max(1, positions - positions_taken(config))
    encoder = _encoder(tokenizer, encoding, ends, positions, base.load_num_tokens())
    if encoder.depends_on_the_day:
        logger.warning(
            "The chat template of %s prints the day's date: prompts differ from day to day, and scores and answers "
            "from the cache are those of the day on which they were measured. Set "
            "`data.encoding.chat_template_kwargs` to `{date_string: 26 Jul 2024}` if the template reads `date_string` "
            "(Llama 3 does), else take the date out of the template.",
            base.name,
        )
    return encoder


def encoder_of_loaded(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase | None, encoding: EncodingPlan
) -> FactEncoder:
    """How facts become the tokens of a model that is loaded already.

    Args:
        model: The model, with or without an adapter.
        tokenizer: The model's.
        encoding: The user's settings.

    Raises:
        InputError: If there is no tokenizer, or the settings do not fit it.
    """
    if tokenizer is None:
        raise InputError("`tokenizer` is missing: a model that is loaded needs the tokenizer that it was trained with.")
    ends, config = stop_ids(model.generation_config), model.config
    return _encoder(tokenizer, encoding, ends, num_positions(config), num_tokens(config))


def _adapter_config(module: object) -> PeftConfig | None:
    """The configuration of the adapter that a module loads or attaches."""
    folder: str | None = getattr(module, "adapter", None)
    config: PeftConfig | None = getattr(module, "peft_config", None)
    return read_adapter(folder).config if folder else config


def _encoder(
    tokenizer: PreTrainedTokenizerBase,
    encoding: EncodingPlan,
    stop_ids: Sequence[int],
    num_positions: int | None,
    num_tokens: int | None,
) -> FactEncoder:
    return FactEncoder(
        tokenizer,
        encoding.template,
        encoding.append_eos,
        encoding.max_length,
        stop_ids=stop_ids,
        num_positions=num_positions,
        chat_template_kwargs=encoding.chat_template_kwargs,
        num_tokens=num_tokens,
    )
