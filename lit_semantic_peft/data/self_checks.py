"""When a model is asked whether the fast ways are right for it, and the cache of its verdicts."""

import logging
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from lit_semantic_peft.cache import ContentCache, cache_folder
from lit_semantic_peft.data.ranks import agreed, from_all_ranks, from_first_rank
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.base import BaseModel
from lit_semantic_peft.models.fast_ways import FastWays, set_fast_ways
from lit_semantic_peft.models.peft_settings import settings_of
from lit_semantic_peft.models.peft_traits import awakening_tokens, runs_adapter, trained_tokens, traits_of
from lit_semantic_peft.models.self_check import SELF_CHECK_VERSION, check_rows, self_check
from lit_semantic_peft.tokens import EncodedFact, FactEncoder

logger = logging.getLogger(__name__)


def verdict_cache(cache_dir: str | Path | None) -> ContentCache:
    """Where verdicts are kept.

    Args:
        cache_dir: The folder of the caches; the user's cache where None.
    """
    return ContentCache(Path(cache_dir or cache_folder()) / "self_checks")


@dataclass(frozen=True)
class SelfChecks:
    """Runs `self_check` once for each base model and adapter configuration.

    Attributes:
        base: The base model.
        encoder: How facts become tokens.
        cache: Where verdicts are kept.
        precision: The trainer's; "32-true" where there is none.
    """

    base: BaseModel
    encoder: FactEncoder
    cache: ContentCache
    precision: str = "32-true"

    def check(self, model: PreTrainedModel | PeftModel) -> None:
        """Checks a model in this process alone. The verdict is noted for the model (`fast_ways`).

        Args:
            model: The base model, or one with an adapter that is not trained, on the device where it runs.

        Raises:
            InputError: If no way is right.
        """
        manifest = self._manifest(model, trains=False)
        ways = self._load(manifest) or self._store(manifest, self._measure(model, trains=False))
        set_fast_ways(model, ways)
        say_instead(ways, self.base.source.public_name)

    def check_on_all_ranks(self, model: PeftModel, *, trains: bool) -> None:
        """Checks base model and adapter; what is wrong on one rank is wrong on all. A collective.

        Args:
            model: The model with its adapter, on the device where it runs.
            trains: Whether the adapter is about to be trained.

        Raises:
            InputError: On all ranks, if no way is right.
        """
        with model.disable_adapter():
            self._agree(model, trains=False)
        say_instead(self._agree(model, trains=trains), f"{self.base.source.public_name} with its adapter")

    def _agree(self, model: PeftModel, *, trains: bool) -> FastWays:
        manifest = self._manifest(model, trains=trains)
        ways = from_first_rank(lambda: self._load(manifest))
        if ways is None:
            found = from_all_ranks(agreed(lambda: self._measure(model, trains=trains)))
            ways = FastWays(*(all(of_ranks) for of_ranks in zip(*map(astuple, found), strict=True)))
            agreed_ways = ways
            from_first_rank(lambda: self._store(manifest, agreed_ways))
        set_fast_ways(model, ways)
        return ways

    def _measure(self, model: PreTrainedModel | PeftModel, *, trains: bool) -> FastWays:
        return self_check(model, check_rows(self.encoder, model), self.encoder.pad_id, trains=trains)

    def _load(self, manifest: dict[str, Any]) -> FastWays | None:
        kept = self.cache.load_array(manifest)
        if kept is None or kept.shape != (len(fields(FastWays)),):
            return None
        return FastWays(*map(bool, kept))

    def _store(self, manifest: dict[str, Any], ways: FastWays) -> FastWays:
        self.cache.store_array(manifest, np.array(astuple(ways), dtype=np.float64))
        return ways

    def _manifest(self, model: PreTrainedModel | PeftModel, *, trains: bool) -> dict[str, Any]:
        return {
            "self_check_version": SELF_CHECK_VERSION,
            "base_fingerprint": self.base.source.fingerprint,
            "dtype": self.base.dtype,
            "precision": self.precision,
            "device": next(model.parameters()).device.type,
            "adapter": settings_of(model.active_peft_config) if runs_adapter(model) else None,
            "trains": trains,
            **self.encoder.identity,
            "versions": [torch.__version__, transformers.__version__, peft.__version__],
        }


def require_awake(model: PeftModel, texts: Sequence[EncodedFact]) -> None:
    """Refuses to train an adapter that acts on certain tokens alone on texts that have them nowhere.

    Args:
        model: The model with its adapter.
        texts: What is taught.

    Raises:
        InputError: If no prompt has the tokens at which the adapter begins, or no text one whose embedding is all that
            it trains.
    """
    begins = () if traits_of(model).routes else awakening_tokens(model)  # the names were looked for by their text
    size = len(begins)
    prompts = [text.prompt_ids for text in texts]
    if size and not any(tuple(ids[at : at + size]) == begins for ids in prompts for at in range(len(ids) - size + 1)):
        raise InputError(
            f"`peft_config`: the adapter begins to work at the tokens {list(begins)}, which no prompt of the facts "
            "has, so that nothing would be trained. Put their text into the prompts, or use the chat template "
            "that writes it (`data.encoding.template: chat`)."
        )
    tokens = set(trained_tokens(model))
    if tokens and _trains_input_alone(model) and not any(tokens.intersection(_as_input(text)) for text in texts):
        raise InputError(
            f"`peft_config`: the adapter trains the embeddings of {len(tokens)} tokens, which no fact has, so that "
            "nothing would be trained. Give the ids of tokens that are in the facts."
        )


def _as_input(text: EncodedFact) -> tuple[int, ...]:
    """The tokens of a text that predict one."""
    return (*text.prompt_ids, *text.target_ids, *text.end_ids)[:-1]


def _trains_input_alone(model: PeftModel) -> bool:
    """Whether an adapter changes nothing but what some tokens are as input."""
    base = model.get_base_model()
    of_input = set(base.get_input_embeddings().parameters())
    is_tied = isinstance(base.get_output_embeddings(), BaseTunerLayer)
    return not is_tied and all(one in of_input for one in model.parameters() if one.requires_grad)


def say_instead(ways: FastWays, name: str) -> None:
    """Logs what is done instead of each way that is not right, a line each.

    Args:
        ways: The verdict.
        name: Of the model.
    """
    for sentence in ways.instead:
        logger.warning("Self-check of %s: %s.", name, sentence)
