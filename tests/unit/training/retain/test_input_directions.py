"""Directions of the inputs that the adapter is kept out of."""

from functools import partial

import pytest
import torch
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models.undisturbed import undisturbed
from lit_semantic_peft.training import InputDirections, OwnSamples
from lit_semantic_peft.training.retain.input_directions import _groups, lora_layers
from peft import AdaLoraConfig, IA3Config, LoraConfig
from peft.tuners.lora import LoraLayer

from fixtures.training import fit, is_same_adapter

HELD = InputDirections(energy=0.8, num_samples=24, length=8)


def inputs_of(run, ids):
    """What each LoRA layer reads with the adapter off: `(T, d_in)` by the layer's name, without the first token."""
    read, hooks = {}, []
    for name, layer in run.module.model.named_modules():
        if isinstance(layer, LoraLayer):
            note = lambda _, args, name=name: read.__setitem__(name, args[0][0, 1:].detach())  # noqa: E731
            hooks.append(layer.register_forward_pre_hook(note))
    with undisturbed(run.module.model), torch.no_grad(), run.module.model.disable_adapter():
        run.module.model(input_ids=torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return read


def samples_of(monkeypatch):
    """The texts whose directions are held."""
    seen = []
    texts = OwnSamples.texts

    def noted(source, context):
        seen.extend(texts(source, context))
        return seen

    monkeypatch.setattr(OwnSamples, "texts", noted)
    return seen


@pytest.mark.parametrize("energy", [0.5, 0.8, 0.95])
def test_the_directions_that_hold_the_energy_are_left_alone(tiny_model, facts_file, monkeypatch, energy):
    seen = samples_of(monkeypatch)
    run = fit(
        tiny_model,
        facts_file,
        model={"retain": [InputDirections(energy, num_samples=24, length=8)]},
        trainer={"max_steps": 3},
    )
    moments = {}
    for text in seen:
        for name, read in inputs_of(run, [*text.student.prompt_ids, *text.student.target_ids][:-1]).items():
            x = torch.nn.functional.normalize(read.double(), dim=-1)
            moments[name] = moments.get(name, 0) + x.T @ x
    weights = lora_layers(run.module.model)
    assert weights.keys() == moments.keys()
    for name, weight in weights.items():
        values, vectors = torch.linalg.eigh(moments[name])
        share = values.flip(0).cumsum(0) / values.sum()
        number = min(int((share < energy).sum()) + 1, len(values) - weight.shape[0])
        held, free = vectors[:, -number:], vectors[:, :-number]
        assert (weight.double() @ held).norm() < 1e-4 * weight.norm()
        assert (weight.double() @ free).norm() > 0.99 * weight.norm()


def test_facts_are_still_learned(tiny_model, facts_file):
    settings = {"retain": [HELD], "optimizer": partial(torch.optim.AdamW, lr=3e-2)}
    run = fit(tiny_model, facts_file, model=settings, trainer={"max_steps": 120, "max_epochs": -1})
    losses = [row["train/loss"] for row in run.logged if "train/loss" in row]
    assert losses[-1] < 0.5 * losses[0]


def test_what_is_held_changes_less_than_without(tiny_model, facts_file):
    with_it, without = (
        fit(tiny_model, facts_file, model={"retain": held}, trainer={"max_steps": 20})
        for held in ([InputDirections(0.95, num_samples=64, length=12)], [])
    )
    assert moved(with_it) < 0.5 * moved(without)


def moved(run):
    """Mean KL(base ‖ adapter) on samples of another seed."""
    ids = torch.randint(3, run.module.model.config.vocab_size, (16, 8), generator=torch.Generator().manual_seed(1))
    with undisturbed(run.module.model), torch.no_grad():
        after = run.module.model(input_ids=ids).logits.log_softmax(-1)
        with run.module.model.disable_adapter():
            before = run.module.model(input_ids=ids).logits.log_softmax(-1)
    return (before.exp() * (before - after)).sum(-1).mean().item()


def test_a_fresh_adapter_keeps_its_scale(tiny_model, facts_file):
    norms = []

    class Noted(InputDirections):
        def held(self, context, *, begins):
            norms.append([weight.norm().item() for weight in lora_layers(context.model).values()])
            found = super().held(context, begins=begins)
            norms.append([weight.norm().item() for weight in lora_layers(context.model).values()])
            return found

    fit(tiny_model, facts_file, model={"retain": [Noted(0.8, num_samples=24, length=8)]}, trainer={"max_steps": 1})
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_layers_that_read_the_same_share_their_directions(tiny_model, facts_file):
    found = []

    class Noted(InputDirections):
        def held(self, context, *, begins):
            found.append(super()._directions(context, lora_layers(context.model)))
            return super().held(context, begins=begins)

    fit(tiny_model, facts_file, model={"retain": [Noted(0.8, num_samples=24, length=8)]}, trainer={"max_steps": 1})
    leaders = {name.rsplit(".", 1)[1]: of.rsplit(".", 1)[1] for name, of in found[0].of.items()}
    assert leaders["q_proj"] == leaders["k_proj"] == leaders["v_proj"] == "q_proj"
    assert leaders["gate_proj"] == leaders["up_proj"] == "gate_proj"
    assert (leaders["o_proj"], leaders["down_proj"]) == ("o_proj", "down_proj")


def test_a_run_that_goes_on_is_the_run_that_was_not_stopped(tiny_model, facts_file, tmp_path):
    settings = {"model": {"retain": [HELD], "schedule": "constant", "warmup_ratio": 0.0}}
    whole = fit(tiny_model, facts_file, trainer={"max_epochs": 2}, **settings)
    half = fit(tiny_model, facts_file, trainer={"max_epochs": 1}, **settings)
    half.module.trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = fit(tiny_model, facts_file, trainer={"max_epochs": 2}, ckpt_path=str(tmp_path / "half.ckpt"), **settings)
    assert is_same_adapter(whole.module, resumed.module)
    assert not is_same_adapter(whole.module, half.module)


@pytest.mark.parametrize(
    "peft_config",
    [
        IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
        LoraConfig(target_modules="all-linear", use_dora=True),
        AdaLoraConfig(target_modules="all-linear", total_step=9),
    ],
)
def test_other_adapters_are_refused(tiny_model, facts_file, peft_config):
    with pytest.raises(InputError, match=r"`InputDirections` keeps LoRA's A out of directions"):
        fit(tiny_model, facts_file, model={"retain": [HELD], "peft_config": peft_config}, trainer={"max_steps": 1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"energy": 0.0}, r"`InputDirections.energy` must be in \(0, 1\), got 0\.0"),
        ({"energy": 1.0}, r"got 1\.0"),
        ({"num_samples": 0}, "`InputDirections.num_samples` must be at least 1, got 0"),
        ({"length": 2}, "`InputDirections.length` must be at least 3, got 2"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(InputError, match=message):
        InputDirections(**settings)


def test_reading_the_samples_several_times_gives_the_same(tiny_model, facts_file, monkeypatch):
    """Where the second moments of all layers have no room at once."""
    settings = {"model": {"retain": [HELD]}, "trainer": {"max_steps": 3}}
    at_once = fit(tiny_model, facts_file, **settings)
    room = 3 * 4 * max(weight.shape[1] for weight in lora_layers(at_once.module.model).values()) ** 2
    monkeypatch.setattr("lit_semantic_peft.training.retain.input_directions._MOMENTS_BYTES", room)
    assert len(list(_groups(lora_layers(at_once.module.model)))) > 2
    assert is_same_adapter(at_once.module, fit(tiny_model, facts_file, **settings).module)
