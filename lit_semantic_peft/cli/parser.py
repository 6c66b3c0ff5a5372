"""The parser of the commands: the base model by its name alone, and errors that suggest what was meant."""

import difflib
import importlib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import Namespace
from jsonargparse._actions import _ActionConfigLoad
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from lit_semantic_peft.cli.unknown import SEE_HELP, moved, nearest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import os_reason
from lit_semantic_peft.models import BaseModel

_UNKNOWN = (
    re.compile(r"unrecognized arguments: -*([\w.]+)"),
    re.compile(r"[Kk]ey ['\"]([\w.]+)['\"] is not expected"),
    re.compile(r"Group ['\"](?P<group>[\w.]+)['\"] does not accept option ['\"]([\w.]+)"),
    re.compile(r"(?:[Kk]ey|[Oo]ption) ['\"]([\w.]+)"),
)


_OF_UNIONS = re.compile(
    r"\s*(?:- )?(?:Does not validate against any of|Subtypes: |Errors:$|Expected a <class 'NoneType'>|"
    r"Given value type: |Expected a path but |Subclass types expect one of|a class path \(|a dict with)"
)
_OF_ANOTHER_TYPE = re.compile(
    r'Parser key "(?P<key>[\w.]+)":\s+(?:- )?Expected a <class \'(?P<kind>\w+)\'>'
    r"(?:\. Got value|\s+Given value): (?P<value>.*)"
)
_KINDS = {
    **{"int": "a whole number", "float": "a number", "bool": "`true` or `false`", "list": "a list"},
    **{"str": "text", "dict": "settings by their names"},
}
_UNRECOGNIZED = re.compile(r"(?<=\s)--([\w.]+)")
_UNKNOWN_CLASS = re.compile(
    r"(?:given class_path ['\"]|dot import path string: |Namespace\(class_path=['\"])((?:\w+\.)*)(\w+)"
)
_HOMES = (
    "lit_semantic_peft.semantics",
    "lit_semantic_peft.facts.forms",
    "lit_semantic_peft.training",
    "lit_semantic_peft.callbacks",
    "peft",
    "torch.optim",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
)  # of classes that are given without a module


def _of_torch(argument: str) -> str:
    """`--model.optimizer=SGD` is torch's: other packages that happen to be installed have optimizers of that name."""
    option, _, name = argument.partition("=")
    if option == "--model.optimizer" and name.isidentifier() and hasattr(torch.optim, name):
        return f"{option}=torch.optim.{name}"
    return argument


def as_jsonargparse_takes_it(arguments: Sequence[str]) -> list[str]:
    """The options of a command with `--help_all`, `--print_config` and `--chat` as jsonargparse names them.

    Args:
        arguments: The command and its options.
    """
    ours = {
        "--help_all": "--help",
        "--print_config": "--print_config=skip_default",
        "--print_config=full": "--print_config",
    }
    following = [*arguments[1:], ""]
    return [
        "--chat=true" if one == "--chat" and then not in ("true", "false") else ours.get(one, one)
        for one, then in zip(arguments, following, strict=True)
    ]


def with_default_optimizer(arguments: Sequence[str]) -> list[str]:
    """The options of a command; a learning rate that is given without an optimizer is one of the default optimizer.

    A configuration file may name an optimizer, so its options stay as they are.

    Args:
        arguments: The command and its options.
    """
    arguments = [_of_torch(one) for one in arguments]
    names = [argument.partition("=")[0] for argument in arguments]
    if "--model.optimizer.lr" not in names or {"--model.optimizer", "--model", "--config", "-c"} & {*names}:
        return list(arguments)
    default = ["--model.optimizer=torch.optim.AdamW", "--model.optimizer.weight_decay=0"]
    return [arguments[0], *default, *arguments[1:]]


class SuggestingParser(LightningArgumentParser):
    """Suggests the nearest valid key or class for an unknown one, and the new keys for all that have moved."""

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
        others = _UNRECOGNIZED.findall(message) if message.startswith("unrecognized arguments") else []
        if unknown is not None and (said := moved([unknown, *others])) is not None:
            raise InputError(f"{said}.") from ex
        if "model.optimizer" in message and "not accepted" in message:
            message += "\nName the class too: --model.optimizer=torch.optim.AdamW --model.optimizer.lr=0.001"
        near = nearest(unknown, self._known_keys()) if unknown else None
        near = near or _nearest_class(message)
        suggestion = f"\nDid you mean `{near}`?" if near else ""
        raise InputError(f"{_in_plain_words(_without_unions(message))}{suggestion}\n{SEE_HELP}") from ex

    @override
    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Names the file in what is wrong with it."""
        try:
            return super().parse_path(cfg_path, *args, **kwargs)
        except OSError as error:
            raise InputError(f"`--config` {cfg_path} cannot be read: {os_reason(error)}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"`--config` {cfg_path} is no UTF-8 text: {error.reason}, byte {error.start}.") from error
        except ValueError as error:
            raise InputError(f"{cfg_path}: {error}") from error

    @override
    def _load_config_parser_mode(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """Refuses all keys of a file that have moved, instead of the first of them."""
        try:
            sections = yaml.safe_load(content)
        except yaml.YAMLError:
            sections = None  # the parser says what is wrong
        if isinstance(sections, dict):
            settings = {section: value for section, value in sections.items() if isinstance(value, dict)}
            said = moved([f"{section}.{name}" for section, value in settings.items() for name in value])
            if said is not None:
                raise InputError(f"{said}.")
        return super()._load_config_parser_mode(content, *args, **kwargs)

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


def _without_unions(message: str) -> str:
    """The message without what jsonargparse says of the types that an optional value may also have."""
    return "\n".join(line for line in message.splitlines() if line.strip() and not _OF_UNIONS.match(line))


def _in_plain_words(message: str) -> str:
    """What jsonargparse says of a value of another type than expected, as the other messages are; else the message."""
    found = _OF_ANOTHER_TYPE.fullmatch(message.strip())
    if found is None or found["kind"] not in _KINDS:
        return message
    example = f". Write it as in `[{found['value']}]`" if found["kind"] == "list" else ""
    return f"`{found['key']}`: expected {_KINDS[found['kind']]}, got {found['value']!r}{example}."


def _unknown_key(pattern: re.Pattern[str], message: str) -> str | None:
    """The unknown key in an error message."""
    found = pattern.search(message)
    if found is None:
        return None
    group = found.groupdict().get("group")
    return found[found.re.groups] if group is None else f"{group}.{found[found.re.groups]}"


def _nearest_class(message: str) -> str | None:
    """The name nearest to a class that an error message says is not there."""
    found = _UNKNOWN_CLASS.search(message)
    if found is None:
        return None
    homes = [found[1].rstrip(".")] if found[1] else _HOMES
    classes = [(name, home) for home in homes for name in _names_in(home)]
    if any(name == found[2] for name, _ in classes):  # it is there, so something else is wrong
        return None
    near = difflib.get_close_matches(found[2], [name for name, _ in classes if name[0].isupper()], n=1)
    return next((f"{home}.{name}" for name, home in classes if [name] == near), None)


def _names_in(module: str) -> list[str]:
    try:
        return dir(importlib.import_module(module))
    except ImportError:
        return []
