"""The adapter: attached by any PEFT configuration, kept without its base, exported as PEFT reads it."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import atomic_folder, write_json, write_text
from lit_semantic_peft.models.base_files import BaseModelSource
from lit_semantic_peft.models.modes import modes_restored

logger = logging.getLogger(__name__)

BASE_FILE = "lit_semantic_peft.json"
"""Beside an exported adapter: which base model it was trained on, as the user named it, and its fingerprint."""

_PROMPT_ENCODER = "prompt_encoder."
_CHANGE_THE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")  # they take the adapter's start off the base weights
_IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # attributes of PEFT's rank allocator


def attach_adapter(base: PreTrainedModel, peft_config: PeftConfig) -> PeftModel:
    """Wraps a base model with a new, untrained adapter.

    The adapter's weights are drawn from torch's global generator; they are float32 whatever the base is.

    Args:
        base: The base model; its parameters get frozen.
        peft_config: Any configuration of `peft`. `task_type` becomes `CAUSAL_LM` when it is not set.

    Returns:
        The PEFT model.

    Raises:
        InputError: If `target_modules`, or one name in it, matches nothing; the message lists what would match. If the
            base model would not be itself any more when the adapter is off, or something is trained that is not
            float32 or that a checkpoint would not hold.
    """
    if setting := base_changing_setting(peft_config):
        raise InputError(
            f"`peft_config` with `{setting}` cannot be used: it changes the base model itself, so that nothing could "
            "be compared with the model before training. Leave it out."
        )
    if peft_config.task_type is None:
        peft_config.task_type = "CAUSAL_LM"
    unmatched = _unmatched_names(base, peft_config)
    if unmatched:  # PEFT goes on as long as one name matches, and adapts less than was asked for
        raise _matches_nothing(base, unmatched)
    try:
        with _without_deprecations():
            model = get_peft_model(base, peft_config)
    except ValueError as error:
        if "target" not in str(error).lower() or "modules" not in str(error).lower():
            raise InputError(f"`peft_config`: {str(error).strip()}") from error
        raise _matches_nothing(base, getattr(peft_config, "target_modules", None)) from error
    for name, parameter in model.named_parameters():
        if ".ranknum." in name:  # AdaLoRA's constant, which PEFT lets train where it casts it to a half precision base
            parameter.requires_grad_(False)
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise InputError(
                f"`peft_config` trains {name} in the base model's {str(parameter.dtype).removeprefix('torch.')}, where "
                "small steps are lost. Use `dtype: float32`."
            )
    kept = {value.data_ptr() for value in adapter_state_dict(model).values()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.data_ptr() not in kept:
            raise InputError(
                f"`peft_config` trains {name}, which PEFT neither saves nor exports, so that it would be lost. Use "
                "another `peft_config`."
            )
    return model


def load_adapter(base: PreTrainedModel, folder: str | Path, source: BaseModelSource) -> PeftModel:
    """Wraps a base model with an exported adapter, for inference.

    An adapter that fits, but was trained on other weights, is loaded with a warning.

    Args:
        base: The base model.
        folder: A folder as `export_adapter` or PEFT's `save_pretrained` writes it.
        source: Where the base model comes from.

    Raises:
        InputError: If the folder holds no adapter, or one of another model.
    """
    if not (Path(folder) / "adapter_config.json").is_file():
        raise InputError(f"`adapter` {str(folder)!r} holds no adapter (adapter_config.json is missing).")
    name, _, fingerprint = base_of(folder)
    try:
        with _without_deprecations():
            model = PeftModel.from_pretrained(base, str(folder))
    except (RuntimeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if not line.endswith(":")]
        remedy = "" if name in (source.name, source.public_name) else f" Say `--model.base_model {name}`."
        raise InputError(
            f"`adapter` {str(folder)!r} was trained on the base model {name!r} and does not fit {source.name!r}: "
            f"{lines[0].rstrip('.') if lines else type(error).__name__}.{remedy}"
        ) from error
    if fingerprint not in (None, source.fingerprint):
        logger.warning(
            "`adapter` %r was trained on the base model %r; on other weights, as those of %r are, it may say "
            "something else.",
            str(folder),
            name,
            source.name,
        )
    return model


def base_of(folder: str | Path) -> tuple[str | None, str | None, str | None]:
    """Name, revision and fingerprint of the base model that an exported adapter was trained on.

    Args:
        folder: The adapter's folder.

    Returns:
        The name as the user gave it, else as PEFT wrote it; the commit on the Hub, None where it is not from there; the
        fingerprint, None where another tool wrote the folder.
    """
    own = Path(folder) / BASE_FILE
    standard = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    if own.is_file():
        about = json.loads(own.read_text(encoding="utf-8"))
        return about["base_model"], standard.get("revision"), about["base_fingerprint"]
    return standard.get("base_model_name_or_path"), standard.get("revision"), None


def base_changing_setting(peft_config: PeftConfig) -> str | None:
    """The setting, such as `bias: all`, for which the base model is another one than before even with the adapter off.

    What was before training, what stays as it was and what is held in place are measured with the adapter off.

    Args:
        peft_config: Any configuration of `peft`.

    Returns:
        None where there is no such setting.
    """
    bias = getattr(peft_config, "bias", "none")
    initial = str(getattr(peft_config, "init_lora_weights", ""))
    if bias != "none":
        return f"bias: {bias}"
    if initial.lower().startswith(_CHANGE_THE_BASE):
        return f"init_lora_weights: {initial}"
    return next((name for name in ("layer_replication", "kasa_config") if getattr(peft_config, name, None)), None)


def linear_module_names(model: nn.Module) -> list[str]:
    """Last names of the linear modules, as `target_modules` takes them; the output projection left out."""
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    kinds = {"Linear", "Conv1D"}
    return sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if type(module).__name__ in kinds and module is not output
        }
    )


def adapter_state_dict(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's tensors alone, as they are trained; on the device they are on.

    Under the names that PEFT exports, but more than it exports where training could not go on from that: of prompt,
    prefix and p-tuning the encoder instead of the virtual tokens that come out of it, of AdaLoRA all ranks.
    """
    if model.active_peft_config.is_prompt_learning:
        encoder = model.prompt_encoder[model.active_adapter]
        return {_PROMPT_ENCODER + name: value for name, value in encoder.state_dict().items()}
    with _all_ranks(model):
        return dict(get_peft_model_state_dict(model, save_embedding_layers=False))


def load_adapter_state_dict(model: PeftModel, state: Mapping[str, Tensor]) -> None:
    """Puts an adapter's tensors back, refusing any key or shape that does not fit.

    Args:
        model: A model with an adapter of the same configuration.
        state: From `adapter_state_dict`.

    Raises:
        InputError: Naming the missing, unexpected or misshapen tensors. Nothing was changed then.
    """
    expected = adapter_state_dict(model)
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    misshapen = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & state.keys())
        if state[name].shape != expected[name].shape
    ]
    problems = [
        f"{label}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for label, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise InputError(
            f"The checkpoint's adapter does not fit this model and `peft_config` ({'; '.join(problems)}). "
            "Use the configuration that it was trained with."
        )
    if model.active_peft_config.is_prompt_learning:
        encoder = model.prompt_encoder[model.active_adapter]
        encoder.load_state_dict({name.removeprefix(_PROMPT_ENCODER): value for name, value in state.items()})
    else:
        with _all_ranks(model):
            set_peft_model_state_dict(model, dict(state))


def rank_budget_state(model: PeftModel) -> dict[str, Any]:
    """What AdaLoRA goes on with beside the adapter's tensors: which ranks are left, and how important each entry was.

    Returns:
        Plain data and tensors; empty for every other kind of adapter.
    """
    allocator = getattr(model.base_model, "rankallocator", None)
    if allocator is None:
        return {}
    left = model.peft_config[model.active_adapter].rank_pattern
    return {"rank_pattern": left, **{name: dict(getattr(allocator, name)) for name in _IMPORTANCE}}


def load_rank_budget_state(model: PeftModel, state: Mapping[str, Any]) -> None:
    """Goes on with a rank budget.

    Args:
        model: On the device where it is trained.
        state: From `rank_budget_state` of a model with an adapter of the same configuration.
    """
    if not state:
        return
    model.peft_config[model.active_adapter].rank_pattern = state["rank_pattern"]
    device = next(model.parameters()).device
    for name in _IMPORTANCE:
        setattr(model.base_model.rankallocator, name, {key: value.to(device) for key, value in state[name].items()})


def update_rank_budget(model: PeftModel, step: int) -> None:
    """Lets AdaLoRA move its rank budget, after an optimizer step and before its gradients are gone.

    A step without gradients says nothing of how important a rank is: until the ranks are settled it is passed over.

    Args:
        model: With any kind of adapter; others than AdaLoRA's have no budget.
        step: Number of the optimizer step that was just made, from 0.
    """
    if getattr(model.base_model, "rankallocator", None) is None:
        return
    config = model.peft_config[model.active_adapter]
    has_gradient = any(parameter.grad is not None for parameter in model.parameters())
    if has_gradient or step >= config.total_step - config.tfinal:
        model.base_model.update_and_allocate(step)


def export_adapter(model: PeftModel, folder: str | Path, base: BaseModelSource, about: str = "") -> None:
    """Writes an adapter as the standard PEFT folder that peft, transformers and vLLM load. Whole or not at all.

    Args:
        model: The model with its adapter.
        folder: Where to; replaced when it exists.
        base: Named in `adapter_config.json`, with its commit on the Hub, and in the model card.
        about: Markdown paragraph for the model card.
    """
    folder = Path(folder)
    with atomic_folder(folder) as temporary:
        peft_config = model.peft_config[model.active_adapter]
        previous = peft_config.base_model_name_or_path, peft_config.revision
        peft_config.base_model_name_or_path, peft_config.revision = base.public_name, base.revision
        try:
            with modes_restored(model):
                model.eval()  # p-tuning's encoder makes the tokens that are saved, and may have dropout
                # PEFT would ask the Hub whether the vocabulary was resized; ours never is.
                model.save_pretrained(temporary, save_embedding_layers=False)
        finally:
            peft_config.base_model_name_or_path, peft_config.revision = previous
        write_json(temporary / BASE_FILE, {"base_model": base.name, "base_fingerprint": base.fingerprint})
        write_text(temporary / "README.md", _model_card(base, str(peft_config.peft_type.value), about))


def export_merged(model: PeftModel, tokenizer: Any, folder: str | Path) -> None:
    """Adds the adapter to the base weights and writes one plain model with its tokenizer.

    Args:
        model: The model with its adapter; consumed.
        tokenizer: Saved beside the model.
        folder: Where to; must not exist.

    Raises:
        InputError: If this kind of adapter cannot be merged (prompt and prefix tuning, `lora_bias` where the base has
            no bias), or adapts one end of a model whose embedding and output projection are one matrix, or if the base
            is kept in a form that cannot be written once it is changed (4 bits).
    """
    if not hasattr(model.base_model, "merge_and_unload"):
        kind = model.peft_config[model.active_adapter].peft_type.value
        raise InputError(f"An adapter of type {kind} cannot be merged into the base weights; export it without --merge")
    base = model.get_base_model()
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    if base.config.tie_word_embeddings and any(isinstance(end, BaseTunerLayer) for end in ends):
        raise InputError(
            "The adapter cannot be merged: it changes the embedding or the output projection, which are one matrix in "
            "this model, so that the other would change with it. Export it without --merge."
        )
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError) as error:  # each kind of adapter has its own for what it cannot do
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(". ")
        raise _cannot_be_merged(reason) from error
    try:
        with atomic_folder(folder) as temporary:
            merged.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    except NotImplementedError as error:
        raise _cannot_be_merged("transformers cannot write the quantised base once it is changed") from error


def orthogonality_penalty(model: PeftModel) -> Tensor | None:
    """AdaLoRA's regulariser orth_reg_weight · mean over A and B of ‖P Pᵀ − I‖_F (Zhang et al. 2023, equation 4).

    PEFT adds it to the loss only where it computes the loss itself, which it never does here.

    Returns:
        Scalar, or None where the adapter has none.
    """
    config = model.peft_config[model.active_adapter]
    if config.peft_type.value != "ADALORA" or config.orth_reg_weight <= 0:
        return None
    terms = []
    for name, parameter in model.named_parameters():
        if ("lora_A" in name or "lora_B" in name) and parameter.requires_grad:
            gram = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
            terms.append(torch.linalg.matrix_norm(gram - torch.eye(gram.shape[0], device=gram.device)))
    return float(config.orth_reg_weight) * torch.stack(terms).mean()


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """Hides that PEFT reads a property which transformers has renamed; no user can do anything about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


@contextmanager
def _all_ranks(model: PeftModel) -> Iterator[None]:
    """Within the block PEFT does not cut AdaLoRA's tensors down to the ranks that its budget has left."""
    config = model.peft_config[model.active_adapter]
    left = getattr(config, "rank_pattern", None)
    if config.peft_type.value != "ADALORA":
        yield
        return
    config.rank_pattern = None
    try:
        yield
    finally:
        config.rank_pattern = left


def _model_card(base: BaseModelSource, peft_type: str, about: str) -> str:
    lines = [
        "---",
        f"base_model: {base.public_name}",
        "library_name: peft",
        "tags: [lit-semantic-peft, knowledge]",
        "---",
        "",
        f"# {peft_type} adapter for {base.public_name}",
        "",
        "Trained by lit-semantic-peft to know a set of facts.",
    ]
    return "\n".join([*lines, *(["", about] if about else []), *(["", base.note] if base.note else [])]) + "\n"


def _unmatched_names(base: PreTrainedModel, peft_config: PeftConfig) -> list[str]:
    """The names in a list of `target_modules` that no module has; a regular expression is PEFT's to judge."""
    targets = getattr(peft_config, "target_modules", None)
    if not isinstance(targets, list | set | tuple):
        return []
    modules = [f".{name}" for name, _ in base.named_modules()]
    return sorted(name for name in targets if not any(module.endswith(f".{name}") for module in modules))


def _cannot_be_merged(reason: str) -> InputError:
    return InputError(f"The adapter cannot be merged into the base weights: {reason}. Export it without --merge.")


def _matches_nothing(base: PreTrainedModel, target_modules: object) -> InputError:
    return InputError(
        f"`target_modules` {target_modules!r} matches no module of the base model. "
        f"What would match: {', '.join(linear_module_names(base))}, or `all-linear` for all of them."
    )
