"""Which modules of an architecture an adapter can be attached to, and what to suggest where it cannot."""

import copy
import logging
from contextlib import suppress

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_MOST_TRIALS = 32


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


def unmatched_names(base: PreTrainedModel, peft_config: PeftConfig) -> list[str]:
    """The names in a list of `target_modules` that no module has; a regular expression is left to PEFT.

    Args:
        base: The base model.
        peft_config: The configuration.
    """
    targets = getattr(peft_config, "target_modules", None)
    if not isinstance(targets, list | set | tuple):
        return []
    endings: set[str] = set()
    for name, _ in base.named_modules():
        parts = name.split(".")
        endings.update(".".join(parts[start:]) for start in range(len(parts)))
    return sorted(set(targets) - endings)


def suggestion(base: PreTrainedModel, peft_config: PeftConfig) -> str:
    """A sentence on what could be attached instead, "" where nothing was found.

    Each target is tried on a model of the same architecture without weights.

    Args:
        base: The base model; one that has an adapter already will do.
        peft_config: The configuration that cannot be used.
    """
    if found := _working_targets(base, peft_config):
        return f" What works here: `target_modules: [{', '.join(found)}]`."
    if found := _working_targets(base, LoraConfig()):
        return f" What works here: LoraConfig with `target_modules: [{', '.join(found)}]`."
    return ""


def _working_targets(base: PreTrainedModel, peft_config: PeftConfig) -> list[str]:
    if not hasattr(peft_config, "target_modules"):
        return []
    found = []
    with torch.random.fork_rng(devices=[]), torch.device("meta"), suppress(Exception):
        names = linear_module_names(type(base)(base.config))[:_MOST_TRIALS]
        runs = _runs_without_weights(type(base)(base.config))
        for name in names:
            with suppress(Exception):  # a target that does not work is not suggested, whatever it raises
                model = _with_target(type(base)(base.config), peft_config, name)
                if _is_trained(model) if runs else any(one.requires_grad for one in model.parameters()):
                    found.append(name)
    return found


def _with_target(base: PreTrainedModel, peft_config: PeftConfig, target: str) -> PeftModel:
    config = copy.deepcopy(peft_config)
    config.target_modules = {target}
    config.task_type = "CAUSAL_LM"
    config.inference_mode = False
    return get_peft_model(base, config)


def _runs_without_weights(model: nn.Module) -> bool:
    """Whether a model on the meta device has a forward pass; not where it decides by values, as routers do."""
    try:
        _sum_of_logits(model)
    except Exception as error:  # any model's own code; its layers are then judged by whether they are trainable
        logger.debug("No forward pass without weights: %s", error)
        return False
    return True


def _is_trained(model: nn.Module) -> bool:
    """Whether every trained tensor gets a gradient: some layers use the weights of others without calling them."""
    torch.autograd.backward(_sum_of_logits(model.train()))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return bool(trained) and all(parameter.grad is not None for parameter in trained)


def _sum_of_logits(model: nn.Module) -> Tensor:
    ids = torch.ones(1, 4, dtype=torch.long)
    logits: Tensor = model(input_ids=ids, attention_mask=ids).logits
    return logits.sum()
