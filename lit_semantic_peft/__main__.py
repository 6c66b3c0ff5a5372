"""The command line. This module imports nothing heavy, so that `--help` answers at once."""

import difflib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from lit_semantic_peft.errors import AuditWarning, InputError

_LIGHTNING_COMMANDS = {
    "fit": "filter and weight the facts, train an adapter, evaluate it, write a report",
    "validate": "likelihood and teacher-forced recall of the facts",
    "test": "ask base model and adapter every fact and its probes; update the report",
    "predict": "answers to facts or to free prompts, from a checkpoint or an exported adapter",
    "score": "without training: how far each fact is from the model, what a filter would keep, which facts conflict",
}
_OTHER_COMMANDS = {
    "augment": "let a local model write facts in other words, as forms to teach",
    "compare": "runs over the same facts: their scores and costs, of two with intervals and the facts that flipped",
    "convert": "turn a published benchmark, or facts in any readable form, into a file of facts",
    "export": "write a run's adapter, or base model and adapter merged into one, to a folder",
    "inspect": "audit an adapter: its weights, what it says everywhere, what it changed; status 3 where it warns",
    "report": "rebuild report.html and the plots of a run folder",
}
_HELP = """\
usage: lit-semantic-peft COMMAND [options]

Teach a language model facts with PEFT: semantic filtering, distance-weighted loss, interference per fact.

commands (lit-semantic-peft COMMAND --help explains each):
{commands}

options:
  -h, --help  show this help
  --version   show the version

example:
  lit-semantic-peft fit --config experiments/quickstart.yaml
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: What follows the program's name; the process's own arguments where None.

    Returns:
        The exit status: 0, 1 where nobody reads on what is printed (`| head`), 2 where the input cannot be used (one
        message, without a traceback), 3 where an audit warns, or 130 after Ctrl+C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except InputError as error:
        _say(str(error))
        return 2
    except AuditWarning as warning:
        _say(str(warning))
        return 3
    except BrokenPipeError:
        with suppress(OSError):  # what is still in the buffer would fail once more at the end of the process
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        from lit_semantic_peft.files import unusable_path

        said = unusable_path(error)
        if said is None:
            raise
        _say(said)
        return 2
    except ValueError as error:  # a path from a configuration; a command line cannot hold the character
        if "embedded null" not in str(error):
            raise
        _say("The name of a file or folder holds a NUL character, which no file system takes. Write it without.")
        return 2
    except KeyboardInterrupt:
        return 130
    return status


def _run(arguments: list[str]) -> int:
    """Runs a command and returns its exit status."""
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        width = max(map(len, _LIGHTNING_COMMANDS)) + 2
        lines = [f"  {name:{width}}{text}" for name, text in {**_LIGHTNING_COMMANDS, **_OTHER_COMMANDS}.items()]
        print(_HELP.format(commands="\n".join(lines)), end="")
    elif command == "--version":
        from importlib.metadata import version

        print(version("lit-semantic-peft"))
    elif command in _LIGHTNING_COMMANDS and {"-h", "--help"} & {*arguments}:
        from lit_semantic_peft.cli.help import help_text

        print(help_text(command, _LIGHTNING_COMMANDS[command]), end="")
    elif command in _LIGHTNING_COMMANDS:
        from lit_semantic_peft.cli.early import refuse_early

        refuse_early(arguments)
        if arguments[1:] == ["--help_all"]:
            from lit_semantic_peft.cli.full_help import show_full_help

            show_full_help(command, lambda: _run_by_parser(arguments))
        else:
            _run_by_parser(arguments)
    elif command in _OTHER_COMMANDS:
        from lit_semantic_peft.cli.commands import COMMANDS

        return COMMANDS[command](arguments[1:]) or 0
    else:
        near = difflib.get_close_matches(command, [*_LIGHTNING_COMMANDS, *_OTHER_COMMANDS], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see lit-semantic-peft --help"
        raise InputError(f"there is no command {command!r}; {hint}")
    return 0


def _run_by_parser(arguments: list[str]) -> None:
    """Runs a command of Lightning's; says before, on the first rank, what takes seconds to load."""
    from lit_semantic_peft.cli.early import rank

    if rank() == 0 and "torch" not in sys.modules:
        print("Loading torch, transformers, peft and Lightning …", file=sys.stderr, flush=True)
    from lit_semantic_peft.cli.run import run

    run(arguments, _LIGHTNING_COMMANDS)


def _say(error: str) -> None:
    """Prints an error, which every rank has alike, on the first."""
    from lit_semantic_peft.cli.early import rank

    if rank() == 0:
        from lit_semantic_peft.terminal import message

        print(f"error: {message(error)}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
