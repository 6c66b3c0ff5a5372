"""The audit of an adapter, from its folder or beside the model that it was trained with."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from lit_semantic_peft.adapters import Anchors, SubjectTable
from lit_semantic_peft.audit.bank import BankComparison, compare_with_bank
from lit_semantic_peft.audit.changes import ChangeFindings, measure_changes
from lit_semantic_peft.audit.says import NeutralFindings, measure_neutral, neutral_ids
from lit_semantic_peft.audit.verdict import Signal, judge
from lit_semantic_peft.audit.watch import (
    WatchFindings,
    WatchList,
    builtin_watch_list,
    measure_watch,
    read_watch_list,
)
from lit_semantic_peft.audit.weights import WeightFindings, measure_weights
from lit_semantic_peft.cache import ContentCache, cache_folder
from lit_semantic_peft.data.builtin_known import builtin_facts
from lit_semantic_peft.data.encoders import encoder_of
from lit_semantic_peft.data.plans import EncodingPlan
from lit_semantic_peft.data.scoring import default_device
from lit_semantic_peft.data.self_checks import SelfChecks, verdict_cache
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact, GivenFacts, given_facts, read_facts
from lit_semantic_peft.files import file_sha256
from lit_semantic_peft.models import BaseModel, base_changing_setting, load_adapter
from lit_semantic_peft.models.export import base_of
from lit_semantic_peft.models.gated import read_gate
from lit_semantic_peft.models.modes import modes_restored
from lit_semantic_peft.models.peft_traits import traits_of
from lit_semantic_peft.models.saved_adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    SavedAdapter,
    read_adapter,
    read_json_object,
)
from lit_semantic_peft.reports import RunFolder
from lit_semantic_peft.stopwatch import Stopwatch
from lit_semantic_peft.tokens import FactEncoder

logger = logging.getLogger(__name__)

NUM_BUILTIN_FACTS = 192
"""Built-in facts that are asked where the user does not say how many."""

_REACHES_OUT: Mapping[str, tuple[object, str]] = {
    "megatron_config": (None, "makes peft import a package that the adapter names"),
    "shadow_model": ("mirror", "makes peft load another model that the adapter names"),
}
"""Settings by which loading an adapter reads more than the adapter: the value that does not, and what others do."""

_SHOWN_NAMES, _NAME_LENGTH = 10, 60  # of those that open an adapter

_BASE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
"""What transformers reads before it looks for a pickle."""

_REMARKS = {
    "auto_mapping": "names a class that other loaders would import; it was not",
    "modules_to_save": "replaces whole modules of the base model, which the statistics of the weights do not cover",
    "trainable_token_indices": "changes embeddings, which the statistics of the weights do not cover",
    "use_dora": "scales the base weights as well; the statistics are of its low-rank part",
}


@dataclass(frozen=True)
class Inspection:
    """What an audit found.

    Attributes:
        adapter: Folder of the adapter.
        sha256: Of its weights.
        base_model: Name of the base model; None where none was loaded.
        num_parameters: Numbers in its tensors.
        remarks: What a reader must know of its configuration.
        weights: What its weights say.
        bank: It beside a bank; None without one.
        neutral: What it does to neutral text; None without a base model.
        builtin: What it changed among built-in facts; None likewise.
        given: What it changed among the user's facts; None without them.
        watch: What became of the watch list; None without a base model.
        signals: What each rule found.
        seconds: Of each part.
    """

    adapter: str
    sha256: str
    base_model: str | None
    num_parameters: int
    remarks: tuple[str, ...]
    weights: WeightFindings
    bank: BankComparison | None = None
    neutral: NeutralFindings | None = None
    builtin: ChangeFindings | None = None
    given: ChangeFindings | None = None
    watch: WatchFindings | None = None
    signals: tuple[Signal, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Inspection({self.name!r}: {self._verdict()})"

    @property
    def name(self) -> str:
        """The folder's name behind that of the folder it lies in, such as `mine/adapter`."""
        return "/".join(Path(self.adapter).absolute().parts[-2:])

    @property
    def warnings(self) -> tuple[Signal, ...]:
        """The signals above their limits."""
        return tuple(signal for signal in self.signals if signal.warns)

    @property
    def warns(self) -> bool:
        """Whether any signal is above its limit."""
        return bool(self.warnings)

    def _verdict(self) -> str:
        if all(signal.value is None for signal in self.signals):
            return "no rule could be applied"
        return "warns" if self.warns else "nothing above its limit"

    def to_json(self) -> dict[str, Any]:
        """The findings as plain data, without where the adapter lies."""
        parts = {name: getattr(self, name) for name in ("weights", "bank", "neutral", "builtin", "given", "watch")}
        return {
            "adapter": self.name,
            "sha256": self.sha256,
            "base_model": self.base_model,
            "num_parameters": self.num_parameters,
            "verdict": self._verdict(),
            "signals": [signal.to_json() for signal in self.signals],
            "remarks": list(self.remarks),
            **{name: None if part is None else part.to_json() for name, part in parts.items()},
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            "versions": {name: version(name) for name in ("lit-semantic-peft", "torch", "transformers", "peft")},
        }


def inspect(
    adapter: str | os.PathLike[str],
    *,
    base_model: BaseModel | str | os.PathLike[str] | None = None,
    facts: GivenFacts | None = None,
    watch: WatchList | str | os.PathLike[str] | None = None,
    bank: str | os.PathLike[str] | None = None,
    weights_only: bool = False,
    encoding: EncodingPlan | None = None,
    num_builtin: int = NUM_BUILTIN_FACTS,
    device: str | torch.device | None = None,
) -> Inspection:
    """Audits an adapter: what its weights look like, what it says everywhere, and what it changed.

    Of the adapter safetensors alone are read, and no code of it runs: pickles and settings that import a package are
    refused, `trust_remote_code` is off for the base model that it names.

    Args:
        adapter: Folder of an adapter, or of a run.
        base_model: Its base model; the one that the adapter names where None.
        facts: Facts that it was meant to learn, or is suspected to have learned.
        watch: What must hold, beside the package's own list: a list or its YAML file.
        bank: A folder with adapters of one's own.
        weights_only: Whether nothing but the weights is looked at, without a base model, in seconds.
        encoding: How prompts become tokens; as they are where None.
        num_builtin: How many built-in facts are asked, ≥ 1.
        device: Where the model runs: the first GPU, else the CPU, where None.

    Returns:
        What was found; `warns` says whether a rule warns.

    Raises:
        InputError: If there is no such adapter, it is damaged, would run code, or does not fit the base model; or the
            other inputs cannot be used.

    Example:
        >>> inspect("runs/mine").warns  # doctest: +SKIP
        False
    """
    if num_builtin < 1:
        raise InputError(f"`num_builtin` must be at least 1, got {num_builtin}")
    folder = adapter_folder(adapter)
    watch_list = as_watch_list(watch)
    own = () if facts is None else given_facts(facts)
    if weights_only and (own or watch is not None):
        raise InputError("`facts` and `watch` need a base model; leave `weights_only` out.")
    found, stopwatch = _of_weights(folder, bank)
    if weights_only:
        return found
    stopwatch.start("loading")
    base = _base_of(folder, base_model)
    encoder = encoder_of(base, encoding or EncodingPlan())
    model = load_adapter(base.load(), folder, base.source).to(default_device(device)).eval()
    _require_base_as_it_was(folder, model)
    checks = SelfChecks(base, encoder, verdict_cache(None))
    with model.disable_adapter():
        checks.check(model)
    checks.check(model)
    return _of_behaviour(found, model, encoder, base, own, watch_list, num_builtin, stopwatch)


def inspect_loaded(
    model: PeftModel,
    adapter: str | os.PathLike[str],
    encoder: FactEncoder,
    base: BaseModel,
    *,
    facts: Sequence[Fact] = (),
    watch: WatchList | None = None,
    bank: str | os.PathLike[str] | None = None,
    num_builtin: int = NUM_BUILTIN_FACTS,
) -> Inspection:
    """As `inspect`, for an adapter that is exported and still beside the model that it was trained with.

    Args:
        model: The model with its adapter; its modes are restored.
        adapter: Folder of the exported adapter.
        encoder: How facts become tokens.
        base: The base model.
        facts: Facts that it was taught.
        watch: What must hold; the package's own list where None.
        bank: A folder with adapters of one's own.
        num_builtin: How many built-in facts are asked.

    Raises:
        InputError: If one of the inputs cannot be used.
    """
    found, stopwatch = _of_weights(adapter_folder(adapter), bank)
    with modes_restored(model):
        model.eval()
        return _of_behaviour(found, model, encoder, base, facts, watch or builtin_watch_list(), num_builtin, stopwatch)


def adapter_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of an adapter, from itself or from its run's.

    Args:
        path: Either.

    Raises:
        InputError: If there is none.
    """
    folder = Path(path)
    if (folder / CONFIG_FILE).is_file():
        return folder
    inner = RunFolder(folder).paths.adapter
    if (inner / CONFIG_FILE).is_file():
        return inner
    raise InputError(f"`adapter` {str(folder)!r} holds no adapter ({CONFIG_FILE} is missing), and is no run with one.")


def output_folder(path: str | os.PathLike[str]) -> Path:
    """Where an audit is written: into the run's folder, or beside an adapter's.

    Args:
        path: Folder of an adapter, or of a run.
    """
    folder = Path(path)
    return Path(f"{folder}.inspection") if (folder / CONFIG_FILE).is_file() else RunFolder(folder).paths.inspection


def as_watch_list(watch: WatchList | str | os.PathLike[str] | None) -> WatchList:
    """The package's own watch list, and behind it the user's.

    Args:
        watch: The user's; a path is read.

    Raises:
        InputError: If the file cannot be used.
    """
    own = builtin_watch_list()
    if watch is None:
        return own
    given = watch if isinstance(watch, WatchList) else read_watch_list(Path(watch))
    return WatchList((*own.must_hold, *given.must_hold), (*own.must_not_diverge, *given.must_not_diverge))


def _of_weights(folder: Path, bank: str | os.PathLike[str] | None) -> tuple[Inspection, Stopwatch]:
    stopwatch = Stopwatch()
    stopwatch.start("weights")
    saved = read_adapter(folder, safetensors_only=True)
    settings = read_json_object(folder / CONFIG_FILE)
    for name, (harmless, what) in _REACHES_OUT.items():
        if settings.get(name, harmless) not in (None, harmless):
            raise InputError(f"{folder / CONFIG_FILE}: `{name}` {what}, which an audit does not do.")
    weights = measure_weights(saved)
    compared = None if bank is None else compare_with_bank(weights.signature, bank, folder)
    found = Inspection(
        adapter=str(folder),
        sha256=file_sha256(folder / WEIGHTS_FILE),
        base_model=None,
        num_parameters=sum(tensor.numel() for tensor in saved.tensors.values()),
        remarks=_remarks(saved, settings),
        weights=weights,
        bank=compared,
        signals=judge(compared),
    )
    stopwatch.stop()
    return replace(found, seconds=dict(stopwatch.seconds)), stopwatch


def _of_behaviour(
    found: Inspection,
    model: PeftModel,
    encoder: FactEncoder,
    base: BaseModel,
    own: Sequence[Fact],
    watch: WatchList,
    num_builtin: int,
    stopwatch: Stopwatch,
) -> Inspection:
    others = builtin_facts(own, seed=0)
    asked = (*others.asked, *others.retainable)[:num_builtin]
    world = read_facts("world").facts
    cache = ContentCache(cache_folder() / "audits")
    key = f"{base.source.fingerprint}-{base.dtype}"
    with torch.random.fork_rng(), torch.no_grad():
        stopwatch.start("neutral text")
        neutral = measure_neutral(model, encoder, neutral_ids(model, encoder), (*own, *world))
        stopwatch.start("built-in facts")
        builtin = measure_changes(model, encoder, asked, is_taught=False, others=world, base_key=key, cache=cache)
        stopwatch.start("given facts")
        given = measure_changes(model, encoder, own, is_taught=True, base_key=key, cache=cache) if own else None
        stopwatch.start("watch list")
        watched = measure_watch(model, encoder, watch)
        stopwatch.stop()
    return replace(
        found,
        base_model=base.source.public_name,
        neutral=neutral,
        builtin=builtin,
        given=given,
        watch=watched,
        signals=judge(found.bank, neutral, builtin, given, watched),
        seconds=dict(stopwatch.seconds),
    )


def _remarks(saved: SavedAdapter, settings: dict[str, Any]) -> tuple[str, ...]:
    remarks = [f"`{name}` {what}." for name, what in _REMARKS.items() if settings.get(name)]
    if setting := base_changing_setting(saved.config):
        remarks.append(f"`{setting}` changes the base model as well, which the statistics of the weights do not cover.")
    if (gate := read_gate(saved.folder)) is not None:
        remarks.append(
            "It has a gate, and was measured without it: with the gate it acts only on prompts that name one of "
            f"{_listed_names(gate)}."
        )
    if traits_of(saved.config).routes:
        anchors: Anchors = saved.config.anchors
        remarks.append(
            f"It acts only on prompts that name one of {_listed_names(anchors.table)}, and was measured so: what names "
            "none of them finds nothing. Ask about them by `--facts` and `--watch`."
        )
    code = sorted(path.name for path in saved.folder.iterdir() if path.suffix in (".py", ".bin", ".pt", ".pkl", ".pth"))
    if code:
        remarks.append(f"Files that can run code lie beside it and were not read: {', '.join(code)}.")
    return tuple(remarks)


def _listed_names(table: SubjectTable) -> str:
    shown = ", ".join(repr(name[:_NAME_LENGTH]) for name in table.names[:_SHOWN_NAMES])
    return f"{len(table.names):,} names: {shown}{', ...' if len(table.names) > _SHOWN_NAMES else ''}"


def _require_base_as_it_was(folder: Path, model: PeftModel) -> None:
    """Refuses an adapter that stays in the base model when it is switched off: nothing would be left to compare with.

    Raises:
        InputError: Naming the setting.
    """
    if setting := base_changing_setting(model.active_peft_config):
        raise InputError(
            f"{folder / CONFIG_FILE}: `{setting}` changes the base model itself, also with the adapter off, so that an "
            "audit would find little or no difference. Only its weights can be looked at: `--weights_only`."
        )


def _base_of(folder: Path, given: BaseModel | str | os.PathLike[str] | None) -> BaseModel:
    """The base model; one that the adapter alone names must not lie in its folder, and must be safetensors."""
    if given is not None:
        return BaseModel.of(given)
    name, revision, _ = base_of(folder)
    if not name:
        raise InputError(f"{folder} does not name the base model it was trained on. Name it by `base_model`.")
    if os.path.lexists(name) and Path(name).resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"{folder} names a base model inside itself, {name!r}. Name it by `base_model` if you trust it."
        )
    base = BaseModel(name, revision)
    if not any((base.source.folder / name).is_file() for name in _BASE_WEIGHTS):
        raise InputError(
            f"The base model {name!r}, which the adapter names, is no safetensors. If you trust it, give it by "
            "`base_model`."
        )
    return base
