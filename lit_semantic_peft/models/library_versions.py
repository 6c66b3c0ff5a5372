"""What differs between the supported releases of transformers and peft: all of it, and nothing else, is here."""

import inspect
from typing import Any

import peft
import transformers
from packaging.version import Version
from peft import PeftModel

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.peft_traits import traits_of_forward


def cache_argument(model: Any) -> str | None:
    """What a model's forward calls its key-value cache.

    transformers renamed the argument with 5.24; models from a repository's own code may keep the old name.

    Args:
        model: A causal language model of transformers, or a `peft` model around one.

    Returns:
        `cache` or `past_key_values`; None if the model takes no cache.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    taken = inspect.signature(base.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in taken), None)


def misreads_cache() -> bool:
    """Whether peft misreads the key-value cache of adapters with virtual tokens, before the input or in the cache.

    peft up to 0.21 looks for the cache under the name that transformers had until 5.23. Under 5.24 it finds none, so
    `generate` puts the virtual tokens in front again at every token, or loses the prefix: answers are wrong without an
    error. The loss of a batch, which needs no cache, is right.
    """
    return Version(transformers.__version__).release >= (5, 24) and Version(peft.__version__).release < (0, 22)


def refuse_misread_cache(model: Any) -> None:
    """Refuses free answers that would be wrong, see `misreads_cache`.

    Args:
        model: A causal language model of transformers, or a `peft` model around one.

    Raises:
        InputError: If the adapter has virtual tokens, is not switched off, and its cache is misread.
    """
    if traits_of_forward(model).virtual_tokens != "none" and misreads_cache():
        raise InputError(
            f"`peft_config`: {type(model.active_peft_config).__name__} answers wrongly with transformers "
            f"{transformers.__version__} and peft {peft.__version__}, which misreads the key-value cache. Install "
            "transformers<5.24, or use an adapter without virtual tokens, such as LoraConfig."
        )
