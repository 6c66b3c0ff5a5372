"""Measures a model without changing it: restores modes and random number generators."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from lit_semantic_peft.models.compiled import eagerly
from lit_semantic_peft.models.modes import modes_restored


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients enabled. Restores modes and torch's random number generators on exit.

    Compiled layers run uncompiled, so that hooks inside them are called.
    Works inside `torch.no_grad` and `torch.inference_mode` too (Lightning validates in the latter).

    Args:
        model: The model to measure. Its parameters, their `.grad` and `requires_grad` are not restored.
    """
    with ExitStack() as stack:
        stack.enter_context(modes_restored(model))
        stack.enter_context(torch.random.fork_rng(devices=cuda_devices(model)))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(eagerly())
        model.eval()
        yield


def cuda_devices(model: nn.Module) -> list[int]:
    """Indices of the GPUs that a model is on, whose random number generators it uses.

    Args:
        model: Any model.
    """
    return sorted({parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"})
