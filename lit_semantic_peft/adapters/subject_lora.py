"""LoRA that acts at the tokens of taught names, and nowhere else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lit_semantic_peft.adapters.by_names import TAKEN_FROM_LORA, NamesConfig, NamesModel, input_of
from lit_semantic_peft.adapters.registration import add_peft_type, refuse_foreign, register_method
from lit_semantic_peft.adapters.routing import Routing
from lit_semantic_peft.adapters.subjects import Match
from lit_semantic_peft.errors import InputError

_SUBJECT_LORA = add_peft_type("SUBJECT_LORA")


@dataclass
class SubjectLoraConfig(NamesConfig):
    """h_t = W x_t + m_t s B A x_t: LoRA at the tokens of the taught names in a prompt, where m_t = 1; else m_t = 0.

    A fact is written into what the model makes of a name, and read from there by attention, with the base model's own
    weights: whatever asks for it, in whatever words. Tokens that are no part of a taught name run the base model: a
    prompt that names none gets its output to the last bit. A target that is predicted, and all that is generated, is
    no prompt: there m_t = 0, whatever it names. s = `lora_alpha` / r, or / √r with `use_rslora`; A `(r, d_in)` is drawn
    as `nn.Linear` draws its weights, and B `(d_out, r)` is zero. Linear and `Conv1D` layers, quantised linear ones of
    bitsandbytes among them. Source: ours, after where causal tracing finds facts (ROME, Meng et al. 2022,
    arXiv 2202.05262, section 2) and the knowledge anchors of MEMoE (Wang & Li 2024, arXiv 2405.19086).

    Args:
        r: Rank, at least 1; `lora_alpha`, `lora_dropout`, `use_rslora`, `target_modules`, `exclude_modules`,
            `layers_to_transform`, `layers_pattern`, `rank_pattern`, `alpha_pattern` as in `LoraConfig`. Every other
            setting of LoRA must be left at its default.
        match: The names: `subjects_and_targets`, so that a subject can be asked from its target too, or `subjects`.
        aliases: Other names of subjects, at whose tokens the adapter acts as well.

    Attributes:
        anchors: The names that were taught; None until they are known. `learn_names` sets them.

    Raises:
        InputError: If another setting of LoRA is given, or `match` is another one.

    Example:
        >>> from peft import get_peft_model
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> base = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes))
        >>> model = get_peft_model(base, SubjectLoraConfig(r=2, target_modules=["up_proj"]))
        >>> sum(one.numel() for one in model.parameters() if one.requires_grad) == 2 * (8 + 12)
        True
    """

    match: Match = "subjects_and_targets"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = _SUBJECT_LORA
        refuse_foreign(self, TAKEN_FROM_LORA, "that acts at names")


@dataclass(frozen=True)
class NamedTokens:
    """Which tokens of the prompts of a pass belong to names.

    Attributes:
        flags: bool `(B, P + 1)`, for each prompt by its place without padding; False from its end on.
    """

    flags: Tensor

    @classmethod
    def of(cls, named: Sequence[Sequence[bool]]) -> "NamedTokens":
        """The tokens of some prompts.

        Args:
            named: One flag for each token of each prompt.
        """
        longest = max((len(row) for row in named), default=0) + 1
        return cls(torch.tensor([[*row, *[False] * (longest - len(row))] for row in named]))

    def in_pass(self, shape: Sequence[int], attention_mask: Tensor | None, num_kept: int) -> Tensor:
        """Which positions of a pass are tokens of names, bool `(B, T)`, on the mask's device.

        Args:
            shape: B rows, each prompt's k times in a row, and T positions: the last of a text, or all of it.
            attention_mask: `(B, M)`, 0 on padding, of all positions or of those of the pass; None for no padding.
            num_kept: Positions before those of the pass, where there is no mask.

        Raises:
            InputError: If the mask does not say where padding is, or the rows are not those of the prompts.
        """
        num_rows, length = shape
        if num_rows % len(self.flags) or (attention_mask is not None and attention_mask.dim() != 2):
            given = None if attention_mask is None else tuple(attention_mask.shape)
            raise InputError(
                f"An adapter that acts at names needs a row of tokens for each of {len(self.flags)} prompts, and a "
                f"mask of rows and positions; it got {num_rows} rows and a mask of shape {given}."
            )
        flags = self.flags.repeat_interleave(num_rows // len(self.flags), dim=0)
        if attention_mask is None:
            place = torch.arange(num_kept, num_kept + length).expand(num_rows, -1)
            return flags.gather(1, place.clamp(max=flags.shape[1] - 1))
        place = attention_mask.long().cumsum(dim=1)[:, -length:] - 1
        found = flags.to(place.device).gather(1, place.clamp(0, flags.shape[1] - 1))
        return found & attention_mask[:, -length:].bool()


class LinearAtNames(nn.Linear):
    """x_t ↦ m_t A x_t, in the place of LoRA's first factor, whose name and shape the weight keeps.

    Args:
        replaced: LoRA's first factor, `(r, d_in)`, whose weight is taken.
        routing: Of the model.
        adapter_name: Of the adapter.
    """

    def __init__(self, replaced: nn.Linear, routing: Routing, adapter_name: str) -> None:
        super().__init__(replaced.in_features, replaced.out_features, bias=False, device="meta")
        self.weight = replaced.weight
        self.routing, self.adapter_name = routing, adapter_name

    @override
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).masked_fill(~self.at_names(x)[..., None], 0.0)

    def at_names(self, x: Tensor) -> Tensor:
        """m, bool `(B, T)`.

        Args:
            x: Input of the layer, `(B, T, d_in)`.

        Raises:
            InputError: If the model was not called by `forward` or `generate`, or `x` has not its rows and positions.
        """
        named = self.routing.named.get(self.adapter_name)
        if named is None:
            raise InputError(
                "LoRA at names gets the places of names from the model with the adapter, whose `forward` or `generate` "
                "was not called. Call that model, not the one inside it, and without gradient checkpointing."
            )
        if x.shape[:-1] != named.shape:
            raise InputError(
                f"LoRA at names needs the rows and positions of the pass, {tuple(named.shape)}; a layer got "
                f"{tuple(x.shape)}. Leave this layer out of `target_modules`."
            )
        return named.to(x.device)


class SubjectLoraModel(NamesModel):
    """LoRA's tuner, whose layers act at the tokens of names."""

    called = "LoRA at names"
    not_merged = (
        "LoRA at names cannot be merged into the base weights: it acts at the tokens of taught names, and one matrix "
        "would act at all tokens. Keep the adapter beside the model."
    )

    def __init__(self, model: nn.Module, *arguments: Any, **settings: Any) -> None:
        super().__init__(model, *arguments, **settings)
        # The model inside, which `generate` calls too, once for each part of a text.
        self.model.register_forward_pre_hook(self._locate, with_kwargs=True)

    @override
    def adapt(self, layer: Any, config: Any, adapter_name: str) -> None:
        layer.lora_A[adapter_name] = LinearAtNames(layer.lora_A[adapter_name], self.routing, adapter_name)

    @override
    def of_prompts(self, config: Any, prompts: Sequence[Sequence[int]], is_token: Tensor | None) -> NamedTokens:
        anchors = config.anchors
        return NamedTokens.of([[False] * len(ids) if anchors is None else anchors.named_tokens(ids) for ids in prompts])

    def _locate(self, model: nn.Module, arguments: tuple[Any, ...], settings: Mapping[str, Any]) -> None:
        """Before each pass: which of its positions are tokens of names."""
        self.routing.named = {}
        rows: Mapping[str, NamedTokens] = self.routing.rows
        given = input_of(arguments, settings)
        given = settings.get("inputs_embeds") if given is None else given
        if not rows or given is None:
            return
        cache, mask = settings.get("past_key_values"), settings.get("attention_mask")
        num_kept = 0 if cache is None else cache.get_seq_length()
        self.routing.named = {name: one.in_pass(given.shape[:2], mask, num_kept) for name, one in rows.items()}


register_method(_SUBJECT_LORA, SubjectLoraConfig, SubjectLoraModel)
