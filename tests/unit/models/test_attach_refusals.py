"""What PEFT refuses, or takes and cannot run: its own reason, and targets that work, for many architectures."""

import re

import peft
import pytest
import torch
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import attach_adapter
from lit_semantic_peft.models.attach import require_answer
from peft import (
    BOFTConfig,
    CPTConfig,
    HRAConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    MultitaskPromptTuningConfig,
    OFTConfig,
    PolyConfig,
    PrefixTuningConfig,
    TrainableTokensConfig,
    VBLoRAConfig,
    XLoraConfig,
)
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Lfm2Config,
    Llama4TextConfig,
    Mamba2Config,
    MambaConfig,
    MixtralConfig,
    NemotronHConfig,
    PhimoeConfig,
)

from fixtures.models import tiny_gpt2, tiny_llama
from fixtures.releases import of_this_peft

NARROW = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2}
SIZES = {**NARROW, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
EXPERTS = {**SIZES, "num_local_experts": 4}
STATES = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
CONFIGS = {
    "falcon_h1": lambda: FalconH1Config(**SIZES, **STATES),
    "lfm2": lambda: Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]),
    "llama4": lambda: Llama4TextConfig(**EXPERTS, intermediate_size_mlp=48, head_dim=8, pad_token_id=0),
    "mamba": lambda: MambaConfig(**NARROW, state_size=8),
    "mamba2": lambda: Mamba2Config(**NARROW, num_heads=8, head_dim=8, state_size=8, n_groups=1, chunk_size=8),
    "mixtral": lambda: MixtralConfig(**EXPERTS),
    "nemotron_h": lambda: NemotronHConfig(
        **{**SIZES, "num_hidden_layers": 4},
        hybrid_override_pattern="M-*-",
        head_dim=8,
        mamba_num_heads=4,
        mamba_head_dim=8,
        ssm_state_size=8,
        n_groups=1,
        chunk_size=8,
    ),
    "phimoe": lambda: PhimoeConfig(**EXPERTS),
}
ALL = {"target_modules": "all-linear"}
ON_EXPERTS = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj"]}


def tiny(name):
    if name in ("llama", "gpt2"):
        return {"llama": tiny_llama, "gpt2": tiny_gpt2}[name]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()


def refusal(name, config):
    with pytest.raises(InputError) as caught:
        require_answer(attach_adapter(tiny(name), config))
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "config", "reason", "targets"),
    [
        ("mamba", LoraConfig(**ALL), "Module 'out_proj' is incompatible with Mamba-based models", "in_proj, x_proj"),
        ("mamba2", LoraConfig(**ALL), "Module 'out_proj' is incompatible with Mamba-based models", "in_proj"),
        ("falcon_h1", LoraConfig(**ALL), "Module 'out_proj' is incompatible", "down_proj, gate_proj, in_proj, k_proj"),
        ("nemotron_h", LoraConfig(**ALL), "Module 'out_proj' is incompatible", "down_proj, in_proj, k_proj"),
        ("gpt2", HRAConfig(**ALL), "Target module Conv1D(nf=48, nx=16) is not supported", "c_attn, c_fc, c_proj"),
        ("gpt2", LoHaConfig(**ALL), "Conv1D'> not supported, currently only adapters for", "c_attn, c_fc, c_proj"),
        ("gpt2", OFTConfig(**ALL), "Target module Conv1D(nf=48, nx=16) is not supported", "c_attn, c_fc, c_proj"),
        (
            "llama4",
            LoraConfig(**ALL),
            "the base model 'llama4_text' cannot run with LoraConfig",
            "down_proj, gate_proj",
        ),
        ("phimoe", LoraConfig(**ALL), "the base model 'phimoe' cannot run with LoraConfig", "k_proj, o_proj, q_proj"),
        ("lfm2", PrefixTuningConfig(num_virtual_tokens=3), "Cannot get conv state for non linear attention", "in_proj"),
        ("llama", VBLoRAConfig(target_modules=["q_proj"]), "must be divisible by `vector_length` 256", "down_proj"),
        ("llama", BOFTConfig(target_modules=["q_proj"], boft_block_size=5), "must be divisible by boft_block_size", ""),
    ],
)
def test_the_reason_is_pefts_and_the_targets_work(name, config, reason, targets):
    said = refusal(name, config)
    assert reason in said
    assert targets in said
    found = re.search(r"target_modules: \[(.*)\]`\.$", said)
    assert found, said
    works = LoraConfig(target_modules=found[1].split(", "))
    require_answer(attach_adapter(tiny(name), works))


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("llama", PolyConfig(target_modules=["q_proj"]), "PolyConfig needs the number of a task .*LoraConfig does not"),
        ("llama", MultitaskPromptTuningConfig(num_virtual_tokens=3), "needs the number of a task .*PromptTuningConfig"),
        ("llama", LoraConfig(target_modules=["q_proj"], lora_alpha=0), "`lora_alpha: 0` cannot be .* number above 0"),
        ("llama", LoHaConfig(target_modules=["q_proj"], alpha=0), "`alpha: 0` cannot be trained.* number above 0"),
        ("llama", XLoraConfig(hidden_size=32), "XLoraConfig mixes LoRA adapters that were trained before"),
        ("llama", LoraConfig(target_modules=["q_proj"], inference_mode=True), "`inference_mode: true` trains nothing"),
        ("llama", LoraConfig(target_modules=["q_proj"], init_lora_weights="eva"), "needs directions that are found"),
        *(
            ("llama", LoraConfig(target_modules=["embed_tokens", *others], init_lora_weights=start), said)
            for start, others, said in (
                (
                    "gaussian",
                    ["q_proj"],
                    "`init_lora_weights: gaussian` for an embedding layer, and would start model.emb",
                ),
                ("orthogonal", ["q_proj"], "PEFT has no `init_lora_weights: orthogonal` for an embedding layer"),
                ("nonsense", [], "PEFT has no `init_lora_weights: nonsense` for an embedding layer"),
            )
        ),
        ("llama", LoraConfig(target_modules=["q_proj"], task_type="SEQ_CLS"), "`task_type` must be CAUSAL_LM"),
        ("llama", IA3Config(target_modules=["nope"], feedforward_modules=[]), "matches no module of the base model"),
        ("llama", LoraConfig(target_modules=["q_proj"], r=10**9), "more than four times the base model's"),
        ("llama", LoraConfig(target_modules="(q_proj"), "missing \\), unterminated subpattern"),
        (
            "llama",
            VBLoRAConfig(target_modules=["q_proj"], vector_length=16, num_vectors=8, save_only_topk_weights=True),
            "trains .*vblora_logits.*, which PEFT neither saves nor exports",
        ),
        (
            "llama",
            CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[1, 2], cpt_tokens_type_mask=[1, 4]),
            "has answers inside the prompt",
        ),
        ("mixtral", LoraConfig(**ON_EXPERTS, lora_dropout=0.1), "lora.ParamWrapper does not work with lora_dropout"),
        ("mixtral", LoraConfig(**ON_EXPERTS, use_dora=True), "lora.ParamWrapper does not work with use_dora"),
        ("mixtral", LoraConfig(**ON_EXPERTS, lora_bias=True), "lora.ParamWrapper does not work with lora_bias"),
        *(
            ("gpt2", config, r"OSFConfig trains nothing in this model. What works here: LoraConfig with `target_mod")
            for config in of_this_peft("OSFConfig", **ALL)
        ),
        *(("llama", config, "`auxiliary_loss_weight: 0.05`.*set it to 0") for config in of_this_peft("ShadowConfig")),
        *(
            ("llama", LoraConfig(target_modules=["q_proj"], monteclora_config=config), "adds a variational loss")
            for config in of_this_peft("MontecloraConfig")
        ),
    ],
)
def test_what_cannot_be_trained_says_what_to_do(name, config, said):
    assert re.search(said, refusal(name, config))


def test_a_budget_of_adamss_is_refused_without_its_own_library():
    if not hasattr(peft, "AdamssConfig"):
        pytest.skip("the installed peft has no AdaMSS")
    config = object.__new__(peft.AdamssConfig)  # its constructor asks for scikit-learn
    config.peft_type, config.inference_mode, config.use_asa = peft.PeftType.ADAMSS, False, True
    with pytest.raises(InputError, match=r"`use_asa: True` cannot be trained: it moves its budget of subspaces"):
        attach_adapter(tiny_llama(), config)


def test_what_works_is_left_alone():
    for name, config in (("llama", LoraConfig(**ALL)), ("gpt2", LoraConfig(**ALL)), ("mixtral", LoraConfig(**ALL))):
        require_answer(attach_adapter(tiny(name), config))


@pytest.mark.parametrize("token", [-1, 100_000])
@pytest.mark.parametrize(
    "config",
    [
        lambda token: TrainableTokensConfig(token_indices=[3, token], target_modules=["embed_tokens"]),
        lambda token: LoraConfig(trainable_token_indices={"embed_tokens": [3, token]}),
    ],
)
def test_a_token_that_the_model_does_not_have_is_named(config, token):
    with pytest.raises(InputError, match=f"{token} is no token id of the base model: 0 to "):
        attach_adapter(tiny_llama(), config(token))


def test_no_token_is_refused():
    with pytest.raises(InputError, match=r"`token_indices: \[\]` cannot be trained: it names no token"):
        attach_adapter(tiny_llama(), TrainableTokensConfig(token_indices=[], target_modules=["embed_tokens"]))


def test_an_exception_of_nothing_is_said_and_does_no_harm(caplog):
    model = attach_adapter(
        tiny_llama(), LoraConfig(target_modules=["q_proj"], exclude_modules=["qproj", "0.self_attn.q_proj"])
    )
    assert caplog.messages == ["`peft_config`: `exclude_modules`: 'qproj' names nothing in the base model."]
    adapted = [name for name, _ in model.named_modules() if name.endswith("lora_A")]
    assert len(adapted) == model.config.num_hidden_layers - 1
