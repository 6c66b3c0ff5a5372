"""What the interference benchmarks measure on: a model with an adapter, and facts."""

from collections.abc import Sequence

import torch
from lit_semantic_peft.facts import builtin_facts
from lit_semantic_peft.models import BaseModel, attach_adapter
from lit_semantic_peft.tokens import Batch, EncodedFact, FactEncoder, collate
from peft import LoraConfig, PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

TINY_VOCABULARY = 64


def real(num_facts: int, name: str = "world") -> tuple[PeftModel, list[EncodedFact], int]:
    """SmolLM2-135M with LoRA r=8 on all linear layers, facts of a built-in set, and the id for padding."""
    base = BaseModel("smollm2-135m")
    encoder = FactEncoder(base.load_tokenizer())
    facts = encoder.encode_facts(builtin_facts(name, num_facts))
    torch.manual_seed(0)
    return with_moved_lora(base.load()), facts, encoder.pad_id


def tiny(num_facts: int) -> tuple[PeftModel, list[EncodedFact], int]:
    """A random Llama of two layers and random facts, to see whether a benchmark runs."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TINY_VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    ids = torch.randint(1, TINY_VOCABULARY, (num_facts, 12)).tolist()
    facts = [EncodedFact(tuple(row[:9]), tuple(row[9:])) for row in ids]
    return with_moved_lora(LlamaForCausalLM(config)), facts, 0


def with_moved_lora(base: torch.nn.Module) -> PeftModel:
    """LoRA r=8 on all linear layers, with B away from 0 so that every gradient is there."""
    model = attach_adapter(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.003 * torch.randn_like(parameter))
    return model


def batches_of(facts: Sequence[EncodedFact], size: int, pad_id: int) -> list[Batch]:
    """The facts in micro-batches, in order."""
    return [
        collate(facts[start : start + size], range(start, min(start + size, len(facts))), pad_id)
        for start in range(0, len(facts), size)
    ]
