"""Two-layer random models of every causal language model of the installed transformers that can be made small."""

import inspect
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 61
_MOST_PARAMETERS = 4_000_000

_NAMES_OF_SIZES: dict[Any, str] = {
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_key_value_heads mamba_n_groups "
    "n_groups linear_num_key_heads num_experts_per_tok num_experts_per_token moe_topk moe_k",
    1: "n_group topk_group n_shared_experts num_expert_group first_k_dense_replace bos_token_id eos_token_id",
    4: "num_attention_heads n_head n_heads attention_heads num_heads decoder_attention_heads encoder_attention_heads "
    "mamba_n_heads mamba_num_heads linear_num_value_heads num_experts num_local_experts n_routed_experts "
    "moe_num_experts rotary_dim linear_num_heads",
    8: "head_dim attention_head_size linear_key_head_dim linear_value_head_dim qk_nope_head_dim v_head_dim "
    "global_head_dim index_head_dim qk_rope_head_dim q_lora_rank kv_lora_rank o_lora_rank "
    "hidden_size_per_layer_input linear_head_dim",
    16: "qk_head_dim",
    32: "hidden_size d_model n_embd emb_dim embedding_size word_embed_proj_dim moe_intermediate_size "
    "shared_expert_intermediate_size state_size mamba_d_state ssm_state_size mamba_state_dim lru_width",
    48: "intermediate_size n_inner d_ff ffn_dim decoder_ffn_dim encoder_ffn_dim ffn_hidden_size intermediate_size_mlp "
    "expert_ffn_hidden_size feed_forward_size",
    64: "max_position_embeddings n_positions n_ctx max_seq_len context_length",
    VOCABULARY: "vocab_size vocab_size_per_layer_input",
    0: "pad_token_id",
}
_USUAL: dict[str, Any] = {
    **{name: size for size, names in _NAMES_OF_SIZES.items() for name in names.split()},
    **{"layer_types": None, "is_decoder": True, "is_encoder_decoder": False},
}
_LINEAR_AND_FULL = ["linear_attention", "full_attention"]
_HYBRID = ("bailing_hybrid", "granitemoehybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next")
_PARTS = {"attn_config", "ffn_config"}  # of one model, not models of other modalities

_UNUSUAL: dict[str, dict[str, Any]] = {
    **{name: {"layer_types": _LINEAR_AND_FULL} for name in _HYBRID},
    "bamba": {"attn_layer_indices": [1], "mamba_d_head": 16, "mamba_chunk_size": 8},
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "ctrl": {"dff": 48},
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_d_head": 16, "mamba_chunk_size": 8},
    "gemma3n_text": {"num_hidden_layers": 4, "num_kv_shared_layers": 0, "laurel_rank": 4, "altup_num_inputs": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"mlp_layer_types": ["dense", "sparse"], "layer_types": _LINEAR_AND_FULL},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba": {"time_step_rank": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "nemotron_h": {"mamba_head_dim": 8},
    "recurrent_gemma": {"num_hidden_layers": 3, "num_key_value_heads": 1},
    "reformer": {
        **{"attn_layers": ["local", "lsh"], "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16]},
        **{"num_attention_heads": 2, "attention_head_size": 16},
        **{"local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4},
    },
    "roberta": {"pad_token_id": 1},
    "roc_bert": {f"{part}_{name}": 8 for part in ("pronunciation", "shape") for name in ("vocab_size", "embed_dim")},
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        **{"num_hidden_layers": 3, "layer_types": ["hybrid", "mamba", "hybrid"], "n_mamba_heads": 2},
        **{"mamba_d_state": 8, "attention_head_dim": 16},
    },
    "zamba2": {
        **{"num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "hybrid"]},
        **{"hybrid_layer_ids": [1, 2], "adapter_rank": 4, "mamba_headdim": 16, "n_mamba_heads": 4},
    },
    "zaya": {"num_experts_per_tok": 1},
}


class NotBuiltError(Exception):
    """Transformers makes no small model of a family."""


def family_names() -> list[str]:
    """The model types that transformers maps to a causal language model of text alone, in its order."""
    known = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING]
    return [name for name in known if getattr(CONFIG_MAPPING[name], "sub_configs", {}).keys() <= _PARTS]


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model in evaluation mode, of which every trained tensor matters; the same for the same seed.

    Args:
        family: One of `family_names`.
        seed: Of its weights.

    Raises:
        NotBuiltError: If it cannot be made small.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(family)).float().eval()
        except Exception as error:  # each configuration has its own for sizes that do not fit together
            raise NotBuiltError(f"{type(error).__name__}: {error}") from error
        size = sum(parameter.numel() for parameter in model.parameters())
        if size > _MOST_PARAMETERS:
            raise NotBuiltError(f"it has {size} parameters, so some of its sizes are not known here")
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.requires_grad:  # a table of positions, which is right as it is
                    continue
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.requires_grad_(False)


def tiny_config(family: str) -> PreTrainedConfig:
    """The configuration of `tiny_model`: those of the usual names of sizes that the family has, made small.

    Args:
        family: One of `family_names`.
    """
    kind = CONFIG_MAPPING[family]
    taken = set(inspect.signature(kind.__init__).parameters)
    settings = {name: value for name, value in _USUAL.items() if name in taken}
    if "kv_lora_rank" in taken:  # latent attention: every head has keys of its own
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    config: PreTrainedConfig = kind(**{**settings, **_UNUSUAL.get(family, {})})
    return config
