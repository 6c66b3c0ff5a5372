"""What is run: a YAML file per method, the same facts, steps and seeds for all, and the YAML of each run."""

import copy
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from experiments.studies import setting_path
from experiments.study.plan import ROOT, defaults
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import traits_of
from peft import PeftConfig

HERE = Path(__file__).resolve().parent

Role = Literal["choose", "report"]

CHOOSE_SEED = 1000
"""Seed of the runs that look for a learning rate; no reported run has it."""


@dataclass(frozen=True)
class Setting:
    """How large the comparison is.

    Attributes:
        name: Name of its file.
        results: Folder of the results.
        base_model: As in a user's YAML.
        accelerator: Lightning's.
        num_facts: How many facts are taught, by role.
        num_steps: Optimizer steps, by role.
        num_known: How many facts that the base model knows are asked.
        facts_per_step: Facts of an optimizer step.
        seeds: Of the reported runs.
    """

    name: str
    results: Path
    base_model: str
    accelerator: str
    num_facts: Mapping[Role, int]
    num_steps: Mapping[Role, int]
    num_known: int
    facts_per_step: int
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        method: Name of its file.
        role: Whether it looks for a learning rate or is reported.
        seed: Of the adapter and of the order of the facts.
        learning_rate: Peak rate of AdamW.
    """

    method: str
    role: Role
    seed: int
    learning_rate: float

    @property
    def name(self) -> str:
        """Path of its file below the results, without suffix."""
        which = f"{self.learning_rate:g}" if self.role == "choose" else str(self.seed)
        return f"{self.role}/{self.method}-{which}"


def load_setting(name: str, results: Path | None = None) -> Setting:
    """Reads a setting.

    Args:
        name: Name of a file in `settings`, or the path of a YAML file in the same form.
        results: Another folder for the results than the setting's.

    Raises:
        InputError: If there is no such setting, or it does not fit.
    """
    path = setting_path(name, HERE / "settings")
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        kept, seeds = raw.pop("results"), tuple(raw.pop("seeds"))
        setting = Setting(name=path.stem, results=results or ROOT / kept, seeds=seeds, **raw)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: {error}") from error
    if CHOOSE_SEED in seeds:
        raise InputError(f"{path}: `seeds` must not hold {CHOOSE_SEED}, which looks for learning rates")
    return setting


def method_names() -> list[str]:
    """The methods, plain LoRA first."""
    names = sorted(path.stem for path in HERE.glob("*.yaml"))
    return sorted(names, key=lambda name: name != "lora")


def about(method: str) -> str:
    """What a method is, from the first line of its file.

    Args:
        method: One of `method_names`.
    """
    return _path(method).read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").rstrip(".")


def adapter_of(method: str, num_steps: int, token_ids: Sequence[int] = ()) -> dict[str, Any]:
    """The adapter of a method's file, as plain data, fitted to a training.

    AdaLoRA's schedule is stretched to the steps, and trained tokens are those that are given.

    Args:
        method: One of `method_names`.
        num_steps: Optimizer steps.
        token_ids: Ids of the tokens that name the taught subjects; those of the file where empty.

    Raises:
        InputError: If there is no such method.
    """
    path = _path(method)
    if not path.is_file():
        raise InputError(f"the methods are {', '.join(method_names())}, got {method!r}")
    adapter: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["peft_config"]
    given = adapter["init_args"]
    if "total_step" in given:
        stretched = {name: num_steps * given[name] // given["total_step"] for name in ("tinit", "tfinal")}
        given |= {"total_step": num_steps, **stretched}
    if "token_indices" in given and token_ids:
        given["token_indices"] = list(token_ids)
    return adapter


def stated_rate(method: str) -> float:
    """AdamW's default for the adapter's type.

    Args:
        method: One of `method_names`.
    """
    adapter = adapter_of(method, num_steps=96)
    module, _, kind = adapter["class_path"].rpartition(".")
    config: PeftConfig = getattr(importlib.import_module(module), kind)(**adapter["init_args"])
    return traits_of(config).learning_rate


def runs_of(setting: Setting, methods: Sequence[str]) -> list[Run]:
    """The reported runs, seed by seed.

    Args:
        setting: The setting.
        methods: Names of the methods.
    """
    return [Run(method, "report", seed, stated_rate(method)) for seed in setting.seeds for method in methods]


def config_of(run: Run, setting: Setting, facts: Path, token_ids: Sequence[int]) -> dict[str, Any]:
    """The YAML of a run, as a user would write it, without the folder that it writes to.

    Args:
        run: The run.
        setting: Its setting.
        facts: File of the facts.
        token_ids: As for `adapter_of`.
    """
    config: dict[str, Any] = copy.deepcopy(defaults())
    num_steps = setting.num_steps[run.role]
    config["seed_everything"] = run.seed
    model, data, trainer = config["model"], config["data"], config["trainer"]
    model["base_model"]["name"] = setting.base_model
    model["peft_config"] = adapter_of(run.method, num_steps, token_ids)
    model["optimizer"]["init_args"]["lr"] = run.learning_rate
    data |= {"facts": str(facts), "seed": run.seed}
    data["selection"]["filters"] = [{"class_path": "lit_semantic_peft.semantics.KnownFilter"}]
    data["batches"]["micro_batch_size"] = setting.facts_per_step
    data["evaluation"]["probes"] = ["paraphrase"]
    trainer |= {"accelerator": setting.accelerator, "max_steps": num_steps}
    trainer |= {"check_val_every_n_epoch": num_steps}  # nothing is decided while it trains
    trainer["callbacks"] = [{"class_path": "experiments.recipe_study.recorder.Recorder"}]
    return config


def _path(method: str) -> Path:
    return HERE / f"{method}.yaml"
