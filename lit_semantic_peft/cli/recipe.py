"""`--recipe`: fills the settings that the user left open, before anything is built from them."""

import logging
from importlib import import_module
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero
from peft import LoraConfig, PeftConfig

from lit_semantic_peft.adapters import SubjectGate
from lit_semantic_peft.cli.recipe_options import RecipeName
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import FactSet, read_facts
from lit_semantic_peft.models import BaseModel, traits_of
from lit_semantic_peft.models.peft_settings import base_changing_setting
from lit_semantic_peft.training.recipe import Recipe, choose_recipe

logger = logging.getLogger(__name__)

PLAIN_EPOCHS = 8
"""Epochs of `recipe: plain` where the user set neither epochs nor steps."""


def apply_recipe(name: RecipeName, config: Namespace, parser: ArgumentParser) -> Namespace:
    """Fills what the user left open in the configuration of `fit`, and says what was chosen and why.

    Args:
        name: `auto`; `gated`, for an adapter that acts where something taught is named; or `plain` for the adapter as
            everyone trains it: own prompts, nothing held still.
        config: The parsed configuration of `fit`.
        parser: Of `fit`; completes what is filled in.

    Raises:
        InputError: If facts or base model are not found, or the recipe is gated and the adapter has a gate of its own.
    """
    length_is_open = config.trainer.max_epochs is None and config.trainer.max_steps == -1
    if name == "plain":
        if length_is_open:
            config.trainer.max_epochs = PLAIN_EPOCHS
        return config
    refines = length_is_open and config.refine is None and not _decides_its_steps(config.trainer)
    open_settings = {
        "model.gate": name == "gated" and config.model.gate is None,
        "trainer.max_steps": length_is_open,
        "refine": refines,
        "model.optimizer": config.model.optimizer is None,
        "data.forms": config.data.forms.sources is None,
        "model.retain": config.model.retain is None,
    }
    if not any(open_settings.values()) and name != "gated":
        return config
    peft_config = _peft_config(config.model.peft_config)
    if name == "gated" and traits_of(peft_config).routes:
        raise InputError(
            f"`--recipe gated` puts a gate around the adapter, and {type(peft_config).__name__} has one of its own. "
            "Leave out `--recipe`."
        )
    if not any(open_settings.values()):
        return config
    gate = _gate(config.model.gate) if name == "gated" else None
    chosen = _as_settings(_recipe_for(config, peft_config, gate), refines=refines)
    if gate is not None:
        reason = "prompts that name nothing taught run the base model"
        chosen = {"model.gate": (_described(gate), f"SubjectGate, {gate.match}", reason), **chosen}
    chosen["data.forms"][0].num_per_fact = config.data.forms.num_per_fact
    obstacle = _obstacle_to_retaining(config, peft_config)
    if obstacle is not None and chosen["model.retain"][0]:
        chosen["model.retain"] = ([], "nothing is held still", f"not possible with {obstacle}")
    filled = config.clone()
    logger.info("Recipe (`--recipe plain` for the adapter alone; each setting can be given):")
    for key, (value, said, reason) in chosen.items():
        if open_settings[key]:
            filled.update(value, key)
            logger.info("  %s: %s — %s", key, said, reason)
        elif key != "refine" or config.refine is not None:
            logger.info("  %s: as you set it%s", key, f" ({said})" if key == "model.gate" else "")
    completed: Namespace = parser.parse_object(filled)
    return completed


def _decides_its_steps(trainer: Namespace) -> bool:
    """Whether something decides when ordinary training ends, or which facts share a step: `Refine` is refused then."""
    given = trainer.callbacks or []
    names = {str(one.get("class_path", "")).rpartition(".")[2] for one in given if isinstance(one, Namespace)}
    limit = trainer.limit_train_batches
    cuts_epochs = limit is not None and (isinstance(limit, int) or limit != 1.0)
    return cuts_epochs or bool(names & {"StopWhenRecalled", "ConflictAwareBatching", "Refine"})


def _obstacle_to_retaining(config: Namespace, peft_config: PeftConfig) -> str | None:
    """The setting with which `compatibility` refuses `retain`; None where it takes it."""
    strategy = config.trainer.strategy
    name = strategy if isinstance(strategy, str) else str(getattr(strategy, "class_path", ""))
    if "shard" in name.lower() or "fsdp" in name.lower():
        return "a sharded base model"
    if config.trainer.precision == "16-mixed":
        return "`precision: 16-mixed`"
    changing = base_changing_setting(peft_config)
    return None if changing is None else f"`{changing}`"


def _recipe_for(config: Namespace, peft_config: PeftConfig, gate: SubjectGate | None) -> Recipe:
    data = config.data
    read = read_facts(
        data.facts,
        num_facts=data.num_facts,
        seed=data.seed,
        dataset_split=data.dataset_split,
        contradictions="keep",
    )
    base = BaseModel(**vars(config.model.base_model))
    per_process = data.batches.micro_batch_size * (config.trainer.accumulate_grad_batches or 1)
    return choose_recipe(
        FactSet.checked(read.facts),  # without its warnings, which the run itself logs when it reads
        base.count_parameters(),
        peft_config,
        set_name=data.facts,
        facts_per_step=per_process * num_processes(config.trainer),
        gate=gate,
    )


def num_processes(trainer: Namespace) -> int:
    """How many processes will train, counted as Lightning does; 1 where it refuses the settings, which it then says.

    Args:
        trainer: Its settings: `devices` may be a number, a list, a text such as `0,1`, or `auto`.
    """
    accelerator = trainer.accelerator if isinstance(trainer.accelerator, str) else "auto"
    lightning = logging.getLogger(rank_zero.__name__)
    level = lightning.level
    lightning.setLevel(logging.WARNING)  # the run's own trainer says what it found
    try:
        found = Trainer(accelerator=accelerator, devices=trainer.devices, num_nodes=trainer.num_nodes, logger=False)
    except (MisconfigurationException, TypeError, ValueError, RuntimeError):
        return 1
    finally:
        lightning.setLevel(level)
    return found.num_devices * found.num_nodes


def _peft_config(described: Namespace | None) -> PeftConfig:
    """The adapter's configuration; LoRA's where there is none."""
    if described is None:
        return LoraConfig()
    module, _, name = described.class_path.rpartition(".")
    try:
        config: PeftConfig = getattr(import_module(module), name)(**vars(described.get("init_args") or Namespace()))
    except (TypeError, ValueError) as error:
        raise InputError(f"`model.peft_config`: {error}") from error
    return config


def _gate(described: Namespace | None) -> SubjectGate:
    """The gate that is given; else one that opens for subjects and targets."""
    if described is None:
        return SubjectGate("subjects_and_targets")
    settings = described.get("init_args") or Namespace() if "class_path" in described else described
    return SubjectGate(**vars(settings))


def _as_settings(recipe: Recipe, *, refines: bool) -> dict[str, tuple[Any, str, str]]:
    """For each setting its value in the form of the configuration, the same in a few words, and the reason."""
    num_refining = recipe.num_refining if refines else 0
    num_ordinary = recipe.num_steps - num_refining
    in_all = f"with those of `refine` {recipe.num_steps}: " if refines else ""
    optimizer = Namespace(
        class_path="torch.optim.AdamW", init_args=Namespace(lr=recipe.learning_rate, weight_decay=0.0)
    )
    sources = recipe.forms.sources or []
    taught = ", ".join(f"{source.name} {source.share:.0%}" for source in sources) or "the facts' own prompts only"
    held = ", ".join(source.in_short for source in recipe.retain) or "nothing"
    forms = Namespace(sources=[_described(one) for one in sources], from_paraphrases=recipe.forms.from_paraphrases)
    return {
        "trainer.max_steps": (num_ordinary, str(num_ordinary), in_all + recipe.reasons["num_steps"]),
        "refine": (num_refining, str(num_refining), recipe.reasons["num_refining"]),
        "model.optimizer": (optimizer, f"AdamW, lr {recipe.learning_rate:g}", recipe.reasons["learning_rate"]),
        "data.forms": (forms, taught, recipe.reasons["forms"]),
        "model.retain": ([_described(one) for one in recipe.retain], held, recipe.reasons["retain"]),
    }


def _described(one: object) -> Namespace:
    """An object whose settings are its attributes, as the configuration names it."""
    kind = type(one)
    return Namespace(class_path=f"{kind.__module__}.{kind.__qualname__}", init_args=Namespace(**vars(one)))
