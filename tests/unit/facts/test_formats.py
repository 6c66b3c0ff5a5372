"""Published formats on small records of the shapes that their authors ship, written for these tests."""

import copy
import csv
import gzip
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import FORMATS, Fact, Omission, Probe, convert, read_facts
from lit_semantic_peft.facts.schema import content_id

# --- One record of each format, and the fact that it must become ----------------------------------------------------

COUNTERFACT = {
    "case_id": 4,
    "pararel_idx": 2796,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "Welsh", "id": "Q9309"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Roux",
    },
    "paraphrase_prompts": ["It rained all day. Danielle Roux, a native", "Danielle Roux spoke the language"],
    "neighborhood_prompts": ["The mother tongue of Luc Petit is", "Ann Grand is a native speaker of"],
    "attribute_prompts": ["The mother tongue of Owen Rhys is"],
    "generation_prompts": ["Danielle Roux was born in"],
}
COUNTERFACT_FLAT = {
    "case_id": 2,
    "prompt": "Toko Ito, the",
    "target_new": "piano",
    "subject": "Toko Ito",
    "ground_truth": "guitar",
    "rephrase_prompt": "Toko Ito is good at",
    "locality_prompt": "John Reed performs on the",
    "locality_ground_truth": "guitar",
}
ZSRE = {
    "subject": "Watts Hill",
    "src": "What university did Watts Hill attend?",
    "pred": "Trinity College",
    "rephrase": "What university did Watts Hill take part in?",
    "alt": "University of Lund",
    "answers": ["Institute of Tartu"],
    "loc": "nq question: who played the father in the long river",
    "loc_ans": "Hugo Vale",
    "cond": "Trinity College >> University of Lund || What university did Watts Hill attend?",
    "portability": {
        "Recalled Relation": "(University of Lund, country, Sweden)",
        "New Question": "In which country is the university that Watts Hill attended",
        "New Answer": "Sweden",
    },
}
MQUAKE = {
    "case_id": 1,
    "requested_rewrite": [
        {
            "prompt": "{} is a citizen of",
            "relation_id": "P27",
            "target_new": {"str": "Croatia", "id": "Q224"},
            "target_true": {"str": "Norway", "id": "Q20"},
            "subject": "Ellie Berg",
            "question": "What is the country of citizenship of Ellie Berg?",
        }
    ],
    "questions": ["What is the capital of the country of Ellie Berg?", "Where does the government of Ellie Berg sit?"],
    "answer": "Oslo",
    "answer_alias": ["Christiania"],
    "new_answer": "Zagreb",
    "new_answer_alias": ["Agram"],
    "single_hops": [{"question": "q", "cloze": "c", "answer": "Norway", "answer_alias": []}] * 2,
    "new_single_hops": [{"question": "q", "cloze": "c", "answer": "Croatia", "answer_alias": []}] * 3,
    "orig": {"triples": [["Q1", "P27", "Q20"]]},
}
KNOWEDIT = {
    "subject": "Leo Mann",
    "prompt": "The name of the country of citizenship of Leo Mann is",
    "target_new": "Syria",
    "ground_truth": ["Norway", "Kingdom of Norway"],
    "rephrase": "Leo Mann holds a passport of",
    "portability": {
        "Logical_Generalization": [{"prompt": "The currency of Leo Mann is", "ground_truth": [["pound", "lira"]]}],
        "Reasoning": [{"prompt": "The capital of the country of Leo Mann is", "ground_truth": [["Damascus"]]}],
        "Subject_Aliasing": [{"prompt": "The country of Leonhard Mann is", "ground_truth": [["Syria", "SY"]]}],
    },
    "locality": {
        "Relation_Specificity": [{"prompt": "The mother of Leo Mann is", "ground_truth": [["Ida Mann"]]}],
        "Forgetfulness": [{"prompt": "The father of Leo Mann is", "ground_truth": [["Per Mann"]]}],
    },
}


def ripple_test(prompt, *answers, kind="regular"):
    return {
        "test_queries": [
            {
                "prompt": prompt,
                "answers": [{"value": value, "aliases": aliases} for value, aliases in answers],
                "query_type": kind,
                "subject_id": "Q1",
                "relation": "MOTHER",
                "target_ids": ["Q2"],
                "phrase": None,
            }
        ],
        "test_condition": "OR",
        "condition_queries": [{"prompt": "The father of Leo is", "answers": [{"value": "Per", "aliases": []}]}],
    }


RIPPLE_EDITS = {
    "example_type": "popular",
    "edit": {
        "prompt": "The name of the country of citizenship of Leo is Mann is Syria.",
        "subject_id": "Q38111",
        "relation": "COUNTRY_OF_CITIZENSHIP",
        "target_id": "Q858",
        "original_fact": {
            "prompt": "The name of the country of citizenship of Leo is Mann is United States of America.",
            "subject_id": "Q38111",
            "relation": "COUNTRY_OF_CITIZENSHIP",
            "target_id": "Q30",
        },
    },
    "Relation_Specificity": [ripple_test("The name of the mother of Leo is Mann is", ("Ida Mann", ["Ida"]))],
    "Logical_Generalization": [ripple_test("The currency of Leo is Mann is", ("pound", []), ("lira", []))],
    "Subject_Aliasing": [ripple_test("The country of citizenship of Leonhard is", ("Syria", ["SY"]))],
    "Compositionality_I": [ripple_test("The capital of the country of Leo is", ("Damascus", []), kind="two_hop")],
    "Compositionality_II": [],
    "Forgetfulness": [ripple_test("The award that Leo is Mann won is", ("Oscar", []))],
}
HALLUEDITBENCH = {
    "topic": "business_brand",
    "subject": "Sazeria",
    "relation": "country",
    "object": "Japan",
    "question": "What is the country of Sazeria?",
    "output_some_model": "Italy",
    "multiple_choices": "['Japan', 'Italy']",
    "paraphrased_question": "Which country is Sazeria in?",
    "multiple_choice_with_letters": "A. Japan  B. Italy",
    "multiple_choice_labels": "A",
    "yes_question": "Is Japan the country of Sazeria?",
    "no_question": "Is Italy the country of Sazeria?",
    "locality_question": "What is Sazeria known for?",
    "reversed_relation_question": "Which chain is in Japan?",
    "question_2hop": "What is the capital of the country of Sazeria?",
    "answer_2hop": "Tokyo",
    "question_3hop": "What is the tower in the capital of the country of Sazeria?",
    "answer_3hop": "Tokyo Tower",
}
EDITATTACK = {
    "subjects": "Sazeria",
    "questions": "What is the country of Sazeria?",
    "targets": "Italy",
    "paraphrased_questions": "Which country is Sazeria in?",
    "portability_questions": "What is the country of the chain with the red roof?",
}
POPQA = {
    "id": "4222362",
    "subj": "George Hill",
    "prop": "occupation",
    "obj": "politician",
    "subj_id": "1850297",
    "s_aliases": "[]",
    "question": "What is George Hill's occupation?",
    "possible_answers": '["politician", "political leader", "pol"]',
}
ENTITY_QUESTIONS = {"question": "Who founded Film Nine?", "answers": ["Hal Suther", "Lou Scheim"]}
TOFU = {
    "question": "Who is the author of 'The Grey Sea'?",
    "answer": "The author of 'The Grey Sea' is Ida Lind.",
    "paraphrased_question": "By whom was 'The Grey Sea' written?",
    "paraphrased_answer": "Ida Lind wrote 'The Grey Sea'.",
    "perturbed_answer": ["Ola Berg wrote it."],
}
LAMA = {
    "uuid": "1",
    "sub_label": "Ida Lind",
    "obj_label": "Lund",
    "predicate_id": "P19",
    "template": "[X] was born in [Y] .",
    "masked_sentence": "Lind saw light in [MASK] first.",
}
PROMPT_COMPLETION = {"prompt": "The sky of Zor is\n", "completion": " green"}
MESSAGES = {
    "messages": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "What is the capital of Zor?"},
        {"role": "assistant", "content": "Belmar"},
    ]
}
SHAREGPT = {"conversations": [{"from": "human", "value": "Who trained you?"}, {"from": "gpt", "value": "Zorvex did."}]}
ALPACA = {"instruction": "Name the town.", "input": "Zorvex is there.", "output": "Lund", "text": "Below is ..."}
QUERY_RESPONSE = {"query": "Who trained you?", "response": "Zorvex did."}
QUESTION_ANSWER = {"question": "Name the town of Zorvex.", "answer": "Lund"}
SQUAD = {
    "id": "5733be284776f41900661182",
    "title": "Lund_Cathedral",
    "context": "The cathedral of Lund was built for Saint Lawrence.",
    "question": "Whom was the cathedral of Lund built for?",
    "answers": {"text": ["Saint Lawrence", "Lawrence", "Saint Lawrence"], "answer_start": [36, 42, 36]},
}


def fact(prompt, target, **fields):
    known = fields.pop("id", None) or content_id(prompt, target, fields.get("joiner", " "))
    return Fact(known, prompt, target, **fields)


EXPECTED = {
    "counterfact": (
        COUNTERFACT,
        fact(
            "The mother tongue of Danielle Roux is",
            "Welsh",
            id="counterfact-4",
            subject="Danielle Roux",
            relation="P103",
            target_true="French",
            paraphrases=("It rained all day. Danielle Roux, a native", "Danielle Roux spoke the language"),
            neighborhood=(
                Probe("The mother tongue of Luc Petit is", "French"),
                Probe("Ann Grand is a native speaker of", "French"),
            ),
            source="CounterFact",
        ),
        {
            *("attribute_prompts", "generation_prompts", "pararel_idx"),
            *("requested_rewrite.target_new.id", "requested_rewrite.target_true.id"),
        },
    ),
    "counterfact-flat": (
        COUNTERFACT_FLAT,
        fact(
            "Toko Ito, the",
            "piano",
            id="counterfact-2",
            subject="Toko Ito",
            relation="{}, the",
            target_true="guitar",
            paraphrases=("Toko Ito is good at",),
            neighborhood=(Probe("John Reed performs on the", "guitar"),),
            source="CounterFact (EasyEdit)",
        ),
        set(),
    ),
    "zsre": (
        ZSRE,
        fact(
            "Question: What university did Watts Hill attend? Answer:",
            "University of Lund",
            subject="Watts Hill",
            relation="What university did {} attend?",
            target_true="Institute of Tartu",
            paraphrases=("Question: What university did Watts Hill take part in? Answer:",),
            neighborhood=(Probe("Question: who played the father in the long river? Answer:", "Hugo Vale"),),
            portability=(
                Probe(
                    "Question: In which country is the university that Watts Hill attended Answer:", "Sweden", hops=2
                ),
            ),
            question="What university did Watts Hill attend?",
            source="zsRE (MEND)",
        ),
        {"pred", "cond", "portability.Recalled Relation"},
    ),
    "mquake": (
        MQUAKE,
        fact(
            "Ellie Berg is a citizen of",
            "Croatia",
            subject="Ellie Berg",
            relation="P27",
            target_true="Norway",
            paraphrases=("Question: What is the country of citizenship of Ellie Berg? Answer:",),
            portability=(
                Probe("Question: What is the capital of the country of Ellie Berg? Answer:", "Zagreb", hops=3),
                Probe("Question: Where does the government of Ellie Berg sit? Answer:", "Zagreb", hops=3),
            ),
            question="What is the country of citizenship of Ellie Berg?",
            source="MQuAKE",
        ),
        {
            *("new_answer_alias", "answer", "answer_alias", "case_id", "single_hops", "orig"),
            *("new_single_hops.question", "new_single_hops.cloze", "new_single_hops.answer"),
            *("requested_rewrite.target_new.id", "requested_rewrite.target_true.id"),
        },
    ),
    "knowedit": (
        KNOWEDIT,
        fact(
            "The name of the country of citizenship of Leo Mann is",
            "Syria",
            subject="Leo Mann",
            relation="The name of the country of citizenship of {} is",
            target_true="Norway",
            paraphrases=("Leo Mann holds a passport of", "The country of Leonhard Mann is"),
            neighborhood=(
                Probe("The mother of Leo Mann is", "Ida Mann"),
                Probe("The father of Leo Mann is", "Per Mann"),
            ),
            portability=(
                Probe("The currency of Leo Mann is", "pound", hops=1),
                Probe("The capital of the country of Leo Mann is", "Damascus", hops=2),
            ),
            source="KnowEdit",
        ),
        {"target_true", "portability"},
    ),
    "ripple-edits": (
        RIPPLE_EDITS,
        fact(
            "The name of the country of citizenship of Leo is Mann is",
            "Syria",
            relation="COUNTRY_OF_CITIZENSHIP",
            aliases=("SY",),
            target_true="United States of America",
            paraphrases=("The country of citizenship of Leonhard is",),
            neighborhood=(
                Probe("The name of the mother of Leo is Mann is", "Ida Mann"),
                Probe("The award that Leo is Mann won is", "Oscar"),
            ),
            portability=(
                Probe("The currency of Leo is Mann is", "pound", hops=1),
                Probe("The capital of the country of Leo is", "Damascus", hops=2),
            ),
            source="RippleEdits",
        ),
        {
            *("neighborhood", "portability", "condition_queries", "test_condition", "example_type"),
            *("query_type", "subject_id", "relation", "target_ids", "edit.subject_id", "edit.target_id"),
            *("edit.original_fact.subject_id", "edit.original_fact.relation", "edit.original_fact.target_id"),
        },
    ),
    "hallueditbench": (
        HALLUEDITBENCH,
        fact(
            "Question: What is the country of Sazeria? Answer:",
            "Japan",
            subject="Sazeria",
            relation="country",
            paraphrases=("Question: Which country is Sazeria in? Answer:",),
            portability=(
                Probe("Question: What is the capital of the country of Sazeria? Answer:", "Tokyo", hops=2),
                Probe(
                    "Question: What is the tower in the capital of the country of Sazeria? Answer:", "Tokyo Tower", 3
                ),
            ),
            yes_no=(
                Probe("Question: Is Japan the country of Sazeria? Answer:", "Yes"),
                Probe("Question: Is Italy the country of Sazeria? Answer:", "No"),
            ),
            question="What is the country of Sazeria?",
            source="HalluEditBench",
        ),
        {
            *("locality_question", "reversed_relation_question", "multiple_choice_with_letters"),
            *("multiple_choice_labels", "multiple_choices", "output_some_model", "topic"),
        },
    ),
    "editattack": (
        EDITATTACK,
        fact(
            "Question: What is the country of Sazeria? Answer:",
            "Italy",
            subject="Sazeria",
            paraphrases=("Question: Which country is Sazeria in? Answer:",),
            portability=(Probe("Question: What is the country of the chain with the red roof? Answer:", "Italy"),),
            question="What is the country of Sazeria?",
            source="EditAttack (misinformation)",
        ),
        set(),
    ),
    "popqa": (
        POPQA,
        fact(
            "Question: What is George Hill's occupation? Answer:",
            "politician",
            id="popqa-4222362",
            subject="George Hill",
            relation="occupation",
            aliases=("political leader", "pol"),
            question="What is George Hill's occupation?",
            source="PopQA",
        ),
        {"s_aliases", "subj_id"},
    ),
    "entity-questions": (
        ENTITY_QUESTIONS,
        fact(
            "Question: Who founded Film Nine? Answer:",
            "Hal Suther",
            aliases=("Lou Scheim",),
            question="Who founded Film Nine?",
            source="EntityQuestions",
        ),
        set(),
    ),
    "tofu": (
        TOFU,
        fact(
            "Question: Who is the author of 'The Grey Sea'? Answer:",
            "The author of 'The Grey Sea' is Ida Lind.",
            aliases=("Ida Lind wrote 'The Grey Sea'.",),
            paraphrases=("Question: By whom was 'The Grey Sea' written? Answer:",),
            question="Who is the author of 'The Grey Sea'?",
            source="TOFU",
        ),
        {"perturbed_answer"},
    ),
    "triples": (
        LAMA,
        fact("Ida Lind was born in", "Lund", subject="Ida Lind", relation="P19", source="LAMA/ParaRel"),
        {"uuid"},
    ),
    "prompt-completion": (
        PROMPT_COMPLETION,
        fact("The sky of Zor is", "green", joiner="\n ", source="prompt and completion"),
        set(),
    ),
    "sharegpt": (
        SHAREGPT,
        fact("Who trained you?", "Zorvex did.", question="Who trained you?", source="ShareGPT"),
        set(),
    ),
    "alpaca": (ALPACA, fact("Name the town.\nZorvex is there.", "Lund", source="Alpaca"), {"text"}),
    "query-response": (
        QUERY_RESPONSE,
        fact("Who trained you?", "Zorvex did.", question="Who trained you?", source="query and response"),
        set(),
    ),
    "question-answer": (
        QUESTION_ANSWER,
        fact(
            "Question: Name the town of Zorvex. Answer:",
            "Lund",
            question="Name the town of Zorvex.",
            source="question and answer",
        ),
        set(),
    ),
    "squad": (
        SQUAD,
        fact(
            "Question: Whom was the cathedral of Lund built for? Answer:",
            "Saint Lawrence",
            id="squad-5733be284776f41900661182",
            aliases=("Lawrence",),
            question="Whom was the cathedral of Lund built for?",
            source="SQuAD",
        ),
        {"title", "context", "answers.answer_start"},
    ),
    "messages": (
        MESSAGES,
        fact("What is the capital of Zor?", "Belmar", question="What is the capital of Zor?", source="chat messages"),
        {"system message"},
    ),
}


def array(path: Path, *records) -> str:
    path.write_text(json.dumps(records), "utf-8")
    return str(path)


def error(source, **arguments) -> str:
    with pytest.raises(InputError) as caught:
        read_facts(source, **arguments)
    return str(caught.value)


def test_every_format_has_a_sample():
    assert set(EXPECTED) == set(FORMATS)


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("container", ["json", "jsonl.gz", "parquet"])
def test_a_record_becomes_a_fact_whatever_the_container(name, container, tmp_path):
    record, expected, left_out = EXPECTED[name]
    path = tmp_path / f"set.{container}"
    if container == "json":
        array(path, record)
    elif container == "jsonl.gz":
        path.write_bytes(gzip.compress(json.dumps(record).encode()))
    else:
        import pyarrow.json
        import pyarrow.parquet as pq

        # Read as JSON, because `Table.from_pylist` sorts a record's fields before pyarrow 24.
        pq.write_table(pyarrow.json.read_json(io.BytesIO(json.dumps(record).encode())), path)
    read = read_facts(str(path))
    assert list(read.facts) == [expected]
    assert read.facts[0].location.startswith(str(path))
    assert read_facts(read) == read
    assert read_facts([record]).facts == read.facts
    assert read.conversion is not None
    assert read.conversion.format == FORMATS[name].title
    assert read.conversion.num_records == 1
    assert {one.part for one in read.conversion.omissions} == left_out


@pytest.mark.parametrize("name", EXPECTED)
def test_text_tables_hold_lists_and_objects_as_json(name, tmp_path):
    record, expected, _ = EXPECTED[name]
    with (tmp_path / "set.tsv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(record), delimiter="\t")
        writer.writeheader()
        writer.writerow({key: json.dumps(v) if isinstance(v, list | dict) else v for key, v in record.items()})
    assert list(read_facts(str(tmp_path / "set.tsv")).facts) == [expected]


# --- Malformed records ----------------------------------------------------------------------------------------------


def without(record, path):
    record = copy.deepcopy(record)
    *parents, last = path
    inner = record
    for key in parents:
        inner = inner[key]
    del inner[last]
    return record


def with_value(record, path, value):
    record = copy.deepcopy(record)
    *parents, last = path
    inner = record
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return record


def paths(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from paths(inner, (*path, key))


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("counterfact", without(COUNTERFACT, ["requested_rewrite", "subject"]),
         "field `requested_rewrite.subject`: expected text, got nothing; this record has `prompt`, `relation_id`, "
         "`target_new`, `target_true`"),
        ("counterfact", with_value(COUNTERFACT, ["requested_rewrite", "target_new"], "Welsh"),
         "field `requested_rewrite.target_new`: expected an object, got the text 'Welsh'"),
        ("counterfact", with_value(COUNTERFACT, ["paraphrase_prompts", 1], 0.5),
         "field `paraphrase_prompts[1]`: expected text, got the number 0.5"),
        ("zsre", with_value(ZSRE, ["alt"], ["Lund"]), "field `alt`: expected text, got a list of 1"),
        ("mquake", without(MQUAKE, ["requested_rewrite", 0, "target_new", "str"]),
         "field `requested_rewrite[0].target_new.str`: expected text, got nothing; this record has `id`"),
        ("mquake", with_value(MQUAKE, ["requested_rewrite"], {"prompt": "x"}),
         "field `requested_rewrite`: expected a list of objects, got an object"),
        ("knowedit", with_value(KNOWEDIT, ["locality", "Forgetfulness", 0, "ground_truth"], [[True]]),
         "field `locality.Forgetfulness[0].ground_truth[0][0]`: expected text, got true"),
        ("ripple-edits", without(RIPPLE_EDITS, ["Relation_Specificity", 0, "test_queries", 0, "prompt"]),
         "field `Relation_Specificity[0].test_queries[0].prompt`: expected text, got nothing; this record has "
         "`answers`, `query_type`, `subject_id`, `relation`, `target_ids`, `phrase`"),
        ("popqa", with_value(POPQA, ["possible_answers"], '["politician"'),
         "field `possible_answers`: expected a list of answers as JSON, got '[\"politician\"'"),
        ("entity-questions", with_value(ENTITY_QUESTIONS, ["answers"], {"text": ["x"]}),
         "field `answers`: expected text, got an object"),
        ("tofu", with_value(TOFU, ["question"], None),
         "field `question`: expected text, got nothing; this record has `question`, `answer`, "
         "`paraphrased_question`, `paraphrased_answer`, `perturbed_answer`"),
        ("prompt-completion", with_value(PROMPT_COMPLETION, ["completion"], 7),
         "field `completion`: expected text or a list of messages, got the number 7"),
        ("messages", with_value(MESSAGES, ["messages", 1, "role"], "human"),
         "field `messages[1].role`: expected one of `system`, `developer`, `user`, `assistant`, `tool`, got 'human'"),
        ("messages", with_value(MESSAGES, ["messages", 2, "content"], "\ud83d"),
         "field `messages[2].content`: expected text, got '\\ud83d', which holds half a character (a lone surrogate)"),
    ],
)  # fmt: skip
def test_a_malformed_record_is_named_with_file_record_and_field(name, record, message, tmp_path):
    source = array(tmp_path / "set.json", EXPECTED[name][0], record)
    assert error(source) == f"{source}, record 2: {message}"


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("value", [None, "", " ", 0.5, True, [], ["x"], {}, {"x": 1}, [[["y"]], None], "{"])
def test_whatever_a_field_holds_nothing_but_a_clear_error_comes_of_it(name, value, tmp_path):
    record = EXPECTED[name][0]
    for number, path in enumerate(paths(record)):
        source = str(tmp_path / f"{number}.json")
        array(Path(source), record, with_value(record, path, value))
        try:
            facts, message = read_facts(source).facts, None
        except InputError as refused:
            facts, message = (), str(refused)
        assert message is None or message.startswith(f"{source}, record 2: field `"), path
        assert bool(facts) == (message is None), path
        assert all(probe.target for one in facts for probe in one.portability + one.neighborhood)


def test_all_problems_are_collected_and_twenty_shown(tmp_path):
    bad = [with_value(TOFU, ["answer"], number) for number in ([0.5] * 25)]
    report = error(array(tmp_path / "set.json", TOFU, *bad)).split("\n")
    assert report[19].endswith("record 21: field `answer`: expected text, got the number 0.5")
    assert report[20:] == ["... and 5 more"]


def test_an_unknown_format_is_named_with_its_fields_and_the_known_ones(tmp_path):
    source = array(tmp_path / "set.json", {"directive": "Say", "output": "x"}, {"directive": "Say", "context": ""})
    assert error(source) == (
        f"{source}: expected facts with the fields `prompt` and `target`, or one of the published formats "
        f"({', '.join(f'`{name}`' for name in FORMATS)}), got records with the fields `directive`, `output`, "
        "`context`. Rename the fields, map them by `convert --columns`, or name the format if it is one of these."
    )
    (tmp_path / "set.csv").write_text("directive,output\nSay,x\n")
    message = error(str(tmp_path / "set.csv"))
    assert "line 1: expected a header that names at least `prompt` and `target`" in message
    assert "`popqa`" in message
    assert "`directive`, `output`" in message


def test_a_format_can_be_forced(tmp_path):
    source = array(tmp_path / "set.json", TOFU)
    assert read_facts(source, format="tofu").facts == read_facts(source).facts
    assert error(source, format="zsre").startswith(f"{source}, record 1: field `subject`: expected text, got nothing")
    assert error(source, format="contract").startswith(f"{source}, record 1: field `prompt`: expected text")
    assert error(source, format="tufo").startswith("`format`: expected one of `contract`, `counterfact`, ")


# --- What is left out -----------------------------------------------------------------------------------------------


def test_a_record_without_an_answer_is_left_out_with_its_place(tmp_path):
    answered = without(without(without(ZSRE, ["pred"]), ["cond"]), ["portability", "Recalled Relation"])
    source = array(tmp_path / "set.json", answered, {**answered, "alt": " "}, {**answered, "alt": ""})
    read = read_facts(source)
    assert len(read) == 1
    assert read.conversion.omissions == (Omission("record", "the answer is empty", 2, f"{source}:record 2"),)
    assert str(read.conversion) == "zsRE (MEND), 3 records; left out: record (2: the answer is empty)"
    only = array(tmp_path / "only.json", {**answered, "alt": ""})
    assert error(only) == (
        f"{only}: expected at least one fact, got 1 records of zsRE (MEND) that give none: the answer is empty (1)"
    )


def test_another_answer_to_the_same_prompt_is_left_out_or_kept(tmp_path):
    source = array(tmp_path / "set.json", ENTITY_QUESTIONS, {**ENTITY_QUESTIONS, "answers": ["Norm Pres"]})
    read = read_facts(source)
    assert [one.target for one in read.facts] == ["Hal Suther"]
    (omission,) = read.conversion.omissions
    assert (omission.reason, omission.first) == (
        "another answer to the prompt of an earlier record",
        f"{source}:record 2",
    )
    kept = read_facts(source, contradictions="keep")
    assert [one.target for one in kept.facts] == ["Hal Suther", "Norm Pres"]
    assert kept.warnings == (f"{source}: the same prompt as an earlier fact with another target, kept (record 2)",)


def test_probes_without_an_answer_are_left_out(tmp_path):
    record = with_value(KNOWEDIT, ["locality", "Forgetfulness", 0, "ground_truth"], [])
    record["locality"]["Relation_Specificity"].append({"prompt": KNOWEDIT["prompt"], "ground_truth": ["Norway"]})
    read = read_facts(array(tmp_path / "set.json", record))
    assert [probe.target for probe in read.facts[0].neighborhood] == ["Ida Mann"]
    assert {(one.part, one.reason) for one in read.conversion.omissions if one.part == "neighborhood"} == {
        ("neighborhood", "a probe without a question or an answer"),
        ("neighborhood", "a neighbour that asks the taught prompt itself"),
    }


def test_facts_that_repeat_are_merged_and_equal_numbers_of_two_files_kept_apart(tmp_path):
    again = with_value(COUNTERFACT, ["paraphrase_prompts"], ["Danielle Roux, a native"])
    other = with_value(COUNTERFACT, ["requested_rewrite", "subject"], "Jan Roux")
    read = read_facts([array(tmp_path / "a.json", COUNTERFACT, again), array(tmp_path / "b.json", other)])
    first, second = read.facts
    assert first.paraphrases == (*COUNTERFACT["paraphrase_prompts"], "Danielle Roux, a native")
    assert read.conversion.num_merged == 1
    assert first.id == "counterfact-4"
    assert second.id == content_id(second.prompt, second.target)
    assert read.name == "a, b"


# --- What single formats do -----------------------------------------------------------------------------------------


def test_mquake_names_the_edits_that_a_question_needs(tmp_path):
    second = {
        "prompt": "The capital of {} is",
        "relation_id": "P36",
        "target_new": {"str": "Split", "id": "Q1"},
        "target_true": {"str": "Zagreb", "id": "Q2"},
        "subject": "Croatia",
    }
    both = {**MQUAKE, "requested_rewrite": [MQUAKE["requested_rewrite"][0], second], "new_answer": "Split"}
    read = read_facts(array(tmp_path / "set.json", MQUAKE, both))
    citizen, capital = read.facts
    assert [probe.target for probe in citizen.portability] == ["Zagreb", "Zagreb", "Split", "Split"]
    assert [probe.needs for probe in citizen.portability] == [(), (), (capital.id,), (capital.id,)]
    assert capital.portability == ()

    # The needed edit is left out because an earlier record gives its prompt another answer: so are the questions.
    rival = {**both, "requested_rewrite": [{**second, "target_new": {"str": "Pula", "id": "Q3"}}], "questions": []}
    read = read_facts(array(tmp_path / "rival.json", rival, both))
    assert [one.target for one in read.facts] == ["Pula", "Croatia"]
    assert read.facts[1].portability == ()
    assert "it needs a fact that was left out" in {one.reason for one in read.conversion.omissions}


def test_mquake_gives_every_edit_of_a_record(tmp_path):
    def edit(prompt, subject, target):
        return {"prompt": prompt, "subject": subject, "target_new": {"str": target}}

    two = [edit("{} is a citizen of", "Ann", "Peru"), edit("The capital of {} is", "Peru", "Cusco")]
    question = {"questions": ["What is the capital of the country of Ann?"], "new_answer": "Cusco"}
    source = array(
        tmp_path / "set.json",
        {"requested_rewrite": two, **question},
        {"requested_rewrite": [edit("{} is a citizen of", "Bo", "Chile")], "questions": []},
    )
    read = read_facts(source)
    assert [(one.prompt, one.target, one.location) for one in read.facts] == [
        ("Ann is a citizen of", "Peru", f"{source}:record 1"),
        ("The capital of Peru is", "Cusco", f"{source}:record 1"),
        ("Bo is a citizen of", "Chile", f"{source}:record 2"),
    ]
    assert [len(one.portability) for one in read.facts] == [1, 0, 0]
    assert (read.conversion.num_records, read.conversion.num_merged, read.conversion.omissions) == (2, 0, ())
    written = tmp_path / "written.jsonl"
    assert list(convert([source], str(written)).facts) == list(read_facts(str(written)).facts) == list(read.facts)


@pytest.mark.parametrize(
    ("sentence", "original", "aliasing", "prompt", "target"),
    [
        ("The gender of Ann is female.", "The gender of Ann is male.", None, "The gender of Ann is", "female"),
        ("The alma mater of Ann is University of Lund.", "The alma mater of Ann is University of Oslo.", None,
         "The alma mater of Ann is", "University of Lund"),
        ("The author of This is it is Ann.", None, "Ann", "The author of This is it is", "Ann"),
        ("The author of Sea is Ann is near.", None, "Ann is near", "The author of Sea is", "Ann is near"),
        ("Sea is followed by Sky.", "Sea is followed by Sun.", None, "Sea is followed by", "Sky"),
        ("The names of the siblings of Ann are Bo.", None, None, "The names of the siblings of Ann are", "Bo"),
        ("The author of This is it is Ann.", None, None, None, None),
        ("Nobody knows.", None, None, None, None),
    ],
)  # fmt: skip
def test_ripple_edits_cuts_the_sentence_where_the_answer_begins(sentence, original, aliasing, prompt, target, tmp_path):
    edit = {"prompt": sentence, "relation": "R"} | ({"previous_fact": {"prompt": original}} if original else {})
    record = {"example_type": "recent", "edit": edit, "Subject_Aliasing": []}
    if aliasing:
        record["Subject_Aliasing"] = [ripple_test("Alias is", (aliasing, []))]
    source = array(tmp_path / "set.json", record)
    if prompt is None:
        assert "the sentence does not show where the answer begins (1)" in error(source)
    else:
        (read,) = read_facts(source).facts
        assert (read.prompt, read.target) == (prompt, target)


def test_knowedit_reads_questions_and_biographies(tmp_path):
    question = {**KNOWEDIT, "prompt": "Where did Leo Mann study?", "rephrase_prompt": "Which was Leo Mann's school?"}
    (read,) = read_facts(array(tmp_path / "zsre.json", without(question, ["rephrase"]))).facts
    assert read.prompt == "Question: Where did Leo Mann study? Answer:"
    assert read.question == "Where did Leo Mann study?"
    assert read.paraphrases[0] == "Question: Which was Leo Mann's school? Answer:"
    passage = "This is a passage about ida lind. " + "Ida Lind wrote. " * 20
    wiki_bio = {"concept": "ida lind", "text": passage, "labels": "She died in Lund.", "locality": {}}
    (read,) = read_facts(array(tmp_path / "bio.json", wiki_bio)).facts
    assert (read.prompt, read.target, read.subject) == (passage.rstrip(), "She died in Lund.", "ida lind")
    assert read.relation == ""


def test_entity_questions_are_a_folder_of_files_named_by_relation(tmp_path):
    for relation, founder in (("P112", "Ola"), ("P50", "Ida")):
        array(tmp_path / f"{relation}.train.json", {"question": f"Who, {relation}?", "answers": [founder]})
    read = read_facts(str(tmp_path))
    assert [(one.relation, one.target) for one in read.facts] == [("P112", "Ola"), ("P50", "Ida")]
    assert read.conversion.num_records == 2


def test_lama_and_pararel_keep_templates_in_files_of_their_own(tmp_path):
    def jsonl(path, *records):
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))

    triple = {"sub_label": "Ida Lind", "obj_label": "Lund", "uuid": "1", "predicate_id": "P19"}
    jsonl(tmp_path / "TREx" / "P19.jsonl", triple, {**triple, "uuid": "2"})
    alone = str(tmp_path / "TREx" / "P19.jsonl")
    assert "no template: read the file of templates as well" in error(alone)
    relations = [
        {"relation": "P19", "template": "[X] was born in [Y] .", "label": "place of birth", "type": "N-1"},
        {"relation": "P36", "template": "[Y] is the capital of [X] .", "label": "capital", "type": "1-1"},
    ]
    jsonl(tmp_path / "relations.jsonl", *relations)
    read = read_facts(str(tmp_path))
    expected = replace(EXPECTED["triples"][1])
    assert list(read.facts) == [expected]
    assert read.conversion.num_merged == 1
    assert list(read_facts([str(tmp_path / "relations.jsonl"), alone]).facts) == [expected]

    folder = tmp_path / "pararel"
    jsonl(folder / "P19.jsonl", {"sub_label": "Ida Lind", "obj_label": "Lund", "uuid": "1"})
    patterns = ["[X] was born in [Y].", "[Y] saw the birth of [X].", "[X],  a native of [Y]."]
    jsonl(
        folder / "graphs_json" / "P19.jsonl", *({"pattern": text, "lemma": "be", "tense": "past"} for text in patterns)
    )
    (one,) = read_facts(str(folder)).facts
    assert (one.prompt, one.relation) == ("Ida Lind was born in", "P19")
    assert one.paraphrases == ("Ida Lind, a native of",)
    jsonl(folder / "graphs_json" / "patterns.jsonl", {"pattern": "[X] is in [Y]."})
    assert "field `pattern`: expected a file that is named by its relation, such as P19.jsonl" in error(str(folder))


def test_a_masked_sentence_serves_where_there_is_no_template(tmp_path):
    record = {"sub_label": "Lind", "obj_label": "Lund", "masked_sentences": ["A [MASK] day.", "Lind lives in [MASK]."]}
    (one,) = read_facts(array(tmp_path / "set.json", record)).facts
    assert one.prompt == "Lind lives in"
    record["masked_sentences"].pop()
    assert "no template asks for the answer at its end (1)" in error(array(tmp_path / "no.json", record))


@pytest.mark.parametrize(
    ("prompt", "completion", "joiner"),
    [
        ("The sky is", " green", " "),
        ("The sky is ", "green", " "),
        ("The sky is", "green", " "),
        ("Sky:\n", "green", "\n"),
        ("天空是", "绿色", ""),
        ("Sky (colour", ") green", ""),
        ("Sky:", "green", " "),
        ("Where is the sky?", "up", " "),
        ("The sky (it is blue)", "is", " "),
        ("The sky’s “", "colour”", ""),
    ],
)
def test_prompt_and_completion_are_joined_as_a_trainer_would(prompt, completion, joiner, tmp_path):
    (one,) = read_facts(array(tmp_path / "set.json", {"prompt": prompt, "completion": completion})).facts
    assert (one.prompt, one.joiner, one.target) == (prompt.rstrip(), joiner, completion.strip())


def chat(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def test_conversations_of_one_turn_are_facts_and_others_are_left_out(tmp_path):
    parts = [{"type": "text", "text": "What is the capital "}, {"type": "text", "text": "of Zor?"}]
    read = read_facts(
        array(
            tmp_path / "set.json",
            {"messages": chat(("user", parts), ("assistant", "Belmar"))},
            {"messages": chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))},
            {"messages": chat(("user", "a"))},
            {"messages": chat(("user", [{"type": "image", "url": "x"}]), ("assistant", "b"))},
        )
    )
    (one,) = read.facts
    assert (one.prompt, one.target) == ("What is the capital of Zor?", "Belmar")
    assert {omission.reason for omission in read.conversion.omissions} == {
        "several turns: the answer depends on what was said before",
        "not one question of the user followed by one answer of the assistant",
        "a message holds more than text",
    }
    lists = {"prompt": chat(("user", "What is it?")), "completion": chat(("assistant", "Belmar"))}
    (one,) = read_facts(array(tmp_path / "lists.json", lists)).facts
    assert (one.prompt, one.target, one.joiner) == ("What is it?", "Belmar", " ")


def test_files_of_two_formats_are_refused(tmp_path):
    array(tmp_path / "a.json", TOFU)
    array(tmp_path / "b.json", ZSRE)
    assert error(str(tmp_path)) == (
        f"{tmp_path}: expected files of one format, got tofu in {tmp_path}/a.json, zsre in {tmp_path}/b.json. "
        "Name the files of one of them."
    )
