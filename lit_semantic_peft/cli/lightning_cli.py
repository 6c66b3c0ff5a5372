"""`fit`, `validate`, `test`, `predict` and `score`: the commands that LightningCLI builds from the classes."""

import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning_utilities.core.rank_zero import rank_zero_only
from typing_extensions import override

from lit_semantic_peft.callbacks import (
    AdapterCheckpoint,
    AdapterExport,
    FactReport,
    InterferenceMonitor,
    NonBlockingWandbLogger,
    StepBar,
)
from lit_semantic_peft.cli.early import DEFAULT_RUN, run_exists
from lit_semantic_peft.cli.lightning_refusals import lightning_refusals, require_other_nodes
from lit_semantic_peft.cli.lightning_words import words
from lit_semantic_peft.cli.ownership import OwnedFolder
from lit_semantic_peft.cli.recipe import apply_recipe
from lit_semantic_peft.cli.recipe_options import add_recipe_options, callbacks_of
from lit_semantic_peft.cli.run_checks import checkpoint_of, inputs_of, local_folder, refuse_what_would_be_ignored
from lit_semantic_peft.cli.short_settings import short_settings
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import FULL, UnwritableError, mark, no_space, remove_leftovers, write_text
from lit_semantic_peft.reports import RunFolder, build_report
from lit_semantic_peft.reports.run_folder import Entry, RunPaths
from lit_semantic_peft.training import SemanticPeftModule

logger = logging.getLogger(__name__)

# Options of `fit` for one call only: not part of the configuration that other commands read.
_OF_THE_CALL = ("ckpt_path", "weights_only")
# The files that a command may write into the run folder; none is all of a run.
_WRITES: dict[str | None, tuple[Entry, ...]] = {"fit": (), "test": (), "predict": (RunPaths.predictions,)}


class SemanticPeftCLI(LightningCLI):
    """LightningCLI with the run folder, the callbacks that every run has, and `score`.

    Args:
        command: The command to run; a parser is built for it alone, since each takes a tenth of a second.
        arguments: Of `LightningCLI`.
    """

    def __init__(self, command: str, **arguments: Any) -> None:
        self._command = command
        with ExitStack() as self._at_end:
            super().__init__(**arguments)

    @override
    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """A usage of one line instead of a hundred, and the trainer's options behind those of this package."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.usage = f"lit-semantic-peft {subcommand} [--config FILE] [--OPTION VALUE ...]"
        parser._action_groups.sort(key=lambda group: str(group.title).startswith("`lightning.pytorch.Trainer`"))
        for action in parser._actions:
            if action.dest in (
                "ckpt_path",
                "print_config",
                "seed_everything",
                "weights_only",
            ) or action.dest.startswith("trainer."):
                action.help = words(action.dest, action.help or "")
            if action.dest == "print_config":
                action.metavar = "\b[=full]"
        return parser

    @override
    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The trainer's method that is the command, and its arguments that are no options."""
        of_the_trainer = {**LightningCLI.subcommands(), "score": {"model", "datamodule"}}
        return {self._command: of_the_trainer[self._command]}

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the callbacks as sections of the YAML."""
        add_recipe_options(parser)
        parser.add_lightning_class_args(AdapterCheckpoint, "checkpoint")
        parser.add_lightning_class_args(AdapterExport, "export")
        parser.add_lightning_class_args(InterferenceMonitor, "interference")
        parser.add_lightning_class_args(FactReport, "report")
        parser.add_argument(
            "--self_check",
            type=bool,
            default=True,
            help="Whether the fast ways to run a model are checked to be exact for it before it is scored or trained.",
        )
        parser.link_arguments("self_check", "data.self_check")
        parser.set_defaults(
            {
                "trainer.default_root_dir": DEFAULT_RUN,
                "trainer.max_epochs": None,
                "trainer.log_every_n_steps": 1,
                "trainer.num_sanity_val_steps": 0,
                "trainer.enable_model_summary": False,
            }
        )

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the options.

        Raises:
            InputError: If a module that one names ends the program.
        """
        try:
            super().parse_arguments(parser, args)
        except SystemExit as error:
            if not error.code:  # after `--help` and `--print_config`
                raise
            raise InputError(
                f"A class that a setting names ends the program when it is imported ({error!r})."
            ) from error

    @override
    def _parse_ckpt_path(self) -> None:
        """Nothing: checkpoints hold no hyperparameters; the configuration is in the run folder."""

    @override
    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise InputError(f"`seed_everything`: {error}") from error

    @override
    def before_instantiate_classes(self) -> None:
        """Checks the settings that belong to the command line, and chooses the run folder."""
        config = self.config[self.subcommand]
        refuse_what_would_be_ignored(str(self.subcommand), config)
        given = config.trainer.default_root_dir
        config.trainer.default_root_dir = local_folder(DEFAULT_RUN if given is None else given)
        self.run_folder = self._earlier = RunFolder(config.trainer.default_root_dir)
        if config.trainer.fast_dev_run:  # a trial leaves a run as it is, and nothing of itself
            self.run_folder = RunFolder(f"{self.run_folder.path}.fast_dev_run")
            config.trainer.default_root_dir = str(self.run_folder.path)
        _keep_wandb_in(config.trainer, self.run_folder)
        if self.subcommand == "score":  # looks at facts in one process, whatever the configuration trains with
            devices = config.trainer.devices
            first = devices[:1] if isinstance(devices, list) else 1
            config.trainer.update(Namespace(devices=first, num_nodes=1, strategy="auto"))
        if self.subcommand == "fit":
            parser = self._subcommand_parsers["fit"]
            self.config["fit"] = apply_recipe(config.recipe, config, parser)

    @override
    def instantiate_classes(self) -> None:
        """Instantiates module, data module and trainer; unwraps a class's error from that of jsonargparse.

        Raises:
            InputError: If a setting is refused by its class.
        """
        try:
            with lightning_refusals():
                super().instantiate_classes()
            require_other_nodes(self.trainer)
            environment = getattr(self.trainer.strategy, "cluster_environment", None)
            if environment is not None:  # what torchrun or SLURM has started must be what the trainer expects
                strategy: Any = self.trainer.strategy
                environment.validate_settings(num_devices=strategy.num_processes, num_nodes=strategy.num_nodes)
        except (ValueError, ImportError, MisconfigurationException) as error:
            raise _own_words(error) from error

    def _take_run_folder(self) -> None:
        """Makes the run folder this process's own, and checks what is in it and the checkpoint.

        Raises:
            InputError: If it is another process's, or holds what must not be replaced, or the checkpoint is unusable.
        """
        config = self.config[self.subcommand]
        self._owned = OwnedFolder(self.run_folder)
        if is_first_process():
            self._at_end.enter_context(self._owned)
        ckpt_path = checkpoint_of(str(self.subcommand), config.get("ckpt_path"), self._earlier)
        checkpoints = self.run_folder.paths.checkpoints.resolve()
        is_own = ckpt_path is not None and Path(ckpt_path).resolve().parent == checkpoints
        goes_on = is_own or (config.get("ckpt_path") == "last" and self.run_folder is self._earlier)
        # A child process of a distributed run meets the folder that the first one has just made.
        if is_first_process() and self.subcommand == "fit" and self.run_folder.is_used() and not goes_on:
            raise run_exists(self.run_folder.path)
        if self.subcommand in ("test", "predict") and ckpt_path is None and config.model.adapter is None:
            raise InputError(
                f"`{self.subcommand}` needs a trained adapter: `--ckpt_path last` (or a file), or `--model.adapter` "
                "with the folder of an exported one."
            )
        if is_first_process() and self.subcommand in _WRITES:
            self.run_folder.refuse_foreign_files(inputs_of(config), _WRITES[self.subcommand])
        if "ckpt_path" in config:
            config.ckpt_path = self.config_init[self.subcommand].ckpt_path = ckpt_path

    @override
    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        self._take_run_folder()  # with settings that module and data module have accepted
        folder = config["default_root_dir"]
        if self.subcommand == "fit":
            callbacks = [*callbacks, *callbacks_of(self.config[self.subcommand], config)]
        given = [*callbacks, *(config.get("callbacks") or [])]
        if not any(isinstance(one, ProgressBar) for one in given):
            if config.get("enable_progress_bar") is None:  # in a log `ProgressLog` says how far it is
                config["enable_progress_bar"] = sys.stdout.isatty()
            callbacks = [*callbacks, *([StepBar()] if config["enable_progress_bar"] else [])]
        chosen: Any = config.get("logger")
        is_default = chosen in (None, True)
        remote = [one for one in (chosen if isinstance(chosen, list) else [chosen]) if isinstance(one, WandbLogger)]
        if self.subcommand == "predict":  # measures nothing, so there is nothing to log
            config["logger"] = False if is_default else chosen
        elif is_default or (remote and remote in (chosen, [chosen])):  # the run folder has its numbers in any case
            # A resumed run logs into another file: Lightning's logger would overwrite the earlier one.
            logs = self.run_folder.paths.logs
            config["logger"] = [*remote, CSVLogger(folder, name=logs.name, version=_next_version(logs))]
        trainer = super()._instantiate_trainer(config, callbacks)
        for one in trainer.loggers:
            if isinstance(one, WandbLogger):
                NonBlockingWandbLogger.take_over(one)
            if isinstance(one, NonBlockingWandbLogger):
                one.records_terminal = self.config[self.subcommand].report.log_fact_text
        return trainer

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        try:
            # An open run of W&B would make its folder again.
            with _ended_wandb_runs(self.trainer), lightning_refusals():
                super()._run_subcommand(subcommand)
        except (InputError, OSError) as error:
            if not self._has_results():
                self._remove_what_is_new()
            elif subcommand == "fit" and is_first_process():
                self._remove_log_of_nothing()
            if isinstance(error, OSError) and error.filename is None and error.errno in FULL:  # as loggers leave it
                place = f"A file in {self.run_folder.path}, or what is printed,"
                raise UnwritableError(f"{place} cannot be written: {no_space(self.run_folder.path)}") from error
            raise
        except SystemExit:  # how Lightning ends on Ctrl+C
            if not self.trainer.interrupted:
                raise
            if subcommand == "fit":
                logger.info("Interrupted. Go on with `--ckpt_path last`.")
            raise KeyboardInterrupt from None
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._remove_what_is_new()
            logger.info("The trial run by `fast_dev_run` went through; its folder is removed")

    def before_fit(self) -> None:
        """Makes the run folder, also as a mark of a run that is killed before its first checkpoint."""
        if is_first_process():
            remove_leftovers(self.run_folder.path)
            self.run_folder.paths.checkpoints.mkdir(parents=True, exist_ok=True)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, FactReport):
                callback.is_test_next = True  # `after_fit`

    def after_fit(self) -> None:
        """Asks the trained model every fact and its probes; the report callback writes the answers down.

        Where that fails, the report of the training is written before the error goes on.

        Raises:
            InputError: If nothing was trained.
        """
        if self.trainer.global_step == 0 and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise InputError(
                "The training ended before its first optimizer step, so there is nothing to report. See "
                "`trainer.max_steps`, `max_epochs`, `max_time` and `limit_train_batches`; `score` measures without "
                "training."
            )
        try:
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        except BaseException:
            self._report_training()
            raise

    def _report_training(self) -> None:
        """Writes the report of what `fit` has found, where the evaluation that follows it has failed."""
        if not is_first_process() or not self.run_folder.paths.summary.is_file():
            return
        try:
            build_report(self.run_folder)
        except InputError as error:
            logger.warning("The report of the training could not be written: %s", error)
        except Exception:  # the error of the evaluation is the one to show
            logger.exception("The report of the training could not be written")

    def _has_results(self) -> bool:
        """Whether the run folder holds anything worth keeping: logs of an optimizer step, or a checkpoint."""
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return False
        return self.trainer.global_step > 0 or self.run_folder.has_checkpoint()

    def _remove_log_of_nothing(self) -> None:
        """Removes the log of a run that was to go on, where this call came to no training."""
        if any(isinstance(one, RunConfig) and one.has_begun for one in self.trainer.callbacks):  # type: ignore[attr-defined]
            return
        for one in self.trainer.loggers:
            if isinstance(one, CSVLogger) and one.version:  # a new folder beside the logs of earlier calls
                shutil.rmtree(one.log_dir, ignore_errors=True)

    def _remove_what_is_new(self) -> None:
        """Removes what this call has made in the run folder."""
        # For every command: what the logger of a failed `predict` has made must not block a later `fit`.
        if is_first_process():
            places = (getattr(one, name, None) for one in self.trainer.loggers for name in ("log_dir", "save_dir"))
            self._owned.remove_what_is_new(Path(place) for place in places if place)


class RunConfig(SaveConfigCallback):
    """Writes config.yaml into the run folder, once facts, base model, adapter and checkpoint are known to fit.

    Attributes:
        has_begun: Whether the training has begun.
    """

    has_begun = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet: the adapter may still turn out not to fit."""

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.has_begun = True
        config = self.config.clone()
        for name in _OF_THE_CALL:
            config.pop(name, None)
        text = self.parser.dump(config, skip_none=False)
        self._write(RunFolder(trainer.default_root_dir).paths.config, f"# {mark(RunPaths.config.kind)}\n{text}")
        assert isinstance(pl_module, SemanticPeftModule)
        short = short_settings(yaml.safe_load(text), trainer.optimizers[0], pl_module.peft_config)
        weighting = type(pl_module.data.preparation.weighting).__name__
        for one in trainer.loggers:
            one.log_hyperparams({"config": text, "weighting": weighting, **short})

    @rank_zero_only
    def _write(self, path: Path, text: str) -> None:
        write_text(path, text, RunPaths.config.kind)


def _next_version(logs: Path) -> str:
    """Nothing for the first log of a run, `resumed_1` for the next."""
    if not (logs / ExperimentWriter.NAME_METRICS_FILE).is_file():
        return ""
    return f"resumed_{1 + sum(path.is_dir() for path in logs.glob('resumed_*'))}"


def _keep_wandb_in(trainer_config: Any, run_folder: RunFolder) -> None:
    """Lets W&B write into the run folder and name its run after it, unless the user named another folder or name."""
    configured = trainer_config.get("logger")
    for one in configured if isinstance(configured, list) else [configured]:
        class_path = one.get("class_path", "") if hasattr(one, "get") else ""
        if not class_path.endswith("WandbLogger"):
            continue
        if one.init_args.get("save_dir") in (None, "."):
            one.init_args.save_dir = str(run_folder.path)
        if one.init_args.get("name") is None and "WANDB_NAME" not in os.environ:
            one.init_args.name = run_folder.path.name


@contextmanager
def _ended_wandb_runs(trainer: Trainer) -> Iterator[None]:
    """Ends the W&B runs opened inside, as failed ones after an error, so that the next command has its own."""
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        for one in trainer.loggers:
            if isinstance(one, NonBlockingWandbLogger):
                one.close(exit_code)


def is_first_process() -> bool:
    """Whether this is the process that prints and writes for all."""
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]


def _own_words(error: BaseException) -> InputError:
    """The error of the class that refused a setting, without the messages of the parser."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError):
        cause = cause.__cause__ or cause.__context__
    return cause or InputError(_without_namespace(error))


def _without_namespace(error: BaseException) -> str:
    """What jsonargparse says of a class that cannot be made, without all of its settings."""
    text = str(error)
    found, reasons = re.search(r"class_path='([\w.]+)'", text), text.partition("Errors:\n  - ")[2]
    if not found or not reasons:
        return text
    last = error
    while following := last.__cause__ or last.__context__:
        last = following
    kind = "" if isinstance(last, ValueError | TypeError) or str(last) not in reasons else f"{type(last).__name__}: "
    reason = next((line.strip(" -") for line in reasons.splitlines() if not line.endswith(":")), reasons)
    return f"{found[1]} cannot be made: {kind}{reason}"
