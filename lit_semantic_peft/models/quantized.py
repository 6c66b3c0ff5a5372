"""Base weights in 4 or 8 bits (bitsandbytes), run so that a text's numbers depend on nothing but the text.

- `nf4`: NormalFloat4 with double quantisation, products in bfloat16 (Dettmers et al. 2023, QLoRA, arXiv 2305.14314,
  section 3).
- `int8`: row-wise absolute maximum, W_ij ≈ s_i · c_ij with c_ij in [-127, 127], products in bfloat16. The weights are
  those of LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339), its products are not: they round activations too, by
  columns that all texts of a batch choose together, so that a loss would depend on which facts share a step.

Embeddings, norms and the output projection stay in bfloat16.
"""

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_bnb_weight
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from lit_semantic_peft.errors import InputError

QuantizedDtype = Literal["nf4", "int8"]
"""Types of `BaseModel.dtype` that quantise the linear layers while the weights are read."""

REST_DTYPE = torch.bfloat16
"""Type of what is not quantised, and of the products."""

_SAME = 0.05
"""Share of its norm by which a layer's output may differ from that on dequantised weights: far above rounding in
bfloat16, far below what another weight makes."""

_MOVED = 0.1
"""By how much an adapter's numbers are moved for that comparison."""

_INSTALL = "pip install 'lit-semantic-peft[quantized]'"


def require_library(dtype: QuantizedDtype) -> None:
    """Refuses a type of weights for which the library is missing.

    Args:
        dtype: The type.

    Raises:
        InputError: If bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"`base_model.dtype: {dtype}` needs bitsandbytes, which is not installed: {_INSTALL} (or `pip install "
            "bitsandbytes`). Without it use `bfloat16`."
        )


def loading_arguments(dtype: QuantizedDtype) -> dict[str, Any]:
    """Arguments of `from_pretrained` that quantise each weight on the CPU as it is read.

    Args:
        dtype: The type.
    """
    settings = (
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=dtype,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=REST_DTYPE,
        )
        if dtype == "nf4"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    return {"quantization_config": settings, "dtype": REST_DTYPE, "device_map": {"": "cpu"}}


def quantization_of(folder: Path) -> str | None:
    """The method by which the weights in a folder are quantised already, such as `gptq`; None where they are not.

    Args:
        folder: As `save_pretrained` writes it.
    """
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    except (OSError, ValueError, AttributeError):
        return None  # what is wrong with it is said where the model is loaded
    return str(settings.get("quant_method", "an unnamed method")) if isinstance(settings, dict) else None


def refuse_second_quantization(folder: Path, dtype: str) -> None:
    """Refuses to quantise what is quantised.

    Args:
        folder: Of the base model.
        dtype: `BaseModel.dtype`.

    Raises:
        InputError: Naming the method of the folder.
    """
    method = quantization_of(folder)
    if method is not None and dtype in get_args(QuantizedDtype):
        raise InputError(
            f"`base_model.dtype: {dtype}`: the weights in {folder} are quantised already ({method}). Use `dtype: "
            "bfloat16` for what is not quantised in them, or the original model."
        )


def run_exactly(model: PreTrainedModel) -> None:
    """Makes the quantised layers of bitsandbytes differentiable at any time, and each text independent of its batch.

    A 4-bit layer of bitsandbytes 0.50 on a CPU with AVX512-BF16 repacks its weights at its first pass in evaluation
    mode, after which its products have no gradient: a training that goes on after a validation would lose the part of
    the gradient that goes through the base. An 8-bit layer rounds its inputs (see above).

    Args:
        model: The model; others than those of bitsandbytes have no such layers.
    """
    linear: Any
    for linear in model.modules():
        kinds = {kind.__name__ for kind in type(linear).__mro__ if kind.__module__.startswith("bitsandbytes.")}
        if "Linear4bit" in kinds:
            linear.support_avx512bf16_for_cpu = False
        elif "Linear8bitLt" in kinds:
            linear.register_buffer("scale", linear.weight.SCB.float() / 127, persistent=False)
            linear.__class__ = _weight_only(type(linear))  # type: ignore[arg-type]


@torch.no_grad()
def refuse_packed_reading(model: nn.Module) -> None:
    """Refuses an adapter whose layers compute with the packed numbers themselves, as if they were the weights.

    Some types of peft read the weight of the layer that they adapt. Of a quantised layer they get integers, and run
    without an error. So one layer of each class is asked for its output on a dequantised layer as well.

    Args:
        model: A model with an adapter; not changed.

    Raises:
        InputError: If the outputs differ by more than rounding explains.
    """
    asked = {type(layer): layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)}
    for kind, layer in asked.items():
        base: Any = layer.get_base_layer()
        if type(base.__dict__.get("_parameters", {}).get("weight")).__name__ not in ("Params4bit", "Int8Params"):
            continue
        weight = dequantize_bnb_weight(base.weight, getattr(base, "state", None)).to(REST_DTYPE)
        plain = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        plain.weight, plain.bias = nn.Parameter(weight, requires_grad=False), base.bias
        x = torch.sin(torch.arange(3.0 * base.in_features, device=weight.device)).view(1, 3, -1).to(REST_DTYPE)
        frozen = {id(parameter) for parameter in base.parameters()}
        own = [parameter for parameter in layer.parameters() if id(parameter) not in frozen]
        before = [parameter.clone() for parameter in own]
        try:
            for parameter in own:  # a new adapter often changes nothing
                parameter.add_(_MOVED * torch.cos(torch.arange(parameter.numel()).to(parameter)).view_as(parameter))
            found = layer(x).float()
            layer.base_layer = plain
            expected = layer(x).float()
        except Exception:  # what cannot run at all is refused where the whole model is run
            continue
        finally:
            layer.base_layer = base
            for parameter, value in zip(own, before, strict=True):
                parameter.copy_(value)
        if not float((found - expected).norm()) <= _SAME * float(expected.norm()):
            raise InputError(
                f"`peft_config`: on quantised weights {kind.__name__} of peft computes with the packed numbers, not "
                "with the weights that they stand for. Use LoraConfig, or a base model in bfloat16."
            )


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """The model with the numbers that its quantised weights stand for, in float32.

    Args:
        model: A model in 4 or 8 bits; consumed.
    """
    plain: PreTrainedModel = model.dequantize(torch.float32)
    return plain.float().requires_grad_(False)


class _WeightOnly:
    """The forward pass of an 8-bit layer without rounded activations; W is made anew whenever it is needed."""

    weight: nn.Parameter
    scale: Tensor
    bias: nn.Parameter | None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        product: Tensor = _Product.apply(x, self.weight.data, self.scale, bias)  # type: ignore[no-untyped-call]
        return product


@cache
def _weight_only(kind: Any) -> Any:
    return type(f"WeightOnly{kind.__name__}", (_WeightOnly, kind), {})


class _Product(torch.autograd.Function):
    """x Wᵀ + b, W_ij = s_i c_ij frozen: nothing but c and s is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rounded, scale)
        return F.linear(x, _weight(rounded, scale, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        rounded, scale = ctx.saved_tensors
        return gradient @ _weight(rounded, scale, gradient.dtype), None, None, None


def _weight(rounded: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (rounded * scale[:, None]).to(dtype)
