"""What a training must have in common with the one that wrote a checkpoint, to go on with it."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from peft import PeftConfig

from lit_semantic_peft.data import KnowledgeDataModule
from lit_semantic_peft.data.measures import identity
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import facts_key
from lit_semantic_peft.files import content_key
from lit_semantic_peft.models.peft_traits import OF_THE_TRAINING_ALONE, WRITTEN_BY_TRAINING
from lit_semantic_peft.semantics import Online, Weighting

# Entries of a PEFT configuration that say where it came from, or that training itself writes.
_NOT_OF_THE_TRAINING = {"base_model_name_or_path", "inference_mode", "peft_version", "revision", *WRITTEN_BY_TRAINING}
# Others that, like dropout, do not change what trained tensors mean.
_OF_THE_TRAINING_ALONE = {f"peft_config.{name}" for name in OF_THE_TRAINING_ALONE}


class FreshCallback(Callback):
    """A callback whose state is that of one training: the next training of the same object begins without it."""

    def _forget(self) -> None:
        """Sets the state to what it is before any training."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets an earlier training, before a checkpoint may bring something to go on with.

        Args:
            trainer: The trainer.
            pl_module: The module.
            stage: `fit`, `validate`, `test` or `predict`.
        """
        if stage == "fit" and trainer.global_step == 0:
            self._forget()


class TrainingCallback(FreshCallback):
    """A callback that changes what is trained, so that a resumed training must have it too, with the same settings.

    It keeps each argument of its constructor under the argument's name.
    """

    def training_settings(self) -> str:
        """The arguments and their values, such as `mode=apart, num_facts=256`."""
        return ", ".join(f"{name}={getattr(self, name)}" for name in inspect.signature(type(self)).parameters)


def training_identity(
    data: KnowledgeDataModule, trainer: Trainer, of_module: Mapping[str, object], peft_config: PeftConfig
) -> dict[str, Any]:
    """What makes a training this one, for the checkpoint. How long it shall be is not among it.

    Args:
        data: After `setup`.
        trainer: The trainer.
        of_module: Settings of the module, by name.
        peft_config: The adapter's configuration.

    Returns:
        `settings` as text, by the name under which a user sets them; `loss_weight`, float64 `(2, n)`, at the start and
        at the end of training, or `(4, n)` with deferred facts; `accumulate_grad_batches`.
    """
    prepared, encoding, batches = data.prepared, data.encoding, data.batches
    kept = prepared.kept_index
    settings = {
        "facts": f"{len(prepared.facts)} facts (content {facts_key(prepared.facts)[:12]})",
        "filters": f"{len(kept)} facts kept (content {content_key(kept)[:12]})",
        **_of_weighting(data),
        **({"strata": str(vars(data.preparation.strata))} if batches.mix_strata else {}),
        **({"chat_template_kwargs": str(encoding.chat_template_kwargs)} if encoding.chat_template_kwargs else {}),
        "deferred_from_epoch": str(data.selection.deferred_from_epoch),
        "template": str(encoding.template),
        "append_eos": str(encoding.append_eos),
        "seed": str(data.seed),
        "bucket_steps": str(batches.bucket_steps),
        "mix_strata": str(batches.mix_strata),
        "facts per optimizer step (micro_batch_size × accumulate_grad_batches × processes)": str(
            batches.micro_batch_size * trainer.accumulate_grad_batches * trainer.world_size
        ),
        **{
            f"trainer.{name}": str(getattr(trainer, name))
            for name in ("precision", "gradient_clip_val", "gradient_clip_algorithm")
        },
        **{name: str(value) for name, value in of_module.items()},
        **{
            f"callbacks.{type(callback).__name__}": callback.training_settings()
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, TrainingCallback)
        },
        **_adapter_settings(peft_config),
    }
    weights = (prepared.loss_weight, prepared.final_loss_weight, *prepared.deferred_loss_weight)
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
    known, here = there["settings"], _adapter_settings(peft_config)
    common = [
        name for name in here if name in known and not name.endswith("dropout") and name not in _OF_THE_TRAINING_ALONE
    ]
    if problems := _differences({name: known[name] for name in common}, {name: here[name] for name in common}):
        raise InputError(
            f"The checkpoint's adapter was trained with another `peft_config`:{_listed(problems)}\n"
            "Take the configuration in the run's config.yaml."
        )


def refuse_another_training(
    there: Mapping[str, Any], here: Mapping[str, Any], fact_ids: Sequence[str], *, is_within_epoch: bool
) -> None:
    """Refuses a checkpoint of a training that this one would not go on with.

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
            end, row = divmod(int((old - new).abs().argmax()), new.shape[1])
            problems.append(
                f"`weighting`: fact {fact_ids[row]!r} weighs {old[end, row]:.4g} in the checkpoint, "
                f"{new[end, row]:.4g} here"
            )
        old, new = there["accumulate_grad_batches"], here["accumulate_grad_batches"]
        if is_within_epoch and old != new:
            problems.append(
                f"`accumulate_grad_batches`: {old} in the checkpoint, {new} here; within an epoch it cannot change"
            )
    if problems:
        raise InputError(
            f"The checkpoint was trained with other settings:{_listed(problems)}\n"
            "Resume with the configuration in the run's config.yaml, or start a new run."
        )


def _adapter_settings(peft_config: PeftConfig) -> dict[str, str]:
    """What makes an adapter this one, as text, by the name under which a user sets it."""
    return {
        f"peft_config.{name}": str(sorted(value) if isinstance(value, set) else value)
        for name, value in sorted(peft_config.to_dict().items())
        if name not in _NOT_OF_THE_TRAINING
    }


def _differences(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    return [
        f"`{name}`: {there.get(name, 'not set')} in the checkpoint, {here.get(name, 'not set')} here"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]


def _listed(problems: Sequence[str]) -> str:
    return "".join(f"\n  {problem}" for problem in problems)


def _of_weighting(data: KnowledgeDataModule) -> dict[str, str]:
    """Weights that come from the base model are compared as numbers; of others only the recipe is known."""
    if not isinstance(data.weighting, Online):
        return {"weighting": "of the base model"}
    return {"weighting": _described(data.weighting), "distance": str(identity(data.distances[0]))}


def _described(weighting: Weighting) -> str:
    """Class and settings, such as `Online(weighting=Focal(gamma=2.0))`."""
    settings = {
        name: _described(value) if isinstance(value, Weighting) else value
        for name, value in sorted(vars(weighting).items())
        if isinstance(value, Weighting | float | int | str | None)
    }
    return f"{type(weighting).__name__}({', '.join(f'{name}={value}' for name, value in settings.items())})"
