"""The adapter's tensors alone: what a checkpoint holds."""

from collections.abc import Mapping

from peft import PeftModel
from torch import Tensor

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.peft_traits import traits_of


def adapter_state_dict(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's trained tensors alone, on their device.

    Names are those that PEFT exports. Where training could not resume from what PEFT exports, there is more: for
    prompt, prefix and p-tuning the encoder instead of the virtual tokens it makes, for AdaLoRA all ranks.
    """
    return traits_of(model).tensors(model)


def load_adapter_state_dict(model: PeftModel, state: Mapping[str, Tensor]) -> None:
    """Loads an adapter's tensors; refuses any key or shape that does not fit.

    Args:
        model: A model with an adapter of the same configuration.
        state: From `adapter_state_dict`.

    Raises:
        InputError: Naming the missing, unexpected or misshapen tensors. Nothing is changed then.
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
    traits_of(model).load_tensors(model, state)
