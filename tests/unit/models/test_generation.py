import pytest
import torch
from architectures import ADAPTERS, ARCHITECTURES, trained
from lit_semantic_peft.models import greedy_answers, greedy_continuations, prompt_cache, target_logits
from lit_semantic_peft.models.library_versions import cache_argument
from lit_semantic_peft.tokens import EncodedFact, collate, prefix_tree

from fixtures.models import VOCABULARY, tiny_gpt2, tiny_llama, tiny_mistral
from fixtures.releases import answers_with_virtual_tokens

VIRTUAL = [
    pytest.param(name, marks=answers_with_virtual_tokens) for name in ("prompt_tuning", "prefix_tuning", "p_tuning")
]
LENGTHS = [3, 11, 1, 6, 6, 2, 9]
MAX_NEW = [5, 2, 8, 1, 5, 3, 8]


def prompts(seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, VOCABULARY, (length,), generator=generator).tolist() for length in LENGTHS]


def by_argmax(model, prompt, max_new_tokens, stop_ids=()):
    """One token after the other, without cache, padding or batch."""
    ids = list(prompt)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in stop_ids:
            break
        ids.append(token)
    return ids[len(prompt) :]


def expected(model, stop_ids=()):
    return [by_argmax(model, prompt, most, stop_ids) for prompt, most in zip(prompts(), MAX_NEW, strict=True)]


@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_equal_one_argmax_after_the_other(architecture, batch_size):
    model = ARCHITECTURES[architecture]()
    answers = greedy_answers(model, prompts(), MAX_NEW, pad_id=0, stop_ids=(), batch_size=batch_size)
    assert answers == expected(model)
    assert [len(answer) for answer in answers] == MAX_NEW


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_stop_before_the_first_of_their_ends(architecture):
    model = ARCHITECTURES[architecture]()
    free = expected(model)
    ends = {answer[place] for place in (1, 3) for answer in free if len(set(answer)) > place}
    stop_ids = sorted(ends)[:2]
    answers = greedy_answers(model, prompts(), MAX_NEW, pad_id=0, stop_ids=stop_ids, batch_size=3)
    assert answers == expected(model, stop_ids)
    assert answers not in (free, expected(model, stop_ids[:1]), expected(model, stop_ids[1:]))


@pytest.mark.parametrize("batch_size", [3, 32])
def test_answers_end_where_the_positions_do(batch_size):
    """In one batch the longest prompt would run on to the longest answer, past the end of a learned table."""
    small = tiny_gpt2(num_positions=14)
    allowed = [min(most, 14 - len(prompt) + 1) for prompt, most in zip(prompts(), MAX_NEW, strict=True)]
    answers = greedy_answers(small, prompts(), MAX_NEW, pad_id=0, stop_ids=(), batch_size=batch_size)
    assert answers == [by_argmax(small, *row) for row in zip(prompts(), allowed, strict=True)]
    assert allowed != MAX_NEW
    cache = read(small, [[*prompt[:-1], 2] for prompt in prompts()])
    assert greedy_continuations(small, cache, range(7), prompts(), MAX_NEW, stop_ids=()) == answers


@pytest.mark.parametrize("adapter", VIRTUAL)
def test_answers_end_before_the_positions_that_virtual_tokens_take(adapter):
    """A model with learned positions has none behind the last: PEFT's three virtual tokens stand on the first ones."""
    small = trained(tiny_gpt2(num_positions=17), ADAPTERS[adapter]())
    allowed = [min(most, 14 - len(prompt) + 1) for prompt, most in zip(prompts(), MAX_NEW, strict=True)]
    answers = greedy_answers(small, prompts(), MAX_NEW, pad_id=0, stop_ids=(), batch_size=3)
    assert [len(answer) for answer in answers] == allowed
    with small.disable_adapter():
        answers = greedy_answers(small, prompts(), MAX_NEW, pad_id=0, stop_ids=(), batch_size=3)
    assert [len(answer) for answer in answers] == MAX_NEW


def test_the_end_token_may_be_the_padding():
    model = tiny_llama()
    end = expected(model)[0][1]
    answers = greedy_answers(model, prompts(), MAX_NEW, pad_id=end, stop_ids=[end], batch_size=4)
    assert answers == expected(model, [end])


@pytest.mark.parametrize("adapter", ["lora", *VIRTUAL])
def test_answers_of_an_adapter_are_its_own(adapter):
    model = trained(tiny_llama(), ADAPTERS[adapter]())
    answers = greedy_answers(model, prompts(), MAX_NEW, pad_id=0, stop_ids=(), batch_size=3)
    assert answers == expected(model)
    assert answers != expected(tiny_llama())
    with model.disable_adapter():
        assert greedy_answers(model, prompts(), MAX_NEW, pad_id=0, stop_ids=()) == expected(tiny_llama())


def test_settings_that_come_with_the_model_do_not_count():
    free = expected(tiny_llama())
    model = tiny_llama()
    model.generation_config.repetition_penalty = 3.0
    model.generation_config.eos_token_id = [1, free[2][2]]
    own = model.generation_config.to_dict()
    assert greedy_answers(model, prompts(), MAX_NEW, pad_id=0, stop_ids=(), batch_size=3) == free
    assert model.generation_config.to_dict() == own
    adapted = trained(model, ADAPTERS["lora"]())
    assert greedy_answers(adapted, prompts(), MAX_NEW, pad_id=0, stop_ids=()) == expected(adapted)
    assert model.generation_config.to_dict() == own


def test_progress_counts_every_prompt():
    done = []
    greedy_answers(tiny_llama(), prompts(), MAX_NEW, pad_id=0, stop_ids=(), batch_size=3, on_batch=done.append)
    assert done == [3, 3, 1]
    assert greedy_answers(tiny_llama(), [], [], pad_id=0, stop_ids=(), on_batch=done.append) == []
    assert sum(done) == len(LENGTHS)


@answers_with_virtual_tokens
def test_with_virtual_tokens_equally_long_prompts_run_together():
    done = []
    model = trained(tiny_llama(), ADAPTERS["prompt_tuning"]())
    greedy_answers(model, prompts(), MAX_NEW, pad_id=0, stop_ids=(), batch_size=3, on_batch=done.append)
    assert done == [1, 1, 2, 1, 1, 1]


def read(model, texts):
    """A cache of the texts in one rectangle, padded on the right."""
    cache = prompt_cache(model)
    input_ids = torch.zeros((len(texts), max(map(len, texts))), dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, text in enumerate(texts):
        input_ids[row, : len(text)] = torch.tensor(text)
        attention_mask[row, : len(text)] = 1
    with torch.no_grad():
        caching = {cache_argument(model): cache, "use_cache": True}
        model(input_ids=input_ids, attention_mask=attention_mask, **caching)
    return cache


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("adapter", ["none", "lora"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_continuations_equal_one_argmax_after_the_other(architecture, adapter, ends):
    model = ARCHITECTURES[architecture]()
    if adapter != "none":
        model = trained(model, ADAPTERS[adapter]())
    beginnings, rows = prompts()[:6], [7, 0, 5, 2, 3, 4]
    texts = prompts(seed=4) + prompts(seed=5)[:1]
    for row, beginning, more in zip(rows, beginnings, [3, 0, 1, 2, 0, 5], strict=True):
        texts[row] = beginning[:-1] + texts[row][:more]  # what follows in the row is not what was said
    texts[rows[2]] = texts[rows[2]] or [2]  # a text of one token has nothing in the cache
    free = [by_argmax(model, *pair) for pair in zip(beginnings, MAX_NEW, strict=False)]
    stop_ids = [next(one[1] for one in free if len(one) > 1 and one[1] != one[0])] if ends else []
    answers = greedy_continuations(model, read(model, texts), rows, beginnings, MAX_NEW[:6], stop_ids=stop_ids)
    assert answers == [by_argmax(model, *pair, stop_ids) for pair in zip(beginnings, MAX_NEW, strict=False)]
    assert (answers != free) == ends


@pytest.mark.parametrize("max_nodes", [512, 14])
def test_continuations_of_a_tree_equal_one_argmax_after_the_other(max_nodes):
    """Rows that begin alike share keys and values; what is continued may end anywhere in its row."""
    model = trained(tiny_llama(), ADAPTERS["lora"]()).eval()
    first, second = prompts()[1], prompts()[3]
    facts = [(first, [5, 6]), (first[:4], [7]), (first[:4], [8, 9, 10]), (second, [11]), (first, [5, 12, 13])]
    batch = collate([EncodedFact(tuple(prompt), tuple(more)) for prompt, more in facts], range(5), 0)
    tree, cache = prefix_tree(batch, max_nodes), prompt_cache(model)
    assert (len(tree.row) > 1) == (max_nodes == 14)
    with torch.no_grad():
        target_logits(model, batch, tree=tree, **{cache_argument(model): cache, "use_cache": True})
    rows = [4, 1, 2, 3, 2]
    said = [[5, 12], [], [8], [], [8, 20]]  # the last one left its target
    beginnings = [[*facts[row][0], *more] for row, more in zip(rows, said, strict=True)]
    answers = greedy_continuations(model, cache, rows, beginnings, MAX_NEW[:5], stop_ids=(), tree=tree)
    assert answers == [by_argmax(model, *pair) for pair in zip(beginnings, MAX_NEW, strict=False)]


def test_nobody_goes_on_from_a_cache_that_lacks_something():
    assert prompt_cache(tiny_mistral(sliding_window=3)) is None
    for adapter in ("prompt_tuning", "prefix_tuning", "p_tuning"):
        model = trained(tiny_llama(), ADAPTERS[adapter]())
        assert prompt_cache(model) is None
        with model.disable_adapter():
            assert prompt_cache(model) is not None
