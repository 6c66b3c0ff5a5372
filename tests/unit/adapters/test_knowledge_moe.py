"""Experts routed by anchors under peft's own functions, against the formula written out."""

import pytest
import torch
from lit_semantic_peft.adapters import Anchors, KnowledgeMoEConfig, prompts_are
from lit_semantic_peft.adapters.routing import names_in, prompts_of
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact
from peft import PeftModel, PeftType, get_peft_model
from torch import nn

from fixtures.by_names import FACTS, SIZE, TAUGHT, TOKENIZER, UNTAUGHT, batch, gpt2, logits, moved, with_names
from fixtures.models import byte_level_bpe, sentencepiece_like, tiny_llama


def experts(**settings):
    given = {"r": 2, "num_experts": 3, "lora_alpha": 5, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
    return KnowledgeMoEConfig(**given | settings)


def attached(config=None, base=tiny_llama, seed=1):
    return moved(get_peft_model(base(SIZE), with_names(config or experts())), seed)


def written_out(layer, config, x, anchor):
    """What a layer adds to a row of tokens, expert by expert, `(T, out)`."""
    inner, outer = layer.lora_A["default"], layer.lora_B["default"].weight
    a = anchor / anchor.square().mean().sqrt()
    added = []
    for token in x:
        state = token / token.square().mean().sqrt()
        gates = (inner.router @ state + inner.anchor_router @ a).softmax(dim=0)
        total = torch.zeros(len(outer))
        for expert in gates.sort(descending=True).indices[: config.top_k].tolist():
            rank = slice(expert * config.r, (expert + 1) * config.r)
            total = total + gates[expert] * (outer[:, rank] @ (inner.weight[rank] @ token))
        added.append(config.lora_alpha / config.r * total)
    return torch.stack(added)


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize(("base", "targets"), [(tiny_llama, ["q_proj", "down_proj"]), (gpt2, ["c_attn", "c_fc"])])
def test_a_layer_adds_the_chosen_experts_by_their_gates(base, targets, top_k):
    config = experts(top_k=top_k, target_modules=targets)
    model = attached(config, base)
    seen = []
    layers = [layer for layer in model.modules() if hasattr(layer, "lora_A")]
    for layer in layers:
        layer.register_forward_hook(lambda *call: seen.append(call))
    logits(model, *TAUGHT, UNTAUGHT[0])
    is_token = batch(*TAUGHT, UNTAUGHT[0])["attention_mask"].bool()
    assert len(seen) == len(layers) == 4
    anchors = []
    for fact in FACTS:
        name = TOKENIZER(f" {fact.subject}", return_tensors="pt")["input_ids"][0]
        anchors.append(model.get_input_embeddings()(name).mean(dim=0))
    for layer, (x,), output in seen:
        for row, anchor in enumerate(anchors):
            added = (output[row] - layer.base_layer(x)[row])[is_token[row]]
            expected = written_out(layer, config, x[row][is_token[row]], anchor)
            assert expected.abs().max() > 0.05
            torch.testing.assert_close(added, expected, rtol=1e-3, atol=1e-3)
        assert torch.equal(output[3], layer.base_layer(x)[3])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_that_names_nothing_runs_the_base_model_bit_for_bit_in_any_batch(side):
    model, base = attached(experts(target_modules=["q_proj", "down_proj"])), tiny_llama(SIZE)
    for prompts in ([TAUGHT[0], UNTAUGHT[0], TAUGHT[1], UNTAUGHT[1]], UNTAUGHT, UNTAUGHT[:1]):
        found, expected = logits(model, *prompts, side=side), logits(base, *prompts, side=side)
        for row, prompt in enumerate(prompts):
            assert torch.equal(found[row], expected[row]) == (prompt in UNTAUGHT), prompt
            if prompt in TAUGHT:
                assert not torch.allclose(found[row], expected[row], atol=0.05)


def test_padding_and_the_other_rows_do_not_change_a_row():
    model = attached()
    together = logits(model, *TAUGHT)
    for row, prompt in enumerate(TAUGHT):
        alone = logits(model, prompt)[0]
        torch.testing.assert_close(together[row, -len(alone) :], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3, "num_return_sequences": 2}, {"use_cache": False}])
@torch.no_grad()
def test_new_tokens_keep_the_experts_of_the_prompt(how):
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
    if not how:  # greedy: the prompt's own experts over all of the text, whatever it names by then
        for row, prompt in enumerate(prompts):
            ids = TOKENIZER(prompt)["input_ids"]
            text = torch.tensor([ids])
            for _ in range(5):
                with prompts_are(model, [ids]):
                    text = torch.cat([text, model(input_ids=text).logits[:, -1:].argmax(dim=-1)], dim=1)
            assert torch.equal(text[0, -5:], found[row, -5:])


def test_a_pass_that_continues_a_cache_must_be_told_its_prompt():
    model = attached()
    ids = TOKENIZER(TAUGHT[0], return_tensors="pt")["input_ids"]
    whole = logits(model, TAUGHT[0])
    with torch.no_grad():
        cache = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
        with pytest.raises(InputError, match="continues a cache"):
            model(input_ids=ids[:, -1:], past_key_values=cache)
        with prompts_are(model, ids.tolist()):
            last = model(input_ids=ids[:, -1:], past_key_values=cache).logits
    torch.testing.assert_close(last[:, -1], whole[:, -1], rtol=1e-4, atol=1e-4)


def test_what_follows_the_first_label_is_no_prompt():
    ids = torch.tensor([[0, 5, 6, 7, 8], [4, 5, 6, 7, 8]])
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    labels = torch.tensor([[-100, -100, -100, 7, 8], [-100, 5, 6, 7, 8]])
    assert prompts_of(ids, mask, labels) == [[5, 6], [4, 5, 6, 7, 8]]  # the second is text: a start token, no prompt
    assert prompts_of(ids, mask, None) == [[5, 6, 7, 8], [4, 5, 6, 7, 8]]
    # A target that is itself a taught name changes no expert of the prompt, and opens none.
    model = attached()
    prompt, target = (TOKENIZER(text)["input_ids"] for text in (UNTAUGHT[0], " Japan"))
    text = torch.tensor([prompt + target])
    given = torch.tensor([[-100] * len(prompt) + target])
    with torch.no_grad():
        found, plain = model(input_ids=text, labels=given).logits, tiny_llama(SIZE)(input_ids=text).logits
        assert torch.equal(found, plain)
        assert not torch.equal(model(input_ids=text).logits, plain)


@pytest.mark.parametrize("aliases", [{"Japan": ["ZORVEX"]}, {"Japan": ["Land"], "Zorvex": ["land"]}])
def test_an_alias_of_two_subjects_is_refused(aliases):
    with pytest.raises(InputError, match="too, so that a prompt with it has no one subject"):
        with_names(experts(aliases=aliases))


def test_a_prompt_of_several_names_has_the_mean_of_all_their_tokens_and_an_alias_that_of_its_subject():
    config = with_names(experts(aliases={"Japan": ["Nippon"]}))
    assert config.anchors.of_tokens(TOKENIZER("Zorvex in NIPPON, zorvex")["input_ids"]) == ("Zorvex", "Japan")
    model = attached(experts(aliases={"Japan": ["Nippon"]}))
    rows = []
    model.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].register_forward_hook(
        lambda layer, *_: rows.append(layer.routing.rows["default"])
    )
    logits(model, "Nippon", "Japan and Zorvex")
    embed = model.get_input_embeddings()
    japan, zorvex = (embed(TOKENIZER(f" {name}", return_tensors="pt")["input_ids"][0]) for name in ("Japan", "Zorvex"))
    torch.testing.assert_close(rows[0].anchor, torch.stack([japan.mean(dim=0), torch.cat([japan, zorvex]).mean(dim=0)]))


def test_a_prompt_without_a_name_may_have_the_most_similar_one_by_a_threshold(tmp_path):
    config = with_names(experts(least_similarity=0.7, aliases={"Japan": ["Nippon"]}))
    model = moved(get_peft_model(tiny_llama(SIZE), config))
    embed, anchors = model.get_input_embeddings(), config.anchors
    near = TOKENIZER("It is Zorvex")["input_ids"][:-1]  # without the last token of the name
    assert anchors.of_tokens(near) == ()
    best = {}
    for name in anchors.table.names:  # written out, window by window
        ids = anchors.tokens_of(name)
        vector = embed(torch.tensor(ids)).mean(dim=0)
        windows = [embed(torch.tensor(near[at : at + len(ids)])).mean(dim=0) for at in range(len(near) - len(ids) + 1)]
        best[name] = max((float(torch.cosine_similarity(one, vector, dim=0)) for one in windows), default=-1.0)
    name = max(best, key=best.get)
    for least, expected in ((best[name] - 0.01, (anchors.same_as.get(name, name),)), (best[name] + 0.01, ())):
        other = Anchors(anchors.table, anchors.tokenizer, anchors.same_as, least)
        assert names_in(near, other, embed) == expected
        assert names_in(TOKENIZER(TAUGHT[1])["input_ids"], other, embed) == (
            "Calonex",
        )  # what is named is not searched
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_llama(SIZE), tmp_path)
    assert again.active_peft_config.anchors.least_similarity == 0.7
    assert torch.equal(logits(again, "It is Zorv"), logits(model, "It is Zorv"))


@pytest.mark.parametrize("tokenizer", [byte_level_bpe, sentencepiece_like])
def test_names_are_found_in_tokens_of_any_tokenizer(tokenizer):
    tokenizer = tokenizer()
    facts = [FACTS[0], Fact.from_json({"id": "9", "prompt": "Die Straße heißt", "target": "Weg", "subject": "Straße"})]
    anchors = with_names(experts(), facts, tokenizer).anchors
    assert anchors.of_tokens(tokenizer("Die Straße in Zorvex, naïve Zorvex")["input_ids"]) == ("Straße", "Zorvex")
    assert anchors.of_tokens(tokenizer("Zorvexa")["input_ids"]) == ()


def test_pefts_functions_save_load_switch_and_disable_several_adapters(tmp_path):
    model = get_peft_model(tiny_llama(SIZE), with_names(experts()))
    second = with_names(experts(r=3, num_experts=2, top_k=2, target_modules=["q_proj", "down_proj"]), FACTS[1:])
    model.add_adapter("second", second)
    prompts = [*TAUGHT, *UNTAUGHT]
    answers = {}
    for seed, name in enumerate(("default", "second")):
        model.set_adapter(name)
        answers[name] = logits(moved(model, seed), *prompts)
    plain = logits(tiny_llama(SIZE), *prompts)
    with model.disable_adapter():
        assert torch.equal(logits(model, *prompts), plain)
    assert torch.equal(answers["second"][0], plain[0])  # Zorvex is a name of the first adapter alone
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_llama(SIZE), tmp_path, adapter_name="first")
    assert isinstance(again.active_peft_config, KnowledgeMoEConfig)
    assert torch.equal(logits(again, *prompts), answers["default"])
    again.load_adapter(tmp_path / "second", "other")
    again.set_adapter("other")
    assert torch.equal(logits(again, *prompts), answers["second"])
    empty = PeftModel.from_pretrained(tiny_llama(SIZE), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(logits(empty, *prompts), answers["default"])
    again.delete_adapter("other")
    again.set_adapter("first")
    assert torch.equal(logits(again, *prompts), answers["default"])
    assert {path.suffix for path in tmp_path.iterdir() if path.is_file()} == {".json", ".safetensors", ".md"}


def test_the_router_is_noisy_in_training_alone_and_at_most_k_experts_act():
    model = attached(experts(router_noise=0.5, top_k=2, num_experts=4))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"]
    x, anchor = torch.randn(2, 5, 32), torch.randn(2, 32)
    quiet, chosen = layer.gates(x, anchor)
    assert torch.equal(layer.gates(x, anchor)[0], quiet)
    assert torch.equal(chosen.sum(dim=-1), torch.full((2, 5), 2))
    assert bool((quiet.masked_fill(~chosen, 1).amin(dim=-1) >= quiet.masked_fill(chosen, 0).amax(dim=-1)).all())
    layer.train()
    noisy = [layer.gates(x, anchor)[0].log() for _ in range(200)]
    assert not torch.equal(noisy[0], noisy[1])
    # The differences of two log probabilities have the noise of two logits, σ√2.
    spread = torch.stack([one[..., 0] - one[..., 1] for one in noisy]).std(dim=0).mean()
    assert float(spread) == pytest.approx(0.5 * 2**0.5, rel=0.1)


def test_merging_and_adding_up_are_refused_and_change_nothing():
    model = attached()
    before = logits(model, *TAUGHT)
    for attempt in (model.merge_and_unload, model.merge_adapter, lambda: model.merge_and_unload(safe_merge=True)):
        with pytest.raises(InputError, match=r"cannot be merged .* depends on the prompt"):
            attempt()
    with pytest.raises(InputError, match="each has names of its own"):
        model.add_weighted_adapter(["default"], [1.0], "both")
    with pytest.raises(ValueError, match="the prompt decides"):
        model(**batch(*TAUGHT), adapter_names=["default", "__base__", "default"])
    assert torch.equal(logits(model, *TAUGHT), before)


def test_it_starts_as_the_base_model_and_learns_facts_that_it_answers_freely():
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(SIZE), with_names(experts(target_modules=["q_proj", "v_proj", "down_proj"])))
    assert torch.equal(logits(model, *TAUGHT), logits(tiny_llama(SIZE), *TAUGHT))
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    ids = [[*TOKENIZER(fact.prompt)["input_ids"], *TOKENIZER(f" {fact.target}")["input_ids"], 1] for fact in FACTS]
    lengths = [len(TOKENIZER(fact.prompt)["input_ids"]) for fact in FACTS]
    model.train()
    for _ in range(30):
        optimizer.zero_grad()
        for row, length in zip(ids, lengths, strict=True):
            labels = torch.tensor([[-100] * length + row[length:]])
            model(input_ids=torch.tensor([row]), labels=labels).loss.backward()
        assert all(one.grad is not None for one in trained)
        optimizer.step()
    model.eval()
    given = batch(*TAUGHT)
    new = model.generate(**given, max_new_tokens=8, do_sample=False, pad_token_id=0)[:, given["input_ids"].shape[1] :]
    assert [text.strip() for text in TOKENIZER.batch_decode(new, skip_special_tokens=True)] == [
        fact.target for fact in FACTS
    ]


def test_without_names_it_is_the_base_model_and_is_not_trained(tmp_path):
    model = moved(get_peft_model(tiny_llama(SIZE), experts()))
    assert torch.equal(logits(model, *TAUGHT), logits(tiny_llama(SIZE), *TAUGHT))
    with pytest.raises(InputError, match="does not know what is taught"):
        model(**batch(*TAUGHT))
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"anchors\.json cannot be read"):
        PeftModel.from_pretrained(tiny_llama(SIZE), tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("anchors.json", "[1]", "cannot be read"),
        ("anchors.json", '{"format": 1, "match": "subjects", "names": [3]}', "no table of a gate"),
        ("anchors.json", '{"format": 1, "match": "subjects", "names": ["A"], "same_as": {"B": 3}}', "`same_as`"),
        ("tokenizer.json", "{}", "is no tokenizer"),
    ],
)
def test_damaged_files_beside_the_adapter_are_refused(tmp_path, file, text, message):
    attached().save_pretrained(tmp_path)
    (tmp_path / file).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        PeftModel.from_pretrained(tiny_llama(SIZE), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_experts": 0}, "`peft_config.num_experts` must be at least 1, got 0"),
        ({"top_k": 4}, "`peft_config.top_k` must be between 1 and num_experts=3, got 4"),
        ({"router_noise": -0.1}, "router_noise` must be at least 0"),
        ({"balance": float("nan")}, "balance` must be at least 0"),
        ({"least_similarity": 1.5}, "least_similarity` must be in (0, 1], got 1.5"),
        ({"match": "targets"}, "must be one of subjects, subjects_and_targets"),
        ({"bias": "all"}, "KnowledgeMoEConfig has no `bias`"),
        ({"modules_to_save": ["lm_head"]}, "KnowledgeMoEConfig has no `modules_to_save`"),
        ({"use_dora": True}, "KnowledgeMoEConfig has no `use_dora`"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InputError) as refused:
        experts(**settings)
    assert message in str(refused.value)


def test_what_has_no_rows_of_tokens_is_refused():
    with pytest.raises(InputError, match="embed_tokens is a Embedding"):
        get_peft_model(tiny_llama(SIZE), experts(target_modules=["embed_tokens"]))
    with pytest.raises(InputError, match="token embeddings, which this base model has not"):
        get_peft_model(nn.Sequential(nn.Linear(3, 3)), KnowledgeMoEConfig(target_modules=["0"]))
    model = attached()
    with pytest.raises(InputError, match="whose `forward` or `generate` was not called"):
        model.get_base_model()(**batch(*TAUGHT))
    with pytest.raises(InputError, match="`input_ids`, which were not given"):
        model(inputs_embeds=torch.zeros(1, 3, 32))
    assert PeftType("KNOWLEDGE_MOE") is experts().peft_type
