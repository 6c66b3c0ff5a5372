"""Base models, adapters and checkpoints whose files are absent, truncated, broken, or not what they say."""

import json
import struct
from collections.abc import Callable

import pytest
from transformers import AutoTokenizer

from fixtures.bad_inputs import RUN, BadInput, Place

NOT_TEXT = b"\xff\xfe\x00\x81"


def broken(name: str, change: Callable[[bytes], bytes | None]) -> Callable[[Place], None]:
    """Copies the tiny model into `model` and changes one of its files, or removes it."""

    def make(place: Place) -> None:
        path = place.copied_model() / name
        content = change(path.read_bytes() if path.is_file() else b"")
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)

    return make


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def beyond_its_end(content: bytes) -> bytes:
    """Weights whose header says that a tensor ends beyond the file."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    last = max(header, key=lambda name: header[name].get("data_offsets", [0, 0])[1])
    header[last]["data_offsets"][1] += 4096
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def header_of_terabytes(content: bytes) -> bytes:
    return struct.pack("<Q", 2**40) + content[8:]


def setting(name: str, value: object) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps({**json.loads(content), name: value}).encode()


def added_word(place: Place) -> None:
    """A model whose tokenizer has a word of the facts as a token, for which it has no embedding."""
    folder = place.copied_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([" capital"])
    tokenizer.save_pretrained(folder)


def index_of(shards: dict[str, str] | None) -> Callable[[Place], None]:
    """Weights in parts, by an index that names some that are not there, or is broken."""

    def make(place: Place) -> None:
        folder = place.copied_model()
        (folder / "model.safetensors").unlink()
        text = '{"weight_map": {' if shards is None else json.dumps({"metadata": {}, "weight_map": shards})
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")

    return make


MODEL = "fit --model.base_model=model"
BROKEN = [
    ("weights cut in half", "model.safetensors", half, ["model"]),
    ("weights of no bytes", "model.safetensors", lambda _: b"", ["model"]),
    ("weights that are text", "model.safetensors", lambda _: b"version https://git-lfs", ["model"]),
    ("weights beyond their end", "model.safetensors", beyond_its_end, ["model"]),
    ("weights with an endless header", "model.safetensors", header_of_terabytes, ["model"]),
    ("weights that are not there", "model.safetensors", lambda _: None, ["model"]),
    ("a configuration that is not there", "config.json", lambda _: None, ["config.json"]),
    ("a broken configuration", "config.json", half, ["model", "config.json"]),
    ("an empty configuration", "config.json", lambda _: b"", ["model", "config.json"]),
    ("a configuration that is no text", "config.json", lambda _: NOT_TEXT, ["model", "config.json"]),
    ("a configuration that is a list", "config.json", lambda _: b"[]", ["model", "not list"]),
    ("an unknown architecture", "config.json", setting("model_type", "unheard"), ["unheard"]),
    ("a negative size", "config.json", setting("hidden_size", -1), ["model"]),
    ("a size that is a text", "config.json", setting("hidden_size", "wide"), ["model"]),
    ("sizes that do not fit the weights", "config.json", setting("hidden_size", 64), ["model"]),
    ("a layer too many", "config.json", setting("num_hidden_layers", 3), ["model", "missing"]),
    (
        "layers without number",
        "config.json",
        setting("num_hidden_layers", 10**9),
        ["`num_hidden_layers` is 1,000,000,000, more than 10,000"],
    ),
    (
        "experts without number in a part",
        "config.json",
        setting("text_config", {"num_local_experts": 10**6}),
        ["`num_local_experts` is 1,000,000"],
    ),
    (
        "an end that is a text",
        "generation_config.json",
        setting("eos_token_id", "x"),
        ["`eos_token_id`", "must be numbers, got 'x'"],
    ),
    ("a broken tokenizer", "tokenizer.json", half, ["tokenizer", "model"]),
    ("a tokenizer that is no text", "tokenizer.json", lambda _: NOT_TEXT, ["tokenizer", "model"]),
    ("a tokenizer that is a list", "tokenizer.json", lambda _: b"[]", ["tokenizer", "model"]),
    ("a tokenizer that is not there", "tokenizer.json", lambda _: None, ["tokenizer", "model"]),
    ("broken settings of the tokenizer", "tokenizer_config.json", half, ["tokenizer", "model"]),
    ("settings of the tokenizer that are a list", "tokenizer_config.json", lambda _: b"[]", ["tokenizer", "model"]),
    ("broken settings of generation", "generation_config.json", half, ["generation_config.json"]),
    (
        "settings of generation that are no text",
        "generation_config.json",
        lambda _: NOT_TEXT,
        ["generation_config.json"],
    ),
    ("settings of generation that are a list", "generation_config.json", lambda _: b"[]", ["generation_config.json"]),
]
CASES = [
    *(BadInput(name, MODEL, said, make=broken(file, change)) for name, file, change, said in BROKEN),
    BadInput("an index of parts that are not there", MODEL, ["model"], make=index_of({"x": "part-1.safetensors"})),
    BadInput("an index of nothing", MODEL, ["model"], make=index_of({})),
    BadInput("a broken index", MODEL, ["model"], make=index_of(None)),
    *(
        BadInput(f"a GGUF file {what}", "fit --model.base_model=a.gguf", ["a.gguf"], {"a.gguf": content})
        for what, content in (
            ("of no bytes", b""),
            ("that is text", b"version https://git-lfs.github.com/spec/v1\n"),
            ("of a header alone", b"GGUF" + struct.pack("<IQQ", 3, 2**40, 2**40)),
            ("cut in its header", b"GGUF\x03\x00"),
        )
    ),
    BadInput("a base model that is another file", "fit --model.base_model=facts.jsonl", ["not a GGUF file"]),
    BadInput(
        "words that the tokenizer has added and the model does not know",
        "fit --model.base_model=model",
        ["facts.jsonl:1", "the tokenizer has added ' capital' as token ", "the base model knows "],
        make=added_word,
    ),
    BadInput("a base model of no name", ["fit", "--model.base_model="], ["base_model"]),
    *(
        BadInput(
            f"an adapter whose configuration is {what}",
            "predict --model.adapter=adapter",
            ["adapter"],
            {"adapter/adapter_config.json": content, "adapter/adapter_model.safetensors": b""},
        )
        for what, content in (("broken", "{"), ("no text", NOT_TEXT), ("a list", "[]"), ("empty", "{}"))
    ),
    BadInput("an adapter that is not there", "predict --model.adapter=nowhere", ["nowhere"]),
    BadInput("an adapter that is a file", "predict --model.adapter=facts.jsonl", ["facts.jsonl"]),
    *(
        BadInput(
            f"a merge of an adapter that {what}",
            "export adapter out --merge",
            ["adapter"],
            {"adapter/adapter_config.json": content},
        )
        for what, content in (
            ("is no text", NOT_TEXT),
            ("is broken", "{"),
            ("is a list", "[]"),
            ("names no base", "{}"),
        )
    ),
    *(
        BadInput(f"a checkpoint that is {what}", f"{command} --ckpt_path=a.ckpt", ["a.ckpt"], {"a.ckpt": content})
        for what, content in (
            ("empty", b""),
            ("text", b"version https://git-lfs"),
            ("a cut archive", b"PK\x03\x04\x00"),
        )
        for command in ("fit", "test", "predict")
    ),
    *(
        BadInput(
            f"a last checkpoint that is {what}",
            "fit --ckpt_path=last",
            ["last.ckpt", "cannot be read"],
            {f"{RUN}/checkpoints/last.ckpt": content},
        )
        for what, content in (("empty", b""), ("text", b"words"))
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_models(case, refused):
    refused(case)
