"""What single settings of an adapter's configuration mean: which change the base model, which cannot be trained."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from peft import PeftConfig
from peft.utils.other import get_pattern_key
from torch import nn

from lit_semantic_peft.models.peft_traits import peft_type_name, traits_of

# --------------------------------------------------- settings that mean something special

_TAKEN_OFF_THE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")  # take a part of the base weights

_CHANGES_THE_BASE: Mapping[str, Callable[[Any], bool]] = {
    "bias": lambda bias: bias != "none",
    "init_lora_weights": lambda start: str(start).lower().startswith(_TAKEN_OFF_THE_BASE),
    "layer_replication": bool,
    "kasa_config": bool,
}

_STARTS_OF_EMBEDDINGS = ("mica", "loftq")  # of LoRA's factors, besides true and false

_NOT_TRAINED_WHOLLY: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "init_lora_weights": (
        lambda start: str(start).lower() == "eva",
        "needs directions that are found from data beforehand (`initialize_lora_eva_weights`), which is not done here",
    ),
    "monteclora_config": (bool, "adds a variational loss to each forward pass, which the loss here does not contain"),
    "target_r": (lambda rank: rank < 1, "leaves no rank to train"),
    "token_indices": (lambda ids: not ids, "names no token"),
    "use_asa": (bool, "moves its budget of subspaces by gradients of which a checkpoint holds nothing"),
    "auxiliary_loss_weight": (
        lambda weight: weight > 0,
        "adds a loss of the shadow model, which the loss here does not contain; set it to 0",
    ),
    "opt_weighted_loss_type": (lambda kind: kind != "none", "is a loss of PEFT's own, which is not used here"),
    "cpt_tokens_type_mask": (
        lambda kinds: any(kind > 0 and kind % 4 == 0 for kind in kinds),
        "has answers inside the prompt (type 4), which PEFT trains by a loss of its own that is not used here",
    ),
}

WRITTEN_BY_TRAINING = frozenset({"rank_pattern"})
"""Settings of a configuration that training itself writes (AdaLoRA's ranks)."""

_OF_NO_TENSOR = frozenset({"base_model_name_or_path", "inference_mode", "peft_version", "revision"})

OF_THE_TRAINING_ALONE = frozenset(
    {"init_lora_weights", "total_step", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight"}
)
"""Settings that do not change what trained tensors mean: where they start, and AdaLoRA's schedule."""


def start_that_embeddings_lack(peft_config: PeftConfig) -> str | None:
    """The start of LoRA's factors that PEFT's embedding layers do not have, which would take the default, unsaid.

    Args:
        peft_config: Any configuration of `peft`.
    """
    start = getattr(peft_config, "init_lora_weights", True)
    if not isinstance(start, str) or start.lower() in _STARTS_OF_EMBEDDINGS:
        return None
    return f"init_lora_weights: {start}"


def settings_of(peft_config: PeftConfig) -> dict[str, str]:
    """What identifies an adapter, as text by the name of the setting: not its origin, nor what training writes.

    Args:
        peft_config: Any configuration of `peft`.
    """
    return {
        name: str(sorted(value) if isinstance(value, set) else value)
        for name, value in sorted(peft_config.to_dict().items())
        if name not in _OF_NO_TENSOR | WRITTEN_BY_TRAINING
    }


def base_changing_setting(peft_config: PeftConfig) -> str | None:
    """The setting, such as `bias: all`, that changes the base model even with the adapter off.

    The state before training, retention and the KL divergence from the base model are measured with the adapter off.

    Args:
        peft_config: Any configuration of `peft`.

    Returns:
        None where there is no such setting.
    """
    for name, changes_the_base in _CHANGES_THE_BASE.items():
        if hasattr(peft_config, name) and changes_the_base(value := getattr(peft_config, name)):
            return f"{name}: {value}" if isinstance(value, str) else name
    return None


def is_plain_lora(peft_config: PeftConfig) -> bool:
    """Whether ΔW = s·B·A, so that A alone decides which inputs the adapter sees: LoRA, but not DoRA.

    Args:
        peft_config: Any configuration of `peft`.
    """
    return peft_type_name(peft_config) == "LORA" and not getattr(peft_config, "use_dora", False)


def acts_at_names(peft_config: PeftConfig) -> bool:
    """Whether the adapter acts at the tokens of taught names alone, so that it cannot change other text.

    Args:
        peft_config: Any configuration of `peft`.
    """
    return peft_type_name(peft_config) == "SUBJECT_LORA"


def lora_scaling(path: str, peft_config: Any) -> float:
    """The factor s of ΔW = s·B·A: α/r, or α/√r with rsLoRA, by the patterns of the configuration.

    Args:
        path: Name of the layer.
        peft_config: A LoRA configuration.
    """
    ranks: Mapping[str, int] = peft_config.rank_pattern or {}
    alphas: Mapping[str, float] = peft_config.alpha_pattern or {}
    rank = ranks.get(get_pattern_key(list(ranks), path), peft_config.r)
    alpha = alphas.get(get_pattern_key(list(alphas), path), peft_config.lora_alpha)
    return float(alpha / math.sqrt(rank) if peft_config.use_rslora else alpha / rank)


def setting_without_effect(peft_config: PeftConfig) -> str | None:
    """The setting that is 0 and that all an adapter adds is multiplied by; None where there is none.

    Args:
        peft_config: Any configuration of `peft`.
    """
    return next((name for name in ("lora_alpha", "alpha") if getattr(peft_config, name, None) == 0), None)


def setting_of_nothing(base: nn.Module, peft_config: PeftConfig) -> str | None:
    """What a setting besides `target_modules` names that the model does not have: PEFT would go on without it.

    Args:
        base: The base model, with or without the adapter.
        peft_config: The configuration, whose patterns PEFT has taken.

    Returns:
        The setting and its value, such as `` `modules_to_save`: 'head' ``; None where everything is there.
    """
    modules = [name for name, _ in base.named_modules()]
    parameters = [name for name, _ in base.named_parameters()]
    checks: tuple[tuple[str, Callable[[Any], bool]], ...] = (
        ("modules_to_save", lambda one: any(name.endswith(one) for name in modules)),
        ("target_parameters", lambda one: any(one.rpartition(".")[0] in name for name in parameters)),
        ("layers_to_transform", lambda one: any(str(one) in name.split(".") for name in modules)),
        ("rank_pattern", lambda one: any(_fits(one, name) for name in modules + parameters)),
        ("alpha_pattern", lambda one: any(_fits(one, name) for name in modules + parameters)),
    )
    for setting, is_named in checks:
        given = getattr(peft_config, setting, None)
        if isinstance(given, dict):  # AdaLoRA writes lists into it
            given = [key for key, value in given.items() if not isinstance(value, list)]
        for one in [given] if isinstance(given, int) else given if isinstance(given, list | set | tuple) else []:
            if not is_named(one):
                return f"`{setting}`: {one!r}"
    return None


def exceptions_of_nothing(base: nn.Module, peft_config: PeftConfig) -> list[str]:
    """The names in `exclude_modules` that the model does not have, which does no harm but may be a slip.

    Args:
        base: The base model, with or without the adapter.
        peft_config: Any configuration of `peft`.
    """
    excluded = getattr(peft_config, "exclude_modules", None)
    modules = [f".{name}" for name, _ in base.named_modules()]
    names = excluded if isinstance(excluded, list | set | tuple) else ()
    return sorted(one for one in names if not any(name.endswith(f".{one}") for name in modules))


def _fits(pattern: str, name: str) -> bool:
    found: str = get_pattern_key([pattern], name)
    return found == pattern


def training_obstacle(peft_config: PeftConfig) -> str | None:
    """Why an adapter of this configuration would not be trained as its method says.

    Args:
        peft_config: Any configuration of `peft`.

    Returns:
        A sentence; None where nothing is in the way.
    """
    if reason := traits_of(peft_config).cannot.get("use"):
        return f"`peft_config`: {type(peft_config).__name__} {reason}."
    if peft_config.inference_mode:
        return "`peft_config` with `inference_mode: true` trains nothing. Leave it out."
    if setting := base_changing_setting(peft_config):
        return (
            f"`peft_config` with `{setting}` cannot be used: it changes the base model itself, so that nothing could "
            "be compared with the model before training. Leave it out."
        )
    if nothing := setting_without_effect(peft_config):
        return (
            f"`peft_config` with `{nothing}: 0` cannot be trained: all that the adapter adds is multiplied by it, so "
            "that it would learn nothing. Set it to a number above 0, such as twice the rank."
        )
    for name, value in vars(peft_config).items():
        if name.endswith("dropout") and isinstance(value, int | float) and not 0 <= value < 1:
            return f"`peft_config` with `{name}: {value}` cannot be trained: a share that is left out is in [0, 1)."
    for name, (is_so, reason) in _NOT_TRAINED_WHOLLY.items():
        if (value := getattr(peft_config, name, None)) is not None and is_so(value):
            return f"`peft_config` with `{name}: {value}` cannot be trained: it {reason}."
    return None


def replicated_spans(peft_config: PeftConfig) -> Any:
    """What a configuration says of layers that stand in the model more than once; as it was written, empty for nothing.

    Args:
        peft_config: Any configuration of `peft`.
    """
    return getattr(peft_config, "layer_replication", None) or []
