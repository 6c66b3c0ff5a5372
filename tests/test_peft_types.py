"""Two modules know PEFT's types, and those of our own define theirs: no other may name one or decide by it."""

import ast
from pathlib import Path

import lit_semantic_peft
import peft
import pytest
from peft import PeftType

ROOT = Path(lit_semantic_peft.__file__).parent
HOMES = (Path("models/peft_traits.py"), Path("models/peft_settings.py"))  # of types, and of single settings
DEFINITIONS = Path("adapters")
TYPE_NAMES = {str(kind.value) for kind in PeftType}
CONFIGS = {name for name in dir(peft) if name.endswith("Config") and name != "PeftConfig"}
# Attributes and settings that only some types have.
PECULIAR = {
    *("is_prompt_learning", "is_adaption_prompt", "prompt_encoder", "num_virtual_tokens"),
    *("rankallocator", "rank_pattern", "update_and_allocate", "orth_reg_weight", "total_step"),
    *("init_lora_weights", "layer_replication", "kasa_config", "alora_invocation_tokens"),
}


def of_a_type(node):
    """Whether an expression looks at `peft_type`."""
    return any(isinstance(inner, ast.Attribute) and inner.attr == "peft_type" for inner in ast.walk(node))


def names_in(node):
    """The names and attributes in an expression."""
    return {getattr(inner, "attr", getattr(inner, "id", None)) for inner in ast.walk(node)}


def said(node, docstrings):
    """What a node says of a PEFT type, or None."""
    match node:
        case ast.ImportFrom() | ast.Import() if any(alias.name.split(".")[-1] == "PeftType" for alias in node.names):
            return "PeftType"
        case ast.Attribute(attr="PeftType") | ast.Name(id="PeftType"):
            return "PeftType"
        case ast.Attribute(attr=name) if name in PECULIAR:
            return f".{name}"
        case ast.Constant(value=str(text)) if node not in docstrings and (text in TYPE_NAMES or text in PECULIAR):
            return repr(text)
        case ast.Compare() if of_a_type(node):
            return "a comparison of peft_type"
        case ast.Match() if of_a_type(node.subject):
            return "a comparison of peft_type"
        case ast.Subscript() if of_a_type(node.slice):
            return "a look-up by peft_type"
        case ast.Call(func=ast.Attribute(attr="get"), args=[key, *_]) if of_a_type(key):
            return "a look-up by peft_type"
        case ast.Call(func=ast.Name(id="isinstance"), args=[_, kinds]) if names := names_in(kinds) & CONFIGS:
            return f"isinstance of {', '.join(sorted(names))}"
    return None


def mentions(root):
    """Sentences about what modules say of PEFT types, those of the one module that may left out."""
    found = []
    for path in sorted(root.rglob("*.py")):
        where = path.relative_to(root)
        if where in HOMES or where.is_relative_to(DEFINITIONS):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        nodes = sorted((node for node in ast.walk(tree) if hasattr(node, "lineno")), key=lambda node: node.lineno)
        found += [f"{where}:{node.lineno}: {what}" for node in nodes if (what := said(node, docstrings))]
    return found


def test_no_other_module_knows_a_peft_type():
    assert mentions(ROOT) == []


def test_the_walk_sees_the_module_that_may(tmp_path):
    (tmp_path / "elsewhere.py").write_text((ROOT / HOMES[0]).read_text(encoding="utf-8"), encoding="utf-8")
    found = {line.split(": ")[1] for line in mentions(tmp_path)}
    assert {"'ADALORA'", "'PREFIX_TUNING'", "'CARTRIDGE'", ".is_prompt_learning", ".rankallocator"} <= found
    assert len(TYPE_NAMES) > 10
    assert len(CONFIGS) > 10


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from peft import LoraConfig, PeftType", ["PeftType"]),
        ("import peft\nkind = peft.PeftType.LORA", ["PeftType"]),
        ("from peft.utils import PeftType as T", ["PeftType"]),
        ("if config.is_prompt_learning:\n    pass", [".is_prompt_learning"]),
        ("if config.peft_type == kind:\n    pass", ["a comparison of peft_type"]),
        ("if str(config.peft_type.value) in kinds:\n    pass", ["a comparison of peft_type"]),
        ("match config.peft_type:\n    case _:\n        pass", ["a comparison of peft_type"]),
        ("f = table[config.peft_type]", ["a look-up by peft_type"]),
        ("f = table.get(config.peft_type.value)", ["a look-up by peft_type"]),
        ("KINDS = ('ADALORA',)", ["'ADALORA'"]),
        ("value = getattr(config, 'rank_pattern', None)", ["'rank_pattern'"]),
        ("model.base_model.update_and_allocate(3)", [".update_and_allocate"]),
        (
            "if isinstance(config, peft.AdaLoraConfig | OFTConfig):\n    pass",
            ["isinstance of AdaLoraConfig, OFTConfig"],
        ),
        ("config = LoraConfig(r=8)\nname = summary.peft_type\nif isinstance(config, PeftConfig):\n    pass", []),
        ("def f():\n    'LORA'\nprint('LORA is a type')", []),
    ],
)
def test_the_walk_can_fail(tmp_path, source, expected):
    (tmp_path / "module.py").write_text(source)
    assert [line.split(": ", 1)[1] for line in mentions(tmp_path)] == expected
