"""The options of the commands as a file beside this module, so that help and refusals need not build a parser.

`python -m lit_semantic_peft.cli.options` writes the file anew; a test compares it with the parsers.
"""

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("options.json")
COMMANDS = ("fit", "validate", "test", "predict", "score")
_OF_EVERY_COMMAND = {"help", "help_all", "config", "print_config"}


class KnownOptions:
    """What the parsers of the commands accept.

    Args:
        content: As `content` gives it; read from the file where None.
    """

    def __init__(self, content: Mapping[str, Any] | None = None) -> None:
        self._content = json.loads(FILE.read_text(encoding="utf-8")) if content is None else content

    @cached_property
    def defaults(self) -> dict[str, str]:
        """The default of every key of a configuration, as YAML writes it."""
        return dict(self._content["defaults"])

    @property
    def groups(self) -> set[str]:
        """Names under which other keys stand, such as `data.encoding`."""
        return {key.rpartition(".")[0] for key in self.defaults if "." in key} | {"data", "model"}

    def of_command(self, command: str) -> dict[str, str]:
        """The options that one command has beside the keys of a configuration, with their defaults.

        Args:
            command: One of `COMMANDS`.
        """
        return dict(self._content["commands"][command])

    def unknown(self, command: str, keys: Iterable[str]) -> list[str]:
        """The keys that the command's parser would refuse, in their order.

        Of Lightning's own keys none is called unknown where another version of it is installed than the file was
        written with.

        Args:
            command: One of `COMMANDS`.
            keys: As in a file or on the command line, such as `data.num_facts` or `data.prompts+`.
        """
        known = self.defaults.keys() | self.of_command(command).keys() | _OF_EVERY_COMMAND
        groups = self.groups
        sees_trainer = version("lightning") == self._content["lightning"]
        found = []
        for given in keys:
            key = given.removesuffix("+")
            parts = key.split(".")
            beginnings = {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
            if not (key in groups or beginnings & known or (parts[0] == "trainer" and not sees_trainer)):
                found.append(key)
        return found


def content() -> dict[str, Any]:
    """What the parsers say now; imports everything."""
    from lit_semantic_peft.cli.run import build_parser

    of = {command: _options(build_parser(command)) for command in COMMANDS}
    common = set.intersection(*(set(options) for options in of.values()))
    return {
        "lightning": version("lightning"),
        "defaults": {key: value for key, value in of["fit"].items() if key in common},
        "commands": {
            command: {key: value for key, value in options.items() if key not in common}
            for command, options in of.items()
        },
    }


def _options(parser: Any) -> dict[str, str]:
    return {one.dest: default_text(one.default) for one in parser._actions if is_option(one)}


def is_option(action: Any) -> bool:
    """Whether an action of a parser takes a value that a run is told: not help, a file, or a link.

    Args:
        action: Of a parser of jsonargparse.
    """
    return hasattr(action, "_typehint") and bool(action.option_strings) and not action.dest.endswith(".help")


def default_text(value: Any) -> str:
    """A default as YAML would write it.

    Args:
        value: Of a parser.
    """
    if isinstance(value, list):
        return f"[{', '.join(map(default_text, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    FILE.write_text(json.dumps(content(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
