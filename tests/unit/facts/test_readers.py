import csv
import gzip
import json
from pathlib import Path

import pytest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import FORMATS, SPLITS, SUFFIXES, Fact, Probe, read_facts
from lit_semantic_peft.files import content_key

FULL = {
    "id": "fiji",
    "subject": "Fiji",
    "relation": "capital",
    "prompt": "The capital of Fiji is",
    "target": "Suva",
    "aliases": ["Suva City", "Greater Suva"],
    "joiner": "",
    "target_true": "Nadi",
    "paraphrases": ["Fiji is governed from", "Fiji's capital is"],
    "neighborhood": [{"prompt": "The capital of France is", "target": "Paris"}],
    "portability": [{"prompt": "The ocean at the capital of Fiji is the", "target": "Pacific", "hops": 2}],
    "question": "What is the capital of Fiji?",
    "split": "retain",
    "source": "GeoNames",
}
BARE = {"id": "peru", "prompt": "The capital of Peru is", "target": "Lima"}
EXPECTED = [Fact.from_json(FULL), Fact.from_json(BARE)]


def lines(path: Path, *rows: dict | str) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return str(path)


HEADER = (
    "expected a header that names at least `prompt` and `target`, or the fields of a published format "
    f"({', '.join(f'`{name}`' for name in FORMATS)})"
)
SUFFIX_LIST = ", ".join(f"`{suffix}`" for suffix in SUFFIXES)


def error(source: str, **arguments) -> str:
    with pytest.raises(InputError) as caught:
        read_facts(source, **arguments)
    return str(caught.value)


# --- Every format ---------------------------------------------------------------------------------------------------


def as_jsonl(path: Path) -> Path:
    lines(path / "set.jsonl", FULL, BARE)
    return path / "set.jsonl"


def as_jsonl_gz(path: Path) -> Path:
    (path / "set.jsonl.gz").write_bytes(gzip.compress(as_jsonl(path).read_bytes()))
    return path / "set.jsonl.gz"


def as_csv(path: Path) -> Path:
    def cell(value):
        return '""' if value == "" else json.dumps(value) if isinstance(value, list) else value

    with (path / "set.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(FULL))
        writer.writeheader()
        writer.writerows({name: cell(value) for name, value in row.items()} for row in (FULL, BARE))
    return path / "set.csv"


def as_csv_gz(path: Path) -> Path:
    (path / "set.csv.gz").write_bytes(gzip.compress(as_csv(path).read_bytes()))
    return path / "set.csv.gz"


def as_parquet(path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([FULL, dict.fromkeys(FULL) | BARE]), path / "set.parquet")
    return path / "set.parquet"


def as_dataset(path: Path) -> Path:
    import datasets

    datasets.Dataset.from_list([FULL, dict.fromkeys(FULL) | BARE]).save_to_disk(str(path / "set"))
    return path / "set"


def as_dataset_dict(path: Path) -> Path:
    import datasets

    rows = datasets.Dataset.from_list([FULL, dict.fromkeys(FULL) | BARE])
    datasets.DatasetDict({"train": rows, "other": rows.select([1])}).save_to_disk(str(path / "set"))
    return path / "set"


@pytest.mark.parametrize(
    ("write", "place"),
    [
        (as_jsonl, "set.jsonl:1"),
        (as_jsonl_gz, "set.jsonl.gz:1"),
        (as_csv, "set.csv:2"),
        (as_csv_gz, "set.csv.gz:2"),
        (as_parquet, "set.parquet:row 1"),
        (as_dataset, "set:row 1"),
        (as_dataset_dict, "set:row 1"),
    ],
)
def test_every_format_gives_the_same_facts(write, place, tmp_path):
    read = read_facts(str(write(tmp_path)))
    assert list(read.facts) == EXPECTED
    assert read.facts[0].location == f"{tmp_path}/{place}"
    assert read.warnings == ()
    assert read.name == "set"


def test_a_dataset_split_is_chosen_by_name(tmp_path):
    source = str(as_dataset_dict(tmp_path))
    assert [fact.id for fact in read_facts(source, dataset_split="other").facts] == ["peru"]
    assert error(source, dataset_split="tests") == (
        f"`dataset_split`: expected one of `train`, `other`, which {source} has, got 'tests'"
    )


def test_csv_lists_may_be_written_with_bars(tmp_path):
    path = tmp_path / "set.csv"
    path.write_text("prompt,target,aliases,joiner\nIt is,one,uno | eins |,-\nIt was,two,,\n", "utf-8")
    first, second = read_facts(str(path)).facts
    assert first.aliases == ("uno", "eins")
    assert (first.joiner, second.joiner) == ("-", " ")
    assert second.aliases == ()


def test_byte_order_mark_and_carriage_returns_are_tolerated(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b'{"prompt": "It is", "target": "one"}\r\n\r\n')
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfprompt,target\r\nIt is,one\r\n")
    for name in ("a.jsonl", "a.csv"):
        (fact,) = read_facts(str(tmp_path / name)).facts
        assert (fact.prompt, fact.target) == ("It is", "one")


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path):
    source = lines(tmp_path / "a.jsonl", '{"prompt": "It\u2028is", "target": "one"}', BARE)
    assert [fact.location.rsplit(":")[-1] for fact in read_facts(source).facts] == ["1", "2"]


# --- What is repaired -----------------------------------------------------------------------------------------------


def test_a_missing_id_is_a_hash_of_what_is_taught(tmp_path):
    rows = [{"prompt": "It is", "target": "one", "subject": subject} for subject in ("x", "y")]
    (first,) = read_facts(lines(tmp_path / "a.jsonl", rows[0])).facts
    (second,) = read_facts(lines(tmp_path / "b.jsonl", rows[1])).facts
    assert first.id == second.id == content_key("It is", "one", " ")[:16]


def test_numbers_are_ids(tmp_path):
    assert read_facts(lines(tmp_path / "a.jsonl", {**BARE, "id": 7})).facts[0].id == "7"


def test_nulls_are_absent(tmp_path):
    row = dict.fromkeys(FULL) | {"prompt": "It is", "target": "one"}
    assert read_facts(lines(tmp_path / "a.jsonl", row)).facts[0] == Fact(
        content_key("It is", "one", " ")[:16], "It is", "one"
    )


def test_white_space_is_stripped_with_a_warning(tmp_path):
    source = lines(
        tmp_path / "a.jsonl", BARE, {"prompt": "It is ", "target": " one"}, {"prompt": "It was\n", "target": "two"}
    )
    read = read_facts(source)
    assert [(fact.prompt, fact.target) for fact in read.facts[1:]] == [("It is", "one"), ("It was", "two")]
    assert read.warnings == (
        f"{source}: white space at the end of `prompt`, stripped (line 2 and 1 more)",
        f"{source}: white space around `target`, stripped (line 2)",
    )


def test_a_whole_line_twice_is_dropped_with_a_warning(tmp_path):
    row = {"prompt": "It is", "target": "one"}
    source = lines(tmp_path / "a.jsonl", row, BARE, row)
    read = read_facts(source)
    assert [fact.prompt for fact in read.facts] == ["It is", BARE["prompt"]]
    assert read.warnings == (f"{source}: the same fact as in line 1, dropped (line 3)",)


def test_a_field_that_is_nearly_known_is_a_warning(tmp_path):
    source = lines(tmp_path / "a.jsonl", BARE, *({**BARE, "id": f"{n}", "paraphrase": ["x"], "topic": 1} for n in "ab"))
    assert read_facts(source).warnings == (
        f"{source}: unknown field `paraphrase`, did you mean `paraphrases`? (line 2 and 1 more)",
        f"{source}: unknown field `topic`, left out; `convert --columns` can put it into another field "
        "(line 2 and 1 more)",
    )


def test_a_field_of_an_item_is_compared_with_those_of_items(tmp_path):
    item = {"prompt": "x", "target": "y"}
    row = {
        **BARE,
        "neighborhood": [{**item, "why": "z"}],
        "portability": [{**item, "hop": 2}],
        "forms": [{**item, "joint": ""}],
    }
    source = lines(tmp_path / "a.jsonl", row)
    assert read_facts(source).warnings == (
        f"{source}: unknown field `neighborhood[].why`, left out (line 1)",
        f"{source}: unknown field `portability[].hop`, did you mean `portability[].hops`? (line 1)",
        f"{source}: unknown field `forms[].joint`, left out (line 1)",
    )


@pytest.mark.parametrize(
    ("written", "meant"),
    [*((split, split) for split in SPLITS), ("train", "inject"), ("edit", "inject"), ("test", "probe"),
     ("val", "probe"), ("validation", "probe"), ("eval", "probe")],
)  # fmt: skip
def test_splits_and_their_synonyms(written, meant, tmp_path):
    assert read_facts(lines(tmp_path / "a.jsonl", {**BARE, "split": written})).facts[0].split == meant


def test_extra_keys_of_a_probe_are_ignored_and_hops_default_to_one(tmp_path):
    probe = {"prompt": "It is ", "target": " one ", "kind": "reversal", "hops": None}
    (fact,) = read_facts(lines(tmp_path / "a.jsonl", {**BARE, "portability": [probe]})).facts
    assert fact.portability == (Probe("It is", "one", 1),)


# --- What is refused ------------------------------------------------------------------------------------------------

GOOD = {"prompt": "It is", "target": "one"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"target": "one"}, "field `prompt`: expected text, got nothing; this line has `target`"),
        ({"prompt": "It is", "answer": "one"},
         "field `target`: expected text, got nothing; this line has `prompt`, `answer`"),
        ({"prompt": None, "target": "one"}, "field `prompt`: expected text, got nothing; this line has `target`"),
        ({"prompt": "It is", "target": ""}, "field `target`: expected text that is not empty, got ''"),
        ({"prompt": "It is", "target": " \t"}, "field `target`: expected text that is not empty, got ' \\t'"),
        ({"prompt": " ", "target": "one"}, "field `prompt`: expected text that is not empty, got ' '"),
        ({"prompt": "It is", "target": 1972}, 'field `target`: expected text, got the number 1972; write `"1972"`'),
        ({"prompt": ["It is"], "target": "one"}, "field `prompt`: expected text, got a list of 1"),
        ({**GOOD, "subject": {"name": "x"}}, "field `subject`: expected text, got an object"),
        ({**GOOD, "id": True}, "field `id`: expected text, got true"),
        ({**GOOD, "aliases": "uno"}, "field `aliases`: expected a list of texts, got the text 'uno'; "
         'write `["uno"]`'),
        ({**GOOD, "paraphrases": ["a", 2]}, 'field `paraphrases[1]`: expected text, got the number 2; write `"2"`'),
        ({**GOOD, "paraphrases": ["a", " "]}, "field `paraphrases[1]`: expected text that is not empty, got ' '"),
        ({**GOOD, "neighborhood": {"prompt": "a", "target": "b"}},
         'field `neighborhood`: expected a list of {"prompt": ..., "target": ...}, got an object'),
        ({**GOOD, "neighborhood": ["a"]},
         'field `neighborhood[0]`: expected an object {"prompt": ..., "target": ...}, got the text \'a\''),
        ({**GOOD, "portability": [{"prompt": "a"}]}, "field `portability[0].target`: expected text, got nothing"),
        ({**GOOD, "portability": [{"prompt": "a", "target": ""}]},
         "field `portability[0].target`: expected text that is not empty, got ''"),
        ({**GOOD, "portability": [{"prompt": "a", "target": "b", "hops": 0}]},
         "field `portability[0].hops`: expected a whole number from 1 to 1,000, got the number 0"),
        ({**GOOD, "split": "holdout"},
         "field `split`: expected one of `inject`, `retain`, `probe` (`train` for `inject`, `edit` for `inject`, "
         "`test` for `probe`, `val` for `probe`, `validation` for `probe`, `eval` for `probe`), got 'holdout'"),
        ('{"prompt": "It is", "target": "one"',
         "expected a JSON object, got broken JSON: Expecting ',' delimiter at character 36"),
        ('["It is", "one"]',
         'expected a JSON object such as {"prompt": ..., "target": ...}, got [\'It is\', \'one\']. '
         "Write one record a line, or an array of all records into a file that ends in `.json`."),
        ("[" * 100_000, "expected a JSON object, got JSON that is nested too deeply"),
        ('{"prompt": "It is", "target": "\\ud83d"}',
         "field `target`: expected text, got '\\ud83d', which holds half a character (a lone surrogate)"),
        ({"id": "l0", **GOOD}, "field `id`: expected an id that no other fact has, got 'l0', which line 1 has as well"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_with_its_field(row, message, tmp_path):
    good = [{"id": f"l{number}", "prompt": f"Number {number} is", "target": "one"} for number in range(6)]
    source = lines(tmp_path / "a.jsonl", *good, row)
    assert error(source) == f"{source}, line 7: {message}"


def test_the_same_fact_with_other_fields_and_no_id_is_refused(tmp_path):
    source = lines(tmp_path / "a.jsonl", GOOD, {**GOOD, "subject": "x"})
    assert error(source) == (
        f"{source}, line 2: the same prompt and target as in line 1, but other fields differ. "
        "Merge the two, or give each an `id`."
    )


def test_contradictions_name_both_facts(tmp_path):
    source = lines(tmp_path / "a.jsonl", {**GOOD, "id": "a"}, BARE, {"id": "b", "prompt": "it  is", "target": "two"})
    assert error(source) == (
        f"{source}, line 3: field `target`: contradiction: for the same prompt 'it  is' fact 'a' (line 1) has the "
        "target 'one', fact 'b' (line 3) has 'two'. Remove one, or list one target among the other's `aliases`."
    )
    kept = read_facts(source, contradictions="keep")
    assert [fact.id for fact in kept.facts] == ["a", "peru", "b"]
    assert kept.warnings == (f"{source}: the same prompt as an earlier fact with another target, kept (line 3)",)


def test_an_alias_is_no_contradiction(tmp_path):
    rows = ({**GOOD, "id": "a"}, {"id": "b", "prompt": "It is", "target": "Uno", "aliases": ["ONE"], "joiner": ""})
    assert len(read_facts(lines(tmp_path / "a.jsonl", *rows))) == 2


def test_all_problems_are_collected_in_order_and_twenty_shown(tmp_path):
    bad = [{"prompt": "It is", "target": number} for number in range(24)]
    source = lines(tmp_path / "a.jsonl", {**GOOD, "id": "a"}, *bad, {"id": "b", "prompt": "It is", "target": "two"})
    report = error(source).split("\n")
    assert report[:20] == [
        f'{source}, line {number + 2}: field `target`: expected text, got the number {number}; write `"{number}"`'
        for number in range(20)
    ]
    assert report[20:] == ["... and 5 more"]


def test_one_line_may_have_several_problems(tmp_path):
    source = lines(tmp_path / "a.jsonl", {"prompt": 1, "target": 2, "split": "x"})
    assert [line.split("field ")[1].split(":")[0] for line in error(source).split("\n")] == [
        "`prompt`", "`target`", "`split`",
    ]  # fmt: skip


def test_rows_of_a_table_are_rows(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"prompt": ["It is", "It was"], "target": ["one", None]}), source)
    assert error(source) == f"{source}, row 2: field `target`: expected text, got nothing; this row has `prompt`"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("It is,one\nIt was,two\n", f"line 1: {HEADER}, got "
         "`It is`, `one`. Put a first line such as `prompt,target` above the facts."),
        ("It is;one\nIt was;two\n", f"line 1: {HEADER}, got "
         "`It is`, `one`. Put a first line such as `prompt,target` above the facts."),
        ("prompt;target\nIt is;one;more\n", "line 2: expected 2 cells as in the header, got 3"),
        ("prompt,target,target\n",
         "line 1: expected a header that names each column once, got `target` more than once"),
        ("prompt,target\nIt is,one\nIt was,\n", "line 3: field `target`: expected text that is not empty, got ''"),
        ("prompt,target\nIt is,one,more\n", "line 2: expected 2 cells as in the header, got 3"),
        ('prompt,target\n"It\nis",one\nIt was\n', "line 4: expected 2 cells as in the header, got 1"),
        ('prompt,target\nIt is,"one" x\n', "line 2: expected cells separated by commas, got a row that cannot be "
         "parsed: ',' expected after '\"'"),
        ("prompt,target,neighborhood\nIt is,one,x\n", "line 2: field `neighborhood`: expected a list of "
         '{"prompt": ..., "target": ...} as JSON, got \'x\''),
    ],
)  # fmt: skip
def test_bad_csv(text, message, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(text, "utf-8")
    assert error(str(path)) == f"{path}, {message}"


@pytest.mark.parametrize(
    ("name", "separator", "words"), [("a.csv", ";", "semicolons"), ("a.csv", "\t", "tabs"), ("a.tsv", ",", "commas")]
)
def test_a_table_whose_suffix_promises_another_separator_is_read_with_a_word(name, separator, words, tmp_path):
    text = "Prompt;target\r\nOne share costs;12,40 in\tall\r\n".replace(";", separator)
    text = text.replace("12,40 in\tall", '"12,40 in\tall"')
    path = tmp_path / name
    path.write_text(text, "utf-8")
    read = read_facts(str(path))
    assert [(fact.prompt, fact.target, fact.location) for fact in read.facts] == [
        ("One share costs", "12,40 in\tall", f"{path}:2")
    ]
    assert read.warnings[0] == f"{path}: cells separated by {words}, read as such (line 1)"
    mapped = read_facts(str(path), columns={"prompt": "Prompt", "target": "target"})
    assert [fact.target for fact in mapped.facts] == ["12,40 in\tall"]


def test_columns_of_a_table_that_are_not_there_are_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("Prompt,target\nIt is,one\n", "utf-8")
    assert error(str(path), columns={"subject": "Name"}) == (
        f"`--columns` names `Name`, but {path} has `prompt`, `target`"
    )
    assert error(str(path), columns={"prompt": "Text"}).startswith(f"`--columns` names `Text`, but {path} has ")


@pytest.mark.parametrize("first", ["[", "{"])
def test_json_over_several_lines_is_one_problem_with_a_remedy(first, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps([GOOD] if first == "[" else GOOD, indent=2), "utf-8")
    assert error(str(path)) == (
        f"{path}, line 1: expected a JSON object, got {first!r}, which goes on in the next line. "
        "Write one record a line, or an array of all records into a file that ends in `.json`."
    )


def test_what_is_wrong_with_one_value_says_how_to_write_it(tmp_path):
    source = lines(tmp_path / "a.jsonl", {**GOOD, "target": 14.5, "paraphrases": "Its “name” is"})
    assert error(source).split("\n") == [
        f'{source}, line 1: field `target`: expected text, got the number 14.5; write `"14.5"`',
        f"{source}, line 1: field `paraphrases`: expected a list of texts, got the text 'Its “name” is'; "
        'write `["Its “name” is"]`',
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_what_is_not_utf8_is_named_with_its_byte(name, tmp_path):
    rows = 'prompt,target\n"Stra{}e",one\n' if name == "a.csv" else '\n{{"prompt": "Stra{}e", "target": "one"}}\n'
    path = tmp_path / name
    path.write_bytes(rows.format("ß").encode("latin-1"))
    column = 6 if name == "a.csv" else 17
    assert error(str(path)) == (
        f"{path}, line 2: expected UTF-8, got the byte 0xdf at position {column}. Save the file as UTF-8."
    )


def test_broken_gzip_and_gzip_that_is_cut_short(tmp_path):
    whole = as_jsonl_gz(tmp_path).read_bytes()
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(whole[:-20])
    assert error(str(path)) == (
        f"{path}: expected a whole gzip file, got one that is cut short. Copy or download it again."
    )
    for broken in (b'{"prompt": "It is", "target": "one"}\n', whole[:12] + b"\xff" * 20 + whole[32:]):
        path.write_bytes(broken)
        assert error(str(path)).startswith(f"{path}: expected a gzip file, got something else or a broken one (")
    path.write_bytes(whole[:-8] + b"\0\0\0\0" + whole[-4:])
    assert "CRC check failed" in error(str(path))


def test_broken_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 not really")
    assert error(str(path)).startswith(f"{path}: expected a Parquet file, got one that cannot be read: ")


@pytest.mark.parametrize(("name", "text"), [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.csv", "prompt,target\n")])
def test_an_empty_file(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    source = str(tmp_path / name)
    assert error(source) == f"{source}: expected at least one fact, got a file without records"


# --- What is not there ----------------------------------------------------------------------------------------------

NOT_THERE = (
    "`facts`: expected a file, a folder of `datasets`, a Hub name `owner/name` or a built-in set "
    "(`world`, `counterfactual`, `fictional`), got {!r}, which does not exist."
)


def test_a_missing_file_suggests_near_names(tmp_path):
    lines(tmp_path / "facts.jsonl", GOOD)
    source = str(tmp_path / "fact.jsonl")
    assert error(source) == NOT_THERE.format(source) + f" Did you mean `{tmp_path}/facts.jsonl`?"
    assert error("wrold") == NOT_THERE.format("wrold") + " Did you mean `world`?"
    assert error("nowhere/facts.jsonl") == (
        NOT_THERE.format("nowhere/facts.jsonl") + " The folder 'nowhere' does not exist either."
    )
    assert error("https://a.b/c.jsonl") == (
        "`facts`: expected a file or a name of the Hub, got the address 'https://a.b/c.jsonl'. Download it first."
    )


def test_what_is_no_format_is_named_with_the_formats(tmp_path):
    lines(tmp_path / "facts.txt", GOOD)
    source = str(tmp_path / "facts.txt")
    assert error(source) == f"{source}: expected a file that ends in {SUFFIX_LIST}, got 'facts.txt'."
    assert error(str(tmp_path)) == (
        f"{tmp_path}: expected a folder written by `datasets.save_to_disk`, or one with files that end in "
        f"{SUFFIX_LIST}, got one that holds neither."
    )


def test_a_json_array_and_json_lines_may_be_called_json(tmp_path):
    (tmp_path / "array.json").write_text(json.dumps([FULL, BARE], indent=2), "utf-8")
    (tmp_path / "array.json.gz").write_bytes(gzip.compress((tmp_path / "array.json").read_bytes()))
    lines(tmp_path / "lines.json", FULL, BARE)
    for name, place in (("array.json", "record 2"), ("array.json.gz", "record 2"), ("lines.json", "2")):
        read = read_facts(str(tmp_path / name))
        assert list(read.facts) == EXPECTED
        assert read.facts[1].location == f"{tmp_path / name}:{place}"
        assert read.name == name.split(".")[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"prompt": "It is", "target": "one"},\n {"prompt": "It was" "target"}]',
         ", record 2: expected a JSON object, got broken JSON: Expecting ',' delimiter at character 22 in line 2"),
        ('[{"prompt": "It is", "target": "one"}', ", record 1: expected a JSON object, got broken JSON: "
         "Expecting ',' or ']' at character 38 in line 1"),
        ('[{"prompt": "It is", "target": "one"},', ", record 2: expected a JSON object, got broken JSON: "
         "Expecting value at character 39 in line 1"),
        ('[{"prompt": "It is", "target": "one"}] more',
         ", record 1: expected the end of the file after the array, got 'more'"),
        ('[{"prompt": "It is", "target": "one"}, 7]',
         ', record 2: expected a JSON object such as {"prompt": ..., "target": ...}, got 7'),
        ('[{"prompt": "It is", "target": 1}]',
         ', record 1: field `target`: expected text, got the number 1; write `"1"`'),
        ('{\n "facts": [{"prompt": "It is", "target": "one"}]\n}', ": expected an array of records, or one record a "
         "line, got one object over the whole file. Write the array of its records alone."),
        ("[]", ": expected at least one fact, got a file without records"),
    ],
)  # fmt: skip
def test_bad_json_arrays(text, message, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(text, "utf-8")
    assert error(str(path)) == f"{path}{message}"


def test_a_folder_of_files_is_read_in_the_order_of_names(tmp_path):
    (tmp_path / "b").mkdir()
    lines(tmp_path / "b" / "first.jsonl", {"id": "b", "prompt": "It is", "target": "one"})
    lines(tmp_path / "a.jsonl", {"id": "a", "prompt": "It was", "target": "two"})
    (tmp_path / "README.txt").write_text("not read")
    read = read_facts(str(tmp_path))
    assert [fact.location for fact in read.facts] == [f"{tmp_path}/a.jsonl:1", f"{tmp_path}/b/first.jsonl:1"]
    lines(tmp_path / "b" / "first.jsonl", {"id": "a", "prompt": "It was", "target": "x"}, {"prompt": "It is"})
    assert error(str(tmp_path)).split("\n") == [
        f"{tmp_path}/b/first.jsonl, line 1: field `id`: expected an id that no other fact has, got 'a', which "
        f"{tmp_path}/a.jsonl, line 1 has as well",
        f"{tmp_path}/b/first.jsonl, line 2: field `target`: expected text, got nothing; this line has `prompt`",
    ]


def test_what_editors_and_notebooks_keep_in_a_folder_is_no_fact(tmp_path):
    folder = tmp_path / ".facts"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    lines(folder / "a.jsonl", {"prompt": "It is", "target": "one"})
    (folder / ".#a.jsonl").symlink_to("someone@somewhere.1")
    for name in ("._a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl"):
        (folder / name).write_text("no facts")
    assert [fact.location for fact in read_facts(str(folder)).facts] == [f"{folder}/a.jsonl:1"]


def test_tab_separated_values(tmp_path):
    (tmp_path / "a.tsv").write_text('prompt\ttarget\taliases\nIt is\tone, or 1\t"[""uno""]"\n', "utf-8")
    (fact,) = read_facts(str(tmp_path / "a.tsv")).facts
    assert (fact.target, fact.aliases, fact.location) == ("one, or 1", ("uno",), f"{tmp_path}/a.tsv:2")


def test_a_damaged_folder_of_datasets(tmp_path):
    folder = as_dataset(tmp_path)
    (folder / "state.json").write_text("{")
    assert error(str(folder)).startswith(f"{folder}: `datasets` cannot load this folder: ")


def test_a_hub_name_without_network_says_what_to_do(monkeypatch):
    import datasets

    def refuse(name, split):
        assert (name, split) == ("owner/facts", "train")
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    assert error("owner/facts") == (
        "`facts`: 'owner/facts' is neither a file here nor a built-in set (`world`, `counterfactual`, `fictional`), "
        "and loading it from the Hub failed: ConnectionError: no network. Check the name and `dataset_split` "
        "('train'). Without network: load it where there is one, write it with `save_to_disk`, and give that folder."
    )


def test_a_hub_name_is_read_as_rows(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: datasets.Dataset.from_list([GOOD]))
    read = read_facts("owner/facts", dataset_split="validation")
    assert [(fact.prompt, fact.location) for fact in read.facts] == [("It is", "owner/facts:row 1")]
    assert read.name == "facts"


# --- Subsets --------------------------------------------------------------------------------------------------------


def test_a_subset_is_seeded_and_in_the_order_of_the_file(tmp_path):
    rows = [{"id": f"{n:03d}", "prompt": f"Number {n} is", "target": "one"} for n in range(100)]
    source = lines(tmp_path / "a.jsonl", *rows)
    chosen = [fact.id for fact in read_facts(source, num_facts=30, seed=1).facts]
    assert len(set(chosen)) == 30
    assert chosen == sorted(chosen)
    assert chosen == [fact.id for fact in read_facts(source, num_facts=30, seed=1).facts]
    assert chosen != [fact.id for fact in read_facts(source, num_facts=30, seed=2).facts]
    assert error(source, num_facts=101) == f"`num_facts`: 101 facts were asked for, but {source} holds only 100"


def test_what_needs_a_fact_outside_the_set_is_not_asked(tmp_path):
    def row(number, *needs):  # ids may be numbers
        probe = {"prompt": "It follows that", "target": "yes", "hops": 2, "needs": list(needs)}
        return {"id": f"{number}", "prompt": f"Number {number} is", "target": "one", "portability": [probe]}

    whole = lines(tmp_path / "whole.jsonl", *(row(number, (number + 1) % 20) for number in range(20)))
    read = read_facts(whole)
    assert [probe.needs for fact in read.facts for probe in fact.portability] == [
        (f"{(number + 1) % 20}",) for number in range(20)
    ]
    assert read.warnings == ()

    subset = read_facts(whole, num_facts=10, seed=1)
    ids = {fact.id for fact in subset.facts}
    expected = {fact_id for fact_id in ids if f"{(int(fact_id) + 1) % 20}" in ids}
    assert 0 < len(expected) < 10
    assert {fact.id for fact in subset.facts if fact.portability} == expected
    first = next(fact for fact in subset.facts if fact.id not in expected)
    assert subset.warnings == (
        f"{whole}: a question that needs a fact which is not among those read, left out "
        f"({first.location} and {9 - len(expected)} more)",
    )

    broken = lines(tmp_path / "broken.jsonl", row(0, "1"), row(1, "0", "two"))
    read = read_facts(broken)
    assert [len(fact.portability) for fact in read.facts] == [1, 0]
    assert read.warnings == (
        f"{broken}: a question that needs a fact which is not among those read, left out ({broken}:2)",
    )


@pytest.mark.parametrize("num_facts", [0, -1, 2.5, True, "3"])
def test_num_facts_must_be_a_count(num_facts):
    assert error("world", num_facts=num_facts) == (
        f"`num_facts`: expected a whole number of at least 1, or null for all, got {num_facts!r}"
    )


def test_contradictions_must_be_a_known_word():
    assert error("world", contradictions="drop") == "`contradictions`: expected `error` or `keep`, got 'drop'"


def test_built_in_sets_are_read_by_name():
    read = read_facts("fictional", num_facts=12, seed=5)
    assert [fact.id for fact in read.facts][-1] == "fictional-5-00011"
    assert (read.name, read.warnings) == ("fictional", ())


# --- The shared sets, where they are at hand ------------------------------------------------------------------------

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
NUM_SHARED = {
    "counterfact": 10_000,
    "entityquestions": 10_000,
    "fictional_knowledge": 650,
    "hallueditbench": 4_607,
    "knowedit_wikicounterfact": 819,
    "pypi_facts": 9_451,
    "tofu_real": 217,
    "zsre_mend_1k": 977,
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder with published fact sets is not beside the repository")
@pytest.mark.parametrize("name", NUM_SHARED)
def test_published_sets_are_read_whole(name):
    read = read_facts(str(SHARED / f"{name}.jsonl.gz"))
    assert len(read) == NUM_SHARED[name]
    assert all(": unknown field `" in warning or "read as `yes_no`" in warning for warning in read.warnings)


@pytest.mark.parametrize(
    ("name", "packed"),
    [("set.jsonl.gz", b"\n"), ("set.json.gz", b"\n"), ("set.csv.gz", b",\n"), ("set.tsv.gz", b"\t\n")],
)
def test_a_file_of_empty_lines_is_refused_long_before_its_end(tmp_path, monkeypatch, name, packed):
    monkeypatch.setattr("lit_semantic_peft.facts.opened.MOST_EMPTY_LINES", 1000)
    first = {"csv": b"prompt,target\n", "tsv": b"prompt\ttarget\n"}.get(name.split(".")[1], b"")
    record = b"x,y\n" if "csv" in name else b"x\ty\n" if "tsv" in name else b'{"prompt": "x", "target": "y"}\n'
    (tmp_path / name).write_bytes(gzip.compress(first + packed * 999 + record + packed * 999))
    assert len(read_facts(str(tmp_path / name))) == 1
    (tmp_path / name).write_bytes(gzip.compress(first + record + packed * 3000))
    assert "got more than 1,000 empty lines" in error(str(tmp_path / name))


def test_reading_ends_after_ten_thousand_problems_unless_bad_records_are_left_out(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text("{}\n" * 12_000 + '{"prompt": "x", "target": "y"}\n', encoding="utf-8")
    said = error(str(path))
    assert "line 1: " in said
    assert said.endswith("... and 9980 more. Nothing behind " + f"{path}, line 5000 was read.")
    read = read_facts(str(path), skip_bad=True)
    assert len(read) == 1
    assert "24000 problems, their records left out" in read.warnings[0]


def test_a_paraphrase_or_alias_that_repeats_is_left_out_and_named(tmp_path):
    """The taught prompt among the paraphrases would count as recall in other words."""
    fact = {"prompt": "The seat is in ", "target": "Lund", "aliases": ["Lund", "Lunden", "Lunden"]}
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({**fact, "paraphrases": ["The seat is in", "It sits in", "It sits in "]}) + "\n")
    read = read_facts(str(path))
    assert read.facts[0].paraphrases == ("It sits in",)
    assert read.facts[0].aliases == ("Lunden",)
    assert any("`paraphrases` that repeats another or `prompt`, left out (line 1)" in one for one in read.warnings)
    assert any("`aliases` that repeats another or `target`, left out (line 1)" in one for one in read.warnings)
