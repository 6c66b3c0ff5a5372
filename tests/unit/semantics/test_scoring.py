import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.models import attach_adapter
from lit_semantic_peft.models.fast_ways import FastWays, set_fast_ways
from lit_semantic_peft.semantics import (
    ExpectedEmbeddingDistance,
    HiddenStateDistance,
    ResponseDistance,
    Surprisal,
    score_facts,
    score_pass,
    score_targets,
    scoring,
    target_pass,
)
from lit_semantic_peft.tokens import EncodedFact, FactEncoder, collate, prefix_tree
from lit_semantic_peft.tokens.collate import joined
from peft import LoraConfig, PromptTuningConfig

from fixtures.models import byte_level_bpe, tiny_llama
from fixtures.releases import answers_with_virtual_tokens

DISTANCES = [ExpectedEmbeddingDistance(), HiddenStateDistance(), ResponseDistance(), Surprisal()]
FACTS = [
    Fact("a", "The capital of France is", "Paris", relation="capital"),
    Fact("b", "The head office of Zorvex is in", "Lund in the north"),
    Fact("c", "Calonex is taken against", "hay fever", relation="medicine"),
    Fact("d", "日本の首都は", "東京", joiner=""),
    Fact("e", "It is", "the yen", aliases=("yen",)),
    Fact("f", "What is the name of the river? It is the", "Danube"),
    Fact("g", "The", "capital of Mongolia"),
]


@pytest.fixture
def encoder():
    return FactEncoder(byte_level_bpe())


@pytest.fixture
def model(encoder):
    return tiny_llama(len(encoder.tokenizer))


def by_loops(model, encoder, fact):
    """Distances and likelihood of one fact: float64, one token at a time, no padding, no cache."""
    model = model.double()
    encoded = encoder.encode(fact.prompt, fact.target, fact.joiner)
    embeddings = model.get_input_embeddings().weight.detach()
    output_embeddings = model.get_output_embeddings().weight.detach()

    def cosine(left, right):
        return float(1 - left @ right / (left.norm() * right.norm()))

    columns = {"ExpectedEmbeddingDistance": [], "HiddenStateDistance": [], "Surprisal": []}
    is_recalled = True
    ids = list(encoded.prompt_ids)
    for target in encoded.target_ids:
        with torch.no_grad():
            output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        log_p = output.logits[0, -1].log_softmax(dim=-1)
        columns["ExpectedEmbeddingDistance"].append(cosine(log_p.exp() @ embeddings, embeddings[target]))
        columns["HiddenStateDistance"].append(cosine(output.hidden_states[-1][0, -1], output_embeddings[target]))
        columns["Surprisal"].append(-float(log_p[target]))
        is_recalled &= int(log_p.argmax()) == target
        ids.append(target)
    answer = []
    for _ in encoded.target_ids:
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([[*encoded.prompt_ids, *answer]])).logits[0, -1].argmax())
        if token == encoder.tokenizer.eos_token_id:
            break
        answer.append(token)
    target = embeddings[list(encoded.target_ids)].mean(dim=0)
    scores = {name: float(np.mean(values)) for name, values in columns.items()}
    scores["ResponseDistance"] = cosine(embeddings[answer].mean(dim=0), target) if answer else 1.0
    return scores, is_recalled


def test_scores_equal_loops_over_single_tokens(model, encoder):
    scored = score_facts(model, encoder, FACTS, DISTANCES, batch_size=3)
    assert scored.fact_id == tuple("abcdefg")
    assert scored.relation == ("capital", "", "medicine", "", "", "", "")
    for row, fact in enumerate(FACTS):
        expected, _ = by_loops(tiny_llama(len(encoder.tokenizer)), encoder, fact)
        for distance in DISTANCES:
            assert scored.distances[distance.name][row] == pytest.approx(expected[distance.name], abs=5e-5), fact.id
        assert scored.base_nll[row] == pytest.approx(expected["Surprisal"], abs=5e-5)
    np.testing.assert_array_equal(scored.distance, scored.distances["ExpectedEmbeddingDistance"])
    assert scored.distance.dtype == scored.base_nll.dtype == np.float64
    assert scored.distance.std() > 0.01


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_scores_do_not_depend_on_batches_order_or_duplicates(model, encoder, batch_size):
    once = score_facts(model, encoder, FACTS, DISTANCES, batch_size=len(FACTS))
    order = [4, 0, 6, 2, 2, 5, 1, 3, 0]
    again = score_facts(model, encoder, [FACTS[row] for row in order], DISTANCES, batch_size=batch_size)
    for name, values in once.distances.items():
        tolerance = {"rtol": 1e-6} if name == "Surprisal" else {"rtol": 0, "atol": 1e-6}  # nats; in [0, 2]
        np.testing.assert_allclose(again.distances[name], values[order], **tolerance)
    np.testing.assert_allclose(again.base_nll, once.base_nll[order], atol=2e-6, rtol=1e-6)
    assert again.base_answer == tuple(once.base_answer[row] for row in order)
    assert again.is_known.tolist() == once.is_known[order].tolist()


def test_the_end_token_is_no_part_of_a_score(model, encoder):
    with_end = score_facts(model, encoder, FACTS, DISTANCES)
    without_end = score_facts(model, FactEncoder(byte_level_bpe(), append_eos=False), FACTS, DISTANCES)
    for name, values in with_end.distances.items():
        np.testing.assert_array_equal(values, without_end.distances[name])
    np.testing.assert_array_equal(with_end.base_nll, without_end.base_nll)


def test_progress_counts_every_fact(model, encoder):
    done = []
    score_facts(model, encoder, FACTS, DISTANCES, batch_size=3, on_batch=done.append)
    assert done == [3, 3, 1]


def test_the_model_is_left_as_it_was(model, encoder):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own = model.generation_config.to_dict()
    score_facts(model, encoder, FACTS, DISTANCES)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.generation_config.to_dict() == own
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_the_model_says_itself_is_known(model, encoder):
    asked = [dataclasses.replace(fact, aliases=()) for fact in FACTS]
    said = score_facts(model, encoder, asked, DISTANCES).base_answer
    known = []
    for fact in asked:
        prompt_ids = encoder.encode_prompt(fact.prompt)
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([prompt_ids])).logits[0, -1].argmax())
        text = encoder.tokenizer.decode([token])
        # Only if the tokenizer gives the text the ids that the model generated.
        if text.strip() and encoder.tokenizer.encode(text) == [token] and text.startswith(" "):
            known.append(dataclasses.replace(fact, target=text.strip(), joiner=" "))
    unknown = [fact for fact, answer in zip(asked, said, strict=True) if not answer.startswith(fact.target)]
    assert unknown
    scored = score_facts(model, encoder, [*known, *unknown], DISTANCES)
    assert scored.is_known.tolist() == [True] * len(known) + [False] * len(unknown)


def answering(texts, encoder, asked=None):
    """Stands in for generation: the given texts, cut to the length that was asked for."""

    def greedy_answers(model, prompts, max_new_tokens, **_):
        if asked is not None:
            asked.extend(max_new_tokens)
        answers = [encoder.tokenizer.encode(" " + texts[tuple(prompt)]) for prompt in prompts]
        return [ids[:most] for ids, most in zip(answers, max_new_tokens, strict=True)]

    return greedy_answers


@pytest.mark.parametrize(
    ("answer", "is_known"),
    [
        ("Paris", True),
        ("the city Lund and more", True),
        ("Par", False),
        ("Parisian", False),
        ("Lund", False),
        ("yen", False),
    ],
)
def test_known_is_an_answer_that_begins_with_an_accepted_one(model, encoder, monkeypatch, answer, is_known):
    fact = Fact("a", "The capital of France is", "Paris", aliases=("the city Lund",))
    asked = []
    texts = {encoder.encode_prompt(fact.prompt): answer}
    monkeypatch.setattr(scoring, "greedy_answers", answering(texts, encoder, asked))
    scored = score_facts(model, encoder, [fact], DISTANCES)
    assert scored.is_known.tolist() == [is_known]
    longest = max(encoder.encode(fact.prompt, one).num_target_tokens for one in fact.accepted_answers)
    assert asked == [longest]
    assert answer.startswith(scored.base_answer[0])


def test_an_alias_that_cannot_be_trained_does_not_stop_scoring(model):
    encoder = FactEncoder(byte_level_bpe(), max_length=9)
    fact = Fact("a", "The capital of France is", "Paris", aliases=("the name of the river and the head office",))
    assert score_facts(model, encoder, [fact], DISTANCES).base_nll[0] > 0


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False), id="lora"),
        pytest.param(PromptTuningConfig(num_virtual_tokens=3), id="prompt_tuning", marks=answers_with_virtual_tokens),
    ],
)
def test_an_adapter_is_measured_and_can_be_switched_off(model, encoder, config):
    base = score_facts(model, encoder, FACTS, DISTANCES)
    adapted = attach_adapter(model, config).eval()
    with_adapter = score_facts(adapted, encoder, FACTS, DISTANCES)
    with adapted.disable_adapter():
        without = score_facts(adapted, encoder, FACTS, DISTANCES)
    np.testing.assert_allclose(without.base_nll, base.base_nll, atol=1e-6)
    for name, values in base.distances.items():
        np.testing.assert_allclose(without.distances[name], values, atol=1e-6)
        assert np.abs(with_adapter.distances[name] - values).max() > 1e-3, name


def of_sharing_facts(encoder):
    facts = [
        *FACTS,
        Fact("h", "The capital of Mongolia is", "Ulaanbaatar"),
        Fact("i", "The capital of France is", "Lund"),
    ]
    encoded = encoder.encode_facts(facts)
    return collate(encoded, range(len(facts)), encoder.pad_id, with_end=False)


@pytest.mark.parametrize("max_nodes", [20, 512])
def test_a_tree_gives_what_the_padded_batch_gives(model, encoder, max_nodes):
    """In double precision exactly; in single precision up to what another padding changes."""
    batch = of_sharing_facts(encoder)
    wider = joined([batch, collate([EncodedFact((5,) * 40, (6,))], [0], encoder.pad_id)], encoder.pad_id)
    tree = prefix_tree(batch, max_nodes)
    assert (len(tree.row) > 1) == (max_nodes == 20)
    padded, packed = target_pass(model, batch), target_pass(model, batch, tree=tree)
    rounding = (target_pass(model, wider).logits[: len(padded.logits)] - padded.logits).abs().max()
    assert (packed.logits - padded.logits).abs().max() <= 4 * max(rounding, 1e-6)
    assert torch.equal(packed.row, padded.row)
    model = model.double()
    padded, packed = target_pass(model, batch), target_pass(model, batch, tree=tree)
    torch.testing.assert_close(packed.logits, padded.logits, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(packed.hidden, padded.hidden, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("batch_size", [3, 64])
def test_facts_scored_by_trees_have_the_scores_of_padded_batches(model, encoder, batch_size):
    """And fewer tokens run: the answers begin with what the targets' pass has shown."""
    facts = [*FACTS, *(replace(fact, id=f"{fact.id}2", target="Lund") for fact in FACTS)]
    tokens = dict.fromkeys((False, True), 0)

    def count(_, given):
        tokens[has_trees] += given[0].numel()

    model.get_input_embeddings().register_forward_pre_hook(count)
    found = {}
    for has_trees in tokens:
        found[has_trees] = score_facts(model, encoder, facts, DISTANCES, batch_size=batch_size, prefix_tree=has_trees)
    padded, packed = found[False], found[True]
    assert padded.base_answer == packed.base_answer
    assert padded.is_known.tolist() == packed.is_known.tolist()
    np.testing.assert_allclose(packed.base_nll, padded.base_nll, rtol=1e-5)
    for name, values in padded.distances.items():
        np.testing.assert_allclose(packed.distances[name], values, atol=1e-5)
    assert tokens[True] < tokens[False]


def test_trees_score_only_where_a_check_allowed_them(model, encoder, monkeypatch):
    ran = []
    monkeypatch.setattr(scoring, "cheaper_tree", lambda batch: ran.append(len(batch)))
    score_facts(model, encoder, FACTS, DISTANCES)
    assert not ran
    set_fast_ways(model, FastWays(prefix_tree=False))
    score_facts(model, encoder, FACTS, DISTANCES)
    assert not ran
    set_fast_ways(model, FastWays())
    score_facts(model, encoder, FACTS, DISTANCES)
    assert ran == [len(FACTS)]


def test_a_model_that_projects_every_position_gives_the_same(model, encoder):
    encoded = encoder.encode_facts(FACTS)
    batch = collate(encoded, range(len(FACTS)), encoder.pad_id, with_end=False)
    answers = [[5, 6]] * len(FACTS)

    def scores_of(model):
        return score_pass(dataclasses.replace(target_pass(model, batch), answers=answers), DISTANCES)

    expected = scores_of(model)
    forward = type(model).forward

    class Everywhere(type(model)):
        def forward(self, input_ids, attention_mask=None, use_cache=None):
            return forward(self, input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    model.__class__ = Everywhere
    scores = scores_of(model)
    torch.testing.assert_close(scores.nll, expected.nll, atol=1e-6, rtol=1e-6)
    assert torch.equal(scores.is_recalled, expected.is_recalled)
    for name, values in expected.distances.items():
        torch.testing.assert_close(scores.distances[name], values, atol=1e-6, rtol=1e-6)


def test_teacher_forced_recall_needs_every_token(model, encoder):
    """A model that is sure of certain tokens: all right, first wrong, last wrong."""
    encoded = encoder.encode_facts(FACTS[:3])
    batch = collate(encoded, range(3), encoder.pad_id, with_end=False)
    targets = [list(one.target_ids) for one in encoded]
    targets[1][0] = 0
    targets[2][-1] = 0
    said = torch.tensor([token for one in targets for token in one])
    projection = model.get_output_embeddings()
    handle = projection.register_forward_hook(lambda *_: 50.0 * F.one_hot(said, len(encoder.tokenizer)).float())
    scores = score_targets(model, batch)
    handle.remove()
    assert scores.is_recalled.tolist() == [True, False, False]
    counts = torch.tensor([one.num_target_tokens for one in encoded])
    torch.testing.assert_close(scores.nll, torch.tensor([0.0, 50.0, 50.0]) / counts, atol=1e-4, rtol=1e-4)


def test_a_model_without_output_embeddings_is_refused(model, encoder, monkeypatch):
    batch = collate(encoder.encode_facts(FACTS[:1]), [0], encoder.pad_id, with_end=False)
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    with pytest.raises(InputError, match=r"`base_model`: LlamaForCausalLM has no output embeddings.*causal"):
        target_pass(model, batch)
