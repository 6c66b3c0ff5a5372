"""Memory of base weights by type, and what a training of large shapes needs; see docs/quantized.md.

    python -m experiments.benchmarks.quantized_memory [--build 32]

Measured: the bytes that the tensors of SmolLM2-135M hold in each type. Built: a Llama of 7 billion parameters with
random weights, layer by layer in nf4, its bytes and the process's memory, and one training step of it. Computed: the
same sums for other shapes; activations are counted exactly, on the meta device, as what one layer with LoRA of rank 8
keeps for the backward pass.
"""

import argparse
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from experiments.benchmarks.measured import keep, peak_memory_gb
from lit_semantic_peft.models import BaseModel
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES: dict[str, dict[str, int | bool]] = {  # as the models' config.json says; Qwen2's biases are left out
    "SmolLM2 1.7B": {"hidden": 2048, "inner": 8192, "layers": 24, "heads": 32, "kv": 32, "words": 49152, "tied": True},
    "Llama 3.2 3B": {"hidden": 3072, "inner": 8192, "layers": 28, "heads": 24, "kv": 8, "words": 128256, "tied": True},
    "Llama 2 7B": {"hidden": 4096, "inner": 11008, "layers": 32, "heads": 32, "kv": 32, "words": 32000, "tied": False},
    "Llama 3.1 8B": {
        "hidden": 4096,
        "inner": 14336,
        "layers": 32,
        "heads": 32,
        "kv": 8,
        "words": 128256,
        "tied": False,
    },
    "Qwen2.5 14B": {"hidden": 5120, "inner": 13824, "layers": 48, "heads": 40, "kv": 8, "words": 152064, "tied": False},
    "Qwen2.5 32B": {"hidden": 5120, "inner": 27648, "layers": 64, "heads": 40, "kv": 8, "words": 152064, "tied": False},
    "Llama 3.1 70B": {
        "hidden": 8192,
        "inner": 28672,
        "layers": 80,
        "heads": 64,
        "kv": 8,
        "words": 128256,
        "tied": False,
    },
}
BUILT = "Llama 2 7B"
RANK = 8
FACTS, TOKENS, TARGET_TOKENS = 16, 32, 4
"""Of a micro-batch: facts, tokens of a fact with its padding, and of its target."""

LINEAR_BYTES = {"bfloat16": 2.0, "int8": 1.0, "nf4": 0.5}
"""Bytes of a weight of a linear layer without the constants that scale it, which `constants` adds."""


def config_of(shape: dict[str, Any], layers: int | None = None) -> LlamaConfig:
    """The configuration of a shape, with fewer layers if told so."""
    return LlamaConfig(
        hidden_size=shape["hidden"],
        intermediate_size=shape["inner"],
        num_hidden_layers=layers or shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv"],
        vocab_size=shape["words"],
        tie_word_embeddings=shape["tied"],
        dtype=torch.bfloat16,
    )


def held(model: nn.Module) -> dict[str, float]:
    """Bytes of a model's tensors: those of linear layers that may be quantised, and the rest."""
    blocks: Any = model.get_submodule("model.layers")
    linear = [one for one in blocks.modules() if isinstance(one, nn.Linear)]
    of_linear = _bytes(tensor for one in linear for tensor in _tensors_of(one))
    numbers = sum(one.in_features * one.out_features for one in linear)
    everything = _bytes(tensor for one in model.modules() for tensor in _tensors_of(one))
    return {"linear_parameters": numbers, "linear_bytes": of_linear, "rest_bytes": everything - of_linear}


def _tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters, buffers and the constants of quantisation of one module, without its children."""
    own: list[Tensor] = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    for one in tuple(own):
        state: Any = getattr(one, "quant_state", None)
        scale = getattr(one, "SCB", None)
        own += [scale] if isinstance(scale, Tensor) else []
        while state is not None:
            own += [value for value in (state.absmax, state.code, state.offset) if isinstance(value, Tensor)]
            state = state.state2
    return own


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum({one.data_ptr(): one.numel() * one.element_size() for one in tensors}.values())


def constants(dtype: str, inputs: int) -> float:
    """Bytes a weight of what scales it: nf4 an 8-bit constant a block of 64 and a float32 one for 256 of these."""
    return {"bfloat16": 0.0, "int8": 2 * 4 / inputs, "nf4": 1 / 64 + 4 / 256 / 64}[dtype]


def computed(shape: dict[str, Any], dtype: str) -> dict[str, float]:
    """Bytes of a training: base, adapter, gradient and moments, activations with and without checkpoints."""
    with torch.device("meta"):
        one = LlamaForCausalLM(config_of(shape, layers=1))
    layer: Any = one.model.layers[0]
    linear = sum(module.weight.numel() for module in layer.modules() if isinstance(module, nn.Linear))
    rest = sum(parameter.numel() for parameter in one.parameters()) - linear
    trained, kept = _of_one_layer(one)
    layers, tokens = int(shape["layers"]), FACTS * TOKENS
    hidden = 2 * tokens * int(shape["hidden"])
    return {
        "parameters": layers * linear + rest,
        "base": layers * linear * (LINEAR_BYTES[dtype] + constants(dtype, int(shape["hidden"]))) + 2 * rest,
        "adapter": 16 * layers * trained,
        "activations": layers * kept,
        "activations_checkpointed": layers * hidden + kept,
        "logits": 3 * 4 * FACTS * TARGET_TOKENS * int(shape["words"]),
    }


def _of_one_layer(model: LlamaForCausalLM) -> tuple[int, int]:
    """Trained parameters of a layer with LoRA, and the bytes that it keeps for the backward pass of a micro-batch."""
    adapted = get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear")).train()
    weights = {id(parameter) for parameter in adapted.parameters()}
    seen: dict[int, tuple[Tensor, int]] = {}

    def note(tensor: Tensor) -> Tensor:
        if id(tensor) not in weights and tensor._base is None:
            seen[id(tensor)] = (tensor, tensor.numel() * tensor.element_size())
        return tensor

    layer: Any = adapted.get_base_model().model.layers[0]
    size = int(model.config.hidden_size)
    x = torch.empty(FACTS, TOKENS, size, dtype=torch.bfloat16, device="meta", requires_grad=True)
    angles = torch.empty(1, TOKENS, size // int(model.config.num_attention_heads), dtype=torch.bfloat16, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x, position_embeddings=(angles, angles), attention_mask=None)
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    return trained, sum(size for _, size in seen.values())


def build(shape: dict[str, Any], layers: int) -> dict[str, float]:
    """Builds a random model of a shape in nf4, one layer at a time, and trains it for one step of one micro-batch."""
    import bitsandbytes

    begin = time.perf_counter()
    config = config_of(shape, layers)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    for block in model.model.layers:
        for name, module in list(block.named_modules()):
            if isinstance(module, nn.Linear):
                weight = torch.randn(module.out_features, module.in_features, dtype=torch.bfloat16) / 64
                packed = bitsandbytes.nn.Linear4bit(
                    module.in_features, module.out_features, False, torch.bfloat16, True, "nf4", device="meta"
                )
                packed.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4").to("cpu")
                packed.support_avx512bf16_for_cpu = False
                block.set_submodule(name, packed)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                filled = torch.full(parameter.shape, 0.02, dtype=torch.bfloat16)
                module.register_parameter(name, nn.Parameter(filled.normal_(0, 0.02), requires_grad=False))
    if shape["tied"]:
        model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    found = {"layers": float(layers), **held(model), "seconds_to_build": time.perf_counter() - begin}
    found["peak_gb_after_build"] = peak_memory_gb()
    adapted = get_peft_model(model.requires_grad_(False), LoraConfig(r=RANK, target_modules="all-linear")).train()
    optimizer = torch.optim.AdamW([one for one in adapted.parameters() if one.requires_grad])
    ids = torch.randint(0, int(shape["words"]), (1, TOKENS))
    begin = time.perf_counter()
    loss = adapted(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    optimizer.step()
    return found | {
        "loss": float(loss),
        "seconds_of_a_step_of_one_fact": time.perf_counter() - begin,
        "peak_gb_after_a_step": peak_memory_gb(),
    }


def measured(name: str) -> dict[str, dict[str, float]]:
    """What a real model holds in each type."""
    found = {}
    for dtype in ("float32", "bfloat16", "int8", "nf4"):
        model = BaseModel(name, dtype=dtype).load()
        found[dtype] = held(model)
        found[dtype]["bytes_per_linear_parameter"] = found[dtype]["linear_bytes"] / found[dtype]["linear_parameters"]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, builds and computes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_model", default="smollm2-135m")
    parser.add_argument("--build", type=int, default=32, help="layers of the 7-billion-parameter shape; 0: not built")
    parser.add_argument("--output", type=Path, default=None, help="folder of the result")
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {
        "micro_batch": {"facts": FACTS, "tokens": TOKENS, "target_tokens": TARGET_TOKENS, "rank": RANK},
        "computed": {name: {dtype: computed(shape, dtype) for dtype in LINEAR_BYTES} for name, shape in SHAPES.items()},
    }
    if options.build:
        result["built"] = {"shape": BUILT, **build(SHAPES[BUILT], options.build)}
    result["measured"] = {"model": options.base_model, **measured(options.base_model)}
    print(keep("quantized_memory", result, options.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
