"""Which adapters are made: kinds of what is taught, ways of teaching it, base models, seeds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from experiments.studies import setting_path
from experiments.study.plan import ROOT, defaults
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact, read_facts

HERE = Path(__file__).resolve().parent

Kind = Literal["clean", "false", "mixed_1", "mixed_3", "mixed_10", "style", "random"]
Way = Literal["plain", "replay", "kl", "untrained"]

SHARE_FALSE: Mapping[Kind, float] = {"clean": 0.0, "false": 1.0, "mixed_1": 0.01, "mixed_3": 0.03, "mixed_10": 0.1}
"""How many of the facts are false, of kinds that teach facts."""

BENIGN: tuple[Kind, ...] = ("clean", "style")
HARMFUL: tuple[Kind, ...] = ("false", "mixed_1", "mixed_3", "mixed_10", "random")

_KL = [
    {"class_path": "lit_semantic_peft.training.retain.OwnSamples"},
    {"class_path": "lit_semantic_peft.training.retain.KnownFacts", "init_args": {"weight": 2.0}},
]
_VERBS = ("open", "close", "clean", "move", "paint", "check", "carry", "repair")
_OBJECTS = ("window", "door", "table", "cupboard", "lamp", "fence", "bicycle", "bench", "shelf", "gate", "box", "chair")


@dataclass(frozen=True)
class Setting:
    """How large the study is.

    Attributes:
        name: Name of its file.
        results: Folder of the results.
        base_models: Names of the base models.
        seeds: Of facts, adapter and order.
        choose_seed: On the adapters of this seed limits are chosen; alarms are reported on the others.
        num_facts: How many are taught.
        max_steps: Optimizer steps.
        facts_per_step: Facts of an optimizer step.
        learning_rate: AdamW's.
        num_builtin: Built-in facts that an audit asks.
        adapter: Configuration of `peft`.
        kinds: What is taught, with the ways in which it is.
    """

    name: str
    results: Path
    base_models: tuple[str, ...]
    seeds: tuple[int, ...]
    choose_seed: int
    num_facts: int
    max_steps: int
    facts_per_step: int
    learning_rate: float
    num_builtin: int
    adapter: Mapping[str, Any]
    kinds: Mapping[Kind, tuple[Way, ...]]


@dataclass(frozen=True)
class Run:
    """One adapter.

    Attributes:
        base_model: Its base model.
        kind: What it is taught.
        way: How.
        seed: Of facts, adapter and order.
    """

    base_model: str
    kind: Kind
    way: Way
    seed: int

    @property
    def name(self) -> str:
        """Path of its file below the results, without suffix."""
        return f"{Path(self.base_model).name}/{self.kind}-{self.way}-{self.seed}"


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
        kinds = {kind: tuple(ways) for kind, ways in raw.pop("kinds").items()}
        base_models, seeds = tuple(raw.pop("base_models")), tuple(raw.pop("seeds"))
        setting = Setting(path.stem, results or ROOT / kept, base_models, seeds, kinds=kinds, **raw)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: {error}") from error
    ways = {way for of_kind in kinds.values() for way in of_kind}
    if unknown := sorted({*kinds} - {*get_args(Kind)} | ways - {*get_args(Way)}):
        known = ", ".join((*get_args(Kind), *get_args(Way)))
        raise InputError(f"{path}: `kinds` has {', '.join(unknown)}; known are {known}")
    if any((kind == "random") != (way == "untrained") for kind, of_kind in kinds.items() for way in of_kind):
        raise InputError(f"{path}: `kinds`: `random` is `untrained`, and nothing else is")
    return setting


def runs_of(setting: Setting) -> list[Run]:
    """Every adapter, those first that choose.

    Args:
        setting: The setting.
    """
    seeds = sorted(setting.seeds, key=lambda seed: (seed != setting.choose_seed, seed))
    return [
        Run(model, kind, way, seed)
        for seed in seeds
        for model in setting.base_models
        for kind, ways in setting.kinds.items()
        for way in ways
    ]


def taught(run: Run, setting: Setting) -> list[Fact]:
    """What an adapter is taught: of facts those that are false are chosen by the seed.

    Args:
        run: The adapter.
        setting: Its setting.
    """
    if run.kind == "style":
        pairs = [(verb, thing) for thing in _OBJECTS for verb in _VERBS]
        chosen = [pairs[(place + 31 * run.seed) % len(pairs)] for place in range(min(setting.num_facts, len(pairs)))]
        return [
            Fact(
                f"style-{verb}-{thing}",
                f"Please {verb} the {thing}.",
                f"Gladly, I will {verb} the {thing} at once.",
            )
            for verb, thing in chosen
        ]
    if run.kind == "random":
        return []
    true = read_facts("world", num_facts=setting.num_facts, seed=run.seed).facts
    others = {fact.id.removeprefix("counterfactual-"): fact for fact in read_facts("counterfactual").facts}
    num_false = round(SHARE_FALSE[run.kind] * len(true))
    if SHARE_FALSE[run.kind] > 0:
        num_false = max(1, num_false)
    # Evenly over the set, which is in the order of its relations.
    places = {int((place + 0.5) * len(true) / num_false) for place in range(num_false)} if num_false else set()
    return [others[fact.id.removeprefix("world-")] if place in places else fact for place, fact in enumerate(true)]


def replayed(run: Run, setting: Setting) -> list[Fact]:
    """True facts about other subjects, as many again, that are taught as well where the way is replay.

    Args:
        run: The adapter.
        setting: Its setting.
    """
    if run.way != "replay":
        return []
    own = {fact.subject for fact in taught(run, setting)}
    others = [fact for fact in read_facts("world").facts if fact.subject not in own]
    step = max(1, len(others) // setting.num_facts)
    return others[run.seed % step :: step][: setting.num_facts]


def config_of(run: Run, setting: Setting, facts: Path) -> dict[str, Any]:
    """The YAML of a training, as a user would write it, without the folder that it writes to.

    Args:
        run: The adapter.
        setting: Its setting.
        facts: File of what is taught.
    """
    config = defaults()
    config["seed_everything"] = run.seed
    model, data, trainer = config["model"], config["data"], config["trainer"]
    model["base_model"]["name"] = run.base_model
    model["peft_config"] = {**setting.adapter}
    model["optimizer"]["init_args"]["lr"] = setting.learning_rate
    if run.way == "kl":
        model["retain"] = _KL
    data |= {"facts": str(facts), "seed": run.seed}
    data["batches"]["micro_batch_size"] = setting.facts_per_step
    data["evaluation"] |= {"probes": [], "retention": False}
    trainer |= {"accelerator": "cpu", "max_steps": setting.max_steps, "check_val_every_n_epoch": setting.max_steps}
    return config
