"""What is peculiar to a type of adapter: the only module that decides by the name of a type.

The types of `lit_semantic_peft.adapters` are known to PEFT wherever this module is imported.

The rest of the package treats every adapter alike and asks `traits_of` where types differ. To teach the package a
peculiarity, add it to `_PECULIAR` below; a type without an entry has the defaults of `PeftTraits`.

What is not a peculiarity of a type is elsewhere: `interference/layer_rules.py` has formulas for the per-fact
gradients of some layer classes. A layer without one is measured by one backward pass per fact, which is always exact.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from lit_semantic_peft.adapters import as_lora
from lit_semantic_peft.adapters.balance import end_step, loads, set_loads
from lit_semantic_peft.errors import InputError

Feature = Literal[
    "use", "merge", "gradient_checkpointing", "reuse_frozen_layers", "prompt_cache", "loss_scaling", "mix_rows"
]  # fmt: skip
"""What an adapter may be unable to do:

- `use`: be trained or asked here at all.
- `merge`: become part of the base weights.
- `gradient_checkpointing`: train with activations that are recomputed in the backward pass.
- `reuse_frozen_layers`: train on kept outputs of the layers below the lowest adapter.
- `prompt_cache`: continue from the keys and values of a padded pass.
- `mix_rows`: act on some rows of a batch and not on others.
- `loss_scaling`: train under `16-mixed`, where gradients are those of a scaled loss.
"""

# ------------------------------------------------- what every type does without an entry


def exported_tensors(model: PeftModel) -> dict[str, Tensor]:
    """The tensors that PEFT saves, by the names it gives them.

    Args:
        model: A model with an adapter.
    """
    return dict(get_peft_model_state_dict(model, save_embedding_layers=False))


def embedding_tensors(model: PeftModel) -> dict[str, Tensor]:
    """The base model's embeddings, by the names under which PEFT saves them beside some adapters.

    Args:
        model: A model with an adapter.
    """
    both = get_peft_model_state_dict(model, save_embedding_layers=True)
    return {name: both[name] for name in both.keys() - exported_tensors(model).keys()}


@torch.no_grad()
def set_exported_tensors(model: PeftModel, state: Mapping[str, Tensor]) -> None:
    """Loads tensors of the names that PEFT gives them.

    Args:
        model: A model with an adapter.
        state: From `exported_tensors` of an adapter of the same configuration.
    """
    set_peft_model_state_dict(model, dict(state))
    # On the way transformers renames what it takes for the tensors of an older file, and PEFT leaves those out.
    for name, held in exported_tensors(model).items():
        if name in state:
            held.copy_(state[name])


def _no_state(model: PeftModel) -> dict[str, Any]:
    return {}


def _load_no_state(model: PeftModel, state: Mapping[str, Any]) -> None:
    pass


def _no_penalty(model: PeftModel) -> Tensor | None:
    return None


def _no_step(model: PeftModel, step: int) -> None:
    pass


@dataclass(frozen=True)
class PeftTraits:
    """How a type of adapter differs from most others.

    Attributes:
        learning_rate: AdamW's rate where the user gives no optimizer; `docs/adapters.md` says how it was found.
        cannot: Features that the type does not have, each with the reason, worded to follow the type's name.
        virtual_tokens: Where the `num_virtual_tokens` of the configuration are: before the input, or in the
            key-value cache.
        constants: Parts of the names of parameters that are never trained, even where PEFT marks them as trained.
        has_own_loss: Whether PEFT changes the loss that the model gives where it gets labels.
        may_lack_gradient: Whether the tensors of a layer may have no gradient where the model does not run the layer,
            or decides something discrete by it.
        tensors: Gives all trained tensors by name, so that training can resume from them.
        load_tensors: Loads them.
        extra_state: Gives what training needs to resume besides the tensors: plain data and tensors.
        load_extra_state: Loads it, into a model on the device where it is trained; `{}` changes nothing.
        penalty: Gives a scalar that is added to the loss of an optimizer step once, or None.
        after_optimizer_step: Called between an optimizer step and the end of its gradients, with the number of the
            step, from 0.
        routes: Whether it acts only on prompts that name what was taught, by the `anchors` of its configuration.
        has_experts: Whether it has experts, which are to be equally busy.
        as_lora: Gives the configuration and the tensors of plain LoRA with the same update; None where there is no
            such LoRA, and for LoRA itself.
    """

    learning_rate: float = 2e-3
    cannot: Mapping[Feature, str] = field(default_factory=dict)
    virtual_tokens: Literal["none", "input", "cache"] = "none"
    constants: tuple[str, ...] = ()
    may_lack_gradient: bool = True
    has_own_loss: bool = False
    routes: bool = False
    has_experts: bool = False
    tensors: Callable[[PeftModel], dict[str, Tensor]] = exported_tensors
    load_tensors: Callable[[PeftModel, Mapping[str, Tensor]], None] = set_exported_tensors
    extra_state: Callable[[PeftModel], dict[str, Any]] = _no_state
    load_extra_state: Callable[[PeftModel, Mapping[str, Any]], None] = _load_no_state
    penalty: Callable[[PeftModel], Tensor | None] = _no_penalty
    after_optimizer_step: Callable[[PeftModel, int], None] = _no_step
    as_lora: Callable[[Any, Mapping[str, Tensor]], tuple[PeftConfig, dict[str, Tensor]]] | None = None


# --------------------------------------------------------- prompt, prefix and p-tuning

_ENCODER = "prompt_encoder."


def _encoder_tensors(model: PeftModel) -> dict[str, Tensor]:
    """The encoder. PEFT exports the virtual tokens that come out of it, from which training could not resume."""
    encoder = model.prompt_encoder[model.active_adapter]
    return {_ENCODER + name: value for name, value in encoder.state_dict().items()}


def _load_encoder_tensors(model: PeftModel, state: Mapping[str, Tensor]) -> None:
    encoder = model.prompt_encoder[model.active_adapter]
    encoder.load_state_dict({name.removeprefix(_ENCODER): value for name, value in state.items()})


_VIRTUAL_TOKENS = PeftTraits(
    cannot={
        "merge": "adds tokens, not weights",
        "reuse_frozen_layers": "changes the input of the lowest layer",
        "prompt_cache": "keeps its own tokens in the cache",
        "mix_rows": "adds tokens to all rows",
    },
    learning_rate=1.0,
    virtual_tokens="input",
    tensors=_encoder_tensors,
    load_tensors=_load_encoder_tensors,
)

_TOKENS_IN_THE_CACHE = replace(
    _VIRTUAL_TOKENS,
    cannot={
        **_VIRTUAL_TOKENS.cannot,
        "gradient_checkpointing": "works through the cache that checkpointed layers do not have",
    },
    learning_rate=0.2,
    virtual_tokens="cache",
)

# ----------------------------------------------------------------------------- AdaLoRA

_IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # attributes of PEFT's rank allocator


@contextmanager
def _all_ranks(model: PeftModel) -> Iterator[None]:
    """Within the block PEFT does not reduce the tensors to the ranks that are left in the budget."""
    config = model.active_peft_config
    left = config.rank_pattern
    config.rank_pattern = None
    try:
        yield
    finally:
        config.rank_pattern = left


def _tensors_of_all_ranks(model: PeftModel) -> dict[str, Tensor]:
    with _all_ranks(model):
        return exported_tensors(model)


def _load_tensors_of_all_ranks(model: PeftModel, state: Mapping[str, Tensor]) -> None:
    with _all_ranks(model):
        set_exported_tensors(model, state)


def _rank_budget(model: PeftModel) -> dict[str, Any]:
    """Which ranks are left, and how important each entry was."""
    allocator = getattr(model.base_model, "rankallocator", None)
    if allocator is None:  # loaded for inference
        return {}
    left = model.active_peft_config.rank_pattern
    return {"rank_pattern": left, **{name: dict(getattr(allocator, name)) for name in _IMPORTANCE}}


def _load_rank_budget(model: PeftModel, state: Mapping[str, Any]) -> None:
    if not state:
        return
    model.active_peft_config.rank_pattern = state["rank_pattern"]
    device = next(model.parameters()).device
    for name in _IMPORTANCE:
        setattr(model.base_model.rankallocator, name, {key: value.to(device) for key, value in state[name].items()})


def _move_rank_budget(model: PeftModel, step: int) -> None:
    """A step without gradients has no information on the importance of ranks: it is skipped until ranks are final."""
    if getattr(model.base_model, "rankallocator", None) is None:
        return
    config = model.active_peft_config
    has_gradient = any(parameter.grad is not None for parameter in model.parameters())
    if has_gradient or step >= config.total_step - config.tfinal:
        model.base_model.update_and_allocate(step)


def _orthogonality(model: PeftModel) -> Tensor | None:
    """orth_reg_weight · mean over A and B of ‖P Pᵀ − I‖_F (Zhang et al. 2023, equation 4).

    PEFT adds it to the loss only where it computes the loss itself, which it never does here.
    """
    weight = float(model.active_peft_config.orth_reg_weight)
    if weight <= 0:
        return None
    terms = []
    for name, parameter in model.named_parameters():
        if ("lora_A" in name or "lora_B" in name) and parameter.requires_grad:
            gram = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
            terms.append(torch.linalg.matrix_norm(gram - torch.eye(gram.shape[0], device=gram.device)))
    return weight * torch.stack(terms).mean()


_ADALORA = PeftTraits(
    cannot={"loss_scaling": "reads the gradients to move its rank budget"},
    learning_rate=2e-2,
    has_own_loss=True,
    may_lack_gradient=False,  # PEFT reads all of them
    constants=(".ranknum.",),  # trained by PEFT where it casts them to a half precision base
    tensors=_tensors_of_all_ranks,
    load_tensors=_load_tensors_of_all_ranks,
    extra_state=_rank_budget,
    load_extra_state=_load_rank_budget,
    penalty=_orthogonality,
    after_optimizer_step=_move_rank_budget,
)

# --------------------------------------------------------------------------- the table

_LEARNING_RATES = {  # of types with no other peculiarity; LoRA's for all the rest
    5e-2: ("FOURIERFT", "IA3", "VERA"),
    2e-2: ("BOFT", "LOHA", "LOKR"),
    1e-2: ("C3A", "HRA", "LN_TUNING", "PVERA", "ROAD", "SUPERTUNING", "TRAINABLE_TOKENS", "UNILORA"),
    5e-4: ("DELORA", "GRALORA", "RANDLORA", "TINYLORA", "WAVEFT"),
}
_NEEDS_TASKS = "needs the number of a task (`task_ids`) with every text, which facts do not have"

_PECULIAR = {  # PEFT's name of the type; strings, since releases of PEFT have different types
    "ADALORA": _ADALORA,
    "ADAPTION_PROMPT": PeftTraits(
        cannot={"merge": "adds attention to a learned prompt", "mix_rows": "is no layer around one of the base"},
        learning_rate=1e-2,
    ),
    "CARTRIDGE": _TOKENS_IN_THE_CACHE,
    "CPT": replace(_VIRTUAL_TOKENS, has_own_loss=True),
    # Its core starts at zero: in the first step only that has a gradient other than zero, then A and B have one too.
    "FLORA": PeftTraits(learning_rate=1e-2, as_lora=as_lora),
    "KNOWLEDGE_MOE": PeftTraits(
        cannot={
            "merge": "acts by what a prompt names, which one matrix for all prompts cannot",
            "gradient_checkpointing": "needs the prompt, which layers that the backward pass runs again do not have",
            "mix_rows": "decides by itself on which rows it acts",
        },
        routes=True,
        has_experts=True,
        extra_state=loads,
        load_extra_state=set_loads,
        after_optimizer_step=lambda model, step: end_step(model),
    ),
    "MULTITASK_PROMPT_TUNING": replace(
        _VIRTUAL_TOKENS, cannot={**_VIRTUAL_TOKENS.cannot, "use": f"{_NEEDS_TASKS}; PromptTuningConfig does not"}
    ),
    "P_TUNING": replace(_VIRTUAL_TOKENS, learning_rate=2e-3),  # trains an encoder
    "LILY": PeftTraits(
        cannot={
            "use": "routes by the mean over all tokens of a batch, so that a fact's loss depends on the others in it"
        }
    ),
    "POLY": PeftTraits(cannot={"use": f"{_NEEDS_TASKS}; LoraConfig does not"}),
    "PREFIX_TUNING": _TOKENS_IN_THE_CACHE,
    "SHADOW": PeftTraits(cannot={"mix_rows": "runs a model of its own beside the base"}),
    "SUBJECT_LORA": PeftTraits(
        cannot={
            "merge": "acts at the tokens of names, and one matrix would act at all tokens",
            "gradient_checkpointing": "needs the prompt, which layers that the backward pass runs again do not have",
            "mix_rows": "decides by itself where it acts",
        },
        routes=True,
    ),
    "XLORA": PeftTraits(
        cannot={"use": "mixes LoRA adapters that were trained before, and PEFT saves the mixture without them"}
    ),
    **{name: PeftTraits(learning_rate=rate) for rate, names in _LEARNING_RATES.items() for name in names},
}


def traits_of(of: PeftConfig | nn.Module) -> PeftTraits:
    """What is peculiar to an adapter.

    Args:
        of: A configuration of `peft`, or a model; one without an adapter has nothing peculiar.
    """
    config = _config_of(of)
    if config is None:
        return PeftTraits()
    default = _VIRTUAL_TOKENS if config.is_prompt_learning else PeftTraits()
    return _PECULIAR.get(peft_type_name(config), default)


def traits_of_forward(model: nn.Module) -> PeftTraits:
    """As `traits_of`, for what a forward pass does now: inside `disable_adapter()` it is that of the base model."""
    return traits_of(model) if runs_adapter(model) else PeftTraits()


def runs_adapter(model: nn.Module) -> bool:
    """Whether a forward pass uses an adapter: there is one, and it is not switched off."""
    return isinstance(model, PeftModel) and not model._adapters_disabled


def peft_type_name(of: PeftConfig | PeftModel) -> str:
    """PEFT's name of an adapter's type, such as `LORA`: to show it, not to decide by it.

    Args:
        of: A configuration of `peft`, or a model with an adapter.

    Raises:
        InputError: If it is a configuration of no method.
    """
    config = of.active_peft_config if isinstance(of, PeftModel) else of
    if config.peft_type is None:
        raise InputError(
            f"`peft_config`: {type(config).__name__} is no method of its own. Name one, such as LoraConfig."
        )
    return str(config.peft_type.value)


def awakening_tokens(model: nn.Module) -> tuple[int, ...]:
    """Ids that a prompt must have for an adapter to do anything, such as a taught name; empty where it always does.

    Args:
        model: A causal language model of transformers, or a `peft` model around one.
    """
    config = _config_of(model) if runs_adapter(model) else None
    if getattr(config, "anchors", None) is not None:
        return config.anchors.tokens_of(config.anchors.table.names[0])  # type: ignore[no-any-return, union-attr]
    return tuple(getattr(config, "alora_invocation_tokens", None) or ())


def trained_tokens(of: PeftConfig | nn.Module) -> tuple[int, ...]:
    """The ids whose embeddings an adapter trains one by one; empty where it trains none, or all.

    Args:
        of: As for `traits_of`.
    """
    config = _config_of(of)
    given = getattr(config, "token_indices", None) or getattr(config, "trainable_token_indices", None) or ()
    lists = given.values() if isinstance(given, Mapping) else [given]
    return tuple(sorted({token for ids in lists for token in ids}))


def num_virtual_tokens(model: nn.Module) -> int:
    """Virtual tokens before the input in a forward pass (prompt- and p-tuning).

    Args:
        model: A causal language model of transformers, or a `peft` model around one.
    """
    return int(_config_of(model).num_virtual_tokens) if traits_of_forward(model).virtual_tokens == "input" else 0


def positions_taken(of: PeftConfig | nn.Module) -> int:
    """Positions of the base model that an adapter takes with its virtual tokens, before the input or in the cache.

    Args:
        of: As for `traits_of`.
    """
    return 0 if traits_of(of).virtual_tokens == "none" else int(_config_of(of).num_virtual_tokens)


def _config_of(of: PeftConfig | nn.Module) -> Any:
    return of if isinstance(of, PeftConfig) else getattr(of, "active_peft_config", None)
