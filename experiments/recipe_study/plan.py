"""What is run: base models, facts, ways of training, seeds; and the YAML of each run."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from experiments.recipe_study.passages import Role
from experiments.studies import setting_path
from experiments.study.plan import ROOT, defaults
from lit_semantic_peft.errors import InputError

HERE = Path(__file__).resolve().parent

FactKind = Literal["real", "invented", "reworded"]
"""Of the taught facts; `reworded` are the real ones, asked in more wordings."""

CHOOSE_SEED = 1000
"""Seed of the runs that choose; no reported run has it."""

PLAIN = "plain"


@dataclass(frozen=True)
class Way:
    """One way of training.

    Attributes:
        name: Its name.
        is_recipe: Whether `--recipe auto` fills what `config` leaves open; else plain LoRA.
        is_gated: Whether it is `--recipe gated` instead.
        steps: Optimizer steps as a multiple of the recipe's own number.
        refines: Whether the last of them teach once more the facts that resist, in the recipe's own share.
        scales_back: Whether the adapter is scaled down at the end, as far as no taught text is lost.
        extrapolate: By what it is scaled up at the end; None where it is not.
        config: What it sets itself, in the form of a user's YAML.
        about: What it is, in a few words.
    """

    name: str
    is_recipe: bool
    steps: float = 1.0
    refines: bool = False
    scales_back: bool = False
    extrapolate: float | None = None
    is_gated: bool = False
    config: Mapping[str, Any] | None = None
    about: str = ""

    @property
    def teaches_forms(self) -> bool:
        """Whether facts are taught in more than their own prompts, so that not every paraphrase is asked."""
        forms = (self.config or {}).get("data", {}).get("forms")
        return self.is_recipe and (forms is None or bool(forms["sources"]))

    @property
    def is_routed(self) -> bool:
        """Whether the adapter acts on some prompts only, so that harm must be sought where it does."""
        model = (self.config or {}).get("model", {})
        return self.is_gated or "gate" in model or "peft_config" in model


@dataclass(frozen=True)
class Model:
    """A base model of the study.

    Attributes:
        name: As in a user's YAML.
        rates: Of plain training, to choose from.
        tried: Ways that were tried on the real facts that choose, by name.
        tried_invented: The same of the invented ones.
        tried_reworded: The same of the real ones, asked in more wordings.
        reported_reworded: Ways, of those that are tried, on the real facts that are reported, asked in more wordings.
    """

    name: str
    rates: tuple[float, ...]
    tried: tuple[str, ...] = ()
    tried_invented: tuple[str, ...] = ()
    tried_reworded: tuple[str, ...] = ()
    reported_reworded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """How large the study is.

    Attributes:
        name: Name of its file.
        results: Folder of the results.
        models: The base models.
        ways: Ways that are reported, by name.
        tried: Ways that are tried on the facts that choose, by name.
        num_facts: How many are taught, by kind of the reported ones.
        relations: Of the real facts, by role.
        num_known: How many facts that the base model knows are asked at most.
        seeds: Of the reported runs.
        facts_per_step: Facts of an optimizer step.
        adapter: Configuration of `peft`.
        accelerator: Lightning's.
    """

    name: str
    results: Path
    models: tuple[Model, ...]
    ways: Mapping[str, Way]
    tried: Mapping[str, Way]
    num_facts: Mapping[FactKind, int]
    relations: Mapping[Role, tuple[str, ...]] | None
    num_known: int
    seeds: tuple[int, ...]
    facts_per_step: int
    adapter: Mapping[str, Any]
    accelerator: str

    def num_taught(self, kind: FactKind) -> int:
        """How many facts of a kind are taught.

        Args:
            kind: Of the facts; the reworded ones are the real ones.
        """
        return self.num_facts["real" if kind == "reworded" else kind]


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        model: The base model.
        kind: Of the facts.
        role: Whether it chooses or is reported.
        way: How it trains.
        seed: Of the adapter and of the order of the facts.
        learning_rate: Of plain training; None for the one that was chosen.
    """

    model: Model
    kind: FactKind
    role: Role
    way: Way
    seed: int
    learning_rate: float | None = None

    @property
    def name(self) -> str:
        """Path of its file below the results, without suffix."""
        rate = f"-{self.learning_rate:g}" if self.learning_rate is not None else ""
        model = Path(self.model.name).name
        return f"{model}/{self.kind}-{self.role}/{self.way.name}{rate}-{self.seed}"


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
        kept = raw.pop("results")
        models = tuple(
            Model(
                one["name"],
                tuple(one["rates"]),
                tried=tuple(one.get("tried", ())),
                tried_invented=tuple(one.get("tried_invented", ())),
                tried_reworded=tuple(one.get("tried_reworded", ())),
                reported_reworded=tuple(one.get("reported_reworded", ())),
            )
            for one in raw.pop("models")
        )
        ways, tried = (
            {name: Way(name, **values) for name, values in raw.pop(section).items()} for section in ("ways", "tried")
        )
        relations = raw.pop("relations", None)
        setting = Setting(
            name=path.stem,
            results=results or ROOT / kept,
            models=models,
            ways=ways,
            tried=tried,
            relations=relations and {role: tuple(relations[role]) for role in get_args(Role)},
            seeds=tuple(raw.pop("seeds")),
            **raw,
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: {error}") from error
    if PLAIN not in ways or CHOOSE_SEED in setting.seeds:
        raise InputError(f"{path}: `ways` must hold `{PLAIN}`, and `seeds` must not hold {CHOOSE_SEED}, which chooses")
    return setting


def runs_of(setting: Setting, role: Role) -> list[Run]:
    """Every run of a role, in the order in which they are best run.

    Args:
        setting: The setting.
        role: Those that choose, or those that are reported.
    """
    if role == "choose":
        plain = setting.ways[PLAIN]
        return [
            run
            for model in setting.models
            for run in (
                *(Run(model, "real", role, plain, CHOOSE_SEED, rate) for rate in model.rates),
                *(Run(model, "real", role, setting.tried[name], CHOOSE_SEED) for name in model.tried),
                *(Run(model, "invented", role, setting.tried[name], CHOOSE_SEED) for name in model.tried_invented),
                *(Run(model, "reworded", role, setting.tried[name], CHOOSE_SEED) for name in model.tried_reworded),
            )
        ]
    of_ways = [
        Run(model, kind, role, way, seed)
        for way in setting.ways.values()
        for model in setting.models
        for kind in setting.num_facts
        for seed in setting.seeds
    ]
    reworded = [
        Run(model, "reworded", role, setting.tried[name], seed)
        for model in setting.models
        for name in model.reported_reworded
        for seed in setting.seeds
    ]
    return of_ways + reworded


def config_of(
    run: Run, setting: Setting, facts: Path, texts: Path, num_steps: int, num_refining: int, rate: float | None
) -> dict[str, Any]:
    """The YAML of a run, as a user would write it, without the folder that it writes to.

    Args:
        run: The run.
        setting: Its setting.
        facts: File of the facts.
        texts: File of the passages.
        num_steps: The recipe's own number of steps.
        num_refining: How many of them teach once more the facts that resist.
        rate: Learning rate of plain training.
    """
    config = defaults()
    config["seed_everything"] = run.seed
    model, data, trainer = config["model"], config["data"], config["trainer"]
    model["base_model"]["name"] = run.model.name
    model["peft_config"] = copy.deepcopy(dict(setting.adapter))
    data |= {"facts": str(facts), "seed": run.seed}
    data["selection"]["filters"] = [{"class_path": "lit_semantic_peft.semantics.KnownFilter"}]
    data["batches"]["micro_batch_size"] = setting.facts_per_step
    data["evaluation"] |= {"probes": ["paraphrase", "question", "reversed", "neighborhood"], "texts": str(texts)}
    steps = max(1, round(run.way.steps * num_steps))
    if run.way.refines:
        config["refine"] = max(1, round(run.way.steps * num_refining))
        steps = max(1, steps - config["refine"])
    trainer |= {"accelerator": setting.accelerator, "max_steps": steps}
    trainer |= {"check_val_every_n_epoch": trainer["max_steps"]}  # nothing is decided while it trains
    trainer["callbacks"] = [{"class_path": "experiments.recipe_study.recorder.Recorder"}]
    if run.way.is_recipe:
        config["recipe"] = "gated" if run.way.is_gated else "auto"
        config["scale_back"] = run.way.scales_back
        config["extrapolate"] = run.way.extrapolate
        for section, key in (("model", "optimizer"), ("model", "retain"), ("data", "forms")):
            del config[section][key]
    else:
        model["optimizer"]["init_args"]["lr"] = rate
    for section, values in (run.way.config or {}).items():
        config[section] |= copy.deepcopy(values)
    return config
