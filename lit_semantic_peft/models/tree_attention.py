"""How a model runs a prefix tree: depths as positions, and an attention mask that shows each node its ancestors."""

import inspect
from typing import Any

from peft import PeftModel
from torch import Tensor, nn

from lit_semantic_peft.models.fast_ways import fast_ways, is_checked
from lit_semantic_peft.models.peft_traits import peft_type_name, traits_of_forward
from lit_semantic_peft.tokens import PrefixTree

_TAKES_A_MASK = ("eager", "sdpa")
_FULL, _SLIDING = "full_attention", "sliding_attention"
_WINDOW_SETTINGS = {"sliding_window", "use_sliding_window", "max_window_layers", "sliding_window_pattern"}


def tree_inputs(model: nn.Module, tree: PrefixTree) -> dict[str, Any]:
    """What a model's forward gets beside the tokens of a tree's nodes.

    Args:
        model: A causal language model of transformers, or a `peft` model around one, with no `prefix_tree_obstacle`.
        tree: The tree.

    Returns:
        `position_ids` `(P, N)`, and as `attention_mask` either a float mask `(P, 1, N, N)`, or for layers of several
        kinds one by the name of each (`config.layer_types`).
    """
    base = _base_of(model)
    config = base.config.get_text_config()
    dtype = base.get_input_embeddings().weight.dtype
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    mask: Tensor | dict[str, Tensor]
    if kinds - {_FULL}:
        mask = {kind: tree.attention_mask(dtype, window if kind == _SLIDING else None) for kind in sorted(kinds)}
    else:
        mask = tree.attention_mask(dtype, None if kinds else window)
    return {"position_ids": tree.depth, "attention_mask": mask}


def prefix_tree_obstacle(model: nn.Module) -> str:
    """Why a model does not run prefix trees: a clause for a message, or "" if it can.

    Args:
        model: A causal language model of transformers, or a `peft` model around one.
    """
    config = _base_of(model).config.get_text_config()
    if traits_of_forward(model).virtual_tokens != "none":
        assert isinstance(model, PeftModel)
        return f"an adapter of type {peft_type_name(model)} has virtual tokens"
    if traits_of_forward(model).routes:
        assert isinstance(model, PeftModel)
        return f"an adapter of type {peft_type_name(model)} routes every fact by itself"
    if config._attn_implementation not in _TAKES_A_MASK:
        return f"its attention {config._attn_implementation!r} takes no mask; {' and '.join(_TAKES_A_MASK)} do"
    if "position_ids" not in inspect.signature(_base_of(model).forward).parameters:
        return "it takes no `position_ids`"
    kinds = set(getattr(config, "layer_types", None) or [])
    if others := sorted(kinds - {_FULL, _SLIDING}):
        return f"it has layers of another type ({', '.join(others)}) than {_FULL} and {_SLIDING}"
    given = {name.strip("_") for name, value in vars(config).items() if value}
    if unknown := sorted(name for name in given - _WINDOW_SETTINGS if "window" in name or "chunk" in name):
        return f"it limits what a token sees by its place (`{'`, `'.join(unknown)}` in its configuration)"
    if is_checked(model) and not fast_ways(model).prefix_tree:
        return (
            "the self-check found that its logits are not those of plain forward passes, as with dropout, or where the "
            "places of tokens do not come from `position_ids`"
        )
    return ""


def measures_trees(model: nn.Module, setting: bool | None) -> bool:
    """Whether facts that are only measured run as prefix trees.

    Args:
        model: As for `prefix_tree_obstacle`.
        setting: As `SemanticPeftModule` has it. None: where the self-check found that they are exact. True: also where
            no check ran. False: never.
    """
    return setting is not False and not prefix_tree_obstacle(model) and (bool(setting) or is_checked(model))


def _base_of(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model
