"""Names of a package that are loaded when they are first used, so that importing the package is cheap (PEP 562)."""

from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any


def attach(
    package: str,
    module_of: Mapping[str, str],
    *,
    submodules: Collection[str] = (),
    computed: Mapping[str, Callable[[], Any]] | None = None,
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and the `__dir__` of a package whose names are loaded when they are first used.

    A module of the package must not have the name of something it exports: importing the module would hide it.

    Args:
        package: `__name__` of the package.
        module_of: For each name the module that holds it, relative to the package.
        submodules: Modules of the package that are names themselves.
        computed: For each further name a function that gives its value.

    Example:
        >>> load, names = attach("lit_semantic_peft", {"InputError": "errors"})
        >>> load("InputError").__name__, names()
        ('InputError', ['InputError'])
    """
    computed = computed or {}

    def load(name: str) -> Any:
        if name in module_of:
            return getattr(import_module(f"{package}.{module_of[name]}"), name)
        if name in submodules:
            return import_module(f"{package}.{name}")
        if name in computed:
            return computed[name]()
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        return sorted([*module_of, *submodules, *computed])

    return load, names
