"""Files of facts that cannot be read, whole ones and single records, and what reads them."""

import gzip
import io
import json
import os
import shutil
from pathlib import Path

import pytest
from lit_semantic_peft.facts import opened

from fixtures.bad_inputs import GOOD, BadInput, Place

OTHER = {"id": "b", "prompt": "The capital of Eln is", "target": "Graz"}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
QUESTION = {"question": "Who led it?", "answers": ["Ann"]}


def record(name: str, *records: object, said: list[str]) -> BadInput:
    """A file of JSON lines whose last line is bad."""
    line = f"bad.jsonl, line {len(records)}"
    return BadInput(name, "convert bad.jsonl out.jsonl", [line, *said], {"bad.jsonl": records})


def content(name: str, file: str, data: str | bytes, *said: str, call: str = "convert {} out.jsonl") -> BadInput:
    """A file with these bytes."""
    return BadInput(name, call.format(file), [file, *said], {file: data})


def table(columns: dict[str, object]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def not_utf8() -> bytes:
    import pyarrow as pa

    target = pa.Array.from_buffers(pa.string(), 2, pa.array([b"one", b"\xff\xfe"], pa.binary()).buffers())
    return table({"prompt": ["It is", "It was"], "target": target})


def chat_template(template: str):
    """Gives a copy of the tiny model this template."""

    def make(place: Place) -> None:
        shutil.copytree(place.model, "own")
        (Path("own") / "chat_template.jinja").write_text(template)

    return make


def small_limits(place: Place) -> None:
    place.monkeypatch.setattr(opened, "LARGEST_FILE", 1000)
    place.monkeypatch.setattr("lit_semantic_peft.facts.json_files.LARGEST_LINE", 500)
    place.monkeypatch.setattr(opened, "LARGEST_LINE", 500)


def unreadable(place: Place) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    place.monkeypatch.setattr(gzip, "open", refuse)


def pipe(place: Place) -> None:
    os.mkfifo("bad.jsonl")


RECORDS = [
    record("no prompt", GOOD, {"target": "x"}, said=["field `prompt`: expected text, got nothing"]),
    record("no target", GOOD, {"prompt": "x"}, said=["field `target`"]),
    record("an empty target", {**GOOD, "target": " "}, said=["`target`: expected text that is not empty"]),
    record("a target of zero-width characters", {**GOOD, "target": "\u200b\ufeff"}, said=["only invisible characters"]),
    record("a number as target", {**GOOD, "target": 7}, said=["`target`: expected text, got the number 7"]),
    record("a list as prompt", {**GOOD, "prompt": ["x"]}, said=["`prompt`: expected text, got a list of 1"]),
    record("paraphrases that are no list", {**GOOD, "paraphrases": "x"}, said=["`paraphrases`", "list of texts"]),
    record(
        "a neighbour without a target", {**GOOD, "neighborhood": [{"prompt": "x"}]}, said=["neighborhood[0].target"]
    ),
    record(
        "a yes/no question with another answer",
        {**GOOD, "yes_no": [{"prompt": "Is it?", "target": "Lund"}]},
        said=["yes_no[0].target`: expected `Yes` or `No`, got 'Lund'"],
    ),
    record("no hops", {**GOOD, "portability": [{"prompt": "x", "target": "y", "hops": 0}]}, said=["hops"]),
    record("an unknown split", {**GOOD, "split": "sometimes"}, said=["`split`", "inject"]),
    record("the same id twice", GOOD, {**OTHER, "id": "a"}, said=["`id`", "line 1 has as well"]),
    record("two targets of one prompt", GOOD, {**GOOD, "id": "b", "target": "x"}, said=["contradiction", "aliases"]),
]
LINES = [
    content("a line that ends early", "bad.jsonl", json.dumps(GOOD) + '\n{"prompt": "x"', "line 2", "broken JSON"),
    content("a list as record", "bad.jsonl", "[1, 2]\n", "line 1", "expected a JSON object such as"),
    content(
        "a number of 5,000 digits", "bad.jsonl", '{"id": ' + "9" * 5000 + "}", "line 1", "more digits than can be read"
    ),
    content("JSON nested too deeply", "bad.jsonl", "[" * 100_000, "line 1", "nested too deeply"),
    content("a lone surrogate", "bad.jsonl", '{"prompt": "x", "target": "\\ud83d"}', "line 1", "half a character"),
    content(
        "a line in Latin-1", "bad.jsonl", '{"prompt": "Straße"}'.encode("latin-1"), "line 1", "expected UTF-8", "0xdf"
    ),
    content("UTF-16", "bad.jsonl", json.dumps(GOOD).encode("utf-16"), "line 1", "expected UTF-8", "as UTF-16 begins"),
    content("an empty file", "bad.jsonl", "", "a file without records"),
    content("a file of blank lines", "bad.json", "\n \n", "a file without records"),
    content("an array in a file of lines", "bad.jsonl", json.dumps([GOOD]), "line 1", "one record a line"),
    content("one object over the whole file", "bad.json", '{\n"data": [1]\n}', "one object over the whole file"),
    content("an array that ends early", "bad.json", json.dumps([GOOD, OTHER])[:-20], "record 2", "broken JSON"),
    content("text behind an array", "bad.json", json.dumps([GOOD]) + "more", "the end of the file after the array"),
    content("an array of numbers", "bad.json", "[1]", "record 1", "expected a JSON object"),
]
TABLES = [
    content("no header", "bad.csv", "The capital of Aro is,Lund\n", "line 1", "header"),
    content("a column twice", "bad.csv", "prompt,target,target\n", "line 1", "`target` more than once"),
    content("a cell too many", "bad.csv", "prompt,target\nx,y,z\n", "line 2", "expected 2 cells"),
    content("a quotation mark that nothing ends", "bad.csv", 'prompt,target\nx,"y\n', "line 2", "cannot be parsed"),
    content("a table in Latin-1", "bad.csv", "prompt,target\nStraße,x\n".encode("latin-1"), "line 2", "expected UTF-8"),
    content("neighbours that are no JSON", "bad.csv", "prompt,target,neighborhood\nx,y,z\n", "line 2", "as JSON"),
    content("a header alone", "bad.tsv", "prompt\ttarget\n", "a file without records"),
    content("bytes that are no Parquet", "bad.parquet", b"PAR1 not really", "expected a Parquet file"),
    content(
        "Parquet cut short", "bad.parquet", table({"prompt": ["x"], "target": ["y"]})[:-30], "expected a Parquet file"
    ),
    content(
        "Parquet with a number as target", "bad.parquet", table({"prompt": ["x"], "target": [1]}), "row 1", "`target`"
    ),
    content("text in Parquet that is not UTF-8", "bad.parquet", not_utf8(), "row 2", "expected text in UTF-8"),
]
ARCHIVES = [
    content("gzip cut short", "bad.jsonl.gz", gzip.compress(json.dumps(GOOD).encode())[:-9], "cut short"),
    content("text called gzip", "bad.jsonl.gz", json.dumps(GOOD), "expected a gzip file"),
    content("gzip with a wrong sum", "bad.csv.gz", gzip.compress(b"prompt,target\nx,y\n")[:-8] + b"\0" * 8, "gzip"),
    BadInput(
        "gzip that unpacks to too much",
        "convert bad.jsonl.gz out.jsonl",
        ["bad.jsonl.gz", "at most 1,000 bytes"],
        {"bad.jsonl.gz": gzip.compress(b"\n" * 10**6)},
        make=small_limits,
    ),
    BadInput(
        "a line without end",
        "convert bad.jsonl.gz out.jsonl",
        ["bad.jsonl.gz, line 1", "at most 500 bytes"],
        {"bad.jsonl.gz": gzip.compress(b"x" * 10**6)},
        make=small_limits,
    ),
    BadInput(
        "Parquet that unpacks to too much",
        "convert bad.parquet out.jsonl",
        ["bad.parquet", "at most 1,000 bytes"],
        {"bad.parquet": table({"prompt": ["x" * 100] * 100, "target": ["y"] * 100})},
        make=small_limits,
    ),
    *(
        content(f"a Git LFS pointer as {suffix}", f"bad.{suffix}", POINTER, "Git LFS pointer", "git lfs pull")
        for suffix in ("jsonl", "jsonl.gz", "json", "csv", "parquet")
    ),
]
KINDS = [
    content(
        "patterns without triples", "P19.jsonl", '{"pattern": "[X] is in [Y]."}\n', "patterns of LAMA or ParaRel alone"
    ),
    content(
        "multiple choice",
        "bad.jsonl",
        '{"question": "x", "choices": ["a"], "answer": 0}',
        "multiple choice",
        "`target`",
    ),
    content(
        "a whole set in one object",
        "bad.json",
        '{"version": "1.1", "data": [{"title": "x", "paragraphs": []}]}',
        "SQuAD's own file",
        "nested in `data`",
    ),
    content("preferences", "bad.jsonl", '{"chosen": "x", "rejected": "y"}', "preferences"),
    content("running text", "bad.jsonl", '{"text": "x"}', "running text"),
    content("fields of no format", "bad.jsonl", '{"a": 1, "b": 2}', "`a`, `b`", "`popqa`"),
    content(
        "a field of another type in a format",
        "bad.json",
        json.dumps([{**QUESTION, "question": 0.5}]),
        "record 1",
        "field `question`: expected text, got the number 0.5",
    ),
    content(
        "a format without any answer", "bad.json", json.dumps([{**QUESTION, "answers": []}]), "the answer is empty (1)"
    ),
    content(
        "messages of an unknown role",
        "bad.json",
        json.dumps([{"messages": [{"role": "human", "content": "x"}]}]),
        "messages[0].role",
        "`assistant`",
    ),
    BadInput(
        "two formats in a folder",
        "convert set out.jsonl",
        ["expected files of one format", "a.json", "b.json"],
        {"set/a.json": json.dumps([QUESTION]), "set/b.json": json.dumps([{"question": "x", "answer": "y"}])},
    ),
    content(
        "a format forced onto another file",
        "bad.json",
        json.dumps([QUESTION]),
        "record 1",
        "`subject`",
        call="convert {} out.jsonl --format zsre",
    ),
]
CALLS = [
    BadInput("a format that is none", "convert facts.jsonl out.jsonl --format tufo", ["`format`", "`tofu`", "'tufo'"]),
    BadInput(
        "columns without a field",
        "convert facts.jsonl out.jsonl --columns context",
        ["`--columns`: expected FIELD=COLUMN, got 'context'"],
    ),
    BadInput(
        "columns of one field twice",
        "convert facts.jsonl out.jsonl --columns target=a --columns target=b",
        ["`--columns`: expected one value for `target`"],
    ),
    BadInput(
        "columns of a field that is none",
        "convert facts.jsonl out.jsonl --columns answer=target",
        ["`--columns`: expected one of `id`", "`answer`"],
    ),
    BadInput(
        "columns that are not there",
        "convert facts.jsonl out.jsonl --columns 'prompt={context} {prompt}'",
        ["`--columns` names `context`, but facts.jsonl has", "`prompt`"],
    ),
    BadInput(
        "nothing left after bad records",
        "convert bad.jsonl out.jsonl --skip_bad",
        ["expected at least one fact, got none that can be read", "line 1"],
        {"bad.jsonl": [{"prompt": 1}]},
    ),
    BadInput(
        "a broken array in spite of --skip_bad",
        "convert bad.json out.jsonl --skip_bad",
        ["record 1", "broken JSON"],
        {"bad.json": "[{]"},
    ),
    BadInput(
        "a name too long for a file", ["convert", "x" * 300 + ".jsonl", "out.jsonl"], ["cannot be read", "too long"]
    ),
    BadInput("a pipe as facts", "convert bad.jsonl out.jsonl", ["expected a file or a folder", "bad.jsonl"], make=pipe),
    BadInput(
        "facts that may not be read",
        "convert bad.jsonl.gz out.jsonl",
        ["bad.jsonl.gz", "Permission denied"],
        {"bad.jsonl.gz": b""},
        make=unreadable,
    ),
    BadInput("another suffix", "convert notes.txt out.jsonl", ["notes.txt", "`.jsonl`"], {"notes.txt": "x"}),
    BadInput(
        "a damaged folder of datasets",
        "convert set out.jsonl",
        ["set", "`datasets` cannot load this folder"],
        {"set/dataset_info.json": "{"},
    ),
    BadInput("too many facts asked for", "fit --data.num_facts=99", ["99 facts were asked for", "only 12"]),
    BadInput("interference of a negative number of facts", "fit --interference.num_facts=-2", ["num_facts", "-2"]),
    BadInput("interference of no number of facts", "fit --interference.num_facts=some", ["num_facts", "some"]),
    BadInput("an unknown kind of question", "fit --data.evaluation.probes=[yesno]", ["probes"]),
    BadInput(
        "a bad record in a run",
        "fit --data.facts=bad.jsonl",
        ["bad.jsonl, line 1", "`target`"],
        {"bad.jsonl": [{"prompt": "x"}]},
    ),
    BadInput(
        "a bad record to score",
        "score --data.facts=bad.jsonl --output=scores",
        ["bad.jsonl, line 1", "`target`"],
        {"bad.jsonl": [{"prompt": "x"}]},
    ),
    BadInput(
        "a chat template that ends early",
        "fit --model.base_model=own --data.encoding.template=chat",
        ["The chat template of", "line 1", "TemplateSyntaxError"],
        make=chat_template("{% for m in messages %}{{ m['rol"),
    ),
    BadInput(
        "a chat template that raises",
        "fit --model.base_model=own --data.encoding.template=chat",
        ["The chat template of", "line 2", "no users here"],
        make=chat_template("\n{{ raise_exception('no users here') }}"),
    ),
]


@pytest.mark.parametrize("case", [*RECORDS, *LINES, *TABLES, *ARCHIVES, *KINDS], ids=str)
def test_files(case, refused):
    refused(case)


@pytest.mark.parametrize("case", CALLS, ids=str)
def test_calls(case, refused):
    refused(case)
