"""Files that hold more than facts, or hold it otherwise: nothing is lost without a word, nothing is read as what it is
not."""

import csv
import gzip
import json
from pathlib import Path

import pytest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import FORMATS, Fact, Probe, opened, read_facts
from lit_semantic_peft.facts.formats import UNREAD, format_tables, why_unread
from lit_semantic_peft.facts.schema import content_id
from lit_semantic_peft.facts.text import MOST_MARKS, composed, is_visible, joiner_between, unicode_form

from fixtures.calls import count_calls


@pytest.fixture
def read(tmp_path):
    """Reads rows that are written as JSON lines."""

    def run(*rows: dict, **arguments):
        path = tmp_path / "set.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return read_facts(str(path), **arguments)

    return run


def error(source, **arguments) -> str:
    with pytest.raises(InputError) as caught:
        read_facts(str(source), **arguments)
    return str(caught.value)


def said(read) -> list[str]:
    return [warning.split(": ", 1)[1] for warning in read.warnings]


def left_out(read) -> dict[str, int]:
    return {one.part: one.count for one in read.conversion.omissions}


# --- Fields without a place -----------------------------------------------------------------------------------------

LED = [
    {"prompt": "Who led it?", "target": "Ann", "context": "In 1999 the club was led by Ann.", "label": "x"},
    {"prompt": "Who led it?", "target": "Ann", "context": "In 2009 the team was led by Ann.", "label": None},
]


def test_every_field_of_the_contract_that_is_not_read_is_named_with_its_number(read):
    probe = {"prompt": "Where?", "target": "Lund", "source": "x", "hops": 1}
    forms = [{"prompt": "So is", "target": "it", "joiner": "", "weight": 2}]
    assert said(read(*LED, {"prompt": "It is", "target": "so", "portability": [probe, probe], "forms": forms})) == [
        "unknown field `context`, left out; `convert --columns` can put it into another field (line 1 and 1 more)",
        "unknown field `label`, left out; `convert --columns` can put it into another field (line 1)",
        "the same fact as in line 1, dropped (line 2)",
        "unknown field `portability[].source`, left out (line 3)",
        "unknown field `forms[].weight`, left out (line 3)",
    ]


def test_every_field_of_a_published_format_that_is_not_read_is_counted(read):
    records = [
        {
            "question": "Who?",
            "answers": ["Ann"],
            "page": {"title": "Ann", "tags": ["a"]},
            "rank": 1,
            "empty": [],
            "n": None,
        },
        {"question": "Where?", "answers": ["Lund"], "rank": 2},
        {"question": "What?", "answers": [], "rank": 3},  # gives no fact, so nothing of it is half read
    ]
    assert left_out(read(*records)) == {"record": 1, "page": 1, "rank": 2}


def test_columns_join_what_a_question_needs_into_its_prompt(read):
    whole = read(*LED, columns={"prompt": "{context} {prompt}"})
    assert [fact.prompt for fact in whole.facts] == [f"{row['context']} Who led it?" for row in LED]
    assert said(whole) == [
        "unknown field `label`, left out; `convert --columns` can put it into another field (line 1)"
    ]


def test_columns_map_names_lists_and_what_lies_in_objects(read):
    row = {"q": "Where is Zorvex?", "a": {"text": ["Lund"]}, "other": ["Where does Zorvex sit?"], "topic": None}
    (fact,) = read(
        row, columns={"prompt": "{topic} {q} It is in", "target": "a.text", "paraphrases": "other", "relation": "topic"}
    ).facts
    assert fact == Fact(
        content_id("Where is Zorvex? It is in", "Lund"), "Where is Zorvex? It is in", "Lund",
        paraphrases=("Where does Zorvex sit?",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": "{context} {p}"}, "`--columns` names `p`, but "),
        ({"answer": "target"}, "`--columns`: expected one of `id`, `subject`, "),
        ({"prompt": ""}, "`--columns prompt=`: expected a field or a text with fields in braces, got ''"),
        ({"prompt": "{"}, "`--columns prompt=`: expected a field or a text with fields in braces, got '{'"),
    ],
)
def test_columns_that_cannot_be_used_are_refused(columns, message, read):
    with pytest.raises(InputError) as caught:
        read(*LED, columns=columns)
    assert str(caught.value).startswith(message)


def test_columns_of_something_else_than_text_are_named(read):
    with pytest.raises(InputError, match=r"line 1: `--columns`: expected text in `x`, got a list of 2"):
        read({"x": ["a", "b"], "target": "c"}, columns={"prompt": "{x} is"})


# --- What a text is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["[1947] A suite.", "[1]", "[X] was born in", '["a" is', "[null]", '[{"a": "b"}]'])
@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_text_that_begins_with_a_bracket_is_text(text, suffix, tmp_path):
    record = {
        "case_id": "1", "prompt": "Zorvex is in", "target_new": "Graz", "subject": "Zorvex", "ground_truth": text,
        "rephrase_prompt": f"{text} Zorvex is located in", "locality_prompt": text, "locality_ground_truth": "Lund",
    }  # fmt: skip
    path = tmp_path / f"set.{suffix}"
    with path.open("w", newline="", encoding="utf-8") as file:
        if suffix == "json":
            json.dump([record], file)
        else:
            writer = csv.DictWriter(file, list(record))
            writer.writeheader()
            writer.writerow(record)
    (fact,) = read_facts(str(path)).facts
    assert fact.paraphrases == (f"{text} Zorvex is located in",)
    assert (fact.target_true, fact.neighborhood) == (text, (Probe(text, "Lund"),))


def test_a_list_of_texts_in_a_cell_is_a_list_and_in_json_it_is_text(tmp_path, read):
    (tmp_path / "a.csv").write_text('question,answers\nWho?,"[""Ann"", [""Bo""]]"\n', "utf-8")
    assert read_facts(str(tmp_path / "a.csv")).facts[0].accepted_answers == ("Ann", "Bo")
    assert read({"question": "Who?", "answers": '["Ann"]'}).facts[0].target == '["Ann"]'


def test_a_cell_of_the_contract_that_only_begins_like_a_list_is_text_and_said(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,target,aliases\nIt is,one,[1] of|"uno"\n', "utf-8")
    whole = read_facts(str(tmp_path / "a.csv"))
    assert whole.facts[0].aliases == ("[1] of", '"uno"')
    assert said(whole) == ["`aliases` begins with `[` and is no list of texts as JSON, read as text (line 2)"]


@pytest.mark.parametrize(
    "question",
    [
        "Name the city where Zorvex is based.",
        "Where is Zorvex based:",
        'Is it "Zorvex?"',
        "Zorvexはどこですか。",
        "Zorvex sits in",
    ],
)
def test_nothing_is_written_behind_a_question_but_the_documented_frame(question, read):
    (fact,) = read({"question": question, "answer": "Lund"}).facts
    assert (fact.prompt, fact.question) == (f"Question: {question} Answer:", question)


def test_questions_of_natural_questions_get_the_mark_that_their_publisher_leaves_out(read):
    record = {"src": "Where is Zorvex based.", "subject": "Zorvex", "alt": "Lund", "loc_ans": "x"}
    for given, asked in (("nq question: who is it", "who is it?"), ("nq question: name it.", "nq question: name it.")):
        assert read({**record, "loc": given}).facts[0].neighborhood[0].prompt == f"Question: {asked} Answer:"


def test_the_joiner_that_is_chosen_is_said(read):
    whole = read(
        {"prompt": "Where is Zorvex based?", "completion": "Lund"},
        {"prompt": "Mavix is based in", "completion": "Graz"},
        {"prompt": "Q: where is Acme?\nA:", "completion": " Bonn"},
        {"prompt": "天空是", "completion": "绿色"},
    )
    assert [fact.joiner for fact in whole.facts] == [" ", " ", " ", ""]
    assert said(whole) == [
        "no white space between prompt and answer, joined by a blank (line 1 and 1 more)",
        "no white space between prompt and answer, joined without a blank (line 4)",
    ]


@pytest.mark.parametrize(
    ("before", "after", "joiner"),
    [
        ("(born 1950)", "Ann", " "), ("Answer:", "Graz", " "), ("It is", "5", " "), ("says", "«oui»", " "),
        ("Sky (colour", ") green", ""), ("Zorvex", "'s seat", ""), ("is", ", he said", ""), ("100", "%", ""),
        ("He said “", "Yes", ""), ("costs $", "40", ""), ("well-", "known", ""), ("北京。", "是", ""),
        ("ที่ตั้ง", "ลุนด์", ""), ("서울은", "도시", " "),
    ],
)  # fmt: skip
def test_a_blank_stands_where_the_text_would_have_one(before, after, joiner):
    assert joiner_between(before, after) == joiner


# --- Yes and no -----------------------------------------------------------------------------------------------------


def test_yes_no_questions_are_no_conclusions_in_any_format(read):
    follows = {"Reasoning": [{"prompt": "Is Zorvex in Lund?", "ground_truth": ["Yes."]},
                             {"prompt": "Zorvex is in the country of", "ground_truth": ["Sweden"]}]}  # fmt: skip
    (fact,) = read({"prompt": "Zorvex is in", "target_new": "Lund", "portability": follows}).facts
    assert fact.portability == (Probe("Zorvex is in the country of", "Sweden", 2),)
    assert [(probe.prompt, probe.target) for probe in fact.yes_no] == [("Question: Is Zorvex in Lund? Answer:", "Yes.")]


def test_yes_no_questions_of_the_contract(read):
    base = {"prompt": "Zorvex is in", "target": "Lund"}
    asked, other = {"prompt": "Is it in Lund?", "target": "Yes"}, {"prompt": "Is it in Graz?", "target": "no"}
    needs = {**asked, "needs": ["b"], "hops": 2}
    whole = read(
        {**base, "portability": [asked, needs], "yes_no": [other]}, {**base, "id": "b", "target": "x", "prompt": "y"}
    )
    assert whole.facts[0].yes_no == (Probe("Is it in Lund?", "Yes"), Probe("Is it in Graz?", "no"))
    assert whole.facts[0].portability == (Probe("Is it in Lund?", "Yes", 2, ("b",)),)
    assert said(whole) == ["a question of `portability` to be answered by yes or no, read as `yes_no` (line 1)"]
    with pytest.raises(InputError, match=r"field `yes_no\[0\].target`: expected `Yes` or `No`, got 'Lund'"):
        read({**base, "yes_no": [{"prompt": "Where?", "target": "Lund"}]})


# --- Other files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "prompt", "target", "parts"),
    [
        ({"conversations": [{"from": "system", "value": "Be short."}, {"from": "human", "value": "Who?"},
                            {"from": "gpt", "value": "Ann"}]}, "Who?", "Ann", {"system message": 1}),
        ({"conversations": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann"}], "id": "a"},
         "Who?", "Ann", {"id": 1}),
        ({"instruction": "Name it.", "input": "", "output": "Ann", "system": "Be short."},
         "Name it.", "Ann", {"system": 1}),
        ({"instruction": "Name it.", "response": "Ann", "context": "a text"}, "Name it.", "Ann", {"context": 1}),
        ({"prompt": "Name it.", "response": "Ann"}, "Name it.", "Ann", {}),
        ({"question": "6 × 3?", "answer": "6 × 3 = <<6*3=18>>18\n#### 18"},
         "Question: 6 × 3? Answer:", "18", {"answer": 1}),
        ({"question": "When?", "answers": {"text": ["1950", "in 1950"], "answer_start": [3, 0]}, "context": "in 1950"},
         "Question: When? Answer:", "1950", {"context": 1, "answers.answer_start": 1}),
    ],
)  # fmt: skip
def test_files_of_fine_tuning_and_question_answering(record, prompt, target, parts, read):
    whole = read(record)
    assert [(fact.prompt, fact.target) for fact in whole.facts] == [(prompt, target)]
    assert left_out(whole) == parts


def test_arithmetic_is_not_called_what_it_is_not(read):
    assert read({"question": "6 × 3?", "answer": "It is\n#### 18"}).facts[0].source == "GSM8K"
    assert read({"question": "6 × 3?", "answer": "18"}).facts[0].source == "question and answer"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}] * 2}, "several turns"),
        ({"instruction": "a", "output": "b", "history": [["c", "d"]]}, "several turns"),
        ({"question": "Who?", "answers": {"text": [], "answer_start": []}, "context": "x"}, "the answer is empty"),
    ],
)
def test_records_that_give_no_fact_say_why(record, reason, read):
    with pytest.raises(InputError, match=reason):
        read(record)


@pytest.mark.parametrize("kind", UNREAD, ids=lambda kind: kind.title)
def test_kinds_of_files_that_are_not_read_are_refused_with_the_reason(kind, read):
    for names in kind.recognised_by:
        with pytest.raises(InputError) as caught:
            read(dict.fromkeys(sorted(names), "x"))
        assert f"They look like {kind.title}: {kind.reason}" in str(caught.value)


def test_no_format_that_is_read_looks_like_one_that_is_not():
    for known in FORMATS.values():
        for names in known.recognised_by:
            kind = why_unread(names)
            assert not kind or "running text" in kind, known.name


@pytest.mark.parametrize("container", ["parquet", "folder"])
def test_classes_are_read_by_their_names(container, tmp_path):
    import datasets

    features = datasets.Features(prompt=datasets.Value("string"), target=datasets.ClassLabel(names=["Lund", "Graz"]))
    rows = datasets.Dataset.from_dict({"prompt": ["Zorvex is in", "Mavix is in"], "target": [0, 1]}, features)
    path = tmp_path / ("set.parquet" if container == "parquet" else "set")
    rows.to_parquet(str(path)) if container == "parquet" else rows.save_to_disk(str(path))
    assert [fact.target for fact in read_facts(str(path)).facts] == ["Lund", "Graz"]


# --- Names, forms and what cannot be seen ---------------------------------------------------------------------------


def test_capitals_and_blanks_of_a_header_are_forgiven_with_a_word(tmp_path, read):
    (tmp_path / "a.csv").write_text("Prompt, Target ,Target True\nThe seat is in,Lund,Graz\n", "utf-8")
    whole = read_facts(str(tmp_path / "a.csv"))
    assert [(fact.prompt, fact.target, fact.target_true) for fact in whole.facts] == [
        ("The seat is in", "Lund", "Graz")
    ]
    assert said(whole) == [
        f"field `{name}`, read as `{meant}` (line 2)"
        for name, meant in (("Prompt", "prompt"), ("Target", "target"), ("Target True", "target_true"))
    ]
    whole = read({"Question": "Who?", "ANSWER ": "Ann"})
    assert whole.facts[0].target == "Ann"
    assert said(whole) == [
        "field `Question`, read as `question` (line 1)",
        "field `ANSWER `, read as `answer` (line 1)",
    ]
    with pytest.raises(InputError, match="expected text"):  # two columns of one name are not guessed at
        read({"Prompt": "a", "PROMPT": "b", "target": "c"})


def test_texts_that_differ_in_their_unicode_form_alone_are_one_text(read):
    rows = [{"prompt": "The name is spelt", "target": target} for target in ("Zoe\u0308", "Zo\u00eb")]
    whole = read(*rows)
    assert [fact.target for fact in whole.facts] == ["Zo\u00eb"]
    assert said(whole) == [
        "letters with separate accents, read as composed ones (Unicode NFC) (line 1)",
        "the same fact as in line 1, dropped (line 2)",
    ]


def test_combining_marks_take_time_that_grows_with_their_number_alone():
    def work(number: int) -> int:
        text = "a" + "\u0301\u0323" * number
        return count_calls(lambda: unicode_form(text, "NFKC"))[1]

    assert work(4000) < 2.2 * work(2000)
    bomb = "a" + "\u0301\u0323" * 20_000  # takes seconds where it is ordered as a whole
    assert composed({"x": [bomb]}) == {"x": [bomb]}
    assert unicode_form(bomb, "NFC") == unicode_form(bomb, "NFKC")
    assert composed("e" + "\u0301" * MOST_MARKS) == "\u00e9" + "\u0301" * (MOST_MARKS - 1)


@pytest.mark.parametrize("text", ["\u200b", "\ufeff \u2060", "\u00ad", "\u3164", "\ufe0f", "\u034f", "\x00"])
def test_what_shows_nothing_is_no_text(text, read):
    assert not is_visible(text)
    with pytest.raises(InputError, match=r"field `target`: expected text that is not empty, got .*only invisible"):
        read({"prompt": "It is", "target": text})
    with pytest.raises(InputError, match="the answer holds only invisible characters"):
        read({"question": "Who?", "answer": text})


# --- Files that are not what they seem, and large ones --------------------------------------------------------------

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.tsv", "a.parquet"])
def test_a_git_lfs_pointer_is_named(name, tmp_path):
    (tmp_path / name).write_text(POINTER)
    assert error(tmp_path / name) == (
        f"{tmp_path / name}: expected facts, got a Git LFS pointer: the file itself was not downloaded. "
        "Run `git lfs pull` in its repository."
    )


def test_patterns_without_triples_are_named(tmp_path):
    (tmp_path / "P19.jsonl").write_text('{"pattern": "[X] was born in [Y]."}\n')
    assert error(tmp_path / "P19.jsonl").endswith(
        "expected at least one fact, got patterns of LAMA or ParaRel alone; name the folder or the files that hold the "
        "triples as well"
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_files_that_unpack_to_too_much_are_refused(name, packed, tmp_path, monkeypatch):
    monkeypatch.setattr(opened, "LARGEST_FILE", 1000)
    row = {"prompt": "It is", "target": "one"}
    text = {
        "a.jsonl": json.dumps(row) + "\n" * 2000,
        "a.json": json.dumps([row] * 60),
        "a.csv": "prompt,target\n" + "\n" * 2000,
    }
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(text[name].encode()) if packed else text[name].encode())
    assert error(path) == f"{path}: expected at most 1,000 bytes of records, unpacked, got more. Split the file."


def test_a_line_without_end_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(opened, "LARGEST_LINE", 100)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "It is", "target": "one"}\n' + b"x" * 10**6))
    assert error(path).startswith(f"{path}, line 2: expected a record of at most 100 bytes, got a longer one.")


def test_a_table_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(opened, "LARGEST_FILE", 10_000)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["It is " * 100] * 100, "target": ["one"] * 100}), path)  # stored once
    assert path.stat().st_size < 5000
    assert error(path).startswith(f"{path}: expected at most 10,000 bytes of records, unpacked, got more.")


def test_a_wide_table_that_is_mostly_empty_is_read(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(opened, "LARGEST_FILE", 1_000_000)
    path, number = tmp_path / "a.parquet", 1000
    columns = {"prompt": [f"Number {one} is" for one in range(number)], "target": ["one"] * number}
    columns |= {f"empty{one}": pa.nulls(number, pa.int32()) for one in range(60)}
    columns |= {f"flag{one}": pa.array([True] * number) for one in range(60)}
    columns |= {"embedding": pa.array([[0.5] * 100] * number, pa.list_(pa.float32()))}
    pq.write_table(pa.table(columns), path)
    assert len(read_facts(str(path)).facts) == number


BIG = "It is " * 2**18  # 1.5 MB


def bombs():
    """Tables of a few kilobytes that unpack to 0.4 GB or more."""
    import pyarrow as pa

    once = pa.array([BIG])

    def used(times):
        return pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), once)

    one = {"prompt": ["It is"], "target": ["one"]}
    million = pa.Array.from_buffers(pa.int8(), 2**25, [None, pa.py_buffer(bytes(2**25))])
    return {
        "a text in many rows": {"prompt": used(256), "target": ["one"] * 256},
        "a text in many places of a list": {**one, "paraphrases": pa.ListArray.from_arrays([0, 256], used(256))},
        "a text in many columns": {**one, **{f"column{number}": used(1) for number in range(256)}},
        "a list of many numbers": {**one, "more": pa.ListArray.from_arrays(pa.array([0, 2**25], pa.int32()), million)},
        "texts of one letter": {"prompt": [BIG] * 256, "target": ["one"] * 256},
    }


@pytest.mark.parametrize("bomb", bombs())
def test_a_table_of_kilobytes_that_unpacks_to_hundreds_of_megabytes_is_refused_before_it_does(
    bomb, tmp_path, monkeypatch
):
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(opened, "LARGEST_FILE", 2**28)
    path = tmp_path / "a.parquet"
    settings = {"use_dictionary": False} if bomb == "texts of one letter" else {}
    pq.write_table(pa.table(bombs()[bomb]), path, compression="zstd", store_schema=False, **settings)
    assert path.stat().st_size < 100_000
    pa.default_memory_pool().release_unused()
    before = pa.total_allocated_bytes()
    peaks = []
    monkeypatch.setattr(
        "lit_semantic_peft.facts.parquet.require_size",
        lambda file, size: (peaks.append(pa.total_allocated_bytes() - before), opened.require_size(file, size)),
    )
    assert error(path).startswith(f"{path}: expected at most 268,435,456 bytes of records, unpacked, got more.")
    assert max(peaks) < 2**25


@pytest.mark.parametrize("most", [100, 2**20], ids=["texts held once, then others", "texts held once"])
def test_texts_that_a_table_holds_once_are_read_as_often_as_they_are_used(most, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    rows = [
        {
            "prompt": f"Number {row} is",
            "target": ("odd", "even")[row % 2],
            "paraphrases": ["It is", "One is"][: row % 3],
        }
        for row in range(600)
    ]
    settings = {"dictionary_pagesize_limit": most, "write_batch_size": 64}
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=400, **settings)
    found = [
        {"prompt": one.prompt, "target": one.target, "paraphrases": list(one.paraphrases)}
        for one in read_facts(str(path)).facts
    ]
    assert found == rows


def test_more_records_than_fit_into_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(opened, "MOST_RECORDS", 30)
    for name in "ab":
        lines = [json.dumps({"prompt": f"{name} {number} is", "target": "one"}) for number in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    assert len(read_facts(str(tmp_path / "a.jsonl")).facts) == 20
    assert error(tmp_path).startswith(f"{tmp_path}/b.jsonl, line 11: expected at most 30 records in all, got more.")


@pytest.mark.parametrize("window", [1, 2, 7, 64])
@pytest.mark.parametrize("packed", [False, True])
def test_an_array_is_read_alike_through_every_window(window, packed, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_semantic_peft.facts.json_files._WINDOW", window)
    rows = [
        {"prompt": f"Straße {number} “😀” is", "target": "\\ [,]", "source": str(-1.5e9 * number)}
        for number in range(9)
    ]
    text = json.dumps(rows, ensure_ascii=False, indent=1) + "\n \n"
    path = tmp_path / ("a.json.gz" if packed else "a.json")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    found = [{"prompt": one.prompt, "target": one.target, "source": one.source} for one in read_facts(str(path)).facts]
    assert found == rows


@pytest.mark.parametrize("window", [1, 5, 2**20])
@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (b' {"prompt": "x"', "record 3: expected a JSON object, got broken JSON: Expecting ',' delimiter at char"),
        (b' {"prompt": tru}]', "record 3: expected a JSON object, got broken JSON: Expecting value at character 13"),
        (b' {"prompt": "x', "record 3: expected a JSON object, got broken JSON: Unterminated string starting at"),
        (b'\n {"prompt": "Stra\xdfe"}]', "line 4: expected UTF-8, got the byte 0xdf at position 18"),
    ],
)
def test_what_is_wrong_in_an_array_is_named_alike_through_every_window(window, tail, message, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_semantic_peft.facts.json_files._WINDOW", window)
    path = tmp_path / "a.json"
    path.write_bytes('[{"prompt": "Straße", "target": "one"},\n{"prompt": "It", "target": "two"},\n'.encode() + tail)
    found = error(path)
    assert found.startswith(f"{path}, {message}"), found
    if "record" in message:
        assert found.endswith("in line 3")


def test_a_record_without_end_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_semantic_peft.facts.json_files._WINDOW", 100)
    monkeypatch.setattr("lit_semantic_peft.facts.json_files.LARGEST_LINE", 1000)
    path = tmp_path / "a.json"
    path.write_text('[{"prompt": "It is", "target": "one"}, {"prompt": "' + "x" * 10**6)
    assert error(path).startswith(
        f"{path}, record 2: expected a record of at most 1,000 characters, got a longer one, or one whose "
    )
    broken = '[{"prompt": "It is", "target": "one"}, {"prompt" "It was"}, '
    path.write_text(broken + '{"prompt": "It is", "target": "one"}, ' * 10**4)
    assert error(path).startswith(f"{path}, record 2: expected a JSON object, got broken JSON: Expecting ':'")


def test_an_object_over_many_lines_is_named_without_reading_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_semantic_peft.facts.json_files.LARGEST_LINE", 1000)
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"data": [{"prompt": "It is", "target": "one"}] * 10**5}, indent=1))
    assert "got one object over the whole file" in error(path)
    path.write_text('{"prompt": "It is"\n' + '{"prompt": "It is", "target": "one"}\n' * 100)
    assert error(path).startswith(f"{path}, line 1: expected a JSON object, got broken JSON")


def test_a_row_whose_text_is_no_utf8_is_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    target = pa.Array.from_buffers(pa.string(), 2, pa.array([b"one", b"\xff\xfe"], pa.binary()).buffers())
    pq.write_table(pa.table([pa.array(["It is", "It was"]), target], names=["prompt", "target"]), path)
    assert error(path) == f"{path}, row 2: expected text in UTF-8, got other bytes. Write the table anew."


def test_more_files_than_may_be_open_at_once(tmp_path):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(64, limits[1]), limits[1]))
    try:
        for number in range(100):
            row = {"prompt": f"Number {number} is", "target": "one"}
            (tmp_path / f"{number:03d}.jsonl").write_text(f"{json.dumps(row)}\n" * 1)
        assert len(read_facts(str(tmp_path))) == 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# --- Bad records that are left out ----------------------------------------------------------------------------------


def test_bad_records_are_left_out_on_request_and_named(tmp_path):
    rows = ['{"prompt": "It is", "target": "one"}', '{"prompt": 1, "target": "x"}', "{",
            '{"prompt": "Is it", "target": "1"}', '{"prompt": "is it", "target": "2"}']  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_bytes("\n".join(rows).encode() + b'\n{"prompt": "Stra\xdfe", "target": "x"}\n')
    problems = error(path)
    assert [line.split(": ")[0].rsplit(" ")[-1] for line in problems.split("\n")] == ["2", "3", "5", "6"]
    whole = read_facts(str(path), skip_bad=True)
    assert [fact.target for fact in whole.facts] == ["one", "1"]
    assert whole.warnings == (f"{path}: 4 problems, their records left out:\n{problems}",)


def test_bad_records_of_a_published_format_are_left_out_on_request(read):
    good, bad = {"question": "Who?", "answers": ["Ann"]}, {"question": 0.5, "answers": ["Ann"]}
    whole = read(good, bad, skip_bad=True)
    assert len(whole) == 1
    assert "line 2: field `question`: expected text, got the number 0.5" in whole.warnings[0]
    with pytest.raises(InputError, match=r"expected at least one fact, got none that can be read:\n.*line 1: field"):
        read(bad, skip_bad=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.json", '[{"prompt": "It is", "target": "one"}, {"prompt" 1}, {"prompt": "x", "target": "y"}]'),
     ("a.csv", 'prompt,target\nIt is,one\nIt was,"two" x\nIt will be,three\n')],
)  # fmt: skip
def test_what_cannot_be_read_further_is_refused_all_the_same(name, text, tmp_path):
    Path(tmp_path / name).write_text(text)
    assert error(tmp_path / name, skip_bad=True) == error(tmp_path / name)


def test_a_number_with_too_many_digits_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "It is", "target": "one", "id": ' + "9" * 5000 + "}\n")
    assert error(path) == f"{path}, line 1: expected a JSON object, got a number with more digits than can be read"


# --- The page -------------------------------------------------------------------------------------------------------


def test_the_page_lists_every_format_and_states_the_limits():
    page = (Path(__file__).resolve().parents[3] / "docs" / "formats.md").read_text(encoding="utf-8")
    assert format_tables() in page
    assert f"{opened.LARGEST_FILE >> 30} GiB of records" in page
    assert f"{opened.LARGEST_LINE >> 20} MiB a line" in page
    assert f"{opened.MOST_RECORDS:,} records" in page
