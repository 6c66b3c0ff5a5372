"""What is to be run: settings, blocks and arms from YAML, and what an arm may change."""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeGuard, get_args

import yaml
from experiments.studies import setting_path
from lit_semantic_peft.errors import InputError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

FactKind = Literal["unknown", "counterfactual", "fictional"]
Group = Literal["plain", "control", "filter", "weighting", "rival", "aware", "both"]
Pace = Literal["steps", "exposures"]
Role = Literal["tune", "report"]

FREE = {
    "data": {"selection.distance", "selection.filters", "selection.strata", "selection.weighting"},
    "model": {"normalization"},
    "trainer": {"callbacks"},
}
"""What an arm may set, by section. Facts, seeds, optimizer, steps and tokens are the block's, the same for all arms."""

TUNE_SEED = 1000
"""Seed of the runs that choose the learning rate; no reported run has it."""

PLAIN = "plain"


@dataclass(frozen=True)
class Arm:
    """One way of training.

    Attributes:
        name: Name of its file.
        group: What kind of way it is.
        config: What differs from `defaults.yaml`, in the form of a user's YAML.
        about: The first comment of the file.
        added_later: Whether it was planned only when results of other arms were known.
    """

    name: str
    group: Group
    config: Mapping[str, Any]
    about: str = ""
    added_later: bool = False

    @property
    def has_filter(self) -> bool:
        """Whether some facts are not trained."""
        return bool(self.config.get("data", {}).get("selection", {}).get("filters"))


@dataclass(frozen=True)
class Block:
    """Runs that are compared with each other: the same facts, seeds, adapter, optimizer steps and tokens.

    Attributes:
        name: Name in the setting.
        facts: Kind of facts: real ones `unknown` to the base model, `counterfactual`, or `fictional`.
        num_facts: How many are taught. Smaller blocks of a kind teach a part of what larger ones teach.
        epochs: How often plain training sees each fact.
        method: Name of the adapter's configuration.
        arms: Names of the arms; `plain` is always among them.
        seeds: Of the reported runs.
        learning_rates: To choose from, for each arm alike, on facts about other subjects.
        tuned_in: Block whose choice is taken instead of an own one.
        alone_facts: How many facts plain training is compared on with training each alone.
        start_transfer: Whether the gradient matrix is measured before training.
        with_filter_controls: Whether filters are also run at equal exposures and against random facts of the same make.
        facts_per_step: Facts of an optimizer step. What a filter keeps must fill its steps too, or it would see fewer
            tokens in the same steps.
        added_later: Whether it was planned only when results of other blocks were known.
    """

    name: str
    facts: FactKind
    num_facts: int
    epochs: int
    method: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    tuned_in: str | None = None
    alone_facts: int = 0
    start_transfer: bool = False
    with_filter_controls: bool = False
    facts_per_step: int = 16
    added_later: bool = False

    @property
    def num_steps(self) -> int:
        """Optimizer steps of plain training."""
        return self.epochs * math.ceil(self.num_facts / self.facts_per_step)


@dataclass(frozen=True)
class Setting:
    """How large the study is.

    Attributes:
        name: `smoke`, `cpu`, `gpu`, or a file.
        base_model: As in a user's YAML.
        accelerator: Lightning's.
        threads: Of each process. Part of what a number depends on, so not a matter of how many processes there are.
        processes: That run side by side.
        num_known_facts: Facts about the same kind of thing that the base model knows, measured but never taught.
        num_neighbors: Of so many of the taught facts one neighbour is asked too.
        max_candidates: How many facts of a set are looked at; None for all.
        results: Folder of the results, below the repository.
        seconds: Measured: `start` of a run, one `fact` in training, one in an `evaluation`.
        methods: Configurations of `peft` by name.
        stages: Arms that are chosen for, then run, before those of the next stage: what is there after some hours
            can answer something.
        blocks: By name.
    """

    name: str
    base_model: str
    accelerator: str
    threads: int
    processes: int
    num_known_facts: int
    num_neighbors: int
    max_candidates: int | None
    results: Path
    seconds: Mapping[str, float]
    methods: Mapping[str, Any]
    stages: tuple[tuple[str, ...], ...]
    blocks: Mapping[str, Block] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        block: What it belongs to.
        arm: How it trains.
        role: `tune` to choose the learning rate on other facts, `report` for the numbers that are shown.
        seed: Of the adapter and of the order of the facts.
        pace: Whether a filter's run takes as many optimizer steps as plain training, or sees each kept fact as often.
        is_control: Whether random facts of the same make are dropped instead of the arm's.
        learning_rate: Of a `tune` run; a `report` run takes the chosen one.
    """

    block: Block
    arm: Arm
    role: Role
    seed: int
    pace: Pace = "steps"
    is_control: bool = False
    learning_rate: float | None = None

    @property
    def name(self) -> str:
        """Path of its file below the results, without suffix."""
        if self.role == "tune":
            return f"{self.block.name}/tune-{self.arm.name}-{self.learning_rate:g}"
        control = "-control" if self.is_control else ""
        return f"{self.block.name}/{self.arm.name}{control}-{self.pace}-{self.seed}"

    def seconds(self, setting: Setting) -> float:
        """Expected wall-clock time in one process, from a few measured runs."""
        block, cost = self.block, setting.seconds
        share = 0.75 if self.pace == "exposures" else 1.0
        more = 2.0 if "GradientSurgery" in str(self.arm.config) else 1.0
        trained = block.num_facts * block.epochs * share * more
        if self.role == "report" and self.arm.group == PLAIN:
            trained += (2 * block.alone_facts + block.num_facts * block.start_transfer) * block.epochs
        evaluations = 2 if self.role == "tune" else block.epochs + 2  # the last one also generates
        asked = (block.num_facts + setting.num_known_facts) * evaluations
        return cost["start"] + cost["fact"] * trained + cost["evaluation"] * asked


def load_setting(name: str, base_model: str | None = None, results: Path | None = None) -> Setting:
    """Reads a setting.

    Args:
        name: `smoke`, `cpu`, `gpu`, or the path of a YAML file in the same form.
        base_model: Another model than the setting's.
        results: Another folder for the results than the setting's.

    Raises:
        InputError: If there is no such setting, or something in it is not known.
    """
    path = setting_path(name, HERE / "settings")
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    common = raw.pop("common", {})
    blocks = {}
    for block_name, own in raw.pop("blocks").items():
        values = {**common, **own}
        values["arms"] = _arm_names(values.get("arms", [PLAIN]), block_name)
        for listed in ("seeds", "learning_rates"):
            values[listed] = tuple(values[listed])
        try:
            blocks[block_name] = Block(name=block_name, **values)
        except TypeError as error:
            raise InputError(f"{path}: block {block_name!r}: {error}") from error
    if results is None:
        results = ROOT / raw["results"]
        if base_model is not None:
            results = results.with_name(f"{results.name}-{base_model.strip('/').replace('/', '-')}")
    stages = _stages(raw.get("stages", []), blocks.values(), path)
    raw |= {"results": results, "base_model": base_model or raw["base_model"], "stages": stages, "blocks": blocks}
    try:
        setting = Setting(name=path.stem, **raw)
    except TypeError as error:
        raise InputError(f"{path}: {error}") from error
    _check(setting, path)
    return setting


@cache
def load_arm(name: str, folder: Path = HERE / "arms") -> Arm:
    """Reads an arm and refuses what would make it incomparable.

    Args:
        name: Name of its file.
        folder: Where the files are.

    Raises:
        InputError: If there is no such arm, or it sets what belongs to the block.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in folder.glob("*.yaml")))
        raise InputError(f"there is no arm {name!r}; known are {known}")
    text = path.read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    group, added_later = config.pop("group", None), config.pop("added_later", False)
    if group not in get_args(Group):
        raise InputError(f"{path.name}: `group` must be one of {', '.join(get_args(Group))}, got {group!r}")
    for section, values in config.items():
        for key in _settings(values) if isinstance(values, dict) else [None]:
            if key not in FREE.get(section, ()):
                allowed = ", ".join(f"{one}.{key}" for one, keys in FREE.items() for key in sorted(keys))
                raise InputError(
                    f"{path.name}: `{section}{'.' + key if key else ''}` is the same for all arms of a block, or the "
                    f"comparison would not be fair. An arm may set {allowed}."
                )
    about = text.partition("\n")[0].removeprefix("# ") if text.startswith("# ") else ""
    return Arm(name, group, config, about, added_later)


def runs_of(setting: Setting, role: Role) -> list[Run]:
    """Every run of a setting, in the order in which they are best run.

    Args:
        setting: The setting.
        role: Which runs: those that choose, or those that are reported.
    """
    runs = [run for block in setting.blocks.values() for run in _runs_of_block(block, role)]
    return [run for stage in setting.stages for run in runs if run.arm.name in stage]


def config_of(run: Run, setting: Setting, learning_rate: float, facts: Path) -> dict[str, Any]:
    """The YAML of a run, as a user would write it, without the folder that it writes to.

    Args:
        run: The run.
        setting: Its setting.
        learning_rate: The chosen one, or one to choose from.
        facts: File of the facts.
    """
    block, arm = run.block, _with_seed(copy.deepcopy(dict(run.arm.config)), run.seed)
    config = _merged(defaults(), arm)
    if run.is_control:
        selection = config["data"]["selection"]
        (inner,) = selection["filters"]
        control = {"filter": inner, "seed": run.seed}
        selection["filters"] = [{"class_path": "experiments.study.control.RandomLike", "init_args": control}]
    config["seed_everything"] = run.seed
    config["model"]["base_model"]["name"] = setting.base_model
    config["model"]["peft_config"] = copy.deepcopy(setting.methods[block.method])
    config["model"]["optimizer"]["init_args"]["lr"] = learning_rate
    config["data"] |= {"facts": str(facts), "seed": run.seed}
    config["data"]["batches"]["micro_batch_size"] = block.facts_per_step
    trainer = config["trainer"]
    trainer |= {"accelerator": setting.accelerator, "max_epochs": block.epochs}
    if run.arm.has_filter and run.pace == "steps":
        trainer |= {"max_epochs": 4 * block.epochs, "max_steps": block.num_steps}
    is_plain_report = run.role == "report" and run.arm.group == PLAIN
    recorder = {
        "class_path": "experiments.study.recorder.HistoryRecorder",
        "init_args": {"with_start_transfer": is_plain_report and block.start_transfer},
    }
    if run.role == "tune":
        config["data"]["evaluation"] |= {"probes": [], "retention": False}
        trainer["check_val_every_n_epoch"] = block.epochs  # the history does not matter here
    elif is_plain_report and block.alone_facts:
        # Training each fact alone comes with the monitor; its own measurements are made as small as can be.
        config["interference"] |= {
            "num_facts": 2,
            "every_n_epochs": 0,
            "final_facts": 2,
            "alone_facts": block.alone_facts,
        }
    trainer["callbacks"] = [*trainer.get("callbacks", []), recorder]
    return config


def keyed(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's YAML belongs to the key of its result: all but settings that leave it as it was without them.

    Args:
        config: As `config_of` gives it.
    """
    model = {name: value for name, value in config["model"].items() if (name, value) != ("prefix_tree", False)}
    unscaled = {"scale_back": False, "extrapolate": None}
    others = {name: value for name, value in config.items() if name not in unscaled or value != unscaled[name]}
    return others | {"model": model}


def is_group(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether a value of a YAML is a section of settings, and not a class with its arguments.

    Args:
        value: The value.
    """
    return isinstance(value, Mapping) and "class_path" not in value


def defaults() -> dict[str, Any]:
    """What all runs have in common, the caller's own copy."""
    return copy.deepcopy(_read_defaults())


@cache
def _read_defaults() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((HERE / "defaults.yaml").read_text(encoding="utf-8"))
    return config


def _runs_of_block(block: Block, role: Role) -> Iterator[Run]:
    arms = [load_arm(name) for name in block.arms]
    if role == "tune":
        if block.tuned_in is None:
            for arm in arms:
                yield from (Run(block, arm, role, TUNE_SEED, learning_rate=rate) for rate in block.learning_rates)
        return
    for seed in block.seeds:  # all arms of a seed before the next seed: what is there early can be compared
        for arm in arms:
            yield Run(block, arm, role, seed)
            if block.with_filter_controls and arm.group == "filter":
                yield Run(block, arm, role, seed, "exposures")
                yield from (Run(block, arm, role, seed, pace, is_control=True) for pace in get_args(Pace))


def _arm_names(names: Any, block: str) -> tuple[str, ...]:
    if names == "all":
        names = sorted(path.stem for path in (HERE / "arms").glob("*.yaml"))
    if PLAIN not in names:
        raise InputError(f"block {block!r}: `arms` must contain `{PLAIN}`, which the others are compared with")
    return (PLAIN, *(name for name in names if name != PLAIN))


def _stages(named: Sequence[Sequence[str]], blocks: Iterable[Block], path: Path) -> tuple[tuple[str, ...], ...]:
    """The named stages, and one of all other arms."""
    rest = list(dict.fromkeys(arm for block in blocks for arm in block.arms))
    for arm in (arm for stage in named for arm in stage):
        if arm not in rest:
            raise InputError(f"{path.name}: `stages` must name each arm of a block once at most, got {arm!r}")
        rest.remove(arm)
    return tuple(tuple(stage) for stage in [*named, rest] if stage)


def _check(setting: Setting, path: Path) -> None:
    for block in setting.blocks.values():
        where = f"{path.name}: block {block.name!r}: "
        if block.facts not in get_args(FactKind):
            raise InputError(f"{where}`facts` must be one of {', '.join(get_args(FactKind))}, got {block.facts!r}")
        if block.method not in setting.methods:
            raise InputError(f"{where}`method` must be one of {', '.join(setting.methods)}, got {block.method!r}")
        if block.tuned_in is not None:
            other = setting.blocks.get(block.tuned_in)
            if other is None or other.tuned_in is not None or not set(block.arms) <= set(other.arms):
                raise InputError(f"{where}`tuned_in` must be a block that tunes all its arms, got {block.tuned_in!r}")
        if TUNE_SEED in block.seeds or len(set(block.seeds)) < len(block.seeds):
            raise InputError(f"{where}`seeds` must differ from each other and from {TUNE_SEED}, which chooses")


def _settings(section: Mapping[str, Any]) -> list[str]:
    """The keys of a section, those of the group `selection` one by one."""
    groups = {key: values for key, values in section.items() if key == "selection" and isinstance(values, dict)}
    inner = [f"{group}.{key}" for group, values in groups.items() for key in values]
    return [key for key in section if key not in groups] + inner


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Settings replaced by others one by one; a class with its arguments is replaced whole, two are never mixed."""
    merged = dict(base)
    for key, value in more.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if is_group(old) and is_group(value) else value
    return merged


def _with_seed(value: Any, seed: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_seed(one, seed) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_with_seed(one, seed) for one in value]
    return seed if value == "${seed}" else value
