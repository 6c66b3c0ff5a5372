"""Two architectures, rows for them, and adapters that have already moved."""

import torch
from lit_semantic_peft.models import attach_adapter
from lit_semantic_peft.tokens import EncodedFact
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from torch import nn

from fixtures.models import VOCABULARY, tiny_gpt2, tiny_llama

ARCHITECTURES = {"llama": tiny_llama, "gpt2": tiny_gpt2}
ADAPTERS = {
    "none": None,
    "lora": lambda: LoraConfig(r=3, target_modules="all-linear", lora_dropout=0.1),
    "prompt_tuning": lambda: PromptTuningConfig(num_virtual_tokens=3),
    "prefix_tuning": lambda: PrefixTuningConfig(num_virtual_tokens=3),
    "p_tuning": lambda: PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8),
}


def trained(base, peft_config, seed=1):
    """The base with an adapter that is no longer where it started, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = attach_adapter(base, peft_config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def rows(num_rows, seed=0):
    """Facts of different lengths with one to four target tokens; tokens 0 and 1 (pad, end) do not occur."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low, high):
        length = int(torch.randint(low, high + 1, (1,), generator=generator))
        return tuple(torch.randint(2, VOCABULARY, (length,), generator=generator).tolist())

    return [EncodedFact(ids(1, 9), ids(1, 4), (1,)) for _ in range(num_rows)]


class WithoutLogitsToKeep(nn.Module):
    """A model whose forward projects every position, as older architectures and remote code do."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    def get_output_embeddings(self):
        return self.model.get_output_embeddings()

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def generate(self, **arguments):
        return self.model.generate(**arguments)
