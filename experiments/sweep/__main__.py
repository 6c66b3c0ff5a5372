"""The commands of the sweep: `run` checks what is missing, `table` writes the page."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from experiments.sweep.cells import all_cells
from experiments.sweep.ledger import GOOD, Ledger
from experiments.sweep.table import page
from experiments.sweep.worker import outcomes_of
from lit_semantic_peft.files import write_text
from lit_semantic_peft.terminal import TextArgumentParser

PAGE = Path("docs/sweep.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: What follows the program's name; the process's own arguments where None.

    Returns:
        0; 1 where a cell is wrong or an error, or time ended before all were checked.
    """
    parser = TextArgumentParser(prog="python -m experiments.sweep", description=__doc__)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--ledger", type=Path, default=Path("runs/sweep.jsonl"), help="the file of what was found")
    parser.add_argument("--again", action="store_true", help="check again what was wrong or an error")
    parser.add_argument("--only", default="", help="only cells whose FAMILY×METHOD contains this")
    parser.add_argument("--limit", type=float, default=120.0, help="most seconds for a cell (120)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell later")
    options = parser.parse_args(arguments)
    ledger, cells = Ledger(options.ledger), all_cells()
    if options.command == "run":
        end = time.monotonic() + 60 * options.minutes
        wanted = [cell for cell in cells if options.only in "×".join(cell)]
        for outcome in outcomes_of(ledger.open_cells(wanted, again=options.again), options.limit):
            ledger.add(outcome)
            print(f"{outcome.family} × {outcome.method}: {outcome.status} ({outcome.seconds} s) {outcome.detail[:200]}")
            if time.monotonic() > end:
                break
    else:
        write_text(PAGE, page(cells, ledger.read()))
        print(f"Written: {PAGE}")
    found = ledger.read()
    print(dict(Counter(found[cell].status for cell in cells if cell in found)), "of", len(cells))
    return int(any(cell not in found or found[cell].status not in GOOD for cell in cells))


if __name__ == "__main__":
    raise SystemExit(main())
