"""FLoRA: a small core between the two factors of a low-rank update."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners import LoraModel
from peft.tuners.lora.layer import Embedding as LoraEmbedding
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from typing_extensions import override

from lit_semantic_peft.adapters.registration import add_peft_type, refuse_foreign, register_method
from lit_semantic_peft.errors import InputError

_FLORA = add_peft_type("FLORA")

_TAKEN_FROM_LORA = frozenset(
    {"r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora"}
    | {"modules_to_save", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"}
)
"""LoRA's settings that mean the same here. The others belong to other methods, and are refused."""


@dataclass
class FLoRAConfig(LoraConfig):  # type: ignore[misc]
    """ΔW = s · B G A: LoRA with a core G between its factors (Si et al. 2024, FLoRA, arXiv 2405.14739, for matrices).

    A `(r, d_in)`, G `(r, r)`, B `(d_out, r)`; s = `lora_alpha` / r, or / √r with `use_rslora`. A and B are drawn as
    `nn.Linear` draws its weights (A of an embedding from N(0, 1)) and G is zero, so that training starts from the base
    model and G alone has a gradient in the first step. r (d_in + d_out) + r² parameters per adapted layer. Linear,
    `Conv1D` and embedding layers, quantised linear ones of bitsandbytes among them.

    Args:
        r: Rank, at least 1; `lora_alpha`, `lora_dropout`, `use_rslora`, `target_modules`, `exclude_modules`,
            `modules_to_save`, `layers_to_transform`, `layers_pattern`, `rank_pattern`, `alpha_pattern` as in
            `LoraConfig`. Every other setting of LoRA must be left at its default.

    Raises:
        InputError: If another setting of LoRA is given.

    Example:
        >>> from peft import get_peft_model
        >>> from torch import nn
        >>> model = get_peft_model(nn.Sequential(nn.Linear(5, 7)), FLoRAConfig(r=2, target_modules=["0"]))
        >>> sum(one.numel() for one in model.parameters() if one.requires_grad) == 2 * (5 + 7) + 2**2
        True
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = _FLORA
        refuse_foreign(self, _TAKEN_FROM_LORA, "that does not go with a core")


class CoredLinear(nn.Module):
    """x ↦ B (G x), in the place of LoRA's second factor.

    Parameters of its own instead of two linear modules: in a saved adapter peft expects the name of a tensor directly
    behind that of the adapter.

    Args:
        replaced: LoRA's second factor, `(d_out, r)`, whose shape, device and type are taken.
    """

    def __init__(self, replaced: nn.Linear) -> None:
        super().__init__()
        like = replaced.weight
        self.outer = nn.Parameter(torch.empty_like(like), requires_grad=like.requires_grad)
        self.core = nn.Parameter(like.new_zeros(like.shape[1], like.shape[1]), requires_grad=like.requires_grad)
        nn.init.kaiming_uniform_(self.outer, a=math.sqrt(5))

    @property
    def weight(self) -> Tensor:
        """B G, `(d_out, r)`: what LoRA's own functions read, such as those that merge."""
        return self.outer @ self.core

    @override
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.core), self.outer)


class CoredEmbedding(LoraEmbedding):  # type: ignore[misc]
    """An embedding layer with ΔWᵀ = s · B G A, whose tensors are no modules but parameters, as LoRA has them."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.lora_embedding_core = nn.ParameterDict()
        self.adapter_layer_names: tuple[str, ...] = (*LoraEmbedding.adapter_layer_names, "lora_embedding_core")

    def add_core(self, adapter_name: str) -> None:
        """Draws A and B of an adapter anew, and adds its core.

        Args:
            adapter_name: One of the layer's adapters.
        """
        inner, outer = self.lora_embedding_A[adapter_name], self.lora_embedding_B[adapter_name]
        nn.init.normal_(inner)
        nn.init.kaiming_uniform_(outer, a=math.sqrt(5))
        core = torch.zeros(outer.shape[1], outer.shape[1], device=outer.device, dtype=outer.dtype)
        self.lora_embedding_core[adapter_name] = nn.Parameter(core, requires_grad=outer.requires_grad)

    @override
    def get_delta_weight(self, adapter: str) -> Tensor:
        outer, core, inner = (
            factors[adapter].float()
            for factors in (self.lora_embedding_B, self.lora_embedding_core, self.lora_embedding_A)
        )
        delta: Tensor = (outer @ core @ inner).T * self.scaling[adapter]
        return delta.to(self.lora_embedding_A[adapter].dtype)

    @override
    def forward(self, x: Tensor, *arguments: Any, **settings: Any) -> Tensor:
        if settings.get("adapter_names") is not None:
            raise ValueError("FLoRA on an embedding layer cannot switch adapters within a batch (`adapter_names`)")
        if self.disable_adapters or self.merged:
            plain: Tensor = super().forward(x, *arguments, **settings)
            return plain
        settings.pop("adapter_names", None)
        base: Tensor = self.base_layer(x, *arguments, **settings)
        result = base
        scale = self._get_embed_scale()
        for name in self.active_adapters:
            if name not in self.lora_embedding_A:
                continue
            inner, core, outer = (
                self.lora_embedding_A[name],
                self.lora_embedding_core[name],
                self.lora_embedding_B[name],
            )
            added = (F.embedding(x, inner.T) @ core.T @ outer.T) * self.scaling[name]
            result = result + (added if scale is None else added * scale.to(added.dtype))
        return result.to(base.dtype)


class FLoRAModel(LoraModel):  # type: ignore[misc]
    """LoRA's tuner, whose layers have a core between their factors."""

    @override
    def _create_and_replace(
        self, lora_config: Any, adapter_name: str, target: Any, target_name: str, parent: Any, current_key: str,
        **settings: Any,
    ) -> None:  # fmt: skip
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not isinstance(base, nn.Linear | nn.Embedding | Conv1D):
            raise InputError(
                f"`peft_config`: FLoRA adapts linear, Conv1D and embedding layers; {current_key} is a "
                f"{type(base).__name__}. Leave it out of `target_modules`."
            )
        super()._create_and_replace(lora_config, adapter_name, target, target_name, parent, current_key, **settings)
        layer = getattr(parent, target_name)
        if isinstance(layer, CoredEmbedding):
            layer.add_core(adapter_name)
        else:
            layer.lora_B[adapter_name] = CoredLinear(layer.lora_B[adapter_name])

    @staticmethod
    def _create_new_module(lora_config: Any, adapter_name: str, target: Any, **settings: Any) -> nn.Module:
        if isinstance(target, nn.Embedding):
            return CoredEmbedding(target, adapter_name, config=lora_config, **settings)
        layer: nn.Module = LoraModel._create_new_module(lora_config, adapter_name, target, **settings)
        return layer

    def add_weighted_adapter(self, *_: Any, **__: Any) -> None:
        """Refused: a sum of adapters with different cores has no core of the same rank.

        Raises:
            InputError: Always.
        """
        raise InputError("FLoRA adapters cannot be added up. Export each as plain LoRA (`as_lora`) and add those.")


def as_lora(config: FLoRAConfig, tensors: Mapping[str, Tensor]) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The same update as plain LoRA with the factors B and G A, which every tool loads without this package.

    Args:
        config: The adapter's configuration.
        tensors: Its tensors under the names that peft saves.

    Returns:
        LoRA's configuration and tensors, under the names that peft saves.
    """
    merged = {}
    for name, value in tensors.items():
        path, _, last = name.rpartition("lora_")
        core = tensors.get(f"{path}lora_B.core", tensors.get(f"{path}lora_embedding_core"))
        if last in ("A.weight", "embedding_A") and core is not None:
            merged[name] = core @ value
        elif last not in ("B.core", "embedding_core"):
            merged[name.replace("lora_B.outer", "lora_B.weight")] = value
    settings = {one.name: getattr(config, one.name) for one in fields(LoraConfig) if one.init}
    return LoraConfig(**settings), merged


register_method(_FLORA, FLoRAConfig, FLoRAModel)
