"""Runs a command that LightningCLI builds from the classes."""

import logging
import os
import re
import signal
import warnings
from collections.abc import Mapping, Sequence

from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from lit_semantic_peft.callbacks import AnswerWriter, LossWeightDistribution, Preflight, ProgressLog, TrainingRate
from lit_semantic_peft.cli.lightning_cli import RunConfig, SemanticPeftCLI, is_first_process
from lit_semantic_peft.cli.parser import SuggestingParser, as_jsonargparse_takes_it, with_default_optimizer
from lit_semantic_peft.cli.trainer import KnowledgeTrainer
from lit_semantic_peft.data import KnowledgeDataModule
from lit_semantic_peft.terminal import TextFormatter
from lit_semantic_peft.training import SemanticPeftModule

logger = logging.getLogger(__name__)

# As Lightning says that a rank's process has ended.
_ENDED = re.compile(r"rank: (\d+)\].*process with PID (\d+) terminated with code (-?\d+)")


def run(arguments: Sequence[str], descriptions: Mapping[str, str] | None = None) -> None:
    """Runs one command.

    Args:
        arguments: The command and its options.
        descriptions: What each command does, by its name, for `--help`; Lightning's words where None.

    Raises:
        InputError: If the input cannot be used. A run folder that this call made is gone then, unless an optimizer step
            was made: the log shows how the training went wrong.
        KeyboardInterrupt: After Ctrl+C, after a message on how to resume.
        SystemExit: After `--help`, and with status 2 where an option or YAML key cannot be parsed.
    """
    _configure_logging()
    if unread := sorted(name for name in os.environ if name.startswith(f"PL_{arguments[0].upper()}__")):
        logger.warning("Not read: %s. Settings come from options and `--config`.", ", ".join(unread))
    _command_line(SemanticPeftCLI, arguments, descriptions)


def build_parser(command: str) -> LightningArgumentParser:
    """The parser of one command, with its defaults; nothing is run or made.

    Args:
        command: Its name.
    """
    return _command_line(_ParserAlone, [command])._subcommand_parsers[command]


class _ParserAlone(SemanticPeftCLI):
    """Ends when the defaults are parsed."""

    @override
    def _set_seed(self) -> None: ...

    @override
    def before_instantiate_classes(self) -> None: ...

    @override
    def instantiate_classes(self) -> None: ...

    @override
    def _run_subcommand(self, subcommand: str) -> None: ...


def _command_line(
    kind: type[SemanticPeftCLI], arguments: Sequence[str], descriptions: Mapping[str, str] | None = None
) -> SemanticPeftCLI:
    return kind(
        arguments[0],
        model_class=SemanticPeftModule,
        datamodule_class=KnowledgeDataModule,
        trainer_class=KnowledgeTrainer,
        save_config_callback=RunConfig,
        seed_everything_default=0,
        trainer_defaults={
            "callbacks": [AnswerWriter(), LossWeightDistribution(), Preflight(), ProgressLog(), TrainingRate()]
        },
        parser_class=SuggestingParser,
        parser_kwargs={arguments[0]: {"description": descriptions[arguments[0]]}} if descriptions else {},
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        args=with_default_optimizer(as_jsonargparse_takes_it(arguments)),
    )


def _configure_logging() -> None:
    """Shows the package's messages on the first rank; hides remarks of libraries that need no action."""
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter("%(message)s"))
    package = logging.getLogger("lit_semantic_peft")
    package.handlers = [handler]
    package.setLevel(logging.INFO if is_first_process() else logging.WARNING)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning logs at level INFO that a process died and that the others are ended.
    launcher = logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script")
    launcher.setLevel(logging.INFO)
    launcher.filters = [_say_how_a_rank_ended]
    for noise in (
        ".*loftq_config.*",  # jsonargparse passes peft's defaults explicitly
        ".*does not have many workers.*",  # batches are a lookup and a pad; workers would cost more
        ".*LeafSpec.*",
        ".*sync_dist=True.*",  # what is logged was reduced over the ranks before
        ".*LightningCLI's args parameter.*",
        ".*your dataloader is not resumable.*",  # the data module keeps its position, not the loader
        ".*exists and is not empty.*",  # the run folder; its state was checked above
    ):
        warnings.filterwarnings("ignore", message=noise)
    warnings.filterwarnings("ignore", module="jsonargparse.*")


def _say_how_a_rank_ended(record: logging.LogRecord) -> bool:
    """Names rank and signal where Lightning writes a number; other messages stay as they are."""
    ended = _ENDED.search(record.getMessage())
    if ended:
        rank, process, code = map(int, ended.groups())
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        record.msg, record.args = f"Rank {rank} (process {process}) {how}; the other processes are ended too.", ()
    return True
