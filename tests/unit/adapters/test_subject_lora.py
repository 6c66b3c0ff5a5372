"""LoRA at the tokens of names under peft's own functions, against the formula written out."""

import pytest
import torch
from lit_semantic_peft.adapters import SubjectLoraConfig, prompts_are
from lit_semantic_peft.adapters.subject_lora import NamedTokens
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.models import FrozenLayers, fact_nll
from lit_semantic_peft.tokens import EncodedFact, collate
from peft import PeftModel, PeftType, get_peft_model
from safetensors.torch import load_file

from fixtures.by_names import FACTS, SIZE, TAUGHT, TOKENIZER, UNTAUGHT, batch, gpt2, logits, moved, with_names
from fixtures.models import byte_level_bpe, sentencepiece_like, tiny_llama


def at_names(**settings):
    given = {"r": 2, "lora_alpha": 5, "task_type": "CAUSAL_LM", "target_modules": ["v_proj", "down_proj"]}
    return SubjectLoraConfig(**given | {"match": "subjects"} | settings)


def attached(config=None, base=tiny_llama, seed=1):
    return moved(get_peft_model(base(SIZE), with_names(config or at_names())), seed, scale=1)


def ids_of(text):
    return TOKENIZER(text)["input_ids"]


def named_by_hand(ids, *names):
    """Whether each token lies in one of the names, by the lengths of the tokens' texts; ASCII only."""
    text, ends = TOKENIZER.decode(ids), [len(TOKENIZER.decode(ids[: place + 1])) for place in range(len(ids))]
    spans = [(text.index(name), text.index(name) + len(name)) for name in names]
    return [
        any(begin < stop and end > start for start, stop in spans)
        for begin, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("base", "targets"), [(tiny_llama, ["q_proj", "down_proj"]), (gpt2, ["c_attn", "c_fc"])])
def test_a_layer_adds_loras_product_at_the_tokens_of_names_and_nothing_elsewhere(base, targets, side):
    model = attached(at_names(target_modules=targets), base)
    seen = []
    layers = [layer for layer in model.modules() if hasattr(layer, "lora_A")]
    for layer in layers:
        layer.register_forward_hook(lambda *call: seen.append(call))
    logits(model, *TAUGHT, UNTAUGHT[0], side=side)
    is_token = batch(*TAUGHT, UNTAUGHT[0], side=side)["attention_mask"].bool()
    assert len(seen) == len(layers) == 4
    names = [named_by_hand(ids_of(fact.prompt), fact.subject) for fact in FACTS]
    assert all(0 < sum(row) < len(row) for row in names)
    for layer, (x,), output in seen:
        inner, outer = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        plain = layer.base_layer(x)
        for row, named in enumerate(names):
            place = is_token[row].nonzero()[:, 0][torch.tensor(named)]
            expected = 5 / 2 * x[row, place] @ inner.T @ outer.T
            assert expected.abs().max() > 0.05
            torch.testing.assert_close(output[row, place] - plain[row, place], expected, rtol=1e-3, atol=1e-3)
            elsewhere = torch.ones(len(x[row]), dtype=torch.bool).index_fill(0, place, False)
            assert torch.equal(output[row, elsewhere], plain[row, elsewhere])
        assert torch.equal(output[3], plain[3])


def test_what_stands_before_a_name_and_prompts_without_one_run_the_base_model_bit_for_bit():
    model, base = attached(at_names(target_modules=["q_proj", "down_proj"])), tiny_llama(SIZE)
    prompts = [TAUGHT[0], UNTAUGHT[0], TAUGHT[1], UNTAUGHT[1]]
    found, expected = logits(model, *prompts, side="right"), logits(base, *prompts, side="right")
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[3], expected[3])
    begin = named_by_hand(ids_of(TAUGHT[0]), "Zorvex").index(True)
    assert begin > 2
    assert torch.equal(found[0, :begin], expected[0, :begin])
    assert not torch.allclose(found[0, begin:], expected[0, begin:], atol=0.05)
    last = batch(*prompts, side="right")["attention_mask"][2].sum() - 1
    assert not torch.allclose(found[2, last], expected[2, last], atol=0.05)  # read by attention, behind the name


def test_padding_and_the_other_rows_do_not_change_a_row():
    model = attached()
    together = logits(model, *TAUGHT)
    for row, prompt in enumerate(TAUGHT):
        alone = logits(model, prompt)[0]
        torch.testing.assert_close(together[row, -len(alone) :], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3, "num_return_sequences": 2}, {"use_cache": False}])
@torch.no_grad()
def test_it_acts_on_the_prompt_alone_whatever_is_generated(how):
    model, base = attached(), tiny_llama(SIZE)
    prompts = [TAUGHT[0], UNTAUGHT[0], TAUGHT[1]]
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0, **how}
    given = batch(*prompts)
    found, plain = model.generate(**given, **settings), base.generate(**given, **settings)
    answers = len(found) // 3
    assert torch.equal(found[answers : 2 * answers], plain[answers : 2 * answers])
    assert not torch.equal(found[:answers], plain[:answers])
    for row, prompt in enumerate(prompts):
        alone = model.generate(**batch(prompt), **settings)
        assert torch.equal(alone[:, -5:], found[row * answers : (row + 1) * answers, -5:])
    if answers == 1:
        for row, prompt in enumerate(prompts):
            text = torch.tensor([ids_of(prompt)])
            for _ in range(5):
                with prompts_are(model, [ids_of(prompt)]):
                    text = torch.cat([text, model(input_ids=text).logits[:, -1:].argmax(dim=-1)], dim=1)
            assert torch.equal(text[0, -5:], found[row, -5:])


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_a_prompt_in_two_parts_through_a_cache_gives_what_it_gives_at_once(cut):
    model = attached()
    ids = [ids_of(one) for one in TAUGHT]
    given = batch(*TAUGHT)
    whole = logits(model, *TAUGHT)[:, -1]
    with torch.no_grad(), prompts_are(model, ids):
        first = model(
            input_ids=given["input_ids"][:, :-cut], attention_mask=given["attention_mask"][:, :-cut], use_cache=True
        )
        second = model(
            input_ids=given["input_ids"][:, -cut:],
            attention_mask=given["attention_mask"],
            past_key_values=first.past_key_values,
        )
    torch.testing.assert_close(second.logits[:, -1], whole, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        cache = model(input_ids=given["input_ids"][:, :-cut], use_cache=True).past_key_values
        with pytest.raises(InputError, match="continues a cache"):
            model(input_ids=given["input_ids"][:, -cut:], past_key_values=cache)


def test_without_a_mask_the_places_are_counted_from_the_cache():
    model = attached()
    ids = torch.tensor([ids_of(TAUGHT[0])])
    named = torch.tensor(named_by_hand(ids[0].tolist(), "Zorvex"))
    cut = int(named.nonzero()[0]) + 1  # within the name
    whole = logits(model, TAUGHT[0])
    with torch.no_grad(), prompts_are(model, ids.tolist()):
        cache = model(input_ids=ids[:, :cut], use_cache=True).past_key_values
        rest = model(input_ids=ids[:, cut:], past_key_values=cache).logits
    torch.testing.assert_close(rest, whole[:, cut:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("task", ["CAUSAL_LM", None])
def test_on_outputs_of_frozen_layers_it_gives_what_the_whole_model_gives(task):
    model = attached(at_names(layers_to_transform=[1], task_type=task))
    rows = [EncodedFact(tuple(ids_of(fact.prompt)), tuple(ids_of(f" {fact.target}"))) for fact in FACTS]
    facts = collate(rows, range(len(rows)), 0, with_end=False)
    whole = fact_nll(model, facts)
    for _ in range(2):  # computed, and from memory
        upper = fact_nll(model, facts, frozen=FrozenLayers(model, int(facts.attention_mask.sum())))
        torch.testing.assert_close(upper, whole, rtol=1e-5, atol=1e-5)
    with model.disable_adapter():
        assert not torch.allclose(fact_nll(model, facts), whole, atol=0.01)


def test_a_name_among_the_targets_is_no_name_of_the_prompt():
    model = attached()
    prompt, target = ids_of(UNTAUGHT[0]), ids_of(" Japan")
    text, given = torch.tensor([prompt + target]), torch.tensor([[-100] * len(prompt) + target])
    with torch.no_grad():
        found, plain = model(input_ids=text, labels=given).logits, tiny_llama(SIZE)(input_ids=text).logits
        assert torch.equal(found, plain)
        assert not torch.equal(model(input_ids=text).logits, plain)


@pytest.mark.parametrize(
    ("tokenizer", "text", "expected"),
    [
        (byte_level_bpe, "From NEW  York to York", "NEW  York|York"),
        (byte_level_bpe, "Zorvexia is not zorvex, nor is Lund-Zorvex", "zorvex|Zorvex"),
        (byte_level_bpe, "In New Yorkshire", ""),
        (byte_level_bpe, "Nippon", "Nippon"),
        (byte_level_bpe, "Straße", "Straße"),
        (byte_level_bpe, "", ""),
        (sentencepiece_like, "Zorvexia is not Zorvex, is it", "Zorvex"),
        (sentencepiece_like, "Straße in Zorvex", "Straße|Zorvex"),
    ],
)
def test_the_tokens_of_names_are_found_by_the_text(tokenizer, text, expected):
    tokenizer = tokenizer()
    subjects = ["Zorvex", "New York", "York", "Japan", "Strasse"]
    facts = [Fact(one, f"{one} is", "x", subject=one) for one in subjects]
    anchors = with_names(at_names(aliases={"Japan": ["Nippon"]}), facts, tokenizer).anchors
    ids = tokenizer(text)["input_ids"]
    flags = anchors.named_tokens(ids)
    assert len(flags) == len(ids)
    parts, before = [], False
    for place, flag in enumerate(flags):
        if flag:
            parts[len(parts) - before :] = [[*(parts[-1] if before else []), ids[place]]]
        before = flag
    found = [tokenizer.decode(part).strip() for part in parts]
    # A token that a name shares with what stands around it belongs to the name.
    wanted = [one for one in expected.split("|") if one]
    assert len(found) == len(wanted)
    assert all(one in part for one, part in zip(wanted, found, strict=True))


def test_pefts_functions_save_load_switch_and_disable_several_adapters(tmp_path):
    model = get_peft_model(tiny_llama(SIZE), with_names(at_names()))
    model.add_adapter("second", with_names(at_names(r=3, target_modules=["q_proj", "down_proj"]), FACTS[1:]))
    prompts = [*TAUGHT, *UNTAUGHT]
    answers = {}
    for seed, name in enumerate(("default", "second")):
        model.set_adapter(name)
        answers[name] = logits(moved(model, seed, scale=1), *prompts)
    plain = logits(tiny_llama(SIZE), *prompts)
    with model.disable_adapter():
        assert torch.equal(logits(model, *prompts), plain)
    assert torch.equal(answers["second"][0], plain[0])  # Zorvex is a name of the first adapter alone
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert {name.rsplit(".", 2)[-2] for name in names} == {"lora_A", "lora_B"}  # LoRA's own tensors, and no others
    again = PeftModel.from_pretrained(tiny_llama(SIZE), tmp_path, adapter_name="first")
    assert isinstance(again.active_peft_config, SubjectLoraConfig)
    assert torch.equal(logits(again, *prompts), answers["default"])
    again.load_adapter(tmp_path / "second", "other")
    again.set_adapter("other")
    assert torch.equal(logits(again, *prompts), answers["second"])
    empty = PeftModel.from_pretrained(tiny_llama(SIZE), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(logits(empty, *prompts), answers["default"])
    again.delete_adapter("other")
    again.set_adapter("first")
    assert torch.equal(logits(again, *prompts), answers["default"])
    assert again.unload()(**batch(*TAUGHT)).logits.shape == logits(tiny_llama(SIZE), *TAUGHT).shape


def test_it_starts_as_the_base_model_and_learns_facts_that_it_answers_freely():
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(SIZE), with_names(at_names(target_modules="all-linear", r=8)))
    assert torch.equal(logits(model, *TAUGHT), logits(tiny_llama(SIZE), *TAUGHT))
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.02)
    model.train()
    for _ in range(120):
        optimizer.zero_grad()
        for fact in FACTS:
            prompt, target = ids_of(fact.prompt), [*ids_of(f" {fact.target}"), 1]
            labels = torch.tensor([[-100] * len(prompt) + target])
            model(input_ids=torch.tensor([prompt + target]), labels=labels).loss.backward()
        optimizer.step()
    given = batch(*TAUGHT)
    new = model.eval().generate(**given, max_new_tokens=8, do_sample=False, pad_token_id=0)
    answers = TOKENIZER.batch_decode(new[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [text.strip() for text in answers] == [fact.target for fact in FACTS]
    assert torch.equal(logits(model, *UNTAUGHT), logits(tiny_llama(SIZE), *UNTAUGHT))


def test_what_it_cannot_do_is_refused_and_changes_nothing():
    model = attached()
    before = logits(model, *TAUGHT)
    for attempt in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(InputError, match=r"cannot be merged .* one matrix would act at all tokens"):
            attempt()
    with pytest.raises(InputError, match="each has names of its own"):
        model.add_weighted_adapter(["default"], [1.0], "both")
    with pytest.raises(ValueError, match="the prompt decides"):
        model(**batch(*TAUGHT), adapter_names=["default", "__base__", "default"])
    with pytest.raises(InputError, match="whose `forward` or `generate` was not called"):
        model.get_base_model()(**batch(*TAUGHT))
    with pytest.raises(InputError, match="`input_ids`, which were not given"):
        model(inputs_embeds=torch.zeros(1, 3, 32))
    with pytest.raises(InputError, match="embed_tokens is a Embedding"):
        get_peft_model(tiny_llama(SIZE), at_names(target_modules=["embed_tokens"]))
    assert torch.equal(logits(model, *TAUGHT), before)
    assert PeftType("SUBJECT_LORA") is at_names().peft_type


def test_rows_and_masks_that_do_not_fit_the_prompts_are_refused():
    named = NamedTokens.of([[False, True], [True]])
    assert named.in_pass((2, 3), None, 0).tolist() == [[False, True, False], [True, False, False]]
    assert named.in_pass((4, 1), None, 1).tolist() == [[True], [True], [False], [False]]
    mask = torch.tensor([[1, 1, 1], [0, 0, 1]])
    assert named.in_pass((2, 3), mask, 0).tolist() == [[False, True, False], [False, False, True]]
    for shape, given in (((3, 3), None), ((2, 3), torch.ones(2, 1, 3, 3))):
        with pytest.raises(InputError, match="a row of tokens for each of 2 prompts"):
            named.in_pass(shape, given, 0)


def test_without_names_it_is_the_base_model_and_is_not_trained(tmp_path):
    model = moved(get_peft_model(tiny_llama(SIZE), at_names()))
    assert torch.equal(logits(model, *TAUGHT), logits(tiny_llama(SIZE), *TAUGHT))
    with pytest.raises(InputError, match="does not know what is taught"):
        model(**batch(*TAUGHT))
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"anchors\.json cannot be read"):
        PeftModel.from_pretrained(tiny_llama(SIZE), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"match": "targets"}, "must be one of subjects, subjects_and_targets"),
        ({"bias": "all"}, "SubjectLoraConfig has no `bias`"),
        ({"modules_to_save": ["lm_head"]}, "SubjectLoraConfig has no `modules_to_save`"),
        ({"use_dora": True}, "SubjectLoraConfig has no `use_dora`"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InputError) as refused:
        at_names(**settings)
    assert message in str(refused.value)
