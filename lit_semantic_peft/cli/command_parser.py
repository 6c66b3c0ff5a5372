"""The parser of the commands that train nothing."""

from typing import NoReturn

from typing_extensions import override

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.terminal import TextArgumentParser


class CommandParser(TextArgumentParser):
    """Raises what it cannot parse, as every other error of input."""

    @override
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")
