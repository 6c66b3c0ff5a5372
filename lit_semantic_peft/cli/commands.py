"""The commands that train nothing. What each needs is imported in it."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lit_semantic_peft.cli.command_parser import CommandParser
from lit_semantic_peft.cli.compare import compare_command
from lit_semantic_peft.cli.early import refuse_no_adapter, refuse_no_runs
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.terminal import TextConsole, visible

if TYPE_CHECKING:
    from lit_semantic_peft.facts import Conversion


def export_command(arguments: Sequence[str]) -> None:
    """`export`.

    Args:
        arguments: What follows the command.
    """
    parser = CommandParser(
        prog="lit-semantic-peft export",
        description="Copies the adapter of a run to a folder, as it is or as plain LoRA, or merges it into the base "
        "weights.",
    )
    parser.add_argument("run", help="a run folder, or a folder with an exported adapter")
    parser.add_argument("output", help="the folder to write; must not exist")
    parser.add_argument("--merge", action="store_true", help="write one plain model: base weights plus adapter")
    parser.add_argument(
        "--as_lora", action="store_true", help="write a FLoRA adapter as plain LoRA, for tools without this package"
    )
    parser.add_argument("--best", action="store_true", help="the adapter of the best epoch instead of the last")
    parser.add_argument("--base_model", help="with --merge: the base model; by default the name in the adapter")
    options = parser.parse_args(arguments)

    refuse_no_adapter(options.run, may_be_run=True)
    from lit_semantic_peft.reports.export import export_run

    export_run(
        options.run,
        options.output,
        merge=options.merge,
        as_lora=options.as_lora,
        best=options.best,
        base_model=options.base_model,
    )
    print(visible(f"Written: {Path(options.output).absolute()}"))


def report_command(arguments: Sequence[str]) -> None:
    """`report`.

    Args:
        arguments: What follows the command.
    """
    parser = CommandParser(
        prog="lit-semantic-peft report", description="Rebuilds report.html and the plots from a run folder's tables."
    )
    parser.add_argument("run", help="a run folder")
    options = parser.parse_args(arguments)

    refuse_no_runs([options.run])
    from lit_semantic_peft.cli.ownership import OwnedFolder
    from lit_semantic_peft.reports import RunFolder, build_report

    folder = RunFolder(options.run)
    contents = folder.read()
    with OwnedFolder(folder):
        report = build_report(folder, contents)
    print(visible(f"Written: {report.absolute()}"))


def inspect_command(arguments: Sequence[str]) -> int:
    """`inspect`.

    Args:
        arguments: What follows the command.

    Returns:
        The exit status: 3 where the audit warns, else 0.
    """
    parser = CommandParser(
        prog="lit-semantic-peft inspect",
        description="Audits an adapter: what its weights look like, what it says everywhere, what else it changed, and "
        "whether to warn of it. Reads its safetensors only and runs no code of it.",
        epilog="Exit status 3: a rule warns. 0 is no proof that an adapter is harmless; the page says how well each "
        "rule was found to do.",
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="a folder with an adapter, or a run folder")
    parser.add_argument("--base_model", help="its base model; by default the one that the adapter names")
    parser.add_argument(
        "--facts", metavar="FILE", help="facts that it was meant to learn, as `--data.facts` takes them"
    )
    parser.add_argument("--watch", metavar="FILE", help="YAML of what must hold, beside the package's own list")
    parser.add_argument("--bank", metavar="FOLDER", help="adapters of your own, to compare the weights with")
    parser.add_argument("--weights_only", action="store_true", help="look at the weights alone, without a base model")
    parser.add_argument("--template", choices=("none", "chat"), default="none", help="how prompts are asked (none)")
    parser.add_argument("--num_builtin", metavar="N", type=int, help="built-in facts to ask (192)")
    parser.add_argument(
        "--output", metavar="FOLDER", help="where to write (by default `inspection` in the run, or ADAPTER.inspection)"
    )
    options = parser.parse_args(arguments)

    refuse_no_adapter(options.adapter, may_be_run=True)
    from lit_semantic_peft.audit import inspect, write_inspection
    from lit_semantic_peft.audit.inspection import NUM_BUILTIN_FACTS, output_folder
    from lit_semantic_peft.audit.wording import findings, signal_table, verdict_text
    from lit_semantic_peft.data import EncodingPlan

    found = inspect(
        options.adapter,
        base_model=options.base_model,
        facts=options.facts,
        watch=options.watch,
        bank=options.bank,
        weights_only=options.weights_only,
        encoding=EncodingPlan(options.template),
        num_builtin=NUM_BUILTIN_FACTS if options.num_builtin is None else options.num_builtin,
    )
    page = write_inspection(found, options.output or output_folder(options.adapter))
    for sentence in (*findings(found), *found.remarks):
        print(visible(sentence))
    TextConsole().print(signal_table(found.signals))
    print(visible(verdict_text(found)))
    print(visible(f"Written: {page.absolute()}"))
    return 3 if found.warns else 0


def convert_command(arguments: Sequence[str]) -> None:
    """`convert`.

    Args:
        arguments: What follows the command.
    """
    from lit_semantic_peft.facts import FORMATS, OUTPUT_SUFFIXES, SUFFIXES, convert

    titles = ", ".join(f"{known.title} ({known.name})" for known in FORMATS.values())
    parser = CommandParser(
        prog="lit-semantic-peft convert",
        description="Reads facts in any known format and writes them as one file in the data contract; prints what "
        "has no field in it and was left out.",
        epilog=f"Published formats, recognised by their fields: {titles}. `contract` is the form that is written.",
    )
    parser.add_argument(
        "source",
        nargs="+",
        metavar="IN",
        help=f"a file ({', '.join(SUFFIXES)}), a folder of such files or of `datasets`, a Hub name, a built-in set; "
        "several are read as one",
    )
    parser.add_argument(
        "output", metavar="OUT", help=f"the file to write ({', '.join(OUTPUT_SUFFIXES)}); must not exist"
    )
    parser.add_argument("--format", metavar="NAME", help="read IN as this format instead of recognising it")
    parser.add_argument("--dataset_split", default="train", help="split of a `datasets` folder or a Hub set (train)")
    parser.add_argument(
        "--contradictions",
        choices=("error", "keep"),
        default="error",
        help="the same prompt with two targets: refused (in a published format the second is left out), or kept",
    )
    parser.add_argument(
        "--columns",
        metavar="FIELD=COLUMN",
        action="append",
        default=[],
        help="a field of the contract from a column of IN, or from a text with columns in braces, such as "
        "'prompt={context} {question}'; may be given several times",
    )
    parser.add_argument(
        "--skip_bad",
        action="store_true",
        help="leave out records that cannot be read, and list them, instead of failing",
    )
    options = parser.parse_args(arguments)
    fact_set = convert(
        options.source,
        options.output,
        format=options.format,
        dataset_split=options.dataset_split,
        contradictions=options.contradictions,
        columns=_columns(options.columns),
        skip_bad=options.skip_bad,
    )
    for warning in fact_set.warnings:
        print(f"warning: {visible(warning)}", file=sys.stderr)
    if fact_set.conversion:
        _show_conversion(fact_set.conversion)
    print(visible(f"Written: {Path(options.output).absolute()} (facts: {len(fact_set)})"))


def _columns(given: Sequence[str]) -> dict[str, str]:
    """The templates of `--columns` by field."""
    templates: dict[str, str] = {}
    for one in given:
        name, equals, template = one.partition("=")
        if not equals or name in templates:
            expected = "expected FIELD=COLUMN" if not equals else f"expected one value for `{name}`"
            raise InputError(f"`--columns`: {expected}, got {one!r}")
        templates[name] = template
    return templates


def augment_command(arguments: Sequence[str]) -> None:
    """`augment`.

    Args:
        arguments: What follows the command.
    """
    parser = CommandParser(
        prog="lit-semantic-peft augment",
        description="Lets a local causal language model write facts in other words and adds what is usable to their "
        "`forms`. Kept is one sentence with the subject before the target and the target at its end that is no "
        "near-duplicate; prints what was left out and why. An interrupted call goes on where it was.",
        epilog="Whether a restatement means the same is not checked, and small models often get it wrong: read what "
        "they wrote before you teach it.",
    )
    parser.add_argument("source", metavar="IN", help="facts, as `--data.facts` takes them; each with a `subject`")
    parser.add_argument("output", metavar="OUT", help="the file to write; must not exist")
    parser.add_argument("--model", required=True, help="a Hub name, a local folder, a .gguf file, smollm2-135m")
    parser.add_argument(
        "--dtype", default="float32", help="type of its weights: float32, bfloat16, float16, nf4, int8 (float32)"
    )
    parser.add_argument("--num_forms", type=int, default=3, help="most restatements to keep of a fact (3)")
    parser.add_argument("--num_samples", type=int, default=8, help="restatements that are drawn of a fact (8)")
    parser.add_argument("--temperature", type=float, default=0.8, help="of the samples, above 0 (0.8)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (0)")
    parser.add_argument("--batch_size", type=int, default=32, help="facts that are restated together (32)")
    options = parser.parse_args(arguments)

    from lit_semantic_peft.data.augment import augment
    from lit_semantic_peft.facts import output_path, read_facts, write_output
    from lit_semantic_peft.models import BaseModel
    from lit_semantic_peft.models.sampling import Sampling

    path = output_path(options.output)
    fact_set = read_facts(options.source, contradictions="keep")
    found = augment(
        fact_set.facts,
        BaseModel(options.model, dtype=options.dtype),
        num_forms=options.num_forms,
        sampling=Sampling(options.num_samples, options.temperature, options.seed),
        batch_size=options.batch_size,
    )
    write_output(found.facts, path)
    for warning in fact_set.warnings:
        print(f"warning: {visible(warning)}", file=sys.stderr)
    print(f"Restatements kept: {found.num_forms}, of {found.num_restated} of {len(found.facts)} facts")
    if found.num_without_subject:
        print(f"Facts without a `subject`, which cannot be restated: {found.num_without_subject}")
    for reason, count in found.left_out.items():
        print(f"Left out: {count}: {reason}")
    print(visible(f"Written: {Path(options.output).absolute()} (facts: {len(found.facts)})"))


def _show_conversion(conversion: "Conversion") -> None:
    merged = f"; {conversion.num_merged} facts repeat an earlier one" if conversion.num_merged else ""
    print(f"Read as {conversion.format}: {conversion.num_records} records{merged}")
    if conversion.omissions:
        print("Left out:")
    for one in conversion.omissions:
        print(visible(f"  {one.part} (records: {one.count}, first: {one.first}): {one.reason}"))


COMMANDS: Mapping[str, Callable[[Sequence[str]], int | None]] = {
    "augment": augment_command,
    "compare": compare_command,
    "convert": convert_command,
    "export": export_command,
    "inspect": inspect_command,
    "report": report_command,
}
