"""What adapters that act by the names in a prompt have in common: the names, and the prompts of a pass."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import hf_hub_download
from peft import LoraConfig, PeftModel
from peft.tuners import LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from typing_extensions import override

from lit_semantic_peft.adapters.anchors import ANCHORS_FILE, TOKENIZER_FILE, Anchors
from lit_semantic_peft.adapters.routing import Routing, prompts_of, tokens_in
from lit_semantic_peft.adapters.subjects import Match, SubjectGate
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact

TAKEN_FROM_LORA = frozenset(
    {"r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "use_rslora"}
    | {"layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"}
)
"""Settings of LoRA that mean the same for adapters that act by names."""


@dataclass
class NamesConfig(LoraConfig):  # type: ignore[misc]
    """The configuration of an adapter that acts by the names in a prompt.

    Args:
        match: What counts as a name: see `SubjectGate`.
        aliases: Other names of subjects.

    Attributes:
        anchors: The names that were taught; None until they are known. `learn_names` sets them.

    Raises:
        InputError: If `match` is another one.
    """

    match: Match = "subjects"
    aliases: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.anchors: Anchors | None = None
        SubjectGate(self.match)

    def learn_names(self, facts: Sequence[Fact], tokenizer: PreTrainedTokenizerBase) -> None:
        """Sets the anchors to the names of some facts.

        Args:
            facts: What is taught.
            tokenizer: The base model's.

        Raises:
            InputError: If a fact has no subject, or its own prompt names none, or an alias is of no subject.
        """
        table = SubjectGate(self.match, self.aliases).table(facts)
        same_as = {alias: subject for subject, aliases in self.aliases.items() for alias in aliases}
        self.anchors = Anchors.of(table, tokenizer, same_as)

    @override
    def save_pretrained(self, save_directory: str, **settings: Any) -> None:
        super().save_pretrained(save_directory, **settings)
        if self.anchors is not None:
            self.anchors.write(save_directory)

    @classmethod
    @override
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **settings: Any
    ) -> "NamesConfig":
        config: NamesConfig = super().from_pretrained(pretrained_model_name_or_path, subfolder, **settings)
        from_hub, _, _ = cls._split_kwargs(settings)

        def found(name: str) -> Path:
            local = Path(pretrained_model_name_or_path, subfolder or "", name)
            if local.is_file() or Path(pretrained_model_name_or_path).is_dir():
                return local
            return Path(hf_hub_download(pretrained_model_name_or_path, name, subfolder=subfolder, **from_hub))

        config.anchors = Anchors.read(found(ANCHORS_FILE), found(TOKENIZER_FILE))
        return config


class NamesModel(LoraModel):  # type: ignore[misc]
    """LoRA's tuner, whose layers know the prompt of each row of a pass."""

    called: ClassVar[str]
    """What messages call the adapter."""
    not_merged: ClassVar[str]
    """Why the adapter cannot be merged: a message."""

    @property
    def routing(self) -> Routing:
        """Shared with the layers; made when the first of them is, within peft's own constructor."""
        routing: Routing = self.__dict__.setdefault("_routing", Routing())
        return routing

    @abstractmethod
    def of_prompts(self, config: Any, prompts: Sequence[Sequence[int]], is_token: Tensor | None) -> Any:
        """What the layers of an adapter need to know of the prompts of a pass.

        Args:
            config: The adapter's.
            prompts: Token ids of each row's prompt, without padding.
            is_token: As in `Rows`.
        """

    @abstractmethod
    def adapt(self, layer: Any, config: Any, adapter_name: str) -> None:
        """Makes a layer with LoRA's factors one that knows the prompts.

        Args:
            layer: LoRA's.
            config: The adapter's.
            adapter_name: Of the adapter.
        """

    @override
    def _create_and_replace(
        self, lora_config: Any, adapter_name: str, target: Any, target_name: str, parent: Any, current_key: str,
        **settings: Any,
    ) -> None:  # fmt: skip
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not isinstance(base, nn.Linear | Conv1D):
            raise InputError(
                f"`peft_config`: {self.called} can stand beside linear and Conv1D layers; {current_key} is a "
                f"{type(base).__name__}. Leave it out of `target_modules`."
            )
        super()._create_and_replace(lora_config, adapter_name, target, target_name, parent, current_key, **settings)
        self.adapt(getattr(parent, target_name), lora_config, adapter_name)

    @override
    def forward(self, *arguments: Any, **settings: Any) -> Any:
        with self._routed(arguments, settings):
            return super().forward(*arguments, **settings)

    @override
    def disable_adapter_layers(self) -> None:
        self._is_off = True
        super().disable_adapter_layers()

    @override
    def enable_adapter_layers(self) -> None:
        self._is_off = False
        super().enable_adapter_layers()

    @contextmanager
    def _enable_peft_forward_hooks(self, *arguments: Any, **settings: Any) -> Iterator[None]:
        """Around `generate`, and around `forward` where peft goes past this class; else without the input."""
        if settings.get("adapter_names") is not None:
            raise ValueError(
                "an adapter that acts by names cannot be switched within a batch (`adapter_names`): the prompt decides"
            )
        has_input = self.routing.prompts is not None or input_of(arguments, settings) is not None
        routed = self._routed(arguments, settings) if has_input else nullcontext()
        with super()._enable_peft_forward_hooks(*arguments, **settings), routed:
            yield

    def _routed(self, arguments: tuple[Any, ...], settings: Mapping[str, Any]) -> AbstractContextManager[None]:
        """The context of a pass; of one without the adapter nothing is needed."""
        if self.__dict__.get("_is_off"):
            return nullcontext()
        self.routing.notes = []
        ids, mask = input_of(arguments, settings), settings.get("attention_mask")
        is_token = self.routing.is_token
        if is_token is None and mask is not None:
            is_token = tokens_in(mask, mask.shape if ids is None else ids.shape)
        return self.routing.of_rows(self._rows(self._prompts(arguments, settings), is_token))

    def _prompts(self, arguments: tuple[Any, ...], settings: Mapping[str, Any]) -> Sequence[Sequence[int]] | None:
        if self.routing.prompts is not None:
            return self.routing.prompts
        ids = input_of(arguments, settings)
        if ids is None or ids.dtype.is_floating_point:
            return None
        cache, mask = settings.get("past_key_values"), settings.get("attention_mask")
        num_kept = 0 if cache is None else cache.get_seq_length()
        has_all = ids.shape[1] > num_kept and mask is not None and mask.shape[1] == ids.shape[1]  # as for `generate`
        if num_kept and not has_all:
            raise InputError(
                "The adapter acts by the names in a prompt, and a pass that continues a cache does not have it. Use "
                "`generate`, or `with prompts_are(model, prompts):`."
            )
        return prompts_of(ids, mask, settings.get("labels"))

    def _rows(self, prompts: Sequence[Sequence[int]] | None, is_token: Tensor | None) -> dict[str, Any]:
        adapters = {name: self.peft_config[name] for name in self.active_adapters}
        routed = {name: one for name, one in adapters.items() if isinstance(one, NamesConfig)}
        if prompts is None:
            raise InputError(
                "The adapter finds the names of a prompt by its `input_ids`, which were not given. Pass them, or use "
                "`with prompts_are(model, prompts):`."
            )
        unknown = [name for name, one in routed.items() if one.anchors is None]
        if unknown and torch.is_grad_enabled():
            raise InputError(
                f"`peft_config`: the adapter {unknown[0]!r} does not know what is taught, so that nothing of it would "
                "be trained. Call `learn_names` of its configuration first."
            )
        return {name: self.of_prompts(one, prompts, is_token) for name, one in routed.items()}

    @override
    def _check_merge_allowed(self) -> None:
        raise InputError(self.not_merged)

    def add_weighted_adapter(self, *_: Any, **__: Any) -> None:
        """Refused: each adapter acts by names of its own.

        Raises:
            InputError: Always.
        """
        raise InputError("Adapters that act by names cannot be added up: each has names of its own.")


def routing_of(model: PeftModel) -> Routing:
    """The routing of a model whose adapter acts by names.

    Args:
        model: A `peft` model with a `NamesConfig`.
    """
    routing: Routing = model.base_model.routing
    return routing


def prompts_are(
    model: PeftModel, prompts: Sequence[Sequence[int]], is_token: Tensor | None = None
) -> AbstractContextManager[None]:
    """A context in which the rows of every pass belong to these prompts: for passes that continue a cache.

    Args:
        model: A `peft` model with a `NamesConfig`.
        prompts: Token ids of each row's prompt, without padding.
        is_token: Which positions count for load and balance, bool `(B, T)`; those of the pass's mask where None.
    """
    return routing_of(model).of_prompts(prompts, is_token)


def input_of(arguments: tuple[Any, ...], settings: Mapping[str, Any]) -> Tensor | None:
    """The tokens of a call of `forward` or `generate`, or what stands for them; None where there are none.

    Args:
        arguments: By position.
        settings: By name.
    """
    given = settings.get("input_ids", settings.get("inputs"))
    if given is None and arguments and isinstance(arguments[0], Tensor):
        given = arguments[0]
    return given if isinstance(given, Tensor) else None
