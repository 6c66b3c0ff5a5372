"""Compiled layers: `torch.compile` for training, the ordinary model for everything that looks at it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import nn

from lit_semantic_peft.errors import InputError


def repeated_blocks(model: PeftModel) -> list[nn.Module]:
    """The layers that a transformer repeats, as transformers names them; none where it does not.

    Args:
        model: A `peft` model around a causal language model of transformers.
    """
    names = set(model.get_base_model()._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def compile_layers(model: PeftModel) -> None:
    """Compiles the base model's repeated blocks, with their adapters, when they are first called.

    Block by block, because all blocks share their compiled code, and because the projection to the vocabulary, whose
    size depends on the targets, is outside of them. Shapes are dynamic: a batch of another length is not compiled anew;
    a batch of a single fact, and another mode or type, is compiled once more. Nothing is wrapped, so the names in
    checkpoints and adapters are those of the ordinary model. Within `eagerly()` the blocks run as if not compiled.

    Args:
        model: A `peft` model around a causal language model of transformers.

    Raises:
        InputError: If the model does not say which its blocks are, or there is no C++ compiler for a model on the CPU.
    """
    blocks = repeated_blocks(model)
    if not blocks:
        kind = model.get_base_model().config.model_type
        raise InputError(f"`compile` cannot be used: the model of type {kind!r} does not say which its blocks are.")
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
    """Within the block compiled layers run uncompiled, so that hooks inside of them see every call."""
    with torch.compiler.set_stance("force_eager"):
        yield
