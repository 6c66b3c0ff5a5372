"""Settings that have moved into a group: an old name is an error that gives the new one."""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import ParamSpec

from lit_semantic_peft.errors import InputError

P = ParamSpec("P")

_GROUPS = {
    "encoding": ("template", "append_eos", "max_length", "chat_template_kwargs"),
    "selection": ("distance", "more_distances", "filters", "weighting", "strata", "deferred_from_epoch"),
    "batches": ("micro_batch_size", "bucket_steps", "mix_strata", "eval_batch_size", "max_val_facts"),
}
_OF_BASE_MODEL = ("revision", "dtype", "trust_remote_code")
_OF_SOURCES = {
    "retain_weight": ("RetainSplit", "weight"),
    "retain_batch_size": ("RetainSplit", "batch_size"),
    "retain_known": ("KnownFacts", "num_facts"),
}

MOVED = {
    **{f"data.{name}": f"data.{group}.{name}" for group, names in _GROUPS.items() for name in names},
    **{f"model.{name}": f"model.base_model.{name}" for name in _OF_BASE_MODEL},
    **{f"data.{name}": f"model.base_model.{name}" for name in _OF_BASE_MODEL},
    **{
        f"model.{name}": f"model.retain: [{{class_path: lit_semantic_peft.training.{kind}, init_args: {{{now}: ...}}}}]"
        for name, (kind, now) in _OF_SOURCES.items()
    },
}
"""New names by old ones, as in a YAML file."""


def moved_to(keys: Iterable[str]) -> str | None:
    """The message for the old names among some keys, each once; None where there is none.

    Args:
        keys: As on the command line, such as `data.weighting.init_args.gamma`.
    """
    old = dict.fromkeys(".".join(key.split(".")[:2]) for key in keys)
    return ", ".join(f"`{one}` is now `{MOVED[one]}`" for one in old if one in MOVED) or None


def refuse_moved(section: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Makes an `__init__` refuse the old names of its arguments.

    Args:
        section: The section of the YAML that the class is built from: `data` or `model`.

    Returns:
        The decorator; what it decorates raises `InputError` for an old name.
    """

    def decorated(init: Callable[P, None]) -> Callable[P, None]:
        @wraps(init)
        def checked(*args: P.args, **kwargs: P.kwargs) -> None:
            keys = [f"{section}.{name}" for name in kwargs]
            if (said := moved_to(keys)) is not None:
                in_python = ", ".join(_in_python(key) for key in keys if key in MOVED)
                raise InputError(f"{said}; in Python {in_python}.")
            init(*args, **kwargs)

        return checked

    return decorated


def _in_python(old: str) -> str:
    if (moved := _OF_SOURCES.get(old.removeprefix("model."))) is not None:
        source, name = moved
        return f"`SemanticPeftModule(retain=[{source}({name}=...)])`"
    section, group, name = MOVED[old].split(".")
    plan = {"encoding": "EncodingPlan", "selection": "SelectionPlan", "batches": "BatchPlan", "base_model": "BaseModel"}
    taker = "SemanticPeftModule" if section == "model" else "KnowledgeDataModule"
    return f"`{taker}({group}={plan[group]}({name}=...))`"
