"""The process that checks cells: one after the other, replaced when it dies or a cell takes too long."""

import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from experiments.sweep.ledger import Cell, Outcome


def outcomes_of(cells: Iterable[Cell], limit: float) -> Iterator[Outcome]:
    """Checks cells in another process.

    Args:
        cells: What to check.
        limit: Most seconds for a cell.

    Yields:
        What was found for each, in order.
    """
    context = get_context("spawn")
    process = connection = None
    try:
        for cell in cells:
            if process is None or connection is None or not process.is_alive():
                connection, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs,), daemon=True)
                process.start()
                theirs.close()
                connection.recv()  # it has imported what it needs, which is not the cell's time
            connection.send(cell)
            try:
                is_ready = connection.poll(limit)
                outcome = connection.recv() if is_ready else Outcome(*cell, "error", f"took over {limit:.0f} s")
            except EOFError:
                is_ready, outcome = False, Outcome(*cell, "error", "the process died")
            if not is_ready:
                process.kill()
                process.join()
                process = None
            yield outcome
    finally:
        if process is not None:
            process.kill()


def check(cell: Cell) -> Outcome:
    """Checks a cell in this process.

    Args:
        cell: What to check.
    """
    from experiments.sweep.checks import WrongError, check_cell
    from experiments.sweep.families import NotBuiltError
    from lit_semantic_peft.errors import InputError

    start = time.perf_counter()

    def outcome(status: str, detail: str = "", notes: Iterable[str] = ()) -> Outcome:
        one_line = " ".join(detail.split())
        return Outcome(*cell, status, one_line, tuple(notes), round(time.perf_counter() - start, 1))  # type: ignore[arg-type]

    try:
        with tempfile.TemporaryDirectory() as folder:
            return outcome("pass", notes=check_cell(*cell, Path(folder)))
    except NotBuiltError as error:
        return outcome("not built", str(error))
    except InputError as error:
        return outcome("refused", str(error))
    except WrongError as error:
        return outcome("wrong", str(error))
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = next((one for one in reversed(frames) if "lit_semantic_peft" in one.filename), frames[-1])
        where = f"{Path(ours.filename).name}:{ours.lineno}"
        return outcome("error", f"{where}: {type(error).__name__}: {error}")


def _serve(connection: Connection) -> None:
    import logging
    import warnings

    import experiments.sweep.checks  # noqa: F401
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    connection.send("ready")
    while True:
        connection.send(check(connection.recv()))
