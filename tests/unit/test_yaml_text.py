"""YAML is read as PyYAML reads it, where it says one thing."""

import pytest
import yaml
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.yaml_text import NotYaml, parsed_yaml

VALID = [
    "",
    "# nothing but a remark",
    "words",
    "a: 1\nb: [1, two, {c: null}]\n? 3\n: 2020-01-01",
    "a: &one [1, 2]\nb: *one\nc: [*one, *one]",
    "base: &base {r: 1, s: 2}\nown: {<<: *base, s: 3}\nmore: {<<: [*base, {t: 4}], r: 5}",
    "one: {same: 1}\ntwo: {same: 1}",
    "'1': text\n1: number",
    "text: |\n  line\n  line\n",
]


@pytest.mark.parametrize("text", VALID)
def test_as_the_library_reads_it(text):
    assert parsed_yaml(text, "a.yaml") == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a:\n  b: 1\n  c: 2\n  b: 3", "a.yaml, line 4: `b` stands in line 2 as well"),
        ("[{a: 1, a: 1}]", "a.yaml, line 1: `a` stands twice"),
        (
            "base: &base {r: 1}\nown: {<<: *base, <<: *base}",
            "line 2: `<<` stands twice. Write one for both: `<<: [*a, *b]`.",
        ),
        ("{'<<': 1, '<<': 2}", "line 1: `<<` stands twice. Leave one of them out."),
        ("a: &a\n  b: {c: *a}", "a.yaml, line 1: a value contains itself"),
        ("[" * 62 + "]" * 62, "nested deeper than 60 levels"),
        ("[" * 400 + "]" * 400, "nested deeper than 60 levels"),
        ('a: ["\\uDFFF"]', "a.yaml, line 1: '\\udfff' holds half a character"),
    ],
)
def test_what_says_two_things_or_none(text, said):
    with pytest.raises(InputError) as refused:
        parsed_yaml(text, "a.yaml")
    assert said in str(refused.value)


@pytest.mark.parametrize(("text", "reason"), [("a: [", "line 1, column 5"), ("9" * 5000, "digits")])
def test_what_is_no_yaml_is_told_from_what_is_refused(text, reason):
    """A caller that explains bad YAML itself can tell it from YAML that says two things."""
    with pytest.raises(NotYaml, match=rf"^a\.yaml is no YAML: .*{reason}"):
        parsed_yaml(text, "a.yaml")
    with pytest.raises(InputError) as refused:
        parsed_yaml("a: 1\na: 2", "a.yaml")
    assert not isinstance(refused.value, NotYaml)
