import copy
import logging
import os
import weakref

import pytest
import torch
from lit_semantic_peft.adapters import FLoRAConfig, KnowledgeMoEConfig, SubjectLoraConfig
from lit_semantic_peft.interference import gradient_matrix, gradient_sketch, layer_rules, one_backward_per_fact
from lit_semantic_peft.interference.feature_store import OnDisk
from lit_semantic_peft.models.disk_space import DiskSpaceError
from lit_semantic_peft.models.objective import fact_nll
from peft import AdaLoraConfig, IA3Config, LoHaConfig, LoraConfig, PromptTuningConfig
from tiny_models import (
    ARCHITECTURES,
    assert_same,
    batches_of,
    encoded_facts,
    float64_gradients,
    snapshot,
    tiny_llama,
    with_adapter,
)
from torch import nn

FALLBACK = "by one backward per fact"
TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def relative_error(matrix, oracle):
    """Largest error of K_ij in units of ‖g_i‖‖g_j‖, the scale that cosines live on."""
    norm = oracle.diagonal().sqrt()
    return float(((matrix.double() - oracle).abs() / (norm[:, None] * norm[None, :])).max())


ATTENTION_AND_MLP = {
    "llama": (["q_proj", "v_proj", "down_proj"], ["down_proj"]),
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "gpt_neox": (["query_key_value", "dense_4h_to_h"], ["dense_4h_to_h"]),
    "qwen2": (["q_proj", "v_proj", "down_proj"], ["down_proj"]),
}


class Names:
    """Stands for `Anchors`: a prompt's first token is its name."""

    least_similarity = None

    def of_tokens(self, ids):
        return (str(ids[0]),)

    def tokens_of(self, name):
        return (int(name), int(name) - 1)

    def named_tokens(self, ids):
        return tuple(place < 2 for place in range(len(ids)))


def with_names(config):
    config.anchors = Names()
    return config


def fast_config(kind, architecture):
    """The adapters that have rules; LoRA on all linear layers, the others on attention and MLP."""
    targets, feed_forward = ATTENTION_AND_MLP[architecture]
    return {
        "lora": LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", lora_dropout=0.2),
        "rslora": LoraConfig(r=3, use_rslora=True, target_modules="all-linear", lora_dropout=0.2),
        "lora_bias": LoraConfig(r=3, lora_bias=True, target_modules="all-linear"),
        "dora": LoraConfig(r=3, use_dora=True, target_modules=targets, lora_dropout=0.2),
        "flora": FLoRAConfig(r=3, lora_alpha=6, target_modules="all-linear", lora_dropout=0.2),
        "experts": with_names(KnowledgeMoEConfig(r=3, num_experts=4, top_k=2, target_modules="all-linear")),
        "at_names": with_names(SubjectLoraConfig(r=3, target_modules="all-linear", lora_dropout=0.2)),
        "adalora": AdaLoraConfig(init_r=3, target_r=2, total_step=10, target_modules=targets, lora_dropout=0.2),
        "ia3": IA3Config(target_modules=targets, feedforward_modules=feed_forward),
    }[kind]


OTHER = {
    "embedding": LoraConfig(r=3, target_modules=["q_proj", "embed_tokens"]),
    "lm_head": LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "loha": LoHaConfig(r=3, target_modules=TARGETS),
}


@pytest.mark.parametrize("at_init", [False, True], ids=["trained", "at_init"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "kind", ["lora", "rslora", "lora_bias", "dora", "adalora", "ia3", "flora", "experts", "at_names"]
)
def test_hooks_equal_one_float64_backward_per_fact(architecture, kind, at_init, caplog):
    model = with_adapter(ARCHITECTURES[architecture](), at_init=at_init, config=fast_config(kind, architecture)).train()
    facts = encoded_facts(11)
    oracle = float64_gradients(model, facts)
    with caplog.at_level(logging.INFO):
        matrix = gradient_matrix(model, batches_of(facts, 4))
    assert FALLBACK not in caplog.text
    assert matrix.dtype == torch.float32
    assert matrix.device.type == "cpu"
    assert torch.equal(matrix, matrix.T)
    assert relative_error(matrix, oracle @ oracle.T) <= 1e-5


@pytest.mark.parametrize("kind", ["lora", "dora", "adalora"])
def test_on_disk_is_the_same_matrix_and_nothing_is_left(kind, tmp_path):
    model = with_adapter(tiny_llama(), config=fast_config(kind, "llama"))
    batches = batches_of(encoded_facts(7), 3)
    assert torch.equal(gradient_matrix(model, batches, features_folder=tmp_path), gradient_matrix(model, batches))
    assert list(tmp_path.iterdir()) == []
    assert gradient_matrix(model, [], features_folder=tmp_path).shape == (0, 0)


def test_a_full_disk_is_said_before_anything_is_computed(full_disk, tmp_path):
    """A write through a mapping would end the process by a signal instead."""
    with pytest.raises(DiskSpaceError, match=rf"{tmp_path} has no room .* GB .*`--interference.final_facts`"):
        gradient_matrix(with_adapter(tiny_llama()), batches_of(encoded_facts(3), 3), features_folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DiskSpaceError, match=rf"{tmp_path} .*`sketch_size`"):
        gradient_sketch(with_adapter(tiny_llama()), batches_of(encoded_facts(3), 3), tmp_path / "sketch.npy", 64)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot reserve blocks")
def test_a_file_of_gradients_has_its_blocks_before_it_is_written(tmp_path):
    parameters = [nn.Parameter(torch.zeros(100_000))]
    with OnDisk(parameters, 5, tmp_path):
        (file,) = tmp_path.iterdir()
        assert file.stat().st_blocks * 512 >= file.stat().st_size == 4 * 5 * 100_000


def test_a_path_that_is_given_up_half_way_leaves_nothing_in_the_sum(tmp_path, caplog):
    """The generic path starts from zeros, in memory and on disk."""
    model = with_adapter(tiny_llama(), config=copy.deepcopy(OTHER["lm_head"]))
    batches = batches_of(encoded_facts(5), 3)
    slow = one_backward_per_fact(model, batches).double()
    with caplog.at_level(logging.INFO):
        for folder in (None, tmp_path):
            assert relative_error(gradient_matrix(model, batches, folder), slow @ slow.T) <= 1e-5
    assert "lm_head" in caplog.text
    assert "from outside" in caplog.text


def test_ranks_that_adalora_has_taken_away_keep_their_gradients(caplog):
    model = with_adapter(tiny_llama(), config=fast_config("adalora", "llama"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_E" in name:
                parameter[1] = 0
            if "ranknum" in name:
                parameter.fill_(2.0)
    facts = encoded_facts(5)
    oracle = float64_gradients(model, facts)
    with caplog.at_level(logging.INFO):
        matrix = gradient_matrix(model, batches_of(facts, 3))
    assert FALLBACK not in caplog.text
    assert relative_error(matrix, oracle @ oracle.T) <= 1e-5


def test_a_magnitude_of_zero_is_left_to_the_generic_path(caplog):
    model = with_adapter(tiny_llama(), config=fast_config("dora", "llama"))
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "magnitude" in name)[3] = 0
    facts = encoded_facts(4)
    oracle = float64_gradients(model, facts)
    with caplog.at_level(logging.INFO):
        matrix = gradient_matrix(model, batches_of(facts, 2))
    assert FALLBACK in caplog.text
    assert relative_error(matrix, oracle @ oracle.T) <= 1e-5


@pytest.mark.parametrize("kind", OTHER)
def test_other_adapters_fall_back_and_are_exact(kind, caplog):
    model = with_adapter(tiny_llama(), config=copy.deepcopy(OTHER[kind])).train()
    facts = encoded_facts(5)
    oracle = float64_gradients(model, facts)
    with caplog.at_level(logging.INFO):
        matrix = gradient_matrix(model, batches_of(facts, 3))
    assert FALLBACK in caplog.text
    assert relative_error(matrix, oracle @ oracle.T) <= 1e-5


def test_prompt_tuning_works_by_the_generic_path(caplog):
    model = with_adapter(tiny_llama(), config=PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    facts = encoded_facts(3)
    with caplog.at_level(logging.INFO):
        matrix = gradient_matrix(model, batches_of(facts, 2))
    assert FALLBACK in caplog.text
    oracle = []
    for batch in batches_of(facts, 1):
        (gradient,) = torch.autograd.grad(
            fact_nll(model.eval(), batch).sum(), [p for p in model.parameters() if p.requires_grad]
        )
        oracle.append(gradient.flatten().double())
    oracle = torch.stack(oracle)
    assert relative_error(matrix, oracle @ oracle.T) <= 1e-5


def test_a_model_without_adapter_trains_its_linear_layers(caplog):
    model = tiny_llama()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".mlp." in name)
    facts = encoded_facts(4)
    oracle = float64_gradients(model, facts)
    with caplog.at_level(logging.INFO):
        matrix = gradient_matrix(model, batches_of(facts, 4))
    assert FALLBACK not in caplog.text
    assert relative_error(matrix, oracle @ oracle.T) <= 1e-5


def test_the_calls_of_a_shared_layer_add_up(caplog):
    model = tiny_llama()
    model.requires_grad_(False)
    shared = model.model.layers[0].mlp.gate_proj
    model.model.layers[1].mlp.gate_proj = shared
    shared.requires_grad_(True)
    facts = encoded_facts(4)
    oracle = float64_gradients(model, facts)
    with caplog.at_level(logging.INFO):
        matrix = gradient_matrix(model, batches_of(facts, 4))
    assert FALLBACK not in caplog.text
    assert relative_error(matrix, oracle @ oracle.T) <= 1e-5
    assert not shared._forward_hooks


def test_a_weight_that_also_works_elsewhere_is_noticed_by_the_sum(caplog):
    class Leaking(nn.Module):
        """Uses the weight of another layer without calling that layer, as DoRA's norm does."""

        def __init__(self, inner, other):
            super().__init__()
            self.inner, self.others = inner, [other]

        def forward(self, x):
            return self.inner(x) + 0.5 * x @ self.others[0].weight.T

    model = tiny_llama()
    model.requires_grad_(False)
    gate = model.model.layers[0].mlp.gate_proj
    gate.requires_grad_(True)
    model.model.layers[0].mlp.up_proj = Leaking(model.model.layers[0].mlp.up_proj, gate)
    batches = batches_of(encoded_facts(4), 4)
    slow = one_backward_per_fact(model, batches).double()
    with caplog.at_level(logging.INFO):
        matrix = gradient_matrix(model, batches)
    assert "gradient from outside" in caplog.text
    assert relative_error(matrix, slow @ slow.T) <= 1e-5


def test_one_backward_per_fact_gives_the_gradients_themselves():
    model = with_adapter(tiny_llama())
    facts = encoded_facts(5)
    gradients = one_backward_per_fact(model, batches_of(facts, 2))
    oracle = float64_gradients(model, facts)
    assert gradients.shape == (5, sum(p.numel() for p in model.parameters() if p.requires_grad))
    torch.testing.assert_close(gradients.double(), oracle, rtol=1e-4, atol=1e-5 * float(oracle.abs().max()))


def test_micro_batches_and_padding_do_not_matter():
    model = with_adapter(tiny_llama())
    facts = encoded_facts(9)
    reference = gradient_matrix(model, batches_of(facts, 9))
    for size in (1, 2, 5):
        assert relative_error(gradient_matrix(model, batches_of(facts, size)), reference.double()) <= 1e-5
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    shuffled = gradient_matrix(model, batches_of([facts[row] for row in order], 4))
    assert relative_error(shuffled, reference.double()[order][:, order]) <= 1e-5


@pytest.mark.parametrize("config", [None, OTHER["loha"]], ids=["hooks", "one_by_one"])
def test_nothing_is_left_changed(config):
    model = with_adapter(tiny_llama(), config=copy.deepcopy(config)).train()
    model.base_model.model.model.layers[1].eval()  # a mixture of modes must come back as it was
    batches = batches_of(encoded_facts(5), 2)
    fact_nll(model, batches[0]).sum().backward()  # there are gradients to preserve
    before = snapshot(model)
    gradient_matrix(model, batches)
    one_backward_per_fact(model, batches)
    assert_same(before, snapshot(model))


def test_nothing_is_left_changed_after_an_exception(monkeypatch):
    model = with_adapter(tiny_llama()).train()
    before = snapshot(model)

    def broken(model, batch):
        model(input_ids=batch.input_ids)
        torch.rand(3)
        raise RuntimeError("in the middle")

    monkeypatch.setattr("lit_semantic_peft.interference.per_fact_gradients.fact_nll", broken)
    with pytest.raises(RuntimeError, match="in the middle"):
        gradient_matrix(model, batches_of(encoded_facts(3), 2))
    assert_same(before, snapshot(model))


def test_activations_of_a_micro_batch_are_gone_before_the_next(monkeypatch):
    model = with_adapter(tiny_llama())
    held, num_alive = [], []
    outer = layer_rules.outer_products

    def watched(gradient, activation):
        held.append(weakref.ref(activation))  # the tensor that the hook holds, not the layer's argument
        return outer(gradient, activation)

    monkeypatch.setattr(layer_rules, "outer_products", watched)
    with model.register_forward_pre_hook(lambda *_: num_alive.append(sum(one() is not None for one in held))):
        gradient_matrix(model, batches_of(encoded_facts(6), 2))
    assert held
    assert num_alive == [0, 0, 0]


def test_a_run_with_and_without_it_is_the_same_run():
    def run(is_watched):
        model = with_adapter(tiny_llama()).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        batches = batches_of(encoded_facts(8), 4)
        torch.manual_seed(5)  # dropout
        for step in range(6):
            loss = fact_nll(model, batches[step % 2]).mean()
            loss.backward()
            if is_watched:
                gradient_matrix(model, batches)
            optimizer.step()
            optimizer.zero_grad()
        return [parameter.detach().clone() for parameter in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(run(True), run(False), strict=True))


def test_it_works_inside_inference_mode_and_no_grad():
    model = with_adapter(tiny_llama())
    expected = gradient_matrix(model, batches_of(encoded_facts(4), 2))
    with torch.inference_mode():
        batches = batches_of(encoded_facts(4), 2)
        assert batches[0].labels.is_inference()
        assert torch.equal(gradient_matrix(model, batches), expected)
    with torch.no_grad():
        assert torch.equal(gradient_matrix(model, batches_of(encoded_facts(4), 2)), expected)
        assert not torch.is_grad_enabled()


def test_gradient_checkpointing_is_tolerated():
    model = with_adapter(tiny_llama())
    batches = batches_of(encoded_facts(4), 2)
    expected = gradient_matrix(model, batches)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    model.train()
    matrix = gradient_matrix(model, batches)
    assert relative_error(matrix, expected.double()) <= 1e-5


def test_bfloat16_products_are_summed_in_float32():
    model = with_adapter(tiny_llama()).to(torch.bfloat16)
    facts = encoded_facts(6)
    matrix = gradient_matrix(model, batches_of(facts, 3))
    slow = one_backward_per_fact(model, batches_of(facts, 3))
    assert slow.dtype == torch.float32
    oracle = float64_gradients(model, facts)
    oracle = oracle @ oracle.T
    assert relative_error(matrix, oracle) <= 0.1
    assert relative_error((slow @ slow.T), oracle) <= 0.1


def test_the_loss_weight_of_a_fact_does_not_enter():
    model = with_adapter(tiny_llama())
    batches = batches_of(encoded_facts(4), 2)
    expected = gradient_matrix(model, batches)
    batches[0].loss_weight.fill_(7.0)
    assert torch.equal(gradient_matrix(model, batches), expected)


def test_a_gradient_that_is_not_finite_gives_nan_for_its_fact_only():
    model = with_adapter(tiny_llama())
    facts = encoded_facts(5)
    poisoned = 60
    facts[2] = type(facts[2])((poisoned, 3, 4), (5,), (0,))
    for row in (0, 1, 3, 4):
        facts[row] = type(facts[row])(
            *(
                tuple(i % 60 for i in part)
                for part in (facts[row].prompt_ids, facts[row].target_ids, facts[row].end_ids)
            )
        )
    clean = gradient_matrix(model, batches_of(facts, 2))
    model.get_input_embeddings().weight.data[poisoned] = torch.inf
    matrix = gradient_matrix(model, batches_of(facts, 2))
    others = torch.tensor([0, 1, 3, 4])
    assert matrix[2].isnan().all()
    assert matrix[:, 2].isnan().all()
    # tied weights are off in this configuration, so the other facts see nothing of it
    assert relative_error(matrix[others][:, others], clean.double()[others][:, others]) <= 1e-5


def test_one_fact_identical_facts_and_a_fact_without_target():
    model = with_adapter(tiny_llama())
    (fact,) = encoded_facts(1)
    one = gradient_matrix(model, batches_of([fact], 1))
    assert one.shape == (1, 1)
    assert one.item() > 0
    twins = gradient_matrix(model, batches_of([fact, fact], 2))
    torch.testing.assert_close(twins, one.expand(2, 2), rtol=1e-5, atol=0)
    batch = batches_of(encoded_facts(3), 3)[0]
    batch.labels[1] = -100
    matrix = gradient_matrix(model, [batch])
    assert (matrix[1] == 0).all()
    assert matrix[0, 0] > 0
    assert gradient_matrix(model, []).shape == (0, 0)


def test_a_frozen_model_is_refused():
    model = tiny_llama().requires_grad_(False)
    for function in (gradient_matrix, one_backward_per_fact):
        with pytest.raises(ValueError, match="no parameter"):
            function(model, batches_of(encoded_facts(1), 1))
