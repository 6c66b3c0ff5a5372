"""Which shortcuts give a model's own numbers: the verdict of the self-check, noted for each model."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from peft import PeftModel
from torch import nn

from lit_semantic_peft.models.peft_traits import runs_adapter


@dataclass(frozen=True, slots=True)
class FastWays:
    """What may be used because it gives what plain forward passes over single texts give.

    Attributes:
        batched_answers: Free answers to prompts of different length in one batch, padded on the left. Else batches hold
            prompts of equal length.
        cache: Free answers by `generate` with the model's cache. Else each token is the argmax of a plain forward pass,
            in batches of prompts of equal length.
        prompt_cache: Free answers that continue from the keys and values of a padded pass.
        reuse_frozen_layers: Training on kept outputs of the layers below the lowest adapter.
        prefix_tree: Targets from prefix trees in place of padded batches, where the model is trained in training mode:
            no dropout, and places by `position_ids`. It is used only where it was checked.
    """

    batched_answers: bool = True
    cache: bool = True
    prompt_cache: bool = True
    reuse_frozen_layers: bool = True
    prefix_tree: bool = True

    @property
    def instead(self) -> list[str]:
        """What is done instead of each way that is not right, a sentence each for the log."""
        answers = "Free answers come from batches of prompts of equal length"
        without_cache = (
            f"{answers} and plain forward passes: the cache or the positions of `generate` change its logits"
        )
        said = {
            without_cache: not self.cache,
            f"{answers}: padding on the left changes its logits": self.cache and not self.batched_answers,
            "No free answer continues a padded pass, which changes its logits": not self.prompt_cache,
            "The frozen layers run in every step: reused outputs change its logits": not self.reuse_frozen_layers,
        }
        return [sentence for sentence, is_so in said.items() if is_so]


_FOUND: WeakKeyDictionary[nn.Module, FastWays] = WeakKeyDictionary()


def fast_ways(model: nn.Module) -> FastWays:
    """What was noted for what a forward pass does now; everything for a model that was not checked.

    Args:
        model: A causal language model, with or without an adapter; inside `disable_adapter()` it is the base model.
    """
    return _FOUND.get(_running(model), FastWays())


def is_checked(model: nn.Module) -> bool:
    """Whether anything was noted for what a forward pass does now.

    Args:
        model: As for `fast_ways`.
    """
    return _running(model) in _FOUND


def set_fast_ways(model: nn.Module, ways: FastWays) -> None:
    """Notes what may be used, until the model is gone or other ways are noted.

    Args:
        model: As for `fast_ways`.
        ways: The verdict of the self-check.
    """
    _FOUND[_running(model)] = ways


def _running(model: nn.Module) -> nn.Module:
    is_switched_off = isinstance(model, PeftModel) and not runs_adapter(model)
    return model.get_base_model() if is_switched_off else model  # type: ignore[operator]
