"""The ledger as a page of tables."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import peft
import torch
import transformers
from experiments.sweep.cells import EVERYWHERE, IN_DEPTH
from experiments.sweep.ledger import GOOD, Cell, Outcome, Status

_SIGNS: dict[Status, str] = {"pass": "✓", "refused": "refused", "not built": "—", "wrong": "WRONG", "error": "ERROR"}
_MOST_CHARACTERS = 200
_MOST_NAMED = 12

_HEAD = """# Which models and adapters go together

`make test-sweep` builds a small random model of every causal language model of transformers, attaches an adapter,
trains it for a few steps and compares with slow and obvious ways: losses, norms of the facts' gradients, free
answers (with plain passes, and with `generate` where the self-check allows it), a resumed training, the reloaded
adapter, and the merged model. This page is written from the ledger of a run by `python -m experiments.sweep table`.

✓: every check held. refused: an input error says why. —: transformers makes no small model of the family.
"""


def page(cells: Sequence[Cell], found: Mapping[Cell, Outcome]) -> str:
    """Markdown of `docs/sweep.md`.

    Args:
        cells: All cells.
        found: What was found of them.
    """
    done = [found[cell] for cell in cells if cell in found]
    versions = f"transformers {transformers.__version__}, peft {peft.__version__}, torch {torch.__version__}"
    sample = [one for one in done if one.method not in EVERYWHERE and one.family not in IN_DEPTH]
    families, methods = sorted({cell.family for cell in cells}), sorted({cell.method for cell in cells})
    sections = {
        "": [f"{versions}. {len(done)} of {len(cells)} cells were checked: {_counted(done)}."],
        "Wrong, or an error": _by_message(one for one in done if one.status not in GOOD),
        "Every family": _grid("family", families, EVERYWHERE, lambda row, column: found.get(Cell(row, column))),
        "Every adapter type": _grid("type", methods, IN_DEPTH, lambda row, column: found.get(Cell(column, row))),
        "A sample of the other pairs": [f"{len(sample)} of them, drawn by seed 0: {_counted(sample)}."],
        "What is done another way": _by_message(
            Outcome(one.family, one.method, one.status, note) for one in done for note in one.notes
        ),
        "Refused": _by_message(one for one in done if one.status == "refused"),
        "Not built": _by_message(one for one in done if one.status == "not built" and one.method == EVERYWHERE[0]),
    }
    lines = [_HEAD]
    for title, content in sections.items():
        if content:
            lines += [*([f"## {title}", ""] if title else []), *content, ""]
    return "\n".join(lines)


def _counted(outcomes: Iterable[Outcome]) -> str:
    count = Counter(one.status for one in outcomes)
    return ", ".join(f"{count[status]} {status}" for status in _SIGNS if count[status])


def _grid(
    corner: str, rows: Sequence[str], columns: Sequence[str], of: Callable[[str, str], Outcome | None]
) -> list[str]:
    lines = [f"| {corner} | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    for row in rows:
        signs = [_SIGNS[one.status] if (one := of(row, column)) else "" for column in columns]
        lines.append(f"| {row} | {' | '.join(signs)} |")
    return lines


def _by_message(outcomes: Iterable[Outcome]) -> list[str]:
    """A line for each message with the cells that it is of; names and numbers in it are those of the first."""
    cells: dict[str, list[str]] = defaultdict(list)
    said: dict[str, str] = {}
    for one in outcomes:
        kind = "".join(letter for letter in one.detail[:60] if not letter.isdigit())
        said.setdefault(kind, one.detail)
        cells[kind].append(f"{one.family} × {one.method}")
    lines = []
    for kind, names in sorted(cells.items(), key=lambda item: -len(item[1])):
        text = said[kind].replace("|", "\\|")
        shown = text[:_MOST_CHARACTERS] + ("…" if len(text) > _MOST_CHARACTERS else "")
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        lines.append(f"- {shown} ({len(names)}: {', '.join(names[:_MOST_NAMED])}{more})")
    return lines
