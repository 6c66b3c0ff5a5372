"""The parser of the commands: the base model by its name alone, and errors that suggest what was meant."""

import difflib
import re
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace
from jsonargparse._actions import _ActionConfigLoad
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from lit_semantic_peft.data.moved import moved_to
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import BaseModel

_UNKNOWN = (
    re.compile(r"unrecognized arguments: -*([\w.]+)"),
    re.compile(r"[Kk]ey ['\"]([\w.]+)['\"] is not expected"),
    re.compile(r"Group ['\"](?P<group>[\w.]+)['\"] does not accept option ['\"]([\w.]+)"),
    re.compile(r"(?:[Kk]ey|[Oo]ption) ['\"]([\w.]+)"),
)


class SuggestingParser(LightningArgumentParser):
    """Suggests the nearest valid key for an unknown one, and the new key for one that has moved."""

    @override
    def add_lightning_class_args(self, lightning_class: Any, nested_key: str, *args: Any, **kwargs: Any) -> list[str]:
        """Adds a class; `model.base_model` is a name or the settings of a `BaseModel`; `data` has none."""
        if nested_key not in ("model", "data"):
            return super().add_lightning_class_args(lightning_class, nested_key, *args, **kwargs)
        shared: dict[str, Any] = {"fail_untyped": False, "sub_configs": True}
        added = self.add_class_arguments(lightning_class, nested_key, skip={"base_model"}, **shared)
        if nested_key == "model":
            added += self.add_class_arguments(BaseModel, "model.base_model", **shared)
            for action in self._actions:
                if action.dest == "model.base_model":
                    action.__class__ = _NameOrSettings
                    action.metavar, action.help = "NAME", "Its name, or its settings as below."
        return list(added)

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises `InputError`, with a suggestion."""
        unknown = next((found for found in (_unknown_key(pattern, message) for pattern in _UNKNOWN) if found), None)
        if unknown is not None and (said := _moved(unknown)) is not None:
            raise InputError(f"{said}.") from ex
        near = difflib.get_close_matches(unknown, self._known_keys(), n=1, cutoff=0.5) if unknown else []
        suggestion = f"\nDid you mean `{near[0]}`?" if near else ""
        raise InputError(f"{message}{suggestion}\nSee --help for all options.") from ex

    def _known_keys(self) -> set[str]:
        """The keys of this parser and of its subcommands' parsers."""
        parsers = [
            self,
            *(sub for action in self._actions if isinstance(action.choices, dict) for sub in action.choices.values()),
        ]
        return {action.dest for parser in parsers for action in parser._actions} - {"help", "config"}


class _NameOrSettings(_ActionConfigLoad):  # type: ignore[misc]
    """A string is the name of a base model, not of a file with its settings."""

    @override
    def _load_config(self, value: Any, parser: Any) -> Namespace:
        if isinstance(value, str):
            try:
                settings = yaml.safe_load(value)
            except yaml.YAMLError:
                settings = None
            value = settings if isinstance(settings, dict) else {"name": value}
        return super()._load_config(value, parser)


def _unknown_key(pattern: re.Pattern[str], message: str) -> str | None:
    """The unknown key in an error message."""
    found = pattern.search(message)
    if found is None:
        return None
    group = found.groupdict().get("group")
    return found[found.re.groups] if group is None else f"{group}.{found[found.re.groups]}"


def _moved(key: str) -> str | None:
    """The message for a key that was valid once."""
    if key.startswith("data.base_model"):
        return "`data.base_model` is now `model.base_model` alone: the data module takes it from the module"
    return moved_to(key)
