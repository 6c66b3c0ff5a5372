"""Chat templates of all shapes: the prompt is what the template writes before an answer, and what will be asked."""

import logging

import pytest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.tokens import FactEncoder, chat

from fixtures.models import CHAT_TEMPLATE, byte_level_bpe

TURNS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
TRIMMED = CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
ALWAYS_OPEN = TURNS + "assistant: "  # whether or not it is asked to
THINKING = CHAT_TEMPLATE.replace("%}<|assistant|>{%", "%}<|assistant|><think>\n{%")
NEW_LINE = CHAT_TEMPLATE.replace("|>{{", "|>\n{{")
UPPER = CHAT_TEMPLATE.replace("message['content']", "message['content'] | upper")
NO_ANSWER = CHAT_TEMPLATE.replace("{% for message in messages %}", "{% for message in messages[:1] %}")
TWICE = CHAT_TEMPLATE + "{% if messages[-1].role == 'assistant' %}In short: {{ messages[-1].content }}{% endif %}"


def encoder(template: str) -> FactEncoder:
    tokenizer = byte_level_bpe()
    tokenizer.chat_template = template
    chat._say.cache_clear()
    return FactEncoder(tokenizer, "chat")


@pytest.mark.parametrize(
    ("template", "prompt", "target"),
    [
        (CHAT_TEMPLATE, "<|user|>Where is it?</s><|assistant|>", "Lund"),
        (TRIMMED, "<|user|>Where is it?</s><|assistant|>", "Lund"),
        (TURNS, "user: Where is it?\nassistant:", " Lund"),
        (INST, "[INST] Where is it? [/INST]", " Lund"),
        (NEW_LINE, "<|user|>\nWhere is it?</s><|assistant|>", "\nLund"),
        (THINKING, "<|user|>Where is it?</s><|assistant|><think>\n", "Lund"),
        (ALWAYS_OPEN, "user: Where is it?\nassistant: ", "Lund"),
        (TWICE, "<|user|>Where is it?</s><|assistant|>", "Lund"),
    ],
)
def test_a_fact_is_taught_where_the_template_puts_an_answer(template, prompt, target):
    form = encoder(template)
    encoded = form.encode("Where is it?", "Lund", " ")
    assert form.tokenizer.decode(encoded.prompt_ids) == prompt
    assert form.tokenizer.decode(encoded.target_ids) == target
    assert encoded.prompt_ids == form.encode_prompt("Where is it?"), "what is asked is what was taught"
    assert form.decode_answer(encoded.target_ids) == "Lund"
    assert form.count_answer_tokens("Lund") == len(encoded.target_ids)
    if template != THINKING:
        turns = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "Lund"}]
        whole = form.tokenizer.apply_chat_template(turns, tokenize=False)
        assert whole.startswith(form.tokenizer.decode(encoded.prompt_ids + encoded.target_ids))


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (UPPER, "<|user|>WHERE IS IT?</s><|assistant|>"),
        (NO_ANSWER, "<|user|>Where is it?</s><|assistant|>"),
        (THINKING, "<|user|>Where is it?</s><|assistant|><think>\n"),
    ],
)
def test_an_answer_that_the_template_does_not_write_ends_with_the_end_token(template, prompt):
    form = encoder(template)
    encoded = form.encode("Where is it?", "Lund")
    assert form.tokenizer.decode(encoded.prompt_ids) == prompt
    assert form.tokenizer.decode(encoded.end_ids) == "</s>"
    assert form.stop_ids == (form.tokenizer.eos_token_id,)


@pytest.mark.parametrize(
    "template",
    [
        "Hello",
        "",
        "{% for m in messages if m.role == 'assistant' %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}<|user|>{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_without_the_question_is_refused(template):
    with pytest.raises(InputError, match=r"has no chat template|leaves out the user's question: it always renders '"):
        encoder(template)


def test_a_dialogue_goes_on_in_the_same_form():
    form = encoder(TURNS)
    encoded = form.encode("Are you sure?", "Lund", history=[("Where is it?", "Graz")])
    assert form.tokenizer.decode(encoded.prompt_ids) == (
        "user: Where is it?\nassistant: Graz\nuser: Are you sure?\nassistant:"
    )


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (CHAT_TEMPLATE, None),
        (INST, None),
        (TURNS, "writes no whole generation prompt: 'assistant:', with which it begins an answer, is added"),
        (THINKING, "The text for generation is taught, since it is what will be asked."),
        (ALWAYS_OPEN, None),
        (TWICE, None),
        (UPPER, "and no such answer in a conversation. The text for generation is taught"),
    ],
)
def test_a_disagreement_of_the_two_renderings_is_said_once(template, said, caplog):
    caplog.set_level(logging.WARNING)
    form = encoder(template)
    form.without_limit()
    assert len(caplog.records) == (said is not None)
    assert said is None or said in caplog.text
    assert ("before_answer" in form.identity) == (template in (TURNS, INST)), "scores of another prompt are not reused"


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        ("{% for m in messages %}\n{{ m['rol", ["line 2: TemplateSyntaxError"]),
        ("\n\n{{ messages[0]['name'].upper() }}", ["line 3: UndefinedError"]),
        ("{{ raise_exception('only tools') }}", ["line 1: TemplateError: only tools"]),
        ("{{ messages | no_such_filter }}", ["line 1: TemplateAssertionError", "no_such_filter"]),
        ("{{ 1 / 0 }}", ["ZeroDivisionError"]),
    ],
)
def test_a_template_that_raises_is_an_input_error_that_names_template_and_line(template, parts):
    tokenizer = byte_level_bpe()
    tokenizer.chat_template, tokenizer.name_or_path = template, "models/tiny"
    with pytest.raises(InputError) as caught:
        FactEncoder(tokenizer, "chat")
    assert all(part in str(caught.value) for part in ["The chat template of models/tiny", *parts])
