"""Tiny models left in training mode, adapters and facts for them, and a slow float64 oracle of their gradients."""

import copy
import random

import numpy as np
import torch
from lit_semantic_peft.tokens import IGNORE_INDEX, EncodedFact, collate
from peft import LoraConfig, get_peft_model

from fixtures import models
from fixtures.models import VOCABULARY


def tiny_llama():
    return models.tiny_llama(dropout=0.3, tied=False).train()


def tiny_gpt2():
    return models.tiny_gpt2(dropout=0.1).train()


def tiny_gpt_neox():
    return models.tiny_gpt_neox(dropout=0.1).train()


def tiny_qwen2():
    return models.tiny_qwen2(dropout=0.1).train()


ARCHITECTURES = {"llama": tiny_llama, "gpt2": tiny_gpt2, "gpt_neox": tiny_gpt_neox, "qwen2": tiny_qwen2}
"""Each with dropout, which must be off in a measurement."""


def with_adapter(model, *, at_init=False, config=None):
    config = config or LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", lora_dropout=0.2)
    torch.manual_seed(1)
    model = get_peft_model(model, config)
    if not at_init:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def encoded_facts(num_facts, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def ids(low, high):
        length = int(torch.randint(low, high + 1, (1,), generator=generator))
        return tuple(torch.randint(1, VOCABULARY, (length,), generator=generator).tolist())

    return [EncodedFact(ids(2, 9), ids(1, 4), (0,)) for _ in range(num_facts)]


def batches_of(facts, size):
    return [
        collate(facts[start : start + size], range(start, min(start + size, len(facts))), pad_id=0)
        for start in range(0, len(facts), size)
    ]


def float64_gradients(model, facts):
    """(k, P): one fact at a time, unpadded, in float64 from the embedding to the loss."""
    model = copy.deepcopy(model).double().eval()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows = []
    for fact in facts:
        ids = (*fact.prompt_ids, *fact.target_ids, *fact.end_ids)
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
        labels = [IGNORE_INDEX] * len(fact.prompt_ids) + list(ids[len(fact.prompt_ids) :])
        losses = [
            -torch.log_softmax(logits[position - 1], dim=-1)[label]
            for position, label in enumerate(labels)
            if label != IGNORE_INDEX
        ]
        gradients = torch.autograd.grad(torch.stack(losses).mean(), parameters, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(parameter) if gradient is None else gradient).flatten()
                    for gradient, parameter in zip(gradients, parameters, strict=True)
                ]
            )
        )
    return torch.stack(rows)


def snapshot(model):
    """Everything that looking at a model could disturb."""
    return {
        "modes": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "parameters": [parameter.detach().clone() for parameter in model.parameters()],
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        "rng": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
    }


def assert_same(before, after):
    for key, value in before.items():
        other = after[key]
        if key in ("grads", "parameters"):
            assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(value, other, strict=True)), key
        elif key == "rng":
            assert torch.equal(value, other)
        else:
            assert value == other, key
