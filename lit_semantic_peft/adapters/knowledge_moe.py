"""Low-rank experts beside linear layers, routed by what a prompt names."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from peft import LoraConfig, PeftModel
from peft.tuners import LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from typing_extensions import override

from lit_semantic_peft.adapters.anchors import ANCHORS_FILE, TOKENIZER_FILE, Anchors
from lit_semantic_peft.adapters.registration import add_peft_type, refuse_foreign, register_method
from lit_semantic_peft.adapters.routing import Routing, Rows, prompts_of, rows_of, tokens_in
from lit_semantic_peft.adapters.subjects import Match, SubjectGate
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact

_KNOWLEDGE_MOE = add_peft_type("KNOWLEDGE_MOE")

_TAKEN_FROM_LORA = frozenset(
    {"r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "use_rslora"}
    | {"layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"}
)

_NOT_MERGED = (
    "Experts that are routed by the anchors of a prompt cannot be merged into the base weights: which of them acts, "
    "and whether any does, depends on the prompt, and one matrix would act on all. Keep the adapter beside the model."
)


@dataclass
class KnowledgeMoEConfig(LoraConfig):  # type: ignore[misc]
    """h = W x + λ Σ_{e ∈ top-k} G_e(R) B_e A_e x: experts, chosen by what the prompt names, beside linear layers.

    Our reading of MEMoE (Wang & Li 2024, arXiv 2405.19086), whose code and exact formulas were not available to us. R
    is the token's state x_t and the anchor a of the row's prompt, each divided by its root mean square:
    G = softmax(V x_t + U a + ε), over all E experts; the k largest G_e count, with their value, all others as 0. a is
    the mean input embedding of the tokens of all names in the prompt that were taught. In training ε ~ N(0,
    `router_noise`²) for every token and expert, else 0. λ = `lora_alpha` / r, or / √r with `use_rslora`.
    A_e `(r, d_in)`, V `(E, d_in)` and U `(E, d)` are drawn as `nn.Linear` draws its weights, d the width of the
    embedding, and B_e `(d_out, r)` is zero, so that training starts from the base model. Per layer
    E r (d_in + d_out) + E (d_in + d) parameters. Linear and `Conv1D` layers, quantised linear ones of bitsandbytes
    among them.

    *Null expert*: a row whose prompt names nothing that was taught gets W x alone, the base model's output to the last
    bit. The prompt is all of a row's tokens before its first label, or what `generate` is given.

    *Balance*: β · E · Σ_e (f_e − 1/E) · mean_t G_e is added to a fact's loss, f_e expert e's share of all choices in
    the optimizer step before (1/E at first), mean over its tokens t and over layers; 0 for even shares. The load of the
    step before makes it a sum over facts: the same however a step is split into micro-batches and processes.

    Args:
        r: Rank of one expert, at least 1; `lora_alpha`, `lora_dropout`, `use_rslora`, `target_modules`,
            `exclude_modules`, `layers_to_transform`, `layers_pattern`, `rank_pattern`, `alpha_pattern` as in
            `LoraConfig`. Every other setting of LoRA must be left at its default.
        num_experts: E, at least 1.
        top_k: k, between 1 and E.
        router_noise: Standard deviation of ε, at least 0.
        balance: β, at least 0. Only this package's training adds the term; a loop of your own calls `balance_of`.
        match: What a prompt must name: see `SubjectGate`.
        aliases: Other names of subjects, which have the anchor of their subject.
        least_similarity: Where a prompt has no name: the least cosine, in (0, 1], between the mean input embedding of a
            name's tokens and that of as many tokens in a row of the prompt, from which on the prompt counts as naming
            the most similar one. None, the default: never. With it a prompt that names nothing may open the adapter.

    Attributes:
        anchors: The names that were taught; None until they are known. `learn_names` sets them.

    Raises:
        InputError: If a number is out of its range, or another setting of LoRA is given.

    Example:
        >>> from peft import get_peft_model
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> base = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes))
        >>> model = get_peft_model(base, KnowledgeMoEConfig(r=2, num_experts=3, target_modules=["up_proj"]))
        >>> sum(one.numel() for one in model.parameters() if one.requires_grad) == 3 * 2 * (8 + 12) + 3 * (8 + 8)
        True
    """

    num_experts: int = 4
    top_k: int = 1
    router_noise: float = 0.1
    balance: float = 0.01
    match: Match = "subjects"
    aliases: dict[str, list[str]] = field(default_factory=dict)
    least_similarity: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = _KNOWLEDGE_MOE
        self.anchors: Anchors | None = None
        refuse_foreign(self, _TAKEN_FROM_LORA, "that does not go with experts")
        for name, value, is_valid, expected in (
            ("num_experts", self.num_experts, self.num_experts >= 1, "at least 1"),
            ("top_k", self.top_k, 1 <= self.top_k <= self.num_experts, f"between 1 and num_experts={self.num_experts}"),
            ("router_noise", self.router_noise, 0 <= self.router_noise < math.inf, "at least 0"),
            ("least_similarity", self.least_similarity, 0 < (self.least_similarity or 1) <= 1, "in (0, 1]"),
            ("balance", self.balance, 0 <= self.balance < math.inf, "at least 0"),
        ):
            if not is_valid:
                raise InputError(f"`peft_config.{name}` must be {expected}, got {value}")
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
        self.anchors = Anchors.of(table, tokenizer, same_as, self.least_similarity)

    @override
    def save_pretrained(self, save_directory: str, **settings: Any) -> None:
        super().save_pretrained(save_directory, **settings)
        if self.anchors is not None:
            self.anchors.write(save_directory)

    @classmethod
    @override
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **settings: Any
    ) -> "KnowledgeMoEConfig":
        config: KnowledgeMoEConfig = super().from_pretrained(pretrained_model_name_or_path, subfolder, **settings)
        from_hub, _, _ = cls._split_kwargs(settings)

        def found(name: str) -> Path:
            local = Path(pretrained_model_name_or_path, subfolder or "", name)
            if local.is_file() or Path(pretrained_model_name_or_path).is_dir():
                return local
            return Path(hf_hub_download(pretrained_model_name_or_path, name, subfolder=subfolder, **from_hub))

        config.anchors = Anchors.read(found(ANCHORS_FILE), found(TOKENIZER_FILE))
        return config


class RoutedLinear(nn.Module):
    """x ↦ [G_1 A_1 x, ..., G_E A_E x], in the place of LoRA's first factor.

    Parameters of its own instead of linear modules: in a saved adapter peft expects the name of a tensor directly
    behind that of the adapter.

    Args:
        replaced: LoRA's first factor, `(r, d_in)`, whose shape, device and type are taken.
        config: The adapter's configuration.
        anchor_width: Width of the model's input embedding.
        routing: Of the model.
        adapter_name: Of the adapter.

    Attributes:
        load: Share of all choices that each expert got in the optimizer step before, float32 `(E,)`, on the CPU.
        choices: Choices of each expert in the optimizer step that runs, float64 `(E,)`, on the CPU.
    """

    def __init__(
        self, replaced: nn.Linear, config: KnowledgeMoEConfig, anchor_width: int, routing: Routing, adapter_name: str
    ) -> None:
        super().__init__()
        like = replaced.weight
        self.num_experts, self.top_k, self.router_noise = config.num_experts, config.top_k, config.router_noise
        self.routing, self.adapter_name = routing, adapter_name
        rank, width = like.shape
        for name, shape in (
            ("weight", (self.num_experts * rank, width)),
            ("router", (self.num_experts, width)),
            ("anchor_router", (self.num_experts, anchor_width)),
        ):
            parameter = nn.Parameter(like.new_empty(shape), requires_grad=like.requires_grad)
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
            setattr(self, name, parameter)
        self.weight: nn.Parameter
        self.router: nn.Parameter
        self.anchor_router: nn.Parameter
        self.load = torch.full((self.num_experts,), 1 / self.num_experts)
        self.choices = torch.zeros(self.num_experts, dtype=torch.float64)

    @override
    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows(x)
        probability, is_chosen = self.gates(x, rows.anchor)
        if self.training and torch.is_grad_enabled():
            self._note(rows, probability, is_chosen)
        gates = (probability * is_chosen).to(x.dtype)
        inner = F.linear(x, self.weight)
        routed: Tensor = inner * gates.repeat_interleave(len(self.weight) // self.num_experts, dim=-1)
        return routed.masked_fill(~rows.is_open[:, None, None], 0.0)

    def gates(self, x: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
        """The router's output.

        Args:
            x: Input of the layer, `(B, T, d_in)`.
            anchor: float32 `(B, d)`.

        Returns:
            G, float32 `(B, T, E)`, and whether an expert is among the k largest, bool of the same shape.
        """
        logits = F.linear(scaled(x), self.router) + F.linear(scaled(anchor).to(x.dtype), self.anchor_router)[:, None]
        if self.training and self.router_noise:
            logits = logits + self.router_noise * torch.randn_like(logits)
        probability = logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        best = probability.topk(self.top_k, dim=-1).indices
        return probability, torch.zeros_like(probability, dtype=torch.bool).scatter(-1, best, True)

    def rows(self, x: Tensor) -> Rows:
        """The rows of the pass; each k times where the input has k for each, as beams and several answers are.

        Args:
            x: Input of the layer, `(B, T, d_in)`.

        Raises:
            InputError: If the model was not called by `forward` or `generate`, or `x` has not one row for each prompt.
        """
        rows = self.routing.rows.get(self.adapter_name)
        if rows is None:
            raise InputError(
                "Experts get their prompts from the model with the adapter, whose `forward` or `generate` was not "
                "called. Call that model, not the one inside it, and without gradient checkpointing."
            )
        if x.dim() != 3 or len(x) % len(rows.is_open):
            raise InputError(
                f"Experts that are routed by prompts need one row of tokens for each of {len(rows.is_open)} prompts; a "
                f"layer got {tuple(x.shape)}. Leave this layer out of `target_modules`."
            )
        times = len(x) // len(rows.is_open)
        is_open, anchor = (one.to(x.device).repeat_interleave(times, dim=0) for one in (rows.is_open, rows.anchor))
        return Rows(is_open, anchor, rows.is_token)

    def _note(self, rows: Rows, probability: Tensor, is_chosen: Tensor) -> None:
        counted = rows.routed_tokens(probability.shape[1])
        size = counted.sum(dim=1, keepdim=True).clamp(min=1)
        mean = (probability * counted[..., None]).sum(dim=1) / size
        self.routing.notes.append((self, mean, (is_chosen & counted[..., None]).sum(dim=1)))


class KnowledgeMoEModel(LoraModel):  # type: ignore[misc]
    """LoRA's tuner, whose layers route by the anchors of prompts."""

    @property
    def routing(self) -> Routing:
        """Shared with the routed layers; made when the first of them is, within peft's own constructor."""
        routing: Routing = self.__dict__.setdefault("_routing", Routing())
        return routing

    @override
    def _create_and_replace(
        self, lora_config: Any, adapter_name: str, target: Any, target_name: str, parent: Any, current_key: str,
        **settings: Any,
    ) -> None:  # fmt: skip
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not isinstance(base, nn.Linear | Conv1D):
            raise InputError(
                f"`peft_config`: experts stand beside linear and Conv1D layers; {current_key} is a "
                f"{type(base).__name__}. Leave it out of `target_modules`."
            )
        super()._create_and_replace(lora_config, adapter_name, target, target_name, parent, current_key, **settings)
        layer = getattr(parent, target_name)
        outer = layer.lora_B[adapter_name].weight
        inner = RoutedLinear(
            layer.lora_A[adapter_name], lora_config, self._embedding().embedding_dim, self.routing, adapter_name
        )
        layer.lora_A[adapter_name] = inner
        joined = nn.Linear(len(inner.weight), len(outer), bias=False, device=outer.device, dtype=outer.dtype)
        nn.init.zeros_(joined.weight.requires_grad_(outer.requires_grad))
        layer.lora_B[adapter_name] = joined

    def _embedding(self) -> Any:
        embed = getattr(self.model, "get_input_embeddings", lambda: None)()
        if not hasattr(embed, "embedding_dim"):
            raise InputError("`peft_config`: experts are routed by token embeddings, which this base model has not.")
        return embed

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
            raise ValueError("experts cannot switch adapters within a batch (`adapter_names`): the prompt decides")
        has_input = _input_of(arguments, settings) is not None
        routed = self._routed(arguments, settings) if has_input else nullcontext()
        with super()._enable_peft_forward_hooks(*arguments, **settings), routed:
            yield

    def _routed(self, arguments: tuple[Any, ...], settings: Mapping[str, Any]) -> AbstractContextManager[None]:
        """The context of a pass; of one without the adapter nothing is needed."""
        if self.__dict__.get("_is_off"):
            return nullcontext()
        self.routing.notes = []
        ids, mask = _input_of(arguments, settings), settings.get("attention_mask")
        is_token = self.routing.is_token
        if is_token is None and mask is not None:
            is_token = tokens_in(mask, mask.shape if ids is None else ids.shape)
        return self.routing.of_rows(self._rows(self._prompts(arguments, settings), is_token))

    def _prompts(self, arguments: tuple[Any, ...], settings: Mapping[str, Any]) -> Sequence[Sequence[int]] | None:
        if self.routing.prompts is not None:
            return self.routing.prompts
        ids = _input_of(arguments, settings)
        if ids is None or ids.dtype.is_floating_point:
            return None
        cache, mask = settings.get("past_key_values"), settings.get("attention_mask")
        num_kept = 0 if cache is None else cache.get_seq_length()
        has_all = ids.shape[1] > num_kept and mask is not None and mask.shape[1] == ids.shape[1]  # as for `generate`
        if num_kept and not has_all:
            raise InputError(
                "Experts belong to a prompt, and a pass that continues a cache does not have it. Use `generate`, or "
                "`with prompts_are(model, prompts):`."
            )
        return prompts_of(ids, mask, settings.get("labels"))

    def _rows(self, prompts: Sequence[Sequence[int]] | None, is_token: Tensor | None) -> dict[str, Rows]:
        adapters = {name: self.peft_config[name] for name in self.active_adapters}
        routed = {name: one for name, one in adapters.items() if isinstance(one, KnowledgeMoEConfig)}
        if prompts is None:
            raise InputError(
                "Experts find the anchors of a prompt by its `input_ids`, which were not given. Pass them, or use "
                "`with prompts_are(model, prompts):`."
            )
        unknown = [name for name, one in routed.items() if one.anchors is None]
        if unknown and torch.is_grad_enabled():
            raise InputError(
                f"`peft_config`: the adapter {unknown[0]!r} does not know what is taught, so that no expert would be "
                "trained. Call `learn_names` of its configuration first."
            )
        return {name: rows_of(prompts, one.anchors, self._embedding(), is_token) for name, one in routed.items()}

    @override
    def _check_merge_allowed(self) -> None:
        raise InputError(_NOT_MERGED)

    def add_weighted_adapter(self, *_: Any, **__: Any) -> None:
        """Refused: experts of different adapters have different routers.

        Raises:
            InputError: Always.
        """
        raise InputError("Experts of several adapters cannot be added up: each adapter has a router of its own.")


def routing_of(model: PeftModel) -> Routing:
    """The routing of a model with experts.

    Args:
        model: A `peft` model with a `KnowledgeMoEConfig`.
    """
    routing: Routing = model.base_model.routing
    return routing


def prompts_are(
    model: PeftModel, prompts: Sequence[Sequence[int]], is_token: Tensor | None = None
) -> AbstractContextManager[None]:
    """A context in which the rows of every pass belong to these prompts: for passes that continue a cache.

    Args:
        model: A `peft` model with a `KnowledgeMoEConfig`.
        prompts: Token ids of each row's prompt, without padding.
        is_token: Which positions count for load and balance, bool `(B, T)`; those of the pass's mask where None.
    """
    return routing_of(model).of_prompts(prompts, is_token)


def scaled(value: Tensor) -> Tensor:
    """A vector divided by its root mean square; 0 stays 0."""
    return F.rms_norm(value, value.shape[-1:])


def _input_of(arguments: tuple[Any, ...], settings: Mapping[str, Any]) -> Tensor | None:
    given = settings.get("input_ids", settings.get("inputs"))
    if given is None and arguments and isinstance(arguments[0], Tensor):
        given = arguments[0]
    return given if isinstance(given, Tensor) else None


register_method(_KNOWLEDGE_MOE, KnowledgeMoEConfig, KnowledgeMoEModel)
