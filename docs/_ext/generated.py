"""Directives that write parts of the reference from the code: ```{generated} NAME```.

What a page says of keys, commands, columns and files is what the parser, the tables and the run folder say themselves.
A type in a signature that no package exports has no page; it stays text.
"""

import contextlib
import importlib
import inspect
import io
import os
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import lit_semantic_peft
from docutils import nodes
from docutils.parsers.rst import directives
from lit_semantic_peft import __main__ as command_line
from lit_semantic_peft.cli.options import default_text, is_option
from lit_semantic_peft.cli.run import build_parser
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.reports import FACT_COLUMNS, PROBE_COLUMNS
from lit_semantic_peft.reports.run_folder import Entry, RunPaths
from lit_semantic_peft.training import Recipe, choose_recipe
from peft import LoraConfig
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "facts",
    "tokens",
    "models",
    "adapters",
    "interference",
    "metrics",
    "semantics",
    "evaluation",
    "data",
    "training",
)
PACKAGES += ("reports", "audit", "callbacks", "facts.forms", "errors")
"""Packages whose public names have an API page, and the module of the error."""


def keys() -> str:
    """Every key of the YAML, by section."""
    return "\n".join(_sections())


def _sections() -> Iterator[str]:
    for group in build_parser("fit")._action_groups:
        shown = [action for action in group._group_actions if _is_key(action)]
        if not shown:
            continue
        section = shown[0].dest.rpartition(".")[0]
        of_lightning = section == "trainer"
        yield f"## {f'`{section}`' if section else 'Top level'}\n"
        if of_lightning:
            yield "Arguments of `lightning.pytorch.Trainer`, mostly in its words, with this package's defaults.\n"
        elif section:
            yield f"{group.title}.\n"
        for action in shown:
            yield f":::{{confval}} {action.dest}"
            yield f":type: {_type_text(action._typehint)}"
            yield f":default: `{default_text(action.default)}`\n"
            yield f"{action.help}\n:::\n"


def _is_key(action: Any) -> bool:
    return is_option(action) and action.dest not in ("ckpt_path", "weights_only")  # of a call, not of a file


def _type_text(kind: Any) -> str:
    """A type as words: `str`, one of the words of a literal, a class by its name."""
    if get_origin(kind) is Literal:
        return ", ".join(f"`{one}`" for one in get_args(kind))
    if get_origin(kind) is Union or type(kind).__name__ == "UnionType":
        return " or ".join(dict.fromkeys(_type_text(one) for one in get_args(kind) if one is not type(None)))
    if get_origin(kind) is not None:
        name = {"Callable": "class", "Iterable": "list"}.get(get_origin(kind).__name__, get_origin(kind).__name__)
        inner = [one for one in get_args(kind) if not isinstance(one, list) and one is not Any]
        return f"{name} of {' and '.join(map(_type_text, inner))}" if inner else name
    return f"`{kind.__name__}`"


def commands() -> str:
    """The help of the program, and of each command."""
    names = {**command_line._LIGHTNING_COMMANDS, **command_line._OTHER_COMMANDS}
    others = [f"## `{name}`\n\n{_help(name, '--help')}" for name in names]
    return "\n\n".join([_help("--help"), *others])


def _help(*arguments: str) -> str:
    said = io.StringIO()
    width, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), "96"
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            command_line.main(arguments)
    finally:
        os.environ.pop("COLUMNS") if width is None else os.environ.update(COLUMNS=width)
    return f"```text\n{said.getvalue().rstrip()}\n```"


def fact_columns() -> str:
    """The columns of `facts.parquet`."""
    return _columns(FACT_COLUMNS)


def probe_columns() -> str:
    """The columns of `probes.parquet`."""
    return _columns(PROBE_COLUMNS)


def _columns(columns: Any) -> str:
    rows = [f"| `{one.name}` | {one.type} | {one.description} |" for one in columns]
    return "\n".join(["| column | type | meaning |", "| --- | --- | --- |", *rows])


def run_files() -> str:
    """The files of a run folder, each with what it holds."""
    said = dict(re.findall(r"^    (\w+): (.+)$", inspect.getdoc(RunPaths) or "", re.MULTILINE))
    entries = {name: entry for name, entry in vars(RunPaths).items() if isinstance(entry, Entry)}
    rows = [f"| `{entry.name}{'' if '.' in entry.name else '/'}` | {said[name]} |" for name, entry in entries.items()]
    return "\n".join(["| file or folder | what it holds |", "| --- | --- |", *rows])


def top_level() -> str:
    """The names of the package itself, each with a link and the first sentence of its docstring."""
    rows = []
    for name in lit_semantic_peft.__all__:
        one = getattr(lit_semantic_peft, name)
        if callable(one):
            said = (inspect.getdoc(one) or "").split("\n\n")[0].replace("\n", " ")
            role = "class" if inspect.isclass(one) else "func"
            rows.append(f"| {{py:{role}}}`{name} <{PUBLIC[f'{one.__module__}.{name}']}>` | {said} |")
    return "\n".join(["| name | what it is |", "| --- | --- |", *rows])


def make_targets() -> str:
    """The targets of the Makefile, each with what it does."""
    targets = re.findall(r"^([a-z-]+):.*?## (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return "\n".join(
        ["| target | what it does |", "| --- | --- |", *(f"| `make {name}` | {said} |" for name, said in targets)]
    )


def recipe_by_size() -> str:
    """What the recipe chooses for LoRA, by the number of facts and by the size of the base model."""
    steps = [f"{_recipe(number).num_steps:,}" for number in _NUM_FACTS]
    rates = [f"{_recipe(1, parameters).learning_rate:g}" for parameters in _NUM_PARAMETERS.values()]
    lines = [
        f"| facts | {' | '.join(f'{number:,}' for number in _NUM_FACTS)} |",
        f"| --- {'| --- ' * len(_NUM_FACTS)}|",
        f"| optimizer steps | {' | '.join(steps)} |",
        "",
        f"| base model, parameters | {' | '.join(_NUM_PARAMETERS)} |",
        f"| --- {'| --- ' * len(_NUM_PARAMETERS)}|",
        f"| learning rate | {' | '.join(rates)} |",
    ]
    return "\n".join(lines)


_NUM_FACTS = (20, 200, 2_000, 20_000)
_NUM_PARAMETERS = {"135M": 135e6, "500M": 500e6, "1.5B": 1.5e9, "7B": 7e9, "70B": 70e9}


def _recipe(num_facts: int, num_parameters: float = 135e6) -> Recipe:
    facts = [Fact(str(number), f"The code of door {number} is", str(number)) for number in range(num_facts)]
    return choose_recipe(facts, int(num_parameters), LoraConfig())


PARTS: dict[str, Callable[[], str]] = {
    "keys": keys,
    "top-level": top_level,
    "make-targets": make_targets,
    "recipe-by-size": recipe_by_size,
    "commands": commands,
    "fact-columns": fact_columns,
    "probe-columns": probe_columns,
    "run-files": run_files,
}


class Generated(SphinxDirective):
    """Puts a part of `PARTS` into the page, as if it stood there."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The nodes of the part that the argument names."""
        name = directives.choice(self.arguments[0], tuple(PARTS))
        return self.parse_text_to_nodes(PARTS[name](), allow_section_headings=True)


def public_names() -> dict[str, str]:
    """For each exported name, by the module that defines it, its name in the package that exports it.

    What only the package itself exports comes last, so that every name has one home.
    """
    found: dict[str, str] = {}
    for package in (*(f"lit_semantic_peft.{stage}" for stage in PACKAGES), "lit_semantic_peft"):
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ("InputError",)):
            home = getattr(getattr(module, name), "__module__", package)
            found.setdefault(f"{home}.{name}", f"{package}.{name}")
    return found


def leave_internal(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.Node | None:
    """The name alone where a signature has a type that no package exports; nothing where the name does not exist."""
    module, _, name = node.get("reftarget", "").rpartition(".")
    is_own = node.get("refdomain") == "py" and module.startswith("lit_semantic_peft.") and find_spec(module) is not None
    return content if is_own and hasattr(importlib.import_module(module), name) else None


PUBLIC = public_names()


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directive and what becomes of internal types."""
    app.add_directive("generated", Generated)
    app.connect("missing-reference", leave_internal)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
