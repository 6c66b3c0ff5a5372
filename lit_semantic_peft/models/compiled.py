"""`torch.compile` of a model's layers for training; hooks and measurements use the uncompiled layers."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import nn

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.peft_traits import peft_type_name, traits_of


def repeated_blocks(model: PeftModel) -> list[nn.Module]:
    """The repeated layers of a transformer, as transformers names them (`_no_split_modules`); empty if it names none.

    Args:
        model: A `peft` model around a causal language model of transformers.
    """
    names = set(model.get_base_model()._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def compile_layers(model: PeftModel) -> None:
    """Compiles the base model's repeated blocks, with their adapters, when they are first called.

    Each block is compiled separately: all blocks share their compiled code, and the projection to the vocabulary,
    whose size depends on the targets, stays outside. Shapes are dynamic: another batch length does not recompile. A
    batch of a single fact, another mode or another dtype recompiles once. Modules are not wrapped, so the names in
    checkpoints and adapters are those of the uncompiled model. Within `eagerly()` the blocks run uncompiled.

    Args:
        model: A `peft` model around a causal language model of transformers.

    Raises:
        InputError: If the model does not name its blocks, or its adapter routes by prompts, or there is no C++ compiler
            for a model on the CPU.
    """
    if traits_of(model).routes:
        raise InputError(
            f"`compile` cannot be used with an adapter of type {peft_type_name(model)}, whose layers read the prompts "
            "of each pass, so that they would be compiled anew for each. Set `compile: false`."
        )
    blocks = repeated_blocks(model)
    if not blocks:
        kind = model.get_base_model().config.model_type
        raise InputError(
            f"`compile` cannot be used: the model of type {kind!r} does not name its repeated blocks "
            "(`_no_split_modules`). Set `compile: false`."
        )
    compiler = os.environ.get("CXX", "g++")
    if not torch.cuda.is_available() and shutil.which(compiler) is None:
        raise InputError(
            f"`compile: true` needs a C++ compiler, and {compiler!r} is not on the PATH. Install g++, name another in "
            "the environment variable CXX, or set `compile: false`."
        )
    for block in blocks:
        block.compile(dynamic=True)


@contextmanager
def eagerly() -> Iterator[None]:
    """Within the context compiled layers run uncompiled, so that hooks inside them are called every time."""
    with torch.compiler.set_stance("force_eager"):
        yield
