import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.models.generation import greedy_answers
from lit_semantic_peft.models.sampling import Sampling, free_samples, sampled_answers
from lit_semantic_peft.semantics import STRATA, ScoringContext, Strata, StrataFilter, strata_of, with_strata
from lit_semantic_peft.tokens import FactEncoder

from fixtures.models import byte_level_bpe, tiny_llama
from unit.semantics.tables import same_in_any_order, table

FACTS = [Fact(f"f{row}", f"The capital of {name} is", "Paris") for row, name in enumerate("ABCDE")]


@pytest.fixture
def context():
    encoder = FactEncoder(byte_level_bpe())
    model = tiny_llama(len(encoder.tokenizer))
    return ScoringContext(lambda: model, encoder, batch_size=3)


def test_each_stratum_by_its_definition(context):
    """Targets are taken from what the model says, so that every stratum occurs."""
    sampling, seed = Sampling(8, temperature=2.0, seed=0), 0
    encoder = context.encoder
    settings = {"pad_id": encoder.pad_id, "stop_ids": encoder.stop_ids}
    prompts = [encoder.encode_prompt(fact.prompt) for fact in FACTS]

    def first_words(answers):
        return [encoder.decode_answer(ids) for ids in answers]

    greedy = greedy_answers(context.model, prompts, [4] * 5, **settings)
    drawn = sampled_answers(context.model, prompts, [4] * 5, sampling, **settings)
    asked = Strata(num_prompts=1, num_shots=0, num_samples=8, temperature=2.0, seed=seed)
    cases = [
        (dataclasses.replace(fact, id=f"{fact.id}-{target}", target=target), encoder.decode_answer(answer))
        for fact, answer, samples in zip(FACTS, greedy, drawn, strict=True)
        for target in sorted({encoder.decode_answer(answer), *first_words(samples), "Ulaanbaatar"} - {""})
    ]
    facts = [fact for fact, _ in cases]
    shares = asked.measure(ScoringContext(lambda: context.model, encoder, batch_size=64), facts)
    limits = [encoder.count_answer_tokens(fact.target, fact.joiner) for fact in facts]
    prompts = [encoder.encode_prompt(fact.prompt) for fact in facts]
    again = sampled_answers(context.model, prompts, limits, sampling, **settings)
    for (fact, answer), samples, share in zip(cases, again, shares, strict=True):
        target = fact.target.casefold()
        right = [encoder.decode_answer(ids).casefold().startswith(target) for ids in samples]
        if sum(right) and answer.casefold().startswith(target):
            assert share[0] == 1.0
    found = set(strata_of(shares))
    assert {"HighlyKnown", "Unknown"} <= found


def test_strata_from_shares():
    shares = np.array([[1.0, 0.0], [0.99, 1.0], [0.0, 0.01], [0.0, 0.0]])
    assert strata_of(shares) == STRATA
    facts = with_strata(table(np.zeros(4)), shares)
    assert facts.take(np.array([2, 0])).stratum == ("WeaklyKnown", "HighlyKnown")


def test_shares_do_not_depend_on_the_batches(context):
    asked = Strata(num_prompts=3, num_shots=2, num_samples=3, temperature=1.0)
    first = asked.measure(context, FACTS)
    other = ScoringContext(lambda: context.model, context.encoder, batch_size=1)
    np.testing.assert_array_equal(asked.measure(other, FACTS), first)


def test_prompts_that_the_model_has_no_positions_for_are_left_out(context):
    long = Fact("long", "The capital of " + "the river " * 30 + "is", "Paris")
    small = FactEncoder(byte_level_bpe(), num_positions=len(context.encoder.encode(long.prompt, long.target)))
    asked = Strata(num_prompts=3, num_shots=1, num_samples=1)
    shares = asked.measure(ScoringContext(lambda: context.model, small, batch_size=3), [long, FACTS[0]])
    bare = Strata(num_prompts=1, num_samples=1).measure(context, [long, FACTS[0]])
    np.testing.assert_array_equal(shares, bare)


def test_prompts_are_bare_then_behind_examples():
    fact = dataclasses.replace(FACTS[0], paraphrases=("The chief town of A is",))
    prompts = Strata(num_prompts=4, num_shots=2).prompts([fact, *FACTS[1:]])
    assert all(len(mine) == 4 for mine in prompts)
    assert prompts[0][:2] == ["The capital of A is", "The chief town of A is"]
    examples, asked = prompts[0][2].rsplit("\n", 1)
    assert asked == "The capital of A is"
    assert len(examples.split("\n")) == 2
    assert "of A is Paris" not in examples
    assert prompts[0][2] != prompts[0][3]
    assert Strata(num_prompts=4, num_shots=0).prompts([fact]) == [prompts[0][:2]]
    assert Strata().prompts(FACTS[:1]) == [["The capital of A is"]]


def test_examples_are_drawn_among_the_other_facts_in_linear_time():
    reads = []

    class Watched(Fact):
        def __getattribute__(self, name):
            reads.append(name)
            return super().__getattribute__(name)

    names = [f"f{row}" for row in range(200)]
    facts = [Watched(name, f"It is {name}", name, relation=str(row % 40 // 38)) for row, name in enumerate(names)]
    prompts = Strata(num_prompts=3, num_shots=9).prompts(facts)
    assert len(reads) < 200 * 100, "each fact was looked at for each fact"
    for row in (0, 38, 117, 199):
        others = [one for one in facts if one.relation == facts[row].relation and one.id != names[row]]
        for number in (1, 2):
            seed = hashlib.sha256(f"0:{names[row]}:{number}".encode()).digest()[:8]
            drawn = np.random.default_rng(int.from_bytes(seed, "big")).choice(len(others), 9, replace=False)
            shown = [f"It is {others[place].target} {others[place].target}" for place in drawn]
            assert prompts[row][number].split("\n") == [*shown, f"It is {names[row]}"]


def test_samples_follow_the_distribution(context):
    prompt = context.encoder.encode_prompt("The capital of France is")
    with torch.no_grad():
        logits = context.model(torch.tensor([prompt])).logits[0, -1]
    p = (logits / 1.5).softmax(dim=-1)
    sampling = Sampling(100, 1.5)
    alone = sampled_answers(context.model, [prompt], [1], sampling, pad_id=0, stop_ids=())[0]
    together = {"temperature": 1.5, "seed": sampling.seed, "pad_id": 0, "stop_ids": (), "batch_size": 500}
    answers = free_samples(context.model, prompt, 3000, 1, **together)
    assert answers[:100] == alone  # the same samples, however they are drawn
    count = torch.bincount(torch.tensor(answers).flatten(), minlength=len(p)).float()
    largest = p.topk(10).indices
    standard_error = (p * (1 - p) / 3000).sqrt()
    assert ((count / 3000 - p).abs() / standard_error)[largest].max() < 4.5


def test_equal_prompts_get_equal_answers_and_seeds_differ(context):
    prompts = [context.encoder.encode_prompt(text) for text in ("It is", "The capital of Japan is the", "It is")]
    settings = {"pad_id": context.encoder.pad_id, "stop_ids": context.encoder.stop_ids}
    state = torch.get_rng_state()
    drawn = sampled_answers(context.model, prompts, [5, 3, 5], Sampling(4, 1.0), **settings)
    assert torch.equal(torch.get_rng_state(), state)
    assert drawn[0] == drawn[2]
    assert len({tuple(ids) for ids in drawn[0]}) > 1
    assert drawn == sampled_answers(context.model, prompts, [5, 3, 5], Sampling(4, 1.0), batch_size=1, **settings)
    assert drawn != sampled_answers(context.model, prompts, [5, 3, 5], Sampling(4, 1.0, seed=1), **settings)
    cold = sampled_answers(context.model, prompts, [5, 3, 5], Sampling(2, 1e-6), **settings)
    greedy = greedy_answers(context.model, prompts, [5, 3, 5], **settings)
    assert cold == [[ids, ids] for ids in greedy]


def test_filter_keeps_named_strata_and_says_what_is_missing():
    facts = table(np.zeros(4), stratum=STRATA)
    assert StrataFilter(["MaybeKnown", "Unknown"]).select(facts).reason == ("highly_known", None, "weakly_known", None)
    assert same_in_any_order(StrataFilter(["Unknown"]), facts)
    with pytest.raises(InputError, match=r"set `data\.selection\.strata`"):
        StrataFilter(["Unknown"]).select(table(np.zeros(2)))
    for strata in ([], ["Known"], list(STRATA)):
        with pytest.raises(InputError, match="`keep_strata`"):
            StrataFilter(strata)
    for settings in ({"num_prompts": 0}, {"num_shots": -1}, {"num_samples": -1}, {"temperature": 0.0}):
        with pytest.raises(InputError, match=f"`{next(iter(settings))}`"):
            Strata(**settings)
