"""What a checkpoint stores about its training, and what must be equal for a training to resume from it."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from peft import PeftConfig
from typing_extensions import override

from lit_semantic_peft.adapters import SubjectTable
from lit_semantic_peft.data import from_all_ranks
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import facts_key
from lit_semantic_peft.files import content_key
from lit_semantic_peft.models import traits_of
from lit_semantic_peft.models.peft_settings import OF_THE_TRAINING_ALONE, settings_of
from lit_semantic_peft.training.loss_weights import weighting_identity
from lit_semantic_peft.training.names import names_of, set_names

if TYPE_CHECKING:
    from lit_semantic_peft.training.module import SemanticPeftModule

logger = logging.getLogger(__name__)

_CHECKPOINT_KEY = "lit_semantic_peft"
_FORMAT = 4  # raised whenever the content of a checkpoint changes
# Settings of an optimizer that decide how a step is computed, not what it is.
_SPEED = {"foreach", "fused", "capturable", "differentiable"}
# Entries of a PEFT configuration that, like dropout, do not change what trained tensors mean.
_OF_THE_TRAINING_ALONE = {f"model.peft_config.{name}" for name in OF_THE_TRAINING_ALONE}


class FreshCallback(Callback):
    """A callback whose state is that of one training: the next training of the same object begins without it."""

    def _forget(self) -> None:
        """Sets the state to what it is before any training."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Before a checkpoint may restore its state.
        if stage == "fit" and trainer.global_step == 0:
            self._forget()


class TrainingCallback(FreshCallback):
    """A callback that changes what is trained, so that a resumed training must have it too, with the same settings.

    It keeps each argument of its constructor under the argument's name.
    """

    def training_settings(self) -> str:
        """The arguments and their values, such as `mode=apart, num_facts=256`."""
        return ", ".join(f"{name}={getattr(self, name)}" for name in inspect.signature(type(self)).parameters)


@dataclass(frozen=True)
class Resumed:
    """The part of a checkpoint that can be restored only when training starts.

    Attributes:
        adapter: `PeftTraits.extra_state` of the adapter.
        random: This rank's random generators by kind of device.
        num_optimizer_steps: How long the training was to be; None where the checkpoint does not say.
    """

    adapter: Mapping[str, Any]
    random: Mapping[str, torch.Tensor]
    num_optimizer_steps: float | None

    def state_length(self, num_optimizer_steps: float, schedule: str) -> None:
        """Logs that the training has another length than it had, and what becomes of the learning rate.

        Args:
            num_optimizer_steps: How long it is.
            schedule: How the learning rate moves.
        """
        if self.num_optimizer_steps not in (None, num_optimizer_steps):
            logger.warning(
                "The training was to have %g optimizer steps and has %g: from here on the learning rate is that of "
                "`schedule: %s` over %g steps, not what it would have been in one training of either length.",
                self.num_optimizer_steps, num_optimizer_steps, schedule, num_optimizer_steps,
            )  # fmt: skip

    def restore_random_state(self, device: torch.device) -> None:
        """Restores the random generators of the checkpoint.

        Args:
            device: This rank's.
        """
        torch.set_rng_state(self.random["cpu"])
        if "cuda" in self.random:
            torch.cuda.set_rng_state(self.random["cuda"], device)


def write_training_state(module: "SemanticPeftModule", checkpoint: dict[str, Any]) -> None:
    """Adds to a checkpoint the identity of its adapter and training, and the state to resume from. A collective.

    Args:
        module: In a training.
        checkpoint: Lightning's; changed.
    """
    random = {"cpu": torch.get_rng_state()}
    if module.device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(module.device)
    checkpoint[_CHECKPOINT_KEY] = {
        "format": _FORMAT,
        "base_model": module.base_model.source.public_name,
        "base_fingerprint": module.base_model.source.fingerprint,
        **training_identity(module),
        "dynamics": module.dynamics.state_dict(),
        "epoch_loss": module.epoch_loss.state_dict(),
        "loss_weights": module.loss_weights.state_dict(),
        "rank_budget": traits_of(module.model).extra_state(module.model),
        "rng": from_all_ranks(random),
        "num_optimizer_steps": module.num_optimizer_steps,
        "gate": None if module.subject_table is None else module.subject_table.to_json(),
        "names": names_of(module.model),
    }


def resume_training(module: "SemanticPeftModule", checkpoint: Mapping[str, Any]) -> Resumed | None:
    """Reads what `write_training_state` wrote. Refuses to resume a training that would not be the same.

    Args:
        module: After `setup`.
        checkpoint: Lightning's.

    Returns:
        What must be restored when training starts; None where the checkpoint is only evaluated.

    Raises:
        InputError: If the checkpoint is of another base model, adapter or training; names each setting that differs,
            with both values.
    """
    about = checkpoint.get(_CHECKPOINT_KEY)
    if about is None:
        raise InputError("The checkpoint was not written by lit-semantic-peft, so it cannot be loaded here.")
    if about["base_fingerprint"] != module.base_model.source.fingerprint:
        raise InputError(
            f"`model.base_model`: the checkpoint belongs to {about['base_model']!r}; this is "
            f"{module.base_model.source.public_name!r}, or the same model with other weights."
        )
    trainer: Trainer | None = module._trainer  # none in `load_from_checkpoint`
    if trainer is None or trainer.state.fn != "fit":
        gate = about.get("gate")
        module.subject_table = None if gate is None else SubjectTable.from_json(gate, "the checkpoint's gate")
        set_names(module.model, about.get("names"), module.base_model)
        refuse_another_adapter(about, module.model.active_peft_config)
        return None
    if about.get("format") != _FORMAT:
        raise InputError(
            "The checkpoint was written by another version of lit-semantic-peft, whose training this one cannot "
            "resume. `test` and `predict` take it; to train, start a new run or install that version."
        )
    name = type(module.data).__qualname__  # under which Lightning keeps and looks for its state
    if name not in checkpoint:
        raise InputError(
            f"The checkpoint has no position in the data for a data module of class {name}. Resume with the class "
            "that it was trained with."
        )
    refuse_another_training(
        about,
        training_identity(module),
        [fact.id for fact in module.data.prepared.facts],
        is_within_epoch=checkpoint[name]["num_done"] > 0,
    )
    _resume_by_epochs(module.trainer)
    rank = module.trainer.global_rank
    module.dynamics.load_state_dict(about["dynamics"])
    module.epoch_loss.load_state_dict(about["epoch_loss"])
    module.loss_weights.load_state_dict(about["loss_weights"], rank)
    return Resumed(about["rank_budget"], about["rng"][rank % len(about["rng"])], about.get("num_optimizer_steps"))


def _resume_by_epochs(trainer: Trainer) -> None:
    """Lets a training that `max_steps` ends go on like one that `max_epochs` ends.

    Lightning takes each checkpoint of the former for one within an epoch: it would repeat a step of a finished epoch,
    and count it as another one.
    """
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]


def training_identity(module: "SemanticPeftModule") -> dict[str, Any]:
    """What identifies a training, for the checkpoint. Its length is not part of it.

    Args:
        module: After `setup`.

    Returns:
        `settings` as text, by the name under which a user sets them; `loss_weight`, float64 `(2, n)`, at the start and
        at the end of training, or `(4, n)` with deferred facts; `accumulate_grad_batches`.
    """
    data, trainer = module.data, module.trainer
    prepared, encoding, batches = data.prepared, data.encoding, data.batches
    kept = prepared.kept_index
    settings = {
        "data.facts": f"{len(prepared.facts)} facts (content {facts_key(prepared.facts)[:12]})",
        "data.selection.filters": f"{len(kept)} facts kept (content {content_key(kept)[:12]})",
        **weighting_identity(data),
        **({"data.selection.strata": str(vars(data.preparation.strata))} if batches.mix_strata else {}),
        **(
            {"data.encoding.chat_template_kwargs": str(encoding.chat_template_kwargs)}
            if encoding.chat_template_kwargs
            else {}
        ),
        "data.forms": prepared.forms.key[:12] or "own prompts only",
        "data.selection.deferred_from_epoch": str(data.selection.deferred_from_epoch),
        "data.encoding.template": encoding.template,
        "data.encoding.append_eos": str(encoding.append_eos),
        "data.seed": str(data.seed),
        "data.batches.bucket_steps": str(batches.bucket_steps),
        "data.batches.mix_strata": str(batches.mix_strata),
        "facts per optimizer step (data.batches.micro_batch_size × trainer.accumulate_grad_batches × processes)": str(
            batches.micro_batch_size * trainer.accumulate_grad_batches * trainer.world_size
        ),
        **{
            f"trainer.{name}": str(getattr(trainer, name))
            for name in ("precision", "gradient_clip_val", "gradient_clip_algorithm")
        },
        **_module_settings(module),
        **{
            f"trainer.callbacks.{type(callback).__name__}": callback.training_settings()
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, TrainingCallback)
        },
        **_adapter_settings(module.model.peft_config[module.model.active_adapter]),
    }
    planned = prepared.weights
    weights = (planned.start, planned.end, *(planned.deferred or ()))
    return {
        "settings": settings,
        "loss_weight": torch.stack([torch.tensor(one) for one in weights]),
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
    }


def refuse_another_adapter(there: Mapping[str, Any], peft_config: PeftConfig) -> None:
    """Refuses a checkpoint whose tensors would fit, but mean something else under this configuration.

    Args:
        there: `training_identity` of the training that wrote the checkpoint.
        peft_config: The adapter's configuration here.

    Raises:
        InputError: Naming each setting that differs, with both values.
    """
    # Format 1 named the settings without `model.`; such checkpoints are still evaluated.
    known = {
        f"model.{name}" if name.startswith("peft_config.") else name: value for name, value in there["settings"].items()
    }
    here = _adapter_settings(peft_config)
    common = [
        name for name in here if name in known and not name.endswith("dropout") and name not in _OF_THE_TRAINING_ALONE
    ]
    if problems := _differences({name: known[name] for name in common}, {name: here[name] for name in common}):
        raise InputError(
            f"The checkpoint's adapter was trained with another `model.peft_config`:{_listed(problems)}\n"
            "Take the configuration in the run's config.yaml."
        )


def refuse_another_training(
    there: Mapping[str, Any], here: Mapping[str, Any], fact_ids: Sequence[str], *, is_within_epoch: bool
) -> None:
    """Refuses a checkpoint of a training that this one would not continue exactly.

    Args:
        there: `training_identity` of the training that wrote the checkpoint.
        here: That of this one.
        fact_ids: The facts of this one, in order.
        is_within_epoch: Whether the checkpoint was written between the optimizer steps of an epoch.

    Raises:
        InputError: Naming each setting that differs, with both values.
    """
    problems = _differences(there["settings"], here["settings"])
    if not problems:
        old, new = there["loss_weight"], here["loss_weight"]
        # Scored anew on another machine the weights may differ in the last digits.
        if not torch.allclose(old, new, rtol=1e-4, atol=1e-6):
            moment, row = divmod(int((old - new).abs().argmax()), new.shape[1])
            problems.append(
                f"`data.selection.weighting`: fact {fact_ids[row]!r} weighs {old[moment, row]:.4g} in the checkpoint, "
                f"{new[moment, row]:.4g} here"
            )
        old, new = there["accumulate_grad_batches"], here["accumulate_grad_batches"]
        if is_within_epoch and old != new:
            problems.append(
                f"`trainer.accumulate_grad_batches`: {old} in the checkpoint, {new} here; within an epoch it cannot "
                "change"
            )
    if problems:
        raise InputError(
            f"The checkpoint was trained with other settings:{_listed(problems)}\n"
            "Resume with the configuration in the run's config.yaml, or start a new run."
        )


def _module_settings(module: "SemanticPeftModule") -> dict[str, str]:
    """Settings of the module and its optimizer.

    Lightning restores the checkpoint's settings of the optimizer, so other ones would have no effect.
    """
    names = ["normalization", "schedule", "warmup_ratio"]
    # Of the trained parameters: an optimizer may refuse those of another shape, as Muon does all but matrices.
    optimizer = module.optimizer_of(module.trained_parameters())
    settings = {
        "model.base_model.dtype": module.base_model.dtype,
        **{f"model.{name}": getattr(module, name) for name in names},
        "model.retain": ", ".join(source.described for source in module.retain),
        "model.optimizer": type(optimizer).__name__,
        **{f"model.optimizer.{name}": value for name, value in optimizer.defaults.items() if name not in _SPEED},
    }
    return {name: str(value) for name, value in settings.items()}


def _adapter_settings(peft_config: PeftConfig) -> dict[str, str]:
    """What identifies an adapter, as text, by the name under which a user sets it."""
    return {f"model.peft_config.{name}": value for name, value in settings_of(peft_config).items()}


def _differences(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    return [
        f"`{name}`: {there.get(name, 'not set')} in the checkpoint, {here.get(name, 'not set')} here"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]


def _listed(problems: Sequence[str]) -> str:
    return "".join(f"\n  {problem}" for problem in problems)
