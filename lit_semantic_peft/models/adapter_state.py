"""The adapter's tensors alone: what a checkpoint or an exported folder holds, compared before it is loaded."""

from collections.abc import Mapping

import torch
from peft import PeftModel
from torch import Tensor

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.peft_traits import embedding_tensors, exported_tensors, set_exported_tensors, traits_of


def adapter_state_dict(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's trained tensors alone, on their device.

    Names are those that PEFT exports. Where training could not resume from what PEFT exports, there is more: for
    prompt, prefix and p-tuning the encoder instead of the virtual tokens it makes, for AdaLoRA all ranks.
    """
    return traits_of(model).tensors(model)


def load_adapter_state_dict(model: PeftModel, state: Mapping[str, Tensor]) -> None:
    """Loads an adapter's tensors; refuses any that does not fit.

    Args:
        model: A model with an adapter of the same configuration.
        state: From `adapter_state_dict`.

    Raises:
        InputError: Naming the tensors as `differences` does. Nothing is changed then.
    """
    if problems := differences(adapter_state_dict(model), state):
        raise InputError(
            f"The checkpoint's adapter does not fit this model and `peft_config` ({'; '.join(problems)}). "
            "Use the configuration that it was trained with."
        )
    traits_of(model).load_tensors(model, state)


def load_exported_tensors(model: PeftModel, tensors: Mapping[str, Tensor]) -> None:
    """Loads the tensors of an adapter's folder, all of them or none.

    Args:
        model: A model with an adapter of the folder's configuration, for inference.
        tensors: The folder's.

    Raises:
        InputError: Naming what is missing, unexpected, misshapen, of another type or not finite; or what the model does
            not hold afterwards, although PEFT took it.
    """
    adapter = exported_tensors(model)
    # PEFT adds the base model's own embeddings where `target_modules` names one.
    embeddings = {name: value for name, value in embedding_tensors(model).items() if name in tensors.keys() - adapter}
    problems = differences(adapter | embeddings, tensors)
    if not problems:
        set_exported_tensors(model, {name: tensors[name] for name in adapter})
        held = exported_tensors(model) | embeddings
        problems = _listed(
            {"not as the model holds it": [one for one in tensors if not _holds(held[one], tensors[one])]}
        )
    if problems:
        raise InputError("; ".join(problems))


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """What keeps saved tensors from being a whole adapter: a clause for each kind of difference, empty where none is.

    A half-precision tensor may stand for a float32 one.

    Args:
        expected: What the model would save.
        found: What was saved.
    """
    common = sorted(expected.keys() & found.keys())
    return _listed(
        {
            "missing": sorted(expected.keys() - found.keys()),
            "unexpected": sorted(found.keys() - expected.keys()),
            "of another shape": [
                f"{name} {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
                for name in common
                if found[name].shape != expected[name].shape
            ],
            "of another type": [
                f"{name} {_dtype(found[name])} instead of {_dtype(expected[name])}"
                for name in common
                if not _stands_for(found[name].dtype, expected[name].dtype)
            ],
            "not finite": [name for name in common if not _is_finite(found[name])],
        }
    )


def _listed(kinds: Mapping[str, list[str]]) -> list[str]:
    return [
        f"{kind}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for kind, names in kinds.items()
        if names
    ]


def _stands_for(found: torch.dtype, expected: torch.dtype) -> bool:
    return found == expected or {found, expected} <= {torch.float32, torch.bfloat16, torch.float16}


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite, also of the types of 8 bits, for which torch cannot say it."""
    values = tensor.float() if tensor.is_floating_point() else tensor
    return bool(values.isfinite().all())


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _holds(held: Tensor, value: Tensor) -> bool:
    """Whether a model holds a saved tensor, up to the precision of the narrower of their types."""
    narrow = max((torch.finfo(one.dtype).eps for one in (held, value) if one.is_floating_point()), default=0.0)
    return torch.allclose(held.double().cpu(), value.double(), rtol=4 * narrow, atol=narrow)
