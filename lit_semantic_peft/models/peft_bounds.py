"""What a PEFT configuration may cost: time for its patterns, memory for its tensors. It may come from a stranger."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peft import PeftConfig
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.peft_settings import replicated_spans

LONGEST_PATTERN = 10_000
"""Characters of one name or pattern in a configuration."""
MOST_REPLICATED = 1_000
"""Layers that `layer_replication` may make."""
SECONDS_FOR_PATTERNS = 10.0
"""Time for matching all patterns of a configuration once, the start of an interpreter included."""

# The three forms in which PEFT matches a pattern against the name of a module.
_MATCHING = r"""
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for form in ("{}", r"(.*\.)?({})$", r"(^|.*\.){}($|\..*)"):
        try:
            compiled = re.compile(form.replace("{}", pattern))
        except (re.error, RecursionError, OverflowError):
            continue  # no pattern, or one that PEFT refuses itself
        for name in names:
            compiled.fullmatch(name)
            compiled.match(name)
"""
_REPEATS = frozenset("*+?{|")  # what a pattern needs to be matched in more than one way


def refuse_unbounded(peft_config: PeftConfig, names: Sequence[str]) -> None:
    """Refuses a configuration with numbers that are not finite, too many layers, or patterns that take too long.

    Python's `re` cannot be interrupted everywhere, so patterns are matched in a process that can be ended. It is
    started only where a text could be a pattern.

    Args:
        peft_config: Any configuration of `peft`.
        names: Of the base model's modules, which the patterns are matched against.

    Raises:
        InputError: Naming the setting.
    """
    spans = replicated_spans(peft_config)
    if not all(isinstance(one, list | tuple) and [type(number) for number in one] == [int, int] for one in spans):
        raise InputError("`peft_config`: `layer_replication` must be a list of pairs [first layer, last layer + 1].")
    if (layers := sum(max(0, end - start) for start, end in spans)) > MOST_REPLICATED:
        raise InputError(f"`peft_config`: `layer_replication` makes {layers:,} layers, more than {MOST_REPLICATED:,}.")
    patterns = []
    for setting, value in peft_config.to_dict().items():
        texts = []
        for one in _leaves(value):
            if isinstance(one, float) and not math.isfinite(one):
                raise InputError(f"`peft_config`: `{setting}` must be finite, got {one}")
            if isinstance(one, str):
                texts.append(one)
        if max(map(len, texts), default=0) > LONGEST_PATTERN:
            raise InputError(f"`peft_config`: `{setting}` holds a text of over {LONGEST_PATTERN:,} characters.")
        if len(texts) > 1000 + 2 * len(names):
            raise InputError(
                f"`peft_config`: `{setting}` holds {len(texts):,} names; the base model has {len(names):,} modules."
            )
        patterns += [text for text in texts if _REPEATS & set(text)]
    if not patterns:
        return
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", _MATCHING],
            input=json.dumps([patterns, names]),
            text=True,
            timeout=SECONDS_FOR_PATTERNS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        shown = ", ".join(f"{pattern[:60]!r}" for pattern in patterns[:3])
        raise InputError(
            f"`peft_config`: matching {shown} against the names of the base model's modules takes longer than "
            f"{SECONDS_FOR_PATTERNS:g} seconds. Use a simpler pattern, or a list of names."
        ) from None


class BoundedMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within the block no more than a number of new tensor elements can be made; refuses before it takes memory.

    Args:
        base: The model that gets an adapter, which may take four times its parameters, and 10⁸ in any case.

    Raises:
        InputError: At the first tensor beyond the limit.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._left = max(10**8, 4 * sum(parameter.numel() for parameter in base.parameters()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Counts the elements of what is made from a size alone."""
        if args and isinstance(args[0], list | tuple) and not any(isinstance(one, Tensor) for one in args):
            size = args[0]
            if all(isinstance(one, int) for one in size):
                self._left -= math.prod(size)
                if self._left < 0:
                    raise InputError(
                        f"`peft_config` makes an adapter with a tensor of {' x '.join(map(str, size))} numbers, and "
                        "more than four times the base model's in all. Use smaller numbers, such as `r`."
                    )
        return func(*args, **(kwargs or {}))


def _leaves(value: Any) -> Iterator[Any]:
    """The keys and values anywhere in a setting."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value
