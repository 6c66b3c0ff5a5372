"""The parser of the commands that train nothing."""

from typing import Any, NoReturn

from typing_extensions import override

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.terminal import TextArgumentParser


class CommandParser(TextArgumentParser):
    """Raises what it cannot parse, as every other error of input."""

    @override
    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses arguments, of which an empty one would mean the working folder.

        Raises:
            InputError: If one is empty, or they cannot be parsed.
        """
        if args is not None and "" in args:
            raise InputError(f"argument {[*args].index('') + 1} is empty: is a variable of the shell not set?")
        return super().parse_args(args, namespace)

    @override
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")
