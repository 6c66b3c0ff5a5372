"""Arguments of a class: their types, checked where they are given, not where they are used; and how they are shown."""

import inspect
import os
from collections.abc import Mapping, Sequence
from numbers import Integral
from types import UnionType
from typing import get_args

from lit_semantic_peft.errors import InputError

LARGEST_SEED = 2**32 - 1
"""As numpy and Lightning take it."""

_LONGEST = 60


def require_instance(name: str, value: object, kind: type | UnionType, example: str) -> None:
    """Refuses a value of another type.

    Args:
        name: The argument, for the message.
        value: What was given.
        kind: What is expected, such as `Distance`, or `Distance | None`.
        example: How one is written.

    Raises:
        InputError: Naming the argument, what was given and what to write.
    """
    if isinstance(value, kind):
        return
    if isinstance(value, type) and issubclass(value, kind):
        example = f"{value.__name__}(...)"
    first = _names(kind)
    article = "an" if first[1] in "AEIOU" else "a"
    raise InputError(f"`{name}`: expected {article} {first}, got {_described(value)}. Write it as in `{example}`.")


def require_instances(name: str, value: object, kind: type, example: str) -> None:
    """Refuses what is neither None nor a list (or tuple) of values of a type.

    Args:
        name: The argument, for the message.
        value: What was given.
        kind: What each item is expected to be.
        example: How one item is written.

    Raises:
        InputError: Naming the argument, what was given and what to write.
    """
    if value is None:
        return
    if not isinstance(value, list | tuple):
        if isinstance(value, kind):
            example = repr(value) if isinstance(value, str) else f"{type(value).__name__}(...)"
        said = f"`{name}`: expected a list of {_names(kind)}, got {_described(value)}. Write it as in `[{example}]`."
        raise InputError(said)
    for index, item in enumerate(value):
        require_instance(f"{name}[{index}]", item, kind, example)


def require_whole_number(name: str, value: object, least: int) -> None:
    """Refuses what is no whole number, or too small a one.

    Args:
        name: The argument, for the message.
        value: What was given.
        least: The smallest that is valid.

    Raises:
        InputError: Naming the argument and what was given.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InputError(f"`{name}` must be a whole number, got {_described(value)}")
    if value < least:
        raise InputError(f"`{name}` must be at least {least}, got {value}")


def require_text(name: str, value: str | os.PathLike[str] | None, expected: str) -> None:
    """Refuses a text that is empty, which is not the same as none.

    Args:
        name: The argument, for the message.
        value: What was given.
        expected: What it should be.

    Raises:
        InputError: Naming the argument.
    """
    if value is not None and not os.fspath(value).strip():
        raise InputError(f"`{name}`: expected {expected}, got an empty text. Leave it out.")


def require_seed(seed: object, name: str = "seed") -> None:
    """Refuses a seed that a random generator does not take.

    Args:
        seed: The seed.
        name: The argument, for the message.

    Raises:
        InputError: If it is no whole number in [0, `LARGEST_SEED`].
    """
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= int(seed) <= LARGEST_SEED:
        raise InputError(f"`{name}` must be a whole number from 0 to {LARGEST_SEED}, got {_described(seed)}")


def require_one_of(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuses a value that is not one of some names.

    Args:
        name: The argument, for the message.
        value: What was given.
        choices: The valid ones.

    Raises:
        InputError: Naming the argument, what was given and what is valid.
    """
    if value not in choices:
        raise InputError(f"`{name}` must be one of {', '.join(choices)}, got {_described(value)}")


def _names(kind: type | UnionType) -> str:
    kinds = [one for one in get_args(kind) or (kind,) if one is not type(None)]
    return " or ".join(f"`{one.__name__}`" for one in kinds)


def _described(value: object) -> str:
    if isinstance(value, type):
        return f"the class `{value.__name__}`"
    if value is None or isinstance(value, str | int | float | list | tuple | Mapping):
        text = repr(value)
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
    return f"an object of the class `{type(value).__name__}`"


def written(made: object) -> str:
    """An object as it is written in Python, for its `__repr__`.

    Args:
        made: Has its settings as attributes, under the names of the arguments that it was made with.

    Example:
        >>> class Range:
        ...     def __init__(self, low=0, high=None):
        ...         self.low, self.high = low, high
        >>> written(Range(2))
        'Range(low=2, high=None)'
    """
    names = [name for name in inspect.signature(type(made)).parameters if hasattr(made, name)]
    return f"{type(made).__name__}({', '.join(f'{name}={getattr(made, name)!r}' for name in names)})"
