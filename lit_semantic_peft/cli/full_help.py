"""`COMMAND --help_all` from the cache: what the parser said, which imports all libraries, until one changes."""

import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import lit_semantic_peft
from lit_semantic_peft.cache import cache_folder
from lit_semantic_peft.files import UnwritableError, content_key, write_text

_LIBRARIES = ("jsonargparse", "lightning", "peft", "torch", "transformers")


def show_full_help(command: str, show: Callable[[], None]) -> None:
    """Prints the help of every key.

    Args:
        command: Whose.
        show: Prints it, by the parser, and ends with `SystemExit`; called where the cache does not have it.
    """
    path = cache_folder() / "help" / f"{content_key(_depends_on(command))}.txt"
    with suppress(OSError, ValueError):  # not there, or damaged
        print(path.read_text(encoding="utf-8"), end="")
        return
    shown = StringIO()
    try:
        with redirect_stdout(shown):
            show()
    except SystemExit as end:
        if end.code:
            raise
        with suppress(UnwritableError):  # it is made again the next time
            write_text(path, shown.getvalue())
    finally:
        print(shown.getvalue(), end="")


def _depends_on(command: str) -> dict[str, Any]:
    """All that the text follows from: the package's sources, the libraries, how wide it is shown."""
    root = Path(lit_semantic_peft.__file__).parent
    sources = {path: path.stat() for path in sorted(root.rglob("*.py"))}
    return {
        "command": command,
        "python": sys.version,
        "libraries": {name: version(name) for name in _LIBRARIES},
        "sources": {str(path.relative_to(root)): (one.st_size, one.st_mtime_ns) for path, one in sources.items()},
        "columns": shutil.get_terminal_size().columns,
        "is_terminal": sys.stdout.isatty(),
    }
