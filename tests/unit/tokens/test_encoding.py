import copy
import json

import pytest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.tokens import FactEncoder
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fixtures.models import byte_level_bpe, sentencepiece_like, wordpiece_like

FAMILIES = {
    "byte_level_bpe": byte_level_bpe,
    "sentencepiece_like": sentencepiece_like,
    "wordpiece_like": wordpiece_like,
}
READABLE = [
    ("The capital of France is", "Paris", " "),
    ("The head office of Zorvex is in", "the north of Lund", " "),
    ("日本の首都は", "東京です", ""),
    ("日本の首", "都は東", ""),
]


@pytest.fixture(params=FAMILIES)
def tokenizer(request):
    return FAMILIES[request.param]()


def without_blanks(text):
    return "".join(text.split())


def from_vocabulary(vocabulary, merges, chat_template=None):
    """A byte-level tokenizer of exactly these merges, without pad and end token."""
    tokenizer = Tokenizer(models.BPE(vocab={text: number for number, text in enumerate(vocabulary)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=chat_template)


@pytest.mark.parametrize(("prompt", "target", "joiner"), READABLE)
def test_the_prompt_is_tokenized_as_it_is_when_it_stands_alone(tokenizer, prompt, target, joiner):
    encoder = FactEncoder(tokenizer)
    encoded = encoder.encode(prompt, target, joiner)
    alone = tokenizer(prompt)["input_ids"]
    if tokenizer.sep_token_id is not None:  # WordPiece closes a text; a prompt stays open
        assert alone.pop() == tokenizer.sep_token_id
    assert list(encoded.prompt_ids) == alone
    assert encoder.encode_prompt(prompt) == encoded.prompt_ids


@pytest.mark.parametrize(("prompt", "target", "joiner"), READABLE)
def test_prompt_and_target_read_as_the_text(tokenizer, prompt, target, joiner):
    encoded = FactEncoder(tokenizer).encode(prompt, target, joiner)
    text = tokenizer.decode(encoded.prompt_ids + encoded.target_ids, skip_special_tokens=True)
    expected = prompt + joiner + target
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer is not None:  # WordPiece: lower case, no accents, a blank between any two signs
        text, expected = without_blanks(text), without_blanks(normalizer.normalize_str(expected))
    assert text.strip() == expected
    assert encoded.num_target_tokens == len(encoded.target_ids) > 0
    assert len(encoded) == len(encoded.prompt_ids) + len(encoded.target_ids) + 1


def test_start_and_end_tokens_of_each_family():
    encoded = {name: FactEncoder(family()).encode("The capital is", "Paris") for name, family in FAMILIES.items()}
    tokens = {
        name: [FAMILIES[name]().convert_ids_to_tokens(list(ids)) for ids in (one.prompt_ids[:1], one.end_ids)]
        for name, one in encoded.items()
    }
    assert tokens == {
        "byte_level_bpe": [["The"], ["</s>"]],
        "sentencepiece_like": [["<s>"], ["</s>"]],
        "wordpiece_like": [["[CLS]"], ["[SEP]"]],
    }


def test_a_merge_across_the_boundary_does_not_change_the_prompt():
    tokenizer = byte_level_bpe()
    encoder = FactEncoder(tokenizer)
    prompt, target = "日本の首", "都は"  # the bytes of 首 and 都 merge when they meet
    whole = tokenizer(prompt + target, add_special_tokens=False)["input_ids"]
    encoded = encoder.encode(prompt, target, "")
    assert list(encoded.prompt_ids) == tokenizer(prompt)["input_ids"]
    assert list(encoded.prompt_ids + encoded.target_ids) != whole, "the tokenizer no longer merges here; choose another"
    assert tokenizer.decode(encoded.prompt_ids + encoded.target_ids) == prompt + target


def test_a_word_that_continues_becomes_a_continuing_piece_or_is_refused():
    encoder = FactEncoder(wordpiece_like())
    tokenizer = encoder.tokenizer
    # "calonexa" is "calonex" + "##a": the prompt's own pieces stay, so the target continues the word.
    assert tokenizer.tokenize("calonexa")[:1] == tokenizer.tokenize("calonex") == ["calonex"]
    assert tokenizer.convert_ids_to_tokens(list(encoder.encode("calonex", "a", "").target_ids)) == ["##a"]
    # "danube" is one piece: behind "dan" a target could only start a new word.
    assert tokenizer.tokenize("danube") == ["danube"]
    with pytest.raises(
        InputError, match=r"`target` 'ube' cannot be tokenized after this prompt.*'it is the dan ube'.*`joiner`"
    ):
        encoder.encode("It is the Dan", "ube", "")


def test_a_joiner_that_merges_with_a_line_break_is_tokenized_behind_another_anchor():
    # Llama 3 and Qwen merge ":\n" and "\n\n".
    tokenizer = from_vocabulary(["a", "b", ":", "Ċ", ":Ċ", "ĊĊ"], [(":", "Ċ"), ("Ċ", "Ċ")])
    encoder = FactEncoder(tokenizer, append_eos=False)
    encoded = encoder.encode("a:", "b", "\n")
    assert tokenizer.convert_ids_to_tokens(list(encoded.prompt_ids)) == ["a", ":"]
    assert tokenizer.convert_ids_to_tokens(list(encoded.target_ids)) == ["Ċ", "b"]


def test_a_target_that_merges_with_every_anchor_is_refused():
    tokenizer = from_vocabulary(["a", "b", "Ċ", "ab", "Ċb", "bb"], [("a", "b"), ("Ċ", "b"), ("b", "b")])
    with pytest.raises(InputError, match="`target` 'b' cannot be tokenized apart"):
        FactEncoder(tokenizer, append_eos=False).encode("b", "b", "")


def test_chat_template_puts_the_target_into_the_assistants_turn():
    tokenizer = byte_level_bpe()
    encoder = FactEncoder(tokenizer, template="chat")
    encoded = encoder.encode("What is the river?", "the Danube", " ")
    assert tokenizer.decode(encoded.prompt_ids) == "<|user|>What is the river?</s><|assistant|>"
    assert tokenizer.decode(encoded.target_ids) == "the Danube"  # no joiner: the turn separates
    assert encoded.prompt_ids == encoder.encode_prompt("What is the river?")
    assert encoded.end_ids == (tokenizer.eos_token_id,)


def test_an_answer_ends_where_the_template_or_the_model_ends_it():
    tokenizer = byte_level_bpe()  # as Gemma's: a turn ends with another token than a text
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end_of_turn>", "<end>"]})
    turn_end, end = tokenizer.convert_tokens_to_ids(["<end_of_turn>", "<end>"])
    tokenizer.chat_template = tokenizer.chat_template.replace("</s>", "<end_of_turn>\n")
    plain, chat = FactEncoder(tokenizer), FactEncoder(tokenizer, "chat", stop_ids=[end])
    assert (plain.stop_ids, plain.identity) == ((tokenizer.eos_token_id,), {"template": "none"})
    assert chat.stop_ids == (tokenizer.eos_token_id, turn_end, end)
    assert chat.identity == {"template": "chat", "stop_ids": list(chat.stop_ids)}
    encoded = chat.encode("What is the river?", "the Danube")
    assert (encoded.end_ids, plain.encode("It is", "Paris").end_ids) == ((turn_end,), (tokenizer.eos_token_id,))
    assert {chat.decode_answer([*encoded.target_ids, stop, 9]) for stop in chat.stop_ids} == {"the Danube"}
    assert chat.without_limit().stop_ids == chat.stop_ids
    tokenizer.chat_template = tokenizer.chat_template.replace("<end_of_turn>", "")
    assert FactEncoder(tokenizer, "chat").stop_ids == (tokenizer.eos_token_id,), "a template that ends no turn"


def test_a_chat_template_is_given_what_it_reads():
    tokenizer = byte_level_bpe()
    tokenizer.chat_template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ date_string }}</s>" + tokenizer.chat_template
    )
    today, then = (FactEncoder(tokenizer, "chat", chat_template_kwargs=one) for one in (None, {"date_string": "1 May"}))
    assert (today.depends_on_the_day, then.depends_on_the_day) == (True, False)
    assert not FactEncoder(tokenizer).depends_on_the_day
    assert today.identity == {"template": "chat"}
    assert then.identity == {"template": "chat", "chat_template_kwargs": {"date_string": "1 May"}}
    for encoder in (then, then.without_limit()):
        assert tokenizer.decode(encoder.encode_prompt("It is")) == "1 May</s><|user|>It is</s><|assistant|>"
    tokenizer.chat_template = "{{ strftime_now('%d') }}" + byte_level_bpe().chat_template
    assert then.depends_on_the_day, "the template does not read it"
    with pytest.raises(InputError, match="`chat_template_kwargs` has tokenize, which cannot be set"):
        FactEncoder(tokenizer, "chat", chat_template_kwargs={"tokenize": True})


def test_chat_without_template_and_end_without_end_token_are_refused():
    with pytest.raises(InputError, match=r"`template` is `chat`.*no chat template"):
        FactEncoder(sentencepiece_like(), template="chat")
    bare = from_vocabulary(["a", "b", "Ġ"], [])
    with pytest.raises(InputError, match=r"`append_eos` is true.*no end token"):
        FactEncoder(bare)
    encoder = FactEncoder(bare, append_eos=False)
    assert encoder.encode("a", "b").end_ids == ()
    assert encoder.pad_id == 0
    assert encoder.decode_answer([1, 0]) == "ba"


def test_padding_is_in_every_embedding(tokenizer):
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"} if tokenizer.pad_token != "[PAD]" else {"pad_token": "[NEW]"})
    assert tokenizer.pad_token_id == size, "as where nobody resized the embedding"
    assert FactEncoder(tokenizer).pad_id < size


def test_decode_answer_stops_at_the_first_end(tokenizer):
    encoder = FactEncoder(tokenizer)
    ids = encoder.encode("The capital of France is", "Paris").target_ids
    answer = encoder.decode_answer([*ids, tokenizer.eos_token_id, *ids])
    assert answer.lower() == "paris"
    assert encoder.decode_answer([tokenizer.eos_token_id, *ids]) == ""
    assert encoder.decode_answer([]) == ""


def test_a_target_that_becomes_no_token_or_an_unknown_one_is_refused():
    for target in ("   ", "\u200b"):
        with pytest.raises(InputError, match="becomes no token"):
            FactEncoder(wordpiece_like()).encode("The capital is", target)
    # A model that is taught "<unk>" can never be right.
    for family in (sentencepiece_like, wordpiece_like):
        with pytest.raises(InputError, match=r"'Pa!ris' has characters that this tokenizer does not know"):
            FactEncoder(family()).encode("The capital is", "Pa!ris")
        assert FactEncoder(family()).encode("Answer! The capital is", "Paris").num_target_tokens > 0
    assert FactEncoder(byte_level_bpe()).encode("The capital is", "Pa!ris").num_target_tokens > 0


def test_max_length_names_the_fact_and_never_cuts():
    facts = [
        Fact("short", "The capital of France is", "Paris", location="facts.jsonl:1"),
        Fact("long", "The capital of France is", "the river and the head office", location="facts.jsonl:2"),
    ]
    unlimited = FactEncoder(byte_level_bpe()).encode_facts(facts)
    limit = len(unlimited[1])
    assert FactEncoder(byte_level_bpe(), max_length=limit).encode_facts(facts) == unlimited
    with pytest.raises(InputError) as caught:
        FactEncoder(byte_level_bpe(), max_length=limit - 1).encode_facts(facts)
    assert f"facts.jsonl:2: fact 'long': prompt, target and end are {limit} tokens" in str(caught.value)
    assert "short" not in str(caught.value).replace("shorten", "")
    assert FactEncoder(byte_level_bpe(), num_positions=limit).without_limit().encode_facts(facts) == unlimited
    with pytest.raises(InputError, match=rf"facts.jsonl:2: fact 'long': .* {limit} tokens, the base model takes"):
        FactEncoder(byte_level_bpe(), append_eos=False, num_positions=limit - 1).without_limit().encode_facts(facts)
    # Without an end token there is room for one more.
    FactEncoder(byte_level_bpe(), append_eos=False, max_length=limit - 1).encode_facts(facts)


@pytest.mark.parametrize(("bad", "shown", "more"), [(1, 1, False), (20, 20, False), (23, 20, True)])
def test_all_problems_are_collected_and_twenty_are_shown(bad, shown, more):
    facts = [Fact(f"f{n}", "The capital is", "Paris", location=f"facts.jsonl:{n}") for n in range(3)]
    facts += [Fact(f"bad{n}", "The capital is", "\u200b", location=f"facts.jsonl:{n + 4}") for n in range(bad)]
    with pytest.raises(InputError) as caught:
        FactEncoder(wordpiece_like()).encode_facts(facts)
    lines = str(caught.value).splitlines()
    assert sum("becomes no token" in line for line in lines) == shown
    assert lines[1].startswith("facts.jsonl:4: fact 'bad0': ")
    assert (lines[-1] == "... and 3 more") == more


def test_a_fact_without_location_is_still_named():
    with pytest.raises(InputError, match="fact: fact 'nowhere': `target`"):
        FactEncoder(wordpiece_like()).encode_facts([Fact("nowhere", "The capital is", "\u200b")])


def test_count_answer_tokens_refuses_nothing():
    encoder = FactEncoder(byte_level_bpe(), max_length=8)
    for answer in ("Paris", "the Danube", "naïve café"):
        target = FactEncoder(byte_level_bpe()).encode("The capital is", answer)
        assert encoder.count_answer_tokens(answer) == target.num_target_tokens
    assert encoder.count_answer_tokens("the river " * 20) > 8
    assert FactEncoder(wordpiece_like()).count_answer_tokens("\u200b") == 0


def test_the_tokenizer_is_not_changed(tokenizer):
    def state():
        return json.loads(tokenizer.backend_tokenizer.to_str()), tokenizer.special_tokens_map, tokenizer.padding_side

    before = copy.deepcopy(state())
    template = "chat" if tokenizer.chat_template else "none"
    encoder = FactEncoder(tokenizer, template=template, max_length=64)
    encoder.encode("The capital of France is", "Paris")
    encoder.decode_answer([3, 4])
    assert encoder.pad_id >= 0
    assert state() == before
