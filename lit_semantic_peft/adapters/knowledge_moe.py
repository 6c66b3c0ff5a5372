"""Low-rank experts beside linear layers, routed by what a prompt names."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lit_semantic_peft.adapters.by_names import TAKEN_FROM_LORA, NamesConfig, NamesModel
from lit_semantic_peft.adapters.registration import add_peft_type, refuse_foreign, register_method
from lit_semantic_peft.adapters.routing import Routing, Rows, rows_of
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.facts.text import folded

_KNOWLEDGE_MOE = add_peft_type("KNOWLEDGE_MOE")

_NOT_MERGED = (
    "Experts that are routed by the anchors of a prompt cannot be merged into the base weights: which of them acts, "
    "and whether any does, depends on the prompt, and one matrix would act on all. Keep the adapter beside the model."
)


@dataclass
class KnowledgeMoEConfig(NamesConfig):
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
    least_similarity: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = _KNOWLEDGE_MOE
        refuse_foreign(self, TAKEN_FROM_LORA, "that does not go with experts")
        for name, value, is_valid, expected in (
            ("num_experts", self.num_experts, self.num_experts >= 1, "at least 1"),
            ("top_k", self.top_k, 1 <= self.top_k <= self.num_experts, f"between 1 and num_experts={self.num_experts}"),
            ("router_noise", self.router_noise, 0 <= self.router_noise < math.inf, "at least 0"),
            ("least_similarity", self.least_similarity, 0 < (self.least_similarity or 1) <= 1, "in (0, 1]"),
            ("balance", self.balance, 0 <= self.balance < math.inf, "at least 0"),
        ):
            if not is_valid:
                raise InputError(f"`peft_config.{name}` must be {expected}, got {value}")

    @override
    def learn_names(self, facts: Sequence[Fact], tokenizer: PreTrainedTokenizerBase) -> None:
        self._require_one_subject(facts)
        super().learn_names(facts, tokenizer)
        assert self.anchors is not None
        self.anchors = replace(self.anchors, least_similarity=self.least_similarity)

    def _require_one_subject(self, facts: Sequence[Fact]) -> None:
        """Refuses an alias of two subjects, compared as prompts are searched: it would have the anchor of one alone."""
        subject_of = {folded(fact.subject): fact.subject for fact in facts}
        for subject, names in self.aliases.items():
            for name in names:
                if (other := subject_of.setdefault(folded(name), subject)) != subject:
                    raise InputError(
                        f"`peft_config.aliases`: {name!r} of {subject!r} is a name of {other!r} too, so that a prompt "
                        "with it has no one subject. Leave it out."
                    )


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


class KnowledgeMoEModel(NamesModel):
    """LoRA's tuner, whose layers route by the anchors of prompts."""

    called = "experts"
    not_merged = _NOT_MERGED

    @override
    def adapt(self, layer: Any, config: Any, adapter_name: str) -> None:
        outer = layer.lora_B[adapter_name].weight
        inner = RoutedLinear(
            layer.lora_A[adapter_name], config, self._embedding().embedding_dim, self.routing, adapter_name
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
    def of_prompts(self, config: Any, prompts: Sequence[Sequence[int]], is_token: Tensor | None) -> Rows:
        return rows_of(prompts, config.anchors, self._embedding(), is_token)


def scaled(value: Tensor) -> Tensor:
    """A vector divided by its root mean square; 0 stays 0."""
    return F.rms_norm(value, value.shape[-1:])


register_method(_KNOWLEDGE_MOE, KnowledgeMoEConfig, KnowledgeMoEModel)
