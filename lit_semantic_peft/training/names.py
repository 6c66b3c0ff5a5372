"""The names by which an adapter of experts recognises what was taught: learned before a training, kept with it."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from peft import PeftModel

from lit_semantic_peft.adapters import Anchors
from lit_semantic_peft.adapters.by_names import NamesConfig
from lit_semantic_peft.data import KnowledgeDataModule
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.models import BaseModel, traits_of

logger = logging.getLogger(__name__)


def learn_names(peft_config: NamesConfig, taught: Sequence[Fact], data: KnowledgeDataModule) -> None:
    """Sets the anchors of a configuration, and logs which taught forms have none, so that nothing learns from them.

    Args:
        peft_config: The adapter's; changed.
        taught: The facts that are trained.
        data: After `setup`.

    Raises:
        InputError: If a fact has no subject, or its own prompt names none.
    """
    peft_config.learn_names(taught, data.encoder.tokenizer)
    assert peft_config.anchors is not None
    forms = data.prepared.forms
    texts = [text for row in np.flatnonzero(data.prepared.is_trained).tolist() for text in forms.texts_of(row)]
    closed = sum(not peft_config.anchors.of_tokens(forms.texts[text].prompt_ids) for text in texts)
    logger.info("The adapter acts on prompts with any of %d names", len(peft_config.anchors.table.names))
    if closed:
        logger.warning(
            "%d of %d taught prompts have none of these names, so that nothing is learned from them; see `match` and "
            "`aliases` in docs/gate.md.",
            closed, len(texts),
        )  # fmt: skip


def names_of(model: PeftModel) -> dict[str, Any] | None:
    """The names of an adapter as plain data, for a checkpoint; None where it has none.

    Args:
        model: The model with its adapter.
    """
    anchors = getattr(model.active_peft_config, "anchors", None)
    return None if anchors is None else anchors.to_json()


def set_names(model: PeftModel, names: Mapping[str, Any] | None, base: BaseModel) -> None:
    """Gives an adapter the names of a checkpoint.

    Args:
        model: The model with its adapter.
        names: From `names_of`.
        base: Has the tokenizer.
    """
    if traits_of(model).routes and names is not None:
        where = "the checkpoint's names"
        model.active_peft_config.anchors = Anchors.from_json(names, base.load_tokenizer(), where)
