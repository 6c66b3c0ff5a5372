"""`fit`, `validate`, `test`, `predict` and `score`: the commands that LightningCLI builds from the classes."""

import difflib
import logging
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning_utilities.core.rank_zero import rank_zero_only

from lit_semantic_peft.callbacks import (
    AdapterCheckpoint,
    AdapterExport,
    AnswerWriter,
    FactReport,
    InterferenceMonitor,
    LossWeightDistribution,
    NonBlockingWandbLogger,
)
from lit_semantic_peft.cli.trainer import KnowledgeTrainer
from lit_semantic_peft.data import KnowledgeDataModule
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import remove_leftovers, write_text
from lit_semantic_peft.reports import RunFolder
from lit_semantic_peft.training import SemanticPeftModule

logger = logging.getLogger(__name__)

_DEFAULT_RUN = "runs/default"
# Options of `fit` that say where one call begins: every command takes a run's configuration.
_OF_THE_CALL = ("ckpt_path", "weights_only")
_LINKED = ("base_model", "revision", "dtype", "trust_remote_code")
# The callbacks that every run has, by class name, and their sections of the YAML.
_SECTIONS = {
    "AdapterCheckpoint": "checkpoint",
    "AdapterExport": "export",
    "InterferenceMonitor": "interference",
    "FactReport": "report",
}


def run(arguments: Sequence[str], descriptions: Mapping[str, str] | None = None) -> None:
    """Runs one command.

    Args:
        arguments: The command and its options.
        descriptions: What each command does, by its name, for `--help`; Lightning's words where None.

    Raises:
        InputError: If the input cannot be used. A run folder that this call made is gone then, unless an optimizer step
            was made: what was logged says how a training went wrong.
        KeyboardInterrupt: After Ctrl+C, once it is said how to go on.
        SystemExit: After `--help`, and with status 2 where an option or YAML key cannot be parsed.
    """
    _configure_logging()
    SemanticPeftCLI(
        model_class=SemanticPeftModule,
        datamodule_class=KnowledgeDataModule,
        trainer_class=KnowledgeTrainer,
        save_config_callback=RunConfig,
        seed_everything_default=0,
        trainer_defaults={"callbacks": [AnswerWriter(), LossWeightDistribution()]},
        parser_class=SuggestingParser,
        parser_kwargs={name: {"description": text} for name, text in (descriptions or {}).items()},
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        args=list(arguments),
    )


class SuggestingParser(LightningArgumentParser):
    """Says the nearest valid key where a key is not known."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends the program with status 2.

        Args:
            message: What is wrong.
            ex: The exception behind it.
        """
        raise InputError(f"{message}{self._suggestion(message)}\nSee --help for all options.") from ex

    def _suggestion(self, message: str) -> str:
        unknown = re.search(r"(?:unrecognized arguments: -*|[Kk]ey ['\"]|[Oo]ption ['\"])([\w.]+)", message)
        near = difflib.get_close_matches(unknown[1], self._known_keys(), n=1, cutoff=0.5) if unknown else []
        return f"\nDid you mean `{near[0]}`?" if near else ""

    def _known_keys(self) -> set[str]:
        """The keys of this parser, and of its commands' parsers if it is the one above them."""
        parsers = [
            self,
            *(sub for action in self._actions if isinstance(action.choices, dict) for sub in action.choices.values()),
        ]
        return {action.dest for parser in parsers for action in parser._actions} - {"help", "config"}


class SemanticPeftCLI(LightningCLI):
    """LightningCLI with the run folder, the callbacks that every run has, and `score`."""

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """A usage of one line instead of a hundred, and the trainer's options behind those of this package."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.usage = f"lit-semantic-peft {subcommand} [--config FILE] [--OPTION VALUE ...]"
        parser._action_groups.sort(key=lambda group: str(group.title).startswith("`lightning.pytorch.Trainer`"))
        for action in parser._actions:
            if action.dest == "ckpt_path":  # of Lightning's special words only one is of use here
                action.help = "`last` for the newest checkpoint of the run folder, or the path of a checkpoint file."
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The trainer's methods that are commands, and their arguments that are no options."""
        return {**LightningCLI.subcommands(), "score": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the callbacks as sections of the YAML and takes the base model's settings from one place.

        Args:
            parser: The parser of one command.
        """
        parser.add_lightning_class_args(AdapterCheckpoint, "checkpoint")
        parser.add_lightning_class_args(AdapterExport, "export")
        parser.add_lightning_class_args(InterferenceMonitor, "interference")
        parser.add_lightning_class_args(FactReport, "report")
        for name in _LINKED:
            parser.link_arguments(f"model.{name}", f"data.{name}")
        parser.set_defaults(
            {
                "trainer.default_root_dir": _DEFAULT_RUN,
                "trainer.max_epochs": 8,
                "trainer.log_every_n_steps": 1,
                "trainer.num_sanity_val_steps": 0,
                "trainer.enable_model_summary": False,
            }
        )

    def _parse_ckpt_path(self) -> None:
        """Nothing: checkpoints hold no hyperparameters; the configuration is in the run folder."""

    def before_instantiate_classes(self) -> None:
        """Checks run folder and checkpoint before anything is loaded."""
        config = self.config[self.subcommand]
        _refuse_what_would_be_ignored(config)
        config.trainer.default_root_dir = config.trainer.default_root_dir or _DEFAULT_RUN
        self.run_folder = RunFolder(config.trainer.default_root_dir)
        self._run_folder_existed = self.run_folder.path.exists()
        _keep_wandb_in(config.trainer, self.run_folder)
        if self.subcommand == "score":  # looks at facts in one process, whatever the configuration trains with
            devices = config.trainer.devices
            first = devices[:1] if isinstance(devices, list) else 1
            config.trainer.update(Namespace(devices=first, num_nodes=1, strategy="auto"))
        ckpt_path = self._checkpoint(config)
        # A child process of a distributed run meets the folder that the first one has just made.
        is_used = _is_first_process() and self.run_folder.is_used()
        if is_used and config.trainer.fast_dev_run and self.subcommand in ("fit", "test"):
            raise InputError(
                f"`trainer.fast_dev_run` would write a trial's results into the run folder {self.run_folder.path}. "
                "Choose another by `--trainer.default_root_dir runs/NAME`; it is removed afterwards."
            )
        is_own = (
            ckpt_path is not None and Path(ckpt_path).resolve().parent == self.run_folder.paths.checkpoints.resolve()
        )
        goes_on = is_own or config.get("ckpt_path") == "last"
        if is_used and self.subcommand == "fit" and not goes_on:
            raise InputError(
                f"The run folder {self.run_folder.path} exists already. Go on with it by `--ckpt_path last`, choose "
                "another by `--trainer.default_root_dir runs/NAME`, or delete it."
            )
        config.ckpt_path = ckpt_path
        if self.subcommand in ("test", "predict") and ckpt_path is None and config.model.adapter is None:
            raise InputError(
                f"`{self.subcommand}` needs a trained adapter: `--ckpt_path last` (or a file), or `--model.adapter` "
                "with the folder of an exported one."
            )

    def _checkpoint(self, config: Any) -> str | None:
        """The checkpoint that `ckpt_path` means, which can be read; None to start from the beginning."""
        if config.get("ckpt_path") is None:
            return None
        path = Path(config.ckpt_path)
        if config.ckpt_path == "last":
            path = self.run_folder.paths.last_checkpoint
            if self.subcommand == "fit" and not path.is_file() and self.run_folder.is_before_first_checkpoint():
                logger.info("No checkpoint in %s yet: training starts from the beginning", self.run_folder.path)
                return None
            if not path.is_file():
                raise InputError(
                    f"`ckpt_path` is `last`, but there is no {path}. Leave it out to start from the beginning, or "
                    "name the run folder by `--trainer.default_root_dir`."
                )
        elif path.is_dir():
            raise InputError(
                f"`ckpt_path` {str(path)!r} is a folder, as other tools write checkpoints; expected a file such as "
                f"{RunFolder('runs/NAME').paths.last_checkpoint}."
            )
        elif not path.is_file():
            raise InputError(f"`ckpt_path` {str(path)!r} is no checkpoint file.")
        _check_readable(path)
        return str(path)

    def instantiate_classes(self) -> None:
        """Instantiates module, data module and trainer; jsonargparse wraps what a class says of its own arguments.

        Raises:
            InputError: If a setting is refused by its class.
        """
        try:
            super().instantiate_classes()
            environment = getattr(self.trainer.strategy, "cluster_environment", None)
            if environment is not None:  # what torchrun or SLURM has started must be what the trainer expects
                strategy: Any = self.trainer.strategy
                environment.validate_settings(num_devices=strategy.num_processes, num_nodes=strategy.num_nodes)
        except (ValueError, ImportError, MisconfigurationException) as error:
            raise _own_words(error) from error

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        folder = config["default_root_dir"]
        if config.get("logger") in (None, True):
            # A resumed run keeps what was logged before it beside its own: Lightning's logger starts its file anew.
            logs = self.run_folder.paths.logs
            config["logger"] = CSVLogger(save_dir=folder, name=logs.name, version=_next_version(logs))
        trainer = super()._instantiate_trainer(config, callbacks)
        for one in trainer.loggers:
            if isinstance(one, WandbLogger):
                NonBlockingWandbLogger.take_over(one)
            if isinstance(one, NonBlockingWandbLogger):
                one.records_terminal = self.config[self.subcommand].report.log_fact_text
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            with _ended_wandb_runs(self.trainer):  # an open one would make its folder again
                super()._run_subcommand(subcommand)
        except InputError:
            if not self._has_results():
                self._remove_own_run_folder()
            raise
        except SystemExit:  # how Lightning ends on Ctrl+C
            if not self.trainer.interrupted:
                raise
            if subcommand == "fit":
                logger.info("Interrupted. Go on with `--ckpt_path last`.")
            raise KeyboardInterrupt from None
        if self.trainer.fast_dev_run and self._remove_own_run_folder():  # type: ignore[attr-defined]
            logger.info("The trial run by `fast_dev_run` went through; its folder is removed")

    def before_fit(self) -> None:
        """Makes the run folder, by which a run that is killed before its first checkpoint is known.

        Raises:
            InputError: If an exported adapter is given; the facts are not scored first.
        """
        self.model.refuse_adapter()
        if _is_first_process():
            remove_leftovers(self.run_folder.path)
            self.run_folder.paths.checkpoints.mkdir(parents=True, exist_ok=True)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, FactReport):
                callback.is_test_next = True  # `after_fit`

    def after_fit(self) -> None:
        """Asks the trained model every fact and its probes; the report callback writes the answers down."""
        self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)

    def _has_results(self) -> bool:
        """Whether the run folder says more than that the command was called: what was logged, or a checkpoint."""
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return False
        return self.trainer.global_step > 0 or self.run_folder.has_checkpoint()

    def _remove_own_run_folder(self) -> bool:
        """Removes the run folder if this call made it, and says whether it did."""
        # Whatever the command: the logger of a `predict` that failed must not stand in the way of a later `fit`.
        if self._run_folder_existed or not _is_first_process():
            return False
        shutil.rmtree(self.run_folder.path, ignore_errors=True)
        return True


class RunConfig(SaveConfigCallback):
    """Writes config.yaml into the run folder, once facts, base model and adapter turned out to be usable."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet: the adapter may still turn out not to fit."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file on the first rank.

        Args:
            trainer: The trainer.
            pl_module: The module.
        """
        config = self.config.clone()
        for name in _OF_THE_CALL:
            config.pop(name, None)
        text = self.parser.dump(config, skip_none=False)
        self._write(RunFolder(trainer.default_root_dir).paths.config, text)
        for one in trainer.loggers:
            one.log_hyperparams({"config": text})

    @rank_zero_only
    def _write(self, path: Path, text: str) -> None:
        write_text(path, text)


def _refuse_what_would_be_ignored(config: Any) -> None:
    """Refuses settings that another one overrides, and those that the command line cannot do without."""
    for path in config.get("config") or []:
        if path is None:  # given as text instead of a file
            continue
        in_file = yaml.safe_load(Path(str(path)).read_text(encoding="utf-8")) or {}
        # A section may be the name of another file.
        data, model = (one if isinstance(one, dict) else {} for one in map(in_file.get, ("data", "model")))
        for name in _LINKED:
            said = data.get(name)
            if said is not None and said not in (config.model[name], model.get(name)):
                raise InputError(
                    f"{path}: `data.{name}` is {said!r}, but the data module takes `model.{name}`, which is "
                    f"{config.model[name]!r}. Move it to `model`."
                )
    if config.trainer.get("enable_checkpointing") is False or config.trainer.get("barebones"):
        raise InputError(
            "`trainer.enable_checkpointing: false` and `trainer.barebones: true` cannot be used on the command line, "
            "which keeps a run folder with a checkpoint. `--trainer.fast_dev_run true` leaves nothing behind; in "
            "Python the Trainer takes both."
        )
    callbacks = config.trainer.get("callbacks") or []
    for one in callbacks if isinstance(callbacks, list) else [callbacks]:
        section = _SECTIONS.get(str(one.get("class_path", "")).rpartition(".")[2])
        if section is not None:
            raise InputError(
                f"`trainer.callbacks` names {one.class_path}, which every run has already. Its settings are the "
                f"section `{section}`."
            )


def _next_version(logs: Path) -> str:
    """Nothing for the first log of a run, `resumed_1` for the next."""
    if not (logs / ExperimentWriter.NAME_METRICS_FILE).is_file():
        return ""
    return f"resumed_{1 + sum(path.is_dir() for path in logs.glob('resumed_*'))}"


def _check_readable(path: Path) -> None:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a truncated zip, a pickle of another tool, text: each has its own type
        raise InputError(f"`ckpt_path` {str(path)!r} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(checkpoint, dict) or "lit_semantic_peft" not in checkpoint:
        raise InputError(f"`ckpt_path` {str(path)!r} was not written by lit-semantic-peft.")


def _own_words(error: BaseException) -> InputError:
    """The message of the class that refused a setting, from under the messages of the parser."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError):
        cause = cause.__cause__ or cause.__context__
    return cause or InputError(str(error))


def _keep_wandb_in(trainer_config: Any, run_folder: RunFolder) -> None:
    """Lets W&B write into the run folder instead of the working folder, where the user named no other."""
    configured = trainer_config.get("logger")
    for one in configured if isinstance(configured, list) else [configured]:
        class_path = one.get("class_path", "") if hasattr(one, "get") else ""
        if class_path.endswith("WandbLogger") and one.init_args.get("save_dir") in (None, "."):
            one.init_args.save_dir = str(run_folder.path)


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


def _is_first_process() -> bool:
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]


def _configure_logging() -> None:
    """What a user wants to read of the first rank, and none of the libraries' remarks that need no action."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("lit_semantic_peft")
    package.handlers = [handler]
    package.setLevel(logging.INFO if _is_first_process() else logging.WARNING)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # That a process has died, and that the others are ended for it, is told as a remark.
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
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
